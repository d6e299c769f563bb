"""The work behind `cnnbench export`: the program of a network, its files, and how far their outputs are from it."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from cnnbench import progress
from cnnbench.commands.export import Options
from cnnbench.console import note, out_json
from cnnbench.counting.complexity import complexity
from cnnbench.data.module import ImageDataModule
from cnnbench.engines import CALIBRATION_IMAGES, FORMATS, INT8
from cnnbench.engines.accuracy import Paired, right_answers
from cnnbench.engines.comparison import Difference, check_same, compare_logits, random_images
from cnnbench.engines.export import (
    Deployed,
    bytes_of_weights,
    bytes_on_disk,
    files_of,
    record_program,
    write_program,
    write_quantised,
)
from cnnbench.engines.sessions import Session, logits_of, open_file
from cnnbench.errors import UserError
from cnnbench.explain.networks import Subject, find_subject, predict
from cnnbench.files import safe_name
from cnnbench.hardware import weights_type
from cnnbench.record import environment
from cnnbench.units import plain, with_unit

_CPU = torch.device("cpu")


def export(options: Options) -> int:
    """Write a network in every format that the options name, compare each file with the network, and return 0.

    Raises:
        UserError: The network cannot be exported or quantised, or a file does not hold the same network; that file is
            deleted.
    """
    subject = find_subject(options)
    data = _opened(subject.data, options)
    images = _images(subject, data, options)
    network = _Network(subject.model, data)
    with progress.doing("recording the network"):
        # A copy has the weights in the number format of the file; the network itself stays in float32.
        dtype = weights_type(options.precision)
        deployed = _deployed(copy.deepcopy(subject.model), data if options.normalise else None).to(dtype)
        program = record_program(deployed, subject.image_shape, subject.name, dtype)
    facts = _metadata(subject, data, options)
    if options.tests and subject.caveat:
        note(subject.caveat)
    options.out.mkdir(parents=True, exist_ok=True)
    written = []
    # Files are made and compared in a hidden folder. They replace older ones only when they are right.
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".part-") as part:
        for name in options.to:
            made = Path(part) / _file_name(subject, data, options, name)
            with progress.doing(f"writing {FORMATS[name].title}"):
                quantisation = _write(program, name, made, facts, data, options)
            of_file = _logits_of_file(made, name, data, options)
            with progress.doing(f"comparing {made.name} with torch"):
                differences = [compare_logits(kind, network.logits, of_file, x) for kind, x in images.items()]
            check_same(differences, options.precision, f"{FORMATS[name].title} of {subject.name}")
            entry = _entry(name, options.out / made.name, made, differences)
            entry["replaced"] = (options.out / made.name).exists()
            entry["bytes_of_float32"] = network.bytes
            if quantisation:
                entry["quantisation"] = quantisation
            if options.tests:
                with progress.doing(f"testing {made.name}"):
                    entry["test"] = network.tested(f"{options.precision} in {FORMATS[name].title}", of_file)
            written.append(entry)
            # The last file, which may need the others, is moved last.
            for file in reversed(files_of(made)):
                os.replace(file, options.out / file.name)
            _say(entry, differences)
    if options.json:
        out_json({"network": facts, "files": written})
    return 0


class _Network:
    """The network itself, in float32 in torch, to which files are compared.

    Args:
        model: Network.
        data: Data set whose test images files are tested on; None if there is none.
    """

    def __init__(self, model: nn.Module, data: ImageDataModule | None) -> None:
        self._deployed, self._data = Deployed(model), data
        self.bytes = bytes_of_weights(model)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of normalised images, (N, K)."""
        return predict(self._deployed, [(images, images)])

    @functools.cached_property
    def _right(self) -> np.ndarray:
        """Return whether the network classifies each test image right, (N,)."""
        assert self._data is not None
        return right_answers(self.logits, self._data.test_dataloader())

    def tested(self, file: str, of_file: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Test a file and the network itself on the whole test set, and return what the two say for JSON.

        Args:
            file: Name of the file in sentences.
            of_file: Function that returns its logits, (N, K), of normalised images, (N, C, H, W).
        """
        assert self._data is not None
        right = right_answers(of_file, self._data.test_dataloader())
        images = f"all {len(right):,} test images of {self._data.label}"
        return Paired(file, images, right, self._right).document()


def _write(
    program: ExportedProgram,
    format_name: str,
    path: Path,
    facts: dict[str, Any],
    data: ImageDataModule | None,
    options: Options,
) -> dict[str, Any]:
    """Write a program, quantised for int8, and return the facts about its quantisation; empty if there is none."""
    name = facts["network"]
    if options.precision != INT8:
        write_program(program, format_name, path, facts, name)
        return {}
    assert data is not None
    count = options.calibration_images or CALIBRATION_IMAGES
    images = torch.cat([batch for batch, _ in data.first_training_batches(count)])
    if options.normalise:
        images = _as_before(images, data)
    words = f"the first {len(images):,} images of the training split of {data.label}"
    return write_quantised(program, format_name, path, facts, name, images, words)


def _opened(data: ImageDataModule | None, options: Options) -> ImageDataModule | None:
    """Read the files of a data set, and return it.

    Raises:
        UserError: There is none, and an option needs one.
    """
    if data is None:
        if options.normalise:
            raise UserError("--normalise takes mean and deviation from a data set; add --data NAME")
        if options.tests:
            raise UserError("int8 and --test take training and test images from a data set; add --data NAME")
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


def _logits_of_file(
    path: Path, format_name: str, data: ImageDataModule | None, options: Options
) -> Callable[[Tensor], Tensor]:
    """Return the function that returns a file's logits, (N, K), of normalised images, (N, C, H, W)."""
    session: Session = open_file(format_name, path, options.precision, _CPU)

    def of_file(x: Tensor) -> Tensor:
        if options.normalise:
            assert data is not None
            # The file normalises, so it gets the images as they were before.
            x = _as_before(x, data)
        return logits_of(session, x)

    return of_file


def _as_before(images: Tensor, data: ImageDataModule) -> Tensor:
    """Return normalised images with values from 0 to 1, as they were before the normalisation."""
    return images * _per_channel(data.std) + _per_channel(data.mean)


def _per_channel(values: tuple[float, ...]) -> Tensor:
    """Return a value per channel in the shape that broadcasts over images, (1, C, 1, 1)."""
    return torch.tensor(values).view(1, -1, 1, 1)


def _file_name(subject: Subject, data: ImageDataModule | None, options: Options, format_name: str) -> str:
    """Return the name of a file: network, data set of its training, what the options change in it, and format."""
    parts = [subject.name]
    if subject.trained and data is not None:
        parts.append(str(data.name))
    if options.precision != "32-true":
        parts.append(options.precision)
    if options.normalise:
        parts.append("normalised")
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
    """Print where a file is, how far its outputs are from those of the network, and what its test says."""
    share = entry["bytes"] / entry["bytes_of_float32"]
    size = f"{with_unit(entry['bytes'], 'B')}, {plain(share)} times the weights in float32"
    replaced = "; it replaces an older file of this name" if entry["replaced"] else ""
    note(f"{entry['path']}: {FORMATS[entry['format']].title}, {size}{replaced}")
    for difference in differences:
        note(f"  {difference.words}")
    if "quantisation" in entry:
        how = entry["quantisation"]
        note(f"  int8 by {how['tool']} ({how['version']}): {how['method']}; calibrated on {how['calibrated_on']}")
    for sentence in entry.get("test", {}).get("sentences", ()):
        note(f"  {sentence}")


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
