"""Augmentation of whole batches, in one gather, on the device where the batch is."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def random_crop_flip(
    x: Tensor, padding: int = 4, flip: bool = True, mode: Literal["reflect", "zeros"] = "reflect"
) -> Tensor:
    """Shifts each image by up to ``padding`` pixels per axis and mirrors half of them.

    The distribution is that of torchvision's ``RandomCrop(size, padding)`` followed by ``RandomHorizontalFlip``:
    offsets are uniform on the ``2 * padding + 1`` positions of each axis, independently for every image.

    Args:
        x: images, (N, C, H, W), any dtype.
        padding: Pixels added on every side before the crop.
        flip: Whether to mirror left and right with probability one half.
        mode: What the added pixels hold.

    Returns:
        images, (N, C, H, W), of the same dtype.
    """
    n, _, height, width = x.shape
    device = x.device
    pad = (padding,) * 4
    padded = F.pad(x.float(), pad, mode="reflect").to(x.dtype) if mode == "reflect" else F.pad(x, pad)
    top = torch.randint(2 * padding + 1, (n, 1), device=device)
    left = torch.randint(2 * padding + 1, (n, 1), device=device)
    rows = top + torch.arange(height, device=device)  # (N, H)
    columns = left + torch.arange(width, device=device)  # (N, W)
    if flip:
        mirrored = torch.rand(n, 1, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    images = torch.arange(n, device=device)[:, None, None]
    # Indexing (N, C, H, W) with the channel left as a slice puts it last: (N, H, W, C).
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
