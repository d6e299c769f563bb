"""Comparison of two sets of records, A and B: the change of each figure with its interval, and a verdict.

Times are compared in units of the yardstick, a convolution that every run times beside its networks. A machine that was
faster or slower as a whole in one of the runs changes the yardstick's time too, so that it does not count as a
difference between the networks.

Each process contributes one value per time. The position of a network in memory differs from process to process and
affects its speed, which the rounds of a single process do not show.

The row of a figure in `cnnbench.measures` names the method by which it is compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from cnnbench.errors import UserError
from cnnbench.measures import Figure, Work, figures, measure_of
from cnnbench.record import Record
from cnnbench.report.contenders import by_seed
from cnnbench.report.settings import Setting, affecting
from cnnbench.report.stored_predictions import right_with_one_only
from cnnbench.stats import (
    ALIKE,
    ALPHA,
    NORMAL_QUANTILE,
    Interval,
    MeanDifference,
    mcnemar,
    mean_difference,
    newcombe_interval,
    paired_difference,
    paired_interval,
    shift,
)

VERDICTS = (
    *("faster", "slower", "better", "worse", "no difference found", "equal", "changed", "too few values"),
    *("not comparable", "missing", "new"),
)
"""Verdicts of a comparison."""
FEWEST_PAIRS = 5
"""Smallest number of common seeds at which accuracies are compared seed by seed; with fewer, pairing costs more degrees
of freedom than it gains."""
FEWEST_PROCESSES = 4
"""Number of processes on each side from which on their spread gives the interval. Three processes against three have no
95 % interval, see `cnnbench.stats.shift`."""
BETWEEN = {"latency": 0.10, "inference": 0.07, "training": 0.07}
"""Relative standard deviation of a time from process to process, by kind of work, in units of the yardstick. It is
assumed if a side has fewer than `FEWEST_PROCESSES` processes; raw times use the largest of the three. The command
`make calibrate` measures it, see experiments/LOG.md."""
UNLIKE = 0.5
"""Share of the yardstick's change between A and B that is added to the uncertainty of a ratio. A machine that is slower
as a whole slows networks and yardstick only roughly alike, see experiments/LOG.md."""
MOVED = 0.02
"""Relative change of the yardstick above which the comparison notes it."""

Cell = tuple[str, str]
"""Name of a network, and label of the data set."""


WHOLE_NETWORK = "all"
"""Key in the place of a figure's for a network that only one side has."""


class Change(NamedTuple):
    """The difference of one figure between A and B.

    Attributes:
        model: Name of the network.
        label: Label of the data set.
        figure: Key of the figure; `WHOLE_NETWORK` if the whole network is missing or new.
        before: Value in A; None if the whole network is missing or new.
        after: Value in B; None if B has no value.
        change: Relative change of a cost or time, or difference of two accuracies as shares of the test set; None if it
            cannot be computed.
        low, high: 95 % interval of the change; None for exact figures, and where no interval exists.
        verdict: One of `VERDICTS`.
        reason: Explanation of a figure that is missing or not comparable, or notes on what makes the verdict doubtful.
        suspect: Whether a run gave reasons to doubt its own times.
        images: Number of test images if the accuracy is that of a single trained network on each side, else None.
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
        """Return whether the records allow no verdict on this figure."""
        return self.verdict in ("not comparable", "too few values")

    @property
    def is_accuracy(self) -> bool:
        """Return whether the change is in percentage points of accuracy, not in per cent of the value before."""
        return self.figure in figures() and figures()[self.figure].compared == "seeds"

    def regressed(self, percent: float) -> bool:
        """Return whether the verdict is that the figure got worse, and the change is larger than a threshold.

        Args:
            percent: Threshold in per cent of the value before, or in percentage points of an accuracy.
        """
        if self.change is None or self.verdict not in ("slower", "worse"):
            return False
        return abs(self.change) > percent / 100

    def may_regress(self, percent: float) -> bool:
        """Return whether the interval includes a change for the worse beyond the threshold, without such a verdict.

        Args:
            percent: Threshold as in `regressed`.
        """
        return self.worst > percent / 100 and not self.regressed(percent)

    @property
    def worst(self) -> float:
        """Return the largest change for the worse within the interval, as a share; 0 without an interval."""
        if self.low is None or self.high is None:
            return 0.0
        # A time or a cost gets worse by growing, an accuracy by falling.
        return -self.low if self.is_accuracy else self.high


class _Pair(NamedTuple):
    """A figure, and the records of A and of B that have it for one network on one data set."""

    model: str
    label: str
    figure: Figure
    first: Sequence[Record]
    second: Sequence[Record]

    def medians(self) -> tuple[float, float]:
        """Return the median of the figure over the records of A, and over those of B."""
        key = self.figure.key
        before = statistics.median(record.measures[key] for record in self.first)
        after = statistics.median(record.measures[key] for record in self.second)
        return before, after

    def verdict(self, word: str, reason: str = "", change: float | None = None) -> Change:
        """Return a `Change` without an interval; its values are the medians of both sides."""
        return Change(self.model, self.label, self.figure.key, *self.medians(), change, None, None, word, reason)


def compare(first: Sequence[Record], second: Sequence[Record]) -> list[Change]:
    """Compare all figures of the networks that A and B share, each network on each data set.

    Args:
        first: Records of A; several records of a network on the same data are different seeds, or repeated runs.
        second: Records of B.

    Returns:
        The changes of the networks of A in their order, then the networks that only B has.

    Raises:
        UserError: A and B have no network on the same data in common.
    """
    before, after = _cells(first), _cells(second)
    if not before.keys() & after.keys():
        raise UserError(f"A has {_names(before)}, B has {_names(after)}: no network on the same data in both")
    failures: dict[Cell, str] = {}
    for record in second:
        if record.status == "error":
            failures[record.title, record.data["label"]] = f"failed: {record.reason}"
    changes = []
    for cell, records in before.items():
        # A network that failed with one seed of B may have records of other seeds, which are compared nevertheless.
        if cell in failures or cell not in after:
            changes.append(_whole_network(cell, "missing", failures.get(cell, "B has no record of this network")))
        if cell in after:
            changes += _cell_changes(cell, records, after[cell])
    for cell in after:
        if cell not in before:
            changes.append(_whole_network(cell, "new", "A has no record of this network"))
    return changes


def _cells(records: Sequence[Record]) -> dict[Cell, list[Record]]:
    """Return the records that did not fail, by network and label of the data."""
    cells: dict[Cell, list[Record]] = {}
    for record in records:
        if record.status == "ok":
            cells.setdefault((record.title, record.data["label"]), []).append(record)
    return cells


def _names(cells: Iterable[Cell]) -> str:
    """Return networks and data sets in words, for an error message."""
    return ", ".join(f"{model} on {label}" for model, label in cells) or "nothing"


def _whole_network(cell: Cell, verdict: str, reason: str) -> Change:
    """Return the change of a network that only one of the sides has."""
    return Change(*cell, WHOLE_NETWORK, None, None, None, None, None, verdict, reason)


def _cell_changes(cell: Cell, first: Sequence[Record], second: Sequence[Record]) -> list[Change]:
    """Return the changes of all figures of one network on one data set, and the figures that B lacks."""
    changes = []
    for key, figure in figures().items():
        if not figure.compared:
            continue
        a, b = _with_figure(first, key), _with_figure(second, key)
        if a and b:
            changes.append(_change(_Pair(*cell, figure, a, b)))
        # Figures of a measure that B was not asked for are not missing.
        elif a and _was_asked(key, second):
            reason = _why_missing(key, second)
            changes.append(Change(*cell, key, a[0].measures[key], None, None, None, None, "missing", reason))
    return changes


def _why_missing(key: str, cell: Sequence[Record]) -> str:
    """Return why B has no such figure: the reason in a record, for the figure or for its measure."""
    for record in cell:
        for name in (key, measure_of(key)):
            if name in record.skipped:
                return record.skipped[name]
    return f"B has no {key}"


def _with_figure(records: Sequence[Record], key: str) -> list[Record]:
    """Return the records that have a figure."""
    return [record for record in records if record.measures.get(key) is not None]


def _was_asked(key: str, cell: Sequence[Record]) -> bool:
    """Return whether one of these runs was asked for the measure that gives the figure."""
    measure = measure_of(key)
    # A record that does not list its measures counts as asked for all of them.
    return any(measure in record.config.get("measures", [measure]) for record in cell)


def figure_change(cell: Cell, key: str, first: Sequence[Record], second: Sequence[Record]) -> Change:
    """Compare one figure of one network on one data set.

    Args:
        cell: Name of the network, and label of the data set.
        key: Key of a figure that is compared.
        first: Records of A that have the figure; at least one.
        second: Records of B that have it; at least one.
    """
    return _change(_Pair(*cell, figures()[key], first, second))


def _change(pair: _Pair) -> Change:
    """Compare one figure, using only the records of both sides that share the settings it depends on."""
    figure = pair.figure
    a, b, difference = _alike(pair.first, pair.second, _settings_of(figure))
    alike = pair._replace(first=a, second=b)
    if not difference:
        by_method = {
            "exact": _exact_change,
            "rounds": _time_change,
            "processes": _cold_change,
            "seeds": _accuracy_change,
            "trainings": _training_change,
        }
        return by_method[figure.compared](alike)
    change = alike.verdict("not comparable", difference)
    if figure.compared == "seeds":
        # The value of an accuracy is the mean over seeds, as in a comparison of accuracies.
        before, after = by_seed(a, figure.key).values(), by_seed(b, figure.key).values()
        change = change._replace(before=statistics.fmean(before), after=statistics.fmean(after))
    return change


# Settings that must agree before two figures are compared


def _settings_of(figure: Figure) -> tuple[Setting, ...]:
    """Return the settings on which a figure depends."""
    # An accuracy depends on the training, a time or memory on its kind of work, a count on the image size alone.
    if figure.compared == "seeds":
        return affecting("accuracy")
    if figure.compared == "trainings":
        # Seconds of training depend on the machine too; images and multiply-adds do not.
        of_machine = affecting("training") if figure.kind == "amount" else ()
        return tuple(dict.fromkeys((*affecting("accuracy"), *of_machine)))
    return affecting(figure.work or "count")


def _alike(
    first: Sequence[Record], second: Sequence[Record], settings: Sequence[Setting]
) -> tuple[Sequence[Record], Sequence[Record], str]:
    """Return the records of A and B that share the same settings, or name the setting that differs.

    If A has records of several settings, the first setting that B has too is used.

    Args:
        first: Records of A.
        second: Records of B.
        settings: Settings that must agree.

    Returns:
        The records of A, the records of B and an empty text. If A and B share no setting, the first record of each and
        a text that names the setting in which these two differ.
    """

    def traits(record: Record) -> dict[str, Any]:
        return {row.name: row.value(record) for row in settings}

    for record in first:
        wanted = traits(record)
        b = [other for other in second if traits(other) == wanted]
        if b:
            return [other for other in first if traits(other) == wanted], b, ""
    x, y = traits(first[0]), traits(second[0])
    # The two differ in at least one setting, or the loop would have found them alike.
    name = next(name for name in x if x[name] != y[name])
    return first[:1], second[:1], f"{name} {x[name]} against {y[name]}"


# Costs


def _exact_change(pair: _Pair) -> Change:
    """Compare a figure that has no measurement spread, such as a count."""
    before, after = pair.medians()
    change = None
    # A change from 0 has no relative size.
    if before:
        change = after / before - 1
    if before == after:
        return pair.verdict("equal", change=change)
    if not pair.figure.better:
        return pair.verdict("changed", change=change)
    less_is_better = pair.figure.better == "less"
    word = "worse"
    if (after < before) == less_is_better:
        word = "better"
    return pair.verdict(word, change=change)


# Times


def _cold_change(pair: _Pair) -> Change:
    """Compare the times of first calls; each process contributes one time."""
    too_few = f"too few processes of each side, of which {FEWEST_PROCESSES} are needed"
    log_ratio = shift(_cold_starts(pair.second), _cold_starts(pair.first))
    return _ratio_change(pair, log_ratio, [_raw_times_note(pair)], too_few)


def _time_change(pair: _Pair) -> Change:
    """Compare times from their rounds, in units of the yardstick if both runs used the same software."""
    work = pair.figure.work
    assert work is not None
    missing = _without_rounds(pair.first, pair.second, work)
    if missing:
        return pair.verdict("not comparable", missing)
    raw_note = _raw_times_note(pair)
    raw = bool(raw_note)
    between = max(BETWEEN.values()) if raw else BETWEEN[work]
    # In logarithms, the ratio of two times is a difference, for which `shift` has an interval.
    after, before = by_process(pair.second, work, raw), by_process(pair.first, work, raw)
    log_ratio, assumption = ratio_of_times(between, after, before)
    notes = [raw_note, assumption]
    if not raw:
        log_ratio, doubt = _widened(log_ratio, _pace(pair.second) - _pace(pair.first))
        notes.append(doubt)
    return _ratio_change(pair, log_ratio, notes, "too few rounds")


def _ratio_change(pair: _Pair, log_ratio: Interval, notes: Sequence[str], too_few: str) -> Change:
    """Return the change, with its verdict, from the logarithm of a ratio of times.

    Args:
        pair: Figure and records.
        log_ratio: Logarithm of B's time divided by A's, with its interval.
        notes: Remarks on how the interval was made; empty ones are left out.
        too_few: Reason for the lack of an interval, if there is none.
    """
    # expm1(x) is exp(x) - 1: the logarithm of a ratio becomes a relative change.
    change = math.expm1(log_ratio.estimate)
    if log_ratio.low is None or log_ratio.high is None:
        return pair.verdict("too few values", too_few, change)
    low, high = math.expm1(log_ratio.low), math.expm1(log_ratio.high)
    doubts = _doubts(pair)
    reasons = [note for note in notes if note]
    if doubts:
        reasons.insert(0, f"suspect: {'; '.join(doubts)}")
    # Two copies of one network differ by up to `ALIKE`, so a difference must be larger than that.
    word = "no difference found"
    if low > ALIKE:
        word = "slower"
    elif high < -ALIKE:
        word = "faster"
    without_interval = pair.verdict(word, "; ".join(reasons), change)
    return without_interval._replace(low=low, high=high, suspect=bool(doubts))


def _doubts(pair: _Pair) -> list[str]:
    """Return the reasons that the runs gave to doubt their own times, each of them once."""
    doubts: dict[str, None] = {}
    for side, cell in (("A", pair.first), ("B", pair.second)):
        for record in cell:
            for text in record.doubts(pair.figure.work):
                doubts[f"{side}: {text}"] = None
    return list(doubts)


def _raw_times_note(pair: _Pair) -> str:
    """Return why times are not divided by the yardstick's: the software differs. Empty if it does not."""
    a, b = _software(pair.first[0]), _software(pair.second[0])
    differences = [f"{name} {a[name]} against {b[name]}" for name in a if a[name] != b[name]]
    if not differences:
        return ""
    return f"{', '.join(differences)}: raw times, in which a machine that was slower as a whole counts too"


def _software(record: Record) -> dict[str, Any]:
    """Return the versions of the software that affects the yardstick's time."""
    flags = record.environment.get("accelerator") or {}
    torch = record.environment["packages"].get("torch")
    return {"torch": torch, "cuda": flags.get("cuda"), "cudnn": flags.get("cudnn")}


def ratio_of_times(
    between: float, after: Sequence[Sequence[float]], before: Sequence[Sequence[float]]
) -> tuple[Interval, str]:
    """Return the logarithm of the ratio of two times with its interval, and a note on how the interval was made.

    Args:
        between: Relative standard deviation from process to process, which is assumed if a side has few processes.
        after: Logarithms of the times of each round in B, one list per process.
        before: Logarithms of the times of each round in A, one list per process.
    """
    # With enough processes each of them is one independent value, the median of its rounds.
    middles_after, middles_before = _medians(after), _medians(before)
    if min(len(middles_after), len(middles_before)) >= FEWEST_PROCESSES:
        return shift(middles_after, middles_before), ""
    # With fewer processes, the rounds give the uncertainty within a process.
    within = shift(list(chain.from_iterable(after)), list(chain.from_iterable(before)))
    estimate = statistics.fmean(middles_after) - statistics.fmean(middles_before)
    if within.low is None or within.high is None:
        return Interval(estimate, None, None), ""
    # The assumed spread between processes is added: half the 95 % interval of a difference of two means.
    # Independent uncertainties add in squares, separately below and above the estimate.
    spread = NORMAL_QUANTILE * between * math.sqrt(1 / len(middles_after) + 1 / len(middles_before))
    low = math.hypot(within.low - within.estimate, spread)
    high = math.hypot(within.high - within.estimate, spread)
    note = f"fewer than {FEWEST_PROCESSES} processes: by assumption they differ by {between:.0%} (one sd)"
    return Interval(estimate, estimate - low, estimate + high), note


def _medians(blocks: Iterable[Sequence[float] | float]) -> list[float]:
    """Return the median of each block, such as the calls of a round; a call outside of any round is its own median."""
    return [block if isinstance(block, (int, float)) else statistics.median(block) for block in blocks]


def _pace(cell: Sequence[Record]) -> float:
    """Return the logarithm of the yardstick's time, the median over all rounds of these records."""
    logs: list[float] = []
    for samples, _ in _timings(cell):
        logs += map(math.log, _medians(samples["yardstick"]))
    return statistics.median(logs)


def _widened(ratio: Interval, moved: float) -> tuple[Interval, str]:
    """Widen the interval of a ratio of times if the yardstick itself was faster or slower in one of the runs.

    Args:
        ratio: Logarithm of the ratio, with times in units of the yardstick.
        moved: Logarithm of the yardstick's time in B divided by its time in A.

    Returns:
        The wider interval, and a note if the yardstick changed by more than `MOVED`, else an empty text.
    """
    if ratio.low is None or ratio.high is None:
        return ratio, ""
    # The share `UNLIKE` of the yardstick's change is an uncertainty of its own and adds in squares.
    more = UNLIKE * abs(moved)
    low = math.hypot(ratio.low - ratio.estimate, more)
    high = math.hypot(ratio.high - ratio.estimate, more)
    note = ""
    if abs(moved) > MOVED:
        direction = "slower" if moved > 0 else "faster"
        how = f"{direction} in B, by {math.expm1(abs(moved)):.0%}"
        note = f"the yardstick was {how}, which networks follow only roughly: {more:.1%} more of doubt on each side"
    return Interval(ratio.estimate, ratio.estimate - low, ratio.estimate + high), note


def by_process(cell: Sequence[Record], work: Work, raw: bool) -> list[list[float]]:
    """Return the logarithm of the time of each round, one list per process.

    Args:
        cell: Records of one network.
        work: Kind of work.
        raw: Whether times stay in milliseconds; otherwise they are divided by the yardstick's time in the same round.
    """
    processes = []
    for samples, rounds_of_processes in _timings(cell):
        times = _medians(samples[work])
        if not raw:
            yardstick = _medians(samples["yardstick"])
            # What slowed the machine in a round slowed the yardstick in that round too, and cancels.
            times = [time / unit for time, unit in zip(times, yardstick, strict=True)]
        logs = list(map(math.log, times))
        # The rounds of all processes follow each other in one list; without counts they come from one process.
        start = 0
        for count in rounds_of_processes or [len(logs)]:
            processes.append(logs[start : start + count])
            start += count
    return processes


def _timings(cell: Sequence[Record]) -> list[tuple[dict[str, Any], list[int]]]:
    """Return the timings of a network: its samples and the number of rounds of each process.

    The seeds of a run share one timing, which counts once.
    """
    timings: list[tuple[dict[str, Any], list[int]]] = []
    for record in cell:
        timing = record.measures["samples_ms"], record.measures.get("process_rounds", [])
        # Times that are equal in every sample are copies of one timing, not two measurements.
        if timing not in timings:
            timings.append(timing)
    return timings


def _cold_starts(cell: Sequence[Record]) -> list[float]:
    """Return the logarithm of the time of the first call in each process.

    The seeds of a run share these times, which count once.
    """
    times: dict[float, None] = {}
    for record in cell:
        # A record without times per process comes from a single one.
        for ms in record.measures.get("process_cold_ms") or [{"latency": record.measures["cold_start_ms"]}]:
            times[ms["latency"]] = None
    return list(map(math.log, times))


def _without_rounds(first: Sequence[Record], second: Sequence[Record], work: Work) -> str:
    """Return why times cannot be compared because a record has no rounds of them; empty if they can."""
    for side, cell in (("A", first), ("B", second)):
        for record in cell:
            samples = record.measures.get("samples_ms", {})
            if "yardstick" not in samples:
                return f"{side} was made before times were kept by round; measure it again"
            if work not in samples:
                return f"{side} has no rounds of {work}; measure it again"
    return ""


# Costs of a training


def _training_change(pair: _Pair) -> Change:
    """Compare the means over seeds of a cost of trainings, as a ratio, by their logarithms (Welch 1947).

    A training that did not reach its goal has no such figure, and does not count.
    """
    x, y = by_seed(pair.first, pair.figure.key), by_seed(pair.second, pair.figure.key)
    if min(*x.values(), *y.values()) <= 0:
        return _exact_change(pair)
    before, after = [math.log(value) for value in x.values()], [math.log(value) for value in y.values()]
    change = math.expm1(statistics.fmean(after) - statistics.fmean(before))
    seeds = f"{len(x)} and {len(y)} seeds that reached the goal"
    if max(len(before), len(after)) < 2:
        return pair.verdict("too few values", f"{seeds}; an interval needs two seeds", change)
    difference = mean_difference(after, before)
    low, high = difference.value - difference.half_width, difference.value + difference.half_width
    word = "no difference found"
    if low > 0:
        word = "worse"
    elif high < 0:
        word = "better"
    reason = f"{seeds}: Welch's t interval of the ratio of geometric means"
    return pair.verdict(word, reason, change)._replace(low=math.expm1(low), high=math.expm1(high))


# Accuracies


def _accuracy_change(pair: _Pair) -> Change:
    """Compare accuracies over seeds if a side has two or more, else by test images.

    Accuracies vary between seeds by more than the number of test images explains. With one seed on each side, the
    verdict therefore holds for these two trained networks only, and the reason says so. An interval over seeds is never
    narrower than the number of test images allows.
    """
    key = pair.figure.key
    x, y = by_seed(pair.first, key), by_seed(pair.second, key)
    before, after = statistics.fmean(x.values()), statistics.fmean(y.values())
    change = after - before
    images = pair.first[0].data["test_images"]
    if max(len(x), len(y)) == 1:
        low, high, differ, note = _difference_by_images(pair, before, after)
        return _accuracy_verdict(pair, (before, after), (low, high), differ, note)._replace(images=images)
    difference, note = _difference_over_seeds(x, y)
    # Binomial standard error of the difference, over the test images of all seeds.
    chance = math.sqrt(before * (1 - before) / (images * len(x)) + after * (1 - after) / (images * len(y)))
    half = difference.half_width
    if NORMAL_QUANTILE * chance > half:
        half = NORMAL_QUANTILE * chance
        note += "; the seeds vary less than the number of test images explains, which sets the interval"
    low, high = change - half, change + half
    return _accuracy_verdict(pair, (before, after), (low, high), not low <= 0 <= high, note)


def _accuracy_verdict(
    pair: _Pair, values: tuple[float, float], ends: tuple[float, float], differ: bool, note: str
) -> Change:
    """Return the change of an accuracy with its verdict.

    Args:
        pair: Figure and records.
        values: Accuracy of A, and of B.
        ends: Interval of the difference.
        differ: Whether the two are found to differ.
        note: How this was decided.
    """
    before, after = values
    word = "no difference found"
    if differ:
        word = "better" if after > before else "worse"
    return Change(pair.model, pair.label, pair.figure.key, before, after, after - before, *ends, word, note)


_ABOUT_ONE_SEED = "one seed: about these two trained networks, not about the recipe"


def _difference_by_images(pair: _Pair, before: float, after: float) -> tuple[float, float, bool, str]:
    """Compare the accuracies of two single trainings.

    If the predictions of both are known, and are of the same images, McNemar's test decides, and the interval is
    that of `paired_interval`. Otherwise the two count as independent (Newcombe 1998), which gives a wider interval.

    Returns:
        The ends of the interval, whether the two are found to differ, and a note on the method.
    """
    images = pair.first[0].data["test_images"]
    counts = right_with_one_only(pair.first[0], pair.second[0]) if pair.figure.key == "test_accuracy" else None
    if counts is None:
        low, high = newcombe_interval(round(after * images), images, round(before * images), images)
        return low, high, not low <= 0 <= high, _ABOUT_ONE_SEED
    of_first, of_second = counts
    found = mcnemar(of_second, of_first)
    interval = paired_interval(of_second, of_first, images)
    p = "< 0.001" if found.p < 0.001 else f"= {found.p:.3f}"
    note = (
        f"{_ABOUT_ONE_SEED}; on the same images, of which {of_first:,} are right in A only and {of_second:,} in B "
        f"only: {found.method}, p {p}"
    )
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high, found.p <= ALPHA, note


def _difference_over_seeds(before: Mapping[int, float], after: Mapping[int, float]) -> tuple[MeanDifference, str]:
    """Return how much larger the mean over seeds is after than before, and a note on the method.

    Args:
        before: Accuracies of A by seed.
        after: Accuracies of B by seed; at least one side has two seeds.
    """
    seeds = f"{len(before)} and {len(after)} seeds"
    if before.keys() == after.keys() and len(before) >= FEWEST_PAIRS:
        difference = paired_difference([after[seed] for seed in before], list(before.values()))
        return difference, f"paired by seed, {len(before)} seeds: Student's t interval of the mean difference"
    difference = mean_difference(list(after.values()), list(before.values()))
    if min(len(before), len(after)) == 1:
        return difference, f"one seed against several ({seeds}): Student's t interval by the spread of these"
    if before.keys() == after.keys():
        return (
            difference,
            f"not paired, since {FEWEST_PAIRS} seeds are the fewest for that ({seeds}): Welch's t interval",
        )
    return difference, f"not paired, since the seeds differ ({seeds}): Welch's t interval"
