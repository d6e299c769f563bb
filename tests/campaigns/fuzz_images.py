"""Cases with damaged images: class folders, the decoded copy of their images, and photos.

The checks decide independently of the package whether an image is valid: by the check sums of the chunks of a PNG, and
by a comparison of its pixels with those of the undamaged image.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
import warnings
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from campaigns.fuzz_cases import POSTSCRIPT, records_of, strange_file
from campaigns.fuzz_damage import damage_bytes
from campaigns.fuzz_fork import Outcome
from campaigns.fuzz_judge import APART, RIGHT, Finding, Prepared, refuse, wrong
from campaigns.fuzz_templates import CLASSES, Templates, complexity_of, pixels

CACHE = "data/cifar10-images/.cnnbench-cache.npz"
"""File with the decoded copy of the images, relative to the folder of a case."""


# Class folders


def images(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which one image of the class folders is damaged, or the folders themselves."""
    root = templates.copy("images/data", folder, "data") / "cifar10-images"
    (root / ".cnnbench-cache.npz").unlink(missing_ok=True)
    split = rng.choice(["train", "test"])
    path = root / split / rng.choice(CLASSES) / (rng.choice(["0.png", "1.jpg"]) if split == "train" else "0.png")
    choice = rng.random()
    arguments = (*complexity_of("CIFAR10"), "--out", "out")
    expected = _expected_pixels(root)
    if choice < 0.1:
        what = strange_file(path, rng)
        if not os.path.lexists(path) and any(path.parent.iterdir()):
            # A class that has lost one of its images is a valid smaller data set, whose label says "incomplete".
            del expected[str(path.relative_to(root))]
            return Prepared(arguments, what, partial(_check_images, root=root, expected=expected, damaged=None))
        return Prepared(arguments, what)
    if choice < 0.2:
        return Prepared(arguments, *_foreign(root, path, rng, expected))
    if choice < 0.28:
        return Prepared(arguments, _damage_folders(root, path, rng))
    if choice < 0.45:
        what, content, good = other_image(path, rng, 32)
    else:
        what, content = damage_bytes(path.read_bytes(), rng, POSTSCRIPT)
        good = path.suffix == ".jpg" or not png_fault(content)
    path.write_bytes(content)
    check = partial(_check_images, root=root, expected=expected, damaged=path) if good else refuse
    return Prepared(arguments, f"{path.relative_to(root)}: {what}", check)


def _expected_pixels(root: Path) -> dict[str, np.ndarray]:
    """Return the pixels of every image as (3, 32, 32), by path below the root, in the order of the classes."""
    found = {}
    for split in ("train", "test"):
        for name in CLASSES:
            for path in sorted((root / split / name).iterdir()):
                found[str(path.relative_to(root))] = _pixels_of(path)
    return found


def _pixels_of(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def other_image(path: Path, rng: random.Random, size: int) -> tuple[str, bytes, bool]:
    """Return an image file of another format, mode or size.

    Args:
        path: Path of the image to replace; not used.
        rng: Random generator for the kind of the file.
        size: Side in pixels of the images that the command expects.

    Returns:
        A description of the file, its content, and whether the command may accept it.
    """
    image = Image.fromarray(pixels(5)).resize((size, size))
    formats = {"GIF": False, "BMP": False, "TIFF": False, "WEBP": False, "PPM": False, "PNG": True, "JPEG": True}
    kind = rng.choice(["format", "mode", "size", "postscript", "svg", "bomb", "depth"])
    if kind == "format":
        name = rng.choice(sorted(formats))
        return f"{name} by content", _encoded(image, name), formats[name]
    if kind == "mode":
        mode = rng.choice(["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
        name = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
        return f"{name} of mode {mode}", _encoded(image.convert(mode), name), True
    if kind == "size":
        shape = rng.choice([(31, 32), (1, 1), (64, 64), (5000, 3)])
        return f"{shape[0]}x{shape[1]} pixels", _encoded(image.resize(shape), "PNG"), size != 32
    if kind == "depth":
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        return "16 bits of grey", _encoded(Image.fromarray(grey), "PNG"), True
    if kind == "bomb":
        return "a PNG that says 60,000x60,000", _bomb(), False
    return kind, POSTSCRIPT if kind == "postscript" else b"<svg xmlns='http://www.w3.org/2000/svg'/>", False


def _encoded(image: Image.Image, name: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=name)
    return file.getvalue()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _bomb() -> bytes:
    """Return a small PNG file whose header says that the image has 60,000x60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(bytes(1000)))
        + _chunk(b"IEND", b"")
    )


def png_fault(content: bytes) -> str:
    """Return what is wrong with a PNG, or an empty text, by its chunks and their check sums (W3C PNG, section 5)."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return "no PNG"
    # A chunk consists of its size (4 bytes), its kind (4), its body and the check sum of kind and body (4).
    at, data, kinds = 8, b"", []
    while at + 12 <= len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + 8 + size]
        stored = content[at + 8 + size : at + 12 + size]
        if len(stored) < 4 or struct.unpack(">I", stored)[0] != zlib.crc32(kind + body):
            return f"check sum of {kind!a}"
        kinds.append(kind)
        data += body if kind == b"IDAT" else b""
        at += 12 + size
        if kind == b"IEND":
            break
    if kinds[:1] != [b"IHDR"] or kinds[-1:] != [b"IEND"]:
        return "not whole"
    try:
        zlib.decompress(data)
    except zlib.error as error:
        return str(error)
    return ""


def _foreign(root: Path, path: Path, rng: random.Random, expected: dict[str, np.ndarray]) -> tuple[str, Any]:
    """Add a file that is not an image of the data set; return a description and the check."""
    names = [
        ".DS_Store",
        "._0.png",
        ".hidden.jpg",
        "Thumbs.db",
        "notes.txt",
        "readme",
        "0.gif",
        "sub.png/",
        "b\xe9.png",
    ]
    name = rng.choice(names)
    target = path.parent / name
    check = partial(_check_images, root=root, expected=expected, damaged=None)
    if name.endswith("/"):
        target.mkdir()
        return f"a folder {name}", refuse
    if name == "b\xe9.png":  # a valid image whose name is not UTF-8
        os.link(path.parent / "0.png", os.fsencode(path.parent) + b"/b\xe9.png")
        return "an image whose name is not UTF-8", partial(_check_images, root=root, expected=None, damaged=None)
    target.write_bytes(b"\0\5\x16\7" + rng.randbytes(60))
    return f"a file {name} beside the images", refuse if name == "0.gif" else check


def _damage_folders(root: Path, path: Path, rng: random.Random) -> str:
    """Damage the folders so that they are not a complete data set any more, and return a description."""
    place = path.parent
    kind = rng.choice(["missing", "capitals", "empty", "a file", "a link to itself", "no split"])
    if kind == "no split":
        place.parent.rename(root / "elsewhere")
    elif kind == "capitals":
        place.rename(place.with_name(place.name.upper()))
    else:
        for file in place.iterdir():
            file.unlink()
        if kind != "empty":
            place.rmdir()
        if kind == "a file":
            place.touch()
        if kind == "a link to itself":
            place.symlink_to(place.name)
    return f"class folder {place.relative_to(root)}: {kind}"


def _stored(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def _check_images(
    outcome: Outcome, root: Path, expected: dict[str, np.ndarray] | None, damaged: Path | None
) -> Finding:
    """Judge the pixels that the package decoded, which it has stored in its copy.

    Args:
        outcome: Outcome of the command.
        root: Folder with the class folders.
        expected: Pixels of the undamaged images, by path below `root`; None if the pixels are not compared.
        damaged: Path of the damaged image; None if no image is damaged.
    """
    data = records_of(outcome.folder / "out")[0]["data"]
    if data["synthetic"] or outcome.code != 0:
        return wrong(f"synthetic {data['synthetic']}, code {outcome.code}")
    if "incomplete" not in data["label"]:
        return wrong(f"the label is '{data['label']}'")
    if expected is None:
        return RIGHT
    stored = _stored(root / ".cnnbench-cache.npz")
    decoded = np.concatenate([stored["train_images"], stored["test_images"]])
    if decoded.shape != (len(expected), 3, 32, 32):
        return wrong(f"decoded to {decoded.shape}")
    for got, (name, before) in zip(decoded, expected.items(), strict=True):
        if np.array_equal(got, before):
            continue
        if damaged is None or str(damaged.relative_to(root)) != name:
            return wrong(f"the pixels of {name} are others")
        return judge_pixels(got, damaged, before)
    return RIGHT


def judge_pixels(got: np.ndarray, path: Path, before: np.ndarray) -> Finding:
    """Judge the decoded pixels of a damaged file: they must be its own, decoded by Pillow; a JPEG may differ.

    Args:
        got: Pixels that the package decoded, (3, H, W).
        path: Path of the damaged file.
        before: Pixels of the undamaged image; not used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            name = image.format
            # 16 bits of grey are scaled to 8, transparent images are put on white, and EXIF says how a photo is turned.
            if image.mode.startswith("I"):
                own = np.repeat((np.asarray(image).astype(np.int64) // 257)[None], 3, axis=0)
            elif image.mode in ("RGBA", "LA", "PA"):
                alone = image.convert("RGBA")
                white = Image.new("RGBA", alone.size, "white")
                own = np.asarray(Image.alpha_composite(white, alone).convert("RGB")).transpose(2, 0, 1)
            else:
                own = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1)
    if own.shape == got.shape and np.abs(own.astype(int) - got.astype(int)).max() <= 1:
        # The pixels are those of the file. That they differ from the original only a check sum could show, and a JPEG
        # has none.
        return APART if name == "JPEG" else RIGHT
    return APART if name == "JPEG" else wrong("the pixels are not those of the file")


# The decoded copy


def cache(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which the decoded copy of the class folders is damaged, but not the images themselves."""
    root = templates.copy("images/data", folder, "data") / "cifar10-images"
    path = root / ".cnnbench-cache.npz"
    good = _stored(path)
    choice = rng.random()
    if choice < 0.1:
        what = strange_file(path, rng)
    elif choice < 0.55:
        what, content = damage_bytes(path.read_bytes(), rng, POSTSCRIPT)
        path.write_bytes(content)
    else:
        what = _other_arrays(path, good, rng)
    return Prepared((*complexity_of("CIFAR10"), "--out", "out"), what, partial(_check_cache, good=good), left=("out*",))


def _other_arrays(path: Path, good: dict[str, np.ndarray], rng: random.Random) -> str:
    """Write a copy that is a valid archive with other arrays, and return a description of the difference."""
    changed: dict[str, Any] = dict(good)
    key = rng.choice([key for key in changed if "images" in key or "labels" in key])
    value = changed[key]
    kind = rng.choice(["float", "empty", "fewer", "plus", "missing", "object", "shape", "text", "flip", "extra", "nan"])
    if kind == "missing":
        del changed[key]
    elif kind == "extra":
        changed["surprise"] = np.zeros(3)
    else:
        flipped = value.copy()
        flipped.flat[rng.randrange(flipped.size)] ^= 1
        changed[key] = {
            "float": value.astype(np.float32),
            "empty": value[:0],
            "fewer": value[1:],
            "plus": value + 90,
            "object": np.array([{"a": 1}], dtype=object),
            "shape": value.reshape(-1),
            "text": np.array("text"),
            "flip": flipped,
            "nan": np.full(value.shape, np.nan),
        }[kind]
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in changed.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=True)
    return f"{key}: {kind}"


def _check_cache(outcome: Outcome, good: dict[str, np.ndarray]) -> Finding:
    """Judge the copy after the run: it must have the arrays of the undamaged copy, whether kept or decoded again."""
    data = records_of(outcome.folder / "out")[0]["data"]
    if data["synthetic"] or outcome.code != 0 or "incomplete" not in data["label"]:
        return wrong(f"label '{data['label']}', code {outcome.code}")
    path = outcome.folder / CACHE
    if not path.is_file() or path.is_symlink():
        # Something else is in its place, so the images must have been decoded again, with a line that says so.
        return RIGHT if "decod" in outcome.stderr else wrong("another thing in the place of the copy, and no line")
    try:
        stored = _stored(path)
    except Exception as error:
        return wrong(f"a damaged copy stays: {error}")
    for key, value in good.items():
        if "images" in key or "labels" in key:
            same = key in stored and stored[key].dtype == value.dtype and np.array_equal(stored[key], value)
            if not same:
                return wrong(f"{key} of the copy is another")
    return RIGHT


# Photos


def photo(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which the photo of `explain kernels` is damaged."""
    templates.copy("photos", folder)
    path = folder / "photos" / rng.choice(["photo.png", "photo.jpg"])
    good = True
    choice = rng.random()
    if choice < 0.15:
        what, good = strange_file(path, rng), False
    else:
        if choice < 0.45:
            what, content, good = other_image(path, rng, 48)
        else:
            what, content = damage_bytes(path.read_bytes(), rng, POSTSCRIPT)
            good = path.suffix == ".jpg" or not png_fault(content)
        path.write_bytes(content)
    arguments: tuple[str, ...] = ("explain", "kernels", str(path.relative_to(folder)), "--kernels", "sobel_x")
    return Prepared(
        (*arguments, "--out", "ex", "--json"),
        f"{path.name}: {what}",
        partial(_check_photo, apart=path.suffix == ".jpg") if good else refuse,
    )


def _check_photo(outcome: Outcome, apart: bool) -> Finding:
    """Judge an accepted photo: a complete JSON document must be printed, and its pictures must exist."""
    try:
        document = json.loads(outcome.stdout)
    except ValueError:
        return wrong("stdout is no JSON document")
    files = [outcome.folder / picture["file"] for picture in document["pictures"]]
    whole = outcome.code == 0 and files and all(path.is_file() for path in files)
    if not whole:
        return wrong(f"code {outcome.code}, pictures {files}")
    return APART if apart else RIGHT
