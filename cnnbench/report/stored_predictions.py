"""What the networks of records said of each test image, read from the predictions beside the records."""

from __future__ import annotations

import numpy as np

from cnnbench.errors import UserError
from cnnbench.predictions import Predictions, read_predictions
from cnnbench.record import Record, predictions_beside


def predictions_of(record: Record, scores: bool = False) -> Predictions | None:
    """Return the predictions beside a record; None if there are none.

    Args:
        record: Record of a test.
        scores: Whether to read confidence and logits too.

    Raises:
        UserError: The file cannot be used.
    """
    path = predictions_beside(record)
    if path is None or record.confusion_matrix is None:
        return None
    return read_predictions(path, record.confusion_matrix, scores)


def usable_predictions(record: Record, scores: bool = False) -> Predictions | None:
    """Return the predictions beside a record; None if there are none that can be used. See `predictions_of`."""
    try:
        return predictions_of(record, scores)
    except UserError:
        return None


def right_with_one_only(first: Record, second: Record) -> tuple[int, int] | None:
    """Return how many images only the first network classifies right, and how many only the second.

    Return None if the predictions of a network are not known, or are not of the same images.
    """
    if first.data.get("fingerprint") != second.data.get("fingerprint"):
        return None
    a, b = usable_predictions(first), usable_predictions(second)
    if a is None or b is None or not np.array_equal(a.true, b.true):
        return None
    return int((a.right & ~b.right).sum()), int((b.right & ~a.right).sum())
