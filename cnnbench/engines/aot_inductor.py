"""Programs that AOTInductor compiles ahead of time from a network, and that run in torch's library without Python.

Such a file holds machine code. It is only ever loaded by this package if this package has just written it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from cnnbench.engines import METADATA_KEY
from cnnbench.hardware import check_compiler, tf32, weights_type


def write(program: ExportedProgram, path: Path, metadata: str, freezing: bool = False) -> None:
    """Compile a program; see `cnnbench.engines.export.write_program`.

    Args:
        program: Program of a network.
        path: File to write.
        metadata: Facts about the network as JSON.
        freezing: Whether the compiler takes the weights as constants, which it may store in another form.
    """
    check_compiler(next((value.device for value in program.state_dict.values()), torch.device("cpu")))
    options = {"aot_inductor.metadata": {METADATA_KEY: metadata}, "freezing": freezing}
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def open_session(
    engine: str, path: Path, precision: str, device: torch.device, batch_size: int | None, threads: int
) -> AotSession:
    """Load a compiled program; see `cnnbench.engines.sessions.open_session`."""
    return AotSession(path, precision, device)


class AotSession:
    """A compiled network. It uses torch's threads, and takes batches of any size.

    Args:
        path: File that AOTInductor has written.
        precision: Number format, by Lightning's name or ``int8``.
        device: Device for which it was compiled.
    """

    def __init__(self, path: Path, precision: str, device: torch.device) -> None:
        self._program = torch._inductor.aoti_load_package(str(path))
        self._device, self._precision = device, precision
        threads = torch.get_num_threads() if device.type == "cpu" else None
        self.facts: dict[str, Any] = {"provider": device.type, "threads": threads, "batch_size": None}

    def prepare(self, images: Tensor) -> Tensor:
        """Return images, (N, C, H, W), on the device and in the number format of the program."""
        values = images.detach().to(self._device, weights_type(self._precision))
        return values.contiguous()

    def run(self, images: Tensor) -> Tensor:
        """Return the logits of prepared images, (N, K)."""
        with torch.inference_mode(), tf32(self._device, self._precision == "tf32"):
            logits: Tensor = self._program(images)
            return logits
