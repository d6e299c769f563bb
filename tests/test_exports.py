"""Tables for a paper: LaTeX that compiles, Markdown, and accuracies by network and data set."""

from __future__ import annotations

import csv
import io
import random
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest
from conftest import make_record
from scipy import stats as scipy_stats

from cnnbench import text
from cnnbench.cli import main
from cnnbench.record import Record, write_lines
from cnnbench.report.exports import Pivot, write_tables
from cnnbench.report.findings import DASH
from cnnbench.report.outputs import Report

HOSTILE = [
    r"\input{/etc/passwd}",
    r"a & b \\ c % d",
    "$x$ #1 {y} ~ ^ _",
    "[arg] *star* --dash `q` \"q\" 'q' <a> |b|",
    "größe æøœ 中文 😀 é Đ \u017f",
    "\x1b[31m\n\u202e",
    "]",
]


def _record(model: str, data: str, seed: int, right: int, images: int = 1000, full: bool = True) -> Record:
    """Return a record of two classes, with a number of test images that are classified right."""
    facts = {**make_record(data=data).data, "num_classes": 2, "class_names": ["a", "b"], "test_images": images}
    record = make_record(
        model,
        data=facts,
        seed=seed,
        confusion_matrix=[[right, images - right], [0, 0]],
    )
    record.training.update(converged=full, epochs=10.0 if full else 1.0)
    return record


def _rows(markdown: str) -> list[list[str]]:
    """Return the cells of the first table of a Markdown document, without the line of marks."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [rows[0], *rows[2:]]


def test_the_pivot_has_means_deviations_stars_and_dashes() -> None:
    right = {"P": (900, 910, 950), "Q": (700, 720, 740)}
    records = [_record(m, "MNIST", seed, n) for m, counts in right.items() for seed, n in enumerate(counts)]
    records.append(_record("P", "CIFAR10", 0, 500, full=False))
    table = Pivot(records).export()
    shown = [
        f"{statistics.mean(c) / 10:.2f} ± {statistics.stdev(c) / 10:.2f}" for c in ((900, 910, 950), (700, 720, 740))
    ]
    assert table.rows == [
        ["Model", "MNIST", "CIFAR10"],
        ["P", shown[0], "50.00*"],
        ["Q", shown[1], DASH],
    ]
    # P is better by far on MNIST; one network of a short training is not compared
    assert table.bold == {(1, 1)}
    words = " ".join(table.notes)
    assert "over seeds (1 or 3 per cell)" in words
    assert "Short training" in words
    assert "Not measured" in words
    assert _rows(table.to_markdown()) == [
        ["Model", "MNIST", "CIFAR10"],
        ["P", f"**{shown[0]}**", "50.00\\*"],
        ["Q", shown[1], DASH],
    ]
    mean, _, deviation = shown[0].split()
    assert f"P & \\textbf{{{mean} $\\pm$ {deviation}}} & 50.00{{*}} \\\\" in table.to_latex()
    (p, q) = list(csv.DictReader(io.StringIO(Pivot(records).to_csv())))
    assert float(p["MNIST: mean"]) == pytest.approx(0.92)
    assert float(p["MNIST: sd"]) == pytest.approx(statistics.stdev((0.9, 0.91, 0.95)))
    assert (p["CIFAR10: sd"], p["CIFAR10: seeds"], p["CIFAR10: converged"]) == ("", "1", "False")
    assert q["CIFAR10: mean"] == ""


def test_bold_are_the_best_and_what_cannot_be_told_from_it() -> None:
    """An independent paired t test decides, for 20 random sets of three networks."""
    generator = random.Random(1)
    seen = set()
    for _ in range(20):
        counts = {
            m: [generator.randint(900, 930) + shift for _ in range(4)] for m, shift in (("P", 0), ("Q", 8), ("R", 16))
        }
        records = [_record(m, "MNIST", seed, n) for m, ns in counts.items() for seed, n in enumerate(ns)]
        best = max(counts, key=lambda m: sum(counts[m]))
        wanted = {best}
        for model, values in counts.items():
            if model != best and scipy_stats.ttest_rel(counts[best], values).pvalue >= 0.05:
                wanted.add(model)
        assert Pivot(records).best_of("MNIST") == wanted
        seen.add(len(wanted))
    assert len(seen) > 1  # some sets are told apart, and some are not


def test_single_seeds_are_compared_by_their_test_images() -> None:
    # by the z test, 50 of 1000 images are beyond chance, and 5 of 1000 are not
    assert Pivot([_record("P", "MNIST", 0, 900), _record("Q", "MNIST", 0, 850)]).best_of("MNIST") == {"P"}
    assert Pivot([_record("P", "MNIST", 0, 900), _record("Q", "MNIST", 0, 895)]).best_of("MNIST") == {"P", "Q"}


def test_rows_meet_across_data_sets_of_other_sizes() -> None:
    records = []
    for data, images in (("MNIST", 54000), ("CIFAR10", 45000)):
        for budget in (30.0, 60.0):
            record = _record("P", data, 0, 900)
            record.config["budget_s"] = budget
            # the first budget has another number of training images, which tells nothing that the budget does not
            record.data["train_images"] = images + int(budget)
            records.append(record)
    assert list(Pivot(records).rows) == ["P (30 s of training)", "P (60 s of training)"]
    assert all(len(cells) == 2 for cells in Pivot(records).rows.values())
    # nothing but the data tells these apart, and both stay in the table
    for record in records:
        record.config["budget_s"] = 30.0
    assert sum(map(len, Pivot(records).rows.values())) == 4


def test_nothing_is_bold_where_networks_do_not_compare() -> None:
    def records(full: bool = True, **environment: object) -> list[Record]:
        both = [_record("P", "MNIST", 0, 900), _record("Q", "MNIST", 0, 500, full=full)]
        both[1].environment.update(environment)
        return both

    assert Pivot(records()).best_of("MNIST") == {"P"}
    assert Pivot(records(full=False)).best_of("MNIST") == set()
    assert Pivot(records(device="Another")).best_of("MNIST") == set()
    assert Pivot(records()[:1]).best_of("MNIST") == set()


def _tokens(latex: str) -> str:
    """Return LaTeX without its escapes and groups of one character; what is left must have no special character."""
    for pattern in (r"\\\\\n", r"\\[a-z]+\{\}", r"\{\\char\d+\}", r"\\[&%$#_{}]", r"\{[\[\]*-]\}", r"\$\\[a-z]+\$"):
        latex = re.sub(pattern, "", latex)
    return latex


@pytest.mark.parametrize("words", HOSTILE)
def test_latex_has_no_command_of_a_text(words: str) -> None:
    escaped = text.latex(words)
    assert "\n" not in escaped
    assert not set(_tokens(escaped)) & set('\\&%$#_{}~^[]*<>|"`')
    assert "--" not in _tokens(escaped)


def test_latex_keeps_what_it_can_print() -> None:
    assert text.latex("größe, 92.0 ± 0.3") == "größe, 92.0 $\\pm$ 0.3"
    assert text.latex("中") == "{[}U+4E2D{]}"


def test_the_command_writes_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_lines(Path("r.jsonl"), [make_record("LeNet5"), make_record("VGG16")])
    assert main(["report", "r.jsonl", "--out", "r", "--tables"]) == 0
    assert "tables: table.tex, table.md, pivot.tex, pivot.md, pivot.csv" in capsys.readouterr().err
    assert "Not converged" in Path("r/table.tex").read_text()
    assert _rows(Path("r/table.md").read_text())[1][0] == "LeNet5"
    report = _rows(Path("r/report.md").read_text())
    assert _rows(Path("r/table.md").read_text()) == report


def test_records_without_accuracies_have_no_pivot(tmp_path: Path) -> None:
    record = make_record(confusion_matrix=None)
    for key in ("test_accuracy", "test_accuracy_low", "test_accuracy_high"):
        del record.measures[key]
    assert [path.name for path in write_tables(Report([record]), tmp_path)] == ["table.tex", "table.md"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_the_tables_compile(tmp_path: Path) -> None:
    records = [_record(name, label, 0, 900) for name in HOSTILE for label in ("MNIST", "CIFAR10")]
    for record, name in zip(records, HOSTILE, strict=False):
        record.data["label"] = name
    write_tables(Report(records), tmp_path)
    document = (
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{table}\\input{pivot}\\end{document}"
    )
    (tmp_path / "main.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
