"""Records of ``fit`` and ``test``: what they say of the training and of the test, and who reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cnnbench.benchmark.training import weights_facts
from cnnbench.calibration import calibration_error, mean_loss
from cnnbench.cli import main
from cnnbench.errors import UserError
from cnnbench.models import all_models
from cnnbench.network import get_network, make_classifier, name_of
from cnnbench.predictions import Predictions, read_predictions, write_predictions
from cnnbench.record import Record, load_records
from cnnbench.training.outcomes import scores

# 54 training images and 6 for validation make 5 steps of 10 images per epoch.
DATA = ["--data=Synthetic", "--data.train_images=60", "--data.test_images=20", "--data.batch_size=10"]
CPU = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.precision=32-true"]
FIT = ["fit", "--model=LeNet5", *DATA, *CPU]


def _run() -> Path:
    """Return the newest run folder."""
    return sorted(Path("results/runs").glob("*/*"))[-1]


def _fit(*options: str) -> Record:
    """Train and return the record of the run."""
    assert main([*FIT, "--trainer.max_epochs=2", *options]) == 0
    (record,) = load_records([_run()])
    return record


def test_a_training_that_diverges_is_a_record_too(capsys: pytest.CaptureFixture) -> None:
    options = ["--model.optimizer=SGD", "--model.optimizer.lr=1e12", "--trainer.max_epochs=2"]
    assert main([*FIT, *options]) == 2
    assert "loss" in capsys.readouterr().err.splitlines()[-1]
    (record,) = load_records([_run()])
    training = record.training
    assert (training["diverged"], training["converged"], training["optimizer"]) == (
        True,
        False,
        "SGD(lr=1000000000000.0)",
    )
    # No checkpoint has the weights that were tested.
    assert "weights" not in training
    assert np.array(record.confusion_matrix).sum() == 20


def test_fit_writes_a_record_of_training_and_test() -> None:
    record = _fit("--seed_everything=7")
    assert (record.key, record.seed, record.status) == ("LeNet5-Synthetic-seed7", 7, "ok")
    training = record.training
    assert {key: training[key] for key in ("steps", "images", "diverged")} == {
        "steps": 10,
        "images": 100,
        "diverged": False,
    }
    assert training["epochs"] == pytest.approx(100 / 54)
    assert training["peak_lr"] == all_models()["LeNet5"].peak_lr
    assert record.config["epochs"] == 2
    assert record.measures["params"] == sum(p.numel() for p in all_models()["LeNet5"]().parameters())
    matrix = np.array(record.confusion_matrix)
    assert record.measures["test_accuracy"] == matrix.trace() / 20
    predictions = read_predictions(_run() / "predictions" / f"{record.key}.npz", record.confusion_matrix)
    assert len(predictions.true) == 20
    # The figures of the test are those of the stored logits, up to their rounding.
    right = predictions.true == predictions.predicted
    assert record.measures["ece"] == pytest.approx(calibration_error(predictions.confidence, right))
    assert record.measures["nll"] == pytest.approx(mean_loss(predictions.logits, predictions.true), abs=1e-3)
    # The weights that were tested are those of the last step.
    assert training["weights"] == "checkpoints/last.ckpt"
    assert weights_facts(_run() / training["weights"], _run())["weights_sha256"] == training["weights_sha256"]


def test_the_record_of_test_knows_the_training_only_if_the_weights_are_the_same(
    capsys: pytest.CaptureFixture,
) -> None:
    record = _fit()
    run = _run()
    last = run / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(last), "--json", *CPU]) == 0
    printed = capsys.readouterr()
    tested = json.loads(printed.out)
    assert tested["confusion_matrix"] == record.confusion_matrix
    assert tested["training"] == record.training
    assert tested["seed"] == record.seed
    low, high = record.measures["test_accuracy_low"], record.measures["test_accuracy_high"]
    assert f"(95 % interval {low:.2%} to {high:.2%}), 20 images" in printed.err
    assert load_records([_run()])[0].config["command"] == "test"
    stored = torch.load(last, weights_only=True)
    next(iter(stored["state_dict"].values())).add_(1)
    torch.save(stored, last)
    assert main(["test", "--ckpt_path", str(last), *CPU]) == 0
    assert load_records([_run()])[0].training == {}


def test_the_best_weights_are_tested_if_asked_for() -> None:
    record = _fit("--test=best")
    assert record.config["tested"] == "best"
    assert record.training["weights"] == "checkpoints/best.ckpt"
    assert main(["test", "--ckpt_path", str(_run() / "checkpoints" / "best.ckpt"), *CPU]) == 0
    assert load_records([_run()])[0].confusion_matrix == record.confusion_matrix


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.enable_checkpointing=false"],
        ["--data.val_fraction=0"],
        ["--trainer.limit_val_batches=0"],
        ["--checkpoint.save_top_k=0"],
        ["--trainer.check_val_every_n_epoch=2"],
    ],
)
def test_without_a_best_checkpoint_it_cannot_be_tested(options: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main([*FIT, "--trainer.max_epochs=1", "--test=best", *options]) == 2
    assert "--test best" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not Path("results").exists()


def test_without_its_test_a_training_is_a_record_too() -> None:
    record = _fit("--test=none")
    assert record.confusion_matrix is None
    assert "test_accuracy" not in record.measures
    assert "tested" not in record.config
    assert record.training["steps"] == 10
    assert not (_run() / "predictions").exists()


def test_a_record_names_its_seed(capsys: pytest.CaptureFixture) -> None:
    assert main([*FIT, "--trainer.max_epochs=1", "--seed_everything=false"]) == 0
    assert "no record: the training has no seed" in capsys.readouterr().err
    assert not (_run() / "records").exists()


def test_a_test_of_a_part_leaves_a_record_of_the_training_alone(capsys: pytest.CaptureFixture) -> None:
    record = _fit("--data.eval_batch_size=5", "--trainer.limit_test_batches=2")
    assert "the record has no test: the test saw 10 of 20 images" in capsys.readouterr().err
    assert (record.training["steps"], record.confusion_matrix) == (10, None)
    assert "tested" not in record.config
    assert not (_run() / "predictions").exists()


def test_images_are_counted_where_steps_differ_in_size() -> None:
    # 5 batches make 3 steps per epoch: of 2, 2 and 1 batches.
    record = _fit("--trainer.accumulate_grad_batches=2")
    assert (record.training["steps"], record.training["images"]) == (6, 100)
    assert record.config["images_per_step"] == 20


def test_the_peak_rate_of_an_optimizer_of_the_users_is_the_largest_in_use() -> None:
    record = _fit(
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0.1",
        "--model.lr_scheduler=OneCycleLR",
        "--model.lr_scheduler.max_lr=0.05",
        "--model.lr_scheduler.total_steps=10",
        "--model.lr_scheduler.pct_start=0.4",
    )
    # The rate rises over the first 0.4 * 10 - 1 = 3 steps to its peak.
    assert record.training["peak_lr"] == pytest.approx(0.05)


def test_a_resumed_training_is_one_record() -> None:
    whole = _fit("--trainer.max_epochs=3", "--trainer.log_every_n_steps=1")
    # The schedule depends on the number of epochs, so the training stops after one of three.
    assert main([*FIT, "--trainer.max_epochs=3", "--trainer.max_steps=5", "--trainer.log_every_n_steps=1"]) == 0
    assert main(["fit", "--ckpt_path", str(_run() / "checkpoints" / "last.ckpt"), "--trainer.max_steps=-1", *CPU]) == 0
    (resumed,) = load_records([_run()])
    assert resumed.training["images"] == whole.training["images"] == 150
    steps = [point["step"] for point in resumed.training["curve"]]
    assert steps == [point["step"] for point in whole.training["curve"]]


def test_report_and_compare_read_run_folders_of_fit(capsys: pytest.CaptureFixture, without_pictures: None) -> None:
    _fit("--seed_everything=0")
    first = _run()
    shutil.copytree(first, "a")
    _fit("--seed_everything=1")
    shutil.copytree(_run(), "b")
    assert main(["report", "a", "b", "--out", "page"]) == 0
    assert "LeNet5" in Path("page/report.md").read_text()
    capsys.readouterr()
    assert main(["compare", "a", "b", "--all"]) in (0, 1)
    assert "LeNet5" in capsys.readouterr().out


# Predictions of single images


@pytest.fixture
def predictions() -> tuple[Predictions, list[list[int]]]:
    """Five images of three classes, and their confusion matrix."""
    true, predicted = np.array([0, 1, 2, 2, 1]), np.array([0, 2, 2, 2, 1])
    return Predictions(true, predicted), [[1, 0, 0], [0, 1, 1], [0, 0, 2]]


def test_predictions_are_read_as_they_were_written(predictions: tuple[Predictions, list[list[int]]]) -> None:
    values, matrix = predictions
    path = Path("p/cell.npz")
    write_predictions(path, values, 3)
    read = read_predictions(path, matrix)
    assert read.true.tolist() == values.true.tolist()
    assert read.predicted.tolist() == values.predicted.tolist()


def test_predictions_of_another_record_or_damaged_ones_are_refused(
    predictions: tuple[Predictions, list[list[int]]],
) -> None:
    values, matrix = predictions
    path = Path("cell.npz")
    write_predictions(path, values, 3)
    with pytest.raises(UserError, match="do not count up to the confusion matrix"):
        read_predictions(path, [[1, 0, 0], [0, 2, 0], [0, 0, 2]])
    with pytest.raises(UserError, match="not the classes of images, 0 to 1"):
        read_predictions(path, [[1, 0], [0, 1]])
    content = path.read_bytes()
    # Twenty bytes behind its name, a part of the archive has the compressed array.
    place = content.index(b"true.npy") + 40
    flipped = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
    for damaged in (b"", b"text", content[: len(content) // 2], flipped):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot be read|do not count"):
            read_predictions(path, matrix)


def test_predictions_never_run_code_and_never_fill_the_memory() -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (Path("owned"),)

    path = Path("cell.npz")
    np.savez(path, true=np.array([Evil()], dtype=object), predicted=np.array([0]))
    with pytest.raises(UserError, match="cannot be read"):
        read_predictions(path, [[1]])
    assert not Path("owned").exists()
    np.savez_compressed(path, true=np.zeros(70_000_000, np.uint8), predicted=np.zeros(1, np.uint8))
    with pytest.raises(UserError, match="more than"):
        read_predictions(path, [[1]])


def _scored(values: Predictions, seed: int = 0) -> Predictions:
    """Add the confidence and the logits of a network with these predictions."""
    logits = torch.randn(len(values.true), 3, generator=torch.Generator().manual_seed(seed))
    predicted = torch.from_numpy(values.predicted)
    logits[torch.arange(len(predicted)), predicted] += 5
    confidence, kept = scores(logits, predicted, True)
    assert confidence.numpy() == pytest.approx(logits.softmax(1).max(1).values.numpy())
    return values._replace(confidence=confidence.numpy(), logits=kept.numpy())


def test_confidence_and_logits_are_read_as_they_were_written(predictions: tuple[Predictions, list[list[int]]]) -> None:
    values, matrix = predictions
    scored = _scored(values)
    path = Path("cell.npz")
    write_predictions(path, scored, 3)
    read = read_predictions(path, matrix)
    assert read.confidence.tolist() == scored.confidence.tolist()
    assert read.logits.tolist() == scored.logits.tolist()
    assert read_predictions(path, matrix, scores=False).confidence is None


def test_logits_without_bounds_keep_their_probabilities() -> None:
    logits = torch.tensor([[9e4, -9e4, -torch.inf], [3.0, 3.0, -1.0]])
    confidence, kept = scores(logits, logits.argmax(1), True)
    assert kept.isfinite().all()
    expected = torch.tensor([1.0, logits[1].softmax(0).max()])
    assert confidence.numpy() == pytest.approx(expected.numpy())
    assert kept.float().softmax(1).max(1).values.numpy() == pytest.approx(expected.numpy(), abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": None}, "logits without a confidence"),
        ({"confidence": np.full(4, 0.9, np.float32), "logits": None}, r"confidence is \(4,\)"),
        ({"confidence": np.full(5, np.nan, np.float32), "logits": None}, "not the largest of 3 probabilities"),
        ({"confidence": np.full(5, 0.2, np.float32), "logits": None}, "not the largest of 3 probabilities"),
        ({"confidence": np.full(5, 0.5, np.float32)}, "contradict each other"),
        ({"logits": np.zeros((5, 2), np.float16)}, r"logits are \(5, 2\)"),
        ({"logits": np.full((5, 3), np.nan, np.float16)}, "largest logit"),
        ({"logits": np.float16([[0, -9, -9]] * 5)}, "not that of its predicted class"),
        ({"logits": np.float16([[0, 1, 0]] * 5)}, "largest logit of an image is not 0"),
    ],
)
def test_scores_that_contradict_the_classes_are_refused(
    predictions: tuple[Predictions, list[list[int]]], changes: dict, message: str
) -> None:
    values, matrix = predictions
    write_predictions(Path("cell.npz"), _scored(values)._replace(**changes), 3)
    with pytest.raises(UserError, match=message):
        read_predictions(Path("cell.npz"), matrix)


# Names of networks


NAMES = (
    *("LeNet5", "ResNet18(form=imagenet)", "MobileNetV1(width_multiplier=0.5)"),
    *("torchvision:resnet18", "torchvision:googlenet(aux_logits=False)"),
)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_network_builds_it_again(name: str) -> None:
    model = make_classifier(name, 10, 3, 32)
    assert name_of(model) == name
    again = get_network(name_of(model), 3, 32, 10).build()
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())


def test_the_record_of_a_test_says_over_which_views_it_averaged() -> None:
    record = _fit()
    last = _run() / record.training["weights"]
    assert main(["test", "--ckpt_path", str(last), "--model.test_views=mirror", *CPU]) == 0
    (tested,) = load_records([_run()])
    assert (record.config["test_views"], tested.config["test_views"]) == ("one", "mirror")
    assert tested.training["recipe"] == f"{record.training['recipe']}, tested with test-time augmentation (mirror)"
    assert tested.training["steps"] == record.training["steps"]
