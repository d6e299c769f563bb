"""Files of ``torch.export``: the program itself, which torch, ExecuTorch and other compilers take as their input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from cnnbench.engines import METADATA_KEY
from cnnbench.engines.sessions import Session
from cnnbench.hardware import weights_type


def write(program: ExportedProgram, path: Path, metadata: str) -> None:
    """Write a program; see `cnnbench.engines.export.write_program`."""
    torch.export.save(program, path, extra_files={METADATA_KEY: metadata})


def open_session(
    engine: str, path: Path, precision: str, device: torch.device, batch_size: int | None, threads: int
) -> ProgramSession:
    """Load a program, which torch then runs operator by operator; see `cnnbench.engines.sessions.open_session`."""
    return ProgramSession(path, precision)


class ProgramSession(Session):
    """A program in torch, on the CPU. It shows that a file holds the same network, and is not for timing.

    Args:
        path: File of ``torch.export``.
        precision: Number format of its weights.
    """

    def __init__(self, path: Path, precision: str) -> None:
        self._module = torch.export.load(path).module()
        self._type = weights_type(precision)
        self.facts: dict[str, Any] = {"provider": "torch", "threads": torch.get_num_threads(), "batch_size": None}

    def prepare(self, images: Tensor) -> Tensor:
        """Return images, (N, C, H, W), in the number format of the program."""
        return images.detach().to(self._type)

    def run(self, images: Tensor) -> Tensor:
        """Return the logits of prepared images, (N, K)."""
        with torch.inference_mode():
            logits: Tensor = self._module(images)
            return logits
