"""Images in class folders, such as ``{train,test}/<class>/*.{png,jpg}``, read as a data set.

The folders are located and their images listed. The images are decoded once and kept in a copy, which later runs check
and read instead. A file that looks like an image but is not one of the data set raises an error with its path and is
never skipped silently, because a missing image would change every accuracy. Hidden files are ignored; other foreign
files are ignored with a note.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image

from cnnbench import interrupts
from cnnbench.console import note
from cnnbench.data.batches import Split
from cnnbench.errors import UserError
from cnnbench.files import check_regular, reason, replacing
from cnnbench.images import open_image, to_rgb

Convert = Callable[[Image.Image, Path], np.ndarray]
"""Type of a function that makes an array, (C, H, W) uint8, from a decoded image and its path."""
SPLITS = ("train", "test")
SIDE = 32
_FOLDERS = ("cifar10-images", "cifar10", "CIFAR10", "CIFAR-10-images", ".")
"""Folders below the data folder that may hold the class folders, the likely ones first; ``.`` is the data folder."""
SUFFIXES = (".png", ".jpg", ".jpeg")
"""Suffixes of the image files that are read, in lower case."""
_OTHER_SUFFIXES = (
    ".avif .bmp .dib .eps .gif .heic .heif .ico .jfif .jp2 .jpe .jxl .pbm .pcx .pgm .pnm .ppm .ps .svg .tga .tif .tiff "
    ".webp"
).split()
"""Suffixes of image formats that are not read; such a file is an error, since skipping it would drop data."""
_LIKELY = 5
"""Number of matching class folders from which on the data folder itself counts as an incomplete copy of the data."""
_MEND = "put a whole copy of the image there, or take the file away"


@dataclass
class Listing:
    """Image files of all splits.

    Attributes:
        folder: Folder that contains the folders of the splits.
        roots: Folder of each split below it, by name of the split; an empty text for the folder itself.
        files: Path and label of each image by split, in the order in which the images are read.
        sizes: Size of each image file in bytes by split, in the same order.
        facts: One line per image with its path, label, size and modification time, by which a change is noticed.
        foreign: Paths of the files that are ignored with a note.
    """

    folder: Path
    roots: Mapping[str, str]
    files: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    facts: list[bytes] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """Return the names of the arrays that a decoded copy holds besides the fingerprint of the files."""
        return ["lossy", "sha256", *(f"{split}_{part}" for split in self.roots for part in ("images", "labels"))]

    def fingerprint(self) -> str:
        """Return a hash that changes with the name, label, size or modification time of any image."""
        return hashlib.sha256(b"cnnbench class folders 2\n" + b"\n".join(self.facts)).hexdigest()

    def note_foreign(self) -> None:
        """Print a note if files are ignored."""
        if self.foreign:
            count, first = len(self.foreign), self.foreign[0]
            note(f"{self.folder}: passed over {count:,} of the files, no images by name; the first is '{first}'")

    def labels(self, split: str) -> np.ndarray:
        """Return the label of each image of a split, (N,) int64."""
        return np.array([label for _, label in self.files[split]], dtype=np.int64)


def find_class_folders(root: Path, classes: tuple[str, ...]) -> Path | None:
    """Return the folder below the root that holds ``{train,test}/<class>/`` for every class, or None if none does.

    Args:
        root: Data folder.
        classes: Names of the classes, in lower case.

    Raises:
        UserError: No folder holds all class folders but one holds some of them, or a folder cannot be read.
    """
    wanted = [f"{split}/{c}" for split in SPLITS for c in classes]
    partial: list[UserError] = []
    for name in _candidates(root):
        folder = root / name
        missing = [path for path in wanted if not _is_folder(folder / path)]
        if not missing:
            return folder
        # Upper and lower case do not matter here, so that the error can propose to rename a folder such as Train/Cat.
        inside: list[str] = []
        for split in names_in(folder):
            if split.casefold() in SPLITS:
                inside += _inside(folder, split)
        similar = [path for path in inside if path.casefold() in wanted]
        # The data folder itself may hold the folders train and test of other data.
        is_meant = bool(inside)
        if name == ".":
            is_meant = len(similar) >= _LIKELY
        if is_meant:
            partial.append(_incomplete(folder, missing, similar, len(wanted)))
    if partial:
        # The folders are tried in the order of their likelihood, so the first one is most likely the one that is meant.
        raise partial[0]
    return None


def _candidates(root: Path) -> list[str]:
    """Return the existing folders below the root that may hold class folders, the likely ones first."""
    # `lexists` is true for a broken link, which `_names` then reports.
    if not os.path.lexists(root):
        return []
    names = names_in(root)
    folded = {name.casefold() for name in _FOLDERS}
    exact = [name for name in _FOLDERS if name in names]
    # Folders whose names differ from the expected ones in upper and lower case only.
    others = [name for name in names if name.casefold() in folded and name not in exact]
    return [*exact, *others, "."]


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # no permission to read, or a cycle of links
        raise UserError(f"'{path}' cannot be read: {reason(error)}; open it to this user, or take it away") from error


def _inside(folder: Path, split: str) -> list[str]:
    """Return the content of a split's folder as paths such as ``train/cat``, without hidden files."""
    if not os.path.isdir(folder / split):
        return []
    return [f"{split}/{name}" for name in names_in(folder / split) if not name.startswith(".")]


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder.

    Raises:
        UserError: The folder cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"folder '{folder}' cannot be read: {reason(error)}; make it one, or take it away") from error


def _incomplete(folder: Path, missing: Sequence[str], similar: Sequence[str], wanted: int) -> UserError:
    """Build the error for missing class folders, with a hint where a name differs only in upper and lower case."""
    shown = ", ".join(missing[:4])
    if len(missing) > 4:
        shown += f" and {len(missing) - 4} more"
    hints = []
    for path in missing:
        near = [name for name in similar if name.casefold() == path]
        if not near:
            continue
        # A path that exists under its exact name is missing only because it is a file.
        hints.append(f"rename '{near[0]}' to '{path}'" if near[0] != path else f"'{path}' is not a folder")
    mend = hints[0] if hints else "add them, or take the folder away"
    return UserError(f"'{folder}' lacks {len(missing)} of {wanted} class folders: {shown}; {mend}")


def load_class_folders(folder: Path, classes: tuple[str, ...]) -> tuple[Split, Split, bool]:
    """Return the 32x32 RGB images of class folders; they are decoded once and later read from a copy beside the data.

    The copy is used only if it is undamaged and was made from files of the same names, sizes and times. If several
    processes need the copy at the same time, one of them decodes and the others wait. A folder without write permission
    is left unchanged; its copy goes to the user's cache folder.

    Args:
        folder: Folder that `find_class_folders` returned.
        classes: Names of the classes in the order of their labels.

    Returns:
        Training set, test set, and whether any file is a JPEG, so that its pixels differ from the original's.

    Raises:
        UserError: A file is not a 32x32 image, a class has no image, or a folder or an image format is foreign.
    """
    listing = list_images(folder, {split: split for split in SPLITS}, classes)
    splits, lossy = read_images(listing, (3, SIDE, SIDE), _of_cifar10, _beside(folder))
    return splits["train"], splits["test"], lossy


def _of_cifar10(image: Image.Image, path: Path) -> np.ndarray:
    """Return an image of CIFAR-10 as an array, (3, 32, 32)."""
    if image.size != (SIDE, SIDE):
        raise UserError(f"'{path}' is {image.width}x{image.height} pixels, not {SIDE}x{SIDE} as CIFAR-10 is")
    # (32, 32, 3) becomes (3, 32, 32), since torch has the channels first.
    return to_rgb(image, path).transpose(2, 0, 1)


def read_images(
    listing: Listing, shape: tuple[int, int, int], convert: Convert, cache: Path | None
) -> tuple[dict[str, Split], bool]:
    """Return the images of a listing, decoded once and later read from a copy.

    Args:
        listing: Files to read.
        shape: Channels, height and width of the result.
        convert: Function that makes an array of this shape, uint8, from a decoded image and its path.
        cache: File of the decoded copy; None to keep none.

    Returns:
        The splits by name, and whether any file is a JPEG.

    Raises:
        UserError: A file cannot be decoded.
    """
    listing.note_foreign()
    with _locked(cache):
        stored = None if cache is None else _read_cache(cache, listing, shape)
        if stored is None:
            stored = _decode_all(listing, shape, convert)
            if cache is not None:
                _write_cache(cache, listing, stored)
    splits = {}
    for split in listing.roots:
        images, labels = stored[f"{split}_images"], stored[f"{split}_labels"]
        splits[split] = Split(torch.from_numpy(images), torch.from_numpy(labels))
    return splits, bool(stored["lossy"])


# Listing


def list_images(folder: Path, roots: Mapping[str, str], classes: Sequence[str]) -> Listing:
    """List the images of all class folders.

    Args:
        folder: Folder that contains the folders of the splits.
        roots: Folder of each split below it, by name of the split; an empty text for the folder itself.
        classes: Names of the classes in the order of their labels.

    Raises:
        UserError: A folder is not one of the classes, an image cannot be read or has a foreign format, or a class has
            no image.
    """
    listing = Listing(folder, roots)
    for split, root in roots.items():
        listing.files[split] = []
        listing.sizes[split] = []
        # Hidden files are left alone, other files get a note, and other folders are an error: they may be classes.
        for name in names_in(folder / root):
            if name in classes or name.startswith("."):
                continue
            if os.path.isdir(folder / root / name):
                shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
                raise UserError(
                    f"'{folder / root / name}' is none of the {len(classes)} class folders ({shown}); take it away"
                )
            listing.foreign.append(os.path.join(root, name))
        for label, name in enumerate(classes):
            _list_class(listing, split, name, label)
    return listing


def _list_class(listing: Listing, split: str, name: str, label: int) -> None:
    """Add the images of one class folder to a listing, sorted by name."""
    files = listing.files[split]
    before = len(files)
    inside = os.path.join(listing.roots[split], name)
    class_folder = os.path.join(listing.folder, inside)
    for entry in _entries(class_folder):
        if entry.name.startswith("."):
            continue
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in _OTHER_SUFFIXES:
            raise UserError(f"'{entry.path}' is not read, only PNG and JPEG are; save it as PNG, or take it away")
        if suffix not in SUFFIXES:
            listing.foreign.append(os.path.join(inside, entry.name))
            continue
        try:
            status = entry.stat()
        except OSError:
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            # This raises with the precise reason, unless the file has become readable in the meantime.
            check_regular(Path(entry.path), "image")
            raise UserError(f"image '{entry.path}' cannot be read; {_MEND}")
        if not status.st_size:
            raise UserError(f"cannot read image '{entry.path}': it is empty; {_MEND}")
        files.append((entry.path, label))
        listing.sizes[split].append(status.st_size)
        line = f"/{label} {status.st_size} {status.st_mtime_ns}"  # a file name cannot contain the slash
        # A file name need not be valid text; fsencode returns the bytes that the system has for it.
        listing.facts.append(os.fsencode(f"{split}/{name}/{entry.name}") + line.encode())
    if len(files) == before:
        raise UserError(f"class folder '{class_folder}' has no {' or '.join(SUFFIXES)} image")


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"class folder '{folder}' cannot be read: {reason(error)}; open it to this user") from error


# Decoding


def _decode_all(listing: Listing, shape: tuple[int, int, int], convert: Convert) -> dict[str, np.ndarray]:
    """Decode the images of all splits into the arrays of the decoded copy."""
    stored: dict[str, np.ndarray] = {}
    lossy = False
    for split, root in listing.roots.items():
        paths = [path for path, _ in listing.files[split]]
        note(f"decoding {len(paths):,} images of {listing.folder / root}, once")
        stored[f"{split}_images"], any_jpeg = _decode(paths, shape, convert)
        stored[f"{split}_labels"] = listing.labels(split)
        lossy = lossy or any_jpeg
    stored["lossy"] = np.array(lossy)
    return stored


def _decode(paths: Sequence[str], shape: tuple[int, int, int], convert: Convert) -> tuple[np.ndarray, bool]:
    """Decode files to (N, C, H, W) uint8.

    Returns:
        Images, and whether any of the files is a JPEG by content.
    """
    images = np.empty((len(paths), *shape), dtype=np.uint8)

    def decode(index: int) -> bool:
        interrupts.check()
        path = Path(paths[index])
        image = open_image(path, mend=_MEND)
        images[index] = convert(image, path)
        # Pillow names the format by the content of the file, whatever its suffix.
        return image.format != "PNG"

    # Threads share the work on photos. On images as small as those of CIFAR-10 they made it three times slower.
    if min(shape[1:]) <= SIDE:
        return images, any(list(map(decode, range(len(paths)))))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return images, any(list(pool.map(decode, range(len(paths)))))


# The decoded copy


def _beside(folder: Path) -> Path | None:
    """Return the file of the decoded copy: in the folder, or in the user's cache folder if it is closed to writing."""
    with contextlib.suppress(OSError):
        # Check the permission bits too: root may write everywhere, but a folder closed to its owner stays unchanged.
        if folder.stat().st_mode & 0o200 and os.access(folder, os.W_OK):
            return folder / ".cnnbench-cache.npz"
    return cache_file(folder)


def cache_file(folder: Path, what: str = "images") -> Path | None:
    """Return the file of a folder's decoded copy in the user's cache folder; None, with a note, if there can be none.

    Args:
        folder: Folder of the images.
        what: Word for what the copy holds, for its name.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnnbench"
        base.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home folder
        _cannot_keep("the user's cache folder", error)
        return None
    # The hash of the folder's path keeps the copies of several data folders apart.
    return base / f"{what}-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}.npz"


def _cannot_keep(where: Path | str, error: Exception) -> None:
    note(f"the decoded copy of the images cannot be kept in '{where}': {reason(error)}; they are decoded every time")


@contextlib.contextmanager
def _locked(cache: Path | None) -> Iterator[None]:
    """Hold the lock of a decoded copy; continue without a lock where none can be made."""
    lock = None
    if cache is not None:
        lock = FileLock(f"{cache}.lock")
        try:
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            note(f"'{lock.lock_file}' cannot be made: {reason(error)}; another process may decode the same images")
            lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _read_cache(cache: Path, listing: Listing, shape: tuple[int, int, int]) -> dict[str, np.ndarray] | None:
    """Return the decoded copy if it is undamaged and made from these files, else None; note a damaged one."""
    if not os.path.isfile(cache):
        return None
    try:
        # A pickled array could run code while it is read, so none is allowed.
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["fingerprint"]) != listing.fingerprint():
                return None
            arrays = {key: stored[key] for key in listing.keys}  # reading them also checks the CRCs of the zip file
        problem = _problem_of_cache(arrays, listing, shape)
    except Exception as error:  # a damaged file can raise any error of zipfile, zlib or numpy
        problem = reason(error)
    if problem:
        note(f"the decoded copy '{cache}' is damaged ({problem}); decoding again")
        return None
    return arrays


def _problem_of_cache(arrays: dict[str, np.ndarray], listing: Listing, shape: tuple[int, int, int]) -> str:
    """Return how the arrays of a decoded copy differ from what a listing requires, or an empty text if they do not."""
    for split in listing.roots:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.shape != (len(listing.files[split]), *shape):
            return f"its {split} images are {images.dtype} of {images.shape}"
        if labels.dtype != np.int64 or not np.array_equal(labels, listing.labels(split)):
            return f"its {split} labels are not those of the folders"
    if arrays["lossy"].dtype != np.bool_ or arrays["lossy"].shape != ():
        return "it does not say whether an image is a JPEG"
    if str(arrays["sha256"]) != _checksum(arrays, listing.roots):
        return "its checksum is wrong"
    return ""


def _checksum(arrays: dict[str, np.ndarray], splits: Iterable[str]) -> str:
    """Return a hash of the images of all splits and of the flag for JPEG files."""
    digest = hashlib.sha256(bytes([bool(arrays["lossy"])]))
    for split in splits:
        digest.update(np.ascontiguousarray(arrays[f"{split}_images"]).data)
    return digest.hexdigest()


def _write_cache(cache: Path, listing: Listing, arrays: dict[str, np.ndarray]) -> None:
    """Write the decoded copy; if that fails, print a note and continue."""
    # Remove what a killed process left behind; under the lock no other process writes here.
    for part in cache.parent.glob(f".{cache.name}.*.part"):
        with contextlib.suppress(OSError):
            part.unlink()
    texts = {"fingerprint": np.array(listing.fingerprint()), "sha256": np.array(_checksum(arrays, listing.roots))}
    try:
        with replacing(cache) as file:
            np.savez(file, allow_pickle=False, **texts, **arrays)
    except OSError as error:
        _cannot_keep(cache, error)
