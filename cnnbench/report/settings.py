"""The settings on which the figures of a record depend, one row each.

A setting is an option of the run, or a property of its data or machine. Records are compared only if the settings agree
on which the compared figures depend. Reports and `cnnbench compare` both read this table, so a new setting is added
here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cnnbench.engines import TORCH
from cnnbench.record import Record

NOT_SAID = "not said"
"""Text that tables show for a fact that a record does not have."""

Dependent = Literal["accuracy", "latency", "inference", "training", "count"]
"""Figures that depend on a setting: an accuracy, times and memory by their kind of work, or a count."""
Group = Literal["row", "training", ""]
"""What two records of one report are if they differ in a setting: rows that must not be ranked against each other,
trainings that are no repeats of each other but may be ranked, or neither."""

TIME_LIMITED = " of the time-limited training"
"""End of the names of settings that are properties of the machine, on which an accuracy depends after a time limit."""

ACCURACY: tuple[Dependent, ...] = ("accuracy",)
TIMES: tuple[Dependent, ...] = ("latency", "inference", "training")


@dataclass(frozen=True)
class Setting:
    """A setting of records.

    Attributes:
        name: Name of the setting, which is its key in the record unless `read` is given.
        place: Entry of the record that holds the setting.
        affects: Figures that depend on it.
        group: What records of one report are that differ in it.
        words: Function that says the value for names of networks; an empty text says nothing.
        unsaid: Value of records that do not name the setting.
        read: Function that returns the value from a record; None for the value under `name`.
        unless: Name of another setting; where networks differ in it too, their names do not have this one.
        of_torch: Whether it is a choice of torch alone, which records of other engines do not have.
    """

    name: str
    place: Literal["config", "data", "environment"]
    affects: tuple[Dependent, ...]
    group: Group = ""
    words: Callable[[Any], str] = str
    unsaid: Any = None
    read: Callable[[Record], Any] | None = None
    unless: str | None = None
    of_torch: bool = False

    def value(self, record: Record) -> Any:
        """Return the value of the setting, also for a record that does not name it."""
        if self.read is not None:
            return self.read(record)
        value = getattr(record, self.place).get(self.name)
        return self.unsaid if value is None else value

    def said(self, record: Record) -> str:
        """Return the value in words, for the name of a network."""
        return self.words(self.value(record))


def _inference_precision(record: Record) -> Any:
    """Return the number format in which inference was timed."""
    # Until 2026-11-28 inference was timed in the precision of training.
    return record.config.get("inference_precision") or record.config.get("precision")


def _images_per_step(record: Record) -> int | None:
    """Return the number of images of an optimizer step, or None if a step takes one batch."""
    images = record.config.get("images_per_step")
    return None if images == record.config.get("batch_size") else images


def _training(record: Record) -> str:
    """Return how the network was trained, in words; an empty text for a record without a training."""
    words = str(record.training.get("recipe") or "")
    # The words of a recipe name its optimizer; one of the user's has words of its own.
    return words.replace("the user's optimizer", record.training.get("optimizer") or "the user's optimizer")


def _host_cpu(record: Record) -> Any:
    """Return the processor that launches the kernels of a GPU, on which its times depend too."""
    return (record.environment.get("accelerator") or {}).get("host_cpu")


def _if_time_limited(name: str) -> Callable[[Record], Any]:
    """Return a function that reads a property of the machine if the training ended after a time.

    The number of training steps then depends on the machine.
    """

    def read(record: Record) -> Any:
        if record.config.get("budget_s") is None:
            return None
        return record.environment.get(name)

    return read


def packages(versions: Mapping[str, str | None] | None) -> str:
    """Return the packages that a record names, with their versions, as one text."""
    # A package that is not installed has no version.
    return ", ".join(f"{name} {version}" for name, version in (versions or {}).items() if version)


def _or_nothing(text: str) -> Callable[[Any], str]:
    """Return a function that puts a value into a text, and returns an empty text for None.

    A text that ends with a plural, such as "{} epochs", loses its last letter for the value 1.
    """

    def words(value: Any) -> str:
        if value is None:
            return ""
        return (text[:-1] if value == 1 and text.startswith("{} ") and text.endswith("s") else text).format(value)

    return words


def _or_else(text: str, default: str) -> Callable[[Any], str]:
    """Return a function that puts a value into a text, and returns the default for a value that is not there."""
    return lambda value: text.format(value) if value else default


_OR_NOT_SAID = _or_else("{}", NOT_SAID)

ALL = (
    # How long a network is trained; a name has the limits that the training had.
    Setting("budget_s", "config", ACCURACY, "row", _or_nothing("{:g} s of training")),
    Setting("epochs", "config", ACCURACY, "row", _or_nothing("{} epochs")),
    Setting("max_steps", "config", ACCURACY, "row", _or_nothing("{} steps")),
    Setting("until", "config", ACCURACY, "row", lambda goal: f"until {100 * goal:g} %" if goal else ""),
    # How numbers are computed.
    Setting("precision", "config", ("accuracy", "training"), "row", _OR_NOT_SAID),
    Setting(
        "inference_precision",
        "config",
        ("latency", "inference"),
        "row",
        _or_else("inference in {}", NOT_SAID),
        read=_inference_precision,
    ),
    Setting("memory_format", "config", (*ACCURACY, *TIMES), "row", _OR_NOT_SAID, of_torch=True),
    Setting("mode", "config", (*ACCURACY, *TIMES), "row", unsaid="eager"),
    Setting("engine", "config", (*ACCURACY, *TIMES), "row", unsaid=TORCH),
    Setting("cudnn_benchmark", "config", (*ACCURACY, *TIMES), "row", "cuDNN benchmark {}".format, unsaid=False),
    # Before 2026-11-30 there were no such times, not even beside engines.
    Setting("settle_s", "config", TIMES, "row", _or_else("{:g} s of uncounted calls in each turn", ""), unsaid=0.0),
    Setting("first_settle_s", "config", TIMES, "row", _or_else("{:g} s in the first turn of a round", ""), unsaid=0.0),
    Setting("device", "environment", TIMES, "row", _OR_NOT_SAID),
    Setting(f"device{TIME_LIMITED}", "environment", ACCURACY, "", _or_nothing("{}"), read=_if_time_limited("device")),
    # How many images are computed at once. Latency is always that of one image.
    Setting("batch_size", "config", ("accuracy", "training"), "row", "batch {}".format),
    Setting("images_per_step", "config", ACCURACY, "row", _or_nothing("{} images per step"), read=_images_per_step),
    Setting("speed_batch_size", "config", ("inference",), "row", _or_nothing("batch {} in inference")),
    # Which weights of a training are tested. Until 2026-11-29 they were always the last ones.
    Setting("tested", "config", ACCURACY, "row", "{} weights tested".format, unsaid="last"),
    # Averaging over several views of a test image raises the accuracy at several times the cost.
    Setting("test_views", "config", ACCURACY, "row", "tested on views: {}".format, unsaid="one"),
    Setting("threads", "environment", TIMES, "row", "{} threads".format),
    Setting(
        f"threads{TIME_LIMITED}",
        "environment",
        ACCURACY,
        "",
        _or_nothing("{} threads"),
        read=_if_time_limited("threads"),
    ),
    Setting("allocator", "environment", TIMES),
    Setting("host_cpu", "environment", TIMES, read=_host_cpu),
    # Two runs with other packages are compared nevertheless: `compare` then uses raw times, and says so.
    # Each engine has a package of its own.
    Setting("packages", "environment", (), "row", packages, unless="engine"),
    # How a network is trained. Each network may need a way of its own, so these do not prevent a ranking.
    Setting("recipe", "config", ACCURACY, "training", _or_else("recipe {}", "the network's own recipe")),
    Setting(
        "learning_rate", "config", ACCURACY, "training", _or_else("learning rate {}", "the recipe's learning rate")
    ),
    # The words of a recipe by name say nothing that its name does not.
    Setting("training", "config", ACCURACY, "training", str, read=_training, unless="recipe"),
    # Records from before 2026-11-23 do not name their augmentation.
    Setting("augmentation", "data", ACCURACY, "training", "augmentation: {}".format, unsaid=NOT_SAID),
    Setting("train_images", "data", ACCURACY, "training", "{} training images".format),
    Setting("test_images", "data", ACCURACY, "row", _or_nothing("{} test images")),
    Setting("augment", "data", ACCURACY, "", _or_nothing("augment {}")),
    Setting("synthetic", "data", ACCURACY, "", _or_nothing("synthetic {}")),
    # Every figure depends on the size of the images.
    Setting("image_size", "data", (*ACCURACY, *TIMES, "count"), "", _or_nothing("images of {0}x{0}")),
)
"""All settings, in the order in which names of networks and reasons of `compare` have them."""

BY_NAME = {row.name: row for row in ALL}
"""The settings by their name."""


_FIGURES: dict[Dependent, str] = {
    "latency": "latency_ms_median",
    "inference": "images_per_s",
    "training": "train_images_per_s",
    "count": "params",
}
"""Figure that a record has if it has figures of this kind; accuracies are told by the ends of their names."""


def applies(row: Setting, record: Record) -> bool:
    """Return whether a record has a figure that depends on a setting; always true if no figure depends on it."""
    if row.of_torch and BY_NAME["engine"].value(record) != TORCH:
        return False
    accuracies = any(key.endswith("accuracy") for key in record.measures)
    for kind in row.affects:
        if accuracies if kind == "accuracy" else _FIGURES[kind] in record.measures:
            return True
    return not row.affects


SETTLING = ("settle_s", "first_settle_s")
"""Names of the settings of the calls of a turn that do not count."""


def in_group(*groups: Group) -> tuple[Setting, ...]:
    """Return the settings of these groups."""
    return tuple(row for row in ALL if row.group in groups)


def affecting(figure: Dependent) -> tuple[Setting, ...]:
    """Return the settings on which a kind of figure depends."""
    return tuple(row for row in ALL if figure in row.affects)


def setting(record: Record, name: str) -> Any:
    """Return the value of a setting, also for a record that does not name it.

    Args:
        record: Record to read.
        name: Name of a row of `ALL`.
    """
    return BY_NAME[name].value(record)


def said(facts: Mapping[str, Any], name: str) -> Any:
    """Return a fact of a record, or `NOT_SAID` if the record does not have it."""
    value = facts.get(name)
    return NOT_SAID if value is None else value


def budget(record: Record) -> str:
    """Return the limits of a record's training in words; the training ended at the first of them."""
    limits = [BY_NAME[name].said(record) for name in ("budget_s", "epochs", "max_steps", "until")]
    return " or ".join(filter(None, limits)) or NOT_SAID
