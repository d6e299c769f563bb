"""Python functions for the questions that the package answers: what a network costs, how fast and how good it is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from cnnbench.benchmark.session import Session
from cnnbench.commands.speed import Options as SpeedOptions
from cnnbench.commands.speed_run import time_networks
from cnnbench.counting.complexity import Complexity, complexity
from cnnbench.counting.copies import build_without_values
from cnnbench.errors import UserError
from cnnbench.network import Network, get_network
from cnnbench.registry import split_names
from cnnbench.report.results import Results
from cnnbench.training.classifier import ImageClassifier


def count(network: nn.Module | str, image_shape: Sequence[int] | None = None, *, training: bool = True) -> Complexity:
    """Return what a network costs for one image, counted exactly; the network is neither run nor changed.

    Args:
        network: Module that takes a batch of images, or the name of a network as on the command line: ``"VGG16"``,
            ``"torchvision:resnet50"``, ``"timm:NAME"``, ``"package.module:callable"``.
        image_shape: Channels, height and width of one image, (C, H, W). None stands for the network's own shape, which
            is known for networks of this package and for networks by name only.
        training: Whether to count a training step too.

    Raises:
        UserError: The name is unknown, the image shape is missing, or the network does not run on such images.

    Example:
        >>> from cnnbench import LeNet5, count
        >>> count(LeNet5()).macs
        651720
    """
    if isinstance(network, str):
        named = _named(network, image_shape)
        return complexity(build_without_values(named.build)[0], named.image_shape, training)
    return complexity(network, _shape_of(network, image_shape), training)


def speed(*networks: nn.Module | str, image_shape: Sequence[int] | None = None, **options: Any) -> Results:
    """Time networks against each other, in turns, and return a record for each of them.

    Several precisions, memory formats or modes make several records per network.

    Args:
        networks: Modules, of which copies are timed, or names of networks as on the command line.
        image_shape: Channels, height and width of one image, (C, H, W); None for the own shape of each network.
        options: Options of ``cnnbench speed`` by name, such as ``batch_size=64`` or ``mode="eager,compile"``.

    Raises:
        UserError: A name, an option or a value is wrong.

    Example:
        >>> print(speed("ResNet18", "MobileNetV1", rounds=12))  # doctest: +SKIP
    """
    found = []
    for network in networks:
        if isinstance(network, str):
            found.append(_named(network, image_shape))
        else:
            found.append(_network_of(network, image_shape))
    names = tuple(network.name for network in found)
    unknown = options.keys() - SpeedOptions.__dataclass_fields__.keys()
    if unknown:
        raise UserError(f"speed has no option '{min(unknown)}'; `cnnbench speed --help` lists them")
    if options.get("processes", 1) > 1 and not all(isinstance(network, str) for network in networks):
        raise UserError("processes are started with names of networks; give names, or leave processes out")
    return Results(time_networks(SpeedOptions(models=names, **options), found))


def bench(
    models: str | Sequence[str] | None = None,
    data: str | Sequence[str] | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    **settings: Any,
) -> Results:
    """Count, time, train and test networks on data sets under an equal budget, and return a record of each cell.

    A cell is one network on one data set with one random seed.

    Args:
        models: Names of networks, as on the command line; None for the four default networks.
        data: Names of data sets; None for MNIST and CIFAR10.
        out: Run folder; None for a new folder in ``results/bench``, or for the newest run if `resume` is set.
        resume: Whether to continue the run in that folder.
        settings: Other options of ``cnnbench bench`` by name, such as ``budget="60s"`` or ``seeds=(0, 1, 2)``.

    Raises:
        UserError: A name, a setting or a folder is wrong.
    """
    for name, value in (("models", models), ("data", data)):
        if value is not None:
            settings[name] = split_names(value) if isinstance(value, str) else tuple(value)
    folder = Path(out) if out is not None else None
    return Results(Session(settings, folder, resume).run())


def _named(name: str, image_shape: Sequence[int] | None) -> Network:
    """Return a network by its name, for images of a shape, which must be square, or of the network's own shape."""
    if image_shape is None:
        return get_network(name)
    channels, height, width = image_shape
    if height != width:
        raise UserError(f"image_shape {tuple(image_shape)}: a network by name takes square images")
    return get_network(name, channels, height)


def _shape_of(module: nn.Module, image_shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return the image shape that the caller passed, or else the one that the module states."""
    if image_shape is not None:
        return tuple(image_shape)
    if isinstance(module, ImageClassifier):
        return (module.in_channels, module.image_size, module.image_size)
    raise UserError(f"{type(module).__name__} does not say which images it takes; give image_shape=(3, 224, 224)")


def _network_of(module: nn.Module, image_shape: Sequence[int] | None) -> Network:
    """Return a module as a `Network`, which can be built several times; each time it is a copy of the module."""
    channels, height, width = _shape_of(module, image_shape)
    if height != width:
        raise UserError(f"image_shape {(channels, height, width)}: networks are timed on square images")
    name = module.display_name if isinstance(module, ImageClassifier) else type(module).__name__
    classes = module.num_classes if isinstance(module, ImageClassifier) else None
    return Network(str(name), channels, height, classes, lambda: copy.deepcopy(module))
