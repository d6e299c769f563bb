"""The learning curve of a training, kept in memory for its record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger


class Curve(Logger):
    """Lightning logger that keeps the learning curve in memory for the record.

    Attributes:
        points: Logged values, each point with its optimizer ``step``, counted from 0; values that are not finite are
            left out.
        diverged: Whether a logged value was not finite.

    Args:
        on_point: Function that gets each point as soon as it is known.
    """

    name = "curve"
    version = 0

    def __init__(self, on_point: Callable[[Mapping[str, float]], None] = lambda _: None) -> None:
        super().__init__()
        self.on_point = on_point
        self.points: list[dict[str, float]] = []
        self.diverged = False

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {}
        for name, metric in metrics.items():
            # Lightning adds the number of the epoch, which is not a value of the curve.
            if not name.startswith(("train/", "val/")):
                continue
            value = float(metric)
            # The record is JSON, which has no numbers that are not finite.
            if math.isfinite(value):
                values[name] = round(value, 5)
            else:
                self.diverged = True
        if values:
            self.points.append({"step": step or 0, **values})
            self.on_point(self.points[-1])
