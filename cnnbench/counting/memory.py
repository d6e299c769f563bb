"""What a training step holds in memory, from the shapes alone: nothing is allocated.

The step runs on tensors without values that know their type, so that autocast and autograd do what they would do, while
the life of every tensor's memory is followed. Operators and autocast are those of a CPU with bfloat16 instructions (one
without keeps copies in float32 for its convolutions in bf16-mixed); a GPU keeps a few things otherwise, such as masks
of dropout. Kernels' workspaces and the allocator's rounding are not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cnnbench.counting.copies import eager, meta_copy, untouched_randomness, without_global_hooks
from cnnbench.counting.meta import tensors_in
from cnnbench.errors import Stopped, UserError, unknown
from cnnbench.hardware import PRECISIONS, autocast

STEP_PRECISIONS = tuple(name for name in PRECISIONS if name != "auto")
STATES_PER_WEIGHT = {"adamw": 2, "sgd-momentum": 1, "sgd": 0}


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step.

    Attributes:
        parameter_bytes: Weights and biases.
        buffer_bytes: Running statistics and the like.
        gradient_bytes: Gradients of the parameters that want one.
        optimizer_bytes: What the optimizer keeps per weight.
        input_bytes: The batch of images.
        activation_bytes: What forward keeps for backward, casts of weights included.
        peak_bytes: The most that is held at once, images included.
    """

    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    input_bytes: int
    activation_bytes: int
    peak_bytes: int

    def figures(self) -> dict[str, int]:
        return asdict(self)


class _Ledger(TorchDispatchMode):
    """Bytes of the memory that operators made and that is still in use."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: Any = torch.utils.weak.WeakIdKeyDictionary()

    def ignore(self, tensors: Any) -> None:
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known[storage] = True
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def _free(self, size: int) -> None:
        self.live -= size


def training_memory(
    model: nn.Module,
    image_shape: Sequence[int],
    batch_size: int,
    precision: str = "32-true",
    optimizer: str = "adamw",
) -> TrainingMemory:
    """Estimates the memory of a training step; the network is neither run nor changed.

    Args:
        model: Any network that takes one batch of images and returns tensors.
        image_shape: Channels and extents of one image.
        batch_size: Images per step.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        optimizer: ``adamw``, ``sgd-momentum`` or ``sgd``.

    Raises:
        UserError: Precision or optimizer is not one of these, or the network does not train on such images.
    """
    if precision not in STEP_PRECISIONS:
        raise unknown("precision", precision, STEP_PRECISIONS)
    if optimizer not in STATES_PER_WEIGHT:
        raise unknown("optimizer", optimizer, STATES_PER_WEIGHT)
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} must be at least 1")
    try:
        return _simulate(model, image_shape, batch_size, precision, STATES_PER_WEIGHT[optimizer])
    except (UserError, Stopped):
        raise
    except BaseException as error:  # whatever forward or backward of somebody else's network raises
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot estimate the memory of {type(model).__name__} with {batch_size} images of "
            f"{'x'.join(map(str, image_shape))}: {type(error).__name__}: {text}"
        ) from error


def _simulate(
    model: nn.Module, image_shape: Sequence[int], batch_size: int, precision: str, states: int
) -> TrainingMemory:
    ledger = _Ledger()
    with untouched_randomness(), without_global_hooks(), eager(), FakeTensorMode(allow_non_fake_inputs=True):
        copy = meta_copy(model, "cpu")[0].train()
        ledger.ignore([*copy.parameters(), *copy.buffers()])
        dtype = next((p.dtype for p in copy.parameters() if p.is_floating_point()), torch.float32)
        images = torch.empty(batch_size, *image_shape, dtype=dtype)
        ledger.ignore([images])
        with ledger:
            with torch.enable_grad(), autocast(precision, torch.device("cpu")):
                outputs = [t for t in tensors_in(copy(images)) if t.requires_grad]
            stored = ledger.live
            if outputs:
                torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
    trainable = _bytes(p for p in copy.parameters() if p.requires_grad)
    fixed = {
        "parameter_bytes": _bytes(copy.parameters()),
        "buffer_bytes": _bytes(copy.buffers()),
        "optimizer_bytes": states * trainable,
        "input_bytes": images.numel() * images.element_size(),
    }
    return TrainingMemory(
        **fixed,
        gradient_bytes=trainable,
        activation_bytes=stored,
        peak_bytes=sum(fixed.values()) + ledger.peak,
    )


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
