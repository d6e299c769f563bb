"""Trust: which code a file may name.

A checkpoint, a benchmark plan or a YAML file names networks and classes, and building these runs their code. A file
that somebody else made must not decide which code runs here. A name from a file is therefore accepted only if it
belongs to this package or to a library that the package builds on. Any other name is accepted only if the user typed it
on the command line, either the name itself or its module after ``--trust``.

All names pass through two places, and both check them. `cnnbench.names` imports ``module:callable``.
`cnnbench.commands.fit_imports` sets up the parser of ``cnnbench fit``, which imports classes. Neither place needs to
know whether a name was typed or comes from a file, because a typed name is trusted.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cnnbench.errors import UserError
from cnnbench.files import read_yaml
from cnnbench.registry import split_names

OPTION = "--trust"
LIBRARIES = ("cnnbench", "torch", "torchvision", "timm")
"""Packages whose classes and functions a trusted module may import and offer under its own name."""
CodeKind = Literal["network", "data set"]
"""Kinds of things that code of the user's makes."""
TABLES: dict[CodeKind, tuple[str, ...]] = {
    "network": ("torchvision", "timm"),
    "data set": ("torchvision", "medmnist", "folder"),
}
"""Sources of names that stand for no code of the user's, such as ``torchvision:resnet18``, by kind."""
_ROOT = str(Path(__file__).parents[1])
"""Folder of this package, which may be on the path of this process only."""
_RUN = """\
import sys
sys.path = [path for path in sys.path if path]
if {root!r} not in sys.path:
    sys.path.insert(0, {root!r})
import runpy
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
"""Program that runs a module; `sys` is part of the interpreter, so it comes from no file."""


@contextlib.contextmanager
def no_working_folder() -> Iterator[None]:
    """Let Python processes that start in the body find no module in the working folder before they get their path.

    Those of `multiprocessing` begin with ``python -c``, which looks there first. Python 3.10 has no switch against it.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def module_command(module: str, *words: str) -> list[str]:
    """Return the command that runs a module of this package in a fresh process.

    ``python -m`` would look for modules in the working folder first, and run a file there that is named like one.

    Args:
        module: Full name of the module.
        words: Its arguments.
    """
    return [sys.executable, "-c", _RUN.format(root=_ROOT, module=module), *words]


@dataclass(frozen=True)
class Trust:
    """Modules and names that the user trusts, because they are on the command line.

    Attributes:
        modules: Modules after ``--trust``.
        typed: Words of the command line; a name in a file is trusted if it is one of these words.
    """

    modules: frozenset[str] = frozenset()
    typed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, modules: Iterable[str] = (), typed: Iterable[str] = ()) -> Trust:
        """Return the trust in modules and in typed names.

        Args:
            modules: Names of the modules to trust.
            typed: Names that the user typed.

        Raises:
            UserError: The name of a module is not a dotted Python name.
        """
        named = frozenset(name.strip() for name in modules)
        for name in named:
            if not all(part.isidentifier() for part in name.split(".")):
                raise UserError(f"{OPTION} '{name}' is not a module; write for example {OPTION} mynets")
        return cls(named, frozenset(typed))

    @classmethod
    def in_arguments(cls, arguments: Sequence[str]) -> Trust:
        """Return the trust that a command line gives: the modules after ``--trust``, and every word as a typed name.

        Raises:
            UserError: The name of a module is not a dotted Python name.
        """
        modules: list[str] = []
        typed: set[str] = set()
        for index, argument in enumerate(arguments):
            # An option and its value are one word, with an equals sign, or two; names may be between commas in it.
            name, equals, value = argument.partition("=")
            typed |= {argument, value, *split_names(argument), *split_names(value)}
            for text in (argument, value):
                if text[:1] in ("{", "["):  # a value written as JSON, whose names are typed too
                    # This finds names such as mynets.Net and mynets:net.
                    typed |= set(re.findall(r"[\w.]+(?::\w+)?", text))
            if name == OPTION:
                given = value if equals else "".join(arguments[index + 1 : index + 2])
                modules += split_names(given)
        return cls.of(modules, typed)

    def covers(self, module: str) -> bool:
        """Return whether a module, or a package that contains it, is trusted."""
        return any(module == known or module.startswith(f"{known}.") for known in self.modules)


class _Policy:
    """Trust that is enforced in this process; None in a user's own program, which decides itself what it calls."""

    trust: Trust | None = None


@contextlib.contextmanager
def enforced(trust: Trust) -> Iterator[None]:
    """Enforce trust inside the block: a network or class must be of the package, of its libraries, or trusted."""
    before, _Policy.trust = _Policy.trust, trust
    try:
        yield
    finally:
        _Policy.trust = before


def current() -> Trust | None:
    """Return the trust that is enforced, or None if none is."""
    return _Policy.trust


def words(networks: Iterable[str], data: Iterable[str] = ()) -> str:
    """Return the ``--trust`` option that a command needs to read these names from a file.

    Args:
        networks: Names of networks.
        data: Names of data sets.

    Returns:
        The option with a space in front, or an empty string if none of the names needs it.
    """
    found = [foreign_module(name) for name in networks] + [foreign_module(name, "data set") for name in data]
    modules = dict.fromkeys(module for module in found if module)
    return f" {OPTION} {','.join(modules)}" if modules else ""


def foreign_module(name: str, kind: CodeKind = "network") -> str | None:
    """Return the module in a name ``module:callable``, or None for a name that stands for no code of the user's."""
    plain = name.partition("(")[0]  # a name may have arguments in brackets
    # `get_network` splits a name at its last colon. `get_data` does so at its first one, since the path of a folder may
    # have further ones. Both have to be split here as they are there.
    module, colon, _ = plain.rpartition(":") if kind == "network" else plain.partition(":")
    return module.strip() if colon and module.strip() not in TABLES[kind] else None


def check_code(name: str, where: str, trust: Trust, kind: CodeKind = "network") -> None:
    """Raise UserError unless a network or a data set that a file names may be built.

    Args:
        name: Name of the network or data set.
        where: Name of the file, for the message.
        trust: Modules and names that the user trusts.
        kind: Kind of what is named.

    Raises:
        UserError: The code lies outside the package, and the user does not trust it.
    """
    module = foreign_module(name, kind)
    if module is None or name in trust.typed:
        return
    if not trust.covers(module):
        raise UserError(
            f"{where} names the {kind} '{name}', whose code lies outside cnnbench; if you trust it, add "
            f"{OPTION} {module or 'MODULE'}"
        )
    _check_origin(name, module, where, trust)


def _check_origin(name: str, module: str, where: str, trust: Trust) -> None:
    """Raise UserError for a callable that a trusted module only imports, such as a function that starts programs."""
    attribute = name.partition("(")[0].rpartition(":")[2].strip()
    # `__module__` names the module that defines the callable, which may be another than the one that offers it.
    value = getattr(_imported(module), attribute, None)
    origin = str(getattr(value, "__module__", None))
    # A name that does not exist is reported when the network is built.
    if value is not None and not trust.covers(origin) and origin.partition(".")[0] not in LIBRARIES:
        raise UserError(
            f"{where} names '{name}', which is code of {origin}, not of {module}; if you trust it, type the name on "
            "the command line"
        )


def _imported(module: str) -> Any:
    """Return a module, imported with the working folder on the search path, or None if it cannot be imported."""
    # An installed command has the folder of its script on the search path, not the working folder.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(module)
    except Exception:  # reported when the network is built
        return None


def check_config(path: Path, seen: frozenset[Path] = frozenset()) -> None:
    """Raise UserError unless a YAML file of ``cnnbench fit``, and the files it refers to, are valid and grant no trust.

    Args:
        path: YAML file.
        seen: Resolved paths of the files that led to this one, so that files that refer to each other do not loop.

    Raises:
        UserError: A file cannot be read, sets ``trust``, or has another value where a table of options must be.
    """
    values = read_yaml(path, "config")
    where = f"config '{path}'"
    if values is None:  # the file is empty
        return
    if not isinstance(values, dict):
        raise UserError(f"{where} is not a table of `option: value`")
    if values.get(OPTION.strip("-")) not in (None, ""):  # `--print_config` writes it without a value
        raise UserError(f"{where} must not set {OPTION.strip('-')}; it is a word of the command line")
    # A text can be the name of a file with the table, which `_files_named` follows.
    for key in ("trainer", "lr_monitor", "checkpoint"):
        if not isinstance(values.get(key), (dict, str, type(None))):
            raise UserError(f"{where}: {key} is {str(values[key])[:60]}; it must be a table of `option: value`")
    for owner, options in _options_of_classes(values):
        if not isinstance(options, (dict, type(None))):
            raise UserError(
                f"{where}: init_args of {owner} is {str(options)[:60]}; it must be a table of `argument: value`"
            )
    seen |= {path.resolve()}
    for file in _files_named(values, path.parent):
        if file.resolve() not in seen:
            check_config(file, seen)


def _files_named(values: Any, folder: Path) -> Iterator[Path]:
    """Yield the existing files that the values of a configuration in this folder refer to."""
    for text in _texts(values):
        if re.search(r"\.(ya?ml|json)$", text):
            # jsonargparse replaces a value that is a file name by the content of the file. It looks for the file beside
            # the file that names it and in the working folder.
            for file in (folder / text, Path(text)):
                if file.is_file():
                    yield file


def _options_of_classes(value: Any, owner: str = "a class") -> Iterator[tuple[str, Any]]:
    """Yield each value of a key ``init_args`` at any depth, preceded by the class or key that it belongs to."""
    if isinstance(value, Mapping):
        if "init_args" in value:
            yield str(value.get("class_path", owner))[:60], value["init_args"]
        for key, part in value.items():
            yield from _options_of_classes(part, str(key))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _options_of_classes(part, owner)


def _texts(value: Any) -> Iterator[str]:
    """Yield every text among the values of nested tables and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
