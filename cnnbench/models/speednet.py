"""SpeedNet: a small network made for reaching a good CIFAR-10 accuracy in the least training time."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbench.blocks import initialise
from cnnbench.classifier import ImageClassifier


class Group(nn.Sequential):
    """Two 3x3 convolutions with batch norm and GELU; a 2x2 max pooling after the first."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(out_channels),
            nn.GELU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.GELU(),
        )


class SpeedNet(ImageClassifier):
    """94% on CIFAR-10 in 3.29 Seconds on a Single GPU; Jordan; 2024; 2404.00498.

    A 2x2 convolution whitens the image: its filters are the eigenvectors of the images' 2x2 patches and their
    negatives, so that the first layer need not be learnt. `whiten` sets them, a training does so with its first batch;
    until then they are a random orthogonal basis. Three groups and a maximum over the map follow. The factors of batch
    norm are fixed at 1, and the logits are divided by a constant, so that training starts calm.
    Differences from the paper: narrower (32, 128, 128 for 64, 256, 256 channels), for the CPU; ReLU after the
    whitening, and no bias there; whitening by the first batch, not by 5,000 images; logits divided by 128, not by 9;
    torch's own epsilon and momentum in batch norm; initialisation by He in place of a partial identity.

    Args:
        widths: Channels of the three groups.
        logit_scale: What the logits are divided by.
    """

    min_image_size = 9
    peak_lr = 0.005
    whitened: Tensor
    key_idea = "whitened input, few wide layers: fast to train"

    def __init__(
        self, widths: tuple[int, int, int] = (32, 128, 128), logit_scale: float = 128.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        first, second, third = widths
        self.check_positive(widths=min(widths), logit_scale=logit_scale)
        self.logit_scale = logit_scale
        patch = self.in_channels * 2 * 2
        whitening = nn.Conv2d(self.in_channels, 2 * patch, 2, bias=False)  # (N, 24, 31, 31) from 3x32x32
        groups = [Group(2 * patch, first), Group(first, second), Group(second, third)]
        self.features = nn.Sequential(whitening, nn.ReLU(inplace=True), *groups)  # (N, 128, 3, 3)
        self.classifier = nn.Sequential(
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(third, self.num_classes, bias=False)
        )
        self.apply(initialise)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.requires_grad_(False)
        whitening.weight.requires_grad_(False)
        basis = nn.init.orthogonal_(torch.empty(patch, patch, device=whitening.weight.device))
        self._set_filters(basis)
        self.register_buffer("whitened", torch.tensor(False))

    @property
    def whitening(self) -> nn.Conv2d:
        """The frozen first layer."""
        return cast(nn.Conv2d, cast(nn.Sequential, self.features)[0])

    def forward(self, x: Tensor) -> Any:
        """Computes logits, (N, K), from normalised images x, (N, C, H, W)."""
        return super().forward(x) / self.logit_scale

    def whiten(self, images: Tensor, epsilon: float = 5e-4) -> None:
        """Makes the first layer put out the principal components of 2x2 patches, each with unit variance.

        Args:
            images: Normalised images, (N, C, H, W).
            epsilon: Added to the variances, so that noise is not blown up.
        """
        patches = F.unfold(images.float(), 2).transpose(1, 2).flatten(0, 1)  # (N * positions, C * 4)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        self._set_filters(vectors.T / (values[:, None] + epsilon).sqrt())
        self.whitened.fill_(True)

    def _set_filters(self, basis: Tensor) -> None:
        with torch.no_grad():
            self.whitening.weight.copy_(torch.cat([basis, -basis]).view_as(self.whitening.weight))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Whitens with the first batch of the first training; the layers after it have learnt from these filters."""
        if self.trainer.global_step == 0 and batch_idx == 0 and not self.whitened:
            self.whiten(batch[0])
            weight = self.whitening.weight.data
            weight.copy_(self.trainer.strategy.broadcast(weight))  # processes have different batches
        return super().on_train_batch_start(batch, batch_idx)
