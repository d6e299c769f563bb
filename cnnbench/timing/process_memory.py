"""The growth of a process's resident memory through training, as the operating system reports it.

The measurement has to run in a process that has done nothing else before.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from cnnbench.errors import UserError
from cnnbench.timing.stopwatch import Stopwatch
from cnnbench.timing.timed_network import SpeedConfig, Subject, Timed, settle

_RESET_PEAK = "5"  # written to /proc/self/clear_refs, this resets the peak resident memory of a process, see proc(5)


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
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    before = _status("VmRSS")
    # The constructor warms the network up, which is a few training steps.
    Timed(replace(subject, kinds=steps), config, Stopwatch(config.device))
    return max(0, _status("VmHWM") - before)


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
