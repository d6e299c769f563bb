"""ResNet: each block learns what to add to its input, so that more depth does not lower the accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from cnnbench.blocks import ConvNormAct, Form, PadChannels, initialise
from cnnbench.errors import unknown
from cnnbench.training.classifier import ImageClassifier, Published

Shortcut = Literal["projection", "padding", "nothing"]
StrideOn = Literal["3x3", "1x1"]


class Stage(NamedTuple):
    """Blocks of one width; the first has the stride."""

    blocks: int
    width: int
    stride: int


class Block(nn.Module):
    """Residual block: the sum of a residual and a shortcut, followed by ReLU.

    Args:
        residual: Layers whose output is added to the input, without activation after the last.
        in_channels, out_channels, stride: Input channels, output channels and stride of ``residual``.
        shortcut: Shortcut where the shape changes: a 1x1 ``projection`` (option B) or zero ``padding`` of the channels
            (option A); elsewhere it is the identity. ``nothing`` makes a plain block, which has no shortcut at all.
    """

    def __init__(
        self, residual: nn.Module, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut = "projection"
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.residual = residual
        self.shortcut: nn.Module | None = None if shortcut == "nothing" else nn.Identity()
        if stride != 1 or in_channels != out_channels:
            if shortcut == "projection":
                self.shortcut = ConvNormAct(in_channels, out_channels, kernel_size=1, stride=stride, act=None)
            elif shortcut == "padding":
                self.shortcut = PadChannels(out_channels - in_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        added = self.residual(x)
        return torch.relu(added if self.shortcut is None else added + self.shortcut(x))


class BasicBlock(Block):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut = "projection") -> None:
        residual = nn.Sequential(
            ConvNormAct(in_channels, width, stride=stride),
            ConvNormAct(width, width, act=None),
        )
        super().__init__(residual, in_channels, width, stride, shortcut)


class Bottleneck(Block):
    """1x1 to a quarter of the output channels, 3x3, 1x1 back; the stride is on the 3x3, or (the paper) on the first."""

    def __init__(self, in_channels: int, width: int, stride: int, stride_on: StrideOn) -> None:
        first, second = (1, stride) if stride_on == "3x3" else (stride, 1)
        residual = nn.Sequential(
            ConvNormAct(in_channels, width, kernel_size=1, stride=first),
            ConvNormAct(width, width, stride=second),
            ConvNormAct(width, 4 * width, kernel_size=1, act=None),
        )
        super().__init__(residual, in_channels, 4 * width, stride)


class _ResNet(ImageClassifier):
    """Deep Residual Learning for Image Recognition; He, Zhang, Ren, Sun; 2015; 1512.03385.

    The ``imagenet`` form has the paper's stem, a 7x7 convolution of stride 2 and max pooling. The ``cifar`` form has
    one 3x3 convolution in its place, which is usual for 32x32 images.
    Differences from the paper: in the bottlenecks the stride is on the 3x3 convolution, as in torchvision, unless
    ``stride_on`` is ``1x1``; the ``cifar`` form has projections (option B) too, where the paper has other networks.
    """

    min_image_size = 8
    peak_lr = 0.001
    key_idea = "blocks learn what to add to their input"
    stages: ClassVar[tuple[Stage, ...]]

    def _build(self, form: Form, block: Callable[[int, int, int], Block]) -> None:
        channels = self.stages[0].width
        if self.choose_form(form) == "cifar":
            stem: list[nn.Module] = [ConvNormAct(self.in_channels, channels)]
        else:
            pool = nn.MaxPool2d(3, stride=2, padding=1)
            stem = [ConvNormAct(self.in_channels, channels, kernel_size=7, stride=2), pool]
        blocks, channels = stack(channels, self.stages, block)
        self.features = nn.Sequential(*stem, *blocks)  # (N, 512 or 2048, 4, 4) from 32x32, 7x7 from 224x224
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, self.num_classes))
        self.apply(initialise)


def stack(channels: int, stages: Sequence[Stage], block: Callable[[int, int, int], Block]) -> tuple[list[Block], int]:
    """Return the blocks of all stages, and the number of output channels of the last."""
    blocks: list[Block] = []
    for stage in stages:
        for index in range(stage.blocks):
            blocks.append(block(channels, stage.width, stage.stride if index == 0 else 1))
            channels = blocks[-1].out_channels
    return blocks, channels


def four_stages(*blocks: int) -> tuple[Stage, ...]:
    """Return the stages of a column of the paper's table 1, from the numbers of their blocks."""
    return tuple(Stage(*row) for row in zip(blocks, (64, 128, 256, 512), (1, 2, 2, 2), strict=True))


class _BasicResNet(_ResNet):
    """ResNet of basic blocks.

    Args:
        form: Form of the network: ``imagenet``, ``cifar``, or ``auto``, which chooses ``cifar`` below 64 pixels.
    """

    shortcut: ClassVar[Shortcut] = "projection"

    def __init__(self, form: Form = "auto", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._build(form, partial(BasicBlock, shortcut=self.shortcut))


class _BottleneckResNet(_ResNet):
    """ResNet of bottlenecks.

    Args:
        form: Form of the network: ``imagenet``, ``cifar``, or ``auto``, which chooses ``cifar`` below 64 pixels.
        stride_on: Convolution of a bottleneck that has the stride: ``3x3`` as in torchvision, or the paper's ``1x1``.
    """

    def __init__(self, form: Form = "auto", stride_on: StrideOn = "3x3", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if stride_on not in get_args(StrideOn):
            raise unknown("stride_on", str(stride_on), get_args(StrideOn))
        self._build(form, partial(Bottleneck, stride_on=stride_on))
        if stride_on == "1x1":
            self.torchvision_name = None


class ResNet18(_BasicResNet):
    """ResNet-18: 11,689,512 parameters and 1,814,073,344 MACs at 224x224/1000.

    The ``cifar`` form has 11,173,962 parameters and 555,422,720 MACs at 32x32/10.
    """

    torchvision_name = "resnet18"
    published = Published(93.02, "CIFAR-10", "github.com/kuangliu/pytorch-cifar")
    stages = four_stages(2, 2, 2, 2)


class ResNet34(_BasicResNet):
    """ResNet-34: 21,797,672 parameters and 3,663,761,408 MACs at 224x224/1000."""

    torchvision_name = "resnet34"
    stages = four_stages(3, 4, 6, 3)


class PlainNet18(_BasicResNet):
    """ResNet-18 with nothing carried around its blocks, the paper's control: 11,515,688 parameters at 224x224/1000."""

    key_idea = "the control: as deep, without shortcuts"
    published = Published(72.06, "ImageNet, 10 crops", "1512.03385, table 2")
    stages = four_stages(2, 2, 2, 2)
    shortcut = "nothing"


class PlainNet34(_BasicResNet):
    """ResNet-34 with nothing carried around its blocks, the paper's control: 21,623,848 parameters at 224x224/1000."""

    key_idea = "the control: as deep, without shortcuts"
    published = Published(71.46, "ImageNet, 10 crops", "1512.03385, table 2")
    stages = four_stages(3, 4, 6, 3)
    shortcut = "nothing"


class ResNet50(_BottleneckResNet):
    """ResNet-50: 25,557,032 parameters and 4,089,184,256 MACs at 224x224/1000.

    With the stride on the 1x1 convolutions it has 3,857,973,248 MACs. The ``cifar`` form has 23,520,842 parameters and
    1,297,829,888 MACs.
    """

    torchvision_name = "resnet50"
    published = Published(93.62, "CIFAR-10", "github.com/kuangliu/pytorch-cifar")
    stages = four_stages(3, 4, 6, 3)


class ResNet101(_BottleneckResNet):
    """ResNet-101: 44,549,160 parameters and 7,801,405,440 MACs at 224x224/1000."""

    torchvision_name = "resnet101"
    published = Published(93.75, "CIFAR-10", "github.com/kuangliu/pytorch-cifar")
    stages = four_stages(3, 4, 23, 3)


class ResNet152(_BottleneckResNet):
    """ResNet-152: 60,192,808 parameters and 11,513,626,624 MACs at 224x224/1000."""

    torchvision_name = "resnet152"
    stages = four_stages(3, 8, 36, 3)
