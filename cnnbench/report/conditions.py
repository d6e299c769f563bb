"""Conditions on the figures of a network, such as "at least 90 %" and "at most 5 ms", and how they are written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cnnbench.report.settings import Dependent
from cnnbench.units import BYTES, COUNTS, MILLISECONDS, parse_amount, parse_percent, plain, short


@dataclass(frozen=True)
class Quantity:
    """A property of networks by which one is chosen.

    Attributes:
        key: Name of the quantity in JSON, and as a value of ``--sort``.
        title: Heading of its column in the table.
        unit: Unit of a value in words, behind the number.
        figures: Keys of the figures of a record that have its value; the first that is there counts. Empty for the
            accuracy, which has other sources too.
        work: Kind of work that was timed; None for a quantity that is no time and no memory of a device.
        more_is_better: Whether a condition asks for at least so much; otherwise it asks for at most so much.
        best: Words for the network that comes first by this quantity.
        show: Function that returns a value as text, without the unit.
        read: Function that returns the value that a text of the command line means, for an option of that name.
    """

    key: str
    title: str
    unit: str
    figures: tuple[str, ...]
    work: Dependent | None
    more_is_better: bool
    best: str
    show: Callable[[float], str]
    read: Callable[[str, str], float]

    def words(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{self.show(value)} {self.unit}"


_ZEROS = re.compile(r"\.0+(?=\D|$)|(?<=\.\d)0+(?=\D|$)")
"""Zeros at the end of the decimals of a number, with the point if nothing else is behind it."""


def _percent(share: float) -> str:
    return f"{100 * share:.4g}"


def _count(text: str, name: str) -> float:
    return parse_amount(text, name, COUNTS, "5M")


def _milliseconds(text: str, name: str) -> float:
    return parse_amount(text, name, MILLISECONDS, "5ms")


def _rate(text: str, name: str) -> float:
    return parse_amount(text, name, COUNTS, "1000")


def _bytes(text: str, name: str) -> float:
    return parse_amount(text, name, BYTES, "2GiB")


def _mebibytes(value: float) -> str:
    return plain(value / 2**20)


QUANTITIES = {
    row.key: row
    for row in (
        Quantity("accuracy", "Accuracy %", "%", (), None, True, "Most accurate", _percent, parse_percent),
        Quantity(
            "latency", "Latency ms", "ms", ("latency_ms_median",), "latency", False, "Fastest", plain, _milliseconds
        ),
        Quantity(
            "images_per_s", "Images/s", "images/s", ("images_per_s",), "inference", True, "Most images/s", plain, _rate
        ),
        Quantity("params", "Params", "parameters", ("params",), None, False, "Fewest parameters", short, _count),
        Quantity("macs", "MACs", "multiply-adds", ("macs",), None, False, "Fewest multiply-adds", short, _count),
        Quantity(
            "memory",
            "Memory MiB",
            "MiB of training memory",
            ("peak_memory_bytes", "resident_bytes"),
            "training",
            False,
            "Least training memory",
            _mebibytes,
            _bytes,
        ),
    )
}
"""All quantities by key, in the order of the columns."""
Sort = Literal["latency", "accuracy", "params", "macs", "images_per_s"]
"""Quantities by which networks may be sorted."""


@dataclass(frozen=True)
class Condition:
    """A limit that a quantity of a network has to keep.

    Attributes:
        quantity: The quantity.
        limit: Smallest or largest valid value: a share for an accuracy, milliseconds for a latency, bytes for memory.
    """

    quantity: Quantity
    limit: float

    @property
    def words(self) -> str:
        """Return the condition in words, such as "at most 5 ms"."""
        return f"at {'least' if self.quantity.more_is_better else 'most'} {self.limit_words}"

    @property
    def limit_words(self) -> str:
        """Return the limit with its unit, without zeros behind the decimal point that say nothing."""
        number = self.quantity.show(self.limit)
        return f"{_ZEROS.sub('', number)} {self.quantity.unit}"

    def shortfall(self, value: float) -> float:
        """Return by how much a value misses the limit, in units of the quantity; 0 or less if it is kept."""
        return self.limit - value if self.quantity.more_is_better else value - self.limit

    def missed_words(self, value: float) -> str:
        """Return a value that misses the limit, and by how much, in words."""
        quantity, limit = self.quantity, self.limit_words
        side = "below" if quantity.more_is_better else "above"
        # A difference of two percentages is in points.
        points = " points" if quantity.key == "accuracy" else ""
        return f"{quantity.words(value)}, {quantity.show(self.shortfall(value))}{points} {side} {limit}"
