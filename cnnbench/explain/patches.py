"""Patches of training images that excite a channel most.

For every channel, the images are sorted by the largest value in the channel's feature map. The unit with this value
sees a window of the image, its receptive field. The place of this window follows from the layers before the unit, and
the patch is cut out there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnnbench.data.module import ImageDataModule
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.activations import record
from cnnbench.explain.images import BATCH, pixels_of, training_images
from cnnbench.explain.networks import Subject
from cnnbench.plots.grids import show

ROWS = 6
"""Largest number of channels of a layer in the picture."""
OUTSIDE = 0.5
"""Grey value, 0 to 1, of the part of a patch that lies outside the image."""
CAPTION = (
    "What excites a channel most: the patch that its strongest unit sees, of the strongest images, one each; grey lies "
    "outside of the image, and where a unit sees more than the image, all of it is shown. Rows are the channels whose "
    "strongest images stand out most from all, in standard deviations. In a trained network, units of later layers "
    "often see more of the image: ask whether what the patches of a row share is more than an edge."
)
"""Caption of the picture."""


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
            # From (n, C, H, W) to (n, C, H * W), so that one index names a unit.
            flat = maps.flatten(2)
            # On floats, argmax may return any of several equal maxima; on the mask of the maxima it returns the first.
            index = (flat == flat.amax(2, keepdim=True)).byte().argmax(2)
            values[layer].append(flat.gather(2, index[..., None])[..., 0])
            # The index counts the units row by row, so quotient and remainder are its row and column.
            places[layer].append(torch.stack((index // maps.shape[3], index % maps.shape[3]), -1))
    return {layer: Responses(torch.cat(values[layer]), torch.cat(places[layer])) for layer in layers}


def top_images(responses: Responses, channel: int, count: int) -> list[int]:
    """Return the indices of the images with a channel's strongest responses, in falling order; ties keep image order.

    Args:
        responses: Strongest units of the layer.
        channel: Index of the channel.
        count: Largest number of images.
    """
    return responses.values[:, channel].sort(descending=True, stable=True).indices[:count].tolist()


def selective_channels(responses: Responses, count: int, top: int) -> list[int]:
    """Return the indices of the channels whose strongest images stand out most, the most selective channel first.

    The selectivity of a channel is the mean response to its strongest images, minus the mean over all images, divided
    by the standard deviation over all images. Channels with the same response to every image are left out.

    Args:
        responses: Strongest units of the layer.
        count: Largest number of channels.
        top: Number of strongest images in the mean.
    """
    values = responses.values
    deviation = values.std(0, correction=0)
    best = values.topk(min(top, len(values)), dim=0).values.mean(0)
    # The score is high if a channel answers to a few images strongly and to most of them alike.
    score = (best - values.mean(0)) / deviation
    # The score of a channel without deviation is not a number, so such channels are taken out before sorting.
    alive = (deviation > 0).nonzero().flatten()
    return alive[score[alive].sort(descending=True, stable=True).indices[:count]].tolist()


def field_text(field: Any) -> str:
    """Return a receptive field as text: its size, "all" for the whole image, or "-" if it is not known."""
    if isinstance(field, dict):
        height, width = (_along(field["size"], axis) for axis in (0, 1))
        return f"{height}x{width}"
    return "all" if field == "image" else "-"


def _along(value: Any, axis: int) -> Any:
    """Return a value of a receptive field along an axis; a single number holds for both axes."""
    if isinstance(value, list):
        return value[axis]
    return value


def window(field: dict[str, Any], place: Sequence[int]) -> Window:
    """Return the window of pixels that the unit at a place of a feature map sees.

    Args:
        field: Values of ``size``, ``jump`` and ``start`` for the layer in pixels, as returned by `receptive_fields`.
        place: Row and column of the unit.
    """
    ranges = []
    for axis, index in enumerate(place):
        size, jump, start = (_along(field[key], axis) for key in ("size", "jump", "start"))
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
    ranges = []
    for (low, high), length in zip(seen, image.shape, strict=False):  # the channels, if any, are left out
        if high - low > length:
            low, high = 0, length
        ranges.append((low, high))
    (top, bottom), (left, right) = ranges
    # Start from a grey patch, and copy the part of the window that lies inside the image into it.
    patch = np.full((bottom - top, right - left, *image.shape[2:]), OUTSIDE)
    # A window may lie wholly outside of the image; the inner bounds of 0 then make the slices empty.
    rows = slice(max(top, 0), max(min(bottom, image.shape[0]), 0))
    columns = slice(max(left, 0), max(min(right, image.shape[1]), 0))
    part = image[rows, columns]
    # The image begins at `start - top` and `start - left` inside the patch.
    patch[rows.start - top : rows.start - top + part.shape[0], columns.start - left :][:, : part.shape[1]] = part
    return patch


class _LayerPatches(NamedTuple):
    """Patches of a layer.

    Attributes:
        name: Name of the layer.
        field: Receptive field of its units, as returned by `receptive_fields`; None if it is not known.
        responses: Strongest units of its channels in all images that were searched.
        images: Indices of the images of the patches, the strongest first, by index of the channel.
    """

    name: str
    field: Any
    responses: Responses
    images: dict[int, list[int]]

    def seen(self, channel: int, image: int) -> Window | None:
        """Return the window that a channel's strongest unit sees in an image; None for the whole image."""
        if not isinstance(self.field, dict):
            return None
        return window(self.field, self.responses.places[image, channel].tolist())


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
    chosen = []
    for name, responses in strongest_units(subject.model, _batches(data, images), layers).items():
        channels = selective_channels(responses, ROWS, count)
        of_channels = {channel: top_images(responses, channel, count) for channel in channels}
        chosen.append(_LayerPatches(name, fields.get(name), responses, of_channels))
    explanation.numbers["patches"] = {"images": images, "layers": [_numbers(layer) for layer in chosen]}
    title = f"{subject.description}: what excites channels"
    kind = f"training images of {data.label}"
    if subject.caveat:  # the network may have been trained on other images
        kind = f"images of the training set of {data.label}"
    rows = [("Images searched", f"{images:,} {kind}"), ("Patches for each channel", str(count))]
    explanation.tables.append(Table(title, ("Fact", "Value"), rows))
    explanation.pictures.append(Picture("top-patches", title, CAPTION, _draw(data, chosen, count)))
    if not subject.trained:
        explanation.remarks.append("The weights are random: what the patches of a channel share, nobody has taught.")


def _batches(data: ImageDataModule, images: int) -> Iterator[Tensor]:
    """Yield the first training images in batches of normalised images, (n, C, H, W)."""
    for start in range(0, images, BATCH):
        yield training_images(data, range(start, min(start + BATCH, images)))[0]


def _numbers(layer: _LayerPatches) -> dict[str, Any]:
    """Return the values of a layer for the JSON document."""
    values, places = layer.responses
    channels = []
    for channel, images in layer.images.items():
        patches = []
        for image in images:
            value, unit = float(values[image, channel]), places[image, channel].tolist()
            patches.append({"image": image, "value": value, "unit": unit})
        channels.append({"channel": channel, "patches": patches})
    return {"layer": layer.name, "receptive_field": layer.field, "channels": channels}


def _draw(data: ImageDataModule, layers: Sequence[_LayerPatches], count: int) -> Figure:
    """Return a figure with a part for every layer, a row for every channel, and a patch in every cell."""
    # Every part has as many rows as the layer with the most channels needs.
    height = max(1, *(len(layer.images) for layer in layers))
    cell = 0.56  # width and height of a patch in inches
    figure = Figure(figsize=((cell * count + 0.55) * len(layers), cell * height + 0.5), layout="constrained")
    parts = figure.subfigures(1, len(layers), squeeze=False, wspace=0.03)[0]
    for part, layer in zip(parts, layers, strict=True):
        size = field_text(layer.field)
        sees = {"-": "field unknown, whole images", "all": "sees whole images"}.get(size, f"sees {size}")
        part.suptitle(f"{layer.name}: {sees}", fontsize=9)
        axes = part.subplots(height, count, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        # Layers with fewer channels than the largest one leave rows empty.
        for row, (channel, images) in zip(axes, layer.images.items(), strict=False):
            row[0].text(-0.15, 0.5, str(channel), transform=row[0].transAxes, ha="right", va="center", fontsize=8)
            # The search has kept only values and places of units, so the few images of a row are read again.
            x, _ = training_images(data, images)
            for ax, image, index in zip(row, x, images, strict=False):
                show(ax, cut(pixels_of(image, data), layer.seen(channel, index)), "", "unit")
    return figure
