"""The command `cnnbench compare`: compare two sets of records, figure by figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cnnbench.console import note, out, out_json, show
from cnnbench.errors import UserError
from cnnbench.options import option
from cnnbench.record import load_records

if TYPE_CHECKING:
    from cnnbench.report.compare import Change

EXAMPLE = "results/bench/20260101-120000 results/bench/20260102-120000 --gate 5"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare every network on every data set that two sets of records share, each figure with its interval."""

    a: Path = option("Records before: a run folder, .json or .jsonl file.", positional=True, metavar="A")
    b: Path = option("Records after: a run folder, .json or .jsonl file.", positional=True, metavar="B")
    gate: float | None = option(
        "Exit with 1 if a time is longer by more than this many per cent, or an accuracy lower by more than this many "
        "points, beyond chance; also if a figure is missing in B, or if that cannot be decided.",
        default=None,
        metavar="PERCENT",
        least=0,
    )
    machines: bool = option(
        "Set two devices side by side: A has the records of one device, B those of another.", default=False
    )
    out: Path | None = option(
        "Folder for the picture of --machines, as PNG and SVG (default: none is drawn).", default=None, metavar="DIR"
    )
    all: bool = option("Show every figure, also those that did not change or do not compare.", default=False)
    json: bool = option("Print one JSON document on stdout, always with every figure.", default=False)


def run(options: Options) -> int:
    """Print the comparison of two sets of records; return 1 if it does not pass the gate."""
    if options.machines:
        return _run_machines(options)
    if options.out is not None:
        raise UserError("--out is the folder for the picture of --machines; add that, or leave --out out")
    from cnnbench.report import compare
    from cnnbench.report import gate as gates

    changes = compare.compare(load_records([options.a]), load_records([options.b]))
    gate = gates.Gate(changes, options.gate)
    if options.json:
        out_json({"changes": [change._asdict() for change in changes], **gate.document()})
    else:
        _print(changes, options.all)
    # These lines go to stderr, so that with --json the document is alone on stdout.
    for line in gate.lines():
        note(line)
    return 0 if gate.passed else 1


def _run_machines(options: Options) -> int:
    """Print two devices side by side, and draw their picture if there is a folder for it; return 0."""
    from cnnbench.report import machines, machines_view

    if options.gate is not None:
        raise UserError("--gate compares two runs on one device; leave it out with --machines")
    found = machines.compare_machines(load_records([options.a]), load_records([options.b]))
    files = [] if options.out is None else machines_view.write_picture(found, options.out)
    if options.json:
        out_json({**found.document(), "files": [str(file) for file in files]})
    else:
        show(machines_view.table(found))
        for line in machines_view.sentences(found, options.all):
            out(line)
    for file in files:
        note(f"picture: {file}")
    return 0


def _print(changes: Sequence[Change], everything: bool) -> None:
    """Print the verdicts, the table and its notes; `everything` decides whether unchanged figures have rows."""
    from cnnbench.report import gate, summary

    out(summary.sentence(changes))
    rows = list(changes) if everything else summary.changed(changes)
    if rows:
        show(gate.table(rows))
    lines = gate.remarks(changes, rows)
    if not everything:
        lines = [*summary.not_compared(changes), *lines]
    for line in lines:
        out(line)
    if any(change.reason.startswith("device ") for change in changes):
        out("The devices differ; --machines sets two devices side by side.")
    if len(rows) < len(changes):
        out(summary.what_all_adds(len(rows), len(changes)))
