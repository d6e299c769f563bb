"""The course's instruments: ``cnnbench explain TOOL``.

A tool is a module of this package with ``Options``, a dataclass as in `cnnbench.options`, and `explain`, which turns
them into an `Explanation`: numbers, tables and pictures. The command and the gallery write these out, so a tool writes
no files and prints nothing. Everything heavy is imported when a tool is chosen.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnbench.errors import unknown
from cnnbench.files import replacing
from cnnbench.options import parse

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

TOOLS = {
    "parameters": "dense, locally connected and convolutional layers for the same maps",
    "convolution": "the sliding window step by step, and algorithms for it against each other",
    "kernels": "classic filters on a photo: Sobel, Laplacian, Gaussian, sharpen, emboss and more",
    "equivariance": "whether maps and classes follow when the image is shifted, with and without BlurPool",
    "filters": "the filters of a convolution as images, learnt or random",
    "feature-maps": "what layers answer to an image, Grad-CAM, and the patches that excite them most",
    "sizes": "how large the maps of a network are, layer by layer, with parameters and memory",
    "receptive-field": "which part of an image a unit can see, and which part it attends to",
    "confusions": "which classes a network mistakes for which, from records or a trained network",
    "separable": "depthwise separable against standard convolutions: parameters, multiply-adds, time",
}
"""Tools in the order of the course (see `gallery.PARTS`), with what they show. Modules have underscores for dashes."""
_NUMBER = r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?[kMGT]?( ?%)?"
NUMBERS = re.compile(rf"{_NUMBER}(( ?x ?| to ){_NUMBER})*( \(.*\))?")
"""A number such as 1,000 or 5.1 %, a size such as 3x3, or a range, and what is added in brackets."""


class Table(NamedTuple):
    """Rows of text under a title.

    Attributes:
        title: What the table has.
        head: Titles of the columns.
        rows: Cells as they are shown; the first names the row, columns of numbers are set to the right.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def numeric(self, column: int) -> bool:
        """Whether a column behind the first is one of numbers, sizes or ranges, with dashes where there is none."""
        cells = [cell for row in self.rows if (cell := row[column]) not in ("", "-")]
        return column > 0 and bool(cells) and all(NUMBERS.fullmatch(cell) for cell in cells)


class Picture(NamedTuple):
    """A picture and the sentences that explain it.

    Attributes:
        name: File name without suffix.
        title: What is shown, in a few words.
        caption: Two sentences or so: what to look at, and what it means. Numbers in it are those of this picture.
        image: A matplotlib figure, or the frames of an animation.
    """

    name: str
    title: str
    caption: str
    image: Figure | Sequence[Image]


@dataclass
class Explanation:
    """What a tool found.

    Attributes:
        numbers: What is behind tables and pictures, for ``--json``.
        tables: Printed in the terminal.
        pictures: Written as PNG, animations as GIF.
        remarks: Sentences below the tables.
    """

    numbers: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def further_remarks(self) -> list[str]:
        """Those that no caption has."""
        return [line for line in self.remarks if not any(line in picture.caption for picture in self.pictures)]


def tool(name: str) -> Any:
    """Return the module of a tool.

    Raises:
        UserError: There is none of this name.
    """
    if name not in TOOLS:
        raise unknown("tool of `cnnbench explain`", name, [*TOOLS, "gallery"])
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def run(name: str, words: Sequence[str] = ()) -> Explanation:
    """Run a tool with options as on the command line, and write nothing.

    Raises:
        UserError: The name or an option is wrong.
    """
    module = tool(name)
    explanation: Explanation = module.explain(parse(module.Options, words, f"cnnbench explain {name}", module.EXAMPLE))
    return explanation


def write_picture(picture: Picture, folder: Path) -> Path:
    """Writes a picture into a folder: a figure as PNG, frames as an animated GIF. It is there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    moving = isinstance(picture.image, Sequence)
    path = folder / f"{picture.name}.{'gif' if moving else 'png'}"
    with replacing(path) as file:
        save(picture, file)
    return path


def save(picture: Picture, file: Any, **options: Any) -> None:
    """Writes a picture to a binary file: a figure as PNG, frames as GIF of 0.6 s each, the last one longer.

    Args:
        picture: What to write.
        file: Where.
        options: Of ``Figure.savefig``, in place of ours.
    """
    image = picture.image
    if isinstance(image, Sequence):
        durations = [600] * (len(image) - 1) + [2500]
        image[0].save(file, format="GIF", save_all=True, append_images=image[1:], duration=durations, loop=0)
    else:
        settings: dict[str, Any] = {"format": "png", "dpi": 160} | options
        image.savefig(file, **settings)
