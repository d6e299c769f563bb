"""What the machine did beside a measurement: reasons to doubt it.

On Linux the kernel counts what all processors did and what this process used; the difference is other processes, and
what a hypervisor took away is counted apart. On an NVIDIA GPU the driver says clocks, temperature and what throttles.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

OTHERS = 0.05
"""Share of all processors that other processes may use before a measurement is suspect."""
STOLEN = 0.02
"""Share of time that a hypervisor may take away."""
THROTTLED = 0.9
"""Share of the highest clock below which a GPU counts as throttled, if the driver names a reason."""
_GPU_FIELDS = {
    "clock_mhz": "clocks.sm",
    "max_clock_mhz": "clocks.max.sm",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "throttle_reasons": "clocks_throttle_reasons.active",
}
_HARMLESS = 0x1
"""Throttle reason: the GPU is idle."""


class Conditions:
    """Watches the machine while something is measured.

    Args:
        device: Where it is measured.
        stat: What the kernel counts of all processors; not the default in tests.
    """

    def __init__(self, device: torch.device, stat: Path = Path("/proc/stat")) -> None:
        self._device, self._stat = device, stat
        self._before = self._counts()
        self._start = time.perf_counter()

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
        """What was found since the start, for records: shares of all processors, and on a GPU what its driver says."""
        found: dict[str, Any] = {"load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}
        after = self._counts()
        if self._before is not None and after is not None:
            passed = {name: after[name] - self._before[name] for name in after}
            available = max(time.perf_counter() - self._start, 1e-9) * (os.cpu_count() or 1)
            found["others_share"] = max(0.0, passed["busy"] - passed["own"]) / available
            found["stolen_share"] = passed["stolen"] / available
        if self._device.type == "cuda":
            found |= _gpu_state(self._device)
        return found


def reasons_to_doubt(figures: dict[str, Any]) -> list[str]:
    """What in the figures of `Conditions` makes a measurement suspect, in words."""
    found = []
    if figures.get("others_share", 0) > OTHERS:
        found.append(f"other processes used {figures['others_share']:.0%} of the processors")
    if figures.get("stolen_share", 0) > STOLEN:
        found.append(f"the hypervisor took away {figures['stolen_share']:.0%} of the time")
    reasons = int(figures.get("throttle_reasons") or 0) & ~_HARMLESS
    if reasons and figures["clock_mhz"] < THROTTLED * figures["max_clock_mhz"]:
        found.append(
            f"the GPU ran at {figures['clock_mhz']:.0f} of {figures['max_clock_mhz']:.0f} MHz, throttled ({reasons:#x})"
        )
    if figures.get("other_gpu_processes"):
        found.append(f"{figures['other_gpu_processes']} other processes were on the GPU")
    return found


def _gpu_state(device: torch.device) -> dict[str, Any]:
    """Clocks, temperature, power, throttle reasons and other processes; the error where the driver does not answer."""
    number = str(torch.cuda.get_device_properties(device).uuid)
    uuid = number if number.startswith("GPU-") else f"GPU-{number}"
    try:
        text = _ask(f"--query-gpu={','.join(_GPU_FIELDS.values())}", uuid)
        values = [part.strip() for part in text.split(",")]
        state: dict[str, Any] = {
            name: int(value, 16) if value.startswith("0x") else float(value)
            for name, value in zip(_GPU_FIELDS, values, strict=True)
        }
        users = [int(pid) for pid in _ask("--query-compute-apps=pid", uuid).split() if pid.isdigit()]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {"gpu_state_error": " ".join(str(error).split())}
    return state | {"other_gpu_processes": sum(pid != os.getpid() for pid in users)}


def _ask(query: str, uuid: str) -> str:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits", f"--id={uuid}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
