"""How fast networks are, compared fairly: all of them timed in turns, in random order, over several rounds.

Whatever slows the machine for a while then slows all alike, and drops out of the ratios of paired rounds. Medians are
reported with their intervals, every sample is kept, and what would make them doubtful is said beside them.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnbench.classifier import loss_and_logits
from cnnbench.hardware import autocast, synchronise
from cnnbench.measure.conditions import Conditions, reasons_to_doubt
from cnnbench.measure.intervals import Interval, deviation, median_interval, paired_ratio

KINDS = ("latency", "inference", "training")
_FEWEST_CALLS = 3  # in a turn of short calls
MOST_DRIFT = 0.05
"""Change of a time from the first half of the rounds to the second below which it is not called a drift."""
YARDSTICK = (8, 64, 32)
"""Images, channels and pixels of a convolution that every round times beside the networks, in float32."""
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
        rounds: Turns that every network has of each kind of work, at most.
        fewest_rounds: Turns that it has however long they take.
        most_s: Seconds per network after which no further round begins.
        block_s: Seconds of each turn; at least one call, three if one is shorter, at most `block_calls`.
        block_calls: Limit of the calls in a turn.
        warmup_s: Longest warm-up; it ends sooner when two calls in a row are within 5 % of the quickest so far.
        seed: Seed of the order and the inputs.
    """

    device: torch.device
    precision: str
    batch_size: int
    train_batch_size: int
    rounds: int = 60
    fewest_rounds: int = 12
    most_s: float = 3.0
    block_s: float = 0.008
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
        self.rounds_ms: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
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
        """Adds the samples of one block of calls, the turn of a round.

        Calls that are shorter than the block begin with one that does not count, since it finds the caches full of
        another network.
        """
        self.model.train(kind == "training")
        short = self.warm_ms[kind] < 1e3 * self.config.block_s
        if short:
            self._call(kind)
        times: list[float] = []
        self.rounds_ms[kind].append(times)
        end = time.perf_counter() + self.config.block_s
        for calls in range(1, self.config.block_calls + 1):
            times.append(self._call(kind))
            if calls >= (_FEWEST_CALLS if short else 1) and time.perf_counter() >= end:
                break

    def figures(self) -> dict[str, Any]:
        config = self.config
        latency, inference, training = (_spread(self.rounds_ms[kind]) for kind in KINDS)
        return {
            **{f"latency_ms_{name}": value for name, value in latency.items()},
            "images_per_s": 1e3 * config.batch_size / inference["median"],
            **{f"inference_ms_{name}": value for name, value in inference.items()},
            "train_images_per_s": 1e3 * config.train_batch_size / training["median"],
            **{f"train_step_ms_{name}": value for name, value in training.items()},
            "cold_start_ms": self.cold_start_ms,
            "peak_memory_bytes": self.peak_memory_bytes,
            "samples_ms": {
                kind: [[round(t, 4) for t in times] for times in rounds] for kind, rounds in self.rounds_ms.items()
            },
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
        (forward, backward, optimizer) at ``train_batch_size``, each from the median, with 10th and 90th percentile,
        median absolute deviation and the median's 95 % interval (``low``, ``high``) of the calls' times;
        ``cold_start_ms`` the very first call; ``peak_memory_bytes`` what a training step allocates on a GPU: weights,
        gradients, optimizer state and activations, without the images (None on a CPU); ``samples_ms`` every sample, by
        kind and round, with those of the ``yardstick``, the same convolution in every run; ``conditions`` what the
        machine did meanwhile, ``suspect`` reasons to doubt the times.
    """
    timed: dict[str, _Timed] = {}
    failed: dict[str, dict[str, Any]] = {}
    for index, (name, subject) in enumerate(subjects.items()):
        on_progress(0.5 * index / len(subjects), f"warm up {name}")
        try:
            timed[name] = _Timed(subject, config)
        except Exception as error:  # whatever a network does wrong is its own failure, not the others'
            failed[name] = _failure(error)
    start = time.monotonic()
    conditions, yardstick = Conditions(config.device), _Yardstick(config)
    shuffler = random.Random(config.seed)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for round_index in range(config.rounds):
            if round_index >= config.fewest_rounds and time.monotonic() - start > config.most_s * len(timed):
                break
            on_progress(0.5 + 0.5 * round_index / config.rounds, f"round {round_index + 1} of {config.rounds}")
            yardstick.take_turn()
            for name, kind in _order(timed, shuffler):
                if name in failed:
                    continue
                try:
                    timed[name].take_turn(kind)
                except Exception as error:
                    failed[name] = _failure(error)
    finally:
        if collecting:
            gc.enable()
    found = {name: failed[name] if name in failed else timed[name].figures() for name in subjects}
    state = conditions.figures()
    for name in timed.keys() - failed.keys():
        found[name] |= {"conditions": state, "suspect": [*reasons_to_doubt(state), *_drifts(timed[name].rounds_ms)]}
        found[name]["samples_ms"]["yardstick"] = yardstick.rounds_ms
    return found


def _order(names: Iterable[str], shuffler: random.Random) -> Iterator[tuple[str, str]]:
    """The turns of a round: kind by kind, so that turns that are compared are close in time; both orders by chance."""
    names = list(names)
    for kind in shuffler.sample(KINDS, len(KINDS)):
        yield from ((name, kind) for name in shuffler.sample(names, len(names)))


class _Yardstick:
    """A convolution that is the same in every run, and says how fast the machine is in each round."""

    def __init__(self, config: SpeedConfig) -> None:
        images, channels, pixels = YARDSTICK
        generator = torch.Generator().manual_seed(0)
        shapes = (images, channels, pixels, pixels), (channels, channels, 3, 3)
        tensors = [torch.randn(*shape, generator=generator).to(config.device) for shape in shapes]
        self._x, self._w = (t.contiguous(memory_format=torch.channels_last) for t in tensors)
        self._config = config
        self.rounds_ms: list[list[float]] = []
        self._call()

    def _call(self) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            torch.nn.functional.conv2d(self._x, self._w, padding=1)
        synchronise(self._config.device)
        return (time.perf_counter() - start) * 1e3

    def take_turn(self) -> None:
        self._call()
        self.rounds_ms.append([round(self._call(), 4) for _ in range(_FEWEST_CALLS)])


def time_ratio(first: Mapping[str, Any], second: Mapping[str, Any], kind: str) -> Interval:
    """How many times as long the first network takes as the second, from the paired rounds of one `measure_speed`.

    Args:
        first: Figures of one network.
        second: Figures of another, of the same call of `measure_speed`.
        kind: Of `KINDS`.
    """
    rounds = [[statistics.median(times) for times in figures["samples_ms"][kind]] for figures in (first, second)]
    return paired_ratio(*rounds)


def _drifts(rounds_ms: Mapping[str, list[list[float]]]) -> list[str]:
    """What became slower or faster from the first half of the rounds to the second, beyond chance; at most one line."""
    found = []
    for kind, rounds in rounds_ms.items():
        middles = [statistics.median(times) for times in rounds]
        half = len(middles) // 2
        change = paired_ratio(middles[-half:], middles[:half]) if half else Interval(1.0, None, None)
        if change.excludes(1) and abs(change.estimate - 1) > MOST_DRIFT:
            found.append(kind)
    return [f"{' and '.join(found)} drifted between the first and the second half of the rounds"] if found else []


def _failure(error: Exception) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _spread(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    times = [t for block in rounds for t in block]
    deciles = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times
    median, low, high = median_interval(rounds)
    spread = {"p10": deciles[0], "p90": deciles[-1], "mad": deviation(times)}
    return {"median": median, "low": low, "high": high, **spread}
