"""Reference accuracies: those of networks of the zoo after a reference training, from records that the package ships.

The budget of a benchmark can end long before a network has converged. Its accuracy then says how fast it learns on one
machine, and ranks networks in another order than a full training does. Wherever such an accuracy is shown, the accuracy
of the reference training therefore stands beside it.

``references/records.jsonl`` holds the records of ``experiments/bench/reference*.yaml``; beside it are the weights of a
few small networks. The command ``python -m cnnbench.catalog_update RUN`` copies both from run folders.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cnnbench.errors import UserError
from cnnbench.files import write_text
from cnnbench.record import Record, as_lines, load_records

FOLDER = Path(__file__).parent
FILE = FOLDER / "records.jsonl"
CATALOG = Path(__file__).parents[1] / "models" / "catalog.json"
REFERENCE_SEED = 0
"""Seed of the trainings whose weights are in this folder."""


class Reference(NamedTuple):
    """The accuracy of a network after its reference training.

    Attributes:
        model: Name of the network.
        label: Label of the data set.
        accuracy: Share of the test set that is classified correctly, 0 to 1; the mean over seeds.
        low: Lowest accuracy over the seeds; with a single seed, the lower end of its 95 % interval.
        high: Highest accuracy over the seeds; with a single seed, the upper end of its 95 % interval.
        seeds: Number of trainings.
        epochs: Epochs of the newest training.
        created: Date of the newest training, such as 2026-11-29.
        device: Device of the newest training.
    """

    model: str
    label: str
    accuracy: float
    low: float
    high: float
    seeds: int
    epochs: float
    created: str
    device: str

    @property
    def words(self) -> str:
        """Return the accuracy with the facts about its training, for captions and sentences."""
        seeds = f"{self.seeds} seeds"
        if self.seeds == 1:
            seeds = "1 seed"
        return f"{percent(self.accuracy)} ({self.epochs:.0f} epochs, {seeds}, {self.created}, {self.device})"


def percent(share: float) -> str:
    """Return a share as text in per cent, with one decimal, or with two from 98 % on."""
    # Near 100 % one decimal would show different networks as equal.
    digits = 2 if share >= 0.98 else 1
    return f"{100 * share:.{digits}f} %"


@functools.cache
def references() -> dict[tuple[str, str, int, int], Reference]:
    """Return all references by network, label of the data, number of classes and image size; none without the file."""
    if not FILE.is_file():
        return {}
    groups: dict[tuple[str, str, int, int], list[Record]] = {}
    for record in load_records([FILE]):
        groups.setdefault(_key(record), []).append(record)
    return {key: _summed_up(records) for key, records in groups.items()}


@functools.cache
def _published() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the published accuracies by network and data set, from the stored catalogue of the zoo."""
    accuracies: dict[tuple[str, str], dict[str, Any]] = {}
    # The stored file is read as it is, since `load_catalog` may count networks and itself imports this module.
    try:
        models = json.loads(CATALOG.read_text(encoding="utf-8"))["models"]
        for name, entry in models.items():
            for accuracy in entry["published"]:
                accuracies[name, accuracy["data"]] = accuracy
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # a report is complete without them
    return accuracies


def published_words(model: str, label: str) -> str:
    """Return the published accuracy of a network on a data set, with its source; empty if none is known."""
    # A label such as "CIFAR-10 (JPEG copy)" names the data set before the bracket.
    accuracy = _published().get((model, label.partition(" (")[0]))
    if accuracy is None:
        return ""
    return f"published {accuracy['accuracy']:g} % ({accuracy['source']})"


def reference_of(record: Record) -> Reference | None:
    """Return the reference for the network and data of a record, unless the record's own accuracy takes its place.

    The result is None for a record without a training, with a full one, or with one that is as good as the reference.
    """
    reference = references().get(_key(record))
    if record.fully_trained or is_as_good_as_the_reference(record):
        return None
    return reference


def is_as_good_as_the_reference(record: Record) -> bool:
    """Return whether a training took at least as many epochs as its reference, and reached its accuracy.

    The reference of some networks took two epochs. Another recipe may not have converged after as many, so the number
    of epochs alone says too little. An accuracy within the range of the reference, or above it, is enough.
    """
    reference, reached = references().get(_key(record)), record.measures.get("test_accuracy")
    if reference is None or reached is None or record.training.get("diverged", False):
        return False
    return record.training.get("epochs", 0.0) >= reference.epochs and reached >= reference.low


def _key(record: Record) -> tuple[str, str, int, int]:
    data = record.data
    # In floating point, an engine gives the accuracy of the network itself up to rounding; in int8 it may not.
    name = record.model if record.config.get("precision") == "int8" else record.network
    return name, data["label"], data.get("num_classes", 0), data.get("image_size", 0)


def _summed_up(records: Sequence[Record]) -> Reference:
    values = [record.measures["test_accuracy"] for record in records]
    low, high = min(values), max(values)
    # A single training has no range over seeds; the interval of its accuracy takes its place.
    if len(values) == 1:
        measures = records[0].measures
        low, high = measures["test_accuracy_low"], measures["test_accuracy_high"]
    newest = max(records, key=lambda record: record.created)
    return Reference(
        newest.model,
        newest.data["label"],
        statistics.fmean(values),
        low,
        high,
        len(values),
        newest.training["epochs"],
        newest.created[:10],
        newest.environment["device"],
    )


def take_over(paths: Sequence[Path]) -> list[Record]:
    """Add records to those of the package; each of them replaces an older record of the same cell.

    Args:
        paths: Run folders or record files.

    Returns:
        The added records.

    Raises:
        UserError: A record has no accuracy on real data, or its training diverged.
    """
    kept: dict[str, Record] = {}
    if FILE.is_file():
        kept = {record.key: record for record in load_records([FILE])}
    new = [record for record in load_records(list(paths)) if not record.is_of_an_engine]
    for record in new:
        if record.status != "ok" or record.confusion_matrix is None or record.data["synthetic"]:
            raise UserError(f"{record.key} is no training on real data; leave it out")
        if record.training["diverged"]:
            raise UserError(f"the training of {record.key} diverged; leave it out")
        kept[record.key] = record
    # In the order of the cells, so that a new record changes as few lines as possible.
    write_text(FILE, as_lines(kept[key] for key in sorted(kept)))
    # The cached references are those of the old file.
    references.cache_clear()
    return new


def weights_file(model: str, data: str | None) -> Path:
    """Return the path of the checkpoint that the package ships for a network.

    Args:
        model: Name of the network.
        data: Name of the data set that the network was trained on, such as ``MNIST``; None if there is only one.

    Raises:
        UserError: The package has no such checkpoint, or has several of them.
    """
    # The files are named <network>-<data set>.ckpt.
    shipped = sorted(path.stem for path in FOLDER.glob("*.ckpt"))
    matches = []
    for name in shipped:
        if name == f"{model}-{data}" or (data is None and name.startswith(f"{model}-")):
            matches.append(name)
    if len(matches) == 1:
        return FOLDER / f"{matches[0]}.ckpt"
    if matches:
        sets = " or ".join(name.removeprefix(f"{model}-") for name in matches)
        raise UserError(f"--weights reference: {model} was trained on {sets}; add --data NAME")
    on = f" on {data}" if data else ""
    known = ", ".join(shipped) or "none in this package"
    raise UserError(f"--weights reference: there are no weights of {model}{on}; there are {known}")
