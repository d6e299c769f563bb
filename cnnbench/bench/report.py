"""The report: a terminal table, Markdown, CSV, one HTML page and PNG pictures, all from records and nothing else."""

from __future__ import annotations

import base64
import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from cnnbench.bench import figures
from cnnbench.record import Record, write_text

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Column:
    """A column of every table: where its value comes from, how it is shown and what it means."""

    title: str
    key: str
    show: Callable[[Record], str]
    meaning: str
    numeric: bool = True


def _number(key: str, pattern: str, scale: float = 1.0) -> Callable[[Record], str]:
    def show(record: Record) -> str:
        value = record.measures.get(key)
        return DASH if value is None else pattern.format(value * scale)

    return show


def _significant(key: str) -> Callable[[Record], str]:
    def show(record: Record) -> str:
        value = record.measures.get(key)
        return DASH if value is None else f"{value:#.3g}".rstrip(".")

    return show


def _count(key: str) -> Callable[[Record], str]:
    def show(record: Record) -> str:
        value = record.measures.get(key)
        return DASH if value is None else figures.short(value)

    return show


def _rate(key: str) -> Callable[[Record], str]:
    def show(record: Record) -> str:
        value = record.measures.get(key)
        return DASH if value is None else f"{float(f'{value:.3g}'):,.0f}" if value >= 10 else f"{value:.2g}"

    return show


def _accuracy(record: Record) -> str:
    if record.status == "error":
        return "failed"
    if "test_accuracy" not in record.measures:
        return DASH
    low, high = record.measures["test_accuracy_low"], record.measures["test_accuracy_high"]
    mark = "" if record.training["converged"] else "*"
    decimals = 2 if high - low < 0.01 else 1
    return f"{record.measures['test_accuracy'] * 100:.{decimals}f}{mark}"


def _interval(record: Record) -> str:
    if "test_accuracy" not in record.measures:
        return DASH
    low, high = record.measures["test_accuracy_low"] * 100, record.measures["test_accuracy_high"] * 100
    decimals = 2 if high - low < 1 else 1
    return f"{low:.{decimals}f}{DASH}{high:.{decimals}f}"


def _epochs(record: Record) -> str:
    epochs = record.training.get("epochs")
    return DASH if epochs is None else f"{epochs:#.2g}" if epochs < 10 else f"{epochs:.0f}"


COLUMNS = (
    Column("Model", "model", lambda r: r.model, "Architecture; the command cnnbench list says more.", numeric=False),
    Column("Data", "data", lambda r: r.data["label"], "The images that were used.", numeric=False),
    Column("Seed", "seed", lambda r: str(r.seed), "Seed of initialisation, order of the batches and augmentation."),
    Column("Params", "params", _count("params"), "Weights and biases, frozen or not; a shared one counts once."),
    Column(
        "MACs", "macs", _count("macs"),
        "Multiply-adds of one image in inference; convolutions and matrix products only, bias excluded.",
    ),
    Column("FLOPs", "flops", _count("flops"), "Floating-point operations: exactly twice the MACs."),
    Column(
        "Activations", "activations", _count("activations"),
        "Values that convolutions and matrix products put out for one image: a proxy of memory traffic.",
    ),
    Column(
        "Latency ms", "latency_ms_median", _significant("latency_ms_median"),
        "One image through the network, batch size 1: median over interleaved rounds.",
    ),
    Column(
        "Images/s", "images_per_s", _rate("images_per_s"),
        "Inference throughput at a large batch (size below), from the median time of a batch.",
    ),
    Column(
        "Train images/s", "train_images_per_s", _rate("train_images_per_s"),
        "Throughput of a whole training step (forward, backward, the recipe's optimizer) at the batch size of "
        "training, without data loading.",
    ),
    Column(
        "Peak MiB", "peak_memory_bytes", _number("peak_memory_bytes", "{:,.0f}", 2**-20),
        "Largest memory allocated on the GPU in a training step: weights, gradients, optimizer state, activations, "
        "without the images.",
    ),
    Column("Budget", "budget", lambda r: budget(r), "How long each network was trained."),
    Column("Epochs", "epochs", _epochs, "How often training saw the training images within the budget."),
    Column(
        "Accuracy %", "test_accuracy", _accuracy,
        "Share of the test set, whole, that is classified right after the last step of training; no choice among "
        "epochs. A star: a short training, fewer epochs than a full one, so not converged.",
    ),
    Column(
        "95 % interval", "test_accuracy_interval", _interval,
        "Wilson interval of the accuracy for the size of the test set; the spread between seeds is not in it.",
    ),
)  # fmt: skip


SETTINGS = ("budget_s", "epochs", "precision", "batch_size", "speed_batch_size")
"""Settings that must agree before two rows compare."""
FULL_WIDTH = 150
"""Characters that the terminal table needs with all its columns."""
LEFT_OUT_WHEN_NARROW = ("flops", "activations", "train_images_per_s", "test_accuracy_interval")


class Report:
    """Everything that the formats share: which columns have content, what is to be warned of, what was used.

    Args:
        records: Cells of one or several runs.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = sorted(
            records, key=lambda r: list(dict.fromkeys(x.data["label"] for x in records)).index(r.data["label"])
        )

    @property
    def columns(self) -> list[Column]:
        """Columns in which some cell has content; seed and budget only where they differ."""
        same = {c.key for c in COLUMNS if c.key in ("seed", "budget") and len({c.show(r) for r in self.records}) == 1}
        return [c for c in COLUMNS if c.key not in same and any(c.show(r) != DASH for r in self.records)]

    def rows(self) -> list[list[str]]:
        return [[c.show(r) for c in self.columns] for r in self.records]

    @property
    def synthetic(self) -> bool:
        return any(r.data["synthetic"] for r in self.records)

    @property
    def title(self) -> str:
        return "cnnbench report" + (" on SYNTHETIC data" if self.synthetic else "")

    @cached_property
    def warnings(self) -> list[str]:
        """What a reader has to know before believing a number."""
        lines = []
        if self.synthetic:
            labels = ", ".join(dict.fromkeys(r.data["label"] for r in self.records if r.data["synthetic"]))
            lines.append(
                f"SYNTHETIC data: {labels}. These images are drawn by a formula; accuracy on them says nothing about "
                "photographs or handwriting. Costs and speed are those of real images of the same size."
            )
        short_runs = [r for r in self.records if r.training and not r.training["converged"]]
        if short_runs:
            budgets = ", ".join(dict.fromkeys(budget(r) for r in short_runs))
            lines.append(
                f"* Not converged: trained for a budget of {budgets}, less than a full training. These accuracies "
                "compare how far the networks come within the budget on this machine, not how good they are in the end."
            )
        diverged = [r for r in self.records if r.training.get("diverged")]
        lines += [f"Training of {r.model} on {r.data['label']} diverged: its loss was not a number." for r in diverged]
        for what in SETTINGS:
            values = list(dict.fromkeys(str(r.config.get(what)) for r in self.records))
            if len(values) > 1:
                lines.append(
                    f"The records differ in {what} ({', '.join(values)}): not every row compares with every other."
                )
        for what in ("device", "packages", "threads"):
            if len({str(r.environment[what]) for r in self.records}) > 1:
                lines.append(f"The records come from more than one {what}: speed does not compare between them.")
        failed = [r for r in self.records if r.status == "error"]
        lines += [f"{r.model} on {r.data['label']} failed: {r.reason}" for r in failed]
        return lines

    @cached_property
    def facts(self) -> list[tuple[str, str]]:
        """Machine, versions, data and settings, each as a name and what was used, joined where records differ."""
        rows: dict[str, dict[str, None]] = {}
        for r in self.records:
            for name, value in _facts(r):
                rows.setdefault(name, {})[value] = None
        return [(name, "; ".join(values)) for name, values in rows.items()]

    @cached_property
    def matrix_names(self) -> list[str]:
        """A file name for the confusion matrix of each record; numbered where runs have the same cell."""
        seen: Counter[str] = Counter()
        names = []
        for r in self.records:
            seen[r.key] += 1
            names.append(f"confusion_{r.key}" + (f"-{seen[r.key]}" if seen[r.key] > 1 else ""))
        return names

    @cached_property
    def pictures(self) -> dict[str, Figure]:
        """Pictures by file name without suffix."""
        drawn = {name: figures.accuracy_against(self.records, cost) for cost, (_, name) in figures.COSTS.items()}
        drawn["learning_curves"] = figures.learning_curves(self.records)
        for name, r in zip(self.matrix_names, self.records, strict=True):
            drawn[name] = figures.confusion(r)
        return {name: figure for name, figure in drawn.items() if figure is not None}


def budget(record: Record) -> str:
    """The training budget of a cell in words."""
    config = record.config
    return f"{config['budget_s']:g} s of training" if config["budget_s"] is not None else f"{config['epochs']} epochs"


def _facts(r: Record) -> list[tuple[str, str]]:
    env, config, data = r.environment, r.config, r.data
    packages = ", ".join(f"{name} {number}" for name, number in env["packages"].items() if number)
    commit = (
        f"{env['commit'][:12]}{' with local changes' if env['dirty'] else ''}" if env.get("commit") else "not known"
    )
    facts = [
        ("Device", f"{env['device']} ({config['device']})"),
        *[(f"GPU {name}", str(value)) for name, value in (env.get("accelerator") or {}).items()],
        (
            "Machine",
            f"{env['cpu_cores']} CPU cores, {env['threads']} threads, {env['memory_gib']} GiB memory, {env['os']}",
        ),
        ("Software", f"Python {env['python']}, {packages}"),
        ("Commit", commit),
        ("Numbers", f"{config['precision']} ({config['precision_reason']}), memory format {config['memory_format']}"),
        (
            "Batch size",
            f"{config['batch_size']} in training, {config['speed_batch_size']} for images/s, "
            f"{config['eval_batch_size']} in the test, 1 for latency",
        ),
        (
            "Data",
            f"{data['label']}: {data['train_images']:,} training, {data['val_images']:,} validation and "
            f"{data['test_images']:,} test images, {data['in_channels']}x{data['image_size']}x{data['image_size']}, "
            f"{'random shift and mirroring' if data['augment'] else 'no augmentation'}, "
            f"full training {data['full_epochs']} epochs",
        ),
    ]
    if r.training:
        facts += [("Budget", f"{budget(r)} per cell"), ("Recipe", r.training["recipe"])]
        facts.append(("Peak learning rate", f"{r.model} {r.training['peak_lr']:g}"))
    facts += [("Not measured", f"{name}: {reason}") for name, reason in r.skipped.items()]
    facts.append(("Counting", config["macs_convention"]))
    facts.append(("Date", r.created[:10]))
    return facts


def print_table(report: Report, console: Console) -> None:
    """Prints the table and what has to be known about it."""
    table = Table(title=report.title, title_justify="left", title_style="bold", header_style="bold")
    narrow = console.width < FULL_WIDTH
    columns = [c for c in report.columns if not (narrow and c.key in LEFT_OUT_WHEN_NARROW)]
    for column in columns:
        table.add_column(column.title, justify="right" if column.numeric else "left", overflow="fold")
    previous = None
    for record in report.records:
        if previous not in (None, record.data["label"]):
            table.add_section()
        previous = record.data["label"]
        table.add_row(*(c.show(record) for c in columns))
    console.print(table)
    if len(columns) < len(report.columns):
        console.print("(more columns in a wider terminal, and in the report)", markup=False)
    for line in report.warnings:
        console.print(line, markup=False, highlight=False)


def to_csv(report: Report) -> str:
    """One row per cell with every figure at full precision; keys are those of the records."""
    scalars = list(
        dict.fromkeys(k for r in report.records for k, v in r.measures.items() if not isinstance(v, (dict, list)))
    )
    training = ("seconds", "steps", "epochs", "converged")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["model", "data", "label", "synthetic", "seed", "status", "reason", "device", "precision", "budget_s"]
    writer.writerow([*head, *(f"train_{k}" for k in training), *scalars])
    for r in report.records:
        first = [r.model, r.data_name, r.data["label"], r.data["synthetic"], r.seed, r.status, r.reason]
        settings = [r.environment["device"], r.config["precision"], r.config["budget_s"]]
        values = [r.training.get(k) for k in training] + [r.measures.get(k) for k in scalars]
        writer.writerow([*first, *settings, *("" if v is None else v for v in values)])
    return out.getvalue()


def to_markdown(report: Report) -> str:
    """The report as Markdown, with the pictures beside it in ``figures/``."""
    lines = [f"# {report.title}", ""]
    lines += [line for warning in report.warnings for line in (f"> {_escape(warning)}", "")]
    lines.append("| " + " | ".join(c.title for c in report.columns) + " |")
    lines.append("| " + " | ".join("---:" if c.numeric else "---" for c in report.columns) + " |")
    lines += ["| " + " | ".join(map(_escape, row)) + " |" for row in report.rows()]
    lines += ["", "## Pictures", ""]
    lines += [f"![{name}](figures/{name}.png)\n" for name in report.pictures]
    lines += ["## What the columns mean", "", *(f"- **{c.title}**: {c.meaning}" for c in report.columns)]
    lines += ["", "## How it was measured", "", *(f"- **{name}**: {_escape(value)}" for name, value in report.facts)]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def to_html(report: Report) -> str:
    """One page that needs nothing else: styles and pictures are inside."""
    loader = jinja2.PackageLoader("cnnbench", "bench")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.jinja").render(
        report=report,
        groups=_groups(report),
        pictures={name: _data_uri(figure) for name, figure in report.pictures.items()},
        alt=_alt_texts(report),
        zip=zip,
    )


def _groups(report: Report) -> Mapping[str, list[tuple[Record, list[str]]]]:
    groups: dict[str, list[tuple[Record, list[str]]]] = {}
    for record, row in zip(report.records, report.rows(), strict=True):
        groups.setdefault(record.data["label"], []).append((record, row))
    return groups


def _alt_texts(report: Report) -> dict[str, str]:
    texts = {name: f"Test accuracy against {title}" for title, name in figures.COSTS.values()}
    texts["learning_curves"] = "Training accuracy against training images seen"
    for name, r in zip(report.matrix_names, report.records, strict=True):
        texts[name] = f"Confusion matrix of {r.model} on {r.data['label']}; {figures.confusion_sentence(r)}"
    return texts


def _data_uri(figure: Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def write_report(records: Sequence[Record], folder: Path) -> list[Path]:
    """Writes ``report.html``, ``report.md``, ``results.csv`` and ``figures/*.png`` into a folder.

    Returns:
        The files, the page first.
    """
    report = Report(records)
    written = []
    texts: dict[str, Callable[[Report], str]] = {
        "report.html": to_html,
        "report.md": to_markdown,
        "results.csv": to_csv,
    }
    for name, make in texts.items():
        write_text(folder / name, make(report))
        written.append(folder / name)
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in report.pictures.items():
        path = folder / "figures" / f"{name}.png"
        figure.savefig(path, dpi=160)
        written.append(path)
    return written


def json_document(records: Sequence[Record]) -> dict[str, Any]:
    """Records for ``--json``: the figures at the top level of each cell, under the names of the command's contract."""
    cells = []
    for r in records:
        cells.append(
            {
                "model": r.model,
                "data": r.data,
                "seed": r.seed,
                "status": r.status,
                "reason": r.reason,
                **{k: v for k, v in r.measures.items() if k != "samples_ms"},
                "confusion_matrix": r.confusion_matrix,
                "training": {k: v for k, v in r.training.items() if k != "curve"},
                "config": r.config,
                "environment": r.environment,
            }
        )
    return {"schema": 1, "cells": cells}
