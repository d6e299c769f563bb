"""What records say together: fronts, rank correlations and seeds, against values worked out by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest
from conftest import FULL_TRAINING, make_record

from cnnbench.record import Record
from cnnbench.report.contenders import contenders, rivals_by_label
from cnnbench.report.findings import front, front_sentences, misjudged, speed_sentences
from cnnbench.report.pareto import Spread, inversion, pareto_front
from cnnbench.report.settings import Setting, budget, in_group, setting


def record(model: str, seed: int = 0, data: str = "MNIST", **measures: float | None) -> Record:
    return make_record(model=model, seed=seed, data=data, measures=measures, training=FULL_TRAINING)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(3, 0.1)], [0]),
        ([(4, 0.9), (1, 0.5), (2, 0.4), (2, 0.6), (3, 0.6)], [1, 3, 0]),
        ([(1, 0.5), (1, 0.6)], [1]),  # equal costs: the better one
        ([(2, 0.5), (1, 0.5)], [1]),  # equal qualities: the cheaper one
        ([(1, 0.5), (2, 0.7), (1, 0.5), (2, 0.7)], [0, 2, 1, 3]),  # duplicates stand together
    ],
)
def test_pareto_front_keeps_what_no_other_beats(points: list[tuple[float, float]], expected: list[int]) -> None:
    assert pareto_front(points) == expected


def test_pareto_front_is_that_of_brute_force() -> None:
    generator = random.Random(1)
    for _ in range(200):
        points = [(generator.randrange(6), generator.randrange(6)) for _ in range(generator.randrange(12))]
        kept = {
            i
            for i, (cost, quality) in enumerate(points)
            if not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)
        }
        found = pareto_front(points)
        assert set(found) == kept
        assert [points[i] for i in found] == sorted(points[i] for i in found)


def test_inversion_is_the_pair_with_the_largest_product_of_ratios() -> None:
    # 12 * 1.3 is more than 6 * 1.3 / 1.2 and 2 * 1.2.
    def exactly(*times: float) -> list[Spread]:
        return [Spread(t, t, t) for t in times]

    assert inversion([1, 12, 6], exactly(1.3, 1.0, 1.2)) == (0, 1)
    assert inversion([1, 2, 3], exactly(1, 2, 3)) is None
    assert inversion([1, 50], exactly(1.04, 1.0)) is None  # hardly longer
    assert inversion([1, 1.04], exactly(9, 1)) is None
    assert inversion([1, 50], [Spread(1.0, 2.0, 3.0), Spread(0.9, 1.0, 1.1)]) is None  # their calls overlap
    assert inversion([1, 50], [Spread(1.2, 2.0, 3.0), Spread(0.9, 1.0, 1.1)]) == (0, 1)


def test_front_is_made_of_means_over_seeds() -> None:
    records = [
        *(record("Lucky", seed=s, macs=5, test_accuracy=a) for s, a in enumerate((0.9, 0.5))),
        *(record("Steady", seed=s, macs=5, test_accuracy=a) for s, a in enumerate((0.75, 0.75))),
        record("Small", macs=1, test_accuracy=0.6),
        record("Uncounted", test_accuracy=0.99),
        make_record(model="Failed", status="error", measures={}, training={}, confusion_matrix=None),
    ]
    assert [c.name for c in front(contenders(records), "macs")] == ["Small", "Steady"]
    assert front_sentences(records, "macs") == [
        "Front of accuracy (mean over seeds) against MACs on MNIST: Small, Steady."
    ]
    assert front_sentences(records, "latency_ms_median") == []


def test_the_same_network_under_other_settings_is_another_contender() -> None:
    longer = make_record(config={**make_record().config, "budget_s": 60.0})
    names = [c.name for c in contenders([make_record(), longer, make_record(seed=1), make_record(model="VGG16")])]
    assert names == ["LeNet5 (30 s of training)", "LeNet5 (60 s of training)", "VGG16"]


def _timed(times: dict[str, tuple[float, float]], **changes: Any) -> list[Record]:
    return [
        make_record(
            model=m, measures={"macs": macs, "latency_ms_median": ms, "train_images_per_s": 1e6 / macs}, **changes
        )
        for m, (macs, ms) in times.items()
    ]


def test_speed_is_told_in_one_paragraph_per_data_set() -> None:
    records = _timed({"A": (100, 1.3), "B": (1200, 1.0), "C": (2000, 4.0)})
    again = [make_record(model=r.model, seed=1, measures=r.measures) for r in records]
    assert speed_sentences(records + again) == [
        "Rank correlation (Spearman) of MACs and latency, batch 1, over 3 networks on MNIST: 0.50; of MACs and time "
        "per image in training at batch 32: 1.00. FLOPs are not speed: A has 12 times fewer MACs than B and takes 1.3 "
        "times as long for one image."
    ]


def test_speed_has_an_interval_from_five_networks_on_and_an_example_only_where_there_is_one() -> None:
    five = {"A": (1, 1.0), "B": (2, 2.0), "C": (4, 2.0), "D": (8, 2.0), "E": (16, 3.0)}
    (text,) = speed_sentences(_timed(five))
    assert (
        "over 5 networks on MNIST: 0.89 (95 % interval, bootstrap over networks, 0.73 to 1.00); of MACs and time per "
        "image in training at batch 32: 1.00." in text
    )
    assert "FLOPs are not speed" not in text
    assert speed_sentences(_timed({"A": (1, 1.0), "B": (2, 2.0)})) == []


def test_speed_is_not_compared_between_machines() -> None:
    other = {"environment": {**make_record().environment, "device": "Other CPU"}}
    records = _timed({"A": (1, 9.0), "B": (2, 2.0)}) + _timed({"C": (4, 1.0), "D": (8, 2.0)}, **other)
    assert speed_sentences(records) == []
    assert misjudged(contenders(records)) is None


VALUES: dict[str, tuple[Any, Any]] = {
    "budget_s": (30.0, 60.0), "epochs": (3, 4), "max_steps": (None, 500), "tested": ("last", "best"),
    "test_views": ("one", "mirror"), "until": (None, 0.9), "images_per_step": (None, 128),
    "precision": ("32-true", "bf16-mixed"),
    "inference_precision": ("32-true", "bf16-true"), "memory_format": ("channels_last", "contiguous"),
    "mode": ("eager", "compile"), "engine": ("torch", "openvino"), "cudnn_benchmark": (False, True),
    "batch_size": (64, 128),
    "speed_batch_size": (64, 128), "device": ("one", "another"), "packages": ({"torch": "2.11"}, {"torch": "2.12"}),
    "threads": (1, 2), "test_images": (10, 1000), "settle_s": (0.0, 0.1),
    "first_settle_s": (0.0, 0.7),
}  # fmt: skip


@pytest.mark.parametrize("row", in_group("row"), ids=lambda row: row.name)
def test_records_that_differ_in_one_setting_are_groups_with_names_of_their_own(row: Setting) -> None:
    common = getattr(make_record(), row.place) | ({"budget_s": None} if row.name == "epochs" else {})
    # A record has a confusion matrix of all its test images, or none.
    records = [
        make_record(**{row.place: common | {row.name: value}}, confusion_matrix=None) for value in VALUES[row.name]
    ]
    groups = rivals_by_label(contenders(records))
    assert [len(group) for group in groups.values()] == [1, 1]
    assert not any("(group 2)" in name for name in groups)


def test_settings_that_a_record_does_not_name_have_the_value_of_its_time() -> None:
    """Such records were made before the setting was there, when it had this value."""
    old = make_record()
    for name in ("tested", "images_per_step", "max_steps", "mode", "cudnn_benchmark", "inference_precision"):
        assert name not in old.config
    said = {"tested": "last", "images_per_step": 32, "mode": "eager", "cudnn_benchmark": False}
    new = make_record(config=old.config | said | {"inference_precision": "32-true"})
    assert setting(old, "tested") == "last"
    assert len(contenders([old, new])) == 1


def test_a_training_has_the_limits_that_were_set() -> None:
    config = make_record().config
    assert budget(make_record(config=config | {"budget_s": None, "max_steps": 500})) == "500 steps"
    assert (
        budget(make_record(config=config | {"epochs": 3, "max_steps": 500}))
        == "30 s of training or 3 epochs or 500 steps"
    )
    assert budget(make_record(config=config | {"budget_s": None})) == "not said"
    one = make_record(config=config | {"budget_s": None, "epochs": 3})
    names = [entry.name for entry in contenders([one, make_record()])]
    assert names == ["LeNet5 (3 epochs)", "LeNet5 (30 s of training)"]


@pytest.mark.parametrize(
    ("place", "name", "value", "words"),
    [
        ("config", "recipe", "muon", "recipe muon"),
        ("config", "learning_rate", 0.1, "learning rate 0.1"),
        ("data", "augmentation", "mirroring", "augmentation: mirroring"),
        ("data", "train_images", 17, "17 training images"),
    ],
)
def test_trainings_in_two_ways_are_no_repeats_but_may_be_ranked(place: str, name: str, value: Any, words: str) -> None:
    one = make_record()
    other = make_record(**{place: getattr(one, place) | {name: value}})
    entries = contenders([one, other])
    assert len(entries) == 2
    assert words in entries[1].name
    assert [len(group) for group in rivals_by_label(entries).values()] == [2]
