"""Records: what was measured, on what, with what. Every picture, table and comparison is made from them alone.

Standard library only, so that reading records needs no torch.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cnnbench.errors import UserError

SCHEMA = 1
STATUSES = ("ok", "error")
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
    return re.sub(r"[^\w.-]", "_", f"{model}-{stands_in_for or data}-seed{seed}")


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)  # mkstemp's files are for the owner alone
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON document atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_record(path: Path, record: Record) -> None:
    """Writes a record atomically, as one JSON document."""
    write_json(path, asdict(record))


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Writes records as JSON lines to a new file.

    Raises:
        UserError: The file exists; records are never overwritten.
    """
    if path.exists():
        raise UserError(f"'{path}' exists and records are never overwritten; choose another name")
    write_text(path, "".join(json.dumps(asdict(r), ensure_ascii=False, allow_nan=False) + "\n" for r in records))


def parse_record(value: Mapping[str, Any]) -> Record:
    """Builds a record from its JSON object; unknown keys are an error, since they would be lost.

    Raises:
        ValueError: The object is not a record of this schema.
    """
    known = {f.name for f in fields(Record)}
    if not isinstance(value, Mapping) or not {"model", "data", "schema"} <= set(value):
        raise ValueError("not a cnnbench record")
    if value["schema"] == SCHEMA and not set(value) <= known:
        raise ValueError(f"unknown keys {', '.join(sorted(set(value) - known))}")
    try:
        return Record(**value)
    except (TypeError, KeyError) as error:
        raise ValueError(f"incomplete record: {error}") from error


def load_records(paths: Iterable[Path]) -> list[Record]:
    """Reads records from JSON files, JSON-lines files and run folders (their ``records/``), those by date.

    Raises:
        UserError: A path does not exist or holds no record, or a file is not one.
    """
    records: list[Record] = []
    for path in paths:
        if path.is_dir():
            files = sorted((path / "records").glob("*.json")) or [
                f for f in sorted(path.glob("*.json*")) if f.name not in ("plan.json", "speed.json")
            ]
        elif path.is_file():
            files = [path]
        else:
            raise UserError(f"records '{path}' do not exist; name a run folder or a record file (.json, .jsonl)")
        if not files:
            raise UserError(f"folder '{path}' holds no records; name a run folder of `cnnbench bench`")
        found = [record for file in files for record in _load_file(file)]
        records += sorted(found, key=lambda r: r.created) if path.is_dir() else found
    return records


def _load_file(file: Path) -> list[Record]:
    try:
        text = file.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.strip()] if file.suffix == ".jsonl" else [text]
        return [parse_record(json.loads(line)) for line in lines]
    except (ValueError, OSError) as error:
        raise UserError(f"'{file}' is not a record file of cnnbench: {error}") from error


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
