"""`cnnbench compare`: what differs by more than chance, what does not compare, and the gate."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import pytest
from conftest import make_record

from cnnbench.bench.compare import compare, student_quantile
from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.measure.intervals import shift
from cnnbench.record import Record, write_lines


def _record(slower: float = 1.0, machine: float = 1.0, seed: int = 0, rounds: int = 12, **changes: object) -> Record:
    """A record whose times are noisy, on a machine that is slower as a whole by a factor, and from round to round."""
    generator = random.Random(seed)
    pace = [machine * generator.uniform(1, 1.5) for _ in range(rounds)]

    def times(base: float) -> list[list[float]]:
        return [[base * p * generator.gauss(1, 0.02) for _ in range(3)] for p in pace]

    samples = {kind: times(base * slower) for kind, base in (("latency", 0.5), ("inference", 8.0), ("training", 20.0))}
    samples["yardstick"] = times(3.0)
    record = make_record(**changes)
    record.measures["samples_ms"] = samples
    for kind, key in (("latency", "latency"), ("inference", "inference"), ("training", "train_step")):
        record.measures[f"{key}_ms_median"] = statistics.median(t for block in samples[kind] for t in block)
    return record


def _verdicts(a: Record, b: Record) -> dict[str, str]:
    return {c.figure: c.verdict for c in compare([a], [b])}


TIMES = ("latency_ms_median", "inference_ms_median", "train_step_ms_median")


def test_a_slower_machine_is_no_slower_network() -> None:
    found = {c.figure: c for c in compare([_record(seed=1)], [_record(machine=1.3, seed=2)])}
    assert all(abs(found[t].change) < 0.05 for t in TIMES)  # the medians differ by 30 %
    assert found["latency_ms_median"].after > 1.2 * found["latency_ms_median"].before
    assert found["params"].verdict == found["macs"].verdict == "equal"


def test_false_verdicts_are_rare_and_planted_slowdowns_found() -> None:
    same = [_verdicts(_record(seed=n), _record(seed=n + 500, machine=1.1))["latency_ms_median"] for n in range(60)]
    assert sum(v != "no difference found" for v in same) <= 8  # 3 expected; 8 has a probability below 1 %
    slow = [_verdicts(_record(seed=n), _record(1.05, seed=n + 500))["latency_ms_median"] for n in range(40)]
    assert slow.count("slower") >= 36


def test_the_gate_fails_on_a_regression_beyond_it(capsys: pytest.CaptureFixture) -> None:
    write_lines(Path("a.jsonl"), [_record(seed=1)])
    write_lines(Path("b.jsonl"), [_record(1.2, seed=2)])
    assert main(["compare", "a.jsonl", "b.jsonl"]) == 0
    assert "slower" in capsys.readouterr().out
    assert main(["compare", "a.jsonl", "b.jsonl", "--gate", "5", "--json"]) == 1
    captured = capsys.readouterr()
    assert {c["figure"] for c in json.loads(captured.out)["regressions"]} == set(TIMES)
    assert captured.err.count("regression: ") == 3
    assert main(["compare", "b.jsonl", "a.jsonl", "--gate", "5"]) == 0  # faster is no regression
    assert main(["compare", "a.jsonl", "b.jsonl", "--gate", "40"]) == 0
    assert main(["compare", "a.jsonl", "b.jsonl", "--gate", "-1"]) == 2


@pytest.mark.parametrize(
    ("part", "key", "value", "figures"),
    [
        ("config", "precision", "bf16-mixed", [*TIMES, "test_accuracy"]),
        ("config", "batch_size", 64, ["train_step_ms_median", "test_accuracy"]),
        ("config", "speed_batch_size", 64, ["inference_ms_median"]),
        ("config", "budget_s", 60.0, ["test_accuracy"]),
        ("environment", "device", "Other CPU", TIMES),
        ("environment", "threads", 1, TIMES),
        ("data", "image_size", 28, TIMES),
    ],
)
def test_other_settings_do_not_compare(part: str, key: str, value: object, figures: list[str]) -> None:
    a, b = _record(seed=1), _record(seed=2)
    getattr(b, part)[key] = value
    found = compare([a], [b])
    assert {c.figure for c in found if c.verdict == "not comparable"} == set(figures)
    assert all(key in c.reason for c in found if c.verdict == "not comparable")


def test_old_records_and_suspect_times_say_so() -> None:
    a, b = _record(seed=1), _record(1.5, seed=2)
    b.measures["suspect"] = ["other processes used 49% of the processors"]
    assert all(c.reason.startswith("suspect: B: other") for c in compare([a], [b]) if c.figure in TIMES)
    b.measures["samples_ms"] = {"latency": [0.1, 0.2]}
    assert "measure it again" in next(c.reason for c in compare([a], [b]) if c.figure == "latency_ms_median")


def test_accuracy_by_counts_and_by_seeds() -> None:
    def cell(*accuracies: float) -> list[Record]:
        records = [_record(seed=n) for n in range(len(accuracies))]
        for record, accuracy in zip(records, accuracies, strict=True):
            record.data["test_images"] = 10_000
            record.measures["test_accuracy"] = accuracy
        return records

    def verdict(a: list[Record], b: list[Record]) -> object:
        return next(c for c in compare(a, b) if c.figure == "test_accuracy")

    one = verdict(cell(0.90), cell(0.92))
    # by hand: sqrt(0.9 * 0.1 / 10,000 + 0.92 * 0.08 / 10,000) * 1.96 = 0.00793
    assert (one.verdict, one.low, one.high) == (
        "better",
        pytest.approx(0.01207, abs=1e-5),
        pytest.approx(0.02793, abs=1e-5),
    )
    assert "one seed" in one.reason
    seeds = verdict(cell(0.90, 0.91, 0.92), cell(0.91, 0.92, 0.93))
    # by hand: Welch's t with 4 degrees of freedom, 2.776 * sqrt(2 * 0.0001 / 3) = 0.02267
    assert (seeds.verdict, seeds.high - seeds.change) == ("no difference found", pytest.approx(0.02267, abs=1e-4))
    assert seeds.reason == ""
    assert verdict(cell(0.90, 0.90), cell(0.80, 0.80)).regressed(5)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (30, 2.042)])
def test_quantiles_of_student(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, abs=1e-3)


def test_shift_of_unpaired_values() -> None:
    found = shift([5, 6, 7, 8, 9, 10, 11], [1, 2, 3, 4, 5, 6, 7])
    # n = m = 7: the tables of Mann and Whitney have 8 for two-sided 5 %, so the 9th smallest and largest difference;
    # there are 1, 2, 3 and 4 differences of -2, -1, 0 and 1
    assert found == (4, 1, 7)
    assert shift([1.0] * 5, [2.0] * 9).low is None


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(UserError, match="A has LeNet5 on MNIST, B has VGG16 on MNIST"):
        compare([_record()], [_record(model="VGG16")])
    assert main(["compare", "none.jsonl", "none.jsonl"]) == 2
