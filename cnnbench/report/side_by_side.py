"""What the page's script needs to compare two networks: counts, verdicts, and test images on which they disagree."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnbench.disputed import Disputed, disputed_file, read_disputed
from cnnbench.errors import UserError
from cnnbench.pages import data_uri
from cnnbench.predictions import Predictions
from cnnbench.record import Record
from cnnbench.references import percent, reference_of
from cnnbench.report.contenders import contenders
from cnnbench.report.pairs import Verdict
from cnnbench.report.stored_predictions import usable_predictions
from cnnbench.text import printable

MOST_COUNTS = 400_000
"""Largest number of counts of confusion matrices on the page, about a megabyte; records after that have none there."""
MOST_IMAGES_MARKED = 4_000_000
"""Largest number of test images, summed over records, of which the page knows whether they are classified right, about
0.7 MB; the class intervals of records after that are those of independent shares."""
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
        ``rows``: for each record with a confusion matrix ``anchor``, ``title``, ``seed`` (None if the names have none),
        ``label``, ``counts``, ``network``, ``training`` (words on a short training), ``right`` (see `_marks`) and
        ``said``, the class that the network gives to each disputed image, or None. ``classes``: names of the classes by
        label. ``verdicts``: triples of two numbers of networks and a sentence. ``images``: a sheet of pictures by
        label; see `_sheet`.
    """
    networks = {}
    for number, entry in enumerate(contenders([record for _, record in rows])):
        networks.update(dict.fromkeys(map(id, entry.records), number))
    tests = _Tests()
    shown: list[dict[str, Any]] = []
    counts_left = MOST_COUNTS
    for anchor, record in rows:
        counts = record.confusion_matrix
        if counts is None or len(counts) ** 2 > counts_left:
            continue
        counts_left -= len(counts) ** 2
        seed = record.seed if seeds else None
        row: dict[str, Any] = {"anchor": anchor, "title": printable(record.title), "seed": seed}
        row |= {"counts": counts, "network": networks[id(record)], "training": _training_words(record)}
        shown.append(row | tests.facts(record))
    pairs = []
    for verdict in verdicts[:MOST_VERDICTS]:
        ends = [networks.get(id(entry.records[0])) for entry in (verdict.first, verdict.second)]
        # A network whose records have no row in the table cannot be chosen.
        if None not in ends:
            pairs.append([*ends, printable(verdict.sentence)])
    return {"rows": shown, "classes": tests.classes, "verdicts": pairs, "images": tests.sheets}


def _training_words(record: Record) -> str:
    """Return in brackets that the training of a record was no full one; empty if it was."""
    if record.fully_trained:
        return ""
    known = reference_of(record)
    after = f"; {percent(known.accuracy)} after its reference training" if known else ""
    return f"* (no full training: {record.training.get('epochs', 0.0):.2g} epochs{after})"


class _Tests:
    """The test sets of a page, and what is known of single test images of each."""

    def __init__(self) -> None:
        # Names of the classes, numbers of test images by class, and fingerprint of the data, by label.
        self._sets: dict[str, tuple[Any, ...]] = {}
        self._disputed: dict[str, Disputed] = {}
        # Number of each sequence of true classes. Images of one sequence and one label are the same.
        self._sequences: dict[bytes, int] = {}
        self._images_left = MOST_IMAGES_MARKED

    @property
    def classes(self) -> dict[str, list[str]]:
        """Return the names of the classes by label."""
        return {label: names for label, (names, *_) in self._sets.items()}

    @property
    def sheets(self) -> dict[str, Mapping[str, Any]]:
        """Return the pictures of the disputed images by label."""
        return {label: _sheet(disputed) for label, disputed in self._disputed.items()}

    def facts(self, record: Record) -> dict[str, Any]:
        """Return ``label``, ``right`` and ``said`` of a record with a confusion matrix."""
        label = self._label(record)
        predictions = usable_predictions(record)
        if predictions is None or record.file is None:
            return {"label": label, "right": None, "said": None}
        said = self._said_of_disputed(label, record, record.file, predictions)
        return {"label": label, "right": self._marks(predictions), "said": said}

    def _label(self, record: Record) -> str:
        """Return the label under which a record is compared: that of its data set, with a number for other images."""
        names = [printable(name) for name in record.data["class_names"]]
        images = [sum(line) for line in record.confusion_matrix or ()]
        test = (names, images, record.data.get("fingerprint"))
        label = printable(record.data["label"])
        number = 1
        while self._sets.setdefault(_numbered(label, number), test) != test:
            number += 1
        return _numbered(label, number)

    def _marks(self, predictions: Predictions) -> dict[str, Any] | None:
        """Return which test images a network classifies right; None if the page has too many such marks.

        Returns:
            ``sequence``: number that networks share if they were tested on the same images in the same order. ``bits``:
            a bit for each image, those of the first class first, in Base64.
        """
        if len(predictions.true) > self._images_left:
            return None
        self._images_left -= len(predictions.true)
        sequence = self._sequences.setdefault(predictions.true.tobytes(), len(self._sequences))
        # A stable sort keeps the images of a class in the same order for all networks.
        order = np.argsort(predictions.true, kind="stable")
        bits = np.packbits(predictions.right[order])
        return {"sequence": sequence, "bits": base64.b64encode(bits.tobytes()).decode()}

    def _said_of_disputed(self, label: str, record: Record, file: Path, predictions: Predictions) -> list[int] | None:
        """Return the class that a network gives to each disputed image of its data set; None if that is not known.

        Args:
            label: Label of the data set on the page.
            record: Record of the network.
            file: File of the record. The disputed images are those in the run folder of the first record of a label.
            predictions: What the network says of each test image.
        """
        if label not in self._disputed:
            path = disputed_file(file.parent.parent, record.data_name)
            if not path.is_file():
                return None
            try:
                self._disputed[label] = read_disputed(path)
            except UserError:
                return None
        disputed = self._disputed[label]
        # Records of another run may have been tested on other images.
        inside = disputed.indices < len(predictions.true)
        if not inside.all() or not np.array_equal(predictions.true[disputed.indices], disputed.true):
            return None
        return predictions.predicted[disputed.indices].tolist()


def _numbered(label: str, number: int) -> str:
    """Return a label; from the second one on with its number."""
    return label if number == 1 else f"{label} (other images, {number})"


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
