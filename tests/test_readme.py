"""What the documents say is what the project does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cnnbench.data
from cnnbench.bench.report import Report, to_markdown
from cnnbench.cli import COMMANDS, TRAINING
from cnnbench.data import all_data, get_data
from cnnbench.record import load_records

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "experiments" / "results" / "2026-11-22-cpu.jsonl"


def test_table_is_that_of_the_committed_records() -> None:
    records = load_records([RESULTS])
    assert len(records) == 8
    table = [line for line in to_markdown(Report(records)).splitlines() if line.startswith("|")]
    assert len(table) == 10
    assert "\n".join(table) in README


def test_data_set_example_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "ImageDataModule" in block)
    (tmp_path / "fashion.py").write_text(code)
    monkeypatch.setattr(cnnbench.data, "__path__", [*cnnbench.data.__path__, str(tmp_path)])
    assert "FashionMNIST" in all_data()
    data = get_data("FashionMNIST")(batch_size=7)
    assert (data.image_size, data.num_classes, len(data.class_names), data.label) == (32, 10, 10, "Fashion-MNIST")


def test_counting_example_holds() -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "complexity(" in block)
    exec(compile(code, "README.md", "exec"), {})


def test_documents_name_only_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in ("README.md", "ARCHITECTURE.md", "experiments/README.md", "docs/counting.md"):
        text = (ROOT / name).read_text()
        for target in re.findall(r"\bmake ([a-z][a-z-]*)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target} in {name}"
        for command in re.findall(r"^cnnbench ([a-z]+)", text, re.MULTILINE):
            assert command in {*COMMANDS, *TRAINING}, f"cnnbench {command} in {name}"
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert ((ROOT / name).parent / path).exists(), f"{path} in {name}"
        for path in re.findall(r"experiments/[\w/]+\.yaml", text):
            assert (ROOT / path).is_file(), f"{path} in {name}"
