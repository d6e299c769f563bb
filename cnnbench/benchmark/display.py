"""The live display of a benchmark: one bar for the whole run with the time left, and one line per finished step."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cnnbench.console import make_console
from cnnbench.text import printable

SILENT_S = 60.0
"""Seconds without a line after which the progress is printed as a line, where stderr is not a terminal."""


class LiveDisplay:
    """Progress display of a run on stderr, as a bar on a terminal and as lines elsewhere.

    Where stderr is not a terminal, it prints only the notes, and a line about the progress after `SILENT_S` seconds
    without a note. Use the display as a context manager. Each piece of work is announced with its expected seconds,
    from which the time left is computed; a second announcement corrects the first.

    Args:
        console: Console to print to; None for stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or make_console(stderr=True)
        self._expected_s: dict[str, float] = {}
        self._share: dict[str, float] = {}
        self._start = self._spoke = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[text]}", style="dim", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("bench", total=1.0, left="", text="")

    def __enter__(self) -> LiveDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def expect(self, name: str, seconds: float) -> None:
        """Announce a piece of work by its name and its expected duration in seconds."""
        # Without a duration above 0, the share of the whole run could not be computed.
        self._expected_s[name] = max(seconds, 0.1)
        # A corrected duration leaves the share that is done as it is.
        self._share.setdefault(name, 0.0)

    def update(self, name: str, share: float, text: str = "") -> None:
        """Set the share of a piece of work that is done, 0 to 1, and a text about what it is doing."""
        self._share[name] = share
        total = sum(self._expected_s.values())
        # The time left follows from the announced durations, not from the time that has passed.
        left = sum(seconds * (1 - self._share[key]) for key, seconds in self._expected_s.items())
        self._progress.update(
            self._task,
            description=printable(name),
            completed=(total - left) / total,
            left=f"about {_clock(left)} left",
            text=printable(text),
        )
        # A log gets a line now and then, so that somebody who reads it knows that the run is alive.
        if not self._console.is_terminal and text and time.monotonic() - self._spoke >= SILENT_S:
            self.note(f"{name}: {text}, about {_clock(left)} left")

    def note(self, text: str) -> None:
        """Print a line that stays on the screen, after the time since the start."""
        minutes = _clock(time.monotonic() - self._start)
        line = f"[{minutes}] {printable(text)}"
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._spoke = time.monotonic()


def _clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, such as ``2:05``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
