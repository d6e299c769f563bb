"""A training that ends at an accuracy, and what it took to get there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FULL_TRAINING, make_record
from scipy import stats

from cnnbench import LeNet5, count
from cnnbench.benchmark import goal as goals
from cnnbench.benchmark.goal import next_evaluation
from cnnbench.benchmark.plan import parse_goal
from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.measures import figures
from cnnbench.record import Record, load_records
from cnnbench.report.columns import COLUMNS
from cnnbench.report.compare import Change, compare
from cnnbench.report.findings import DASH
from cnnbench.report.gate import Gate
from cnnbench.report.settings import budget
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.clock import TrainingClock

IMAGES = '--data_options={"train_images": 500, "test_images": 20}'
BENCH = ["bench", "--data=Synthetic", "--device=cpu", "--precision=32-true", "--batch_size=5", IMAGES]
QUICK = [*BENCH, "--models=LeNet5", "--measures=complexity,quality"]


def run_one(*words: str) -> Record:
    """Run a benchmark of one cell, and return its record."""
    assert main([*words, "--out=run"]) == 0
    (record,) = load_records([Path("run")])
    return record


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> list[int]:
    """Let evaluations return these accuracies, the last one for ever; return the list of their steps, which grows."""
    steps: list[int] = []

    def accuracy(trainer: Any, network: Any) -> float:
        steps.append(trainer.global_step)
        return accuracies[min(len(steps), len(accuracies)) - 1]

    monkeypatch.setattr(goals, "_validation_accuracy", accuracy)
    return steps


def planned(steps_per_epoch: int) -> Iterator[int]:
    """Yield the steps of the evaluations: each a tenth of the steps so far later, or of an epoch, at most an epoch."""
    step = 0
    while True:
        gap = min(Fraction(max(step, steps_per_epoch), 10), Fraction(steps_per_epoch))
        step += math.ceil(gap)
        yield step


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 10, 97, 1000])
def test_evaluations_come_at_fixed_steps(steps_per_epoch: int) -> None:
    step, expected = 0, planned(steps_per_epoch)
    for _ in range(100):
        last, step = step, next_evaluation(step, steps_per_epoch)
        assert step == next(expected)
        assert 1 <= step - last <= max(1, steps_per_epoch)
    if steps_per_epoch == 1000:
        assert next_evaluation(0, 1000) == 100
        assert next_evaluation(1000, 1000) == 1100
        assert next_evaluation(50_000, 1000) == 51_000


@pytest.mark.parametrize(("text", "share"), [("90%", 0.9), ("90", 0.9), ("99.5 %", 0.995)])
def test_a_goal_is_read(text: str, share: float) -> None:
    assert parse_goal(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--until=0.9"], "until '0.9' looks like a share; write per cent, as in --until 90"),
        (["--until=100"], "until '100' must be below 100 %"),
        (["--until=100.5%"], "until '100.5%' is not above 0 and at most 100 %"),
        (["--until=soon"], "until 'soon' is not a number of per cent"),
        (["--measures=complexity,quality,time_to_accuracy"], "time_to_accuracy and --until belong together"),
        (["--until=90%", "--measures=complexity"], "time_to_accuracy is taken after a training; add quality"),
    ],
)
def test_a_wrong_goal_is_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, "--models=LeNet5", "--epochs=1", *words, "--out=run"]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert not Path("run").exists()


@pytest.mark.parametrize("extra", [[], ["--dry_run"]])
def test_a_goal_needs_a_validation_split(extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    whole = '--data_options={"train_images": 500, "test_images": 20, "val_fraction": 0}'
    assert main([*QUICK[:-3], whole, *QUICK[-2:], "--epochs=1", "--until=90", "--out=run", *extra]) == 2
    assert "--until looks for the goal on the validation split, which data set 'Synthetic' has not" in (
        capsys.readouterr().err
    )
    assert not Path("run").exists()


def test_figures_are_those_of_the_step_that_reaches_the_goal(
    monkeypatch: pytest.MonkeyPatch, without_pictures: None
) -> None:
    """A clock that only training steps and evaluations move: a second per step, and 1,000 per evaluation."""
    steps = scripted(monkeypatch, [0.2, 0.95, 0.3, 0.89999, 0.9, 0.1])
    now = [0.0]
    loss, evaluate = ImageClassifier._training_loss, goals._validation_accuracy

    def slow_step(self: Any, batch: Any) -> Any:
        now[0] += 1
        return loss(self, batch)

    def slow_evaluation(trainer: Any, network: Any) -> float:
        now[0] += 1000
        # The second evaluation is the first that reaches the goal of 93 %.
        return evaluate(trainer, network)

    monkeypatch.setattr(ImageClassifier, "_training_loss", slow_step)
    monkeypatch.setattr(goals, "_validation_accuracy", slow_evaluation)
    monkeypatch.setattr("cnnbench.benchmark.run.TrainingClock", partial(TrainingClock, clock=lambda: now[0]))
    record = run_one(*QUICK, "--epochs=3", "--until=93%")
    # 450 training images in steps of 5 are 90 steps per epoch, so that evaluations begin at steps 9 and 18.
    assert record.data["val_images"] == 50
    assert steps == [9, 18]
    assert record.training["steps"] == 18
    assert record.training["evaluations"] == 2
    assert record.measures["images_to_accuracy"] == record.training["images"] == 18 * 5
    assert record.measures["seconds_to_accuracy"] == record.training["seconds"] == 18
    assert record.measures["val_accuracy_at_goal"] == 0.95
    assert record.measures["macs_to_accuracy"] == 90 * count(LeNet5(in_channels=record.data["in_channels"])).train_macs
    assert record.config["until"] == 0.93
    assert record.config["epochs"] == 3
    assert "time_to_accuracy" in record.config["measures"]
    # The test set is tested once, whole, whatever the goal.
    assert sum(map(sum, record.confusion_matrix or [])) == 20
    assert budget(record) == "3 epochs or until 93 %"


def test_an_accuracy_equal_to_the_goal_is_enough(monkeypatch: pytest.MonkeyPatch, without_pictures: None) -> None:
    # Of 1,000 images 973 are 0.973, which differs in the last digit from 97.3 divided by 100.
    scripted(monkeypatch, [0.5, 972.9 / 1000, 973 / 1000])
    record = run_one(*QUICK, "--epochs=1", "--until=97.3")
    assert record.training["steps"] == 27


def test_a_goal_out_of_reach_is_a_reason_and_no_figure(
    monkeypatch: pytest.MonkeyPatch, without_pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = scripted(monkeypatch, [0.1, 0.841, 0.2])
    record = run_one(*QUICK, "--epochs=2", "--until=90%")
    assert record.status == "ok"
    assert record.skipped["time_to_accuracy"] == "reached 84.1 % of 90 % in 2 epochs"
    assert not {"seconds_to_accuracy", "images_to_accuracy", "macs_to_accuracy"} & record.measures.keys()
    # The last evaluation is that of the end.
    assert record.training["steps"] == steps[-1] == 180
    expected = planned(90)
    assert [*steps[:-1]] == [step for step, _ in zip(expected, steps[:-1], strict=False)]
    assert "reached 84.1 % of 90 % in 2 epochs" in capsys.readouterr().err
    (column,) = [column for column in COLUMNS if column.key == "seconds_to_accuracy"]
    assert column.show(record) == DASH


def test_calls_of_several_steps_are_evaluated_after_the_call(
    monkeypatch: pytest.MonkeyPatch, without_pictures: None
) -> None:
    steps = scripted(monkeypatch, [0.1, 0.2, 0.99])
    words = [word for word in QUICK if not word.startswith("--models")]
    record = run_one(*words, "--models=LeNet5(steps_per_call=4)", "--epochs=1", "--until=90%")
    # Evaluations are due at steps 9, 18 and 27, and calls end at every fourth step.
    assert steps == [12, 20, 28]
    assert record.measures["images_to_accuracy"] == 28 * 5


def test_evaluations_change_nothing_in_the_training(without_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose steps draw random numbers, and which normalises by statistics of its batches."""
    layers = "nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten()"
    Path("net_of_goal.py").write_text(
        f"from torch import nn\n\ndef tiny():\n    return nn.Sequential({layers}, nn.Linear(4, 10))\n"
    )
    monkeypatch.syspath_prepend(Path.cwd())
    weights = []
    for folder, until in (("with", ["--until=99.9%"]), ("without", [])):
        words = ["--models=net_of_goal:tiny", "--measures=quality", "--epochs=1", "--keep_weights", f"--out={folder}"]
        assert main([*BENCH, *words, *until]) == 0
        (file,) = (Path(folder) / "weights").glob("*.ckpt")
        weights.append(torch.load(file, weights_only=True)["state_dict"])
    assert load_records([Path("with")])[0].training["evaluations"] >= 10
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_accuracy_is_that_of_the_validation_split(without_pictures: None) -> None:
    """Lightning's own validation of the same weights, which the measure ``validation`` runs, must agree."""
    words = [word for word in QUICK if not word.startswith("--measures")]
    record = run_one(*words, "--measures=complexity,quality,validation", "--epochs=3", "--until=60%")
    assert "seconds_to_accuracy" in record.measures
    assert record.measures["val_accuracy_at_goal"] == record.measures["val_accuracy"] >= 0.6
    assert 0 < record.measures["seconds_to_accuracy"] == record.training["seconds"]
    points = [point for point in record.training["curve"] if "val/accuracy" in point]
    assert points[-1]["val/accuracy"] == pytest.approx(record.measures["val_accuracy"], abs=1e-5)


def test_a_resumed_run_keeps_its_goal(
    monkeypatch: pytest.MonkeyPatch, without_pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, [0.99])
    run_one(*QUICK, "--epochs=1", "--until=90%")
    assert json.loads(Path("run/plan.json").read_text())["until"] == 0.9
    assert main(["bench", "--resume", "--out=run", "--until=80%"]) == 2
    assert "was started with until 0.9, not 0.8" in capsys.readouterr().err
    assert main(["bench", "--resume", "--out=run", "--until=90"]) == 0
    assert main([*QUICK, "--epochs=1", "--until=90", "--resume", "--out=run"]) == 0


def test_a_dry_run_says_that_a_goal_may_end_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--epochs=1", "--until=90%", "--dry_run", "--out=run"]) == 0
    assert "With --until 90 %, a training ends as soon as it reaches that accuracy" in (
        " ".join(capsys.readouterr().out.split())
    )
    assert main([*QUICK, "--epochs=1", "--until=90%", "--dry_run", "--json", "--out=run"]) == 0
    assert json.loads(capsys.readouterr().out)["until"] == 0.9


# Comparison of two runs


def with_goal(seed: int, seconds: float, until: float = 0.9, **changes: Any) -> Record:
    measures = {"seconds_to_accuracy": seconds, "images_to_accuracy": 640, "macs_to_accuracy": 10**9}
    record = make_record(seed=seed, measures=measures, training=FULL_TRAINING, confusion_matrix=None, **changes)
    record.config["until"] = until
    return record


def seconds_change(first: list[Record], second: list[Record]) -> Change:
    (change,) = [change for change in compare(first, second) if change.figure == "seconds_to_accuracy"]
    return change


def test_compare_has_the_interval_of_welch_on_logarithms() -> None:
    before, after = [10.0, 11.0, 12.5], [14.0, 15.0, 19.0, 16.0]
    change = seconds_change(
        [with_goal(*pair) for pair in enumerate(before)], [with_goal(*pair) for pair in enumerate(after)]
    )
    logs = [math.log(value) for value in after], [math.log(value) for value in before]
    expected = stats.ttest_ind(*logs, equal_var=False).confidence_interval()
    assert (change.low, change.high) == (
        pytest.approx(math.exp(expected.low) - 1),
        pytest.approx(math.exp(expected.high) - 1),
    )
    assert change.change == pytest.approx(stats.gmean(after) / stats.gmean(before) - 1)
    assert change.verdict == "worse"
    assert change.regressed(10)
    # A difference that is not found may hide a worse one, and more seeds would tell.
    gate = Gate([change._replace(verdict="no difference found")], 10)
    assert gate.lines()[-1].endswith("more seeds on both sides make them narrower")
    back = seconds_change(
        [with_goal(*pair) for pair in enumerate(after)], [with_goal(*pair) for pair in enumerate(before)]
    )
    assert back.verdict == "better"


def test_compare_needs_two_seeds_and_the_same_goal_and_machine() -> None:
    assert seconds_change([with_goal(0, 10.0)], [with_goal(0, 11.0)]).verdict == "too few values"
    change = seconds_change([with_goal(0, 10.0)], [with_goal(0, 11.0, until=0.8)])
    assert (change.verdict, change.reason) == ("not comparable", "until 0.9 against 0.8")
    other = with_goal(0, 11.0)
    other.config["budget_s"], other.config["epochs"] = None, 5
    here = with_goal(0, 10.0)
    here.config["budget_s"], here.config["epochs"] = None, 5
    other.environment["device"] = "Other CPU"
    changes = {change.figure: change.verdict for change in compare([here], [other])}
    # Seconds depend on the machine, but images do not.
    assert changes["seconds_to_accuracy"] == "not comparable"
    assert changes["images_to_accuracy"] == "too few values"


def test_compare_says_why_a_goal_was_not_reached() -> None:
    missed = make_record(measures={}, training=FULL_TRAINING, confusion_matrix=None)
    missed.config["until"] = 0.9
    missed.skipped["time_to_accuracy"] = "reached 84.1 % of 90 % in 30 epochs"
    change = seconds_change([with_goal(0, 10.0)], [missed])
    assert (change.verdict, change.reason) == ("missing", "reached 84.1 % of 90 % in 30 epochs")
    assert figures()["seconds_to_accuracy"].better == "less"


def test_a_share_is_no_goal() -> None:
    with pytest.raises(UserError, match=r"--until 90$"):
        parse_goal("0.9")
