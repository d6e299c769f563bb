"""The growth of a process's resident memory through training or inference, as the operating system reports it.

The measurement has to run in a process that has done nothing else before.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cnnbench.errors import UserError
from cnnbench.timing.processes import in_process
from cnnbench.timing.stopwatch import Stopwatch
from cnnbench.timing.timed_network import SpeedConfig, Subject, Timed, settle

_RESET_PEAK = "5"  # written to /proc/self/clear_refs, this resets the peak resident memory of a process, see proc(5)
_IMAGES = 10
"""Single images during which the peak of inference is observed."""


def growth_or_reason(function: Callable[..., Mapping[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return the figures that a function finds in a fresh process, or why there are none.

    Args:
        function: Function that returns one of the figures below by its key; it must be defined at the top level of a
            module.
        arguments: Arguments of the function.

    Returns:
        The figures, or the reason as ``memory_facts``. The times of the network, which exist by then, remain.
    """
    try:
        return dict(in_process(function, *arguments))
    except UserError as error:
        return {"memory_facts": {"error": str(error)}}


def resident_growth(subject: Subject, config: SpeedConfig) -> int:
    """Return the largest growth of this process's resident memory during a few training steps, in bytes.

    The growth includes the weights, gradients, optimizer state and activations of the network, the images, the
    workspaces of the kernels, and freed memory that the C library keeps. It excludes what the first training step of
    any network allocates, because a small network has trained before.

    Args:
        subject: Network, the way in which it runs, and its optimizer.
        config: Device, batch size and seed of the steps; the numbers of rounds and the times do not matter.

    Raises:
        UserError: The system is not Linux and does not report this memory.
    """
    steps = ("training",)
    settle(subject.way or config.way, config, steps)
    # If the reset is not allowed, the peak so far is that of the small network.
    with contextlib.suppress(OSError):
        _reset_peak()
    before = _status("VmRSS")
    # The constructor warms the network up, which is a few training steps.
    Timed(replace(subject, kinds=steps), config, Stopwatch(config.device))
    return max(0, _status("VmHWM") - before)


def inference_growth(subject: Subject, config: SpeedConfig, small: Path | None = None) -> int:
    """Return the growth of this process's resident memory from before a network is loaded to its peak in inference.

    The peak is that of single images, after the first few. The growth includes the weights in the form in which they
    are kept, the activations, the workspaces of the kernels, and freed memory that the C library keeps. It excludes the
    libraries and what the first inference of any network allocates, because a small network has run before. It also
    excludes memory that loading takes and gives back to the system.

    Args:
        subject: Network, and the way in which it runs.
        config: Device and seed; batch sizes, numbers of rounds and times do not matter.
        small: Small network as a file for the engine of the way; None for torch.

    Raises:
        UserError: The system is not Linux and does not report this memory, or does not let its peak be reset.
    """
    latency = ("latency",)
    _give_back()
    settle(subject.way or config.way, config, latency, small)
    before = _status("VmRSS")
    network = Timed(replace(subject, kinds=latency), config, Stopwatch(config.device))
    try:
        _reset_peak()
    except OSError as error:
        raise UserError(f"the peak of this process's memory cannot be reset: {error}; leave out --memory") from error
    with network.calls("latency") as call:
        for _ in range(_IMAGES):
            call()
    return max(0, _status("VmHWM") - before)


def _give_back() -> None:
    """Give memory that is no longer used back to the system; a network would find room in it without a growth."""
    gc.collect()
    # Only glibc has this function, see malloc_trim(3); `CDLL(None)` gives the functions of this process.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> None:
    """Set the peak resident memory of this process to the present value.

    Raises:
        OSError: The system does not allow it.
    """
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def _status(key: str) -> int:
    """Return the resident memory of this process in bytes: the present one (``VmRSS``) or its peak (``VmHWM``)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(key):
            # A line has the form `VmRSS:  12345 kB`, where kB stands for 1024 bytes.
            return int(line.split()[1]) * 1024
    raise UserError("the resident memory of a process can be read on Linux only; leave out --memory")
