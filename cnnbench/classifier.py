"""The only training code of the project: every architecture is an `ImageClassifier`.

A subclass builds ``features`` and ``classifier`` in its ``__init__``; loss, metrics, recipe and steps are here.
Accuracy has one home, the confusion matrix of integer counts, from which it is derived.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from cnnbench.blocks import Form, resolve_form
from cnnbench.errors import UserError

Batch = tuple[Tensor, Tensor]


class Published(NamedTuple):
    """An accuracy that somebody published.

    Attributes:
        accuracy: Top-1 test accuracy in per cent.
        data: Name of the data set.
        source: Paper or page that has it.
    """

    accuracy: float
    data: str
    source: str


def loss_and_logits(
    output: Any, labels: Tensor, label_smoothing: float = 0.0, auxiliary_weight: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of what a classifier returns, and its logits.

    Args:
        output: Logits, (N, K), or a tuple of them as from a network with auxiliary heads in training, its own first.
        labels: Classes, (N,).
        label_smoothing: Share of the target that is spread over all classes.
        auxiliary_weight: Weight of each auxiliary head in the loss.

    Raises:
        UserError: The output is neither.
    """
    heads = (output,) if isinstance(output, Tensor) else output
    if not isinstance(heads, tuple) or not all(isinstance(h, Tensor) and h.ndim == 2 for h in heads):
        raise UserError(
            f"the network returns {_shape_of(output)}, not logits, (N, K), or a tuple of them; "
            "wrap it in a module that does"
        )
    losses = [F.cross_entropy(head, labels, label_smoothing=label_smoothing) for head in heads]
    return torch.stack(losses[:1] + [auxiliary_weight * loss for loss in losses[1:]]).sum(), heads[0]


def _shape_of(output: Any) -> str:
    return f"a tensor of {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


class TrainingClock(L.Callback):
    """Measures the wall time of training from the start of the first batch; validation and set-up do not count.

    Args:
        clock: Source of the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._used_s = 0.0
        self._since: float | None = None

    @property
    def used_s(self) -> float:
        """Seconds of training so far."""
        return self._used_s + (self._clock() - self._since if self._since is not None else 0.0)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self._since is None:
            self._since = self._clock()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # work that is still queued is training
        self._used_s, self._since = self.used_s, None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)


class TimeBudget(TrainingClock):
    """Ends training after so many seconds of training.

    The learning-rate schedule follows the share of the budget that is used, so that every network ends its schedule
    whatever its speed (budgeted training: Li, Yumer, Ramanan 2020, arXiv 1905.04753).

    Args:
        seconds: Wall time of training, as `TrainingClock` measures it.
        clock: Source of the time in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(clock)
        if seconds <= 0:
            raise UserError(f"budget {seconds} s is not positive; give the seconds of training, such as 30")
        self.seconds = seconds

    @property
    def progress(self) -> float:
        """Used share of the budget; above 1 when it is overrun."""
        return self.used_s / self.seconds

    def on_train_batch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        super().on_train_batch_start(trainer, *arguments)
        if self.progress >= 1:
            trainer.should_stop = True  # ImageClassifier then skips the batch


class ImageClassifier(L.LightningModule):
    """A network that maps images to class logits, and how it is trained.

    Subclasses set ``features`` and ``classifier``, and as class attributes ``min_image_size`` (pixels), ``peak_lr`` and
    what `cnnbench list` says about them.
    Without an optimizer of the user's, the recipe is AdamW (Loshchilov, Hutter 2019) with weight decay 0.05 on weights
    that are not biases or normalisation, and a learning rate that rises linearly over the first 15 % of training to
    `peak_lr` and falls linearly to zero: it needs the least tuning from one network to the next, and gets far within
    few steps.

    Args:
        num_classes: Number of classes K; with the command it comes from the data.
        in_channels: Channels of the images; with the command it comes from the data.
        image_size: Height and width of the images in pixels; with the command it comes from the data.
        optimizer: Builds an optimizer from the parameters, in place of the recipe.
        lr_scheduler: Builds a scheduler, stepped once a batch, from the optimizer; only together with ``optimizer``.
        learning_rate: Peak of the recipe's schedule in place of the architecture's own; not with ``optimizer``.
        label_smoothing: Share of the target that is spread over all classes.
        channels_last: Keep images and weights with the channel as the innermost dimension, which is faster on
            current processors and gives the same results up to rounding.

    Raises:
        UserError: The images are too small for the network, or an argument is out of its range.
    """

    min_image_size: int = 1
    peak_lr: ClassVar[float] = 1e-3
    key_idea: ClassVar[str] = ""
    """What is new in the architecture, in a few words, for `cnnbench list`."""
    torchvision_name: str | None = None
    """The network of torchvision that has the same layers in the same order; None where there is none, as for a
    ``cifar`` form. Subclasses do not inherit it."""
    published: ClassVar[Published | None] = None
    """The best published accuracy on this project's data; that on ImageNet is torchvision's."""
    auxiliary_weight: ClassVar[float] = 0.3
    """Weight of each auxiliary head in the loss, for networks whose forward returns several logits in training."""
    features: nn.Module
    classifier: nn.Module

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        learning_rate: float | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        sizes = (num_classes, in_channels, image_size)
        if not all(isinstance(n, int) for n in sizes) or min(sizes) < 1:
            raise UserError(
                f"num_classes {num_classes}, in_channels {in_channels} and image_size {image_size} must be whole "
                "numbers of at least 1"
            )
        if lr_scheduler is not None and optimizer is None:
            raise UserError("lr_scheduler is given without optimizer; give both, or neither for the recipe")
        if learning_rate is not None and optimizer is not None:
            raise UserError("learning_rate belongs to the recipe; with an optimizer of your own, set optimizer.lr")
        if learning_rate is not None:
            self.check_positive(learning_rate=learning_rate)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.image_size = image_size
        self.check_size(image_size, image_size)
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self.learning_rate = self.peak_lr if learning_rate is None else learning_rate
        self._label_smoothing = label_smoothing
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.val_confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.test_confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self._sums = {"train": torch.zeros(3), "val": torch.zeros(2), "test": torch.zeros(2)}

    @property
    def display_name(self) -> str:
        """What the network is called in messages and names of folders."""
        return type(self).__name__

    def forward(self, x: Tensor) -> Any:
        """Computes logits, (N, K), from normalised images x, (N, C, H, W)."""
        self.check_size(x.shape[-2], x.shape[-1])
        return self.classifier(self.features(x))

    def choose_form(self, form: Form) -> Literal["cifar", "imagenet"]:
        """Decides, from a constructor, between the published forms; torchvision has none for small images."""
        chosen = resolve_form(form, self.image_size)
        if chosen == "cifar":
            self.torchvision_name = None
        return chosen

    def require_size(self, pixels: int) -> None:
        """Says, from a constructor, how large the images must be in this form of the network.

        Raises:
            UserError: They are smaller.
        """
        self.min_image_size = pixels
        self.check_size(self.image_size, self.image_size)

    def check_positive(self, **values: float) -> None:
        """Refuses, from a constructor, arguments that are not above zero.

        Raises:
            UserError: One of them is not; the message has its name.
        """
        for name, value in values.items():
            if not 0 < value < float("inf"):
                raise UserError(f"{name} {value} of {type(self).__name__} must be a positive number")

    def check_size(self, height: int, width: int) -> None:
        """Refuses images that are too small for the network.

        Raises:
            UserError: They are.
        """
        if min(height, width) < self.min_image_size:
            raise UserError(
                f"images of {height}x{width} pixels are too small for {type(self).__name__}, which needs at least "
                f"{self.min_image_size}x{self.min_image_size}; use a larger image_size or another network"
            )

    def _loss_and_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = batch
        output = self(images.contiguous(memory_format=self._memory_format))
        smoothing = self._label_smoothing if self.training else 0.0
        return loss_and_logits(output, labels, smoothing, self.auxiliary_weight)

    def setup(self, stage: str) -> None:
        self.to(memory_format=self._memory_format)

    # Sums stay on the device and are read once per log line or epoch: reading them each step would wait for the GPU.

    def _start_sums(self, phase: str) -> None:
        self._sums[phase] = torch.zeros_like(self._sums[phase], device=self.device)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 0 or self._sums["train"].device != self.device:
            self._start_sums("train")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.trainer.should_stop and self._time_budget() is not None else None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, logits = self._loss_and_logits(batch)
        labels = batch[1]
        correct = (logits.detach().argmax(1) == labels).sum()
        count = torch.full((), float(len(labels)), device=loss.device)
        self._sums["train"] += torch.stack([loss.detach().float() * count, correct.float(), count])
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.fit_loop.epoch_loop.global_step % max(self.trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            loss, correct, count = self._sums["train"].tolist()
            values = {"train/loss": loss / count, "train/accuracy": correct / count}
            self.log_dict(values, prog_bar=True, on_step=True, on_epoch=False, batch_size=1)
            self._start_sums("train")

    def _eval_step(self, phase: str, batch: Batch) -> None:
        loss, logits = self._loss_and_logits(batch)
        getattr(self, f"{phase}_confusion").update(logits.argmax(1), batch[1])
        count = torch.full((), float(len(batch[1])), device=loss.device)
        self._sums[phase] += torch.stack([loss.detach().float() * count, count])

    def _log_eval(self, phase: str) -> None:
        confusion = getattr(self, f"{phase}_confusion").compute()
        loss, count = cast(Tensor, self.all_gather(self._sums[phase])).reshape(-1, 2).sum(0)
        accuracy = confusion.trace() / confusion.sum()
        self.log_dict({f"{phase}/loss": loss / count, f"{phase}/accuracy": accuracy}, prog_bar=True, batch_size=1)

    def on_validation_epoch_start(self) -> None:
        self._start_sums("val")
        self.val_confusion.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._eval_step("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._log_eval("val")

    def on_test_epoch_start(self) -> None:
        self._start_sums("test")
        self.test_confusion.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._eval_step("test", batch)

    def on_test_epoch_end(self) -> None:
        self._log_eval("test")

    def test_confusion_counts(self) -> list[list[int]]:
        """Integer counts of the last test, rows are true classes, columns predictions; K x K."""
        return self.test_confusion.compute().tolist()

    @property
    def recipe(self) -> str:
        """The recipe in words, for records and logs."""
        if self._optimizer is not None:
            return "the user's optimizer"
        return (
            "AdamW, weight decay 0.05, linear warm-up over 15 % of the training and linear decay to 0, "
            f"label smoothing {self._label_smoothing:g}"
        )

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes class probabilities, (N, K)."""
        return self(batch[0].contiguous(memory_format=self._memory_format)).float().softmax(1)

    def _time_budget(self) -> TimeBudget | None:
        callbacks = cast(list[L.Callback], self.trainer.callbacks)  # type: ignore[attr-defined]
        return next((c for c in callbacks if isinstance(c, TimeBudget)), None)

    def _progress(self, step: int, total_steps: float) -> float:
        """Share of the training that is done: of the time budget, else of the optimizer steps."""
        budget = self._time_budget()
        return budget.progress if budget is not None else step / total_steps

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Builds the recipe's optimizer, or the user's."""
        if self._optimizer is not None:
            return self._optimizer(self.parameters())
        weights = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=0.05)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        if self._optimizer is None:
            total_steps = self.trainer.estimated_stepping_batches
            if total_steps == float("inf") and self._time_budget() is None:
                raise UserError("the recipe's learning rate needs an end; set trainer.max_epochs or trainer.max_steps")
            scheduler: Any = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: lr_factor(self._progress(step, total_steps))
            )
        elif self._lr_scheduler is not None:
            scheduler = self._lr_scheduler(optimizer)
        else:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def lr_factor(progress: float, warmup: float = 0.15) -> float:
    """Share of the peak learning rate: linear warm-up, then linear decay to zero.

    Args:
        progress: Share of the training that is done, 0 to 1.
        warmup: Share of the training in which the rate rises; it starts at a tenth of the peak.
    """
    if progress < warmup:
        return 0.1 + 0.9 * progress / warmup
    return max(0.0, (1 - progress) / (1 - warmup))
