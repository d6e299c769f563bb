"""Work is not lost: long names, networks that raise anything, places that cannot be written, and signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_record

from cnnbench.benchmark import run as runner
from cnnbench.cli import main
from cnnbench.record import load_records, write_lines, write_record

SMALL = ["--data=Synthetic", "--data_options={train_images: 40, test_images: 20}", "--batch_size=20"]
BENCH = ["bench", *SMALL, "--device=cpu", "--precision=32-true", "--epochs=1"]
NETS = """
from torch import nn

class Odd(BaseException):
    pass

KINDS = {"keyboard": KeyboardInterrupt, "exit": SystemExit, "generator": GeneratorExit, "odd": Odd,
         "memory": MemoryError, "recursion": RecursionError, "stop": StopIteration, "value": ValueError}

class Small(nn.Module):
    def __init__(self, num_classes=10, in_channels=3, name="", raises="", where="", steps=0):
        super().__init__()
        self.raises, self.where, self.steps = raises, where, steps
        self.head = nn.Linear(in_channels, num_classes)
        if where == "constructor" and raises:
            raise KINDS[raises]("in the constructor")

    def forward(self, x):
        # The first calls are the trial before the run.
        self.steps -= 1
        if self.raises and self.where == "forward" and self.steps < -2:
            raise KINDS[self.raises]("in the forward pass")
        return self.head(x.mean((2, 3)))
"""


@pytest.fixture(autouse=True)
def nets(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    sys.modules.pop("nets", None)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("length", [120, 250, 3000])
def test_long_names_cost_nothing(length: int, capsys: pytest.CaptureFixture) -> None:
    names = [f"nets:Small(name='{letter * length}')" for letter in "ab"]
    assert main([*BENCH, f"--models={','.join(names)}", "--measures=complexity,quality", "--out=run"]) == 0
    assert [r.model for r in load_records([Path("run")])] == names
    assert main(["bench", "--resume", "--out=run", f"--models={','.join(names)}"]) == 0
    fit = ["fit", f"--model={names[0]}", "--data=Synthetic", "--data.train_images=40", "--data.test_images=20"]
    assert main([*fit, "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]) == 0
    for path in Path().rglob("*"):
        assert len(path.name.encode()) <= 200
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("raises", ["keyboard", "exit", "generator", "odd", "memory", "recursion", "stop", "value"])
def test_a_network_that_raises_anything_is_a_failed_cell(raises: str, capsys: pytest.CaptureFixture) -> None:
    bad = f"nets:Small(raises={raises},where=forward)"
    assert main([*BENCH, f"--models={bad},nets:Small", "--measures=quality", "--out=run"]) == 1
    records = {r.model: r for r in load_records([Path("run")])}
    assert records[bad].status == "error"
    assert records[bad].reason
    assert records["nets:Small"].status == "ok"
    assert "failed" in capsys.readouterr().out
    broken = f"nets:Small(raises={raises},where=constructor)"
    building = ["bench", f"--models={broken}", *SMALL, "--measures=complexity", "--out=other"]
    for command in (["count", bad, "--image_size=8"], building):
        code = main(command)
        text = capsys.readouterr().err
        assert code in (0, 2)
        assert code == 0 or text.strip().splitlines()[-1].startswith("cnnbench: ")
        assert "Traceback" not in text


PLACES = {
    "a folder below a file": (["--out=file/run"], "file"),
    "a file in place of the folder": (["--out=file"], "file"),
    "a name too long": (["--out=" + "x" * 300], "File name too long"),
}


@pytest.mark.parametrize(("options", "message"), PLACES.values(), ids=PLACES.keys())
def test_places_that_cannot_be_written_are_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    Path("file").write_text("mine")
    write_record(Path("run/records/a.json"), make_record())
    commands = [
        [*BENCH, "--models=nets:Small", "--measures=complexity", *options],
        ["report", "run", *options],
        ["fit", "--model=nets:Small", "--data=Synthetic", "--data.train_images=40", "--data.test_images=20",
         "--trainer.max_epochs=1", "--trainer.accelerator=cpu", *options],
        ["explain", "parameters", *options],
    ]  # fmt: skip
    for command in commands:
        capsys.readouterr()
        assert main(command) == 2, command
        captured = capsys.readouterr()
        assert message in captured.err.strip().splitlines()[-1], command
        assert captured.err.strip().splitlines()[-1].startswith("cnnbench: ")
        assert "Traceback" not in captured.err
        assert Path("file").read_text() == "mine"


@pytest.mark.parametrize("name", ["report.html", "report.md", "results.csv", "figures"])
def test_something_in_the_way_of_a_report_is_one_line_and_the_records_stay(
    name: str, capsys: pytest.CaptureFixture, request: pytest.FixtureRequest
) -> None:
    if name != "figures":
        request.getfixturevalue("without_pictures")
    write_record(Path("run/records/a.json"), make_record())
    if name == "figures":
        Path("run/figures").write_text("")
    else:
        Path("run", name).mkdir()
    before = Path("run/records/a.json").read_bytes()
    assert main(["report", "run"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("cnnbench: 'run/")
    assert name in line
    assert Path("run/records/a.json").read_bytes() == before
    assert not list(Path("run").rglob("*.part"))


def test_exports_are_never_written_over_anything(capsys: pytest.CaptureFixture) -> None:
    write_record(Path("run/records/a.json"), make_record())
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")
    for place in ("file", "loop", "dangling", "file/x.jsonl", "run"):
        assert main(["report", "run", f"--export={place}"]) == 2, place
        assert capsys.readouterr().err.startswith("cnnbench: ")
    assert Path("file").read_text() == "mine"
    assert not Path("nowhere").exists()


def test_a_full_disk_in_a_run_is_one_line_and_what_was_measured_stays(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = []

    def sync(_: int) -> None:
        if full:
            raise OSError(28, "No space left on device")

    def fill(*_: object) -> None:
        full.append(True)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", sync)
        patch.setattr(runner._Progress, "on_test_batch_end", fill)
        assert main([*BENCH, "--models=nets:Small", "--measures=quality", "--out=run"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device; make room on the disk" in line
    assert "run/records/" in line
    assert main(["bench", "--resume", "--out=run", "--models=nets:Small"]) == 0


def _started(*arguments: str, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "cnnbench", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def test_a_full_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        for arguments in (["list"], ["list", "--json"], ["explain"]):
            process = _started(*arguments, stdout=full)
            _, text = process.communicate(timeout=60)
            assert process.returncode == 2
            expected = "cnnbench: the output cannot be written or read: No space left on device; make room on the disk"
            assert text.splitlines()[-1].startswith(expected)


# Two processes import everything for each signal, so one of the signals is left to `make test-slow`. Both stop a
# training and a benchmark in tests of their own.
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)])
def test_a_signal_stops_a_command_and_its_processes(name: str, code: int) -> None:
    process = _started(
        "speed", "LeNet5", "--device=cpu", "--image_size=32", "--processes=3", "--rounds=100000", stdout=subprocess.PIPE
    )
    assert process.stderr is not None
    while "process 1 of 3" not in process.stderr.readline():
        pass
    time.sleep(2)  # the process that times is on its way
    process.send_signal(getattr(signal, name))
    out, text = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert text.strip().splitlines()[-1] == f"cnnbench: stopped by {name}; nothing was kept; start it again"
    assert "Traceback" not in text


def test_documents_stay_whole_when_a_number_is_not_finite(capsys: pytest.CaptureFixture) -> None:
    from cnnbench.console import out_json

    out_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": (1, -float("inf"))})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": [1, None]}


def test_records_of_before_these_checks_still_report(capsys: pytest.CaptureFixture) -> None:
    plain = make_record()
    old = make_record(
        config={k: v for k, v in plain.config.items() if k not in ("memory_format", "macs_convention")},
        environment={k: v for k, v in plain.environment.items() if k in ("device", "threads", "packages")},
    )
    write_lines(Path("old.jsonl"), [old])
    assert main(["report", "old.jsonl", "--out=r"]) == 0
    assert "not said" in Path("r/report.md").read_text()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("value", ["a" * 5000, "9" * 100_000, "[" * 900])
def test_a_refusal_of_a_long_value_is_a_line_that_can_be_read(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tmp_path / "bench.yaml"
    config.write_text(f"models: LeNet5\nseeds: '{value}'\n")
    assert main(["bench", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert len(error) < 3100
    assert error.startswith("cnnbench: ")
    assert "seeds" in error


@pytest.mark.parametrize(
    ("place", "lines"),
    [
        ("LeNet5", "model: {class_path: LeNet5, init_args: 9223372036854775808}\ndata: MNIST"),
        ("MNIST", "model: LeNet5\ndata: {class_path: MNIST, init_args: [1]}"),
        ("SGD", "model: {class_path: LeNet5, init_args: {optimizer: {class_path: SGD, init_args: yes}}}\ndata: MNIST"),
        ("callbacks", "model: LeNet5\ndata: MNIST\ntrainer: {callbacks: [{init_args: 1}]}"),
    ],
)
def test_arguments_of_a_class_that_are_no_table_are_refused(
    place: str, lines: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tmp_path / "fit.yaml"
    config.write_text(lines + "\n")
    assert main(["fit", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert f"init_args of {place} is" in error
    assert "must be a table" in error
