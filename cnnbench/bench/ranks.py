"""Numbers that compare many networks at once: Pareto fronts, rank correlation, inversions. Standard library only."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

RESAMPLES = 2000
FEWEST = 3
"""Networks below which a correlation says nothing."""
FEWEST_FOR_INTERVAL = 5
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
    generator = random.Random(0)
    found = []
    for _ in range(RESAMPLES):
        picks = generator.choices(range(len(xs)), k=len(xs))
        value = spearman([xs[i] for i in picks], [ys[i] for i in picks])
        if value is not None:
            found.append(value)
    found.sort()
    tail = round(0.025 * len(found))
    low, high = found[tail], found[-1 - tail]
    return (low, high) if low < high else None


def inversion(costs: Sequence[float], times: Sequence[Spread]) -> tuple[int, int] | None:
    """The pair that a cost misjudges most: the first costs less and takes longer, by the largest product of ratios.

    None where there is no pair of which even the quick calls of the first take longer than the slow ones of the second.
    """
    pairs = [
        (costs[j] / costs[i] * times[i].median / times[j].median, i, j)
        for i in range(len(costs))
        for j in range(len(costs))
        if costs[j] > NOISE * costs[i] and times[i].low > NOISE * times[j].high
    ]
    return max(pairs, key=lambda pair: pair[0])[1:] if pairs else None
