"""Downloads of archives from byte-identical mirrors: resumed, checked, one process at a time, and soon given up."""

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
"""Seconds in which some mirror must answer; all are asked at once, so that no network costs this long in all."""
STALL_S = 30.0
"""Seconds without a byte after which a mirror is left for the next one, which resumes."""

_CHUNK = 1 << 20


def fetch(urls: Sequence[str], target: Path, md5: str) -> None:
    """Brings one file to the target path, unless it is there and right.

    Mirrors are used in the given order among those that answer; a file of CNNBENCH_MIRROR (a URL that the file's name
    is appended to) comes before all. A part that is already there is resumed, also by another mirror, since all must
    serve the same bytes. The file gets its name only after its checksum was right.

    Args:
        urls: Addresses of the same bytes.
        target: Path of the complete file.
        md5: Checksum of the complete file, in hex.

    Raises:
        MissingDataError: No mirror delivered the file; the message names each with its reason.
        UserError: Something else is in its place, such as a folder.
    """
    own = os.environ.get("CNNBENCH_MIRROR")
    if own:
        urls = [f"{own.rstrip('/')}/{target.name}", *urls]
    part = target.with_name(target.name + ".part")
    try:
        for path in (target, part):
            if os.path.lexists(path):
                check_regular(path, "downloaded file")
        if _is_there(target, md5) or _was_all_but_renamed(part, target, md5):
            return
        mirrors = _Mirrors(urls, offset=_size(part))
    except OSError as error:
        raise UserError(f"downloaded file '{target}' cannot be read: {reason(error)}; delete it") from error
    try:
        failures = mirrors.failures()
        if len(failures) < len(set(urls)):  # without an answer no folder is made
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                if _is_there(target, md5) or _try_mirrors(urls, mirrors, part, md5, failures):
                    return
    except OSError as error:
        raise MissingDataError(f"cannot write to {target.parent} to download {target.name}: {error}") from error
    finally:
        mirrors.close()
    if "HTTP 416" in failures.values() and part.exists():  # a part that is longer than the file
        part.unlink()
        fetch(urls, target, md5)
        return
    raise MissingDataError(f"could not download {target.name}; tried {_listed(failures)}")


def _was_all_but_renamed(part: Path, target: Path, md5: str) -> bool:
    """Finishes a download that was killed after its last byte; waits for one that is under way."""
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
    """The hosts by the reason why each failed."""
    hosts: dict[str, list[str]] = {}
    for url, why in failures.items():
        hosts.setdefault(why, []).append(urlsplit(url).netloc)
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in hosts.items())


def file_md5(path: Path) -> str:
    """MD5 checksum of a file, in hex."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _try_mirrors(urls: Sequence[str], mirrors: _Mirrors, part: Path, md5: str, failures: dict[str, str]) -> bool:
    """Takes the file from the first mirror that delivers it; adds the reasons of those that do not."""
    for url in urls:
        response = mirrors.answer(url)
        if isinstance(response, str):
            failures[url] = response
            continue
        try:
            offset = _size(part)
            if offset != mirrors.offset or mirrors.stale:  # an earlier mirror delivered some of it, or took long
                response.close()
                response = _open(url, offset)
            _save(response, part)
        except (OSError, HTTPException) as error:
            failures[url] = _reason(error)
            continue
        if file_md5(part) == md5:
            part.replace(part.with_suffix(""))
            return True
        failures[url] = f"wrong content: its md5 is not {md5}"
        part.unlink()
    return False


def _open(url: str, offset: int) -> HTTPResponse:
    headers = {"User-Agent": "cnnbench", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    request = urllib.request.Request(url, headers=headers)
    return cast(HTTPResponse, urllib.request.urlopen(request, timeout=STALL_S))


class _Mirrors:
    """Asks all mirrors at once in threads, since a name look-up knows no time limit of its own."""

    def __init__(self, urls: Sequence[str], offset: int) -> None:
        self.offset = offset
        self._deadline = time.monotonic() + CONNECT_S
        self._answers: dict[str, HTTPResponse | str] = {}
        self._threads = {url: threading.Thread(target=self._ask, args=(url,), daemon=True) for url in urls}
        for thread in self._threads.values():
            thread.start()

    def _ask(self, url: str) -> None:
        try:
            self._answers[url] = _open(url, self.offset)
        except (OSError, HTTPException, ValueError) as error:
            self._answers[url] = _reason(error)

    @property
    def stale(self) -> bool:
        """Whether the answers are so old that the servers may have hung up."""
        return time.monotonic() > self._deadline

    def close(self) -> None:
        """Hangs up on the mirrors that are not needed."""
        for answer in list(self._answers.values()):
            if not isinstance(answer, str):
                answer.close()

    def failures(self) -> dict[str, str]:
        """Waits until a mirror has answered or all have failed; the reasons of those before it in the order."""
        reasons: dict[str, str] = {}
        for url in self._threads:
            answer = self.answer(url)
            if not isinstance(answer, str):
                break
            reasons[url] = answer
        return reasons

    def answer(self, url: str) -> HTTPResponse | str:
        """The open response of a mirror, or the reason why there is none."""
        self._threads[url].join(max(0.0, self._deadline - time.monotonic()))
        return self._answers.get(url, f"no answer within {CONNECT_S:.0f} s")


def _save(response: HTTPResponse, part: Path) -> None:
    resumed = response.status == 206
    done = _size(part) if resumed else 0
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        response,
        part.open("ab" if resumed else "wb") as file,
        Progress(*columns, TimeRemainingColumn(), console=make_console(stderr=True)) as progress,
    ):
        task = progress.add_task(f"download {part.stem}", total=total, completed=done)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress.update(task, completed=done)
    if total is not None and done < total:
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
