"""The report: the figures of the records, and everything that a reader needs beside them."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from conftest import make_record
from PIL import Image
from rich.console import Console

from cnnbench.bench.figures import confusion_sentence, short
from cnnbench.bench.report import Report, print_table, to_csv, to_html, to_markdown, write_report

RECORDS = [
    make_record(),
    make_record(model="ResNet18", data="CIFAR10", training={**make_record().training, "converged": True}),
]


def _table(report: Report) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    print_table(report, console)
    return console.export_text()


def test_files_are_complete(tmp_path: Path) -> None:
    files = write_report(RECORDS, tmp_path)
    names = sorted(str(f.relative_to(tmp_path)) for f in files)
    assert names == [
        "figures/accuracy_latency.png",
        "figures/accuracy_macs.png",
        "figures/confusion_LeNet5-MNIST-seed0.png",
        "figures/confusion_ResNet18-CIFAR10-seed0.png",
        "figures/learning_curves.png",
        "report.html",
        "report.md",
        "results.csv",
    ]
    for file in files:
        if file.suffix == ".png":
            assert min(Image.open(file).size) > 400
    markdown = (tmp_path / "report.md").read_text()
    for link in re.findall(r"\]\((.*?)\)", markdown):
        assert (tmp_path / link).is_file()


def test_page_needs_nothing_else() -> None:
    page = to_html(Report(RECORDS))
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert not re.search(r"@import|url\((?!data:)|<script", page)
    assert page.count("data:image/svg+xml;base64,") == 5


@pytest.mark.parametrize("make", [to_html, to_markdown, _table])
def test_every_format_has_the_figures_and_says_what_they_are(make) -> None:  # type: ignore[no-untyped-def]
    text = make(Report(RECORDS))
    for expected in ("LeNet5", "ResNet18", "CIFAR10", "61.7k", "417k", "833k", "0.25", "26,000", "90.0"):
        assert expected in text, expected
    assert "Not converged" in text
    assert "30 s of training" in text
    assert "SYNTHETIC" not in text


@pytest.mark.parametrize("make", [to_html, to_markdown])
def test_documents_explain_columns_and_machine(make) -> None:  # type: ignore[no-untyped-def]
    report = Report(RECORDS)
    text = make(report)
    for column in report.columns:
        assert column.title in text
    for expected in ("Test CPU", "torch 2.15.0", "32-true", "1 MAC = 2 FLOPs", "100 training", "not measured on cpu"):
        assert expected in text, expected


@pytest.mark.parametrize("make", [to_html, to_markdown, _table, to_csv])
def test_synthetic_data_is_said_everywhere(make) -> None:  # type: ignore[no-untyped-def]
    text = make(Report([make_record(synthetic=True)]))
    assert "Synthetic (stands in for MNIST)" in text
    assert make is to_csv or "SYNTHETIC" in text


def test_csv_has_full_precision_and_the_records_keys() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(Report(RECORDS)))))
    assert [r["model"] for r in rows] == ["LeNet5", "ResNet18"]
    assert rows[0]["params"] == "61706"
    assert rows[0]["test_accuracy"] == "0.9"
    assert rows[0]["synthetic"] == "False"
    assert rows[0]["train_converged"] == "False"


def test_stars_mark_short_trainings() -> None:
    shown = {r[0]: r[-2] for r in Report(RECORDS).rows()}
    assert shown == {"LeNet5": "90.0*", "ResNet18": "90.0"}


def test_failed_and_unmeasured_cells_are_shown_as_such() -> None:
    failed = make_record(
        model="VGG16", status="error", reason="RuntimeError: out of memory", measures={"params": 1000}, training={},
        confusion_matrix=None,
    )  # fmt: skip
    report = Report([*RECORDS, failed])
    assert report.rows()[1][-2:] == ["failed", "–"]  # noqa: RUF001
    for make in (to_html, to_markdown, _table):
        assert "VGG16 on MNIST failed: RuntimeError: out of memory" in " ".join(make(report).split())


def test_records_of_two_machines_are_not_compared_silently() -> None:
    other = make_record(model="VGG16", environment={**make_record().environment, "device": "Other CPU"})
    assert any("more than one device" in line for line in Report([*RECORDS, other]).warnings)


def test_records_of_two_budgets_say_so_row_by_row() -> None:
    longer = make_record(model="VGG16", config={**make_record().config, "budget_s": 60.0})
    report = Report([*RECORDS, longer])
    assert any("differ in budget_s (30.0, 60.0)" in line for line in report.warnings)
    assert [row[-4] for row in report.rows()[:2]] == ["30 s of training", "60 s of training"]
    assert "Budget" not in [c.title for c in Report(RECORDS).columns]


def test_text_of_records_cannot_break_the_page() -> None:
    page = to_html(Report([make_record(model="<script>alert(1)</script>")]))
    assert "<script>" not in page


def test_the_same_cell_of_two_runs_has_two_pictures(tmp_path: Path) -> None:
    write_report([make_record(), make_record()], tmp_path)
    names = {p.name for p in (tmp_path / "figures").glob("confusion_*")}
    assert names == {"confusion_LeNet5-MNIST-seed0.png", "confusion_LeNet5-MNIST-seed0-2.png"}


def test_a_narrow_terminal_has_the_main_columns_unfolded() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    print_table(Report([make_record()]), console)
    text = console.export_text()
    assert "wider terminal" in text
    for word in ("LeNet5", "MNIST", "61.7k", "417k", "90.0*"):
        assert word in text


def test_numbers_are_short_and_right() -> None:
    assert [short(v) for v in (999, 999_999, 61_706, 14_728_266, 555_422_720, 15_470_264_320)] == [
        "999", "1.00M", "61.7k", "14.7M", "555M", "15.5G",
    ]  # fmt: skip


def test_sentence_names_the_worst_confusions() -> None:
    assert confusion_sentence(make_record()) == "most often mistaken: one → zero (1)"
