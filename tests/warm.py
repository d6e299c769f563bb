"""Processes of their own without the seconds of a start: forks of one process that has imported everything.

A test uses them where a process is needed, to be killed or to be in a folder of its own, but not its imports. The
process that forks is started once per worker of pytest, and is the one behind the fixture `quick_processes` too.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import IO, Any
from unittest import mock

import torch

import cnnbench.benchmark.run as runner
from cnnbench.timing.speed import SpeedConfig

MODULES = [
    "warm",
    "cnnbench.commands.speed_run",
    "cnnbench.benchmark.run",
    "cnnbench.commands.fit",
    "cnnbench.report.charts",
    "cnnbench.report.tracking",
    "wandb.cli.cli",
]
"""Modules that are imported before the fork."""
FewRounds = partial(SpeedConfig, rounds=6, warmup_s=0.1)
"""Settings of a timing that takes a fraction of a second."""
Stream = str | Connection
"""File or pipe that is a standard stream of a process."""
TMPDIR = os.environ.get("TMPDIR")
"""Folder for temporary files in the environment that pytest started with; None for the default one."""


def warm_context(more: Sequence[str] = ()) -> ForkServerContext:
    """Return the context whose processes are forks of one that has imported everything.

    Args:
        more: Further modules, which are imported before the fork if this is the first call.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*MODULES, *more])
    # The process that imports starts here for the first time. It keeps its environment, and must not have a folder for
    # temporary files that the calling test, or the product, removes.
    with mock.patch.dict(os.environ):
        os.environ.pop("TMPDIR", None)
        if TMPDIR is not None:
            os.environ["TMPDIR"] = TMPDIR
        ensure_running()
    return context


def time_in_few_rounds() -> None:
    """Let `bench` time in a fraction of a second, in a `Warm` process."""
    runner.SpeedConfig = FewRounds  # type: ignore[misc, assignment]


class Warm:
    """A process that runs a module as ``python -m`` does, with what tests use of `subprocess.Popen`.

    Args:
        arguments: Arguments of the module.
        folder: Working folder; None for that of the test.
        stderr: File that receives stderr.
        environment: Environment variables; None for those of the test.
        before: Function that the process calls before it runs the module.
        module: Name of the module.
        stdin: File or pipe that is stdin.
        stdout: File or pipe that receives stdout.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path | None = None,
        stderr: Stream = os.devnull,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        module: str = "cnnbench",
        stdin: Stream = os.devnull,
        stdout: Stream = os.devnull,
    ) -> None:
        variables = dict(os.environ if environment is None else environment)
        work = (module, list(arguments), str(folder or Path.cwd()), (stdin, stdout, stderr), variables, before)
        self._process = warm_context().Process(target=_run_module, args=work)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        # A signal for the group of processes must not come before there is one.
        while self.poll() is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a warm process", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class WarmChild(Warm):
    """A `Warm` process in the place of that of `cnnbench.report.uploading`, whose stdin is a pipe.

    Args:
        words: What the process is to do.
        out: `subprocess.PIPE`, or the number of an open file that receives stdout and stderr.
        environment: Environment variables.
    """

    def __init__(self, words: Sequence[str], out: int, environment: Mapping[str, str]) -> None:
        context = warm_context()
        given, mine = context.Pipe(duplex=False)
        self.stdin: IO[bytes] = os.fdopen(os.dup(mine.fileno()), "wb")
        self.stdout: IO[bytes] | None = None
        errors: Stream = os.devnull
        if out == subprocess.PIPE:
            read, written = context.Pipe(duplex=False)
            self.stdout = os.fdopen(os.dup(read.fileno()), "rb")
            read.close()
        else:
            errors = written = Connection(os.dup(out), readable=False)
        mine.close()
        super().__init__(
            words,
            stdin=given,
            stdout=written,
            stderr=errors,
            environment=environment,
            module="cnnbench.report.wandb_child",
        )
        given.close()
        written.close()

    def __enter__(self) -> WarmChild:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout):
            if stream is not None:
                stream.close()
        self.wait()


def _run_module(
    module: str,
    arguments: list[str],
    folder: str,
    streams: tuple[Stream, Stream, Stream],
    variables: dict[str, str],
    before: Callable[[], None] | None,
) -> None:
    """Be the process of a `Warm`: run the module and end with its exit code."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for number, stream in enumerate(streams):
        _replace(number, stream)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.path.insert(0, folder)
    sys.argv = [module, *arguments]
    torch.set_num_threads(1)
    if before is not None:
        before()
    runpy.run_module(module, run_name="__main__", alter_sys=False)


def _replace(number: int, stream: Any) -> None:
    """Put a file or a pipe in the place of the file descriptor of a standard stream."""
    if isinstance(stream, str):
        handle = os.open(stream, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    else:
        os.dup2(stream.fileno(), number)
