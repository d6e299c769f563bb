"""Test-time augmentation: logits averaged over several views of each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Views = Literal["one", "mirror", "mirror and shift"]


def mean_logits(network: Callable[[Tensor], Tensor], images: Tensor, views: Views) -> Tensor:
    """Return the logits, (N, K), averaged over the views of each image.

    Args:
        network: Function from images to logits.
        images: Normalised images, (N, C, H, W).
        views: ``one``: the image itself. ``mirror``: also its mirror image. ``mirror and shift``: these two with half
            of the weight, and with the other half the same two of the image shifted by one pixel to the upper left
            and to the lower right.
    """
    if views == "one":
        return network(images)
    if views == "mirror":
        return _with_mirror(network, images)
    height, width = images.shape[2:]
    # Padding by one pixel and cropping at two opposite corners shifts the image by one pixel along both axes.
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    upper_left = _with_mirror(network, padded[:, :, :height, :width])
    lower_right = _with_mirror(network, padded[:, :, 2:, 2:])
    shifted = (upper_left + lower_right) / 2
    return (_with_mirror(network, images) + shifted) / 2


def _with_mirror(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return (network(images) + network(images.flip(3))) / 2
