"""The live display of a benchmark: one bar over the whole run with the time left, and a line per finished step."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cnnbench.console import make_console
from cnnbench.text import printable

SILENT_S = 60.0
"""Seconds without a line after which a log is told how far the run is."""


class LiveDisplay:
    """Shows on stderr how far a run is; where stderr is no terminal, by notes and a line each minute without one.

    Use as a context manager. Work is announced with its expected seconds, from which the time left follows; announcing
    it again corrects the expectation.
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
        """Announce a piece of work and how long it should take."""
        self._expected_s[name] = max(seconds, 0.1)
        self._share.setdefault(name, 0.0)

    def update(self, name: str, share: float, text: str = "") -> None:
        """Set the share of a piece of work that is done, 0 to 1, and what is going on."""
        self._share[name] = share
        total = sum(self._expected_s.values())
        left = sum(seconds * (1 - self._share[key]) for key, seconds in self._expected_s.items())
        self._progress.update(
            self._task,
            description=printable(name),
            completed=(total - left) / total,
            left=f"about {_clock(left)} left",
            text=printable(text),
        )
        if not self._console.is_terminal and text and time.monotonic() - self._spoke >= SILENT_S:
            self.note(f"{name}: {text}, about {_clock(left)} left")

    def note(self, text: str) -> None:
        """Print a line that stays."""
        minutes = _clock(time.monotonic() - self._start)
        line = f"[{minutes}] {printable(text)}"
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._spoke = time.monotonic()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
