"""A trained network on batches that the benchmark makes itself, outside of Lightning's loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from cnnbench import hardware
from cnnbench.training.classifier import ImageClassifier


def logits_of(
    model: ImageClassifier, batches: Iterable[tuple[Tensor, Tensor]], device: str, precision: str, views: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits, (n, K), and the labels, (n,), of each batch, both on the CPU.

    Args:
        model: Trained network, which is moved to the device and set to evaluation.
        batches: Normalised images, (n, C, H, W), with their labels.
        device: Device that computes, such as ``cpu`` or ``cuda:0``.
        precision: Number format, in Lightning's words.
        views: Whether to average over the views of the test; see `ImageClassifier`.
    """
    home = torch.device(device)
    model.to(home).eval()  # Lightning has moved it back to the CPU
    compute = model.eval_logits if views else model
    for images, labels in batches:
        with torch.inference_mode(), hardware.autocast(precision, home):
            logits = compute(images.to(home, memory_format=torch.channels_last))
        yield logits.float().cpu(), labels.cpu()
