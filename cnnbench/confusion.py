"""Figures from a confusion matrix: the accuracy with its interval, and the most frequent mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cnnbench.stats import wilson_interval

Counts = Sequence[Sequence[int]]
"""Confusion matrix of image counts, (K, K); rows are true classes, columns are predicted classes."""


def accuracy(confusion: Counts, split: str = "test") -> dict[str, float]:
    """Return the accuracy with its 95 % Wilson score interval (Wilson 1927), computed from image counts.

    The interval treats the test images as a random sample, so its width depends on the size of the test set. It does
    not include the spread between training seeds.

    Args:
        confusion: Confusion matrix, (K, K); rows are true classes, columns are predicted classes.
        split: Name of the split that was counted; the keys of the figures begin with it.

    Returns:
        The figures ``<split>_accuracy``, ``<split>_accuracy_low`` and ``<split>_accuracy_high``, as shares.
    """
    total = sum(map(sum, confusion))
    # The diagonal holds the images whose predicted class is the true one.
    correct = sum(row[index] for index, row in enumerate(confusion))
    low, high = wilson_interval(correct, total)
    return {f"{split}_accuracy": correct / total, f"{split}_accuracy_low": low, f"{split}_accuracy_high": high}


class Confusion(NamedTuple):
    """One kind of mistake.

    Attributes:
        true: Index of the true class.
        predicted: Index of the predicted class.
        images: Number of images with this mistake.
        share: Share of the images of the true class.
    """

    true: int
    predicted: int
    images: int
    share: float


def most_confused(confusion: Counts, limit: int = 3) -> list[Confusion]:
    """Return the most frequent kinds of mistakes, at most `limit` of them, in falling order of frequency."""
    mistakes = [
        # A count above 0 makes the sum of its row positive, so this never divides by 0.
        Confusion(i, j, count, count / sum(row))
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count > 0
    ]
    # Mistakes of equal frequency come in the order of their classes.
    return sorted(mistakes, key=lambda m: (-m.images, m.true, m.predicted))[:limit]
