"""Many networks compared at once: the Pareto front, and the pair that a cost misjudges most.

Both take far less than a second for thousands of networks, since numpy compares each with each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NOISE = 1.05
"""Two times or costs whose ratio is smaller than this count as equal."""


class Spread(NamedTuple):
    """The time of a call: 10th percentile, median and 90th percentile, in milliseconds."""

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
