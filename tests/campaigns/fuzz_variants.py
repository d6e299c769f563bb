"""Checkpoints that are intact files with wrong content: attacks, other types, missing and unknown keys."""

from __future__ import annotations

import copy
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

REFUSED, FREE = "refused", "free"
"""Expectations of a variant: it must be refused, or it may be used because only its weights differ."""
ATTACK = "touch pwned"
"""Shell command of the attacks. The file that it makes shows that an attack has succeeded."""


class _Attack:
    """An object whose pickle runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (ATTACK,)


# Each of the following functions returns a function that changes a checkpoint in place.


def _class_path(name: str, /, **options: Any) -> Callable[[dict[str, Any]], None]:
    def change(stored: dict[str, Any]) -> None:
        stored["hyper_parameters"] = {"_class_path": name, **options}

    return change


def _network(name: Any, /, **options: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change that names the network as a checkpoint of Lightning's Trainer does."""

    def change(stored: dict[str, Any]) -> None:
        stored["network"], stored["hyper_parameters"] = name, options

    return change


def _set(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(stored: dict[str, Any]) -> None:
        place = stored
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def _delete(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(stored: dict[str, Any]) -> None:
        place = stored
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def _weights(value: float) -> Callable[[dict[str, Any]], None]:
    """Return a change that sets the first element of the first weight tensor."""

    def change(stored: dict[str, Any]) -> None:
        first = next(iter(stored["state_dict"].values()))
        first[(0,) * first.ndim] = value

    return change


def _first_weight(change_of: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    """Return a change that replaces the first weight tensor."""

    def change(stored: dict[str, Any]) -> None:
        name = next(iter(stored["state_dict"]))
        stored["state_dict"][name] = change_of(stored["state_dict"][name])

    return change


_OPTIONS = "hyper_parameters"
CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "os-system": (REFUSED, _class_path("os.system", command=ATTACK)),
    "subprocess": (REFUSED, _class_path("subprocess.call", args=ATTACK.split())),
    "external": (
        REFUSED,
        _class_path(
            "cnnbench.network.External",
            name=f"os:system(command='{ATTACK}')",
            num_classes=10,
            in_channels=3,
            image_size=32,
        ),
    ),
    "external-of-the-folder": (
        REFUSED,
        _class_path("cnnbench.network.External", name="mine:touch", num_classes=10, in_channels=3, image_size=32),
    ),
    "function-of-the-package": (REFUSED, _class_path("cnnbench.files.write_text", path="pwned", text="x")),
    "class-of-torch": (REFUSED, _class_path("torch.nn.Linear", in_features=1, out_features=1)),
    "base-class": (REFUSED, _class_path("cnnbench.training.classifier.ImageClassifier", num_classes=10)),
    "network-os-system": (REFUSED, _network("os.system", command=ATTACK)),
    "network-external": (REFUSED, _network("cnnbench.network.External", name=f"os:system(command='{ATTACK}')")),
    "network-list": (REFUSED, _network(["os.system"])),
    "class-path-number": (REFUSED, _set(_OPTIONS, "_class_path", value=17)),
    "class-path-empty": (REFUSED, _set(_OPTIONS, "_class_path", value="")),
    "class-path-dots": (REFUSED, _set(_OPTIONS, "_class_path", value="...")),
    "class-path-control": (REFUSED, _set(_OPTIONS, "_class_path", value="\x1b[2J.x")),
    "options-list": (REFUSED, _set(_OPTIONS, value=[1])),
    "options-none": (REFUSED, _set(_OPTIONS, value=None)),
    "classes-text": (REFUSED, _set(_OPTIONS, "num_classes", value="ten")),
    "classes-negative": (REFUSED, _set(_OPTIONS, "num_classes", value=-1)),
    "classes-huge": (REFUSED, _set(_OPTIONS, "num_classes", value=10**15)),
    "classes-other": (REFUSED, _set(_OPTIONS, "num_classes", value=7)),
    "option-unknown": (REFUSED, _set(_OPTIONS, "surprise", value=1)),
    "rate-nan": (REFUSED, _set(_OPTIONS, "learning_rate", value=math.nan)),
    "no-weights": (REFUSED, _delete("state_dict")),
    "weights-empty": (REFUSED, _set("state_dict", value={})),
    "weights-list": (REFUSED, _set("state_dict", value=[1, 2])),
    "weights-none": (REFUSED, _set("state_dict", value=None)),
    "weight-unknown": (REFUSED, _set("state_dict", "surprise.weight", value=torch.zeros(2))),
    "weight-shape": (REFUSED, _first_weight(lambda weight: torch.zeros(3, 3))),
    "weight-text": (REFUSED, _first_weight(lambda weight: "text")),
    "weight-complex": (FREE, _first_weight(lambda weight: weight.to(torch.float64))),
    "weight-nan": (FREE, _weights(math.nan)),
    "weight-infinite": (FREE, _weights(math.inf)),
    "weight-other": (FREE, _weights(0.25)),
}
"""Changes of a checkpoint with their expectation, by name of the variant."""
FOR_FIT: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "fit-no-loops": (REFUSED, _delete("loops")),
    "fit-loops-list": (REFUSED, _set("loops", value=[])),
    "fit-no-optimizer": (REFUSED, _delete("optimizer_states")),
    "fit-optimizer-empty": (REFUSED, _set("optimizer_states", value=[])),
    "fit-optimizer-text": (REFUSED, _set("optimizer_states", value=["x"])),
    "fit-schedule-empty": (REFUSED, _set("lr_schedulers", value=[{}])),
    "fit-callbacks-list": (REFUSED, _set("callbacks", value=[1])),
    "fit-epoch-text": (REFUSED, _set("epoch", value="x")),
    "fit-step-text": (REFUSED, _set("global_step", value="x")),
    "fit-version": (REFUSED, _set("pytorch-lightning_version", value=17)),
}
"""Changes of the training state, which only `fit` reads."""


def main(source: Path, folder: Path, arguments: Sequence[str] = ()) -> int:
    """Write every variant of a checkpoint to ``<expectation>-<name>.ckpt`` in a folder.

    Args:
        source: Undamaged checkpoint.
        folder: Folder to make.
        arguments: Not used; a command of `fuzz_fork` takes them.

    Returns:
        The exit code 0.
    """
    folder.mkdir()
    stored = torch.load(source, map_location="cpu", weights_only=True)
    for name, (expected, change) in {**CHANGES, **FOR_FIT}.items():
        changed = copy.deepcopy(stored)
        change(changed)
        torch.save(changed, folder / f"{expected}-{name}.ckpt")
    for name, value in {
        "list": [1, 2],
        "tensor": torch.zeros(3),
        "none": None,
        "text": "x",
        "attack": {"state_dict": _Attack()},
        "model": torch.nn.Linear(2, 2),
    }.items():
        torch.save(value, folder / f"{REFUSED}-{name}.ckpt")
    (folder / f"{REFUSED}-pickle.ckpt").write_bytes(pickle.dumps(_Attack()))
    (folder / f"{REFUSED}-bare-text.ckpt").write_bytes(b"hello\n")
    with zipfile.ZipFile(folder / f"{REFUSED}-zip.ckpt", "w") as archive:
        archive.writestr("a.txt", "hello")
    return 0
