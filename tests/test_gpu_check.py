"""`make gpu-check` as far as a CPU goes, and what it makes of stages that fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from cnnbench.verification import gpu as gpu
from cnnbench.verification.gpu import Outcome, Stage


def test_the_check_runs_on_a_cpu_in_tiny_sizes(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "cnnbench.verification.gpu", "--device", "cpu", "--out", str(tmp_path / "check")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "check" / "summary.json").read_text())
    found = {stage["name"]: stage for stage in summary["stages"]}
    assert {name: stage["status"] for name, stage in found.items()} == {
        "probes": "PASS", "grid": "PASS", "tests": "SKIP", "recipe": "SKIP", "ways": "SKIP", "limits": "PASS",
        "training": "PASS",
    }  # fmt: skip
    assert found["probes"]["numbers"]["steps after a resume"] == 40
    assert found["probes"]["numbers"]["fit, steps in one call, difference from the plain"] < 1e-3
    assert found["probes"]["numbers"]["fit, compiled steps, difference from the plain"] < 1e-2
    assert found["grid"]["numbers"]["latency ms LeNet5"] > 0
    assert found["limits"]["numbers"]["of the roofline, LeNet5"] > 0
    assert found["training"]["numbers"]["training in bench over the timed step, LeNet5"] > 0
    assert summary["verdict"] == "met"
    lines = done.stdout.splitlines()
    assert lines[0].startswith("PASS probes ")
    assert any(line.startswith("latency ms LeNet5 ") for line in lines)


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


def test_the_stage_of_tests_runs_every_test_of_a_gpu() -> None:
    root = Path(__file__).parent.parent
    (stage,) = [stage for stage in gpu.stages("cuda", root) if stage.name == "tests"]
    command = [*stage.commands[0], "--collect-only"]
    # In an environment without torch's tests of this folder, pytest would find others.
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:]
    every = [sys.executable, "-m", "pytest", "tests", "-m", "gpu", "-q", "--collect-only", "-p", "no:xdist"]
    whole = subprocess.run(every, cwd=root, capture_output=True, text=True, check=False)

    def names(text: str) -> set[str]:
        return {line.rpartition("/")[2] for line in text.splitlines() if "::" in line}

    assert names(done.stdout) == names(whole.stdout) != set()


def test_one_stage_does_not_remove_the_results_of_another(tmp_path: Path) -> None:
    (tmp_path / gpu.FOLDER).mkdir(parents=True)
    kept = tmp_path / gpu.FOLDER / "recipes.json"
    kept.write_text("{}")
    for stage in gpu.stages("cuda", tmp_path):
        gpu._remove_what_is_made_anew(stage, tmp_path)
    assert kept.is_file()


def test_bad_options_are_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cnnbench.verification.gpu", "--device", "cpu", "--stages", "probes,nothing"]
    place = tmp_path / "place"
    place.mkdir()
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("gpu: unknown stage 'nothing'; there are probes, grid")
    assert list(place.iterdir()) == []


def test_data_comes_from_an_archive(tmp_path: Path) -> None:
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST" / "x").write_text("x")
    with tarfile.open(tmp_path / "data.tar.xz", "w:xz") as packed:
        packed.add(tmp_path / "MNIST", "MNIST")
    gpu._unpack(tmp_path / "data.tar.xz", tmp_path / "out")
    assert (tmp_path / "out" / "MNIST" / "x").read_text() == "x"
