"""Tests of networks on the same images, and calibration: against statsmodels, torchmetrics, formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from torchmetrics.classification import MulticlassCalibrationError

from cnnbench.calibration import (
    LARGEST_TEMPERATURE,
    binned,
    calibration_error,
    confidences,
    fit_temperature,
    mean_loss,
)
from cnnbench.stats import (
    FEWEST_FOR_CHI_SQUARE,
    holm,
    mcnemar,
    over_seeds_and_images,
    paired_bootstrap,
    paired_interval,
)


@given(st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_mcnemar_is_that_of_statsmodels(counts: tuple[int, int]) -> None:
    b, c = counts
    found = mcnemar(b, c)
    exact = b + c < FEWEST_FOR_CHI_SQUARE
    assert found.exact == exact
    if b == c:  # statsmodels lets the correction turn a statistic of 0 into one above it
        assert found.p == 1.0
        return
    expected = reference_mcnemar([[100, b], [c, 7]], exact=exact, correction=True)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)


def test_mcnemar_of_the_textbook() -> None:
    """Agresti 2002, table 10.1, approval ratings: 150 and 86 discordant; with correction (64 - 1)**2 / 236 = 16.82."""
    assert mcnemar(150, 86).p == pytest.approx(4.114562e-05, rel=1e-6)
    assert "chi-square" in mcnemar(150, 86).method
    # Nine coins, one of which falls to the rarer side at most: 2 * (1 + 9) / 2**9.
    assert mcnemar(8, 1).p == pytest.approx(20 / 512)
    assert "exact" in mcnemar(8, 1).method


def test_holm_is_that_of_statsmodels() -> None:
    p_values = np.random.default_rng(0).beta(0.3, 2.0, 66).tolist()
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def _answers(shares: list[float], images: int, seed: int = 0) -> list[np.ndarray]:
    """Return networks with one seed each that classify these shares right, partly the same images."""
    generator = np.random.default_rng(seed)
    hardness = generator.random(images)
    noise = generator.random((len(shares), images))
    return [((0.7 * hardness + 0.3 * noise[i]) < share)[None] for i, share in enumerate(shares)]


def test_the_bootstrap_is_paired_by_image() -> None:
    """The standard error of a paired difference over images is that of the mean of the differences."""
    right = _answers([0.6, 0.65, 0.3], 400)
    found = paired_bootstrap(right, resamples=8000)
    for first, second in ((0, 1), (1, 2)):
        differences = right[first][0].astype(float) - right[second][0]
        expected = differences.std() / math.sqrt(400)
        assert found.error(first, second) == pytest.approx(expected, rel=0.03)
    again = paired_bootstrap(right, resamples=8000)
    assert (again.values == found.values).all()


@pytest.mark.parametrize(("only_first", "only_second"), [(0.01, 0.01), (0.02, 0.0), (0.1, 0.03), (0.3, 0.3)])
def test_the_paired_interval_holds_the_truth_as_often_as_it_says(only_first: float, only_second: float) -> None:
    """Every outcome of 60 images with its probability by scipy: no simulation, and no formula of an interval."""
    images, held = 60, 0.0
    for b in range(31):
        for c in range(31):
            counts = [b, c, images - b - c]
            probability = scipy_stats.multinomial.pmf(
                counts, images, [only_first, only_second, 1 - only_first - only_second]
            )
            found = paired_interval(b, c, images)
            assert found.low is not None
            assert found.high is not None
            held += probability * (found.low <= only_first - only_second <= found.high)
    assert held > 0.945


def test_the_paired_interval_has_a_width_without_a_difference_and_ends_at_one() -> None:
    assert paired_interval(0, 1, 10_000) == pytest.approx((-1e-4, -4.4e-4, 2.4e-4), abs=1e-5)
    low, high = paired_interval(0, 0, 30)[1:]
    assert low == pytest.approx(-high)
    assert 0.05 < high < 0.15
    assert paired_interval(3, 0, 3).high == 1.0
    # Of many images that tell the two apart, that of the normal distribution without additions.
    error = math.sqrt(450 / 2000 - (150 / 2000) ** 2) / math.sqrt(2000)
    found = paired_interval(300, 150, 2000)
    assert found[1:] == pytest.approx([0.075 - 1.96 * error, 0.075 + 1.96 * error], abs=2e-4)


def test_many_images_are_drawn_in_parts_with_the_same_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    right = _answers([0.5, 0.8], 300)
    whole = paired_bootstrap(right, resamples=4000).error(0, 1)
    monkeypatch.setattr("cnnbench.stats._DRAWN_AT_ONCE", 1000)
    assert paired_bootstrap(right, resamples=4000).error(0, 1) == pytest.approx(whole, rel=0.05)


def _trained(generator: np.random.Generator, seeds: int, images: int, accuracy: float, deviation: float) -> np.ndarray:
    """Return the answers of several seeds, whose true accuracies are spread by a standard deviation."""
    accuracies = accuracy + deviation * generator.standard_normal(seeds)
    return generator.random((seeds, images)) < accuracies[:, None]


def test_seeds_add_their_own_variance_to_the_bootstrap() -> None:
    """If seeds differ much, the standard error is that of two independent means of seeds, plus that of the images."""
    generator = np.random.default_rng(1)
    first, second = (_trained(generator, 3, 2000, 0.7, 0.05) for _ in range(2))
    error = paired_bootstrap([first, second], resamples=8000).error(0, 1)
    of_seeds = sum(r.mean(axis=1).var(ddof=1) / 3 for r in (first, second))
    of_images = (first.mean(axis=0) - second.mean(axis=0)).var() / 2000
    assert error**2 == pytest.approx(of_seeds + of_images, rel=0.1)
    found = over_seeds_and_images(first, second, error)
    assert found.value == pytest.approx(first.mean() - second.mean())
    # Welch and Satterthwaite, with the images as a part of infinitely many degrees of freedom.
    parts = [r.mean(axis=1).var(ddof=1) / 3 for r in (first, second)]
    images = (first.mean(axis=0) - second.mean(axis=0)).var(ddof=1) / 2000
    assert found.freedom == pytest.approx((sum(parts) + images) ** 2 / sum(part**2 / 2 for part in parts))


def test_seeds_without_spread_leave_the_images() -> None:
    right = np.array([[True, False, True, True]] * 2)
    other = np.array([[True, False, False, True]] * 2)
    found = over_seeds_and_images(right, other, 0.2)
    assert math.isinf(found.freedom)
    assert found.half_width == pytest.approx(1.96 * 0.2, rel=1e-3)


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_interval_over_seeds_and_images_holds_the_truth_where_percentiles_do_not(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    held, percentiles, runs = 0, 0, 200
    for _ in range(runs):
        first, second = (_trained(generator, seeds, 4000, 0.7, 0.03) for _ in range(2))
        found = paired_bootstrap([first, second], resamples=100)
        held += not over_seeds_and_images(first, second, found.error(0, 1)).interval.excludes(0.0)
        low, high = np.quantile(found.values[:, 0] - found.values[:, 1], (0.025, 0.975))
        percentiles += low <= 0 <= high
    assert held / runs >= 0.93
    assert percentiles / runs <= {2: 0.86, 3: 0.93}[seeds]


# Calibration


def _logits(images: int = 500, classes: int = 6, scale: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return overconfident logits, and true classes that follow the probabilities of a third of them."""
    generator = np.random.default_rng(seed)
    calm = generator.standard_normal((images, classes)) * 1.5
    shares = np.exp(calm) / np.exp(calm).sum(axis=1, keepdims=True)
    true = np.array([generator.choice(classes, p=share) for share in shares])
    return scale * calm, true


def test_the_calibration_error_is_that_of_torchmetrics_and_of_the_definition() -> None:
    logits, true = _logits()
    sure, right = confidences(logits), logits.argmax(1) == true
    metric = MulticlassCalibrationError(num_classes=6, n_bins=15, norm="l1")
    metric.update(torch.from_numpy(logits).softmax(1), torch.from_numpy(true))
    assert calibration_error(sure, right) == pytest.approx(float(metric.compute()), abs=1e-6)
    total = 0.0
    for k in range(15):
        chosen = (sure > k / 15) & (sure <= (k + 1) / 15)
        if chosen.any():
            total += chosen.sum() / len(sure) * abs(right[chosen].mean() - sure[chosen].mean())
    assert calibration_error(sure, right) == pytest.approx(total)


def test_a_bin_holds_its_upper_end() -> None:
    bins = binned(np.array([1 / 15, 0.0667, 1.0, 1.0]), np.array([True, False, True, False]))
    assert bins.images.tolist() == [1, 1, *[0] * 12, 2]
    assert bins.right.tolist() == [1, 0, *[0] * 12, 1]
    assert math.isnan(bins.confidence[5])


def test_the_temperature_undoes_a_scale_and_is_where_the_slope_is_zero() -> None:
    logits, true = _logits(images=4000)
    found = fit_temperature(logits, true)
    assert found == pytest.approx(3.0, rel=0.1)
    # The loss is stationary where the mean logit of the true class is the mean expected logit.
    scaled = logits / found
    shares = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    expected = (shares * logits).sum(axis=1).mean()
    assert logits[np.arange(len(true)), true].mean() == pytest.approx(expected, abs=1e-3)
    right = logits.argmax(1) == true
    assert calibration_error(confidences(logits, found), right) < calibration_error(confidences(logits), right) / 3


def test_the_loss_is_torchs_cross_entropy() -> None:
    logits, true = _logits(images=50)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits) / 2, torch.from_numpy(true))
    assert mean_loss(logits, true, 2.0) == pytest.approx(float(expected))


@pytest.mark.parametrize("margin", [0.2, 5.0, 40.0, 1e4, 1e30])
def test_a_temperature_without_a_minimum_stops_at_its_limit(margin: float) -> None:
    """The loss, log(1 + exp(-margin / temperature)), falls with the temperature, also where it is rounded to 0."""
    true = np.array([0, 1])
    right = margin * np.eye(2)
    assert fit_temperature(right, true) == pytest.approx(1 / LARGEST_TEMPERATURE, rel=0.01)
    # With every image classified wrong, it rises.
    assert fit_temperature(right, 1 - true) == pytest.approx(LARGEST_TEMPERATURE, rel=0.01)


@pytest.mark.parametrize("classes", [1, 10])
def test_equal_logits_of_all_classes_leave_the_temperature_at_one(classes: int) -> None:
    logits = np.repeat(np.array([[0.0], [7.0], [-3.0]]), classes, axis=1)
    true = np.zeros(3, dtype=int)
    assert fit_temperature(logits, true) == 1.0
    assert mean_loss(logits, true) == pytest.approx(math.log(classes))
