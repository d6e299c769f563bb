"""Intervals: critical values from the tables, coverage by simulation, what drops out of paired rounds."""

from __future__ import annotations

import math
import random

import pytest

from cnnbench.measure.intervals import (
    FEWEST_ROUNDS,
    critical_rank_sum,
    deviation,
    median_interval,
    paired_ratio,
    pseudomedian,
)


@pytest.mark.parametrize(("n", "critical"), [(5, None), (6, 0), (8, 3), (10, 8), (15, 25), (20, 52), (25, 89)])
def test_critical_values_are_those_of_the_tables(n: int, critical: int | None) -> None:
    """Two-sided 5 %, Wilcoxon and Wilcox 1964, table 2."""
    assert critical_rank_sum(n, 0.05) == critical


def test_the_pseudomedian_of_three_values() -> None:
    """All means of 1, 2 and 6 are 1, 1.5, 2, 3.5, 4 and 6."""
    found = pseudomedian([1, 2, 6])
    assert found == (2.75, None, None)
    assert not found.excludes(100)


@pytest.mark.parametrize("draw", [random.Random.gauss, lambda r, m, s: r.choice([r.gauss(m, s), r.gauss(m, 9 * s)])])
def test_intervals_hold_the_truth_in_95_of_100_cases(draw: object) -> None:
    generator = random.Random(0)
    held = sum(not pseudomedian([draw(generator, 3.0, 1.0) for _ in range(12)]).excludes(3.0) for _ in range(600))
    assert 0.93 <= held / 600 <= 0.98  # exact 95.8 % for n = 12; three standard errors are 2.5 points


def test_what_slows_both_drops_out_of_the_ratio() -> None:
    generator = random.Random(0)
    speed = [generator.uniform(1, 3) for _ in range(20)]  # of the machine, per round
    first = [1.05 * s * generator.gauss(1, 0.01) for s in speed]
    second = [s * generator.gauss(1, 0.01) for s in speed]
    found = paired_ratio(first, second)
    assert found.estimate == pytest.approx(1.05, abs=0.01)
    assert found.excludes(1)
    assert found.high - found.low < 0.02
    back = paired_ratio(second, first)
    assert (back.estimate, back.low, back.high) == pytest.approx((1 / found.estimate, 1 / found.high, 1 / found.low))
    with pytest.raises(ValueError, match="zip"):
        paired_ratio(first, second[1:])


def test_one_wild_round_hardly_matters() -> None:
    calm = [1 + 0.001 * n for n in range(20)]
    assert paired_ratio([*calm[:-1], 50.0], calm).high < 1.01


def test_the_bootstrap_draws_rounds_not_calls() -> None:
    """Calls of a round are alike, so a hundred in each are worth no more than one."""
    middles = [1.0, 2, 3, 4, 5, 6, 7, 8, 9]
    one, many = (median_interval([[m] * calls for m in middles]) for calls in (1, 100))
    assert one == many
    assert (one.estimate, one.low < 4, one.high > 6) == (5, True, True)
    assert median_interval([[1.0]] * (FEWEST_ROUNDS - 1)).low is None


def test_median_absolute_deviation() -> None:
    assert deviation([1, 1, 2, 2, 4, 6, 9]) == 1  # Wikipedia's example
    assert math.isclose(deviation([5.0] * 3), 0)
