"""Loggers of ``cnnbench fit`` by one word, as in ``--trainer.logger tensorboard``."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Literal, get_args

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger

from cnnbench.errors import UserError

LoggerWord = Literal["csv", "tensorboard", "wandb", "mlflow"]
LOGGERS: tuple[str, ...] = get_args(LoggerWord)
"""Loggers that one word names."""
_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow", "mlflow_skinny")}
"""Packages of which a logger needs one."""


def logger_of(word: str, folder: Path) -> list[Logger]:
    """Return the logger that a word names; none for the words ``csv`` and ``wandb``, whose loggers `fit` makes itself.

    Args:
        word: One of `LOGGERS`.
        folder: Run folder ``OUT/<network>-<data>/<time>``.

    TensorBoard writes into the run folder, and MLflow into ``OUT/mlflow.db`` unless ``MLFLOW_TRACKING_URI`` says where.

    Raises:
        UserError: The package of the logger is not installed.
    """
    packages = _PACKAGES.get(word)
    if packages is None:
        return []
    if all(importlib.util.find_spec(package) is None for package in packages):
        raise UserError(f"--trainer.logger {word} needs the package {packages[0]}: pip install {packages[0]}")
    if word == "tensorboard":
        # An empty name and version make that the run folder.
        return [TensorBoardLogger(save_dir=folder, name="", version="")]
    # One database for all runs of a folder, since MLflow compares runs. Its stores of plain files are given up.
    runs = folder.parents[1].resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs / 'mlflow.db'}"
    experiment, artifacts = folder.parent.name, str(runs / "mlruns")
    return [MLFlowLogger(experiment, run_name=folder.name, tracking_uri=uri, artifact_location=artifacts)]
