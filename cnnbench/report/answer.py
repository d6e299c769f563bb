"""The answer on top of a report: for each data set, which network is best and which is the fastest that is nearly so.

Networks are ranked by the accuracy after a full training, or after the reference training that the package ships; see
`cnnbench.report.findings`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnnbench.record import Record
from cnnbench.references import percent
from cnnbench.report.contenders import Contender, contenders, rivals_by_label
from cnnbench.report.findings import first_sentences, listed, with_settled
from cnnbench.units import plain, short

MORE_ERRORS = 0.25
"""Share of further errors up to which the second sentence looks for a faster network.

A share of errors fits easy and hard data sets alike; two points of accuracy are little on CIFAR-10 and a lot on MNIST.
"""
LATENCY = "latency_ms_median"
MACS = "macs"


def answers(records: Sequence[Record]) -> list[str]:
    """Return two sentences for each data set on which networks may be ranked; none for a single network."""
    found = []
    for label, entries in rivals_by_label(contenders(records)).items():
        with_accuracy = [e for e in entries if e.has("test_accuracy")]
        if len(with_accuracy) > 1:
            found.append(_answer(label, with_accuracy))
    return first_sentences(found, "more groups of networks that compare have an answer of their own; see the charts")


def _answer(label: str, entries: Sequence[Contender]) -> str:
    """Return the two sentences on the networks of one data set."""
    ranked = sorted(with_settled(entries), key=lambda e: -_accuracy(e))
    if len(ranked) < 2:
        return (
            f"Which network is best on {label} is not known: these trainings are too short to say, and fewer than two "
            "of the networks have a reference accuracy. Train them longer, with --epochs or --budget."
        )
    best = ranked[0]
    sentence = f"Most accurate on {label}: {best.name}, {_accuracy_words(best)}{_ties(ranked)}."
    if len(ranked) < len(entries):
        sentence = f"{sentence[:-1]} (of the {len(ranked)} networks that were trained long enough to rank)."
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


def _accuracy_words(entry: Contender) -> str:
    """Return the accuracy of a network with the training that it belongs to."""
    known = entry.reference
    if known is None:
        return percent(_accuracy(entry))
    return f"{percent(known.accuracy)} after its reference training of {known.epochs:.0f} epochs"


def _ends(entry: Contender) -> tuple[float, float]:
    """Return the range of a network's accuracy over seeds, or its interval if there is a single seed."""
    known = entry.reference
    if known is None:
        return entry.spread("test_accuracy")
    return known.low, known.high


def _ties(ranked: Sequence[Contender]) -> str:
    """Return which networks may be as accurate as the best, because their uncertainties overlap; empty for none."""
    lowest = _ends(ranked[0])[0]
    close = [f"{e.name} ({percent(_accuracy(e))})" for e in ranked[1:] if _ends(e)[1] >= lowest]
    if not close:
        return ""
    return f"; not clearly better than {listed(close)}"


def _cheaper(ranked: Sequence[Contender], cost: str) -> str:
    """Return a sentence on the cheapest network that is nearly as accurate as the best, and on the cheapest of all.

    Args:
        ranked: Networks with a cost, the most accurate one first.
        cost: Key of the cost.
    """
    best = ranked[0]
    most_errors = (1 - _accuracy(best)) * (1 + MORE_ERRORS)
    near = [e for e in ranked if 1 - _accuracy(e) <= most_errors]
    choice, cheapest = (min(entries, key=lambda e: e.mean(cost)) for entries in (near, ranked))
    kind = "Fastest" if cost == LATENCY else "Cheapest"
    limit = "at most a quarter more errors"
    if choice is best:
        sentence = (
            f"No network with {limit} is {'faster' if cost == LATENCY else 'cheaper'} ({_cost_words(best, cost)})"
        )
    else:
        sentence = f"{kind} with {limit}: {_with_cost(choice, cost)}, against {_cost_words(best, cost)}"
    if cheapest is not choice:
        sentence += f"; {kind.lower()} of all: {_with_cost(cheapest, cost)}"
    return f"{sentence}."


def _with_cost(entry: Contender, cost: str) -> str:
    """Return a network with its accuracy and a cost."""
    return f"{entry.name}, {percent(_accuracy(entry))}, {_cost_words(entry, cost)}"


def _cost_words(entry: Contender, cost: str) -> str:
    """Return a cost with its unit; a question mark follows a suspect time, as in the table."""
    if cost == MACS:
        return f"{short(entry.mean(cost))} MACs"
    doubt = "?" if any(r.measures.get("suspect") for r in entry.records) else ""
    return f"{plain(entry.mean(cost))} ms{doubt}"
