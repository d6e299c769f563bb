"""Predicted classes of single test images, in a file beside a record.

A record has the numbers of test images by class. The file has the class of every image, so that two networks can be
compared image by image, and their mistakes can be shown. It is a NumPy archive (``.npz``) with the arrays ``true`` and
``predicted``, which ``numpy.load`` reads.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnbench.errors import UserError
from cnnbench.files import check_regular, reason, replacing

LARGEST = 64 * 2**20
"""Largest size of an array in bytes; the test set of ImageNet takes 0.2 MB."""
_PARTS = ("true", "predicted")


class Predictions(NamedTuple):
    """Classes of the images of a test set, in the order of the data.

    Attributes:
        true: Index of the true class of each image, (N,).
        predicted: Index of the predicted class of each image, (N,).
    """

    true: np.ndarray
    predicted: np.ndarray


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
    """Write the predicted classes of a test set; an interrupted write leaves no partial file.

    Args:
        path: Path of the file, with the suffix ``.npz``.
        predictions: Classes of the images.
        classes: Number of classes of the data set.
    """
    # One byte per image is enough for up to 256 classes.
    kind = np.uint8 if classes <= 256 else np.uint32
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez_compressed(file, true=predictions.true.astype(kind), predicted=predictions.predicted.astype(kind))


def read_predictions(path: Path, confusion: Sequence[Sequence[int]]) -> Predictions:
    """Read the predicted classes that belong to a record, and check that they count up to its confusion matrix.

    Args:
        path: Path of the file.
        confusion: Confusion matrix of the record, (K, K); rows are true classes.

    Raises:
        UserError: The file is damaged, or belongs to another record.
    """
    where = f"predictions '{path}'"
    check_regular(path, "predictions")
    try:
        arrays = _read_arrays(path.read_bytes())
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{where} cannot be read: {reason(error)}; test the network again") from error
    true, predicted = arrays
    classes = len(confusion)
    if not _are_classes(true, classes) or not _are_classes(predicted, classes) or len(true) != len(predicted):
        raise UserError(f"{where} are not the classes of images, 0 to {classes - 1}; test the network again")
    # Each pair of a true and a predicted class has one index into the flattened matrix.
    pairs = true.astype(np.int64) * classes + predicted
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    if counts.tolist() != [list(row) for row in confusion]:
        raise UserError(f"{where} do not count up to the confusion matrix of the record; test the network again")
    return Predictions(true, predicted)


def _read_arrays(content: bytes) -> list[np.ndarray]:
    """Return the two arrays of an archive.

    Raises:
        ValueError: The archive has other parts, or a part that is too large.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = {part.filename: part.file_size for part in archive.infolist()}
    if sorted(sizes) != sorted(f"{name}.npy" for name in _PARTS):
        raise ValueError(f"it should have the arrays {' and '.join(_PARTS)}")
    # A small compressed part may expand to far more than the memory of the machine.
    if max(sizes.values()) > LARGEST:
        raise ValueError(f"an array of it has more than {LARGEST:,} bytes")
    # Python objects in the arrays, which could run code, are refused.
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return [stored[name] for name in _PARTS]


def _are_classes(values: np.ndarray, classes: int) -> bool:
    """Return whether an array is a list of class indices."""
    if values.ndim != 1 or values.dtype.kind != "u":
        return False
    return len(values) == 0 or int(values.max()) < classes
