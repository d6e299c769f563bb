"""The command line of ``cnnbench fit``: short forms are expanded, and files and names are checked.

Everything that the arguments name is checked here before any of it is imported or built.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cnnbench.commands.fit_errors import TABLES
from cnnbench.commands.fit_loggers import LOGGERS
from cnnbench.data import SOURCES
from cnnbench.errors import UserError, unknown
from cnnbench.files import parse_yaml, read_yaml
from cnnbench.names import DATA, parse_name
from cnnbench.network import External
from cnnbench.training.settings import LINKED
from cnnbench.trust import check_config

NAMING = {cls.__name__: argument for cls, argument in SOURCES.values()} | {External.__name__: "name"}
"""Argument that says which network or data set it is, by the classes of those from elsewhere."""


def check_files(arguments: list[str]) -> None:
    """Check that the configurations that the arguments name can be read and grant no trust.

    Raises:
        UserError: A configuration is damaged, or sets what only the command line may set.
    """
    named = [*values_of(arguments, "--config"), *values_of(arguments, "-c")]
    for option in ("--model", "--data", "--trainer"):
        named += [value for value in values_of(arguments, option) if re.search(r"\.(ya?ml|json)$", value)]
    for text in named:
        if not text.lstrip().startswith("{"):  # not a file: the values themselves, typed as JSON
            check_config(Path(text))


def values_of(arguments: list[str], flag: str) -> list[str]:
    """Return the values of an option, written ``--flag value`` or ``--flag=value``, in the order of the command line.

    The parser takes the last one, so what is checked here has to be the last one too.
    """
    values = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        if argument == flag and following is not None:
            values.append(following)
        elif argument.startswith(f"{flag}="):
            values.append(argument.partition("=")[2])
    return values


def value_of(arguments: list[str], key: str) -> str | None:
    """Return the value of an option that may be typed or in a configuration, such as ``out``; None if it is not set."""
    value = None
    for flag, text in flags_of(arguments):
        if flag == f"--{key}":
            value = text
        elif flag in ("--config", "-c"):
            value = _table(text, Path())[0].get(key, value)
    return None if value is None else str(value)


def flags_of(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each option and its value, written ``--flag value`` or ``--flag=value``, in their order."""
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        flag, equals, value = argument.partition("=")
        if flag.startswith("-") and equals:
            yield flag, value
        elif flag.startswith("-") and following is not None:
            yield flag, following


class Setting(NamedTuple):
    """What one option, or one file, sets of the network or of the data set.

    Attributes:
        source: Option or file, for messages.
        class_path: Name of the class; None if this does not set it.
        arguments: Arguments of the class by name, with values as they are written.
    """

    source: str
    class_path: str | None
    arguments: dict[str, Any]


def settings_of(arguments: list[str], key: str) -> Iterator[Setting]:
    """Yield what the command line and its files set of the network or data set, in the order in which the parser reads.

    Args:
        arguments: Command line; its configurations have passed `check_files`.
        key: ``model`` or ``data``.
    """
    for flag, value in flags_of(arguments):
        if flag in ("--config", "-c"):
            table, folder = _table(value, Path())
            yield _setting(f"config '{value}'", table.get(key), folder)
        elif flag == f"--{key}":
            yield _setting(flag, value, Path())
        elif flag.startswith(f"--{key}."):
            # The parser accepts an argument with and without these words.
            name = re.sub(r"^(init_args|dict_kwargs)(\.|$)", "", flag.removeprefix(f"--{key}."))
            if name == "class_path":
                yield Setting(flag, value, {})
            elif name:
                # An argument of an argument, and a value that is appended, count as the argument.
                yield Setting(flag, None, {re.split(r"[.+]", name)[0]: value})
            else:
                yield Setting(flag, None, _table(value, Path())[0])


def _setting(source: str, value: Any, folder: Path) -> Setting:
    """Return what the value of ``model`` or ``data`` sets: a name, a table, or a file with a table."""
    if isinstance(value, str) and is_table(value):
        value, folder = _table(value, folder)
    if isinstance(value, str):
        return Setting(source, value, {})
    if not isinstance(value, dict):
        return Setting(source, None, {})
    name = value.get("class_path")
    inner = [value.get("init_args"), value.get("dict_kwargs")]
    if name is None and inner == [None, None]:
        return Setting(source, None, value)  # the short form: the arguments directly
    merged = {key: part for table in inner if isinstance(table, dict) for key, part in table.items()}
    return Setting(source, str(name) if name is not None else None, merged)


def is_table(text: str) -> bool:
    """Return whether a value is a table, written as JSON or in a file, and not a name."""
    return text.lstrip().startswith("{") or re.search(r"\.(ya?ml|json)$", text) is not None


def _table(text: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """Return a table that is written as JSON or in a file, and the folder that the names of files in it refer to."""
    if text.lstrip().startswith("{"):
        value = parse_yaml(text, "the table of an option")
    else:
        # The parser looks for a file beside the file that names it, and in the working folder.
        path = folder / text if (folder / text).is_file() else Path(text)
        if not path.is_file():
            return {}, folder  # the parser says so
        value, folder = read_yaml(path, "config"), path.parent
    return (value if isinstance(value, dict) else {}), folder


def class_of(arguments: list[str], key: str) -> Setting | None:
    """Return the setting that decides which network or data set it is; None if the arguments name none."""
    named = [setting for setting in settings_of(arguments, key) if setting.class_path is not None]
    return named[-1] if named else None


def name_of(arguments: list[str], key: str) -> str | None:
    """Return the name of the network or data set in folder names; None if the arguments name none."""
    chosen = class_of(arguments, key)
    if chosen is None:
        return None
    name = str(chosen.class_path).rsplit(".", 1)[-1]
    if name not in NAMING:
        return name
    argument = NAMING[name]
    values = [s.arguments[argument] for s in settings_of(arguments, key) if argument in s.arguments]
    return word_of(argument, values[-1]) if values else None


def word_of(argument: str, value: Any) -> str:
    """Return the word for a network or data set in folder names, from the argument of `NAMING` and its value."""
    # The name of a folder of images stands for its path.
    return Path(str(value)).resolve().name if argument == "path" else str(value)


def in_order(arguments: list[str]) -> list[str]:
    """Move the choice of a class before the options of that class, since the parser needs to know the class first.

    In ``--data.batch_size 32 --data MNIST`` the choice ``--data MNIST`` comes first then. It stays where it is if a
    configuration stands between, or if there was another choice before.
    """
    units = _units(arguments)
    place = 0
    while place < len(units):
        flag, value = _parts(units[place])
        first = _first_of_its_options(units[:place], flag)
        if first is not None and not is_table(value):
            units.insert(first, units.pop(place))
        place += 1
    return [word for unit in units for word in unit]


def _units(arguments: list[str]) -> list[list[str]]:
    """Return the words of a command line, each option together with its value."""
    units: list[list[str]] = []
    for word in arguments:
        previous = units[-1] if units else []
        if len(previous) == 1 and previous[0].startswith("-") and "=" not in previous[0] and word[:2] != "--":
            previous.append(word)
        else:
            units.append([word])
    return units


def _parts(unit: list[str]) -> tuple[str, str]:
    """Return an option and its value; the value is empty if there is none."""
    flag, _, value = unit[0].partition("=")
    return flag, unit[1] if len(unit) > 1 else value


def _first_of_its_options(units: list[list[str]], flag: str) -> int | None:
    """Return the place of the first option of a choice that has no choice before it; None if there is no such option.

    Args:
        units: Options before the choice.
        flag: Option that makes the choice, such as ``--data``.
    """
    found = None
    for place, unit in enumerate(units):
        other = unit[0].partition("=")[0]
        if other in (flag, f"{flag}+"):
            return None
        if other in ("--config", "-c"):
            found = None
        elif found is None and other.startswith(f"{flag}."):
            found = place
    return found if flag.startswith("--") else None


def with_logger_words(arguments: list[str]) -> list[str]:
    """Replace ``--trainer.logger WORD``, for a word of `LOGGERS`, by the options that stand for it."""
    words: list[str] = []
    for unit in _units(arguments):
        flag, value = _parts(unit)
        if flag == "--trainer.logger" and value in LOGGERS:
            words += ["--trainer.logger=true", f"--logger={value}"]
        else:
            words += unit
    return words


def with_written_out_names(arguments: list[str]) -> list[str]:
    """Replace names such as ``VGG16(batch_norm=true)``, ``torchvision:NAME`` and ``folder:PATH`` by options.

    The parser knows names of classes only, and their arguments as options of their own.
    """
    expanded: list[str] = []
    for argument in _split_flag("--model", list(_split_flag("--data", arguments))):
        # `_split_flag` has split --model=VALUE, so the value is always the word behind the option.
        flag = expanded[-1] if expanded else ""
        if flag == "--model" and not is_table(argument):
            expanded += _network_words(argument)
        elif flag == "--data" and not is_table(argument):
            expanded += _data_words(argument)
        else:
            expanded.append(argument)
    return expanded


def _network_words(name: str) -> list[str]:
    """Return the words behind ``--model`` that stand for the name of a network."""
    if ":" in name:
        return [External.__name__, f"--model.name={name}"]
    return _class_words("--model", *parse_name(name)) if "(" in name else [name]


def _data_words(name: str) -> list[str]:
    """Return the words behind ``--data`` that stand for the name of a data set."""
    source, colon, text = name.partition(":")
    if colon and source in SOURCES:
        cls, argument = SOURCES[source]
        return [cls.__name__, f"--data.{argument}={text}"]
    if not colon and "(" not in name:
        return [name]
    plain, options = parse_name(name, DATA)
    # The parser imports a class by its path, with a dot where a name has a colon.
    return _class_words("--data", plain.replace(":", "."), options)


def _class_words(flag: str, name: str, options: dict[str, Any]) -> list[str]:
    return [name, *(f"{flag}.{key}={_as_option(value)}" for key, value in options.items())]


def _as_option(value: Any) -> str:
    # The parser reads a value as YAML, in which JSON is valid.
    return value if isinstance(value, str) else json.dumps(value)


def _split_flag(flag: str, arguments: list[str]) -> Iterator[str]:
    """Yield the arguments, with ``FLAG=VALUE`` split into two."""
    for argument in arguments:
        if argument.startswith(f"{flag}="):
            yield from argument.split("=", 1)
        else:
            yield argument


def check_names(arguments: list[str]) -> None:
    """Check names and arguments that the parser would refuse late or not at all.

    Raises:
        UserError: A network or data set is unknown, or an argument is set that the data decides.
    """
    for key in ("model", "data"):
        for setting in settings_of(arguments, key):
            name = setting.class_path or ""
            # The parser itself explains an unknown name in a file, with the file.
            if setting.source.startswith("--") and re.fullmatch(r"\w+", name):
                kind, valid = TABLES[key]()
                if name not in valid and name != External.__name__:
                    raise unknown(kind, name, valid)
    # The data decides unless it is a module of another kind, which only its class tells; see `check_linked`.
    data = class_of(arguments, "data")
    if data is None or "." not in str(data.class_path):
        check_linked(arguments)


def check_linked(arguments: list[str]) -> None:
    """Raise UserError if an argument of the network is set that an `ImageDataModule` decides."""
    for setting in settings_of(arguments, "model"):
        for name in LINKED:
            if name in setting.arguments:
                raise _decided_by_data(setting.source, name)


def _decided_by_data(source: str, name: str) -> UserError:
    what = source if source.endswith(f".{name}") else f"model.{name} in {source.removeprefix('config ')}"
    return UserError(f"{what} is decided by the data; set data.image_size, or take another data set")
