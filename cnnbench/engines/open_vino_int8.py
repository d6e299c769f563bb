"""Quantisation of OpenVINO's networks by NNCF, OpenVINO's own tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nncf
import openvino
from torch import Tensor
from torch.export import ExportedProgram

from cnnbench.engines.open_vino import convert, save


def method() -> str:
    """Return in words how networks are quantised."""
    return (
        "NNCF's defaults for a CPU: preset performance (symmetric), weights int8 per channel, activations per tensor, "
        "ranges from minimum to maximum, fast bias correction"
    )


def quantise(program: ExportedProgram, path: Path, metadata: str, calibration: Sequence[Tensor]) -> None:
    """Quantise a program and write it as IR.

    Args:
        program: Program of a network in float32.
        path: File to write; its weights go to a second file beside it.
        metadata: Facts about the network as JSON.
        calibration: Batches of images, (N, C, H, W).
    """
    batches = [batch.numpy() for batch in calibration]
    # NNCF counts batches, and by default takes 300.
    model: openvino.Model = nncf.quantize(convert(program), nncf.Dataset(batches), subset_size=len(batches))
    save(model, path, metadata)
