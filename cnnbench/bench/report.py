"""The report: a terminal table, Markdown, CSV, one HTML page and PNG pictures, all from records and nothing else."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cnnbench.bench import figures, provenance
from cnnbench.bench.columns import Column, columns_of
from cnnbench.bench.drawing import MANY
from cnnbench.bench.findings import front_sentences, over_seeds, speed_sentences
from cnnbench.pages import data_uri, render
from cnnbench.record import Record, write_text

MANY_ROWS = 30
"""Rows from which a table says at its foot again what its columns are."""
MANY_MATRICES = 12
"""Confusion matrices of which more are folded away."""
TEXT_COLUMNS_OF_SEEDS = 2
SEEDS_MEANING = "Test accuracy over seeds: mean, standard deviation (n - 1), lowest and highest."
LEFT_OUT_WHEN_NARROW = (
    "flops", "data", "activations", "train_images_per_s", "test_accuracy_interval", "train_accuracy", "budget",
    "epochs", "resident_bytes", "peak_memory_bytes", "images_per_s",
)  # fmt: skip
"""Columns that the terminal table does without, one after the other, until it fits; data sets then head their rows."""
LONGEST_MODEL = 40
"""Characters of a network's name that the terminal table gives a line."""


class Report:
    """Everything that the formats share: which columns have content, what is to be warned of, what was used.

    Args:
        records: Cells of one or several runs.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = sorted(
            records, key=lambda r: list(dict.fromkeys(x.data["label"] for x in records)).index(r.data["label"])
        )

    @cached_property
    def columns(self) -> list[Column]:
        """Columns in which some cell has content; seed and budget only where they differ."""
        return columns_of(self.records)

    @cached_property
    def models(self) -> list[str]:
        """Networks by their order of appearance."""
        return list(dict.fromkeys(r.model for r in self.records))

    @cached_property
    def over_seeds(self) -> list[list[str]]:
        """Accuracies over seeds, the head first; empty where no network has two."""
        return over_seeds(self.records)

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
        return provenance.warnings(self.records)

    @cached_property
    def facts(self) -> list[tuple[str, str]]:
        """Machine, versions, data and settings, each as a name and what was used, joined where records differ."""
        return provenance.facts(self.records)

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
        drawn["macs_latency"] = figures.latency_against_macs(self.records)
        drawn["learning_curves"] = figures.learning_curves(self.records)
        for name, r in zip(self.matrix_names, self.records, strict=True):
            drawn[name] = figures.confusion(r)
        return {name: figure for name, figure in drawn.items() if figure is not None}

    @property
    def comparisons(self) -> list[str]:
        """Names of the pictures that compare networks."""
        return [name for name in self.pictures if name not in self.matrix_names]

    @property
    def matrices(self) -> list[str]:
        """Names of the confusion matrices that there are."""
        return [name for name in self.matrix_names if name in self.pictures]

    @cached_property
    def captions(self) -> dict[str, list[str]]:
        """What a picture shows in sentences, by its name."""
        found = {name: front_sentences(self.records, cost) for cost, (_, name) in figures.COSTS.items()}
        return found | {"macs_latency": speed_sentences(self.records)}


def print_table(report: Report, console: Console) -> None:
    """Prints the tables and what has to be known about them."""
    columns = _fitting(report, console.width)
    table = Table(title=report.title, title_justify="left", title_style="bold", header_style="bold")
    table.show_footer = len(report.records) > MANY_ROWS
    for c in columns:
        justify: Literal["left", "right"] = "right" if c.numeric else "left"
        widest = LONGEST_MODEL if c.key == "model" else None
        table.add_column(c.title, justify=justify, overflow="fold", footer=c.title, max_width=widest)
    for label, rows in _groups(report).items():
        table.add_section()
        if not any(c.key == "data" for c in columns):
            table.add_row(Text(label, style="bold"))
        for record, _ in rows:
            table.add_row(*(Text(c.show(record)) for c in columns))
    console.print(table)
    if len(columns) < len(report.columns):
        console.print("(more columns in a wider terminal, and in the report)", markup=False)
    if report.over_seeds:
        _print_seeds(report.over_seeds, console)
    for line in report.warnings:
        console.print(line, markup=False, highlight=False)


def _fitting(report: Report, width: int) -> list[Column]:
    """Columns of the terminal table: the less important ones are left out until no cell needs a second line."""

    def needed(column: Column) -> int:
        longest = max(len(text) for text in (column.title, *map(column.show, report.records)))
        return 3 + (min(longest, LONGEST_MODEL) if column.key == "model" else longest)

    columns = list(report.columns)
    for key in LEFT_OUT_WHEN_NARROW:
        if 1 + sum(map(needed, columns)) <= width:
            break
        columns = [c for c in columns if c.key != key]
    return columns


def _print_seeds(rows: Sequence[Sequence[str]], console: Console) -> None:
    table = Table(title="Over seeds", title_justify="left", title_style="bold", header_style="bold")
    for index, title in enumerate(rows[0]):
        table.add_column(title, justify="left" if index < TEXT_COLUMNS_OF_SEEDS else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    console.print(table)


def to_csv(report: Report) -> str:
    """One row per cell with every figure at full precision; keys are those of the records."""
    scalars = list(
        dict.fromkeys(k for r in report.records for k, v in r.measures.items() if not isinstance(v, (dict, list)))
    )
    training = ("seconds", "steps", "epochs", "converged")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["model", "data", "label", "synthetic", "seed", "status", "reason", "device", "threads"]
    head += [*(names := ("precision", "budget_s", "batch_size", "speed_batch_size")), "suspect"]
    writer.writerow([*head, *(f"train_{k}" for k in training), *scalars])
    for r in report.records:
        first = [r.model, r.data_name, r.data["label"], r.data["synthetic"], r.seed, r.status, r.reason]
        settings = [r.environment["device"], r.environment["threads"], *(r.config.get(name) for name in names)]
        settings.append("; ".join(r.measures.get("suspect", ())))
        values = [r.training.get(k) for k in training] + [r.measures.get(k) for k in scalars]
        writer.writerow([*first, *settings, *("" if v is None else v for v in values)])
    return out.getvalue()


def to_markdown(report: Report) -> str:
    """The report as Markdown, with the pictures beside it in ``figures/``."""
    lines = [f"# {report.title}", ""]
    lines += [line for warning in report.warnings for line in (f"> {_escape(warning)}", "")]
    lines += _markdown_table([[c.title for c in report.columns], *report.rows()], [c.numeric for c in report.columns])
    if report.over_seeds:
        numeric = [index >= TEXT_COLUMNS_OF_SEEDS for index in range(len(report.over_seeds[0]))]
        lines += ["", "## Over seeds", "", SEEDS_MEANING, "", *_markdown_table(report.over_seeds, numeric)]
    lines += ["", "## Pictures", ""]
    for name in report.comparisons:
        lines += [_markdown_picture(name), *(f"{_escape(text)}\n" for text in report.captions.get(name, ()))]
    matrices = [_markdown_picture(name) for name in report.matrices]
    if len(matrices) > MANY_MATRICES:
        matrices = [f"<details><summary>{len(matrices)} confusion matrices</summary>\n", *matrices, "</details>\n"]
    lines += matrices
    lines += ["## What the columns mean", "", *(f"- **{c.title}**: {c.meaning}" for c in report.columns)]
    lines += ["", "## How it was measured", "", *(f"- **{name}**: {_escape(value)}" for name, value in report.facts)]
    return "\n".join(lines) + "\n"


def _markdown_table(rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> list[str]:
    head = ["| " + " | ".join(rows[0]) + " |", "| " + " | ".join("---:" if n else "---" for n in numeric) + " |"]
    return head + ["| " + " | ".join(map(_escape, row)) + " |" for row in rows[1:]]


def _markdown_picture(name: str) -> str:
    return f"![{name}](figures/{name}.png)\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def to_html(report: Report) -> str:
    """One page that needs nothing else: styles and pictures are inside."""
    return render(
        "report",
        report=report,
        many_models=MANY,
        many_matrices=MANY_MATRICES,
        text_columns_of_seeds=TEXT_COLUMNS_OF_SEEDS,
        seeds_meaning=SEEDS_MEANING,
        groups=_groups(report),
        pictures={name: _svg_uri(figure) for name, figure in report.pictures.items()},
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
    texts["macs_latency"] = "Latency of one image against multiply-adds (MACs) per image"
    texts["learning_curves"] = "Training accuracy against training images seen"
    for name, r in zip(report.matrix_names, report.records, strict=True):
        texts[name] = f"Confusion matrix of {r.model} on {r.data['label']}; {figures.confusion_sentence(r)}"
    return texts


def _svg_uri(figure: Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return data_uri(out.getvalue(), "image/svg+xml")


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
