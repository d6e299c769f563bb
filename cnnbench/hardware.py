"""The device and the number format of a run, and torch's switches that decide how it computes.

An entry point chooses device and number format once; the reason for the number format is kept in words, for records.
Switches are set by context managers, which restore the earlier values.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cnnbench.errors import UserError, unknown
from cnnbench.machine import cpu_has_bf16, cpu_name
from cnnbench.names import DEVICES, INFERENCE_PRECISIONS, PRECISIONS


def choose_device(name: str) -> torch.device:
    """Return the device that a name means, if this machine has it.

    Args:
        name: ``auto`` (the first CUDA device if there is one, otherwise the CPU), ``cpu``, ``cuda``, ``cuda:N`` or
            ``mps``.

    Raises:
        UserError: The name is unknown, or this machine has no such device.
    """
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and (kind != "cuda" or not index.isdigit())):
        raise unknown("device", name, DEVICES)
    if kind == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("cpu")
    if kind == "cuda":
        # The driver can list devices that torch cannot use.
        count = 0
        if torch.cuda.is_available():
            count = torch.cuda.device_count()
        number = int(index or 0)
        if number >= count:
            raise UserError(f"device '{name}' is not there: torch sees {count} CUDA devices; use --device cpu or auto")
        return torch.device("cuda", number)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' is not there: torch sees no Apple GPU; use --device cpu or auto")
    return torch.device(kind)


def choose_precision(name: str, device: torch.device, compiled_depthwise: bool = False) -> tuple[str, str]:
    """Choose the number format for training and measuring.

    Args:
        name: One of `PRECISIONS`; ``auto`` chooses bfloat16 if the hardware computes with it.
        device: Device on which the networks run.
        compiled_depthwise: Whether the choice is for a single network that is compiled and has depthwise convolutions.

    Returns:
        The number format by Lightning's name, and the reason for it in words.

    Raises:
        UserError: The name is unknown, or the format is of no use on the device.
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
    """Return the number format in which a network is deployed, from the precision of its training.

    The two differ for mixed precision. Autocast keeps the weights in float32 and casts them in every call, as training
    needs it. In inference these casts can take longer than the arithmetic, so networks are not deployed with autocast.
    """
    return {"bf16-mixed": "bf16-true", "16-mixed": "16-true"}.get(precision, precision)


def default_batch_sizes(device: torch.device) -> tuple[int, int]:
    """Return the default numbers of images per batch of the inference throughput, and per training step."""
    if device.type == "cpu":
        return 128, 32
    return 1024, 256


def check_compiler(device: torch.device) -> None:
    """Raise UserError if this machine lacks what ``torch.compile`` needs for the device.

    Raises:
        UserError: A compiler is missing, which is one of C++ for a CPU and one of C for a GPU; or, for a GPU, Python's
            headers are missing, with which Triton compiles the code that launches its kernels.
    """
    # Torch takes its C++ compiler from CXX, and Triton its C compiler from CC.
    if device.type == "cpu":
        language, compilers = "C++", (os.environ.get("CXX") or "g++", "clang++")
    else:
        language, compilers = "C", (os.environ.get("CC") or "gcc", "clang")
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


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16: GPUs since Ampere, and CPUs by `cpu_has_bf16`."""
    # Compute capability 8.0 is Ampere.
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and cpu_has_bf16()


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context in which a forward pass runs in a precision, as Lightning's Trainer would run it.

    For ``bf16-true`` and ``16-true`` the context does nothing: weights and images must have the type of `weights_type`.
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
    """Run the body in a precision: by `autocast`, or for ``32-true`` and ``tf32`` with TF32 off or on.

    TF32 exists on CUDA devices only; ``32-true`` is float32 without TF32.
    """
    if precision in ("32-true", "tf32"):
        with tf32(device, precision == "tf32"):
            yield
    else:
        with autocast(precision, device):
            yield


def random_generator(device: torch.device, seed: int) -> torch.Generator:
    """Return a random generator for inputs of a device.

    The generator is on a CUDA device itself, where drawing takes far less time than on the host, and on the CPU for all
    other devices.
    """
    return torch.Generator(device if device.type == "cuda" else "cpu").manual_seed(seed)


@contextlib.contextmanager
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Run the body with TF32 allowed or forbidden for float32 on a CUDA device; the flags are restored afterwards."""
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
    """Values of torch's switches for TF32.

    The older switches are booleans. Since torch 2.9 there are also newer ones, whose values are ``"tf32"``, ``"ieee"``
    and ``"none"`` (use the value of a wider switch). Torch raises an error when a switch is read that disagrees with
    its counterpart, and both Lightning and the compiler read them. Both kinds are therefore set, to the same value.

    Attributes:
        convolutions: Value for convolutions.
        products: Value for matrix products.
        recurrent: Value for recurrent networks.
    """

    convolutions: str
    products: str
    recurrent: str
    oldest: str = "highest"
    """Value of ``set_float32_matmul_precision``, in which both ``high`` and ``medium`` stand for TF32."""

    @classmethod
    def both(cls, allowed: bool) -> _Tf32:
        """Return the values that allow or forbid TF32 everywhere."""
        if allowed:
            return cls("tf32", "tf32", "tf32", "high")
        return cls("ieee", "ieee", "ieee", "highest")

    @classmethod
    def now(cls) -> _Tf32:
        """Return the present values."""
        cudnn: Any = torch.backends.cudnn
        matmul: Any = torch.backends.cuda.matmul
        if hasattr(matmul, "fp32_precision"):
            words = cudnn.conv.fp32_precision, matmul.fp32_precision, cudnn.rnn.fp32_precision
            # This is the older switch's value for the same setting; it stands where torch refuses to read that switch.
            oldest = "high" if words[1] == "tf32" else "highest"
            # Torch raises the error if other code has set a newer switch to something else.
            with contextlib.suppress(RuntimeError):
                oldest = torch.get_float32_matmul_precision()
            return cls(*words, oldest)
        # Older versions of torch have one switch for convolutions and recurrent networks.
        names = {True: "tf32", False: "ieee"}
        convolutions = names[cudnn.allow_tf32]
        return cls(convolutions, names[matmul.allow_tf32], convolutions, torch.get_float32_matmul_precision())

    def set(self) -> None:
        """Set torch's switches, the older and the newer ones, to these values."""
        cudnn: Any = torch.backends.cudnn
        matmul: Any = torch.backends.cuda.matmul
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some versions warn about the newer switches when the older ones are set
            torch.set_float32_matmul_precision(self.oldest)
            cudnn.allow_tf32 = self.convolutions == "tf32"
        if hasattr(matmul, "fp32_precision"):
            cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = self.convolutions, self.recurrent
            matmul.fp32_precision = self.products


@contextlib.contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    """Run the body with cuDNN's search for the fastest kernel of each new convolution shape switched on or off.

    The flag is restored afterwards. Torch stores one choice of kernel for each shape of a convolution, with or without
    a search. The first setting in a process therefore decides for a shape, and a comparison of both settings needs a
    process for each.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def keep_freed_memory() -> str:
    """Make the C library keep the memory that tensors free for the next tensors, if the library is glibc.

    Otherwise each large tensor of a step on the CPU gets new memory from the system, which has to be filled with zeros
    page by page. That takes up to a quarter of the training time of small networks. In return, somewhat more memory is
    in use, because blocks of different sizes leave gaps.

    Returns:
        A description, for records, of what happens to freed memory from now on.
    """
    try:
        # `CDLL(None)` gives the functions of this process, which include those of its C library.
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return "the system's"
    # These are parameters of mallopt(3). M_MMAP_MAX (-4) of 0 gives no tensor a mapping of its own, which would go back
    # to the system when it is freed. The largest M_TRIM_THRESHOLD (-1) returns the top of the heap only beyond 2 GiB.
    # M_TOP_PAD (-2) asks the system for 256 MiB more than needed each time that the heap grows.
    no_mapping, never_trim, step = mallopt(-4, 0), mallopt(-1, 2**31 - 1), mallopt(-2, 2**28)
    # mallopt returns 1 if it has set a value.
    if no_mapping and never_trim and step:
        return "glibc, freed memory kept"
    return "the system's"


def on_device(device: torch.device) -> AbstractContextManager:
    """Return a context in which a CUDA device is the current one, for calls that name no device.

    For other devices the context does nothing.
    """
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def accelerator_facts(device: torch.device) -> dict[str, object]:
    """Return the versions and switches that decide how a GPU computes, for records; empty for other devices.

    Switches that the timing sets for each network (`cnnbench.timing.timed_network.Way`) are not included.
    """
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
    """Return the product name of a CUDA device, or that of the processor for any other device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()
