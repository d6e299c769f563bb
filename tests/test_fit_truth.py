"""Records of ``fit`` tell the truth: their weights, their seed and their recipe are those of the training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_record

from cnnbench.benchmark.training import weights_facts
from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.record import Record, load_records, write_record
from cnnbench.report.contenders import contenders
from cnnbench.report.provenance import warnings
from cnnbench.training.classifier import ImageClassifier

# 54 training images and 6 for validation make 5 steps of 10 images per epoch.
DATA = ["--data=Synthetic", "--data.train_images=60", "--data.test_images=20", "--data.batch_size=10"]
CPU = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.precision=32-true"]
FIT = ["fit", "--model=LeNet5", *DATA, *CPU]
EMA = ["--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]
SWA = ["--trainer.callbacks=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=1e-2"]


def _run() -> Path:
    """Return the newest run folder."""
    return sorted(Path("results/runs").glob("*/*"))[-1]


def _fit(*options: str) -> Record:
    """Train for two epochs, unless the options say otherwise, and return the record of the run."""
    assert main([*FIT, "--trainer.max_epochs=2", *options]) == 0
    (record,) = load_records([_run()])
    return record


def _said(capsys: pytest.CaptureFixture) -> str:
    """Return what was printed on stderr since the last call."""
    return capsys.readouterr().err


def _refusal(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Run a command that is refused, and return its last line."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    return _said(capsys).strip().splitlines()[-1]


# Weights


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ([*EMA, "--test=best"], "best.ckpt"),
        ([*EMA, "--test=best", "--model.steps_per_call=3"], "best.ckpt"),
        ([*EMA, "--test=last"], "last.ckpt"),
        ([*SWA, "--test=last"], "final.ckpt"),
        ([*SWA, "--test=best"], "best.ckpt"),
    ],
    ids=["averages, best", "averages, best, several steps", "averages, last", "swa, last", "swa, best"],
)
def test_the_weights_that_a_record_names_are_those_that_were_tested(
    options: list[str], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: dict[str, torch.Tensor] = {}
    predictions = ImageClassifier.on_test_epoch_end

    def keep(self: ImageClassifier) -> None:
        tested.update({name: value.clone() for name, value in self.state_dict().items()})
        predictions(self)

    monkeypatch.setattr(ImageClassifier, "on_test_epoch_end", keep)
    record = _fit("--trainer.max_epochs=3", *options)
    path = _run() / record.training["weights"]
    assert path.name == file
    assert weights_facts(path, _run())["weights_sha256"] == record.training["weights_sha256"]
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert stored.keys() == tested.keys()
    assert all(torch.equal(value, tested[name]) for name, value in stored.items())


def test_other_weights_than_those_of_the_last_step_can_be_tested_again(capsys: pytest.CaptureFixture) -> None:
    record = _fit(*SWA, "--seed_everything=3")
    # A device is an argument of the callback, and the configuration has its name.
    assert "Unable to serialize" not in _said(capsys)
    assert "device: cpu" in (_run() / "config.yaml").read_text()
    assert "with StochasticWeightAveraging(swa_lrs=0.01)" in record.training["recipe"]
    assert main(["test", "--ckpt_path", str(_run() / "checkpoints" / "final.ckpt"), *CPU]) == 0
    (tested,) = load_records([_run()])
    assert (tested.confusion_matrix, tested.training) == (record.confusion_matrix, record.training)


# A training that goes on


def _stopped(*options: str) -> str:
    """Train two of four epochs, and return the option that goes on with it."""
    assert main([*FIT, "--trainer.max_epochs=4", "--trainer.max_steps=10", "--test=none", *options]) == 0
    return f"--ckpt_path={_run() / 'checkpoints' / 'last.ckpt'}"


ON = [*FIT, "--trainer.max_epochs=4", "--test=none"]


def test_averages_go_on_only_with_their_callback(capsys: pytest.CaptureFixture) -> None:
    path = _stopped(*EMA)
    refusal = _refusal(capsys, *ON, path)
    assert "averages its weights with EMAWeightAveraging" in refusal
    assert "--trainer.callbacks" in refusal
    refusal = _refusal(capsys, *ON, path, EMA[0], "--trainer.callbacks.decay=0.9")
    assert "EMAWeightAveraging(decay=0.5)" in refusal
    assert len(list(Path("results/runs").glob("*/*"))) == 1
    assert main([*ON, path, *EMA]) == 0


def test_stochastic_weight_averaging_goes_on_after_its_start() -> None:
    swa = [*SWA, "--trainer.callbacks.swa_epoch_start=1"]
    path = _stopped(*swa)
    assert main([*ON, path, *swa]) == 0
    assert load_records([_run()])[0].training["steps"] == 20


def test_a_training_goes_on_with_its_own_seed_data_and_options_alone(capsys: pytest.CaptureFixture) -> None:
    path = _stopped("--seed_everything=7")
    for option in (
        "--data.split_seed=3",
        "--data.train_images=40",
        "--data.batch_size=5",
        "--trainer.precision=bf16-mixed",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.gradient_clip_val=0.1",
        "--seed_everything=99",
    ):
        name, _, value = option.strip("-").partition("=")
        refusal = _refusal(capsys, *ON, path, option)
        assert name in refusal
        assert value in refusal
    assert len(list(Path("results/runs").glob("*/*"))) == 1
    # These leave images and steps as they are, and the seed is that of the checkpoint.
    assert main([*ON, path, "--data.eval_batch_size=7", "--data.data_dir=elsewhere"]) == 0
    (record,) = load_records([_run()])
    assert (record.seed, record.training["steps"]) == (7, 20)
    assert "seed_everything: 7" in (_run() / "config.yaml").read_text()


# Seeds of weights


def test_moved_weights_keep_their_seed(capsys: pytest.CaptureFixture) -> None:
    _fit("--seed_everything=3", "--trainer.max_epochs=1", "--test=none")
    shutil.move(_run() / "checkpoints" / "last.ckpt", "moved.ckpt")
    shutil.rmtree("results")
    command = ["test", "--model=LeNet5", *DATA, *CPU, "--ckpt_path=moved.ckpt"]
    assert main([*command, "--seed_everything=99"]) == 0
    assert load_records([_run()])[0].seed == 3
    stored = torch.load("moved.ckpt", weights_only=True)
    del stored["training_seed"]
    torch.save(stored, "moved.ckpt")
    shutil.rmtree("results")
    capsys.readouterr()
    assert main(command) == 0
    assert "no record: " in _said(capsys)
    assert not list(_run().glob("records/*"))


# Recipes


def _recipe(*options: str) -> str:
    """Return the words of a record on the training with these options."""
    return _fit("--trainer.max_epochs=1", "--test=none", *options).training["recipe"]


def test_a_recipe_names_what_changes_a_training() -> None:
    plain = _recipe()
    assert _recipe(*EMA) == f"{plain}, with EMAWeightAveraging(decay=0.5)"
    assert _recipe("--trainer.gradient_clip_val=0.01") == f"{plain}, gradients clipped to 0.01 (norm)"
    # Watching a training does not change it.
    assert _recipe("--trainer.callbacks=LearningRateMonitor") == plain


def test_a_recipe_names_the_scheduler_with_its_arguments() -> None:
    steps = ["--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--model.lr_scheduler=MultiStepLR"]
    words = _recipe(*steps, "--model.lr_scheduler.milestones=[1,2]")
    assert "MultiStepLR(milestones=[1, 2]) by epoch" in words


def test_different_trainings_are_not_seeds_of_one(without_pictures: None) -> None:
    folders = []
    for seed, options in enumerate(([], EMA, ["--trainer.gradient_clip_val=0.01"], ["--model.learning_rate=0.1"])):
        assert main([*FIT, "--trainer.max_epochs=1", f"--seed_everything={seed}", f"--run=r{seed}", *options]) == 0
        folders.append(f"results/runs/r{seed}")
    records = load_records(map(Path, folders))
    assert len(contenders(records)) == 4


# Folders and options without a record


def test_nothing_left_to_train_leaves_no_folder(capsys: pytest.CaptureFixture) -> None:
    _fit("--test=none")
    path = _run() / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    assert main([*FIT, "--trainer.max_epochs=2", f"--ckpt_path={path}"]) == 0
    assert "nothing was left to train" in _said(capsys)
    assert len(list(Path("results/runs").glob("*/*"))) == 1


def test_folders_without_records_are_left_out_if_others_have_some(capsys: pytest.CaptureFixture) -> None:
    record = make_record()
    write_record(Path("a/records/a.json"), record)
    Path("b").mkdir()
    assert load_records([Path("b"), Path("a")]) == [record]
    assert "folder 'b' holds no records and is left out" in _said(capsys)
    with pytest.raises(UserError, match="`cnnbench bench` or `fit`"):
        load_records([Path("b")])


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_json_is_an_option_of_test(command: str, capsys: pytest.CaptureFixture) -> None:
    assert "--json" in _refusal(capsys, command, *FIT[1:], "--json")
    assert not Path("results").exists()


FOREIGN = """
import torch
import lightning as L


class Images(L.LightningDataModule):
    num_classes, in_channels, image_size = 10, 3, 32

    def train_dataloader(self):
        images = torch.utils.data.TensorDataset(torch.zeros(8, 3, 32, 32), torch.zeros(8, dtype=torch.long))
        return torch.utils.data.DataLoader(images, batch_size=4)

    def test_dataloader(self):
        return self.train_dataloader()
"""


def test_data_of_another_kind_has_no_record(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("foreigndata.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(".")
    options = ["--model=LeNet5", "--data=foreigndata.Images", "--trust=foreigndata", *CPU, "--trainer.max_epochs=1"]
    assert "steps_per_call 4" in _refusal(capsys, "fit", *options, "--model.steps_per_call=4")
    assert "--test best" in _refusal(capsys, "fit", *options, "--test=best")
    assert not Path("results").exists()
    assert main(["fit", *options]) == 0
    assert "no test and no record" in _said(capsys)
    path = f"--ckpt_path={_run() / 'checkpoints' / 'last.ckpt'}"
    assert "--json" in _refusal(capsys, "test", *options[:-1], path, "--json")


# Reports


def test_a_report_compares_settings_only_where_they_apply() -> None:
    timed = make_record()
    untimed = {key: value for key, value in timed.measures.items() if key.startswith("test_accuracy")}
    fitted = make_record(seed=1, measures=untimed)
    fitted.config.update(speed_batch_size=None, images_per_step=16, batch_size=16)
    differ = [line for line in warnings([timed, fitted]) if "differ in" in line]
    assert not any("speed_batch_size" in line for line in differ)
    assert any("batch_size (32, 16)" in line for line in differ)
    fitted.config.update(images_per_step=64)
    assert any("images_per_step (32, 64)" in line for line in warnings([timed, fitted]))


def test_a_report_says_that_a_fit_and_a_test_are_of_the_same_weights() -> None:
    training = make_record().training | {"weights": "checkpoints/last.ckpt", "weights_sha256": "0" * 64}
    fitted, tested = make_record(training=training), make_record(training=training)
    (line,) = [line for line in warnings([fitted, tested]) if "same weights" in line]
    assert line.startswith("2 rows of LeNet5 on MNIST, seed 0")
    assert not any("same weights" in line for line in warnings([fitted]))


def test_a_share_of_less_than_one_batch_names_the_options(capsys: pytest.CaptureFixture) -> None:
    refusal = _refusal(capsys, *FIT, "--trainer.max_epochs=1", "--trainer.overfit_batches=0.1")
    assert "less than one batch" in refusal
    assert "trainer.overfit_batches" in refusal


def test_a_class_that_two_packages_have_is_asked_for_by_its_path(capsys: pytest.CaptureFixture) -> None:
    options = ["--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--model.lr_scheduler=ReduceLROnPlateau"]
    assert _refusal(capsys, *FIT, *options).endswith("lightning.pytorch.cli.ReduceLROnPlateau")
