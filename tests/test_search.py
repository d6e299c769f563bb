"""The search for settings of a training: what it finds, that it goes on, and that it never looks at the test set."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cnnbench.cli import main
from cnnbench.commands.search import Options
from cnnbench.data.module import ImageDataModule
from cnnbench.options import parse
from cnnbench.record import load_records

pytest.importorskip("optuna")

from cnnbench.benchmark.search import as_config, plan_of

# One of these rates is so small that nothing is learnt.
SPACE = "{model.learning_rate: [0.000000001, 0.003], data.batch_size: [10, 20]}"
BASE = """
model: {class_path: LeNet5, init_args: {warmup: 0.1}}
data: {class_path: Synthetic, init_args: {train_images: 400, test_images: 20}}
"""
SEARCH = ["search", "--base=base.yaml", "--epochs=2", "--device=cpu", "--precision=32-true", "--out=s"]


@pytest.fixture(autouse=True)
def _base() -> None:
    Path("base.yaml").write_text(BASE)


def test_a_search_finds_the_rate_that_learns(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: ImageDataModule) -> None:
        raise AssertionError("the test set was opened")

    monkeypatch.setattr(ImageDataModule, "test_dataloader", fail)
    assert main([*SEARCH, "--space", SPACE, "--trials=4", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["trials"]
    assert len(rows) == 4
    rates = {row["values"]["model.learning_rate"]: row["val_accuracy"] for row in rows}
    assert rates[0.003] > rates[1e-9]
    best = yaml.safe_load(Path("s/best.yaml").read_text())
    assert best["model"] == {"class_path": "LeNet5", "init_args": {"warmup": 0.1, "learning_rate": 0.003}}
    records = load_records([Path("s")])
    # 40 of the 400 images are for validation.
    assert all(record.data["val_images"] == 40 for record in records)
    assert all(record.confusion_matrix is None for record in records)
    assert {record.config["trial"] for record in records} == {0, 1, 2, 3}


def test_numbers_with_an_exponent_are_numbers() -> None:
    space = "{model.learning_rate: [1e-3, '3E-3'], model.warmup: {low: '1e-2', high: 2e-1}, data.flip: [none, 1e]}"
    asked = parse(Options, ["--model=LeNet5", f"--space={space}"], "cnnbench search")
    assert plan_of(asked).space == {
        "model.learning_rate": [0.001, 0.003],
        "model.warmup": {"low": 0.01, "high": 0.2},
        "data.flip": ["none", "1e"],
    }


def test_the_best_settings_are_a_configuration_of_fit() -> None:
    # The automatic precision of many CPUs is the other one.
    Path("base.yaml").write_text(
        f"seed_everything: 4\n{BASE}trainer: {{precision: 32-true, max_epochs: 9, gradient_clip_val: 0.1}}\n"
    )
    search = ["search", "--base=base.yaml", "--epochs=2", "--device=cpu", "--out=s"]
    assert main([*search, "--space={data.batch_size: [20]}", "--trials=1"]) == 0
    assert main(["fit", "--config=s/best.yaml", "--trainer.enable_progress_bar=false"]) == 0
    (fitted,) = load_records([next(Path("results/runs").glob("*/*"))])
    (trial,) = load_records([Path("s")])
    assert (trial.seed, trial.config["precision"], trial.config["epochs"]) == (4, "32-true", 2)
    assert fitted.seed == trial.seed
    assert trial.training["recipe"].endswith("gradients clipped to 0.1 (norm)")
    for key in ("precision", "epochs", "device", "batch_size", "memory_format"):
        assert fitted.config[key] == trial.config[key]
    for key in ("steps", "images", "recipe", "peak_lr"):
        assert fitted.training[key] == trial.training[key]
    last = [point["val/accuracy"] for point in fitted.training["curve"] if "val/accuracy" in point][-1]
    assert last == pytest.approx(trial.measures["val_accuracy"], abs=1e-4)


@pytest.mark.parametrize(
    ("base", "options", "seed", "precision"),
    [
        ("", [], 0, "bf16-mixed"),
        ("seed_everything: 4\ntrainer: {precision: 32-true}", [], 4, "32-true"),
        ("seed_everything: 4\ntrainer: {precision: 32-true}", ["--seed=0", "--precision=bf16-mixed"], 0, "bf16-mixed"),
    ],
)
def test_the_base_decides_what_no_option_says(
    base: str, options: list[str], seed: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnbench.hardware.cpu_has_bf16", lambda: True)
    Path("base.yaml").write_text(BASE + base)
    asked = parse(Options, ["--base=base.yaml", "--device=cpu", "--data_dir=d", *options], "cnnbench search")
    plan = plan_of(asked)
    assert (plan.seed, plan.precision) == (seed, precision)
    trial = SimpleNamespace(config={"values": {}, "trial": 0}, measures={"val_accuracy": 0.5})
    best = yaml.safe_load(as_config(plan, trial))
    assert best["seed_everything"] == seed
    assert best["data"]["init_args"]["data_dir"] == "d"
    assert best["trainer"] == {"max_epochs": 5, "precision": precision, "accelerator": "cpu", "devices": 1}


@pytest.mark.parametrize("seed", ["true", "-1", "four"])
def test_a_seed_that_trials_cannot_share_is_refused(seed: str, capsys: pytest.CaptureFixture) -> None:
    Path("base.yaml").write_text(f"{BASE}seed_everything: {seed}")
    assert main(SEARCH) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "seed_everything" in line
    assert not Path("s").exists()


def test_a_search_goes_on_with_the_trials_it_has() -> None:
    assert main([*SEARCH, "--space", SPACE, "--trials=2"]) == 0
    before = {path.name: path.read_bytes() for path in Path("s/records").iterdir()}
    assert main([*SEARCH, "--space", SPACE, "--trials=3"]) == 0
    after = {path.name: path.read_bytes() for path in Path("s/records").iterdir()}
    assert len(before) == 2
    assert len(after) == 3
    assert before.items() <= after.items()


def test_a_stopped_search_ends_as_an_undisturbed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # With one random trial, the sampler draws all others from the trials before them.
    monkeypatch.setattr("cnnbench.benchmark.search.STARTUP_TRIALS", 1)
    space = "{model.learning_rate: {low: 0.0001, high: 0.1, log: true}, data.batch_size: [10, 20]}"
    command = [*SEARCH[:-2], "--epochs=1", "--precision=32-true", "--space", space]
    assert main([*command, "--out=whole", "--trials=4"]) == 0
    for trials in (1, 3, 4):
        assert main([*command, "--out=parts", f"--trials={trials}"]) == 0
    whole, parts = ({r.config["trial"]: r for r in load_records([Path(out)])} for out in ("whole", "parts"))
    assert len({str(record.config["values"]) for record in whole.values()}) == 4
    for number, record in whole.items():
        assert parts[number].config["values"] == record.config["values"]
        assert parts[number].config["pruned"] == record.config["pruned"]
        assert parts[number].measures == record.measures
    assert Path("parts/best.yaml").read_text() == Path("whole/best.yaml").read_text()


def test_another_search_in_the_same_folder_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert main([*SEARCH, "--space={data.batch_size: [20]}", "--trials=1"]) == 0
    assert main([*SEARCH, "--space={data.batch_size: [10]}", "--trials=1"]) == 2
    assert "'s' holds another search" in capsys.readouterr().err


def test_a_trial_that_diverges_is_a_record_and_the_search_goes_on(capsys: pytest.CaptureFixture) -> None:
    assert main([*SEARCH, "--space={model.learning_rate: [1.0e+30]}", "--trials=1"]) == 1
    (record,) = load_records([Path("s")])
    assert record.status == "error"
    assert "DivergedError" in record.reason
    assert "every trial failed" in capsys.readouterr().err
    assert not Path("s/best.yaml").exists()


def test_a_trial_that_is_worse_than_most_ends_early(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("cnnbench.benchmark.search.STARTUP_TRIALS", 1)
    assert main([*SEARCH, "--space", SPACE, "--trials=8"]) == 0
    complete: list[float] = []
    pruned = 0
    for record in sorted(load_records([Path("s")]), key=lambda record: record.config["trial"]):
        seen = [point["val/accuracy"] for point in record.training["curve"] if "val/accuracy" in point]
        # The median rule: worse after the first epoch than the median of the trials that ran to their end before.
        is_worse = bool(complete) and seen[0] < statistics.median(complete)
        assert record.config["pruned"] == (is_worse and len(seen) == 1)
        pruned += record.config["pruned"]
        if not record.config["pruned"]:
            complete.append(seen[0])
    assert pruned
    # Messages, the file of the best settings and the report have one name for a trial.
    messages = capsys.readouterr().err
    (best,) = re.findall(r"in (trial-\d{4})\.", Path("s/best.yaml").read_text())
    assert main(["report", "s"]) == 0
    report = capsys.readouterr().out
    for record in load_records([Path("s")]):
        name = record.config["recipe"]
        assert f"{name}: epoch 1, validation" in messages
        assert (f"({name}, pruned)" in report) == record.config["pruned"]
        assert (f"({name})" in report) != record.config["pruned"]
    accuracies = {r.config["recipe"]: r.measures["val_accuracy"] for r in load_records([Path("s")])}
    assert accuracies[best] == max(accuracies.values())


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{}", "the space is empty"),
        ("{learning_rate: [1]}", "must begin with model. or data."),
        ("{model.learning_rate: 3}", "write a list of choices, or a table"),
        ("{model.learning_rate: {low: 1}}", "write a list of choices, or a table"),
        ("{model.learning_rate: {low: 2, high: 1}}", "low must be below high"),
        ("{model.learning_rate: {low: 0, high: 1, log: true}}", "above 0 with log: true"),
        ("{model.learning_rate: {low: a, high: 1}}", "which is no finite number"),
        ("{model.optimizer.lr: [1]}", "needs model.optimizer in the configuration"),
        ("{data.batch_sizes: [1]}", "did you mean 'batch_size'"),
        ("{model.learning_rates: [1]}", "did you mean 'learning_rate'"),
        ("{model.nonsense: [1]}", "valid: "),
        ("{data.split_seed: [1, 2]}", "must be the same in all trials"),
        ("{data.val_fraction: {low: 0.1, high: 0.2}}", "must be the same in all trials"),
        ("{data.subset: [100]}", "must be the same in all trials"),
        ("{data.data_dir: [a, b]}", "must be the same in all trials"),
        ("{data.train_images: [100, 200]}", "must be the same in all trials"),
        ("{model.num_classes: [10]}", "must be the same in all trials"),
        ("{model.learning_rate: [0.1, much]}", "learning_rate 'much'"),
        ("{data.batch_size: [10, 0.5]}", "batch_size 0.5"),
        ("{model.warmup: {low: 0, high: .inf}}", "no finite number"),
    ],
)
def test_a_wrong_space_is_refused(space: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*SEARCH, "--space", space, "--trials=1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
