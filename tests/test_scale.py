"""Grids of many cells: what a network or a folder needs once is not done for each cell, and the race works."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from campaigns import reports, scale
from campaigns.scale import Grid

from cnnbench.benchmark import launchers, opened, preview
from cnnbench.benchmark.launchers import Job, find_launcher
from cnnbench.benchmark.plan import save_plan
from cnnbench.benchmark.session import Session
from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.files import write_text
from cnnbench.record import Record, load_records, write_record
from cnnbench.trust import Trust

RESULTS = Path(__file__).resolve().parents[1] / "experiments" / "results"
BENCH = ["bench", "--models=LeNet5,SimpleCNN", "--data=Synthetic", "--epochs=1", "--device=cpu", "--precision=32-true",
         "--data_options={train_images: 60, test_images: 20}", "--measures=complexity"]  # fmt: skip


@pytest.fixture(scope="module")
def committed() -> list[Record]:
    """Records that the race varies."""
    return load_records([RESULTS / "2026-11-29-cpu.jsonl"])


def test_the_records_of_a_grid_are_finished_cells_of_its_plan(committed: list[Record], tmp_path: Path) -> None:
    grid = Grid(2, 2, 2)
    save_plan(tmp_path, grid.plan())
    made = list(scale.grid_records(grid, committed))
    for record in made:
        write_record(tmp_path / "records" / f"{record.key}.json", record)
    before = {path.name: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    assert len(before) == grid.cells == 8
    # A record that is damaged, or of other data or settings, would be refused here.
    assert Session({}, tmp_path, resume=True, trust=Trust.of(("campaigns",))).run() == made
    assert {path.name: path.read_bytes() for path in (tmp_path / "records").iterdir()} == before
    # Each network on each data set has its costs, each seed an accuracy of its own.
    assert len({record.measures["macs"] for record in made}) == 4
    assert len({record.measures["test_accuracy"] for record in made}) > 4
    # Times are kept with their rounds, which are most of a record.
    assert len((tmp_path / "records" / min(before)).read_bytes()) > 5000


def test_the_grids_of_the_race_have_ten_to_ten_thousand_cells() -> None:
    assert [grid.cells for grid in scale.GRIDS] == [10, 100, 1000, 3000, 10_000]
    plan = scale.GRIDS[-1].plan()
    assert len({cell.key for cell in plan.cells()}) == 10_000


def test_costs_are_fitted_where_they_are_sums() -> None:
    grids = scale.GRIDS
    rows = []
    for grid in grids:
        costs = {"seconds": 3 + 0.01 * grid.cells, "cpu_s": 2 + 0.5 * grid.networks, "peak_mb": 100.0}
        if grid is grids[-1]:
            costs = {key: 2 * value for key, value in costs.items()}
        pages = {"page_mb": 1 + 0.002 * min(grid.cells, scale.MOST_ROWS)}
        rows += [{"step": step.name, "cells": grid.cells, **costs, **pages} for step in scale.STEPS]
    models = {(model["step"], model["cost"]): model for model in scale.predictions(rows, grids)}
    assert models["resume", "seconds"]["values"] == pytest.approx([3, 0.01])
    assert models["dry run", "cpu_s"]["values"] == pytest.approx([2, 0.5])
    # The last grid was twice as dear as the others say.
    assert models["resume", "seconds"]["ratio"] == pytest.approx(0.5)
    assert models["report", "page_mb"]["values"] == pytest.approx([1, 0.002])
    assert models["report", "page_mb"]["ratio"] == pytest.approx(1)


def test_the_goals_judge_the_largest_grid() -> None:
    row = {"cells": 100, "seconds": 20.0, "peak_mb": 300.0, "page_mb": 4.0, "growth": 1.1}
    rows = [{**row, "step": "report", "cells": 10, "seconds": 999.0}, {**row, "step": "records"}]
    rows.append({**row, "step": "report"})
    models = [{"cost": "cpu_s", "ratio": 1.2}, {"cost": "seconds", "ratio": 9.0}]
    assert all(scale.goals(rows, models).values())
    for name, value in (("seconds", 301.0), ("peak_mb", 2049.0), ("page_mb", 10.1)):
        assert list(scale.goals([*rows[:-1], {**rows[-1], name: value}], models).values()).count(False) == 1
    assert list(scale.goals(rows, [{"cost": "cpu_s", "ratio": 0.6}]).values()).count(False) == 1


def test_a_fresh_process_is_measured_and_its_failure_is_one_line() -> None:
    found = reports.in_fresh_process(["-c", "import campaigns; b = bytearray(200 * 2**20)"], "a test")
    assert found["peak_mb"] > 200
    assert found["cpu_s"] > 0
    assert 0 < found["seconds"] < 60
    with pytest.raises(UserError, match=r"^a test ended with 3: "):
        reports.in_fresh_process(["-c", "raise SystemExit(3)"], "a test")


# What a run does once


def test_a_folder_is_looked_through_once_however_many_files_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looks: list[str] = []
    original = Path.glob

    def counted(path: Path, pattern: str, **options: Any) -> Iterator[Path]:
        looks.append(pattern)
        return original(path, pattern, **options)

    monkeypatch.setattr(Path, "glob", counted)
    for index in range(20):
        write_text(tmp_path / f"{index}.txt", "x")
    assert len(looks) == 1
    assert len(list(tmp_path.iterdir())) == 20


def test_a_dry_run_counts_each_network_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    counts: Counter[str] = Counter()
    original = preview.complexity

    def counted(model: Any, shape: tuple[int, ...]) -> Any:
        counts[type(model).__name__] += 1
        return original(model, shape)

    monkeypatch.setattr(preview, "complexity", counted)
    assert main([*BENCH, "--seeds=0,1,2", "--dry_run"]) == 0
    assert counts == {"LeNet5": 1, "SimpleCNN": 1}
    assert "6 cells" in capfd.readouterr().out


class _Lost:
    """Launcher that loses every cell."""

    def run(self, jobs: Sequence[Job], folder: Path) -> Iterator[tuple[str, Record | str]]:
        for job in jobs:
            yield job.key, "lost"


def test_a_run_builds_each_network_once_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    built: Counter[str] = Counter()
    original = opened.make_classifier

    def counted(name: str, *arguments: Any, **options: Any) -> Any:
        built[name] += 1
        return original(name, *arguments, **options)

    monkeypatch.setattr(opened, "make_classifier", counted)
    monkeypatch.setattr(launchers, "find_launcher", lambda name, options, device: _Lost())
    assert main([*BENCH, "--seeds=0,1,2,3", "--out=run"]) == 1
    assert built == {"LeNet5": 1, "SimpleCNN": 1}
    assert len(load_records([Path("run")])) == 8


class _Task:
    """Job of submitit that is done."""

    def __init__(self, job: Job) -> None:
        self._job, self.job_id = job, "1"

    def done(self) -> bool:
        return True

    def result(self) -> dict[str, str]:
        return {"record of": self._job.key}


class _Executor:
    """Executor of submitit that keeps the sizes of its arrays."""

    cluster = "local"

    def __init__(self) -> None:
        self.arrays: list[int] = []

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        self.arrays.append(0)
        yield

    def submit(self, function: Any, job: Job, threads: int) -> _Task:
        self.arrays[-1] += 1
        return _Task(job)


def test_many_jobs_of_slurm_are_arrays_that_it_accepts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launcher, executor = find_launcher("slurm", {"cluster": "local"}, "cpu"), _Executor()
    assert launcher is not None
    monkeypatch.setattr(launcher, "_executor", lambda folder: executor)
    monkeypatch.setattr(launchers, "POLL_S", 0.0)
    monkeypatch.setattr(launcher, "_at_once", sys.maxsize)
    jobs = [Job(f"cell {index}", dict) for index in range(2500)]  # type: ignore[arg-type]
    assert [key for key, _ in launcher.run(jobs, tmp_path)] == [job.key for job in jobs]
    # Of the default MaxArraySize of 1,001, indices 0 to 1,000 are allowed.
    assert executor.arrays == [1000, 1000, 500]


def test_processes_of_this_machine_are_started_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    launcher, executor = find_launcher("slurm", {"cluster": "local", "cpus": 2}, "cpu"), _Executor()
    assert launcher is not None
    monkeypatch.setattr(launcher, "_executor", lambda folder: executor)
    monkeypatch.setattr(launchers, "POLL_S", 0.0)
    jobs = [Job(f"cell {index}", dict) for index in range(8)]  # type: ignore[arg-type]
    assert [key for key, _ in launcher.run(jobs, tmp_path)] == [job.key for job in jobs]
    assert executor.arrays == [3, 3, 2]
