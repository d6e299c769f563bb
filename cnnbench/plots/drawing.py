"""How pictures look, whatever they show: colours by network or family, panels, axes, names beside points."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox

from cnnbench.text import printable

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#666666")
"""Colours that people with colour blindness can tell apart (Okabe and Ito 2008, without its yellow)."""
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")
MANY = len(PALETTE)
"""Networks that can have a colour each; more share those of their family."""
LONGEST_NAME = 30
"""Characters of a name in a picture."""
LONGEST_LABEL = 44
"""Characters of a data set's label above a panel."""
MOST_PANELS = 24
"""Data sets of which a picture has a panel each; a caption says how many there are beyond them."""
PANELS_IN_A_ROW = 3
ROW_HEIGHT = 4.2
"""Inches of a row of panels where there are several."""
MOST_ENTRIES = 50
"""Entries of a legend; its last line says how many more families are drawn."""
MOST_NAMES = 60
"""Names that are written into a panel, unless more are needed."""
MOST_TICKS = 12
"""Labelled ticks of an axis."""


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    r"""Have matplotlib draw texts as they are, within the block or the decorated function.

    A dollar sign in a name would otherwise start a formula, and one that cannot be parsed ends the drawing. The setting
    is read when a text object is made, so figures are made and drawn within the block. A sign that the font lacks is
    drawn as a box; matplotlib's warning about it would go to stderr.
    """
    with mpl.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        yield


def shorten(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a text as pictures show it: printable, and cut in the middle if it is longer than `longest` characters."""
    text = printable(text)
    if len(text) <= longest:
        return text
    start = longest // 2
    return f"{text[:start]}…{text[start + 1 - longest :]}"


Pixels = np.ndarray[Any, np.dtype[Any]]


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
    return shorten(f"{source.rpartition('.')[2]}{colon}{stem or name}")


def _bare(model: str) -> str:
    return model.partition("(")[0]


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Names for pictures: without the path of a module, and of long arguments only the values, if still unique."""
    short = {m: _short(m) for m in dict.fromkeys(models)}
    uses = Counter(short.values())
    numbers: Counter[str] = Counter()
    names = {}
    for model, name in short.items():
        if uses[name] == 1:
            names[model] = name
        elif len(model) <= LONGEST_LABEL:
            names[model] = printable(model)
        else:
            numbers[name] += 1
            names[model] = f"{name} #{numbers[name]}"
    return names


def _short(model: str) -> str:
    source, colon, name = _bare(model).rpartition(":")
    bare = f"{source.rpartition('.')[2]}{colon}{name}"
    arguments = model[len(_bare(model)) :]
    if len(bare + arguments) > LONGEST_NAME:
        arguments = re.sub(r"(\w+)=True\b", r"\1", arguments)
        arguments = re.sub(r"(\w+)=False\b", r"no \1", arguments)
        arguments = re.sub(r"\w+=", "", arguments)
    return shorten(bare + arguments)


def panels(labels: Iterable[str], many: bool, height: float) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with a panel per data set, in rows, and its panels by label.

    Args:
        labels: Of the data sets, at most `MOST_PANELS`; a label may have several lines.
        many: Whether there are many networks: panels are wider, and leave room for the legend beside them.
        height: Inches, where one row holds all panels.
    """
    labels = list(dict.fromkeys(labels))
    columns = min(len(labels), PANELS_IN_A_ROW)
    rows = math.ceil(len(labels) / columns)
    width = 5.2 * columns
    if many:
        width = (8.4 if columns == 1 else 6.2 * columns) + 1.6
    figure = Figure(figsize=(width, height if rows == 1 else ROW_HEIGHT * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax in grid.flat[len(labels) :]:
        ax.remove()
    axes = dict(zip(labels, grid.flat, strict=False))
    for label, ax in axes.items():
        title = "\n".join(shorten(line, LONGEST_LABEL) for line in label.split("\n")[:2])
        ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e6e6e6", linewidth=0.7)
        ax.set_axisbelow(True)
    return figure, axes


def title_left(axes: Mapping[str, Axes], title: str) -> None:
    """Write the title of the vertical axis beside the first panel of each row."""
    for ax in list(axes.values())[::PANELS_IN_A_ROW]:
        ax.set_ylabel(title)


def family_legend(figure: Figure, shown: Iterable[Look], lines: bool) -> None:
    """Write the legend of families to the right of all panels; beyond `MOST_ENTRIES` it says how many are left out.

    Args:
        figure: With panels.
        shown: Looks in the picture.
        lines: Whether they are lines, not points.
    """
    looks = list({look.entry: look for look in shown}.values())
    handles = []
    for look in looks[:MOST_ENTRIES]:
        style: dict[str, Any] = {"linestyle": "", "marker": look.marker, "markersize": 6.5}
        if lines:
            style = {"linestyle": look.line, "linewidth": 1.8}
        handles.append(Line2D([], [], color=look.colour, label=look.entry, **style))
    if len(looks) > MOST_ENTRIES:
        handles.append(Line2D([], [], linestyle="", label=f"and {len(looks) - MOST_ENTRIES:,} more"))
    columns = 1 + min(len(looks), MOST_ENTRIES) // 26
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, ncols=columns)


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
    ticks = ticks[:: math.ceil(len(ticks) / MOST_TICKS)] if ticks else ticks
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
    if not names:
        return
    scale = ax.figure.dpi / 72
    points = ax.transData.transform([(name.x, name.y) for name in names])
    around = np.array([6.0, 7.0]) * scale
    fixed = [np.hstack([points - around, points + around]), *(np.array([box.extents]) for box in taken)]
    # Boxes that no name may cover, a row each: left, bottom, right, top. Those of the written names follow.
    boxes = np.vstack([*fixed, np.empty((len(names), 4))])
    filled = len(boxes) - len(names)
    written = 0
    for index in sorted(range(len(names)), key=lambda i: not names[i].needed):
        name, (x, y) = names[index], points[index]
        if written >= MOST_NAMES and not name.needed:
            break
        sides = list(dict.fromkeys((name.side, *SIDES, *(FAR_SIDES if name.needed else ()))))
        width, height = 0.6 * size * len(name.text) * scale, size * scale
        offsets = [_offset(side) for side in sides]
        places = np.array(
            [
                _box(x + dx * scale, y + dy * scale, side[0], width, height)
                for side, (dx, dy) in zip(sides, offsets, strict=True)
            ]
        )
        costs = _covered(places, boxes[:filled], ax.bbox)
        best = int(costs.argmin())
        if costs[best] and not name.needed:
            continue
        boxes[filled] = places[best]
        filled += 1
        written += 1
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6} if sides[best] in FAR_SIDES else None
        ax.annotate(
            name.text,
            (name.x, name.y),
            xytext=offsets[best],
            textcoords="offset points",
            fontsize=size,
            ha=("center", "left", "right")[sides[best][0]],
            va="center",
            arrowprops=line,
        )


def _offset(side: tuple[int, int]) -> tuple[float, float]:
    return (7.0 * side[0], 6.0 * side[1]) if side[0] else (0.0, 13.0 * side[1])


def _box(x: float, y: float, side: int, width: float, height: float) -> tuple[float, float, float, float]:
    left = {-1: x - width, 0: x - width / 2, 1: x}[side]
    return left, y - height / 2, left + width, y + height / 2


def _covered(places: Pixels, boxes: Pixels, panel: Bbox) -> Pixels:
    """Return for each place how many boxes it overlaps; one that leaves the panel counts for ten."""
    left, bottom, right, top = places.T[:, :, None]
    other_left, other_bottom, other_right, other_top = boxes.T[:, None, :]
    overlaps = (left <= other_right) & (other_left <= right) & (bottom <= other_top) & (other_bottom <= top)
    inside = (places[:, :2] >= panel.min) & (places[:, 2:] <= panel.max)
    return np.asarray(overlaps.sum(axis=1) + 10 * ~inside.all(axis=1))
