"""Signs of life: no command is silent for more than ten seconds, and nothing disturbs a timing.

Code says what it is doing with `doing`. A thread, started by `watching`, prints that in a line when nothing has been
printed for `SILENT_S` seconds; on a terminal it draws a bar, which the next line replaces. Inside `hushed`, where calls
are timed, the thread sleeps without waking, and a line that is due is printed at the end of the block.

There is one clock. Every line of progress begins with the time since the command began, which `stamp` returns.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from cnnbench.console import draw_line, has_bars, note, seconds_silent, spoke
from cnnbench.text import clock

SILENT_S = 8.0
"""Seconds without a line after which one says what the command is doing; at most 10 pass on a busy machine."""
FIRST_BAR_S = 2.0
"""Seconds without a line after which a bar appears on a terminal."""
BAR_S = 1.0
"""Seconds between two drawings of a bar."""
BAR_WIDTH = 24
"""Width of a bar in characters."""


class Step:
    """Piece of work that is under way.

    Args:
        text: What it is, or a function that says so when a line is printed.
        total: Number of its parts; 0 if it has none.
    """

    def __init__(self, text: str | Callable[[], str], total: int = 0) -> None:
        self.text, self.total, self.done = text, total, 0

    def advance(self, text: str | Callable[[], str] | None = None) -> None:
        """Count one more part as done, and say what is next."""
        self.done += 1
        if text is not None:
            self.text = text

    def words(self) -> str:
        """Return what the work is, and how far it is."""
        text = self.text if isinstance(self.text, str) else self.text()
        return f"{text}, {self.done} of {self.total}" if self.total else text

    def bar(self) -> str:
        """Return the words with a bar in front, if the number of parts is known."""
        if not self.total:
            return self.words()
        full = round(BAR_WIDTH * min(self.done / self.total, 1))
        return f"[{'#' * full}{'-' * (BAR_WIDTH - full)}] {self.words()}"


class _Watch:
    """State of the thread that watches this process."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.condition = threading.Condition()
        self.thread: threading.Thread | None = None
        self.hushed = 0
        self.asleep = False
        self.drawer: Callable[[], None] | None = None
        self.begun = time.monotonic()


_watch = _Watch()


def _forget() -> None:
    """Start anew in a forked process, which has the lock of its parent and not its thread."""
    global _watch
    _watch = _Watch()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def stamp() -> str:
    """Return the time since the command began, as minutes and seconds in brackets, such as ``[2:05]``."""
    return f"[{clock(time.monotonic() - _watch.begun)}]"


@contextlib.contextmanager
def doing(text: str | Callable[[], str], total: int = 0) -> Iterator[Step]:
    """Say for the time of the block what the command is doing; see `Step`."""
    step = Step(text, total)
    _watch.steps.append(step)
    try:
        yield step
    finally:
        _watch.steps.remove(step)


def now(_: float, text: str) -> None:
    """Say what the work at hand is doing now; a callback for code that calls one with a share and a text."""
    if _watch.steps:
        _watch.steps[-1].text = text


@contextlib.contextmanager
def drawing(draw: Callable[[], None]) -> Iterator[None]:
    """Let a function draw the bar of a terminal for the time of the block."""
    before, _watch.drawer = _watch.drawer, draw
    try:
        yield
    finally:
        _watch.drawer = before


@contextlib.contextmanager
def watching(text: str) -> Iterator[None]:
    """Print signs of life during the block; inside another such block only the text counts.

    Args:
        text: What the command is doing where nothing else says so.
    """
    with doing(text):
        if _watch.thread is not None:
            yield
            return
        watch = _watch
        spoke()
        watch.begun = time.monotonic()
        watch.thread = threading.Thread(target=_run, args=(watch,), name="signs of life", daemon=True)
        watch.thread.start()
        try:
            yield
        finally:
            thread, watch.thread = watch.thread, None
            with watch.condition:
                watch.condition.notify_all()
            thread.join(1.0)
            draw_line("")


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep the thread asleep while calls are timed; a line that is due is printed at the end of the block."""
    watch = _watch
    if watch.thread is None:
        yield
        return
    with watch.condition:
        watch.hushed += 1
        watch.condition.notify_all()
        # The thread wakes once more, before anything is timed, and then sleeps without a time limit.
        while not watch.asleep and watch.thread is not None and watch.thread.is_alive():
            watch.condition.wait(0.1)
    try:
        yield
    finally:
        with watch.condition:
            watch.hushed -= 1
            if not watch.hushed:
                _show_if_due(watch)
                watch.asleep = False
                watch.condition.notify_all()


def _run(watch: _Watch) -> None:
    with watch.condition:
        while watch.thread is not None:
            watch.asleep = bool(watch.hushed)
            if watch.hushed:
                watch.condition.notify_all()
                watch.condition.wait()
            else:
                watch.condition.wait(_show_if_due(watch))


def _show_if_due(watch: _Watch) -> float:
    """Print or draw what the command is doing if that is due; return the seconds until it may be due again."""
    if not watch.steps:
        return SILENT_S
    step, silent = watch.steps[-1], seconds_silent()
    if not has_bars():
        if silent >= SILENT_S:
            note(f"{stamp()} still {step.words()}")
            return SILENT_S
        return SILENT_S - silent
    if watch.drawer is not None:
        watch.drawer()
    elif silent >= FIRST_BAR_S:
        draw_line(f"{stamp()} {step.bar()}")
    return BAR_S
