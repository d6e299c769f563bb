"""Records work as a CUDA graph, which a GPU replays without its operators being launched one by one."""

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
"""Passes before the recording: what is set up once may not be recorded."""


@functools.lru_cache
def _stream(device: torch.device) -> Any:
    """Return the one stream of this process that graphs are recorded on: cuBLAS keeps a workspace for each stream."""
    return torch.cuda.Stream(device)


@functools.lru_cache
def _pool(device: torch.device) -> Any:
    """Return the one pool of memory of all graphs: their replays never overlap, so that they may share it."""
    with torch.cuda.device(device):
        return torch.cuda.graph_pool_handle()


@contextlib.contextmanager
def on_capture_stream(device: torch.device) -> Iterator[None]:
    """Inside, work goes to the stream that graphs are recorded on; the streams wait for each other."""
    current, side = torch.cuda.current_stream(device), _stream(device)
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        current.wait_stream(side)


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Inside, torch raises an error where the host would wait for the device.

    Such a call fails in a recording too, but some versions of torch are left unable to free memory by that
    (https://github.com/pytorch/pytorch/issues/180395).
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
    """Record a call.

    Args:
        work: What is recorded; it takes images and returns tensors.
        images: Of the size that it will take, (N, C, H, W).

    Returns:
        A function that copies images to where the graph expects them, replays it and returns what ``work`` returned,
        the same tensors each time; and the bytes that the recording allocated at its peak, beyond what was there.

    Raises:
        UserError: The work waits for the device.
    """
    device, x = images.device, images.clone()
    before = torch.cuda.memory_allocated(device)
    with on_capture_stream(device):
        for _ in range(_WARM_UPS - 1):
            work(x)
        # What cuDNN took for its search of kernels is no part of a step. The memory of an earlier graph goes back too,
        # for which networks that refer to themselves must be collected first.
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        with _no_waiting():
            work(x)
    graph = torch.cuda.CUDAGraph()
    try:
        # A recording that cannot even start leaves its stream as the current one; the outer one is put back here.
        with (
            torch.cuda.device(device),
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(graph, pool=_pool(device), stream=_stream(device)),
        ):
            out = work(x)
    except BaseException:
        # Some versions of torch take the pool of a failed recording for one that is still being recorded.
        _pool.cache_clear()
        raise
    peak = torch.cuda.max_memory_allocated(device) - before

    def replay(fresh: Tensor) -> Any:
        x.copy_(fresh)
        graph.replay()
        return out

    return replay, peak
