"""Results of the Python functions: a list of records that prints as the table that the command prints."""

from __future__ import annotations

from typing import Any

from cnnbench.console import make_console
from cnnbench.record import Record
from cnnbench.report.outputs import Report, print_table, to_markdown
from cnnbench.report.speed_tables import sentences, tables

WIDTH = 160
"""Characters in a line of the table."""


class Results(list[Record]):
    """A list of records whose text is the table of the command."""

    def __str__(self) -> str:
        """Return the table that the command prints."""
        console = make_console(pipe_width=WIDTH, plain=True)
        # What is printed inside the block becomes a text and does not reach stdout.
        with console.capture() as capture:
            self._print(console)
        return capture.get().rstrip()

    def _print(self, console: Any) -> None:
        """Print the table that the command prints."""
        if not self:
            console.print("no records")
        elif _is_of_speed(self[0]):
            for table in tables(self):
                console.print(table, markup=False, highlight=False)
            for line in sentences(self):
                console.print(line, markup=False, highlight=False)
        else:
            print_table(Report(self), console)

    def _repr_markdown_(self) -> str:
        """Return the report as Markdown, for a notebook; for `speed`, the text of its tables."""
        # Jupyter calls a method of this name to show a value.
        if self and _is_of_speed(self[0]):
            # A fence keeps the columns of a table that is made of characters.
            return f"```\n{self}\n```"
        return to_markdown(Report(self))


def _is_of_speed(record: Record) -> bool:
    """Return whether a record is one of `speed`, which names the network and trains nothing."""
    return "network" in record.config and not record.training
