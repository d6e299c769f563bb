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
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnbench.files import reason
from cnnbench.text import shortened

NICE = 19
"""By how much an upload gives way to other processes while cells are measured: entirely."""
ANSWER_S = 25.0
"""Seconds after which a server counts as out of reach."""
MOST_PROCESSES = 3
"""Largest number of uploads at a time; runs beyond it are uploaded at the end."""
LONGEST_REASON = 200
"""Largest number of characters of a message of W&B that is repeated."""


def ask(*words: str) -> dict[str, str]:
    """Return what W&B's server answers to a question, or an ``error`` that says why it does not.

    A server that does not answer takes at most `ANSWER_S` seconds.

    Args:
        words: Question; see `cnnbench.report.wandb_child`.
    """
    with _start(words, subprocess.PIPE) as process:
        try:
            # `communicate` would close the standard input, at which the process ends.
            process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            return {"error": f"no answer of the server within {ANSWER_S:.0f} s"}
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
    # The package may be on the path of this process only.
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment["PYTHONUNBUFFERED"] = "1"
    if out == subprocess.PIPE:
        environment["WANDB_SILENT"] = "true"  # or else the client asks the server for the user's name, to print it
    # What was recorded in several attempts is put together on the server.
    environment["WANDB_RESUME"] = "allow"
    return subprocess.Popen(
        [sys.executable, "-m", "cnnbench.report.wandb_child", *words],
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=subprocess.DEVNULL if out == subprocess.PIPE else subprocess.STDOUT,
        env=environment,
        # Ctrl-C in a terminal goes to every process of the group, but the upload is to be completed first.
        start_new_session=True,
    )


@dataclass(frozen=True)
class _Upload:
    """A process that uploads runs.

    Attributes:
        runs: Folders of the runs.
        process: Process that uploads them.
        log: File with what it prints.
    """

    runs: tuple[Path, ...]
    process: subprocess.Popen[bytes]
    log: Path

    def end(self) -> str:
        """End the process if it still runs, and return why it has failed; empty if it has not.

        W&B marks a run as uploaded also if the server has refused parts of it, so the marks of a failed upload are
        removed here.
        """
        running = self.process.poll() is None
        self.process.kill()
        self.process.wait()
        # Only now, because the process ends as soon as this pipe is closed.
        if self.process.stdin is not None:
            self.process.stdin.close()
        why = self._complaint()
        if running:
            why = why or "the server takes too long"
        elif self.process.returncode and not why:
            why = f"the upload ended with code {self.process.returncode}"
        if why:
            for run in self.runs:
                for mark in run.glob("*.synced"):
                    mark.unlink()
        return why

    def _complaint(self) -> str:
        """Return the last error that the process has printed; empty if there is none."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            return reason(error)
        complaints = [line for line in lines if "ERROR" in line or "Error: " in line]
        if not complaints:
            return ""
        return shortened(" ".join(complaints[-1].split()).removeprefix("wandb: ERROR "), LONGEST_REASON)


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
        log = runs[0] / "upload.log"
        words = ["sync", str(self._nice if live else 0), *(["--live"] if live else []), *map(str, runs)]
        with log.open("wb") as file:
            self._uploads.append(_Upload(tuple(runs), _start(words, file.fileno()), log))

    def finish(self, seconds: float) -> str:
        """Upload what is not uploaded yet, wait for it, and return why some of it is not; empty if all is.

        Args:
            seconds: Longest time to wait.
        """
        limit = time.monotonic() + seconds
        try:
            followed = {run for upload in self._uploads for run in upload.runs}
            rest = [run for run in waiting(self._folder) if run not in followed]
            if rest:
                self._begin(rest, live=False)
            for upload in self._uploads:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    upload.process.wait(max(0.0, limit - time.monotonic()))
        finally:
            # A signal may have ended the waiting.
            reasons = [upload.end() for upload in self._uploads]
            self._uploads = []
        return next((why for why in reasons if why), "")

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
