"""Intervals for times that were taken in rounds, without assuming how times are distributed.

A round gives one number per subject, the median of its calls. Rounds of two subjects that were timed beside each other
are paired: what slowed the machine slowed both, and drops out of their ratio.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

FEWEST_ROUNDS = 6
"""With fewer no interval of 95 % exists: all rounds on one side of a value have probability 2 / 2**5 > 5 %."""


ALIKE = 0.005
"""Share by which two times may differ and not be told apart: two copies of one network do, by where in memory they
happen to lie."""


class Interval(NamedTuple):
    """An estimate and its 95 % interval; both ends are None where there were too few rounds for one."""

    estimate: float
    low: float | None
    high: float | None

    def excludes(self, value: float) -> bool:
        """Whether the interval says that the quantity is not this value."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high

    @property
    def differs(self) -> bool:
        """Whether the interval of a ratio of times says that they differ, by more than `ALIKE`."""
        return self.low is not None and self.high is not None and (self.low > 1 + ALIKE or self.high < 1 / (1 + ALIKE))


def pseudomedian(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median of all means of two values, with the interval that belongs to Wilcoxon's signed-rank test.

    Exact for any distribution that is symmetric about its middle (Hodges, Lehmann 1963); one wild value among twenty
    moves it by little.

    Args:
        values: Independent measurements.
        confidence: Of the interval.
    """
    means = sorted((a + b) / 2 for i, a in enumerate(values) for b in values[i:])
    estimate = statistics.median(means)
    outside = critical_rank_sum(len(values), 1 - confidence)
    if outside is None:
        return Interval(estimate, None, None)
    return Interval(estimate, means[outside], means[-1 - outside])


@cache
def critical_rank_sum(n: int, alpha: float) -> int | None:
    """The largest signed-rank sum W with P(W <= w) <= alpha / 2 for n values; None where there is none.

    Counted exactly: of the 2**n signs each gives a sum of the ranks with a plus (Wilcoxon 1945).
    """
    ways = [1] + [0] * (n * (n + 1) // 2)
    for rank in range(1, n + 1):
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    below, found = 0, None
    for total, count in enumerate(ways):
        below += count
        if below > alpha / 2 * 2**n:
            break
        found = total
    return found


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """How many times the first takes of the second's time, from paired rounds.

    Args:
        first: A time per round.
        second: The other's, in the same rounds.

    Raises:
        ValueError: They have different numbers of rounds.
    """
    logs = [math.log(a / b) for a, b in zip(first, second, strict=True)]
    estimate, low, high = pseudomedian(logs)
    if low is None or high is None:
        return Interval(math.exp(estimate), None, None)
    return Interval(math.exp(estimate), math.exp(low), math.exp(high))


def shift(first: Sequence[float], second: Sequence[float], z: float = 1.959964) -> Interval:
    """How much larger the first values are than the second, which are not paired with them.

    The median of all differences, with the interval that belongs to the Mann-Whitney test, by its normal approximation
    (Hodges, Lehmann 1963; Conover 1999, section 5.4). It needs four values on each side, or three and
    six.

    Args:
        first: Independent measurements.
        second: Others.
        z: Quantile of the normal distribution; by default for 95 %.
    """
    differences = sorted(a - b for a in first for b in second)
    estimate = statistics.median(differences)
    n, m = len(first), len(second)
    outside = math.floor(n * m / 2 - z * math.sqrt(n * m * (n + m + 1) / 12))
    if outside < 1:
        return Interval(estimate, None, None)
    return Interval(estimate, differences[outside - 1], differences[-outside])


def median_interval(rounds: Sequence[Sequence[float]], resamples: int = 1000, seed: int = 0) -> Interval:
    """The median of all calls, with a bootstrap interval that draws whole rounds (Efron 1979; Künsch 1989).

    Args:
        rounds: Times of the calls in each round; those of one round are not independent of each other.
        resamples: Drawn from the rounds.
        seed: Of the draws.
    """
    estimate = statistics.median(t for times in rounds for t in times)
    if len(rounds) < FEWEST_ROUNDS:
        return Interval(estimate, None, None)
    generator = random.Random(seed)
    found = sorted(
        statistics.median(t for times in generator.choices(rounds, k=len(rounds)) for t in times)
        for _ in range(resamples)
    )
    return Interval(estimate, found[round(0.025 * (resamples - 1))], found[round(0.975 * (resamples - 1))])


def deviation(values: Sequence[float]) -> float:
    """The median absolute deviation from the median."""
    middle = statistics.median(values)
    return statistics.median(abs(v - middle) for v in values)
