"""Tables for a paper: the table of a report, and accuracies with a row per network and a column per data set.

Both are written as LaTeX and Markdown, the second one as CSV too.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnbench import text
from cnnbench.files import write_text
from cnnbench.record import Record
from cnnbench.report.contenders import Contender, compare_alike, contenders, suffixes
from cnnbench.report.findings import DASH, listed
from cnnbench.report.outputs import MarkdownPage, Report
from cnnbench.report.settings import in_group
from cnnbench.report.stored_predictions import right_with_one_only
from cnnbench.stats import Interval, mean_difference, newcombe_interval, paired_difference, paired_interval

KEY = "test_accuracy"
"""Figure in the cells of the pivot."""


@dataclass(frozen=True)
class Export:
    """A table with everything that must be read with it.

    Attributes:
        name: File name without suffix.
        caption: What the table shows.
        rows: Cells as plain text, header first.
        numeric: Whether each column holds numbers.
        notes: Sentences on what the marks mean, and warnings.
        bold: Row and column of the cells in bold.
    """

    name: str
    caption: str
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    notes: Sequence[str]
    bold: Collection[tuple[int, int]] = ()

    def to_latex(self) -> str:
        """Return the table as LaTeX, to be included in a document; it needs the package booktabs."""
        lines = [
            "% Needs \\usepackage{booktabs}.",
            "\\begin{table}",
            "\\centering",
            "\\footnotesize",
            f"\\caption{{{text.latex(self.caption)}}}",
            f"\\label{{tab:cnnbench-{self.name}}}",
            *text.latex_table(self.rows, self.numeric, self.bold),
        ]
        for note in self.notes:
            lines.append(f"\\par\\smallskip {text.latex(note)}")
        return "\n".join([*lines, "\\end{table}", ""])

    def to_markdown(self) -> str:
        """Return the table as Markdown, its caption before it and its notes after it."""
        page = MarkdownPage()
        page.paragraph(self.caption)
        page.table(self.rows, self.numeric, self.bold)
        for note in self.notes:
            page.paragraph(note)
        return str(page)


class Pivot:
    """Test accuracies over seeds, with a row per network and a column per data set.

    Args:
        records: Records of one or several runs.

    Attributes:
        labels: Labels of the data sets, in the order of their first appearance.
        rows: Networks by name, then by label of the data set.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        entries = [entry for entry in contenders(records) if entry.has(KEY)]
        self.labels = list(dict.fromkeys(entry.label for entry in entries))
        self.rows: dict[str, dict[str, Contender]] = {}
        for name, entry in zip(_row_names(entries), entries, strict=True):
            # Settings of the data, such as the number of training images, are left out of the names, since they differ
            # from column to column. Where they alone tell two rows apart, the whole name has them.
            if entry.label in self.rows.get(name, {}):
                name = entry.name
            self.rows.setdefault(name, {})[entry.label] = entry

    def export(self) -> Export:
        """Return the table."""
        rows = [["Model", *self.labels]]
        bold = set()
        best = {label: self.best_of(label) for label in self.labels}
        for place, (name, cells) in enumerate(self.rows.items(), 1):
            rows.append([name, *(_cell(cells.get(label)) for label in self.labels)])
            for column, label in enumerate(self.labels, 1):
                if name in best[label]:
                    bold.add((place, column))
        numeric = [False, *(True for _ in self.labels)]
        return Export("pivot", "Test accuracy in per cent.", rows, numeric, self._notes(bool(bold)), bold)

    def best_of(self, label: str) -> set[str]:
        """Return the networks in bold: that of the highest mean, and those that differ from it by no more than chance.

        The set is empty unless all networks of the data set ran under the same settings on the same device, and all
        trainings were full ones.
        """
        entries = {name: cells[label] for name, cells in self.rows.items() if label in cells}
        if len(entries) < 2 or not compare_alike(list(entries.values())):
            return set()
        if not all(entry.converged for entry in entries.values()):
            return set()
        best = max(entries.values(), key=lambda entry: entry.mean(KEY))
        return {name for name, entry in entries.items() if entry is best or not _difference(best, entry).excludes(0.0)}

    def _notes(self, has_bold: bool) -> list[str]:
        """Return the sentences below the table."""
        entries = [entry for cells in self.rows.values() for entry in cells.values()]
        counts = sorted({len(entry.per_seed(KEY)) for entry in entries})
        notes = []
        if counts[-1] > 1:
            notes.append(f"Mean ± standard deviation over seeds ({listed(map(str, counts), ' or ')} per cell).")
        else:
            notes.append("One seed per cell.")
        if has_bold:
            notes.append(
                "Bold: the highest mean of the data set, and all that differ from it by no more than chance (interval "
                "at 95 %). Columns whose networks do not compare have none."
            )
        if not all(entry.converged for entry in entries):
            notes.append("* Short training, less than a full one: how far a network came, not how good it is.")
        if any(len(cells) < len(self.labels) for cells in self.rows.values()):
            notes.append(f"{DASH} Not measured.")
        return notes

    def to_csv(self) -> str:
        """Return the table as CSV: mean, standard deviation and number of seeds of each data set, as shares."""
        head = ["model"]
        for label in self.labels:
            head += [f"{label}: {figure}" for figure in ("mean", "sd", "seeds", "converged")]
        rows: list[list[Any]] = [head]
        for name, cells in self.rows.items():
            row: list[Any] = [name]
            for label in self.labels:
                row += _csv_cells(cells, label)
            rows.append(row)
        return text.to_csv(rows)


def _row_names(entries: Sequence[Contender]) -> list[str]:
    """Return the names of the networks, with the settings of the run in which those on the same data differ."""
    settings = [row for row in in_group("row", "training") if row.place != "data" and row.name != "training"]
    rivals = [(entry.label, entry.model) for entry in entries]
    firsts = [entry.records[0] for entry in entries]
    ends = suffixes(rivals, firsts, settings)
    return [f"{entry.model}{end}" for entry, end in zip(entries, ends, strict=True)]


def _csv_cells(cells: Mapping[str, Contender], label: str) -> list[Any]:
    """Return the cells of a network on a data set for CSV; empty ones if it was not measured."""
    if label not in cells:
        return [None] * 4
    values = cells[label].per_seed(KEY)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return [statistics.fmean(values), deviation, len(values), cells[label].converged]


def _cell(entry: Contender | None) -> str:
    """Return mean and standard deviation as a table cell; a star marks a short training, a dash a missing figure."""
    if entry is None:
        return DASH
    values = entry.per_seed(KEY)
    shown = f"{100 * statistics.fmean(values):.2f}"
    if len(values) > 1:
        shown += f" ± {100 * statistics.stdev(values):.2f}"
    return shown if entry.converged else f"{shown}*"


def _difference(best: Contender, other: Contender) -> Interval:
    """Return the accuracy of one network minus that of another, with its interval.

    It is paired over common seeds, if there are two or more; else Welch's over the seeds; else by the test images of
    two trained networks, which are paired if the predictions of both are known.
    """
    a, b = best.by_seed(KEY), other.by_seed(KEY)
    common = [seed for seed in a if seed in b]
    if len(common) > 1:
        return paired_difference([a[seed] for seed in common], [b[seed] for seed in common]).interval
    if max(len(a), len(b)) > 1:
        return mean_difference(list(a.values()), list(b.values())).interval
    images = best.records[0].data["test_images"]
    paired = right_with_one_only(best.records[0], other.records[0])
    if paired is not None:
        return paired_interval(*paired, images)
    x, y = best.mean(KEY), other.mean(KEY)
    return Interval(x - y, *newcombe_interval(round(x * images), images, round(y * images), images))


def exports(report: Report) -> list[Export]:
    """Return the tables of a report: its own, and the pivot if any record has an accuracy."""
    titles = [column.title for column in report.columns]
    notes = [*report.warnings, *filter(None, [report.left_out])]
    numeric = [column.numeric for column in report.columns]
    tables = [Export("table", f"{report.lead}.", [titles, *report.rows()], numeric, notes)]
    pivot = Pivot(report.records)
    if pivot.rows:
        tables.append(pivot.export())
    return tables


def write_tables(report: Report, folder: Path) -> list[Path]:
    """Write the tables as LaTeX and Markdown, and the pivot as CSV too.

    Returns:
        Paths of the files.
    """
    files: dict[str, str] = {}
    for table in exports(report):
        files[f"{table.name}.tex"] = table.to_latex()
        files[f"{table.name}.md"] = table.to_markdown()
    pivot = Pivot(report.records)
    if pivot.rows:
        files["pivot.csv"] = pivot.to_csv()
    for name, content in files.items():
        write_text(folder / name, content)
    return [folder / name for name in files]
