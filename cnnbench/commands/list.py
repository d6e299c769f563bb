"""The command `cnnbench list`: list the networks of the zoo with their costs and accuracies, and the data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from cnnbench.catalog import SIZES, load_catalog
from cnnbench.console import make_console, out, out_json, out_text, show
from cnnbench.options import option
from cnnbench.units import short

EXAMPLE = "--json"
PIPE_WIDTH = 200
"""Line width, in characters, if the output is not a terminal."""
ROOM_FOR_IDEAS = 150
"""Smallest line width, in characters, at which the table has a column for the key ideas."""
ROOM_FOR_BOTH_SIZES = 110
"""Smallest line width, in characters, at which the table has columns for the costs at 224 pixels."""
LEGEND = """\
32: 3x32x32 images, 10 classes; 224: 3x224x224 images, 1000 classes. Depth: weighted layers on the longest path, at 224.
Params: those that inference uses. Accuracies: top-1, in %.
Published: the best that its source states, one crop of 224 pixels if not said otherwise; V2: torchvision's newer
recipe. Recipes differ, so the rows do not compare. Reference: after the training that a record of the package
describes, at 32x32, the mean over seeds; a JPEG copy of CIFAR-10 has pixels that differ a little from the originals.
`cnnbench list --json` has titles and sources."""
DATA_LEGEND = """\
Pixels: height and width of the images; - where they depend on the folder, the name or the image. Arguments may follow a
name in brackets, as in CIFAR10(image_size=64) or torchvision:EMNIST(split=letters); EMNIST's classes are those of the
split balanced. medmnist:NAME needs the package medmnist. package.module:Class is an ImageDataModule of your own, or
for `bench` any LightningDataModule that states num_classes, in_channels and image_size."""
_COUNTS = {"Params": "params", "MACs": "macs"}
"""Titles of the columns of costs, and the starts of their keys in the catalogue."""
_ACCURACIES = {"Published": "published", "Reference": "measured"}
"""Titles of the columns of accuracies, and their keys in the catalogue."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the networks, what they cost and how good they are, and the data sets."""

    data: bool = option("List the data sets with their classes and sizes in place of the networks.", default=False)
    json: bool = option("Print one JSON document on stdout.", default=False)


def run(options: Options) -> int:
    """Print the catalogue of the zoo; return 0."""
    catalog = load_catalog()
    if options.json:
        out_json({key: catalog[key] for key in ("models", "data")})
        return 0
    if options.data:
        show(_data_table(catalog["data"]), pipe_width=PIPE_WIDTH)
        out_text(DATA_LEGEND)
        return 0
    # The table has as many columns as fit into the width in which it is printed.
    width = make_console(pipe_width=PIPE_WIDTH).width
    show(_table(catalog["models"], width), pipe_width=PIPE_WIDTH)
    out_text(LEGEND)
    names = [*catalog["data"], "package.module:Class"]
    out(f"Data sets, which `cnnbench list --data` describes: {', '.join(names)}")
    return 0


def _data_table(data: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table of the data sets, with each name of torchvision that is known."""
    table = Table(header_style="bold")
    table.add_column("Name", no_wrap=True)
    for title in ("Classes", "Channels", "Pixels"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("What it is")
    for form, facts in data.items():
        table.add_row(form, *_data_cells(facts), facts["summary"])
        for name, known in facts.get("names", {}).items():
            table.add_row(f"  {form.replace('NAME', name)}", *_data_cells(known), "")
    return table


def _data_cells(facts: Mapping[str, Any]) -> list[str]:
    """Return numbers of classes and channels and the size of the images as texts; a dash for what is not fixed."""
    return ["-" if facts[key] is None else str(facts[key]) for key in ("classes", "channels", "size")]


def _table(models: Mapping[str, Mapping[str, Any]], width: int) -> Table:
    """Return the table of the networks; in a narrow terminal it lacks the columns that need the most room."""
    with_ideas = width >= ROOM_FOR_IDEAS
    sizes = ["32"]
    if width >= ROOM_FOR_BOTH_SIZES:
        sizes = list(SIZES)
    table = Table(header_style="bold")
    table.add_column("Model", no_wrap=True)
    table.add_column("Year", no_wrap=True)
    if with_ideas:
        table.add_column("Key idea")
    table.add_column("Depth", justify="right", no_wrap=True)
    for size in sizes:
        for title in _COUNTS:
            table.add_column(f"{title} {size}", justify="right", no_wrap=True)
    for title in _ACCURACIES:
        table.add_column(title, overflow="fold")
    for name, facts in models.items():
        table.add_row(name, *_cells(facts, sizes, with_ideas))
    return table


def _cells(facts: Mapping[str, Any], sizes: Sequence[str], with_ideas: bool) -> list[str]:
    """Return the row of a network behind its name, in the order of the columns."""
    cells = [str(facts["year"] or "-")]
    if with_ideas:
        cells.append(facts["key_idea"] or facts["summary"])
    cells.append(str(facts["depth"]))
    for size in sizes:
        for figure in _COUNTS.values():
            cells.append(short(facts[f"{figure}_{size}"]))
    for key in _ACCURACIES.values():
        # A network may have several accuracies, one per data set or source, each on a line of its own.
        cells.append("\n".join(_accuracy(entry) for entry in facts[key]) or "-")
    return cells


def _accuracy(entry: Mapping[str, Any]) -> str:
    """Return an accuracy in per cent with the name of its data set, with two decimals from 98 % on, else with one."""
    digits = 2 if entry["accuracy"] >= 98 else 1
    return f"{entry['accuracy']:.{digits}f} {entry['data']}"
