"""LeNet-5 and the small network of the course that is built in its manner."""

from __future__ import annotations

from typing import Any

from torch import nn

from cnnbench.blocks import initialise
from cnnbench.classifier import ImageClassifier


class LeNet5(ImageClassifier):
    """Gradient-Based Learning Applied to Document Recognition; LeCun, Bottou, Bengio, Haffner; 1998.

    Differences from the paper: ReLU for the scaled tanh, max pooling for trainable subsampling, C3 connected to all
    maps of S2 (the paper leaves some out to save work), a linear layer and cross-entropy for the RBF output.
    61,706 parameters and 416,520 MACs at 1x32x32.
    """

    min_image_size = 32
    peak_lr = 0.003

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c5_size = ((self.image_size - 4) // 2 - 4) // 2 - 4
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
    """The LeNet-style network of the CNN course that this project grew from: three 3x3 stages, one hidden layer.

    93,322 parameters and 5,682,304 MACs at 1x28x28, its native size (layers of 320, 18,496, 36,928, 36,928 and 650
    parameters). At 28 pixels the third pooling drops the last row and column of its 7x7 input.
    """

    min_image_size = 8
    peak_lr = 0.003

    def __init__(self, dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        layers: list[nn.Module] = []
        channels = self.in_channels
        for width in (32, 64, 64):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers)  # (N, 64, 3, 3) from 28x28
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * (self.image_size // 8) ** 2, 64),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(64, self.num_classes),
        )
        self.apply(initialise)
