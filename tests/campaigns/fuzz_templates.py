"""Templates: small undamaged inputs, which the fuzz copies and damages, and the results of the command for them.

The data sets are written here, independently of the package. The command itself makes the run folders, checkpoints and
reference results, once at the start.
"""

from __future__ import annotations

import functools
import importlib
import json
import random
import shutil
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from campaigns import fuzz_fork, fuzz_variants

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
COUNTS = (200, 40)
"""Numbers of training and test images of the small MNIST."""
BENCH = (
    "bench",
    "--models",
    "LeNet5,SpeedNet",
    "--data",
    "Synthetic",
    "--epochs",
    "1",
    "--batch_size",
    "20",
    "--speed_batch_size",
    "4",
    "--eval_batch_size",
    "20",
    "--data_options",
    "{train_images: 120, test_images: 40}",
    "--device",
    "cpu",
    "--precision",
    "32-true",
    "--out",
    "run",
)
"""Arguments of the benchmark that makes the run folder."""
SMALL = (
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.accelerator",
    "cpu",
    "--trainer.precision",
    "32-true",
)
"""Options of all commands that use Lightning's Trainer."""
FIT = (
    "fit",
    "--model",
    "LeNet5",
    "--data",
    "Synthetic",
    "--data.train_images",
    "120",
    "--data.test_images",
    "40",
    "--data.batch_size",
    "20",
    "--trainer.max_epochs",
    "1",
    "--out",
    "runs",
    *SMALL,
)
"""Arguments of the training that makes the checkpoint."""
LAST = "fit/checkpoints/last.ckpt"
"""Checkpoint of this training, relative to the folder of the templates or of a case."""
LIMIT_S = 120.0
"""Time limit in seconds of a command that makes templates."""


@dataclass(frozen=True)
class Templates:
    """The undamaged inputs and the reference results.

    Attributes:
        root: Folder with ``mnist``, ``images``, ``run``, ``fit``, ``photos`` and ``variants``.
        results: Results of the command for the undamaged inputs, by name.
    """

    root: Path
    results: dict[str, Any]

    def copy(self, name: str, folder: Path, target: str = "") -> Path:
        """Copy a template into the folder of a case and return the path of the copy.

        File times are kept, because the decoded copy of the images is recognised by them.

        Args:
            name: Path of the template below `root`.
            folder: Folder of the case.
            target: Name of the copy; empty for `name`.
        """
        return Path(shutil.copytree(self.root / name, folder / (target or name), symlinks=True, dirs_exist_ok=True))


def make(root: Path) -> Templates:
    """Make all templates in an empty folder.

    Raises:
        RuntimeError: The command fails with undamaged inputs.
    """
    templates = Templates(root, {})
    write_mnist(root / "mnist" / "data" / "MNIST" / "raw")
    write_images(root / "images" / "data" / "cifar10-images")
    write_photos(root / "photos")
    _quick_timing()
    _make_runs(templates)
    _make_references(templates)
    return templates


def _quick_timing() -> None:
    """Make `bench` time for a tenth of a second only: the fuzz tests reading and writing, not the stopwatch."""
    running: Any = importlib.import_module("cnnbench.benchmark.run")
    work: Any = importlib.import_module("cnnbench.timing.timed_network")
    running.SpeedConfig = functools.partial(work.SpeedConfig, rounds=6, fewest_rounds=2, most_s=0.1, warmup_s=0.0)


def command(root: Path, arguments: Sequence[str], name: str, code: int = 0) -> fuzz_fork.Outcome:
    """Run a command in the folder of the templates and return its outcome.

    Args:
        root: Folder in which the command runs.
        arguments: Arguments of the command.
        name: Name of the folder for the output of the command.
        code: Exit code that the command must return.

    Raises:
        RuntimeError: The command returns another exit code, or runs for too long.
    """
    out = root.parent / "output" / name
    outcome = fuzz_fork.run(arguments, root, out, LIMIT_S, modules=root / "modules")
    if outcome.code != code or outcome.hung:
        raise RuntimeError(f"undamaged inputs: {' '.join(arguments)} ended with {outcome.code}:\n{outcome.stderr}")
    # The parent now imports the modules that this command needed, once for all later children.
    names = (root / "modules").read_text().split()
    fuzz_fork.preload([name for name in dict.fromkeys(names) if name not in sys.modules])
    return outcome


def _make_runs(templates: Templates) -> None:
    """Make the run folder, the checkpoint and its variants."""
    root = templates.root
    command(root, BENCH, "bench")
    # Remove the report: the cases damage only the plan, the times and the records.
    for name in ("figures", "report.html", "report.md", "results.csv"):
        path = root / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    command(root, FIT, "fit")
    found = next((root / "runs").glob("*/*/checkpoints")).parent
    shutil.move(found, root / "fit")
    shutil.rmtree(root / "runs")
    make_variants = functools.partial(fuzz_variants.main, root / LAST, root / "variants")
    outcome = fuzz_fork.run([], root, root.parent / "output" / "variants", LIMIT_S, command=make_variants)
    if outcome.code != 0:
        raise RuntimeError(f"variants of the checkpoint: {outcome.stderr}")


def _make_references(templates: Templates) -> None:
    """Run the commands with the undamaged inputs and keep their results."""
    root, results = templates.root, templates.results
    bench = (*complexity_of("CIFAR10"), "--out", "of-images")
    command(root / "images", bench, "images")
    shutil.rmtree(root / "images" / "of-images")
    command(root / "mnist", (*complexity_of("MNIST"), "--out", "of-mnist"), "mnist")
    shutil.rmtree(root / "mnist" / "of-mnist")
    first, second = sorted((root / "run" / "records").glob("*.json"))
    for name, arguments in {
        "report": ("report", "run", "--out", "rep", "--json"),
        "compare": ("compare", str(first.relative_to(root)), str(first.relative_to(root)), "--json"),
        "test": ("test", "--ckpt_path", LAST, "--out", "of-test", *SMALL),
        "validate": ("validate", "--ckpt_path", LAST, "--out", "of-test", *SMALL),
        "filters": ("explain", "filters", "--ckpt_path", LAST, "--out", "ex", "--json"),
        "predict": ("predict", "--ckpt_path", LAST, "--out", "of-predict", *SMALL),
    }.items():
        results[name] = command(root, arguments, name).stdout
    path = next((root / "of-predict").glob("*/*/predictions.csv"))
    results["predictions"] = path.read_text()
    results["records"] = {p.name: json.loads(p.read_text()) for p in (first, second)}
    write_predictions(root / "predictions.csv")
    confusions = ("explain", "confusions", "--predictions", "predictions.csv", "--data", "MNIST", "--data_dir")
    results["confusions"] = command(root, (*confusions, "mnist/data", "--out", "ex", "--json"), "confusions").stdout
    # Resumed runs with a damaged plan or damaged times are compared with this one, in which a record is missing.
    shutil.copytree(root / "run", root / "resumed")
    (root / "resumed" / "records" / second.name).unlink()
    command(root, ("bench", "--resume", "--out", "resumed"), "resume")
    results["resumed"] = {
        p.name: json.loads(p.read_text()) for p in sorted((root / "resumed" / "records").glob("*.json"))
    }


def complexity_of(data: str) -> tuple[str, ...]:
    """Return the arguments of the shortest benchmark that reads a data set, without ``--out``."""
    return (
        "bench",
        "--models",
        "LeNet5",
        "--data",
        data,
        "--data_dir",
        "data",
        "--measures",
        "complexity",
        "--epochs",
        "1",
        "--batch_size",
        "4",
        "--device",
        "cpu",
        "--precision",
        "32-true",
    )


def write_mnist(folder: Path) -> None:
    """Write the four files of a small MNIST, as the description of the format says (LeCun et al. 1998)."""
    folder.mkdir(parents=True)
    rng = random.Random(1)
    for index, count in enumerate(COUNTS):
        images = b"".join(bytes(rng.randrange(256) for _ in range(28)) * 28 for _ in range(count))
        (folder / MNIST[2 * index]).write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + images)
        labels = bytes(number % 10 for number in range(count))
        (folder / MNIST[2 * index + 1]).write_bytes(struct.pack(">II", 0x801, count) + labels)


def pixels(number: int) -> np.ndarray:
    """Return a smooth colour image, (32, 32, 3), which is different for every number."""
    y, x = np.mgrid[0:32, 0:32]
    waves = [np.sin(x * (1 + number % 5) / 9 + k) + np.cos(y * (1 + number % 7) / 11 + number) for k in range(3)]
    return np.stack([(wave + 2) * 63 for wave in waves], axis=2).astype(np.uint8)


def write_images(folder: Path) -> None:
    """Write class folders with a PNG and a JPEG for training, and a PNG for testing, of each class."""
    for label, name in enumerate(CLASSES):
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
        Image.fromarray(pixels(3 * label)).save(folder / "train" / name / "0.png")
        Image.fromarray(pixels(3 * label + 1)).save(folder / "train" / name / "1.jpg", quality=90)
        Image.fromarray(pixels(3 * label + 2)).save(folder / "test" / name / "0.png")


def write_photos(folder: Path) -> None:
    """Write a PNG and a JPEG of 48x48 pixels."""
    folder.mkdir(parents=True)
    image = Image.fromarray(pixels(4)).resize((48, 48))
    image.save(folder / "photo.png")
    image.save(folder / "photo.jpg", quality=90)


def write_predictions(path: Path) -> None:
    """Write random predictions for the test images of the small MNIST, in the format of `cnnbench predict`."""
    rng = random.Random(2)
    lines = ["image,true,predicted," + ",".join(map(str, range(10)))]
    for number in range(COUNTS[1]):
        guess = number % 10 if rng.random() < 0.6 else rng.randrange(10)
        shares = ["0.55" if label == guess else "0.05" for label in range(10)]
        lines.append(f"{number},{number % 10},{guess},{','.join(shares)}")
    path.write_text("\n".join(lines) + "\n")
