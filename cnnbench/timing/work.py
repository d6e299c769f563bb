"""One network at work: its inputs, the way it runs, and its kinds of work, every call timed to its end."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnbench.errors import UserError, unknown
from cnnbench.hardware import (
    INFERENCE_PRECISIONS,
    autocast,
    check_compiler,
    cudnn_benchmark,
    random_generator,
    tf32,
    weights_type,
)
from cnnbench.optimizers import adamw
from cnnbench.record import KINDS
from cnnbench.stats import median_deviation, median_interval
from cnnbench.timing.graphs import capture
from cnnbench.timing.stopwatch import Lap, Stopwatch
from cnnbench.training.classifier import loss_and_logits

KEYS = {"latency": "latency_ms", "inference": "inference_ms", "training": "train_step_ms"}
"""What the times of a kind are called in records."""
PARTS = ("forward", "backward", "optimizer")
MODES = ("eager", "compile", "cuda-graph")
FEWEST_CALLS = 3  # in a turn of short calls
MOST_GAIN = 0.03
"""Share by which calls of a warm-up may become faster from one `_FLAT` of them to the next when it ends."""
_FLAT = 4
_MOST_GAIN_OF_FEW = 0.1
"""The same of one call to the next, where the calls are so long that there are fewer."""
_FEWEST_WARM = 3  # calls, of which the first is the cold one
_SETTLING_S = 0.008  # of calls that are shorter the first in a turn does not count
_SMALL = ((3, 8, 8), 10)  # images and classes of the network that settles a process
_FEWEST_INPUTS = 3
"""Batches in rotation, so that no result depends on one input staying in a cache."""
_MOST_INPUTS = 16
_CACHES_OF_INPUTS = 3
"""On a GPU there are so many batches that they fill its last cache so many times, but for small ones."""
_FLOW_MS = 20.0
"""Milliseconds of calls that are queued together, about."""
_FEWEST_FLOW, _MOST_FLOW = 2, 50
_ROUNDS_PER_FLOW = 4
"""One round of so many has queued calls too, which take several times as long as those of a turn."""


@dataclass(frozen=True)
class Way:
    """How a network runs; times of different ways are never ranked together.

    Attributes:
        precision: Number format, in Lightning's words; ``32-true`` is float32 alone, whatever torch's flags say, and
            ``tf32`` a GPU's TF32. In ``bf16-true`` and ``16-true`` there is inference only.
        inference_precision: Number format of inference, if it is another than that of the training step.
        channels_last: Whether the channel is the innermost dimension of images and weights.
        mode: Of `MODES`: as written, by ``torch.compile``, or recorded and replayed as one CUDA graph.
        cudnn_benchmark: Whether cuDNN tries its kernels for each shape and takes the fastest; nothing on a CPU.
    """

    precision: str
    channels_last: bool = True
    mode: str = "eager"
    cudnn_benchmark: bool = False
    inference_precision: str | None = None

    @property
    def words(self) -> str:
        """For titles and the names of rows."""
        order = "channels_last" if self.channels_last else "contiguous"
        return f"{self.formats}, {order}, {self.mode}" + ", cuDNN benchmark" * self.cudnn_benchmark

    @property
    def formats(self) -> str:
        """The number formats in words."""
        if self.inference_precision in (None, self.precision):
            return self.precision
        return f"{self.inference_precision} (training {self.precision})"

    def precision_of(self, kind: str) -> str:
        """Return the number format of a kind of work."""
        return self.precision if kind == "training" else self.inference_precision or self.precision

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of work that there are in this way."""
        return KINDS[:2] if self.precision in INFERENCE_PRECISIONS else KINDS

    @property
    def is_possible(self) -> bool:
        """Whether there is such a way: the scale of 16-mixed is read after each step, which no graph can."""
        return (self.precision, self.mode) != ("16-mixed", "cuda-graph")

    def check(self, device: torch.device) -> None:
        """Refuses what the device has not.

        Raises:
            UserError: The mode is unknown, or the way needs another device.
        """
        if self.mode not in MODES:
            raise unknown("mode", self.mode, MODES)
        needs = (self.precision, "tf32"), (self.precision, "16-mixed"), (self.precision, "16-true")
        for value, needs_cuda in (*needs, (self.inference_precision, "16-true"), (self.mode, "cuda-graph")):
            if value == needs_cuda and device.type != "cuda":
                raise UserError(
                    f"'{value}' needs a CUDA device, not {device.type}; leave it out, or give --device cuda"
                )
        if not self.is_possible:
            raise UserError("a training step in 16-mixed waits for its scale and is no CUDA graph; use bf16-mixed")
        if self.mode == "compile":
            check_compiler(device)


@dataclass(frozen=True)
class Subject:
    """A network to be timed.

    Attributes:
        build: Builds it.
        image_shape: The images that it takes: channels, height, width.
        num_classes: Classes of its logits.
        optimizer: Builds the optimizer of the training step.
        way: How it runs; None for that of the config, which is channels_last and eager.
        kinds: What is timed, of what there is in this way.
        batch_size: Images of inference in place of those of the config.
        images: Gives at most so many images, (N, C, H, W), to draw the batches from; None for Gaussian noise.
    """

    build: Callable[[], nn.Module]
    image_shape: tuple[int, int, int]
    num_classes: int
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda model: adamw(model.parameters(), lr=1e-4)
    way: Way | None = None
    kinds: Sequence[str] = KINDS
    batch_size: int | None = None
    images: Callable[[int], Tensor] | None = None


@dataclass(frozen=True)
class SpeedConfig:
    """How the timing is done.

    Attributes:
        device: Where.
        precision: Number format, in Lightning's words, of the default way.
        batch_size: Images per batch of the inference throughput; latency is at batch size 1.
        train_batch_size: Images per training step.
        rounds: Turns that every network has of each kind of work, at most.
        fewest_rounds: Turns that it has however long they take.
        most_s: Seconds per network after which no further round begins.
        block_s: Seconds of each turn; at least one call, three if one is shorter, at most `block_calls`.
        block_calls: Limit of the calls in a turn.
        warmup_s: Longest warm-up of each kind; it ends sooner when its calls do not become faster any more.
        seed: Seed of the order and the inputs.
        cudnn_benchmark: Of the default way.
        inference_precision: Of the default way.
    """

    device: torch.device
    precision: str
    batch_size: int
    train_batch_size: int
    rounds: int = 120
    fewest_rounds: int = 12
    most_s: float = 5.0
    block_s: float = 0.002
    block_calls: int = 50
    warmup_s: float = 3.0
    seed: int = 0
    cudnn_benchmark: bool = False
    inference_precision: str | None = None

    @property
    def way(self) -> Way:
        """How a network runs that has no way of its own."""
        return Way(
            self.precision,
            cudnn_benchmark=self.cudnn_benchmark,
            inference_precision=self.inference_precision,
        )


class Timed:
    """One network with its inputs and its kinds of work, warm.

    Args:
        subject: The network.
        config: How it is timed.
        stopwatch: With what.

    Raises:
        UserError: The way is none of the device's.
    """

    def __init__(self, subject: Subject, config: SpeedConfig, stopwatch: Stopwatch) -> None:
        self.config, self.subject, self._watch = config, subject, stopwatch
        self.way = subject.way or config.way
        self.way.check(config.device)
        device = config.device
        # On a GPU the inputs are drawn there: drawing a large batch on the host takes longer than measuring it.
        generator = random_generator(device, config.seed)
        self._format = torch.channels_last if self.way.channels_last else torch.contiguous_format
        sizes = {
            "latency": 1,
            "inference": subject.batch_size or config.batch_size,
            "training": config.train_batch_size,
        }
        self.sizes = {kind: sizes[kind] for kind in subject.kinds if kind in self.way.kinds}
        self.doubts: dict[str, None] = {}
        self._batches = {kind: self._make_inputs(kind, generator) for kind in self.sizes}
        self._inputs = {kind: itertools.cycle(batches) for kind, batches in self._batches.items()}
        labels = torch.randint(
            subject.num_classes, (config.train_batch_size,), generator=generator, device=generator.device
        )
        self._labels = labels.to(device)
        types = {kind: weights_type(self.way.precision_of(kind)) for kind in self.sizes}
        # A network for each type of weights; that of the training comes last, since its memory is measured.
        models = {dtype: self._build(dtype) for dtype in dict.fromkeys(types.values()) if dtype != torch.float32}
        before = _cuda_memory(device)
        if torch.float32 in types.values():
            models[torch.float32] = self._build(torch.float32)
        self._model_bytes = _cuda_memory(device)[0] - before[0]
        self._models = {kind: models[dtype] for kind, dtype in types.items()}
        forwards = {dtype: self._forward_of(model) for dtype, model in models.items()}
        self._forwards = {kind: forwards[dtype] for kind, dtype in types.items()}
        self._graph_bytes: int | None = None
        self._optimizer = subject.optimizer(self._models["training"]) if "training" in self.sizes else None
        self._scaler = torch.amp.GradScaler(device.type) if self.way.precision == "16-mixed" else None
        self._graphs: dict[str, Callable[[Tensor], Any]] = {}
        self.rounds_ms: dict[str, list[list[float]]] = {kind: [] for kind in self.sizes}
        self._device_ms: dict[str, list[float]] = {kind: [] for kind in self.sizes}
        self._queued_ms: dict[str, list[float]] = {kind: [] for kind in self.sizes}
        self._parts_ms: list[tuple[float, ...]] = []
        self.cold_ms: dict[str, float] = {}
        self.warm_ms: dict[str, float] = {}  # the quickest call of the warm-up
        for kind in self.sizes:
            self._warm_up(kind)
        self.peaks_bytes = self._peaks(before) if device.type == "cuda" and "training" in self.sizes else (None, None)

    def _build(self, dtype: torch.dtype) -> nn.Module:
        """Build the network, with weights of 16 bits if so."""
        model = self.subject.build()
        if dtype != torch.float32:
            model = model.to(dtype)
        return model.to(device=self.config.device, memory_format=self._format)  # type: ignore[call-overload]

    def _forward_of(self, model: nn.Module) -> Callable[[Tensor], Any]:
        return _compiled(model) if self.way.mode == "compile" else model

    def _make_inputs(self, kind: str, generator: torch.Generator) -> list[Tensor]:
        """Some batches of images, each drawn at random; says what is wrong with them."""
        count, dtype = self.sizes[kind], weights_type(self.way.precision_of(kind))
        inputs = self._number_of_inputs(count, dtype.itemsize)
        pool = self.subject.images(inputs * count) if self.subject.images else None
        batches, lowest, highest = [], float("inf"), -float("inf")
        for _ in range(inputs):
            if pool is None:
                x = torch.randn(count, *self.subject.image_shape, generator=generator, device=generator.device)
            else:
                chosen = torch.randint(len(pool), (count,), generator=generator, device=generator.device)
                x = pool[chosen.to(pool.device)]
            lowest, highest = min(lowest, float(x.min())), max(highest, float(x.max()))
            batches.append(x.to(self.config.device, dtype, memory_format=self._format))
        if not -float("inf") < lowest < highest < float("inf"):
            self.doubts["the inputs are constant or not finite, on which arithmetic can be faster or slower"] = None
        return batches

    def _number_of_inputs(self, count: int, item_size: int) -> int:
        """Return how many batches of so many images, with so many bytes for each number, take turns."""
        device = self.config.device
        if device.type != "cuda":
            return _FEWEST_INPUTS
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        bytes_of_batch = item_size * count * math.prod(self.subject.image_shape)
        needed = math.ceil(_CACHES_OF_INPUTS * cache / bytes_of_batch)
        return min(max(needed, _FEWEST_INPUTS), _MOST_INPUTS)

    @contextlib.contextmanager
    def _switches(self) -> Iterator[None]:
        """Inside, torch's switches are as the way says; set around turns, since it takes time."""
        if self.config.device.type != "cuda":
            yield
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(cudnn_benchmark(self.way.cudnn_benchmark))
            if self.way.precision in ("32-true", "tf32"):
                stack.enter_context(tf32(self.config.device, self.way.precision == "tf32"))
            yield

    def _work(self, kind: str, x: Tensor, mark: Callable[[], None] | None = None) -> Any:
        if kind in self._graphs:
            return self._graphs[kind](x)
        return self._train(x, mark) if kind == "training" else self._infer(kind, x)

    def _infer(self, kind: str, x: Tensor) -> Any:
        with torch.inference_mode(), autocast(self.way.precision_of(kind), self.config.device):
            return self._forwards[kind](x)

    def _train(self, x: Tensor, mark: Callable[[], None] | None = None) -> Tensor:
        mark, optimizer = mark or self._watch.mark, self._optimizer
        assert optimizer is not None
        with autocast(self.way.precision, self.config.device):
            loss, logits = loss_and_logits(self._forwards["training"](x), self._labels)
        mark()
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()
        mark()
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()
        optimizer.zero_grad()
        return logits.detach()

    def _capture(self, kind: str) -> Callable[[Tensor], Any]:
        """Record a call as a CUDA graph."""
        for group in self._optimizer.param_groups if self._optimizer is not None else ():
            if "capturable" in group:
                group["capturable"] = True

        def work(x: Tensor) -> Any:
            return self._train(x, _no_mark) if kind == "training" else self._infer(kind, x)

        replay, peak_bytes = capture(work, self._batches[kind][0])
        if kind == "training":  # a replay allocates nothing
            self._graph_bytes = self._model_bytes + peak_bytes
        return replay

    def _call(self, kind: str) -> Lap:
        """Runs one call of a kind of work to its end."""
        x = next(self._inputs[kind])
        self._watch.begin()
        out = self._work(kind, x)
        lap = self._watch.end()
        first = out if isinstance(out, Tensor) else out[0] if isinstance(out, tuple) else None
        if len(x) != self.sizes[kind] or (first is not None and len(first) != self.sizes[kind]):
            rows = len(x) if first is None else len(first)
            self.doubts[f"{rows} results came from batches of {self.sizes[kind]} images ({kind})"] = None
        return lap

    def _warm_up(self, kind: str) -> None:
        self._models[kind].train(kind == "training")
        end = time.perf_counter() + self.config.warmup_s
        with self._switches():
            start = time.perf_counter()
            if self.way.mode == "cuda-graph":
                self._graphs[kind] = self._capture(kind)
            times = [self._call(kind).wall_ms]
            self.cold_ms[kind] = 1e3 * (time.perf_counter() - start)
            while len(times) < _FEWEST_WARM or (time.perf_counter() < end and _gain(times) > MOST_GAIN):
                times.append(self._call(kind).wall_ms)
        self.warm_ms[kind] = min(times)
        last = 1 - times[-1] / max(times[-2], 1e-9) if len(times) < 2 * _FLAT else _gain(times)
        if last > (_MOST_GAIN_OF_FEW if len(times) < 2 * _FLAT else MOST_GAIN):
            self.doubts[f"{kind} still became faster when its warm-up ended"] = None

    def _peaks(self, before: tuple[int, int]) -> tuple[int | None, int | None]:
        """Bytes that a training step takes beyond what was there before: of tensors, and held by torch for them, which
        is not known of a CUDA graph, whose memory the graphs of the other kinds of work may share."""
        device = self.config.device
        if self._graph_bytes is not None:
            return self._graph_bytes, None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        self._models["training"].train()
        with self._switches():
            self._call("training")
        return torch.cuda.max_memory_allocated(device) - before[0], torch.cuda.max_memory_reserved(device) - before[1]

    def take_turn(self, kind: str) -> None:
        """Adds the samples of one block of calls, the turn of a round.

        Blocks are short, since networks that take turns often share what disturbs the machine. The first of short
        calls does not count: it finds the caches full of another network.
        """
        self._models[kind].train(kind == "training")
        fewest = FEWEST_CALLS if self.warm_ms[kind] < 1e3 * self.config.block_s else 1
        times: list[float] = []
        self.rounds_ms[kind].append(times)
        with self._switches():
            if self.warm_ms[kind] < 1e3 * max(self.config.block_s, _SETTLING_S):
                self._call(kind)
            end = time.perf_counter() + self.config.block_s
            for calls in range(1, self.config.block_calls + 1):
                lap = self._call(kind)
                times.append(lap.wall_ms)
                if kind == "training" and lap.parts_ms and not self._watch.has_queue:
                    self._parts_ms.append(lap.parts_ms)
                if calls >= fewest and time.perf_counter() >= end:
                    break
            if self._watch.has_queue:
                self._take_queued_turn(kind)

    def _take_queued_turn(self, kind: str) -> None:
        """Add samples of calls that are launched before the device begins with them, on a device that has a queue.

        One call alone, for the device's own time, without what it waits for the host; and now and then several calls
        one after the other, as a loop runs them that does not wait for each result.
        """
        # The scale of 16-mixed is read on the host after each step, unless the optimizer takes it itself.
        waits = self._scaler is not None and not getattr(self._optimizer, "_step_supports_amp_scaling", False)
        if kind != "training" or not waits:
            lap = self._watch.queued(lambda: self._work(kind, next(self._inputs[kind])), self.warm_ms[kind])
            self._device_ms[kind] += [] if lap.device_ms is None else [lap.device_ms]
            if kind == "training" and lap.parts_ms:
                self._parts_ms.append(lap.parts_ms)
        if kind == "latency" or len(self.rounds_ms[kind]) % _ROUNDS_PER_FLOW != 1:
            return
        calls = min(max(round(_FLOW_MS / max(self.warm_ms[kind], 1e-3)), _FEWEST_FLOW), _MOST_FLOW)
        start = time.perf_counter()
        for _ in range(calls):
            self._work(kind, next(self._inputs[kind]), mark=_no_mark)
        self._watch.wait()
        self._queued_ms[kind].append(1e3 * (time.perf_counter() - start) / calls)

    def figures(self) -> dict[str, Any]:
        """What was found; see `cnnbench.timing.speed.measure_speed`."""
        found: dict[str, Any] = {}
        for kind in self.sizes:
            found |= {f"{KEYS[kind]}_{name}": value for name, value in spread(self.rounds_ms[kind]).items()}
            if self._device_ms[kind]:
                found[f"{KEYS[kind]}_device"] = statistics.median(self._device_ms[kind])
        for kind, key in (("inference", "images_per_s"), ("training", "train_images_per_s")):
            if kind in self.sizes:
                found[key] = 1e3 * self.sizes[kind] / found[f"{KEYS[kind]}_median"]
                if self._queued_ms[kind]:
                    found[f"{key}_queued"] = 1e3 * self.sizes[kind] / statistics.median(self._queued_ms[kind])
        if self._parts_ms:
            parts = zip(*self._parts_ms, strict=True)
            found |= {f"train_{n}_ms": statistics.median(p) for n, p in zip(PARTS, parts, strict=True)}
        allocated, reserved = self.peaks_bytes
        return found | {
            "cold_start_ms": self.cold_ms[next(iter(self.sizes))],
            "cold_ms": {kind: round(ms, 4) for kind, ms in self.cold_ms.items()},
            "peak_memory_bytes": allocated,
            "peak_reserved_bytes": reserved,
            "samples_ms": {k: [[round(t, 4) for t in times] for times in r] for k, r in self.rounds_ms.items()},
        }

    def all_doubts(self) -> list[str]:
        """What was wrong with inputs, results, warm-up or waiting."""
        for kind, found in self._device_ms.items():
            wall = statistics.median(t for times in self.rounds_ms[kind] for t in times) if found else 0.0
            if found and statistics.median(found) > 1.02 * wall + 0.005:
                self.doubts[f"the device worked longer than {kind} took: it was not waited for"] = None
        return list(self.doubts)


def _no_mark() -> None:
    """Mark nothing: of a step whose parts are not timed."""


def _compiled(model: nn.Module) -> Callable[[Tensor], Any]:
    """A network compiled by itself: one program for each kind of work, made for its batch, since with sizes left open
    it would be a slower one.

    Torch keeps programs by the code of a function, and looks through all of them at each call; so the function is a new
    one, not the forward that networks share.
    """

    def forward(x: Tensor) -> Any:
        return model(x)

    code = forward.__code__.replace(co_name=f"forward_{id(model)}")
    own = types.FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)
    return torch.compile(own, dynamic=False)


def settle(way: Way, config: SpeedConfig, kinds: Sequence[str] = KINDS) -> None:
    """Has a small network do what a process does once, such as loading libraries and making room for their workspaces,
    so that it is not in the first call or the memory of the first network."""
    (shape, classes) = _SMALL

    def small() -> nn.Module:
        return nn.Sequential(nn.Conv2d(shape[0], 8, 3), nn.Flatten(), nn.Linear(8 * (shape[1] - 2) ** 2, classes))

    Timed(Subject(small, shape, classes, way=way, kinds=kinds), config, Stopwatch(config.device))


def _cuda_memory(device: torch.device) -> tuple[int, int]:
    """Bytes of tensors, and held by torch without what it only keeps for later; 0 where there is no such device."""
    if device.type != "cuda":
        return 0, 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)


def _gain(times: Sequence[float]) -> float:
    """Share by which the last calls were faster than those before them; infinite with too few."""
    if len(times) < 2 * _FLAT:
        return float("inf")
    before, after = statistics.median(times[-2 * _FLAT : -_FLAT]), statistics.median(times[-_FLAT:])
    return 1 - after / before if before else 0.0


def spread(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Median of the calls with its interval, deciles and median absolute deviation."""
    times = [t for block in rounds for t in block]
    deciles = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times
    median, low, high = median_interval(rounds)
    mad = median_deviation(times)
    return {"median": median, "low": low, "high": high, "p10": deciles[0], "p90": deciles[-1], "mad": mad}
