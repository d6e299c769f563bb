"""What changes a training beside the recipe of its network, in words: callbacks, options of the Trainer, schedulers.

Records have these words, so that a report does not take different trainings for repeats of one. A checkpoint has the
options of the Trainer too, so that a training does not go on with other ones.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
    BasePredictionWriter,
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateFinder,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
)

_WATCHING = (
    BasePredictionWriter,
    Checkpoint,
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    ThroughputMonitor,
    Timer,
)
"""Callbacks that leave the training as it is. A time limit is a setting of the record."""
_ONCE = (BatchSizeFinder, LearningRateFinder, EarlyStopping)
"""Callbacks that a training may have lost when it goes on: what they did before it is kept, or they only end it."""


def class_words(cls: type, arguments: Mapping[str, Any]) -> str:
    """Return a class with the arguments that differ from their defaults, such as ``MultiStepLR(milestones=[1, 2])``."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    words = []
    for name, value in arguments.items():
        # What is passed on to a base class has no default here, and None sets nothing.
        if str(defaults.get(name)) != str(value):
            words.append(f"{name}={value}")
    return f"{cls.__name__}({', '.join(words)})"


def scheduler_words(factory: Callable[..., Any], scheduler: Any) -> str:
    """Return the class of a scheduler with the arguments that differ from their defaults.

    Args:
        factory: Function that built the scheduler.
        scheduler: Scheduler. Its arguments are read from it if the function is not a `functools.partial`.
    """
    cls = type(scheduler)
    if isinstance(factory, functools.partial):
        return class_words(cls, factory.keywords)
    arguments = {}
    for name in inspect.signature(cls).parameters:
        value = getattr(scheduler, name, None)
        if isinstance(value, str | int | float | tuple | list):
            arguments[name] = value
    arguments.pop("last_epoch", None)  # it counts the steps
    return class_words(cls, arguments)


def callback_words(callback: L.Callback, arguments: Mapping[str, Any]) -> str | None:
    """Return the class and the arguments of a callback that may change a training; None for one that only watches it.

    Args:
        callback: Callback of the user.
        arguments: Arguments that it was built with.
    """
    if isinstance(callback, _WATCHING):
        return None
    words = class_words(type(callback), arguments)
    if isinstance(callback, StochasticWeightAveraging):
        words += ", which sets the rate from its start on"
    return words


def must_stay(callback: L.Callback) -> bool:
    """Return whether a training can only go on with a callback that changes it, and not without it."""
    return not isinstance(callback, _ONCE)


def trainer_settings(trainer: L.Trainer) -> dict[str, Any]:
    """Return the options of a Trainer that decide which images a step sees and how it computes, by their names."""
    owner: Any = trainer
    clips = owner.gradient_clip_val or None  # 0 clips nothing either
    # Lightning has an enumeration here, and None for its default.
    algorithm = getattr(owner.gradient_clip_algorithm, "value", None) or "norm"
    return {
        "precision": str(owner.precision),
        "devices": owner.world_size,
        "accumulate_grad_batches": owner.accumulate_grad_batches,
        "gradient_clip_val": clips,
        "gradient_clip_algorithm": algorithm if clips else None,
        "limit_train_batches": owner.limit_train_batches,
        "overfit_batches": owner.overfit_batches,
    }


def trainer_words(settings: Mapping[str, Any]) -> list[str]:
    """Return what the options of a Trainer change in a training, in words.

    The precision and the images of a step are settings of a record of their own.

    Args:
        settings: Options from `trainer_settings`.
    """
    words: list[str] = []
    if not settings:  # the training has not begun
        return words
    if settings["gradient_clip_val"]:
        words.append(f"gradients clipped to {settings['gradient_clip_val']:g} ({settings['gradient_clip_algorithm']})")
    if settings["limit_train_batches"] != 1.0:
        words.append(f"limit_train_batches {settings['limit_train_batches']}")
    if settings["overfit_batches"]:
        words.append(f"overfit_batches {settings['overfit_batches']}")
    return words
