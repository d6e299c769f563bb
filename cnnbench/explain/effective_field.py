"""Receptive fields of units, in three versions, and the pixels that a stack of dilated convolutions covers.

The analytic field is computed from kernel sizes, strides and paddings, operator by operator
(`cnnbench.counting.receptive_field`). The measured field checks it: this is the set of pixels with a non-zero gradient
of the unit, in a copy of the network in which no path is blocked. The effective field is the strength of the gradient
at each pixel in the network itself (Luo et al. 2016, 1701.04128).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import product
from math import ceil, gcd, prod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnnbench.blocks import initialise
from cnnbench.counting.complexity import complexity, map_dimensions
from cnnbench.counting.meta_copy import meta_copy
from cnnbench.errors import Stopped, UserError, unknown

EFFECTIVE = 1 - 0.9545
"""Share of the peak gradient above which a pixel belongs to the effective field (Luo et al., section 4.1)."""
SMALLEST, THINNEST = 64, 32
"""Smallest length and smallest width, in pixels, of an image for measuring a field along one axis."""


class LayerField(NamedTuple):
    """Analytic receptive field of a layer's units; the first value of a pair is vertical, the second horizontal.

    Attributes:
        name: Path of the layer in the network; empty for the network itself.
        kind: Class name of the layer.
        size: Height and width of the field in pixels.
        jump: Distance in pixels between the fields of neighbouring units.
        start: Centre of the first unit's field in pixels; the centre of the first pixel is at 0.5.
        dims: Dimensions of the output that are height and width: (2, 3) for (N, C, H, W), (1, 2) for (N, H, W, C).
    """

    name: str
    kind: str
    size: tuple[float, float]
    jump: tuple[float, float]
    start: tuple[float, float]
    dims: tuple[int, int] = (2, 3)

    @property
    def label(self) -> str:
        """Return the name for tables and titles; for the network itself, its class name."""
        return self.name or self.kind

    def maps(self, output: Tensor) -> Tensor:
        """Return the layer's output with its dimensions in the order (N, C, H, W)."""
        return output.movedim(self.dims, (2, 3))

    def unit_near(self, axis: int, place: float) -> int:
        """Return the index of the unit whose field is centred nearest to a place, in pixels, along an axis."""
        return round((place - self.start[axis]) / self.jump[axis])

    def span(self, axis: int, unit: int) -> tuple[float, float]:
        """Return the pixel coordinates at which the field of a unit begins and ends along an axis."""
        centre = self.start[axis] + unit * self.jump[axis]
        return centre - self.size[axis] / 2, centre + self.size[axis] / 2


def layer_fields(model: nn.Module, image_shape: Sequence[int]) -> list[LayerField]:
    """Return the analytic fields of all layers that see only a part of the image, in the order of their first run.

    The list ends before the first adaptive pooling, because from there on the field depends on the size of the image.

    Args:
        model: Any network; only a copy without values is run.
        image_shape: Channels, height and width of one image, (C, H, W).

    Raises:
        UserError: The network does not run on such images.
    """
    layers = complexity(model, image_shape, training=False).layers  # raises UserError if the network does not run
    dims_of = map_dimensions(model, image_shape)
    fields = []
    for layer in layers:
        if layer.type.startswith("Adaptive"):
            break
        field, dims = layer.receptive_field, dims_of.get(layer.name, ())
        # Without the batch, a map has three dimensions, two of which run along the axes of the image.
        of_map = len(layer.output_shape or ()) == 3 and len(dims) == 2
        # A dict is a known field that is a part of the image.
        if of_map and isinstance(field, dict):
            size, jump, start = (_both_axes(field[key]) for key in ("size", "jump", "start"))
            fields.append(LayerField(layer.name, layer.type, size, jump, start, (dims[0], dims[1])))
    return fields


def _both_axes(value: Any) -> tuple[float, float]:
    """Return a pair for height and width from a list of two values, or from a number that holds for both."""
    if isinstance(value, list):
        return value[0], value[1]
    return value, value


def first_without_field(model: nn.Module, image_shape: Sequence[int]) -> str | None:
    """Return a sentence on the first layer whose units see the whole image or have an unknown field.

    Args:
        model: Any network; only a copy without values is run.
        image_shape: Channels, height and width of one image, (C, H, W).

    Returns:
        The sentence, for a remark or an error message; None if every feature map has a field that is a part of the
        image.

    Raises:
        UserError: The network does not run on such images.
    """
    positions = 0  # of the last feature map
    for layer in complexity(model, image_shape, training=False).layers:
        shape, field = layer.output_shape or (), layer.receptive_field
        is_map = len(shape) == 3
        if is_map and isinstance(field, dict):
            positions = _positions(shape)
            continue
        # Attention over at least as many tokens as the last map has positions combines the whole image.
        # Attention within windows has fewer tokens, so its units see only a part.
        of_tokens = len(shape) == 2 and "Attention" in layer.type and shape[0] >= positions > 0
        if of_tokens or is_map:
            name = f"{layer.name} ({layer.type})" if layer.name else layer.type
            what = "the field of a unit is not known"
            if of_tokens or field == "image":
                what = "units see the whole image"
            return f"From {name} on {what}, so layers after it are left out."
    return None


def _positions(shape: Sequence[int]) -> int:
    """Return the number of positions of a feature map of the shape (C, H, W) or (H, W, C)."""
    # Height and width are equal as a rule, which tells the two layouts apart.
    if shape[1] == shape[2]:
        return shape[1] * shape[2]
    if shape[0] == shape[1]:
        return shape[0] * shape[1]
    # Otherwise the largest extent is taken for C.
    return prod(shape) // max(shape)


def steps_of(fields: Sequence[LayerField]) -> list[LayerField]:
    """Return the layers to show as the steps in which the field of a network grows.

    A layer inside another listed layer, such as a residual block, is left out. So is a layer with the same field as
    the step before it, unless it is a convolution or a pooling.
    """
    names = {field.name for field in fields}
    steps: list[LayerField] = []
    for field in fields:
        parts = field.name.split(".")
        # A layer is inside another one if a shorter part of its path is the name of a listed layer.
        inside = any(".".join(parts[:end]) in names for end in range(1, len(parts)))
        has_window = "Conv" in field.kind or "Pool" in field.kind
        # Entries 2 to 4 are size, jump and start.
        same = bool(steps) and field[2:5] == steps[-1][2:5]
        if not inside and (has_window or not same):
            steps.append(field)
    return steps


def chosen_fields(
    fields: Sequence[LayerField], names: str | None, count: int, beyond: str | None = None
) -> list[LayerField]:
    """Return the fields of the named layers, or a selection of the layers at which the field grows.

    The selection has the largest field at each resolution. If these are fewer than `count`, layers at even distances
    in the network are added.

    Args:
        fields: Fields to choose from, in the order in which the layers run.
        names: Names of layers, separated by commas; None for a selection.
        count: Largest number of fields in a selection.
        beyond: Sentence of `first_without_field`, which the error message quotes; None if there is none.

    Raises:
        UserError: A name is not that of a layer in `fields`, or `fields` is empty.
    """
    if not fields:
        message = "no layer of this network has a known receptive field that is a part of the image"
        if beyond:
            reason = beyond.split(",")[0]  # without the clause on what is left out
            message += f": {reason[:1].lower()}{reason[1:]}"
        raise UserError(message)
    if names is not None:
        by_name = {field.name: field for field in fields}
        for name in names.split(","):
            if name not in by_name:
                raise unknown("layer with a local field", name, by_name)
        return [by_name[name] for name in dict.fromkeys(names.split(","))]
    steps = steps_of(fields)
    # Fields with the same jump have the same resolution. In order of size, the last one of each jump stays.
    largest: dict[tuple[float, float], int] = {}
    for index in sorted(range(len(steps)), key=lambda index: steps[index].size):
        largest[steps[index].jump] = index
    # With more resolutions than `count`, those with the smallest fields are left out.
    chosen = set(list(largest.values())[-count:])
    # Fill up from the last layer to the first.
    for index in np.linspace(len(steps) - 1, 0, min(count, len(steps))).round().astype(int).tolist():
        if len(chosen) < count:
            chosen.add(index)
    return [steps[index] for index in sorted(chosen)]


class _Reached(Exception):  # noqa: N818 -- no error: it ends a forward pass
    """Internal signal that ends a forward pass when all layers of interest have run."""


@contextlib.contextmanager
def _listening(model: nn.Module, wanted: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that a forward pass inside the block fills, and end that pass when all wanted layers have run.

    Args:
        model: Network whose layers get a forward hook; the hooks are removed at the end of the block.
        wanted: Function for each layer, by name. The dict holds its result for the output of the layer's first run.
    """
    results: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if name not in results:
                results[name] = wanted[name](output)
                # Only an exception can end a forward pass from inside a hook; later layers need not run.
                if len(results) == len(wanted):
                    raise _Reached

        return keep

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in wanted]
    try:
        # The exception of the caller arrives at this `yield`; once suppressed, it ends the block without an error.
        with contextlib.suppress(_Reached):
            yield results
    finally:
        for handle in handles:
            handle.remove()


class Measured(NamedTuple):
    """Measured receptive field of a unit.

    Attributes:
        spans: Range of rows and range of columns on which the unit depends; a range is (first, last + 1).
        agrees: Whether both ranges are exactly those of the analytic field.
    """

    spans: tuple[tuple[int, int], tuple[int, int]]
    agrees: bool

    @property
    def size(self) -> tuple[int, int]:
        """Return the height and width of the field in pixels."""
        return self.spans[0][1] - self.spans[0][0], self.spans[1][1] - self.spans[1][0]


def measure_fields(model: nn.Module, image_shape: Sequence[int], fields: Sequence[LayerField]) -> dict[str, Measured]:
    """Measure the field of one unit per layer by its gradient, on images that are as large as the fields need.

    The field of a unit in the middle of the image is the set of pixels with a non-zero gradient. In the network itself
    a gradient can be zero although a path leads to the pixel, for example where a ReLU is off. So a copy is run in
    which every path conducts: convolutions and poolings take the mean of their window (a convolution also over the
    channels of its group), and activations do nothing. Only the shapes of the weights matter for this, so the copy has
    no values.

    Each axis is measured on an image of its own, long along the axis and as thin as the network accepts. This saves
    computation. It is allowed because windows are rectangles: their extent along one axis does not depend on the other.

    Args:
        model: Any network; only the copy is run.
        image_shape: Channels, height and width of the network's images, (C, H, W). This size is tried last, for
            networks that accept no other.
        fields: Analytic fields of the layers.

    Returns:
        Measured field of each layer, by name.

    Raises:
        UserError: The network does not run in this way on any of the images that are tried.
    """
    copy = meta_copy(model)[0].eval()
    spans = [_spans_along(copy, image_shape, fields, axis) for axis in (0, 1)]
    measured = {}
    for field in fields:
        (rows, expected_rows), (columns, expected_columns) = spans[0][field.name], spans[1][field.name]
        measured[field.name] = Measured((rows, columns), (rows, columns) == (expected_rows, expected_columns))
    return measured


def _sizes_to_try(fields: Sequence[LayerField], axis: int) -> list[tuple[int, int]]:
    """Return heights and widths of images that are long enough along an axis, the thinnest across it first."""
    # An image exceeds every field by two jumps and two pixels. The unit nearest to its middle is at most half a jump
    # off the middle, so the whole field of this unit lies inside the image.
    needed = []
    for a in (0, 1):
        largest = max(ceil(field.size[a] + 2 * field.jump[a]) for field in fields)
        needed.append(max(SMALLEST, largest + 2))
    across = needed[1 - axis]
    widest_jump = max(ceil(field.jump[1 - axis]) for field in fields)
    # The first width has room for four units of the coarsest map. It doubles until the network accepts the image.
    widths = [min(across, max(THINNEST, 4 * widest_jump))]
    while widths[-1] < across:
        widths.append(min(2 * widths[-1], across))
    if axis == 0:
        return [(needed[0], width) for width in widths]
    return [(width, needed[1]) for width in widths]


def _spans_along(
    copy: nn.Module, image_shape: Sequence[int], fields: Sequence[LayerField], axis: int
) -> dict[str, tuple[tuple[int, int], tuple[float, float]]]:
    """Return the measured and the analytic range along an axis for each layer, on the first image that is accepted."""
    # Some networks accept no other images than those of their own size, which is tried last.
    for size in [*_sizes_to_try(fields, axis), (image_shape[1], image_shape[2])]:
        units = {field.name: field.unit_near(axis, size[axis] / 2) for field in fields}
        try:
            reached = _reached(copy, (image_shape[0], *size), fields, units, axis)
        except Stopped:
            raise
        except BaseException as error:  # a network may reject an image with any kind of exception
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        return {field.name: (reached[field.name], field.span(axis, units[field.name])) for field in fields}
    raise UserError(f"cannot measure the fields of {type(copy).__name__}: {text}")


def _reached(
    copy: nn.Module,
    image_shape: tuple[int, int, int],
    fields: Sequence[LayerField],
    units: Mapping[str, int],
    axis: int,
) -> dict[str, tuple[int, int]]:
    """Return the range of pixels with a non-zero gradient along an axis, (first, last + 1), for the unit of each layer.

    Args:
        copy: Network on the meta device, in evaluation mode.
        image_shape: Channels, height and width of the image, (C, H, W).
        fields: Analytic fields of the layers.
        units: Index along the axis of the unit to look at, by layer. Across the axis it is the unit in the middle.
        axis: 0 for rows, 1 for columns.
    """

    def middle(field: LayerField) -> Callable[[Tensor], Tensor]:
        def summed(output: Tensor) -> Tensor:
            y, unit = field.maps(output)[0], units[field.name]
            if axis == 0:
                return y[:, unit, y.shape[2] // 2].sum()
            return y[:, y.shape[1] // 2, unit].sum()

        return summed

    # Where maps are multiplied, as by a gate, gradients are positive only if the maps are, so the image is all ones.
    # In float64, the product of many small weights does not underflow to zero.
    x = torch.ones(1, *image_shape, dtype=torch.double, requires_grad=True)
    with _listening(copy, {field.name: middle(field) for field in fields}) as values, _EveryPathConducts():
        copy(x)
    ranges = {}
    for name in units:
        (gradient,) = torch.autograd.grad(values[name], x, retain_graph=True)
        # Any channel, (C, H, W) to (H, W), then any pixel across: one flag for each pixel along the axis.
        seen = (gradient[0] != 0).any(0).any(1 - axis).nonzero()
        ranges[name] = int(seen.min()), int(seen.max()) + 1
    return ranges


class _EveryPathConducts(TorchFunctionMode):
    """Mode that replaces torch's layers and activations by linear functions with positive weights.

    Gradients of such functions cannot cancel, so a gradient is zero only where no path leads. Other functions of torch
    run as they are.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Modules end in these functions too, so nn.Conv2d and F.conv2d are treated alike.
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _ACTIVATIONS:
            in_place = name.endswith("_") or kwargs.get("inplace")
            return args[0] if in_place else args[0].clone()
        rule = _CONDUCTING.get(name)
        if rule is not None:
            return rule(*args, **kwargs)
        # True and False together in this set mean that the call mixes meta tensors with others.
        on_meta = {a.is_meta for a in (*args, *kwargs.values()) if isinstance(a, Tensor)}
        # A parameter of the copy meets a feature map, for example in a scale per channel. Parameters are on the meta
        # device and have no values, so ones take their place.
        if len(on_meta) == 2:
            args = [_ones_for(a) for a in args]
            kwargs = {key: _ones_for(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _ones_for(value: Any) -> Any:
    """Return ones in place of a meta tensor, and any other value as it is."""
    if isinstance(value, Tensor) and value.is_meta:
        return torch.ones(value.shape, dtype=torch.double)
    return value


# Functions that run as the identity. None of them lets one position of a map depend on another.
_ACTIVATIONS = frozenset(
    "relu relu_ relu6 hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ silu silu_ gelu mish sigmoid "
    "sigmoid_ tanh tanh_ leaky_relu leaky_relu_ elu elu_ selu celu softplus prelu clamp clamp_ threshold "
    "batch_norm".split()
)


def _convolved(
    x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """Return a convolution with equal weights."""
    return _equal_weights(F.conv2d, x, weight.shape[0], weight.shape[2:], groups, stride, padding, dilation=dilation)


def _convolved_back(
    x: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """Return a transposed convolution with equal weights."""
    out = weight.shape[1] * groups
    more = {"output_padding": output_padding, "dilation": dilation}
    return _equal_weights(F.conv_transpose2d, x, out, weight.shape[2:], groups, stride, padding, **more)


def _equal_weights(
    function: Any, x: Tensor, out: int, kernel: Any, groups: int, stride: Any, padding: Any, **more: Any
) -> Tensor:
    """Return a convolution in which every weight is 1 / (kernel area * input channels per group).

    Equal weights make all output channels of a group the same, so one of them is computed and then repeated. The
    groups are moved into the batch dimension for this.

    Args:
        function: ``F.conv2d`` or ``F.conv_transpose2d``.
        x: Feature maps, (N, C, H, W).
        out: Number of output channels.
        kernel: Height and width of the kernel.
        groups: Number of groups of channels.
        stride: Stride, as in torch.
        padding: Padding, as in torch.
        more: Further arguments of the function, such as ``dilation``.
    """
    n, channels, height, width = x.shape
    # With equal weights only the sum over a group's channels matters: (N * groups, 1, H, W).
    total = x.reshape(n * groups, channels // groups, height, width).sum(1, keepdim=True)
    weight = torch.full((1, 1, *kernel), groups / (kernel[0] * kernel[1] * channels), dtype=x.dtype)
    y = function(total, weight, None, stride, padding, **more)
    # One map per group, (N * groups, 1, H', W'), is repeated for all filters of the group: (N, O, H', W').
    return y.expand(-1, out // groups, -1, -1).reshape(n, out, *y.shape[2:]).contiguous()


def _max_pooled(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Return the mean of each window in place of its maximum, so that a gradient reaches all of the window."""
    if dilation in (1, (1, 1), [1, 1]):
        return F.avg_pool2d(x, kernel_size, stride or None, padding, ceil_mode)
    if ceil_mode:
        raise UserError("a max pooling with both dilation and ceil_mode cannot be measured")
    # `F.avg_pool2d` has no dilation. A convolution with one group per channel and equal weights takes the same mean.
    kernel = kernel_size if isinstance(kernel_size, tuple | list) else (kernel_size,) * 2
    channels = x.shape[1]
    return _equal_weights(F.conv2d, x, channels, kernel, channels, stride or kernel, padding, dilation=dilation)


def _multiplied(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    """Return a linear layer with equal weights: the mean of the inputs, once for each output."""
    return x.mean(-1, keepdim=True).expand(*x.shape[:-1], weight.shape[0])


def _layer_normalised(x: Tensor, normalized_shape: Sequence[int], *_: Any, **__: Any) -> Tensor:
    """Return each value plus the mean over the normalised dimensions, so that it depends on all values there."""
    return x + x.mean(tuple(range(-len(normalized_shape), 0)), keepdim=True)


_CONDUCTING: dict[str, Callable[..., Tensor]] = {
    "conv2d": _convolved,
    "conv_transpose2d": _convolved_back,
    "max_pool2d": _max_pooled,
    "linear": _multiplied,
    "layer_norm": _layer_normalised,
}


class Effective(NamedTuple):
    """Effective receptive field of a unit: how strongly each pixel of an image influences it.

    Attributes:
        magnitude: Root mean square of the gradient at each pixel, scaled to a peak of 1, (H, W).
        centre: Mean row and column in pixels, weighted by the magnitude; the centre of the first pixel is at 0.5.
        sigma: Standard deviations of row and column in pixels, weighted by the magnitude.
        overlap: Share that the magnitude has in common with the Gaussian of this centre and these standard deviations,
            both scaled to a sum of 1.
        pixels: Number of pixels with more than 4.55 % of the peak.
        unit: Row and column of the unit in its feature map.
    """

    magnitude: np.ndarray
    centre: tuple[float, float]
    sigma: tuple[float, float]
    overlap: float
    pixels: int
    unit: tuple[int, int] = (0, 0)

    @property
    def size(self) -> float:
        """Return the side in pixels of a square with the same area as the effective field."""
        return float(self.pixels**0.5)


def effective_fields(
    model: nn.Module, images: Tensor, fields: Sequence[LayerField], seed: int = 0
) -> dict[str, Effective]:
    """Return the effective fields of units in the middle of the image, averaged over images and channels.

    A layer has many channels, and a backward pass for each would be slow. So one backward pass per image and layer
    differentiates the sum of all channels of the unit, each with a random sign. In the square of this gradient the
    products of different channels have random signs and cancel on average over the images. What remains is the sum of
    the squared gradients of the single channels.

    Args:
        model: Network in evaluation mode; it is not changed.
        images: Images as the network takes them, (N, C, H, W).
        fields: Analytic fields of the layers.
        seed: Random seed for the signs.

    Returns:
        Effective field of each layer, by name.

    Raises:
        UserError: The gradient of a unit is zero everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    extents = images.shape[2:]
    squares = {field.name: torch.zeros(extents, dtype=torch.double) for field in fields}
    units: dict[str, tuple[int, int]] = {}

    def middle(field: LayerField) -> Callable[[Tensor], Tensor]:
        def signed_sum(output: Tensor) -> Tensor:
            y = field.maps(output)
            row, column = _middle_unit(field, extents, y.shape[2:])
            units[field.name] = row, column
            signs = torch.randint(2, y.shape[1:2], generator=generator).to(y.dtype) * 2 - 1
            return (y[0, :, row, column] * signs).sum()

        return signed_sum

    for image in images:
        x = image[None].clone().requires_grad_()
        with torch.enable_grad(), _listening(model, {f.name: middle(f) for f in fields}) as values:
            model(x)
        for name in squares:
            # All layers share one graph, which the first backward pass would otherwise free.
            (gradient,) = torch.autograd.grad(values[name], x, retain_graph=True)
            # For independent signs s_c of mean 0, the expected value of (sum of s_c g_c)^2 is the sum of g_c^2.
            squares[name] += gradient[0].double().square().sum(0)
    effective = {}
    for name, total in squares.items():
        # A sum over images in place of a mean is enough, because the fit does not depend on the scale.
        effective[name] = gaussian_fit(total.sqrt().numpy())._replace(unit=units[name])
    return effective


def _middle_unit(field: LayerField, image_size: Sequence[int], map_size: Sequence[int]) -> tuple[int, int]:
    """Return row and column of the unit in the middle of the image, or of the nearest one that the map has."""
    indices = []
    for axis in (0, 1):
        unit = field.unit_near(axis, image_size[axis] / 2)
        indices.append(min(max(unit, 0), map_size[axis] - 1))
    return indices[0], indices[1]


def gaussian_fit(magnitude: np.ndarray) -> Effective:
    """Return the moments of a map of magnitudes, and the overlap with the Gaussian that has the same moments.

    Args:
        magnitude: Values of at least 0, on any scale, (H, W).

    Raises:
        UserError: The map is zero everywhere.
    """
    total = magnitude.sum()
    if not total > 0:
        raise UserError("the gradient of a unit vanishes everywhere; try another --seed, or more --samples")
    share = magnitude / total
    centre, sigma, bells = [], [], []
    # The moments along an axis follow from the shares summed over the other axis.
    for shares in (share.sum(1), share.sum(0)):  # of the rows, then of the columns
        places = np.arange(len(shares)) + 0.5
        mean = float(shares @ places)
        deviation = float(np.sqrt(max(shares @ (places - mean) ** 2, 0)))
        centre.append(mean)
        sigma.append(deviation)
        bells.append(np.exp(-((places - mean) ** 2) / (2 * max(deviation, 1e-6) ** 2)))
    # The Gaussian with the same moments is a product of one along the rows and one along the columns. Map and Gaussian
    # both sum to 1, so the sum of their minimum is the share that they have in common.
    bell = np.outer(*bells)
    overlap = float(np.minimum(share, bell / max(bell.sum(), 1e-300)).sum())
    pixels = int((magnitude > EFFECTIVE * magnitude.max()).sum())
    return Effective(magnitude / magnitude.max(), (centre[0], centre[1]), (sigma[0], sigma[1]), overlap, pixels)


def at_initialisation(
    model: nn.Module, images: Tensor, fields: Sequence[LayerField], seed: int | None = None
) -> nn.Module:
    """Return a copy of a network as it starts its training, with batch norm statistics of the images.

    Without these statistics the ratio between a residual branch and its shortcut would be one that never occurs in
    training.

    Args:
        model: Any network; it is not changed.
        images: Images as the network takes them, (N, C, H, W).
        fields: Fields of the layers of interest. The forward pass that sets the statistics ends after the last of them.
        seed: Random seed for new weights, drawn by the initialisation of each layer; None keeps the present weights.
            What the constructor of a network does after it has initialised its layers is not repeated.
    """
    fresh = deepcopy(model).eval()
    if seed is not None:
        _draw_weights(fresh, seed)
    for module in fresh.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            # Only these layers go into training mode, in which they take statistics; dropout stays off.
            module.train().momentum = None  # None averages over all batches, here a single one
    with torch.no_grad(), _listening(fresh, {field.name: lambda y: y for field in fields}):
        fresh(images if len(images) > 1 else images.repeat(2, 1, 1, 1))  # batch norm rejects a single value
    return fresh.eval()


def _draw_weights(model: nn.Module, seed: int) -> None:
    """Give a network new random weights; torch's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
        # Networks of this package do not start from torch's default weights.
        if type(model).__module__.startswith("cnnbench.models"):
            model.apply(initialise)


NEAR_ZERO = 1e-3
"""Absolute value of a scale below which the scaled channels add next to nothing."""


def scales_near_zero(model: nn.Module) -> list[str]:
    """Return the names of parameters that scale channels, in norms or residual branches, with all values near zero."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    names = []
    for name, parameter in model.named_parameters():
        path, _, last = name.rpartition(".")
        # A scale of a residual branch is called `layer_scale` in torchvision and `gamma` in timm.
        is_scale = "scale" in last or "gamma" in last
        if last == "weight":
            is_scale = isinstance(model.get_submodule(path), norms)
        if is_scale and bool(parameter.abs().max() < NEAR_ZERO):
            names.append(name)
    return names


MOST_BRANCHES = 4
"""Parallel branches of a layer; with 12 layers of these, the paths to a pixel still fit into 64 bits."""


def parse_rates(text: str) -> list[list[int]]:
    """Parse the dilation rates of a stack of 3x3 convolutions.

    Args:
        text: Rates of the layers, separated by commas, such as ``1,2,5``. Rates of parallel branches are joined by
            plus signs: ``1,6+12+18`` is a layer with rate 1, followed by three branches in parallel.

    Returns:
        For each layer, the rates of its branches.

    Raises:
        UserError: The text does not have this form, or the stack is too large to be drawn.
    """
    try:
        stack = [list(map(int, step.split("+"))) for step in text.split(",")]
    except ValueError:
        stack = [[0]]  # not a rate, so the next line refuses it
    if min(min(step) for step in stack) < 1:
        raise UserError(f"dilations '{text}' are not rates of at least 1; write for example 1,2,5 or 1,2,6+12+18")
    if sum(map(max, stack)) > 200 or len(stack) > 12 or max(map(len, stack)) > MOST_BRANCHES:
        raise UserError(
            f"dilations '{text}' are too large to be drawn; take at most 12 layers of {MOST_BRANCHES} branches, and "
            "rates of 200 in sum"
        )
    return stack


def coverage(stack: Sequence[Sequence[int]]) -> np.ndarray:
    """Count the paths from every pixel to one unit through a stack of 3x3 convolutions.

    Args:
        stack: For each layer, the dilation rates of its branches, whose results are added.

    Returns:
        Numbers of paths, (r, r), int64, in the square of r pixels that the largest rates span. They are zero where the
        stack has a gap.
    """
    # Without any layer, one path leads from one pixel to the unit. Convolutions commute, so their order is free.
    paths = np.ones((1, 1), dtype=np.int64)
    for rates in stack:
        reach, size = max(rates), len(paths)
        # A 3x3 kernel has nine taps, at distances of -rate, 0 and rate. Through each tap all paths continue, shifted.
        wider = np.zeros((size + 2 * reach,) * 2, dtype=np.int64)
        for rate in rates:
            for row, column in product((reach - rate, reach, reach + rate), repeat=2):
                wider[row : row + size, column : column + size] += paths
        paths = wider
    return paths


def largest_gap(rates: Sequence[int]) -> int:
    """Return M_2 of hybrid dilated convolution, the largest gap that the layers above the first leave.

    The recursion is ``M_i = max(M_{i+1} - 2 r_i, M_{i+1} - 2 (M_{i+1} - r_i), r_i)`` with ``M_n = r_n`` (Wang et al.
    2018, 1702.08502, equation 2). The paper requires that M_2 is at most the kernel size, and that the rates have no
    common factor.

    Args:
        rates: Dilation rates of the layers in series, at least two.
    """
    gap = rates[-1]
    # From r_{n-1} down to r_2. The first rate is not part of it: its layer has to fill the gap M_2.
    for rate in reversed(rates[1:-1]):
        gap = max(gap - 2 * rate, gap - 2 * (gap - rate), rate)
    return gap


def keeps_hdc_rule(rates: Sequence[int]) -> bool:
    """Return whether rates of 3x3 layers in series start with 1, leave gaps of at most 3, and have no common factor."""
    return len(rates) > 1 and rates[0] == 1 and largest_gap(rates) <= 3 and gcd(*rates) == 1


def stack_in_words(stack: Sequence[Sequence[int]]) -> str:
    """Return a name for a stack of dilated layers, such as "HDC, then ASPP".

    Layers in series are called "gridding", "HDC" or "not HDC" according to their rates; a layer of parallel branches is
    called "ASPP".

    Args:
        stack: For each layer, the dilation rates of its branches.
    """
    words: list[str] = []
    serial: list[int] = []
    for step in [*stack, ()]:  # the empty step closes the last series
        if len(step) == 1:
            serial.append(step[0])
            continue
        if serial:
            words.append(_series_in_words(serial))
            serial = []
        if step:
            words.append("ASPP")
    return "ASPP alone" if words == ["ASPP"] else ", then ".join(words)


def _series_in_words(rates: Sequence[int]) -> str:
    """Return the name of a stack of layers in series with these dilation rates."""
    if max(rates) == 1:
        return "not dilated"
    if len(rates) == 1:
        return "one dilated layer"
    if gcd(*rates) > 1:
        return "gridding"
    return "HDC" if keeps_hdc_rule(rates) else "not HDC"
