"""The tool ``receptive-field``: the pixels that a unit can see, and those that it attends to.

For the layers of a network it shows the theoretical field, the measured field and the effective field; for stacks of
dilated convolutions, the pixels that they cover. The fields are computed in `cnnbench.explain.effective_field`.

The course's function ``compute_receptive_field`` goes back through the layers with ``stride * r + (k - 1)``. This step
is too large wherever a stride exceeds 1: for the course's own example of 3x3 convolutions and two poolings it returns
19 pixels. The correct step is ``stride * r + (k - stride)``, as in the formula of the course's text. With it the
example sees 16 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class _Layer(NamedTuple):
    """Analytic and measured field of a layer, and its effective fields by state of the weights."""

    field: LayerField
    measured: Measured
    effective: Mapping[str, Effective]


def explain(options: ReceptiveFieldOptions) -> Explanation:
    """Return the fields of a network's layers, and the pixels that stacks of dilated convolutions cover.

    Args:
        options: Options of the tool. Without a network only the stacks are shown; with one, only if they are named.

    Raises:
        UserError: An option is wrong, or the network has no field that can be shown.
    """
    explanation = Explanation({})
    if options.model is not None or options.ckpt_path is not None:
        _explain_network(options, explanation)
    else:
        of_network = ("layers", "image", "data", "data_dir", "weights", "in_channels", "image_size", "num_classes")
        for name in of_network:
            if getattr(options, name) is not None:
                raise UserError(f"--{name} is about a network; give a MODEL, or --ckpt_path FILE, too")
    if options.dilations is not None or not explanation.numbers:
        _explain_stacks(options.dilations or STACKS, explanation)
    return explanation


def _explain_network(options: ReceptiveFieldOptions, explanation: Explanation) -> None:
    """Add the fields of a network's layers to an explanation."""
    if not 1 <= options.samples <= MOST_SAMPLES:
        raise UserError(f"samples {options.samples} must be from 1 to {MOST_SAMPLES:,}")
    photo = read_photo(options.image)
    subject = find_subject(options)
    local = layer_fields(subject.model, subject.image_shape)
    beyond = first_without_field(subject.model, subject.image_shape)
    fields = chosen_fields(local, options.layers, ROWS, beyond)
    measured = measure_fields(subject.model, subject.image_shape, fields)
    images, inputs = _inputs(subject, fields, options.samples, options.seed)
    # A trained network is compared with a copy that has new random weights; an untrained one keeps its weights.
    states = {"trained": subject.model} if subject.trained else {}
    start = at_initialisation(subject.model, images, fields, options.seed if subject.trained else None)
    states = {"at initialisation": start, **states}
    effective = {name: effective_fields(model, images, fields, options.seed) for name, model in states.items()}
    layers = [_Layer(f, measured[f.name], {name: found[f.name] for name, found in effective.items()}) for f in fields]
    explanation.numbers |= {
        "model": subject.name,
        "image_size": list(images.shape[2:]),
        "inputs": inputs,
        "layers": [_as_json(layer) for layer in layers],
    }
    explanation.tables.append(_table(subject.name, layers, inputs))
    explanation.remarks += [*_remarks(layers), *([beyond] if beyond else [])]
    if small := scales_near_zero(start):
        explanation.remarks.append(
            f"At initialisation {small[0]} is 0 or next to it, as are {len(small) - 1} more scales of channels: what "
            "they scale, as a rule a residual branch, adds next to nothing before training, so the effective fields of "
            "blocks are nearly those of their shortcuts."
        )
    finer = max(1, FINE // images.shape[3])
    picture = image_for((1, finer * images.shape[2], finer * images.shape[3]), photo)[0, 0].numpy()
    shown = _for_panels(layers) if options.layers is None else layers
    title = f"Fields of units in the middle of {subject.name}"
    explanation.pictures.append(
        Picture("receptive_field", title, _caption(shown, inputs), _draw_fields(picture, shown))
    )
    if len(layers) > 1:
        explanation.pictures.append(
            Picture("receptive_field_growth", "How the field grows", _growth_caption(layers), _draw_growth(layers))
        )


def _inputs(subject: Subject, fields: Sequence[LayerField], samples: int, seed: int) -> tuple[Tensor, str]:
    """Return the images for the effective field, (N, C, H, W), and a description of them.

    They are training images if there is a data set, else noise, large enough for the fields up to `LARGEST_IMAGE`.
    """
    if subject.data is not None:
        subject.data.prepare_data()
        subject.data.setup()
        images = next(iter(subject.data.first_training_batches(samples)))[0]
        kind = "{} of the training set of" if subject.caveat else "training {} of"
        return images, f"{len(images)} {kind.format('image' + 's' * (len(images) > 1))} {subject.data.label}"
    channels, *native = subject.image_shape
    sizes = []
    for axis, n in enumerate(native):
        wanted = ceil(max(f.size[axis] + 2 * f.jump[axis] for f in fields))
        sizes.append(n if wanted <= n or wanted > LARGEST_IMAGE else wanted)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        samples, channels, *sizes, generator=generator
    ), f"{samples} image{'s' * (samples > 1)} of Gaussian noise"


def _as_json(layer: _Layer) -> dict[str, Any]:
    return {
        "layer": layer.field.name,
        "type": layer.field.kind,
        "size": layer.field.size,
        "jump": layer.field.jump,
        "start": layer.field.start,
        "measured_size": layer.measured.size,
        "agrees": layer.measured.agrees,
        "effective": {
            name: {
                "sigma": found.sigma,
                "centre": found.centre,
                "gaussian_overlap": found.overlap,
                "pixels": found.pixels,
                "share_in_sight": _share(layer, name),
                "cut_by_the_image": _is_cut(layer.field, found),
            }
            for name, found in layer.effective.items()
        },
    }


def _share(layer: _Layer, state: str) -> float:
    """Return the share of the pixels that a unit can see, inside the image, that belong to its effective field."""
    found, seen = layer.effective[state], 1.0
    for (low, high), n in zip(_spans(layer.field, found), found.magnitude.shape, strict=True):
        seen *= min(high, n) - max(low, 0)
    return found.pixels / seen


def _is_cut(field: LayerField, found: Effective) -> bool:
    """Return whether the theoretical field of the unit in the middle reaches beyond the image."""
    spans = _spans(field, found)
    return any(low < 0 or high > n for (low, high), n in zip(spans, found.magnitude.shape, strict=True))


def _spans(field: LayerField, found: Effective) -> list[tuple[float, float]]:
    """Return the theoretical field of the unit in the middle as (low, high) in pixels, for rows and for columns."""
    return [field.span(axis, unit) for axis, unit in enumerate(found.unit)]


def _pair(values: Sequence[float], decimals: int = 0) -> str:
    """Return two numbers as text, such as "3 x 5", or a single number where both look the same."""
    texts = [f"{round(v, decimals):g}" if decimals == 0 or v == int(v) else f"{v:.{decimals}f}" for v in values]
    return texts[0] if texts[0] == texts[1] else " x ".join(texts)


def _table(name: str, layers: Sequence[_Layer], inputs: str) -> Table:
    head = ["Layer", "Type", "Field", "Jump", "Start", "Measured"]
    states = list(layers[0].effective)
    for state in states:
        short = "" if len(states) == 1 else f", {state}"
        head += [f"Sigma{short}", f"Share in sight{short}"]
    rows = []
    for layer in layers:
        field = layer.field
        row = [field.label, field.kind, _pair(field.size, 1), _pair(field.jump), _pair(field.start, 1)]
        row.append(_pair(layer.measured.size) + ("" if layer.measured.agrees else " (differs)"))
        for state in states:
            mark = "*" if _is_cut(layer.field, layer.effective[state]) else ""
            row += [_pair(layer.effective[state].sigma, 1) + mark, f"{_share(layer, state):.1%}{mark}"]
        rows.append(row)
    return Table(f"Receptive fields of {name} in pixels; effective ones by {inputs}", head, rows)


def _remarks(layers: Sequence[_Layer]) -> list[str]:
    agreeing = sum(layer.measured.agrees for layer in layers)
    cut = any(_is_cut(layer.field, found) for layer in layers for found in layer.effective.values())
    return [
        f"Analytic and measured field are the same in {agreeing} of {len(layers)} layers, in size and place.",
        "Sigma is the standard deviation of the gradient's magnitude; the share is that of pixels in sight with more "
        "than 4.55 % of its peak (Luo et al. 2016).",
        *["* The field reaches beyond the image: sigma and share are of the part inside."] * cut,
    ]


def _for_panels(layers: Sequence[_Layer]) -> list[_Layer]:
    """Return at most `PANELS` layers, at even distances from the smallest to the largest field."""
    ordered = sorted(layers, key=lambda layer: layer.field.size)
    places = np.linspace(0, len(ordered) - 1, min(PANELS, len(ordered))).round().astype(int)
    return [ordered[place] for place in dict.fromkeys(places.tolist())]


def _caption(layers: Sequence[_Layer], inputs: str) -> str:
    last, state = layers[-1], list(layers[-1].effective)[-1]
    found = last.effective[state]
    height, width = found.magnitude.shape
    beyond = [layer.field.label for layer in layers if _is_cut(layer.field, found)]
    outside = f" The field of {', '.join(beyond)} reaches beyond the image, and with it the frame." if beyond else ""
    return (
        f"A unit in the middle of an image of {height}x{width} pixels can see what is inside the white frame. Its "
        "gradient is drawn in yellow, opaque where it is as large as its strongest hundredth; the dashed ellipse is "
        f"two standard deviations of the Gaussian with the same moments ({inputs}, {state}). In {last.field.label} "
        f"{_share(last, state):.1%} of the pixels in sight have more than 4.55 % of the peak; sigma is "
        f"{_pair(found.sigma, 1)} pixels.{outside}"
    )


def _draw_fields(image: np.ndarray, layers: Sequence[_Layer]) -> Figure:
    """Return a figure with a panel of both fields for every layer, and a row for every state of the weights."""
    states = list(layers[0].effective)
    figure, axes = grid(len(states) * len(layers), len(layers), cell=2.6, ratio=1.02)
    for ax, (state, layer) in zip(axes, ((s, layer) for s in states for layer in layers), strict=True):
        _draw_field(ax, image, layer, layer.effective[state])
        text = f"field {_pair(layer.field.size, 1)}, σ {_pair(layer.effective[state].sigma, 1)}"  # noqa: RUF001
        ax.set_title(f"{layer.field.label}\n{text}" + f", {state}" * (len(states) > 1), fontsize=8.5, pad=3)
    return figure


def _draw_field(ax: Axes, image: np.ndarray, layer: _Layer, found: Effective) -> None:
    """Draw the image, the gradient, the frame of the theoretical field, and the ellipse of the effective one."""
    spans, (height, width) = _spans(layer.field, found), found.magnitude.shape
    # The photo may have more pixels than the gradient; the extent puts both on the gradient's pixel coordinates.
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(0.15 + 0.6 * image, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
    # Opacity 1 is the mean of the strongest hundredth of the pixels in the effective field.
    strong = np.sort(found.magnitude, axis=None)[-max(1, found.pixels // 100) :].mean()
    heat = np.zeros((*found.magnitude.shape, 4))
    heat[..., :3], heat[..., 3] = to_rgb("#FFB000"), np.minimum(found.magnitude / strong, 1)
    ax.imshow(heat, interpolation="nearest")
    outline(ax, [s[0] for s in spans], [s[1] for s in spans], "white")
    # Fields count the first pixel from 0 to 1, matplotlib from -0.5 to 0.5. An ellipse takes full axes, so a radius of
    # two standard deviations is an axis of four.
    middle = found.centre[1] - 0.5, found.centre[0] - 0.5
    ellipse = Ellipse(middle, 4 * found.sigma[1], 4 * found.sigma[0], fill=False, linestyle=(0, (3, 2)), linewidth=1.3)
    ellipse.set_edgecolor(PALETTE[5])
    ax.add_patch(ellipse)
    ax.set(xlim=extent[:2], ylim=extent[2:], anchor="S")  # leaves room for a title of two lines


def _growth_caption(layers: Sequence[_Layer]) -> str:
    first, last = layers[0], layers[-1]
    state = list(last.effective)[-1]
    before, after = first.effective[state], last.effective[state]
    return (
        f"From {first.field.label} to {last.field.label} the theoretical field grows from {_pair(first.field.size, 1)} "
        f"to {_pair(last.field.size, 1)} pixels, and the effective one ({state}) from {before.size:.1f} to "
        f"{after.size:.1f}: the side of a square with as many pixels as have more than 4.55 % of the peak. On the "
        f"right the gradient of {last.field.label}, summed over rows, and the ends of its field (dotted); the map and "
        f"the Gaussian of its moments have {after.overlap:.0%} in common."
    )


def _draw_growth(layers: Sequence[_Layer]) -> Figure:
    """Return a figure of the fields' sizes by layer, and of the last layer's gradient, with its Gaussian."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    growth, profile = figure.subplots(1, 2, width_ratios=(1.35, 1))
    places = range(len(layers))
    growth.plot(places, [max(layer.field.size) for layer in layers], color="#333333", marker="s", label="theoretical")
    for index, state in enumerate(layers[0].effective):
        sizes = [layer.effective[state].size for layer in layers]
        growth.plot(places, sizes, color=PALETTE[index], marker="o", label=f"effective, {state}")
        # Profile along the width: the gradient of the last layer summed over rows, and the Gaussian of its moments.
        shares = layers[-1].effective[state].magnitude.sum(0)
        found = layers[-1].effective[state]
        at = np.arange(len(shares)) + 0.5 - found.centre[1]
        bell = np.exp(-(at**2) / (2 * found.sigma[1] ** 2))
        profile.plot(at, shares / shares.sum(), color=PALETTE[index], linewidth=1.6, label=state)
        profile.plot(at, bell / bell.sum(), color=PALETTE[index], linewidth=1.2, linestyle="--", label="Gaussian")
    growth.set_xticks(list(places), [layer.field.label for layer in layers], rotation=45, ha="right", fontsize=7.5)
    growth.set_ylabel("size of the field in pixels")
    growth.set_ylim(bottom=0)
    for side in _spans(layers[-1].field, found)[1]:
        profile.axvline(side - found.centre[1], color="#333333", linewidth=0.9, linestyle=":")
    profile.set_xlabel("distance from the gradient's centre in pixels")
    profile.set_ylabel("share of the gradient's magnitude")
    profile.set_ylim(bottom=0)
    profile.set_title(layers[-1].field.label, loc="left", fontsize=10)
    for ax in (growth, profile):
        ax.legend(frameon=False, fontsize=8.5)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e6e6e6", linewidth=0.7)
        ax.set_axisbelow(True)
    return figure


def _explain_stacks(text: str, explanation: Explanation) -> None:
    """Add the coverage of stacks of dilated convolutions to an explanation.

    Args:
        text: Stacks, separated by spaces; see `cnnbench.explain.effective_field.parse_rates`.
        explanation: Explanation to extend.

    Raises:
        UserError: There is no stack, or one is not written as rates.
    """
    texts = text.split()
    if not texts:
        raise UserError(f"--dilations is empty; write for example --dilations '{STACKS}'")
    stacks = {name: parse_rates(name) for name in dict.fromkeys(texts)}
    maps = {name: coverage(stack) for name, stack in stacks.items()}
    words = {name: stack_in_words(stack) for name, stack in stacks.items()}
    rows, numbers = [], {}
    for name, paths in maps.items():
        # The rule of hybrid dilated convolution is about layers in series, without parallel branches.
        stack = [step[0] for step in stacks[name]]
        plain = len(stack) > 1 and all(len(step) == 1 for step in stacks[name])
        gap = largest_gap(stack) if plain else None
        rule = "-" if gap is None else "yes" if keeps_hdc_rule(stack) else "no"
        seen = int((paths > 0).sum())
        numbers[name] = {
            "kind": words[name],
            "size": len(paths),
            "pixels": seen,
            "share": seen / paths.size,
            "hdc_m2": gap,
        }
        rows.append(
            (
                name,
                words[name],
                str(len(paths)),
                f"{seen:,} of {paths.size:,}",
                f"{seen / paths.size:.1%}",
                f"{paths.max():,}",
                "-" if gap is None else str(gap),
                rule,
            )
        )
    head = ("Rates", "Kind", "Field", "Pixels with a path", "Share", "Most paths", "HDC: M2", "HDC rule kept")
    explanation.numbers["dilations"] = numbers
    explanation.tables.append(Table("What stacks of dilated 3x3 convolutions cover", head, rows))
    explanation.remarks.append(
        "The rule of hybrid dilated convolution (Wang et al. 2018, 1702.08502): the first rate is 1, the gap M2 is at "
        "most the kernel size, 3, and the rates have no common factor. It is enough for a square without gaps, and not "
        "necessary."
    )
    explanation.pictures.append(
        Picture(
            "dilated_coverage",
            "What dilated stacks cover",
            _coverage_caption(numbers),
            _draw_coverage(maps, words),
        )
    )


def _coverage_caption(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a caption with the share of pixels that each stack covers, and the meaning of the kinds of stacks."""
    kinds = " and ".join(found["kind"] for found in numbers.values())
    shares = "; ".join(f"{found['kind']} ({name}) {found['share']:.1%}" for name, found in numbers.items())
    caption = (
        "How many paths lead from each pixel to the unit in the middle, from yellow, one, to dark, most, on a "
        "logarithmic scale for each stack by itself; white pixels have none. Pixels with a path, of the square that "
        f"the rates span: {shares}."
    )
    if "gridding" in kinds:
        caption += (
            " Gridding: rates with a common factor leave a grid of gaps, however many layers of such rates there are."
        )
    if "HDC" in kinds.replace("not HDC", ""):
        caption += " HDC, hybrid dilated convolution, has rates in series that fill each other's gaps."
    if "ASPP" in kinds:
        caption += (
            " ASPP, atrous spatial pyramid pooling (Chen et al. 2018, 1606.00915), adds layers of different rates that "
            "run in parallel, so they do not fill each other's gaps; layers before it can."
        )
    return caption


def _draw_coverage(maps: Mapping[str, np.ndarray], words: Mapping[str, str]) -> Figure:
    """Return a figure with a panel for every stack, titled by its kind."""
    figure, axes = grid(len(maps), min(3, len(maps)) if len(maps) != 4 else 4, cell=2.5, ratio=1.1)
    for ax, (name, paths) in zip(axes, maps.items(), strict=True):
        seen = np.ma.masked_equal(paths, 0)
        ax.imshow(seen, cmap="viridis_r", norm=LogNorm(1, max(int(paths.max()), 2)), interpolation="nearest")
        ax.set_axis_on()
        ax.set(xticks=[], yticks=[], anchor="S")  # leaves room for a title of three lines
        share = (paths > 0).mean()
        ax.set_title(f"{words[name]}\n{name}\n{share:.1%} of {len(paths)}×{len(paths)}", fontsize=8.5, pad=3)  # noqa: RUF001
        ax.spines[:].set_color("#999999")
    return figure
