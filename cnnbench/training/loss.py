"""The loss of training: cross-entropy, for networks with one head or several."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cnnbench.errors import Stopped, UserError


def output_of(model: nn.Module, images: Tensor, name: str) -> Any:
    """Return what a network returns for images.

    Args:
        model: Network.
        images: Images, (N, C, H, W).
        name: Name of the network, for the message.

    Raises:
        UserError: The network raises an error, for example since it is made for images of another size.
    """
    try:
        return model(images)
    except Stopped:
        raise
    except BaseException as error:  # a user's network may raise anything
        shape = "x".join(map(str, images.shape[1:]))
        text = " ".join(str(error).split())[:300]
        raise UserError(f"'{name}' does not take images of {shape}: {type(error).__name__}: {text}") from error


def loss_and_logits(
    output: Any, labels: Tensor, label_smoothing: float = 0.0, auxiliary_weight: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy loss of a network's output, and its logits.

    Args:
        output: Logits, (N, K), or a tuple of logits from a network with auxiliary heads in training, main head first.
        labels: Indices of the true classes, (N,).
        label_smoothing: Share of the target probability that is spread over all classes.
        auxiliary_weight: Weight of each auxiliary head in the loss.

    Returns:
        Loss, a scalar, and the logits of the main head, (N, K).

    Raises:
        UserError: The output is neither logits nor a tuple of logits.
    """
    heads = output
    if isinstance(output, Tensor):
        heads = (output,)
    if not isinstance(heads, tuple) or not all(isinstance(h, Tensor) and h.ndim == 2 for h in heads):
        raise UserError(
            f"the network returns {_shape_of(output)}, not logits, (N, K), or a tuple of them; "
            "wrap it in a module that does"
        )
    # The main head counts fully, the auxiliary ones with a smaller weight (Szegedy et al. 2015, GoogLeNet).
    loss, *others = [F.cross_entropy(head, labels, label_smoothing=label_smoothing) for head in heads]
    for other in others:
        loss = loss + auxiliary_weight * other
    return loss, heads[0]


def _shape_of(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of {tuple(output.shape)}"
    return f"a {type(output).__name__}"
