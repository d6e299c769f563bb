"""Comparison of an exported network with the network itself: do they return the same logits?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnbench.errors import UserError

TOLERANCE = {"32-true": 1e-3, "tf32": 1e-2, "16-true": 2e-2, "bf16-true": 1e-1}
"""Largest difference of logits that is still taken for rounding, as a share of the largest logit, by number format.

An epsilon is 1.2e-7 in float32, 1e-3 in float16 and TF32, and 7.8e-3 in bfloat16. Errors of rounding grow with the
depth of a network. A wrong operator or a forgotten normalisation changes logits by about their own size. ``int8`` has
no limit, since quantisation is meant to change a network; its accuracy says by how much.
"""
BATCHES = (1, 7, 56)
"""Batch sizes in which images are compared, in turn: files are for batches of any size."""


@dataclass(frozen=True)
class Difference:
    """How far the logits of an exported network are from those of the network itself.

    Attributes:
        images: Which images were compared, in words.
        count: Number of images.
        largest: Largest absolute difference of two logits.
        scale: Largest absolute value of the network's own logits.
        same_class: Share of the images for which both have their largest logit at the same class.
    """

    images: str
    count: int
    largest: float
    scale: float
    same_class: float

    @property
    def relative(self) -> float:
        """Return the largest difference as a share of the largest logit."""
        return self.largest / self.scale if self.scale > 0 else self.largest

    @property
    def words(self) -> str:
        """Return the difference as a sentence."""
        return (
            f"{self.count} {self.images}: largest difference {self.largest:.2g} at logits up to {self.scale:.3g}; "
            f"same class for {self.same_class:.1%}"
        )


def random_images(image_shape: Sequence[int], seed: int) -> Tensor:
    """Return images of Gaussian noise, one for each image in `BATCHES`, (N, C, H, W)."""
    return torch.randn(sum(BATCHES), *image_shape, generator=torch.Generator().manual_seed(seed))


def compare_logits(
    images: str, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor], x: Tensor
) -> Difference:
    """Compare the logits of two networks on the same images.

    Args:
        images: What the images are, in words.
        first: Function that returns logits, (N, K), of images, (N, C, H, W); the network itself.
        second: The same for the exported network.
        x: Images, (N, C, H, W).

    Raises:
        UserError: One of the two returns values that are not finite, or another number of logits.
    """
    mine, others = [], []
    start = 0
    while start < len(x):
        for size in BATCHES:
            batch = x[start : start + size]
            if len(batch):
                mine.append(first(batch).float())
                others.append(second(batch).float())
            start += size
    a, b = torch.cat(mine), torch.cat(others)
    if a.shape != b.shape:
        raise UserError(f"the exported network returns {tuple(b.shape)}, and the network itself {tuple(a.shape)}")
    if not a.isfinite().all() or not b.isfinite().all():
        raise UserError("logits are not finite, so the networks cannot be compared; check the weights")
    same = (a.argmax(1) == b.argmax(1)).double().mean()
    return Difference(images, len(x), float((a - b).abs().max()), float(a.abs().max()), float(same))


def check_same(differences: Sequence[Difference], precision: str, name: str) -> None:
    """Raise UserError if an exported network is not the same network up to rounding.

    Args:
        differences: Comparisons on several kinds of images.
        precision: Number format in which the exported network computes.
        name: Name of the network and of the format, for the message.

    Raises:
        UserError: A difference is beyond `TOLERANCE`.
    """
    most = TOLERANCE.get(precision)
    for difference in differences:
        if most is not None and difference.relative > most:
            raise UserError(
                f"{name} is not the same network: {difference.words}. That is more than rounding in {precision} "
                f"explains ({most:.0e} of the largest logit), so it was not kept"
            )
