"""The command `cnnbench compare`: compare two sets of records, figure by figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cnnbench.console import note, out, out_json, show
from cnnbench.options import option
from cnnbench.record import load_records

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
    json: bool = option("Print one JSON document on stdout.", default=False)


def run(options: Options) -> int:
    """Print the comparison of two sets of records; return 1 if it does not pass the gate."""
    from cnnbench.report.compare import compare
    from cnnbench.report.gate import Gate, remarks, table

    changes = compare(load_records([options.a]), load_records([options.b]))
    gate = Gate(changes, options.gate)
    if options.json:
        out_json({"changes": [change._asdict() for change in changes], **gate.document()})
    else:
        show(table(changes))
        for line in remarks(changes):
            out(line)
    # These lines go to stderr, so that with --json the document is alone on stdout.
    for line in gate.lines():
        note(line)
    return 0 if gate.passed else 1
