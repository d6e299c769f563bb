"""Figures from a confusion matrix: the accuracy with its interval, those of each class, the most frequent mistakes."""

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


class ClassFigures(NamedTuple):
    """Figures of one class.

    Attributes:
        images: Number of images of the class, summed over all training runs.
        recall: Share of the images of the class that are classified correctly.
        low: Lower end of the 95 % interval of the recall.
        high: Upper end of that interval.
        precision: Share of the images predicted as the class that belong to it; None if no image is predicted as it.
        f1: Harmonic mean of precision and recall; 0 if no image of the class is classified correctly.
    """

    images: int
    recall: float
    low: float
    high: float
    precision: float | None
    f1: float


def class_figures(counts: Counts, runs: int = 1) -> list[ClassFigures]:
    """Compute precision, recall and F1 of every class.

    A class without images gets a recall of 0 with the interval from 0 to 1.

    Args:
        counts: Confusion matrix, summed over all training runs; rows are true classes, columns predicted ones.
        runs: Number of training runs; all of them were tested on the same images.
    """
    figures = []
    for index, row in enumerate(counts):
        hits, images = row[index], sum(row)
        predicted = sum(other[index] for other in counts)  # the sum of the column
        # Without an image of the class, its recall could be anything.
        recall, low, high = 0.0, 0.0, 1.0
        if images:
            recall = hits / images
            # Further runs do not add images, so the interval uses the mean counts per run.
            low, high = wilson_interval(hits / runs, images / runs)
        # Without any image that is predicted as the class, its precision is not defined.
        precision: float | None = None
        if predicted:
            precision = hits / predicted
        # The harmonic mean of hits / images and hits / predicted, in a form that is defined without hits too.
        f1 = 0.0
        if images or predicted:
            f1 = 2 * hits / (images + predicted)
        figures.append(ClassFigures(images, recall, low, high, precision, f1))
    return figures


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
