"""Inference over batch sizes up to the largest that fits, found by doubling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cnnbench.timing.speed import measure_speed
from cnnbench.timing.work import SpeedConfig, Subject

LONGEST_S = 1.0
"""Seconds of a batch from which on no larger one is tried."""


@dataclass
class Sweep:
    """Inference of one network at the batch sizes that it takes.

    Attributes:
        batches: Figures of `measure_speed` with their ``batch_size``, powers of two in their order.
        end: Why there is none larger.
    """

    batches: list[dict[str, Any]] = field(default_factory=list)
    end: str = ""


def sweep(
    subjects: Mapping[str, Subject],
    config: SpeedConfig,
    most: int,
    on_progress: Callable[[float, str], None] = lambda *_: None,
) -> dict[str, Sweep]:
    """Doubles the batch until it does not fit, takes too long, fails, or is as large as it may be.

    The networks take turns at each size; one size is in memory at a time. A network whose batch does not fit beside the
    others is timed alone, which its figures say by ``alone``.

    Args:
        subjects: Networks by name.
        config: How they are timed.
        most: Images of the largest batch to try.
        on_progress: Is told the share of a size that is done, and what comes next.
    """
    found = {name: Sweep() for name in subjects}
    size = 1
    while size <= most and any(not s.end for s in found.values()):
        going = {
            name: replace(subjects[name], kinds=("inference",), batch_size=size)
            for name in subjects
            if not found[name].end
        }

        def say(share: float, text: str, images: int = size) -> None:
            on_progress(share, f"batches of {images}: {text}")

        try:
            for name, figures in measure_speed(going, config, say).items():
                if _lacks_memory(figures) and len(going) > 1:
                    _empty_cache(config.device)
                    figures = measure_speed({name: going[name]}, config, say)[name] | {"alone": True}
                _note(found[name], size, figures)
            _empty_cache(config.device)
        except RuntimeError as error:
            # The device is unusable from here on; what was measured at smaller sizes stays.
            for name in going:
                found[name].end = found[name].end or f"{size} failed: {type(error).__name__}: {error}"
            break
        size *= 2
    for one in found.values():
        one.end = one.end or f"{size} was not tried: more than {most}"
    return found


def _note(found: Sweep, size: int, figures: Mapping[str, Any]) -> None:
    """Add the figures of a batch size, or say why larger ones are not tried."""
    if "error" in figures:
        why = "does not fit" if _lacks_memory(figures) else "failed"
        found.end = f"{size} {why}: {figures['error']}"
        return
    found.batches.append({"batch_size": size, **figures})
    took_s = figures["inference_ms_median"] / 1e3
    if took_s > LONGEST_S:
        found.end = f"{2 * size} was not tried: {size} take {took_s:.1f} s"


_NO_MEMORY = ("out of memory", "outofmemoryerror", "allocate memory", "enough memory", "memoryerror")
"""Words of the errors of a GPU, of a CPU, and of Python. An illegal memory access is another matter."""


def _lacks_memory(figures: Mapping[str, Any]) -> bool:
    """Whether a network failed for want of memory, for which torch has a class of its own on a GPU only."""
    error = figures.get("error", "").lower()
    return any(words in error for words in _NO_MEMORY)


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
