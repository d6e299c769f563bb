"""Two sets of records against each other: per figure the change with its interval, and a verdict.

Times are compared round by round in units of the yardstick, a convolution that every run times beside its networks, so
that a machine that was faster or slower as a whole in one of the runs does not count as a difference of the networks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from cnnbench.bench.findings import SETTINGS
from cnnbench.errors import UserError
from cnnbench.measure.intervals import Interval, shift
from cnnbench.record import Record

COUNTS = ("params", "macs", "train_macs", "activations")
"""Figures that are exact."""
TIMES = {"latency": "latency_ms_median", "inference": "inference_ms_median", "training": "train_step_ms_median"}
"""Figures in milliseconds, by the kind of work whose rounds they come from."""
VERDICTS = ("faster", "slower", "better", "worse", "no difference found", "equal", "changed", "not comparable")


class Change(NamedTuple):
    """How a figure differs between A and B.

    Attributes:
        model: Name of the network.
        label: Of the data.
        figure: Key of the record.
        before: In A.
        after: In B.
        change: Relative for costs and times, in shares of the test set for the accuracy; None where not comparable.
        low, high: The 95 % interval of the change; None for exact figures, and where there is none.
        verdict: One of `VERDICTS`.
        reason: Why it is not comparable, or what makes it doubtful.
    """

    model: str
    label: str
    figure: str
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    verdict: str
    reason: str = ""

    def regressed(self, percent: float) -> bool:
        """Whether it is worse by more than so many per cent, or points of accuracy, and by more than chance."""
        if self.change is None or self.verdict not in ("slower", "worse"):
            return False
        return abs(self.change) > percent / 100


def compare(first: Sequence[Record], second: Sequence[Record]) -> list[Change]:
    """Compares networks on data sets that both have, figure by figure.

    Args:
        first: Records of A; several of a network on the same data are its seeds.
        second: Records of B.

    Raises:
        UserError: They have no network on the same data in common.
    """
    before, after = _cells(first), _cells(second)
    common = [key for key in before if key in after]
    if not common:
        names = [", ".join(f"{model} on {label}" for model, label in cells) for cells in (before, after)]
        raise UserError(
            f"A has {names[0] or 'nothing'}, B has {names[1] or 'nothing'}: no network on the same data in both"
        )
    return [change for key in common for change in _cell_changes(*key, before[key], after[key])]


def _cells(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.status == "ok":
            found.setdefault((record.model, record.data["label"]), []).append(record)
    return found


def _cell_changes(model: str, label: str, first: Sequence[Record], second: Sequence[Record]) -> list[Change]:
    a, b = first[0], second[0]
    changes = []
    for figure in COUNTS:
        x, y = a.measures.get(figure), b.measures.get(figure)
        if x is not None and y is not None:
            verdict = "equal" if x == y else "changed"
            changes.append(Change(model, label, figure, x, y, y / x - 1 if x else None, None, None, verdict))
    for kind, figure in TIMES.items():
        x, y = a.measures.get(figure), b.measures.get(figure)
        if x is not None and y is not None:
            changes.append(_time_change(model, label, kind, a, b))
    accuracies = [
        [r.measures["test_accuracy"] for r in cell if "test_accuracy" in r.measures] for cell in (first, second)
    ]
    if all(accuracies):
        changes.append(_accuracy_change(model, label, first, second, *accuracies))
    return changes


def _time_change(model: str, label: str, kind: str, a: Record, b: Record) -> Change:
    figure = TIMES[kind]
    before, after = a.measures[figure], b.measures[figure]
    sizes = {"latency": (), "inference": ("speed_batch_size",), "training": ("batch_size",)}[kind]
    reason = _different(a, b, ("precision", "memory_format", *sizes), ("device", "threads", "allocator"))
    reason = reason or _image_sizes(a, b) or _without_rounds(a, b, kind)
    if reason:
        return Change(model, label, figure, before, after, None, None, None, "not comparable", reason)
    found = shift(_in_yardsticks(b, kind), _in_yardsticks(a, kind))
    ratio = Interval(*(None if v is None else math.expm1(v) for v in found))  # type: ignore[arg-type]
    suspects = [f"{side}: {text}" for side, r in (("A", a), ("B", b)) for text in r.measures.get("suspect", ())]
    verdict = "no difference found" if not ratio.excludes(0) else "slower" if ratio.estimate > 0 else "faster"
    return Change(
        model, label, figure, before, after, *ratio, verdict, "suspect: " + "; ".join(suspects) if suspects else ""
    )


def _in_yardsticks(record: Record, kind: str) -> list[float]:
    """Logarithms of the times of each round over those of the yardstick in the same round."""
    samples = record.measures["samples_ms"]
    rounds = [[statistics.median(times) for times in samples[name]] for name in (kind, "yardstick")]
    return [math.log(x / y) for x, y in zip(*rounds, strict=True)]


def _without_rounds(a: Record, b: Record, kind: str) -> str:
    """Why the times of a record cannot be compared; empty if they can."""
    for side, record in (("A", a), ("B", b)):
        if "yardstick" not in record.measures.get("samples_ms", {}):
            return f"{side} was made before times were kept by round; measure it again"
    return ""


def _different(a: Record, b: Record, settings: Sequence[str], surroundings: Sequence[str]) -> str:
    """The first setting or circumstance that differs, in words; empty if none does."""
    for names, x, y in ((settings, a.config, b.config), (surroundings, a.environment, b.environment)):
        for name in names:
            if x.get(name) != y.get(name):
                return f"{name} {x.get(name)} against {y.get(name)}"
    return ""


def _image_sizes(a: Record, b: Record) -> str:
    sizes = [r.data["image_size"] for r in (a, b)]
    return "" if sizes[0] == sizes[1] else f"image_size {sizes[0]} against {sizes[1]}"


def _accuracy_change(
    model: str, label: str, first: Sequence[Record], second: Sequence[Record], x: list[float], y: list[float]
) -> Change:
    """By seeds where both have two or more (Welch 1947), else by the counts of the test images.

    Training differs from seed to seed by more than the test images say, so a verdict on one seed each is about these
    two trained networks only; the reason says so.
    """
    before, after = statistics.fmean(x), statistics.fmean(y)
    reason = _different(first[0], second[0], [s for s in SETTINGS if s != "speed_batch_size"], ())
    if reason or first[0].data["test_images"] != second[0].data["test_images"]:
        reason = reason or "test_images differ"
        return Change(model, label, "test_accuracy", before, after, None, None, None, "not comparable", reason)
    change = after - before
    if min(len(x), len(y)) > 1:
        parts = [statistics.variance(v) / len(v) for v in (x, y)]
        error = math.sqrt(sum(parts))
        freedom = (
            sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (x, y), strict=True)) if error else 1.0
        )
        half, note = student_quantile(freedom) * error, ""
    else:
        images = first[0].data["test_images"]
        error = math.sqrt(sum(p * (1 - p) / (images * len(v)) for p, v in ((before, x), (after, y))))
        half, note = 1.959964 * error, "one seed: about these two trained networks, not about the recipe"
    low, high = change - half, change + half
    verdict = "no difference found" if low <= 0 <= high else "better" if change > 0 else "worse"
    return Change(model, label, "test_accuracy", before, after, change, low, high, verdict, note)


def student_quantile(freedom: float, share: float = 0.975) -> float:
    """The quantile of Student's t distribution, by bisection of its integral.

    Args:
        freedom: Degrees of freedom, at least 1.
        share: Of the distribution below the quantile, above one half.
    """
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)

    def below(t: float, steps: int = 400) -> float:
        # Substituting t = sqrt(freedom) * tan(angle) makes the density a power of a cosine on a finite range.
        end = math.atan(t / math.sqrt(freedom))
        width = end / steps
        values = [math.cos(width * (i + 0.5)) ** (freedom - 1) for i in range(steps)]
        return 0.5 + scale * math.sqrt(freedom) * width * sum(values)

    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < share else (low, middle)
    return (low + high) / 2


def table(changes: Sequence[Change]) -> Table:
    """A row per figure, for the terminal."""
    drawn = Table(header_style="bold")
    for title in ("Model", "Data", "Figure"):
        drawn.add_column(title, overflow="fold")
    for title in ("A", "B", "Change", "95 % interval"):
        drawn.add_column(title, justify="right")
    drawn.add_column("Verdict", overflow="fold")
    for c in changes:
        interval = "-" if c.low is None or c.high is None else f"{_percent(c, c.low)} to {_percent(c, c.high)}"
        verdict = c.verdict + ("?" if c.reason.startswith("suspect") else "")
        shown = [f"{v:,.0f}" if c.figure in COUNTS else f"{v:.4g}" for v in (c.before or 0, c.after or 0)]
        drawn.add_row(c.model, c.label, c.figure, *shown, shown_change(c), interval, verdict)
    return drawn


def shown_change(change: Change) -> str:
    """The change in per cent, or in points of accuracy."""
    return "-" if change.change is None else _percent(change, change.change)


def _percent(change: Change, value: float) -> str:
    return f"{100 * value:+.2f} points" if change.figure == "test_accuracy" else f"{100 * value:+.1f} %"


def remarks(changes: Sequence[Change]) -> list[str]:
    """What the table does not say: why figures are not comparable or doubtful, once each."""
    reasons: dict[str, list[str]] = {}
    for c in changes:
        if c.reason:
            figures = reasons.setdefault(c.reason, [])
            figures += [c.figure] * (c.figure not in figures)
    lines = [f"{', '.join(figures)}: {reason}" for reason, figures in reasons.items()]
    return [*lines, "Times are compared round by round in units of a convolution that both runs timed."]
