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
BURST, BURSTS = 0.5, 0.05
"""Processors that are a burst of other processes, and the share of looks that may see one."""
_LOOK_S = 0.25  # of the kernel's clock, which ticks a hundred times a second
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
_CONTEXT_BYTES = 2 * 2**30
"""Memory of a GPU that a process may take beside what torch holds: its context, libraries, workspaces."""
_STATE_QUERY = f"--query-gpu={','.join(_GPU_FIELDS.values())}"
_USERS_QUERY = "--query-compute-apps=pid"
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
        reasons = int(figures["throttle_reasons"]) & ~_HARMLESS
        found.append(f"the GPU ran at {throttled:.0f} of {fastest:.0f} MHz, throttled ({reasons:#x})")
    if figures.get("other_gpu_processes"):
        found.append(f"{figures['other_gpu_processes']} other processes were on the GPU")
    elif figures.get("other_gpu_bytes", 0) > _CONTEXT_BYTES:
        found.append(f"{figures['other_gpu_bytes'] / 2**30:.1f} GiB of the GPU's memory were not this process's")
    if "gpu_state_error" in figures:
        found.append(f"the GPU's clocks and other processes are not known: {figures['gpu_state_error']}")
    return found


class _GpuLog:
    """What the driver says of a GPU and of the processes on it, several times a second until it is stopped."""

    def __init__(self, device: torch.device) -> None:
        number = str(torch.cuda.get_device_properties(device).uuid)
        self._device, self._uuid = device, number if number.startswith("GPU-") else f"GPU-{number}"
        self._logs = {query: _Log(query, self._uuid) for query in (_STATE_QUERY, _USERS_QUERY)}
        self._others_bytes = self._not_ours()

    def stop(self) -> None:
        for log in self._logs.values():
            log.stop()

    def _not_ours(self) -> int:
        """Bytes of the device that torch does not hold in this process."""
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free - torch.cuda.memory_reserved(self._device)

    def figures(self) -> dict[str, Any]:
        """The state so far; the error where the driver does not answer.

        Inside a container the driver may name no processes, or by other numbers: unless it names this one, the others
        are not known (None), and what is left is the memory of the GPU that is not this process's.
        """
        self._others_bytes = max(self._others_bytes, self._not_ours())
        try:
            state = summary(self._logs[_STATE_QUERY].lines())
            users = {int(pid) for pid in self._logs[_USERS_QUERY].lines() if pid.strip().isdigit()}
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            return {"gpu_state_error": " ".join(str(error).split())}
        others = len(users) - 1 if os.getpid() in users else None
        return state | {"other_gpu_processes": others, "other_gpu_bytes": self._others_bytes}


class _Log:
    """Answers of the driver to one question, asked again and again."""

    def __init__(self, query: str, uuid: str) -> None:
        self._command = ["nvidia-smi", query, "--format=csv,noheader,nounits", f"--id={uuid}"]
        self._file = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):  # where there is no such command, the last question says so
            self._process = subprocess.Popen(
                [*self._command, "-lms", str(_EVERY_MS)], stdout=self._file, stderr=subprocess.DEVNULL
            )

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def lines(self) -> list[str]:
        """All answers so far, and one more."""
        last = subprocess.run(self._command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        self._file.flush()
        self._file.seek(0)
        return [*self._file.read().splitlines(), *last.splitlines()]


def summary(lines: Sequence[str]) -> dict[str, Any]:
    """One state of many: the lowest clock, and the lowest while something throttled it (None if nothing did), the
    highest temperature and power, and every reason of throttling.

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
    reasons, throttled = 0, []
    for state in busy:
        reasons |= state["throttle_reasons"] or 0
        if (state["throttle_reasons"] or 0) & ~_HARMLESS and state["clock_mhz"] is not None:
            throttled.append(state["clock_mhz"])
    worst = {"clock_mhz": min, "temperature_c": max, "power_w": max, "power_state": max}
    found = {name: pick((s[name] for s in busy if s[name] is not None), default=None) for name, pick in worst.items()}
    slowest = {"throttled_clock_mhz": min(throttled, default=None)}
    return {**busy[-1], **found, **slowest, "throttle_reasons": reasons, "gpu_looks": len(busy)}


def _value(name: str, text: str) -> Any:
    """A field's value; None where this GPU has none."""
    if text.startswith("["):  # [N/A], [Not Supported]
        return None
    if name in _WORDS:
        return text
    return int(text, 16) if text.startswith("0x") else float(text)
