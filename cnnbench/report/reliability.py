"""Reliability diagrams: the accuracy of a network against its confidence, from the predictions beside records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnbench.calibration import BINS, Bins, binned
from cnnbench.plots.drawing import LONGEST_LABEL, PANELS_IN_A_ROW, Scheme, plain_text, shorten
from cnnbench.record import Record, predictions_beside
from cnnbench.report.contenders import Contender, contenders
from cnnbench.report.stored_predictions import usable_predictions
from cnnbench.stats import wilson_interval

MOST_NETWORKS = 12
"""Largest number of networks with a panel; the figure `ece` of all networks is in the tables."""
SOFT = "#555555"


class Reliability(NamedTuple):
    """The calibration of a network.

    Attributes:
        entry: Network.
        bins: Test images by confidence; those of all seeds together.
        seeds: Number of trainings.
    """

    entry: Contender
    bins: Bins
    seeds: int


def with_confidences(records: Sequence[Record]) -> list[Contender]:
    """Return the networks that have a file of predictions beside a record, which may lack confidences."""
    return [e for e in contenders(records) if any(predictions_beside(record) for record in e.records)]


def reliabilities(records: Sequence[Record]) -> list[Reliability]:
    """Return the calibration of the first `MOST_NETWORKS` networks whose confidences are known."""
    found: list[Reliability] = []
    for entry in with_confidences(records):
        if len(found) == MOST_NETWORKS:
            break
        tests = [kept for record in entry.records if (kept := usable_predictions(record, scores=True)) is not None]
        known = [(a.confidence, a.right) for a in tests if a.confidence is not None and len(a.true)]
        if known:
            confidence, right = (np.concatenate(parts) for parts in zip(*known, strict=True))
            found.append(Reliability(entry, binned(confidence, right), len(known)))
    return found


@plain_text()
def reliability_diagram(records: Sequence[Record]) -> Figure | None:
    """Draw accuracy against confidence, and the number of images in each bin, a panel per network.

    Returns:
        The picture; None if no record has confidences beside it.
    """
    found = reliabilities(records)
    if not found:
        return None
    columns = min(PANELS_IN_A_ROW, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(4.2 * columns, 4.8 * rows), layout="constrained")
    # Each panel is a plot of accuracies above a plot of numbers of images.
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1.4] * rows)
    scheme = Scheme.of(r.model for r in records)
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        upper, lower = axes[2 * row, column], axes[2 * row + 1, column]
        if place >= len(found):
            upper.set_visible(False)
            lower.set_visible(False)
            continue
        _accuracies(upper, found[place], scheme)
        _numbers(lower, found[place].bins)
    note = "point: accuracy of the images in a bin, at their mean confidence; bar: 95 % interval; dashed: calibrated"
    figure.supxlabel(note if columns > 1 else note.replace("; ", "\n"), fontsize=9, color=SOFT)
    return figure


def _accuracies(ax: Axes, found: Reliability, scheme: Scheme) -> None:
    """Draw the accuracy of each bin at its mean confidence, with Wilson's interval for the images of one test."""
    bins = found.bins
    filled = np.flatnonzero(bins.images)
    shares = bins.right[filled] / bins.images[filled]
    # Further seeds are tested on the same images, so the interval is that of the mean counts per seed.
    ends = [wilson_interval(bins.right[k] / found.seeds, bins.images[k] / found.seeds) for k in filled]
    below = [max(share - low, 0.0) for share, (low, _) in zip(shares, ends, strict=True)]
    above = [max(high - share, 0.0) for share, (_, high) in zip(shares, ends, strict=True)]
    look = scheme.looks[found.entry.model]
    ax.plot([0, 1], [0, 1], linestyle="--", color="#999999", linewidth=1)
    ax.errorbar(
        bins.confidence[filled],
        shares,
        yerr=[below, above],
        fmt=look.marker,
        color=look.colour,
        markersize=5,
        capsize=2,
    )
    # The room beyond 1 keeps the last marker from being cut in half.
    ax.set_xlim(0, 1.03)
    ax.set_ylim(0, 1.03)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_ylabel("accuracy")
    ax.tick_params(labelbottom=False)
    seeds = f", {found.seeds} seeds" if found.seeds > 1 else ""
    name = shorten(found.entry.name.replace(found.entry.model, scheme.names[found.entry.model], 1), LONGEST_LABEL)
    where = shorten(found.entry.label, LONGEST_LABEL)
    ax.set_title(f"{name}\non {where}\nECE {100 * bins.error:.2f} %{seeds}", loc="left", fontsize=10)


def _numbers(ax: Axes, bins: Bins) -> None:
    """Draw the number of images in each bin on a logarithmic axis, with the number above each bar."""
    middles = (np.arange(BINS) + 0.5) / BINS
    ax.bar(middles, bins.images, width=0.9 / BINS, color="#b5b5b5")
    ax.set_yscale("log")
    ax.set_xlim(0, 1.03)
    ax.spines[["top", "right", "left"]].set_visible(False)
    # Every bar has its number, so the axis needs none.
    ax.set_yticks([])
    ax.set_yticks([], minor=True)
    # The numbers stand upright above the bars and need room there.
    ax.set_ylim(0.8, max(2.0, float(bins.images.max())) ** 1.7)
    for middle, images in zip(middles, bins.images, strict=True):
        if images:
            ax.text(middle, images * 1.2, f"{images:,}", rotation=90, ha="center", va="bottom", fontsize=6, color=SOFT)
    ax.set_xlabel("confidence")
    ax.set_ylabel("images (log)")
