"""Reading and writing of files: input is checked, and output is written whole or not at all.

Nothing in a file is executed. A failed read raises a `UserError` that names the file. A failed write raises an
`OSError` with the name of the file, which the command turns into one line.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
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
"""Largest length, in bytes, of a file name that is made from other names.

File systems allow 255 bytes, and suffixes are added to the name.
"""
LONGEST_DOCUMENT = 256 * 2**20
"""Largest size, in bytes, of a JSON, YAML or other text file that is read."""
MOST_YAML_NODES = 100_000
"""Largest number of values in a YAML file after its aliases are expanded; a few lines of aliases can mean billions."""
MOST_LEVELS = 50
"""Deepest nesting of lists and tables in a JSON or YAML file; the project's own files have six levels."""
_HASH = 10
"""Number of hexadecimal digits of the hash at the end of a shortened file name."""
CHECKSUM = "checksum"
"""Key of a JSON object whose value is the checksum over all other keys and values."""


def safe_name(text: str) -> str:
    """Return a file name for a text: letters, digits, dots, dashes and underscores.

    A name longer than `LONGEST_NAME` is cut and ends in a hash of the text.
    """
    name = re.sub(r"[^\w.-]", "_", text)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    # The cut may fall within a character of several bytes, whose rest is then dropped.
    start = name.encode()[: LONGEST_NAME - _HASH - 1].decode(errors="ignore")
    # A file name that is not UTF-8 reaches Python as a text with surrogates, which `encode` refuses by default.
    return f"{start}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:_HASH]}"


def check_regular(path: Path, what: str) -> None:
    """Raise UserError unless a path is a regular file, because reading a pipe or a device may never end.

    Args:
        path: File that is going to be read.
        what: Kind of file, for the message, such as "config".

    Raises:
        UserError: The path is missing, is a folder, a pipe or a device, or cannot be examined.
    """
    try:
        # `stat` follows links, so a link to a regular file is accepted.
        mode = path.stat().st_mode
    except FileNotFoundError:
        dangling = ", it links to nothing" if path.is_symlink() else ""
        raise UserError(f"{what} '{path}' does not exist{dangling}") from None
    except (OSError, ValueError) as error:  # ValueError: the name contains a zero byte
        raise UserError(f"{what} '{path}' cannot be read: {reason(error)}") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{what} '{path}' is a folder; name a file")
    if not stat.S_ISREG(mode):
        raise UserError(f"{what} '{path}' is not a regular file but a pipe or a device; name a file")


def reason(error: BaseException) -> str:
    """Return one line that says what went wrong, without the file name that system errors contain."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def read_text(path: Path, what: str) -> str:
    """Return the content of a text file in UTF-8.

    Args:
        path: File to read.
        what: Kind of file, for the message, such as "config".

    Raises:
        UserError: The file cannot be read, is not UTF-8, or is too large.
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
    """Return the value of a JSON document, parsed strictly: no NaN, no infinity, no duplicate key.

    Args:
        text: Text of the document.
        where: Name of the file for the message, with the line if the file holds several documents.

    Raises:
        UserError: The text is not such a document, or its values are nested too deeply.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)
        # json.loads accepts half of a surrogate pair, which cannot be written to a file later.
        if _HALF_OF_A_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # raises if the other half is missing
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
"""Start of the escape of a UTF-16 surrogate, which is a character only together with its other half."""


def _levels(value: Any) -> int:
    """Return how many levels of lists and tables a value has; counting stops once there are more than `MOST_LEVELS`."""
    level, layer = 0, [value]
    # The levels are walked in a loop, since a recursion could itself end at Python's limit.
    while layer and level <= MOST_LEVELS:
        below: list[Any] = []
        for part in layer:
            # The value itself may be a plain one; all further parts of a layer are tables or lists.
            parts: Any = ()
            if isinstance(part, dict):
                parts = part.values()
            elif isinstance(part, list):
                parts = part
            below += [item for item in parts if isinstance(item, (dict, list))]
        level, layer = level + 1, below
    return level


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    # Python reads a number such as 1e999 as infinity, without an error.
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # A dict keeps the last of several equal keys, so only its length shows that one was repeated.
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{twice}' is there twice")
    return table


def read_json(path: Path, what: str) -> Any:
    """Return the value of a JSON file, parsed strictly as by `parse_json`.

    Raises:
        UserError: The file cannot be read, or its content is not such a document.
    """
    return parse_json(read_text(path, what), f"{what} '{path}'")


def checksum(value: dict[str, Any]) -> str:
    """Return a checksum over a JSON object that does not depend on the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object in the form in which it will be read again, with a checksum over its content."""
    # Writing and reading turns tuples into lists and keys into text; the checksum must be that of the result.
    plain = json.loads(json.dumps(value, allow_nan=False))
    return plain | {CHECKSUM: checksum(plain)}


def without_checksum(value: dict[str, Any], where: str, check: bool = True) -> dict[str, Any]:
    """Return a JSON object without its checksum, after comparing the checksum with the content.

    An object without a checksum is accepted, because files from before 2026-11-28 have none.

    Args:
        value: JSON object as it was read.
        where: Name of the file, for the message.
        check: Whether to compare the checksum.

    Raises:
        UserError: The checksum is not that of the content.
    """
    content = {key: part for key, part in value.items() if key != CHECKSUM}
    if check and CHECKSUM in value and value[CHECKSUM] != checksum(content):
        raise UserError(
            f"{where} is not as it was written: its content has another {CHECKSUM}. Take an undamaged copy; if you "
            f"changed it on purpose, remove its key '{CHECKSUM}'"
        )
    return content


def read_yaml(path: Path, what: str) -> Any:
    """Return the value of a YAML file: only plain values, no duplicate key, a limited number of aliased values.

    Raises:
        UserError: The file cannot be read, or its content is not such a document.
    """
    return parse_yaml(read_text(path, what), f"{what} '{path}'")


def to_yaml(value: Any) -> str:
    """Return plain values as a YAML document, with the keys in their order."""
    yaml, _ = _yaml()
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML document, with the same limits as `read_yaml`.

    Args:
        text: Text of the document.
        where: Name of the file or option, for the message.

    Raises:
        UserError: The text is not such a document.
    """
    # A command reads the same configuration several times, each time for another check. Each caller gets a copy, since
    # it may change the value.
    return copy.deepcopy(_parsed(text, where))


@functools.lru_cache(maxsize=4)
def _parsed(text: str, where: str) -> Any:
    """Return the value of a YAML document for `parse_yaml`, which has the arguments and errors."""
    yaml, plain_loader = _yaml()
    loader = None
    try:
        # This loader makes plain values only; others of PyYAML can create objects of any class that a file names.
        loader = plain_loader(text)  # raises for characters that YAML does not allow
        node = loader.get_single_node()
        if node is None:
            return None
        # Check the parsed nodes before any value is constructed from them.
        _written_out(node, {}, where)
        value = loader.construct_document(node)
        if _levels(value) > MOST_LEVELS:
            # The message is the same as for nesting that exceeds Python's own limit.
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
    except Exception as error:  # constructors of YAML's own types may raise KeyError, AttributeError and others
        raise UserError(f"{where} is not YAML that can be read: {reason(error)}") from error
    finally:
        if loader is not None:
            loader.dispose()


@functools.cache
def _yaml() -> tuple[Any, Any]:
    """Return the package PyYAML and a loader of plain values, which reads 1e-3 as a number.

    YAML 1.1, and thus PyYAML, takes a number with an exponent for a text unless it has a point and a sign, as in
    1.0e-3. YAML 1.2 and the parser of `fit` do not.
    """
    import yaml  # imported here, because light commands read no YAML

    class Loader(yaml.SafeLoader):
        """Loader with a further form of numbers."""

    number = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return yaml, Loader


def _written_out(node: Any, sizes: dict[int, int], where: str) -> int:
    """Return the number of values in a YAML node with its aliases expanded.

    Raises UserError for too many values, a duplicate key, a zero character, and a value that contains itself.

    Args:
        node: Node of the parsed document.
        sizes: Results so far, by the identity of a node, since an aliased node is met several times.
        where: Name of the file or option, for the message.
    """
    if id(node) in sizes:
        if sizes[id(node)] < 0:
            raise UserError(f"{where} is not YAML that can be read: a value contains itself")
        return sizes[id(node)]
    sizes[id(node)] = -1  # marks a node whose count has begun: meeting it again means that it contains itself
    total = 1
    for part in _nodes_in(node, where):
        total += _written_out(part, sizes, where)
    if total > MOST_YAML_NODES:
        raise UserError(f"{where} has more than {MOST_YAML_NODES:,} values with its aliases written out")
    sizes[id(node)] = total
    return total


def _nodes_in(node: Any, where: str) -> list[Any]:
    """Return the nodes directly within a YAML node, after checking its text or its keys."""
    if node.id == "scalar" and "\0" in node.value:
        # No file name can contain one, and Python raises wherever such a text is used as a file name.
        raise UserError(f"{where}: line {node.start_mark.line + 1} has a zero character in a value; take it out")
    if node.id == "sequence":
        return list(node.value)
    if node.id != "mapping":
        return []
    keys = [key.value for key, _ in node.value if key.id == "scalar"]
    # The merge key << may occur several times.
    for key in keys:
        if keys.count(key) > 1 and key != "<<":
            raise UserError(f"{where}: the key '{key}' is there twice; leave one out")
    return list(itertools.chain.from_iterable(node.value))  # the nodes of the keys count too


def make_folder(folder: Path, option: str = "") -> Path:
    """Create the folder that a command will write to, before anything takes time, and return it.

    Args:
        folder: Folder to create, if it does not exist.
        option: Option of the command that names the folder, such as ``--out``; empty if none does.

    Raises:
        UserError: The folder cannot be created or written to.
    """
    mend = f"give another {option}" if option else "start the command in a folder that can be written to"
    name = f"{option} {folder}" if option else f"folder {folder}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name} cannot be made: {reason(error)}; {mend}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{name} is closed to writing; {mend}")
    return folder


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends without an error.

    The content goes to a temporary file in the same folder and is flushed to the disk. The last step is a rename within
    one file system. It happens completely or not at all, even if the process is killed. Temporary files that dead
    processes left in the folder are removed before this process writes to it for the first time.

    Yields:
        Binary file to write to.

    Raises:
        OSError: The file cannot be written. The error has its name, and an existing file stays unchanged.
    """
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(path.parent.absolute())
        prefix = f".{path.name[:40]}.{_this_machine()}-{os.getpid()}."
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".part")
        part = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            # `flush` empties Python's buffer and `fsync` the system's. Without them, a power failure after the rename
            # could leave the new name with only a part of the content.
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(part, path)
        part = None
        _sync_folder(path.parent)
    except OSError as error:
        # The message must name the file that the user knows, not the temporary one.
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink()


def _this_machine() -> str:
    """Return a short hash of the machine's name, because process ids on a shared disk come from several machines."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@functools.cache
def _remove_left_behind(folder: Path) -> None:
    """Remove unfinished files of processes on this machine that no longer exist, once for each folder.

    A benchmark writes a file per cell into one folder. If each write listed that folder, the time of a grid would grow
    with the square of its cells.

    Args:
        folder: Absolute path of the folder, since the working folder may change.
    """
    for part in folder.glob(f".*.{_this_machine()}-*.part"):
        # The name is .<file>.<machine>-<process id>.<random text>.part, as `replacing` makes it.
        number = part.name.rpartition(f".{_this_machine()}-")[2].partition(".")[0]
        if number.isdigit() and not _is_alive(int(number)):
            with contextlib.suppress(OSError):
                part.unlink()


def _is_alive(process: int) -> bool:
    """Return whether a process with this id exists, or True if that cannot be known."""
    if os.name != "posix":  # on Windows os.kill would end the process
        return True
    try:
        os.kill(process, 0)  # signal 0 is not delivered: the system only checks that the process exists
    except ProcessLookupError:
        return False
    # The process belongs to another user, or the number is too large for an id.
    except (OSError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Flush the new name of a file to the disk."""
    # Some file systems cannot do this; they keep renames in order.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as a JSON document, whole or not at all; see `replacing`.

    Raises:
        ValueError: A number in the value is not finite.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_checked_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with a checksum over its content, which `without_checksum` compares when it is read."""
    write_json(path, with_checksum(value))


def remove_parts(folder: Path) -> None:
    """Remove the unfinished files that killed processes left in a folder.

    Call it only while no other process writes to the folder, because files that are being written are removed too.
    """
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            part.unlink()
