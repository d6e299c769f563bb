"""Pictures from records: accuracy against cost, latency against multiply-adds, learning curves, confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from cnnbench.bench.drawing import Name, Scheme, family_legend, log_axis, panels, short_names, write_names
from cnnbench.bench.findings import (
    Contender,
    by_label,
    compare_alike,
    contenders,
    front,
    latency_correlation,
    latency_spread,
    measured,
    misjudged,
)
from cnnbench.measure.quality import Counts, accuracy, most_confused
from cnnbench.record import Record
from cnnbench.units import scaled

LATENCY = "latency_ms_median"
COSTS = {
    "macs": ("multiply-adds (MACs) per image", "accuracy_macs"),
    LATENCY: ("latency of one image, milliseconds", "accuracy_latency"),
}
"""What accuracy is drawn against: axis title and file name by measure."""
SOFT = "#555555"
LONGEST_TITLE = 44
"""Characters that a line has room for above a confusion matrix."""


def accuracy_against(records: Sequence[Record], cost: str) -> Figure | None:
    """Test accuracy against a cost, a panel per data set, with its front. None where nothing has both."""
    drawn = by_label(measured(contenders(records), cost, "test_accuracy"))
    if not drawn:
        return None
    scheme = Scheme.of(r.model for r in records)
    figure, axes = panels(drawn, scheme.many, height=6.0 if scheme.many else 4.0)
    for label, entries in drawn.items():
        ax = axes[label]
        for entry in entries:
            _accuracy_point(ax, entry, cost, scheme)
        log_axis(
            ax, ax.xaxis, [e.mean(cost) for e in entries], COSTS[cost][0], _tick if cost == "macs" else "{:g}".format
        )
        _accuracy_axis(ax, [e.spread("test_accuracy") for e in entries])
        if len(entries) > 1 and compare_alike(entries):
            ax.plot(*zip(*_steps(ax, entries, cost), strict=True), color="#b0b0b0", linewidth=1.3, zorder=1)
    next(iter(axes.values())).set_ylabel("test accuracy")
    _explain(figure, drawn)
    _finish(figure, scheme, drawn)
    for label, entries in drawn.items():
        _name_accuracies(axes[label], entries, cost, scheme)
    return figure


def _accuracy_point(ax: Axes, entry: Contender, cost: str, scheme: Scheme) -> None:
    """A marker at the mean over seeds, with a bar over their range, or the interval of the only one."""
    x, y = entry.mean(cost), entry.mean("test_accuracy")
    low, high = entry.spread("test_accuracy")
    look = scheme.looks[entry.model]
    ax.errorbar(
        x, y, yerr=[[y - low], [high - y]], fmt=look.marker, markersize=scheme.marker_size, color=look.colour,
        capsize=0 if scheme.many else 3, elinewidth=1, markerfacecolor=look.colour if entry.converged else "white",
        markeredgewidth=1.5 if scheme.many else 1.8,
    )  # fmt: skip


def _steps(ax: Axes, entries: Sequence[Contender], cost: str) -> list[tuple[float, float]]:
    """The corners of the front's line, to the panel's right edge: what is to be had for a cost."""
    points = [(e.mean(cost), e.mean("test_accuracy")) for e in front(entries, cost)]
    points.append((ax.get_xlim()[1], points[-1][1]))
    return [points[0], *(corner for (_, y), b in pairwise(points) for corner in ((b[0], y), b))]


def _accuracy_axis(ax: Axes, spreads: Sequence[tuple[float, float]]) -> None:
    low, high = min(low for low, _ in spreads), max(high for _, high in spreads)
    room = max(0.08 * (high - low), 0.004)
    ax.set_ylim(max(0, low - room), min(1.0 + room / 2, high + 2 * room))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if high - low > 0.04 else 1))


def _explain(figure: Figure, drawn: Mapping[str, Sequence[Contender]]) -> None:
    """Says below the panels what line, bars and open markers are."""
    everyone = [e for entries in drawn.values() for e in entries]
    notes = []
    if any(len(entries) > 1 and compare_alike(entries) for entries in drawn.values()):
        notes.append("grey line: front, no network is more accurate at equal or lower cost")
    if any(len(e.per_seed("test_accuracy")) > 1 for e in everyone):
        notes.append("bar: range over seeds, marker at their mean")
    if not all(e.converged for e in everyone):
        notes.append("open marker: short training, not converged")
    if notes:
        figure.supxlabel(("; " if len(drawn) > 1 else "\n").join(notes), fontsize=9, color=SOFT)


def _finish(figure: Figure, scheme: Scheme, drawn: Mapping[str, Sequence[Contender]]) -> None:
    """Adds the legend that many networks need, and settles the panels' places, which names need to know."""
    if scheme.many:
        shown = [scheme.looks[e.model] for entries in drawn.values() for e in entries]
        family_legend(figure, shown, lines=False)
    figure.draw_without_rendering()


def _name_accuracies(ax: Axes, entries: Sequence[Contender], cost: str, scheme: Scheme) -> None:
    best = front(entries, cost)
    names = [
        Name(
            e.mean(cost), e.mean("test_accuracy"), scheme.names[e.model], needed=e in best or not scheme.many,
            side=(-1, 1) if e in best else (1, 1),  # above the front and to its left there is no network
        )
        for e in entries
    ]  # fmt: skip
    corners = ax.transData.transform(_steps(ax, entries, cost))
    lines = [Bbox([a, b]).padded(1) for a, b in pairwise(corners)]
    write_names(ax, names, scheme.letter_size, lines)


def latency_against_macs(records: Sequence[Record]) -> Figure | None:
    """Latency against multiply-adds, a panel per data set, with their rank correlation. None where nothing has both."""
    drawn = by_label(measured(contenders(records), "macs", "latency_ms_median"))
    if not drawn:
        return None
    scheme = Scheme.of(r.model for r in records)
    figure, axes = panels(drawn, scheme.many, height=6.0 if scheme.many else 4.0)
    for label, entries in drawn.items():
        ax = axes[label]
        for e in entries:
            look, time = scheme.looks[e.model], latency_spread(e)
            bar = [[time.median - time.low], [time.high - time.median]]
            ax.errorbar(
                e.mean("macs"), time.median, yerr=bar, fmt=look.marker,
                color=look.colour, markersize=scheme.marker_size, elinewidth=0.8, capsize=0,
            )  # fmt: skip
        log_axis(ax, ax.xaxis, [e.mean("macs") for e in entries], COSTS["macs"][0], _tick)
        log_axis(ax, ax.yaxis, [end for e in entries for end in latency_spread(e)], "", "{:g}".format)
    next(iter(axes.values())).set_ylabel(COSTS[LATENCY][0])
    figure.supxlabel("marker: median of the calls; bar: first to ninth decile", fontsize=9, color=SOFT)
    _finish(figure, scheme, drawn)
    for label, entries in drawn.items():
        told = misjudged(entries) or ()
        names = [
            Name(e.mean("macs"), e.mean(LATENCY), scheme.names[e.model], needed=not scheme.many or e in told)
            for e in entries
        ]
        write_names(axes[label], names, scheme.letter_size, _correlation_note(axes[label], entries))
    return figure


def _correlation_note(ax: Axes, entries: Sequence[Contender]) -> list[Bbox]:
    """Writes the rank correlation into a corner, if there is one, and returns the box that it fills."""
    found = latency_correlation(entries)
    if found is None:
        return []
    text = f"Spearman {found.value:.2f}"
    if found.interval:
        text += f", 95 % interval {found.interval[0]:.2f} to {found.interval[1]:.2f}"
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    note = ax.text(0.02, 0.98, text, transform=ax.transAxes, va="top", fontsize=9, color=SOFT, bbox=white)
    return [note.get_window_extent()]


def _tick(value: float) -> str:
    number, prefix = scaled(value)
    return f"{number:g}{prefix}"


def learning_curves(records: Sequence[Record]) -> Figure | None:
    """Training accuracy against the images seen, a panel per data set. None where no cell has a curve."""
    drawn = [r for r in records if any("train/accuracy" in p for p in r.training.get("curve", ()))]
    if not drawn:
        return None
    scheme = Scheme.of(r.model for r in records)
    many = scheme.many
    figure, axes = panels((r.data["label"] for r in drawn), many, height=4.6 if many else 3.6)
    for r in drawn:
        points = [p for p in r.training["curve"] if "train/accuracy" in p]
        # Lightning counts the steps of a log line from 0.
        seen = [(p["step"] + 1) * r.training["images"] / r.training["steps"] for p in points]
        look = scheme.looks[r.model]
        axes[r.data["label"]].plot(
            seen, [p["train/accuracy"] for p in points], color=look.colour, linestyle=look.line, label=look.entry,
            linewidth=1.1 if many else 1.6, alpha=0.8 if many else 1.0,
        )  # fmt: skip
    for ax in axes.values():
        ax.set_xscale("log")
        ax.set_xlabel("training images seen")
        ax.set_ylim(0, 1.02)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        if not many:
            handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
            ax.legend(handles.values(), handles.keys(), frameon=False, fontsize=9, loc="best")
    next(iter(axes.values())).set_ylabel("training accuracy")
    if many:
        family_legend(figure, (scheme.looks[r.model] for r in drawn), lines=True)
    return figure


def confusion(record: Record) -> Figure | None:
    """The confusion matrix of a cell, rows are true classes, coloured by share of the row. None where not measured."""
    counts = record.confusion_matrix
    if counts is None:
        return None
    share = accuracy(counts)["test_accuracy"]
    name, where = short_names([record.model])[record.model], f"on {record.data['label']}: {share:.1%}"
    title = name + (" " if len(name + where) <= LONGEST_TITLE else "\n") + where
    note = "" if record.training.get("converged", True) else "short training, not converged\n"
    return draw_confusion(counts, record.data["class_names"], title, note + confusion_sentence(record))


def draw_confusion(counts: Counts, names: Sequence[str], title: str, note: str) -> Figure:
    """Draws integer counts, rows are true classes, with a title above and a note below."""
    shares = [[n / max(sum(row), 1) for n in row] for row in counts]
    figure = Figure(figsize=(5.6, 5.4), layout="constrained")
    ax = figure.subplots()
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    name_classes(ax, names)
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
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    figure.supxlabel(note, fontsize=8.5, color=SOFT)
    return figure


def name_classes(ax: Axes, names: Sequence[str]) -> None:
    """Writes the classes beside the rows and columns of a matrix of true and predicted ones."""
    slant: dict[str, Any] = (
        {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}
    )
    ax.set_xticks(range(len(names)), names, fontsize=9, **slant)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    ax.spines[:].set_visible(False)


def confusion_sentence(record: Record, limit: int = 3) -> str:
    """The most frequent mistakes of a cell in words."""
    names = record.data["class_names"]
    worst = most_confused(record.confusion_matrix or [], limit)
    if not worst:
        return "no mistakes"
    return "most often mistaken: " + ", ".join(f"{names[m.true]} → {names[m.predicted]} ({m.images})" for m in worst)
