"""Pictures from records: accuracy against cost, learning curves, confusion matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, PercentFormatter
from matplotlib.transforms import Bbox

from cnnbench.measure.quality import most_confused
from cnnbench.record import Record

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#666666")
"""Colours that people with colour blindness can tell apart (Okabe and Ito 2008, without its yellow)."""
MARKERS = "osD^vPX*"

COSTS = {
    "macs": ("multiply-adds (MACs) per image", "accuracy_macs"),
    "latency_ms_median": ("latency of one image, milliseconds", "accuracy_latency"),
}
"""What accuracy is drawn against: axis title and file name by measure."""


def _style(records: Sequence[Record]) -> dict[str, tuple[str, str]]:
    names = list(dict.fromkeys(r.model for r in records))
    return {n: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, n in enumerate(names)}


def _panels(records: Sequence[Record], height: float) -> tuple[Figure, dict[str, Axes]]:
    labels = list(dict.fromkeys(r.data["label"] for r in records))
    figure = Figure(figsize=(5.2 * len(labels), height), layout="constrained")
    axes = figure.subplots(1, len(labels), squeeze=False)[0]
    for label, ax in zip(labels, axes, strict=True):
        ax.set_title(label, loc="left", fontsize=11, fontweight="bold")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e6e6e6", linewidth=0.7)
        ax.set_axisbelow(True)
    return figure, dict(zip(labels, axes, strict=True))


def accuracy_against(records: Sequence[Record], cost: str) -> Figure | None:
    """Test accuracy against a cost, a panel per data set; bars are 95 % intervals. None where nothing has both."""
    drawn = [r for r in records if cost in r.measures and "test_accuracy" in r.measures]
    if not drawn:
        return None
    figure, axes = _panels(drawn, height=4.0)
    style = _style(records)
    for label, ax in axes.items():
        cells = [r for r in drawn if r.data["label"] == label]
        for r in cells:
            colour, marker = style[r.model]
            x, y = r.measures[cost], r.measures["test_accuracy"]
            bars = [[y - r.measures["test_accuracy_low"]], [r.measures["test_accuracy_high"] - y]]
            full = r.training.get("converged", True)
            ax.errorbar(
                x, y, yerr=bars, fmt=marker, markersize=8, color=colour, capsize=3,
                markerfacecolor=colour if full else "white", markeredgewidth=1.8,
            )  # fmt: skip
        _log_axis(ax, [r.measures[cost] for r in cells], COSTS[cost][0], cost)
        low = min(r.measures["test_accuracy_low"] for r in cells)
        high = max(r.measures["test_accuracy_high"] for r in cells)
        room = max(0.08 * (high - low), 0.004)
        ax.set_ylim(max(0, low - room), min(1.0 + room / 2, high + 2 * room))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if high - low > 0.04 else 1))
    next(iter(axes.values())).set_ylabel("test accuracy")
    if any(not r.training.get("converged", True) for r in drawn):
        figure.supxlabel("open marker: short training, not converged", fontsize=9, color="#555555")
    figure.draw_without_rendering()  # places the panels, which the labels need to know
    for label, ax in axes.items():
        _label_points(ax, [r for r in drawn if r.data["label"] == label], cost)
    return figure


def _label_points(ax: Axes, cells: Sequence[Record], cost: str) -> None:
    """Writes each network's name beside its first point, on the side where it covers the least."""
    scale = ax.figure.dpi / 72
    points = [ax.transData.transform((r.measures[cost], r.measures["test_accuracy"])) for r in cells]
    taken = [Bbox.from_extents(x - 7 * scale, y - 10 * scale, x + 7 * scale, y + 10 * scale) for x, y in points]
    named: set[str] = set()
    for r, (x, y) in zip(cells, points, strict=True):
        if r.model in named:
            continue
        named.add(r.model)
        width, height = 5.6 * scale * len(r.model), 10 * scale

        def box(side: tuple[int, int], x: float = x, y: float = y, w: float = width, h: float = height) -> Bbox:
            left = {-1: x - 9 * scale - w, 0: x - w / 2, 1: x + 9 * scale}[side[0]]
            low = y + side[1] * (7 if side[0] else 17) * scale - h / 2
            return Bbox.from_extents(left, low, left + w, low + h)

        def covered(side: tuple[int, int]) -> float:
            found = box(side)
            outside = not all(ax.bbox.contains(*corner) for corner in found.corners())
            return sum(found.overlaps(other) for other in taken) + 2 * outside

        best = min(((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1)), key=covered)
        taken.append(box(best))
        centre = (box(best).x0 + box(best).x1) / 2, (box(best).y0 + box(best).y1) / 2
        offset = ((centre[0] - x) / scale, (centre[1] - y) / scale)
        where = (r.measures[cost], r.measures["test_accuracy"])
        ax.annotate(r.model, where, xytext=offset, textcoords="offset points", ha="center", va="center", fontsize=9)


def _log_axis(ax: Axes, values: Sequence[float], title: str, cost: str) -> None:
    low, high = min(values) / 1.8, max(values) * 1.8
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    steps = (1, 3) if high / low > 30 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x) if cost == "macs" else f"{x:g}"))
    ax.set_xlabel(title)


def _tick(value: float) -> str:
    number, prefix = _scaled(value)
    return f"{number:g}{prefix}"


def short(value: float) -> str:
    """A count with three significant digits and the prefix k, M, G or T; below a thousand as it is."""
    number, prefix = _scaled(value)
    return f"{number:#.3g}".rstrip(".") + prefix if prefix else f"{number:.3g}"


def _scaled(value: float) -> tuple[float, str]:
    value = float(f"{value:.3g}")  # first, so that 999,999 is 1.00M and not 1000k
    for unit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return value / unit, prefix
    return value, ""


def learning_curves(records: Sequence[Record]) -> Figure | None:
    """Training accuracy against the images seen, a panel per data set. None where no cell has a curve."""
    drawn = [r for r in records if any("train/accuracy" in p for p in r.training.get("curve", ()))]
    if not drawn:
        return None
    figure, axes = _panels(drawn, height=3.6)
    style = _style(records)
    for r in drawn:
        ax = axes[r.data["label"]]
        points = [p for p in r.training["curve"] if "train/accuracy" in p]
        # Lightning counts the steps of a log line from 0.
        seen = [(p["step"] + 1) * r.training["images"] / r.training["steps"] for p in points]
        ax.plot(seen, [p["train/accuracy"] for p in points], color=style[r.model][0], label=r.model, linewidth=1.6)
    for ax in axes.values():
        ax.set_xscale("log")
        ax.set_xlabel("training images seen")
        ax.set_ylim(0, 1.02)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        ax.legend(handles.values(), handles.keys(), frameon=False, fontsize=9, loc="upper left")
    next(iter(axes.values())).set_ylabel("training accuracy")
    return figure


def confusion(record: Record) -> Figure | None:
    """The confusion matrix of a cell, rows are true classes, coloured by share of the row. None where not measured."""
    counts = record.confusion_matrix
    if counts is None:
        return None
    names = record.data["class_names"]
    shares = [[n / max(sum(row), 1) for n in row] for row in counts]
    figure = Figure(figsize=(5.6, 5.4), layout="constrained")
    ax = figure.subplots()
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 8 if len(names) <= 10 else 5
    for i, row in enumerate(counts):
        for j, n in enumerate(row):
            if n:
                ax.text(
                    j,
                    i,
                    str(n),
                    ha="center",
                    va="center",
                    fontsize=size,
                    color="white" if shares[i][j] > 0.55 else "#222222",
                )
    slant: dict[str, Any] = (
        {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}
    )
    ax.set_xticks(range(len(names)), names, fontsize=9, **slant)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    ax.spines[:].set_visible(False)
    accuracy = record.measures["test_accuracy"]
    title = f"{record.model} on {record.data['label']}: {accuracy:.1%}"
    note = "" if record.training.get("converged", True) else "short training, not converged\n"
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    figure.supxlabel(note + confusion_sentence(record), fontsize=8.5, color="#555555")
    return figure


def confusion_sentence(record: Record, limit: int = 3) -> str:
    """The most frequent mistakes of a cell in words."""
    names = record.data["class_names"]
    worst = most_confused(record.confusion_matrix or [], limit)
    if not worst:
        return "no mistakes"
    return "most often mistaken: " + ", ".join(f"{names[m.true]} → {names[m.predicted]} ({m.images})" for m in worst)
