"""Limits of networks that were timed: which of launching, memory and arithmetic bounds each of them.

For each network this brings together its arithmetic and traffic (`cnnbench.roofline.model`), the peaks of the machine
(`cnnbench.roofline.peaks`) and its measured times.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnnbench.console import note
from cnnbench.counting import operators
from cnnbench.errors import Stopped, UserError
from cnnbench.hardware import (
    cudnn_benchmark,
    numbers,
    on_device,
    random_generator,
    synchronise,
    weights_type,
)
from cnnbench.names import INFERENCE_PRECISIONS
from cnnbench.roofline.model import TRAFFIC_CONVENTION, Load, Timed, bound, layer_traffic
from cnnbench.roofline.peaks import PEAK_CONVENTION, Peaks, hardware_precisions, measure_peaks
from cnnbench.timing.conditions import Conditions, reasons_to_doubt
from cnnbench.timing.timed_network import SpeedConfig, Subject, Way

CONVENTION = f"{TRAFFIC_CONVENTION}; {PEAK_CONVENTION}"
_KINDS = ("inference", "latency")
_PASSES = 3
"""Number of timed passes, after one that does not count."""
_SLEEP_CYCLES = 100_000_000
"""Clock cycles for which the GPU is kept busy, about 50 ms."""
_OPERATORS_IN_QUEUE = 200
"""Number of operators that are launched before the host waits for the GPU again."""


class Survey(NamedTuple):
    """Limits of several networks.

    Attributes:
        peaks: Peaks of the machine, the better of the measurements before and after the timing.
        doubts: Reasons to doubt the peaks.
        limits: Result of `find_limits` for each network, by name.
        failed: Error message for each network whose limits could not be determined, by name.
    """

    peaks: Peaks
    doubts: Sequence[str]
    limits: Mapping[str, dict[str, Any]]
    failed: Mapping[str, str]


def peaks_now(config: SpeedConfig) -> tuple[Peaks, list[str]]:
    """Measure the peaks of the device in every number format that its hardware supports or the timing uses.

    Args:
        config: Settings of the timing.

    Returns:
        The peaks, and the reasons to doubt them.
    """
    note("peaks of this machine")
    precisions = dict.fromkeys([config.precision, config.way.precision_of("inference")])
    precisions |= dict.fromkeys(hardware_precisions(config.device))
    with Conditions(config.device) as conditions:
        peaks = measure_peaks(config.device, list(precisions))
    return peaks, reasons_to_doubt(conditions.figures())


def survey(
    subjects: Mapping[str, Subject],
    figures: Mapping[str, Mapping[str, Any]],
    config: SpeedConfig,
    before: tuple[Peaks, list[str]],
    graphs: Mapping[str, Mapping[str, Any]],
) -> Survey:
    """Determine what limits each of several networks that were timed.

    Args:
        subjects: Networks by name.
        figures: Figures of `measure_speed` for each network, by name.
        config: Settings of the timing.
        before: Result of `peaks_now` from before the timing.
        graphs: Figures of the same networks as CUDA graphs, by name; networks without a graph are absent.

    Returns:
        The limits of each network, and the peaks.
    """
    peaks, doubts = before
    try:
        # The second measurement, after the timing: a disturbance may have spoiled the first.
        again, doubts_again = peaks_now(config)
        peaks = peaks.best(again)
        if not doubts_again:  # one undisturbed measurement is enough, since the better one counts
            doubts = []
    except RuntimeError as error:  # a network may have broken the device: keep the peaks from before
        doubts = [*doubts, f"the peaks were not measured again: {type(error).__name__}: {error}"]
    limits: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for name, subject in subjects.items():
        if "error" in figures[name]:
            continue
        note(f"what limits {name}")
        graph = graphs.get(name, {})
        graph_s = {kind: graph[f"{kind}_ms_median"] / 1e3 for kind in _KINDS if f"{kind}_ms_median" in graph}
        try:
            device_s = _device_seconds(figures[name], graph)
            limits[name] = find_limits(subject, figures[name], config, peaks, graph_s, device_s)
        except Stopped:
            raise
        except BaseException as error:  # an error of one network must not lose the limits of the others
            failed[name] = " ".join(str(error).split())
    return Survey(peaks, doubts, limits, failed)


def _device_seconds(figures: Mapping[str, Any], graph: Mapping[str, Any]) -> dict[str, float]:
    """Return the shortest time of the GPU itself for each kind of work, eager or as a CUDA graph."""
    seconds = {}
    for kind in _KINDS:
        key = f"{kind}_ms_device"
        if key in figures:
            seconds[kind] = min(f[key] for f in (figures, graph) if key in f) / 1e3
    return seconds


def find_limits(
    subject: Subject,
    figures: Mapping[str, Any],
    config: SpeedConfig,
    peaks: Peaks,
    graph_s: Mapping[str, float] | None = None,
    device_s: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Determine what limits the inference of a network, with one image and with a batch.

    Args:
        subject: Network that was timed.
        figures: Figures of `measure_speed` for this network with this config.
        config: Settings of the timing.
        peaks: Peaks of the machine.
        graph_s: Seconds of ``latency`` and ``inference`` as a CUDA graph, where they were measured.
        device_s: Seconds that the GPU itself takes for ``latency`` and ``inference``, the shorter of eager and graph,
            where they were measured.

    Returns:
        Dictionary with ``latency`` and ``inference``, each with the figures of its `Verdict` and ``batch_size``,
        ``flops``, ``other_ops`` and ``moved_bytes``; ``groups``, a list with the same costs for each kind of layer in
        inference, with its roofline time ``predicted_s``, and its ``seconds``, timed operator by operator;
        ``uncounted``, the operators whose arithmetic is not counted.

    Raises:
        UserError: The network cannot be traced, or it is timed as a compiled network.
    """
    model, shape, way = subject.build(), subject.image_shape, subject.way or config.way
    precision = way.precision_of("inference")
    if way.mode == "compile":
        raise UserError("what limits a compiled network is not known: its operators are fused; leave out --mode")
    one = Timed(_load(model, shape, 1, precision), figures["latency_ms_median"] / 1e3)
    batch_size = subject.batch_size or config.batch_size
    many = Timed(_load(model, shape, batch_size, precision), figures["inference_ms_median"] / 1e3)
    # Each of the two passes is the second batch size for the other, unless both have one image.
    others = (many, one) if batch_size > 1 else (None, None)
    graph_s, device_s = graph_s or {}, device_s or {}
    limits: dict[str, Any] = {}
    for kind, timed, other in (("latency", one, others[0]), ("inference", many, others[1])):
        verdict = bound(timed, peaks, other, graph_s.get(kind), device_s.get(kind))
        limits[kind] = {"batch_size": timed.load.batch_size, **_costs(timed.load), **verdict.figures()}
    seconds = _measured_by_kind(model, (batch_size, *shape), way, config)
    groups = []
    for kind, part in many.load.by_kind().items():
        group: dict[str, Any] = {"kind": kind, **_costs(part), "intensity": part.intensity}
        groups.append(group | {"seconds": seconds.get(kind), "predicted_s": part.seconds(peaks)})
    return limits | {"groups": groups, "uncounted": list(many.load.uncounted)}


def _load(model: nn.Module, image_shape: Sequence[int], batch_size: int, precision: str) -> Load:
    """Return the work of a pass in inference."""
    # Operators and bytes in TF32 are those of float32; only the peak differs.
    traced = layer_traffic(model, image_shape, batch_size, "32-true" if precision == "tf32" else precision)
    return replace(traced, precision=precision)


def _measured_by_kind(model: nn.Module, shape: Sequence[int], way: Way, config: SpeedConfig) -> dict[str, float]:
    """Return the seconds of each kind of layer in inference; the network moves to the device of the timing.

    Args:
        model: Network to time.
        shape: Shape of the batch of images, (N, C, H, W).
        way: Way in which the network was timed.
        config: Settings of the timing.
    """
    # Operators are timed in the memory format and the number format in which the network itself was timed.
    precision = way.precision_of("inference")
    memory_format = torch.channels_last if way.channels_last else torch.contiguous_format
    if precision in INFERENCE_PRECISIONS:
        model = model.to(weights_type(precision))
    model = model.to(device=config.device, memory_format=memory_format).eval()  # type: ignore[call-overload]
    generator = random_generator(config.device, config.seed)
    x = torch.randn(*shape, generator=generator, device=generator.device)
    x = x.to(config.device, weights_type(precision), memory_format=memory_format)
    with cudnn_benchmark(way.cudnn_benchmark):
        return seconds_by_kind(model, x, precision, config.device)


def _costs(load: Load) -> dict[str, int]:
    """Return the arithmetic and the traffic of a load by the names of the figures."""
    return {"flops": load.flops, "other_ops": load.other_ops, "moved_bytes": load.moved_bytes}


def seconds_by_kind(model: nn.Module, x: Tensor, precision: str, device: torch.device) -> dict[str, float]:
    """Time a forward pass operator by operator, and return the seconds of each kind of layer.

    On a GPU, events around each operator measure the time, so the host need not wait for each operator. The sum over
    all kinds is less than the time of a pass, because the time between operators is not included.

    Args:
        model: Network on the device, in evaluation mode.
        x: Batch of images on the device, (N, C, H, W).
        precision: Number format, by Lightning's name.
        device: Device of the network.

    Returns:
        The median over a few passes for each kind of layer that occurs; see `operators.KINDS`.
    """
    passes = []
    for _ in range(_PASSES + 1):
        # Not in inference mode: there, composite operators such as conv2d arrive whole, and their kind is not known.
        with on_device(device), torch.no_grad(), numbers(precision, device), _OperatorClock(device) as clock:
            model(x)
        passes.append(clock.seconds())
    # The first pass does not count: it chooses algorithms and allocates memory.
    return {kind: statistics.median(seconds[kind] for seconds in passes[1:]) for kind in passes[0]}


class _OperatorClock(TorchDispatchMode):
    """Dispatch mode that times each operator that moves data.

    Args:
        device: Device of the operators.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        # Kind of layer of each operator, and the times before and after it.
        self._calls: list[tuple[str, Any, Any]] = []
        # Earlier work on the device must not be part of the first operator's time.
        synchronise(device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not operators.moves_data(func):
            return func(*args, **(kwargs or {}))
        if self._device.type == "cuda" and len(self._calls) % _OPERATORS_IN_QUEUE == 0:
            # While the GPU sleeps, the host launches the next operators, so that no event includes a wait for the host.
            # The queue holds about a thousand entries; an operator and its two events take three of them.
            synchronise(self._device)
            torch.cuda._sleep(_SLEEP_CYCLES)
        begin = self._now()
        out = func(*args, **(kwargs or {}))
        # Here the host's clock times an Apple GPU, so the host has to wait for each operator.
        if self._device.type == "mps":
            synchronise(self._device)
        self._calls.append((operators.kind_of(func, args), begin, self._now()))
        return out

    def _now(self) -> Any:
        """Return the time: on a CUDA device an event that is recorded in the stream, else seconds."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self) -> dict[str, float]:
        """Return the total seconds of the operators of each kind of layer."""
        synchronise(self._device)
        totals: dict[str, float] = defaultdict(float)
        for kind, begin, end in self._calls:
            # The host's clock gives seconds, and a pair of CUDA events gives milliseconds.
            if isinstance(end, float):
                totals[kind] += end - begin
            else:
                totals[kind] += begin.elapsed_time(end) / 1e3
        return totals
