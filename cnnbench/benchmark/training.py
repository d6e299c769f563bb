"""A training and its test, and what a record says about them, for `bench` and `fit` alike."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from cnnbench import hardware
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError
from cnnbench.predictions import Examples
from cnnbench.record import environment
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.clock import TrainingClock
from cnnbench.training.curve import Curve

MOST_MISTAKES = 64
"""Largest number of mistaken test images that are shown of a network."""


class TrainingHistory(L.Callback):
    """Callback that keeps what a record says about a training; a checkpoint keeps it for a training that goes on.

    Args:
        clock: Clock of the training, which is a callback of the same Trainer.
        on_point: Function that gets each point of the learning curve as soon as it is known.

    Attributes:
        clock: Clock of the training.
        curve: Learning curve, which is a logger of the same Trainer.
        peak_lr: Largest learning rate of any parameter group in any step so far, of an optimizer of the user's. Its
            groups and its scheduler are not known beforehand, unlike those of a recipe.
        optimizer: Class and arguments of the optimizer in words; empty before the training starts.
    """

    def __init__(self, clock: TrainingClock, on_point: Callable[[Mapping[str, float]], None] = lambda _: None) -> None:
        self.clock = clock
        self.curve = Curve(on_point)
        self.peak_lr = 0.0
        self.optimizer = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.optimizer = ", ".join(optimizer_words(optimizer) for optimizer in trainer.optimizers)
        if isinstance(pl_module, ImageClassifier) and pl_module.has_own_optimizer:
            for optimizer in trainer.optimizers:
                optimizer.register_step_pre_hook(self._read_rates)

    def _read_rates(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            self.peak_lr = max(self.peak_lr, float(group["lr"]))

    def state_dict(self) -> dict[str, Any]:
        return {"curve": self.curve.points, "peak_lr": self.peak_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curve.points = list(state_dict["curve"])
        self.peak_lr = state_dict["peak_lr"]

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
            "recipe": model.training_words + clipping_words(trainer),
            "optimizer": self.optimizer,
            "peak_lr": self.peak_lr if model.has_own_optimizer else model.learning_rate,
            "curve": self.curve.points,
            "steps_per_call": model.steps_per_call,
        }


def examples_of(model: ImageClassifier, data: ImageDataModule) -> Examples:
    """Return pictures of the first mistakes of a network's last test, in one process, and of its first filters.

    Args:
        model: Network after a test.
        data: Data of the test.
    """
    true, predicted = model.test_predictions()
    wrong = np.flatnonzero(true != predicted)[:MOST_MISTAKES]
    images = data.test_dataloader().split.images[torch.from_numpy(wrong)]
    names = data.class_names
    convolution = next((module for module in model.modules() if isinstance(module, torch.nn.Conv2d)), None)
    return Examples(
        images.permute(0, 2, 3, 1).numpy(),
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


def clipping_words(trainer: L.Trainer) -> str:
    """Return how a Trainer clips gradients, to be added to the words of a recipe; empty if it does not clip."""
    if not trainer.gradient_clip_val:
        return ""
    algorithm = "norm"  # Lightning's default, over all parameters together
    if trainer.gradient_clip_algorithm is not None:
        algorithm = trainer.gradient_clip_algorithm.value
    return f", gradients clipped to {algorithm} {float(trainer.gradient_clip_val):g}"


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
