"""The terminal: every line and table that the commands print goes through here, so that it is safe to show.

A name from a file may hold control characters, which would move the cursor or clear the screen. `printable` shows them
as escapes. Colours and layout are rich's own and are not touched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cnnbench.text import printable, to_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPE_WIDTH = 160
"""Characters of a line where the output is no terminal."""


def out(line: str = "") -> None:
    """Print one line on stdout."""
    print(printable(line))


def out_text(text: str) -> None:
    """Print a text of several lines on stdout."""
    print(printable(text, lines=True))


def out_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    print(to_json(document))


def note(line: str) -> None:
    """Print one line on stderr, at once."""
    print(printable(line), file=sys.stderr, flush=True)


def make_console(stderr: bool = False, width: int | None = None) -> Console:
    """Return a rich console whose text is printable.

    Args:
        stderr: Whether it writes to stderr, not to stdout.
        width: Characters of a line; None for those of the terminal, or `PIPE_WIDTH` where there is none.
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
    return SafeConsole(stderr=stderr, width=width or (None if stream.isatty() else PIPE_WIDTH))


def show(*tables: RenderableType) -> None:
    """Print tables on stdout."""
    console = make_console()
    # Captured first: rich would end the process itself when the reader of a pipe hangs up.
    with console.capture() as capture:
        for table in tables:
            console.print(table, markup=False, highlight=False)
    print(capture.get(), end="")
