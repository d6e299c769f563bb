"""Two devices side by side, as a terminal table, sentences and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from cnnbench import text
from cnnbench.files import write_bytes
from cnnbench.plots.drawing import (
    MOST_PANELS,
    Name,
    Scheme,
    family_legend,
    log_axis,
    panels,
    plain_text,
    shorten,
    write_names,
)
from cnnbench.report.machines import MOST_SWAPPED, Machines, Ranking, Times
from cnnbench.report.pictures import FigureSheet
from cnnbench.stats import FEWEST_FOR_CORRELATION_INTERVAL, Correlation, Interval
from cnnbench.units import plain

PICTURE = "machines"
"""File name of the picture, without suffix."""
LONGEST_SETTING = 120
"""Characters of the value of a setting in a sentence."""


def table(machines: Machines) -> Table:
    """Return a table with a row per network, data set and kind of work."""
    drawn = Table(header_style="bold")
    for title in ("Model", "Data", "Time"):
        drawn.add_column(title, overflow="fold")
    for title in ("A ms", "B ms", "B / A", "95 % interval"):
        drawn.add_column(title, justify="right")
    for times in machines.times:
        ratio = times.ratio
        cells = [times.model, times.label, times.kind.words, plain(times.ms(0)[0]), plain(times.ms(1)[0])]
        cells += [plain(ratio.estimate), _interval_words(ratio)]
        drawn.add_row(*(Text(text.printable(cell)) for cell in cells))
    return drawn


def _interval_words(ratio: Interval) -> str:
    """Return the interval of a ratio as text; a dash if it has none."""
    if ratio.low is None or ratio.high is None:
        return "-"
    return f"{plain(ratio.low)} to {plain(ratio.high)}"


def sentences(machines: Machines, everything: bool = False) -> list[str]:
    """Return what the table does not say: the devices, the settings, the counts and how both rank the networks.

    Args:
        machines: Two devices side by side.
        everything: Whether to name all pairs that change places, instead of the first ones.
    """
    lines = [f"A: {machines.names[0]}. B: {machines.names[1]}.", _counts(machines)]
    for name, a, b in machines.settings:
        of_a, of_b = text.shortened(a, LONGEST_SETTING), text.shortened(b, LONGEST_SETTING)
        lines.append(f"{name}: {of_a} on A, {of_b} on B")
    if not machines.settings:
        lines.append("apart from the device, A and B have the same settings and versions")
    lines += machines.alone
    lines += _medians(machines)
    for ranking in machines.rankings:
        lines += _ranking(ranking, everything)
    notes = dict.fromkeys(times.note for times in machines.times if times.note)
    lines.append(
        "B / A is the ratio of the times of an image: below 1, B is faster. Rounds of two machines are not paired, so "
        "its interval is that of the Mann-Whitney test on logarithms, for raw times."
    )
    lines += notes
    return lines


def _counts(machines: Machines) -> str:
    """Return one line on the counts of the networks."""
    networks = text.number_of(machines.equal_counts, "network")
    if len({times.label for times in machines.times}) > 1:
        networks += ", counted once for each data set"
    line = f"parameters and MACs are the same on A and B for {networks}"
    return "; ".join([line, *machines.other_counts])


def _medians(machines: Machines) -> list[str]:
    """Return a sentence per kind of work on the ratios of all networks."""
    by_kind: dict[str, list[float]] = {}
    for times in machines.times:
        by_kind.setdefault(times.kind.words, []).append(times.ratio.estimate)
    lines = []
    for words, ratios in by_kind.items():
        if len(ratios) == 1:
            lines.append(f"{words}: B / A is {plain(ratios[0])}")
            continue
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        lines.append(f"{words}: median of B / A {plain(middle)}, lowest {plain(low)}, highest {plain(high)}")
    return lines


def _ranking(ranking: Ranking, everything: bool) -> list[str]:
    """Return sentences on how both devices rank the networks of a data set."""
    head = f"{ranking.kind.words} on {ranking.label}: "
    found = ranking.correlation
    lines = [f"{head}{_pairs(ranking)}"]
    if found is not None:
        lines[0] += f" Spearman's rank correlation of A and B is {found.value:.2f} ({_correlation_interval(found)})."
    shown = len(ranking.swapped) if everything else MOST_SWAPPED
    for swap in ranking.swapped[:shown]:
        lines.append(
            f"  {swap.first} takes {_ratio(swap.on_a)} times as long as {swap.second} on A, and {_ratio(swap.on_b)} "
            "times as long on B"
        )
    more = len(ranking.swapped) - shown
    if more > 0:
        lines.append(f"  and {text.number_of(more, 'more pair')}; --all names {'it' if more == 1 else 'them'}")
    return lines


def _correlation_interval(found: Correlation) -> str:
    """Return the interval of a rank correlation in words, or why there is none."""
    if found.interval is not None:
        return f"95 % interval {found.interval[0]:.2f} to {found.interval[1]:.2f}, bootstrap over networks"
    if found.networks < FEWEST_FOR_CORRELATION_INTERVAL:
        return f"no interval, which needs {FEWEST_FOR_CORRELATION_INTERVAL} networks"
    return "no interval, since all resamples agree"


def _pairs(ranking: Ranking) -> str:
    """Return a sentence on the pairs of networks of which another one is faster on B than on A."""
    clear, turned, pairs = len(ranking.swapped), ranking.turned, ranking.pairs
    if not clear + turned:
        if pairs == 1:
            return "the same one of the two networks is faster on A and on B."
        return f"in all {pairs:,} pairs of networks, the same one is faster on A and on B."
    subject = "the faster one of the two networks on A is the slower one on B"
    if pairs > 1:
        subject = f"in {clear + turned:,} of {pairs:,} pairs of networks, the faster one on A is the slower one on B"
    return f"{subject}; {_certainty(clear, turned)}."


def _certainty(clear: int, turned: int) -> str:
    """Return how sure it is that two networks change places, in words.

    Args:
        clear: Number of pairs that do so beyond the intervals on both devices.
        turned: Number of pairs that do so within them; with `clear` at least one.
    """
    if not clear:
        return "the intervals do not confirm this, so it may be chance"
    if not turned:
        return "the intervals on both devices confirm this"
    return f"the intervals on both devices confirm this for {clear:,} of them; the other {turned:,} may be chance"


def _ratio(ratio: Interval) -> str:
    """Return a ratio with its interval as text."""
    return f"{plain(ratio.estimate)} ({_interval_words(ratio)})"


# Picture


def write_picture(machines: Machines, folder: Path) -> list[Path]:
    """Draw the times of both devices against each other, and write the picture as PNG and SVG.

    Returns:
        Paths of both files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with plain_text():
        sheet = FigureSheet(draw(machines))
        files = {f"{PICTURE}.png": sheet.png(), f"{PICTURE}.svg": sheet.svg()}
    for name, content in files.items():
        write_bytes(folder / name, content)
    return [folder / name for name in files]


@plain_text()
def draw(machines: Machines) -> Figure:
    """Draw the time on B against that on A, one panel per data set and kind of work, with the diagonal of equal times.

    Panels beyond `MOST_PANELS` are left out.
    """
    groups: dict[str, list[Times]] = {}
    for times in machines.times:
        groups.setdefault(f"{times.label}\n{times.kind.words}", []).append(times)
    groups = dict(list(groups.items())[:MOST_PANELS])
    scheme = Scheme.of(times.model for times in machines.times)
    figure, axes = panels(groups, scheme.many, 6.0 if scheme.many else 4.6)
    for title, members in groups.items():
        _panel(axes[title], members, machines, scheme)
    if scheme.many:
        family_legend(figure, [scheme.looks[times.model] for times in machines.times], lines=False)
    # Names come last, because they depend on the final positions of the panels.
    figure.draw_without_rendering()
    for title, members in groups.items():
        _write_names(axes[title], members, scheme)
    return figure


def _panel(ax: Axes, members: Sequence[Times], machines: Machines, scheme: Scheme) -> None:
    """Draw one panel: a point per network with its intervals, and the diagonal."""
    every: list[float] = []
    for times in members:
        every += [*times.ms(0), *times.ms(1)]
    # Both axes have the same limits, so that the diagonal divides the panel.
    for axis, name in ((ax.xaxis, machines.names[0]), (ax.yaxis, machines.names[1])):
        log_axis(ax, axis, every, f"ms per image, {shorten(name)}", "{:g}".format)
    ends = ax.get_xlim()
    ax.plot(ends, ends, color="#b0b0b0", linewidth=1.3, zorder=1)
    for times in members:
        look = scheme.looks[times.model]
        (x, x_low, x_high), (y, y_low, y_high) = times.ms(0), times.ms(1)
        ax.errorbar(
            [x],
            [y],
            xerr=[[max(x - x_low, 0.0)], [max(x_high - x, 0.0)]],
            yerr=[[max(y - y_low, 0.0)], [max(y_high - y, 0.0)]],
            fmt=look.marker,
            markersize=scheme.marker_size,
            color=look.colour,
            elinewidth=1,
        )


def _write_names(ax: Axes, members: Sequence[Times], scheme: Scheme) -> None:
    """Write the name of each network beside its point."""
    names = [
        Name(times.ms(0)[0], times.ms(1)[0], scheme.names[times.model], needed=not scheme.many) for times in members
    ]
    write_names(ax, names, scheme.letter_size)
