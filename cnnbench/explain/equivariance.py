"""Measurements of translation equivariance: whether a shifted image gives shifted feature maps and the same class.

A convolution with stride 1 commutes with shifts, except at the border, where padding has an effect. A stride of s keeps
only every s-th position, so the layer commutes with shifts by multiples of s. At other shifts, detail that is finer
than the new grid aliases. A blur before positions are dropped reduces the aliasing; this is the idea of BlurPool
(Making Convolutional Networks Shift-Invariant Again; Zhang; 2019; 1904.11486). The predicted class should not change
with the shift at all, which is invariance.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple, cast

import lightning as L
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor, nn

from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.kernels import binomial
from cnnbench.explain.networks import Subject, find_subject, image_for, load_checkpoint, read_photo
from cnnbench.explain.options import SHIFTED_IMAGES, EquivarianceOptions
from cnnbench.hardware import choose_device
from cnnbench.network import make_classifier
from cnnbench.plots.drawing import LINES, MARKERS, PALETTE
from cnnbench.plots.grids import grid, show
from cnnbench.stats import wilson_interval
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.clock import TimeBudget
from cnnbench.training.trainer import make_trainer, quiet_lightning

LAYER_SHIFT = 8
"""Largest shift of the photo, in pixels, when single layers and stacks are measured."""
SIDE = 64
"""Height and width in pixels of the photo on which single layers and stacks are measured."""
PROBE = 0.15
"""Share of the training time for which a throw-away copy is trained, to estimate how many steps fit into all of it."""
LATER = set("image_size batch_size eval_batch_size subset augment padding padding_mode flip cutout sizes".split())
"""Arguments of a data set that have no influence on which images are in its validation split."""
BRIGHT = 0.5
"""Error, in standard deviations, from which on pixels are drawn in the brightest colour."""
AXES = {"across": "left (-) and right (+)", "down": "up (-) and down (+)"}
"""Axes along which images are shifted, and the two directions of each in words."""

MAPS_CAPTION = (
    "A photo, then how far the maps of the photo shifted by 1 pixel are from the shifted maps: black is equal, the "
    f"brightest {BRIGHT:g} standard deviations of the maps or more. Zero padding errs at the border alone, a stride "
    "wherever there is detail; BlurPool lowers this error of max pooling."
)
LAYERS_CAPTION = (
    "Error against the shift: layers with a stride of 2 are right at even shifts and err in between, three stages of "
    "them are right again at 8 only. Zero padding errs at every shift, since the border stays where it is."
)
CURVES_CAPTION = (
    "Above, the share of images that are classified correctly when they are shifted; below, the share whose predicted "
    "class stays the same; bands are 95 % intervals. A network that is invariant to shifts has flat lines, the lower "
    "ones at 100 %, except for the effect of what leaves the frame."
)


class BlurPool(nn.Module):
    """A layer that blurs every channel with a binomial filter and keeps every stride-th position.

    Differences from the paper: the border is padded by repeating the outermost values. The paper reflects the map,
    which is not possible with a map of one pixel.

    Args:
        stride: Distance between the positions that are kept.
        filter_size: Height and width of the filter, odd: 3 is the paper's Triangle-3, 5 its Binomial-5.
        padding_mode: ``replicate``, or ``circular`` for maps without a border.
    """

    kernel: Tensor

    def __init__(self, stride: int, filter_size: int = 3, padding_mode: str = "replicate") -> None:
        super().__init__()
        self.stride, self.padding_mode = stride, padding_mode
        weights = torch.from_numpy(binomial(filter_size)).float()
        # As a buffer the filter moves to a device with the module; it is fixed, so checkpoints do not store it.
        self.register_buffer("kernel", weights, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the blurred and subsampled maps.

        Args:
            x: Feature maps, (N, C, H, W).

        Returns:
            Feature maps, (N, C, ceil(H / stride), ceil(W / stride)).
        """
        channels, border = x.shape[1], len(self.kernel) // 2
        padded = F.pad(x, (border,) * 4, mode=self.padding_mode)
        # As many groups as channels, (C, 1, k, k), apply the filter to each channel by itself.
        return F.conv2d(
            padded, self.kernel.to(x.dtype).expand(channels, 1, -1, -1), stride=self.stride, groups=channels
        )


def with_blurpool(model: nn.Module, filter_size: int = 3) -> nn.Module:
    """Return a copy of a network in which a blur precedes the subsampling of every convolution and pooling layer.

    The copy has the same weights and the same sizes of feature maps. Every convolution or pooling layer with a stride
    runs at stride 1, and a `BlurPool` behind it subsamples instead. Behind a pooling layer the blur follows directly.
    Behind a convolution it follows after the normalisation and activation that come next in the same Sequential, as in
    the paper; otherwise it follows directly.

    A stride of 4 becomes two blurs with stride 2 each. A blur with stride 3 has a filter of at least 5x5, because 3x3
    blurs too little for so wide a grid. Average pooling stays in front of its blur, whereas the paper replaces it by
    the blur. Functions that subsample in a ``forward`` method, such as ``F.max_pool2d``, are not changed.

    Args:
        model: Network of any kind; it is not changed. The copy computes another function, so it needs its own training.
        filter_size: Height and width of the blur's filter, odd.

    Raises:
        UserError: No convolution or pooling layer has a stride, or one has unequal strides or rounds its output size
            up (``ceil_mode``), which a blur cannot do.
    """
    model = copy.deepcopy(model)
    if _blur_children(model, filter_size) == 0:
        raise UserError(f"{type(model).__name__} has no convolution or pooling with a stride; there is nothing to blur")
    return model


POOLS = (nn.MaxPool2d, nn.AvgPool2d)
"""Pooling layers whose stride a `BlurPool` can replace."""
BETWEEN = (nn.modules.batchnorm._BatchNorm, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish)
"""Layers that may stand between a convolution and its blur; they handle each position of a map by itself."""


def _blur_children(parent: nn.Module, filter_size: int) -> int:
    """Replace the strides of all descendants of a module by blurs, in place; return how many layers had a stride."""
    strided = 0
    names = list(parent._modules)
    for position, name in enumerate(names):
        child = parent._modules[name]
        if child is None:
            continue
        stride = _stride(child)
        if stride == 1:
            # A module without a stride may contain layers that have one.
            strided += _blur_children(child, filter_size)
            continue
        strided += 1
        last = position
        # One layer may be used at several points of a network. With a copy at each of them, which shares the weights,
        # every use still has its stride when its turn comes, and gets a blur of its own.
        child = copy.copy(child)
        parent._modules[name] = child
        if isinstance(child, nn.Conv2d):
            child.stride = (1, 1)
            last = _end_of_block(parent, names, position)
        else:
            child.__dict__["stride"] = 1  # The stride of a pooling layer is a plain attribute.
        behind = cast(nn.Module, parent._modules[names[last]])
        # With at least 2 * step - 1 pixels a side, the filters of neighbouring output positions overlap.
        blurs = [BlurPool(step, max(filter_size, 2 * step - 1)) for step in _prime_factors(stride)]
        # The network's own `forward` finds layer and blurs under the old name.
        parent._modules[names[last]] = nn.Sequential(behind, *blurs)
    return strided


def _end_of_block(parent: nn.Module, names: Sequence[str], position: int) -> int:
    """Return the position of the last layer of `BETWEEN` that directly follows a convolution, or else its own position.

    The convolution is the child of `parent` at `position` in the list of all `names`.
    """
    # Only in a Sequential is the order of the children also the order in which they run.
    if not isinstance(parent, nn.Sequential):
        return position
    while position + 1 < len(names) and isinstance(parent._modules[names[position + 1]], BETWEEN):
        position += 1
    return position


def _prime_factors(number: int) -> list[int]:
    """Return the prime factors of a number in ascending order; none for 1."""
    factors = []
    for factor in range(2, number + 1):
        while number % factor == 0:
            factors.append(factor)
            number //= factor
    return factors


def _stride(module: nn.Module) -> int:
    """Return the stride of a convolution or pooling layer; 1 for every other module.

    Raises:
        UserError: The strides of both axes differ, or the layer rounds its output size up.
    """
    if not isinstance(module, (nn.Conv2d, *POOLS)):
        return 1
    stride = module.stride
    strides = set(stride) if isinstance(stride, tuple) else {stride}
    if strides == {1}:
        return 1
    if len(strides) > 1 or getattr(module, "ceil_mode", False):
        raise UserError(f"{module} cannot be blurred: its strides must be equal, and its size not rounded up")
    return int(strides.pop())


class Layer(NamedTuple):
    """A layer or a stack of layers whose equivariance is measured.

    Attributes:
        name: Name in tables and pictures.
        module: Module that computes feature maps from an image, (1, 3, H, W).
        stride: Total stride, the product of the strides in the stack.
        reach: Pixels by which the receptive field of a position extends beyond it on either side, at most.
    """

    name: str
    module: nn.Module
    stride: int
    reach: int


def layers(seed: int = 0) -> list[Layer]:
    """Return layers and stacks that differ in padding, stride, pooling and blur.

    Args:
        seed: Random seed for the filters. Convolutions of the same shape at the same depth have the same filters.
    """

    def conv(
        padding_mode: Literal["zeros", "circular"], stride: int = 1, channels: int = 3, number: int = 0
    ) -> nn.Conv2d:
        # The forked generator lets the seed act in here only, and leaves the caller's random state as it is.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            # In float64, the error of an exactly equivariant layer is as small as rounding.
            return nn.Conv2d(channels, 8, 3, stride, 1, padding_mode=padding_mode, dtype=torch.float64)

    def three_stages(make_pooling: Callable[[], nn.Module]) -> nn.Sequential:
        stages = []
        for number, channels in enumerate((3, 8, 8)):
            stages.append(nn.Sequential(conv("circular", 1, channels, number), nn.ReLU(), make_pooling()))
        return nn.Sequential(*stages)

    def blurred() -> nn.Module:
        return nn.Sequential(_Pool("max", 1), BlurPool(2, 3, "circular"))

    # Circular padding leaves no border, so the errors are those of the stride; one layer has zeros for comparison.
    return [
        Layer("conv 3x3, circular", conv("circular"), 1, 1),
        Layer("conv 3x3, zero padding", conv("zeros"), 1, 1),
        Layer("conv, stride 2, ReLU", nn.Sequential(conv("circular", 2), nn.ReLU()), 2, 1),
        Layer("conv, ReLU, BlurPool", nn.Sequential(conv("circular"), nn.ReLU(), BlurPool(2, 3, "circular")), 2, 2),
        Layer("max pool 2x2", _Pool("max", 2), 2, 1),
        Layer("max pool, BlurPool", blurred(), 2, 2),
        Layer("average pool 2x2", _Pool("average", 2), 2, 1),
        # To the right, a stage reaches 2 or 3 steps of its own grid; a step is 1, 2 or 4 pixels of the image, by stage.
        Layer("3 stages, max pool", three_stages(partial(_Pool, "max", 2)), 8, 14),
        Layer("3 stages, BlurPool", three_stages(blurred), 8, 21),
    ]


class _Pool(nn.Module):
    """Max or average pooling over 2x2 windows; its padding is circular, so that only the stride has an effect."""

    def __init__(self, kind: str, stride: int) -> None:
        super().__init__()
        self.kind, self.stride = kind, stride

    def forward(self, x: Tensor) -> Tensor:
        # One more row and column keep the number of positions at stride 1, which an even window would lower.
        padded = F.pad(x, (0, 1, 0, 1), mode="circular")
        pool = F.max_pool2d if self.kind == "max" else F.avg_pool2d
        return pool(padded, 2, self.stride)


def shifted(maps: Tensor, places: float) -> Tensor:
    """Shift maps to the right; what leaves at the right edge comes back at the left.

    A whole number of positions is a roll. Other shifts use trigonometric interpolation, which is exact for a map
    without detail finer than its grid.

    Args:
        maps: Images or feature maps, (N, C, H, W).
        places: Shift in positions, which may be a fraction.
    """
    if places == int(places):
        return maps.roll(int(places), 3)
    width = maps.shape[3]
    # Fourier shift theorem: a shift multiplies the coefficient of frequency f by exp(-2 pi i f places).
    # Frequencies are in cycles per position, from 0 to 1/2; a real row needs no others.
    waves = torch.fft.rfftfreq(width, dtype=maps.dtype)
    turned = torch.fft.rfft(maps, dim=3) * torch.exp(-2j * torch.pi * waves * places)
    return torch.fft.irfft(turned, n=width, dim=3)


class Errors(NamedTuple):
    """Errors of the maps of a shifted image.

    All errors are in standard deviations of the maps: one for all channels, with each channel around its own mean.

    Attributes:
        whole: Root mean square error over the whole maps.
        centre: Root mean square error over their centre, which neither the border nor its shifted copy influences; NaN
            if the maps have no such part.
        places: Mean absolute error over the channels at each position, (H', W').
    """

    whole: float
    centre: float
    places: Tensor


def equivariance_error(layer: Layer, image: Tensor, pixels: int) -> Errors:
    """Measure how far the maps of the shifted image are from the shifted maps of the image.

    Args:
        layer: Layer or stack to measure.
        image: Image, (1, C, H, W), in float64; height and width are multiples of the stride.
        pixels: Shift to the right in pixels; what leaves at the right edge comes back at the left.
    """
    with torch.no_grad():
        maps = layer.module(image)
        # A shift of the image by the stride moves the maps by one position.
        difference = layer.module(shifted(image, pixels)) - shifted(maps, pixels / layer.stride)
    # Without a common scale, a layer with small outputs would seem to err less.
    scale = (maps - maps.mean((2, 3), keepdim=True)).square().mean().sqrt()
    # Positions that see the border, or saw it before the shift, lie within reach plus shift of the edge; rounded up.
    margin = -(-(layer.reach + pixels) // layer.stride)
    inner = difference[:, :, margin : difference.shape[2] - margin, margin : difference.shape[3] - margin]
    # Where the margins leave no centre, the mean of no values is NaN.
    whole, centre = (float(part.square().mean().sqrt() / scale) for part in (difference, inner))
    return Errors(whole, centre, difference.abs().mean((0, 1)) / scale)


class Share(NamedTuple):
    """A proportion with its 95 % Wilson score interval."""

    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """Accuracy and consistency of a network on shifted images.

    Attributes:
        name: Name of the network.
        images: Number of images.
        shifts: Shifts in pixels; negative ones are to the left or up.
        accuracy: Share of images that are classified correctly, per shift; the keys are ``across`` and ``down``.
        consistency: Share of images with the same predicted class as without a shift; keys as in ``accuracy``.
    """

    name: str
    images: int
    shifts: list[int]
    accuracy: dict[str, list[Share]]
    consistency: dict[str, list[Share]]

    def mean(self, what: str) -> float:
        """Return the mean of ``accuracy`` or ``consistency`` over both axes and all shifts except 0.

        Args:
            what: Name of the attribute, ``accuracy`` or ``consistency``.
        """
        values: list[float] = []
        for shares in getattr(self, what).values():
            # Without a shift the consistency is 1 by definition.
            values += [share.value for share, shift in zip(shares, self.shifts, strict=True) if shift != 0]
        return sum(values) / len(values)


def shift_curve(name: str, model: nn.Module, images: Tensor, labels: Tensor, most: int) -> Curve:
    """Measure accuracy and consistency of a classifier on shifted images.

    Images keep their size; the part that comes in at the border is a reflection of the image.

    Args:
        name: Name of the network.
        model: Classifier in evaluation mode, which maps images to logits.
        images: Normalised images, (N, C, H, W).
        labels: True classes, (N,).
        most: Largest shift in pixels, below height and width of the images.
    """
    # Every shift is then a crop of (N, C, H + 2 most, W + 2 most).
    padded = F.pad(images, (most,) * 4, mode="reflect")
    height, width = images.shape[2:]

    def predict(axis: str, shift: int) -> Tensor:
        # A crop that starts further up shows the content further down.
        top, left = most, most
        if axis == "down":
            top -= shift
        else:
            left -= shift
        with torch.inference_mode():
            crops = padded[:, :, top : top + height, left : left + width]
            # Parts of 500 images bound the memory that the feature maps take.
            return torch.cat([model(part).argmax(1) for part in crops.split(500)])

    still = predict("across", 0)
    shifts = list(range(-most, most + 1))
    accuracy: dict[str, list[Share]] = {axis: [] for axis in AXES}
    consistency: dict[str, list[Share]] = {axis: [] for axis in AXES}
    for axis in AXES:
        for shift in shifts:
            # The unshifted image is the same along both axes and has been classified already.
            predicted = still if shift == 0 else predict(axis, shift)
            accuracy[axis].append(_share(predicted == labels))
            consistency[axis].append(_share(predicted == still))
    return Curve(name, len(labels), shifts, accuracy, consistency)


def _share(hits: Tensor) -> Share:
    """Return the share of true values, with its interval."""
    count, total = int(hits.sum()), len(hits)
    return Share(count / total, *wilson_interval(count, total))


Measured = Sequence[tuple[Layer, list[Errors]]]
"""Layers and stacks, each with its errors on the photo for the shifts from 0 to `LAYER_SHIFT` pixels."""


class Pair(NamedTuple):
    """A network and its copy with BlurPool, trained in the same way.

    Attributes:
        models: Names and networks, on the CPU and in evaluation mode: the network, then the copy with BlurPool.
        steps: Number of training steps of each.
        remark: Sentences on how they were trained.
    """

    models: list[tuple[str, nn.Module]]
    steps: int
    remark: str


class Comparison(NamedTuple):
    """Networks on the same shifted images.

    Attributes:
        curves: Accuracy and consistency of each network.
        kind: Kind of the images in words.
        data: Name of the data set for readers.
        augmentation: Sentence on how the training images were augmented; empty if no network was trained.
        pair: Networks that were trained for this comparison; None if there are none.
    """

    curves: list[Curve]
    kind: str
    data: str
    augmentation: str
    pair: Pair | None


def explain(options: EquivarianceOptions) -> Explanation:
    """Measure layers on a photo, and a network on shifted images if the options name one.

    Raises:
        UserError: The options name no data set for the network, or they do not fit the network or the data.
    """
    image = image_for((3, SIDE, SIDE), read_photo()).double()
    measured = []
    for layer in layers(options.seed):
        errors = [equivariance_error(layer, image, pixels) for pixels in range(LAYER_SHIFT + 1)]
        measured.append((layer, errors))
    comparison = None
    if options.model or options.ckpt_path:
        comparison = _compare_networks(options)
    tables = [_layer_table(measured)]
    pictures = [
        Picture("equivariance_maps", "Where maps do not follow", MAPS_CAPTION, _draw_maps(image, measured)),
        Picture("equivariance_layers", "Layers against shifts", LAYERS_CAPTION, _draw_layers(measured)),
    ]
    if comparison is not None:
        tables.append(_network_table(comparison))
        figure = _draw_curves(comparison.curves)
        pictures.append(Picture("equivariance_accuracy", "Shifted images", CURVES_CAPTION, figure))
    return Explanation(_numbers(measured, comparison), tables, pictures, _remarks(comparison))


def _compare_networks(options: EquivarianceOptions) -> Comparison:
    """Measure the networks that the options name on shifted images, after training a pair if they ask for one."""
    subject = find_subject(options)
    data = _open(subject)
    size, most = subject.image_shape[1], options.max_shift
    if most >= size:
        raise UserError(f"max_shift {most} must be below the image size, {size} pixels")
    pair = None
    subjects, models = [subject], [(subject.description, subject.model)]
    if options.train_seconds or options.train_steps:
        pair = _train_pair(options, data)
        # The pair takes the place of the subject; both of its networks were trained on the subject's data.
        subjects, models = [subject._replace(trained=True)] * 2, [*pair.models]
    if options.compare:
        other = load_checkpoint(options.compare, options)
        if other.image_shape != subject.image_shape:
            raise UserError(f"'{options.compare}' takes images of another size or number of channels")
        subjects.append(other)
        models.append((other.description, other.model))
    kind, images, labels = _unseen_images(data, subjects, options.images)
    names = _distinct([name for name, _ in models])
    curves = []
    for name, (_, model) in zip(names, models, strict=True):
        curves.append(shift_curve(name, model, images, labels, most))
    return Comparison(curves, kind, data.label, _augmentation(subjects, names), pair)


def _open(subject: Subject) -> Any:
    """Return the data set of a network, set up; raise UserError if there is none, or if its images do not fit."""
    data = subject.data
    if data is None:
        raise UserError("shifted images come from a data set; name it with --data, such as --data CIFAR10")
    own = (data.in_channels, data.image_size)
    if own != subject.image_shape[:2]:
        raise UserError(
            f"{data.title} has {own[0]} channels of {own[1]} pixels, the network takes {subject.image_shape[0]} of "
            f"{subject.image_shape[1]}; use another --data"
        )
    data.prepare_data()
    data.setup()
    return data


def _unseen_images(data: Any, subjects: Sequence[Subject], count: int | None) -> tuple[str, Tensor, Tensor]:
    """Return the first images on which none of the networks was trained.

    These are validation images if all trained networks are known to have the same validation split. Otherwise they are
    test images, which no network was trained on.

    Args:
        data: Data set, set up.
        subjects: Networks that the images are for.
        count: Number of images; None for `SHIFTED_IMAGES`, or all if there are fewer.

    Returns:
        Kind of the images in words, normalised images (N, C, H, W), and labels (N,).

    Raises:
        UserError: The data set has fewer such images.
    """
    known = True
    splits = []
    for subject in subjects:
        # A network with random weights has seen no image, so any image is unseen for it.
        if subject.trained:
            # Without its data, it is not known which images a trained network has seen.
            known = known and not subject.caveat and subject.data is not None
            if subject.data is not None:
                splits.append({key: value for key, value in subject.data.hparams.items() if key not in LATER})
    # Validation splits are the same if all arguments that decide about them agree.
    agree = all(split == splits[0] for split in splits)
    kind, batches = "validation images", data.val_dataloader()
    # A data set may have no validation images at all.
    if not (known and agree and batches):
        kind, batches = "test images", data.test_dataloader()
    available = len(batches.labels)
    if count is None:
        count = min(SHIFTED_IMAGES, available)
    if available < count:
        raise UserError(f"images {count} are more than the {available:,} {kind} of {data.label}; use fewer")
    # Batches are pairs of images and labels; `zip` turns them into a column of each.
    # No more batches than needed are read, since all images may not fit into memory.
    needed = islice(batches, -(-count // batches.batch_size))
    images, labels = (torch.cat(column)[:count] for column in zip(*needed, strict=True))
    return kind, images, labels


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names; to a name that occurs more than once, its position in the list is added."""
    numbered = []
    for position, name in enumerate(names, 1):
        numbered.append(name if names.count(name) == 1 else f"{name} ({position})")
    return numbered


def _augmentation(subjects: Sequence[Subject], names: Sequence[str]) -> str:
    """Return a sentence on how the training images of the networks were augmented; empty if none was trained."""
    networks: dict[str, list[str]] = {}  # names of the networks by augmentation, in words
    for subject, name in zip(subjects, names, strict=True):
        if subject.trained:
            words = "not known"
            if subject.data is not None and not subject.caveat:
                words = subject.data.describe()["augmentation"]
            networks.setdefault(words, []).append(name)
    if not networks:
        return ""
    parts = list(networks)
    if len(parts) > 1:
        parts = [f"{words} ({', '.join(networks[words])})" for words in parts]
    return f"Augmentation of the training images: {'; '.join(parts)}. "


def _train_pair(options: EquivarianceOptions, data: Any) -> Pair:
    """Train MODEL and a copy of it with BlurPool, from the same initial weights and for the same number of steps.

    With ``train_seconds``, a third copy is trained for a part of that time (`PROBE`) and thrown away, to estimate how
    many steps fit into the seconds. Both networks then train for this number of steps, because under a time budget
    their learning rates would follow the clock and differ from each other.
    """
    quiet_lightning()
    L.seed_everything(options.seed, workers=True, verbose=False)
    assert options.model is not None  # `Options` has checked this.
    plain = make_classifier(options.model, data.num_classes, data.in_channels, data.image_size)
    blurred = cast("ImageClassifier", with_blurpool(plain))
    steps, about = options.train_steps, ""
    if not steps:
        probe = TimeBudget(max(options.train_seconds * PROBE, 1e-3))
        # The probe trains a copy, so the weights of `plain` are still the initial ones.
        probe_steps = _fit(copy.deepcopy(plain), data, -1, options.seed, [probe])
        # A step may end after the budget, so the seconds that were really used count.
        steps = max(1, round(probe_steps * options.train_seconds / probe.used_s))
        about = f", about {options.train_seconds:g} s"
    for model in (plain, blurred):
        _fit(model, data, steps, options.seed)
    remark = (
        f"{options.model} was trained for {steps:,} steps{about}, and the copy with "
        "BlurPool, from the same weights, for as many, with the same batches and learning rates; it takes longer for "
        "them. One seed and a short training: a longer one may tell another story."
    )
    models: list[tuple[str, nn.Module]] = [
        (f"{options.model}, {steps:,} steps", plain.cpu().eval()),
        (f"with BlurPool, {steps:,} steps", blurred.cpu().eval()),
    ]
    return Pair(models, steps, remark)


def _fit(model: ImageClassifier, data: Any, steps: int, seed: int, callbacks: Sequence[L.Callback] = ()) -> int:
    """Train a network for a number of steps, or with -1 until a callback ends it; return how many steps it took."""
    L.seed_everything(seed, workers=True, verbose=False)  # All networks see the same batches.
    # For Lightning, -1 epochs means no limit; the steps or a callback end the training.
    trainer = make_trainer(
        choose_device("auto"), callbacks, precision="32-true", max_epochs=-1, max_steps=steps, limit_val_batches=0
    )
    trainer.fit(model, datamodule=data)
    return trainer.global_step


def _numbers(measured: Measured, comparison: Comparison | None) -> dict[str, Any]:
    """Return the values for the JSON document."""
    numbers: dict[str, Any] = {"layers": [], "networks": []}
    for layer, errors in measured:
        # JSON has no NaN; a missing centre becomes null.
        centres = [None if math.isnan(error.centre) else error.centre for error in errors]
        numbers["layers"].append(
            {
                "layer": layer.name,
                "stride": layer.stride,
                "shifts": list(range(len(errors))),
                "relative_error": [error.whole for error in errors],
                "relative_error_centre": centres,
            }
        )
    if comparison is None:
        return numbers
    for curve in comparison.curves:
        network: dict[str, Any] = {"model": curve.name, "data": comparison.data, "images": curve.images}
        network |= {"kind": comparison.kind, "shifts": curve.shifts, "accuracy": {}, "consistency": {}}
        for what in ("accuracy", "consistency"):
            for axis, shares in getattr(curve, what).items():
                network[what][axis] = [share._asdict() for share in shares]
        numbers["networks"].append(network)
    if comparison.pair is not None:
        numbers["train_steps"] = comparison.pair.steps
    return numbers


def _remarks(comparison: Comparison | None) -> list[str]:
    """Return sentences on how images and maps were shifted, and on how the networks were trained."""
    remarks = [
        "Shifts go around the edge, so a layer with circular padding has no border. Between two places of a stride the "
        "maps are shifted by trigonometric interpolation, which is exact for maps without aliasing."
    ]
    if comparison is None:
        remarks.append(
            "With --ckpt_path FILE, or MODEL and --data NAME, the accuracy of a network on shifted images is measured "
            "too; --train_seconds S trains MODEL with and without BlurPool first."
        )
        return remarks
    if comparison.pair is not None:
        remarks.append(comparison.pair.remark)
    remarks.append(
        "Images are shifted within their frame, with their reflection in what comes in at the border. "
        f"{comparison.augmentation}Shifts that training has shown are learnt, whatever the layers do."
    )
    return remarks


def _layer_table(measured: Measured) -> Table:
    """Return the errors of the layers at some of the shifts."""
    shifts = (1, 2, 4, 8)
    rows = []
    for layer, errors in measured:
        cells = [_error(errors[shift].whole) for shift in shifts]
        rows.append((layer.name, str(layer.stride), *cells, _error(errors[1].centre)))
    head = ("Layer", "Stride", *(f"Shift {shift}" for shift in shifts), "Shift 1, centre")
    return Table("Error of the maps when the image is shifted, in their standard deviations", head, rows)


def _error(value: float) -> str:
    """Return an error as text, a dash for NaN."""
    if math.isnan(value):
        return "-"
    if value == 0:
        return "0"
    return f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def _network_table(comparison: Comparison) -> Table:
    """Return the accuracy and consistency of the networks in a few figures."""
    rows = []
    for curve in comparison.curves:
        still = curve.accuracy["across"][curve.shifts.index(0)]
        lowest = min(min(share.value for share in shares) for shares in curve.consistency.values())
        means = [f"{curve.mean(what):.1%}" for what in ("accuracy", "consistency")]
        rows.append((curve.name, f"{still.value:.1%}", *means, f"{lowest:.1%}"))
    first = comparison.curves[0]
    title = (
        f"Shifts of 1 to {first.shifts[-1]} pixels in four directions, {first.images:,} {comparison.kind} of "
        f"{comparison.data}"
    )
    head = ("Network", "Accuracy, no shift", "Accuracy, mean", "Consistency, mean", "Consistency, lowest")
    return Table(title, head, rows)


def _draw_maps(image: Tensor, measured: Measured) -> Figure:
    """Draw the photo, and for each layer where its maps are wrong after a shift of 1 pixel."""
    figure, axes = grid(len(measured) + 1, 3, cell=1.9)
    show(axes[0], image[0].permute(1, 2, 0), "photo", "unit")
    for ax, (layer, errors) in zip(axes[1:], measured, strict=True):
        title = f"{layer.name}\nerror {_error(errors[1].whole)}"
        # The scale `unit` ends at 1, so after this division the brightest colour stands for `BRIGHT`.
        show(ax, errors[1].places / BRIGHT, title, "unit", colours="magma")
    return figure


def _draw_layers(measured: Measured) -> Figure:
    """Draw the error against the shift, single layers above and stacks of three stages below."""
    figure = Figure(figsize=(5.7, 6.6), layout="constrained")
    axes = figure.subplots(2, 1, sharey=True)
    for ax, stacked, title in zip(axes, (False, True), ("single layers", "three stages"), strict=True):
        group = [(layer, errors) for layer, errors in measured if ("stages" in layer.name) == stacked]
        for number, (layer, errors) in enumerate(group):
            values = [error.whole for error in errors]
            form, colour = MARKERS[number] + LINES[number % 4], PALETTE[number]
            ax.plot(values, form, color=colour, label=layer.name, markersize=4.5, linewidth=1.4)
        ax.set(xlabel="shift, pixels", title=title)
        ax.set_xticks(range(LAYER_SHIFT + 1))
        _pale_grid(ax)
        ax.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        ax.set_ylabel("error, standard deviations")
    # With a limit of exactly 0, markers at zero would be cut in half.
    axes[0].set_ylim(bottom=-0.02)
    return figure


def _draw_curves(curves: Sequence[Curve]) -> Figure:
    """Draw accuracy above and consistency below, against shifts across on the left and down on the right."""
    figure = Figure(figsize=(5.7, 5.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for row, what in zip(axes, ("accuracy", "consistency"), strict=True):
        for ax, axis in zip(row, AXES, strict=True):
            for number, curve in enumerate(curves):
                shares, colour = getattr(curve, what)[axis], PALETTE[number]
                low, high = [share.low for share in shares], [share.high for share in shares]
                values = [share.value for share in shares]
                ax.plot(curve.shifts, values, LINES[number], color=colour, label=curve.name)
                ax.fill_between(curve.shifts, low, high, color=colour, alpha=0.18, linewidth=0)
            _pale_grid(ax)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        row[0].set_ylabel(what)
    for above, below, directions in zip(axes[0], axes[1], AXES.values(), strict=True):
        above.set_title(directions, fontsize=10)
        below.set_xlabel("shift, pixels")
    if len(curves) > 1:
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", frameon=False)
    return figure


def _pale_grid(ax: Axes) -> None:
    """Draw a pale grid behind the lines of a panel, and no frame above and on the right."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e6e6e6", linewidth=0.7)
    ax.set_axisbelow(True)
