"""What the networks of records said of each test image, read from the predictions beside the records."""

from __future__ import annotations

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
