"""Named runs of ``fit``: one command that starts a training, goes on with it, and says when it is finished."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from cnnbench import interrupts
from cnnbench.cli import main
from cnnbench.record import load_records
from cnnbench.training.callbacks import Stage

DATA = ["--data=Synthetic", "--data.train_images=60", "--data.test_images=20", "--data.batch_size=10"]
CPU = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.precision=32-true"]
FIT = ["fit", "--model=LeNet5", *DATA, *CPU, "--trainer.max_epochs=2"]  # five steps in each epoch
AGAIN = [*FIT, "--run=mine", "--resume=auto"]
RUN = Path("results/runs/mine")


def _stop_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a signal to this process after a step."""
    whole = Stage.on_train_batch_end

    def stop(self: Stage, trainer: L.Trainer, *rest: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), number)
        whole(self, trainer, *rest)

    monkeypatch.setattr(Stage, "on_train_batch_end", stop)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


def test_fewer_epochs_than_the_training_has_are_refused(capsys: pytest.CaptureFixture) -> None:
    assert main([*AGAIN, "--trainer.max_epochs=3"]) == 0
    assert main([*AGAIN, "--trainer.max_epochs=1"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last == "cnnbench: trainer.max_epochs 1 is less than the 3 epochs of the training that goes on; give 3 or more"
    )


def test_the_same_command_starts_continues_and_finishes_a_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert main([*FIT, "--run=whole"]) == 0
    with monkeypatch.context() as patch:
        _stop_at(7, signal.SIGTERM, patch)
        assert main(AGAIN) == 143
    assert main(AGAIN) == 0
    assert _same(_weights(Path("results/runs/whole")), _weights(RUN))
    (record,) = load_records([RUN])
    (undisturbed,) = load_records([Path("results/runs/whole")])
    assert record.confusion_matrix == undisturbed.confusion_matrix
    assert record.training["steps"] == 10
    # What the first part logged is kept beside what the second part logged.
    assert {path.name for path in RUN.glob("metrics*.csv")} == {"metrics.csv", "metrics-1.csv"}
    before = {path: path.read_bytes() for path in RUN.rglob("*.json")}
    capsys.readouterr()
    assert main(AGAIN) == 0
    assert "nothing was left to train" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in RUN.rglob("*.json")} == before


def test_a_run_that_was_killed_before_its_record_gets_one() -> None:
    assert main(AGAIN) == 0
    (record,) = load_records([RUN])
    (path,) = RUN.glob("records/*.json")
    path.unlink()
    assert main(AGAIN) == 0
    (again,) = load_records([RUN])
    assert again.confusion_matrix == record.confusion_matrix
    # The last point of the curve is logged after the last checkpoint is written.
    assert again.training["curve"] == record.training["curve"][:-1]
    assert again.training["steps"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run=mine"], "run 'results/runs/mine' exists; add --resume auto"),
        (
            ["--run=mine", "--resume=auto", "--seed_everything=5"],
            "seed_everything is 5, but",
        ),
        (
            ["--run=mine", "--resume=auto", "--data.split_seed=3"],
            "data.split_seed is 3, but",
        ),
        (["--run=mine", "--resume=auto", "--model=SimpleCNN"], "the checkpoint is of LeNet5, not of SimpleCNN"),
        (["--resume=auto"], "--resume auto needs --run NAME"),
        (["--run=a/b"], "run 'a/b' is not the name of a folder"),
        (["--run=.."], "run '..' is not the name of a folder"),
        (["--run=mine", "--resume=yes"], "unknown resume 'yes'; valid: auto, never"),
    ],
)
def test_what_would_be_another_training_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main([*FIT, "--run=mine"]) == 0
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main([*FIT, *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*") if path.is_file()} == before


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a job of SLURM; returns the file into which its ``scontrol`` writes what it is asked."""
    asked = tmp_path / "asked"
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    variables = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}
    variables |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return asked


def test_a_job_that_slurm_ends_is_queued_again_and_goes_on(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*FIT, "--run=whole"]) == 0
    command = [*FIT, "--resume=auto"]
    with monkeypatch.context() as patch:
        _stop_at(7, signal.SIGUSR1, patch)
        assert main(command) == 128 + signal.SIGUSR1
    assert slurm.read_text() == "requeue 77\n"
    assert main(command) == 0
    # The run is named after the job, which keeps its number.
    assert _same(_weights(Path("results/runs/whole")), _weights(Path("results/runs/slurm-77")))


def test_a_job_that_would_start_anew_is_not_queued_again(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _stop_at(7, signal.SIGUSR1, monkeypatch)
    assert main([*FIT, "--run=mine", "--resume=never"]) == 128 + signal.SIGUSR1
    assert main(FIT) == 128 + signal.SIGUSR1
    assert not slurm.exists()
    assert "job 77 is not queued again, since this command would start anew" in capsys.readouterr().err


SEARCH = ["search", "--model=LeNet5", "--data=Synthetic(train_images=60, test_images=20)", "--trials=4", "--epochs=2",
          "--space={model.learning_rate: {low: 0.0001, high: 0.1, log: true}}", "--device=cpu",
          "--precision=32-true"]  # fmt: skip


def _stop_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGUSR1 to this process at the first step of the third trial."""
    search = pytest.importorskip("cnnbench.benchmark.search")
    measure, whole = search.Search._measure, search._Report.on_train_batch_end
    third = []

    def look(self: Any, trial: Any, number: int) -> Any:
        third[:] = [number == 2]
        return measure(self, trial, number)

    def stop(self: Any, *rest: Any) -> None:
        if third[0]:
            os.kill(os.getpid(), signal.SIGUSR1)
        whole(self, *rest)

    monkeypatch.setattr(search.Search, "_measure", look)
    monkeypatch.setattr(search._Report, "on_train_batch_end", stop)


@pytest.mark.parametrize("where", ["command line", "file"])
def test_a_search_that_slurm_ends_is_queued_again_and_goes_on(
    where: str, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    command = [*SEARCH, "--out=found"]
    if where == "file":
        Path("search.yaml").write_text("out: found\n")
        command = [*SEARCH, "--config=search.yaml"]
    with monkeypatch.context() as patch:
        _stop_search(patch)
        assert main(command) == 128 + signal.SIGUSR1
    assert slurm.read_text() == "requeue 77\n"
    assert len(load_records([Path("found")])) == 2
    # SLURM runs the same command again, which ends as an undisturbed search.
    assert main(command) == 0
    assert main([*SEARCH, "--out=whole"]) == 0
    seen = []
    for folder in ("found", "whole"):
        records = sorted(load_records([Path(folder)]), key=lambda record: record.config["trial"])
        seen.append([(r.config["trial"], r.config["values"], r.measures["val_accuracy"]) for r in records])
    assert len(seen[0]) == 4
    assert seen[0] == seen[1]
    assert slurm.read_text() == "requeue 77\n"


def test_a_search_without_a_folder_is_not_queued_again(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("optuna")
    _stop_search(monkeypatch)
    assert main(SEARCH) == 128 + signal.SIGUSR1
    assert not slurm.exists()
    error = capsys.readouterr().err
    assert "job 77 is not queued again, since this command would start anew; --out lets it go on" in error
    assert "go on with the same command and --out results/search/" in error


@pytest.mark.parametrize(
    ("words", "queued"),
    [
        (["search", "--model=LeNet5", "--out", "s"], True),
        (["search", "--model=LeNet5"], False),
        (["bench", "--models=LeNet5", "--out", "s"], False),
        (["bench", "--resume", "--out", "s"], True),
        (["fit", "--resume", "never"], False),
    ],
)
def test_a_signal_before_the_command_began_is_judged_by_its_words(words: list[str], queued: bool, slurm: Path) -> None:
    interrupts.requeue(signal.SIGUSR1, words)
    assert slurm.exists() == queued


def test_a_task_of_an_array_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "80")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert interrupts.slurm_job() == "77_3"
