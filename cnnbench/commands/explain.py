"""The command `cnnbench explain`: run a teaching tool of a course on CNNs; each tool has options of its own."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cnnbench import progress
from cnnbench.commands.known_names import check_names
from cnnbench.console import out, out_json, out_text, show, stdout_kept
from cnnbench.errors import UserError, unknown
from cnnbench.explain import Explanation, tool, write_picture
from cnnbench.explain.options import TOOLS
from cnnbench.options import parse

CAPTION_WIDTH = 110
"""Line width of captions in the terminal, in characters."""


def main(words: Sequence[str]) -> int:
    """Run a tool: write its pictures, and print its tables or one JSON document.

    Args:
        words: Words of the command line after ``explain``.

    Returns:
        The exit code, 0.

    Raises:
        UserError: An option, a name, a file or a value is wrong.
    """
    if not words or words[0] in ("-h", "--help"):
        out_text(_overview())
        return 0
    name, *rest = words
    command = f"cnnbench explain {name}"
    if name == "gallery":
        from cnnbench.commands import gallery

        chosen = parse(gallery.Options, rest, command, gallery.EXAMPLE)
        check_names(chosen)
        return gallery.run(chosen)
    if name not in TOOLS:
        raise unknown("tool of `cnnbench explain`", name, [*TOOLS, "gallery"])
    options: Any = parse(TOOLS[name].options, rest, command, TOOLS[name].example)
    check_names(options)
    return _run_tool(tool(name), options)


def _run_tool(module: Any, options: Any) -> int:
    """Run the module of a tool, write its pictures, print its results and return the exit code."""
    from cnnbench.plots.drawing import plain_text

    check_folder(options.out)
    # Text that a user's network prints must not get into the document, and matplotlib must not take a name with dollar
    # signs for a formula.
    with stdout_kept(), plain_text():
        explanation: Explanation = module.explain(options)
        try:
            with progress.doing("writing pictures", len(explanation.pictures)) as step:
                paths = []
                for picture in explanation.pictures:
                    paths.append(write_picture(picture, options.out))
                    step.advance()
        except OSError as error:
            raise UserError(f"cannot write to '{options.out}': {error}; name another folder with --out") from error
    if options.json:
        pictures = []
        for path, picture in zip(paths, explanation.pictures, strict=True):
            pictures.append({"file": str(path), "title": picture.title, "caption": picture.caption})
        tables = [table._asdict() for table in explanation.tables]
        out_json(explanation.numbers | {"tables": tables, "remarks": explanation.remarks, "pictures": pictures})
        return 0
    _print_tables(explanation)
    for path, picture in zip(paths, explanation.pictures, strict=True):
        out(f"{path}: {picture.title}")
        out_text(textwrap.fill(picture.caption, CAPTION_WIDTH, initial_indent="  ", subsequent_indent="  "))
    return 0


def check_folder(folder: Path) -> None:
    """Raise UserError unless pictures can be written to a folder; to be called before anything is computed."""
    # The folder may not exist yet: then its closest existing parent decides.
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"'{there}' is a file; name a folder with --out")
    if not os.access(there, os.W_OK):
        raise UserError(f"'{there}' cannot be written to; name another folder with --out")


def _print_tables(explanation: Explanation) -> None:
    for table in explanation.tables:
        drawn = Table(title=table.title, title_justify="left", title_style="bold", header_style="bold")
        for index, title in enumerate(table.head):
            drawn.add_column(title, justify="right" if table.numeric(index) else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*row)
        show(drawn)
    for line in explanation.remarks:
        out(line)


def _overview() -> str:
    """Return the help of ``cnnbench explain``: the list of its tools."""
    lines = ["usage: cnnbench explain TOOL ...", "", "The tools, in the order of a course on CNNs:", ""]
    for name, about in TOOLS.items():
        lines.append(f"  {name:<17} {about.summary}")
    lines.append(f"  {'gallery':<17} all of them on one page, with exercises and a window to move")
    lines += ["", "`cnnbench explain TOOL --help` has the options. Pictures go to results/explain, or to --out."]
    lines += ["", "example: cnnbench explain kernels photo.jpg"]
    return "\n".join(lines)
