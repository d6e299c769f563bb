"""VGG: depth out of nothing but 3x3 convolutions and 2x2 pooling."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from torch import nn

from cnnbench.blocks import Form, initialise
from cnnbench.training.classifier import ImageClassifier, Published


class Stage(NamedTuple):
    """Convolutions of one width, followed by one 2x2 max pooling."""

    convs: int
    width: int


def _table_1(*convs: int) -> tuple[Stage, ...]:
    """A column of the paper's table 1: only the number of convolutions differs."""
    return tuple(Stage(*row) for row in zip(convs, (64, 128, 256, 512, 512), strict=True))


class _VGG(ImageClassifier):
    """Very Deep Convolutional Networks for Large-Scale Image Recognition; Simonyan, Zisserman; 2014; 1409.1556.

    The ``imagenet`` form is the paper's, with its three linear layers, without batch norm. The ``cifar`` form has batch
    norm and one linear layer, the shape usual for 32x32.
    Differences from the paper: the pooling in front of the three linear layers is adaptive, as torchvision's is, so
    that other sizes work; at 224 it does nothing. He initialisation, published later: the paper drew the weights of its
    shallowest network with a variance of .01, and trained the deeper ones from that.

    Args:
        form: Which of the two; ``auto`` takes ``cifar`` below 64 pixels.
        batch_norm: Batch normalisation after every convolution; unset, the form's own habit. It leaves the bias of
            the convolutions in place, as torchvision and the usual CIFAR code do.
        dropout: Probability in the two hidden linear layers of the ``imagenet`` form.
    """

    min_image_size = 32
    peak_lr = 0.001
    key_idea = "depth from small 3x3 filters alone"
    stages: ClassVar[tuple[Stage, ...]]

    def __init__(
        self, form: Form = "auto", batch_norm: bool | None = None, dropout: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        small = self.choose_form(form) == "cifar"
        batch_norm = small if batch_norm is None else batch_norm
        if batch_norm and self.torchvision_name:
            self.torchvision_name += "_bn"
        self.features = _features(self.in_channels, self.stages, batch_norm)
        if small:
            pooled = (self.image_size // 32) ** 2 * self.stages[-1].width
            self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(pooled, self.num_classes))
        else:
            self.classifier = _three_linear_layers(self.num_classes, dropout)
        self.apply(initialise)


def _features(in_channels: int, stages: tuple[Stage, ...], batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for stage in stages:
        for _ in range(stage.convs):
            layers.append(nn.Conv2d(in_channels, stage.width, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(stage.width))
            layers.append(nn.ReLU(inplace=True))
            in_channels = stage.width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)  # (N, 512, image_size / 32, image_size / 32)


def _three_linear_layers(num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, num_classes),
    )


class VGG11(_VGG):
    """Configuration A: 132,863,336 parameters and 7,609,090,048 MACs at 224x224/1000."""

    torchvision_name = "vgg11"
    stages = _table_1(1, 1, 2, 2, 2)


class VGG13(_VGG):
    """Configuration B: 133,047,848 parameters and 11,308,466,176 MACs at 224x224/1000."""

    torchvision_name = "vgg13"
    stages = _table_1(2, 2, 2, 2, 2)


class VGG16(_VGG):
    """Configuration D: 138,357,544 parameters and 15,470,264,320 MACs at 224x224/1000.

    In the ``cifar`` form 14,728,266 parameters and 313,201,664 MACs at 32x32/10.
    """

    torchvision_name = "vgg16"
    published = Published(92.64, "CIFAR-10", "github.com/kuangliu/pytorch-cifar")
    stages = _table_1(2, 2, 3, 3, 3)


class VGG19(_VGG):
    """Configuration E: 143,667,240 parameters and 19,632,062,464 MACs at 224x224/1000."""

    torchvision_name = "vgg19"
    stages = _table_1(2, 2, 4, 4, 4)
