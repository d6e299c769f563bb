"""Cases with damaged files of a run folder: its plan, its times and its records.

If the command accepts a damaged file, its result is compared with the result for the undamaged file. A file without a
checksum, as older versions wrote it, may contain another valid value. A file whose checksum does not match its content
must be refused.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from campaigns.fuzz_cases import strange_file
from campaigns.fuzz_damage import damage_json
from campaigns.fuzz_fork import Outcome
from campaigns.fuzz_judge import RIGHT, Finding, Prepared, wrong
from campaigns.fuzz_templates import Templates

CHECKSUM = "checksum"
"""Key of the checksum in a document."""
FREE_TEXTS = ("precision_reason", "reason", "created", "recipe", "skipped", "suspect", "os", "python", "load_average")
"""Keys of values that are only shown, and from which nothing is computed."""
REQUIRED = ("model", "data", "seed", "status", "config", "environment", "schema", "created")
"""Keys that every record must have."""
RESUME = ("bench", "--resume", "--out", "run")
"""Arguments that resume the run of a case."""


def loose_json(content: bytes) -> Any:
    """Return the value of a JSON document as a tolerant reader understands it; None if it is not JSON."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def without_checksum(value: Any) -> Any:
    """Return a document without its checksum."""
    return {k: v for k, v in value.items() if k != CHECKSUM} if isinstance(value, dict) else value


def prepare_document(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Damage a JSON file, either with its checksum or without one, as an older version wrote it.

    Returns:
        A description of the damage, and whether the file may be believed: it has no checksum, or its content is still
        that of the undamaged file.
    """
    document = json.loads(path.read_text())
    if rng.random() < 0.5:
        document = without_checksum(document)
    if rng.random() < 0.06:
        return strange_file(path, rng), False
    what, content = damage_json(json.dumps(document, indent=1, ensure_ascii=False), rng)
    path.write_bytes(content)
    damaged = loose_json(content)
    same = without_checksum(damaged) == without_checksum(document)
    fits = same or not (isinstance(damaged, dict) and isinstance(damaged.get(CHECKSUM), str))
    return what if CHECKSUM in document else f"{what}, no checksum", fits


def deterministic(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a record that must be equal in a second run: everything except times, dates and loads."""
    measures = {k: v for k, v in record.get("measures", {}).items() if k in _EXACT or "accuracy" in k}
    training = {k: v for k, v in record.get("training", {}).items() if k != "seconds"}
    same = ("model", "data", "seed", "status", "reason", "confusion_matrix", "skipped")
    config = {k: v for k, v in record["config"].items() if k not in FREE_TEXTS}
    return {k: record.get(k) for k in same} | {"config": config, "measures": measures, "training": training}


_EXACT = ("params", "macs", "flops", "activations", "other_ops", "train_macs")
"""Keys of measures that are counted and not timed."""


def contradiction(record: Any, good: Mapping[str, Any]) -> str:
    """Return what is impossible in a record, by rules that are independent of the package; empty if all is possible.

    Args:
        record: Damaged record.
        good: Undamaged record, which shows the keys and the types of the values.
    """
    if not isinstance(record, dict):
        return "it is no object"
    missing = [key for key in REQUIRED if record.get(key) is None]
    if missing:
        return f"{missing[0]} is missing"
    unlike = _unlike(record, good, ())
    if unlike:
        return unlike
    matrix, data = record.get("confusion_matrix"), record["data"]
    if matrix is None:
        return ""
    if not {"class_names", "test_images"} <= set(data):
        return "it does not say what its matrix counts"
    # The matrix must be square, count every test image once, and agree with the accuracy.
    total = sum(map(sum, matrix))
    if len(matrix) != len(data["class_names"]) or any(len(row) != len(matrix) for row in matrix):
        return "the matrix is not square, or not as large as its class names"
    if total != data["test_images"]:
        return f"the matrix counts {total} images"
    accuracy = record.get("measures", {}).get("test_accuracy")
    share = sum(row[index] for index, row in enumerate(matrix)) / total
    return "" if accuracy is None or abs(accuracy - share) < 1e-9 else f"the accuracy {accuracy} is not {share}"


def _unlike(value: Any, good: Any, path: tuple[str, ...]) -> str:
    """Return a description of the first value that has another type than in the undamaged record, or an invalid number.

    Args:
        value: Value of the damaged record.
        good: Value at the same place of the undamaged record.
        path: Keys that lead to the value.
    """
    where = ".".join(path)
    if path == ("config", "data_options"):
        # Only the data set knows its valid options, and a report does not open the data set.
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{where} is not finite"
    if isinstance(good, dict) and isinstance(value, dict):
        for key, below in value.items():
            if key not in good:
                if len(path) == 0 or path[0] not in ("measures", "skipped", "config", "data", "environment"):
                    return f"{where}.{key} is unknown"
                continue
            fault = _unlike(below, good[key], (*path, key))
            if fault:
                return fault
        return ""
    if isinstance(good, list) and isinstance(value, list):
        # All values of a list must be like its first one. Objects, such as the points of a curve, may have different
        # keys, so they are compared with the keys of all of them together.
        alike = {k: v for below in good for k, v in below.items()} if _are_objects(good) else (good or [None])[0]
        faults = (_unlike(below, alike, (*path, str(index))) for index, below in enumerate(value))
        return next((fault for fault in faults if fault), "")
    if value is None or good is None:
        return ""
    numbers = (int, float)
    same = isinstance(value, type(good)) or (type(value) in numbers and type(good) in numbers)
    if not same or (isinstance(value, bool) != isinstance(good, bool)):
        return f"{where} is a {type(value).__name__}, not a {type(good).__name__}"
    # The loss of a user's own network may be negative.
    if type(value) in numbers and value < 0 and not where.endswith("loss"):
        return f"{where} is negative"
    return ""


def _are_objects(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


# Records


def report(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which a report is made from two records, one of them damaged."""
    path = _one_record(rng, folder, templates)
    good = json.loads(path.read_text())
    what, fits = prepare_document(path, rng)
    check = partial(_check_document, path=path, good=good, fits=fits, reference=json.loads(templates.results["report"]))
    return Prepared(("report", "run", "--out", "rep", "--json"), f"{path.name}: {what}", check)


def compare(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which a damaged record is compared with its undamaged copy."""
    path = _one_record(rng, folder, templates)
    good = json.loads(path.read_text())
    shutil.copy(path, folder / "good.json")
    what, fits = prepare_document(path, rng)
    pair = [str(path.relative_to(folder)), "good.json"]
    if rng.random() < 0.5:
        pair.reverse()
    check = partial(_check_document, path=path, good=good, fits=fits, reference=None)
    return Prepared(("compare", *pair, "--json"), f"{path.name}: {what}", check)


def _one_record(rng: random.Random, folder: Path, templates: Templates) -> Path:
    templates.copy("run", folder)
    return rng.choice(sorted((folder / "run" / "records").glob("*.json")))


def _check_document(outcome: Outcome, path: Path, good: dict[str, Any], fits: bool, reference: Any) -> Finding:
    """Judge the JSON document that `report` or `compare` made from a damaged record.

    Args:
        outcome: Outcome of the command.
        path: Path of the damaged record.
        good: Undamaged record.
        fits: Whether the damaged record may be believed; see `prepare_document`.
        reference: Document for the undamaged record; None if documents are not compared.
    """
    if outcome.code != 0:
        return wrong(f"exit code {outcome.code} without a gate")
    try:
        document = json.loads(outcome.stdout, parse_constant=_no_number)
    except ValueError as error:
        return wrong(f"stdout is no JSON: {error}")
    if not os.path.lexists(path):
        return RIGHT  # a report of the records that remain
    damaged = loose_json(path.read_bytes()) if path.is_file() else None
    if without_checksum(damaged) == without_checksum(good):
        return RIGHT if reference is None or document == reference else wrong("the same record, another document")
    return _judge_acceptance(damaged, good, fits)


def _judge_acceptance(damaged: Any, good: Mapping[str, Any], fits: bool) -> Finding:
    """Judge a damaged record that was accepted: it may be believed only if nothing in it is impossible."""
    if not fits:
        return wrong("accepted although its checksum does not fit")
    fault = contradiction(damaged, good)
    return wrong(f"accepted although {fault}") if fault else RIGHT


def _no_number(name: str) -> float:
    """Raise ValueError for NaN and infinity, which JSON does not have."""
    raise ValueError(f"{name} is no number")


def resume(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which a run is resumed that has a damaged record of a finished network."""
    path = _one_record(rng, folder, templates)
    good = json.loads(path.read_text())
    what, fits = prepare_document(path, rng)
    content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    check = partial(_check_resume, reference=templates.results["records"], content=content, good=good, fits=fits)
    return Prepared((*RESUME, "--json"), f"{path.name}: {what}", check, left=("run/.lock",))


def _check_resume(
    outcome: Outcome, reference: dict[str, Any], content: bytes, good: dict[str, Any], fits: bool
) -> Finding:
    """Judge the records after `--resume`: as in an undamaged run, or with another valid value of the damaged record."""
    records = {path.name: json.loads(path.read_text()) for path in (outcome.folder / "run" / "records").glob("*.json")}
    if outcome.code == 0 and all(
        name in records and deterministic(records[name]) == deterministic(value) for name, value in reference.items()
    ):
        return RIGHT
    damaged = loose_json(content)
    if outcome.code == 1 and isinstance(damaged, dict) and damaged.get("status") == "error":
        return Finding("failed cell")
    if without_checksum(damaged) == without_checksum(good):
        return wrong(f"the same record, another result, code {outcome.code}")
    for key in ("model", "data", "seed", "config"):
        values = [value.get(key) if isinstance(value, dict) else None for value in (damaged, good)]
        if values[0] != values[1] and not _free(*values):
            return wrong(f"a finished record of another {key} was kept")
    return _judge_acceptance(damaged, good, fits)


def _free(value: Any, good: Any) -> bool:
    """Return whether two objects differ only in `FREE_TEXTS`."""
    if not isinstance(value, dict) or not isinstance(good, dict):
        return False
    return all(value.get(key) == good.get(key) or key in FREE_TEXTS for key in {*value, *good})


# The plan and the times


def plan(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which a run with a damaged ``plan.json`` and a missing record is resumed."""
    root = templates.copy("run", folder)
    sorted((root / "records").glob("*.json"))[1].unlink()
    path = root / "plan.json"
    good = json.loads(path.read_text())
    what, fits = prepare_document(path, rng)
    content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    check = partial(_check_plan, reference=templates.results["resumed"], content=content, good=good, fits=fits)
    return Prepared(RESUME, f"plan.json: {what}", check, left=("run/.lock",))


def _check_plan(
    outcome: Outcome, reference: dict[str, Any], content: bytes, good: dict[str, Any], fits: bool
) -> Finding:
    """Judge the records: those of the undamaged plan must be the same; the damaged plan may ask for other cells."""
    damaged = loose_json(content)
    if not isinstance(damaged, dict) or not fits:
        return wrong("a plan that is none was followed" if fits else "accepted although its checksum does not fit")
    records = {path.name: json.loads(path.read_text()) for path in (outcome.folder / "run" / "records").glob("*.json")}
    changed = {key for key in {*damaged, *good} if damaged.get(key) != good.get(key)} - {*FREE_TEXTS, CHECKSUM}
    for name, value in reference.items():
        if name in records and deterministic(records[name]) != deterministic(value):
            return wrong(f"{name} is another than in an undisturbed run; changed: {', '.join(sorted(changed))}")
    missing = [name for name in reference if name not in records]
    if missing and not changed & {"models", "seeds", "data"}:
        return wrong(f"{missing[0]} is missing")
    unknown = set(damaged) - set(good) - {CHECKSUM}
    if unknown:
        return wrong(f"an unknown key {sorted(unknown)[0][:30]!r} was passed over")
    return RIGHT if outcome.code == 0 else wrong(f"exit code {outcome.code}")


def speed(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which a run with a damaged ``speed.json`` and a missing record is resumed.

    Unless the stored times may be believed, the command must time the networks again, and say so.
    """
    root = templates.copy("run", folder)
    missing = sorted((root / "records").glob("*.json"))[1]
    missing.unlink()
    path = root / "speed.json"
    good = json.loads(path.read_text())
    what, fits = prepare_document(path, rng)
    content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    check = partial(
        _check_speed,
        there=os.path.lexists(path),
        name=missing.name,
        content=content,
        good=good,
        fits=fits,
        reference=templates.results["resumed"],
    )
    return Prepared(RESUME, f"speed.json: {what}", check, left=("run/.lock",))


def _check_speed(
    outcome: Outcome,
    there: bool,
    name: str,
    content: bytes,
    good: dict[str, Any],
    fits: bool,
    reference: dict[str, Any],
) -> Finding:
    """Judge the times of the new record: stored ones that may be believed, or new ones that a line announces.

    Args:
        outcome: Outcome of the command.
        there: Whether ``speed.json`` existed at the start.
        name: File name of the new record.
        content: Content of the damaged ``speed.json``.
        good: Content of the undamaged ``speed.json`` as an object.
        fits: Whether the damaged file may be believed; see `prepare_document`.
        reference: Records of an undamaged run, by file name.
    """
    if outcome.code != 0:
        return wrong(f"exit code {outcome.code}")
    record = json.loads((outcome.folder / "run" / "records" / name).read_text())
    if deterministic(record) != deterministic(reference[name]):
        return wrong("what does not depend on the times is another")
    measures = record["measures"]
    times = {key: value for key, value in measures.items() if "_ms_" in key and not isinstance(value, (list, dict))}
    if "latency_ms_median" not in times or not all(0 <= value < math.inf for value in times.values()):
        return wrong("no latency, or one that no time can be")
    said = "tim" in outcome.stderr and "again" in outcome.stderr
    kept = {key: reference[name]["measures"].get(key) for key in times}
    if times == kept or said or not there:
        return RIGHT
    damaged = loose_json(content)
    if not fits or not isinstance(damaged, dict):
        return wrong("other times than those that were stored, and no line")
    fault = _unlike(damaged.get("figures"), good["figures"], ("figures",))
    return wrong(f"believed although {fault}") if fault else RIGHT
