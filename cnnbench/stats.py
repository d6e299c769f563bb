"""Every interval, test and correlation of this project, on scipy where scipy has it.

Timings come in rounds. A round gives one number per network, the median of its calls, and the numbers of two networks
in the same round form a pair: whatever slowed the machine slowed both, and cancels in their ratio.

Intervals are at 95 % unless an argument says otherwise.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import special, stats

FEWEST_ROUNDS = 6
"""Rounds below which no interval of a ratio exists: with 5, the chance that all of them lie on one side of a value is
2 / 2**5, more than 5 %."""
ALIKE = 0.005
"""Relative difference of two times that is treated as none: two copies of one network differ by that much, depending on
where in memory they lie."""
ALPHA = 0.05
"""Largest p value, after any correction for several tests, at which a sentence says that two networks differ."""
NORMAL_QUANTILE = float(special.ndtri(0.975))
FEWEST_FOR_CHI_SQUARE = 25
"""Number of images on which two networks disagree from which on McNemar's test uses chi-square; with fewer it is
exact."""
BOOTSTRAP_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2_000_000
"""Images times resamples that are drawn at once, which bounds the memory."""
FEWEST_FOR_CORRELATION = 3
FEWEST_FOR_CORRELATION_INTERVAL = 5
_CORRELATION_RESAMPLES = 2000
_RANKED_AT_ONCE = 200_000
"""Networks times resamples that are ranked in one call, which bounds the memory."""
_ROUNDING = 1e-12
"""Share of the largest number below which differences between numbers are due to rounding."""


class Interval(NamedTuple):
    """An estimate with its interval; both ends are None where there are too few values for one."""

    estimate: float
    low: float | None
    high: float | None

    def excludes(self, value: float) -> bool:
        """Return whether the interval rules this value out."""
        if self.low is None or self.high is None:
            return False
        return not self.low <= value <= self.high

    @property
    def differs(self) -> bool:
        """Return whether this interval of a ratio says that two times differ by more than `ALIKE`."""
        if self.low is None or self.high is None:
            return False
        return self.low > 1 + ALIKE or self.high < 1 / (1 + ALIKE)


# Times


def pseudomedian(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the median of all means of two values, with the interval of Wilcoxon's signed-rank test.

    The interval is exact for any distribution that is symmetric about its median (Hodges and Lehmann 1963). One outlier
    among twenty values hardly moves it.

    Args:
        values: Independent measurements.
        confidence: Coverage of the interval.
    """
    # Each value is also paired with itself, as the theory asks: n * (n + 1) / 2 means, Walsh's averages.
    means = []
    for index, first in enumerate(values):
        means += [(first + second) / 2 for second in values[index:]]
    means.sort()
    estimate = statistics.median(means)
    outside = critical_rank_sum(len(values), 1 - confidence)
    if outside is None:
        return Interval(estimate, None, None)
    # The test does not reject the values between these two averages; `outside` averages lie beyond each of them.
    return Interval(estimate, means[outside], means[-1 - outside])


@cache
def critical_rank_sum(n: int, alpha: float) -> int | None:
    """Return the largest w with P(W <= w) <= alpha / 2, for Wilcoxon's signed-rank sum W of n values.

    Return None where even P(W <= 0) is larger than that. The distribution is counted (Wilcoxon 1945); scipy computes
    it too, but has no public function that returns it.
    """
    # ways[w] is the number of the 2**n choices of signs whose positive ranks sum to w. Each rank doubles the choices:
    # it is either left out, or added to a sum that was smaller by this rank.
    largest = n * (n + 1) // 2
    ways = [1] + [0] * largest
    for rank in range(1, n + 1):
        for total in range(largest, rank - 1, -1):
            ways[total] += ways[total - rank]
    at_most = 0
    critical = None
    for total, count in enumerate(ways):
        at_most += count
        if at_most > alpha / 2 * 2**n:
            break
        critical = total
    return critical


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Return the ratio of the first network's time to the second's, from paired rounds.

    Args:
        first: One time per round.
        second: The other network's times in the same rounds.

    Raises:
        ValueError: The numbers of rounds differ.
    """
    # The logarithms of a ratio and of its inverse differ in the sign alone, so the order of the two does not matter.
    logs = [math.log(a / b) for a, b in zip(first, second, strict=True)]
    estimate, low, high = pseudomedian(logs)
    if low is None or high is None:
        return Interval(math.exp(estimate), None, None)
    return Interval(math.exp(estimate), math.exp(low), math.exp(high))


def shift(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Return how much larger the first values are than the second, which are not paired with them.

    The estimate is the median of all differences. The interval is that of the Mann-Whitney test in its normal
    approximation (Hodges and Lehmann 1963; Conover 1999, section 5.4). It needs four values on each side, or three and
    six.

    Args:
        first: Independent measurements.
        second: Independent measurements of something else.
    """
    differences = sorted(a - b for a in first for b in second)
    estimate = statistics.median(differences)
    n, m = len(first), len(second)
    # Rank of the low end among the differences: the mean of the test's U minus 1.96 of its standard deviations.
    outside = math.floor(n * m / 2 - NORMAL_QUANTILE * math.sqrt(n * m * (n + m + 1) / 12))
    if outside < 1:
        return Interval(estimate, None, None)
    return Interval(estimate, differences[outside - 1], differences[-outside])


def median_interval(rounds: Sequence[Sequence[float]], resamples: int = 1000, seed: int = 0) -> Interval:
    """Return the median of all calls, with a bootstrap interval (Efron 1979).

    Whole rounds are drawn, since calls within a round are not independent of each other (Künsch 1989).

    Args:
        rounds: Times of the calls in each round.
        resamples: Number of draws.
        seed: Seed of the draws.
    """
    estimate = statistics.median(time for times in rounds for time in times)
    if len(rounds) < FEWEST_ROUNDS:
        return Interval(estimate, None, None)
    generator = random.Random(seed)
    medians = []
    for _ in range(resamples):
        drawn = generator.choices(rounds, k=len(rounds))
        medians.append(statistics.median(time for times in drawn for time in times))
    medians.sort()
    # The 2.5th and the 97.5th percentile of the medians, by the nearest rank.
    return Interval(estimate, medians[round(0.025 * (resamples - 1))], medians[round(0.975 * (resamples - 1))])


def median_deviation(values: Sequence[float]) -> float:
    """Return the median absolute deviation from the median, without the factor for normal distributions."""
    return float(stats.median_abs_deviation(values))


# Accuracies


def wilson_interval(successes: float, total: float) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson 1927).

    Counts may be means over several trainings, which scipy's `proportion_ci` does not take.
    """
    # The ends solve |share - p| = z sqrt(p (1 - p) / total) for p, a quadratic equation.
    z = NORMAL_QUANTILE
    share = successes / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At 0 and 1 the interval ends at the share itself, which rounding would miss.
    low = 0.0 if successes <= 0 else (centre - half) / scale
    high = 1.0 if successes >= total else (centre + half) / scale
    return low, high


def newcombe_interval(first: float, of_first: float, second: float, of_second: float) -> tuple[float, float]:
    """Return the interval of the first proportion minus the second, from independent counts.

    It is built from the Wilson interval of each, so it holds near 0 and 1 too (Newcombe 1998, Statistics in Medicine
    17, 873, method 10).

    Args:
        first: Successes of the first.
        of_first: Trials of the first.
        second: Successes of the second.
        of_second: Trials of the second.
    """
    share, other = first / of_first, second / of_second
    low, high = wilson_interval(first, of_first)
    other_low, other_high = wilson_interval(second, of_second)
    change = share - other
    # Square-and-add: the difference is smallest where the first share is at its low end and the other at its high end.
    return change - math.hypot(share - low, other_high - other), change + math.hypot(high - share, other - other_low)


def two_proportions_p(first: float, of_first: float, second: float, of_second: float) -> float:
    """Return the two-sided p value of the z test that two proportions are equal, with pooled variance."""
    pooled = (first + second) / (of_first + of_second)
    error = math.sqrt(pooled * (1 - pooled) * (1 / of_first + 1 / of_second))
    # Both shares are 0, or both are 1.
    if error == 0:
        return 1.0
    z = abs(first / of_first - second / of_second) / error
    return float(2 * special.ndtr(-z))


def reach(count: int) -> float:
    """Return how far the interval of `mean_interval` reaches to each side of the mean, in standard deviations.

    It is Student's quantile for ``count - 1`` degrees of freedom, divided by the root of the count: 9.0 for two values,
    2.5 for three, 1.2 for five and 0.7 for ten.

    Raises:
        ValueError: There are fewer than two values, which have no standard deviation.
    """
    if count < 2:
        raise ValueError(f"{count} values have no standard deviation; two are the fewest")
    return float(special.stdtrit(count - 1, 0.975)) / math.sqrt(count)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean with Student's t interval (1908), which has no ends where the values show no spread.

    The interval holds exactly for values from a normal distribution. From two to ten values it is preferred to a
    bootstrap, which draws again from values that hardly show the spread: for three normal values, its percentile
    interval at 95 % holds the mean in 68 of 100 cases.

    Args:
        values: Independent measurements, such as the accuracies of several seeds; at least one.
    """
    estimate = statistics.fmean(values)
    # A single value has no spread. Values that are all equal would have an interval without width, as if the mean were
    # known exactly.
    if len(values) < 2 or _deviation(values) == 0:
        return Interval(estimate, None, None)
    half = reach(len(values)) * _deviation(values)
    return Interval(estimate, estimate - half, estimate + half)


def _deviation(values: Sequence[float], largest: float | None = None) -> float:
    """Return the standard deviation of two or more values, 0 where they differ by rounding only.

    Args:
        values: Values.
        largest: Largest of the numbers from which the values were computed; None for that of the values themselves.
    """
    if largest is None:
        largest = max(map(abs, values))
    deviation = statistics.stdev(values)
    # Numbers that are equal on paper may differ in their last digits, such as 0.92 - 0.91 and 0.93 - 0.92.
    if deviation <= _ROUNDING * largest:
        return 0.0
    return deviation


class MeanDifference(NamedTuple):
    """The difference of two means, unpaired with variances that may differ (Welch 1947), or paired (Student 1908).

    Attributes:
        value: First mean minus second mean.
        error: Standard error of `value`.
        freedom: Degrees of freedom of Student's distribution.
    """

    value: float
    error: float
    freedom: float

    @property
    def half_width(self) -> float:
        """Return half the width of the interval."""
        return float(special.stdtrit(self.freedom, 0.975)) * self.error

    @property
    def interval(self) -> Interval:
        """Return the difference with its interval, which has no ends where the values show no spread."""
        if self.error == 0:
            return Interval(self.value, None, None)
        return Interval(self.value, self.value - self.half_width, self.value + self.half_width)

    @property
    def p(self) -> float:
        """Return the two-sided p value of the hypothesis that both means are equal."""
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * special.stdtr(self.freedom, -abs(self.value) / self.error))


def mean_difference(first: Sequence[float], second: Sequence[float]) -> MeanDifference:
    """Return the difference of two means with its standard error.

    A side with a single value is given the variance of the other side, whose degrees of freedom then count.

    Raises:
        ValueError: Both sides have a single value.
    """
    value = statistics.fmean(first) - statistics.fmean(second)
    several = [values for values in (first, second) if len(values) > 1]
    if not several:
        raise ValueError("at least one side needs two values or more")
    squared_errors = []
    for values in (first, second):
        measured = values if len(values) > 1 else several[0]
        squared_errors.append(statistics.variance(measured) / len(values))
    error = math.sqrt(sum(squared_errors))
    if len(several) == 1:
        return MeanDifference(value, error, len(several[0]) - 1)
    # Without any spread the formula below would divide by zero, and the degrees of freedom do not matter.
    if error == 0:
        return MeanDifference(value, 0.0, 1.0)
    # The degrees of freedom by Welch and Satterthwaite weigh those of each side by its part of the error.
    weights = sum(e**2 / (len(v) - 1) for e, v in zip(squared_errors, (first, second), strict=True))
    return MeanDifference(value, error, sum(squared_errors) ** 2 / weights)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> MeanDifference:
    """Return the mean of the differences of pairs, with its standard error (Student 1908).

    What moves both values of a pair alike, such as the order of the training images, cancels. No exact test by signs
    takes its place: of n pairs, its smallest p value is 2 / 2**n, more than 5 % for five pairs.

    Args:
        first: One value per pair.
        second: The other value of each pair.

    Raises:
        ValueError: There are fewer than two pairs, or the numbers of values differ.
    """
    if len(first) < 2:
        raise ValueError(f"{len(first)} pairs show no spread; two are the fewest")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    error = _deviation(differences, max(map(abs, (*first, *second)))) / math.sqrt(len(differences))
    return MeanDifference(statistics.fmean(differences), error, len(differences) - 1)


class McNemar(NamedTuple):
    """McNemar's test of two classifiers on the same images.

    Attributes:
        p: Two-sided p value of the hypothesis that both are right equally often.
        exact: Whether it is that of the binomial distribution; otherwise that of chi-square, with continuity
            correction.
    """

    p: float
    exact: bool

    @property
    def method(self) -> str:
        """Return the name of the test with its variant."""
        if self.exact:
            return "McNemar's test, exact binomial"
        return "McNemar's test, chi-square with continuity correction"


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """Test whether two classifiers are right equally often, from the images that only one of them gets right.

    Images that both get right, or both wrong, say nothing about the difference. If both are equally good, each of the
    other images falls to either side with probability 1/2 (McNemar 1947; for classifiers, Dietterich 1998, Neural
    Computation 10, 1895). With fewer than `FEWEST_FOR_CHI_SQUARE` such images the p value is the exact binomial one,
    otherwise that of chi-square with one degree of freedom and continuity correction (Edwards 1948).

    Args:
        only_first: Number of images that only the first classifier gets right.
        only_second: Number of images that only the second classifier gets right.
    """
    images = only_first + only_second
    if images < FEWEST_FOR_CHI_SQUARE:
        # Equal counts would make this larger than 1, since the middle of the distribution is then in both tails.
        p = min(1.0, 2 * float(special.bdtr(min(only_first, only_second), images, 0.5))) if images else 1.0
        return McNemar(p, True)
    # The correction makes a difference smaller by 1, but never negative.
    difference = max(abs(only_first - only_second) - 1, 0)
    return McNemar(float(special.chdtrc(1, difference**2 / images)), False)


def paired_interval(only_first: int, only_second: int, images: int) -> Interval:
    """Return the difference of the accuracies of two classifiers on the same images, with its interval.

    The interval is that of a normal distribution, after one image has been added to each of the two counts (Bonett and
    Price 2012, Journal of Educational and Behavioral Statistics 37, 479). The added images let it hold with very few
    images that only one of the two gets right, where resampled images show too little spread; with none, it still has
    a width. Fagerland, Lydersen and Laake (2014, Statistics in Medicine 33, 2850) recommend it.

    Args:
        only_first: Number of images that only the first classifier gets right.
        only_second: Number of images that only the second classifier gets right.
        images: Number of all images.
    """
    first, second = (only_first + 1) / (images + 2), (only_second + 1) / (images + 2)
    middle = first - second
    half = NORMAL_QUANTILE * math.sqrt((first + second - middle**2) / (images + 2))
    return Interval((only_first - only_second) / images, max(-1.0, middle - half), min(1.0, middle + half))


class Bootstrap(NamedTuple):
    """Accuracies of networks on resampled test images, and with resampled seeds.

    Attributes:
        values: Accuracy of each network in each resample, (resamples, networks). All networks of a resample were tested
            on the same images.
    """

    values: np.ndarray

    def error(self, first: int, second: int) -> float:
        """Return the standard error of the accuracy of one network minus that of another."""
        return float((self.values[:, first] - self.values[:, second]).std(ddof=1))


def paired_bootstrap(right: Sequence[np.ndarray], resamples: int = BOOTSTRAP_RESAMPLES, seed: int = 0) -> Bootstrap:
    """Resample the seeds of each network and the test images, which are the same for all networks of a resample.

    Args:
        right: Whether each image is classified right, (seeds, images), one array per network. A network with one seed
            stands for itself, so that the differences are about this training.
        resamples: Number of draws.
        seed: Seed of the draws.

    The images are drawn with replacement (Efron 1979). Of n seeds, n - 1 are drawn with replacement, since n draws
    would give (n - 1) / n of the variance of a mean of n seeds only (McCarthy and Snowden 1985; Rao and Wu 1988): half
    of it for two seeds.
    """
    generator = np.random.default_rng(seed)
    rows = np.concatenate(right).astype(np.float32)
    accuracies = _resampled_accuracies(rows, resamples, generator)
    values = np.empty((resamples, len(right)))
    start = 0
    for index, of_network in enumerate(right):
        seeds = len(of_network)
        drawn = generator.integers(seeds, size=(resamples, max(1, seeds - 1)))
        values[:, index] = np.take_along_axis(accuracies[:, start : start + seeds], drawn, axis=1).mean(axis=1)
        start += seeds
    return Bootstrap(values)


def _resampled_accuracies(rows: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Return the accuracy of each trained network on resampled images, (resamples, rows).

    Args:
        rows: 1 for each image that is classified right, else 0, (rows, images) float32.
        resamples: Number of draws.
        generator: Source of the draws.
    """
    images = rows.shape[1]
    columns = np.ascontiguousarray(rows.T)
    parts = []
    at_once = max(1, _DRAWN_AT_ONCE // images)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        # How often each image was drawn, (count, images). The product with the rows then sums over the drawn images;
        # the sums are whole numbers below 2**24, so float32 holds them exactly.
        drawn = generator.integers(images, size=(count, images))
        drawn += np.arange(count)[:, None] * images
        times = np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images)
        parts.append(times.astype(np.float32) @ columns)
    return np.concatenate(parts).astype(np.float64) / images


def over_seeds_and_images(first: np.ndarray, second: np.ndarray, error: float) -> MeanDifference:
    """Return the difference of the mean accuracies of two networks, for trainings with other seeds and other images.

    Percentiles of a bootstrap claim too much with few seeds. So its standard error is used with Student's quantile
    (Efron and Tibshirani 1993, chapter 12). The degrees of freedom are those of Satterthwaite (1946): the variance over
    the images counts as known, and that over n seeds has n - 1.

    Args:
        first: Whether each image is classified right, (seeds, images); at least two seeds.
        second: The same of the other network, on the same images.
        error: Standard error of the difference, from `paired_bootstrap`.
    """
    by_image = first.mean(axis=0) - second.mean(axis=0)
    weights = 0.0
    total = float(by_image.var(ddof=1)) / len(by_image)
    for right in (first, second):
        part = float(right.mean(axis=1).var(ddof=1)) / len(right)
        total += part
        weights += part**2 / (len(right) - 1)
    # Without any spread over seeds the images alone decide, and Student's distribution is the normal one.
    freedom = total**2 / weights if weights else math.inf
    return MeanDifference(float(by_image.mean()), error, freedom)


def holm(p_values: Sequence[float], tests: int | None = None) -> list[float]:
    """Return p values corrected for the number of tests, so that one false discovery among them is as rare as they say.

    Holm 1979, Scandinavian Journal of Statistics 6, 65; scipy does not have it.

    Args:
        p_values: p values of some tests, in any order.
        tests: Number of all tests that might have been among these, if these were chosen after their results had been
            seen; None if there are no others. The others count as if their p values were 1.

    Raises:
        ValueError: `tests` is smaller than the number of p values.
    """
    tests = len(p_values) if tests is None else tests
    if tests < len(p_values):
        raise ValueError(f"{len(p_values)} p values cannot be from {tests} tests")
    # From the smallest p value on, each is multiplied by the number of tests that are not decided yet. A corrected
    # value is at least as large as that of the test before it.
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (tests - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def discoveries(p_values: Sequence[float], false_share: float) -> list[bool]:
    """Return which of many tests count as discoveries, so that this share of them is false at most.

    Benjamini and Hochberg 1995.
    """
    if not p_values:
        return []
    adjusted = stats.false_discovery_control(p_values, method="bh")
    return [bool(p <= false_share) for p in adjusted]


# Correlations


class Correlation(NamedTuple):
    """A rank correlation over networks.

    Attributes:
        value: Spearman's coefficient.
        networks: Number of networks.
        interval: Its bootstrap interval; None where there are too few networks, or where all resamples agree, as they
            do for a perfect correlation.
    """

    value: float
    networks: int
    interval: tuple[float, float] | None


def correlate(xs: Sequence[float], ys: Sequence[float]) -> Correlation | None:
    """Return Spearman's correlation with its interval; None for fewer than `FEWEST_FOR_CORRELATION` networks."""
    if len(xs) < FEWEST_FOR_CORRELATION:
        return None
    value = spearman(xs, ys)
    if value is None:
        return None
    interval = None
    if len(xs) >= FEWEST_FOR_CORRELATION_INTERVAL:
        interval = _correlation_interval(xs, ys)
    return Correlation(value, len(xs), interval)


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation (1904), with average ranks for ties.

    Return None where all values of one side are equal.
    """
    value = float(_spearman_of_rows(np.asarray(xs)[None], np.asarray(ys)[None])[0])
    return None if math.isnan(value) else value


def _correlation_interval(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval over networks (Efron 1979), the same in every call.

    `scipy.stats.bootstrap` is not used because it has no interval when a single resample has no correlation, which
    happens with few networks: all that were drawn may be one and the same.
    """
    x, y = np.asarray(xs), np.asarray(ys)
    generator = np.random.default_rng(0)
    values: list[np.ndarray] = []
    missing = _CORRELATION_RESAMPLES
    while missing:
        count = min(missing, max(1, _RANKED_AT_ONCE // len(x)))
        picks = generator.integers(len(x), size=(count, len(x)))
        values.append(_spearman_of_rows(x[picks], y[picks]))
        missing -= count
    resampled = np.concatenate(values)
    resampled = np.sort(resampled[~np.isnan(resampled)])
    # Leave out 2.5 % of the resamples on each side.
    tail = round(0.025 * len(resampled))
    low, high = float(resampled[tail]), float(resampled[-1 - tail])
    return (low, high) if low < high else None


def _spearman_of_rows(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each row; NaN where all values of a side are equal.

    Args:
        xs: One sample per row, (rows, networks).
        ys: The other figure of the same networks, (rows, networks).
    """
    # Ranks minus their mean are multiples of one half, so the sums below are exact whatever their order.
    mean_rank = (xs.shape[1] + 1) / 2
    a = stats.rankdata(xs, axis=1) - mean_rank
    b = stats.rankdata(ys, axis=1) - mean_rank
    spread = (a * a).sum(axis=1) * (b * b).sum(axis=1)
    together = (a * b).sum(axis=1)
    correlation = np.full(len(xs), np.nan)
    np.divide(together, np.sqrt(spread), out=correlation, where=spread > 0)
    return correlation
