"""A base class for data sets whose mean and deviation are measured, and whose test set may have to be drawn."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cnnbench import interrupts
from cnnbench.console import note
from cnnbench.data.batches import Augmentation, Split, check_whole, in_pieces
from cnnbench.data.module import CROP_SCALE, AnySplit, ImageDataModule, total_memory
from cnnbench.data.streaming import FileSplit, ImageFiles, StreamedBatches, worker_count
from cnnbench.errors import UserError
from cnnbench.files import reason

TEST_FRACTION = 0.2
"""Default of the share of each class that is drawn as the test set."""
STREAM_SHARE = 0.25
"""Share of the machine's memory above which images stay on the disk; a training takes twice the size of its images."""
MOST_PROCESSES = 1_000
"""Largest number of workers."""
STATISTICS_IMAGES = 5_000
"""Largest number of training images from which mean and deviation are measured while images stay on the disk."""
LARGEST_SEARCH = 2**30
"""Largest number of bytes of files that are read to find copies of test images among the training images."""
_PIECE = 100
"""Number of images that are decoded at once for the statistics."""
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel for pixels in [0, 1]."""


class MeasuredImages(ImageDataModule):
    """Data set whose mean and standard deviation are those of its training images, unless they are given.

    Images in files that would take more than a quarter of the machine's memory stay on the disk, and worker processes
    decode them while the network trains. A training image is then a random part of its file (``crop_scale``) in place
    of a shifted square (``padding``), as torchvision's ``RandomResizedCrop``. Mean and deviation are then those of
    5,000 training images, drawn with ``split_seed``.

    A subclass sets ``in_channels``, ``class_names`` and ``num_classes`` in its constructor, and reads its splits in
    `read`.

    Args:
        test_fraction: Share of each class that is the test set, if the data has no test set of its own.
        full_epochs: Number of epochs that count as a full training.
        mean: Mean of each channel for pixels in [0, 1]; unset, that of the training images.
        std: Standard deviation of each channel; unset, that of the training images.
        stream: Whether the images stay on the disk; unset, if they take more than a quarter of the memory.
        workers: Number of processes that decode images on the disk, for each process that trains; unset, as many as
            there are processors for it, at most 16.
        crop_scale: Smallest and largest share of the area of an image on the disk that is its random part.
        kwargs: Arguments of `ImageDataModule`.

    Raises:
        UserError: An argument is out of its range.
    """

    default_augment = True
    settled: ClassVar[tuple[str, ...]] = ("mean", "std", "stream")

    def __init__(
        self,
        test_fraction: float = TEST_FRACTION,
        full_epochs: int = 100,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        stream: bool | None = None,
        workers: int | None = None,
        crop_scale: tuple[float, float] = CROP_SCALE,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if stream is not None and not isinstance(stream, bool):
            raise UserError(f"stream {stream!r} is not true or false; leave it out to decide by the memory")
        if workers is not None:
            check_whole("workers", workers, 0, MOST_PROCESSES, 4)
        self.workers = workers
        self.crop_scale = _checked_scale(crop_scale)
        if not isinstance(test_fraction, int | float) or not 0 < test_fraction < 1:
            raise UserError(f"test_fraction {test_fraction!r} is not a share between 0 and 1, such as 0.2")
        check_whole("full_epochs", full_epochs, 1, 1_000_000, 100)
        self.test_fraction = test_fraction
        self.full_epochs = full_epochs

    @abstractmethod
    def read(self) -> dict[str, AnySplit]:
        """Return the splits ``train``, ``test`` and perhaps ``val``; or ``all``, of which a test set is drawn."""

    def load(self) -> tuple[AnySplit, ...]:
        splits = self.read()
        self._check_options(any(isinstance(split, FileSplit) for split in splits.values()))
        if "all" in splits:
            splits = self._divided(splits["all"])
        elif self.test_fraction != TEST_FRACTION:
            raise UserError(
                f"test_fraction {self.test_fraction} has no effect, since {self.title} has a test set of its own; "
                "leave it out"
            )
        given = checked_statistics(self.hparams.get("mean"), self.hparams.get("std"), self.in_channels)
        self.mean, self.std = given or self._measured(splits["train"])
        # A checkpoint keeps them, so that a test on other images, or a training that goes on, normalises as before.
        self.hparams.update({"mean": self.mean, "std": self.std})
        _warn_of_leaks(self.title, splits["train"], splits["test"])
        return tuple(splits[name] for name in ("train", "test", "val") if name in splits)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"mean": list(self.mean), "std": list(self.std)}

    def streams(self, images: int, needed: int) -> bool:
        """Return whether images in files stay on the disk; a note says so if the memory decides it.

        Args:
            images: Number of images.
            needed: Memory that they would take, in bytes.
        """
        stream = self.hparams["stream"]
        if stream is None:
            stream = needed > STREAM_SHARE * (total_memory() or math.inf)
            if stream:
                note(
                    f"{self.title}: {images:,} images of {self.image_size} pixels would take "
                    f"{needed / 2**30:,.1f} GiB, more than a quarter of the memory, so they stay on the disk and are "
                    "decoded during the training"
                )
        # Before any image is read; `load` checks it too, for data that never asks.
        self._check_options(stream)
        return bool(stream)

    def _check_options(self, streamed: bool) -> None:
        """Raise UserError for an option that has no effect on images on the disk, or on images in memory."""
        if self.hparams["stream"] and not streamed:
            raise UserError(
                f"stream true has no effect on {self.title}, which is read into memory as a whole; leave it out"
            )
        # A checkpoint keeps the choice, so that a training goes on in the same way on a machine with more memory.
        self.hparams.update({"stream": streamed})
        default = Augmentation()
        for name in ("padding", "padding_mode"):
            value = getattr(self.augmentation or default, name)
            if streamed and value != getattr(default, name):
                raise UserError(
                    f"{name} {value} has no effect on images that stay on the disk, which are cropped by crop_scale; "
                    "leave it out, or set stream to false"
                )
        if streamed and not self.augment and self.crop_scale != CROP_SCALE:
            raise UserError(f"crop_scale {list(self.crop_scale)} needs augment: true; {self.title} is without")
        if not streamed and self.crop_scale != CROP_SCALE:
            raise UserError(
                f"crop_scale {list(self.crop_scale)} has no effect on images in memory, which are shifted by padding; "
                "leave it out, or set stream to true"
            )

    def _measured(self, split: AnySplit) -> Statistics:
        """Return mean and deviation of training images."""
        if not isinstance(split, FileSplit):
            return channel_statistics(in_pieces(split.images), self.in_channels)
        count = len(split.labels)
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(self.split_seed))[:STATISTICS_IMAGES]
        note(f"{self.title}: measuring mean and deviation of {len(chosen):,} of {count:,} training images")
        batches = StreamedBatches(split.take(chosen), _PIECE, False, torch.device("cpu"), worker_count(self.workers))
        # Without mean and deviation, the batches have pixels from 0 to 255.
        return channel_statistics((images.to(torch.uint8) for images, _ in batches), self.in_channels)

    def _divided(self, split: AnySplit) -> dict[str, AnySplit]:
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
        return {"train": split.take(~chosen), "test": split.take(chosen)}


def _checked_scale(scale: Any) -> tuple[float, float]:
    """Return the smallest and largest share of an image's area, or raise UserError for anything else."""
    low, high = scale if isinstance(scale, list | tuple) and len(scale) == 2 else (None, None)
    numbers = [v for v in (low, high) if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] <= 1:
        raise UserError(f"crop_scale {scale!r} is not two shares of an image's area, such as [0.08, 1.0]")
    return numbers[0], numbers[1]


def channel_statistics(pieces: Iterable[Tensor], channels: int) -> Statistics:
    """Return mean and standard deviation of each channel over all pixels, rounded to four decimals.

    Args:
        pieces: Images, each piece (n, C, H, W) uint8.
        channels: Number of channels C.
    """
    # How often each of the 256 values of a byte occurs says as much as all pixels, and needs no sum of many numbers.
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for piece in pieces:
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


def _warn_of_leaks(title: str, train: AnySplit, test: AnySplit) -> None:
    """Print a note if images of the test set are in the training set too: pixel by pixel, or file by file."""
    if isinstance(train, FileSplit) and isinstance(test, FileSplit):
        shared, how = _shared_files(title, train.images, test.images), "byte by byte"
    elif isinstance(train, Split) and isinstance(test, Split):
        shared, how = _shared_images(train.images, test.images), "pixel by pixel"
    else:
        raise TypeError("training and test images are in memory, or both in files")
    if shared:
        note(
            f"{title}: {shared:,} of {len(test.labels):,} test images are among the training images too, {how}, so the "
            "test accuracy is too high; take the copies away"
        )


def _shared_files(title: str, train: ImageFiles, test: ImageFiles) -> int:
    """Return how many test files are copies of training files; 0, with a note, if finding out would read too much."""
    # Only files of one size can be copies of each other.
    sizes = np.intersect1d(train.sizes, test.sizes)
    alike = [np.flatnonzero(np.isin(files.sizes, sizes)).tolist() for files in (train, test)]
    needed = sum(int(files.sizes[which].sum()) for files, which in zip((train, test), alike, strict=True))
    if needed > LARGEST_SEARCH:
        note(
            f"{title}: copies of test images among the training images are not looked for, since that would read "
            f"{needed / 2**30:,.1f} GiB"
        )
        return 0
    seen = {_file_digest(train.path(index)) for index in alike[0]}
    return sum(_file_digest(test.path(index)) in seen for index in alike[1])


def _file_digest(path: Path) -> bytes:
    interrupts.check()
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except OSError as error:
        raise UserError(f"image '{path}' cannot be read: {reason(error)}; put a whole copy of it there") from error


def _shared_images(train: Tensor, test: Tensor) -> int:
    """Return how many test images are training images too."""
    seen = {_digest(image) for image in train}
    return sum(_digest(image) in seen for image in test)


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest()
