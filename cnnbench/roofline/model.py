"""Roofline model: the least time that a machine needs for the arithmetic and the memory traffic of a network.

A pass runs on tensors without values that know their device and type, so the casts of autocast are included. The
arithmetic of each operator comes from the table of `cnnbench.counting.operators`; its traffic is the bytes that it
reads and writes. An operator takes at least the longer of two times: its operations at the peak rate, and its bytes at
the memory bandwidth (Williams et al. 2009, 10.1145/1498765.1498785).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from cnnbench.counting import operators
from cnnbench.counting.dry_run import DryRun, Listener
from cnnbench.counting.meta_run import tensors_in
from cnnbench.errors import UserError, unknown
from cnnbench.names import INFERENCE_PRECISIONS, PRECISIONS
from cnnbench.roofline.peaks import Peaks
from cnnbench.units import percent, plain

TRAFFIC_CONVENTION = (
    "operations are 2 per multiply-add of convolutions and matrix products, and 1 per element and step of other "
    "arithmetic; bytes are what every operator that is no view reads and writes, weights included, nothing fused; the "
    "roofline's time of an operator is the longer of its operations at the peak and its bytes at the rate of a copy of "
    "that size"
)
LAUNCH_SHARE = 0.5
"""Share of the time that is spent per call, whatever the number of images, from which a network is launch-bound."""
POOR = 0.25
"""Ratio of predicted to measured time below which the evidence says that the kernels themselves are slow."""
FARTHEST = 0.1
"""Ratio of predicted to measured time below which neither memory nor arithmetic is called the limit."""


class Work(NamedTuple):
    """Work of one call of an operator.

    Attributes:
        kind: Kind of layer; see `operators.KINDS`.
        flops: Floating-point operations of convolutions and matrix products, 2 per multiply-add.
        other_ops: Other arithmetic operations.
        moved_bytes: Bytes that the operator reads and writes.
    """

    kind: str
    flops: int
    other_ops: int
    moved_bytes: int

    def seconds(self, peaks: Peaks, precision: str) -> tuple[float, float]:
        """Return the least seconds for the arithmetic, and the least seconds for the memory traffic."""
        operations = self.flops + self.other_ops
        return operations / peaks.of(precision), peaks.seconds_to_move(self.moved_bytes)


@dataclass(frozen=True)
class Load:
    """Work of one pass of a network.

    Attributes:
        batch_size: Number of images.
        precision: Number format, by Lightning's name.
        works: Work of each operator in the order of the calls, without operators that move no data.
        uncounted: Operators whose arithmetic is not known, with their number of calls.
    """

    batch_size: int
    precision: str
    works: tuple[Work, ...]
    uncounted: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """Return the floating-point operations of convolutions and matrix products."""
        return sum(work.flops for work in self.works)

    @property
    def other_ops(self) -> int:
        """Return the other arithmetic operations."""
        return sum(work.other_ops for work in self.works)

    @property
    def moved_bytes(self) -> int:
        """Return the bytes that all operators read and write."""
        return sum(work.moved_bytes for work in self.works)

    @property
    def operations(self) -> int:
        """Return all arithmetic operations."""
        return self.flops + self.other_ops

    @property
    def intensity(self) -> float:
        """Return the arithmetic intensity: operations per byte."""
        return self.operations / max(self.moved_bytes, 1)

    def by_kind(self) -> dict[str, Load]:
        """Return the load of each kind of layer that occurs, in the order of `operators.KINDS`."""
        parts: dict[str, list[Work]] = defaultdict(list)
        for work in self.works:
            parts[work.kind].append(work)
        return {k: Load(self.batch_size, self.precision, tuple(parts[k])) for k in operators.KINDS if k in parts}

    def seconds(self, peaks: Peaks) -> float:
        """Return the least time by the roofline: the sum over operators, which run one after the other."""
        return sum(max(work.seconds(peaks, self.precision)) for work in self.works)

    def memory_share(self, peaks: Peaks) -> float:
        """Return the share of the roofline's time in operators whose traffic takes longer than their arithmetic."""
        total_s = memory_s = 0.0
        for work in self.works:
            arithmetic, traffic = work.seconds(peaks, self.precision)
            total_s += max(arithmetic, traffic)
            if traffic > arithmetic:
                memory_s += traffic
        # A pass without any operator takes no time; its share is 0.
        return memory_s / max(total_s, 1e-30)


def layer_traffic(
    model: nn.Module, image_shape: Sequence[int], batch_size: int, precision: str = "32-true", training: bool = False
) -> Load:
    """Trace the arithmetic and memory traffic of a pass; the network is neither run nor changed.

    The operators and the casts of autocast are those of the CPU.

    Args:
        model: Network that takes one batch of images and returns tensors.
        image_shape: Channels and spatial dimensions of one image, such as (C, H, W).
        batch_size: Number of images.
        precision: Number format: ``32-true``, ``bf16-mixed`` or ``16-mixed``, and for inference also ``bf16-true`` or
            ``16-true``.
        training: Whether to trace a training step (forward and backward, without loss and optimizer) in place of
            inference.

    Returns:
        The work of each operator.

    Raises:
        UserError: The precision or batch size is not valid, or the network does not run on such images.
    """
    valid = [name for name in (*PRECISIONS, *INFERENCE_PRECISIONS) if name != "auto"]
    if precision not in valid:
        raise unknown("precision", precision, valid)
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} must be at least 1")
    tracer = _Tracer()
    run = DryRun(model, image_shape, tracer, "trace", "cpu", precision)
    with run.images(batch_size, training) as images:
        outputs = [t for t in run.forward(images) if t.requires_grad]
        if training and outputs:
            run.backward(outputs)
    uncounted = tuple(f"{name} ({calls} calls)" for name, calls in sorted(tracer.unknown.items()))
    return Load(batch_size, precision, tuple(tracer.works), uncounted)


class _Tracer(Listener):
    """Record of the work of every operator."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.unknown: Counter[str] = Counter()

    def operator(self, operator: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Note the work of an operator."""
        if not operators.moves_data(operator):
            return
        rule = operators.rule_of(operator)
        if rule is None:
            # The traffic of an operator without a rule is known all the same.
            self.unknown[str(operator)] += 1
            cost = operators.FREE
        else:
            cost = rule(args, out)
        kind = operators.kind_of(operator, args)
        # An operator in place reads and writes its tensor, which is then among the arguments and the results.
        moved = _bytes((args, kwargs)) + _bytes(out)
        self.works.append(Work(kind, 2 * cost.macs, cost.other, moved))


def _bytes(values: Any) -> int:
    """Return the bytes of all distinct tensors; elements that a stride of 0 repeats count once."""
    # A tensor that is given twice, as in x * x, is read once.
    distinct = {id(t): t for t in tensors_in(values)}
    return sum(_own_elements(t) * t.element_size() for t in distinct.values())


def _own_elements(tensor: Tensor) -> int:
    """Return the number of elements without those that a stride of 0 repeats."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        # A dimension of size 0 leaves no element at all, whatever its stride.
        if stride or not size:
            count *= size
    return count


def predicted_seconds(
    model: nn.Module, image_shape: Sequence[int], batch_size: int, peaks: Peaks, precision: str, training: bool = False
) -> float:
    """Return the least time of a pass by the roofline.

    Args:
        model: Network that takes one batch of images and returns tensors.
        image_shape: Channels and spatial dimensions of one image, such as (C, H, W).
        batch_size: Number of images.
        peaks: Peaks of the machine.
        precision: Number format; see `layer_traffic`.
        training: Whether the pass is a training step; see `layer_traffic`.

    Raises:
        UserError: The pass cannot be traced, or the peak of this precision was not measured.
    """
    return layer_traffic(model, image_shape, batch_size, precision, training).seconds(peaks)


@dataclass(frozen=True)
class Verdict:
    """Verdict on what limits a pass, with the figures behind it.

    Attributes:
        bound: ``launch-bound``, ``memory-bound``, ``compute-bound`` or ``not determined``; the function `bound` has the
            rule.
        evidence: Reasons for the verdict, in one sentence.
        intensity: Arithmetic intensity in operations per byte.
        measured_s: Measured seconds of the pass.
        predicted_s: Least seconds of the pass by the roofline.
        of_peak_flops: Achieved share of the peak arithmetic rate.
        of_peak_bandwidth: Achieved share of the rate of a large copy in memory; above 1 where caches serve the traffic.
        of_roofline: Predicted time divided by measured time.
        memory_share: Share of the predicted time in operators that memory limits.
        per_call_share: Share of the measured time that is spent per call and not per image; None if not known.
    """

    bound: str
    evidence: str
    intensity: float
    measured_s: float
    predicted_s: float
    of_peak_flops: float
    of_peak_bandwidth: float
    of_roofline: float
    memory_share: float
    per_call_share: float | None

    def figures(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


class Timed(NamedTuple):
    """Pass of a network and its measured time.

    Attributes:
        load: Work of the pass.
        seconds: Measured seconds of the pass.
    """

    load: Load
    seconds: float


def _largest_share(by_line: float | None, seconds: float, without_host_s: float | None) -> float | None:
    """Return the largest estimate of the share of the time that is spent per call; None if there is no estimate.

    Args:
        by_line: Estimate by the straight line through the times of two batch sizes.
        seconds: Measured time of the pass.
        without_host_s: Time of the pass in which the device does not wait for the host.
    """
    if without_host_s is None:
        return by_line
    # A pass with more launches than the queue holds, or one that reads values, waits for the host there too. The time
    # without the host is then too long, and the straight line gives the better estimate.
    return max(0.0, 1 - without_host_s / seconds, by_line or 0.0)


def _check_times(*times: float | None) -> None:
    """Raise `UserError` if a time that is known is not above 0."""
    for time_s in times:
        # This form refuses NaN as well.
        if time_s is not None and not time_s > 0:
            raise UserError(f"time {time_s} s must be above 0")


def bound(
    timed: Timed,
    peaks: Peaks,
    other: Timed | None = None,
    graph_s: float | None = None,
    device_s: float | None = None,
) -> Verdict:
    """Decide what limits a pass: launching its operators, memory, or arithmetic.

    The rule has three steps:

    1. The share of the time that is spent per call is estimated. With `device_s` it is the share in which the GPU waits
       for the host; with `graph_s` alone, the share that the CUDA graph saves. With `other`, a straight line through
       the times of two batch sizes gives the time that does not grow with the images; the part of it that the roofline
       explains, such as reading the weights, is subtracted. If there are several estimates, the largest counts. From
       `LAUNCH_SHARE` on, the pass is launch-bound.
    2. The pass is ``not determined`` if it is too slow for the roofline to explain: if the roofline's time is less than
       `FARTHEST` of the measured time, or, where the share per call is not known, less than `LAUNCH_SHARE` of it.
    3. Otherwise the pass is bound by memory or by arithmetic, whichever limits the larger part of the roofline's time.

    Args:
        timed: Pass with its measured time.
        peaks: Peaks of the machine.
        other: Pass of the same network with another number of images.
        graph_s: Seconds of the pass as a CUDA graph, including the one launch that the GPU waits for.
        device_s: Seconds that the GPU itself takes for the pass, the shorter of queued in advance and as a graph.

    Returns:
        The verdict with its evidence.

    Raises:
        UserError: A time is not above 0, or both passes have the same number of images, or the peak of this precision
            was not measured.
    """
    load, seconds = timed
    _check_times(seconds, graph_s, device_s, other and other.seconds)
    predicted, memory_share = load.seconds(peaks), load.memory_share(peaks)
    by_line = None if other is None else _per_call_share(timed, peaks, other)
    share = _largest_share(by_line, seconds, graph_s if device_s is None else device_s)
    # `_name_of_bound` applies the thresholds of the three steps.
    verdict = Verdict(
        bound=_name_of_bound(predicted / seconds, memory_share, share),
        evidence="",
        intensity=load.intensity,
        measured_s=seconds,
        predicted_s=predicted,
        of_peak_flops=load.operations / seconds / peaks.of(load.precision),
        of_peak_bandwidth=load.moved_bytes / seconds / peaks.bytes_per_s,
        of_roofline=predicted / seconds,
        memory_share=memory_share,
        per_call_share=share,
    )
    # The evidence puts the figures of the verdict into words, so it is added last.
    facts = _facts_of_roofline(verdict) + _facts_of_launching(verdict, graph_s, device_s)
    if other is not None:
        facts.append(_fact_of_batch_sizes(timed, other, by_line, share))
    return replace(verdict, evidence=f"{verdict.bound}: {'; '.join(facts)}")


def _name_of_bound(of_roofline: float, memory_share: float, share: float | None) -> str:
    """Return the verdict by the rule of `bound`; `share` is the share of the time that is spent per call."""
    if share is not None and share >= LAUNCH_SHARE:
        return "launch-bound"
    # If the share per call is not known, launching may be all that the roofline does not explain.
    if of_roofline < (LAUNCH_SHARE if share is None else FARTHEST):
        return "not determined"
    return "memory-bound" if memory_share > 0.5 else "compute-bound"


def _facts_of_roofline(verdict: Verdict) -> list[str]:
    """Return what the roofline says about a pass, as parts of a sentence."""
    share = verdict.per_call_share
    slow = cached = ""
    # Kernels are to blame only if launching is known to take a small part of the time.
    if share is not None and share < LAUNCH_SHARE and verdict.of_roofline < POOR:
        slow = ", so the kernels themselves are slow"
    if verdict.of_peak_bandwidth > 1:
        cached = " (caches serve it)"
    return [
        f"the roofline allows {_ms(verdict.predicted_s)}, measured {_ms(verdict.measured_s)}, "
        f"{percent(verdict.of_roofline)} of it{slow}",
        f"{verdict.intensity:.3g} FLOP/byte, {percent(verdict.of_peak_flops)} of the peak arithmetic and "
        f"{percent(verdict.of_peak_bandwidth)} of memory's rate{cached}",
        f"{percent(verdict.memory_share)} of the roofline's time is in operators that memory limits",
    ]


def _facts_of_launching(verdict: Verdict, graph_s: float | None, device_s: float | None) -> list[str]:
    """Return what the times without the host say about a pass, or what would tell if there are none."""
    facts = []
    for subject, time_s in (("the GPU itself works", device_s), ("as a CUDA graph", graph_s)):
        if time_s is not None:
            saved = max(0.0, 1 - time_s / verdict.measured_s)
            facts.append(f"{subject} {_ms(time_s)}, {percent(saved)} less")
    if verdict.per_call_share is None and verdict.bound == "not determined":
        facts.append("a second batch size would tell what is spent per call: give a --batch_size above 1")
    return facts


def _fact_of_batch_sizes(timed: Timed, other: Timed, by_line: float | None, share: float | None) -> str:
    """Return how the time grows with the images, and what is spent per call if the straight line decided that."""
    few, many = sorted((timed, other), key=lambda t: t.load.batch_size)
    images = many.load.batch_size / few.load.batch_size
    spent = ""
    if by_line is not None and by_line == share:
        spent = f", {percent(by_line)} of this pass spent per call"
    return f"{images:g} times the images take {many.seconds / few.seconds:.3g} times as long{spent}"


def _per_call_share(timed: Timed, peaks: Peaks, other: Timed) -> float:
    """Return the share of the time that neither grows with the images nor is part of the roofline's time.

    Args:
        timed: Pass with its measured time.
        peaks: Peaks of the machine.
        other: Pass of the same network with another number of images.

    Raises:
        UserError: Both passes have the same number of images.
    """
    # This is negative if `other` has fewer images, and then so is the difference of their times below.
    images = other.load.batch_size - timed.load.batch_size
    if not images:
        raise UserError(f"both passes have {timed.load.batch_size} images; the slope needs two batch sizes")

    def start(here: float, there: float) -> float:
        """Return the time for no images at all, by a straight line with a slope of at least 0."""
        # If the larger batch seems to be the faster one, which is scatter, the slope is taken as 0.
        return here - max(0.0, (there - here) / images) * timed.load.batch_size

    # The roofline has a start of its own, such as reading the weights, which is no cost of launching.
    extra = start(timed.seconds, other.seconds) - start(timed.load.seconds(peaks), other.load.seconds(peaks))
    # Scatter may lead below 0 or above 1, where a share cannot be.
    return min(1.0, max(0.0, extra / timed.seconds))


def _ms(seconds: float) -> str:
    return f"{plain(1e3 * seconds)} ms"
