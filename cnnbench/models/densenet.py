"""DenseNet: every layer receives the outputs of all earlier layers of its block."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cnnbench.blocks import Form, initialise
from cnnbench.training.classifier import ImageClassifier, Published


class NormActConv(nn.Sequential):
    """Batch normalisation, ReLU, convolution without bias: the paper's H, in the order of pre-activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        )


class DenseLayer(nn.Module):
    """1x1 convolution to 4 * growth_rate channels, then 3x3 to growth_rate; the output is appended to the input."""

    def __init__(self, in_channels: int, growth_rate: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            NormActConv(in_channels, 4 * growth_rate, kernel_size=1),
            NormActConv(4 * growth_rate, growth_rate, kernel_size=3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


class Transition(nn.Sequential):
    """Layer between two blocks: a 1x1 convolution halves the channels, 2x2 average pooling the resolution."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(NormActConv(in_channels, in_channels // 2, kernel_size=1), nn.AvgPool2d(2))


class _DenseNet(ImageClassifier):
    """Densely Connected Convolutional Networks; Huang, Liu, van der Maaten, Weinberger; 2016; 1608.06993.

    This is DenseNet-BC: a block of L layers turns k0 input channels into k0 + L * growth_rate. The ``imagenet`` form
    has the paper's 7x7 stem with pooling. The ``cifar`` form has one 3x3 convolution without normalisation in its
    place, which is usual for 32x32 images.
    Differences from the paper: for 32x32 images the paper has other, narrower networks with three blocks.

    Args:
        form: Form of the network: ``imagenet``, ``cifar``, or ``auto``, which chooses ``cifar`` below 64 pixels.
        growth_rate: Number of channels that each layer adds.
    """

    min_image_size = 8
    peak_lr = 0.001
    key_idea = "each layer sees all before it"
    layers: ClassVar[tuple[int, int, int, int]]

    def __init__(self, form: Form = "auto", growth_rate: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check_positive(growth_rate=growth_rate)
        channels = 2 * growth_rate
        features: list[nn.Module] = []
        form = self.choose_form(form)
        self.require_size({"imagenet": 29, "cifar": 8}[form])
        if form == "cifar":
            features.append(nn.Conv2d(self.in_channels, channels, 3, padding=1, bias=False))
        else:
            features += [
                nn.Conv2d(self.in_channels, channels, 7, stride=2, padding=3, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, stride=2, padding=1),
            ]
        for index, layers in enumerate(self.layers):
            if index > 0:
                features.append(Transition(channels))
                channels //= 2
            block = [DenseLayer(channels + i * growth_rate, growth_rate) for i in range(layers)]
            features.append(nn.Sequential(*block))
            channels += layers * growth_rate
        self.features = nn.Sequential(*features)  # (N, 1024 in DenseNet121, 4, 4) from 32x32, 7x7 from 224x224
        self.classifier = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, self.num_classes),
        )
        self.apply(initialise)


class DenseNet121(_DenseNet):
    """DenseNet-121: 7,978,856 parameters and 2,834,161,664 MACs at 224x224/1000.

    The ``cifar`` form has 6,956,298 parameters and 888,350,720 MACs at 32x32/10.
    """

    torchvision_name = "densenet121"
    published = Published(95.04, "CIFAR-10", "github.com/kuangliu/pytorch-cifar")
    layers = (6, 12, 24, 16)


class DenseNet169(_DenseNet):
    """DenseNet-169: 14,149,480 parameters and 3,359,843,328 MACs at 224x224/1000."""

    torchvision_name = "densenet169"
    layers = (6, 12, 32, 32)


class DenseNet201(_DenseNet):
    """DenseNet-201: 20,013,928 parameters and 4,291,365,888 MACs at 224x224/1000."""

    torchvision_name = "densenet201"
    layers = (6, 12, 48, 32)
