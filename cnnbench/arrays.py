"""Reading of NumPy archives (``.npz``): nothing that a file says is run or believed unchecked."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from cnnbench.errors import UserError
from cnnbench.files import check_regular, reason

_ERRORS = (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, MemoryError)
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(
    path: Path, what: str, required: Sequence[str], largest: int, mend: str, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Return the arrays of an archive by name.

    Args:
        path: Path of the file.
        what: What the file holds, for messages, such as "predictions".
        required: Names of the arrays that it must have.
        largest: Largest size of an array in bytes.
        mend: What to do about a file that cannot be read, for messages.
        optional: Names of the arrays that it may have too.

    Raises:
        UserError: The file is damaged, has other arrays, or one that is too large.
    """
    check_regular(path, what)
    try:
        return _arrays(path.read_bytes(), required, largest, optional)
    except _ERRORS as error:
        raise UserError(f"{what} '{path}' cannot be read: {reason(error)}; {mend}") from error


def _arrays(content: bytes, required: Sequence[str], largest: int, optional: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays of an archive.

    Raises:
        ValueError: The archive has other arrays, or one that is too large.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = {part.filename.removesuffix(".npy"): part for part in archive.infolist()}
        if not set(required) <= names.keys() <= {*required, *optional}:
            also = f", and may have {' and '.join(optional)}" if optional else ""
            raise ValueError(f"it should have the arrays {' and '.join(required)}{also}")
        for part in names.values():
            # A small compressed part may expand to far more than the memory of the machine.
            if part.file_size > largest + 1024:  # the head of an array takes some bytes
                raise ValueError(f"an array of it has more than {largest:,} bytes")
            with archive.open(part) as file:
                _check_head(file, part.file_size)
    # Python objects in the arrays, which could run code, are refused.
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return {name: stored[name] for name in (*required, *optional) if name in names}


def _check_head(file: IO[bytes], size: int) -> None:
    """Raise ValueError unless the head of an array describes as many bytes as follow it.

    NumPy takes the memory for an array before it reads the values, so a head alone could ask for any amount.
    """
    read_header = _HEADERS.get(npy.read_magic(file))
    if read_header is None:
        raise ValueError("the head of an array has an unknown version")
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("an array of it holds Python objects")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError("the head of an array does not fit its content")
