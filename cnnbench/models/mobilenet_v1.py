"""MobileNet: depthwise separable convolutions in place of standard convolutions."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from cnnbench.blocks import ConvNormAct, Form, SeparableConv, initialise, make_divisible
from cnnbench.training.classifier import ImageClassifier, Published


class Row(NamedTuple):
    """One separable convolution of the paper's table 1."""

    width: int
    stride: int


TABLE_1 = (
    Row(64, 1),
    Row(128, 2),
    Row(128, 1),
    Row(256, 2),
    Row(256, 1),
    Row(512, 2),
    *[Row(512, 1)] * 5,
    Row(1024, 2),
    Row(1024, 1),
)


class MobileNetV1(ImageClassifier):
    """MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications; Howard, Zhu, Chen et al.;
    2017; 1704.04861.

    The ``imagenet`` form has a stem of stride 2: 4,231,976 parameters and 568,740,352 MACs at 224x224/1000. The
    ``cifar`` form keeps the resolution in the stem: 3,217,226 parameters and 46,354,432 MACs at 32x32/10.
    Differences from the paper: none in the layers; table 1 lists the last stride as 2, a misprint for 1 (its output
    stays 7x7). Scaled widths are rounded to multiples of 8, which changes none of the paper's four networks.

    Args:
        form: Form of the network: ``imagenet``, ``cifar``, or ``auto``, which chooses ``cifar`` below 64 pixels.
        width_multiplier: Factor on the width of every layer; the paper has 1, 0.75, 0.5 and 0.25.
    """

    min_image_size = 16
    peak_lr = 0.01
    key_idea = "depthwise separable convolutions"
    published = Published(70.6, "ImageNet", "1704.04861, table 6")

    def __init__(self, form: Form = "auto", width_multiplier: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check_positive(width_multiplier=width_multiplier)
        stride = 1 if self.choose_form(form) == "cifar" else 2
        channels = make_divisible(32 * width_multiplier)
        layers: list[nn.Module] = [ConvNormAct(self.in_channels, channels, stride=stride)]
        for row in TABLE_1:
            width = make_divisible(row.width * width_multiplier)
            layers.append(SeparableConv(channels, width, row.stride))
            channels = width
        self.features = nn.Sequential(*layers)  # (N, 1024, 2, 2) from 32x32, (N, 1024, 7, 7) from 224x224
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, self.num_classes))
        self.apply(initialise)
