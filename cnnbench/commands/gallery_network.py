"""What the gallery says about its trained network: what it is, how it was trained, and how good it is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnbench.commands.fit_record import record_of_weights
from cnnbench.errors import UserError
from cnnbench.explain.gallery import Trained
from cnnbench.explain.networks import Subject, load_checkpoint
from cnnbench.explain.options import DataOptions
from cnnbench.record import Record, load_records
from cnnbench.references import FILE, REFERENCE_SEED, percent, weights_file
from cnnbench.trust import OPTION

UNKNOWN = "How it was trained is not known, since there is no record beside its checkpoint."


def describe_shipped(name: str, data: str) -> Trained:
    """Return what the page says about a network whose weights the package ships.

    Args:
        name: Name of the network.
        data: Name of the data set that it was trained on.

    Raises:
        UserError: The package has no such weights.
    """
    trained = describe_training(weights_file(name, data))
    return trained._replace(history=history(_shipped_record(name, data)), shipped=name)


def _shipped_record(name: str, data: str) -> Record | None:
    """Return the record of the training whose weights the package ships."""
    for record in load_records([FILE]):
        if (record.model, record.data["name"], record.seed) == (name, data, REFERENCE_SEED):
            return record
    return None


def describe_training(
    checkpoint: Path, command: str = "", trusted: Sequence[str] = (), images: str | None = None
) -> Trained:
    """Return what the page says about a trained network.

    Args:
        checkpoint: Checkpoint of the trained network.
        command: Command line that trained it; empty if it is not known.
        trusted: Modules whose networks the checkpoint may name.
        images: Data set of the images on the page; None for the one that the network was trained on.

    Raises:
        UserError: The checkpoint cannot be read, or names no data set and `images` does not either.
    """
    subject = load_checkpoint(checkpoint, DataOptions(data=images, trust=tuple(trusted)))
    data = subject.data
    if data is None:
        raise UserError(f"checkpoint '{checkpoint}' does not say what it was trained on; add --data NAME")
    # The label of a data set depends on the copy that is on the disk, so the files have to be read first.
    data.prepare_data()
    data.setup()
    trust = []
    if trusted:
        trust.append(f"{OPTION}={','.join(trusted)}")
    sentences = history(record_of_weights(checkpoint))
    if subject.caveat:
        sentences.append(subject.caveat)
    return Trained(
        written_name(subject.model),
        data.label,
        checkpoint,
        _data_words(subject),
        sentences,
        command,
        trust,
        other_images=images is not None,
    )


def _data_words(subject: Subject) -> list[str]:
    """Return the words that name the data set of a network to a tool, with the arguments that are not defaults."""
    data = subject.data
    assert data is not None
    words = [str(data.name)]
    if data.image_size != data.default_size:
        words.append(f"--image_size={data.image_size}")
    # Only some data sets, such as Synthetic, let the user choose the number of channels.
    default = inspect.signature(type(data)).parameters.get("in_channels")
    if default is not None and data.in_channels != default.default:
        words.append(f"--in_channels={data.in_channels}")
    return words


def history(record: Record | None) -> list[str]:
    """Return sentences on how a network was trained and how good it is, from the record of its training."""
    if record is None:
        return [UNKNOWN]
    training, data = record.training, record.data
    epochs = f"{training['epochs']:.3g}"
    word = "epoch" if epochs == "1" else "epochs"
    where = f"on {record.environment['device']} ({record.created[:10]})"
    sentences = [
        f"It was trained for {epochs} {word} on {data['train_images']:,} images of {data['label']}, in "
        f"{_duration(training['seconds'])} {where}.",
        f"Recipe: {training['recipe']}. Augmentation: {data['augmentation']}.",
    ]
    measures = record.measures
    if "test_accuracy" in measures:
        low, high = percent(measures["test_accuracy_low"]), percent(measures["test_accuracy_high"])
        sentences.append(
            f"It classifies {percent(measures['test_accuracy'])} of {data['test_images']:,} test images correctly "
            f"(95 % interval {low} to {high})."
        )
        precision = record.config.get("inference_precision", "32-true")
        if precision != "32-true":
            sentences.append(
                f"That test computed in {precision}. This page computes in float32, so its counts may differ a little."
            )
    if not training["converged"]:
        sentences.append(f"A full training on these images takes {training['full_epochs']} epochs.")
    return sentences


def _duration(seconds: float) -> str:
    """Return a time in words: in seconds below two minutes, else in minutes."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes"


def written_name(model: Any) -> str:
    """Return a network as it is written on the command line: its name, with the arguments that are not defaults."""
    chosen = []
    for key, parameter in inspect.signature(type(model).__init__).parameters.items():
        # For a network from outside the zoo, `display_name` already is the argument ``name``.
        if key == "name" or key not in model.hparams:
            continue
        value = _as_list(model.hparams[key])
        if value != _as_list(parameter.default):
            chosen.append(f"{key}={value}")
    name = str(model.display_name)
    if chosen:
        name += f"({','.join(chosen)})"
    return name


def _as_list(value: Any) -> Any:
    """Return a tuple as a list, which is what a checkpoint makes of it, and any other value unchanged."""
    return list(value) if isinstance(value, tuple) else value
