"""Trends: how the figures of a network changed from run to run, by day and commit.

A series has the runs of one network on one data set under the same settings, and on the same device if its figure
depends on the device. Versions of packages may differ, and the picture marks where they do. Each step from one run to
the next is compared as `cnnbench compare` compares two runs.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from cnnbench.measures import figures
from cnnbench.record import Record
from cnnbench.report.compare import Change, figure_change
from cnnbench.report.contenders import by_seed, suffixes, values_of
from cnnbench.report.settings import Setting, affecting

FEWEST_POINTS = 3
"""Runs from which on a series is a trend."""
MOST_STEPS = 2000
"""Largest number of steps of a figure that are compared; with more, no largest change is named."""
_LEFT_OUT = ("wandb",)
"""Packages whose versions do not affect any figure."""


class Tracked(NamedTuple):
    """A figure whose trend is drawn.

    Attributes:
        key: Key of the figure.
        words: Name in titles and sentences.
        compared: Key of the figure by which two runs are compared: a rate is compared by its time.
        name: File name of the picture, without suffix.
    """

    key: str
    words: str
    compared: str
    name: str

    @property
    def is_rate(self) -> bool:
        """Return whether the figure is a rate, the inverse of the compared time."""
        return self.key != self.compared

    @property
    def is_accuracy(self) -> bool:
        """Return whether the figure is an accuracy."""
        return figures()[self.key].compared == "seeds"

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Return the settings that the runs of a series share."""
        if self.is_accuracy:
            return affecting("accuracy")
        return affecting(figures()[self.compared].work or "count")


TRACKED = (
    Tracked("latency_ms_median", "latency of one image", "latency_ms_median", "trend_latency"),
    Tracked("images_per_s", "images/s in inference", "inference_ms_median", "trend_images_per_s"),
    Tracked("train_images_per_s", "images/s in training", "train_step_ms_median", "trend_train_images_per_s"),
    Tracked("test_accuracy", "test accuracy", "test_accuracy", "trend_accuracy"),
    Tracked("peak_memory_bytes", "peak memory", "peak_memory_bytes", "trend_peak_memory"),
    Tracked("params", "parameters", "params", "trend_params"),
    Tracked("macs", "MACs", "macs", "trend_macs"),
)
"""Figures whose trends are drawn, a picture each, in their order."""


class Run(NamedTuple):
    """A day and a commit, which name a point of a trend; runs are sorted by them."""

    day: str
    commit: str

    @property
    def words(self) -> str:
        """Return day and commit for a sentence."""
        return f"{self.day} ({self.commit})" if self.commit else self.day


@dataclass(frozen=True)
class Point:
    """The records of a network of one day and commit.

    Attributes:
        run: Day and commit.
        records: Records with the figure; several are other seeds or repeats.
        value: Median of a cost, or mean of an accuracy over seeds.
        low, high: Interval of a time or rate, or of the accuracy of one seed, else the range over seeds; the value
            itself for an exact figure.
    """

    run: Run
    records: tuple[Record, ...]
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """The runs of one network under the same settings.

    Attributes:
        tracked: Figure.
        panel: Label of the data set, with the settings if several series of the data set differ in them.
        model: Name of the network, by which it has its colour.
        name: Name of the network, with the settings of its training if it has several series in the panel.
        points: Runs in the order of their time, at least `FEWEST_POINTS`.
    """

    tracked: Tracked
    panel: str
    model: str
    name: str
    points: tuple[Point, ...]

    def steps(self) -> list[Step]:
        """Return the change from each run to the next."""
        cell = self.points[0].records[0].title, self.points[0].records[0].data["label"]
        steps = []
        for before, after in pairwise(self.points):
            change = figure_change(cell, self.tracked.compared, before.records, after.records)
            steps.append(Step(self, before.run, after.run, _of_rate(change) if self.tracked.is_rate else change))
        return steps


class Step(NamedTuple):
    """The change of a figure from one run to the next; for a rate, that of the rate."""

    series: Series
    before: Run
    after: Run
    change: Change


def _of_rate(change: Change) -> Change:
    """Return the change of a rate, from that of its time: a time that doubles is a rate that halves."""

    def inverse(value: float | None) -> float | None:
        return None if value is None else 1 / (1 + value) - 1

    return change._replace(change=inverse(change.change), low=inverse(change.high), high=inverse(change.low))


def has_trends(records: Sequence[Record]) -> bool:
    """Return whether there are runs of enough days and commits for a trend at all."""
    return len({_run(record) for record in records}) >= FEWEST_POINTS


def all_series(records: Sequence[Record], tracked: Tracked) -> list[Series]:
    """Return the series of a figure, for each network on each data set that has enough comparable runs."""
    if not has_trends(records):
        return []
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if record.status == "ok" and record.measures.get(tracked.key) is not None:
            key = (record.data["label"], record.title, *values_of(record, tracked.settings))
            groups.setdefault(key, []).append(record)
    trends: list[tuple[Point, ...]] = []
    for members in groups.values():
        points = _points(members, tracked)
        # An exact figure that never changes has no trend to be seen.
        is_flat = figures()[tracked.key].compared == "exact" and len({point.value for point in points}) == 1
        if len(points) >= FEWEST_POINTS and not is_flat:
            trends.append(points)
    return _named(trends, tracked)


def _named(trends: Sequence[tuple[Point, ...]], tracked: Tracked) -> list[Series]:
    """Return the trends with the names of their panels and networks."""
    firsts = [points[0].records[0] for points in trends]
    # Settings that forbid a ranking divide the panels; the others, such as those of a training, are parts of names.
    rows = [row for row in tracked.settings if row.group == "row"]
    others = [row for row in tracked.settings if row.group != "row"]
    labels = [record.data["label"] for record in firsts]
    panels = [f"{label}{suffix}" for label, suffix in zip(labels, suffixes(labels, firsts, rows), strict=True)]
    rivals = [(panel, record.title) for panel, record in zip(panels, firsts, strict=True)]
    series = []
    for points, panel, first, suffix in zip(trends, panels, firsts, suffixes(rivals, firsts, others), strict=True):
        series.append(Series(tracked, panel, first.model, f"{first.title}{suffix}", points))
    return series


def _run(record: Record) -> Run:
    """Return the day and commit of a record; a plus sign marks a commit with local changes."""
    commit = str(record.environment.get("commit") or "")[:7]
    # The first ten characters of a time in ISO 8601 are the date.
    return Run(record.created[:10], f"{commit}+" if commit and record.environment.get("dirty") else commit)


def _points(records: Sequence[Record], tracked: Tracked) -> tuple[Point, ...]:
    """Return the points of a series in the order of their time."""
    runs: dict[Run, list[Record]] = {}
    timed: set[float] = set()
    for record in sorted(records, key=lambda r: r.created):
        if figures()[tracked.compared].compared == "rounds":
            # The seeds of a run share one timing, also if the run went on past midnight. It is a point once.
            value = record.measures[tracked.key]
            if value in timed:
                continue
            timed.add(value)
        runs.setdefault(_run(record), []).append(record)
    if tracked.is_accuracy:
        runs = _of_common_seeds(runs)
    return tuple(_point(run, members, tracked) for run, members in runs.items())


def _of_common_seeds(runs: dict[Run, list[Record]]) -> dict[Run, list[Record]]:
    """Return the runs that share seeds, with the records of these seeds.

    Runs of other seeds may be parts of one benchmark, and their accuracies differ by the seeds alone.
    """
    uses = Counter(seed for members in runs.values() for seed in {record.seed for record in members})
    # The seed that most runs have; of several, the first one.
    wanted = max(uses, key=lambda seed: uses[seed])
    kept = {run: members for run, members in runs.items() if any(record.seed == wanted for record in members)}
    common = set.intersection(*({record.seed for record in members} for members in kept.values()))
    return {run: [record for record in members if record.seed in common] for run, members in kept.items()}


def _point(run: Run, records: Sequence[Record], tracked: Tracked) -> Point:
    """Return the point of a run."""
    if tracked.is_accuracy:
        values = list(by_seed(records, tracked.key).values())
        value = statistics.fmean(values)
        if len(values) > 1:
            return Point(run, tuple(records), value, min(values), max(values))
        low, high = (records[0].measures.get(f"{tracked.key}_{end}", value) for end in ("low", "high"))
        return Point(run, tuple(records), value, low, high)
    value = statistics.median(record.measures[tracked.key] for record in records)
    low, high = _relative_ends(records, tracked)
    return Point(run, tuple(records), value, value * low, value * high)


def _relative_ends(records: Sequence[Record], tracked: Tracked) -> tuple[float, float]:
    """Return the interval of a time or rate as factors of its value; 1 and 1 without an interval."""
    prefix = tracked.compared.removesuffix("_median")
    ends = []
    for end in ("low", "high"):
        factors = []
        for record in records:
            middle, value = record.measures.get(tracked.compared), record.measures.get(f"{prefix}_{end}")
            factors.append(value / middle if middle and value else 1.0)
        ends.append(statistics.median(factors))
    low, high = ends
    # The slowest time is the lowest rate.
    return (1 / high, 1 / low) if tracked.is_rate else (low, high)


def runs_of(series: Iterable[Series]) -> list[Run]:
    """Return the runs of several series in the order of their time."""
    first: dict[Run, str] = {}
    for entry in series:
        for point in entry.points:
            created = min(record.created for record in point.records)
            first[point.run] = min(first.get(point.run, created), created)
    return sorted(first, key=lambda run: (first[run], run))


def version_changes(series: Sequence[Series]) -> list[tuple[Run, str]]:
    """Return the runs that have other versions than the run before, each with the changes in words."""
    versions: dict[Run, dict[str, str]] = {}
    for entry in series:
        for point in entry.points:
            versions.setdefault(point.run, {}).update(_versions(point.records[0]))
    changes = []
    for before, after in pairwise(runs_of(series)):
        a, b = versions[before], versions[after]
        words = [f"{name} {a[name]} → {b[name]}" for name in b if name in a and a[name] != b[name]]
        if words:
            changes.append((after, ", ".join(words)))
    return changes


def _versions(record: Record) -> dict[str, str]:
    """Return the versions of packages, drivers and Python of a record."""
    names = {**(record.environment.get("packages") or {}), "Python": record.environment.get("python")}
    for name in ("driver", "cuda", "cudnn"):
        names[name] = (record.environment.get("accelerator") or {}).get(name)
    return {name: str(value) for name, value in names.items() if value is not None and name not in _LEFT_OUT}


def trend_sentences(series: Sequence[Series]) -> list[str]:
    """Return sentences on the trends of a figure: its largest change with the interval, and what the lines are."""
    if not series:
        return []
    tracked = series[0].tracked
    lines = ["A line connects runs of a network with the same settings"]
    if any(row.name == "device" for row in tracked.settings):
        lines[0] += " on the same device"
    lines[0] += "; a dotted line marks other versions than in the run before."
    steps = sum(len(entry.points) - 1 for entry in series)
    if steps <= MOST_STEPS:
        lines.append(_largest_change(tracked, [step for entry in series for step in entry.steps()]))
    return lines


def _largest_change(tracked: Tracked, steps: Sequence[Step]) -> str:
    """Return a sentence on the largest change of all steps."""
    decided = [s for s in steps if s.change.verdict in ("faster", "slower", "better", "worse", "changed")]
    known = [s for s in steps if s.change.change is not None]
    if not known:
        return f"No step of {tracked.words} can be compared: {steps[0].change.reason}."
    largest = max(decided or known, key=lambda step: abs(step.change.change or 0.0))
    words = _change_words(largest)
    if decided:
        return f"Largest change of {tracked.words} in {len(steps):,} steps: {words}."
    return f"No change of {tracked.words} in {len(steps):,} steps is beyond chance; the largest is {words}."


def _change_words(step: Step) -> str:
    """Return a step in words: network, change with interval, and the two runs."""
    change, tracked = step.change, step.series.tracked
    unit = "points" if tracked.is_accuracy else "%"

    def shown(value: float) -> str:
        return f"{100 * value:+.1f}"

    interval = ""
    if figures()[tracked.key].compared == "exact" and change.before is not None and change.after is not None:
        interval = f" ({change.before:,.0f} to {change.after:,.0f})"
    elif change.low is not None and change.high is not None:
        interval = f" (95 % interval {shown(change.low)} to {shown(change.high)})"
    return (
        f"{step.series.name} on {step.series.panel}, {shown(change.change or 0.0)} {unit}{interval}, from "
        f"{step.before.words} to {step.after.words}"
    )
