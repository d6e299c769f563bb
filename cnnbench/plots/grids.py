"""Grids of images for the tools of `cnnbench explain`, each image with a title and a defined scale of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

Scale = Literal["unit", "signed", "own"]
"""Values at the two ends of a grey or colour scale.

``unit``: 0 and 1. ``signed``: minus and plus the largest absolute value. ``own``: the lowest and the highest value.
"""
SOFT = "#555555"


def grid(
    count: int, columns: int, cell: float = 1.6, ratio: float = 1.0, titles: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a grid of panels for images, and the panels row by row. Their axes are not drawn.

    Args:
        count: Number of panels.
        columns: Largest number of panels in a row.
        cell: Width of a panel in inches.
        ratio: Height of a panel divided by its width.
        titles: Whether to leave room for a title above each panel.
    """
    columns = max(1, min(columns, count))
    # -(-a // b) is a / b rounded up.
    rows = -(-count // columns)
    figure = Figure(figsize=(cell * columns, (cell * ratio + 0.3 * titles) * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.set_axis_off()
    # The panels that are left over in the last row stay empty.
    return figure, axes[:count]


def show(
    ax: Axes, image: Any, title: str = "", scale: Scale = "own", colours: str | None = None, quantile: float = 1.0
) -> None:
    """Draw an image into a panel, with pixels as squares.

    Args:
        ax: Panel to draw into.
        image: Image of one channel, (H, W), or colour image with values from 0 to 1, (H, W, 3).
        title: Title above the image.
        scale: Scale of values; see `Scale`. It does not apply to colour images, whose values are cut at 0 and 1.
        colours: Name of a matplotlib colour map for one channel. The default is grey, and blue to red for ``signed``.
        quantile: Quantile of the absolute values at which the scale ``signed`` ends.
    """
    image = np.asarray(image, dtype=float)
    if image.ndim == 3:
        ax.imshow(np.clip(image, 0, 1), interpolation="nearest")
    else:
        low, high = limits(image, scale, quantile)
        default = "RdBu_r" if scale == "signed" else "gray"
        ax.imshow(image, cmap=colours or default, vmin=low, vmax=high, interpolation="nearest")
    if title:
        ax.set_title(title, fontsize=8.5, pad=3)


def limits(image: np.ndarray, scale: Scale, quantile: float = 1.0) -> tuple[float, float]:
    """Return the values at the two ends of the scale; arguments as in `show`."""
    if scale == "unit":
        return 0.0, 1.0
    if scale == "signed":
        top = float(np.quantile(np.abs(image), quantile))
        # Smaller values are rounding errors of zeros; NaN counts as one of them.
        if not top > 1e-9:
            top = 1.0
        return -top, top
    low, high = float(image.min()), float(image.max())
    if high > low:
        return low, high
    # An image of one value is drawn in the middle of the scale.
    return low - 0.5, high + 0.5


def colours(kernel: np.ndarray) -> np.ndarray:
    """Return a filter of three channels, (3, kH, kW), as a colour image, (kH, kW, 3), with values from 0 to 1.

    A weight of zero becomes 0.5, mid-grey. The weight with the largest absolute value becomes 0 or 1.
    """
    # Only a filter of zeros has no largest value; dividing by 1 leaves it mid-grey.
    top = np.abs(kernel).max() or 1.0
    # Torch has the channels first, matplotlib last.
    return 0.5 + 0.5 * np.moveaxis(kernel, 0, 2) / top


def outline(ax: Axes, low: Sequence[float], high: Sequence[float], colour: str, **options: Any) -> None:
    """Draw a rectangle around pixels of an image in a panel.

    Args:
        ax: Panel with the image.
        low: Upper left corner as (row, column) in pixels; the first pixel reaches from 0 to 1.
        high: Lower right corner as (row, column) in pixels.
        colour: Colour of the line.
        options: Further arguments of matplotlib's ``Rectangle``.
    """
    corner = (low[1] - 0.5, low[0] - 0.5)  # in matplotlib, whole numbers are the centres of pixels
    options = {"linewidth": 1.6} | options
    ax.add_patch(Rectangle(corner, high[1] - low[1], high[0] - low[0], fill=False, edgecolor=colour, **options))
