"""Classes that a configuration of ``cnnbench fit`` may name: of the package, of its libraries, and trusted ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jsonargparse

from cnnbench.data import all_data
from cnnbench.models import all_models
from cnnbench.trust import Trust, current

_ALLOWED = (
    "cnnbench.models cnnbench.data cnnbench.network.External cnnbench.optimizers cnnbench.training.callbacks "
    "torch.optim torch.nn torchmetrics lightning.pytorch.cli.ReduceLROnPlateau "
    "lightning.pytorch.callbacks lightning.pytorch.loggers lightning.pytorch.profilers lightning.pytorch.plugins "
    "lightning.pytorch.accelerators lightning.pytorch.strategies lightning.fabric.plugins "
    "lightning.fabric.strategies lightning.fabric.accelerators lightning.fabric.loggers"
).split()
"""Modules and classes that a configuration may name: the class itself, or any class of the module."""


def _allowed() -> tuple[str, ...]:
    """Return what a configuration may name, with the networks and data sets as attributes of the package.

    The parser writes the shortest path of a class into the configuration of a run, such as ``cnnbench.LeNet5``.
    """
    return (*_ALLOWED, *(f"cnnbench.{name}" for name in ("External", *all_models(), *all_data())))


_CLOSED: set[str] = set()
"""Names that an earlier command line in this process allowed, and that are denied by name since then."""


def _is_allowed(path: str) -> bool:
    """Return whether a configuration may name a class without the trust of the user."""
    return any(path == allowed or path.startswith(f"{allowed}.") for allowed in _allowed())


def foreign_classes(values: Any) -> Iterator[str]:
    """Yield the modules of the classes in a configuration that a file may name only if the user trusts them."""
    if isinstance(values, dict):
        path = values.get("class_path")
        if isinstance(path, str) and not _is_allowed(path):
            yield path.rpartition(".")[0]
        for value in values.values():
            yield from foreign_classes(value)
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from foreign_classes(value)


def _own_names(trust: Trust) -> list[str]:
    """Return the modules and classes outside the package that the user allows, without duplicates."""
    names = []
    # The colon in package.module:Class is a dot for the parser.
    for name in (*trust.modules, *(word.replace(":", ".") for word in trust.typed)):
        # Of the typed words only dotted names can be modules or classes.
        if all(part.isidentifier() for part in name.split(".")):
            names.append(name)
    # A name that was denied after an earlier command line is allowed again if the user trusts its module now.
    names += [name for name in _CLOSED if trust.covers(name.rpartition(".")[0])]
    # jsonargparse refuses to allow its own classes, since they could change these settings.
    return [name for name in dict.fromkeys(names) if name.partition(".")[0] != "jsonargparse"]


@contextlib.contextmanager
def allowed_imports() -> Iterator[None]:
    """Restrict the parser's imports inside the block to `_ALLOWED` and to what the user named on the command line.

    The parser applies the restriction to every name before it imports anything: in every file, at any depth, and also
    in JSON within a text.
    """
    trust = current()
    if trust is None:
        yield
        return
    own = _own_names(trust)
    allowed = _allowed()
    jsonargparse.set_parsing_settings(
        import_path_denylist=["*"],
        # The most specific entry decides, and the star is less specific than every name.
        import_path_allowlist=[*allowed, *own],
        instantiate_subclass_spec_in_any=False,  # a value for an argument of type Any could otherwise name any class
    )
    try:
        yield
    finally:
        # The settings hold for the whole process, but what this command line allowed must not hold for the next one.
        closed = [name for name in own if not _is_allowed(name)]
        _CLOSED.update(closed)
        jsonargparse.set_parsing_settings(import_path_denylist=closed)
