"""GoogLeNet: filters of several sizes side by side, made cheap by 1x1 convolutions in front of the large ones."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from cnnbench.blocks import ConvNormAct, Form, initialise
from cnnbench.training.classifier import ImageClassifier


class Row(NamedTuple):
    """Channels of an inception block in the order of the paper's table 1; a pooling may follow."""

    one: int
    reduce_three: int
    three: int
    reduce_five: int
    five: int
    pool: int
    then_pool: bool = False


TABLE_1 = {
    "3a": Row(64, 96, 128, 16, 32, 32),
    "3b": Row(128, 128, 192, 32, 96, 64, then_pool=True),
    "4a": Row(192, 96, 208, 16, 48, 64),
    "4b": Row(160, 112, 224, 24, 64, 64),
    "4c": Row(128, 128, 256, 24, 64, 64),
    "4d": Row(112, 144, 288, 32, 64, 64),
    "4e": Row(256, 160, 320, 32, 128, 128, then_pool=True),
    "5a": Row(256, 160, 320, 32, 128, 128),
    "5b": Row(384, 192, 384, 48, 128, 128),
}
AUXILIARY_AFTER = ("4a", "4d")

TorchvisionUnit = partial(ConvNormAct, eps=1e-3)
CifarUnit = partial(ConvNormAct, bias=True)


class Inception(nn.Module):
    """Four branches on one input: 1x1, 1x1 and 3x3, 1x1 and "5x5", pooling and 1x1; their channels are joined.

    The third branch has one 3x3 convolution in the ``imagenet`` form, and in the ``cifar`` form two of them, whose
    receptive field is 5x5.
    """

    def __init__(self, in_channels: int, row: Row, cifar: bool) -> None:
        super().__init__()
        unit = CifarUnit if cifar else TorchvisionUnit
        second = [unit(row.five, row.five)] if cifar else []
        self.branches = nn.ModuleList(
            [
                unit(in_channels, row.one, kernel_size=1),
                nn.Sequential(unit(in_channels, row.reduce_three, kernel_size=1), unit(row.reduce_three, row.three)),
                nn.Sequential(
                    unit(in_channels, row.reduce_five, kernel_size=1), unit(row.reduce_five, row.five), *second
                ),
                nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), unit(in_channels, row.pool, kernel_size=1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class GoogLeNet(ImageClassifier):
    """Going Deeper with Convolutions; Szegedy, Liu, Jia et al.; 2014; 1409.4842.

    The ``imagenet`` form is torchvision's: 6,624,904 parameters and 1,498,376,192 MACs at 224x224/1000. Its two
    auxiliary heads are used in training only, with a weight of 0.3 in the loss. With them it has 13,004,888 parameters,
    and a training forward pass takes 1,506,748,416 MACs. The ``cifar`` form is that of the usual CIFAR code: a 3x3 stem
    that keeps the resolution, biases in the convolutions, and auxiliary heads only if `aux_heads` is set. It has
    6,166,250 parameters and 1,521,756,160 MACs at 32x32/10.
    Differences from the paper: batch norm in place of local response normalisation; a 3x3 convolution in place of 5x5
    (two of them in the ``cifar`` form); 2x2 in place of 3x3 windows in the last pooling of the ``imagenet`` form;
    auxiliary heads on 4x4 maps from an adaptive pooling; dropout 0.2 in place of 0.4.

    Args:
        form: Form of the network: ``imagenet``, ``cifar``, or ``auto``, which chooses ``cifar`` below 64 pixels.
        aux_heads: Whether the network has auxiliary heads; unset, only in the ``imagenet`` form.
        dropout: Probability of dropout before the linear layer; unset, 0.2 in the ``imagenet`` form, 0 in the other.
        aux_dropout: Probability of dropout in the auxiliary heads.
    """

    min_image_size = 8
    peak_lr = 0.001
    key_idea = "inception: filters of several sizes side by side"
    torchvision_name = "googlenet"
    auxiliary_weight = 0.3

    def __init__(
        self,
        form: Form = "auto",
        aux_heads: bool | None = None,
        dropout: float | None = None,
        aux_dropout: float = 0.7,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        cifar = self.choose_form(form) == "cifar"
        self.require_size(8 if cifar else 15)
        aux_heads = not cifar if aux_heads is None else aux_heads
        dropout = (0.0 if cifar else 0.2) if dropout is None else dropout
        layers, heads, channels = _stem(self.in_channels, cifar), {}, 192
        for name, row in TABLE_1.items():
            layers[name] = Inception(channels, row, cifar)
            channels = row.one + row.three + row.five + row.pool
            if aux_heads and name in AUXILIARY_AFTER:
                heads[name] = _auxiliary_head(channels, self.num_classes, aux_dropout)
            if row.then_pool:
                size = 2 if name == "4e" and not cifar else 3
                layers[f"pool{name[0]}"] = nn.MaxPool2d(size, stride=2, padding=1 if cifar else 0, ceil_mode=not cifar)
        self.features = nn.Sequential(OrderedDict(layers))  # (N, 1024, 8, 8) from 32x32, (N, 1024, 7, 7) from 224x224
        self.auxiliary = nn.ModuleDict(heads)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, self.num_classes)
        )
        self.apply(initialise)

    def forward(self, x: Tensor) -> Any:
        """Compute logits, (N, K), from images x, (N, C, H, W); in training also those of the auxiliary heads."""
        if not self.training or not self.auxiliary:
            return super().forward(x)
        self.check_size(x.shape[-2], x.shape[-1])
        others = []
        for name, layer in cast(nn.Sequential, self.features).named_children():
            x = layer(x)
            if name in self.auxiliary:
                others.append(self.auxiliary[name](x))
        return (self.classifier(x), *others)


def _stem(in_channels: int, cifar: bool) -> dict[str, nn.Module]:
    if cifar:
        return {"conv": CifarUnit(in_channels, 192)}
    return {
        "conv1": TorchvisionUnit(in_channels, 64, kernel_size=7, stride=2),
        "pool1": nn.MaxPool2d(3, stride=2, ceil_mode=True),
        "reduce2": TorchvisionUnit(64, 64, kernel_size=1),
        "conv2": TorchvisionUnit(64, 192),
        "pool2": nn.MaxPool2d(3, stride=2, ceil_mode=True),
    }


def _auxiliary_head(in_channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4),
        TorchvisionUnit(in_channels, 128, kernel_size=1),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(1024, num_classes),
    )
