"""What the driver of an NVIDIA GPU says of it, several times a second while something is measured there.

It is asked through NVML within this process: that takes a tenth of a millisecond, where the program nvidia-smi would
take a processor for half a second, which the measurement would then call suspect.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch

EVERY_S = 0.25
IDLE = 0x1
"""Reason of a low clock: the GPU has nothing to do."""


def _nvml() -> ModuleType:
    """Return the library, which is there where its package is installed."""
    import pynvml

    return pynvml


class GpuState:
    """Asks a GPU's driver until it is stopped.

    Args:
        device: Which GPU.
        library: NVML's functions, as the package nvidia-ml-py names them; not the default in tests.
    """

    def __init__(self, device: torch.device, library: Callable[[], Any] = _nvml) -> None:
        self._device = device
        self._states: list[dict[str, Any]] = []
        self._users: set[int] = set()
        self._error = ""
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._others_bytes = self._not_ours()
        try:
            self._nvml = library()
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(_uuid(device))
            self._driver = _text(self._nvml.nvmlSystemGetDriverVersion())
            self._look()
        except Exception as error:  # the package is missing, or the library, or the GPU is a part of one
            self._error = " ".join(f"{type(error).__name__}: {error}".split())
            return
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop asking."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def figures(self) -> dict[str, Any]:
        """Return the state so far, as `summary` has it, with the other processes on the GPU; or the error.

        Inside a container the driver may name no processes, or by other numbers: unless it names this one, the others
        are not known (None), and what is left is the memory of the GPU that is not this process's.
        """
        self._others_bytes = max(self._others_bytes, self._not_ours())
        if self._error or not self._states:
            return {"gpu_state_error": self._error or "the driver said nothing"}
        others = len(self._users) - 1 if os.getpid() in self._users else None
        more = {"driver": self._driver, "other_gpu_processes": others, "other_gpu_bytes": self._others_bytes}
        return summary(self._states) | more

    def _not_ours(self) -> int:
        """Return the bytes of the device that torch does not hold in this process; 0 if the device has failed."""
        try:
            free, total = torch.cuda.mem_get_info(self._device)
        except RuntimeError:
            return 0
        return total - free - torch.cuda.memory_reserved(self._device)

    def _look_on(self) -> None:
        while not self._end.wait(EVERY_S):
            try:
                self._look()
            except Exception as error:
                self._error = " ".join(f"{type(error).__name__}: {error}".split())
                return

    def _look(self) -> None:
        """Ask once."""
        nvml, gpu = self._nvml, self._handle
        self._states.append(
            {
                "clock_mhz": self._ask(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_SM),
                "max_clock_mhz": self._ask(nvml.nvmlDeviceGetMaxClockInfo, gpu, nvml.NVML_CLOCK_SM),
                "temperature_c": self._ask(nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU),
                "power_w": _watts(self._ask(nvml.nvmlDeviceGetPowerUsage, gpu)),
                "power_limit_w": _watts(self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, gpu)),
                "throttle_reasons": self._throttle_reasons(),
                "power_state": _power_state(self._ask(nvml.nvmlDeviceGetPerformanceState, gpu)),
            }
        )
        processes = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, gpu) or []
        self._users |= {process.pid for process in processes}

    def _throttle_reasons(self) -> Any:
        """Return why the clock is lower than it could be, by the name of the question that driver and package have."""
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            question = getattr(self._nvml, name, None)
            if question is None:
                continue
            # Drivers before 535 do not know the first.
            with contextlib.suppress(self._nvml.NVMLError_FunctionNotFound):
                return self._ask(question, self._handle)
        return None

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """Return an answer; None where this GPU has none."""
        with contextlib.suppress(self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_NoPermission):
            return question(*arguments)
        return None


def _uuid(device: torch.device) -> str:
    number = str(torch.cuda.get_device_properties(device).uuid)
    return number if number.startswith(("GPU-", "MIG-")) else f"GPU-{number}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _watts(milliwatts: float | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _power_state(number: int | None) -> str | None:
    return None if number is None else f"P{number}"


def summary(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum states up by the worst of each.

    Args:
        states: Each with ``clock_mhz``, ``max_clock_mhz``, ``temperature_c``, ``power_w``, ``power_limit_w``,
            ``throttle_reasons`` and ``power_state``, any of them None. Those of an idle GPU count only if there is no
            other.

    Returns:
        The same keys, with the lowest clock, the highest temperature, power and power state, and every reason of a low
        clock; ``throttled_clock_mhz``, the lowest clock while there was such a reason, None if there was none; and
        ``gpu_looks``, how many states count.
    """
    busy = [state for state in states if not (state["throttle_reasons"] or 0) & IDLE] or list(states)
    reasons, throttled = 0, []
    for state in busy:
        reasons |= state["throttle_reasons"] or 0
        if (state["throttle_reasons"] or 0) & ~IDLE and state["clock_mhz"] is not None:
            throttled.append(state["clock_mhz"])
    found = dict(busy[-1])
    for name, worst in {"clock_mhz": min, "temperature_c": max, "power_w": max, "power_state": max}.items():
        found[name] = worst((state[name] for state in busy if state[name] is not None), default=None)
    found |= {"throttled_clock_mhz": min(throttled, default=None), "throttle_reasons": reasons}
    return found | {"gpu_looks": len(busy)}
