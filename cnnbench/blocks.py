"""Building blocks that several architectures share, and the one place where weights are initialised.

This is plain ``nn.Module`` code: nothing here knows about Lightning, data or training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbench.errors import unknown

Form = Literal["auto", "cifar", "imagenet"]


def resolve_form(form: Form, image_size: int) -> Literal["cifar", "imagenet"]:
    """Return which of its two published forms a network has.

    Args:
        form: Form that the user chose. ``"cifar"`` keeps the resolution in the stem, ``"imagenet"`` is the paper's
            network for 224x224 images, and ``"auto"`` chooses ``"cifar"`` for images below 64 pixels.
        image_size: Height and width of the images in pixels.

    Raises:
        UserError: The form is unknown.
    """
    if form not in get_args(Form):
        raise unknown("form", str(form), get_args(Form))
    if form != "auto":
        return form
    return "cifar" if image_size < 64 else "imagenet"


Activation = Callable[..., nn.Module]
"""Class of an activation, or a function that builds one; it takes ``inplace``."""


class ConvNormAct(nn.Sequential):
    """Convolution, batch normalisation, activation: the unit that most networks after 2015 repeat.

    If batch normalisation follows, the convolution has no bias by default, since the shift of the normalisation makes
    it redundant. The padding is ``dilation * (kernel_size // 2)``, so that stride 1 keeps the resolution with an odd
    kernel.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Height and width of the filters.
        stride: Step of the filters in pixels.
        groups: Number of groups of channels that are convolved separately; ``in_channels`` for a depthwise convolution.
        dilation: Distance between the elements of a filter in pixels; with 2 a 3x3 filter covers 5x5 pixels (Yu, Koltun
            2016, 1511.07122).
        norm: Whether batch normalisation follows.
        act: Class of the activation; None for no activation.
        bias: Whether the convolution has a bias; unset, only without batch normalisation.
        eps: Constant that batch normalisation adds to the variance.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        norm: bool = True,
        act: Activation | None = nn.ReLU,
        bias: bool | None = None,
        eps: float = 1e-5,
    ) -> None:
        padding = dilation * (kernel_size // 2)
        bias = not norm if bias is None else bias
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        ]
        if norm:
            layers.append(nn.BatchNorm2d(out_channels, eps))
        if act is not None:
            layers.append(act(inplace=True))
        super().__init__(*layers)


class SeparableConv(nn.Sequential):
    """Depthwise separable convolution: one 3x3 filter per channel, then a 1x1 convolution that mixes channels.

    It takes ``1/out_channels + 1/9`` of the MACs of a standard 3x3 convolution (Howard et al. 2017, equation 5).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            ConvNormAct(in_channels, in_channels, stride=stride, groups=in_channels),
            ConvNormAct(in_channels, out_channels, kernel_size=1),
        )


class PadChannels(nn.Module):
    """ResNet's shortcut without parameters, option A of the paper: subsampling and zero padding of the channels.

    Args:
        extra: Number of channels of zeros that are appended.
        stride: Step in pixels: every stride-th row and column is kept.
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation, which scales each channel by a weight from the means of all channels of the feature map.

    The block is from Hu, Shen, Sun 2017, 1709.01507. Between its two layers it has SiLU, as in EfficientNet; the paper
    has ReLU.

    Args:
        channels: Number of input and output channels.
        squeezed: Number of channels between the two layers.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.SiLU(inplace=True),
            nn.Conv2d(squeezed, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.layers(x))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling; Chen, Papandreou, Schroff, Adam; 2017; 1706.05587.

    Several branches see the same input at different scales: a 1x1 convolution, a dilated 3x3 convolution per rate, and
    the average of the whole feature map. A 1x1 convolution joins them; torchvision adds dropout after it. The average
    is one value per image and channel, so its batch normalisation needs at least two images in training.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of channels of each branch and of the output.
        rates: Dilations of the 3x3 convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, rates: Sequence[int] = (6, 12, 18)) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNormAct(in_channels, out_channels, kernel_size=1)])
        self.branches.extend(ConvNormAct(in_channels, out_channels, dilation=rate) for rate in rates)
        self.average = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(in_channels, out_channels, kernel_size=1))
        self.project = ConvNormAct((len(rates) + 2) * out_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined branches, (N, out_channels, H, W), for a feature map x, (N, C, H, W)."""
        average = self.average(x).expand(-1, -1, *x.shape[2:])
        return cast(Tensor, self.project(torch.cat([*(branch(x) for branch in self.branches), average], 1)))


class WhiteningConv2d(nn.Conv2d):
    """Frozen convolution whose output is the whitened principal components of the patches, and their negatives.

    Its filters are eigenvectors of the patches' covariance, so that they need not be learnt (Jordan 2024, 2404.00498).
    They are random until `whiten` or `set_basis` sets them.

    Args:
        in_channels: Number of input channels; the output has ``2 * in_channels * kernel_size**2`` channels.
        kernel_size: Height and width of a patch.
    """

    whitened: Tensor
    """Whether `whiten` has set the filters; a buffer, so that checkpoints keep it."""

    def __init__(self, in_channels: int, kernel_size: int = 2) -> None:
        super().__init__(in_channels, 2 * in_channels * kernel_size**2, kernel_size, bias=False)
        self.weight.requires_grad_(False)
        self.register_buffer("whitened", torch.tensor(False))

    def whiten(self, images: Tensor, epsilon: float = 5e-4) -> None:
        """Set the filters so that the principal components of these images' patches have unit variance.

        Args:
            images: Normalised images, (N, C, H, W).
            epsilon: Constant that is added to the variances, so that noise is not amplified.
        """
        patches = F.unfold(images.float(), self.kernel_size).transpose(1, 2).flatten(0, 1)  # (N * positions, C * k * k)
        # The second moments serve as the covariance, since the mean of normalised images is close to 0. Projecting on
        # an eigenvector and dividing by the square root of its eigenvalue gives a component of variance 1.
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        self.set_basis(vectors.T / (values[:, None] + epsilon).sqrt())
        self.whitened.fill_(True)

    def set_basis(self, basis: Tensor) -> None:
        """Set the filters to the rows of a basis, (C * k * k, C * k * k), and their negatives."""
        with torch.no_grad():
            self.weight.copy_(torch.cat([basis, -basis]).view_as(self.weight))


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round a scaled number of channels to a multiple of a divisor, never below 90 % of the number.

    MobileNetV2 and EfficientNet round their widths in this way.

    Args:
        channels: Number of channels after scaling, not necessarily whole.
        divisor: Divisor of the result, and its minimum.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def has_depthwise(model: nn.Module) -> bool:
    """Return whether a network has depthwise convolutions, that is, filters that each see one of several channels."""
    convs = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return any(1 < conv.groups == conv.in_channels for conv in convs)


def initialise(module: nn.Module) -> None:
    """Initialise the parameters of one layer; use it as ``network.apply(initialise)``.

    Weights get He initialisation (He et al. 2015, arXiv 1502.01852) with fan-in, which for a grouped convolution is
    ``in_channels / groups * kernel area``. Batch normalisation starts with factors of 1 and offsets of 0. Biases are 0.
    """
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
