"""Names of networks and data sets, checked against the stored catalogue before torch is imported.

A misspelt name is refused in a fraction of a second then. Every other form of a name, such as ``torchvision:NAME``, and
every name after the modules of the zoo have changed, is left to the code that imports it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from cnnbench.catalog import data_forms, listed_names
from cnnbench.errors import UserError, unknown
from cnnbench.names import DATA, MODEL, Kind, parse_name, unknown_name
from cnnbench.options import named_in

KINDS: dict[str, Kind] = {"models": MODEL, "data": DATA}
"""Kind of thing that a name stands for, by the room that it lies in."""


def check_names(options: Any) -> None:
    """Check the names of networks and data sets in the options of a command.

    Raises:
        UserError: A name is unknown.
    """
    for room, name in named_in(options):
        # `all` stands for every network, where it stands alone.
        if ":" not in name and name != "all":
            _check(room, name)


def _check(room: str, name: str) -> None:
    """Raise UserError if a plain name is none of a room's."""
    valid = listed_names(room)
    if valid is None:
        return
    plain, _ = parse_name(name, KINDS[room])
    if plain not in valid:
        if room == "data":
            forms = data_forms()
            valid = [known for known in valid if forms[known] == known]
        raise unknown_name(KINDS[room], plain, valid)


def check_words(words: Sequence[str]) -> None:
    """Check the names behind ``--model`` and ``--data`` in a command line of ``cnnbench fit``.

    Raises:
        UserError: A name is unknown.
    """
    for flag, room in (("--model", "models"), ("--data", "data")):
        for name in _values(words, flag):
            # Everything else is a table, a file, a path of a class, or a name with a colon.
            if not re.fullmatch(r"\w+(\(.*\))?", name):
                continue
            try:
                plain, _ = parse_name(name, KINDS[room])
            except UserError:
                continue  # `fit` says so, after it has read its files
            valid = listed_names(room)
            # The wrapper of a network from elsewhere is a class of its own.
            if valid is not None and plain not in (*valid, "External"):
                raise unknown(KINDS[room].word, plain, valid)


def _values(words: Sequence[str], flag: str) -> list[str]:
    """Return the values of an option, written ``FLAG VALUE`` or ``FLAG=VALUE``."""
    values = [word.partition("=")[2] for word in words if word.startswith(f"{flag}=")]
    return values + [following for word, following in itertools.pairwise(words) if word == flag]
