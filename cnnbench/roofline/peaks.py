"""Peaks of this machine: dense arithmetic in each number format, and copies in memory.

Each peak is the best rate of several measurements: of a few sizes with a few calls each, and of both matrix products
and a convolution, since the faster library for one is not always the faster for the other. Peaks are measured rates and
not the limits of a data sheet, so a network may still exceed them slightly.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TypeVar

import torch

from cnnbench import progress
from cnnbench.errors import UserError, unknown
from cnnbench.hardware import on_device, random_generator, tf32
from cnnbench.machine import cpu_has_bf16
from cnnbench.timing.stopwatch import Stopwatch

Key = TypeVar("Key")
PEAK_CONVENTION = (
    "peaks are the best of a few calls: dense products with 2 FLOPs per multiply-add, matrix products and a 3x3 "
    "convolution; copies, bytes read plus bytes written, of memory far larger than the caches, and of less"
)
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Number format by precision: mixed and true 16-bit precisions use the same arithmetic.
_FORMATS = {
    "32-true": "fp32",
    "tf32": "tf32",
    "bf16-mixed": "bf16",
    "bf16-true": "bf16",
    "16-mixed": "fp16",
    "16-true": "fp16",
}
# Rows and columns of the square matrices.
_SIZES = {"cpu": (512, 1024), "cuda": (2048, 4096, 8192)}
_CONVOLUTIONS = {"cpu": (8, 128, 28), "cuda": (256, 256, 28)}
"""Batch size, channels in and out, and height and width in pixels of the 3x3 convolution."""
_LEAST_COPY = {"cpu": 2**27, "cuda": 2**32}
"""Least bytes of the large copy, which must not fit in a cache."""
_SMALL_COPIES = (2**19, 2**21, 2**23, 2**24, 2**25)
"""Bytes of the smaller copies, which caches may serve."""
_FEWEST_CALLS = 5
_CACHES_IN_COPY = 4
"""Least size of the large copy, in multiples of the last cache, if the size of that is known."""
_LAUNCHES_S = 0.002
"""Seconds of calls that are queued together on a GPU, where a launch takes longer than a short call."""
_MOST_LAUNCHES = 500


@dataclass(frozen=True)
class Peaks:
    """Peak rates of a device.

    Attributes:
        flops_per_s: Peak FLOP/s of dense products by number format: ``fp32``, ``tf32``, ``bf16``, ``fp16``.
        bytes_per_s: Peak rate of a copy in memory, in bytes per second; bytes read and bytes written are added.
        copied_bytes: Size of the memory that was copied, in bytes.
        cached: Rates of smaller copies that caches may serve; each entry has the bytes read and written, and bytes per
            second.
        probes: Every measured FLOP/s, by number format and probe.
    """

    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    copied_bytes: int = 0
    cached: tuple[tuple[int, float], ...] = ()
    probes: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        rates = {**self.flops_per_s, "bytes_per_s": self.bytes_per_s}
        for copied, rate in self.cached:
            rates[f"copy of {copied}"] = rate
        for name, rate in rates.items():
            # This form refuses NaN as well.
            if not rate > 0:
                raise UserError(f"peak {name} {rate} must be above 0")

    def format_of(self, precision: str) -> str:
        """Return the number format in which a precision computes.

        Args:
            precision: Precision by Lightning's name, such as ``bf16-mixed``, or ``tf32``.

        Raises:
            UserError: The precision is unknown, or its peak was not measured.
        """
        if precision not in _FORMATS:
            raise unknown("precision", precision, _FORMATS)
        number_format = _FORMATS[precision]
        if number_format not in self.flops_per_s:
            raise UserError(
                f"the peak of {precision} ({number_format}) was not measured; there are {', '.join(self.flops_per_s)}"
            )
        return number_format

    def of(self, precision: str) -> float:
        """Return the peak FLOP/s of a precision; errors are those of `format_of`."""
        return self.flops_per_s[self.format_of(precision)]

    def ridge(self, precision: str) -> float:
        """Return the arithmetic intensity, in FLOP per byte, above which arithmetic is the limit and not memory."""
        return self.of(precision) / self.bytes_per_s

    def seconds_to_move(self, moved_bytes: int) -> float:
        """Return the least seconds to read and write data.

        Args:
            moved_bytes: Sum of bytes read and bytes written. An amount that fits in a cache moves at the cache's rate.
        """
        return moved_bytes / self.rate_of(moved_bytes)

    def rate_of(self, moved_bytes: int) -> float:
        """Return the rate of a copy that moves this many bytes, in bytes per second.

        Between two measured sizes, the logarithm of the rate is interpolated over the logarithm of the size. The rate
        is never below that of any larger copy.
        """
        # Measured pairs of size and rate, from small to large; the large copy moves each of its bytes twice.
        measured = [*sorted(self.cached), (2 * max(self.copied_bytes, 1), self.bytes_per_s)]
        ladder: list[tuple[int, float]] = []
        # From the largest copy down, each size gets the highest rate of all sizes from it on.
        highest = 0.0
        for size, rate in reversed(measured):
            highest = max(highest, rate)
            ladder.insert(0, (size, highest))
        for (small, fast), (large, slow) in pairwise(ladder):
            if moved_bytes <= small:
                return fast
            if moved_bytes < large:
                share = math.log(moved_bytes / small) / math.log(large / small)
                # A straight line between the logarithms of two rates is their weighted geometric mean.
                return fast ** (1 - share) * slow**share
        return self.bytes_per_s

    def best(self, other: Peaks) -> Peaks:
        """Return the higher rates of two measurements of the same device."""
        mine, theirs = self.probes or {}, other.probes or {}
        # The rate of the larger copy counts: a copy that was smaller for lack of free memory may have used a cache.
        copied = max(self.copied_bytes, other.copied_bytes)
        rates = [peaks.bytes_per_s for peaks in (self, other) if peaks.copied_bytes == copied]
        return Peaks(
            _higher(self.flops_per_s, other.flops_per_s),
            max(rates),
            copied,
            tuple(_higher(dict(self.cached), dict(other.cached)).items()),
            _higher(mine, theirs) or None,
        )

    def figures(self) -> dict[str, object]:
        """Return the peaks by name."""
        return asdict(self)


def _higher(first: Mapping[Key, float], second: Mapping[Key, float]) -> dict[Key, float]:
    """Return the higher value for each key."""
    return {name: max(first.get(name, 0.0), second.get(name, 0.0)) for name in (*first, *second)}


def measure_peaks(
    device: torch.device,
    precisions: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    copied_bytes: int | None = None,
    probe_s: float = 0.08,
) -> Peaks:
    """Measure the peaks of a device, which takes about a second on two cores.

    Args:
        device: Device to measure.
        precisions: Precisions by Lightning's names; None for all that the hardware of the device supports. On a CUDA
            device, ``32-true`` measures TF32 as well.
        sizes: Numbers of rows and columns of the square matrices; None for the defaults of the device.
        copied_bytes: Size of the memory to copy, in bytes. None for four times the last cache, but at least 128 MiB on
            a CPU and 4 GiB on a GPU; on a GPU at most a quarter of the free memory.
        probe_s: Seconds for each size and format; at least five calls are made, however long they take.

    Returns:
        The best rates.

    Raises:
        UserError: A precision is unknown or not useful on the device, or a size is below 1.
    """
    kind = _kind_of(device)
    if kind == "cuda":
        torch.cuda.empty_cache()  # memory that torch caches is not free for the copy
    if sizes is None:
        sizes = _SIZES[kind]
    if copied_bytes is None:
        copied_bytes = _beyond_caches(device)
    if not sizes or min(*sizes, copied_bytes, 1) < 1:
        raise UserError(f"sizes {tuple(sizes)} and copied_bytes {copied_bytes} must be at least 1")
    probes: dict[str, float] = {}
    best: dict[str, float] = {}
    with torch.inference_mode(), on_device(device):
        for name in _formats(device, precisions):
            with tf32(device, name == "tf32"):
                rates = _products(device, _DTYPES[name], sizes, _CONVOLUTIONS[kind], probe_s)
            best[name] = max(rates.values())
            for probe, rate in rates.items():
                probes[f"{name}, {probe}"] = rate
        bandwidth = _copy_rate(device, copied_bytes, 2 * probe_s)
        smaller = [size for size in _SMALL_COPIES if size < copied_bytes]
        # A copy reads and writes each byte, so it moves twice its size.
        cached = tuple((2 * size, _copy_rate(device, size, probe_s / 2)) for size in smaller)
    return Peaks(best, bandwidth, copied_bytes, cached, probes)


def hardware_precisions(device: torch.device) -> list[str]:
    """Return the precisions that the hardware of a device supports."""
    if device.type == "cuda":
        return ["32-true", "bf16-mixed", "16-mixed"]
    if device.type == "cpu" and cpu_has_bf16():
        return ["32-true", "bf16-mixed"]
    return ["32-true"]


def _kind_of(device: torch.device) -> str:
    """Return ``cuda`` or ``cpu``, the keys of the settings; other devices have those of a CPU."""
    return "cuda" if device.type == "cuda" else "cpu"


def _formats(device: torch.device, precisions: Sequence[str] | None) -> list[str]:
    """Return the number formats of these precisions, each once; raise UserError if the device has no use for one."""
    if precisions is None:
        precisions = hardware_precisions(device)
    if not precisions:
        raise unknown("precision", "", _FORMATS)
    for name in precisions:
        if name not in _FORMATS:
            raise unknown("precision", name, _FORMATS)
    for name in precisions:
        if _FORMATS[name] == "fp16" and device.type == "cpu":
            raise UserError(f"precision '{name}' has no fast arithmetic on a CPU; use bf16-mixed or 32-true")
    if "tf32" in precisions and device.type != "cuda":
        raise UserError(f"precision 'tf32' needs a CUDA device, not {device.type}; use 32-true")
    formats = dict.fromkeys(_FORMATS[name] for name in precisions)
    # Float32 on a CUDA device may run as TF32, so both peaks are of interest.
    if "fp32" in formats and device.type == "cuda":
        formats["tf32"] = None
    return list(formats)


def _products(
    device: torch.device, dtype: torch.dtype, sizes: Sequence[int], convolution: tuple[int, int, int], probe_s: float
) -> dict[str, float]:
    """Return the FLOP/s of matrix products and of a convolution, by probe.

    A probe is skipped if, at the best rate so far, one call takes more than twice the time of a probe; the smallest
    matrix product always runs.
    """
    rates: dict[str, float] = {}
    for n in sorted(sizes):
        # n^3 multiply-adds, 2 FLOPs each.
        flops = 2 * n**3
        if rates and flops / max(rates.values()) > 2 * probe_s:
            break
        rates[f"matrix product {n}x{n}"] = flops / _seconds_of_product(device, dtype, n, probe_s)
    images, channels, pixels = convolution
    # Multiply-adds: output pixels (the padding of 1 keeps their number) x channels in x channels out x 9 weights.
    flops = 2 * images * pixels**2 * channels**2 * 9
    if flops / max(rates.values()) <= 2 * probe_s:
        x = _random(device, dtype, images, channels, pixels, pixels).contiguous(memory_format=torch.channels_last)
        w = _random(device, dtype, channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
        seconds = _best_seconds(lambda: torch.nn.functional.conv2d(x, w, padding=1), device, probe_s)
        rates[f"convolution 3x3, {channels} channels"] = flops / seconds
    return rates


def _seconds_of_product(device: torch.device, dtype: torch.dtype, n: int, probe_s: float) -> float:
    """Return the seconds of the product of two square matrices with n rows."""
    a, b = _random(device, dtype, n, n), _random(device, dtype, n, n)
    # The result has its memory from the start, so that no allocation is timed.
    out = torch.empty_like(a)
    return _best_seconds(lambda: torch.mm(a, b, out=out), device, probe_s)


def _random(device: torch.device, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return normally distributed random numbers, the same in each call."""
    # Drawn on the device, since drawing on the host takes several times as long as the measurement.
    generator = random_generator(device, 0)
    return torch.randn(*shape, generator=generator, device=generator.device).to(device, dtype)


def _copy_rate(device: torch.device, size: int, probe_s: float) -> float:
    """Return the bytes read and written per second by a copy of this size."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / _best_seconds(lambda: target.copy_(source), device, probe_s)


def _beyond_caches(device: torch.device) -> int:
    """Return a size that is much larger than the caches of the device; see `measure_peaks`."""
    cache = 0
    if device.type == "cuda":
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    elif "SC_LEVEL3_CACHE_SIZE" in getattr(os, "sysconf_names", {}):
        cache = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    # If the size of the cache is not known, it is 0 or below, and the least size of a copy counts.
    wanted = max(_LEAST_COPY[_kind_of(device)], _CACHES_IN_COPY * cache)
    if device.type == "cuda":
        # A GPU that others use as well may have little memory left.
        return min(wanted, torch.cuda.mem_get_info(device)[0] // 4)
    return wanted


def _best_seconds(
    call: Callable[[], object], device: torch.device, limit_s: float, stopwatch: Stopwatch | None = None
) -> float:
    """Return the seconds of the fastest call within a time limit.

    At least five measurements are made, after warm-up calls that do not count. On a device with a queue, several calls
    are launched at once and timed by the device's own clock, since the time of a single short call is mostly that of
    its launch.

    Args:
        call: Function to time.
        device: Device on which the call runs.
        limit_s: Seconds after which no new measurement starts.
        stopwatch: Stopwatch to use; None for a new one.
    """
    watch = stopwatch or Stopwatch(device)
    # The first call does not count; the second one shows roughly how long a call takes.
    call()
    watch.wait()
    start = time.perf_counter()
    call()
    watch.wait()
    once_s = time.perf_counter() - start
    launches = 1
    if watch.has_queue:
        # As many calls as fill `_LAUNCHES_S`, by the time of a single one.
        launches = min(max(math.ceil(_LAUNCHES_S / once_s), 1), _MOST_LAUNCHES)

    def several() -> None:
        for _ in range(launches):
            call()

    with progress.hushed():
        best, calls, end = float("inf"), 0, time.perf_counter() + limit_s
        while calls < _FEWEST_CALLS or time.perf_counter() < end:
            if watch.has_queue:
                device_ms = watch.queued(several, 1e3 * once_s * launches).device_ms
                assert device_ms is not None  # only a device with a queue has a clock of its own
                seconds = device_ms / 1e3
            else:
                watch.begin()
                several()
                seconds = watch.end().wall_ms / 1e3
            best, calls = min(best, seconds / launches), calls + 1
    return best
