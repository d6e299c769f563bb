"""Which device and which number format, decided once in an entry point, with the reason in words."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cnnbench.errors import UserError, unknown

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
"""Of a training, in Lightning's words; ``auto`` is this machine's best."""
INFERENCE_PRECISIONS = ("bf16-true", "16-true")
"""Further ones, in which weights and images have 16 bits too: for inference, not for training."""
DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str) -> torch.device:
    """Turns ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a device that is there.

    Raises:
        UserError: The name is unknown, or this machine has no such device.
    """
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and (kind != "cuda" or not index.isdigit())):
        raise unknown("device", name, (*DEVICES, "cuda:N"))
    if kind == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("cpu")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        number = int(index or 0)
        if number >= count:
            raise UserError(f"device '{name}' is not there: torch sees {count} CUDA devices; use --device cpu or auto")
        return torch.device("cuda", number)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' is not there: torch sees no Apple GPU; use --device cpu or auto")
    return torch.device(kind)


def choose_precision(name: str, device: torch.device, compiled_depthwise: bool = False) -> tuple[str, str]:
    """Chooses the number format for training and measuring.

    Args:
        name: One of `PRECISIONS`; ``auto`` takes bfloat16 where the hardware computes with it.
        device: Where the networks run.
        compiled_depthwise: Whether it is for one network, with depthwise convolutions, that is compiled.

    Returns:
        The precision in Lightning's words, and why.

    Raises:
        UserError: The name is unknown, or the format has no use on the device.
    """
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    if name == "16-mixed" and device.type == "cpu":
        raise UserError("precision '16-mixed' has no fast arithmetic on a CPU; use bf16-mixed, 32-true or auto")
    if name != "auto":
        return name, "as asked"
    if device.type == "cuda":
        if computes_in_bfloat16(device):
            return "bf16-mixed", "this GPU computes in bfloat16"
        return "32-true", "this GPU does not compute in bfloat16"
    if device.type == "cpu" and cpu_has_bf16():
        if compiled_depthwise:
            return "32-true", "compiled depthwise convolutions are faster in float32 on a CPU"
        return "bf16-mixed", "this CPU has bfloat16 instructions"
    return "32-true", f"this {device.type} is not known to be faster in bfloat16"


def inference_precision(precision: str) -> str:
    """Return the number format that a network is deployed in if it was trained in a precision.

    Autocast keeps the weights in float32 and casts them in every call, which is made for training: in inference the
    casts can take longer than the arithmetic, so nobody deploys it.
    """
    return {"bf16-mixed": "bf16-true", "16-mixed": "16-true"}.get(precision, precision)


def default_batch_sizes(device: torch.device) -> tuple[int, int]:
    """Images per batch of throughput, and per training step, unless the user says how many."""
    return (128, 32) if device.type == "cpu" else (1024, 256)


def check_compiler(device: torch.device) -> None:
    """Refuses ``torch.compile`` where the machine lacks what it needs.

    Raises:
        UserError: There is no compiler: of C++ for a CPU, of C for a GPU, whose launcher Triton compiles with Python's
            headers, which are missing.
    """
    language, variable, usual = ("C++", "CXX", "g++") if device.type == "cpu" else ("C", "CC", "gcc")
    compilers = (os.environ.get(variable) or usual, "clang++" if device.type == "cpu" else "clang")
    if device.type in ("cpu", "cuda") and not any(map(shutil.which, compilers)):
        raise UserError(
            f"compiling a network needs a {language} compiler on a {device.type} device ({' or '.join(compilers)}); "
            "install one, or leave out compile_mode or --mode compile"
        )
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if device.type == "cuda" and not headers.is_file():
        raise UserError(
            f"compiling a network on a cuda device needs Python's headers ({headers} is not there); install them, such "
            "as the package python3-dev, or leave out compile_mode or --mode compile"
        )


def cpu_has_bf16() -> bool:
    """Whether the processor has bfloat16 instructions, by the flags that Linux shows (elsewhere: no)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16|svebf16)\b", flags) is not None


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16: GPUs from Ampere on, and CPUs as `cpu_has_bf16` says."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and cpu_has_bf16()


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which a forward pass runs at a precision, as Lightning's Trainer would run it.

    With ``bf16-true`` and ``16-true`` it is none: weights and images have the type of `weights_type`.
    """
    if precision in ("32-true", "tf32", *INFERENCE_PRECISIONS):
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


def weights_type(precision: str) -> torch.dtype:
    """Return the type of weights and images in a precision."""
    return {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(precision, torch.float32)


@contextlib.contextmanager
def numbers(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, a network computes in a precision: by autocast, and on a CUDA device with TF32 only if that is asked for
    by ``tf32``; ``32-true`` is float32 alone."""
    if precision in ("32-true", "tf32"):
        with tf32(device, precision == "tf32"):
            yield
    else:
        with autocast(precision, device):
            yield


def random_generator(device: torch.device, seed: int) -> torch.Generator:
    """Return a generator on a CUDA device, where drawing takes far less time than on the host, else on the CPU."""
    return torch.Generator(device if device.type == "cuda" else "cpu").manual_seed(seed)


@contextlib.contextmanager
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Inside, a CUDA device computes float32 in TF32, or does not; the flags are put back."""
    if device.type != "cuda":
        yield
        return
    before = _Tf32.now()
    _Tf32.both(allowed).set()
    try:
        yield
    finally:
        before.set()


class _Tf32(NamedTuple):
    """Torch's switches for TF32.

    There are older ones, which are booleans, and since torch 2.9 newer ones, which are names (``"tf32"``, ``"ieee"``,
    ``"none"`` for what a wider switch says). Torch raises an error wherever one is read that disagrees with the other,
    as Lightning and the compiler do; so both are set, to the same.
    """

    convolutions: str
    products: str
    recurrent: str
    oldest: str = "highest"
    """Of ``set_float32_matmul_precision``, which has two words for TF32: ``high`` and ``medium``."""

    @classmethod
    def both(cls, allowed: bool) -> _Tf32:
        word = "tf32" if allowed else "ieee"
        return cls(word, word, word, "high" if allowed else "highest")

    @classmethod
    def now(cls) -> _Tf32:
        cudnn: Any = torch.backends.cudnn
        matmul: Any = torch.backends.cuda.matmul
        if hasattr(matmul, "fp32_precision"):
            words = cudnn.conv.fp32_precision, matmul.fp32_precision, cudnn.rnn.fp32_precision
            oldest = "high" if words[1] == "tf32" else "highest"
            with contextlib.suppress(RuntimeError):  # where somebody has set the newer switch to something else
                oldest = torch.get_float32_matmul_precision()
            return cls(*words, oldest)
        names = {True: "tf32", False: "ieee"}
        convolutions = names[cudnn.allow_tf32]
        return cls(convolutions, names[matmul.allow_tf32], convolutions, torch.get_float32_matmul_precision())

    def set(self) -> None:
        cudnn: Any = torch.backends.cudnn
        matmul: Any = torch.backends.cuda.matmul
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some versions advertise the newer names where the older are set
            torch.set_float32_matmul_precision(self.oldest)
            cudnn.allow_tf32 = self.convolutions == "tf32"
        if hasattr(matmul, "fp32_precision"):
            cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = self.convolutions, self.recurrent
            matmul.fp32_precision = self.products


@contextlib.contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    """Inside, cuDNN tries its kernels for each new shape of a convolution and takes the fastest, or does not.

    The flag is put back. Torch keeps one answer for each shape, whichever way it was found, so that the first setting
    of a process holds for a shape: what compares both needs a process for each.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def keep_freed_memory() -> str:
    """Has the C library keep the memory that tensors free, for the next ones, where it is glibc.

    Otherwise each large tensor of a step on the CPU is new memory from the system, which has to be filled with zeros a
    page at a time; that is up to a quarter of the training time of small networks. The price is somewhat more memory
    in use, since blocks of different sizes leave gaps.

    Returns:
        What holds now, for records.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return "the system's"
    no_mapping, never_trim, step = mallopt(-4, 0), mallopt(-1, 2**31 - 1), mallopt(-2, 2**28)  # M_MMAP_MAX and so on
    return "glibc, freed memory kept" if no_mapping and never_trim and step else "the system's"


def on_device(device: torch.device) -> AbstractContextManager:
    """Return the context in which a CUDA device is the current one, for calls that name none; nothing on others."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def accelerator_facts(device: torch.device) -> dict[str, object]:
    """Versions and switches that decide how a GPU computes, but for those that the way of a network sets; empty on a
    CPU."""
    if device.type != "cuda":
        return {}
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32_convolutions": _Tf32.now().convolutions == "tf32",
        "tf32_matrix_products": _Tf32.now().products == "tf32",
        "host_cpu": device_name(torch.device("cpu")),
    }


def device_name(device: torch.device) -> str:
    """The product name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1).strip() if match else platform.processor() or platform.machine()
