"""Quantisation of ONNX files by ONNX Runtime's own tool, in a process of its own.

The tool makes sessions with threads of their own. ONNX Runtime refuses those in a process whose sessions share a pool,
as those of `cnnbench.engines.onnx_runtime` do, and the pool cannot be given back.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor
from torch.export import ExportedProgram

from cnnbench.engines import METADATA_KEY
from cnnbench.engines.onnx_runtime import write
from cnnbench.machine import may_saturate
from cnnbench.trust import module_command


def method() -> str:
    """Return in words how networks are quantised."""
    weights = "int8 per channel"
    if may_saturate():
        weights += " in 7 bits, since this processor has no VNNI"
    return f"QDQ, weights {weights}, activations uint8 per tensor, ranges from minimum to maximum"


def quantise(program: ExportedProgram, path: Path, metadata: str, calibration: Sequence[Tensor]) -> None:
    """Quantise a program and write it as ONNX.

    Args:
        program: Program of a network in float32.
        path: File to write.
        metadata: Facts about the network as JSON.
        calibration: Batches of images, (N, C, H, W).

    Raises:
        RuntimeError: The tool failed; the message is the last line that it printed.
    """
    with tempfile.TemporaryDirectory(prefix="cnnbench-int8-") as name:
        folder = Path(name)
        write(program, folder / "float.onnx", "")
        np.savez(folder / "images.npz", *(batch.numpy() for batch in calibration))
        _run_tool(folder)
        model = onnx.load(str(folder / "int8.onnx"))
    # The tool keeps some of the metadata of the float file, and adds its own.
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata
    path.write_bytes(model.SerializeToString())


def _run_tool(folder: Path) -> None:
    """Run `cnnbench.engines.onnx_int8_tool` on the files in a folder."""
    command = module_command("cnnbench.engines.onnx_int8_tool", str(folder), str(int(may_saturate())))
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(lines[-1])
