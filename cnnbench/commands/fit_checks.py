"""Checks of a training before its first step: that it sees images which the network takes, and figures which exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError, unknown
from cnnbench.files import reason
from cnnbench.training.classifier import ImageClassifier

TRAINING_FIGURES = ("train/loss", "train/accuracy")
VALIDATION_FIGURES = ("val/loss", "val/accuracy")


def check_sizes(model: L.LightningModule, data: L.LightningDataModule) -> None:
    """Raise UserError unless the network accepts images of every size that the training will use.

    Modules of another kind than those of this package are not checked, since they do not say what they take.
    """
    if not (isinstance(model, ImageClassifier) and isinstance(data, ImageDataModule)):
        return
    training = model.training
    for size in dict.fromkeys(data.sizes):
        images = torch.zeros(1, data.in_channels, size, size)
        try:
            with torch.inference_mode():
                # Evaluation mode changes no running statistics, and batch normalisation takes one value per channel.
                model.eval()(images.contiguous(memory_format=model.memory_format))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"data.sizes {size}: {model.display_name} does not take images of {size}x{size} ({reason(error)}); "
                "leave that size out, or take a network with global pooling"
            ) from error
        finally:
            model.train(training)


def check_monitors(
    callbacks: Sequence[L.Callback], model: L.LightningModule, data: L.LightningDataModule, validates: bool
) -> None:
    """Raise UserError if a callback waits for a figure that the training does not have.

    Args:
        callbacks: Callbacks of the Trainer.
        model: Network.
        data: Data set, with its splits.
        validates: Whether the Trainer validates if there are images for it.

    Raises:
        UserError: A callback monitors an unknown figure, or one of a validation that does not take place.
    """
    # Code of the user's may log figures of its own, which only it knows.
    classes = [type(model), *map(type, callbacks)]
    if not all(cls.__module__.startswith(("cnnbench.", "lightning.")) for cls in classes):
        return
    if not (isinstance(model, ImageClassifier) and isinstance(data, ImageDataModule)):
        return
    validates = validates and len(data.val_dataloader()) > 0
    for callback in callbacks:
        figure = getattr(callback, "monitor", None)
        if not isinstance(figure, str) or figure in TRAINING_FIGURES or figure.startswith("lr-"):
            continue
        if isinstance(callback, ModelCheckpoint) and figure in ("epoch", "step"):
            continue
        name = type(callback).__name__
        if figure not in VALIDATION_FIGURES:
            raise unknown(f"figure that {name} monitors:", figure, [*VALIDATION_FIGURES, *TRAINING_FIGURES])
        # Without validation there is no best checkpoint, and `fit` names the last one.
        if not validates and not isinstance(callback, ModelCheckpoint):
            raise UserError(
                f"{name} monitors {figure}, but nothing is validated; set data.val_fraction and limit_val_batches "
                f"above 0, or monitor {TRAINING_FIGURES[0]}"
            )


def check_tested(config: Any, data: Any) -> None:
    """Raise UserError if `fit` is to test the best weights and will have none.

    Args:
        config: Options of `fit`.
        data: Data of the training.
    """
    if config.test != "best":
        return
    if config.trainer.enable_checkpointing is False or getattr(data, "val_fraction", 1) <= 0:
        raise UserError("--test best needs checkpoints and a validation split; take --test last")
    epochs = config.trainer.max_epochs
    for name, value, is_too_small in (
        ("trainer.limit_val_batches", config.trainer.limit_val_batches, lambda number: number == 0),
        ("checkpoint.save_top_k", config.checkpoint.save_top_k, lambda number: number == 0),
        ("trainer.check_val_every_n_epoch", config.trainer.check_val_every_n_epoch, lambda n: 0 < (epochs or 0) < n),
        ("checkpoint.every_n_epochs", config.checkpoint.every_n_epochs, lambda n: 0 < (epochs or 0) < n),
    ):
        if value is not None and is_too_small(value):
            raise UserError(f"--test best needs a best checkpoint, and with {name} {value} there is none; change that")
