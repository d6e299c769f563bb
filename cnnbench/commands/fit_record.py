"""The record of a training or a test by ``cnnbench fit`` and ``cnnbench test``, of the same kind as in `bench`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Timer

from cnnbench.benchmark.training import TrainingHistory, run_environment, weights_facts
from cnnbench.confusion import accuracy
from cnnbench.counting.complexity import CONVENTION
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError
from cnnbench.files import reason
from cnnbench.measures import Subject, take_all
from cnnbench.network import name_of
from cnnbench.predictions import write_predictions
from cnnbench.record import Record, load_records, write_record
from cnnbench.schemas import check_record
from cnnbench.training.classifier import ImageClassifier

Tested = Literal["last", "best", "none"]


def training_record(
    trainer: L.Trainer,
    model: ImageClassifier,
    data: ImageDataModule,
    history: TrainingHistory,
    seed: int,
    weights: Path | None,
    options: Mapping[str, Any],
) -> Record:
    """Return the record of a training, without its test.

    Args:
        trainer: Trainer that ran the training.
        model: Network that was trained.
        data: Data that it was trained on.
        history: Callback that followed the training.
        seed: Seed of initialisation and training.
        weights: Checkpoint with the weights that will be tested; None if none was written.
        options: Further settings for the entry ``config`` of the record.

    Raises:
        UserError: The training goes on from a checkpoint that does not say how many images it saw.
    """
    training = history.facts(trainer, model, data.describe())
    if weights is not None:
        training |= weights_facts(weights, Path(trainer.default_root_dir))
    return _record(trainer, model, data, seed, _settings(trainer, model, data) | dict(options), training)


def _record(
    trainer: L.Trainer,
    model: ImageClassifier,
    data: ImageDataModule,
    seed: int,
    config: dict[str, Any],
    training: dict[str, Any],
) -> Record:
    """Return a record of a network with its parameters and multiply-adds."""
    device = trainer.strategy.root_device
    name, shape = name_of(model), (data.in_channels, data.image_size, data.image_size)
    taken = take_all(("complexity",), Subject(name, model, shape, data, str(device), str(trainer.precision)), False)
    return Record(
        model=name,
        data=data.describe(),
        seed=seed,
        status="ok",
        config=config,
        environment=run_environment(device),
        measures=dict(taken.figures),
        skipped=dict(taken.skipped),
        training=training,
    )


def _settings(trainer: L.Trainer, model: ImageClassifier, data: ImageDataModule) -> dict[str, Any]:
    """Return the settings of a training for its record."""
    facts = data.describe()
    timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)  # type: ignore[attr-defined]
    seconds = math.inf
    if timer is not None:
        seconds = timer.time_elapsed() + (timer.time_remaining() or 0.0)
    # Lightning has -1 and None for no limit.
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return {
        "command": "fit",
        "budget_s": round(seconds, 3) if math.isfinite(seconds) else None,
        "epochs": epochs if epochs > 0 else None,
        "max_steps": steps if steps > 0 else None,
        "device": str(trainer.strategy.root_device),
        "precision": str(trainer.precision),
        "batch_size": facts["batch_size"],
        "images_per_step": facts["batch_size"] * trainer.world_size * trainer.accumulate_grad_batches,
        "eval_batch_size": min(data.eval_batch_size, facts["test_images"]),
        "memory_format": str(model.memory_format).removeprefix("torch."),
        "macs_convention": CONVENTION,
    }


def with_test(record: Record, model: ImageClassifier) -> Record:
    """Return a record with the outcome of the last test of its network.

    Args:
        record: Record of the training.
        model: Network that was tested.

    Raises:
        UserError: The test saw a part of the test set only, whose accuracy would not compare with others.
    """
    matrix = model.confusion_counts("test")
    seen, images = sum(map(sum, matrix)), record.data["test_images"]
    if seen != images:
        raise UserError(f"the test saw {seen:,} of {images:,} images")
    return replace(record, confusion_matrix=matrix, measures={**record.measures, **accuracy(matrix)})


def record_of_weights(checkpoint: Path) -> Record | None:
    """Return the record of the training that wrote a checkpoint, or None if there is none beside it.

    Args:
        checkpoint: Checkpoint in a subfolder of a run folder of `fit` or `bench`.

    Raises:
        UserError: A record beside the checkpoint is damaged.
    """
    run = checkpoint.parent.parent
    files = sorted((run / "records").glob("*.json"))
    if not files:
        return None
    found = weights_facts(checkpoint, run)
    for record in load_records(files):
        # The hash tells whether the file still holds the weights that the record describes.
        if {key: record.training.get(key) for key in found} == found:
            return record
    return None


def tested_record(
    trainer: L.Trainer, model: ImageClassifier, data: ImageDataModule, seed: int, before: Record | None
) -> Record:
    """Return the record of a test of a checkpoint.

    Args:
        trainer: Trainer that ran the test.
        model: Network that was tested.
        data: Data that it was tested on.
        seed: Seed of this command, for a network whose training has no record.
        before: Record of its training; None if there is none.

    Raises:
        UserError: The test saw a part of the test set only.
    """
    config: dict[str, Any] = _settings(trainer, model, data)
    training: dict[str, Any] = {}
    # With other data, such as another split, the facts about the training would contradict those about the data.
    if before is not None and before.data == data.describe():
        config, training, seed = before.config | {"precision": config["precision"]}, before.training, before.seed
    return with_test(_record(trainer, model, data, seed, config | {"command": "test"}, training), model)


def write(record: Record, model: ImageClassifier, folder: Path) -> Path:
    """Write a record into a run folder, with the predicted classes of its test; return the path of the record.

    Args:
        record: Record to write.
        model: Network that was tested, if the record has a test.
        folder: Run folder.

    Raises:
        UserError: The record contradicts itself, or a file cannot be written.
    """
    check_record(asdict(record), "the record of this run")
    path = folder / "records" / f"{record.key}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, record)
        if record.confusion_matrix is not None and model.trainer.world_size == 1:
            predictions = folder / "predictions" / f"{record.key}.npz"
            write_predictions(predictions, model.test_predictions(), record.data["num_classes"])
    except OSError as error:
        raise UserError(f"record '{path}' cannot be written: {reason(error)}") from error
    return path


def test_words(record: Record) -> str:
    """Return the accuracy of a tested network in words, with its interval."""
    found = record.measures
    low, high = found["test_accuracy_low"], found["test_accuracy_high"]
    images = record.data["test_images"]
    return f"test accuracy {found['test_accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}), {images:,} images"
