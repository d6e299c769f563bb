"""Findings from several records, in sentences: accuracies over seeds, Pareto fronts, and multiply-adds against speed.

Only networks that ran under the same settings on the same machine are ranked against each other. An accuracy after a
short training never ranks networks; a reference accuracy stands in for it where one is known.
"""

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
from cnnbench.report.pareto import Spread, inversion, pareto_front
from cnnbench.stats import Correlation, correlate

SETTINGS = (
    *("budget_s", "epochs", "precision", "inference_precision", "memory_format", "mode", "cudnn_benchmark"),
    *("batch_size", "speed_batch_size"),
)
"""Settings that must agree before two rows are compared."""
_UNSAID = {"mode": "eager", "cudnn_benchmark": False}
"""Values of settings that a record does not name."""
SURROUNDINGS = ("device", "packages", "threads")
"""Entries of the environment that must agree before two speeds are compared."""
MOST_NAMED_WITHOUT = 5
"""Largest number of networks without a reference accuracy that a sentence names; of more it gives the number."""
MOST_LISTED = 60
"""Largest number of names, values or sentences that are written out; the rest is only counted."""
NOT_SAID = "not said"
"""Text that tables show for a fact that a record does not have."""
COSTS = {"macs": "MACs", "latency_ms_median": "latency"}
"""Costs that accuracy is compared with, in words, by key of the figure."""


def budget(record: Record) -> str:
    """Return the training budget of a record in words."""
    seconds = record.config.get("budget_s")
    if seconds is not None:
        return f"{seconds:g} s of training"
    if record.config.get("epochs") is not None:
        return f"{record.config['epochs']} epochs"
    return NOT_SAID


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """Return the names joined in one text; after the first `MOST_LISTED`, the rest is only counted."""
    every = list(names)
    more = len(every) - MOST_LISTED
    if more > 0:
        every[MOST_LISTED:] = [f"and {more:,} more"]
    return separator.join(every)


def first_sentences(sentences: Sequence[str], rest: str) -> list[str]:
    """Return the sentences; after the first `MOST_LISTED`, one last sentence counts the rest.

    Args:
        sentences: Sentences on different things.
        rest: Words that follow the number of omitted sentences, such as "more networks failed; see results.csv".
    """
    more = len(sentences) - MOST_LISTED
    if more <= 0:
        return list(sentences)
    return [*sentences[:MOST_LISTED], f"{more:,} {rest}."]


def said(facts: Mapping[str, Any], name: str) -> Any:
    """Return a fact of a record, or `NOT_SAID` if the record does not have it."""
    value = facts.get(name)
    return NOT_SAID if value is None else value


def setting(record: Record, name: str) -> Any:
    """Return the value of a setting, also for a record that does not name it."""
    value = record.config.get(name, _UNSAID.get(name))
    # Until 2026-11-28 inference was timed in the precision of training.
    return record.config.get("precision") if name == "inference_precision" and value is None else value


@dataclass(frozen=True)
class Contender:
    """A network on a data set under one set of settings; its records differ in the seed only.

    Attributes:
        name: Name of the network, followed by its settings if the data set has the network under several of them.
        records: Records of the network, at least one.
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
        """Return whether none of the records has a training that was too short or diverged."""
        return all(r.training.get("converged", True) for r in self.records)

    @property
    def reference(self) -> Reference | None:
        """Return the reference if its training was longer than this one; None after a full training, or if unknown."""
        return reference_of(self.records[0])

    @property
    def settled(self) -> float | None:
        """Return the accuracy after a full training, or else that of the reference training; None if neither is known.

        If this training is as long as the reference training, or is that training itself, its own accuracy counts.
        """
        known = self.reference
        if known is not None:
            return known.accuracy
        is_long = self.converged or is_as_long_as_the_reference(self.records[0])
        return self.mean("test_accuracy") if is_long and self.has("test_accuracy") else None

    def per_seed(self, key: str) -> list[float]:
        """Return one value of a figure per seed; repeats of a seed count once, as their mean."""
        found: dict[int, list[float]] = {}
        for r in self.records:
            if r.measures.get(key) is not None:
                found.setdefault(r.seed, []).append(r.measures[key])
        return [statistics.fmean(values) for values in found.values()]

    def has(self, key: str) -> bool:
        """Return whether at least one record has the figure."""
        return bool(self.per_seed(key))

    def mean(self, key: str) -> float:
        """Return the mean of a figure over the seeds."""
        return statistics.fmean(self.per_seed(key))

    def spread(self, key: str) -> tuple[float, float]:
        """Return the range of a figure over the seeds, or its interval if there is a single seed."""
        values = self.per_seed(key)
        if len(values) > 1:
            return min(values), max(values)
        ends = [r.measures.get(f"{key}_{end}") for r in self.records for end in ("low", "high")]
        return min(values + [e for e in ends if e is not None]), max(values + [e for e in ends if e is not None])


def contenders(records: Sequence[Record]) -> list[Contender]:
    """Return the records grouped by data set, network and settings, in the order of their first appearance."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for r in records:
        groups.setdefault((r.data["label"], r.model, *_conditions(r)), []).append(r)
    # Rivals are the groups of one network on one data set; their names show the settings in which they differ.
    rivals: dict[Any, list[Record]] = {}
    for key, found in groups.items():
        rivals.setdefault(key[:2], []).append(found[0])
    varied = {key: _varied(found) for key, found in rivals.items()}
    return [
        Contender(" ".join([found[0].model, *_apart(found[0], varied[key[:2]])]), tuple(found))
        for key, found in groups.items()
    ]


def _conditions(record: Record) -> tuple[str, ...]:
    """Return the settings and surroundings that must agree before two rows are compared, as texts."""
    settings = [str(setting(record, s)) for s in SETTINGS]
    return (*settings, *(str(record.environment.get(s)) for s in SURROUNDINGS))


def _traits(record: Record) -> tuple[str, ...]:
    """Return, in words, the settings that may distinguish a record from others of the same network."""
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
    """Return the packages that a record names, with their versions, as one text."""
    versions = record.environment.get("packages") or {}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _varied(rivals: Sequence[Record]) -> list[bool]:
    """Return for each entry of `_traits` whether the records differ in it."""
    return [len(set(values)) > 1 for values in zip(*map(_traits, rivals), strict=True)]


def _apart(record: Record, varied: Sequence[bool]) -> list[str]:
    """Return one text in brackets with the settings that distinguish a record from its rivals, or an empty list.

    Args:
        record: One of the rivals.
        varied: Result of `_varied` for the rivals.
    """
    apart = [trait for trait, differs in zip(_traits(record), varied, strict=True) if differs]
    return [f"({', '.join(apart)})"] if apart else []


def by_label(entries: Sequence[Contender]) -> dict[str, list[Contender]]:
    """Return the contenders by label of their data set."""
    groups: dict[str, list[Contender]] = {}
    for entry in entries:
        groups.setdefault(entry.label, []).append(entry)
    return groups


def compare_alike(entries: Sequence[Contender]) -> bool:
    """Return whether all contenders ran under the same settings on the same machine, and so may be ranked."""
    return len({_conditions(e.records[0]) for e in entries}) == 1


def rivals_by_label(entries: Sequence[Contender]) -> dict[str, list[Contender]]:
    """Return groups of contenders that may be ranked, by data set.

    If a data set was used under several settings or on several machines, the name of each group contains them.
    """
    groups: dict[tuple[str, ...], list[Contender]] = {}
    for entry in entries:
        groups.setdefault((entry.label, *_conditions(entry.records[0])), []).append(entry)
    # The records of a group share their settings, so one of them stands for the group.
    rivals: dict[str, list[Record]] = {}
    for key, group in groups.items():
        rivals.setdefault(key[0], []).append(group[0].records[0])
    varied = {label: _varied(records) for label, records in rivals.items()}
    found = {}
    for key, group in groups.items():
        found[" ".join([key[0], *_apart(group[0].records[0], varied[key[0]])])] = group
    return found


def measured(entries: Sequence[Contender], *keys: str) -> list[Contender]:
    """Return the contenders that have all these figures above 0, since costs are compared as ratios."""
    return [e for e in entries if all(e.has(key) and e.mean(key) > 0 for key in keys)]


def front(entries: Sequence[Contender], cost: str) -> list[Contender]:
    """Return the contenders on the Pareto front of settled accuracy against a cost, by rising cost.

    A contender without a settled accuracy is left out: the accuracy after a short training says how fast a network
    learns, not how good it is. Accuracies are means over seeds.
    """
    points = [(e, e.mean(cost), e.settled) for e in measured(entries, cost) if e.settled is not None]
    return [points[i][0] for i in pareto_front([(x, y) for _, x, y in points])]


def front_sentences(records: Sequence[Record], cost: str) -> list[str]:
    """Return a sentence per data set that names its Pareto front; none for a data set with fewer than two networks."""
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
    """Return a sentence per network with a short training: the accuracy that its reference training reaches."""
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
    """Return a sentence per cost that names the networks whose cost is 0, which a logarithmic axis cannot show.

    Args:
        records: All records of the picture.
        keys: Keys of the figures that the picture needs.
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
    """Return the contenders with multiply-adds and latency; none if they were timed under different conditions."""
    found = measured(entries, "macs", "latency_ms_median")
    return found if compare_alike(found) else []


def latency_correlation(entries: Sequence[Contender]) -> Correlation | None:
    """Return the rank correlation of multiply-adds and latency over the networks of one data set, if it exists."""
    found = timed(entries)
    return correlate([e.mean("macs") for e in found], [e.mean("latency_ms_median") for e in found])


def misjudged(entries: Sequence[Contender]) -> tuple[Contender, Contender] | None:
    """Return the two networks whose multiply-adds and latency disagree most: the first has fewer, but takes longer."""
    found = timed(entries)
    pair = inversion([e.mean("macs") for e in found], [latency_spread(e) for e in found])
    return None if pair is None else (found[pair[0]], found[pair[1]])


def latency_spread(entry: Contender) -> Spread:
    """Return the first decile, median and ninth decile of the latency; the median replaces deciles that are missing."""
    median = entry.mean("latency_ms_median")
    low, high = (entry.mean(k) if entry.has(k) else median for k in ("latency_ms_p10", "latency_ms_p90"))
    return Spread(low, median, high)


def speed_sentences(records: Sequence[Record]) -> list[str]:
    """Return a paragraph per data set on how well multiply-adds predict latency and time per image."""
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
        # The time per image is the inverse of the throughput.
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
"""Header of the table over seeds."""


def over_seeds(records: Sequence[Record]) -> list[list[str]]:
    """Return the table of accuracies over seeds, header first; empty if no network was trained with two seeds."""
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
