"""How a command stops on Ctrl-C, SIGTERM or SIGHUP: cleanly, with a line that says how to go on, and its exit code.

A signal raises `Stopped` wherever the program is; a file that is being written is removed by `files.replacing`. Inside
`deferred`, which training uses, the signal waits for a moment at which the state is whole: `check` is called there.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from cnnbench.console import note
from cnnbench.errors import Stopped

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class _State:
    """What has been asked for in this process."""

    pending: int | None = None
    """A signal that has come and has not raised yet, or whose exception was swallowed on its way."""
    deferring: bool = False


def _handle(number: int, _: FrameType | None) -> None:
    # A second signal does not wait: the first one may be waiting for a step that takes long.
    if _State.deferring and _State.pending is None:
        _State.pending = number
        note(f"{signal.Signals(number).name}: stopping after this step; once more stops at once")
        return
    _State.pending = number
    raise Stopped(number)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Have signals raise `Stopped` inside; a signal that was ignored before, as by nohup, stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _State.pending, _State.deferring = None, False
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Have the first signal inside wait for the next call of `check`."""
    before, _State.deferring = _State.deferring, True
    try:
        yield
    finally:
        _State.deferring = before


def check() -> None:
    """Raise `Stopped` if a signal has come that has not stopped the program yet.

    Raises:
        Stopped: One has.
    """
    if _State.pending is not None:
        raise Stopped(_State.pending)


def is_pending() -> bool:
    """Return whether a signal waits for `check`."""
    return _State.pending is not None
