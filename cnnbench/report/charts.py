"""Pictures from records: accuracy against cost, latency against multiply-adds, learning curves, confusion matrices.

The functions that compare networks draw one panel per data set and return None if the records have nothing to show. A
network has the same colour and marker in all pictures, see `cnnbench.plots.drawing.Scheme`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from cnnbench.confusion import Counts, most_confused
from cnnbench.plots.drawing import (
    LONGEST_LABEL,
    MOST_PANELS,
    Name,
    Scheme,
    family_legend,
    log_axis,
    panels,
    plain_text,
    short_names,
    shorten,
    title_left,
    write_names,
)
from cnnbench.record import Record
from cnnbench.report.findings import (
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
from cnnbench.units import scaled

LATENCY = "latency_ms_median"
COSTS = {
    "macs": ("multiply-adds (MACs) per image", "accuracy_macs"),
    LATENCY: ("latency of one image, milliseconds", "accuracy_latency"),
}
"""Costs that accuracy is drawn against: axis title and file name by key of the figure."""
SOFT = "#555555"
LONGEST_TITLE = 44
"""Characters that fit into one line above a confusion matrix."""
LONGEST_CLASS = 16
"""Characters of a class name in a picture; longer names are shortened."""
LONGEST_NOTE = 92
"""Characters that fit into one line below a confusion matrix."""
LONGEST_EXPLANATION = 120
"""Characters that fit into one line below two or more panels."""
MOST_NAMED = 40
"""Largest number of networks in a panel whose names are all written; with more, a name must not cover anything."""
MOST_NUMBERED_CLASSES = 20
"""Largest number of classes for which a confusion matrix has room for numbers in its cells and for every class name."""


Curve = tuple[list[float], list[float]]
"""Learning curve: numbers of training images seen, and the training accuracy at each of these points."""


def panels_drawn(entries: Sequence[Contender]) -> dict[str, list[Contender]]:
    """Return the contenders by data set, for as many data sets as a picture has panels."""
    groups = by_label(entries)
    return {label: groups[label] for label in list(groups)[:MOST_PANELS]}


@plain_text()
def accuracy_against(records: Sequence[Record], cost: str) -> Figure | None:
    """Draw test accuracy against a cost, one panel per data set, with the Pareto front.

    A network with a short training has an open marker. If its reference accuracy is known, a filled marker shows it.

    Args:
        records: Records of one or several runs.
        cost: Key of `COSTS`.

    Returns:
        The picture; None if no network has both figures.
    """
    return _accuracy_figure(records, measured(contenders(records), cost, "test_accuracy"), cost, short_too=True)


@plain_text()
def reference_against(records: Sequence[Record], cost: str) -> Figure | None:
    """Draw the accuracy after a reference or full training against a cost, one panel per data set, with its front.

    Short trainings are left out. Their accuracies are often far lower, and on their scale the final differences between
    the networks would be hard to see.

    Args:
        records: Records of one or several runs.
        cost: Key of `COSTS`.

    Returns:
        The picture; None if no network has a reference accuracy, or none can be compared with another.
    """
    return _accuracy_figure(records, with_references(records, cost), cost, short_too=False)


def with_references(records: Sequence[Record], cost: str) -> list[Contender]:
    """Return the contenders whose accuracy after a full training is known, from data sets with two or more of them.

    The list is empty if all these accuracies come from the records themselves and none from a reference training.
    """
    entries = [e for e in measured(contenders(records), cost, "test_accuracy") if e.settled is not None]
    entries = [e for group in by_label(entries).values() if _has_front(group, cost) for e in group]
    return entries if any(e.reference is not None for e in entries) else []


def _accuracy_figure(
    records: Sequence[Record], entries: Sequence[Contender], cost: str, short_too: bool
) -> Figure | None:
    """Draw test accuracy against a cost; `short_too` decides whether accuracies of short trainings are drawn."""
    drawn = panels_drawn(entries)
    if not drawn:
        return None
    scheme = Scheme.of(r.model for r in records)
    figure, axes = panels(drawn, scheme.many, height=6.0 if scheme.many else 4.0)
    for label, group in drawn.items():
        ax = axes[label]
        log_axis(
            ax, ax.xaxis, [e.mean(cost) for e in group], COSTS[cost][0], _tick if cost == "macs" else "{:g}".format
        )
        # A network with a reference has a marker at its reference accuracy; its short training is drawn only on demand.
        of_this_run = [e for e in group if short_too or e.reference is None]
        references = [e.reference for e in group if e.reference is not None]
        spreads = [e.spread("test_accuracy") for e in of_this_run]
        _accuracy_axis(ax, [*spreads, *((r.low, r.high) for r in references)])
        if _has_front(group, cost):
            ax.plot(*zip(*_steps(ax, group, cost), strict=True), color="#b0b0b0", linewidth=1.3, zorder=1)
        _accuracy_points(ax, of_this_run, cost, scheme)
        _reference_points(ax, group, cost, scheme, short_too)
    title_left(axes, "test accuracy" if short_too else "test accuracy after a long training")
    _explain(figure, drawn, cost, short_too)
    _finish(figure, scheme, drawn)
    # Names come last, because they depend on the final positions of the panels.
    for label, group in drawn.items():
        _name_accuracies(axes[label], group, cost, scheme)
    return figure


def _accuracy_points(ax: Axes, entries: Sequence[Contender], cost: str, scheme: Scheme) -> None:
    """Draw a marker at the mean over seeds, with a bar over their range, or over the interval of a single seed."""
    for (colour, marker, converged), group in _alike(entries, scheme).items():
        means = [e.mean("test_accuracy") for e in group]
        ax.errorbar(
            [e.mean(cost) for e in group],
            means,
            yerr=_bars(means, [e.spread("test_accuracy") for e in group]),
            fmt=marker,
            markersize=scheme.marker_size,
            color=colour,
            capsize=0 if scheme.many else 3,
            elinewidth=1,
            markerfacecolor=colour if converged else "white",
            markeredgewidth=1.5 if scheme.many else 1.8,
        )


def _reference_points(ax: Axes, entries: Sequence[Contender], cost: str, scheme: Scheme, short_too: bool) -> None:
    """Draw a filled marker at each reference accuracy.

    If short trainings are drawn too, a dotted line connects the marker with the accuracy of the short training.
    Otherwise a bar shows the range over the seeds of the reference, or the interval of a single seed.
    """
    for e in entries:
        known = e.reference
        if known is None:
            continue
        look, x = scheme.looks[e.model], e.mean(cost)
        ends = [known.low, known.high]
        line = "-"
        if short_too:
            ends = [e.mean("test_accuracy"), known.accuracy]
            line = ":"
        ax.plot([x, x], ends, color=look.colour, linestyle=line, linewidth=1, zorder=1)
        ax.plot([x], [known.accuracy], look.marker, color=look.colour, markersize=scheme.marker_size)


def _has_front(entries: Sequence[Contender], cost: str) -> bool:
    """Return whether a panel has a front: two or more networks under the same settings with a settled accuracy."""
    return compare_alike(entries) and sum(e.settled is not None for e in measured(entries, cost)) > 1


def _alike(entries: Sequence[Contender], scheme: Scheme) -> dict[tuple[str, str, bool], list[Contender]]:
    """Return the contenders by colour, marker and convergence; a picture draws each of these groups as one object."""
    groups: dict[tuple[str, str, bool], list[Contender]] = {}
    for entry in entries:
        look = scheme.looks[entry.model]
        groups.setdefault((look.colour, look.marker, entry.converged), []).append(entry)
    return groups


def _bars(middles: Sequence[float], ends: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Return the lengths of the error bars below and above each middle.

    The mean of equal values may differ from them in its last digit, so negative lengths are raised to 0.
    """
    below = [max(middle - low, 0.0) for middle, (low, _) in zip(middles, ends, strict=True)]
    above = [max(high - middle, 0.0) for middle, (_, high) in zip(middles, ends, strict=True)]
    return [below, above]


def _steps(ax: Axes, entries: Sequence[Contender], cost: str) -> list[tuple[float, float]]:
    """Return the corners of the front's step line: the best accuracy at each cost, up to the panel's right edge."""
    # From one point to the next the line runs right at the same accuracy, then up.
    points = [(e.mean(cost), e.settled) for e in front(entries, cost) if e.settled is not None]
    points.append((ax.get_xlim()[1], points[-1][1]))
    return [points[0], *(corner for (_, y), b in pairwise(points) for corner in ((b[0], y), b))]


def _accuracy_axis(ax: Axes, spreads: Sequence[tuple[float, float]]) -> None:
    low, high = min(low for low, _ in spreads), max(high for _, high in spreads)
    room = max(0.08 * (high - low), 0.004)
    ax.set_ylim(max(0, low - room), min(1.0 + room / 2, high + 2 * room))
    ax.yaxis.set_major_formatter(FuncFormatter(_percent))


def _percent(share: float, _: int | None = None) -> str:
    """Return a share as a tick label in per cent, with its decimals, so that 12.5 % does not become 12 %."""
    return f"{100 * share:.4g}%"


def _explain(figure: Figure, drawn: Mapping[str, Sequence[Contender]], cost: str, short_too: bool) -> None:
    """Write below the panels what the line, the bars and the markers mean."""
    everyone = [e for entries in drawn.values() for e in entries]
    notes = []
    if any(_has_front(entries, cost) for entries in drawn.values()):
        notes.append("grey line: front, no network is more accurate at equal or lower cost")
    if not short_too:
        notes.append("bar: range over seeds, or 95 % interval of one seed")
    elif any(len(e.per_seed("test_accuracy")) > 1 for e in everyone):
        notes.append("bar: range over seeds, marker at their mean")
    if short_too and any(e.reference for e in everyone):
        notes.append("filled marker: after the reference training")
    if short_too and not all(e.converged for e in everyone):
        notes.append("open marker: after this run's short training, not converged")
    if len(drawn) > 1:
        notes = textwrap.wrap("; ".join(notes), LONGEST_EXPLANATION)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=9, color=SOFT)


def _finish(figure: Figure, scheme: Scheme, drawn: Mapping[str, Sequence[Contender]]) -> None:
    """Add the legend if there are many networks, and lay out the panels, so that their positions are final."""
    if scheme.many:
        shown = [scheme.looks[e.model] for entries in drawn.values() for e in entries]
        family_legend(figure, shown, lines=False)
    figure.draw_without_rendering()


def _name_accuracies(ax: Axes, entries: Sequence[Contender], cost: str, scheme: Scheme) -> None:
    # Networks on the front are named even in a full panel, all networks only in one with few of them.
    best = {id(e) for e in front(entries, cost)}
    needed = best if len(best) <= MOST_NAMED else set()
    if not scheme.many and len(entries) <= MOST_NAMED:
        needed = {id(e) for e in entries}
    names = []
    for e in entries:
        side = (-1, 1) if id(e) in best else (1, 1)  # no network lies above the front or to its left
        y = e.settled if e.settled is not None else e.mean("test_accuracy")
        names.append(Name(e.mean(cost), y, scheme.names[e.model], id(e) in needed, side))
    lines = []
    if _has_front(entries, cost):
        corners = ax.transData.transform(_steps(ax, entries, cost))
        lines = [Bbox([a, b]).padded(1) for a, b in pairwise(corners)]
    write_names(ax, names, scheme.letter_size, lines)


@plain_text()
def latency_against_macs(records: Sequence[Record]) -> Figure | None:
    """Draw latency against multiply-adds, one panel per data set, with their rank correlation.

    Returns:
        The picture; None if no network has both figures.
    """
    drawn = panels_drawn(measured(contenders(records), "macs", "latency_ms_median"))
    if not drawn:
        return None
    scheme = Scheme.of(r.model for r in records)
    figure, axes = panels(drawn, scheme.many, height=6.0 if scheme.many else 4.0)
    for label, entries in drawn.items():
        ax = axes[label]
        for (colour, marker, _), group in _alike(entries, scheme).items():
            middles = [latency_spread(e).median for e in group]
            ax.errorbar(
                [e.mean("macs") for e in group],
                middles,
                yerr=_bars(middles, [(latency_spread(e).low, latency_spread(e).high) for e in group]),
                fmt=marker,
                color=colour,
                markersize=scheme.marker_size,
                elinewidth=0.8,
                capsize=0,
            )
        log_axis(ax, ax.xaxis, [e.mean("macs") for e in entries], COSTS["macs"][0], _tick)
        log_axis(ax, ax.yaxis, [end for e in entries for end in latency_spread(e)], "", "{:g}".format)
    title_left(axes, COSTS[LATENCY][0])
    figure.supxlabel("marker: median of the calls; bar: first to ninth decile", fontsize=9, color=SOFT)
    _finish(figure, scheme, drawn)
    for label, entries in drawn.items():
        # Of many networks, only the pair that multiply-adds misjudge most is named in any case.
        needed = {id(e) for e in misjudged(entries) or ()}
        if not scheme.many and len(entries) <= MOST_NAMED:
            needed = {id(e) for e in entries}
        names = [Name(e.mean("macs"), e.mean(LATENCY), scheme.names[e.model], id(e) in needed) for e in entries]
        write_names(axes[label], names, scheme.letter_size, _correlation_note(axes[label], entries))
    return figure


def _correlation_note(ax: Axes, entries: Sequence[Contender]) -> list[Bbox]:
    """Write the rank correlation, if it exists, into a corner of the panel, and return the box that the text fills."""
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


def with_curves(records: Sequence[Record]) -> dict[str, list[tuple[Record, Curve]]]:
    """Return the records that have a learning curve, each with its curve, by data set."""
    groups: dict[str, list[tuple[Record, Curve]]] = {}
    for r in records:
        images, steps = r.training.get("images"), r.training.get("steps")
        points = [p for p in r.training.get("curve") or () if p.get("train/accuracy") is not None]
        if points and images and steps:
            # Lightning counts the steps of logged values from 0.
            seen = [(p["step"] + 1) * images / steps for p in points]
            groups.setdefault(r.data["label"], []).append((r, (seen, [p["train/accuracy"] for p in points])))
    return groups


@plain_text()
def learning_curves(records: Sequence[Record]) -> Figure | None:
    """Draw training accuracy against the number of images seen, one panel per data set.

    Returns:
        The picture; None if no record has a learning curve.
    """
    groups = with_curves(records)
    labels = list(groups)[:MOST_PANELS]
    if not labels:
        return None
    scheme = Scheme.of(r.model for r in records)
    many = scheme.many
    figure, axes = panels(labels, many, height=4.6 if many else 3.6)
    for label, ax in axes.items():
        for r, (seen, accuracies) in groups[label]:
            look = scheme.looks[r.model]
            ax.plot(
                seen,
                accuracies,
                color=look.colour,
                linestyle=look.line,
                label=look.entry,
                linewidth=1.1 if many else 1.6,
                alpha=0.8 if many else 1.0,
            )
        everyone = [images for _, (seen, _) in groups[label] for images in seen]
        log_axis(ax, ax.xaxis, everyone, "training images seen", _tick)
        ax.set_ylim(0, 1.02)
        ax.yaxis.set_major_formatter(FuncFormatter(_percent))
        if not many:
            # The seeds of a network share one entry of the legend.
            handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
            ax.legend(handles.values(), handles.keys(), frameon=False, fontsize=9, loc="best")
    title_left(axes, "training accuracy")
    if many:
        family_legend(figure, (scheme.looks[r.model] for label in labels for r, _ in groups[label]), lines=True)
    return figure


def matrix_title(record: Record, counts: Counts) -> str:
    """Return the title above the confusion matrix of a cell: network, data and accuracy, in one line or two."""
    correct, total = sum(row[index] for index, row in enumerate(counts)), sum(map(sum, counts))
    share = f": {correct / total:.1%}" if total else ""
    name, where = short_names([record.model])[record.model], f"on {shorten(record.data['label'], LONGEST_LABEL)}{share}"
    return f"{name} {where}" if len(name + where) <= LONGEST_TITLE else f"{name}\n{where}"


def matrix_note(record: Record) -> str:
    """Return the note below the confusion matrix of a cell: whether the training was short, and the worst mistakes."""
    lines = [] if record.training.get("converged", True) else ["short training, not converged"]
    short = {name: shorten(name, LONGEST_CLASS) for name in record.data["class_names"]}
    lines += textwrap.wrap(confusion_sentence(record, names=short), LONGEST_NOTE)
    return "\n".join(lines)


@plain_text()
def draw_confusion(counts: Counts, names: Sequence[str], title: str, note: str) -> Figure:
    """Draw a confusion matrix, with each cell coloured by its share of the row.

    Args:
        counts: Numbers of images, (K, K); rows are true classes, columns are predicted classes.
        names: Names of the K classes.
        title: Title above the matrix.
        note: Text below the matrix.
    """
    shares = [[n / max(sum(row), 1) for n in row] for row in counts]
    figure = Figure(figsize=(5.6, 5.4), layout="constrained")
    ax = figure.subplots()
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    name_classes(ax, names)
    for i, row in enumerate(counts if len(names) <= MOST_NUMBERED_CLASSES else ()):
        for j, n in enumerate(row):
            if n:
                colour = cell_colour(shares[i][j])
                ax.text(j, i, str(n), ha="center", va="center", fontsize=cell_letters(len(names)), color=colour)
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    figure.supxlabel(note, fontsize=8.5, color=SOFT)
    return figure


def cell_letters(classes: int) -> int:
    """Return the font size of the numbers in the cells of a confusion matrix, in points."""
    return 8 if classes <= 10 else 5


def cell_colour(share: float) -> str:
    """Return the colour of the number in a cell: white on a dark cell, which holds a large share of its row."""
    return "white" if share > 0.55 else "#222222"


@plain_text()
def name_classes(ax: Axes, names: Sequence[str]) -> None:
    """Write class names beside the rows and columns of a confusion matrix; of many classes, only every n-th name."""
    # Smallest step that leaves at most `MOST_NUMBERED_CLASSES` names; -(-a // b) rounds a / b up.
    step = -(-len(names) // MOST_NUMBERED_CLASSES) or 1
    places = range(0, len(names), step)
    shown = [shorten(names[place], LONGEST_CLASS) for place in places]
    slant: dict[str, Any] = {}
    if max(map(len, shown), default=0) > 3:
        slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(places, shown, fontsize=9, **slant)
    ax.set_yticks(places, shown, fontsize=9)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    ax.spines[:].set_visible(False)


def confusion_sentence(record: Record, limit: int = 3, names: Mapping[str, str] | None = None) -> str:
    """Return the most frequent mistakes of a cell in words.

    Args:
        record: Record with a confusion matrix.
        limit: Largest number of mistakes that are named.
        names: Names to use in the sentence, by class name of the record; by default the names of the record.
    """
    classes = [names[name] if names else name for name in record.data["class_names"]]
    worst = most_confused(record.confusion_matrix or [], limit)
    if not worst:
        return "no mistakes"
    mistakes = (f"{classes[m.true]} → {classes[m.predicted]} ({m.images})" for m in worst)
    return "most often mistaken: " + ", ".join(mistakes)
