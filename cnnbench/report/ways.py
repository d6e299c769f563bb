"""Ways of running networks: an engine with a number format and, for torch, a mode; and their names for readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cnnbench.engines import ENGINES, INT8, TORCH
from cnnbench.record import Record
from cnnbench.report.settings import NOT_SAID, setting

FLOAT32 = "32-true"
PRECISION_TITLES = {
    FLOAT32: "float32",
    "bf16-true": "bfloat16",
    "bf16-mixed": "mixed bfloat16",
    "16-true": "float16",
    "16-mixed": "mixed float16",
    "tf32": "TF32",
    INT8: "int8",
}
"""Number formats in words, by the names that records have."""


def engine_of(record: Record) -> str:
    """Return the name of the engine of a record."""
    return str(setting(record, "engine"))


def engine_title(name: str) -> str:
    """Return the name of an engine for readers; that of an unknown one is its own name."""
    return ENGINES[name].title if name in ENGINES else name


def engine_version(record: Record) -> str:
    """Return the version of the engine of a record; empty if the record does not have it."""
    engine = ENGINES.get(engine_of(record))
    versions = record.environment.get("packages") or {}
    return str(versions.get(engine.package) or "") if engine else ""


def network_of(record: Record) -> str:
    """Return the name of the network of a record, without the engine that a row has behind it."""
    recipe = record.title.removeprefix(record.model)
    return f"{record.network}{recipe}"


@dataclass(frozen=True)
class RecordedWay:
    """A way of running networks.

    Attributes:
        engine: Name of the engine.
        precision: Number format of inference, by the name that records have.
        version: Version of the engine; empty if it is not known.
        mode: Mode of torch, such as ``eager`` or ``compile``.
        memory_format: Order of the images in memory.
    """

    engine: str
    precision: str
    version: str
    mode: str
    memory_format: str

    @property
    def short(self) -> str:
        """Return engine and number format in words."""
        words = f"{engine_title(self.engine)} {PRECISION_TITLES.get(self.precision, self.precision)}"
        return words if self.mode == "eager" else f"{words} ({self.mode})"

    @property
    def is_baseline(self) -> bool:
        """Return whether this is torch as it is, in float32."""
        return (self.engine, self.precision, self.mode) == (TORCH, FLOAT32, "eager")


def way_of(record: Record) -> RecordedWay:
    """Return the way in which a record was timed."""
    names = ("inference_precision", "mode", "memory_format")
    precision, mode, order = (str(setting(record, name) or NOT_SAID) for name in names)
    return RecordedWay(engine_of(record), precision, engine_version(record), mode, order)


def order_of(way: RecordedWay) -> tuple[Any, ...]:
    """Return the key by which ways are sorted: the baseline, then by number format and engine."""
    formats, engines = list(PRECISION_TITLES), list(ENGINES)
    place = formats.index(way.precision) if way.precision in formats else len(formats)
    engine = engines.index(way.engine) if way.engine in engines else len(engines)
    # torch runs fastest with the channel as the innermost dimension, so that is the baseline of two.
    rest = way.mode != "eager", way.mode, way.memory_format != "channels_last", way.memory_format, way.version
    return not way.is_baseline, place, engine, way.engine, way.precision, *rest


def named(ways: Sequence[RecordedWay]) -> dict[RecordedWay, str]:
    """Return the ways in words; those that are alike in them have their memory format or version behind them."""
    names = {}
    for way in ways:
        alike = [other for other in ways if other.short == way.short]
        apart = []
        if len({other.memory_format for other in alike}) > 1:
            apart.append(way.memory_format)
        if len({other.version for other in alike}) > 1:
            apart.append(way.version or "version not said")
        names[way] = f"{way.short} ({', '.join(apart)})" if apart else way.short
    return names
