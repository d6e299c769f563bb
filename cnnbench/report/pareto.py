"""Comparison of many networks at once: the Pareto front, and the pair that a cost misjudges most.

Both take far less than a second for thousands of networks: the front needs one sort, and numpy compares all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NOISE = 1.05
"""Ratio of two times or costs below which they count as equal."""


class Spread(NamedTuple):
    """The spread of a network's call times: 10th percentile, median and 90th percentile, in milliseconds."""

    low: float
    median: float
    high: float


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the points that no other point beats, by being at least as good in both values and better in one.

    Args:
        points: Pairs of a cost, where less is better, and a quality, where more is better.

    Returns:
        Indices of these points by rising cost; equal points are on the front together.
    """
    # Points are visited by rising cost, at equal cost the best quality first.
    # The last point of the front then has the best quality so far, at no higher cost than the present point.
    # The present point therefore joins the front only if its quality is better, or if both points are equal.
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


def inversion(costs: Sequence[float], times: Sequence[Spread]) -> tuple[int, int] | None:
    """Return the pair of networks that a cost misjudges most: the first costs less, but takes longer.

    A pair counts if even the quick calls of the first (10th percentile) take longer than the slow calls of the second
    (90th percentile). Of these pairs, the result has the largest product of the ratio of costs and the ratio of median
    times.

    Args:
        costs: Cost of each network, such as its multiply-adds.
        times: Spread of the call times of each network.

    Returns:
        Indices of the cheaper network and of the more expensive one; None if no pair counts.
    """
    cost = np.asarray(costs, dtype=float)
    low, median, high = (np.array([time[k] for time in times], dtype=float) for k in range(3))
    best, pair = 0.0, None
    for i in range(len(costs)):
        # Networks that cost more than network i, although even their slow calls are faster than its quick calls.
        misjudged = np.flatnonzero((cost > NOISE * cost[i]) & (low[i] > NOISE * high))
        if not len(misjudged):
            continue
        products = cost[misjudged] / cost[i] * median[i] / median[misjudged]
        first = int(products.argmax())
        if products[first] > best:
            best, pair = float(products[first]), (i, int(misjudged[first]))
    return pair
