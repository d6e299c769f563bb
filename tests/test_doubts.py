"""Doubts that times themselves raise: two groups, by scipy's k-means and by samples that have one group or two."""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from conftest import make_record
from scipy.cluster.vq import kmeans2

from cnnbench.errors import UserError
from cnnbench.timing.doubts import groupings, two_groups
from cnnbench.timing.processes import pooled
from cnnbench.verification import cores


def _two(rng: random.Random, count: int, ratio: float, share: float, spread: float = 0.04) -> list[float]:
    """Return times of 10 ms, a share of which is longer by the ratio, each with noise."""
    times = []
    for index in range(count):
        factor = ratio if index < share * count else 1.0
        times.append(10 * factor * math.exp(rng.gauss(0, spread)))
    rng.shuffle(times)
    return times


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("ratio", [1.6, 2.4])
def test_two_groups_are_those_of_k_means(share: float, ratio: float) -> None:
    times = _two(random.Random(0), 20, ratio, share)
    found = two_groups(times)
    assert found is not None
    ends = np.log([[min(times)], [max(times)]])
    _, labels = kmeans2(np.log(times)[:, None], ends, minit="matrix")
    assert list(map(len, found)) == [int((labels == 0).sum()), int((labels == 1).sum())]
    assert max(found[0]) < min(found[1])
    assert sorted(found[0] + found[1]) == sorted(times)


@pytest.mark.parametrize("slow", [3, 10, 100])
@pytest.mark.parametrize("count", [12, 18, 20, 60])
def test_a_single_slow_call_does_not_hide_two_groups(count: int, slow: float) -> None:
    times = _two(random.Random(count), count, 2.4, 0.5)
    low, high = two_groups([*times[:-1], slow * times[-1]]) or ([], [])
    assert len(low) + len(high) == count
    assert max(low) < 15 < min(high)  # the times are 10 and 24 ms
    assert two_groups([*_two(random.Random(count), count - 1, 1.0, 0.5), slow * 10]) is None


@pytest.mark.parametrize("count", [12, 17, 18, 60])
def test_one_group_is_rarely_cut_in_two(count: int) -> None:
    rng = random.Random(count)
    samples = ([math.exp(rng.gauss(0, 0.5)) for _ in range(count)] for _ in range(400))
    assert sum(two_groups(sample) is not None for sample in samples) < 0.01 * 400


@pytest.mark.parametrize(("ratio", "share"), [(1.2, 0.5), (2.4, 0.1), (2.4, 0.9)])
def test_groups_that_are_near_or_small_do_not_count(ratio: float, share: float) -> None:
    assert two_groups(_two(random.Random(1), 20, ratio, share)) is None


@pytest.mark.parametrize("times", [[1.0] * 18, [0.0] * 9 + [1.0] * 9, [math.nan] * 9 + [1.0] * 9])
def test_equal_and_impossible_times_are_no_two_groups(times: list[float]) -> None:
    assert two_groups(times) is None


def test_a_sentence_names_the_work() -> None:
    two, one = ([[ms, ms, 9 * ms] for ms in _two(random.Random(2), 20, ratio, 0.5)] for ratio in (2.0, 1.0))
    (said,) = groupings({"latency": one, "inference": two, "training": two})
    assert said.startswith("inference and training fell into two groups")
    assert groupings({"latency": one}) == []
    assert groupings({"inference": two[:11]}) == []  # too few to tell


def test_a_doubt_about_one_kind_of_work_is_none_about_another() -> None:
    reasons = ["inference and training drifted", "others were busy", "latency alternated"]
    record = make_record(measures={"suspect": reasons})
    assert record.doubts("latency") == reasons[1:]
    assert record.doubts("inference") == record.doubts("training") == reasons[:2]
    assert record.doubts(None) == reasons
    assert make_record(measures={}).doubts("latency") == []


def test_the_engines_clock_is_never_above_ours_in_processes_of_two_speeds() -> None:
    runs = []
    for ms, rounds in ((1.0, 23), (3.0, 20)):
        figures = {"latency_ms_median": ms, "latency_ms_engine": 0.9 * ms, "cold_ms": {"latency": ms}, "conditions": {}}
        runs.append({**figures, "samples_ms": {"latency": [[ms]] * rounds}, "suspect": []})
    found = pooled(runs)
    assert found["latency_ms_median"] == 1.0
    assert found["latency_ms_engine"] == pytest.approx(0.9)


@pytest.mark.parametrize(("processes", "rounds"), [(6, 3), (2, 20)])
def test_groups_are_looked_for_in_the_rounds_of_all_processes(processes: int, rounds: int) -> None:
    times = _two(random.Random(3), processes * rounds, 2.0, 0.5)
    runs = []
    for index in range(processes):
        samples = {"latency": [[ms] for ms in times[index * rounds : (index + 1) * rounds]]}
        suspect = ["odd", *groupings(samples)]
        figures = {"latency_ms_median": 1.0, "cold_ms": {"latency": 1.0}, "conditions": {}}
        runs.append({**figures, "samples_ms": samples, "suspect": suspect})
    odd, said = pooled(runs)["suspect"]
    assert odd == f"odd (in {processes} of {processes} processes)"
    assert said.startswith("latency fell into")


def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for number, siblings in enumerate(("0,4", "1,5", "2-3", "2-3", "0,4")):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert cores.separate(range(7), tmp_path) == [0, 1, 2, 5, 6]


@pytest.mark.skipif(sys.platform != "linux", reason="binds processes to cores")
def test_cores_are_measured_alone_and_together() -> None:
    with cores.workers([0, 0]) as channels:
        speeds = cores.measure(channels, 1)
    assert set(speeds) == set(itertools.product(("float32", "bfloat16"), ("alone", "together"), (0, 1)))
    assert all(len(values) == 1 and values[0] > 0 for values in speeds.values())


@pytest.mark.skipif(sys.platform != "linux", reason="binds processes to cores")
def test_a_core_of_two_speeds_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    steady, alternating = _two(random.Random(4), 20, 1.0, 0.0), _two(random.Random(5), 20, 2.0, 0.4)

    def measure(channels: list[Connection], rounds: int) -> dict[tuple[str, str, int], list[float]]:
        assert rounds == 20
        halved = [speed / 2 for speed in steady]
        return {
            ("float32", "alone", 0): steady,
            ("float32", "together", 0): halved,
            ("bfloat16", "alone", 0): alternating,
        }

    monkeypatch.setattr(cores, "measure", measure)
    monkeypatch.setattr(cores, "workers", lambda _: cores.contextlib.nullcontext([]))
    assert cores.main(["--rounds", "20"]) == 0
    *_, first, _, second, written = capsys.readouterr().out.splitlines()
    assert "| no |" in first
    assert second.rstrip(" |").endswith("12 of 20")
    document = json.loads(Path(written.removeprefix("written: ")).read_text())
    assert document["verdict"] == "short"
    assert list(document["goals"].values()) == [True, True, False]
    (slowed,) = document["ratios"].values()
    assert slowed == {"median": 0.5, "low": 0.5, "high": 0.5}


@pytest.mark.skipif(sys.platform != "linux", reason="binds processes to cores")
def test_a_process_that_ends_early_is_said() -> None:
    with pytest.raises(UserError, match="has ended early"), cores.workers([4095]):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="binds processes to cores")
def test_two_cores_are_needed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {3})
    with pytest.raises(UserError, match="one processor only"):
        cores.main([])
    # Two hardware threads of one core are compared, and that is said.
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {3, 5})
    monkeypatch.setattr(cores, "separate", lambda numbers: numbers[:1])
    monkeypatch.setattr(cores, "measure", lambda channels, rounds: {})
    asked: list[list[int]] = []
    monkeypatch.setattr(cores, "workers", lambda them: asked.append(them) or cores.contextlib.nullcontext([]))
    assert cores.main([]) == 0
    assert asked == [[3, 5]]
    assert "both processors are hardware threads of one core" in capsys.readouterr().err


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(UserError, match="rounds 5 must be at least 12"):
        cores.main(["--rounds", "5"])
