"""Several optimizer steps within one call of Lightning's loop, whose overhead exceeds a step of a small network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from cnnbench.training.clock import TimeBudget


def take_steps(
    module: L.LightningModule, batches: Sequence[Any], loss_of: Callable[[Any], Tensor], budget: TimeBudget | None
) -> None:
    """Take one optimizer step per batch as Lightning's loop does, but without its bookkeeping between the steps.

    Args:
        module: Module with manual optimization, of which Lightning is running the training step.
        batches: Batches of the steps.
        loss_of: Function that computes the loss of a batch.
        budget: Time budget of the training, after which no step is taken; None if there is none.
    """
    trainer = module.trainer
    optimizer = cast(torch.optim.Optimizer, module.optimizers(use_pl_optimizer=False))
    scheduler = cast("torch.optim.lr_scheduler.LRScheduler | None", module.lr_schedulers())
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    for batch in batches:
        if (budget and budget.progress >= 1) or trainer.global_step == trainer.max_steps:
            return
        loss = loss_of(batch)
        # Lightning runs the whole training step under autocast, which is meant for the forward pass alone.
        with torch.autocast(module.device.type, enabled=False):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.clear_autocast_cache()  # else the next step would use cast copies of the old weights
        if scheduler is not None:
            scheduler.step()
        # `trainer.global_step` reads this counter, which Lightning's own optimizer wrapper would advance.
        progress.increment_ready()
        progress.increment_completed()
