"""Data sets of MedMNIST by name, ``medmnist:NAME``: small medical images (Yang et al. 2023, 2110.14795)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnnbench.data.batches import Split
from cnnbench.data.download import fetch
from cnnbench.data.measured import MeasuredImages
from cnnbench.data.module import AnySplit, check_memory
from cnnbench.data.sources import resolve_data_dir
from cnnbench.errors import MissingDataError, UserError
from cnnbench.files import check_regular, reason
from cnnbench.names import DATA, parse_name, unknown_of_many
from cnnbench.registry import optional

SIZES = (28, 64, 128, 224)
"""Heights and widths in which MedMNIST's two-dimensional sets exist, in pixels."""
TASKS = ("multi-class", "binary-class", "ordinal-regression")
"""Tasks with one label per image, as MedMNIST names them."""


class MedMNISTImages(MeasuredImages):
    """A two-dimensional data set of MedMNIST with one class per image, with its own training, validation and test set.

    The facts about the data sets come from the package ``medmnist`` (``pip install cnnbench[medmnist]``). The file is
    downloaded if it is not in the data folder, and its checksum is verified.

    Args:
        name: Name of MedMNIST's class, such as ``PathMNIST``; ``PathMNIST(size=64)`` has larger images.
        kwargs: Arguments of `MeasuredImages` and `ImageDataModule`; the image size is that of the data, but at least
            32, to which images of 28 pixels are resized.

    Raises:
        UserError: The package is missing, or it has no such data set.
    """

    form = "medmnist:NAME"
    default_size = 32

    def __init__(self, name: str, **kwargs: Any) -> None:
        plain, options = parse_name(name, DATA)
        size = options.pop("size", SIZES[0])
        if options or size not in SIZES:
            raise UserError(
                f"medmnist:{name}: the one argument is size, {', '.join(map(str, SIZES))}; write for example "
                f"medmnist:{plain}(size=64)"
            )
        self._info = _info(plain)
        self.default_size = max(size, 32)  # type: ignore[misc]
        super().__init__(**kwargs)
        self._size = size
        self.name = f"medmnist:{name}"
        self.title = name
        self.in_channels = self._info["n_channels"]
        labels = self._info["label"]
        self.class_names = tuple(str(labels[key]) for key in sorted(labels, key=int))
        self.num_classes = len(self.class_names)

    @property
    def _suffix(self) -> str:
        return "" if self._size == SIZES[0] else f"_{self._size}"

    @property
    def _file(self) -> Path:
        return resolve_data_dir(self.data_dir) / f"{self._info['python_class'].lower()}{self._suffix}.npz"

    def prepare_data(self) -> None:
        if self._file.exists():
            return
        try:
            fetch([self._info[f"url{self._suffix}"]], self._file, self._info[f"MD5{self._suffix}"])
        except MissingDataError as error:
            raise UserError(f"{self.name} is not in '{self._file.parent}', and {error}") from error

    def read(self) -> dict[str, AnySplit]:
        try:
            check_regular(self._file, str(self.name))
            # Arrays of Python objects, which could run code, are refused.
            with np.load(self._file, allow_pickle=False) as stored:
                return {split: self._split(stored, split) for split in ("train", "val", "test")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{self.name} in '{self._file}' cannot be read: {reason(error)}; delete it, and it is downloaded again"
            ) from error

    def _split(self, stored: Any, split: str) -> Split:
        """Return a split from the arrays of the file.

        Raises:
            ValueError: The arrays are not images with labels of this data set.
        """
        images, labels = stored[f"{split}_images"], stored[f"{split}_labels"].reshape(-1)
        shape = (len(labels), self._size, self._size) + ((3,) if self.in_channels == 3 else ())
        if images.dtype != np.uint8 or images.shape != shape:
            raise ValueError(f"{split}_images are {images.dtype} of shape {images.shape}")
        if not np.isin(labels, range(self.num_classes)).all():
            raise ValueError(f"{split}_labels are not from 0 to {self.num_classes - 1}")
        check_memory(f"{self.title} with images of {self._size} pixels", images.nbytes)
        # (N, H, W) of grey images and (N, H, W, 3) of colour images become (N, C, H, W).
        pixels = torch.from_numpy(images).reshape(len(images), self._size, self._size, -1)
        return Split(pixels.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64)))


def _info(name: str) -> dict[str, Any]:
    """Return what the package ``medmnist`` says about a data set.

    Raises:
        UserError: The package is missing, or the data set is not two-dimensional with one class per image.
    """
    usable = {}
    for facts in optional("medmnist", f"data set 'medmnist:{name}'").INFO.values():
        if facts["task"] in TASKS and "3D" not in facts["python_class"]:
            usable[facts["python_class"]] = facts
    if name not in usable:
        raise unknown_of_many("data set of MedMNIST with one class per image:", name, list(usable))
    return usable[name]
