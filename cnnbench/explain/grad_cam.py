"""Grad-CAM, a map of the places in an image that raise the logit of a class, and a sanity check of that map.

The check replaces the weights by random ones, stage by stage from the logits down. If a map shows what the network has
learnt, it has to change then.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnnbench.blocks import initialise
from cnnbench.counting.meta_copy import untouched_randomness
from cnnbench.counting.meta_run import tensors_in
from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.activations import forward, outputs, predict_logits, stages, undisturbed
from cnnbench.explain.images import Shown, training_images
from cnnbench.explain.networks import Subject
from cnnbench.plots.grids import grid, show
from cnnbench.stats import spearman

CHECKED_IMAGES = 16
DRAWS = 3
"""Number of training images and number of draws of random weights over which the sanity check is averaged."""
COLUMNS = 4
"""Largest number of panels in a row of a picture."""
HEAD = 3
"""Largest number of modules with weights behind the last stage that are called a head; a transformer has more."""


def weighted_map(model: nn.Module, images: Tensor, layer: str, classes: Tensor) -> Tensor:
    """Return Grad-CAM before its ReLU: the sum of a layer's feature maps, each weighted by its mean gradient.

    The gradient is that of the logit of the image's class, averaged over the positions of a map. Only the part of the
    network after the layer is differentiated, and no parameter gets a gradient.

    Args:
        model: Any classifier.
        images: Normalised images, (N, C, H, W).
        layer: Name of a module whose output is feature maps. If it runs several times, its first run counts.
        classes: Index of a class for each image, (N,).

    Returns:
        Maps with the height and width of the layer's feature maps, (N, h, w).

    Raises:
        UserError: The logits do not depend on the layer, or the network does not run on such images.
    """
    leaves: list[Tensor] = []

    def cut(module: nn.Module, inputs: Any, output: Any) -> Any:
        # Replace the layer's output by a leaf of the autograd graph, so that differentiation ends here.
        if leaves:
            return None
        leaves.append(next(tensors_in(output)).detach().clone().requires_grad_())
        return leaves[0].clone()  # a copy, because an operator in place must not write to a leaf

    with undisturbed(model) as handles, torch.enable_grad():
        handles.append(model.get_submodule(layer).register_forward_hook(cut))
        logits = forward(model, images.clone())  # a copy, because autograd rejects tensors of inference mode
        # Images of a batch do not affect each other in evaluation mode, so the gradient of the sum of their logits
        # holds the gradient of each image.
        chosen = logits.gather(1, classes.clone()[:, None]).sum()
        gradient = torch.autograd.grad(chosen, leaves, allow_unused=True)[0] if chosen.requires_grad else None
    if gradient is None:
        raise UserError(f"the logits do not depend on layer '{layer}'; name another with --cam_layer")
    maps = leaves[0].detach()
    return (gradient.mean((2, 3), keepdim=True) * maps).sum(1)


def grad_cam(model: nn.Module, images: Tensor, layer: str, classes: Tensor) -> Tensor:
    """Return maps of the places that raise the logit of a class, (N, h, w), with values of at least 0.

    Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization; Selvaraju et al.; 2017;
    1610.02391. Arguments, shapes and errors are those of `weighted_map`.
    """
    return weighted_map(model, images, layer, classes).relu()


def weight_groups(model: nn.Module, image_shape: Sequence[int], ends: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return the names of modules that hold weights, in groups from the logits down to the image.

    Args:
        model: Any classifier.
        image_shape: Channels, height and width of one image, (C, H, W).
        ends: Last layer of each stage, as returned by `stages`.

    Returns:
        Title and module names of each group. The first group holds the modules behind the last stage, if these have
        weights; then follow the stages, the last one first.
    """
    order = list(outputs(model, image_shape))
    modules = dict(model.named_modules())
    groups, first = [], 0
    for title, last in [*((end, order.index(end)) for end in ends), ("", len(order) - 1)]:
        names = [n for n in order[first : last + 1] if any(p is not None for p in modules[n]._parameters.values())]
        groups.append((title or ("head" if len(names) <= HEAD else f"all behind {ends[-1]}"), names))
        first = last + 1
    return [group for group in reversed(groups) if group[1]]


def cascade(
    model: nn.Module, images: Tensor, layer: str, classes: Tensor, groups: Sequence[Sequence[str]], seed: int
) -> list[Tensor]:
    """Return the result of `weighted_map` after each step of randomising a network's weights from the logits down.

    Sanity Checks for Saliency Maps; Adebayo et al.; 2018; 1810.03292: a map that stays the same with random weights
    does not show what the network has learnt. Convolutions and linear layers get new weights by He initialisation,
    batch norm is reset, and the values of other layers are shuffled. Only a copy of the network is changed.

    Args:
        model: Any classifier.
        images: Normalised images, (N, C, H, W).
        layer: Name of the layer; see `weighted_map`.
        classes: Index of a class for each image, (N,).
        groups: Names of modules; each step randomises one more group and keeps the groups before it random.
        seed: Random seed for the weights.

    Returns:
        For each group, the maps after its step, (N, h, w).
    """
    changed = copy.deepcopy(model)
    found = []
    with untouched_randomness():
        torch.manual_seed(seed)
        for names in groups:
            for name in names:
                _randomise(changed.get_submodule(name))
            found.append(weighted_map(changed, images, layer, classes))
    return found


def _randomise(module: nn.Module) -> None:
    """Randomise the weights that a module itself holds, without those of its children."""
    if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
        initialise(module)
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
        return
    with torch.no_grad():
        for values in module.parameters(recurse=False):
            values.copy_(values.flatten()[torch.randperm(values.numel())].view_as(values))


class _Check(NamedTuple):
    """Result of the sanity check: after each step, the rank correlation with the map of the unchanged weights.

    A correlation is None where a map has the same value everywhere.

    Attributes:
        steps: Title of the group that each step randomises.
        maps: Map of the shown image after each step, in the first draw.
        own: Correlation for the shown image after each step, in the first draw.
        mean: Mean correlation over images and draws after each step.
        deviation: Standard deviation of the correlation over images and draws after each step.
        error: Standard error of the mean after the last step; None if it is not defined.
        images: Number of images in the mean.
    """

    steps: list[str]
    maps: list[Tensor]
    own: list[float | None]
    mean: list[float | None]
    deviation: list[float | None]
    error: float | None
    images: int


def show_grad_cam(subject: Subject, shown: Shown, layer: str, seed: int, explanation: Explanation) -> None:
    """Add Grad-CAM of an image and its sanity check to an explanation.

    Args:
        subject: Network to look at, and its data.
        shown: Image to look at.
        layer: Name of the layer; see `weighted_map`.
        seed: Random seed for the weights of the sanity check.
        explanation: Explanation to extend.

    Raises:
        UserError: The logits do not depend on the layer.
    """
    model, data = subject.model, subject.data
    shares = predict_logits(model, shown.x).softmax(1)[0]
    best = shares.argsort(descending=True).tolist()
    names = list(data.class_names) if data and len(data.class_names) == len(shares) else None
    name = {k: names[k] if names else f"class {k}" for k in range(len(shares))}
    label = shown.label if shown.label is not None and shown.label < len(shares) else None
    # Beside the predicted class the map of the true class is shown; where both are the same or the true class is not
    # known, that of the class with the second largest logit.
    others = [(label, "true")] if label not in (None, best[0]) else [(k, "second") for k in best[1:2]]
    asked = [(best[0], "predicted and true" if label == best[0] else "predicted"), *others]
    classes = torch.tensor([k for k, _ in asked])
    maps = grad_cam(model, shown.x.expand(len(asked), -1, -1, -1), layer, classes)
    check = _sanity(subject, shown, layer, seed)
    size = "x".join(map(str, maps.shape[1:]))
    explanation.numbers["grad_cam"] = {
        "layer": layer,
        "map": list(maps.shape[1:]),
        "true_class": None if label is None else name[label],
        "classes": [
            {"class": name[k], "role": role, "probability": float(shares[k]), "largest": float(cam.max())}
            for (k, role), cam in zip(asked, maps, strict=True)
        ],
        "sanity": {
            "steps": check.steps,
            "correlation_of_image": check.own,
            "mean_correlation": check.mean,
            "deviation": check.deviation,
            "standard_error": check.error,
            "images": check.images,
            "draws": DRAWS,
        },
    }
    titles = [f"{role}:\n{name[k]}, {shares[k]:.1%}" for k, role in asked]
    caption = (
        f"Grad-CAM of {subject.description} at layer {layer}: the brighter, the more the place raises the logit of the "
        f"class named above. A map of {size} positions, enlarged bilinearly; scaled to its own maximum; places that "
        f"speak against the class are cut to zero.{_empty(maps, [name[k] for k, _ in asked])}"
    )
    title = f"{shown.title}" + (f":\n{name[label]}" if label is not None else "\n")
    figure = _draw_overlays(shown, list(maps), titles, title, 1.9)
    explanation.pictures.append(Picture("grad-cam", f"{subject.description}: Grad-CAM", caption, figure))
    # A constant map has no rank correlation.
    if len(weighted_map(model, shown.x, layer, classes[:1]).unique()) == 1:
        explanation.remarks.append(f"Grad-CAM at {layer} has one value everywhere, so that there is nothing to check.")
        return
    steps = list(zip(check.steps, check.own, check.mean, check.deviation, strict=True))
    rows = [(step, _number(own), _number(mean), _number(spread).lstrip("+")) for step, own, mean, spread in steps]
    many = f"{check.images} images and {DRAWS} draws of weights" if check.images > 1 else f"{DRAWS} draws of weights"
    head = ("Randomised from the top to", "This image", f"Mean of {many}", "Standard deviation")
    explanation.tables.append(Table(f"Grad-CAM at {layer}: rank correlation with the map of the network", head, rows))
    positions = maps[0].numel()
    # Standard deviation of Spearman's correlation between n independent values: 1 / sqrt(n - 1).
    chance = 1 / max(positions - 1, 1) ** 0.5
    caption = (
        "Sanity check (Adebayo et al. 2018): weights are randomised from the logits down, and the map has to change, "
        "or it would not depend on the weights. Above each map is its rank correlation with the first one, over "
        f"{positions} positions before negative values are cut. With all weights random it is "
        f"{_number(check.own[-1])}; over {many} its mean is {_number(check.mean[-1])} and its standard deviation "
        f"{_number(check.deviation[-1]).lstrip('+')} (independent values would have 0 and {chance:.2f}; those of "
        f"neighbours are not independent, so that chance gives more). {_verdict(subject.trained, check)}"
    )
    titles = [
        f"{'+ ' * bool(i)}{step}\n{_number(own)}"
        for i, (step, own) in enumerate(zip(check.steps, check.own, strict=True))
    ]
    figure = _draw_overlays(
        shown, [maps[0], *(m.relu() for m in check.maps)], ["weights as\nthey are", *titles], None, 1.35
    )
    explanation.pictures.append(Picture("grad-cam-check", f"{subject.description}: sanity check", caption, figure))


def _verdict(trained: bool, check: _Check) -> str:
    """Return a sentence on what the mean correlation with all weights random means."""
    mean, error = check.mean[-1], check.error
    if not trained:
        return "The weights were random from the start, so that the check says nothing yet: train the network first."
    if mean is None or error is None:
        return "With all weights random the maps have one value everywhere, so that there is no verdict."
    if abs(mean) <= 3 * error:
        return f"That mean is within 3 standard errors ({error:.2f}) of 0: the map changes as much as chance does."
    return (
        f"That mean is more than 3 standard errors ({error:.2f}) from 0: the map does not change as much as chance "
        "does, and shows in part what does not depend on the learnt weights."
    )


def _standard_error(values: Sequence[Sequence[float | None]]) -> float | None:
    """Return the standard error of the mean over draws (rows) and images (columns); None if it is not defined.

    The values are not independent: those of a draw share its weights, those of an image share its pixels. So the
    variance of the mean over draws and that of the mean over images are added.
    """
    known = np.array(values, dtype=float)  # None becomes nan
    if not np.isfinite(known).any(1).all() or not np.isfinite(known).any(0).all():
        return None
    rows, columns = np.nanmean(known, 1), np.nanmean(known, 0)
    among_images = columns.var(ddof=1) / len(columns) if len(columns) > 1 else 0.0
    return float(np.sqrt(rows.var(ddof=1) / len(rows) + among_images))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}".replace("-0.00", "+0.00")


def _empty(maps: Tensor, names: Sequence[str]) -> str:
    empty = [name for cam, name in zip(maps, names, strict=True) if not cam.any()]
    return f" For {' and '.join(empty)} no place speaks, and the map is empty." if empty else ""


def _sanity(subject: Subject, shown: Shown, layer: str, seed: int) -> _Check:
    """Return the sanity check for the shown image and, if it comes from a data set, for the first training images."""
    model, shape = subject.model, subject.image_shape
    x = shown.x
    if subject.data is not None and shown.label is not None:
        x = torch.cat([x, training_images(subject.data, range(CHECKED_IMAGES))[0]])
    classes = predict_logits(model, x).argmax(1)
    before = weighted_map(model, x, layer, classes).flatten(1)
    groups = weight_groups(model, shape, stages(model, shape))
    draws = [cascade(model, x, layer, classes, [names for _, names in groups], seed + d) for d in range(DRAWS)]
    values = [
        [[spearman(a.tolist(), b.tolist()) for a, b in zip(before, maps.flatten(1), strict=True)] for maps in steps]
        for steps in draws
    ]
    # Means are over the training images alone, without the shown image; without training images, over the shown one.
    counted = [[v for draw in values for v in draw[step][len(x) > 1 :] if v is not None] for step in range(len(groups))]
    return _Check(
        [title for title, _ in groups],
        [maps[0] for maps in draws[0]],
        [values[0][step][0] for step in range(len(groups))],
        [float(np.mean(known)) if known else None for known in counted],
        [float(np.std(known)) if known else None for known in counted],
        _standard_error([draw[-1][len(x) > 1 :] for draw in values]),
        max(len(x) - 1, 1),
    )


def _draw_overlays(
    shown: Shown, maps: Sequence[Tensor], titles: Sequence[str], image_title: str | None, cell: float
) -> Figure:
    """Return a figure of maps laid over the image; with an image title, the image itself comes first."""
    panels = len(maps) + (image_title is not None)
    columns = -(-panels // -(-panels // COLUMNS))  # rows of equal or nearly equal length
    figure, axes = grid(panels, columns, cell=cell)
    cast(Any, figure.get_layout_engine()).set(h_pad=0.1)  # titles of several lines would touch the edge
    if image_title is not None:
        show(axes[0], shown.pixels, image_title, "unit")
    for ax, cam, title in zip(axes[-len(maps) :], maps, titles, strict=True):
        show(ax, overlay(shown.pixels, cam), title)
    return figure


def overlay(pixels: np.ndarray, cam: Tensor) -> np.ndarray:
    """Return a map laid over a grey image, (H, W, 3): the image where the map is zero, yellow where it is largest.

    Args:
        pixels: Image with values from 0 to 1, (H, W) or (H, W, 3).
        cam: Map with values of at least 0, (h, w); it is enlarged to the size of the image.
    """
    grey = pixels if pixels.ndim == 2 else pixels.mean(2)
    heat = F.interpolate(cam[None, None], grey.shape, mode="bilinear")[0, 0].clamp(min=0).numpy()
    heat = heat / (heat.max() or 1)
    share = (0.75 * heat)[..., None]
    return (1 - share) * grey[..., None] + share * colormaps["inferno"](0.25 + 0.65 * heat)[..., :3]
