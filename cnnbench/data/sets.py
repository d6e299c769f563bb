"""The data sets of this project: MNIST, CIFAR-10, and synthetic images that need no files."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnbench.data import sources
from cnnbench.data.batches import Split, check_whole
from cnnbench.data.module import MOST_IMAGES, ImageDataModule, check_memory
from cnnbench.errors import UserError

_PIECE = 1000
"""Number of synthetic images that are drawn at once."""


class MNIST(ImageDataModule):
    """Handwritten digits; LeCun, Cortes, Burges; 60,000 training and 10,000 test images of 28x28 pixels.

    The images are zero-padded to 32x32, as in LeCun et al. 1998; ``image_size: 28`` keeps their native size. Mean and
    standard deviation are those of the unpadded training images divided by 255.
    """

    title = "MNIST"
    in_channels = 1
    native_size = 28
    default_size = 32
    default_augment = False
    class_names = tuple("0123456789")
    mean = (0.1307,)
    std = (0.3081,)
    full_epochs = 10
    _copy = ""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.image_size < self.native_size:
            raise UserError(f"image_size {self.image_size} is smaller than MNIST's 28; use 28, or 32 (padded, default)")

    @property
    def label(self) -> str:
        return self._copy or self.title

    def prepare_data(self) -> None:
        sources.prepare_mnist(sources.resolve_data_dir(self.data_dir))

    def load(self) -> tuple[Split, Split]:
        train, test, self._copy = sources.load_mnist(sources.resolve_data_dir(self.data_dir))
        padded_bytes = (len(train.labels) + len(test.labels)) * self.image_size**2
        check_memory(f"image_size {self.image_size} of MNIST", padded_bytes)
        return self._padded(train), self._padded(test)

    def _padded(self, split: Split) -> Split:
        extra = self.image_size - self.native_size
        before, after = extra // 2, extra - extra // 2
        # F.pad takes the numbers for the last dimension first: left, right, top, bottom.
        return Split(F.pad(split.images, (before, after, before, after)), split.labels)


class CIFAR10(ImageDataModule):
    """Learning Multiple Layers of Features from Tiny Images; Krizhevsky; 2009; 50,000 + 10,000 colour images, 32x32.

    The images are read from torchvision's files or from class folders ``{train,test}/<class>/*.{png,jpg}``. The label
    says which, since JPEG copies differ from the original. For another image size the images are resized bilinearly on
    the device. Mean and standard deviation are those of the original training images divided by 255.
    """

    title = "CIFAR-10"
    in_channels = 3
    native_size = 32
    default_size = 32
    default_augment = True
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    full_epochs = 100
    _copy = ""

    @property
    def label(self) -> str:
        return self._copy or self.title

    def prepare_data(self) -> None:
        sources.prepare_cifar10(sources.resolve_data_dir(self.data_dir), self.class_names)

    def load(self) -> tuple[Split, Split]:
        root = sources.resolve_data_dir(self.data_dir)
        train, test, self._copy = sources.load_cifar10(root, self.class_names)
        return train, test


class Synthetic(ImageDataModule):
    """Ten classes of drawn gratings, for trying things out where there is no data: five directions, two widths.

    Every image has its own phase, contrast, colour and noise, so that a network has to learn direction and width. The
    images need no files, are the same in every run, and can have any size of 8 pixels or more. Accuracy on them says
    nothing about photographs.

    Args:
        in_channels: Number of channels: 1 for grey images, 3 for colour images.
        train_images: Number of training images.
        test_images: Number of test images.
        stands_in_for: Name of the data set that these images replace, for labels.
    """

    title = "Synthetic"
    native_size = 32
    default_size = 32
    default_augment = False
    class_names = tuple(f"{angle}° {width}" for width in ("wide", "fine") for angle in (0, 36, 72, 108, 144))
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.195, 0.195, 0.195)
    full_epochs = 5
    synthetic = True

    def __init__(
        self,
        in_channels: int = 3,
        train_images: int = 10_000,
        test_images: int = 2_000,
        stands_in_for: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(in_channels, bool) or in_channels not in (1, 3):
            raise UserError(f"in_channels {in_channels} is not to be had; Synthetic draws 1 (grey) or 3 (colour)")
        check_whole("train_images", train_images, self.num_classes, MOST_IMAGES, 10_000)
        check_whole("test_images", test_images, self.num_classes, MOST_IMAGES, 2_000)
        if not isinstance(stands_in_for, str | None):
            raise UserError(f"stands_in_for {stands_in_for!r} is not the name of a data set")
        if self.image_size < 8:
            raise UserError(f"image_size {self.image_size} cannot hold a grating; use 8 or more")
        values = in_channels * self.image_size**2
        drawn_at_once = min(_PIECE, max(train_images, test_images))
        # One byte per value of all images, and three float32 copies of the images that are drawn at once.
        check_memory(
            f"image_size {self.image_size} of {train_images:,} + {test_images:,} synthetic images",
            (train_images + test_images) * values + 3 * 4 * drawn_at_once * values,
        )
        self.in_channels = in_channels
        self.train_images = train_images
        self.test_images = test_images
        self.stands_in_for = stands_in_for
        # All channels have the same statistics, so that the first one stands for a grey image.
        self.mean = self.mean[:in_channels]
        self.std = self.std[:in_channels]

    @property
    def label(self) -> str:
        return f"Synthetic (stands in for {self.stands_in_for})" if self.stands_in_for else self.title

    def load(self) -> tuple[Split, Split]:
        # Two seeds, so that the test images are not those of the training set.
        return self._draw(self.train_images, seed=1), self._draw(self.test_images, seed=2)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"stands_in_for": self.stands_in_for}

    def _draw(self, count: int, seed: int) -> Split:
        generator = torch.Generator().manual_seed(seed)
        # All classes are equally frequent, in random order.
        labels = torch.arange(count) % self.num_classes
        labels = labels[torch.randperm(count, generator=generator)]
        # Piece by piece, because the images are drawn in float32 and take four times as much memory then.
        chunks = [self._gratings(part, generator) for part in labels.split(_PIECE)]
        return Split(torch.cat(chunks), labels)

    def _gratings(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        n, size = len(labels), self.image_size

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(n, *shape, generator=generator)

        # A grating is a sine wave along a direction. Labels 0 to 4 have about 3 waves per image side (wide), labels 5
        # to 9 about 5 (fine); within each group the directions are 36 degrees apart.
        angle = (labels % 5) * (math.pi / 5) + uniform(-0.12, 0.12)
        waves = torch.where(labels < 5, 3.0, 5.0) * uniform(0.9, 1.1)
        phase = uniform(0, 2 * math.pi)
        # Centres of the pixels, as shares of the side of the image, (size,).
        axis = (torch.arange(size) + 0.5) / size
        # Position of each pixel along the direction of the wave, (n, size, size): x * cos(angle) + y * sin(angle).
        along = torch.cos(angle)[:, None, None] * axis + torch.sin(angle)[:, None, None] * axis[:, None]
        wave = torch.sin(2 * math.pi * waves[:, None, None] * along + phase[:, None, None])
        # Amplitude of the wave: a factor for each channel, which makes the colour, times the contrast of the image.
        colour = uniform(0.3, 1.0, self.in_channels, 1, 1) * uniform(0.2, 0.8, 1, 1, 1)
        noise = torch.randn(n, self.in_channels, size, size, generator=generator) * 0.15
        images = 0.5 + 0.5 * colour * wave[:, None] + noise
        return (images * 255).round().clamp(0, 255).to(torch.uint8)
