"""Several optimizer steps within one call of Lightning's loop, whose overhead exceeds a step of a small network.

Lightning sees such a call as one training step. What has to see every optimizer step is therefore served here: averages
of the weights, and the step numbers and the interval of the log. What cannot be served is refused before training.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cnnbench.console import note
from cnnbench.errors import UserError
from cnnbench.training.schedule import time_budget
from cnnbench.training.settings import Interval

_CALLBACKS = {
    StochasticWeightAveraging: "it changes Lightning's own optimizer steps, while WeightAveraging works",
    GradientAccumulationScheduler: "each batch is a step of its own",
    LearningRateFinder: "it needs a loss per step; search without steps_per_call",
}
"""Callbacks that work with single steps only, and the reasons."""
_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""Methods of callbacks and networks that Lightning calls within a step, and that nothing calls here."""
_STEP = (
    "training_step",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "lr_scheduler_step",
)
"""Methods of a network that are a part of Lightning's own step, in whose place `take_steps` stands."""


def prepare(module: L.LightningModule, steps_per_call: int, base: type[L.LightningModule]) -> None:
    """Check that a training can take several steps in one call, and let its log count optimizer steps.

    Args:
        module: Network that is about to be trained, with its Trainer.
        steps_per_call: Number of steps in one call.
        base: Class whose training step takes the steps.

    Raises:
        UserError: The Trainer, a callback or the network needs single steps.
    """
    trainer: Any = module.trainer
    if trainer.world_size > 1 or trainer.precision == "16-mixed":
        raise UserError(
            f"steps_per_call {steps_per_call} works on one device and not in 16-mixed; here are "
            f"{trainer.world_size} devices in {trainer.precision}; leave it out"
        )
    for what, why in _obstacles(module, base):
        raise UserError(f"steps_per_call {steps_per_call} does not go with {what}: {why}; leave out one of them")
    # Only these loaders put the batches of several steps into one call; a Trainer without data has no loader yet.
    if trainer.datamodule is not None and not getattr(trainer.datamodule, "gives_several_batches", False):
        raise UserError(
            f"steps_per_call {steps_per_call} does not go with the data {type(trainer.datamodule).__name__}, which "
            "gives one batch per call; leave it out, or take data of cnnbench"
        )
    calls = trainer.limit_train_batches
    if isinstance(calls, int) and not trainer.fast_dev_run:
        note(f"limit_train_batches {calls}: an epoch has at most {calls} calls of {steps_per_call} steps")
    trainer._logger_connector = _StepLog(trainer)


def _obstacles(module: L.LightningModule, base: type[L.LightningModule]) -> Iterator[tuple[str, str]]:
    """Yield what needs single steps in a training, and the reason."""
    trainer: Any = module.trainer
    if trainer.overfit_batches:
        yield f"overfit_batches {trainer.overfit_batches}", "it would count calls"
    # A validation interval in hours and minutes has no number here, and a float is a share of the epoch.
    every = getattr(trainer, "val_check_interval", 1.0)
    if isinstance(every, int):
        yield f"val_check_interval {every}", "it would count calls; a share of the epoch such as 0.5 works"
    for callback in trainer.callbacks:
        name = type(callback).__name__
        for kind, why in _CALLBACKS.items():
            if isinstance(callback, kind):
                yield name, why
        if isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps:
            every = callback._every_n_train_steps
            yield f"every_n_train_steps {every}", "there is no checkpoint within a call; use train_time_interval"
        for hook in _HOOKS:
            if is_overridden(hook, callback):
                yield f"{hook} of {name}", "it would not be called"
    for hook in own_hooks(module, base):
        yield f"{hook} of {type(module).__name__}", "it would not be called as in a single step"


def own_hooks(module: L.LightningModule, base: type[L.LightningModule]) -> list[str]:
    """Return the names of the methods of a network that change a training step, and that need single steps.

    Args:
        module: Network.
        base: Class whose training step takes several steps; its own methods do not count.
    """
    return [hook for hook in (*_HOOKS, *_STEP) if is_overridden(hook, module, base)]


def check_optimizer(optimizer: torch.optim.Optimizer, steps_per_call: int) -> None:
    """Raise UserError if an optimizer cannot take a step without a function that computes the loss again.

    Args:
        optimizer: Optimizer, such as LBFGS, which needs this function.
        steps_per_call: Number of steps in one call.

    Raises:
        UserError: The optimizer needs the function.
    """
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"steps_per_call {steps_per_call} does not go with {type(optimizer).__name__}, which computes the loss "
            "several times per step; leave out one of them"
        )


def take_steps(module: L.LightningModule, batches: Sequence[Any], call: int, loss_of: Callable[[Any], Tensor]) -> None:
    """Take one optimizer step per batch as Lightning's loop does, but without its bookkeeping between the steps.

    Args:
        module: Module with manual optimization, of which Lightning is running the training step.
        batches: Batches of the steps.
        call: Index of the call in its epoch.
        loss_of: Function that computes the loss of a batch.
    """
    trainer = module.trainer
    optimizer = cast(torch.optim.Optimizer, module.optimizers(use_pl_optimizer=False))
    # All calls of an epoch but the last one have the same number of steps.
    earlier = call * cast(int, module.steps_per_call)
    budget = time_budget(trainer)
    callbacks = cast("list[L.Callback]", trainer.callbacks)  # type: ignore[attr-defined]
    averages = [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
    loop = trainer.fit_loop.epoch_loop
    progress = loop.manual_optimization.optim_step_progress
    for index, batch in enumerate(batches):
        if (budget and budget.progress >= 1) or trainer.global_step == trainer.max_steps:
            break
        # Before each step but the first, the averages take up the step before it. Lightning's loop calls them for the
        # last step. Lightning runs the whole training step under autocast, which is meant for the forward pass alone.
        if averages and index > 0:
            with torch.autocast(module.device.type, enabled=False):
                for average in averages:
                    average.on_train_batch_end(trainer, module, None, batches[index - 1], index - 1)
        loss = loss_of(batch)
        with torch.autocast(module.device.type, enabled=False):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.clear_autocast_cache()  # else the next step would use cast copies of the old weights
        _step_schedulers(trainer, "step", earlier + index + 1)
        # `trainer.global_step` reads this counter, which Lightning's own optimizer wrapper would advance.
        progress.increment_ready()
        progress.increment_completed()
    # As in Lightning's loop, this comes before the validation and the checkpoints of the epoch.
    if loop.batch_progress.is_last_batch or call + 1 == trainer.num_training_batches:
        _step_schedulers(trainer, "epoch", trainer.current_epoch + 1)
    # Lightning's loggers read this counter. It has the index of the last step until the loop adds one after the call.
    loop._batches_that_stepped = max(0, trainer.global_step - 1)


def _step_schedulers(trainer: L.Trainer, interval: Interval, count: int) -> None:
    """Step the schedulers of an interval, of which so many are complete; see `step_on_plateau` for the others."""
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau):
            continue
        if config.interval == interval and count % config.frequency == 0:
            config.scheduler.step()


class _StepLog(_LoggerConnector):
    """Part of Lightning's Trainer that decides when to log, for calls of several optimizer steps.

    Lightning would log at every so many calls. Here a call is logged, by the network and by every callback that logs,
    if one of its steps completes an interval of ``log_every_n_steps`` optimizer steps. Lightning has no public way to
    change this.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        super().__init__(trainer)
        self._completes_interval = False

    def on_batch_start(self, batch: Any, dataloader_idx: int | None = None) -> None:
        super().on_batch_start(batch, dataloader_idx)
        trainer: Any = self.trainer
        every = trainer.log_every_n_steps
        if self._is_in_calls() and every > 0:
            first, last = trainer.global_step, trainer.global_step + len(batch)
            if trainer.max_steps >= 0:
                last = min(last, trainer.max_steps)
            self._completes_interval = last // every > first // every

    def _is_in_calls(self) -> bool:
        """Return whether the Trainer is training, and not validating, a network that takes several steps in a call."""
        return self.trainer.training and not self.trainer.lightning_module.automatic_optimization

    @property
    def should_update_logs(self) -> bool:
        trainer: Any = self.trainer
        if not self._is_in_calls() or trainer.log_every_n_steps == 0:
            return super().should_update_logs
        return self._completes_interval or trainer.should_stop
