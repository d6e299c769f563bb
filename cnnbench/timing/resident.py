"""How much a process grows by training, as the system sees it. To be asked in a process that has done nothing else."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from cnnbench.errors import UserError
from cnnbench.timing.stopwatch import Stopwatch
from cnnbench.timing.work import SpeedConfig, Subject, Timed, settle

_RESET_PEAK = "5"  # what Linux wants in clear_refs, to forget the highest value


def resident_growth(subject: Subject, config: SpeedConfig) -> int:
    """Bytes by which the resident memory of this process is higher at its highest during a few training steps.

    With the network's weights, gradients, optimizer state and activations, the images, the workspaces of the kernels
    and what the C library keeps; without what any first step makes, which a small network has made before.

    Args:
        subject: The network, the way it runs and its optimizer.
        config: Device, batch size and seed; rounds and times do not matter.

    Raises:
        UserError: The system does not say it: on Linux only.
    """
    steps = ("training",)
    settle(subject.way or config.way, config, steps)
    with contextlib.suppress(OSError):  # where that is not allowed, the highest value so far is that of the small one
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    before = _status("VmRSS")
    Timed(replace(subject, kinds=steps), config, Stopwatch(config.device))
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    """Bytes of resident memory of this process: now (``VmRSS``) or at most so far (``VmHWM``)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise UserError("the resident memory of a process can be read on Linux only; leave out --memory")
