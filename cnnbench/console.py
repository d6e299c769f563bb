"""Terminal output: every line and table that a command prints passes through this module, so that it is safe to show.

A name from a file may contain control characters, which could move the cursor or clear the screen. `printable` shows
them as escapes. Colours and layout are made by rich and stay as they are.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from cnnbench.text import printable, shortened, to_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPE_WIDTH = 160
"""Line width, in characters, if the output is not a terminal."""
LONGEST_REFUSAL = 3000
"""Largest length, in characters, of the line that says why a command ended."""
PLAIN = "CNNBENCH_PLAIN"
"""Environment variable that ``--plain`` sets, so that processes which a command starts are plain too."""


class _Screen:
    """What this process has shown last."""

    spoke = time.monotonic()
    """Time of the last line."""
    has_line = False
    """Whether a line that the next one replaces stands on the terminal."""


def is_plain() -> bool:
    """Return whether the output has no colours, no bars and no lines around tables, as with ``--plain``."""
    return bool(os.environ.get(PLAIN))


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Make all output plain inside the block, that of processes that are started in it too."""
    # Libraries know the second variable.
    names = (PLAIN, "NO_COLOR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def has_bars() -> bool:
    """Return whether bars are drawn: on a terminal, unless the output is plain."""
    return not is_plain() and not sys.stderr.closed and sys.stderr.isatty()


def seconds_silent() -> float:
    """Return the seconds since this process has printed a line."""
    return time.monotonic() - _Screen.spoke


def spoke() -> None:
    """Note that a line or a bar has just been shown, and remove the line that it replaces."""
    _Screen.spoke = time.monotonic()
    if _Screen.has_line:
        draw_line("")


def draw_line(text: str) -> None:
    """Draw a line on the terminal that the next one replaces; an empty text removes it."""
    if text or _Screen.has_line:
        _Screen.has_line = bool(text)
        width = shutil.get_terminal_size().columns - 1
        with contextlib.suppress(OSError, ValueError):  # a terminal that has gone
            print(f"\r\x1b[K{printable(text)[:width]}", end="", file=sys.stderr, flush=True)


def out(line: str = "") -> None:
    """Print one line on stdout; line breaks within it are shown as escapes."""
    _print(printable(line))


def out_text(text: str) -> None:
    """Print text on stdout that may have several lines."""
    _print(printable(text, lines=True))


def out_json(document: Any) -> None:
    """Print a value as one JSON document on stdout."""
    _print(to_json(document))


def _print(text: str, end: str = "\n") -> None:
    """Print text on stdout.

    Raises:
        OSError: Stdout is closed, for example by the code of a user's network.
    """
    if sys.stdout.closed:
        raise OSError(errno.EBADF, "it is closed")
    spoke()
    print(text, end=end)


def is_first_process() -> bool:
    """Return whether this is the only process of a training, or the first of several, which keeps and says all.

    Lightning, torchrun and SLURM number the processes of a training in these variables. They are read in the order in
    which Lightning reads them.
    """
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if os.environ.get(name):
            return int(os.environ[name]) == 0
    return True


def note(line: str) -> None:
    """Print one line on stderr, without buffering."""
    spoke()
    print(printable(line), file=sys.stderr, flush=True)


def refusal(error: object) -> None:
    """Print on stderr the line that says why a command ended; a very long line is shortened in the middle."""
    note(shortened(f"cnnbench: {error}", LONGEST_REFUSAL))


class _Beside(io.TextIOBase):
    """Stand-in for stdout while a user's code runs: its text goes to stderr, and closing it has no effect."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def close(self) -> None:
        return

    def writable(self) -> bool:
        return True


@contextlib.contextmanager
def stdout_kept() -> Iterator[None]:
    """Reserve stdout for results: inside the block, text that a user's network prints goes to stderr."""
    with contextlib.redirect_stdout(_Beside()):
        yield


def make_console(stderr: bool = False, pipe_width: int = PIPE_WIDTH, plain: bool = False) -> Console:
    """Return a rich console that shows control characters as escapes.

    Args:
        stderr: Whether to write to stderr instead of stdout.
        pipe_width: Line width, in characters, if the output is not a terminal.
        plain: Whether the output is never taken for a terminal, so that a captured text has no colours.

    Raises:
        OSError: The output is closed.
    """
    # Imported here, since importing rich would be a third of the start-up time of commands that print no table.
    from rich.console import Console
    from rich.segment import Segment
    from rich.table import Table

    class SafeConsole(Console):
        # Plain strings are escaped before rich measures their width. `render` then escapes everything else, such as
        # rich's own Text.
        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(printable(text, lines=True), **options)

        def render(self, renderable: Any, *arguments: Any, **options: Any) -> Iterable[Segment]:
            if is_plain() and isinstance(renderable, Table):
                renderable.box, renderable.pad_edge = None, False
            for text, style, control in super().render(renderable, *arguments, **options):
                # Control segments hold rich's own codes for the terminal, which have to stay as they are.
                yield Segment(text if control else printable(text, lines=True), style, control)

    stream = sys.stderr if stderr else sys.stdout
    if stream.closed:
        raise OSError(errno.EBADF, "it is closed")
    if is_plain():
        # The width of a terminal holds all the same.
        width = None if stream.isatty() else pipe_width
        return SafeConsole(stderr=stderr, width=width, force_terminal=False, color_system=None)
    if plain:
        return SafeConsole(stderr=stderr, width=pipe_width, force_terminal=False, color_system=None)
    # Without a width rich takes that of the terminal.
    return SafeConsole(stderr=stderr, width=None if stream.isatty() else pipe_width)


def show(*tables: RenderableType, pipe_width: int = PIPE_WIDTH) -> None:
    """Print tables on stdout.

    Args:
        tables: Tables, or other objects that rich can render.
        pipe_width: Line width, in characters, if the output is not a terminal.
    """
    console = make_console(pipe_width=pipe_width)
    # Capture first, then print: if the reader of a pipe hangs up, rich would end the process itself.
    with console.capture() as capture:
        for table in tables:
            console.print(table, markup=False, highlight=False)
    _print(capture.get(), end="")
