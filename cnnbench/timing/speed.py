"""A fair comparison of the speed of networks: they are timed in turns, in random order, over several rounds.

Whatever slows the machine for a while slows all networks alike, and cancels in the ratios of paired rounds. Medians are
reported with their intervals, every sample is kept, and reasons to doubt the times are reported with them.
"""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from cnnbench import progress
from cnnbench.engines import TORCH
from cnnbench.errors import Stopped, first_line
from cnnbench.hardware import cudnn_benchmark, on_device, random_generator, synchronise, tf32
from cnnbench.names import INFERENCE_PRECISIONS
from cnnbench.record import KINDS
from cnnbench.timing.conditions import Conditions, reasons_to_doubt
from cnnbench.timing.doubts import drifts, groupings
from cnnbench.timing.energy import measure_energy
from cnnbench.timing.stopwatch import Stopwatch
from cnnbench.timing.timed_network import FEWEST_CALLS, SpeedConfig, Subject, Timed, Way, settle

__all__ = ["KINDS", "SpeedConfig", "Stopwatch", "Subject", "Way", "measure_speed"]
YARDSTICK = {"cpu": (8, 64, 32), "cuda": (64, 256, 56)}
"""Images, channels, and height and width of the yardstick, by type of device: a float32 convolution that every round
times along with the networks. It takes some milliseconds, so that its launch is only a small part of its time."""


def measure_speed(
    subjects: Mapping[str, Subject],
    config: SpeedConfig,
    on_progress: Callable[[float, str], None] = lambda *_: None,
    stopwatch: Callable[[torch.device], Stopwatch] = Stopwatch,
) -> dict[str, dict[str, Any]]:
    """Time networks against each other.

    Args:
        subjects: Networks by name.
        config: Settings of the timing.
        on_progress: Callback that gets the share of the work that is done, 0 to 1, and a text about the next step.
        stopwatch: Function that makes the stopwatch of a device; tests pass another one.

    Returns:
        For every name, either ``{"error": reason}`` or these figures:

        - ``latency_ms_*``: wall time of one image through the network. The endings are ``median``, ``low`` and ``high``
          (the median's 95 % interval), ``p10`` and ``p90`` (percentiles), and ``mad`` (median absolute deviation).
        - ``inference_ms_*`` and ``images_per_s``: wall time of a batch of ``batch_size`` images in inference, and the
          throughput from its median.
        - ``train_step_ms_*`` and ``train_images_per_s``: wall time of a full training step (forward, backward,
          optimizer) with ``train_batch_size`` images, and the throughput from its median.
        - ``*_ms_device``: median of a GPU's own time for calls that were queued before the GPU started with them, so
          that it does not wait for the host in between. A queue holds about a thousand launches; beyond that the GPU
          may wait.
        - ``latency_ms_engine`` and ``inference_ms_engine``: medians of the same calls by the engine's own clock,
          without the call from Python; OpenVINO alone has one. From several processes it is the median share that lies
          within this clock, of the median of all calls.
        - ``images_per_s_queued`` and ``train_images_per_s_queued``: throughput on a GPU of several calls that are
          queued together, as in a loop that does not wait for each result.
        - ``train_forward_ms``, ``train_backward_ms`` and ``train_optimizer_ms``: medians of the parts of a training
          step; on a GPU those of queued calls.
        - ``cold_start_ms`` and ``cold_ms``: time of the very first call, and of the first call of each kind of work,
          both with compilation or recording. For an engine it includes reading and compiling the file.
        - ``peak_memory_bytes``: GPU memory that a training step allocates for weights, gradients, optimizer state and
          activations, without the images; None on a CPU.
        - ``peak_reserved_bytes``: GPU memory that torch holds for these; None on a CPU and for a CUDA graph.
        - ``energy_mj_per_image``, ``energy_mj_single_image``, ``idle_power_w`` and ``energy_facts``: energy of
          inference, if the config asks for it; see `cnnbench.timing.energy.measure_energy`.
        - ``samples_ms``: every sample by kind of work and round, and those of the ``yardstick``, a convolution that is
          the same in every run.
        - ``conditions``: state of the machine during the rounds, from `Conditions`.
        - ``suspect``: reasons to doubt the times.
    """
    ways = list(dict.fromkeys(subject.way or config.way for subject in subjects.values()))
    with on_device(config.device), _compiler(ways):
        for way in [way for way in ways if way.engine == TORCH]:
            # A way that fails here fails for each of its networks too, whose figures then hold the error.
            with contextlib.suppress(Exception):
                settle(way, replace(config, batch_size=2, train_batch_size=2, warmup_s=0.0))
        return _measure(subjects, config, on_progress, stopwatch(config.device))


def _warm_up(
    subjects: Mapping[str, Subject], config: SpeedConfig, on_progress: Callable[[float, str], None], watch: Stopwatch
) -> tuple[dict[str, Timed], dict[str, dict[str, Any]], list[str]]:
    """Build and warm up all networks.

    Returns:
        The networks by name; the failures by name; and why the device is broken, which is empty while it is not.
    """
    timed: dict[str, Timed] = {}
    failed: dict[str, dict[str, Any]] = {}
    broken: list[str] = []
    for index, (name, subject) in enumerate(subjects.items()):
        if broken:
            failed[name] = {"error": f"it was not tried: {broken[0]}"}
            continue
        # Warm-ups are the first half of the progress, and rounds the second.
        on_progress(0.5 * index / len(subjects), f"warm up {name}")
        try:
            timed[name] = Timed(subject, config, watch)
        except Stopped:
            raise
        except BaseException as error:  # whatever a network raises is its own failure; the others go on
            failed[name] = _failure(error)
            way = subject.way or config.way
            if way.precision_of("latency") in INFERENCE_PRECISIONS:
                failed[name]["error"] += f" (inference in {way.precision_of('latency')}; try --precision 32-true)"
            broken = _broken_by(name, failed[name], config.device)
    return timed, failed, broken


def _measure(
    subjects: Mapping[str, Subject], config: SpeedConfig, on_progress: Callable[[float, str], None], watch: Stopwatch
) -> dict[str, dict[str, Any]]:
    """Warm up all networks, time them in rounds, and return their figures; see `measure_speed`."""
    # The yardstick is made before the networks, since one of them may break the device.
    yardstick = _Yardstick(config)
    timed, failed, broken = _warm_up(subjects, config, on_progress, watch)
    start = time.monotonic()
    shuffler = random.Random(config.seed)
    with Conditions(config.device) as conditions, _no_collection():
        for round_index in range(0 if broken else config.rounds):
            if round_index >= config.fewest_rounds and time.monotonic() - start > config.most_s * len(timed):
                break
            on_progress(0.5 + 0.5 * round_index / config.rounds, f"round {round_index + 1} of {config.rounds}")
            with progress.hushed():
                broken = _take_round(timed, failed, yardstick, shuffler, config)
            if broken:
                break
            conditions.look()
    state = conditions.figures()
    if broken:
        _cut_to_whole_rounds([timed[name] for name in timed.keys() - failed.keys()], yardstick)
    _fail_untimed(timed, failed, broken)
    energy: dict[str, dict[str, Any]] = {}
    if config.energy and not broken:
        on_progress(1.0, "energy")
        with _no_collection():
            energy = measure_energy({name: timed[name] for name in subjects if name not in failed}, config.device)
    figures = {}
    for name in subjects:
        if name in failed:
            figures[name] = failed[name]
            continue
        figures[name] = timed[name].figures() | energy.get(name, {})
        doubts = [*broken, *reasons_to_doubt(state), *timed[name].all_doubts()]
        doubts += [*drifts(timed[name].rounds_ms), *groupings(timed[name].rounds_ms)]
        figures[name] |= {"conditions": state, "suspect": doubts}
        figures[name]["samples_ms"]["yardstick"] = yardstick.rounds_ms
    return figures


def _fail_untimed(timed: Mapping[str, Timed], failed: dict[str, dict[str, Any]], broken: Sequence[str]) -> None:
    """Note a failure for each network that has no sample of one of its kinds of work, and so cannot have figures."""
    reason = broken[0] if broken else "there was no round"
    for name in timed.keys() - failed.keys():
        if not all(any(rounds) for rounds in timed[name].rounds_ms.values()):
            failed[name] = {"error": f"it was not timed: {reason}"}


def _cut_to_whole_rounds(timed: Sequence[Timed], yardstick: _Yardstick) -> None:
    """Remove a round that was not finished, since ratios need rounds in which every network had its turn."""
    lists = [yardstick.rounds_ms]
    for one in timed:
        lists += one.rounds_ms.values()
    whole = min(map(len, lists))
    for rounds in lists:
        del rounds[whole:]


def _take_round(
    timed: Mapping[str, Timed],
    failed: dict[str, dict[str, Any]],
    yardstick: _Yardstick,
    shuffler: random.Random,
    config: SpeedConfig,
) -> list[str]:
    """Give every network its turns of one round, and note which networks fail.

    Args:
        timed: Networks that are ready, by name.
        failed: Errors of networks by name; the failures of this round are added.
        yardstick: Convolution that takes its turn first.
        shuffler: Random generator of the order of the turns.
        config: Settings of the timing.

    Returns:
        The reason why no further round is possible, as the only item of a list; an empty list otherwise. An error such
        as an illegal memory access leaves a GPU unusable for the rest of the process. Every later call then fails, no
        matter which network makes it.
    """
    try:
        # The yardstick ran before any network was built, so an error here is the device's.
        yardstick.take_turn()
    except RuntimeError as error:
        return [f"the timing ended early, as the device failed: {_failure(error)['error']}"]
    settle_s = config.first_settle_s
    for name, kind in _order(timed, shuffler):
        if name in failed or kind not in timed[name].sizes:
            continue
        try:
            timed[name].take_turn(kind, settle_s)
        except Stopped:
            raise
        except BaseException as error:
            failed[name] = _failure(error)
            broken = _broken_by(name, failed[name], config.device)
            if broken:
                return broken
        settle_s = config.settle_s
    return []


def _broken_by(name: str, failure: Mapping[str, Any], device: torch.device) -> list[str]:
    """Return, as a list, the reason to stop if a failed network left the device unusable; see `_take_round`."""
    try:
        # A GPU reports an error in a kernel only afterwards, at the latest when the host waits for it.
        synchronise(device)
        if device.type == "cuda":
            # After a CUDA graph could not be recorded, some versions of torch cannot free memory any more. This call
            # then raises the error.
            torch.cuda.empty_cache()
    except RuntimeError:
        return [f"the timing ended early, as {name} broke the device: {failure['error']}"]
    return []


@contextlib.contextmanager
def _compiler(ways: Sequence[Way]) -> Iterator[None]:
    """Run the body with an empty cache of ``torch.compile``, not with what an earlier run left on the disk.

    In the body, ``torch.compile`` raises an error where it would otherwise give up: after several compiled programs of
    one function, it would run the next one uncompiled, without a message. Nothing changes if no way compiles.
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
    """Run the body without Python's garbage collector, which runs once before it."""
    collecting = gc.isenabled()
    gc.collect()
    # A collection during a call would be part of its time.
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _order(names: Iterable[str], shuffler: random.Random) -> Iterator[tuple[str, str]]:
    """Yield the turns of a round as pairs of a network's name and a kind of work.

    The turns of one kind come one after the other, so that turns that are compared are close in time. The order of the
    kinds, and that of the networks within a kind, are random.
    """
    names = list(names)
    # A sample of full size is the list in random order.
    for kind in shuffler.sample(KINDS, len(KINDS)):
        yield from ((name, kind) for name in shuffler.sample(names, len(names)))


class _Yardstick:
    """Convolution that is the same in every run and shows how fast the machine is in each round.

    Attributes:
        rounds_ms: Wall times of the calls in each round.
    """

    def __init__(self, config: SpeedConfig) -> None:
        images, channels, pixels = YARDSTICK.get(config.device.type, YARDSTICK["cpu"])
        generator = random_generator(config.device, 0)
        shapes = (images, channels, pixels, pixels), (channels, channels, 3, 3)
        tensors = []
        for shape in shapes:
            tensor = torch.randn(*shape, generator=generator, device=generator.device).to(config.device)
            tensors.append(tensor.contiguous(memory_format=torch.channels_last))
        self._x, self._w = tensors
        self._config = config
        self.rounds_ms: list[list[float]] = []
        # The first call, which chooses a kernel and allocates memory, is not recorded.
        self._call()

    def _call(self) -> float:
        """Run the convolution once and return its wall time in milliseconds."""
        # Fixed flags, whatever the ways of the networks, so that yardsticks of different runs can be compared.
        with torch.inference_mode(), tf32(self._config.device, False), cudnn_benchmark(False):
            start = time.perf_counter()
            torch.nn.functional.conv2d(self._x, self._w, padding=1)
            synchronise(self._config.device)
            return (time.perf_counter() - start) * 1e3

    def take_turn(self) -> None:
        """Add the times of one round, after one call that does not count.

        In a run with engines it waits before and after, so that its threads and those of an engine do not meet. That
        is so in the processes of torch too, whose networks would otherwise not have such a pause.
        """
        time.sleep(self._config.pause_s)
        self._call()
        self.rounds_ms.append([round(self._call(), 4) for _ in range(FEWEST_CALLS)])
        time.sleep(self._config.pause_s)


def _failure(error: BaseException) -> dict[str, Any]:
    """Return the entry of a network that failed, with the first line of its error."""
    return {"error": first_line(error)}
