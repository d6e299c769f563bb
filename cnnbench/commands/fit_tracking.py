"""Weights & Biases in ``cnnbench fit``: its options, and a logger that cannot stop the training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from cnnbench.commands.wandb_options import WORDS
from cnnbench.console import is_first_process, note
from cnnbench.predictions import Examples
from cnnbench.record import Record
from cnnbench.report import wandb_panels
from cnnbench.report.tracking import (
    STATE_FILE,
    STOPPED_WAIT_S,
    WAIT_S,
    Connection,
    Mode,
    State,
    Target,
    Tracker,
    connect,
)

KEY = "fit"
"""Name of the run among those of its folder."""


def add_options(parser: LightningArgumentParser) -> None:
    """Add the options that say whether and where the command logs to W&B."""
    parser.add_argument(
        "--wandb",
        type=Literal["off", "offline", "online"],
        default="off",
        help="Log to W&B too; without a key or a server it is offline.",
    )
    for name, words in WORDS.items():
        parser.add_argument(f"--wandb_{name}", type=str | None, default=None, help=words)


def connection_of(config: Any) -> Connection:
    """Return how to log, from the options of `add_options`.

    Raises:
        UserError: The package wandb is missing.
    """
    # `--trainer.logger wandb` asks for it as well.
    mode: Mode = "online" if config.wandb == "off" and config.logger == "wandb" else config.wandb
    if mode != "off" and not is_first_process():
        return Connection("offline")  # only the first of several processes logs
    values = {name: config.get(f"wandb_{name}") for name in WORDS}
    values["tags"] = tuple(tag.strip() for tag in (values["tags"] or "").split(",") if tag.strip())
    return connect(mode, Target(**values))


class FitLogger(WandbLogger):
    """Lightning's logger of W&B, whose run is recorded on disk and uploaded by a process beside the training.

    A run that goes on from a checkpoint continues the W&B run of the training that wrote it. Steps that W&B has seen
    before are not logged again.

    Args:
        connection: How to log; its mode is not ``off``.
        folder: Run folder.
        checkpoint: Checkpoint that the command starts from, if any.
    """

    def __init__(self, connection: Connection, folder: Path, checkpoint: str | None) -> None:
        earlier = _state_beside(checkpoint)
        state = State(folder) if earlier is None else earlier.moved_to(folder)
        self._logged = state.start(KEY, f"{folder.parent.name}-{folder.name}")
        if earlier is None:
            # An agent of a sweep has chosen the id of the run.
            self._logged.id = os.environ.get("WANDB_RUN_ID") or self._logged.id
        self._connection = connection
        self._tracker = Tracker(connection, folder, state)
        self._saved: ModelCheckpoint | None = None
        super().__init__(name=self._logged.name, save_dir=folder, id=self._logged.id, project=connection.target.project)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the run of W&B, which is started by the first call; a run without effect if that fails."""
        if self._experiment is None:
            self._tracker.open(self._logged, "fit", {})
            if self._tracker.run is None:
                import wandb

                self._experiment = wandb.init(mode="disabled")
            else:
                self._experiment = self._tracker.run
                self._say_where()
        return self._experiment

    def _say_where(self) -> None:
        page = self._connection.page("runs", self._logged.id)
        if page:
            note(f"W&B: {page}")
        if self._logged.step >= 0:
            note(f"W&B: continuing the run {self._logged.name} after step {self._logged.step}")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *arguments: Any, **options: Any) -> None:
        _ = self.experiment
        self._tracker.attempt(lambda: super(FitLogger, self).log_hyperparams(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        _ = self.experiment
        # The figures of a test are no curve.
        figures = {name: value for name, value in metrics.items() if name.startswith("test/")}
        if figures:
            self._tracker.add(lambda run: run.summary.update(figures))
        values = {name: value for name, value in metrics.items() if name not in figures}
        if values and step is not None:
            self._tracker.point({**values, "step": step})

    @rank_zero_only
    def log_record(self, record: Record) -> None:
        """Log what the test of a training has found; see `wandb_panels.log_record`."""
        _ = self.experiment
        self._tracker.add(lambda run: wandb_panels.log_record(run, record))

    @rank_zero_only
    def log_examples(self, examples: Examples) -> None:
        """Log mistakes and filters of the network; see `wandb_panels.log_examples`."""
        self._tracker.add(lambda run: wandb_panels.log_examples(run, examples))

    @rank_zero_only
    def log_weights(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Log a checkpoint as an artifact, with facts about it."""
        _ = self.experiment
        self._tracker.add(lambda run: wandb_panels.log_weights(run, path, facts))

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        # Of the callbacks that save, only that of the best value monitors one.
        if checkpoint_callback.monitor is not None:
            self._saved = checkpoint_callback

    @rank_zero_only
    def close(self, failed: bool) -> None:
        """End the run, complete its upload, and print how to upload what is left.

        Args:
            failed: Whether the command has failed or was stopped.
        """
        if self._experiment is None:
            return
        saved = self._saved
        if saved is not None and not failed and Path(saved.best_model_path).is_file():
            score = saved.best_model_score
            self.log_weights(Path(saved.best_model_path), {str(saved.monitor): None if score is None else float(score)})
        self._tracker.close(failed, STOPPED_WAIT_S if failed else WAIT_S)


def _state_beside(checkpoint: str | None) -> State | None:
    """Return what is kept of the W&B run of the training that wrote a checkpoint, or None if there is none."""
    if not checkpoint:
        return None
    # The checkpoint is in a subfolder of its run folder.
    for folder in list(Path(checkpoint).parents)[:3]:
        if (folder / "wandb" / STATE_FILE).is_file():
            return State(folder)
    return None
