"""The work behind `cnnbench export`: the program of a network, its files, and how far their outputs are from it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnbench import progress
from cnnbench.commands.export import Options
from cnnbench.console import note, out_json
from cnnbench.counting.complexity import complexity
from cnnbench.data.module import ImageDataModule
from cnnbench.engines import FORMATS
from cnnbench.engines.comparison import Difference, check_same, compare_logits, random_images
from cnnbench.engines.export import Deployed, bytes_on_disk, files_of, record_program, write_program
from cnnbench.engines.sessions import logits_of, open_file
from cnnbench.errors import UserError
from cnnbench.explain.networks import Subject, find_subject, predict
from cnnbench.files import safe_name
from cnnbench.hardware import weights_type
from cnnbench.record import environment
from cnnbench.units import with_unit

_CPU = torch.device("cpu")


def export(options: Options) -> int:
    """Write a network in every format that the options name, compare each file with the network, and return 0.

    Raises:
        UserError: The network cannot be exported, or a file does not hold the same network; that file is deleted.
    """
    subject = find_subject(options)
    data = _opened(subject.data, options)
    reference = Deployed(subject.model)
    images = _images(subject, data, options)
    dtype = weights_type(options.precision)
    with progress.doing("recording the network"):
        # A copy has the weights in the number format of the file; the network itself stays in float32.
        deployed = _deployed(find_subject(options).model, data if options.normalise else None).to(dtype)
        program = record_program(deployed, subject.image_shape, subject.name, dtype)
    facts = _metadata(subject, data, options)
    options.out.mkdir(parents=True, exist_ok=True)
    written = []
    # Files are made and compared in a hidden folder. They replace older ones only when they are right.
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".part-") as part:
        for name in options.to:
            made = Path(part) / _file_name(subject, data, options, name)
            with progress.doing(f"writing {FORMATS[name].title}"):
                write_program(program, name, made, facts, subject.name)
            differences = _compare(reference, data if options.normalise else None, made, name, options, images)
            check_same(differences, options.precision, f"{FORMATS[name].title} of {subject.name}")
            written.append(_entry(name, options.out / made.name, made, differences))
            # The last file, which may need the others, is moved last.
            for file in reversed(files_of(made)):
                os.replace(file, options.out / file.name)
            _say(written[-1], differences)
    if options.json:
        out_json({"network": facts, "files": written})
    return 0


def _opened(data: ImageDataModule | None, options: Options) -> ImageDataModule | None:
    """Read the files of a data set, and return it."""
    if data is None:
        if options.normalise:
            raise UserError("--normalise takes mean and deviation from a data set; add --data NAME")
        return None
    data.prepare_data()
    data.setup()
    return data


def _deployed(model: nn.Module, data: ImageDataModule | None) -> Deployed:
    """Return a network as it is exported, with the normalisation of a data set, if one is given, inside."""
    return Deployed(model) if data is None else Deployed(model, data.mean, data.std)


def _images(subject: Subject, data: ImageDataModule | None, options: Options) -> dict[str, Tensor]:
    """Return images to compare on, normalised, (N, C, H, W), by what they are."""
    images = {"random images": random_images(subject.image_shape, options.seed)}
    if data is not None:
        batches = [batch for batch, _ in data.first_training_batches(options.images)]
        images[f"training images of {data.label}"] = torch.cat(batches)
    return images


def _compare(
    reference: Deployed,
    inside: ImageDataModule | None,
    path: Path,
    format_name: str,
    options: Options,
    images: dict[str, Tensor],
) -> list[Difference]:
    """Compare a file with the network on images.

    Args:
        reference: Network itself, which takes normalised images.
        inside: Data set whose normalisation is inside the file; None if the file takes normalised images.
        path: File to compare.
        format_name: Format of the file.
        options: Options of the command.
        images: Normalised images by what they are.
    """
    session = open_file(format_name, path, options.precision, _CPU)

    def of_file(x: Tensor) -> Tensor:
        if inside is not None:
            # The file normalises, so it gets the images as they were before.
            x = x * _per_channel(inside.std) + _per_channel(inside.mean)
        return logits_of(session, x)

    def of_network(x: Tensor) -> Tensor:
        return predict(reference, [(x, x)])

    with progress.doing(f"comparing {path.name} with torch"):
        return [compare_logits(name, of_network, of_file, x) for name, x in images.items()]


def _per_channel(values: tuple[float, ...]) -> Tensor:
    """Return a value per channel in the shape that broadcasts over images, (1, C, 1, 1)."""
    return torch.tensor(values).view(1, -1, 1, 1)


def _file_name(subject: Subject, data: ImageDataModule | None, options: Options, format_name: str) -> str:
    """Return the name of a file: network, data set of its training, number format if it is not float32, and format."""
    parts = [subject.name]
    if subject.trained and data is not None:
        parts.append(str(data.name))
    if options.precision != "32-true":
        parts.append(options.precision)
    # Two formats have the same end.
    if format_name == "aot-inductor":
        parts.append("aot")
    return safe_name("-".join(parts)) + FORMATS[format_name].suffix


def _metadata(subject: Subject, data: ImageDataModule | None, options: Options) -> dict[str, Any]:
    """Return what a file says about its network."""
    counts = complexity(subject.model, subject.image_shape, training=False)
    machine = environment("", torch.get_num_threads())
    facts: dict[str, Any] = {
        "network": subject.name,
        "trained": subject.trained,
        "image_shape": list(subject.image_shape),
        "precision": options.precision,
        "params": counts.params,
        "macs": counts.macs,
        "cnnbench": importlib.metadata.version("cnnbench"),
        "commit": machine["commit"],
        "packages": {name: version for name, version in machine["packages"].items() if version},
        "normalisation": "of the caller",
    }
    if options.ckpt_path is not None:
        facts["checkpoint_sha256"] = hashlib.sha256(options.ckpt_path.read_bytes()).hexdigest()
    if data is not None:
        facts |= {"data": data.label, "classes": list(data.class_names), "mean": data.mean, "std": data.std}
        if options.normalise:
            facts["normalisation"] = "inside"
    return facts


def _say(entry: dict[str, Any], differences: list[Difference]) -> None:
    """Print where a file is, and how far its outputs are from those of the network."""
    note(f"{entry['path']}: {FORMATS[entry['format']].title}, {with_unit(entry['bytes'], 'B')}")
    for difference in differences:
        note(f"  {difference.words}")


def _entry(format_name: str, path: Path, made: Path, differences: list[Difference]) -> dict[str, Any]:
    """Return the entry of a file in the JSON document.

    Args:
        format_name: Format of the file.
        path: Place of the file.
        made: Place where it still is.
        differences: How far its outputs are from those of the network.
    """
    return {
        "format": format_name,
        "path": str(path),
        "bytes": bytes_on_disk(made),
        "differences": [{**asdict(each), "relative": each.relative} for each in differences],
    }
