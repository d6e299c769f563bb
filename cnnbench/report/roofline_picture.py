"""The roofline picture: the rates that networks and their kinds of layers reach, below what the machine can do.

The roof is the highest rate of arithmetic at each intensity, in FLOP per byte moved (Williams et al. 2009,
10.1145/1498765.1498785). The picture is drawn from numbers alone, as `cnnbench speed --limits --json` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from cnnbench.plots.drawing import Name, Scheme, log_axis, panels, plain_text, shorten, write_names
from cnnbench.units import with_unit

SOFT = "#555555"
GROUP_MARKERS = {
    "convolution": "s",
    "depthwise convolution": "D",
    "linear": "^",
    "normalisation": "v",
    "activation and pooling": "P",
    "other": "X",
}
"""Markers of the kinds of layers; networks are always circles here, unlike in other pictures."""
LEAST_OF_TIME = 0.01
"""Share of a network's time above which a kind of layer is drawn."""


class Roof(NamedTuple):
    """The roof of the number format in which the networks were timed.

    Attributes:
        flops_per_s: Peak rate of arithmetic, the flat part of the roof.
        bytes_per_s: Peak rate of memory, the slope of the roof.
        cached: Rate in bytes per second of the fastest copy that was measured, from caches or from memory.
        name: Name of the number format.
        others: Peak rates of arithmetic in the other number formats, by name.
    """

    flops_per_s: float
    bytes_per_s: float
    cached: float
    name: str
    others: Mapping[str, float]

    @classmethod
    def of(cls, peaks: Mapping[str, Any], number_format: str) -> Roof:
        """Return the roof in a number format; arguments as in `draw_roofs`."""
        rates, of_memory = peaks["flops_per_s"], peaks["bytes_per_s"]
        # With the rate of memory in the list, a slow measurement of a small copy cannot put caches below memory.
        cached = max([of_memory, *(rate for _, rate in peaks["cached"])])
        others = {name: rate for name, rate in rates.items() if name != number_format}
        return cls(rates[number_format], of_memory, cached, number_format, others)

    @property
    def caches_matter(self) -> bool:
        """Return whether caches are clearly faster than memory, so that they have a roof of their own."""
        return self.cached > 1.2 * self.bytes_per_s

    @property
    def ridge(self) -> float:
        """Return the intensity in FLOP per byte above which arithmetic is the limit, not memory."""
        return self.flops_per_s / self.bytes_per_s

    def at(self, intensity: float) -> float:
        """Return the roof in FLOP/s at an intensity in FLOP per byte."""
        # Attainable rate by Williams et al. 2009: FLOP per byte times bytes per second, up to the peak of arithmetic.
        return min(self.flops_per_s, intensity * self.bytes_per_s)


class Point(NamedTuple):
    """What a network, or one of its kinds of layers, reaches.

    Attributes:
        network: Name of the network.
        intensity: FLOP per byte moved.
        flops_per_s: Achieved rate of arithmetic.
        kind: Kind of layer, one of `GROUP_MARKERS`; empty for the whole network.
    """

    network: str
    intensity: float
    flops_per_s: float
    kind: str = ""


@plain_text()
def draw_roofs(
    limits: Mapping[str, Mapping[str, Any]], peaks: Mapping[str, Any], number_format: str, where: str
) -> Figure:
    """Draw a point per network at its batch size; with few networks, also a smaller point per kind of layer.

    Args:
        limits: Results of `cnnbench.roofline.bounds.find_limits`, by network.
        peaks: Figures of `cnnbench.roofline.peaks.Peaks`.
        number_format: Number format whose roof is drawn in full.
        where: Device, precision and batch size, for the title.
    """
    roof = Roof.of(peaks, number_format)
    title = f"What networks reach of what the machine can do\n{where}"
    # The wide form of a panel leaves room for the legend at its side.
    figure, axes = panels([title], many=True, height=5.6)
    ax = axes[title]
    scheme = Scheme.of(limits)
    networks: list[Point] = []
    groups: list[Point] = []
    for name, verdicts in limits.items():
        networks.append(_point(name, verdicts["inference"], verdicts["inference"]["measured_s"]))
        # Many networks share colours within a family, so nobody could tell whose layers these are.
        if not scheme.many:
            groups += _group_points(name, verdicts["groups"])
    points = [*networks, *groups]
    _axes(ax, points, roof)
    _roof(ax, roof)
    for point in points:
        _draw_point(ax, point, scheme)
    _legend(figure, scheme, {point.kind for point in groups}, roof)
    figure.draw_without_rendering()
    # The names come last, because they depend on the final position of the panel.
    names = []
    for point in networks:
        names.append(Name(point.intensity, point.flops_per_s, scheme.names[point.network], needed=not scheme.many))
    write_names(ax, names, scheme.letter_size, _taken(ax, points, roof))
    return figure


def _point(network: str, costs: Mapping[str, Any], seconds: float, kind: str = "") -> Point:
    """Return the point of a network or of a kind of layer, from its costs and its time."""
    # FLOPs of convolutions and matrix products, plus one for each elementary step of all other arithmetic.
    operations = costs["flops"] + costs["other_ops"]
    return Point(network, operations / costs["moved_bytes"], operations / seconds, kind)


def _group_points(network: str, groups: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return the points of the kinds of layers that take more than `LEAST_OF_TIME` of the network's time."""
    whole = sum(group["seconds"] or 0 for group in groups)
    points = []
    for group in groups:
        seconds = group["seconds"]
        # Layers that do no arithmetic have an intensity of 0, which a logarithmic axis cannot show.
        if group["flops"] + group["other_ops"] and seconds and seconds > LEAST_OF_TIME * whole:
            points.append(_point(network, group, seconds, group["kind"]))
    return points


def _axes(ax: Axes, points: Sequence[Point], roof: Roof) -> None:
    """Make both axes logarithmic, with limits that show the ridge and all roofs, not only the points."""
    intensities = [roof.ridge / 4, roof.ridge * 8]
    rates = [1.2 * max([roof.flops_per_s, *roof.others.values()])]
    for point in points:
        intensities.append(point.intensity)
        rates.append(point.flops_per_s)
    log_axis(ax, ax.xaxis, intensities, "intensity, FLOP per byte moved", "{:g}".format)
    log_axis(ax, ax.yaxis, rates, "achieved FLOP/s", _rate)


def _draw_point(ax: Axes, point: Point, scheme: Scheme) -> None:
    """Draw the marker of a network, or the smaller one of a kind of layer."""
    style: dict[str, Any] = {"marker": "o", "markersize": scheme.marker_size + 2}
    style |= {"markeredgecolor": "white", "zorder": 4}
    if point.kind:
        style = {"marker": GROUP_MARKERS[point.kind], "markersize": 5, "markeredgewidth": 0, "alpha": 0.7}
    ax.plot(point.intensity, point.flops_per_s, color=scheme.looks[point.network].colour, **style)


def _roof(ax: Axes, roof: Roof) -> None:
    """Draw the roof and its ridge, and with dashed lines the roofs of caches and of other number formats."""
    low, high = ax.get_xlim()
    # On two logarithmic axes both parts of the roof are straight lines, so three points are enough.
    ax.plot([low, roof.ridge, high], [roof.at(low), roof.flops_per_s, roof.flops_per_s], color="#222222", linewidth=1.6)
    ax.plot([roof.ridge] * 2, [ax.get_ylim()[0], roof.flops_per_s], color="#999999", linewidth=0.8, linestyle=":")
    ax.annotate(
        f"ridge {roof.ridge:.3g} FLOP/byte",
        (roof.ridge, ax.get_ylim()[0]),
        xytext=(4, 5),
        textcoords="offset points",
        fontsize=8,
        color=SOFT,
    )
    if roof.caches_matter:
        # The intensity at which the roof of the caches reaches the peak of arithmetic.
        corner = roof.flops_per_s / roof.cached
        ax.plot([low, corner], [low * roof.cached, roof.flops_per_s], color="#222222", linewidth=1, linestyle="--")
        ax.plot([corner, roof.ridge], [roof.flops_per_s] * 2, color="#222222", linewidth=1, linestyle="--")
    for rate in roof.others.values():
        ax.axhline(rate, color="#b0b0b0", linewidth=0.9, linestyle="--")


def _legend(figure: Figure, scheme: Scheme, kinds: set[str], roof: Roof) -> None:
    """Write to the right of the panel what lines, colours and markers mean."""
    label = f"roof: {with_unit(roof.flops_per_s, 'FLOP/s')} ({roof.name}), {with_unit(roof.bytes_per_s, 'B/s')}"
    handles = [Line2D([], [], color="#222222", linewidth=1.6, label=label)]
    if roof.caches_matter:
        label = f"copies within caches: up to {with_unit(roof.cached, 'B/s')}"
        handles.append(Line2D([], [], color="#222222", linewidth=1, linestyle="--", label=label))
    for name, rate in roof.others.items():
        label = f"{shorten(name)}: {with_unit(rate, 'FLOP/s')}"
        handles.append(Line2D([], [], color="#b0b0b0", linewidth=0.9, linestyle="--", label=label))
    # The networks of a family share an entry.
    colours = {look.entry: look.colour for look in scheme.looks.values()}
    for entry, colour in colours.items():
        handles.append(Line2D([], [], color=colour, label=entry, linestyle="", marker="o", markersize=8))
    for kind, marker in GROUP_MARKERS.items():
        if kind in kinds:
            handles.append(Line2D([], [], color=SOFT, label=kind, linestyle="", marker=marker, markersize=5))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8.5)


def _taken(ax: Axes, points: Sequence[Point], roof: Roof) -> list[Bbox]:
    """Return boxes around all points and along the roof, which names must not cover."""
    centres = [(point.intensity, point.flops_per_s) for point in points]
    low, high = ax.get_xlim()
    # 121 intensities at equal distances on the logarithmic axis.
    for step in range(121):
        intensity = low * (high / low) ** (step / 120)
        centres.append((intensity, roof.at(intensity)))
    half = 3 * (ax.figure.dpi / 72)  # 3 points in pixels
    boxes = []
    for x, y in ax.transData.transform(centres):
        boxes.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    return boxes


def _rate(value: float) -> str:
    """Return a rate of arithmetic with its unit, as a tick label."""
    return with_unit(value, "FLOP/s")
