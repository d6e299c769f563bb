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
from cnnbench.report.findings import budget
from cnnbench.units import short

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Attributes:
        title: Heading of the column.
        key: Key of the figure in records; a column without a figure, such as the budget, has a key of its own.
        show: Function that formats the value of a record as a table cell.
        meaning: Explanation of the column, for the legend.
        numeric: Whether the cells are numbers, which tables align to the right.
    """

    title: str
    key: str
    show: Callable[[Record], str]
    meaning: str
    numeric: bool = True


def _shown(figure: Figure, record: Record) -> str:
    """Return a figure of a record as a table cell; a suspect time ends in a question mark."""
    value = record.measures.get(figure.key)
    if value is None:
        return DASH
    if figure.kind == "share":
        # The width of the interval decides how many decimals are shown.
        low, high = (record.measures.get(f"{figure.key}_{end}", value) for end in ("low", "high"))
        return f"{value * 100:.{_decimals(high - low)}f}"
    text = _FORMATS[figure.kind](value)
    timed = figure.kind in ("ms", "per second")
    return f"{text}?" if timed and record.measures.get("suspect") else text


def _decimals(width: float) -> int:
    """Return the number of decimals of a percentage: two if its interval is narrower than one point, else one."""
    return 2 if 0 < width < 0.01 else 1


def _significant(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def _rate(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 10 else f"{value:.2g}"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:,.0f}"


_FORMATS: dict[Kind, Callable[[float], str]] = {
    "count": short,
    "number": _significant,
    "amount": _significant,
    "ms": _significant,
    "per second": _rate,
    "bytes": _mebibytes,
}


def _accuracy(record: Record) -> str:
    """Return the test accuracy as a table cell; a star marks a training that did not converge."""
    if record.status == "error":
        return "failed"
    shown = _shown(figures()["test_accuracy"], record)
    return shown if shown == DASH or record.training.get("converged", True) else f"{shown}*"


def _interval(record: Record) -> str:
    low, high = (record.measures.get(f"test_accuracy_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return DASH
    decimals = 2 if high - low < 0.01 else 1
    return f"{low * 100:.{decimals}f}{DASH}{high * 100:.{decimals}f}"


def _reference(record: Record) -> str:
    known = reference_of(record)
    return DASH if known is None else percent(known.accuracy).removesuffix(" %")


def _epochs(record: Record) -> str:
    epochs = record.training.get("epochs")
    return DASH if epochs is None else f"{epochs:#.2g}" if epochs < 10 else f"{epochs:.0f}"


def _figure_column(figure: Figure) -> Column:
    show = _accuracy if figure.key == "test_accuracy" else partial(_shown, figure)
    return Column(figure.title, figure.key, show, figure.meaning)


def _figure_columns(trained: bool) -> list[Column]:
    """Return a column for each figure with a title, either of measures that need training or of all others."""
    columns = []
    for measure in MEASURES.values():
        if measure.trained == trained:
            columns += [_figure_column(figure) for figure in measure.figures if figure.title]
    return columns


COLUMNS = (
    Column("Model", "model", lambda r: r.model, "Architecture; the command cnnbench list says more.", numeric=False),
    Column("Data", "data", lambda r: r.data["label"], "The images that were used.", numeric=False),
    Column("Seed", "seed", lambda r: str(r.seed), "Seed of initialisation, order of the batches and augmentation."),
    *_figure_columns(trained=False),
    Column("Budget", "budget", budget, "How long each network was trained."),
    Column("Epochs", "epochs", _epochs, "How often training saw the training images within the budget."),
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
    ),
)
"""Columns of every table, in their order. The columns of figures come from the rows of `cnnbench.measures`."""


def columns_of(records: Sequence[Record]) -> list[Column]:
    """Return the columns in which at least one record has a value; seed and budget only if records differ in them."""
    same = {c.key for c in COLUMNS if c.key in ("seed", "budget") and len({c.show(r) for r in records}) == 1}
    return [c for c in COLUMNS if c.key not in same and any(c.show(r) != DASH for r in records)]
