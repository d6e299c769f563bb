"""What W&B shows of records: the figures, tables, charts and pictures of a cell, and those that compare cells.

Each function takes an open run of W&B. The keys are those of records and of ``results.csv``, and those of the training
are Lightning's, so that runs of ``bench`` and of ``fit`` share their panels.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnbench.confusion import class_figures, most_confused
from cnnbench.console import note
from cnnbench.measures import figures
from cnnbench.plots.drawing import plain_text
from cnnbench.plots.grids import colours, grid, show
from cnnbench.predictions import Examples
from cnnbench.record import Record, as_lines
from cnnbench.report.confusion_pictures import MatrixPainter
from cnnbench.report.outputs import Report
from cnnbench.report.pictures import FigureSheet, Picture, comparisons, failure, matrix_picture

STEP = "trainer/global_step"
"""Key of the optimizer step, which is the horizontal axis of all curves; the name that Lightning's logger uses."""
BEST = "best/"
"""Start of the key of the best value of a curve in the summary, as in ``best/val/accuracy``."""
SMALLEST_SIDE = 112
"""Smallest side in pixels of a test image among the mistakes; smaller images are enlarged by a whole factor."""
MOST_FILTERS, FILTER_COLUMNS = 96, 12
"""Largest number of filters in their picture, and the number of filters in a row of it."""
SCATTERS = {"accuracy_macs": "macs", "accuracy_latency": "latency_ms_median"}
"""Costs that accuracy is plotted against, by key of the chart."""


def set_axes(run: Any) -> None:
    """Let the optimizer step be the horizontal axis of every curve of a run."""
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)


def log_point(run: Any, point: Mapping[str, float]) -> None:
    """Log a point of a learning curve.

    Args:
        run: Run of W&B.
        point: Values by name, and the optimizer ``step`` at which they were logged.
    """
    values = dict(point)
    values[STEP] = values.pop("step")
    run.log(values)


def best_values(points: Iterable[Mapping[str, float]], before: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the best value of every curve: the smallest of a loss, the largest of everything else.

    Args:
        points: Points of the curves; only values of ``train/`` and ``val/`` are looked at.
        before: Summary with the best values of earlier points.

    Returns:
        The values by their key in the summary, such as ``best/val/accuracy``.
    """
    best: dict[str, float] = {key: value for key, value in (before or {}).items() if key.startswith(BEST)}
    for point in points:
        for name, value in point.items():
            if not name.startswith(("train/", "val/")):
                continue
            key = BEST + name
            choose = min if "loss" in name else max
            best[key] = choose(value, best.get(key, value))
    return best


def plain_summary(run: Any) -> dict[str, Any]:
    """Return the numbers and texts of the summary of a run, without W&B's own."""
    summary = {}
    for key in run.summary.keys():  # noqa: SIM118 - it is no dictionary
        value = run.summary.get(key)
        if isinstance(value, (bool, int, float, str)) and not key.startswith("_"):
            summary[key] = value
    return summary


def config_of(record: Record) -> dict[str, Any]:
    """Return the settings of a record by which runs can be grouped and filtered, of `bench` and `fit` alike."""
    config: dict[str, Any] = {"model": record.model, "seed": record.seed, "data": record.data, **record.config}
    config |= {key: record.training[key] for key in ("optimizer", "peak_lr") if key in record.training}
    if "recipe" in record.training:
        config["recipe_words"] = record.training["recipe"]
    config |= {key: record.measures[key] for key in ("params", "macs") if key in record.measures}
    return config | {"environment": record.environment}


def log_record(run: Any, record: Record) -> None:
    """Log the outcome of a cell: figures as summary, the confusion matrix, figures by class, and the record itself.

    The learning curve is not logged here; see `log_point`.
    """
    wandb = client()
    run.config.update(config_of(record), allow_val_change=True)
    if record.confusion_matrix is not None:
        panels = {"confusion_matrix": _matrix_chart(record), "classes": _class_table(record)}
        panels |= _image("confusion_matrix_image", matrix_picture(record.key, record, MatrixPainter()))
        run.log(panels)
    run.summary.update({key: record.measures[key] for key in figures() if key in record.measures})
    # Lists and tables, such as the learning curve, are no values of a summary.
    run.summary.update({k: v for k, v in record.training.items() if not isinstance(v, (dict, list))})
    for name, value in best_values(record.training.get("curve", ())).items():
        # The points of a training that was followed are there already, with all their digits.
        if run.summary.get(name) is None:
            run.summary[name] = value
    run.summary.update({"status": record.status, "reason": record.reason, "synthetic": record.data["synthetic"]})
    artifact = wandb.Artifact(f"record-{run.id}", type="record")
    with artifact.new_file("record.jsonl", encoding="utf-8") as file:
        file.write(as_lines([record]))
    run.log_artifact(artifact)


def log_examples(run: Any, examples: Examples) -> None:
    """Log the test images that a network mistakes, as a table, and the filters of its first convolution."""
    wandb = client()
    rows = []
    for image, *words in zip(*examples[:4], strict=True):
        pixels = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        # W&B's page would blur small images when it enlarges them.
        factor = max(1, SMALLEST_SIDE // min(pixels.size))
        enlarged = pixels.resize((pixels.width * factor, pixels.height * factor), Image.Resampling.NEAREST)
        rows.append([wandb.Image(enlarged), *words])
    table = wandb.Table(columns=["image", "index in test set", "true", "predicted"], data=rows)
    panels: dict[str, Any] = {"mistakes": table}
    if examples.filters is not None:
        panels |= _image("filters", Picture("filters", partial(_filters_sheet, examples.filters), str))
    run.log(panels)


def _filters_sheet(weights: np.ndarray) -> FigureSheet:
    """Return a picture of the filters of a convolution, (F, C, kH, kW); those of three channels are in colour."""
    weights = weights[:MOST_FILTERS]
    figure, axes = grid(len(weights), FILTER_COLUMNS, cell=0.7, titles=False)
    for ax, kernel in zip(axes, weights, strict=True):
        if len(kernel) == 3:
            show(ax, colours(kernel))
        else:
            show(ax, kernel.mean(0), scale="signed")
    return FigureSheet(figure)


def log_weights(run: Any, path: Path, facts: Mapping[str, Any]) -> None:
    """Log a checkpoint as an artifact of the type ``model``.

    Args:
        run: Run of W&B.
        path: File of the checkpoint.
        facts: Facts about the checkpoint, such as its accuracy, that W&B shows beside it.
    """
    artifact = client().Artifact(f"model-{run.id}", type="model", metadata=dict(facts))
    # The file stays where it is, so W&B needs no copy of it.
    artifact.add_file(str(path), name=path.name, policy="immutable")
    run.log_artifact(artifact)


def log_comparison(run: Any, records: Sequence[Record]) -> None:
    """Log what compares the cells of a grid: one table, charts that react to the mouse, the report's pictures.

    Everything is logged in one step, so that no panel is at a step of its own. The records are logged as an artifact,
    from which ``cnnbench report`` makes the whole report again.
    """
    wandb = client()
    report = Report(records)
    run.config.update({"cells": [r.key for r in records], "facts": dict(report.facts)}, allow_val_change=True)
    keys = [key for key in figures() if any(key in r.measures for r in records)]
    rows = []
    for r in records:
        rows.append([r.model, r.data["label"], r.seed, r.status, *map(r.measures.get, keys)])
    panels: dict[str, Any] = {
        "comparison": wandb.Table(columns=["model", "data", "seed", "status", *keys], data=rows),
        **_charts(records),
    }
    for key, over_seeds in zip(("over_seeds", "differences_by_seed"), report.seeds.tables, strict=False):
        head, *lines = over_seeds.rows
        panels[key] = wandb.Table(columns=list(head), data=[list(line) for line in lines])
    for picture in comparisons(report.records):
        panels |= _image(f"pictures/{picture.name}", picture)
    run.log(panels)
    artifact = wandb.Artifact(f"records-{run.id}", type="records")
    with artifact.new_file("records.jsonl", encoding="utf-8") as file:
        file.write(as_lines(records))
    run.log_artifact(artifact)


def client() -> Any:
    """Return the package wandb, which is imported when it is used, because a machine may lack it."""
    import wandb

    return wandb


def _matrix_chart(record: Record) -> Any:
    """Return W&B's chart of the confusion matrix of a record."""
    wandb = client()
    names = record.data["class_names"]
    counts = []
    for i, row in enumerate(record.confusion_matrix or []):
        for j, images in enumerate(row):
            counts.append([names[i], names[j], images])
    # W&B's function for confusion matrices takes single predictions; its chart is filled with counts here.
    columns = ["Actual", "Predicted", "nPredictions"]
    table = wandb.Table(columns=columns, data=counts)
    fields = {column: column for column in columns}
    return wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": record.key})


def _class_table(record: Record) -> Any:
    """Return a table with a row per class: its images, how many are found, and what it is mistaken for most."""
    names = record.data["class_names"]
    matrix = record.confusion_matrix or []
    mistaken_for: dict[int, str] = {}
    # The mistakes come in falling order of frequency, so the first one of a class is its most frequent one.
    for mistake in most_confused(matrix, limit=len(names) ** 2):
        mistaken_for.setdefault(mistake.true, f"{names[mistake.predicted]} ({mistake.images})")
    rows = []
    for index, one in enumerate(class_figures(matrix)):
        found = [one.images, one.recall, one.low, one.high, one.precision, one.f1]
        rows.append([names[index], *found, mistaken_for.get(index, "")])
    columns = ["class", "images", "recall", "recall_low", "recall_high", "precision", "f1", "most mistaken for"]
    return client().Table(columns=columns, data=rows)


def _charts(records: Sequence[Record]) -> dict[str, Any]:
    """Return the charts of a comparison by key; a chart without anything to show is left out."""
    wandb = client()
    charts: dict[str, Any] = {}
    tested = [r for r in records if "test_accuracy" in r.measures]
    if tested:
        rows = [[r.key, r.measures["test_accuracy"]] for r in tested]
        table = wandb.Table(columns=["cell", "test_accuracy"], data=rows)
        charts["accuracy"] = wandb.plot.bar(table, "cell", "test_accuracy", title="Test accuracy")
    for name, cost in SCATTERS.items():
        rows = [[r.key, r.measures[cost], r.measures["test_accuracy"]] for r in tested if cost in r.measures]
        if rows:
            table = wandb.Table(columns=["cell", cost, "test_accuracy"], data=rows)
            charts[name] = wandb.plot.scatter(table, cost, "test_accuracy", title=f"Test accuracy against {cost}")
    for name in ("train/loss", "train/accuracy"):
        curves = {r.key: _curve(r, name) for r in records}
        curves = {key: points for key, points in curves.items() if points}
        if curves:
            xs = [[step for step, _ in points] for points in curves.values()]
            ys = [[value for _, value in points] for points in curves.values()]
            chart = wandb.plot.line_series(xs, ys, keys=list(curves), title=name, xname="optimizer step")
            charts[f"curves/{name.removeprefix('train/')}"] = chart
    return charts


def _curve(record: Record, name: str) -> list[tuple[float, float]]:
    """Return the steps and values of one learning curve of a record; empty if it has none."""
    return [(point["step"], point[name]) for point in record.training.get("curve", ()) if name in point]


def _image(key: str, picture: Picture) -> dict[str, Any]:
    """Draw a picture for W&B; a picture that cannot be drawn is left out, with a line on stderr.

    Returns:
        The image by its key; empty if there is nothing to show.
    """
    try:
        with plain_text():
            sheet = picture.draw()
            content = None if sheet is None else sheet.png()
    except Exception as error:  # an error in one picture must not cost the rest of the run
        note(f"W&B: {failure(picture, error)}")
        return {}
    if content is None:
        return {}
    # W&B takes an opened image or a path, but not the bytes of a file.
    return {key: client().Image(Image.open(io.BytesIO(content), formats=("PNG",)))}
