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
CAPTION = (
    "Grad-CAM: the brighter, the more the place raises the logit of the class named above. A map has a value for each "
    "position of the layer's feature maps; it is enlarged bilinearly and scaled to its own maximum. Places that speak "
    "against the class are cut to zero."
)
CHECK_CAPTION = (
    "Sanity check (Adebayo et al. 2018): weights are randomised from the logits down, and the map has to change, or it "
    "would not depend on the weights. Above each map is its rank correlation with the first one, over all positions "
    "before negative values are cut. Correlations by chance lie around 0; they spread more than those of independent "
    "values, because neighbours are not independent."
)
"""Captions of the two pictures."""


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
        # A hook that returns None leaves the output as it is, here that of a further run of the layer.
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
        gradient: Tensor | None = None
        # Without a path from the leaf to the logits, they need no gradient, or autograd returns None for the leaf.
        if chosen.requires_grad:
            gradient = torch.autograd.grad(chosen, leaves, allow_unused=True)[0]
    if gradient is None:
        raise UserError(f"the logits do not depend on layer '{layer}'; name another with --cam_layer")
    maps = leaves[0].detach()
    # The weight of a map is the mean of its gradient: how much the logit grows with its values.
    weights = gradient.mean((2, 3), keepdim=True)
    # Sum over the channels, (N, C, h, w) to (N, h, w): equation 2 of the paper before its ReLU.
    return (weights * maps).sum(1)


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
    modules = dict(model.named_modules())
    groups: list[tuple[str, list[str]]] = []
    names: list[str] = []
    # Walk through the modules in the order in which they run; a group is complete where its stage ends.
    for name in outputs(model, image_shape):
        if list(modules[name].parameters(recurse=False)):
            names.append(name)
        if name in ends:
            groups.append((name, names))
            names = []
    # What remains lies behind the last stage.
    title = "head"
    if len(names) > HEAD:
        title = f"all behind {ends[-1]}"
    groups.append((title, names))
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
    maps = []
    with untouched_randomness():
        torch.manual_seed(seed)
        for names in groups:
            for name in names:
                _randomise(changed.get_submodule(name))
            maps.append(weighted_map(changed, images, layer, classes))
    return maps


def _randomise(module: nn.Module) -> None:
    """Randomise the weights that a module itself holds, without those of its children."""
    if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
        initialise(module)
        if isinstance(module, nn.BatchNorm2d):
            # Running mean and variance come from training as well, so they start anew.
            module.reset_running_stats()
        return
    # Nothing is known of other layers, so their values are shuffled, which keeps the scale.
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


def _sanity(subject: Subject, shown: Shown, layer: str, seed: int) -> _Check:
    """Return the sanity check for the shown image and, if it comes from a data set, for the first training images."""
    model, shape = subject.model, subject.image_shape
    # Means are over the training images alone, without the shown image; without training images, over the shown one.
    x, first = shown.x, 0
    if subject.data is not None and shown.label is not None:
        x, first = torch.cat([x, training_images(subject.data, range(CHECKED_IMAGES))[0]]), 1
    # Every map of an image is for the class that the unchanged network predicts, also after weights have changed.
    classes = predict_logits(model, x).argmax(1)
    before = weighted_map(model, x, layer, classes)
    groups = weight_groups(model, shape, stages(model, shape))
    modules = [names for _, names in groups]
    draws = [cascade(model, x, layer, classes, modules, seed + draw) for draw in range(DRAWS)]
    own, mean, deviation = [], [], []
    values: list[list[float | None]] = []
    for step in range(len(groups)):
        correlations = [_correlations(before, maps[step]) for maps in draws]
        # The first draw is that of the picture, and image 0 is the shown one.
        own.append(correlations[0][0])
        values = [of_images[first:] for of_images in correlations]
        known = np.array(values, dtype=float)  # None becomes nan
        known = known[np.isfinite(known)]
        mean.append(float(known.mean()) if len(known) else None)
        deviation.append(float(known.std()) if len(known) else None)
    # After the loop, `values` holds the correlations after the last step, with all weights random.
    error = _standard_error(values)
    steps, first_draw = [title for title, _ in groups], [maps[0] for maps in draws[0]]
    return _Check(steps, first_draw, own, mean, deviation, error, images=len(x) - first)


def _correlations(before: Tensor, after: Tensor) -> list[float | None]:
    """Return the rank correlation between two maps of each image, (N, h, w) each."""
    pairs = zip(before.flatten(1).tolist(), after.flatten(1).tolist(), strict=True)
    return [spearman(first, second) for first, second in pairs]


def _standard_error(values: Sequence[Sequence[float | None]]) -> float | None:
    """Return the standard error of the mean over draws (rows) and images (columns); None if it is not defined.

    The values are not independent: those of a draw share its weights, those of an image share its pixels. So the
    variance of the mean over draws and that of the mean over images are added.
    """
    known = np.array(values, dtype=float)  # None becomes nan
    # A draw or an image without any correlation has no mean.
    if not np.isfinite(known).any(1).all() or not np.isfinite(known).any(0).all():
        return None
    rows, columns = np.nanmean(known, 1), np.nanmean(known, 0)
    # Squared standard error of a mean: the variance of the values over their number.
    variance = rows.var(ddof=1) / len(rows)
    if len(columns) > 1:
        variance += columns.var(ddof=1) / len(columns)
    return float(np.sqrt(variance))


class _ClassMap(NamedTuple):
    """Grad-CAM of the shown image for one class.

    Attributes:
        name: Name of the class.
        role: Reason for showing it: it is the predicted class, the true one, or both, or the second in probability.
        probability: Probability that the network gives to the class.
        values: Map, (h, w), with values of at least 0.
    """

    name: str
    role: str
    probability: float
    values: Tensor


class _Result(NamedTuple):
    """Grad-CAM of an image at a layer.

    Attributes:
        subject: Network.
        shown: Image.
        title: Method and name of the layer, for titles.
        true_class: Name of the image's class; None if it is not known.
        maps: Maps of the classes that are shown, the predicted class first.
        constant: Whether the map of the predicted class, before its ReLU, has the same value everywhere.
        check: Sanity check.
    """

    subject: Subject
    shown: Shown
    title: str
    true_class: str | None
    maps: list[_ClassMap]
    constant: bool
    check: _Check


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
    result = _look(subject, shown, layer, seed)
    explanation.numbers["grad_cam"] = {"layer": layer, **_numbers(result)}
    explanation.tables += _tables(result)
    explanation.pictures += _draw(result)
    explanation.remarks += _remarks(result)


def _look(subject: Subject, shown: Shown, layer: str, seed: int) -> _Result:
    """Compute Grad-CAM of the image for two classes, and the sanity check."""
    model, data = subject.model, subject.data
    shares = predict_logits(model, shown.x).softmax(1)[0]
    names = [f"class {k}" for k in range(len(shares))]
    if data is not None and len(data.class_names) == len(shares):
        names = list(data.class_names)
    # A network with fewer classes than the data has no logit for some of them.
    label = shown.label
    if label is not None and label >= len(shares):
        label = None
    true_class = None if label is None else names[label]
    roles = _roles(shares.argsort(descending=True).tolist(), label)
    classes = torch.tensor(list(roles))
    cams = grad_cam(model, shown.x.expand(len(roles), -1, -1, -1), layer, classes)
    maps = []
    for (k, role), cam in zip(roles.items(), cams, strict=True):
        maps.append(_ClassMap(names[k], role, float(shares[k]), cam))
    check = _sanity(subject, shown, layer, seed)
    constant = len(weighted_map(model, shown.x, layer, classes[:1]).unique()) == 1
    return _Result(subject, shown, f"Grad-CAM at {layer}", true_class, maps, constant, check)


def _roles(best: Sequence[int], label: int | None) -> dict[int, str]:
    """Return the index of each class to show, with its role.

    Args:
        best: Indices of the classes, the one with the largest logit first.
        label: Index of the true class; None if it is not known.
    """
    roles = {best[0]: "predicted"}
    if label is not None and label != best[0]:
        return roles | {label: "true"}
    if label is not None:
        roles = {label: "predicted and true"}
    # The true class is the predicted one or is not known, so the class with the second largest logit is shown too.
    if len(best) > 1:
        roles[best[1]] = "second"
    return roles


def _numbers(result: _Result) -> dict[str, Any]:
    """Return the values for the JSON document."""
    check = result.check
    classes = []
    for name, role, probability, cam in result.maps:
        classes.append({"class": name, "role": role, "probability": probability, "largest": float(cam.max())})
    return {
        "map": list(result.maps[0].values.shape),
        "true_class": result.true_class,
        "classes": classes,
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


def _tables(result: _Result) -> list[Table]:
    """Return the table of the classes and, unless the map is constant, the table of the sanity check."""
    check, cam = result.check, result.maps[0].values
    size = "x".join(map(str, cam.shape))
    rows = [(m.name, m.role, f"{m.probability:.1%}", f"{m.values.max():.3g}") for m in result.maps]
    head: tuple[str, ...] = ("Class", "Role", "Probability", "Largest value of the map")
    tables = [Table(f"{result.title}: maps of {size} positions", head, rows)]
    if result.constant:  # there is no rank correlation
        return tables
    rows = []
    for step, own, mean, deviation in zip(check.steps, check.own, check.mean, check.deviation, strict=True):
        rows.append((step, _number(own), _number(mean), _number(deviation).lstrip("+")))
    # Standard deviation of Spearman's correlation between n independent values: 1 / sqrt(n - 1).
    chance = 1 / max(cam.numel() - 1, 1) ** 0.5
    rows.append(("for comparison: independent values", "-", _number(0.0), f"{chance:.2f}"))
    many = f"{DRAWS} draws of weights"
    if check.images > 1:
        many = f"{check.images} images and {many}"
    head = ("Randomised from the top to", "This image", f"Mean of {many}", "Standard deviation")
    title = f"{result.title}: rank correlation with the map of the network, over {cam.numel()} positions"
    tables.append(Table(title, head, rows))
    return tables


def _number(value: float | None) -> str:
    """Return a correlation as text, with its sign, and with a dash for None."""
    if value is None:
        return "-"
    return f"{value:+.2f}".replace("-0.00", "+0.00")


def _remarks(result: _Result) -> list[str]:
    """Return a remark on empty maps, if there are any, and the verdict of the sanity check."""
    remarks = []
    empty = [m.name for m in result.maps if not m.values.any()]
    if empty:
        remarks.append(f"{result.title}: for {' and '.join(empty)} no place speaks, and the map is empty.")
    if result.constant:
        remarks.append(f"{result.title} has one value everywhere, so that there is nothing to check.")
    else:
        remarks.append(f"Sanity check of {result.title}: {_verdict(result.subject.trained, result.check)}")
    return remarks


def _verdict(trained: bool, check: _Check) -> str:
    """Return a sentence on what the mean correlation with all weights random means."""
    mean, error = check.mean[-1], check.error
    if not trained:
        return "The weights were random from the start, so that the check says nothing yet: train the network first."
    if mean is None or error is None:
        return "With all weights random the maps have one value everywhere, so that there is no verdict."
    distance = f"3 standard errors ({error:.2f})"
    # A normally distributed mean is farther than 3 standard errors from 0 by chance in 0.3 % of cases.
    if abs(mean) <= 3 * error:
        return (
            f"With all weights random, the mean correlation of {_number(mean)} is within {distance} of 0: the map "
            "changes as much as chance does."
        )
    return (
        f"With all weights random, the mean correlation of {_number(mean)} is more than {distance} from 0: the map "
        "does not change as much as chance does, and shows in part what does not depend on the learnt weights."
    )


def _draw(result: _Result) -> list[Picture]:
    """Return the picture of the maps of the classes and, unless the map is constant, that of the sanity check."""
    shown, check = result.shown, result.check
    description = result.subject.description
    titles = [f"{m.role}:\n{m.name}, {m.probability:.1%}" for m in result.maps]
    title = f"{shown.title}\n"  # of two lines, as the other titles are
    if result.true_class is not None:
        title = f"{shown.title}:\n{result.true_class}"
    figure = _draw_overlays(shown, [m.values for m in result.maps], titles, title, 1.9)
    pictures = [Picture("grad-cam", f"{description}: {result.title}", CAPTION, figure)]
    if result.constant:
        return pictures
    titles, plus = ["weights as\nthey are"], ""
    for step, own in zip(check.steps, check.own, strict=True):
        titles.append(f"{plus}{step}\n{_number(own)}")
        plus = "+ "  # each further step adds its group to those that are random already
    maps = [result.maps[0].values, *(m.relu() for m in check.maps)]
    figure = _draw_overlays(shown, maps, titles, None, 1.35)
    pictures.append(Picture("grad-cam-check", f"{description}: sanity check of {result.title}", CHECK_CAPTION, figure))
    return pictures


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
    # Opacity grows with the map, but the image remains visible even where the map is largest.
    share = (0.75 * heat)[..., None]
    # The part of the colour map from 0.25 to 0.9 leaves out its black and its palest colours.
    return (1 - share) * grey[..., None] + share * colormaps["inferno"](0.25 + 0.65 * heat)[..., :3]
