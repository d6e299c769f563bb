"""LeNet-5, and the small network in its style that the CNN course builds."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn

from cnnbench.blocks import ConvNormAct, initialise
from cnnbench.errors import unknown
from cnnbench.training.classifier import ImageClassifier, Published

Convs = Literal["3x3", "3x3-pair", "5x5"]
Head = Literal["flat", "gap"]
KERNELS: dict[str, tuple[int, ...]] = {"3x3": (3,), "3x3-pair": (3, 3), "5x5": (5,)}
"""Kernel sizes of the convolutions of a stage."""


class LeNet5(ImageClassifier):
    """Gradient-Based Learning Applied to Document Recognition; LeCun, Bottou, Bengio, Haffner; 1998.

    Differences from the paper: ReLU in place of the scaled tanh; max pooling in place of trainable subsampling; C3 sees
    all maps of S2 (the paper omits some connections, to break the symmetry and to save work); a linear layer with
    cross-entropy in place of the RBF output. It has 61,706 parameters and 416,520 MACs at 1x32x32.
    """

    min_image_size = 32
    peak_lr = 0.003
    key_idea = "convolution, pooling, learnt end to end"
    published = Published(99.05, "MNIST", "the paper, 0.95 % error without distortions")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c5_size = ((self.image_size - 4) // 2 - 4) // 2 - 4  # side of C5's output: 1 from 32x32
        self.features = nn.Sequential(
            nn.Conv2d(self.in_channels, 6, 5),  # C1: (N, 6, 28, 28)
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),  # S2: (N, 6, 14, 14)
            nn.Conv2d(6, 16, 5),  # C3: (N, 16, 10, 10)
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),  # S4: (N, 16, 5, 5)
            nn.Conv2d(16, 120, 5),  # C5: (N, 120, 1, 1)
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(120 * c5_size**2, 84),  # F6
            nn.ReLU(inplace=True),
            nn.Linear(84, self.num_classes),
        )
        self.apply(initialise)


class SimpleCNN(ImageClassifier):
    """The LeNet-style network of the CNN course that this project grew from.

    It has three 3x3 convolutions, each with a pooling, and one hidden layer: 93,322 parameters and 5,682,304 MACs at
    1x28x28, its native size (layers of 320, 18,496, 36,928, 36,928 and 650 parameters). At 28 pixels the third pooling
    drops the last row and column of its 7x7 input. The arguments offer the alternatives that the course discusses.

    Args:
        dropout: Probability of dropout before the last layer.
        batch_norm: Whether batch normalisation follows every convolution, which then has no bias.
        convs: Convolutions of a stage: one ``3x3``, a ``3x3-pair``, or one ``5x5``, with the pair's receptive field.
        head: ``flat`` has a hidden linear layer on all positions, ``gap`` global average pooling and one linear layer.
    """

    min_image_size = 8
    peak_lr = 0.003
    key_idea = "the course's network: convolution, ReLU, pooling"

    def __init__(
        self,
        dropout: float = 0.5,
        batch_norm: bool = False,
        convs: Convs = "3x3",
        head: Head = "flat",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value, valid in (("convs", convs, KERNELS), ("head", head, get_args(Head))):
            if value not in valid:
                raise unknown(name, str(value), valid)
        layers: list[nn.Module] = []
        channels = self.in_channels
        for width in (32, 64, 64):
            for kernel_size in KERNELS[convs]:
                layers.append(ConvNormAct(channels, width, kernel_size, norm=batch_norm))
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)  # (N, 64, 3, 3) from 28x28
        hidden: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if head == "flat":
            hidden = [nn.Flatten(), nn.Linear(64 * (self.image_size // 8) ** 2, 64), nn.ReLU(inplace=True)]
        self.classifier = nn.Sequential(*hidden, nn.Dropout(dropout), nn.Linear(64, self.num_classes))
        self.apply(initialise)
