"""One row per figure: a measure that is added to a copy of the package is everywhere."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from package_copies import outputs_of_commands

from cnnbench.measures import MEASURES, figures, measure_of
from cnnbench.report.columns import COLUMNS

ROOT = Path(__file__).parent.parent
FUNCTION = """
from cnnbench.measures import Subject, Taken


def take_dead_weights(subject: Subject) -> Taken:
    weights = [parameter for parameter in subject.model.parameters() if parameter.dim() > 1]
    return Taken({"dead_weights": sum(int((weight == 0).sum()) for weight in weights)})
"""
ROW = """
DEAD = Measure(
    "dead",
    (Figure("dead_weights", "count", "Dead weights", "Weights that are exactly zero.", "less", "exact"),),
    default=False,
    take="cnnbench.dead:take_dead_weights",
)
"""


def test_every_figure_has_one_row() -> None:
    keys = [figure.key for measure in MEASURES.values() for figure in measure.figures]
    assert len(set(keys)) == len(keys) == len(figures())
    assert all(measure.name == name for name, measure in MEASURES.items())
    assert measure_of("macs") == "complexity"
    titles = [column.title for column in COLUMNS]
    assert all(figure.title in titles for figure in figures().values() if figure.title)
    assert all(figure.meaning for figure in figures().values() if figure.title)


def test_a_new_measure_is_everywhere(tmp_path: Path) -> None:
    """A function and a row: it is in --measures, table, CSV, page, compare and W&B."""
    shutil.copytree(ROOT / "cnnbench", tmp_path / "cnnbench")
    (tmp_path / "cnnbench" / "dead.py").write_text(FUNCTION)
    table = tmp_path / "cnnbench" / "measures.py"
    source = table.read_text()
    assert source.count("\nMEASURES = ") == 1
    source = source.replace("\nMEASURES = ", f"{ROW}\nMEASURES = ").replace("(COMPLEXITY, ", "(COMPLEXITY, DEAD, ")
    table.write_text(source)

    options = ["--models=LeNet5", "--data=Synthetic", "--measures=complexity,dead", "--epochs=1", "--device=cpu"]
    printed, compared = outputs_of_commands(
        tmp_path, ["bench", *options, "--out=run", "--wandb=offline"], ["compare", "run", "run", "--json"]
    )
    assert "Dead weights" in printed
    (row,) = csv.DictReader(Path("run/results.csv").read_text().splitlines())
    assert row["dead_weights"] == "0"
    page = Path("run/report.html").read_text()
    assert page.count("Dead weights") >= 2  # the heading and the legend
    assert "Weights that are exactly zero." in page
    changes = json.loads(compared)["changes"]
    assert [change["verdict"] for change in changes if change["figure"] == "dead_weights"] == ["equal"]
    (logged,) = Path("run/wandb").glob("offline-run-*/files/media/table/comparison*.json")
    content = json.loads(logged.read_text())
    assert content["data"][0][content["columns"].index("dead_weights")] == 0
