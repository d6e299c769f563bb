"""A check, in at most eight minutes, that everything that needs a GPU works there and that its numbers are plausible.

The check consists of stages. Every stage runs in processes of its own and has a time limit, so a stage that crashes or
hangs does not stop the others. Numbers that have one right value on every device, such as the difference of a training
from the same training in another form, are judged everywhere; speeds are compared with expected ranges on an NVIDIA
H200, and are printed elsewhere. ``--device cpu`` runs the stages that need no GPU in tiny sizes, to test this command
itself.

No virtual environment is needed: ``python3 -m cnnbench.verification.gpu`` runs wherever torch, lightning and the other
libraries of ``pyproject.toml`` except wandb are installed. Two stages need further packages, and are skipped if these
are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NamedTuple

import torch

from cnnbench.console import note, out
from cnnbench.errors import UserError
from cnnbench.files import write_json
from cnnbench.hardware import choose_device, device_name
from cnnbench.record import environment, load_records
from cnnbench.verification import FOLDER
from cnnbench.verification import run as run_race

LIMIT_S = 480
"""Default time limit of the whole check in seconds."""
LAST_LINES = 15
"""Number of lines at the end of the log that are printed for a stage that failed."""
Numbers = dict[str, float]
"""Measured numbers by name."""
_MODULE = (sys.executable, "-m")
_CNNBENCH = (*_MODULE, "cnnbench")
_TINY = ("--speed_batch_size", "8", "--batch_size", "8")
"""Batch sizes of `bench` on a CPU."""


class Range(NamedTuple):
    """The expected range of a number.

    Attributes:
        low, high: Ends of the range, which belong to it.
        source: Source of the ends, in words.
        anywhere: Whether the range holds on every device, and not only on an NVIDIA H200.
    """

    low: float
    high: float
    source: str
    anywhere: bool = False


_SHEET = "NVIDIA's data sheet, dense, less what products reach"
_MEASURED = "measured on such a card before this project ran there"
_ROOFLINE = "estimated from the roofline and the number of launches"
_MEANING = "what it means"
RANGES_OF: dict[str, dict[str, Range]] = {
    "probes": {
        "bf16 TFLOP/s": Range(700, 900, _MEASURED),
        "fp16 TFLOP/s": Range(700, 900, _MEASURED),
        "tf32 TFLOP/s": Range(330, 480, _SHEET),
        "fp32 TFLOP/s": Range(42, 62, _SHEET),
        "copy of memory TB/s": Range(4.0, 4.6, _MEASURED),
        "copy of 16 MiB TB/s": Range(4.6, 30, "from the cache, so faster than memory"),
        "empty call wall us": Range(8, 40, _MEASURED),
        "empty call device us": Range(0.5, 8, "a kernel alone"),
        "error of a product, TF32 off": Range(0, 1e-6, "float32 has 24 bits", anywhere=True),
        "error of a product, TF32 on": Range(1e-4, 1e-2, "TF32 has 11 bits", anywhere=True),
        "graph against eager, largest difference": Range(0, 1e-4, _MEANING, anywhere=True),
        "product after a refused graph": Range(64, 64, _MEANING, anywhere=True),
        "driver looks": Range(4, 10, "four a second"),
        "clock MHz": Range(1000, 2000, _SHEET),
        "peak of a step over four times its weights": Range(0.95, 1.3, "weights, gradients and two moments"),
        "peak memory of LeNet5, graph over eager": Range(0.8, 1.3, "the same tensors"),
        "yardstick ms": Range(4, 30, "7 by its arithmetic, in a memory format that cuDNN likes least"),
        "waits per step of fit": Range(0, 0.2, "nothing in a step reads a value", anywhere=True),
        "steps after a resume": Range(40, 40, _MEANING, anywhere=True),
        "fit, steps in one call, difference from the plain": Range(
            0, 1e-3, "the same steps in another order of sums", anywhere=True
        ),
        "fit, compiled steps, difference from the plain": Range(
            0, 1e-2, "the same steps in another order of sums", anywhere=True
        ),
        "fit, 16-mixed, difference from the plain": Range(
            0, 2e-2, "float16 has 11 bits; the weights move by a tenth", anywhere=True
        ),
        "whitening, difference from the CPU": Range(0, 1e-2, _MEANING, anywhere=True),
        "MuonSGD, difference from the CPU": Range(0, 2e-2, "bfloat16 against float32", anywhere=True),
        "seconds of a first compilation": Range(0.5, 60, _MEASURED),
    },
    "grid": {
        "latency ms LeNet5": Range(0.05, 0.3, _ROOFLINE),
        "latency ms VGG16": Range(0.2, 0.9, _ROOFLINE),
        "latency ms ResNet18": Range(0.4, 1.6, _ROOFLINE),
        "latency ms MobileNetV1": Range(0.5, 2.0, _ROOFLINE),
        "images/s LeNet5": Range(4e6, 18e6, _ROOFLINE),
        "images/s VGG16": Range(250e3, 730e3, _ROOFLINE),
        "images/s ResNet18": Range(130e3, 372e3, _ROOFLINE),
        "images/s MobileNetV1": Range(150e3, 900e3, _ROOFLINE),
        "train images/s LeNet5": Range(150e3, 600e3, _ROOFLINE),
        "train images/s VGG16": Range(75e3, 235e3, _ROOFLINE),
        "train images/s ResNet18": Range(38e3, 105e3, _ROOFLINE),
        "train images/s MobileNetV1": Range(45e3, 160e3, _ROOFLINE),
    },
    "recipe": {
        "recipe: ours, seconds": Range(1.0, 4.5, _ROOFLINE),
        "recipe: airbench, seconds": Range(1.5, 3.0, "its own page, from an A100"),
        "recipe: ours over airbench": Range(0.5, 2.2, _ROOFLINE),
        "recipe: our accuracy %": Range(90.0, 95.0, "airbench's 94 with test-time augmentation, less the JPEG copy"),
        "recipe: airbench's accuracy %": Range(90.0, 95.0, "its own page, less the JPEG copy"),
    },
    "ways": {
        "training step, float32 over TF32": Range(2, 6, _ROOFLINE),
        "training step, bf16 over TF32": Range(0.5, 0.95, _ROOFLINE),
        "latency, graph over eager": Range(0.15, 0.7, _ROOFLINE),
        "inference, compiled over eager": Range(0.4, 1.0, _ROOFLINE),
    },
    "limits": {
        "of the roofline, ResNet18": Range(0.35, 1.0, "above 1 the peaks are too low"),
    },
    "energy": {
        "idle power, W": Range(20, 250, "the process has a CUDA context, so the GPU is not in its lowest state"),
        "power in batches, W": Range(50, 735, "the limit of the board, 700 W, and 5 % more"),
        "power in batches over the board's limit": Range(0.07, 1.05, "the driver keeps the limit", anywhere=True),
        "power in batches over idle": Range(1, 20, _MEANING, anywhere=True),
        "energy of a single image over one in a batch": Range(1, 10_000, _MEANING, anywhere=True),
    },
    "training": {
        "training in bench over the timed step, LeNet5": Range(0.5, 1.1, _ROOFLINE),
        "training in bench over the timed step, ResNet18": Range(0.9, 1.1, _ROOFLINE),
    },
}
"""Numbers that each stage must measure, with their ranges."""
RANGES = {name: expected for of_stage in RANGES_OF.values() for name, expected in of_stage.items()}
"""Ranges of all stages, by name of the number."""


@dataclass(frozen=True)
class Stage:
    """A part of the check.

    Attributes:
        name: Name of the stage, as in ``--stages``.
        limit_s: Time limit in seconds, after which the stage is killed.
        commands: Commands to run one after the other in the output folder.
        numbers: Function that reads the measured numbers from the output folder.
        needs_gpu: Whether the stage is skipped on a CPU.
        packages: Python packages that the stage needs beside the dependencies of this package.
    """

    name: str
    limit_s: int
    commands: Sequence[Sequence[str]]
    numbers: Callable[[Path], Numbers]
    needs_gpu: bool = False
    packages: Sequence[str] = ()


def stages(device: str, repository: Path) -> list[Stage]:
    """Return the stages, those with the most information per second first.

    Args:
        device: Type of the device, ``cpu`` or ``cuda``; on a CPU the sizes are tiny.
        repository: Folder of the project, which contains the tests.
    """
    probes = (*_MODULE, "cnnbench.verification.gpu_probes", "--device", device, "--out", "probes.json")
    recipe = (*_MODULE, "cnnbench.verification.recipes", "--rounds", "3", "--project", str(repository))
    tools = ("pytest", "hypothesis")
    # The limits add up to more than `LIMIT_S`: each stage gets its own limit or the time that is left.
    return [
        Stage("probes", 90, [probes], _probes),
        Stage("grid", 150, [_grid_command(device)], _grid),
        Stage("recipe", 90, [recipe], _recipe, needs_gpu=True, packages=("airbench",)),
        Stage("ways", 140, _ways_commands(device), _ways, needs_gpu=True),
        Stage("limits", 60, [_limits_command(device)], _limits),
        Stage("energy", 60, [_energy_command(device)], _energy, needs_gpu=True),
        Stage("training", 90, [_training_command(device)], _training),
        # The tests come last: they take the longest, and the other stages show most of their failures too.
        Stage("tests", 300, [_tests_command(repository)], _nothing, needs_gpu=True, packages=tools),
    ]


def _grid_command(device: str) -> Sequence[str]:
    """Return the command that counts and times the default networks."""
    command = [*_CNNBENCH, "bench", "--device", device]
    if device == "cpu":
        command += ["--data", "Synthetic", "--models", "LeNet5", *_TINY]
    else:
        command += ["--data", "CIFAR10"]
    # Without the measure `quality` nothing is trained.
    return [*command, "--measures", "complexity,speed", "--out", "grid"]


def _ways_commands(device: str) -> list[Sequence[str]]:
    """Return the commands that time a network in all number formats and in all modes."""
    speed = (*_CNNBENCH, "speed", "ResNet18", "--device", device, "--rounds", "24")
    return [
        # The number formats are compared in one mode and the modes in one number format, not every pair of both.
        (*speed, "--precision", "32-true,tf32,bf16-mixed,16-mixed,bf16-true", "--records", "formats.jsonl"),
        (*speed, "--precision", "bf16-true", "--mode", "all", "--records", "modes.jsonl"),
    ]


def _limits_command(device: str) -> Sequence[str]:
    """Return the command that compares the times of networks with the roofline."""
    options = ["--device", device, "--limits"]
    if device == "cpu":
        names = ["LeNet5"]
        options += ["--rounds", "6", "--batch_size", "8", "--train_batch_size", "8"]
    else:
        names = ["LeNet5", "ResNet18", "MobileNetV1"]
        options += ["--rounds", "24"]
    return [*_CNNBENCH, "speed", *names, *options, "--out", "limits", "--records", "limits.jsonl"]


def _energy_command(device: str) -> Sequence[str]:
    """Return the command that measures the energy of a network."""
    speed = (*_CNNBENCH, "speed", "ResNet18", "--device", device, "--rounds", "12")
    return [*speed, "--energy", "--records", "energy.jsonl"]


def _training_command(device: str) -> Sequence[str]:
    """Return the command that trains networks for some seconds."""
    command = [*_CNNBENCH, "bench", "--device", device]
    if device == "cpu":
        command += ["--models", "LeNet5", "--data", "Synthetic", "--budget", "2s", *_TINY]
    else:
        command += ["--models", "LeNet5,ResNet18", "--data", "CIFAR10", "--budget", "8s"]
    return [*command, "--out", "training"]


def _tests_command(repository: Path) -> Sequence[str]:
    """Return the command that runs the tests of a GPU, in one process, so that they do not disturb each other."""
    # The files are found by the mark in them, so that none can be forgotten.
    every = sorted((repository / "tests").glob("test_*.py"))
    files = [str(path) for path in every if "mark.gpu" in path.read_text(encoding="utf-8")]
    pytest = (*_MODULE, "pytest", *files, "-m", "gpu", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    # One test file that cannot be imported does not stop the others.
    return (*pytest, "--continue-on-collection-errors", "--rootdir", str(repository))


# Reading the numbers of the stages


def _nothing(folder: Path) -> Numbers:
    return {}


def _probes(folder: Path) -> Numbers:
    document = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
    numbers: Numbers = {}
    for row in document["probes"].values():
        numbers |= row["numbers"]
    return numbers


def _grid(folder: Path) -> Numbers:
    records = load_records([folder / "grid"])
    titles = {"latency ms": "latency_ms_median", "images/s": "images_per_s", "train images/s": "train_images_per_s"}
    numbers: Numbers = {}
    for record in records:
        for title, key in titles.items():
            if key in record.measures:
                numbers[f"{title} {record.model}"] = record.measures[key]
    # This number has no range and is only printed.
    return numbers | {"suspect rows": float(sum(bool(record.measures.get("suspect")) for record in records))}


def _recipe(folder: Path) -> Numbers:
    document = json.loads((folder / FOLDER / "recipes.json").read_text(encoding="utf-8"))
    results = {row["training"]: row["results"] for row in document["rows"]}

    def mean(side: str, key: str) -> float:
        return sum(result[key] for result in results[side]) / len(results[side])

    return {
        "recipe: ours, seconds": mean("cnnbench", "training_s"),
        "recipe: airbench, seconds": mean("airbench", "training_s"),
        "recipe: ours over airbench": document["ratios"]["cnnbench / airbench"]["median"],
        "recipe: our accuracy %": 100 * mean("cnnbench", "accuracy"),
        "recipe: airbench's accuracy %": 100 * mean("airbench", "accuracy"),
    }


def _ways(folder: Path) -> Numbers:
    """Return ratios of the same time in two number formats or modes."""
    # If one of the two commands failed, the file of the other still gives its numbers.
    files = [path for path in (folder / "formats.jsonl", folder / "modes.jsonl") if path.is_file()]
    by_way = {(r.config["precision"], r.config["mode"]): r.measures for r in load_records(files)}
    step, eager = "train_step_ms_median", ("bf16-true", "eager")
    # Every ratio is one time, of the first way over that of the second.
    wanted = {
        "training step, float32 over TF32": (step, ("32-true", "eager"), ("tf32", "eager")),
        "training step, bf16 over TF32": (step, ("bf16-mixed", "eager"), ("tf32", "eager")),
        "latency, graph over eager": ("latency_ms_median", ("bf16-true", "cuda-graph"), eager),
        "inference, compiled over eager": ("inference_ms_median", ("bf16-true", "compile"), eager),
    }
    numbers: Numbers = {}
    for name, (key, first, second) in wanted.items():
        if key in by_way.get(first, {}) and key in by_way.get(second, {}):
            numbers[name] = by_way[first][key] / by_way[second][key]
    return numbers


def _limits(folder: Path) -> Numbers:
    numbers: Numbers = {}
    for record in load_records([folder / "limits.jsonl"]):
        verdict = (record.measures.get("limits") or {}).get("inference")
        if verdict is not None:
            numbers[f"of the roofline, {record.model}"] = verdict["of_roofline"]
    return numbers


def _energy(folder: Path) -> Numbers:
    """Return the power of a network by the GPU's counter, and its energy per image in two ways.

    Raises:
        ValueError: The counter could not be read, for the reason that the record has.
    """
    (record,) = load_records([folder / "energy.jsonl"])
    if "energy" in record.skipped:
        raise ValueError(record.skipped["energy"])
    measures = record.measures
    power_w, idle_w = measures["energy_facts"]["inference"]["power_w"], measures["idle_power_w"]
    numbers = {
        "idle power, W": idle_w,
        "power in batches, W": power_w,
        "power in batches over idle": power_w / idle_w,
        "energy of a single image over one in a batch": (
            measures["energy_mj_single_image"] / measures["energy_mj_per_image"]
        ),
    }
    # Some boards do not tell their limit.
    limit_w = measures["conditions"].get("power_limit_w")
    if limit_w is not None:
        numbers["power in batches over the board's limit"] = power_w / limit_w
    return numbers


def _training(folder: Path) -> Numbers:
    """Return the images per second of whole trainings, as shares of what the timed training steps reach."""
    numbers: Numbers = {}
    for record in load_records([folder / "training"]):
        rate = record.training["images"] / record.training["seconds"]
        # A training loop does not wait for each step, so it is compared with queued steps where these were timed.
        timed = record.measures.get("train_images_per_s_queued", record.measures["train_images_per_s"])
        numbers[f"training in bench over the timed step, {record.model}"] = rate / timed
    return numbers


# Running the stages


@dataclass
class Outcome:
    """The outcome of a stage.

    Attributes:
        name: Name of the stage.
        status: ``PASS``, ``FAIL`` or ``SKIP``.
        seconds: Time that the stage took.
        numbers: Measured numbers.
        reason: Reason why the stage failed or was skipped.
    """

    name: str
    status: str
    seconds: float
    numbers: Numbers
    reason: str = ""


def run_stage(stage: Stage, folder: Path, device: str, left_s: float, environ: Mapping[str, str]) -> Outcome:
    """Run the commands of a stage, and write their output to the log of the stage.

    Args:
        stage: Stage to run.
        folder: Output folder, in which the commands run.
        device: Type of the device, ``cpu`` or ``cuda``.
        left_s: Seconds that are left for the whole check.
        environ: Environment variables of the commands.
    """
    if stage.needs_gpu and device == "cpu":
        return Outcome(stage.name, "SKIP", 0.0, {}, "it needs a CUDA device")
    missing = [name for name in stage.packages if find_spec(name) is None]
    if missing:
        return Outcome(stage.name, "SKIP", 0.0, {}, f"it needs {' and '.join(missing)}, which pip installs")
    if left_s < 10:
        return Outcome(stage.name, "FAIL", 0.0, {}, "no time was left; run it alone with --stages")
    start = time.monotonic()
    reason = _run_commands(stage, folder, min(stage.limit_s, left_s), environ)
    numbers: Numbers = {}
    # Numbers are read after a failure too, since the commands before it may have written some.
    try:
        numbers = stage.numbers(folder)
    except Exception as error:  # the other stages run, whatever is missing in this one
        reason = reason or f"no numbers: {type(error).__name__}: {error}"
    return Outcome(stage.name, "FAIL" if reason else "PASS", time.monotonic() - start, numbers, reason)


def _run_commands(stage: Stage, folder: Path, limit_s: float, environ: Mapping[str, str]) -> str:
    """Run the commands of a stage, and return why the first of those that failed did so; empty if none failed."""
    end = time.monotonic() + limit_s
    reason = ""
    with (folder / f"{stage.name}.log").open("w", encoding="utf-8") as log:
        for command in stage.commands:
            try:
                code = _run(command, folder, environ, log, max(end - time.monotonic(), 1))
            except subprocess.TimeoutExpired:
                return reason or f"it was still at work after {limit_s:.0f} s"
            # The next command runs all the same, and may still give its numbers.
            if code:
                reason = reason or f"exit code {code}"
    return reason


def not_found(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the names of the numbers that a stage should have measured and has not."""
    missing: list[str] = []
    for outcome in outcomes:
        if outcome.status != "SKIP":
            expected = RANGES_OF.get(outcome.name, {})
            missing += [name for name in expected if name not in outcome.numbers]
    return missing


def _run(command: Sequence[str], folder: Path, environ: Mapping[str, str], log: IO[str], limit_s: float) -> int:
    """Run a command and return its exit code; at the time limit kill it with all processes that it started.

    Raises:
        subprocess.TimeoutExpired: The command was still running at the limit.
    """
    # A session of its own makes the command the leader of a process group, which can be killed as a whole.
    process = subprocess.Popen(
        command, cwd=folder, env=dict(environ), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(limit_s)
    except BaseException:
        # Ctrl-C in the terminal does not reach the new session, so the processes are killed here after any exception.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def ranges_on(is_h200: bool) -> dict[str, Range]:
    """Return the ranges that hold on a device, by name of the number: on an H200 all, elsewhere those of any device."""
    return {name: expected for name, expected in RANGES.items() if is_h200 or expected.anywhere}


def lines_of(outcomes: Sequence[Outcome], ranges: Mapping[str, Range]) -> Iterator[str]:
    """Yield one line per stage and one per number, with its range where it has one."""
    for outcome in outcomes:
        yield f"{outcome.status} {outcome.name} {outcome.seconds:.0f} s {outcome.reason}".rstrip()
    for outcome in outcomes:
        for name, value in outcome.numbers.items():
            expected = ranges.get(name)
            if expected is None:
                yield f"{name} {value:.4g}"
                continue
            word = "ok" if expected.low <= value <= expected.high else "OUT"
            yield f"{name} {value:.4g} [{expected.low:g}, {expected.high:g}] {word}"


def out_of_range(outcomes: Sequence[Outcome], ranges: Mapping[str, Range]) -> list[str]:
    """Return the names of the numbers that lie outside of their range."""
    numbers: Numbers = {}
    for outcome in outcomes:
        numbers |= outcome.numbers
    return [name for name, r in ranges.items() if name in numbers and not r.low <= numbers[name] <= r.high]


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive of data sets into a folder."""
    with tarfile.open(archive) as packed:
        # This filter refuses members that would be written outside of the folder.
        packed.extractall(folder, filter="data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages, print their results and write ``summary.json``.

    Returns:
        The exit code, which is 1 if a stage failed, or a number is missing or outside of its range.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cnnbench.verification.gpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to test this command (default: cuda)")
    parser.add_argument("--stages", metavar="A,B", help="only these (default: all)")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for everything (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER / "gpu", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--data", type=Path, metavar="FILE", help="an archive of data sets, such as .tar.xz, to unpack")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    # This file is cnnbench/verification/gpu.py in the folder of the project.
    repository = Path(__file__).resolve().parents[2]
    chosen = _chosen(stages(device.type, repository), options.stages)
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    environ = _environ(device, repository)
    start = time.monotonic()
    outcomes = []
    # The data sets have tens of thousands of files, which do not belong in the folder of the results.
    with tempfile.TemporaryDirectory(prefix="cnnbench-data-") as data:
        if options.data is not None:
            _unpack(options.data, Path(data))
            environ["CNNBENCH_DATA"] = data
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        for stage in chosen:
            _remove_what_is_made_anew(stage, folder)
            note(f"{stage.name} ...")
            left_s = options.limit - (time.monotonic() - start)
            outcomes.append(run_stage(stage, folder, device.type, left_s, environ))
    return _conclude(outcomes, folder, device, time.monotonic() - start)


def _chosen(every: list[Stage], names: str | None) -> list[Stage]:
    """Return the stages with these names, which are separated by commas, or all stages if it is None.

    Raises:
        UserError: There is no stage of this name.
    """
    if names is None:
        return every
    known = [stage.name for stage in every]
    wanted = names.split(",")
    for name in wanted:
        if name not in known:
            raise UserError(f"unknown stage '{name}'; there are {', '.join(known)}")
    return [stage for stage in every if stage.name in wanted]


def _environ(device: torch.device, repository: Path) -> dict[str, str]:
    """Return the environment variables of the stages, which find the package in this folder."""
    environ = dict(os.environ)
    paths = [str(repository)]
    if environ.get("PYTHONPATH"):
        paths.append(environ["PYTHONPATH"])
    environ["PYTHONPATH"] = os.pathsep.join(paths)
    # All stages use the first visible device, so for index 0 there is nothing to change.
    if device.index:
        # Make only the chosen device visible, so that every stage uses it, the tests and airbench too.
        # CUDA numbers devices in the order of this variable, if it is set.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        environ["CUDA_VISIBLE_DEVICES"] = visible[device.index] if len(visible) > device.index else str(device.index)
    return environ


def _remove_what_is_made_anew(stage: Stage, folder: Path) -> None:
    """Remove the results of an earlier check, which would be read again or stop a command that does not overwrite."""
    for command in stage.commands:
        # These options name the file or the folder that a command writes.
        for option in ("--out", "--records"):
            if option in command:
                path = folder / command[list(command).index(option) + 1]
                shutil.rmtree(path, ignore_errors=True)
                if path.is_file():
                    path.unlink()


def _conclude(outcomes: Sequence[Outcome], folder: Path, device: torch.device, seconds: float) -> int:
    """Print the results, write ``summary.json`` and return the exit code."""
    is_h200 = device.type == "cuda" and "H200" in device_name(device)
    ranges = ranges_on(is_h200)
    _print_logs(outcomes, folder)
    for line in lines_of(outcomes, ranges):
        out(line)
    bad = out_of_range(outcomes, ranges)
    # On other devices some numbers cannot be measured.
    missing = not_found(outcomes) if is_h200 else []
    for name in missing:
        out(f"{name} was not found")
    failed = [outcome.name for outcome in outcomes if outcome.status == "FAIL"]
    skipped = [outcome.name for outcome in outcomes if outcome.status == "SKIP"]
    verdict = "short" if bad or failed or missing else "met"
    summary = {
        "machine": environment(device_name(device), torch.get_num_threads()),
        "stages": [vars(outcome) for outcome in outcomes],
        "ranges": {name: expected._asdict() for name, expected in ranges.items()},
        "out_of_range": bad,
        "not_found": missing,
        "verdict": verdict,
        "seconds": round(seconds, 1),
    }
    write_json(folder / "summary.json", summary)
    counts = f"{len(failed)} stages failed, {len(skipped)} were skipped"
    out(f"{verdict}: {counts}, {len(bad)} numbers are out of range, {len(missing)} are missing")
    out(f"written: {folder / 'summary.json'}, after {seconds:.0f} s")
    return int(verdict == "short")


def _print_logs(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Print the last lines of the log of each stage that failed."""
    for outcome in outcomes:
        log = folder / f"{outcome.name}.log"
        if outcome.status == "FAIL" and log.is_file():
            out(f"--- the last lines of {log}")
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]:
                out(line)


if __name__ == "__main__":
    run_race("gpu", main)
