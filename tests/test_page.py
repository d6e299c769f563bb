"""The HTML page in a real browser: sizes of screen, dark mode, print, keyboard, and all that its script does."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accessibility import violations
from browsers import open_page
from conftest import FULL_TRAINING, make_record
from page_reader import PageReader
from PIL import Image, ImageStat
from playwright.sync_api import Browser, Page
from scipy import stats as scipy_stats

from cnnbench.disputed import Disputed, disputed_file, write_disputed
from cnnbench.predictions import Predictions, write_predictions
from cnnbench.record import Record, load_records, write_record
from cnnbench.report.answer import answers
from cnnbench.report.contenders import contenders
from cnnbench.report.outputs import Report, to_html
from cnnbench.report.panels import curve_panels, scatter_panels
from cnnbench.report.stored_predictions import usable_predictions
from cnnbench.stats import newcombe_interval

ZOO = Path(__file__).parents[1] / "experiments/results/2026-11-23-cpu-zoo.jsonl"
GRID = Path(__file__).parents[1] / "experiments/results/2026-11-29-cpu.jsonl"
SEEDS = Path(__file__).parents[1] / "experiments/results/2026-11-22-cpu-seeds.jsonl"
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of the committed records of the default grid, of the zoo, and of several seeds."""
    folder = tmp_path_factory.mktemp("pages")
    paths = {}
    for name, source in {"grid": GRID, "zoo": ZOO, "seeds": SEEDS}.items():
        paths[name] = folder / f"{name}.html"
        paths[name].write_text(to_html(Report(load_records([source]))), encoding="utf-8")
    return paths


def _names(page: Page, body: int = 0) -> list[str]:
    """The networks of the visible rows of a data set, in their order."""
    rows = page.locator(f"#results tbody >> nth={body} >> tr[data-net]:visible")
    return rows.evaluate_all("rows => rows.map((row) => row.dataset.net)")


# The zoo and the seeds have no other kinds of elements at the sizes and colours that are left out.
@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        *((("grid", width, scheme)) for width in (1280, 390, 320) for scheme in ("light", "dark")),
        *((("zoo", width, "light")) for width in (1280, 320)),
        *((("seeds", width, "dark")) for width in (1280, 320)),
    ],
)
def test_page_fits_every_screen_without_an_accessibility_violation(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: Any
) -> None:
    page = open_page(browser, pages[name], width, color_scheme=scheme)
    if name != "zoo":  # whose 34 matrices have no other elements, and take half a minute to check
        page.locator("details summary").evaluate_all("all => all.forEach((summary) => summary.parentNode.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert violations(page) == []


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_a_line_says_that_a_table_scrolls_sideways_where_it_does(
    browser: Browser, pages: dict[str, Path], width: int
) -> None:
    page = open_page(browser, pages["grid"], width)
    page.locator("details").evaluate_all("all => all.forEach((part) => { part.open = true; })")
    page.wait_for_timeout(100)  # the sizes of what was unfolded are observed after the next frame
    script = """regions => regions.map((region) => [region.scrollWidth > region.clientWidth + 1,
      region.previousElementSibling.checkVisibility(), region.ariaDescription !== null])"""
    found = page.locator(".scroll").evaluate_all(script)
    assert len(found) > 8
    assert all(hidden == cue == described for hidden, cue, described in found)
    assert found[0] == [width < 1280] * 3
    # With all columns but the first hidden, the table fits, and the line goes.
    page.locator("#tools input[type=checkbox]").evaluate_all("all => all.forEach((box) => box.checked && box.click())")
    page.wait_for_function("document.querySelector('#results').parentNode.previousElementSibling.hidden")
    assert page.locator(".scroll").evaluate_all(script)[0] == [False] * 3


def test_dark_mode_changes_the_page(browser: Browser, pages: dict[str, Path]) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        shot = open_page(browser, pages["grid"], color_scheme=scheme).screenshot()
        with Image.open(io.BytesIO(shot)) as image:
            brightness[scheme] = ImageStat.Stat(image.convert("L")).mean[0]
    assert brightness["light"] > 200
    assert brightness["dark"] < 80


@pytest.mark.parametrize("name", ["grid", "zoo"])
def test_nothing_is_cut_off_on_paper(browser: Browser, pages: dict[str, Path], name: str) -> None:
    page = open_page(browser, pages[name])
    page.emulate_media(media="print")
    # A4 less the margins of 12 mm, at 96 pixels per inch.
    page.set_viewport_size({"width": round(186 / 25.4 * 96), "height": 1000})
    width = page.evaluate("document.documentElement.clientWidth")
    right = "cells => Math.max(...cells.map((cell) => cell.getBoundingClientRect().right))"
    assert page.locator("#results th, #results td").evaluate_all(right) <= width + 1
    assert not page.locator("#tools").is_visible()


def test_page_without_script_has_everything_but_the_tools(browser: Browser, pages: dict[str, Path]) -> None:
    page = open_page(browser, pages["grid"], java_script_enabled=False)
    assert not page.locator("#tools").is_visible()
    assert not page.locator("#two").is_visible()
    assert page.locator("#results tbody tr[data-net]").count() == 8
    assert page.locator("table.matrix").count() == 8
    assert page.locator(".plot .pt").count() == 6 * 4
    assert page.locator("th[data-key=flops]").is_visible()


def test_columns_sort_by_their_values_with_the_best_first(browser: Browser, pages: dict[str, Path]) -> None:
    records = [r for r in load_records([ZOO]) if r.measures.get("latency_ms_median")]
    fastest = sorted(records, key=lambda r: r.measures["latency_ms_median"])
    page = open_page(browser, pages["zoo"])
    head = page.locator("th[data-key=latency_ms_median]")
    head.locator("button").click()
    assert _names(page) == [r.model for r in fastest]
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert _names(page) == [r.model for r in reversed(fastest)]
    assert head.get_attribute("aria-sort") == "descending"
    page.locator("th[data-key=images_per_s] button").click()
    throughput = sorted(records, key=lambda r: -r.measures["images_per_s"])
    assert _names(page) == [r.model for r in throughput]
    assert head.get_attribute("aria-sort") is None
    # Rows without a reference accuracy come last, whichever way the others are sorted.
    references = page.locator("th[data-key=reference_accuracy] button")
    references.click()
    assert _names(page)[0] == "ResNet18"
    references.click()
    assert _names(page)[0] == "LeNet5"
    page.locator("th[data-key=model] button").click()
    assert _names(page)[0] == "AlexNet"


def test_search_takes_words_and_conditions(browser: Browser, pages: dict[str, Path]) -> None:
    records = load_records([ZOO])
    page = open_page(browser, pages["zoo"])
    cases = {
        "resnet": lambda r: "resnet" in r.model.lower(),
        "params<1M": lambda r: r.measures["params"] < 1e6,
        "params<1M latency<=5": lambda r: r.measures["params"] < 1e6 and r.measures["latency_ms_median"] <= 5,
        "params < 1M": lambda r: r.measures["params"] < 1e6,
        "accuracy>=40": lambda r: r.measures["test_accuracy"] >= 0.4,
        "macs>1G resnet": lambda r: r.measures["macs"] > 1e9 and "resnet" in r.model.lower(),
    }
    for text, holds in cases.items():
        page.locator("#search").fill(text)
        assert sorted(_names(page)) == sorted(r.model for r in records if holds(r)), text
        shown = page.locator("#hits").text_content()
        assert shown == f"{sum(map(holds, records))} of {len(records)} rows"
    page.locator("#search").fill("params<1M")
    for wrong, words in {
        "size<5": "there is no column", "params<abc": "is no condition", "params<1.2.3": "is no condition",
        "params<-3": "is no condition", "params!=5": "is no condition", "latency<1,5": "is no condition",
        "params<5m": "is no unit", "latency<1s": "is no unit", "accuracy>=0.9": "write per cent, such as accuracy>=90",
    }.items():  # fmt: skip
        page.locator("#search").fill(wrong)
        assert words in str(page.locator("#hits").text_content()), wrong
        assert len(_names(page)) == len(records), wrong  # the rows of the search before are no result
    page.locator("#search").fill("")
    assert len(_names(page)) == len(records)


def test_ratios_are_those_of_rows_that_compare(browser: Browser, tmp_path: Path) -> None:
    base = make_record(training=FULL_TRAINING)
    slow = make_record("ResNet18", training=FULL_TRAINING, measures={**base.measures, "latency_ms_median": 1.0,
                       "params": 123412, "test_accuracy": 0.8})  # fmt: skip
    other = make_record("VGG16", training=FULL_TRAINING, environment={**base.environment, "device": "another"})
    elsewhere = make_record("VGG16", "CIFAR10", training=FULL_TRAINING)
    path = tmp_path / "page.html"
    path.write_text(to_html(Report([base, slow, other, elsewhere])), encoding="utf-8")
    page = open_page(browser, path)
    page.locator("#baseline").select_option(index=1)
    assert page.locator("#baseline option:checked").text_content() == "LeNet5 on MNIST"
    row = page.locator("tr[data-net=ResNet18]")
    ratios = dict(zip(
        page.locator("#results thead th").evaluate_all("all => all.map((head) => head.dataset.key)"),
        row.locator("th, td").evaluate_all("all => all.map((cell) => cell.querySelector('.ratio')?.textContent)"),
        strict=True,
    ))  # fmt: skip
    assert (ratios["latency_ms_median"], ratios["params"], ratios["macs"]) == tuple(
        f"{TIMES}{ratio}" for ratio in (4, 2, 1)
    )
    assert ratios["test_accuracy"] == f"{MINUS}10.0"
    assert page.locator("tr[data-net=VGG16] .ratio").count() == 0
    page.locator("#baseline").select_option("")
    assert page.locator(".ratio").count() == 0


def test_rows_points_and_curves_of_a_network_light_up_together(browser: Browser, pages: dict[str, Path]) -> None:
    page = open_page(browser, pages["grid"])
    page.locator(".pt[data-net=MobileNetV1]").first.hover()
    lit = page.locator(".on").evaluate_all(
        "all => all.map((element) => [element.tagName.toLowerCase(), element.dataset.net])"
    )
    assert {name for _, name in lit} == {"MobileNetV1"}
    assert [tag for tag, _ in lit].count("tr") == 2
    assert {tag for tag, _ in lit} == {"tr", "i", "polyline", "li"}
    words = page.locator("#tip").text_content()
    assert words is not None
    assert words.startswith("MobileNetV1: ")
    assert "ms" in words
    page.locator(".pt[data-net=LeNet5]").first.click()
    assert page.evaluate("document.querySelector(':target').dataset.net") == "LeNet5"
    # A point of the second data set goes to the row of that data set.
    page.locator(".charts").nth(1).locator(".pt[data-net=ResNet18]").first.click()
    assert page.evaluate("location.hash").startswith("#ResNet18-CIFAR-10")
    page.locator("tr[data-net=VGG16] a.link").first.focus()
    assert page.locator(".pt.on").first.get_attribute("data-net") == "VGG16"


def test_search_hides_the_points_of_hidden_rows_alone(browser: Browser, pages: dict[str, Path]) -> None:
    page = open_page(browser, pages["grid"])
    page.locator("#search").fill("cifar resnet")
    rows = page.locator(".pt:visible, polyline[data-row]:visible").evaluate_all("all => all.map((e) => e.dataset.row)")
    assert set(rows) == {"ResNet18-CIFAR-10-JPEG-copy-0"}
    assert len(rows) == 3 + 1


def test_figures_are_shares_by_their_kind_and_not_by_their_name(browser: Browser, tmp_path: Path) -> None:
    base = make_record(training=FULL_TRAINING)
    figures = {"seconds_to_accuracy": 2.0, "images_to_accuracy": 100, "macs_to_accuracy": 1e9, "ece": 0.02}
    other = {"seconds_to_accuracy": 4.0, "images_to_accuracy": 300, "macs_to_accuracy": 5e8, "ece": 0.05}
    records = [
        replace(base, measures={**base.measures, **figures}),
        replace(base, model="ResNet18", measures={**base.measures, **other}),
    ]
    path = tmp_path / "page.html"
    path.write_text(to_html(Report(records)), encoding="utf-8")
    page = open_page(browser, path)
    page.locator("#baseline").select_option(index=1)
    assert page.locator("#baseline option:checked").text_content() == "LeNet5"
    ratios = page.locator("tr[data-net=ResNet18] .ratio").all_text_contents()
    assert {f"{TIMES}2", f"{TIMES}3", f"{TIMES}0.5", "+3.0"} <= set(ratios)
    for text, shown in {"goals<3": ["LeNet5"], "goalimages>200": ["ResNet18"], "ece<3": ["LeNet5"]}.items():
        page.locator("#search").fill(text)
        assert _names(page) == shown, text


def test_networks_with_other_test_images_are_not_set_side_by_side(browser: Browser, tmp_path: Path) -> None:
    large = [[30, 3, 0], [0, 33, 0], [4, 0, 30]]
    more = make_record("VGG16", data={**make_record().data, "test_images": 100}, confusion_matrix=large)
    again = make_record("VGG19", data={**make_record().data, "fingerprint": "other"})
    records = [make_record(), make_record("ResNet18"), more, again]
    path = tmp_path / "page.html"
    path.write_text(to_html(Report(records)), encoding="utf-8")
    page = open_page(browser, path)
    assert page.locator("#first option").all_text_contents() == ["LeNet5 on MNIST", "ResNet18 on MNIST"]


def test_closed_lists_of_networks_name_the_data_set_if_there_are_several(
    browser: Browser, pages: dict[str, Path]
) -> None:
    options = "list => [...list.options].map((option) => option.textContent)"
    page = open_page(browser, pages["grid"])
    names = [f"{r.model} on {r.data['label']}" for r in load_records([GRID])]
    assert sorted(page.locator("#baseline").evaluate(options)) == sorted(["none", *names])
    assert sorted(page.locator("#first").evaluate(options)) == sorted(names)
    assert all(" on " in name for name in page.locator("#second").evaluate(options))
    # The seeds are of one data set, which no list has to name.
    page = open_page(browser, pages["seeds"])
    seeds = [f"{r.model}, seed {r.seed}" for r in load_records([SEEDS])]
    assert sorted(page.locator("#first").evaluate(options)) == sorted(seeds)


def test_columns_can_be_shown_and_hidden(browser: Browser, pages: dict[str, Path]) -> None:
    page = open_page(browser, pages["grid"])
    assert not page.locator("th[data-key=flops]").is_visible()
    page.locator("#tools summary").click()
    page.get_by_label("FLOPs", exact=True).check()
    assert page.locator("th[data-key=flops]").is_visible()
    page.get_by_label("Params", exact=True).uncheck()
    assert not page.locator("th[data-key=params]").is_visible()


def test_two_networks_are_compared_by_their_counts(browser: Browser, pages: dict[str, Path]) -> None:
    records = {r.model: r for r in load_records([GRID]) if r.data["name"] == "CIFAR10"}
    page = open_page(browser, pages["grid"])
    group = page.locator("#first optgroup[label='CIFAR-10 (JPEG copy)'] option")
    page.locator("#first").select_option(group.filter(has_text="ResNet18").get_attribute("value"))
    page.locator("#second").select_option(label="VGG16 on CIFAR-10 (JPEG copy)")
    a, b = records["ResNet18"].confusion_matrix, records["VGG16"].confusion_matrix
    assert a is not None
    assert b is not None
    expected = []
    for first, second in zip(a, b, strict=True):
        expected += [y - x for x, y in zip(first, second, strict=True)]
    texts = page.locator("#two table.matrix tbody td").all_text_contents()
    assert [int(text.replace(MINUS, "-") or 0) for text in texts] == expected
    # "Is ResNet18 better than VGG16 on cats?" is answered by the row of the class.
    cat = page.locator("#two table.narrow tbody tr").filter(has_text="cat").locator("td").all_text_contents()
    share = [100 * counts[3][3] / sum(counts[3]) for counts in (a, b)]
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in cat[:2]] == [f"{value:.1f} %" for value in share]
    assert cat[2] == f"{share[1] - share[0]:+.1f}".replace("-", MINUS)
    low, high = newcombe_interval(b[3][3], sum(b[3]), a[3][3], sum(a[3]))
    assert cat[3] == f"{100 * low:+.1f} to {100 * high:+.1f}".replace("-", MINUS)


# Intervals of paired proportions: the thallium scans of Altman et al. 2000 (Statistics with Confidence, chapter 6), and
# the remissions of Cavo et al. 2012 in Fagerland, Lydersen and Laake 2017, chapter 8. The counts are both, only the
# first, only the second, and neither; the interval is that of the first share minus the second.
@pytest.mark.parametrize(
    ("counts", "digits", "ends"),
    [((14, 5, 0, 22), 3, (0.011, 0.226)), ((59, 6, 16, 80), 4, (-0.1186, -0.0046))],
)
def test_paired_intervals_of_classes_are_those_of_the_books(
    browser: Browser, pages: dict[str, Path], counts: tuple[int, ...], digits: int, ends: tuple[float, float]
) -> None:
    page = open_page(browser, pages["grid"])
    both, first, second, _ = counts
    n = sum(counts)
    found = page.evaluate("given => newcombe(...given)", [(both + second) / n, (both + first) / n, n, both])
    assert tuple(round(end, digits) for end in found) == ends


def test_paired_intervals_of_classes_hold_the_truth_and_are_narrower(browser: Browser, pages: dict[str, Path]) -> None:
    """By brute force: the probability of every table of 20 images whose interval holds the true difference."""
    n = 20
    tables = np.array([t for t in itertools.product(range(n + 1), repeat=3) if sum(t) <= n])  # both, only a, only b
    both, only_a, only_b = tables.T
    given = np.stack([(both + only_a) / n, (both + only_b) / n, both], axis=1)
    script = "given => given.map(([a, b, both]) => [...newcombe(a, b, 20, both), ...newcombe(a, b, 20)])"
    low, high, low_alone, high_alone = np.array(open_page(browser, pages["grid"]).evaluate(script, given.tolist())).T
    cells = np.column_stack([tables, n - tables.sum(axis=1)])
    for shares in ([0.7, 0.1, 0.1, 0.1], [0.8, 0.1, 0.03, 0.07], [0.5, 0.2, 0.05, 0.25], [0.3, 0.25, 0.25, 0.2]):
        weights = scipy_stats.multinomial.pmf(cells, n, shares)
        truth = shares[2] - shares[1]
        assert weights[(low <= truth) & (truth <= high)].sum() >= 0.93, shares
        narrower = weights @ (high - low) / (weights @ (high_alone - low_alone))
        # The two are right together more often than by chance in the first three cases.
        related = shares[0] * shares[3] > shares[1] * shares[2]
        assert narrower < 0.95 if related else narrower >= 0.95, shares


def test_classes_of_two_networks_have_paired_intervals_if_the_page_knows_their_predictions(
    browser: Browser, tmp_path: Path
) -> None:
    generator = np.random.default_rng(3)
    true = generator.integers(0, 3, 400)
    hard = generator.random(400)
    for model, share in (("LeNet5", 0.6), ("ResNet18", 0.8)):
        right = 0.7 * hard + 0.3 * generator.random(400) < share
        _write_run(tmp_path, model, true, np.where(right, true, (true + 1) % 3))
    # As many images of each class, in another order: the page cannot know which of them are the same.
    _write_run(tmp_path, "VGG16", true[::-1], true[::-1])
    rights = {}
    for record in load_records([tmp_path]):
        found = usable_predictions(record)
        assert found is not None
        rights[record.model] = found.right
    path = tmp_path / "page.html"
    path.write_text(to_html(Report(load_records([tmp_path]))), encoding="utf-8")
    page = open_page(browser, path)
    page.locator("#first").select_option(label="LeNet5")
    page.locator("#second").select_option(label="ResNet18")
    assert "two shares of the same images" in str(page.locator("#two").text_content())
    for index, name in enumerate(make_record().data["class_names"]):
        a, b = (rights[model][true == index] for model in ("LeNet5", "ResNet18"))
        ends = page.evaluate("given => newcombe(...given)", [a.mean(), b.mean(), len(a), int((a & b).sum())])
        cells = page.locator("#two table.narrow tbody tr").filter(has_text=name).locator("td").all_text_contents()
        assert cells[3] == f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}".replace("-", MINUS)
    page.locator("#second").select_option(label="VGG16")
    assert "two shares of different images" in str(page.locator("#two").text_content())


def _write_run(folder: Path, model: str, true: np.ndarray, predicted: np.ndarray) -> None:
    """Write the record of a fully trained network of three classes into a run folder, with its predictions."""
    matrix = np.zeros((3, 3), dtype=int)
    np.add.at(matrix, (true, predicted), 1)
    data = {**make_record().data, "test_images": len(true)}
    record = make_record(model, data=data, training=FULL_TRAINING, confusion_matrix=matrix.tolist())
    write_record(folder / "records" / f"{record.key}.json", record)
    write_predictions(folder / "predictions" / f"{record.key}.npz", Predictions(true, predicted), 3)


def test_two_networks_of_a_run_have_a_verdict_and_the_images_on_which_they_disagree(
    browser: Browser, tmp_path: Path
) -> None:
    true = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    said = {"LeNet5": np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 0]), "ResNet18": np.array([0, 1, 0, 1, 1, 1, 2, 2, 2, 0])}
    for model, predicted in said.items():
        _write_run(tmp_path, model, true, predicted)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    write_disputed(disputed_file(tmp_path, "MNIST"), Disputed(pixels, np.array([1, 2]), true[[1, 2]]))
    path = tmp_path / "page.html"
    path.write_text(to_html(Report(load_records([tmp_path]))), encoding="utf-8")
    page = open_page(browser, path)
    texts = page.locator("#two .samples li").all_text_contents()
    assert [text.partition("LeNet5")[0] for text in texts] == ["zero (no. 1)", "zero (no. 2)"]
    assert "LeNet5: zero \N{CHECK MARK}" in texts[0]
    assert "ResNet18: one \N{BALLOT X}" in texts[0]
    assert "LeNet5: one \N{BALLOT X}" in texts[1]
    # Each of the two is right on one image that the other mistakes: the exact test of 1 against 1 has p = 1.
    assert page.locator("#two").get_by_text("are not shown to differ").count() == 1
    assert violations(page) == []


def test_page_says_which_network_is_fastest_at_an_accuracy(browser: Browser, tmp_path: Path) -> None:
    networks = _networks(("Best", 9.0, 0.93), ("Near", 3.0, 0.9), ("Other", 4.0, 0.9001), ("Far", 1.0, 0.8))
    (untimed,) = _networks(("Untimed", 1.0, 0.926))
    figures = {key: value for key, value in untimed.measures.items() if key != "latency_ms_median"}
    networks.append(replace(untimed, measures=figures))
    path = tmp_path / "page.html"
    path.write_text(to_html(Report(networks)), encoding="utf-8")
    page = open_page(browser, path)
    answer = page.locator("#ask output")
    for percent, expected in {
        "90": "Near, 90.00 %, 3.00 ms; then Other, 90.01 %, 4.00 ms; then Best, 93.00 %, 9.00 ms. Without a latency: "
        "Untimed, 92.60 %.",
        "90.005": "Other, 90.01 %, 4.00 ms; then Best, 93.00 %, 9.00 ms. Without a latency: Untimed, 92.60 %.",
        "92.5": "Best, 93.00 %, 9.00 ms. Without a latency: Untimed, 92.60 %.",
        "94": "No network here reaches that; the highest accuracy is 93.00 %.",
    }.items():
        page.locator("#limit").fill(percent)
        assert str(answer.text_content()).replace("\N{NO-BREAK SPACE}", " ") == expected


def test_hostile_names_stay_texts_for_the_script(browser: Browser, tmp_path: Path) -> None:
    name = "</script><script>document.title='x'</script><img src=x onerror=\"document.title='x'\">"
    records = [make_record(model=f"{name}{index}", data={**make_record().data, "label": name}) for index in range(2)]
    path = tmp_path / "page.html"
    path.write_text(to_html(Report(records)), encoding="utf-8")
    page = open_page(browser, path)
    page.locator("#search").fill("img")
    page.locator("#baseline").select_option(index=1)
    page.locator(".pt").last.hover()
    assert page.title() == "cnnbench report"
    assert page.locator("img").count() == 0
    assert page.locator("#first option").first.text_content() == f"{name}0"


def test_rows_have_links_of_their_own(pages: dict[str, Path]) -> None:
    reader = PageReader(pages["seeds"].read_text(encoding="utf-8"))
    rows = [link for link in reader.links if link.startswith("#") and "-" in link]
    assert len(rows) == len(set(rows)) == len(load_records([SEEDS]))


def test_page_of_the_zoo_is_small(pages: dict[str, Path]) -> None:
    assert pages["zoo"].stat().st_size < 1_000_000


# The charts, without a browser


def _networks(*figures: tuple[str, float, float]) -> list[Record]:
    """Fully trained networks by name, latency in ms and accuracy."""
    made = []
    for name, latency, accuracy in figures:
        record = make_record(name, training=FULL_TRAINING)
        ends = {"test_accuracy_low": accuracy - 0.01, "test_accuracy_high": accuracy + 0.01}
        measures = {**record.measures, "latency_ms_median": latency, "test_accuracy": accuracy, **ends}
        made.append(replace(record, measures=measures))
    return made


def test_points_stand_where_their_values_are() -> None:
    panel = scatter_panels(_networks(("A", 1.0, 0.5), ("B", 10.0, 0.7), ("C", 100.0, 0.6)))[0]
    by_name = {point.name: point for point in panel.points}
    # On a logarithmic axis 10 is in the middle of 1 and 100; on a linear one 0.6 is in the middle of 0.5 and 0.7.
    assert by_name["B"].left == pytest.approx((by_name["A"].left + by_name["C"].left) / 2, abs=0.02)
    assert by_name["C"].bottom == pytest.approx((by_name["A"].bottom + by_name["B"].bottom) / 2, abs=0.02)
    assert by_name["A"].high - by_name["A"].bottom == pytest.approx(by_name["A"].bottom - by_name["A"].low, abs=0.02)
    assert all(0 < point.left < 100 and 0 < point.bottom < 100 for point in panel.points)
    # C is slower than B and less accurate, so the front goes from A to B.
    a, b = by_name["A"], by_name["B"]
    assert panel.steps == [(a.left, a.bottom), (b.left, a.bottom), (b.left, b.bottom)]


def test_curves_of_many_networks_are_drawn_by_family_and_none_is_lost() -> None:
    records = load_records([ZOO])
    panels = curve_panels(records)
    drawn = [line.name for panel in panels for line in panel.lines]
    assert sorted(drawn) == sorted(r.model for r in records)
    for panel in panels:
        assert len(panel.lines) + len(panel.others) == len(records)
        looks = {(line.colour, line.dash) for line in panel.lines}
        assert len(looks) == len(panel.lines)


def test_answer_names_the_best_the_fastest_near_it_and_the_fastest_of_all() -> None:
    networks = _networks(("Best", 9.0, 0.9), ("Near", 3.0, 0.88), ("Far", 1.0, 0.8))
    assert answers(networks) == [
        "Most accurate on MNIST: Best, 90.0 %; not clearly better than Near (88.0 %). Fastest with nearly that "
        "accuracy (at least 87.5 %, which is at most 5 wrong images for every 4 of Best): Near, 88.0 %, 3.00 ms; "
        "Best needs 9.00 ms. Fastest of all: Far, 80.0 %, 1.00 ms."
    ]
    # 0.874 has 1.26 times the errors of 0.9, just too many.
    networks = _networks(("Best", 9.0, 0.9), ("Near", 3.0, 0.874))
    assert answers(networks) == [
        "Most accurate on MNIST: Best, 90.0 %. No network with nearly that accuracy (at least 87.5 %, which is at most "
        "5 wrong images for every 4 of Best) is faster than Best, which needs 9.00 ms. Fastest of all: Near, 87.4 %, "
        "3.00 ms."
    ]


def test_answer_and_chart_say_an_accuracy_in_the_same_words() -> None:
    records = load_records([GRID])
    # The accuracy and the epochs of the table in experiments/LOG.md.
    words = "91.7 % after its reference training of 24 epochs"
    assert any(f"on CIFAR-10 (JPEG copy): ResNet18, {words}" in sentence for sentence in answers(records))
    points = [point for panel in scatter_panels(records) for point in panel.points]
    assert any(point.words.startswith(f"ResNet18: {words}, ") for point in points)


def test_page_says_why_some_reference_trainings_had_few_epochs() -> None:
    # experiments/LOG.md: 30 epochs of LeNet5, and two of the large networks on MNIST "for lack of time".
    words = "fast networks had up to 30 epochs, slow ones as few as 2, for lack of time"
    assert to_html(Report(load_records([GRID]))).count(words) == 1


def test_answer_does_not_call_two_seeds_clear() -> None:
    networks = []
    for name, accuracies in {"A": (0.800, 0.801), "B": (0.802, 0.804)}.items():
        for seed, accuracy in enumerate(accuracies):
            (record,) = _networks((name, 1.0, accuracy))
            data = {**record.data, "test_images": 10_000}
            networks.append(replace(record, seed=seed, data=data, confusion_matrix=None))
    assert answers(networks)[0].startswith("Most accurate on MNIST: B, 80.3 %; not clearly better than A (80.0 %).")


def test_answer_does_not_rank_networks_with_other_test_images() -> None:
    first, second = _networks(("A", 1.0, 0.8), ("B", 1.0, 0.9))
    other = replace(second, data={**second.data, "test_images": 1000}, confusion_matrix=None)
    assert len(answers([first, second])) == 1
    assert answers([first, other]) == []


def test_a_long_training_on_a_part_of_the_images_is_no_full_one() -> None:
    record = make_record(training=FULL_TRAINING)
    assert record.fully_trained
    part = replace(record, data={**record.data, "train_images": 6, "full_train_images": 100})
    assert not part.fully_trained
    assert contenders([part])[0].settled is None
    assert replace(part, data={**part.data, "train_images": 100}).fully_trained


def test_answer_does_not_rank_short_trainings() -> None:
    (sentence,) = answers([make_record("A"), make_record("B")])
    assert "not known" in sentence
    assert answers([make_record("A")]) == []
