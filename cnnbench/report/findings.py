"""What records say together, in sentences: networks over their seeds, fronts, whether multiply-adds tell the speed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnnbench.record import Record
from cnnbench.references import (
    Reference,
    is_as_long_as_the_reference,
    percent,
    published_words,
    reference_of,
)
from cnnbench.report.fronts import Spread, inversion, pareto_front
from cnnbench.stats import Correlation, correlate

SETTINGS = (
    *("budget_s", "epochs", "precision", "inference_precision", "memory_format", "mode", "cudnn_benchmark"),
    *("batch_size", "speed_batch_size"),
)
"""Settings that must agree before two rows compare."""
_UNSAID = {"mode": "eager", "cudnn_benchmark": False}
"""What records mean that do not name a setting."""
SURROUNDINGS = ("device", "packages", "threads")
"""What of the environment must agree before two speeds compare."""
MOST_NAMED_WITHOUT = 5
"""Networks without a reference accuracy that a sentence names; of more it says how many."""
MOST_LISTED = 60
"""Names, values or sentences that are written out; of more it is said how many there are."""
NOT_SAID = "not said"
"""What tables show of a fact that a record does not have."""
COSTS = {"macs": "MACs", "latency_ms_median": "latency"}
"""What accuracy is set against, in words, by measure."""


def budget(record: Record) -> str:
    """Return the training budget of a record in words."""
    seconds = record.config.get("budget_s")
    if seconds is not None:
        return f"{seconds:g} s of training"
    if "epochs" in record.config:
        return f"{record.config['epochs']} epochs"
    return NOT_SAID


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """Return names in a row; of more than `MOST_LISTED` the first ones, and how many more there are."""
    every = list(names)
    more = len(every) - MOST_LISTED
    if more > 0:
        every[MOST_LISTED:] = [f"and {more:,} more"]
    return separator.join(every)


def first_sentences(sentences: Sequence[str], rest: str) -> list[str]:
    """Return sentences; of more than `MOST_LISTED` the first ones, and one on the rest.

    Args:
        sentences: Each about something else.
        rest: What the others are, after their number, such as "more networks failed; see results.csv".
    """
    more = len(sentences) - MOST_LISTED
    if more <= 0:
        return list(sentences)
    return [*sentences[:MOST_LISTED], f"{more:,} {rest}."]


def said(facts: Mapping[str, Any], name: str) -> Any:
    """Return a fact of a record, or that it is not said."""
    value = facts.get(name)
    return NOT_SAID if value is None else value


def setting(record: Record, name: str) -> Any:
    """What a record says of one of `SETTINGS`."""
    value = record.config.get(name, _UNSAID.get(name))
    # Until 2026-11-28 inference was timed in the precision of the training.
    return record.config.get("precision") if name == "inference_precision" and value is None else value


@dataclass(frozen=True)
class Contender:
    """A network on a data set under one set of settings: its records differ in the seed only.

    Attributes:
        name: The network's name; with its settings where the data set has the network more than once.
        records: At least one.
    """

    name: str
    records: tuple[Record, ...]

    @property
    def model(self) -> str:
        return self.records[0].model

    @property
    def label(self) -> str:
        return self.records[0].data["label"]

    @property
    def converged(self) -> bool:
        return all(r.training.get("converged", True) for r in self.records)

    @property
    def reference(self) -> Reference | None:
        """What the network reaches after a longer training than this one, if that is known; None after a full one."""
        return reference_of(self.records[0])

    @property
    def settled(self) -> float | None:
        """Accuracy that says how good the network is: after a full training, or a reference; None if there is none.

        Of a training that is as long as the reference, which may be the reference itself, its own.
        """
        known = self.reference
        if known is not None:
            return known.accuracy
        is_long = self.converged or is_as_long_as_the_reference(self.records[0])
        return self.mean("test_accuracy") if is_long and self.has("test_accuracy") else None

    def per_seed(self, key: str) -> list[float]:
        """A measure per seed that has it; repeats of a seed count once, as their mean."""
        found: dict[int, list[float]] = {}
        for r in self.records:
            if r.measures.get(key) is not None:
                found.setdefault(r.seed, []).append(r.measures[key])
        return [statistics.fmean(values) for values in found.values()]

    def has(self, key: str) -> bool:
        return bool(self.per_seed(key))

    def mean(self, key: str) -> float:
        return statistics.fmean(self.per_seed(key))

    def spread(self, key: str) -> tuple[float, float]:
        """The range over the seeds, or the interval of the only one."""
        values = self.per_seed(key)
        if len(values) > 1:
            return min(values), max(values)
        ends = [r.measures.get(f"{key}_{end}") for r in self.records for end in ("low", "high")]
        return min(values + [e for e in ends if e is not None]), max(values + [e for e in ends if e is not None])


def contenders(records: Sequence[Record]) -> list[Contender]:
    """Records gathered by data set, network and settings, in the order of their first appearance."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for r in records:
        groups.setdefault((r.data["label"], r.model, *_conditions(r)), []).append(r)
    rivals: dict[Any, list[Record]] = {}
    for key, found in groups.items():
        rivals.setdefault(key[:2], []).append(found[0])
    varied = {key: _varied(found) for key, found in rivals.items()}
    return [
        Contender(" ".join([found[0].model, *_apart(found[0], varied[key[:2]])]), tuple(found))
        for key, found in groups.items()
    ]


def _conditions(record: Record) -> tuple[str, ...]:
    """What must agree before two rows compare."""
    settings = [str(setting(record, s)) for s in SETTINGS]
    return (*settings, *(str(record.environment.get(s)) for s in SURROUNDINGS))


def _traits(record: Record) -> tuple[str, ...]:
    """Return what may set a record apart from others of its network, in words."""
    config, environment = record.config, record.environment
    return (
        budget(record),
        str(setting(record, "precision")),
        f"inference in {setting(record, 'inference_precision')}",
        str(said(environment, "device")),
        f"batch {config.get('batch_size')}",
        f"batch {config.get('speed_batch_size')} in inference",
        f"{environment.get('threads')} threads",
        packages(record),
    )


def packages(record: Record) -> str:
    """Return the packages that a record names, with their versions."""
    versions = record.environment.get("packages") or {}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _varied(rivals: Sequence[Record]) -> list[bool]:
    """Return for each of `_traits` whether the records differ in it."""
    return [len(set(values)) > 1 for values in zip(*map(_traits, rivals), strict=True)]


def _apart(record: Record, varied: Sequence[bool]) -> list[str]:
    """Return in brackets what sets a record apart from its rivals, at most one text; none where nothing does.

    Args:
        record: One of the rivals.
        varied: What `_varied` says of them.
    """
    apart = [trait for trait, differs in zip(_traits(record), varied, strict=True) if differs]
    return [f"({', '.join(apart)})"] if apart else []


def by_label(entries: Sequence[Contender]) -> dict[str, list[Contender]]:
    """Contenders by data set."""
    groups: dict[str, list[Contender]] = {}
    for entry in entries:
        groups.setdefault(entry.label, []).append(entry)
    return groups


def compare_alike(entries: Sequence[Contender]) -> bool:
    """Whether all ran under the same settings on the same machine, so that one may be said to beat another."""
    return len({_conditions(e.records[0]) for e in entries}) == 1


def rivals_by_label(entries: Sequence[Contender]) -> dict[str, list[Contender]]:
    """Contenders that compare, by data set: where there are several settings or machines, they are in the name."""
    groups: dict[tuple[str, ...], list[Contender]] = {}
    for entry in entries:
        groups.setdefault((entry.label, *_conditions(entry.records[0])), []).append(entry)
    rivals: dict[str, list[Record]] = {}
    for key, group in groups.items():
        rivals.setdefault(key[0], []).append(group[0].records[0])
    varied = {label: _varied(records) for label, records in rivals.items()}
    found = {}
    for key, group in groups.items():
        found[" ".join([key[0], *_apart(group[0].records[0], varied[key[0]])])] = group
    return found


def measured(entries: Sequence[Contender], *keys: str) -> list[Contender]:
    """Those with all these measures, none of them zero: costs are compared as ratios."""
    return [e for e in entries if all(e.has(key) and e.mean(key) > 0 for key in keys)]


def front(entries: Sequence[Contender], cost: str) -> list[Contender]:
    """Return those that no other beats in settled accuracy at equal or lower cost, by rising cost.

    A network that has none is left out: what it learns within a short budget says how fast it learns, not how good it
    is. The accuracies are means over seeds.
    """
    points = [(e, e.mean(cost), e.settled) for e in measured(entries, cost) if e.settled is not None]
    return [points[i][0] for i in pareto_front([(x, y) for _, x, y in points])]


def front_sentences(records: Sequence[Record], cost: str) -> list[str]:
    """A sentence per data set that names the front; none where there is nothing to compare."""
    sentences = []
    for label, entries in rivals_by_label(contenders(records)).items():
        found = measured(entries, cost, "test_accuracy")
        if len(found) < 2:
            continue
        sentences.append(_front_sentence(label, found, cost))
    return first_sentences(sentences, "more groups that compare have a front of their own")


def _front_sentence(label: str, entries: Sequence[Contender], cost: str) -> str:
    settled = [e for e in entries if e.settled is not None]
    unknown = [e.name for e in entries if e.settled is None]
    if len(settled) < 2:
        return (
            f"No front of accuracy against {COSTS[cost]} is drawn on {label}: these trainings are too short to say "
            "which network is better, and fewer than two of them have a reference accuracy."
        )
    mean = " (mean over seeds)" if any(len(e.per_seed("test_accuracy")) > 1 for e in entries) else ""
    kind = "reference accuracy" if any(e.reference for e in settled) else "accuracy"
    names = listed(e.name for e in front(entries, cost))
    rest = f" Left out, since there is no reference of them: {listed(unknown)}." if unknown else ""
    if len(unknown) > MOST_NAMED_WITHOUT:
        rest = f" {len(unknown)} networks are left out, since there is no reference of them."
    return f"Front of {kind}{mean} against {COSTS[cost]} on {label}: {names}.{rest}"


def reference_sentences(records: Sequence[Record]) -> list[str]:
    """Return a sentence per network whose training here was short: what it reaches after its reference training."""
    sentences = []
    for entry in contenders(records):
        known = entry.reference
        if known is None or not entry.has("test_accuracy"):
            continue
        published = published_words(entry.model, entry.label)
        sentences.append(
            f"{entry.name} on {entry.label}: within this run's budget {percent(entry.mean('test_accuracy'))}; after "
            f"its reference training {known.words}" + (f"; {published}." if published else ".")
        )
    return first_sentences(sentences, "more networks have reference accuracies; see the column Reference %")


def left_out_sentences(records: Sequence[Record], *keys: str) -> list[str]:
    """Return a sentence per measure that names the networks whose value is 0, which no picture of ratios can show.

    Args:
        records: All that a picture is made from.
        keys: Measures that the picture needs.
    """
    entries = [e for e in contenders(records) if all(e.has(key) for key in keys)]
    sentences = []
    for key in keys:
        if key not in COSTS:
            continue
        names = [f"{e.name} on {e.label}" for e in entries if e.mean(key) <= 0]
        if names:
            sentences.append(f"Not drawn, since an axis of ratios has no place for 0 {COSTS[key]}: {listed(names)}.")
    return sentences


def timed(entries: Sequence[Contender]) -> list[Contender]:
    """Those with multiply-adds and latency; none where they were not timed under the same conditions."""
    found = measured(entries, "macs", "latency_ms_median")
    return found if compare_alike(found) else []


def latency_correlation(entries: Sequence[Contender]) -> Correlation | None:
    """Rank correlation of multiply-adds and latency over the networks of one data set."""
    found = timed(entries)
    return correlate([e.mean("macs") for e in found], [e.mean("latency_ms_median") for e in found])


def misjudged(entries: Sequence[Contender]) -> tuple[Contender, Contender] | None:
    """The two networks whose multiply-adds and latency disagree most: the first has fewer and takes longer."""
    found = timed(entries)
    pair = inversion([e.mean("macs") for e in found], [latency_spread(e) for e in found])
    return None if pair is None else (found[pair[0]], found[pair[1]])


def latency_spread(entry: Contender) -> Spread:
    """Median and deciles of the calls; the median alone where a record has no more."""
    median = entry.mean("latency_ms_median")
    low, high = (entry.mean(k) if entry.has(k) else median for k in ("latency_ms_p10", "latency_ms_p90"))
    return Spread(low, median, high)


def speed_sentences(records: Sequence[Record]) -> list[str]:
    """A paragraph per data set on how far multiply-adds tell latency and training time."""
    groups = rivals_by_label(contenders(records))
    sentences = [_speed_sentence(label, entries) for label, entries in groups.items()]
    return first_sentences([text for text in sentences if text], "more groups that compare are left out here")


def _speed_sentence(label: str, entries: Sequence[Contender]) -> str:
    found = latency_correlation(entries)
    if found is None:
        return ""
    text = (
        f"Rank correlation (Spearman) of MACs and latency, batch 1, over {found.networks} networks on {label}: "
        f"{found.value:.2f}"
    )
    if found.interval:
        text += f" (95 % interval, bootstrap over networks, {found.interval[0]:.2f} to {found.interval[1]:.2f})"
    for key, size, what in (
        ("images_per_s", "speed_batch_size", "inference"),
        ("train_images_per_s", "batch_size", "training"),
    ):
        rated = measured(timed(entries), key)
        other = correlate([e.mean("macs") for e in rated], [1 / e.mean(key) for e in rated])
        if other:
            batch = "/".join(dict.fromkeys(str(said(e.records[0].config, size)) for e in rated))
            over = "" if other.networks == found.networks else f", over {other.networks}"
            text += f"; of MACs and time per image in {what} at batch {batch}{over}: {other.value:.2f}"
    return text + "." + _example(entries)


def _example(entries: Sequence[Contender]) -> str:
    pair = misjudged(entries)
    if pair is None:
        return ""
    small, large = pair
    fewer = _times(large.mean("macs") / small.mean("macs"))
    longer = _times(small.mean("latency_ms_median") / large.mean("latency_ms_median"))
    return (
        f" FLOPs are not speed: {small.name} has {fewer} times fewer MACs than {large.name} and takes {longer} times "
        "as long for one image."
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2g}" if 1.1 <= ratio < 10 else f"{ratio:.2f}" if ratio < 1.1 else f"{ratio:,.0f}"


SEED_COLUMNS = ("Model", "Data", "Seeds", "Mean accuracy %", "SD", "Range %")


def over_seeds(records: Sequence[Record]) -> list[list[str]]:
    """The table of accuracies over seeds, its head first; empty where no network was trained with two."""
    entries = [e for e in contenders(records) if e.has("test_accuracy")]
    if all(len(e.per_seed("test_accuracy")) < 2 for e in entries):
        return []
    fitted = any(e.has("train_accuracy") for e in entries)
    rows = [[*SEED_COLUMNS, *(["Mean train accuracy %"] if fitted else [])]]
    for e in entries:
        values = [100 * v for v in e.per_seed("test_accuracy")]
        several = len(values) > 1
        row = [e.name, e.label, str(len(values)), f"{statistics.fmean(values):.2f}"]
        row.append(f"{statistics.stdev(values):.2f}" if several else "\N{EN DASH}")
        row.append(f"{min(values):.2f}\N{EN DASH}{max(values):.2f}" if several else "\N{EN DASH}")
        if fitted:
            row.append(f"{100 * e.mean('train_accuracy'):.2f}" if e.has("train_accuracy") else "\N{EN DASH}")
        rows.append(row)
    return rows
