"""The tool ``feature-maps``: feature maps of an image, Grad-CAM with a sanity check, and patches that excite channels.

This module chooses the layers and the image, and draws the feature maps. Grad-CAM is in `cnnbench.explain.grad_cam`,
the patches are in `cnnbench.explain.patches`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnbench.counting.complexity import receptive_fields
from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, Table, activations
from cnnbench.explain.activations import LayerMap, record
from cnnbench.explain.grad_cam import show_grad_cam
from cnnbench.explain.images import Shown, find_image
from cnnbench.explain.networks import Subject, find_subject
from cnnbench.explain.options import FeatureMapsOptions
from cnnbench.explain.patches import field_text, show_patches, window
from cnnbench.plots.drawing import PALETTE
from cnnbench.plots.grids import grid, outline, show

CHANNELS, COLUMNS = 8, 4
"""Largest number of channels of a layer in the picture of feature maps, and number of channels in a row."""

Fields = Mapping[str, Any]
"""Receptive fields by name of the layer, as `cnnbench.counting.complexity.receptive_fields` returns them."""


def explain(options: FeatureMapsOptions) -> Explanation:
    """Return feature maps, Grad-CAM and patches of a network.

    Raises:
        UserError: An option is wrong, or the network, the image or the data cannot be used.
    """
    subject = find_subject(options)
    model, shape = subject.model, subject.image_shape
    asked = [name.strip() for name in options.layers.split(",")] if options.layers else []
    layers = list(dict.fromkeys(asked)) or activations.stages(model, shape)
    cam_layer = options.cam_layer or layers[-1]
    activations.check_layers(model, shape, [*layers, cam_layer])
    shown = find_image(options.image, options.index, subject)
    explanation = Explanation({"model": subject.name, "trained": subject.trained, "image": shown.title})
    if subject.caveat and shown.label is not None:
        explanation.remarks.append(subject.caveat)
    fields: Fields = {}
    try:
        fields = receptive_fields(model, shape)
    except UserError as error:
        explanation.remarks.append(f"Receptive fields are not known, so that there are no patches: {error}.")
    _show_maps(subject, shown, layers, options.before_activation, fields, explanation)
    show_grad_cam(subject, shown, cam_layer, options.seed, explanation)
    if options.patches and subject.data is None:
        explanation.remarks.append("Patches that excite a channel most need a data set; name one with --data.")
    elif options.patches and subject.data is not None and fields:
        # Patches are shown for three layers: the first, the middle and the last one.
        chosen = list(dict.fromkeys(layers[i] for i in (0, (len(layers) - 1) // 2, len(layers) - 1)))
        show_patches(subject, subject.data, chosen, options.images, options.patches, fields, explanation)
    return explanation


def _show_maps(
    subject: Subject, shown: Shown, layers: Sequence[str], before: bool, fields: Fields, explanation: Explanation
) -> None:
    """Add the table and the picture of the layers' feature maps to an explanation."""
    found = record(subject.model, shown.x, layers, before)
    rows, numbers, chosen = [], [], {}
    for name in layers:
        maps, activation = found[name]
        variance = maps[0].var((1, 2), correction=0)
        alive = int((variance > 0).sum())
        zeros = float((maps == 0).float().mean())
        order = variance.sort(descending=True, stable=True).indices[: min(CHANNELS, alive)].tolist()
        chosen[name] = order
        size = "x".join(map(str, maps.shape[1:]))
        state = _state(activation, before)
        rows.append((name, size, state, field_text(fields.get(name)), f"{zeros:.0%}", f"{maps.shape[1] - alive}"))
        numbers.append(
            {
                "layer": name,
                "shape": list(maps.shape[1:]),
                "activation": activation,
                "before_activation": before and activation is not None,
                "receptive_field": fields.get(name),
                "zeros": zeros,
                "constant_channels": maps.shape[1] - alive,
                "shown_channels": order,
            }
        )
    explanation.numbers["layers"] = numbers
    head = ("Layer", "Maps", "Shown", "Sees (pixels)", "Zeros", "Constant maps")
    explanation.tables.append(Table(f"{subject.description}: maps of {shown.title}", head, rows))
    caption = (
        f"Maps of {shown.title} in {subject.description}, layer by layer: the channels, {CHANNELS} at most, whose "
        "maps have the largest variance, each drawn from its own lowest value (dark) to its own highest (bright). "
        "The frame in the image is what one unit in the middle of the map sees"
    )
    caption += "; further down maps say less about where and more about what." if subject.trained else "."
    figure = _draw_maps(shown, found, chosen, before, fields)
    explanation.pictures.append(Picture("feature-maps", f"{subject.description}: feature maps", caption, figure))


def _state(activation: str | None, before: bool) -> str:
    """Return a label that says whether maps are shown before or after an activation function, and which one."""
    if activation is None:
        return "no activation"
    return f"{'before' if before else 'after'} {activation}"


def _draw_maps(
    shown: Shown, found: Mapping[str, LayerMap], chosen: Mapping[str, Sequence[int]], before: bool, fields: Fields
) -> Figure:
    """Return a figure with a group of rows for every layer: the image on the left, feature maps beside it."""
    most = max(1, *(len(order) for order in chosen.values()))
    columns, rows = 1 + min(most, COLUMNS), -(-most // COLUMNS)
    figure, axes = grid(len(found) * rows * columns, columns, cell=0.95)
    figure.set_figwidth(figure.get_figwidth() + 0.9)  # room for the labels on the left
    for row, (name, (maps, activation)) in enumerate(found.items()):
        own = axes[row * rows * columns : (row + 1) * rows * columns]
        # The first column of a layer's rows holds the image; all other cells are for feature maps.
        first, panels = own[0], [ax for place, ax in enumerate(own) if place % columns]
        show(first, shown.pixels, "" if row else shown.title, "unit")
        size = "x".join(map(str, maps.shape[1:]))
        text = f"{name}\n{size}\n{_state(activation, before)}\nsees {field_text(fields.get(name))}"
        first.text(-0.1, 0.5, text, transform=first.transAxes, ha="right", va="center", fontsize=8)
        _frame(first, shown.pixels, fields.get(name), (maps.shape[2] // 2, maps.shape[3] // 2))
        for ax, channel in zip(panels, chosen[name], strict=False):
            show(ax, maps[0, channel].numpy(), f"channel {channel}", "own")
    return figure


def _frame(ax: Axes, pixels: np.ndarray, field: Any, place: tuple[int, int]) -> None:
    """Outline the part of the image that a unit sees; draw nothing if the receptive field is not known."""
    if field is None:
        return
    ranges = window(field, place) if isinstance(field, dict) else tuple((0, n) for n in pixels.shape[:2])
    low = [max(0, seen[0]) for seen in ranges]
    high = [min(n, seen[1]) for seen, n in zip(ranges, pixels.shape, strict=False)]
    outline(ax, low, high, PALETTE[1], clip_on=False)
