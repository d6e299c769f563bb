"""Sessions: an exported network, loaded into an engine and ready to run.

A session computes in one number format, on one device and with a fixed number of threads, and states these as facts. A
call of `run` does what a deployed program would do for a batch, and nothing else. `prepare` brings images into the
engine's own form beforehand.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cnnbench.engines import ENGINES, FORMATS
from cnnbench.errors import Stopped, UserError, first_line


class Session(Protocol):
    """A network in an engine.

    Attributes:
        facts: Settings of the engine, for records.
        load_ms: Time in milliseconds in which the engine read the file and compiled it.
    """

    facts: dict[str, Any]
    load_ms: float = 0.0

    @property
    def own_ms(self) -> float | None:
        """Return the time of the last call by the engine's own clock in milliseconds; None if it has no such clock."""
        return None

    def prepare(self, images: Tensor) -> Any:
        """Return images, (N, C, H, W), in the form that `run` takes."""

    def run(self, images: Any) -> Any:
        """Return the logits of prepared images, (N, K), as the engine's kind of array; see `switches`."""

    def switches(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which `run` is to be called. Entering it takes time, so it is not part of a call."""
        return contextlib.nullcontext()


def open_session(
    engine: str,
    path: Path,
    precision: str,
    device: torch.device,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Session:
    """Load an exported network into an engine.

    Args:
        engine: Name of the engine, other than torch.
        path: File in the format that the engine reads. A file of AOTInductor holds code that runs, so it must be one
            that this program has written itself.
        precision: Number format, by Lightning's name or ``int8``. The weights of ``int8`` and of the 16-bit formats of
            AOTInductor and of GPUs are in the file; the other formats are a setting of the engine.
        device: Device on which the engine computes.
        batch_size: Images per batch if it is the same in every call, so that the engine can choose its kernels for it;
            None for batches of any size. AOTInductor takes batches of any size all the same.
        threads: Number of threads on a CPU; None for as many as torch has. AOTInductor always has as many as torch.

    Raises:
        UserError: The engine cannot load the file, or does not compute so on this device.
    """
    return open_file(ENGINES[engine].format, path, precision, device, batch_size, threads, engine)


def open_file(
    format_name: str,
    path: Path,
    precision: str,
    device: torch.device,
    batch_size: int | None = None,
    threads: int | None = None,
    engine: str = "",
) -> Session:
    """Load an exported network into what reads its format; see `open_session`.

    Args:
        format_name: Name of the format of the file.
        path: File to load.
        precision: Number format.
        device: Device that computes.
        batch_size: Images per batch; None for batches of any size.
        threads: Number of threads on a CPU; None for as many as torch has.
        engine: Name of the engine, where several read this format.

    Raises:
        UserError: The file cannot be loaded, or the engine does not compute so on this device.
    """
    count = torch.get_num_threads() if threads is None else threads
    form = FORMATS[format_name]
    # The import of the engine is not a part of the loading.
    module = importlib.import_module(form.module)
    start = time.perf_counter()
    try:
        session: Session = module.open_session(engine, path, precision, device, batch_size, count)
    except (Stopped, UserError):
        raise
    except Exception as error:
        title = ENGINES[engine].title if engine else form.title
        raise UserError(f"{title} cannot load '{path}': {first_line(error)}") from error
    session.load_ms = 1e3 * (time.perf_counter() - start)
    session.facts["engine"] = engine or format_name
    return session


def logits_of(session: Session, images: Tensor) -> Tensor:
    """Return the logits of images, (N, C, H, W), as float32 on the CPU, (N, K)."""
    with session.switches():
        output = session.run(session.prepare(images))
    if isinstance(output, Tensor):
        return output.float().cpu()
    if hasattr(output, "numpy"):
        # A value of ONNX Runtime in the memory of a GPU.
        output = output.numpy()
    # A copy, because an engine may write its next result to the same memory.
    return torch.from_numpy(np.array(output, dtype=np.float32))
