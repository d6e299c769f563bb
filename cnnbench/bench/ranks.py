"""Numbers that compare many networks at once: Pareto fronts, rank correlation, inversions.

All take far less than a second for thousands of networks: what compares each with each is done by numpy.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
FEWEST = 3
"""Networks below which a correlation says nothing."""
FEWEST_FOR_INTERVAL = 5
AT_ONCE = 200_000
"""Networks times resamples that are ranked at once, which bounds the memory."""
NOISE = 1.05
"""Two times or costs that differ by a smaller ratio are taken for equal."""


class Spread(NamedTuple):
    """A time, and between what most calls were."""

    low: float
    median: float
    high: float


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other beats: none is at least as good in both and better in one.

    Args:
        points: Pairs of a cost, less is better, and a quality, more is better.

    Returns:
        Their indices by rising cost; equal points are on the front together.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


def average_ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for position in range(start, end + 1):
            ranks[order[position]] = (start + end) / 2 + 1
        start = end + 1
    return ranks


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Spearman's rank correlation (1904), with average ranks for ties; None where all values of a side are equal."""
    middle = (len(xs) + 1) / 2
    a = [rank - middle for rank in average_ranks(xs)]
    b = [rank - middle for rank in average_ranks(ys)]
    spread = sum(x * x for x in a) * sum(y * y for y in b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(spread) if spread else None


class Correlation(NamedTuple):
    """A rank correlation, over how many networks, and its 95 % interval where there are enough of them."""

    value: float
    networks: int
    interval: tuple[float, float] | None


def correlate(xs: Sequence[float], ys: Sequence[float]) -> Correlation | None:
    """Spearman's correlation with its bootstrap interval; None for fewer than `FEWEST` networks."""
    value = spearman(xs, ys) if len(xs) >= FEWEST else None
    if value is None:
        return None
    return Correlation(value, len(xs), _interval(xs, ys) if len(xs) >= FEWEST_FOR_INTERVAL else None)


def _interval(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float] | None:
    """The percentile bootstrap over networks (Efron 1979), at 95 %, the same at every call.

    None where all resamples agree: they do for a perfect correlation, however few networks show it.
    """
    # The generator of random.Random(0), read by numpy: the same picks as random.choices makes, many times faster.
    _, state, _ = random.Random(0).getstate()
    generator = np.random.RandomState()
    generator.set_state(("MT19937", np.array(state[:-1], dtype=np.uint32), state[-1], 0, 0.0))
    places = [np.unique(values, return_inverse=True)[1] for values in (np.asarray(xs), np.asarray(ys))]
    values: list[Any] = []
    done = 0
    while done < RESAMPLES:
        count = min(RESAMPLES - done, max(1, AT_ONCE // len(xs)))
        picks = (generator.random_sample((count, len(xs))) * len(xs)).astype(np.int64)
        values.append(_spearman_of_rows(*(side[picks] for side in places)))
        done += count
    found = np.sort(np.concatenate(values))
    found = found[~np.isnan(found)]
    tail = round(0.025 * len(found))
    low, high = float(found[tail]), float(found[-1 - tail])
    return (low, high) if low < high else None


def _spearman_of_rows(xs: Any, ys: Any) -> Any:
    """Return `spearman` of each row of two matrices of small whole numbers; NaN where all values of a side are equal.

    Ranks less their mean are multiples of one half, so that the sums are exact and do not depend on their order.
    """
    a, b = _centred_ranks(xs), _centred_ranks(ys)
    spread = (a * a).sum(axis=1) * (b * b).sum(axis=1)
    together = (a * b).sum(axis=1)
    return np.divide(together, np.sqrt(spread), out=np.full(len(a), np.nan), where=spread > 0)


def _centred_ranks(values: Any) -> Any:
    """Return the average ranks of each row less their mean."""
    rows, columns = values.shape
    kinds = int(values.max()) + 1
    offsets = np.arange(rows)[:, None] * kinds
    counts = np.bincount((values + offsets).ravel(), minlength=rows * kinds).reshape(rows, kinds)
    ranks = counts.cumsum(axis=1) - (counts - 1) / 2
    return np.take_along_axis(ranks, values, axis=1) - (columns + 1) / 2


def inversion(costs: Sequence[float], times: Sequence[Spread]) -> tuple[int, int] | None:
    """The pair that a cost misjudges most: the first costs less and takes longer, by the largest product of ratios.

    None where there is no pair of which even the quick calls of the first take longer than the slow ones of the second.
    """
    cost = np.asarray(costs, dtype=float)
    low, median, high = (np.array([time[k] for time in times], dtype=float) for k in range(3))
    best, pair = 0.0, None
    for i in range(len(costs)):
        misjudged = np.flatnonzero((cost > NOISE * cost[i]) & (low[i] > NOISE * high))
        if not len(misjudged):
            continue
        products = cost[misjudged] / cost[i] * median[i] / median[misjudged]
        first = int(products.argmax())
        if products[first] > best:
            best, pair = float(products[first]), (i, int(misjudged[first]))
    return pair
