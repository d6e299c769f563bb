"""ONNX files, and ONNX Runtime, which runs them on a CPU or through one of its providers on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor
from torch.export import ExportedProgram

from cnnbench.engines import METADATA_KEY
from cnnbench.engines.sessions import Session
from cnnbench.errors import UserError

INPUT, OUTPUT = "images", "logits"
"""Names of the input and of the output in a file."""
BATCH = "batch"
"""Name of the open dimension in a file."""
_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
"""Types of images, by the names that ONNX Runtime has for them."""
_ERRORS_ONLY = 3
"""Level of ONNX Runtime's log."""
_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_pool_size: list[int] = []
"""Number of threads of ONNX Runtime's pool in this process; empty before there is one."""


def write(program: ExportedProgram, path: Path, metadata: str) -> None:
    """Write a program as ONNX; see `cnnbench.engines.export.write_program`."""
    exported = torch.onnx.export(
        program,
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        # The program already has these shapes; this names the open dimension in the file.
        dynamic_shapes=({0: BATCH},),
        external_data=False,
        verbose=False,
    )
    assert exported is not None
    model = exported.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def open_session(
    engine: str, path: Path, precision: str, device: torch.device, batch_size: int | None, threads: int
) -> OnnxSession:
    """Load an ONNX file into ONNX Runtime; see `cnnbench.engines.sessions.open_session`."""
    if device.type == "cpu":
        return OnnxSession(path, _CPU, {}, device, batch_size, threads)
    number = str(device.index or 0)
    if engine == "tensorrt":
        options = {"device_id": number, "trt_fp16_enable": str(precision == "16-true")}
        return OnnxSession(path, _TENSORRT, options, device, batch_size, threads)
    options = {"device_id": number, "use_tf32": str(int(precision == "tf32"))}
    return OnnxSession(path, _CUDA, options, device, batch_size, threads)


class OnnxSession(Session):
    """A network in ONNX Runtime.

    Args:
        path: ONNX file.
        provider: Name of the provider that computes.
        provider_options: Settings of the provider.
        device: Device on which it computes.
        batch_size: Images per batch; None for batches of any size.
        threads: Number of threads on a CPU.

    Raises:
        UserError: ONNX Runtime does not have the provider, or cannot use it.
    """

    def __init__(
        self,
        path: Path,
        provider: str,
        provider_options: dict[str, str],
        device: torch.device,
        batch_size: int | None,
        threads: int,
    ) -> None:
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise UserError(
                f"ONNX Runtime has no {provider} here ({', '.join(available)}); install onnxruntime-gpu in place of "
                "onnxruntime, or give --device cpu"
            )
        # Device and number of the memory that images and logits are bound to; None for arrays in that of the host.
        self._place = None if device.type == "cpu" else ("cuda", device.index or 0)
        on_cpu = device.type == "cpu"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        if on_cpu:
            _share_pool(threads)
            # All sessions of a process share one pool. With a pool each, the threads of one session would still spin
            # while they wait for work when the next session computes.
            options.use_per_session_threads = False
        if batch_size is not None:
            options.add_free_dimension_override_by_name(_batch_dimension(path), batch_size)
        self._session = onnxruntime.InferenceSession(path, options, providers=[(provider, provider_options)])
        used = self._session.get_providers()
        # ONNX Runtime takes the CPU with no more than a line in its log. The times would be those of another device.
        if used[0] != provider:
            raise UserError(f"ONNX Runtime could not use {provider} and took {used[0]}; its log has the reason")
        wanted = self._session.get_inputs()[0]
        self._input, self._type = wanted.name, _NUMPY_TYPES[wanted.type]
        self.facts: dict[str, Any] = {
            "provider": provider,
            "provider_options": provider_options,
            "threads": threads if on_cpu else None,
            "thread_pool": "one for all sessions, spinning" if on_cpu else None,
            "graph_optimization": options.graph_optimization_level.name,
            "execution_mode": options.execution_mode.name,
            "batch_size": batch_size,
        }

    def prepare(self, images: Tensor) -> Any:
        """Return images, (N, C, H, W), as an array, or on a GPU bound to the session, in the memory of the GPU."""
        array = images.detach().contiguous().cpu().numpy().astype(self._type, copy=False)
        if self._place is None:
            return array
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, onnxruntime.OrtValue.ortvalue_from_numpy(array, *self._place))
        binding.bind_output(OUTPUT, *self._place)
        return binding

    def run(self, images: Any) -> Any:
        """Return the logits of prepared images, (N, K): as an array, or on a GPU as a value in its memory.

        The call ends when they are computed. As in torch, nothing is copied from the GPU.
        """
        if self._place is None:
            return self._session.run(None, {self._input: images})[0]
        self._session.run_with_iobinding(images)
        return images.get_outputs()[0]


def _share_pool(threads: int) -> None:
    """Make the pool of threads that all sessions of this process share.

    Raises:
        UserError: There is a pool of another size, which cannot be changed any more.
    """
    if not _pool_size:
        # A session warns that its own number of threads has no effect, which is intended here.
        onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _pool_size.append(threads)
    if _pool_size != [threads]:
        raise UserError(f"ONNX Runtime already has {_pool_size[0]} threads in this process, not {threads}")


def _batch_dimension(path: Path) -> str:
    """Return the name of the first dimension of the input of an ONNX file."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return str(graph.input[0].type.tensor_type.shape.dim[0].dim_param)
