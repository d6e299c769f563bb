"""An accuracy as the goal of a training: how long, and with how much work, a network takes to reach it.

The goal is looked for on the validation split, so that the test set decides nothing. The clock counts training alone.
This is the measure of DAWNBench (Coleman et al. 2017) and MLPerf (Mattson et al. 2020, 1910.01500), except that both
look at the test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import torch

from cnnbench.errors import UserError
from cnnbench.measures import Taken
from cnnbench.references import percent
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.clock import TrainingClock
from cnnbench.training.curve import Curve
from cnnbench.training.random_state import random_state, set_random_state

PARTS = 10
"""Number of evaluations in the first epoch; a later one comes after so large a part of the steps before it."""
_ROUNDING = 1e-9
"""How far an accuracy may be below the goal and still count as equal to it, since shares are rounded."""


def next_evaluation(step: int, steps_per_epoch: int) -> int:
    """Return the step after which the next evaluation on the validation split takes place.

    Ten evaluations lie in the first epoch. Later ones follow each other at a tenth of the steps so far, but at least
    once per epoch. So the steps to the goal are known to a tenth from the end of the first epoch on, and evaluations
    take little time beside the training.

    Args:
        step: Step of the last evaluation; 0 before the first one.
        steps_per_epoch: Number of optimizer steps in an epoch.
    """
    gap = min(-(-max(step, steps_per_epoch) // PARTS), steps_per_epoch)
    return step + max(1, gap)


class Reached(NamedTuple):
    """The moment at which a training reached its goal.

    Attributes:
        seconds: Seconds of training, without evaluations.
        images: Images of the training.
        accuracy: Accuracy on the validation split.
    """

    seconds: float
    images: int
    accuracy: float


class Goal(L.Callback):
    """Callback that evaluates a network at fixed steps, and ends the training once it reaches an accuracy.

    Args:
        until: Accuracy on the validation split, as a share.
        clock: Clock of the training, a callback that comes before this one.
        curve: Learning curve, which gets the accuracy of each evaluation within an epoch.
        steps_per_epoch: Number of optimizer steps in an epoch.

    Attributes:
        reached: When the goal was reached; None before.
        best: Highest accuracy of an evaluation so far.
        evaluations: Number of evaluations so far.
    """

    def __init__(self, until: float, clock: TrainingClock, curve: Curve, steps_per_epoch: int) -> None:
        self._until, self._clock, self._curve = until, clock, curve
        self._steps_per_epoch = max(1, steps_per_epoch)
        self._last = 0
        self._due = next_evaluation(0, self._steps_per_epoch)
        self.reached: Reached | None = None
        self.best = 0.0
        self.evaluations = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # One call may take several steps, so the step of an evaluation may be jumped over.
        if self.reached is None and trainer.global_step >= self._due:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The weights at the end of the limit count too.
        if self.reached is None and trainer.global_step > self._last:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pause the clock, evaluate the network, and end the training if the goal is reached."""
        assert isinstance(pl_module, ImageClassifier)
        self._clock.pause(pl_module.device)
        self._last = trainer.global_step
        # The schedule of the evaluations depends on the planned step, and not on the one that a call ended with.
        while self._due <= self._last:
            self._due = next_evaluation(self._due, self._steps_per_epoch)
        accuracy = _validation_accuracy(trainer, pl_module)
        self.evaluations += 1
        self.best = max(self.best, accuracy)
        # Lightning logs the accuracy at the end of each epoch itself. The curve counts steps from 0.
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._curve.log_metrics({"val/accuracy": accuracy}, max(0, self._last - 1))
        if accuracy >= self._until - _ROUNDING:
            self.reached = Reached(self._clock.used_s, pl_module.trained_images or 0, accuracy)
            trainer.should_stop = True

    def taken(self, train_macs: int | None, epochs: float) -> Taken:
        """Return the figures of the measure ``time_to_accuracy``, or why there are none.

        Args:
            train_macs: Multiply-adds of a training step per image; None if they are not known, or not the same for all
                images.
            epochs: Epochs of the training.
        """
        goal = f"{100 * self._until:g} %"
        if self.reached is None:
            best = percent(self.best).removesuffix(" %")
            return Taken({}, {"time_to_accuracy": f"reached {best} % of {goal} in {epochs:.3g} epochs"})
        figures: dict[str, Any] = {
            "seconds_to_accuracy": self.reached.seconds,
            "images_to_accuracy": self.reached.images,
            "val_accuracy_at_goal": self.reached.accuracy,
        }
        if train_macs is None:
            return Taken(figures, {"macs_to_accuracy": "the multiply-adds of a training step are not counted"})
        return Taken({**figures, "macs_to_accuracy": self.reached.images * train_macs})


@torch.inference_mode()
def _validation_accuracy(trainer: L.Trainer, network: ImageClassifier) -> float:
    """Return the share of the validation split that a network classifies correctly, in the midst of its training."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    # A loader of the user's may draw random numbers, and the training must draw the same ones with and without a goal.
    before, training = random_state(network.device), network.training
    network.eval()
    network.on_validation_epoch_start()
    with trainer.strategy.precision_plugin.val_step_context():
        for index, batch in enumerate(data.val_dataloader()):
            network.validation_step(trainer.strategy.batch_to_device(batch), index)
    network.train(training)
    set_random_state(before, network.device)
    counts = network.confusion_counts("val")
    return sum(row[index] for index, row in enumerate(counts)) / sum(map(sum, counts))


def check_goal(until: float | None, name: str, facts: Mapping[str, Any]) -> None:
    """Raise UserError if a training has a goal, and its data no validation split on which to look for it.

    Args:
        until: Goal of the training; None if it has none.
        name: Name of the data set.
        facts: Facts about the data set, for records.
    """
    if until is not None and not facts["val_images"]:
        raise UserError(
            f"--until looks for the goal on the validation split, which data set '{name}' has not; "
            "set val_fraction, such as --data_options '{val_fraction: 0.1}', or leave out --until"
        )
