"""The upload of recorded runs to W&B, by processes beside the command.

W&B's client waits for its server in many places, and retries for days. Here the command only records runs on disk. The
processes that upload them may fail, or be ended after a while, at no cost but the upload.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench import progress
from cnnbench.files import reason
from cnnbench.text import shortened
from cnnbench.trust import module_command

NICE = 19
"""By how much an upload gives way to other processes while cells are measured: entirely."""
ANSWER_S = 25.0
"""Seconds after which a server counts as out of reach."""
MOST_PROCESSES = 3
"""Largest number of uploads at a time; runs beyond it are uploaded at the end."""
LONGEST_REASON = 200
"""Largest number of characters of a message of W&B that is repeated."""
PROBE_AFTER = 0.25
"""Share of the waiting after which it is found out whether the server can be reached at all."""
LOG_FILE = "upload.log"
"""File in the folder of a run with what its last upload has printed."""
END = "cnnbench: the upload has ended"
"""Last line of that file, unless the upload was ended before it was complete."""
WRITTEN_S = 10.0
"""Longest time to wait, in seconds, for the recording of a run that has ended."""
_TOO_LONG = "the server takes too long"
_FILE_HEADER, _CHUNK_HEADER = 7, 7
"""Bytes at the start of a file of W&B, and of each chunk in it; see `_is_torn`."""
_FIRST, _MIDDLE = 2, 3
"""Kinds of chunks after which their record goes on."""


def ask(*words: str) -> dict[str, str]:
    """Return what W&B's server answers to a question, or an ``error`` that says why it does not.

    A server that does not answer takes at most `ANSWER_S` seconds.

    Args:
        words: Question; see `cnnbench.report.wandb_child`.
    """
    return _answer(_start(words, subprocess.PIPE), ANSWER_S)


def _answer(asked: subprocess.Popen[bytes], seconds: float) -> dict[str, str]:
    """Return the answer of a process that was started for a question, and end the process; see `ask`.

    Args:
        asked: Process.
        seconds: Longest time to wait.
    """
    with asked as process:
        try:
            # `communicate` would close the standard input, at which the process ends.
            with progress.doing("waiting for W&B"):
                process.wait(seconds)
        except subprocess.TimeoutExpired:
            return {"error": f"no answer of the server within {seconds:.0f} s"}
        finally:
            process.kill()
        assert process.stdout is not None
        text = process.stdout.read()
    # Other packages may print on stdout as well, but the answer is printed last.
    lines = text.decode(errors="replace").splitlines() or [""]
    try:
        answer: dict[str, str] = json.loads(lines[-1])
    except ValueError:
        return {"error": shortened(f"W&B's client failed: {lines[-1]}", LONGEST_REASON)}
    return answer


def _start(words: Sequence[str], out: int) -> subprocess.Popen[bytes]:
    """Start the process beside the command.

    Args:
        words: What the process is to do; see `cnnbench.report.wandb_child`.
        out: Destination of its standard output, and of its error messages if that is a file.
    """
    # With the address of this process's own client service, W&B would upload from here after all.
    dropped = ("WANDB_MODE", "WANDB_RESUME", "WANDB_SERVICE")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment["PYTHONUNBUFFERED"] = "1"
    if out == subprocess.PIPE:
        environment["WANDB_SILENT"] = "true"  # or else the client asks the server for the user's name, to print it
    # What was recorded in several attempts is put together on the server.
    environment["WANDB_RESUME"] = "allow"
    return _process(words, out, environment)


def _process(words: Sequence[str], out: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process with these environment variables; see `_start`."""
    return subprocess.Popen(
        module_command("cnnbench.report.wandb_child", *words),
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=subprocess.DEVNULL if out == subprocess.PIPE else subprocess.STDOUT,
        env=environment,
        # Ctrl-C in a terminal goes to every process of the group, but the upload is to be completed first.
        start_new_session=True,
    )


@dataclass(frozen=True)
class _Upload:
    """A process that uploads runs, one after the other, so that none can spoil the upload of another.

    Attributes:
        runs: Folders of the runs.
        process: Process that uploads them.
    """

    runs: tuple[Path, ...]
    process: subprocess.Popen[bytes]

    def end(self) -> list[str]:
        """End the process if it still runs, and return why runs are not uploaded; empty if all are.

        W&B marks a run as uploaded also if the server has refused parts of it, so the marks of a failed upload are
        removed here.
        """
        running = self.process.poll() is None
        self.process.kill()
        self.process.wait()
        # Only now, because the process ends as soon as this pipe is closed.
        if self.process.stdin is not None:
            self.process.stdin.close()
        reasons = []
        for run in self.runs:
            why = self._failure(run / LOG_FILE, running)
            if why:
                reasons.append(why)
                for mark in run.glob("*.synced"):
                    mark.unlink()
        return reasons

    def _failure(self, log: Path, running: bool) -> str:
        """Return why a run is not uploaded completely; empty if it is.

        Args:
            log: File with what the upload of the run has printed.
            running: Whether the process had to be ended.
        """
        try:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            return reason(error)
        complaints = [line for line in lines if "ERROR" in line or "Error: " in line]
        if complaints:
            return shortened(" ".join(complaints[-1].split()).removeprefix("wandb: ERROR "), LONGEST_REASON)
        if END in lines:
            return ""
        return _TOO_LONG if running else f"the upload ended with code {self.process.returncode}"


class Uploader:
    """Uploads of the runs of one folder.

    Args:
        folder: Folder in which W&B keeps its runs.
        measured: Whether what is logged is measured meanwhile, so that uploads give way to it.
    """

    def __init__(self, folder: Path, measured: bool = False) -> None:
        self._folder = folder
        self._nice = NICE if measured else 0
        self._uploads: list[_Upload] = []

    def follow(self, run: Path) -> None:
        """Upload a run while it is being recorded.

        Args:
            run: Folder of the run.
        """
        if sum(upload.process.poll() is None for upload in self._uploads) < MOST_PROCESSES:
            self._begin([run], live=True)

    def _begin(self, runs: Sequence[Path], live: bool) -> None:
        words = ["sync", str(self._nice if live else 0), *(["--live"] if live else []), *map(str, runs)]
        for run in runs:
            (run / LOG_FILE).write_bytes(b"")
        with (runs[0] / LOG_FILE).open("ab") as file:
            self._uploads.append(_Upload(tuple(runs), _start(words, file.fileno())))

    def finish(self, seconds: float) -> str:
        """Upload what is not uploaded yet, wait for it, and return why some of it is not; empty if all is.

        Args:
            seconds: Longest time to wait.
        """
        limit = time.monotonic() + seconds
        probe = None
        try:
            running = [upload for upload in self._uploads if upload.process.poll() is None]
            for upload in self._uploads:
                if upload not in running:
                    upload.end()  # of a failed one, the marks of its runs are removed, and so it is begun again here
            self._uploads = running
            followed = {run for upload in running for run in upload.runs}
            rest = [run for run in waiting(self._folder) if run not in followed]
            for first in range(min(MOST_PROCESSES, len(rest))):
                self._begin(rest[first::MOST_PROCESSES], live=False)
            self._wait(limit - (1 - PROBE_AFTER) * seconds)
            if any(upload.process.poll() is None for upload in self._uploads):
                # Uploads try again for days without a word, so this alone tells a slow server from none.
                probe = _start(["connection"], subprocess.PIPE)
            self._wait(limit)
        finally:
            # A signal may have ended the waiting.
            reasons = [why for upload in self._uploads for why in upload.end()]
            self._uploads = []
            answer = {} if probe is None else _answer(probe, 0.0)
        if _TOO_LONG in reasons and answer.get("error", "").startswith("no connection"):
            return answer["error"]
        return next(iter(reasons), "")

    def _wait(self, limit: float) -> None:
        """Wait for the uploads until a time of `time.monotonic`."""
        for upload in self._uploads:
            with contextlib.suppress(subprocess.TimeoutExpired):
                upload.process.wait(max(0.0, limit - time.monotonic()))

    def command(self) -> str:
        """Return the command that uploads the runs later."""
        # The star is left out of the quotes, so that the shell still finds all runs.
        return f"WANDB_RESUME=allow wandb sync {shlex.quote(str(self._folder))}/offline-run-*"


def waiting(folder: Path) -> list[Path]:
    """Return the folders of the runs that are not uploaded yet, the oldest first.

    Args:
        folder: Folder in which W&B keeps its runs.
    """
    runs = sorted(folder.glob("offline-run-*"))
    return [run for run in runs if list(run.glob("*.wandb")) and not list(run.glob("*.synced"))]


def is_uploaded(folder: Path, identity: str) -> bool:
    """Return whether all that was recorded of a run is there and uploaded.

    Args:
        folder: Folder in which W&B keeps its runs.
        identity: Id of the run.
    """
    runs = list(folder.glob(f"offline-run-*-{identity}"))
    return bool(runs) and not [run for run in waiting(folder) if run in runs]


def replace_run(folder: Path, identity: str) -> None:
    """Rename what is not uploaded of a run, so that it is not uploaded; another run has the same points.

    Args:
        folder: Folder in which W&B keeps its runs.
        identity: Id of the run.
    """
    for run in waiting(folder):
        if run.name.endswith(f"-{identity}"):
            run.rename(run.with_name(f"replaced-{run.name}"))


def wait_until_written(run: Path, seconds: float = WRITTEN_S) -> None:
    """Wait until the recording of a run that has just ended can be read.

    W&B's service writes the file, and ``run.finish()`` tells it that the run has ended without waiting for an answer.
    Of a short run, nothing is on the disk before that, so for some milliseconds the file looks like a torn one.

    Args:
        run: Folder of the run.
        seconds: Longest time to wait, since the service may have been killed.
    """
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        files = list(run.glob("*.wandb"))
        if files and not any(_is_torn(file) for file in files):
            return
        time.sleep(0.01)


def set_torn_aside(folder: Path) -> list[Path]:
    """Rename recordings that W&B's client cannot read, at which it would refuse to upload any other too.

    Args:
        folder: Folder in which W&B keeps its runs, of which none is being recorded.

    Returns:
        Their new paths.
    """
    torn = [run for run in waiting(folder) if any(_is_torn(file) for file in run.glob("*.wandb"))]
    return [run.rename(run.with_name(f"torn-{run.name}")) for run in torn]


def _is_torn(file: Path) -> bool:
    """Return whether a file of W&B ends before its first record does, as after a kill within seconds of its start.

    W&B's client keeps up to 15 seconds or 32 KiB in memory. Its file has a header with the letters ``:W&B``, and then
    chunks as in the logs of LevelDB: a checksum of 4 bytes, the length of the content as 2 bytes, the lowest first, and
    1 byte with the kind. See https://github.com/google/leveldb/blob/main/doc/log_format.md.
    """
    with file.open("rb") as opened:
        if not opened.read(_FILE_HEADER).startswith(b":W&B"):
            return True
        while True:
            header = opened.read(_CHUNK_HEADER)
            # A chunk without content is a stretch of zeros, which a crash of the machine can leave.
            length = int.from_bytes(header[4:6], "little")
            if len(header) < _CHUNK_HEADER or length == 0 or len(opened.read(length)) < length:
                return True
            # Of a record that goes over several chunks, this is not the last one.
            if header[6] not in (_FIRST, _MIDDLE):
                return False
