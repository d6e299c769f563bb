"""The data sets: every public `ImageDataModule` in a file of this folder is listed by its name."""

from __future__ import annotations

import sys

from cnnbench.data.module import ImageDataModule
from cnnbench.registry import attribute, discover, lookup


def all_data() -> dict[str, type[ImageDataModule]]:
    """Every data set by name, in alphabetical order."""
    return discover(sys.modules[__name__], ImageDataModule)  # type: ignore[type-abstract]


listed = all_data
"""The same under the name that it has in `cnnbench.models` too."""


def __getattr__(name: str) -> type[ImageDataModule]:
    """Return a listed data set, as in ``from cnnbench.data import MNIST``."""
    return attribute(__name__, name, all_data)


def get_data(name: str) -> type[ImageDataModule]:
    """The data set of that name.

    Raises:
        UserError: The name is not listed; the message has the nearest one.
    """
    return lookup("data set", name, all_data())
