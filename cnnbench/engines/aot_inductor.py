"""Programs that AOTInductor compiles ahead of time from a network, and that run in torch's library without Python.

Such a file holds machine code. It is only ever loaded by this package if this package has just written it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cnnbench.engines import METADATA_KEY
from cnnbench.engines.sessions import Session
from cnnbench.hardware import check_compiler, tf32, weights_type


def write(program: ExportedProgram, path: Path, metadata: str) -> None:
    """Compile a program; see `cnnbench.engines.export.write_program`.

    The filters are stored in the order channels_last, in which convolutions are faster on CPUs and GPUs. Images still
    come in the usual order.
    """
    module = program.module().to(memory_format=torch.channels_last)
    compile_program(record_again(module, program), path, metadata)


def compile_program(program: ExportedProgram, path: Path, metadata: str, freezing: bool = False) -> None:
    """Compile a program as it is.

    Args:
        program: Program of a network.
        path: File to write.
        metadata: Facts about the network as JSON.
        freezing: Whether the compiler takes the weights as constants, which it may store in another form.
    """
    check_compiler(next((value.device for value in program.state_dict.values()), torch.device("cpu")))
    options = {"aot_inductor.metadata": {METADATA_KEY: metadata}, "freezing": freezing}
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def record_again(module: nn.Module, program: ExportedProgram) -> ExportedProgram:
    """Record a module that was made from a program, for the same images and batches."""
    (limits,) = program.range_constraints.values()
    batch = Dim("batch", min=int(limits.lower), max=int(limits.upper))
    return torch.export.export(module, program.example_inputs[0], dynamic_shapes=({0: batch},), strict=False)


def open_session(
    engine: str, path: Path, precision: str, device: torch.device, batch_size: int | None, threads: int
) -> AotSession:
    """Load a compiled program; see `cnnbench.engines.sessions.open_session`."""
    return AotSession(path, precision, device)


class AotSession(Session):
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
        with torch.inference_mode():
            logits: Tensor = self._program(images)
            return logits

    def switches(self) -> contextlib.AbstractContextManager[None]:
        """Return the context that sets torch's switches for TF32, which convolutions and matrix products obey."""
        return tf32(self._device, self._precision == "tf32")
