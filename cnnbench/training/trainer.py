"""Lightning's Trainer as every part of the package uses it that trains without the command line of ``fit``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning

from cnnbench.console import note
from cnnbench.hardware import choose_precision

_TIPS = (
    "available: ",  # GPU, TPU
    "Seed set to",
    "LOCAL_RANK",
    "Tip: ",
    "`Trainer.fit` stopped: `max_",
    "`Trainer(",
    "Loading `train_dataloader` to estimate",
    "Restoring states from the checkpoint",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
    "Using default `ModelCheckpoint`",
    "`weights_only` was not set",
    "Using ",  # the precision, which `fit` prints with its reason
    "Initializing distributed",
    "distributed_backend=",
    "The following callbacks returned in",
    "You are using the plain ModelCheckpoint callback",
    "Trainer already configured with",
    "Received SIGTERM: ",  # the command itself says that it stops, and how to go on
    "Bypassing SIGTERM: ",
)
"""Starts of messages of Lightning, or parts of them, that say nothing to act on in a run of this package."""
_NOT_ABOUT_THE_RUN = (
    "does not have many workers",
    "number of training batches",
    "LeafSpec",
    "no logger",
    "Checkpoint directory .* exists and is not empty",
    "callbacks used to create the checkpoint need to be provided",
    "`training_step` returned `None`",
    "your dataloader is not resumable",
    "Total length of `list` across ranks is zero",
    # Without validation there is no best checkpoint, and the last one is named.
    "monitor='val/accuracy'.* could not find the monitored key",
    "Experiment logs directory",
    # Each run has a folder of its own, and `BestCheckpoint` takes its state over all the same.
    "The dirpath has changed",
    "barebones=True. is configured. Logging can impact",
)
"""Regular expressions of warnings of Lightning that this package has taken care of."""


class _Notes(logging.Handler):
    """Handler that prints a message of Lightning on stderr, unless it is one of `_TIPS`."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().strip("\n")
        if record.levelno < logging.ERROR and any(tip in text for tip in _TIPS):
            return
        for line in text.splitlines():
            note(line)


def quiet_lightning() -> None:
    """Keep Lightning's messages about hardware and data loaders out of the display.

    What a profiler, a callback or a tuner says is shown, and so are warnings about the run, and errors.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [_Notes()]
        logger.propagate = False
    # Of two filters that match a warning, the one that was added last counts.
    warnings.filterwarnings("ignore", module=r"lightning\.")
    warnings.filterwarnings("default", category=UserWarning, module=r"lightning\.")
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    for text in _NOT_ABOUT_THE_RUN:
        warnings.filterwarnings("ignore", f"(?s).*{text}")
    warnings.formatwarning = _one_line


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning of Lightning as one line without the place in its code, and any other one with its place."""
    if "lightning" in Path(filename).parts:
        return f"warning: {' '.join(str(message).split())}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def make_trainer(device: torch.device, callbacks: Sequence[L.Callback] = (), **options: Any) -> L.Trainer:
    """Return a Trainer for one device, which logs, saves and shows nothing unless an option says so.

    Args:
        device: Device to train on.
        callbacks: Callbacks of the Trainer.
        options: Further arguments of Lightning's Trainer, which replace the defaults of this function. Without
            ``precision``, the Trainer uses the default number format of the device.
    """
    settings: dict[str, Any] = {
        "precision": choose_precision("auto", device)[0],
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    # A list names one of several GPUs; for every other kind of device Lightning takes their number.
    devices: list[int] | int = 1
    if device.type == "cuda":
        devices = [device.index or 0]
    return L.Trainer(accelerator=device.type, devices=devices, callbacks=list(callbacks), **(settings | options))
