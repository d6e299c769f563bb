"""The time that Lightning adds to a training step: the same steps in a hand-written loop and through the Trainer.

All ways train the same network from the same initial weights on batches from memory, with the optimizer and the
learning-rate schedule of the recipe. They are timed in turns. The bare loop is the reference. The others use the
Trainer: as `cnnbench fit` does, with several steps per call of Lightning's loop, and without progress bar, log and
checkpoints.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import nn

from cnnbench import hardware
from cnnbench.data.batches import Split, TensorBatches
from cnnbench.data.sets import Synthetic
from cnnbench.errors import UserError
from cnnbench.models import get_model
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.loss import loss_and_logits
from cnnbench.training.schedule import lr_factor
from cnnbench.training.trainer import make_trainer, quiet_lightning
from cnnbench.verification import fit_trainer, interleave, ratio, write_race
from cnnbench.verification import run as run_race

CHUNK = 50
"""Training steps per call of Lightning's loop, in the way that takes several steps at once."""
MOST_MS, MOST_CHUNKED_MS = 0.5, 0.05
"""Milliseconds that `fit` may add to a step that does almost nothing, with one step and with `CHUNK` steps per call."""


class Linear(ImageClassifier):
    """A linear classifier, whose own work is so small that a training step shows the cost of everything around it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features = nn.Flatten()
        self.classifier = nn.Linear(self.in_channels * self.image_size**2, self.num_classes)


class Goal(NamedTuple):
    """A network to train, and the goal for its speed.

    Attributes:
        network: Class of the network.
        batch_size: Images per training step.
        steps: Number of timed steps on a CPU; on other devices there are 1000.
        share: Share of the bare loop's speed that `fit` must reach. None for a network that is judged by the added
            milliseconds instead.
    """

    network: type[ImageClassifier]
    batch_size: int
    steps: int
    share: float | None


CASES = (
    Goal(Linear, 64, 1000, None),
    Goal(get_model("SimpleCNN"), 64, 100, 0.95),
    Goal(get_model("ResNet18"), 128, 8, 0.98),
)


class _Clock(L.Callback):
    """A callback that measures the time per step, from the end of the first call to the end of the last one.

    The first call and the checkpoint at the end of the epoch do not count.

    Attributes:
        step_ms: Milliseconds per training step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start, self._first = 0.0, -1
        self.step_ms = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        # The device is waited for before the clock is read, because the host runs ahead of a GPU.
        if self._first < 0:
            hardware.synchronise(self._device)
            self._start, self._first = time.perf_counter(), trainer.global_step
        elif trainer.global_step == trainer.max_steps:
            hardware.synchronise(self._device)
            self.step_ms = 1000 * (time.perf_counter() - self._start) / (trainer.global_step - self._first)


class _Case:
    """A network with its data and the ways to train it, which are functions that return milliseconds per step."""

    def __init__(self, goal: Goal, device: torch.device) -> None:
        self.network, self.batch_size, self.device = goal.network, goal.batch_size, device
        self.steps = goal.steps if device.type == "cpu" else 1000
        self.precision, _ = hardware.choose_precision("auto", device)
        # Every way needs one epoch only, with its first call, which takes up to `CHUNK` steps and does not count.
        images = self.batch_size * (self.steps + CHUNK)
        self.data = Synthetic(train_images=images, test_images=10, val_fraction=0.0, batch_size=self.batch_size)
        self.data.setup()

    def ways(self) -> dict[str, Callable[[], float]]:
        """Return the ways to train the network, by name; with few steps there are only two of them."""
        ways: dict[str, Callable[[], float]] = {"bare loop": self.bare, "fit": self.fit}
        # With fewer steps, fewer than two calls of `CHUNK` steps would be timed.
        if self.steps >= 2 * CHUNK:
            ways |= {
                f"fit, steps_per_call {CHUNK}": lambda: self.fit(CHUNK),
                "Trainer without bar, log and checkpoint": self.lean,
            }
        return ways

    def _model(self, **options: Any) -> ImageClassifier:
        torch.manual_seed(0)
        return self.network(**options)

    def bare(self) -> float:
        """Train in a loop as one writes it without Lightning, and return the milliseconds per step."""
        model = self._model().to(self.device, memory_format=torch.channels_last).train()
        optimizer = model.make_optimizer()
        total = self.steps + 1  # the first step is not timed
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step / total, model.warmup, "linear")
        )
        data = self.data
        # Another way may have left its Trainer, which would choose the device and the seed of the loader.
        data.trainer = None
        split = Split(*(t.to(self.device) for t in data.stored("train", slice(None))))
        loader = TensorBatches(split, self.batch_size, True, data.mean, data.std, augmentation=data.augmentation)
        start = 0.0
        for step, (images, labels) in enumerate(loader):
            # The clock starts after the first step, as in `_Clock`.
            if step == 1:
                hardware.synchronise(self.device)
                start = time.perf_counter()
            # There are more batches than this way needs, for ways whose first call takes several steps.
            if step == total:
                break
            with hardware.autocast(self.precision, self.device):
                loss = loss_and_logits(model(images), labels)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        hardware.synchronise(self.device)
        return 1000 * (time.perf_counter() - start) / self.steps

    def fit(self, steps_per_call: int | None = None) -> float:
        """Train as `cnnbench fit` does: with progress bar, CSV log, learning-rate monitor, checkpoints and metrics.

        Args:
            steps_per_call: Training steps per call of Lightning's loop; one if None.
        """
        clock = _Clock(self.device)
        # The steps of the first call, which does not count, come in addition.
        with fit_trainer(self.device, [clock], max_steps=self.steps + (steps_per_call or 1)) as trainer:
            trainer.fit(self._model(steps_per_call=steps_per_call), datamodule=self.data)
        return clock.step_ms

    def lean(self) -> float:
        """Train with Lightning's loop and the metrics only."""
        clock = _Clock(self.device)
        make_trainer(self.device, [clock], max_steps=self.steps + 1).fit(self._model(), datamodule=self.data)
        return clock.step_ms

    def run(self, rounds: int) -> dict[str, list[float]]:
        """Train in all ways in turns, and return the milliseconds per step of every round, by way."""
        step_ms: dict[str, list[float]] = {name: [] for name in self.ways()}

        def measured(name: str, way: Callable[[], float]) -> Callable[[], None]:
            # A lambda in the comprehension below would look its variables up later, and find the last name and way.
            return lambda: step_ms[name].append(way())

        interleave({name: measured(name, way) for name, way in self.ways().items()}, rounds)
        return {name: times[1:] for name, times in step_ms.items()}  # the first is a warm-up


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the ways, print the table and write ``results/races/training.json``; return the exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m cnnbench.verification.training", description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        raise UserError(f"rounds {options.rounds} must be at least 1")
    device = hardware.choose_device(options.device)
    quiet_lightning()
    hardware.keep_freed_memory()
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    goals: dict[str, bool] = {}
    print(f"{hardware.device_name(device)}, {torch.get_num_threads()} threads, {options.rounds} rounds in turns")
    print("| Network | Batch | Way | ms a step | Adds ms | Of the bare loop's speed |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for goal in CASES:
        case = _Case(goal, device)
        name = goal.network.__name__
        print(f"racing {name}", file=sys.stderr)
        step_ms = case.run(options.rounds)
        bare = step_ms["bare loop"]
        for way, times in step_ms.items():
            key = f"bare loop / {way}, {name}"
            # The time of the bare loop divided by that of the way is the way's speed as a share of the loop's.
            ratios[key] = ratio(bare, times)
            share = ratios[key]["median"]
            added = statistics.median(t - b for t, b in zip(times, bare, strict=True))
            row = {"network": name, "batch_size": goal.batch_size, "way": way, "step_ms": times, "adds_ms": added}
            rows.append(row)
            middle = statistics.median(times)
            print(f"| {name} | {goal.batch_size} | {way} | {middle:.3f} | {added:.3f} | {share:.3f} |")
            # The other ways are shown for comparison only; goals are about `fit`.
            if goal.share is not None and way == "fit":
                goals[f"{name}: fit at least {goal.share} of the bare loop"] = share >= goal.share
            if goal.share is None and way.startswith("fit"):
                most = MOST_MS if way == "fit" else MOST_CHUNKED_MS
                goals[f"{name}: {way} adds at most {most} ms a step"] = added <= most
    print(f"written: {write_race('training', rows, ratios, goals, device, precision=case.precision)}")
    return 0


if __name__ == "__main__":
    run_race("training", main)
