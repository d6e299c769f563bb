"""Records as Python returns them: a list that prints as the table that the command would have printed."""

from __future__ import annotations

from typing import Any

from cnnbench.console import make_console
from cnnbench.record import Record
from cnnbench.report.outputs import Report, print_table, to_markdown
from cnnbench.report.speeds import sentences, tables

WIDTH = 160


class Results(list[Record]):
    """Records of networks, with the table of the command as text."""

    def __str__(self) -> str:
        """Return the table that the command prints."""
        console = make_console(pipe_width=WIDTH)
        with console.capture() as capture:
            self._print(console)
        return capture.get().rstrip()

    def _print(self, console: Any) -> None:
        if not self:
            console.print("no records")
        elif "network" in self[0].config:  # of speed
            for table in tables(self):
                console.print(table, markup=False, highlight=False)
            for line in sentences(self):
                console.print(line, markup=False, highlight=False)
        else:
            print_table(Report(self), console)

    def _repr_markdown_(self) -> str:
        """Return the report for a notebook."""
        return to_markdown(Report(self))
