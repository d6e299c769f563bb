"""The largest batch that a network takes, found by doubling, and what pooling runs of several processes gives."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from cnnbench.hardware import autocast, synchronise
from cnnbench.measure.work import KEYS, SpeedConfig, Subject, Way, spread

LONGEST_S = 2.0
"""Seconds of a batch from which on no larger one is tried."""


class Sizes(NamedTuple):
    """Batches that were tried: powers of two that a network takes, and why there is none larger."""

    fit: list[int]
    end: str


def batch_sizes(subject: Subject, config: SpeedConfig, most: int) -> Sizes:
    """Doubles the batch of inference until it does not fit, takes too long, or is as large as it may be.

    Args:
        subject: The network.
        config: Device and precision.
        most: Images of the largest batch to try.
    """
    way = subject.way or Way(config.precision)
    model_format = torch.channels_last if way.channels_last else torch.contiguous_format
    model = subject.build().to(device=config.device, memory_format=model_format).eval()  # type: ignore[call-overload]
    fit: list[int] = []
    size = 1
    while size <= most:
        start = time.perf_counter()
        try:
            x = torch.randn(size, *subject.image_shape, device=config.device).contiguous(memory_format=model_format)
            with torch.inference_mode(), autocast(way.precision, config.device):
                model(x)
            synchronise(config.device)
        except RuntimeError as error:  # also torch.OutOfMemoryError; a CPU's has no class of its own
            if "memory" not in str(error).lower():
                raise
            return Sizes(fit, f"{size} does not fit: {str(error).splitlines()[0]}")
        fit.append(size)
        took_s = time.perf_counter() - start
        size *= 2
        if took_s > LONGEST_S:
            return Sizes(fit, f"{size} was not tried: {size // 2} take {took_s:.1f} s")
    return Sizes(fit, f"{size} was not tried: more than {most}")


def pooled(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one network from several processes: rounds of all together, medians of everything else.

    Args:
        runs: Of `measure_speed`, of the same settings.

    Returns:
        The same keys, with ``process_rounds``, the number of rounds of each process.
    """
    failed = next((dict(run) for run in runs if "error" in run), None)
    if failed:
        return failed
    first = runs[0]
    found = {
        key: statistics.median(run[key] for run in runs) if isinstance(value, (int, float)) else value
        for key, value in first.items()
    }
    samples = {kind: [block for run in runs for block in run["samples_ms"][kind]] for kind in first["samples_ms"]}
    rates = {"inference": "images_per_s", "training": "train_images_per_s"}
    for kind in KEYS.keys() & samples.keys():
        images = first[rates[kind]] * first[f"{KEYS[kind]}_median"] if kind in rates else 0.0
        found |= {f"{KEYS[kind]}_{name}": value for name, value in spread(samples[kind]).items()}
        if kind in rates:
            found[rates[kind]] = images / found[f"{KEYS[kind]}_median"]
    reasons: dict[str, int] = {}
    for run in runs:
        for reason in run["suspect"]:
            reasons[reason] = reasons.get(reason, 0) + 1
    kinds = [kind for kind in KEYS if kind in samples]
    return found | {
        "samples_ms": samples,
        "process_rounds": [len(run["samples_ms"][kinds[0]]) for run in runs],
        "suspect": [f"{reason} (in {n} of {len(runs)} processes)" for reason, n in reasons.items()],
    }
