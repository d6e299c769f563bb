"""Sizes of the feature maps of a network, layer by layer, with parameters, memory and the pixels that no window reads.

The table describes either a stack of layers in the notation of ``--layers``, or a network. The sizes of a stack are
computed in `cnnbench.explain.output_sizes`, whose `output_size` is the function that the second exercise of the course
asks for. The sizes of a network are recorded while a copy without values runs on the meta device.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from torch import Tensor, nn

from cnnbench.counting.complexity import complexity
from cnnbench.counting.dry_run import DryRun, Listener
from cnnbench.counting.meta_copy import build_without_values
from cnnbench.counting.meta_run import tensors_in
from cnnbench.counting.operators import base_name
from cnnbench.counting.receptive_field import FieldTracker
from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.options import SizesOptions
from cnnbench.explain.output_sizes import (
    LARGEST_NUMBER,
    Conv,
    Extent,
    Layer,
    Pool,
    Size,
    Transposed,
    along,
    notation,
    output_size,
    pair_or_number,
    parse_layers,
    too_large,
    trace_sizes,
    unread_in_words,
)
from cnnbench.network import get_network
from cnnbench.plots.drawing import PALETTE

BYTES = 4
"""Bytes of one value in float32."""
VECTORS = "vectors"
"""Name of the stage that gathers outputs without a resolution, such as those of dense layers."""


class Row(NamedTuple):
    """A row of the table, for one layer.

    Attributes:
        name: Path of the layer in the network, or its number in the stack.
        kind: Type of the layer, with its settings.
        shape: Shape of the output for one image: channels, height and width, or features. None if the layer is not
            called as a module; a None inside stands for an unknown number of channels.
        params: Number of the layer's own parameters; None if the channels are not known.
        formula: Formula of this number, such as ``(3·3·64+1)·128``; empty if none is known.
        unread: Pixels of the input that the layer does not read, in words; empty if it reads all of them.
        channels_last: Whether the order of the shape is height, width, channels.
        view: Whether the output shares the memory of the input, as after a flatten.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...] | None
    params: int | None
    formula: str = ""
    unread: str = ""
    channels_last: bool = False
    view: bool = False

    @property
    def memory_bytes(self) -> int | None:
        """Return the memory of the output in bytes, for one image in float32; 0 for a view, None if not known."""
        if self.shape is None or None in self.shape:
            return None
        if self.view:
            return 0
        return BYTES * prod(n for n in self.shape if n is not None)


def rows_of_layers(layers: Sequence[Layer], size: Extent, in_channels: int) -> list[Row]:
    """Return the rows of a stack of layers, in which convolutions have a bias and no groups.

    Args:
        layers: Layers in the order in which they run.
        size: Height and width of the image in pixels.
        in_channels: Channels of the image.

    Returns:
        A row for the image, then one per layer. After a convolution without a number of channels, everything that
        depends on this number is None.

    Raises:
        UserError: A layer does not fit its input; the message names it.
    """
    sizes = trace_sizes(size, layers)
    rows = [Row("image", "", (in_channels, *sizes[0]), 0)]
    channels: int | None = in_channels
    for number, layer in enumerate(layers, 1):
        params: int | None = 0
        formula = ""
        if isinstance(layer, Conv | Transposed):
            height, width = along(layer.kernel, 0), along(layer.kernel, 1)
            if channels is not None and layer.channels is not None:
                formula = f"({height}·{width}·{channels}+1)·{layer.channels}"
                params = (height * width * channels + 1) * layer.channels
            else:
                params = None
            channels = layer.channels
        words = unread_in_words(sizes[number - 1], layer)
        rows.append(Row(str(number), notation(layer), (channels, *sizes[number]), params, formula, words))
    return rows


def rows_of_network(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[list[Row], list[str]]:
    """Return a row for every layer of a network that has parameters, pools, or changes the shape of its input.

    No values are computed: a copy of the network without values runs on the meta device.

    Args:
        model: Network, with or without values; it is not run.
        image_shape: Channels, height and width of the images.

    Returns:
        The rows, and the layers without a row as their number and type, such as "8 ReLU".

    Raises:
        UserError: The network does not run on such images.
    """
    params = {layer.name: layer.params for layer in complexity(model, image_shape, training=False).layers}
    rows, left_out, called = [Row("image", "", image_shape, 0)], Counter[str](), set()
    for call in _Calls(model, image_shape).found:
        module = model.get_submodule(call.name)
        # The parameters of a layer that runs several times are counted in its first row only.
        own = 0 if call.name in called or call.operator else params.get(call.name, 0)
        if not own and call.layer is None and call.out == call.given and not call.operator:
            left_out[type(module).__name__] += 1
            continue
        kind = call.operator or type(module).__name__
        words = unread_in_words(call.size, call.layer) if call.layer and call.size else ""
        settings = f" {notation(call.layer)}" if call.layer else ""
        formula = parameter_formula(module) if own else ""
        # A formula that does not give the counted number is not shown.
        formula = formula if formula and evaluated(formula) == own else ""
        rows.append(Row(call.name, kind + settings, call.out, own, formula, words, call.channels_last, call.view))
        called.add(call.name)
    # Parameters may also be used without a call of their module; such a layer gets a row without a shape.
    for name, number in params.items():
        if number and name not in called:
            rows.append(Row(name, type(model.get_submodule(name)).__name__, None, number))
    return rows, [f"{number} {kind}" for kind, number in left_out.items()]


def parameter_formula(module: nn.Module) -> str:
    """Return the formula of the number of a layer's parameters; empty for a type of layer that is not known.

    The formula is ``(kH·kW·C/groups+1)·O`` for a convolution and ``(inputs+1)·outputs`` for a dense layer, both without
    the ``+1`` if there is no bias, and ``2·C`` for batch normalisation. The layer's numbers replace the letters.
    """
    bias = getattr(module, "bias", None) is not None
    if isinstance(module, nn.modules.conv._ConvNd):
        fan_in = "·".join(map(str, module.kernel_size)) + f"·{module.in_channels}"
        fan_in += f"/{module.groups}" if module.groups > 1 else ""
        return f"({fan_in}+1)·{module.out_channels}" if bias else f"{fan_in}·{module.out_channels}"
    if isinstance(module, nn.Linear):
        inputs, outputs = module.in_features, module.out_features
        return f"({inputs}+1)·{outputs}" if bias else f"{inputs}·{outputs}"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return f"2·{module.num_features}" if module.affine else ""
    return ""


def evaluated(formula: str) -> int:
    """Compute the value of a formula of `parameter_formula`."""
    inner = re.fullmatch(r"\((.*)\+1\)·(\d+)", formula)
    product, factor, plus = (inner[1], int(inner[2]), 1) if inner else (formula, 1, 0)
    value = 1
    for part in product.split("·"):
        top, _, bottom = part.partition("/")
        value = value * int(top) // int(bottom or 1)
    return (value + plus) * factor


class _Call(NamedTuple):
    """A call of a module, or of a pooling operator that a container runs in its own ``forward`` method.

    Attributes:
        name: Path of the module.
        operator: Name of the operator; empty for the call of a module.
        given: Shape of the input without the batch dimension.
        out: Shape of the output without the batch dimension.
        layer: Settings of the window that moves over the input; None if there is no window.
        size: Height and width of the map that the window moves over; None if there is no window.
        channels_last: Whether the output is a map whose dimensions are height, width, channels.
        view: Whether the output shares the memory of the input.
    """

    name: str
    operator: str
    given: tuple[int, ...]
    out: tuple[int, ...]
    layer: Layer | None
    size: Size | None
    channels_last: bool = False
    view: bool = False


_POOLS = {
    "max_pool2d_with_indices": "max_pool2d",
    "avg_pool2d": "avg_pool2d",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "adaptive_max_pool2d": "adaptive_max_pool2d",
    "mean": "mean",
}
"""Operators that pool, by their name at dispatch, with the name that the table shows."""


class _Calls(Listener):
    """List of the calls in a dry run, in the order in which they end.

    In a module without children, the first operator that moves a window (convolution or pooling) gives the window of
    the module. In a container, pooling is a call of its own. A container itself is listed only if it owns parameters.

    Args:
        model: Network, of which a dry run follows one image.
        image_shape: Channels, height and width of the image.

    Attributes:
        found: The calls.
    """

    def __init__(self, model: nn.Module, image_shape: Sequence[int]) -> None:
        self.found: list[_Call] = []
        self._windows: dict[nn.Module, tuple[Layer, Size]] = {}  # window of each running module, and what it moves over
        self._run = DryRun(model, image_shape, self, "follow")
        with self._run.images(1) as images:
            self._run.forward(images)

    def start(self, images: Tensor) -> None:
        """Follow receptive fields from the image on; they say which dimensions are height and width."""
        self._fields = FieldTracker(images)

    def operator(self, operator: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Keep the window of an operator, if it has one."""
        name, module = base_name(operator), self._run.running
        self._fields(operator, args, out, False)
        layer = _window(name, args)
        size = tuple(args[0].shape[2:]) if layer else None
        if not any(module.children()):
            if layer and size:
                self._windows.setdefault(module, (layer, size))
        elif name in _POOLS and args[0].dim() == 4:
            result = next(tensors_in(out))
            self.found.append(_Call(self._run.names[module], _POOLS[name], *_shapes(args[0], result), layer, size))

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """List the call of a module."""
        given, result = next(tensors_in(inputs), None), next(tensors_in(output), None)
        layer, size = self._windows.pop(module, (None, None))
        if given is None or result is None or (any(module.children()) and not module._parameters):
            return
        last = _channels_last(module, given, result, self._fields)
        # The flag travels with the tensor, so that the next layer can take it over.
        result._channels_last = last  # type: ignore[attr-defined]
        # Two tensors on one storage share their memory.
        view = given.untyped_storage()._cdata == result.untyped_storage()._cdata
        self.found.append(_Call(self._run.names[module], "", *_shapes(given, result), layer, size, last, view))


def _channels_last(module: nn.Module, given: Tensor, result: Tensor, tracker: FieldTracker) -> bool:
    """Return whether an output has the shape (N, H, W, C).

    The receptive field of the output says along which dimensions height and width run. Where it is not defined, the
    type of the layer decides, or else the input, if the layer keeps its shape.
    """
    if result.dim() != 4:
        return False
    field = tracker.field_of(result)
    if field is not None and field.map_dims is not None:
        return field.map_dims == (1, 2)
    # Both work on the last dimension. The comparison by name leaves out LayerNorm2d, which has its channels first.
    if isinstance(module, nn.Linear) or type(module).__name__ == "LayerNorm":
        return True
    return given.shape == result.shape and getattr(given, "_channels_last", False)


def _shapes(given: Any, result: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(given.shape[1:]), tuple(result.shape[1:])


def _window(name: str, args: Sequence[Any]) -> Layer | None:
    """Return the layer with the settings of a torch operator; None unless it moves a window over a 2-d map.

    Args:
        name: Base name of the operator at dispatch.
        args: Positional arguments of the operator.
    """

    # One value stands for both axes, so lists of one value are doubled, and pairs of equal values become a number.
    def extents(values: Sequence[Any]) -> list[Any]:
        pairs = [tuple(v) * (2 if len(v) == 1 else 1) for v in values]
        return [p[0] if p and len(set(p)) == 1 else p for p in pairs]

    if args and getattr(args[0], "dim", lambda: 0)() != 4:
        return None
    if name == "convolution":
        stride, padding, dilation, transposed, output_padding = args[3:8]
        kernel, s, p, d, o = extents([args[1].shape[2:], stride, padding, dilation, output_padding])
        return Transposed(kernel, s, p, o, d) if transposed else Conv(kernel, s, p, d)
    if name == "max_pool2d_with_indices":
        # Dispatch drops trailing arguments that have their default values; they are appended again.
        given = [*args[1:], *([], [0], [1], False)[len(args) - 2 :]]
        kernel, s, p, d = extents(given[:4])
        return Pool(kernel, s or None, p, d, given[4])
    if name == "avg_pool2d":
        given = [*args[1:5], *([], [0], False)[len(args[1:5]) - 1 :]]
        kernel, s, p = extents(given[:3])
        return Pool(kernel, s or None, p, 1, given[3], "avg")
    return None


def explain(options: SizesOptions) -> Explanation:
    """Return the table of a network or of a stack of layers, and a picture of its maps if all channels are known.

    Raises:
        UserError: The options contradict each other, or the network or a layer does not fit the image.
    """
    if (options.model is None) == (options.layers is None):
        raise UserError("give either a MODEL, or --layers 'conv7/2p3 maxpool3/2p1'")
    size = _size(options.image_size)
    if options.layers is not None:
        if options.num_classes is not None:
            raise UserError("--num_classes is for a MODEL; layers have their channels as in conv3:64")
        channels = 3 if options.in_channels is None else options.in_channels
        if channels < 1:
            raise UserError(f"in_channels {channels} must be at least 1")
        layers, size = parse_layers(options.layers), size or 224
        title = "Stack of layers"
        rows = rows_of_layers(layers, size, channels)
        (height, width), (high, wide) = output_size(size, ()), output_size(size, layers)
        remarks = [f"{height}x{width} pixels become {high}x{wide}."]
    else:
        if isinstance(size, tuple):
            raise UserError(f"image_size '{options.image_size}': a MODEL takes square images; give one number")
        assert options.model is not None
        network = get_network(options.model, options.in_channels, size, options.num_classes)
        title = network.name
        rows, left_out = rows_of_network(build_without_values(network.build)[0], network.image_shape)
        remarks = []
        if left_out:
            remarks = [f"Without a row, since they keep the shape and have no parameters: {', '.join(left_out)}."]
    return _explanation(title, rows, remarks)


def _size(text: str | None) -> Extent | None:
    if text is None:
        return None
    if re.fullmatch(r"0*[1-9]\d*(x0*[1-9]\d*)?", text) is None:
        raise UserError(f"image_size '{text}' is not a size in pixels; write for example 224 or 17x23")
    if any(too_large(number) for number in text.split("x")):
        raise UserError(f"image_size {text} must be at most {LARGEST_NUMBER:,} pixels")
    size: Extent = pair_or_number(text)
    return size


def _explanation(title: str, rows: Sequence[Row], remarks: list[str]) -> Explanation:
    params = sum(row.params or 0 for row in rows)
    memory = sum(row.memory_bytes or 0 for row in rows)
    whole = all(row.params is not None for row in rows)
    cells = [
        (
            row.name,
            row.kind,
            "not called as a module"
            if row.shape is None
            else "x".join("?" if n is None else str(n) for n in row.shape),
            "-" if row.params is None else f"{row.formula} = {row.params:,}" if row.formula else f"{row.params:,}",
            "-" if row.memory_bytes is None else kib(row.memory_bytes),
            row.unread or "-",
        )
        for row in rows
    ]
    cells.append(("total", "", "", f"{params:,}" if whole else "-", kib(memory) if whole else "-", ""))
    head = ("Layer", "Kind", "Output", "Parameters", "Memory (KiB)", "Not read of its input")
    remarks = [*remarks, "Memory is that of the outputs in the table, for one image in float32."]
    views = list(dict.fromkeys(row.kind for row in rows if row.view))
    if views:
        remarks.append(f"Outputs of {', '.join(views)} are views of their inputs and have no memory of their own.")
    if not whole:
        remarks.append("Channels of a convolution, as in conv3:64, would give parameters and memory as well.")
    if any(row.unread for row in rows):
        remarks.append("Pixels that a layer does not read have no influence on its output.")
    numbers: dict[str, Any] = {
        "layers": [row._asdict() | {"memory_bytes": row.memory_bytes} for row in rows],
        "params": params if whole else None,
        "memory_bytes": memory if whole else None,
    }
    pictures = _pictures(title, rows) if whole else []
    return Explanation(numbers, [Table(title, head, cells)], pictures, remarks)


def kib(size: int) -> str:
    """Format a number of bytes as KiB: with no decimals for 0 and from 100 on, one from 1 on, and two below 1."""
    value = size / 1024
    return f"{value:,.0f}" if value >= 100 or not size else f"{value:,.1f}" if value >= 1 else f"{value:.2f}"


def _pictures(title: str, rows: Sequence[Row]) -> list[Picture]:
    stages = stages_of(rows)
    if len(stages) < 2:
        return []
    most = {}
    for key in ("memory_bytes", "params"):
        total = sum(stage[key] for stage in stages.values())
        name, stage = max(stages.items(), key=lambda item: item[1][key])
        most[key] = f"{name} ({stage[key] / max(total, 1):.0%})"
    caption = (
        f"{title}: the widest map at each resolution, height x width above its channels; edges grow with the square "
        f"root of pixels and of channels. Of the memory of all outputs most goes to {most['memory_bytes']}"
    )
    if any(stage["params"] for stage in stages.values()):
        caption += f", of the parameters most to {most['params']}"
    costly = [max(stages, key=lambda name: stages[name][key]) for key in ("memory_bytes", "params")]
    (large, deep) = (stages[name] for name in costly)
    if (
        VECTORS not in costly
        and deep["params"]
        and _pixels(deep) < _pixels(large)
        and (deep["channels"] > large["channels"])
    ):
        caption += ": large maps cost memory, many channels cost parameters"
    elif costly[0] != VECTORS == costly[1]:
        caption += ": large maps cost memory, dense layers cost parameters"
    caption += "."
    hidden = sum(row.params or 0 for row in rows if row.shape is None)
    if hidden:
        caption += f" {hidden:,} parameters are of layers that are not called as modules, and not in the bars."
    return [Picture("sizes", "Maps by resolution, their memory and parameters", caption, _draw(title, stages))]


def stages_of(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Group the rows by the resolution of their output.

    Returns:
        Stages by resolution, such as ``56x56``, in the order of their appearance. A stage has the ``height`` and
        ``width`` of its maps, the largest number of ``channels``, and the sums of ``memory_bytes`` and ``params``.
        Layers whose output has no resolution, such as dense layers and layers on tokens, are under `VECTORS`.
    """
    stages: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.shape is None:
            continue
        shape = [n for n in row.shape if n is not None]
        assert len(shape) == len(row.shape)
        name, channels, height, width = VECTORS, prod(shape), 1, 1
        if len(shape) == 3:
            height, width, channels = shape if row.channels_last else (*shape[1:], shape[0])
            name = f"{height}x{width}"
        stage = stages.setdefault(
            name, {"channels": 0, "height": height, "width": width, "memory_bytes": 0, "params": 0}
        )
        stage["channels"] = max(stage["channels"], channels)
        stage["memory_bytes"] += row.memory_bytes or 0
        stage["params"] += row.params or 0
    return stages


def _pixels(stage: Mapping[str, int]) -> int:
    return stage["height"] * stage["width"]


def _draw(title: str, stages: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw a block per resolution, and below it bars of its memory and its parameters."""
    figure = Figure(figsize=(max(5.5, 1.15 * len(stages) + 1.2), 5.4), layout="constrained")
    blocks, memory, params = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1, 1))
    _draw_blocks(blocks, stages)
    blocks.set_title(title, loc="left", fontsize=11, fontweight="bold")
    for ax, key, unit, divisor, colour in (
        (memory, "memory_bytes", "memory (KiB)", 1024, PALETTE[0]),
        (params, "params", "parameters", 1, PALETTE[1]),
    ):
        values = [stage[key] / divisor for stage in stages.values()]
        ax.bar(range(len(values)), values, width=0.6, color=colour)
        for x, value in enumerate(values):
            text = kib(round(value * 1024)) if divisor > 1 else f"{value:,.0f}"
            ax.annotate(text, (x, value), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        ax.set_ylabel(unit, fontsize=9)
        ax.set_ylim(0, 1.22 * max(*values, 1e-9))
        ax.set_yticks([])
        ax.tick_params(axis="x", length=0)
        ax.spines[["top", "right", "left"]].set_visible(False)
    names = [
        f"{stage['channels']}\nvalues" if name == VECTORS else f"{name.replace('x', '×')}\n× {stage['channels']}"  # noqa: RUF001
        for name, stage in stages.items()
    ]
    params.set_xticks(range(len(names)), names, fontsize=9)
    return figure


def _draw_blocks(ax: Axes, stages: Mapping[str, Mapping[str, int]]) -> None:
    """Draw each stage as a block; edges grow with the square root of height, width and channels."""
    # Heights are relative to the largest map and lengths to the most channels, so that every block fits its column.
    tallest = max(max(s["height"], s["width"]) for s in stages.values()) ** 0.5
    longest = max(s["channels"] for s in stages.values()) ** 0.5
    for x, stage in enumerate(stages.values()):
        # The width of a map is drawn at a slant, into the depth of the picture.
        height, slant = stage["height"] ** 0.5 / tallest, 0.32 * stage["width"] ** 0.5 / tallest
        length = max(0.5 * stage["channels"] ** 0.5 / longest, 0.015)
        left = x - (length + slant) / 2
        front = np.array([(0, 0), (length, 0), (length, height), (0, height)], dtype=float)
        front += np.array([left, -(height + slant) / 2])
        lift = np.array([slant, slant])
        for corners, colour in (
            (front, "#9ecae1"),
            (np.array([front[3], front[2], front[2] + lift, front[3] + lift]), "#c6dbef"),
            (np.array([front[1], front[2], front[2] + lift, front[1] + lift]), "#6baed6"),
        ):
            ax.add_patch(Polygon(corners, facecolor=colour, edgecolor="#2b5c7d", linewidth=0.7, joinstyle="round"))
    ax.set(xlim=(-0.6, len(stages) - 0.4), ylim=(-0.72, 0.72))
    ax.set_axis_off()
