"""Runs a plan: times the networks against each other, then trains and tests cell by cell, a record each.

A run folder holds ``plan.json``, ``speed.json``, ``records/<cell>.json`` and the report. Each file is written
atomically when it is complete, so that a run may be killed at any time and resumed without repeating a finished cell.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.loggers.logger import Logger

from cnnbench import hardware
from cnnbench.bench.plan import Cell, Plan
from cnnbench.classifier import ImageClassifier, TimeBudget
from cnnbench.data import get_data
from cnnbench.data.module import ImageDataModule
from cnnbench.data.sets import Synthetic
from cnnbench.errors import MissingDataError, UserError
from cnnbench.measure.complexity import CONVENTION, complexity
from cnnbench.measure.quality import accuracy
from cnnbench.measure.speed import SpeedConfig, Subject, measure_speed
from cnnbench.models import get_model
from cnnbench.record import Record, environment, load_records, write_json, write_record

CURVE_POINTS = 30
SPEED_FILE = "speed.json"


class Display(Protocol):
    """Who is told how far the run is; see `cnnbench.bench.display`."""

    def expect(self, name: str, seconds: float) -> None: ...
    def update(self, name: str, share: float, text: str = "") -> None: ...
    def note(self, text: str) -> None: ...


class Curve(Logger):
    """A Lightning logger that keeps the learning curve in memory for the record."""

    name = "curve"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.points: list[dict[str, float]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {k: round(float(v), 5) for k, v in metrics.items() if k.startswith(("train/", "val/"))}
        if values:
            self.points.append({"step": step or 0, **values})


class _Report(L.Callback):
    """Tells the display how far a cell is, twice a second.

    Args:
        cell: Which.
        plan: Its settings.
        display: Who is told.
        training_part: Expected share of the training in the duration of the cell; the rest is the test.
    """

    def __init__(self, cell: Cell, plan: Plan, display: Display, training_part: float) -> None:
        self._cell, self._plan, self._display, self._part = cell, plan, display, training_part
        self._last = 0.0

    def _is_due(self) -> bool:
        now = time.monotonic()
        due = now - self._last >= 0.5
        if due:
            self._last = now
        return due

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        done = arguments[2] / trainer.num_test_batches[0]
        if self._is_due():
            self._display.update(self._cell.key, self._part + (1 - self._part) * done, f"test, {done:.0%}")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not self._is_due():
            return
        share = training_share(trainer, self._plan)
        seen = trainer.callback_metrics.get("train/accuracy")
        text = f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}"
        if seen is not None:
            text += f", training accuracy {float(seen):.1%}"
        self._display.update(self._cell.key, self._part * share, text)


def training_share(trainer: L.Trainer, plan: Plan) -> float:
    """Share of a cell's training that is done, 0 to 1."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, TimeBudget):
            return min(1.0, callback.progress)
    return min(1.0, trainer.global_step / max(1, trainer.num_training_batches * (plan.epochs or 1)))


def quiet_lightning() -> None:
    """Keeps Lightning's remarks on hardware and loaders out of the display; errors still come through."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (".*does not have many workers.*", ".*number of training batches.*", ".*LeafSpec.*", ".*no logger.*"):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", module="lightning.*")


def open_data(plan: Plan, say: Callable[[str], None]) -> dict[str, ImageDataModule]:
    """Opens the data sets of a plan; synthetic images stand in for what is missing, and say so.

    Raises:
        UserError: A data set or one of its options is unknown, or a named data folder does not exist.
    """
    opened: dict[str, ImageDataModule] = {}
    options: dict[str, Any] = {
        "batch_size": plan.batch_size,
        "eval_batch_size": plan.eval_batch_size,
        **(plan.data_options or {}),
    }
    for name in plan.data:
        cls = get_data(name)
        try:
            module = cls(data_dir=plan.data_dir, **options)
            module.prepare_data()
        except MissingDataError as error:
            say(f"{name}: {error}. Going on with SYNTHETIC images, whose accuracy says nothing about {name}")
            module = Synthetic(in_channels=cls.in_channels, stands_in_for=name, **options)
        except TypeError as error:
            raise UserError(f"data_options {plan.data_options} do not fit {name}: {error}") from error
        module.setup()
        opened[name] = module
    return opened


def run(
    plan: Plan, folder: Path, display: Display, on_record: Callable[[Record], None] = lambda _: None
) -> list[Record]:
    """Runs every cell of a plan that has no record yet.

    Args:
        plan: What to do.
        folder: Run folder; finished cells in it are kept and not repeated, failed ones are tried again.
        display: Is told how far the run is.
        on_record: Is given each new record, when it is on disk.

    Returns:
        The records of all cells, in the order of the plan; a cell that failed has status ``error``.

    Raises:
        UserError: A finished cell was measured on other data or hardware, so that the two do not compare.
    """
    quiet_lightning()
    device = torch.device(plan.device)
    machine = environment(hardware.device_name(device), torch.get_num_threads())
    done = _finished(folder)
    cells = list(plan.cells())
    models = {name: get_model(name) for name in plan.models}
    data = open_data(plan, display.note)
    facts = {name: module.describe() for name, module in data.items()}
    _check_resumed(done, facts, machine)
    pending = [cell for cell in cells if cell.key not in done]
    for cell in pending:
        _build(cell, models, data)  # refuse before the first minute is spent
    for cell in pending:
        display.expect(cell.key, sum(_expected_s(plan, facts[cell.data], {})))
    speed = _speed(plan, models, data, folder, machine, display) if "speed" in plan.measures and pending else {}
    for cell in pending:
        display.expect(cell.key, sum(_expected_s(plan, facts[cell.data], speed.get(_pair(cell), {}))))
    for cell in pending:
        record = _run_cell(cell, plan, models, data[cell.data], facts[cell.data], speed, machine, display)
        write_record(folder / "records" / f"{cell.key}.json", record)
        done[cell.key] = record
        on_record(record)
    return [done[cell.key] for cell in cells]


def _pair(cell: Cell) -> str:
    return f"{cell.model} on {cell.data}"


def _finished(folder: Path) -> dict[str, Record]:
    files = sorted((folder / "records").glob("*.json"))
    return {record.key: record for record in load_records(files) if record.status == "ok"}


def _check_resumed(
    done: Mapping[str, Record], facts: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any]
) -> None:
    for record in done.values():
        now = facts[record.data_name]["label"]
        if record.data["label"] != now:
            raise UserError(
                f"{record.key} was measured on {record.data['label']}, but the data is now {now}; start a new run"
            )
        what = _differs(record.environment, machine)
        if what:
            raise UserError(
                f"{record.key} was measured with {what} {record.environment[what]}, not {machine[what]}; "
                "start a new run"
            )


def _differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing in which two environments differ so that their figures do not compare."""
    return next((what for what in ("device", "threads", "packages") if before[what] != now[what]), None)


def _build(
    cell: Cell, models: Mapping[str, type[ImageClassifier]], data: Mapping[str, ImageDataModule]
) -> ImageClassifier:
    module = data[cell.data]
    return models[cell.model](
        num_classes=module.num_classes, in_channels=module.in_channels, image_size=module.image_size
    )


def _speed(
    plan: Plan,
    models: Mapping[str, type[ImageClassifier]],
    data: Mapping[str, ImageDataModule],
    folder: Path,
    machine: Mapping[str, Any],
    display: Display,
) -> dict[str, dict[str, Any]]:
    """Times all networks of the grid against each other, or reads what an interrupted run has timed."""
    path = folder / SPEED_FILE
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not _differs(stored["environment"], machine):
            return stored["figures"]
        display.note("the machine or the software has changed since the networks were timed; timing them again")
    subjects: dict[str, Subject] = {}
    for cell in plan.cells():
        module = data[cell.data]
        shape = (module.in_channels, module.image_size, module.image_size)
        subjects.setdefault(
            _pair(cell),
            Subject(lambda cell=cell: _build(cell, models, data), shape, module.num_classes),  # type: ignore[misc]
        )
    config = SpeedConfig(torch.device(plan.device), plan.precision, plan.speed_batch_size, plan.batch_size)
    display.expect("speed", 6.0 * len(subjects))
    figures = measure_speed(subjects, config, lambda share, text: display.update("speed", share, text))
    display.update("speed", 1.0)
    write_json(path, {"figures": figures, "environment": machine})
    return figures


def _expected_s(plan: Plan, facts: Mapping[str, Any], speed: Mapping[str, Any]) -> tuple[float, float]:
    """Rough duration of training and test of a cell in seconds, for the display."""
    training = plan.budget_s
    if training is None:
        images = facts["train_images"] * (plan.epochs or 1)
        training = images / speed.get("train_images_per_s", 1000.0)
    return training + 0.5, facts["test_images"] / speed.get("images_per_s", 1000.0) + 0.1


def _run_cell(
    cell: Cell,
    plan: Plan,
    models: Mapping[str, type[ImageClassifier]],
    module: ImageDataModule,
    facts: dict[str, Any],
    speed: Mapping[str, Mapping[str, Any]],
    machine: dict[str, Any],
    display: Display,
) -> Record:
    common: dict[str, Any] = {
        "model": cell.model,
        "data": facts,
        "seed": cell.seed,
        "environment": machine,
        "config": {
            "budget_s": plan.budget_s,
            "epochs": plan.epochs,
            "device": plan.device,
            "precision": plan.precision,
            "precision_reason": plan.precision_reason,
            "memory_format": "channels_last",
            "batch_size": plan.batch_size,
            "speed_batch_size": plan.speed_batch_size,
            "eval_batch_size": plan.eval_batch_size,
            "macs_convention": CONVENTION,
        },
    }
    measures: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    training: dict[str, Any] = {}
    confusion = None
    try:
        L.seed_everything(cell.seed, workers=True, verbose=False)
        model = _build(cell, models, {cell.data: module})
        if "complexity" in plan.measures:
            measures |= complexity(model, (module.in_channels, module.image_size, module.image_size))
        if "speed" in plan.measures:
            figures = dict(speed[_pair(cell)])
            if "error" in figures:
                raise RuntimeError(f"timing failed: {figures['error']}")
            measures |= figures
        if measures.get("peak_memory_bytes") is None:
            measures.pop("peak_memory_bytes", None)
            skipped["peak_memory_bytes"] = f"not measured on {torch.device(plan.device).type}"
        if "quality" in plan.measures:
            training, confusion = _train_and_test(cell, model, module, plan, measures, display)
            measures |= accuracy(confusion)
    except Exception as error:  # any failure of a cell becomes its record; the other cells go on
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        display.note(f"{_pair(cell)} failed: {reason}")
        return Record(**common, status="error", reason=reason, measures=measures, skipped=skipped)
    text = _outcome(measures, training)
    display.update(cell.key, 1.0)
    display.note(f"{_pair(cell)}{f', seed {cell.seed}' if len(plan.seeds) > 1 else ''}: {text}")
    return Record(
        **common, status="ok", measures=measures, skipped=skipped, training=training, confusion_matrix=confusion
    )


def _outcome(measures: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    if "test_accuracy" not in measures:
        return "measured"
    text = f"test accuracy {measures['test_accuracy']:.1%} after {training['epochs']:.2g} epochs"
    return text if training["converged"] else f"{text} in {training['seconds']:.0f} s, not converged"


def _train_and_test(
    cell: Cell,
    model: ImageClassifier,
    module: ImageDataModule,
    plan: Plan,
    measures: Mapping[str, Any],
    display: Display,
) -> tuple[dict[str, Any], list[list[int]]]:
    facts = module.describe()
    curve = Curve()
    train_s, test_s = _expected_s(plan, facts, measures)
    callbacks: list[L.Callback] = [_Report(cell, plan, display, train_s / (train_s + test_s))]
    if plan.budget_s is not None:
        callbacks.insert(0, TimeBudget(plan.budget_s))
    device = torch.device(plan.device)
    trainer = L.Trainer(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=plan.precision,  # type: ignore[arg-type]
        max_epochs=-1 if plan.epochs is None else plan.epochs,
        callbacks=callbacks,
        logger=curve,
        log_every_n_steps=_log_interval(plan, facts, measures),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    start = time.perf_counter()
    trainer.fit(model, datamodule=module)
    hardware.synchronise(device)
    seconds = next((c.used_s for c in callbacks if isinstance(c, TimeBudget)), time.perf_counter() - start)
    images = trainer.global_step * min(plan.batch_size, facts["train_images"])
    epochs = images / facts["train_images"]
    trainer.test(model, datamodule=module, verbose=False)
    training = {
        "seconds": seconds,
        "steps": trainer.global_step,
        "images": images,
        "epochs": epochs,
        "full_epochs": facts["full_epochs"],
        "converged": epochs >= 0.99 * facts["full_epochs"],  # the last, incomplete batch of an epoch is dropped
        "recipe": model.recipe,
        "peak_lr": model.learning_rate,
        "curve": curve.points,
    }
    return training, model.test_confusion_counts()


def _log_interval(plan: Plan, facts: Mapping[str, Any], measures: Mapping[str, Any]) -> int:
    """Steps between points of the learning curve, for about `CURVE_POINTS` of them."""
    if plan.budget_s is not None:
        images = plan.budget_s * measures.get("train_images_per_s", 1000.0)
    else:
        images = float(facts["train_images"] * (plan.epochs or 1))
    return max(1, round(images / plan.batch_size / CURVE_POINTS))
