"""The measures that a benchmark can take, and the figures that each of them gives, one row per figure.

The benchmark takes the measures of this table, records are checked against it, and all outputs (tables, HTML page, CSV,
`compare`, W&B) show the figures as this table says.

A new measure needs a function and its rows here. ``take`` names the function as ``module:function``. The function
receives a `Subject` and returns its figures as `Taken`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from cnnbench.errors import UserError

Kind = Literal["count", "number", "amount", "ms", "per second", "bytes", "share"]
"""Kind of value: a whole number, any number, a number of at least 0, milliseconds, images per second, bytes, or a share
from 0 to 1."""
Work = Literal["latency", "inference", "training"]
"""Kind of work that is timed: one image, a batch of inference, or a training step."""


@dataclass(frozen=True)
class Figure:
    """The description of one figure of a record.

    Attributes:
        key: Name of the figure in records, JSON and CSV; it contains the unit.
        kind: Kind of value, which decides how it is checked and shown.
        title: Heading of the figure's column in tables; empty if it has no column.
        meaning: Explanation of the figure for the legend.
        better: Whether a lower or a higher value is better; empty if neither is.
        compared: Method by which two runs are compared: ``exact`` for a figure without spread, ``rounds`` for a time
            that is compared round by round, ``processes`` for one value per process, ``seeds`` for an accuracy,
            ``trainings`` for a cost of a training; empty if the figure is not compared.
        work: Kind of work that the figure belongs to. Doubts about the times of this work are doubts about the figure,
            and its batch size and number format must agree before two runs are compared.
    """

    key: str
    kind: Kind
    title: str = ""
    meaning: str = ""
    better: Literal["less", "more", ""] = ""
    compared: Literal["exact", "rounds", "processes", "seeds", "trainings", ""] = ""
    work: Work | None = None


@dataclass(frozen=True)
class Subject:
    """The network that a measure is taken of, with its data and device.

    Attributes:
        name: Name of the network.
        model: Network on the CPU; already trained if the measure needs a trained network.
        image_shape: Channels, height and width of the images.
        data: Data set, an `ImageDataModule`.
        device: Device on which the benchmark computes, such as ``cpu`` or ``cuda:0``.
        precision: Number format of training and test, in Lightning's words.
    """

    name: str
    model: Any
    image_shape: tuple[int, int, int]
    data: Any
    device: str
    precision: str


class Taken(NamedTuple):
    """The result of a measure.

    Attributes:
        figures: Values by key of the figure.
        skipped: Reasons why figures could not be determined, by name.
    """

    figures: Mapping[str, Any]
    skipped: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Measure:
    """A property of a network on a data set that a benchmark can measure.

    Attributes:
        name: Name of the measure in ``--measures``.
        figures: Figures that the measure gives.
        default: Whether the measure is taken unless the user chooses others.
        trained: Whether the measure needs the trained network, so that training comes first.
        take: Function that takes the measure, as ``module:function``. It is empty for measures that the benchmark
            takes itself, because they concern several networks at once or the training.
    """

    name: str
    figures: tuple[Figure, ...]
    default: bool = True
    trained: bool = False
    take: str = ""

    def taken(self, subject: Subject) -> Taken:
        """Take the measure of a network by calling the function that `take` names.

        Args:
            subject: Network with its data and device.

        Raises:
            UserError: The network cannot be measured; the benchmark then goes on without these figures.
        """
        # The module is imported only now, so that commands that only show records do not load torch.
        module, _, function = self.take.partition(":")
        result: Taken = getattr(importlib.import_module(module), function)(subject)
        return result


def _spread(prefix: str, work: Work, median_title: str = "", meaning: str = "") -> tuple[Figure, ...]:
    """Return the figures of a time: median with interval, deciles, a GPU's and an engine's own time, deviation."""
    median = Figure(f"{prefix}_median", "ms", median_title, meaning, "less", "rounds", work)
    # The interval, the deciles and the times by other clocks belong to the median, and are not compared themselves.
    others = [Figure(f"{prefix}_{end}", "ms", work=work) for end in ("low", "high", "p10", "p90", "device", "engine")]
    return (median, *others, Figure(f"{prefix}_mad", "amount", work=work))


COMPLEXITY = Measure(
    "complexity",
    (
        Figure(
            "params",
            "count",
            "Params",
            "Weights and biases, frozen or not; a shared one counts once.",
            compared="exact",
        ),
        Figure(
            "macs",
            "count",
            "MACs",
            "Multiply-adds of one image in inference; convolutions and matrix products only, bias excluded.",
            compared="exact",
        ),
        Figure("flops", "count", "FLOPs", "Floating-point operations: exactly twice the MACs."),
        Figure("train_macs", "count", compared="exact"),
        Figure(
            "activations",
            "count",
            "Activations",
            "Values that convolutions and matrix products put out for one image: a proxy of memory traffic.",
            compared="exact",
        ),
        Figure("other_ops", "count"),
    ),
    take="cnnbench.counting.complexity:take_complexity",
)
SPEED = Measure(
    "speed",
    (
        *_spread(
            "latency_ms",
            "latency",
            "Latency ms",
            "One image through the network, batch size 1: median over interleaved rounds. A question mark: suspect, "
            "for the reason above the table.",
        ),
        *_spread("inference_ms", "inference"),
        Figure(
            "images_per_s",
            "per second",
            "Images/s",
            "Inference throughput at a large batch (size below), from the median time of a batch.",
            work="inference",
        ),
        *_spread("train_step_ms", "training"),
        Figure(
            "train_images_per_s",
            "per second",
            "Train images/s",
            "Throughput of a whole training step (forward, backward, the recipe's optimizer) at the batch size of "
            "training, without data loading.",
            work="training",
        ),
        Figure("images_per_s_queued", "per second", work="inference"),
        Figure("train_images_per_s_queued", "per second", work="training"),
        Figure("train_forward_ms", "ms", work="training"),
        Figure("train_backward_ms", "ms", work="training"),
        Figure("train_optimizer_ms", "ms", work="training"),
        Figure("cold_start_ms", "ms", better="less", compared="processes", work="latency"),
        Figure(
            "peak_memory_bytes",
            "bytes",
            "Peak MiB",
            "Largest memory allocated on the GPU in a training step: weights, gradients, optimizer state, activations, "
            "without the images.",
            "less",
            "exact",
            "training",
        ),
        Figure("peak_reserved_bytes", "bytes"),
        Figure(
            "file_bytes",
            "bytes",
            "File MiB",
            "Size of the network as the file that its engine runs, with its weights.",
            "less",
            "exact",
        ),
    ),
)
MEMORY = Measure(
    "memory",
    (
        Figure(
            "resident_bytes",
            "bytes",
            "Resident MiB",
            "By how much the resident memory of a fresh process grows at most in training steps, with images, the "
            "workspaces of kernels and what the C library keeps.",
        ),
        Figure(
            "inference_resident_bytes",
            "bytes",
            "Inference MiB",
            "By how much the resident memory of a fresh process grows from before the network is loaded to the peak "
            "while it runs single images. Loaded libraries are not in it.",
        ),
    ),
    default=False,
)
ENERGY = Measure(
    "energy",
    (
        Figure(
            "energy_mj_per_image",
            "amount",
            "Energy mJ/image",
            "Energy of an image in batches of inference, in millijoules: of the whole GPU with its memory (NVML), or "
            "of all processor packages (RAPL), with what they need while idle; nothing else of the machine.",
            "less",
            work="inference",
        ),
        Figure(
            "energy_mj_single_image",
            "amount",
            "Energy mJ, single",
            "The same for images that come one by one, without a pause.",
            "less",
            work="latency",
        ),
        Figure("idle_power_w", "amount"),
    ),
    default=False,
)
QUALITY = Measure(
    "quality",
    (
        Figure(
            "test_accuracy",
            "share",
            "Accuracy %",
            "Share of the test set, whole, that is classified right after the last step of training; no choice among "
            "epochs. A star: a short training, fewer epochs than a full one, so not converged.",
            "more",
            "seeds",
        ),
        Figure("test_accuracy_low", "share"),
        Figure("test_accuracy_high", "share"),
        Figure(
            "ece",
            "share",
            "ECE %",
            "Expected calibration error on the test set: by how much confidence and accuracy differ, over 15 bins of "
            "equal width (Guo et al. 2017), weighted by images.",
            "less",
        ),
        Figure("nll", "amount", better="less"),
    ),
    trained=True,
)
TRAIN_QUALITY = Measure(
    "train_quality",
    (
        Figure(
            "train_accuracy",
            "share",
            "Train accuracy %",
            "Share of training images (the first ones of the training split, as many as the test set has at most) that "
            "are classified right after the last step, in evaluation mode and without augmentation.",
        ),
        Figure("train_accuracy_low", "share"),
        Figure("train_accuracy_high", "share"),
        Figure("train_accuracy_images", "count"),
    ),
    default=False,
    trained=True,
)

VALIDATION = Measure(
    "validation",
    (
        Figure(
            "val_accuracy",
            "share",
            "Validation accuracy %",
            "Share of the validation split that is classified right after the last step of training.",
            "more",
            "seeds",
        ),
        Figure("val_accuracy_low", "share"),
        Figure("val_accuracy_high", "share"),
    ),
    default=False,
    trained=True,
)

_EVALUATED = (
    "The accuracy is that on the validation split, ten times in the first epoch, then after each further tenth of the "
    "steps, at least once per epoch."
)
TIME_TO_ACCURACY = Measure(
    "time_to_accuracy",
    (
        Figure(
            "seconds_to_accuracy",
            "amount",
            "Goal s",
            f"Seconds of training, without evaluations, to the accuracy of --until. {_EVALUATED}",
            "less",
            "trainings",
        ),
        Figure(
            "images_to_accuracy",
            "count",
            "Goal images",
            "Training images up to the accuracy of --until; an image counts in each epoch.",
            "less",
            "trainings",
        ),
        Figure(
            "macs_to_accuracy",
            "count",
            "Goal MACs",
            "Multiply-adds of training, forward and backward, up to the accuracy of --until.",
            "less",
            "trainings",
        ),
        Figure("val_accuracy_at_goal", "share"),
    ),
    default=False,
    trained=True,
)

CALIBRATION = Measure(
    "calibration",
    (
        Figure("temperature", "amount"),
        Figure(
            "ece_scaled",
            "share",
            "ECE scaled %",
            "Expected calibration error on the test set after temperature scaling; the temperature is fitted on the "
            "validation split (Guo et al. 2017).",
            "less",
        ),
        Figure("nll_scaled", "amount", better="less"),
    ),
    default=False,
    trained=True,
    take="cnnbench.benchmark.trained_measures:take_calibration",
)

CHANGES: dict[str, tuple[str, float, str]] = {
    "robust_shift_mild": ("shift", 2, "moved by 2 pixels"),
    "robust_shift_strong": ("shift", 4, "moved by 4 pixels"),
    "robust_noise_mild": ("noise", 0.05, "Gaussian noise, standard deviation 5 % of the range of pixels"),
    "robust_noise_strong": ("noise", 0.1, "Gaussian noise, standard deviation 10 % of the range of pixels"),
    "robust_blur_mild": ("blur", 0.5, "Gaussian blur, standard deviation 0.5 pixels"),
    "robust_blur_strong": ("blur", 1.0, "Gaussian blur, standard deviation 1 pixel"),
    "robust_contrast_mild": ("contrast", 0.5, "half of the contrast"),
    "robust_contrast_strong": ("contrast", 0.25, "a quarter of the contrast"),
}
"""Changes of the test images, by the key of their figure: kind, strength, and both in words."""

ROBUSTNESS = Measure(
    "robustness",
    (
        Figure(
            "robust_accuracy",
            "share",
            "Robust %",
            "Mean accuracy on the whole test set under eight changes of its images: moved by 2 and 4 pixels, Gaussian "
            "noise of 5 and 10 % of the range, Gaussian blur of 0.5 and 1 pixel, a half and a quarter of the contrast. "
            "These are not the changes of CIFAR-10-C. Each has a figure in results.csv.",
            "more",
            "seeds",
        ),
        *(Figure(key, "share", meaning=f"Test accuracy: {words}.") for key, (_, _, words) in CHANGES.items()),
    ),
    default=False,
    trained=True,
    take="cnnbench.benchmark.trained_measures:take_robustness",
)

MEASURES = {
    measure.name: measure
    for measure in (
        *(COMPLEXITY, SPEED, MEMORY, ENERGY, TIME_TO_ACCURACY, TRAIN_QUALITY, VALIDATION, QUALITY),
        *(CALIBRATION, ROBUSTNESS),
    )
}
"""Measures by their name in ``--measures``, in the order of their columns."""
DEFAULT_MEASURES = tuple(name for name, measure in MEASURES.items() if measure.default)
"""Names of the measures that are taken unless the user chooses others."""


def take_all(names: Iterable[str], subject: Subject, trained: bool) -> Taken:
    """Take those of the named measures that are functions of one network.

    Args:
        names: Names of measures, from `MEASURES`.
        subject: Network with its data and device.
        trained: Whether to take the measures of the trained network or those that need no training.

    Returns:
        The figures of all of them, and the reason for each one that does not apply to the network, by name.
    """
    figures: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name in names:
        measure = MEASURES[name]
        if not measure.take or measure.trained != trained:
            continue
        try:
            taken = measure.taken(subject)
        except UserError as error:
            # The measure does not apply, for example because control flow depends on values. The network can be trained
            # all the same.
            skipped[name] = f"{subject.name}: {error}"
            continue
        figures |= taken.figures
        skipped |= taken.skipped
    return Taken(figures, skipped)


def figures() -> dict[str, Figure]:
    """Return the figures of all measures by key."""
    rows = {}
    for measure in MEASURES.values():
        for figure in measure.figures:
            rows[figure.key] = figure
    return rows


def measure_of(key: str) -> str:
    """Return the name of the measure that gives a figure.

    Args:
        key: Key of a figure, as in `figures`.

    Raises:
        KeyError: No measure gives this figure.
    """
    for name, measure in MEASURES.items():
        if any(figure.key == key for figure in measure.figures):
            return name
    raise KeyError(key)
