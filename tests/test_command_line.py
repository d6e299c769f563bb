"""The command line in records: what the user typed, and no secret."""

from __future__ import annotations

import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from conftest import make_record

from cnnbench.cli import COMMANDS, _module_of, main
from cnnbench.command_line import MOST_CHARACTERS, command_line, typed, without_secrets
from cnnbench.explain.options import TOOLS
from cnnbench.record import load_records, write_record
from cnnbench.report.card import to_card
from cnnbench.report.trained import find_trained

SECRET = "s3cr3t-VALUE"


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.logger.init_args.api_key", SECRET],
        [f"--trainer.logger.init_args.api_key={SECRET}"],
        [f"--data.token={SECRET},{{x"],
        ["--data.hf_token", SECRET],
        [f"--data.Password={SECRET}"],
        ["--trainer.logger", f"{{class_path: CometLogger, init_args: {{api_key: {SECRET}, project: p}}}}"],
        ["--trainer.logger", f'{{"init_args": {{"api_key": "{SECRET} with blanks"}}}}'],
        [f"--launcher_options={{address: ray://user:{SECRET}@host:10001}}"],
        ["--launcher_options", f"{{slurm_additional_parameters: {{auth-token: {SECRET}}}}}"],
        ["--data", f"mysets:Photos(token='{SECRET}')"],
        ["--data", f"mysets:Photos(url='https://host/x?access_token={SECRET}&y=1')"],
        [f"--data_options={{client_secret: '{SECRET}'}}"],
    ],
)
def test_a_secret_is_left_out(words: list[str]) -> None:
    kept = without_secrets(["fit", *words, "--model", "ResNet18"])
    assert SECRET not in " ".join(kept)
    assert "***" in " ".join(kept)
    assert (kept[0], kept[-2:]) == ("fit", ["--model", "ResNet18"])
    assert len(kept) == len(words) + 3


def test_the_value_of_a_variable_with_a_key_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("SOME_TOKEN", "ab")  # too short to be told from other words
    assert without_secrets(["bench", f"--wandb_notes=my {SECRET}", "--models=abc"]) == [
        *("bench", "--wandb_notes=my ***", "--models=abc")
    ]


def test_the_working_folder_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("MYSQL_PWD", SECRET)
    words = ["report", f"{tmp_path}/run", f"--wandb_notes={SECRET}"]
    assert without_secrets(words) == [*words[:2], "--wandb_notes=***"]
    monkeypatch.setenv("PWD", SECRET)
    monkeypatch.delenv("MYSQL_PWD")
    assert without_secrets(words) == [*words[:2], "--wandb_notes=***"]


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "--models", "LeNet5,ResNet18", "--data", "CIFAR10", "--seeds", "0,1,2", "--keep_weights"],
        ["fit", "--model=timm:vit(num_tokens=4)", "--model.keys=3", "--data.author", "me", "--trainer.max_epochs", "3"],
        ["search", "--space", "{model.learning_rate: {low: 1e-4, high: 1e-1, log: true}}"],
        ["bench", "--data", "folder:my photos", "--data_options", "{monkey: 1}", "--until=98%"],
        ["report", "https://example.org/a@b"],
    ],
)
def test_other_words_are_kept_as_they_were_typed(words: list[str]) -> None:
    with typed(words):
        found = command_line()
    assert found is not None
    assert shlex.split(found) == ["cnnbench", *words]
    assert command_line() is None


def test_no_option_of_this_package_is_taken_for_a_secret() -> None:
    """An option that was one would show up here, and its value would be left out of every record."""
    names = set()
    for command in COMMANDS:
        options = getattr(_module_of(command), "Options", None)
        if is_dataclass(options):
            names |= {field.name for field in fields(options)}
    for tool in TOOLS.values():
        names |= {field.name for field in fields(tool.options)}
    assert len(names) > 50
    words = [f"--{name}=value" for name in sorted(names)]
    assert without_secrets(words) == words


def test_a_very_long_command_line_is_shortened() -> None:
    with typed(["count", *(f"mynets:net{n}" for n in range(5000))]):
        found = command_line()
    assert found is not None
    assert MOST_CHARACTERS < len(found) < MOST_CHARACTERS + 10


@pytest.mark.usefixtures("few_rounds", "without_pictures")
def test_the_command_is_in_record_page_and_card() -> None:
    small = ["--data=Synthetic", '--data_options={"train_images": 60, "test_images": 20, "in_channels": 1}']
    words = ["bench", "--models=LeNet5", *small, "--epochs=1", "--batch_size=8", "--device=cpu", "--out=my run"]
    assert main([*words, "--measures=quality"]) == 0
    (record,) = load_records([Path("my run")])
    assert shlex.split(record.environment["command_line"]) == ["cnnbench", *words, "--measures=quality"]
    for name in ("report.md", "report.html"):
        assert "--out=my run" in (Path("my run") / name).read_text(), name
    (network,) = find_trained(Path("my run"))
    assert "- **Command**: cnnbench bench --models=LeNet5" in to_card(network)
    # A card of a record from before is as it was.
    Path("old").mkdir()
    write_record(Path("old/r.json"), make_record())
    (network,) = find_trained(Path("old"))
    assert "**Command**" not in to_card(network)
