"""The gate of `cnnbench compare`, which decides whether a comparison passes, and the tables and notes it prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from cnnbench.measures import figures
from cnnbench.report.compare import WHOLE_NETWORK, Change
from cnnbench.text import number_of

NOT_GATED = "cold_start_ms"
"""Figure that fails no gate by being missing or undecided: the first call is timed only once per process."""
_WORDS = {
    "regressions": "regression",
    "suspects": "suspect, measure again",
    "missing": "missing in B",
    "undecided": "undecided",
}
"""Words for the lists of a `Gate` that fail it."""


class Gate:
    """The gate of a comparison, with the changes that fail it sorted by reason.

    Args:
        changes: Result of `compare`.
        percent: Largest regression that passes, in per cent or in points of accuracy; None for no gate.

    Attributes:
        regressions: Figures that are worse by more than `percent`, and beyond chance.
        suspects: Figures that are worse in the same way, but from runs that doubt their own times.
        missing: Figures or networks that A has and B lacks.
        undecided: Figures without a verdict.
        unresolved: Figures without such a regression, whose interval still includes one; they pass.
    """

    def __init__(self, changes: Sequence[Change], percent: float | None) -> None:
        self.regressions: list[Change] = []
        self.suspects: list[Change] = []
        self.missing: list[Change] = []
        self.undecided: list[Change] = []
        self.unresolved: list[Change] = []
        # Without a threshold all lists stay empty, so the comparison passes.
        if percent is None:
            return
        for change in changes:
            if change.regressed(percent):
                failing = self.suspects if change.suspect else self.regressions
                failing.append(change)
            # The remaining lists do not include the time of the first call.
            if change.figure == NOT_GATED:
                continue
            if change.verdict == "missing":
                self.missing.append(change)
            if change.undecided:
                self.undecided.append(change)
            if change.may_regress(percent):
                self.unresolved.append(change)

    @property
    def passed(self) -> bool:
        """Return whether the comparison passes; unresolved figures do not prevent that."""
        return not (self.regressions or self.suspects or self.missing or self.undecided)

    def document(self) -> dict[str, Any]:
        """Return the lists of changes by name, for JSON."""
        # A gate has no other attributes than its lists.
        return {name: [change._asdict() for change in changes] for name, changes in vars(self).items()}

    def lines(self) -> list[str]:
        """Return a line for each change that fails the gate, and one for each figure with unresolved changes."""
        lines = []
        for name, word in _WORDS.items():
            for change in getattr(self, name):
                # Without a value of the change, its reason says what is wrong.
                what = change.reason if change.change is None else shown_change(change)
                if change.figure == WHOLE_NETWORK:
                    lines.append(f"{word}: all figures of {change.model} on {change.label} ({what})")
                else:
                    lines.append(f"{word}: {change.figure} of {change.model} on {change.label}, {what}")
        # Unresolved changes of a figure share one line, with the worst end of their intervals.
        for figure in dict.fromkeys(change.figure for change in self.unresolved):
            same = [change for change in self.unresolved if change.figure == figure]
            worst = max(change.worst for change in same)
            unit, mend = "%", "--processes"
            if same[0].is_accuracy:
                unit, mend = "points", "seeds"
            elif figures()[figure].compared == "trainings":
                mend = "seeds"
            lines.append(
                f"not resolved: {figure} of {number_of(len(same), 'network')} may be worse by up to "
                f"{100 * worst:.0f} {unit}, since the intervals include that; more {mend} on both sides make them "
                "narrower"
            )
        return lines


def table(changes: Sequence[Change]) -> Table:
    """Return the comparison as a terminal table, with one row per change."""
    drawn = Table(header_style="bold")
    for title in ("Model", "Data", "Figure"):
        drawn.add_column(title, overflow="fold")
    for title in ("A", "B", "Change", "95 % interval"):
        drawn.add_column(title, justify="right")
    drawn.add_column("Verdict", overflow="fold")
    for change in changes:
        interval = "-"
        if change.low is not None and change.high is not None:
            interval = f"{_percent(change, change.low)} to {_percent(change, change.high)}"
        verdict = change.verdict
        if change.suspect:
            verdict += " (suspect)"
        before, after = _value(change, change.before), _value(change, change.after)
        figure = "all figures" if change.figure == WHOLE_NETWORK else change.figure
        drawn.add_row(change.model, change.label, figure, before, after, shown_change(change), interval, verdict)
    return drawn


def _value(change: Change, value: float | None) -> str:
    """Return the value of a figure as text; the accuracy of a single network as a number of images."""
    if value is None:
        return "-"
    if change.images:
        return f"{round(value * change.images):,} of {change.images:,}"
    if figures()[change.figure].compared == "exact":
        return f"{value:,.0f}"
    return f"{value:.4g}"


def shown_change(change: Change) -> str:
    """Return the change as text, in per cent or in points of accuracy; a dash if it has no value."""
    if change.change is None:
        return "-"
    return _percent(change, change.change)


def _percent(change: Change, value: float) -> str:
    """Return a share as text, in the unit of a change: points of accuracy, or per cent."""
    if change.is_accuracy:
        return f"{100 * value:+.2f} points"
    return f"{100 * value:+.1f} %"


def remarks(changes: Sequence[Change], shown: Sequence[Change] | None = None) -> list[str]:
    """Return the notes below the table: why figures are not comparable or doubtful, and what the intervals mean.

    Args:
        changes: All changes of the comparison.
        shown: Changes with a row in the table, whose reasons are given; None if all have one.
    """
    # The inner dictionaries serve as sets that keep the order of the figures, or of the networks that a side lacks.
    by_reason: dict[str, dict[str, None]] = {}
    for change in changes if shown is None else shown:
        if change.reason:
            whole = change.figure == WHOLE_NETWORK
            subject = f"{change.model} on {change.label}" if whole else change.figure
            by_reason.setdefault(change.reason, {})[subject] = None
    lines = [f"{', '.join(subjects)}: {reason}" for reason, subjects in by_reason.items()]
    # Only a verdict from an interval can be false by chance.
    decided = [change for change in changes if change.low is not None]
    if any(figures()[change.figure].compared == "rounds" for change in decided):
        lines.append("Times are compared in units of a convolution that both runs timed.")
    if decided:
        lines.append(
            f"By intervals of 95 %, one in twenty of {len(decided)} verdicts would be false if nothing differed."
        )
    return lines
