"""Launchers of ``bench``: the same figures from other processes, and what happens when one of them dies."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from cnnbench.benchmark import launchers
from cnnbench.benchmark.launchers import Job, find_launcher
from cnnbench.cli import main
from cnnbench.counting.complexity import complexity
from cnnbench.errors import UserError
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
        patch.setattr(launchers, "find_launcher", lambda name, options: _Here())
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
    ],
)
def test_wrong_options_are_one_line(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        find_launcher(name, options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dry_run_says_what_the_cells_take_and_measures_nothing(
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
    assert not Path("run").exists()
    assert main([*BENCH, "--dry_run"]) == 0
    assert "2 cells" in capfd.readouterr().out
