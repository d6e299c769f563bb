"""The terminal: every line and table that the commands print goes through here, so that it is safe to show.

A name from a file may hold control characters, which would move the cursor or clear the screen. `printable` shows them
as escapes. Colours and layout are rich's own and are not touched.
"""

from __future__ import annotations

import contextlib
import errno
import io
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from cnnbench.text import printable, shortened, to_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPE_WIDTH = 160
"""Characters of a line where the output is no terminal."""
LONGEST_REFUSAL = 3000
"""Characters of the line that says why a command ended."""


def out(line: str = "") -> None:
    """Print one line on stdout."""
    _print(printable(line))


def out_text(text: str) -> None:
    """Print a text of several lines on stdout."""
    _print(printable(text, lines=True))


def out_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    _print(to_json(document))


def _print(text: str, end: str = "\n") -> None:
    """Print on stdout.

    Raises:
        OSError: It is closed, by a network of the user's for example.
    """
    if sys.stdout.closed:
        raise OSError(errno.EBADF, "it is closed")
    print(text, end=end)


def note(line: str) -> None:
    """Print one line on stderr, at once."""
    print(printable(line), file=sys.stderr, flush=True)


def refusal(error: object) -> None:
    """Print the line that ends a command; a value in it that is thousands of characters long is cut."""
    note(shortened(f"cnnbench: {error}", LONGEST_REFUSAL))


class _Beside(io.TextIOBase):
    """A stdout for code of the user's: what it prints goes to stderr, and closing it closes nothing."""

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
    """Keep stdout for the results inside: what networks of the user's print goes to stderr."""
    with contextlib.redirect_stdout(_Beside()):
        yield


def make_console(stderr: bool = False, pipe_width: int = PIPE_WIDTH) -> Console:
    """Return a rich console whose text is printable.

    Args:
        stderr: Whether it writes to stderr, not to stdout.
        pipe_width: Characters of a line where the output is no terminal.
    """
    # rich takes a third of the start-up time of the commands that print no table.
    from rich.console import Console
    from rich.segment import Segment

    class SafeConsole(Console):
        # Plain strings, before their width is measured; then all that is left, such as rich's own Text.
        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(printable(text, lines=True), **options)

        def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
            for text, style, control in super().render(*arguments, **options):
                yield Segment(text if control else printable(text, lines=True), style, control)

    stream = sys.stderr if stderr else sys.stdout
    if stream.closed:
        raise OSError(errno.EBADF, "it is closed")
    return SafeConsole(stderr=stderr, width=None if stream.isatty() else pipe_width)


def show(*tables: RenderableType, pipe_width: int = PIPE_WIDTH) -> None:
    """Print tables on stdout; see `make_console`."""
    console = make_console(pipe_width=pipe_width)
    # Captured first: rich would end the process itself when the reader of a pipe hangs up.
    with console.capture() as capture:
        for table in tables:
            console.print(table, markup=False, highlight=False)
    _print(capture.get(), end="")
