"""Reference accuracies: networks are not ranked by trainings that were too short to say which is better."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_record

from cnnbench import reference
from cnnbench.bench import figures
from cnnbench.bench.columns import DASH, columns_of
from cnnbench.bench.findings import contenders, front, front_sentences, reference_sentences
from cnnbench.bench.report import Report, to_html, to_markdown
from cnnbench.errors import UserError
from cnnbench.record import Record, load_records, write_lines

SHORT = {"seconds": 30.0, "full_epochs": 10, "converged": False, "diverged": False, "recipe": "AdamW", "peak_lr": 0.001,
         "curve": []}  # fmt: skip


def _training(epochs: float) -> dict[str, object]:
    """A training of so many epochs of 100 images, about, in batches of 32."""
    steps = max(1, round(epochs * 100 / 32))
    return SHORT | {"steps": steps, "images": 32 * steps, "epochs": 32 * steps / 100}


def _trained(model: str, right: int, macs: int, epochs: float, converged: bool = False, seed: int = 0) -> Record:
    """A record of ten test images, so many of them right."""
    matrix = [[right, 10 - right, 0], [0, 0, 0], [0, 0, 0]]
    record = make_record(model, confusion_matrix=matrix, training=_training(epochs) | {"converged": converged})
    record.measures.update({"macs": macs, "flops": 2 * macs})
    return replace(record, seed=seed)


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two networks with reference accuracies, the larger one with two seeds: 60 % and, on average, 85 %."""
    path = tmp_path / "references" / "records.jsonl"
    monkeypatch.setattr(reference, "FOLDER", path.parent)
    monkeypatch.setattr(reference, "FILE", path)
    reference.references.cache_clear()
    records = [
        _trained("LeNet5", 6, 416520, 30.0),
        _trained("ResNet18", 8, 555_000_000, 30.0),
        _trained("ResNet18", 9, 555_000_000, 30.0, seed=1),
    ]
    write_lines(tmp_path / "new.jsonl", records)
    reference.take_over([tmp_path / "new.jsonl"])
    yield path
    reference.references.cache_clear()


def _benchmark() -> list[Record]:
    """Half a minute each: the small network is ahead, and of a third no full training is known."""
    return [
        _trained("LeNet5", 5, 416520, 3.7),
        _trained("ResNet18", 3, 555_000_000, 0.06),
        _trained("VGG16", 4, 313_000_000, 0.09),
    ]


def test_a_reference_is_the_mean_over_its_seeds(known: Path) -> None:
    found = reference.reference_of(_trained("ResNet18", 3, 1, 0.1))
    assert found is not None
    assert (found.accuracy, found.low, found.high, found.seeds, round(found.epochs)) == (
        pytest.approx(0.85),
        0.8,
        0.9,
        2,
        30,
    )
    assert found.words.startswith("85.0 % after 30 epochs (2 seeds, ")
    alone = reference.reference_of(_trained("LeNet5", 3, 1, 0.1))
    assert alone is not None
    assert alone.low < 0.6 < alone.high  # the interval of ten images
    assert reference.reference_of(_trained("VGG16", 3, 1, 0.1)) is None
    other = _trained("LeNet5", 3, 1, 0.1)
    other.data["image_size"] = 28
    assert reference.reference_of(other) is None


def test_the_front_is_that_of_full_trainings(known: Path) -> None:
    entries = contenders(_benchmark())
    assert [e.name for e in front(entries, "macs")] == ["LeNet5", "ResNet18"]
    (sentence,) = front_sentences(_benchmark(), "macs")
    assert sentence == (
        "Front of accuracy after a full training (reference accuracies) against MACs on MNIST: LeNet5, ResNet18. Left "
        "out, since no full training is known: VGG16."
    )


def test_without_references_short_trainings_have_no_front() -> None:
    reference.references.cache_clear()
    assert front(contenders(_benchmark()), "macs") == []
    (sentence,) = front_sentences(_benchmark(), "macs")
    assert sentence.startswith("No front of accuracy against MACs is drawn on MNIST: these trainings are too short")
    figure = figures.accuracy_against(_benchmark(), "macs")
    assert figure is not None
    assert "grey line" not in figure.get_supxlabel()


def test_full_trainings_have_a_front_of_their_own(known: Path) -> None:
    records = [_trained("LeNet5", 9, 416520, 10.0, converged=True), _trained("ResNet18", 7, 5, 10.0, converged=True)]
    assert [e.name for e in front(contenders(records), "macs")] == ["ResNet18", "LeNet5"]
    assert reference_sentences(records) == []
    assert "Reference %" not in [c.title for c in columns_of(records)]


def test_the_report_has_the_reference_beside_a_short_training(known: Path) -> None:
    report = Report(_benchmark())
    titles = [c.title for c in report.columns]
    shown = [dict(zip(titles, row, strict=True)) for row in report.rows()]
    assert [row["Reference %"] for row in shown] == ["60.0", "85.0", DASH]
    assert [row["Accuracy %"] for row in shown] == ["50.0*", "30.0*", "40.0*"]
    (lenet, resnet) = report.references
    assert lenet.startswith("LeNet5 on MNIST: within this run's budget 50.0 %; after a full training 60.0 % after 30")
    assert lenet.endswith("published 99.05 % (the paper, 0.95 % error without distortions).")
    assert "85.0 %" in resnet
    for page in (to_html(report), to_markdown(report)):
        assert "within this run" in page
        assert "85.0 %" in page


def test_the_picture_has_both_accuracies(known: Path) -> None:
    figure = figures.accuracy_against(_benchmark(), "macs")
    assert figure is not None
    note = figure.get_supxlabel()
    assert "filled marker: after a full training (reference)" in note
    assert "open marker: after this run's short training" in note
    (axes,) = figure.axes
    heights = {round(float(y), 3) for line in axes.lines for y in line.get_ydata()}
    assert {0.6, 0.85, 0.5, 0.3, 0.4} <= heights


def test_records_are_taken_over_only_from_real_trainings(known: Path, tmp_path: Path) -> None:
    before = load_records([known])
    bad = {
        "synthetic": make_record(synthetic=True),
        "no accuracy": make_record(confusion_matrix=None),
        "diverged": make_record(training=_training(3.0) | {"diverged": True}),
    }
    for name, record in bad.items():
        path = tmp_path / f"{name}.jsonl"
        write_lines(path, [record])
        with pytest.raises(UserError, match=r"leave it out"):
            reference.take_over([path])
    assert load_records([known]) == before
    write_lines(tmp_path / "again.jsonl", [_trained("LeNet5", 7, 416520, 50.0)])
    reference.take_over([tmp_path / "again.jsonl"])
    assert len(load_records([known])) == 3
    found = reference.reference_of(_trained("LeNet5", 3, 1, 0.1))
    assert found is not None
    assert found.accuracy == 0.7
