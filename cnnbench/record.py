"""Records of a benchmark: what was measured, on which data, with which settings and machine.

Every picture, table and comparison is made from records alone. Reading them does not need torch. In a file, each record
has a checksum over its content, which reveals damage and edits.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from cnnbench.command_line import command_line
from cnnbench.console import note
from cnnbench.errors import UserError
from cnnbench.files import (
    parse_json,
    read_text,
    safe_name,
    with_checksum,
    without_checksum,
    write_checked_json,
    write_text,
)

SCHEMA = 1
"""Version of the format of records that this package reads and writes."""
STATUSES = ("ok", "error")
NOT_RECORDS = ("plan.json", "speed.json")
"""JSON files of a run folder that are not records."""
KINDS = ("latency", "inference", "training")
"""Kinds of work that are timed: one image, a batch of inference, a training step."""
AFTER_TIMES = ("energy", "memory")
"""Measures that are taken after the times, so that a failure costs no times; a record says why one is missing."""
INFERENCE_KINDS = KINDS[:2]
"""Kinds of work that train nothing."""
PACKAGES = ("cnnbench", "torch", "torchvision", "lightning", "torchmetrics", "wandb")
"""Packages whose versions a record names."""


@dataclass(frozen=True)
class Record:
    """The record of one cell of a benchmark: a network on a data set with a seed.

    Attributes:
        model: Name of the network.
        data: Facts about the data, with ``name``, ``label``, ``synthetic`` and ``class_names``.
        seed: Seed of initialisation and training.
        status: Outcome, ``ok`` or ``error``.
        config: Settings that were asked for or chosen: budget, device, precision, batch sizes.
        environment: Machine, versions of packages, commit, and the command line without secrets.
        reason: Error message if the status is ``error``, else empty.
        measures: Figures by key, which contains the unit; `cnnbench.measures` explains them.
        skipped: Reasons why figures or whole measures are missing, by name.
        training: Steps, epochs, seconds, recipe, learning curve, and whether it was a full training.
        confusion_matrix: Numbers of test images, (K, K); rows are true classes, columns are predicted classes. None if
            not measured.
        created: Time of creation in UTC, in the format of ISO 8601.
        schema: Version of the format.

    Raises:
        ValueError: The schema or status is unknown, or the confusion matrix does not count every test image.
    """

    model: str
    data: dict[str, Any]
    seed: int
    status: str
    config: dict[str, Any]
    environment: dict[str, Any]
    reason: str = ""
    measures: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    confusion_matrix: list[list[int]] | None = None
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    schema: int = SCHEMA
    file: ClassVar[Path | None] = None
    """Path of the file that holds this record alone; it is not a part of the record, and `located` sets it."""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"record schema {self.schema} is not {SCHEMA}, which this version reads")
        if self.status not in STATUSES:
            raise ValueError(f"record status '{self.status}' is not one of {', '.join(STATUSES)}")
        if self.confusion_matrix is not None:
            total = sum(map(sum, self.confusion_matrix))
            if total != self.data["test_images"]:
                raise ValueError(f"confusion matrix counts {total} of {self.data['test_images']} test images")

    @property
    def key(self) -> str:
        """Return the name of the cell, which is unique in a run and safe in file names."""
        # A recipe by name is the same for all cells of a run; recipes from files are rows of its grid.
        recipe = self.config["recipe"] if self.config.get("recipe_settings") else ""
        return cell_key(self.model, self.data_name, self.seed, recipe)

    @property
    def title(self) -> str:
        """Return the name of the network and, if it is one of several recipes of a grid, the name of the recipe.

        A trial of a search that was ended early says so, since its accuracy is not that of a whole training.
        """
        if self.config.get("recipe_settings"):
            ended = ", pruned" if self.config.get("pruned") else ""
            return f"{self.model} ({self.config['recipe']}{ended})"
        return self.model

    @property
    def network(self) -> str:
        """Return the name of the network without the words on how it ran, which the rows of engines have."""
        return str(self.config.get("network") or self.model)

    def doubts(self, work: str | None) -> list[str]:
        """Return the reasons to doubt the times of a kind of work.

        A reason such as "inference and training drifted" begins with the kinds of work that it concerns; others concern
        all of them.

        Args:
            work: One of `KINDS`; None for the reasons of all kinds.
        """
        doubts = []
        for reason in self.measures.get("suspect", ()):
            words = itertools.takewhile(lambda word: word in (*KINDS, "and"), reason.split())
            concerned = set(words) - {"and"} or KINDS
            if work is None or work in concerned:
                doubts.append(reason)
        return doubts

    @property
    def is_of_an_engine(self) -> bool:
        """Return whether the network ran in another way than that of its training, which has a record of its own."""
        return bool(self.training) and self.network != self.model

    @property
    def fully_trained(self) -> bool:
        """Return whether the training was a full one, on the whole training split; True for a record without one.

        Many epochs on a part of the images are as long as a full training, but reach another accuracy.
        """
        whole = self.data.get("full_train_images") or 0
        return self.training.get("converged", True) and self.data.get("train_images", whole) >= whole

    @property
    def data_name(self) -> str:
        """Return the name of the data set that was asked for, also if synthetic data stands in for it."""
        return self.data.get("stands_in_for") or self.data["name"]


def located(record: Record, file: Path) -> Record:
    """Return a record that knows in which file it is, so that the predictions beside it are found.

    Args:
        record: Record.
        file: Path of the file that holds this record alone.
    """
    copy = replace(record)
    # The path is no field, since it would be written into the record.
    object.__setattr__(copy, "file", file)
    return copy


def predictions_beside(record: Record) -> Path | None:
    """Return the path of the predictions of a record's test; None if the record is in no run folder, or has none.

    Records of a run folder are in its subfolder ``records``, and their predictions in ``predictions``. Records of a
    JSON-lines file have none.
    """
    if record.file is None or record.file.parent.name != "records":
        return None
    path = record.file.parent.parent / "predictions" / f"{record.file.stem}.npz"
    return path if path.exists() else None


def cell_key(model: str, data: str, seed: int, recipe: str = "") -> str:
    """Return the name of a cell, made from network, recipe, data set and seed.

    Args:
        model: Name of the network.
        data: Name of the data set that was asked for. With this name, a resumed run finds its record although synthetic
            data stands in for the data set.
        seed: Seed of initialisation and training.
        recipe: Name of the recipe, if it comes from a file.
    """
    parts = [model, recipe, data, f"seed{seed}"]
    return safe_name("-".join(part for part in parts if part))


def write_record(path: Path, record: Record) -> None:
    """Write a record as one JSON document with a checksum; an interrupted write leaves no partial file."""
    write_checked_json(path, asdict(record))


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines to a new file.

    Raises:
        UserError: The file exists already, and records are never overwritten.
    """
    # True for a link that points nowhere too.
    if os.path.lexists(path):
        raise UserError(f"'{path}' exists and records are never overwritten; choose another name")
    write_text(path, as_lines(records))


def as_lines(records: Iterable[Record]) -> str:
    """Return the records as JSON lines, each with a checksum."""
    # JSON has no NaN, so a record with one raises an error here.
    lines = [json.dumps(with_checksum(asdict(record)), ensure_ascii=False, allow_nan=False) for record in records]
    return "".join(f"{line}\n" for line in lines)


def parse_record(value: Any, where: str = "the record") -> Record:
    """Return the record that a JSON object describes.

    Args:
        value: Value that was read from JSON.
        where: Name of the file, with the line if there are several records, for the error message.

    Raises:
        UserError: The value is not a record of this schema, its figures contradict each other, or its checksum is
            wrong.
    """
    # Importing pydantic takes a tenth of a second, which commands that read no records should not spend.
    from cnnbench.schemas import check_record, in_utc

    # These keys tell a record from other JSON files.
    if not isinstance(value, dict) or not {"model", "data", "schema"} <= value.keys():
        raise UserError(f"{where} is not a record file of cnnbench; name a run folder or a file of its records")
    # The version is checked before everything else, because another version may have other keys.
    if value["schema"] != SCHEMA:
        raise UserError(f"{where} has record schema {value['schema']!r}; this version reads {SCHEMA}")
    # The checksum comes last: a wrong value or a contradiction is reported before a wrong checksum.
    content = without_checksum(value, where, check=False)
    check_record(content, where)
    without_checksum(value, where)
    # A figure that is null in the file is one that is missing, so no reader has to tell the two apart.
    measures = {key: figure for key, figure in content.get("measures", {}).items() if figure is not None}
    training = content.get("training") or {}
    # Records are sorted by this text, and its first ten characters are shown as the day.
    return Record(**{**content, "measures": measures, "training": training, "created": in_utc(content["created"])})


def load_records(paths: Iterable[Path]) -> list[Record]:
    """Read the records of JSON files, JSON-lines files and run folders.

    Args:
        paths: Files, run folders (with a subfolder ``records``) or folders of record files.

    Returns:
        The records in the order of the paths; those of a folder are sorted by time of creation. A folder without
        records is skipped with a line if another path has some, since `validate` and `predict` make such folders.

    Raises:
        UserError: A path does not exist or holds no record, or a file is not a valid record file.
    """
    return [record for records in load_by_path(paths).values() for record in records]


def load_by_path(paths: Iterable[Path]) -> dict[Path, list[Record]]:
    """Read the records of files and folders like `load_records`, and return them by path."""
    records: dict[Path, list[Record]] = {}
    empty: list[Path] = []
    for path in paths:
        if path.is_dir():
            files = _record_files(path)
        # A link that points nowhere is reported by the function that reads it, with a better message.
        elif path.exists() or path.is_symlink():
            files = [path]
        else:
            raise UserError(f"records '{path}' do not exist; name a run folder or a record file (.json, .jsonl)")
        if not files:
            empty.append(path)
            continue
        found: list[Record] = []
        for file in files:
            found += _load_file(file)
        found = sorted(found, key=lambda r: r.created) if path.is_dir() else found
        # A path that is named twice has its records twice.
        records[path] = [*records.get(path, []), *found]
    if empty and not records:
        raise UserError(f"folder '{empty[0]}' holds no records; name a run folder of `cnnbench bench` or `fit`")
    for path in empty:
        note(f"folder '{path}' holds no records and is left out")
    return records


def _record_files(folder: Path) -> list[Path]:
    """Return the record files of a run folder, or of a folder of such files, without hidden files."""
    own = [file for file in sorted((folder / "records").glob("*.json")) if not file.name.startswith(".")]
    if own:
        return own
    listed = sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")])
    return [file for file in listed if file.name not in NOT_RECORDS and not file.name.startswith(".")]


def _load_file(file: Path) -> list[Record]:
    text = read_text(file, "record file")
    where = f"record file '{file}'"
    if file.suffix != ".jsonl":
        return [located(parse_record(parse_json(text, where), where), file)]
    records = []
    # Only a line feed ends a record: texts may contain other characters at which `str.splitlines` breaks lines.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{where}, line {number}"
            records.append(parse_record(parse_json(line, place), place))
    if not records:
        raise UserError(f"{where} holds no record")
    return records


def environment(device: str, threads: int) -> dict[str, Any]:
    """Return facts about the machine and the software, and the command line that is running, for records.

    Args:
        device: Product name of the device that is measured.
        threads: Number of threads that torch uses on the CPU.
    """
    return {
        "device": device,
        "os": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": _memory_gib(),
        # Windows has no load average.
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "command_line": command_line(),
        **_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory_gib() -> float | None:
    try:
        # Bytes per page times number of pages; not every system has these two values.
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _commit() -> dict[str, Any]:
    """Return the commit of the source tree and whether it has local changes; None for both outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    # Without this check, git would go on to search the parent folders, which may belong to another project.
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
