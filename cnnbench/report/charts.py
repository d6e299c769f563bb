"""Pictures from records: accuracy against cost, latency against multiply-adds, learning curves, confusion matrices.

The functions that compare networks draw one panel per data set and return None if the records have nothing to show. A
network has the same colour and marker in all pictures, see `cnnbench.plots.drawing.Scheme`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice, pairwise
from typing import Any, NamedTuple

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
from cnnbench.references import percent, reference_of
from cnnbench.report.contenders import Contender, by_label, compare_alike, contenders
from cnnbench.report.findings import (
    LATENCY,
    MACS,
    front,
    latency_correlation,
    latency_spread,
    means,
    measured,
    misjudged,
    several_seeds,
    trained_epochs,
    with_settled,
)
from cnnbench.units import scaled

COST_PICTURES = {
    MACS: ("multiply-adds (MACs) per image", "accuracy_macs"),
    LATENCY: ("latency of one image, milliseconds", "accuracy_latency"),
}
"""Costs that accuracy is drawn against: axis title and file name by key of the figure."""
SOFT = "#555555"
LONGEST_TITLE = 44
"""Characters that fit into one line above a confusion matrix."""
LONGEST_CLASS = 16
"""Characters of a class name in a picture; longer names are shortened."""
LONGEST_NOTE = 78
"""Characters that fit into one line below a confusion matrix."""
LONGEST_EXPLANATION = 120
"""Characters that fit into one line below two or more panels."""
MOST_NAMED = 40
"""Largest number of networks in a panel whose names are all written; with more, a name must not cover anything."""
MOST_NUMBERED_CLASSES = 20
"""Largest number of classes for which a confusion matrix has room for numbers in its cells and for every class name."""


class Curve(NamedTuple):
    """The learning curve of a record.

    Attributes:
        record: Record that the curve belongs to.
        images: Numbers of training images seen.
        accuracies: Training accuracy at each of these points.
    """

    record: Record
    images: list[float]
    accuracies: list[float]


def panels_drawn(entries: Sequence[Contender]) -> dict[str, list[Contender]]:
    """Return the contenders by data set, for as many data sets as a picture has panels."""
    return dict(islice(by_label(entries).items(), MOST_PANELS))


@plain_text()
def accuracy_against(records: Sequence[Record], cost: str) -> Figure | None:
    """Draw test accuracy against a cost, one panel per data set, with the Pareto front.

    A network with a short training has an open marker. If its reference accuracy is known, a filled marker shows it.

    Args:
        records: Records of one or several runs.
        cost: Key of `COST_PICTURES`.

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
        cost: Key of `COST_PICTURES`.

    Returns:
        The picture; None if no network has a reference accuracy, or none can be compared with another.
    """
    return _accuracy_figure(records, with_references(records, cost), cost, short_too=False)


def with_references(records: Sequence[Record], cost: str) -> list[Contender]:
    """Return the contenders whose accuracy after a full training is known, from data sets with two or more of them.

    The list is empty if all these accuracies come from the records themselves and none from a reference training.
    """
    groups = by_label(with_settled(measured(contenders(records), cost, "test_accuracy")))
    entries: list[Contender] = []
    for group in groups.values():
        if _has_front(group, cost):
            entries += group
    # Without a reference training, the picture would repeat the one of the records' own accuracies.
    if all(e.reference is None for e in entries):
        return []
    return entries


def _accuracy_figure(
    records: Sequence[Record], entries: Sequence[Contender], cost: str, short_too: bool
) -> Figure | None:
    """Draw test accuracy against a cost; `short_too` decides whether accuracies of short trainings are drawn."""
    drawn = panels_drawn(entries)
    if not drawn:
        return None
    scheme = _scheme(records)
    figure, axes = _panels(drawn, scheme)
    for label, group in drawn.items():
        _accuracy_panel(axes[label], group, cost, scheme, short_too)
    title = "test accuracy"
    if not short_too:
        title = "test accuracy after the reference training"
    title_left(axes, title)
    _explain(figure, drawn, cost, short_too)
    _finish(figure, scheme, drawn)
    # Names come last, because they depend on the final positions of the panels.
    for label, group in drawn.items():
        _name_accuracies(axes[label], group, cost, scheme)
    return figure


def _scheme(records: Sequence[Record]) -> Scheme:
    """Return the scheme of all networks of a report, whether or not the picture shows them."""
    return Scheme.of(r.model for r in records)


def _panels(labels: Iterable[str], scheme: Scheme) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with a panel per data set, which is higher for many networks, and the panels by label."""
    height = 6.0 if scheme.many else 4.0
    return panels(labels, scheme.many, height)


def _accuracy_panel(ax: Axes, entries: Sequence[Contender], cost: str, scheme: Scheme, short_too: bool) -> None:
    """Draw the accuracies on one data set, and the front if the networks have one."""
    # The limits are set before the front is drawn, because its line ends at the right edge of the panel.
    _cost_axis(ax, entries, cost)
    of_this_run: list[Contender] = []
    ends: list[float] = []
    for e in entries:
        known = e.reference
        if known is not None:
            ends += (known.low, known.high)
        # A network with a reference has a marker at its reference accuracy; its short training is drawn only on demand.
        if short_too or known is None:
            of_this_run.append(e)
            ends += e.spread("test_accuracy")
    _accuracy_axis(ax, ends)
    if _has_front(entries, cost):
        costs, accuracies = zip(*_steps(ax, entries, cost), strict=True)
        ax.plot(costs, accuracies, color="#b0b0b0", linewidth=1.3, zorder=1)
    _accuracy_points(ax, of_this_run, cost, scheme)
    _reference_points(ax, entries, cost, scheme, short_too)


def _accuracy_points(ax: Axes, entries: Sequence[Contender], cost: str, scheme: Scheme) -> None:
    """Draw a marker at the mean over seeds, with a bar over their range, or over the interval of a single seed."""
    cap, edge = 3, 1.8
    if scheme.many:
        cap, edge = 0, 1.5
    for (colour, marker, converged), group in _alike(entries, scheme).items():
        accuracies = means(group, "test_accuracy")
        ax.errorbar(
            means(group, cost),
            accuracies,
            yerr=_bars(accuracies, [e.spread("test_accuracy") for e in group]),
            fmt=marker,
            markersize=scheme.marker_size,
            color=colour,
            capsize=cap,
            elinewidth=1,
            markerfacecolor=colour if converged else "white",
            markeredgewidth=edge,
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
    return compare_alike(entries) and len(with_settled(measured(entries, cost))) > 1


def _alike(entries: Sequence[Contender], scheme: Scheme) -> dict[tuple[str, str, bool], list[Contender]]:
    """Return the contenders by colour, marker and convergence; a picture draws each of these groups as one object."""
    # One object of matplotlib has one colour and one marker, and a picture of few objects is drawn faster.
    groups: dict[tuple[str, str, bool], list[Contender]] = {}
    for entry in entries:
        look = scheme.looks[entry.model]
        groups.setdefault((look.colour, look.marker, entry.converged), []).append(entry)
    return groups


def _bars(middles: Sequence[float], ends: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Return the lengths of the error bars below and above each middle.

    The mean of equal values may differ from them in its last digit, so negative lengths are raised to 0.
    """
    below: list[float] = []
    above: list[float] = []
    for middle, (low, high) in zip(middles, ends, strict=True):
        # matplotlib refuses negative lengths with an error.
        below.append(max(middle - low, 0.0))
        above.append(max(high - middle, 0.0))
    return [below, above]


def _steps(ax: Axes, entries: Sequence[Contender], cost: str) -> list[tuple[float, float]]:
    """Return the corners of the front's step line: the best accuracy at each cost, up to the panel's right edge."""
    # Every network on the front has a settled accuracy; the condition only tells the type checker so.
    points = [(e.mean(cost), e.settled) for e in front(entries, cost) if e.settled is not None]
    # The best accuracy of all stays available at any higher cost.
    right_edge = ax.get_xlim()[1]
    points.append((right_edge, points[-1][1]))
    # From one point to the next the line runs right at the same accuracy, then up.
    corners = [points[0]]
    for (_, accuracy), (next_cost, next_accuracy) in pairwise(points):
        corners += [(next_cost, accuracy), (next_cost, next_accuracy)]
    return corners


def _cost_axis(ax: Axes, entries: Sequence[Contender], cost: str) -> None:
    """Make the horizontal axis logarithmic, with the title and the ticks of a cost."""
    # Latencies are in milliseconds and need no prefix.
    tick: Callable[[float], str] = "{:g}".format
    if cost == MACS:
        tick = _tick
    log_axis(ax, ax.xaxis, means(entries, cost), COST_PICTURES[cost][0], tick)


def _accuracy_axis(ax: Axes, accuracies: Sequence[float]) -> None:
    """Set the limits of the vertical axis around accuracies, and write its ticks in per cent."""
    low, high = min(accuracies), max(accuracies)
    # The room is larger above the accuracies than below them, since most names stand above their points.
    room = max(0.08 * (high - low), 0.004)
    # No accuracy is below 0 or above 1, but a point at 1 needs room for half of its marker.
    top = 1.0
    if high + room / 2 > top:
        top += room / 2
    ax.set_ylim(max(0, low - room), min(top, high + 2 * room))
    ax.yaxis.set_major_formatter(FuncFormatter(_percent))


def _percent(share: float, _: int | None = None) -> str:
    """Return a share as a tick label in per cent, with its decimals, so that 12.5 % does not become 12 %."""
    # The room for names may reach beyond 100 %, where no accuracy lies.
    if share > 1:
        return ""
    return f"{100 * share:.4g}%"


def _explain(figure: Figure, drawn: Mapping[str, Sequence[Contender]], cost: str, short_too: bool) -> None:
    """Write below the panels what the line, the bars and the markers mean."""
    notes = []
    if any(_has_front(entries, cost) for entries in drawn.values()):
        notes.append("grey line: front, no network is more accurate at equal or lower cost")
    if short_too:
        notes += _notes_on_short_trainings(list(chain.from_iterable(drawn.values())))
    else:
        notes.append("bar: range over seeds, or 95 % interval of one seed")
        epochs = "; ".join(f"{label} {trained_epochs(entries)}" for label, entries in drawn.items())
        notes.append(f"epochs of these trainings: {epochs}")
    # Below several panels the notes fill whole lines; below a single panel each note has a line of its own.
    if len(drawn) > 1:
        notes = textwrap.wrap("; ".join(notes), LONGEST_EXPLANATION)
    if notes:
        # The constrained layout reserves room for this label of the figure, which it does not do for plain texts.
        figure.supxlabel("\n".join(notes), fontsize=9, color=SOFT)


def _notes_on_short_trainings(entries: Sequence[Contender]) -> list[str]:
    """Return what bars and markers mean in a picture that has short trainings too."""
    notes = []
    if several_seeds(entries):
        notes.append("bar: range over seeds, marker at their mean")
    if any(e.reference for e in entries):
        notes.append("filled marker: after the reference training")
    if not all(e.converged for e in entries):
        notes.append("open marker: after this run's short training, not converged")
    return notes


def _finish(figure: Figure, scheme: Scheme, drawn: Mapping[str, Sequence[Contender]]) -> None:
    """Add the legend if there are many networks, and lay out the panels, so that their positions are final."""
    if scheme.many:
        shown = chain.from_iterable(drawn.values())
        family_legend(figure, (scheme.looks[e.model] for e in shown), lines=False)
    # The constrained layout moves the panels only when the figure is drawn.
    figure.draw_without_rendering()


def _needed(entries: Sequence[Contender], scheme: Scheme, important: Iterable[Contender]) -> set[int]:
    """Return the networks whose names are written in any case: all of a few networks, else the important ones.

    Args:
        entries: Networks of a panel.
        scheme: Scheme of the picture.
        important: Networks whose names are written even in a full panel.

    Returns:
        The result of ``id`` for each of them, since a contender cannot be a member of a set.
    """
    if not scheme.many and len(entries) <= MOST_NAMED:
        important = entries
    return {id(e) for e in important}


def _name_accuracies(ax: Axes, entries: Sequence[Contender], cost: str, scheme: Scheme) -> None:
    """Write the names of the networks beside their markers, so that none covers the line of the front."""
    best = front(entries, cost)
    on_front = {id(e) for e in best}
    # A front of very many networks leaves no room for all of their names, so none of them is needed.
    needed = _needed(entries, scheme, best if len(best) <= MOST_NAMED else ())
    names = []
    for e in entries:
        # The name stands beside the settled accuracy; without one there is only the marker of the short training.
        accuracy = e.settled
        if accuracy is None:
            accuracy = e.mean("test_accuracy")
        # To the left and above is the best side for a network on the front, where no other network can lie.
        side = (-1, 1) if id(e) in on_front else (1, 1)
        names.append(Name(e.mean(cost), accuracy, scheme.names[e.model], id(e) in needed, side))
    lines = []
    if _has_front(entries, cost):
        # A box around each piece of the step line keeps names away from it.
        corners = ax.transData.transform(_steps(ax, entries, cost))
        lines = [Bbox([a, b]).padded(1) for a, b in pairwise(corners)]
    write_names(ax, names, scheme.letter_size, lines)


@plain_text()
def latency_against_macs(records: Sequence[Record]) -> Figure | None:
    """Draw latency against multiply-adds, one panel per data set, with their rank correlation.

    Returns:
        The picture; None if no network has both figures.
    """
    drawn = panels_drawn(measured(contenders(records), MACS, LATENCY))
    if not drawn:
        return None
    scheme = _scheme(records)
    figure, axes = _panels(drawn, scheme)
    for label, entries in drawn.items():
        _latency_panel(axes[label], entries, scheme)
    title_left(axes, COST_PICTURES[LATENCY][0])
    figure.supxlabel("marker: median of the calls; bar: first to ninth decile", fontsize=9, color=SOFT)
    _finish(figure, scheme, drawn)
    for label, entries in drawn.items():
        _name_latencies(axes[label], entries, scheme)
    return figure


def _latency_panel(ax: Axes, entries: Sequence[Contender], scheme: Scheme) -> None:
    """Draw a marker at the median latency of each network on one data set, with a bar between the deciles."""
    latencies: list[float] = []
    for (colour, marker, _), group in _alike(entries, scheme).items():
        spreads = [latency_spread(e) for e in group]
        # A spread is a tuple of low end, median and high end, and the axis has to show all three.
        latencies += chain.from_iterable(spreads)
        middles = [spread.median for spread in spreads]
        ax.errorbar(
            means(group, MACS),
            middles,
            yerr=_bars(middles, [(spread.low, spread.high) for spread in spreads]),
            fmt=marker,
            color=colour,
            markersize=scheme.marker_size,
            elinewidth=0.8,
            capsize=0,
        )
    _cost_axis(ax, entries, MACS)
    log_axis(ax, ax.yaxis, latencies, "", "{:g}".format)


def _name_latencies(ax: Axes, entries: Sequence[Contender], scheme: Scheme) -> None:
    """Write the names of the networks beside their markers, and the rank correlation into a corner."""
    # Of many networks, only the pair that multiply-adds misjudge most is named in any case.
    needed = _needed(entries, scheme, misjudged(entries) or ())
    names = []
    for e in entries:
        names.append(Name(e.mean(MACS), e.mean(LATENCY), scheme.names[e.model], id(e) in needed))
    write_names(ax, names, scheme.letter_size, _correlation_note(ax, entries))


def _correlation_note(ax: Axes, entries: Sequence[Contender]) -> list[Bbox]:
    """Write the rank correlation, if it exists, into a corner of the panel, and return the box that the text fills."""
    correlation = latency_correlation(entries)
    if correlation is None:
        return []
    text = f"Spearman {correlation.value:.2f}"
    if correlation.interval:
        low, high = correlation.interval
        text += f", 95 % interval {low:.2f} to {high:.2f}"
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    note = ax.text(0.02, 0.98, text, transform=ax.transAxes, va="top", fontsize=9, color=SOFT, bbox=white)
    # The layout of the figure is final by now, so this position in pixels is final too.
    return [note.get_window_extent()]


def _tick(value: float) -> str:
    """Return a number with a prefix as a tick label, such as 10M."""
    number, prefix = scaled(value)
    return f"{number:g}{prefix}"


def with_curves(records: Sequence[Record]) -> dict[str, list[Curve]]:
    """Return the learning curves of the records that have one, by data set."""
    groups: dict[str, list[Curve]] = {}
    for r in records:
        images, steps = r.training.get("images"), r.training.get("steps")
        # Other values, such as the learning rate, may be logged at points of their own.
        points = [p for p in r.training.get("curve") or () if p.get("train/accuracy") is not None]
        if points and images and steps:
            # Lightning counts the steps of logged values from 0.
            # The quotient images / steps is the batch size, since a training takes whole batches only.
            seen = [(p["step"] + 1) * images / steps for p in points]
            accuracies = [p["train/accuracy"] for p in points]
            groups.setdefault(r.data["label"], []).append(Curve(r, seen, accuracies))
    return groups


@plain_text()
def learning_curves(records: Sequence[Record]) -> Figure | None:
    """Draw training accuracy against the number of images seen, one panel per data set.

    Returns:
        The picture; None if no record has a learning curve.
    """
    drawn = dict(islice(with_curves(records).items(), MOST_PANELS))
    if not drawn:
        return None
    scheme = _scheme(records)
    figure, axes = panels(drawn, scheme.many, height=4.6 if scheme.many else 3.6)
    for label, curves in drawn.items():
        _curves_panel(axes[label], curves, scheme)
    title_left(axes, "training accuracy")
    if scheme.many:
        shown = chain.from_iterable(drawn.values())
        family_legend(figure, (scheme.looks[curve.record.model] for curve in shown), lines=True)
    return figure


def _curves_panel(ax: Axes, curves: Sequence[Curve], scheme: Scheme) -> None:
    """Draw the learning curves of one data set, with a legend in the panel if there are few networks."""
    width, opacity = 1.6, 1.0
    if scheme.many:
        width, opacity = 1.1, 0.8
    seen: list[float] = []
    for curve in curves:
        seen += curve.images
        look = scheme.looks[curve.record.model]
        ax.plot(
            curve.images,
            curve.accuracies,
            color=look.colour,
            linestyle=look.line,
            label=look.entry,
            linewidth=width,
            alpha=opacity,
        )
    log_axis(ax, ax.xaxis, seen, "training images seen", _tick)
    # The room above 1 keeps a curve at 100 % from being cut in half.
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(FuncFormatter(_percent))
    if not scheme.many:
        # The seeds of a network share one entry of the legend.
        handles, names = ax.get_legend_handles_labels()
        entries = dict(zip(names, handles, strict=True))
        ax.legend(entries.values(), entries.keys(), frameon=False, fontsize=9, loc="best")


def matrix_title(record: Record, counts: Counts) -> str:
    """Return the title above the confusion matrix of a cell: network, data and accuracy, in one line or two."""
    correct = sum(row[index] for index, row in enumerate(counts))
    total = sum(map(sum, counts))
    name = short_names([record.model])[record.model]
    where = f"on {shorten(record.data['label'], LONGEST_LABEL)}"
    if total:
        where += f": {correct / total:.1%}"
    separator = " " if len(name + where) <= LONGEST_TITLE else "\n"
    return f"{name}{separator}{where}"


def matrix_note(record: Record) -> str:
    """Return the note below the confusion matrix of a cell: whether the training was short, and the worst mistakes."""
    lines = []
    if not record.fully_trained:
        known = reference_of(record)
        after = f"; {percent(known.accuracy)} after the reference training" if known else ""
        lines.append(f"short training, not converged{after}")
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
    shares = []
    for row in counts:
        images = max(sum(row), 1)  # a class without images has shares of 0
        shares.append([n / images for n in row])
    figure = Figure(figsize=(5.6, 5.4), layout="constrained")
    ax = figure.subplots()
    # Shares of a row have the same meaning in every row, also if the classes differ in their numbers of images.
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    name_classes(ax, names)
    if len(names) <= MOST_NUMBERED_CLASSES:
        _write_counts(ax, counts, shares)
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    figure.supxlabel(note, fontsize=8.5, color=SOFT)
    return figure


def _write_counts(ax: Axes, counts: Counts, shares: Sequence[Sequence[float]]) -> None:
    """Write the number of images into each cell that has any, in a colour that its share of the row leaves legible."""
    size = cell_letters(len(counts))
    for i, row in enumerate(counts):
        for j, n in enumerate(row):
            if n:
                ax.text(j, i, str(n), ha="center", va="center", fontsize=size, color=cell_colour(shares[i][j]))


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
    # Names of more than three characters would run into each other, so they are slanted below the columns.
    slant: dict[str, Any] = {}
    if max(map(len, shown), default=0) > 3:
        # In this mode a name is turned about its right end, which stays below its column.
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
    classes = record.data["class_names"]
    if names:
        classes = [names[name] for name in classes]
    worst = most_confused(record.confusion_matrix or [], limit)
    if not worst:
        return "no mistakes"
    mistakes = (f"{classes[m.true]} → {classes[m.predicted]} ({m.images})" for m in worst)
    return "most often mistaken: " + ", ".join(mistakes)
