"""Our latencies of engines beside those of the engines' own programs, for the same files.

OpenVINO's program is ``benchmark_app``, which reports a median by the clock of the library, so the median of our calls
by this clock is set beside it. ONNX Runtime's package has ``onnxruntime_test``, which reports a mean of calls from
Python, so our mean is set beside it. It has ONNX Runtime's own number of threads, one per physical core.

In every round each program measures each file once, in random order. The other programs have a process for each file.
A process of ours times all networks of an engine in turns, as `cnnbench speed` does.
"""

from __future__ import annotations

import argparse
import functools
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cnnbench.engines import ENGINES, find_engine
from cnnbench.engines.export import write_for_engine
from cnnbench.errors import UserError
from cnnbench.network import get_network
from cnnbench.timing.processes import in_process
from cnnbench.timing.speed import SpeedConfig, Subject, measure_speed
from cnnbench.timing.timed_network import Way
from cnnbench.units import plain
from cnnbench.verification import ratio, write_race
from cnnbench.verification import run as run_race

NETWORKS = ("LeNet5", "VGG16", "ResNet18", "MobileNetV1")
"""Networks of the default benchmark."""
SHAPE = (3, 32, 32)
MOST_DIFFERENCE = 0.15
"""Largest difference between our time and the other program's that meets the goal, as a share."""
SECONDS = 3
"""Approximate time for which a program runs a network."""
_ROUNDS = 12
"""Rounds of our timing in a process; `cnnbench speed` has at least as many in all of its processes together."""
_CPU = torch.device("cpu")


class Entry(NamedTuple):
    """A file that several programs measure.

    Attributes:
        network: Name of the network.
        engine: Name of the engine.
        path: File of the network.
    """

    network: str
    engine: str
    path: Path


class Ours(NamedTuple):
    """Our latency of a file.

    Attributes:
        ms: Median of our calls in milliseconds, as in `cnnbench speed`.
        comparable_ms: The statistic that the engine's program reports, of the same calls: their mean for ONNX Runtime,
            and their median by the engine's own clock for OpenVINO.
    """

    ms: float
    comparable_ms: float


def ours(engine: str, entries: Sequence[Entry]) -> list[Ours]:
    """Measure our latencies of the files of an engine; called in a fresh process."""
    way = Way("32-true", engine=engine)
    config = SpeedConfig(_CPU, "32-true", 1, 1, rounds=_ROUNDS, fewest_rounds=_ROUNDS).beside_engines()

    def build() -> torch.nn.Module:
        raise AssertionError("an engine runs a file")

    subjects = {}
    for entry in entries:
        subjects[entry.network] = Subject(build, SHAPE, 10, way=way, kinds=("latency",), file=entry.path)
    found = []
    for network, figures in measure_speed(subjects, config).items():
        if "error" in figures:
            raise UserError(f"{network} in {engine}: {figures['error']}")
        comparable_ms = figures.get("latency_ms_engine")
        if comparable_ms is None:
            comparable_ms = statistics.mean(chain(*figures["samples_ms"]["latency"]))
        found.append(Ours(figures["latency_ms_median"], comparable_ms))
    return found


def benchmark_app(entry: Entry) -> float:
    """Return the median latency in milliseconds that OpenVINO's program reports."""
    words = ["-m", str(entry.path), "-d", "CPU", "-api", "sync", "-t", str(SECONDS), "-hint", "none"]
    # It takes streams and threads only without a hint of its own; OpenVINO's hint is then LATENCY, as in our sessions.
    words += ["-nstreams", "1", "-nthreads", str(torch.get_num_threads()), "-infer_precision", "f32"]
    # By default it takes images of 8-bit integers, which the network would convert.
    words += ["-shape", f"[{','.join(map(str, (1, *SHAPE)))}]", "-ip", "f32"]
    text = _run("benchmark_app", words)
    match = re.search(r"Median:\s+([\d.]+) (us|ms)", text)
    if match is None:
        raise UserError(f"benchmark_app reports no median; its last line is: {_last_line(text)}")
    return float(match[1]) * (1e-3 if match[2] == "us" else 1.0)


def onnxruntime_test(entry: Entry) -> float:
    """Return the mean latency in milliseconds that ONNX Runtime's program reports, with its own default settings."""
    return _mean_ms(entry, _calls(entry))


@functools.cache
def _calls(entry: Entry) -> int:
    """Return for how many calls ONNX Runtime's program needs about `SECONDS`."""
    return max(50, round(1e3 * SECONDS / _mean_ms(entry, 200)))


def _mean_ms(entry: Entry, calls: int) -> float:
    """Return the mean latency that ONNX Runtime's program reports of a number of calls, in milliseconds."""
    text = _run("onnxruntime_test", [str(entry.path), str(calls)])
    match = re.search(r"avg latency: ([\d.e-]+) ms", text)
    if match is None:
        raise UserError(f"onnxruntime_test reports no latency; its last line is: {_last_line(text)}")
    return float(match[1])


def _run(program: str, words: Sequence[str]) -> str:
    """Run a program of this environment and return what it prints.

    Raises:
        UserError: It is not installed, or it fails.
    """
    path = Path(sysconfig.get_path("scripts")) / program
    if not path.exists():
        raise UserError(f"{program} is not installed; install it with: pip install 'cnnbench[dev]'")
    done = subprocess.run([path, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{program} failed with exit code {done.returncode}: {_last_line(done.stderr or done.stdout)}")
    return done.stdout


def _last_line(text: str) -> str:
    """Return the last line of what a program printed."""
    return (text.strip().splitlines() or ["(nothing)"])[-1]


PROGRAMS: dict[str, tuple[str, Callable[[Entry], float]]] = {
    "openvino": ("benchmark_app", benchmark_app),
    "onnxruntime": ("onnxruntime_test", onnxruntime_test),
}
"""Name of the engine's own program, and the function that runs it, by engine."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the networks, print the table and write ``results/races/engines.json``; return the exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m cnnbench.verification.engines", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        raise UserError(f"rounds {options.rounds} must be at least 1")
    for engine in PROGRAMS:
        find_engine(engine, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        entries = _write_files(Path(folder))
        times = _race(entries, options.rounds)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    goals: dict[str, bool] = {}
    print("| Network | Engine | Our median ms | Our comparable ms | Its own program | ms | Comparable / its own |")
    print("| --- | --- | ---: | ---: | --- | ---: | ---: |")
    for entry in entries:
        program, _ = PROGRAMS[entry.engine]
        medians, mine, others = zip(*((ours.ms, ours.comparable_ms, ms) for ours, ms in times[entry]), strict=True)
        compared = ratio(mine, others)
        name = f"{entry.network}, {entry.engine}"
        ratios[name] = compared
        goals[f"{name}: within {MOST_DIFFERENCE:.0%} of {program}"] = abs(compared["median"] - 1) <= MOST_DIFFERENCE
        named = {"network": entry.network, "engine": entry.engine, "program": program}
        rows.append({**named, "ours_ms": medians, "ours_comparable_ms": mine, "ms": others})
        middle = [plain(statistics.median(values)) for values in (medians, mine, others)]
        spread = f"{compared['median']:.2f} ({compared['low']:.2f} to {compared['high']:.2f})"
        print(f"| {entry.network} | {entry.engine} | {' | '.join(middle[:2])} | {program} | {middle[2]} | {spread} |")
    versions = {engine: ENGINES[engine].version for engine in PROGRAMS}
    print(f"written: {write_race('engines', rows, ratios, goals, engines=versions, seconds=SECONDS)}")
    return 0


def _write_files(folder: Path) -> list[Entry]:
    """Write each network for each engine, and return the files."""
    entries = []
    for name in NETWORKS:
        for engine in PROGRAMS:
            print(f"writing {name} for {engine}", file=sys.stderr)
            path = folder / f"{name}{ENGINES[engine].suffix}"
            torch.manual_seed(0)
            model = get_network(name, SHAPE[0], SHAPE[1], 10).build()
            write_for_engine(model, SHAPE, name, engine, "32-true", _CPU, path)
            entries.append(Entry(name, engine, path))
    return entries


def _race(entries: Sequence[Entry], rounds: int) -> dict[Entry, list[tuple[Ours, float]]]:
    """Return our latency of every round and that of the engine's own program, in milliseconds, by file."""
    times: dict[Entry, list[tuple[Ours, float]]] = {entry: [] for entry in entries}
    shuffler = random.Random(0)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        # All programs of an engine run one after the other, so that they meet the same state of the machine.
        for engine in shuffler.sample(list(PROGRAMS), len(PROGRAMS)):
            _, measure = PROGRAMS[engine]
            of_engine = [entry for entry in entries if entry.engine == engine]
            others: dict[Entry, float] = {}
            mine: list[Ours] = []
            for entry in shuffler.sample([None, *of_engine], 1 + len(of_engine)):
                if entry is None:
                    mine = in_process(ours, engine, of_engine)
                else:
                    others[entry] = measure(entry)
            for entry, our in zip(of_engine, mine, strict=True):
                times[entry].append((our, others[entry]))
    return times


if __name__ == "__main__":
    run_race("engines", main)
