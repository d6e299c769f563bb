"""What the page's script needs to compare two networks: counts, verdicts, and test images on which they disagree."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cnnbench.disputed import Disputed, disputed_file, read_disputed
from cnnbench.errors import UserError
from cnnbench.pages import data_uri
from cnnbench.record import Record
from cnnbench.references import percent, reference_of
from cnnbench.report.contenders import contenders
from cnnbench.report.pairs import Verdict
from cnnbench.report.stored_predictions import usable_predictions
from cnnbench.text import printable

MOST_COUNTS = 400_000
"""Largest number of counts of confusion matrices on the page, about a megabyte; records after that have none there."""
MOST_VERDICTS = 1000
"""Largest number of verdicts on the page, about 400 kB; the first ones are those of the most accurate networks."""
PICTURES_PER_ROW = 16
"""Number of pictures in a row of the sheet that holds all pictures of a data set."""


def side_by_side(rows: Sequence[tuple[str, Record]], verdicts: Sequence[Verdict], seeds: bool) -> dict[str, Any]:
    """Return the data for the script.

    Args:
        rows: Name in links, and record, of each row of the table.
        verdicts: Comparisons of two networks image by image.
        seeds: Whether the names of rows have the seed.

    Returns:
        ``rows``: for each record with a confusion matrix ``anchor``, ``name``, ``label``, ``counts``, ``network``,
        ``training`` (words on a short training) and ``said``, the class that the network gives to each disputed image,
        or None. ``classes``: names of the classes by label. ``verdicts``: triples of two numbers of networks and a
        sentence. ``images``: a sheet of pictures by label; see `_sheet`.
    """
    records = [record for _, record in rows]
    networks = {}
    for number, entry in enumerate(contenders(records)):
        networks.update(dict.fromkeys(map(id, entry.records), number))
    shown: list[dict[str, Any]] = []
    tests: dict[str, tuple[Any, ...]] = {}
    images: dict[str, Disputed] = {}
    left = MOST_COUNTS
    for anchor, record in rows:
        counts = record.confusion_matrix
        if counts is None or len(counts) ** 2 > left:
            continue
        left -= len(counts) ** 2
        label = _label(record, tests)
        row: dict[str, Any] = {"anchor": anchor, "name": _name(record, seeds), "label": label, "counts": counts}
        row |= {"network": networks[id(record)], "training": _training_words(record)}
        row["said"] = _said_of_disputed(label, record, images)
        shown.append(row)
    sheets = {label: _sheet(disputed) for label, disputed in images.items()}
    pairs = []
    for verdict in verdicts[:MOST_VERDICTS]:
        ends = [networks.get(id(entry.records[0])) for entry in (verdict.first, verdict.second)]
        # A network whose records have no row in the table cannot be chosen.
        if None not in ends:
            pairs.append([*ends, printable(verdict.sentence)])
    classes = {label: names for label, (names, *_) in tests.items()}
    return {"rows": shown, "classes": classes, "verdicts": pairs, "images": sheets}


def _name(record: Record, seeds: bool) -> str:
    """Return the name of a record in a list of networks: its title and, if records differ in it, its seed."""
    return printable(f"{record.title}, seed {record.seed}" if seeds else record.title)


def _training_words(record: Record) -> str:
    """Return in brackets that the training of a record was no full one; empty if it was."""
    if record.fully_trained:
        return ""
    known = reference_of(record)
    after = f"; {percent(known.accuracy)} after its reference training" if known else ""
    return f"* (no full training: {record.training.get('epochs', 0.0):.2g} epochs{after})"


def _label(record: Record, tests: dict[str, tuple[Any, ...]]) -> str:
    """Return the label under which a record is compared: that of its data set, with a number for other test images.

    Args:
        record: Record with a confusion matrix.
        tests: Names of the classes, numbers of test images by class, and fingerprint of the data by label; those of a
            new label are added.
    """
    names = [printable(name) for name in record.data["class_names"]]
    images = [sum(line) for line in record.confusion_matrix or ()]
    test = (names, images, record.data.get("fingerprint"))
    label = printable(record.data["label"])
    number = 1
    while tests.setdefault(_numbered(label, number), test) != test:
        number += 1
    return _numbered(label, number)


def _numbered(label: str, number: int) -> str:
    """Return a label; from the second one on with its number."""
    return label if number == 1 else f"{label} (other images, {number})"


def _said_of_disputed(label: str, record: Record, images: dict[str, Disputed]) -> list[int] | None:
    """Return the class that a network gives to each disputed image of its data set; None if that is not known.

    Args:
        label: Label of the data set on the page.
        record: Record of the network.
        images: Disputed images by label; those in the run folder of the first record of a label are added.
    """
    predictions = usable_predictions(record)
    if predictions is None or record.file is None:
        return None
    if label not in images:
        path = disputed_file(record.file.parent.parent, record.data_name)
        if not path.is_file():
            return None
        try:
            images[label] = read_disputed(path)
        except UserError:
            return None
    disputed = images[label]
    # Records of another run may have been tested on other images.
    inside = disputed.indices < len(predictions.true)
    if not inside.all() or not np.array_equal(predictions.true[disputed.indices], disputed.true):
        return None
    return predictions.predicted[disputed.indices].tolist()


def _sheet(disputed: Disputed) -> Mapping[str, Any]:
    """Return pictures as one large picture, with the number of each in the test set and its class.

    The pictures lie in rows of `PICTURES_PER_ROW`.
    """
    count, height, width, channels = disputed.images.shape
    lines = -(-count // PICTURES_PER_ROW)
    sheet = np.zeros((lines * height, PICTURES_PER_ROW * width, channels), dtype=np.uint8)
    for place, image in enumerate(disputed.images):
        top, start = place // PICTURES_PER_ROW * height, place % PICTURES_PER_ROW * width
        sheet[top : top + height, start : start + width] = image
    out = io.BytesIO()
    # Pillow takes grey pictures without the axis of the channel.
    Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet).save(out, "webp", quality=92)
    return {
        "uri": data_uri(out.getvalue(), "image/webp"),
        "columns": PICTURES_PER_ROW,
        "lines": lines,
        "numbers": disputed.indices.tolist(),
        "true": disputed.true.tolist(),
    }
