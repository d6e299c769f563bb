"""A training step outside of a Trainer, for measurements."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cnnbench.hardware import autocast
from cnnbench.optimizers import adamw
from cnnbench.training.loss import loss_and_logits


def training_step(model: nn.Module, images: Tensor, precision: str = "32-true") -> Callable[[], None]:
    """Return a function that runs a real training step of a classifier: forward, cross-entropy, backward, AdamW.

    Args:
        model: Classifier that returns logits, (N, K), or a tuple of logits if it has auxiliary heads. The loss of each
            auxiliary head has the weight 0.3.
        images: Batch of images, (N, C, H, W), on the device of the model. All of them get the label 0.
        precision: Number format in Lightning's notation: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
    """
    optimizer = adamw(model.parameters(), lr=1e-4)
    # The time of a step does not depend on the values of the labels.
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        # Whoever calls this may have evaluated the model since the last step.
        model.train()
        optimizer.zero_grad()
        # Autocast is for the forward pass and the loss; the backward pass and the optimizer run outside of it.
        with autocast(precision, images.device):
            loss = loss_and_logits(model(images), labels)[0]
        loss.backward()
        optimizer.step()

    return step
