"""Engines side by side in reports and in `pick`: figures against scipy and by hand, words, hostile records."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsers import open_page
from conftest import FULL_TRAINING, make_record
from playwright.sync_api import Browser
from scipy import stats as scipy_stats

from cnnbench.cli import main
from cnnbench.record import Record, load_records, write_lines
from cnnbench.report import engine_pictures
from cnnbench.report.answer import answers
from cnnbench.report.compare import BETWEEN
from cnnbench.report.contenders import contenders, rivals_by_label
from cnnbench.report.engine_tables import heading, notes, sentences, tables
from cnnbench.report.engines import EngineView, engine_views, ratio
from cnnbench.report.findings import DASH
from cnnbench.report.outputs import Report, to_csv, to_html, to_markdown
from cnnbench.report.provenance import warnings

TORCH = {"A": 1.0, "B": 2.0, "C": 4.0, "D": 8.0, "E": 16.0, "F": 32.0}
ONNX = {"A": 0.1, "B": 1.6, "C": 0.5, "D": 2.0, "E": 3.0, "F": 4.0}


def row(
    model: str, ms: float, engine: str = "torch", precision: str = "32-true", processes: int = 6, **changes: Any
) -> Record:
    """Return a record as `speed --engine` writes it, whose processes and rounds differ by about one per cent."""
    generator = random.Random(f"{model}{engine}{precision}")
    blocks = []
    for _ in range(processes):
        pace = math.exp(generator.gauss(0, 0.01))
        blocks += [[ms * pace * math.exp(generator.gauss(0, 0.003))] * 3 for _ in range(4)]
    middle = statistics.median(block[0] for block in blocks)
    measures: dict[str, Any] = {
        "latency_ms_median": middle,
        "latency_ms_low": 0.98 * middle,
        "latency_ms_high": 1.02 * middle,
        "file_bytes": 2**20,
        "samples_ms": {"latency": blocks, "yardstick": [[2.0] * 3 for _ in blocks]},
        "process_rounds": [4] * processes,
    }
    name = model if engine == "torch" else f"{model} [{engine}, {precision}]"
    record = make_record(name, measures=measures | changes.pop("measures", {}), training={}, confusion_matrix=None)
    record.config.update(engine=engine, network=model, precision=precision, inference_precision=precision)
    record.config["memory_format"] = "channels_last" if engine == "torch" else "contiguous"
    if engine != "torch":
        record.environment["packages"][engine] = "1.0"
    for place, values in changes.items():
        getattr(record, place).update(values)
    return record


def rows(times: dict[str, float], *way: str, **changes: Any) -> list[Record]:
    return [row(model, ms, *way, **changes) for model, ms in times.items()]


def the_view(records: list[Record]) -> EngineView:
    (view,) = engine_views(records)
    return view


def words(records: list[Record]) -> str:
    return " ".join(sentences(the_view(records)))


# Figures


def test_ratio_is_wilcoxons_interval_over_pairs_of_processes() -> None:
    a, b = row("A", 4.0), row("A", 1.0, "onnxruntime")
    found = ratio(a, b)
    logs = []
    for n in range(6):
        medians = []
        for record in (a, b):
            blocks = record.measures["samples_ms"]["latency"][4 * n : 4 * n + 4]
            medians.append(statistics.median(statistics.median(block) for block in blocks))
        logs.append(math.log(medians[0] / medians[1]))
    walsh = sorted((x + y) / 2 for i, x in enumerate(logs) for y in logs[i:])
    assert found.estimate == pytest.approx(math.exp(statistics.median(walsh)))
    # Of six pairs, the interval at 95 % reaches from the smallest to the largest mean, by scipy's exact test.
    assert (found.low, found.high) == (pytest.approx(math.exp(walsh[0])), pytest.approx(math.exp(walsh[-1])))
    assert scipy_stats.wilcoxon([log - walsh[0] + 1e-9 for log in logs], method="exact").pvalue < 0.05


@pytest.mark.parametrize("counts", [(1, 1), (2, 2), (6, 3)])
def test_few_processes_have_the_spread_of_processes_by_assumption(counts: tuple[int, int]) -> None:
    found = ratio(row("A", 4.0, processes=counts[0]), row("A", 1.0, "onnxruntime", processes=counts[1]))
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * BETWEEN["latency"] * math.sqrt(1 / counts[0] + 1 / counts[1])
    assert math.log(found.high / found.low) >= 2 * half * 0.999
    assert found.estimate == pytest.approx(4, rel=0.05)


def test_correlation_is_scipys_and_places_are_a_sort() -> None:
    view = the_view(rows(TORCH) + rows(ONNX, "onnxruntime"))
    (found,) = view.agreements
    assert found.correlation is not None
    assert found.correlation.value == pytest.approx(
        scipy_stats.spearmanr([*TORCH.values()], [*ONNX.values()]).statistic
    )
    assert found.correlation.interval is not None
    assert found.correlation.interval[0] < found.correlation.value <= found.correlation.interval[1]
    assert found.pairs == 15
    # By hand: C passes B, and everything else stays in its order.
    assert [(swap.first, swap.second) for swap in found.swaps] == [("B", "C")]
    assert found.turned == 0
    assert list(view.of_way(view.ways[1])) == sorted(ONNX, key=ONNX.__getitem__)
    assert view.networks == tuple(TORCH)


def test_a_change_of_place_within_the_intervals_is_none() -> None:
    close = {"A": 1.0, "B": 1.01, "C": 5.0}
    other = {"A": 1.01, "B": 1.0, "C": 5.0}
    (found,) = the_view(rows(close, processes=2) + rows(other, "openvino", processes=2)).agreements
    assert (found.swaps, found.turned) in (((), 0), ((), 1))


def test_csv_and_json_have_the_figures(tmp_path: Path, without_pictures: None, capsys: Any) -> None:
    records = rows(TORCH) + rows(ONNX, "onnxruntime")
    write_lines(tmp_path / "r.jsonl", records)
    assert main(["report", str(tmp_path / "r.jsonl"), "--out", str(tmp_path / "out"), "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)["engines"]
    table = list(csv.DictReader(io.StringIO((tmp_path / "out/engines.csv").read_text())))
    assert [entry["model"] for entry in table] == [entry["model"] for entry in document["rows"]]
    for entry in table:
        times = TORCH if entry["engine"] == "torch" else ONNX
        assert float(entry["latency_ms_median"]) == pytest.approx(times[entry["model"]], rel=0.05)
        assert float(entry["times_as_fast"]) == pytest.approx(TORCH[entry["model"]] / times[entry["model"]], rel=0.05)
        assert int(entry["place"]) == sorted(times, key=times.__getitem__).index(entry["model"]) + 1
        assert entry["version"] == ("2.15.0" if entry["engine"] == "torch" else "1.0")
    assert document["agreements"][0]["swapped"][0]["faster_in_first"] == "B"


# Sentences


def test_three_sentences_say_speed_change_and_agreement() -> None:
    text = words(rows(TORCH) + rows(ONNX, "onnxruntime"))
    assert text.startswith("Beside torch float32, ONNX Runtime float32 is 1.2")
    assert "times as fast for all 6 networks." in text
    assert "One pair of networks changes places: B is faster than C in torch float32 and slower in ONNX Runtime" in text
    assert "Spearman's rank correlation of the latencies is 0.94 between torch float32 and ONNX Runtime float32" in text


def test_slower_and_unclear_networks_are_named() -> None:
    torch, other = {"A": 4.0, "B": 1.0, "C": 3.0}, {"A": 1.0, "B": 4.0, "C": 3.0}
    text = words(rows(torch, processes=2) + rows(other, "openvino", processes=2))
    assert "times as fast for A, and is slower, 0.2" in text
    assert "times as fast, for B, and shows no clear difference for C." in text


def test_singular_plural_and_none() -> None:
    one = words(rows({"A": 4.0}) + rows({"A": 1.0}, "openvino"))
    assert "times as fast for A." in one
    assert "no two networks have times in two engines" in one
    assert "There is no rank correlation, since no 3 networks" in one
    none = words(rows(TORCH) + rows(TORCH, "openvino"))
    assert "No two networks change places between torch float32 and another engine beyond their intervals." in none
    turned = {**TORCH, "A": 3.0, "B": 0.5, "C": 0.2}
    assert "3 of 15 pairs of networks change places" in words(rows(TORCH) + rows(turned, "openvino"))
    apart = words(rows({"A": 4.0}) + rows({"B": 1.0}, "openvino"))
    assert apart.startswith("No network has times of both torch float32 and another engine.")


def test_nothing_is_claimed_without_intervals() -> None:
    records = rows(TORCH) + rows(ONNX, "onnxruntime")
    for record in records:
        for key in ("latency_ms_low", "latency_ms_high", "samples_ms", "process_rounds"):
            del record.measures[key]
    text = words(records)
    assert "ONNX Runtime float32 shows no clear difference for all 6 networks" in text
    assert "No two networks change places" in text
    assert "1 pair is in another order, but within the intervals" in text


def test_suspect_times_are_marked_everywhere() -> None:
    records = rows(TORCH) + rows(ONNX, "onnxruntime")
    records[1].measures["suspect"] = ["another program ran"]
    view = the_view(records)
    assert "B? is faster than C" in words(records)
    assert any(line.startswith("?: a suspect time") for line in notes(view))
    latency, fast = tables(view)[:2]
    assert latency.rows[2][1].startswith("2.0")
    assert "? (" in latency.rows[2][1]
    assert "?" in fast.rows[2][1]
    assert "?" not in fast.rows[1][1]
    assert [mark.network for mark in engine_pictures.panel(view).marks if mark.suspect] == ["B"]


def test_accuracy_of_a_way_is_that_of_its_own_test() -> None:
    """The network itself is timed in bfloat16 too, but it was tested in the number format of its training."""
    tested = {"training": FULL_TRAINING}
    network = row("A", 1.0, "torch", "bf16-true", measures={"test_accuracy": 0.5}, **tested)
    own = row("A", 1.0, "torch", "bf16-true", measures={"test_accuracy": 0.7}, **tested)
    own = replace(own, model="A [torch, bf16-true]")
    view = the_view([network, own, row("A", 1.0, "onnxruntime")])
    accuracies = [cell.accuracy for (_, way), cell in view.cells.items() if way.engine == "torch"]
    assert accuracies == [0.7]


def test_doubts_about_batches_are_none_about_single_images() -> None:
    records = rows(TORCH) + rows(ONNX, "onnxruntime")
    records[1].measures["suspect"] = ["inference drifted over the rounds (in 1 of 6 processes)"]
    assert not the_view(records).suspect
    assert "?" not in words(records)
    records[1].measures["suspect"].append("latency drifted over the rounds (in 1 of 6 processes)")
    assert the_view(records).suspect


def test_processes_of_different_days_are_no_pairs() -> None:
    a, b = row("A", 4.0), row("A", 1.0, "onnxruntime")
    paired = ratio(a, b)
    later = ratio(a, replace(b, created="2030-01-01T00:00:00+00:00"))
    assert later.low is not None
    assert paired.low is not None
    assert later != paired


# Hostile records


def test_one_engine_has_no_view() -> None:
    assert engine_views(rows(TORCH)) == []
    assert engine_views(rows(ONNX, "onnxruntime") + rows(ONNX, "onnxruntime", "int8")) == []
    assert engine_views([]) == []
    report = Report(rows(TORCH))
    assert "Engines" not in to_markdown(report)
    assert 'id="engines"' not in to_html(report)


def test_int8_rows_alone_are_compared_with_each_other_and_not_with_torch() -> None:
    records = rows(TORCH, "onnxruntime", "int8") + rows(ONNX, "openvino", "int8")
    view = the_view(records)
    assert view.baseline is None
    assert "as fast" not in words(records)
    assert "between ONNX Runtime int8 and OpenVINO int8" in words(records)
    assert any("no record has times of torch in float32" in line for line in notes(view))


def test_failed_and_untimed_rows_are_left_out() -> None:
    failed = make_record("A [openvino, 32-true]", status="error", reason="no", measures={}, training={})
    failed.config.update(engine="openvino", network="A")
    assert engine_views([*rows(TORCH), failed]) == []
    untimed = row("A", 1.0, "openvino")
    untimed.measures.clear()
    assert engine_views([*rows(TORCH), untimed]) == []


def test_a_network_in_one_engine_only_has_a_dash_and_no_rank_elsewhere() -> None:
    view = the_view(rows(TORCH) + rows({"A": 0.1, "Z": 0.2}, "openvino"))
    assert view.networks == (*TORCH, "Z")
    assert tables(view)[0].rows[-1][1] == DASH
    assert tables(view)[1].rows[-1][1] == DASH
    assert [len(found.networks) for found in view.agreements] == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"environment": {"device": "Other CPU"}},
        {"environment": {"threads": 7}},
        {"data": {"label": "Other images"}},
        {"data": {"image_size": 64}},
        {"config": {"settle_s": 0.1}},
        {"config": {"first_settle_s": 0.7}},
    ],
)
def test_two_machines_or_images_are_never_set_side_by_side(change: dict[str, Any]) -> None:
    assert engine_views(rows(TORCH) + rows(ONNX, "onnxruntime", **change)) == []
    both = rows(TORCH) + rows(ONNX, "onnxruntime") + rows(TORCH, **change) + rows(TORCH, "openvino", **change)
    views = engine_views(both)
    assert len(views) == 2
    assert [{way.engine for way in view.ways} for view in views] == [{"torch", "onnxruntime"}, {"torch", "openvino"}]
    named = {heading(view, views) for view in views}
    assert len(named) == (1 if "image_size" in change.get("data", {}) else 2)


def test_versions_modes_and_unknown_engines_are_ways_of_their_own() -> None:
    newer = rows(ONNX, "onnxruntime", environment={"packages": {"torch": "2.15.0", "onnxruntime": "2.0"}})
    compiled = rows(TORCH, config={"mode": "compile"})
    strange = rows(ONNX, "<b>engine</b>", "fp4")
    records = [*rows(TORCH), *compiled, *rows(ONNX, "onnxruntime"), *newer, *strange]
    view = the_view(records)
    assert list(view.names.values()) == [
        "torch float32",
        "torch float32 (compile)",
        "ONNX Runtime float32 (1.0)",
        "ONNX Runtime float32 (2.0)",
        "<b>engine</b> fp4",
    ]
    assert len({engine_pictures.looks(view.ways)[way] for way in view.ways}) == 5
    assert "<b>engine" not in to_html(Report(records))


def test_a_newer_record_takes_the_place_of_an_older_one() -> None:
    old, new = row("A", 9.0), row("A", 3.0)
    object.__setattr__(old, "created", "2026-01-01T00:00:00+00:00")
    view = the_view([new, old, row("A", 1.0, "openvino")])
    assert view.cells["A", view.ways[0]].record is new


@pytest.mark.parametrize("place", ["environment", "config"])
def test_records_without_optional_facts_have_a_view(place: str) -> None:
    for key in list(getattr(row("A", 1.0), place)):
        if key in ("engine", "network"):
            continue
        records = rows({"A": 1.0, "B": 2.0}) + rows({"A": 0.5, "B": 0.7}, "openvino")
        for record in records:
            getattr(record, place).pop(key, None)
        for view in engine_views(records):
            assert sentences(view)
            assert tables(view)


# The other views


def in_engine(model: str, right: int, ms: float, engine: str, precision: str) -> Record:
    """Return a row of `bench --engine`: a full training, tested in an engine."""
    record = row(model, ms, engine, precision)
    matrix = [[right, 10 - right, 0], [0, 0, 0], [0, 0, 0]]
    accuracy = {"test_accuracy": right / 10, "test_accuracy_low": 0.1, "test_accuracy_high": 1.0, "params": 1000}
    return make_record(
        record.model,
        measures=record.measures | accuracy | {"macs": 5000},
        config=record.config,
        environment=record.environment,
        training=dict(FULL_TRAINING),
        confusion_matrix=matrix,
    )


GRID = [("torch", "32-true"), ("onnxruntime", "32-true"), ("openvino", "int8"), ("torch", "int8")]


def grid() -> list[Record]:
    records = []
    for number, (engine, precision) in enumerate(GRID):
        records += [in_engine("P", 9 - number, 4 / (number + 1), engine, precision)]
        records += [in_engine("Q", 8 - number, 2 / (number + 1), engine, precision)]
    return records


def test_answer_front_and_ranking_never_mix_engines() -> None:
    records = grid()
    groups = rivals_by_label(contenders(records))
    assert len(groups) == len(GRID)
    for members in groups.values():
        assert len({(e.records[0].config["engine"], e.records[0].config["precision"]) for e in members}) == 1
    for label in groups:
        assert "Python" not in label
        assert "cnnbench 0" not in label
    for sentence in answers(records):
        assert len({name for name in ("onnxruntime", "openvino") if name in sentence.split(":")[0]}) <= 1
    page = to_html(Report(records))
    assert page.count('data-conditions="3"') == 2
    assert 'data-conditions="4"' not in page


def test_a_difference_in_the_packages_of_engines_is_no_other_machine() -> None:
    records = rows(TORCH) + rows(ONNX, "onnxruntime")
    assert not any("packages" in line for line in warnings(records))
    assert any("engine (torch, onnxruntime)" in line for line in warnings(records))
    # Two versions of one engine are.
    records += rows(ONNX, "onnxruntime", environment={"packages": {"torch": "2.15.0", "onnxruntime": "2.0"}})
    assert any("packages" in line for line in warnings(records))


def test_accuracies_of_int8_stand_beside_the_latencies() -> None:
    table = next(table for table in tables(the_view(grid())) if table.title == "Test accuracy, %")
    assert table.rows[0] == ["Network", "torch float32", "ONNX Runtime float32", "torch int8", "OpenVINO int8"]
    assert [line[1:] for line in table.rows[1:]] == [
        ["80.00", "70.00", "50.00", "60.00"],
        ["90.00", "80.00", "60.00", "70.00"],
    ]


def test_results_csv_keeps_a_row_per_record() -> None:
    assert len(to_csv(Report(grid())).splitlines()) == 1 + 2 * len(GRID)


# Picture and page


def test_picture_has_a_mark_per_network_and_way_sorted_by_torch() -> None:
    records = rows(dict(reversed(TORCH.items()))) + rows(ONNX, "onnxruntime") + rows(ONNX, "openvino", "bf16-true")
    figure = engine_pictures.draw(records)
    assert figure is not None
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == list(TORCH)
    assert ax.get_yticks().tolist() == [0, -1, -2, -3, -4, -5]
    assert ax.get_xscale() == "log"
    points = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert len(points) == 18
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "torch float32",
        "ONNX Runtime float32",
        "OpenVINO bfloat16",
        "95 % interval",
    ]
    records[0].measures["suspect"] = ["latency drifted"]
    doubtful = engine_pictures.draw(records)
    assert doubtful is not None
    assert [text.get_text() for text in doubtful.axes[0].get_legend().get_texts()][-1] == "suspect time"
    assert engine_pictures.draw(rows(TORCH)) is None


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (320, "dark")])
def test_page_with_engines_fits_and_is_accessible(browser: Browser, tmp_path: Path, width: int, scheme: Any) -> None:
    path = tmp_path / "page.html"
    path.write_text(to_html(Report(grid())), encoding="utf-8")
    page = open_page(browser, path, width, color_scheme=scheme)
    page.locator("details summary").evaluate_all("all => all.forEach((summary) => summary.parentNode.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    found = Axe().run(page).response["violations"]
    assert [(entry["id"], entry["nodes"][0]["html"]) for entry in found] == []
    assert page.locator(".dots .plot .mark").count() == 2 * len(GRID)
    # The marks of a network are in its row, and a faster one is to the left.
    boxes = page.locator(".dots .plot .mark").evaluate_all("all => all.map((mark) => mark.getBoundingClientRect().x)")
    names = page.locator(".dots .plot .mark").evaluate_all("all => all.map((mark) => mark.title)")
    by_time = sorted(zip(boxes, names, strict=True))
    times = [float(name.split(" (")[0].removesuffix(" ms").split()[-1]) for _, name in by_time]
    assert times == sorted(times)


# `pick`


@pytest.fixture
def picked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Return a function that asks `pick` about the records of `grid`, and returns its JSON document."""
    for module in ("cnnbench.commands.pick", "cnnbench.report.choice_words"):
        monkeypatch.setattr(f"{module}.cpu_name", lambda: "Test CPU")
    monkeypatch.setattr("cnnbench.commands.pick.gpu_names", list)
    write_lines(tmp_path / "r.jsonl", grid())

    def ask(*options: str) -> tuple[int, dict[str, Any]]:
        code = main(["pick", "r.jsonl", "--data", "MNIST", *options, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return ask


def value(document: dict[str, Any], model: str, key: str) -> float:
    (found,) = [entry for entry in document["networks"] if entry["model"] == model and key in entry["values"]]
    return round(found["values"][key]["value"], 1)


def test_pick_takes_times_of_torch_unless_asked(picked: Any) -> None:
    code, document = picked("--max_latency", "3ms")
    assert (code, document["answer"], document["times"]["engine"]) == (0, "Q", "torch")
    assert value(document, "P", "latency") == 4.0
    assert value(document, "P", "accuracy") == 0.9
    code, document = picked("--max_latency", "3ms", "--engine", "onnxruntime")
    assert document["times"]["engine"] == "onnxruntime"
    assert value(document, "P", "latency") == 2.0
    words = document["times"]["words"]
    assert all(part in words for part in ("float32 (32-true)", "ONNX Runtime 1.0", "from r.jsonl"))


def test_pick_of_any_engine_answers_network_and_engine(picked: Any) -> None:
    code, document = picked("--max_latency", "1.5ms", "--precision", "32-true", "--engine", "any")
    assert (code, document["answer"], document["answer_in"]) == (0, "Q", "ONNX Runtime float32")
    satisfied = [entry for entry in document["networks"] if entry["status"] == "satisfies"]
    assert [(entry["model"], entry["engine"], entry["precision"]) for entry in satisfied] == [
        ("Q", "onnxruntime", "32-true")
    ]


def test_pick_never_gives_an_int8_network_the_accuracy_of_another(picked: Any) -> None:
    _, document = picked("--engine", "openvino", "--precision", "int8")
    assert value(document, "P", "accuracy") == 0.7
    _, document = picked("--engine", "torch", "--precision", "int8")
    assert value(document, "P", "accuracy") == 0.6
    # P reaches 70 % at most in int8.
    _, document = picked("--engine", "any", "--accuracy", "85")
    satisfied = {
        (entry["model"], entry["precision"]) for entry in document["networks"] if entry["status"] == "satisfies"
    }
    assert ("P", "32-true") in satisfied
    assert all(precision != "int8" for _, precision in satisfied)


def test_pick_refuses_unknown_engines_and_measuring_any(capsys: Any) -> None:
    assert main(["pick", "--engine", "onnx"]) == 2
    assert "did you mean 'onnxruntime'" in capsys.readouterr().err
    assert main(["pick", "--engine", "any", "--measure"]) == 2
    assert "--measure times one engine" in capsys.readouterr().err


# Records


def test_rows_of_this_file_are_records() -> None:
    """What these tests read is what a file could hold."""
    write_lines(Path("rows.jsonl"), [*rows(TORCH), *rows(ONNX, "onnxruntime"), *grid()])
    assert len(load_records([Path("rows.jsonl")])) == 12 + 2 * len(GRID)
