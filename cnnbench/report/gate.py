"""What of a comparison does not pass, and how a comparison is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from cnnbench.measures import figures
from cnnbench.report.compare import Change

NOT_GATED = "cold_start_ms"
"""The time of the first call: no gate considers it, since it is taken once per process."""
_WORDS = {
    "regressions": "regression",
    "suspects": "suspect, measure again",
    "missing": "missing in B",
    "undecided": "undecided",
}


class Gate:
    """What of a comparison does not pass.

    Args:
        changes: Result of `compare`.
        percent: Largest regression that passes; None for no gate.

    Attributes:
        regressions: Figures that are worse by more than that, and beyond chance.
        suspects: The same, of runs that doubt their own times.
        missing: Figures that are in A and not in B.
        undecided: Figures of which nothing can be said.
        unresolved: Figures that pass, since no regression was found, but whose interval leaves one open.
    """

    def __init__(self, changes: Sequence[Change], percent: float | None) -> None:
        self.regressions: list[Change] = []
        self.suspects: list[Change] = []
        self.missing: list[Change] = []
        self.undecided: list[Change] = []
        self.unresolved: list[Change] = []
        if percent is None:
            return
        for change in changes:
            if change.regressed(percent):
                (self.suspects if change.suspect else self.regressions).append(change)
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
        """Return whether nothing keeps the comparison from passing."""
        return not (self.regressions or self.suspects or self.missing or self.undecided)

    def document(self) -> dict[str, Any]:
        """Return the lists for JSON."""
        return {name: [change._asdict() for change in changes] for name, changes in vars(self).items()}

    def lines(self) -> list[str]:
        """Return a line for each figure that does not pass, and for those that are not resolved."""
        lines = []
        for name, word in _WORDS.items():
            for change in getattr(self, name):
                what = change.reason if change.change is None else shown_change(change)
                lines.append(f"{word}: {change.figure} of {change.model} on {change.label}, {what}")
        for figure in dict.fromkeys(change.figure for change in self.unresolved):
            same = [change for change in self.unresolved if change.figure == figure]
            worst = max(change.worst for change in same)
            unit, mend = ("points", "seeds") if same[0].is_accuracy else ("%", "--processes")
            lines.append(
                f"not resolved: {figure} of {len(same)} networks may be worse by up to {100 * worst:.0f} {unit} "
                f"for all that is known; more {mend} on both sides would tell"
            )
        return lines


def table(changes: Sequence[Change]) -> Table:
    """Return a row per figure, for the terminal."""
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
        verdict = change.verdict + (" (suspect)" if change.suspect else "")
        before, after = _value(change, change.before), _value(change, change.after)
        drawn.add_row(change.model, change.label, change.figure, before, after, shown_change(change), interval, verdict)
    return drawn


def _value(change: Change, value: float | None) -> str:
    if value is None:
        return "-"
    if change.images:
        return f"{round(value * change.images):,} of {change.images:,}"
    exact = figures()[change.figure].compared == "exact"
    return f"{value:,.0f}" if exact else f"{value:.4g}"


def shown_change(change: Change) -> str:
    """Return the change in per cent, or in points of accuracy."""
    return "-" if change.change is None else _percent(change, change.change)


def _percent(change: Change, value: float) -> str:
    return f"{100 * value:+.2f} points" if change.is_accuracy else f"{100 * value:+.1f} %"


def remarks(changes: Sequence[Change]) -> list[str]:
    """Return what the table does not say: why figures are not comparable or doubtful, each reason once."""
    by_reason: dict[str, dict[str, None]] = {}
    for change in changes:
        if change.reason:
            by_reason.setdefault(change.reason, {})[change.figure] = None
    lines = [f"{', '.join(keys)}: {reason}" for reason, keys in by_reason.items()]
    decided = sum(change.low is not None for change in changes)
    lines.append(
        "Times are compared in units of a convolution that both runs timed. By intervals of 95 %, one in twenty of "
        f"{decided} verdicts would be false if nothing differed."
    )
    return lines
