"""Races and proofs: commands that compare the project with others, print a table and keep what they measured.

Things that are compared are timed in turns, in random order over several rounds, in one process, so that a slow moment
of the machine hits all of them; what counts is the ratio of two of them within a round.
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
from torch import Tensor, nn

from cnnbench.errors import UserError
from cnnbench.files import write_json
from cnnbench.hardware import autocast, choose_precision, device_name
from cnnbench.optimizers import adamw
from cnnbench.record import environment
from cnnbench.training.callbacks import BestCheckpoint, LastCheckpoint, ProgressBar
from cnnbench.training.classifier import loss_and_logits

FOLDER = Path("results/races")


def interleave(subjects: Mapping[str, Callable[[], object]], rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Times functions in turns, each once a round in random order, after one call each that does not count.

    Returns:
        Milliseconds per function and round.
    """
    order = list(subjects)
    shuffle = random.Random(seed)
    times_ms: dict[str, list[float]] = {name: [] for name in order}
    for name in order:
        subjects[name]()
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            gc.collect()
            gc.disable()
            start = time.perf_counter()
            try:
                subjects[name]()
            finally:
                times_ms[name].append(1000 * (time.perf_counter() - start))
                gc.enable()
    return times_ms


def training_step(model: nn.Module, images: Tensor, precision: str = "32-true") -> Callable[[], None]:
    """A real training step of any classifier: forward, cross-entropy, backward, AdamW.

    Args:
        model: Returns logits, (N, K), or several of them, as with auxiliary heads, which then weigh 0.3.
        images: The batch, (N, C, H, W), on the device of the model.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
    """
    optimizer = adamw(model.parameters(), lr=1e-4)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        with autocast(precision, images.device):
            loss = loss_and_logits(model(images), labels)[0]
        loss.backward()
        optimizer.step()

    return step


def run(name: str, main: Callable[[], int]) -> NoReturn:
    """Ends the process as the command does: bad input is one line and exit code 2."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def fit_trainer(
    device: torch.device, callbacks: Sequence[L.Callback], checkpoints: bool = True, **options: Any
) -> Iterator[L.Trainer]:
    """The Trainer of `cnnbench fit` in a folder that goes with it: bar, CSV log, learning-rate monitor, checkpoints.

    Args:
        device: Where it trains.
        callbacks: Further ones.
        checkpoints: Whether it writes them, after each epoch.
        options: Of the Trainer.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as quiet:
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):  # the bar of a terminal
            quiet.enter_context(redirect(io.StringIO()))
        own: list[L.Callback] = [LearningRateMonitor(), ProgressBar()]
        if checkpoints:
            own += [BestCheckpoint(folder), LastCheckpoint()]
        yield bare_trainer(
            device,
            [*own, *callbacks],
            logger=CSVLogger(folder, name="", version=""),
            default_root_dir=folder,
            enable_checkpointing=checkpoints,
            **options,
        )


def bare_trainer(device: torch.device, callbacks: Sequence[L.Callback], **options: Any) -> L.Trainer:
    """A Trainer on one device, in the precision that is the default there if none is given."""
    options.setdefault("precision", choose_precision("auto", device)[0])
    return L.Trainer(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        callbacks=list(callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def ratio(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the ratios of paired rounds."""
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
    """Writes ``results/races/<name>.json``; the verdict is ``met`` if all goals are.

    Args:
        device: Where it was measured; the CPU if None.
    """
    device = device or torch.device("cpu")
    path = FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            "machine": environment(device_name(device), torch.get_num_threads()),
            "rows": list(rows),
            "ratios": dict(ratios),
            "verdict": "met" if all(goals.values()) else "short",
            "goals": dict(goals),
            **more,
        },
    )
    return path
