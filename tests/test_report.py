"""The report: the figures of the records, and everything that a reader needs beside them."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import FULL_TRAINING, make_record
from page_reader import check_scripts
from PIL import Image
from rich.console import Console

from cnnbench.files import LONGEST_NAME
from cnnbench.record import Record
from cnnbench.report.charts import confusion_sentence
from cnnbench.report.columns import COLUMNS
from cnnbench.report.outputs import Report, print_table, to_csv, to_html, to_markdown, write_report
from cnnbench.report.pictures import draw_pictures, matrix_names
from cnnbench.units import short

RECORDS = [
    make_record(),
    make_record(model="ResNet18", data="CIFAR10", training={**make_record().training, "converged": True}),
]
MEASURES = make_record().measures


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the report of `RECORDS`, which takes seconds to draw. Tests only read it."""
    folder = tmp_path_factory.mktemp("complete")
    write_report(RECORDS, folder)
    return folder


def _matrix_only(**changes: Any) -> Record:
    """Return a record whose only picture is its confusion matrix; comparisons take longer to draw."""
    accuracies = {key: value for key, value in MEASURES.items() if key.startswith("test_accuracy")}
    return make_record(**{"measures": accuracies, "training": {}, **changes})


def _written(records: Sequence[Record]) -> tuple[str, str]:
    """The page and the Markdown of a report, with its pictures."""
    write_report(records, Path("report"))
    return Path("report/report.html").read_text(), Path("report/report.md").read_text()


def _table(report: Report) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    print_table(report, console)
    return console.export_text()


def test_files_are_complete(complete: Path) -> None:
    files = [path for path in complete.rglob("*") if path.is_file()]
    names = sorted(str(f.relative_to(complete)) for f in files)
    assert names == [
        "classes.csv",
        "figures/accuracy_latency.png",
        "figures/accuracy_macs.png",
        "figures/confusion_LeNet5-MNIST-seed0.png",
        "figures/confusion_ResNet18-CIFAR10-seed0.png",
        "figures/learning_curves.png",
        "figures/macs_latency.png",
        "report.html",
        "report.md",
        "results.csv",
    ]
    for file in files:
        if file.suffix == ".png":
            assert min(Image.open(file).size) > 400
    markdown = (complete / "report.md").read_text()
    for link in re.findall(r"\]\((.*?)\)", markdown):
        assert (complete / link).is_file()


def test_page_needs_nothing_else(complete: Path) -> None:
    check_scripts((complete / "report.html").read_text())


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
    assert (rows[0]["suspect"], rows[0]["batch_size"], rows[0]["threads"]) == ("", "32", "2")
    doubted = make_record()
    doubted.measures["suspect"] = ["other processes kept 1.0 processors busy", "latency drifted over the rounds"]
    (row,) = csv.DictReader(io.StringIO(to_csv(Report([doubted]))))
    assert row["suspect"] == "other processes kept 1.0 processors busy; latency drifted over the rounds"


def test_a_question_mark_is_at_the_times_that_are_doubted() -> None:
    record = make_record()
    record.measures.update({"latency_ms_median": 1.0, "images_per_s": 10.0, "train_images_per_s": 5.0})
    keys = ("latency_ms_median", "images_per_s", "train_images_per_s")
    for reason, expected in (
        ("inference alternated between two times", [False, True, False]),
        ("latency and training drifted over the rounds", [True, False, True]),
        ("other processes kept 1.0 processors busy", [True, True, True]),
    ):
        record.measures["suspect"] = [reason]
        shown = {column.key: column.show(record) for column in COLUMNS}
        assert [shown[key].endswith("?") for key in keys] == expected
        assert not shown["params"].endswith("?")


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


def test_records_without_any_measure_make_a_report(tmp_path: Path) -> None:
    bare = {"measures": {}, "training": {}, "confusion_matrix": None}
    failed = [make_record(model=f"VGG{i}", status="error", reason="RuntimeError", **bare) for i in range(9)]
    untimed = make_record(measures={"params": 5, "macs": 0, "test_accuracy": 0.5}, training={}, confusion_matrix=None)
    assert [f.name for f in write_report(failed, tmp_path)] == ["report.html", "report.md", "results.csv"]
    assert [f.name for f in write_report([*failed, untimed], tmp_path)] == ["report.html", "report.md", "results.csv"]


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
    check_scripts(to_html(Report([make_record(model="</script><script>alert(1)</script>")])))


def test_the_same_cell_of_two_runs_has_two_pictures(tmp_path: Path) -> None:
    write_report([_matrix_only(), _matrix_only()], tmp_path)
    names = {p.name for p in (tmp_path / "figures").glob("confusion_*")}
    assert names == {"confusion_LeNet5-MNIST-seed0.png", "confusion_LeNet5-MNIST-seed0-2.png"}


def test_a_narrow_terminal_has_the_main_columns_unfolded() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    print_table(Report([make_record()]), console)
    text = console.export_text()
    assert "wider terminal" in text
    for word in ("LeNet5", "MNIST", "61.7k", "417k", "90.0*"):
        assert word in text


def _zoo(count: int, **changes: object) -> list[Record]:
    """Networks of which every next one costs twice as much and takes longer."""
    return [
        make_record(
            model=f"Net{i}", **{"measures": {**MEASURES, "macs": 1000 * 2**i, "latency_ms_median": 1.0 + i}, **changes}
        )
        for i in range(count)
    ]


def test_matrices_of_many_cells_are_folded_away() -> None:
    for count, folded in ((12, False), (13, True)):
        page, markdown = _written([_matrix_only(model=f"Net{i}") for i in range(count)])
        assert f"<details{'' if folded else ' open'}><summary>{count} confusion matrices</summary>" in page
        assert ("<details><summary>13 confusion matrices</summary>\n\n![" in markdown) == folded
        assert page.count("<details") == page.count("</details>") == 1
        assert markdown.count("</details>") == folded
        assert page.count('<table class="matrix">') == count


def test_page_says_how_many_networks_where_it_cannot_name_them() -> None:
    assert "Net0, Net1, Net2 on MNIST" in to_html(Report(_zoo(3, confusion_matrix=None)))
    assert "9 networks on MNIST" in to_html(Report(_zoo(9, confusion_matrix=None)))


def test_documents_say_what_the_pictures_show(complete: Path) -> None:
    for text in _written(_zoo(4, confusion_matrix=None, training=FULL_TRAINING)):
        assert "Front of accuracy against MACs on MNIST: Net0." in text
        assert "Front of accuracy against latency on MNIST: Net0." in text
        assert "Rank correlation (Spearman) of MACs and latency, batch 1, over 4 networks on MNIST: 1.00" in text
    for name in ("report.html", "report.md"):
        assert "Front" not in (complete / name).read_text()


def test_training_accuracy_is_shown_where_it_was_measured() -> None:
    fitted = make_record(
        model="VGG16",
        measures={**MEASURES, "train_accuracy": 0.98765, "train_accuracy_low": 0.985, "train_accuracy_high": 0.99},
    )
    report = Report([*RECORDS, fitted])
    titles = [c.title for c in report.columns]
    assert titles.index("Train accuracy %") == titles.index("Accuracy %") - 1
    assert {r[0]: r[-3] for r in report.rows()} == {"LeNet5": "–", "ResNet18": "–", "VGG16": "98.77"}  # noqa: RUF001
    assert "Train accuracy %" not in [c.title for c in Report(RECORDS).columns]
    for make in (to_html, to_markdown):
        assert "in evaluation mode and without augmentation" in make(report)


@pytest.mark.parametrize("make", [to_html, to_markdown, _table])
def test_several_seeds_have_a_table_of_their_own(make) -> None:  # type: ignore[no-untyped-def]
    accuracies = (0.5, 0.6, 0.7)
    seeds = [make_record(seed=s, measures={**MEASURES, "test_accuracy": a}) for s, a in enumerate(accuracies)]
    text = make(Report(seeds))
    for expected in ("Over seeds", "60.00", "10.00", "50.00–70.00"):  # noqa: RUF001
        assert expected in text
    assert "Over seeds" not in make(Report(RECORDS))


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_long_terminal_table_has_a_line_per_network(width: int) -> None:
    names = [f"ResNet{i}" for i in range(44)] + ["MobileNetV1(width_multiplier=0.25)"]
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(Report([make_record(model=name) for name in names]), console)
    lines = console.export_text().splitlines()
    for name in names:
        assert sum(f" {name} " in line and "90.0*" in line for line in lines) == 1
    rows = [line for line in lines if line.startswith("│")]
    assert len(rows) == len(names) + 1 + (0 if any("│ MNIST │" in line for line in rows) else 1)
    assert sum("Accuracy %" in line for line in lines) == 2  # head and foot


def test_names_in_brackets_do_not_break_any_format(tmp_path: Path) -> None:
    names = ("VGG16(batch_norm=True)", "torchvision:googlenet(aux_logits=False)", "my.module:Net(a=[1, 2], b='|*[/]')")
    files = write_report([make_record(model=name) for name in names], tmp_path)
    assert all(file.is_file() for file in files)
    for link in re.findall(r"\]\((.*?)\)", (tmp_path / "report.md").read_text()):
        assert (tmp_path / link).is_file()
    assert names[2] in _table(Report([make_record(model=names[2])]))


HOSTILE = {
    "two dollars": "ID $x$ $5",
    "broken TeX": "$\\frac{$",
    "escaped dollar": "\\$",
    "unclosed brace": "${",
    "long": "n" * 10_000,
    "long CJK": "\u5377" * 5_000,
    "line breaks": "a\nb\r\nc\u2028d",
    "control": "\x1b]0;title\x07\x1b[2J\x00",
    "direction": "a\u202ebc\u2066",
    "emoji": "\U0001f600 \u200d",
    "surrogate": "a\ud800b",
    "script": "<script>alert(1)</script><img src=x onerror=y>",
    "quotes": "\"' onload='x",
    "markdown": "[x](javascript:y) **b** `c` # d | e <b>",
    "template": "{{ 7 * 7 }}{% raw %}",
    "markup of rich": "[red]x[/] [/nothing] :smile:",
    "formula": "=cmd|' /C calc'!A0",
    "empty": " ",
}
"""Texts that a record may hold, by what they try."""


def _hostile(text: str) -> list[Record]:
    """Records with the text in every place that takes one, and a failed one."""
    base = make_record()
    data = {**base.data, "label": text, "class_names": [text, f"{text}1", text[::-1]], "augmentation": text}
    environment = {**base.environment, "device": text, "os": text, "python": text, "packages": {text: text}}
    environment |= {"accelerator": {text: text}, "commit": text}
    config = {**base.config, "precision": text, "precision_reason": text, "memory_format": text, "mode": text}
    config |= {"macs_convention": text, "device": text}
    training = {**base.training, "recipe": text}
    changes: dict[str, Any] = {"data": data, "environment": environment, "config": config, "training": training}
    doubted = {**base.measures, "suspect": [text]}
    bad = {"status": "error", "reason": text, "measures": {}, "training": {}, "confusion_matrix": None}
    made = [Record(**{**base.__dict__, "model": f"{text}{i}", "measures": doubted, **changes}) for i in range(2)]
    made.append(Record(**{**base.__dict__, **changes, "model": text, "skipped": {text: text}, **bad}))
    return made


OUR_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "dl", "dt", "dd", "details", "summary"),
    *("table", "thead", "tbody", "tr", "th", "td", "wbr", "figure", "img", "figcaption", "caption", "h3", "h4"),
    *("header", "nav", "ul", "li", "a", "main", "section", "span", "b", "i", "svg", "polyline", "line", "script"),
}
OUR_ATTRIBUTES = {
    *("lang", "charset", "name", "content", "class", "scope", "title", "colspan", "style", "src", "alt", "http-equiv"),
    *("href", "id", "hidden", "role", "tabindex", "aria-label", "aria-labelledby", "aria-hidden", "aria-sort", "open"),
    *("viewbox", "preserveaspectratio", "points", "x1", "x2", "y1", "y2", "type", "stroke-dasharray"),
    *(
        "data-key",
        "data-better",
        "data-folded",
        "data-net",
        "data-conditions",
        "data-settled",
        "data-value",
        "data-words",
        "data-row",
        "data-kind",
    ),
}


UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_text_of_a_record_breaks_a_picture_or_a_document(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    records = _hostile(HOSTILE[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page, markdown = _written(records)
    written = sorted(path.name for path in Path("report/figures").iterdir())
    assert len(written) == 4 + 2
    assert all(len(name.encode()) < LONGEST_NAME + 30 for name in written)
    assert capsys.readouterr().err == ""
    print_table(Report(records), Console(width=160, file=(shown := io.StringIO())))
    table = Path("report/results.csv").read_text()
    for document in (page, markdown, table, shown.getvalue()):
        assert not UNSAFE.search(document)
    reader = check_scripts(page)
    assert reader.tags <= OUR_TAGS
    assert reader.attributes <= OUR_ATTRIBUTES
    assert not re.search(r"(?<!\\)\[[^\]]*\]\(javascript", markdown)
    assert not re.search(r"(?<!\\)<(?!/?details|/?summary)", markdown)
    for row in csv.reader(io.StringIO(table)):
        assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in row)


def test_a_table_row_in_markdown_is_one_line_with_all_its_cells() -> None:
    lines = to_markdown(Report(_hostile("a\nb|c\r\n| d |\u2028e"))).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert len(rows) == 2 + 3
    assert len(cells) == 1


KINDS = (
    "accuracy_against", "latency_against_macs", "learning_curves", "draw_confusion", "matrix_note",
    "front_sentences", "speed_sentences", "savefig",
)  # fmt: skip
"""What is called for a picture, from the first number to the last byte."""


# One data set: a picture with two panels takes twice as long to draw.
TWO = [make_record(), make_record(model="ResNet18")]
"""Records whose report has every kind of picture in `KINDS`."""


@pytest.fixture(scope="module")
def names_of_two(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Return the names of all files of the report of `TWO`."""
    return frozenset(path.name for path in write_report(TWO, tmp_path_factory.mktemp("two")))


@pytest.mark.parametrize(
    ("what", "error"),
    [
        *((what, ValueError("no\nluck")) for what in KINDS),
        *(("draw_confusion", error) for error in (MemoryError(), RecursionError("deep"), KeyError("macs"))),
    ],
)
def test_a_picture_that_fails_costs_only_itself(
    what: str,
    error: Exception,
    names_of_two: frozenset[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    for place in ("charts", "confusion_pictures", "pictures"):
        monkeypatch.setattr(f"cnnbench.report.{place}.{what}", fail, raising=False)
    if what == "savefig":
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    files = {path.name for path in write_report(TWO, Path("report"))}
    assert {"report.html", "report.md", "results.csv"} <= files < names_of_two
    lost = {name.removesuffix(".png") for name in names_of_two - files}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(lost)
    page, markdown = Path("report/report.html").read_text(), Path("report/report.md").read_text().replace("\\", "")
    for name in lost:
        (line,) = [line for line in said if f"The picture {name} could not be drawn ({type(error).__name__}: " in line]
        assert name in page
        assert line in markdown
        assert f"{name}.png" not in markdown
    assert Path("report/results.csv").read_text() == to_csv(Report(TWO))


def test_the_records_are_written_before_any_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: object) -> None:
        assert Path("report/results.csv").read_text() == to_csv(Report(RECORDS))
        raise KeyboardInterrupt

    monkeypatch.setattr("cnnbench.report.charts.accuracy_against", kill)
    with pytest.raises(KeyboardInterrupt):
        write_report(RECORDS, Path("report"))
    assert {path.name for path in Path("report").iterdir()} == {"results.csv", "classes.csv"}


@pytest.mark.parametrize("name", ["results.csv", "report.md", "report.html", "figures/learning_curves.png"])
def test_a_folder_in_the_way_is_the_callers_to_say(name: str) -> None:
    (Path("report") / name).mkdir(parents=True)
    # The learning curves are the only picture.
    records = [_matrix_only(confusion_matrix=None, training=FULL_TRAINING)]
    with pytest.raises(OSError, match=re.escape(Path(name).name)):
        write_report(records, Path("report"))
    assert not list(Path("report").rglob("*.part"))


@pytest.mark.parametrize("name", ["report", "report/figures"])
def test_a_file_in_place_of_a_folder_is_the_callers_to_say(name: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("mine")
    with pytest.raises(OSError, match="report"):
        write_report(RECORDS, Path("report"))
    assert Path(name).read_text() == "mine"


def _without(place: str, key: str) -> Record:
    whole = make_record()
    part = {k: v for k, v in getattr(whole, place).items() if k != key}
    return Record(**{**whole.__dict__, place: part})


OPTIONAL = {
    "config": ("memory_format", "mode", "precision_reason", "eval_batch_size", "epochs", "macs_convention", "device"),
    "environment": ("dirty", "commit", "memory_gib", "threads", "os", "python", "cpu_cores", "packages", "accelerator"),
    "training": ("recipe", "peak_lr", "curve", "steps", "images", "converged", "epochs"),
    "data": ("augment", "augmentation", "val_images", "full_epochs", "image_size", "split_seed"),
}


@pytest.mark.parametrize(("place", "key"), [(place, key) for place, keys in OPTIONAL.items() for key in keys])
def test_a_record_without_an_optional_fact_is_reported(place: str, key: str) -> None:
    record = _without(place, key)
    both = Report([record, make_record(model="VGG16", confusion_matrix=None)])
    drawn = draw_pictures(both.records, Path("figures")) if place == "training" else None
    page, markdown = to_html(both, drawn), to_markdown(both, drawn)
    assert to_csv(both).count("\n") == 3
    assert _table(Report([record]))
    for text in (page, markdown):
        assert "could not be drawn" not in text
        assert "None" not in re.sub(r"differ in [^.]*", "", text).replace("NoneType", "")
    if key in ("memory_format", "threads", "memory_gib", "python", "recipe", "full_epochs"):
        assert "not said" in markdown


def test_a_network_of_no_cost_is_named_where_it_is_left_out(complete: Path) -> None:
    bare = {"confusion_matrix": None, "training": {**FULL_TRAINING, "curve": []}}  # has no pictures but comparisons
    free = make_record(model="Free", measures={**MEASURES, "macs": 0, "flops": 0}, **bare)
    page, markdown = _written([make_record(**bare), make_record(model="ResNet18", **bare), free])
    sentence = "Not drawn, since an axis of ratios has no place for 0 MACs: Free on MNIST."
    assert page.count(sentence) == markdown.count(sentence) == 2  # accuracy and latency against MACs
    page, markdown = _written([free])
    assert page.count(sentence) == markdown.count(sentence) == 2
    assert "accuracy_macs.png" not in markdown
    assert "Not drawn" not in (complete / "report.html").read_text()


def test_class_lists_that_differ_have_their_own_frame() -> None:
    two = {**make_record().data, "class_names": ["left", "right"], "num_classes": 2}
    other = _matrix_only(model="VGG16", confusion_matrix=[[5, 0], [5, 0]])
    records = [_matrix_only(), Record(**{**other.__dict__, "data": two}), _matrix_only(model="ResNet18")]
    _written(records)
    first, second, third = (Image.open(f"report/figures/{name}.png") for name in matrix_names(records))
    assert first.size == second.size == third.size
    assert first.tobytes() != second.tobytes()


def test_a_true_class_without_images_is_drawn() -> None:
    _written([_matrix_only(confusion_matrix=[[0, 0, 0], [4, 3, 0], [0, 0, 3]])])
    assert Path("report/figures/confusion_LeNet5-MNIST-seed0.png").is_file()


def test_numbers_are_short_and_right() -> None:
    assert [short(v) for v in (999, 999_999, 61_706, 14_728_266, 555_422_720, 15_470_264_320)] == [
        "999", "1.00M", "61.7k", "14.7M", "555M", "15.5G",
    ]  # fmt: skip


def test_sentence_names_the_worst_confusions() -> None:
    assert confusion_sentence(make_record()) == "most often mistaken: one → zero (1)"
