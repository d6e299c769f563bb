"""Image folders of the user's, ``folder:PATH``: one folder per class, with or without folders of splits around them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cnnbench.console import note
from cnnbench.data.batches import Augmentation, check_whole
from cnnbench.data.class_folders import Listing, cache_file, list_images, names_in, read_images
from cnnbench.data.measured import MeasuredImages
from cnnbench.data.module import VAL_FRACTION, AnySplit, check_memory, total_memory
from cnnbench.data.streaming import FileSplit, ImageFiles
from cnnbench.errors import UserError
from cnnbench.images import square, to_rgb

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the folders of splits, in lower case, by split."""
STREAM_SHARE = 0.25
"""Share of the machine's memory above which images stay on the disk; a training takes twice the size of its images."""
CROP_SCALE = (0.08, 1.0)
"""Default of the share of an image's area that is its random part, as in torchvision."""
MOST_PROCESSES = 1_000
LARGEST_COPY = 4 * 2**30
"""Largest size in bytes of decoded images of which a copy is kept on the disk."""


class ImageFolder(MeasuredImages):
    """Images of your own in one folder per class, with or without folders ``train``, ``val`` and ``test`` around them.

    PNG and JPEG files are read, ``PATH/<class>/*.jpg`` or ``PATH/<split>/<class>/*.jpg``. Classes are numbered in the
    order of their names, as in torchvision's ``ImageFolder``. Each image is resized so that its shorter side fits, and
    cut to the square in its middle. Images are decoded once; a copy of the pixels is kept in the user's cache folder.

    Images that would take more than a quarter of the machine's memory stay on the disk and are decoded by worker
    processes while the network trains. A training image is then a random part of its file (``crop_scale``) in place of
    a shifted square (``padding``), as torchvision's ``RandomResizedCrop``.

    Without folders of splits, ``test_fraction`` of each class is the test set, drawn with ``split_seed``. With
    ``train`` and ``val`` alone, ``val`` is the test set. Where there is no ``val`` beside a ``test``, the validation
    split is taken from the training images.

    Args:
        path: Folder.
        in_channels: 3 for colour images, or 1 for grey ones.
        stream: Whether the images stay on the disk; unset, if they take more than a quarter of the memory.
        workers: Number of processes that decode images on the disk, for each process that trains; unset, as many as
            there are processors for it, at most 16.
        crop_scale: Smallest and largest share of the area of an image on the disk that is its random part.
        kwargs: Arguments of `MeasuredImages` and `ImageDataModule`; the image size is 224 if it is unset.

    Raises:
        UserError: The folder does not exist or has fewer than two class folders, or an argument is out of its range.
    """

    form = "folder:PATH"
    settled = ("mean", "std", "stream")
    default_size = 224

    def __init__(
        self,
        path: str,
        in_channels: int = 3,
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
        self.path = Path(path)
        self.name = f"folder:{path}"
        self.title = self.path.resolve().name
        if isinstance(in_channels, bool) or in_channels not in (1, 3):
            raise UserError(f"in_channels {in_channels} is not to be had; images are read as 1 (grey) or 3 (colour)")
        self.in_channels = in_channels
        self.roots = find_splits(self.path)
        self.class_names = _class_names(self.path, self.roots)
        self.num_classes = len(self.class_names)
        if "val" in self.roots and self.val_fraction != VAL_FRACTION:
            raise UserError(
                f"val_fraction {self.val_fraction} has no effect, since '{path}' has a folder '{self.roots['val']}'; "
                "leave it out"
            )

    def read(self) -> dict[str, AnySplit]:
        listing = list_images(self.path, self.roots, self.class_names)
        images = sum(map(len, listing.files.values()))
        shape = (self.in_channels, self.image_size, self.image_size)
        needed = images * self.in_channels * self.image_size**2
        if self._streams(images, needed):
            listing.note_foreign()
            return {split: self._files(listing, split) for split in self.roots}
        check_memory(f"{images:,} images of {self.image_size} pixels in '{self.path}'", needed)
        # A copy belongs to the size and the channels for which it was made.
        cache = cache_file(self.path, "x".join(map(str, shape))) if needed <= LARGEST_COPY else None
        return dict(read_images(listing, shape, self._square, cache)[0])

    def _streams(self, images: int, needed: int) -> bool:
        """Return whether the images stay on the disk.

        Args:
            images: Number of images.
            needed: Memory that they would take, in bytes.

        Raises:
            UserError: An option of the augmentation has no effect then.
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
        # A checkpoint keeps the choice, so that a training goes on in the same way on a machine with more memory.
        self.hparams.update({"stream": stream})
        if stream and self.augmentation and self.augmentation.padding != Augmentation().padding:
            raise UserError(
                f"padding {self.augmentation.padding} has no effect on images that stay on the disk, which are cropped "
                "by crop_scale; leave it out, or set stream to false"
            )
        if not stream and self.crop_scale != CROP_SCALE:
            raise UserError(
                f"crop_scale {list(self.crop_scale)} has no effect on images in memory, which are shifted by padding; "
                "leave it out, or set stream to true"
            )
        return stream

    def _files(self, listing: Listing, split: str) -> FileSplit:
        """Return the files of a split, which are decoded later."""
        names = np.array([os.fsencode(os.path.relpath(path, self.path)) for path, _ in listing.files[split]])
        sizes = np.array(listing.sizes[split], dtype=np.int64)
        files = ImageFiles(self.path, names, sizes, self.in_channels, self.image_size)
        return FileSplit(files, torch.from_numpy(listing.labels(split)))

    def _square(self, image: Image.Image, path: Path) -> np.ndarray:
        return square(Image.fromarray(to_rgb(image, path)), self.in_channels, self.image_size)


def find_splits(folder: Path) -> dict[str, str]:
    """Return the name of each split's folder below a folder; ``{"all": ""}`` if there are no folders of splits.

    The result has ``train`` and ``test``, and ``val`` where there are all three. With ``train`` and ``val`` alone,
    ``val`` stands for the test.

    Raises:
        UserError: The folder does not exist, or has folders of some splits but not of training and test.
    """
    if not folder.is_dir():
        raise UserError(f"folder '{folder}' does not exist; name a folder that has one folder of images per class")
    found: dict[str, str] = {}
    for name in names_in(folder):
        for split, words in SPLIT_NAMES.items():
            if name.casefold() in words and os.path.isdir(folder / name):
                if split in found:
                    raise UserError(f"'{folder}' has '{found[split]}' and '{name}' for one split; take one away")
                found[split] = name
    if not found:
        return {"all": ""}
    if "train" not in found or len(found) == 1:
        missing = "train" if "train" not in found else "test"
        raise UserError(f"'{folder}' has {', '.join(found.values())}, but no folder '{missing}'; add it")
    if "test" not in found:
        note(f"{folder}: '{found['val']}' is the test set, since there is no folder 'test'")
        return {"train": found["train"], "test": found["val"]}
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def _checked_scale(scale: Any) -> tuple[float, float]:
    """Return the smallest and largest share of an image's area, or raise UserError for anything else."""
    low, high = scale if isinstance(scale, list | tuple) and len(scale) == 2 else (None, None)
    numbers = [v for v in (low, high) if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] <= 1:
        raise UserError(f"crop_scale {scale!r} is not two shares of an image's area, such as [0.08, 1.0]")
    return numbers[0], numbers[1]


def _class_names(folder: Path, roots: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the class folders, sorted; those of the training, if there are splits."""
    place = folder / next(iter(roots.values()))
    names = [n for n in names_in(place) if not n.startswith(".") and os.path.isdir(place / n)]
    if len(names) < 2:
        count = "no class folder" if not names else "one class folder only"
        raise UserError(f"'{place}' has {count}; a classifier needs two or more, each with the images of one class")
    return tuple(names)
