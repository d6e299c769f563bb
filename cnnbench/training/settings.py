"""How a network is trained: the arguments of the user, checked, and completed from a recipe or the architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from cnnbench.errors import UserError, unknown
from cnnbench.optimizers import RECIPES, Recipe

if TYPE_CHECKING:
    from cnnbench.training.classifier import ImageClassifier

LINKED = ("num_classes", "in_channels", "image_size")
"""Arguments of the network whose values come from the data set."""
Schedule = Literal["linear", "cosine", "constant"]
Interval = Literal["step", "epoch"]


class Stepping(NamedTuple):
    """When a scheduler of the user's is stepped, and on which value it depends.

    Attributes:
        interval: Optimizer steps or epochs; None for the usual one of the scheduler.
        frequency: Number of these intervals from one step of the scheduler to the next.
        monitor: Name of the logged value on which `ReduceLROnPlateau` depends; None for all other schedulers.
        scheduler: Class and arguments of the scheduler in words; empty before it is built.
    """

    interval: Interval | None = None
    frequency: int = 1
    monitor: str | None = None
    scheduler: str = ""

    def completed(self, scheduler: Any, single_steps: bool) -> Stepping:
        """Return these settings, completed for a scheduler.

        Args:
            scheduler: Scheduler of the user's. Lightning's own ``ReduceLROnPlateau`` knows the value to monitor.
            single_steps: Whether each call of Lightning's loop takes one step.

        Raises:
            UserError: The value to monitor is missing, or the scheduler depends on none.
        """
        name = type(scheduler).__name__
        # Both of these are made to be stepped after each batch, and reach their end only then.
        interval = self.interval or ("step" if isinstance(scheduler, OneCycleLR | CyclicLR) else "epoch")
        if not isinstance(scheduler, ReduceLROnPlateau):
            if self.monitor is not None:
                raise UserError(f"lr_monitor {self.monitor} is for ReduceLROnPlateau, and {name} depends on no value")
            return self._replace(interval=interval)
        own = getattr(scheduler, "monitor", None)
        monitor = self.monitor or own
        if monitor is None:
            raise UserError(f"{name} needs the name of a value that it depends on; set lr_monitor, such as val/loss")
        if own not in (None, monitor):
            raise UserError(f"lr_monitor {monitor} is not {own}, the monitor of {name}; leave out one of them")
        if interval == "step" and not single_steps:
            raise UserError(f"lr_interval step with {name} does not go with steps_per_call; leave out one of them")
        return self._replace(interval=interval, monitor=monitor)

    def words(self) -> str:
        """Return the settings in words; those that are not known yet are left out."""
        words = self.scheduler or "the user's schedule"
        if self.interval is not None:
            words += f" by {self.interval}" if self.frequency == 1 else f" by {self.frequency} {self.interval}s"
        if self.monitor is not None:
            words += f" on {self.monitor}"
        return words


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training, complete.

    Attributes:
        optimizer: Function of the user that builds an optimizer; None for that of the recipe.
        lr_scheduler: Function of the user that builds a scheduler; None for `schedule` and `warmup`.
        stepping: When the scheduler of the user is stepped.
        recipe: Recipe that was chosen by name; None for that of the architecture.
        learning_rate: Peak of the recipe's learning rate.
        schedule: Course of the learning rate after the warm-up.
        warmup: Share of the training in which the learning rate rises.
        label_smoothing: Share of the target probability that is spread over all classes.
    """

    optimizer: OptimizerCallable | None
    lr_scheduler: LRSchedulerCallable | None
    stepping: Stepping
    recipe: Recipe | None
    learning_rate: float
    schedule: Schedule
    warmup: float
    label_smoothing: float

    def words(self, architecture: str) -> str:
        """Return optimizer, schedule and label smoothing in words.

        Args:
            architecture: Words for the optimizer of the architecture.
        """
        optimizer = architecture
        # The user's optimizer and a recipe exclude each other; see `_check_combination`.
        if self.optimizer is not None:
            optimizer = "the user's optimizer"
        elif self.recipe is not None:
            optimizer = self.recipe.words
        if self.lr_scheduler is not None:
            schedule = self.stepping.words()
        elif self.schedule == "constant":
            schedule = "a constant rate"
        else:
            schedule = f"{self.schedule} decay to 0"
        if self.lr_scheduler is None and self.warmup:
            schedule = f"linear warm-up over {100 * self.warmup:g} % of the training and {schedule}"
        return f"{optimizer}, {schedule}, label smoothing {self.label_smoothing:g}"


def settle(
    network: ImageClassifier,
    optimizer: OptimizerCallable | None,
    lr_scheduler: LRSchedulerCallable | None,
    stepping: Stepping,
    recipe: str | None,
    learning_rate: float | None,
    schedule: Schedule | None,
    warmup: float | None,
    label_smoothing: float | None,
) -> TrainingSettings:
    """Check the arguments of a network that concern its training, and fill in those that are unset.

    See `ImageClassifier` for the arguments; ``stepping`` has those about the scheduler of the user. Unset ones come
    from the recipe that was chosen by name, else from the architecture.

    Raises:
        UserError: Arguments contradict each other, or one is out of its range.
    """
    _check_combination(optimizer, lr_scheduler, recipe, learning_rate, schedule, warmup)
    _check_stepping(lr_scheduler, stepping)
    _check_ranges(network, learning_rate, schedule, warmup, label_smoothing)
    chosen = None
    if recipe is not None:
        if recipe not in RECIPES:
            raise unknown("recipe", str(recipe), tuple(RECIPES))
        chosen = RECIPES[recipe]
    # A recipe and the class of an architecture have attributes of the same names.
    usual: Any = chosen or type(network)
    if learning_rate is None:
        learning_rate = usual.peak_lr
    # Warm-up and decay belong to the optimizer of the recipe; with one of the user's, the rate is constant.
    if warmup is None:
        warmup = usual.warmup if optimizer is None else 0.0
    if schedule is None:
        schedule = "linear" if optimizer is None else "constant"
    if label_smoothing is None:
        # The architectures' own recipes smooth no labels.
        label_smoothing = 0.0
        if chosen is not None:
            label_smoothing = chosen.label_smoothing
    return TrainingSettings(optimizer, lr_scheduler, stepping, chosen, learning_rate, schedule, warmup, label_smoothing)


def _check_combination(
    optimizer: Any, lr_scheduler: Any, recipe: str | None, learning_rate: Any, schedule: Any, warmup: Any
) -> None:
    """Raise UserError where arguments contradict each other."""
    if lr_scheduler is not None and optimizer is None:
        raise UserError("lr_scheduler is given without optimizer; give both, or neither for the recipe")
    if learning_rate is not None and optimizer is not None:
        raise UserError("learning_rate belongs to the recipe; with an optimizer of your own, set optimizer.lr")
    if recipe is not None and optimizer is not None:
        raise UserError(f"recipe '{recipe}' has an optimizer of its own; leave out the recipe or the optimizer")
    if lr_scheduler is not None and (schedule, warmup) != (None, None):
        raise UserError("lr_scheduler and schedule or warmup exclude each other; give one of them")


def _check_stepping(lr_scheduler: LRSchedulerCallable | None, stepping: Stepping) -> None:
    """Raise UserError if a setting of a scheduler of the user's is out of its range, or if there is no such one."""
    if lr_scheduler is None and stepping != Stepping():
        raise UserError("lr_interval, lr_frequency and lr_monitor are for your own scheduler; set lr_scheduler too")
    if stepping.interval is not None and stepping.interval not in get_args(Interval):
        raise unknown("lr_interval", str(stepping.interval), get_args(Interval))
    if not isinstance(stepping.frequency, int) or stepping.frequency < 1:
        raise UserError(f"lr_frequency {stepping.frequency} must be a whole number of at least 1")


def _check_ranges(
    network: ImageClassifier,
    learning_rate: float | None,
    schedule: str | None,
    warmup: float | None,
    label_smoothing: float | None,
) -> None:
    """Raise UserError where an argument is out of its range."""
    if learning_rate is not None:
        network.check_positive(learning_rate=learning_rate)
    if schedule is not None and schedule not in get_args(Schedule):
        raise unknown("schedule", str(schedule), get_args(Schedule))
    if warmup is not None and not 0 <= warmup < 1:
        raise UserError(f"warmup {warmup} is a share of the training from 0 to below 1, such as 0.15")
    if label_smoothing is not None and not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing {label_smoothing} is not a share from 0 to below 1, such as 0.1")
