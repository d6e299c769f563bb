"""Further rows of a benchmark: trained networks in engines, and in other number formats than that of their training.

A row has the weights of a cell, which it reads from the run folder. It is timed in inference, and tested on the whole
test set by the engine itself. Engines run in fresh processes: their threads would slow a training beside them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnbench import progress
from cnnbench.benchmark.opened import Opened, first_images
from cnnbench.benchmark.plan import EngineRow, Plan
from cnnbench.calibration import calibration_error
from cnnbench.checkpoints import open_checkpoint
from cnnbench.confusion import accuracy
from cnnbench.engines import CALIBRATION_IMAGES, ENGINES, INT8, TORCH
from cnnbench.engines.export import Deployed, bytes_of_weights, bytes_on_disk, write_for_engine
from cnnbench.engines.sessions import logits_of, open_session
from cnnbench.errors import Stopped, reason
from cnnbench.hardware import numbers, weights_type
from cnnbench.measures import COMPLEXITY
from cnnbench.predictions import MOST_CLASSES, Predictions, write_predictions
from cnnbench.record import INFERENCE_KINDS, Record
from cnnbench.timing.processes import in_groups, in_process, scratch_folder
from cnnbench.timing.speed import SpeedConfig, Subject
from cnnbench.timing.timed_network import Way
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.outcomes import scores
from cnnbench.training.views import mean_logits

TAKEN = ("complexity", "speed", "quality")
"""Measures that a row of an engine has; the counts are those of the network itself."""
_COUNTS = tuple(figure.key for figure in COMPLEXITY.figures)

Figures = dict[str, dict[str, Any]]
"""Figures, or an ``error``, by name."""

# Settings and facts


def timed_name(opened: Opened, row: EngineRow) -> str:
    """Return the name of a row in the file of times, where the seed does not matter."""
    return f"{opened.pair(row.cell)} [{row.engine}, {row.precision}]"


def with_engine(environment: Mapping[str, Any], *engines: str) -> dict[str, Any]:
    """Return the facts about machine and software with the versions of engines."""
    packages = dict(environment["packages"])
    for name in engines:
        packages[ENGINES[name].package] = ENGINES[name].version
    return {**environment, "packages": packages}


def settings_of(row: EngineRow, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a row, from those of its cell.

    ``precision`` is that of the engine, and ``precision_reason`` names that of the training.
    """
    changed: dict[str, Any] = {
        "network": row.cell.model,
        "engine": row.engine,
        "precision": row.precision,
        "inference_precision": row.precision,
        "precision_reason": f"as asked; trained by torch in {config['precision']}",
        "measures": [name for name in config["measures"] if name in TAKEN],
    }
    if row.engine != TORCH:
        # Engines take contiguous images, whatever their operators then do.
        changed |= {"memory_format": "contiguous", "cudnn_benchmark": False}
    return {**config, **changed}


def content_of(row: EngineRow, main: Record, speed: Mapping[str, Any], tested: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a row's record that hold what was measured.

    Args:
        row: Row of an engine.
        main: Record of its cell, whose training and counts it shares.
        speed: Figures of its timing; empty if there are none.
        tested: Figures of its test, from `test_rows`; empty if there is none.
    """
    shared = {key: main.measures[key] for key in _COUNTS if key in main.measures}
    timed = {key: value for key, value in speed.items() if value is not None and key != "error"}
    measures = {**shared, **timed, **tested.get("measures", {})}
    facts = {**timed.get("engine_facts", {}), **tested.get("engine_facts", {})}
    if facts:
        measures["engine_facts"] = facts
    errors = []
    if "error" in tested:
        errors.append(tested["error"])
    if "error" in speed:
        errors.append(f"timing failed: {speed['error']}")
    skipped = {name: "measured only for the network in torch" for name in main.config["measures"] if name not in TAKEN}
    skipped |= {name: why for name, why in main.skipped.items() if name in TAKEN}
    return {
        "status": "error" if errors else "ok",
        "reason": "; ".join(errors),
        "measures": measures,
        "skipped": {**skipped, **tested.get("skipped", {})},
        # The curve is in the record of the cell.
        "training": {**main.training, "curve": []} if main.training else {},
        "confusion_matrix": tested.get("confusion_matrix"),
    }


# Timing


def time_engine_rows(
    plan: Plan,
    config: SpeedConfig,
    figures_of: Callable[..., Figures],
    on_start: Callable[[int, str], None],
) -> Figures:
    """Time the networks of a plan in torch and in its engines, each engine in processes of its own.

    Args:
        plan: Plan of the run.
        config: Settings of the timing.
        figures_of: Function of a module that takes the config, the plan, the name of an engine and the files of its
            rows by name, and returns the figures of the engine's networks by name.
        on_start: Callback that gets the number of each process, from 0, and the name of its engine.
    """
    with scratch_folder() as folder:
        files, failed = in_process(_export_untrained, plan, folder)
        groups: dict[str, Sequence[Any]] = {TORCH: (plan, TORCH, {})}
        names: dict[str, Sequence[str]] = {}
        for engine, of_engine in files.items():
            groups[engine] = plan, engine, of_engine
            names[engine] = list(of_engine)
        return in_groups(plan.processes, config, figures_of, groups, on_start, names) | failed


def _rows_to_time(plan: Plan) -> list[EngineRow]:
    """Return the rows of a plan; the seed decides nothing about a time, so one row stands for those of all seeds."""
    cells = {(cell.model, cell.data, cell.recipe): cell for cell in plan.cells()}.values()
    return [row for cell in cells for row in plan.engine_rows(cell)]


def _export_untrained(plan: Plan, folder: Path) -> tuple[dict[str, dict[str, Path]], Figures]:
    """Write the networks of a plan as files for its engines, in a process of its own; their weights are random.

    Returns:
        The files by engine and name of the row, and the errors by name of the row.
    """
    opened = Opened(plan, _say_nothing)
    files: dict[str, dict[str, Path]] = {}
    failed: Figures = {}
    for number, row in enumerate(row for row in _rows_to_time(plan) if row.engine != TORCH):
        torch.manual_seed(0)
        name, path = timed_name(opened, row), folder / f"{number}{ENGINES[row.engine].suffix}"
        progress.now(1.0, f"writing {name}")
        try:
            _write(plan, opened, row, opened.build(row.cell), path)
        except Stopped:
            raise
        except BaseException as error:  # whatever a network or an exporter raises is the failure of this row alone
            failed[name] = {"error": reason(error)}
        else:
            files.setdefault(row.engine, {})[name] = path
    return files, failed


def subjects_of(plan: Plan, opened: Opened, engine: str, files: Mapping[str, Path]) -> dict[str, Subject]:
    """Return the rows of an engine as the timing takes them, by name; those without a file are left out."""
    subjects = {}
    for row in _rows_to_time(plan):
        name = timed_name(opened, row)
        if row.engine != engine or (engine != TORCH and name not in files):
            continue
        data = opened.data[row.cell.data, row.cell.recipe]
        benchmark = engine == TORCH and plan.cudnn_benchmark
        subjects[name] = Subject(
            partial(opened.build, row.cell),
            opened.image_shape(row.cell),
            data.num_classes,
            way=Way(row.precision, cudnn_benchmark=benchmark, engine=engine),
            kinds=INFERENCE_KINDS,
            images=partial(first_images, data),
            file=files.get(name),
        )
    return subjects


# Test


def test_rows(plan: Plan, rows: Sequence[EngineRow], weights: Path, folder: Path) -> Figures:
    """Test the trained network of a cell in engines; this runs in a process of its own.

    Args:
        plan: Plan of the run.
        rows: Rows of one cell.
        weights: Checkpoint with the weights of the cell.
        folder: Run folder, into which the predictions are written.

    Returns:
        The ``measures``, ``skipped``, ``engine_facts`` and ``confusion_matrix`` of each row by its key, or its
        ``error``.
    """
    opened = Opened(plan.only(rows[0].cell), _say_nothing)
    results: Figures = {}
    for row in rows:
        progress.now(1.0, f"testing {row.key}")
        try:
            model = opened.build(row.cell)
            model.load_state_dict(open_checkpoint(weights)["state_dict"])
            results[row.key] = _tested(plan, opened, row, model, folder)
        except Stopped:
            raise
        except BaseException as error:  # the other rows go on
            results[row.key] = {"error": reason(error)}
    return results


def _tested(plan: Plan, opened: Opened, row: EngineRow, model: ImageClassifier, folder: Path) -> dict[str, Any]:
    """Test a network in an engine, write its predictions, and return what a record says of the test."""
    data = opened.data[row.cell.data, row.cell.recipe]
    device, views = torch.device(plan.device), model.test_views
    facts: dict[str, Any] = {}
    # The file is as large as that of the timing, but it has the trained weights.
    with tempfile.TemporaryDirectory(prefix="cnnbench-engines-") as scratch:
        if row.engine == TORCH:
            compute = _torchs_logits(model, row.precision, device)
            size = bytes_of_weights(model)
        else:
            path = Path(scratch) / f"network{ENGINES[row.engine].suffix}"
            quantisation = _write(plan, opened, row, model, path)
            session = open_session(row.engine, path, row.precision, device)
            if quantisation:
                session.facts["quantisation"] = quantisation
            compute = partial(logits_of, session)
            size, facts = bytes_on_disk(path), {"test": session.facts}
        found, loss = _predictions(lambda images: mean_logits(compute, images, views), data.test_dataloader())
    images = opened.facts[row.cell.data, row.cell.recipe]["test_images"]
    if len(found.true) != images:
        raise RuntimeError(f"the test counted {len(found.true)} of {images} images")
    pairs = torch.from_numpy(found.true * data.num_classes + found.predicted)
    matrix = torch.bincount(pairs, minlength=data.num_classes**2).view(data.num_classes, -1).tolist()
    write_predictions(folder / "predictions" / f"{row.key}.npz", found, data.num_classes)
    measures, skipped = {"file_bytes": size, **accuracy(matrix)}, {}
    if found.confidence is None:
        skipped = dict.fromkeys(("ece", "nll"), "the network's outputs are not finite")
    else:
        measures |= {"ece": calibration_error(found.confidence, found.right), "nll": loss}
    return {"measures": measures, "skipped": skipped, "engine_facts": facts, "confusion_matrix": matrix}


def _torchs_logits(model: ImageClassifier, precision: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the function from images to logits of a network in torch; the network is moved and converted."""
    dtype = weights_type(precision)
    network = Deployed(model).to(device, dtype).to(memory_format=torch.channels_last)

    def compute(images: Tensor) -> Tensor:
        moved = images.to(device, dtype, memory_format=torch.channels_last)
        with torch.inference_mode(), numbers(precision, device):
            logits: Tensor = network(moved)
        return logits.float().cpu()

    return compute


def _predictions(
    compute: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Predictions, float]:
    """Return what a network says of test images, and its mean loss.

    Args:
        compute: Function from images, (n, C, H, W), to logits on the CPU, (n, K).
        batches: Normalised images with their labels.
    """
    parts, loss = [], 0.0
    for images, labels in batches:
        logits, true = compute(images), labels.cpu()
        predicted = logits.argmax(1)
        parts.append((true, predicted, *scores(logits, predicted, logits.shape[1] <= MOST_CLASSES)))
        loss += float(F.cross_entropy(logits, true, reduction="sum"))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    # Nothing else is kept of outputs that are not finite, such as those of a network that diverged.
    if not all(bool(column.isfinite().all()) for column in columns):
        columns = columns[:2]
    return Predictions(*(column.numpy() for column in columns)), loss / len(columns[0])


# Files


def _write(plan: Plan, opened: Opened, row: EngineRow, model: ImageClassifier, path: Path) -> dict[str, Any]:
    """Write a network as the file that an engine runs.

    Returns:
        The facts about its quantisation; empty for other number formats than ``int8``.
    """
    calibration, calibrated_on = None, ""
    if row.precision == INT8:
        data = opened.data[row.cell.data, row.cell.recipe]
        # The split for training alone: neither validation images nor test images may decide anything.
        calibration = first_images(data, CALIBRATION_IMAGES)
        label = opened.facts[row.cell.data, row.cell.recipe]["label"]
        calibrated_on = f"the first {len(calibration)} training images of {label}"
    shape, device = opened.image_shape(row.cell), torch.device(plan.device)
    return write_for_engine(
        model,
        shape,
        row.cell.model,
        row.engine,
        row.precision,
        device,
        path,
        calibration,
        calibrated_on,
    )


def _say_nothing(text: str) -> None:
    """Show nothing, in place of a note that the process of the run has shown already."""
