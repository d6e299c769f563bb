"""The benchmark: complete records whatever happens, synthetic data that says so, W&B runs with the same figures."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from rich.console import Console
from warm import Warm, time_in_few_rounds

from cnnbench.benchmark import plan as plans
from cnnbench.benchmark import run as runner
from cnnbench.benchmark.display import LiveDisplay
from cnnbench.benchmark.plan import Plan, parse_budget
from cnnbench.checkpoints import read_checkpoint
from cnnbench.cli import main
from cnnbench.confusion import accuracy
from cnnbench.data import get_data, sources
from cnnbench.errors import MissingDataError, UserError
from cnnbench.files import with_checksum, without_checksum
from cnnbench.models import get_model
from cnnbench.record import load_records

pytestmark = pytest.mark.usefixtures("few_rounds")

SMALL = [
    "--device=cpu", "--precision=32-true", "--budget=0.3s", "--speed_batch_size=4", "--batch_size=8",
    '--data_options={"train_images": 60, "test_images": 20}',
]  # fmt: skip
TINY = ["bench", "--models=LeNet5,SimpleCNN", "--data=Synthetic", *SMALL]


def _but(arguments: list[str], *options: str) -> list[str]:
    """Return arguments with options in place of those of the same name, since none may be given twice."""
    names = tuple(f"{option.partition('=')[0]}=" for option in options)
    return [*(argument for argument in arguments if not argument.startswith(names)), *options]


def test_bench_writes_complete_records_and_a_report(capsys: pytest.CaptureFixture) -> None:
    few = '--data_options={"train_images": 16, "test_images": 20}'  # so that an epoch ends within any budget
    assert main([*_but(TINY, few), "--seeds=0,1", "--out=run"]) == 0
    captured = capsys.readouterr()
    records = load_records([Path("run")])
    assert sorted(r.key for r in records) == [f"{m}-Synthetic-seed{s}" for m in ("LeNet5", "SimpleCNN") for s in (0, 1)]
    for r in records:
        assert r.status == "ok"
        assert sum(map(sum, r.confusion_matrix or [])) == 20
        assert r.measures["test_accuracy"] == accuracy(r.confusion_matrix or [])["test_accuracy"]
        assert r.measures["flops"] == 2 * r.measures["macs"]
        assert r.measures["params"] == sum(p.numel() for p in get_model(r.model)().parameters())
        assert r.training["seconds"] >= 0.3
        assert r.training["images"] == r.training["steps"] * 8
        assert r.skipped == {"peak_memory_bytes": "not measured on cpu"}
        assert any("train/accuracy" in p for p in r.training["curve"])
        assert not any("test/accuracy" in p for p in r.training["curve"])
    assert "SYNTHETIC" in captured.out
    for name in ("report.html", "report.md", "results.csv", "figures/accuracy_macs.png"):
        assert (Path("run") / name).is_file()
    assert not list(Path("run").rglob("*.part"))


@pytest.mark.usefixtures("without_pictures")
def test_any_network_is_a_cell() -> None:
    Path("theirs.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes, in_channels):\n"
        "    layers = nn.Conv2d(in_channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)\n"
        "    return nn.Sequential(*layers)\n"
    )
    models = "theirs:tiny,SimpleCNN(head=gap,dropout=0.0),torchvision:googlenet(aux_logits=True)"
    measures = "--measures=complexity,speed,quality,train_quality"
    assert main(["bench", f"--models={models}", "--data=Synthetic", *SMALL, measures, "--out=any"]) == 0
    records = {r.model: r for r in load_records([Path("any")])}
    assert set(records) == {"theirs:tiny", "SimpleCNN(head=gap,dropout=0.0)", "torchvision:googlenet(aux_logits=True)"}
    for r in records.values():
        assert r.status == "ok"
        assert r.measures["train_accuracy"] * 20 == pytest.approx(round(r.measures["train_accuracy"] * 20))
        assert r.measures["train_accuracy_low"] < r.measures["train_accuracy_high"]
    assert records["theirs:tiny"].measures["params"] == 4 * 3 * 9 + 4 + 4 * 10 + 10


@pytest.mark.usefixtures("without_pictures")
def test_train_accuracy_is_that_of_training_images_as_they_are() -> None:
    options = '--data_options={"train_images": 300, "test_images": 100}'
    arguments = ["--epochs=15", "--batch_size=16", "--device=cpu", "--precision=32-true", "--out=learnt"]
    measures = "--measures=quality,train_quality"
    assert (
        main(["bench", "--models=SpeedNet(widths=(16,32,32))", "--data=Synthetic", options, *arguments, measures]) == 0
    )
    assert load_records([Path("learnt")])[0].measures["train_accuracy"] > 0.9  # few enough to be learnt by heart


@pytest.mark.usefixtures("without_pictures", "quick_processes")
def test_memory_is_what_a_process_grows_by() -> None:
    """ResNet18 has 11,173,962 parameters at 32x32; a step keeps them, their gradients and AdamW's two states."""
    options = '--data_options={"train_images": 60, "test_images": 20}'
    arguments = ["--batch_size=4", "--speed_batch_size=4", "--device=cpu", "--precision=32-true", "--out=m"]
    measures = "--measures=speed,memory"
    assert main(["bench", "--models=ResNet18", "--data=Synthetic", options, *arguments, measures]) == 0
    (record,) = load_records([Path("m")])
    assert 1 <= record.measures["resident_bytes"] / (4 * 4 * 11_173_962) < 3
    assert "Resident MiB" in Path("m/report.md").read_text()


def test_measures_and_names_that_do_not_go_together_are_refused() -> None:
    values = {
        "models": ("LeNet5",),
        "data": ("MNIST",),
        "seeds": (0,),
        "measures": ("quality",),
        "budget_s": 1.0,
        "epochs": None,
        "device": "cpu",
        "precision": "32-true",
        "precision_reason": "as asked",
        "batch_size": 1,
        "speed_batch_size": 1,
        "eval_batch_size": 1,
    }
    Plan(**values)
    with pytest.raises(UserError, match="train_quality is taken after a training; add quality"):
        Plan(**values | {"measures": ("train_quality",)})
    for wrong in ({"measures": ("memory",)}, {"measures": ("speed", "memory"), "device": "cuda:0"}):
        with pytest.raises(UserError, match="add speed to the measures, and --device cpu"):
            Plan(**values | wrong)
    with pytest.raises(UserError, match="names that differ in punctuation only"):
        Plan(**values | {"models": ("a.b:c", "a.b_c")})


def test_json_is_one_document_on_stdout(capsys: pytest.CaptureFixture) -> None:
    assert main([*TINY, "--measures=complexity", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [c["params"] for c in cells] == [62_006, 122_570]
    assert cells[0]["train_macs"] == 3 * 651_720 - 3 * 25 * 6 * 28**2  # no gradient of the images
    assert all("test_accuracy" not in c for c in cells)


@pytest.mark.usefixtures("without_pictures")
def test_epochs_are_an_exact_and_repeatable_budget() -> None:
    arguments = [
        "bench",
        "--models=LeNet5",
        "--data=Synthetic",
        "--measures=quality",
        "--epochs=2",
        "--learning_rate=0.002",
        *SMALL,
    ]
    arguments.remove("--budget=0.3s")
    assert main([*arguments, "--out=a"]) == 0
    assert main([*arguments, "--out=b"]) == 0
    first, second = (load_records([Path(folder)])[0] for folder in "ab")
    assert first.training["steps"] == 2 * (54 // 8)
    assert first.training["peak_lr"] == first.config["learning_rate"] == 0.002
    assert first.confusion_matrix == second.confusion_matrix
    assert first.training["curve"] == second.training["curve"]


@pytest.mark.usefixtures("without_pictures")
def test_a_curve_counts_optimizer_steps_where_a_call_has_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps per epoch: calls of four and of two."""
    monkeypatch.setattr("cnnbench.benchmark.run._Run._steps_per_call", lambda self, measures: 4)
    options = [option for option in SMALL if option != "--budget=0.3s"]
    assert main(["bench", "--models=LeNet5", "--data=Synthetic", "--measures=quality", "--epochs=2", *options]) == 0
    (record,) = load_records([next(Path("results/bench").iterdir())])
    assert (record.training["steps"], record.training["steps_per_call"]) == (12, 4)
    steps = [point["step"] for point in record.training["curve"] if "train/loss" in point]
    assert steps == [3, 5, 9, 11]


@pytest.mark.usefixtures("without_pictures")
def test_a_killed_run_resumes_without_repeating(capsys: pytest.CaptureFixture) -> None:
    models = ["LeNet5", "SimpleCNN"]
    arguments = [*_but(TINY, "--budget=2s"), "--out=run"]
    process = Warm(arguments, before=time_in_few_rounds)  # the fixture `few_rounds` does not reach another process
    first = Path("run/records/LeNet5-Synthetic-seed0.json")
    deadline = time.monotonic() + 120
    while not first.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)  # in the middle of the second cell
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [r.model for r in load_records([Path("run")])] == ["LeNet5"]
    before = (first.read_bytes(), first.stat().st_mtime_ns)
    speed = Path("run/speed.json").read_bytes()
    assert main(arguments) == 2  # without --resume nothing is touched
    assert "add --resume" in capsys.readouterr().err
    assert main([*_but(arguments, "--budget=9s"), "--resume"]) == 2
    assert "was started with budget_s 2.0, not 9.0" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert Path("run/speed.json").read_bytes() == speed
    assert sorted(r.model for r in load_records([Path("run")])) == models
    assert main(["bench", "--resume", "--out=run"]) == 0  # all done: only the report again
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before


@pytest.mark.usefixtures("without_pictures")
def test_a_diverged_training_is_a_record_that_says_so(capsys: pytest.CaptureFixture) -> None:
    arguments = ["bench", "--models=LeNet5", "--data=Synthetic", "--measures=quality", "--learning_rate=1e12", *SMALL]
    assert main([*arguments, "--out=run"]) == 0
    (record,) = load_records([Path("run")])
    assert record.training["diverged"]
    assert not record.training["converged"]
    assert "diverged" in " ".join(Path("run/report.md").read_text().split())
    assert "diverged" in capsys.readouterr().err


@pytest.mark.usefixtures("without_pictures")
def test_failed_timing_is_an_error_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = runner.measure_speed

    def fail_one(subjects, *rest):  # type: ignore[no-untyped-def]
        figures = measure(subjects, *rest)
        return {name: {"error": "OutOfMemoryError"} if "LeNet5" in name else f for name, f in figures.items()}

    monkeypatch.setattr(runner, "measure_speed", fail_one)
    assert main([*TINY, "--out=run"]) == 1
    records = {r.model: r for r in load_records([Path("run")])}
    assert records["LeNet5"].reason == "RuntimeError: timing failed: OutOfMemoryError"
    assert "test_accuracy" in records["LeNet5"].measures  # the rest was measured
    assert records["SimpleCNN"].status == "ok"
    monkeypatch.setattr(runner, "measure_speed", measure)
    assert main(["bench", "--resume", "--out=run"]) == 0
    assert all("latency_ms_median" in r.measures for r in load_records([Path("run")]))


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_in_training_says_how_to_go_on(
    name: str, code: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    whole = runner._Progress.on_train_batch_end

    def interrupt(*arguments: object) -> None:
        os.kill(os.getpid(), getattr(signal, name))
        whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(runner._Progress, "on_train_batch_end", interrupt)
        assert main([*TINY, "--measures=quality", "--out=the run"]) == code
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last == f"cnnbench: stopped by {name}; go on with: cnnbench bench --resume --out 'the run'"
    assert "Received" not in error  # Lightning's own line about SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert main(["bench", "--resume", "--out", "the run"]) == 0


def test_two_processes_do_not_share_a_run_folder(capsys: pytest.CaptureFixture) -> None:
    Path("run").mkdir()
    with FileLock("run/.lock"):
        assert main([*TINY, "--measures=complexity", "--out=run"]) == 2
    assert "another process is at work in 'run'" in capsys.readouterr().err


def test_a_plan_whose_device_is_gone_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert main([*TINY, "--measures=complexity", "--out=run"]) == 0
    plan = json.loads(Path("run/plan.json").read_text())
    Path("run/plan.json").write_text(json.dumps(with_checksum(without_checksum(plan, "") | {"device": "cuda:66"})))
    assert main(["bench", "--resume", "--out=run"]) == 2
    assert "device 'cuda:66' is not there" in capsys.readouterr().err


@pytest.mark.usefixtures("without_pictures")
def test_command_line_wins_over_config() -> None:
    Path("x.yaml").write_text("models: [LeNet5]\ndata: Synthetic\nbudget: 2h\nseeds:\n")
    arguments = ["bench", "--config=x.yaml", "--epochs=1", "--measures=complexity", *SMALL]
    arguments.remove("--budget=0.3s")
    assert main([*arguments, "--out=run"]) == 0
    plan = plans.load_plan(Path("run"))
    assert (plan.epochs, plan.budget_s, plan.seeds) == (1, None, (0,))


@pytest.mark.usefixtures("without_pictures")
def test_resume_finds_the_newest_run() -> None:
    for name in ("20250101-000000", "20260101-000000"):
        folder = Path("results/bench") / name
        main([*TINY, "--measures=complexity", f"--out={folder}"])
        (folder / "records" / "LeNet5-Synthetic-seed0.json").unlink()
    assert main(["bench", "--resume"]) == 0
    assert len(load_records([Path("results/bench/20260101-000000")])) == 2
    assert len(load_records([Path("results/bench/20250101-000000")])) == 1


@pytest.mark.usefixtures("without_pictures")
def test_a_failing_cell_is_a_record_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train = runner._Run._train

    def fail(self, cell, *rest):  # type: ignore[no-untyped-def]
        if cell.model == "LeNet5":
            raise RuntimeError("out of memory\nmore lines")
        return train(self, cell, *rest)

    monkeypatch.setattr(runner._Run, "_train", fail)
    assert main([*TINY, "--out=run"]) == 1
    records = {r.model: r for r in load_records([Path("run")])}
    assert (records["LeNet5"].status, records["LeNet5"].reason) == ("error", "RuntimeError: out of memory")
    assert records["LeNet5"].measures["params"] == 62_006
    assert records["SimpleCNN"].status == "ok"
    assert "failed" in capsys.readouterr().out
    monkeypatch.setattr(runner._Run, "_train", train)
    assert main(["bench", "--resume", "--out=run"]) == 0
    assert all(r.status == "ok" for r in load_records([Path("run")]))


def test_missing_data_becomes_synthetic_and_says_so_everywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def offline(urls: list[str], target: Path, md5: str) -> None:
        raise MissingDataError(f"could not download {target.name}; no network")

    monkeypatch.setattr(sources, "fetch", offline)
    drawn = get_data("Synthetic").cls.load
    monkeypatch.setattr(
        get_data("Synthetic").cls,
        "load",
        lambda self: setattr(self, "train_images", 60) or setattr(self, "test_images", 20) or drawn(self),
    )
    arguments = ["bench", "--models=LeNet5", "--data=MNIST", *SMALL[:-1], "--out=run"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    notes = [line for line in captured.err.splitlines() if "no MNIST in 'data'" in line]
    assert len(notes) == 1
    assert "SYNTHETIC" in notes[0]
    (record,) = load_records([Path("run")])
    assert record.data["synthetic"] is True
    assert record.data["label"] == "Synthetic (stands in for MNIST)"
    assert record.data["in_channels"] == 1
    for text in (captured.out, *(Path("run", n).read_text() for n in ("report.html", "report.md", "results.csv"))):
        assert "Synthetic (stands in for MNIST)" in " ".join(text.split())


@pytest.mark.usefixtures("without_pictures")
def test_wandb_offline_runs_hold_the_figures_of_the_records(capsys: pytest.CaptureFixture) -> None:
    assert main([*TINY, "--out=run", "--wandb=online"]) == 0
    first, last = (line for line in capsys.readouterr().err.splitlines() if line.startswith("W&B"))
    assert "no key" in first
    assert last.startswith("W&B: 3 runs recorded offline; upload with: ")
    assert last.endswith(" wandb sync run/wandb/offline-run-*")
    folders = sorted(Path("run/wandb").glob("offline-run-*"))
    assert len(folders) == 3
    runs = {}
    for folder in folders:
        events = [json.loads(text) for text in _inspect(folder).splitlines()]
        runs[_name(events)] = (events, json.loads(_inspect(folder, "--summary")), folder)
    records = {r.key: r for r in load_records([Path("run")])}
    assert set(runs) == {*(f"{key} (synthetic)" for key in records), "comparison"}
    for key, record in records.items():
        events, summary, folder = runs[f"{key} (synthetic)"]
        text = json.dumps(summary)
        assert str(record.measures["params"]) in text
        assert str(record.measures["test_accuracy"])[:8] in text
        assert '"group": "run"' in json.dumps(events) or '"run_group": "run"' in json.dumps(events)
        assert "train/accuracy" in json.dumps(events)
        assert list((folder / "files/media/images").glob("confusion_matrix_image*.png"))
        (table,) = (folder / "files/media/table").glob("**/confusion_matrix*.json")
        names = record.data["class_names"]
        counts = {
            (names[i], names[j]): n for i, row in enumerate(record.confusion_matrix or []) for j, n in enumerate(row)
        }
        assert {(a, p): n for a, p, n in json.loads(table.read_text())["data"]} == counts
    (table,) = (runs["comparison"][2] / "files/media/table").glob("comparison*.json")
    content = json.loads(table.read_text())
    column = content["columns"].index("test_accuracy")
    assert {row[0]: row[column] for row in content["data"]} == {
        r.model: pytest.approx(r.measures["test_accuracy"]) for r in records.values()
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bench_on_a_gpu_measures_the_gpu() -> None:
    arguments = [a for a in TINY if not a.startswith(("--device", "--precision"))]
    assert main([*arguments, "--models=LeNet5,ResNet18", "--device=cuda", "--out=run"]) == 0
    for record in load_records([Path("run")]):
        assert record.config["device"] == "cuda:0"
        assert record.environment["device"] == torch.cuda.get_device_name(0)
        assert record.measures["peak_memory_bytes"] > 3 * 4 * record.measures["params"]
        assert record.skipped == {}


@pytest.mark.usefixtures("without_pictures")
def test_wandb_gets_the_cells_that_an_interruption_left_out() -> None:
    assert main([*TINY, "--measures=complexity", "--out=run"]) == 0
    assert main(["bench", "--resume", "--out=run", "--wandb=offline"]) == 0
    runs = sorted(Path("run/wandb").glob("offline-run-*"))
    assert len(runs) == 3
    assert main(["bench", "--resume", "--out=run", "--wandb=offline"]) == 0
    assert sorted(Path("run/wandb").glob("offline-run-*")) == runs


def _inspect(folder: Path, *options: str) -> str:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", *options, "--json", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _name(events: list[dict]) -> str:
    for event in events:
        run = event.get("run") or {}
        if run.get("display_name") or run.get("displayName"):
            return run.get("display_name") or run["displayName"]
    raise AssertionError(f"no run name in {json.dumps(events)[:500]}")


def test_plans_check_themselves() -> None:
    good = Plan(("LeNet5",), ("MNIST",), (0,), ("speed",), 1.0, None, "cpu", "32-true", "as asked", 8, 8, 8)
    for changes, message in (
        ({"models": ()}, "models is empty"),
        ({"seeds": (1, 1)}, "names something twice"),
        ({"epochs": 2}, "not both"),
        ({"budget_s": float("inf")}, "not positive"),
        ({"batch_size": 0}, "batch_size 0"),
    ):
        with pytest.raises(UserError, match=message):
            replace(good, **changes)  # type: ignore[arg-type]


def test_plans_survive_writing(tmp_path: Path) -> None:
    plan = Plan(
        ("LeNet5",), ("MNIST",), (0, 1), ("speed",), None, 2, "cpu", "32-true", "as asked", 8, 8, 8,
        data_options={"image_size": 28},
    )  # fmt: skip
    plans.save_plan(tmp_path, plan)
    assert plans.load_plan(tmp_path) == plan


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200)])
def test_budgets_have_units(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


def test_default_grid_is_four_networks_on_two_data_sets() -> None:
    assert len(plans.DEFAULT_MODELS) * len(plans.DEFAULT_DATA) == 8
    for name in plans.DEFAULT_MODELS:
        get_model(name)
    for name in plans.DEFAULT_DATA:
        get_data(name)


@pytest.mark.usefixtures("without_pictures")
def test_weights_are_kept_where_that_is_asked_for() -> None:
    options = ["--models=LeNet5", "--data=Synthetic", "--measures=quality", *SMALL]
    assert main(["bench", *options, "--keep_weights", "--out=run"]) == 0
    checkpoint = read_checkpoint(Path("run/weights/LeNet5-Synthetic-seed0.ckpt"))
    model = checkpoint.model
    assert checkpoint.data == "Synthetic"
    (record,) = load_records([Path("run")])
    assert "keep_weights" not in record.config
    data = get_data("Synthetic")(train_images=60, test_images=20)
    data.setup()
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.test_dataloader())
    assert right / 20 == record.measures["test_accuracy"]
    assert main(["bench", "--resume", "--out=run"]) == 0
    assert main(["bench", "--models=LeNet5", "--measures=complexity", "--keep_weights", "--out=no"]) == 2


def test_the_time_left_follows_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("cnnbench.benchmark.display.time.monotonic", lambda: now[0])
    display = LiveDisplay(Console(file=io.StringIO(), width=200))
    display.expect("speed", 20)
    display.expect("LeNet5", 10)
    display.update("speed", 0.0, "warm up LeNet5")
    assert display.words() == "speed: warm up LeNet5, about 0:30 left"
    now[0] = 12.0
    assert display.left() == "about 0:18 left"
    display.update("speed", 0.05, "warm up VGG16")  # too little for a pace of its own
    assert display.left() == "about 0:18 left"
    now[0] = 25.0
    assert display.left() == "longer than expected"
    # Half of it took 30 s, so as much is left, and then the training.
    now[0] = 30.0
    display.update("speed", 0.5, "round 1 of 12")
    assert display.left() == "about 0:40 left"
    now[0] = 45.0
    assert display.left() == "about 0:25 left"
    display.update("speed", 1.0)
    assert display.left() == "about 0:10 left"
    now[0] = 47.0  # nothing is under way that says how far it is
    assert display.left() == "about 0:08 left"
    display.update("LeNet5", 0.0, "epoch 1")
    now[0] = 52.0
    assert display.left() == "about 0:05 left"
    display.update("LeNet5", 1.0)
    assert display.left() == "about 0:00 left"


def test_the_share_of_a_training_counts_the_pixels_of_images_that_grow() -> None:
    plan = SimpleNamespace(epochs=3, max_steps=None)
    trainer = SimpleNamespace(
        callbacks=[],
        lightning_module=SimpleNamespace(steps_per_call=None),
        num_training_batches=10,
        datamodule=SimpleNamespace(sizes=(16, 32)),  # 256, 1,024 and 1,024 pixels
    )
    shares = []
    for trainer.global_step in (0, 10, 15, 30):
        shares.append(runner.training_share(trainer, plan))
    assert shares == pytest.approx([0, 256 / 2304, (256 + 512) / 2304, 1])
    trainer.datamodule = SimpleNamespace()  # a data module of somebody else
    assert runner.training_share(trainer, plan) == 1
    trainer.global_step = 15
    assert runner.training_share(trainer, plan) == 0.5
    # The first of the two limits ends the training.
    assert runner.training_share(trainer, SimpleNamespace(epochs=3, max_steps=20)) == 0.75
    assert runner.training_share(trainer, SimpleNamespace(epochs=None, max_steps=60)) == 0.25


def test_a_recipe_by_name_is_in_the_record_and_a_network_that_it_does_not_fit_is_refused_first(
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = ["--data=Synthetic", "--measures=quality", "--recipe=muon", *SMALL, "--out=run"]
    assert main(["bench", "--models=ResNet20,LeNet5", *arguments]) == 2
    assert "recipe 'muon'" in capsys.readouterr().err
    assert not Path("run").exists()
    assert main(["bench", "--models=ResNet20", *arguments]) == 0
    (record,) = load_records([Path("run")])
    assert record.config["recipe"] == "muon"
    assert record.training["recipe"].startswith("Muon for the filters")
    assert record.training["peak_lr"] == 0.06


@pytest.mark.usefixtures("without_pictures")
def test_one_line_of_a_job_script_starts_a_run_and_goes_on_with_it(capsys: pytest.CaptureFixture) -> None:
    words = ["bench", "--models=LeNet5", "--data=Synthetic", "--measures=quality", *SMALL, "--out=run", "--resume"]
    assert main(words) == 0
    assert "there is no run in 'run' yet" in capsys.readouterr().err
    before = next(Path("run/records").iterdir()).read_bytes()
    assert main(words) == 0
    assert "there is no run" not in capsys.readouterr().err
    assert next(Path("run/records").iterdir()).read_bytes() == before
    # A folder that was mistyped is still an error.
    assert main(["bench", "--out=rum", "--resume"]) == 2
    assert "there is nothing to resume" in capsys.readouterr().err
