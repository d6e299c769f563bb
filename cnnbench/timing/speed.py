"""How fast networks are, compared fairly: all of them timed in turns, in random order, over several rounds.

Whatever slows the machine for a while then slows all alike, and drops out of the ratios of paired rounds. Medians are
reported with their intervals, every sample is kept, and what would make them doubtful is said beside them.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from cnnbench.errors import Stopped
from cnnbench.hardware import INFERENCE_PRECISIONS, cudnn_benchmark, on_device, random_generator, synchronise, tf32
from cnnbench.record import KINDS
from cnnbench.stats import median_interval
from cnnbench.timing.conditions import Conditions, reasons_to_doubt
from cnnbench.timing.stopwatch import Stopwatch
from cnnbench.timing.work import FEWEST_CALLS, SpeedConfig, Subject, Timed, Way, settle

__all__ = ["KINDS", "SpeedConfig", "Stopwatch", "Subject", "Way", "measure_speed"]
MOST_DRIFT = 0.02
"""Change of a time from the first half of the rounds to the second below which it is not called a drift."""
_TREND = 2.576
"""Standard deviations of Kendall's statistic beyond which rounds have a trend; those of 1 %."""
YARDSTICK = {"cpu": (8, 64, 32), "cuda": (64, 256, 56)}
"""Images, channels and pixels of a convolution that every round times beside the networks, in float32: some
milliseconds, so that starting it is not what takes the time."""


def measure_speed(
    subjects: Mapping[str, Subject], config: SpeedConfig, on_progress: Callable[[float, str], None] = lambda *_: None,
    stopwatch: Callable[[torch.device], Stopwatch] = Stopwatch,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Times networks against each other.

    Args:
        subjects: Networks by name.
        config: How.
        on_progress: Is told the share that is done, 0 to 1, and what comes next.
        stopwatch: Makes what times the calls; not the default in tests.

    Returns:
        For every name either the figures or ``{"error": reason}``. ``latency_ms_*`` is one image through the network,
        ``images_per_s`` the throughput at ``batch_size``, ``train_images_per_s`` that of a full training step
        (forward, backward, optimizer) at ``train_batch_size``, each from the median, with 10th and 90th percentile,
        median absolute deviation and the median's 95 % interval (``low``, ``high``) of the calls' wall times;
        ``*_ms_device`` medians of a GPU's own time, of calls that were queued before it began with them, so that it
        waits for nothing in between, up to about a thousand launches, which is what a queue holds;
        ``images_per_s_queued`` and ``train_images_per_s_queued`` the throughput of several calls that are queued
        together, as of a loop that does not wait for each result, on a GPU; ``train_forward_ms``,
        ``train_backward_ms`` and ``train_optimizer_ms`` medians of a step's parts, on a GPU of queued calls;
        ``cold_start_ms`` the very first call, with compilation or recording, ``cold_ms`` the first of each kind;
        ``peak_memory_bytes`` what a training step allocates on a GPU: weights, gradients, optimizer state and
        activations, without the images, and ``peak_reserved_bytes`` what torch holds for these (None on a CPU);
        ``samples_ms`` every sample, by kind and round, with those of the ``yardstick``, the same convolution in every
        run; ``conditions`` what the machine did meanwhile, ``suspect``
        reasons to doubt the times.
    """
    ways = list(dict.fromkeys(subject.way or config.way for subject in subjects.values()))
    with on_device(config.device), _compiler(ways):
        for way in ways:
            with contextlib.suppress(Exception):  # a way that fails does so for each network, which then says it
                settle(way, replace(config, batch_size=2, train_batch_size=2, warmup_s=0.0))
        return _measure(subjects, config, on_progress, stopwatch(config.device))


def _measure(
    subjects: Mapping[str, Subject], config: SpeedConfig, on_progress: Callable[[float, str], None], watch: Stopwatch
) -> dict[str, dict[str, Any]]:
    # Before the networks, one of which may break the device.
    yardstick = _Yardstick(config)
    timed: dict[str, Timed] = {}
    failed: dict[str, dict[str, Any]] = {}
    broken: list[str] = []
    for index, (name, subject) in enumerate(subjects.items()):
        if broken:
            failed[name] = {"error": f"it was not tried: {broken[0]}"}
            continue
        on_progress(0.5 * index / len(subjects), f"warm up {name}")
        try:
            timed[name] = Timed(subject, config, watch)
        except Stopped:
            raise
        except BaseException as error:  # whatever a network raises is its own failure, not the others'
            failed[name] = _failure(error)
            way = subject.way or config.way
            if way.precision_of("latency") in INFERENCE_PRECISIONS:
                failed[name]["error"] += f" (inference in {way.precision_of('latency')}; try --precision 32-true)"
            broken = _broken_by(name, failed[name], config.device)
    start = time.monotonic()
    shuffler = random.Random(config.seed)
    with Conditions(config.device) as conditions, _no_collection():
        for round_index in range(0 if broken else config.rounds):
            if round_index >= config.fewest_rounds and time.monotonic() - start > config.most_s * len(timed):
                break
            on_progress(0.5 + 0.5 * round_index / config.rounds, f"round {round_index + 1} of {config.rounds}")
            broken = _take_round(timed, failed, yardstick, shuffler, config.device)
            if broken:
                break
            conditions.look()
    state = conditions.figures()
    if broken:
        _cut_to_whole_rounds([timed[name] for name in timed.keys() - failed.keys()], yardstick)
    for name in timed.keys() - failed.keys():
        if not all(any(rounds) for rounds in timed[name].rounds_ms.values()):
            failed[name] = {"error": f"it was not timed: {broken[0] if broken else 'there was no round'}"}
    found = {name: failed[name] if name in failed else timed[name].figures() for name in subjects}
    for name in timed.keys() - failed.keys():
        doubts = [*broken, *reasons_to_doubt(state), *timed[name].all_doubts(), *_drifts(timed[name].rounds_ms)]
        found[name] |= {"conditions": state, "suspect": doubts}
        found[name]["samples_ms"]["yardstick"] = yardstick.rounds_ms
    return found


def _cut_to_whole_rounds(timed: Sequence[Timed], yardstick: _Yardstick) -> None:
    """Leave out the round that was not finished: ratios are of rounds in which everybody had a turn."""
    lists = [rounds for one in timed for rounds in one.rounds_ms.values()] + [yardstick.rounds_ms]
    whole = min(map(len, lists))
    for rounds in lists:
        del rounds[whole:]


def _take_round(
    timed: Mapping[str, Timed],
    failed: dict[str, dict[str, Any]],
    yardstick: _Yardstick,
    shuffler: random.Random,
    device: torch.device,
) -> list[str]:
    """Give every network its turns, and note which of them fails.

    Returns:
        Why no further round can be made, if so: an error such as an illegal access leaves a GPU unusable for the rest
        of the process, so that every later call fails, whosever it is.
    """
    try:
        yardstick.take_turn()
    except RuntimeError as error:
        return [f"the timing ended early, as the device failed: {_failure(error)['error']}"]
    for name, kind in _order(timed, shuffler):
        if name in failed or kind not in timed[name].sizes:
            continue
        try:
            timed[name].take_turn(kind)
        except Stopped:
            raise
        except BaseException as error:
            failed[name] = _failure(error)
            broken = _broken_by(name, failed[name], device)
            if broken:
                return broken
    return []


def _broken_by(name: str, failure: Mapping[str, Any], device: torch.device) -> list[str]:
    """Return that a network has left the device unusable, if it has; see `_take_round`."""
    try:
        synchronise(device)
        if device.type == "cuda":
            # Some versions of torch cannot free memory any more after a CUDA graph that could not be recorded.
            torch.cuda.empty_cache()
    except RuntimeError:
        return [f"the timing ended early, as {name} broke the device: {failure['error']}"]
    return []


@contextlib.contextmanager
def _compiler(ways: Sequence[Way]) -> Iterator[None]:
    """Inside, ``torch.compile`` starts from nothing, not from what an earlier run has left on the disk.

    It raises where it would give up: after several programs of one function it would run the next as written, and say
    so nowhere.
    """
    if not any(way.mode == "compile" for way in ways):
        yield
        return
    from torch._dynamo import config
    from torch._inductor.utils import fresh_inductor_cache

    limits = {"cache_size_limit": 64, "accumulated_cache_size_limit": 1024, "fail_on_cache_limit_hit": True}
    with config.patch(limits), fresh_inductor_cache():
        yield


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Inside, Python does not look for garbage."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _order(names: Iterable[str], shuffler: random.Random) -> Iterator[tuple[str, str]]:
    """The turns of a round: kind by kind, so that turns that are compared are close in time; both orders by chance."""
    names = list(names)
    for kind in shuffler.sample(KINDS, len(KINDS)):
        yield from ((name, kind) for name in shuffler.sample(names, len(names)))


class _Yardstick:
    """A convolution that is the same in every run, and says how fast the machine is in each round."""

    def __init__(self, config: SpeedConfig) -> None:
        images, channels, pixels = YARDSTICK.get(config.device.type, YARDSTICK["cpu"])
        generator = random_generator(config.device, 0)
        shapes = (images, channels, pixels, pixels), (channels, channels, 3, 3)
        tensors = [torch.randn(*shape, generator=generator, device=generator.device) for shape in shapes]
        tensors = [tensor.to(config.device) for tensor in tensors]
        self._x, self._w = (t.contiguous(memory_format=torch.channels_last) for t in tensors)
        self._config = config
        self.rounds_ms: list[list[float]] = []
        self._call()

    def _call(self) -> float:
        with torch.inference_mode(), tf32(self._config.device, False), cudnn_benchmark(False):
            start = time.perf_counter()
            torch.nn.functional.conv2d(self._x, self._w, padding=1)
            synchronise(self._config.device)
            return (time.perf_counter() - start) * 1e3

    def take_turn(self) -> None:
        self._call()
        self.rounds_ms.append([round(self._call(), 4) for _ in range(FEWEST_CALLS)])


def _drifts(rounds_ms: Mapping[str, list[list[float]]]) -> list[str]:
    """What became slower or faster over the rounds, by a trend that is beyond chance (Kendall 1938) and by more from
    one half to the other than the median is uncertain, by its interval; at most one line."""
    found = []
    for kind, rounds in rounds_ms.items():
        middles = [statistics.median(times) for times in rounds]
        interval = median_interval(rounds)
        n, half = len(middles), len(middles) // 2
        if interval.low is None or interval.high is None:
            continue
        change = abs(statistics.median(middles[-half:]) - statistics.median(middles[:half]))
        rising = sum((b > a) - (b < a) for a, b in itertools.combinations(middles, 2))
        trend = (abs(rising) - 1) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
        if trend > _TREND and change > max((interval.high - interval.low) / 2, MOST_DRIFT * interval.estimate):
            found.append(kind)
    return [f"{' and '.join(found)} drifted over the rounds"] if found else []


def _failure(error: BaseException) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
