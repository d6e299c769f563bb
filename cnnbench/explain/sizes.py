"""Sizes of the feature maps of a network, layer by layer, with parameters, memory and the pixels that no window reads.

The table describes either a stack of layers in the notation of ``--layers``, or a network. The sizes of a stack are
computed in `cnnbench.explain.output_sizes`, whose `output_size` is the function that the second exercise of the course
asks for. The sizes of a network are recorded while a copy without values runs on the meta device.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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

CAPTION = (
    "Each block is the widest map at a resolution; its edges grow with the square root of height, width and channels, "
    "which are written at the bottom. The bars are the memory of all outputs at this resolution, and the parameters of "
    "the layers that compute them. Compare where the memory is with where the parameters are."
)
MANY_CHANNELS = "Large maps cost memory, many channels cost parameters."
DENSE_LAYERS = "Large maps cost memory, dense layers cost parameters."


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
        # Layers other than convolutions have no parameters and keep the channels.
        params: int | None = 0
        formula = ""
        if isinstance(layer, Conv | Transposed):
            params = None
            height, width = along(layer.kernel, 0), along(layer.kernel, 1)
            if channels is not None and layer.channels is not None:
                formula = f"({height}·{width}·{channels}+1)·{layer.channels}"
                params = (height * width * channels + 1) * layer.channels
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
    for call in _Calls(model, image_shape).calls:
        module = model.get_submodule(call.name)
        own = 0
        # The parameters of a layer that runs several times are counted in its first row only.
        if not call.operator and call.name not in called:
            own = params.get(call.name, 0)
        keeps_shape = call.out == call.given and call.layer is None and not call.operator
        if keeps_shape and not own:
            left_out[type(module).__name__] += 1
            continue
        rows.append(_row(call, module, own))
        # An operator in the forward of a container, such as a pooling, is not a call of the container itself.
        if not call.operator:
            called.add(call.name)
    # Parameters may also be used without a call of their module; such a layer gets a row without a shape.
    for name, number in params.items():
        if number and name not in called:
            rows.append(Row(name, type(model.get_submodule(name)).__name__, None, number))
    return rows, [f"{number} {kind}" for kind, number in left_out.items()]


def _row(call: _Call, module: nn.Module, params: int) -> Row:
    """Return the row of a call of a module, or of an operator that the module runs, with its number of parameters."""
    kind, words, formula = call.operator or type(module).__name__, "", ""
    if call.layer and call.size:
        kind += f" {notation(call.layer)}"
        words = unread_in_words(call.size, call.layer)
    # A formula that does not give the counted number is not shown.
    if params and (text := parameter_formula(module)) and evaluated(text) == params:
        formula = text
    return Row(call.name, kind, call.out, params, formula, words, call.channels_last, call.view)


def parameter_formula(module: nn.Module) -> str:
    """Return the formula of the number of a layer's parameters; empty for a type of layer that is not known.

    The formula is ``(kH·kW·C/groups+1)·O`` for a convolution and ``(inputs+1)·outputs`` for a dense layer, both without
    the ``+1`` if there is no bias, and ``2·C`` for batch normalisation. The layer's numbers replace the letters.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return f"2·{module.num_features}" if module.affine else ""
    if isinstance(module, nn.modules.conv._ConvNd):
        inputs = "·".join(map(str, (*module.kernel_size, module.in_channels)))
        if module.groups > 1:
            inputs += f"/{module.groups}"
        outputs = module.out_channels
    elif isinstance(module, nn.Linear):
        inputs, outputs = str(module.in_features), module.out_features
    else:
        return ""
    if getattr(module, "bias", None) is None:
        return f"{inputs}·{outputs}"
    return f"({inputs}+1)·{outputs}"


def evaluated(formula: str) -> int:
    """Compute the value of a formula of `parameter_formula`."""
    product, outputs, biases = formula, 1, 0
    # With a bias the formula is (product+1)·outputs; otherwise all of it is a product.
    if match := re.fullmatch(r"\((.*)\+1\)·(\d+)", formula):
        product, outputs, biases = match[1], int(match[2]), 1  # of one output
    value = 1
    for part in product.split("·"):
        top, _, bottom = part.partition("/")
        # The division is exact, since the groups divide the input channels.
        value = value * int(top) // int(bottom or 1)
    return (value + biases) * outputs


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
        calls: The calls.
    """

    def __init__(self, model: nn.Module, image_shape: Sequence[int]) -> None:
        self.calls: list[_Call] = []
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
        # The tracker follows the image from operator to operator, so it must see all of them.
        self._fields(operator, args, out, False)
        layer = _window(name, args)
        size = tuple(args[0].shape[2:]) if layer else None
        if not any(module.children()):
            # In a module such as `Conv2d`, the first window is that of the module.
            if layer and size:
                self._windows.setdefault(module, (layer, size))
        elif name in _POOLS and args[0].dim() == 4:
            # Only poolings of maps, (N, C, H, W), are listed, not a mean over tokens or vectors.
            result = next(tensors_in(out))
            self.calls.append(_Call(self._run.names[module], _POOLS[name], *_shapes(args[0], result), layer, size))

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """List the call of a module."""
        given, result = next(tensors_in(inputs), None), next(tensors_in(output), None)
        # A window is taken out at the end of its module, so that a second run of the module notes its own.
        layer, size = self._windows.pop(module, (None, None))
        if given is None or result is None or (any(module.children()) and not module._parameters):
            return
        last = _channels_last(module, given, result, self._fields)
        # The flag travels with the tensor, so that the next layer can take it over.
        result._channels_last = last  # type: ignore[attr-defined]
        # Two tensors on one storage share their memory.
        view = given.untyped_storage()._cdata == result.untyped_storage()._cdata
        self.calls.append(_Call(self._run.names[module], "", *_shapes(given, result), layer, size, last, view))


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
    """Return the shapes of an input and an output without the batch dimension."""
    return tuple(given.shape[1:]), tuple(result.shape[1:])


def _window(name: str, args: Sequence[Any]) -> Layer | None:
    """Return the layer with the settings of a torch operator; None unless it moves a window over a 2-d map.

    Args:
        name: Base name of the operator at dispatch.
        args: Positional arguments of the operator.
    """
    if not args or not isinstance(args[0], Tensor) or args[0].dim() != 4:
        return None
    if name == "convolution":
        # The arguments of aten::convolution begin with input, weight and bias; the groups come last.
        stride, padding, dilation, transposed, output_padding = args[3:8]
        kernel, s, p, d = map(_extent, (args[1].shape[2:], stride, padding, dilation))
        return Transposed(kernel, s, p, _extent(output_padding), d) if transposed else Conv(kernel, s, p, d)
    # Dispatch drops trailing arguments that have their default values; they are appended again.
    defaults: tuple[Any, ...]
    if name == "max_pool2d_with_indices":
        # Input and kernel are always given. The first default, an empty stride, means the size of the kernel.
        defaults = [], [0], [1], False
        values = (*args[1:], *defaults[len(args) - 2 :])
        kernel, s, p, d, ceil_mode = values
        return Pool(_extent(kernel), _extent(s) or None, _extent(p), _extent(d), ceil_mode)
    if name == "avg_pool2d":
        # Arguments behind these, such as `count_include_pad`, have no influence on the size.
        given, defaults = args[1:5], ([], [0], False)
        values = (*given, *defaults[len(given) - 1 :])
        kernel, s, p, ceil_mode = values
        return Pool(_extent(kernel), _extent(s) or None, _extent(p), 1, ceil_mode, "avg")
    return None


def _extent(values: Sequence[int]) -> Any:
    """Return numbers of an operator as an extent; one number stands for both axes if they are equal."""
    return values[0] if len(set(values)) == 1 else tuple(values)


class _Sizes(NamedTuple):
    """Layers of a network or of a stack of layers.

    Attributes:
        title: Title of the table, such as the name of the network.
        rows: Rows of the table.
        about: Remarks for below the table; further ones follow from the rows.
    """

    title: str
    rows: list[Row]
    about: list[str]

    @property
    def params(self) -> int | None:
        """Return the number of parameters of all layers; None if the channels of a layer are not known."""
        if any(row.params is None for row in self.rows):
            return None
        return sum(row.params or 0 for row in self.rows)

    @property
    def memory_bytes(self) -> int | None:
        """Return the memory of all outputs in bytes, for one image in float32; None like the number of parameters."""
        if self.params is None:
            return None
        return sum(row.memory_bytes or 0 for row in self.rows)


def explain(options: SizesOptions) -> Explanation:
    """Return the table of a network or of a stack of layers, and a picture of its maps if all channels are known.

    Raises:
        UserError: The options contradict each other, or the network or a layer does not fit the image.
    """
    if (options.model is None) == (options.layers is None):
        raise UserError("give either a MODEL, or --layers 'conv7/2p3 maxpool3/2p1'")
    describe = _sizes_of_network if options.layers is None else _sizes_of_layers
    sizes = describe(options, _size(options.image_size))
    explanation = Explanation(_numbers(sizes), [_table(sizes)], [], _remarks(sizes))
    # A picture needs all channels, and is worth while from two resolutions on.
    stages = {} if sizes.params is None else stages_of(sizes.rows)
    if len(stages) > 1:
        explanation.tables.append(_stage_table(sizes.title, stages))
        explanation.remarks += _stage_remarks(sizes.rows, stages)
        title = "Maps by resolution, their memory and parameters"
        explanation.pictures.append(Picture("sizes", title, CAPTION, _draw(sizes.title, stages)))
    return explanation


def _size(text: str | None) -> Extent | None:
    """Return the image size of the options: one number, or a pair of height and width; None if there is none."""
    if text is None:
        return None
    if re.fullmatch(r"0*[1-9]\d*(x0*[1-9]\d*)?", text) is None:
        raise UserError(f"image_size '{text}' is not a size in pixels; write for example 224 or 17x23")
    if any(too_large(number) for number in text.split("x")):
        raise UserError(f"image_size {text} must be at most {LARGEST_NUMBER:,} pixels")
    size: Extent = pair_or_number(text)
    return size


def _sizes_of_layers(options: SizesOptions, size: Extent | None) -> _Sizes:
    """Return the sizes of the stack of layers that the options describe."""
    assert options.layers is not None
    if options.num_classes is not None:
        raise UserError("--num_classes is for a MODEL; layers have their channels as in conv3:64")
    channels = 3 if options.in_channels is None else options.in_channels
    if channels < 1:
        raise UserError(f"in_channels {channels} must be at least 1")
    layers, size = parse_layers(options.layers), size or 224
    rows = rows_of_layers(layers, size, channels)
    # Without layers, `output_size` returns the size of the image as a pair.
    (height, width), (high, wide) = output_size(size, ()), output_size(size, layers)
    return _Sizes("Stack of layers", rows, [f"{height}x{width} pixels become {high}x{wide}."])


def _sizes_of_network(options: SizesOptions, size: Extent | None) -> _Sizes:
    """Return the sizes of the network that the options name."""
    assert options.model is not None
    if isinstance(size, tuple):
        raise UserError(f"image_size '{options.image_size}': a MODEL takes square images; give one number")
    network = get_network(options.model, options.in_channels, size, options.num_classes)
    rows, left_out = rows_of_network(build_without_values(network.build)[0], network.image_shape)
    about = []
    if left_out:
        about = [f"Without a row, since they keep the shape and have no parameters: {', '.join(left_out)}."]
    return _Sizes(network.name, rows, about)


def _numbers(sizes: _Sizes) -> dict[str, Any]:
    """Return the layers and their sums for ``--json``."""
    return {
        "layers": [row._asdict() | {"memory_bytes": row.memory_bytes} for row in sizes.rows],
        "params": sizes.params,
        "memory_bytes": sizes.memory_bytes,
    }


def _table(sizes: _Sizes) -> Table:
    """Return the table of the layers, with their sums in the last row."""
    head = ("Layer", "Kind", "Output", "Parameters", "Memory (KiB)", "Not read of its input")
    rows = [_cells(row) for row in sizes.rows]
    params = "-" if sizes.params is None else f"{sizes.params:,}"
    memory = "-" if sizes.memory_bytes is None else kib(sizes.memory_bytes)
    rows.append(("total", "", "", params, memory, ""))
    return Table(sizes.title, head, rows)


def _cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row; a dash stands for what is not known, a question mark for unknown channels."""
    shape, params, memory = "not called as a module", "-", "-"
    if row.shape is not None:
        shape = "x".join("?" if n is None else str(n) for n in row.shape)
    if row.params is not None:
        params = f"{row.params:,}"
        if row.formula:
            params = f"{row.formula} = {params}"
    if row.memory_bytes is not None:
        memory = kib(row.memory_bytes)
    return row.name, row.kind, shape, params, memory, row.unread or "-"


def _remarks(sizes: _Sizes) -> list[str]:
    """Return sentences on what the table shows and on what it cannot show."""
    remarks = [*sizes.about, "Memory is that of the outputs in the table, for one image in float32."]
    views = dict.fromkeys(row.kind for row in sizes.rows if row.view)
    if views:
        remarks.append(f"Outputs of {', '.join(views)} are views of their inputs and have no memory of their own.")
    if sizes.params is None:
        remarks.append("Channels of a convolution, as in conv3:64, would give parameters and memory as well.")
    if any(row.unread for row in sizes.rows):
        remarks.append("Pixels that a layer does not read have no influence on its output.")
    return remarks


def kib(size: int) -> str:
    """Format a number of bytes as KiB: with no decimals for 0 and from 100 on, one from 1 on, and two below 1."""
    value = size / 1024
    if value >= 100 or size == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


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
        # All channels are known here, because `explain` checks that first.
        shape = [n for n in row.shape if n is not None]
        assert len(shape) == len(row.shape)
        # An output that is not a map has the number of its values in place of channels.
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


def _stage_table(title: str, stages: Mapping[str, Mapping[str, int]]) -> Table:
    """Return the table of the memory and the parameters by resolution, with their shares of the sums."""
    head = (
        "Resolution",
        "Most channels (vectors: values)",
        "Memory (KiB)",
        "Share of memory",
        "Parameters",
        "Share of parameters",
    )
    memory = sum(stage["memory_bytes"] for stage in stages.values())
    params = sum(stage["params"] for stage in stages.values())
    rows = []
    for name, stage in stages.items():
        of_memory, of_params = stage["memory_bytes"] / max(memory, 1), stage["params"] / max(params, 1)
        counts = str(stage["channels"]), kib(stage["memory_bytes"]), f"{of_memory:.0%}"
        rows.append((name, *counts, f"{stage['params']:,}", f"{of_params:.0%}"))
    return Table(f"{title}, by resolution", head, rows)


def _stage_remarks(rows: Sequence[Row], stages: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return sentences on what costs memory and parameters, and on the parameters that no resolution has."""
    remarks = []
    largest = max(stages, key=lambda name: stages[name]["memory_bytes"])
    richest = max(stages, key=lambda name: stages[name]["params"])
    large, rich = stages[largest], stages[richest]
    smaller = rich["height"] * rich["width"] < large["height"] * large["width"]
    # A rule of thumb is told only where it holds.
    if largest != VECTORS and richest == VECTORS:
        remarks.append(DENSE_LAYERS)
    elif VECTORS not in (largest, richest) and rich["params"] and smaller and rich["channels"] > large["channels"]:
        remarks.append(MANY_CHANNELS)
    hidden = sum(row.params or 0 for row in rows if row.shape is None)
    if hidden:
        remarks.append(
            f"{hidden:,} parameters are of layers that are not called as modules, so no resolution has them."
        )
    return remarks


def _draw(title: str, stages: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw a block per resolution, and below it bars of its memory and its parameters."""
    figure = Figure(figsize=(max(5.5, 1.15 * len(stages) + 1.2), 5.4), layout="constrained")
    blocks, memory, params = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1, 1))
    _draw_blocks(blocks, stages)
    blocks.set_title(title, loc="left", fontsize=11, fontweight="bold")
    _draw_bars(memory, [stage["memory_bytes"] for stage in stages.values()], kib, PALETTE[0])
    memory.set_ylabel("memory (KiB)", fontsize=9)
    _draw_bars(params, [stage["params"] for stage in stages.values()], "{:,.0f}".format, PALETTE[1])
    params.set_ylabel("parameters", fontsize=9)
    names = []
    for name, stage in stages.items():
        if name == VECTORS:
            names.append(f"{stage['channels']}\nvalues")
        else:
            names.append(f"{name.replace('x', '×')}\n× {stage['channels']}")  # noqa: RUF001
    params.set_xticks(range(len(names)), names, fontsize=9)
    return figure


def _draw_bars(ax: Axes, values: Sequence[int], in_words: Callable[[int], str], colour: str) -> None:
    """Draw values as bars, each with its value as text above it in place of an axis."""
    # A number of bytes can exceed 64 bits, and matplotlib takes such a number only as a float.
    heights = [float(value) for value in values]
    ax.bar(range(len(values)), heights, width=0.6, color=colour)
    for x, (value, height) in enumerate(zip(values, heights, strict=True)):
        ax.annotate(in_words(value), (x, height), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    # Above the highest bar there is room for its number.
    ax.set_ylim(0, 1.22 * max(*heights, 1e-9))
    ax.set_yticks([])
    ax.tick_params(axis="x", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _draw_blocks(ax: Axes, stages: Mapping[str, Mapping[str, int]]) -> None:
    """Draw each stage as a block; edges grow with the square root of height, width and channels."""
    # Heights are relative to the largest map and lengths to the most channels, so that every block fits its column.
    tallest = max(max(s["height"], s["width"]) for s in stages.values()) ** 0.5
    longest = max(s["channels"] for s in stages.values()) ** 0.5
    for x, stage in enumerate(stages.values()):
        # The width of a map is drawn at a slant, into the depth of the picture.
        height, slant = stage["height"] ** 0.5 / tallest, 0.32 * stage["width"] ** 0.5 / tallest
        # The lower bound keeps a block of few channels visible.
        length = max(0.5 * stage["channels"] ** 0.5 / longest, 0.015)
        left = x - (length + slant) / 2
        # Corners counter-clockwise from the lower left one; the top and the side share edges with the front.
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
