"""Pictures of trends: one per figure, with a panel for each data set and device, and a line for each network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from cnnbench.plots.drawing import MOST_PANELS, Scheme, family_legend, panels, plain_text, shorten, title_left
from cnnbench.record import Record
from cnnbench.report.trends import Run, Series, Tracked, all_series, runs_of, version_changes

MOST_RUNS_NAMED = 5
"""Largest number of runs of a panel that are named below its axis."""
LONGEST_CHANGE = 48
"""Characters of a change of versions in a panel; the versions in full are in the records."""
SOFT = "#777777"


@plain_text()
def trend(records: Sequence[Record], tracked: Tracked) -> Figure | None:
    """Draw the trend of a figure by day and commit.

    Costs are drawn as their change from the first run of the line, since networks differ by orders of magnitude;
    accuracies as they are.

    Returns:
        The picture; None if no network has enough comparable runs.
    """
    drawn = dict(islice(by_panel(all_series(records, tracked)).items(), MOST_PANELS))
    if not drawn:
        return None
    scheme = Scheme.of(record.model for record in records)
    figure, axes = panels(drawn, scheme.many, height=4.6 if scheme.many else 3.8)
    for name, series in drawn.items():
        _panel(axes[name], series, scheme)
    title_left(axes, tracked.words if tracked.is_accuracy else f"{tracked.words},\nchange from the first run")
    if scheme.many:
        shown = [scheme.looks[entry.model] for series in drawn.values() for entry in series]
        family_legend(figure, shown, lines=True)
    return figure


def by_panel(series: Sequence[Series]) -> dict[str, list[Series]]:
    """Return the series by panel."""
    groups: dict[str, list[Series]] = {}
    for entry in series:
        groups.setdefault(entry.panel, []).append(entry)
    return groups


def _panel(ax: Axes, series: Sequence[Series], scheme: Scheme) -> None:
    """Draw the lines of a panel, with a legend if there are few networks."""
    runs = runs_of(series)
    places = {run: place for place, run in enumerate(runs)}
    # The lines stand a little beside each other, so that no interval covers another one.
    apart = min(0.06, 0.4 / len(series))
    for index, entry in enumerate(series):
        _line(ax, entry, places, scheme, (index - (len(series) - 1) / 2) * apart)
    for run, words in version_changes(series):
        x = places[run] - 0.5
        ax.axvline(x, color=SOFT, linestyle=":", linewidth=1)
        ax.annotate(
            shorten(words, LONGEST_CHANGE),
            (x, 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="bottom",
            fontsize=7,
            color=SOFT,
        )
    _name_runs(ax, runs)
    ax.yaxis.set_major_formatter(FuncFormatter(_percent if series[0].tracked.is_accuracy else _signed_percent))
    if not scheme.many:
        ax.legend(frameon=False, fontsize=8, loc="best")


def _line(ax: Axes, entry: Series, places: dict[Run, int], scheme: Scheme, aside: float) -> None:
    """Draw the line of a series with the intervals of its points, by `aside` to the right of the runs."""
    look = scheme.looks[entry.model]
    unit, start = 1.0, 0.0
    # A cost of 0 in the first run has no relative change.
    if not entry.tracked.is_accuracy and entry.points[0].value:
        unit, start = entry.points[0].value, 1.0
    ys = [point.value / unit - start for point in entry.points]
    below = [max(point.value - point.low, 0.0) / unit for point in entry.points]
    above = [max(point.high - point.value, 0.0) / unit for point in entry.points]
    ax.errorbar(
        [places[point.run] + aside for point in entry.points],
        ys,
        yerr=[below, above],
        fmt=look.marker,
        linestyle=look.line,
        color=look.colour,
        label=shorten(entry.name),
        markersize=4,
        linewidth=1.3,
        elinewidth=0.8,
    )


def _name_runs(ax: Axes, runs: Sequence[Run]) -> None:
    """Write day and commit below the axis, of some runs only if there are many."""
    ax.set_xlim(-0.5, len(runs) - 0.5)
    # -(-a // b) is a / b rounded up.
    step = -(-len(runs) // MOST_RUNS_NAMED)
    named = range(0, len(runs), step)
    ax.set_xticks(list(named))
    ax.set_xticklabels([f"{shorten(runs[i].day)}\n{shorten(runs[i].commit)}" for i in named], fontsize=7.5)


def _percent(share: float, _: int | None = None) -> str:
    """Return a share as a tick label in per cent."""
    return f"{100 * share:.4g}%"


def _signed_percent(share: float, _: int | None = None) -> str:
    """Return a relative change as a tick label in per cent."""
    return f"{100 * share:+.4g}%" if share else "0%"
