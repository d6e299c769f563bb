"""Training: the recipe, budgets, metrics; and that a new file is a new network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, EMAWeightAveraging, ModelCheckpoint
from torch import nn

from cnnbench import hardware
from cnnbench.data import get_data
from cnnbench.errors import DivergedError, UserError
from cnnbench.models import all_models, get_model
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.clock import TimeBudget
from cnnbench.training.schedule import lr_factor

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
    assert lr_factor(0, 0.15, "linear") == pytest.approx(0.1)
    assert lr_factor(0.15, 0.15, "linear") == pytest.approx(1)
    assert lr_factor(0.575, 0.15, "linear") == pytest.approx(0.5)
    assert lr_factor(1, 0.15, "linear") == lr_factor(1.2, 0.15, "linear") == 0
    assert lr_factor(0.9, 0.15, "constant") == 1


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert lr_factor(step / 20, 0, "cosine") == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="num_classes 0"):
        get_model("LeNet5")(num_classes=0)
    with pytest.raises(UserError, match="without optimizer"):
        get_model("LeNet5")(lr_scheduler=lambda optimizer: None)
    with pytest.raises(UserError, match="budget -1"):
        TimeBudget(-1)
    with pytest.raises(UserError, match=r"unknown schedule 'step'.*valid: linear, cosine, constant"):
        get_model("LeNet5")(schedule="step")
    with pytest.raises(UserError, match=r"warmup 15 is a share"):
        get_model("LeNet5")(warmup=15)
    with pytest.raises(UserError, match="exclude each other"):
        get_model("LeNet5")(optimizer=torch.optim.SGD, lr_scheduler=lambda optimizer: None, schedule="cosine")


def test_schedule_works_with_an_optimizer_of_the_users() -> None:
    data = get_data("Synthetic")(in_channels=1, train_images=200, test_images=10, batch_size=20)  # 9 steps
    rates = {}
    for schedule in (None, "cosine"):
        torch.manual_seed(0)
        model = get_model("LeNet5")(in_channels=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), schedule=schedule)
        trainer = _trainer(max_epochs=1)
        trainer.fit(model, datamodule=data)
        rates[schedule] = trainer.optimizers[0].param_groups[0]["lr"]
        assert ("cosine decay to 0" if schedule else "constant rate") in model.training_words
    assert rates == {None: 0.5, "cosine": pytest.approx(0)}


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
    assert model.confusion_counts("test") == expected
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


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_steps_within_one_call_give_the_same_weights(precision: str) -> None:
    """Two epochs of 13 steps in chunks of 5, so that the last of each is short, and an end within a chunk."""

    def train(steps_per_call: int | None, **end: int) -> tuple[dict[str, torch.Tensor], int]:
        L.seed_everything(0)
        data = get_data("Synthetic")(train_images=260, test_images=20, batch_size=18, augment=True)
        model = get_model("SpeedNet")(widths=(8, 16, 16), steps_per_call=steps_per_call, label_smoothing=0.1)
        trainer = _trainer(precision=precision, **end)
        trainer.fit(model, datamodule=data)
        return model.state_dict(), trainer.global_step

    for end, steps in (({"max_epochs": 2}, 26), ({"max_epochs": -1, "max_steps": 17}, 17)):
        (alone, counted), (together, also) = train(None, **end), train(5, **end)
        assert (counted, also) == (steps, steps)
        assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_the_rate_ends_at_zero_where_a_limit_counts_calls_of_several_steps() -> None:
    data = get_data("Synthetic")(train_images=260, test_images=20, batch_size=20, val_fraction=0.0)
    model = get_model("SimpleCNN")(steps_per_call=3)
    trainer = _trainer(max_epochs=2, limit_train_batches=2)  # 2 calls of 3 steps, of 13 steps an epoch
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 12
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


class _Smallest(ImageClassifier):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.features = nn.Flatten()
        self.classifier = nn.Linear(self.in_channels * self.image_size**2, self.num_classes)


def test_compiled_steps_are_those_of_the_network() -> None:
    def train(compile_mode: str | None) -> tuple[dict[str, torch.Tensor], float]:
        L.seed_everything(0)
        data = get_data("Synthetic")(image_size=8, train_images=96, test_images=20, batch_size=32, val_fraction=0.0)
        model = _Smallest(image_size=8, compile_mode=compile_mode)
        trainer = _trainer(max_epochs=1)
        trainer.fit(model, datamodule=data)
        return model.state_dict(), trainer.test(model, datamodule=data, verbose=False)[0]["test/loss"]

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    (eager, loss), (compiled, also) = train(None), train("default")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # the evaluation is not compiled
    assert list(eager) == list(compiled)
    for name in eager:
        torch.testing.assert_close(compiled[name], eager[name], rtol=1e-3, atol=1e-4)
    assert also == pytest.approx(loss, rel=1e-3)


def test_compilation_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"unknown compile_mode 'fast'.*reduce-overhead"):
        get_model("LeNet5")(compile_mode="fast")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    data = get_data("Synthetic")(in_channels=1, train_images=32, test_images=10, batch_size=16)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler on a cpu device \(g\+\+ or clang\+\+\)"):
        _trainer(max_epochs=1).fit(get_model("LeNet5")(in_channels=1, compile_mode="default"), datamodule=data)
    with pytest.raises(UserError, match=r"needs a C compiler on a cuda device \(gcc or clang\)"):
        hardware.check_compiler(torch.device("cuda", 0))
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(hardware.sysconfig, "get_paths", lambda: {"include": "/no/include"})
    with pytest.raises(UserError, match=r"needs Python's headers \(/no/include/Python.h is not there\)"):
        hardware.check_compiler(torch.device("cuda", 0))


def test_steps_within_one_call_end_with_the_budget_and_are_refused_where_they_do_not_work() -> None:
    data = get_data("Synthetic")(train_images=260, test_images=20, batch_size=18)
    clock = iter(range(10_000))
    model = get_model("SimpleCNN")(steps_per_call=10)
    trainer = _trainer(max_epochs=-1, callbacks=[TimeBudget(17, clock=lambda: float(next(clock)))])
    trainer.fit(model, datamodule=data)
    assert 1 <= trainer.global_step <= 17
    with pytest.raises(UserError, match="steps_per_call 0 of SimpleCNN must be a positive number"):
        get_model("SimpleCNN")(steps_per_call=0)


class _EverySteps(L.Callback):
    """Keeps a checkpoint after every training step, as it would be read back after the process was killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


@pytest.mark.parametrize("steps_per_call", [None, 3])
def test_training_goes_on_from_any_step_as_if_it_had_not_stopped(tmp_path: Path, steps_per_call: int | None) -> None:
    def fit(callbacks: list[L.Callback], checkpoint: Path | None = None) -> tuple[L.Trainer, dict[str, torch.Tensor]]:
        L.seed_everything(3 if checkpoint is None else 99, verbose=False)
        data = get_data("Synthetic")(train_images=50, test_images=10, batch_size=9, augment=True, cutout=5)  # 5 steps
        model = get_model("SimpleCNN")(dropout=0.5, in_channels=data.in_channels, steps_per_call=steps_per_call)
        averages = EMAWeightAveraging(decay=0.9)
        trainer = _trainer(max_epochs=3, callbacks=[averages, *callbacks], check_val_every_n_epoch=2)
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return trainer, model.state_dict()

    whole, expected = fit([_EverySteps(tmp_path)])
    kept = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem))
    assert whole.global_step == 15
    # In each epoch a call of three steps is followed by one of two.
    assert len(kept) == (6 if steps_per_call else 15)
    for checkpoint in kept[:-1]:
        trainer, found = fit([], checkpoint)
        assert trainer.global_step == 15
        differ = [name for name, value in found.items() if not torch.equal(value, expected[name])]
        assert not differ, f"after {checkpoint.stem} steps"


def test_a_loss_that_is_no_number_stops_at_its_step_and_keeps_the_checkpoints(tmp_path: Path) -> None:
    class Spoil(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
            if trainer.global_step == 13:
                next(module.parameters()).data.fill_(float("nan"))

    data = get_data("Synthetic")(in_channels=1, train_images=90, test_images=10, batch_size=9)  # 9 steps an epoch
    kept = ModelCheckpoint(tmp_path, filename="good", save_top_k=1)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, max_epochs=5, callbacks=[Spoil(), kept], enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    with pytest.raises(DivergedError, match=r"the loss is nan at step 14; use a lower learning rate"):
        trainer.fit(_small("LeNet5", in_channels=1), datamodule=data)
    good = torch.load(kept.best_model_path, weights_only=True)
    assert good["global_step"] == 9
    assert all(value.isfinite().all() for value in good["state_dict"].values())


def test_the_step_of_a_bad_loss_counts_optimizer_steps_not_batches() -> None:
    class Spoil(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
            if trainer.global_step == 2:
                next(module.parameters()).data.fill_(float("nan"))

    data = get_data("Synthetic")(in_channels=1, train_images=90, test_images=10, batch_size=9, val_fraction=0.0)
    trainer = _trainer(max_epochs=1, accumulate_grad_batches=3, callbacks=[Spoil()])
    with pytest.raises(DivergedError, match="the loss is nan at step 3;"):
        trainer.fit(_small("LeNet5", in_channels=1), datamodule=data)


def test_weights_that_are_no_numbers_are_never_kept(tmp_path: Path) -> None:
    """The last step of the second epoch spoils them; its loss was still a number."""

    class Spoil(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
            if trainer.global_step == 17:
                next(module.parameters()).grad.fill_(float("nan"))

    data = get_data("Synthetic")(in_channels=1, train_images=90, test_images=10, batch_size=9, val_fraction=0.0)
    kept = ModelCheckpoint(tmp_path, filename="good", enable_version_counter=False)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, max_epochs=5, callbacks=[Spoil(), kept], enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    data.batch_size = 10  # 9 steps an epoch
    with pytest.raises(DivergedError, match="weights are not finite after step 18; use a lower learning rate"):
        trainer.fit(_small("LeNet5", in_channels=1), datamodule=data)
    good = torch.load(tmp_path / "good.ckpt", weights_only=True)
    assert good["global_step"] == 9
    assert all(value.isfinite().all() for value in good["state_dict"].values())


def test_batch_size_finder_doubles_the_batches() -> None:
    data = get_data("Synthetic")(in_channels=1, train_images=500, test_images=10, batch_size=4)
    finder = BatchSizeFinder(steps_per_trial=1, init_val=4, max_trials=3)
    trainer = _trainer(max_epochs=1, callbacks=[finder])
    trainer.fit(_small("LeNet5", in_channels=1), datamodule=data)
    assert data.batch_size == finder.optimal_batch_size == 16
    assert trainer.global_step == 450 // 16


@pytest.mark.parametrize(
    ("views", "weights"),
    [
        ("one", {"as it is": 1.0}),
        ("mirror", {"as it is": 0.5, "mirrored": 0.5}),
        (
            "mirror and shift",
            {
                "as it is": 0.25,
                "mirrored": 0.25,
                "up": 0.125,
                "up mirrored": 0.125,
                "down": 0.125,
                "down mirrored": 0.125,
            },
        ),
    ],
)
def test_a_test_averages_the_logits_over_its_views(views: str, weights: dict[str, float]) -> None:
    """Against the views made by hand, of images whose borders are reflected."""
    model = get_model("SimpleCNN")(test_views=views).eval()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wide = torch.cat([x[..., 1:2], x, x[..., -2:-1]], dim=3)
    wide = torch.cat([wide[..., 1:2, :], wide, wide[..., -2:-1, :]], dim=2)
    images = {"as it is": x, "up": wide[:, :, :32, :32], "down": wide[:, :, 2:, 2:]}
    images |= {f"{name} mirrored": image.flip(3) for name, image in list(images.items())}
    images["mirrored"] = images.pop("as it is mirrored")
    with torch.no_grad():
        expected = sum(share * model(images[name]) for name, share in weights.items())
        torch.testing.assert_close(model._logits_over_views(x), expected)
        torch.testing.assert_close(model.predict_step((x, torch.zeros(4)), 0), expected.softmax(1))
    assert ("test-time augmentation" in model.training_words) == (views != "one")


def test_views_that_are_not_known_are_refused() -> None:
    with pytest.raises(UserError, match="unknown test_views 'all'; valid: one, mirror, mirror and shift"):
        get_model("LeNet5")(test_views="all")
