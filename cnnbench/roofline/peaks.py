"""What this very machine can do at most: dense products per number format, and copying memory.

A peak is a maximum: of a few sizes, of a few calls each, of matrix products and of a convolution, since the library
that is the faster at one is not always at the other. It is no data sheet: a network may still be a little above it.
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

from cnnbench.errors import UserError, unknown
from cnnbench.hardware import cpu_has_bf16, on_device, random_generator, tf32
from cnnbench.timing.stopwatch import Stopwatch

Key = TypeVar("Key")
PEAK_CONVENTION = (
    "peaks are the best of a few calls: dense products with 2 FLOPs per multiply-add, matrix products and a 3x3 "
    "convolution; copies, bytes read plus bytes written, of memory far larger than the caches, and of less"
)
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FORMATS = {
    "32-true": "fp32",
    "tf32": "tf32",
    "bf16-mixed": "bf16",
    "bf16-true": "bf16",
    "16-mixed": "fp16",
    "16-true": "fp16",
}
_SIZES = {"cpu": (512, 1024), "cuda": (2048, 4096, 8192)}
_CONVOLUTIONS = {"cpu": (8, 128, 28), "cuda": (256, 256, 28)}
"""Images, channels in and out, pixels of the 3x3 convolution."""
_LEAST_COPY = {"cpu": 2**27, "cuda": 2**32}
_SMALL_COPIES = (2**19, 2**21, 2**23, 2**24, 2**25)
_FEWEST_CALLS = 5
_CACHES_IN_COPY = 4  # the copied memory is so many times the last cache, if that is known
_LAUNCHES_S = 0.002
"""Seconds of calls that are queued together on a GPU, where starting one alone takes longer than many of them."""
_MOST_LAUNCHES = 500


@dataclass(frozen=True)
class Peaks:
    """Peaks of a device.

    Attributes:
        flops_per_s: Dense products by number format: ``fp32``, ``tf32``, ``bf16``, ``fp16``.
        bytes_per_s: Of a copy out of and into memory, read and written bytes together.
        copied_bytes: Size of what was copied.
        cached: The same of copies that caches may serve: read and written bytes, and their rate.
        probes: Every measured rate, FLOP/s, by format and probe.
    """

    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    copied_bytes: int = 0
    cached: tuple[tuple[int, float], ...] = ()
    probes: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        rates = {**self.flops_per_s, "bytes_per_s": self.bytes_per_s, **{f"copy of {n}": r for n, r in self.cached}}
        wrong = next((f"{name} {rate}" for name, rate in rates.items() if not rate > 0), None)
        if wrong:
            raise UserError(f"peak {wrong} must be above 0")

    def format_of(self, precision: str) -> str:
        """The number format that a precision is computed in.

        Raises:
            UserError: The peak of this precision was not measured.
        """
        if precision not in _FORMATS:
            raise unknown("precision", precision, _FORMATS)
        found = _FORMATS[precision]
        if found not in self.flops_per_s:
            raise UserError(
                f"the peak of {precision} ({found}) was not measured; there are {', '.join(self.flops_per_s)}"
            )
        return found

    def of(self, precision: str) -> float:
        """FLOP/s at most."""
        return self.flops_per_s[self.format_of(precision)]

    def ridge(self, precision: str) -> float:
        """FLOP per byte from which on arithmetic, not memory, is the limit."""
        return self.of(precision) / self.bytes_per_s

    def seconds_to_move(self, moved_bytes: int) -> float:
        """The least time to read and write so many bytes in all, from a cache where so much of it fits in."""
        return moved_bytes / self.rate_of(moved_bytes)

    def rate_of(self, moved_bytes: int) -> float:
        """Bytes per second of a copy that moves so many: interpolated by the logarithm of size, at least memory's."""
        ladder = [*sorted(self.cached), (2 * max(self.copied_bytes, 1), self.bytes_per_s)]
        ladder = [(size, max(rate for _, rate in ladder[index:])) for index, (size, _) in enumerate(ladder)]
        for (small, fast), (large, slow) in pairwise(ladder):
            if moved_bytes <= small:
                return fast
            if moved_bytes < large:
                share = math.log(moved_bytes / small) / math.log(large / small)
                return fast ** (1 - share) * slow**share
        return self.bytes_per_s

    def best(self, other: Peaks) -> Peaks:
        """The higher of two measurements of the same device."""
        mine, theirs = self.probes or {}, other.probes or {}
        # A copy that had to be smaller, for want of free memory, may have been served by a cache.
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
        return asdict(self)


def _higher(first: Mapping[Key, float], second: Mapping[Key, float]) -> dict[Key, float]:
    return {name: max(first.get(name, 0.0), second.get(name, 0.0)) for name in (*first, *second)}


def measure_peaks(
    device: torch.device,
    precisions: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    copied_bytes: int | None = None,
    probe_s: float = 0.08,
) -> Peaks:
    """Measures the peaks of a device; about a second on two cores.

    Args:
        device: Which.
        precisions: In Lightning's words; unset, all that the device computes in by hardware. ``32-true`` on a CUDA
            device gives TF32 too.
        sizes: Rows and columns of the matrices.
        copied_bytes: Size of what is copied; unset, at least four times the last cache, 128 MiB and on a GPU 4 GiB, or
            a quarter of what is free there.
        probe_s: Seconds for each size and format, beyond five calls.

    Raises:
        UserError: A precision is unknown or has no use on the device, or a size is below 1.
    """
    kind = "cuda" if device.type == "cuda" else "cpu"
    if kind == "cuda":
        torch.cuda.empty_cache()  # what torch keeps of earlier networks is not free for the copy
    sizes = _SIZES[kind] if sizes is None else sizes
    copied_bytes = _beyond_caches(device) if copied_bytes is None else copied_bytes
    if not sizes or min(*sizes, copied_bytes, 1) < 1:
        raise UserError(f"sizes {tuple(sizes)} and copied_bytes {copied_bytes} must be at least 1")
    probes: dict[str, float] = {}
    best: dict[str, float] = {}
    with torch.inference_mode(), on_device(device):
        for name in _formats(device, precisions):
            with tf32(device, name == "tf32"):
                found = _products(device, _DTYPES[name], sizes, _CONVOLUTIONS[kind], probe_s)
            best[name] = max(found.values())
            probes |= {f"{name}, {probe}": rate for probe, rate in found.items()}
        bandwidth = _copy_rate(device, copied_bytes, 2 * probe_s)
        smaller = [size for size in _SMALL_COPIES if size < copied_bytes]
        cached = tuple((2 * size, _copy_rate(device, size, probe_s / 2)) for size in smaller)
    return Peaks(best, bandwidth, copied_bytes, cached, probes)


def hardware_precisions(device: torch.device) -> list[str]:
    """Precisions that a device computes in by hardware."""
    if device.type == "cuda":
        return ["32-true", "bf16-mixed", "16-mixed"]
    return ["32-true"] + ["bf16-mixed"] * (device.type == "cpu" and cpu_has_bf16())


def _formats(device: torch.device, precisions: Sequence[str] | None) -> list[str]:
    precisions = hardware_precisions(device) if precisions is None else precisions
    wrong = next((name for name in precisions if name not in _FORMATS), None)
    if wrong is not None or not precisions:
        raise unknown("precision", wrong or "", _FORMATS)
    slow = [name for name in precisions if _FORMATS[name] == "fp16"]
    if slow and device.type == "cpu":
        raise UserError(f"precision '{slow[0]}' has no fast arithmetic on a CPU; use bf16-mixed or 32-true")
    if "tf32" in precisions and device.type != "cuda":
        raise UserError(f"precision 'tf32' needs a CUDA device, not {device.type}; use 32-true")
    formats = [_FORMATS[name] for name in dict.fromkeys(precisions)]
    return list(dict.fromkeys(formats + ["tf32"] * ("fp32" in formats and device.type == "cuda")))


def _products(
    device: torch.device, dtype: torch.dtype, sizes: Sequence[int], convolution: tuple[int, int, int], probe_s: float
) -> dict[str, float]:
    """FLOP/s by probe. Sizes that would take several times as long as a probe may are left out, but for the first."""
    found: dict[str, float] = {}
    for n in sorted(sizes):
        if found and 2 * n**3 / max(found.values()) > 2 * probe_s:
            break
        a, b = (_random(device, dtype, n, n) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _best_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, probe_s)  # type: ignore[misc]
        found[f"matrix product {n}x{n}"] = 2 * n**3 / seconds
    images, channels, pixels = convolution
    flops = 2 * images * pixels**2 * channels**2 * 9
    if flops / max(found.values()) <= 2 * probe_s:
        x, w = (
            _random(device, dtype, images, channels, pixels, pixels),
            _random(device, dtype, channels, channels, 3, 3),
        )
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
        seconds = _best_seconds(lambda: torch.nn.functional.conv2d(x, w, padding=1), device, probe_s)
        found[f"convolution 3x3, {channels} channels"] = flops / seconds
    return found


def _random(device: torch.device, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    # Drawn on the device: on the host it takes several times as long as the measurement.
    generator = random_generator(device, 0)
    return torch.randn(*shape, generator=generator, device=generator.device).to(device, dtype)


def _copy_rate(device: torch.device, size: int, probe_s: float) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / _best_seconds(lambda: target.copy_(source), device, probe_s)


def _beyond_caches(device: torch.device) -> int:
    cache = 0
    if device.type == "cuda":
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    elif "SC_LEVEL3_CACHE_SIZE" in getattr(os, "sysconf_names", {}):
        cache = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    wanted = max(_LEAST_COPY["cuda" if device.type == "cuda" else "cpu"], _CACHES_IN_COPY * cache)
    return min(wanted, torch.cuda.mem_get_info(device)[0] // 4) if device.type == "cuda" else wanted


def _best_seconds(
    call: Callable[[], object], device: torch.device, limit_s: float, stopwatch: Stopwatch | None = None
) -> float:
    """Return the seconds of the quickest of the calls within a time, five at least, after one that does not count.

    On a device with a queue many calls are launched at once, and timed by its own clock; a short call alone would be
    timed with what it takes to launch it.
    """
    watch = stopwatch or Stopwatch(device)
    call()
    watch.wait()
    start = time.perf_counter()
    call()
    watch.wait()
    once_s = time.perf_counter() - start
    launches = min(max(math.ceil(_LAUNCHES_S / once_s), 1), _MOST_LAUNCHES) if watch.has_queue else 1

    def several() -> None:
        for _ in range(launches):
            call()

    best, calls, end = float("inf"), 0, time.perf_counter() + limit_s
    while calls < _FEWEST_CALLS or time.perf_counter() < end:
        if watch.has_queue:
            device_ms = watch.queued(several, 1e3 * once_s * launches).device_ms
            assert device_ms is not None
            seconds = device_ms / 1e3
        else:
            watch.begin()
            several()
            seconds = watch.end().wall_ms / 1e3
        best, calls = min(best, seconds / launches), calls + 1
    return best
