"""Data sets by name: those of the package, of torchvision and MedMNIST, folders of images, and the user's own.

Every public subclass of `ImageDataModule` that is defined in a file of this folder is listed under its class name, so
that a new data set needs no registration. `get_data` reads all forms of names.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L

from cnnbench.data.foreign import ForeignData, ForeignSource
from cnnbench.data.image_folder import ImageFolder
from cnnbench.data.medmnist_images import MedMNISTImages
from cnnbench.data.module import ImageDataModule
from cnnbench.data.torchvision_images import TorchvisionImages
from cnnbench.errors import UserError
from cnnbench.names import DATA, import_callable, parse_name, unknown_name
from cnnbench.registry import attribute, check_arguments, discover

SOURCES: dict[str, tuple[type[ImageDataModule], str]] = {
    "folder": (ImageFolder, "path"),
    "medmnist": (MedMNISTImages, "name"),
    "torchvision": (TorchvisionImages, "name"),
}
"""Class of the data sets with a name ``SOURCE:TEXT``, and its argument that takes the text, by source."""
BenchData = ImageDataModule | ForeignData
"""Data on which a benchmark can measure networks."""


@dataclass(frozen=True)
class DataSource:
    """A data set that is not built yet.

    Attributes:
        name: Name as the user wrote it.
        cls: Class of the data set.
        arguments: Arguments of the class that are part of the name.
    """

    name: str
    cls: type[ImageDataModule]
    arguments: Mapping[str, Any]

    @property
    def class_path(self) -> str:
        """Return the name of the class as a configuration of ``cnnbench fit`` has it."""
        if self.cls.__module__.startswith("cnnbench."):
            return self.cls.__name__
        return f"{self.cls.__module__}.{self.cls.__qualname__}"

    def __call__(self, **options: Any) -> ImageDataModule:
        """Build the data set; nothing is downloaded or read but the names in a folder.

        Args:
            options: Further arguments of the class.

        Raises:
            UserError: An argument is out of its range, or is given in the name too.
        """
        for key in self.arguments.keys() & options.keys():
            if options[key] != self.arguments[key]:
                raise UserError(f"data set '{self.name}' says {key} already; leave out {key} {options[key]}")
        given = {**self.arguments, **options}
        for key, parameter in inspect.signature(self.cls).parameters.items():
            required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            if required and key not in given:
                form = self.cls.form or f"{self.name}({key}=...)"
                raise UserError(f"data set '{self.name}' lacks its argument {key}; write {form}")
        data = self.cls(**given)
        # A checkpoint has the plain name of the class, and the path of a folder, for example, among the arguments.
        if not self.cls.form or self.arguments:
            data.name = self.name
        return data

    def check(self, options: Mapping[str, Any], whose: str) -> None:
        """Check names and types of further arguments, without building anything.

        Args:
            options: Arguments by name.
            whose: Owner of the arguments, for messages.

        Raises:
            UserError: The class has no such argument, or a value has the wrong type.
        """
        if options:
            check_arguments(whose, self.cls, {**self.arguments, **options})


def all_data() -> dict[str, type[ImageDataModule]]:
    """Return every listed data set by name, in alphabetical order."""
    return discover(sys.modules[__name__], ImageDataModule)  # type: ignore[type-abstract]


listed = all_data
"""Alias of `all_data`; `cnnbench.models` has the same alias for its architectures."""


def __getattr__(name: str) -> type[ImageDataModule]:
    """Return a listed data set, as in ``from cnnbench.data import MNIST``."""
    return attribute(__name__, name, all_data)


def get_data(name: str) -> DataSource:
    """Return the data set with this name, not built yet.

    Args:
        name: Name of a listed data set, ``folder:PATH``, ``torchvision:NAME``, ``medmnist:NAME``, or
            ``package.module:Class`` for an `ImageDataModule` of the user's. Arguments may follow in brackets, as in
            ``CIFAR10(image_size=64)``, except behind the path of a folder.

    Raises:
        UserError: There is no such data set, its arguments are wrong, or it is a plain LightningDataModule.
    """
    found = get_bench_data(name)
    if isinstance(found, ForeignSource):
        raise UserError(
            f"data set '{name}' is a LightningDataModule, which only bench, fit, validate, test and predict take; let "
            "it be a subclass of ImageDataModule, or choose another data set"
        )
    return found


def get_bench_data(name: str) -> DataSource | ForeignSource:
    """Return the data set with this name for a benchmark, not built yet.

    Args:
        name: Name as `get_data` takes it, or ``package.module:Class`` for any LightningDataModule of the user's.

    Raises:
        UserError: There is no such data set, or its arguments are wrong.
    """
    # The path of a folder may have colons and brackets of its own.
    source, colon, text = name.partition(":")
    if colon and source in SOURCES:
        cls, argument = SOURCES[source]
        return DataSource(name, cls, {argument: text})
    plain, arguments = parse_name(name, DATA)
    module, colon, attribute_name = plain.partition(":")
    if colon:
        return _of_the_user(name, import_callable(name, module, attribute_name, DATA), arguments)
    listed_here = all_data()
    if plain not in listed_here:
        raise unknown_name(DATA, plain, [n for n, cls in listed_here.items() if not cls.form])
    found = DataSource(name, listed_here[plain], arguments)
    found.check(arguments, f"data set '{name}'")
    return found


def _of_the_user(name: str, found: Any, arguments: Mapping[str, Any]) -> DataSource | ForeignSource:
    """Return the data set that a class of the user's stands for.

    Raises:
        UserError: It is no class of a data set.
    """
    is_data = inspect.isclass(found) and issubclass(found, L.LightningDataModule) and not inspect.isabstract(found)
    if not is_data:
        raise UserError(
            f"'{name}' is no data set that can be built; let it be a subclass of ImageDataModule or LightningDataModule"
        )
    if issubclass(found, ImageDataModule):
        return DataSource(name, found, arguments)
    foreign = ForeignSource(name, found, arguments)
    foreign.check(arguments, f"data set '{name}'")
    return foreign
