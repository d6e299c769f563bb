"""Reports of many records: pictures are drawn one at a time and once, and no step compares each record with each."""

from __future__ import annotations

import gc
import io
import random
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from campaigns import reports
from conftest import FULL_TRAINING, make_record
from matplotlib.figure import Figure
from PIL import Image

from cnnbench.console import make_console
from cnnbench.plots.drawing import MOST_ENTRIES, MOST_NAMES, MOST_PANELS, Name, panels, write_names
from cnnbench.record import Record, load_records, write_lines
from cnnbench.report import findings, pictures
from cnnbench.report.charts import accuracy_against, latency_against_macs, panels_drawn
from cnnbench.report.contenders import contenders, rivals_by_label
from cnnbench.report.findings import MOST_LISTED, front_sentences
from cnnbench.report.outputs import Report, print_table, to_html, to_markdown, write_report
from cnnbench.report.pareto import Spread, inversion
from cnnbench.report.pictures import MOST_MATRICES, Drawn, FigureSheet, Shown, draw_pictures
from cnnbench.report.seeds import Seeds
from cnnbench.report.settings import Setting

COUNT = 300


def _networks(count: int = COUNT, labels: int = 1, **changes: Any) -> list[Record]:
    """Records of as many networks, the dearer the more accurate: all are on the front."""
    made = []
    for index in range(count):
        base = make_record(model=f"{chr(97 + index % 26) * 3}{chr(97 + index // 26)}net", **changes)
        measures = {**base.measures, "macs": 1000 + index, "latency_ms_median": 1 + index / 100}
        measures["test_accuracy"] = 0.1 + 0.5 * index / count
        data = {**base.data, "label": f"MNIST {index % labels}"}
        made.append(Record(**{**base.__dict__, "measures": measures, "data": data}))
    return made


def test_pictures_are_drawn_once_and_not_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved: Counter[str] = Counter()
    living: weakref.WeakSet[Figure] = weakref.WeakSet()
    counts = []
    start, savefig, make = Figure.__init__, Figure.savefig, pictures._make

    def count_starts(figure: Figure, *arguments: Any, **options: Any) -> None:
        start(figure, *arguments, **options)
        living.add(figure)

    def count_saves(figure: Figure, out: Any, **options: Any) -> None:
        saved[options["format"]] += 1
        savefig(figure, out, **options)

    def count_living(*arguments: Any) -> Any:
        gc.collect()
        counts.append(len(living))
        return make(*arguments)

    monkeypatch.setattr(Figure, "__init__", count_starts)
    monkeypatch.setattr(Figure, "savefig", count_saves)
    monkeypatch.setattr(pictures, "_make", count_living)
    monkeypatch.setattr(pictures, "MOST_MATRICES", 2)
    files = write_report(_networks(6), tmp_path)
    assert len(files) == 4 + 4 + 6
    assert saved == {"png": 4}  # the PNG files of matrices are painted without a figure of their own
    assert counts == [0] * len(counts)
    # The pictures of reference accuracies, of confidences and of engines have nothing to show, and no file.
    assert len(counts) == 7 + 6


def test_the_page_has_a_limit_of_matrices_and_the_folder_has_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pictures, "MOST_MATRICES", 3)
    records = _networks(100)
    drawn = draw_pictures(records, tmp_path / "figures")
    assert len(list((tmp_path / "figures").glob("confusion_*.png"))) == drawn.all_matrices == 100
    page, markdown = to_html(Report(records), drawn), to_markdown(Report(records), drawn)
    sentence = "The page has the first 3 of 100 confusion matrices; the other 97 are in the folder figures/."
    assert sentence in page
    assert sentence in markdown
    assert page.count('<table class="matrix">') == markdown.count("![confusion") == 3


def _of_labels(*sizes: int) -> list[Record]:
    """Records of data sets with these numbers of networks."""
    made = []
    for place, size in enumerate(sizes):
        for record in _networks(size):
            made.append(Record(**{**record.__dict__, "data": {**record.data, "label": f"Set {place}"}}))
    return made


@pytest.mark.parametrize("sizes", [(20, 2, 8), (5, 5, 5), (1, 30), (40,), (1,) * 20, (3, 9)])
def test_rows_are_shared_evenly_among_data_sets(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "MOST_ROWS", 12)
    labels = [f"Set {place}" for place, size in enumerate(sizes) for _ in range(size)]
    most = findings.most_per_label(labels)
    # By brute force: the largest share with which no more rows are there than allowed; each data set has one at least.
    shares = [share for share in range(1, 13) if sum(min(share, size) for size in sizes) <= 12]
    assert most == max(shares, default=1)
    kept = findings.first_of_each(labels, str)
    assert Counter(kept) == {f"Set {place}": min(most, size) for place, size in enumerate(sizes)}


def test_many_records_have_rows_of_each_data_set_and_the_page_says_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(findings, "MOST_ROWS", 12)
    monkeypatch.setattr(pictures, "MOST_MATRICES", 3)
    monkeypatch.setattr(pictures, "comparisons", lambda records: [])
    records = _of_labels(20, 2, 8)
    write_report(records, tmp_path)
    assert len(list((tmp_path / "figures").glob("confusion_*.png"))) == 12
    page, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    print_table(Report(records), make_console())
    table = " ".join(capsys.readouterr().out.split())
    for text in (page, markdown, table):
        assert "The table has 12 of 30 records, at most 5 of each data set; results.csv has all." in text
    rows = [record for record in records if f"\n| {record.model} |" in markdown]
    assert rows == [*records[:5], *records[20:22], *records[22:27]]
    assert page.count("<tr id=") == 12
    sentence = (
        "The page has the first 3 of 12 confusion matrices; the other 9 are in the folder figures/. "
        "Those of 18 further records are not drawn, because these records have no row in the table; a report of fewer "
        "records draws them."
    )
    assert sentence in page
    assert sentence in markdown
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 30


def test_means_over_seeds_of_many_networks_have_rows_of_each_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "MOST_ROWS", 12)
    twice = [*_of_labels(20, 2), *(Record(**{**r.__dict__, "seed": 1}) for r in _of_labels(20, 2))]
    table = Seeds(twice).tables[0]
    assert Counter(row[1] for row in table.rows[1:]) == {"Set 0": 10, "Set 1": 2}
    assert table.sentences[-1] == "10 more networks are in results.csv."


def test_a_limit_that_is_not_reached_is_not_spoken_of() -> None:
    assert Drawn(all_matrices=0).more_matrices == ""
    shown = [Shown("confusion_a", "data:", "", ())]
    assert Drawn(matrices=shown, all_matrices=1).more_matrices == ""
    assert "first 1 of 2,000 confusion" in Drawn(matrices=shown, all_matrices=2000).more_matrices
    assert "further" not in Drawn(matrices=shown, all_matrices=2000).more_matrices
    assert Report(_networks(60)).left_out == ""
    assert findings.MOST_ROWS >= reports.RECORDS
    assert 12 < MOST_MATRICES < 100


def test_the_matrix_of_each_record_is_its_own(tmp_path: Path) -> None:
    records = [make_record(seed=s, confusion_matrix=[[4 - s, s, 0], [0, 3, 0], [0, 0, 3]]) for s in range(4)]
    again = [make_record(seed=s, confusion_matrix=[[4 - s, s, 0], [0, 3, 0], [0, 0, 3]]) for s in range(3, -1, -1)]
    write_report(records, tmp_path / "a")
    write_report(again, tmp_path / "b")
    contents = []
    for seed in range(4):
        name = f"figures/confusion_LeNet5-MNIST-seed{seed}.png"
        contents.append((tmp_path / "a" / name).read_bytes())
        assert (tmp_path / "b" / name).read_bytes() == contents[-1]
    assert len(set(contents)) == 4


def _settings(count: int) -> list[Record]:
    base = make_record()
    return [make_record(config={**base.config, "batch_size": 1 + i}) for i in range(count)]


def _seeds(count: int) -> list[Record]:
    return [*_networks(count // 2), *_networks(count // 2, seed=1)]


@pytest.mark.parametrize("make", [contenders, Seeds, lambda r: rivals_by_label(contenders(r)), Report])
@pytest.mark.parametrize("records_of", [_networks, _settings, _seeds])
def test_work_grows_with_the_records_and_not_with_their_square(
    make: Any, records_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[str]()
    original = Setting.value

    def counted(row: Setting, record: Record) -> Any:
        calls[row.name] += 1
        return original(row, record)

    monkeypatch.setattr(Setting, "value", counted)
    counts = []
    for count in (50, 200):
        calls.clear()
        make(records_of(count))
        counts.append(calls.total())
    assert counts[1] <= 4 * counts[0]


def test_the_order_of_records_reads_each_label_a_fixed_number_of_times() -> None:
    reads = Counter[str]()

    class Facts(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            reads[key] += 1
            return super().__getitem__(key)

    records = [Record(**{**r.__dict__, "data": Facts(r.data)}) for r in _networks(200, labels=20)]
    reads.clear()
    ordered = Report(records).records
    assert reads["label"] <= 2 * len(records)
    labels = [r.data["label"] for r in ordered]
    assert labels == [f"MNIST {i}" for i in range(20) for _ in range(10)]


def test_names_and_legend_of_many_networks_are_limited() -> None:
    for figure in (accuracy_against(_networks(), "macs"), latency_against_macs(_networks())):
        assert figure is not None
        (ax,), (legend,) = figure.axes, figure.legends
        assert len(ax.texts) <= MOST_NAMES + 1
        entries = [text.get_text() for text in legend.get_texts()]
        assert len(entries) == MOST_ENTRIES + 1
        assert entries[-1] == f"and {COUNT - MOST_ENTRIES} more"


def test_sentences_name_the_first_and_count_the_rest() -> None:
    (sentence,) = front_sentences(_networks(training=FULL_TRAINING), "macs")
    assert sentence.endswith(f" and {COUNT - MOST_LISTED} more.")
    assert sentence.count(", ") == MOST_LISTED
    failed = [make_record(model=f"N{i}", status="error", reason="x", measures={}, training={}) for i in range(COUNT)]
    warnings = Report([Record(**{**r.__dict__, "confusion_matrix": None}) for r in failed]).warnings
    assert len(warnings) == MOST_LISTED + 1
    assert warnings[-1] == f"{COUNT - MOST_LISTED} more cells failed; see results.csv."


def test_facts_that_all_differ_are_counted() -> None:
    base = make_record()
    records = [make_record(environment={**base.environment, "os": f"Linux {i}"}) for i in range(COUNT)]
    facts = dict(Report(records).facts)
    assert facts["Machine"].endswith(f"; and {COUNT - MOST_LISTED} more")


@pytest.mark.parametrize(("labels", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 2, 3), (20, 7, 3)])
def test_panels_stand_in_rows(labels: int, rows: int, columns: int) -> None:
    figure, axes = panels([f"Data {i}" for i in range(labels)], many=True, height=6.0)
    assert len(axes) == len(figure.axes) == labels
    spec = next(iter(axes.values())).get_subplotspec()
    assert spec is not None
    assert spec.get_gridspec().get_geometry() == (rows, columns)
    assert figure.get_size_inches()[0] <= 21


def test_more_data_sets_than_panels_are_said() -> None:
    records = _networks(60, labels=MOST_PANELS + 6, confusion_matrix=None)
    sentence = f"The picture has the first {MOST_PANELS} of {MOST_PANELS + 6} data sets; the table has all."
    for picture in pictures.comparisons(records):
        # These networks have neither references nor predictions, and one engine.
        if picture.name not in ("reference_latency", "reliability", "engines"):
            assert sentence in picture.caption()
        assert not any("The picture has" in text for text in _captions(_networks(60, labels=MOST_PANELS)))
    assert len(panels_drawn(contenders(records))) == MOST_PANELS
    assert "MNIST 0 and MNIST 1 and" in Report(records).lead


def _captions(records: list[Record]) -> list[str]:
    return [text for picture in pictures.comparisons(records) for text in picture.caption()]


def test_a_tall_picture_has_no_more_pixels_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_PIXELS", 100_000)
    for size in ((4, 3), (2, 20)):
        width, height = Image.open(io.BytesIO(FigureSheet(Figure(figsize=size)).png())).size
        assert 90_000 < width * height < 102_000


def test_written_names_are_those_of_comparing_box_with_box() -> None:
    generator = random.Random(3)
    ax = Figure(figsize=(4, 3)).subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.figure.draw_without_rendering()
    names = [Name(generator.random(), generator.random(), f"Net{i}", needed=False) for i in range(60)]
    write_names(ax, names, size=8)
    ax.figure.draw_without_rendering()
    renderer = ax.figure._get_renderer()  # type: ignore[attr-defined]
    boxes = [text.get_window_extent(renderer) for text in ax.texts]
    assert 3 < len(boxes) < 60
    assert not any(boxes[i].overlaps(boxes[j]) for i in range(len(boxes)) for j in range(i))


def test_the_inversion_of_numpy_is_that_of_all_pairs() -> None:
    generator = random.Random(5)
    for _ in range(100):
        count = generator.randrange(1, 15)
        costs = [float(generator.randrange(1, 30)) for _ in range(count)]
        times = []
        for _ in range(count):
            low = generator.uniform(0.5, 2)
            times.append(Spread(low, low * 1.1, low * generator.uniform(1.1, 1.5)))
        pairs = [
            (costs[j] / costs[i] * times[i].median / times[j].median, i, j)
            for i in range(count)
            for j in range(count)
            if costs[j] > 1.05 * costs[i] and times[i].low > 1.05 * times[j].high
        ]
        expected = max(pairs, key=lambda pair: pair[0])[1:] if pairs else None
        assert inversion(costs, times) == expected


@pytest.mark.parametrize("name", list(reports.MIXTURES))
def test_the_mixtures_of_the_race_are_records_that_are_believed(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reports, "RECORDS", 60)
    results = Path(reports.__file__).parents[2] / "experiments" / "results"
    originals = load_records([results / "2026-11-23-cpu.jsonl"])
    write_lines(tmp_path / "mixture.jsonl", reports.MIXTURES[name](originals, random.Random(0)))
    assert len(load_records([tmp_path / "mixture.jsonl"])) >= 60
