"""`cnnbench compare`: what differs by more than chance, what does not compare, and the gate."""

from __future__ import annotations

import json
import math
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_record
from scipy import stats as scipy_stats

from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.record import Record, write_lines
from cnnbench.report.compare import BETWEEN, compare
from cnnbench.stats import newcombe_interval


def _record(slower: float = 1.0, machine: float = 1.0, seed: int = 0, rounds: int = 12, **changes: object) -> Record:
    """A record whose times are noisy, on a machine that is slower as a whole by a factor, and from round to round."""
    generator = random.Random(seed)
    pace = [machine * generator.uniform(1, 1.5) for _ in range(rounds)]

    def times(base: float) -> list[list[float]]:
        return [[base * p * generator.gauss(1, 0.02) for _ in range(3)] for p in pace]

    samples = {kind: times(base * slower) for kind, base in (("latency", 0.5), ("inference", 8.0), ("training", 20.0))}
    samples["yardstick"] = times(3.0)
    record = make_record(**{"seed": seed, **changes})
    record.measures["samples_ms"] = samples
    for rate in ("images_per_s", "train_images_per_s"):  # they are those of the median times
        del record.measures[rate]
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


def test_a_machine_that_was_slower_makes_intervals_wider() -> None:
    """Networks follow it only roughly: by half as much more or less, which is added in squares."""
    alike, slower = _in_processes(6, 1), _in_processes(6, 1, machine=1.2)
    same, moved = (
        next(c for c in compare([_in_processes(6, 2)], [b]) if c.figure == "latency_ms_median") for b in (alike, slower)
    )
    assert moved.change == pytest.approx(same.change, abs=1e-9)
    # the yardsticks of the two differ a little by themselves, so the widths are compared by what is on top of it
    apart = [
        statistics.median(math.log(statistics.median(t)) for t in r.measures["samples_ms"]["yardstick"])
        for r in (_in_processes(6, 2), slower)
    ]
    more = 0.5 * abs(apart[1] - apart[0])
    half = math.log1p(moved.high) - math.log1p(moved.change)
    own = _in_processes(6, 2), alike
    base = math.log1p(same.high) - math.log1p(same.change)
    little = 0.5 * abs(
        statistics.median(math.log(statistics.median(t)) for t in own[1].measures["samples_ms"]["yardstick"]) - apart[0]
    )
    assert half**2 - more**2 == pytest.approx(base**2 - little**2, abs=1e-9)
    assert "the yardstick was slower in B, by " in moved.reason


def _in_processes(count: int, seed: int, slower: float = 1.0, apart: float = 0.04, machine: float = 1.0) -> Record:
    """A record of several processes, whose times differ by more than their rounds show."""
    generator = random.Random(seed)
    runs = [_record(slower * math.exp(generator.gauss(0, apart)), machine, seed + 1000 * n) for n in range(count)]
    record = make_record(measures=runs[0].measures)
    samples = [run.measures["samples_ms"] for run in runs]
    record.measures["samples_ms"] = {kind: [block for s in samples for block in s[kind]] for kind in samples[0]}
    record.measures["process_rounds"] = [12] * count
    return record


def test_false_verdicts_are_rare_and_slowdowns_found() -> None:
    """Processes differ by 4 % (one standard deviation), rounds within one by less."""
    same = [_verdicts(_in_processes(6, n), _in_processes(6, n + 500))["latency_ms_median"] for n in range(60)]
    assert sum(v != "no difference found" for v in same) <= 8  # 3 expected; 8 has a probability below 1 %
    slow = [_verdicts(_in_processes(6, n), _in_processes(6, n + 500, 1.12))["latency_ms_median"] for n in range(40)]
    assert slow.count("slower") >= 36
    (change,) = (c for c in compare([_in_processes(4, 1)], [_in_processes(4, 2)]) if c.figure == "latency_ms_median")
    assert change.high - change.low > 0.02  # of four values a side all differences lie within
    assert change.reason == ""


def test_one_process_a_side_says_no_more_than_processes_differ() -> None:
    found = next(c for c in compare([_record(seed=1)], [_record(seed=2)]) if c.figure == "inference_ms_median")
    # by hand: 1.96 * BETWEEN * sqrt(2), and what the rounds add
    apart = BETWEEN["inference"]
    assert found.high - found.low >= 2 * 1.96 * apart * math.sqrt(2)
    assert f"differ by {apart:.0%}" in found.reason
    assert _verdicts(_record(seed=1), _record(1 + apart, seed=2))["inference_ms_median"] == "no difference found"
    assert _verdicts(_record(seed=1), _record(1 + 6 * apart, seed=2))["inference_ms_median"] == "slower"


def test_seeds_of_one_run_share_a_timing_and_runs_add_up() -> None:
    seeds = [replace(_record(seed=1), seed=n) for n in range(5)]
    runs = [_record(seed=n) for n in range(10, 15)]
    reason = next(c.reason for c in compare(seeds, runs) if c.figure == "latency_ms_median")
    assert "fewer than 4 processes" in reason
    reason = next(c.reason for c in compare(runs, [_record(seed=n) for n in range(20, 24)]) if c.figure in TIMES)
    assert reason == ""


def test_too_few_rounds_say_so_and_so_does_a_kind_that_was_not_timed() -> None:
    assert _verdicts(_record(seed=1, rounds=2), _record(seed=2, rounds=3))["latency_ms_median"] == "too few values"
    b = _record(seed=2)
    del b.measures["samples_ms"]["training"]
    found = {c.figure: c for c in compare([_record(seed=1)], [b])}
    assert found["train_step_ms_median"].verdict == "not comparable"
    assert "B has no rounds of training" in found["train_step_ms_median"].reason
    assert found["latency_ms_median"].verdict == "no difference found"


def test_another_torch_is_compared_by_raw_times() -> None:
    """Its convolutions are others, and so is the yardstick."""
    a, b = _record(seed=1), _record(machine=1.5, seed=2)
    b.environment["packages"] = {**a.environment["packages"], "torch": "9.9"}
    found = next(c for c in compare([a], [b]) if c.figure == "latency_ms_median")
    assert found.verdict == "slower"
    assert "torch" in found.reason
    assert "9.9: raw times, in which a machine that was slower as a whole counts too" in found.reason


def test_cold_starts_are_compared_from_four_processes_on() -> None:
    a, b = _in_processes(4, 1), _in_processes(4, 2)
    for record, times in ((a, (100, 101, 102, 103)), (b, (150, 151, 152, 153))):
        record.measures["cold_start_ms"] = statistics.median(times)
        record.measures["process_cold_ms"] = [{"latency": float(ms)} for ms in times]
    found = next(c for c in compare([a], [b]) if c.figure == "cold_start_ms")
    assert (found.verdict, round(found.low, 2), round(found.high, 2)) == ("slower", 0.46, 0.53)
    del a.measures["process_cold_ms"]
    assert _verdicts(a, b)["cold_start_ms"] == "too few values"


def test_the_gate_fails_on_a_regression_beyond_it(capsys: pytest.CaptureFixture) -> None:
    write_lines(Path("a.jsonl"), [_record(seed=1)])
    write_lines(Path("b.jsonl"), [_record(1.5, seed=2)])
    assert main(["compare", "a.jsonl", "b.jsonl"]) == 0
    assert "slower" in capsys.readouterr().out
    assert main(["compare", "a.jsonl", "b.jsonl", "--gate", "5", "--json"]) == 1
    captured = capsys.readouterr()
    assert {c["figure"] for c in json.loads(captured.out)["regressions"]} == set(TIMES)
    assert captured.err.count("regression: ") == 3
    assert main(["compare", "b.jsonl", "a.jsonl", "--gate", "5"]) == 0  # faster is no regression
    assert main(["compare", "a.jsonl", "b.jsonl", "--gate", "70"]) == 0
    assert main(["compare", "a.jsonl", "b.jsonl", "--gate", "-1"]) == 2


def test_a_gate_that_cannot_see_so_little_says_what_it_could_have_missed(capsys: pytest.CaptureFixture) -> None:
    write_lines(Path("a.jsonl"), [_record(seed=1)])
    write_lines(Path("b.jsonl"), [_record(1.1, seed=2)])
    assert main(["compare", "a.jsonl", "b.jsonl", "--gate", "5", "--json"]) == 0
    captured = capsys.readouterr()
    unresolved = json.loads(captured.out)["unresolved"]
    assert {c["figure"] for c in unresolved} == {*TIMES, "test_accuracy"}
    worst = next(c["high"] for c in unresolved if c["figure"] == "latency_ms_median")
    assert worst > 0.05
    assert f"latency_ms_median of 1 network may be worse by up to {100 * worst:.0f} %" in captured.err
    assert main(["compare", "a.jsonl", "b.jsonl", "--gate", "200"]) == 0
    assert capsys.readouterr().err == ""


def test_more_memory_is_worse_at_the_same_settings() -> None:
    a, b = _record(seed=1), _record(seed=2)
    a.measures["peak_memory_bytes"], b.measures["peak_memory_bytes"] = 100, 120
    (found,) = (c for c in compare([a], [b]) if c.figure == "peak_memory_bytes")
    assert (found.verdict, found.regressed(5), found.regressed(25)) == ("worse", True, False)
    b.config["batch_size"] = 64
    assert _verdicts(a, b)["peak_memory_bytes"] == "not comparable"


def test_what_only_b_has_is_named() -> None:
    found = compare([_record(seed=1)], [_record(seed=2), _record(seed=2, model="VGG16")])
    assert [(c.model, c.verdict) for c in found if c.verdict == "new"] == [("VGG16", "new")]


def test_the_gate_does_not_pass_what_is_missing_failed_suspect_or_not_comparable(capsys: pytest.CaptureFixture) -> None:
    def gate(*second: Record) -> str:
        for name in ("a.jsonl", "b.jsonl"):
            Path(name).unlink(missing_ok=True)
        write_lines(Path("a.jsonl"), [_record(seed=1), _record(seed=1, model="VGG16")])
        write_lines(Path("b.jsonl"), list(second))
        assert main(["compare", "a.jsonl", "b.jsonl"]) == 0
        assert main(["compare", "a.jsonl", "b.jsonl", "--gate", "5"]) == 1
        lines = capsys.readouterr().err.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("not resolved: "))

    fine = _record(seed=2)
    assert gate(fine) == "missing in B: all figures of VGG16 on MNIST (B has no record of this network)\n"
    failed = replace(_record(model="VGG16", seed=2), status="error", reason="RuntimeError: no")
    assert gate(fine, failed) == "missing in B: all figures of VGG16 on MNIST (failed: RuntimeError: no)\n"
    assert gate(fine, failed, _record(model="VGG16", seed=3)).startswith(
        "missing in B: all figures of VGG16"
    )  # a seed of it
    other = _record(model="VGG16", seed=2)
    other.environment["threads"] = 1
    assert gate(fine, other).count("undecided: ") == 4
    busy = _record(1.5, model="VGG16", seed=2)
    busy.measures["suspect"] = ["other processes kept 1.0 processors busy"]
    assert gate(fine, busy).count("suspect, measure again: ") == 3
    untrained = _record(model="VGG16", seed=2)
    del untrained.measures["test_accuracy"]
    assert gate(fine, untrained) == "missing in B: test_accuracy of VGG16 on MNIST, B has no test_accuracy\n"
    untrained.config["measures"] = ["complexity", "speed"]
    write_lines(Path("c.jsonl"), [fine, untrained])
    assert main(["compare", "a.jsonl", "c.jsonl", "--gate", "5"]) == 0  # it was not to be measured


@pytest.mark.parametrize(
    ("part", "key", "value", "figures"),
    [
        ("config", "precision", "bf16-mixed", [*TIMES, "test_accuracy"]),
        ("config", "batch_size", 64, ["train_step_ms_median", "test_accuracy"]),
        ("config", "speed_batch_size", 64, ["inference_ms_median"]),
        ("config", "budget_s", 60.0, ["test_accuracy"]),
        ("config", "mode", "compile", [*TIMES, "test_accuracy"]),
        ("environment", "device", "Other CPU", [*TIMES, "test_accuracy"]),  # the budget is a time
        ("environment", "threads", 1, [*TIMES, "test_accuracy"]),
        ("config", "cudnn_benchmark", True, [*TIMES, "test_accuracy"]),
        ("config", "inference_precision", "bf16-true", ["latency_ms_median", "inference_ms_median"]),
        ("data", "image_size", 28, [*TIMES, "test_accuracy", "params", "macs", "activations"]),
        ("data", "train_images", 50, ["test_accuracy"]),
        ("data", "augment", True, ["test_accuracy"]),
        ("data", "augmentation", "cutout of 8 pixels", ["test_accuracy"]),
        ("config", "tested", "best", ["test_accuracy"]),
        ("config", "test_views", "mirror", ["test_accuracy"]),
        ("config", "max_steps", 500, ["test_accuracy"]),
        ("config", "images_per_step", 128, ["test_accuracy"]),
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
    def cell(*accuracies: float, first: int = 0) -> list[Record]:
        records = [_record(seed=first + n, data="CIFAR10") for n in range(len(accuracies))]
        for record, accuracy in zip(records, accuracies, strict=True):
            record.data["test_images"] = 10_000
            object.__setattr__(record, "confusion_matrix", None)
            record.measures["test_accuracy"] = accuracy
        return records

    def verdict(a: list[Record], b: list[Record]) -> object:
        return next(c for c in compare(a, b) if c.figure == "test_accuracy")

    one = verdict(cell(0.90), cell(0.92))
    assert (one.verdict, one.images) == ("better", 10_000)
    assert (one.low, one.high) == newcombe_interval(9200, 10_000, 9000, 10_000)
    assert "one seed" in one.reason
    perfect = verdict(cell(1.0), cell(1.0))
    assert perfect.low < 0 < perfect.high  # ten thousand of ten thousand are not certainty
    seeds = verdict(cell(0.90, 0.91, 0.92), cell(0.91, 0.92, 0.93, first=3))
    # by hand: Welch's t with 4 degrees of freedom, 2.776 * sqrt(2 * 0.0001 / 3) = 0.02267
    assert (seeds.verdict, seeds.high - seeds.change) == ("no difference found", pytest.approx(0.02267, abs=1e-4))
    assert seeds.reason == "not paired, since the seeds differ (3 and 3 seeds): Welch's t interval"
    # by hand: five of sd 0.05701 against one, t with 4 degrees of freedom: 2.776 * 0.05701 * sqrt(1 / 5 + 1) = 0.1734
    mixed = verdict(cell(0.80, 0.90, 0.85, 0.95, 0.90), cell(0.865))
    assert (mixed.verdict, mixed.high - mixed.change) == ("no difference found", pytest.approx(0.1734, abs=1e-4))
    assert "one seed against several" in mixed.reason
    alike = verdict(cell(0.90, 0.90), cell(0.80, 0.80))
    assert alike.regressed(5)
    assert "which sets the interval" in alike.reason
    # by hand: the images alone allow 1.96 * sqrt(0.9 * 0.1 / 20,000 + 0.8 * 0.2 / 20,000) = 0.00693
    assert alike.high - alike.change == pytest.approx(0.00693, abs=1e-5)
    again = cell(0.90, 0.95)
    again[1] = replace(again[1], seed=0)
    assert "one seed: " in verdict(again, cell(0.91)).reason  # a seed that was repeated is one


def test_accuracies_of_the_same_seeds_are_compared_seed_by_seed() -> None:
    """Seeds move the accuracy by ten points here, and the change by one."""
    before, after = (0.80, 0.90, 0.85, 0.82, 0.88), (0.79, 0.87, 0.83, 0.81, 0.86)

    def cell(accuracies: tuple[float, ...]) -> list[Record]:
        records = []
        for seed, accuracy in enumerate(accuracies):
            record = replace(_record(seed=seed, data="CIFAR10"), confusion_matrix=None)
            record.data["test_images"] = 10_000
            record.measures["test_accuracy"] = accuracy
            records.append(record)
        return records

    def verdict(second: list[Record], first: list[Record] | None = None) -> object:
        return next(c for c in compare(first or cell(before), second) if c.figure == "test_accuracy")

    # The order of the records does not matter, and a seed that was repeated counts once.
    expected = scipy_stats.ttest_rel(after, before).confidence_interval(0.95)
    for second in (cell(after), cell(after)[::-1], [*cell(after), *cell(after)[:1]]):
        paired = verdict(second)
        assert (paired.low, paired.high) == pytest.approx((expected.low, expected.high))
        assert paired.reason == "paired by seed, 5 seeds: Student's t interval of the mean difference"
    # With other seeds the spread from seed to seed is in the interval.
    unpaired = verdict([replace(record, seed=record.seed + 1) for record in cell(after)])
    assert unpaired.high - unpaired.low > 2 * (paired.high - paired.low)
    assert unpaired.reason.startswith("not paired, since the seeds differ")
    few = verdict(cell(after)[:3], cell(before)[:3])
    assert few.reason == "not paired, since 5 seeds are the fewest for that (3 and 3 seeds): Welch's t interval"


def test_a_run_of_several_settings_is_compared_setting_by_setting() -> None:
    long = _record(seed=1)
    long.config["budget_s"] = 60.0
    long.measures["test_accuracy"] = 0.99
    found = next(c for c in compare([long, _record(seed=2)], [_record(seed=3)]) if c.figure == "test_accuracy")
    assert (found.before, found.after, found.verdict) == (0.9, 0.9, "no difference found")


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(UserError, match="A has LeNet5 on MNIST, B has VGG16 on MNIST"):
        compare([_record()], [_record(model="VGG16")])
    assert main(["compare", "none.jsonl", "none.jsonl"]) == 2


def test_cold_starts_of_other_software_say_so() -> None:
    """They are raw times, never in units of the yardstick."""
    a, b = _record(), _record()
    for record, version in ((a, "2.6"), (b, "2.7")):
        record.measures["cold_start_ms"] = 100.0
        record.measures["process_cold_ms"] = [{"latency": 100.0 + n} for n in range(5)]
        record.environment["packages"] = {**record.environment["packages"], "torch": version}
    change = next(c for c in compare([a], [b]) if c.figure == "cold_start_ms")
    assert change.reason.startswith("torch 2.6 against 2.7: raw times")


def test_a_network_that_one_side_lacks_is_named_with_its_reason(capsys: pytest.CaptureFixture) -> None:
    write_lines(Path("a.jsonl"), [_record(seed=1), _record(seed=1, model="VGG16"), _record(seed=1, model="AlexNet")])
    write_lines(Path("b.jsonl"), [_record(seed=2), _record(seed=2, model="ResNet18")])
    assert main(["compare", "a.jsonl", "b.jsonl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "VGG16 on MNIST, AlexNet on MNIST: B has no record of this network" in lines
    assert "ResNet18 on MNIST: A has no record of this network" in lines
