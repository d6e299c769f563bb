"""The tool ``feature-maps``: feature maps of an image, Grad-CAM with a sanity check, and patches that excite channels.

This module chooses the layers and the image, and draws the feature maps. Grad-CAM is in `cnnbench.explain.grad_cam`,
the patches are in `cnnbench.explain.patches`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnnbench.counting.complexity import receptive_fields
from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.activations import check_layers, record, stages
from cnnbench.explain.grad_cam import show_grad_cam
from cnnbench.explain.images import Shown, find_image
from cnnbench.explain.networks import Subject, find_subject
from cnnbench.explain.options import FeatureMapsOptions
from cnnbench.explain.patches import field_text, show_patches, window
from cnnbench.plots.drawing import PALETTE
from cnnbench.plots.grids import grid, outline, show

CHANNELS, COLUMNS = 8, 4
"""Largest number of channels of a layer in the picture of feature maps, and number of channels in a row."""
CAPTION = (
    f"Maps of the image, layer by layer: the channels, {CHANNELS} at most, whose maps have the largest variance, each "
    "drawn from its own lowest value (dark) to its own highest (bright). The frame in the image is what one unit in "
    "the middle of the map sees. In a trained network, maps further down say less about where and more about what."
)

Fields = Mapping[str, Any]
"""Receptive fields by name of the layer, as `cnnbench.counting.complexity.receptive_fields` returns them."""


class _Layer(NamedTuple):
    """Feature maps of one layer for the image.

    Attributes:
        name: Name of the layer.
        maps: Feature maps, (C, H, W).
        activation: Name of the activation function at the end of the layer; None if it ends with another operator.
        before: Whether the maps are the input of this activation function.
        field: Receptive field of the layer; None if it is not known.
        zeros: Share of zeros in the maps.
        constant: Number of maps with the same value everywhere.
        shown: Indices of the channels in the picture, the one with the largest variance first.
    """

    name: str
    maps: Tensor
    activation: str | None
    before: bool
    field: Any
    zeros: float
    constant: int
    shown: list[int]

    @property
    def size(self) -> str:
        """Return channels, height and width of the maps as text."""
        return "x".join(map(str, self.maps.shape))

    @property
    def state(self) -> str:
        """Return a label that says whether maps are shown before or after an activation function, and which one."""
        if self.activation is None:
            return "no activation"
        return f"{'before' if self.before else 'after'} {self.activation}"


def explain(options: FeatureMapsOptions) -> Explanation:
    """Return feature maps, Grad-CAM and patches of a network.

    Raises:
        UserError: An option is wrong, or the network, the image or the data cannot be used.
    """
    subject = find_subject(options)
    names = _chosen_layers(options.layers, subject)
    # The authors of Grad-CAM take the last convolutional layer, whose maps are nearest to the classes.
    cam_layer = options.cam_layer or names[-1]
    # A wrong name is reported before the data set is read, which takes longer.
    check_layers(subject.model, subject.image_shape, [*names, cam_layer])
    shown = find_image(options.image, options.index, subject)
    explanation = Explanation({"model": subject.name, "trained": subject.trained, "image": shown.title})
    if subject.caveat and shown.label is not None:
        explanation.remarks.append(subject.caveat)
    fields: Fields = {}
    try:
        fields = receptive_fields(subject.model, subject.image_shape)
    except UserError as error:
        explanation.remarks.append(f"Receptive fields are not known, so that there are no patches: {error}.")
    layers = _look(subject, shown, names, options.before_activation, fields)
    explanation.numbers["layers"] = [_numbers(layer) for layer in layers]
    explanation.tables.append(_table(layers, f"{subject.description}: maps of {shown.title}"))
    picture = Picture("feature-maps", f"{subject.description}: feature maps", CAPTION, _draw(shown, layers))
    explanation.pictures.append(picture)
    show_grad_cam(subject, shown, cam_layer, options.seed, explanation)
    _add_patches(options, subject, names, fields, explanation)
    return explanation


def _chosen_layers(names: str | None, subject: Subject) -> list[str]:
    """Return the layers that the user named, without repetitions, or else the last layer of each stage."""
    if not names:
        return stages(subject.model, subject.image_shape)
    # A dict keeps the order of its keys, and each key once.
    return list(dict.fromkeys(name.strip() for name in names.split(",")))


def _look(subject: Subject, shown: Shown, names: Sequence[str], before: bool, fields: Fields) -> list[_Layer]:
    """Run the network on the image and return the feature maps of the named layers, with what they tell."""
    layers = []
    for name, (values, activation) in record(subject.model, shown.x, names, before).items():
        maps = values[0]
        # How much the values of each map, (H, W), vary over its positions: (C,).
        variance = maps.var((1, 2), correction=0)
        # A map with the same value everywhere shows nothing, so that it is counted and not drawn.
        alive = int((variance > 0).sum())
        best = variance.sort(descending=True, stable=True).indices[: min(CHANNELS, alive)]
        layer = _Layer(
            name,
            maps,
            activation,
            before=before and activation is not None,
            field=fields.get(name),
            zeros=float((maps == 0).float().mean()),
            constant=len(maps) - alive,
            shown=best.tolist(),
        )
        layers.append(layer)
    return layers


def _numbers(layer: _Layer) -> dict[str, Any]:
    """Return the values of a layer for the JSON document."""
    return {
        "layer": layer.name,
        "shape": list(layer.maps.shape),
        "activation": layer.activation,
        "before_activation": layer.before,
        "receptive_field": layer.field,
        "zeros": layer.zeros,
        "constant_channels": layer.constant,
        "shown_channels": layer.shown,
    }


def _table(layers: Sequence[_Layer], title: str) -> Table:
    """Return the table of the layers."""
    rows = []
    for layer in layers:
        sees = field_text(layer.field)
        rows.append((layer.name, layer.size, layer.state, sees, f"{layer.zeros:.0%}", str(layer.constant)))
    return Table(title, ("Layer", "Maps", "Shown", "Sees (pixels)", "Zeros", "Constant maps"), rows)


def _add_patches(
    options: FeatureMapsOptions, subject: Subject, layers: Sequence[str], fields: Fields, explanation: Explanation
) -> None:
    """Add the patches that excite channels most to an explanation, or the remark that they need a data set."""
    if not options.patches:
        return
    if subject.data is None:
        explanation.remarks.append("Patches that excite a channel most need a data set; name one with --data.")
    elif fields:
        # Patches are shown for three layers: the first, the middle and the last one. These may be the same.
        first, middle, last = layers[0], layers[(len(layers) - 1) // 2], layers[-1]
        chosen = list(dict.fromkeys((first, middle, last)))
        show_patches(subject, subject.data, chosen, options.images, options.patches, fields, explanation)


def _draw(shown: Shown, layers: Sequence[_Layer]) -> Figure:
    """Return a figure with a group of rows for every layer: the image on the left, feature maps beside it."""
    # Every layer gets as many cells as the layer with the most maps needs.
    most = max(1, *(len(layer.shown) for layer in layers))
    columns, rows = 1 + min(most, COLUMNS), -(-most // COLUMNS)
    figure, axes = grid(len(layers) * rows * columns, columns, cell=0.95)
    figure.set_figwidth(figure.get_figwidth() + 0.9)  # room for the labels on the left
    for index, layer in enumerate(layers):
        cells = axes[index * rows * columns : (index + 1) * rows * columns]
        # The first column of a layer's rows holds the image; all other cells are for feature maps.
        first, panels = cells[0], [ax for place, ax in enumerate(cells) if place % columns]
        show(first, shown.pixels, "" if index else shown.title, "unit")
        text = f"{layer.name}\n{layer.size}\n{layer.state}\nsees {field_text(layer.field)}"
        first.text(-0.1, 0.5, text, transform=first.transAxes, ha="right", va="center", fontsize=8)
        height, width = layer.maps.shape[1:]
        _frame(first, shown.pixels, layer.field, (height // 2, width // 2))
        for ax, channel in zip(panels, layer.shown, strict=False):
            show(ax, layer.maps[channel].numpy(), f"channel {channel}", "own")
    return figure


def _frame(ax: Axes, pixels: np.ndarray, field: Any, place: tuple[int, int]) -> None:
    """Outline the part of the image that a unit sees; draw nothing if the receptive field is not known."""
    if field is None:
        return
    height, width = pixels.shape[:2]
    # A field that is not a dict is the whole image.
    rows, columns = (0, height), (0, width)
    if isinstance(field, dict):
        rows, columns = window(field, place)
    # A field may reach beyond the image; its frame does not.
    low = (max(0, rows[0]), max(0, columns[0]))
    high = (min(height, rows[1]), min(width, columns[1]))
    outline(ax, low, high, PALETTE[1], clip_on=False)
