"""VGG: deep networks that consist of 3x3 convolutions and 2x2 pooling."""

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
    """Return the stages of a column of the paper's table 1; columns differ only in their numbers of convolutions."""
    return tuple(Stage(*row) for row in zip(convs, (64, 128, 256, 512, 512), strict=True))


class _VGG(ImageClassifier):
    """Very Deep Convolutional Networks for Large-Scale Image Recognition; Simonyan, Zisserman; 2014; 1409.1556.

    The ``imagenet`` form is the paper's, with three linear layers and without batch norm. The ``cifar`` form has batch
    norm and one linear layer, as is usual for 32x32 images.
    Differences from the paper: the pooling before the three linear layers is adaptive, as in torchvision, so that other
    image sizes work; it does nothing at 224x224. The initialisation is He's, which was published later: the paper drew
    the weights of its shallowest network with a variance of .01, and started the deeper networks from that network.

    Args:
        form: Form of the network: ``imagenet``, ``cifar``, or ``auto``, which chooses ``cifar`` below 64 pixels.
        batch_norm: Whether batch normalisation follows every convolution; unset, only in the ``cifar`` form. The
            convolutions keep their bias in any case, as in torchvision and in the usual CIFAR code.
        dropout: Probability of dropout after each of the two hidden linear layers of the ``imagenet`` form.
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

    The ``cifar`` form has 14,728,266 parameters and 313,201,664 MACs at 32x32/10.
    """

    torchvision_name = "vgg16"
    published = Published(92.64, "CIFAR-10", "github.com/kuangliu/pytorch-cifar")
    stages = _table_1(2, 2, 3, 3, 3)


class VGG19(_VGG):
    """Configuration E: 143,667,240 parameters and 19,632,062,464 MACs at 224x224/1000."""

    torchvision_name = "vgg19"
    stages = _table_1(2, 2, 4, 4, 4)
