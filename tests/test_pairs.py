"""Networks compared image by image: numbers against statsmodels and formulas, and what is compared with what."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FULL_TRAINING, make_record
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from cnnbench.predictions import Predictions, write_predictions
from cnnbench.record import Record, load_records, located, predictions_beside, write_record
from cnnbench.report.classes import hardest_sentences
from cnnbench.report.compare import compare
from cnnbench.report.exports import Pivot
from cnnbench.report.outputs import Report, classes_csv, json_document, to_markdown, write_report
from cnnbench.report.pairs import MOST_SHOWN, OVER_SEEDS, Pairs, Verdict, pair_verdicts
from cnnbench.report.reliability import reliability_diagram

IMAGES = 300
TRUE = np.random.default_rng(0).integers(0, 3, IMAGES)


def _run(folder: str, model: str, right: np.ndarray, seed: int = 0, true: np.ndarray = TRUE, **changes: Any) -> Record:
    """Write the record of a network that classifies these images right, with its predictions, into a run folder."""
    predicted = np.where(right, true, (true + 1) % 3)
    matrix = np.zeros((3, 3), dtype=int)
    np.add.at(matrix, (true, predicted), 1)
    data = {**make_record().data, "test_images": len(true), **changes.pop("facts", {})}
    changes = {"training": FULL_TRAINING, **changes}
    record = make_record(model, data=data, seed=seed, confusion_matrix=matrix.tolist(), **changes)
    file = Path(folder) / "records" / f"{record.key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_record(file, record)
    write_predictions(Path(folder) / "predictions" / f"{record.key}.npz", Predictions(true, predicted), 3)
    return located(record, file)


def _answers(share: float, seed: int) -> np.ndarray:
    """Return which images a network gets right; the networks share how hard an image is."""
    hard = np.random.default_rng(9).random(IMAGES)
    own = np.random.default_rng(seed).random(IMAGES)
    return 0.6 * hard + 0.4 * own < share


SHARES = {"VGG16": 0.75, "LeNet5": 0.45, "ResNet18": 0.55}


def _three() -> list[Record]:
    return [_run("run", model, _answers(share, place)) for place, (model, share) in enumerate(SHARES.items())]


def test_the_pivot_pairs_single_seeds_by_their_images() -> None:
    """A network that is right for 6 more images, and wrong for none, of which 225 of 300 are right, is better."""
    right = np.arange(IMAGES) < 225
    records = [_run("run", "P", np.arange(IMAGES) < 231), _run("run", "Q", right)]
    assert Pivot(records).best_of("MNIST") == {"P"}
    # Without the predictions the two count as independent, and 6 of 300 images are then no difference.
    predictions_beside(records[0]).unlink()
    assert Pivot(records).best_of("MNIST") == {"P", "Q"}


def test_pairs_have_the_p_values_of_statsmodels() -> None:
    _three()
    right = {model: _answers(share, place) for place, (model, share) in enumerate(SHARES.items())}
    verdicts = Pairs(load_records([Path("run")])).verdicts
    assert [(v.first.name, v.second.name) for v in verdicts] == [
        ("VGG16", "ResNet18"), ("VGG16", "LeNet5"), ("ResNet18", "LeNet5"),
    ]  # fmt: skip
    expected = []
    for verdict in verdicts:
        a, b = right[verdict.first.name], right[verdict.second.name]
        table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        assert (verdict.only_first, verdict.only_second) == (table[0][1], table[1][0])
        exact = table[0][1] + table[1][0] < 25
        expected.append(reference_mcnemar(table, exact=exact, correction=True).pvalue)
        assert ("exact" in verdict.test) == exact
        assert verdict.difference.estimate == pytest.approx(a.mean() - b.mean())
        error = (a.astype(float) - b).std() / np.sqrt(IMAGES)
        ends = verdict.difference.estimate - 1.96 * error, verdict.difference.estimate + 1.96 * error
        assert verdict.difference[1:] == pytest.approx(ends, abs=0.2 * error + 1 / IMAGES)
    assert [v.p for v in verdicts] == pytest.approx(expected)
    assert [v.p_holm for v in verdicts] == pytest.approx(multipletests(expected, method="holm")[1].tolist())
    assert [v.neighbours for v in verdicts] == [True, False, True]


def test_a_sentence_says_what_it_stands_on() -> None:
    a, b = np.arange(IMAGES) >= 20, np.arange(IMAGES) >= 22
    short = {**FULL_TRAINING, "converged": False, "epochs": 3.2, "images": 320, "steps": 10, "curve": []}
    _run("run", "A", a, training=short)
    _run("run", "B", b, training=short)
    (verdict,) = Pairs(load_records([Path("run")])).verdicts
    # Only A is right on 2 images: the exact p value is 2 / 2**2.
    start = "A and B on MNIST are not shown to differ: 93.33* against 92.67* %, +0.67 points (95 % interval"
    assert verdict.sentence.startswith(start)
    assert "McNemar's test, exact binomial, p = 0.500 by Holm for 1 pair)" in verdict.sentence
    assert "2 images are right with A only, 0 with B only." in verdict.sentence
    assert verdict.sentence.endswith("short training (3.2 epochs); longer ones may rank the two differently.")
    text = to_markdown(Report(load_records([Path("run")])))
    assert "Each network against the next best, image by image" in text
    assert "are not shown to differ" in text


def _seeded(model: str, shares: list[float], first: int) -> np.ndarray:
    answers = [_answers(share, first + place) for place, share in enumerate(shares)]
    for seed, right in enumerate(answers):
        _run("run", model, right, seed=seed)
    return np.stack(answers)


def test_several_seeds_are_a_t_test_over_seeds_and_images() -> None:
    a, b = _seeded("A", [0.7, 0.6, 0.65], 10), _seeded("B", [0.5, 0.55, 0.6], 20)
    (verdict,) = Pairs(load_records([Path("run")])).verdicts
    assert (verdict.test, verdict.seeds) == (OVER_SEEDS, ((0, 1, 2), (0, 1, 2)))
    parts = [right.mean(axis=1).var(ddof=1) / 3 for right in (a, b)]
    images = (a.mean(axis=0) - b.mean(axis=0)).var(ddof=1) / IMAGES
    error = np.sqrt(sum(parts) + images)
    freedom = error**4 / sum(part**2 / 2 for part in parts)
    estimate = a.mean() - b.mean()
    half = scipy_stats.t.ppf(0.975, freedom) * error
    assert verdict.difference.estimate == pytest.approx(estimate)
    # The bootstrap's standard error is a little larger, since single seeds differ by image too.
    assert half <= verdict.difference.high - estimate <= 1.25 * half
    assert verdict.only_first == pytest.approx(np.mean([(x & ~y).sum() for x in a for y in b]))


def test_one_seed_against_several_is_the_seed_that_both_have() -> None:
    a, b = _seeded("A", [0.7, 0.6], 10), _answers(0.5, 30)
    _run("run", "B", b, seed=1)
    (verdict,) = Pairs(load_records([Path("run")])).verdicts
    assert verdict.seeds == ((1,), (1,))
    assert (verdict.only_first, verdict.only_second) == ((a[1] & ~b).sum(), (b & ~a[1]).sum())
    assert "McNemar" in verdict.test


def test_repeats_of_a_seed_are_no_further_trainings() -> None:
    for folder in ("one", "two"):
        _run(folder, "A", _answers(0.7, 1))
        _run(folder, "B", _answers(0.6, 2))
    (verdict,) = Pairs(load_records([Path("one"), Path("two")])).verdicts
    assert verdict.seeds == ((0,), (0,))
    assert "McNemar" in verdict.test


def test_only_the_same_images_under_the_same_settings_are_compared() -> None:
    a = _answers(0.7, 1)
    _run("run", "A", a)
    _run("budget", "B", a, config={**make_record().config, "budget_s": 60.0})
    _run("images", "C", a, facts={"fingerprint": "0" * 16})
    _run("order", "D", a, true=TRUE[::-1].copy())
    _run("label", "E", a, facts={"label": "other"})
    names = ("run", "budget", "images", "order", "label")
    assert Pairs(load_records([Path(name) for name in names])).verdicts == []
    _run("recipe", "F", a, config={**make_record().config, "recipe": "sgd"})
    (verdict,) = Pairs(load_records([Path(name) for name in (*names, "recipe")])).verdicts
    assert {verdict.first.model, verdict.second.model} == {"A", "F"}
    assert verdict.p == 1.0
    assert not verdict.differ


def test_records_without_predictions_say_how_to_get_them() -> None:
    records = _three()
    alone = [make_record(model) for model in ("A", "B")]
    pairs = Pairs(alone)
    assert pairs.tables == []
    assert "run folder" in pairs.advice
    assert "run folder" in to_markdown(Report(alone))
    assert Pairs(records).advice == Pairs(alone[:1]).advice == ""


def test_a_damaged_file_is_named_and_the_others_are_compared() -> None:
    records = _three()
    predictions_beside(records[0]).write_bytes(b"damaged")
    pairs = Pairs(records)
    assert [(v.first.name, v.second.name) for v in pairs.verdicts] == [("ResNet18", "LeNet5")]
    (problem,) = pairs.problems
    assert problem.startswith("VGG16 on MNIST is not compared by image: predictions 'run/predictions/VGG16")
    assert problem in pairs.tables[0].sentences


def test_what_a_page_gets(without_pictures: None) -> None:
    records = _three()
    found = pair_verdicts(records)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert json_document(records)["pairs_by_image"] == found
    files = [path.name for path in write_report(records, Path("report"))]
    assert files == ["report.html", "report.md", "results.csv", "classes.csv", "pairs.csv"]
    assert len(Path("report/pairs.csv").read_text().splitlines()) == 4


def test_thirty_four_networks_are_561_pairs() -> None:
    for place in range(34):
        _run("run", f"Net{place}", _answers(0.3 + place / 60, place))
    pairs = Pairs(load_records([Path("run")]))
    assert len(pairs.verdicts) == 561
    assert len(pairs.shown) == MOST_SHOWN
    assert all(isinstance(verdict, Verdict) and verdict.neighbours for verdict in pairs.shown)
    accuracies = [verdict.accuracies[0] for verdict in pairs.shown]
    assert accuracies == sorted(accuracies, reverse=True)
    assert "All 561 pairs are in pairs.csv." in pairs.sentences


def test_of_more_networks_the_best_are_compared_and_all_pairs_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbench.report.pairs.MOST_NETWORKS", 2)
    (verdict,) = Pairs(_three()).verdicts
    assert (verdict.first.name, verdict.second.name, verdict.pairs) == ("VGG16", "ResNet18", 3)
    assert verdict.p_holm == pytest.approx(min(1.0, 3 * verdict.p))


# Accuracy per class, and against confidence


def test_classes_have_the_intervals_of_scipy() -> None:
    record = _run("run", "A", _answers(0.7, 1))
    table = list(csv.DictReader(io.StringIO(classes_csv(Report([record])))))
    assert [row["class"] for row in table] == record.data["class_names"]
    for index, row in enumerate(table):
        right, images = record.confusion_matrix[index][index], sum(record.confusion_matrix[index])
        assert (int(row["right"]), int(row["images"])) == (right, images)
        expected = scipy_stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
        assert [float(row[key]) for key in ("recall", "low", "high")] == pytest.approx([right / images, *expected])


def test_the_hardest_class_is_that_with_the_lowest_mean_recall() -> None:
    matrices = ([[4, 0, 0], [1, 2, 0], [0, 0, 3]], [[2, 2, 0], [0, 3, 0], [0, 1, 2]])
    full = {"training": FULL_TRAINING}
    records = [make_record(f"N{place}", confusion_matrix=matrix, **full) for place, matrix in enumerate(matrices)]
    # By hand: (4 + 2) / 8 of zero, (2 + 3) / 6 of one, (3 + 2) / 6 of two.
    low, high = scipy_stats.binomtest(3, 4).proportion_ci(0.95, method="wilson")
    (sentence,) = hardest_sentences(records)
    assert sentence.startswith("Hardest class on MNIST: zero, of which 75.0 % are classified right")
    assert f"({100 * low:.1f} to {100 * high:.1f} %, mean of 2 networks)" in sentence.replace("95 % interval ", "")
    assert "in 1 of 2 trainings" in sentence
    (short,) = hardest_sentences([*records, make_record("N2", confusion_matrix=matrices[0])])
    assert "* % are classified right" in short
    assert "A star: some of these trainings were short." in short
    empty = make_record(confusion_matrix=[[0, 0, 0], [1, 6, 0], [0, 0, 3]])
    assert "one, of which" in hardest_sentences([empty])[0]


def test_a_reliability_diagram_shows_the_bins() -> None:
    right = _answers(0.7, 1)
    record = _run("run", "A", right)
    confidence = np.where(right, 0.9, 0.55).astype(np.float32)
    path = predictions_beside(record)
    predicted = np.where(right, TRUE, (TRUE + 1) % 3)
    write_predictions(path, Predictions(TRUE, predicted, confidence), 3)
    figure = reliability_diagram([record, make_record("B")])
    upper, lower = figure.axes
    assert (upper.get_ylabel(), lower.get_xlabel(), lower.get_ylabel()) == ("accuracy", "confidence", "images (log)")
    points = upper.containers[0].lines[0].get_xydata()
    assert points == pytest.approx(np.array([[0.55, 0.0], [0.9, 1.0]]))
    assert {text.get_text() for text in lower.texts} == {str(right.sum()), str((~right).sum())}
    # Both bins are wrong, by 0.55 and by 0.1.
    error = (0.55 * (~right).sum() + 0.1 * right.sum()) / IMAGES
    assert f"ECE {100 * error:.2f} %" in upper.get_title("left")
    assert reliability_diagram([make_record("B")]) is None


# Comparing two runs


def test_compare_pairs_the_images_of_two_single_trainings() -> None:
    before, after = np.arange(IMAGES) >= 40, np.arange(IMAGES) >= 30
    records = [_run(folder, "A", right) for folder, right in (("a", before), ("b", after))]
    (change,) = (c for c in compare(*([record] for record in records)) if c.figure == "test_accuracy")
    # Ten images are right in B only: 2 / 2**10.
    assert change.verdict == "better"
    assert "0 are right in A only and 10 in B only: McNemar's test, exact binomial, p = 0.002" in change.reason
    assert 0 < change.low < change.change == pytest.approx(10 / IMAGES)
    # Without the predictions the two count as independent, and the difference is lost in the spread of the images.
    alone = [load_records([record.file])[0] for record in records]
    predictions_beside(records[0]).unlink()
    (change,) = (c for c in compare(*([record] for record in alone)) if c.figure == "test_accuracy")
    assert change.verdict == "no difference found"
    assert "McNemar" not in change.reason


def test_compare_does_not_pair_other_images() -> None:
    right = np.arange(IMAGES) >= 40
    first = _run("a", "A", right, facts={"fingerprint": "1" * 16})
    second = _run("b", "A", right, facts={"fingerprint": "2" * 16})
    third = _run("c", "A", right, true=TRUE[::-1].copy(), facts={"fingerprint": "1" * 16})
    for other in (second, third):
        (change,) = (c for c in compare([first], [other]) if c.figure == "test_accuracy")
        assert "McNemar" not in change.reason
