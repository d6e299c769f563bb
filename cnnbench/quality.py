"""What a confusion matrix says: accuracy with its interval, and what is mistaken for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cnnbench.stats import wilson_interval

Counts = Sequence[Sequence[int]]


def accuracy(confusion: Counts, split: str = "test") -> dict[str, float]:
    """Accuracy from integer counts, with the 95 % Wilson score interval (Wilson 1927) for test images as drawn.

    The interval is about the test set's size; it does not contain the spread between training seeds.

    Args:
        confusion: Counts, rows are true classes, columns predictions.
        split: The images that were counted; the figures are named after it.
    """
    total = sum(map(sum, confusion))
    correct = sum(row[index] for index, row in enumerate(confusion))
    low, high = wilson_interval(correct, total)
    return {f"{split}_accuracy": correct / total, f"{split}_accuracy_low": low, f"{split}_accuracy_high": high}


class Confusion(NamedTuple):
    """One kind of mistake: true class, predicted class, how many images, and the share of the true class."""

    true: int
    predicted: int
    images: int
    share: float


def most_confused(confusion: Counts, limit: int = 3) -> list[Confusion]:
    """The most frequent mistakes, most frequent first; fewer where there are fewer kinds."""
    mistakes = [
        Confusion(i, j, count, count / sum(row))
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count > 0
    ]
    return sorted(mistakes, key=lambda m: (-m.images, m.true, m.predicted))[:limit]
