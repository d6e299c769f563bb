"""The command `cnnbench report`: make tables, pictures and a page from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cnnbench.commands.wandb_options import WandbOptions
from cnnbench.console import make_console, note, out_json
from cnnbench.options import option
from cnnbench.record import Record, load_records, write_lines

if TYPE_CHECKING:
    from cnnbench.report.tracking import Connection

EXAMPLE = "results/bench/20260101-120000 --out report"


@dataclass(frozen=True, kw_only=True)
class Options(WandbOptions):
    """Make the terminal table, Markdown, CSV, PNG pictures and one self-contained page from records."""

    records: tuple[Path, ...] = option(
        "Records: run folders, .json or .jsonl files.", positional=True, metavar="RECORDS"
    )
    out: Path | None = option(
        "Folder of the report (default: the run folder, else results/report).", default=None, metavar="DIR"
    )
    export: Path | None = option("Write the records as JSON lines to this new file too.", default=None, metavar="FILE")
    tables: bool = option(
        "Write the table, and accuracies with a row per network and a column per data set, as LaTeX and Markdown too.",
        default=False,
    )
    json: bool = option("Print one JSON document on stdout.", default=False)


def run(options: Options) -> int:
    """Write the report of some records and print its table; return 0."""
    records = load_records(options.records)
    if options.export is not None:
        write_lines(options.export, records)
    folder = options.out or _default_folder(options.records)
    connection = options.connect()
    if connection.mode != "off":
        _log(records, folder, connection)
    show_report(records, folder, options.json)
    if options.tables:
        _write_tables(records, folder)
    return 0


def _default_folder(paths: Sequence[Path]) -> Path:
    """Return the run folder if the user named that alone, or else ``results/report``."""
    if len(paths) == 1 and paths[0].is_dir():
        return paths[0]
    return Path("results/report")


def _write_tables(records: Sequence[Record], folder: Path) -> None:
    """Write the tables for a paper beside the report."""
    from cnnbench.report import exports, outputs

    names = ", ".join(path.name for path in exports.write_tables(outputs.Report(records), folder))
    note(f"tables: {names}")


def _log(records: Sequence[Record], folder: Path, connection: Connection) -> None:
    """Log every record, and the comparison of all of them, to W&B."""
    from cnnbench.report.tracking import CellTracker

    folder.mkdir(parents=True, exist_ok=True)
    tracker = CellTracker(connection, folder)
    try:
        tracker.log_all(records)
    finally:
        tracker.close()
    tracker.show_workspace()


def show_report(records: Sequence[Record], folder: Path, as_json: bool) -> None:
    """Write the report of some records into a folder, and print its table or one JSON document.

    Args:
        records: Records to report.
        folder: Folder of the report.
        as_json: Whether to print a JSON document instead of the table.
    """
    from cnnbench.report.outputs import Report, json_document, print_table, write_report

    files = write_report(records, folder)
    if as_json:
        out_json(json_document(records))
    else:
        print_table(Report(records), make_console())
    note(f"report: {files[0]}")
