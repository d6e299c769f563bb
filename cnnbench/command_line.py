"""The command line of this process, as the user typed it, for records: without what may be a password or a key.

No option of this package takes a key. But options of `fit` go to classes of other packages, such as loggers, and data
sets and launchers take options of their own. So a value is left out if the name beside it says that it is a secret, if
it is the user and password of an address, or if it is the value of an environment variable with such a name.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Sequence

from cnnbench.text import shortened

LEFT_OUT = "***"
"""What stands in the place of a value that may be a secret."""
MOST_CHARACTERS = 4000
"""Characters of a command line that a record keeps; the middle of a longer one is left out."""
FEWEST_CHARACTERS = 8
"""Characters from which on the value of an environment variable is looked for; shorter ones may be parts of words."""
# "key" and "auth" are parts of other words, such as "monkey" and "author". A name ends here, so "num_tokens" is none.
_NAME = (
    r"(?:token|secret|passw(?:or)?d|passphrase|credentials?|(?:api|access|secret|private)[_-]?key|"
    r"(?<![a-z0-9])(?:key|pwd|auth))"
)
_OPTION = re.compile(rf"-{{1,2}}[\w.+-]*{_NAME}", re.IGNORECASE)
_WITH_VALUE = re.compile(rf"({_OPTION.pattern})=.*", re.IGNORECASE | re.DOTALL)
_WITHIN = re.compile(rf"({_NAME}[\"']?\s*[:=]\s*)(?:\"[^\"]*\"|'[^']*'|[^\s,;&{{}}\[\]()\"']+)", re.IGNORECASE)
"""A name and its value within a word, as in YAML, JSON, a call or an address."""
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)
"""User and password in an address."""
_VARIABLE = re.compile(rf"{_NAME}$", re.IGNORECASE)


class _Typed:
    """The words of the command line of this process; None if it was not started by one."""

    words: Sequence[str] | None = None


@contextlib.contextmanager
def typed(words: Sequence[str]) -> Iterator[None]:
    """Let `command_line` return these words for the time of the block.

    Args:
        words: Words of the command line after ``cnnbench``.
    """
    before, _Typed.words = _Typed.words, list(words)
    try:
        yield
    finally:
        _Typed.words = before


def command_line() -> str | None:
    """Return the command that is running, quoted for a shell and without secrets; None if none is, as in a notebook."""
    if _Typed.words is None:
        return None
    return shortened(shlex.join(["cnnbench", *without_secrets(_Typed.words)]), MOST_CHARACTERS)


def _is_secret(variable: str, value: str) -> bool:
    """Return whether the name of an environment variable says that its value is a secret, unless that is too short."""
    # A shell keeps its working folder in PWD; as a part of other names, PWD is a password.
    if variable == "PWD" and os.path.isdir(value):
        return False
    return len(value) >= FEWEST_CHARACTERS and _VARIABLE.search(variable) is not None


def without_secrets(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with `LEFT_OUT` in the place of every value that may be a secret."""
    values = [value for name, value in os.environ.items() if _is_secret(name, value)]
    kept = []
    is_value = False
    for word in words:
        if is_value and not word.startswith("--"):
            kept.append(LEFT_OUT)
            is_value = False
            continue
        # An option and its value are one word, with an equals sign, or two.
        is_value = _OPTION.fullmatch(word) is not None
        for value in values:
            word = word.replace(value, LEFT_OUT)
        word = _WITH_VALUE.sub(rf"\1={LEFT_OUT}", word)
        word = _WITHIN.sub(rf"\1{LEFT_OUT}", word)
        kept.append(_ADDRESS.sub(rf"\1{LEFT_OUT}@", word))
    return kept
