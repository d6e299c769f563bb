"""Loss and accuracy of training steps, added up on the device, and what a network says of single test images."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnbench.errors import DivergedError
from cnnbench.predictions import LOWEST_LOGIT

_MOST_STEPS = 100
"""Largest number of training steps whose logits are kept before they are counted."""


class Outcomes:
    """Loss, correct predictions and images of the training steps since the last line of the log.

    The results of single steps are kept and added up together, because one step is too little work for a GPU. The sums
    stay on the device and are read once per line of the log, because reading them waits for the GPU.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[int, Tensor, Tensor, Tensor]] = []
        self._sums = torch.zeros(3)  # of the loss, of the correct predictions, of the images

    def add(self, step: int, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Keep the outcome of a step.

        Args:
            step: Number of the step, from 1.
            loss: Mean loss of its images, a scalar.
            logits: Logits, (N, K), which nothing overwrites later.
            labels: Indices of the true classes, (N,).

        Raises:
            DivergedError: See `sum_up`.
        """
        self._steps.append((step, loss, logits, labels))
        if len(self._steps) == _MOST_STEPS:
            self.sum_up()

    def sum_up(self) -> None:
        """Add the steps since the last call to the sums.

        Raises:
            DivergedError: The loss of a step is not finite.
        """
        if not self._steps:
            return
        steps, losses, logits, labels = zip(*self._steps, strict=True)
        self._steps.clear()
        # One look at all steps waits for the device once, and still tells which step was the first bad one.
        finite = torch.stack(losses).isfinite()
        if not finite.all():
            # The smallest of zeros and ones: `argmin` returns the index of the first false value.
            first = int(finite.int().argmin())
            raise DivergedError(
                f"the loss is {losses[first].item()} at step {steps[first]}; use a lower learning rate; checkpoints "
                "from before are kept"
            )
        # A mean loss counts by the number of its images, since batches need not be equally large.
        # After a training that goes on in the middle of an epoch, the sums may still be on another device.
        self._sums = self._sums.to(losses[0].device)
        counts = torch.tensor([float(len(batch)) for batch in labels], device=self._sums.device)
        correct = (torch.cat(logits).argmax(1) == torch.cat(labels)).sum()
        self._sums += torch.stack([(torch.stack(losses).float() * counts).sum(), correct, counts.sum()])

    def restart(self, device: torch.device) -> None:
        """Set the sums to zero, on a device."""
        self._sums = torch.zeros(3, device=device)

    def forget(self) -> None:
        """Leave out the steps that are not in the sums yet, such as those of a training that was stopped."""
        self._steps.clear()

    @property
    def device(self) -> torch.device:
        """Return the device of the sums."""
        return self._sums.device

    @property
    def images(self) -> float:
        """Return the number of images in the sums; this waits for the device."""
        return float(self._sums[2])

    def means(self) -> dict[str, float]:
        """Return the mean loss and the accuracy of the images in the sums, by their names in the log."""
        loss, correct, count = self._sums.tolist()
        return {"train/loss": loss / count, "train/accuracy": correct / count}


def scores(logits: Tensor, predicted: Tensor, whole: bool) -> tuple[Tensor, ...]:
    """Return what `cnnbench.predictions` keeps of logits: the confidence, (N,), and the logits, (N, K) float16.

    Args:
        logits: Logits, (N, K).
        predicted: Index of the largest logit of each image, (N,).
        whole: Whether to return the logits, and not the confidence alone.
    """
    values = logits.float()
    # Without the largest logit, whose probability is then 1 over the sum, nothing overflows.
    shifted = values - values.gather(1, predicted[:, None])
    confidence = shifted.exp().sum(1).reciprocal()
    if not whole:
        return (confidence,)
    return confidence, shifted.clamp(min=LOWEST_LOGIT).half()
