"""Two sets of records against each other: per figure the change with its interval, and a verdict.

Times are compared in units of the yardstick, a convolution that every run times beside its networks, so that a machine
that was faster or slower as a whole in one of the runs does not count as a difference of the networks. Each process
gives one value: where in memory a network lies differs from process to process, and the rounds of one process do not
show it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from cnnbench.errors import UserError
from cnnbench.record import Record
from cnnbench.report.findings import SETTINGS, setting
from cnnbench.stats import ALIKE, NORMAL_QUANTILE, Interval, mean_difference, newcombe_interval, shift

COUNTS = {
    "params": "complexity", "macs": "complexity", "train_macs": "complexity", "activations": "complexity",
    "peak_memory_bytes": "speed",
}  # fmt: skip
"""Figures that have no spread, by the measure that finds them."""
PEAK = "peak_memory_bytes"
TIMES = {"latency": "latency_ms_median", "inference": "inference_ms_median", "training": "train_step_ms_median"}
"""Figures in milliseconds, by the kind of work whose rounds they come from."""
COLD = "cold_start_ms"
VERDICTS = (
    "faster", "slower", "better", "worse", "no difference found", "equal", "changed", "too few values",
    "not comparable", "missing", "new",
)  # fmt: skip
FEWEST_PROCESSES = 4
"""Processes of each side from which on their own spread is the interval; with fewer no interval of 95 % exists."""
BETWEEN = {"latency": 0.10, "inference": 0.07, "training": 0.07}
"""Standard deviation of a time from process to process, in units of the yardstick, that is assumed where there are
fewer; what `make calibrate` finds, see experiments/README.md. Raw times have the largest."""
UNLIKE = 0.5
"""Share by which a network may follow a machine that is slower as a whole more, or less, than the yardstick does; see
experiments/README.md."""
MOVED = 0.02
"""Change of the yardstick from which on it is worth a note."""


class Change(NamedTuple):
    """How a figure differs between A and B.

    Attributes:
        model: Name of the network.
        label: Of the data.
        figure: Key of the record.
        before: In A.
        after: In B; None where it is missing.
        change: Relative for costs and times, in shares of the test set for the accuracy; None where not comparable.
        low, high: The 95 % interval of the change; None for exact figures, and where there is none.
        verdict: One of `VERDICTS`.
        reason: Why it is not comparable, or what makes it doubtful.
        suspect: Whether a run gave reasons to doubt its own times.
        images: Of the test, where the accuracy is that of one network each.
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
    suspect: bool = False
    images: int | None = None

    @property
    def undecided(self) -> bool:
        """Whether nothing can be said of the figure."""
        return self.verdict in ("not comparable", "too few values")

    def regressed(self, percent: float) -> bool:
        """Whether it is worse by more than so many per cent, or points of accuracy, and by more than chance."""
        if self.change is None or self.verdict not in ("slower", "worse"):
            return False
        return abs(self.change) > percent / 100

    def may_regress(self, percent: float) -> bool:
        """Whether its interval leaves open that it is worse by more than so many per cent, or points of accuracy."""
        return self.worst > percent / 100 and not self.regressed(percent)

    @property
    def worst(self) -> float:
        """The end of the interval on the side where the figure is worse, as a share; 0 without an interval."""
        if self.low is None or self.high is None:
            return 0.0
        return -self.low if self.figure == "test_accuracy" else self.high


class Gate:
    """What of a comparison does not pass.

    Args:
        changes: Of `compare`.
        percent: Largest regression that passes; None for no gate.

    Attributes:
        regressions: Worse by more than that, and by more than chance.
        suspects: The same, of runs that doubt their own times.
        missing: In A and not in B.
        undecided: Figures of which nothing can be said.
        unresolved: Figures that pass, since no regression was found, but that may be worse by more than that for all
            that the intervals say.
    """

    def __init__(self, changes: Sequence[Change], percent: float | None) -> None:
        worse = [c for c in changes if percent is not None and c.regressed(percent)]
        self.regressions = [c for c in worse if not c.suspect]
        self.suspects = [c for c in worse if c.suspect]
        gated = [c for c in changes if percent is not None and c.figure != COLD]
        self.missing = [c for c in gated if c.verdict == "missing"]
        self.undecided = [c for c in gated if c.undecided]
        self.unresolved = [c for c in gated if percent is not None and c.may_regress(percent)]

    @property
    def passed(self) -> bool:
        return not (self.regressions or self.suspects or self.missing or self.undecided)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {name: [c._asdict() for c in found] for name, found in vars(self).items()}

    def lines(self) -> list[str]:
        """Each with what it is."""
        words = {
            "regressions": "regression", "suspects": "suspect, measure again", "missing": "missing in B",
            "undecided": "undecided",
        }  # fmt: skip
        found = [
            f"{word}: {c.figure} of {c.model} on {c.label}, {c.reason if c.change is None else shown_change(c)}"
            for name, word in words.items()
            for c in getattr(self, name)
        ]
        for figure in dict.fromkeys(c.figure for c in self.unresolved):
            ends = [c.worst for c in self.unresolved if c.figure == figure]
            unit, mend = ("points", "seeds") if figure == "test_accuracy" else ("%", "--processes")
            found.append(
                f"not resolved: {figure} of {len(ends)} networks may be worse by up to {100 * max(ends):.0f} {unit} "
                f"for all that is known; more {mend} on both sides would tell"
            )
        return found


def compare(first: Sequence[Record], second: Sequence[Record]) -> list[Change]:
    """Compares networks on data sets, figure by figure.

    Args:
        first: Records of A; several of a network on the same data are its seeds, or further runs.
        second: Records of B.

    Raises:
        UserError: They have no network on the same data in common.
    """
    before, after = _cells(first), _cells(second)
    if not before.keys() & after.keys():
        names = [", ".join(f"{model} on {label}" for model, label in cells) for cells in (before, after)]
        raise UserError(
            f"A has {names[0] or 'nothing'}, B has {names[1] or 'nothing'}: no network on the same data in both"
        )
    failed = {(r.model, r.data["label"]): f"failed: {r.reason}" for r in second if r.status == "error"}
    changes = []
    for (model, label), cell in before.items():
        reason = failed.get((model, label), "" if (model, label) in after else "B has no record of it")
        if reason:
            changes.append(Change(model, label, "all", None, None, None, None, None, "missing", reason))
        if (model, label) in after:
            changes += _cell_changes(model, label, cell, after[model, label])
    new = [key for key in after if key not in before]
    return changes + [
        Change(model, label, "all", None, None, None, None, None, "new", "A has no record of it")
        for model, label in new
    ]


def _cells(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.status == "ok":
            found.setdefault((record.model, record.data["label"]), []).append(record)
    return found


def _cell_changes(model: str, label: str, first: Sequence[Record], second: Sequence[Record]) -> list[Change]:
    changes = []
    for figure in (*COUNTS, *TIMES.values(), COLD, "test_accuracy"):
        a, b = ([r for r in cell if r.measures.get(figure) is not None] for cell in (first, second))
        if a and b:
            changes.append(_change(model, label, figure, a, b))
        elif a and _was_asked(figure, second):
            reason = next((r.skipped[figure] for r in second if figure in r.skipped), f"B has no {figure}")
            value = a[0].measures[figure]
            changes.append(Change(model, label, figure, value, None, None, None, None, "missing", reason))
    return changes


def _was_asked(figure: str, cell: Sequence[Record]) -> bool:
    """Whether a run was to find a figure."""
    measure = "quality" if figure == "test_accuracy" else COUNTS.get(figure, "speed")
    return any(measure in r.config.get("measures", [measure]) for r in cell)


def _change(model: str, label: str, figure: str, first: Sequence[Record], second: Sequence[Record]) -> Change:
    if figure == "test_accuracy":
        return _accuracy_change(model, label, first, second)
    if figure not in COUNTS:
        return _time_change(model, label, figure, first, second)
    a, b, reason = _alike(first, second, _circumstances("training") if figure == PEAK else _image_size)
    x, y = (statistics.median(r.measures[figure] for r in cell) for cell in (a, b))
    if reason:
        return Change(model, label, figure, x, y, None, None, None, "not comparable", reason)
    words = ("worse", "better") if figure == PEAK else ("changed", "changed")
    word = "equal" if x == y else words[0] if y > x else words[1]
    return Change(model, label, figure, x, y, y / x - 1 if x else None, None, None, word)


def _image_size(r: Record) -> dict[str, Any]:
    return {"image_size": r.data["image_size"]}


def _circumstances(kind: str) -> Callable[[Record], dict[str, Any]]:
    """What must agree before times or memory of a kind of work compare."""
    sizes = {"latency": (), "inference": ("speed_batch_size",), "training": ("batch_size",)}[kind]
    precision = "precision" if kind == "training" else "inference_precision"

    def traits(r: Record) -> dict[str, Any]:
        flags = r.environment.get("accelerator") or {}
        return {
            **{name: setting(r, name) for name in (precision, "memory_format", "mode", "cudnn_benchmark", *sizes)},
            **_image_size(r),
            **{name: r.environment.get(name) for name in ("device", "threads", "allocator")},
            "host_cpu": flags.get("host_cpu"),
        }

    return traits


def _alike(
    first: Sequence[Record], second: Sequence[Record], traits: Callable[[Record], Mapping[str, Any]]
) -> tuple[list[Record], list[Record], str]:
    """Records of both that have the same traits, those of the first of A that has any such in B; else what differs."""
    for record in first:
        wanted = traits(record)
        a, b = ([r for r in cell if traits(r) == wanted] for cell in (first, second))
        if b:
            return a, b, ""
    x, y = traits(first[0]), traits(second[0])
    name = next(name for name in x if x[name] != y[name])
    return [first[0]], [second[0]], f"{name} {x[name]} against {y[name]}"


def _time_change(model: str, label: str, figure: str, first: Sequence[Record], second: Sequence[Record]) -> Change:
    kind = next((kind for kind, name in TIMES.items() if name == figure), "latency")
    a, b, reason = _alike(first, second, _circumstances(kind))
    x, y = (statistics.median(r.measures[figure] for r in cell) for cell in (a, b))

    def verdict(word: str, why: str) -> Change:
        return Change(model, label, figure, x, y, None, None, None, word, why)

    if reason:
        return verdict("not comparable", reason)
    reason = "" if figure == COLD else _without_rounds(a, b, kind)
    if reason:
        return verdict("not comparable", reason)
    notes = []
    software = [_software(cell[0]) for cell in (a, b)]
    names = [n for n in software[0] if software[0][n] != software[1][n]]
    if names:
        differ = ", ".join(f"{n} {software[0][n]} against {software[1][n]}" for n in names)
        notes.append(f"{differ}: raw times, in which a machine that was slower as a whole counts too")
    if figure == COLD:
        after, before = ([math.log(ms) for ms in _cold_starts(cell)] for cell in (b, a))
        found = shift(after, before)
    else:
        spread = max(BETWEEN.values()) if names else BETWEEN[kind]
        found, note = _ratio(spread, *(_by_process(cell, kind, raw=bool(names)) for cell in (b, a)))
        notes += [note] if note else []
        if not names:
            found, note = _widened(found, _pace(b) - _pace(a))
            notes += [note] if note else []
    ratio = Interval(*(None if v is None else math.expm1(v) for v in found))  # type: ignore[arg-type]
    if ratio.low is None or ratio.high is None:
        what = f"processes of each side, of which {FEWEST_PROCESSES} are needed" if figure == COLD else "rounds"
        return Change(model, label, figure, x, y, ratio.estimate, None, None, "too few values", f"too few {what}")
    suspects = [
        f"{side}: {text}"
        for side, cell in (("A", a), ("B", b))
        for text in dict.fromkeys(text for r in cell for text in r.measures.get("suspect", ()))
    ]
    notes[:0] = ["suspect: " + "; ".join(suspects)] if suspects else []
    word = "slower" if ratio.low > ALIKE else "faster" if ratio.high < -ALIKE else "no difference found"
    return Change(model, label, figure, x, y, *ratio, word, "; ".join(notes), suspect=bool(suspects))


def _software(record: Record) -> dict[str, Any]:
    """What the yardstick's own time depends on."""
    flags = record.environment.get("accelerator") or {}
    return {"torch": record.environment["packages"].get("torch"), **{n: flags.get(n) for n in ("cuda", "cudnn")}}


def _ratio(between: float, after: Sequence[Sequence[float]], before: Sequence[Sequence[float]]) -> tuple[Interval, str]:
    """Logarithm of the ratio of two times, from the logarithms of each round by process; and what to know of it."""
    middles = [[statistics.median(rounds) for rounds in side] for side in (after, before)]
    if min(map(len, middles)) >= FEWEST_PROCESSES:
        return shift(middles[0], middles[1]), ""
    a, b = ([value for rounds in side for value in rounds] for side in (after, before))
    found = shift(a, b)
    estimate = statistics.fmean(middles[0]) - statistics.fmean(middles[1])
    if found.low is None or found.high is None:
        return Interval(estimate, None, None), ""
    spread = NORMAL_QUANTILE * between * math.sqrt(sum(1 / len(side) for side in middles))
    low, high = (math.hypot(end - found.estimate, spread) for end in (found.low, found.high))
    return Interval(estimate, estimate - low, estimate + high), (
        f"fewer than {FEWEST_PROCESSES} processes: by assumption they differ by {between:.0%} (one sd)"
    )


def _pace(cell: Sequence[Record]) -> float:
    """The logarithm of the yardstick's time."""
    return statistics.median(
        math.log(statistics.median(times)) for samples, _ in _timings(cell) for times in samples["yardstick"]
    )


def _widened(found: Interval, moved: float) -> tuple[Interval, str]:
    """The interval of a ratio in units of a yardstick that differs itself between the runs, by a logarithm; and what to
    know of it where that is much."""
    if found.low is None or found.high is None:
        return found, ""
    more = UNLIKE * abs(moved)
    low, high = (math.hypot(end - found.estimate, more) for end in (found.low, found.high))
    how = f"{'slower' if moved > 0 else 'faster'} in B, by {math.expm1(abs(moved)):.0%}"
    note = f"the yardstick was {how}, which networks follow only roughly: {more:.1%} more of doubt on each side"
    return Interval(found.estimate, found.estimate - low, found.estimate + high), note if abs(moved) > MOVED else ""


def _by_process(cell: Sequence[Record], kind: str, raw: bool) -> list[list[float]]:
    """Logarithms of the times of each round, by process: over those of the yardstick in the same round, or raw."""
    found = []
    for samples, ends in _timings(cell):
        rounds = [[statistics.median(times) for times in samples[name]] for name in (kind, "yardstick")]
        logs = [math.log(x if raw else x / y) for x, y in zip(*rounds, strict=True)]
        start = 0
        for count in ends or [len(logs)]:
            found.append(logs[start : start + count])
            start += count
    return found


def _timings(cell: Sequence[Record]) -> list[tuple[dict[str, Any], list[int]]]:
    """Samples of a network with the rounds of each process; seeds of a run share theirs, which count once."""
    found: list[tuple[dict[str, Any], list[int]]] = []
    for r in cell:
        timing = r.measures["samples_ms"], r.measures.get("process_rounds", [])
        found += [timing] if timing not in found else []
    return found


def _cold_starts(cell: Sequence[Record]) -> list[float]:
    """The first call in each process."""
    several = [r.measures.get("process_cold_ms") or [{"latency": r.measures[COLD]}] for r in cell]
    return list(dict.fromkeys(ms["latency"] for processes in several for ms in processes))


def _without_rounds(a: Sequence[Record], b: Sequence[Record], kind: str) -> str:
    """Why the times of a record cannot be compared; empty if they can."""
    for side, cell in (("A", a), ("B", b)):
        for record in cell:
            samples = record.measures.get("samples_ms", {})
            if "yardstick" not in samples:
                return f"{side} was made before times were kept by round; measure it again"
            if kind not in samples:
                return f"{side} has no rounds of {kind}; measure it again"
    return ""


def _accuracy_change(model: str, label: str, first: Sequence[Record], second: Sequence[Record]) -> Change:
    """By seeds where a side has two or more (Welch 1947), else by the counts of the test images (Newcombe 1998).

    Training differs from seed to seed by more than the test images say, so a verdict on one seed each is about these
    two trained networks only; the reason says so. One seed against several is judged by the spread of these. An
    interval by seeds is never narrower than the test images allow.
    """
    a, b, reason = _alike(first, second, _training_traits)
    x, y = (_by_seed(cell) for cell in (a, b))
    before, after = statistics.fmean(x), statistics.fmean(y)
    if reason:
        return Change(model, label, "test_accuracy", before, after, None, None, None, "not comparable", reason)
    images, change, counted = a[0].data["test_images"], after - before, None
    if max(len(x), len(y)) > 1:
        chance = math.sqrt(sum(p * (1 - p) / (images * len(v)) for p, v in ((before, x), (after, y))))
        half = max(mean_difference(y, x).half_width, NORMAL_QUANTILE * chance)
        low, high = change - half, change + half
        note = "" if min(len(x), len(y)) > 1 else "one seed against several: by the spread of these"
    else:
        low, high = newcombe_interval(round(after * images), images, round(before * images), images)
        note, counted = "one seed: about these two trained networks, not about the recipe", images
    word = "no difference found" if low <= 0 <= high else "better" if change > 0 else "worse"
    return Change(model, label, "test_accuracy", before, after, change, low, high, word, note, images=counted)


def _training_traits(r: Record) -> dict[str, Any]:
    """What must agree before two accuracies compare; what a machine does within a time is up to the machine."""
    of_inference = ("speed_batch_size", "inference_precision")
    found = {name: setting(r, name) for name in (*SETTINGS, "learning_rate", "recipe") if name not in of_inference}
    data = ("image_size", "train_images", "test_images", "augment", "synthetic")
    found |= {name: r.data.get(name) for name in data}
    found["augmentation"] = r.data.get("augmentation") or "not said"  # by records until 2026-11-23
    if r.config.get("budget_s") is not None:
        found |= {f"{name}, within a time": r.environment.get(name) for name in ("device", "threads")}
    return found


def _by_seed(cell: Sequence[Record]) -> list[float]:
    """Accuracies by seed; repeats of a seed count once, as their mean."""
    found: dict[int, list[float]] = {}
    for r in cell:
        found.setdefault(r.seed, []).append(r.measures["test_accuracy"])
    return [statistics.fmean(values) for values in found.values()]


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
        verdict = c.verdict + (" (suspect)" if c.suspect else "")
        shown = [_value(c, value) for value in (c.before, c.after)]
        drawn.add_row(c.model, c.label, c.figure, *shown, shown_change(c), interval, verdict)
    return drawn


def _value(change: Change, value: float | None) -> str:
    if value is None:
        return "-"
    if change.images:
        return f"{round(value * change.images):,} of {change.images:,}"
    return f"{value:,.0f}" if change.figure in COUNTS else f"{value:.4g}"


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
    decided = sum(c.low is not None for c in changes)
    return [
        *lines,
        "Times are compared in units of a convolution that both runs timed. By intervals of 95 %, one in twenty of "
        f"{decided} verdicts would be false if nothing differed.",
    ]
