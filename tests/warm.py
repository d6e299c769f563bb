"""Commands in processes of their own without the seconds of a start: forks of one process that has imported everything.

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
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

import cnnbench.benchmark.run as runner
from cnnbench.timing.speed import SpeedConfig

MODULES = ["warm", "cnnbench.commands.speed_run", "cnnbench.benchmark.run", "cnnbench.commands.fit"]
"""Modules that are imported before the fork."""
FewRounds = partial(SpeedConfig, rounds=6, warmup_s=0.1)
"""Settings of a timing that takes a fraction of a second."""


def warm_context() -> ForkServerContext:
    """Return the context whose processes are forks of one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    # The first process of this session starts the one that imports.
    context.set_forkserver_preload(MODULES)
    return context


def time_in_few_rounds() -> None:
    """Let `bench` time in a fraction of a second, in the process of a `Warm` command."""
    runner.SpeedConfig = FewRounds  # type: ignore[misc, assignment]


class Warm:
    """A running ``cnnbench`` command, with what tests use of `subprocess.Popen`.

    Args:
        arguments: Arguments of the command.
        folder: Working folder of the command; None for that of the test.
        stderr: File that receives stderr; stdout goes nowhere.
        environment: Environment variables; None for those of the test.
        before: Function that the process calls before the command.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path | None = None,
        stderr: str = os.devnull,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        variables = dict(os.environ if environment is None else environment)
        work = (list(arguments), str(folder or Path.cwd()), stderr, variables, before)
        self._process = warm_context().Process(target=_command, args=work)
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

    def wait(self, timeout: float = 120.0) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("cnnbench", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _command(
    arguments: list[str],
    folder: str,
    stderr: str,
    variables: dict[str, str],
    before: Callable[[], None] | None,
) -> None:
    """Run the command in the process of a `Warm` as ``python -m cnnbench`` does, and end with its exit code."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for target, path in ((0, os.devnull), (1, os.devnull), (2, stderr)):
        handle = os.open(path, os.O_RDONLY if target == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, target)
        os.close(handle)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.path.insert(0, folder)
    sys.argv = ["cnnbench", *arguments]
    torch.set_num_threads(1)
    if before is not None:
        before()
    runpy.run_module("cnnbench", run_name="__main__", alter_sys=False)
