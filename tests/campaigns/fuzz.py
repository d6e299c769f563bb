"""Damage every kind of input of the command, and judge what the command does with it, in at least 2,000 seeded cases.

A case is made from a kind of input, a number and a seed. It can be repeated alone with ``--only KIND:NUMBER``. Every
case runs in a forked child process in a folder of its own. The verdicts are:

- clear: the input is refused with exit code 2 and one line, and nothing is left behind;
- right: the input is accepted, and the result is correct;
- failed cell: exit code 1, and a record or a message says why one network failed;
- apart: the input is accepted although a JPEG has other pixels or a checkpoint other weights, which no rule of the
  format can detect;
- traceback, hang, wrong: defects of the project.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaigns.fuzz_cases import batches, mnist
from campaigns.fuzz_checkpoints import checkpoint, predictions
from campaigns.fuzz_fork import Child, Command, Outcome, preload, start
from campaigns.fuzz_images import cache, images, photo
from campaigns.fuzz_judge import BAD, VERDICTS, Finding, Prepared, judge
from campaigns.fuzz_networks import names
from campaigns.fuzz_options import options
from campaigns.fuzz_outputs import outputs
from campaigns.fuzz_records import compare, plan, report, resume, speed
from campaigns.fuzz_templates import Templates, make
from campaigns.fuzz_yaml import bench_yaml, fit_yaml, run_config
from cnnbench.console import note, out, out_text
from cnnbench.errors import UserError, unknown
from cnnbench.files import write_json
from cnnbench.record import environment
from cnnbench.verification import FOLDER
from cnnbench.verification import run as run_race

Maker = Callable[[random.Random, Path, Templates], Prepared]
"""Function that makes a case in a folder, from a random generator and the undamaged inputs."""
KINDS: dict[str, tuple[int, Maker]] = {
    "mnist": (150, mnist),
    "images": (170, images),
    "cache": (90, cache),
    "batches": (50, batches),
    "photo": (90, photo),
    "checkpoint": (190, checkpoint),
    "plan": (130, plan),
    "speed": (100, speed),
    "report": (140, report),
    "compare": (150, compare),
    "resume": (130, resume),
    "run-config": (80, run_config),
    "bench-yaml": (150, bench_yaml),
    "fit-yaml": (90, fit_yaml),
    "predictions": (70, predictions),
    "options": (260, options),
    "outputs": (90, outputs),
    "names": (150, names),
}
"""Kinds of input, each with its weight in the number of cases and the function that makes a case."""
DRAWN = ("report", "outputs", "names")
"""Kinds whose pictures are really drawn; for the others matplotlib saves empty pictures."""
CASES = 2280
"""Default number of cases."""
LIMIT_S = 30.0
"""Default time limit of a case in seconds."""


@dataclass(frozen=True)
class Case:
    """A damaged input, described by everything that is needed to make it again."""

    kind: str
    number: int
    seed: int

    @property
    def generator(self) -> random.Random:
        """Return a new random generator that depends on this case only."""
        return random.Random(f"{self.seed}:{self.kind}:{self.number}")

    @property
    def repeat(self) -> str:
        """Return the command that runs this case alone."""
        return f"python -m campaigns.fuzz --seed {self.seed} --only {self.kind}:{self.number}"


@dataclass(frozen=True)
class Result:
    """A case that was run, with its outcome and its verdict."""

    case: Case
    prepared: Prepared
    outcome: Outcome
    finding: Finding

    def row(self) -> dict[str, Any]:
        """Return the result as an object for JSON."""
        lines = [line for line in self.outcome.stderr.splitlines() if line.strip()]
        return {
            "kind": self.case.kind,
            "number": self.case.number,
            "verdict": self.finding.verdict,
            "reason": self.finding.reason,
            "damage": self.prepared.damage,
            "repeat": self.case.repeat,
            "arguments": shlex.join(self.prepared.arguments)[:500],
            "code": self.outcome.code,
            "last_line": lines[-1][:400] if lines else "",
        }


def cases_of(kinds: Sequence[str], count: int, seed: int) -> list[Case]:
    """Return cases in random order, divided among the kinds by their weights.

    Args:
        kinds: Kinds of input.
        count: Approximate number of cases; every kind gets at least one.
        seed: Random seed for the damage and the order.
    """
    total = sum(KINDS[kind][0] for kind in kinds)
    cases = []
    for kind in kinds:
        share = max(1, round(count * KINDS[kind][0] / total))
        cases += [Case(kind, number, seed) for number in range(share)]
    random.Random(seed).shuffle(cases)
    return cases


def run_cases(
    cases: Sequence[Case], templates: Templates, jobs: int, limit_s: float, command: Command | None = None
) -> Iterator[Result]:
    """Run cases, several at a time, and yield each one with its verdict.

    Args:
        cases: Cases to run.
        templates: Undamaged inputs.
        jobs: Number of child processes that run at the same time.
        limit_s: Time limit in seconds, after which a case counts as hanging.
        command: Command to run; None for the command of the project.
    """
    waiting = list(reversed(cases))
    working: list[tuple[Case, Prepared, Child]] = []
    while waiting or working:
        while waiting and len(working) < jobs:
            case = waiting.pop()
            # The output is kept beside the folder of the case, so that it is not taken for a file that the case leaves.
            base = Path(tempfile.mkdtemp(prefix="case-", dir=templates.root.parent))
            folder = base / "here"
            folder.mkdir()
            prepared = KINDS[case.kind][1](case.generator, folder, templates)
            drawn = case.kind in DRAWN
            child = start(
                prepared.arguments, folder, base / "output", limit_s, command, prepared.stdout, pictures=drawn
            )
            working.append((case, prepared, child))
        for entry in list(working):
            case, prepared, child = entry
            outcome = child.poll()
            if outcome is not None:
                working.remove(entry)
                yield Result(case, prepared, outcome, _judged(outcome, prepared))
                shutil.rmtree(child.folder.parent, ignore_errors=True)
        time.sleep(0.004)


def _judged(outcome: Outcome, prepared: Prepared) -> Finding:
    """Return the verdict on a case, which is "wrong" if its results cannot be read at all."""
    try:
        return judge(outcome, prepared)
    except Exception as error:
        return Finding("wrong", f"the result cannot be read: {type(error).__name__}: {str(error)[:200]}")


def table(results: Sequence[Result]) -> list[str]:
    """Return the lines of a Markdown table of verdicts by kind."""
    lines = [f"| Input | Cases | {' | '.join(VERDICTS)} |", f"| --- |{' ---: |' * (1 + len(VERDICTS))}"]
    for kind in [*dict.fromkeys(kind for kind in KINDS if any(r.case.kind == kind for r in results)), "all"]:
        counts = Counter(r.finding.verdict for r in results if kind in ("all", r.case.kind))
        cells = [str(counts[verdict]) for verdict in VERDICTS]
        lines.append(f"| {kind} | {sum(counts.values())} | {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, print the table and every bad case, and write the verdict.

    Returns:
        The exit code, which is 1 if there is a bad case.
    """
    parsed = _parser().parse_args(arguments)
    kinds = parsed.kinds.split(",") if parsed.kinds else list(KINDS)
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
    cases = [_case(parsed.only, parsed.seed)] if parsed.only else cases_of(kinds, parsed.cases, parsed.seed)
    began = time.monotonic()
    results = []
    with tempfile.TemporaryDirectory(prefix="cnnbench-fuzz-") as base:
        note("importing, and making the undamaged inputs")
        preload()
        root = Path(base) / "templates"
        root.mkdir()
        templates = make(root)
        prepared_s = time.monotonic() - began
        try:
            for result in run_cases(cases, templates, parsed.jobs, parsed.limit):
                results.append(result)
                _tell(result, bool(parsed.only))
                if len(results) % 100 == 0:
                    note(f"{len(results):,} of {len(cases):,} cases, {time.monotonic() - began:,.0f} s")
        except KeyboardInterrupt:
            note(f"interrupted after {len(results):,} of {len(cases):,} cases")
    seconds = time.monotonic() - began
    for line in table(results):
        out(line)
    out(f"{len(results):,} cases in {seconds:,.0f} s, of which {prepared_s:,.0f} s for the undamaged inputs")
    if not parsed.only:
        out(f"written: {_write(parsed, results, seconds)}")
    return 1 if any(result.finding.verdict in BAD for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m campaigns.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=CASES, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all damage (default: %(default)s)")
    parser.add_argument("--kinds", metavar="A,B", help=f"only these of {', '.join(KINDS)}")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one case alone, with all that it prints")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of a case (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=f"file of the verdict (default: {FOLDER / 'fuzz.json'})")
    return parser


def _case(text: str, seed: int) -> Case:
    kind, _, number = text.partition(":")
    if kind not in KINDS or not number.isdigit():
        raise UserError(f"case '{text}' is not of the form KIND:NUMBER, such as mnist:3; kinds: {', '.join(KINDS)}")
    return Case(kind, int(number), seed)


def _tell(result: Result, whole: bool) -> None:
    """Print a bad case in one line, or everything about a case that runs alone (`whole`)."""
    outcome, finding = result.outcome, result.finding
    if finding.verdict in BAD:
        note(f"{finding.verdict}: {result.case.repeat}: {result.prepared.damage}: {finding.reason}")
    if not whole:
        return
    out(f"damage: {result.prepared.damage}")
    out(f"command: cnnbench {shlex.join(result.prepared.arguments)}")
    out(f"exit code {outcome.code} after {outcome.seconds:.1f} s; new: {', '.join(outcome.new[:20])}")
    out_text(f"--- stdout\n{outcome.stdout[:4000]}\n--- stderr\n{outcome.stderr[-6000:]}\n---")
    out(f"{result.finding.verdict}: {result.finding.reason}")


def _write(parsed: Any, results: Sequence[Result], seconds: float) -> Path:
    counts = Counter(result.finding.verdict for result in results)
    by_kind = {}
    for kind in KINDS:
        of_kind = Counter(result.finding.verdict for result in results if result.case.kind == kind)
        times = [result.outcome.seconds for result in results if result.case.kind == kind]
        by_kind[kind] = {verdict: of_kind[verdict] for verdict in VERDICTS} | {"seconds": round(sum(times), 1)}
    goals = {f"no {verdict}": counts[verdict] == 0 for verdict in BAD}
    goals["at least 2,000 cases"] = len(results) >= 2000
    path: Path = parsed.out or FOLDER / "fuzz.json"
    write_json(
        path,
        {
            "machine": environment("cpu", 1),
            "rows": [result.row() for result in results if result.finding.verdict in BAD],
            "verdict": "met" if all(goals.values()) else "short",
            "goals": goals,
            "kinds": by_kind,
            "counts": {verdict: counts[verdict] for verdict in VERDICTS},
            "cases": len(results),
            "seed": parsed.seed,
            "seconds": round(seconds),
            "cpu_seconds": round(sum(os.times()[:4])),
        },
    )
    return path


if __name__ == "__main__":
    # One thread for the processes that a case starts. The forked children set their number of threads in torch.
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.setrecursionlimit(20_000)
    run_race("fuzz", main)
