"""Contenders: the records of a network on a data set under one set of settings, and which of them may be ranked.

This module needs no statistics, so that a command that only reads records starts fast.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cnnbench.record import Record
from cnnbench.references import Reference, is_as_good_as_the_reference, percent, reference_of
from cnnbench.report.settings import Setting, in_group

_CONDITIONS = in_group("row")
"""Settings that must agree before two rows are ranked."""
_TRAITS = in_group("row", "training")
"""Settings in which the records of a network may differ, so that they are not repeats of each other."""


def by_seed(records: Iterable[Record], key: str) -> dict[int, float]:
    """Return the value of a figure by seed; repeats of a seed count once, as their mean."""
    seeds: dict[int, list[float]] = {}
    for r in records:
        if r.measures.get(key) is not None:
            seeds.setdefault(r.seed, []).append(r.measures[key])
    # A repeat says nothing about the spread from seed to seed, so it must not count as another seed.
    return {seed: statistics.fmean(values) for seed, values in seeds.items()}


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
        # Records without a training, such as those of counts, have nothing that could be too short.
        return all(r.fully_trained for r in self.records)

    @property
    def reference(self) -> Reference | None:
        """Return the reference if its training was longer than this one; None after a full training, or if unknown."""
        # All records have the same budget and settings, so the first stands for the others.
        return reference_of(self.records[0])

    @property
    def settled(self) -> float | None:
        """Return the accuracy after a full training, or else that of the reference training; None if neither is known.

        If this training is as good as the reference training, or is that training itself, its own accuracy counts.
        """
        known = self.reference
        if known is not None:
            return known.accuracy
        is_settled = self.converged or is_as_good_as_the_reference(self.records[0])
        if is_settled and self.has("test_accuracy"):
            return self.mean("test_accuracy")
        return None

    @property
    def accuracy_words(self) -> str:
        """Return the accuracy by which the network is ranked, with the training that it belongs to.

        A network that cannot be ranked has the accuracy of its short training.
        """
        known = self.reference
        if known is not None:
            epochs = f"{known.epochs:.0f}"
            unit = "epoch" if epochs == "1" else "epochs"
            return f"{percent(known.accuracy)} after its reference training of {epochs} {unit}"
        accuracy = percent(self.mean("test_accuracy"))
        return accuracy if self.settled is not None else f"{accuracy} after a short training"

    def by_seed(self, key: str) -> dict[int, float]:
        """Return the value of a figure by seed; repeats of a seed count once, as their mean."""
        return by_seed(self.records, key)

    def per_seed(self, key: str) -> list[float]:
        """Return one value of a figure per seed."""
        return list(self.by_seed(key).values())

    def has(self, *keys: str) -> bool:
        """Return whether each of the figures is in at least one record."""
        # The lists are tested, not their values: 0 is a figure, an empty list is none.
        return all(self.per_seed(key) for key in keys)

    def mean(self, key: str) -> float:
        """Return the mean of a figure over the seeds."""
        return statistics.fmean(self.per_seed(key))

    def spread(self, key: str) -> tuple[float, float]:
        """Return the range of a figure over the seeds, or its interval if there is a single seed."""
        values = self.per_seed(key)
        if len(values) < 2:
            # The ends of the interval take the place of the values of other seeds.
            for r in self.records:
                for end in (r.measures.get(f"{key}_low"), r.measures.get(f"{key}_high")):
                    if end is not None:
                        values.append(end)
        return min(values), max(values)


def contenders(records: Sequence[Record]) -> list[Contender]:
    """Return the records grouped by data set, network and settings, in the order of their first appearance."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for r in records:
        groups.setdefault((r.data["label"], r.model, *values_of(r, _TRAITS)), []).append(r)
    # The groups of one network on one data set are rivals; their names show the settings in which they differ.
    rivals = [(label, model) for label, model, *_ in groups]
    firsts = [members[0] for members in groups.values()]
    entries = []
    # Dictionaries keep their order, so each group meets its own suffix.
    for members, suffix in zip(groups.values(), suffixes(rivals, firsts, _TRAITS), strict=True):
        entries.append(Contender(members[0].model + suffix, tuple(members)))
    return entries


def values_of(record: Record, settings: Sequence[Setting]) -> tuple[str, ...]:
    """Return the values of settings as texts, which can be a part of a key."""
    # The packages, for example, are a dictionary, which cannot.
    return tuple(str(row.value(record)) for row in settings)


def suffixes(keys: Sequence[Any], firsts: Sequence[Record], settings: Sequence[Setting]) -> list[str]:
    """Return for each group of records the settings that distinguish it from its rivals, as a suffix of its name.

    Args:
        keys: Key of each group; groups with the same key are rivals.
        firsts: First record of each group, which stands for all of them, since they share their settings.
        settings: Settings in which groups may differ.

    Returns:
        Texts in brackets with a space before them; empty for a group that does not differ from its rivals.
    """
    traits = [tuple(row.said(record) for row in settings) for record in firsts]
    rivals: dict[Any, list[tuple[str, ...]]] = {}
    for key, words in zip(keys, traits, strict=True):
        rivals.setdefault(key, []).append(words)
    # Which traits vary is computed once for all rivals, so that the work does not grow with the square of their number.
    varied = {key: _varied(several) for key, several in rivals.items()}
    texts = []
    for key, words in zip(keys, traits, strict=True):
        names = {row.name for row, varies in zip(settings, varied[key], strict=True) if varies}
        # A trait without words, such as a limit that a training did not have, is not named.
        apart = []
        for row, trait in zip(settings, words, strict=True):
            if row.name in names and row.unless not in names and trait:
                apart.append(trait)
        texts.append(f" ({', '.join(apart)})" if apart else "")
    return texts


def _varied(rivals: Sequence[tuple[str, ...]]) -> list[bool]:
    """Return for each entry of the rivals' traits whether they differ in it."""
    return [len(set(values)) > 1 for values in zip(*rivals, strict=True)]


def by_label(entries: Sequence[Contender]) -> dict[str, list[Contender]]:
    """Return the contenders by label of their data set."""
    groups: dict[str, list[Contender]] = {}
    for entry in entries:
        groups.setdefault(entry.label, []).append(entry)
    return groups


def compare_alike(entries: Sequence[Contender]) -> bool:
    """Return whether all contenders ran under the same settings on the same machine, and so may be ranked."""
    # Without any contender the set is empty, and the result is False.
    return len({values_of(e.records[0], _CONDITIONS) for e in entries}) == 1


def rivals_by_label(entries: Sequence[Contender]) -> dict[str, list[Contender]]:
    """Return groups of contenders that may be ranked, by data set.

    If a data set was used under several settings or on several machines, the name of each group contains them.
    """
    return grouped(entries, _CONDITIONS)


def grouped(entries: Sequence[Contender], settings: Sequence[Setting]) -> dict[str, list[Contender]]:
    """Return groups of contenders on the same data under the same settings, by the name of the group.

    Args:
        entries: Networks on data sets.
        settings: Settings that must agree within a group.

    Returns:
        Contenders by label of their data set; if it has several groups, each label ends in the settings of its group.
    """
    groups: dict[tuple[str, ...], list[Contender]] = {}
    for entry in entries:
        groups.setdefault((entry.label, *values_of(entry.records[0], settings)), []).append(entry)
    firsts = [group[0].records[0] for group in groups.values()]
    labels = [label for label, *_ in groups]
    named: dict[str, list[Contender]] = {}
    uses: Counter[str] = Counter()
    for group, suffix in zip(groups.values(), suffixes(labels, firsts, settings), strict=True):
        name = group[0].label + suffix
        uses[name] += 1
        # Values that differ may have the same words. A number keeps such groups apart.
        if uses[name] > 1:
            name += f" (group {uses[name]})"
        named[name] = group
    return named
