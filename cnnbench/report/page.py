"""What the HTML page shows: rows with the values behind them, charts, confusion matrices, and data for its script.

The page is complete without its script, which adds sorting, filters, ratios, highlighting and the comparison of two
networks. The script is ``pages/report.js``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cnnbench.record import Record
from cnnbench.report import engine_pictures, engine_tables, pictures
from cnnbench.report.answer import answers
from cnnbench.report.charts import MOST_NUMBERED_CLASSES, matrix_note, matrix_title
from cnnbench.report.columns import Column
from cnnbench.report.contenders import Contender, contenders, rivals_by_label, values_of
from cnnbench.report.engine_pictures import EnginePanel
from cnnbench.report.findings import LATENCY, front
from cnnbench.report.panels import NAME_SIDES, CurvePanel, Line, Panel, Point, curve_panels, scatter_panels
from cnnbench.report.seeds import SeedTable
from cnnbench.report.settings import in_group
from cnnbench.report.side_by_side import side_by_side

if TYPE_CHECKING:
    from cnnbench.report.outputs import Report

FIRST = ("model", "test_accuracy", "reference_accuracy")
"""Keys of the first columns of the page: how good a network is comes before what it costs."""
FOLDED = ("flops", "activations", "budget")
"""Keys of the columns that the script hides until the reader asks for them; FLOPs are exactly twice the MACs."""
MOST_SHADES = 9
"""Number of shades of a cell in a confusion matrix, apart from white."""
_CONDITIONS = in_group("row")
"""Settings that must agree before the figures of two rows are compared."""


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    Attributes:
        column: Column of the cell.
        text: Text of the cell.
        value: Value behind the text, by which rows are sorted and compared; None if there is none.
    """

    column: Column
    text: str
    value: float | None


@dataclass(frozen=True)
class Span:
    """The interval of an accuracy on the common axis of a data set, all in per cent of the axis."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Attributes:
        anchor: Name of the row in links.
        record: Record of the row.
        cells: Cells of the row, in the order of the columns.
        conditions: Number of the settings and the machine that rows must share before they are compared.
        settled: Accuracy after a full or the reference training, a share; None if it is not known.
        best: Whether no other network of the data set is both more accurate and faster.
        span: Interval of the accuracy; None if there is no accuracy.
    """

    anchor: str
    record: Record
    cells: Sequence[Cell]
    conditions: int
    settled: float | None
    best: bool
    span: Span | None


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix as a table.

    Attributes:
        title: Network, data set and accuracy.
        names: Names of the classes.
        lines: For each true class, pairs of a number of images and its shade, 0 to `MOST_SHADES`.
        notes: Whether the training was short, and the most frequent mistakes.
    """

    title: str
    names: Sequence[str]
    lines: Sequence[Sequence[tuple[int, int]]]
    notes: Sequence[str]


@dataclass(frozen=True)
class Engines:
    """The engines of one machine and data set, side by side.

    Attributes:
        title: Data set, with the machine if there are several.
        sentences: What the figures mean.
        notes: What must be known before trusting them.
        panel: Chart of the latencies; None beyond the first ones.
        tables: Tables.
    """

    title: str
    sentences: Sequence[str]
    notes: Sequence[str]
    panel: EnginePanel | None
    tables: Sequence[SeedTable]


class Page:
    """The content of the HTML page.

    Args:
        report: Content that all formats share.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.answers = answers(report.records, report.pairs.verdicts)

    @cached_property
    def columns(self) -> list[Column]:
        """Return the columns of the table; the data set has a row of its own above its records."""
        columns = [column for column in self.report.columns if column.key != "data"]
        # Sorting is stable, so the other columns stay in their order.
        return sorted(columns, key=lambda c: FIRST.index(c.key) if c.key in FIRST else len(FIRST))

    @cached_property
    def panels(self) -> dict[str, list[Panel]]:
        """Return the charts of networks by data set."""
        groups: dict[str, list[Panel]] = {}
        for panel in scatter_panels(self.report.records):
            groups.setdefault(panel.title, []).append(panel)
        return groups

    @cached_property
    def curves(self) -> dict[str, list[CurvePanel]]:
        """Return the charts of learning curves by data set."""
        groups: dict[str, list[CurvePanel]] = {}
        for panel in curve_panels(self.report.records):
            groups.setdefault(panel.label, []).append(panel)
        return groups

    @cached_property
    def engines(self) -> list[Engines]:
        """Return the engines side by side."""
        made = []
        views = self.report.engines
        for number, view in enumerate(views):
            panel = engine_pictures.panel(view) if number < engine_pictures.MOST_VIEWS else None
            words, notes = engine_tables.sentences(view), engine_tables.notes(view)
            made.append(Engines(engine_tables.heading(view, views), words, notes, panel, engine_tables.tables(view)))
        return made

    @property
    def has_accuracies(self) -> bool:
        """Return whether the table has a column of accuracies."""
        return any(column.key in ("reference_accuracy", "test_accuracy") for column in self.columns)

    @cached_property
    def sorted_by(self) -> str:
        """Return the key of the column by which all rows are sorted; empty if a row has no value there."""
        rows = self._all_rows()
        for key in ("reference_accuracy", "test_accuracy"):
            cells = [cell.value for row in rows for cell in row.cells if cell.column.key == key]
            # Without a reference accuracy that the column shows, a row was sorted by an accuracy of its own.
            if len(cells) == len(rows) and None not in cells and self._is_settled(key):
                return key
        return ""

    def _is_settled(self, key: str) -> bool:
        """Return whether all rows are sorted by this accuracy: its values are those that rank the networks."""
        if key == "reference_accuracy":
            return True
        return len(_settled(self.report.records)) == len(self.report.records)

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """Return the rows of the table by data set: the most accurate network first, where that is known."""
        records = self.report.records
        best = _on_a_front(records)
        settled = _settled(records)
        conditions: dict[tuple[str, ...], int] = {}
        anchors: Counter[str] = Counter()
        groups: dict[str, list[Row]] = {}
        for label, pairs in self.report.groups.items():
            spans = _spans([record for record, _ in pairs])
            rows = []
            for (record, _), span in zip(pairs, spans, strict=True):
                number = conditions.setdefault(values_of(record, _CONDITIONS), len(conditions))
                cells = [Cell(c, c.show(record), c.value(record)) for c in self.columns]
                rows.append(
                    Row(
                        anchor=_anchor(record, anchors),
                        record=record,
                        cells=cells,
                        conditions=number,
                        settled=settled.get(id(record)),
                        best=id(record) in best,
                        span=span,
                    )
                )
            # Networks whose final accuracy is not known follow, in the order of the records.
            rows.sort(key=lambda row: -1 if row.settled is None else row.settled, reverse=True)
            groups[label] = rows
        return groups

    @cached_property
    def matrices(self) -> list[Matrix]:
        """Return the first confusion matrices as tables, without those of many classes, which are pictures."""
        made = []
        for record in [r for r in self.report.shown if r.confusion_matrix is not None][: pictures.MOST_MATRICES]:
            counts = record.confusion_matrix
            if counts is not None and len(counts) <= MOST_NUMBERED_CLASSES:
                lines = [[(count, _shade(count, sum(line))) for count in line] for line in counts]
                # The first of two lines, with the accuracy, is the title of the picture too.
                title = " ".join(matrix_title(record, counts).split("\n"))
                made.append(Matrix(title, record.data["class_names"], lines, matrix_note(record).split("\n")))
        return made

    def _all_rows(self) -> list[Row]:
        """Return the rows of all data sets."""
        return [row for rows in self.rows.values() for row in rows]

    @cached_property
    def anchors(self) -> dict[int, str]:
        """Return the name in links of each row, by the identity of its record."""
        return {id(row.record): row.anchor for row in self._all_rows()}

    def anchor(self, shown: Point | Line) -> str:
        """Return the name in links of the row of a point or a curve; empty if the table has no row of it."""
        return self.anchors.get(id(shown.record), "")

    def data(self) -> dict[str, Any]:
        """Return what the script reads: sides of the names of points, and what it needs to compare two networks."""
        seeds = any(column.key == "seed" for column in self.columns)
        rows = [(row.anchor, row.record) for row in self._all_rows()]
        return {"sides": NAME_SIDES, **side_by_side(rows, self.report.pairs.verdicts, seeds)}


def _anchor(record: Record, seen: Counter[str]) -> str:
    """Return the name of a row in links, which no other row has.

    Args:
        record: Record of the row.
        seen: Number of rows so far by name; this row is counted.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{record.title}-{record.data['label']}-{record.seed}").strip("-") or "row"
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}--{seen[name]}"


def _settled(records: Sequence[Record]) -> dict[int, float]:
    """Return the accuracy that ranks a record, by its identity; records whose final accuracy is not known have none."""
    found = {}
    for entry in contenders(records):
        if entry.settled is not None:
            found.update(dict.fromkeys(map(id, entry.records), entry.settled))
    return found


def _on_a_front(records: Sequence[Record]) -> set[int]:
    """Return the identities of the records whose network is on the front of accuracy against latency."""
    found: set[int] = set()
    for entries in rivals_by_label(contenders(records)).values():
        best: list[Contender] = front(entries, LATENCY)
        # A front of one network compares nothing.
        if len(best) > 1:
            found.update(id(record) for entry in best for record in entry.records)
    return found


def _spans(records: Sequence[Record]) -> list[Span | None]:
    """Return the interval of each accuracy on an axis from the lowest to the highest end of all of them."""
    intervals = [_low_middle_high(record) for record in records]
    known = [value for values in intervals for value in values]
    spans: list[Span | None] = []
    for values in intervals:
        if not values or max(known) == min(known):
            spans.append(None)
            continue
        shares = [(value - min(known)) / (max(known) - min(known)) for value in values]
        spans.append(Span(*(round(100 * share, 1) for share in shares)))
    return spans


def _low_middle_high(record: Record) -> list[float]:
    """Return the lower end of the interval of an accuracy, the accuracy, and the upper end; nothing if one lacks."""
    keys = ("test_accuracy_low", "test_accuracy", "test_accuracy_high")
    values = [record.measures[key] for key in keys if record.measures.get(key) is not None]
    return values if len(values) == len(keys) else []


def _shade(count: int, images: int) -> int:
    """Return the shade of a cell by its share of the images of a class; a single image has a shade already."""
    if not count:
        return 0
    return max(1, round(MOST_SHADES * count / images))
