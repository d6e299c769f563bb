"""Engines side by side: the latency of each network in each engine, and whether engines rank the networks alike.

A way is an engine with a number format and, for torch, a mode. The latencies of a way are compared with those of torch
in float32, the baseline. Two ways are compared on one machine and for the same images only.

Every ratio has an interval for further processes, since engines never share one. From `FEWEST_ROUNDS` processes on it
is that of the pairs of processes that took turns; with fewer, the usual spread between processes is assumed, see
`cnnbench.report.compare.ratio_of_times`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import combinations, product
from typing import Any

from cnnbench.measures import Work
from cnnbench.record import Record
from cnnbench.report.compare import BETWEEN, by_process, ratio_of_times
from cnnbench.report.contenders import by_seed, values_of
from cnnbench.report.settings import BY_NAME, SETTLING, said
from cnnbench.report.speed_tables import time_ratio
from cnnbench.report.ways import RecordedWay, engine_of, named, network_of, order_of, way_of
from cnnbench.stats import FEWEST_ROUNDS, Correlation, Interval, correlate

LATENCY = "latency_ms_median"
_WORK: Work = "latency"
_COMMON = tuple(BY_NAME[name] for name in ("device", "threads", "allocator", "host_cpu", "image_size", *SETTLING))
"""Settings that must agree before engines are set side by side, beside the data."""


@dataclass(frozen=True)
class TimedRow:
    """A network in one way.

    Attributes:
        record: Newest record with its latency.
        records: All its records, which have its accuracies.
    """

    record: Record
    records: tuple[Record, ...]

    @property
    def latency(self) -> Interval:
        """Return the median latency in milliseconds with its interval."""
        measures = self.record.measures
        return Interval(measures[LATENCY], measures.get("latency_ms_low"), measures.get("latency_ms_high"))

    @property
    def suspect(self) -> bool:
        """Return whether the run that measured the latency doubts it, for another reason than batches or training."""
        return bool(self.record.doubts("latency"))

    @property
    def file_bytes(self) -> int | None:
        """Return the size on disk; None if it is not known."""
        size: int | None = self.record.measures.get("file_bytes")
        return size

    @property
    def accuracy(self) -> float | None:
        """Return the mean test accuracy over seeds, a share; None if it is not known."""
        accuracies = by_seed(self.records, "test_accuracy").values()
        return math.fsum(accuracies) / len(accuracies) if accuracies else None

    @property
    def fully_trained(self) -> bool:
        """Return whether all its trainings were full ones."""
        return all(record.fully_trained for record in self.records)


@dataclass(frozen=True)
class Swap:
    """Two networks that change places between two ways, beyond their intervals in both.

    Attributes:
        first: Network that is faster in the first way.
        second: Network that is faster in the second way.
        in_first: Latency of `first` divided by that of `second` in the first way, below 1.
        in_second: The same ratio in the second way, above 1.
    """

    first: str
    second: str
    in_first: Interval
    in_second: Interval

    @property
    def clearness(self) -> float:
        """Return by how much the ratio changes, as a factor."""
        return self.in_second.estimate / self.in_first.estimate


@dataclass(frozen=True)
class Agreement:
    """How two ways rank the networks that both have.

    Attributes:
        first, second: Ways.
        networks: Names of the networks that both have.
        correlation: Spearman's rank correlation of the latencies; None for fewer than three networks.
        swaps: Pairs that change places beyond their intervals, the clearest first.
        turned: Number of further pairs whose order differs, but not beyond the intervals.
    """

    first: RecordedWay
    second: RecordedWay
    networks: tuple[str, ...]
    correlation: Correlation | None
    swaps: tuple[Swap, ...]
    turned: int

    @property
    def pairs(self) -> int:
        """Return the number of pairs of networks."""
        return math.comb(len(self.networks), 2)


@dataclass(frozen=True)
class EngineView:
    """The engines of one machine, for images of one data set.

    Attributes:
        label: Label of the data set.
        device: Product name of the device.
        threads: Number of threads of torch.
        turns: Calls of a turn that do not count, in words.
        names: Ways in words, torch in float32 first.
        cells: Timed networks by name and way.
    """

    label: str
    device: str
    threads: str
    turns: str
    names: Mapping[RecordedWay, str]
    cells: Mapping[tuple[str, RecordedWay], TimedRow]

    @property
    def ways(self) -> tuple[RecordedWay, ...]:
        """Return the ways in the order of columns."""
        return tuple(self.names)

    @property
    def baseline(self) -> RecordedWay | None:
        """Return the way with which the others are compared; None without a record of torch in float32."""
        return next((way for way in self.ways if way.is_baseline), None)

    @property
    def suspect(self) -> bool:
        """Return whether a latency is doubted."""
        return any(cell.suspect for cell in self.cells.values())

    @cached_property
    def networks(self) -> tuple[str, ...]:
        """Return the networks by latency in the first way that has them; those without the baseline come last."""
        places = {name: self._place(name) for name, _ in self.cells}
        return tuple(sorted(places, key=lambda name: places[name]))

    def _place(self, network: str) -> tuple[int, float]:
        for place, way in enumerate(self.ways):
            cell = self.cells.get((network, way))
            if cell is not None:
                return place, cell.latency.estimate
        raise KeyError(network)

    def of_way(self, way: RecordedWay) -> dict[str, TimedRow]:
        """Return the networks of a way, the fastest first: the ranking of its networks."""
        cells = {name: cell for (name, other), cell in self.cells.items() if other == way}
        return dict(sorted(cells.items(), key=lambda item: item[1].latency.estimate))

    def times_as_fast(self, network: str, way: RecordedWay) -> Interval | None:
        """Return the latency in torch in float32 divided by that in a way; None if one of the two is not known."""
        if self.baseline is None:
            return None
        base, cell = self.cells.get((network, self.baseline)), self.cells.get((network, way))
        return None if base is None or cell is None else ratio(base.record, cell.record)

    @cached_property
    def agreements(self) -> tuple[Agreement, ...]:
        """Return how other engines rank the networks beside torch in float32, then beside each other in one format.

        Without torch in float32, these are all pairs of engines in one format or, if there are none, in any format.
        """
        pairs = [(a, b) for a, b in combinations(self.ways, 2) if a.engine != b.engine]
        with_base = [pair for pair in pairs if self.baseline in pair]
        alike = [pair for pair in pairs if pair not in with_base and pair[0].precision == pair[1].precision]
        return tuple(_agreement(self, *pair) for pair in [*with_base, *alike] or pairs)

    def document(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "label": self.label,
            "device": self.device,
            "threads": self.threads,
            "baseline": None if self.baseline is None else self.names[self.baseline],
            "rows": self.rows(),
            "rankings": {self.names[way]: list(self.of_way(way)) for way in self.ways},
            "agreements": [self._agreement_document(found) for found in self.agreements],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the figures of all networks in all ways, by key."""
        pairs = product(self.networks, self.ways)
        return [self._row(network, way) for network, way in pairs if (network, way) in self.cells]

    def _row(self, network: str, way: RecordedWay) -> dict[str, Any]:
        """Return the figures of a network in a way by key."""
        cell, fast = self.cells[network, way], self.times_as_fast(network, way)
        return {
            "model": network,
            "engine": way.engine,
            "version": way.version,
            "precision": way.precision,
            "mode": way.mode,
            "memory_format": way.memory_format,
            "latency_ms_median": cell.latency.estimate,
            "latency_ms_low": cell.latency.low,
            "latency_ms_high": cell.latency.high,
            "times_as_fast": None if fast is None else fast.estimate,
            "times_as_fast_low": None if fast is None else fast.low,
            "times_as_fast_high": None if fast is None else fast.high,
            "place": list(self.of_way(way)).index(network) + 1,
            "file_bytes": cell.file_bytes,
            "test_accuracy": cell.accuracy,
            "suspect": cell.suspect,
        }

    def _agreement_document(self, found: Agreement) -> dict[str, Any]:
        swaps = []
        for swap in found.swaps:
            names = {"faster_in_first": swap.first, "faster_in_second": swap.second}
            swaps.append({**names, "ratio_in_first": list(swap.in_first), "ratio_in_second": list(swap.in_second)})
        return {
            "first": self.names[found.first],
            "second": self.names[found.second],
            "networks": len(found.networks),
            "spearman": found.correlation.value if found.correlation else None,
            "interval": found.correlation.interval if found.correlation else None,
            "pairs": found.pairs,
            "swapped": swaps,
            "turned_within_intervals": found.turned,
        }


def engine_views(records: Iterable[Record]) -> list[EngineView]:
    """Return a view for each machine and data set whose records have latencies in two engines or more."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if record.status == "ok" and record.measures.get(LATENCY):
            images = record.data["label"], record.data.get("in_channels"), len(record.data["class_names"])
            groups.setdefault((*images, *values_of(record, _COMMON)), []).append(record)
    return [_view(members) for members in groups.values() if len({engine_of(record) for record in members}) > 1]


def _view(records: Sequence[Record]) -> EngineView:
    """Return the view of the records of one machine and data set."""
    members: dict[tuple[str, RecordedWay], list[Record]] = {}
    for record in sorted(records, key=lambda r: r.created):
        members.setdefault((network_of(record), way_of(record)), []).append(record)
    ways = sorted({way for _, way in members}, key=order_of)
    cells = {}
    for key, several in members.items():
        # The network itself is timed in such a way too, but tested in the number format of its training.
        own = [record for record in several if record.is_of_an_engine] or several
        cells[key] = TimedRow(own[-1], tuple(own))
    label = str(records[0].data["label"])
    device, threads = (str(said(records[0].environment, name)) for name in ("device", "threads"))
    turns = ", ".join(filter(None, (BY_NAME[name].said(records[0]) for name in SETTLING)))
    return EngineView(label, device, threads, turns or "all calls counted", named(ways), cells)


def ratio(first: Record, second: Record) -> Interval:
    """Return the latency of one record divided by that of another, with an interval for further processes.

    The interval is that of paired processes if both records are of one run, which had at least `FEWEST_ROUNDS` of them.
    Otherwise it assumes how much processes usually differ. It has no ends if a record lacks its single times.
    """
    a, b = first.measures, second.measures
    if not all(measures.get("samples_ms", {}).get(_WORK) for measures in (a, b)):
        return Interval(a[LATENCY] / b[LATENCY], None, None)
    processes = [len(measures.get("process_rounds", ())) for measures in (a, b)]
    if processes[0] == processes[1] >= FEWEST_ROUNDS and _of_one_run(first, second):
        return time_ratio(a, b, _WORK)
    logs, _ = ratio_of_times(BETWEEN[_WORK], by_process([first], _WORK, True), by_process([second], _WORK, True))
    if logs.low is None or logs.high is None:
        return Interval(math.exp(logs.estimate), None, None)
    return Interval(*map(math.exp, (logs.estimate, logs.low, logs.high)))


def _of_one_run(first: Record, second: Record) -> bool:
    """Return whether the processes of two records took turns, as far as records tell: one commit and one day."""
    a, b = (datetime.fromisoformat(record.created) for record in (first, second))
    same = first.environment.get("commit") == second.environment.get("commit")
    return same and abs(a - b) < timedelta(days=1)


def _agreement(view: EngineView, first: RecordedWay, second: RecordedWay) -> Agreement:
    """Return how two ways rank the networks that both have."""
    in_first, in_second = view.of_way(first), view.of_way(second)
    common = [name for name in in_first if name in in_second]
    a = [in_first[name].latency.estimate for name in common]
    b = [in_second[name].latency.estimate for name in common]
    swaps, turned = [], 0
    # The networks are in the order of the first way, so only their order in the second one is looked at.
    for i, j in combinations(range(len(common)), 2):
        if a[i] == a[j] or b[i] <= b[j]:
            continue
        one, other = common[i], common[j]
        ratios = [ratio(cells[one].record, cells[other].record) for cells in (in_first, in_second)]
        if ratios[0].differs and ratios[1].differs and ratios[0].estimate < 1 < ratios[1].estimate:
            swaps.append(Swap(one, other, *ratios))
        else:
            turned += 1
    swaps.sort(key=lambda swap: -swap.clearness)
    return Agreement(first, second, tuple(common), correlate(a, b), tuple(swaps), turned)
