"""Accuracies over seeds: the mean of each network with its interval, and the differences of networks seed by seed.

Two uncertainties are kept apart. The spread over seeds, which is the subject here, says what trainings with other seeds
would reach on the same test images. The Wilson interval of a record says what one trained network would reach on other
test images; it stands beside the accuracy of each record.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cnnbench.record import Record
from cnnbench.report.contenders import Contender, contenders, grouped
from cnnbench.report.findings import DASH, MOST_LISTED, first_of_each, listed, several_seeds
from cnnbench.report.settings import affecting
from cnnbench.stats import Interval, MeanDifference, holm, mean_interval, paired_difference, reach

KEY = "test_accuracy"
"""Figure that is summed up over seeds."""
FEW_SEEDS = 5
"""Number of seeds below which a report says how little they show."""
MANY_SEEDS = 10
"""Number of seeds with which a smaller number is compared there."""
_SETTINGS = affecting("accuracy")
"""Settings that must agree before the accuracies of two networks are compared."""


@dataclass(frozen=True)
class OverSeeds:
    """The test accuracies of a network over its seeds.

    Attributes:
        entry: Network.
        accuracies: Share of the test set that is classified right, by seed; at least one.
    """

    entry: Contender
    accuracies: Mapping[int, float]

    @property
    def deviation(self) -> float | None:
        """Return the standard deviation (n - 1) over the seeds; None for a single seed."""
        if len(self.accuracies) < 2:
            return None
        return statistics.stdev(self.accuracies.values())

    @property
    def interval(self) -> Interval:
        """Return the mean with Student's t interval, without the values below 0 and above 1."""
        return _within(mean_interval(list(self.accuracies.values())), 0.0, 1.0)

    def figures(self) -> dict[str, Any]:
        """Return the figures by key, for JSON and CSV; accuracies are shares."""
        return {
            "test_accuracy_seeds": len(self.accuracies),
            "test_accuracy_mean": self.interval.estimate,
            "test_accuracy_sd": self.deviation,
            "test_accuracy_mean_low": self.interval.low,
            "test_accuracy_mean_high": self.interval.high,
        }


@dataclass(frozen=True)
class Pair:
    """The difference of two networks that were trained on the same data under the same settings, by seed.

    Attributes:
        entry: Network.
        best: Network with the highest mean accuracy of those that compare, itself not in `entry`.
        group: Label of the data set; if several groups of networks have it, with the settings of this one.
        seeds: Number of seeds that both networks have, at least two.
        difference: Accuracy of `entry` minus that of `best`, over these seeds.
        p: p value of the paired t test, corrected for the number of pairs; None if the difference is the same for all
            seeds, so that its spread is not known.
    """

    entry: Contender
    best: Contender
    group: str
    seeds: int
    difference: MeanDifference
    p: float | None = None

    @property
    def interval(self) -> Interval:
        """Return the mean difference with Student's t interval, without the values below -1 and above 1."""
        return _within(self.difference.interval, -1.0, 1.0)

    def figures(self) -> dict[str, Any]:
        """Return the figures by key, for JSON and CSV; differences are those of shares."""
        return {
            "paired_against": self.best.name,
            "paired_seeds": self.seeds,
            "paired_difference": self.interval.estimate,
            "paired_low": self.interval.low,
            "paired_high": self.interval.high,
            "paired_p_holm": self.p,
        }


@dataclass(frozen=True)
class SeedTable:
    """A table over seeds.

    Attributes:
        title: Title of the table.
        rows: Cells as texts, header first.
        text_columns: Number of columns with text at the left; all others hold numbers.
        sentences: What the columns mean, and what must be known before trusting them.
    """

    title: str
    rows: Sequence[Sequence[str]]
    text_columns: int
    sentences: Sequence[str]

    @property
    def numeric(self) -> list[bool]:
        """Return for each column whether it holds numbers."""
        return [index >= self.text_columns for index in range(len(self.rows[0]))]


def _within(interval: Interval, least: float, most: float) -> Interval:
    """Return an interval without the values that are not possible."""
    if interval.low is None or interval.high is None:
        return interval
    return Interval(interval.estimate, max(least, interval.low), min(most, interval.high))


class Seeds:
    """The accuracies of a report over seeds.

    Args:
        records: Records of one or several runs.

    Attributes:
        networks: Networks with a test accuracy, with one seed too; none of them if no network has several seeds.
        pairs: Differences of networks from the best one of those that compare.
        unpaired: Names of networks with fewer than two seeds in common with the best one of those that compare.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        entries = [e for e in contenders(records) if e.has(KEY)]
        self.networks: list[OverSeeds] = []
        self.pairs: list[Pair] = []
        self.unpaired: list[str] = []
        if not several_seeds(entries):
            return
        self.networks = [OverSeeds(e, e.by_seed(KEY)) for e in entries]
        for group, members in grouped(entries, _SETTINGS).items():
            # The best network must have several seeds, or nothing could be compared with it.
            several = [e for e in members if len(e.by_seed(KEY)) > 1]
            if len(members) > 1 and several:
                best = max(several, key=lambda e: e.mean(KEY))
                self._compare(group, best, [e for e in members if e is not best])

    def _compare(self, group: str, best: Contender, others: Sequence[Contender]) -> None:
        """Add the differences of networks from the best one of their group."""
        of_best = best.by_seed(KEY)
        pairs: list[Pair] = []
        for entry in others:
            accuracies = entry.by_seed(KEY)
            common = [seed for seed in accuracies if seed in of_best]
            if len(common) < 2:
                self.unpaired.append(f"{entry.name} on {group}")
                continue
            difference = paired_difference([accuracies[s] for s in common], [of_best[s] for s in common])
            pairs.append(Pair(entry, best, group, len(common), difference))
        # Which network is best is known from the results only, so any two of these networks might have been a pair of
        # the table. The correction therefore counts all pairs of them.
        networks = len(pairs) + 1
        tested = [pair for pair in pairs if pair.difference.error > 0]
        corrected = holm([pair.difference.p for pair in tested], networks * (networks - 1) // 2)
        p_values = {id(pair): p for pair, p in zip(tested, corrected, strict=True)}
        self.pairs += [replace(pair, p=p_values.get(id(pair))) for pair in pairs]

    @property
    def tables(self) -> list[SeedTable]:
        """Return the tables of the report: means, and differences if networks compare; none without several seeds."""
        tables = []
        if self.networks:
            tables.append(SeedTable("Over seeds", _means(self.networks), 2, _sentences_on_means(self.networks)))
        if self.pairs:
            sentences = _sentences_on_pairs(self.pairs, self.unpaired)
            tables.append(SeedTable("Differences by seed", _differences(self.pairs), 3, sentences))
        return tables

    def by_record(self) -> dict[int, dict[str, Any]]:
        """Return the figures over seeds of the network of each record, by the identity of the record."""
        pairs = {id(pair.entry): pair for pair in self.pairs}
        by_record = {}
        for network in self.networks:
            figures = network.figures()
            if id(network.entry) in pairs:
                figures |= pairs[id(network.entry)].figures()
            for record in network.entry.records:
                by_record[id(record)] = figures
        return by_record

    def document(self) -> dict[str, Any]:
        """Return the figures over seeds for JSON: a list of networks and a list of pairs."""
        networks = []
        for network in self.networks:
            # A key of a JSON object is a text.
            by_seed = {str(seed): accuracy for seed, accuracy in network.accuracies.items()}
            names = {"model": network.entry.name, "data": network.entry.label}
            networks.append({**names, **network.figures(), "test_accuracy_by_seed": by_seed})
        pairs = [{"model": pair.entry.name, "data": pair.group, **pair.figures()} for pair in self.pairs]
        return {"over_seeds": networks, "differences_by_seed": pairs}


# Means


def _means(networks: Sequence[OverSeeds]) -> list[list[str]]:
    """Return the table of means, header first; of very many networks, it has the first of each data set."""
    # Accuracies on training images are measured only on demand.
    fitted = any(network.entry.has("train_accuracy") for network in networks)
    head = ["Model", "Data", "Seeds", "Mean accuracy %", "SD", "Range %"]
    if fitted:
        head.append("Mean train accuracy %")
    head.append("95 % interval of the mean")
    # As soon as one network has several seeds, those with a single seed are in the table too.
    return [head, *(_means_row(network, fitted) for network in first_of_each(networks, _label))]


def _label(network: OverSeeds) -> str:
    """Return the label of the data set of a network."""
    return network.entry.label


def _means_row(network: OverSeeds, fitted: bool) -> list[str]:
    """Return the row of a network in the table of means.

    Args:
        network: Accuracies of the network.
        fitted: Whether the table has a column for accuracies on training images.
    """
    entry, interval = network.entry, network.interval
    values = [100 * share for share in network.accuracies.values()]
    # A single seed has neither a deviation nor a range.
    deviation = extent = DASH
    if network.deviation is not None:
        deviation = f"{100 * network.deviation:.2f}"
        extent = f"{min(values):.2f}{DASH}{max(values):.2f}"
    row = [entry.name, entry.label, str(len(values)), f"{100 * interval.estimate:.2f}", deviation, extent]
    if fitted:
        row.append(f"{100 * entry.mean('train_accuracy'):.2f}" if entry.has("train_accuracy") else DASH)
    ends = DASH
    if interval.low is not None and interval.high is not None:
        ends = f"{100 * interval.low:.2f}{DASH}{100 * interval.high:.2f}"
    return [*row, ends]


def _sentences_on_means(networks: Sequence[OverSeeds]) -> list[str]:
    """Return what the columns of the table of means are, and which intervals are wide or missing."""
    sentences = [
        "Test accuracy over seeds: mean, standard deviation (n - 1), lowest and highest. The interval is Student's t "
        "interval of the mean over the seeds. It is about trainings with other seeds that are tested on the same test "
        "images, and assumes that their accuracies are roughly normally distributed. What other test images would "
        "change is in the Wilson interval of each record, not in this one."
    ]
    single, equal = [], []
    for network in networks:
        name = f"{network.entry.name} on {network.entry.label}"
        if network.deviation is None:
            single.append(name)
        elif network.interval.low is None:
            equal.append(name)
    for count in sorted({len(network.accuracies) for network in networks}):
        if 1 < count < FEW_SEEDS:
            sentences.append(
                f"{count} seeds are few: their interval reaches {reach(count):.1f} standard deviations to each side of "
                f"the mean; of {MANY_SEEDS} seeds {reach(MANY_SEEDS):.1f}."
            )
    if single:
        sentences.append(f"No interval, since one seed shows no spread: {listed(single)}.")
    if equal:
        sentences.append(f"No interval, since all seeds have the same accuracy: {listed(equal)}.")
    more = len(networks) - len(first_of_each(networks, _label))
    if more:
        sentences.append(f"{more:,} more networks are in results.csv.")
    return sentences


# Differences


def _differences(pairs: Sequence[Pair]) -> list[list[str]]:
    """Return the table of the first `MOST_LISTED` differences, header first."""
    rows = [["Model", "Against", "Data", "Seeds", "Mean difference, points", "95 % interval", "p (Holm)"]]
    for pair in pairs[:MOST_LISTED]:
        interval = pair.interval
        ends = p = DASH
        if interval.low is not None and interval.high is not None:
            ends = f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}"
        if pair.p is not None:
            p = f"{pair.p:.3f}" if pair.p >= 0.001 else "< 0.001"
        names = [pair.entry.name, pair.best.name, pair.group]
        rows.append([*names, str(pair.seeds), f"{100 * interval.estimate:+.2f}", ends, p])
    return rows


def _sentences_on_pairs(pairs: Sequence[Pair], unpaired: Sequence[str]) -> list[str]:
    """Return what the columns of the table of differences are, and what must be known before trusting them."""
    sentences = [
        "Test accuracy minus that of the network with the highest mean (Against), for networks with the same data, "
        "settings and recipe. Both are paired by seed: mean difference over the seeds that both have, Student's t "
        "interval, and p value of the paired t test. The p values are corrected by Holm's method for all pairs of "
        "these networks, because the network to compare with was chosen by its result; the intervals are not "
        "corrected. All this is about other seeds on the same test images."
    ]
    if not all(pair.entry.converged and pair.best.converged for pair in pairs):
        sentences.append(
            "Short trainings are among these. Their differences say how far the networks come within the budget, not "
            "which of them is better in the end."
        )
    for count in sorted({pair.seeds for pair in pairs}):
        if count < FEW_SEEDS:
            sentences.append(
                f"{count} seeds are few: the interval excludes 0 only if the mean difference is larger than "
                f"{reach(count):.1f} standard deviations of the differences; with {MANY_SEEDS} seeds "
                f"{reach(MANY_SEEDS):.1f} are enough."
            )
    if any(pair.p is None for pair in pairs):
        sentences.append("No interval and no p value where the difference is the same for all seeds.")
    if unpaired:
        sentences.append(f"Not compared, with fewer than two seeds in common: {listed(unpaired)}.")
    more = len(pairs) - MOST_LISTED
    if more > 0:
        sentences.append(f"{more:,} more pairs are in results.csv.")
    return sentences
