"""The narrow ResNets that the paper made for CIFAR-10, and PlainNets, the same networks without shortcuts.

A plain network of 56 layers has a higher training error than one of 20. Residual blocks prevent this degradation.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from torch import nn

from cnnbench.blocks import ConvNormAct, initialise
from cnnbench.models.resnet import BasicBlock, Shortcut, Stage, stack
from cnnbench.training.classifier import ImageClassifier, Published

TABLE_6 = "1512.03385, table 6"


class _CifarResNet(ImageClassifier):
    """Deep Residual Learning for Image Recognition, section 4.2; He, Zhang, Ren, Sun; 2015; 1512.03385.

    Each has 6n + 2 weighted layers: a 3x3 convolution, three stages of n basic blocks with 16, 32 and 64 channels, and
    a linear layer. Shortcuts pad with zeros (option A), so a plain network has exactly the same number of parameters.
    Differences from the paper: none in the layers. There is no second form for larger images.
    """

    min_image_size = 4
    peak_lr = 0.003
    key_idea = "shortcuts cure the degradation of depth"
    depth: ClassVar[int]
    shortcut: ClassVar[Shortcut] = "padding"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        blocks = (self.depth - 2) // 6
        stages = [Stage(blocks, 16, 1), Stage(blocks, 32, 2), Stage(blocks, 64, 2)]
        layers, channels = stack(16, stages, partial(BasicBlock, shortcut=self.shortcut))
        self.features = nn.Sequential(ConvNormAct(self.in_channels, 16), *layers)  # (N, 64, 8, 8) from 32x32
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, self.num_classes))
        self.apply(initialise)


class ResNet20(_CifarResNet):
    """ResNet-20: 269,722 parameters and 40,551,040 MACs at 32x32/10."""

    published = Published(91.25, "CIFAR-10", TABLE_6)
    depth = 20


class ResNet32(_CifarResNet):
    """ResNet-32: 464,154 parameters and 68,862,592 MACs at 32x32/10."""

    published = Published(92.49, "CIFAR-10", TABLE_6)
    depth = 32


class ResNet44(_CifarResNet):
    """ResNet-44: 658,586 parameters and 97,174,144 MACs at 32x32/10."""

    published = Published(92.83, "CIFAR-10", TABLE_6)
    depth = 44


class ResNet56(_CifarResNet):
    """ResNet-56: 853,018 parameters and 125,485,696 MACs at 32x32/10."""

    published = Published(93.03, "CIFAR-10", TABLE_6)
    depth = 56


class ResNet110(_CifarResNet):
    """ResNet-110: 1,727,962 parameters and 252,887,680 MACs at 32x32/10."""

    published = Published(93.57, "CIFAR-10", TABLE_6)
    depth = 110


class _PlainCifarNet(_CifarResNet):
    """Deep Residual Learning for Image Recognition, section 4.2; He, Zhang, Ren, Sun; 2015; 1512.03385.

    This is the paper's control, with the same layers but without shortcuts.
    Differences from the paper: none in the layers.
    """

    key_idea = "the control: as deep, without shortcuts"
    shortcut = "nothing"


class PlainNet20(_PlainCifarNet):
    """ResNet-20 with nothing carried around its blocks."""

    depth = 20


class PlainNet32(_PlainCifarNet):
    """ResNet-32 with nothing carried around its blocks."""

    depth = 32


class PlainNet44(_PlainCifarNet):
    """ResNet-44 with nothing carried around its blocks."""

    depth = 44


class PlainNet56(_PlainCifarNet):
    """ResNet-56 with nothing carried around its blocks."""

    depth = 56


class PlainNet110(_PlainCifarNet):
    """ResNet-110 with nothing carried around its blocks."""

    depth = 110
