"""Building blocks that several architectures share, and the one place where weights are initialised.

Plain ``nn.Module`` code: nothing here knows about Lightning, data or training.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from cnnbench.errors import unknown

Form = Literal["auto", "cifar", "imagenet"]


def resolve_form(form: Form, image_size: int) -> Literal["cifar", "imagenet"]:
    """Decides between the two published shapes of a network.

    Args:
        form: ``"cifar"`` keeps the resolution in the stem, ``"imagenet"`` is the paper's network for 224x224
            images, ``"auto"`` takes the former for images below 64 pixels.
        image_size: Height and width of the images in pixels.

    Raises:
        UserError: The form is none of these.
    """
    if form not in get_args(Form):
        raise unknown("form", str(form), get_args(Form))
    if form != "auto":
        return form
    return "cifar" if image_size < 64 else "imagenet"


class ConvNormAct(nn.Sequential):
    """Convolution, batch normalisation, ReLU: the unit that most networks after 2015 repeat.

    The convolution has no bias where batch normalisation follows, whose shift makes it redundant. Padding is
    ``kernel_size // 2``, so that stride 1 keeps the resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        norm: bool = True,
        act: bool = True,
    ) -> None:
        padding = kernel_size // 2
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=not norm)
        ]
        if norm:
            layers.append(nn.BatchNorm2d(out_channels))
        if act:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class SeparableConv(nn.Sequential):
    """Depthwise separable convolution: one 3x3 filter per channel, then a 1x1 convolution that mixes channels.

    Costs ``1/out_channels + 1/9`` of the standard 3x3 convolution (Howard et al. 2017, equation 5).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            ConvNormAct(in_channels, in_channels, stride=stride, groups=in_channels),
            ConvNormAct(in_channels, out_channels, kernel_size=1),
        )


def initialise(module: nn.Module) -> None:
    """Initialises one layer; use as ``network.apply(initialise)``.

    He initialisation (He et al. 2015, arXiv 1502.01852) with fan-in, which for a grouped convolution is
    ``in_channels / groups * kernel area``; batch normalisation starts as the identity; biases are zero.
    """
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
