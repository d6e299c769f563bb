"""The tool ``receptive-field``: the pixels that a unit can see, and those that it attends to.

For the layers of a network it shows the theoretical field, the measured field and the effective field; for stacks of
dilated convolutions, the pixels that they cover. The fields are computed in `cnnbench.explain.effective_field`.

The course's function ``compute_receptive_field`` goes back through the layers with ``stride * r + (k - 1)``. This step
is too large wherever a stride exceeds 1: for the course's own example of 3x3 convolutions and two poolings it returns
19 pixels. The correct step is ``stride * r + (k - stride)``, as in the formula of the course's text. With it the
example sees 16 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor

from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.effective_field import (
    Effective,
    LayerField,
    Measured,
    at_initialisation,
    chosen_fields,
    coverage,
    effective_fields,
    first_without_field,
    keeps_hdc_rule,
    largest_gap,
    layer_fields,
    measure_fields,
    parse_rates,
    scales_near_zero,
    stack_in_words,
)
from cnnbench.explain.networks import Subject, find_subject, image_for, read_photo
from cnnbench.explain.options import ROWS, STACKS, ReceptiveFieldOptions
from cnnbench.plots.drawing import PALETTE
from cnnbench.plots.grids import grid, outline

PANELS = 4
"""Largest number of layers in the picture, unless ``--layers`` names them."""
FINE = 256
"""Width in pixels up to which the photo is drawn finer than the network's image, by a whole factor."""
MOST_SAMPLES = 1000
"""Largest value of ``--samples``."""
LARGEST_IMAGE = 288
"""Largest height and width in pixels to which an image of noise is enlarged to contain the largest field."""

SIZE = (
    "The size of an effective field is the side of a square with as many pixels as have more than 4.55 % of the peak."
)
FIELDS_CAPTION = (
    "A unit in the middle of the image can see what is inside the white frame. Its gradient is drawn in yellow, opaque "
    "where it is as large as its strongest hundredth; the dashed ellipse is two standard deviations of the Gaussian "
    "with the same moments. Compare the ellipse with the frame: to which part of what it can see does the unit attend?"
)
GROWTH_CAPTION = (
    "On the left are the sizes of the theoretical and of the effective field, layer by layer. On the right is the "
    "gradient of the last layer, summed over rows, with the Gaussian of the same moments (dashed) and the ends of "
    "the layer's theoretical field (dotted)."
)
COVERAGE_CAPTION = (
    "How many paths lead from each pixel to the unit in the middle, from yellow, one, to dark, most, on a logarithmic "
    "scale for each stack by itself. White pixels have none: they are gaps in the square that the rates span."
)
GRIDDING = "Gridding: rates with a common factor leave a grid of gaps, however many layers of such rates there are."
HDC = "HDC, hybrid dilated convolution, has rates in series that fill each other's gaps."
ASPP = (
    "ASPP, atrous spatial pyramid pooling (Chen et al. 2018, 1606.00915), adds layers of different rates that run in "
    "parallel, so they do not fill each other's gaps; layers before it can."
)
HDC_RULE = (
    "The rule of hybrid dilated convolution (Wang et al. 2018, 1702.08502): the first rate is 1, the gap M2 is at "
    "most the kernel size, 3, and the rates have no common factor. It is enough for a square without gaps, and not "
    "necessary."
)


class _Layer(NamedTuple):
    """Analytic and measured field of a layer, and its effective fields by state of the weights."""

    field: LayerField
    measured: Measured
    effective: dict[str, Effective]


class _NetworkFields(NamedTuple):
    """Receptive fields of a network.

    Attributes:
        name: Name of the network for readers.
        layers: Fields of the shown layers.
        shown: Layers in the picture of fields; the table has all.
        inputs: Description of the images for the effective fields.
        image_size: Height and width of these images in pixels.
        beyond: Sentence on the first layer without a field that is a part of the image; None if there is none.
        near_zero: Names of scales of channels that are next to zero at initialisation.
    """

    name: str
    layers: list[_Layer]
    shown: list[_Layer]
    inputs: str
    image_size: tuple[int, int]
    beyond: str | None
    near_zero: list[str]


class _Stack(NamedTuple):
    """A stack of dilated 3x3 convolutions, and the pixels that it covers.

    Attributes:
        rates: Dilation rates as the user writes them, such as ``1,2,5``.
        kind: Kind of the stack in words, such as "gridding".
        paths: Number of paths from each pixel to the unit in the middle, (r, r).
        pixels: Number of pixels with a path.
        gap: M2 of hybrid dilated convolution; None unless the stack has several layers, all without branches.
        rule: Whether the stack keeps the rule of hybrid dilated convolution: ``yes``, ``no``, or a dash without M2.
    """

    rates: str
    kind: str
    paths: np.ndarray
    pixels: int
    gap: int | None
    rule: str

    @property
    def share(self) -> float:
        """Return the share of the pixels in the square that have a path."""
        return self.pixels / self.paths.size


def explain(options: ReceptiveFieldOptions) -> Explanation:
    """Return the fields of a network's layers, and the pixels that stacks of dilated convolutions cover.

    Args:
        options: Options of the tool. Without a network only the stacks are shown; with one, only if they are named.

    Raises:
        UserError: An option is wrong, or the network has no field that can be shown.
    """
    explanation = Explanation({})
    if options.model is not None or options.ckpt_path is not None:
        explanation = _explain_network(options)
    else:
        of_network = ("layers", "image", "data", "data_dir", "weights", "in_channels", "image_size", "num_classes")
        for name in of_network:
            if getattr(options, name) is not None:
                raise UserError(f"--{name} is about a network; give a MODEL, or --ckpt_path FILE, too")
    if options.dilations is not None or not explanation.numbers:
        stacks = _compute_stacks(options.dilations or STACKS)
        explanation.numbers["dilations"] = {stack.rates: _stack_as_json(stack) for stack in stacks}
        explanation.tables.append(_stack_table(stacks))
        explanation.remarks += _stack_remarks(stacks)
        explanation.pictures.append(
            Picture("dilated_coverage", "What dilated stacks cover", COVERAGE_CAPTION, _draw_coverage(stacks))
        )
    return explanation


def _explain_network(options: ReceptiveFieldOptions) -> Explanation:
    """Return the fields of a network's layers."""
    if not 1 <= options.samples <= MOST_SAMPLES:
        raise UserError(f"samples {options.samples} must be from 1 to {MOST_SAMPLES:,}")
    photo = read_photo(options.image)
    fields = _compute_fields(options)
    numbers = {
        "model": fields.name,
        "image_size": list(fields.image_size),
        "inputs": fields.inputs,
        "layers": [_layer_as_json(layer) for layer in fields.layers],
    }
    title = f"Fields of units in the middle of {fields.name}"
    pictures = [Picture("receptive_field", title, FIELDS_CAPTION, _draw_fields(fields, photo))]
    if len(fields.layers) > 1:
        growth = _draw_growth(fields.layers)
        pictures.append(Picture("receptive_field_growth", "How the field grows", GROWTH_CAPTION, growth))
    return Explanation(numbers, [_field_table(fields), _effective_table(fields)], pictures, _remarks(fields))


def _compute_fields(options: ReceptiveFieldOptions) -> _NetworkFields:
    """Compute the analytic, the measured and the effective fields of a network's layers."""
    subject = find_subject(options)
    # Analytic fields of all layers, then of those to show, which are measured as well.
    local = layer_fields(subject.model, subject.image_shape)
    beyond = first_without_field(subject.model, subject.image_shape)
    fields = chosen_fields(local, options.layers, ROWS, beyond)
    measured = measure_fields(subject.model, subject.image_shape, fields)
    # Effective fields, for one or two states of the weights.
    images, inputs = _inputs(subject, fields, options.samples, options.seed)
    # A trained network is compared with a copy that has new random weights; an untrained one keeps its weights.
    start = at_initialisation(subject.model, images, fields, options.seed if subject.trained else None)
    effective = {"at initialisation": effective_fields(start, images, fields, options.seed)}
    if subject.trained:
        effective["trained"] = effective_fields(subject.model, images, fields, options.seed)
    layers = []
    for field in fields:
        by_state = {state: by_layer[field.name] for state, by_layer in effective.items()}
        layers.append(_Layer(field, measured[field.name], by_state))
    # Layers that the user names are all drawn; a selection is thinned out to `PANELS`.
    shown = layers if options.layers is not None else _for_panels(layers)
    height, width = images.shape[2:]
    return _NetworkFields(subject.name, layers, shown, inputs, (height, width), beyond, scales_near_zero(start))


def _inputs(subject: Subject, fields: Sequence[LayerField], samples: int, seed: int) -> tuple[Tensor, str]:
    """Return the images for the effective field, (N, C, H, W), and a description of them.

    They are training images if there is a data set, else noise, large enough for the fields up to `LARGEST_IMAGE`.
    """
    if subject.data is not None:
        subject.data.prepare_data()
        subject.data.setup()
        images = torch.cat([images for images, _ in subject.data.first_training_batches(samples)])
        noun = "images" if len(images) > 1 else "image"
        # With a caveat, the network may have been trained on other images.
        kind = f"{noun} of the training set" if subject.caveat else f"training {noun}"
        return images, f"{len(images)} {kind} of {subject.data.label}"
    channels, *native = subject.image_shape
    sizes = []
    for axis, n in enumerate(native):
        # Room for the largest field, with a margin on each side, since the unit is rarely exactly in the middle.
        needed = ceil(max(field.size[axis] + 2 * field.jump[axis] for field in fields))
        # The image keeps its size if that is enough, or if the field is too large for any image that is used.
        sizes.append(needed if n < needed <= LARGEST_IMAGE else n)
    images = torch.randn(samples, channels, *sizes, generator=torch.Generator().manual_seed(seed))
    noun = "images" if samples > 1 else "image"
    return images, f"{samples} {noun} of Gaussian noise"


def _for_panels(layers: Sequence[_Layer]) -> list[_Layer]:
    """Return at most `PANELS` layers, at even distances from the smallest to the largest field."""
    ordered = sorted(layers, key=lambda layer: layer.field.size)
    places = np.linspace(0, len(ordered) - 1, min(PANELS, len(ordered))).round().astype(int)
    return [ordered[place] for place in dict.fromkeys(places.tolist())]


def _spans(field: LayerField, effective: Effective) -> list[tuple[float, float]]:
    """Return the theoretical field of the unit in the middle as (low, high) in pixels, for rows and for columns."""
    return [field.span(axis, unit) for axis, unit in enumerate(effective.unit)]


def _share(layer: _Layer, state: str) -> float:
    """Return the share of the pixels that a unit can see, inside the image, that belong to its effective field."""
    effective = layer.effective[state]
    # Area of the part of the field inside the image: the product of its lengths along both axes.
    in_sight = 1.0
    for (low, high), n in zip(_spans(layer.field, effective), effective.magnitude.shape, strict=True):
        in_sight *= min(high, n) - max(low, 0)
    return effective.pixels / in_sight


def _is_cut(field: LayerField, effective: Effective) -> bool:
    """Return whether the theoretical field of the unit in the middle reaches beyond the image."""
    spans = _spans(field, effective)
    return any(low < 0 or high > n for (low, high), n in zip(spans, effective.magnitude.shape, strict=True))


def _layer_as_json(layer: _Layer) -> dict[str, Any]:
    """Return the fields of a layer for ``--json``."""
    by_state = {}
    for state, effective in layer.effective.items():
        by_state[state] = {
            "sigma": effective.sigma,
            "centre": effective.centre,
            "gaussian_overlap": effective.overlap,
            "pixels": effective.pixels,
            "share_in_sight": _share(layer, state),
            "cut_by_the_image": _is_cut(layer.field, effective),
        }
    return {
        "layer": layer.field.name,
        "type": layer.field.kind,
        "size": layer.field.size,
        "jump": layer.field.jump,
        "start": layer.field.start,
        "measured_size": layer.measured.size,
        "agrees": layer.measured.agrees,
        "effective": by_state,
    }


def _pair(values: Sequence[float], decimals: int = 0) -> str:
    """Return two numbers as text, such as "3 x 5", or a single number where both look the same."""
    texts = []
    for value in values:
        whole = decimals == 0 or value == int(value)
        texts.append(f"{round(value, decimals):g}" if whole else f"{value:.{decimals}f}")
    if texts[0] == texts[1]:
        return texts[0]
    return " x ".join(texts)


def _field_table(fields: _NetworkFields) -> Table:
    """Return the table of the analytic and measured fields."""
    head = ("Layer", "Type", "Field", "Jump", "Start", "Measured")
    rows = []
    for field, measured, _ in fields.layers:
        size = _pair(measured.size)
        if not measured.agrees:
            size += " (differs)"
        rows.append((field.label, field.kind, _pair(field.size, 1), _pair(field.jump), _pair(field.start, 1), size))
    return Table(f"Receptive fields of {fields.name} in pixels", head, rows)


def _effective_table(fields: _NetworkFields) -> Table:
    """Return the table of the effective fields, with a row for each layer and state of the weights."""
    head = ("Layer", "Weights", "Sigma", "Share in sight", "Size", "In common with a Gaussian")
    rows = []
    for layer in fields.layers:
        for state, effective in layer.effective.items():
            mark = "*" if _is_cut(layer.field, effective) else ""
            sigma, share = f"{_pair(effective.sigma, 1)}{mark}", f"{_share(layer, state):.1%}{mark}"
            size, overlap = f"{effective.size:.1f}", f"{effective.overlap:.0%}"
            rows.append((layer.field.label, state, sigma, share, size, overlap))
    height, width = fields.image_size
    title = f"Effective fields of {fields.name} in pixels, for {fields.inputs} ({height}x{width} pixels)"
    return Table(title, head, rows)


def _remarks(fields: _NetworkFields) -> list[str]:
    """Return sentences on the agreement of the fields, on the columns of the tables, and on what is left out."""
    layers = fields.layers
    agreeing = sum(layer.measured.agrees for layer in layers)
    remarks = [
        f"Analytic and measured field are the same in {agreeing} of {len(layers)} layers, in size and place.",
        "Sigma is the standard deviation of the gradient's magnitude; the share is that of pixels in sight with more "
        "than 4.55 % of its peak (Luo et al. 2016).",
        SIZE,
        "In common with a Gaussian: the overlap of the magnitude with the Gaussian of the same moments; 100% is a "
        "perfect match.",
    ]
    if any(_is_cut(layer.field, effective) for layer in layers for effective in layer.effective.values()):
        remarks.append(
            "* The field, and with it the frame, reaches beyond the image: sigma and share are of the part inside."
        )
    if fields.beyond:
        remarks.append(fields.beyond)
    if fields.near_zero:
        remarks.append(
            f"At initialisation {fields.near_zero[0]} is 0 or next to it, as are {len(fields.near_zero) - 1} more "
            "scales of channels: what they scale, as a rule a residual branch, adds next to nothing before training, "
            "so the effective fields of blocks are nearly those of their shortcuts."
        )
    return remarks


def _draw_fields(fields: _NetworkFields, photo: np.ndarray) -> Figure:
    """Return a figure with a panel of both fields for every shown layer, and a row for every state of the weights."""
    layers, (height, width) = fields.shown, fields.image_size
    # Small images are drawn with more pixels of the photo than the network would get.
    finer = max(1, FINE // width)
    image = image_for((1, finer * height, finer * width), photo)[0, 0].numpy()
    states = list(layers[0].effective)
    figure, axes = grid(len(states) * len(layers), len(layers), cell=2.6, ratio=1.02)
    for ax, (state, layer) in zip(axes, product(states, layers), strict=True):
        effective = layer.effective[state]
        _draw_field(ax, image, layer.field, effective)
        title = f"{layer.field.label}\nfield {_pair(layer.field.size, 1)}, σ {_pair(effective.sigma, 1)}"  # noqa: RUF001
        if len(states) > 1:
            title += f", {state}"
        ax.set_title(title, fontsize=8.5, pad=3)
    return figure


def _draw_field(ax: Axes, image: np.ndarray, field: LayerField, effective: Effective) -> None:
    """Draw the image, the gradient, the frame of the theoretical field, and the ellipse of the effective one."""
    magnitude = effective.magnitude
    height, width = magnitude.shape
    # The photo may have more pixels than the gradient; the extent puts both on the gradient's pixel coordinates.
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    # Levels in the middle of the grey scale let the white frame and the yellow gradient stand out.
    ax.imshow(0.15 + 0.6 * image, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
    # Opacity 1 is the mean of the strongest hundredth of the pixels in the effective field.
    strong = np.sort(magnitude, axis=None)[-max(1, effective.pixels // 100) :].mean()
    # One colour in red, green and blue; the fourth channel, its opacity, is the gradient.
    heat = np.zeros((height, width, 4))
    heat[..., :3], heat[..., 3] = to_rgb("#FFB000"), np.minimum(magnitude / strong, 1)
    ax.imshow(heat, interpolation="nearest")
    (top, bottom), (left, right) = _spans(field, effective)
    outline(ax, (top, left), (bottom, right), "white")
    # Fields count the first pixel from 0 to 1, matplotlib from -0.5 to 0.5. An ellipse takes full axes, so a radius of
    # two standard deviations is an axis of four.
    (row, column), (tall, wide) = effective.centre, effective.sigma
    ellipse = Ellipse((column - 0.5, row - 0.5), 4 * wide, 4 * tall, fill=False, linestyle=(0, (3, 2)), linewidth=1.3)
    ellipse.set_edgecolor(PALETTE[5])
    ax.add_patch(ellipse)
    ax.set(xlim=extent[:2], ylim=extent[2:], anchor="S")  # leaves room for a title of two lines


def _draw_growth(layers: Sequence[_Layer]) -> Figure:
    """Return a figure of the fields' sizes by layer, and of the last layer's gradient, with its Gaussian."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    growth, profile = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _draw_sizes(growth, layers)
    _draw_profile(profile, layers[-1])
    for ax in (growth, profile):
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False, fontsize=8.5)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e6e6e6", linewidth=0.7)
        ax.set_axisbelow(True)
    return figure


def _draw_sizes(ax: Axes, layers: Sequence[_Layer]) -> None:
    """Draw the sizes of the theoretical and of the effective fields against the layers."""
    places = list(range(len(layers)))
    # A field that is not square is drawn by its longer side.
    ax.plot(places, [max(layer.field.size) for layer in layers], color="#333333", marker="s", label="theoretical")
    for colour, state in zip(PALETTE, layers[0].effective, strict=False):
        sizes = [layer.effective[state].size for layer in layers]
        ax.plot(places, sizes, color=colour, marker="o", label=f"effective, {state}")
    ax.set_xticks(places, [layer.field.label for layer in layers], rotation=45, ha="right", fontsize=7.5)
    ax.set_ylabel("size of the field in pixels")


def _draw_profile(ax: Axes, layer: _Layer) -> None:
    """Draw the gradient of a layer along the width of the image, summed over rows, and the Gaussian of its moments."""
    for colour, (state, effective) in zip(PALETTE, layer.effective.items(), strict=False):
        # From (H, W) to (W,): what remains is the profile along the width.
        shares = effective.magnitude.sum(0)
        distance = np.arange(len(shares)) + 0.5 - effective.centre[1]
        # A gradient in a single column has no width at all.
        sigma = max(effective.sigma[1], 1e-6)
        bell = np.exp(-(distance**2) / (2 * sigma**2))
        # Both curves have a sum of 1, so their heights compare.
        ax.plot(distance, shares / shares.sum(), color=colour, linewidth=1.6, label=state)
        ax.plot(distance, bell / bell.sum(), color=colour, linewidth=1.2, linestyle="--", label="Gaussian")
    # The ends of the theoretical field, seen from the centre of the last state.
    for side in _spans(layer.field, effective)[1]:
        ax.axvline(side - effective.centre[1], color="#333333", linewidth=0.9, linestyle=":")
    ax.set_xlabel("distance from the gradient's centre in pixels")
    ax.set_ylabel("share of the gradient's magnitude")
    ax.set_title(layer.field.label, loc="left", fontsize=10)


def _compute_stacks(text: str) -> list[_Stack]:
    """Compute what stacks of dilated convolutions cover, from their rates, separated by spaces (see `parse_rates`)."""
    texts = text.split()
    if not texts:
        raise UserError(f"--dilations is empty; write for example --dilations '{STACKS}'")
    stacks = []
    for rates in dict.fromkeys(texts):
        stack = parse_rates(rates)
        paths = coverage(stack)
        gap: int | None = None
        rule = "-"
        # The rule of hybrid dilated convolution is about layers in series, without parallel branches.
        if len(stack) > 1 and all(len(step) == 1 for step in stack):
            series = [step[0] for step in stack]
            gap = largest_gap(series)
            rule = "yes" if keeps_hdc_rule(series) else "no"
        stacks.append(_Stack(rates, stack_in_words(stack), paths, int((paths > 0).sum()), gap, rule))
    return stacks


def _stack_as_json(stack: _Stack) -> dict[str, Any]:
    """Return the coverage of a stack for ``--json``."""
    size, share = len(stack.paths), stack.share
    return {"kind": stack.kind, "size": size, "pixels": stack.pixels, "share": share, "hdc_m2": stack.gap}


def _stack_table(stacks: Sequence[_Stack]) -> Table:
    """Return the table of the pixels that the stacks cover."""
    head = ("Rates", "Kind", "Field", "Pixels with a path", "Share", "Most paths", "HDC: M2", "HDC rule kept")
    rows = []
    for stack in stacks:
        covered = f"{stack.pixels:,} of {stack.paths.size:,}"
        gap = "-" if stack.gap is None else str(stack.gap)
        size, most = str(len(stack.paths)), f"{stack.paths.max():,}"
        rows.append((stack.rates, stack.kind, size, covered, f"{stack.share:.1%}", most, gap, stack.rule))
    return Table("What stacks of dilated 3x3 convolutions cover", head, rows)


def _stack_remarks(stacks: Sequence[_Stack]) -> list[str]:
    """Return the rule of hybrid dilated convolution, and what the kinds of the stacks mean."""
    remarks = [HDC_RULE]
    kinds = " and ".join(stack.kind for stack in stacks)
    if "gridding" in kinds:
        remarks.append(GRIDDING)
    # The words "not HDC" contain "HDC", so they are taken out first.
    if "HDC" in kinds.replace("not HDC", ""):
        remarks.append(HDC)
    if "ASPP" in kinds:
        remarks.append(ASPP)
    return remarks


def _draw_coverage(stacks: Sequence[_Stack]) -> Figure:
    """Return a figure with a panel for every stack, titled by its kind."""
    # Four stacks fit into one row; with three columns the last of them would have a row to itself.
    columns = 4 if len(stacks) == 4 else 3
    figure, axes = grid(len(stacks), columns, cell=2.5, ratio=1.1)
    for ax, stack in zip(axes, stacks, strict=True):
        size, most = len(stack.paths), int(stack.paths.max())
        # Masked pixels are not drawn, so gaps stay white; a logarithmic scale has no colour for zero.
        covered = np.ma.masked_equal(stack.paths, 0)
        ax.imshow(covered, cmap="viridis_r", norm=LogNorm(1, max(most, 2)), interpolation="nearest")
        ax.set_axis_on()
        ax.set(xticks=[], yticks=[], anchor="S")  # leaves room for a title of three lines
        ax.set_title(f"{stack.kind}\n{stack.rates}\n{stack.share:.1%} of {size}×{size}", fontsize=8.5, pad=3)  # noqa: RUF001
        ax.spines[:].set_color("#999999")
    return figure
