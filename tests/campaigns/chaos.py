"""Kill a real `bench` and a real `fit` at random moments, resume them, and compare with runs that nothing disturbed.

Every run is a fresh process, and a kill may hit it anywhere: while it imports, times, trains, writes a checkpoint or
draws the report. After the resumed run, the records must equal those of the undisturbed run in everything except times,
and weights and optimizer states must be equal bit by bit. After SIGTERM and SIGINT the exit code must be 143 and 130,
and the command that the run prints must lead to the same results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from campaigns.fuzz_records import deterministic
from cnnbench.console import note, out
from cnnbench.errors import UserError
from cnnbench.files import write_json
from cnnbench.record import environment
from cnnbench.verification import FOLDER
from cnnbench.verification import run as run_race

LIMIT_S = 300.0
"""Longest time of a run in seconds."""
GO_ON = re.compile(r"go on with: (.+)")
"""The line in which an interrupted command prints how to resume it."""
WRITING = "writing"
"""Phase in which a file is being written."""
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
"""Exit codes that the command must return after a signal."""
Phase = Callable[[Path], str]
"""Function that names the phase of the run in a folder."""


@dataclass(frozen=True)
class Scenario:
    """A command that the campaign disturbs.

    Attributes:
        name: Name of the command, ``bench`` or ``fit``.
        phases: Names of all phases, in their order.
        start: Arguments that start the command in an empty folder.
        resume: Function that returns the arguments to resume the run in a folder, or those of the start if there is
            nothing to resume.
        phase: Function that names the phase of the run in a folder, judged by the files in it.
        result: Function that returns the part of the results that must be the same however often a run was disturbed.
        faults: Function that lists the incomplete and missing files in the folder of a finished run.
        said: Text on stderr that shows that the work is done and the process is about to end.
    """

    name: str
    phases: tuple[str, ...]
    start: tuple[str, ...]
    resume: Callable[[Path], tuple[str, ...]]
    phase: Phase
    result: Callable[[Path], Any]
    faults: Callable[[Path], list[str]]
    said: str


@dataclass
class Undisturbed:
    """A run that nothing disturbed.

    Attributes:
        result: Result that disturbed runs are compared with.
        phases: Seconds that the run spent in each phase.
    """

    result: Any
    phases: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """The moment at which a run is disturbed.

    Attributes:
        phase: Phase in which the run is disturbed.
        after_s: Seconds after the phase was first seen.
    """

    phase: str
    after_s: float


@dataclass(frozen=True)
class End:
    """The end of a process.

    Attributes:
        code: Exit code.
        stderr: Everything that the process printed on stderr.
        phase: Phase in which the signal was sent, or the phase at the start of the process if none was sent.
        at_s: Run time of the process in seconds.
        disturbed: Whether a signal was sent and the process did not end with exit code 0.
    """

    code: int
    stderr: str
    phase: str
    at_s: float
    disturbed: bool


def run(
    arguments: Sequence[str],
    folder: Path,
    scenario: Scenario,
    moment: Moment | None = None,
    number: int = signal.SIGKILL,
    phases: dict[str, float] | None = None,
) -> End:
    """Run the command in a fresh process, and send it a signal at a given moment.

    A run that never reaches the phase of the moment, or that ends before the moment, is not disturbed.

    Args:
        arguments: Arguments of the command.
        folder: Working folder of the process.
        scenario: Scenario that names the phases.
        moment: Moment of the signal; None to send no signal.
        number: Number of the signal.
        phases: Dictionary to which the seconds of each phase are added.

    Raises:
        RuntimeError: The process is still running after `LIMIT_S`.
    """
    begin = time.monotonic()
    disturbed, phase = False, scenario.phase(folder)
    # Parts of files that earlier kills have left do not show that something is being written now.
    left = frozenset(folder.rglob("*.part"))
    with tempfile.NamedTemporaryFile() as log:
        process = start(arguments, folder, log.name)
        last, reached = begin, None
        while process.poll() is None:
            now = time.monotonic()
            name = _phase_now(scenario, folder, Path(log.name), left)
            if phases is not None:
                phases[name] = phases.get(name, 0.0) + now - last
            if moment is not None and reached is None and name == moment.phase:
                reached = now
            if moment is not None and reached is not None and not disturbed and now - reached >= moment.after_s:
                phase, disturbed = name, True
                # SIGKILL goes to all processes of the run, other signals to the command only.
                _send(process, number)
            if now - begin > LIMIT_S:
                _send(process, signal.SIGKILL)
                raise RuntimeError(f"'{shlex.join(arguments)}' is still at work after {LIMIT_S:.0f} s")
            last = now
            # A checkpoint is written in a few milliseconds, so this phase needs a shorter interval.
            time.sleep(0.001 if moment is not None and moment.phase == WRITING else 0.01)
        log.seek(0)
        text = log.read().decode(errors="replace")
    # A run that ended successfully at the moment of the signal was not disturbed.
    disturbed = disturbed and process.returncode != 0
    return End(process.returncode, text, phase, time.monotonic() - begin, disturbed)


def start(arguments: Sequence[str], folder: Path, stderr: str) -> subprocess.Popen[bytes]:
    """Start the command as the leader of a group of processes, with stderr in a file."""
    with open(stderr, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cnnbench", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=_environment(),
            start_new_session=True,
        )


def _phase_now(scenario: Scenario, folder: Path, log: Path, left: frozenset[Path]) -> str:
    if scenario.said in log.read_text(errors="replace"):
        return "end"
    if any(path not in left for path in folder.rglob("*.part")):
        return WRITING
    return scenario.phase(folder)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is not None:
        return
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
        process.wait()
    else:
        process.send_signal(number)


def _environment() -> dict[str, str]:
    # The command must import the package of this repository, whatever its working folder is.
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


# The benchmark


def bench_scenario(quick: bool) -> Scenario:
    """Return the scenario of a small benchmark: two networks are timed, trained for an epoch and tested.

    Args:
        quick: Whether to train on fewer images and time nothing.
    """
    data = ["--data", "Synthetic", "--data_options", f"{{train_images: {300 if quick else 2000}, test_images: 100}}"]
    if os.environ.get("CNNBENCH_DATA") and not quick:
        data = ["--data", "MNIST", "--data_dir", str(Path(os.environ["CNNBENCH_DATA"]).resolve())]
    measures = "complexity,quality" if quick else "complexity,speed,quality"
    start = (
        "bench",
        "--models",
        "LeNet5,SpeedNet",
        *data,
        "--measures",
        measures,
        "--epochs",
        "1",
        "--batch_size",
        "100",
        "--speed_batch_size",
        "16",
        "--device",
        "cpu",
        "--precision",
        "32-true",
        "--out",
        "run",
    )

    def resume(folder: Path) -> tuple[str, ...]:
        return ("bench", "--resume", "--out", "run") if (folder / "run" / "plan.json").is_file() else start

    phases = ("start", *(() if quick else ("timing",)), "network 1", "network 2", "report", WRITING, "end")
    return Scenario("bench", phases, start, resume, _bench_phase, _bench_result, _bench_faults, "report: ")


def _bench_phase(folder: Path) -> str:
    root = folder / "run"
    if not (root / "plan.json").is_file():
        return "start"
    records = len(list((root / "records").glob("*.json")))
    asks_speed = "speed" in json.loads((root / "plan.json").read_text())["measures"]
    if asks_speed and not (root / "speed.json").is_file():
        return "timing"
    return "report" if records == 2 else f"network {records + 1}"


def _bench_result(folder: Path) -> dict[str, Any]:
    paths = sorted((folder / "run" / "records").glob("*.json"))
    return {path.name: deterministic(json.loads(path.read_text())) for path in paths}


def _bench_faults(folder: Path) -> list[str]:
    """Return the faults in the folder of a finished benchmark: partial, unreadable or missing files, wrong times."""
    root = folder / "run"
    faults = []
    for path in sorted(root.rglob("*")):
        if path.name.endswith(".part"):
            faults.append(f"{path.relative_to(folder)} is left")
        if path.suffix == ".json":
            try:
                json.loads(path.read_text())
            except ValueError as error:
                faults.append(f"{path.relative_to(folder)}: {error}")
    timed = "speed" in json.loads((root / "plan.json").read_text())["measures"]
    if timed:
        figures = json.loads((root / "speed.json").read_text())["figures"]
        faults += [f"speed.json: {key}" for key, value in figures.items() if value.get("latency_ms_median", 0) <= 0]
    return faults + [f"{name} is missing" for name in ("report.html", "report.md") if not (root / name).is_file()]


# The training


def fit_scenario(quick: bool) -> Scenario:
    """Return the scenario of a small training of several epochs, each of which ends with a checkpoint.

    Args:
        quick: Whether to train on fewer images for fewer epochs.
    """
    images, epochs = (300, 3) if quick else (2000, 6)
    limit = ("--trainer.max_epochs", str(epochs))
    quiet = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--out", "runs")
    start = (
        "fit",
        "--model",
        "LeNet5",
        "--data",
        "Synthetic",
        "--data.train_images",
        str(images),
        "--data.test_images",
        "100",
        "--data.batch_size",
        "50",
        *limit,
        *quiet,
    )

    def resume(folder: Path) -> tuple[str, ...]:
        last = _last_checkpoint(folder)
        return start if last is None else ("fit", "--ckpt_path", str(last.relative_to(folder)), *limit, *quiet)

    phases = ("start", "first epoch", "epochs", WRITING, "end")
    return Scenario("fit", phases, start, resume, _fit_phase, _fit_result, _fit_faults, "steps in")


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the newest ``last.ckpt`` of the runs in a folder, or None if there is none."""
    found = sorted((folder / "runs").glob("*/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return found[-1] if found else None


def _fit_phase(folder: Path) -> str:
    runs = sorted((folder / "runs").glob("*/*"))
    if not runs:
        return "start"
    return "epochs" if _last_checkpoint(folder) else "first epoch"


def _fit_result(folder: Path) -> dict[str, Any]:
    last = _last_checkpoint(folder)
    if last is None:
        return {}
    stored = torch.load(last, map_location="cpu", weights_only=True)
    return {key: stored[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")}


def _fit_faults(folder: Path) -> list[str]:
    """Return the faults of a finished training: unreadable checkpoints, and partial files in the newest run folder."""
    faults = []
    for path in sorted((folder / "runs").rglob("*.ckpt")):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            faults.append(f"{path.relative_to(folder)}: {type(error).__name__}")
    newest = max((folder / "runs").glob("*/*"), key=lambda path: path.stat().st_mtime_ns)
    return faults + [f"{path.relative_to(folder)} is left" for path in newest.rglob("*.part")]


def same(a: Any, b: Any) -> bool:
    """Return whether two results are equal; tensors must have the same type, shape and bits."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# The campaign


def undisturbed(scenario: Scenario, base: Path) -> Undisturbed:
    """Run a scenario without disturbance and measure its phases.

    Args:
        scenario: Command to run.
        base: Folder in which the folder of the run is made.

    Raises:
        RuntimeError: The command fails.
    """
    folder = base / f"{scenario.name}-undisturbed"
    folder.mkdir()
    phases: dict[str, float] = {}
    end = run(scenario.start, folder, scenario, phases=phases)
    if end.code != 0:
        raise RuntimeError(f"undisturbed {scenario.name} ended with {end.code}: {end.stderr[-2000:]}")
    return Undisturbed(scenario.result(folder), phases)


def kill(scenario: Scenario, good: Undisturbed, kills: int, base: Path, rng: random.Random) -> list[dict[str, Any]]:
    """Kill runs at random moments, and resume each run until it finishes.

    The phases take turns, because most of them are short compared with the start of the process.

    Args:
        scenario: Command to kill.
        good: Undisturbed run to compare with.
        kills: Total number of kills; a finished run is followed by a new one until all kills are done.
        base: Folder in which the folders of the runs are made.
        rng: Random generator for the moments.

    Returns:
        One row per kill, and one per finished run with its comparison.
    """
    rows: list[dict[str, Any]] = []
    tries = dict.fromkeys(scenario.phases, 0)
    done, lineage = 0, 0
    folder = base / f"{scenario.name}-{lineage}"
    folder.mkdir()
    while True:
        moment = None
        if done < kills:
            moment = _draw(scenario, good, folder, tries, rng)
        if moment is not None:
            tries[moment.phase] += 1
        end = run(scenario.resume(folder), folder, scenario, moment)
        row = {"command": scenario.name, "run": lineage, "phase": end.phase, "at_s": round(end.at_s, 2)}
        if end.disturbed:
            done += 1
            rows.append({**row, "event": "kill"})
            note(f"{scenario.name}: kill {done} of {kills} in '{end.phase}' after {end.at_s:.1f} s")
            continue
        rows.append({**row, "event": "end", **_compared(scenario, good, folder, end)})
        if done >= kills:
            return rows
        lineage += 1
        folder = base / f"{scenario.name}-{lineage}"
        folder.mkdir()


def _draw(
    scenario: Scenario, good: Undisturbed, folder: Path, tries: dict[str, int], rng: random.Random
) -> Moment | None:
    """Draw a moment in the phase with the fewest tries; None if the run is past this phase and should finish."""
    now = scenario.phase(folder)
    to_come = scenario.phases[scenario.phases.index(now) :]
    if min(tries.values()) < min(tries[phase] for phase in to_come):
        return None
    # A resumed run imports everything first, which takes as long as the phase "start" and counts as its current phase.
    begins = {now: good.phases["start"]} if now != "start" else {}
    least = min(tries[phase] for phase in to_come)
    phase = rng.choice([phase for phase in to_come if tries[phase] == least])
    if phase == WRITING:
        return Moment(phase, 0.0)
    return Moment(phase, rng.uniform(0.0, begins.get(phase, 0.0) + good.phases.get(phase, 0.0)))


def _compared(scenario: Scenario, good: Undisturbed, folder: Path, end: End) -> dict[str, Any]:
    """Return whether a finished run equals the undisturbed one, and the faults of its files."""
    if end.code != 0:
        return {"identical": False, "faults": [f"exit code {end.code}: {end.stderr.strip()[-500:]}"]}
    return {"identical": same(scenario.result(folder), good.result), "faults": scenario.faults(folder)}


def interrupt(
    scenario: Scenario, good: Undisturbed, number: signal.Signals, base: Path, rng: random.Random
) -> dict[str, Any]:
    """Send a signal to a run, run the command that it prints, and compare the result with the undisturbed run.

    Args:
        scenario: Command to interrupt.
        good: Undisturbed run to compare with.
        number: Signal to send.
        base: Folder in which the folder of the run is made.
        rng: Random generator for the moment.

    Returns:
        A row with the exit code, the printed command and the comparison.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{scenario.name}-{number.name}-", dir=base))
        phase = rng.choice([name for name in scenario.phases if name not in ("start", "end", WRITING)])
        end = run(scenario.start, folder, scenario, Moment(phase, rng.uniform(0.0, good.phases[phase])), number)
        # In the phase "start" there is no folder to resume from, and in the phase "end" no work is left: try again.
        if end.code != 0 and end.phase not in ("start", "end"):
            break
    row: dict[str, Any] = {"command": scenario.name, "event": number.name, "phase": end.phase, "code": end.code}
    printed = GO_ON.search(end.stderr)
    row["expected_code"] = end.code == CODES[number] and "Traceback" not in end.stderr
    # Before its first checkpoint a training cannot be resumed, and must say so.
    nothing_kept = scenario.resume(folder) == scenario.start and "start it again" in end.stderr
    if printed is None and not nothing_kept:
        return {**row, "identical": False, "faults": [f"no line to go on with: {end.stderr.strip()[-300:]}"]}
    row["go_on_with"] = printed[1] if printed else "start it again"
    again = run(shlex.split(printed[1])[1:] if printed else scenario.start, folder, scenario)
    note(f"{scenario.name}: {number.name} in '{end.phase}': exit code {end.code}, then {again.code}")
    return {**row, **_compared(scenario, good, folder, again)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, print the kills of each phase, and write the verdict.

    Returns:
        The exit code, which is 1 if a goal is missed, for example if a result differs.
    """
    parser = argparse.ArgumentParser(prog="python -m campaigns.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=25, help="of each command (default: %(default)s)")
    parser.add_argument("--signals", type=int, default=2, help="of each kind and command (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="smaller runs without timing, for the tests")
    parser.add_argument("--out", type=Path, help=f"file of the verdict (default: {FOLDER / 'chaos.json'})")
    options = parser.parse_args(arguments)
    if options.kills < 1 or options.signals < 0:
        raise UserError(f"kills {options.kills} must be at least 1, and signals {options.signals} at least 0")
    began = time.monotonic()
    # A shell makes processes in the background ignore SIGINT, and child processes inherit this. Undo it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng = random.Random(options.seed)
    rows: list[dict[str, Any]] = []
    phases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="cnnbench-chaos-") as name:
        for scenario in (bench_scenario(options.quick), fit_scenario(options.quick)):
            good = undisturbed(scenario, Path(name))
            measured = {phase: round(good.phases.get(phase, 0.0), 2) for phase in scenario.phases}
            phases[scenario.name] = {"undisturbed_s": measured}
            rows += kill(scenario, good, options.kills, Path(name), rng)
            hit = Counter(row["phase"] for row in rows if row["command"] == scenario.name and row["event"] == "kill")
            phases[scenario.name]["kills"] = dict(hit)
            for number in [signal.SIGTERM, signal.SIGINT] * options.signals:
                rows.append(interrupt(scenario, good, number, Path(name), rng))
    return _judge(rows, phases, options, time.monotonic() - began)


def _judge(rows: list[dict[str, Any]], phases: dict[str, Any], options: Any, seconds: float) -> int:
    """Print and write the verdict, and return the exit code."""
    ends = [row for row in rows if "identical" in row]
    signals = [row for row in rows if row["event"] in ("SIGTERM", "SIGINT")]
    kills = Counter(row["command"] for row in rows if row["event"] == "kill")
    # The phase "end" is too short to be hit for certain.
    wanted = [(name, found) for found in phases.values() for name in found["undisturbed_s"] if name != "end"]
    # With fewer kills than phases not every phase can be hit.
    few = options.kills < max(len(found["undisturbed_s"]) for found in phases.values())
    goals = {
        f"at least {options.kills} kills of each command": min(kills["bench"], kills["fit"]) >= options.kills,
        **({} if few else {"kills in every phase of each command": all(found["kills"].get(n) for n, found in wanted)}),
        "records and weights identical": all(row["identical"] for row in ends),
        "every file whole": not any(row["faults"] for row in ends),
        "exit codes 143 and 130": all(row["expected_code"] for row in signals),
    }
    out("| Command | Phase | Kills | Seconds undisturbed |")
    out("| --- | --- | ---: | ---: |")
    for command, found in phases.items():
        for phase in found["undisturbed_s"]:
            seconds_of_phase = found["undisturbed_s"].get(phase, 0.0)
            out(f"| {command} | {phase} | {found['kills'].get(phase, 0)} | {seconds_of_phase:.1f} |")
    for row in ends:
        if not row["identical"] or row["faults"] or not row.get("expected_code", True):
            out(f"{row['command']} after {row['event']} in '{row['phase']}': {json.dumps(row)}")
    for goal, met in goals.items():
        out(f"{'met' if met else 'short'}: {goal}")
    path: Path = options.out or FOLDER / "chaos.json"
    verdict = "met" if all(goals.values()) else "short"
    identical = goals["records and weights identical"] and goals["every file whole"]
    result = {"machine": environment("cpu", 1), "rows": rows, "verdict": verdict, "goals": goals}
    result |= {"identical": identical, "kills": dict(kills), "phases": phases, "seed": options.seed}
    write_json(path, {**result, "seconds": round(seconds)})
    out(f"written: {path}, after {seconds:,.0f} s")
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    run_race("chaos", main)
