"""Weights & Biases in ``cnnbench fit``: its options, and a logger that cannot stop the training."""

from __future__ import annotations

import contextlib
import json
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
from cnnbench.files import write_bytes
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
POINTS_FILE = "points.jsonl"
"""File in W&B's folder with every point of the run's curves, one on each line."""


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

    A training that goes on from a checkpoint continues the W&B run of the training that wrote it, if that run has
    ended there and is uploaded. Otherwise it has a new run, with all points up to the checkpoint. A test has a run of
    its own, so that it does not change the figures of a training.

    Args:
        connection: How to log; its mode is not ``off``.
        folder: Run folder.
        subcommand: ``fit``, ``validate`` or ``test``.
        checkpoint: Checkpoint that the command starts from, if any.
        steps: Number of optimizer steps before that checkpoint.
    """

    def __init__(
        self, connection: Connection, folder: Path, subcommand: str, checkpoint: str | None, steps: int
    ) -> None:
        before = _folder_of_run(Path(checkpoint)) if checkpoint else None
        state = State(folder)
        self._of_training = ""
        if before is not None:
            earlier = State(before)
            if subcommand != "fit":
                state.words = earlier.words
                self._of_training = earlier.runs[KEY].id if KEY in earlier.runs else ""
            elif KEY in earlier.runs:  # not in the folder of a benchmark
                state = earlier.moved_to(folder)
        self._connection = connection
        self._tracker = Tracker(connection, folder, state)
        self._subcommand, self._steps = subcommand, steps
        self._title = f"{folder.parent.name}-{folder.name}"
        self._points_file = folder / "wandb" / POINTS_FILE
        self._points: list[dict[str, float]] = []
        if subcommand == "fit" and before is not None:
            self._points = [p for p in _points_in(before / "wandb" / POINTS_FILE) if p["step"] < steps]
        self._saved: ModelCheckpoint | None = None
        super().__init__(name=self._title, save_dir=folder, project=connection.target.project)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the run of W&B, which is started by the first call; a run without effect if that fails."""
        if self._experiment is None:
            self._open()
            if self._tracker.run is None:
                self._experiment = wandb_panels.client().init(mode="disabled")
            else:
                self._experiment = self._tracker.run
        return self._experiment

    def _open(self) -> None:
        """Start or continue the run, and complete its curves up to the checkpoint."""
        tracker = self._tracker
        config = {"training_run": self._of_training} if self._of_training else {}
        is_fit = self._subcommand == "fit"
        last = self._steps - 1 if is_fit and self._steps else None
        # An agent of a sweep has chosen the id of the run.
        identity = os.environ.get("WANDB_RUN_ID") if is_fit else None
        tracker.open(KEY, self._title, self._subcommand, config, last, identity)
        if tracker.logged is None:
            return
        page = self._connection.page("runs", tracker.logged.id)
        if page:
            note(f"W&B: {page}")
        tracker.attempt(lambda: write_bytes(self._points_file, b"".join(map(_line, self._points))))
        if tracker.logged.step >= 0:
            note(f"W&B: continuing the run {tracker.logged.name} after step {tracker.logged.step}")
            return
        for point in self._points:
            tracker.point(point)
        if self._points:
            note(f"W&B: a new run, with the curve up to step {self._points[-1]['step']}")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *arguments: Any, **options: Any) -> None:
        _ = self.experiment
        self._tracker.attempt(lambda: super(FitLogger, self).log_hyperparams(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        _ = self.experiment
        # The figures of a test are no curve. Lightning adds the number of the epoch to them.
        figures = {name: value for name, value in metrics.items() if name.startswith("test/")}
        if figures and self._subcommand == "fit":
            self._tracker.add(lambda run: run.summary.update(figures))
        elif self._subcommand != "fit":
            # Lightning has not restored its counters here.
            self._tracker.point({**metrics, "step": max(0, self._steps - 1)})
        elif metrics and step is not None:
            self._log_point({**metrics, "step": step})

    def _log_point(self, point: dict[str, float]) -> None:
        """Log a point, and keep it on disk, since W&B's client loses the last seconds before a kill."""
        self._tracker.point(point)
        with contextlib.suppress(OSError), self._points_file.open("ab") as file:
            file.write(_line(point))

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


def _folder_of_run(checkpoint: Path) -> Path | None:
    """Return the run folder whose training wrote a checkpoint, if that was logged to W&B; otherwise None."""
    # The checkpoint is in a subfolder of its run folder.
    for folder in list(checkpoint.parents)[:3]:
        if (folder / "wandb" / STATE_FILE).is_file():
            return folder
    return None


def _line(point: Mapping[str, float]) -> bytes:
    return (json.dumps({name: float(value) for name, value in point.items()}) + "\n").encode()


def _points_in(path: Path) -> list[dict[str, float]]:
    """Return the points that a file of `FitLogger` has; empty if there is none, or if it cannot be read."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    points = []
    for line in lines:
        # Only the last line can be incomplete.
        with contextlib.suppress(ValueError):
            point = json.loads(line)
            points.append(point | {"step": int(point["step"])})
    return points


def steps_before(stored: Mapping[str, Any]) -> int:
    """Return how many optimizer steps there were before a checkpoint, as they are counted in the learning curve.

    Args:
        stored: Content of the checkpoint.
    """
    loops = stored.get("loops") or {}
    counted = loops.get("fit_loop", {}).get("epoch_loop.state_dict", {}).get("_batches_that_stepped", 0)
    # Lightning's global step counts the steps of each optimizer, unlike the step of a point of the curve. With several
    # steps per call, the other counter is one behind.
    optimizers = len(stored.get("optimizer_states") or ()) or 1
    return max(int(counted), int(stored.get("global_step", 0)) // optimizers)
