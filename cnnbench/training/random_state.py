"""The states of torch's random generators, kept in checkpoints so that a resumed training draws the same numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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


@contextlib.contextmanager
def of_process(step: int, rank: int, world_size: int, device: torch.device) -> Iterator[None]:
    """Let each of several processes draw random numbers of its own inside the block, such as masks of dropout.

    All processes have the same state of their generators, so otherwise every one of them would drop the same units.
    The numbers depend on the seed, the batch and the process alone, so a training that is resumed draws them again. The
    states of the generators are the same after the block as before it. A single process draws on as usual.

    Args:
        step: Number of the training batch, over all epochs.
        rank: Index of this process.
        world_size: Number of processes.
        device: Device of the training.
    """
    if world_size == 1:
        yield
        return
    before = random_state(device)
    # Different batches and processes have different numbers, and the factor keeps seeds apart.
    seed = (torch.initial_seed() * 1_000_000_007 + step * world_size + rank) % 2**63
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(before, device)
