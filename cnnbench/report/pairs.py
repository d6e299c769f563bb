"""Pairs of networks on the same test images, compared image by image.

Two networks that are tested on the same images mostly fail on the same ones. So their difference is known far better
than their two accuracies. What each network says of each image is in the files of predictions beside the records; see
`cnnbench.predictions`.

If both networks have several seeds, the test and the interval are about trainings with other seeds, tested on other
images. With one seed each they are about these two trained networks, on other images.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cnnbench.errors import UserError
from cnnbench.predictions import Predictions
from cnnbench.record import Record, predictions_beside
from cnnbench.report.contenders import Contender, contenders, grouped
from cnnbench.report.findings import first_sentences, listed
from cnnbench.report.seeds import SeedTable
from cnnbench.report.settings import affecting
from cnnbench.report.stored_predictions import predictions_of
from cnnbench.stats import (
    ALPHA,
    Bootstrap,
    Interval,
    holm,
    mcnemar,
    over_seeds_and_images,
    paired_bootstrap,
    paired_interval,
)
from cnnbench.text import number_of

MOST_NETWORKS = 60
"""Largest number of networks on one data set that are compared with each other: the most accurate ones."""
MOST_SHOWN = 10
"""Largest number of pairs of one data set in the table."""
MOST_SENTENCES = 3
"""Largest number of pairs of one data set that have a sentence."""
OVER_SEEDS = "Student's t test over seeds and images"
_SETTINGS = tuple(row for row in affecting("accuracy") if row.group != "training")
"""Settings that must agree before two networks are compared. Each may be trained in a way of its own."""

RightBySeed = Mapping[int, np.ndarray]
"""Whether each test image is classified right, (N,), by seed."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Two networks on the same test images.

    Attributes:
        group: Label of the data set; if several groups of networks have it, with the settings of this one.
        first: Network with the higher accuracy.
        second: Network with the lower accuracy.
        seeds: Seeds of each of the two that are compared; one each, or several each.
        images: Number of test images.
        accuracies: Accuracy of each of the two, a share; the mean over the seeds.
        difference: Accuracy of the first minus that of the second, with its interval.
        only_first: Number of images that only the first gets right; the mean over the seeds.
        only_second: Number of images that only the second gets right; the mean over the seeds.
        test: Name of the test.
        p: p value of the test.
        p_holm: p value after Holm's correction for all pairs of the group.
        pairs: Number of pairs of the group.
        neighbours: Whether no other network of the group is between the two.
    """

    group: str
    first: Contender
    second: Contender
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    images: int
    accuracies: tuple[float, float]
    difference: Interval
    only_first: float
    only_second: float
    test: str
    p: float
    p_holm: float
    pairs: int
    neighbours: bool

    @property
    def differ(self) -> bool:
        """Return whether the test says that the two differ, after Holm's correction."""
        return self.p_holm <= ALPHA

    @property
    def short(self) -> bool:
        """Return whether a training of the two was short, so that the verdict is no rank."""
        return not (self.first.converged and self.second.converged)

    @property
    def word(self) -> str:
        """Return the verdict in words."""
        return "differ" if self.differ else "no difference shown"

    @property
    def sentence(self) -> str:
        """Return the verdict as a sentence, with what it stands on."""
        verdict = "differ" if self.differ else "are not shown to differ"
        low, high = self.accuracies[1], self.accuracies[0]
        stars = ["*" if not entry.converged else "" for entry in (self.first, self.second)]
        points = f"{100 * self.difference.estimate:+.2f} points"
        p = f"p {_shown(self.p_holm)} by Holm for {number_of(self.pairs, 'pair')}"
        return (
            f"{self.first.name} and {self.second.name} on {self.group} {verdict}: {100 * high:.2f}{stars[0]} against "
            f"{100 * low:.2f}{stars[1]} %, {points} ({self._interval_clause}{self.test}, {p}); "
            f"{_count(self.only_first)} images are right with {self.first.name} only, "
            f"{_count(self.only_second)} with {self.second.name} only.{self._shortness}"
        )

    @property
    def _interval_clause(self) -> str:
        """Return the interval in words with a semicolon behind it; empty if there is none."""
        if self.difference.low is None or self.difference.high is None:
            return ""
        return f"95 % interval {_interval_words(self.difference)}; "

    @property
    def _shortness(self) -> str:
        """Return a sentence that says how short the trainings were, with a space before it; empty if none was."""
        if not self.short:
            return ""
        epochs = [entry.records[0].training.get("epochs", 0.0) for entry in (self.first, self.second)]
        numbers = dict.fromkeys(f"{number:.2g}" for number in epochs)
        unit = "epoch" if list(numbers) == ["1"] else "epochs"
        trained = f"{' and '.join(numbers)} {unit}"
        return f" A star marks a short training ({trained}); longer ones may rank the two differently."

    def document(self) -> dict[str, Any]:
        """Return the verdict for JSON and CSV; accuracies are shares."""
        return {
            "data": self.group,
            "first": self.first.name,
            "second": self.second.name,
            "first_seeds": list(self.seeds[0]),
            "second_seeds": list(self.seeds[1]),
            "images": self.images,
            "first_accuracy": self.accuracies[0],
            "second_accuracy": self.accuracies[1],
            "difference": self.difference.estimate,
            "low": self.difference.low,
            "high": self.difference.high,
            "only_first_right": self.only_first,
            "only_second_right": self.only_second,
            "test": self.test,
            "p": self.p,
            "p_holm": self.p_holm,
            "pairs": self.pairs,
            "verdict": self.word,
            "short_training": self.short,
            "neighbours": self.neighbours,
            "sentence": self.sentence,
        }


def _shown(p: float) -> str:
    """Return a p value with its sign."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def _interval_words(interval: Interval) -> str:
    """Return the ends of an interval in points."""
    assert interval.low is not None
    assert interval.high is not None
    return f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}"


def _count(images: float) -> str:
    """Return a number of images; a mean over seeds has a decimal."""
    return f"{images:,.0f}" if float(images).is_integer() else f"{images:,.1f}"


@dataclass(frozen=True)
class _Network:
    """A network, and which test images of its group it classifies right."""

    entry: Contender
    right: RightBySeed

    @property
    def accuracy(self) -> float:
        """Return the accuracy, the mean over the seeds."""
        return float(np.mean([right.mean() for right in self.right.values()]))


class Pairs:
    """All pairs of networks of a report that were tested on the same images under the same settings.

    Args:
        records: Records of one or several runs; those without predictions beside them are left out.

    Attributes:
        verdicts: All pairs; within a group those of the most accurate network come first.
        engines: Each network in other engines and number formats, compared with the network itself.
        problems: Sentences on files that cannot be used.
        left_out: Names of groups with more than `MOST_NETWORKS` networks.
        lacking: Number of networks without predictions.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.verdicts: list[Verdict] = []
        self.engines: list[Verdict] = []
        self.problems: list[str] = []
        self.left_out: list[str] = []
        entries = [entry for entry in contenders(records) if entry.has("test_accuracy")]
        found = [entry for entry in entries if any(predictions_beside(record) for record in entry.records)]
        self.lacking = len(entries) - len(found)
        self._several = len(entries) > 1
        for group, members in grouped(found, _SETTINGS).items():
            kept = members
            if len(members) > MOST_NETWORKS:
                self.left_out.append(group)
                kept = sorted(members, key=lambda e: -e.mean("test_accuracy"))[:MOST_NETWORKS]
            for networks in self._on_the_same_images(kept).values():
                if len(networks) > 1:
                    tests = len(members) * (len(members) - 1) // 2 if len(members) > len(kept) else None
                    self.verdicts += _verdicts(group, networks, tests)
        for own, rows in _of_one_training(found):
            for first, *others in self._on_the_same_images([own, *rows]).values():
                if others:
                    self.engines += _verdicts(own.label, [first, *others], None, with_first=True)

    def _on_the_same_images(self, entries: Sequence[Contender]) -> dict[Any, list[_Network]]:
        """Return the networks by the images of their tests, each with the images that it classifies right."""
        groups: dict[Any, list[_Network]] = {}
        for entry in entries:
            by_images: dict[Any, dict[int, np.ndarray]] = {}
            for record in entry.records:
                predictions = self._read(record)
                if predictions is not None:
                    key = record.data.get("fingerprint"), predictions.true.tobytes()
                    # A repeat of a seed is no further training, so the first one counts.
                    by_images.setdefault(key, {}).setdefault(record.seed, predictions.right)
            for key, by_seed in by_images.items():
                groups.setdefault(key, []).append(_Network(entry, by_seed))
        return groups

    def _read(self, record: Record) -> Predictions | None:
        """Return the predictions beside a record; None if there are none that can be used."""
        try:
            return predictions_of(record)
        except UserError as error:
            self.problems.append(f"{record.model} on {record.data['label']} is not compared by image: {error}.")
            return None

    @property
    def shown(self) -> list[Verdict]:
        """Return the pairs of the table: the first neighbours of each group, at most `MOST_SHOWN`."""
        return self._neighbours(MOST_SHOWN)

    def _neighbours(self, most: int) -> list[Verdict]:
        """Return the first neighbours of each group, at most so many."""
        chosen: list[Verdict] = []
        for _, verdicts in itertools.groupby(self.verdicts, key=lambda verdict: verdict.group):
            chosen += [verdict for verdict in verdicts if verdict.neighbours][:most]
        return chosen

    @cached_property
    def tables(self) -> list[SeedTable]:
        """Return the tables of the report; none without pairs."""
        found = []
        if self.verdicts:
            found.append(
                SeedTable("Each network against the next best, image by image", _rows(self.shown), 3, self.sentences)
            )
        if self.engines:
            # Those that differ in the most images come first.
            ranked = sorted(self.engines, key=lambda verdict: -(verdict.only_first + verdict.only_second))
            rows = _rows(ranked[:MOST_SHOWN])
            found.append(SeedTable("The same training in engines", rows, 3, self._sentences_on_engines))
        return found

    @property
    def _sentences_on_engines(self) -> list[str]:
        """Return what the table of engines has, and the verdicts on rows that differ."""
        alike = sum(not (verdict.only_first or verdict.only_second) for verdict in self.engines)
        of = number_of(len(self.engines), "row")
        verb = "has" if alike == 1 else "have"
        words = [_OF_ENGINES, f"Of {of}, {alike:,} {verb} exactly the images right that the network itself has."]
        if len(self.engines) > MOST_SHOWN:
            words.append("All rows are in pairs.csv.")
        return words + [verdict.sentence for verdict in self.engines if verdict.differ][:MOST_SENTENCES]

    @property
    def sentences(self) -> list[str]:
        """Return what the columns of the table are, the verdicts, and what must be known before trusting them."""
        words = [_EXPLANATION]
        if any(verdict.short for verdict in self.verdicts):
            words.append(
                "Some trainings were short: accuracies with a star say how far a network came, not what it can reach."
            )
        several = [verdict.sentence for verdict in self._neighbours(MOST_SENTENCES)]
        words += first_sentences(several, "more pairs are in pairs.csv")
        if len(self.verdicts) > len(self.shown):
            words.append(f"All {len(self.verdicts):,} pairs are in pairs.csv.")
        if self.left_out:
            words.append(f"Compared are the {MOST_NETWORKS} most accurate networks of {listed(self.left_out)}.")
        return [*words, *first_sentences(self.problems, "more files of predictions cannot be used")]

    @property
    def note(self) -> str:
        """Return the line below the table in the terminal."""
        if not self.verdicts and not self.engines:
            return ""
        first = [*self.verdicts, *self.engines][0]
        test = "Student's t over seeds and images" if first.test == OVER_SEEDS else "McNemar's"
        return f"p: {test} test, corrected by Holm's method for all pairs on the data set. The report says more."

    @property
    def advice(self) -> str:
        """Return how to compare networks by image, if there are several and none can be compared; else empty."""
        if self.verdicts or not self._several or not self.lacking:
            return ""
        return (
            "Networks are not compared image by image, since there are no predictions beside these records. A run "
            "folder of cnnbench bench or fit has them in predictions/; a .jsonl file of records does not."
        )


_EXPLANATION = (
    "Each row compares a network with the next most accurate one, on the same test images under the same settings. "
    "First only and second only: images that one of the two gets right and the other does not. With one seed each, the "
    "test is McNemar's (exact below 25 such images, else chi-square with continuity correction), the interval is "
    "Bonett and Price's for paired shares, and both are about these two trained networks. With several seeds each, "
    "seeds and images are resampled, and Student's distribution allows for few seeds. The p values are corrected by "
    "Holm's method for all pairs on the data set; the intervals are not."
)


_OF_ENGINES = (
    "Each network in other engines and number formats, on the same test images and with the same trained weights, "
    "compared with the network as torch has tested it after the training. The tests and columns are those of networks "
    "on the same images. Rows that differ in the most images come first. The p values are corrected by Holm's method "
    "for all rows of a network."
)


def _rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """Return the table of pairs, header first."""
    head = ["First", "Second", "Data", "Accuracies %", "Difference, points", "95 % interval"]
    rows = [[*head, "First only", "Second only", "p (Holm)"]]
    for verdict in verdicts:
        stars = ["" if entry.converged else "*" for entry in (verdict.first, verdict.second)]
        shares = [f"{100 * share:.2f}{star}" for share, star in zip(verdict.accuracies, stars, strict=True)]
        rows.append(
            [
                verdict.first.name,
                verdict.second.name,
                verdict.group,
                " / ".join(shares),
                f"{100 * verdict.difference.estimate:+.2f}",
                _interval_words(verdict.difference) if verdict.difference.low is not None else "none",
                _count(verdict.only_first),
                _count(verdict.only_second),
                _shown(verdict.p_holm).removeprefix("= "),
            ]
        )
    return rows


# One group of networks


Unit = tuple[int, tuple[int, ...]]
"""Index of a network, and the seeds of it that are compared."""


def _of_one_training(entries: Sequence[Contender]) -> list[tuple[Contender, list[Contender]]]:
    """Return each network that has rows of engines, with these rows, which have the weights of its trainings."""
    by_weights: dict[str, Contender] = {}
    for entry in entries:
        for record in entry.records:
            if record.training.get("weights_sha256") and not record.is_of_an_engine:
                by_weights.setdefault(record.training["weights_sha256"], entry)
    found: dict[int, tuple[Contender, list[Contender]]] = {}
    for entry in entries:
        own = by_weights.get(entry.records[0].training.get("weights_sha256", ""))
        if own is not None and entry.records[0].is_of_an_engine:
            found.setdefault(id(own), (own, []))[1].append(entry)
    return list(found.values())


def _verdicts(group: str, networks: Sequence[_Network], tests: int | None, with_first: bool = False) -> list[Verdict]:
    """Return the verdicts on all pairs of networks with the same test images.

    Args:
        group: Name of the group.
        networks: Networks, at least two.
        tests: Number of pairs for Holm's correction, if the networks were chosen among more; None for all pairs.
        with_first: Whether to compare the first of the networks with each other one, in place of all pairs.
    """
    # Networks of the same accuracy keep their order.
    ranked = sorted(networks, key=lambda network: -network.accuracy)
    places_of_pairs = list(itertools.combinations(range(len(ranked)), 2))
    if with_first:
        first = next(place for place, network in enumerate(ranked) if network is networks[0])
        places_of_pairs = [pair for pair in places_of_pairs if first in pair]
    pairs = [_compared(ranked, i, j) for i, j in places_of_pairs]
    units = list(dict.fromkeys(itertools.chain.from_iterable(pairs)))
    right = [np.stack([ranked[index].right[seed] for seed in seeds]) for index, seeds in units]
    # Only differences over seeds need the bootstrap of seeds and images.
    resampled = paired_bootstrap(right) if any(len(seeds) > 1 for _, seeds in units) else None
    # The share of seeds with which each image is right, (units, images).
    shares = np.stack([of_unit.mean(axis=0) for of_unit in right])
    # Sums over images: the first right and the second wrong.
    only = shares @ (1 - shares).T
    places = {unit: place for place, unit in enumerate(units)}
    tested = [_tested(right, resampled, only, (places[a], places[b])) for a, b in pairs]
    corrected = holm([p for _, _, p in tested], tests)
    verdicts = []
    for (a, b), (difference, test, p), p_holm in zip(pairs, tested, corrected, strict=True):
        one, other = places[a], places[b]
        verdicts.append(
            Verdict(
                group=group,
                first=ranked[a[0]].entry,
                second=ranked[b[0]].entry,
                seeds=(a[1], b[1]),
                images=shares.shape[1],
                accuracies=(float(shares[one].mean()), float(shares[other].mean())),
                difference=difference,
                only_first=round(float(only[one, other]), 6),
                only_second=round(float(only[other, one]), 6),
                test=test,
                p=p,
                p_holm=p_holm,
                pairs=tests or len(pairs),
                neighbours=b[0] == a[0] + 1 and not with_first,
            )
        )
    return verdicts


def _compared(networks: Sequence[_Network], first: int, second: int) -> tuple[Unit, Unit]:
    """Return the seeds of two networks that are compared: all, or one of each if a network has one only."""
    a, b = networks[first].right, networks[second].right
    if len(a) > 1 and len(b) > 1:
        return (first, tuple(a)), (second, tuple(b))
    common = [seed for seed in a if seed in b]
    seeds = (common[0], common[0]) if common else (next(iter(a)), next(iter(b)))
    return (first, (seeds[0],)), (second, (seeds[1],))


def _tested(
    right: Sequence[np.ndarray], resampled: Bootstrap | None, only: np.ndarray, pair: tuple[int, int]
) -> tuple[Interval, str, float]:
    """Return the difference of two networks with its interval, the name of the test, and its p value.

    Args:
        right: Whether each image is classified right, (seeds, images), by unit.
        resampled: Bootstrap of the units; None if each is of one seed.
        only: Number of images that the unit of the row gets right and that of the column does not.
        pair: Indices of the two units.
    """
    one, other = pair
    if resampled is None or len(right[one]) == 1:
        counts = round(only[one, other]), round(only[other, one])
        found = mcnemar(*counts)
        return paired_interval(*counts, right[one].shape[1]), found.method, found.p
    difference = over_seeds_and_images(right[one], right[other], resampled.error(one, other))
    return difference.interval, OVER_SEEDS, difference.p


# For a page


def pair_verdicts(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return all pairs of networks on the same test images, those of engines last; see `Verdict.document`."""
    pairs = Pairs(records)
    return [verdict.document() for verdict in [*pairs.verdicts, *pairs.engines]]
