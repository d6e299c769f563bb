"""Chaos: a few kills of real runs, and that a run that was not the same is called so."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from campaigns import chaos
from warm import Warm


def test_chaos_of_a_few_kills_leaves_everything_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "chaos.json"
    # One kill of each command, in processes that have imported everything; `make chaos` starts fresh ones, kills each
    # command 25 times and sends each signal twice.
    monkeypatch.setattr(chaos, "start", Warm)
    done = chaos.main(["--quick", "--kills", "1", "--signals", "0", "--out", str(path)])
    assert done == 0, "".join(capsys.readouterr())
    found = json.loads(path.read_text())
    assert found["verdict"] == "met"
    assert found["identical"]
    assert found["kills"] == {"bench": 1, "fit": 1}
    assert all(row["phase"] for row in found["rows"])


# The harness itself, with a command that needs no time: a file grows line by line until it is whole

_WORKER = """
import signal, sys, time
from pathlib import Path

def stop(number, frame):
    if mode != "mute":
        print("stopped; go on with: cnnbench resume", file=sys.stderr, flush=True)
    sys.exit(128 + number if mode != "odd code" else 1)

mode = Path("mode").read_text() if Path("mode").is_file() else ""
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
path = Path("lines")
done = path.read_text().splitlines() if path.is_file() else []
if mode == "differs":
    done = ["other"]
for number in range(len(done), 5):
    time.sleep(0.05)
    done.append(str(number))
    path.write_text("\\n".join(done))
print("all done", file=sys.stderr)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> chaos.Scenario:
    """A scenario whose command is a small program in place of cnnbench."""
    package = tmp_path / "package" / "cnnbench"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(_WORKER)
    monkeypatch.setattr(chaos, "_environment", lambda: {**os.environ, "PYTHONPATH": str(package.parent)})

    def phase(folder: Path) -> str:
        return "work" if (folder / "lines").is_file() else "start"

    def result(folder: Path) -> list[str]:
        return (folder / "lines").read_text().splitlines()

    return chaos.Scenario(
        "bench", ("start", "work"), ("go",), lambda _: ("go",), phase, result, lambda _: [], "all done"
    )


def _base(tmp_path: Path) -> Path:
    base = tmp_path / "base"
    base.mkdir()
    return base


def test_kill_goes_on_until_the_run_is_whole_and_counts(worker: chaos.Scenario, tmp_path: Path) -> None:
    base = _base(tmp_path)
    good = chaos.undisturbed(worker, base)
    assert good.result == ["0", "1", "2", "3", "4"]
    rows = chaos.kill(worker, good, 4, base, random.Random(1))
    assert sum(row["event"] == "kill" for row in rows) == 4
    assert all(row["identical"] for row in rows if row["event"] == "end")
    assert rows[-1]["event"] == "end"


def test_kill_finds_a_run_with_another_result(
    worker: chaos.Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = _base(tmp_path)
    good = chaos.undisturbed(worker, base)
    make = Path.mkdir

    def with_mode(path: Path, *arguments: Any, **options: Any) -> None:
        make(path, *arguments, **options)
        (path / "mode").write_text("differs")

    monkeypatch.setattr(Path, "mkdir", with_mode)
    rows = chaos.kill(worker, good, 1, base, random.Random(3))
    assert not any(row["identical"] for row in rows if row["event"] == "end")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("mode", "identical", "code"), [("", True, True), ("mute", False, True), ("odd code", True, False)]
)
def test_interrupt_asks_for_the_code_and_runs_what_is_printed(
    mode: str,
    identical: bool,
    code: bool,
    number: signal.Signals,
    worker: chaos.Scenario,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = _base(tmp_path)
    good = chaos.undisturbed(worker, base)
    make = tempfile.mkdtemp

    def with_mode(**options: Any) -> str:
        folder = make(**options)
        (Path(folder) / "mode").write_text(mode)
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", with_mode)
    row = chaos.interrupt(worker, good, number, base, random.Random(1))
    assert (row["identical"], row["expected_code"]) == (identical, code)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (torch.tensor([0.1]), torch.tensor([0.1]), True),
        (torch.tensor([0.1]), torch.tensor([0.1000001]), False),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), True),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), False),
        ({"a": [torch.ones(2)]}, {"a": [torch.ones(2)]}, True),
        ({"a": [torch.ones(2)]}, {"a": [torch.ones(2), 1]}, False),
        ({"a": 1}, {"a": 1, "b": None}, False),
        (3, 3, True),
    ],
)
def test_same_compares_bit_by_bit(a: Any, b: Any, equal: bool) -> None:
    assert chaos.same(a, b) is equal


def test_bench_faults_name_what_is_not_whole(tmp_path: Path) -> None:
    root = tmp_path / "run"
    (root / "records").mkdir(parents=True)
    (root / "plan.json").write_text('{"measures": ["speed"]}')
    (root / "speed.json").write_text('{"figures": {"LeNet5 on MNIST": {"latency_ms_median": 1.0}}}')
    for name in ("report.html", "report.md"):
        (root / name).touch()
    assert chaos._bench_faults(tmp_path) == []
    (root / "records" / "a.json").write_text("{")
    (root / ".b.json.part").touch()
    (root / "report.md").unlink()
    assert len(chaos._bench_faults(tmp_path)) == 3
