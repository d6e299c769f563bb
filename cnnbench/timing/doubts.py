"""Reasons to doubt times that the times themselves show: they drift, or they fall into two groups."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

from cnnbench.stats import median_interval

MOST_DRIFT = 0.02
"""Relative change of a time from the first half of the rounds to the second half that is still not called a drift."""
_TREND = 2.576
"""Threshold of Kendall's statistic, in standard deviations, beyond which rounds have a trend (two-sided level 1 %)."""
FEWEST_FOR_TWO = 12
"""Smallest number of rounds in which two groups of times are looked for."""
_SMALLEST_GROUP = 0.25
"""Share of the rounds that each of the two groups has at least. A smaller group hardly changes the median."""
_FAR_APART = 1.4
"""Ratio of the times of the two groups, from which on they are reported."""
_DISTANCE, _MANY = 6.0, 18
"""Distance of the two groups in standard deviations within them, from which on they are reported if there are so many
values. Of 400 samples of normal values, fewer than 1 % are cut into groups so far apart."""
_DISTANCE_OF_FEW = 7.5
"""The same for fewer values."""
_OUTLIERS = 1 / 12
"""Share of the values, those that are farthest from the median of their group, that does not count for the spread."""
_GROUPED = "fell into two groups of times far apart"


def drifts(rounds_ms: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    """Return at most one sentence, which names the kinds of work whose times drifted over the rounds.

    A drift is a trend of the medians of the rounds that is beyond chance (Kendall 1938). In addition, the median must
    change between the two halves of the rounds by more than its own uncertainty, half the width of its interval, and by
    more than `MOST_DRIFT`.

    Args:
        rounds_ms: Times of the calls in each round, by kind of work.
    """
    drifting = []
    for kind, rounds in rounds_ms.items():
        middles = [statistics.median(times) for times in rounds]
        interval = median_interval(rounds)
        n, half = len(middles), len(middles) // 2
        # With so few rounds that the median has no interval, nothing can be said.
        if interval.low is None or interval.high is None:
            continue
        # With an odd number of rounds, the middle one is in neither half.
        change = abs(statistics.median(middles[-half:]) - statistics.median(middles[:half]))
        # Kendall's statistic is the number of pairs of rounds that rise minus the number of pairs that fall.
        # Without a trend its variance is n (n - 1) (2 n + 5) / 18; the 1 is the correction for continuity.
        rising = sum((b > a) - (b < a) for a, b in itertools.combinations(middles, 2))
        trend = (abs(rising) - 1) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
        if trend > _TREND and change > max((interval.high - interval.low) / 2, MOST_DRIFT * interval.estimate):
            drifting.append(kind)
    if not drifting:
        return []
    return [f"{' and '.join(drifting)} drifted over the rounds"]


def groupings(rounds_ms: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    """Return at most one sentence, which names the kinds of work whose rounds fall into two groups far apart.

    A median of such times may be that of either group. So it is where another program of the same host uses a core too
    for some seconds, which a virtual machine cannot see, and where the processes of a timing differ. The groups are
    those of `two_groups`, of the medians of the rounds.

    Args:
        rounds_ms: Times of the calls in each round, by kind of work.
    """
    alternating = []
    for kind, rounds in rounds_ms.items():
        if two_groups([statistics.median(times) for times in rounds]) is not None:
            alternating.append(kind)
    if not alternating:
        return []
    return [f"{' and '.join(alternating)} {_GROUPED}"]


def two_groups(values: Sequence[float]) -> tuple[list[float], list[float]] | None:
    """Return the small and the large values if they are two groups far apart; None otherwise, or of too few values.

    The logarithms of the values are cut in two where the sum of the distances from the median of the group is smallest
    (k-medians). How far the groups are apart is measured in standard deviations within them, as by Ashman, Bird and
    Zepf (1994), but from medians and without `_OUTLIERS`: a single call may be much slower than all others.

    Args:
        values: Positive numbers.
    """
    if len(values) < FEWEST_FOR_TWO or not all(0 < value < math.inf for value in values):
        return None
    logs = sorted(map(math.log, values))
    least = math.ceil(_SMALLEST_GROUP * len(logs))
    at = min(range(least, len(logs) - least + 1), key=lambda cut: sum(_distances(logs[:cut], logs[cut:])))
    between = statistics.median(logs[at:]) - statistics.median(logs[:at])
    counted = _distances(logs[:at], logs[at:])[: len(logs) - math.floor(_OUTLIERS * len(logs))]
    deviation = math.sqrt(sum(distance**2 for distance in counted) / len(counted))
    least_distance = _DISTANCE if len(logs) >= _MANY else _DISTANCE_OF_FEW
    if between <= max(math.log(_FAR_APART), least_distance * deviation):
        return None
    ordered = sorted(values)
    return ordered[:at], ordered[at:]


def is_grouping(reason: str) -> bool:
    """Return whether a reason is from `groupings`."""
    return _GROUPED in reason


def _distances(*groups: Sequence[float]) -> list[float]:
    """Return the distances of all values from the median of their group, in rising order."""
    distances = []
    for group in groups:
        middle = statistics.median(group)
        distances += [abs(value - middle) for value in group]
    return sorted(distances)
