"""What the machine did beside a measurement: reasons to doubt it.

On Linux the kernel counts what all processors did and what this process used; the difference is other processes, and
what a hypervisor took away is counted apart, and the processor's clock is read in every round. An NVIDIA GPU is asked
while it works (`cnnbench.timing.gpu_state`): one that has just become idle says nothing of clocks and throttling.
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
"""Processors that other processes may keep busy before a measurement is suspect."""
BURST, BURSTS = 0.5, 0.05
"""Processors that are a burst of other processes, and the share of looks that may see one."""
_LOOK_S = 0.25  # of the kernel's clock, which ticks a hundred times a second
STOLEN = 0.02
"""Share of time that a hypervisor may take away."""
THROTTLED = 0.9
"""Share of the highest clock below which a GPU counts as throttled, if the driver names a reason, and a processor."""
_CONTEXT_BYTES = 2 * 2**30
"""Memory of a GPU that a process may take beside what torch holds: its context, libraries, workspaces."""
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Conditions:
    """Watches the machine while something is measured; a context manager.

    Args:
        device: Where it is measured.
        stat: What the kernel counts of all processors; not the default in tests.
        cpuinfo: What it says of each of them; not the default in tests.
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
        """Notes the clock of the fastest processor, and whether others were at work: once a round, just after work."""
        now, counts = time.perf_counter(), self._counts()
        if self._last is not None and counts is not None and now - self._looked >= _LOOK_S:
            self._bursts.append(_others_s(self._last, counts) / (now - self._looked) > BURST)
            self._last, self._looked = counts, now
        with contextlib.suppress(OSError):
            found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", self._cpuinfo.read_text(), re.MULTILINE)
            self._clocks_mhz += [max(map(float, found))] if found else []

    def _counts(self) -> dict[str, float] | None:
        """Seconds so far of all processors: busy, stolen, and this process with its children; None elsewhere."""
        try:
            fields = self._stat.read_text().split("\n", 1)[0].split()
        except OSError:
            return None
        ticks = [int(value) / os.sysconf("SC_CLK_TCK") for value in fields[1:9]]
        user, nice, system, _, _, irq, soft, stolen = ticks
        return {"busy": user + nice + system + irq + soft, "stolen": stolen, "own": sum(os.times()[:4])}

    def figures(self) -> dict[str, Any]:
        """What was found since the start, for records: processors that others kept busy, the share of time that was
        stolen, clocks, and on a GPU what its driver said."""
        found: dict[str, Any] = {"load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}
        after = self._counts()
        if self._before is not None and after is not None:
            seconds = max(time.perf_counter() - self._start, 1e-9)
            found["others_cores"] = _others_s(self._before, after) / seconds
            found["others_bursts"] = [sum(self._bursts), len(self._bursts)]
            found["stolen_share"] = (after["stolen"] - self._before["stolen"]) / seconds / (os.cpu_count() or 1)
        if self._clocks_mhz:
            found["cpu_mhz"] = statistics.median(self._clocks_mhz)
            found["cpu_mhz_range"] = [min(self._clocks_mhz), max(self._clocks_mhz)]
        with contextlib.suppress(OSError):
            found["cpu_governor"] = _GOVERNOR.read_text().strip()
        if self._gpu is not None:
            found |= self._gpu.figures()
        return found


def _others_s(before: dict[str, float], after: dict[str, float]) -> float:
    """Seconds that other processes kept processors busy."""
    return max(0.0, after["busy"] - before["busy"] - (after["own"] - before["own"]))


def reasons_to_doubt(figures: dict[str, Any]) -> list[str]:
    """What in the figures of `Conditions` makes a measurement suspect, in words."""
    found = []
    if figures.get("others_cores", 0) > OTHERS:
        found.append(f"other processes kept {figures['others_cores']:.1f} processors busy")
    else:
        bursts, looks = figures.get("others_bursts", (0, 0))
        if bursts > max(1, BURSTS * looks):
            found.append(f"other processes kept {BURST:g} processors busy in {bursts} of {looks} looks")
    if figures.get("stolen_share", 0) > STOLEN:
        found.append(f"the hypervisor took away {figures['stolen_share']:.0%} of the time")
    slowest, fastest = figures.get("cpu_mhz_range", (0, 0))
    if figures.get("cpu_mhz", 0) < THROTTLED * fastest:
        found.append(f"the processor's clock was between {slowest:.0f} and {fastest:.0f} MHz")
    throttled, fastest = figures.get("throttled_clock_mhz"), figures.get("max_clock_mhz") or 0
    if throttled is not None and throttled < THROTTLED * fastest:
        reasons = int(figures["throttle_reasons"]) & ~IDLE
        found.append(f"the GPU ran at {throttled:.0f} of {fastest:.0f} MHz, throttled ({reasons:#x})")
    if figures.get("other_gpu_processes"):
        found.append(f"{figures['other_gpu_processes']} other processes were on the GPU")
    elif figures.get("other_gpu_bytes", 0) > _CONTEXT_BYTES:
        found.append(f"{figures['other_gpu_bytes'] / 2**30:.1f} GiB of the GPU's memory were not this process's")
    if "gpu_state_error" in figures:
        found.append(f"the GPU's clocks and other processes are not known: {figures['gpu_state_error']}")
    return found
