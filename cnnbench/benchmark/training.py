"""A training and its test, and what a record says about them, for `bench` and `fit` alike."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from cnnbench import hardware
from cnnbench.calibration import calibration_error
from cnnbench.data import BenchData
from cnnbench.data.foreign import ForeignData
from cnnbench.errors import UserError
from cnnbench.measures import Taken
from cnnbench.predictions import Examples
from cnnbench.record import environment
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.clock import TrainingClock
from cnnbench.training.curve import Curve
from cnnbench.training.words import trainer_settings, trainer_words

LARGEST_LOSS = 1e15
"""Limit of the loss in a record; that of a network that diverged may be larger."""
MOST_MISTAKES = 64
"""Largest number of mistaken test images that are shown of a network."""


class TrainingHistory(L.Callback):
    """Callback that keeps what a record says about a training; a checkpoint keeps it for a training that goes on.

    Args:
        clock: Clock of the training, which is a callback of the same Trainer.
        on_point: Function that gets each point of the learning curve as soon as it is known.
        before: State of this callback in the checkpoint that the training goes on from; None if it starts anew, or if
            the checkpoint has none.

    Attributes:
        clock: Clock of the training.
        curve: Learning curve, which is a logger of the same Trainer.
        peak_lr: Largest learning rate of any parameter group in any step so far, of an optimizer of the user's. Its
            groups and its scheduler are not known beforehand, unlike those of a recipe.
        optimizer: Class and arguments of the optimizer in words; empty before the training starts.
        settings: Options of the Trainer that decide which images a step sees and how it computes.
        callbacks: Callbacks of the user that may change the training, in words.
        lasting: Those of them without which the training could not go on.
        learning_rate: Peak of the recipe's learning rate as the user set it; None for the recipe's own.
    """

    def __init__(
        self,
        clock: TrainingClock,
        on_point: Callable[[Mapping[str, float]], None] = lambda _: None,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        self.clock = clock
        self.before = before or {}
        self.curve = Curve(on_point)
        self.peak_lr = 0.0
        self.optimizer = ""
        self.settings: dict[str, Any] = {}
        self.callbacks: list[str] = []
        self.lasting: list[str] = []
        self.learning_rate: float | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the options of the Trainer before a training, and compare them with those of the checkpoint.

        Raises:
            UserError: The training of the checkpoint cannot go on with these options or callbacks.
        """
        if stage != "fit":
            return
        self.settings = trainer_settings(trainer)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # a trial run takes some batches alone
        self._check_settings(self.before.get("settings", {}))
        if "lasting" in self.before:
            self._check_callbacks(self.before["lasting"])

    def _check_settings(self, before: Mapping[str, Any]) -> None:
        """Raise UserError if an option of the Trainer is not that of the training so far."""
        for name, now in self.settings.items():
            then = before.get(name, now)
            if now != then:
                raise UserError(
                    f"trainer.{name} is {now}, but the training of the checkpoint has {then} and goes on with it; set "
                    "that, or train from the start without --ckpt_path"
                )

    def _check_callbacks(self, before: Sequence[str]) -> None:
        """Raise UserError if the callbacks that change the training are not those of the training so far."""
        for words in before:
            if words not in self.lasting:
                raise UserError(
                    f"the training of the checkpoint has the callback {words} and goes on with it only; add it with "
                    "--trainer.callbacks, or train from the start without --ckpt_path"
                )
        for words in self.lasting:
            if words not in before:
                raise UserError(
                    f"the training of the checkpoint has no callback {words}; leave it out, or train from the start "
                    "without --ckpt_path"
                )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.optimizer = ", ".join(optimizer_words(optimizer) for optimizer in trainer.optimizers)
        if isinstance(pl_module, ImageClassifier) and pl_module.has_own_optimizer:
            for optimizer in trainer.optimizers:
                optimizer.register_step_pre_hook(self._read_rates)

    def _read_rates(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            self.peak_lr = max(self.peak_lr, float(group["lr"]))

    def state_dict(self) -> dict[str, Any]:
        return {
            "curve": self.curve.points,
            "peak_lr": self.peak_lr,
            "settings": self.settings,
            "callbacks": self.callbacks,
            "lasting": self.lasting,
            "learning_rate": self.learning_rate,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curve.points = list(state_dict["curve"])
        self.peak_lr = state_dict["peak_lr"]
        self.learning_rate = state_dict.get("learning_rate", self.learning_rate)
        # What a search found, or where a training was stopped early, is a part of the training that goes on.
        self.callbacks = list(dict.fromkeys([*state_dict.get("callbacks", ()), *self.callbacks]))

    def recipe(self, model: ImageClassifier) -> str:
        """Return how a network is trained in words, with everything that changes its training."""
        extras = [*trainer_words(self.settings), *(f"with {words}" for words in self.callbacks)]
        # The words of the test stay at the end, where a later test of the weights replaces them.
        training = model.training_words.removesuffix(model.test_words)
        return ", ".join([training, *extras]) + model.test_words

    def facts(self, trainer: L.Trainer, model: ImageClassifier, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a record says about the training so far.

        Args:
            trainer: Trainer that ran the training.
            model: Network that was trained.
            data: Facts about its data, from `ImageDataModule.describe`.

        Raises:
            UserError: The training goes on from a checkpoint that does not say how many images it saw.
        """
        # The weights are checked as well, because the last step may spoil them after the last loss was computed.
        diverged = self.curve.diverged or not all(bool(p.isfinite().all()) for p in model.parameters())
        images = model.trained_images
        if images is None:
            raise UserError(
                "it goes on from a checkpoint of an older version, which does not say how many images it saw"
            )
        # In training an epoch has whole batches only, so its last images may be left out.
        whole_epoch = data["full_train_images"] // data["batch_size"] * data["batch_size"]
        return {
            "seconds": self.clock.used_s,
            "steps": trainer.global_step,
            "images": images,
            "epochs": images / data["train_images"],
            "full_epochs": data["full_epochs"],
            "converged": images >= data["full_epochs"] * whole_epoch and not diverged,
            "diverged": diverged,
            "recipe": self.recipe(model),
            "optimizer": self.optimizer,
            "peak_lr": self.peak_lr if model.has_own_optimizer else model.peak_rate,
            "curve": self.curve.points,
            "steps_per_call": model.steps_per_call,
        }


def calibration_figures(model: ImageClassifier) -> Taken:
    """Return how well the confidences of a network's last test, in one process, agree with its accuracy."""
    found, loss = model.test_predictions(), model.mean_loss("test")
    if found.confidence is None or not loss < LARGEST_LOSS:
        words = "the network's outputs are not finite, or too large"
        return Taken({}, {"ece": words, "nll": words})
    return Taken({"ece": calibration_error(found.confidence, found.right), "nll": loss})


def examples_of(model: ImageClassifier, data: BenchData) -> Examples:
    """Return pictures of the first mistakes of a network's last test, in one process, and of its first filters.

    Args:
        model: Network after a test.
        data: Data of the test.
    """
    true, predicted, *_ = model.test_predictions()
    wrong = np.flatnonzero(true != predicted)[:MOST_MISTAKES]
    if isinstance(data, ForeignData):
        images = data.test_pixels(wrong.tolist())
    else:
        stored = data.stored("test", torch.from_numpy(wrong)).images
        images = stored.permute(0, 2, 3, 1).numpy()
    names = data.class_names
    convolution = next((module for module in model.modules() if isinstance(module, torch.nn.Conv2d)), None)
    return Examples(
        images,
        wrong.tolist(),
        [names[index] for index in true[wrong]],
        [names[index] for index in predicted[wrong]],
        None if convolution is None else convolution.weight.detach().float().cpu().numpy(),
    )


def optimizer_words(optimizer: torch.optim.Optimizer) -> str:
    """Return the class of an optimizer with the arguments that differ from their defaults, such as SGD(lr=0.05)."""
    kind = type(optimizer)
    parameters = inspect.signature(kind).parameters
    arguments = []
    for name, value in optimizer.defaults.items():
        is_plain = isinstance(value, str | int | float | bool | tuple)
        if is_plain and (name not in parameters or parameters[name].default != value):
            arguments.append(f"{name}={value}")
    return f"{kind.__name__}({', '.join(arguments)})"


def weights_facts(path: Path, folder: Path) -> dict[str, str]:
    """Return where a record finds the weights that it describes, and how it recognises them.

    Args:
        path: Checkpoint with the weights.
        folder: Run folder, to which the path in the record is relative.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"weights": Path(os.path.relpath(path, folder)).as_posix(), "weights_sha256": digest}


def run_environment(device: torch.device) -> dict[str, Any]:
    """Return the facts about machine and software for the records of a run on a device."""
    return {
        **environment(hardware.device_name(device), torch.get_num_threads()),
        "accelerator": hardware.accelerator_facts(device),
        "allocator": hardware.keep_freed_memory(),
    }
