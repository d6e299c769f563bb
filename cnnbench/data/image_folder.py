"""Image folders of the user's, ``folder:PATH``: one folder per class, with or without folders of splits around them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cnnbench.console import note
from cnnbench.data.class_folders import Listing, cache_file, list_images, names_in, read_images
from cnnbench.data.measured import MeasuredImages
from cnnbench.data.module import VAL_FRACTION, AnySplit, check_memory
from cnnbench.data.streaming import FileSplit, ImageFiles
from cnnbench.errors import UserError
from cnnbench.images import square, to_rgb

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the folders of splits, in lower case, by split."""
LARGEST_COPY = 4 * 2**30
"""Largest size in bytes of decoded images of which a copy is kept on the disk."""


class ImageFolder(MeasuredImages):
    """Images of your own in one folder per class, with or without folders ``train``, ``val`` and ``test`` around them.

    PNG and JPEG files are read, ``PATH/<class>/*.jpg`` or ``PATH/<split>/<class>/*.jpg``. Classes are numbered in the
    order of their names, as in torchvision's ``ImageFolder``. Each image is resized so that its shorter side fits, and
    cut to the square in its middle. Images are decoded once; a copy of the pixels is kept in the user's cache folder.

    Without folders of splits, ``test_fraction`` of each class is the test set, drawn with ``split_seed``. With
    ``train`` and ``val`` alone, ``val`` is the test set. Where there is no ``val`` beside a ``test``, the validation
    split is taken from the training images.

    Args:
        path: Folder.
        in_channels: 3 for colour images, or 1 for grey ones.
        kwargs: Arguments of `MeasuredImages` and `ImageDataModule`; the image size is 224 if it is unset.

    Raises:
        UserError: The folder does not exist or has fewer than two class folders, or an argument is out of its range.
    """

    form = "folder:PATH"
    default_size = 224

    def __init__(self, path: str, in_channels: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
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
        if self.streams(images, needed):
            listing.note_foreign()
            return {split: self._files(listing, split) for split in self.roots}
        check_memory(f"{images:,} images of {self.image_size} pixels in '{self.path}'", needed)
        # A copy belongs to the size and the channels for which it was made.
        cache = cache_file(self.path, "x".join(map(str, shape))) if needed <= LARGEST_COPY else None
        return dict(read_images(listing, shape, self._square, cache)[0])

    def _files(self, listing: Listing, split: str) -> FileSplit:
        """Return the files of a split, which are decoded later."""
        paths = [path for path, _ in listing.files[split]]
        files = ImageFiles.of(self.path, paths, listing.sizes[split], self.in_channels, self.image_size)
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


def _class_names(folder: Path, roots: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the class folders, sorted; those of the training, if there are splits."""
    place = folder / next(iter(roots.values()))
    names = [n for n in names_in(place) if not n.startswith(".") and os.path.isdir(place / n)]
    if len(names) < 2:
        count = "no class folder" if not names else "one class folder only"
        raise UserError(f"'{place}' has {count}; a classifier needs two or more, each with the images of one class")
    return tuple(names)
