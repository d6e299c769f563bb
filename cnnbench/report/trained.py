"""Trained networks, found by their records: in a run folder, in a record file, or by the hash of a checkpoint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnbench.errors import UserError
from cnnbench.record import Record, load_records
from cnnbench.report.contenders import Contender, contenders

_BLOCK = 2**20
"""Bytes of a file that are read at once."""
_CHECKPOINTS = (".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Trained:
    """A trained network with the run that it comes from.

    Attributes:
        record: Record of its training and test.
        same: All trainings of the network with the same settings, this one included, which differ in the seed.
        folder: Run folder; None for records that are not in one.
    """

    record: Record
    same: Contender
    folder: Path | None

    @property
    def name(self) -> str:
        """Return the name of network and data set."""
        return f"{self.record.title} on {self.record.data['label']}"

    @property
    def weights(self) -> str:
        """Return the path of the checkpoint, relative to the run folder; empty if none is known."""
        return self.record.training.get("weights") or ""

    @property
    def weights_are_there(self) -> bool:
        """Return whether the checkpoint exists and is the one that the record describes."""
        if self.folder is None or not self.weights:
            return False
        path = self.folder / self.weights
        # A record may come from somebody else, and must not have files outside of its run read.
        if not path.resolve().is_relative_to(self.folder.resolve()) or not path.is_file():
            return False
        return sha256(path) == self.record.training.get("weights_sha256")


def sha256(path: Path) -> str:
    """Return the SHA-256 hash of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def find_trained(path: Path) -> list[Trained]:
    """Return the trained networks of a run folder or record file, or the one of a checkpoint in a run folder.

    Several records of the same weights, such as that of `fit` and those of `test`, are one network, of which the newest
    record with a test counts.

    Raises:
        UserError: There is no record of a training, or none of the weights in the checkpoint.
    """
    checkpoint = path if path.suffix in _CHECKPOINTS and path.is_file() else None
    folder = path if path.is_dir() else None
    if checkpoint is not None:
        folder = checkpoint.resolve().parent.parent
        if not any((folder / "records").glob("*.json")):
            raise UserError(f"'{path}' has no record in '{folder / 'records'}'; name a checkpoint in a run folder")
    # The rows of engines are of weights that another record describes.
    loaded = [r for r in load_records([folder or path]) if not r.is_of_an_engine]
    records = [r for r in loaded if r.status == "ok" and r.training]
    if not records:
        raise UserError(f"'{path}' has no record of a training; name a run folder of `cnnbench fit` or `bench`")
    groups = {id(record): entry for entry in contenders(records) for record in entry.records}
    networks: dict[Any, Record] = {}
    for record in records:
        key = record.training.get("weights_sha256") or id(record)
        # A record without a test takes the place of no other one.
        if key not in networks or record.confusion_matrix is not None:
            networks[key] = record
    if checkpoint is not None:
        known = networks.get(sha256(checkpoint))
        if known is None:
            raise UserError(
                f"no record in '{folder}' describes the weights in '{path}'; name the run folder for the cards of all "
                "its networks"
            )
        networks = {"": known}
    return [Trained(record, groups[id(record)], folder) for record in networks.values()]
