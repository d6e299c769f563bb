"""How the pictures of the tools look: grids of images, each with a title and a stated scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Scale = Literal["unit", "signed", "own"]
"""What black and white are: 0 and 1; minus and plus the largest absolute value; the lowest and the highest value."""
SOFT = "#555555"


def grid(
    count: int, columns: int, cell: float = 1.6, ratio: float = 1.0, titles: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of so many square panels without axes, row by row.

    Args:
        count: Panels.
        columns: Panels in a row.
        cell: Width of a panel in inches.
        ratio: Height of a panel over its width.
        titles: Whether there is room for a title above each.
    """
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    figure = Figure(figsize=(cell * columns, (cell * ratio + 0.3 * titles) * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.set_axis_off()
    return figure, axes[:count]


def show(
    ax: Axes, image: Any, title: str = "", scale: Scale = "own", colours: str | None = None, quantile: float = 1.0
) -> None:
    """Draws an image into a panel, pixels as squares.

    Args:
        ax: The panel.
        image: (H, W), or (H, W, 3) with values of 0 to 1.
        title: Above it.
        scale: See `Scale`; colour images are drawn as they are, cut at 0 and 1.
        colours: Name of matplotlib's for one channel; unset, grey, and blue to red for ``signed``.
        quantile: Of the absolute values, where ``signed`` ends.
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
    """The values that are drawn as the two ends of the scale."""
    if scale == "unit":
        return 0.0, 1.0
    if scale == "signed":
        top = float(np.quantile(np.abs(image), quantile))
        top = top if top > 1e-9 else 1.0  # below is the rounding of zeros
        return -top, top
    low, high = float(image.min()), float(image.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def outline(ax: Axes, low: Sequence[float], high: Sequence[float], colour: str, **options: Any) -> None:
    """A rectangle around pixels of an image in a panel.

    Args:
        ax: The panel.
        low: Upper left corner as (row, column); the first pixel reaches from 0 to 1.
        high: Lower right corner.
        colour: Of the line.
        options: Of matplotlib's ``Rectangle``.
    """
    from matplotlib.patches import Rectangle

    corner = (low[1] - 0.5, low[0] - 0.5)  # a pixel's centre is at a whole number in matplotlib
    options = {"linewidth": 1.6} | options
    ax.add_patch(Rectangle(corner, high[1] - low[1], high[0] - low[0], fill=False, edgecolor=colour, **options))
