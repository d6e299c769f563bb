"""ResNet: a block learns what to add to its input, so that depth does not hurt."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnnbench.blocks import ConvNormAct, Form, initialise, resolve_form
from cnnbench.classifier import ImageClassifier


class Stage(NamedTuple):
    """Blocks of one width; the first has the stride."""

    blocks: int
    width: int
    stride: int


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is carried; a 1x1 projection where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ConvNormAct(in_channels, out_channels, stride=stride),
            ConvNormAct(out_channels, out_channels, act=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvNormAct(in_channels, out_channels, kernel_size=1, stride=stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


class ResNet18(ImageClassifier):
    """Deep Residual Learning for Image Recognition; He, Zhang, Ren, Sun; 2015; 1512.03385.

    The ``imagenet`` form has the paper's stem (7x7 stride 2 and max pooling): 11,689,512 parameters and 1,814,073,344
    MACs at 224x224/1000. The ``cifar`` form has one 3x3 convolution in its place, the shape usual for 32x32:
    11,173,962 parameters and 555,422,720 MACs for ten classes.
    Differences from the paper: projections where the shape changes (its option B) also at 32x32, for which the paper
    uses other, narrower networks.

    Args:
        form: Which of the two; ``auto`` takes ``cifar`` below 64 pixels.
    """

    min_image_size = 8
    peak_lr = 0.001
    stages = (Stage(2, 64, 1), Stage(2, 128, 2), Stage(2, 256, 2), Stage(2, 512, 2))

    def __init__(self, form: Form = "auto", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        channels = self.stages[0].width
        if resolve_form(form, self.image_size) == "cifar":
            layers: list[nn.Module] = [ConvNormAct(self.in_channels, channels)]
        else:
            stem = ConvNormAct(self.in_channels, channels, kernel_size=7, stride=2)
            layers = [stem, nn.MaxPool2d(3, stride=2, padding=1)]
        for stage in self.stages:
            for index in range(stage.blocks):
                layers.append(BasicBlock(channels, stage.width, stage.stride if index == 0 else 1))
                channels = stage.width
        self.features = nn.Sequential(*layers)  # (N, 512, 4, 4) from 32x32, (N, 512, 7, 7) from 224x224
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, self.num_classes))
        self.apply(initialise)
