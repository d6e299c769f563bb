"""Files of OpenVINO's intermediate representation (IR), and OpenVINO, which runs them on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino
import torch
from torch import Tensor
from torch.export import ExportedProgram

from cnnbench.engines import METADATA_KEY
from cnnbench.engines.sessions import Session
from cnnbench.errors import UserError

INPUT, OUTPUT = "images", "logits"
"""Names of the input and of the output in a file."""


def write(program: ExportedProgram, path: Path, metadata: str) -> None:
    """Write a program as IR; see `cnnbench.engines.export.write_program`."""
    save(convert(program), path, metadata)


def convert(program: ExportedProgram) -> openvino.Model:
    """Return a program as OpenVINO's model, for batches of any size and images of one size."""
    # OpenVINO otherwise takes images of any height and width, for which it makes slower code.
    _, *image_shape = program.example_inputs[0][0].shape
    model = openvino.convert_model(program, input=[openvino.PartialShape([-1, *image_shape])])
    model.inputs[0].get_tensor().set_names({INPUT})
    model.outputs[0].get_tensor().set_names({OUTPUT})
    return model


def save(model: openvino.Model, path: Path, metadata: str) -> None:
    """Write a model, and its weights to a second file beside it whose name ends in ``.bin``."""
    model.set_rt_info(metadata, METADATA_KEY)
    # By default OpenVINO stores weights in float16.
    openvino.save_model(model, path, compress_to_fp16=False)


def open_session(
    engine: str, path: Path, precision: str, device: torch.device, batch_size: int | None, threads: int
) -> OpenVinoSession:
    """Load a file of IR into OpenVINO; see `cnnbench.engines.sessions.open_session`."""
    return OpenVinoSession(path, precision, batch_size, threads)


class OpenVinoSession(Session):
    """A network in OpenVINO, on a CPU.

    Args:
        path: File of IR; its weights are beside it.
        precision: Number format, by Lightning's name or ``int8``.
        batch_size: Images per batch; None for batches of any size.
        threads: Number of threads.

    Raises:
        UserError: OpenVINO does not compute in this number format on this processor.
    """

    def __init__(self, path: Path, precision: str, batch_size: int | None, threads: int) -> None:
        # In an int8 network, the operators that were not quantised compute in float32.
        wanted = "bf16" if precision == "bf16-true" else "f32"
        core = openvino.Core()
        model = core.read_model(path)
        if batch_size is not None:
            _, *image_shape = model.inputs[0].get_partial_shape()
            model.reshape(openvino.PartialShape([batch_size, *image_shape]))
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": wanted,
            },
        )
        shape = compiled.inputs[0].get_partial_shape()
        # OpenVINO may choose another format than it was asked for, and says so only when it is asked again.
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != wanted:
            raise UserError(f"OpenVINO computes in {used} here, not in {wanted}; leave out precision {precision}")
        self._request = compiled.create_infer_request()
        self.facts: dict[str, Any] = {
            "provider": "CPU",
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "streams": int(compiled.get_property("NUM_STREAMS")),
            "performance_hint": "LATENCY",
            "inference_precision_hint": used,
            "batch_size": batch_size,
            "shape": shape.to_string(),
        }

    def prepare(self, images: Tensor) -> openvino.Tensor:
        """Return images, (N, C, H, W), as OpenVINO's tensor."""
        return openvino.Tensor(images.detach().float().contiguous().cpu().numpy(), shared_memory=False)

    def run(self, images: openvino.Tensor) -> Any:
        """Return the logits of prepared images as an array, (N, K), which the next call overwrites."""
        self._request.set_input_tensor(images)
        self._request.infer()
        return self._request.get_output_tensor(0).data

    @property
    def own_ms(self) -> float:
        """Return the time of the last call by OpenVINO's own clock, without the call from Python, in milliseconds."""
        return float(self._request.latency)
