"""Timing of single calls: by the wall clock, and on a CUDA device also by events in its stream."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from cnnbench.hardware import on_device, synchronise

_SLEEP_CYCLES_PER_MS = 2_000_000
"""Clock cycles for one millisecond of ``torch.cuda._sleep``, on a GPU whose clock is at most about 2 GHz."""
_LEAST_SLEEP_MS = 0.2
_MOST_SLEEP_MS = 50.0
"""Limits of the sleep that keeps the device busy in `Stopwatch.queued`, in milliseconds."""


class Lap(NamedTuple):
    """Times of one call, in milliseconds.

    Attributes:
        wall_ms: Wall time from before the start of the call until the device has finished its work.
        device_ms: Time between the events before and after the call in a GPU's stream, including the time in which the
            GPU waited for the host; None on other devices.
        parts_ms: Times of the parts between marks, by events on a GPU and by the wall clock elsewhere; empty if the
            call set no marks.
    """

    wall_ms: float
    device_ms: float | None
    parts_ms: tuple[float, ...]


class Stopwatch:
    """Stopwatch for calls on a device.

    Args:
        device: Device on which the calls run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0.0
        self._marks: list[Any] = []
        # Events are made once and reused, because making one takes as long as launching a small kernel.
        self._events: list[Any] = []

    @property
    def has_queue(self) -> bool:
        """Return whether the host can queue work on the device and go on without waiting for it."""
        return self._device.type == "cuda"

    def begin(self) -> None:
        """Start the timing of a call; the device should be idle, or else the wall time includes its earlier work."""
        self._marks = []
        if self._device.type == "cuda":
            # The event comes first, so that recording it is not part of the wall time.
            self._marks.append(self._event())
            self._start = time.perf_counter()
        else:
            self._start = time.perf_counter()
            self._marks.append(self._start)

    def mark(self) -> None:
        """End one part of the call and start the next."""
        if self._device.type == "cuda":
            self._marks.append(self._event())
            return
        # The wall clock can end a part on an Apple GPU only after the device has finished it.
        if self._device.type == "mps":
            self.wait()
        self._marks.append(time.perf_counter())

    def _event(self) -> Any:
        """Record the next event in the current stream of the device and return it."""
        at = len(self._marks)
        if at == len(self._events):
            self._events.append(torch.cuda.Event(enable_timing=True))
        self._events[at].record(torch.cuda.current_stream(self._device))
        return self._events[at]

    def end(self) -> Lap:
        """Wait until the device has finished the call, and return its times."""
        if self._device.type == "cuda":
            self.mark()
        self.wait()
        now = time.perf_counter()
        if self._device.type != "cuda":
            self._marks.append(now)
            parts = [1e3 * (b - a) for a, b in itertools.pairwise(self._marks)]
        else:
            parts = [a.elapsed_time(b) for a, b in itertools.pairwise(self._marks)]
        # The parts follow each other without gaps, so their sum is the time from the first event to the last.
        device_ms = sum(parts) if self._device.type == "cuda" else None
        return Lap(1e3 * (now - self._start), device_ms, tuple(parts) if len(parts) > 1 else ())

    def queued(self, call: Callable[[], object], wall_ms: float) -> Lap:
        """Time a call whose launches are all queued before the device starts with it.

        A sleep first keeps the device busy for longer than the host takes to launch the call. The time between the
        events is then the device's own work, without gaps in which it waits for the host.

        Args:
            call: Call to time; it may set marks, and must not wait for the device.
            wall_ms: Approximate wall time of the call in milliseconds.

        Returns:
            The times of the call; the wall time includes the sleep.
        """
        # Twice the wall time leaves a margin for launches that are slower this time.
        sleep_ms = min(max(2 * wall_ms, _LEAST_SLEEP_MS), _MOST_SLEEP_MS)
        with on_device(self._device):
            torch.cuda._sleep(int(sleep_ms * _SLEEP_CYCLES_PER_MS))
        # The event of `begin` waits in the stream behind the sleep.
        self.begin()
        call()
        return self.end()

    def wait(self) -> None:
        """Wait until the device has finished all of its work."""
        synchronise(self._device)
