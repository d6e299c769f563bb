"""Numbers with the prefixes of their size, for tables and axes."""

from __future__ import annotations


def short(value: float) -> str:
    """A count with three significant digits and the prefix k, M, G or T; below a thousand as it is."""
    number, prefix = scaled(value)
    return f"{number:#.3g}".rstrip(".") + prefix if prefix else f"{number:.3g}"


def scaled(value: float) -> tuple[float, str]:
    """The number in front of its prefix, and the prefix."""
    value = float(f"{value:.3g}")  # first, so that 999,999 is 1.00M and not 1000k
    for unit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return value / unit, prefix
    return value, ""


def plain(value: float) -> str:
    """Three significant digits or the whole number, without an exponent: 0.482, 41.5, 124, 2,030."""
    value = value if abs(value) >= 1000 else float(f"{value:.3g}")
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def percent(share: float) -> str:
    """A share in per cent, with two digits where it is small."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def with_unit(value: float, unit: str) -> str:
    """A number and its unit with the prefix of its size, such as 179 GFLOP/s."""
    number, prefix = scaled(value)
    return f"{number:.3g} {prefix}{unit}"
