"""The course of the learning rate: after a search, with a scheduler of the user's, and under a time limit."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch import cli
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    timer,
)
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CyclicLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from cnnbench.cli import main
from cnnbench.data import get_data
from cnnbench.errors import UserError
from cnnbench.models.lenet import LeNet5
from cnnbench.network import make_classifier
from cnnbench.record import load_records
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.schedule import lr_factor

STEPS = 12
"""Optimizer steps per epoch of `_fit`."""
MANY: list[int | None] = [None, 5]
"""Steps per call; in calls of five the last one of an epoch has two."""


class _Tiny(ImageClassifier):
    def __init__(self, **options: Any) -> None:
        super().__init__(in_channels=1, image_size=8, **options)
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.classifier = nn.Linear(4 * 6 * 6, self.num_classes)


class _Rates(L.Callback):
    """Keeps the learning rates of all groups at every optimizer step, and the values of every validation."""

    def __init__(self, on_step: Callable[[], None] = lambda: None) -> None:
        self.rates: list[list[float]] = []
        self.losses: list[float] = []
        self._on_step = on_step

    @property
    def first(self) -> list[float]:
        return [rates[0] for rates in self.rates]

    def _keep(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self._on_step()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.optimizers[0].register_step_pre_hook(self._keep)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.losses.append(float(trainer.callback_metrics["val/loss"]))


def _data() -> Any:
    return get_data("Synthetic")(in_channels=1, image_size=8, train_images=108, test_images=20, batch_size=8)


def _trainer(callbacks: list[L.Callback], folder: Path | None = None, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {"max_epochs": 1, "enable_checkpointing": False} | options
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        default_root_dir=folder,
        **settings,
    )


def _fit(of_network: dict[str, Any], callbacks: list[L.Callback] | None = None, **options: Any) -> _Rates:
    L.seed_everything(0, verbose=False)
    seen = _Rates()
    checkpoint = options.pop("ckpt_path", None)
    trainer = _trainer([*(callbacks or []), seen], **options)
    trainer.fit(_Tiny(**of_network), datamodule=_data(), ckpt_path=checkpoint)
    return seen


def _sgd(lr: float = 0.1) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda params: SGD(params, lr=lr, momentum=0.9)


def _by_hand(make: Callable[[Any], Any], count: int) -> list[float]:
    """Return the rates of a scheduler that is stepped so many times."""
    optimizer = _sgd()([torch.zeros(1, requires_grad=True)])
    scheduler = make(optimizer)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


# A scheduler of the user's


@pytest.mark.parametrize("together", MANY)
def test_a_scheduler_of_the_users_is_stepped_per_epoch(together: int | None) -> None:
    make = lambda optimizer: MultiStepLR(optimizer, milestones=[1, 2])  # noqa: E731
    options = {"optimizer": _sgd(), "lr_scheduler": make, "steps_per_call": together}
    rates = _fit(options, max_epochs=3).first
    assert rates == pytest.approx([0.1] * STEPS + [0.01] * STEPS + [0.001] * STEPS)
    rates = _fit(options | {"lr_frequency": 2}, max_epochs=3).first
    assert rates == pytest.approx([0.1] * 2 * STEPS + [0.01] * STEPS)


@pytest.mark.parametrize("together", MANY)
@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.5, total_steps=2 * STEPS),
        lambda optimizer: CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=5),
    ],
    ids=["OneCycleLR", "CyclicLR"],
)
def test_cycles_are_stepped_per_step(make: Callable[[Any], Any], together: int | None) -> None:
    rates = _fit({"optimizer": _sgd(), "lr_scheduler": make, "steps_per_call": together}).first
    assert rates == pytest.approx(_by_hand(make, STEPS))


@pytest.mark.parametrize("together", MANY)
def test_the_interval_and_the_frequency_can_be_set(together: int | None) -> None:
    make = lambda optimizer: StepLR(optimizer, step_size=1, gamma=0.5)  # noqa: E731
    options = {"optimizer": _sgd(), "lr_scheduler": make, "steps_per_call": together, "lr_interval": "step"}
    assert _fit(options).first == pytest.approx(_by_hand(make, STEPS))
    every_third = [0.1 * 0.5 ** (step // 3) for step in range(STEPS)]
    assert _fit(options | {"lr_frequency": 3}).first == pytest.approx(every_third)


def _stubborn(optimizer: Any, kind: Any = ReduceLROnPlateau, **options: Any) -> Any:
    """Return a scheduler for which nothing after the first value is an improvement."""
    return kind(optimizer, factor=0.1, patience=0, threshold=1e9, threshold_mode="abs", min_lr=1e-4, **options)


@pytest.mark.parametrize("together", MANY)
@pytest.mark.parametrize(
    "options",
    [
        {"lr_scheduler": _stubborn, "lr_monitor": "val/loss"},
        {"lr_scheduler": lambda optimizer: _stubborn(optimizer, cli.ReduceLROnPlateau, monitor="train/accuracy")},
    ],
    ids=["torch", "lightning"],
)
def test_the_rate_falls_where_the_monitored_value_stands(options: dict[str, Any], together: int | None) -> None:
    rates = _fit({"optimizer": _sgd(), "steps_per_call": together, **options}, max_epochs=4).first
    assert rates[::STEPS] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert len(set(rates)) == 3


@pytest.mark.parametrize("together", MANY)
def test_the_rate_follows_the_monitored_values(together: int | None) -> None:
    """Against the same scheduler, stepped by hand with the losses of the validations."""
    make = lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, threshold=0.02)  # noqa: E731
    options = {"optimizer": _sgd(0.2), "lr_scheduler": make, "lr_monitor": "val/loss", "steps_per_call": together}
    seen = _fit(options, max_epochs=8)
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = make(optimizer)
    for rate, loss in zip(seen.first[::STEPS], seen.losses, strict=True):
        assert rate == optimizer.param_groups[0]["lr"]
        scheduler.step(loss)


def test_lightnings_plateau_works_on_the_command_line() -> None:
    plateau = "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau --model.lr_scheduler.monitor=val/loss"
    stubborn = "--model.lr_scheduler.patience=0 --model.lr_scheduler.threshold=100"
    data = "--data=Synthetic --data.train_images=60 --data.test_images=20 --data.in_channels=1 --data.batch_size=16"
    trainer = "--trainer.accelerator=cpu --trainer.max_epochs=3 --trainer.enable_progress_bar=false"
    optimizer = "--model.optimizer=SGD --model.optimizer.lr=0.01"
    assert main(f"fit --model=LeNet5 {data} {trainer} {optimizer} {plateau} {stubborn}".split()) == 0
    (log,) = Path("results/runs").glob("*/*/metrics.csv")
    rates = [row["lr-SGD"] for row in csv.DictReader(log.open()) if row["lr-SGD"]]
    # Not even the first loss is a hundred times better than none, so the rate falls after every epoch.
    assert list(map(float, rates)) == pytest.approx([0.01, 0.001, 0.0001])


class _Keep(L.Callback):
    """Keeps checkpoints after some of the optimizer steps, named by their number."""

    def __init__(self, folder: Path, *steps: int) -> None:
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


@pytest.mark.parametrize("together", MANY)
@pytest.mark.parametrize(
    "options",
    [
        {"lr_scheduler": _stubborn, "lr_monitor": "val/loss"},
        {"lr_scheduler": lambda optimizer: StepLR(optimizer, 1, gamma=0.5)},
    ],
    ids=["plateau", "by epoch"],
)
def test_a_resumed_training_has_the_rates_of_an_undisturbed_one(
    tmp_path: Path, options: dict[str, Any], together: int | None
) -> None:
    """From within an epoch, from its end, and from its last step before the validation.

    Lightning leaves out the validation of that epoch after a resume, so there a monitored value cannot be had.
    """
    options = {"optimizer": _sgd(), "steps_per_call": together} | options
    last = ModelCheckpoint(tmp_path, filename="end of {epoch}", auto_insert_metric_name=False, save_top_k=-1)
    kept = [_Keep(tmp_path, 5, STEPS, STEPS + 5, 2 * STEPS), last]
    whole = _fit(options, kept, max_epochs=4, enable_checkpointing=True).first
    assert len(set(whole)) == (3 if "lr_monitor" in options else 4)
    starts = {"5": 5, "12": 12, "17": 17, "24": 24, "end of 0": 12, "end of 1": 24, "end of 2": 36}
    for name, steps in starts.items():
        if "lr_monitor" in options and name in ("12", "24"):
            continue
        resumed = _fit(options, max_epochs=4, ckpt_path=tmp_path / f"{name}.ckpt").first
        assert resumed == whole[steps:], name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_interval": "step"}, "lr_interval, lr_frequency and lr_monitor are for your own scheduler"),
        ({"lr_monitor": "val/loss"}, "lr_interval, lr_frequency and lr_monitor are for your own scheduler"),
        ({"lr_interval": "batch", "lr_scheduler": _stubborn}, r"unknown lr_interval 'batch'.*valid: step, epoch"),
        ({"lr_frequency": 0, "lr_scheduler": _stubborn}, "lr_frequency 0 must be a whole number of at least 1"),
        ({"lr_scheduler": _stubborn}, "ReduceLROnPlateau needs the name of a value that it depends on; set lr_monitor"),
        (
            {"lr_scheduler": lambda o: StepLR(o, 1), "lr_monitor": "val/loss"},
            "lr_monitor val/loss is for ReduceLROnPlateau, and StepLR depends on no value",
        ),
        (
            {"lr_scheduler": lambda o: cli.ReduceLROnPlateau(o, "val/loss"), "lr_monitor": "val/accuracy"},
            "lr_monitor val/accuracy is not val/loss",
        ),
        (
            {"lr_scheduler": _stubborn, "lr_monitor": "val/acc"},
            r"lr_monitor val/acc has no value after epoch 0; valid: .*val/accuracy, val/loss",
        ),
        (
            {"lr_scheduler": _stubborn, "lr_monitor": "train/loss", "lr_interval": "step", "steps_per_call": 4},
            "lr_interval step with ReduceLROnPlateau does not go with steps_per_call",
        ),
    ],
)
def test_settings_of_a_scheduler_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _fit({"optimizer": _sgd(), **options})


def test_the_recipe_says_how_the_scheduler_is_stepped() -> None:
    options = {"optimizer": _sgd(), "lr_scheduler": _stubborn, "lr_monitor": "val/loss", "lr_frequency": 2}
    model = _Tiny(**options)
    assert "the user's schedule on val/loss" in model.training_words
    _trainer([], max_epochs=1).fit(model, datamodule=_data())
    assert "threshold_mode=abs) by 2 epochs on val/loss" in model.training_words


# A search for the learning rate


class _Found(L.Callback):
    """Sets a rate as Lightning's finder does."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.learning_rate = self.rate
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rate


def _cycle(optimizer: Any) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=[4 * group["lr"] for group in optimizer.param_groups], total_steps=STEPS + 1)


def _two_rates(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    def make(params: Any) -> torch.optim.Optimizer:
        params = list(params)
        return SGD([{"params": params[:1], "lr": lr}, {"params": params[1:], "lr": lr / 4}], lr=lr)

    return make


@pytest.mark.parametrize(
    "of",
    [
        lambda rate: {"learning_rate": rate},
        lambda rate: {"recipe": "sgd", "learning_rate": rate, "schedule": "cosine"},
        lambda rate: {"recipe": "muon", "learning_rate": rate},
        lambda rate: {"optimizer": _sgd(rate or 0.1)},
        lambda rate: {"optimizer": _sgd(rate or 0.1), "schedule": "linear", "warmup": 0.2},
        lambda rate: {"optimizer": _sgd(rate or 0.1), "lr_scheduler": _cycle},
        lambda rate: {"optimizer": _two_rates(rate or 0.1)},
    ],
    ids=["AdamW", "sgd", "muon", "user's", "user's with schedule", "user's with cycle", "user's with two rates"],
)
def test_a_rate_that_a_callback_found_drives_the_whole_schedule(of: Callable[[float | None], dict[str, Any]]) -> None:
    found = _fit(of(None), [_Found(0.037)])
    built = _fit(of(0.037))
    assert len(found.rates) == STEPS
    for rates, expected in zip(found.rates, built.rates, strict=True):
        assert rates == pytest.approx(expected)


either = pytest.mark.parametrize(
    "of",
    [lambda rate: {"recipe": "sgd", "learning_rate": rate}, lambda rate: {"optimizer": _sgd(rate or 0.1)}],
    ids=["recipe", "user's"],
)


@either
def test_lightnings_finder_sets_the_rate(tmp_path: Path, of: Callable[[float | None], dict[str, Any]]) -> None:
    finder = LearningRateFinder(min_lr=1e-4, max_lr=0.5, num_training_steps=20)
    seen = _fit(of(None), [finder], folder=tmp_path, max_epochs=3)
    assert finder.optimal_lr is not None
    rate = finder.optimal_lr.suggestion()
    assert rate is not None
    assert seen.rates == _fit(of(rate), max_epochs=3).rates


@either
def test_a_search_before_the_training_sets_the_rate(tmp_path: Path, of: Callable[[float | None], Any]) -> None:
    model, seen = _Tiny(**of(None)), _Rates()
    trainer = _trainer([], tmp_path, max_epochs=3)
    found = Tuner(trainer).lr_find(model, datamodule=_data(), min_lr=1e-4, max_lr=0.5, num_training=20)
    assert found is not None
    rate = found.suggestion()
    assert rate is not None
    _trainer([seen]).fit(model, datamodule=_data())
    assert seen.rates == _fit(of(rate)).rates
    # A network with an optimizer of the user's could not be built from a checkpoint that has a rate too.
    _Tiny(**of(None) | {"learning_rate": model.hparams["learning_rate"]})


@pytest.mark.parametrize("finder", [LearningRateFinder, BatchSizeFinder])
def test_a_search_in_a_resumed_training_is_refused(tmp_path: Path, finder: Any) -> None:
    """Lightning would begin at step 0 without a word."""
    _fit({}, [_Keep(tmp_path, 6)])
    with pytest.raises(UserError, match=f"{finder.__name__} cannot search in a training that goes on"):
        _fit({}, [finder()], ckpt_path=tmp_path / "6.ckpt", folder=tmp_path)


# The linear rule


@pytest.mark.parametrize(("accumulated", "rate", "together"), [(1, 0.2, None), (1, 0.2, 5), (3, 0.6, None)])
def test_the_rate_grows_with_the_images_of_a_step(accumulated: int, rate: float, together: int | None) -> None:
    """Batches of 8 images have twice the rate for 4, and three of them together six times as much."""
    rule = {"lr_batch_size": 4, "steps_per_call": together}
    seen = _fit({"optimizer": _two_rates(0.1), **rule}, accumulate_grad_batches=accumulated)
    assert len(seen.rates) == STEPS // accumulated
    assert all(rates == pytest.approx([rate, rate / 4]) for rates in seen.rates)
    seen = _fit({"learning_rate": 0.1, "recipe": "sgd", "warmup": 0.5, **rule}, accumulate_grad_batches=accumulated)
    count = STEPS // accumulated
    assert seen.first == pytest.approx([rate * lr_factor(step / count, 0.5, "linear") for step in range(count)])


def test_a_scheduler_of_the_users_starts_from_the_scaled_rate() -> None:
    make = lambda optimizer: MultiStepLR(optimizer, milestones=[1])  # noqa: E731
    rates = _fit({"optimizer": _sgd(), "lr_scheduler": make, "lr_batch_size": 16}, max_epochs=2).first
    assert rates == pytest.approx([0.05] * STEPS + [0.005] * STEPS)


@either
def test_a_rate_that_was_found_is_not_scaled(tmp_path: Path, of: Callable[[float | None], dict[str, Any]]) -> None:
    model, seen = _Tiny(**of(None), lr_batch_size=4), _Rates()
    trainer = _trainer([_Found(0.037), seen, _Keep(tmp_path, 6)])
    trainer.fit(model, datamodule=_data())
    assert seen.rates == [pytest.approx(rates) for rates in _fit(of(0.037)).rates]
    # A training that goes on has that rate too, and does not scale it either.
    assert model.hparams["lr_batch_size"] is None
    assert "scaled" not in model.training_words
    stored = torch.load(tmp_path / "6.ckpt", weights_only=False)
    assert stored["hyper_parameters"]["lr_batch_size"] is None


def test_a_resumed_training_has_the_scaled_rates(tmp_path: Path) -> None:
    options = {"learning_rate": 0.01, "lr_batch_size": 4}
    whole = _fit(options, [_Keep(tmp_path, 8)]).first
    assert max(whole) == pytest.approx(0.02, rel=0.1)
    assert _fit(options, ckpt_path=tmp_path / "8.ckpt").first == pytest.approx(whole[8:])


def test_a_larger_batch_that_a_search_found_has_its_own_rate(tmp_path: Path) -> None:
    finder = BatchSizeFinder(steps_per_trial=1, max_trials=1, init_val=2)
    data = _data()
    seen = _Rates()
    trainer = _trainer([finder, seen], tmp_path)
    trainer.fit(_Tiny(optimizer=_sgd(), lr_batch_size=8), datamodule=data)
    assert trainer.train_dataloader.batch_size == data.batch_size != 8
    assert seen.first[0] == pytest.approx(0.1 * data.batch_size / 8)


@pytest.mark.parametrize("value", [0, -1, True, 2.5, 10**12])
def test_a_batch_size_of_the_rate_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"lr_batch_size .* must be a whole number of images of at least 1, such as"):
        _Tiny(lr_batch_size=value)


@pytest.mark.parametrize(
    ("options", "callbacks", "message"),
    [
        ({"optimizer": _sgd(), "lr_scheduler": _cycle}, [], "lr_batch_size does not go with OneCycleLR, which has"),
        ({}, [GradientAccumulationScheduler({0: 2})], "does not go with GradientAccumulationScheduler"),
    ],
)
def test_what_the_linear_rule_does_not_go_with_is_refused(
    options: dict[str, Any], callbacks: list[L.Callback], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _fit({"lr_batch_size": 4, **options}, callbacks)


def test_a_loader_without_a_batch_size_cannot_scale() -> None:
    images = TensorDataset(torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.long))
    of_two = DataLoader(images, batch_sampler=BatchSampler(SequentialSampler(images), 2, False))
    seen = _Rates()
    _trainer([seen]).fit(_Tiny(optimizer=_sgd(), lr_batch_size=8), of_two)
    assert seen.first == pytest.approx([0.1 * 2 / 8] * 4)
    lists = DataLoader(images, batch_sampler=[[0, 1], [2, 3, 4]])
    with pytest.raises(UserError, match="needs the batch size of the training, which DataLoader does not say"):
        _trainer([]).fit(_Tiny(lr_batch_size=8), lists)


def test_bench_scales_too_and_tells_the_recipes_apart(without_pictures: None, capsys: pytest.CaptureFixture) -> None:
    recipe = "{class_path: LeNet5, init_args: {learning_rate: 0.001, lr_batch_size: 10}}"
    Path("scaled.yaml").write_text(f"model: {recipe}\ndata: Synthetic\n")
    options = ["--data=Synthetic", "--data_options={train_images: 100, test_images: 20}", "--batch_size=30"]
    command = ["bench", "--models=LeNet5,LeNet5(lr_batch_size=60)", "--configs=scaled.yaml", *options, "--epochs=1"]
    assert main([*command, "--measures=quality", "--device=cpu", "--out=run"]) == 0
    records = {r.config["recipe"] or r.model: r.training for r in load_records([Path("run")])}
    assert {name: training["peak_lr"] for name, training in records.items()} == {
        "LeNet5": LeNet5.peak_lr,
        "LeNet5(lr_batch_size=60)": pytest.approx(LeNet5.peak_lr / 2),
        "scaled": pytest.approx(0.003),
    }
    assert len({training["recipe"] for training in records.values()}) == 3
    assert "learning rate for 10 images scaled linearly" in records["scaled"]["recipe"]
    assert "steps of 30 images: learning rates times 3, peak 0.003" in capsys.readouterr().err


def test_the_rule_reaches_a_network_with_training_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(".")
    Path("of_mine.py").write_text("from cnnbench import LeNet5\n\n\nclass Mine(LeNet5):\n    pass\n")
    network = make_classifier("of_mine:Mine", 10, 1, 32, lr_batch_size=4)
    assert (type(network).__name__, network.lr_batch_size) == ("Mine", 4)


def test_the_best_configuration_of_a_search_has_the_rule() -> None:
    Path("base.yaml").write_text(
        "model: {class_path: LeNet5, init_args: {lr_batch_size: 10, learning_rate: 0.001}}\n"
        "data: {class_path: Synthetic, init_args: {train_images: 100, test_images: 20}}\n"
    )
    command = ["search", "--base=base.yaml", "--space={data.batch_size: [20, 40]}", "--trials=3", "--epochs=1"]
    assert main([*command, "--device=cpu", "--precision=32-true", "--out=run"]) == 0
    for record in load_records([Path("run")]):
        assert record.training["peak_lr"] == pytest.approx(0.001 * record.config["values"]["data.batch_size"] / 10)
    assert yaml.safe_load(Path("run/best.yaml").read_text())["model"]["init_args"]["lr_batch_size"] == 10


# A time limit


@pytest.mark.parametrize("together", MANY)
@pytest.mark.parametrize("end", [{"max_epochs": None}, {"max_epochs": 50}], ids=["alone", "with epochs"])
def test_max_time_is_an_end_of_the_schedule(
    monkeypatch: pytest.MonkeyPatch, end: dict[str, Any], together: int | None
) -> None:
    """An optimizer step takes one second, so that a limit of twenty seconds is twenty steps."""
    now = [100.0]

    def tick() -> None:
        now[0] += 1

    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    seen = _Rates(tick)
    trainer = _trainer([seen], max_time="00:00:00:20", **end)
    trainer.fit(_Tiny(learning_rate=0.01, steps_per_call=together), datamodule=_data())
    assert 20 <= trainer.global_step < 20 + (together or 1)
    expected = [0.01 * lr_factor(step / 20, 0.15, "linear") for step in range(trainer.global_step)]
    assert seen.first == pytest.approx(expected)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_the_end_that_comes_first_drives_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: 0.0))
    limited = _fit({}, max_time="00:01:00:00").rates
    assert limited == _fit({}).rates


def test_a_resumed_training_keeps_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]

    def tick() -> None:
        now[0] += 1

    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    rates = []
    for checkpoint in (None, tmp_path / "8.ckpt"):
        now[0] = 1000.0 * len(rates)
        seen = _Rates(tick)
        trainer = _trainer([seen, _Keep(tmp_path, 8)], max_time="00:00:00:20", max_epochs=-1)
        trainer.fit(_Tiny(), datamodule=_data(), ckpt_path=checkpoint)
        rates.append(seen.first)
    assert len(rates[0]) == 20
    assert rates[1] == pytest.approx(rates[0][8:])


def test_without_any_end_the_schedule_is_refused() -> None:
    with pytest.raises(UserError, match=r"the learning rate needs an end; set trainer.max_epochs, .*max_time"):
        _fit({}, max_epochs=-1)
