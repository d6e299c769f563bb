"""Numbers as text with the prefixes k, M, G and T, for tables and axes."""

from __future__ import annotations


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


def percent(share: float) -> str:
    """Return a share in per cent: a whole number from 10 % on, and two significant digits below."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def with_unit(value: float, unit: str) -> str:
    """Return a number with its unit and a prefix, such as 179 GFLOP/s."""
    number, prefix = scaled(value)
    return f"{number:.3g} {prefix}{unit}"
