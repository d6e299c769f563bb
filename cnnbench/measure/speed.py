"""How fast networks are, compared fairly: all of them timed in turns, in random order, over several rounds.

Whatever slows the machine for a while then slows all alike. Medians are reported, every sample is kept.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnbench.classifier import loss_and_logits
from cnnbench.hardware import autocast, synchronise

KINDS = ("latency", "inference", "training")
_FEWEST_CALLS = 3  # in a turn of short calls
_INPUTS = 3  # batches in rotation, so that no result depends on one input staying in a cache


@dataclass(frozen=True)
class Subject:
    """A network to be timed.

    Attributes:
        build: Builds it.
        image_shape: The images that it takes: channels, height, width.
        num_classes: Classes of its logits.
        optimizer: Builds the optimizer of the training step.
    """

    build: Callable[[], nn.Module]
    image_shape: tuple[int, int, int]
    num_classes: int
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda model: torch.optim.AdamW(model.parameters(), lr=1e-4)


@dataclass(frozen=True)
class SpeedConfig:
    """How the timing is done.

    Attributes:
        device: Where.
        precision: Number format, in Lightning's words.
        batch_size: Images per batch of the inference throughput; latency is at batch size 1.
        train_batch_size: Images per training step.
        rounds: Turns that every network has.
        block_s: Seconds of each turn; at least one call, three if one is shorter, at most `block_calls`.
        block_calls: Limit of the calls in a turn.
        warmup_s: Longest warm-up; it ends sooner when two calls in a row are within 5 % of the quickest so far.
        seed: Seed of the order and the inputs.
    """

    device: torch.device
    precision: str
    batch_size: int
    train_batch_size: int
    rounds: int = 5
    block_s: float = 0.1
    block_calls: int = 50
    warmup_s: float = 3.0
    seed: int = 0


class _Timed:
    """One network with its inputs and its three kinds of work."""

    def __init__(self, subject: Subject, config: SpeedConfig) -> None:
        self.config = config
        device = config.device
        generator = torch.Generator().manual_seed(config.seed)
        channels_last = torch.channels_last
        sizes = {"latency": 1, "inference": config.batch_size, "training": config.train_batch_size}
        self.inputs = {
            kind: itertools.cycle(
                [
                    torch.randn(n, *subject.image_shape, generator=generator).to(device, memory_format=channels_last)
                    for _ in range(_INPUTS)
                ]
            )
            for kind, n in sizes.items()
        }
        self.labels = torch.randint(subject.num_classes, (sizes["training"],), generator=generator).to(device)
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        self.model = subject.build().to(device=device, memory_format=channels_last)  # type: ignore[call-overload]
        self.optimizer = subject.optimizer(self.model)
        self.samples_ms: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.warm_ms: dict[str, float] = {}  # the quickest call of the warm-up
        self.model.eval()
        self.cold_start_ms = self._call("latency")
        for kind in KINDS:
            self._warm_up(kind)
        self.peak_memory_bytes = self._peak_memory(before) if device.type == "cuda" else None

    def _call(self, kind: str) -> float:
        """Runs one call of a kind of work to its end; milliseconds."""
        x = next(self.inputs[kind])
        start = time.perf_counter()
        if kind == "training":
            self._train(x)
        else:
            with torch.inference_mode(), autocast(self.config.precision, self.config.device):
                self.model(x)
        synchronise(self.config.device)
        return (time.perf_counter() - start) * 1e3

    def _train(self, x: Tensor) -> None:
        with autocast(self.config.precision, self.config.device):
            loss = loss_and_logits(self.model(x), self.labels)[0]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _warm_up(self, kind: str) -> None:
        self.model.train(kind == "training")
        end = time.perf_counter() + self.config.warmup_s
        times = [self._call(kind)]
        while time.perf_counter() < end and not (len(times) > 2 and max(times[-2:]) < 1.05 * min(times)):
            times.append(self._call(kind))
        self.warm_ms[kind] = min(times)

    def _peak_memory(self, before: int) -> int:
        torch.cuda.reset_peak_memory_stats(self.config.device)
        self.model.train()
        self._call("training")
        return torch.cuda.max_memory_allocated(self.config.device) - before

    def take_turn(self, kind: str) -> None:
        """Adds the samples of one block of calls.

        Calls that are shorter than the block begin with one that does not count, since it finds the caches full of
        another network.
        """
        self.model.train(kind == "training")
        short = self.warm_ms[kind] < 1e3 * self.config.block_s
        if short:
            self._call(kind)
        end = time.perf_counter() + self.config.block_s
        for calls in range(1, self.config.block_calls + 1):
            self.samples_ms[kind].append(self._call(kind))
            if calls >= (_FEWEST_CALLS if short else 1) and time.perf_counter() >= end:
                break

    def figures(self) -> dict[str, Any]:
        config = self.config
        latency, inference, training = (_spread(self.samples_ms[kind]) for kind in KINDS)
        return {
            **{f"latency_ms_{name}": value for name, value in latency.items()},
            "images_per_s": 1e3 * config.batch_size / inference["median"],
            **{f"inference_ms_{name}": value for name, value in inference.items()},
            "train_images_per_s": 1e3 * config.train_batch_size / training["median"],
            **{f"train_step_ms_{name}": value for name, value in training.items()},
            "cold_start_ms": self.cold_start_ms,
            "peak_memory_bytes": self.peak_memory_bytes,
            "samples_ms": {kind: [round(t, 4) for t in times] for kind, times in self.samples_ms.items()},
        }


def measure_speed(
    subjects: Mapping[str, Subject], config: SpeedConfig, on_progress: Callable[[float, str], None] = lambda *_: None
) -> dict[str, dict[str, Any]]:
    """Times networks against each other.

    Args:
        subjects: Networks by name.
        config: How.
        on_progress: Is told the share that is done, 0 to 1, and what comes next.

    Returns:
        For every name either the figures or ``{"error": reason}``. ``latency_ms_*`` is one image through the network,
        ``images_per_s`` the throughput at ``batch_size``, ``train_images_per_s`` that of a full training step
        (forward, backward, optimizer) at ``train_batch_size``, each from the median, with 10th and 90th percentile of
        the calls' times;
        ``cold_start_ms`` the very first call; ``peak_memory_bytes`` what a training step allocates on a GPU: weights,
        gradients, optimizer state and activations, without the images (None on a CPU); ``samples_ms`` every sample.
    """
    timed: dict[str, _Timed] = {}
    failed: dict[str, dict[str, Any]] = {}
    for index, (name, subject) in enumerate(subjects.items()):
        on_progress(0.5 * index / len(subjects), f"warm up {name}")
        try:
            timed[name] = _Timed(subject, config)
        except Exception as error:  # whatever a network does wrong is its own failure, not the others'
            failed[name] = _failure(error)
    turns = [(name, kind) for name in timed for kind in KINDS]
    shuffler = random.Random(config.seed)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for round_index in range(config.rounds):
            on_progress(0.5 + 0.5 * round_index / config.rounds, f"round {round_index + 1} of {config.rounds}")
            for name, kind in shuffler.sample(turns, len(turns)):
                if name in failed:
                    continue
                try:
                    timed[name].take_turn(kind)
                except Exception as error:
                    failed[name] = _failure(error)
    finally:
        if collecting:
            gc.enable()
    return {name: failed[name] if name in failed else timed[name].figures() for name in subjects}


def _failure(error: Exception) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _spread(times: Sequence[float]) -> dict[str, float]:
    if len(times) == 1:
        return {"median": times[0], "p10": times[0], "p90": times[0]}
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return {"median": statistics.median(times), "p10": deciles[0], "p90": deciles[-1]}
