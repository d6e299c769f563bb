"""Recipes of ``cnnbench bench --configs``: configurations of ``cnnbench fit`` as rows of a benchmark's grid.

A benchmark trains all networks under one budget, and a recipe says how one of them is trained: optimizer, schedule,
smoothing, batch size and augmentation. Anything in a file that a benchmark cannot do is refused, not left out.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cnnbench.benchmark.plan import Recipe
from cnnbench.console import note
from cnnbench.data import SOURCES as SOURCES_OF_DATA
from cnnbench.data import get_bench_data
from cnnbench.errors import UserError, unknown
from cnnbench.files import read_yaml, safe_name
from cnnbench.models import all_models
from cnnbench.names import call_words
from cnnbench.network import External
from cnnbench.registry import check_arguments
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.settings import LINKED
from cnnbench.trust import Trust, check_code, current

BASES = {"optimizer": Optimizer, "lr_scheduler": LRScheduler}
"""Class of which such a class must be a subclass."""
SOURCES = {
    "optimizer": ("torch.optim", "cnnbench.optimizers"),
    "lr_scheduler": ("torch.optim.lr_scheduler", "lightning.pytorch.cli"),
}
"""Modules of which a file may name a class, by argument of the network."""
_SECTIONS = ("seed_everything", "model", "data", "trainer")
"""Entries of a configuration that concern a training."""
_OUTPUTS = ("out", "logger", "test", "json", "lr_monitor", "checkpoint")
"""Entries, beside those of W&B, that say what is logged and kept of a training, which a benchmark decides itself."""
_NO_EFFECT = (
    "default_root_dir enable_checkpointing enable_model_summary enable_progress_bar inference_mode log_every_n_steps "
    "logger num_sanity_val_steps profiler"
).split()
"""Options of the Trainer that change nothing in a training."""
_OF_RECIPE = ("max_epochs", "max_steps", "gradient_clip_val", "gradient_clip_algorithm")
"""Options of the Trainer that are part of a recipe."""
CLIP_ALGORITHMS = ("norm", "value")
"""Values of ``trainer.gradient_clip_algorithm``."""
_OF_BENCH = {"accelerator": "--device", "devices": "--device", "precision": "--precision", "benchmark": ""}
"""Options of the Trainer in place of which a benchmark has options of its own, or decides itself."""


@dataclass(frozen=True)
class Configuration:
    """What a configuration of ``cnnbench fit`` says about a training.

    Attributes:
        recipe: Network, data and the settings of the training.
        seed: Value of ``seed_everything``; None if the file does not have it.
        precision: Number format by Lightning's name; None if the file does not name one.
    """

    recipe: Recipe
    seed: Any = None
    precision: str | None = None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe for a benchmark, which has seeds and a number format of its own.

    Args:
        path: YAML file, a configuration of ``cnnbench fit``.

    Raises:
        UserError: The file cannot be read, or sets something that a benchmark cannot do.
    """
    return read_configuration(path).recipe


def read_configuration(path: Path, command: str = "bench") -> Configuration:
    """Read a configuration of ``cnnbench fit``.

    Args:
        path: YAML file.
        command: Command that reads it, ``bench`` or ``search``, for messages; `search` keeps the precision.

    Raises:
        UserError: The file cannot be read, or sets something that the command cannot do.
    """
    where = f"config '{path}'"
    values = _table(read_yaml(path, "config"), where)
    for section, value in values.items():
        known = section in (*_SECTIONS, *_OUTPUTS, "wandb") or section.startswith("wandb_")
        if not known and value is not None:
            raise _not_set(where, section, command)
    trainer = _table(values.get("trainer"), f"{where}: trainer")
    _check_trainer(trainer, where, command)
    model, given = _class_and_arguments(values.get("model"), f"{where}: model")
    data, options = _class_and_arguments(values.get("data"), f"{where}: data", required=False)
    options.pop("data_dir", None)
    epochs, steps = (_limit(trainer, name, where) for name in ("max_epochs", "max_steps"))
    name, arguments = _network(_short(model), given, where)
    check_code(name, where, current() or Trust())
    data = _data_name(_short(data), options)
    if data is not None:
        check_code(str(data), where, current() or Trust(), "data set")
    recipe = Recipe(
        safe_name(path.stem), name, arguments, data, options or None, epochs, steps, *_clipping(trainer, where)
    )
    check(recipe, where)
    precision = trainer.get("precision")
    return Configuration(recipe, values.get("seed_everything"), None if precision is None else str(precision))


def _limit(trainer: Mapping[str, Any], name: str, where: str) -> int | None:
    """Return a limit of a training; None if the file has none, which Lightning writes as -1 too."""
    value = trainer.get(name)
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: trainer.{name} {value} must be a whole number of at least 1")
    return value


def _clipping(trainer: Mapping[str, Any], where: str) -> tuple[float | None, Any]:
    """Return to what gradients are clipped and by which algorithm; None twice without clipping."""
    value, algorithm = trainer.get("gradient_clip_val"), trainer.get("gradient_clip_algorithm")
    if algorithm not in (None, *CLIP_ALGORITHMS):
        raise unknown(f"trainer.gradient_clip_algorithm in {where}:", str(algorithm), CLIP_ALGORITHMS)
    if value is None or (value == 0 and not isinstance(value, bool)):
        return None, None
    # Written this way the test refuses NaN too.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"{where}: trainer.gradient_clip_val {value} must be a positive number, such as 1.0")
    return float(value), algorithm


def _not_set(where: str, name: str, command: str) -> UserError:
    return UserError(f"{where}: {name} is nothing that {command} can set; leave it out, or train with fit")


def _check_trainer(trainer: Mapping[str, Any], where: str, command: str) -> None:
    """Raise UserError for an option of the Trainer that would change a training and that the command cannot set."""
    # The configuration in the folder of a run has all options, most of them with their default.
    defaults = {name: p.default for name, p in inspect.signature(L.Trainer).parameters.items()}
    for name, value in trainer.items():
        if name == "precision" and command == "search":
            continue
        if name in _OF_BENCH:
            if value not in (None, defaults.get(name)):
                instead = f"; its option is {_OF_BENCH[name]}" if _OF_BENCH[name] else ""
                note(f"{where}: trainer.{name} {value} is left out, since {command} decides it{instead}")
        elif name not in _OF_RECIPE and name not in _NO_EFFECT and value not in (None, defaults.get(name)):
            raise _not_set(where, f"trainer.{name}", command)


def check(recipe: Recipe, where: str) -> None:
    """Raise UserError unless a recipe names classes and arguments that exist; nothing of it is built.

    Args:
        recipe: Recipe from a file.
        where: Name of the file, for messages.

    Raises:
        UserError: A class or an argument is unknown, or the class is none that a file may name.
    """
    for key, value in recipe.arguments.items():
        if key in SOURCES:
            _callable(key, value, where)
    if recipe.gradient_clip_val is not None and recipe.arguments.get("steps_per_call") is not None:
        raise UserError(
            f"{where}: trainer.gradient_clip_val {recipe.gradient_clip_val} does not go with model.steps_per_call; "
            "leave out one of them"
        )
    rest = {key: value for key, value in recipe.arguments.items() if key not in SOURCES}
    check_arguments(f"the network in {where}", ImageClassifier, rest)
    if recipe.data is not None:
        get_bench_data(recipe.data).check(recipe.data_options or {}, f"the data in {where}")


def training_options(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of a recipe for the constructor of a network, with functions for its classes."""
    options = dict(recipe.arguments)
    for key in SOURCES:
        if key in options:
            options[key] = _callable(key, options[key], f"recipe '{recipe.name}'")
    return options


def _table(value: Any, where: str) -> dict[str, Any]:
    """Return a table of a file; an empty one if the file leaves it out."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where} is {str(value)[:60]}; it must be a table of `option: value`")
    return value


def _class_and_arguments(value: Any, where: str, required: bool = True) -> tuple[Any, dict[str, Any]]:
    """Return the name of a class and its arguments, from a table with ``class_path`` and ``init_args`` or a name."""
    if isinstance(value, str):
        return value, {}
    table = _table(value, where)
    name = table.get("class_path")
    if name is None and required:
        raise UserError(f"{where}.class_path is missing; name a class, such as LeNet5")
    for key in table:
        if key not in ("class_path", "init_args"):
            raise UserError(f"{where}.{key} is not known; write class_path and init_args")
    return name, dict(_table(table.get("init_args"), f"{where}.init_args"))


def _short(name: Any) -> Any:
    """Return the name of a network or data set, of which the parser of fit writes a path such as cnnbench.LeNet5."""
    return name.rpartition(".")[2] if isinstance(name, str) and name.startswith("cnnbench.") else name


def _data_name(cls: Any, options: dict[str, Any]) -> Any:
    """Return the name of a data set, such as ``folder:PATH``, and take what it says out of the options."""
    for source, (known, argument) in SOURCES_OF_DATA.items():
        if cls == known.__name__ and argument in options:
            return f"{source}:{options.pop(argument)}"
    # A file names a class of the user's by its path, with a dot where a name has a colon.
    return ":".join(cls.rpartition(".")[::2]) if isinstance(cls, str) and "." in cls else cls


def _network(model: str, given: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a network with the arguments of its architecture, and the arguments of its training."""
    for name in LINKED:
        if name in given:
            raise UserError(f"{where}: model.{name} is decided by the data; leave it out")
    own = {name: value for name, value in given.items() if name not in TRAINING_ARGUMENTS}
    of_training = {name: value for name, value in given.items() if name in TRAINING_ARGUMENTS and value is not None}
    if model == External.__name__:
        return str(own.pop("name", "")), of_training
    if model not in all_models():
        raise unknown("model", model, all_models())
    return call_words(model, own), of_training


TRAINING_ARGUMENTS = frozenset(inspect.signature(ImageClassifier).parameters) - set(LINKED)
"""Arguments that every network has, which concern its training."""


def _callable(key: str, value: Any, where: str) -> Callable[..., Any]:
    """Return the function that a table with ``class_path`` and ``init_args`` stands for.

    Only classes of `SOURCES` are looked up, so that a file cannot name any other code.
    """
    name, arguments = _class_and_arguments(value, f"{where}: {key}")
    module, _, plain = str(name).rpartition(".")
    for source in SOURCES[key]:
        cls = getattr(importlib.import_module(source), plain, None)
        if module in ("", source) and inspect.isclass(cls) and issubclass(cls, BASES[key]):
            valid = _arguments_of(cls)
            for argument in arguments:
                if argument not in valid:
                    raise unknown(f"argument of {key} {plain} in {where}:", argument, valid)
            return partial(cls, **arguments)
    raise UserError(f"{where}: {key} '{name}' is no class of {' or '.join(SOURCES[key])}; train with fit instead")


def _arguments_of(cls: type) -> list[str]:
    """Return the names of the arguments of an optimizer or a scheduler, without the first one."""
    names: list[str] = []
    for base in cls.__mro__:
        parameters = list(inspect.signature(base).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        # A class such as Lightning's ReduceLROnPlateau passes further arguments on to the class that it derives from.
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names
