"""Model cards: their head as the Hugging Face Hub reads it, their figures, and what hostile records can do to them."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import FULL_TRAINING, make_record
from markdown_it import MarkdownIt
from scipy import stats as scipy_stats

from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.record import Record, write_record
from cnnbench.report.card import SHORT_TAG, head, made_by, to_card, write_cards
from cnnbench.report.contenders import Contender
from cnnbench.report.trained import Trained, find_trained

SHORT = {**FULL_TRAINING, "epochs": 0.25, "steps": 1, "images": 32, "converged": False}
MATRIX = [[40, 3, 0], [1, 29, 7], [0, 0, 20]]


def _trained(record: Record, *others: Record, folder: Path | None = None) -> Trained:
    return Trained(record, Contender(record.title, (record, *others)), folder)


def _record(**changes: object) -> Record:
    data = {**make_record().data, "test_images": 100, "fingerprint": "0123456789abcdef"}
    return make_record(**{"data": data, "confusion_matrix": MATRIX, **changes})


def _run_folder(folder: Path, *records: Record, weights: bytes = b"weights") -> Path:
    """Write a run folder with a checkpoint per record."""
    for record in records:
        path = folder / "weights" / f"{record.key}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(weights + str(record.seed).encode())
        record.training["weights"] = f"weights/{path.name}"
        record.training["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "records").mkdir(exist_ok=True)
        write_record(folder / "records" / f"{record.key}.json", record)
    return folder


def _table(card: str, heading: str, number: int = 0) -> list[list[str]]:
    """Return the cells of a table below a heading, header first."""
    section = card.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = [block for block in section.split("\n\n") if block.lstrip().startswith("|")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in blocks[number].strip().splitlines()]
    return [rows[0], *rows[2:]]


def test_the_hub_reads_the_head() -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(to_card(_trained(_record())))
    assert card.data.library_name == "cnnbench"
    assert card.data.pipeline_tag == "image-classification"
    (result,) = card.data.eval_results
    assert (result.task_type, result.dataset_name, result.metric_type) == ("image-classification", "MNIST", "accuracy")
    assert result.metric_value == 0.89
    assert card.data.model_name == "LeNet5"


def test_the_hub_reads_that_a_training_was_short() -> None:
    hub = pytest.importorskip("huggingface_hub")
    short, full = (hub.ModelCard(to_card(_trained(_record(training=t)))) for t in (SHORT, FULL_TRAINING))
    assert SHORT_TAG in short.data.tags
    assert SHORT_TAG not in full.data.tags
    names = [card.data.eval_results[0].metric_name for card in (short, full)]
    assert names == [f"Test accuracy after a short training ({SHORT['epochs']:g} epochs)", "Test accuracy"]
    # Many epochs on a part of the images are no full training either.
    part = _record(training=FULL_TRAINING)
    part.data.update(full_train_images=part.data["train_images"] + 1)
    assert SHORT_TAG in head(_trained(part))["tags"]


def test_figures_have_their_intervals() -> None:
    card = to_card(_trained(_record()))
    wilson = scipy_stats.binomtest(89, 100).proportion_ci(method="wilson")
    assert _table(card, "Accuracy")[1] == [
        "test set",
        "89.00",
        f"{100 * wilson.low:.2f} to {100 * wilson.high:.2f}",
        "100",
    ]
    # by hand, from the matrix
    assert [row[:3] for row in _table(card, "What it confuses")[1:]] == [
        ["one", "two", "7"],
        ["zero", "one", "3"],
        ["one", "zero", "1"],
    ]
    for row, (hits, images, predicted) in zip(
        _table(card, "What it confuses", 1)[1:], ((40, 43, 41), (29, 37, 32), (20, 20, 27)), strict=True
    ):
        ends = scipy_stats.binomtest(hits, images).proportion_ci(method="wilson")
        assert row[1:] == [
            str(images),
            f"{100 * hits / images:.1f}",
            f"{100 * ends.low:.1f} to {100 * ends.high:.1f}",
            f"{100 * hits / predicted:.1f}",
        ]


def test_seeds_are_summed_up_by_students_interval() -> None:
    matrices = [MATRIX, [[43, 0, 0], [1, 29, 7], [0, 0, 20]], [[43, 0, 0], [0, 35, 2], [0, 0, 20]]]
    records = [_record(seed=seed, confusion_matrix=matrix) for seed, matrix in enumerate(matrices)]
    card = to_card(_trained(*records))
    accuracies = [0.89, 0.92, 0.98]
    mean, error = sum(accuracies) / 3, scipy_stats.sem(accuracies)
    low, high = scipy_stats.t.interval(0.95, 2, mean, error)
    # no accuracy is above 1
    interval = f"95 % interval, Student's t, {100 * low:.2f} to {100 * min(high, 1.0):.2f}"
    assert f"Over 3 seeds of this training the mean is {100 * mean:.2f} % ({interval})" in card
    assert "A single seed" not in card
    assert "A single seed" in to_card(_trained(records[0]))


def test_limits_are_said_first() -> None:
    data = {**_record().data, "label": "CIFAR-10 (JPEG copy)"}
    card = to_card(_trained(_record(data=data)))
    before = card.partition("## Accuracy")[0]
    assert "Not converged" in before
    assert "JPEG copy" in before
    synthetic = to_card(_trained(make_record(synthetic=True)))
    assert "SYNTHETIC data" in synthetic.partition("## Accuracy")[0]
    untested = _record(confusion_matrix=None)
    for key in ("test_accuracy", "test_accuracy_low", "test_accuracy_high"):
        untested.measures.pop(key, None)
    card = to_card(_trained(untested))
    assert "Not tested" in card
    assert "model-index" not in card
    assert "What it confuses" not in card


def test_a_run_folder_has_a_card_per_network(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = _run_folder(tmp_path / "run", _record(seed=0), _record(seed=1))
    assert main(["card", str(folder), "--json"]) == 0
    paths = [Path(path) for path in json.loads(capsys.readouterr().out)["cards"]]
    assert [path.relative_to(folder) for path in paths] == [
        Path(f"cards/LeNet5-MNIST-seed{seed}.md") for seed in (0, 1)
    ]
    card = paths[0].read_text()
    assert "Over 2 seeds of this training" in card
    assert "The checkpoint is weights/LeNet5-MNIST-seed0.ckpt in the run folder" in card


def test_a_checkpoint_is_found_by_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = _run_folder(tmp_path / "run", _record(seed=0), _record(seed=1))
    checkpoint = folder / "weights" / "LeNet5-MNIST-seed1.ckpt"
    (network,) = find_trained(checkpoint)
    assert (network.record.seed, network.weights_are_there) == (1, True)
    assert main(["card", str(checkpoint)]) == 0
    assert "with seed 1" in (folder / "MODEL.md").read_text()
    checkpoint.write_bytes(b"other weights")
    assert not find_trained(folder)[1].weights_are_there
    with pytest.raises(UserError, match=r"no record in .* describes the weights"):
        find_trained(checkpoint)
    lone = tmp_path / "lone" / "weights" / "a.ckpt"
    lone.parent.mkdir(parents=True)
    lone.write_bytes(b"x")
    with pytest.raises(UserError, match="has no record in"):
        find_trained(lone)


def test_tests_of_the_same_weights_are_one_network(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path / "run", _record())
    (record,) = [network.record for network in find_trained(folder)]
    again = replace(record, config={**record.config, "command": "test"})
    write_record(folder / "records" / "again.json", again)
    assert len(find_trained(folder)) == 1


def test_records_without_a_training_have_no_card(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", _record(training={}, confusion_matrix=None, measures={"params": 5}))
    with pytest.raises(UserError, match="has no record of a training"):
        find_trained(tmp_path / "r.json")


def test_weights_outside_the_run_folder_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    record = _record()
    record.training.update(weights="../secret", weights_sha256=hashlib.sha256(b"secret").hexdigest())
    (tmp_path / "run").mkdir()
    assert not _trained(record, folder=tmp_path / "run").weights_are_there


def test_the_command_has_the_options_of_the_record(tmp_path: Path) -> None:
    words = shlex.split(made_by(_trained(_record(seed=3))))
    assert words[:2] == ["cnnbench", "bench"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert options == {
        "--models": "LeNet5",
        "--data": "MNIST",
        "--seeds": "3",
        "--budget": "30s",
        "--batch_size": "32",
        "--precision": "32-true",
    }
    fitted = _record(config={**_record().config, "command": "fit"})
    assert made_by(_trained(fitted, folder=tmp_path)) == ""
    (tmp_path / "config.yaml").touch()
    assert made_by(_trained(fitted, folder=tmp_path)) == "cnnbench fit --config config.yaml"


HOSTILE = [
    "a: b\n---\n# x",
    "```\n# x\n```",
    "'; rm -rf / #",
    "<img src=x onerror=y>",
    "![x](http://x)",
    "\x1b[2J\u202e",
    "|a|b|",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_of_a_record_breaks_the_card(name: str, tmp_path: Path) -> None:
    data = {**_record().data, "name": name, "label": name, "class_names": [name, f"{name}1", f"{name}2"]}
    record = _record(model=name, data=data)
    record.training.update(weights=name, weights_sha256="0" * 64, recipe=name, optimizer=name)
    record.environment["device"] = name
    card = to_card(_trained(record, folder=tmp_path))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", card)
    parts = card.split("---\n", 2)
    assert yaml.safe_load(parts[1]) == head(_trained(record))
    tokens = MarkdownIt("commonmark").enable("table").parse(parts[2])
    # the headings are those of every card, and no text is HTML, a picture or a link
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == [
        *("Accuracy", "What it confuses", "Costs", "Data", "Training", "How to load it", "How it was made"),
    ]
    inline = [child.type for token in tokens for child in token.children or ()]
    assert not {"html_inline", "image", "link_open"} & set(inline)
    assert "html_block" not in {token.type for token in tokens}
    python, *shells = [token for token in tokens if token.type == "fence"]
    calls = [node for node in ast.walk(ast.parse(python.content)) if isinstance(node, ast.Call)]
    assert {call.func.id for call in calls if isinstance(call.func, ast.Name)} == {"load", "network"}
    for shell in shells:
        assert len(shell.content.splitlines()) == 1
        assert shlex.split(shell.content)[:2] in (["cnnbench", "test"], ["cnnbench", "bench"])


def test_two_records_of_one_cell_have_two_cards(tmp_path: Path) -> None:
    paths = write_cards([_trained(_record()), _trained(_record())], tmp_path)
    assert [path.name for path in paths] == ["LeNet5-MNIST-seed0.md", "LeNet5-MNIST-seed0-2.md"]
