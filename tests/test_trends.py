"""Trends in a report: which runs are a line, what is marked, and the largest change with its interval."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_record
from matplotlib.text import Text

from cnnbench.record import Record
from cnnbench.report.compare import compare
from cnnbench.report.outputs import write_report
from cnnbench.report.pictures import comparisons
from cnnbench.report.trend_pictures import trend
from cnnbench.report.trends import TRACKED, all_series, runs_of, trend_sentences, version_changes

BY_KEY = {tracked.key: tracked for tracked in TRACKED}
LATENCY, RATE, ACCURACY = BY_KEY["latency_ms_median"], BY_KEY["images_per_s"], BY_KEY["test_accuracy"]
WORK = {"latency": "latency_ms", "inference": "inference_ms", "training": "train_step_ms"}


def _run(day: int, model: str = "LeNet5", slower: float = 1.0, **changes: object) -> Record:
    """Return a record of a day in November, with 12 rounds, by a commit of its own."""
    record = make_record(model, created=f"2026-11-{day:02}T10:00:00+00:00", **changes)
    record.environment["commit"] = f"{day:02}" * 20
    generator = random.Random(f"{day}{model}")
    samples = {"yardstick": [[3.0] * 3 for _ in range(12)]}
    for work, base in (("latency", 0.5), ("inference", 8.0), ("training", 20.0)):
        samples[work] = [[base * slower * generator.gauss(1, 0.01)] * 3 for _ in range(12)]
        middle = statistics.median(time for block in samples[work] for time in block)
        prefix = WORK[work]
        ends = {f"{prefix}_low": middle * 0.98, f"{prefix}_high": middle * 1.04}
        record.measures.update({f"{prefix}_median": middle, **ends})
    record.measures["samples_ms"] = samples
    record.measures["images_per_s"] = 1000 * 128 / record.measures["inference_ms_median"]
    record.measures["train_images_per_s"] = 1000 * 32 / record.measures["train_step_ms_median"]
    return record


def _change_device(record: Record, device: str) -> Record:
    record.environment["device"] = device
    return record


def test_a_trend_needs_three_runs_that_compare() -> None:
    runs = [_run(day) for day in (1, 2, 3)]
    assert all_series(runs[:2], LATENCY) == []
    (series,) = all_series(runs[::-1], LATENCY)  # in the order of their time
    assert [point.run.words for point in series.points] == [
        f"2026-11-{d:02} ({(f'{d:02}' * 4)[:7]})" for d in (1, 2, 3)
    ]
    assert [point.value for point in series.points] == [record.measures["latency_ms_median"] for record in runs]
    # another device, or another batch size for a rate, is no part of the line
    assert all_series([*runs[:2], _change_device(_run(3), "Other")], LATENCY) == []
    runs[2].config["speed_batch_size"] = 64
    assert all_series(runs, RATE) == []
    assert len(all_series(runs, LATENCY)) == 1


def test_counts_have_a_trend_only_where_they_change() -> None:
    runs = [_run(day) for day in (1, 2, 3)]
    assert all_series(runs, BY_KEY["params"]) == []
    runs[2].measures["params"] += 1
    (series,) = all_series(runs, BY_KEY["params"])
    assert trend_sentences([series])[-1] == (
        "Largest change of parameters in 2 steps: LeNet5 on MNIST, +0.0 % (61,706 to 61,707), from "
        "2026-11-02 (0202020) to 2026-11-03 (0303030)."
    )


def test_one_timing_of_several_seeds_is_one_point() -> None:
    """A benchmark may go on past midnight, and its seeds share the timing."""
    first = _run(1)
    seeds = [replace(first, seed=n, created=f"2026-11-{n + 1:02}T00:00:00+00:00") for n in range(4)]
    assert all_series(seeds, LATENCY) == []
    # nor are the accuracies of its seeds runs of one training
    assert all_series(seeds, ACCURACY) == []


def test_accuracies_are_of_the_seeds_that_all_runs_have() -> None:
    matrices = {0: [[4, 0, 0], [1, 2, 0], [0, 0, 3]], 1: [[4, 0, 0], [0, 3, 0], [0, 0, 3]]}
    runs = []
    for day, seeds in ((1, (0, 1)), (2, (0, 1)), (3, (0,)), (4, (1,))):
        runs += [_run(day, seed=seed, confusion_matrix=matrices[seed]) for seed in seeds]
    (series,) = all_series(runs, ACCURACY)
    # by hand: seed 0 has 9 of 10 right, and three runs have it
    assert [(point.run.day, point.value, len(point.records)) for point in series.points] == [
        (f"2026-11-{day:02}", 0.9, 1) for day in (1, 2, 3)
    ]
    assert (series.points[0].low, series.points[0].high) == pytest.approx((0.5958, 0.9821), abs=1e-4)


def test_the_largest_change_is_named_with_the_interval_of_compare() -> None:
    runs = [_run(1), _run(2), _run(3, slower=1.6), _run(4, slower=1.6)]
    (change,) = [c for c in compare([runs[1]], [runs[2]]) if c.figure == "latency_ms_median"]
    assert change.change is not None
    assert change.low is not None
    assert change.high is not None
    sentence = trend_sentences(all_series(runs, LATENCY))[-1]
    words = f"{100 * change.change:+.1f} % (95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f})"
    assert sentence == (
        f"Largest change of latency of one image in 3 steps: LeNet5 on MNIST, {words}, "
        "from 2026-11-02 (0202020) to 2026-11-03 (0303030)."
    )
    assert 0.5 < change.change < 0.7
    quiet = trend_sentences(all_series([_run(day) for day in (1, 2, 3)], LATENCY))[-1]
    assert quiet.startswith("No change of latency of one image in 2 steps is beyond chance; the largest is LeNet5")


def test_a_rate_changes_by_the_inverse_of_its_time() -> None:
    runs = [_run(1), _run(2), _run(3, slower=2.0)]
    (series,) = all_series(runs, RATE)
    step = series.steps()[1].change
    time = next(c for c in compare([runs[1]], [runs[2]]) if c.figure == "inference_ms_median")
    assert step.change == pytest.approx(1 / (1 + time.change) - 1)
    assert step.low == pytest.approx(1 / (1 + time.high) - 1)
    assert step.high == pytest.approx(1 / (1 + time.low) - 1)
    assert step.low < step.change < step.high < 0
    point = series.points[0]
    # the interval of the time is 0.98 to 1.04 of its median
    assert (point.low / point.value, point.high / point.value) == pytest.approx((1 / 1.04, 1 / 0.98))


def test_other_versions_are_marked_where_they_begin() -> None:
    runs = [_run(day) for day in (1, 2, 3, 4)]
    for record in runs[2:]:
        record.environment["packages"] = {"torch": "2.16.0", "wandb": "9"}
    runs[0].environment["packages"]["wandb"] = "1"
    series = all_series(runs, LATENCY)
    ((run, words),) = version_changes(series)
    assert (run, words) == (runs_of(series)[2], "torch 2.15.0 → 2.16.0")
    figure = trend(runs, LATENCY)
    assert figure is not None
    (ax,) = figure.axes
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [1.5]
    assert words in [child.get_text() for child in ax.get_children() if isinstance(child, Text)]
    # costs are drawn as changes from the first run
    drawn = next(line for line in ax.lines if line.get_label() != "" and len(line.get_xdata()) == 4)
    first = runs[0].measures["latency_ms_median"]
    assert list(drawn.get_ydata()) == pytest.approx([r.measures["latency_ms_median"] / first - 1 for r in runs])


def test_a_report_has_the_pictures_and_sentences(tmp_path: Path) -> None:
    hostile = "Net<script>$x$[red]"
    runs = [_run(day, model, slower=1 + (day > 2)) for day in (1, 2, 3) for model in ("LeNet5", hostile)]
    files = write_report(runs, tmp_path)
    names = {path.stem for path in files}
    assert {"trend_latency", "trend_images_per_s", "trend_train_images_per_s", "trend_accuracy"} <= names
    assert not {"trend_params", "trend_macs"} & names
    for document in ("report.md", "report.html"):
        text = (tmp_path / document).read_text()
        assert "Largest change of latency of one image in 4 steps" in text
        assert "<script>$x$" not in text
    assert "![trend\\_latency](figures/trend_latency.png)" in (tmp_path / "report.md").read_text()


def test_a_report_of_one_or_two_runs_has_no_trends() -> None:
    names = [picture.name for picture in comparisons([_run(1), _run(2)])]
    assert not [name for name in names if name.startswith("trend")]
