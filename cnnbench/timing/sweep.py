"""Timing of inference over batch sizes, which double until the batch does not fit any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cnnbench.timing.speed import measure_speed
from cnnbench.timing.timed_network import SpeedConfig, Subject

LONGEST_S = 1.0
"""Time of a batch in seconds beyond which no larger batch is tried."""


@dataclass
class Sweep:
    """Inference of one network at increasing batch sizes.

    Attributes:
        batches: Figures of `measure_speed` with their ``batch_size``, which is a power of two, in increasing order.
        end: Reason why no larger batch was timed.
    """

    batches: list[dict[str, Any]] = field(default_factory=list)
    end: str = ""


def sweep(
    subjects: Mapping[str, Subject],
    config: SpeedConfig,
    most: int,
    on_progress: Callable[[float, str], None] = lambda *_: None,
) -> dict[str, Sweep]:
    """Time inference at doubling batch sizes until a batch does not fit, takes too long, fails, or exceeds the limit.

    The networks take turns at each batch size, and only one batch size is in memory at a time. A network whose batch
    does not fit beside the other networks is timed alone; its figures then have the entry ``alone``.

    Args:
        subjects: Networks by name.
        config: Settings of the timing.
        most: Largest batch size to try.
        on_progress: Callback that gets the share of the current batch size that is done, 0 to 1, and a text about the
            next step.

    Returns:
        The figures of each network by name.
    """
    sweeps = {name: Sweep() for name in subjects}
    # Energy is that of the batch size of the config.
    config = replace(config, energy=False)
    size = 1
    while size <= most:
        going = {}
        for name, subject in subjects.items():
            if not sweeps[name].end:
                going[name] = replace(subject, kinds=("inference",), batch_size=size)
        if not going:
            break

        # The default value keeps this batch size, since `size` changes later.
        def say(share: float, text: str, images: int = size) -> None:
            on_progress(share, f"batches of {images}: {text}")

        try:
            for name, figures in measure_speed(going, config, say).items():
                # The networks share the memory, so one that lacked some may fit once the others are gone.
                if _lacks_memory(figures) and len(going) > 1:
                    _empty_cache(config.device)
                    figures = measure_speed({name: going[name]}, config, say)[name] | {"alone": True}
                _note(sweeps[name], size, figures)
            _empty_cache(config.device)
        except RuntimeError as error:
            # The device is unusable from here on; the figures of smaller batches are kept.
            _end_all(sweeps, f"{size} failed: {type(error).__name__}: {error}")
            break
        size *= 2
    # Networks that have not ended before have reached the largest size to try.
    _end_all(sweeps, f"{size} was not tried: more than {most}")
    return sweeps


def _end_all(sweeps: Mapping[str, Sweep], reason: str) -> None:
    """Note the reason for the end of those networks that have not ended before."""
    for one in sweeps.values():
        one.end = one.end or reason


def _note(one: Sweep, size: int, figures: Mapping[str, Any]) -> None:
    """Add the figures of a batch size, and note the reason if no larger batch is to be tried."""
    if "error" in figures:
        why = "does not fit" if _lacks_memory(figures) else "failed"
        one.end = f"{size} {why}: {figures['error']}"
        return
    one.batches.append({"batch_size": size, **figures})
    took_s = figures["inference_ms_median"] / 1e3
    if took_s > LONGEST_S:
        one.end = f"{2 * size} was not tried: {size} take {took_s:.1f} s"


_NO_MEMORY = ("out of memory", "outofmemoryerror", "allocate memory", "enough memory", "memoryerror")
"""Words in the out-of-memory errors of a GPU, of a CPU, and of Python, which an illegal memory access does not have."""


def _lacks_memory(figures: Mapping[str, Any]) -> bool:
    """Return whether a network failed for lack of memory.

    The words of the error decide, because torch has an error class of its own for this only on a GPU.
    """
    error = figures.get("error", "").lower()
    return any(words in error for words in _NO_MEMORY)


def _empty_cache(device: torch.device) -> None:
    """Release the memory that torch holds for an earlier batch size."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
