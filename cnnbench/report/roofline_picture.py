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

from cnnbench.plots.drawing import Look, Name, Scheme, log_axis, panels, plain_text, shorten, write_names
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

    @property
    def ridge(self) -> float:
        """Return the intensity in FLOP per byte above which arithmetic is the limit, not memory."""
        return self.flops_per_s / self.bytes_per_s

    def at(self, intensity: float) -> float:
        """Return the roof in FLOP/s at an intensity in FLOP per byte."""
        return min(self.flops_per_s, intensity * self.bytes_per_s)


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
    rates = peaks["flops_per_s"]
    roof = Roof(
        rates[number_format],
        peaks["bytes_per_s"],
        max([rate for _, rate in peaks["cached"]] + [peaks["bytes_per_s"]]),
        number_format,
        {name: rate for name, rate in rates.items() if name != number_format},
    )
    title = f"What networks reach of what the machine can do\n{where}"
    figure, axes = panels([title], many=True, height=5.6)
    ax = axes[title]
    scheme = Scheme.of(limits)
    networks = {name: _point(found["inference"], found["inference"]["measured_s"]) for name, found in limits.items()}
    few = {} if scheme.many else limits
    groups = [(name, g["kind"], *_point(g, g["seconds"])) for name, found in few.items() for g in _shown(found)]
    points = [*networks.values(), *((x, y) for *_, x, y in groups)]
    _axes(ax, points, roof)
    _roof(ax, roof)
    for name, kind, x, y in groups:
        look = scheme.looks[name]
        ax.plot(x, y, marker=GROUP_MARKERS[kind], color=look.colour, markersize=5, alpha=0.7, markeredgewidth=0)
    for name, (x, y) in networks.items():
        size = scheme.marker_size + 2
        ax.plot(x, y, marker="o", color=scheme.looks[name].colour, markersize=size, markeredgecolor="white", zorder=4)
    _legend(figure, ax, {name: scheme.looks[name] for name in limits}, {kind for _, kind, *_ in groups}, roof)
    figure.draw_without_rendering()
    # The names come last, because they depend on the final position of the panel.
    names = [Name(x, y, scheme.names[name], needed=not scheme.many) for name, (x, y) in networks.items()]
    write_names(ax, names, scheme.letter_size, _taken(ax, points, roof))
    return figure


def _point(costs: Mapping[str, Any], seconds: float) -> tuple[float, float]:
    """Return the intensity in FLOP per byte, and the achieved FLOP/s."""
    operations = costs["flops"] + costs["other_ops"]
    return operations / costs["moved_bytes"], operations / seconds


def _shown(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the kinds of layers that do arithmetic and take more than `LEAST_OF_TIME` of the network's time."""
    whole = sum(g["seconds"] or 0 for g in found["groups"])
    return [
        g
        for g in found["groups"]
        if g["flops"] + g["other_ops"] and g["seconds"] and g["seconds"] > LEAST_OF_TIME * whole
    ]


def _axes(ax: Axes, points: Sequence[tuple[float, float]], roof: Roof) -> None:
    # The axes show the ridge and all roofs, not only the points.
    xs, ys = [x for x, _ in points], [y for _, y in points]
    log_axis(ax, ax.xaxis, [*xs, roof.ridge / 4, roof.ridge * 8], "intensity, FLOP per byte moved", "{:g}".format)
    log_axis(ax, ax.yaxis, [*ys, 1.2 * max(roof.flops_per_s, *roof.others.values(), 0)], "achieved FLOP/s", _rate)


def _roof(ax: Axes, roof: Roof) -> None:
    """Draw the roof and its ridge, and with dashed lines the roofs of caches and of other number formats."""
    low, high = ax.get_xlim()
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
    # Caches have a roof of their own only if they are clearly faster than memory.
    if roof.cached > 1.2 * roof.bytes_per_s:
        corner = roof.flops_per_s / roof.cached
        ax.plot([low, corner], [low * roof.cached, roof.flops_per_s], color="#222222", linewidth=1, linestyle="--")
        ax.plot([corner, roof.ridge], [roof.flops_per_s] * 2, color="#222222", linewidth=1, linestyle="--")
    for rate in roof.others.values():
        ax.axhline(rate, color="#b0b0b0", linewidth=0.9, linestyle="--")


def _legend(figure: Figure, ax: Axes, looks: Mapping[str, Look], kinds: set[str], roof: Roof) -> None:
    """Write to the right of the panel what lines, colours and markers mean."""
    label = f"roof: {with_unit(roof.flops_per_s, 'FLOP/s')} ({roof.name}), {with_unit(roof.bytes_per_s, 'B/s')}"
    handles = [Line2D([], [], color="#222222", linewidth=1.6, label=label)]
    if roof.cached > 1.2 * roof.bytes_per_s:
        label = f"copies within caches: up to {with_unit(roof.cached, 'B/s')}"
        handles.append(Line2D([], [], color="#222222", linewidth=1, linestyle="--", label=label))
    for name, rate in roof.others.items():
        label = f"{shorten(name)}: {with_unit(rate, 'FLOP/s')}"
        handles.append(Line2D([], [], color="#b0b0b0", linewidth=0.9, linestyle="--", label=label))
    entries = {look.entry: look.colour for look in looks.values()}
    handles += [
        Line2D([], [], color=colour, label=entry, linestyle="", marker="o", markersize=8)
        for entry, colour in entries.items()
    ]
    handles += [
        Line2D([], [], color=SOFT, linestyle="", marker=marker, markersize=5, label=kind)
        for kind, marker in GROUP_MARKERS.items()
        if kind in kinds
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8.5)


def _taken(ax: Axes, points: Sequence[tuple[float, float]], roof: Roof) -> list[Bbox]:
    """Return boxes around all points and along the roof, which names must not cover."""
    scale = ax.figure.dpi / 72
    low, high = ax.get_xlim()
    # 121 intensities at equal distances on the logarithmic axis.
    steps = [low * (high / low) ** (i / 120) for i in range(121)]
    centres = ax.transData.transform([*points, *((x, roof.at(x)) for x in steps)])
    return [Bbox.from_extents(x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale) for x, y in centres]


def _rate(value: float) -> str:
    return with_unit(value, "FLOP/s")
