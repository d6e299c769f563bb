"""Data sets of torchvision by name, ``torchvision:NAME``, for classification."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torchvision import datasets

from cnnbench import interrupts
from cnnbench.console import note
from cnnbench.data.batches import Split
from cnnbench.data.class_folders import SUFFIXES
from cnnbench.data.measured import MeasuredImages
from cnnbench.data.module import AnySplit, check_memory
from cnnbench.data.sources import resolve_data_dir
from cnnbench.data.streaming import FileSplit, ImageFiles
from cnnbench.errors import Stopped, UserError
from cnnbench.files import reason
from cnnbench.images import square
from cnnbench.names import DATA, parse_name, unknown_of_many

TIMEOUT_S = 30.0
"""Longest time without an answer of a server during a download, in seconds."""


class Facts(NamedTuple):
    """What must be known of a data set before its files are read.

    Attributes:
        classes: Number of classes.
        channels: Number of channels.
        side: Height and width of the images in pixels; None if they differ.
        splits: Arguments by which torchvision's class reads each split. ``all`` stands for data without splits.
        options: Arguments that have to be given in brackets, with the numbers of classes by value.
    """

    classes: int
    channels: int = 3
    side: int | None = None
    splits: dict[str, dict[str, Any]] = {}
    options: dict[str, dict[str, int]] = {}


_BY_FLAG: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_BY_WORD: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_WITH_VAL: dict[str, dict[str, Any]] = {**_BY_WORD, "val": {"split": "val"}}
_TO_VAL: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "val"}}
_WITH_TRAINVAL: dict[str, dict[str, Any]] = {"train": {"split": "trainval"}, "test": {"split": "test"}}
_WHOLE: dict[str, dict[str, Any]] = {"all": {}}

FACTS = {
    "Caltech101": Facts(101, splits=_WHOLE),
    "Caltech256": Facts(257, splits=_WHOLE),
    "CIFAR10": Facts(10, side=32, splits=_BY_FLAG),
    "CIFAR100": Facts(100, side=32, splits=_BY_FLAG),
    "Country211": Facts(211, splits={**_BY_WORD, "val": {"split": "valid"}}),
    "DTD": Facts(47, splits=_WITH_VAL),
    "EMNIST": Facts(
        47,
        1,
        28,
        _BY_FLAG,
        {"split": {"balanced": 47, "byclass": 62, "bymerge": 47, "digits": 10, "letters": 26, "mnist": 10}},
    ),
    "EuroSAT": Facts(10, side=64, splits=_WHOLE),
    "FashionMNIST": Facts(10, 1, 28, _BY_FLAG),
    "FER2013": Facts(7, 1, 48, _BY_WORD),
    "FGVCAircraft": Facts(100, splits=_WITH_TRAINVAL),
    "Flowers102": Facts(102, splits=_WITH_VAL),
    "Food101": Facts(101, splits=_BY_WORD),
    "GTSRB": Facts(43, splits=_BY_WORD),
    "ImageNet": Facts(1000, splits=_TO_VAL),
    "Imagenette": Facts(10, splits=_TO_VAL),
    "KMNIST": Facts(10, 1, 28, _BY_FLAG),
    "MNIST": Facts(10, 1, 28, _BY_FLAG),
    "OxfordIIITPet": Facts(37, splits=_WITH_TRAINVAL),
    "PCAM": Facts(2, side=96, splits=_WITH_VAL),
    "Places365": Facts(365, splits={"train": {"split": "train-standard"}, "test": {"split": "val"}}),
    "QMNIST": Facts(10, 1, 28, _BY_FLAG),
    "RenderedSST2": Facts(2, splits=_WITH_VAL),
    "SEMEION": Facts(10, 1, 16, _WHOLE),
    "StanfordCars": Facts(196, splits=_BY_WORD),
    "STL10": Facts(10, side=96, splits=_BY_WORD),
    "SUN397": Facts(397, splits=_WHOLE),
    "SVHN": Facts(10, side=32, splits=_BY_WORD),
    "USPS": Facts(10, 1, 16, _BY_FLAG),
}
"""Data sets of torchvision for classification, by the name of their class; the facts are those of its documentation."""


class TorchvisionImages(MeasuredImages):
    """A data set of torchvision for classification, read and downloaded by torchvision.

    Its official training, validation and test sets are used. Of data without a test set ``test_fraction`` of each
    class is the test set. Images of 28 pixels are zero-padded to 32, as MNIST's are. Images of different sizes are
    resized so that their shorter side fits, and cut to the square in their middle.

    Args:
        name: Name of torchvision's class, with arguments in brackets where it needs them, as in
            ``EMNIST(split=letters)``.
        kwargs: Arguments of `MeasuredImages` and `ImageDataModule`; the image size is that of the data but at least 32,
            or 224 if the images differ in size.

    Raises:
        UserError: torchvision has no such data set of images with classes, or an argument is missing or wrong.
    """

    form = "torchvision:NAME"
    default_size = 224

    def __init__(self, name: str, **kwargs: Any) -> None:
        plain, self._options = parse_name(name, DATA)
        if plain not in FACTS:
            raise unknown_of_many("data set of torchvision with images and classes:", plain, list(FACTS))
        facts = self._facts = FACTS[plain]
        classes = facts.classes
        for option, values in facts.options.items():
            if self._options.get(option) not in values:
                example = f"torchvision:{plain}({option}={next(iter(values))})"
                raise UserError(
                    f"torchvision:{name} needs {option}, one of {', '.join(values)}; write for example {example}"
                )
            classes = values[self._options[option]]
        self._plain = plain
        if facts.side is not None:
            # `ImageDataModule` reads the usual size of an image from the class or, as here, from the object.
            self.default_size = max(facts.side, 32)  # type: ignore[misc]
        super().__init__(**kwargs)
        self.name = f"torchvision:{name}"
        self.title = name
        self.in_channels = facts.channels
        self.num_classes = classes
        self.class_names = tuple(map(str, range(classes)))
        if facts.side == 28 and self.image_size < 28:
            raise UserError(f"image_size {self.image_size} is smaller than the 28 pixels of {plain}; use 28, or 32")

    def prepare_data(self) -> None:
        for arguments in self._facts.splits.values():
            self._open(arguments, download=True)

    def read(self) -> dict[str, AnySplit]:
        read: dict[str, AnySplit] = {}
        names: tuple[str, ...] = ()
        opened = {split: self._open(arguments) for split, arguments in self._facts.splits.items()}
        streams = self._stream_all(list(opened.values()))
        for split, dataset in opened.items():
            names = names or _class_names(dataset)
            read[split] = self._files(dataset) if streams else self._read_split(dataset, split)
        used = torch.cat([split.labels for split in read.values()]).unique().tolist()
        if len(used) != self.num_classes:
            raise UserError(
                f"{self.name} in '{self._root}' has images of {len(used)} classes, not of {self.num_classes}; it is "
                "incomplete, so delete it, and it is downloaded again"
            )
        # Some data sets do not number their classes from 0.
        numbers = torch.tensor(used)
        if names:
            self.class_names = tuple(names[index] for index in used)
        return {name: split._replace(labels=torch.searchsorted(numbers, split.labels)) for name, split in read.items()}

    def _stream_all(self, opened: Sequence[Any]) -> bool:
        """Return whether the images of all splits stay on the disk, where torchvision has them as single photos."""
        if self._facts.side is not None or not all(map(_listed_files, opened)):
            return False
        images = sum(map(len, opened))
        return self.streams(images, images * self.in_channels * self.image_size**2)

    def _files(self, dataset: Any) -> FileSplit:
        """Return the files of a data set of torchvision with their labels, which are decoded later.

        Raises:
            UserError: A file is not there.
        """
        paths, labels = zip(*_listed_files(dataset), strict=True)
        try:
            sizes = [os.stat(path).st_size for path in paths]
        except OSError as error:
            raise self._unreadable("cannot be read", error) from error
        files = ImageFiles.of(Path(self._root), paths, sizes, self.in_channels, self.image_size)
        return FileSplit(files, torch.tensor(labels))

    @property
    def _root(self) -> str:
        return str(resolve_data_dir(self.data_dir))

    def _open(self, arguments: dict[str, Any], download: bool = False) -> Any:
        """Return torchvision's data set of a split.

        Args:
            arguments: Arguments of its class for the split.
            download: Whether to download the data if it is not there.

        Raises:
            UserError: The data is not there and cannot be downloaded, or cannot be read.
        """
        cls = getattr(datasets, self._plain)
        options = {**self._options, **arguments}
        try:
            return cls(self._root, **options)
        except (UserError, Stopped):
            raise
        except Exception as error:
            if not download:
                raise self._unreadable("cannot be read", error) from error
        note(f"downloading {self.name} to '{self._root}'")
        try:
            with _timeout(TIMEOUT_S), _no_empty_folders(Path(self._root)):
                return cls(self._root, **options, download=True)
        except Stopped:
            raise
        except Exception as error:  # of the network, of an archive, or of a class that downloads nothing
            raise self._unreadable("is not there, and cannot be downloaded", error) from error

    def _unreadable(self, what: str, error: Exception) -> UserError:
        return UserError(
            f"{self.name} in '{self._root}' {what}: {type(error).__name__}: {reason(error)}; put its files there as "
            "torchvision does, or name the folder that has them with --data_dir or CNNBENCH_DATA"
        )

    def _read_split(self, dataset: Any, split: str) -> Split:
        """Return all images and labels of a data set of torchvision."""
        side = self._facts.side or self.image_size
        check_memory(f"{self.title} with images of {side} pixels", len(dataset) * self.in_channels * side**2)
        images = np.empty((len(dataset), self.in_channels, side, side), dtype=np.uint8)
        labels = torch.empty(len(dataset), dtype=torch.long)
        for index in range(len(dataset)):
            interrupts.check()
            image, label = dataset[index]
            images[index] = square(image, self.in_channels, side)
            labels[index] = int(label)
        pixels = torch.from_numpy(images)
        if side == 28:
            before = (self.image_size - side) // 2
            after = self.image_size - side - before
            pixels = F.pad(pixels, (before, after, before, after))
        return Split(pixels, labels)


def _listed_files(dataset: Any) -> list[tuple[str, int]]:
    """Return path and label of each photo of a data set of torchvision; empty if it does not have them in that form."""
    for attribute in ("samples", "imgs", "_samples"):
        pairs = getattr(dataset, attribute, None)
        if pairs:
            break
    else:
        files = getattr(dataset, "_image_files", getattr(dataset, "_images", None))
        pairs = list(zip(files or (), getattr(dataset, "_labels", ()), strict=False))
    listed = [(str(path), int(label)) for path, label in pairs]
    return listed if all(path.lower().endswith(SUFFIXES) for path, _ in listed) else []


def _class_names(dataset: Any) -> tuple[str, ...]:
    """Return the names of the classes by label, each only once; empty if the data set has none."""
    for attribute in ("classes", "categories"):
        names = getattr(dataset, attribute, None)
        if names:
            texts = [name if isinstance(name, str) else ", ".join(name) for name in names]
            return tuple(f"{text} ({i})" if texts.count(text) > 1 else text for i, text in enumerate(texts))
    return ()


@contextlib.contextmanager
def _no_empty_folders(root: Path) -> Iterator[None]:
    """If the block fails, remove new folders without any file in them, which torchvision makes before a download."""
    before = set(root.iterdir()) if root.exists() else None
    try:
        yield
    except BaseException:
        for folder in [root] if before is None else set(root.iterdir()) - before:
            if not any(path.is_file() for path in folder.rglob("*")):
                shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limit how long Python's sockets wait for an answer inside the block."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
