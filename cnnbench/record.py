"""Records: what was measured, on what, with what. Every picture, table and comparison is made from them alone.

No torch is needed to read them. A record in a file has a checksum over its content, so that damage and edits are found.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
STATUSES = ("ok", "error")
NOT_RECORDS = ("plan.json", "speed.json")
"""JSON files of a run folder that are something else."""
KINDS = ("latency", "inference", "training")
"""Kinds of work that are timed: one image, a batch of inference, a training step."""
PACKAGES = ("cnnbench", "torch", "torchvision", "lightning", "torchmetrics", "wandb")


@dataclass(frozen=True)
class Record:
    """One cell of a benchmark: a network on a data set with a seed.

    Attributes:
        model: Name of the architecture.
        data: Facts about the data, with ``name``, ``label``, ``synthetic`` and ``class_names``.
        seed: Seed of initialisation and training.
        status: ``ok``, or ``error`` with the reason in `reason`.
        config: What was asked for and what was chosen: budget, device, precision, batch sizes.
        measures: Figures by name; names carry units. See the report's legend for what each means.
        skipped: Measures that do not apply here, with the reason.
        training: Steps, epochs, seconds, recipe, learning curve, and whether it was a full training.
        confusion_matrix: Integer counts on the test set, rows are true classes; absent if not measured.
        environment: Machine, versions, commit.
        created: Time of writing, UTC, ISO 8601.
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
        """Name of the cell, unique in a run; safe in file names."""
        return cell_key(self.model, self.data["name"], self.seed, self.data.get("stands_in_for"))

    @property
    def data_name(self) -> str:
        """Name of the data set that was asked for; where synthetic data stands in, the label says so."""
        return self.data.get("stands_in_for") or self.data["name"]


def cell_key(model: str, data: str, seed: int, stands_in_for: str | None = None) -> str:
    """Name of a cell: model, data set that was asked for, seed."""
    return safe_name(f"{model}-{stands_in_for or data}-seed{seed}")


def write_record(path: Path, record: Record) -> None:
    """Write a record as one JSON document with a checksum; the file is there whole or not at all."""
    write_checked_json(path, asdict(record))


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines to a new file.

    Raises:
        UserError: The file exists; records are never overwritten.
    """
    if os.path.lexists(path):
        raise UserError(f"'{path}' exists and records are never overwritten; choose another name")
    write_text(path, as_lines(records))


def as_lines(records: Iterable[Record]) -> str:
    """Return records as JSON lines, each with a checksum."""
    lines = [json.dumps(with_checksum(asdict(record)), ensure_ascii=False, allow_nan=False) for record in records]
    return "".join(f"{line}\n" for line in lines)


def parse_record(value: Any, where: str = "the record") -> Record:
    """Build a record from its JSON object.

    Args:
        value: What was read.
        where: The file, and the line in it, for the message.

    Raises:
        UserError: It is not a record of this schema, its figures contradict each other, or they are not those that
            were written.
    """
    # pydantic takes a tenth of a second to import, which commands that read no records do not spend.
    from cnnbench.schemas import check_record

    if not isinstance(value, dict) or not {"model", "data", "schema"} <= value.keys():
        raise UserError(f"{where} is not a record file of cnnbench; name a run folder or a file of its records")
    if value["schema"] != SCHEMA:
        raise UserError(f"{where} has record schema {value['schema']!r}; this version reads {SCHEMA}")
    content = without_checksum(value, where, check=False)
    check_record(content, where)
    without_checksum(value, where)
    return Record(**content)


def load_records(paths: Iterable[Path]) -> list[Record]:
    """Read records from JSON files, JSON-lines files and run folders (their ``records/``), those by date.

    Raises:
        UserError: A path does not exist or holds no record, or a file is not one.
    """
    records: list[Record] = []
    for path in paths:
        if path.is_dir():
            files = _record_files(path)
        elif path.exists() or path.is_symlink():
            files = [path]
        else:
            raise UserError(f"records '{path}' do not exist; name a run folder or a record file (.json, .jsonl)")
        if not files:
            raise UserError(f"folder '{path}' holds no records; name a run folder of `cnnbench bench`")
        found: list[Record] = []
        for file in files:
            found += _load_file(file)
        records += sorted(found, key=lambda r: r.created) if path.is_dir() else found
    return records


def _record_files(folder: Path) -> list[Path]:
    """The record files of a run folder, or of a folder of such files; hidden ones are not among them."""
    own = [file for file in sorted((folder / "records").glob("*.json")) if not file.name.startswith(".")]
    if own:
        return own
    listed = sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")])
    return [file for file in listed if file.name not in NOT_RECORDS and not file.name.startswith(".")]


def _load_file(file: Path) -> list[Record]:
    text = read_text(file, "record file")
    where = f"record file '{file}'"
    if file.suffix != ".jsonl":
        return [parse_record(parse_json(text, where), where)]
    records = []
    # Only line feeds end a record: texts may hold other characters that count as line breaks.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{where}, line {number}"
            records.append(parse_record(parse_json(line, place), place))
    if not records:
        raise UserError(f"{where} holds no record")
    return records


def environment(device: str, threads: int) -> dict[str, Any]:
    """Describes the machine and the software.

    Args:
        device: Product name of the device that is measured.
        threads: Threads that torch computes with on the CPU.
    """
    return {
        "device": device,
        "os": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": _memory_gib(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        **_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _commit() -> dict[str, Any]:
    """Commit of the source tree, when the package runs from one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
