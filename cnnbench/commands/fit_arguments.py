"""The command line of ``cnnbench fit``: short forms are expanded, names are checked, and errors are put in plain words.

Everything that the arguments name is checked here before any of it is imported or built.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import lightning as L
from lightning.pytorch.cli import LightningArgumentParser

from cnnbench.checkpoints import check_training_state, network_of, open_checkpoint
from cnnbench.console import note
from cnnbench.data import all_data
from cnnbench.errors import UserError, unknown
from cnnbench.files import read_yaml, safe_name
from cnnbench.models import all_models
from cnnbench.network import External, parse_name
from cnnbench.references import weights_file
from cnnbench.trust import OPTION, Trust, check_config, current

LINKED = ("num_classes", "in_channels", "image_size")
"""Arguments of the network whose values come from the data set."""


class Refused(SystemExit):
    """Exception that carries a message of the parser through jsonargparse.

    It is a `SystemExit`, because jsonargparse catches every other kind of error and then tries something else.
    """

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class Parser(LightningArgumentParser):
    """Parser that accepts no abbreviated options and raises `Refused` for an error, so that `explain` can reword it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise Refused(message)


def explain(message: str) -> UserError:
    """Return a UserError of one line with a hint, for a message of jsonargparse, which may have many lines.

    Args:
        message: Message of the parser. Its parts, such as the option and the value, are found by regular expressions.
    """
    text = " ".join(message.split())
    # A message can match several of the expressions, so the order counts.
    denied = _first(r"Importing '([^']+)' is not allowed", text)
    if denied:
        return UserError(
            f"a configuration names '{denied}', which is none of the networks, data sets and classes of Lightning and "
            f"torch that a file may name; if you trust its code, add {OPTION} {denied.rpartition('.')[0]}"
        )
    # The option that the message is about, if it names one.
    key = _first(r'Parser key "([^"]+)"', text)
    name = _first(r"(?:Expected a dot import path string|[Uu]nable to import[^:]*): ([\w.:]+)", text)
    if name:
        return _no_class(key, name)
    option = _first(r"(?:[Oo]ption|unrecognized arguments:) ['\"]?-*([\w.]+)", text)
    if option and re.search("accept|unrecognized", text):
        return _unknown_option(option)
    file = _first(r"File does not exist: '?([^']+)", text)
    if file:
        return UserError(f"{key or 'file'} '{file}' does not exist")
    required = _first(r"arguments are required: (.*)$", text)
    if required:
        missing = [part.split(".")[-1] for part in required.split(", ")]
        return UserError(f"--{' and --'.join(missing)} missing; name one, or give a --config with it")
    # A value of the wrong type: name the types that are valid.
    value = _first(r"(?:Given value|Got value): (.*)$", text).strip()
    types = " or ".join(dict.fromkeys(re.findall(r"<class '([\w.]+)'>", text)))
    if key and value and types:
        types = re.sub(r"\bNoneType\b", "null, for nothing,", types)
        return UserError(f"{key} '{value}' is not valid; it must be {types}")
    return UserError(text if len(text) <= 400 else text[:399] + "…")


def _first(pattern: str, text: str) -> str:
    """Return what the group of a pattern matches at its first place in a text, or an empty text."""
    match = re.search(pattern, text)
    return match[1] if match else ""


def _no_class(key: str, name: str) -> UserError:
    """Return the error for a name that stands for no class.

    Args:
        key: Option that has the name as its value.
        name: Name that the user wrote.
    """
    # The short form of an external network is expanded on the command line only, so a file cannot use it.
    if key == "model" and ":" in name.rstrip(":"):
        return UserError(f"model '{name}': in a file write class_path: External and init_args: {{name: '{name}'}}")
    if key in _TABLES:
        kind, valid = _TABLES[key]()
        if name not in valid:
            return unknown(kind, name, valid)
    return UserError(f"{key} '{name}' is no class that can be imported; write a name such as AdamW")


_TABLES: dict[str, Callable[[], tuple[str, Iterable[str]]]] = {
    "model": lambda: ("model", all_models()),
    "data": lambda: ("data set", all_data()),
}
"""Functions that return the kind of thing that ``--model`` or ``--data`` names, for messages, and the valid names."""


def _unknown_option(option: str) -> UserError:
    near = difflib.get_close_matches(option, _options(), n=1, cutoff=0.7)
    hint = f"did you mean '{near[0]}'?" if near else "`cnnbench fit --help` lists the options"
    return UserError(f"unknown option '{option}'; {hint}")


def _options() -> list[str]:
    """Return every option with its prefix, and the arguments of networks and data sets also without the prefix."""
    names = ["config", "seed_everything", "out", "wandb", "ckpt_path", "model", "data", "trainer"]
    names += [f"trainer.{name}" for name in inspect.signature(L.Trainer.__init__).parameters if name != "self"]
    for prefix, classes in (("model", all_models().values()), ("data", all_data().values())):
        # A class passes most of its arguments on to its base classes, so the signatures of these count too.
        bases = {base for cls in classes for base in cls.__mro__ if base.__module__.startswith("cnnbench")}
        for base in bases:
            for name in inspect.signature(base).parameters:
                names += [name, f"{prefix}.{name}"]
    return names


def with_named_checkpoint(arguments: list[str]) -> list[str]:
    """Replace ``--ckpt_path last`` or ``best`` by that file of the newest matching run, and print which file it is.

    A run matches if it lies in the folder of ``--out`` and is of the network and data set that the arguments name.

    Raises:
        UserError: No such run has the checkpoint.
    """
    paths = values_of(arguments, "--ckpt_path")
    # Lightning knows these words too, but looks for checkpoints of the run at hand, which has none yet.
    if not paths or paths[-1] not in ("last", "best", "hpc"):
        return arguments
    word = paths[-1]
    out = Path((values_of(arguments, "--out") or ["results/runs"])[-1])
    parts = []
    for option in ("--model", "--data"):
        part = (values_of(arguments, option) or ["*"])[-1]
        parts.append(part if part == "*" else safe_name(part))
    name = "-".join(parts)  # the name of a folder, or a pattern for several
    matches = sorted(out.glob(f"{name}/*/checkpoints/{word}.ckpt"), key=lambda path: path.stat().st_mtime)
    # Lightning saves this checkpoint under another name, for a job that SLURM stops, so the search cannot find it.
    if word == "hpc" or not matches:
        raise UserError(
            f"--ckpt_path {word}: there is no run with such a checkpoint in '{out / name}'; name the file, which "
            "`cnnbench fit` prints"
        )
    note(f"checkpoint: {matches[-1]}")
    return [*_without_option(arguments, "--ckpt_path"), f"--ckpt_path={matches[-1]}"]


def with_reference_weights(arguments: list[str]) -> list[str]:
    """Replace ``--weights reference`` by the checkpoint that the package ships for the network and data set.

    Raises:
        UserError: The package has no such checkpoint, the subcommand is ``fit``, or other options do not go with it.
    """
    values = values_of(arguments, "--weights")
    if not values:
        return arguments
    if values[-1] != "reference":
        raise UserError(f"--weights {values[-1]} is not known; there is only: --weights reference")
    if arguments[:1] == ["fit"] or values_of(arguments, "--ckpt_path"):
        raise UserError("--weights reference is for test, validate and predict, in place of --ckpt_path; leave it out")
    models, data = (values_of(arguments, option) for option in ("--model", "--data"))
    if not models:
        raise UserError("--weights reference needs --model NAME, such as LeNet5, and --data NAME")
    path = weights_file(models[-1], data[-1] if data else None)
    rest = [*_without_option(arguments, "--weights"), f"--ckpt_path={path}"]
    if not data:
        # The name of the data set must precede the options of the data set, so it follows the subcommand directly.
        rest[1:1] = ["--data", path.stem.removeprefix(f"{models[-1]}-")]
    return rest


def _without_option(arguments: list[str], flag: str) -> Iterator[str]:
    """Yield the arguments without an option and its value."""
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == flag:
            skip = True
        elif not argument.startswith(f"{flag}="):
            yield argument


def with_run_config(arguments: list[str]) -> list[str]:
    """Add the configuration of the run that wrote the checkpoint, unless the arguments name a configuration or network.

    Raises:
        UserError: The checkpoint does not exist, or no configuration lies in the folders above it.
    """
    paths = values_of(arguments, "--ckpt_path")
    if not paths or paths[-1] in ("", "null"):
        return arguments
    checkpoint = Path(paths[-1])
    if not checkpoint.exists():
        raise UserError(f"checkpoint '{checkpoint}' does not exist; `cnnbench fit` prints the path of the one it wrote")
    if any(a.split("=")[0] in ("--config", "-c", "--model") for a in arguments):
        return arguments
    # The run folder is two levels up, or more: a checkpoint named after a metric such as val/accuracy has a slash in
    # its name, which makes one more folder.
    for folder in checkpoint.resolve().parents[:4]:
        if (folder / "config.yaml").is_file():
            return [arguments[0], f"--config={folder / 'config.yaml'}", *arguments[1:]]
    raise UserError(f"no config.yaml beside checkpoint '{checkpoint}'; add --config FILE, or --model NAME --data NAME")


def check_files(arguments: list[str]) -> None:
    """Check that the files that the arguments name can be read, and that the network of a checkpoint may be built.

    Raises:
        UserError: A configuration or checkpoint is damaged or names code that the user does not trust, or the
            checkpoint of a training that is to go on has weights only.
    """
    named = [*values_of(arguments, "--config"), *values_of(arguments, "-c")]
    for option in ("--model", "--data", "--trainer"):
        named += [value for value in values_of(arguments, option) if re.search(r"\.(ya?ml|json)$", value)]
    for text in named:
        if not text.lstrip().startswith("{"):  # not a file: the values themselves, typed as JSON
            check_config(Path(text))
    for text in values_of(arguments, "--ckpt_path")[-1:]:
        if text not in ("", "null"):
            stored, where = open_checkpoint(Path(text)), f"checkpoint '{text}'"
            # LightningCLI builds the network that this entry names, so it is checked before the parser imports it.
            if "_class_path" in stored["hyper_parameters"]:
                network_of(stored, where, current() or Trust())
            if arguments[0] == "fit":
                check_training_state(stored, where)


_ALLOWED = (
    "cnnbench.models cnnbench.data cnnbench.network.External cnnbench.optimizers cnnbench.training.callbacks "
    "torch.optim torch.nn torchmetrics "
    "lightning.pytorch.callbacks lightning.pytorch.loggers lightning.pytorch.profilers lightning.pytorch.plugins "
    "lightning.pytorch.accelerators lightning.pytorch.strategies lightning.fabric.plugins "
    "lightning.fabric.strategies lightning.fabric.accelerators lightning.fabric.loggers"
).split()
"""Modules and classes that a configuration may name: the class itself, or any class of the module."""


def _allowed() -> tuple[str, ...]:
    """Return what a configuration may name, with the networks and data sets as attributes of the package.

    The parser writes the shortest path of a class into the configuration of a run, such as ``cnnbench.LeNet5``.
    """
    return (*_ALLOWED, *(f"cnnbench.{name}" for name in ("External", *all_models(), *all_data())))


_CLOSED: set[str] = set()
"""Names that an earlier command line in this process allowed, and that are denied by name since then."""


def _is_allowed(path: str) -> bool:
    """Return whether a configuration may name a class without the trust of the user."""
    return any(path == allowed or path.startswith(f"{allowed}.") for allowed in _allowed())


def foreign_classes(values: Any) -> Iterator[str]:
    """Yield the modules of the classes in a configuration that a file may name only if the user trusts them."""
    if isinstance(values, dict):
        path = values.get("class_path")
        if isinstance(path, str) and not _is_allowed(path):
            yield path.rpartition(".")[0]
        for value in values.values():
            yield from foreign_classes(value)
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from foreign_classes(value)


def _own_names(trust: Trust) -> list[str]:
    """Return the modules and classes outside the package that the user allows, without duplicates."""
    names = []
    for name in (*trust.modules, *trust.typed):
        # Of the typed words only dotted names can be modules or classes.
        if all(part.isidentifier() for part in name.split(".")):
            names.append(name)
    # A name that was denied after an earlier command line is allowed again if the user trusts its module now.
    names += [name for name in _CLOSED if trust.covers(name.rpartition(".")[0])]
    # jsonargparse refuses to allow its own classes, since they could change these settings.
    return [name for name in dict.fromkeys(names) if name.partition(".")[0] != "jsonargparse"]


@contextlib.contextmanager
def allowed_imports() -> Iterator[None]:
    """Restrict the parser's imports inside the block to `_ALLOWED` and to what the user named on the command line.

    The parser applies the restriction to every name before it imports anything: in every file, at any depth, and also
    in JSON within a text.
    """
    trust = current()
    if trust is None:
        yield
        return
    own = _own_names(trust)
    allowed = _allowed()
    jsonargparse.set_parsing_settings(
        import_path_denylist=["*"],
        # The most specific entry decides, and the star is less specific than every name.
        import_path_allowlist=[*allowed, *own],
        instantiate_subclass_spec_in_any=False,  # a value for an argument of type Any could otherwise name any class
    )
    try:
        yield
    finally:
        # The settings hold for the whole process, but what this command line allowed must not hold for the next one.
        closed = [name for name in own if name not in allowed]
        _CLOSED.update(closed)
        jsonargparse.set_parsing_settings(import_path_denylist=closed)


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


def with_network_options(arguments: list[str]) -> list[str]:
    """Replace ``--model NAME(key=value)`` and ``--model torchvision:NAME`` by options that the parser knows."""
    expanded: list[str] = []
    for argument in _split_flag("--model", arguments):
        # `_split_flag` has split --model=VALUE, so the value is always the word behind the option.
        is_model = expanded[-1:] == ["--model"]
        if is_model and ":" in argument:
            expanded += [External.__name__, f"--model.name={argument}"]
        elif is_model and "(" in argument:
            name, options = parse_name(argument)
            expanded.append(name)
            for key, value in options.items():
                expanded.append(f"--model.{key}={_as_option(value)}")
        else:
            expanded.append(argument)
    return expanded


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
    # An option and its value are two neighbouring words, or one word with an equals sign.
    pairs = list(itertools.pairwise(arguments))
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if equals:
            pairs.append((flag, value))
    for flag, value in pairs:
        if flag in ("--model", "--data") and re.fullmatch(r"\w+", value):
            kind, valid = _TABLES[flag[2:]]()
            if value not in valid and value != External.__name__:
                raise unknown(kind, value, valid)
        # The parser accepts the argument with and without ``init_args``.
        if flag.startswith("--model.") and flag.removeprefix("--model.").removeprefix("init_args.") in LINKED:
            raise _decided_by_data(flag)
        if flag in ("--config", "-c") and Path(value).is_file():
            _check_linked_in(value)


def _check_linked_in(file: str) -> None:
    """Raise UserError if a configuration file sets an argument of the network that the data decides."""
    # An empty file has the value None.
    network = (read_yaml(Path(file), "config") or {}).get("model")
    if not isinstance(network, dict):
        return
    # The arguments of the network are under `init_args`, or directly under `model` in the short form.
    for name in set(LINKED) & set(network.get("init_args") or network):
        raise _decided_by_data(f"model.{name} in '{file}'")


def _decided_by_data(what: str) -> UserError:
    return UserError(f"{what} is decided by the data; set data.image_size, or take another data set")
