"""The course's instruments: ``cnnbench explain TOOL``.

A tool is a module of this package with two functions: `add_arguments` adds its options to a parser, and `explain` turns
the parsed options into an `Explanation`: numbers, tables and pictures. The command and the gallery write these out, so
a tool writes no files and prints nothing. Everything heavy is imported when a tool is chosen.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnbench.console import out, out_json, out_text, show, stdout_kept
from cnnbench.errors import UserError, unknown
from cnnbench.files import replacing
from cnnbench.registry import split_names
from cnnbench.trust import OPTION

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
CAPTION_WIDTH = 110


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
    """The module of a tool.

    Raises:
        UserError: There is none of this name.
    """
    if name not in TOOLS:
        raise unknown("tool of `cnnbench explain`", name, [*TOOLS, "gallery"])
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def run(
    name: str, options: Sequence[str] = (), make_parser: Callable[..., Any] = argparse.ArgumentParser
) -> Explanation:
    """Runs a tool with options as on the command line; writes nothing.

    Raises:
        UserError: The name or an option is wrong.
    """
    return tool(name).explain(_parser(name, make_parser).parse_args(list(options)))


def _parser(name: str, make_parser: Callable[..., Any]) -> Any:
    module = tool(name)
    parser = make_parser(
        prog=f"cnnbench explain {name}",
        description=f"Shows {TOOLS[name]}.",
        epilog=f"example: cnnbench explain {name} {module.EXAMPLE}",
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument(
        OPTION,
        type=split_names,
        default=(),
        metavar="MODULE",
        help="modules whose networks a checkpoint may name, such as mynets (default: none)",
    )
    return parser


def main(arguments: Sequence[str], make_parser: Callable[..., Any]) -> int:
    """Runs ``cnnbench explain``: writes the pictures, prints the tables, or one JSON document.

    Args:
        arguments: After ``explain``, as on the command line.
        make_parser: Makes the command's kind of parser.

    Raises:
        UserError: An option, a name, a file or a value is wrong.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        _print_tools()
        return 0
    if name == "gallery":
        from cnnbench.explain.gallery import main as gallery

        return gallery(arguments[1:], make_parser)
    parser = _parser(name, make_parser)
    parser.add_argument(
        "--out", type=Path, default=Path("results/explain"), metavar="DIR", help="folder for the pictures (default: "
        "%(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    options = parser.parse_args(arguments[1:])
    check_folder(options.out)
    from cnnbench.bench.drawing import plain_text

    # What a network of the user's prints is not part of the document, and no name in a picture is a formula.
    with stdout_kept(), plain_text():
        explanation = tool(name).explain(options)
        try:
            paths = [write_picture(picture, options.out) for picture in explanation.pictures]
        except OSError as error:
            raise UserError(f"cannot write to '{options.out}': {error}; name another folder with --out") from error
    if options.json:
        pictures = [
            {"file": str(path), "title": picture.title, "caption": picture.caption}
            for path, picture in zip(paths, explanation.pictures, strict=True)
        ]
        document = explanation.numbers | {"pictures": pictures}
        out_json(document)
    else:
        _print_tables(explanation)
        for path, picture in zip(paths, explanation.pictures, strict=True):
            out(f"{path}: {picture.title}")
            out_text(textwrap.fill(picture.caption, CAPTION_WIDTH, initial_indent="  ", subsequent_indent="  "))
    return 0


def check_folder(folder: Path) -> None:
    """Refuses a folder for pictures that cannot be one, before anything is computed.

    Raises:
        UserError: It, or what it lies in, is a file, or cannot be written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"'{there}' is a file; name a folder with --out")
    if not os.access(there, os.W_OK):
        raise UserError(f"'{there}' cannot be written to; name another folder with --out")


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


def _print_tables(explanation: Explanation) -> None:
    from rich.table import Table as RichTable

    for table in explanation.tables:
        drawn = RichTable(title=table.title, title_justify="left", title_style="bold", header_style="bold")
        for index, title in enumerate(table.head):
            drawn.add_column(title, justify="right" if table.numeric(index) else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*row)
        show(drawn)
    for line in explanation.further_remarks():
        out(line)


def _print_tools() -> None:
    out_text("usage: cnnbench explain TOOL ...\n\nThe instruments, in the order of a course on CNNs:\n")
    for name, text in TOOLS.items():
        out(f"  {name:<17} {text}")
    out(f"  {'gallery':<17} all of them on one page, with a freshly trained network")
    out_text("\n`cnnbench explain TOOL --help` has the options. Pictures go to results/explain, or to --out.")
    out_text("\nexample: cnnbench explain kernels photo.jpg")
