"""Several optimizer steps in one call of Lightning's loop: what sees every step, what is refused, what is logged."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn

from cnnbench.data import get_data
from cnnbench.errors import UserError
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.several_steps import own_hooks


class _Tiny(ImageClassifier):
    """A network with running statistics, which averages of the weights take up too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(in_channels=1, image_size=8, **options)
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten())
        self.classifier = nn.Linear(4 * 6 * 6, self.num_classes)


class _Lines(Logger):
    """Keeps every line of the log with its step."""

    name, version = "lines", 0

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.lines.append((step, {name: float(value) for name, value in metrics.items()}))

    def of(self, name: str) -> dict[int | None, float]:
        return {step: values[name] for step, values in self.lines if name in values}


def _fit(
    steps_per_call: int | None,
    callbacks: list[L.Callback] | None = None,
    network: type[ImageClassifier] = _Tiny,
    of_network: dict[str, Any] | None = None,
    of_data: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[ImageClassifier, L.Trainer]:
    """Train for two epochs of 12 steps each unless the options say otherwise."""
    L.seed_everything(0, verbose=False)
    sizes: dict[str, Any] = {"image_size": 8, "train_images": 108, "test_images": 40, "batch_size": 8}
    data = get_data("Synthetic")(in_channels=1, **sizes, **(of_data or {}))
    model = network(steps_per_call=steps_per_call, **(of_network or {}))
    settings: dict[str, Any] = {"max_epochs": 2, "logger": False, "enable_checkpointing": False} | options
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=callbacks or [],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(model, datamodule=data)
    return model, trainer


@pytest.mark.parametrize(
    "options",
    [{"decay": 0.9}, {"decay": 0.5, "update_every_n_steps": 3, "update_starting_at_step": 4}],
    ids=["every step", "every third step"],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_averages_of_the_weights_see_every_step(options: dict[str, Any], precision: str) -> None:
    """The epochs have 12 steps, so calls of 5 end with a short one; the last step is within a call."""
    weights: dict[int | None, dict[str, Tensor]] = {}
    for together in (None, 1, 5, 12):
        model, trainer = _fit(together, [EMAWeightAveraging(**options)], precision=precision, max_steps=21)
        assert trainer.global_step == 21
        weights[together] = model.state_dict()
    unaveraged = _fit(None, precision=precision, max_steps=21)[0].state_dict()
    assert not torch.equal(weights[None]["classifier.weight"], unaveraged["classifier.weight"])
    for together in (1, 5, 12):
        differ = [name for name, value in weights[together].items() if not torch.equal(value, weights[None][name])]
        assert not differ, f"{together} steps per call"


class _Hook(L.Callback):
    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None: ...


class _OwnHook(_Tiny):
    def on_before_optimizer_step(self, optimizer: Any) -> None: ...


class _OwnStep(_Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("refused", "options"),
    [
        ("StochasticWeightAveraging", {"callbacks": [StochasticWeightAveraging(swa_lrs=0.1)]}),
        ("GradientAccumulationScheduler", {"callbacks": [GradientAccumulationScheduler({0: 2})]}),
        ("LearningRateFinder", {"callbacks": [LearningRateFinder()]}),
        (
            "every_n_train_steps 3",
            {"callbacks": [ModelCheckpoint(every_n_train_steps=3)], "enable_checkpointing": True},
        ),
        ("on_after_backward of _Hook", {"callbacks": [_Hook()]}),
        ("on_before_optimizer_step of _OwnHook", {"network": _OwnHook}),
        ("training_step of _OwnStep", {"network": _OwnStep}),
        ("overfit_batches 2", {"overfit_batches": 2}),
        ("val_check_interval 2", {"val_check_interval": 2}),
        ("LBFGS", {"of_network": {"optimizer": lambda params: torch.optim.LBFGS(params)}}),
    ],
)
def test_what_needs_single_steps_is_refused(refused: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"steps_per_call 4 does not go with {refused}.*; leave out one of them"):
        _fit(4, **options)


def test_what_works_with_whole_calls_is_not_refused(capsys: pytest.CaptureFixture) -> None:
    _, trainer = _fit(4, [EMAWeightAveraging()], val_check_interval=0.5, limit_train_batches=2, max_epochs=1)
    assert trainer.global_step == 8
    assert "limit_train_batches 2: an epoch has at most 2 calls of 4 steps" in capsys.readouterr().err
    _fit(4, fast_dev_run=True)
    assert "limit_train_batches" not in capsys.readouterr().err


def test_a_benchmark_takes_single_steps_with_a_network_that_changes_them() -> None:
    assert own_hooks(_Tiny(), ImageClassifier) == []
    assert own_hooks(_OwnHook(), ImageClassifier) == ["on_before_optimizer_step"]
    assert own_hooks(_OwnStep(), ImageClassifier) == ["training_step"]


def _logged(steps_per_call: int | None, every: int, **options: Any) -> _Lines:
    lines = _Lines()
    _fit(steps_per_call, [LearningRateMonitor()], logger=lines, log_every_n_steps=every, **options)
    return lines


def test_the_log_of_whole_intervals_is_that_of_single_steps() -> None:
    """Calls of 4 steps fill intervals of 4 and 12 steps, so all lines are equal, with their steps and values."""
    for every in (4, 12):
        alone, together = _logged(None, every), _logged(4, every)
        for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
            assert together.of(name) == alone.of(name)
        assert sorted(alone.of("train/loss")) == list(range(every - 1, 24, every))  # type: ignore[type-var]


def test_the_log_counts_optimizer_steps_and_loses_none() -> None:
    """Calls of 5, 5 and 2 steps, and an interval of 7: its multiples 7, 14 and 21 fall into calls ending at 10, 17, 22.

    An average over the steps since the line before is the average of the lines of single steps.
    """
    every_step, together = _logged(None, 1), _logged(5, 7)
    assert sorted(together.of("train/loss")) == [9, 16, 21]  # type: ignore[type-var]
    single = every_step.of("train/loss")
    start = 0
    for step, loss in together.of("train/loss").items():
        assert step is not None
        expected = sum(single[i] for i in range(start, step + 1)) / (step + 1 - start)
        assert loss == pytest.approx(expected, rel=1e-5)
        start = step + 1
    # The monitor writes at the start of the calls in which an interval ends: steps 5, 12 and 17.
    rates = together.of("lr-AdamW/pg1")
    assert sorted(rates) == [5, 12, 17]  # type: ignore[type-var]
    assert rates == {step: every_step.of("lr-AdamW/pg1")[step] for step in rates}
    assert sorted(together.of("val/loss")) == [11, 23]  # type: ignore[type-var]


def test_an_interval_shorter_than_a_call_has_a_line_per_call() -> None:
    assert sorted(_logged(5, 2, max_steps=21).of("train/loss")) == [4, 9, 11, 16, 20]  # type: ignore[type-var]


@pytest.mark.parametrize("of_data", [{}, {"augment": True, "flip": "random"}], ids=["plain", "augmented"])
def test_overfit_batches_keeps_its_batches(of_data: dict[str, Any]) -> None:
    """97 training images make 12 whole batches; the incomplete one would have another shape."""

    class Labels(L.Callback):
        def __init__(self) -> None:
            self.epochs: dict[int, list[list[int]]] = {}

        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
            self.epochs.setdefault(trainer.current_epoch, []).append(sorted(batch[1].tolist()))

    labels = Labels()
    _fit(None, [labels], of_data=of_data, max_epochs=3, overfit_batches=3)
    first = labels.epochs[0]
    assert [len(batch) for batch in first] == [8, 8, 8]
    assert labels.epochs[1] == labels.epochs[2] == first
    whole = Labels()
    _fit(None, [whole], of_data=of_data, max_epochs=1, overfit_batches=13)
    assert [len(batch) for batch in whole.epochs[0]] == [8] * 12
