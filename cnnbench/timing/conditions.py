"""The state of the machine during a measurement, and the reasons that it gives to doubt the measured times.

On Linux, the kernel counts the time for which all processors were busy and the time that this process used. The
difference is the work of other processes. The kernel counts separately the time that a hypervisor took away. The
processor's clock is read in every round. An NVIDIA GPU is observed while it works (`cnnbench.timing.gpu_state`),
because the state of an idle GPU says nothing about its clock and its throttling under load.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from cnnbench.timing.gpu_state import IDLE, GpuState

OTHERS = 0.1
"""Number of processors that other processes may keep busy, on average, before a measurement is suspect."""
BURST, BURSTS = 0.5, 0.05
"""Limits for bursts of other processes: a look sees a burst if they kept more than `BURST` processors busy since the
last look, and a measurement is suspect if more than the share `BURSTS` of the looks, and more than one, saw a burst."""
_LOOK_S = 0.25  # shortest time between two looks, since the kernel counts processor time in ticks of 1/100 s
STOLEN = 0.02
"""Share of the processors' time that a hypervisor may take away before a measurement is suspect."""
THROTTLED = 0.9
"""Share of the highest clock below which a clock counts as throttled; a GPU's driver must also name a reason for it."""
_CONTEXT_BYTES = 2 * 2**30
"""GPU memory that a process may use outside torch's allocator, for the CUDA context, libraries and workspaces."""
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Conditions:
    """Context manager that watches the machine while something is measured.

    Args:
        device: Device on which the measurement runs.
        stat: File in which the kernel counts the time of all processors; tests pass another one.
        cpuinfo: File in which the kernel gives the clock of each processor; tests pass another one.
    """

    def __init__(
        self, device: torch.device, stat: Path = Path("/proc/stat"), cpuinfo: Path = Path("/proc/cpuinfo")
    ) -> None:
        self._device, self._stat, self._cpuinfo = device, stat, cpuinfo
        self._clocks_mhz: list[float] = []
        self._gpu = GpuState(device) if device.type == "cuda" else None
        self._before = self._last = self._counts()
        self._start = self._looked = time.perf_counter()
        self._bursts: list[bool] = []

    def __enter__(self) -> Conditions:
        return self

    def __exit__(self, *_: object) -> None:
        if self._gpu is not None:
            self._gpu.stop()

    def look(self) -> None:
        """Note the clock of the fastest processor, and whether other processes were busy since the last look.

        Call this once per round, immediately after the round's work.
        """
        now, counts = time.perf_counter(), self._counts()
        if self._last is not None and counts is not None and now - self._looked >= _LOOK_S:
            # Processor seconds per second of wall time are the number of processors that were busy.
            self._bursts.append(_others_s(self._last, counts) / (now - self._looked) > BURST)
            self._last, self._looked = counts, now
        with contextlib.suppress(OSError):
            clocks_mhz = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", self._cpuinfo.read_text(), re.MULTILINE)
            if clocks_mhz:
                # Idle processors lower their clock, so the fastest one stands for those that work.
                self._clocks_mhz.append(max(map(float, clocks_mhz)))

    def _counts(self) -> dict[str, float] | None:
        """Return the processor seconds so far: busy, stolen, and used by this process and its children.

        Return None where the kernel does not provide these counts.
        """
        try:
            fields = self._stat.read_text().split("\n", 1)[0].split()
        except OSError:
            return None
        # proc(5): the first line sums up all processors as user, nice, system, idle, iowait, irq, softirq and steal.
        ticks = [int(value) / os.sysconf("SC_CLK_TCK") for value in fields[1:9]]
        user, nice, system, _, _, irq, soft, stolen = ticks
        # The first four values of os.times are user and system time, of this process and of its ended children.
        return {"busy": user + nice + system + irq + soft, "stolen": stolen, "own": sum(os.times()[:4])}

    def figures(self) -> dict[str, Any]:
        """Return the figures about the machine since the start, for records.

        They are the load average, the number of processors that other processes kept busy, the bursts of other
        processes, the share of time that a hypervisor took away, the clocks, and the state of a GPU.
        """
        # Windows has no load average.
        figures: dict[str, Any] = {"load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}
        after = self._counts()
        if self._before is not None and after is not None:
            seconds = max(time.perf_counter() - self._start, 1e-9)
            figures["others_cores"] = _others_s(self._before, after) / seconds
            figures["others_bursts"] = [sum(self._bursts), len(self._bursts)]
            figures["stolen_share"] = (after["stolen"] - self._before["stolen"]) / seconds / (os.cpu_count() or 1)
        if self._clocks_mhz:
            figures["cpu_mhz"] = statistics.median(self._clocks_mhz)
            figures["cpu_mhz_range"] = [min(self._clocks_mhz), max(self._clocks_mhz)]
        with contextlib.suppress(OSError):
            figures["cpu_governor"] = _GOVERNOR.read_text().strip()
        if self._gpu is not None:
            figures |= self._gpu.figures()
        return figures


def _others_s(before: dict[str, float], after: dict[str, float]) -> float:
    """Return the processor seconds that other processes used between two counts."""
    return max(0.0, after["busy"] - before["busy"] - (after["own"] - before["own"]))


def reasons_to_doubt(figures: dict[str, Any]) -> list[str]:
    """Return, in words, what makes a measurement suspect.

    Args:
        figures: Result of `Conditions.figures`.
    """
    doubts = []
    if figures.get("others_cores", 0) > OTHERS:
        doubts.append(f"other processes kept {figures['others_cores']:.1f} processors busy")
    else:
        # On average the others did little, but a short burst can spoil the rounds in which it happened.
        bursts, looks = figures.get("others_bursts", (0, 0))
        if bursts > max(1, BURSTS * looks):
            doubts.append(f"other processes kept {BURST:g} processors busy in {bursts} of {looks} looks")
    if figures.get("stolen_share", 0) > STOLEN:
        doubts.append(f"the hypervisor took away {figures['stolen_share']:.0%} of the time")
    slowest, fastest = figures.get("cpu_mhz_range", (0, 0))
    if figures.get("cpu_mhz", 0) < THROTTLED * fastest:
        doubts.append(f"the processor's clock was between {slowest:.0f} and {fastest:.0f} MHz")
    throttled, fastest = figures.get("throttled_clock_mhz"), figures.get("max_clock_mhz") or 0
    if throttled is not None and throttled < THROTTLED * fastest:
        # The bit for idling is left out, since it does not explain a low clock under load.
        reasons = int(figures["throttle_reasons"]) & ~IDLE
        doubts.append(f"the GPU ran at {throttled:.0f} of {fastest:.0f} MHz, throttled ({reasons:#x})")
    if figures.get("other_gpu_processes"):
        doubts.append(f"{figures['other_gpu_processes']} other processes were on the GPU")
    elif figures.get("other_gpu_bytes", 0) > _CONTEXT_BYTES:
        doubts.append(f"{figures['other_gpu_bytes'] / 2**30:.1f} GiB of the GPU's memory were not this process's")
    if "gpu_state_error" in figures:
        doubts.append(f"the GPU's clocks and other processes are not known: {figures['gpu_state_error']}")
    return doubts
