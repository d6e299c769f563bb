"""`cnnbench compare --machines`: ratios of two devices, whether they rank networks alike, and what must be equal."""

from __future__ import annotations

import json
import math
import random
import re
import statistics
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import make_record
from PIL import Image
from scipy import stats as scipy_stats

from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.record import Record, write_lines
from cnnbench.report.compare import BETWEEN
from cnnbench.report.machines import KINDS, Ranking, compare_machines
from cnnbench.report.machines_view import _pairs, sentences

KEYS = {"latency": "latency_ms_median", "inference": "inference_ms_median", "training": "train_step_ms_median"}


def _record(model: str, device: str, ms: float, processes: int = 1, seed: int = 0, **config: object) -> Record:
    """Return a record with 12 rounds per process, in which a process and a round have a pace of their own."""
    generator = random.Random(f"{model}{device}{seed}")
    record = make_record(model)
    record.environment["device"] = device
    record.config.update(config)
    samples: dict[str, list[list[float]]] = {work: [] for work in (*KEYS, "yardstick")}
    for _ in range(processes):
        pace = math.exp(generator.gauss(0, 0.03))
        for _ in range(12):
            own = pace * math.exp(generator.gauss(0, 0.01))
            for work, factor in (("latency", 1.0), ("inference", 20.0), ("training", 40.0)):
                samples[work].append([ms * factor * own] * 3)
            samples["yardstick"].append([2.0] * 3)
    for work, key in KEYS.items():
        record.measures[key] = statistics.median(time for block in samples[work] for time in block)
    record.measures["samples_ms"] = samples
    record.measures["process_rounds"] = [12] * processes
    for rate in ("images_per_s", "train_images_per_s"):
        del record.measures[rate]
    return record


def _side(device: str, times: dict[str, float], processes: int = 6) -> list[Record]:
    return [_record(model, device, ms, processes) for model, ms in times.items()]


def test_the_ratio_is_that_of_scipys_mann_whitney_test() -> None:
    """The ends of the interval are where the test of the shifted values stops to reject."""
    a, b = _side("X", {"N": 4.0}), _side("Y", {"N": 1.0})
    found = next(t for t in compare_machines(a, b).times if t.kind.work == "latency")
    middles = []
    for (record,) in (a, b):
        blocks = record.measures["samples_ms"]["latency"]
        rounds = [statistics.median(block) for block in blocks]
        middles.append([math.log(statistics.median(rounds[12 * n : 12 * n + 12])) for n in range(6)])
    every = sorted(math.log(y / x) for x in map(math.exp, middles[0]) for y in map(math.exp, middles[1]))
    assert found.ratio.estimate == pytest.approx(math.exp(statistics.median(every)))

    def p(shift: float) -> float:
        moved = [value - shift for value in middles[1]]
        return scipy_stats.mannwhitneyu(moved, middles[0], method="asymptotic", use_continuity=False).pvalue

    assert found.ratio.low is not None
    assert found.ratio.high is not None
    # Both ends are differences of two processes. Beyond them the test rejects; one difference further in it does not.
    for end, inward in ((math.log(found.ratio.low), 1), (math.log(found.ratio.high), -1)):
        place = min(range(len(every)), key=lambda i: abs(every[i] - end))
        assert every[place] == pytest.approx(end)
        assert p(end - inward * 1e-6) < 0.05 <= p(every[place + inward] + inward * 1e-6)


def test_other_batches_are_compared_by_the_time_of_an_image() -> None:
    a = [_record("N", "X", 4.0, 6, speed_batch_size=128)]
    b = [_record("N", "Y", 4.0, 6, speed_batch_size=512)]
    ratios = {t.kind.work: t.ratio.estimate for t in compare_machines(a, b).times}
    assert ratios["latency"] == pytest.approx(1.0, rel=0.1)
    assert ratios["inference"] == pytest.approx(ratios["latency"] / 4)
    assert ("speed_batch_size", "128", "512") in compare_machines(a, b).settings


def test_one_process_has_the_spread_of_processes_by_assumption() -> None:
    found = compare_machines(_side("X", {"N": 4.0}, 1), _side("Y", {"N": 1.0}, 1)).times[0]
    assert found.ratio.low is not None
    assert found.ratio.high is not None
    width = math.log(found.ratio.high / found.ratio.low)
    assert width >= 2 * 1.96 * max(BETWEEN.values()) * math.sqrt(2)
    assert "by assumption" in found.note


def test_rank_correlation_and_pairs_that_change_places() -> None:
    on_a = {"P": 1.0, "Q": 2.0, "R": 4.0, "S": 8.0, "T": 16.0}
    on_b = {"P": 3.0, "Q": 1.0, "R": 6.0, "S": 6.05, "T": 6.0}
    machines = compare_machines(_side("X", on_a), _side("Y", on_b))
    ranking = machines.rankings[0]
    assert ranking.kind is KINDS[0]
    a, b = ([t.ms(side)[0] for t in machines.times if t.kind is KINDS[0]] for side in (0, 1))
    assert ranking.correlation is not None
    assert ranking.correlation.value == pytest.approx(scipy_stats.spearmanr(a, b).statistic)
    assert ranking.correlation.interval is not None
    assert ranking.pairs == 10
    # by hand: P and Q alone change places by more than their times vary; R, S and T are alike on B
    assert [(swap.first, swap.second) for swap in ranking.swapped] == [("P", "Q")]
    swap = ranking.swapped[0]
    assert swap.on_a.high is not None
    assert swap.on_b.low is not None
    assert swap.on_a.high < 1 < swap.on_b.low
    # brute force: further pairs in another order
    turned = sum((a[i] - a[j]) * (b[i] - b[j]) < 0 for i in range(5) for j in range(i))
    assert ranking.turned == turned - 1


def _on_latency(on_a: dict[str, float], on_b: dict[str, float]) -> list[str]:
    """Return what is said of the ranks of two devices by the latency of one image."""
    lines = sentences(compare_machines(_side("X", on_a), _side("Y", on_b)))
    start = next(n for n, line in enumerate(lines) if line.startswith("latency of one image on MNIST: "))
    end = next(n for n in range(start + 1, len(lines)) if not lines[n].startswith("  "))
    return [lines[start].removeprefix("latency of one image on MNIST: "), *lines[start + 1 : end]]


def test_sentences_on_pairs_have_the_right_number() -> None:
    assert _on_latency({"P": 1.0, "Q": 2.0}, {"P": 1.0, "Q": 2.0}) == [
        "the same one of the two networks is faster on A and on B."
    ]
    first, detail = _on_latency({"P": 1.0, "Q": 2.0}, {"P": 4.0, "Q": 2.0})
    assert first == (
        "the faster one of the two networks on A is the slower one on B; the intervals on both devices confirm this."
    )
    assert re.fullmatch(
        r"  P takes 0\.[45]\S* \(.* to .*\) times as long as Q on A, and \S+ \(.*\) times as long on B", detail
    )
    three = {"P": 1.0, "Q": 2.0, "R": 4.0}
    assert _on_latency(three, three) == [
        "in all 3 pairs of networks, the same one is faster on A and on B. Spearman's rank correlation of A and B is "
        "1.00 (no interval, which needs 5 networks)."
    ]
    first, *details = _on_latency(three, {"P": 3.0, "Q": 1.0, "R": 9.0})
    assert first.startswith(
        "in 1 of 3 pairs of networks, the faster one on A is the slower one on B; the intervals on both devices "
        "confirm this. "
    )
    assert len(details) == 1


@pytest.mark.parametrize(
    ("clear", "turned", "words"),
    [
        (0, 2, "in 2 of 6 pairs of networks, the faster one on A is the slower one on B; the intervals do not confirm"),
        (1, 2, "in 3 of 6 pairs of networks, the faster one on A is the slower one on B; the intervals on both"),
        (1, 2, "confirm this for 1 of them; the other 2 may be chance."),
        (0, 0, "in all 6 pairs of networks, the same one is faster on A and on B."),
    ],
)
def test_a_sentence_on_pairs_tells_chance_from_certainty(clear: int, turned: int, words: str) -> None:
    swap = compare_machines(_side("X", {"P": 1.0, "Q": 2.0}), _side("Y", {"P": 2.0, "Q": 1.0})).rankings[0].swapped[0]
    assert words in _pairs(Ranking("MNIST", KINDS[0], None, 6, (swap,) * clear, turned))


def test_the_same_ranks_have_no_pair_that_changes_places() -> None:
    times = {"P": 1.0, "Q": 2.0, "R": 4.0}
    for ranking in compare_machines(_side("X", times), _side("Y", times)).rankings:
        assert (ranking.swapped, ranking.turned) == ((), 0)
        assert ranking.correlation is not None
        assert ranking.correlation.value == 1


def test_networks_of_other_counts_are_left_out() -> None:
    a, b = _side("X", {"P": 1.0, "Q": 2.0}), _side("Y", {"P": 1.0, "Q": 2.0})
    b[1].measures["params"] += 1
    machines = compare_machines(a, b)
    assert {t.model for t in machines.times} == {"P"}
    assert machines.equal_counts == 1
    assert machines.other_counts == ("Q on MNIST is left out: params 61,706 on A, 61,707 on B",)
    assert any("61,707" in line for line in sentences(machines))


def test_settings_and_versions_that_differ_are_named() -> None:
    a, b = _side("X", {"P": 1.0}), _side("Y", {"P": 1.0})
    b[0].environment.update(threads=4, packages={"torch": "9.9"})
    b[0].config["inference_precision"] = "bf16-true"
    assert {name: (x, y) for name, x, y in compare_machines(a, b).settings} == {
        "inference_precision": ("32-true", "bf16-true"),
        "threads": ("2", "4"),
        "torch": ("2.15.0", "9.9"),
    }


def test_records_of_the_same_settings_are_chosen_where_b_has_them() -> None:
    a = [_record("P", "X", 1.0, inference_precision="bf16-true")]
    b = [_record("P", "Y", ms, inference_precision=p) for ms, p in ((9.0, "32-true"), (2.0, "bf16-true"))]
    found = compare_machines(a, b).times[0]
    assert found.ratio.estimate == pytest.approx(2.0, rel=0.15)


def test_records_without_rounds_are_compared_by_their_calls() -> None:
    a, b = _side("X", {"P": 1.0}, 1), _side("Y", {"P": 3.0}, 1)
    samples = a[0].measures["samples_ms"]
    del samples["yardstick"], a[0].measures["process_rounds"]
    for work in KEYS:
        samples[work] = [time for block in samples[work] for time in block]
    found = compare_machines(a, b).times[0]
    assert found.ratio.estimate == pytest.approx(3.0, rel=0.15)
    assert "A was made before times were kept by round" in found.note


@pytest.mark.parametrize(
    ("devices_a", "devices_b", "message"),
    [
        (["X"], ["X"], "A and B are of the same device, X"),
        (["X", "Z"], ["Y"], "A has records of 2 devices (X, Z)"),
        (["X"], ["Y", "Z"], "B has records of 2 devices (Y, Z)"),
    ],
)
def test_one_device_a_side_and_not_the_same(devices_a: list[str], devices_b: list[str], message: str) -> None:
    a, b = ([_record("P", device, 1.0) for device in devices] for devices in (devices_a, devices_b))
    with pytest.raises(UserError) as error:
        compare_machines(a, b)
    assert str(error.value).startswith(message)


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(UserError, match="no network on the same data in both"):
        compare_machines(_side("X", {"P": 1.0}), _side("Y", {"Q": 1.0}))


def test_the_command_prints_and_draws(capsys: pytest.CaptureFixture) -> None:
    times = {"P[red]$x$": 1.0, "Q": 2.0, "R": 3.0}
    write_lines(Path("a.jsonl"), _side("X <b>", times, 1))
    write_lines(Path("b.jsonl"), _side("Y", times, 1))
    assert main(["compare", "--machines", "a.jsonl", "b.jsonl", "--out", "pictures"]) == 0
    printed = capsys.readouterr().out
    assert "A: X <b>. B: Y." in printed
    assert "P[red]$x$" in printed
    assert Image.open("pictures/machines.png").width > 500
    assert ET.parse("pictures/machines.svg").getroot().tag.endswith("svg")
    assert main(["compare", "--machines", "a.jsonl", "b.jsonl", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["ratios"]) == 9
    assert document["devices"] == {"a": "X <b>", "b": "Y"}
    assert main(["compare", "--machines", "a.jsonl", "a.jsonl"]) == 2
    assert main(["compare", "--machines", "a.jsonl", "b.jsonl", "--gate", "5"]) == 2
    assert main(["compare", "a.jsonl", "b.jsonl", "--out", "x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
