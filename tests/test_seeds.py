"""Accuracies over seeds: intervals and paired differences against scipy, and what the report says about them."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import pytest
from conftest import FULL_TRAINING, make_record
from rich.console import Console
from scipy import stats as scipy_stats

from cnnbench.record import Record
from cnnbench.report.findings import MOST_LISTED
from cnnbench.report.outputs import Report, json_document, print_table, to_csv, to_html, to_markdown
from cnnbench.report.seeds import Seeds, SeedTable

DASH = "\N{EN DASH}"


def _trained(model: str, *accuracies: float | None, first: int = 0, **changes: Any) -> list[Record]:
    """Records of one network, whose seeds follow each other from the first; None is a seed without an accuracy."""
    changes = {"data": "MNIST", "training": FULL_TRAINING, "confusion_matrix": None, **changes}
    return [
        make_record(model=model, seed=seed, measures={"test_accuracy": accuracy}, **changes)
        for seed, accuracy in enumerate(accuracies, first)
    ]


def _table(records: list[Record], title: str) -> SeedTable:
    (table,) = (table for table in Seeds(records).tables if table.title == title)
    return table


def _ends(cell: str, between: str) -> tuple[float, ...]:
    return tuple(float(end) / 100 for end in cell.split(between))


def test_seeds_are_counted_once_and_summed_up() -> None:
    records = [*_trained("LeNet5", 0.5, 0.6, 0.7), *_trained("LeNet5", 0.7, first=2), *_trained("VGG16", 0.25, None)]
    for record in records[:4]:
        record.measures["train_accuracy"] = 0.9
    # By hand: a standard deviation of 10 points, and t with 2 degrees of freedom: 4.303 * 10 / sqrt(3) = 24.84.
    assert _table(records, "Over seeds").rows == [
        ["Model", "Data", "Seeds", "Mean accuracy %", "SD", "Range %", "Mean train accuracy %",
         "95 % interval of the mean"],
        ["LeNet5", "MNIST", "3", "60.00", "10.00", f"50.00{DASH}70.00", "90.00", f"35.16{DASH}84.84"],
        ["VGG16", "MNIST", "1", "25.00", DASH, DASH, DASH, DASH],
    ]  # fmt: skip
    assert Seeds(records[-3:]).tables == []


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_interval_of_the_mean_is_that_of_scipys_t_test(count: int) -> None:
    accuracies = [0.9 + 0.01 * math.sin(7 * n) for n in range(count)]
    expected = scipy_stats.ttest_1samp(accuracies, 0.5).confidence_interval(0.95)
    (network,) = Seeds(_trained("LeNet5", *accuracies)).networks
    assert tuple(network.interval)[1:] == pytest.approx((expected.low, min(1.0, expected.high)))


def test_the_words_say_the_method_and_how_few_seeds_there_are() -> None:
    table = _table(
        [*_trained("LeNet5", 0.5, 0.6), *_trained("VGG16", 0.2), *_trained("Same", 0.9, 0.9, 0.9)], "Over seeds"
    )
    meaning, *rest = table.sentences
    assert "Student's t interval" in meaning
    assert "on the same test images" in meaning
    # By hand: t with 1, 2 and 9 degrees of freedom, over the root of n: 12.706 / 1.414, 4.303 / 1.732, 2.262 / 3.162.
    assert rest == [
        "2 seeds are few: their interval reaches 9.0 standard deviations to each side of the mean; of 10 seeds 0.7.",
        "3 seeds are few: their interval reaches 2.5 standard deviations to each side of the mean; of 10 seeds 0.7.",
        "No interval, since one seed shows no spread: VGG16 on MNIST.",
        "No interval, since all seeds have the same accuracy: Same on MNIST.",
    ]
    assert table.rows[3][-1] == DASH
    # Two seeds that are far apart allow every accuracy.
    assert table.rows[1][-1] == f"0.00{DASH}100.00"
    assert len(_table(_trained("LeNet5", 0.1, 0.2, 0.3, 0.4, 0.5), "Over seeds").sentences) == 1


A = (0.80, 0.82, 0.81, 0.83)
B = (0.84, 0.85, 0.86, 0.86)
C = (0.85, 0.84, 0.87, 0.89)


def test_differences_are_those_of_scipys_paired_test_against_the_best_and_corrected_for_all_pairs() -> None:
    records = [*_trained("A", *A), *_trained("B", *B), *_trained("C", *C)]
    table = _table(records, "Differences by seed")
    assert [row[:4] for row in table.rows[1:]] == [["A", "C", "MNIST", "4"], ["B", "C", "MNIST", "4"]]
    tests = [scipy_stats.ttest_rel(first, C) for first in (A, B)]
    for row, test in zip(table.rows[1:], tests, strict=True):
        expected = test.confidence_interval(0.95)
        assert _ends(row[5], " to ") == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert [row[4] for row in table.rows[1:]] == ["-4.75", "-1.00"]
    # Three networks make three pairs, one of which is not shown.
    p_values = [test.pvalue for test in tests]
    corrected = [min(1.0, 3 * p_values[0]), max(3 * p_values[0], 2 * p_values[1])]
    assert [float(row[6]) for row in table.rows[1:]] == pytest.approx(corrected, abs=1e-3)


def test_networks_are_compared_over_the_seeds_that_both_have() -> None:
    records = [
        *_trained("A", *A),
        *_trained("C", 0.9, *C, first=-1),
        *_trained("Few", 0.7),
        *_trained("Off", 0.1, 0.2, first=9),
    ]
    table = _table(records, "Differences by seed")
    assert [row[:5] for row in table.rows[1:]] == [["A", "C", "MNIST", "4", "-4.75"]]
    assert "Not compared, with fewer than two seeds in common: Few on MNIST, Off on MNIST." in table.sentences


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("config", "budget_s", 60.0),
        ("config", "recipe", "muon"),
        ("config", "tested", "best"),
        ("config", "max_steps", 500),
        ("config", "images_per_step", 128),
        ("data", "augmentation", "mirroring"),
        ("data", "train_images", 17),
        ("environment", "threads", 1),  # the budget is a time
    ],
)
def test_networks_that_were_trained_in_other_ways_are_no_pairs(place: str, name: str, value: Any) -> None:
    other = getattr(make_record(), place) | {name: value}
    assert len(Seeds([*_trained("A", *A), *_trained("C", *C)]).pairs) == 1
    assert Seeds([*_trained("A", *A), *_trained("C", *C, **{place: other})]).pairs == []


def test_times_need_not_agree_where_accuracies_are_compared() -> None:
    """Neither inference nor, if the budget is a number of epochs, the machine changes an accuracy."""
    config = make_record().config | {"budget_s": None, "epochs": 3}
    elsewhere = {
        "config": config | {"speed_batch_size": 64},
        "environment": make_record().environment | {"device": "GPU"},
    }
    assert len(Seeds([*_trained("A", *A, config=config), *_trained("C", *C, **elsewhere)]).pairs) == 1


def test_a_difference_that_is_the_same_for_all_seeds_has_no_p_value() -> None:
    records = [*_trained("A", 0.90, 0.91, 0.92), *_trained("B", 0.91, 0.92, 0.93)]
    table = _table(records, "Differences by seed")
    assert table.rows[1][4:] == ["-1.00", DASH, DASH]
    assert "No interval and no p value where the difference is the same for all seeds." in table.sentences


def test_short_trainings_rank_no_networks() -> None:
    note = "not which of them is better in the end"
    short = {"training": make_record().training}
    assert note in " ".join(_table([*_trained("A", *A, **short), *_trained("C", *C)], "Differences by seed").sentences)
    assert note not in " ".join(_table([*_trained("A", *A), *_trained("C", *C)], "Differences by seed").sentences)


def test_very_many_networks_have_the_rest_of_their_pairs_in_the_csv_file() -> None:
    records = []
    for n in range(MOST_LISTED + 3):
        records += _trained(f"Net{n}", 0.5, 0.5 + n / 1000)
    table = _table(records, "Differences by seed")
    assert len(table.rows) == 1 + MOST_LISTED
    assert table.sentences[-1] == "2 more pairs are in results.csv."
    rows = list(csv.DictReader(io.StringIO(to_csv(Report(records)))))
    assert sum(row["paired_against"] == f"Net{MOST_LISTED + 2}" for row in rows) == 2 * (MOST_LISTED + 2)


def _printed(report: Report) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    print_table(report, console)
    return console.export_text()


@pytest.mark.parametrize("make", [to_html, to_markdown, _printed])
def test_every_format_has_both_tables_and_their_words(make: Any) -> None:
    text = " ".join(make(Report([*_trained("A", *A), *_trained("C", *C)])).split()).replace("\\", "")
    for expected in ("Over seeds", f"79.45{DASH}83.55", "Differences by seed", "-4.75", "4 seeds are few"):
        assert expected in text
    for expected in ("Holm", "on the same test images"):
        assert expected in text
    alone = make(Report(_trained("A", *A)))
    assert "Over seeds" in alone
    assert "Differences by seed" not in alone


def test_csv_and_json_have_the_figures_over_seeds_at_full_precision() -> None:
    records = [*_trained("A", *A), *_trained("C", *C), *_trained("Failed", None)]
    rows = list(csv.DictReader(io.StringIO(to_csv(Report(records)))))
    low, high = scipy_stats.ttest_1samp(A, 0.5).confidence_interval(0.95)
    paired = scipy_stats.ttest_rel(A, C)
    assert list(rows[0])[-1] == "paired_p_holm"
    for row in rows[:4]:
        assert (row["test_accuracy_seeds"], row["paired_against"], row["paired_seeds"]) == ("4", "C", "4")
        assert float(row["test_accuracy_mean_low"]) == pytest.approx(low)
        assert float(row["test_accuracy_mean_high"]) == pytest.approx(high)
        assert float(row["paired_difference"]) == pytest.approx(-0.0475)
        assert float(row["paired_p_holm"]) == pytest.approx(paired.pvalue)
    assert {row["paired_against"] for row in rows[4:]} == {""}
    assert rows[-1]["test_accuracy_seeds"] == ""
    document = json_document(records)
    assert [n["test_accuracy_by_seed"] for n in document["over_seeds"]] == [
        dict(zip("0123", accuracies, strict=True)) for accuracies in (A, C)
    ]
    assert [pair["paired_against"] for pair in document["differences_by_seed"]] == ["C"]
    single = [*_trained("A", 0.8), *_trained("C", 0.9)]
    assert "paired_against" not in to_csv(Report(single))
    assert json_document(single)["over_seeds"] == []
