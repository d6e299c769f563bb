"""Two devices side by side: the ratio of their times for each network, and whether they rank the networks alike.

The times of two devices are neither paired by round nor comparable in units of the yardstick, which is a convolution on
the device itself. So the ratio is that of raw times, by `cnnbench.report.compare.ratio_of_times`: the interval of the
Mann-Whitney test over processes, or over rounds with the spread that processes are known to have. On one device, two
networks are compared in units of its yardstick.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from cnnbench.errors import UserError
from cnnbench.measures import Work
from cnnbench.record import Record
from cnnbench.report.compare import BETWEEN, by_process, ratio_of_times
from cnnbench.report.settings import NOT_SAID, affecting, said
from cnnbench.stats import ALIKE, Correlation, Interval, correlate

COUNTS = ("params", "macs")
"""Counts that must be equal, or two networks of one name are not the same network."""
MOST_SWAPPED = 10
"""Number of pairs that change places which are named unless all are asked for."""
_OF_THE_MACHINE = ("device", "threads", "allocator", "host_cpu")
"""Settings of times that belong to the machine, so that records of two machines need not share them."""


@dataclass(frozen=True)
class Kind:
    """A kind of work whose times are compared.

    Attributes:
        work: Name in the samples of a record.
        words: Name in tables and pictures.
        key: Key of the median time, in milliseconds.
        batch: Setting with the number of images of one call; None for one image.
    """

    work: Work
    words: str
    key: str
    batch: str | None

    def images(self, record: Record) -> int:
        """Return the number of images of one call."""
        return 1 if self.batch is None else int(record.config.get(self.batch) or 1)


KINDS = (
    Kind("latency", "latency of one image", "latency_ms_median", None),
    Kind("inference", "time per image, inference batch", "inference_ms_median", "speed_batch_size"),
    Kind("training", "time per image, training step", "train_step_ms_median", "batch_size"),
)
"""Kinds of work, in the order of tables and pictures."""


@dataclass(frozen=True)
class Times:
    """The times of one network on both devices, for one kind of work.

    Attributes:
        model: Name of the network.
        label: Label of the data set.
        kind: Kind of work.
        first: Records of A with the same settings.
        second: Records of B with the same settings, those of A as far as B has them.
        ratio: Time per image on B divided by that on A.
        note: How the interval was made, if by an assumption.
    """

    model: str
    label: str
    kind: Kind
    first: tuple[Record, ...]
    second: tuple[Record, ...]
    ratio: Interval
    note: str

    def ms(self, side: int) -> tuple[float, float, float]:
        """Return the time per image in milliseconds with the ends of its interval, on A (0) or B (1)."""
        records = (self.first, self.second)[side]
        images = self.kind.images(records[0])
        prefix = self.kind.key.removesuffix("_median")
        middle = statistics.median(record.measures[self.kind.key] for record in records)
        # A median of few rounds has no interval of its own.
        low = statistics.median(record.measures.get(f"{prefix}_low", middle) for record in records)
        high = statistics.median(record.measures.get(f"{prefix}_high", middle) for record in records)
        return middle / images, low / images, high / images

    def document(self) -> dict[str, Any]:
        """Return the times for JSON."""
        return {
            "model": self.model,
            "label": self.label,
            "work": self.kind.work,
            "a_ms_per_image": self.ms(0)[0],
            "b_ms_per_image": self.ms(1)[0],
            "ratio": self.ratio.estimate,
            "low": self.ratio.low,
            "high": self.ratio.high,
            "note": self.note,
        }


@dataclass(frozen=True)
class Swap:
    """Two networks that change places: on A `first` is the faster one, on B it is the slower one.

    Attributes:
        first: Network that is faster on A.
        second: Network that is faster on B.
        label: Label of the data set.
        kind: Kind of work.
        on_a: Time of `first` divided by that of `second` on A.
        on_b: The same ratio on B.
    """

    first: str
    second: str
    label: str
    kind: Kind
    on_a: Interval
    on_b: Interval

    def document(self) -> dict[str, Any]:
        """Return the pair for JSON."""
        return {
            "faster_on_a": self.first,
            "faster_on_b": self.second,
            "label": self.label,
            "work": self.kind.work,
            "ratio_on_a": list(self.on_a),
            "ratio_on_b": list(self.on_b),
        }


@dataclass(frozen=True)
class Ranking:
    """How both devices rank the networks of one data set by one kind of work.

    Attributes:
        label: Label of the data set.
        kind: Kind of work.
        correlation: Spearman's rank correlation of the times; None for fewer than three networks.
        pairs: Number of pairs of networks.
        swapped: Pairs that change places beyond the intervals on both devices.
        turned: Number of further pairs whose order differs, but not beyond the intervals.
    """

    label: str
    kind: Kind
    correlation: Correlation | None
    pairs: int
    swapped: tuple[Swap, ...]
    turned: int


@dataclass(frozen=True)
class Machines:
    """Two devices side by side.

    Attributes:
        names: Names of the devices of A and B.
        times: Times that both have.
        settings: Settings that differ: name, value of A and value of B.
        equal_counts: Number of networks on a data set whose counts are equal.
        other_counts: Sentences on networks whose counts differ; they are left out.
        rankings: How both devices rank the networks.
        alone: Sentences on what only one of them has.
    """

    names: tuple[str, str]
    times: tuple[Times, ...]
    settings: tuple[tuple[str, str, str], ...]
    equal_counts: int
    other_counts: tuple[str, ...]
    rankings: tuple[Ranking, ...]
    alone: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return everything for JSON."""
        rankings = []
        for ranking in self.rankings:
            found = ranking.correlation
            rankings.append(
                {
                    "label": ranking.label,
                    "work": ranking.kind.work,
                    "networks": found.networks if found else None,
                    "spearman": found.value if found else None,
                    "interval": found.interval if found else None,
                    "pairs": ranking.pairs,
                    "swapped": [swap.document() for swap in ranking.swapped],
                    "turned_within_intervals": ranking.turned,
                }
            )
        return {
            "devices": {"a": self.names[0], "b": self.names[1]},
            "settings": [{"name": name, "a": a, "b": b} for name, a, b in self.settings],
            "equal_counts": self.equal_counts,
            "other_counts": list(self.other_counts),
            "ratios": [times.document() for times in self.times],
            "rankings": rankings,
            "alone": list(self.alone),
        }


Cells = Mapping[tuple[str, str], Sequence[Record]]
"""Records by network and label of the data set."""


def compare_machines(first: Sequence[Record], second: Sequence[Record]) -> Machines:
    """Set two devices side by side, network by network.

    Args:
        first: Records of A, all of one device.
        second: Records of B, all of another device.

    Raises:
        UserError: A side has records of several devices, both have the same device, or no time can be compared.
    """
    names = _device(first, "A"), _device(second, "B")
    if names[0] == names[1]:
        raise UserError(
            f"A and B are of the same device, {names[0]}; --machines compares two devices, and `cnnbench compare A B` "
            "compares two runs on one"
        )
    a, b = _cells(first), _cells(second)
    common = [cell for cell in a if cell in b]
    other_counts = {cell: _other_counts(cell, a[cell], b[cell]) for cell in common}
    alike = [cell for cell in common if not other_counts[cell]]
    times: list[Times] = []
    reasons: list[str] = []
    for model, label in alike:
        for kind in KINDS:
            found = _times(model, label, kind, a[model, label], b[model, label])
            if isinstance(found, Times):
                times.append(found)
            elif found:
                reasons.append(f"{kind.words} of {model} on {label} is not compared: {found}")
    if not times:
        why = "; ".join([*filter(None, other_counts.values()), *reasons]) or "no network on the same data in both"
        raise UserError(f"A and B have no times of the same network to compare: {why}")
    return Machines(
        names,
        tuple(times),
        _differing_settings(times),
        len(alike),
        tuple(filter(None, other_counts.values())),
        tuple(_rankings(times)),
        (*_alone(a, b), *reasons),
    )


def _device(records: Sequence[Record], side: str) -> str:
    """Return the device of the records of a side."""
    names = list(dict.fromkeys(str(said(record.environment, "device")) for record in records))
    if len(names) > 1:
        raise UserError(
            f"{side} has records of {len(names)} devices ({', '.join(names[:5])}); name records of one device, such as "
            "one run folder"
        )
    return names[0]


def _cells(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Return the records that did not fail, by network and label of the data."""
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.status == "ok":
            cells.setdefault((record.title, record.data["label"]), []).append(record)
    return cells


def _other_counts(cell: tuple[str, str], first: Sequence[Record], second: Sequence[Record]) -> str:
    """Return a sentence on the counts in which the two networks of a cell differ; empty if they are equal."""
    for key in COUNTS:
        a = {record.measures[key] for record in first if key in record.measures}
        b = {record.measures[key] for record in second if key in record.measures}
        if a and b and a != b:
            return f"{cell[0]} on {cell[1]} is left out: {key} {_numbers(a)} on A, {_numbers(b)} on B"
    return ""


def _numbers(values: set[Any]) -> str:
    """Return counts as text."""
    return " and ".join(f"{value:,}" for value in sorted(values))


def _times(model: str, label: str, kind: Kind, first: Sequence[Record], second: Sequence[Record]) -> Times | str:
    """Return the times of a network for a kind of work, or why there are none; empty if a side was not timed at all."""
    a = [record for record in first if record.measures.get(kind.key) is not None]
    b = [record for record in second if record.measures.get(kind.key) is not None]
    if not a or not b:
        return ""
    a, b = _alike_as_possible(kind, a, b)
    for side, records in (("A", a), ("B", b)):
        if not all(kind.work in record.measures.get("samples_ms", {}) for record in records):
            return f"{side} has no samples"
    raw_a, raw_b = by_process(a, kind.work, raw=True), by_process(b, kind.work, raw=True)
    ratio, note = ratio_of_times(max(BETWEEN.values()), raw_b, raw_a)
    old = [side for side, records in (("A", a), ("B", b)) if not _has_rounds(records)]
    if old:
        note += f"; {' and '.join(old)} was made before times were kept by round, so each call counts as one"
    # From the time of a call to the time of an image; the logarithm of a quotient is a difference.
    per_image = math.log(kind.images(a[0]) / kind.images(b[0]))
    return Times(model, label, kind, tuple(a), tuple(b), _exp(ratio, per_image), note)


def _alike_as_possible(
    kind: Kind, first: Sequence[Record], second: Sequence[Record]
) -> tuple[list[Record], list[Record]]:
    """Return records of A of one group of settings, and those of B with the same settings if it has any.

    If B has no records of any of A's settings, the first settings of each side are used.
    """
    traits = _traits_of(kind)
    chosen_a, chosen_b = traits(first[0]), traits(second[0])
    available = [traits(record) for record in second]
    for record in first:
        if traits(record) in available:
            chosen_a = chosen_b = traits(record)
            break
    return (
        [record for record in first if traits(record) == chosen_a],
        [record for record in second if traits(record) == chosen_b],
    )


def _traits_of(kind: Kind) -> Callable[[Record], list[Any]]:
    """Return a function that returns the settings of a kind of work which do not belong to the machine."""
    rows = [row for row in affecting(kind.work) if row.name not in _OF_THE_MACHINE]
    return lambda record: [row.value(record) for row in rows]


def _differing_settings(times: Sequence[Times]) -> tuple[tuple[str, str, str], ...]:
    """Return the settings in which the compared records differ, without the device itself."""
    # An inner dictionary serves as a set that keeps its order.
    rows: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for entry in times:
        for setting in affecting(entry.kind.work):
            _add(rows, setting.name, setting.value(entry.first[0]), setting.value(entry.second[0]))
        a, b = (side[0].environment.get("packages") or {} for side in (entry.first, entry.second))
        for package in dict.fromkeys([*a, *b]):
            _add(rows, package, a.get(package), b.get(package))
    differing = []
    for name, (a, b) in rows.items():
        if a.keys() != b.keys() and name != "device":
            differing.append((name, "; ".join(a), "; ".join(b)))
    return tuple(differing)


def _add(rows: dict[str, tuple[dict[str, None], dict[str, None]]], name: str, a: Any, b: Any) -> None:
    """Add the values of a setting on both sides."""
    of_a, of_b = rows.setdefault(name, ({}, {}))
    of_a[NOT_SAID if a is None else str(a)] = None
    of_b[NOT_SAID if b is None else str(b)] = None


def _alone(a: Cells, b: Cells) -> list[str]:
    """Return a sentence per side on the networks that the other does not have."""
    sentences = []
    for side, own, other in (("A", a, b), ("B", b, a)):
        alone = [f"{model} on {label}" for model, label in own if (model, label) not in other]
        if alone:
            shown = ", ".join(alone[:MOST_SWAPPED])
            more = len(alone) - MOST_SWAPPED
            rest = f" and {more:,} more" if more > 0 else ""
            sentences.append(f"only {side} has {shown}{rest}")
    return sentences


def _rankings(times: Sequence[Times]) -> list[Ranking]:
    """Return the rankings of each data set by each kind of work, for two networks or more."""
    groups: dict[tuple[str, Kind], list[Times]] = {}
    for entry in times:
        groups.setdefault((entry.label, entry.kind), []).append(entry)
    rankings = []
    for (label, kind), members in groups.items():
        if len(members) < 2:
            continue
        found = correlate([entry.ms(0)[0] for entry in members], [entry.ms(1)[0] for entry in members])
        swapped: list[Swap] = []
        turned = 0
        pairs = list(combinations(members, 2))
        for x, y in pairs:
            swap = _swap(x, y)
            if swap is None:
                continue
            if _is_faster(swap.on_a) and _is_slower(swap.on_b):
                swapped.append(swap)
            else:
                turned += 1
        # The pairs that differ most between the devices come first.
        swapped.sort(key=lambda swap: swap.on_a.estimate / swap.on_b.estimate)
        rankings.append(Ranking(label, kind, found, len(pairs), tuple(swapped), turned))
    return rankings


def _swap(x: Times, y: Times) -> Swap | None:
    """Return two networks as a pair that changes places; None if both devices have them in the same order."""
    on_a, on_b = _on_one_device(x.first, y.first, x.kind), _on_one_device(x.second, y.second, x.kind)
    if on_a.estimate < 1 < on_b.estimate:
        return Swap(x.model, y.model, x.label, x.kind, on_a, on_b)
    if on_b.estimate < 1 < on_a.estimate:
        return Swap(y.model, x.model, x.label, x.kind, _inverse(on_a), _inverse(on_b))
    return None


def _on_one_device(first: Sequence[Record], second: Sequence[Record], kind: Kind) -> Interval:
    """Return the time of one network divided by that of another on the same device.

    It is in units of the device's yardstick, or in milliseconds for records from before there was one.
    """
    raw = not _has_rounds([*first, *second])
    between = max(BETWEEN.values()) if raw else BETWEEN[kind.work]
    ratio, _ = ratio_of_times(between, by_process(first, kind.work, raw), by_process(second, kind.work, raw))
    return _exp(ratio)


def _has_rounds(records: Sequence[Record]) -> bool:
    """Return whether the times of all records are kept by round, together with those of the yardstick."""
    return all("yardstick" in record.measures["samples_ms"] for record in records)


def _is_faster(ratio: Interval) -> bool:
    """Return whether a ratio of times is below 1 by more than its interval and what two copies of a network differ."""
    return ratio.high is not None and ratio.high < 1 / (1 + ALIKE)


def _is_slower(ratio: Interval) -> bool:
    """Return whether a ratio of times is above 1 by more than its interval and what two copies of a network differ."""
    return ratio.low is not None and ratio.low > 1 + ALIKE


def _exp(log_ratio: Interval, shift: float = 0.0) -> Interval:
    """Return a ratio from its logarithm, to which `shift` is added."""
    if log_ratio.low is None or log_ratio.high is None:
        return Interval(math.exp(log_ratio.estimate + shift), None, None)
    return Interval(*(math.exp(end + shift) for end in (log_ratio.estimate, log_ratio.low, log_ratio.high)))


def _inverse(ratio: Interval) -> Interval:
    """Return the inverse of a ratio with its interval."""
    if ratio.low is None or ratio.high is None:
        return Interval(1 / ratio.estimate, None, None)
    return Interval(1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low)
