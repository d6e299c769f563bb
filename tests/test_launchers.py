"""Launchers of ``bench``: the same figures from other processes, and what happens when one of them dies."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cnnbench import hardware, interrupts
from cnnbench.benchmark import launchers
from cnnbench.benchmark.launchers import Job, find_launcher
from cnnbench.cli import main
from cnnbench.counting.complexity import complexity
from cnnbench.errors import Stopped, UserError
from cnnbench.models.lenet import LeNet5
from cnnbench.record import Record, load_records

pytestmark = pytest.mark.usefixtures("without_pictures")

# Two cells.
BENCH = ["bench", "--models=LeNet5", "--seeds=0,1", "--data=Synthetic", "--epochs=1", "--device=cpu",
         "--data_options={train_images: 60, test_images: 20}", "--batch_size=9", "--measures=complexity,quality",
         "--precision=32-true"]  # fmt: skip
DETERMINISTIC = ("model", "data", "seed", "status", "config", "confusion_matrix")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let a cell need one processor, so that tests beside this one do not wait for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _figures(folder: str) -> list[dict[str, object]]:
    """Return what a cell gives wherever it is measured."""
    found = []
    # Records come in the order in which they were made, which an engine decides.
    for record in sorted(load_records([Path(folder)]), key=lambda record: record.seed):
        figures = {name: getattr(record, name) for name in DETERMINISTIC}
        figures |= {key: record.measures[key] for key in ("params", "macs", "test_accuracy")}
        found.append(figures | {key: record.training[key] for key in ("steps", "images", "recipe", "peak_lr")})
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """The figures of the cells when this process measures them."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([*BENCH, "--out=here"]) == 0
        return _figures("here")
    finally:
        torch.set_num_threads(threads)
        os.chdir(before)


@pytest.mark.parametrize(
    "options",
    [["--launcher=ray"], ["--launcher=slurm", "--launcher_options={cluster: local, timeout_min: 5}"]],
    ids=["ray", "slurm"],
)
def test_an_engine_gives_the_same_figures(options: list[str], here: list[dict[str, object]], one_thread: None) -> None:
    assert main([*BENCH, *options, "--out=there"]) == 0
    assert _figures("there") == here
    commands = {record.environment["command_line"] for record in load_records([Path("there")])}
    assert commands == {shlex.join(["cnnbench", *BENCH, *options, "--out=there"])}
    assert len(list(Path("there/predictions").iterdir())) == 2
    # What is finished is not measured again, whatever launches it.
    before = {path: path.read_bytes() for path in Path("there/records").iterdir()}
    assert main(["bench", "--resume", "--out=there"]) == 0
    assert {path: path.read_bytes() for path in Path("there/records").iterdir()} == before


class _Here:
    """Launcher that measures in this process, and loses the second cell."""

    def run(self, jobs: Sequence[Job], folder: Path) -> Iterator[tuple[str, Record | str]]:
        first, second = jobs
        yield first.key, first.measure()
        yield second.key, "WorkerCrashedError: the process that measured it ended 3 times"


def test_a_cell_that_is_lost_is_a_failed_one_and_can_be_measured_later(
    here: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(launchers, "find_launcher", lambda name, options, device: _Here())
        assert main([*BENCH, "--out=run"]) == 1
    first, second = sorted(load_records([Path("run")]), key=lambda record: record.seed)
    assert (first.status, second.status) == ("ok", "error")
    assert second.reason.startswith("WorkerCrashedError")
    assert main(["bench", "--resume", "--out=run"]) == 0
    assert _figures("run") == here


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_killed_process_costs_its_cell_a_retry_and_nothing_else(
    name: str, here: list[dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    measured = launchers._measured

    def deadly(job: Job, threads: int) -> Record:
        try:
            Path(tmp_path, "died").touch(exist_ok=False)
        except FileExistsError:
            return measured(job, threads)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it lives")

    monkeypatch.setattr(launchers, "_measured", deadly)
    options = ["--launcher_options={cluster: local}"] if name == "slurm" else []
    assert main([*BENCH, f"--launcher={name}", *options, "--out=there"]) == 0
    assert Path(tmp_path, "died").exists()
    assert _figures("there") == here


SLOW = """
import time
from pathlib import Path
import torch
from torch import nn

class Slow(nn.Module):
    def __init__(self, num_classes=10, in_channels=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 32 * 32, num_classes))

    def forward(self, x):
        # The seed is that of the cell: the first cell is fast, and the others are in the hurry of the test.
        if torch.initial_seed() > 0 and not Path("{folder}/hurry").exists():
            time.sleep(1)
        return self.layers(x)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_killed_driver_loses_the_unfinished_cells_only(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    Path("lingering.py").write_text(SLOW.replace("{folder}", str(tmp_path)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ["--launcher_options={cluster: local, timeout_min: 5}"] if name == "slurm" else []
    launch = [f"--launcher={name}", *options, "--trust=lingering"]
    bench = [option.replace("=LeNet5", "=lingering:Slow").replace("=0,1", "=0,1,2") for option in BENCH]
    driver = subprocess.Popen([sys.executable, "-m", "cnnbench", *bench, *launch, "--out=there"])
    records = Path("there/records")
    end = time.monotonic() + 120
    while not list(records.glob("[!.]*.json")):
        assert driver.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    (first,) = records.glob("[!.]*.json")
    before = first.read_bytes()
    assert "seed0" in first.name
    Path("hurry").touch()
    assert main(["bench", "--resume", *launch, "--out=there"]) == 0
    assert first.read_bytes() == before
    assert main([*bench, "--out=alone"]) == 0
    assert _figures("there") == _figures("alone")
    assert len(_figures("there")) == 3


class _Executor:
    """An executor on SLURM whose jobs never end."""

    cluster = "slurm"

    def batch(self) -> Any:
        return contextlib.nullcontext()

    def submit(self, *_: object) -> Any:
        self.last = getattr(self, "last", -1) + 1
        return SimpleNamespace(job_id=f"55_{self.last}", done=lambda: False, cancel=lambda: None)


def test_jobs_that_a_killed_driver_left_are_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    program = tmp_path / "bin" / "scancel"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/cancelled\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(launchers, "POLL_S", 0.0)
    launcher = find_launcher("slurm", {"cluster": "local"}, "cpu")
    monkeypatch.setattr(launcher, "_executor", lambda folder: _Executor())
    listed = tmp_path / "slurm" / launchers.JOBS_FILE
    jobs = [Job(key, lambda: None) for key in ("a", "b")]

    def stop() -> None:
        raise Stopped(signal.SIGTERM)

    looked = []
    monkeypatch.setattr(launchers.interrupts, "check", lambda: looked.append(listed.read_text()) or stop())
    listed.parent.mkdir()
    # A damaged line names no job.
    listed.write_text("41_0\n41_1\n--all\n")
    with pytest.raises(Stopped):
        list(launcher.run(jobs, tmp_path))
    assert (tmp_path / "cancelled").read_text() == "41_0 41_1\n"
    assert "left behind are cancelled: 41_0, 41_1" in capsys.readouterr().err
    # While its jobs run their ids are on the disk; a driver that is stopped cancels them itself.
    assert looked == ["55_0\n55_1"]
    assert not listed.exists()


@pytest.mark.slow
def test_a_cluster_of_two_nodes_gives_the_same_figures(
    here: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        options = [f"--launcher_options={{address: '{cluster.address}'}}"]
        assert main([*BENCH, "--launcher=ray", *options, "--out=there"]) == 0
    finally:
        cluster.shutdown()
    assert _figures("there") == here


def test_a_cell_that_needs_more_than_there_is_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray itself would wait without an end."""
    ray = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 2.0})
    monkeypatch.setattr(launchers, "optional", lambda *_: ray)
    for options, message in (({"cpus": 100}, "cpus 100, and Ray has 2"), ({"gpus": 1}, "gpus 1, and Ray has 0")):
        launcher = find_launcher("ray", options, "cpu")
        assert launcher is not None
        with pytest.raises(UserError, match=message):
            list(launcher.run([], tmp_path))


def test_without_slurm_nothing_is_started_unless_the_user_says_so() -> None:
    with pytest.raises(UserError, match="SLURM is not on this machine"):
        find_launcher("slurm", {}, "cpu")


def test_signals_are_this_programs_after_ray_has_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    ray = SimpleNamespace(
        is_initialized=lambda: False, init=init, cluster_resources=lambda: {"CPU": 64.0}, shutdown=lambda: None,
        remote=lambda **_: lambda function: function,
    )  # fmt: skip
    monkeypatch.setattr(launchers, "optional", lambda *_: ray)
    launcher = find_launcher("ray", {}, "cpu")
    assert launcher is not None
    with interrupts.stoppable():
        assert list(launcher.run([], tmp_path)) == []
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rey", {}, "unknown launcher 'rey'; did you mean 'ray'"),
        ("local", {"cpus": 1}, "launcher_options are for --launcher ray or slurm"),
        ("ray", {"cpus": 0}, "launcher_options: cpus 0 is not a whole number that a cell can use"),
        ("ray", {"gpus": "two"}, "launcher_options: gpus 'two' is not a number"),
        ("ray", {"adress": "auto"}, "unknown option of the launcher: 'adress'; did you mean 'address'"),
        ("slurm", {"cluster": "local", "gpus": 0.5}, "gpus 0.5 is not a whole number"),
        ("slurm", {"cluster": "local", "time_out": 3}, "launcher_options: "),
        ("slurm", {"cluster": "moon"}, "launcher_options: "),
        ("ray", {"cpus": math.nan}, "launcher_options: cpus nan is not a whole number"),
        ("ray", {"cpus": math.inf}, "launcher_options: cpus inf is not a whole number"),
        ("ray", {"gpus": 1.5}, "launcher_options: gpus 1.5 is not a whole number"),
    ],
)
def test_wrong_options_are_one_line(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        find_launcher(name, options, "cpu")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("device", "options", "gpus"),
    [("cpu", {}, 0.0), ("cuda:0", {}, 1.0), ("cuda:0", {"gpus": 0.5}, 0.5), ("cpu", {"gpus": 1}, 1.0)],
)
def test_a_cell_reserves_a_gpu_where_it_runs_on_one(
    device: str, options: dict[str, object], gpus: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a machine with GPUs; what it has is not asked, only what the cells need."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = []

    def remote(**resources: object) -> object:
        asked.append(resources)
        return lambda function: function

    there = {"CPU": 64.0, "GPU": 2.0}
    ray = SimpleNamespace(is_initialized=lambda: True, remote=remote, cluster_resources=lambda: there)
    monkeypatch.setattr(launchers, "optional", lambda *_: ray)
    launcher = find_launcher("ray", options, device)
    assert launcher is not None
    assert list(launcher.run([], tmp_path)) == []
    assert asked == [{"num_cpus": torch.get_num_threads(), "num_gpus": gpus, "max_retries": launchers.RETRIES}]


def test_a_job_of_slurm_reserves_a_gpu_where_it_runs_on_one() -> None:
    for device, gpus in (("cpu", 0), ("cuda:0", 1)):
        launcher = find_launcher("slurm", {"cluster": "local"}, device)
        assert launcher._parameters["gpus_per_node"] == gpus
    # Looking whether the options are right leaves nothing in the working folder.
    assert not Path("slurm").exists()


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_gpu_by_its_number_is_refused_before_anything_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(hardware, "choose_precision", lambda *_: ("32-true", "as asked"))
    command = [option.replace("=cpu", "=cuda:1") for option in BENCH]
    assert main([*command, f"--launcher={name}", "--out=run"]) == 2
    error = capsys.readouterr().err.strip()
    assert f"device cuda:1 is a GPU of this machine, but each cell of --launcher {name} sees its own GPU" in error
    assert len(error.splitlines()) == 1
    assert not Path("run").exists()


def test_cells_on_gpus_without_any_are_refused() -> None:
    with pytest.raises(UserError, match="gpus 0 leaves cells on --device cuda without a GPU; give them 1 or a share"):
        find_launcher("ray", {"gpus": 0}, "cuda:0")


def _visible(folder: Path, key: str, others: Sequence[str]) -> str:
    """Return the GPUs that this process sees, while the other cells run too."""
    Path(folder, key).touch()
    end = time.monotonic() + 60
    while not all(Path(folder, other).exists() for other in others):
        if time.monotonic() > end:
            raise TimeoutError(f"{key} waits for {others}")
        time.sleep(0.05)
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.slow
def test_cells_that_run_at_once_have_different_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is told that this machine has two GPUs, and hands them out."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    # Ray's workers do not find this file, so the function is sent to them by value.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        launcher = find_launcher("ray", {"cpus": 1}, "cuda:0")
        assert launcher is not None
        jobs = [Job(key, partial(_visible, tmp_path, key, ("a", "b"))) for key in ("a", "b")]
        seen = dict(launcher.run(jobs, tmp_path))
    finally:
        ray.shutdown()
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert sorted(seen.values()) == ["0", "1"]


def test_a_dry_run_says_what_the_cells_take_and_writes_nothing(
    here: list[dict[str, object]], capfd: pytest.CaptureFixture
) -> None:
    assert main([*BENCH, "--dry_run", "--json", "--out=run"]) == 0
    captured = capfd.readouterr()
    assert "Error" not in captured.err
    cells = json.loads(captured.out)["cells"]
    assert [cell["cell"] for cell in cells] == ["LeNet5-Synthetic-seed0", "LeNet5-Synthetic-seed1"]
    assert {cell["params"] for cell in cells} == {here[0]["params"]}
    # 54 training images make six batches of nine.
    assert {cell["images"] for cell in cells} == {here[0]["images"]} == {54}
    cost = complexity(LeNet5(), (3, 32, 32))
    assert cells[0]["train_macs"] == 54 * cost.train_macs
    # Weights, gradients and AdamW's two moments alone have four bytes each.
    assert cells[0]["step_bytes"] > 4 * 4 * here[0]["params"]
    # LeNet5 needs far less than a second for 54 images, and both seeds have the same estimate.
    assert 0 < cells[0]["seconds"] == cells[1]["seconds"] < 10
    assert not Path("run").exists()
    assert main([*BENCH, "--dry_run"]) == 0
    assert "2 cells; about " in capfd.readouterr().out
