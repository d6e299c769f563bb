"""Charts of the HTML page: points and curves placed in per cent of a panel, which the page draws with HTML and CSS.

The page draws its charts itself, so that they follow the width of the screen, dark mode and the pointer. Each panel
shows one data set. The pictures in the folder ``figures`` are drawn by `cnnbench.report.charts` from the same functions
of `cnnbench.report.findings`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from cnnbench.plots.drawing import MANY, MOST_PANELS, PALETTE, family, round_numbers
from cnnbench.record import Record
from cnnbench.references import percent
from cnnbench.report.charts import Curve, with_curves
from cnnbench.report.contenders import Contender, contenders, rivals_by_label
from cnnbench.report.findings import LATENCY, MACS, front
from cnnbench.report.pareto import pareto_front
from cnnbench.units import plain, scaled, short

MOST_POINTS_ON_A_CURVE = 80
"""Largest number of points of a learning curve on the page; a longer curve is thinned out evenly."""
LINES = ("", "6 3", "2 3", "8 3 2 3")
"""Dashes of the curves whose colours repeat, in pixels: a stroke, a gap, and so on; empty for a solid line."""


NAME_SIDES = ("right", "left", "below-right", "below-left", "above-right", "above-left")
"""Sides of a point on which its name may stand, in order of preference; the page's script reads them too."""
_WIDTH, _HEIGHT = 420, 272
"""Usual size of a panel on the page in pixels, for which names are placed."""
_LETTER, _LINE = 6.8, 14
"""Mean width of a letter and height of a line of a name in pixels."""


class Tick(NamedTuple):
    """A labelled position on an axis.

    Attributes:
        at: Position in per cent of the axis.
        text: Label.
    """

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """An axis of a panel.

    Attributes:
        title: What the axis shows, with its unit.
        low: Value at the start.
        high: Value at the end.
        logarithmic: Whether equal ratios have equal lengths.
        ticks: Labelled positions.
    """

    title: str
    low: float
    high: float
    logarithmic: bool
    ticks: Sequence[Tick]

    def at(self, value: float) -> float:
        """Return the position of a value in per cent of the axis."""
        return _position(value, self.low, self.high, self.logarithmic)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A network in a panel.

    Attributes:
        name: Name of the network with the settings in which it differs from others of that name.
        model: Title of its record, by which rows, points and curves of a network find each other.
        left: Position on the horizontal axis in per cent.
        bottom: Position on the vertical axis in per cent.
        low: Lower end of the uncertainty on the vertical axis in per cent.
        high: Upper end of it.
        words: The values of the point, for the pointer and for screen readers.
        named: Whether its name is to be shown without being asked for.
        short: Whether its accuracy is that of a short training.
        record: First record of the network.
        side: Side of the point on which its name stands, one of `NAME_SIDES`; empty if the name is not shown.
    """

    name: str
    model: str
    left: float
    bottom: float
    low: float
    high: float
    words: str
    named: bool
    short: bool
    record: Record
    side: str = ""


@dataclass(frozen=True)
class Panel:
    """A scatter chart of the networks on one data set.

    Attributes:
        title: Label of the data set.
        kind: What the chart compares, such as "accuracy and latency".
        x: Horizontal axis.
        y: Vertical axis.
        points: Networks.
        steps: Corners of the Pareto front in per cent; empty if the chart has none.
    """

    title: str
    kind: str
    x: Axis
    y: Axis
    points: Sequence[Point]
    steps: Sequence[tuple[float, float]]

    @property
    def words(self) -> str:
        """Return the chart in words, for screen readers."""
        return f"{self.kind} on {self.title}: " + "; ".join(point.words for point in self.points)


@dataclass(frozen=True)
class Line:
    """The learning curve of a record on the page.

    Attributes:
        name: Title of the record.
        colour: Colour; empty for a curve in the background.
        dash: Dashes, one of `LINES`.
        points: Positions in per cent, as the attribute ``points`` of an SVG polyline.
        words: The last value.
        record: Record of the curve.
    """

    name: str
    colour: str
    dash: str
    points: str
    words: str
    record: Record


@dataclass(frozen=True)
class CurvePanel:
    """The learning curves on one data set, of all networks or of a family.

    Attributes:
        label: Label of the data set.
        group: Networks of the chart, if the data set has several charts: a family, or those without a family.
        x: Horizontal axis.
        y: Vertical axis.
        lines: Curves in colour.
        others: Curves of other networks, which are drawn in grey behind them.
    """

    label: str
    group: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    others: Sequence[Line]

    @property
    def key(self) -> list[Line]:
        """Return one line for each network, for the key; the seeds of a network look alike."""
        return list({line.name: line for line in self.lines}.values())


class _Cost(NamedTuple):
    """A cost that accuracy is compared with.

    Attributes:
        key: Key of the figure.
        title: Title of the axis.
        name: Cost in the title of a chart.
        show: Function that formats a value with its unit.
    """

    key: str
    title: str
    name: str
    show: Callable[[float], str]


LATENCY_COST = _Cost(LATENCY, "latency of one image, ms", "latency", lambda value: f"{plain(value)} ms")
MACS_COST = _Cost(MACS, "multiply-adds (MACs) of one image", "multiply-adds", lambda value: f"{short(value)} MACs")


def scatter_panels(records: Sequence[Record]) -> list[Panel]:
    """Return the charts that compare networks: for each data set, accuracy against both costs, and the costs.

    Networks that were measured under different settings or on different machines are in different charts.
    """
    made: list[Panel] = []
    groups = rivals_by_label(contenders(records))
    for title, entries in islice(groups.items(), MOST_PANELS):
        for cost in (LATENCY_COST, MACS_COST):
            panel = _accuracy_panel(title, entries, cost)
            if panel:
                made.append(panel)
        panel = _cost_panel(title, entries)
        if panel:
            made.append(panel)
    return made


def _accuracy_panel(title: str, entries: Sequence[Contender], cost: _Cost) -> Panel | None:
    """Return the chart of accuracy against a cost; None unless two networks have both.

    If accuracies after full or reference trainings are known, only these are shown: on the scale of short trainings,
    the differences between trained networks could not be seen.
    """
    rivals = [e for e in entries if e.has(cost.key) and e.mean(cost.key) > 0]
    settled = [e for e in rivals if e.settled is not None]
    if len(settled) < 2:
        settled = []
        rivals = [e for e in rivals if e.has("test_accuracy")]
    shown = settled or rivals
    if len(shown) < 2:
        return None
    uncertain = [_accuracy_spread(e) for e in shown]
    x = log_axis(cost.title, [e.mean(cost.key) for e in shown])
    y = _accuracy_axis(uncertain)
    best = front(shown, cost.key)
    points = []
    for entry, spread in zip(shown, uncertain, strict=True):
        words = f"{entry.name}: {entry.accuracy_words}, {cost.show(entry.mean(cost.key))}"
        place = _Place(x.at(entry.mean(cost.key)), *map(y.at, spread))
        points.append(_point(entry, place, words, len(shown) <= MANY or entry in best))
    steps = _steps([(x.at(e.mean(cost.key)), y.at(e.settled)) for e in best if e.settled is not None])
    kind = f"Accuracy and {cost.name}"
    return Panel(title, kind, x, y, _with_sides(points), steps)


def _cost_panel(title: str, entries: Sequence[Contender]) -> Panel | None:
    """Return the chart of latency against multiply-adds; None unless three networks have both."""
    rivals = [e for e in entries if e.has(LATENCY, MACS) and min(e.mean(LATENCY), e.mean(MACS)) > 0]
    # Any two points lie on a line, so the chart would say nothing.
    if len(rivals) < 3:
        return None
    x = log_axis(MACS_COST.title, [e.mean(MACS) for e in rivals])
    y = log_axis(LATENCY_COST.title, [e.mean(LATENCY) for e in rivals])
    # Networks that no other beats in both costs are named; of the rest, the pointer shows the names.
    pairs = [(e.mean(MACS), -e.mean(LATENCY)) for e in rivals]
    ends = {*pareto_front(pairs), *pareto_front([(-macs, -latency) for macs, latency in pairs])}
    points = []
    for index, entry in enumerate(rivals):
        macs, latency = entry.mean(MACS), entry.mean(LATENCY)
        words = f"{entry.name}: {MACS_COST.show(macs)}, {LATENCY_COST.show(latency)}"
        place = _Place(x.at(macs), y.at(latency), y.at(latency), y.at(latency))
        points.append(_point(entry, place, words, len(rivals) <= MANY or index in ends, short=False))
    return Panel(title, "Latency and multiply-adds", x, y, _with_sides(points), ())


class _Place(NamedTuple):
    """Position of a point: horizontally, and vertically with the ends of its uncertainty, in per cent."""

    left: float
    low: float
    middle: float
    high: float


def _point(entry: Contender, place: _Place, words: str, named: bool, short: bool | None = None) -> Point:
    """Return the point of a network; it is marked as that of a short training unless `short` says otherwise."""
    if short is None:
        short = entry.settled is None
    return Point(
        name=entry.name,
        model=entry.records[0].title,
        left=place.left,
        bottom=place.middle,
        low=place.low,
        high=place.high,
        words=words,
        named=named,
        short=short,
        record=entry.records[0],
    )


class _Box(NamedTuple):
    """A rectangle in a panel, in pixels from its lower left corner."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: _Box) -> bool:
        """Return whether two rectangles overlap."""
        beside = self.right <= other.left or other.right <= self.left
        return not beside and self.bottom < other.top and other.bottom < self.top


def _with_sides(points: Sequence[Point]) -> list[Point]:
    """Return the points with the side on which each name stands, so that no name covers another or a point.

    Names are placed one after the other; a name for which no side is free is shown only when it is pointed at.

    The page's script places the names again (``arrange`` in ``pages/report.js``). Both are needed: a page without
    scripts has these sides alone, which fit a panel of the usual size, and only a browser knows how wide a panel and
    its texts are on a phone.
    """
    taken = []
    for point in points:
        left, bottom = point.left / 100 * _WIDTH, point.bottom / 100 * _HEIGHT
        taken.append(_Box(left - 6, bottom - 6, left + 6, bottom + 6))
    placed = []
    for point in points:
        side = ""
        for candidate in NAME_SIDES if point.named else ():
            box = _name_box(point, candidate)
            inside = box.left >= -20 and box.right <= _WIDTH + 8
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                side = candidate
                break
        placed.append(replace(point, side=side))
    return placed


def _name_box(point: Point, side: str) -> _Box:
    """Return the rectangle of a name on one side of its point."""
    width = _LETTER * len(point.name) + 4
    left, bottom = point.left / 100 * _WIDTH, point.bottom / 100 * _HEIGHT
    start = left + 7
    if side.endswith("left"):
        start = left - 7 - width
    # A name beside its point is a little higher than the point, so that whiskers stay visible.
    foot = bottom - 4
    if side.startswith("below"):
        foot = bottom - 8 - _LINE
    if side.startswith("above"):
        foot = bottom + 8
    return _Box(start, foot, start + width, foot + _LINE)


def _accuracy_spread(entry: Contender) -> tuple[float, float, float]:
    """Return lower end, middle and upper end of the accuracy that a chart shows of a network."""
    known = entry.reference
    if known is not None:
        return known.low, known.accuracy, known.high
    low, high = entry.spread("test_accuracy")
    return low, entry.mean("test_accuracy"), high


def log_axis(title: str, values: Sequence[float]) -> Axis:
    """Return a logarithmic axis around values above 0, with ticks at round numbers."""
    low, high = min(values), max(values)
    # The margin is a twelfth of the range on each side, and at least a quarter of a value.
    margin = max((high / low) ** (1 / 12), 1.25)
    low, high = low / margin, high * margin
    ticks = []
    for value in round_numbers(low, high):
        number, prefix = scaled(value)
        ticks.append(Tick(_position(value, low, high, True), f"{number:g}{prefix}"))
    return Axis(title, low, high, True, ticks)


def _accuracy_axis(spreads: Sequence[tuple[float, float, float]]) -> Axis:
    """Return the linear axis of accuracies, from below the lowest end of an uncertainty to above the highest."""
    low = min(spread[0] for spread in spreads)
    high = max(spread[2] for spread in spreads)
    margin = max(0.08 * (high - low), 0.002)
    return _linear_axis("test accuracy", max(0.0, low - margin), min(1.0, high + margin))


def _linear_axis(title: str, low: float, high: float) -> Axis:
    """Return a linear axis of shares, with about five ticks in per cent."""
    ticks = []
    for value in MaxNLocator(5).tick_values(low, high):
        if low <= value <= high:
            ticks.append(Tick(_position(value, low, high, False), f"{100 * value:.6g} %"))
    return Axis(title, low, high, False, ticks)


def _position(value: float, low: float, high: float, logarithmic: bool) -> float:
    """Return the position of a value between two others in per cent, rounded to a hundredth."""
    if logarithmic:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return round(100 * (value - low) / (high - low), 2)


def _steps(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the line of a front: from network to network at the accuracy of the cheaper one, then up."""
    if len(corners) < 2:
        return []
    line = [corners[0]]
    for left, bottom in corners[1:]:
        line += [(left, line[-1][1]), (left, bottom)]
    return line


def curve_panels(records: Sequence[Record]) -> list[CurvePanel]:
    """Return the charts of the learning curves: one for each data set, or for each family if there are many networks.

    A chart of a family has the curves of the other networks behind it, so that it can be compared with the others.
    """
    made: list[CurvePanel] = []
    for label, curves in islice(with_curves(records).items(), MOST_PANELS):
        x = _thinned_axis(log_axis("training images seen", [images for curve in curves for images in curve.images]))
        highest = max(accuracy for curve in curves for accuracy in curve.accuracies)
        # The axis ends at the next multiple of 20 %, so that short trainings do not leave most of the chart empty.
        y = _linear_axis("training accuracy", 0.0, min(1.0, math.ceil(5 * highest) / 5) or 1.0)
        made += _curve_panels(label, curves, x, y)
    return made[: 2 * MOST_PANELS]


def _thinned_axis(axis: Axis) -> Axis:
    """Return a logarithmic axis with ticks at powers of ten alone, if there are three of them or more."""
    powers = [tick for tick in axis.ticks if tick.text.strip("0kMGT") == "1"]
    return replace(axis, ticks=powers) if len(powers) > 2 else axis


def _curve_panels(label: str, curves: Sequence[Curve], x: Axis, y: Axis) -> Iterator[CurvePanel]:
    """Yield the charts of the learning curves on one data set."""
    names = list(dict.fromkeys(curve.record.title for curve in curves))
    if len(names) <= MANY:
        yield CurvePanel(label, "", x, y, _lines(curves, _styles(names), x, y), ())
        return
    grey = _lines(curves, dict.fromkeys(names, ("", "")), x, y)
    for group, members in _families(names).items():
        own = [curve for curve in curves if curve.record.title in members]
        others = [line for line in grey if line.name not in members]
        yield CurvePanel(label, group, x, y, _lines(own, _styles(members), x, y), others)


def _families(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of networks by family; those that are alone in their family share groups at the end."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(family(name), []).append(name)
    groups = {group: members for group, members in families.items() if len(members) > 1}
    single = [name for name in names if len(families[family(name)]) == 1]
    for start in range(0, len(single), MANY):
        title = "Others" if start == 0 else f"Others ({start // MANY + 1})"
        groups[title] = single[start : start + MANY]
    return groups


def _styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a kind of dashes for each name."""
    styles = {}
    for index, name in enumerate(names):
        turn, place = divmod(index, len(PALETTE))
        styles[name] = (PALETTE[place], LINES[turn % len(LINES)])
    return styles


def _lines(curves: Sequence[Curve], styles: Mapping[str, tuple[str, str]], x: Axis, y: Axis) -> list[Line]:
    """Return curves as lines of a chart.

    Args:
        curves: Learning curves.
        styles: Colour and dashes by name of the network.
        x: Horizontal axis.
        y: Vertical axis.
    """
    lines = []
    for curve in curves:
        pairs = _thinned(list(zip(curve.images, curve.accuracies, strict=True)))
        # An SVG picture counts its vertical coordinate from the top.
        points = " ".join(f"{x.at(images):g},{100 - y.at(accuracy):g}" for images, accuracy in pairs)
        colour, dash = styles[curve.record.title]
        words = f"{curve.record.title}: {percent(curve.accuracies[-1])} after {short(curve.images[-1])} images"
        lines.append(Line(curve.record.title, colour, dash, points, words, curve.record))
    return lines


def _thinned(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a part of the points of a curve, the first and the last among them."""
    if len(pairs) <= MOST_POINTS_ON_A_CURVE:
        return list(pairs)
    last = len(pairs) - 1
    places = {round(index * last / (MOST_POINTS_ON_A_CURVE - 1)) for index in range(MOST_POINTS_ON_A_CURVE)}
    return [pairs[place] for place in sorted(places)]
