"""Lightning's Trainer as every part of the package uses it that trains without the command line of ``fit``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch

from cnnbench.hardware import choose_precision


def quiet_lightning() -> None:
    """Keep Lightning's messages about hardware and data loaders out of the display; errors are still shown."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (".*does not have many workers.*", ".*number of training batches.*", ".*LeafSpec.*", ".*no logger.*"):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", module="lightning.*")


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
