"""Exercises of the gallery, each with its answer, which the package computes when the page is made.

An exercise states its numbers once, as constants of its function, and both the question and the answer take them from
there. No answer is written by hand, so none can be out of date.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from cnnbench.counting.receptive_field import Axis
from cnnbench.explain import Explanation
from cnnbench.explain.convolution import EDGE, conv2d
from cnnbench.explain.equivariance import equivariance_error, layers
from cnnbench.explain.networks import image_for, read_photo
from cnnbench.explain.output_sizes import (
    Conv,
    Layer,
    Pool,
    along,
    output_size,
    parse_layers,
    trace_sizes,
    unread_in_words,
)
from cnnbench.explain.parameters import costs
from cnnbench.explain.sizes import evaluated, parameter_formula
from cnnbench.stats import wilson_interval


class Exercise(NamedTuple):
    """Question and answer, each as a few sentences."""

    question: str
    answer: str


def exercises(tool: str, found: Explanation) -> list[Exercise]:
    """Return the exercises on a part of the gallery; none for most tools.

    Args:
        tool: Name of the tool.
        found: What the tool returned. Some questions are about its numbers.
    """
    make = _MAKERS.get(tool)
    return make(found.numbers) if make else []


def _parameters(_: Mapping[str, Any]) -> list[Exercise]:
    """Return an exercise on the parameters of layers."""
    channels, size, maps, kernel = 3, 32, 16, 5
    made = costs(channels, size, maps, kernel, 1, kernel // 2, 10)
    convolution, dense = made[0], made[3]
    return [
        Exercise(
            f"A convolution with {kernel}x{kernel} kernels and biases makes {maps} maps from a colour image of "
            f"{size}x{size} pixels, and keeps their size. How many parameters does it have? How many has a dense layer "
            "that makes the same maps?",
            f"Each filter has {kernel}·{kernel}·{channels} weights and one bias, and there are {maps} filters: "
            f"{convolution.params:,} parameters. A dense layer has a weight from each value of the image to each value "
            f"of the maps, {dense.formula} = {dense.weights:,} weights, and {dense.biases:,} biases.",
        ),
    ]


def _convolution(_: Mapping[str, Any]) -> list[Exercise]:
    """Return exercises on the sliding window."""
    size, layer = 7, Conv(3, 2, 1)
    side = output_size(size, [layer])[0]
    image, halved, kernel, padding = 224, 112, 7, 3
    strides = [s for s in range(1, kernel + 1) if output_size(image, [Conv(kernel, s, padding)])[0] == halved]
    grey = 5
    plain = conv2d(np.full((1, 1, size, size), float(grey)), EDGE[None, None])
    return [
        Exercise(
            f"Input {size}x{size}, kernel {layer.kernel}, stride {layer.stride}, padding {layer.padding}, dilation "
            f"{layer.dilation}: how large is the output? Set the explorer to these values and compare.",
            f"⌊({size} + 2·{layer.padding} - {layer.dilation}·({layer.kernel} - 1) - 1) / {layer.stride}⌋ + 1 = "
            f"{side}, so the output is {side}x{side}.",
        ),
        Exercise(
            f"The first layer of ResNet turns {image}x{image} pixels into {halved}x{halved}, with a kernel of "
            f"{kernel}x{kernel} and a padding of {padding}. Which stride does that?",
            f"Stride {_listed(strides)}. Of the strides from 1 to {kernel}, no other one gives {halved}.",
        ),
        Exercise(
            f"All pixels of an image have the value {grey}. What does the filter for vertical edges, with its columns "
            "of -1, 0 and 1, make of it without padding?",
            f"Every output is {_listed(sorted(set(plain.ravel())))}: the weights add up to {EDGE.sum():g}, so a filter "
            "for edges ignores how bright an area is.",
        ),
    ]


def _equivariance(_: Mapping[str, Any]) -> list[Exercise]:
    """Return exercises on pooling."""
    pool = next(layer for layer in layers() if layer.name == "max pool 2x2")
    image = image_for((3, 32, 32), read_photo()).double()
    shifts = range(1, 9)
    exact = [pixels for pixels in shifts if equivariance_error(pool, image, pixels).whole == 0]
    channels, side, classes = 64, 8, 10
    flat, pooled = nn.Linear(channels * side * side, classes), nn.Linear(channels, classes)
    formulas = [parameter_formula(layer) for layer in (flat, pooled)]
    return [
        Exercise(
            f"An image is shifted by {shifts[0]} to {shifts[-1]} pixels, and a max pooling with 2x2 windows and stride "
            f"{pool.stride} follows. For which shifts are the new maps exactly the old ones, shifted?",
            f"For shifts by {_listed(exact)} pixels. After other shifts the windows hold other pixels than before.",
        ),
        Exercise(
            f"The last maps of a network are {channels} of {side}x{side}, and a dense layer makes {classes} classes of "
            "them. How many parameters does the dense layer have, and how many after a global average pooling?",
            f"{formulas[0]} = {evaluated(formulas[0]):,} without the pooling. With it each map becomes one number, and "
            f"{formulas[1]} = {evaluated(formulas[1]):,} are left.",
        ),
    ]


def _sizes(numbers: Mapping[str, Any]) -> list[Exercise]:
    """Return exercises on output sizes, and on the network of this part."""
    side, stack = 32, "conv5 maxpool2 conv5 maxpool2"
    traced = [size for size, _ in trace_sizes(side, parse_layers(stack))]
    odd, pool = 7, Pool(2)
    made = [
        Exercise(
            f"An image of {side}x{side} pixels goes through a 5x5 convolution, a 2x2 max pooling, and both once more, "
            "all without padding. How large are the maps after each layer?",
            f"{' → '.join(map(str, traced))} pixels on each side.",
        ),
        Exercise(
            f"A 2x2 pooling with stride 2 runs on maps of {odd}x{odd}. How large are the new maps, and which pixels "
            "have no influence on them?",
            f"They are {_square(odd, [pool])}. No window reads {unread_in_words((odd, odd), pool)}.",
        ),
    ]
    rows = [row for row in numbers["layers"] if row["params"]]
    if rows and numbers["params"]:
        largest = max(rows, key=lambda row: row["params"])
        made.append(
            Exercise(
                "Guess before you open the table of this part: which layer of the network has the most parameters, and "
                "what share of all?",
                f"{largest['name']}, {largest['kind']}: {largest['params']:,} of {numbers['params']:,}, "
                f"{largest['params'] / numbers['params']:.0%}.",
            )
        )
    return made


def _receptive_field(_: Mapping[str, Any]) -> list[Exercise]:
    """Return exercises on receptive fields."""
    stack = "conv3 conv3 maxpool2 conv3 conv3 maxpool2"
    steps = [_field(parse_layers(stack)[:count]) for count in range(1, len(stack.split()) + 1)]
    rates = (1, 2, 4)
    plain, dilated = _field([Conv(3)] * len(rates)), _field([Conv(3, dilation=rate) for rate in rates])
    image = 224
    count = 1
    while _field([Conv(3)] * count) < image:
        count += 1
    return [
        Exercise(
            "Two 3x3 convolutions, a 2x2 max pooling, two 3x3 convolutions and a 2x2 max pooling run in a row; the "
            "convolutions have stride 1. How many pixels wide is the receptive field after each layer?",
            f"{', '.join(map(str, steps))} pixels.",
        ),
        Exercise(
            f"How wide is the receptive field of {len(rates)} 3x3 convolutions with stride 1? How wide with the "
            f"dilations {_listed(rates)}? How many more weights does that need?",
            f"{plain} pixels, and {dilated} pixels with the dilations. It needs no more weights: the taps only move "
            "apart.",
        ),
        Exercise(
            f"How many 3x3 convolutions with stride 1 does it take until a unit sees {image} pixels? What do networks "
            "do in place of that?",
            f"{count}, for each adds 2 pixels. Networks shrink their maps by strides or pooling, so that each later "
            "layer adds more pixels.",
        ),
    ]


def _confusions(numbers: Mapping[str, Any]) -> list[Exercise]:
    """Return exercises on the mistakes of the network of this part."""
    network = numbers["networks"][0]
    matrix = network["confusion_matrix"]
    total, right = sum(map(sum, matrix)), sum(row[index] for index, row in enumerate(matrix))
    low, high = wilson_interval(right, total)
    narrow_low, narrow_high = wilson_interval(4 * right, 4 * total)
    made = [
        Exercise(
            f"The network classifies {right:,} of {total:,} test images correctly. Between which values does its "
            "accuracy on all such images lie, with 95 % confidence? Between which with four times the images and the "
            "same share?",
            f"Between {low:.2%} and {high:.2%}, and with four times the images between {narrow_low:.2%} and "
            f"{narrow_high:.2%}: the interval becomes about half as wide.",
        )
    ]
    if network["mistakes"]:
        most = network["mistakes"][0]
        made.append(
            Exercise(
                "Which mistake does the network make most often? Guess the true class and the predicted one before "
                "you look at the matrix.",
                f"It takes {most['true']} for {most['predicted']}: {most['images']:,} images, {most['share']:.1%} of "
                "the class.",
            )
        )
    return made


def _separable(_: Mapping[str, Any]) -> list[Exercise]:
    """Return an exercise on separable convolutions."""
    channels, side, kernel = 128, 16, 3
    standard, separable = costs(channels, side, channels, kernel, 1, kernel // 2, 1)[:2]
    return [
        Exercise(
            f"A {kernel}x{kernel} convolution keeps {channels} channels and maps of {side}x{side}. How many "
            "multiply-adds does it need for an image, and how many does a depthwise separable convolution need?",
            f"{standard.macs:,} and {separable.macs:,}: {standard.macs / separable.macs:.1f} times fewer.",
        ),
    ]


_MAKERS: dict[str, Callable[[Mapping[str, Any]], list[Exercise]]] = {
    "parameters": _parameters,
    "convolution": _convolution,
    "equivariance": _equivariance,
    "sizes": _sizes,
    "receptive-field": _receptive_field,
    "confusions": _confusions,
    "separable": _separable,
}
"""Functions that make the exercises of a tool from its numbers."""


def _field(layers: Sequence[Layer]) -> int:
    """Return the width of the receptive field of a unit after convolutions and poolings, in pixels."""
    axis = Axis(0, 1, 1)
    for layer in layers:
        assert isinstance(layer, Conv | Pool)
        kernel, dilation = along(layer.kernel, 0), along(layer.dilation, 0)
        # A pooling without a stride has that of its window.
        stride = kernel if layer.stride is None else along(layer.stride, 0)
        axis = axis.window(kernel, stride, 0, dilation)
    return int(axis.size)


def _square(side: int, layers: Sequence[Layer]) -> str:
    """Return the size of the maps that layers make of square maps, such as ``3x3``."""
    return "x".join(map(str, output_size(side, layers)))


def _listed(values: Sequence[float]) -> str:
    """Return numbers as an enumeration: ``2, 4 and 6``."""
    texts = [f"{value:g}" for value in values]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
