"""The report in all its formats: terminal table, Markdown, CSV, one HTML page and PNG pictures.

All formats are made from records alone. `Report` prepares the content that they share.
"""

from __future__ import annotations

import contextlib
import html
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cnnbench import text
from cnnbench.console import note
from cnnbench.files import write_text
from cnnbench.measures import figures
from cnnbench.pages import embedded_json, render, script
from cnnbench.plots.drawing import MANY
from cnnbench.record import Record
from cnnbench.references import reference_of
from cnnbench.report import engine_tables, provenance
from cnnbench.report.classes import HEAD, hardest_sentences
from cnnbench.report.classes import rows as class_rows
from cnnbench.report.columns import Column, columns_of
from cnnbench.report.engines import EngineView, engine_views
from cnnbench.report.findings import first_of_each_label, listed, reference_origin, reference_sentences
from cnnbench.report.page import FOLDED, Page
from cnnbench.report.pairs import Pairs, pair_verdicts
from cnnbench.report.pictures import Drawn, draw_pictures
from cnnbench.report.seeds import Seeds, SeedTable
from cnnbench.report.settings import said, setting

MANY_ROWS = 30
"""Number of rows above which the terminal table repeats the column titles below them."""
MANY_MATRICES = 12
"""Number of confusion matrices above which a page folds them away."""
CSV_SETTINGS = ("precision", "inference_precision", "budget_s", "until", "batch_size", "speed_batch_size")
"""Settings that have a column in the CSV file."""
CSV_TRAINING = ("seconds", "steps", "epochs", "converged")
"""Facts about the training that have a column in the CSV file."""
CSV_OVER_SEEDS = (
    *("test_accuracy_seeds", "test_accuracy_mean", "test_accuracy_sd"),
    *("test_accuracy_mean_low", "test_accuracy_mean_high"),
    *("paired_against", "paired_seeds", "paired_difference", "paired_low", "paired_high", "paired_p_holm"),
)
"""Figures over seeds that have a column in the CSV file, the last ones."""
LEFT_OUT_WHEN_NARROW = (
    "macs_to_accuracy",
    "images_to_accuracy",
    "flops",
    "ece",
    "ece_scaled",
    "data",
    "activations",
    "train_images_per_s",
    "test_accuracy_interval",
    "train_accuracy",
    "budget",
    "epochs",
    "energy_mj_single_image",
    "energy_mj_per_image",
    "resident_bytes",
    "inference_resident_bytes",
    "peak_memory_bytes",
    "images_per_s",
)
"""Keys of the columns that the terminal table leaves out, in this order, until it fits. Without the column of the data
set, the label of each data set stands in a row above its records."""
LONGEST_MODEL = 40
"""Characters of a network's name that fit into one line of the terminal table."""


def _timed(record: Record) -> Mapping[str, Any]:
    """Return the samples of a record's times by kind of work; empty if nothing was timed."""
    return record.measures.get("samples_ms") or {}


class Report:
    """The content that all formats share: columns, rows, warnings and facts about the measurement.

    Args:
        records: Records of one or several runs.
        run: Name of the run folder that the report is written into; empty for a report of other records.
    """

    def __init__(self, records: Sequence[Record], run: str = "") -> None:
        self.run = run
        # Records of one data set stand together; data sets keep the order of their first appearance.
        labels = dict.fromkeys(r.data["label"] for r in records)
        places = {label: place for place, label in enumerate(labels)}
        # Sorting is stable, so the records of a data set stay in their order.
        self.records = sorted(records, key=lambda r: places[r.data["label"]])

    @cached_property
    def columns(self) -> list[Column]:
        """Return the columns in which some record has a value; seed and budget only if records differ in them."""
        return columns_of(self.records)

    @cached_property
    def networks(self) -> list[str]:
        """Return the names of the networks, whatever the ways they ran, in the order of their first appearance."""
        return list(dict.fromkeys(r.network for r in self.records))

    @cached_property
    def seeds(self) -> Seeds:
        """Return the accuracies over seeds, and the differences of networks by seed."""
        return Seeds(self.records)

    @cached_property
    def pairs(self) -> Pairs:
        """Return the pairs of networks on the same test images."""
        return Pairs(self.records)

    @cached_property
    def engines(self) -> list[EngineView]:
        """Return the engines side by side, on each machine and data set that has two or more."""
        return engine_views(self.records)

    @cached_property
    def hardest(self) -> list[str]:
        """Return a sentence per data set on the class that is hardest."""
        return hardest_sentences(self.records)

    @cached_property
    def shown(self) -> list[Record]:
        """Return the records that have a row in the tables: all, or the first of each data set if they are too many."""
        return first_of_each_label(self.records)

    @property
    def left_out(self) -> str:
        """Return a sentence on the records without a row in the tables; empty if all have one."""
        if len(self.shown) == len(self.records):
            return ""
        most = max(Counter(r.data["label"] for r in self.shown).values())
        return (
            f"The table has {len(self.shown):,} of {len(self.records):,} records, at most {most:,} of each data set; "
            "results.csv has all. Pictures of comparisons, warnings and means over seeds are made from all."
        )

    def rows(self) -> list[list[str]]:
        """Return the cells of the table, one row per record of `shown`."""
        return [[c.show(r) for c in self.columns] for r in self.shown]

    @property
    def synthetic(self) -> bool:
        """Return whether any record was measured on synthetic data."""
        return any(r.data["synthetic"] for r in self.records)

    @property
    def title(self) -> str:
        """Return the title of the report, which says so if data is synthetic."""
        title = "cnnbench report on SYNTHETIC data" if self.synthetic else "cnnbench report"
        return f"{title}: {self.run}" if self.run else title

    @cached_property
    def warnings(self) -> list[str]:
        """Return the warnings that a reader needs before trusting a number."""
        return provenance.warnings(self.records)

    @cached_property
    def references(self) -> list[str]:
        """Return sentences on the reference accuracies of networks whose training in these records was short."""
        return reference_sentences(self.records)

    @property
    def reference_origin(self) -> str:
        """Return a sentence that says where the reference accuracies come from; empty if there are none."""
        return reference_origin(self.records)

    @cached_property
    def facts(self) -> list[tuple[str, str]]:
        """Return machine, versions, data and settings as pairs of name and value, with different values joined."""
        return provenance.facts(self.records)

    @cached_property
    def groups(self) -> dict[str, list[tuple[Record, list[str]]]]:
        """Return the records of `shown` with their rows, by label of the data set."""
        groups: dict[str, list[tuple[Record, list[str]]]] = {}
        for record, row in zip(self.shown, self.rows(), strict=True):
            groups.setdefault(record.data["label"], []).append((record, row))
        return groups

    @property
    def lead(self) -> str:
        """Return one sentence that says what was measured, on which machine and when."""
        networks = f"{len(self.networks):,} networks"
        if len(self.networks) <= MANY:
            networks = ", ".join(self.networks)
        devices: dict[str, None] = {}
        formats: dict[str, None] = {}
        for r in self.records:
            devices[str(said(r.environment, "device"))] = None
            # The number format of inference says nothing about a record without times.
            if "latency" in _timed(r):
                formats[str(setting(r, "inference_precision"))] = None
        timed = f"; inference timed in {listed(formats, ' and ')}" if formats else ""
        # The first ten characters of a time in ISO 8601 are the date.
        return (
            f"{networks} on {listed(self.groups, ' and ')}; {listed(devices, ' and ')}{timed}; "
            f"{self.records[0].created[:10]}"
        )


def print_table(report: Report, console: Console) -> None:
    """Print the tables and the warnings of a report in the terminal."""
    columns = _fitting(report, console.width)
    console.print(_main_table(report, columns))
    if report.left_out:
        console.print(Text(report.left_out))
    if len(columns) < len(report.columns):
        console.print("(more columns in a wider terminal, and in the report)", markup=False)
    for seed_table in report.seeds.tables:
        _print_seeds(seed_table, console)
    for pair_table in report.pairs.tables:
        # The sentences on pairs are many and long, so the terminal has one line in their place.
        _print_seeds(replace(pair_table, sentences=[report.pairs.note]), console)
    for view in report.engines:
        # The other tables of engines are in the report.
        title = f"Engines: {engine_tables.heading(view, report.engines)}"
        first = replace(engine_tables.tables(view)[0], title=title, sentences=engine_tables.sentences(view))
        _print_seeds(first, console)
    for line in report.warnings:
        console.print(Text(text.printable(line)))


def _main_table(report: Report, columns: Sequence[Column]) -> Table:
    """Return the terminal table with these columns, one row per record."""
    table = Table(title=report.title, title_justify="left", title_style="bold", header_style="bold")
    table.show_footer = len(report.shown) > MANY_ROWS
    for c in columns:
        widest = LONGEST_MODEL if c.key == "model" else None
        table.add_column(c.title, justify=_side(c.numeric), overflow="fold", footer=c.title, max_width=widest)
    has_labels = any(c.key == "data" for c in columns)
    for label, rows in report.groups.items():
        table.add_section()
        # Without a column of the data set, its label stands in a row of its own.
        if not has_labels:
            table.add_row(Text(text.printable(label), style="bold"))
        # The prepared rows have the cells of all columns, of which only some may fit here.
        for record, _ in rows:
            table.add_row(*_cells(c.show(record) for c in columns))
    return table


def _side(numeric: bool) -> Literal["left", "right"]:
    """Return the side to which a column is aligned."""
    return "right" if numeric else "left"


def _cells(texts: Iterable[str]) -> list[Text]:
    """Return texts as cells of a terminal table, in which brackets are not markup."""
    return [Text(text.printable(cell)) for cell in texts]


def _fitting(report: Report, width: int) -> list[Column]:
    """Return the columns of the terminal table, leaving out less important ones until no cell needs a second line."""
    columns = list(report.columns)
    widths = {column.key: _width(column, report.shown) for column in columns}
    for key in LEFT_OUT_WHEN_NARROW:
        # The table has a border at its left side too.
        if 1 + sum(widths[column.key] for column in columns) <= width:
            break
        columns = [c for c in columns if c.key != key]
    # If even the remaining columns are too wide, rich folds their texts into several lines.
    return columns


def _width(column: Column, records: Sequence[Record]) -> int:
    """Return the width that a column needs in the terminal: its longest cell, a space on each side and a border."""
    longest = max(map(len, (column.title, *map(column.show, records))))
    if column.key == "model":
        longest = min(longest, LONGEST_MODEL)
    return 3 + longest


def _print_seeds(seeds: SeedTable, console: Console) -> None:
    """Print a table over seeds in the terminal, with the sentences on it."""
    table = Table(title=seeds.title, title_justify="left", title_style="bold", header_style="bold")
    for title, numeric in zip(seeds.rows[0], seeds.numeric, strict=True):
        table.add_column(title, justify=_side(numeric), overflow="fold")
    for row in seeds.rows[1:]:
        table.add_row(*_cells(row))
    console.print(table)
    for sentence in seeds.sentences:
        console.print(Text(text.printable(sentence)))


def to_csv(report: Report) -> str:
    """Return the report as CSV: one row per record, every figure at full precision and under its key.

    If a network has several seeds, the last columns have its figures over seeds, which its records share.
    """
    scalars = [key for key in figures() if any(key in r.measures for r in report.records)]
    known = [reference_of(r) for r in report.records]
    references = ["reference_accuracy"] if any(known) else []
    head = ["model", "data", "label", "synthetic", "seed", "status", "reason", "device", "threads"]
    head += [*CSV_SETTINGS, "suspect", *(f"train_{k}" for k in CSV_TRAINING), *scalars, *references]
    by_record = report.seeds.by_record()
    over_seeds = list(CSV_OVER_SEEDS) if by_record else []
    head += over_seeds
    rows: list[list[Any]] = [head]
    for r, reference in zip(report.records, known, strict=True):
        # The cells follow in the order of `head`.
        row: list[Any] = [r.model, r.data_name, r.data["label"], r.data["synthetic"], r.seed, r.status, r.reason]
        row += [r.environment.get("device"), r.environment.get("threads")]
        row += [setting(r, name) for name in CSV_SETTINGS]
        row.append("; ".join(r.measures.get("suspect", ())))
        # A value that a record does not have is an empty cell.
        row += map(r.training.get, CSV_TRAINING)
        row += map(r.measures.get, scalars)
        row += [reference.accuracy if reference else None for _ in references]
        row += map(by_record.get(id(r), {}).get, over_seeds)
        rows.append(row)
    return text.to_csv(rows)


def pairs_csv(report: Report) -> str:
    """Return all pairs of networks on the same images as CSV, without the sentences; empty without pairs."""
    rows = [verdict.document() for verdict in [*report.pairs.verdicts, *report.pairs.engines]]
    if not rows:
        return ""
    head = [key for key in rows[0] if key != "sentence"]
    lines: list[list[Any]] = [head]
    for row in rows:
        # Seeds are a list, which is one cell.
        values = [row[key] for key in head]
        lines.append([" ".join(map(str, value)) if isinstance(value, list) else value for value in values])
    return text.to_csv(lines)


def classes_csv(report: Report) -> str:
    """Return the accuracy of every class as CSV, see `cnnbench.report.classes`; empty without confusion matrices."""
    rows = list(class_rows(report.records))
    return text.to_csv([list(HEAD), *rows]) if rows else ""


class MarkdownPage:
    """A Markdown document under construction; every method escapes the texts that it adds."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def heading(self, title: str, level: int = 2) -> None:
        """Add a heading, followed by an empty line."""
        self._lines += [f"{'#' * level} {text.markdown(title)}", ""]

    def paragraph(self, sentence: str) -> None:
        """Add a paragraph, followed by an empty line."""
        self._lines += [text.markdown(sentence), ""]

    def quote(self, sentence: str) -> None:
        """Add a quoted paragraph, the form of warnings, followed by an empty line."""
        self._lines += [f"> {text.markdown(sentence)}", ""]

    def table(
        self, rows: Sequence[Sequence[str]], numeric: Sequence[bool], bold: Collection[tuple[int, int]] = ()
    ) -> None:
        """Add a table.

        Args:
            rows: Cells as plain text, header first.
            numeric: Whether each column is aligned to the right.
            bold: Row and column of the cells in bold, counted from 0.
        """
        self._lines += [*text.markdown_table(rows, numeric, bold), ""]

    def code(self, lines: Sequence[str], language: str) -> None:
        """Add a block of code, each line of it as it is.

        Args:
            lines: Lines of code.
            language: Name of the language for colours.
        """
        shown = [text.printable(line) for line in lines]
        # The marks around a block are longer than any that its lines have.
        longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
        marks = "`" * max(3, longest + 1)
        self._lines += [f"{marks}{language}", *shown, marks, ""]

    def bullets(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Add a list of pairs, each a name in bold and a text."""
        for name, value in pairs:
            self._lines.append(f"- **{text.markdown(name)}**: {text.markdown(value)}")
        self._lines.append("")

    def picture(self, name: str) -> None:
        """Add a picture from the folder ``figures``.

        Args:
            name: File name without suffix, in the form that `cnnbench.files.safe_name` returns.
        """
        # A name may have letters beyond ASCII, which an address writes as percent codes.
        self._lines += [f"![{text.markdown(name)}](figures/{quote(name)}.png)", ""]

    @contextlib.contextmanager
    def folded(self, summary: str) -> Iterator[None]:
        """Fold the content that the block adds under a summary."""
        # The summary is HTML, so it is escaped as HTML; what follows the empty line is read as Markdown again.
        self._lines += [f"<details><summary>{html.escape(text.printable(summary))}</summary>", ""]
        yield
        self._lines += ["</details>", ""]

    def __str__(self) -> str:
        return "\n".join(self._lines).rstrip("\n") + "\n"


def to_markdown(report: Report, drawn: Drawn | None = None) -> str:
    """Return the report as Markdown.

    Args:
        report: Content of the report.
        drawn: Pictures in the folder ``figures/`` beside the report; None for a report without pictures.
    """
    page = MarkdownPage()
    page.heading(report.title, 1)
    failures = drawn.failures if drawn else []
    # Warnings stand above the table, so that nobody reads a figure without them.
    for line in [*report.warnings, *failures]:
        page.quote(line)
    titles = [c.title for c in report.columns]
    page.table([titles, *report.rows()], [c.numeric for c in report.columns])
    if report.left_out:
        page.paragraph(report.left_out)
    for sentence in [report.reference_origin, *report.references]:
        if sentence:
            page.paragraph(sentence)
    for table in [*report.seeds.tables, *report.pairs.tables]:
        page.heading(table.title)
        page.table(table.rows, table.numeric)
        for sentence in table.sentences:
            page.paragraph(sentence)
    _add_engines(page, report)
    for sentence in [report.pairs.advice, *report.hardest]:
        if sentence:
            page.paragraph(sentence)
    if drawn:
        _add_pictures(page, drawn)
    page.heading("What the columns mean")
    page.bullets((c.title, c.meaning) for c in report.columns)
    page.heading("How it was measured")
    page.bullets(report.facts)
    return str(page)


def _add_engines(page: MarkdownPage, report: Report) -> None:
    """Add the engines side by side: sentences first, then tables."""
    for view in report.engines:
        page.heading(f"Engines: {engine_tables.heading(view, report.engines)}")
        for sentence in [*engine_tables.sentences(view), *engine_tables.notes(view)]:
            page.paragraph(sentence)
        for table in engine_tables.tables(view):
            page.heading(table.title, 3)
            page.table(table.rows, table.numeric)


def _add_pictures(page: MarkdownPage, drawn: Drawn) -> None:
    """Add the pictures with their captions, then the confusion matrices, which are folded away if there are many."""
    page.heading("Pictures")
    for picture in drawn.comparisons:
        page.picture(picture.name)
        for sentence in picture.caption:
            page.paragraph(sentence)
    for sentence in drawn.notes:
        page.paragraph(sentence)
    if drawn.more_matrices:
        page.paragraph(drawn.more_matrices)
    fold: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if len(drawn.matrices) > MANY_MATRICES:
        fold = page.folded(f"{len(drawn.matrices)} confusion matrices")
    with fold:
        for picture in drawn.matrices:
            page.picture(picture.name)


def to_html(report: Report, drawn: Drawn | None = None) -> str:
    """Return the report as one HTML page that contains its styles and pictures.

    Args:
        report: Content of the report.
        drawn: Pictures of the report; None for a page without pictures.
    """
    drawn = drawn or Drawn()
    page = Page(report)
    return render(
        "report",
        report=report,
        page=page,
        drawn=drawn,
        charted=[picture for picture in drawn.comparisons if not picture.uri],
        pictures=[picture for picture in drawn.comparisons if picture.uri],
        pictured=[picture for picture in drawn.matrices if picture.uri],
        many_matrices=MANY_MATRICES,
        folded=FOLDED,
        data=embedded_json(page.data()),
        script=script("report"),
    )


def write_report(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write tables (``*.csv``), ``figures/*.png``, ``report.md`` and ``report.html`` into a folder, in this order.

    The tables are ``results.csv``, and if there is something for them ``classes.csv``, ``pairs.csv`` and
    ``engines.csv``. A picture that
    cannot be drawn is left out, with a line on stderr and in the report.

    Returns:
        Paths of the files, the HTML page first.

    Raises:
        OSError: A file cannot be written; the files before it are complete.
    """
    # A run folder has its records in a folder of this name; its own name says which run it is.
    report = Report(records, folder.resolve().name if (folder / "records").is_dir() else "")
    table, markdown, page = folder / "results.csv", folder / "report.md", folder / "report.html"
    # The figures come first, so that they are written even if the pictures are not.
    write_text(table, to_csv(report))
    tables = [table]
    for name, content in _more_tables(report).items():
        if content:
            write_text(folder / name, content)
            tables.append(folder / name)
    # The pictures come before the documents, which contain them and name those that could not be drawn.
    drawn = draw_pictures(report.records, folder / "figures")
    for line in drawn.failures:
        note(line)
    write_text(markdown, to_markdown(report, drawn))
    write_text(page, to_html(report, drawn))
    return [page, markdown, *tables, *drawn.files]


def _more_tables(report: Report) -> dict[str, str]:
    """Return the tables beside ``results.csv`` by name; a table without a row is empty."""
    return {
        "classes.csv": classes_csv(report),
        "pairs.csv": pairs_csv(report),
        "engines.csv": engine_tables.to_csv(report.engines),
    }


def json_document(records: Sequence[Record]) -> dict[str, Any]:
    """Return the document that ``--json`` prints: an object per record, and the figures over seeds."""
    cells = []
    # The samples of times and the learning curve are left out; the record has them.
    for r in records:
        cells.append(
            {
                "model": r.model,
                "data": r.data,
                "seed": r.seed,
                "status": r.status,
                "reason": r.reason,
                **_without("samples_ms", r.measures),
                "confusion_matrix": r.confusion_matrix,
                "training": _without("curve", r.training),
                "config": r.config,
                "environment": r.environment,
            }
        )
    return {
        "schema": 1,
        "cells": cells,
        **Seeds(records).document(),
        "pairs_by_image": pair_verdicts(records),
        "engines": [view.document() for view in engine_views(records)],
    }


def _without(key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all values but one."""
    return {k: v for k, v in values.items() if k != key}
