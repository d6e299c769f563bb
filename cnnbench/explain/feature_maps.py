"""What a network sees in an image: feature maps, Grad-CAM with its sanity check, and what excites a channel most."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cnnbench.explain.activations import LayerMap
    from cnnbench.explain.images import Shown
    from cnnbench.explain.subjects import Subject

EXAMPLE = "--ckpt_path results/runs/ResNet18-CIFAR10/<date>/checkpoints/last.ckpt --index 7"
CHANNELS, COLUMNS = 8, 4
"""Channels of a layer in the picture of maps, and how many of them are in a row."""

Fields = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from cnnbench.explain.subjects import add_data_arguments, add_network_arguments

    add_network_arguments(parser)
    add_data_arguments(parser)
    add = parser.add_argument
    add("--image", type=Path, metavar="FILE", help="image to look at (default: --index 0 of the data, else a photo)")
    add("--index", type=int, metavar="N", help="training image to look at, in the order of the split")
    add("--layers", metavar="A,B", help="layers by name (default: the last of every resolution)")
    add("--before_activation", action="store_true", help="show what goes into a layer's activation function at its end")
    add("--cam_layer", metavar="NAME", help="layer for Grad-CAM (default: the last of --layers)")
    add("--patches", type=int, default=6, metavar="K", help="patches for each channel; 0 for none (default: 6)")
    add("--images", type=int, default=2000, metavar="N", help="training images to take patches from (default: 2000)")


def explain(arguments: argparse.Namespace) -> Explanation:
    """Draws maps, Grad-CAM and patches of a network."""
    from cnnbench.explain import activations
    from cnnbench.explain.grad_cam import show_grad_cam
    from cnnbench.explain.images import find_image
    from cnnbench.explain.patches import show_patches
    from cnnbench.explain.subjects import find_subject
    from cnnbench.measure.complexity import receptive_fields

    for option, least in (("patches", 0), ("images", 1), ("index", 0)):
        value = getattr(arguments, option)
        if value is not None and value < least:
            raise UserError(f"{option} {value} must be at least {least}")
    subject = find_subject(arguments)
    model, shape = subject.model, subject.image_shape
    asked = [name.strip() for name in arguments.layers.split(",")] if arguments.layers else []
    layers = list(dict.fromkeys(asked)) or activations.stages(model, shape)
    cam_layer = arguments.cam_layer or layers[-1]
    activations.check_layers(model, shape, [*layers, cam_layer])
    shown = find_image(arguments, subject)
    explanation = Explanation({"model": subject.name, "trained": subject.trained, "image": shown.title})
    if subject.caveat and shown.label is not None:
        explanation.remarks.append(subject.caveat)
    fields: Fields = {}
    try:
        fields = receptive_fields(model, shape)
    except UserError as error:
        explanation.remarks.append(f"Receptive fields are not known, so that there are no patches: {error}.")
    _show_maps(subject, shown, layers, arguments.before_activation, fields, explanation)
    show_grad_cam(subject, shown, cam_layer, arguments.seed, explanation)
    if arguments.patches and subject.data is None:
        explanation.remarks.append("Patches that excite a channel most need a data set; name one with --data.")
    elif arguments.patches and subject.data is not None and fields:
        chosen = list(dict.fromkeys(layers[i] for i in (0, (len(layers) - 1) // 2, len(layers) - 1)))
        show_patches(subject, subject.data, chosen, arguments.images, arguments.patches, fields, explanation)
    return explanation


def _show_maps(
    subject: Subject, shown: Shown, layers: Sequence[str], before: bool, fields: Fields, explanation: Explanation
) -> None:
    from cnnbench.explain.activations import record
    from cnnbench.explain.patches import field_text

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
            {"layer": name, "shape": list(maps.shape[1:]), "activation": activation,
             "before_activation": before and activation is not None, "receptive_field": fields.get(name),
             "zeros": zeros, "constant_channels": maps.shape[1] - alive, "shown_channels": order}
        )  # fmt: skip
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
    if activation is None:
        return "no activation"
    return f"{'before' if before else 'after'} {activation}"


def _draw_maps(
    shown: Shown, found: Mapping[str, LayerMap], chosen: Mapping[str, Sequence[int]], before: bool, fields: Fields
) -> Figure:
    from cnnbench.explain.patches import field_text
    from cnnbench.explain.pictures import grid, show

    most = max(1, *(len(order) for order in chosen.values()))
    columns, rows = 1 + min(most, COLUMNS), -(-most // COLUMNS)
    figure, axes = grid(len(found) * rows * columns, columns, cell=0.95)
    figure.set_figwidth(figure.get_figwidth() + 0.9)  # for the words on the left
    for row, (name, (maps, activation)) in enumerate(found.items()):
        own = axes[row * rows * columns : (row + 1) * rows * columns]
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
    """Outlines what a unit sees, as far as it lies in the image."""
    from cnnbench.bench.drawing import PALETTE
    from cnnbench.explain.patches import window
    from cnnbench.explain.pictures import outline

    if field is None:
        return
    ranges = window(field, place) if isinstance(field, dict) else tuple((0, n) for n in pixels.shape[:2])
    low = [max(0, seen[0]) for seen in ranges]
    high = [min(n, seen[1]) for seen, n in zip(ranges, pixels.shape, strict=False)]
    outline(ax, low, high, PALETTE[1], clip_on=False)
