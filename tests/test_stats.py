"""Statistics: critical values from published tables, scipy's own tests inverted, coverage by simulation."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from cnnbench.stats import (
    FEWEST_ROUNDS,
    correlate,
    critical_rank_sum,
    discoveries,
    holm,
    mean_difference,
    mean_interval,
    median_deviation,
    median_interval,
    newcombe_interval,
    paired_difference,
    paired_ratio,
    pseudomedian,
    reach,
    shift,
    spearman,
    two_proportions_p,
    wilson_interval,
)


@pytest.mark.parametrize(("n", "critical"), [(5, None), (6, 0), (8, 3), (10, 8), (15, 25), (20, 52), (25, 89)])
def test_critical_rank_sum_is_that_of_the_tables(n: int, critical: int | None) -> None:
    """Two-sided 5 %, Wilcoxon and Wilcox 1964, table 2."""
    assert critical_rank_sum(n, 0.05) == critical


def test_pseudomedian_of_three_values() -> None:
    """All means of 1, 2 and 6 are 1, 1.5, 2, 3.5, 4 and 6."""
    interval = pseudomedian([1, 2, 6])
    assert interval == (2.75, None, None)
    assert not interval.excludes(100)


@pytest.mark.parametrize("count", [6, 7, 12, 25])
def test_pseudomedian_interval_is_what_scipys_signed_rank_test_accepts(count: int) -> None:
    generator = random.Random(count)
    values = [generator.gauss(3, 1) for _ in range(count)]
    interval = pseudomedian(values)
    assert interval.low is not None
    assert interval.high is not None
    for end, outwards in ((interval.low, -1), (interval.high, 1)):
        accepted = scipy_stats.wilcoxon([v - end + outwards * 1e-9 for v in values], method="exact").pvalue
        rejected = scipy_stats.wilcoxon([v - end - outwards * 1e-9 for v in values], method="exact").pvalue
        assert rejected <= 0.05 < accepted


@pytest.mark.parametrize("draw", [random.Random.gauss, lambda r, m, s: r.choice([r.gauss(m, s), r.gauss(m, 9 * s)])])
def test_pseudomedian_interval_holds_the_truth_in_95_of_100_cases(draw: object) -> None:
    generator = random.Random(0)
    held = sum(not pseudomedian([draw(generator, 3.0, 1.0) for _ in range(12)]).excludes(3.0) for _ in range(600))
    assert 0.93 <= held / 600 <= 0.98  # exactly 95.8 % for n = 12; three standard errors are 2.5 points


def test_paired_ratio_cancels_what_slows_both() -> None:
    generator = random.Random(0)
    speed = [generator.uniform(1, 3) for _ in range(20)]  # of the machine, per round
    first = [1.05 * s * generator.gauss(1, 0.01) for s in speed]
    second = [s * generator.gauss(1, 0.01) for s in speed]
    ratio = paired_ratio(first, second)
    assert ratio.estimate == pytest.approx(1.05, abs=0.01)
    assert ratio.excludes(1)
    assert ratio.high - ratio.low < 0.02
    inverse = paired_ratio(second, first)
    assert tuple(inverse) == pytest.approx((1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low))
    with pytest.raises(ValueError, match="zip"):
        paired_ratio(first, second[1:])


def test_paired_ratio_is_hardly_moved_by_one_outlier() -> None:
    calm = [1 + 0.001 * n for n in range(20)]
    assert paired_ratio([*calm[:-1], 50.0], calm).high < 1.01


def test_shift_of_unpaired_values() -> None:
    interval = shift([5, 6, 7, 8, 9, 10, 11], [1, 2, 3, 4, 5, 6, 7])
    # n = m = 7: the tables of Mann and Whitney have 8 for two-sided 5 %, so the 9th smallest and largest difference;
    # there are 1, 2, 3 and 4 differences of -2, -1, 0 and 1
    assert interval == (4, 1, 7)
    assert shift([1.0] * 3, [2.0] * 5).low is None
    assert shift([5, 6, 7, 8], [1, 2, 3, 4]) == (4, 1, 7)  # all differences: 2 of 70 orders are outside, 2.9 %


@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 9), (20, 12)])
def test_shift_interval_is_within_one_step_of_the_exact_test(n: int, m: int) -> None:
    """Everything outside is rejected by scipy's exact Mann-Whitney test, and the second difference inside is not."""
    generator = random.Random(n * m)
    first = [generator.gauss(5, 1) for _ in range(n)]
    second = [generator.gauss(3, 1) for _ in range(m)]
    interval = shift(first, second)
    differences = sorted(a - b for a in first for b in second)

    def p(moved: float) -> float:
        return scipy_stats.mannwhitneyu([v - moved for v in first], second, method="exact").pvalue

    assert p(interval.low - 1e-9) <= 0.05
    assert p(interval.high + 1e-9) <= 0.05
    assert p(differences[differences.index(interval.low) + 1] + 1e-9) > 0.05
    assert p(differences[differences.index(interval.high) - 1] - 1e-9) > 0.05


def test_median_interval_draws_rounds_not_calls() -> None:
    """Calls of a round are alike, so a hundred in each are worth no more than one."""
    middles = [1.0, 2, 3, 4, 5, 6, 7, 8, 9]
    one, many = (median_interval([[m] * calls for m in middles]) for calls in (1, 100))
    assert one == many
    assert (one.estimate, one.low < 4, one.high > 6) == (5, True, True)
    assert median_interval([[1.0]] * (FEWEST_ROUNDS - 1)).low is None


def test_median_deviation() -> None:
    assert median_deviation([1, 1, 2, 2, 4, 6, 9]) == 1  # Wikipedia's example
    assert median_deviation([5.0] * 3) == 0


# Intervals computed by R's prop.test(x, n, correct = FALSE).
@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775328), (5, 10, 0.2365931, 0.7634069), (10, 10, 0.7224672, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval_is_that_of_r(right: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(right, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_interval_is_that_of_scipy(counts: tuple[int, int]) -> None:
    right, total = counts
    expected = scipy_stats.binomtest(right, total).proportion_ci(method="wilson")
    assert wilson_interval(right, total) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


# Published by Newcombe 1998, table II, method 10.
@pytest.mark.parametrize(("counts", "ends"), [((56, 70, 48, 80), (0.0524, 0.3339)), ((9, 10, 3, 10), (0.1705, 0.8090))])
def test_newcombe_interval_is_that_of_the_paper(counts: tuple[int, int, int, int], ends: tuple[float, float]) -> None:
    assert newcombe_interval(*counts) == pytest.approx(ends, abs=5e-5)


@pytest.mark.parametrize("counts", [(3, 10, 7, 12), (450, 1000, 500, 1000), (1, 1000, 12, 900)])
def test_two_proportions_p_is_that_of_the_chi_square_test(counts: tuple[int, int, int, int]) -> None:
    """The square of z has the chi-square distribution with one degree of freedom."""
    a, n, b, m = counts
    expected = scipy_stats.chi2_contingency([[a, n - a], [b, m - b]], correction=False).pvalue
    assert two_proportions_p(*counts) == pytest.approx(expected, rel=1e-9)
    assert two_proportions_p(0, n, 0, m) == 1


def test_mean_difference_is_welchs_test_of_scipy() -> None:
    generator = random.Random(0)
    first = [generator.gauss(0.90, 0.01) for _ in range(4)]
    second = [generator.gauss(0.91, 0.03) for _ in range(7)]
    expected = scipy_stats.ttest_ind(first, second, equal_var=False)
    difference = mean_difference(first, second)
    low, high = expected.confidence_interval(0.95)
    assert difference.p == pytest.approx(expected.pvalue)
    assert difference.freedom == pytest.approx(expected.df)
    assert (difference.value - difference.half_width, difference.value + difference.half_width) == pytest.approx(
        (low, high)
    )


def test_mean_difference_without_spread_or_with_a_single_value() -> None:
    assert (mean_difference([1, 1], [1, 1]).p, mean_difference([1, 1], [2, 2]).p) == (1.0, 0.0)
    # By hand: five values of standard deviation 0.05701 against one, t with 4 degrees of freedom:
    # 2.776 * 0.05701 * sqrt(1 / 5 + 1) = 0.1734.
    single = mean_difference([0.80, 0.90, 0.85, 0.95, 0.90], [0.865])
    assert single.half_width == pytest.approx(0.1734, abs=1e-4)
    with pytest.raises(ValueError, match="two values"):
        mean_difference([1], [2])


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_mean_interval_is_that_of_scipys_t_test(count: int) -> None:
    generator = random.Random(count)
    values = [generator.gauss(0.9, 0.01) for _ in range(count)]
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    interval = mean_interval(values)
    assert tuple(interval)[1:] == pytest.approx((expected.low, expected.high))
    assert interval.high - interval.estimate == pytest.approx(reach(count) * np.std(values, ddof=1))


def test_mean_interval_without_spread_has_no_ends() -> None:
    assert mean_interval([0.9]) == (0.9, None, None)
    for equal in ([0.5, 0.5], [0.0, 0.0], [0.92 - 0.91, 0.93 - 0.92], [0.1] * 3):
        interval = mean_interval(equal)
        assert (interval.estimate, interval.low, interval.high) == (pytest.approx(equal[0]), None, None)
    # Numbers that differ by an image of ten thousand do have a spread.
    assert mean_interval([0.9, 0.9001]).low is not None
    with pytest.raises(ValueError, match="two are the fewest"):
        reach(1)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_mean_interval_holds_the_truth_in_95_of_100_cases_where_a_bootstrap_does_not(count: int) -> None:
    generator = np.random.default_rng(count)
    samples = generator.normal(0.9, 0.01, (2000, count))
    held = np.mean([not mean_interval(sample.tolist()).excludes(0.9) for sample in samples])
    assert held == pytest.approx(0.95, abs=0.015)  # three standard errors
    # The percentile bootstrap, whose resamples of so few values can be counted: each has the same probability.
    picks = np.array(list(itertools.product(range(count), repeat=count)))
    ends = np.quantile(samples[:, picks].mean(axis=2), (0.025, 0.975), axis=1)
    assert np.mean((ends[0] <= 0.9) & (ends[1] >= 0.9)) < 0.88


def test_paired_difference_is_the_paired_t_test_of_scipy() -> None:
    generator = random.Random(0)
    common = [generator.gauss(0, 0.05) for _ in range(4)]
    first = [0.90 + c + generator.gauss(0, 0.01) for c in common]
    second = [0.91 + c + generator.gauss(0, 0.01) for c in common]
    expected = scipy_stats.ttest_rel(first, second)
    ends = expected.confidence_interval(0.95)
    difference = paired_difference(first, second)
    assert (difference.p, difference.freedom) == (pytest.approx(expected.pvalue), expected.df)
    assert tuple(difference.interval)[1:] == pytest.approx((ends.low, ends.high))
    # What moves both values of a pair alike is not in it.
    assert difference.half_width < mean_difference(first, second).half_width / 2


def test_paired_difference_of_equal_differences_or_too_few_pairs() -> None:
    assert 0.4 - 0.3 != 0.5 - 0.4  # in floating point
    equal = paired_difference([0.4, 0.5, 0.6], [0.3, 0.4, 0.5])
    assert (equal.error, equal.interval) == (0.0, (pytest.approx(0.1), None, None))
    with pytest.raises(ValueError, match="1 pairs show no spread"):
        paired_difference([1], [2])
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1, 2], [1, 2, 3])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_holm_is_the_closed_test_of_bonferronis(p_values: list[float]) -> None:
    """A hypothesis is rejected if Bonferroni's test rejects every set of hypotheses with it (Marcus et al. 1976)."""
    indices = range(len(p_values))
    sets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(indices, size)]
    expected = [max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if index in s) for index in indices]
    assert holm(p_values) == pytest.approx(expected)
    # Tests that were not chosen count as if they had shown nothing.
    assert holm(p_values, len(p_values) + 3) == pytest.approx(holm([*p_values, 1.0, 1.0, 1.0])[: len(p_values)])


def test_holm_of_the_textbook() -> None:
    # By hand: 4 * 0.005, 3 * 0.01, then 2 * 0.03, above which 0.04 cannot fall.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    with pytest.raises(ValueError, match="2 p values cannot be from 1 tests"):
        holm([0.1, 0.2], 1)


def test_comparing_with_the_best_is_rarely_a_false_discovery() -> None:
    """Five networks of equal accuracy with three seeds: in at most 5 of 100 cases one differs from the best of them."""
    generator = np.random.default_rng(1)
    false = 0
    for _ in range(400):
        networks = generator.normal(0.9, 0.01, (5, 3))
        best = int(networks.mean(axis=1).argmax())
        p_values = [paired_difference(networks[k], networks[best]).p for k in range(5) if k != best]
        false += min(holm(p_values, 10)) <= 0.05
    assert false <= 400 * 0.05 + 13  # three standard errors


def test_discoveries_are_those_of_the_paper() -> None:
    """The example of Benjamini and Hochberg 1995, section 3.1: fifteen tests, of which four are discoveries at 5 %."""
    p_values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p_values += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert discoveries(p_values, 0.05) == [True] * 4 + [False] * 11
    assert discoveries(p_values[::-1], 0.05) == [False] * 11 + [True] * 4
    assert discoveries([], 0.05) == []


def test_spearman_is_that_of_the_textbook() -> None:
    # Without ties 1 - 6 * sum(d^2) / (n * (n^2 - 1)), here 1 - 6 * 4 / (5 * 24).
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8, abs=1e-15)
    assert spearman([1, 10, 100], [3, 2, 1]) == -1
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(22.5), abs=1e-15)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=40))
def test_spearman_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    xs, ys = zip(*pairs, strict=True)
    if len(set(xs)) == 1 or len(set(ys)) == 1:
        assert spearman(xs, ys) is None
    else:
        assert spearman(xs, ys) == pytest.approx(scipy_stats.spearmanr(xs, ys).statistic)


def test_correlation_needs_enough_networks() -> None:
    assert correlate([1, 2], [1, 2]) is None
    assert correlate([1, 2, 3], [1, 3, 2]) == (0.5, 3, None)
    assert correlate([1, 2, 3, 4], [1, 1, 1, 1]) is None
    assert correlate(range(9), range(9)) == (1, 9, None)  # resamples cannot show how uncertain it is


def test_correlation_interval_is_that_of_all_resamples() -> None:
    xs, ys = [1, 2, 3, 4, 5, 6], [3, 2, 1, 4, 6, 5]
    values: list[float] = []
    # A resample has the same correlation in every order, so each is computed once, and counted as often as it is drawn.
    for picks in itertools.combinations_with_replacement(range(6), 6):
        value = spearman([xs[i] for i in picks], [ys[i] for i in picks]) if len(set(picks)) > 1 else None
        if value is not None:
            orders = math.factorial(6) // math.prod(math.factorial(picks.count(i)) for i in range(6))
            values += [value] * orders
    assert len(values) == 6**6 - 6
    values.sort()
    correlation = correlate(xs, ys)
    assert correlation is not None
    assert correlation.interval is not None
    assert correlation.interval[0] == pytest.approx(values[round(0.025 * len(values))], abs=0.05)
    assert correlation.interval[1] == pytest.approx(values[-1 - round(0.025 * len(values))], abs=0.05)


def test_correlation_interval_is_near_that_of_scipys_bootstrap() -> None:
    generator = np.random.default_rng(3)
    xs = generator.random(60)
    ys = xs + generator.random(60)
    expected = scipy_stats.bootstrap(
        (xs, ys),
        lambda a, b: scipy_stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        random_state=1,
    ).confidence_interval
    correlation = correlate(xs.tolist(), ys.tolist())
    assert correlation is not None
    assert correlation.interval == pytest.approx((expected.low, expected.high), abs=0.03)


def test_correlation_interval_is_repeatable_and_narrows_with_more_networks() -> None:
    generator = random.Random(0)

    def noisy(count: int) -> tuple[list[float], list[float]]:
        xs = [generator.random() for _ in range(count)]
        return xs, [x + 0.5 * generator.random() for x in xs]

    few, many = noisy(8), noisy(100)
    assert correlate(*few) == correlate(*few)
    widths = []
    for sample in (few, many):
        correlation = correlate(*sample)
        assert correlation is not None
        assert correlation.interval is not None
        low, high = correlation.interval
        assert -1 <= low <= correlation.value <= high <= 1
        widths.append(high - low)
    assert widths[1] < widths[0]
