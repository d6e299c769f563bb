"""The state of an NVIDIA GPU during a measurement, as its driver reports it several times a second.

A thread of this process asks the driver through NVML, which takes a tenth of a millisecond. The program nvidia-smi
would keep a processor busy for half a second, and the measurement would then be marked as suspect.
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
"""Seconds between two questions to the driver."""
IDLE = 0x1
"""Bit of the throttle reasons that is set while the GPU is idle."""


def load_nvml() -> ModuleType:
    """Return the NVML library, which can be imported only if the package nvidia-ml-py is installed."""
    import pynvml

    return pynvml


class GpuState:
    """Recorder of a GPU's state, which asks the driver in a thread of its own until `stop` is called.

    Args:
        device: GPU to observe.
        library: Function that returns NVML with its functions named as in the package nvidia-ml-py; tests pass another
            one.
    """

    def __init__(self, device: torch.device, library: Callable[[], Any] = load_nvml) -> None:
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
            # By UUID, since NVML counts all GPUs, and torch only those that CUDA_VISIBLE_DEVICES names.
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(gpu_uuid(device))
            self._driver = _text(self._nvml.nvmlSystemGetDriverVersion())
            # The first look, on this thread, shows whether the driver answers at all.
            self._look()
        except Exception as error:  # the package or the library is missing, or the device is only a part of a GPU
            self._error = " ".join(f"{type(error).__name__}: {error}".split())
            return
        # A daemon thread does not keep the process alive if `stop` is never called.
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop asking the driver."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def figures(self) -> dict[str, Any]:
        """Return the `summary` of the states so far, the driver version and the use by other processes, or the error.

        Inside a container, the driver may list no processes, or list them with other process IDs. If it does not list
        this process, the number of other processes is unknown (None). The only sign of other processes is then the
        memory of the GPU that does not belong to this process.
        """
        self._others_bytes = max(self._others_bytes, self._not_ours())
        if self._error or not self._states:
            return {"gpu_state_error": self._error or "the driver said nothing"}
        others = None
        if os.getpid() in self._users:
            others = len(self._users) - 1
        more = {"driver": self._driver, "other_gpu_processes": others, "other_gpu_bytes": self._others_bytes}
        return summary(self._states) | more

    def _not_ours(self) -> int:
        """Return the bytes of used GPU memory that torch does not hold in this process; 0 if the device has failed."""
        try:
            free, total = torch.cuda.mem_get_info(self._device)
        except RuntimeError:
            return 0
        # The rest includes this process's own CUDA context; `_CONTEXT_BYTES` in conditions.py allows for it.
        return total - free - torch.cuda.memory_reserved(self._device)

    def _look_on(self) -> None:
        """Ask the driver every `EVERY_S` seconds until `stop` is called or an error occurs."""
        # `wait` returns True once `stop` has set the event, and False after `EVERY_S` seconds.
        while not self._end.wait(EVERY_S):
            try:
                self._look()
            except Exception as error:
                self._error = " ".join(f"{type(error).__name__}: {error}".split())
                return

    def _look(self) -> None:
        """Ask the driver once for the clock, temperature, power and processes of the GPU."""
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
        """Return the bits that say why the clock is lower than it could be, or None if they are not available.

        NVML has two names for this function, and which of them exists depends on the versions of driver and package.
        """
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            question = getattr(self._nvml, name, None)
            if question is None:
                continue
            # Drivers before version 535 do not have the function with the first name.
            with contextlib.suppress(self._nvml.NVMLError_FunctionNotFound):
                return self._ask(question, self._handle)
        return None

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """Return the driver's answer, or None if this GPU does not support the question or does not permit it."""
        with contextlib.suppress(self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_NoPermission):
            return question(*arguments)
        return None


def gpu_uuid(device: torch.device) -> str:
    """Return the identifier of a GPU as NVML expects it; torch leaves out the prefix of a whole GPU."""
    number = str(torch.cuda.get_device_properties(device).uuid)
    if number.startswith(("GPU-", "MIG-")):
        return number
    return f"GPU-{number}"


def _text(value: str | bytes) -> str:
    """Return a text of the driver, which older versions of the package give as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _watts(milliwatts: float | None) -> float | None:
    """Return a power in watts, or None if it is not known."""
    return None if milliwatts is None else milliwatts / 1000


def _power_state(number: int | None) -> str | None:
    """Return the usual name of a power state, or None if it is not known."""
    return None if number is None else f"P{number}"


def summary(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine several states into one, with the worst value of each figure.

    Args:
        states: States with the keys ``clock_mhz``, ``max_clock_mhz``, ``temperature_c``, ``power_w``,
            ``power_limit_w``, ``throttle_reasons`` and ``power_state``, whose values may be None. The states of an idle
            GPU count only if all states are idle.

    Returns:
        The same keys, with the lowest clock, the highest temperature, power and power state, and all reasons for a low
        clock; the two limits are those of the last state. Two keys are added: ``throttled_clock_mhz``, the lowest clock
        in states with a reason other than being idle (None if there is no such state), and ``gpu_looks``, the number of
        states that count.
    """
    # A state whose reasons are not known counts as busy.
    busy = [state for state in states if not (state["throttle_reasons"] or 0) & IDLE] or list(states)
    reasons, throttled = 0, []
    for state in busy:
        reasons |= state["throttle_reasons"] or 0
        if (state["throttle_reasons"] or 0) & ~IDLE and state["clock_mhz"] is not None:
            throttled.append(state["clock_mhz"])
    worst_of_all = dict(busy[-1])
    for name, worst in {"clock_mhz": min, "temperature_c": max, "power_w": max}.items():
        worst_of_all[name] = worst(_known(busy, name), default=None)
    # P0 is the fastest state, and P12 is slower than P8.
    worst_of_all["power_state"] = max(_known(busy, "power_state"), key=lambda name: int(name[1:]), default=None)
    worst_of_all |= {"throttled_clock_mhz": min(throttled, default=None), "throttle_reasons": reasons}
    return worst_of_all | {"gpu_looks": len(busy)}


def _known(states: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """Return the values of one figure in those states in which it is known."""
    return [state[name] for state in states if state[name] is not None]
