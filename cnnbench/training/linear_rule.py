"""The linear rule: a learning rate that is meant for one batch size, used with another (Goyal et al. 2017, 1706.02677).

A step of k times as many images moves the weights about as far as k steps if its learning rate is k times as large. So
the rate of a step is the rate for ``lr_batch_size`` images, times the images of a step, divided by ``lr_batch_size``.
The images of a step are those of a batch, of all processes, and of all batches whose gradients are added up.
"""

from __future__ import annotations

from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from cnnbench.errors import UserError

LARGEST = 1_000_000_000
"""Largest value of ``lr_batch_size``; a larger one is treated as a typing error."""


def check_lr_batch_size(value: Any) -> None:
    """Raise UserError unless ``lr_batch_size`` is unset or a number of images.

    Raises:
        UserError: It is no whole number of at least 1.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise UserError(
            f"lr_batch_size {str(value)[:40]} must be a whole number of images of at least 1, such as 256; unset, the "
            "learning rate is used as it is"
        )


def images_per_step(trainer: L.Trainer) -> int:
    """Return the number of images of an optimizer step of a training, in all processes together.

    Args:
        trainer: Trainer of a training that is about to start.

    Raises:
        UserError: The number changes during the training, or the loader does not say it.
    """
    owner = cast(Any, trainer)
    for callback in owner.callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            raise UserError(
                "lr_batch_size does not go with GradientAccumulationScheduler, which changes the number of images of a "
                "step; leave out one of them"
            )
    owner.fit_loop.setup_data()  # Lightning builds the optimizer before the loader
    loader = owner.train_dataloader
    # Batches that a sampler puts together have their size there.
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if not isinstance(size, int):
        raise UserError(
            f"lr_batch_size needs the batch size of the training, which {type(loader).__name__} does not say; leave "
            "lr_batch_size out, and set the learning rate"
        )
    return size * owner.world_size * owner.accumulate_grad_batches


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply the learning rates of all groups of an optimizer, before any scheduler has seen it.

    Args:
        optimizer: Optimizer.
        factor: Number by which its rates are multiplied.

    Raises:
        UserError: A group of the optimizer has no learning rate.
    """
    for group in optimizer.param_groups:
        if group.get("lr") is None:
            raise UserError(
                f"lr_batch_size needs an optimizer with a learning rate, and {type(optimizer).__name__} has none; "
                "leave one of them out"
            )
        group["lr"] = group["lr"] * factor
    # Records name the optimizer by these values.
    if optimizer.defaults.get("lr") is not None:
        optimizer.defaults["lr"] = optimizer.defaults["lr"] * factor


def check_scheduler(scheduler: Any) -> None:
    """Raise UserError for a scheduler that replaces the rates of the optimizer by rates of its own.

    Raises:
        UserError: It is such a scheduler.
    """
    if isinstance(scheduler, OneCycleLR | CyclicLR):
        raise UserError(
            f"lr_batch_size does not go with {type(scheduler).__name__}, which has learning rates of its own; leave "
            "lr_batch_size out, or take another schedule"
        )
