"""Stopping on Ctrl-C, SIGTERM, SIGHUP or SIGUSR1: cleanly, with a line that says how to go on, and with an exit code.

A signal raises `Stopped` wherever the program is, and `files.replacing` then removes a file that is being written.
``cnnbench fit`` trains inside `deferred`. There the first signal waits until the end of a step, when the state of the
training is complete and a callback calls `check`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from cnnbench.console import note
from cnnbench.errors import Stopped

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Signals that stop a command, as far as the platform has them."""


class _State:
    """Signal state of this process."""

    pending: int | None = None
    """Number of a signal that has arrived and has not raised yet, or whose exception was swallowed on its way."""
    deferring: bool = False
    """Whether the first signal waits for the next call of `check`."""


def _handle(number: int, _: FrameType | None) -> None:
    # A second signal does not wait, because the step that the first one waits for may take long.
    if _State.deferring and _State.pending is None:
        _State.pending = number
        note(f"{signal.Signals(number).name}: stopping after this step; once more stops at once")
        return
    # The number is kept, so that `check` raises again if other code swallows the exception on its way.
    _State.pending = number
    raise Stopped(number)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let signals raise `Stopped` inside the block; a signal that was ignored before, as under nohup, stays ignored."""
    # Python allows only the main thread to set signal handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for number in SIGNALS:
        handler = signal.getsignal(number)
        # None stands for a handler that was not set from Python, which Python could not put back afterwards.
        if handler not in (signal.SIG_IGN, None):
            before[number] = handler
    # A signal of an earlier command in this process must not stop this one.
    _State.pending, _State.deferring = None, False
    for number in before:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Put back the handlers of the signals after a block that may set others."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Delay the first signal inside the block until the next call of `check`."""
    before, _State.deferring = _State.deferring, True
    try:
        yield
    finally:
        _State.deferring = before


def slurm_job() -> str | None:
    """Return the id of the job of SLURM in which this process runs, with the number of the task in an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return os.environ.get("SLURM_JOB_ID") or None


def requeue(number: int, words: Sequence[str], goes_on: bool | None = None) -> None:
    """Let SLURM start the job again if it is about to end it, which it announces by SIGUSR1 (``--signal=USR1@90``).

    A job whose command would start anew is not queued again, since it might never come to an end.

    Args:
        number: Number of the signal that stopped the command.
        words: Command line.
        goes_on: Whether this command line, run again, goes on with what was kept; None if its options tell.
    """
    job = slurm_job()
    if job is None or number != getattr(signal, "SIGUSR1", None):
        return
    # A search goes on in the folder that it is given.
    option = "--out" if words[:1] == ["search"] else "--resume"
    if goes_on is None:
        following = dict(zip(words, [*words[1:], ""], strict=True))
        goes_on = any(word.partition("=")[0] == option for word in words)
        goes_on = goes_on and "--resume=never" not in words and following.get("--resume") != "never"
    if not goes_on:
        note(f"job {job} is not queued again, since this command would start anew; {option} lets it go on")
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
        note(f"job {job} is queued again")
    except (OSError, subprocess.SubprocessError) as error:
        note(f"job {job} cannot be queued again: {error}")


def check() -> None:
    """Raise `Stopped` if a signal has arrived that has not stopped the program yet.

    Raises:
        Stopped: A signal has arrived.
    """
    if _State.pending is not None:
        raise Stopped(_State.pending)


def is_pending() -> bool:
    """Return whether a signal is waiting for `check`."""
    return _State.pending is not None
