"""Time and memory that the report of 2,000 records takes.

The records are variants of committed ones, in four mixtures that are hard in different ways. `cnnbench report` makes
the report of each mixture in a fresh process. The figures include its start-up and the reading of the records.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cnnbench.errors import UserError
from cnnbench.files import reason
from cnnbench.record import Record, load_records, write_lines
from cnnbench.verification import run as run_race
from cnnbench.verification import write_race

RECORDS = 2000
"""Number of records of each mixture."""
LONGEST_S = 120.0
LARGEST_MB = 600.0
LARGEST_PAGE_MB = 8.0
"""Limits of the goals: seconds of a report, its peak memory, and the size of its page."""
SOURCE = Path("experiments/results")
"""Default folder of the committed records."""
MEASURE = """
import json, os, sys, time
start = time.perf_counter()
silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
process = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ, file_actions=silent)
_, status, usage = os.wait4(process, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - start,
                  usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""
"""Program that starts a command and prints its exit code, seconds, processor seconds and peak memory in MiB.

It is a small process of its own, because the system counts the memory of the starting process as the command's.
"""
COMMAND = "import sys; from cnnbench.cli import main; sys.exit(main(sys.argv[1:]))"
"""Program that runs `cnnbench` with its arguments."""


def changed(record: Record, generator: random.Random, **data: Any) -> Record:
    """Return a copy of a record with other costs and times, which still agree with each other.

    Args:
        record: Record to change.
        generator: Random generator for the size and the speed of the network.
        data: Further entries of the description of the data.
    """
    measures = {key: value for key, value in record.measures.items() if key != "samples_ms"}
    size, slowness = 10 ** generator.uniform(-1, 1), 10 ** generator.uniform(-0.5, 0.5)
    for key in ("macs", "params", "activations"):
        if key in measures:
            measures[key] = max(1, round(measures[key] * size))
    if "macs" in measures:
        measures["flops"] = 2 * measures["macs"]
    for key in measures:
        if key.startswith(("latency_ms", "inference_ms", "train_step_ms")):
            measures[key] *= size * slowness
        elif key.endswith("images_per_s"):
            measures[key] /= size * slowness
    return replace(record, measures=measures, data={**record.data, **data})


def models(records: Sequence[Record], generator: random.Random) -> list[Record]:
    """Return records of 2,000 different networks with long names, each of a family of its own."""
    made = []
    for index in range(RECORDS):
        letters = "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=8)).capitalize()
        name = f"{letters}Net{index}(width_multiplier={1 + index / RECORDS},dropout=0.5)"
        made.append(replace(changed(generator.choice(records), generator), model=name))
    return made


def seeds(records: Sequence[Record], generator: random.Random) -> list[Record]:
    """Return records of 20 networks with 100 seeds each."""
    networks = [changed(generator.choice(records), generator) for _ in range(20)]
    made = []
    for index in range(RECORDS):
        number, seed = index % 20, index // 20
        made.append(replace(networks[number], model=f"ResNet{number}", seed=seed))
    return made


def settings(records: Sequence[Record], generator: random.Random) -> list[Record]:
    """Return records of 5 networks, each with 400 different combinations of batch size, precision and budget."""
    networks = [changed(generator.choice(records), generator) for _ in range(5)]
    made = []
    for index in range(RECORDS):
        number, variant = index % 5, index // 5
        config = dict(networks[number].config)
        config |= {
            "speed_batch_size": 1 + variant,
            "precision": ("32-true", "bf16-mixed", "16-mixed")[variant % 3],
            "budget_s": 10.0 + variant,
            "epochs": None,
        }
        measures = dict(networks[number].measures)
        # The throughput must agree with batch size and time, or the record is refused.
        if "inference_ms_median" in measures:
            measures["images_per_s"] = 1e3 * (1 + variant) / measures["inference_ms_median"]
        made.append(replace(networks[number], model=f"VGG{number}", config=config, measures=measures))
    return made


def copies(records: Sequence[Record], generator: random.Random) -> list[Record]:
    """Return copies of the records under other names, on 20 data sets."""
    made = []
    for index in range(RECORDS):
        record = records[index % len(records)]
        label = f"{record.data['label']} {1 + index % 20}"
        made.append(replace(changed(record, generator, label=label), model=f"{record.model}_{index // 100}"))
    return made


MIXTURES: Mapping[str, Callable[[Sequence[Record], random.Random], list[Record]]] = {
    "networks": models,
    "seeds": seeds,
    "settings": settings,
    "copies": copies,
}
"""Functions that make 2,000 records from committed ones, by name of the mixture."""


def in_fresh_process(arguments: Sequence[str], what: str) -> dict[str, float]:
    """Run Python with some arguments in a fresh process, and measure it.

    Args:
        arguments: Arguments of the interpreter, such as ``["-c", COMMAND, "list"]``. The program can import the
            campaigns.
        what: What the program makes, for the message of an error.

    Returns:
        Wall time ``seconds``, processor time ``cpu_s``, both with the start of the process, and peak memory
        ``peak_mb`` in MiB.

    Raises:
        UserError: The program failed.
    """
    folders = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    places = {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    command = [sys.executable, "-c", MEASURE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **places})
    # A program that cannot be started has no measurement.
    found = json.loads(done.stdout) if done.returncode == 0 else [done.returncode, 0.0, 0.0, 0.0]
    if found[0] != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"{what} ended with {found[0]}: {last[0]}")
    return dict(zip(("seconds", "cpu_s", "peak_mb"), found[1:], strict=True))


def originals(folder: Path) -> list[Record]:
    """Return the committed records that are varied.

    Raises:
        UserError: The folder has no records.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(f"'{folder}' has no records (*.jsonl); name their folder with --records")
    return load_records(files)


def measure(records: Path, out: Path) -> dict[str, float]:
    """Make the report of a file of records in a fresh process, and measure it.

    Args:
        records: File of records, in JSON lines.
        out: Folder for the report.

    Returns:
        Wall time and processor time in seconds, peak memory and size of the page in MB, and the number of files.

    Raises:
        UserError: The command failed.
    """
    report = ["-c", COMMAND, "report", str(records), "--out", str(out)]
    return {
        **in_fresh_process(report, f"the report of '{records.name}'"),
        "page_mb": (out / "report.html").stat().st_size / 1e6,
        "files": sum(path.is_file() for path in out.rglob("*")),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the reports, print their figures and write ``results/races/reports.json``; return the exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.reports", description=__doc__)
    parser.add_argument("--records", type=Path, default=SOURCE, help="folder of the records that are varied")
    parser.add_argument("--mixtures", nargs="+", choices=list(MIXTURES), default=list(MIXTURES), help="default: all")
    options = parser.parse_args(arguments)
    varied = originals(options.records)
    rows: list[dict[str, Any]] = []
    print(f"| Mixture of {RECORDS:,} | Seconds | CPU seconds | Peak MB | Page MB | Files |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.mixtures:
            path = Path(folder) / f"{name}.jsonl"
            try:
                write_lines(path, MIXTURES[name](varied, random.Random(0)))
            except OSError as error:
                raise UserError(f"'{path}' cannot be written: {reason(error)}") from error
            found = measure(path, Path(folder) / name)
            rows.append({"mixture": name, "records": RECORDS, **found})
            times = f"{found['seconds']:.1f} | {found['cpu_s']:.1f}"
            sizes = f"{found['peak_mb']:.0f} | {found['page_mb']:.1f} | {found['files']:,.0f}"
            print(f"| {name} | {times} | {sizes} |", flush=True)
    goals = {
        f"less than {LONGEST_S:g} s": all(row["seconds"] < LONGEST_S for row in rows),
        f"less than {LARGEST_MB:g} MB": all(row["peak_mb"] < LARGEST_MB for row in rows),
        f"page of less than {LARGEST_PAGE_MB:g} MB": all(row["page_mb"] < LARGEST_PAGE_MB for row in rows),
    }
    for goal, met in goals.items():
        print(f"{goal}: {'met' if met else 'short'}")
    print(f"written: {write_race('reports', rows, {}, goals)}")
    return 0


if __name__ == "__main__":
    run_race("reports", main)
