"""Checkpoints: whole or not there, damage found, words for a run resolved, and trainings that are stopped."""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import signal
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import lightning as L
import pytest
import torch
import yaml

import cnnbench
from cnnbench import SimpleCNN, Synthetic
from cnnbench.checkpoints import CheckpointFile, open_checkpoint
from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.training import callbacks as train
from cnnbench.training.classifier import ImageClassifier

SMALL = ["--data=Synthetic", "--data.train_images=60", "--data.test_images=20", "--data.batch_size=10"]
CPU = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.precision=32-true"]
FIT = ["fit", "--model=LeNet5", *SMALL, *CPU]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a training of one epoch, which the tests of this file copy."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["cnnbench"])
        assert main([*FIT, "--trainer.max_epochs=1"]) == 0
    return folder / "results"


@pytest.fixture
def checkpoint(trained: Path) -> Path:
    """A checkpoint of a finished training of one epoch."""
    shutil.copytree(trained, "results")
    return next(Path("results/runs").glob("*/*/checkpoints/last.ckpt"))


def _last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_checkpoint_is_written_beside_its_place_and_not_through_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "there-is-no-such-folder"))
    CheckpointFile().save_checkpoint({"state_dict": {}, "hyper_parameters": {}}, Path("a/last.ckpt"))
    assert [path.name for path in Path("a").iterdir()] == ["last.ckpt"]
    assert open_checkpoint(Path("a/last.ckpt")) == {"state_dict": {}, "hyper_parameters": {}}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed"),
                                   KeyboardInterrupt(), MemoryError()])  # fmt: skip
def test_a_save_that_fails_leaves_the_good_checkpoint(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("last.ckpt")
    CheckpointFile().save_checkpoint({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": {}}, path)
    before = path.read_bytes()

    def fail(_: Any, file: Any) -> None:
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises((OSError, KeyboardInterrupt, MemoryError)):
        CheckpointFile().save_checkpoint({}, path)
    assert path.read_bytes() == before
    assert [file.name for file in Path().iterdir()] == ["last.ckpt"]


def test_every_run_writes_and_reads_checkpoints_so(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Path] = []
    whole = CheckpointFile.save_checkpoint

    def save(self: CheckpointFile, content: dict, path: Any, **options: Any) -> None:
        saved.append(Path(path))
        whole(self, content, path, **options)

    monkeypatch.setattr(CheckpointFile, "save_checkpoint", save)
    assert main(["fit", "--ckpt_path", str(checkpoint), "--trainer.max_epochs=2", *CPU]) == 0
    assert "last.ckpt" in {path.name for path in saved}


def _damaged(make: str, path: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    damages = {
        "empty": b"", "text": b"hello", "half": content[:middle], "start": content[100:], "tail": content[:-30],
        "zeros": content[:middle] + bytes(2000) + content[middle + 2000 :], "twice": content + content[:middle],
        "flip": content[:middle] + bytes([content[middle] ^ 8]) + content[middle + 1 :],
        "html": b"<html>404</html>" * 100, "gzip": b"\x1f\x8b" + content, "nul": bytes(5000),
    }  # fmt: skip
    path.write_bytes(damages[make])


DAMAGES = ["empty", "text", "half", "start", "tail", "zeros", "flip", "html", "gzip", "nul"]


# The commands read a checkpoint by the same code. So each damage is tried on one of them, in turn, and `make test-slow`
# tries it on all.
@pytest.mark.parametrize("share", [1, pytest.param(4, marks=pytest.mark.slow)], ids=["in turn", "each"])
def test_a_damaged_checkpoint_is_one_line_in_every_command(
    share: int, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    copy = checkpoint.with_name("copy.ckpt")
    commands = ["test", "fit", "validate", "predict"]
    for number, make in enumerate(DAMAGES):
        shutil.copy(checkpoint, copy)
        _damaged(make, copy)
        runs = sorted(Path("results/runs").glob("*/*"))
        turn = number % len(commands)
        for command in (commands + commands)[turn : turn + share]:
            capsys.readouterr()
            assert main([command, "--ckpt_path", str(copy), *CPU]) == 2
            captured = capsys.readouterr()
            assert len(captured.err.strip().splitlines()) == 1
            assert "copy.ckpt' is" in captured.err
        assert main(["explain", "filters", "--ckpt_path", str(copy)]) == 2
        assert sorted(Path("results/runs").glob("*/*")) == runs


STORED: dict[str, Callable[[dict], Any]] = {
    "no weights": lambda s: s.pop("state_dict"),
    "weights are a list": lambda s: s.update(state_dict=[1]),
    "weights are text": lambda s: s["state_dict"].update({next(iter(s["state_dict"])): "a"}),
    "one weight missing": lambda s: s["state_dict"].pop(next(iter(s["state_dict"]))),
    "one weight more": lambda s: s["state_dict"].update(more=torch.ones(1)),
    "another shape": lambda s: s["state_dict"].update({next(iter(s["state_dict"])): torch.ones(3)}),
    "no loops": lambda s: s.pop("loops"),
    "no optimizer": lambda s: s.pop("optimizer_states"),
    "an optimizer of another network": lambda s: s.update(optimizer_states=[{"state": {}, "param_groups": []}]),
    "no version": lambda s: s.pop("pytorch-lightning_version"),
    "a strange version": lambda s: s.update({"pytorch-lightning_version": "newest"}),
    "a strange epoch": lambda s: s.update(epoch="first"),
    "strange callbacks": lambda s: s.update(callbacks=[1]),
    "strange schedulers": lambda s: s.update(lr_schedulers="none"),
    "strange data": lambda s: s.update(Synthetic=[1]),
}


@pytest.mark.parametrize("change", STORED.values(), ids=STORED.keys())
def test_a_checkpoint_of_strange_parts_is_one_line_or_used_rightly(
    change: Callable[[dict], Any], checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    stored = torch.load(checkpoint, weights_only=True)
    change(stored)
    strange = checkpoint.with_name("strange.ckpt")
    torch.save(stored, strange)
    for command in (["fit", "--trainer.max_epochs=2"], ["test"]):
        capsys.readouterr()
        code = main([*command, "--ckpt_path", str(strange), *CPU])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert code in (0, 2)
        if code == 2:
            assert captured.err.strip().splitlines()[-1].startswith("cnnbench: ")
            assert "strange.ckpt" in captured.err


@pytest.mark.parametrize("word", ["last", "best", "hpc"])
def test_a_word_for_a_checkpoint_names_a_run_or_is_refused(word: str, capsys: pytest.CaptureFixture) -> None:
    for command in (["test", "--model=LeNet5", *SMALL], [*FIT, "--trainer.max_epochs=1"], ["test"]):
        assert main([*command, f"--ckpt_path={word}"]) == 2
        assert f"--ckpt_path {word}: there is no run with such a checkpoint" in _last_line(capsys)
        assert not Path("results").exists()
    assert main([*FIT, "--trainer.max_epochs=1"]) == 0
    capsys.readouterr()
    expected = 2 if word == "hpc" else 0
    assert main(["test", "--model=LeNet5", *SMALL, "--ckpt_path", word, *CPU]) == expected
    assert word == "hpc" or "checkpoint: results/runs/LeNet5-Synthetic/" in capsys.readouterr().err
    assert main(["test", "--model=SimpleCNN", *SMALL, "--ckpt_path", word, *CPU]) == 2  # of another network


CHANGES = [
    (
        "--model.learning_rate=0.5",
        "learning_rate is 0.5 (--model.learning_rate), but the training of the checkpoint has",
    ),
    ("--model.init_args.label_smoothing=0.3", "label_smoothing is 0.3"),
    ("--model.schedule=cosine", "schedule is cosine"),
    ("--model.steps_per_call=2", "steps_per_call is 2"),
    ('--model.init_args={"warmup": 0.5}', "warmup is 0.5 (--model.init_args)"),
    ("--model.class_path=ResNet20", "the checkpoint is of LeNet5, not of ResNet20; leave out --model"),
    ("--model.optimizer=AdamW", "the optimizer AdamW has learning rate 0.001, but the training of the checkpoint has"),
    ("--model.optimizer=SGD", "the optimizer SGD has dampening and no amsgrad, so it is not that of the checkpoint"),
]


@pytest.mark.parametrize(("option", "message"), CHANGES, ids=[option for option, _ in CHANGES])
def test_a_training_that_goes_on_refuses_what_would_have_no_effect(
    option: str, message: str, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    runs = sorted(Path("results/runs").glob("*/*"))
    assert main(["fit", f"--ckpt_path={checkpoint}", "--trainer.max_epochs=2", option, *CPU]) == 2
    assert message in _last_line(capsys)
    assert sorted(Path("results/runs").glob("*/*")) == runs


def test_a_training_goes_on_with_what_may_change(checkpoint: Path) -> None:
    changed = ["--model.test_views=mirror", "--model.channels_last=false", "--model.learning_rate=null"]
    assert main(["fit", f"--ckpt_path={checkpoint}", "--trainer.max_epochs=2", *changed, "--out=on", *CPU]) == 0
    (config,) = Path("on").glob("*/*/config.yaml")
    arguments = yaml.safe_load(config.read_text())["model"]["init_args"]
    assert (arguments["test_views"], arguments["channels_last"]) == ("mirror", False)
    stored = torch.load(next(Path("on").rglob("last.ckpt")), weights_only=True)
    assert stored["global_step"] == 2 * 5
    assert stored["hyper_parameters"]["test_views"] == "mirror"


def test_settings_of_an_optimizer_and_its_schedule_are_those_of_the_checkpoint(capsys: pytest.CaptureFixture) -> None:
    sgd = ["--model.optimizer=SGD", "--model.optimizer.lr=0.01", "--model.optimizer.momentum=0.9"]
    steps = ["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=2", "--model.lr_scheduler.gamma=0.5"]
    assert main([*FIT, *sgd, *steps, "--trainer.max_epochs=1"]) == 0
    (last,) = Path("results").rglob("last.ckpt")
    go_on = ["fit", f"--ckpt_path={last}", "--trainer.max_epochs=2", *CPU]
    for option, message in (
        ("--model.optimizer.lr=0.02", "learning rate 0.02, but the training of the checkpoint has 0.01"),
        ("--model.optimizer.momentum=0", "momentum 0.0, but the training of the checkpoint has 0.9"),
        ("--model.lr_scheduler.gamma=0.1", "the scheduler StepLR has gamma 0.1, but the training of the checkpoint"),
    ):
        assert main([*go_on, option]) == 2
        assert message in _last_line(capsys)
    assert main(go_on) == 0


def test_a_test_uses_what_is_set_beside_its_checkpoint(checkpoint: Path) -> None:
    """The logits are averaged over an image and its mirror image, so the probabilities differ."""
    tables = {}
    for name, options in {"one": [], "mirror": ["--model.test_views=mirror"]}.items():
        assert main(["predict", f"--ckpt_path={checkpoint}", *options, f"--out={name}", *CPU]) == 0
        (path,) = Path(name).rglob("predictions.csv")
        tables[name] = path.read_text()
    assert tables["one"] != tables["mirror"]
    Path("x.yaml").write_text("model: {class_path: LeNet5, init_args: {test_views: mirror}}\ndata: Synthetic\n")
    data = [option for option in SMALL if option != "--data=Synthetic"]
    assert main(["predict", "--config=x.yaml", *data, f"--ckpt_path={checkpoint}", "--out=file", *CPU]) == 0
    (path,) = Path("file").rglob("predictions.csv")
    assert path.read_text() == tables["mirror"]


def test_a_configuration_beside_a_checkpoint_is_of_its_network(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    Path("other.yaml").write_text("model: SimpleCNN\ndata: Synthetic\n")
    Path("same.yaml").write_text("model: {class_path: cnnbench.models.LeNet5}\ndata: {class_path: Synthetic}\n")
    for word in ("last", str(checkpoint)):
        assert main(["test", "--config=other.yaml", *SMALL, f"--ckpt_path={word}", *CPU]) == 2
        message = "there is no run" if word == "last" else "of LeNet5, not of SimpleCNN; leave out config 'other.yaml'"
        assert message in _last_line(capsys)
    assert main(["test", "--config=same.yaml", *SMALL[1:], "--ckpt_path=last", *CPU]) == 0
    assert f"checkpoint: {checkpoint}" in capsys.readouterr().err


def test_a_checkpoint_that_a_configuration_names_is_verified_too(
    checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    _damaged("flip", checkpoint)
    Path("x.yaml").write_text(f"model: LeNet5\ndata: Synthetic\nckpt_path: {checkpoint}\n")
    assert main(["test", "--config=x.yaml", *SMALL[1:], *CPU]) == 2
    assert f"checkpoint '{checkpoint}' is damaged" in _last_line(capsys)


def test_a_configuration_behind_a_checkpoint_does_not_clear_it(checkpoint: Path) -> None:
    """A stored configuration says ``ckpt_path: null``, with which a training would start anew."""
    config = ["--config", str(checkpoint.parent.parent / "config.yaml"), "--trainer.max_epochs=2", "--out=on"]
    assert main(["fit", f"--ckpt_path={checkpoint}", *config, *CPU]) == 0
    (log,) = Path("on").rglob("metrics.csv")
    assert [row["epoch"] for row in csv.DictReader(log.open()) if row["val/accuracy"]] == ["1"]


def test_a_word_for_a_checkpoint_finds_networks_from_outside_the_zoo(capsys: pytest.CaptureFixture) -> None:
    network = ["--model=torchvision:mobilenet_v3_small"]
    assert main(["fit", *network, *SMALL, *CPU, "--trainer.max_steps=1"]) == 0
    assert main(["test", *network, *SMALL, "--ckpt_path=last", *CPU]) == 0
    assert "checkpoint: results/runs/torchvision_mobilenet_v3_small-Synthetic/" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_stopped_training_keeps_its_step_and_the_printed_command_goes_on(
    name: str, code: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*FIT, "--trainer.max_epochs=2", "--out=whole"]) == 0
    with monkeypatch.context() as patch:
        whole = train.Stage.on_train_batch_end

        def stop_in_the_second_epoch(self: train.Stage, trainer: L.Trainer, *rest: Any) -> None:
            if trainer.global_step == 8:
                os.kill(os.getpid(), getattr(signal, name))
            whole(self, trainer, *rest)

        patch.setattr(train.Stage, "on_train_batch_end", stop_in_the_second_epoch)
        assert main([*FIT, "--trainer.max_epochs=2", "--out=stop it"]) == code
    line = _last_line(capsys)
    assert line.startswith(f"cnnbench: stopped by {name}; go on with: cnnbench fit --ckpt_path 'stop it/")
    arguments = shlex.split(line.partition("go on with: cnnbench ")[2])
    assert torch.load(arguments[2], weights_only=True)["global_step"] == 8
    assert main([*arguments, "--out=resumed", *CPU]) == 0
    weights = [
        torch.load(next(Path(out).glob("*/*/checkpoints/last.ckpt")), weights_only=True)["state_dict"]
        for out in ("whole", "resumed")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_second_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def two(self: train.Stage, trainer: L.Trainer, *rest: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr(train.Stage, "on_train_batch_end", two)
    assert main([*FIT, "--trainer.max_epochs=1"]) == 143


def test_finished_and_moved_runs_say_what_they_are(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    assert main(["fit", "--ckpt_path", str(checkpoint), *CPU]) == 0
    text = capsys.readouterr().err
    assert "nothing was left to train" in text
    assert "steps in" not in text
    shutil.move("results", "moved here")
    moved = next(Path("moved here").glob("runs/*/*/checkpoints/last.ckpt"))
    assert main(["fit", "--ckpt_path", str(moved), "--trainer.max_epochs=2", *CPU]) == 0
    printed = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("test it:"))
    arguments = shlex.split(printed.partition("cnnbench ")[2])
    assert Path(arguments[2]).exists()
    assert main([*arguments, *CPU]) == 0


def test_a_checkpoint_in_a_folder_more_finds_its_configuration(capsys: pytest.CaptureFixture) -> None:
    name = "--checkpoint.filename={epoch}-{val/accuracy:.2f}"
    assert main([*FIT, "--trainer.max_epochs=1", name, "--checkpoint.auto_insert_metric_name=true"]) == 0
    printed = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("test it:"))
    arguments = shlex.split(printed.partition("cnnbench ")[2])
    assert Path(arguments[2]).parent.name != "checkpoints"
    assert main([*arguments, *CPU]) == 0


OPTIONS = [
    "--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.barebones=true",
    "--trainer.fast_dev_run=true", "--trainer.limit_train_batches=0.5", "--trainer.enable_model_summary=true",
]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_callbacks_and_loggers_are_added_where_the_trainer_allows_them(
    option: str, capsys: pytest.CaptureFixture
) -> None:
    bar = [o for o in CPU if "bar" not in o] if "barebones" in option else CPU
    assert main(["fit", "--model=LeNet5", *SMALL, *bar, "--trainer.max_epochs=1", option]) == 0
    text = capsys.readouterr().err
    assert "Traceback" not in text
    if "fast_dev_run" in option:
        assert "a full training" not in text


def test_refusals_name_the_option(capsys: pytest.CaptureFixture) -> None:
    cases = {
        "--trainer.limit_train_batches=0.01": "limit_train_batches",
        "--data.sizes=[32, 40]": "data.sizes 40: LeNet5 does not take images of 40x40",
        "--model.learning_rate=None": "null",
    }
    for option, message in cases.items():
        assert main([*FIT, "--trainer.max_epochs=1", option]) == 2
        line = _last_line(capsys)
        assert message in line
        assert line.startswith("cnnbench: ")


def test_weights_that_are_stored_compressed_are_not_read() -> None:
    with zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(UserError, match="compressed parts, which torch never writes"):
        open_checkpoint(Path("bomb.ckpt"))


# Checkpoints that are elsewhere, or that another program wrote


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_checkpoint_is_fetched_from_an_address(
    scheme: str, checkpoint: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = f"{scheme}://{tmp_path}/away/last.ckpt"
    system, name = fsspec.core.url_to_fs(address)
    system.makedirs(str(Path(name).parent), exist_ok=True)
    system.put_file(str(checkpoint), name)
    fetches = []
    whole = type(system).get_file
    monkeypatch.setattr(type(system), "get_file", lambda *a, **k: fetches.append(a[1]) or whole(*a, **k))
    config = f"--config={checkpoint.parent.parent / 'config.yaml'}"
    assert main(["fit", config, f"--ckpt_path={address}", "--trainer.max_epochs=2", "--out=on", *CPU]) == 0
    assert torch.load(next(Path("on").rglob("last.ckpt")), weights_only=True)["global_step"] == 2 * 5
    assert fetches == [name]  # once: the network and the weights are of the same file
    assert not list(Path(tempfile.gettempdir()).glob("cnnbench-*/fetched.ckpt"))
    assert main(["test", "--model=LeNet5", *SMALL, "--ckpt_path", address, *CPU]) == 0
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[name]) for name, value in cnnbench.load(address).state_dict().items())
    capsys.readouterr()
    assert main(["test", f"--ckpt_path={address}", *CPU]) == 2
    assert f"no config.yaml beside checkpoint '{address}'" in _last_line(capsys)
    _damaged("flip", checkpoint)
    system.put_file(str(checkpoint), name)
    assert main(["test", "--model=LeNet5", *SMALL, "--ckpt_path", address, *CPU]) == 2
    assert f"checkpoint '{address}' is damaged" in _last_line(capsys)
    Path("x.yaml").write_text(f"model: LeNet5\ndata: Synthetic\nckpt_path: {address}\n")
    assert main(["test", "--config=x.yaml", *CPU]) == 2
    assert f"type --ckpt_path {address}, since it is fetched" in _last_line(capsys)


@pytest.mark.parametrize("address", ["file:///nowhere/x.ckpt", "memory://nowhere/x.ckpt", "nosuch://a/b.ckpt"])
def test_an_address_that_cannot_be_read_is_one_line(address: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["test", "--model=LeNet5", *SMALL, "--ckpt_path", address, *CPU]) == 2
    assert f"checkpoint '{address}' cannot be fetched: " in _last_line(capsys)
    assert not Path("results").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--trainer.logger.version=5"],
        ["--checkpoint.dirpath=kept here"],
        ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.monitor=train/loss"],
    ],
)
def test_printed_commands_work_wherever_logs_and_checkpoints_are(
    options: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*FIT, "--trainer.max_epochs=1", *options]) == 0
    printed = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("test it:"))
    assert main([*shlex.split(printed.partition("cnnbench ")[2]), *CPU]) == 0
    assert ("--config" in printed) == ("kept here" in str(options))
    (run,) = [path for path in Path("results/runs").glob("*/*") if (path / "checkpoints").exists()]
    assert (run / "checkpoints" / "last.ckpt").exists()
    assert not list(Path().glob("logs/**/*.ckpt"))


def _of_a_trainer(network: L.LightningModule) -> Path:
    """A checkpoint that Lightning's Trainer wrote in a Python program, after two steps."""
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(network, Synthetic(train_images=60, test_images=20, batch_size=10))
    trainer.save_checkpoint("own.ckpt")
    return Path("own.ckpt")


def test_every_command_reads_a_checkpoint_of_a_trainer(capsys: pytest.CaptureFixture) -> None:
    network = SimpleCNN(head="gap")
    path = _of_a_trainer(network)
    loaded = cnnbench.load(path)
    assert type(loaded) is SimpleCNN
    assert not loaded.training
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert main(["explain", "filters", "--ckpt_path", str(path), "--out=f"]) == 0
    assert main(["test", "--model=SimpleCNN", *SMALL, f"--ckpt_path={path}", *CPU]) == 0
    capsys.readouterr()
    assert main(["test", "--model=LeNet5", *SMALL, f"--ckpt_path={path}", *CPU]) == 2
    assert "the checkpoint is of SimpleCNN, not of LeNet5" in _last_line(capsys)
    with pytest.raises(UserError, match=r"cnnbench.load\(PATH\)"):
        ImageClassifier.load_from_checkpoint(path)
    assert SimpleCNN.load_from_checkpoint(path, map_location="cpu").hparams.head == "gap"


def test_a_network_from_outside_the_package_is_loaded_with_trust(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("ownnets.py").write_text("from cnnbench import LeNet5\nclass Mine(LeNet5):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import ownnets

    path = _of_a_trainer(ownnets.Mine())
    with pytest.raises(UserError, match=r"names the network .ownnets\.Mine.*add --trust ownnets"):
        cnnbench.load(path)
    assert type(cnnbench.load(path, trust=["ownnets"])) is ownnets.Mine
