"""Patches of training images that excite a channel most.

For every channel, the images are sorted by the largest value in the channel's feature map. The unit with this value
sees a window of the image, its receptive field. The place of this window follows from the layers before the unit, and
the patch is cut out there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnnbench.data.module import ImageDataModule
from cnnbench.explain import Explanation, Picture
from cnnbench.explain.activations import record
from cnnbench.explain.images import BATCH, pixels_of, training_images
from cnnbench.explain.networks import Subject
from cnnbench.plots.grids import show

ROWS = 6
"""Largest number of channels of a layer in the picture."""
OUTSIDE = 0.5
"""Grey value, 0 to 1, of the part of a patch that lies outside the image."""


class Responses(NamedTuple):
    """Strongest unit of every channel of a layer in every image.

    Attributes:
        values: Outputs of the strongest units, (N, C).
        places: Row and column of each strongest unit in its feature map, (N, C, 2).
    """

    values: Tensor
    places: Tensor


class Window(NamedTuple):
    """Pixels that a unit sees: ranges of rows and of columns, as (first, last + 1), which may exceed the image."""

    rows: tuple[int, int]
    columns: tuple[int, int]


def strongest_units(model: nn.Module, batches: Iterable[Tensor], layers: Sequence[str]) -> dict[str, Responses]:
    """Return the strongest unit of every channel in every image; of equal units, the first in reading order.

    Args:
        model: Any classifier.
        batches: Batches of normalised images, (n, C, H, W) each.
        layers: Names of modules whose output is feature maps.

    Returns:
        Strongest units by name of the layer, over all batches.
    """
    values: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    places: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for images in batches:
        for layer, (maps, _) in record(model, images, layers).items():
            flat = maps.flatten(2)
            # On floats, argmax may return any of several equal maxima; on the mask of the maxima it returns the first.
            index = (flat == flat.amax(2, keepdim=True)).byte().argmax(2)
            values[layer].append(flat.gather(2, index[..., None])[..., 0])
            places[layer].append(torch.stack((index // maps.shape[3], index % maps.shape[3]), -1))
    return {layer: Responses(torch.cat(values[layer]), torch.cat(places[layer])) for layer in layers}


def top_images(found: Responses, channel: int, count: int) -> list[int]:
    """Return the indices of the images with a channel's strongest responses, in falling order; ties keep image order.

    Args:
        found: Strongest units of the layer.
        channel: Index of the channel.
        count: Largest number of images.
    """
    return found.values[:, channel].sort(descending=True, stable=True).indices[:count].tolist()


def selective_channels(found: Responses, count: int, top: int) -> list[int]:
    """Return the indices of the channels whose strongest images stand out most, the most selective channel first.

    The selectivity of a channel is the mean response to its strongest images, minus the mean over all images, divided
    by the standard deviation over all images. Channels with the same response to every image are left out.

    Args:
        found: Strongest units of the layer.
        count: Largest number of channels.
        top: Number of strongest images in the mean.
    """
    deviation = found.values.std(0, correction=0)
    best = found.values.topk(min(top, len(found.values)), dim=0).values.mean(0)
    score = (best - found.values.mean(0)) / deviation
    alive = (deviation > 0).nonzero().flatten()
    return alive[score[alive].sort(descending=True, stable=True).indices[:count]].tolist()


def field_text(field: Any) -> str:
    """Return a receptive field as text: its size, "all" for the whole image, or "-" if it is not known."""
    if isinstance(field, dict):
        size = field["size"]
        return "x".join(map(str, size)) if isinstance(size, list) else f"{size}x{size}"
    return "all" if field == "image" else "-"


def window(field: dict[str, Any], place: Sequence[int]) -> Window:
    """Return the window of pixels that the unit at a place of a feature map sees.

    Args:
        field: Values of ``size``, ``jump`` and ``start`` for the layer in pixels, as returned by `receptive_fields`.
        place: Row and column of the unit.
    """
    ranges = []
    for axis, index in enumerate(place):
        size, jump, start = (
            value[axis] if isinstance(value := field[key], list) else value for key in ("size", "jump", "start")
        )
        # `start` is the centre of the first unit's field, `jump` the distance between neighbouring fields.
        low = round(start + index * jump - size / 2)
        ranges.append((low, low + size))
    return Window(*ranges)


def cut(image: np.ndarray, seen: Window | None) -> np.ndarray:
    """Return the patch of an image inside a window, grey outside the image.

    Along an axis on which the window is longer than the image, the patch has the whole extent of the image.

    Args:
        image: Image with values from 0 to 1, (H, W) or (H, W, 3).
        seen: Window to cut out; None for the whole image.
    """
    if seen is None:
        return image
    (top, bottom), (left, right) = (
        (0, n) if high - low > n else (low, high) for (low, high), n in zip(seen, image.shape, strict=False)
    )
    # Start from a grey patch, and copy the part of the window that lies inside the image into it.
    patch = np.full((bottom - top, right - left, *image.shape[2:]), OUTSIDE)
    rows = slice(max(top, 0), max(min(bottom, image.shape[0]), 0))
    columns = slice(max(left, 0), max(min(right, image.shape[1]), 0))
    part = image[rows, columns]
    patch[rows.start - top : rows.start - top + part.shape[0], columns.start - left :][:, : part.shape[1]] = part
    return patch


def show_patches(
    subject: Subject,
    data: ImageDataModule,
    layers: Sequence[str],
    images: int,
    count: int,
    fields: Mapping[str, Any],
    explanation: Explanation,
) -> None:
    """Add the patches that excite the channels of some layers most to an explanation.

    Args:
        subject: Network to look at.
        data: Data set of the images.
        layers: Names of the layers to show, from first to last.
        images: Largest number of training images to search.
        count: Number of patches for each channel.
        fields: Receptive fields by name of the layer, as returned by `receptive_fields`.
        explanation: Explanation to extend.
    """
    data.prepare_data()
    data.setup()
    images = min(images, data.describe()["train_images"])
    batches = (training_images(data, range(i, min(i + BATCH, images)))[0] for i in range(0, images, BATCH))
    found = strongest_units(subject.model, batches, layers)
    shown, rows = {}, []
    for name in layers:
        channels = selective_channels(found[name], ROWS, count)
        shown[name] = {channel: top_images(found[name], channel, count) for channel in channels}
        values, places = found[name]
        rows.append(
            {
                "layer": name,
                "receptive_field": fields.get(name),
                "channels": [
                    {
                        "channel": channel,
                        "patches": [
                            {"image": i, "value": float(values[i, channel]), "unit": places[i, channel].tolist()}
                            for i in chosen
                        ],
                    }
                    for channel, chosen in shown[name].items()
                ],
            }
        )
    explanation.numbers["patches"] = {"images": images, "layers": rows}
    figure = _draw_patches(data, found, shown, fields, count)
    seen = [field_text(fields.get(name)) for name in layers]
    if not subject.trained:
        lesson = "The weights are random: what patches share here, nobody has taught."
    elif len(set(seen)) == len(layers) > 1:
        lesson = (
            "From left to right units see more of the image. Ask whether what the patches of a row share goes from "
            f"edges{' and colours' * (data.in_channels == 3)} to shapes and parts."
        )
    else:
        lesson = "Ask what the patches of a row share, and whether it is more than an edge."
    kind = f"images of the training set of {data.label}" if subject.caveat else f"training images of {data.label}"
    caption = (
        f"What excites a channel most in {images:,} {kind}: the patch that its strongest unit sees, of the strongest "
        f"images, one each. {_limits(found, shown, fields, data.image_size)}Rows are the channels whose "
        f"{count} strongest images stand out most from all, in standard deviations. {lesson}"
    )
    explanation.pictures.append(
        Picture("top-patches", f"{subject.description}: what excites channels", caption, figure)
    )


def _limits(
    found: Mapping[str, Responses],
    shown: Mapping[str, Mapping[int, Sequence[int]]],
    fields: Mapping[str, Any],
    size: int,
) -> str:
    """Return sentences for the caption on grey borders and on windows larger than the image, if the picture has any."""
    seen = [
        window(field, found[name].places[i, channel].tolist())
        for name, channels in shown.items()
        if isinstance(field := fields.get(name), dict)
        for channel, images in channels.items()
        for i in images
    ]
    ranges = [pair for both in seen for pair in both]
    grey = any((low < 0 or high > size) and high - low <= size for low, high in ranges)
    whole = any(high - low > size for low, high in ranges) or any(fields.get(name) == "image" for name in shown)
    parts = ["Grey lies outside of the image."] * grey
    parts += ["Where units see more than the image, all of it is shown."] * whole
    return "".join(f"{part} " for part in parts)


def _draw_patches(
    data: ImageDataModule,
    found: Mapping[str, Responses],
    shown: Mapping[str, Mapping[int, Sequence[int]]],
    fields: Mapping[str, Any],
    count: int,
) -> Figure:
    """Return a figure with a part for every layer, a row for every channel, and a patch in every cell."""
    height = max(1, *(len(channels) for channels in shown.values()))
    cell = 0.56
    figure = Figure(figsize=((cell * count + 0.55) * len(shown), cell * height + 0.5), layout="constrained")
    parts = figure.subfigures(1, len(shown), squeeze=False, wspace=0.03)[0]
    for part, (name, channels) in zip(parts, shown.items(), strict=True):
        field = fields.get(name)
        size = field_text(field)
        sees = {"-": "field unknown, whole images", "all": "sees whole images"}.get(size, f"sees {size}")
        part.suptitle(f"{name}: {sees}", fontsize=9)
        axes = part.subplots(height, count, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for row, (channel, images) in zip(axes, channels.items(), strict=False):
            x, _ = training_images(data, images)
            row[0].text(-0.15, 0.5, str(channel), transform=row[0].transAxes, ha="right", va="center", fontsize=8)
            for ax, image, index in zip(row, x, images, strict=False):
                seen = window(field, found[name].places[index, channel].tolist()) if isinstance(field, dict) else None
                show(ax, cut(pixels_of(image, data), seen), "", "unit")
    return figure
