"""The process in which ONNX Runtime's tool quantises a file; see `cnnbench.engines.onnx_int8`, which starts it.

It reads ``float.onnx`` and ``images.npz`` in a folder, and writes ``int8.onnx`` there. It does not import torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Batches(CalibrationDataReader):
    """The batches of images in a NumPy archive, in their order, as the tool takes them.

    Args:
        path: Archive.
        name: Name of the network's input.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._batches = self._read(path, name)

    def _read(self, path: Path, name: str) -> Iterator[dict[str, Any]]:
        with np.load(path, allow_pickle=False) as archive:
            for batch in archive.files:
                yield {name: archive[batch]}

    def get_next(self) -> dict[str, Any] | None:
        """Return the next input; None after the last one."""
        return next(self._batches, None)


def quantise(folder: Path, reduce_range: bool) -> None:
    """Quantise the file in a folder.

    The choices are those that ONNX Runtime's documentation recommends for x86 processors, and per channel for accuracy.
    Its entropy method, with its default number of bins, finds the same ranges as the minimum and maximum.

    Args:
        folder: Folder of the files.
        reduce_range: Whether weights take 7 of their 8 bits, so that sums do not overflow in 16 bits.
    """
    ready = folder / "ready.onnx"
    # Infers shapes, and fuses operators as the engine will, so that no operator is quantised that will not be there.
    # Its symbolic inference is for transformers, and fails for operators of some CNNs.
    quant_pre_process(str(folder / "float.onnx"), str(ready), skip_symbolic_shape=True)
    (images,) = onnx.load(str(ready)).graph.input
    quantize_static(
        str(ready),
        str(folder / "int8.onnx"),
        Batches(folder / "images.npz", images.name),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )


if __name__ == "__main__":
    quantise(Path(sys.argv[1]), sys.argv[2] == "1")
