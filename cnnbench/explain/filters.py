"""The tool ``filters``: the filters of a convolution drawn as images, with zero in the middle of the colour scale.

Filters of a first convolution with three input channels are drawn as colours, those of other convolutions channel by
channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from cnnbench.blocks import WhiteningConv2d
from cnnbench.errors import UserError, unknown
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.activations import outputs
from cnnbench.explain.networks import Subject, find_subject
from cnnbench.explain.options import FEW_FILTERS, FiltersOptions
from cnnbench.plots.grids import colours, grid, outline, show

COLUMNS = 12
"""Largest number of panels in a row of the picture: filters, or input channels of one filter."""
MOST_FILTERS = 96
"""Default number of filters in a picture in which a filter has one panel."""
ORDERS = {"norm": "the largest norm first", "network": "in the network's order"}
"""Orders of the filters by value of ``--sort``, in words."""

CAPTION_IN_COLOUR = (
    "Each panel is a filter, with its number and its norm, the root of the sum of its squared weights. The three "
    "weights of a pixel are drawn as red, green and blue; zero is mid-grey, and each filter is scaled by its own "
    "largest absolute value. Filters without a tint see changes of brightness, such as edges; tinted ones see colour."
)
CAPTION_OF_ONE_CHANNEL = (
    "Each panel is a filter, with its number and its norm, the root of the sum of its squared weights. Red weights are "
    "positive, blue ones negative, white is zero; each filter is scaled by its own largest absolute value."
)
CAPTION_OF_ROWS = (
    "A row is a filter, with its number and its norm, the root of the sum of its squared weights; a column is one of "
    "its input channels. Red weights are positive, blue ones negative, white is zero; each filter is scaled by its own "
    "largest absolute value."
)


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
    # Brightness is what the channels have in common, so a filter that sees only brightness has one weight for all of
    # them. C channels with the same mean weight have C times the squares of the mean.
    alike = weights.shape[1] * (weights.astype(float).mean(1) ** 2).sum((1, 2))
    total = norms(weights) ** 2
    # A filter of zeros has no norm to divide by, and keeps the 0 of `out`.
    return np.divide(alike, total, out=np.zeros_like(alike), where=total > 0)


def convolutions(model: nn.Module, image_shape: Sequence[int]) -> dict[str, nn.Conv2d]:
    """Return the two-dimensional convolutions that run in evaluation mode, by name, in the order in which they run.

    Args:
        model: Any classifier.
        image_shape: Channels, height and width of one image, (C, H, W).

    Raises:
        UserError: The network has no such convolution, or does not run on such images.
    """
    modules = dict(model.named_modules())
    layers: dict[str, nn.Conv2d] = {}
    # Layers that run in training only, such as those of auxiliary heads, have no output here.
    for name in outputs(model, image_shape):
        module = modules[name]
        if isinstance(module, nn.Conv2d):
            layers[name] = module
    if not layers:
        raise UserError(f"{type(model).__name__} has no convolution of images; give a network with nn.Conv2d")
    return layers


class _Chosen(NamedTuple):
    """Convolution that the picture shows, and the filters of it that are drawn.

    Attributes:
        subject: Network that has the convolution.
        layers: All convolutions of the network, by name, in the order in which they run.
        name: Name of the convolution.
        weights: Its weights, (N, C, kH, kW).
        norms: Norms of its filters, (N,).
        grey_shares: Grey shares of its filters, (N,), if they are drawn as colours; None otherwise.
        in_rows: Whether each filter has a row of panels, with a column for each input channel.
        shown: Indices of the filters that are drawn, in this order.
        order: Order of the filters, a key of `ORDERS`.
    """

    subject: Subject
    layers: Mapping[str, nn.Conv2d]
    name: str
    weights: np.ndarray
    norms: np.ndarray
    grey_shares: np.ndarray | None
    in_rows: bool
    shown: list[int]
    order: str

    @property
    def layer(self) -> nn.Conv2d:
        """Return the convolution itself."""
        return self.layers[self.name]

    @property
    def title(self) -> str:
        """Return the title of the picture."""
        return f"{self.subject.description}: filters of {self.name}"

    @property
    def columns(self) -> int:
        """Return the number of input channels in a picture in which each filter has a row."""
        return min(self.weights.shape[1], COLUMNS)


def explain(options: FiltersOptions) -> Explanation:
    """Return a picture of one convolution's filters, and a table of all convolutions.

    Raises:
        UserError: The order or the layer is unknown, or the network has no convolution.
    """
    chosen = _choose(options)
    return Explanation(
        _numbers(chosen), [_table_of_all(chosen), _table_of_shown(chosen)], [_picture(chosen)], _remarks(chosen)
    )


def _choose(options: FiltersOptions) -> _Chosen:
    """Return the convolution that the options name, with the filters to draw; raise UserError where `explain` does."""
    if options.sort not in ORDERS:
        raise unknown("order", options.sort, ORDERS)
    subject = find_subject(options)
    layers = convolutions(subject.model, subject.image_shape)
    name = _chosen_name(options.layer, layers)
    layer = layers[name]
    # NumPy has no bfloat16, so weights in 16 bits are converted.
    weights = layer.weight.detach().float().numpy()
    channels = weights.shape[1]
    shares = None
    # Only the first convolution sees the image, so only there are three channels red, green and blue.
    if channels == 3 and layer is next(iter(layers.values())) and layer.groups == 1:
        shares = grey_shares(weights)
    # Filters of several channels that are not colours get a row each.
    in_rows = shares is None and channels > 1
    of_filters = norms(weights)
    order: np.ndarray = np.arange(len(weights))
    if options.sort == "norm":
        order = np.argsort(-of_filters, kind="stable")
    most = options.filters or (FEW_FILTERS if in_rows else MOST_FILTERS)
    return _Chosen(
        subject, layers, name, weights, of_filters, shares, in_rows, shown=order[:most].tolist(), order=options.sort
    )


def _chosen_name(name: str | None, layers: Mapping[str, nn.Conv2d]) -> str:
    """Return the name of the convolution to show; raise UserError if the user named one that does not exist."""
    if not name:
        # The first convolution that training changes, or else the first of all.
        learnt = [key for key, layer in layers.items() if layer.weight.requires_grad]
        return [*learnt, *layers][0]
    if name not in layers:
        near = [key for key in layers if key.startswith(name)]
        raise unknown("convolution", name, near or list(layers)[:12])
    return name


def _numbers(chosen: _Chosen) -> dict[str, Any]:
    """Return the values for the JSON document."""
    numbers: dict[str, Any] = {
        "model": chosen.subject.name,
        "trained": chosen.subject.trained,
        "layer": chosen.name,
        "shape": list(chosen.weights.shape),
        "groups": chosen.layer.groups,
        "fixed": not chosen.layer.weight.requires_grad,
        "order": chosen.order,
        "shown": chosen.shown,
        "norms": chosen.norms.tolist(),
    }
    if chosen.grey_shares is not None:
        numbers["grey_shares"] = chosen.grey_shares.tolist()
    if chosen.in_rows:
        numbers["shown_input_channels"] = chosen.columns
    return numbers


def _table_of_all(chosen: _Chosen) -> Table:
    """Return the table of all convolutions, with the range of their filters' norms."""
    rows = []
    for name, layer in chosen.layers.items():
        weights = layer.weight.detach().float().numpy()
        count, channels, height, width = weights.shape
        of_filters = norms(weights)
        smallest, median, largest = of_filters.min(), np.median(of_filters), of_filters.max()
        size = f"{height}x{width}"
        rows.append((name, str(count), str(channels), size, f"{smallest:.3g}", f"{median:.3g}", f"{largest:.3g}"))
    head = ("Convolution", "Filters", "Input channels of each", "Size", "Smallest norm", "Median", "Largest")
    return Table(f"{chosen.subject.description}: convolutions", head, rows)


def _table_of_shown(chosen: _Chosen) -> Table:
    """Return the table of what the picture shows of its convolution."""
    count, channels = chosen.weights.shape[:2]
    rows = [("Filters in the picture", f"{len(chosen.shown)} of {count}"), ("Order", ORDERS[chosen.order])]
    if chosen.in_rows:
        rows.append(("Input channels in the picture", f"the first {chosen.columns} of {channels}"))
    if chosen.grey_shares is not None:
        grey = int((chosen.grey_shares > 0.5).sum())
        rows.append(("Filters in which brightness has the larger part", f"{grey} of {count}"))
    return Table(chosen.title, ("Fact", "Value"), rows)


def _remarks(chosen: _Chosen) -> list[str]:
    """Return remarks on the convolutions that training leaves as they are, and on the colours of the filters."""
    remarks = []
    if not chosen.layer.weight.requires_grad:
        remarks.append(f"The filters of {chosen.name} are fixed, not learnt: {_origin(chosen.layer)}.")
    for name, layer in chosen.layers.items():
        if name != chosen.name and not layer.weight.requires_grad:
            remarks.append(f"{name} is fixed, not learnt; --layer {name} shows it.")
    shares = chosen.grey_shares
    if shares is not None:
        remarks.append(
            "Grey share, the part of a filter's squares that is alike in red, green and blue: median "
            f"{np.median(shares):.2f}, from {shares.min():.2f} to {shares.max():.2f}."
        )
    return remarks


def _origin(layer: nn.Conv2d) -> str:
    """Return a phrase on the origin of filters that training does not change."""
    if not isinstance(layer, WhiteningConv2d):
        return "training leaves them as they are"
    if layer.whitened:
        return "the principal components of patches of the first training images, and their negatives"
    return "a random basis, in place of which a training sets the principal components of its first images"


def _picture(chosen: _Chosen) -> Picture:
    """Return the picture of the filters, drawn as colours, as one channel each, or in rows of several channels."""
    if chosen.in_rows:
        return Picture("filters", chosen.title, CAPTION_OF_ROWS, _draw_rows(chosen))
    caption = CAPTION_OF_ONE_CHANNEL if chosen.grey_shares is None else CAPTION_IN_COLOUR
    return Picture("filters", chosen.title, caption, _draw(chosen))


def _draw(chosen: _Chosen) -> Figure:
    """Return a figure of filters in a grid, of one channel each, or of three channels drawn as colours."""
    weights, shown = chosen.weights, chosen.shown
    # The number of columns is the one that leaves the fewest cells of the last row empty.
    # In Python, -a % n is what a lacks to the next multiple of n: here the number of empty cells.
    columns = min(range(COLUMNS, COLUMNS // 2, -1), key=lambda n: -len(shown) % n)
    figure, axes = grid(len(shown), columns, cell=0.7, ratio=weights.shape[2] / weights.shape[3])
    for ax, index in zip(axes, shown, strict=True):
        image = weights[index, 0]
        if chosen.grey_shares is not None:
            image = colours(weights[index])
        show(ax, image, scale="signed")
        _frame(ax, weights)
        # Places are in parts of the panel, from 0 at its bottom to 1, so the text stands below the panel.
        text = f"{index}: {chosen.norms[index]:.2f}"
        ax.text(0.5, -0.07, text, transform=ax.transAxes, ha="center", va="top", fontsize=7.5)
    return figure


def _draw_rows(chosen: _Chosen) -> Figure:
    """Return a figure with a row for each filter and a column for each input channel."""
    weights, columns = chosen.weights, chosen.columns
    ratio = weights.shape[2] / weights.shape[3]
    figure, axes = grid(len(chosen.shown) * columns, columns, cell=0.7, ratio=ratio, titles=False)
    for row, index in enumerate(chosen.shown):
        panels = axes[row * columns : (row + 1) * columns]
        # All channels of a filter share one scale, so that their colours compare.
        top = np.abs(weights[index]).max() or 1.0
        for channel, ax in enumerate(panels):
            ax.imshow(weights[index, channel], cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
            _frame(ax, weights)
            if row == 0:
                ax.set_title(f"in {channel}", fontsize=8, pad=3)
        text = f"filter {index}\n{chosen.norms[index]:.2f}"
        panels[0].text(-0.15, 0.5, text, transform=panels[0].transAxes, ha="right", va="center", fontsize=8)
    return figure


def _frame(ax: Axes, weights: np.ndarray) -> None:
    """Draw a thin line around a filter, so that a white filter is visible too."""
    outline(ax, (0, 0), weights.shape[2:], "#999999", linewidth=0.6, clip_on=False)
