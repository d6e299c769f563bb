"""Cases with damaged checkpoints and damaged files of predictions.

A checkpoint is an archive with check sums. If one of them does not match, the checkpoint must be refused. Checkpoints
whose check sums match but whose content is wrong come from `fuzz_variants`, and their names say what must happen.
"""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
import zipfile
from functools import partial
from pathlib import Path

from campaigns.fuzz_cases import POSTSCRIPT, strange_file
from campaigns.fuzz_damage import damage_bytes
from campaigns.fuzz_fork import Outcome
from campaigns.fuzz_judge import APART, RIGHT, Finding, Prepared, refuse, wrong
from campaigns.fuzz_templates import COUNTS, LAST, SMALL, Templates

# Predictions


def predictions(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which `explain confusions` reads a damaged file of predictions."""
    templates.copy("mnist/data", folder, "data")
    path = folder / "predictions.csv"
    shutil.copy(templates.root / "predictions.csv", path)
    good = path.read_bytes()
    choice = rng.random()
    if choice < 0.08:
        what = strange_file(path, rng)
    elif choice < 0.5:
        what, content = damage_bytes(good, rng, POSTSCRIPT)
        path.write_bytes(content)
    else:
        what, content = _damage_table(good.decode(), rng)
        path.write_bytes(content)
    arguments = ("explain", "confusions", "--predictions", "predictions.csv", "--data", "MNIST", "--data_dir", "data")
    check = partial(_check_predictions, good=good, reference=templates.results["confusions"])
    return Prepared((*arguments, "--out", "ex", "--json"), what, check)


def _damage_table(text: str, rng: random.Random) -> tuple[str, bytes]:
    rows = [line.split(",") for line in text.splitlines()]
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    kind = rng.choice(["cell", "row twice", "row missing", "column missing", "column more", "rows swapped", "quote"])
    if kind == "cell":
        value = rng.choice(["", "nan", "inf", "-1", "2", "1e400", "text", "\x1b[2J", "0.5.5", " 0.1", "é", "=1+1"])
        rows[row][column] = value
        kind = f"row {row}, column {column} = {value!a}"
    elif kind == "row twice":
        rows.insert(row, rows[row])
    elif kind == "row missing":
        del rows[row]
    elif kind == "column missing":
        rows = [cells[:column] + cells[column + 1 :] for cells in rows]
    elif kind == "column more":
        rows = [[*cells, "0"] for cells in rows]
    elif kind == "rows swapped":
        rows[1], rows[2] = rows[2], rows[1]
    else:
        rows[row][column] = '"' + rows[row][column]
    return kind, "\n".join(map(",".join, rows)).encode()


def _check_predictions(outcome: Outcome, good: bytes, reference: str) -> Finding:
    """Judge an accepted file: it must be the undamaged one with the same result, or have other valid probabilities."""
    if outcome.code != 0:
        return wrong(f"exit code {outcome.code}")
    try:
        numbers = [json.loads(text) for text in (outcome.stdout, reference)]
    except ValueError:
        return wrong("stdout is no JSON document")
    tables = [{k: v for k, v in document.items() if k != "pictures"} for document in numbers]
    path = outcome.folder / "predictions.csv"
    if tables[0] == tables[1] and path.read_bytes() == good:
        return RIGHT
    try:
        rows = list(csv.reader(io.StringIO(path.read_text("utf-8"))))
        before = list(csv.reader(io.StringIO(good.decode())))
        shares = [[float(cell) for cell in row[3:]] for row in rows[1:] if row]
    except (ValueError, csv.Error) as error:
        return wrong(f"accepted although {error}")
    if rows[0] != before[0] or [row[1] for row in rows[1:] if row] != [row[1] for row in before[1:]]:
        return wrong("accepted although its columns or its classes are others")
    if len(shares) != COUNTS[1] or not all(len(row) == 10 and all(0 <= s <= 1 for s in row) for row in shares):
        return wrong("accepted although not every row has ten probabilities")
    return RIGHT


# Checkpoints


def checkpoint(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which a damaged checkpoint is tested, validated, explained, or used to predict or to train."""
    root = templates.copy("fit", folder)
    path = folder / LAST
    commands: dict[str, tuple[str, ...]] = {
        "test": ("test", "--ckpt_path", LAST, "--out", "of", *SMALL),
        "validate": ("validate", "--ckpt_path", LAST, "--out", "of", *SMALL),
        "predict": ("predict", "--ckpt_path", LAST, "--out", "of", *SMALL),
        "filters": ("explain", "filters", "--ckpt_path", LAST, "--out", "ex", "--json"),
        "fit": ("fit", "--ckpt_path", LAST, "--trainer.max_epochs", "2", "--out", "of", *SMALL),
    }
    name = rng.choice(sorted(commands))
    choice = rng.random()
    # `weights`: only the weights differ. `good`: the checkpoint may be accepted.
    weights, good = False, True
    if choice < 0.05:
        what, good = strange_file(path, rng), False
    elif choice < 0.4:
        files = sorted((templates.root / "variants").glob("*.ckpt"))
        variant = rng.choice(files)
        if "-fit-" in variant.name:
            name = "fit"
        shutil.copy(variant, path)
        # One of the variants names this function as its network; calling it leaves the file `pwned`.
        (folder / "mine.py").write_text("def touch(**_):\n    open('pwned', 'w').close()\n")
        what, weights = variant.stem, variant.name.startswith("free-")
        good = weights
    elif choice < 0.5:
        what, weights = _flip_weights(path, rng), True
    else:
        what, content = damage_bytes(path.read_bytes(), rng, (root / "config.yaml").read_bytes())
        path.write_bytes(content)
        good = _whole_zip(path)
    if rng.random() < 0.15:
        (root / "config.yaml").unlink()
        what += ", no config.yaml"
    reference = templates.results.get("predictions" if name == "predict" else name)
    check = partial(_check_checkpoint, name=name, weights=weights, reference=reference)
    # A training stops with an error when weights are not finite, and its run folder remains.
    left = ("of", "of/*") if weights and name == "fit" else ()
    return Prepared(commands[name], f"{name}: {what}", check if good else refuse, left=left)


def _whole_zip(path: Path) -> bool:
    """Return whether the check sums of all members of an archive match."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:
        return False


def _flip_weights(path: Path, rng: random.Random) -> str:
    """Flip one bit of a weight, and rewrite the archive so that its check sums match; return what was done."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice([name for name in members if "/data/" in name and len(members[name]) > 64])
    body = bytearray(members[name])
    body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    members[name] = bytes(body)
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return f"a bit of {name} flipped, check sums fit"


def _check_checkpoint(outcome: Outcome, name: str, weights: bool, reference: str | None) -> Finding:
    """Judge an accepted checkpoint: unless its weights are changed, the result must be that of the undamaged one.

    The result of a training is not compared; it only has to succeed.
    """
    if outcome.code != 0:
        return wrong(f"exit code {outcome.code}")
    if weights:
        return APART
    got: str | None = outcome.stdout
    if name == "predict":
        got = next((path.read_text() for path in (outcome.folder / "of").glob("*/*/predictions.csv")), None)
    if name == "fit":
        return RIGHT
    return RIGHT if got == reference else wrong("another result than of the undamaged one")
