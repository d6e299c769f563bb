"""The data sets of the package, by name.

Every public subclass of `ImageDataModule` that is defined in a file of this folder is listed under its class name, so
that a new data set needs no registration.
"""

from __future__ import annotations

import sys

from cnnbench.data.module import ImageDataModule
from cnnbench.registry import attribute, discover, lookup


def all_data() -> dict[str, type[ImageDataModule]]:
    """Return every listed data set by name, in alphabetical order."""
    return discover(sys.modules[__name__], ImageDataModule)  # type: ignore[type-abstract]


listed = all_data
"""Alias of `all_data`; `cnnbench.models` has the same alias for its architectures."""


def __getattr__(name: str) -> type[ImageDataModule]:
    """Return a listed data set, as in ``from cnnbench.data import MNIST``."""
    return attribute(__name__, name, all_data)


def get_data(name: str) -> type[ImageDataModule]:
    """Return the class of the data set with this name.

    Raises:
        UserError: No data set has this name; the message suggests the nearest one.
    """
    return lookup("data set", name, all_data())
