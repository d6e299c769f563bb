"""The run of a plan: networks are timed against each other, then trained and tested cell by cell, with one record each.

A run folder holds ``plan.json``, ``speed.json``, ``records/<cell>.json`` and the report. Each file is written
atomically once it is complete. A run may therefore be killed at any time, and a resumed run repeats no finished cell.
A plan with engines has further records of each cell; see `cnnbench.benchmark.engine_rows`.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import lightning as L
import torch
from filelock import FileLock, Timeout

from cnnbench import hardware, interrupts, progress
from cnnbench.benchmark import engine_rows
from cnnbench.benchmark.disputes import keep_disputed
from cnnbench.benchmark.evaluation import logits_of
from cnnbench.benchmark.goal import Goal, check_goal
from cnnbench.benchmark.launchers import Job, Launcher
from cnnbench.benchmark.opened import Opened, first_images
from cnnbench.benchmark.plan import PLAN_FILE, Cell, EngineRow, Plan, load_plan, save_plan
from cnnbench.benchmark.training import (
    TrainingHistory,
    calibration_figures,
    examples_of,
    run_environment,
    weights_facts,
)
from cnnbench.checkpoints import CheckpointFile
from cnnbench.confusion import accuracy
from cnnbench.counting import CONVENTION
from cnnbench.data import BenchData
from cnnbench.data.foreign import ForeignData
from cnnbench.engines import TORCH
from cnnbench.engines.export import bytes_of_weights
from cnnbench.errors import DivergedError, Stopped, UserError, first_line
from cnnbench.files import parse_json, read_text, remove_parts, without_checksum, write_checked_json
from cnnbench.measures import DEFAULT_MEASURES, take_all
from cnnbench.measures import Subject as MeasuredNetwork
from cnnbench.predictions import Examples, write_predictions
from cnnbench.record import Record, load_records, located, write_record
from cnnbench.references import percent, reference_of
from cnnbench.report.settings import SETTLING
from cnnbench.report.trained import sha256
from cnnbench.schemas import check_speed
from cnnbench.timing.energy import without_reason
from cnnbench.timing.process_memory import growth_or_reason, resident_growth
from cnnbench.timing.processes import in_process, in_processes, scratch_folder
from cnnbench.timing.speed import SpeedConfig, Subject, measure_speed
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.clock import TimeBudget, TrainingClock
from cnnbench.training.several_steps import own_hooks
from cnnbench.training.trainer import make_trainer, quiet_lightning
from cnnbench.trust import Trust

CURVE_POINTS = 30
"""Approximate number of points of a learning curve."""
SHORT_STEP_MS, STEPS_PER_CALL = 3.0, 25
"""Limit for a short training step, and the number of steps per call of Lightning's loop that a GPU takes below it."""
_DEFAULTS = {field.name: field.default for field in fields(Plan) if field.default is not MISSING}
_DEFAULTS |= dict.fromkeys(SETTLING, 0.0)
"""Default values of the settings of a cell, by name."""
SPEED_FILE = "speed.json"
ENGINE_ROW_S = 5.0
"""Seconds that the test of a network in an engine takes, export included, which is only a guess for the display."""


class Display(Protocol):
    """Interface through which a run shows its progress; see `cnnbench.benchmark.display`."""

    def expect(self, name: str, seconds: float) -> None: ...
    def update(self, name: str, share: float, text: str = "") -> None: ...
    def note(self, text: str) -> None: ...


class Follower(Protocol):
    """Interface of what follows the cells of a run while they are measured; see `cnnbench.report.tracking`."""

    def begin(self, record: Record) -> None: ...
    def point(self, values: Mapping[str, float]) -> None: ...
    def show(self, examples: Examples) -> None: ...
    def end(self, record: Record) -> None: ...


class _Progress(L.Callback):
    """Callback that shows the progress of a cell on the display, at most twice a second.

    Args:
        cell: Cell that is trained and tested.
        plan: Plan of the run.
        display: Display that shows the progress.
        training_part: Expected share of the training in the duration of the cell; the rest is the test.
    """

    def __init__(self, cell: Cell, plan: Plan, display: Display, training_part: float) -> None:
        self._cell, self._plan, self._display, self._part = cell, plan, display, training_part
        self._last = 0.0
        self._start = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.monotonic()

    def _is_due(self) -> bool:
        """Return whether half a second has passed since the last time that the answer was yes."""
        now = time.monotonic()
        if now - self._last < 0.5:
            return False
        self._last = now
        return True

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        # The further arguments are the outputs, the batch and its index.
        done = arguments[2] / trainer.num_test_batches[0]
        if self._is_due():
            self._display.update(self._cell.key, self._part + (1 - self._part) * done, f"test, {done:.0%}")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        interrupts.check()
        if not self._is_due():
            return
        share = training_share(trainer, self._plan)
        if self._plan.budget_s is None and share > 0:
            # Before the training its duration was a guess; now it follows from the time so far.
            self._display.expect(self._cell.key, (time.monotonic() - self._start) / (share * self._part))
        seen = trainer.callback_metrics.get("train/accuracy")
        text = f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}"
        if seen is not None:
            text += f", training accuracy {float(seen):.1%}"
        self._display.update(self._cell.key, self._part * share, text)


def training_share(trainer: L.Trainer, plan: Plan) -> float:
    """Return the share of a cell's training that is done, 0 to 1.

    With a time budget it is the share of the time, otherwise the share of the pixels of all training images. A
    training that a number of steps ends has the share of its steps, if that is larger.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, TimeBudget):
            return min(1.0, callback.progress)
    of_steps = trainer.global_step / plan.max_steps if plan.max_steps else 0.0
    if plan.epochs is None:
        return min(1.0, of_steps)
    together = getattr(trainer.lightning_module, "steps_per_call", None) or 1
    # Lightning counts calls as batches, each of which may take several steps; `global_step` counts the steps.
    epochs_done = trainer.global_step / max(1, trainer.num_training_batches * together)
    epochs = plan.epochs
    # The images may grow from epoch to epoch; the last listed size is used for all further epochs. An epoch counts as
    # many parts of the work as its images have pixels.
    sides = list(getattr(trainer.datamodule, "sizes", ())[:epochs]) or [1]  # type: ignore[attr-defined]
    sides += sides[-1:] * (epochs - len(sides))
    pixels = [side**2 for side in sides]
    whole = min(int(epochs_done), epochs)
    # Whole epochs, plus the finished part of the present one; after the last epoch the second slice is empty.
    done = sum(pixels[:whole]) + (epochs_done - whole) * sum(pixels[whole : whole + 1])
    return min(1.0, max(of_steps, done / sum(pixels)))


def run(
    plan: Plan,
    folder: Path,
    display: Display,
    follower: Follower | None = None,
    launcher: Launcher | None = None,
) -> list[Record]:
    """Run every cell of a plan that has no record yet.

    Args:
        plan: Plan of the run.
        folder: Run folder; finished cells in it are kept and not repeated, and failed cells are tried again.
        display: Display that shows the progress.
        follower: Object that gets each cell when it begins, the points of its learning curve, examples of its
            mistakes, and its record after it has been written to disk. With a launcher it gets nothing.
        launcher: Engine that measures the cells in other processes, after this one has timed the networks; None for
            this process.

    Returns:
        The records of all cells, in the order of the plan; a cell that failed has the status ``error``.

    Raises:
        UserError: The folder holds another run; a finished cell was measured with other data, hardware or settings, so
            that the two cannot be compared; or a network cannot take the images of a data set.
    """
    with _as_planned(plan):
        return _Run(plan, folder, display, follower, launcher).execute()


def measure_cell(plan: Plan, cell: Cell, folder: Path, speed: Mapping[str, Any]) -> Record:
    """Measure one cell in this process, and return its record, which is not written.

    Args:
        plan: Plan of the run.
        cell: Cell of the plan.
        folder: Run folder, into which the predictions of the test and the weights are written.
        speed: Figures of the timing of its network; empty if there are none.
    """
    with _as_planned(plan):
        return _Run(plan.only(cell), folder, _Silent())._run_cell(cell, speed)


@contextlib.contextmanager
def _as_planned(plan: Plan) -> Iterator[None]:
    """Set torch's switches inside the block as a plan wants them."""
    quiet_lightning()
    device = torch.device(plan.device)
    # 32-true is plain float32, but torch computes convolutions on a GPU in TF32 by default.
    numbers = hardware.tf32(device, False) if plan.precision == "32-true" else contextlib.nullcontext()
    with numbers, hardware.cudnn_benchmark(plan.cudnn_benchmark):
        yield


class _Run:
    """Run of a plan: its folder, its display, its opened data sets, and the environment and facts for its records."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        display: Display,
        follower: Follower | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        self.plan = plan
        self.launcher = launcher
        self.folder = folder
        self.display = display
        self.follower = follower or _Nobody()
        self.device = torch.device(plan.device)
        self.environment = run_environment(self.device)
        self.opened = Opened(plan, display.note)
        self.data = self.opened.data
        self.facts = self.opened.facts
        for (name, _), facts in self.facts.items():
            check_goal(plan.until, name, facts)

    def execute(self) -> list[Record]:
        """Measure the cells without a record, and return the records of all cells; see `run`."""
        # Errors are raised here, before the run folder is made. The records are read again under the lock.
        done = self._finished()
        pending = self._pending_cells(done)
        # The seed decides nothing here, so one cell stands for those that differ from it in the seed alone.
        for cell in {(cell.model, cell.data, cell.recipe): cell for cell in pending}.values():
            self._try_to_build(cell)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            # The lock is not waited for, since another process may hold it for hours.
            with FileLock(self.folder / ".lock", timeout=0):
                self._check_folder()
                done = self._finished()
                # No other process writes here while the lock is held, so unfinished files were left by killed ones.
                remove_parts(self.folder)
                remove_parts(self.folder / "records")
                save_plan(self.folder, self.plan)
                self._announce()
                self._take(done)
                keep_disputed(self.folder, list(self.plan.cells()), done, self._data, self.display.note)
        except Timeout:
            raise UserError(
                f"another process is at work in '{self.folder}'; wait for it, or choose another --out"
            ) from None
        return [done[key] for key in self._places()]

    def _places(self) -> dict[str, Cell | EngineRow]:
        """Return all cells and rows of engines by their keys, each cell before its rows."""
        places: dict[str, Cell | EngineRow] = {}
        for cell in self.plan.cells():
            places[cell.key] = cell
            places.update({row.key: row for row in self.plan.engine_rows(cell)})
        return places

    def _pending_cells(self, done: Mapping[str, Record]) -> list[Cell]:
        """Return the cells without a record."""
        return [cell for cell in self.plan.cells() if cell.key not in done]

    def _pending_rows(self, done: Mapping[str, Record]) -> list[EngineRow]:
        """Return the rows of engines without a record."""
        return [row for cell in self.plan.cells() for row in self.plan.engine_rows(cell) if row.key not in done]

    def _announce(self) -> None:
        """Show in a note where the run is stored, on which device it runs, and in which number formats."""
        plan = self.plan
        formats = plan.precision
        if plan.inference_precision not in (None, plan.precision):
            formats += f", inference {plan.inference_precision}"
        self.display.note(f"{self.folder}: {plan.device}, {formats} ({plan.precision_reason})")

    def _try_to_build(self, cell: Cell) -> None:
        """Raise UserError early, before any measurement, if the network of a cell cannot be built or trained.

        All other errors are ignored here; they come again when the cell is measured, and are then part of its record.
        """
        try:
            self._build(cell).make_optimizer()
        except (UserError, Stopped):
            raise
        except BaseException:
            return

    def _check_folder(self) -> None:
        """Raise UserError if another process has started another run in the folder since the command's first check.

        Raises:
            UserError: The folder holds another plan.
        """
        if not (self.folder / PLAN_FILE).exists():
            return
        # If the stored plan is the same, the user has already named its networks. They therefore count as typed.
        if load_plan(self.folder, Trust(typed=frozenset(self.plan.models) | frozenset(self.plan.data))) != self.plan:
            raise UserError(
                f"'{self.folder}' holds another run; add --resume to go on with it, or choose another --out"
            )

    def _take(self, done: dict[str, Record]) -> None:
        """Measure the cells and the rows of engines without a record, and write a record of each.

        Args:
            done: Records by key, to which the new ones are added.
        """
        pending, rows = self._pending_cells(done), self._pending_rows(done)
        # All cells are announced before the timing, so that the time left is that of the whole run.
        for cell in pending:
            self.display.expect(cell.key, sum(self._expected_s(cell, {})))
        for row in rows:
            self.display.expect(row.key, ENGINE_ROW_S)
        names = dict.fromkeys([*map(self._pair, pending), *(self._timed_name(row) for row in rows)])
        speed = self._speed(names) if "speed" in self.plan.measures and names else {}
        # With the times, the durations of the cells are known better.
        for cell in pending:
            self.display.expect(cell.key, sum(self._expected_s(cell, speed.get(self._pair(cell), {}))))
        if self.launcher is not None:
            self._launch(self.launcher, pending, speed, done)
        by_cell: dict[Cell, list[EngineRow]] = {}
        for row in rows:
            by_cell.setdefault(row.cell, []).append(row)
        for cell in self.plan.cells():
            if cell.key not in done:
                interrupts.check()
                record = self._run_cell(cell, speed.get(self._pair(cell), {}))
                done[cell.key] = self._write(record, cell.key)
                self.follower.end(record)
            if cell in by_cell:
                self._run_engines(by_cell[cell], done[cell.key], speed, done)

    def _run_engines(
        self, rows: Sequence[EngineRow], main: Record, speed: Mapping[str, Any], done: dict[str, Record]
    ) -> None:
        """Test the network of a cell in engines, and write a record of each.

        Args:
            rows: Rows of one cell.
            main: Record of the cell.
            speed: Figures of the timing by name.
            done: Records by key, to which the new ones are added.
        """
        interrupts.check()
        self.display.update(rows[0].key, 0.0, "test in engines")
        tested = self._tested_in_engines(rows, main)
        for row in rows:
            content = engine_rows.content_of(row, main, speed.get(self._timed_name(row), {}), tested.get(row.key, {}))
            done[row.key] = self._write(self._make_record(row, **content), row.key)
            self.display.update(row.key, 1.0)
            self.display.note(f"{self._timed_name(row)}{self._seed_words(row.cell)}: {_engine_outcome(done[row.key])}")

    def _tested_in_engines(self, rows: Sequence[EngineRow], main: Record) -> Mapping[str, Mapping[str, Any]]:
        """Return what the tests of the rows of a cell have found, or the reason why there is no test, by key."""
        if main.status == "error":
            return {row.key: {"error": f"the network itself failed: {main.reason}"} for row in rows}
        if "quality" not in self.plan.measures:
            return {}
        try:
            weights = self._weights_of(main)
            # The process may have another working folder.
            with scratch_folder():
                return in_process(engine_rows.test_rows, self.plan, rows, weights.resolve(), self.folder.resolve())
        except UserError as error:
            return {row.key: {"error": str(error)} for row in rows}

    def _weights_of(self, main: Record) -> Path:
        """Return the checkpoint with the trained weights of a cell.

        Raises:
            UserError: It is gone, or is no longer the one that the record describes.
        """
        path = self.folder / main.training["weights"]
        if not path.is_file() or sha256(path) != main.training["weights_sha256"]:
            raise UserError(
                f"the weights in '{path}' are gone or have changed; delete the record of {main.key}, and resume the "
                "run, so that it is trained again"
            )
        return path

    def _launch(
        self, launcher: Launcher, pending: Sequence[Cell], speed: Mapping[str, Any], done: dict[str, Record]
    ) -> None:
        """Let a scheduler measure cells, and write the record of each as soon as it is there."""
        cells = {cell.key: cell for cell in pending}
        # A scheduler's processes may have another working folder.
        folder = self.folder.resolve()
        jobs = []
        for cell in pending:
            measure = partial(measure_cell, self.plan, cell, folder, speed.get(self._pair(cell), {}))
            jobs.append(Job(cell.key, measure))
        with progress.doing("waiting for cells", len(jobs)) as step:
            for key, result in launcher.run(jobs, folder):
                cell = cells[key]
                record = self._make_record(cell, status="error", reason=result) if isinstance(result, str) else result
                # The process of a scheduler has a machine of its own, and not the command that the user typed.
                command = {"command_line": self.environment["command_line"]}
                record = replace(record, environment={**record.environment, **command})
                done[key] = self._write(record, key)
                step.advance()
                self.display.update(key, 1.0)
                self.display.note(f"{self._pair(cell)}, seed {cell.seed}: {_outcome(record)}")

    def _write(self, record: Record, key: str) -> Record:
        """Write the record of a cell into the run folder, and return it with its place."""
        path = self.folder / "records" / f"{key}.json"
        write_record(path, record)
        return located(record, path)

    def _make_record(self, place: Cell | EngineRow, **content: Any) -> Record:
        """Return a record of a cell or row, with the facts that are known before it is measured."""
        cell = _cell_of(place)
        return Record(
            model=place.model,
            data=self._facts(cell),
            seed=cell.seed,
            config=self._config(place),
            environment=self._environment(place),
            **content,
        )

    def _environment(self, place: Cell | EngineRow) -> dict[str, Any]:
        """Return the facts about machine and software of a cell or row."""
        engines = [place.engine] if isinstance(place, EngineRow) else []
        return engine_rows.with_engine(self.environment, *engines)

    def _finished(self) -> dict[str, Record]:
        """Return the records of finished cells.

        Raises:
            UserError: A record is damaged, does not belong to this plan, or was measured with other data, settings or
                hardware than the present ones.
        """
        places = self._places()
        done = {}
        for file in sorted((self.folder / "records").glob("*.json")):
            # Hidden files, such as those of a file manager, are no records.
            if file.name.startswith("."):
                continue
            if file.is_dir():
                raise UserError(f"'{file}' is a folder in the place of a record; take it away")
            (record,) = load_records([file])
            if record.key in places and file.stem != record.key:
                raise UserError(f"'{file}' is a second record of {record.key}; take it away")
            if record.key not in places:
                raise UserError(f"'{file}' is the record of {record.key}, which is not of this run; take it away")
            if record.status == "ok":
                self._check_same(record, places[record.key])
                done[record.key] = record
        return self._with_their_cells(done)

    def _with_their_cells(self, done: Mapping[str, Record]) -> dict[str, Record]:
        """Return the records without those of engines that ran other weights than those of their cell now."""
        kept = {}
        for key, place in self._places().items():
            main = done.get(_cell_of(place).key)
            hashes = [record.training.get("weights_sha256") for record in (main, done.get(key)) if record is not None]
            if len(hashes) == 2 and hashes[0] == hashes[1]:
                kept[key] = done[key]
        return kept

    def _check_same(self, record: Record, place: Cell | EngineRow) -> None:
        """Raise UserError if a record was measured with other data, settings or hardware than the present ones."""
        facts, environment = self._facts(_cell_of(place)), self._environment(place)
        label = facts["label"]
        if record.data["label"] != label:
            raise UserError(
                f"{record.key} was measured on {record.data['label']}, but the data is now {label}; start a new run"
            )
        what = _differs(record.environment, environment)
        if what:
            raise UserError(
                f"{record.key} was measured with {what} {record.environment[what]}, not {environment[what]}; "
                "start a new run"
            )
        here = {"config": self._config(place), "data": _plain(facts)}
        for part, now in here.items():
            before = getattr(record, part)
            for key in dict.fromkeys([*now, *before]):
                # A record that is older than a setting was measured with the default of that setting.
                default = _DEFAULTS.get(key, "not said")
                then, is_now = before.get(key, default), now.get(key, default)
                if then != is_now:
                    raise UserError(
                        f"{record.key} was measured with {part}.{key} {then}, but now it is {is_now}; start a new run"
                    )

    def _config(self, place: Cell | EngineRow) -> dict[str, Any]:
        """Return the settings with which a cell or row is measured, for its record."""
        if isinstance(place, EngineRow):
            return _plain(engine_rows.settings_of(place, self._config(place.cell)))
        cell = place
        plan = self.plan.of_cell(cell)
        # The grid itself is no setting of a cell, and copying it for each cell would take long where it is large.
        grid = ("models", "data", "seeds", "configs", "engines", "engine_precisions")
        left_out = (*grid, "data_dir", "keep_weights")
        settings = {field.name: getattr(plan, field.name) for field in fields(Plan) if field.name not in left_out}
        recipe = self.plan.recipe_of(cell)
        if recipe is not None:
            settings |= {"recipe": recipe.name, "recipe_settings": recipe.settings()}
        data = self._data(cell)
        if isinstance(data, ForeignData):
            settings["eval_batch_size"] = data.eval_batch_size
        if recipe is not None or isinstance(data, ForeignData):
            settings["images_per_step"] = self._facts(cell)["batch_size"]
        # If the test set is smaller than a batch, all of its images are one batch.
        settings["eval_batch_size"] = min(settings["eval_batch_size"], self._facts(cell)["test_images"])
        fixed = {"memory_format": "channels_last", "mode": "eager", "macs_convention": CONVENTION}
        # An accuracy does not depend on how times are taken.
        timed = self._timing().settling() if "speed" in self.plan.measures else {}
        return _plain(settings | fixed | timed)

    def _timing(self) -> SpeedConfig:
        """Return the settings with which the networks are timed."""
        config = SpeedConfig(
            self.device,
            self.plan.precision,
            self.plan.speed_batch_size,
            self.plan.batch_size,
            cudnn_benchmark=self.plan.cudnn_benchmark,
            inference_precision=self.plan.inference_precision,
            energy="energy" in self.plan.measures,
        )
        return config.beside_engines() if any(engine != TORCH for engine, _ in self.plan.engine_ways()) else config

    def _pair(self, cell: Cell) -> str:
        """Return the name of a network with the images that it really sees, which may be synthetic ones."""
        return self.opened.pair(cell)

    def _timed_name(self, row: EngineRow) -> str:
        """Return the name of a row in the file of times."""
        return engine_rows.timed_name(self.opened, row)

    def _seed_words(self, cell: Cell) -> str:
        """Return the seed of a cell for a note on the display; empty in a run with one seed."""
        return f", seed {cell.seed}" if len(self.plan.seeds) > 1 else ""

    def _data(self, cell: Cell) -> BenchData:
        """Return the opened data set of a cell."""
        return self.data[cell.data, cell.recipe]

    def _facts(self, cell: Cell) -> dict[str, Any]:
        """Return the facts about the data of a cell."""
        return self.facts[cell.data, cell.recipe]

    def _build(self, cell: Cell) -> ImageClassifier:
        """Return the untrained network of a cell."""
        return self.opened.build(cell)

    def _speed(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Time all networks of the grid against each other, or read the times of an interrupted run.

        Args:
            names: Names of the networks whose times are needed.

        Returns:
            The figures of each network on each data set, by `_pair`, and of each row of an engine, by `_timed_name`.
        """
        stored = self._stored_speed(names)
        if stored is not None:
            return stored
        config = self._timing()
        subjects = self.subjects()
        # About 6 seconds per network, which is only a guess.
        self.display.expect("speed", 6.0 * len(subjects))
        if self.plan.engine_ways():
            figures = engine_rows.time_engine_rows(self.plan, config, _figures_of, self._say_engine)
        elif self.plan.processes > 1:
            figures = in_processes(self.plan.processes, config, _figures_of, self.plan, on_start=self._say_process)
        else:
            figures = measure_speed(subjects, config, partial(self.display.update, "speed"))
        if "memory" in self.plan.measures:
            # Memory that one network has freed would be used again by the next, so each gets a fresh process.
            for pair in subjects:
                if "error" not in figures[pair]:
                    self.display.update("speed", 1.0, f"memory of {pair}")
                    figures[pair].update(growth_or_reason(_growth_of, config, self.plan, pair))
        self.display.update("speed", 1.0)
        content: dict[str, Any] = {"figures": figures, "environment": self._timing_environment()}
        write_checked_json(self.folder / SPEED_FILE, content | config.settling())
        return figures

    def _timing_environment(self) -> dict[str, Any]:
        """Return the facts about machine and software for the file of times, with the versions of all engines."""
        return engine_rows.with_engine(self.environment, *self.plan.engines)

    def _stored_speed(self, names: Iterable[str]) -> dict[str, dict[str, Any]] | None:
        """Return the times of an interrupted run, or None if there are none that can be used.

        If there are times that cannot be used, a note says why.
        """
        path = self.folder / SPEED_FILE
        # A link that points nowhere counts as a file of times that cannot be read.
        if not path.exists() and not path.is_symlink():
            return None
        try:
            stored = _read_speed(path)
        except UserError as error:
            self.display.note(f"timing all networks again, since their times cannot be used: {error}")
            return None
        reason = self._gap(stored, names)
        if reason:
            self.display.note(f"timing all networks again, since {reason}")
            return None
        return stored["figures"]

    def _gap(self, stored: Mapping[str, Any], names: Iterable[str]) -> str:
        """Return why the times of an interrupted run do not serve the networks of these names; empty if they do."""
        figures = stored["figures"]
        changed = _differs(stored["environment"], self._timing_environment())
        # Files from before 2026-11-30 do not have these: in their turns all calls counted.
        if any(stored.get(name, 0.0) != seconds for name, seconds in self._timing().settling().items()):
            changed = "the time before each turn in which calls do not count"
        if changed:
            return f"{changed} has changed"
        missing = [name for name in names if name not in figures]
        if missing:
            return f"there are none of {', '.join(missing)}"
        failed = [name for name in names if "error" in figures[name]]
        if failed:
            return f"it failed for {', '.join(failed)}"
        return ""

    def _say_process(self, index: int) -> None:
        """Show which of the processes is timing."""
        count = self.plan.processes
        self.display.update("speed", index / count, f"process {index + 1} of {count}")

    def _say_engine(self, index: int, engine: str) -> None:
        """Show which of the processes is timing, and which engine."""
        count = self.plan.processes * len({TORCH, *self.plan.engines})
        self.display.update("speed", index / self.plan.processes, f"process {index + 1} of {count}: {engine}")

    def subjects(self) -> dict[str, Subject]:
        """Return the networks to time, each with the images of each data set, by `_pair`."""
        subjects = {}
        for cell in self.plan.cells():
            data = self._data(cell)
            # The network is built, and its images are made, only at its turn.
            subjects[self._pair(cell)] = Subject(
                partial(self._build, cell),
                self.opened.image_shape(cell),
                data.num_classes,
                ImageClassifier.make_optimizer,
                images=partial(first_images, data),
            )
        return subjects

    def _expected_s(self, cell: Cell, speed: Mapping[str, Any]) -> tuple[float, float]:
        """Return the approximate seconds of the training and of the test of a cell, for the display."""
        facts = self._facts(cell)
        # Before the timing, 1,000 images per second are a guess.
        plan = self.plan.of_cell(cell)
        training = plan.budget_s
        if training is None:
            training = _images_to_see(plan, facts) / speed.get("train_images_per_s", 1000.0)
        return training + 0.5, facts["test_images"] / speed.get("images_per_s", 1000.0) + 0.1

    def _run_cell(self, cell: Cell, speed: Mapping[str, Any]) -> Record:
        """Measure a cell and return its record; an error becomes part of the record, with the measures before it."""
        content: dict[str, Any] = {"measures": {}, "skipped": {}}
        status, reason = "ok", ""
        make_record = partial(self._make_record, cell)
        self.follower.begin(make_record(status=status))
        try:
            self._measure(cell, speed, content)
        except Stopped:
            raise
        except BaseException as error:  # whatever a network raises becomes part of its record; the other cells go on
            status, reason = "error", first_line(error)
        record = make_record(status=status, reason=reason, **content)
        self.display.update(cell.key, 1.0)
        self.display.note(f"{self._pair(cell)}{self._seed_words(cell)}: {_outcome(record)}")
        return record

    def _measure(self, cell: Cell, speed: Mapping[str, Any], content: dict[str, Any]) -> None:
        """Take the measures of a cell, and store each immediately, so that a later error does not lose it.

        Args:
            cell: Cell to measure.
            speed: Figures of the timing; empty if the plan has none.
            content: Fields of the record, which are filled here.
        """
        # The network is built after this, so its initial weights depend on the seed of the cell alone.
        L.seed_everything(cell.seed, workers=True, verbose=False)
        model = self._build(cell)
        measures = content["measures"]
        self._take_measures(cell, model, content, trained=False)
        known, reason = without_reason(speed)
        measures |= {key: value for key, value in known.items() if value is not None and key != "error"}
        content["skipped"] |= reason
        content["skipped"] |= {name: "not asked for" for name in DEFAULT_MEASURES if name not in self.plan.measures}
        if speed and "peak_memory_bytes" not in measures:
            content["skipped"]["peak_memory_bytes"] = f"not measured on {self.device.type}"
        if "quality" in self.plan.measures:
            self._measure_quality(cell, model, content)
        # A network whose timing failed can be trained nevertheless, so this error comes last.
        if "error" in speed:
            raise RuntimeError(f"timing failed: {speed['error']}")

    def _measure_quality(self, cell: Cell, model: ImageClassifier, content: dict[str, Any]) -> None:
        """Train and test the network of a cell, and take the measures of the trained network.

        Args:
            cell: Cell to measure.
            model: Network of the cell, which is trained here.
            content: Fields of the record, which are filled here.
        """
        measures = content["measures"]
        content["training"] = self._train(cell, model, content)
        matrix = model.confusion_counts("test")
        # An accuracy over a part of the test set would not compare with other accuracies.
        seen, images = sum(map(sum, matrix)), self._facts(cell)["test_images"]
        if seen != images:
            raise RuntimeError(f"the test counted {seen} of {images} images")
        content["confusion_matrix"] = matrix
        calibrated = calibration_figures(model)
        measures |= {**accuracy(matrix), **calibrated.figures}
        content["skipped"] |= calibrated.skipped
        if TORCH in self.plan.engines:
            measures["file_bytes"] = bytes_of_weights(model)
        self._take_measures(cell, model, content, trained=True)
        if "validation" in self.plan.measures:
            measures |= accuracy(model.confusion_counts("val"), "val")
        if "train_quality" in self.plan.measures:
            learnt = self._confusion_in_training_images(cell, model)
            measures |= {**accuracy(learnt, "train"), "train_accuracy_images": sum(map(sum, learnt))}

    def _take_measures(self, cell: Cell, model: ImageClassifier, content: dict[str, Any], trained: bool) -> None:
        """Take the measures that are functions of one network, either before its training or after it.

        Args:
            cell: Cell to measure.
            model: Network of the cell.
            content: Fields of the record, to which the figures are added.
            trained: Whether to take the measures of the trained network or those that need no training.
        """
        subject = MeasuredNetwork(
            cell.model,
            model,
            self.opened.image_shape(cell),
            self._data(cell),
            self.plan.device,
            self.plan.precision,
        )
        taken = take_all(self.plan.measures, subject, trained)
        content["measures"] |= taken.figures
        content["skipped"] |= taken.skipped

    def _train(self, cell: Cell, model: ImageClassifier, content: dict[str, Any]) -> dict[str, Any]:
        """Train a network within the budget, test it, and return the facts about the training for the record.

        Args:
            cell: Cell to measure.
            model: Network of the cell, which is trained here.
            content: Fields of the record, to which the figures of a goal are added.
        """
        measures = content["measures"]
        recipe = self.plan.recipe_of(cell)
        options = {} if recipe is None else recipe.trainer_options()
        model.take_steps_together(self._steps_together(cell, model, options, measures))
        model.training_seed = cell.seed
        plan, facts, data = self.plan.of_cell(cell), self._facts(cell), self._data(cell)
        train_s, test_s = self._expected_s(cell, measures)
        clock = TrainingClock() if plan.budget_s is None else TimeBudget(plan.budget_s)
        history = TrainingHistory(clock, self.follower.point)
        progress = _Progress(cell, plan, self.display, train_s / (train_s + test_s))
        callbacks: list[L.Callback] = [clock, history, progress]
        goal = None
        if plan.until is not None:
            goal = Goal(plan.until, clock, history.curve, facts["train_images"] // facts["batch_size"])
            callbacks.append(goal)
        # -1 sets no limit: `TimeBudget` or the other limit ends the training.
        trainer = make_trainer(
            self.device,
            callbacks,
            precision=plan.precision,
            max_epochs=plan.epochs or -1,
            max_steps=plan.max_steps or -1,
            logger=history.curve,
            log_every_n_steps=_log_interval(plan, facts, measures),
            plugins=[CheckpointFile()],
            **options,
        )
        try:
            trainer.fit(model, datamodule=data)
        except DivergedError:
            # A training that diverged is a result too: its network is tested, and the record says what happened.
            history.curve.diverged = True
        # The facts are taken before the test, whose steps are no steps of the training.
        found = history.facts(trainer, model, facts)
        if goal is not None:
            # Images that grow from epoch to epoch do not all take the multiply-adds of the largest ones.
            macs = None if getattr(data, "sizes", ()) else measures.get("train_macs")
            found |= _add_goal(goal, macs, found["epochs"], content)
        if "validation" in plan.measures:
            trainer.validate(model, datamodule=data, verbose=False)
        trainer.test(model, datamodule=data, verbose=False)
        path = self.folder / "predictions" / f"{cell.key}.npz"
        write_predictions(path, model.test_predictions(), data.num_classes)
        if not isinstance(self.follower, _Nobody):  # a loader of the user's reads its images again for the pictures
            self.follower.show(examples_of(model, data))
        if plan.keeps_weights:
            found |= self._keep_weights(cell, model, trainer)
        return found

    def _steps_together(
        self, cell: Cell, model: ImageClassifier, options: Mapping[str, Any], measures: Mapping[str, Any]
    ) -> int | None:
        """Return the number of training steps per call of Lightning's loop; None for the usual single step.

        Args:
            cell: Cell to measure.
            model: Network of the cell; if it names a number itself, that counts.
            options: Options of the Trainer that the recipe sets.
            measures: Figures of the network, with the time of a training step.
        """
        # A network that changes a step by methods of its own is trained in single steps unless it asks for several.
        # Lightning clips gradients in its loop, and with several steps per call these are taken outside of it.
        single = bool(options) or bool(own_hooks(model, ImageClassifier))
        if model.steps_per_call is None and not single and self._data(cell).gives_several_batches:
            return self._steps_per_call(measures)
        return model.steps_per_call

    def _keep_weights(self, cell: Cell, model: ImageClassifier, trainer: L.Trainer) -> dict[str, Any]:
        """Write the trained weights of a cell into the run folder, and return their path and hash for the record."""
        cls = type(model)
        # The class is stored as in a checkpoint of `fit`, so that every command that reads a checkpoint knows which
        # network it holds.
        model.hparams["_class_path"] = f"{cls.__module__}.{cls.__qualname__}"
        path = self.folder / "weights" / f"{cell.key}.ckpt"
        trainer.save_checkpoint(path, weights_only=True)
        return weights_facts(path, self.folder)

    def _steps_per_call(self, measures: Mapping[str, Any]) -> int | None:
        """Return the number of training steps per call of Lightning's loop; None for the usual single step.

        For each call, the loop needs 0.5 to 0.8 ms of the host in addition to the launches. Several short steps of a
        GPU therefore share a call. A step in 16-mixed is excluded, because it waits for its loss scale.
        """
        step_ms = measures.get("train_step_ms_median", math.inf)
        short = self.device.type == "cuda" and self.plan.precision != "16-mixed" and step_ms < SHORT_STEP_MS
        return STEPS_PER_CALL if short else None

    def _confusion_in_training_images(self, cell: Cell, model: ImageClassifier) -> list[list[int]]:
        """Return the confusion matrix on the first training images, without augmentation, as integer counts.

        There are at most as many images as in the test set. Rows of the matrix are true classes.
        """
        data = self._data(cell)
        matrix = torch.zeros(data.num_classes, data.num_classes, dtype=torch.long)
        batches = data.first_training_batches(limit=self._facts(cell)["test_images"])
        for logits, labels in logits_of(model, batches, str(self.device), self.plan.precision, views=False):
            # Each pair of a true and a predicted class has one index into the flattened matrix.
            cells = labels * data.num_classes + logits.argmax(1)
            matrix += torch.bincount(cells, minlength=matrix.numel()).view_as(matrix)
        return matrix.tolist()


class _Nobody:
    """Follower that follows nothing."""

    def begin(self, record: Record) -> None: ...
    def point(self, values: Mapping[str, float]) -> None: ...
    def show(self, examples: Examples) -> None: ...
    def end(self, record: Record) -> None: ...


class _Silent:
    """Display that shows nothing, for a process that only times or measures memory."""

    def expect(self, name: str, seconds: float) -> None: ...
    def update(self, name: str, share: float, text: str = "") -> None: ...
    def note(self, text: str) -> None: ...


def _figures_of(
    config: SpeedConfig, plan: Plan, engine: str = TORCH, files: Mapping[str, Path] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """Return the times of the networks of a plan; this runs in a process of its own.

    Args:
        config: Settings of the timing.
        plan: Plan, from which the process opens the data sets and builds the networks itself.
        engine: Engine whose networks are timed. With torch, these are also the networks as they are trained.
        files: Files of the networks for the engine, by name.
    """
    quiet_lightning()
    own = _Run(plan, Path(), _Silent())
    subjects = engine_rows.subjects_of(plan, own.opened, engine, files)
    if engine == TORCH:
        subjects = own.subjects() | subjects
    return measure_speed(subjects, config, progress.now)


def _growth_of(config: SpeedConfig, plan: Plan, pair: str) -> dict[str, int]:
    """Return the growth of resident memory by training a network, in bytes; this runs in a process of its own."""
    quiet_lightning()
    subject = _Run(plan, Path(), _Silent()).subjects()[pair]
    return {"resident_bytes": resident_growth(subject, replace(config, warmup_s=0.0))}


def _read_speed(path: Path) -> dict[str, Any]:
    """Return the content of a file of times.

    Raises:
        UserError: The file cannot be read, or its content is damaged.
    """
    where = f"'{path}'"
    value = parse_json(read_text(path, "file of times"), where)
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a table of figures")
    # The checksum is verified last, because an error of a single value says more than a wrong checksum.
    stored = without_checksum(value, where, check=False)
    check_speed(stored, where)
    without_checksum(value, where)
    return stored


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Return values as they are after reading a record again, with lists in place of tuples."""
    return json.loads(json.dumps(value))


def _differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first property that makes the figures of two environments incomparable, or None if there is none."""
    return next((what for what in ("device", "threads", "packages") if before[what] != now[what]), None)


def _cell_of(place: Cell | EngineRow) -> Cell:
    """Return the cell that a row of an engine belongs to, or the cell itself."""
    return place.cell if isinstance(place, EngineRow) else place


def _engine_outcome(record: Record) -> str:
    """Return the result of a row of an engine in words, for a note on the display."""
    if record.status == "error":
        return f"failed: {record.reason}"
    found = record.measures.get("test_accuracy")
    return "measured" if found is None else f"test accuracy {found:.1%}"


def _outcome(record: Record) -> str:
    """Return the result of a cell in words, for a note on the display."""
    if record.status == "error":
        return f"failed: {record.reason}"
    if not record.training:
        return "measured"
    training = record.training
    if training["diverged"]:
        return "training diverged"
    text = f"test accuracy {record.measures['test_accuracy']:.1%} after {training['epochs']:.2g} epochs"
    if training["converged"]:
        return text + _goal_words(record)
    text += f" in {training['seconds']:.0f} s, not converged"
    known = reference_of(record)
    if known is not None:
        text += f"; after the reference training {percent(known.accuracy)}"
    return text + _goal_words(record)


def _add_goal(goal: Goal, train_macs: int | None, epochs: float, content: Mapping[str, Any]) -> dict[str, Any]:
    """Add the figures of a goal to the fields of a record; return what its facts about the training say of it."""
    taken = goal.taken(train_macs, epochs)
    content["measures"].update(taken.figures)
    content["skipped"].update(taken.skipped)
    return {"evaluations": goal.evaluations}


def _goal_words(record: Record) -> str:
    """Return whether the goal of a training was reached, in words; empty without a goal."""
    if record.config.get("until") is None:
        return ""
    if "time_to_accuracy" in record.skipped:
        return f"; {record.skipped['time_to_accuracy']}"
    goal, seconds = 100 * record.config["until"], record.measures["seconds_to_accuracy"]
    return f"; {goal:g} % of the validation split after {seconds:.3g} s"


def _log_interval(plan: Plan, facts: Mapping[str, Any], measures: Mapping[str, Any]) -> int:
    """Return the number of optimizer steps between points of the learning curve, for about `CURVE_POINTS` points."""
    if plan.budget_s is not None:
        images = plan.budget_s * measures.get("train_images_per_s", 1000.0)
    else:
        images = _images_to_see(plan, facts)
    steps = images / facts["batch_size"]
    return max(1, round(steps / CURVE_POINTS))


def _images_to_see(plan: Plan, facts: Mapping[str, Any]) -> float:
    """Return the number of images of a training that ends after a number of epochs or steps."""
    of_epochs = math.inf if plan.epochs is None else float(facts["train_images"] * plan.epochs)
    of_steps = math.inf if plan.max_steps is None else float(facts["batch_size"] * plan.max_steps)
    return min(of_epochs, of_steps)
