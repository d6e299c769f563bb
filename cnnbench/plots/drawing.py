"""Common look of the charts: colours by network or family, panels, logarithmic axes, and names beside points."""

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
"""Largest number of networks with a colour each; in a larger group, the networks of a family share a colour."""
LONGEST_NAME = 30
"""Largest number of characters of a name in a picture."""
LONGEST_LABEL = 44
"""Largest number of characters in a line of a data set's label above a panel."""
MOST_PANELS = 24
"""Largest number of panels in a picture, one per data set; the caption says how many data sets are left out."""
PANELS_IN_A_ROW = 3
"""Largest number of panels in a row."""
ROW_HEIGHT = 4.2
"""Height in inches of a row of panels in a picture with several rows."""
MOST_ENTRIES = 50
"""Largest number of families in a legend; its last line says how many more are drawn."""
MOST_NAMES = 60
"""Number of names in a panel beyond which only needed names are written."""
MOST_TICKS = 12
"""Largest number of labelled ticks on a logarithmic axis."""


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    r"""Have matplotlib draw texts as they are, within the block or the decorated function.

    Otherwise a dollar sign in a name would start a formula, and a formula that cannot be parsed is an error. Matplotlib
    reads the setting when it creates a text object, so a figure has to be created and drawn within the block. A
    character that the font lacks is drawn as a box; matplotlib's warning about it, which would go to stderr, is
    suppressed.
    """
    with mpl.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        yield


def shorten(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a text for a picture: with escapes for unprintable characters, and shortened in the middle if too long.

    Args:
        text: Any text.
        longest: Largest number of characters of the result.
    """
    text = printable(text)
    if len(text) <= longest:
        return text
    start = longest // 2
    return f"{text[:start]}…{text[start + 1 - longest :]}"


Pixels = np.ndarray[Any, np.dtype[Any]]
"""Array of coordinates in pixels of the figure."""


class Look(NamedTuple):
    """Look of a network in a chart: colour, marker and line style, and the entry under which the legend lists it."""

    colour: str
    marker: str
    line: str
    entry: str


@dataclass(frozen=True)
class Scheme:
    """Looks and names of all networks of a report, the same in every picture.

    Attributes:
        many: Whether there are more networks than colours. The networks of a family then share a colour, and only
            some networks are named.
        looks: Look of each network.
        names: Short name of each network.
    """

    many: bool
    looks: Mapping[str, Look]
    names: Mapping[str, str]

    @classmethod
    def of(cls, models: Iterable[str]) -> Scheme:
        """Return the scheme for networks, by their names; names that occur twice count once."""
        models = list(dict.fromkeys(models))
        many = len(models) > MANY
        names = short_names(models)
        groups = {model: family(model) if many else model for model in models}
        return cls(many, _looks(groups, names), names)

    @property
    def marker_size(self) -> float:
        """Return the size of markers in points."""
        return 6 if self.many else 8

    @property
    def letter_size(self) -> float:
        """Return the size of letters in points."""
        return 8 if self.many else 9


def _looks(groups: Mapping[str, str], names: Mapping[str, str]) -> dict[str, Look]:
    """Return a look for each network, the same within a group.

    After the last colour of the palette the colours repeat, with other markers and lines. Up to 64 groups differ in
    colour or marker, up to 32 groups in colour or line.

    Args:
        groups: Group of each network: its family, or the network itself.
        names: Short name of each network, for the legend entry of a group with one member.
    """
    members = Counter(groups.values())
    places = {group: index for index, group in enumerate(members)}
    looks = {}
    for model, group in groups.items():
        # `turn` counts how often the palette has been used up. The shift by `turn` pairs a repeated colour with another
        # marker.
        turn, place = divmod(places[group], len(PALETTE))
        marker, line = MARKERS[(place + turn) % len(MARKERS)], LINES[turn % len(LINES)]
        # A network that is alone in its group has its own name in the legend.
        entry = names[model] if members[group] == 1 else group
        looks[model] = Look(PALETTE[place], marker, line, entry)
    return looks


def family(model: str) -> str:
    """Return the family of a network: the letters at the start of its name, such as ``ResNet`` for ``ResNet18``.

    A letter that marks a version or a size is removed: ``MobileNet`` for ``MobileNetV2``, ``mobilenet`` for
    ``mobilenet_v2``. The source of a network, such as ``torchvision``, stays in front.
    """
    source, colon, name = _bare(model).rpartition(":")
    # The letters at the start, then without a capital V or B at their end, or an underscore and a letter.
    letters = re.split(r"[\W\d]", name, maxsplit=1)[0]
    stem = re.sub(r"(?<=[a-z])([VB]|_[a-z]?)$", "", letters)
    return shorten(f"{source.rpartition('.')[2]}{colon}{stem or name}")


def _bare(model: str) -> str:
    """Return a network's name without its arguments."""
    return model.partition("(")[0]


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Return a name for pictures for each network, unique among them.

    A short name is without the path of a module and, if it is long, with the values of the arguments only. Networks
    with the same short name keep their full names, or get a number if these are longer than `LONGEST_LABEL`.
    """
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
    """Return a network's name without the path of its module, shortened if it is longer than `LONGEST_NAME`."""
    source, colon, name = _bare(model).rpartition(":")
    bare = f"{source.rpartition('.')[2]}{colon}{name}"
    arguments = model[len(_bare(model)) :]
    # Shorten arguments in steps: ``bn=True`` becomes ``bn``, ``bn=False`` becomes ``no bn``, ``width=2`` becomes ``2``.
    if len(bare + arguments) > LONGEST_NAME:
        arguments = re.sub(r"(\w+)=True\b", r"\1", arguments)
        arguments = re.sub(r"(\w+)=False\b", r"no \1", arguments)
        arguments = re.sub(r"\w+=", "", arguments)
    return shorten(bare + arguments)


def panels(labels: Iterable[str], many: bool, height: float) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with a panel for each data set, and the panels by label.

    Args:
        labels: Labels of the data sets, at most `MOST_PANELS`; the first two lines of a label are shown.
        many: Whether there are many networks, for which panels are wider and leave room for the legend at the side.
        height: Height of the figure in inches if all panels fit in one row; otherwise rows have `ROW_HEIGHT`.
    """
    labels = list(dict.fromkeys(labels))
    columns = min(len(labels), PANELS_IN_A_ROW)
    rows = math.ceil(len(labels) / columns)
    if rows > 1:
        height = ROW_HEIGHT * rows
    figure = Figure(figsize=(_figure_width(columns, many), height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    # The last row may be incomplete.
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


def _figure_width(columns: int, many: bool) -> float:
    """Return the width of a figure in inches; arguments as in `panels`, with the number of panels in a row."""
    if not many:
        return 5.2 * columns
    panel = 8.4 if columns == 1 else 6.2
    return panel * columns + 1.6


def title_left(axes: Mapping[str, Axes], title: str) -> None:
    """Write the title of the vertical axis at the first panel of each row.

    Args:
        axes: Panels by label, as returned by `panels`.
        title: Title of the axis.
    """
    for ax in list(axes.values())[::PANELS_IN_A_ROW]:
        ax.set_ylabel(title)


def family_legend(figure: Figure, shown: Iterable[Look], lines: bool) -> None:
    """Write the legend of families to the right of all panels; beyond `MOST_ENTRIES` it says how many are left out.

    Args:
        figure: Figure with its panels.
        shown: Looks of the networks in the picture.
        lines: Whether the networks are drawn as lines; otherwise they are points.
    """
    # The networks of a family have one look, so any of them can stand for the family.
    looks = list({look.entry: look for look in shown}.values())
    handles = []
    for look in looks[:MOST_ENTRIES]:
        style: dict[str, Any] = {"linestyle": "", "marker": look.marker, "markersize": 6.5}
        if lines:
            style = {"linestyle": look.line, "linewidth": 1.8}
        handles.append(Line2D([], [], color=look.colour, label=look.entry, **style))
    if len(looks) > MOST_ENTRIES:
        handles.append(Line2D([], [], linestyle="", label=f"and {len(looks) - MOST_ENTRIES:,} more"))
    # A column of the legend holds about 26 entries.
    columns = 1 + min(len(looks), MOST_ENTRIES) // 26
    # A place that begins with "outside" makes the constrained layout reserve room beside the panels.
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, ncols=columns)


def log_axis(ax: Axes, axis: Axis, values: Sequence[float], title: str, tick: Callable[[float], str]) -> None:
    """Make an axis of a panel logarithmic, with limits around the values and ticks at round numbers.

    Args:
        ax: Panel.
        axis: Horizontal or vertical axis of the panel.
        values: Positive values that the axis shows.
        title: Title of the axis.
        tick: Function that formats the value of a tick.
    """
    low, high = min(values) / 1.8, max(values) * 1.8
    # The scale is set first, because setting it replaces the locators and formatters of the axis.
    if axis is ax.xaxis:
        ax.set(xscale="log", xlim=(low, high))
    else:
        ax.set(yscale="log", ylim=(low, high))
    axis.set_major_locator(FixedLocator(round_numbers(low, high)))
    # matplotlib would label the minor ticks too on an axis of about one power of ten.
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axis.set_label_text(title)


def round_numbers(low: float, high: float) -> list[float]:
    """Return at most `MOST_TICKS` round numbers between two positive ones, for a logarithmic axis."""
    # The wider the range, the fewer numbers per power of ten.
    steps: tuple[int, ...] = (1, 2, 5)
    if high / low > 30000:
        steps = (1,)
    elif high / low > 30:
        steps = (1, 3)
    numbers = []
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for step in steps:
            number = step * 10.0**power
            if low <= number <= high:
                numbers.append(number)
    # If there are still too many, only every n-th one stays.
    every = max(1, math.ceil(len(numbers) / MOST_TICKS))
    return numbers[::every]


class Name(NamedTuple):
    """Name to write beside a point.

    Attributes:
        x, y: Coordinates of the point, in the units of the axes.
        text: Text to write.
        needed: Whether the name is written even where it covers something.
        side: Preferred side: to the right (1) or left (-1) of the point, and above (1) or below (-1) it.
    """

    x: float
    y: float
    text: str
    needed: bool = True
    side: tuple[int, int] = (1, 1)


SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))
"""Sides on which a name may stand, in order of preference: (right or left, above or below), 0 for centred."""
FAR_SIDES = ((-1, 3), (1, 3), (1, -3), (-1, -3))
"""Further sides for needed names, higher above or lower below the point; a thin line then leads to the point."""


def write_names(ax: Axes, names: Sequence[Name], size: float, taken: Iterable[Bbox] = ()) -> None:
    """Write names beside their points, each on the side where it covers least, needed names first.

    A name that is not needed is left out if it would cover something on every side.

    Args:
        ax: Panel; its position in the figure must be final.
        names: One name for each point of the panel. Points without a needed name are included, because no name may
            cover them.
        size: Size of the letters in points.
        taken: Boxes to keep free, in pixels of the figure.
    """
    if not names:
        return
    scale = ax.figure.dpi / 72  # pixels per point
    points = ax.transData.transform([(name.x, name.y) for name in names])
    around = np.array([6.0, 7.0]) * scale
    fixed = [np.hstack([points - around, points + around]), *(np.array([box.extents]) for box in taken)]
    # Boxes that names should not cover, one per row: left, bottom, right, top. First come those around the points and
    # the taken ones; the rows after `filled` are for the names that are written.
    boxes = np.vstack([*fixed, np.empty((len(names), 4))])
    filled = len(boxes) - len(names)
    written = 0
    for index in sorted(range(len(names)), key=lambda i: not names[i].needed):
        name = names[index]
        # Needed names come first in this order, so none of them is left at this point.
        if written >= MOST_NAMES and not name.needed:
            break
        sides = [name.side, *SIDES]
        if name.needed:
            sides += FAR_SIDES
        # The preferred side comes first, and not once more among the others.
        sides = list(dict.fromkeys(sides))
        places = _places(name.text, points[index], sides, size, scale)
        costs = _covered(places, boxes[:filled], ax.bbox)
        best = int(costs.argmin())
        if costs[best] and not name.needed:
            continue
        boxes[filled] = places[best]
        filled += 1
        written += 1
        _write_name(ax, name, sides[best], size)


def _write_name(ax: Axes, name: Name, side: tuple[int, int], size: float) -> None:
    """Write a name on a side of its point, with a line to the point if the name is far from it."""
    line = None
    if side in FAR_SIDES:
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6}
    ax.annotate(
        name.text,
        (name.x, name.y),
        xytext=_offset(side),
        textcoords="offset points",
        fontsize=size,
        # Sides 0, 1 and -1 (the last entry): centred, text starts at the point, text ends at the point.
        ha=("center", "left", "right")[side[0]],
        va="center",
        arrowprops=line,
    )


def _offset(side: tuple[int, int]) -> tuple[float, float]:
    """Return the distance of a name from its point on a side, in points to the right and up."""
    if side[0] == 0:
        return 0.0, 13.0 * side[1]
    # Beside a point a name begins just outside the box, 6 by 7 points to each side, that `write_names` keeps free.
    return 7.0 * side[0], 6.0 * side[1]


def _places(text: str, point: Pixels, sides: Sequence[tuple[int, int]], size: float, scale: float) -> Pixels:
    """Return the boxes of a text on several sides of its point, one per row: left, bottom, right, top.

    Args:
        text: Text to write.
        point: Position of the point in pixels.
        sides: Sides, as in `SIDES`.
        size: Size of the letters in points.
        scale: Pixels per point.
    """
    x, y = point
    # The width of a text is not known before it is drawn; 0.6 of the letter size is an estimate for a character.
    width, height = 0.6 * size * len(text) * scale, size * scale
    places = []
    for side in sides:
        dx, dy = _offset(side)
        places.append(_box(x + dx * scale, y + dy * scale, side[0], width, height))
    return np.array(places)


def _box(x: float, y: float, side: int, width: float, height: float) -> tuple[float, float, float, float]:
    """Return left, bottom, right and top of a name that starts (1), ends (-1) or is centred (0) at x."""
    left = {-1: x - width, 0: x - width / 2, 1: x}[side]
    return left, y - height / 2, left + width, y + height / 2


def _covered(places: Pixels, boxes: Pixels, panel: Bbox) -> Pixels:
    """Return the cost of each place for a name: the number of boxes that it overlaps, plus ten outside the panel.

    Args:
        places: Possible boxes of the name, one per row: left, bottom, right, top.
        boxes: Boxes that the name should not cover, in the same form.
        panel: Box of the panel.
    """
    # Shapes (places, 1) and (1, boxes): broadcasting compares every place with every box.
    # Two boxes overlap unless one of them lies wholly beside, above or below the other.
    left, bottom, right, top = places.T[:, :, None]
    other_left, other_bottom, other_right, other_top = boxes.T[:, None, :]
    overlaps = (left <= other_right) & (other_left <= right) & (bottom <= other_top) & (other_bottom <= top)
    inside = (places[:, :2] >= panel.min) & (places[:, 2:] <= panel.max)
    return np.asarray(overlaps.sum(axis=1) + 10 * ~inside.all(axis=1))
