"""What the machine did beside a measurement: reasons to doubt it.

On Linux the kernel counts what all processors did and what this process used; the difference is other processes, and
what a hypervisor took away is counted apart, and the processor's clock is read in every round. On an NVIDIA GPU the
driver is asked several times a second, while it works, for clocks, temperature and what throttles: a GPU that has just
become idle says nothing of that.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

OTHERS = 0.1
"""Processors that other processes may keep busy before a measurement is suspect."""
STOLEN = 0.02
"""Share of time that a hypervisor may take away."""
THROTTLED = 0.9
"""Share of the highest clock below which a GPU counts as throttled, if the driver names a reason, and a processor."""
_GPU_FIELDS = {
    "clock_mhz": "clocks.sm",
    "max_clock_mhz": "clocks.max.sm",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "throttle_reasons": "clocks_throttle_reasons.active",
    "power_state": "pstate",
    "driver": "driver_version",
}
_WORDS = ("power_state", "driver")
"""Fields that are no numbers."""
_HARMLESS = 0x1
"""Throttle reason: the GPU is idle."""
_EVERY_MS = 250
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
        self._gpu = _GpuLog(device) if device.type == "cuda" else None
        self._before = self._counts()
        self._start = time.perf_counter()

    def __enter__(self) -> Conditions:
        return self

    def __exit__(self, *_: object) -> None:
        if self._gpu is not None:
            self._gpu.stop()

    def look(self) -> None:
        """Notes the clock of the fastest processor: once a round, just after work."""
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
            passed = {name: after[name] - self._before[name] for name in after}
            seconds = max(time.perf_counter() - self._start, 1e-9)
            found["others_cores"] = max(0.0, passed["busy"] - passed["own"]) / seconds
            found["stolen_share"] = passed["stolen"] / seconds / (os.cpu_count() or 1)
        if self._clocks_mhz:
            found["cpu_mhz"] = statistics.median(self._clocks_mhz)
            found["cpu_mhz_range"] = [min(self._clocks_mhz), max(self._clocks_mhz)]
        with contextlib.suppress(OSError):
            found["cpu_governor"] = _GOVERNOR.read_text().strip()
        if self._gpu is not None:
            found |= self._gpu.figures()
        return found


def reasons_to_doubt(figures: dict[str, Any]) -> list[str]:
    """What in the figures of `Conditions` makes a measurement suspect, in words."""
    found = []
    if figures.get("others_cores", 0) > OTHERS:
        found.append(f"other processes kept {figures['others_cores']:.1f} processors busy")
    if figures.get("stolen_share", 0) > STOLEN:
        found.append(f"the hypervisor took away {figures['stolen_share']:.0%} of the time")
    slowest, fastest = figures.get("cpu_mhz_range", (0, 0))
    if figures.get("cpu_mhz", 0) < THROTTLED * fastest:
        found.append(f"the processor's clock was between {slowest:.0f} and {fastest:.0f} MHz")
    reasons = int(figures.get("throttle_reasons") or 0) & ~_HARMLESS
    if reasons and (figures["clock_mhz"] or 0) < THROTTLED * (figures["max_clock_mhz"] or 0):
        found.append(
            f"the GPU ran at {figures['clock_mhz']:.0f} of {figures['max_clock_mhz']:.0f} MHz, throttled ({reasons:#x})"
        )
    if figures.get("other_gpu_processes"):
        found.append(f"{figures['other_gpu_processes']} other processes were on the GPU")
    if "gpu_state_error" in figures:
        found.append(f"the GPU's clocks and other processes are not known: {figures['gpu_state_error']}")
    return found


class _GpuLog:
    """What the driver says of a GPU, several times a second until it is stopped."""

    def __init__(self, device: torch.device) -> None:
        number = str(torch.cuda.get_device_properties(device).uuid)
        self._uuid = number if number.startswith("GPU-") else f"GPU-{number}"
        self._query = f"--query-gpu={','.join(_GPU_FIELDS.values())}"
        self._file = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):  # where there is no such command, the last question says so
            self._process = subprocess.Popen(
                [*_command(self._query, self._uuid), "-lms", str(_EVERY_MS)],
                stdout=self._file,
                stderr=subprocess.DEVNULL,
            )

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def figures(self) -> dict[str, Any]:
        """The state so far; the error where the driver does not answer."""
        try:
            last = _ask(self._query, self._uuid)
            self._file.flush()
            self._file.seek(0)
            state = summary([*self._file.read().splitlines(), last])
            users = [int(pid) for pid in _ask("--query-compute-apps=pid", self._uuid).split() if pid.isdigit()]
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            return {"gpu_state_error": " ".join(str(error).split())}
        return state | {"other_gpu_processes": sum(pid != os.getpid() for pid in users)}


def summary(lines: Sequence[str]) -> dict[str, Any]:
    """One state of many: the lowest clock, the highest temperature and power, and every reason of throttling.

    Args:
        lines: Of the driver, fields in their order, separated by commas. Those of an idle GPU count only if there is
            no other; one that was cut off does not count.

    Raises:
        ValueError: No line is whole.
    """
    states = []
    for line in lines:
        values = [part.strip() for part in line.split(",")]
        if len(values) == len(_GPU_FIELDS):
            with contextlib.suppress(ValueError):
                states.append({n: _value(n, value) for n, value in zip(_GPU_FIELDS, values, strict=True)})
    if not states:
        raise ValueError(f"the driver said: {' '.join(lines)[:200]}")
    busy = [state for state in states if not (state["throttle_reasons"] or 0) & _HARMLESS] or states
    reasons = 0
    for state in busy:
        reasons |= state["throttle_reasons"] or 0
    worst = {"clock_mhz": min, "temperature_c": max, "power_w": max, "power_state": max}
    found = {name: pick((s[name] for s in busy if s[name] is not None), default=None) for name, pick in worst.items()}
    return {**busy[-1], **found, "throttle_reasons": reasons, "gpu_looks": len(busy)}


def _value(name: str, text: str) -> Any:
    """A field's value; None where this GPU has none."""
    if text.startswith("["):  # [N/A], [Not Supported]
        return None
    if name in _WORDS:
        return text
    return int(text, 16) if text.startswith("0x") else float(text)


def _ask(query: str, uuid: str) -> str:
    return subprocess.run(_command(query, uuid), capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _command(query: str, uuid: str) -> list[str]:
    return ["nvidia-smi", query, "--format=csv,noheader,nounits", f"--id={uuid}"]
