"""Strict reader of MNIST's four IDX files: each must match its header, and images and labels must match each other.

An IDX file starts with a magic number and the size of each dimension, all as big-endian integers of four bytes. One
byte per value follows (LeCun, Cortes, Burges; "The MNIST database of handwritten digits").
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from pathlib import Path

import numpy as np
import torch

from cnnbench.data.batches import Split
from cnnbench.errors import UserError
from cnnbench.files import check_regular, reason

FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MD5 checksum of each file of the original distribution, unpacked."""
OFFICIAL_COUNTS = (60_000, 10_000)
"""Numbers of training and test images in the original distribution."""
_MAGIC = {1: 0x801, 3: 0x803}
"""Magic number by number of dimensions; its 0x08 stands for values of one byte."""
_SIDE = 28


def load(raw: Path) -> tuple[Split, Split, bool]:
    """Return the training set and the test set, with images of shape (N, 1, 28, 28), uint8.

    Args:
        raw: Folder that contains the four files.

    Returns:
        Training set, test set, and whether all files are byte for byte the original ones.

    Raises:
        UserError: A file is missing or damaged, or the images do not match the labels.
    """
    splits = []
    original = True
    for prefix in ("train", "t10k"):
        images_path, labels_path = raw / f"{prefix}-images-idx3-ubyte", raw / f"{prefix}-labels-idx1-ubyte"
        images, images_md5 = _read_idx(images_path, 3)
        labels, labels_md5 = _read_idx(labels_path, 1)
        if len(images) != len(labels):
            raise _wrong(images_path, f"has {len(images):,} images, '{labels_path.name}' {len(labels):,} labels")
        if labels.max() > 9:
            # The largest of zeros and ones: `argmax` returns the index of the first true value.
            index = int((labels > 9).argmax())
            raise _wrong(labels_path, f"has the label {labels[index]} at index {index}; labels are 0 to 9")
        original &= (images_md5, labels_md5) == (FILES[images_path.name], FILES[labels_path.name])
        # Images get an axis for their one channel, and cross-entropy takes labels of type int64 only.
        splits.append(Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()))
    return splits[0], splits[1], original


def _read_idx(path: Path, dimensions: int) -> tuple[np.ndarray, str]:
    """Return the values of one file and the MD5 checksum of its content."""
    check_regular(path, "MNIST file")
    header = 4 + 4 * dimensions
    try:
        content = _read_whole(path, header, dimensions)
    except OSError as error:
        raise _wrong(path, f"cannot be read: {reason(error)}") from error
    # In a format of struct, > stands for big-endian and I for an unsigned integer of four bytes.
    _, *shape = struct.unpack_from(f">{1 + dimensions}I", content)
    values = np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
    return values, hashlib.md5(content, usedforsecurity=False).hexdigest()


def _read_whole(path: Path, header: int, dimensions: int) -> bytearray:
    """Return the content of a file after comparing its header with its size.

    The comparison comes before the memory is allocated, so that no header can request more bytes than the file has.

    Raises:
        UserError: The header is wrong or does not match the size of the file.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        # The size is that of the open file, since the path may name another file by now.
        size = os.fstat(file.fileno()).st_size
        start = file.read(header)
        if len(start) < header:
            raise _wrong(path, f"has {size} bytes, less than the {header} of its header")
        magic, *shape = struct.unpack(f">{1 + dimensions}I", start)
        if magic != _MAGIC[dimensions]:
            raise _wrong(path, f"begins with 0x{magic:08x}, not with 0x{_MAGIC[dimensions]:08x}: it is no such file")
        what = "images" if dimensions == 3 else "labels"
        if shape[0] == 0:
            raise _wrong(path, f"has no {what}")
        if dimensions == 3 and shape[1:] != [_SIDE, _SIDE]:
            raise _wrong(path, f"has images of {shape[1]}x{shape[2]} pixels, not {_SIDE}x{_SIDE}")
        expected = header + math.prod(shape)
        if size != expected:
            raise _wrong(path, f"has {size:,} bytes; {expected:,} are due for the {shape[0]:,} {what} of its header")
        # An array on a bytearray can be written to, which torch asks for; one on bytes could only be read.
        content = bytearray(expected)
        content[:header] = start
        read = file.readinto(memoryview(content)[header:])
        if read != expected - header:
            raise _wrong(path, "became shorter while it was read")
        return content


def _wrong(path: Path, problem: str) -> UserError:
    return UserError(
        f"MNIST file '{path}' {problem}; put the original file there, or delete the folder '{path.parent}', and all "
        "four are downloaded again"
    )
