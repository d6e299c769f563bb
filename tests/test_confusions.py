"""Confusions: figures against torchmetrics, differences beyond chance, images behind the worst cells."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from conftest import make_record
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

from cnnbench.cli import main
from cnnbench.data.sets import Synthetic
from cnnbench.errors import UserError
from cnnbench.explain import run
from cnnbench.explain.confusions import class_figures, confused_pairs, differences
from cnnbench.record import write_lines


def _spread_out(counts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and labels that give these counts."""
    pairs = [(j, i) for i, row in enumerate(counts) for j, n in enumerate(row) for _ in range(n)]
    predicted, true = zip(*pairs, strict=True)
    return torch.tensor(predicted), torch.tensor(true)


def test_class_figures_are_those_of_torchmetrics() -> None:
    generator = random.Random(0)
    counts = [[generator.randrange(20) for _ in range(4)] for _ in range(4)]
    predicted, true = _spread_out(counts)
    found = class_figures(counts)
    for name, metric in (
        ("precision", multiclass_precision), ("recall", multiclass_recall), ("f1", multiclass_f1_score)
    ):  # fmt: skip
        expected = metric(predicted, true, num_classes=4, average="none").tolist()
        assert [getattr(f, name) for f in found] == pytest.approx(expected)
    assert all(f.low < f.recall < f.high for f in found)


def test_a_class_that_is_never_predicted_or_never_there() -> None:
    never, absent = class_figures([[0, 4], [0, 0]])
    assert (never.precision, never.recall, never.f1) == (None, 0, 0)
    assert (absent.images, absent.recall, absent.low, absent.high) == (0, 0, 0, 1)


def test_pairs_count_both_directions() -> None:
    counts = [[90, 7, 3], [2, 98, 0], [3, 0, 97]]
    first, second = confused_pairs(counts, 5)
    assert (first.first, first.second, first.images, first.share) == (0, 1, 9, 0.045)
    assert (second.first, second.second, second.images) == (0, 2, 6)
    # Wilson's interval of 9 in 200, from the formula with z = 1.96: Agresti and Coull 1998, equation 2
    assert (first.low, first.high) == pytest.approx((0.0238, 0.0833), abs=1e-3)


def test_networks_of_equal_quality_differ_by_chance_only() -> None:
    """Under no difference the procedure calls something real in at most 5 % of comparisons, up to chance."""
    generator = random.Random(1)

    def drawn() -> list[list[int]]:
        rows = [[generator.choices(range(4), [7, 1, 1, 1])[0] for _ in range(250)] for _ in range(4)]
        return [[row.count(j) for j in range(4)] for row in rows]

    wrong = sum(any(d.real for d in differences([drawn()], [drawn()])) for _ in range(100))
    assert wrong <= 14  # the diagonal and the rest of a row depend on each other; 5 expected


def test_more_runs_on_the_same_images_make_nothing_surer() -> None:
    """Five runs that agree say of other images what one says: same shares, intervals and p-values."""
    before, after = [[80, 20], [30, 70]], [[70, 30], [32, 68]]
    five = [[5 * n for n in row] for row in before]
    assert differences([before] * 5, [after] * 3) == differences([before], [after])
    for one, many in zip(class_figures(before), class_figures(five, 5), strict=True):
        assert (many.images, many[1:]) == (5 * one.images, pytest.approx(one[1:]))
    (one,), (many,) = confused_pairs(before, 1), confused_pairs(five, 1, 5)
    assert (many.images, many.share) == (5 * one.images, one.share)
    assert (many.low, many.high) == pytest.approx((one.low, one.high))


def test_networks_alike_whose_trainings_vary_differ_by_chance_only() -> None:
    """Each of three trainings of each network has its own shares, some points apart, of 1,000 images a class: with the
    draw of images alone nearly every comparison would find a difference."""
    generator = random.Random(0)

    def training() -> list[list[int]]:
        rows = []
        for true in range(4):
            weights = [0.7 if j == true else 0.1 for j in range(4)]
            weights = [max(w + generator.gauss(0, 0.04), 0.01) for w in weights]
            drawn = generator.choices(range(4), weights, k=1000)
            rows.append([drawn.count(j) for j in range(4)])
        return rows

    pairs = [([training() for _ in range(3)], [training() for _ in range(3)]) for _ in range(60)]
    assert sum(any(d.real for d in differences(*pair)) for pair in pairs) <= 8  # 3 expected, cells depend on each other
    assert sum(any(d.real for d in differences(a[:1], b[:1])) for a, b in pairs) > 40  # and so the words say


def test_other_settings_are_another_network(capsys: pytest.CaptureFixture) -> None:
    longer = make_record(config={**make_record().config, "budget_s": 60.0})
    write_lines(Path("records.jsonl"), [make_record(), make_record(seed=1), longer])
    assert main(["explain", "confusions", "records.jsonl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(n["model"], n["trainings"], sum(map(sum, n["confusion_matrix"]))) for n in found["networks"]] == [
        ("LeNet5 (30 s of training)", 2, 20), ("LeNet5 (60 s of training)", 1, 10)
    ]  # fmt: skip
    # nine of ten: Wilson's interval of one run, whatever the number of runs
    for network in found["networks"]:
        assert (network["test_accuracy_low"], network["test_accuracy_high"]) == pytest.approx(
            (0.5958, 0.9821), abs=1e-4
        )


def test_predictions_of_other_images_are_refused(capsys: pytest.CaptureFixture) -> None:
    """Data sets can agree in the numbers of images and classes."""
    data = Synthetic()
    data.setup()
    names, labels = data.class_names, data.test_dataloader().labels.tolist()
    for kind, classes, true in (("classes", names[::-1], labels), ("order", names, labels[::-1])):
        rows = [[index, classes[i], classes[0], 1.0, *[0.0] * 9] for index, i in enumerate(true)]
        with Path(f"{kind}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["image", "true", "predicted", *classes], *rows])
        assert main(["explain", "confusions", f"--predictions={kind}.csv", "--data=Synthetic"]) == 2
        assert f"'{kind}.csv' is not about the test images of Synthetic" in capsys.readouterr().err
    assert not Path("results").exists()


def test_a_planted_difference_is_found_and_comes_first() -> None:
    before = [[900, 50, 50], [50, 900, 50], [50, 50, 900]]
    after = [[800, 150, 50], [50, 900, 50], [50, 50, 900]]
    found = differences([before], [after])
    assert [(d.true, d.predicted) for d in found if d.real] in ([(0, 0), (0, 1)], [(0, 1), (0, 0)])
    assert all(d.p_value == 1 for d in found if not d.real)
    # z of 50 against 150 in 1000 is 10 / sqrt(2 * 0.1 * 0.9 * 10) = 7.45; its two tails are 9e-14
    (cell,) = [d for d in found if (d.true, d.predicted) == (0, 1)]
    assert cell.p_value == pytest.approx(9e-14, rel=0.1)
    with pytest.raises(UserError, match="2 and 3 classes"):
        differences([[[1, 0], [0, 1]]], [before])


def test_seeds_are_added_up_and_two_networks_compared(capsys: pytest.CaptureFixture) -> None:
    data = make_record().data | {"class_names": ["a", "b"], "num_classes": 2, "test_images": 40}
    counts = {"A": [[15, 5], [0, 20]], "A ": [[17, 3], [2, 18]], "B": [[5, 15], [0, 20]]}
    records = [make_record(n.strip(), data=data, confusion_matrix=c) for n, c in counts.items()]
    write_lines(Path("records.jsonl"), records)
    assert main(["explain", "confusions", "records.jsonl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(n["model"], n["trainings"], n["confusion_matrix"]) for n in found["networks"]] == [
        ("A", 2, [[32, 8], [2, 38]]), ("B", 1, [[5, 15], [0, 20]])
    ]  # fmt: skip
    (difference,) = found["differences"]
    assert {(c["true"], c["predicted"]) for c in difference["cells"] if c["real"]} == {("a", "a"), ("a", "b")}
    assert len(found["pictures"]) == 3
    assert [n["classes"]["a"]["images"] for n in found["networks"]] == [20, 20]
    assert main(["explain", "confusions", "records.jsonl", "--models", "C"]) == 2
    assert "unknown model in the records 'C'" in capsys.readouterr().err


def test_counts_of_several_trainings_are_answers_and_not_images() -> None:
    data = make_record().data | {"class_names": ["cat", "dog"], "num_classes": 2, "test_images": 4000}
    counts = [[[1500, 500], [700, 1300]]] * 4
    records = [make_record("A", data=data, seed=i % 3, confusion_matrix=c) for i, c in enumerate(counts)]
    write_lines(Path("records.jsonl"), records)
    found = run("confusions", ["records.jsonl"])
    shares, classes, mistakes, pairs = found.tables
    assert shares.rows[0][2:5] == ("4", "4,000", "70.0%")
    assert classes.title.endswith("4 trainings added up: classes")
    assert [row[1] for row in classes.rows] == ["2,000", "2,000"]
    assert mistakes.head[1] == pairs.head[1] == "Answers in 4 trainings"
    assert [row[1] for row in mistakes.rows] == ["2,800", "2,000"]
    assert [row[:2] for row in pairs.rows] == [("cat and dog", "4,800")]


def test_images_come_from_a_checkpoint_or_from_its_predictions(capsys: pytest.CaptureFixture) -> None:
    size = ["--data.train_images=200", "--data.in_channels=1", "--data.image_size=36"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    assert main(["fit", "--model=LeNet5", "--data=Synthetic", *size, *quiet, "--trainer.max_epochs=1"]) == 0
    (path,) = Path("results/runs").glob("*/*/checkpoints/last.ckpt")
    capsys.readouterr()
    assert main(["explain", "confusions", f"--ckpt_path={path}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "results/explain/mistakes.png" in [p["file"] for p in found["pictures"]]
    (network,) = found["networks"]
    assert sum(map(sum, network["confusion_matrix"])) == 2000
    assert main(["predict", f"--ckpt_path={path}", "--trainer.precision=32-true", *quiet]) == 0
    (predictions,) = Path("results/runs").glob("*/*/predictions.csv")
    capsys.readouterr()
    assert main(["explain", "confusions", f"--predictions={predictions}", "--data=Synthetic", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["networks"][0]["confusion_matrix"] == network["confusion_matrix"]
    assert main(["explain", "confusions", f"--predictions={predictions}", "--data=MNIST"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give RECORDS"),
        (["--ckpt_path", "no.ckpt"], "'no.ckpt' does not exist"),
        (["--predictions", "no.csv"], "goes with --data"),
        (["--predictions", "no.csv", "--data", "Synthetic"], "predictions 'no.csv' does not exist"),
        (["--ckpt_path", "no.ckpt", "--pairs", "0"], "pairs 0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["explain", "confusions", *arguments]) == 2
    assert words in capsys.readouterr().err
