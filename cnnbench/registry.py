"""Registry of classes by name, without a list to maintain.

A public subclass of a base class is registered because its module lies in the folder of the package; `discover` imports
the folder and collects the classes. The other functions look up names and check arguments.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, TypeVar

from cnnbench.errors import UserError, unknown

T = TypeVar("T")


@cache
def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that compares the numbers in names by value, so that ResNet18 comes before ResNet101."""
    key = []
    for part in re.split(r"(\d+)", name):
        # Text and numbers do not compare, so each part of the key has both; -1 puts text before every number.
        if part.isdecimal():  # as \d; `isdigit` is true for superscripts too, which `int` refuses
            key.append((int(part), ""))
        else:
            key.append((-1, part.lower()))
    return key


def optional(package: str, what: str) -> Any:
    """Import a package that not every installation has, and return it.

    Args:
        package: Name of the package, by which pip installs it too.
        what: What needs it, for the message, such as "--launcher ray".

    Raises:
        UserError: The package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{what} needs the package {package}; install it with: pip install {package}") from None


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return the entry of a table under a name.

    Args:
        kind: Kind of thing that the table lists, for the message, such as "model".
        name: Name to look up.
        table: Entries by name.

    Raises:
        UserError: The table has no such name; the message has the closest name and all valid ones.
    """
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def check_arguments(whose: str, cls: type, arguments: Mapping[str, Any]) -> None:
    """Check names and types of arguments against the constructors of a class and of its base classes.

    Args:
        whose: Owner of the arguments, for messages.
        cls: Class that the arguments are for.
        arguments: Values by the name of the argument.

    Raises:
        UserError: The class has no argument of a name, a required argument is missing, or a value has the wrong type.
    """
    if not arguments:
        return
    from jsonargparse import ArgumentError, ArgumentParser

    # By default, the parser would print an error and end the process.
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, skip={"optimizer", "lr_scheduler"})
    valid = [action.dest for action in parser._actions if action.dest not in ("help", "config")]
    # Each argument is parsed together with the required ones, because the parser refuses a class without these.
    needed: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            needed[name] = arguments.get(name)
    for name in needed.keys() - arguments.keys():
        raise UserError(f"{name} of {whose} is missing")
    for name, value in arguments.items():
        if name not in valid:
            raise unknown(f"argument of {whose}:", name, valid)
        try:
            parser.parse_object(needed | {name: value})
        except ArgumentError as error:
            # The message of jsonargparse names each type that it tried; the error below lists them in one line.
            kinds = re.findall(
                r"Expected an? (?:<class ')?(?:typing\.)?(.*?)(?:'>)?(?:\. Got value.*)?$", str(error), re.M
            )
            literal = re.fullmatch(r"Literal\[(.*)\]", kinds[-1]) if kinds else None
            if literal:
                raise unknown(name, str(value), re.findall(r"'(.*?)'", literal[1])) from None
            expected = " or ".join(kinds).replace("NoneType", "None") or "a value of another type"
            raise UserError(f"{name} {value!r} of {whose} is not valid; expected: {expected}") from None


def discover(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """Import every module of a package and return the public subclasses of a base class that the modules define.

    A subfolder counts as one module, and the classes that it imports from its own files count as defined in it.

    Args:
        package: Package whose folder is searched.
        base: Base class; the result contains neither it nor a class whose name starts with an underscore.

    Returns:
        Classes by name, in alphabetical order, with the numbers in names ordered by value.

    Raises:
        RuntimeError: Two modules define a class of the same name, which would make the name ambiguous.
    """
    classes: dict[str, type[T]] = {}
    # The parser of `fit` looks up names hundreds of times, so the folder is read again only after it has changed.
    for part in _modules_in(tuple((path, os.stat(path).st_mtime_ns) for path in package.__path__)):
        module = importlib.import_module(f"{package.__name__}.{part}")
        for name, value in vars(module).items():
            if not isinstance(value, type) or not issubclass(value, base) or value is base:
                continue
            if inspect.isabstract(value):  # a base class of others
                continue
            # Skip a class that the module only imports from elsewhere.
            # The dots keep a module `vgg` from matching one named `vgg_small`.
            if not f"{value.__module__}.".startswith(f"{module.__name__}.") or name.startswith("_"):
                continue
            if name in classes:
                raise RuntimeError(f"{name} is defined in {classes[name].__module__} and in {module.__name__}")
            classes[name] = value
    return {name: classes[name] for name in sorted(classes, key=natural)}


@lru_cache(maxsize=64)
def _modules_in(folders: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """Return the names of the modules in some folders.

    Args:
        folders: Path and time of the last change, in nanoseconds, of each folder. The time makes a folder with a new
            file another argument, so that the remembered answer is not used for it.
    """
    return tuple(info.name for info in pkgutil.iter_modules([path for path, _ in folders]))


def attribute(module: str, name: str, table: Callable[[], Mapping[str, T]]) -> T:
    """Return a registered class as an attribute of its package, for the ``__getattr__`` of the package.

    Args:
        module: Name of the package.
        name: Name of the attribute.
        table: Function that returns the registered classes by name; it is not called for private names.

    Raises:
        AttributeError: No class of this name is registered.
    """
    # Python asks for modules too, as in `from cnnbench.models import vgg`, which must not import all the others.
    if not name.startswith("_") and importlib.util.find_spec(f"{module}.{name}") is None:
        classes = table()
        if name in classes:
            return classes[name]
    raise AttributeError(f"module '{module}' has no attribute '{name}'")


def split_names(text: str) -> tuple[str, ...]:
    """Return the parts of a text between commas, stripped and without empty ones; brackets keep their commas."""
    parts, depth = [""], 0
    for character in text:
        # The difference of two truth values is 1 at an opening bracket, -1 at a closing one, else 0.
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return tuple(part.strip() for part in parts if part.strip())


def whole_numbers(name: str, text: str) -> list[int]:
    """Return the whole numbers in a list separated by commas, sorted and without duplicates.

    Args:
        name: Name of the option, for the message.
        text: List of whole numbers of at least 1, such as "16,32".

    Raises:
        UserError: The text is not such a list.
    """
    numbers = set()
    for part in text.split(","):
        if not part.strip().isdecimal() or int(part) < 1:
            raise UserError(f"{name} '{text}' are not whole numbers of at least 1; write for example --{name} 16,32")
        numbers.add(int(part))
    return sorted(numbers)
