"""Options of a command, each declared once, as a field of a frozen dataclass.

`parse` turns the words of a command line into such a dataclass. For a command with ``--config`` it also reads a YAML
file of the same options. Values from both pass through `convert`, so a value has the same meaning in either place. A
Python program can create the dataclass directly. Code outside `cnnbench.commands` receives the dataclass and never sees
an argument parser.

Example:
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Options:
    ...     "Count networks."
    ...     models: tuple[str, ...] = option("Names of networks.", positional=True, metavar="MODEL")
    ...     batch_size: int | None = option("Images per training step.", default=None, least=1)
    >>> parse(Options, ["VGG16", "--batch_size", "8"], "cnnbench count")
    Options(models=('VGG16',), batch_size=8)
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

from cnnbench.console import out_text
from cnnbench.errors import UserError, unknown
from cnnbench.files import parse_yaml, read_yaml
from cnnbench.registry import split_names

T = TypeVar("T")

_LARGEST = 2**63
_TYPED_ONLY = {"config", "trust"}
"""Options that are valid on the command line only, never in a file."""


@dataclass(frozen=True)
class _Facts:
    """Properties of an option that the type and the default of its field do not express."""

    help: str
    metavar: str | None
    least: float | None
    most: float | None
    positional: bool
    is_config: bool
    names: str | None
    valid: Sequence[str]


def option(
    help: str,
    *,
    default: Any = MISSING,
    metavar: str | None = None,
    least: float | None = None,
    most: float | None = None,
    positional: bool = False,
    is_config: bool = False,
    names: Literal["models", "data"] | None = None,
    valid: Sequence[str] = (),
) -> Any:
    """Return a dataclass field that declares an option of a command.

    The type of the field decides how its value is read. ``bool`` is a flag. ``tuple[str, ...]`` is a list of names
    separated by commas, or by spaces if the option is positional. ``Literal`` is one of its choices.
    ``dict[str, Any]`` is a table in YAML. ``int``, ``float``, ``str`` and ``Path`` are single values.

    Args:
        help: Description of what the option does, as a full phrase.
        default: Value if the option is not set. Only a positional option may be without a default; it is then required.
        metavar: Placeholder for the value in the help.
        least: Smallest valid number.
        most: Largest valid number.
        positional: Whether the value is given by its position, without the option's name.
        is_config: Whether the values are YAML files of the command's own options; the type is ``tuple[Path, ...]``.
        names: Whether the values are names of networks (``models``) or data sets (``data``), which `named_in` returns.
        valid: Words that are valid; a text may have several, separated by commas. ``N`` in a word, as in ``cuda:N``,
            stands for a number. So a misspelt word is refused before torch is imported.
    """
    facts = _Facts(help, metavar, least, most, positional, is_config, names, tuple(valid))
    return dataclasses.field(default=default, metadata={"option": facts})


def config_option() -> Any:
    """Return the dataclass field of ``--config``, the YAML files of a command's own options."""
    return option(
        "YAML file with these options; may be repeated: a later file overrides an earlier one, and the command line "
        "overrides all files.",
        default=None,
        metavar="FILE",
        is_config=True,
    )


def parse(
    cls: type[T],
    words: Sequence[str],
    command: str,
    example: str = "",
    check_file: Callable[[Mapping[str, Any], str], None] | None = None,
) -> T:
    """Parse a command line into a dataclass of options.

    A value on the command line overrides the value in a ``--config`` file, and a later file overrides an earlier one.
    The dataclass may have a class attribute ``EXCLUSIVE`` with groups of options that exclude each other. Whatever sets
    one option of such a group overrides all options of the group.

    Args:
        cls: Dataclass of options; the first paragraph of its docstring is the description in the help.
        words: Words of the command line after the command.
        command: Full name of the command, such as ``cnnbench count``.
        example: Options of an example command line, shown at the end of the help.
        check_file: Function that may refuse the values of a ``--config`` file. It is called before they are used, with
            the values and with a phrase that names the file.

    Raises:
        UserError: An option is unknown or missing, or has an invalid value.
        SystemExit: The words contain ``--help``; the help is printed first.
    """
    parser = make_parser(cls, command, example)
    raw = vars(parser.parse_args(list(words)))
    known = dict(_fields(cls))
    given = {name: convert(cls, name, value) for name, value in raw.items()}
    stored: dict[str, Any] = {}
    for name, value in given.items():
        if not known[name].metadata["option"].is_config:
            continue
        for path in value:
            of_file = _read_config(cls, path, known)
            if check_file is not None:
                check_file(of_file, f"config '{path}'")
            stored = _overridden(cls, stored, of_file)
    given = _overridden(cls, stored, given)
    return cls(**given)


def named_in(options: Any) -> Iterator[tuple[str, str]]:
    """Yield the names of networks and data sets in the options of a command, each as ``(room, name)``.

    Args:
        options: Dataclass of options; a room is ``models`` or ``data``.
    """
    for name, field in _fields(type(options)):
        room, value = field.metadata["option"].names, getattr(options, name)
        if room is not None and value is not None:
            for one in (value,) if isinstance(value, str) else value:
                yield room, one


def _overridden(cls: type, values: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with those that others override; an option of an exclusive group overrides the whole group."""
    for group in getattr(cls, "EXCLUSIVE", ()):
        if any(name in by for name in group):
            values = {name: value for name, value in values.items() if name not in group}
    return {**values, **by}


def from_keywords(cls: type[T], function: str, keywords: Mapping[str, Any], refused: Sequence[str] = ()) -> T:
    """Return options from the keyword arguments of a Python function, checked as those of a command line.

    Args:
        cls: Dataclass of options.
        function: Name of the function, for messages.
        keywords: Values by name of the option; None stands for the default.
        refused: Options of the command that the function does not have.

    Raises:
        UserError: A name or a value is wrong.
    """
    valid = [name for name, _ in _fields(cls) if name not in refused]
    values = {}
    for name, value in keywords.items():
        if name not in valid:
            raise unknown(f"option of {function}():", name, valid)
        if value is not None:
            values[name] = convert(cls, name, value)
    return cls(**values)


def convert(cls: type, name: str, value: Any, where: str = "") -> Any:
    """Return the value of an option, converted to the type of its field.

    Args:
        cls: Dataclass of options.
        name: Name of the field.
        value: Text from a command line, or any value from a YAML file.
        where: Source of the value for the message, such as "config 'bench.yaml'"; empty for the command line.

    Raises:
        UserError: The value cannot be converted to the type, is none of the choices, or is out of range.
    """
    facts: _Facts = dict(_fields(cls))[name].metadata["option"]
    kind = _kind_of(cls, name)
    try:
        if not kind.many:
            return _single(kind, value, name, facts)
        return tuple(_single(kind, part, name, facts) for part in _parts(value, from_file=bool(where)))
    except UserError as error:
        if where:
            raise UserError(f"{where}: {error}") from None
        raise


def _parts(value: Any, from_file: bool) -> list[Any]:
    """Return the single values of an option that takes several.

    A text has names between commas. So has each text in a list of a file; a list from a command line has its words,
    whose commas are their own.
    """
    if isinstance(value, str):
        return list(split_names(value))
    if not isinstance(value, (list, tuple)):
        return [value]
    parts: list[Any] = []
    for part in value:
        if from_file and isinstance(part, str):
            parts += split_names(part)
        else:
            parts.append(part)
    return parts


def _single(kind: _Kind, value: Any, name: str, facts: _Facts) -> Any:
    """Return one value, converted to the option's type and checked against its choices and its range."""
    if value is False and "off" in kind.choices:  # YAML reads the bare word off as false
        value = "off"
    # A list in a file or from Python can hold such a value, as in ``models: [5]``.
    if kind.many and kind.type is str and not isinstance(value, str):
        raise UserError(f"{name} {value!r} is not a name")
    try:
        result = _CONVERTERS[kind.type](value, name)
    except UserError as error:
        # A list has a form of its own, so the message shows an example.
        if kind.many and facts.metavar:
            raise UserError(f"{error}; write for example --{name} {facts.metavar}") from None
        raise
    if kind.choices and result not in kind.choices:
        raise unknown(name, str(result), kind.choices)
    _check_range(result, value, name, facts)
    if facts.valid:
        for word in split_names(result):
            if re.sub(r":\d+$", ":N", word) not in facts.valid:
                raise unknown(name.removesuffix("s"), word, facts.valid)
    return result


def _check_range(result: Any, value: Any, name: str, facts: _Facts) -> None:
    """Raise UserError if a converted value is out of the option's range; the message shows it as it was written."""
    if facts.least is not None and result < facts.least:
        raise UserError(f"{name} {value} must be at least {facts.least:g}")
    if facts.most is not None and result > facts.most:
        raise UserError(f"{name} {value} must be at most {facts.most:g}")


def _to_int(value: Any, name: str) -> int:
    # Python accepts True as an int, and int(2.5) would drop the fraction without a word.
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UserError(f"{name} '{value}' is not a whole number")
    try:
        number = int(value)
    except ValueError:
        raise UserError(f"{name} '{value}' is not a whole number") from None
    if not -_LARGEST <= number < _LARGEST:
        raise UserError(f"{name} '{value}' is not a whole number of 64 bits")
    return number


def _to_float(value: Any, name: str) -> float:
    # NaN stands for every value that is not a number, so that one check refuses it together with the infinities.
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name} '{value}' is not a number")
    return number


def _to_bool(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{name} '{value}' is not true or false")
    return value


def _to_str(value: Any, name: str) -> str:
    # Numbers are texts too, as in ``precision: 32``. YAML reads words such as yes and off as booleans, and
    # 2020-01-01 as a date, of which the text that was meant cannot be known.
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Path)):
        raise UserError(f"{name} '{value}' is not a single text; put it in quotes")
    if value == "":
        raise UserError(f"{name} is empty; leave it out for the default")
    return str(value)


def _to_path(value: Any, name: str) -> Path:
    return Path(_to_str(value, name))


def _to_table(value: Any, name: str) -> dict[str, Any]:
    hint = "write for example '{image_size: 28, augment: false}'"
    if isinstance(value, str):
        try:
            value = parse_yaml(value, name)
        except UserError as error:
            raise UserError(f"{error}; {hint}") from None
    if not isinstance(value, dict):
        raise UserError(f"{name} '{value}' is not a table; {hint}")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{name} has the key {key!r}, which is not a name; {hint}")
    return value


_CONVERTERS: dict[Any, Callable[[Any, str], Any]] = {
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
    str: _to_str,
    Path: _to_path,
    dict: _to_table,
}


class Known(NamedTuple):
    """What may follow an option: the type of a single value, the valid words, and which names it takes."""

    type: Any
    choices: tuple[str, ...]
    names: str | None


def facts_of(cls: type, name: str) -> Known | None:
    """Return what may follow an option of a dataclass; None if it has no such option."""
    field = dict(_fields(cls)).get(name)
    if field is None:
        return None
    kind = _kind_of(cls, name)
    return Known(kind.type, kind.choices, field.metadata["option"].names)


def _fields(cls: type) -> Iterator[tuple[str, Field]]:
    """Yield the name and the field of each option: first a class's own options, then those that it inherits."""
    # `dataclasses.fields` would begin with the options of the base class, so the classes are walked from this one up.
    own = {field.name: field for field in dataclasses.fields(cls) if "option" in field.metadata}
    seen = set()
    for base in cls.__mro__:
        for name in vars(base).get("__annotations__", {}):
            if name in own and name not in seen:
                seen.add(name)
                yield name, own[name]


@dataclass(frozen=True)
class _Kind:
    """Rule for reading an option: type of a single value, valid choices, and whether it takes several values."""

    type: Any
    choices: tuple[str, ...] = ()
    many: bool = False


def _kind_of(cls: type, name: str) -> _Kind:
    # With ``from __future__ import annotations`` a field's type is a text, which this call evaluates.
    annotation = typing.get_type_hints(cls)[name]
    # `int | None` is read as int: None only stands for an option that is not set.
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (annotation,) = (part for part in typing.get_args(annotation) if part is not type(None))
    # `tuple[str, ...]` has the arguments (str, Ellipsis), and `dict[str, Any]` is read as a plain dict.
    origin = typing.get_origin(annotation)
    if origin is tuple:
        return _Kind(typing.get_args(annotation)[0], many=True)
    if origin is typing.Literal:
        return _Kind(str, typing.get_args(annotation))
    return _Kind(origin or annotation)


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line and suggest the option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def print_help(self, file: Any = None) -> None:
        # argparse would pass over an error in writing.
        out_text(self.format_help().rstrip())
        sys.stdout.flush()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, rest = super().parse_known_args(args, namespace)
        # argparse itself would name everything that it did not understand, and suggest nothing.
        if rest:
            typed = rest[0].split("=")[0]
            # argparse has no public list of its option strings; they are the keys of this attribute.
            near = difflib.get_close_matches(typed, self._option_string_actions, n=1)
            hint = f"`{self.prog} --help` lists the options"
            if near:
                hint = f"did you mean '{near[0]}'?"
            raise UserError(f"unknown option '{typed}'; {hint}")
        return parsed, rest


class _Once(argparse.Action):
    """Action that stores several values, and refuses a second time, when it is not clear which of them are meant."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if hasattr(namespace, self.dest):
            raise UserError(
                f"--{self.dest} is given twice, as {getattr(namespace, self.dest)} and as {values}; give it once, with "
                "all values"
            )
        setattr(namespace, self.dest, values)


def make_parser(cls: type, command: str, example: str = "") -> argparse.ArgumentParser:
    """Return a parser of the options of a dataclass; see `parse`."""
    parser = _Parser(
        prog=command,
        description=" ".join(str(cls.__doc__).split("\n\n")[0].split()),
        epilog=f"example: {command} {example}".rstrip() if example else None,
        # An option that is not typed stays out of the result, so that a file or the dataclass can supply its value.
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, field in _fields(cls):
        facts: _Facts = field.metadata["option"]
        kind = _kind_of(cls, name)
        settings: dict[str, Any] = {"help": _help(field, facts)}
        if facts.positional:
            required = field.default is MISSING
            settings["metavar"] = facts.metavar or name.upper()
            # A plus sign asks for at least one value; a star and a question mark also allow none.
            if kind.many:
                settings["nargs"] = "+" if required else "*"
            elif not required:
                settings["nargs"] = "?"
            parser.add_argument(name, **settings)
        elif kind.type is bool:
            parser.add_argument(f"--{name}", action="store_true", **settings)
        else:
            choices = "{" + ",".join(kind.choices) + "}" if kind.choices else None
            settings["metavar"] = facts.metavar or choices or name.upper()
            # Of a single value the last one counts, as a preset that is followed by a user's own options needs it.
            if facts.is_config:
                settings["action"] = "append"
            elif kind.many or kind.type is dict:
                settings["action"] = _Once
            # An option with several values is one word with commas, which `convert` splits.
            parser.add_argument(f"--{name}", required=field.default is MISSING, **settings)
    return parser


def _help(field: Field, facts: _Facts) -> str:
    """Return the help text of an option with its default added, unless there is none or the text states it already."""
    text = facts.help
    # Compared by identity, since 0 is equal to False.
    silent = field.default is MISSING or field.default is None or field.default is False or field.default == ()
    if not silent and "default:" not in text:
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        text = f"{text.rstrip('.')} (default: {default})."
    return text.replace("%", "%%")  # argparse formats help texts with the % operator


def _read_config(cls: type, path: Path, known: Mapping[str, Field]) -> dict[str, Any]:
    """Return the options in a YAML file, converted to their types; an option that is null counts as not set."""
    stored = read_yaml(path, "config")
    where = f"config '{path}'"
    if stored is None:
        raise UserError(f"{where} is empty; write for example: models: [LeNet5, ResNet18]")
    if not isinstance(stored, dict):
        raise UserError(f"{where} is not a list of `option: value` lines")
    values = {}
    for key, value in stored.items():
        if key not in known or key in _TYPED_ONLY:
            valid = [name for name in known if name not in _TYPED_ONLY]
            raise UserError(f"{where}: {unknown('key', str(key), valid)}")
        if value is not None:
            values[key] = convert(cls, key, value, where)
    return values
