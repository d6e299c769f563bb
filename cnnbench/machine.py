"""The processor and the GPUs of this machine, without torch: their names, as records have them, and some instructions.

A command that only reads records can so tell which of them are from this machine.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
"""File in which Linux describes the processor."""
GPU_FOLDER = Path("/proc/driver/nvidia/gpus")
"""Folder in which NVIDIA's driver for Linux describes the GPUs, a folder each."""


def cpu_name() -> str:
    """Return the product name of the processor."""
    match = re.search(r"^model name\s*:\s*(.+)$", _content(CPU_INFO), re.MULTILINE)
    if match:
        return match.group(1).strip()
    # Linux on ARM lists no model name, and other systems have no such file.
    return platform.processor() or platform.machine()


def may_saturate() -> bool:
    """Return whether sums of 8-bit products can overflow here, as on x86 processors without VNNI instructions.

    Such a processor adds two products in 16 bits. Linux lists the instructions; on other systems an x86 processor
    counts as one without them.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return re.search(r"\b(avx512_vnni|avx_vnni)\b", _content(CPU_INFO)) is None


def cpu_has_bf16() -> bool:
    """Return whether the processor has bfloat16 instructions, by the flags that Linux lists; False on other systems."""
    # The first two flags are those of x86 processors, the others those of ARM.
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16|svebf16)\b", _content(CPU_INFO)) is not None


def cannot_compute_bf16() -> bool:
    """Return whether this is an x86 processor that lacks bfloat16 and also AVX-512, by which some programs emulate it.

    Linux lists the instructions; where they are not known, the answer is False.
    """
    flags = re.search(r"^flags\s*:(.*)$", _content(CPU_INFO), re.MULTILINE)
    return flags is not None and re.search(r"\b(avx512\w*|amx_bf16|avx_ne_convert)\b", flags[1]) is None


def gpu_names() -> list[str]:
    """Return the product names of the NVIDIA GPUs, each once; empty if the driver lists none in Linux's files."""
    names = []
    for file in sorted(GPU_FOLDER.glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", _content(file), re.MULTILINE)
        if match:
            names.append(match.group(1).strip())
    return list(dict.fromkeys(names))


def _content(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
