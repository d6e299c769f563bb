"""What a grid costs beside its trainings, from 10 to 10,000 cells: plan, records, resume, report and comparison.

The records of a grid are variants of committed ones. Each step of a run takes place in a fresh process, which is
measured from its start to its end. A fixed cost and a cost per cell are fitted to the smaller grids, and the prediction
for the largest grid is set beside its measured cost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from campaigns.reports import COMMAND, SOURCE, changed, in_fresh_process, originals
from cnnbench.benchmark.plan import Cell, Plan, save_plan
from cnnbench.benchmark.run import measure_cell
from cnnbench.benchmark.session import Session
from cnnbench.confusion import accuracy
from cnnbench.data.sets import Synthetic
from cnnbench.record import Record, write_record
from cnnbench.report.findings import MOST_ROWS
from cnnbench.trust import Trust
from cnnbench.verification import run as run_race
from cnnbench.verification import write_race

LONGEST_REPORT_S = 300.0
LARGEST_REPORT_MB = 2048.0
LARGEST_PAGE_MB = 10.0
"""Limits of the goals at the largest grid: seconds and peak memory of the report, and the size of its page."""
MOST_GROWTH = 2.0
"""Limit of a goal: how many times as long the last records of a grid take to write as the first ones."""
FURTHEST = 1.5
"""Limit of a goal: factor between the predicted and the measured processor time of a step, in either direction."""
EPOCHS, BATCH = 30, 32
"""Epochs and batch size of the trainings that the records describe."""
CLASSES = 10
TIMES_FILE = "times.txt"
"""File of a run folder in which a step keeps its times in milliseconds, as a list in JSON."""
Amounts = Callable[["Grid"], list[float]]
"""Function that returns the amounts of a grid which, each times its own cost, add up to the cost of a step."""
STEP = "import sys; from campaigns.scale import in_process; in_process(*sys.argv[1:])"
"""Program that takes a step of a grid which no command takes alone."""


class Gratings(Synthetic):
    """A few synthetic images under a label of their own, so that a grid can have many data sets without any files.

    Args:
        number: Number of the data set, which is a part of its label.
    """

    def __init__(self, number: int = 1, **kwargs: Any) -> None:
        super().__init__(in_channels=1, train_images=500, test_images=1000, **kwargs)
        self.number = number

    @property
    def label(self) -> str:
        return f"Gratings {self.number}"


@dataclass(frozen=True)
class Grid:
    """Numbers of networks, data sets and seeds of a grid."""

    networks: int
    data: int
    seeds: int

    @property
    def cells(self) -> int:
        """Return the number of cells."""
        return self.networks * self.data * self.seeds

    def plan(self) -> Plan:
        """Return the plan of a benchmark of this grid."""
        return Plan(
            # Widths that differ by a hundredth are different networks of about the same cost.
            models=tuple(f"MobileNetV1(width_multiplier={0.25 + 0.01 * n:.2f})" for n in range(self.networks)),
            data=tuple(f"campaigns.scale:Gratings(number={1 + n})" for n in range(self.data)),
            seeds=tuple(range(self.seeds)),
            measures=("complexity", "speed", "quality"),
            budget_s=None,
            epochs=EPOCHS,
            device="cpu",
            precision="32-true",
            precision_reason="asked for",
            batch_size=BATCH,
            speed_batch_size=128,
            eval_batch_size=500,
            inference_precision="32-true",
        )


GRIDS = (Grid(5, 2, 1), Grid(10, 2, 5), Grid(40, 5, 5), Grid(60, 10, 5), Grid(100, 10, 10))
"""Grids of 10, 100, 1,000, 3,000 and 10,000 cells."""


# Records of a grid


def grid_records(grid: Grid, committed: Sequence[Record]) -> Iterator[Record]:
    """Yield a record for each cell of a grid, which `bench --resume` takes for its own.

    Args:
        grid: Grid of the records.
        committed: Records to vary. The counts, times and learning curve of a network on a data set are those of one of
            them, changed at random; accuracies are drawn for every seed.
    """
    plan = grid.plan()
    timed = [r for r in committed if "yardstick" in r.measures.get("samples_ms", {}) and r.training.get("curve")]
    generator = random.Random(0)
    templates = {name: _template(plan, name) for name in plan.data}
    networks: dict[tuple[str, str], tuple[Record, float]] = {}
    start = datetime(2026, 11, 29, tzinfo=timezone.utc)
    for index, cell in enumerate(plan.cells()):
        pair = cell.model, cell.data
        if pair not in networks:
            record = _network(generator.choice(timed), templates[cell.data], generator)
            networks[pair] = record, generator.uniform(0.5, 0.97)
        record, share = networks[pair]
        matrix = _matrix(share + generator.gauss(0, 0.004), record.data["test_images"], generator)
        yield replace(
            record,
            model=cell.model,
            seed=cell.seed,
            measures=record.measures | accuracy(matrix),
            confusion_matrix=matrix,
            created=(start + timedelta(seconds=index)).isoformat(timespec="seconds"),
        )


def _template(plan: Plan, data: str) -> Record:
    """Return a record with data, settings and machine as `bench` writes them here, of a cell that is only counted."""
    counted = measure_cell(replace(plan, measures=("complexity",)), Cell(plan.models[0], data, 0), Path(), {})
    return replace(counted, config=counted.config | {"measures": list(plan.measures)}, skipped={})


def _network(original: Record, template: Record, generator: random.Random) -> Record:
    """Return a record of a network on the data of a template, with changed figures of another record."""
    measures = {}
    for key, value in changed(original, generator).measures.items():
        if not key.startswith(("test_accuracy", "train_accuracy", "val_accuracy")):
            measures[key] = value
    factor = measures["latency_ms_median"] / original.measures["latency_ms_median"]
    measures["samples_ms"] = {
        # The yardstick is not a part of the network.
        kind: _scaled(rounds, 1.0 if kind == "yardstick" else factor)
        for kind, rounds in original.measures["samples_ms"].items()
    }
    # A throughput must agree with the batch size of the template, or the record is refused.
    measures["images_per_s"] = 1e3 * template.config["speed_batch_size"] / measures["inference_ms_median"]
    measures["train_images_per_s"] = 1e3 * template.config["batch_size"] / measures["train_step_ms_median"]
    return replace(template, measures=measures, training=_training(original, template))


def _scaled(rounds: Sequence[Sequence[float]], factor: float) -> list[list[float]]:
    """Return the times of rounds, multiplied and rounded as `bench` rounds them."""
    return [[round(factor * time_ms, 4) for time_ms in times] for times in rounds]


def _training(original: Record, template: Record) -> dict[str, Any]:
    """Return the facts of a full training on the data of a template, with the learning curve of another record."""
    images = template.data["train_images"]
    steps = EPOCHS * (images // BATCH)
    last = original.training["curve"][-1]["step"]
    return {
        **original.training,
        "steps": steps,
        "images": steps * BATCH,
        "epochs": steps * BATCH / images,
        "full_epochs": template.data["full_epochs"],
        "converged": True,
        "diverged": False,
        "curve": [{**point, "step": point["step"] * steps // last} for point in original.training["curve"]],
    }


def _matrix(share: float, images: int, generator: random.Random) -> list[list[int]]:
    """Return a confusion matrix in which about this share of the images is right."""
    per_class = images // CLASSES
    matrix = [[0] * CLASSES for _ in range(CLASSES)]
    for label, row in enumerate(matrix):
        row[label] = min(per_class, max(0, round(share * per_class + generator.gauss(0, 2))))
        for _ in range(per_class - row[label]):
            # Some classes are confused more often than others.
            row[(label + generator.choice((1, 1, 1, 2, 2, 5))) % CLASSES] += 1
    return matrix


# Steps of a run, each in a process of its own


def in_process(name: str, grid: str, folder: str, records: str) -> None:
    """Take a step of a grid that is not a command of its own, in this process.

    Args:
        name: Name of the step: ``plan``, ``write`` or ``resume``.
        grid: Numbers of networks, data sets and seeds, with commas between them.
        folder: Run folder.
        records: Folder of the committed records.
    """
    sizes = Grid(*map(int, grid.split(",")))
    {"plan": _plan, "write": _write, "resume": _resume}[name](sizes, Path(folder), Path(records))


def _plan(grid: Grid, folder: Path, records: Path) -> None:
    """Make the plan of a grid, list its cells and write the plan, as the start of a run does; keep how long it took."""
    start = time.perf_counter()
    plan = grid.plan()
    assert len({cell.key for cell in plan.cells()}) == grid.cells
    save_plan(folder, plan)
    (folder / TIMES_FILE).write_text(json.dumps([1e3 * (time.perf_counter() - start)]))


def _write(grid: Grid, folder: Path, records: Path) -> None:
    """Write the records of a grid one by one, as `bench` does after each cell, and keep how long each took."""
    times_ms = []
    for record in grid_records(grid, originals(records)):
        start = time.perf_counter()
        write_record(folder / "records" / f"{record.key}.json", record)
        times_ms.append(1e3 * (time.perf_counter() - start))
    (folder / TIMES_FILE).write_text(json.dumps(times_ms))


def _resume(grid: Grid, folder: Path, records: Path) -> None:
    """Resume the finished run of a grid, which checks every record and measures nothing."""
    done = Session({}, folder, resume=True, trust=Trust.of(("campaigns",))).run()
    assert len(done) == grid.cells


def _of_step(name: str) -> Callable[[Grid, Path, Path], dict[str, float]]:
    """Return a function that measures a step of `in_process`."""

    def measured(grid: Grid, folder: Path, records: Path) -> dict[str, float]:
        sizes = f"{grid.networks},{grid.data},{grid.seeds}"
        return in_fresh_process(["-c", STEP, name, sizes, str(folder), str(records)], f"step {name}")

    return measured


def _dry_run(grid: Grid, folder: Path, records: Path) -> dict[str, float]:
    """Measure the dry run of a grid."""
    plan = grid.plan()
    names = [f"--models={','.join(plan.models)}", f"--data={','.join(plan.data)}"]
    names.append(f"--seeds={','.join(map(str, plan.seeds))}")
    settings = [f"--epochs={EPOCHS}", f"--batch_size={BATCH}", "--device=cpu", "--precision=32-true"]
    return in_fresh_process(["-c", COMMAND, "bench", "--dry_run", *names, *settings], "the dry run")


def _planned(grid: Grid, folder: Path, records: Path) -> dict[str, float]:
    """Measure the plan; its seconds are those of the plan alone."""
    found = _of_step("plan")(grid, folder, records)
    return {**found, "seconds": sum(json.loads((folder / TIMES_FILE).read_text())) / 1e3}


def _written(grid: Grid, folder: Path, records: Path) -> dict[str, float]:
    """Measure the writing of the records; its seconds are those of the writing alone."""
    found = _of_step("write")(grid, folder, records)
    times_ms = json.loads((folder / TIMES_FILE).read_text())
    tenth = max(1, len(times_ms) // 10)
    sizes = [path.stat().st_size for path in (folder / "records").iterdir()]
    # The medians leave out single writes that waited for the disk.
    growth = statistics.median(times_ms[-tenth:]) / statistics.median(times_ms[:tenth])
    figures = {"record_ms": statistics.median(times_ms), "record_bytes": statistics.fmean(sizes), "growth": growth}
    return {**found, "seconds": sum(times_ms) / 1e3, **figures}


def _report(grid: Grid, folder: Path, records: Path) -> dict[str, float]:
    """Measure the report of a grid, and its files."""
    place = folder / "report"
    found = in_fresh_process(["-c", COMMAND, "report", str(folder), "--out", str(place)], "the report")
    sizes = {path: path.stat().st_size / 1e6 for path in place.rglob("*") if path.is_file()}
    page = sizes.pop(place / "report.html")
    return {**found, "page_mb": page, "other_mb": sum(sizes.values()), "files": 1 + len(sizes)}


def _compare(grid: Grid, folder: Path, records: Path) -> dict[str, float]:
    """Measure the comparison of all records of a grid with themselves."""
    return in_fresh_process(["-c", COMMAND, "compare", str(folder), str(folder)], "the comparison")


def _compare_two(grid: Grid, folder: Path, records: Path) -> dict[str, float]:
    """Measure the comparison of two records of a grid."""
    one = str(min((folder / "records").iterdir()))
    return in_fresh_process(["-c", COMMAND, "compare", one, one], "the comparison")


def _per_cell(grid: Grid) -> list[float]:
    """Return the amounts of a step that grow with the cells."""
    return [1.0, grid.cells]


def _per_network(grid: Grid) -> list[float]:
    """Return the amounts of a step that grow with the networks."""
    return [1.0, grid.networks]


def _per_row(grid: Grid) -> list[float]:
    """Return the amounts of what grows with the rows of the report's table, which has a limit."""
    return [1.0, min(grid.cells, MOST_ROWS)]


def _per_cell_and_row(grid: Grid) -> list[float]:
    """Return the amounts of the report, which reads every record and shows a limited number of them."""
    return [1.0, grid.cells, min(grid.cells, MOST_ROWS)]


@dataclass(frozen=True)
class Step:
    """A step of a run.

    Attributes:
        name: Name of the step.
        measure: Function that takes the step of a grid in a run folder, and returns its costs.
        costs: For each cost that is predicted, function that returns what the cost of a grid is a sum of: 1 for the
            fixed cost, and numbers of cells, networks or rows.
    """

    name: str
    measure: Callable[[Grid, Path, Path], dict[str, float]]
    costs: Mapping[str, Amounts]


_PROCESS = ("seconds", "cpu_s", "peak_mb")
"""Keys of the costs of a process."""
STEPS = (
    Step("plan", _planned, {"seconds": _per_cell}),
    Step("dry run", _dry_run, dict.fromkeys(_PROCESS, _per_network)),
    Step("records", _written, {"seconds": _per_cell}),
    Step("resume", _of_step("resume"), dict.fromkeys(_PROCESS, _per_cell)),
    Step("report", _report, {**dict.fromkeys(_PROCESS, _per_cell_and_row), "page_mb": _per_row}),
    Step("compare all", _compare, dict.fromkeys(_PROCESS, _per_cell)),
    Step("compare two", _compare_two, dict.fromkeys(_PROCESS, _per_cell)),
)
"""Steps of a run, in their order: each finds the files of those before it."""


# Costs against the number of cells


def fitted(amounts: Sequence[Sequence[float]], costs: Sequence[float]) -> list[float]:
    """Return the costs per amount that describe measured costs best.

    Args:
        amounts: Amounts of each measured grid, such as 1 and the number of cells.
        costs: Cost of each grid, above 0.

    Returns:
        One value per amount, by least squares of the relative errors.
    """
    # Divided by its cost, each grid counts alike; otherwise only the largest ones would.
    weights = 1 / np.array(costs)
    found, *_ = np.linalg.lstsq(np.array(amounts) * weights[:, None], np.ones(len(costs)), rcond=None)
    return found.tolist()


def predictions(rows: Sequence[Mapping[str, Any]], grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """Fit the costs of each step to all grids but the last, and set the prediction for the last beside its costs.

    Args:
        rows: Costs of the steps, for each grid in turn.
        grids: Grids by rising number of cells.
    """
    found = []
    for step in STEPS:
        costs = [row for row in rows if row["step"] == step.name]
        for key, amounts_of in step.costs.items():
            amounts = [amounts_of(grid) for grid in grids]
            values = fitted(amounts[:-1], [row[key] for row in costs[:-1]])
            predicted, measured = float(np.dot(values, amounts[-1])), costs[-1][key]
            model = {"step": step.name, "cost": key, "values": values, "predicted": predicted, "measured": measured}
            found.append(model | {"ratio": predicted / measured})
    return found


def measure(grids: Sequence[Grid], records: Path) -> list[dict[str, Any]]:
    """Take all steps of all grids, and print their costs.

    Args:
        grids: Grids to measure.
        records: Folder of the committed records.

    Returns:
        The costs of each step, with the numbers of its grid.
    """
    rows = []
    print("| Cells | Networks x data x seeds | Step | Seconds | CPU seconds | Peak MB | More |")
    print("| ---: | --- | --- | ---: | ---: | ---: | --- |", flush=True)
    for grid in grids:
        sizes = {"cells": grid.cells, "networks": grid.networks, "data": grid.data, "seeds": grid.seeds}
        with tempfile.TemporaryDirectory() as folder:
            for step in STEPS:
                load = os.getloadavg()[0]
                found = step.measure(grid, Path(folder), records)
                rows.append({"step": step.name, **sizes, **found, "load_average": load})
                more = [f"{key} {value:,.4g}" for key, value in found.items() if key not in _PROCESS]
                print(f"| {grid.cells:,} | {grid.networks} x {grid.data} x {grid.seeds} | {step.name} "
                      f"| {found['seconds']:.1f} | {found['cpu_s']:.1f} | {found['peak_mb']:.0f} | {', '.join(more)} |",
                      flush=True)  # fmt: skip
    return rows


def goals(rows: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Return whether each goal is met, by its description."""
    last = {row["step"]: row for row in rows if row["cells"] == rows[-1]["cells"]}
    # Wall time depends on what else the machine does.
    judged = [model["ratio"] for model in models if model["cost"] == "cpu_s"]
    return {
        f"report in less than {LONGEST_REPORT_S:g} s": last["report"]["seconds"] < LONGEST_REPORT_S,
        f"report with less than {LARGEST_REPORT_MB:g} MB": last["report"]["peak_mb"] < LARGEST_REPORT_MB,
        f"page of less than {LARGEST_PAGE_MB:g} MB": last["report"]["page_mb"] < LARGEST_PAGE_MB,
        f"last records at most {MOST_GROWTH:g} times as slow as the first": last["records"]["growth"] <= MOST_GROWTH,
        f"processor time predicted within a factor of {FURTHEST:g}": all(
            1 / FURTHEST <= ratio <= FURTHEST for ratio in judged
        ),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the grids, print costs and predictions, and write ``results/races/scale.json``; return the code 0."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.scale", description=__doc__)
    parser.add_argument("--records", type=Path, default=SOURCE, help="folder of the records that are varied")
    options = parser.parse_args(arguments)
    rows = measure(GRIDS, options.records.resolve())
    models = predictions(rows, GRIDS)
    print("\n| Step | Cost | Fixed, then per cell, network or row | Predicted | Measured | Ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for model in models:
        values = ", ".join(f"{value:.3g}" for value in model["values"])
        ends = f"{model['predicted']:.3g} | {model['measured']:.3g} | {model['ratio']:.2f}"
        print(f"| {model['step']} | {model['cost']} | {values} | {ends} |")
    met = goals(rows, models)
    for goal, is_met in met.items():
        print(f"{goal}: {'met' if is_met else 'short'}")
    print(f"written: {write_race('scale', rows, {}, met, models=models)}")
    return 0


if __name__ == "__main__":
    run_race("campaigns.scale", main)
