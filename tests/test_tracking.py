"""W&B: what its server gets, and that no server, no key and no error costs a cell.

The client is W&B's own, and the server is the stub on 127.0.0.1 in `wandb_stub`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import make_record
from wandb_stub import ENTITY, KEY, Stub, closed_port, serving
from warm import WarmChild

from cnnbench.cli import main
from cnnbench.predictions import Examples
from cnnbench.record import Record, load_records, parse_record
from cnnbench.report import tracking, uploading
from cnnbench.report.tracking import CellTracker, Connection, State, Target, connect
from cnnbench.report.wandb_panels import best_values

pytestmark = pytest.mark.usefixtures("without_comparisons", "quick_uploads")

ROOT = Path(__file__).parent.parent
POINTS = [{"step": 9, "train/accuracy": 0.5, "train/loss": 1.2}, {"step": 19, "train/accuracy": 0.8, "train/loss": 1.4}]


@pytest.fixture
def quick_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let W&B's client be imported once, and not anew in the process of every upload, as in `test_tracking_kills`."""
    monkeypatch.setattr(uploading, "_process", WarmChild)


@pytest.fixture
def without_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log no pictures that compare networks, which take seconds to draw."""
    monkeypatch.setattr("cnnbench.report.wandb_panels.comparisons", lambda records: [])
    monkeypatch.setattr("cnnbench.report.outputs.draw_pictures", lambda records, folder: _nothing_drawn())


def _nothing_drawn() -> Any:
    from cnnbench.report.pictures import Drawn

    return Drawn()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """Run a server, and log in to it."""
    with serving() as server:
        _log_in(monkeypatch, server.url)
        yield server


def _log_in(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    # Beside other tests, an upload of the lowest priority would take long.
    monkeypatch.setattr(uploading, "NICE", 0)
    # The client sends points every 15 seconds by default.
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def _record(model: str = "LeNet5", **changes: Any) -> Record:
    record = make_record(model, **changes)
    record.training["curve"] = [dict(point) for point in POINTS]
    return record


def _online(url: str) -> Connection:
    return Connection("online", Target(project="cnnbench", entity=ENTITY), url)


def _wait_for(fact: Callable[[], bool]) -> None:
    limit = time.monotonic() + 45
    while not fact():
        assert time.monotonic() < limit
        time.sleep(0.1)


def _notes(capsys: pytest.CaptureFixture) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("W&B")]


# Whether and where


def test_connection_has_the_options_then_the_environment_then_the_defaults(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connect("online") == Connection("online", Target(project="cnnbench", entity=ENTITY), stub.url)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    monkeypatch.setenv("WANDB_TAGS", "a, b,")
    monkeypatch.setenv("WANDB_NOTES", "why")
    monkeypatch.setenv("WANDB_RUN_GROUP", "many")
    found = connect("offline").target
    assert found == Target(project="theirs", entity="team", group="many", tags=("a", "b"), notes="why")
    typed = Target(project="mine", entity="me", group="few", tags=("c",), notes="because")
    assert connect("offline", typed).target == typed


@pytest.mark.parametrize("place", ["netrc", "settings"])
def test_a_key_is_found_wherever_wandb_login_puts_it(
    place: str, stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    host = stub.url.removeprefix("http://")
    Path("netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    if place == "settings":
        # `wandb login --host` keeps the address of the server here.
        monkeypatch.delenv("WANDB_BASE_URL")
        Path("wandb").mkdir()
        Path("wandb/settings").write_text(f"[default]\nbase_url = {stub.url}\n")
    assert connect("online").mode == "online"


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("denies", "user is not logged in"),
        ("hangs", "no answer of the server within 4 s"),
        ("closed", "no connection with http://127.0.0.1:"),
        ("no key", "no key (WANDB_API_KEY or `wandb login`)"),
        ("short key", "API key must have 40+ characters"),
    ],
)
def test_without_a_server_that_answers_it_is_offline_with_one_line(
    mode: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(uploading, "ANSWER_S", 4.0 if mode == "hangs" else 25.0)
    with serving("denies" if mode == "denies" else "hangs") as server:
        _log_in(monkeypatch, closed_port() if mode == "closed" else server.url)
        if mode == "no key":
            monkeypatch.delenv("WANDB_API_KEY")
        if mode == "short key":
            monkeypatch.setenv("WANDB_API_KEY", "abc")
        start = time.monotonic()
        assert connect("online").mode == "offline"
        assert time.monotonic() - start < 20
    (line,) = _notes(capsys)
    assert words in line
    assert line.endswith(", so logging offline")


@pytest.mark.parametrize(("word", "mode"), [("offline", "offline"), ("dryrun", "offline"), ("disabled", "off")])
def test_the_mode_of_the_environment_counts(
    word: str, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", word)
    assert connect("online").mode == mode
    assert f"WANDB_MODE is {word}" in _notes(capsys)[0]


# What the server gets


def test_a_cell_is_logged_while_it_is_measured(stub: Stub) -> None:
    tracker = CellTracker(_online(stub.url), Path("run"))
    record = _record(synthetic=True)
    tracker.begin(record)
    tracker.point(POINTS[0])
    _wait_for(lambda: any(run.history for run in stub.runs.values()))
    run = stub.named("LeNet5-MNIST-seed0 (synthetic)")
    assert run.exit_code is None
    tracker.point(POINTS[1])
    tracker.end(record)
    tracker.close()
    assert run.exit_code == 0
    curve = [line for line in run.history if "train/accuracy" in line]
    assert [(line["trainer/global_step"], line["train/accuracy"]) for line in curve] == [(9, 0.5), (19, 0.8)]


def test_a_run_has_figures_tables_and_artifacts(stub: Stub) -> None:
    record = _record(confusion_matrix=[[4, 0, 0], [1, 2, 0], [0, 0, 3]])
    weights = Path("run/weights/LeNet5-MNIST-seed0.ckpt")
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    target = Target(project="grids", entity=ENTITY, tags=("a", "b"), notes="why")
    tracker = CellTracker(Connection("online", target, stub.url), Path("run"))
    tracker.begin(record)
    for point in record.training["curve"]:
        tracker.point(point)
    filters = np.ones((4, 3, 5, 5), dtype=np.float32)
    tracker.show(Examples(np.zeros((2, 28, 28, 1), dtype=np.uint8), [3, 8], ["one", "two"], ["zero", "one"], filters))
    tracker.end(record)
    tracker.log_all([record])
    tracker.close()
    assert len(stub.runs) == 2
    run = stub.named("LeNet5-MNIST-seed0")
    assert run.properties["project"] == "grids"
    assert run.properties["groupName"] == "run"
    assert (run.properties["tags"], run.properties["notes"]) == (["a", "b"], "why")
    assert run.settings["model"] == "LeNet5"
    assert run.settings["recipe_words"] == "AdamW"
    metrics = json.loads(run.config)["_wandb"]["value"]["m"]
    assert "trainer/global_step" in json.dumps(metrics)
    assert [line["trainer/global_step"] for line in run.history] == [9, 19, 19, 19]
    summary = run.summary
    assert (summary["params"], summary["test_accuracy"], summary["status"]) == (61706, 0.9, "ok")
    assert (summary["train/accuracy"], summary["best/train/accuracy"]) == (0.8, 0.8)
    assert (summary["train/loss"], summary["best/train/loss"]) == (1.4, 1.2)
    tables = {name.split("/")[-1].split("_")[0]: json.loads(c) for name, c in run.files.items() if "/table/" in name}
    assert tables["classes"]["data"][1][:3] == ["one", 3, pytest.approx(2 / 3)]
    assert tables["classes"]["data"][1][-1] == "zero (1)"
    assert ["one", "zero", 1] in tables["confusion"]["data"]
    assert [row[1:] for row in tables["mistakes"]["data"]] == [[3, "one", "zero"], [8, "two", "one"]]
    for name in ("confusion_matrix_image", "filters"):
        assert any(name in file for file in run.files)
    kinds = {kind for _, kind in run.artifacts}
    assert {"record", "model"} <= kinds
    comparison = stub.named("comparison")
    (panels,) = comparison.history
    assert {"comparison", "accuracy", "accuracy_macs", "accuracy_latency", "curves/loss"} <= {
        key.removesuffix("_table") for key in panels
    }
    assert "records" in {kind for _, kind in comparison.artifacts}


def test_a_report_of_two_runs_of_a_cell_keeps_them_apart(stub: Stub) -> None:
    tracker = CellTracker(_online(stub.url), Path("both"))
    first, second = _record(), _record(created="2026-01-01T00:00:00+00:00")
    tracker.log_all([first, second])
    tracker.close()
    names = {run.properties["displayName"] for run in stub.runs.values()}
    assert names == {"LeNet5-MNIST-seed0", "LeNet5-MNIST-seed0-2", "comparison"}


def test_a_report_makes_a_workspace_once(stub: Stub, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("wandb_workspaces")
    for _ in range(2):
        tracker = CellTracker(_online(stub.url), Path("both"))
        tracker.show_workspace()
        (name,) = stub.views
        assert _notes(capsys)[-1] == f"W&B: {stub.url}/{ENTITY}/cnnbench?nw={name[3:-2]}"
    view = stub.views[name]
    assert (view["entityName"], view["projectName"], view["displayName"]) == (ENTITY, "cnnbench", "both")
    assert '"summary:latency_ms_median"' in view["spec"]
    assert '"name":"group"},"op":"=","value":"both"' in view["spec"]


def test_best_values_are_the_smallest_loss_and_the_largest_of_the_rest() -> None:
    before = {"best/val/accuracy": 0.9}
    points = [{"step": 1, "val/loss": 2.0, "val/accuracy": 0.1, "lr": 3.0}, {"step": 2, "val/loss": 4.0}]
    assert best_values(points, before) == {"best/val/loss": 2.0, "best/val/accuracy": 0.9}


# What goes wrong


@pytest.mark.parametrize(
    "mode", ["dies", "revokes", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("closed", "hangs"))]
)
def test_a_server_that_goes_away_costs_a_line_and_what_is_left_is_uploaded_later(
    mode: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    records = [_record(), _record("ResNet18")]
    with serving("hangs" if mode == "closed" else mode) as server:
        url = closed_port() if mode == "closed" else server.url
        _log_in(monkeypatch, url)
        tracker = CellTracker(_online(url), Path("a run"))
        tracker.log_all(records)
        start = time.monotonic()
        tracker.close(seconds=4)
        assert time.monotonic() - start < 20
    (line,) = [line for line in _notes(capsys) if "upload with" in line]
    assert "wandb sync 'a run/wandb'/offline-run-*" in line
    left = len(uploading.waiting(Path("a run/wandb")))
    assert 1 <= left <= 3
    assert line.startswith(f"W&B: {left} run")
    with serving() as server:
        _log_in(monkeypatch, server.url)
        tracker = CellTracker(_online(server.url), Path("a run"))
        tracker.log_all(records)
        tracker.close()
        assert not uploading.waiting(Path("a run/wandb"))
        assert len(server.runs) >= left
        for run in server.runs.values():
            assert run.exit_code == 0


@pytest.mark.slow
def test_a_slow_server_only_takes_longer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    with serving("slow") as server:
        _log_in(monkeypatch, server.url)
        tracker = CellTracker(_online(server.url), Path("run"))
        tracker.begin(_record())
        tracker.point(POINTS[0])
        tracker.end(_record())
        tracker.close()
        assert server.named("LeNet5-MNIST-seed0").exit_code == 0
    assert not [line for line in _notes(capsys) if "upload with" in line]


def test_an_error_of_the_client_ends_the_logging_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import wandb

    def fail(**options: Any) -> None:
        raise RuntimeError("no\nspace")

    monkeypatch.setattr(wandb, "init", fail)
    tracker = CellTracker(Connection("offline"), Path("run"))
    tracker.log_all([_record(), _record("ResNet18")])
    tracker.close()
    (line,) = _notes(capsys)
    assert line == "W&B: nothing more is logged (RuntimeError: no space)"
    assert not any(run.done for run in State(Path("run")).runs.values())


def test_a_state_that_cannot_be_read_starts_new_runs(capsys: pytest.CaptureFixture) -> None:
    state = State(Path())
    run = state.start("cell", "name", Target())
    run.step, run.summary = 7, {"best/val/loss": 0.5}
    state.keep()
    assert State(Path()).runs == {"cell": run}
    for text in ("", "[]", '{"identity": "a"}', '{"identity": "a", "runs": {"cell": {"step": 1}}}'):
        Path("wandb/runs.json").write_text(text)
        assert State(Path()).runs == {}
    assert len(_notes(capsys)) == 4


def test_every_attempt_at_a_cell_has_an_id_of_its_own() -> None:
    state, target = State(Path("a")), Target()
    first = state.start("x", "x", target)
    others = [state.start("x", "x", target), state.start("y", "y", target), State(Path("c")).start("x", "x", target)]
    ids = {run.id for run in (first, *others)}
    assert len(ids) == 4
    assert all(len(one) == 16 and one.isalnum() for one in ids)


# The commands

SPLITS = ("train/", "val/")
SMALL = [
    "--device=cpu", "--precision=32-true", "--epochs=2", "--batch_size=8", "--measures=complexity,quality",
    '--data_options={"train_images": 60, "test_images": 20}',
]  # fmt: skip
FIT = [
    "fit", "--model=LeNet5", "--data=Synthetic", "--data.train_images=120", "--data.test_images=20",
    "--data.batch_size=10", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip


def test_bench_logs_each_cell_once_whatever_happens(stub: Stub, capsys: pytest.CaptureFixture) -> None:
    options = ["--models=LeNet5,SimpleCNN", "--data=Synthetic", *SMALL, "--out=run"]
    words = ["--wandb=online", "--wandb_project=grids", "--wandb_tags=a,b"]
    assert main(["bench", *options, *words]) == 0
    assert f"W&B: {stub.url}/{ENTITY}/grids/groups/run" in _notes(capsys)
    assert main(["bench", "--resume", "--out=run", *words]) == 0
    assert main(["report", "run", *words]) == 0
    assert len(stub.runs) == 3
    for record in load_records([Path("run")]):
        run = stub.named(f"{record.key} (synthetic)")
        assert (run.properties["project"], run.properties["tags"]) == ("grids", ["a", "b"])
        curve = [
            {"step": line["trainer/global_step"]} | {name: line[name] for name in line if name.startswith(SPLITS)}
            for line in run.history
            if any(name.startswith(SPLITS) for name in line)
        ]
        assert curve == record.training["curve"]
        assert run.summary["test_accuracy"] == pytest.approx(record.measures["test_accuracy"])
    (panels,) = stub.named("comparison").history
    assert panels


def test_fit_and_its_continuation_are_one_run(stub: Stub, capsys: pytest.CaptureFixture) -> None:
    words = ["--wandb=online", "--wandb_tags=a,b"]
    assert main([*FIT, "--trainer.max_epochs=2", *words]) == 0
    (first,) = Path("results/runs/LeNet5-Synthetic").iterdir()
    (identity,) = stub.runs
    assert f"W&B: {stub.url}/{ENTITY}/cnnbench/runs/{identity}" in _notes(capsys)
    run = stub.runs[identity]
    before = [line["trainer/global_step"] for line in run.history]
    checkpoint = f"--ckpt_path={first}/checkpoints/last.ckpt"
    assert main([*FIT, "--trainer.max_epochs=4", checkpoint, *words]) == 0
    assert list(stub.runs) == [identity]
    steps = [line["trainer/global_step"] for line in run.history]
    assert steps[: len(before)] == before
    assert min(steps[len(before) :]) > max(before)
    # A line of the history may hold several values, but no value comes twice for a step.
    for name in ("train/loss", "val/loss"):
        at = [line["trainer/global_step"] for line in run.history if name in line]
        assert at
        assert len(at) == len(set(at))
    assert 0 <= run.summary["test/accuracy"] <= 1
    assert run.summary["best/val/accuracy"] >= run.summary["val/accuracy"] > 0
    assert "model" in {kind for _, kind in run.artifacts}
    assert run.settings["seed"] == 0


def test_a_repeated_cell_has_a_run_of_its_own(stub: Stub) -> None:
    record = _record()
    for points in (POINTS[:1], POINTS):
        tracker = CellTracker(_online(stub.url), Path("run"))
        tracker.begin(record)
        for point in points:
            tracker.point(point)
        if points is POINTS:
            tracker.end(record)
        tracker.close(failed=points is not POINTS)
    interrupted, complete = stub.runs.values()
    for run, steps in ((interrupted, [9]), (complete, [9, 19])):
        assert [line["trainer/global_step"] for line in run.history if "train/accuracy" in line] == steps
    assert (interrupted.exit_code, complete.exit_code) == (1, 0)
    tracker = CellTracker(_online(stub.url), Path("run"))
    tracker.log_all([record])
    tracker.close()
    # The same record is not logged again, but the same cell after another measurement is.
    assert len(stub.runs) == 3
    tracker = CellTracker(_online(stub.url), Path("run"))
    tracker.log_all([_record(created="2030-01-01T00:00:00+00:00")])
    tracker.close()
    assert len(stub.runs) == 4
    assert len(stub.named("comparison").history) == 2


@pytest.mark.slow
def test_a_killed_command_leaves_no_process_behind(stub: Stub) -> None:
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from cnnbench.report.tracking import CellTracker, Connection, Target\n"
        "from conftest import make_record\n"
        "from cnnbench.report import uploading\n"
        "uploading.NICE = 0\n"
        f"target = Target(project='p', entity={ENTITY!r})\n"
        f"tracker = CellTracker(Connection('online', target, {stub.url!r}), Path('run'))\n"
        "tracker.begin(make_record())\n"
        "tracker.point({'step': 1, 'train/loss': 1.0})\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        _wait_for(lambda: any(run.history for run in stub.runs.values()))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    _wait_for(lambda: not _mentioning("run/wandb/offline-run"))


def _mentioning(words: str) -> list[str]:
    """Return the command lines of processes in this test's folder that contain these words."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in text and str(Path.cwd()) in text:
            found.append(text)
    return found


# Sweeps

SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("file", SWEEPS, ids=lambda f: f.stem)
def test_fit_takes_the_arguments_of_a_sweep(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are those that W&B's agent makes of the first and the last values."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    from cnnbench.commands import fit

    sweep = yaml.safe_load(file.read_text())
    built: list[Any] = []
    monkeypatch.setattr(fit.CLI, "instantiate_trainer", lambda self, **_: None)  # it reads the data
    monkeypatch.setattr(fit.CLI, "_run_subcommand", lambda self, name: built.append(self))
    for last in (False, True):
        values = {name: _some_value(facts, last) for name, facts in sweep["parameters"].items()}
        arguments = {name: {"value": value} for name, value in values.items()}
        words = create_sweep_command_args({"args": arguments, "program": ""})["args"]
        options = [word for word in sweep["command"] if word.startswith("--") and not word.startswith("--wandb")]
        assert main(["fit", *options, *words, "--trainer.accelerator=cpu"]) == 0
        model, data = built[-1].model, built[-1].datamodule
        assert type(data).__name__ == "CIFAR10"
        assert type(model).__name__ == values.get("model", "SimpleCNN")
        assert model.learning_rate == values.get("model.learning_rate", model.learning_rate)
        assert data.hparams["batch_size"] == values.get("data.batch_size", data.hparams["batch_size"])


@pytest.mark.slow
@pytest.mark.parametrize("file", SWEEPS, ids=lambda f: f.stem)
def test_an_agent_runs_the_trials_of_a_sweep(file: Path, stub: Stub) -> None:
    sweep = yaml.safe_load(file.read_text())
    # Small images in the place of CIFAR-10, and one epoch.
    small = ["--data.train_images=400", "--data.test_images=20", "--trainer.accelerator=cpu"]
    command = [word.replace("CIFAR10", "Synthetic") for word in sweep["command"]]
    command = ["--trainer.max_epochs=1" if "max_epochs" in word else word for word in command]
    at = command.index("--data=Synthetic") + 1
    stub.sweep = sweep | {"command": [*command[:at], *small, *command[at:]]}
    trials = [{name: _some_value(facts, last) for name, facts in sweep["parameters"].items()} for last in (False, True)]
    trials[1].pop("model", None)  # the last network is a large one
    trials[1] = trials[0] | trials[1]
    stub.queue = [dict(trial) for trial in trials]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    agent = [sys.executable, "-m", "wandb", "agent", "--count=2", f"{ENTITY}/cnnbench/s1"]
    done = subprocess.run(agent, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(stub.runs) == 2, done.stderr
    for (name, run), trial in zip(stub.runs.items(), trials, strict=True):
        assert name.startswith("trial")
        assert run.exit_code == 0
        assert run.properties["sweep"] == "s1"
        assert run.summary[sweep["metric"]["name"]] >= 0
        for key, value in trial.items():
            assert run.settings[key] == value


def _some_value(facts: dict[str, Any], last: bool) -> Any:
    values = facts.get("values") or [facts["min"], facts["max"]]
    return values[-1] if last else values[0]


def test_the_record_of_a_run_is_a_record(stub: Stub) -> None:
    tracker = CellTracker(Connection("offline"), Path("run"))
    record = _record()
    tracker.log_all([record])
    staged = list(Path(os.environ["WANDB_DATA_DIR"]).rglob("*"))
    texts = [path.read_text() for path in staged if path.is_file() and '"schema"' in path.read_text(errors="replace")]
    assert parse_record(json.loads(texts[0].splitlines()[0])).key == record.key
    assert tracking.PROJECT == "cnnbench"
