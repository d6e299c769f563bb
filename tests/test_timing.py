"""Timing and confusion analysis against closed forms and published values."""

from __future__ import annotations

import gc
import itertools
import json
import os
import platform
import random
import re
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from cnnbench import hardware
from cnnbench.cli import main
from cnnbench.confusion import Confusion, accuracy, most_confused
from cnnbench.errors import UserError
from cnnbench.models import get_model
from cnnbench.report.speed_tables import time_ratio
from cnnbench.timing.conditions import Conditions, reasons_to_doubt
from cnnbench.timing.gpu_state import GpuState, summary
from cnnbench.timing.processes import ProcessKilledError, in_groups, in_process, in_processes, pooled
from cnnbench.timing.speed import KINDS, SpeedConfig, Stopwatch, Subject, Way, measure_speed
from cnnbench.timing.stopwatch import Lap
from cnnbench.timing.sweep import sweep
from cnnbench.timing.timed_network import Timed


def test_accuracy_and_confusions_come_from_the_counts() -> None:
    counts = [[8, 2, 0], [5, 5, 0], [0, 1, 9]]
    assert accuracy(counts)["test_accuracy"] == pytest.approx(22 / 30)
    assert most_confused(counts, 2) == [Confusion(1, 0, 5, 0.5), Confusion(0, 1, 2, 0.2)]
    assert most_confused([[3, 0], [0, 3]]) == []


CPU = torch.device("cpu")


def _subject(*layers: nn.Module, channels: int = 3) -> Subject:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    return Subject(lambda: nn.Sequential(*layers, *head), (3, 8, 8), 10)


class _FailsLater(nn.Module):
    """Works in the three calls of the shortest warm-up, and then no more."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 10)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3:
            raise TypeError("not any more")
        return self.linear(x.flatten(1))


def test_speed_takes_every_kind_for_every_network_in_each_round() -> None:
    subjects = {"a": _subject(nn.Conv2d(3, 4, 3), channels=4), "b": _subject(nn.BatchNorm2d(3))}
    config = SpeedConfig(CPU, "32-true", batch_size=4, train_batch_size=2, rounds=3, block_s=0, warmup_s=0.01)
    told: list[float] = []
    figures = measure_speed(subjects, config, lambda share, _: told.append(share))
    assert list(figures) == ["a", "b"]
    for found in figures.values():
        assert {kind: len(found["samples_ms"][kind]) for kind in KINDS} == dict.fromkeys(KINDS, 3)
        assert found["latency_ms_low"] is None  # three rounds are too few for an interval
        assert found["latency_ms_p10"] <= found["latency_ms_median"] <= found["latency_ms_p90"]
        assert found["images_per_s"] == pytest.approx(4000 / found["inference_ms_median"])
        assert found["train_images_per_s"] == pytest.approx(2000 / found["train_step_ms_median"])
        assert found["peak_memory_bytes"] is None
    assert told == sorted(told)


def test_short_calls_come_three_a_turn_after_one_that_does_not_count() -> None:
    counted = nn.Flatten()
    calls: list[int] = []
    counted.register_forward_hook(lambda *_: calls.append(1))
    config = SpeedConfig(CPU, "32-true", 1, 1, rounds=4, block_s=10, block_calls=3, warmup_s=0)
    subject = Subject(lambda: nn.Sequential(counted, nn.Linear(192, 10)), (3, 8, 8), 10)
    found = measure_speed({"a": subject}, config)["a"]["samples_ms"]
    assert {k: [len(times) for times in v] for k, v in found.items()} == dict.fromkeys((*KINDS, "yardstick"), 4 * [3])
    assert len(calls) == 3 * (3 + 4 * (1 + 3))  # for each kind the cold call, two that are warm, and four turns


def test_beside_engines_the_calls_at_the_start_of_a_turn_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    turns: list[tuple[float, int, int]] = []
    asked: list[float] = []

    class Noting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(time.perf_counter())
            return super().forward(x.flatten(1))

    def take_turn(self: Timed, kind: str, settle_s: float) -> None:
        begin, before = time.perf_counter(), len(calls)
        asked.append(settle_s)
        usual(self, kind, settle_s)
        counted = len(self.rounds_ms[kind][-1])
        assert 0 < counted < len(calls) - before
        turns.append((begin, counted, len(calls)))

    usual = Timed.take_turn
    monkeypatch.setattr(Timed, "take_turn", take_turn)
    config = SpeedConfig(CPU, "32-true", 1, 1, rounds=3, warmup_s=0).beside_engines()
    assert config.settling() == {"settle_s": 0.3, "first_settle_s": 0.7}
    assert config.pause_s > 0
    on_gpu = replace(config, device=torch.device("cuda"), settle_s=0.0, first_settle_s=0.0, pause_s=0.0)
    on_gpu = on_gpu.beside_engines()
    assert set(on_gpu.settling().values()) == {0.0}
    assert on_gpu.pause_s == config.pause_s  # threads of an engine spin there too
    subject = Subject(lambda: Noting(192, 10), (3, 8, 8), 10, kinds=("latency",))
    config = replace(config, settle_s=0.02, first_settle_s=0.1)
    measure_speed({"a": subject, "b": subject}, config)
    assert asked == [0.1, 0.02] * 3  # a round has two turns
    for settle_s, (begin, counted, end) in zip(asked, turns, strict=True):
        # The calls that count are the last ones of a turn.
        assert calls[end - counted] - begin >= settle_s


def test_a_long_call_has_one_before_it_that_does_not_count_beside_engines() -> None:
    calls: list[int] = []

    class Slow(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.03)
            calls.append(1)
            return super().forward(x.flatten(1))

    config = SpeedConfig(CPU, "32-true", 1, 1, rounds=3, warmup_s=0)
    for beside, extra in ((replace(config, first_settle_s=0.01), 1), (config, 0)):
        calls.clear()
        subject = Subject(lambda: Slow(192, 10), (3, 8, 8), 10, kinds=("latency",))
        found = measure_speed({"a": subject}, beside)["a"]["samples_ms"]["latency"]
        assert [len(times) for times in found] == [1, 1, 1]
        assert len(calls) == 3 + 3 * (1 + extra)  # the cold call, two that are warm, and three turns


def test_a_network_that_fails_does_not_stop_the_others() -> None:
    subjects = {"bad": _subject(nn.Conv2d(99, 4, 3)), "good": _subject(nn.Identity())}
    config = SpeedConfig(CPU, "32-true", 2, 2, rounds=1, block_s=0, warmup_s=0)
    figures = measure_speed(subjects, config)
    assert figures["bad"]["error"].startswith("RuntimeError: ")
    late = {"late": Subject(_FailsLater, (3, 8, 8), 10), "good": _subject(nn.Identity())}
    figures = measure_speed(late, config)
    assert figures["late"]["error"] == "TypeError: not any more"
    assert "latency_ms_median" in figures["good"]
    assert "latency_ms_median" in figures["good"]


def test_the_order_is_drawn_anew_in_every_round_and_no_garbage_is_collected() -> None:
    order: list[tuple[str, bool]] = []

    class Says(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            order.append((self.name, gc.isenabled()))
            return x.flatten(1)[:, :10]

    subjects = {n: Subject(partial(Says, n), (3, 8, 8), 10, kinds=("latency",)) for n in "abcd"}
    config = SpeedConfig(CPU, "32-true", 1, 1, rounds=12, block_s=0, block_calls=1, warmup_s=0.0)
    measure_speed(subjects, config)
    timed = order[4 * 3 :]  # after the warm-up
    rounds = ["".join(dict.fromkeys(n for n, _ in timed[i : i + 8])) for i in range(0, len(timed), 8)]
    assert len(rounds) == 12
    assert all(sorted(names) == list("abcd") for names in rounds)
    assert len(set(rounds)) > 3  # of 24 orders
    assert not any(collecting for _, collecting in timed)
    assert gc.isenabled()


def test_each_network_is_compiled_however_many_share_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch gives up after eight programs of one function, and then runs it as written without a word."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    subjects = {
        str(n): Subject(partial(nn.Sequential, nn.Flatten(), nn.Linear(192, 10)), (3, 8, 8), 10, way=compiled)
        for n in range(4)
        for compiled in [Way("32-true", mode="compile")]
    }
    found = measure_speed(subjects, SpeedConfig(CPU, "32-true", 2, 3, rounds=1, block_s=0, warmup_s=0))
    assert not any("error" in figures for figures in found.values())
    assert counter.frame_count == (1 + 4) * len(KINDS)  # the small network that settles the process is the first


def test_a_way_that_fails_is_an_error_of_its_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", no_compiler)
    ways = {"eager": Way("32-true"), "compiled": Way("32-true", mode="compile")}
    subjects = {name: replace(_subject(nn.Identity()), way=way) for name, way in ways.items()}
    found = measure_speed(subjects, SpeedConfig(CPU, "32-true", 2, 2, rounds=1, block_s=0, warmup_s=0))
    assert found["compiled"] == {"error": "RuntimeError: no compiler here"}
    assert found["eager"]["latency_ms_median"] > 0


class _TakesTime(nn.Module):
    """Moves a clock of the test forward by so many seconds per image, and computes next to nothing."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 10)
        self.clock, self.seconds = clock, seconds

    def forward(self, x: Tensor) -> Tensor:
        self.clock[0] += self.seconds * len(x)
        return self.linear(x.flatten(1))


def test_times_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("cnnbench.timing.speed.time.perf_counter", lambda: clock[0])
    subjects = {
        name: Subject(lambda seconds=seconds: _TakesTime(clock, seconds), (3, 8, 8), 10)  # type: ignore[misc]
        for name, seconds in (("quick", 0.002), ("slow", 0.02))
    }
    figures = measure_speed(subjects, SpeedConfig(CPU, "32-true", batch_size=8, train_batch_size=4, rounds=3))
    assert figures["quick"]["latency_ms_median"] == pytest.approx(2)
    assert figures["slow"]["latency_ms_median"] == pytest.approx(20)
    assert figures["slow"]["images_per_s"] == pytest.approx(50)
    assert figures["slow"]["train_step_ms_median"] == pytest.approx(80)
    assert figures["quick"]["train_images_per_s"] == pytest.approx(500)


class _Slower(_TakesTime):
    """Takes longer with every image that it has seen."""

    def __init__(self, clock: list[float], seconds: float, growth: float = 0.0) -> None:
        super().__init__(clock, seconds)
        self.growth = growth

    def forward(self, x: Tensor) -> Tensor:
        self.seconds *= 1 + self.growth
        return super().forward(x)


def test_a_difference_is_found_within_the_noise_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading of the clock adds noise; the same network twice does not differ, one 10 % slower does."""
    clock, noise = [0.0], random.Random(0)

    def read() -> float:
        clock[0] += noise.expovariate(1 / 2e-5)
        return clock[0]

    monkeypatch.setattr("cnnbench.timing.speed.time.perf_counter", read)
    subjects = {
        name: Subject(lambda s=seconds: _Slower(clock, s), (3, 8, 8), 10)  # type: ignore[misc]
        for name, seconds in (("a", 1e-3), ("b", 1e-3), ("c", 1.1e-3))
    }
    figures = measure_speed(subjects, SpeedConfig(CPU, "32-true", batch_size=8, train_batch_size=4))
    for kind in KINDS:
        assert not time_ratio(figures["a"], figures["b"], kind).differs
        ratio = time_ratio(figures["c"], figures["a"], kind)
        assert ratio.low > 1
        assert ratio.estimate == pytest.approx(1.1, abs=0.02)
    assert figures["a"]["latency_ms_low"] <= figures["a"]["latency_ms_median"] <= figures["a"]["latency_ms_high"]


def test_a_drift_is_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("cnnbench.timing.speed.time.perf_counter", lambda: clock[0])
    subjects = {
        name: Subject(lambda g=growth: _Slower(clock, 1e-3, g), (3, 8, 8), 10)  # type: ignore[misc]
        for name, growth in (("steady", 0.0), ("warming", 0.002))
    }
    figures = measure_speed(subjects, SpeedConfig(CPU, "32-true", batch_size=8, train_batch_size=4))
    words = "latency and inference and training drifted"
    assert not any("drifted" in reason for reason in figures["steady"]["suspect"])
    assert any(words in reason for reason in figures["warming"]["suspect"])
    few = {"warming": Subject(lambda: _Slower(clock, 1e-3, 0.002), (3, 8, 8), 10)}  # 3 % in all, in as few as 6 rounds
    found = measure_speed(few, SpeedConfig(CPU, "32-true", 8, 4, rounds=6, fewest_rounds=6, warmup_s=0.0))["warming"]
    assert any("latency" in reason and "drifted" in reason for reason in found["suspect"])


class _FakeDevice(Stopwatch):
    """A device with a queue: a call returns at once, and 5 ms later its work is done."""

    def __init__(self, clock: list[float], waits: bool) -> None:
        super().__init__(CPU)
        self.clock, self.waits, self.busy_until = clock, waits, 0.0

    has_queue = True

    def queued(self, call: Callable[[], object], wall_ms: float) -> Lap:
        self.begin()
        call()
        return self.end()

    def wait(self) -> None:
        self.busy_until = max(self.busy_until, self.clock[0]) + 5e-3
        if self.waits:
            self.clock[0] = self.busy_until

    def end(self) -> Lap:
        return super().end()._replace(device_ms=5.0)


@pytest.mark.parametrize("waits", [True, False])
def test_a_device_that_nobody_waits_for_is_suspect(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def read() -> float:
        clock[0] += 1e-6
        return clock[0]

    monkeypatch.setattr("cnnbench.timing.speed.time.perf_counter", read)
    config = SpeedConfig(CPU, "32-true", 8, 4, rounds=6, warmup_s=0.05)
    found = measure_speed(
        {"a": _subject(nn.Identity())}, config, stopwatch=lambda device: _FakeDevice(clock, waits)
    )["a"]  # fmt: skip
    assert found["latency_ms_device"] == 5
    assert found["latency_ms_median"] == pytest.approx(5 if waits else 0, abs=0.01)
    assert found["images_per_s_queued"] > 0
    assert "latency_ms_queued" not in found
    assert any("was not waited for" in reason for reason in found["suspect"]) is not waits


class _HalfTheBatch(nn.Module):
    """In evaluation it leaves out half of the images, as if the batch had not fitted."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((x if self.training or len(x) == 1 else x[::2]).flatten(1))


def test_a_changed_batch_is_suspect() -> None:
    config = SpeedConfig(CPU, "32-true", 8, 4, rounds=1, block_s=0, warmup_s=0)
    subjects = {"half": Subject(_HalfTheBatch, (3, 8, 8), 10), "whole": _subject(nn.Identity())}
    found = measure_speed(subjects, config)
    assert "inference returned 4 results for 8 images" in found["half"]["suspect"]
    assert not any("returned" in reason for reason in found["whole"]["suspect"])


def test_zero_inputs_are_suspect_and_given_images_are_used() -> None:
    seen: list[Tensor] = []

    class Keeps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return x

    pool = torch.arange(24.0).view(24, 1, 1, 1).expand(24, 3, 8, 8)
    config = SpeedConfig(CPU, "32-true", 4, 2, rounds=2, block_s=0, warmup_s=0)
    given = {"zero": torch.zeros(24, 3, 8, 8), "real": pool}
    found = {
        name: measure_speed({name: replace(_subject(Keeps()), images=partial(torch.narrow, x, 0, 0))}, config)[name]
        for name, x in given.items()
    }
    assert any("inputs are constant" in reason for reason in found["zero"]["suspect"])
    assert not any("inputs are constant" in reason for reason in found["real"]["suspect"])
    batches = {tuple(x[:, 0, 0, 0].tolist()) for x in seen if len(x) == 4}
    assert len(batches) > 2  # in rotation, each drawn at random
    assert {value for batch in batches for value in batch} <= set(range(12))  # the first so many


def test_a_step_is_split_into_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("cnnbench.timing.speed.time.perf_counter", lambda: clock[0])
    subject = Subject(lambda: _TakesTime(clock, 0.02), (3, 8, 8), 10)
    found = measure_speed({"a": subject}, SpeedConfig(CPU, "32-true", 8, 4, rounds=2, warmup_s=0.5))["a"]
    parts = {part: found[f"train_{part}_ms"] for part in ("forward", "backward", "optimizer")}
    assert parts == pytest.approx({"forward": 80, "backward": 0, "optimizer": 0})
    assert found["cold_ms"] == pytest.approx({"latency": 20, "inference": 160, "training": 80})


def test_a_warm_up_ends_when_calls_do_not_become_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("cnnbench.timing.speed.time.perf_counter", lambda: clock[0])

    class Warms(_TakesTime):
        """Each call takes some per cent less than the one before, down to a floor."""

        def forward(self, x: Tensor) -> Tensor:
            self.seconds = max(0.92 * self.seconds, 1e-3)
            return super().forward(x)

    subject = Subject(lambda: Warms(clock, 0.1), (3, 8, 8), 10, kinds=("latency",))
    config = SpeedConfig(CPU, "32-true", 8, 4, rounds=8, warmup_s=60)
    warm = measure_speed({"a": subject}, config)["a"]
    assert warm["latency_ms_median"] == pytest.approx(1)
    assert warm["cold_ms"]["latency"] == pytest.approx(92)
    early = measure_speed({"a": subject}, replace(config, warmup_s=0.7))["a"]
    assert "latency still became faster when its warm-up ended" in early["suspect"]
    assert not any("became faster" in reason for reason in warm["suspect"])
    long = Subject(lambda: Warms(clock, 10.0), (3, 8, 8), 10, kinds=("latency",))
    few = measure_speed({"a": long}, replace(config, rounds=1, warmup_s=5))["a"]
    assert "latency still became faster when its warm-up ended" not in few["suspect"]  # by a tenth: too few to tell
    steep = Subject(lambda: _Slower(clock, 10.0, -0.2), (3, 8, 8), 10, kinds=("latency",))
    assert (
        "latency still became faster when its warm-up ended"
        in measure_speed({"a": steep}, replace(config, rounds=1, warmup_s=5))["a"]["suspect"]
    )


def test_ways_are_checked_and_compiled_networks_are_timed() -> None:
    for way, message in (
        (Way("32-true", mode="cuda-graph"), "'cuda-graph' needs a CUDA device, not cpu"),
        (Way("tf32"), "'tf32' needs a CUDA device"),
        (Way("32-true", mode="fast"), "unknown mode 'fast'"),
    ):
        with pytest.raises(UserError, match=message):
            way.check(CPU)
    head = Subject(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), (3, 8, 8), 10, kinds=("latency",))
    subjects = {way.words: replace(head, way=way) for way in (Way("32-true"), Way("32-true", False, "compile"))}
    found = measure_speed(subjects, SpeedConfig(CPU, "32-true", 2, 2, rounds=2, warmup_s=0.1))
    eager, compiled = found["32-true, channels_last, eager"], found["32-true, contiguous, compile"]
    assert compiled["cold_start_ms"] > 20 * eager["latency_ms_median"]  # compilation is in the first call
    assert "train_step_ms_median" not in eager


class _Fits(nn.Module):
    """Has room for eight images."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        return x.flatten(1)[:, :10]


def test_the_largest_batch_is_found_by_doubling() -> None:
    config = SpeedConfig(CPU, "32-true", 1, 1, rounds=2, warmup_s=0.0)
    subjects = {
        "small": Subject(_Fits, (3, 8, 8), 10),
        "broken": Subject(lambda: nn.Linear(7, 1), (3, 8, 8), 10),
        "flat": Subject(nn.Flatten, (3, 8, 8), 10),
    }
    found = sweep(subjects, config, 16)
    assert [point["batch_size"] for point in found["small"].batches] == [1, 2, 4, 8]
    assert found["small"].end.startswith("16 does not fit: RuntimeError: DefaultCPUAllocator")
    assert [point["batch_size"] for point in found["flat"].batches] == [1, 2, 4, 8, 16]
    assert found["flat"].end == "32 was not tried: more than 16"
    assert all(len(point["samples_ms"]["inference"]) == 2 for point in found["flat"].batches)
    assert found["broken"].batches == []
    assert found["broken"].end.startswith("1 failed: RuntimeError: ")


def test_what_does_not_fit_beside_others_is_timed_alone() -> None:
    there: list[nn.Module] = []

    class Crowded(nn.Module):
        """Has room for one network at four images, and for two below."""

        def __init__(self) -> None:
            super().__init__()
            self._here = weakref.ref(self)
            there.append(self._here)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            if len(x) >= 4 and sum(ref() is not None for ref in there) > 1:
                raise RuntimeError("out of memory")
            return x.flatten(1)[:, :10]

    config = SpeedConfig(CPU, "32-true", 1, 1, rounds=1, warmup_s=0.0)
    found = sweep({"a": Subject(Crowded, (3, 8, 8), 10), "b": Subject(Crowded, (3, 8, 8), 10)}, config, 4)
    assert [[p["batch_size"] for p in found[n].batches] for n in "ab"] == [[1, 2, 4], [1, 2, 4]]
    assert [p.get("alone") for p in found["b"].batches] == [None, None, True]


def test_a_sweep_ends_where_batches_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("cnnbench.timing.speed.time.perf_counter", lambda: clock[0])

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            clock[0] += 0.4 * len(x)
            return x.flatten(1)[:, :10]

    config = SpeedConfig(CPU, "32-true", 1, 1, rounds=1, warmup_s=0.0)
    found = sweep({"slow": Subject(Slow, (3, 8, 8), 10)}, config, 1024)["slow"]
    assert [round(point["inference_ms_median"]) for point in found.batches] == [400, 800, 1600]
    assert found.end == "8 was not tried: 4 take 1.6 s"


def test_processes_are_pooled_and_many_count_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("cnnbench.timing.speed.time.perf_counter", lambda: clock[0])
    config = SpeedConfig(CPU, "32-true", 8, 4, rounds=6, warmup_s=0.1)

    def run(first: float, second: float) -> dict[str, dict[str, object]]:
        times = {"a": first, "b": second}
        subjects = {n: Subject(lambda s=s: _TakesTime(clock, s), (3, 8, 8), 10) for n, s in times.items()}  # type: ignore[misc]
        return measure_speed(subjects, config)

    runs = [run(0.002 + 0.0001 * n, 0.002) for n in range(6)]
    two, six = ({name: pooled([r[name] for r in runs[:count]]) for name in "ab"} for count in (2, 6))
    assert two["a"]["process_rounds"] == [6, 6]
    assert len(two["a"]["samples_ms"]["latency"]) == 12
    assert two["b"]["images_per_s"] == pytest.approx(500)
    few, many = (time_ratio(found["a"], found["b"], "latency") for found in (two, six))
    assert (few.low, few.high) == pytest.approx((1.0, 1.05))
    assert (many.low, many.high) == pytest.approx((1.0, 1.25))  # six values, from 1.0 to 1.25: no more is known
    doubts = [["others kept 1.4 processors busy"], ["others kept 2.3 processors busy", "odd"], ["odd"]]
    doubtful = [runs[0]["a"] | {"suspect": reasons} for reasons in doubts]
    assert pooled(doubtful)["suspect"] == [
        "others kept 2.3 processors busy (at most, in 2 of 3 processes)", "odd (in 2 of 3 processes)"
    ]  # fmt: skip
    failed = pooled([{"error": "no"}, runs[0]["a"]])
    assert failed == {"error": "no"}


def _some_figures(config: SpeedConfig, subject_name: str) -> dict[str, dict[str, object]]:
    """Runs in a process of its own."""
    subject = Subject(nn.Flatten, (3, 8, 8), 10, kinds=("latency",))
    found = measure_speed({subject_name: subject}, config)
    found[subject_name]["rounds"] = config.rounds
    found[subject_name]["process"] = os.getpid()
    return found


def test_fresh_processes_share_the_rounds_and_the_time() -> None:
    config = SpeedConfig(CPU, "32-true", 1, 1, rounds=7, fewest_rounds=4, warmup_s=0.0)
    started: list[int] = []
    found = in_processes(2, config, _some_figures, "flat", on_start=started.append)["flat"]
    assert started == [0, 1]
    assert found["process_rounds"] == [4, 4]
    assert found["rounds"] == 4
    assert found["process"] != os.getpid()
    assert len(found["process_cold_ms"]) == len(found["process_conditions"]) == 2
    with pytest.raises(UserError, match="was killed"):
        in_process(os._exit, 9)


def _crashes_or_figures(config: SpeedConfig, subject_name: str) -> dict[str, dict[str, object]]:
    """Runs in a process of its own."""
    if subject_name == "crashes":
        os.abort()
    return _some_figures(config, subject_name)


@pytest.mark.usefixtures("quick_processes")
def test_a_crash_in_one_group_of_processes_leaves_the_others() -> None:
    config = SpeedConfig(CPU, "32-true", 1, 1, rounds=4, fewest_rounds=4, warmup_s=0.0)
    started: list[str] = []
    groups = {"bad": ["crashes"], "good": ["flat"]}
    found = in_groups(2, config, _crashes_or_figures, groups, lambda _, group: started.append(group), groups)
    assert "was killed" in found["crashes"]["error"]
    assert found["flat"]["process_rounds"] == [2, 2]
    assert sorted(started) == ["bad", "good", "good"]
    with pytest.raises(ProcessKilledError):
        in_groups(2, config, _crashes_or_figures, groups)


@pytest.mark.usefixtures("quick_processes")
def test_a_fresh_process_has_as_many_threads_as_this_one() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert in_process(torch.get_num_threads) == threads
    finally:
        torch.set_num_threads(before)


def _stat(path: Path, busy_s: float, stolen_s: float = 0.0) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    path.write_text(f"cpu  {int(busy_s * ticks)} 0 0 0 0 0 0 {int(stolen_s * ticks)} 0 0\n")


def test_other_processes_make_a_time_suspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's counts are a file of the test."""
    stat, cpuinfo = tmp_path / "stat", tmp_path / "cpuinfo"
    _stat(stat, 100)
    conditions = Conditions(CPU, stat)
    assert reasons_to_doubt(conditions.figures()) == []
    _stat(stat, 160)
    (reason,) = reasons_to_doubt(conditions.figures())
    assert re.match(r"other processes kept [\d.]+ processors busy", reason)
    _stat(stat, 100, 60)
    (reason,) = reasons_to_doubt(conditions.figures())
    assert reason.startswith("the hypervisor took away ")
    assert "others_cores" not in Conditions(CPU, tmp_path / "none").figures()
    _stat(stat, 100)
    bursts = Conditions(CPU, stat)
    with monkeypatch.context() as patched:
        clock = itertools.count(time.perf_counter() + 1)  # a second from look to look
        patched.setattr("cnnbench.timing.conditions.time.perf_counter", lambda: float(next(clock)))
        for busy in (100, 100, 100.7, 100.7, 101.4, *[101.4] * 15):
            _stat(stat, busy)
            bursts.look()
        assert reasons_to_doubt(bursts.figures()) == ["other processes kept 0.5 processors busy in 2 of 20 looks"]
    clocked = Conditions(CPU, stat, cpuinfo)
    for fastest in (3000, 2500, 2400):
        cpuinfo.write_text(f"cpu MHz\t\t: 800.0\nbogus: 1\ncpu MHz\t\t: {fastest}.5\n")
        clocked.look()
    assert clocked.figures()["cpu_mhz_range"] == [2400.5, 3000.5]
    assert reasons_to_doubt(clocked.figures()) == ["the processor's clock was between 2400 and 3000 MHz"]


def test_a_busy_machine_is_seen_by_a_timing_and_said_in_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """From the kernel's counts to the mark in every table of the command."""
    stat, busy_s = tmp_path / "stat", itertools.count(0, 10_000)
    _stat(stat, next(busy_s))

    class Busy(Conditions):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device, stat)

        def look(self) -> None:
            _stat(stat, next(busy_s))

    monkeypatch.setattr("cnnbench.timing.speed.Conditions", Busy)
    options = "--device=cpu --batch_size=2 --train_batch_size=2 --rounds=1 --sweep --max_batch_size=1 --limits --out=p"
    assert main(["speed", "LeNet5", "SimpleCNN", *options.split()]) == 0
    out = capsys.readouterr().out
    before, sweep = out.split("Inference by batch size")
    marked = [line.count("?") for line in before.split("\n") if "│ SimpleCNN" in line]
    # Latency with its deciles, both throughputs, the first call; parts of a step; three ratios; twice three shares.
    assert marked == [6, 3, 3, 6]
    assert len(re.findall(r"(LeNet5|SimpleCNN) *│ +1 │ +[\d.]+\? │ .* │ +[\d,]+\? │", sweep)) == 2
    busy = "other processes kept [\\d.]+ processors busy"
    assert re.search(rf"^suspect, marked \? \(LeNet5, SimpleCNN\): {busy}", out, re.MULTILINE)
    assert re.search(rf"^suspect, marked \? \(LeNet5, 1 images; SimpleCNN, 1 images\): {busy}", out, re.MULTILINE)


def test_a_throttled_or_shared_gpu_is_suspect() -> None:
    calm = {
        "clock_mhz": 1900.0, "max_clock_mhz": 1980.0, "throttled_clock_mhz": 1900.0, "throttle_reasons": 0x4,
        "other_gpu_processes": 0, "other_gpu_bytes": 2**29,
    }  # fmt: skip
    assert reasons_to_doubt(calm) == []
    assert "1200 of 1980 MHz, throttled (0x4)" in reasons_to_doubt(calm | {"throttled_clock_mhz": 1200.0})[0]
    assert reasons_to_doubt(calm | {"clock_mhz": 300.0, "throttled_clock_mhz": None}) == []  # slow, but by no reason
    assert "2 other processes" in reasons_to_doubt(calm | {"other_gpu_processes": 2})[0]
    hidden = calm | {"other_gpu_processes": None}  # in a container
    assert reasons_to_doubt(hidden) == []
    assert "10.0 GiB of the GPU's memory were not" in reasons_to_doubt(hidden | {"other_gpu_bytes": 10 * 2**30})[0]
    assert "not known: no driver" in reasons_to_doubt({"gpu_state_error": "no driver"})[0]


def _state(clock: float, temperature: float, power: float | None, reasons: int, state: str) -> dict[str, object]:
    return {
        "clock_mhz": clock, "max_clock_mhz": 1980, "temperature_c": temperature, "power_w": power,
        "power_limit_w": 700.0, "throttle_reasons": reasons, "power_state": state,
    }  # fmt: skip


def test_a_gpus_states_are_summed_up_by_the_worst() -> None:
    states = [
        _state(345, 30, 80.5, 0x1, "P8"),  # idle
        _state(1900, 61, None, 0x0, "P0"),
        _state(1410, 70, 690.1, 0x4, "P0"),
        _state(1800, 66, 600.0, 0x20, "P1"),
    ]
    assert summary(states) == {
        "clock_mhz": 1410, "max_clock_mhz": 1980, "temperature_c": 70, "power_w": 690.1, "power_limit_w": 700.0,
        "throttled_clock_mhz": 1410, "throttle_reasons": 0x24, "power_state": "P1", "gpu_looks": 3,
    }  # fmt: skip
    assert summary(states[:1])["clock_mhz"] == 345


def _fake_nvml(names: str = "new") -> SimpleNamespace:
    """NVML of a GPU that is throttled by its power, with two processes on it, and without a power limit.

    Args:
        names: Of the question for the reasons: ``new`` or ``old`` ones of the package, or ``old driver`` for a package
            that has both and a driver that answers to the old one.
    """
    no_such, forbidden = type("NotSupported", (Exception,), {}), type("NoPermission", (Exception,), {})
    not_found = type("FunctionNotFound", (Exception,), {})
    looks = itertools.count(1)

    def no_limit(gpu: str) -> int:
        raise no_such

    def not_in_this_driver(gpu: str) -> int:
        raise not_found

    new, old = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
    reasons = {
        "new": {new: lambda gpu: 0x4},
        "old": {old: lambda gpu: 0x4},
        "old driver": {new: not_in_this_driver, old: lambda gpu: 0x4},
    }[names]

    def handle(uuid: str) -> str:
        assert uuid == "GPU-1-2"
        return "the GPU"

    return SimpleNamespace(
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        NVMLError_NotSupported=no_such,
        NVMLError_NoPermission=forbidden,
        NVMLError_FunctionNotFound=not_found,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlSystemGetDriverVersion=lambda: b"580.1",
        nvmlDeviceGetClockInfo=lambda gpu, kind: 1500 - next(looks),
        nvmlDeviceGetMaxClockInfo=lambda gpu, kind: 1980,
        nvmlDeviceGetTemperature=lambda gpu, kind: 61,
        nvmlDeviceGetPowerUsage=lambda gpu: 690_000,
        nvmlDeviceGetEnforcedPowerLimit=no_limit,
        nvmlDeviceGetPerformanceState=lambda gpu: 0,
        nvmlDeviceGetComputeRunningProcesses=lambda gpu: [SimpleNamespace(pid=pid) for pid in (os.getpid(), 1)],
        **reasons,
    )


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5)


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("names", ["new", "old", "old driver"])
def test_the_driver_is_asked_while_something_is_measured(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbench.timing.gpu_state.EVERY_S", 0.01)
    state = GpuState(torch.device("cuda", 0), partial(_fake_nvml, names))
    time.sleep(0.2)
    state.stop()
    found = state.figures()
    looks = found.pop("gpu_looks")
    assert looks > 3
    assert found == {
        "clock_mhz": 1500 - looks, "throttled_clock_mhz": 1500 - looks, "max_clock_mhz": 1980, "temperature_c": 61,
        "power_w": 690.0, "power_limit_w": None, "throttle_reasons": 0x4, "power_state": "P0", "driver": "580.1",
        "other_gpu_processes": 1, "other_gpu_bytes": 15,
    }  # fmt: skip
    time.sleep(0.05)
    assert state.figures()["gpu_looks"] == looks


@pytest.mark.usefixtures("a_gpu")
def test_a_driver_that_does_not_answer_is_said() -> None:
    state = GpuState(torch.device("cuda", 0))  # here is no such driver
    state.stop()
    assert "NVML" in state.figures()["gpu_state_error"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_says_its_clocks() -> None:
    with Conditions(torch.device("cuda", 0)) as conditions:
        x = torch.randn(4096, 4096, device="cuda")
        end = time.monotonic() + 2
        while time.monotonic() < end:
            x @ x
            torch.cuda.synchronize()
    found = conditions.figures()
    assert "gpu_state_error" not in found
    assert found["gpu_looks"] > 3
    assert 0 < found["clock_mhz"] <= found["max_clock_mhz"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_timed_by_its_own_clock_too_and_in_every_way() -> None:
    device = torch.device("cuda", 0)
    ways = [Way("32-true"), Way("tf32"), Way("bf16-mixed"), Way("16-mixed"), Way("bf16-mixed", mode="cuda-graph")]
    subjects = {way.words: Subject(lambda: get_model("ResNet18")(), (3, 32, 32), 10, way=way) for way in ways}
    found = measure_speed(subjects, SpeedConfig(device, "bf16-mixed", 256, 256, rounds=12))
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for figures in found.values():
        assert "error" not in figures
        for key in ("latency_ms", "inference_ms", "train_step_ms"):
            assert 0 < figures[f"{key}_device"] < 1.05 * figures[f"{key}_median"]
        assert figures["peak_memory_bytes"] > 0
    eager, graph = (found[way.words] for way in (ways[2], ways[4]))
    assert eager["peak_reserved_bytes"] >= eager["peak_memory_bytes"]
    assert graph["peak_reserved_bytes"] is None  # graphs may share it
    assert time_ratio(graph, eager, "latency").high < 1  # no launching one by one
    assert time_ratio(found[ways[1].words], found[ways[0].words], "training").high < 1
    assert flags == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_way_of_the_command_runs_on_the_last_gpu(capsys: pytest.CaptureFixture) -> None:
    device = f"--device=cuda:{torch.cuda.device_count() - 1}"
    options = [device, "--precision=bf16-mixed", "--batch_size=64", "--train_batch_size=64", "--rounds=6", "--json"]
    assert main(["speed", "ResNet18", "--mode=eager,compile,cuda-graph", *options]) == 0
    eager, compiled, graph = json.loads(capsys.readouterr().out)["networks"]
    assert 0.5 < graph["peak_memory_bytes"] / eager["peak_memory_bytes"] < 2
    assert compiled["cold_start_ms"] > 10 * eager["latency_ms_median"]
    assert main(["speed", "LeNet5", "--sweep", "--max_batch_size=256", "--limits", "--out=p", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [point["batch_size"] for point in found["sweep"]["LeNet5"]["batches"]] == [2**n for n in range(9)]
    assert "as a CUDA graph" in found["limits"]["networks"]["LeNet5"]["latency"]["evidence"]
    assert main(["speed", "LeNet5", "--memory", *options]) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_peak_memory_is_at_least_weights_gradients_and_momentum() -> None:
    subject = Subject(lambda: get_model("ResNet18")(), (3, 32, 32), 10)
    config = SpeedConfig(torch.device("cuda", 0), "bf16-mixed", 64, 64, rounds=1)
    first = measure_speed({"a": subject}, config)["a"]["peak_memory_bytes"]
    assert first > 3 * 4 * 11_173_962
    other = SpeedConfig(torch.device("cuda", 0), "bf16-mixed", 1024, 64, rounds=1)
    assert measure_speed({"a": subject}, other)["a"]["peak_memory_bytes"] == pytest.approx(first, rel=0.02)
    both = measure_speed({"a": subject, "b": subject}, config)
    assert both["b"]["peak_memory_bytes"] == pytest.approx(first, rel=0.05)


def test_devices_and_precisions_are_checked() -> None:
    assert hardware.choose_device("cpu") == CPU
    assert hardware.choose_precision("32-true", CPU) == ("32-true", "as asked")
    for name, message in (("gpu0", "unknown device 'gpu0'"), ("cuda:99", "'cuda:99' is not there")):
        with pytest.raises(UserError, match=message):
            hardware.choose_device(name)
    with pytest.raises(UserError, match="'16-mixed' has no fast arithmetic on a CPU"):
        hardware.choose_precision("16-mixed", CPU)
    with pytest.raises(UserError, match="unknown precision 'bf16'; did you mean 'bf16-mixed'"):
        hardware.choose_precision("bf16", CPU)
    assert hardware.choose_precision("auto", CPU, compiled_depthwise=True)[0] == "32-true"
    assert hardware.choose_precision("bf16-mixed", CPU, compiled_depthwise=True) == ("bf16-mixed", "as asked")
    precision, reason = hardware.choose_precision("auto", CPU)
    assert (precision == "bf16-mixed") == hardware.cpu_has_bf16()
    assert reason


def test_freed_memory_is_kept_where_the_library_is_glibc() -> None:
    code = (
        "import resource, torch; from cnnbench import hardware; print(hardware.keep_freed_memory())\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def fill(): tensors = [torch.ones(n * 1_000_000) for n in range(10, 20)]\n"
        "def round(): before = faults(); fill(); return faults() - before\n"
        "print([round() for _ in range(10)])"
    )
    said, faults = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    if platform.libc_ver()[0] == "glibc":
        assert said == "glibc, freed memory kept"
        assert sorted(json.loads(faults))[2] < 1000  # of about 141,600 pages of 4 KiB; the first rounds still take some
    else:
        assert said == "the system's"
