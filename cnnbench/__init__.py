"""Which convolutional network, at what cost, how good, and why.

Networks and data sets are attributes of the package, and so are the four questions that it answers::

    from cnnbench import CIFAR10, ResNet18, bench, count, speed

    print(count(ResNet18()))                         # parameters, multiply-adds, receptive field
    print(speed("ResNet18", "MobileNetV1"))          # latency, throughput, ratios with intervals
    print(bench(models="LeNet5", data="MNIST", epochs=1))

    import lightning
    lightning.Trainer(max_epochs=1).fit(ResNet18(), CIFAR10())

Everything is imported when it is asked for, so ``import cnnbench`` takes no time. ARCHITECTURE.md is the floor plan.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnbench import data, models
    from cnnbench.api import bench, count, load, speed
    from cnnbench.data.module import ImageDataModule
    from cnnbench.network import External
    from cnnbench.record import Record, load_records
    from cnnbench.report.compare import compare
    from cnnbench.training.classifier import ImageClassifier

__version__ = "0.1.0"

_HOMES = {
    "bench": "cnnbench.api",
    "count": "cnnbench.api",
    "load": "cnnbench.api",
    "speed": "cnnbench.api",
    "compare": "cnnbench.report.compare",
    "External": "cnnbench.network",
    "ImageClassifier": "cnnbench.training.classifier",
    "ImageDataModule": "cnnbench.data.module",
    "Record": "cnnbench.record",
    "load_records": "cnnbench.record",
}
_ROOMS = ("data", "models")
"""Packages whose networks and data sets are attributes here."""

__all__ = [
    "External",
    "ImageClassifier",
    "ImageDataModule",
    "Record",
    "__version__",
    "bench",
    "compare",
    "count",
    "data",
    "load",
    "load_records",
    "models",
    "speed",
]


def __getattr__(name: str) -> Any:
    """Return a function, a class or a module of the package, imported on its first use."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    # Python and its tools ask for many names with underscores, such as __wrapped__; none is a network or data set.
    if name.startswith("_"):
        raise AttributeError(f"module 'cnnbench' has no attribute '{name}'")
    # Python asks here for every `from cnnbench import module` too, which must not import all networks.
    if importlib.util.find_spec(f"cnnbench.{name}") is not None:
        return importlib.import_module(f"cnnbench.{name}")
    for room in _ROOMS:
        listed = importlib.import_module(f"cnnbench.{room}").listed()
        if name in listed:
            return listed[name]
    raise AttributeError(f"module 'cnnbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    names = set(__all__)
    for room in _ROOMS:
        names |= importlib.import_module(f"cnnbench.{room}").listed().keys()
    return sorted(names)
