"""Checkpoints: written completely or not at all, and read as data that runs no code.

A checkpoint is a zip archive with a checksum for each part. torch ignores these checksums; here they are verified
before anything is used. Only tensors and plain values are unpickled, and the network that a checkpoint names is built
only if `cnnbench.trust` allows it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor, nn

from cnnbench.data import all_data
from cnnbench.errors import UserError
from cnnbench.files import check_regular, reason, replacing
from cnnbench.models import all_models
from cnnbench.network import External
from cnnbench.registry import check_arguments
from cnnbench.training.classifier import CLASS_KEY, ImageClassifier
from cnnbench.training.settings import LINKED
from cnnbench.trust import Trust, check_code

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool)
MADE_BY = "`cnnbench fit` makes checkpoints"


def is_url(path: Path | str) -> bool:
    """Return whether a path is the address of a file elsewhere, such as ``https://...`` or ``s3://...``."""
    return re.match(r"[A-Za-z][\w+.-]*://", str(path)) is not None


@contextlib.contextmanager
def local_copy(path: Path | str) -> Iterator[Path]:
    """Yield a file with the content of a checkpoint: the file itself, or a copy of what an address names.

    The copy is deleted at the end of the block.

    Args:
        path: Path of a file, or an address of any file system that fsspec knows.

    Raises:
        UserError: The address cannot be read.
    """
    if not is_url(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="cnnbench-") as folder:
        copy = Path(folder) / "fetched.ckpt"
        try:
            system, name = fsspec.core.url_to_fs(str(path))
            system.get_file(name, str(copy))
        except Exception as error:  # each file system raises errors of its own
            raise UserError(
                f"checkpoint '{path}' cannot be fetched: {type(error).__name__}: {reason(error)}; name a file instead"
            ) from error
        yield copy


def open_checkpoint(path: Path | str, named: str | None = None) -> dict[str, Any]:
    """Return the content of a checkpoint after verifying it; only tensors and plain values are unpickled.

    Args:
        path: Path or address of the checkpoint.
        named: Name of the checkpoint in messages; None for the path.

    Returns:
        Dictionary that Lightning stored, with ``state_dict`` and ``hyper_parameters``; its tensors are on the CPU.

    Raises:
        UserError: The file is damaged, or is not a checkpoint, or its address cannot be read.
    """
    with local_copy(path) as file:
        return _opened(file, named or str(path))


def _opened(path: Path, named: str) -> dict[str, Any]:
    check_regular(path, "checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch never compresses the parts; a compressed part could expand to far more than the size of the file.
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise UserError(f"checkpoint '{named}' has compressed parts, which torch never writes; {MADE_BY}")
            # testzip reads all parts and returns the name of the first one whose CRC-32 is wrong, or None.
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        # A UserError is a ValueError, so the one that is raised above arrives here too.
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{named}' is not a checkpoint, or is damaged: {reason(error)}; {MADE_BY}") from error
    if damaged is not None:
        raise UserError(f"checkpoint '{named}' is damaged: the checksum of its part '{damaged}' is wrong; use another")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about kinds of tensors that are refused below
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        text = reason(error).partition(". ")[0]
        raise UserError(f"'{named}' is not a checkpoint of `cnnbench fit`: {text}; {MADE_BY}") from error
    _check_parts(named, stored)
    return stored


def _check_parts(named: str, stored: Any) -> None:
    """Raise UserError unless the weights and the arguments of the network exist and have the right types."""
    if not isinstance(stored, dict) or "state_dict" not in stored:
        raise UserError(f"'{named}' is not a checkpoint of `cnnbench fit`: it has no weights or no network; {MADE_BY}")
    # A LightningModule that does not save its arguments has none in its checkpoints.
    weights, options = stored["state_dict"], stored.setdefault("hyper_parameters", {})
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"'{named}' is not a checkpoint of `cnnbench fit`: its weights are not tensors; {MADE_BY}")
    for name, value in weights.items():
        _check_weight(named, name, value)
    # Lightning stores the arguments as a class of its own that derives from dict.
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise UserError(f"'{named}' is not a checkpoint of `cnnbench fit`: it does not say how the network is built")


def _check_weight(named: str, name: str, value: Tensor) -> None:
    """Raise UserError unless a weight is a plain tensor of finite numbers."""
    if value.layout != torch.strided or value.dtype not in _DTYPES:
        raise UserError(f"weight {name} in checkpoint '{named}' is {value.dtype}, which no network here has")
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise UserError(f"weight {name} in checkpoint '{named}' is not finite; use an earlier checkpoint")


class CheckpointFile(TorchCheckpointIO):
    """Lightning plugin that writes a checkpoint beside its final path, renames it, and verifies what it reads.

    Lightning's own plugin writes into the temporary folder of the system and moves the file. Between two file systems
    such a move is a copy over the previous checkpoint, so an interruption destroys both.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not used for files")
        if is_url(path):  # a remote store writes complete files in its own way
            super().save_checkpoint(checkpoint, path)
            return
        with replacing(Path(path)) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch raises this for any file that it cannot write
                file.write(bytes(2**20))  # on a full disk this raises the real error
                file.flush()
                raise OSError(errno.EIO, reason(error), str(path)) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return open_checkpoint(path)


def write_halved(source: Path, target: Path) -> None:
    """Write a copy of a checkpoint with its weights in half precision, which halves their size.

    Args:
        source: Path of the checkpoint.
        target: Path of the copy.

    Raises:
        UserError: The checkpoint is damaged, or a weight is too large for half precision.
    """
    stored = open_checkpoint(source)
    halved = {}
    for name, value in stored["state_dict"].items():
        # Integers, such as a normalisation's count of its batches, stay as they are.
        halved[name] = value.half() if value.is_floating_point() else value
        if value.is_floating_point() and not bool(halved[name].isfinite().all()):
            raise UserError(f"weight {name} in '{source}' is too large for half precision")
    CheckpointFile().save_checkpoint({**stored, "state_dict": halved}, target)


class Checkpoint(NamedTuple):
    """Content of a checkpoint of ``cnnbench fit``.

    Attributes:
        model: Trained network, on the CPU.
        data: Name of the data set that the network was trained on; None if it is not one of this package.
        data_options: Arguments of that data set; None if the checkpoint is older than this entry.
    """

    model: ImageClassifier
    data: str | None
    data_options: dict[str, Any] | None


def read_checkpoint(path: Path | str, trust: Trust | None = None) -> Checkpoint:
    """Return the network of a checkpoint of ``cnnbench fit`` or Lightning's Trainer, together with its data set.

    Args:
        path: Path or address of the checkpoint.
        trust: Names that the user typed on the command line, which allow a network from outside the package.

    Raises:
        UserError: The file is not such a checkpoint, it names foreign code that the user does not trust, or its weights
            no longer fit the network that it names.
    """
    stored = open_checkpoint(path)
    where = f"checkpoint '{path}'"
    factory, options = network_of(stored, where, trust or Trust())
    model = _built(factory, options, stored["state_dict"], where)
    # Lightning stores the state of a data module under the name of its class.
    data = next((key for key in stored if key in all_data()), None)
    given = stored.get("datamodule_hyper_parameters")
    data_options = None
    if isinstance(given, Mapping):
        # Entries that begin with an underscore are Lightning's own, such as the class of the data set.
        data_options = {key: value for key, value in given.items() if not str(key).startswith("_")}
    return Checkpoint(model, data, data_options)


def named_network(stored: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the name of the network's class in a checkpoint, None if there is none, and the arguments of the network.

    Nothing is checked here; see `network_of`.
    """
    # Besides the arguments, LightningCLI stores the class of the network and the function that builds it.
    options = {key: value for key, value in stored["hyper_parameters"].items() if key != "_instantiator"}
    # A network itself stores its class too, which a checkpoint from a Python program has alone.
    return options.pop("_class_path", stored.get(CLASS_KEY)), options


def network_of(
    stored: Mapping[str, Any], where: str, trust: Trust, kind: type[L.LightningModule] = ImageClassifier
) -> tuple[type[Any], dict[str, Any]]:
    """Return the class of the network that a checkpoint names, and its arguments, after checking all of them.

    Args:
        stored: Content of the checkpoint, from `open_checkpoint`.
        where: Name of the file, for messages.
        trust: Names that the user typed on the command line.
        kind: Class that the class of the network must derive from.

    Raises:
        UserError: The class is neither one of this package nor trusted by the user, or an argument is not valid for it.
    """
    path, options = named_network(stored)
    factory = _class_of(path, where, trust, kind)
    # `External` belongs to the package, but the network that it wraps may be anybody's code.
    if issubclass(factory, External):
        check_code(str(options.get("name")), where, trust)
    check_arguments(f"the network in {where}", factory, options)
    for key, value in options.items():
        # A wrong size in the file would allocate too much memory before the weights show that it is wrong.
        if isinstance(value, int) and value > LARGEST:
            raise UserError(f"{where}: {key} {value} is larger than any network here has ({LARGEST:,})")
        if key in LINKED and isinstance(value, int) and value < 1:
            raise UserError(f"{where}: {key} {value} must be at least 1; use an undamaged checkpoint")
    return factory, options


def check_training_state(stored: Mapping[str, Any], where: str) -> None:
    """Raise UserError unless a checkpoint has the whole state that a training needs to resume, not just weights.

    Args:
        stored: Content of the checkpoint, from `open_checkpoint`.
        where: Name of the file, for the message.

    Raises:
        UserError: A part of the state is missing, or is not what Lightning stores.
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
        # For Python, True and False are whole numbers too, but they are no counters of a training.
        if not isinstance(value, kind) or isinstance(value, bool) or is_negative or is_huge:
            raise UserError(
                f"{where} has no state of a training to go on with: its {key} is {str(value)[:40]!r}; give another, or "
                "train from the start without --ckpt_path"
            )
    if not stored["optimizer_states"]:
        raise UserError(f"{where} has no state of an optimizer, so its training cannot go on; train from the start")


def _class_of(path: Any, where: str, trust: Trust, kind: type[L.LightningModule]) -> type[Any]:
    """Return the class of the network that a checkpoint names, from this package or from code that the user trusts."""
    if not isinstance(path, str):
        raise UserError(f"{where} does not name its network; {MADE_BY}")
    # The networks of this package need no trust of the user's.
    known: dict[str, type[ImageClassifier]] = {}
    for cls in (*all_models().values(), External):
        known[f"{cls.__module__}.{cls.__qualname__}"] = cls
        known[f"cnnbench.{cls.__qualname__}"] = cls  # its public name, which the parser of `fit` writes
    if path in known:
        return known[path]
    module, _, name = path.rpartition(".")
    if not trust.covers(module) and path not in trust.typed:
        raise UserError(
            f"{where} names the network '{path}', which is none of cnnbench; if you trust its code, add "
            f"--trust {module or path}"
        )
    try:
        value = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where} names the network '{path}', which cannot be imported: {reason(error)}") from error
    if not isinstance(value, type) or not issubclass(value, kind):
        raise UserError(f"{where} names '{path}', which is no {kind.__name__}; {MADE_BY}")
    return value


def _built(
    factory: type[ImageClassifier], options: dict[str, Any], weights: Mapping[str, Tensor], where: str
) -> ImageClassifier:
    """Build a network from the arguments in a checkpoint, and load its weights."""
    # A copy without values (device meta) shows wrong weights before the network takes any memory.
    try:
        with torch.device("meta"):
            shapes = {name: tuple(value.shape) for name, value in factory(**options).state_dict().items()}
    except Exception:  # the constructor needs the values of its weights; then only the build below can tell
        shapes = None
    if shapes is not None:
        _check_shapes(factory, shapes, weights, where)
    try:
        model = factory(**options)
        # Weights in half precision become float32 here, because their values are copied into those of the network.
        model.load_state_dict(dict(weights))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:
        raise UserError(f"the weights in {where} are not those of {factory.__name__}: {reason(error)}") from error
    return model


MOST_STEPS = 2**53
"""Largest number of steps, or of epochs, that the state in a checkpoint may claim."""
LARGEST = 100_000
"""Largest whole number that a checkpoint may have as an argument of its network, such as classes or channels."""


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
