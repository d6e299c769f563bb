"""Image files: recognised as PNG or JPEG by their content, checked, decoded whole, and converted to 8-bit RGB.

No other module of the package opens an image file. Left to itself, Pillow recognises some forty formats by their
content. One of them is PostScript, for which Pillow starts Ghostscript, so a file named ``x.jpg`` could run a program.

The checks detect every changed byte of a PNG, because each of its chunks has a checksum, and every file that is cut
off. They do not detect most changes inside the compressed data of a JPEG, which has no checksum: libjpeg continues with
wrong pixels and reports a problem in a minority of cases only. Only a stored checksum of the pixels would reveal those.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from cnnbench.errors import UserError
from cnnbench.files import check_regular, reason

FORMATS = ("PNG", "JPEG")
LARGEST_FILE = 256 * 2**20
"""Largest size, in bytes, of an image file that is read."""
LARGEST_IMAGE = 89_478_485
"""Largest number of pixels of an image that is decoded; above it Pillow warns of files made to fill the memory."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_COLOUR_TYPES = {2: "colour", 4: "grey with transparency", 6: "colour with transparency"}
"""Colour types of PNG for which Pillow drops the lower eight of sixteen bits per value."""
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
"""First bytes of other kinds of files that often have the name of an image file."""
_MEND = "give a PNG or JPEG file"


def open_image(path: Path, what: str = "image", mend: str = _MEND) -> Image.Image:
    """Return the image in a file, decoded whole.

    Its ``format`` is PNG, or JPEG, or MPO, which is Pillow's name for a JPEG with further pictures.

    Args:
        path: Image file.
        what: Kind of image, for messages.
        mend: Advice on a file that cannot be used, for messages.

    Raises:
        UserError: The file is not a regular file, not PNG or JPEG by content, damaged, an animation, or too large.
    """
    return _opened(_read(path, what, mend), path, what, mend)


def _opened(content: bytes, path: Path, what: str, mend: str) -> Image.Image:
    """Return the image in the content of a file; see `open_image`."""
    if content.startswith(_PNG):
        problem = _problem_of_png(content)
    elif content.startswith(_JPEG):
        problem = ""
    else:
        problem = f"it is {_name_of(content)}, not PNG or JPEG"
    if problem:
        raise _unreadable(path, what, problem, mend)
    try:
        # Pillow's warning about an image that is too large becomes an error; all its other warnings are hidden.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            # `open` reads only the header; `load` decodes the pixels and raises an error for damaged ones.
            image.load()
            return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        count = f"{int(pixels[1]):,}" if pixels else "too many"
        raise UserError(
            f"{what} '{path}' has {count} pixels; give one of at most {LARGEST_IMAGE:,}, such as 4000x3000"
        ) from error
    except UnidentifiedImageError as error:  # its message has an address in memory
        raise _unreadable(path, what, "its header is damaged", mend) from error
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise _unreadable(path, what, reason(error), mend) from error


def to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    """Return an image as an array, (H, W, 3), uint8.

    The image is rotated as its EXIF data say. Transparent parts become white. Grey values of 16 bits are scaled to 8
    bits instead of being clipped.

    Args:
        image: Image from `open_image`.
        path: File of the image, for messages.

    Raises:
        UserError: The EXIF data are damaged, or the image has a mode that PNG and JPEG do not have.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF values that Pillow skips
            ImageOps.exif_transpose(image, in_place=True)
        # Pillow reads a PNG with 16 bits of grey in mode I or I;16.
        if image.mode.startswith("I"):
            return _from_16_bits(image)
        # A small a stands for colours already multiplied by their opacity, which the steps below do not expect.
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
    except Exception as error:  # EXIF data are a file format of their own, and damaged ones may raise anything
        raise _unreadable(path, "image", reason(error), _MEND) from error


def read_rgb(path: Path) -> np.ndarray:
    """Return the image in a file as an array, (H, W, 3), uint8; see `open_image` and `to_rgb`.

    Raises:
        UserError: The file cannot be used.
    """
    return to_rgb(open_image(path), path)


def read_tensor(path: Path, mend: str = _MEND) -> Tensor:
    """Return the image in a file as a tensor, (3, H, W) uint8, with the same pixels as `read_rgb`.

    JPEGs are decoded by torchcodec, or by torchvision where torchcodec is not installed. Both are faster than Pillow,
    and all three use libjpeg-turbo with the same settings, so the pixels are the same.

    Args:
        path: Image file.
        mend: Advice on a file that cannot be used, for messages.

    Raises:
        UserError: The file cannot be used.
    """
    content = _read(path, "image", mend)
    if content.startswith(_JPEG):
        # Whatever is wrong with the file, Pillow finds it again below and names it.
        with contextlib.suppress(Exception):
            pixels, metadata = _header_of_jpeg(content)
            # A file that is made to fill the memory is not decoded.
            if pixels <= LARGEST_IMAGE and not (metadata and _is_turned(content)):
                return _jpeg_decoder()(_without(content, metadata))
    image = to_rgb(_opened(content, path, "image", mend), path)
    # Pillow's array cannot be written to. (H, W, 3) becomes (3, H, W).
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


@cache
def _jpeg_decoder() -> Callable[[bytes], Tensor]:
    """Return the function that decodes a JPEG to (3, H, W) uint8."""
    # A torchcodec that was built for another torch raises errors of many kinds.
    with contextlib.suppress(Exception):
        return importlib.import_module("torchcodec.decoders").decode_jpeg

    def decode(content: bytes) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # in favour of torchcodec, which is not there
            encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return decode_jpeg(encoded, mode=ImageReadMode.RGB)

    return decode


def square(image: Image.Image, channels: int, side: int) -> np.ndarray:
    """Return the square in the middle of an image as an array, (channels, side, side) uint8.

    The shorter side of the image is resized to ``side`` by an antialiased bilinear filter.

    Args:
        image: Image of any size.
        channels: 3 for colour, or 1 for grey.
        side: Height and width of the result in pixels.
    """
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    # (H, W, C) becomes (C, H, W), since torch has the channels first.
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def _header_of_jpeg(content: bytes) -> tuple[int, list[slice]]:
    """Read the segments of a JPEG up to its frame header (ITU-T T.81, B.2.2).

    Returns:
        Number of pixels, and the places of the segments APP1, which hold EXIF and XMP data.

    Raises:
        IndexError: The file has no frame header.
    """
    metadata: list[slice] = []
    at = 2  # behind the marker of the start
    while True:
        # A segment consists of FF, its kind, its length (2 bytes, which count themselves), and its content.
        kind = content[at + 1]
        if content[at] != 0xFF:
            raise IndexError("no marker where one should be")
        # The frame headers are C0 to CF without C4, C8 and CC. Precision (1 byte), height and width follow (2 each).
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            size = content[at + 5 : at + 9]
            return int.from_bytes(size[:2], "big") * int.from_bytes(size[2:], "big"), metadata
        # Bytes FF may fill up the space before a marker.
        length = 1 if kind == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if kind == 0xE1:
            metadata.append(slice(at, at + length))
        at += length


def _is_turned(content: bytes) -> bool:
    """Return whether Pillow would rotate or mirror an image for its metadata; 0x0112 is the EXIF tag of this."""
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    return bool(image.getexif().get(0x0112, 1) != 1)


def _without(content: bytes, metadata: list[slice]) -> bytes:
    """Return a file without some segments, since decoders differ in which metadata they follow."""
    for place in reversed(metadata):
        content = content[: place.start] + content[place.stop :]
    return content


def _read(path: Path, what: str, mend: str) -> bytes:
    """Return the content of a file, read only once, so that the bytes that are checked are those that are decoded."""
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
    """Return the kind of a file that is neither PNG nor JPEG, judged by its first bytes."""
    for start, name in _OTHERS.items():
        # White space may precede the first tag of a text such as HTML.
        if content[:100].lstrip().startswith(start):
            return name
    return "of no known kind"


def _problem_of_png(content: bytes) -> str:
    """Return what is wrong with a PNG, or an empty text, after checking each of its chunks.

    A chunk consists of its length (4 bytes), a name of four letters, its data, and a CRC-32 over name and data (PNG
    specification, section 5.3). Pillow does not check the CRC of the chunks that hold the pixels.
    """
    at = len(_PNG)
    while True:
        length = int.from_bytes(content[at : at + 4], "big")
        name = content[at + 4 : at + 8]
        end = at + 8 + length
        # The checksum takes the four bytes behind the data.
        if len(content) < end + 4:
            return "it is cut off"
        if zlib.crc32(memoryview(content)[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return f"it is damaged: the checksum of its part {name!r} is wrong"
        # The header chunk: its data begin at byte 8 of the chunk, with width and height (4 bytes each), then bit depth
        # and colour type.
        if name == b"IHDR" and length == 13:
            depth, kind = content[at + 16], content[at + 17]
            if depth == 16 and kind in _COLOUR_TYPES:
                return f"it has 16 bits per value in {_COLOUR_TYPES[kind]}; save it with 8"
        # The animation control chunk, whose data begin with the number of frames.
        if name == b"acTL" and int.from_bytes(content[at + 8 : at + 12], "big") > 1:
            return "it is an animation; save the one picture that is meant"
        if name == b"IEND":
            return ""
        at = end + 4


def _from_16_bits(image: Image.Image) -> np.ndarray:
    """Return a 16-bit grey image as an array, (H, W, 3), uint8; Pillow's own conversion would clip it at 255."""
    values = np.asarray(image).astype(np.float64).clip(0, 65535)
    # A PNG may declare one grey value as transparent; it becomes white.
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 65535
    grey = (values / 257).round().astype(np.uint8)  # 65535 / 257 = 255
    return np.stack([grey] * 3, axis=2)
