"""What limits timed networks: their loads, the peaks of the machine and their times together."""

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
    INFERENCE_PRECISIONS,
    cudnn_benchmark,
    numbers,
    on_device,
    random_generator,
    synchronise,
    weights_type,
)
from cnnbench.roofline.model import TRAFFIC_CONVENTION, Load, Timed, bound, layer_traffic
from cnnbench.roofline.peaks import PEAK_CONVENTION, Peaks, hardware_precisions, measure_peaks
from cnnbench.timing.conditions import Conditions, reasons_to_doubt
from cnnbench.timing.work import SpeedConfig, Subject

CONVENTION = f"{TRAFFIC_CONVENTION}; {PEAK_CONVENTION}"
_KINDS = ("inference", "latency")
_PASSES = 3
_SLEEP_CYCLES = 100_000_000
"""About 50 ms of a GPU's clock."""
_OPERATORS_IN_QUEUE = 200


class Survey(NamedTuple):
    """What limits several networks.

    Attributes:
        peaks: Peaks of the machine, the better of before and after the timing.
        doubts: Reasons to doubt the peaks.
        limits: Figures of `find_limits`, by network.
        failed: Reasons why a network has none, by network.
    """

    peaks: Peaks
    doubts: Sequence[str]
    limits: Mapping[str, dict[str, Any]]
    failed: Mapping[str, str]


def peaks_now(config: SpeedConfig) -> tuple[Peaks, list[str]]:
    """Measure the peaks of the device, for all number formats that it is made for and those that are timed.

    Returns:
        The peaks, and reasons to doubt them.
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
    """Find what limits networks that were timed.

    Args:
        subjects: The networks by name.
        figures: Figures of `measure_speed`.
        config: How they were timed.
        before: Result of `peaks_now` from before the timing.
        graphs: Figures of the same networks as CUDA graphs, where there are any.
    """
    peaks, doubts = before
    try:
        again, doubts_again = peaks_now(config)
        peaks = peaks.best(again)
        if not doubts_again:  # one quiet look is enough
            doubts = []
    except RuntimeError as error:  # a network has broken the device; the figures of the others are there
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
        except BaseException as error:  # whatever a network does wrong is its own failure, not the others'
            failed[name] = " ".join(str(error).split())
    return Survey(peaks, doubts, limits, failed)


def _device_seconds(figures: Mapping[str, Any], graph: Mapping[str, Any]) -> dict[str, float]:
    """Return the least time that the GPU itself takes for each kind of work, eager or as a graph."""
    seconds = {}
    for kind in _KINDS:
        key = f"{kind}_ms_device"
        if key in figures:
            seconds[kind] = min(f[key] for f in (figures, graph) if key in f) / 1e3
    return seconds


def find_limits(
    subject: Subject, figures: Mapping[str, Any], config: SpeedConfig, peaks: Peaks,
    graph_s: Mapping[str, float] | None = None, device_s: Mapping[str, float] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What limits inference of a network, of one image and of a batch.

    Args:
        subject: The network.
        figures: Of `measure_speed`, of the same subject and config.
        config: How it was timed.
        peaks: Of the machine.
        graph_s: Times of ``latency`` and ``inference`` as a CUDA graph, if there are any.
        device_s: Of these times, eager or as a graph, what the GPU itself takes, if that is known.

    Returns:
        ``latency`` and ``inference``: the `Verdict` of each with ``flops``, ``other_ops`` and ``moved_bytes``;
        ``groups``: the same numbers for each kind of layer in inference, with ``seconds``, timed operator by operator;
        ``uncounted``: operators whose arithmetic is missing.

    Raises:
        UserError: The network cannot be traced, or is compiled.
    """
    model, shape, way = subject.build(), subject.image_shape, subject.way or config.way
    precision = way.precision_of("inference")
    if way.mode == "compile":
        raise UserError("what limits a compiled network is not known: its operators are fused; leave out --mode")

    def load(images: int) -> Load:
        traced = layer_traffic(model, shape, images, "32-true" if precision == "tf32" else precision)
        return replace(traced, precision=precision)

    one = Timed(load(1), figures["latency_ms_median"] / 1e3)
    many = Timed(load(config.batch_size), figures["inference_ms_median"] / 1e3)
    others = (many, one) if config.batch_size > 1 else (None, None)
    found: dict[str, Any] = {}
    for name, timed, other in (("latency", one, others[0]), ("inference", many, others[1])):
        found[name] = {"batch_size": timed.load.batch_size, **_costs(timed.load)}
        extra = (graph_s or {}).get(name), (device_s or {}).get(name)
        found[name] |= bound(timed, peaks, other, *extra).figures()
    order = torch.channels_last if way.channels_last else torch.contiguous_format
    if precision in INFERENCE_PRECISIONS:
        model = model.to(weights_type(precision))
    model = model.to(device=config.device, memory_format=order).eval()  # type: ignore[call-overload]
    generator = random_generator(config.device, config.seed)
    x = torch.randn(config.batch_size, *shape, generator=generator, device=generator.device)
    x = x.to(config.device, weights_type(precision), memory_format=order)
    with cudnn_benchmark(way.cudnn_benchmark):
        seconds = seconds_by_kind(model, x, precision, config.device)
    found["groups"] = [
        {"kind": kind, **_costs(part), "intensity": part.intensity, "seconds": seconds.get(kind),
         "predicted_s": part.seconds(peaks)}
        for kind, part in many.load.by_kind().items()
    ]  # fmt: skip
    return found | {"uncounted": list(many.load.uncounted)}


def _costs(load: Load) -> dict[str, int]:
    return {"flops": load.flops, "other_ops": load.other_ops, "moved_bytes": load.moved_bytes}


def seconds_by_kind(model: nn.Module, x: Tensor, precision: str, device: torch.device) -> dict[str, float]:
    """Time operator after operator of inference: the median of a few passes per kind of layer.

    On a GPU by events around each operator, so that it need not be waited for. The sum is less than the time of a pass
    by what lies between operators.
    """
    passes = []
    for _ in range(_PASSES + 1):
        with on_device(device), torch.no_grad(), numbers(precision, device), _OperatorClock(device) as clock:
            model(x)
        passes.append(clock.seconds())
    return {kind: statistics.median(found[kind] for found in passes[1:]) for kind in passes[0]}


class _OperatorClock(TorchDispatchMode):
    """Notes when operators begin and end."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._calls: list[tuple[str, Any, Any]] = []
        synchronise(device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not operators.moves_data(func):
            return func(*args, **(kwargs or {}))
        if self._device.type == "cuda" and len(self._calls) % _OPERATORS_IN_QUEUE == 0:
            # While the GPU is busy with this, the operators are launched; then no event waits for the host. The queue
            # holds about a thousand entries, and an operator takes three of them.
            synchronise(self._device)
            torch.cuda._sleep(_SLEEP_CYCLES)
        begin = self._now()
        out = func(*args, **(kwargs or {}))
        if self._device.type == "mps":
            synchronise(self._device)
        self._calls.append((operators.kind_of(func, args), begin, self._now()))
        return out

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self) -> dict[str, float]:
        """Return the seconds of all operators of each kind of layer."""
        synchronise(self._device)
        found: dict[str, float] = defaultdict(float)
        for kind, begin, end in self._calls:
            found[kind] += end - begin if isinstance(end, float) else begin.elapsed_time(end) / 1e3
        return found
