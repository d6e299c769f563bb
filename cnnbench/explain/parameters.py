"""Costs of layers that compute feature maps of the same size from the same image: what sharing and locality save.

A convolution is a dense layer with two restrictions. Most of its weights are zero (locality), and its other weights are
the same at every position (sharing). Without sharing it is a locally connected layer; without locality as well, it is a
dense layer for the same output. Courses often compare a convolution with a dense layer that computes one number per
channel. That layer has another task and is far smaller; the table lists it too, under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from matplotlib.figure import Figure

from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.options import ParametersOptions
from cnnbench.plots.drawing import PALETTE
from cnnbench.units import plain, short

CAPTION = (
    "Four layers that make the same maps, and in grey two dense layers that make only numbers; the axis is "
    "logarithmic. The step from the convolution to the locally connected layer is what sharing saves; the step from "
    "there to the dense layer is what locality saves, if the window is smaller than the image."
)
STACKS = (
    "Two 3x3 convolutions have fewer weights than one 5x5, 9·(C + O) against 25·C for each of the O channels that they "
    "make of C, if O is less than 16/9 of C."
)


class Cost(NamedTuple):
    """Parameters and multiply-adds of a layer.

    Attributes:
        name: Name of the type of layer.
        weights: Number of weights, without biases.
        biases: Number of biases.
        macs: Multiply-adds for one image; products with padding are counted, biases are not.
        formula: Formula of the number of weights, with the numbers of this layer.
    """

    name: str
    weights: int
    biases: int
    macs: int
    formula: str

    @property
    def params(self) -> int:
        """Return the number of weights and biases."""
        return self.weights + self.biases

    @property
    def mebibytes(self) -> float:
        """Return the memory of weights and biases in float32, in MiB."""
        return self.params * 4 / 2**20


def costs(
    in_channels: int, size: int, out_channels: int, kernel_size: int, stride: int, padding: int, units: int
) -> list[Cost]:
    """Compute the costs of six layers that take the same image.

    Args:
        in_channels: Channels of the image.
        size: Height and width of the image in pixels.
        out_channels: Channels of the feature maps.
        kernel_size: Height and width of the kernel in pixels.
        stride: Stride of the kernel.
        padding: Zeros on each side of the image.
        units: Units of the last dense layer.

    Returns:
        Four layers that compute maps of the same size: convolution, depthwise separable convolution, locally connected
        layer and dense layer. Then two dense layers without maps: to one number per channel, and to ``units`` numbers.

    Raises:
        UserError: A value is out of its range, or the kernel does not fit into the padded image.
    """
    sizes = {
        "in_channels": in_channels,
        "image_size": size,
        "out_channels": out_channels,
        "kernel_size": kernel_size,
        "stride": stride,
        "units": units,
    }
    _check(sizes, padding)
    k, c, o = kernel_size, in_channels, out_channels
    side = (size + 2 * padding - k) // stride + 1
    places = side * side  # of the window, with one pixel of each map at each place
    outputs = o * places
    pixels = c * size * size
    window = k * k * c
    # A depthwise separable convolution has one filter per channel, and a 1x1 convolution that mixes the channels.
    separable = window + c * o
    image, maps = f"{c}·{size}·{size}", f"{o}·{side}·{side}"
    return [
        # The same `window` weights of a map serve all places.
        Cost("convolution", window * o, o, window * outputs, f"{k}·{k}·{c}·{o}"),
        # Both of its layers have biases: c of the filters per channel, o of the 1x1 convolution.
        Cost("depthwise separable convolution", separable, c + o, separable * places, f"{k}·{k}·{c} + {c}·{o}"),
        # Without sharing, every output has a window of weights of its own.
        Cost("locally connected", window * outputs, outputs, window * outputs, f"{k}·{k}·{c} · {maps}"),
        # Without locality as well, every output has a weight for every pixel of the image.
        Cost("dense, to the same maps", pixels * outputs, outputs, pixels * outputs, f"{image} · {maps}"),
        Cost(f"dense, to {o} numbers, one per channel", pixels * o, o, pixels * o, f"{image} · {o}"),
        Cost(f"dense, to {units:,} numbers", pixels * units, units, pixels * units, f"{image} · {units:,}"),
    ]


def _check(sizes: Mapping[str, int], padding: int) -> None:
    """Raise UserError if a size is below 1, or if the kernel does not fit into the padded image."""
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    size, kernel_size = sizes["image_size"], sizes["kernel_size"]
    if padding < 0 or size + 2 * padding < kernel_size:
        raise UserError(
            f"a kernel of {kernel_size} does not fit into {size} pixels with padding {padding}; use more image_size "
            "or padding, or a smaller kernel_size"
        )


def stacked(in_channels: int, out_channels: int) -> tuple[int, int]:
    """Count the weights of two 3x3 convolutions in a row, and of one 5x5 convolution with the same receptive field.

    Args:
        in_channels: Channels of the input.
        out_channels: Output channels of all three convolutions.

    Returns:
        Weights of the two convolutions together, and weights of the one.
    """
    # The second 3x3 convolution goes from O to O channels, hence the square.
    return 9 * in_channels * out_channels + 9 * out_channels**2, 25 * in_channels * out_channels


def explain(options: ParametersOptions) -> Explanation:
    """Count the weights of layers for the same maps.

    Raises:
        UserError: A value is out of its range, or the kernel does not fit into the padded image.
    """
    in_channels, out_channels, kernel_size = options.in_channels, options.out_channels, options.kernel_size
    size, padding = options.image_size, options.padding
    if padding is None:
        padding = kernel_size // 2
    layers = costs(in_channels, size, out_channels, kernel_size, options.stride, padding, options.units)
    # A stack that takes the image, and one that takes maps and keeps their number.
    stacks = {f"{c} to {out_channels} channels": stacked(c, out_channels) for c in (in_channels, out_channels)}
    title = f"From {in_channels}x{size}x{size} to {out_channels} maps, {kernel_size}x{kernel_size}"
    return Explanation(
        _numbers(layers, stacks),
        [_table(title, layers), _stack_table(stacks)],
        [Picture("parameters", "Weights of layers for the same maps", CAPTION, _draw(layers))],
        [_on_dense_layers(layers), STACKS],
    )


def _numbers(layers: Sequence[Cost], stacks: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Return the counts for ``--json``."""
    return {
        "stacks": [{"channels": name, "two_3x3": two, "one_5x5": one} for name, (two, one) in stacks.items()],
        "layers": [{**cost._asdict(), "params": cost.params, "mebibytes": cost.mebibytes} for cost in layers],
    }


def _table(title: str, layers: Sequence[Cost]) -> Table:
    """Return the table of the layers; the first one is the convolution that the others are compared with."""
    head = ("Layer", "Weights", "Formula", "Biases", "MACs", "MiB", "Weights x convolution's")
    rows = []
    for cost in layers:
        ratio = plain(cost.weights / layers[0].weights)
        size = plain(cost.mebibytes)
        rows.append((cost.name, f"{cost.weights:,}", cost.formula, f"{cost.biases:,}", f"{cost.macs:,}", size, ratio))
    return Table(title, head, rows)


def _stack_table(stacks: Mapping[str, tuple[int, int]]) -> Table:
    """Return the table of two 3x3 convolutions against one 5x5."""
    head = ("Channels", "Two 3x3", "One 5x5", "Two over one")
    rows = [(name, f"{two:,}", f"{one:,}", f"{two / one:.2f}") for name, (two, one) in stacks.items()]
    return Table("Weights of stacks that see 5x5 pixels", head, rows)


def _on_dense_layers(layers: Sequence[Cost]) -> str:
    """Return a sentence on the dense layer that does the work of the convolution, and on the one that does not."""
    # In the order of `costs`, these two are the dense layers to the same maps and to a number per channel.
    dense, per_channel = layers[3].weights, layers[4].weights
    if dense == per_channel:
        return f"Maps of one pixel are one number per channel: both dense layers have {dense:,} weights."
    return (
        f"The dense layer that makes what the convolution makes has {dense:,} weights; the one with {per_channel:,}, "
        "which a convolution is often compared with, makes one number per channel."
    )


def _draw(layers: Sequence[Cost]) -> Figure:
    """Draw the weights of each layer as a bar, grey for the layers without maps."""
    figure = Figure(figsize=(5.7, 3), layout="constrained")
    # With less padding the names of the layers touch the edge of the figure.
    cast(Any, figure.get_layout_engine()).set(w_pad=0.12)
    ax = figure.subplots()
    # The last two layers compute no maps.
    colours = [PALETTE[0]] * (len(layers) - 2) + ["#b0b0b0"] * 2
    # A number of weights can exceed 64 bits, and matplotlib takes such a number only as a float.
    weights = [float(cost.weights) for cost in layers]
    for row, (count, colour) in enumerate(zip(weights, colours, strict=True)):
        ax.barh(row, count, color=colour, height=0.65)
        ax.annotate(short(count), (count, row), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.set_yticks(range(len(layers)), [cost.name for cost in layers], fontsize=8.5)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlim(min(weights) / 10, max(weights) * 30.0)
    ax.set_xlabel("weights")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return figure
