"""AlexNet: the network that won the ImageNet challenge of 2012 and began the era of deep convolutional networks."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from cnnbench.blocks import Form, initialise
from cnnbench.training.classifier import ImageClassifier


class Conv(NamedTuple):
    """Convolution, optionally followed by overlapping max pooling (3x3 windows, stride 2)."""

    width: int
    kernel_size: int
    stride: int
    padding: int
    pool: bool


STEM = {"imagenet": Conv(64, 11, 4, 2, pool=True), "cifar": Conv(64, 3, 1, 1, pool=True)}
CONVS = (
    Conv(192, 5, 1, 2, pool=True),
    Conv(384, 3, 1, 1, pool=False),
    Conv(256, 3, 1, 1, pool=False),
    Conv(256, 3, 1, 1, pool=True),
)


class AlexNet(ImageClassifier):
    """ImageNet Classification with Deep Convolutional Neural Networks; Krizhevsky, Sutskever, Hinton; 2012.

    The ``imagenet`` form is the single tower of Krizhevsky 2014 (1404.5997), as in torchvision: 61,100,840 parameters
    and 714,188,480 MACs at 224x224/1000. The ``cifar`` form differs in its 3x3 stem of stride 1 and in padded poolings;
    its head sees 4x4 feature maps.
    Differences from the paper: one tower, with the widths of 2014, in place of two that meet at few layers; no local
    response normalisation; an adaptive last pooling, which does nothing at 224x224; He initialisation in place of a
    fixed deviation of .01 and biases of 1, which depend on images that are not normalised.

    Args:
        form: Form of the network: ``imagenet``, ``cifar``, or ``auto``, which chooses ``cifar`` below 64 pixels.
        dropout: Probability of dropout before each of the two hidden linear layers.
    """

    min_image_size = 16
    peak_lr = 0.0005
    key_idea = "ReLU, dropout and GPUs make a large CNN trainable"
    torchvision_name = "alexnet"

    def __init__(self, form: Form = "auto", dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        form = self.choose_form(form)
        self.require_size({"imagenet": 63, "cifar": 16}[form])
        channels, size = self.in_channels, {"imagenet": 6, "cifar": 4}[form]
        layers: list[nn.Module] = []
        for row in (STEM[form], *CONVS):
            layers += [nn.Conv2d(channels, *row[:4]), nn.ReLU(inplace=True)]
            if row.pool:
                layers.append(nn.MaxPool2d(3, stride=2, padding=1 if form == "cifar" else 0))
            channels = row.width
        self.features = nn.Sequential(*layers)  # (N, 256, 6, 6) from 224x224, (N, 256, 4, 4) from 32x32
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(size),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels * size**2, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, self.num_classes),
        )
        self.apply(initialise)
