"""The receptive field of a unit, analytic, measured and effective, and what a stack of dilated convolutions covers.

Analytic: followed through the operators of the network (`cnnbench.counting.receptive_field`). Measured: the pixels that
a unit's gradient reaches in a copy of the network where every path conducts. Effective: how strongly it reaches them in
the network as it is (Luo et al. 2016, 1701.04128).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from math import ceil, gcd, prod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnnbench.blocks import initialise
from cnnbench.counting.complexity import complexity
from cnnbench.counting.copies import eager, meta_copy, untouched_randomness, without_global_hooks
from cnnbench.counting.meta import MetaRun, tensors_in
from cnnbench.counting.receptive_field import FieldTracker
from cnnbench.errors import Stopped, UserError, unknown

EFFECTIVE = 1 - 0.9545
"""Share of the peak above which a pixel belongs to the effective field (Luo et al., section 4.1)."""
SMALLEST, THINNEST = 64, 32
"""Pixels of an image along and across the axis along which a field is measured, at least."""


class LayerField(NamedTuple):
    """The analytic field of a layer; every pair is height and width.

    Attributes:
        name: Path of the layer; empty for the network itself.
        kind: Its class.
        size: Of the field in pixels.
        jump: Pixels from one unit's field to the next one's.
        start: Centre of the first unit's field; the centre of the first pixel is at 0.5.
        dims: Which dimensions of the output, (N, C, H, W) or (N, H, W, C), are its height and width.
    """

    name: str
    kind: str
    size: tuple[float, float]
    jump: tuple[float, float]
    start: tuple[float, float]
    dims: tuple[int, int] = (2, 3)

    @property
    def label(self) -> str:
        return self.name or self.kind

    def maps(self, output: Tensor) -> Tensor:
        """The layer's output with its axes as (N, C, H, W)."""
        return output.movedim(self.dims, (2, 3))

    def unit_near(self, axis: int, place: float) -> int:
        """The unit whose field has its centre nearest to a place along an axis."""
        return round((place - self.start[axis]) / self.jump[axis])

    def span(self, axis: int, unit: int) -> tuple[float, float]:
        """Where the field of a unit begins and ends along an axis."""
        centre = self.start[axis] + unit * self.jump[axis]
        return centre - self.size[axis] / 2, centre + self.size[axis] / 2


def layer_fields(model: nn.Module, image_shape: Sequence[int]) -> list[LayerField]:
    """Analytic fields of all layers that see a part of the image, in the order in which they first run.

    Layers after an adaptive pooling are left out, since their field depends on the size of the image.

    Raises:
        UserError: The network does not run on such images.
    """
    layers = complexity(model, image_shape, training=False).layers  # refuses images on which the network does not run
    found, dims = [], _map_dims(model, image_shape)
    for layer in layers:
        if layer.type.startswith("Adaptive"):
            break
        field = layer.receptive_field
        if isinstance(field, dict) and layer.output_shape and len(layer.output_shape) == 3 and layer.name in dims:
            size, jump, start = (
                (field[k][0], field[k][1]) if isinstance(field[k], list) else (field[k], field[k])
                for k in ("size", "jump", "start")
            )
            found.append(LayerField(layer.name, layer.type, size, jump, start, dims[layer.name]))
    return found


def _map_dims(model: nn.Module, image_shape: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Per layer whose output is a map, the dimensions of the output that are the map's height and width."""
    copy = meta_copy(model)[0].eval()
    names = {module: name for name, module in copy.named_modules()}
    dtype = next((p.dtype for p in copy.parameters() if p.is_floating_point()), torch.float32)
    x = torch.empty(1, *image_shape, device="meta", dtype=dtype)
    tracker = FieldTracker(x)
    found: dict[str, tuple[int, ...] | None] = {}

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        first = next(tensors_in(output), None)
        field = None if first is None else tracker.field_of(first)
        found.setdefault(names[module], field and field.map_dims)

    for module in copy.modules():
        module.register_forward_hook(leave)
    follow = MetaRun(lambda operator, args, out: tracker(operator, args, out, False))
    with torch.no_grad(), without_global_hooks(), untouched_randomness(), eager(), follow:
        copy(x)
    return {name: (dims[0], dims[1]) for name, dims in found.items() if dims and len(dims) == 2}


def first_without_field(model: nn.Module, image_shape: Sequence[int]) -> str | None:
    """From which layer on units see the whole image, or nobody knows what they see, in a sentence; None if nowhere."""
    places = 0
    for layer in complexity(model, image_shape, training=False).layers:
        shape, field = layer.output_shape or (), layer.receptive_field
        if len(shape) == 3 and isinstance(field, dict):
            places = prod(shape) // max(shape)
        # Attention among at least as many tokens as the last map had places leaves none of them out; windows are fewer.
        of_tokens = len(shape) == 2 and "Attention" in layer.type and shape[0] >= places > 0
        if of_tokens or (len(shape) == 3 and not isinstance(field, dict)):
            what = "units see the whole image" if of_tokens or field == "image" else "the field of a unit is not known"
            name = f"{layer.name} ({layer.type})" if layer.name else layer.type
            return f"From {name} on {what}, so layers after it are left out."
    return None


def steps_of(fields: Sequence[LayerField]) -> list[LayerField]:
    """The layers at which a network grows: those that are not part of another one, such as a residual block, and either
    a convolution or pooling or see something else than the one before."""
    names = {field.name for field in fields}
    found: list[LayerField] = []
    for field in fields:
        parts = field.name.split(".")
        inside = any(".".join(parts[:end]) in names for end in range(1, len(parts)))
        same = found and field[2:5] == found[-1][2:5] and not ("Conv" in field.kind or "Pool" in field.kind)
        if not inside and not same:
            found.append(field)
    return found


def chosen_fields(
    fields: Sequence[LayerField], names: str | None, count: int, beyond: str | None = None
) -> list[LayerField]:
    """The fields of the named layers; else the largest at each resolution, filled up evenly to a number.

    Args:
        fields: To choose from.
        names: Names with commas between them, or None.
        count: How many at most, if they are not named.
        beyond: Why layers have none, for the message.

    Raises:
        UserError: There is no field of such a name, or none at all.
    """
    if not fields:
        why = f": {beyond.split(',')[0][:1].lower()}{beyond.split(',')[0][1:]}" if beyond else ""
        raise UserError(f"no layer of this network has a known receptive field that is a part of the image{why}")
    if names is not None:
        by_name = {field.name: field for field in fields}
        for name in names.split(","):
            if name not in by_name:
                raise unknown("layer with a local field", name, by_name)
        return [by_name[name] for name in dict.fromkeys(names.split(","))]
    steps = steps_of(fields)
    last = {field.jump: index for index, field in sorted(enumerate(steps), key=lambda item: item[1].size)}
    chosen = set(list(last.values())[-count:])
    for index in np.linspace(len(steps) - 1, 0, min(count, len(steps))).round().astype(int).tolist():
        if len(chosen) < count:
            chosen.add(index)
    return [steps[index] for index in sorted(chosen)]


class _Reached(Exception):  # noqa: N818 -- no error: it ends a forward pass
    """All layers of interest have run."""


@contextlib.contextmanager
def _listening(model: nn.Module, wanted: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Inside, a forward pass ends when all wanted layers have run once; keeps what their functions make of outputs."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if name not in found:
                found[name] = wanted[name](output)
                if len(found) == len(wanted):
                    raise _Reached

        return keep

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in wanted]
    try:
        with contextlib.suppress(_Reached):
            yield found
    finally:
        for handle in handles:
            handle.remove()


class Measured(NamedTuple):
    """The field of a unit that was measured.

    Attributes:
        spans: First pixel, and the one after the last, on which the unit depends, for rows and for columns.
        agrees: Whether this is where the analytic field says.
    """

    spans: tuple[tuple[int, int], tuple[int, int]]
    agrees: bool

    @property
    def size(self) -> tuple[int, int]:
        return self.spans[0][1] - self.spans[0][0], self.spans[1][1] - self.spans[1][0]


def measure_fields(model: nn.Module, image_shape: Sequence[int], fields: Sequence[LayerField]) -> dict[str, Measured]:
    """Measures fields by gradients, one layer after the other, on images that are as large as the fields need.

    A copy runs in which every path conducts: convolutions take the mean of their window over all channels of a group,
    which is what equal weights do, poolings take means, and activations do nothing. Of the weights nothing but their
    shape matters, so the copy has none. What the gradient of a unit in the middle reaches is its field. Each axis is
    measured on an image that is long along it and as thin as the network bears; a window is a rectangle, so how far it
    reaches along one axis does not depend on the other.

    Args:
        model: Any network; it is not run.
        image_shape: Channels, height and width of its images, for a network that takes no others.
        fields: Analytic fields of the layers.

    Raises:
        UserError: An operator of the network does not run in this way, or it takes no image that is large enough.
    """
    copy = meta_copy(model)[0].eval()
    spans = [_spans_along(copy, image_shape, fields, axis) for axis in (0, 1)]
    found = {}
    for field in fields:
        (rows, expected_rows), (columns, expected_columns) = spans[0][field.name], spans[1][field.name]
        found[field.name] = Measured((rows, columns), (rows, columns) == (expected_rows, expected_columns))
    return found


def _spans_along(
    copy: nn.Module, image_shape: Sequence[int], fields: Sequence[LayerField], axis: int
) -> dict[str, tuple[tuple[int, int], tuple[float, float]]]:
    """Per layer the measured and the expected span along an axis, on the first image that the network takes."""
    long, across = (max(SMALLEST, *(ceil(f.size[a] + 2 * f.jump[a]) + 2 for f in fields)) for a in (axis, 1 - axis))
    thin = min(across, max(THINNEST, 4 * max(ceil(f.jump[1 - axis]) for f in fields)))
    shapes = [(long, thin)]
    while thin < across:
        thin = min(2 * thin, across)
        shapes.append((long, thin))
    sizes = [shape if axis == 0 else shape[::-1] for shape in shapes] + [(image_shape[1], image_shape[2])]
    for size in sizes:
        units = {field.name: field.unit_near(axis, size[axis] / 2) for field in fields}
        try:
            reached = _reached(copy, (image_shape[0], *size), fields, units, axis)
        except Stopped:
            raise
        except BaseException as error:  # a network may refuse an image in any way
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
    """First pixel, and the one after the last, that the gradients of units reach along an axis."""

    def middle(field: LayerField) -> Callable[[Tensor], Tensor]:
        def summed(output: Tensor) -> Tensor:
            y, unit = field.maps(output)[0], units[field.name]
            return (y[:, unit, y.shape[2] // 2] if axis == 0 else y[:, y.shape[1] // 2, unit]).sum()

        return summed

    x = torch.ones(1, *image_shape, dtype=torch.double, requires_grad=True)
    with _listening(copy, {field.name: middle(field) for field in fields}) as values, _EveryPathConducts():
        copy(x)
    found = {}
    for name in units:
        (gradient,) = torch.autograd.grad(values[name], x, retain_graph=True)
        seen = (gradient[0] != 0).any(0).any(1 - axis).nonzero()
        found[name] = int(seen.min()), int(seen.max()) + 1
    return found


class _EveryPathConducts(TorchFunctionMode):
    """Functions of torch become linear with positive weights, so that a gradient vanishes only where no path leads."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _ACTIVATIONS:
            in_place = name.endswith("_") or kwargs.get("inplace")
            return args[0] if in_place else args[0].clone()
        rule = _CONDUCTING.get(name)
        if rule is not None:
            return rule(*args, **kwargs)
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if any(t.is_meta for t in tensors) and not all(t.is_meta for t in tensors):  # a parameter beside the map
            args = [_ones_for(a) for a in args]
            kwargs = {key: _ones_for(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _ones_for(value: Any) -> Any:
    return torch.ones(value.shape, dtype=torch.double) if isinstance(value, Tensor) and value.is_meta else value


_ACTIVATIONS = frozenset(
    "relu relu_ relu6 hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ silu silu_ gelu mish sigmoid "
    "sigmoid_ tanh tanh_ leaky_relu leaky_relu_ elu elu_ selu celu softplus prelu clamp clamp_ threshold "
    "batch_norm".split()
)


def _convolved(
    x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    return _equal_weights(F.conv2d, x, weight.shape[0], weight.shape[2:], groups, stride, padding, dilation=dilation)


def _convolved_back(
    x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    out = weight.shape[1] * groups
    more = {"output_padding": output_padding, "dilation": dilation}
    return _equal_weights(F.conv_transpose2d, x, out, weight.shape[2:], groups, stride, padding, **more)


def _equal_weights(
    function: Any, x: Tensor, out: int, kernel: Any, groups: int, stride: Any, padding: Any, **more: Any
) -> Tensor:
    """A convolution whose weights are all the same and sum to one: one channel of each group says it all."""
    n, channels, height, width = x.shape
    total = x.reshape(n * groups, channels // groups, height, width).sum(1, keepdim=True)
    weight = torch.full((1, 1, *kernel), groups / (kernel[0] * kernel[1] * channels), dtype=x.dtype)
    y = function(total, weight, None, stride, padding, **more)
    return y.expand(-1, out // groups, -1, -1).reshape(n, out, *y.shape[2:]).contiguous()


def _max_pooled(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:  # fmt: skip
    if dilation in (1, (1, 1), [1, 1]):
        return F.avg_pool2d(x, kernel_size, stride or None, padding, ceil_mode)
    if ceil_mode:
        raise UserError("a max pooling with both dilation and ceil_mode cannot be measured")
    kernel = kernel_size if isinstance(kernel_size, tuple | list) else (kernel_size,) * 2
    channels = x.shape[1]
    return _equal_weights(F.conv2d, x, channels, kernel, channels, stride or kernel, padding, dilation=dilation)


def _multiplied(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    return x.mean(-1, keepdim=True).expand(*x.shape[:-1], weight.shape[0])


def _layer_normalised(x: Tensor, normalized_shape: Sequence[int], *_: Any, **__: Any) -> Tensor:
    return x + x.mean(tuple(range(-len(normalized_shape), 0)), keepdim=True)


_CONDUCTING: dict[str, Callable[..., Tensor]] = {
    "conv2d": _convolved,
    "conv_transpose2d": _convolved_back,
    "max_pool2d": _max_pooled,
    "linear": _multiplied,
    "layer_norm": _layer_normalised,
}


class Effective(NamedTuple):
    """How strongly the pixels of an image reach a unit.

    Attributes:
        magnitude: (H, W), root mean square of the gradient, 1 at its peak.
        centre: Mean row and column, weighted by the magnitude; the centre of the first pixel is at 0.5.
        sigma: Standard deviation along rows and columns, weighted so: that of the Gaussian with the same moments.
        overlap: Share of the magnitude that this Gaussian and it have in common.
        pixels: How many have more than 4.55 % of the peak.
        unit: Row and column of the unit in its map.
    """

    magnitude: np.ndarray
    centre: tuple[float, float]
    sigma: tuple[float, float]
    overlap: float
    pixels: int
    unit: tuple[int, int] = (0, 0)

    @property
    def size(self) -> float:
        """Side of the square with as many pixels."""
        return float(self.pixels**0.5)


def effective_fields(
    model: nn.Module, images: Tensor, fields: Sequence[LayerField], seed: int = 0
) -> dict[str, Effective]:
    """Effective fields of the units in the middle of the image, averaged over images and channels.

    The gradient is that of the sum of a unit's channels with random signs; its square, averaged over images with new
    signs for each, is the mean of the squares of all channels' gradients.

    Args:
        model: In evaluation mode; it is not changed.
        images: (N, C, H, W), as the network takes them.
        fields: Of the layers.
        seed: Of the signs.
    """
    generator = torch.Generator().manual_seed(seed)
    extents = images.shape[2:]
    squares = {field.name: torch.zeros(extents, dtype=torch.double) for field in fields}
    units: dict[str, tuple[int, int]] = {}

    def middle(field: LayerField) -> Callable[[Tensor], Tensor]:
        def signed_sum(output: Tensor) -> Tensor:
            y = field.maps(output)
            row, column = (
                min(max(field.unit_near(axis, extents[axis] / 2), 0), y.shape[2 + axis] - 1) for axis in (0, 1)
            )
            units[field.name] = row, column
            signs = torch.randint(2, y.shape[1:2], generator=generator).to(y.dtype) * 2 - 1
            return (y[0, :, row, column] * signs).sum()

        return signed_sum

    for image in images:
        x = image[None].clone().requires_grad_()
        with torch.enable_grad(), _listening(model, {f.name: middle(f) for f in fields}) as values:
            model(x)
        for name in squares:
            (gradient,) = torch.autograd.grad(values[name], x, retain_graph=True)
            squares[name] += gradient[0].double().square().sum(0)
    return {name: gaussian_fit(total.sqrt().numpy())._replace(unit=units[name]) for name, total in squares.items()}


def gaussian_fit(magnitude: np.ndarray) -> Effective:
    """Moments of a map of magnitudes, and how well a Gaussian with these moments describes it.

    Args:
        magnitude: (H, W), not negative, of any scale.

    Raises:
        UserError: It is zero everywhere.
    """
    total = magnitude.sum()
    if not total > 0:
        raise UserError("the gradient of a unit vanishes everywhere; try another --seed, or more --samples")
    share = magnitude / total
    places = [np.arange(n) + 0.5 for n in magnitude.shape]
    rows, columns = share.sum(1), share.sum(0)
    centre = float(rows @ places[0]), float(columns @ places[1])
    sigma = tuple(
        float(np.sqrt(max(m @ (p - c) ** 2, 0))) for m, p, c in zip((rows, columns), places, centre, strict=True)
    )
    bells = [np.exp(-((p - c) ** 2) / (2 * max(s, 1e-6) ** 2)) for p, c, s in zip(places, centre, sigma, strict=True)]
    bell = np.outer(*bells)
    overlap = float(np.minimum(share, bell / max(bell.sum(), 1e-300)).sum())
    pixels = int((magnitude > EFFECTIVE * magnitude.max()).sum())
    return Effective(magnitude / magnitude.max(), centre, (sigma[0], sigma[1]), overlap, pixels)


def at_initialisation(
    model: nn.Module, images: Tensor, fields: Sequence[LayerField], seed: int | None = None
) -> nn.Module:
    """A copy of a network as it starts its training, with the statistics of images in batch norm.

    Without these a residual branch would be as strong beside its shortcut as it never is in training.

    Args:
        model: Any network.
        images: (N, C, H, W), as the network takes them.
        fields: Of layers; the statistics are set up to the last of these.
        seed: Of new weights, as the layers are initialised; None keeps those that there are.
    """
    fresh = deepcopy(model).eval()
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in fresh.modules():
                reset: Any = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()
            if type(model).__module__.startswith("cnnbench.models"):
                fresh.apply(initialise)
    for module in fresh.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.train().momentum = None  # the mean of all batches, here of one
    with torch.no_grad(), _listening(fresh, {field.name: lambda y: y for field in fields}):
        fresh(images if len(images) > 1 else images.repeat(2, 1, 1, 1))  # batch norm refuses a single value
    return fresh.eval()


NEAR_ZERO = 1e-3
"""Of a scale per channel: below, what it scales adds next to nothing."""


def scales_near_zero(model: nn.Module) -> list[str]:
    """Names of scales per channel, of norms or of residual branches, that are all at or near zero."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    found = []
    for name, parameter in model.named_parameters():
        path, _, last = name.rpartition(".")
        scales = (
            "scale" in last or "gamma" in last or (last == "weight" and isinstance(model.get_submodule(path), norms))
        )
        if scales and bool(parameter.abs().max() < NEAR_ZERO):
            found.append(name)
    return found


def parse_rates(text: str) -> list[list[int]]:
    """Reads the rates of a stack of 3x3 convolutions: ``1,2,5``, branches in parallel with plus, ``1,6+12+18``.

    Raises:
        UserError: It is not of this form, or too large to count its paths.
    """
    try:
        stack = [[int(rate) for rate in step.split("+")] for step in text.split(",")]
    except ValueError:
        stack = [[0]]
    if min(min(step) for step in stack) < 1:
        raise UserError(f"dilations '{text}' are not rates of at least 1; write for example 1,2,5 or 1,2,6+12+18")
    if sum(map(max, stack)) > 200 or len(stack) > 12:
        raise UserError(
            f"dilations '{text}' are too large to be drawn; take at most 12 layers, and rates of 200 in sum"
        )
    return stack


def coverage(stack: Sequence[Sequence[int]]) -> np.ndarray:
    """Counts the paths from every pixel to one unit through 3x3 convolutions, exactly.

    Args:
        stack: Per layer the dilation rates of its branches, whose results are added.

    Returns:
        (r, r), int64, for the square that the unit could see at most; zero where the stack has a gap.
    """
    paths = np.ones((1, 1), dtype=np.int64)
    for rates in stack:
        reach, size = max(rates), len(paths)
        wider = np.zeros((size + 2 * reach,) * 2, dtype=np.int64)
        for rate in rates:
            for row in (reach - rate, reach, reach + rate):
                for column in (reach - rate, reach, reach + rate):
                    wider[row : row + size, column : column + size] += paths
        paths = wider
    return paths


def largest_gap(rates: Sequence[int]) -> int:
    """M_2 of hybrid dilated convolution: the largest gap that the layers above the first leave.

    By ``M_i = max(M_{i+1} - 2 r_i, M_{i+1} - 2 (M_{i+1} - r_i), r_i)``, ``M_n = r_n`` (Wang et al. 2018, 1702.08502,
    equation 2). The paper wants it to be at most the kernel size, and rates without a common factor.

    Args:
        rates: Of the layers, at least two.
    """
    gap = rates[-1]
    for rate in reversed(rates[1:-1]):
        gap = max(gap - 2 * rate, gap - 2 * (gap - rate), rate)
    return gap


def keeps_hdc_rule(rates: Sequence[int]) -> bool:
    """Whether rates of 3x3 layers in series begin with 1, leave a gap of at most 3, and have no common factor."""
    return len(rates) > 1 and rates[0] == 1 and largest_gap(rates) <= 3 and gcd(*rates) == 1


def stack_in_words(stack: Sequence[Sequence[int]]) -> str:
    """What a stack of dilated layers is called: gridding, HDC, or ASPP for rates in parallel, one after the other."""
    words: list[str] = []
    serial: list[int] = []
    for step in [*stack, ()]:
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
    if max(rates) == 1:
        return "not dilated"
    if len(rates) == 1:
        return "one dilated layer"
    if gcd(*rates) > 1:
        return "gridding"
    return "HDC" if keeps_hdc_rule(rates) else "not HDC"
