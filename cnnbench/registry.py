"""Names without a list to maintain: a public subclass in a file of the folder is registered by being there."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

from cnnbench.errors import UserError, unknown

T = TypeVar("T")


def natural(name: str) -> list[tuple[int, str]]:
    """Key for sorting names so that numbers in them count by value: ResNet18 before ResNet101."""
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Finds a name in a table.

    Raises:
        UserError: It is not there; the message has the nearest name and all valid ones.
    """
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def check_arguments(whose: str, cls: type, arguments: Mapping[str, Any]) -> None:
    """Checks names and types of arguments against the constructor of a class and of what it derives from.

    Args:
        whose: What has the arguments, for messages.
        cls: The class.
        arguments: Values by name.

    Raises:
        UserError: One of them is not there, or is not of its type.
    """
    if not arguments:
        return
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, skip={"optimizer", "lr_scheduler"})
    valid = [action.dest for action in parser._actions if action.dest not in ("help", "config")]
    needed = {
        name: arguments.get(name)
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    for name in needed.keys() - arguments.keys():
        raise UserError(f"{name} of {whose} is missing")
    for name, value in arguments.items():
        if name not in valid:
            raise unknown(f"argument of {whose}:", name, valid)
        try:
            parser.parse_object(needed | {name: value})
        except ArgumentError as error:
            kinds = re.findall(
                r"Expected an? (?:<class ')?(?:typing\.)?(.*?)(?:'>)?(?:\. Got value.*)?$", str(error), re.M
            )
            literal = re.fullmatch(r"Literal\[(.*)\]", kinds[-1]) if kinds else None
            if literal:
                raise unknown(name, str(value), re.findall(r"'(.*?)'", literal[1])) from None
            expected = " or ".join(kinds).replace("NoneType", "None") or "a value of another type"
            raise UserError(f"{name} {value!r} of {whose} is not valid; expected: {expected}") from None


def discover(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """Imports every module of a package and collects the public subclasses of a base class that it defines.

    A folder counts as a module that defines what it imports from its own files.

    Args:
        package: The package whose folder is searched.
        base: What the classes derive from; it is not listed itself, nor are names that start with an underscore.

    Returns:
        Classes by name, in alphabetical order, numbers by value.

    Raises:
        RuntimeError: Two modules define a class of the same name, so that the name would be ambiguous.
    """
    found: dict[str, type[T]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, value in vars(module).items():
            if not isinstance(value, type) or not issubclass(value, base) or value is base:
                continue
            if not f"{value.__module__}.".startswith(f"{module.__name__}.") or name.startswith("_"):
                continue
            if name in found:
                raise RuntimeError(f"{name} is defined in {found[name].__module__} and in {module.__name__}")
            found[name] = value
    return {name: found[name] for name in sorted(found, key=natural)}


def attribute(module: str, name: str, table: Callable[[], Mapping[str, T]]) -> T:
    """Return a listed class as an attribute of its package, for that package's ``__getattr__``.

    Args:
        module: Name of the package.
        name: The attribute.
        table: Returns the listed classes by name; not called for private names.

    Raises:
        AttributeError: There is no such class.
    """
    if not name.startswith("_"):
        classes = table()
        if name in classes:
            return classes[name]
    raise AttributeError(f"module '{module}' has no attribute '{name}'")


def split_names(text: str) -> tuple[str, ...]:
    """Splits at commas, but not at those between brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return tuple(part.strip() for part in parts if part.strip())


def whole_numbers(name: str, text: str) -> list[int]:
    """Numbers of at least one between commas, sorted, each once.

    Raises:
        UserError: The text is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{name} '{text}' are not whole numbers of at least 1; write for example --{name} 16,32")
    return sorted({int(part) for part in parts})
