"""One network at work: its inputs, the way in which it runs, and its kinds of work.

A kind of work is one image in inference (latency), a batch in inference, or a training step. The time of a call ends
only when the device has finished it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnbench.engines import INT8, TORCH, find_engine
from cnnbench.engines.export import bytes_on_disk
from cnnbench.engines.sessions import Session, open_session
from cnnbench.errors import UserError, unknown
from cnnbench.hardware import (
    autocast,
    check_compiler,
    cudnn_benchmark,
    random_generator,
    tf32,
    weights_type,
)
from cnnbench.names import INFERENCE_PRECISIONS, MODES
from cnnbench.optimizers import adamw
from cnnbench.record import INFERENCE_KINDS, KINDS
from cnnbench.stats import median_deviation, median_interval
from cnnbench.timing.cuda_graphs import capture
from cnnbench.timing.stopwatch import Lap, Stopwatch
from cnnbench.training.loss import loss_and_logits

KEYS = {"latency": "latency_ms", "inference": "inference_ms", "training": "train_step_ms"}
"""Prefixes of the figures of each kind of work in records."""
RATES = {"inference": "images_per_s", "training": "train_images_per_s"}
"""Figure of the throughput, by kind of work; latency has none."""
PARTS = ("forward", "backward", "optimizer")
"""Parts of a training step that are timed."""
FEWEST_CALLS = 3
"""Smallest number of calls in a turn whose calls are short."""
MOST_GAIN = 0.03
"""Limit for the end of a warm-up: the median time of its last `_FLAT` calls is at most this share shorter than that of
the `_FLAT` calls before."""
_FLAT = 4
_MOST_GAIN_OF_FEW = 0.1
"""Same limit for the last call and the one before, in a warm-up with fewer than 2 * `_FLAT` calls, as they are long."""
_FEWEST_WARM = 3  # calls of a warm-up, the first of which is the cold one
_SETTLE_BESIDE_ENGINES_S = 0.3
"""Value of `SpeedConfig.settle_s` in a run with engines."""
_SETTLE_AFTER_PAUSE_S = 0.7
"""Value of `SpeedConfig.first_settle_s` in a run with engines."""
_SPINNING_S = 0.05
"""Value of `SpeedConfig.pause_s` in a run with engines, in which their idle threads stop spinning."""
_SETTLING_S = 0.008  # if calls are shorter than this, the first call of a turn does not count
SMALL_IMAGE = (3, 8, 8)
"""Channels, height and width of the images of `small_network`."""
_SMALL_CLASSES = 10
_FEWEST_INPUTS = 3
"""Smallest number of batches in rotation, so that no result depends on one input that stays in a cache."""
_MOST_INPUTS = 16
_CACHES_OF_INPUTS = 3
"""Total size of the batches in rotation on a GPU, in sizes of its last cache. Small batches stay below this size, since
at most `_MOST_INPUTS` batches are in rotation."""
_FLOW_MS = 20.0
"""Approximate total time of the calls that are queued together, in milliseconds."""
_FEWEST_FLOW, _MOST_FLOW = 2, 50
"""Limits of the number of calls that are queued together."""
_ROUNDS_PER_FLOW = 4
"""Number of rounds of which one also has queued calls, which take several times as long as the calls of a turn."""


@dataclass(frozen=True)
class Way:
    """Way in which a network runs; times of different ways are never ranked together.

    Attributes:
        precision: Number format by Lightning's name, or ``tf32`` for TF32 on a GPU. ``32-true`` is float32 without
            TF32, whatever torch's flags say. ``bf16-true`` and ``16-true`` are for inference only.
        inference_precision: Number format of inference if it differs from that of the training step; None otherwise.
        channels_last: Whether the channels are the innermost dimension of images and weights in memory.
        mode: One of `MODES`: the network runs as it is written, compiled by ``torch.compile``, or recorded and replayed
            as one CUDA graph.
        cudnn_benchmark: Whether cuDNN tries its kernels for each shape and takes the fastest; no effect on a CPU.
        engine: Name of the engine that runs the network, from `cnnbench.engines.ENGINES`. Engines other than torch run
            a file, and only in inference. The memory format and the mode are then the engine's own choice.
    """

    precision: str
    channels_last: bool = True
    mode: str = "eager"
    cudnn_benchmark: bool = False
    inference_precision: str | None = None
    engine: str = TORCH

    @property
    def words(self) -> str:
        """Return the way in words, for titles and the names of rows."""
        if self.engine != TORCH:
            return f"{self.engine}, {self.precision}"
        order = "channels_last" if self.channels_last else "contiguous"
        words = f"{self.formats}, {order}, {self.mode}"
        if self.cudnn_benchmark:
            words += ", cuDNN benchmark"
        return words

    @property
    def formats(self) -> str:
        """Return the number formats in words."""
        if self.inference_precision in (None, self.precision):
            return self.precision
        return f"{self.inference_precision} (training {self.precision})"

    def precision_of(self, kind: str) -> str:
        """Return the number format of a kind of work."""
        return self.precision if kind == "training" else self.inference_precision or self.precision

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of work that exist in this way: no training in a format that is for inference only."""
        if self.engine != TORCH or self.precision in INFERENCE_PRECISIONS:
            return INFERENCE_KINDS
        return KINDS

    @property
    def is_possible(self) -> bool:
        """Return whether this combination of precision and mode can run.

        In 16-mixed the host reads the loss scale after each step, which a CUDA graph cannot record.
        """
        return (self.precision, self.mode) != ("16-mixed", "cuda-graph")

    def check(self, device: torch.device) -> None:
        """Raise UserError if a network cannot run in this way on the device.

        Raises:
            UserError: The mode is unknown, the way needs a CUDA device, precision and mode exclude each other, or a
                compiler is missing.
        """
        if self.mode not in MODES:
            raise unknown("mode", self.mode, MODES)
        self._check_engine(device)
        # Each pair has a value that was chosen and the value for which a CUDA device is needed.
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

    def _check_engine(self, device: torch.device) -> None:
        """Raise UserError if the engine is missing, or does not compute in this number format on the device."""
        engine = find_engine(self.engine, str(device))
        if self.engine == TORCH and self.precision != INT8:
            return
        precisions = engine.precisions(device.type)
        if self.precision not in precisions:
            raise UserError(
                f"engine '{self.engine}' does not compute in {self.precision} on device {device}; it has "
                f"{', '.join(precisions)}"
            )
        if self.mode != "eager":
            raise UserError(f"mode '{self.mode}' is torch's; leave it out for engine '{self.engine}'")


@dataclass(frozen=True)
class Subject:
    """Network to be timed.

    Attributes:
        build: Function that builds the network.
        image_shape: Channels, height and width of the network's images.
        num_classes: Number of classes of the logits.
        optimizer: Function that builds the optimizer of the training step from the network.
        way: Way in which the network runs; None for the way of the config, which is channels_last and eager.
        kinds: Kinds of work to time; a kind that does not exist in this way is left out.
        batch_size: Images per batch of inference; None for the number in the config.
        images: Function that returns at most the requested number of images, (N, C, H, W), from which the batches are
            drawn; None for Gaussian noise.
        file: Network as a file for its engine; None for torch, which runs what `build` returns.
    """

    build: Callable[[], nn.Module]
    image_shape: tuple[int, int, int]
    num_classes: int
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda model: adamw(model.parameters(), lr=1e-4)
    way: Way | None = None
    kinds: Sequence[str] = KINDS
    batch_size: int | None = None
    images: Callable[[int], Tensor] | None = None
    file: Path | None = None


@dataclass(frozen=True)
class SpeedConfig:
    """Settings of the timing.

    Attributes:
        device: Device on which the networks run.
        precision: Number format of the default way, by Lightning's name.
        batch_size: Images per batch of the inference throughput; latency is measured at batch size 1.
        train_batch_size: Images per training step.
        rounds: Largest number of rounds; in a round, every network has one turn of each kind of work.
        fewest_rounds: Number of rounds that are timed no matter how long they take.
        most_s: Seconds per network after which no further round begins.
        block_s: Duration of a turn in seconds. A turn has at least one call, at least three if a call is shorter than
            the turn, and at most `block_calls`.
        block_calls: Largest number of calls in a turn.
        settle_s: Seconds of calls at the start of a turn that do not count; if this is set, at least one call does not
            count.
        first_settle_s: The same for the first turn of a round, which follows the pause after the yardstick.
        pause_s: Seconds without work before and after the yardstick.
        warmup_s: Longest warm-up of each kind of work in seconds; it ends earlier when calls no longer become faster.
        seed: Random seed of the order of turns and of the inputs.
        cudnn_benchmark: Whether cuDNN searches for its fastest kernels in the default way.
        inference_precision: Number format of inference in the default way; None for ``precision``.
        energy: Whether to measure the energy of inference after the rounds, see `cnnbench.timing.energy`.
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
    settle_s: float = 0.0
    first_settle_s: float = 0.0
    pause_s: float = 0.0
    warmup_s: float = 3.0
    seed: int = 0
    cudnn_benchmark: bool = False
    inference_precision: str | None = None
    energy: bool = False

    @property
    def way(self) -> Way:
        """Return the default way, in which a network runs that has no way of its own."""
        return Way(
            self.precision,
            cudnn_benchmark=self.cudnn_benchmark,
            inference_precision=self.inference_precision,
        )

    def beside_engines(self) -> SpeedConfig:
        """Return the settings for a run with engines, in all of its processes, also those of torch.

        The threads of an engine still spin after a call, so the yardstick waits for them. On a CPU, calls are slower
        for some tenths of a second after such a wait, and for a shorter time after the work of other networks.
        """
        config = replace(self, pause_s=_SPINNING_S)
        if self.device.type != "cpu":
            return config
        return replace(config, settle_s=_SETTLE_BESIDE_ENGINES_S, first_settle_s=_SETTLE_AFTER_PAUSE_S)

    def settling(self) -> dict[str, float]:
        """Return the seconds of calls that do not count, as records state them."""
        return {"settle_s": self.settle_s, "first_settle_s": self.first_settle_s}


class Timed:
    """Network with its inputs and its kinds of work, built and warmed up.

    Args:
        subject: Network to time.
        config: Settings of the timing.
        stopwatch: Stopwatch for the calls.

    Attributes:
        sizes: Batch size of each kind of work.
        doubts: Reasons to doubt the times, as the keys of a dict, which keeps their order and drops repetitions.
        rounds_ms: Wall times of the calls in each round, by kind of work.
        cold_ms: Time of the first call of each kind of work, with compilation or recording, and with the loading of an
            engine's file.
        warm_ms: Time of the fastest call in the warm-up of each kind of work.
        peaks_bytes: Peak memory of a training step on a GPU, allocated and reserved; None where it is not known.

    Raises:
        UserError: The network cannot run in its way on the device.
    """

    def __init__(self, subject: Subject, config: SpeedConfig, stopwatch: Stopwatch) -> None:
        self.config, self.subject, self._watch = config, subject, stopwatch
        self.way = subject.way or config.way
        self.way.check(config.device)
        device = config.device
        # Inputs for a GPU are drawn on the GPU, because drawing a large batch on the host takes longer than timing it.
        generator = random_generator(device, config.seed)
        self._format = torch.contiguous_format
        if self.way.channels_last:
            self._format = torch.channels_last
        self.sizes = self._batch_sizes()
        self.doubts: dict[str, None] = {}
        self._batches = {kind: self._make_inputs(kind, generator) for kind in self.sizes}
        self._inputs = {kind: itertools.cycle(batches) for kind, batches in self._batches.items()}
        labels = torch.randint(
            subject.num_classes, (config.train_batch_size,), generator=generator, device=generator.device
        )
        self._labels = labels.to(device)
        self._models: dict[str, nn.Module] = {}
        self._sessions: dict[str, Session] = {}
        before = (0, 0)
        if self.way.engine == TORCH:
            before = self._build_all()
        else:
            self._open_sessions()
        self._graph_bytes: int | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        if "training" in self.sizes:
            self._optimizer = subject.optimizer(self._models["training"])
        self._scaler: torch.amp.GradScaler | None = None
        # In float16, small gradients would become 0, so the loss is scaled up and the gradients are scaled back.
        if self.way.precision == "16-mixed":
            self._scaler = torch.amp.GradScaler(device.type)
        self._graphs: dict[str, Callable[[Tensor], Any]] = {}
        self.rounds_ms: dict[str, list[list[float]]] = {kind: [] for kind in self.sizes}
        self._device_ms: dict[str, list[float]] = {kind: [] for kind in self.sizes}
        self._queued_ms: dict[str, list[float]] = {kind: [] for kind in self.sizes}
        self._engine_ms: dict[str, list[float]] = {kind: [] for kind in self.sizes}
        self._parts_ms: list[tuple[float, ...]] = []
        self.cold_ms: dict[str, float] = {}
        self.warm_ms: dict[str, float] = {}
        for kind in self.sizes:
            self._warm_up(kind)
        self.peaks_bytes: tuple[int | None, int | None] = (None, None)
        # The peak is measured after the warm-up, when the optimizer has its state.
        if device.type == "cuda" and "training" in self.sizes:
            self.peaks_bytes = self._peaks(before)

    def _batch_sizes(self) -> dict[str, int]:
        """Return the batch size of each kind of work that is to be timed and exists in this way."""
        sizes = {
            "latency": 1,
            "inference": self.subject.batch_size or self.config.batch_size,
            "training": self.config.train_batch_size,
        }
        return {kind: sizes[kind] for kind in self.subject.kinds if kind in self.way.kinds}

    def _build_all(self) -> tuple[int, int]:
        """Build one network for each type of weights.

        Returns:
            The memory of the device, as from `_cuda_memory`, before the network that trains was built.
        """
        device = self.config.device
        types = {kind: weights_type(self.way.precision_of(kind)) for kind in self.sizes}
        models = {dtype: self._build(dtype) for dtype in dict.fromkeys(types.values()) if dtype != torch.float32}
        # The network that trains, in float32, is built last, between two readings of the memory, so that its own memory
        # is known.
        before = _cuda_memory(device)
        if torch.float32 in types.values():
            models[torch.float32] = self._build(torch.float32)
        self._model_bytes = _cuda_memory(device)[0] - before[0]
        self._models = {kind: models[dtype] for kind, dtype in types.items()}
        # Kinds of work that share a network also share its compiled function.
        forwards = {dtype: self._forward_of(model) for dtype, model in models.items()}
        self._forwards = {kind: forwards[dtype] for kind, dtype in types.items()}
        return before

    def _open_sessions(self) -> None:
        """Load the file of the network into its engine, once for each kind of work, and prepare the images for it."""
        assert self.subject.file is not None
        for kind, size in self.sizes.items():
            session = open_session(self.way.engine, self.subject.file, self.way.precision, self.config.device, size)
            self._sessions[kind] = session
            self._batches[kind] = [session.prepare(x) for x in self._batches[kind]]
            self._inputs[kind] = itertools.cycle(self._batches[kind])

    def _set_mode(self, kind: str) -> None:
        """Set the network to training or evaluation for a kind of work, since several kinds may share a network."""
        if kind in self._models:
            self._models[kind].train(kind == "training")

    def _build(self, dtype: torch.dtype) -> nn.Module:
        """Build the network on the device, with weights of this type."""
        model = self.subject.build()
        if dtype != torch.float32:
            model = model.to(dtype)
        return model.to(device=self.config.device, memory_format=self._format)  # type: ignore[call-overload]

    def _forward_of(self, model: nn.Module) -> Callable[[Tensor], Any]:
        """Return the function that computes a forward pass, compiled if the way compiles."""
        if self.way.mode == "compile":
            return _compiled(model)
        return model

    def _make_inputs(self, kind: str, generator: torch.Generator) -> list[Tensor]:
        """Return several random batches of images for a kind of work, and note a doubt about unsuitable values.

        Args:
            kind: Kind of work, which decides the batch size and the number format.
            generator: Random generator of the images.
        """
        count, dtype = self.sizes[kind], weights_type(self.way.precision_of(kind))
        inputs = self._number_of_inputs(count, dtype.itemsize)
        pool = None
        if self.subject.images:
            pool = self.subject.images(inputs * count)
        batches, ends = [], []
        for _ in range(inputs):
            if pool is None:
                x = torch.randn(count, *self.subject.image_shape, generator=generator, device=generator.device)
            else:
                # Drawn with replacement, so the pool may hold fewer images than a batch.
                chosen = torch.randint(len(pool), (count,), generator=generator, device=generator.device)
                x = pool[chosen.to(pool.device)]
            ends += [float(x.min()), float(x.max())]
            batches.append(x.to(self.config.device, dtype, memory_format=self._format))
        # The lowest and highest values of each batch, which are NaN where the batch holds one.
        if not all(map(math.isfinite, ends)) or min(ends) == max(ends):
            self.doubts["the inputs are constant or not finite, on which arithmetic can be faster or slower"] = None
        return batches

    def _number_of_inputs(self, count: int, item_size: int) -> int:
        """Return the number of batches that take turns as inputs; see `_CACHES_OF_INPUTS`.

        Args:
            count: Images per batch.
            item_size: Bytes per number.
        """
        device = self.config.device
        if device.type != "cuda":
            return _FEWEST_INPUTS
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        bytes_of_batch = item_size * count * math.prod(self.subject.image_shape)
        needed = math.ceil(_CACHES_OF_INPUTS * cache / bytes_of_batch)
        return min(max(needed, _FEWEST_INPUTS), _MOST_INPUTS)

    @contextlib.contextmanager
    def _switches(self, kind: str) -> Iterator[None]:
        """Run the body with torch's global flags set as a kind of work requires in this way.

        The flags are set once per turn, not per call, because setting them takes time.
        """
        if self.config.device.type != "cuda":
            yield
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(cudnn_benchmark(self.way.cudnn_benchmark))
            precision = self.way.precision_of(kind)
            if self.way.engine != TORCH:
                stack.enter_context(self._sessions[kind].switches())
            elif precision in ("32-true", "tf32"):
                stack.enter_context(tf32(self.config.device, precision == "tf32"))
            yield

    def _work(self, kind: str, x: Tensor, mark: Callable[[], None] | None = None) -> Any:
        """Run one call of a kind of work, by its CUDA graph if it has one, and return its result."""
        if kind in self._sessions:
            return self._sessions[kind].run(x)
        if kind in self._graphs:
            return self._graphs[kind](x)
        return self._train(x, mark) if kind == "training" else self._infer(kind, x)

    def _infer(self, kind: str, x: Tensor) -> Any:
        with torch.inference_mode(), autocast(self.way.precision_of(kind), self.config.device):
            return self._forwards[kind](x)

    def _train(self, x: Tensor, mark: Callable[[], None] | None = None) -> Tensor:
        """Run one training step and return its logits, (N, K).

        Args:
            x: Images, (N, C, H, W).
            mark: Function to call after the forward and after the backward pass; None for the mark of the stopwatch.
        """
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
            # If gradients are not finite, `step` leaves the weights as they are, and `update` lowers the scale.
            self._scaler.step(optimizer)
            self._scaler.update()
        optimizer.zero_grad()
        return logits.detach()

    def _capture(self, kind: str) -> Callable[[Tensor], Any]:
        """Record a call of a kind of work as a CUDA graph, and return the function that replays it."""
        # Some of torch's optimizers can be recorded in a graph only with this option.
        if self._optimizer is not None:
            for group in self._optimizer.param_groups:
                if "capturable" in group:
                    group["capturable"] = True

        def work(x: Tensor) -> Any:
            return self._train(x, _no_mark) if kind == "training" else self._infer(kind, x)

        replay, peak_bytes = capture(work, self._batches[kind][0])
        if kind == "training":
            # A replay allocates nothing, so that the peak memory is known from the recording only.
            self._graph_bytes = self._model_bytes + peak_bytes
        return replay

    def _call(self, kind: str) -> Lap:
        """Run one call of a kind of work until the device has finished it, and return its times."""
        x = next(self._inputs[kind])
        self._watch.begin()
        out = self._work(kind, x)
        lap = self._watch.end()
        # The result must have one row of logits per image; in a tuple, the first item holds the logits.
        first = out[0] if isinstance(out, tuple) else out
        rows = len(first) if hasattr(first, "__len__") else len(x)
        if rows != self.sizes[kind]:
            self.doubts[f"{kind} returned {rows} results for {self.sizes[kind]} images"] = None
        return lap

    def _warm_up(self, kind: str) -> None:
        """Run calls of a kind of work until they no longer become faster, or the time for the warm-up is over."""
        self._set_mode(kind)
        end = time.perf_counter() + self.config.warmup_s
        with self._switches(kind):
            start = time.perf_counter()
            if self.way.mode == "cuda-graph":
                self._graphs[kind] = self._capture(kind)
            times = [self._call(kind).wall_ms]
            self.cold_ms[kind] = 1e3 * (time.perf_counter() - start)
            if kind in self._sessions:
                self.cold_ms[kind] += self._sessions[kind].load_ms
            # `_gain` is infinite as long as there are too few calls to compare.
            while len(times) < _FEWEST_WARM or (time.perf_counter() < end and _gain(times) > MOST_GAIN):
                times.append(self._call(kind).wall_ms)
        self.warm_ms[kind] = min(times)
        # A warm-up of too few calls for `_gain` is judged by its last two calls.
        if len(times) < 2 * _FLAT:
            gain, most = 1 - times[-1] / max(times[-2], 1e-9), _MOST_GAIN_OF_FEW
        else:
            gain, most = _gain(times), MOST_GAIN
        if gain > most:
            self.doubts[f"{kind} still became faster when its warm-up ended"] = None

    def _peaks(self, before: tuple[int, int]) -> tuple[int | None, int | None]:
        """Return the peak memory of a training step on a GPU in bytes: allocated by tensors, and reserved by torch.

        The reserved memory of a CUDA graph is unknown (None), because the graphs of the other kinds of work may share
        it.

        Args:
            before: Allocated and reserved bytes before the network was built, which are subtracted.
        """
        device = self.config.device
        if self._graph_bytes is not None:
            return self._graph_bytes, None
        # Freed blocks that torch still holds would count as reserved, so they are released first.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        self._models["training"].train()
        with self._switches("training"):
            self._call("training")
        return torch.cuda.max_memory_allocated(device) - before[0], torch.cuda.max_memory_reserved(device) - before[1]

    @contextlib.contextmanager
    def calls(self, kind: str) -> Iterator[Callable[[], object]]:
        """Give the body a function that runs a call of a kind of work until the device has finished it."""
        self._set_mode(kind)
        with self._switches(kind):
            yield lambda: self._call(kind)

    def take_turn(self, kind: str, settle_s: float = 0.0) -> None:
        """Add the samples of one turn, a block of calls.

        Blocks are short: networks that often take turns share whatever disturbs the machine. If calls are short, the
        first call of a turn does not count, because it finds the caches full of another network's data.

        Args:
            kind: Kind of work.
            settle_s: Seconds of calls at the start of the turn that do not count; if this is set, at least one does not
                count.
        """
        self._set_mode(kind)
        fewest = FEWEST_CALLS if self.warm_ms[kind] < 1e3 * self.config.block_s else 1
        times: list[float] = []
        self.rounds_ms[kind].append(times)
        with self._switches(kind):
            if settle_s or self.warm_ms[kind] < 1e3 * max(self.config.block_s, _SETTLING_S):
                end = time.perf_counter() + settle_s
                self._call(kind)
                while time.perf_counter() < end:
                    self._call(kind)
            end = time.perf_counter() + self.config.block_s
            for calls in range(1, self.config.block_calls + 1):
                lap = self._call(kind)
                times.append(lap.wall_ms)
                self._note_own_clock(kind)
                # On a device with a queue, the parts come from queued calls; see `_take_queued_turn`.
                if kind == "training" and lap.parts_ms and not self._watch.has_queue:
                    self._parts_ms.append(lap.parts_ms)
                if calls >= fewest and time.perf_counter() >= end:
                    break
            if self._watch.has_queue:
                self._take_queued_turn(kind)

    def _note_own_clock(self, kind: str) -> None:
        """Add the time of the last call by the engine's own clock, if the engine has one."""
        if kind in self._sessions:
            own_ms = self._sessions[kind].own_ms
            self._engine_ms[kind] += [] if own_ms is None else [own_ms]

    def _take_queued_turn(self, kind: str) -> None:
        """Add samples of calls that are launched before the device starts with them, on a device that has a queue.

        A single call gives the device's own time, without the time in which it waits for the host. Every
        `_ROUNDS_PER_FLOW` rounds, several calls one after the other are timed together, as in a loop that does not wait
        for each result.
        """
        # In 16-mixed the host reads the loss scale after each step, and so waits for the device, unless the optimizer
        # applies the scale itself.
        waits = self._scaler is not None and not getattr(self._optimizer, "_step_supports_amp_scaling", False)
        if kind != "training" or not waits:
            lap = self._watch.queued(lambda: self._work(kind, next(self._inputs[kind])), self.warm_ms[kind])
            self._device_ms[kind] += [] if lap.device_ms is None else [lap.device_ms]
            if kind == "training" and lap.parts_ms:
                self._parts_ms.append(lap.parts_ms)
        # Latency has no throughput. Otherwise the first of every `_ROUNDS_PER_FLOW` rounds has queued calls.
        if kind == "latency" or len(self.rounds_ms[kind]) % _ROUNDS_PER_FLOW != 1:
            return
        calls = min(max(round(_FLOW_MS / max(self.warm_ms[kind], 1e-3)), _FEWEST_FLOW), _MOST_FLOW)
        start = time.perf_counter()
        for _ in range(calls):
            self._work(kind, next(self._inputs[kind]), mark=_no_mark)
        self._watch.wait()
        self._queued_ms[kind].append(1e3 * (time.perf_counter() - start) / calls)

    def figures(self) -> dict[str, Any]:
        """Return the figures of all kinds of work; see `cnnbench.timing.speed.measure_speed`."""
        figures: dict[str, Any] = {}
        for kind in self.sizes:
            figures |= {f"{KEYS[kind]}_{name}": value for name, value in spread(self.rounds_ms[kind]).items()}
            if self._device_ms[kind]:
                figures[f"{KEYS[kind]}_device"] = statistics.median(self._device_ms[kind])
            if self._engine_ms[kind]:
                figures[f"{KEYS[kind]}_engine"] = statistics.median(self._engine_ms[kind])
        for kind, rate in RATES.items():
            if kind not in self.sizes:
                continue
            figures[rate] = 1e3 * self.sizes[kind] / figures[f"{KEYS[kind]}_median"]
            if self._queued_ms[kind]:
                figures[f"{rate}_queued"] = 1e3 * self.sizes[kind] / statistics.median(self._queued_ms[kind])
        if self._parts_ms:
            # The samples hold all parts of one step; here the samples of one part come together.
            for part, times in zip(PARTS, zip(*self._parts_ms, strict=True), strict=True):
                figures[f"train_{part}_ms"] = statistics.median(times)
        allocated, reserved = self.peaks_bytes
        if self.subject.file is not None:
            figures["file_bytes"] = bytes_on_disk(self.subject.file)
            figures["engine_facts"] = {kind: session.facts for kind, session in self._sessions.items()}
        return figures | {
            # The first kind of work also made the very first call.
            "cold_start_ms": self.cold_ms[next(iter(self.sizes))],
            "cold_ms": {kind: round(ms, 4) for kind, ms in self.cold_ms.items()},
            "peak_memory_bytes": allocated,
            "peak_reserved_bytes": reserved,
            "samples_ms": self._samples_ms(),
        }

    def _samples_ms(self) -> dict[str, list[list[float]]]:
        """Return the times of all calls in each round, by kind of work, rounded to a tenth of a microsecond."""
        samples_ms = {}
        for kind, rounds in self.rounds_ms.items():
            samples_ms[kind] = [[round(ms, 4) for ms in times] for times in rounds]
        return samples_ms

    def all_doubts(self) -> list[str]:
        """Return the reasons to doubt the times: unsuitable inputs, wrong results, a short warm-up, a missing wait."""
        # The wall time of a call includes the device's own time. If it is shorter, by more than 2 % and 5 microseconds,
        # the clock stopped before the device had finished.
        for kind, device_ms in self._device_ms.items():
            if not device_ms:
                continue
            wall_ms = statistics.median(itertools.chain(*self.rounds_ms[kind]))
            if statistics.median(device_ms) > 1.02 * wall_ms + 0.005:
                self.doubts[f"{kind} took less time than the device worked, which was not waited for"] = None
        return list(self.doubts)


def _no_mark() -> None:
    """Do nothing, in place of a mark, in a step whose parts are not timed."""


def _compiled(model: nn.Module) -> Callable[[Tensor], Any]:
    """Compile a network separately from all others, with one program for each kind of work.

    Each program is made for one batch size; a program for any batch size would be slower.

    Torch stores programs by the code object of a function, and searches all programs of that code at each call. The
    network is therefore called by a function with a code object of its own, not by the forward method that all networks
    of a class share.
    """

    def forward(x: Tensor) -> Any:
        return model(x)

    code = forward.__code__.replace(co_name=f"forward_{id(model)}")
    own = types.FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)
    return torch.compile(own, dynamic=False)


def small_network() -> nn.Module:
    """Return the network that settles a process."""
    channels, height, width = SMALL_IMAGE
    # Without padding, a 3x3 convolution takes one pixel off each side.
    pixels = (height - 2) * (width - 2)
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.Flatten(), nn.Linear(8 * pixels, _SMALL_CLASSES))


def settle(way: Way, config: SpeedConfig, kinds: Sequence[str] = KINDS, file: Path | None = None) -> None:
    """Run a small network, so that the process does its one-time work before the first network is timed.

    Such work is, for example, loading libraries and allocating their workspaces. Without this run it would be part of
    the first call or of the memory of the first network.

    Args:
        way: Way in which the small network runs.
        config: Settings of the timing.
        kinds: Kinds of work that the small network does.
        file: `small_network` as a file for the engine of the way; None for torch.
    """
    # The constructor warms the network up, and that is the whole run.
    small = Subject(small_network, SMALL_IMAGE, _SMALL_CLASSES, way=way, kinds=kinds, file=file)
    Timed(small, config, Stopwatch(config.device))


def _cuda_memory(device: torch.device) -> tuple[int, int]:
    """Return the bytes that tensors use and that torch holds for them, without its cache; 0 on other devices."""
    if device.type != "cuda":
        return 0, 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)


def _gain(times: Sequence[float]) -> float:
    """Return the share by which the last `_FLAT` calls were faster than the `_FLAT` before; infinity with too few."""
    if len(times) < 2 * _FLAT:
        return float("inf")
    before, after = statistics.median(times[-2 * _FLAT : -_FLAT]), statistics.median(times[-_FLAT:])
    return 1 - after / before if before else 0.0


def spread(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the median of all calls, its interval, the first and last decile, and the median absolute deviation.

    Args:
        rounds: Times of the calls in each round.
    """
    times = list(itertools.chain(*rounds))
    # One value has no quantiles, so it stands for both deciles.
    deciles = times
    if len(times) > 1:
        # The nine cut points are the 10th, 20th and so on to the 90th percentile.
        deciles = statistics.quantiles(times, n=10, method="inclusive")
    median, low, high = median_interval(rounds)
    mad = median_deviation(times)
    return {"median": median, "low": low, "high": high, "p10": deciles[0], "p90": deciles[-1], "mad": mad}
