"""Recording of work as a CUDA graph, which a GPU replays as a whole, without a launch by the host per operator."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cnnbench.errors import UserError

_WARM_UPS = 3
"""Number of calls before the recording, since work that is done only once, such as set-up, must not be recorded."""


@functools.lru_cache
def _stream(device: torch.device) -> Any:
    """Return the one stream of this process on which all graphs are recorded.

    A stream per graph would take more memory, since cuBLAS keeps a workspace for each stream.
    """
    return torch.cuda.Stream(device)


@functools.lru_cache
def _pool(device: torch.device) -> Any:
    """Return the one memory pool of all graphs, which they can share because their replays never overlap."""
    with torch.cuda.device(device):
        return torch.cuda.graph_pool_handle()


@contextlib.contextmanager
def on_capture_stream(device: torch.device) -> Iterator[None]:
    """Run the body on the stream on which graphs are recorded.

    That stream first waits for the current stream, and the current stream waits for it at the end.
    """
    current, side = torch.cuda.current_stream(device), _stream(device)
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        current.wait_stream(side)


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise an error in the body as soon as the host would wait for the device.

    Such a wait would fail during the recording too, but some versions of torch cannot free memory after that failure
    (https://github.com/pytorch/pytorch/issues/180395).

    Raises:
        UserError: The body makes the host wait for the device.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        raise UserError(
            "the network reads values from the GPU while it runs (as by .item() or a mask), which a CUDA graph cannot "
            "record; time it in mode eager"
        ) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


def capture(work: Callable[[Tensor], Any], images: Tensor) -> tuple[Callable[[Tensor], Any], int]:
    """Record a call as a CUDA graph.

    Args:
        work: Function to record; it takes images and returns tensors.
        images: Images of the shape, (N, C, H, W), that every replay will get.

    Returns:
        Two values. The first is a function that copies its images into the graph's input, replays the graph, and
        returns the result of ``work``, in the same tensors each time. The second is the peak memory of the last call
        and the recording, in bytes beyond what was allocated before.

    Raises:
        UserError: ``work`` makes the host wait for the device.
    """
    device, x = images.device, images.clone()
    before = torch.cuda.memory_allocated(device)
    with on_capture_stream(device):
        for _ in range(_WARM_UPS - 1):
            work(x)
        # The memory that cuDNN used to search for kernels is not part of a step, so it is released before the peak is
        # measured. The memory of an earlier graph is released too. For that, networks that refer to themselves have to
        # be garbage-collected first.
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        with _no_waiting():
            work(x)
    graph = torch.cuda.CUDAGraph()
    try:
        # If a recording cannot even start, it leaves its own stream as the current one. The stream context around it
        # restores the current stream.
        with (
            torch.cuda.device(device),
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(graph, pool=_pool(device), stream=_stream(device)),
        ):
            out = work(x)
    except BaseException:
        # Some versions of torch treat the pool of a failed recording as still in use by it, so that the next graph
        # needs a new pool.
        _pool.cache_clear()
        raise
    peak = torch.cuda.max_memory_allocated(device) - before

    def replay(fresh: Tensor) -> Any:
        x.copy_(fresh)
        graph.replay()
        return out

    return replay, peak
