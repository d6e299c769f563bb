"""W&B: what is left of runs that were killed, stopped or tested, and that nothing of them is lost or logged twice.

The client is W&B's own, and the server is the stub on 127.0.0.1 in `wandb_stub`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_record
from wandb_stub import ENTITY, KEY, Run, Stub, closed_port, serving

from cnnbench.cli import main
from cnnbench.record import Record
from cnnbench.report import uploading
from cnnbench.report.tracking import CellTracker, Connection, State, Target

ROOT = Path(__file__).parent.parent
POINTS = [{"step": step, "train/loss": 1.0 / step} for step in (7, 15, 23)]
FIT = [
    "fit", "--model=LeNet5", "--data=Synthetic", "--data.train_images=120", "--data.test_images=20",
    "--data.batch_size=10", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false", "--test=none",
]  # fmt: skip


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """Run a server, and log in to it."""
    with serving() as server:
        _log_in(monkeypatch, server.url)
        yield server


def _log_in(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")
    monkeypatch.setattr(uploading, "NICE", 0)
    monkeypatch.setattr("cnnbench.report.wandb_panels.comparisons", lambda records: [])


def _online(url: str, **words: Any) -> Connection:
    return Connection("online", Target(**{"project": "cnnbench", "entity": ENTITY} | words), url)


def _record(model: str) -> Record:
    record = make_record(model)
    record.training["curve"] = [dict(point) for point in POINTS]
    return record


def _notes(capsys: pytest.CaptureFixture) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("W&B")]


def _steps(run: Run, name: str = "train/loss") -> list[int]:
    return [line["trainer/global_step"] for line in run.history if name in line]


def _recordings(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def _recorded(folder: Path) -> list[Path]:
    """Record two cells and their comparison offline, and return W&B's files."""
    tracker = CellTracker(Connection("offline", Target(project="cnnbench")), folder)
    tracker.log_all([_record("LeNet5"), _record("ResNet18")])
    tracker.close()
    return _recordings(folder)


def test_a_recording_that_was_torn_never_holds_up_the_others(
    stub: Stub, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _recorded(Path("run"))
    # The names of recordings of one second are in the order of their ids, which are random.
    identity = State(Path("run")).runs["ResNet18-MNIST-seed0"].id
    (one,) = [file for file in files if identity in file.name]
    whole = one.read_bytes()
    # As a kill leaves a file within 15 seconds of its start: its header, nothing, or a part of its first record.
    for name, content in (("a", whole[:7]), ("b", b""), ("c", whole[:40]), ("d", bytes(4096))):
        copy = one.parent.with_name(f"offline-run-20260101_000000-{name}")
        copy.mkdir()
        (copy / f"run-{name}.wandb").write_bytes(content)
    # Damage behind the first record is found by W&B's client only.
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 255
    one.write_bytes(damaged)
    start = time.monotonic()
    tracker = CellTracker(_online(stub.url), Path("run"))
    tracker.close()
    assert time.monotonic() - start < 40
    assert stub.named("LeNet5-MNIST-seed0").exit_code == 0
    assert stub.named("comparison").exit_code == 0
    lines = _notes(capsys)
    assert len([line for line in lines if "cannot be uploaded: run/wandb/torn-offline-run-20260101" in line]) == 4
    assert "1 run not uploaded" in lines[-1]
    # The command that is printed names nothing that is torn.
    assert len(list(Path("run/wandb").glob("offline-run-*"))) == 3
    # And without the damaged run, nothing is left.
    shutil.rmtree(one.parent)
    assert uploading.waiting(Path("run/wandb")) == []


def test_a_recording_that_the_client_writes_late_is_not_taken_for_a_torn_one(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's service writes the file some milliseconds after `finish` has returned; here it is even later."""
    tracker = CellTracker(Connection("offline", Target(project="cnnbench")), Path("run"))
    tracker.begin(_record("LeNet5"))
    finish, (file,) = tracker.run.finish, _recordings(Path("run"))
    timers = []

    def late(**words: Any) -> None:
        finish(**words)
        uploading.wait_until_written(file.parent)
        content = file.read_bytes()
        file.write_bytes(b"")
        timers.append(threading.Timer(0.5, file.write_bytes, [content]))
        timers[0].start()

    monkeypatch.setattr(tracker.run, "finish", late)
    tracker.end(_record("LeNet5"))
    tracker.close()
    timers[0].join()
    assert [path.name for path in Path("run/wandb").glob("*offline-run-*")] == [file.parent.name]
    (line,) = _notes(capsys)
    assert "1 run recorded offline" in line


def test_a_recording_that_is_never_written_is_waited_for_a_while(tmp_path: Path) -> None:
    (tmp_path / "run.wandb").write_bytes(b"")
    start = time.monotonic()
    uploading.wait_until_written(tmp_path, seconds=0.1)
    assert 0.1 <= time.monotonic() - start < 5


def test_the_client_refuses_what_counts_as_torn(stub: Stub) -> None:
    """What this package takes for a torn file is compared with what W&B's own client can read."""
    file = _recorded(Path("run"))[0]
    content = file.read_bytes()
    first = 14 + int.from_bytes(content[11:13], "little")
    for length in (0, 3, 7, 13, 14, first - 1, first, len(content) - 5, len(content)):
        file.write_bytes(content[:length])
        inspected = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file.parent)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert uploading._is_torn(file) == (not inspected.stdout.strip()), length


def test_an_upload_that_ended_early_is_begun_again(stub: Stub, capsys: pytest.CaptureFixture) -> None:
    tracker = CellTracker(_online(stub.url), Path("run"))
    tracker.begin(_record("LeNet5"))
    (upload,) = tracker._uploader._uploads
    upload.process.kill()
    upload.process.wait()
    tracker.point(POINTS[0])
    tracker.end(_record("LeNet5"))
    tracker.close()
    assert _steps(stub.named("LeNet5-MNIST-seed0")) == [7]
    assert not [line for line in _notes(capsys) if "upload" in line]


def test_no_connection_at_the_end_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    _recorded(Path("run"))
    url = closed_port()
    _log_in(monkeypatch, url)
    CellTracker(_online(url), Path("run")).close(seconds=8)
    assert f"3 runs not uploaded (no connection with {url}" in _notes(capsys)[-1]


KILLED = """
import os, signal
from pathlib import Path
from cnnbench.report.tracking import CellTracker, Connection, Target
from conftest import make_record
tracker = CellTracker(Connection("offline", Target(project="cnnbench")), Path("run"))
tracker.begin(make_record("LeNet5"))
tracker.point({"step": 7, "train/loss": 9.0})
os.kill(os.getpid(), signal.SIGKILL)
"""


def _killed(code: str) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_cell_that_was_killed_is_logged_anew(stub: Stub, capsys: pytest.CaptureFixture) -> None:
    _killed(KILLED)
    tracker = CellTracker(_online(stub.url), Path("run"))
    tracker.log_all([_record("LeNet5")])
    tracker.close()
    assert {run.properties["displayName"] for run in stub.runs.values()} == {"LeNet5-MNIST-seed0", "comparison"}
    run = stub.named("LeNet5-MNIST-seed0")
    assert _steps(run) == [7, 15, 23]
    assert run.history[0]["train/loss"] == 1.0 / 7
    assert "step" not in run.summary
    assert not [line for line in _notes(capsys) if "upload" in line]
    assert len(list(Path("run/wandb").glob("replaced-offline-run-*"))) == 1


def test_two_commands_do_not_log_to_one_folder(capsys: pytest.CaptureFixture) -> None:
    first, second = (CellTracker(Connection("offline", Target(project="p")), Path("run")) for _ in range(2))
    first.begin(_record("LeNet5"))
    second.log_all([_record("ResNet18")])
    second.close()
    assert _notes(capsys) == ["W&B: another command logs to 'run/wandb', so this one does not"]
    first.close()
    assert list(State(Path("run")).runs) == ["LeNet5-MNIST-seed0"]


FIT_KILLED = f"""
import os, signal
from cnnbench.cli import main
from cnnbench.training.classifier import ImageClassifier
def kill(self):
    if self.trainer.current_epoch == 3:
        os.kill(os.getpid(), signal.SIGKILL)
ImageClassifier.on_train_epoch_start = kill
main({[*FIT, "--trainer.max_epochs=5", "--wandb=online", "--wandb_tags=a,b", "--run=night"]!r})
"""


def test_a_training_that_was_killed_loses_no_point_and_no_tag(stub: Stub) -> None:
    _killed(FIT_KILLED)
    command = [*FIT, "--trainer.max_epochs=5", "--wandb=online", "--run=night", "--resume=auto"]
    assert main(command) == 0
    (run,) = [run for run in stub.runs.values() if run.exit_code == 0]
    # 108 training images in batches of 10 make 10 steps in an epoch, and every second is logged.
    assert _steps(run) == list(range(1, 50, 2))
    assert _steps(run, "val/loss") == [9, 19, 29, 39, 49]
    assert any(name.startswith("lr-") for name in run.history[0])
    assert run.properties["tags"] == ["a", "b"]
    assert uploading.waiting(Path("results/runs/night/wandb")) == []


def test_a_test_leaves_the_run_of_the_training_as_it_is(stub: Stub) -> None:
    words = ["--wandb=online", "--wandb_tags=a,b", "--wandb_group=g"]
    assert main([*FIT, "--trainer.max_epochs=2", *words]) == 0
    (first,) = Path("results/runs/LeNet5-Synthetic").iterdir()
    checkpoint = f"--ckpt_path={first}/checkpoints/last.ckpt"
    # It goes on in the same run, and keeps its tags although nothing says them.
    assert main([*FIT, "--trainer.max_epochs=4", checkpoint, "--wandb=online"]) == 0
    ((identity, run),) = stub.runs.items()
    assert _steps(run) == list(range(1, 40, 2))
    assert (run.properties["tags"], run.properties["groupName"]) == (["a", "b"], "g")
    before, length = dict(run.summary), len(run.history)
    assert main(["test", checkpoint, "--wandb=online"]) == 0
    assert (run.summary, len(run.history)) == (before, length)
    (tested,) = [other for other in stub.runs.values() if other is not run]
    assert (tested.properties["jobType"], tested.properties["groupName"]) == ("test", "g")
    assert tested.settings["training_run"] == identity
    # Steps are counted from 0, so the last of 20 is 19.
    assert {line["trainer/global_step"] for line in tested.history} == {19}
    assert tested.summary["trainer/global_step"] == 19
    assert 0 <= tested.summary["test/accuracy"] <= 1
    # Trainings that go on from the middle of another one have runs of their own, with what was before.
    for epochs in (3, 4):
        assert main([*FIT, f"--trainer.max_epochs={epochs}", checkpoint, "--wandb=online"]) == 0
        assert (run.summary, len(run.history)) == (before, length)
        assert _steps(list(stub.runs.values())[-1]) == list(range(1, 10 * epochs, 2))
    assert len(stub.runs) == 4
