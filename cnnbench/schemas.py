"""Schemas of the files of this project, and checks that report what does not fit in a single line.

A file is data that may be damaged, edited or made by somebody else. pydantic checks types, ranges, missing keys and
unknown keys; the functions below check that the figures of a record do not contradict each other. Importing this module
takes a tenth of a second, so other modules import it only when they read a file.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model

from cnnbench.errors import UserError, unknown
from cnnbench.measures import Kind, figures

# These bounds lie far beyond anything that is measured, and numbers within them are safe to compute with.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Side = Annotated[int, Field(ge=1, le=100_000)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Above0 = Annotated[float, Field(gt=0, le=1e15)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
AnyText = Annotated[str, Field(max_length=100_000)]
Fact = float | int | bool | AnyText | list[float] | list[int] | None
"""Condition of the machine during a measurement: a number, a text, or a list of numbers."""
Rounds = list[Annotated[list[Above0], Field(min_length=1)]] | list[Above0]
"""Times in milliseconds, one list per round; records from before 2026-11-24 have them in one list."""
_ROUNDING = 2e-4
"""Milliseconds by which a stored sample may differ from the sample that the median was computed from."""


class _Strict(BaseModel):
    """A schema that accepts no unknown keys, no texts in place of numbers, and neither NaN nor infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Data(_Strict):
    """The data set of a record."""

    name: Text
    label: Text
    synthetic: bool
    in_channels: Side
    image_size: Side
    class_names: list[Text]
    train_images: Count
    val_images: Count
    test_images: Count
    full_epochs: Count
    augment: bool
    num_classes: Positive | None = None
    full_train_images: Count | None = None
    split_seed: int | None = None
    augmentation: Text | None = None
    stands_in_for: Text | None = None
    fingerprint: Text | None = None
    batch_size: Positive | None = None
    whole_batches: bool | None = None
    mean: list[Share] | None = None
    std: list[Share] | None = None


class Config(_Strict):
    """The settings with which a record was measured."""

    budget_s: Above0 | None
    epochs: Positive | None
    max_steps: Positive | None = None
    until: Share | None = None
    command: Literal["bench", "fit", "test", "search"] = "bench"
    tested: Literal["last", "best"] = "last"
    device: Text
    precision: Text
    inference_precision: Text | None = None
    cudnn_benchmark: bool | None = None
    batch_size: Positive
    images_per_step: Positive | None = None
    speed_batch_size: Positive | None = None
    eval_batch_size: Positive | None = None
    precision_reason: AnyText | None = None
    network: Text | None = None
    memory_format: Text | None = None
    mode: Text | None = None
    engine: Text | None = None
    settle_s: Amount | None = None
    first_settle_s: Amount | None = None
    learning_rate: Above0 | None = None
    recipe: Text | None = None
    recipe_settings: dict[str, JsonValue] | None = None
    test_views: Text | None = None
    trial: Count | None = None
    values: dict[str, JsonValue] | None = None
    pruned: bool | None = None
    measures: list[Text] = []
    data_options: dict[str, JsonValue] | None = None
    processes: Positive = 1
    macs_convention: AnyText = ""


class Environment(_Strict):
    """The machine and software of a record."""

    device: Text
    threads: Positive
    packages: dict[str, Text | None]
    os: AnyText = ""
    cpu_cores: Positive | None = None
    memory_gib: Amount | None = None
    load_average: Amount | None = None
    python: AnyText = ""
    command_line: Text | None = None
    commit: Text | None = None
    dirty: bool | None = None
    accelerator: dict[str, AnyText | int | float | bool | None] | None = None
    allocator: Text | None = None
    peaks: dict[str, JsonValue] | None = None


class Point(_Strict):
    """A point of a learning curve."""

    step: Count
    train_loss: Annotated[float | None, Field(alias="train/loss")] = None
    train_accuracy: Annotated[Share | None, Field(alias="train/accuracy")] = None
    val_loss: Annotated[float | None, Field(alias="val/loss")] = None
    val_accuracy: Annotated[Share | None, Field(alias="val/accuracy")] = None


class Training(_Strict):
    """The facts about a training; a record has either all required ones, or no training at all."""

    seconds: Amount
    steps: Count
    images: Count
    epochs: Amount
    full_epochs: Count
    converged: bool
    diverged: bool
    recipe: AnyText
    optimizer: AnyText | None = None
    peak_lr: Above0
    curve: list[Point]
    steps_per_call: Positive | None = None
    evaluations: Count | None = None
    weights: Text | None = None
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


class _Measures(_Strict):
    """The figures of a record that are not plain numbers; `Measures` adds the numbers."""

    samples_ms: dict[str, Rounds] | None = None
    cold_ms: dict[str, Above0] | None = None
    conditions: dict[str, Fact] | None = None
    suspect: list[Text] = []
    process_rounds: list[Positive] = []
    process_cold_ms: list[dict[str, Above0]] = []
    process_conditions: list[dict[str, Fact]] = []
    limits: dict[str, JsonValue] | None = None
    sweep: dict[str, JsonValue] | None = None
    engine_facts: dict[str, dict[str, JsonValue]] | None = None
    energy_facts: dict[str, JsonValue] | None = None


TIMED = ("latency_ms", "inference_ms", "train_step_ms")
"""Beginnings of the keys of times, in the order of latency, inference and training."""
_TYPES: dict[Kind, Any] = {
    "count": Count,
    "number": float,
    "amount": Amount,
    "ms": Above0,
    "per second": Above0,
    "bytes": Count,
    "share": Share,
}
_numbers: dict[str, Any] = {key: (_TYPES[figure.kind] | None, None) for key, figure in figures().items()}
Measures = create_model("Measures", __base__=_Measures, **_numbers)
"""Schema of the figures of a record: those above, and an optional number per row of `cnnbench.measures`."""


class RecordFile(_Strict):
    """A record as a file stores it."""

    model: Text
    data: Data
    seed: Seed
    status: Literal["ok", "error"]
    config: Config
    environment: Environment
    created: Text
    schema_: Annotated[int, Field(alias="schema")]
    reason: AnyText = ""
    measures: Measures = Measures()  # type: ignore[valid-type]
    skipped: dict[str, AnyText] = {}
    training: Training | None = None
    confusion_matrix: list[list[Count]] | None = None


class FailedTiming(_Strict):
    """The entry of ``speed.json`` for a network that could not be timed."""

    error: AnyText


class SpeedFile(_Strict):
    """The content of ``speed.json`` in a run folder: the times of all networks."""

    figures: dict[str, dict[str, JsonValue]]
    environment: Environment
    settle_s: Amount = 0.0
    first_settle_s: Amount = 0.0


def check(schema: type[BaseModel], value: Any, where: str, mend: str) -> None:
    """Raise UserError unless a value fits a schema.

    Args:
        schema: Schema, one of the classes above.
        value: Value that was read from JSON or YAML.
        where: Name of the file, with the line if it has several documents.
        mend: Advice on what the user can do.

    Raises:
        UserError: The value does not fit; the message is one line with file, place, value, valid values and advice.
    """
    try:
        schema.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{where}: {_in_words(schema, error)}; {mend}") from None
    except RecursionError:
        raise UserError(f"{where}: its values are nested too deeply; {mend}") from None


def _in_words(schema: type[BaseModel], error: ValidationError) -> str:
    """Return the most telling of the errors that pydantic found, in words."""
    # For a union, pydantic reports an error for every alternative; the deepest one belongs to the intended alternative.
    errors = sorted(error.errors(include_url=False), key=lambda e: (-len(e["loc"]), e["type"] == "missing"))
    first = errors[0]
    place = _shortened(".".join(str(part) for part in first["loc"] if not _is_alternative(part))) or "the document"
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        # Valid keys are listed for the document itself, whose schema is at hand here, and not for objects within it.
        if len(first["loc"]) > 1:
            return f"{place} is not a key that this version knows"
        keys = [field.alias or key for key, field in schema.model_fields.items()]
        return str(unknown("key", name, keys))
    # The message lists what pydantic expects at this place, at most three alternatives of a union.
    kinds = dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in errors if e["loc"][:1] == first["loc"][:1])
    return f"{place} is {_shown(first['input'])}: {' or '.join(list(kinds)[:3])}"


def _is_alternative(part: Any) -> bool:
    """Return whether a part of an error's place is pydantic's name for an alternative of a union, not a key."""
    # pydantic names an alternative by its type, such as ``list[constrained-float]``.
    return isinstance(part, str) and (part in _ALTERNATIVES or "[" in part)


_ALTERNATIVES = ("int", "float", "bool", "str", "constrained-str")


def _shown(value: Any) -> str:
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_record(value: Any, where: str) -> None:
    """Raise UserError unless an object is a record whose figures do not contradict each other.

    Args:
        value: Object that was read from JSON.
        where: Name of the file, with the line if there are several records.

    Raises:
        UserError: The object does not fit the schema of records, or contradicts itself.
    """
    mend = "measure it again, or leave it out"
    filled = value
    # The record of a cell that was not trained has an empty object as its training.
    if isinstance(value, dict) and value.get("training") == {}:
        filled = dict(value)
        del filled["training"]
    check(RecordFile, filled, where, mend)
    for contradiction in contradictions(value):
        raise UserError(f"{where}: {contradiction}; {mend}")


def contradictions(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each contradiction in a record that fits its schema."""
    # Either both of these say that the measurement failed, or none of them does.
    reason = record.get("reason", "")
    if (record["status"] == "error") != bool(reason):
        yield f"status is '{record['status']}' and reason is '{reason}': errors have a reason, others have none"
    try:
        in_utc(record["created"])
    except (ValueError, OverflowError):
        yield f"created is '{record['created']}': it should be a date and time such as 2026-01-31T12:00:00+00:00"
    measures = record.get("measures", {})
    yield from _data(record)
    yield from _rates(record, measures)
    yield from _confusion(record, measures)
    yield from measures_contradictions(measures)
    yield from _training(record)


def in_utc(created: str) -> str:
    """Return the time of a record in UTC, in the form in which `cnnbench.record.Record` stores it.

    Args:
        created: Time in a format of ISO 8601; without a time zone, it is taken to be in UTC.

    Raises:
        ValueError: The text is no such time.
        OverflowError: The time in UTC is before the year 1 or after the year 9999.
    """
    time = datetime.fromisoformat(created)
    if time.tzinfo is None:
        time = time.replace(tzinfo=timezone.utc)
    return time.astimezone(timezone.utc).isoformat()


def _data(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield contradictions between the facts about the data and the settings."""
    data, config = record["data"], record["config"]
    if data["name"] == "Synthetic" and not data["synthetic"]:
        yield "data.synthetic is False, but data.name is 'Synthetic'"
    names = data["class_names"]
    for name in names:
        if names.count(name) > 1:
            yield f"data.class_names has '{name}' more than once"
            break
    # A benchmark has one budget; a training of `fit` may have several, the first of which ends it.
    if config.get("command", "bench") == "bench":
        if config["budget_s"] is not None and config["epochs"] is not None:
            yield "config.budget_s and config.epochs are both there; one of them ended the training"
        limits = (config["budget_s"], config["epochs"], config.get("max_steps"))
        if record.get("training") and limits == (None, None, None):
            yield "config has neither budget_s nor epochs nor max_steps, one of which ended the training"


def _rates(record: Mapping[str, Any], measures: Mapping[str, Any]) -> Iterator[str]:
    """Yield each throughput that does not follow from the median time of its batch."""
    kinds = (
        ("images_per_s", "inference_ms_median", "speed_batch_size"),
        ("train_images_per_s", "train_step_ms_median", "batch_size"),
    )
    for rate, time, size in kinds:
        if measures.get(rate) is None or measures.get(time) is None:
            continue
        # Images per second are the batch size divided by the median time of a batch in seconds.
        images = record["config"].get(size)
        if images is None:
            yield f"measures.{rate} is there, but config.{size} is not"
            continue
        expected = 1e3 * images / measures[time]
        if not math.isclose(measures[rate], expected, rel_tol=1e-3):
            yield f"measures.{rate} is {measures[rate]:g}, but {size} images in {time} make {expected:g}"


def _confusion(record: Mapping[str, Any], measures: Mapping[str, Any]) -> Iterator[str]:
    """Yield contradictions between the confusion matrix, the classes, the test images and the accuracy."""
    data, matrix = record["data"], record.get("confusion_matrix")
    classes = len(data["class_names"])
    if data.get("num_classes") not in (None, classes):
        yield f"data.num_classes is {data['num_classes']}, but data.class_names has {classes} names"
    accuracy = measures.get("test_accuracy")
    if matrix is None:
        if accuracy is not None:
            yield f"measures.test_accuracy is {accuracy} without a confusion_matrix to derive it from"
        return
    # The matrix must be square, with a row and a column per class.
    rows = [len(row) for row in matrix]
    if len(matrix) != classes or rows != [classes] * classes:
        # The sums below would be wrong for another shape, so this is the last contradiction that is looked for here.
        shape = f"{len(matrix)} rows of {', '.join(map(str, sorted(set(rows))))}"
        yield f"confusion_matrix has {shape} numbers; {classes} classes need {classes} rows of {classes}"
        return
    total, right = sum(map(sum, matrix)), sum(matrix[i][i] for i in range(classes))
    if total != data["test_images"]:
        yield f"confusion_matrix counts {total} of {data['test_images']} test images"
    elif total == 0:
        yield "confusion_matrix counts no image"
    elif accuracy is not None and not math.isclose(accuracy, right / total, abs_tol=1e-6):
        yield f"measures.test_accuracy is {accuracy}, but the confusion_matrix has {right} of {total} right"


def measures_contradictions(measures: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each contradiction between the figures of a network that fit their schema."""
    # 1 MAC is counted as 2 FLOPs.
    macs, flops = measures.get("macs"), measures.get("flops")
    if macs is not None and flops is not None and flops != 2 * macs:
        yield f"measures.flops is {flops}: it should be twice the macs, {macs}"
    # The values of these keys must not fall: lower end, value, upper end.
    orders = []
    for split in ("test", "train"):
        orders.append((f"{split}_accuracy_low", f"{split}_accuracy", f"{split}_accuracy_high"))
    for kind in TIMED:
        for low, high in (("low", "high"), ("p10", "p90")):
            orders.append((f"{kind}_{low}", f"{kind}_median", f"{kind}_{high}"))
    for names in orders:
        values = [measures[name] for name in names if measures.get(name) is not None]
        # Equal values may differ in their last digits, since they were computed in different ways.
        if any(later < earlier * (1 - 1e-9) for earlier, later in pairwise(values)):
            yield f"measures.{', '.join(names)} are {', '.join(map(str, values))}: they should not fall"
    yield from _rounds(measures)
    for kind, key in zip(("latency", "inference", "training"), TIMED, strict=True):
        yield from _samples(measures, kind, f"{key}_median")


def _rounds(measures: Mapping[str, Any]) -> Iterator[str]:
    """Yield contradictions between numbers of rounds, which must agree because times are compared round by round."""
    samples = measures.get("samples_ms") or {}
    if "yardstick" not in samples:  # from before times were stored by round
        return
    # Every kind of work has one turn per round, and the fresh processes share the rounds among them.
    counts = {kind: len(rounds) for kind, rounds in samples.items()}
    if len(set(counts.values())) > 1:
        yield f"measures.samples_ms has {', '.join(f'{n} rounds of {kind}' for kind, n in counts.items())}"
    processes = measures.get("process_rounds")
    if processes and sum(processes) != counts["yardstick"]:
        yield f"measures.process_rounds add up to {sum(processes)}, but there are {counts['yardstick']} rounds"


def _samples(measures: Mapping[str, Any], kind: str, key: str) -> Iterator[str]:
    """Yield a sentence if a median is not the median of its samples."""
    rounds, median = (measures.get("samples_ms") or {}).get(kind), measures.get(key)
    if rounds is None or median is None:
        return
    times: list[float] = []
    for block in rounds:
        # Older records have one list of times, newer ones a list per round.
        times += block if isinstance(block, list) else [block]
    if not times:
        yield f"measures.samples_ms.{kind} is empty, but {key} is {median}"
    elif abs(statistics.median(times) - median) > _ROUNDING + 1e-3 * median:
        yield f"measures.{key} is {median}, but the median of its samples is {statistics.median(times):g}"


def _training(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield contradictions between the steps, images and epochs of a training."""
    training, data = record.get("training") or {}, record["data"]
    if not training:
        return
    # The points of the curve are in the order of the training, and none lies behind its end.
    steps = [point["step"] for point in training["curve"]]
    if steps != sorted(steps) or any(step > training["steps"] for step in steps):
        yield f"training.curve has steps {str(steps)[:60]}: they should rise to {training['steps']} at most"
    # A training set smaller than the batch size makes one batch of all its images.
    batch = min(record["config"]["batch_size"], data["train_images"])
    most = training["steps"] * (record["config"].get("images_per_step") or batch)
    # A step of `fit` may have fewer images, such as the last one of an epoch that accumulates gradients.
    # So may the last step of an epoch with a loader of the user's.
    is_exact = record["config"].get("command", "bench") == "bench" and data.get("whole_batches") is not False
    if training["images"] > most or (is_exact and training["images"] < most):
        yield f"training.images is {training['images']}, which is not {training['steps']} steps of {batch} images"
    elif not math.isclose(training["epochs"] * data["train_images"], training["images"], rel_tol=1e-6, abs_tol=1e-6):
        yield f"training.epochs is {training['epochs']}, not {training['images']} of {data['train_images']} images"


def check_speed(value: Any, where: str) -> None:
    """Raise UserError unless an object fits ``speed.json`` and its figures do not contradict each other.

    Args:
        value: Object that was read from JSON.
        where: Name of the file.

    Raises:
        UserError: The object does not fit the schema, or its figures contradict each other.
    """
    mend = "delete the file, and the networks are timed again"
    check(SpeedFile, value, where, mend)
    for name, measures in value["figures"].items():
        # A network whose timing failed has an error in place of figures.
        check(FailedTiming if "error" in measures else Measures, measures, f"{where}: {name}", mend)
        for contradiction in measures_contradictions(measures):
            raise UserError(f"{where}: {name}: {contradiction}; {mend}")
