"""Downloads of archives from mirrors that serve identical bytes.

An interrupted download is resumed, and a complete one is verified by its checksum. Only one process downloads at a
time, and the others wait for it. All mirrors are asked at once, so that a missing network is noticed within seconds.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cnnbench.console import make_console
from cnnbench.errors import MissingDataError, UserError
from cnnbench.files import check_regular, reason

CONNECT_S = 8.0
"""Time limit in seconds for a mirror to answer; all are asked at once, so a missing network costs no more than this."""
STALL_S = 30.0
"""Seconds without a byte after which the next mirror resumes the download."""

_CHUNK = 1 << 20


def fetch(urls: Sequence[str], target: Path, md5: str) -> None:
    """Download one file to the target path, unless it already exists there with the right checksum.

    The mirrors that answer are tried in the order of ``urls``. If the environment variable CNNBENCH_MIRROR is set, that
    URL with the name of the file appended comes first. A partial download is resumed, also from another mirror, since
    all mirrors serve the same bytes. The file gets its final name only after its checksum was verified.

    Args:
        urls: Addresses that serve the same bytes.
        target: Path of the complete file.
        md5: MD5 checksum of the complete file, in hex.

    Raises:
        MissingDataError: No mirror delivered the file (the message names each mirror with the reason), or the file
            cannot be written.
        UserError: The existing file or its partial download cannot be read, or is something else, such as a folder.
    """
    own = os.environ.get("CNNBENCH_MIRROR")
    if own:
        urls = [f"{own.rstrip('/')}/{target.name}", *urls]
    part = target.with_name(target.name + ".part")
    try:
        if _is_complete(target, part, md5):
            return
        mirrors = _Mirrors(urls, offset=_size(part))
    except OSError as error:
        raise UserError(f"downloaded file '{target}' cannot be read: {reason(error)}; delete it") from error
    try:
        # The mirrors before the first one that answers; `_try_mirrors` adds those that fail later.
        failures = mirrors.failures()
        if len(failures) < len(set(urls)):  # without any answer no folder is created
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                # Another process may have finished the download while this one waited for the lock.
                if _is_there(target, md5) or _try_mirrors(urls, mirrors, part, md5, failures):
                    return
    except OSError as error:
        raise MissingDataError(f"cannot write to {target.parent} to download {target.name}: {error}") from error
    finally:
        mirrors.close()
    # HTTP 416 is "range not satisfiable": the partial file is longer than the whole one, so start again without it.
    if "HTTP 416" in failures.values() and part.exists():
        with FileLock(f"{target}.lock"):  # another process may be writing to it
            part.unlink(missing_ok=True)
        # Without a partial file no range is asked for, so this happens only once.
        fetch(urls, target, md5)
        return
    raise MissingDataError(f"could not download {target.name}; tried {_listed(failures)}")


def _is_complete(target: Path, part: Path, md5: str) -> bool:
    """Return whether the file is there, after checking that it and its partial download are files that can be read."""
    for path in (target, part):
        try:
            check_regular(path, "downloaded file")
        except UserError:
            # A path that is not there is no fault, also if another process has just renamed its partial file.
            if os.path.lexists(path):
                raise
    return _is_there(target, md5) or _was_all_but_renamed(part, target, md5)


def _was_all_but_renamed(part: Path, target: Path, md5: str) -> bool:
    """Return whether the file is complete, after finishing a download that was killed just before the renaming.

    If another process downloads the file, wait for it.
    """
    if not part.exists():
        return False
    with FileLock(f"{target}.lock"):
        if not _is_there(target, md5) and _is_there(part, md5):
            part.replace(target)
        return _is_there(target, md5)


def _is_there(target: Path, md5: str) -> bool:
    return target.exists() and file_md5(target) == md5


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _listed(failures: Mapping[str, str]) -> str:
    """Return the hosts that failed, grouped by the reason."""
    hosts: dict[str, list[str]] = {}
    for url, why in failures.items():
        hosts.setdefault(why, []).append(urlsplit(url).netloc)
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in hosts.items())


def file_md5(path: Path) -> str:
    """Return the MD5 checksum of a file, in hex."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _try_mirrors(urls: Sequence[str], mirrors: _Mirrors, part: Path, md5: str, failures: dict[str, str]) -> bool:
    """Save the file from the first mirror that delivers it, and return whether one did.

    The reasons of the mirrors that fail are added to ``failures``.
    """
    for url in urls:
        response = mirrors.answer(url)
        if isinstance(response, str):
            failures[url] = response
            continue
        try:
            offset = _size(part)
            # Ask again if an earlier mirror has delivered a part in the meantime, or has taken long.
            if offset != mirrors.offset or mirrors.stale:
                response.close()
                response = _open(url, offset)
            _save(response, part)
        except (OSError, HTTPException) as error:
            failures[url] = _reason(error)
            continue
        if file_md5(part) == md5:
            part.replace(part.with_suffix(""))  # the name of the complete file lacks ".part"
            return True
        failures[url] = f"wrong content: its md5 is not {md5}"
        # Wrong bytes must not become the beginning of the next mirror's file.
        part.unlink()
    return False


def _open(url: str, offset: int) -> HTTPResponse:
    # Without compression on the way, the offset and the length are those of the file itself.
    headers = {"User-Agent": "cnnbench", "Accept-Encoding": "identity"}
    if offset:
        # A server without support for ranges ignores this and sends the whole file, as `_save` sees by the status.
        headers["Range"] = f"bytes={offset}-"
    request = urllib.request.Request(url, headers=headers)
    return cast(HTTPResponse, urllib.request.urlopen(request, timeout=STALL_S))


class _Mirrors:
    """Mirrors that are asked all at once, each in a thread of its own.

    The threads are needed because a name look-up has no time limit.

    Args:
        urls: Addresses of the file.
        offset: Number of bytes that are already on the disk; the mirrors are asked for the rest.
    """

    def __init__(self, urls: Sequence[str], offset: int) -> None:
        self.offset = offset
        self._deadline = time.monotonic() + CONNECT_S
        self._answers: dict[str, HTTPResponse | str] = {}
        # Daemon threads do not keep the process alive when a name look-up hangs.
        self._threads = {url: threading.Thread(target=self._ask, args=(url,), daemon=True) for url in urls}
        for thread in self._threads.values():
            thread.start()

    def _ask(self, url: str) -> None:
        try:
            self._answers[url] = _open(url, self.offset)
        # urllib raises ValueError for a text that is not a URL, which CNNBENCH_MIRROR may hold.
        except (OSError, HTTPException, ValueError) as error:
            self._answers[url] = _reason(error)

    @property
    def stale(self) -> bool:
        """Return whether the answers are so old that the servers may have closed the connections."""
        return time.monotonic() > self._deadline

    def close(self) -> None:
        """Close the connections to all mirrors that have answered."""
        for answer in list(self._answers.values()):
            if not isinstance(answer, str):
                answer.close()

    def failures(self) -> dict[str, str]:
        """Wait for the first mirror, in their order, that answers; return the reasons why those before it failed."""
        reasons: dict[str, str] = {}
        for url in self._threads:
            answer = self.answer(url)
            if not isinstance(answer, str):
                break
            reasons[url] = answer
        return reasons

    def answer(self, url: str) -> HTTPResponse | str:
        """Return the open response of a mirror, or the reason why there is none after waiting for it."""
        # All mirrors share one deadline, so waiting for all of them takes no longer than waiting for one.
        self._threads[url].join(max(0.0, self._deadline - time.monotonic()))
        return self._answers.get(url, f"no answer within {CONNECT_S:.0f} s")


def _save(response: HTTPResponse, part: Path) -> None:
    """Write a response to the partial file and show the progress; append if the server resumes the download."""
    done, mode = 0, "wb"
    if response.status == 206:  # partial content; any other status sends the whole file
        done, mode = _size(part), "ab"
    # The length of this response, which is only that of the rest if the download is resumed.
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        response,
        part.open(mode) as file,
        Progress(*columns, TimeRemainingColumn(), console=make_console(stderr=True)) as progress,
    ):
        task = progress.add_task(f"download {part.stem}", total=total, completed=done)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress.update(task, completed=done)
    # `read` with a size raises no error when the connection ends early.
    if total is not None and done < total:
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, urllib.error.URLError):
        # urllib wraps the error of the connection, whose own text is the helpful one.
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
