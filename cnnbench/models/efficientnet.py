"""EfficientNet: a small network from a search, and one rule that scales its depth, width and resolution together."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple, cast

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from cnnbench.blocks import ConvNormAct, Form, SqueezeExcitation, initialise, make_divisible
from cnnbench.errors import UserError
from cnnbench.training.classifier import ImageClassifier

ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15
"""Result of the paper's grid search under alpha * beta^2 * gamma^2 ~ 2 (here 1.92): a step of phi doubles the MACs."""


class Scaling(NamedTuple):
    """Factors on depth and width, and the resolution in pixels."""

    depth: float
    width: float
    resolution: float


def compound_scaling(phi: float) -> Scaling:
    """Return the scaling for phi by equation 3: depth alpha^phi, width beta^phi, resolution 224 * gamma^phi.

    The published B1 (phi = 0.5) and B2 (phi = 1) round these factors; the classes below have their constants.
    """
    return Scaling(ALPHA**phi, BETA**phi, 224 * GAMMA**phi)


class Row(NamedTuple):
    """A stage of the paper's table 1; the first block has the stride."""

    expansion: int
    kernel_size: int
    width: int
    blocks: int
    stride: int


TABLE_1 = (
    Row(1, 3, 16, 1, 1),
    Row(6, 3, 24, 2, 2),
    Row(6, 5, 40, 2, 2),
    Row(6, 3, 80, 3, 2),
    Row(6, 5, 112, 3, 1),
    Row(6, 5, 192, 4, 2),
    Row(6, 3, 320, 1, 1),
)


class MBConv(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise, squeeze-and-excitation, 1x1 projection; shortcut if shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, row: Row, stride: int, drop_path: float) -> None:
        super().__init__()
        hidden = row.expansion * in_channels
        expand = [ConvNormAct(in_channels, hidden, kernel_size=1, act=nn.SiLU)] if row.expansion > 1 else []
        self.residual = nn.Sequential(
            *expand,
            ConvNormAct(hidden, hidden, row.kernel_size, stride, groups=hidden, act=nn.SiLU),
            SqueezeExcitation(hidden, in_channels // 4),
            ConvNormAct(hidden, out_channels, kernel_size=1, act=None),
        )
        self.carries = stride == 1 and in_channels == out_channels  # a shortcut only where the shape stays the same
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        added = self.residual(x)
        return x + cast(Tensor, self.drop_path(added)) if self.carries else added


class _EfficientNet(ImageClassifier):
    """EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks; Tan, Le; 2019; 1905.11946.

    The ``cifar`` form keeps the resolution in the stem. Each network takes any resolution, not just its published one.
    Differences from the paper: its optimizer, its augmentation, its initialisation with fan-out, and the batch norm
    settings of its TensorFlow code (epsilon .001, momentum .01) are not used.

    Args:
        form: Form of the network: ``imagenet``, ``cifar``, or ``auto``, which chooses ``cifar`` below 64 pixels.
        dropout: Probability of dropout before the linear layer; unset, the published one.
        drop_path: Probability that the residual of a block is dropped in training (stochastic depth); it grows linearly
            from 0 for the first block to nearly this value for the last.
    """

    min_image_size = 16
    peak_lr = 0.003
    key_idea = "compound scaling of depth, width, resolution"
    published_dropout: ClassVar[float] = 0.2
    scaling: ClassVar[Scaling]

    def __init__(
        self, form: Form = "auto", dropout: float | None = None, drop_path: float = 0.2, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= drop_path < 1:
            raise UserError(f"drop_path {drop_path} of {type(self).__name__} is not a probability below 1")
        depth, width, _ = self.scaling
        channels = make_divisible(32 * width)
        stride = 1 if self.choose_form(form) == "cifar" else 2
        layers: list[nn.Module] = [ConvNormAct(self.in_channels, channels, stride=stride, act=nn.SiLU)]
        repeats = [math.ceil(row.blocks * depth) for row in TABLE_1]
        for row, blocks in zip(TABLE_1, repeats, strict=True):
            for index in range(blocks):
                drop = drop_path * (len(layers) - 1) / sum(repeats)
                out_channels = make_divisible(row.width * width)
                layers.append(MBConv(channels, out_channels, row, row.stride if index == 0 else 1, drop))
                channels = out_channels
        layers.append(ConvNormAct(channels, 4 * channels, kernel_size=1, act=nn.SiLU))
        self.features = nn.Sequential(*layers)  # in B0 (N, 1280, 2, 2) from 32x32, (N, 1280, 7, 7) from 224x224
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(self.published_dropout if dropout is None else dropout),
            nn.Linear(4 * channels, self.num_classes),
        )
        self.apply(initialise)


class EfficientNetB0(_EfficientNet):
    """EfficientNet-B0: 5,288,548 parameters and 385,814,752 MACs at 224x224/1000."""

    torchvision_name = "efficientnet_b0"
    scaling = Scaling(1.0, 1.0, 224)


class EfficientNetB1(_EfficientNet):
    """EfficientNet-B1: 7,794,184 parameters at 1000 classes; its own resolution is 240x240."""

    torchvision_name = "efficientnet_b1"
    scaling = Scaling(1.1, 1.0, 240)


class EfficientNetB2(_EfficientNet):
    """EfficientNet-B2: 9,109,994 parameters at 1000 classes; its own resolution is 260x260."""

    torchvision_name = "efficientnet_b2"
    published_dropout = 0.3
    scaling = Scaling(1.2, 1.1, 260)
