"""The energy of inference, from the counter of joules that a processor or an NVIDIA GPU has.

A network works without a pause for some seconds, which is long against the interval at which the counter is updated.
The counter is read before and after, and nothing is subtracted. The power of the idle device is measured in the same
way, so that a reader can judge how much of the energy is the network's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cnnbench import progress
from cnnbench.errors import Stopped, UserError
from cnnbench.record import AFTER_TIMES
from cnnbench.timing.conditions import Conditions, reasons_to_doubt
from cnnbench.timing.energy_counters import Counter, find_counter
from cnnbench.timing.timed_network import Timed

MEASURED_S = 2.0
"""Shortest time in seconds between the first and the last reading of a counter."""
RUN_IN_S = 0.5
"""Seconds of work before the first reading, after which the clock and the power of the device are those of work."""
REST_S = 0.5
"""Seconds of rest before the power of the idle device is measured."""
KEYS = {"inference": "energy_mj_per_image", "latency": "energy_mj_single_image"}
"""Figures by kind of work: energy per image in batches, and energy of images that come one by one."""


@dataclass(frozen=True)
class Spent:
    """The energy of some calls.

    Attributes:
        joules: Energy.
        seconds: Time.
        calls: Number of calls.
    """

    joules: float
    seconds: float
    calls: int

    @property
    def watts(self) -> float:
        """Return the mean power."""
        return self.joules / self.seconds

    def facts(self, images: int) -> dict[str, Any]:
        """Return the energy, time and power as facts for records, with the number of images in a call."""
        return {
            "joules": round(self.joules, 6),
            "seconds": round(self.seconds, 6),
            "images": self.calls * images,
            "power_w": round(self.watts, 3),
        }


def spend(counter: Counter, work: Callable[[], object], seconds: float) -> Spent:
    """Repeat a call, and return the energy that was spent meanwhile.

    Args:
        counter: Counter of the device that works.
        work: Call that returns when the device has finished its work.
        seconds: Time after which no further call begins.

    Raises:
        UserError: The counter cannot be read, or did not move.
    """
    calls = 0
    before, start = counter.read(), time.perf_counter()
    while calls == 0 or time.perf_counter() - start < seconds:
        work()
        calls += 1
    took_s, after = time.perf_counter() - start, counter.read()
    joules = counter.joules(before, after)
    # Virtual machines and some drivers have a counter that always shows the same value.
    if joules <= 0:
        raise UserError(f"the counter of {counter.name} did not move in {took_s:.1f} s")
    return Spent(joules, took_s, calls)


def measure_energy(timed: Mapping[str, Timed], device: torch.device) -> dict[str, dict[str, Any]]:
    """Return the figures of the energy of networks in inference by name.

    The figures are those of `KEYS`, ``idle_power_w`` and ``energy_facts``. If the energy is not known, ``energy_facts``
    has the reason as ``error``, and there are no other figures.

    Args:
        timed: Networks that are built and warmed up, by name.
        device: Device on which they run.
    """
    try:
        counter = find_counter(device)
        with progress.hushed():
            time.sleep(REST_S)
            idle = spend(counter, lambda: time.sleep(MEASURED_S), MEASURED_S)
    except UserError as error:
        return {name: {"energy_facts": {"error": str(error)}} for name in timed}
    figures: dict[str, dict[str, Any]] = {}
    for name, network in timed.items():
        try:
            with progress.hushed(), Conditions(device) as conditions:
                figures[name] = _energy_of(network, counter, idle)
            figures[name]["energy_facts"]["suspect"] = reasons_to_doubt(conditions.figures())
        except Stopped:
            raise
        except BaseException as error:  # the times of the network are known, whatever it raises now
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            figures[name] = {"energy_facts": {"error": " ".join(reason.split())[:300]}}
    return figures


def _energy_of(network: Timed, counter: Counter, idle: Spent) -> dict[str, Any]:
    """Return the figures of the energy of one network.

    Args:
        network: Network that is built and warmed up.
        counter: Counter of its device.
        idle: Energy of the idle device.
    """
    facts: dict[str, Any] = {
        "counter": counter.name,
        "update_s": counter.update_s,
        "includes": counter.includes,
        "excludes": counter.excludes,
        "idle": {"seconds": round(idle.seconds, 6), "power_w": round(idle.watts, 3)},
    }
    figures: dict[str, Any] = {"idle_power_w": idle.watts, "energy_facts": facts}
    for kind, key in KEYS.items():
        if kind not in network.sizes:
            continue
        with network.calls(kind) as call:
            end = time.perf_counter() + RUN_IN_S
            while time.perf_counter() < end:
                call()
            spent = spend(counter, call, MEASURED_S)
        images = network.sizes[kind]
        figures[key] = 1e3 * spent.joules / (spent.calls * images)
        facts[kind] = spent.facts(images)
    return figures


def without_reason(figures: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the figures of a network for a record, and the reasons why its energy or memory is not known.

    Args:
        figures: Figures of `cnnbench.timing.speed.measure_speed`, and of `cnnbench.timing.process_memory`.

    Returns:
        The figures without the reasons, and the reasons by the names of the measures, ``energy`` and ``memory``.
    """
    known, reasons = dict(figures), {}
    for measure in AFTER_TIMES:
        reason = (figures.get(f"{measure}_facts") or {}).get("error")
        if reason is not None:
            reasons[measure] = reason
            del known[f"{measure}_facts"]
    return known, reasons
