"""The counters of energy that processors and NVIDIA GPUs have, each read as it is.

The counters are read here and not by codecarbon, the best kept library for energy. Where it cannot read a counter, it
estimates the energy from the processor's rated power. It also asks the counters at intervals of seconds, adds an
estimate for the memory of the host, and does not offer the readings themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from cnnbench.errors import UserError
from cnnbench.timing.gpu_state import gpu_uuid, load_nvml

POWERCAP = Path("/sys/class/powercap")
"""Folder in which Linux shows RAPL, the counters of Intel's and AMD's processors."""


class Counter(Protocol):
    """A counter of energy.

    Attributes:
        name: Name of the counter.
        update_s: Approximate interval in seconds at which the counter is updated.
        includes: What the counter counts, in words.
        excludes: What it does not count, in words.
    """

    name: str
    update_s: float
    includes: str
    excludes: str

    def read(self) -> tuple[int, ...]:
        """Return the present reading of each part of the counter."""

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Return the energy between two readings in joules."""


class Rapl:
    """RAPL's counters of all processor packages (Intel, Software Developer's Manual, volume 3B, RAPL interfaces).

    A package counts the energy of its cores, caches and memory controllers. Its subdomains, such as `core`, are parts
    of it. The domain `psys` includes it, and `intel-rapl-mmio` shows the same counter once more. So packages alone are
    summed.

    Args:
        folder: Folder with the domains.

    Raises:
        UserError: There is no such counter, or this user may not read it.
    """

    name = "RAPL"
    update_s = 0.001
    includes = "all processor packages, idle power and other programs included"
    excludes = "main memory, GPUs and the rest of the machine"

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"this processor's counter cannot be read: {folder} is not there")
        self._packages = []
        for path in sorted(folder.iterdir()):
            # A subdomain has one more number, as in intel-rapl:0:1.
            if re.fullmatch(r"intel-rapl:\d+", path.name) and _text(path / "name").startswith("package"):
                self._packages.append(path)
        if not self._packages:
            raise UserError(f"this processor's counter cannot be read: {folder} has no package of RAPL")
        self.read()

    def read(self) -> tuple[int, ...]:
        """Return the reading of each package in microjoules."""
        return tuple(_number(path / "energy_uj") for path in self._packages)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Return the energy between two readings of all packages in joules.

        A counter starts again at 0 after its largest value. The smallest of these are some kilojoules, so this happens
        at most once in the seconds of a measurement.
        """
        total = 0
        for path, first, last in zip(self._packages, before, after, strict=True):
            used = last - first
            if used < 0:
                used += _number(path / "max_energy_range_uj")
            if used < 0:
                raise UserError(f"this processor's counter went back: {path / 'energy_uj'}")
            total += used
        return total / 1e6


def _text(path: Path) -> str:
    """Return the text of a file without white space around it.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        return path.read_text().strip()
    except OSError as error:
        raise UserError(f"this processor's counter cannot be read: {path}: {error.strerror}") from None


def _number(path: Path) -> int:
    """Return the whole number in a file.

    Raises:
        UserError: The file cannot be read, or holds no number.
    """
    text = _text(path)
    try:
        return int(text)
    except ValueError:
        raise UserError(f"this processor's counter cannot be read: {path} is {text!r}") from None


class Nvml:
    """The counter of an NVIDIA GPU since its driver was loaded, which GPUs have from Volta on.

    Args:
        device: CUDA device.
        library: Function that returns NVML; tests pass another one.

    Raises:
        UserError: The driver does not answer, or the device has no such counter, as a part of a GPU.
    """

    name = "NVML"
    update_s = 0.1
    includes = "the whole GPU with its memory, idle power and other programs included"
    excludes = "the host"

    def __init__(self, device: torch.device, library: Callable[[], Any] = load_nvml) -> None:
        try:
            self._nvml = library()
            self._nvml.nvmlInit()
            self._gpu = self._nvml.nvmlDeviceGetHandleByUUID(gpu_uuid(device))
        except Exception as error:  # the package or the library is missing
            raise _unreadable(error) from None
        self.read()

    def read(self) -> tuple[int, ...]:
        """Return the reading of the GPU in millijoules."""
        try:
            return (int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)),)
        except Exception as error:  # NVML has an exception class for each of its errors
            raise _unreadable(error) from None

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Return the energy between two readings in joules."""
        return (after[0] - before[0]) / 1e3


def _unreadable(error: Exception) -> UserError:
    """Return an error that says why the counter of a GPU cannot be read."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(f"this GPU's counter cannot be read: {text}")


def find_counter(device: torch.device) -> Counter:
    """Return the counter of the energy of a device.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    if device.type == "cuda":
        return Nvml(device)
    if device.type == "cpu":
        return Rapl(POWERCAP)
    raise UserError(f"there is no counter for device {device.type}")
