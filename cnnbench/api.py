"""The Python functions of the package: what a network costs, how fast it is, how good it gets, and a trained one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from cnnbench.benchmark.session import Session
from cnnbench.checkpoints import read_checkpoint
from cnnbench.commands.bench import Options as BenchOptions
from cnnbench.commands.speed import Options as SpeedOptions
from cnnbench.commands.speed_run import time_networks
from cnnbench.counting.complexity import Complexity, complexity
from cnnbench.counting.meta_copy import build_without_values
from cnnbench.errors import Stopped, UserError
from cnnbench.interrupts import stoppable
from cnnbench.network import Network, get_network
from cnnbench.options import from_keywords
from cnnbench.report.results import Results
from cnnbench.training.classifier import ImageClassifier
from cnnbench.trust import Trust

NOT_OF_SPEED = ("models", "records", "out", "json", "limits")
"""Options of ``cnnbench speed`` that `speed` does not have: they name networks and files, or draw a picture."""
NOT_OF_BENCH = ("config", "models", "data", "out", "resume", "json", "trust", "launcher", "launcher_options", "dry_run")
"""Options of ``cnnbench bench`` that are arguments of `bench` itself, or that it does not have."""


def count(network: nn.Module | str, image_shape: Sequence[int] | None = None, *, training: bool = True) -> Complexity:
    """Return what a network costs for one image, exact to the last multiply-add.

    The network itself is neither run nor changed.

    Args:
        network: Any module that takes a batch of images, or a name as on the command line: ``"VGG16"``,
            ``"torchvision:resnet50"``, ``"timm:NAME"``, ``"package.module:callable"``.
        image_shape: Channels, height and width of one image, (C, H, W); None for the network's own images. Modules that
            are no `ImageClassifier` do not say which images they take.
        training: Whether to count a training step too.

    Raises:
        UserError: The name is unknown, or the network does not run on such images.

    Example:
        >>> from cnnbench import LeNet5, count
        >>> count(LeNet5()).macs
        651720
    """
    if isinstance(network, str):
        in_channels, image_size = _square(image_shape)
        named = get_network(network, in_channels, image_size)
        # Counting needs only shapes, so the network is built without values for its weights where that is possible.
        return complexity(build_without_values(named.build)[0], named.image_shape, training)
    return complexity(network, _shape_of(network, image_shape), training)


def speed(*networks: nn.Module | str, image_shape: Sequence[int] | None = None, **options: Any) -> Results:
    """Time networks against each other, in turns, and return a record of each.

    Args:
        networks: Modules, of which copies are timed, or names as on the command line.
        image_shape: Channels, height and width of one image, (C, H, W); None for each network's own images.
        options: Options of ``cnnbench speed`` by name, such as ``batch_size=64`` or ``mode="eager,compile"``.

    Raises:
        UserError: A name, an option or a value is wrong, or a network does not run on such images.
        KeyboardInterrupt: A signal stopped the timing.

    Example:
        >>> print(speed("ResNet18", "MobileNetV1", rounds=12))  # doctest: +SKIP
    """
    if not networks:
        raise UserError("speed() needs a network, such as speed('LeNet5')")
    if image_shape is not None:
        in_channels, image_size = _square(image_shape)
        options = {"in_channels": in_channels, "image_size": image_size, **options}
    # The options are checked first, with no names of networks, because they decide how a name is looked up.
    chosen = from_keywords(SpeedOptions, "speed", {**options, "models": ()}, [n for n in NOT_OF_SPEED if n != "models"])
    found = []
    for network in networks:
        if isinstance(network, str):
            found.append(get_network(network, chosen.in_channels, chosen.image_size, chosen.num_classes))
        elif chosen.processes > 1 or chosen.memory:
            raise UserError("processes and memory start processes that build networks by name; give names, not modules")
        else:
            found.append(_network_of(network, image_shape))
    names = tuple(network.name for network in found)
    with _interruptible():
        return Results(time_networks(from_keywords(SpeedOptions, "speed", {**options, "models": names}), found))


def bench(
    models: str | Sequence[str] | None = None,
    data: str | Sequence[str] | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    trust: Sequence[str] = (),
    **settings: Any,
) -> Results:
    """Count, time, train and test networks on data sets under an equal budget, and return a record of each cell.

    Args:
        models: Names of networks, as on the command line; None for the four default ones.
        data: Names of data sets; None for MNIST and CIFAR10.
        out: Run folder; None for a new folder in ``results/bench``.
        resume: Whether to continue the run in that folder.
        trust: Modules whose networks the plan of a run to resume may name.
        settings: Other options of ``cnnbench bench`` by name, such as ``budget="60s"`` or ``seeds=(0, 1, 2)``.

    Raises:
        UserError: A name, a setting or a folder is wrong.
        KeyboardInterrupt: A signal stopped the run, which ``resume=True`` continues.
    """
    # `models` and `data` are arguments of `bench` itself, but are checked together with the settings.
    refused = [name for name in NOT_OF_BENCH if name not in ("models", "data")]
    options = from_keywords(BenchOptions, "bench", {**settings, "models": models, "data": data}, refused)
    folder = Path(out) if out is not None else None
    trusted = Trust.of(trust, typed=options.models or ())
    with _interruptible():
        return Results(Session(options.settings(), folder, resume, trusted).run(options.connect()))


def load(path: Path | str, *, trust: Sequence[str] = ()) -> ImageClassifier:
    """Return the trained network of a checkpoint, on the CPU and in evaluation mode.

    The network is the one that the checkpoint names, whether `cnnbench fit`, `bench` or Lightning's Trainer wrote it.

    Args:
        path: Path of the checkpoint, or an address such as ``https://...`` or ``s3://...``.
        trust: Modules outside the package whose networks the checkpoint may name.

    Raises:
        UserError: The file is damaged, is not a checkpoint, or names code that is not trusted.

    Example:
        >>> load("results/runs/LeNet5-MNIST/20260101-120000/checkpoints/best.ckpt")  # doctest: +SKIP
    """
    return read_checkpoint(path, Trust.of(trust)).model.eval()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C stop the work inside the block; otherwise it would count as the failure of the network at work."""
    try:
        with stoppable():
            yield
    except Stopped as stop:
        raise KeyboardInterrupt(str(stop)) from stop


def _square(image_shape: Sequence[int] | None) -> tuple[int | None, int | None]:
    """Return channels and size of square images; None for a network's own.

    Raises:
        UserError: The images are not square.
    """
    if image_shape is None:
        return None, None
    channels, height, width = image_shape
    if height != width:
        raise UserError(f"image_shape {tuple(image_shape)}: a network by name, and a timing, take square images")
    return channels, height


def _shape_of(module: nn.Module, image_shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of the images that a module takes.

    Raises:
        UserError: Neither the caller nor the module says it.
    """
    if image_shape is not None:
        return tuple(image_shape)
    if isinstance(module, ImageClassifier):
        return (module.in_channels, module.image_size, module.image_size)
    raise UserError(f"{type(module).__name__} does not say which images it takes; give image_shape=(3, 224, 224)")


def _network_of(module: nn.Module, image_shape: Sequence[int] | None) -> Network:
    """Return a module as a network that can be built again and again."""
    channels, height, _ = _shape_of(module, image_shape)
    name = type(module).__name__
    classes = None
    if isinstance(module, ImageClassifier):
        name, classes = module.display_name, module.num_classes
    # Every build is a new copy, so that timing leaves the module of the user unchanged.
    return Network(name, channels, height, classes, lambda: copy.deepcopy(module))
