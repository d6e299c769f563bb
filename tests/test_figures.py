"""Pictures: which network looks how, and what is named; their files are tested with the report."""

from __future__ import annotations

from itertools import combinations

import pytest
from conftest import FULL_TRAINING, make_record
from matplotlib.figure import Figure
from matplotlib.text import Text

from cnnbench.plots.drawing import LONGEST_NAME, Name, Scheme, family, short_names, write_names
from cnnbench.record import Record
from cnnbench.report import charts
from cnnbench.report.charts import accuracy_against, latency_against_macs, learning_curves


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("LeNet5", "LeNet"),
        ("VGG16(batch_norm=True)", "VGG"),
        ("ResNet152", "ResNet"),
        ("SimpleCNN", "SimpleCNN"),
        ("MobileNetV2", "MobileNet"),
        ("MobileNetV1(width_multiplier=0.5)", "MobileNet"),
        ("EfficientNetB0", "EfficientNet"),
        ("torchvision:resnet18", "torchvision:resnet"),
        ("torchvision:mobilenet_v3_small", "torchvision:mobilenet"),
        ("torchvision:googlenet(aux_logits=False)", "torchvision:googlenet"),
        ("timm:convnext_tiny", "timm:convnext_tiny"),
        ("my.module:MyNet", "module:MyNet"),
        ("42", "42"),
    ],
)
def test_family_is_what_a_name_begins_with(model: str, expected: str) -> None:
    assert family(model) == expected


def test_short_names_fit_and_stay_apart() -> None:
    models = [
        "ResNet18", "my.module:MyNet", "MobileNetV1(width_multiplier=0.5)", "MobileNetV1(depth_multiplier_x=0.5)",
        "EfficientNetB0(stochastic_depth=True)", "torchvision:googlenet(aux_logits=False)",
    ]  # fmt: skip
    short = short_names(models)
    assert list(short.values())[:2] == ["ResNet18", "module:MyNet"]
    assert short[models[2]] != short[models[3]]
    assert short[models[4]] == "EfficientNetB0(…chastic_depth)"
    assert short[models[5]] == "torchvision:goo…no aux_logits)"
    assert all(len(name) <= LONGEST_NAME for name in list(short.values())[4:])
    assert short_names([models[2]]) == {models[2]: "MobileNetV1(0.5)"}


def test_few_networks_have_a_colour_each() -> None:
    scheme = Scheme.of([f"ResNet{i}" for i in range(8)])
    assert not scheme.many
    assert len({look.colour for look in scheme.looks.values()}) == 8


def test_many_networks_look_like_their_family_and_no_two_families_alike() -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    scheme = Scheme.of([f"{letter}net{i}" for letter in letters for i in range(3)])
    assert scheme.many
    assert len({scheme.looks[f"Anet{i}"] for i in range(3)}) == 1
    looks = set(scheme.looks.values())
    assert len(looks) == len({(look.colour, look.marker) for look in looks}) == len(letters)
    assert len({(look.colour, look.line) for look in looks}) == len(letters)


def _zoo(count: int) -> list[Record]:
    """Networks of which every second one is on the front; all of the same cost are crowded in pairs."""
    return [
        make_record(
            model=f"ResNet{i}",
            measures={
                "macs": 1000 * 2 ** (i // 2),
                "latency_ms_median": 1.0 + i,
                "test_accuracy": 0.3 + 0.01 * (i - i % 2 * 9),
            },
            training=FULL_TRAINING,
        )
        for i in range(count)
    ]


def test_the_front_is_drawn_and_all_its_networks_are_named() -> None:
    figure = accuracy_against(_zoo(20), "macs")
    assert figure is not None
    (ax,) = figure.axes
    names = {text.get_text() for text in ax.texts}
    assert {f"ResNet{i}" for i in range(0, 20, 2)} <= names
    corners = next(line for line in ax.lines if len(line.get_xdata()) > 2).get_xydata().tolist()
    assert corners[:3] == [[1000, 0.3], [2000, 0.3], [2000, 0.32]]
    assert corners[-1] == [ax.get_xlim()[1], 0.48]
    assert "front" in figure._supxlabel.get_text()


def test_few_networks_are_all_named_once_and_in_the_legend_of_curves() -> None:
    records = [*_zoo(4), *(make_record(model=r.model, seed=1, measures=r.measures) for r in _zoo(4))]
    for figure in (accuracy_against(records, "latency_ms_median"), latency_against_macs(records)):
        assert figure is not None
        names = [text.get_text() for text in figure.axes[0].texts if text.get_text().startswith("ResNet")]
        assert sorted(names) == [f"ResNet{i}" for i in range(4)]
    curves = learning_curves(records)
    assert curves is not None
    assert [t.get_text() for t in curves.axes[0].get_legend().get_texts()] == [f"ResNet{i}" for i in range(4)]


def test_many_networks_have_a_legend_of_families() -> None:
    records = [*_zoo(9), make_record(model="timm:resnet18"), make_record(model="VGG11"), make_record(model="VGG13")]
    for figure in (accuracy_against(records, "macs"), latency_against_macs(records), learning_curves(records)):
        assert figure is not None
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["ResNet", "timm:resnet18", "VGG"]


def test_the_correlation_is_written_into_the_panel_if_there_is_one() -> None:
    # Ranks of MACs 1.5, 1.5, 3.5, 3.5 and of latency 1 to 4: 4 / sqrt(4 * 5).
    for count, expected in ((2, []), (4, ["Spearman 0.89"])):
        figure = latency_against_macs(_zoo(count))
        assert figure is not None
        ax = figure.axes[0]
        assert [text.get_text() for text in ax.texts if "Spearman" in text.get_text()] == expected
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_needed_names_stay_inside_the_panel_and_cover_no_other() -> None:
    ax = Figure(figsize=(5, 4)).subplots()
    ax.set(xlim=(0, 10), ylim=(0, 10))
    ax.figure.draw_without_rendering()
    points = [(0.3, 5.0), (0.5, 5.0), (9.7, 5.0), (5.0, 9.8), (5.0, 0.2), (5.2, 9.8)]
    write_names(ax, [Name(x, y, f"Network{i}") for i, (x, y) in enumerate(points)], size=9)
    ax.figure.draw_without_rendering()  # puts the words in their places
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # of the words, without the line to the point
    assert len(boxes) == len(points)
    assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_pictures_without_content_are_left_out() -> None:
    bare = [make_record(measures={}, training={}, confusion_matrix=None)]
    assert accuracy_against(bare, "macs") is latency_against_macs(bare) is learning_curves(bare) is None


def test_no_tick_has_more_than_a_hundred_per_cent() -> None:
    assert [charts._percent(share) for share in (0.125, 1.0, 1.002)] == ["12.5%", "100%", ""]
