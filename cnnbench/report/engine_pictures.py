"""Engines side by side as a picture and as a chart of the page: latencies as points, a row per network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cnnbench.plots import drawing
from cnnbench.plots.drawing import PALETTE, plain_text, shorten
from cnnbench.record import Record
from cnnbench.report.engine_tables import SUSPECT, heading
from cnnbench.report.engines import EngineView, TimedRow, engine_views
from cnnbench.report.panels import Axis, log_axis
from cnnbench.report.ways import PRECISION_TITLES, RecordedWay
from cnnbench.text import number_of
from cnnbench.units import plain

NAME = "engines"
"""File name of the picture, without suffix."""
MOST_VIEWS = 6
"""Largest number of views in the picture and on the page."""
SHAPES = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "cross": "P"}
"""Shapes of the marks by their names on the page, as matplotlib names them; each stands for a number format."""
_SPREAD = 0.68
"""Share of a row over which the marks of a network are spread, so that intervals do not hide each other."""
_TITLE = "latency of one image, ms"


@dataclass(frozen=True)
class Look:
    """Look of a way: its colour is that of the engine, its shape that of the number format."""

    colour: str
    shape: str


def looks(ways: Sequence[RecordedWay]) -> dict[RecordedWay, Look]:
    """Return a look for each way, which no other one has as long as there are colours and shapes enough."""
    # Ways of one engine in one format, such as modes of torch, look like different engines.
    hues: dict[tuple[str, ...], None] = {}
    shapes: dict[str, None] = {}
    kinds = {}
    for way in ways:
        kind = (way.engine, way.version, way.mode, way.memory_format)
        # The memory format is torch's own choice in each number format, so it tells no ways apart by itself.
        alike = [other for other in ways if other.precision == way.precision and other.engine == way.engine]
        kinds[way] = kind if len(alike) > 1 else kind[:1]
        hues.setdefault(kinds[way])
        shapes.setdefault(way.precision)
    # The best known formats have the same shape in every picture.
    order = [name for name in PRECISION_TITLES if name in shapes]
    order += [name for name in shapes if name not in PRECISION_TITLES]
    names = list(SHAPES)
    found = {}
    for way in ways:
        colour = PALETTE[list(hues).index(kinds[way]) % len(PALETTE)]
        found[way] = Look(colour, names[order.index(way.precision) % len(names)])
    return found


def _offsets(count: int) -> list[float]:
    """Return how far the marks of a row are above its middle, in rows."""
    if count == 1:
        return [0.0]
    return [_SPREAD * (0.5 - place / (count - 1)) for place in range(count)]


def _ends(cell: TimedRow) -> tuple[float, float, float]:
    """Return lower end, middle and upper end of a latency; all equal without an interval."""
    middle, low, high = cell.latency
    return (middle if low is None else low), middle, (middle if high is None else high)


def _values(view: EngineView) -> list[float]:
    """Return all values that an axis has to hold."""
    return [value for cell in view.cells.values() for value in _ends(cell)]


# Picture


@plain_text()
def draw(records: Sequence[Record]) -> Figure | None:
    """Draw the latencies of all views below each other; None without a view."""
    views = engine_views(records)
    shown = views[:MOST_VIEWS]
    if not shown:
        return None
    # Inches of title and axis, and of a row, which has room for the marks of all ways.
    heights = [1.0 + len(view.networks) * (0.2 + 0.09 * len(view.ways)) for view in shown]
    figure = Figure(figsize=(8.4, sum(heights)), layout="constrained")
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)
    for ax, view in zip(axes.flat, shown, strict=True):
        _panel(ax, view, heading(view, views))
    return figure


def _panel(ax: Axes, view: EngineView, title: str) -> None:
    """Draw one view: a row per network, the fastest one in torch on top."""
    styles = looks(view.ways)
    drawing.log_axis(ax, ax.xaxis, _values(view), _TITLE, "{:g}".format)
    for way, offset in zip(view.ways, _offsets(len(view.ways)), strict=True):
        for row, network in enumerate(view.networks):
            cell = view.cells.get((network, way))
            if cell is not None:
                _mark(ax, cell, styles[way], -row + offset)
    for row in range(1, len(view.networks)):
        ax.axhline(0.5 - row, color="#e6e6e6", linewidth=0.7, zorder=0)
    ax.set_ylim(0.5 - len(view.networks), 0.5)
    ax.set_yticks([-row for row in range(len(view.networks))], [shorten(name) for name in view.networks])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#e6e6e6", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_title(shorten(title, 90), loc="left", fontsize=11, fontweight="bold")
    handles = []
    for way in view.ways:
        look = styles[way]
        marker = SHAPES[look.shape]
        handles.append(Line2D([], [], color=look.colour, marker=marker, linestyle="", label=view.names[way]))
    if any(low < high for low, _, high in map(_ends, view.cells.values())):
        handles.append(Line2D([], [], color="#555555", linewidth=1.4, label="95 % interval"))
    if any(cell.suspect for cell in view.cells.values()):
        handles.append(
            Line2D([], [], color="#555555", marker="o", markerfacecolor="white", linestyle="", label="suspect time")
        )
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)


def _mark(ax: Axes, cell: TimedRow, look: Look, height: float) -> None:
    """Draw a latency with its interval; a suspect one is open."""
    low, middle, high = _ends(cell)
    ax.plot([low, high], [height, height], color=look.colour, linewidth=1.4, solid_capstyle="butt")
    fill = "white" if cell.suspect else look.colour
    ax.plot(
        [middle], [height], SHAPES[look.shape], color=look.colour, markerfacecolor=fill, markersize=6.5, linestyle=""
    )


def description(records: Sequence[Record]) -> str:
    """Return what the picture shows, for readers who cannot see it."""
    rows = []
    for view in engine_views(records)[:MOST_VIEWS]:
        rows += [f"{network}: {_row_words(view, network)}" for network in view.networks]
    return "; ".join([f"Latency of one image by network and engine, {number_of(len(rows), 'row')}", *rows[:40]])


def _row_words(view: EngineView, network: str) -> str:
    """Return the latencies of a network in words."""
    parts = []
    for way in view.ways:
        cell = view.cells.get((network, way))
        if cell is not None:
            parts.append(_cell_words(view.names[way], cell))
    return ", ".join(parts)


def _cell_words(name: str, cell: TimedRow) -> str:
    """Return a latency with its interval in words."""
    low, middle, high = _ends(cell)
    interval = f" ({plain(low)} to {plain(high)})" if high > low else ""
    return f"{name} {plain(middle)}{SUSPECT if cell.suspect else ''} ms{interval}"


def caption(records: Sequence[Record]) -> list[str]:
    """Return the sentences below the picture."""
    views = engine_views(records)
    if not views:
        return []
    words = [
        "A row per network, in the order of their latency in torch. Colours are engines, shapes are number formats, "
        "and lines are 95 % intervals. An open mark is a suspect time."
    ]
    if len(views) > MOST_VIEWS:
        words.append(f"These are the first {MOST_VIEWS} of {len(views):,} groups of records; engines.csv has all.")
    return words


# Page


@dataclass(frozen=True)
class Mark:
    """A latency on the page, all positions in per cent from the left and from the bottom.

    Attributes:
        left: Position of the median.
        low, high: Positions of the ends of its interval.
        bottom: Position of its height.
        look: Colour and shape.
        suspect: Whether the latency is doubted.
        network: Name of the network.
        words: The latency in words, for the pointer.
    """

    left: float
    low: float
    high: float
    bottom: float
    look: Look
    suspect: bool
    network: str
    words: str


@dataclass(frozen=True)
class EnginePanel:
    """The chart of a view on the page.

    Attributes:
        x: Axis of the latency.
        height: Height of the chart in em.
        rows: Networks from the top, with the heights of the middle and of the lower end of their row in per cent from
            the bottom.
        marks: Latencies.
        key: Ways in words with their looks.
        words: The chart in words, for screen readers.
    """

    x: Axis
    height: float
    rows: Sequence[tuple[str, float, float]]
    marks: Sequence[Mark]
    key: Sequence[tuple[str, Look]]
    words: str


def panel(view: EngineView) -> EnginePanel:
    """Return the chart of a view."""
    x, styles, count = log_axis(_TITLE, _values(view)), looks(view.ways), len(view.networks)
    marks, rows, words = [], [], []
    for row, network in enumerate(view.networks):
        middle = 100 * (count - row - 0.5) / count
        rows.append((network, round(middle, 2), round(middle - 50 / count, 2)))
        words.append(f"{network}: {_row_words(view, network)}")
        for way, offset in zip(view.ways, _offsets(len(view.ways)), strict=True):
            cell = view.cells.get((network, way))
            if cell is not None:
                low, median, high = map(x.at, _ends(cell))
                bottom = round(middle + 100 * offset / count, 2)
                told = f"{network}, {_cell_words(view.names[way], cell)}"
                marks.append(Mark(median, low, high, bottom, styles[way], cell.suspect, network, told))
    key = [(view.names[way], styles[way]) for way in view.ways]
    height = round(count * (0.9 + 0.7 * len(view.ways)), 1)
    return EnginePanel(x, height, rows, marks, key, f"Latency by engine on {view.label}: {'; '.join(words)}")
