"""`make gpu-check` as far as a CPU goes, and what it makes of stages that fail."""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from warm import Warm

from cnnbench.cli import main
from cnnbench.record import load_records, write_lines
from cnnbench.verification import gpu as gpu
from cnnbench.verification import run as run_race
from cnnbench.verification.gpu import Outcome, Stage


def _run_warm(command: Sequence[str], folder: Path, environ: Mapping[str, str], log: IO[str], limit_s: float) -> int:
    """Run the command of a stage without the seconds of a start, in the place of `gpu._run`."""
    python, dash_m, module, *words = command
    assert (python, dash_m) == (sys.executable, "-m")
    return Warm(words, folder, log.name, environ, module=module, stdout=log.name).wait(limit_s)


# The stage `grid` is the stage `training` without the training, so `make test-slow` alone runs both.
WITHOUT_GRID = "probes,recipe,ways,limits,energy,training,tests"


@pytest.mark.parametrize(
    "options", [["--stages", WITHOUT_GRID], pytest.param([], marks=pytest.mark.slow)], ids=["without grid", "all"]
)
def test_the_check_runs_on_a_cpu_in_tiny_sizes(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    if options:  # all stages, in `make test-slow`, start as they do on a GPU
        monkeypatch.setattr(gpu, "_run", _run_warm)
    code = gpu.main(["--device", "cpu", "--out", str(tmp_path / "check"), *options])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    summary = json.loads((tmp_path / "check" / "summary.json").read_text())
    found = {stage["name"]: stage for stage in summary["stages"]}
    if options:
        # The records of the training have what the numbers of the grid are read from.
        (tmp_path / "check" / "grid").symlink_to("training")
        found["grid"] = {"status": "PASS", "numbers": gpu._grid(tmp_path / "check")}
    assert {name: stage["status"] for name, stage in found.items()} == {
        "probes": "PASS", "grid": "PASS", "tests": "SKIP", "recipe": "SKIP", "ways": "SKIP", "limits": "PASS",
        "energy": "SKIP", "training": "PASS",
    }  # fmt: skip
    assert found["probes"]["numbers"]["steps after a resume"] == 40
    assert found["probes"]["numbers"]["fit, steps in one call, difference from the plain"] < 1e-3
    assert found["probes"]["numbers"]["fit, compiled steps, difference from the plain"] < 1e-2
    assert found["grid"]["numbers"]["latency ms LeNet5"] > 0
    assert found["limits"]["numbers"]["of the roofline, LeNet5"] > 0
    assert found["training"]["numbers"]["training in bench over the timed step, LeNet5"] > 0
    assert summary["verdict"] == "met"
    lines = printed.out.splitlines()
    assert lines[0].startswith("PASS probes ")
    for name in ("of the roofline, LeNet5", *(() if options else ("latency ms LeNet5",))):
        assert any(line.startswith(f"{name} ") for line in lines)


def _stage(code: str, limit_s: int = 30, needs_gpu: bool = False) -> Stage:
    def numbers(folder: Path) -> dict[str, float]:
        return json.loads((folder / "numbers.json").read_text())

    return Stage("one", limit_s, [(sys.executable, "-c", code)], numbers, needs_gpu)


WRITES = "open('numbers.json', 'w').write('{\"bf16 TFLOP/s\": 100.0}')"


@pytest.mark.parametrize(
    ("code", "limit_s", "left_s", "status", "reason"),
    [
        (WRITES, 30, 100.0, "PASS", ""),
        (f"{WRITES}; raise SystemExit(3)", 30, 100.0, "FAIL", "exit code 3"),
        ("import os; os.abort()", 30, 100.0, "FAIL", "exit code -6"),
        ("import time; time.sleep(60)", 1, 100.0, "FAIL", "it was still at work after 1 s"),
        ("pass", 30, 100.0, "FAIL", "no numbers: FileNotFoundError"),
        (WRITES, 30, 5.0, "FAIL", "no time was left; run it alone"),
    ],
)
def test_a_stage_that_fails_costs_only_itself(
    code: str, limit_s: int, left_s: float, status: str, reason: str, tmp_path: Path
) -> None:
    found = gpu.run_stage(_stage(code, limit_s), tmp_path, "cuda", left_s, os.environ)
    assert found.status == status
    assert found.reason.startswith(reason)
    # What it has found before it failed is kept.
    assert found.numbers == ({"bf16 TFLOP/s": 100.0} if WRITES in code and left_s > 10 else {})


def test_a_stage_without_its_packages_fails_before_it_starts(tmp_path: Path) -> None:
    stage = replace(_stage(WRITES), packages=("json", "no_such_module"))
    found = gpu.run_stage(stage, tmp_path, "cuda", 100.0, os.environ)
    assert (found.status, found.reason) == ("SKIP", "it needs no_such_module, which pip installs")


def test_numbers_that_a_stage_owes_are_missed() -> None:
    outcomes = [Outcome("limits", "PASS", 9.6, {}), Outcome("ways", "SKIP", 0.0, {}), Outcome("tests", "PASS", 1.0, {})]
    assert gpu.not_found(outcomes) == ["of the roofline, ResNet18"]
    outcomes[0].numbers["of the roofline, ResNet18"] = 0.5
    assert gpu.not_found(outcomes) == []
    assert set(gpu.RANGES_OF) <= {stage.name for stage in gpu.stages("cuda", Path())}


def test_power_comes_from_the_record_or_the_reason_why_there_is_none(tmp_path: Path) -> None:
    words = ["speed", "LeNet5", "--device=cpu", "--rounds=1", "--batch_size=2", "--train_batch_size=2"]
    assert main([*words, "--records", str(tmp_path / "energy.jsonl")]) == 0
    (record,) = load_records([tmp_path / "energy.jsonl"])
    known = {
        "idle_power_w": 80.0,
        "energy_mj_per_image": 2.0,
        "energy_mj_single_image": 300.0,
        "energy_facts": {"inference": {"power_w": 560.0}},
        "conditions": {**record.measures["conditions"], "power_limit_w": 700.0},
    }
    for measures, skipped in ((known, {}), ({}, {"energy": "the driver does not answer"})):
        (tmp_path / "energy.jsonl").unlink()
        write_lines(tmp_path / "energy.jsonl", [replace(record, measures=record.measures | measures, skipped=skipped)])
        if skipped:
            with pytest.raises(ValueError, match="the driver does not answer"):
                gpu._energy(tmp_path)
            continue
        numbers = gpu._energy(tmp_path)
        assert set(numbers) == set(gpu.RANGES_OF["energy"])
        assert numbers["power in batches over the board's limit"] == pytest.approx(0.8)
        assert numbers["power in batches over idle"] == pytest.approx(7.0)
        assert gpu.out_of_range([Outcome("energy", "PASS", 1.0, numbers)], gpu.ranges_on(is_h200=True)) == []


def test_the_check_needs_no_environment_and_its_tests_have_the_gpu_for_themselves() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    (check,) = re.findall(r"^gpu-check:([^#\n]*)", makefile, re.MULTILINE)
    assert check.strip() == ""
    (tests,) = re.findall(r"^test-gpu:.*\n\t(.*)", makefile, re.MULTILINE)
    assert "-p no:xdist" in tests
    (stage,) = [stage for stage in gpu.stages("cuda", Path()) if stage.name == "tests"]
    assert "no:xdist" in stage.commands[0]


def test_what_needs_a_gpu_is_skipped_and_said(tmp_path: Path) -> None:
    found = gpu.run_stage(_stage(WRITES, needs_gpu=True), tmp_path, "cpu", 100.0, os.environ)
    assert (found.status, found.reason) == ("SKIP", "it needs a CUDA device")


def test_numbers_stand_beside_their_range() -> None:
    outcomes = [Outcome("probes", "PASS", 9.6, {"bf16 TFLOP/s": 788.0, "tf32 TFLOP/s": 55.0, "other": 1.0})]
    on_h200 = gpu.ranges_on(is_h200=True)
    assert list(gpu.lines_of(outcomes, on_h200)) == [
        "PASS probes 10 s",
        "bf16 TFLOP/s 788 [700, 900] ok",
        "tf32 TFLOP/s 55 [330, 480] OUT",
        "other 1",
    ]
    assert list(gpu.lines_of(outcomes, gpu.ranges_on(is_h200=False)))[1] == "bf16 TFLOP/s 788"
    assert gpu.out_of_range(outcomes, on_h200) == ["tf32 TFLOP/s"]
    assert all(r.low <= r.high and r.source for r in gpu.RANGES.values())


def test_numbers_that_have_one_right_value_are_judged_on_every_device() -> None:
    wrong = {"steps after a resume": 20.0, "whitening, difference from the CPU": 0.9, "bf16 TFLOP/s": 1.0}
    outcomes = [Outcome("probes", "PASS", 1.0, wrong)]
    anywhere = gpu.ranges_on(is_h200=False)
    assert gpu.out_of_range(outcomes, anywhere) == ["steps after a resume", "whitening, difference from the CPU"]


def test_the_stage_of_tests_runs_every_test_of_a_gpu(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    (stage,) = [stage for stage in gpu.stages("cuda", root) if stage.name == "tests"]
    python, dash_m, pytest_, *words = stage.commands[0]
    assert (python, dash_m, pytest_) == (sys.executable, "-m", "pytest")
    every = ["tests", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    output, errors = tmp_path / "output", tmp_path / "errors"
    Warm([json.dumps([words, every])], root, str(errors), module="collected", stdout=str(output)).wait(120)
    of_stage, of_all, rest = output.read_text().split("exit code 0\n")
    assert rest == "", output.read_text()[-500:] + errors.read_text()

    def names(text: str) -> set[str]:
        return {line.rpartition("/")[2] for line in text.splitlines() if "::" in line}

    assert names(of_stage) == names(of_all) != set()


def test_one_stage_does_not_remove_the_results_of_another(tmp_path: Path) -> None:
    (tmp_path / gpu.FOLDER).mkdir(parents=True)
    kept = tmp_path / gpu.FOLDER / "recipes.json"
    kept.write_text("{}")
    for stage in gpu.stages("cuda", tmp_path):
        gpu._remove_what_is_made_anew(stage, tmp_path)
    assert kept.is_file()


def test_bad_options_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "cpu", "--stages", "probes,nothing"])
    with pytest.raises(SystemExit) as ended:
        run_race("gpu", gpu.main)
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip().startswith("gpu: unknown stage 'nothing'; there are probes, grid")
    assert list(Path().iterdir()) == []


def test_data_comes_from_an_archive(tmp_path: Path) -> None:
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST" / "x").write_text("x")
    with tarfile.open(tmp_path / "data.tar.xz", "w:xz") as packed:
        packed.add(tmp_path / "MNIST", "MNIST")
    gpu._unpack(tmp_path / "data.tar.xz", tmp_path / "out")
    assert (tmp_path / "out" / "MNIST" / "x").read_text() == "x"
