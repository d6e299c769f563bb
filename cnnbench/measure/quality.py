"""What a confusion matrix says: accuracy with its interval, and what is mistaken for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

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


def wilson_interval(successes: float, total: float, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a proportion, by default at 95 %."""
    p = successes / total
    centre = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At the ends the interval reaches the proportion exactly, which rounding would miss.
    low = 0.0 if successes <= 0 else (centre - half) / scale
    high = 1.0 if successes >= total else (centre + half) / scale
    return low, high


def difference_interval(first: int, second: int, of_first: int, of_second: int) -> tuple[float, float]:
    """95 % interval of the first share less the second, of independent counts (Newcombe 1998, Statistics in Medicine
    17, 873, method 10): from the Wilson interval of each, so that it is right near 0 and 1 too.

    Args:
        first: Right in the first.
        second: Right in the second.
        of_first: Of so many.
        of_second: Of so many.
    """
    shares = first / of_first, second / of_second
    (low, high), (other_low, other_high) = wilson_interval(first, of_first), wilson_interval(second, of_second)
    change = shares[0] - shares[1]
    return (
        change - math.hypot(shares[0] - low, other_high - shares[1]),
        change + math.hypot(high - shares[0], shares[1] - other_low),
    )


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
