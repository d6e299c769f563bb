"""The live display of a benchmark: one bar for the whole run with the time left, and one line per finished step."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from cnnbench import progress
from cnnbench.console import has_bars, make_console, spoke
from cnnbench.text import clock, printable

LEAST_PACE = 0.1
"""Share of a piece of work from which on its own pace tells how long it takes, and no longer what was announced."""


@dataclass
class _Piece:
    """Piece of work: its announced seconds, the share that is done, and when it began and last moved on."""

    expected_s: float
    share: float = 0.0
    begun: float | None = None
    moved: float = 0.0

    def left_s(self, now: float) -> float:
        """Return the seconds that are left by the clock; below 0 if it takes longer than expected."""
        if self.share >= 1:
            return 0.0
        if self.begun is None:
            return self.expected_s
        whole = self.expected_s
        if self.share >= LEAST_PACE:
            whole = (self.moved - self.begun) / self.share
        return whole - (now - self.begun)


class LiveDisplay:
    """Progress display of a run on stderr, as a bar on a terminal and as lines elsewhere.

    Where there is no bar, it prints the notes, and `cnnbench.progress` prints what it says last after some seconds
    without a note. Use the display as a context manager. Each piece of work is announced with its expected seconds,
    from which the time left is computed; a second announcement corrects the first.

    Args:
        console: Console to print to; None for stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or make_console(stderr=True)
        self._pieces: dict[str, _Piece] = {}
        self._moved = time.monotonic()
        self._now = "starting"
        # The bar is drawn where this display or `cnnbench.progress` says so, and by no thread of rich's, which would
        # draw it ten times a second while something is timed.
        self._progress = Progress(
            TextColumn("{task.fields[stamp]}", markup=False),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[text]}", style="dim", markup=False),
            console=self._console,
            transient=True,
            auto_refresh=False,
            disable=not (self._console.is_terminal and has_bars()),
        )
        self._task = self._progress.add_task("bench", total=1.0, stamp="", left="", text="")
        self._alive = contextlib.ExitStack()

    def __enter__(self) -> LiveDisplay:
        self._alive.enter_context(progress.watching("measuring"))
        self._alive.enter_context(progress.doing(self.words))
        if not self._progress.disable:
            self._alive.enter_context(progress.drawing(self._draw))
        # From its start on, rich prints what is written to stderr as text, also the codes that remove a line. So the
        # line of `cnnbench.progress` has to be removed before.
        spoke()
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._alive.close()

    def expect(self, name: str, seconds: float) -> None:
        """Announce a piece of work by its name and its expected duration in seconds."""
        # Without a duration above 0, the share of the whole run could not be computed. A corrected duration leaves the
        # share that is done as it is.
        self._pieces.setdefault(name, _Piece(0.0)).expected_s = max(seconds, 0.1)

    def update(self, name: str, share: float, text: str = "") -> None:
        """Set the share of a piece of work that is done, 0 to 1, and a text about what it is doing."""
        piece, now = self._pieces[name], time.monotonic()
        if piece.begun is None:
            piece.begun = piece.moved = now
        if share != piece.share:
            piece.share, piece.moved = share, now
        self._moved, self._now = now, f"{name}: {text}" if text else name
        self._progress.update(self._task, description=printable(name), text=printable(text))
        self._draw()

    def words(self) -> str:
        """Return what the run is doing, and the time left."""
        return f"{self._now}, {self.left()}"

    def left(self) -> str:
        """Return the time left in words, by the clock."""
        seconds = self._left_s()
        return "longer than expected" if seconds is None else f"about {clock(seconds)} left"

    def _left_s(self) -> float | None:
        """Return the seconds that are left; None if a piece of work takes longer than expected."""
        now = time.monotonic()
        each = [piece.left_s(now) for piece in list(self._pieces.values())]
        seconds = sum(each)
        # Other processes may be at work on pieces that do not say how far they are.
        if not any(piece.begun is not None and piece.share < 1 for piece in list(self._pieces.values())):
            seconds -= now - self._moved
        return None if min([seconds, *each]) < 0 else seconds

    def _draw(self) -> None:
        """Draw the bar, on a terminal."""
        if self._progress.disable:
            return
        done = sum(piece.share * piece.expected_s for piece in list(self._pieces.values()))
        total = sum(piece.expected_s for piece in list(self._pieces.values()))
        share = done / total if total else 0.0
        self._progress.update(self._task, completed=share, stamp=progress.stamp(), left=self.left())
        self._progress.refresh()

    def note(self, text: str) -> None:
        """Print a line that stays on the screen, after the time since the command began."""
        line = f"{progress.stamp()} {printable(text)}"
        spoke()
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
