"""Columns of the report's tables: where a value comes from, how it is formatted and what it means.

`cnnbench.measures` lists the figures of a record; this module decides how each of them looks in a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cnnbench.measures import MEASURES, Figure, Kind, figures
from cnnbench.record import Record
from cnnbench.references import percent, reference_of
from cnnbench.report.findings import DASH
from cnnbench.report.settings import budget
from cnnbench.units import mebibytes, short


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Attributes:
        title: Heading of the column.
        key: Key of the figure in records; a column without a figure, such as the budget, has a key of its own.
        show: Function that formats the value of a record as a table cell.
        meaning: Explanation of the column, for the legend.
        numeric: Whether the cells are numbers, which tables align to the right.
        value: Function that returns the value behind a cell, by which the page sorts and compares; None if there is
            none.
        better: Which way is better, as in `cnnbench.measures.Figure`; empty if neither is.
        kind: Kind of the value, as in `cnnbench.measures.Figure`; a share is shown in per cent.
    """

    title: str
    key: str
    show: Callable[[Record], str]
    meaning: str
    numeric: bool = True
    value: Callable[[Record], float | None] = lambda record: None
    better: str = ""
    kind: Kind = "number"


def _shown(figure: Figure, record: Record) -> str:
    """Return a figure of a record as a table cell; a suspect time ends in a question mark."""
    value = record.measures.get(figure.key)
    if value is None:
        return DASH
    if figure.kind == "share":
        # The width of the interval decides how many decimals are shown.
        low = record.measures.get(f"{figure.key}_low", value)
        high = record.measures.get(f"{figure.key}_high", value)
        return f"{value * 100:.{_decimals(high - low)}f}"
    text = _FORMATS[figure.kind](value)
    if figure.kind in ("ms", "per second") and record.doubts(figure.work):
        return f"{text}?"
    return text


def _decimals(width: float) -> int:
    """Return the number of decimals of a percentage: two if its interval is narrower than one point, else one."""
    # A share without an interval has the width 0 here.
    return 2 if 0 < width < 0.01 else 1


def _significant(value: float) -> str:
    """Return a number with three significant digits."""
    # The sign # keeps zeros at the end, as in 1.50; it also leaves a dot behind a whole number, as in 150.
    return f"{value:#.3g}".rstrip(".")


def _rate(value: float) -> str:
    """Return a rate with three significant digits and without decimals; with two digits below 10."""
    if value < 10:
        return f"{value:.2g}"
    # The format ``.3g`` alone would write a large rate with an exponent.
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}"


_FORMATS: dict[Kind, Callable[[float], str]] = {
    "count": short,
    "number": _significant,
    "amount": _significant,
    "ms": _significant,
    "per second": _rate,
    "bytes": mebibytes,
}


def _accuracy(record: Record) -> str:
    """Return the test accuracy as a table cell; a star marks a training that did not converge."""
    if record.status == "error":
        return "failed"
    shown = _shown(figures()["test_accuracy"], record)
    if shown != DASH and not record.fully_trained:
        shown += "*"
    return shown


def _interval(record: Record) -> str:
    """Return the interval of the test accuracy as a table cell."""
    low, high = record.measures.get("test_accuracy_low"), record.measures.get("test_accuracy_high")
    if low is None or high is None:
        return DASH
    # Both ends of an interval of width 0 have two decimals too, unlike the accuracy itself.
    decimals = 2 if high - low < 0.01 else 1
    return f"{low * 100:.{decimals}f}{DASH}{high * 100:.{decimals}f}"


def _reference(record: Record) -> str:
    """Return the reference accuracy as a table cell."""
    known = reference_of(record)
    if known is None:
        return DASH
    # The title of the column already has the unit.
    return percent(known.accuracy).removesuffix(" %")


def _epochs(record: Record) -> str:
    """Return the number of epochs as a table cell, with decimals below 10."""
    epochs = record.training.get("epochs")
    if epochs is None:
        return DASH
    if epochs < 10:
        return f"{epochs:#.2g}"
    return f"{epochs:.0f}"


def _figure_column(figure: Figure) -> Column:
    """Return the column of a figure."""
    show = _accuracy if figure.key == "test_accuracy" else partial(_shown, figure)
    better = figure.better or _BETTER.get(figure.kind, "")
    return Column(
        figure.title, figure.key, show, figure.meaning, value=_value_of(figure.key), better=better, kind=figure.kind
    )


_BETTER: dict[Kind, str] = {"count": "less", "ms": "less", "bytes": "less", "per second": "more", "share": "more"}
"""Which way is better for figures of a kind that do not say it themselves."""


def _value_of(key: str) -> Callable[[Record], float | None]:
    """Return the function that returns a figure of a record, by its key."""
    return lambda record: record.measures.get(key)


def _reference_value(record: Record) -> float | None:
    """Return the reference accuracy that the column shows, as a share."""
    known = reference_of(record)
    return None if known is None else known.accuracy


def _figure_columns(trained: bool) -> list[Column]:
    """Return a column for each figure with a title, either of measures that need training or of all others."""
    columns = []
    for measure in MEASURES.values():
        if measure.trained == trained:
            # Figures without a title, such as the ends of intervals, have no column of their own.
            columns += [_figure_column(figure) for figure in measure.figures if figure.title]
    return columns


COLUMNS = (
    Column("Model", "model", lambda r: r.title, "Architecture; the command cnnbench list says more.", numeric=False),
    Column("Data", "data", lambda r: r.data["label"], "The images that were used.", numeric=False),
    Column(
        "Seed",
        "seed",
        lambda r: str(r.seed),
        "Seed of initialisation, order of the batches and augmentation.",
        value=lambda r: r.seed,
    ),
    *_figure_columns(trained=False),
    Column("Budget", "budget", budget, "How long each network was trained."),
    Column(
        "Epochs",
        "epochs",
        _epochs,
        "How often training saw the training images within the budget; 0.1 is a tenth of them, once.",
        value=lambda r: r.training.get("epochs"),
    ),
    *_figure_columns(trained=True),
    Column(
        "95 % interval",
        "test_accuracy_interval",
        _interval,
        "Wilson interval of the accuracy for the size of the test set; the spread between seeds is not in it.",
    ),
    Column(
        "Reference %",
        "reference_accuracy",
        _reference,
        "What the network reaches after its reference training, from the records that the package ships; the mean over "
        "seeds. It stands beside a short training, which says how fast a network learns and not how good it is.",
        value=_reference_value,
        better="more",
        kind="share",
    ),
)
"""Columns of every table, in their order. The columns of figures come from the rows of `cnnbench.measures`."""


def columns_of(records: Sequence[Record]) -> list[Column]:
    """Return the columns in which at least one record has a value; seed and budget only if records differ in them."""
    columns = []
    for c in COLUMNS:
        cells = {c.show(r) for r in records}
        # A seed or a budget that all records share is no news in each row.
        same = c.key in ("seed", "budget") and len(cells) == 1
        if not same and cells - {DASH}:
            columns.append(c)
    return columns
