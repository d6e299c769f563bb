"""What the documents say is what the project does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from package_copies import outputs_of_commands

import cnnbench.data
from cnnbench.cli import COMMANDS, TRAINING, main
from cnnbench.data import all_data, get_data
from cnnbench.explain.options import TOOLS
from cnnbench.record import load_records
from cnnbench.report.findings import front_sentences, speed_sentences
from cnnbench.report.outputs import Report, to_markdown
from cnnbench.report.seeds import Seeds

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
NAMES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "experiments/LOG.md", "experiments/README.md")
DOCUMENTS = PAGES | {name: (ROOT / name).read_text() for name in NAMES}
RESULTS = ROOT / "experiments" / "results" / "2026-11-29-cpu.jsonl"


def test_table_is_that_of_the_committed_records() -> None:
    records = load_records([RESULTS])
    assert len(records) == 8
    table = [line for line in to_markdown(Report(records)).splitlines() if line.startswith("|")]
    assert len(table) == 10
    assert "\n".join(table) in README


def test_sentences_on_the_zoo_are_those_of_the_committed_records() -> None:
    records = load_records([RESULTS.with_name("2026-11-23-cpu-zoo.jsonl")])
    assert len(records) == 34
    log = (ROOT / "experiments" / "LOG.md").read_text()
    for sentence in speed_sentences(records):
        assert sentence in PAGES["docs/networks.md"]
        assert sentence in log
    assert " ".join(s for cost in ("macs", "latency_ms_median") for s in front_sentences(records, cost)) in log


def test_the_table_of_references_is_that_of_the_shipped_records() -> None:
    log = (ROOT / "experiments" / "LOG.md").read_text()
    records = load_records([ROOT / "cnnbench" / "references" / "records.jsonl"])
    assert records
    for record in records:
        measures, training = record.measures, record.training
        low, high = (100 * measures[f"test_accuracy_{end}"] for end in ("low", "high"))
        recipe = "Muon" if record.config["recipe"] == "muon" else "AdamW"
        assert training["recipe"].startswith(recipe)
        start = f"| {record.model} | {record.data['label']} | {recipe} | {training['epochs']:.0f} | "
        end = f"{100 * measures['test_accuracy']:.2f} | {low:.1f} to {high:.1f} | {training['seconds'] / 60:.1f} |"
        assert start + end in log
        # What trained it is in the repository, without what the machine had changed.
        assert not record.environment["dirty"]
        assert not record.data["synthetic"]


def test_tables_of_studies_are_those_of_the_committed_records() -> None:
    log = (ROOT / "experiments" / "LOG.md").read_text()
    files = sorted((RESULTS.parent / "studies").glob("*.jsonl"))
    recipes = sorted(RESULTS.parent.glob("*speednet*.jsonl"))
    assert files
    assert recipes
    for file in files + recipes:
        _, *rows = Seeds(load_records([file])).tables[0].rows
        for row in rows:
            # The log was written before the last column, the interval, was there.
            assert "| " + " | ".join(row[:-1]) + " |" in log, file.name


def test_data_set_example_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fashion.py").write_text(_example("ImageDataModule"))
    monkeypatch.setattr(cnnbench.data, "__path__", [*cnnbench.data.__path__, str(tmp_path)])
    assert "FashionMNIST" in all_data()
    data = get_data("FashionMNIST")(batch_size=7)
    assert (data.image_size, data.num_classes, len(data.class_names), data.label) == (32, 10, 10, "Fashion-MNIST")


@pytest.mark.parametrize("call", ["count(nn", "load_torchvision(", "load_records"])
def test_example_holds(call: str) -> None:
    exec(compile(_example(call), "document", "exec"), {})


def test_readme_is_short_and_its_first_example_is_lightning_s() -> None:
    assert len(README.splitlines()) <= 200
    assert "lightning.Trainer(max_epochs=1).fit(ResNet18(), CIFAR10())" in _example("Trainer")


def _example(contains: str) -> str:
    """Return the first block of Python in the README, then in the pages, that has these words."""
    text = "\n".join([README, *PAGES.values()])
    return next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if contains in block)


def test_a_new_file_is_a_new_network_everywhere(tmp_path: Path) -> None:
    """The example of an architecture, one file in a copy of the package, in every command; and as a folder."""
    shutil.copytree(ROOT / "cnnbench", tmp_path / "cnnbench")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    models = tmp_path / "cnnbench" / "models"
    (models / "tinynet.py").write_text(_example("class TinyNet"))
    (models / "smaller").mkdir()
    (models / "smaller" / "__init__.py").write_text(
        "from cnnbench.models.smaller.net import SmallerNet as SmallerNet\n"
    )
    (models / "smaller" / "net.py").write_text(_example("class TinyNet").replace("class TinyNet", "class SmallerNet"))

    small = ["--data=Synthetic", '--data_options={"train_images": 60, "test_images": 20}', "--device=cpu"]
    quick = ["--epochs=1", "--batch_size=8", "--speed_batch_size=4", "--out=run"]
    data = ["--data=Synthetic", "--data.train_images=60", "--data.test_images=20"]
    fit = ["--model=TinyNet", "--model.width=16", *data, "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    outputs = outputs_of_commands(
        tmp_path,
        ["list", "--json"],
        ["count", "TinyNet(width=16)", "--json"],
        ["bench", "--models=TinyNet(width=16)", *small, *quick, "--json"],
        ["fit", *fit],
    )
    listed = json.loads(outputs[0])["models"]
    assert (listed["TinyNet"]["year"], listed["TinyNet"]["depth"]) == (2026, 8)
    assert listed["SmallerNet"] == listed["TinyNet"] | {"module": "smaller"}
    counted = json.loads(outputs[1])["networks"][0]
    cell = json.loads(outputs[2])["cells"][0]
    assert (cell["status"], cell["params"], cell["macs"]) == ("ok", counted["params"], counted["macs"])
    assert cell["latency_ms_median"] > 0
    assert len(list(Path("results/runs/TinyNet-Synthetic").glob("*/checkpoints/best.ckpt"))) == 1
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    tests = [str(ROOT / "tests" / name) for name in ("test_zoo.py", "test_cli.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "TinyNet", *tests],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 7


@pytest.mark.usefixtures("few_rounds", "without_pictures")
def test_a_network_of_the_user_s_works_in_every_command(capsys: pytest.CaptureFixture) -> None:
    Path("mynets.py").write_text(_example("def small("))
    assert main(["count", "mynets:small", "mynets:small(width=64)", "--json"]) == 0
    params = [network["params"] for network in json.loads(capsys.readouterr().out)["networks"]]
    assert params == [w * 3 * 9 + w + 16 * w * 10 + 10 for w in (32, 64)]
    assert main(["speed", "mynets:small", "--image_size=32", "--batch_size=2", "--rounds=1", "--device=cpu"]) == 0
    small = ["--data=Synthetic", '--data_options={"train_images": 60, "test_images": 20, "in_channels": 1}']
    quick = ["--epochs=1", "--batch_size=8", "--speed_batch_size=4", "--out=run", "--device=cpu"]
    assert main(["bench", "--models=mynets:small", *small, *quick]) == 0
    options = ["--data.train_images=60", "--data.test_images=20", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    assert main(["fit", "--model=mynets:small", "--data=Synthetic", *options]) == 0


def test_citation_names_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (cnnbench.__version__, "Apache-2.0")


def test_documents_name_only_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name, text in (
        DOCUMENTS
        | {f"experiments/{name}": (ROOT / "experiments" / name).read_text() for name in ("LOG.md", "README.md")}
    ).items():
        for target in re.findall(r"\bmake ([a-z][a-z-]*)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target} in {name}"
        for command in re.findall(r"^cnnbench ([a-z]+)", text, re.MULTILINE):
            assert command in {*COMMANDS, *TRAINING, "explain"}, f"cnnbench {command} in {name}"
        for tool in re.findall(r"cnnbench explain ([a-z-]+)", text):
            assert tool in {*TOOLS, "gallery"}, f"cnnbench explain {tool} in {name}"
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert ((ROOT / name).parent / path).exists(), f"{path} in {name}"
        for path in re.findall(r"experiments/[\w/]+\.yaml", text):
            assert (ROOT / path).is_file(), f"{path} in {name}"


def test_the_commands_of_the_documents_have_their_options(capsys: pytest.CaptureFixture) -> None:
    """Every option that a document gives to one of our own commands is in the help of that command."""
    for name, text in DOCUMENTS.items():
        for line in re.findall(r"^cnnbench (?!fit|test|validate|predict)[^\n]*", text, re.MULTILINE):
            words = line.split(" #")[0].split()
            command = words[1:3] if words[1] == "explain" else words[1:2]
            with pytest.raises(SystemExit):
                main([*command, "--help"])
            shown = capsys.readouterr().out
            for option in re.findall(r"(--[a-z_]+)", " ".join(words)):
                assert re.search(rf"{option}\b", shown), f"{option} of '{line}' in {name}"
