"""Commands that compare the project with other programs, print a table and save the measurements.

Everything that is compared is timed in one process, in random order over several rounds. A slow moment of the machine
then affects all subjects alike, and the result is the ratio of two subjects within the same round.
"""

from __future__ import annotations

import contextlib
import gc
import io
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from cnnbench.errors import UserError
from cnnbench.files import write_json
from cnnbench.hardware import device_name
from cnnbench.record import environment
from cnnbench.training.callbacks import BestCheckpoint, LastCheckpoint, ProgressBar
from cnnbench.training.trainer import make_trainer

FOLDER = Path("results/races")
"""Folder of the result files, relative to the working folder."""


def interleave(subjects: Mapping[str, Callable[[], object]], rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Time functions in turns: each round calls every function once, in a new random order.

    One warm-up call of each function comes first and does not count.

    Args:
        subjects: Functions to time, by name.
        rounds: Number of timed calls of each function.
        seed: Random seed for the order within the rounds.

    Returns:
        Milliseconds of every round, by name of the function.
    """
    order = list(subjects)
    # With a generator of its own, the order does not depend on what the functions draw.
    shuffle = random.Random(seed)
    times_ms: dict[str, list[float]] = {name: [] for name in order}
    # The first call of a function may load libraries, choose kernels and fill caches.
    for name in order:
        subjects[name]()
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            # Collect garbage before the timed call and not during it.
            gc.collect()
            gc.disable()
            start = time.perf_counter()
            try:
                subjects[name]()
            finally:
                times_ms[name].append(1000 * (time.perf_counter() - start))
                gc.enable()
    return times_ms


def run(name: str, main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process: a `UserError` becomes one line on stderr and exit code 2.

    Args:
        name: Name of the command, which precedes the message.
        main: Function that returns the exit code.
    """
    try:
        sys.exit(main())
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def fit_trainer(
    device: torch.device, callbacks: Sequence[L.Callback], checkpoints: bool = True, **options: Any
) -> Iterator[L.Trainer]:
    """Yield the Trainer of `cnnbench fit`, with progress bar, CSV log, learning-rate monitor and checkpoints.

    It writes into a temporary folder, which is deleted at the end. Everything printed inside the context is discarded.

    Args:
        device: Device to train on.
        callbacks: Callbacks beside those of `cnnbench fit`.
        checkpoints: Whether the Trainer writes checkpoints, one after each epoch.
        options: Further arguments of Lightning's Trainer.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as quiet:
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):  # hide the progress bar
            quiet.enter_context(redirect(io.StringIO()))
        own: list[L.Callback] = [LearningRateMonitor(), ProgressBar()]
        if checkpoints:
            own += [BestCheckpoint(folder), LastCheckpoint()]
        yield make_trainer(
            device,
            [*own, *callbacks],
            # With an empty name and version, the log lies in the folder itself.
            logger=CSVLogger(folder, name="", version=""),
            default_root_dir=folder,
            enable_checkpointing=checkpoints,
            enable_progress_bar=True,
            **options,
        )


def ratio(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Return the median, the lowest and the highest of the ratios a / b of paired rounds."""
    # What slowed the machine in a round slowed both times, and cancels in their ratio.
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def write_race(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, Mapping[str, float]],
    goals: Mapping[str, bool],
    device: torch.device | None = None,
    **more: Any,
) -> Path:
    """Write the result of a race to ``results/races/<name>.json``; its verdict is ``met`` if all goals are met.

    Args:
        name: Name of the race.
        rows: Measurements, one row per subject.
        ratios: Median, lowest and highest ratio of each comparison, by its name.
        goals: Whether each goal is met, by its description.
        device: Device of the measurement; the CPU if None.
        more: Further entries of the document.

    Returns:
        The path of the file.
    """
    device = device or torch.device("cpu")
    path = FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": environment(device_name(device), torch.get_num_threads()),
        "rows": list(rows),
        "ratios": dict(ratios),
        "verdict": "met" if all(goals.values()) else "short",
        "goals": dict(goals),
        **more,
    }
    write_json(path, document)
    return path
