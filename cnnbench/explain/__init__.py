"""The tools of ``cnnbench explain TOOL``, made for a course on convolutional networks.

A tool is a module of this package with a function ``explain``, which takes the options of the tool
(`cnnbench.explain.options`) and returns an `Explanation`: numbers, tables and pictures. A tool writes no files and
prints nothing; the command and the gallery do that with its explanation. The module of a tool, with all that it needs,
is imported only when the tool runs.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnbench.errors import unknown
from cnnbench.explain.options import TOOLS
from cnnbench.files import replacing
from cnnbench.options import parse

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_NUMBER = r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?[kMGT]?( ?%)?"
NUMBERS = re.compile(rf"{_NUMBER}(( ?x ?| to ){_NUMBER})*( \(.*\))?")
"""Pattern of a number such as 1,000 or 5.1 %, a size such as 3x3, or a range, with an optional remark in brackets."""


class Table(NamedTuple):
    """Table of text cells with a title.

    Attributes:
        title: Title of the table.
        head: Titles of the columns.
        rows: Cells of each row as text; the first cell names the row. Columns of numbers are aligned to the right.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def numeric(self, column: int) -> bool:
        """Return whether a column after the first holds numbers, sizes or ranges; ignore dashes and empty cells."""
        cells = [cell for row in self.rows if (cell := row[column]) not in ("", "-")]
        return column > 0 and bool(cells) and all(NUMBERS.fullmatch(cell) for cell in cells)


class Picture(NamedTuple):
    """Picture and the sentences that explain it.

    Attributes:
        name: File name without suffix.
        title: Title of a few words.
        caption: Fixed sentences: what the picture shows, how to read it and what to look at. Numbers are in the tables.
        image: Matplotlib figure, or the frames of an animation.
    """

    name: str
    title: str
    caption: str
    image: Figure | Sequence[Image]


@dataclass
class Explanation:
    """Result of a tool.

    Attributes:
        numbers: Values behind the tables and pictures, for ``--json``.
        tables: Tables to print in the terminal.
        pictures: Pictures to write as PNG files, animations as GIF files.
        remarks: Sentences to print below the tables.
    """

    numbers: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def tool(name: str) -> Any:
    """Import and return the module of a tool.

    Args:
        name: Name of the tool as on the command line, such as ``feature-maps``.

    Raises:
        UserError: No tool has this name.
    """
    if name not in TOOLS:
        raise unknown("tool of `cnnbench explain`", name, [*TOOLS, "gallery"])
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def run(name: str, words: Sequence[str] = ()) -> Explanation:
    """Run a tool and return its explanation, without writing files.

    Args:
        name: Name of the tool.
        words: Options of the tool as on the command line.

    Raises:
        UserError: The name or an option is wrong.
    """
    module = tool(name)
    about = TOOLS[name]
    explanation: Explanation = module.explain(parse(about.options, words, f"cnnbench explain {name}", about.example))
    return explanation


def write_picture(picture: Picture, folder: Path) -> Path:
    """Write a picture into a folder, a figure as PNG, frames as animated GIF, and return the path of the file.

    The file appears only when it is complete, so an interruption leaves no partial picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moving = isinstance(picture.image, Sequence)
    path = folder / f"{picture.name}.{'gif' if moving else 'png'}"
    with replacing(path) as file:
        save(picture, file)
    return path


def save(picture: Picture, file: Any, **options: Any) -> None:
    """Write a picture to a binary file: a figure as PNG, frames as an animated GIF.

    A frame is shown for 0.6 seconds, the last one for 2.5 seconds.

    Args:
        picture: Picture to write.
        file: Binary file to write to.
        options: Arguments of ``Figure.savefig`` that replace the defaults, PNG and 160 dots per inch. Animations ignore
            them.
    """
    image = picture.image
    if isinstance(image, Sequence):
        durations = [600] * (len(image) - 1) + [2500]
        image[0].save(file, format="GIF", save_all=True, append_images=image[1:], duration=durations, loop=0)
    else:
        settings: dict[str, Any] = {"format": "png", "dpi": 160} | options
        image.savefig(file, **settings)
