"""Files: what is read is checked, and what is written is there whole or not at all.

Nothing that a file says is run. Reading ends in a `UserError` that names the file; writing raises `OSError` with the
name of the file, which the command turns into one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cnnbench.errors import UserError

LONGEST_NAME = 150
"""Bytes of a file name that is made from other names; file systems allow 255, and suffixes are added to it."""
LONGEST_DOCUMENT = 256 * 2**20
"""Bytes of a JSON or YAML file that is still read."""
MOST_YAML_NODES = 100_000
"""Values in a YAML file once its aliases are written out: a few lines of aliases can stand for billions."""
MOST_LEVELS = 50
"""Levels of lists and tables within each other in a JSON or YAML file; ours have six."""
_HASH = 10
CHECKSUM = "checksum"
"""Key of a JSON object that has the checksum over all others."""


def safe_name(text: str) -> str:
    """Return a file name for a text: letters, digits, dots and dashes; a long text is cut and ends in its hash."""
    name = re.sub(r"[^\w.-]", "_", text)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    start = name.encode()[: LONGEST_NAME - _HASH - 1].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:_HASH]}"


def check_regular(path: Path, what: str) -> None:
    """Raise unless a path is a file with content of its own; reading a pipe or a device may never end.

    Args:
        path: What is going to be read.
        what: What it is to be, for the message.

    Raises:
        UserError: It is missing, a folder, a pipe, a device, or cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        dangling = ", it links to nothing" if path.is_symlink() else ""
        raise UserError(f"{what} '{path}' does not exist{dangling}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"{what} '{path}' cannot be read: {reason(error)}") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{what} '{path}' is a folder; name a file")
    if not stat.S_ISREG(mode):
        raise UserError(f"{what} '{path}' is not a regular file but a pipe or a device; name a file")


def reason(error: BaseException) -> str:
    """Return what went wrong in one line, without the name of the file that the system's errors repeat."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def read_text(path: Path, what: str) -> str:
    """Read a text file in UTF-8.

    Raises:
        UserError: It cannot be read, is not UTF-8, or is too large.
    """
    check_regular(path, what)
    try:
        size = path.stat().st_size
        if size > LONGEST_DOCUMENT:
            raise UserError(f"{what} '{path}' has {size:,} bytes; at most {LONGEST_DOCUMENT:,} are read")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} '{path}' is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{what} '{path}' cannot be read: {reason(error)}") from error


def parse_json(text: str, where: str) -> Any:
    """Parse a JSON document strictly: no NaN, no infinity, no key twice.

    Args:
        text: The document.
        where: The file, and the line in it if there are several documents, for the message.

    Raises:
        UserError: It is not JSON.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)
        if _HALF_OF_A_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # raises where the other half is missing
    except RecursionError:
        raise UserError(f"{where} is not JSON that can be read: its values are nested too deeply") from None
    except UnicodeEncodeError:
        raise UserError(f"{where} is not JSON that can be read: it has half of a surrogate pair") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON that can be read: {reason(error)}") from error
    if _levels(value) > MOST_LEVELS:
        raise UserError(f"{where} is not JSON that can be read: its values are nested too deeply")
    return value


_HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def _levels(value: Any) -> int:
    """Return how many levels of lists and tables a value has; counting stops soon after `MOST_LEVELS`."""
    level, layer = 0, [value]
    while layer and level <= MOST_LEVELS:
        below: list[Any] = []
        for part in layer:
            parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
            below += [item for item in parts if isinstance(item, (dict, list))]
        level, layer = level + 1, below
    return level


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{twice}' is there twice")
    return found


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file strictly; see `parse_json`.

    Raises:
        UserError: It cannot be read.
    """
    return parse_json(read_text(path, what), f"{what} '{path}'")


def checksum(value: dict[str, Any]) -> str:
    """Return a checksum over a JSON object, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object as it will be read again, with a checksum over its content."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    return plain | {CHECKSUM: checksum(plain)}


def without_checksum(value: dict[str, Any], where: str, check: bool = True) -> dict[str, Any]:
    """Return a JSON object without its checksum; files of before 2026-11-28 have none.

    Args:
        value: The object.
        where: The file, for the message.
        check: Whether the checksum, where there is one, must be right.

    Raises:
        UserError: It is not that of the content.
    """
    content = {key: part for key, part in value.items() if key != CHECKSUM}
    if check and CHECKSUM in value and value[CHECKSUM] != checksum(content):
        raise UserError(
            f"{where} is not as it was written: its content has another {CHECKSUM}. Take an undamaged copy; if you "
            f"changed it on purpose, remove its key '{CHECKSUM}'"
        )
    return content


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file: plain values alone, no key twice, aliases that stand for a bounded number of values.

    Raises:
        UserError: It cannot be read.
    """
    return parse_yaml(read_text(path, what), f"{what} '{path}'")


def parse_yaml(text: str, where: str) -> Any:
    """Parse a YAML document as `read_yaml` does.

    Raises:
        UserError: It is not such a document.
    """
    import yaml  # the light commands read no YAML

    loader = None
    try:
        loader = yaml.SafeLoader(text)  # looks at the characters at once
        node = loader.get_single_node()
        if node is None:
            return None
        _written_out(node, {}, where)
        value = loader.construct_document(node)
        if _levels(value) > MOST_LEVELS:
            raise RecursionError
        return value
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{where} is not YAML that can be read: its values are nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise UserError(f"{where} is not YAML that can be read: {place}{error.problem or reason(error)}") from error
    except Exception as error:  # the constructors of YAML's own types raise KeyError, AttributeError and others
        raise UserError(f"{where} is not YAML that can be read: {reason(error)}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _written_out(node: Any, sizes: dict[int, int], where: str) -> int:
    """Count the values of a YAML node with its aliases written out; refuse double keys and zero characters."""
    import yaml

    if id(node) in sizes:
        if sizes[id(node)] < 0:
            raise UserError(f"{where} is not YAML that can be read: a value contains itself")
        return sizes[id(node)]
    sizes[id(node)] = -1  # being counted
    below: list[Any] = []
    if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
        # No name of a file may have one, and Python raises wherever such a text is taken for a file.
        raise UserError(f"{where}: line {node.start_mark.line + 1} has a zero character in a value; take it out")
    if isinstance(node, yaml.SequenceNode):
        below = list(node.value)
    elif isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise UserError(f"{where}: the key '{key}' is there twice; leave one out")
        below = [part for pair in node.value for part in pair]
    total = 1 + sum(_written_out(part, sizes, where) for part in below)
    if total > MOST_YAML_NODES:
        raise UserError(f"{where} has more than {MOST_YAML_NODES:,} values with its aliases written out")
    sizes[id(node)] = total
    return total


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the place of `path` when the block ends without an error.

    It is written beside its place, so that the last step is a rename within one file system, which is whole or not at
    all whenever the process is killed; its content is on the disk before that. What processes that are no more have
    left in the folder of files that they were writing is removed on the way.

    Raises:
        OSError: It cannot be written; the error has the name of the file. What was there stays.
    """
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(path.parent)
        prefix = f".{path.name[:40]}.{_this_machine()}-{os.getpid()}."
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".part")
        part = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)  # mkstemp's files are for the owner alone
        os.replace(part, path)
        part = None
        _sync_folder(path.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink()


def _this_machine() -> str:
    """Return a short mark of this machine: on a shared disk the numbers of processes are those of several."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _remove_left_behind(folder: Path) -> None:
    """Remove the unfinished files of processes of this machine that are no more."""
    for part in folder.glob(f".*.{_this_machine()}-*.part"):
        number = part.name.rpartition(f".{_this_machine()}-")[2].partition(".")[0]
        if number.isdigit() and not _is_alive(int(number)):
            with contextlib.suppress(OSError):
                part.unlink()


def _is_alive(process: int) -> bool:
    """Return whether there is a process of a number; where that cannot be known, True."""
    if os.name != "posix":  # on Windows the same call would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Have the system write the new name of a file to the disk; some file systems cannot, and rename in order."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 so that it is there whole or not at all; see `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document so that it is there whole or not at all.

    Raises:
        ValueError: A number is not finite.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_checked_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with a checksum over its content; see `without_checksum`."""
    write_json(path, with_checksum(value))


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left of files that it was writing; call it while nobody else writes there."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            part.unlink()
