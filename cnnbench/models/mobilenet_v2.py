"""MobileNetV2: residual blocks that are wide inside, and narrow and without activation at their ends."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from cnnbench.blocks import ConvNormAct, Form, initialise, make_divisible
from cnnbench.training.classifier import ImageClassifier, Published


class Row(NamedTuple):
    """Bottlenecks of one width, in the words of the paper's table 2; the first has the stride."""

    expansion: int
    width: int
    blocks: int
    stride: int


TABLE_2 = (
    Row(1, 16, 1, 1),
    Row(6, 24, 2, 2),
    Row(6, 32, 3, 2),
    Row(6, 64, 4, 2),
    Row(6, 96, 3, 1),
    Row(6, 160, 3, 2),
    Row(6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, and a 1x1 projection without activation (the linear bottleneck).

    The input is added where the shape stays the same. The ``cifar`` form also adds it, through a 1x1 projection, where
    only the number of channels changes, and its activation is ReLU in place of ReLU6.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, cifar: bool) -> None:
        super().__init__()
        hidden, act = expansion * in_channels, nn.ReLU if cifar else nn.ReLU6
        expand = [ConvNormAct(in_channels, hidden, kernel_size=1, act=act)] if expansion > 1 or cifar else []
        self.residual = nn.Sequential(
            *expand,
            ConvNormAct(hidden, hidden, stride=stride, groups=hidden, act=act),
            ConvNormAct(hidden, out_channels, kernel_size=1, act=None),
        )
        self.shortcut: nn.Module | None = None
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif stride == 1 and cifar:
            self.shortcut = ConvNormAct(in_channels, out_channels, kernel_size=1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) if self.shortcut is None else self.shortcut(x) + self.residual(x)


class MobileNetV2(ImageClassifier):
    """MobileNetV2: Inverted Residuals and Linear Bottlenecks; Sandler, Howard, Zhu et al.; 2018; 1801.04381.

    The ``imagenet`` form has 3,504,872 parameters and 300,774,272 MACs at 224x224/1000. The ``cifar`` form is that of
    the usual CIFAR code: it keeps the resolution in the stem and the first two stages, and has projections where only
    the channels change, an expansion layer also for a factor of 1, ReLU in place of ReLU6, and no dropout. It has
    2,296,922 parameters and 91,154,944 MACs at 32x32/10.
    Differences from the paper: none in the layers of the ``imagenet`` form.

    Args:
        form: Form of the network: ``imagenet``, ``cifar``, or ``auto``, which chooses ``cifar`` below 64 pixels.
        width_multiplier: Factor on every width; the last is at least 1280. The paper has factors from 0.35 to 1.4.
        dropout: Probability of dropout before the linear layer of the ``imagenet`` form.
    """

    min_image_size = 8
    peak_lr = 0.003
    key_idea = "inverted residuals with linear bottlenecks"
    torchvision_name = "mobilenet_v2"
    published = Published(94.43, "CIFAR-10", "github.com/kuangliu/pytorch-cifar")

    def __init__(self, form: Form = "auto", width_multiplier: float = 1.0, dropout: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check_positive(width_multiplier=width_multiplier)
        cifar = self.choose_form(form) == "cifar"
        channels, act = make_divisible(32 * width_multiplier), nn.ReLU if cifar else nn.ReLU6
        stem = ConvNormAct(self.in_channels, channels, stride=1 if cifar else 2, act=act)
        layers: list[nn.Module] = [stem]
        for row in TABLE_2:
            width = make_divisible(row.width * width_multiplier)
            stride = 1 if cifar and row.width == 24 else row.stride
            for index in range(row.blocks):
                layers.append(InvertedResidual(channels, width, row.expansion, stride if index == 0 else 1, cifar))
                channels = width
        last = make_divisible(1280 * max(1.0, width_multiplier))
        layers.append(ConvNormAct(channels, last, kernel_size=1, act=act))
        self.features = nn.Sequential(*layers)  # (N, 1280, 4, 4) from 32x32, (N, 1280, 7, 7) from 224x224
        head = [] if cifar else [nn.Dropout(dropout)]
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head, nn.Linear(last, self.num_classes))
        self.apply(initialise)
