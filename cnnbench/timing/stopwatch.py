"""Times single calls: by the wall clock, and on a CUDA device by events in its stream as well."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from cnnbench.hardware import on_device, synchronise

_SLEEP_CYCLES_PER_MS = 2_000_000
"""Cycles of a GPU's clock, at most about 2 GHz, in a millisecond of ``torch.cuda._sleep``."""
_LEAST_SLEEP_MS = 0.2
_MOST_SLEEP_MS = 50.0


class Lap(NamedTuple):
    """A timed call.

    Attributes:
        wall_ms: From before its start until the device has done its work.
        device_ms: Between events around it in a GPU's stream; in it is what the GPU waited for the host.
        parts_ms: Between the marks that were set in it, by the same clock as ``device_ms``, or the wall clock.
    """

    wall_ms: float
    device_ms: float | None
    parts_ms: tuple[float, ...]


class Stopwatch:
    """Times calls.

    Args:
        device: Where the calls run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0.0
        self._marks: list[Any] = []
        # Made once: making an event takes as long as launching a small kernel.
        self._events: list[Any] = []

    @property
    def has_queue(self) -> bool:
        """Whether the host can give the device work for later, and go on."""
        return self._device.type == "cuda"

    def begin(self) -> None:
        """Start a call; the device has nothing to do."""
        self._marks = []
        if self._device.type == "cuda":
            self._marks.append(self._event())
            self._start = time.perf_counter()
        else:
            self._start = time.perf_counter()
            self._marks.append(self._start)

    def mark(self) -> None:
        """End a part of the call."""
        if self._device.type == "cuda":
            self._marks.append(self._event())
            return
        if self._device.type == "mps":
            self.wait()
        self._marks.append(time.perf_counter())

    def _event(self) -> Any:
        """Record the next event in the device's stream and return it."""
        at = len(self._marks)
        if at == len(self._events):
            self._events.append(torch.cuda.Event(enable_timing=True))
        self._events[at].record(torch.cuda.current_stream(self._device))
        return self._events[at]

    def end(self) -> Lap:
        """End the call when the device has done its work."""
        if self._device.type == "cuda":
            self.mark()
        self.wait()
        now = time.perf_counter()
        if self._device.type != "cuda":
            self._marks.append(now)
            parts = [1e3 * (b - a) for a, b in itertools.pairwise(self._marks)]
        else:
            parts = [a.elapsed_time(b) for a, b in itertools.pairwise(self._marks)]
        device_ms = sum(parts) if self._device.type == "cuda" else None
        return Lap(1e3 * (now - self._start), device_ms, tuple(parts) if len(parts) > 1 else ())

    def queued(self, call: Callable[[], object], wall_ms: float) -> Lap:
        """Time a call whose launches are all in the queue before the device begins with it.

        The device is first given something that keeps it busy for longer than the host takes to launch the call. What
        lies between the events is then the device's own work, without the gaps in which it waits for the host.

        Args:
            call: What is timed; it may set marks, and must not wait for the device.
            wall_ms: About how long it takes by the wall clock.

        Returns:
            The lap; its wall time has the sleep in it.
        """
        sleep_ms = min(max(2 * wall_ms, _LEAST_SLEEP_MS), _MOST_SLEEP_MS)
        with on_device(self._device):
            torch.cuda._sleep(int(sleep_ms * _SLEEP_CYCLES_PER_MS))
        self.begin()
        call()
        return self.end()

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        synchronise(self._device)
