"""The answer on top of a report: for each data set, which network is best and which is the fastest that is nearly so.

Networks are ranked by the accuracy after a full training, or after the reference training that the package ships; see
`cnnbench.report.findings`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnnbench.record import Record
from cnnbench.references import percent
from cnnbench.report.contenders import Contender, contenders, rivals_by_label
from cnnbench.report.findings import LATENCY, MACS, first_sentences, listed, with_settled
from cnnbench.report.pairs import Verdict
from cnnbench.stats import mean_interval, wilson_interval
from cnnbench.units import plain, short

NEAR, BEST = 5, 4
"""Wrong images that a network nearly as accurate as the best may have for so many of the best; of those, the second
sentence names the fastest.

A ratio of errors fits easy and hard data sets alike; two points of accuracy are little on CIFAR-10 and a lot on MNIST.
"""


def answers(records: Sequence[Record], verdicts: Sequence[Verdict] = ()) -> list[str]:
    """Return a few sentences for each data set on which networks may be ranked; none for a single network.

    Args:
        records: Records of a report.
        verdicts: Comparisons of two of their networks image by image.
    """
    found = []
    for label, entries in rivals_by_label(contenders(records)).items():
        with_accuracy = [e for e in entries if e.has("test_accuracy")]
        if len(with_accuracy) > 1:
            found.append(_answer(label, with_accuracy, verdicts))
    return first_sentences(found, "more groups of networks that compare have an answer of their own; see the charts")


def _answer(label: str, entries: Sequence[Contender], verdicts: Sequence[Verdict]) -> str:
    """Return the sentences on the networks of one data set."""
    ranked = sorted(with_settled(entries), key=lambda e: -_accuracy(e))
    if len(ranked) < 2:
        return (
            f"Which network is best on {label} is not known: these trainings are too short to say, and fewer than two "
            "of the networks have a reference accuracy. Train them longer, with --epochs or --budget."
        )
    best = ranked[0]
    sentence = f"Most accurate on {label}: {best.name}, {best.accuracy_words}{_ties(ranked, verdicts)}"
    if len(ranked) < len(entries):
        sentence += f" (of the {len(ranked)} networks that were trained long enough to rank)"
    sentence += "."
    # Latency is what a user waits for; without it, multiply-adds are the cost.
    for cost in (LATENCY, MACS):
        priced = [e for e in ranked if e.has(cost) and e.mean(cost) > 0]
        if best in priced and len(priced) > 1:
            return f"{sentence} {_cheaper(priced, cost)}"
    return sentence


def _accuracy(entry: Contender) -> float:
    """Return the accuracy that ranks a network, one of `with_settled`."""
    accuracy = entry.settled
    assert accuracy is not None
    return accuracy


def _accuracy_interval(entry: Contender) -> tuple[float, float]:
    """Return the interval of a network's accuracy, at least as wide as its test images and its seeds allow."""
    known = entry.reference
    if known is not None:
        return known.low, known.high
    accuracies = entry.per_seed("test_accuracy")
    if len(accuracies) == 1:
        return entry.spread("test_accuracy")
    images = entry.records[0].data["test_images"]
    low, high = wilson_interval(entry.mean("test_accuracy") * images, images)
    # Two seeds say little on the others: the range of their accuracies would be far too narrow.
    over_seeds = mean_interval(accuracies)
    if over_seeds.low is not None and over_seeds.high is not None:
        low, high = min(low, over_seeds.low), max(high, over_seeds.high)
    return low, high


def _ties(ranked: Sequence[Contender], verdicts: Sequence[Verdict]) -> str:
    """Return which networks may be as accurate as the best; empty for none.

    A comparison image by image decides where there is one of the same accuracies, else the intervals do.
    """
    best = ranked[0]
    differ = {}
    for verdict in verdicts:
        first, second = (entry.records[0] for entry in (verdict.first, verdict.second))
        differ[frozenset((id(first), id(second)))] = verdict.differ
    close = []
    for entry in ranked[1:]:
        is_clear = _accuracy_interval(entry)[1] < _accuracy_interval(best)[0]
        # The accuracy of a reference training is not that of the run, which the verdict is about.
        if best.reference is None and entry.reference is None:
            is_clear = differ.get(frozenset((id(best.records[0]), id(entry.records[0]))), is_clear)
        if not is_clear:
            close.append(f"{entry.name} ({percent(_accuracy(entry))})")
    return f"; not clearly better than {listed(close)}" if close else ""


def _cheaper(ranked: Sequence[Contender], cost: str) -> str:
    """Return a sentence on the cheapest network that is nearly as accurate as the best, and on the cheapest of all.

    Args:
        ranked: Networks with a cost, the most accurate one first.
        cost: Key of the cost.
    """
    best = ranked[0]
    most_errors = (1 - _accuracy(best)) * NEAR / BEST
    near = [e for e in ranked if 1 - _accuracy(e) <= most_errors]
    choice, cheapest = (min(entries, key=lambda e: e.mean(cost)) for entries in (near, ranked))
    more, most = ("faster", "Fastest") if cost == LATENCY else ("cheaper", "Cheapest")
    near_words = (
        f"with nearly that accuracy (at least {percent(1 - most_errors)}, which is at most {NEAR} wrong images for "
        f"every {BEST} of {best.name})"
    )
    if choice is best:
        sentence = f"No network {near_words} is {more} than {best.name}, which needs {_cost_words(best, cost)}."
    else:
        sentence = f"{most} {near_words}: {_with_cost(choice, cost)}; {best.name} needs {_cost_words(best, cost)}."
    if cheapest is not choice:
        sentence += f" {most} of all: {_with_cost(cheapest, cost)}."
    return sentence


def _with_cost(entry: Contender, cost: str) -> str:
    """Return a network with its accuracy and a cost."""
    return f"{entry.name}, {percent(_accuracy(entry))}, {_cost_words(entry, cost)}"


def _cost_words(entry: Contender, cost: str) -> str:
    """Return a cost with its unit; a question mark follows a suspect time, as in the table."""
    if cost == MACS:
        return f"{short(entry.mean(cost))} MACs"
    doubt = "?" if any(r.doubts("latency") for r in entry.records) else ""
    return f"{plain(entry.mean(cost))} ms{doubt}"
