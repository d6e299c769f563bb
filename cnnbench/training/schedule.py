"""The schedule of the learning rate: a warm-up, then a decay over the progress of the training."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]


def lr_factor(progress: float, warmup: float, schedule: Schedule) -> float:
    """Return the learning rate as a share of its peak.

    Args:
        progress: Completed share of the training, 0 to 1.
        warmup: Share of the training in which the rate rises linearly from a tenth of its peak.
        schedule: Course after the warm-up: ``linear`` or ``cosine`` decay to zero, or ``constant``.
    """
    if progress < warmup:
        # `progress` is at least 0 and below `warmup`, so this never divides by zero.
        return 0.1 + 0.9 * progress / warmup
    if schedule == "constant":
        return 1.0
    # A time budget may be overrun, so `progress` may exceed 1.
    left = max(0.0, (1 - progress) / (1 - warmup))
    if schedule == "linear":
        return left
    # Half a period of the cosine, from 1 where everything is left to 0 at the end.
    return (1 - math.cos(math.pi * left)) / 2
