"""Costs of layers that compute feature maps of the same size from the same image: what sharing and locality save.

A convolution is a dense layer with two restrictions. Most of its weights are zero (locality), and its other weights are
the same at every position (sharing). Without sharing it is a locally connected layer; without locality as well, it is a
dense layer for the same output. Courses often compare a convolution with a dense layer that computes one number per
channel. That layer has another task and is far smaller; the table lists it too, under its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from matplotlib.figure import Figure

from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.options import ParametersOptions
from cnnbench.plots.drawing import PALETTE
from cnnbench.units import plain, short

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
    named = {
        "in_channels": in_channels,
        "image_size": size,
        "out_channels": out_channels,
        "kernel_size": kernel_size,
        "stride": stride,
        "units": units,
    }
    for name, value in named.items():
        if value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    if padding < 0 or size + 2 * padding < kernel_size:
        raise UserError(
            f"a kernel of {kernel_size} does not fit into {size} pixels with padding {padding}; use more image_size "
            "or padding, or a smaller kernel_size"
        )
    side = (size + 2 * padding - kernel_size) // stride + 1
    places, pixels = side * side, in_channels * size * size
    window = kernel_size**2 * in_channels
    outputs = out_channels * places
    depthwise = kernel_size**2 * in_channels
    k, c, o = kernel_size, in_channels, out_channels
    image, maps = f"{c}·{size}·{size}", f"{o}·{side}·{side}"
    return [
        Cost("convolution", window * o, o, window * outputs, f"{k}·{k}·{c}·{o}"),
        Cost(
            "depthwise separable convolution",
            depthwise + c * o,
            c + o,
            (depthwise + c * o) * places,
            f"{k}·{k}·{c} + {c}·{o}",
        ),
        Cost("locally connected", window * outputs, outputs, window * outputs, f"{k}·{k}·{c} · {maps}"),
        Cost("dense, to the same maps", pixels * outputs, outputs, pixels * outputs, f"{image} · {maps}"),
        Cost(f"dense, to {o} numbers, one per channel", pixels * o, o, pixels * o, f"{image} · {o}"),
        Cost(f"dense, to {units:,} numbers", pixels * units, units, pixels * units, f"{image} · {units:,}"),
    ]


def stacked(in_channels: int, out_channels: int) -> tuple[int, int]:
    """Count the weights of two 3x3 convolutions in a row, and of one 5x5 convolution with the same receptive field.

    Args:
        in_channels: Channels of the input.
        out_channels: Output channels of all three convolutions.

    Returns:
        Weights of the two convolutions together, and weights of the one.
    """
    return 9 * in_channels * out_channels + 9 * out_channels**2, 25 * in_channels * out_channels


def explain(options: ParametersOptions) -> Explanation:
    """Count the weights of layers for the same maps.

    Raises:
        UserError: A value is out of its range, or the kernel does not fit into the padded image.
    """
    a = options
    padding = a.kernel_size // 2 if a.padding is None else a.padding
    found = costs(a.in_channels, a.image_size, a.out_channels, a.kernel_size, a.stride, padding, a.units)
    convolution, _, local, dense, per_channel, _ = found
    rows = [
        (
            c.name,
            f"{c.weights:,}",
            c.formula,
            f"{c.biases:,}",
            f"{c.macs:,}",
            plain(c.mebibytes),
            plain(c.weights / convolution.weights),
        )
        for c in found
    ]
    head = ("Layer", "Weights", "Formula", "Biases", "MACs", "MiB", "Weights x convolution's")
    shape = f"{a.in_channels}x{a.image_size}x{a.image_size} to {a.out_channels} maps, {a.kernel_size}x{a.kernel_size}"
    caption = (
        f"Four layers that make the same {a.out_channels} maps, and below them two dense ones that make only numbers. "
        f"Without sharing a layer has {local.weights / convolution.weights:,.0f} times the weights of the convolution, "
        f"without locality too {dense.weights / convolution.weights:,.0f} times; the axis is logarithmic."
    )
    remark = (
        f"The dense layer that makes what the convolution makes has {dense.weights:,} weights; the one with "
        f"{per_channel.weights:,}, which a convolution is often compared with, makes one number per channel."
    )
    if dense.weights == per_channel.weights:
        remark = f"Maps of one pixel are one number per channel: both dense layers have {dense.weights:,} weights."
    pairs = [(c, a.out_channels) for c in dict.fromkeys((a.in_channels, a.out_channels))]
    stacks = {f"{c} to {o} channels": stacked(c, o) for c, o in pairs}
    stack_rows = [(name, f"{two:,}", f"{one:,}", f"{two / one:.2f}") for name, (two, one) in stacks.items()]
    stack_head = ("Channels", "Two 3x3", "One 5x5", "Two over one")
    return Explanation(
        {
            "stacks": [{"channels": name, "two_3x3": two, "one_5x5": one} for name, (two, one) in stacks.items()],
            "layers": [{**c._asdict(), "params": c.params, "mebibytes": c.mebibytes} for c in found],
        },
        [Table(f"From {shape}", head, rows), Table("Weights of stacks that see 5x5 pixels", stack_head, stack_rows)],
        [Picture("parameters", "Weights of layers for the same maps", caption, _draw(found))],
        [remark, STACKS],
    )


def _draw(found: Sequence[Cost]) -> Figure:

    figure = Figure(figsize=(5.7, 3), layout="constrained")
    # With less padding the names of the layers touch the edge of the figure.
    cast(Any, figure.get_layout_engine()).set(w_pad=0.12)
    ax = figure.subplots()
    # The last two layers compute no maps, and their bars are grey.
    same = len(found) - 2
    for row, cost in enumerate(found):
        ax.barh(row, float(cost.weights), color=PALETTE[0] if row < same else "#b0b0b0", height=0.65)
        ax.annotate(
            short(cost.weights),
            (float(cost.weights), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    ax.set_yticks(range(len(found)), [c.name for c in found], fontsize=8.5)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlim(min(c.weights for c in found) / 10, max(c.weights for c in found) * 30.0)
    ax.set_xlabel("weights")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return figure
