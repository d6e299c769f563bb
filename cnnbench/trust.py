"""Which code a file may name.

A checkpoint, a plan, or a YAML file names networks and classes, and building them runs their code. A file that
somebody else made must not decide what runs here. So a name that comes from a file is accepted if it is one of this
package or of the libraries that it builds on; anything else only if the user names it on the command line, by typing
the same name or its module with ``--trust``.

Names are checked at the two places through which all of them pass: where a network ``module:callable`` is imported
(`cnnbench.network`), and where the parser of ``cnnbench fit`` imports a class (`cnnbench.commands.fit_arguments`).
Whether a name was typed or came from a file is not told apart there: a name that was typed is trusted.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnbench.errors import UserError
from cnnbench.files import read_yaml
from cnnbench.registry import split_names

OPTION = "--trust"
LIBRARIES = ("cnnbench", "torch", "torchvision", "timm")
"""Packages whose code a trusted module may hand on."""
TABLES = ("torchvision", "timm")
"""Sources of networks that are a fixed table of names, as in ``torchvision:resnet18``."""


@dataclass(frozen=True)
class Trust:
    """What the user named on this command line.

    Attributes:
        modules: Of ``--trust``.
        typed: Words of the command line, each of which may be a name that a file has too.
    """

    modules: frozenset[str] = frozenset()
    typed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, modules: Iterable[str] = (), typed: Iterable[str] = ()) -> Trust:
        """Return the trust in modules and in typed names.

        Raises:
            UserError: One of the modules is not written as a module.
        """
        named = frozenset(name.strip() for name in modules)
        for name in named:
            if not all(part.isidentifier() for part in name.split(".")):
                raise UserError(f"{OPTION} '{name}' is not a module; write for example {OPTION} mynets")
        return cls(named, frozenset(typed))

    @classmethod
    def in_arguments(cls, arguments: Sequence[str]) -> Trust:
        """Return the trust that a command line gives: the modules of ``--trust``, and every word of it.

        Raises:
            UserError: One of the modules is not written as a module.
        """
        modules: list[str] = []
        typed: set[str] = set()
        for index, argument in enumerate(arguments):
            name, equals, value = argument.partition("=")
            typed |= {argument, value, *split_names(argument), *split_names(value)}
            for text in (argument, value):
                if text[:1] in ("{", "["):  # values written as JSON
                    typed |= set(re.findall(r"[\w.]+(?::\w+)?", text))
            if name == OPTION:
                given = value if equals else "".join(arguments[index + 1 : index + 2])
                modules += split_names(given)
        return cls.of(modules, typed)

    def covers(self, module: str) -> bool:
        """Return whether a module, or a package that it lies in, is trusted."""
        return any(module == known or module.startswith(f"{known}.") for known in self.modules)


class _Policy:
    """What holds in this process; None in programs of the user's, which say themselves what they call."""

    trust: Trust | None = None


@contextlib.contextmanager
def enforced(trust: Trust) -> Iterator[None]:
    """Have networks and classes inside be those of the package, of its libraries, or trusted."""
    before, _Policy.trust = _Policy.trust, trust
    try:
        yield
    finally:
        _Policy.trust = before


def current() -> Trust | None:
    """Return the trust that is enforced, if one is."""
    return _Policy.trust


def words(names: Iterable[str]) -> str:
    """Return the option that a command needs to read these names of networks from a file, with a space in front."""
    modules = dict.fromkeys(module for name in names if (module := foreign_module(name)))
    return f" {OPTION} {','.join(modules)}" if modules else ""


def foreign_module(name: str) -> str | None:
    """Return the module of a network's name ``module:callable``; None for those of the zoo, torchvision and timm."""
    plain = name.partition("(")[0]
    module, colon, _ = plain.rpartition(":")
    return module.strip() if colon and module.strip() not in TABLES else None


def check_network(name: str, where: str, trust: Trust) -> None:
    """Raise unless a network that a file names may be built.

    Args:
        name: As in `cnnbench.network`.
        where: The file, for the message.
        trust: What the user named.

    Raises:
        UserError: It is code from outside, and the user has not named it.
    """
    module = foreign_module(name)
    if module is None or name in trust.typed:
        return
    if not trust.covers(module):
        raise UserError(
            f"{where} names the network '{name}', whose code lies outside cnnbench; if you trust it, add "
            f"{OPTION} {module or 'MODULE'}"
        )
    _check_origin(name, module, where, trust)


def _check_origin(name: str, module: str, where: str, trust: Trust) -> None:
    """Refuse what a trusted module has only imported, such as a function that starts programs."""
    attribute = name.partition("(")[0].rpartition(":")[2].strip()
    found = getattr(_imported(module), attribute, None)
    origin = str(getattr(found, "__module__", None))
    if found is not None and not trust.covers(origin) and origin.partition(".")[0] not in LIBRARIES:
        raise UserError(
            f"{where} names '{name}', which is code of {origin}, not of {module}; if you trust it, type the name on "
            "the command line"
        )


def _imported(module: str) -> Any:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(module)
    except Exception:  # said by whoever builds the network
        return None


def check_config(path: Path, seen: frozenset[Path] = frozenset()) -> None:
    """Raise unless a YAML file of ``cnnbench fit``, and those that it refers to, can be read and give no trust.

    Raises:
        UserError: They cannot, or do.
    """
    values = read_yaml(path, "config")
    where = f"config '{path}'"
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{where} is not a table of `option: value`")
    if isinstance(values, dict) and OPTION.strip("-") in values:
        raise UserError(f"{where} must not set {OPTION.strip('-')}; it is a word of the command line")
    for key in ("trainer", "lr_monitor", "checkpoint"):
        if isinstance(values, dict) and not isinstance(values.get(key), (dict, str, type(None))):
            raise UserError(f"{where}: {key} is {str(values[key])[:60]}; it must be a table of `option: value`")
    for owner, options in _options_of_classes(values):
        if not isinstance(options, (dict, type(None))):
            raise UserError(
                f"{where}: init_args of {owner} is {str(options)[:60]}; it must be a table of `argument: value`"
            )
    for text in _texts(values):
        # jsonargparse reads a file in place of a value, beside the file that names it or in the working folder.
        for file in (path.parent / text, Path(text)) if re.search(r"\.(ya?ml|json)$", text) else ():
            if file.is_file() and file.resolve() not in seen | {path.resolve()}:
                check_config(file, seen | {path.resolve()})


def _options_of_classes(value: Any, owner: str = "a class") -> Iterator[tuple[str, Any]]:
    """Yield what stands as ``init_args``, at any depth, each with what it belongs to."""
    if isinstance(value, Mapping):
        if "init_args" in value:
            yield str(value.get("class_path", owner))[:60], value["init_args"]
        for key, part in value.items():
            yield from _options_of_classes(part, str(key))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _options_of_classes(part, owner)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
