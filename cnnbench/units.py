"""Numbers as text with the prefixes k, M, G and T, for tables and axes, and the reading of numbers with units."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from cnnbench.errors import UserError


def short(value: float) -> str:
    """Return a number with three significant digits and a prefix, such as 1.50M; below 1000 it has no prefix."""
    number, prefix = scaled(value)
    # The # keeps zeros at the end, as in 1.50, and a point behind a whole number, which is then taken off.
    return f"{number:#.3g}".rstrip(".") + prefix if prefix else f"{number:.3g}"


def scaled(value: float) -> tuple[float, str]:
    """Return the number in front of its prefix, and the prefix: 1.5 and ``M`` for 1,500,000."""
    value = float(f"{value:.3g}")  # round first, so that 999,999 becomes 1.00M and not 1000k
    for unit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return value / unit, prefix
    return value, ""


def plain(value: float) -> str:
    """Return a number without an exponent, with three significant digits or as a whole: 0.482, 41.5, 124, 2,030."""
    # Rounding comes first, so that 999.6 becomes 1,000 and not 1.00e+03.
    value = value if abs(value) >= 1000 else float(f"{value:.3g}")
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def mebibytes(value: float) -> str:
    """Return a number of bytes in MiB: with three significant digits below 10, and as a whole number from there on."""
    number = value / 2**20
    return plain(number) if number < 10 else f"{number:,.0f}"


def percent(share: float) -> str:
    """Return a share in per cent: a whole number from 10 % on, and two significant digits below."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def with_unit(value: float, unit: str) -> str:
    """Return a number with its unit and a prefix, such as 179 GFLOP/s."""
    number, prefix = scaled(value)
    return f"{number:.3g} {prefix}{unit}"


COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
"""Prefixes of numbers, as `short` writes them."""
MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
"""Units of time, in milliseconds."""
BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
"""Units of memory, in bytes."""
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([^\s\d.]*)\s*")
"""A number without a sign or an exponent, and its unit."""


def parse_amount(text: str, name: str, units: Mapping[str, float], example: str) -> float:
    """Return the number that a text such as ``5M``, ``300us`` or ``2 GiB`` means.

    Args:
        text: Number and unit; upper and lower case of the unit do not count.
        name: Name of the option, for the message.
        units: Units and their sizes; the empty unit stands for a number without one.
        example: Valid text, for the message.

    Raises:
        UserError: The text is not a positive number with one of these units.
    """
    match = _AMOUNT.fullmatch(text)
    sizes = {unit.lower(): size for unit, size in units.items()}
    if match is None or match[2].lower() not in sizes:
        valid = ", ".join(unit for unit in units if unit)
        needs = "a positive number with or without" if "" in units else "a positive number with"
        raise UserError(f"{name} '{text}' is not {needs} a unit ({valid}); write for example --{name} {example}")
    value = float(match[1]) * sizes[match[2].lower()]
    if not 0 < value < math.inf:
        raise UserError(f"{name} '{text}' is not above 0; write for example --{name} {example}")
    return value


def parse_percent(text: str, name: str) -> float:
    """Return the share, above 0 and at most 1, that a text such as ``90``, ``90%`` or ``99.5 %`` means.

    Args:
        text: Number of per cent, with or without the sign.
        name: Name of the option, for the message.

    Raises:
        UserError: The text is no such number. A number up to 1 without the sign is taken for a share, and refused.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2] not in ("", "%"):
        raise UserError(f"{name} '{text}' is not a number of per cent; write for example --{name} 90 or 90%")
    value = float(match[1])
    if not 0 < value <= 100:
        raise UserError(f"{name} '{text}' is not above 0 and at most 100 %; write for example --{name} 90")
    if value <= 1 and not match[2]:
        raise UserError(f"{name} '{text}' looks like a share; write per cent, as in --{name} {100 * value:g}")
    return value / 100
