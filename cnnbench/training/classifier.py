"""The only training code of the project: every architecture is an `ImageClassifier`.

A subclass builds ``features`` and ``classifier`` in its ``__init__``. The loss, the metrics, the recipe and the
training steps are defined here. The accuracy of validation and test is always derived from a confusion matrix of
integer counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, cast, get_args

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics.classification import MulticlassConfusionMatrix

from cnnbench import hardware
from cnnbench.blocks import Form, resolve_form
from cnnbench.console import note
from cnnbench.errors import DivergedError, UserError, unknown
from cnnbench.optimizers import adamw
from cnnbench.predictions import MOST_CLASSES, Predictions
from cnnbench.training import several_steps
from cnnbench.training.linear_rule import check_lr_batch_size, check_scheduler, images_per_step, scale_rates
from cnnbench.training.loss import loss_and_logits
from cnnbench.training.outcomes import Outcomes, scores
from cnnbench.training.random_state import of_process, random_state, set_random_state
from cnnbench.training.schedule import refuse_search, schedule_of, set_rate, step_on_plateau, time_budget
from cnnbench.training.settings import Interval, Schedule, Stepping, settle
from cnnbench.training.views import Views, mean_logits

Batch = tuple[Tensor, Tensor]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
RecipeName = Literal["sgd", "muon"]
CLASS_KEY = "network"
"""Key of a checkpoint whose value is the path of the network's class."""
SEED_KEY = "training_seed"
"""Key of a checkpoint whose value is the seed of its training; None for a training without a seed."""


class Published(NamedTuple):
    """Accuracy from a publication.

    Attributes:
        accuracy: Top-1 test accuracy in per cent.
        data: Name of the data set.
        source: Paper or page that reports the accuracy.
    """

    accuracy: float
    data: str
    source: str


class ImageClassifier(L.LightningModule):
    """A network that maps images to class logits, together with its training recipe.

    A subclass sets ``features`` and ``classifier``, and as class attributes ``min_image_size`` (pixels), ``peak_lr``
    and the facts that `cnnbench list` shows.

    Unless the user passes an optimizer, the recipe is AdamW (Loshchilov, Hutter 2019) with weight decay 0.05 on the
    weights, but not on biases and the parameters of normalisation. The learning rate rises linearly to `peak_lr` over
    the first 15 % of training and then falls linearly to zero. This recipe needs the least tuning from one network to
    the next, and gets far within few steps. An architecture can replace it with `recipe_optimizer`, `recipe_words` and
    `warmup`.

    Args:
        num_classes: Number of classes K; on the command line it comes from the data.
        in_channels: Number of channels of the images; on the command line it comes from the data.
        image_size: Height and width of the images in pixels; on the command line it comes from the data.
        optimizer: Function that builds an optimizer from the parameters, in place of the recipe.
        lr_scheduler: Function that builds a scheduler from the optimizer; only together with ``optimizer``.
        lr_interval: Interval after which ``lr_scheduler`` is stepped: every optimizer ``step`` or ``epoch``; unset,
            epoch as in LightningCLI, but step for ``OneCycleLR`` and ``CyclicLR``.
        lr_frequency: Number of these intervals from one step of ``lr_scheduler`` to the next.
        lr_monitor: Logged value on which ``ReduceLROnPlateau`` depends, such as ``val/loss``; for other schedulers it
            stays unset, and Lightning's own ``ReduceLROnPlateau`` has it as an argument.
        lr_batch_size: Number of images per optimizer step for which the learning rate is meant, that of the recipe or
            of ``optimizer``. The training multiplies the rate by the images of its steps (batch size, times processes,
            times accumulated batches) and divides it by this number, which is the linear rule of Goyal et al. (2017,
            1706.02677). A rate that a search finds is used as it is. Unset, every rate is used as it is.
        recipe: Name of a recipe in `cnnbench.optimizers.RECIPES`, in place of the architecture's own; not together with
            ``optimizer``.
        learning_rate: Peak of the recipe's learning rate, in place of the architecture's own; not together with
            ``optimizer``.
        schedule: Course of the learning rate from its peak to the end of training: ``linear`` or ``cosine`` to zero, or
            ``constant``; unset, linear for the recipe and constant for an optimizer of the user's.
        warmup: Share of the training, 0 to 1, in which the learning rate first rises linearly from a tenth of its peak;
            unset, the recipe's own, and 0 for an optimizer of the user's.
        label_smoothing: Share of the target probability that is spread over all classes; unset, that of ``recipe``, and
            0 without one.
        steps_per_call: Number of optimizer steps within one call of Lightning's loop; unset, one. Some tens of steps
            save small networks most of Lightning's overhead; on a CPU the final weights are the same. The schedule,
            averages of the weights (``EMAWeightAveraging``) and the log count every step. Other callbacks, the progress
            bar and ``limit_train_batches`` count a whole call as one. This works on one device, without gradient
            clipping or accumulation, and not in ``16-mixed``; whatever else needs single steps is refused.
        compile_mode: Mode in which ``torch.compile`` compiles the training steps; unset, they are not compiled.
            Compilation takes half a minute (less on a GPU) before the first step and for each further image size. On a
            CPU it pays off for depthwise convolutions in float32. Evaluation is not compiled.
        test_views: Test-time augmentation, that is, the views of an image over which test and prediction average the
            logits. ``one`` is the image itself. ``mirror`` adds its mirror image. ``mirror and shift`` gives half of
            the weight to these two views, and half to the same two views of the image shifted by one pixel to the
            upper left and to the lower right, six views in all. The recipe in a record names this setting.
        channels_last: Whether images and weights have the channel as the innermost dimension in memory, which is faster
            on current processors and gives the same results up to rounding.

    Raises:
        UserError: The images are too small for the network, or an argument is out of its range.
    """

    min_image_size: int = 1
    peak_lr: ClassVar[float] = 1e-3
    warmup: ClassVar[float] = 0.15
    recipe_words: str = "AdamW, weight decay 0.05"
    key_idea: ClassVar[str] = ""
    """New idea of the architecture in a few words, for `cnnbench list`."""
    torchvision_name: str | None = None
    """Name of torchvision's network with the same layers in the same order; None if there is none, as for a ``cifar``
    form. A name that is inherited from a base class does not count."""
    published: ClassVar[Published | None] = None
    """Best published accuracy; a network with a `torchvision_name` takes that on ImageNet from torchvision."""
    auxiliary_weight: ClassVar[float] = 0.3
    """Weight of each auxiliary head in the loss, for networks that return the logits of several heads in training."""
    features: nn.Module
    classifier: nn.Module
    _rate_factor: float = 1.0
    """Factor by which the learning rates of the optimizer of the current training were multiplied."""
    _first_rate: float | None = None
    _built_rate: float | None = None
    """Learning rates with which the first optimizer, and that of the current training, were built."""

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        learning_rate: float | None = None,
        schedule: Schedule | None = None,
        warmup: float | None = None,
        label_smoothing: float | None = None,
        channels_last: bool = True,
        steps_per_call: int | None = None,
        compile_mode: CompileMode | None = None,
        test_views: Views = "one",
        recipe: RecipeName | None = None,
        lr_interval: Interval | None = None,
        lr_frequency: int = 1,
        lr_monitor: str | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        _check_sizes(num_classes, in_channels, image_size)
        _check_modes(compile_mode, test_views)
        if steps_per_call is not None:
            self.check_positive(steps_per_call=steps_per_call)
        stepping = Stepping(lr_interval, lr_frequency, lr_monitor)
        self._settings = settle(
            self, optimizer, lr_scheduler, stepping, recipe, learning_rate, schedule, warmup, label_smoothing
        )
        self.learning_rate = self._settings.learning_rate
        check_lr_batch_size(lr_batch_size)
        self.lr_batch_size = lr_batch_size
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.image_size = image_size
        self.check_size(image_size, image_size)
        self.test_views: Views = test_views
        self.compile_mode = compile_mode
        self._compiled: Callable[[Tensor], Any] | None = None
        self.take_steps_together(steps_per_call)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # A plain dictionary, since attributes would be submodules, which a summary of the network would show.
        self._confusion = {
            phase: MulticlassConfusionMatrix(num_classes, validate_args=False) for phase in ("val", "test")
        }
        self._outcomes = Outcomes()
        # Images in all steps so far; None in a training that goes on from a checkpoint of an older version.
        self.trained_images: int | None = 0
        # Seed of the training; None if it had none, or if nobody said which.
        self.training_seed: int | None = None
        self._answers: list[tuple[Tensor, ...]] = []
        self._logged_step = 0
        self._logged_in_epoch = False
        # Sums of the loss and the images. They stay on the device until the end of the epoch, as `Outcomes` does.
        self._sums = {"val": torch.zeros(2), "test": torch.zeros(2)}
        self._random_state: dict[str, Tensor] | None = None

    def take_steps_together(self, steps_per_call: int | None) -> None:
        """Set the number of optimizer steps within one call of Lightning's loop; call this before training.

        Args:
            steps_per_call: Number of steps; None for Lightning's usual one.
        """
        self.steps_per_call = steps_per_call
        self.automatic_optimization = steps_per_call is None

    @property
    def display_name(self) -> str:
        """Return the name of the network in messages and folder names."""
        return type(self).__name__

    @property
    def example_input_array(self) -> Any:
        """Return an image of zeros, (1, C, H, W), with which Lightning's summary and export run the network."""
        if self._example_input_array is not None:
            return self._example_input_array
        return torch.zeros(1, self.in_channels, self.image_size, self.image_size)

    @example_input_array.setter
    def example_input_array(self, example: Any) -> None:
        self._example_input_array = example

    def forward(self, x: Tensor) -> Any:
        """Compute logits, (N, K), from normalised images x, (N, C, H, W)."""
        self.check_size(x.shape[-2], x.shape[-1])
        return self.classifier(self.features(x))

    @property
    def has_own_optimizer(self) -> bool:
        """Return whether the user gave an optimizer in place of the recipe."""
        return self._settings.optimizer is not None

    def choose_form(self, form: Form) -> Literal["cifar", "imagenet"]:
        """Return the published form to build, for use in a constructor.

        For the ``cifar`` form this clears `torchvision_name`, since torchvision has no networks for small images.

        Args:
            form: Form that the user chose.

        Raises:
            UserError: The form is unknown.
        """
        chosen = resolve_form(form, self.image_size)
        if chosen == "cifar":
            self.torchvision_name = None
        return chosen

    def require_size(self, pixels: int) -> None:
        """Set how large the images of this form of the network must be, for use in a constructor.

        Args:
            pixels: Smallest height and width in pixels.

        Raises:
            UserError: The images are smaller.
        """
        self.min_image_size = pixels
        self.check_size(self.image_size, self.image_size)

    def check_positive(self, **values: float) -> None:
        """Raise UserError unless all arguments are positive and finite, for use in a constructor.

        Args:
            values: Arguments by name.

        Raises:
            UserError: An argument is not positive or not finite; the message names it.
        """
        for name, value in values.items():
            if not 0 < value < float("inf"):
                raise UserError(f"{name} {value} of {type(self).__name__} must be a positive number")

    def check_size(self, height: int, width: int) -> None:
        """Raise UserError if images are too small for the network.

        Args:
            height: Height of the images in pixels.
            width: Width of the images in pixels.

        Raises:
            UserError: The height or the width is below `min_image_size`.
        """
        if min(height, width) < self.min_image_size:
            raise UserError(
                f"images of {height}x{width} pixels are too small for {type(self).__name__}, which needs at least "
                f"{self.min_image_size}x{self.min_image_size}; use a larger image_size or another network"
            )

    def _loss_and_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = batch
        compiled = self._compiled if self.training else None
        try:
            output = (compiled or self)(images.contiguous(memory_format=self.memory_format))
        except StopIteration as error:  # Lightning's loops would take it for the end of the data
            raise RuntimeError("the network raised StopIteration") from error
        smoothing = self._settings.label_smoothing if self.training else 0.0
        return loss_and_logits(output, labels, smoothing, self.auxiliary_weight)

    def setup(self, stage: str) -> None:
        self.to(memory_format=self.memory_format)
        self._outcomes.forget()
        self._built_rate = None
        if stage == "fit":
            self.trained_images = 0  # a checkpoint that is restored after this sets the images of the steps before
        if stage == "fit" and self.compile_mode is not None:
            hardware.check_compiler(self.trainer.strategy.root_device)
            # Only the function is compiled, so that the modules keep their names in checkpoints.
            self._compiled = torch.compile(self.forward, mode=self.compile_mode)
        if stage == "fit" and self.steps_per_call is not None:
            several_steps.prepare(self, self.steps_per_call, ImageClassifier)

    def on_fit_start(self) -> None:
        # A callback such as `LearningRateFinder` has set another rate, which the schedule has to start from, or
        # `BatchSizeFinder` another batch size, from which the rate follows.
        if self._built_rate is None:
            return
        if self.learning_rate != self._built_rate or self._linear_factor() != self._rate_factor:
            self.trainer.strategy.setup_optimizers(self.trainer)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets this attribute about forty times per step, and torch's own method is slow.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def on_train_epoch_start(self) -> None:
        self._logged_in_epoch = False
        if self.current_epoch == 0 or self._outcomes.device != self.device:
            self._outcomes.restart(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        # -1 tells Lightning to skip this batch and the rest of the epoch.
        return -1 if self.trainer.should_stop and time_budget(self.trainer) is not None else None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        if self.automatic_optimization:
            trainer = self.trainer
            with of_process(trainer.fit_loop.total_batch_idx, trainer.global_rank, trainer.world_size, self.device):
                return self._training_loss(batch)
        several_steps.take_steps(self, batch, batch_idx, self._training_loss)
        return None

    def _training_loss(self, batch: Batch) -> Tensor:
        loss, logits = self._loss_and_logits(batch)
        kept = logits.detach()
        if self._compiled is not None:
            kept = kept.clone()  # a compiled network may run as a CUDA graph, whose next replay overwrites the logits
        self._outcomes.add(self.trainer.global_step + 1, loss.detach(), kept, batch[1])
        if self.trained_images is not None:
            self.trained_images += len(batch[1]) * self.trainer.world_size  # every process has a batch of this size
        return loss

    def on_train_epoch_end(self) -> None:
        self._outcomes.sum_up()
        if not self._logged_in_epoch and self._outcomes.images > 0:  # the epoch was shorter than a log interval
            self._log_training(on_step=False)
        step_on_plateau(self, self._settings.stepping)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        # `step_on_plateau` has already taken the steps that Lightning takes at the end of an epoch.
        if self._settings.stepping.interval == "step" or not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, every = self.trainer.global_step, max(self.trainer.log_every_n_steps, 1)  # type: ignore[attr-defined]
        # A call of several steps can jump over a multiple of the interval, so compare the numbers of whole intervals.
        if step // every > self._logged_step // every:
            self._logged_step = step
            self._outcomes.sum_up()
            self._log_training(on_step=True)

    def _log_training(self, on_step: bool) -> None:
        values = self._outcomes.means()
        self.log_dict(values, prog_bar=True, on_step=on_step, on_epoch=not on_step, batch_size=1)
        self._logged_in_epoch = True
        self._outcomes.restart(self.device)

    def _logits_over_views(self, images: Tensor) -> Tensor:
        """Return the logits, (N, K), averaged over the views of `test_views`."""

        def logits_of(x: Tensor) -> Tensor:
            return self(x.contiguous(memory_format=self.memory_format))

        return mean_logits(logits_of, images, self.test_views)

    def _eval_step(self, phase: str, batch: Batch) -> None:
        if phase == "test" and self.test_views != "one":
            loss, logits = loss_and_logits(self._logits_over_views(batch[0]), batch[1])
        else:
            loss, logits = self._loss_and_logits(batch)
        predicted = logits.argmax(1)
        self._confusion[phase].update(predicted, batch[1])
        if phase == "test":
            self._answers.append((batch[1], predicted, *scores(logits, predicted, self.num_classes <= MOST_CLASSES)))
        count = torch.full((), float(len(batch[1])), device=loss.device)
        self._sums[phase] += torch.stack([loss.detach().float() * count, count])

    def _log_eval(self, phase: str) -> None:
        confusion = self._confusion[phase].compute()
        # The confusion matrix adds up all processes itself; the sums of the loss are gathered here.
        loss, count = cast(Tensor, self.all_gather(self._sums[phase])).reshape(-1, 2).sum(0)
        accuracy = confusion.trace() / confusion.sum()
        self.log_dict({f"{phase}/loss": loss / count, f"{phase}/accuracy": accuracy}, prog_bar=True, batch_size=1)

    def on_train_start(self) -> None:
        if self.lr_batch_size is not None and self.trainer.is_global_zero:
            words = f"steps of {images_per_step(self.trainer)} images: learning rates times {self._rate_factor:g}"
            note(words if self.has_own_optimizer else f"{words}, peak {self.peak_rate:g}")
        self._logged_step = self.trainer.global_step
        if self._random_state is not None:
            set_random_state(self._random_state, self.device)
            self._random_state = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the class of the network, the seed and the states of the random generators to a checkpoint.

        With these states a resumed training draws the same dropout.

        Raises:
            DivergedError: The weights are not finite, or were computed from a loss that is not finite.
        """
        self._outcomes.sum_up()
        if not all(value.isfinite().all() for value in self.state_dict().values() if value.is_floating_point()):
            raise DivergedError(
                f"weights are not finite after step {self.trainer.global_step}; use a lower learning rate; "
                "checkpoints from before are kept"
            )
        cls = type(self)
        checkpoint[CLASS_KEY] = f"{cls.__module__}.{cls.__qualname__}"
        checkpoint["random_state"] = random_state(self.device)
        checkpoint["trained_images"] = self.trained_images
        checkpoint[SEED_KEY] = self.training_seed

    @classmethod
    def load_from_checkpoint(cls, *arguments: Any, **options: Any) -> Any:
        """Return a network with the weights of a checkpoint of this class.

        Args:
            arguments: Path of the checkpoint, and further arguments of Lightning's method.
            options: Further arguments of Lightning's method.

        Raises:
            UserError: This is the base class, which cannot tell which network the checkpoint is of.
        """
        if cls is ImageClassifier:
            raise UserError(
                "ImageClassifier is the base class of all networks; cnnbench.load(PATH) builds the network that the "
                "checkpoint names, and so does load_from_checkpoint of its own class, such as LeNet5"
            )
        return super().load_from_checkpoint(*arguments, **options)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random_state = checkpoint.get("random_state")  # restored when training starts
        self.trained_images = checkpoint.get("trained_images")
        self.training_seed = stored_seed(checkpoint)
        if self._trainer is None:
            return
        # There is no optimizer yet, so this is the checkpoint of a training that goes on, and not that of a search.
        if self._trainer.state.fn == TrainerFn.FITTING and self._built_rate is None:
            refuse_search(self._trainer)
        if self._settings.optimizer is not None:
            return
        # Whether AdamW can be fused depends on this device, not on the one where the training began.
        on_gpu = self._trainer.strategy.root_device.type == "cuda"
        for state in checkpoint.get("optimizer_states", ()):
            for group in state["param_groups"]:
                if "betas" in group:
                    group["fused"] = True if on_gpu and not self._clips_scaled_gradients() else None

    def on_validation_epoch_start(self) -> None:
        self._outcomes.sum_up()  # raises here at the latest if a loss is not finite
        self._start_sums("val")

    def _start_sums(self, phase: str) -> None:
        self._sums[phase] = torch.zeros(2, device=self.device)
        self._confusion[phase].to(self.device).reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._eval_step("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._log_eval("val")

    def on_test_epoch_start(self) -> None:
        self._start_sums("test")
        self._answers.clear()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._eval_step("test", batch)

    def on_test_epoch_end(self) -> None:
        self._log_eval("test")

    def confusion_counts(self, phase: Literal["val", "test"]) -> list[list[int]]:
        """Return the K x K counts of the last validation or test; rows are true classes, columns are predictions."""
        return self._confusion[phase].compute().tolist()

    def mean_loss(self, phase: Literal["val", "test"]) -> float:
        """Return the mean loss of the images of the last validation or test, of this process."""
        loss, count = self._sums[phase].tolist()
        return loss / count

    def test_predictions(self) -> Predictions:
        """Return what the network said of each image of the last test, of this process."""
        true, predicted, *scored = (torch.cat(parts).cpu().numpy() for parts in zip(*self._answers, strict=True))
        # A network that diverged may give outputs that are not finite, of which nothing else is kept.
        if not all(np.isfinite(values).all() for values in scored):
            return Predictions(true, predicted)
        return Predictions(true, predicted, *scored)

    def eval_logits(self, images: Tensor) -> Tensor:
        """Return the logits, (N, K), from which the test takes its predictions.

        Args:
            images: Normalised images, (N, C, H, W), on the device of the network.
        """
        return self._logits_over_views(images)

    @property
    def training_words(self) -> str:
        """Return the recipe in words, for records and logs."""
        words = self._settings.words(self.recipe_words)
        if self.lr_batch_size is not None:
            words += f", learning rate for {self.lr_batch_size} images scaled linearly to those of a step"
        if self.compile_mode is not None:
            words += f", steps compiled in mode {self.compile_mode}"
        return words + self.test_words

    @property
    def test_words(self) -> str:
        """Return the test-time augmentation in words, which follow those of the recipe; empty if there is none."""
        return "" if self.test_views == "one" else f", tested with test-time augmentation ({self.test_views})"

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return class probabilities, (N, K), from the logits averaged over the views of `test_views`."""
        return self._logits_over_views(batch[0]).float().softmax(1)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Build the user's optimizer if there is one, else that of the recipe."""
        if self._settings.optimizer is not None:
            optimizer = self._settings.optimizer(self.parameters())
            # The user's optimizer has rates of its own, until a search sets another one.
            if self._first_rate is not None and self.learning_rate != self._first_rate:
                set_rate(optimizer, self.learning_rate)
                self.hparams["learning_rate"] = None  # set by the search, but refused beside an optimizer
            return optimizer
        if self._settings.recipe is not None:
            return self._settings.recipe.build(self, self.learning_rate)
        return self.recipe_optimizer()

    def recipe_optimizer(self) -> torch.optim.Optimizer:
        """Build the optimizer of the architecture's own recipe, with `learning_rate`."""
        # Parameters with one axis are biases and those of normalisation; they get no weight decay.
        weights = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
        return adamw(groups, fused=not self._clips_scaled_gradients(), lr=self.learning_rate, weight_decay=0.05)

    def _clips_scaled_gradients(self) -> bool:
        """Return whether the Trainer clips gradients that are scaled for float16.

        A fused optimizer would unscale them only within its step, which is too late for clipping.
        """
        trainer = self._trainer
        return trainer is not None and trainer.precision == "16-mixed" and bool(trainer.gradient_clip_val)

    @property
    def peak_rate(self) -> float:
        """Return the peak of the recipe's learning rate in the current training, after the linear rule."""
        return self.learning_rate * self._rate_factor

    def _linear_factor(self) -> float:
        """Return the factor of the linear rule for the steps of the current training; 1 without `lr_batch_size`."""
        if self.lr_batch_size is None:
            return 1.0
        return images_per_step(self.trainer) / self.lr_batch_size

    def configure_optimizers(self) -> Any:
        self._built_rate = self.learning_rate
        self._first_rate = self._first_rate or self.learning_rate
        if self.lr_batch_size is not None and self.learning_rate != self._first_rate:
            # A search has found this rate with the steps of this training, also for a training that goes on later.
            self.lr_batch_size = self.hparams["lr_batch_size"] = None
        optimizer = self.make_optimizer()
        self._rate_factor = self._linear_factor()
        if self.lr_batch_size is not None:
            scale_rates(optimizer, self._rate_factor)
        if self.steps_per_call is not None:
            several_steps.check_optimizer(optimizer, self.steps_per_call)
        scheduled = schedule_of(self, optimizer, self._settings)
        if scheduled is None:
            return optimizer
        if self.lr_batch_size is not None:
            check_scheduler(scheduled[1]["scheduler"])
        self._settings = replace(self._settings, stepping=scheduled[0])
        return {"optimizer": optimizer, "lr_scheduler": scheduled[1]}


def stored_seed(checkpoint: Mapping[str, Any]) -> int | None:
    """Return the seed of the training that wrote a checkpoint; None if the checkpoint has none."""
    seed = checkpoint.get(SEED_KEY)
    # A damaged file may have anything here, and for Python True is a number too.
    return seed if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 else None


def _check_modes(compile_mode: Any, test_views: Any) -> None:
    """Raise UserError unless the mode of compiling and the views of the test are known ones."""
    if compile_mode is not None and compile_mode not in get_args(CompileMode):
        raise unknown("compile_mode", str(compile_mode), get_args(CompileMode))
    if test_views not in get_args(Views):
        raise unknown("test_views", str(test_views), get_args(Views))


def _check_sizes(num_classes: Any, in_channels: Any, image_size: Any) -> None:
    """Raise UserError unless the sizes of a network are whole numbers of at least 1."""
    sizes = (num_classes, in_channels, image_size)
    if not all(isinstance(n, int) for n in sizes) or min(sizes) < 1:
        raise UserError(
            f"num_classes {num_classes}, in_channels {in_channels} and image_size {image_size} must be whole "
            "numbers of at least 1"
        )
