"""Test images on which networks disagree, as small pictures in a file of the run folder.

A report is made from files alone, without the data. So a run with several networks keeps a few test images, those that
its networks answer most differently. The page of the report shows them beside the comparison of two networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnbench.arrays import read_npz
from cnnbench.errors import UserError
from cnnbench.files import replacing, safe_name

MOST_IMAGES = 160
"""Largest number of images that a run keeps of a data set."""
LARGEST_SIDE = 64
"""Largest height and width of a kept image in pixels; larger images are made smaller."""
FOLDER = "images"
"""Folder of these files in a run folder."""
_ARRAYS = ("images", "indices", "true")


class Disputed(NamedTuple):
    """Test images on which networks disagree.

    Attributes:
        images: Pictures, (N, H, W, C) uint8, C being 1 or 3.
        indices: Number of each image in the test set, (N,).
        true: Index of the true class of each image, (N,).
    """

    images: np.ndarray
    indices: np.ndarray
    true: np.ndarray


def most_disputed(answers: Sequence[np.ndarray], most: int = MOST_IMAGES) -> np.ndarray:
    """Return the numbers of the images on which networks disagree most, in the order of the test set.

    The measure is the number of networks that do not give the most frequent answer. Of equally disputed images the
    first ones of the test set are taken.

    Args:
        answers: Predicted class of each image, (N,), by network; all of the same images.
        most: Largest number of images.
    """
    table = np.stack(answers)  # (networks, images)
    classes = int(table.max(initial=0)) + 1
    votes = np.zeros((table.shape[1], classes), dtype=np.int32)
    for row in table:
        votes[np.arange(table.shape[1]), row] += 1
    against = len(table) - votes.max(axis=1)
    # A stable sort keeps equally disputed images in the order of the test set.
    order = np.argsort(-against, kind="stable")[:most]
    return np.sort(order[against[order] > 0])


def disputed_file(folder: Path, data: str) -> Path:
    """Return the path of the file with the disputed images of a data set.

    Args:
        folder: Run folder.
        data: Name of the data set.
    """
    return folder / FOLDER / f"{safe_name(data)}.npz"


def write_disputed(path: Path, disputed: Disputed) -> None:
    """Write disputed images; an interrupted write leaves no partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez_compressed(
            file,
            images=disputed.images.astype(np.uint8),
            indices=disputed.indices.astype(np.int64),
            true=disputed.true.astype(np.int64),
        )


def read_disputed(path: Path) -> Disputed:
    """Read disputed images.

    Raises:
        UserError: The file is damaged, or has other content.
    """
    largest = MOST_IMAGES * LARGEST_SIDE**2 * 3
    images, indices, true = read_npz(path, "test images", _ARRAYS, largest, "delete the file").values()
    is_right = (
        images.ndim == 4
        and images.dtype == np.uint8
        and images.shape[3] in (1, 3)
        and min(images.shape) > 0
        and max(images.shape[1:3]) <= LARGEST_SIDE
        and indices.shape == true.shape == (len(images),)
        and indices.dtype == true.dtype == np.int64
        and bool((indices >= 0).all() and (true >= 0).all())
    )
    if not is_right:
        raise UserError(f"test images '{path}' are not small pictures with their numbers and classes; delete the file")
    return Disputed(images, indices, true)
