"""Image files: opened as PNG or JPEG by content, checked, decoded whole, and turned into 8-bit RGB.

Nothing else in the package opens an image file. Pillow alone goes by content over some forty formats, among them
PostScript, for which it starts Ghostscript, so that a file named ``x.jpg`` could run a program.

What is found: any byte of a PNG that was changed (each chunk has a checksum), and files that are cut off. What is not:
most changes inside the compressed data of a JPEG, which has no checksum. libjpeg goes on with other pixels and says so
in a minority of cases only; a stored checksum of the pixels is the one way to notice.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cnnbench.errors import UserError
from cnnbench.files import check_regular, reason

FORMATS = ("PNG", "JPEG")
LARGEST_FILE = 256 * 2**20
"""Bytes of an image file that is still read."""
LARGEST_IMAGE = 89_478_485
"""Pixels of an image that is still decoded; above it Pillow warns of files that are made to fill the memory."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_COLOUR_TYPES = {2: "colour", 4: "grey with transparency", 6: "colour with transparency"}
"""Kinds of PNG of which Pillow drops the lower eight of sixteen bits."""
_OTHERS = {
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"RIFF": "a WebP image",
    b"%!PS": "a PostScript program",
    b"\xc5\xd0\xd3\xc6": "a PostScript program",
    b"%PDF": "a PDF document",
    b"<": "a text such as HTML or SVG",
}
"""Starts of files that are often found under an image's name."""
_MEND = "give a PNG or JPEG file"


def open_image(path: Path, what: str = "image", mend: str = _MEND) -> Image.Image:
    """Return an image file, decoded whole; its ``format`` is PNG, or JPEG, or MPO for a JPEG with further pictures.

    Args:
        path: The file.
        what: What it is, for messages.
        mend: What to do about a file that cannot be used, for messages.

    Raises:
        UserError: It is not a regular file, not PNG or JPEG by content, damaged, an animation, or too large.
    """
    content = _read(path, what, mend)
    if content.startswith(_PNG):
        problem = _problem_of_png(content)
    elif content.startswith(_JPEG):
        problem = ""
    else:
        problem = f"it is {_name_of(content)}, not PNG or JPEG"
    if problem:
        raise _unreadable(path, what, problem, mend)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            image.load()
            return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        count = f"{int(pixels[1]):,}" if pixels else "too many"
        raise UserError(
            f"{what} '{path}' has {count} pixels; give one of at most {LARGEST_IMAGE:,}, such as 4000x3000"
        ) from error
    except Exception as error:  # decoders raise whatever their arithmetic on damaged bytes leads to
        raise _unreadable(path, what, reason(error), mend) from error


def to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    """Return an image as (H, W, 3), uint8.

    It is turned as its EXIF data say. What is transparent becomes white. Sixteen bits of grey are scaled, not cut.

    Args:
        image: From `open_image`.
        path: Its file, for messages.

    Raises:
        UserError: Its EXIF data are damaged, or its mode is none that PNG and JPEG have.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values in EXIF data that Pillow passes over
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            return _from_16_bits(image)
        if image.mode == "RGBa":
            image = image.convert("RGBA")
        if image.mode == "La":
            image = image.convert("LA")
        if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
            raise _unreadable(path, "image", f"its pixels are of kind {image.mode}", "save it as RGB")
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return np.asarray(image.convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # EXIF data are a file format of their own, damaged in as many ways
        raise _unreadable(path, "image", reason(error), _MEND) from error


def read_rgb(path: Path) -> np.ndarray:
    """Return an image file as (H, W, 3), uint8; see `open_image` and `to_rgb`.

    Raises:
        UserError: It cannot be used.
    """
    return to_rgb(open_image(path), path)


def _read(path: Path, what: str, mend: str) -> bytes:
    """Read a file whole, once, so that what is checked is what is decoded."""
    check_regular(path, what)
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise UserError(f"{what} '{path}' has {size:,} bytes; at most {LARGEST_FILE:,} are read")
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, what, reason(error), mend) from error
    if not content:
        raise _unreadable(path, what, "it is empty", mend)
    return content


def _unreadable(path: Path, what: str, problem: str, mend: str) -> UserError:
    return UserError(f"cannot read {what} '{path}': {problem}; {mend}")


def _name_of(content: bytes) -> str:
    """Return what a file is that is neither PNG nor JPEG, as far as its start tells."""
    for start, name in _OTHERS.items():
        if content[:100].lstrip().startswith(start):
            return name
    return "of no known kind"


def _problem_of_png(content: bytes) -> str:
    """Walk the chunks of a PNG and return what is wrong with it, or an empty text.

    A chunk is its length, a name of four letters, its data, and a CRC-32 of name and data (PNG specification, 5.3).
    Pillow does not check those of the pixels.
    """
    at = len(_PNG)
    while True:
        length = int.from_bytes(content[at : at + 4], "big")
        name = content[at + 4 : at + 8]
        end = at + 8 + length
        if len(content) < end + 4:
            return "it is cut off"
        if zlib.crc32(memoryview(content)[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return f"it is damaged: the checksum of its part {name!r} is wrong"
        if name == b"IHDR" and length == 13:
            depth, kind = content[at + 16], content[at + 17]
            if depth == 16 and kind in _COLOUR_TYPES:
                return f"it has 16 bits per value in {_COLOUR_TYPES[kind]}; save it with 8"
        if name == b"acTL" and int.from_bytes(content[at + 8 : at + 12], "big") > 1:
            return "it is an animation; save the one picture that is meant"
        if name == b"IEND":
            return ""
        at = end + 4


def _from_16_bits(image: Image.Image) -> np.ndarray:
    """Return a grey image of 16 bits as (H, W, 3), uint8; Pillow's own conversion would cut at 255."""
    values = np.asarray(image).astype(np.float64).clip(0, 65535)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 65535
    grey = (values / 257).round().astype(np.uint8)
    return np.stack([grey] * 3, axis=2)
