"""Cases with damaged data sets: MNIST, and CIFAR-10 in its published form.

The checks decide whether a file is valid by the description of its format, independently of the package.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from campaigns.fuzz_damage import damage_bytes
from campaigns.fuzz_fork import Outcome
from campaigns.fuzz_judge import RIGHT, Finding, Prepared, wrong
from campaigns.fuzz_templates import CLASSES, COUNTS, MNIST, Templates, complexity_of

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(pwned) (w) file closefile showpage\n"
"""A PostScript program that writes the file ``pwned`` if it is run."""


def records_of(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run folder, by file name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "records").glob("*.json"))]


def strange_file(path: Path, rng: random.Random) -> str:
    """Replace a file by something without normal content, such as a folder or a pipe, and return what it is."""
    path.unlink()
    kind = rng.choice(["missing", "a folder", "a pipe", "a link to nothing", "a link to itself", "a device", "empty"])
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a link to nothing":
        path.symlink_to("nowhere")
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    elif kind == "a device":
        path.symlink_to(rng.choice(["/dev/zero", "/dev/null", "/dev/full"]))
    elif kind == "empty":
        path.touch()
    return f"{path.name}: {kind}"


# MNIST


def mnist(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case in which one of the four files of MNIST is damaged."""
    templates.copy("mnist/data", folder, "data")
    raw = folder / "data" / "MNIST" / "raw"
    path = raw / rng.choice(MNIST)
    content = path.read_bytes()
    choice = rng.random()
    if choice < 0.12:
        what = strange_file(path, rng)
    else:
        if choice < 0.4:
            what, content = _damage_header(content, rng)
        elif choice < 0.5:
            what, content = _other_values(content, rng)
        else:
            other = (raw / rng.choice(MNIST)).read_bytes() if rng.random() < 0.5 else b"<html>404</html>"
            what, content = damage_bytes(content, rng, other)
        path.write_bytes(content)
        what = f"{path.name}: {what}"
    arguments = (*complexity_of("MNIST"), "--out", "out")
    return Prepared(arguments, what, partial(_check_mnist, raw=raw))


def _damage_header(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    # The fourth byte is the number of dimensions: files of images have four header words, files of labels two.
    fields = 4 if content[3] == 3 else 2
    at = 4 * rng.randrange(fields)
    value = rng.choice([0, 1, 14, 27, 29, 56, 0x801, 0x803, 0xD03, 199, 201, 2**31, 2**32 - 1, 784])
    return f"header word {at // 4} = {value}", content[:at] + struct.pack(">I", value) + content[at + 4 :]


def _other_values(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return a file whose form is valid but some of whose values are changed, perhaps to labels without a class."""
    header = 16 if content[3] == 3 else 8
    body = bytearray(content[header:])
    value = rng.choice([0, 9, 10, 115, 255])
    for place in rng.sample(range(len(body)), rng.choice([1, 5])):
        body[place] = value
    return f"some values = {value}", content[:header] + bytes(body)


def _idx_fault(raw: Path) -> str:
    """Return what is wrong with the four files by the rules of their format, or an empty text if all are valid."""
    counts = []
    for name in MNIST:
        path = raw / name
        if not path.is_file():
            return f"{name} is no file"
        content = path.read_bytes()
        images = "images" in name
        size = 16 if images else 8
        if len(content) < size:
            return f"{name} is too short"
        words = struct.unpack(">IIII" if images else ">II", content[:size])
        pixels_each = 784 if images else 1
        if words[0] != (0x803 if images else 0x801) or (images and words[2:] != (28, 28)):
            return f"{name} has another header"
        if len(content) != size + words[1] * pixels_each or words[1] == 0:
            return f"{name} has another length than its header says"
        if not images and max(content[size:]) > 9:
            return f"{name} has a label above 9"
        counts.append(words[1])
    return "" if counts[0] == counts[1] and counts[2] == counts[3] else "as many labels as images are needed"


def _check_mnist(outcome: Outcome, raw: Path) -> Finding:
    """Judge an accepted data set: its files must be valid, and its label must say that it is not the original."""
    record = records_of(outcome.folder / "out")[0]
    data = record["data"]
    if data["synthetic"]:
        return wrong("synthetic images stand in for damaged ones")
    fault = _idx_fault(raw)
    if fault:
        return wrong(f"accepted although {fault}")
    counts = (data["train_images"] + data["val_images"], data["test_images"])
    if counts != COUNTS or outcome.code != 0:
        return wrong(f"{counts} images, code {outcome.code}")
    said = "incomplete" in data["label"] or "altered" in data["label"]
    return RIGHT if said else wrong(f"the label is '{data['label']}'")


# CIFAR-10 as pickle files of Python


class _Attack:
    """An object whose pickle runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pwned",)


def batches(rng: random.Random, folder: Path, templates: Templates) -> Prepared:
    """Return a case with CIFAR-10 batches that are not the published files, so they must be refused and not loaded."""
    root = folder / "data" / "cifar-10-batches-py"
    root.mkdir(parents=True)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]
    attack = rng.random() < 0.5
    for name in names:
        value: Any = {"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1, 2]}
        if name == "batches.meta":
            value = {"label_names": list(CLASSES)}
        (root / name).write_bytes(pickle.dumps(_Attack() if attack else value))
    path = root / rng.choice(names)
    if rng.random() < 0.4:
        what = strange_file(path, rng)
    else:
        what, content = damage_bytes(path.read_bytes(), rng, POSTSCRIPT)
        path.write_bytes(content)
    return Prepared((*complexity_of("CIFAR10"), "--out", "out"), f"{path.name}: {what}, attack {attack}")
