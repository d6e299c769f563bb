"""How pictures look, whatever they show: colours by network or family, panels, axes, names beside points."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#666666")
"""Colours that people with colour blindness can tell apart (Okabe and Ito 2008, without its yellow)."""
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")
MANY = len(PALETTE)
"""Networks that can have a colour each; more share those of their family."""
LONGEST_NAME = 30
"""Characters of a name in a picture."""


class Look(NamedTuple):
    """How a network is drawn, and under which name the legend has it."""

    colour: str
    marker: str
    line: str
    entry: str


@dataclass(frozen=True)
class Scheme:
    """How all networks of a report are drawn, in every picture alike.

    Attributes:
        many: Whether there are more networks than colours, so that families share one, and not all are named.
        looks: By network.
        names: Short ones, by network.
    """

    many: bool
    looks: Mapping[str, Look]
    names: Mapping[str, str]

    @classmethod
    def of(cls, models: Iterable[str]) -> Scheme:
        models = list(dict.fromkeys(models))
        many = len(models) > MANY
        names = short_names(models)
        return cls(many, _looks({m: family(m) if many else m for m in models}, names), names)

    @property
    def marker_size(self) -> float:
        return 6 if self.many else 8

    @property
    def letter_size(self) -> float:
        return 8 if self.many else 9


def _looks(groups: Mapping[str, str], names: Mapping[str, str]) -> dict[str, Look]:
    """A look per group. After the palette's end colours repeat with other markers and lines.

    No two of 64 groups have the same colour and marker, no two of 32 the same colour and line.
    """
    members = Counter(groups.values())
    places = {group: index for index, group in enumerate(members)}
    found = {}
    for model, group in groups.items():
        turn, place = divmod(places[group], len(PALETTE))
        marker, line = MARKERS[(place + turn) % len(MARKERS)], LINES[turn % len(LINES)]
        found[model] = Look(PALETTE[place], marker, line, names[model] if members[group] == 1 else group)
    return found


def family(model: str) -> str:
    """The words that a network's name begins with: ``ResNet`` of ``ResNet18``, with the source if it has one.

    The letter of a version or size goes too: ``MobileNet`` of ``MobileNetV2`` and of ``mobilenet_v2``.
    """
    source, colon, name = _bare(model).rpartition(":")
    words = re.match(r"[^\W\d]*", name)
    stem = re.sub(r"(?<=[a-z])([VB]|_[a-z]?)$", "", words.group() if words else "")
    return f"{source.rpartition('.')[2]}{colon}{stem or name}"


def _bare(model: str) -> str:
    return model.partition("(")[0]


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Names for pictures: without the path of a module, and of long arguments only the values, if still unique."""
    models = list(dict.fromkeys(models))
    short = {m: _short(m) for m in models}
    uses = Counter(short.values())
    return {m: name if uses[name] == 1 else m for m, name in short.items()}


def _short(model: str) -> str:
    source, colon, name = _bare(model).rpartition(":")
    bare = f"{source.rpartition('.')[2]}{colon}{name}"
    arguments = model[len(_bare(model)) :]
    if len(bare + arguments) > LONGEST_NAME:
        arguments = re.sub(r"(\w+)=True\b", r"\1", arguments)
        arguments = re.sub(r"(\w+)=False\b", r"no \1", arguments)
        arguments = re.sub(r"\w+=", "", arguments)
    text = bare + arguments
    half = LONGEST_NAME // 2
    return text if len(text) <= LONGEST_NAME else f"{text[:half]}…{text[1 - half :]}"


def panels(labels: Iterable[str], many: bool, height: float) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel per data set; wider for many networks, whose legend stands beside the panels."""
    labels = list(dict.fromkeys(labels))
    each = 5.2 if not many else 8.4 if len(labels) == 1 else 6.2
    figure = Figure(figsize=(each * len(labels) + 1.6 * many, height), layout="constrained")
    axes = figure.subplots(1, len(labels), squeeze=False)[0]
    for label, ax in zip(labels, axes, strict=True):
        ax.set_title(label, loc="left", fontsize=11, fontweight="bold")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e6e6e6", linewidth=0.7)
        ax.set_axisbelow(True)
    return figure, dict(zip(labels, axes, strict=True))


def family_legend(figure: Figure, shown: Iterable[Look], lines: bool) -> None:
    """The legend of families, to the right of all panels.

    Args:
        figure: With panels.
        shown: Looks in the picture.
        lines: Whether they are lines, not points.
    """
    handles = {
        look.entry: Line2D([], [], color=look.colour, linestyle=look.line, linewidth=1.8, label=look.entry)
        if lines
        else Line2D([], [], color=look.colour, linestyle="", marker=look.marker, markersize=6.5, label=look.entry)
        for look in shown
    }
    columns = 1 + len(handles) // 26
    figure.legend(handles=handles.values(), loc="outside right upper", frameon=False, fontsize=9, ncols=columns)


def log_axis(ax: Axes, axis: Axis, values: Sequence[float], title: str, tick: Callable[[float], str]) -> None:
    """Makes an axis of a panel logarithmic and ends it around the values, with ticks at round numbers."""
    low, high = min(values) / 1.8, max(values) * 1.8
    if axis is ax.xaxis:
        ax.set(xscale="log", xlim=(low, high))
    else:
        ax.set(yscale="log", ylim=(low, high))
    steps = (1,) if high / low > 30000 else (1, 3) if high / low > 30 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axis.set_label_text(title)


class Name(NamedTuple):
    """A name to be written beside a point.

    Attributes:
        x, y: The point, in the units of the axes.
        text: The name.
        needed: Whether it is written even where it covers something.
        side: The preferred one: right (1) or left (-1) of the point, above (1) or below (-1).
    """

    x: float
    y: float
    text: str
    needed: bool = True
    side: tuple[int, int] = (1, 1)


SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))
FAR_SIDES = ((-1, 3), (1, 3), (1, -3), (-1, -3))
"""Farther up or down, for names that are needed; a thin line then leads to the point."""


def write_names(ax: Axes, names: Sequence[Name], size: float, taken: Iterable[Bbox] = ()) -> None:
    """Writes names beside their points, each on the side where it covers the least, the needed ones first.

    Args:
        ax: Panel whose place in the figure is settled.
        names: One per point, also for points that need no name, since no name may cover them.
        size: Of the letters, in points.
        taken: Boxes to be left free, in pixels.
    """
    scale = ax.figure.dpi / 72
    points = [ax.transData.transform((name.x, name.y)) for name in names]
    boxes = [Bbox.from_extents(x - 6 * scale, y - 7 * scale, x + 6 * scale, y + 7 * scale) for x, y in points]
    boxes += taken
    for name, (x, y) in sorted(zip(names, points, strict=True), key=lambda pair: not pair[0].needed):
        offsets = {side: _offset(side) for side in (name.side, *SIDES, *(FAR_SIDES if name.needed else ()))}
        places = {
            side: _box(x + dx * scale, y + dy * scale, side[0], 0.6 * size * len(name.text) * scale, size * scale)
            for side, (dx, dy) in offsets.items()
        }
        costs = {side: _covered(box, boxes, ax.bbox) for side, box in places.items()}
        best = min(costs, key=costs.__getitem__)
        if costs[best] and not name.needed:
            continue
        boxes.append(places[best])
        ax.annotate(
            name.text, (name.x, name.y), xytext=offsets[best], textcoords="offset points", fontsize=size,
            ha=("center", "left", "right")[best[0]], va="center",
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6} if best in FAR_SIDES else None,
        )  # fmt: skip


def _offset(side: tuple[int, int]) -> tuple[float, float]:
    return (7.0 * side[0], 6.0 * side[1]) if side[0] else (0.0, 13.0 * side[1])


def _box(x: float, y: float, side: int, width: float, height: float) -> Bbox:
    left = {-1: x - width, 0: x - width / 2, 1: x}[side]
    return Bbox.from_extents(left, y - height / 2, left + width, y + height / 2)


def _covered(box: Bbox, boxes: Iterable[Bbox], panel: Bbox) -> int:
    outside = not all(panel.contains(*corner) for corner in box.corners())
    return sum(box.overlaps(other) for other in boxes) + 10 * outside
