"""The tool ``filters``: the filters of a convolution drawn as images, with zero in the middle of the colour scale.

Filters of a first convolution with three input channels are drawn as colours, those of other convolutions channel by
channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from cnnbench.blocks import WhiteningConv2d
from cnnbench.errors import UserError, unknown
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.activations import outputs
from cnnbench.explain.networks import find_subject
from cnnbench.explain.options import FEW_FILTERS, FiltersOptions
from cnnbench.plots.grids import grid, outline, show

COLUMNS = 12
"""Largest number of panels in a row of the picture: filters, or input channels of one filter."""


def explain(options: FiltersOptions) -> Explanation:
    """Return a picture of one convolution's filters, and a table of all convolutions.

    Raises:
        UserError: The order or the layer is unknown, or the network has no convolution.
    """
    if options.sort not in ("norm", "network"):
        raise unknown("order", options.sort, ("norm", "network"))
    subject = find_subject(options)
    layers = convolutions(subject.model, subject.image_shape)
    fixed = [n for n, layer in layers.items() if not layer.weight.requires_grad]
    name = options.layer or next((n for n in layers if n not in fixed), next(iter(layers)))
    if name not in layers:
        raise unknown("convolution", name, [n for n in layers if n.startswith(name)] or list(layers)[:12])
    layer = layers[name]
    weights = layer.weight.detach().float().numpy()
    found = norms(weights)
    count, channels = weights.shape[:2]
    order = np.argsort(-found, kind="stable") if options.sort == "norm" else np.arange(count)
    # Only the first convolution sees the image, so only there are three channels red, green and blue.
    colour = channels == 3 and layer is next(iter(layers.values())) and layer.groups == 1
    # Filters of several channels that are not colours get a row each, with a column per input channel.
    rows = not colour and channels > 1
    shown = order[: options.filters or (FEW_FILTERS if rows else 96)].tolist()
    numbers: dict[str, Any] = {
        "model": subject.name,
        "trained": subject.trained,
        "layer": name,
        "shape": list(weights.shape),
        "groups": layer.groups,
        "fixed": name in fixed,
        "order": options.sort,
        "shown": shown,
        "norms": found.tolist(),
    }
    first = "the largest norm first" if options.sort == "norm" else "in the network's order"
    caption = (
        f"{len(shown)} of the {count} filters of {name}, {weights.shape[2]}x{weights.shape[3]}, {first}, with "
        "number and norm (the root of the sum of squares). "
    )
    if name in fixed:
        caption += f"They are fixed, not learnt: {_origin(layer)}. "
    remarks = [f"{n} is fixed, not learnt; --layer {n} shows it." for n in fixed if n != name]
    if colour:
        shares = grey_shares(weights)
        numbers["grey_shares"] = shares.tolist()
        caption += (
            "The three weights of a pixel are drawn as red, green and blue; zero is mid-grey, and each filter is "
            f"scaled by its own largest absolute value. {_sentence(int((shares > 0.5).sum()), count)}"
        )
        remarks.append(
            "Grey share, the part of a filter's squares that is alike in red, green and blue: median "
            f"{np.median(shares):.2f}, from {shares.min():.2f} to {shares.max():.2f}."
        )
    else:
        caption += "Red weights are positive, blue ones negative, white is zero; "
        caption += "each filter is scaled by its own largest absolute value."
    if rows:
        seen = min(channels, COLUMNS)
        numbers["shown_input_channels"] = seen
        caption += f" A row is one filter, a column one of its input channels, the first {seen} of {channels}."
    figure = _draw_rows(weights, found, shown) if rows else _draw(weights, found, shown, colour)
    title = f"{subject.description}: filters of {name}"
    table = Table(
        f"{subject.description}: convolutions",
        ("Convolution", "Filters", "Input channels of each", "Size", "Smallest norm", "Median", "Largest"),
        [_row(key, conv) for key, conv in layers.items()],
    )
    return Explanation(numbers, [table], [Picture("filters", title, caption, figure)], remarks)


def convolutions(model: nn.Module, image_shape: Sequence[int]) -> dict[str, nn.Conv2d]:
    """Return the two-dimensional convolutions that run in evaluation mode, by name, in the order in which they run.

    Args:
        model: Any classifier.
        image_shape: Channels, height and width of one image, (C, H, W).

    Raises:
        UserError: The network has no such convolution, or does not run on such images.
    """
    modules = dict(model.named_modules())
    found = {name: m for name in outputs(model, image_shape) if isinstance(m := modules[name], nn.Conv2d)}
    if not found:
        raise UserError(f"{type(model).__name__} has no convolution of images; give a network with nn.Conv2d")
    return found


def norms(weights: np.ndarray) -> np.ndarray:
    """Return the Euclidean norm of every filter, (N,), for weights of shape (N, C, kH, kW)."""
    return np.sqrt((weights.astype(float) ** 2).sum((1, 2, 3)))


def grey_shares(weights: np.ndarray) -> np.ndarray:
    """Return the grey share of every filter, (N,): 1 if it sees only brightness, 0 if it sees only colour.

    The grey share is the part of a filter's sum of squares that remains if each weight is replaced by the mean over
    the input channels. It is 0 for a filter of zeros.

    Args:
        weights: Weights of a convolution, (N, C, kH, kW).
    """
    # C channels with the same mean weight have C times the squares of the mean.
    alike = weights.shape[1] * (weights.astype(float).mean(1) ** 2).sum((1, 2))
    total = norms(weights) ** 2
    return np.divide(alike, total, out=np.zeros_like(alike), where=total > 0)


def colours(kernel: np.ndarray) -> np.ndarray:
    """Return a filter of three channels, (3, kH, kW), as a colour image, (kH, kW, 3), with values from 0 to 1.

    A weight of zero becomes 0.5, mid-grey. The weight with the largest absolute value becomes 0 or 1.
    """
    top = np.abs(kernel).max() or 1.0
    return 0.5 + 0.5 * np.moveaxis(kernel, 0, 2) / top


def _origin(layer: nn.Conv2d) -> str:
    """Return a phrase on the origin of filters that training does not change."""
    if not isinstance(layer, WhiteningConv2d):
        return "training leaves them as they are"
    if layer.whitened:
        return "the principal components of patches of the first training images, and their negatives"
    return "a random basis, in place of which a training sets the principal components of its first images"


def _sentence(grey: int, count: int) -> str:
    return (
        "Filters without a tint see changes of brightness, such as edges; tinted ones see colour. In "
        f"{grey} of {count} brightness has the larger part."
    )


def _row(name: str, conv: nn.Conv2d) -> tuple[str, ...]:
    """Return the row of a convolution in the table."""
    weights = conv.weight.detach().float().numpy()
    count, channels, height, width = weights.shape
    found = norms(weights)
    sizes = (f"{v:.3g}" for v in (found.min(), np.median(found), found.max()))
    return (name, str(count), str(channels), f"{height}x{width}", *sizes)


def _draw(weights: np.ndarray, found: np.ndarray, shown: Sequence[int], colour: bool) -> Figure:
    """Return a figure of filters in a grid, of one channel each, or of three channels drawn as colours."""
    columns = min(range(COLUMNS, COLUMNS // 2, -1), key=lambda n: -len(shown) % n)  # as few empty cells as possible
    figure, axes = grid(len(shown), columns, cell=0.7, ratio=weights.shape[2] / weights.shape[3])
    for ax, index in zip(axes, shown, strict=True):
        show(ax, colours(weights[index]) if colour else weights[index, 0], scale="signed")
        _frame(ax, weights)
        text = f"{index}: {found[index]:.2f}"
        ax.text(0.5, -0.07, text, transform=ax.transAxes, ha="center", va="top", fontsize=7.5)
    return figure


def _draw_rows(weights: np.ndarray, found: np.ndarray, shown: Sequence[int]) -> Figure:
    """Return a figure with a row for each filter and a column for each input channel."""
    columns = min(weights.shape[1], COLUMNS)
    figure, axes = grid(
        len(shown) * columns, columns, cell=0.7, ratio=weights.shape[2] / weights.shape[3], titles=False
    )
    for row, index in enumerate(shown):
        panels = axes[row * columns : (row + 1) * columns]
        top = np.abs(weights[index]).max() or 1.0
        for channel, ax in enumerate(panels):
            ax.imshow(weights[index, channel], cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
            _frame(ax, weights)
            if row == 0:
                ax.set_title(f"in {channel}", fontsize=8, pad=3)
        text = f"filter {index}\n{found[index]:.2f}"
        panels[0].text(-0.15, 0.5, text, transform=panels[0].transAxes, ha="right", va="center", fontsize=8)
    return figure


def _frame(ax: Axes, weights: np.ndarray) -> None:
    """Draw a thin line around a filter, so that a white filter is visible too."""
    outline(ax, (0, 0), weights.shape[2:], "#999999", linewidth=0.6, clip_on=False)
