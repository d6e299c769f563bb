"""Checkpoints: written whole or not at all, and read as data.

A checkpoint is a zip archive with a checksum for each part, which torch does not look at; here damage is found before
anything is used. Nothing in it is run: tensors and plain values alone are unpickled, and the network that it names is
built only if `cnnbench.trust` allows it.
"""

from __future__ import annotations

import errno
import importlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor, nn

from cnnbench.data import all_data
from cnnbench.errors import UserError
from cnnbench.files import check_regular, reason, replacing
from cnnbench.models import all_models
from cnnbench.network import External
from cnnbench.registry import check_arguments
from cnnbench.training.classifier import ImageClassifier
from cnnbench.trust import Trust, check_network

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool)
MADE_BY = "`cnnbench fit` makes checkpoints"


def open_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint: check that it is not damaged, and unpickle tensors and plain values alone.

    Returns:
        What Lightning stored, with ``state_dict`` and ``hyper_parameters``; tensors are on the CPU.

    Raises:
        UserError: It is damaged, or not a checkpoint.
    """
    check_regular(path, "checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch stores the parts as they are; a compressed one could be far larger than the file.
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise UserError(f"checkpoint '{path}' has compressed parts, which torch never writes; {MADE_BY}")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{path}' is not a checkpoint, or is damaged: {reason(error)}; {MADE_BY}") from error
    if damaged is not None:
        raise UserError(f"checkpoint '{path}' is damaged: the checksum of its part '{damaged}' is wrong; use another")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensors that are refused below
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes make it raise
        text = reason(error).partition(". ")[0]
        raise UserError(f"'{path}' is not a checkpoint of `cnnbench fit`: {text}; {MADE_BY}") from error
    _check_parts(path, stored)
    return stored


def _check_parts(path: Path, stored: Any) -> None:
    """Raise unless the parts that everybody reads are there and of their types."""
    if not isinstance(stored, dict) or not {"state_dict", "hyper_parameters"} <= stored.keys():
        raise UserError(f"'{path}' is not a checkpoint of `cnnbench fit`: it has no weights or no network; {MADE_BY}")
    weights, options = stored["state_dict"], stored["hyper_parameters"]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"'{path}' is not a checkpoint of `cnnbench fit`: its weights are not tensors; {MADE_BY}")
    for name, value in weights.items():
        if value.layout != torch.strided or value.dtype not in _DTYPES:
            raise UserError(f"weight {name} in checkpoint '{path}' is {value.dtype}, which no network here has")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"weight {name} in checkpoint '{path}' is not finite; use an earlier checkpoint")
    # Lightning's own class of attributes is a dict.
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise UserError(f"'{path}' is not a checkpoint of `cnnbench fit`: it does not say how the network is built")


class CheckpointFile(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them, and checks those that it reads.

    Lightning's own writes into the temporary folder of the system and moves the file, which over a border of file
    systems is a copy onto the good checkpoint: stopped in the middle, neither is left.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not used for files")
        if "://" in str(path):  # a store that is no file system has its own way of being whole
            super().save_checkpoint(checkpoint, path)
            return
        with replacing(Path(path)) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # what torch makes of a file that it cannot write
                file.write(bytes(2**20))  # a disk that is full says so here
                file.flush()
                raise OSError(errno.EIO, reason(error), str(path)) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return open_checkpoint(Path(path))


def write_halved(source: Path, target: Path) -> None:
    """Write a checkpoint anew with weights in half precision, which take half the bytes.

    Raises:
        UserError: The checkpoint is damaged, or a weight is too large for half precision.
    """
    stored = open_checkpoint(source)
    halved = {}
    for name, value in stored["state_dict"].items():
        halved[name] = value.half() if value.is_floating_point() else value
        if value.is_floating_point() and not bool(halved[name].isfinite().all()):
            raise UserError(f"weight {name} in '{source}' is too large for half precision")
    CheckpointFile().save_checkpoint({**stored, "state_dict": halved}, target)


class Checkpoint(NamedTuple):
    """What a checkpoint of ``cnnbench fit`` has.

    Attributes:
        model: The network, on the CPU.
        data: Name of the data set that it was trained on, if it is one of ours.
        data_options: The arguments of that data set; None in a checkpoint of before they were stored.
    """

    model: ImageClassifier
    data: str | None
    data_options: dict[str, Any] | None


def read_checkpoint(path: Path, trust: Trust | None = None) -> Checkpoint:
    """Build the network of a checkpoint that ``cnnbench fit`` wrote, and return it with what it says of its data.

    Args:
        path: The file.
        trust: What the user named on the command line, for a network from outside the package.

    Raises:
        UserError: The file is not such a checkpoint, it names code from outside, or its network is now another one.
    """
    stored = open_checkpoint(path)
    where = f"checkpoint '{path}'"
    factory, options = network_of(stored, where, trust or Trust())
    model = _built(factory, options, stored["state_dict"], where)
    data = next((key for key in stored if key in all_data()), None)
    given = stored.get("datamodule_hyper_parameters")
    data_options = None
    if isinstance(given, Mapping):
        data_options = {key: value for key, value in given.items() if not str(key).startswith("_")}
    return Checkpoint(model, data, data_options)


def network_of(stored: Mapping[str, Any], where: str, trust: Trust) -> tuple[type[ImageClassifier], dict[str, Any]]:
    """Return the class of the network that a checkpoint names, and its arguments, all of them checked.

    Args:
        stored: Of `open_checkpoint`.
        where: The file, for the message.
        trust: What the user named on the command line.

    Raises:
        UserError: The class is not one of this package or of the user's words, or an argument is not one of its.
    """
    options = {key: value for key, value in stored["hyper_parameters"].items() if key != "_instantiator"}
    factory = _class_of(options.pop("_class_path", None), where, trust)
    if issubclass(factory, External):
        check_network(str(options.get("name")), where, trust)
    check_arguments(f"the network in {where}", factory, options)
    for key, value in options.items():
        # Sizes from a file decide how much memory is taken, before the weights show that they are wrong.
        if isinstance(value, int) and value > LARGEST:
            raise UserError(f"{where}: {key} {value} is larger than any network here has ({LARGEST:,})")
        if key in ("num_classes", "in_channels", "image_size") and isinstance(value, int) and value < 1:
            raise UserError(f"{where}: {key} {value} must be at least 1; use an undamaged checkpoint")
    return factory, options


def check_training_state(stored: Mapping[str, Any], where: str) -> None:
    """Raise unless a checkpoint has what a training goes on with, not weights alone.

    Raises:
        UserError: Something is missing, or is not what Lightning stores.
    """
    kinds: dict[str, type] = {
        "loops": dict,
        "optimizer_states": list,
        "lr_schedulers": list,
        "callbacks": dict,
        "epoch": int,
    }
    for key, kind in (kinds | {"global_step": int}).items():
        value = stored.get(key)
        is_negative = isinstance(value, int) and value < 0
        is_huge = isinstance(value, int) and value > MOST_STEPS
        if not isinstance(value, kind) or isinstance(value, bool) or is_negative or is_huge:
            raise UserError(
                f"{where} has no state of a training to go on with: its {key} is {str(value)[:40]!r}; give another, or "
                "train from the start without --ckpt_path"
            )
    if not stored["optimizer_states"]:
        raise UserError(f"{where} has no state of an optimizer, so its training cannot go on; train from the start")


def _class_of(path: Any, where: str, trust: Trust) -> type[ImageClassifier]:
    """Return the class of a network that a checkpoint names: one of the zoo, or of a module that the user trusts."""
    if not isinstance(path, str):
        raise UserError(f"{where} does not name its network; {MADE_BY}")
    known = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in (*all_models().values(), External)}
    if path in known:
        return known[path]
    module, _, name = path.rpartition(".")
    if not trust.covers(module) and path not in trust.typed:
        raise UserError(
            f"{where} names the network '{path}', which is none of cnnbench; if you trust its code, add "
            f"--trust {module or path}"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where} names the network '{path}', which cannot be imported: {reason(error)}") from error
    if not isinstance(found, type) or not issubclass(found, ImageClassifier):
        raise UserError(f"{where} names '{path}', which is not an ImageClassifier; {MADE_BY}")
    return found


def _built(
    factory: type[ImageClassifier], options: dict[str, Any], weights: Mapping[str, Tensor], where: str
) -> ImageClassifier:
    """Build a network from values of a file and give it its weights."""
    try:
        with torch.device("meta"):
            shapes = {name: tuple(value.shape) for name, value in factory(**options).state_dict().items()}
    except Exception:  # a constructor that computes with its weights; it is built below
        shapes = None
    if shapes is not None:
        _check_shapes(factory, shapes, weights, where)
    try:
        model = factory(**options)
        model.load_state_dict(dict(weights))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:
        raise UserError(f"the weights in {where} are not those of {factory.__name__}: {reason(error)}") from error
    return model


MOST_STEPS = 2**53
"""Steps and epochs of a training that a checkpoint may have."""
LARGEST = 100_000
"""Largest whole number among the arguments of a network in a checkpoint, such as its classes or channels."""


def _check_shapes(
    factory: type[nn.Module], shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], where: str
) -> None:
    start = f"the weights in {where} are not those of {factory.__name__}"
    for name, shape in shapes.items():
        if name not in weights:
            raise UserError(f"{start}: {name} is missing")
        if tuple(weights[name].shape) != shape:
            raise UserError(f"{start}: {name} is {tuple(weights[name].shape)}, not {shape}")
    further = [name for name in weights if name not in shapes]
    if further:
        raise UserError(f"{start}: they have {further[0]} besides")
