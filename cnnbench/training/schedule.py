"""The schedule of the learning rate: a warm-up and a decay over the progress of the training, or one of the user's.

The progress is the share of the optimizer steps, or of a time limit where there is one. A scheduler of the user's is
stepped per epoch unless the user or the kind of the scheduler asks for steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, Timer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from cnnbench.errors import UserError
from cnnbench.training.clock import TimeBudget
from cnnbench.training.settings import Schedule, Stepping, TrainingSettings
from cnnbench.training.words import scheduler_words

if TYPE_CHECKING:
    from cnnbench.training.classifier import ImageClassifier


def lr_factor(progress: float, warmup: float, schedule: Schedule) -> float:
    """Return the learning rate as a share of its peak.

    Args:
        progress: Completed share of the training, 0 to 1.
        warmup: Share of the training in which the rate rises linearly from a tenth of its peak.
        schedule: Course after the warm-up: ``linear`` or ``cosine`` decay to zero, or ``constant``.
    """
    if progress < warmup:
        # `progress` is at least 0 and below `warmup`, so this never divides by zero.
        return 0.1 + 0.9 * progress / warmup
    if schedule == "constant":
        return 1.0
    # A time budget may be overrun, so `progress` may exceed 1.
    left = max(0.0, (1 - progress) / (1 - warmup))
    if schedule == "linear":
        return left
    # Half a period of the cosine, from 1 where everything is left to 0 at the end.
    return (1 - math.cos(math.pi * left)) / 2


def time_budget(trainer: L.Trainer) -> TimeBudget | None:
    """Return the `TimeBudget` among the callbacks of a Trainer; None if there is none."""
    callbacks = cast("list[L.Callback]", trainer.callbacks)  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, TimeBudget)), None)


def time_share(trainer: L.Trainer) -> float | None:
    """Return the used share of the time limit of a training, which may exceed 1; None if it has no time limit.

    Time limits are those of `TimeBudget` and of Lightning's ``Timer``, which ``max_time`` makes. Of several limits, the
    one that is used up most counts.
    """
    shares = []
    for callback in cast("list[L.Callback]", trainer.callbacks):  # type: ignore[attr-defined]
        if isinstance(callback, TimeBudget):
            shares.append(callback.progress)
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None:
            used = callback.time_elapsed()
            # A limit of no time at all is used up from the beginning.
            shares.append(used / (used + left) if used + left > 0 else 1.0)
    return max(shares, default=None)


def total_steps(network: ImageClassifier) -> float:
    """Return the number of optimizer steps of the whole training; infinite if only a time limit ends it."""
    trainer = network.trainer
    calls = trainer.estimated_stepping_batches  # also sets up the loader where it is needed
    loader: Any = trainer.train_dataloader  # None if Lightning is told to take no batches
    if network.steps_per_call is None or calls == float("inf") or (trainer.max_epochs or 0) <= 0 or loader is None:
        return calls
    # Lightning counts calls, so the steps are counted from the batches of the loader.
    steps = trainer.max_epochs * min(loader.batches, trainer.num_training_batches * network.steps_per_call)
    return min(steps, trainer.max_steps) if trainer.max_steps >= 0 else steps


def schedule_of(
    network: ImageClassifier, optimizer: torch.optim.Optimizer, settings: TrainingSettings
) -> tuple[Stepping, dict[str, Any]] | None:
    """Build the scheduler of a training; return when it is stepped, and its configuration for Lightning.

    Args:
        network: Network that is about to be trained, with its Trainer.
        optimizer: Optimizer with the peak of its learning rates.
        settings: Settings of the training.

    Returns:
        None if the rate stays constant.

    Raises:
        UserError: The training has no end, or the settings do not fit the scheduler of the user.
    """
    scheduler: Any
    single_steps = network.steps_per_call is None
    if settings.lr_scheduler is not None:
        scheduler = settings.lr_scheduler(optimizer)
        stepping = settings.stepping.completed(scheduler, single_steps)
        stepping = stepping._replace(scheduler=scheduler_words(settings.lr_scheduler, scheduler))
    elif settings.schedule == "constant" and not settings.warmup:
        return None
    else:
        scheduler = _recipe_scheduler(network, optimizer, settings.warmup, settings.schedule)
        stepping = Stepping("step")
    config = {"scheduler": scheduler, "interval": stepping.interval, "frequency": stepping.frequency}
    # With several steps per call Lightning steps no scheduler, and warns of a value to monitor.
    if stepping.monitor is not None and single_steps:
        config["monitor"] = stepping.monitor
    return stepping, config


def _recipe_scheduler(
    network: ImageClassifier, optimizer: torch.optim.Optimizer, warmup: float, schedule: Schedule
) -> LambdaLR:
    """Return the scheduler, stepped after each optimizer step, that follows `lr_factor` over the whole training."""
    trainer = network.trainer
    total = total_steps(network)
    if total == float("inf") and time_share(trainer) is None:
        raise UserError("the learning rate needs an end; set trainer.max_epochs, trainer.max_steps or trainer.max_time")

    def factor(step: int) -> float:
        progress = step / max(total, 1)  # a training may have no steps at all
        used = time_share(trainer)
        if used is not None:
            # The clocks of several processes differ, but their weights stay equal only with equal rates.
            progress = max(progress, trainer.strategy.broadcast(used))
        return lr_factor(progress, warmup, schedule)

    return LambdaLR(optimizer, factor)


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of the first group of an optimizer, and those of the others in proportion to it.

    Args:
        optimizer: Optimizer that no scheduler has seen yet.
        learning_rate: New learning rate of the first group.
    """
    first = optimizer.param_groups[0]["lr"]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * (group["lr"] / first if first else 1.0)


def step_on_plateau(module: L.LightningModule, stepping: Stepping) -> None:
    """Step a ``ReduceLROnPlateau`` with the value that it depends on; call this at the end of every epoch.

    Lightning would step it after the checkpoints of the epoch, and not at all in an epoch that a resumed training
    completes, so that a resumed training would have other rates than one that was not interrupted.

    Args:
        module: Network that is trained.
        stepping: When the scheduler is stepped, and on which value it depends.

    Raises:
        UserError: The value has not been logged.
    """
    trainer = module.trainer
    # A callback may have put a scheduler of its own in the place of this one.
    plateaus = [c.scheduler for c in trainer.lr_scheduler_configs if isinstance(c.scheduler, ReduceLROnPlateau)]
    if not plateaus or stepping.monitor is None or stepping.interval != "epoch":
        return
    batches = trainer.fit_loop.epoch_loop.batch_progress
    complete = batches.is_last_batch or batches.current.ready == trainer.num_training_batches
    if not complete or (trainer.current_epoch + 1) % stepping.frequency != 0:
        return
    value = trainer.callback_metrics.get(stepping.monitor)
    if value is None:
        if trainer.fit_loop.restarting:  # the checkpoint was made after the validation, whose values it does not keep
            return
        logged = ", ".join(sorted(trainer.callback_metrics))
        raise UserError(
            f"lr_monitor {stepping.monitor} has no value after epoch {trainer.current_epoch}; valid: {logged}"
        )
    for plateau in plateaus:
        plateau.step(value)


def refuse_search(trainer: L.Trainer) -> None:
    """Raise UserError if a callback searches for a setting before a training that goes on from a checkpoint.

    Such a callback stores the network, trains it for a while and restores it. Lightning then no longer has the state of
    the checkpoint, and starts at step 0.

    Raises:
        UserError: There is such a callback.
    """
    for callback in cast("list[L.Callback]", trainer.callbacks):  # type: ignore[attr-defined]
        if isinstance(callback, LearningRateFinder | BatchSizeFinder):
            raise UserError(
                f"{type(callback).__name__} cannot search in a training that goes on from a checkpoint, which has what "
                "was found; leave the callback out (--trainer.callbacks null leaves out all)"
            )
