"""The states of torch's random generators, kept in checkpoints so that a resumed training draws the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the generators of the CPU (``cpu``) and of a GPU (``device``, which is empty on a CPU).

    Args:
        device: Device of the training.
    """
    of_device = torch.empty(0, dtype=torch.uint8)
    if device.type == "cuda":
        of_device = torch.cuda.get_rng_state(device)
    return {"cpu": torch.get_rng_state(), "device": of_device}


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Set the generators to the states that `random_state` returned, perhaps on another device.

    Args:
        state: States of the generators.
        device: Device of the training.
    """
    torch.set_rng_state(state["cpu"])
    # A checkpoint of a training on a CPU stores an empty state for the GPU's generator.
    if device.type == "cuda" and state["device"].numel():
        torch.cuda.set_rng_state(state["device"], device)
