"""Predicted classes of single test images, in a file beside a record.

A record has the numbers of test images by class. The file has the class of every image, so that two networks can be
compared image by image, and their mistakes can be shown. It is a NumPy archive (``.npz``) with the arrays of
`Predictions`, which ``numpy.load`` reads. Files from before 2026-12-01 have ``true`` and ``predicted`` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnbench.arrays import read_npz
from cnnbench.errors import UserError
from cnnbench.files import replacing

LARGEST = 64 * 2**20
"""Largest size of an array in bytes; the classes of ImageNet's test images take 0.2 MB."""
MOST_CLASSES = 200
"""Largest number of classes for which the logits are kept; those of 10,000 images of 200 classes take 4 MB."""
LOWEST_LOGIT = -65_504.0
"""Lowest number of float16, in which logits are stored; lower ones, whose probability is 0, are raised to it."""
_CLASSES = ("true", "predicted")
_SCORES = ("confidence", "logits")
_ROUNDED = 0.01
"""Largest difference between a stored confidence and that of the logits, which are rounded to float16."""


class Predictions(NamedTuple):
    """What a network says of the images of a test set, in the order of the data.

    Attributes:
        true: Index of the true class of each image, (N,).
        predicted: Index of the predicted class of each image, (N,).
        confidence: Probability that the network gives to the predicted class, (N,) float32. None in older files, and if
            the outputs of the network are not finite.
        logits: Logits minus that of the predicted class, (N, K) float16, so that the largest is 0 and the probabilities
            are their softmax. None where there is no confidence, and for more than `MOST_CLASSES` classes.
    """

    true: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray | None = None
    logits: np.ndarray | None = None

    @property
    def right(self) -> np.ndarray:
        """Return whether each image is classified right, (N,)."""
        return self.true == self.predicted


class Examples(NamedTuple):
    """Pictures that show what a trained network does wrong, and what it looks for.

    Attributes:
        images: Test images that it mistakes, (N, H, W, C), uint8.
        indices: Number of each image in the test set.
        true: Name of the true class of each image.
        predicted: Name of the class that the network predicts.
        filters: Weights of the first convolution, (F, C, kH, kW); None if the network has none.
    """

    images: np.ndarray
    indices: Sequence[int]
    true: Sequence[str]
    predicted: Sequence[str]
    filters: np.ndarray | None


def write_predictions(path: Path, predictions: Predictions, classes: int) -> None:
    """Write what a network says of a test set; an interrupted write leaves no partial file.

    Args:
        path: Path of the file, with the suffix ``.npz``.
        predictions: Classes of the images, with confidence and logits if they are known.
        classes: Number of classes of the data set.
    """
    # One byte per image is enough for up to 256 classes.
    kind = np.uint8 if classes <= 256 else np.uint32
    arrays: dict[str, Any] = {"true": predictions.true.astype(kind), "predicted": predictions.predicted.astype(kind)}
    if predictions.confidence is not None:
        arrays["confidence"] = predictions.confidence.astype(np.float32)
    if predictions.logits is not None and predictions.logits.nbytes <= LARGEST:
        arrays["logits"] = predictions.logits.astype(np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def read_predictions(path: Path, confusion: Sequence[Sequence[int]], scores: bool = True) -> Predictions:
    """Read what a network says of a test set, and check that it counts up to the confusion matrix of its record.

    Args:
        path: Path of the file.
        confusion: Confusion matrix of the record, (K, K); rows are true classes.
        scores: Whether to read confidence and logits too.

    Raises:
        UserError: The file is damaged, belongs to another record, or contradicts itself.
    """
    where = f"predictions '{path}'"
    mend = "test the network again"
    arrays = read_npz(path, "predictions", _CLASSES, LARGEST, mend, optional=_SCORES)
    found = Predictions(**{name: array for name, array in arrays.items() if scores or name in _CLASSES})
    true, predicted = found.true, found.predicted
    classes = len(confusion)
    if not _are_classes(true, classes) or not _are_classes(predicted, classes) or len(true) != len(predicted):
        raise UserError(f"{where} are not the classes of images, 0 to {classes - 1}; {mend}")
    # Each pair of a true and a predicted class has one index into the flattened matrix.
    pairs = true.astype(np.int64) * classes + predicted
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    if counts.tolist() != [list(row) for row in confusion]:
        raise UserError(f"{where} do not count up to the confusion matrix of the record; {mend}")
    wrong = _wrong_scores(found, classes)
    if wrong:
        raise UserError(f"{where}: {wrong}; {mend}")
    return found


def _are_classes(values: np.ndarray, classes: int) -> bool:
    """Return whether an array is a list of class indices."""
    if values.ndim != 1 or values.dtype.kind != "u":
        return False
    return len(values) == 0 or int(values.max()) < classes


def _wrong_scores(found: Predictions, classes: int) -> str:
    """Return what is wrong with the confidence and the logits of images; empty if nothing is, or if there are none."""
    images, confidence, logits = len(found.true), found.confidence, found.logits
    if confidence is None:
        return "" if logits is None else "there are logits without a confidence"
    if confidence.shape != (images,) or confidence.dtype != np.float32:
        return f"confidence is {confidence.shape} {confidence.dtype}, not ({images},) float32"
    # Every comparison with NaN is false. The largest of K probabilities is at least 1 / K.
    if not ((confidence >= 1 / classes - 1e-4) & (confidence <= 1 + 1e-4)).all():
        return f"confidence has values that are not the largest of {classes} probabilities"
    if logits is None:
        return ""
    if logits.shape != (images, classes) or logits.dtype != np.float16:
        return f"logits are {logits.shape} {logits.dtype}, not ({images}, {classes}) float16"
    if not ((logits <= 0) & np.isfinite(logits)).all() or logits[np.arange(images), found.predicted].any():
        return "the largest logit of an image is not 0, or not that of its predicted class"
    again = 1 / np.exp(logits.astype(np.float32)).sum(axis=1)
    if not (np.abs(again - confidence) <= _ROUNDED).all():
        return "confidence and logits contradict each other"
    return ""
