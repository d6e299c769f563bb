"""The time of training: a clock that counts training alone, and a budget that ends training and drives its schedule."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from cnnbench.errors import UserError


class TrainingClock(L.Callback):
    """Callback that measures the wall time of training.

    The time counts from the start to the end of each epoch and includes the drawing of batches. Set-up, validation and
    work between two epochs, such as writing checkpoints, do not count.

    Args:
        clock: Function that returns the current time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._used_s = 0.0
        self._since: float | None = None

    @property
    def used_s(self) -> float:
        """Return the seconds of training so far."""
        return self._used_s + (self._clock() - self._since if self._since is not None else 0.0)

    def resume(self) -> None:
        """Let the clock run; nothing changes if it is running."""
        if self._since is None:
            self._since = self._clock()

    def pause(self, device: torch.device) -> None:
        """Stop the clock once a GPU has finished the work that it has been given; nothing changes if it is stopped.

        Args:
            device: Device that trains.
        """
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # work that is still queued belongs to training
        # The right-hand side is computed first, while the clock still runs.
        self._used_s, self._since = self.used_s, None

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.resume()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.resume()  # it was paused if a validation took place within the epoch

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause(pl_module.device)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause(pl_module.device)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause(pl_module.device)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the exception may come from a device that no longer works
            self.pause(pl_module.device)

    def state_dict(self) -> dict[str, Any]:
        # Lightning keeps this in its checkpoints, so that a resumed training adds to the time used before.
        return {"used_s": self.used_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._used_s = state_dict["used_s"]


class TimeBudget(TrainingClock):
    """Callback that ends training after a number of seconds.

    The learning-rate schedule follows the used share of the budget, so that every network completes its schedule
    whatever its speed (budgeted training: Li, Yumer, Ramanan 2020, arXiv 1905.04753).

    Args:
        seconds: Wall time of training in seconds, as `TrainingClock` measures it.
        clock: Function that returns the current time in seconds.

    Raises:
        UserError: The budget is not positive.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(clock)
        if seconds <= 0:
            raise UserError(f"budget {seconds} s is not positive; give the seconds of training, such as 30")
        self.seconds = seconds

    @property
    def progress(self) -> float:
        """Return the used share of the budget; above 1 when the budget is overrun."""
        return self.used_s / self.seconds

    def on_train_batch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        super().on_train_batch_start(trainer, *arguments)
        if self.progress >= 1:
            trainer.should_stop = True  # ImageClassifier then skips the batch
