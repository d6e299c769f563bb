"""SpeedNet's recipes for a GPU beside airbench's own trainings: time and accuracy on one card, in turns.

The first training of each side does not count, because the first training of a process chooses kernels and fills
caches. Training and evaluation are timed separately. The training time of both sides starts when the data set is in
memory, before the network is made, and ends with the last step. airbench also reads its test images from a file within
this time. It trains by Jordan's recipe of SGD and lookahead, without Lightning. The accuracies of both sides are
measured without and with test-time augmentation, which uses the same six views of each image.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from cnnbench import hardware
from cnnbench.confusion import accuracy
from cnnbench.data import get_data
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError
from cnnbench.models import get_model
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.clock import TrainingClock
from cnnbench.training.trainer import quiet_lightning
from cnnbench.verification import fit_trainer, interleave, ratio, write_race
from cnnbench.verification import run as run_race
from cnnbench.verification.data import airbench, write_for_airbench

GOALS = (94, 96)
"""Accuracies in per cent that the recipes are made for."""
MOST_TIMES = 1.15
"""Longest training time of ours, as a multiple of airbench's."""
Result = dict[str, float]
"""Seconds and accuracies of one training, by name."""


def make_data(settings: Mapping[str, Any]) -> ImageDataModule:
    """Return the data module that the YAML file of an experiment describes."""
    return get_data(settings["data"]["class_path"])(**settings["data"].get("init_args", {}))


def make_network(settings: Mapping[str, Any], data: ImageDataModule) -> ImageClassifier:
    """Return the network that the YAML file of an experiment describes, in the size that the data needs."""
    options = dict(settings["model"].get("init_args", {}))
    # The network expects a function that makes the optimizer; the YAML file names its class and its arguments.
    optimizer = options.pop("optimizer", None)
    if optimizer is not None:
        module, _, name = optimizer["class_path"].rpartition(".")
        options["optimizer"] = partial(getattr(importlib.import_module(module), name), **optimizer["init_args"])
    sizes = {key: getattr(data, key) for key in ("num_classes", "in_channels", "image_size")}
    return get_model(settings["model"]["class_path"])(**options, **sizes)


def train_ours(settings: Mapping[str, Any], seed: int, device: torch.device) -> Result:
    """Train and test a network as `cnnbench fit` and `cnnbench test` do, but without checkpoints.

    Args:
        settings: Content of the YAML file of the experiment.
        seed: Random seed of the training.
        device: GPU to train on.

    Returns:
        Seconds of the training, of its steps alone and of the evaluation, and the accuracy as a share of the test
        images, without and with test-time augmentation.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    data = make_data(settings)
    data.prepare_data()
    data.setup()
    clock = TrainingClock()
    start = time.perf_counter()
    model = make_network(settings, data)
    # No checkpoints, because airbench writes none either. The Trainer may switch cuDNN's search for kernels on; the
    # context restores the setting.
    trainer_of_fit = fit_trainer(device, [clock], checkpoints=False, **settings["trainer"])
    with hardware.cudnn_benchmark(False), trainer_of_fit as trainer:
        trainer.fit(model, datamodule=data)
        # The host runs ahead of the GPU, so the clock is read only after the GPU has finished.
        hardware.synchronise(device)
        fitted = time.perf_counter()
        model.test_views = "one"
        trainer.test(model, datamodule=data, verbose=False)
        hardware.synchronise(device)
        evaluation_s = time.perf_counter() - fitted
        plain = accuracy(model.confusion_counts("test"))["test_accuracy"]
        # Of both sides, only the evaluation without augmentation is timed.
        model.test_views = "mirror and shift"  # airbench's views
        trainer.test(model, datamodule=data, verbose=False)
    return {
        "training_s": fitted - start,
        "steps_s": clock.used_s,
        "evaluation_s": evaluation_s,
        "accuracy": plain,
        "accuracy_augmented": accuracy(model.confusion_counts("test"))["test_accuracy"],
    }


def train_airbench(goal: int, folder: Path, device: torch.device) -> Result:
    """Train and test a network with airbench's own functions.

    Args:
        goal: Accuracy in per cent, which selects airbench's recipe.
        folder: Folder with the files of `write_airbench_files`.
        device: GPU that airbench uses.

    Returns:
        The figures of `train_ours`, without the seconds of the steps alone.
    """
    package = airbench()
    train = {94: package.train94, 96: package.train96}[goal]
    recipe = importlib.import_module(f"airbench.lib_airbench{goal}").hyp
    options = {"batch_size": recipe["opt"]["batch_size"], "aug": recipe["aug"], "altflip": True}
    with working_in(folder), hardware.cudnn_benchmark(True):  # airbench switches it on when it is imported
        # The loader that airbench's training would make itself; here its images are read before the clock starts.
        loader = package.CifarLoader("cifar10", train=True, **options)
        hardware.synchronise(device)
        start = time.perf_counter()
        net = train(loader, verbose=False)
        hardware.synchronise(device)
        trained = time.perf_counter()
        tests = package.CifarLoader("cifar10", train=False, batch_size=2000)
    hardware.synchronise(device)
    loaded = time.perf_counter()
    # Level 0 is the image alone; level 2 adds its mirror image and shifted copies of both.
    plain = package.evaluate(net, tests, tta_level=0)
    evaluated = time.perf_counter()
    augmented = package.evaluate(net, tests, tta_level=2)
    return {
        "training_s": trained - start,
        "evaluation_s": evaluated - loaded,
        "accuracy": plain,
        "accuracy_augmented": augmented,
    }


def write_airbench_files(folder: Path) -> str:
    """Write CIFAR-10 to the files that airbench reads: ``cifar10/train.pt`` and ``cifar10/test.pt``.

    Returns:
        The label of the data set, for the report.
    """
    data = get_data("CIFAR10")(val_fraction=0.0)
    data.prepare_data()
    data.setup()
    (folder / "cifar10").mkdir(parents=True)
    for name in ("train", "test"):
        write_for_airbench(data.stored(name, slice(None)), folder / "cifar10" / f"{name}.pt")
    return data.label


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Change the working folder inside the context: airbench reads its test images from the current folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def race(ours: Callable[[], Result], theirs: Callable[[], Result], rounds: int) -> dict[str, list[Result]]:
    """Train both sides in turns.

    Args:
        ours: Function that trains our network.
        theirs: Function that trains airbench's network.
        rounds: Number of trainings of each side that count.

    Returns:
        The results of each side, without its first training, which is a warm-up.
    """
    results: dict[str, list[Result]] = {"cnnbench": [], "airbench": []}
    ways = {
        "cnnbench": lambda: results["cnnbench"].append(ours()),
        "airbench": lambda: results["airbench"].append(theirs()),
    }
    # Each way runs once more than `rounds`, since `interleave` starts with a call that does not count.
    interleave(ways, rounds)
    return {name: of_side[1:] for name, of_side in results.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the recipes, print the table and write ``results/races/recipes.json``; return the exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m cnnbench.verification.recipes", description=__doc__)
    parser.add_argument("--goal", type=int, choices=GOALS, default=94)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--project", type=Path, default=Path(), metavar="DIR", help="the project's folder (default: this)"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        raise UserError(f"rounds {options.rounds} must be at least 1")
    if not torch.cuda.is_available():
        raise UserError("airbench trains on a CUDA GPU only, and torch sees none; run this where there is one")
    device = torch.device("cuda", 0)
    quiet_lightning()
    config = options.project / "experiments" / f"cifar10_speednet_{options.goal}.yaml"
    if not config.is_file():
        raise UserError(f"'{config}' is not there; run this in the project's folder, or name it with --project")
    # `safe_load` constructs plain values only.
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    # Each of our trainings has a seed of its own, that of the warm-up too.
    seeds = iter(range(options.rounds + 1))
    with tempfile.TemporaryDirectory() as folder:
        label = write_airbench_files(Path(folder))
        results = race(
            lambda: train_ours(settings, next(seeds), device),
            lambda: train_airbench(options.goal, Path(folder), device),
            options.rounds,
        )
    print(f"{hardware.device_name(device)}, {label}, {options.rounds} trainings each in turns, after one that warms up")
    _print_table(results)
    ours_s = [result["training_s"] for result in results["cnnbench"]]
    theirs_s = [result["training_s"] for result in results["airbench"]]
    share = ratio(ours_s, theirs_s)
    mean = statistics.mean(result["accuracy_augmented"] for result in results["cnnbench"])
    goals = {
        f"training at most {MOST_TIMES} times airbench's": share["median"] <= MOST_TIMES,
        f"accuracy with test-time augmentation at least {options.goal} %": 100 * mean >= options.goal,
    }
    rows = [{"training": name, "results": of_side} for name, of_side in results.items()]
    print(f"cnnbench / airbench: {share['median']:.2f} ({share['low']:.2f} to {share['high']:.2f})")
    path = write_race("recipes", rows, {"cnnbench / airbench": share}, goals, device, data=label, goal=options.goal)
    print(f"written: {path}")
    return 0


def _print_table(results: Mapping[str, Sequence[Result]]) -> None:
    """Print a table with the median times and the mean accuracies of each side."""
    print(
        "| Training | Training s | Lowest | Highest | Of it steps s | Evaluation s | Accuracy % | with augmentation % |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, of_side in results.items():
        columns = {key: [result[key] for result in of_side] for key in of_side[0]}
        times_s = columns["training_s"]
        cells = [f"{statistics.median(times_s):.2f}", f"{min(times_s):.2f}", f"{max(times_s):.2f}"]
        # The steps of airbench alone are not timed, so its cell stays empty.
        for key in ("steps_s", "evaluation_s"):
            cells.append(f"{statistics.median(columns[key]):.2f}" if key in columns else "")
        for key in ("accuracy", "accuracy_augmented"):
            cells.append(f"{100 * statistics.mean(columns[key]):.2f}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run_race("recipes", main)
