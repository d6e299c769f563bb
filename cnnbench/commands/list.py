"""The command `cnnbench list`: list the networks of the zoo with their costs and accuracies, and the data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from cnnbench.catalog import SIZES, load_catalog
from cnnbench.commands.list_choice import Facts, chosen
from cnnbench.console import make_console, out, out_json, out_text, show
from cnnbench.options import option
from cnnbench.units import short

EXAMPLE = "--where 'params<5M,reference>90' --sort macs"
PIPE_WIDTH = 200
"""Line width, in characters, if the output is not a terminal."""
LEFT_OUT_FIRST = ("Key idea", "MACs 224", "Params 224", "Depth", "Year", "Published", "Reference", "MACs 32")
"""Titles of the columns that a narrow terminal lacks, in the order in which they are left out."""
WIDTH_OF_IDEAS = 40
"""Characters of the column of key ideas, whose cells may take several lines."""
LEGEND = """\
32: 3x32x32 images, 10 classes; 224: 3x224x224 images, 1000 classes. Depth: weighted layers on the longest path, at 224.
Params: those that inference uses. Accuracies: top-1, in %.
Published: the best that its source states, one crop of 224 pixels if not said otherwise; V2: torchvision's newer
recipe. Recipes differ, so the rows do not compare. Reference: after the training that a record of the package
describes, at 32x32, the mean over seeds. * is a JPEG copy, whose pixels differ a little from the originals.
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
    """List the networks with their costs at 32x32 and 224x224 pixels and their accuracies, or the data sets."""

    data: bool = option("List the data sets with their classes and sizes in place of the networks.", default=False)
    sort: str | None = option(
        "Order: name, params, macs, accuracy (of the reference training on CIFAR-10, best first) or year; for data "
        "sets name, classes or size (default: name).",
        default=None,
        metavar="FIGURE",
    )
    where: tuple[str, ...] = option(
        "Show only what meets all conditions, such as 'params<5M,year>=2015'; figures: params, macs, params_224, "
        "macs_224, depth, year, published and reference (accuracies in per cent); of data sets classes, channels and "
        "size.",
        default=(),
        metavar="A,B",
    )
    json: bool = option("Print one JSON document on stdout.", default=False)


def run(options: Options) -> int:
    """Print the catalogue of the zoo; return 0."""
    catalog = load_catalog()
    room = "data" if options.data else "models"
    catalog[room] = chosen(catalog[room], room, options.where, options.sort)
    if options.json:
        out_json({key: catalog[key] for key in ("models", "data")})
        return 0
    if not catalog[room]:
        out(f"nothing meets {' and '.join(options.where)}")
        return 0
    if options.data:
        show(_data_table(catalog["data"]), pipe_width=PIPE_WIDTH)
        out_text(DATA_LEGEND)
        return 0
    # The table has as many columns as fit into the width in which it is printed.
    width = make_console(pipe_width=PIPE_WIDTH).width
    columns, left_out = _fitting(_columns(catalog["models"]), width)
    show(_table(columns), pipe_width=PIPE_WIDTH)
    if left_out:
        out(f"Left out for want of width: {', '.join(left_out)}; `--json` has all.")
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


def _columns(models: Mapping[str, Facts]) -> dict[str, list[str]]:
    """Return the cells of every column by its title, in the order of the table."""
    columns: dict[str, list[str]] = {
        "Model": list(models),
        "Year": [str(facts["year"] or "-") for facts in models.values()],
        "Key idea": [facts["key_idea"] or facts["summary"] for facts in models.values()],
        "Depth": [str(facts["depth"]) for facts in models.values()],
    }
    for size in SIZES:
        for title, figure in _COUNTS.items():
            columns[f"{title} {size}"] = [short(facts[f"{figure}_{size}"]) for facts in models.values()]
    for title, key in _ACCURACIES.items():
        # A network may have several accuracies, one per data set or source, each on a line of its own.
        columns[title] = ["\n".join(map(_accuracy, facts[key])) or "-" for facts in models.values()]
    return columns


def _fitting(columns: Mapping[str, Sequence[str]], width: int) -> tuple[dict[str, Sequence[str]], list[str]]:
    """Return the columns that fit into a line without breaking words, and the titles of those that do not."""
    kept, left_out = dict(columns), []
    for title in LEFT_OUT_FIRST:
        if 1 + sum(_width(name, cells) + 3 for name, cells in kept.items()) <= width:
            break
        del kept[title]
        left_out.append(title)
    return kept, left_out


def _width(title: str, cells: Sequence[str]) -> int:
    """Return the characters that a column needs; the key ideas may take several lines."""
    if title == "Key idea":
        return WIDTH_OF_IDEAS
    return max(len(line) for cell in (title, *cells) for line in cell.split("\n"))


def _table(columns: Mapping[str, Sequence[str]]) -> Table:
    """Return the table of some columns."""
    table = Table(header_style="bold")
    for title in columns:
        is_number = title == "Depth" or title.startswith(tuple(_COUNTS))
        table.add_column(title, justify="right" if is_number else "left", no_wrap=title != "Key idea")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _accuracy(entry: Mapping[str, Any]) -> str:
    """Return an accuracy in per cent with the name of its data set, with two decimals from 98 % on, else with one."""
    digits = 2 if entry["accuracy"] >= 98 else 1
    return f"{entry['accuracy']:.{digits}f} {entry['data'].replace(' (JPEG copy)', '*')}"
