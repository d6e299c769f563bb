"""How well the confidence of a network agrees with its accuracy, and the temperature that mends it.

The confidence is the probability that a network gives to the class that it predicts. Of the images with a confidence
of 80 %, a calibrated network classifies 80 % right (Guo et al. 2017, 1706.04599).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

BINS = 15
"""Number of bins of equal width between confidences of 0 and 1, as in Guo et al. 2017."""
LARGEST_TEMPERATURE = 20.0
"""Limit of the temperature that is looked for; the smallest one is its inverse."""


class Bins(NamedTuple):
    """The images of a test set in bins of their confidence.

    Attributes:
        images: Number of images in each bin, (B,).
        right: Number of them that are classified right, (B,).
        confidence: Mean confidence in each bin, (B,); NaN for a bin without images.
    """

    images: np.ndarray
    right: np.ndarray
    confidence: np.ndarray

    @property
    def error(self) -> float:
        """Return the expected calibration error: the mean gap of confidence and accuracy, weighted by images."""
        filled = self.images > 0
        gaps = np.abs(self.right[filled] / self.images[filled] - self.confidence[filled])
        return float((gaps * self.images[filled]).sum() / self.images.sum())


def binned(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Bins:
    """Sort images into bins by their confidence.

    Args:
        confidence: Probability of the predicted class of each image, (N,), above 0.
        right: Whether the image is classified right, (N,).
        bins: Number of bins of equal width; a bin holds its upper end and not its lower one.
    """
    values = np.asarray(confidence, dtype=np.float64)
    places = np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(places, minlength=bins)
    sums = np.bincount(places, weights=values, minlength=bins)
    means = np.full(bins, np.nan)
    np.divide(sums, images, out=means, where=images > 0)
    return Bins(images, np.bincount(places[np.asarray(right, dtype=bool)], minlength=bins), means)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error (ECE) with `BINS` bins, a share from 0 to 1.

    Args:
        confidence: Probability of the predicted class of each image, (N,), above 0.
        right: Whether the image is classified right, (N,).
    """
    return binned(confidence, right).error


def confidences(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the largest class probability of each image, (N,), after dividing the logits, (N, K), by a temperature."""
    scaled = logits.astype(np.float64) / temperature
    return np.exp(scaled.max(axis=1) - special.logsumexp(scaled, axis=1))


def mean_loss(logits: np.ndarray, true: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean negative log likelihood of the true classes, in nats.

    Args:
        logits: Logits, (N, K).
        true: Index of the true class of each image, (N,).
        temperature: Number by which the logits are divided.
    """
    scaled = logits.astype(np.float64) / temperature
    return float((special.logsumexp(scaled, axis=1) - scaled[np.arange(len(true)), true]).mean())


def fit_temperature(logits: np.ndarray, true: np.ndarray) -> float:
    """Return the temperature with the smallest mean negative log likelihood (Guo et al. 2017, section 4.2).

    The loss has a single minimum, since it is convex in the inverse of the temperature. If every image is classified
    right, it falls up to the lower limit, which is the temperature then. If all classes have equal logits, every
    temperature has the same loss, and the temperature is 1.

    Args:
        logits: Logits of images that are neither training nor test images, (N, K).
        true: Index of the true class of each image, (N,).
    """
    largest = logits.max(axis=1)
    if (largest == logits.min(axis=1)).all():
        return 1.0
    # The loss of an image that is classified right by far is rounded to 0 at every temperature, so that the search
    # below would end anywhere.
    if (logits[np.arange(len(true)), true] == largest).all():
        return 1 / LARGEST_TEMPERATURE
    limit = math.log(LARGEST_TEMPERATURE)
    found = optimize.minimize_scalar(
        lambda log: mean_loss(logits, true, math.exp(log)), bounds=(-limit, limit), method="bounded"
    )
    return math.exp(float(found.x))
