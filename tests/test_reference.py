"""Reference accuracies: networks are not ranked by trainings that were too short to say which is better."""

from __future__ import annotations

import csv
import io
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_record

from cnnbench import catalog, catalog_update
from cnnbench import references as reference
from cnnbench.checkpoints import read_checkpoint
from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.explain.options import TOOLS
from cnnbench.record import Record, load_records, write_lines
from cnnbench.report import charts
from cnnbench.report.columns import DASH, columns_of
from cnnbench.report.contenders import contenders
from cnnbench.report.findings import front, front_sentences, reference_origin, reference_sentences
from cnnbench.report.outputs import Report, to_csv, to_html, to_markdown
from cnnbench.report.pictures import comparisons

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
    assert found.words.startswith("85.0 % (30 epochs, 2 seeds, ")
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
        "Front of reference accuracy (after 30 epochs) against MACs on MNIST: LeNet5, ResNet18. Left out, since there "
        "is no reference of them: VGG16."
    )


def test_many_networks_without_a_reference_are_counted(known: Path) -> None:
    others = [_trained(f"VGG{n}", 4, 1000 + n, 0.1) for n in range(6)]
    (sentence,) = front_sentences([*_benchmark()[:2], *others], "macs")
    assert sentence.endswith("LeNet5, ResNet18. 6 networks are left out, since there is no reference of them.")


def test_without_references_short_trainings_have_no_front() -> None:
    reference.references.cache_clear()
    assert front(contenders(_benchmark()), "macs") == []
    (sentence,) = front_sentences(_benchmark(), "macs")
    assert sentence.startswith("No front of accuracy against MACs is drawn on MNIST: these trainings are too short")
    figure = charts.accuracy_against(_benchmark(), "macs")
    assert figure is not None
    assert "grey line" not in figure.get_supxlabel()


def test_full_trainings_have_a_front_of_their_own(known: Path) -> None:
    records = [_trained("LeNet5", 9, 416520, 10.0, converged=True), _trained("ResNet18", 7, 5, 10.0, converged=True)]
    assert [e.name for e in front(contenders(records), "macs")] == ["ResNet18", "LeNet5"]
    assert reference_sentences(records) == []
    assert "Reference %" not in [c.title for c in columns_of(records)]


def test_as_many_epochs_as_the_reference_do_not_make_a_bad_training_its_equal(known: Path) -> None:
    """The reference of ResNet18 is 80 and 90 % after 30 epochs, and another recipe reaches less in the same time."""
    bad = _trained("ResNet18", 4, 555_000_000, 31.0)
    assert reference.reference_of(bad) is not None
    assert contenders([bad])[0].settled == pytest.approx(0.85)
    good = _trained("ResNet18", 9, 555_000_000, 31.0)
    assert reference.reference_of(good) is None
    assert contenders([good])[0].settled == 0.9
    diverged = _trained("ResNet18", 9, 555_000_000, 31.0)
    diverged.training["diverged"] = True
    assert contenders([diverged])[0].settled == pytest.approx(0.85)


def test_short_trainings_have_their_reference_in_the_csv_file_and_below_their_matrix(known: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(Report(_benchmark())))))
    known_ones = [float(row["reference_accuracy"]) for row in rows[:2]]
    assert known_ones == pytest.approx([0.6, 0.85])
    assert rows[2]["reference_accuracy"] == ""
    assert charts.matrix_note(_benchmark()[1]).startswith("short training, not converged; 85.0 % after the reference")
    assert charts.matrix_note(_benchmark()[2]).startswith("short training, not converged\n")


def test_a_report_says_first_what_a_copy_of_a_data_set_is() -> None:
    record = make_record("LeNet5")
    record.data["label"] = "CIFAR-10 (JPEG copy)"
    assert any(warning.startswith("JPEG copy: class folders") for warning in Report([record]).warnings)
    assert not any("JPEG" in warning for warning in Report([make_record("LeNet5")]).warnings)


def test_the_report_has_the_reference_beside_a_short_training(known: Path) -> None:
    report = Report(_benchmark())
    titles = [c.title for c in report.columns]
    shown = [dict(zip(titles, row, strict=True)) for row in report.rows()]
    assert [row["Reference %"] for row in shown] == ["60.0", "85.0", DASH]
    assert [row["Accuracy %"] for row in shown] == ["50.0*", "30.0*", "40.0*"]
    (lenet, resnet) = report.references
    assert lenet.startswith("LeNet5 on MNIST: within this run's budget 50.0 %; after its reference training 60.0 % (30")
    assert lenet.endswith("published 99.05 % (the paper, 0.95 % error without distortions).")
    assert "85.0 %" in resnet
    for page in (to_html(report), to_markdown(report)):
        assert "within this run" in page
        assert "85.0 %" in page


def test_the_picture_has_both_accuracies(known: Path) -> None:
    figure = charts.accuracy_against(_benchmark(), "macs")
    assert figure is not None
    note = figure.get_supxlabel()
    assert "filled marker: after the reference training" in note
    assert "open marker: after this run's short training" in note
    (axes,) = figure.axes
    heights = {round(float(y), 3) for line in axes.lines for y in line.get_ydata()}
    assert {0.6, 0.85, 0.5, 0.3, 0.4} <= heights


def test_what_is_said_below_two_panels_fits(known: Path) -> None:
    other = [replace(record, data=record.data | {"label": "CIFAR-10"}) for record in _benchmark()]
    figure = charts.accuracy_against([*_benchmark(), *other], "macs")
    assert figure is not None
    figure.draw_without_rendering()
    box = figure._supxlabel.get_window_extent()  # type: ignore[attr-defined]
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_references_that_the_picture_has_no_room_for_are_said(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbench.report.charts.MOST_PANELS", 0)
    monkeypatch.setattr("cnnbench.report.pictures.MOST_PANELS", 0)
    records = _benchmark()
    for record in records:
        record.measures["latency_ms_median"] = record.measures["macs"] / 1e6
    (picture,) = [p for p in comparisons(records) if p.name == "reference_latency"]
    assert picture.caption()[1:] == ["The picture has the first 0 of 1 data sets; the table has all."]


def test_a_picture_of_its_own_has_the_reference_accuracies_alone(known: Path) -> None:
    figure = charts.reference_against(_benchmark(), "macs")
    assert figure is not None
    (axes,) = figure.axes
    heights = {round(float(y), 3) for line in axes.lines if line.get_marker() != "None" for y in line.get_ydata()}
    assert heights == {0.6, 0.85}
    assert "short training" not in figure.get_supxlabel()
    assert charts.reference_against(_benchmark()[:1], "macs") is None  # a network alone is not compared
    full = [_trained("LeNet5", 9, 416520, 40.0, converged=True), _trained("ResNet18", 7, 5, 40.0, converged=True)]
    assert charts.reference_against(full, "macs") is None  # the other picture has the same


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


# Weights


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a network that was trained for a moment, as `make catalog` would take them over; and its run."""
    folder = tmp_path / "references"
    for module in (reference, catalog, catalog_update):
        monkeypatch.setattr(module, "FOLDER", folder, raising=False)
    monkeypatch.setattr(reference, "FILE", folder / "records.jsonl")
    for module in (catalog, catalog_update):
        monkeypatch.setattr(module, "RECORDS", folder / "records.jsonl")
    reference.references.cache_clear()
    options = ["--models=LeNet5", "--data=MNIST", "--measures=quality", "--epochs=1", "--batch_size=20", "--device=cpu"]
    _write_mnist(tmp_path / "data")
    assert main(["bench", *options, "--precision=32-true", "--data_dir=data", "--keep_weights", "--out=run"]) == 0
    catalog_update._take_over([Path("run")], ["LeNet5"])
    return folder


def _write_mnist(folder: Path) -> None:
    """MNIST's four files with 200 training and 40 test images, of random pixels."""
    generator = np.random.default_rng(0)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 200), ("t10k", 40)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        header = [struct.pack(">4i", 2051, count, 28, 28), struct.pack(">2i", 2049, count)]
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header[0] + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header[1] + labels.tobytes())


def test_shipped_weights_are_those_of_the_run_in_half_precision(shipped: Path) -> None:
    path = reference.weights_file("LeNet5", "MNIST")
    assert path == shipped / "LeNet5-MNIST.ckpt"
    assert path.stat().st_size < 2.2 * 62_000 + 20_000
    kept, run = (read_checkpoint(p) for p in (path, Path("run/weights/LeNet5-MNIST-seed0.ckpt")))
    assert kept.data == run.data == "MNIST"
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(kept.model.state_dict()[name], value, rtol=1e-3, atol=1e-6)


def test_commands_take_shipped_weights(shipped: Path, capsys: pytest.CaptureFixture) -> None:
    (record,) = load_records([shipped / "records.jsonl"])
    test = ["test", "--weights", "reference", "--model", "LeNet5", "--data.data_dir", "data"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    assert main([*test, *quiet]) == 0
    shown = re.search(r"accuracy\D+([\d.]+)%", capsys.readouterr().out)
    assert shown is not None
    assert float(shown[1]) / 100 == pytest.approx(record.measures["test_accuracy"], abs=0.051)
    assert main([*test, *quiet, "--json"]) == 0
    tested = json.loads(capsys.readouterr().out)
    assert (tested["model"], tested["seed"], tested["config"]["command"]) == ("LeNet5", 0, "test")
    assert main(["explain", "filters", "LeNet5", "--weights", "reference", "--json", "--out", "pictures"]) == 0
    assert "random" not in capsys.readouterr().out


def test_shipped_weights_of_two_data_sets_are_told_apart_by_every_tool(capsys: pytest.CaptureFixture) -> None:
    """The package's own: LeNet5 has weights for both data sets, so that a tool with --weights needs --data too."""
    asked = 0
    for name in TOOLS:
        options = TOOLS[name].options.__dataclass_fields__.keys()
        if "weights" in options:
            asked += 1
            assert {"data", "data_dir"} <= options, name
    assert asked >= 4
    assert main(["explain", "filters", "LeNet5", "--weights", "reference", "--json"]) == 2
    assert "LeNet5 was trained on CIFAR10 or MNIST; add --data NAME" in capsys.readouterr().err
    more = ["--weights", "reference", "--data", "MNIST", "--json", "--out", "pictures"]
    assert main(["explain", "filters", "LeNet5", *more]) == 0
    assert json.loads(capsys.readouterr().out)["trained"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test", "--weights", "mine", "--model", "LeNet5"], "--weights mine is not known"),
        (["test", "--weights", "reference"], "--weights reference needs --model NAME"),
        (["test", "--weights", "reference", "--model", "VGG16"], "there are no weights of VGG16; there are"),
        (["fit", "--weights", "reference", "--model", "LeNet5"], "for test, validate and predict"),
        (["explain", "filters", "--weights", "reference"], "give either a MODEL"),
        (["explain", "gallery", "--weights", "reference", "--epochs", "2"], "--epochs is about a training"),
        (
            ["explain", "gallery", "--weights", "reference", "--data", "Synthetic"],
            "there are no weights of SimpleCNN on Synthetic",
        ),
        (["explain", "filters", "VGG16", "--weights", "reference"], "there are no weights of VGG16; there are"),
    ],
)
def test_weights_that_are_not_there_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("cnnbench: ")


def test_the_report_says_where_reference_trainings_come_from_and_why_some_are_short(known: Path) -> None:
    records = _benchmark()
    assert reference_origin(records).startswith("Reference trainings were run by the authors of the package, on Test")
    assert ": they had 30 epochs." in reference_origin(records)
    assert reference_origin(records) in to_markdown(Report(records))
    full = [_trained("LeNet5", 9, 416520, 10.0, converged=True)]
    assert reference_origin(full) == ""
