"""A base class for data sets whose mean and deviation are measured, and whose test set may have to be drawn."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cnnbench.console import note
from cnnbench.data.batches import Split, check_whole, in_pieces
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel for pixels in [0, 1]."""


class MeasuredImages(ImageDataModule):
    """Data set whose mean and standard deviation are those of its training images, unless they are given.

    A subclass sets ``in_channels``, ``class_names`` and ``num_classes`` in its constructor, and reads its splits in
    `read`.

    Args:
        test_fraction: Share of each class that is the test set, if the data has no test set of its own.
        full_epochs: Number of epochs that count as a full training.
        mean: Mean of each channel for pixels in [0, 1]; unset, that of the training images.
        std: Standard deviation of each channel; unset, that of the training images.
        kwargs: Arguments of `ImageDataModule`.

    Raises:
        UserError: An argument is out of its range.
    """

    default_augment = True

    def __init__(
        self,
        test_fraction: float = 0.2,
        full_epochs: int = 100,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(test_fraction, int | float) or not 0 < test_fraction < 1:
            raise UserError(f"test_fraction {test_fraction!r} is not a share between 0 and 1, such as 0.2")
        check_whole("full_epochs", full_epochs, 1, 1_000_000, 100)
        self.test_fraction = test_fraction
        self.full_epochs = full_epochs
        self._given = mean, std

    @abstractmethod
    def read(self) -> dict[str, Split]:
        """Return the splits ``train``, ``test`` and perhaps ``val``; or ``all``, of which a test set is drawn."""

    def load(self) -> tuple[Split, ...]:
        splits = self.read()
        if "all" in splits:
            splits = self._divided(splits["all"])
        given = checked_statistics(*self._given, self.in_channels)
        self.mean, self.std = given or channel_statistics(splits["train"].images)
        # A checkpoint keeps them, so that a test on other images normalises as the training did.
        self.hparams.update({"mean": self.mean, "std": self.std})
        _warn_of_leaks(self.title, splits["train"], splits["test"])
        return tuple(splits[name] for name in ("train", "test", "val") if name in splits)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"mean": list(self.mean), "std": list(self.std)}

    def _divided(self, split: Split) -> dict[str, Split]:
        """Return training and test images of data without splits; the test images of each class are drawn with a seed.

        Raises:
            UserError: A class has too few images for both.
        """
        generator = torch.Generator().manual_seed(self.split_seed)
        chosen = torch.zeros(len(split.labels), dtype=torch.bool)
        for label, name in enumerate(self.class_names):
            of_class = (split.labels == label).nonzero().squeeze(1)
            count = round(self.test_fraction * len(of_class))
            if not 0 < count < len(of_class):
                raise UserError(
                    f"test_fraction {self.test_fraction} of the {len(of_class)} images of class '{name}' leaves none "
                    f"for the {'test' if count == 0 else 'training'}; add images, or choose another share"
                )
            order = torch.randperm(len(of_class), generator=generator)
            chosen[of_class[order[:count]]] = True
        return {
            "train": Split(split.images[~chosen], split.labels[~chosen]),
            "test": Split(split.images[chosen], split.labels[chosen]),
        }


def square(image: Image.Image, channels: int, side: int) -> np.ndarray:
    """Return the square in the middle of an image as an array, (channels, side, side) uint8.

    The shorter side of the image is resized to ``side`` by an antialiased bilinear filter.

    Args:
        image: Image of any size.
        channels: 3 for colour, or 1 for grey.
        side: Height and width of the result in pixels.
    """
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    # (H, W, C) becomes (C, H, W), since torch has the channels first.
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def channel_statistics(images: Tensor) -> Statistics:
    """Return mean and standard deviation of each channel over all pixels, rounded to four decimals.

    Args:
        images: Images, (N, C, H, W) uint8.
    """
    channels = images.shape[1]
    # How often each of the 256 values of a byte occurs says as much as all pixels, and needs no sum of many numbers.
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for piece in in_pieces(images):
        for channel in range(channels):
            counts[channel] += torch.bincount(piece[:, channel].reshape(-1), minlength=256)
    shares = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64)
    mean = shares @ values
    # A channel of one value has no deviation to divide by.
    deviation = (shares @ values**2 - mean**2).clamp(min=1.0).sqrt()
    return _rounded(mean / 255), _rounded(deviation / 255)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values.tolist())


def checked_statistics(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> Statistics | None:
    """Return mean and deviation that the user gave, or None if there are none.

    Raises:
        UserError: One of them is missing, or is not a number from 0 to 1 for each channel.
    """
    if mean is None and std is None:
        return None
    for name, values, low in (("mean", mean, 0.0), ("std", std, 1e-6)):
        numbers = [v for v in values or () if isinstance(v, int | float) and low <= v <= 1]
        if len(numbers) != channels or len(values or ()) != channels:
            raise UserError(
                f"{name} {values} is not a number from 0 to 1 for each of {channels} channels; give mean and std, or "
                "leave out both for those of the training images"
            )
    return tuple(map(float, mean or ())), tuple(map(float, std or ()))


def _warn_of_leaks(title: str, train: Split, test: Split) -> None:
    """Print a note if images of the test set are in the training set too, pixel by pixel."""
    seen = {_digest(image) for image in train.images}
    shared = sum(_digest(image) in seen for image in test.images)
    if shared:
        note(
            f"{title}: {shared:,} of {len(test.labels):,} test images are among the training images too, pixel by "
            "pixel, so the test accuracy is too high; take the copies away"
        )


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest()
