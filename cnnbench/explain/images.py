"""The image that a tool looks at, and training images.

An image exists in two forms: normalised, as the network sees it in evaluation, and as pixels from 0 to 1, as it is
drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cnnbench.data.batches import TensorBatches
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError
from cnnbench.explain.networks import Subject, image_for, normalised, read_photo

BATCH = 100
"""Number of training images per batch."""


class Shown(NamedTuple):
    """Image that a tool looks at.

    Attributes:
        x: Normalised image, (1, C, H, W).
        pixels: Image to draw, with values from 0 to 1, (H, W) or (H, W, 3).
        title: Origin of the image, such as "training image 7".
        label: Index of the image's class; None if it is not known.
    """

    x: Tensor
    pixels: np.ndarray
    title: str
    label: int | None


def training_images(data: ImageDataModule, indices: Sequence[int] | range) -> tuple[Tensor, Tensor]:
    """Return images of the training split, normalised as in evaluation, (N, C, H, W), and their labels, (N,).

    Args:
        data: Data set; it is prepared and set up here.
        indices: Indices of the images in the order of the split.

    Raises:
        UserError: The data is missing, or an index is too large.
    """
    data.prepare_data()
    data.setup()
    count = data.describe()["train_images"]
    if max(indices) >= count:
        raise UserError(f"index {max(indices)}: the training split of {data.label} has images 0 to {count - 1}")
    chosen = data.stored("train", torch.tensor(list(indices)))
    batches = TensorBatches(chosen, BATCH, False, data.mean, data.std, data.image_size)
    # Loaders yield tensors with the channels last in memory; `contiguous` copies them into torch's default order.
    return torch.cat([x.contiguous() for x, _ in batches]), chosen.labels


def pixels_of(x: Tensor, data: ImageDataModule | None) -> np.ndarray:
    """Return a normalised image, (C, H, W), as pixels from 0 to 1, (H, W) or (H, W, 3).

    Args:
        x: Normalised image.
        data: Data set whose mean and standard deviation normalised the image; None for 0.5 and 0.5.
    """
    # Normalisation is linear, so the values that 0 and 1 are mapped to are enough to invert it.
    zero, one = (normalised(torch.full((1, len(x), 1, 1), value), data)[0] for value in (0.0, 1.0))
    # The clamp removes rounding errors. Matplotlib takes the channels last, (H, W, 3).
    image = ((x - zero) / (one - zero)).clamp(0, 1).permute(1, 2, 0).numpy()
    return image[..., 0] if image.shape[2] == 1 else image


def find_image(image: Path | None, index: int | None, subject: Subject) -> Shown:
    """Return the image to look at: a file, a training image, or, without a data set, the photo of matplotlib.

    Args:
        image: Image file; None for a training image or the photo.
        index: Index of a training image in the order of the split; None for the first.
        subject: Network to look at, and its data.

    Raises:
        UserError: Both `image` and `index` are set, `index` has no data set, or the image cannot be read.
    """
    data = subject.data
    if image is not None and index is not None:
        raise UserError("give --image or --index, not both")
    if index is not None and data is None:
        raise UserError(f"index {index} needs a data set; name one with --data, or give --image FILE")
    if image is None and data is not None:
        number = index or 0
        x, labels = training_images(data, [number])
        label = int(labels[0])
        # With a caveat, it is not known whether the network was trained on this image.
        title = f"image {number} of the training set" if subject.caveat else f"training image {number}"
        return Shown(x, pixels_of(x[0], data), title, label)
    photo = image_for(subject.image_shape, read_photo(image))
    x = normalised(photo, data)
    return Shown(x, pixels_of(x[0], data), image.name if image else "photo", None)
