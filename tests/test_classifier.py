"""Training: the recipe, budgets, metrics; and that a new file is a new network."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from cnnbench.classifier import ImageClassifier, TimeBudget, lr_factor
from cnnbench.data import get_data
from cnnbench.errors import UserError
from cnnbench.models import all_models, get_model

MODELS = sorted(all_models())


def _small(name: str, **options: int) -> ImageClassifier:
    torch.manual_seed(0)
    return get_model(name)(**options)


def test_names_are_sorted_by_letters_and_numbers() -> None:
    names = list(all_models())
    assert [n for n in names if n.startswith("ResNet")][:4] == ["ResNet18", "ResNet20", "ResNet32", "ResNet34"]
    assert names[0] == "AlexNet"
    assert names[-1] == "VGG19"


def test_unknown_model_has_a_hint() -> None:
    with pytest.raises(UserError, match=r"unknown model 'resnet19'; did you mean 'ResNet18'\? valid: AlexNet"):
        get_model("resnet19")


def test_recipe_rises_and_falls() -> None:
    assert lr_factor(0) == pytest.approx(0.1)
    assert lr_factor(0.15) == pytest.approx(1)
    assert lr_factor(0.575) == pytest.approx(0.5)
    assert lr_factor(1) == 0
    assert lr_factor(1.2) == 0


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="num_classes 0"):
        get_model("LeNet5")(num_classes=0)
    with pytest.raises(UserError, match="without optimizer"):
        get_model("LeNet5")(lr_scheduler=lambda optimizer: None)
    with pytest.raises(UserError, match="budget -1"):
        TimeBudget(-1)


def _trainer(**options: object) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,  # type: ignore[arg-type]
    )


def test_time_budget_counts_training_but_not_validation() -> None:
    now = 0.0

    def clock() -> float:
        return now

    class Tick(L.Callback):
        """A batch takes one second, a validation a hundred."""

        def on_train_batch_end(self, *_: object) -> None:
            nonlocal now
            now += 1

        def on_validation_batch_end(self, *_: object) -> None:
            nonlocal now
            now += 100

    budget = TimeBudget(10, clock)
    data = get_data("Synthetic")(in_channels=1, train_images=60, test_images=10, batch_size=9)  # 6 steps an epoch
    trainer = _trainer(max_epochs=-1, callbacks=[budget, Tick()])
    model = _small("LeNet5", in_channels=1)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 10
    assert budget.used_s == 10
    assert now == 110  # one validation, after the complete epoch only
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.2 * model.peak_lr


def test_steps_drive_the_schedule_without_a_budget() -> None:
    data = get_data("Synthetic")(in_channels=1, train_images=200, test_images=10, batch_size=9)
    trainer = _trainer(max_epochs=1)
    model = _small("LeNet5", in_channels=1)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 20
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_confusion_counts_are_those_of_the_predictions() -> None:
    data = get_data("Synthetic")(in_channels=1, train_images=20, test_images=50, eval_batch_size=7)
    model = _small("LeNet5", in_channels=1)
    trainer = _trainer()
    logged = trainer.test(model, datamodule=data, verbose=False)[0]
    test = data.load()[1]
    with torch.no_grad():
        predicted = model.eval()(torch.cat([images for images, _ in data.test_dataloader()])).argmax(1)
    expected = [[0] * 10 for _ in range(10)]
    for true, guess in zip(test.labels.tolist(), predicted.tolist(), strict=True):
        expected[true][guess] += 1
    assert model.test_confusion_counts() == expected
    right = sum(expected[i][i] for i in range(10))
    assert logged["test/accuracy"] == pytest.approx(right / 50)
    probabilities = torch.cat(trainer.predict(model, datamodule=data))  # type: ignore[arg-type]
    assert torch.equal(probabilities.argmax(1), predicted)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(50))


def test_training_learns_the_synthetic_set() -> None:
    L.seed_everything(0, verbose=False)
    data = get_data("Synthetic")(in_channels=1, train_images=3000, test_images=500, batch_size=32)
    model = get_model("LeNet5")(in_channels=1)
    trainer = _trainer(max_epochs=2)
    trainer.fit(model, datamodule=data)
    assert trainer.test(model, datamodule=data, verbose=False)[0]["test/accuracy"] > 0.9
