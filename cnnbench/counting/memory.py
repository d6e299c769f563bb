"""Estimate of the memory of a training step, from shapes alone.

The step runs on tensors without values that know their device and type, so autocast and autograd behave as in a real
step. The lifetime of each tensor's memory is followed, which gives the peak.

The operators and the casts of autocast are those of a CPU with bfloat16 instructions. A CPU without them keeps float32
copies for its convolutions in bf16-mixed, and a GPU stores some tensors in another form, such as the masks of dropout.
Workspaces of the kernels and the rounding of the allocator are not included.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnbench.counting.dry_run import DryRun, Listener
from cnnbench.counting.meta_run import tensors_in
from cnnbench.errors import UserError, unknown
from cnnbench.names import PRECISIONS

STEP_PRECISIONS = tuple(name for name in PRECISIONS if name != "auto")
"""Number formats of a training step."""
STATES_PER_WEIGHT = {"adamw": 2, "sgd-momentum": 1, "sgd": 0}
"""Numbers that each optimizer keeps per trainable weight: AdamW two moments, SGD with momentum one."""


@dataclass(frozen=True)
class TrainingMemory:
    """Memory of a training step, in bytes.

    Attributes:
        parameter_bytes: Size of weights and biases.
        buffer_bytes: Size of buffers, such as running statistics.
        gradient_bytes: Size of the gradients of all trainable parameters.
        optimizer_bytes: Size of the optimizer's state.
        input_bytes: Size of the batch of images.
        activation_bytes: Size of all tensors that forward leaves in memory for the backward pass, casts of weights
            included.
        peak_bytes: Largest total that is in memory at once: parameters, buffers, optimizer state, images, and the
            tensors of the step.
    """

    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    input_bytes: int
    activation_bytes: int
    peak_bytes: int

    def figures(self) -> dict[str, int]:
        """Return the sizes by name."""
        return asdict(self)


class _Ledger(Listener):
    """Account of the memory that operators allocated and that is still in use, in bytes."""

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        # Keys are compared by identity, and an entry disappears together with its storage.
        self._known: Any = torch.utils.weak.WeakIdKeyDictionary()

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave the memory of these tensors out of the account."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = True

    def operator(self, operator: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Add the memory that the results of an operator have allocated."""
        for tensor in tensors_in(out):
            # Views of the same memory share a storage, which counts once and until it is freed.
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known[storage] = True
                self.live += storage.nbytes()
                # Python frees a storage as soon as neither a tensor nor autograd refers to it.
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.live)

    def _free(self, size: int) -> None:
        """Take freed memory out of the account."""
        self.live -= size


def training_memory(
    model: nn.Module,
    image_shape: Sequence[int],
    batch_size: int,
    precision: str = "32-true",
    optimizer: str = "adamw",
) -> TrainingMemory:
    """Estimate the memory of a training step; the network is neither run nor changed.

    Args:
        model: Network that takes one batch of images and returns tensors.
        image_shape: Channels and spatial dimensions of one image, such as (C, H, W).
        batch_size: Number of images per step.
        precision: Number format: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        optimizer: Optimizer: ``adamw``, ``sgd-momentum`` or ``sgd``.

    Returns:
        The sizes of parameters, gradients, optimizer state and activations, and the peak.

    Raises:
        UserError: The precision, optimizer or batch size is not valid, or the network does not train on such images.
    """
    if precision not in STEP_PRECISIONS:
        raise unknown("precision", precision, STEP_PRECISIONS)
    if optimizer not in STATES_PER_WEIGHT:
        raise unknown("optimizer", optimizer, STATES_PER_WEIGHT)
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} must be at least 1")
    ledger = _Ledger()
    run = DryRun(model, image_shape, ledger, "estimate the memory of", "cpu", precision)
    # Parameters, buffers and images exist before the step; their sizes are added at the end.
    ledger.ignore([*run.model.parameters(), *run.model.buffers()])
    with run.images(batch_size, training=True) as images:
        ledger.ignore([images])
        outputs = [t for t in run.forward(images) if t.requires_grad]
        # The outputs and the tensors that autograd keeps for the backward pass are still in memory.
        stored = ledger.live
        if outputs:
            run.backward(outputs)
    # Each trainable parameter has a gradient of its own size, and the optimizer's numbers have the same size again.
    trainable = _bytes(p for p in run.model.parameters() if p.requires_grad)
    fixed = {
        "parameter_bytes": _bytes(run.model.parameters()),
        "buffer_bytes": _bytes(run.model.buffers()),
        "optimizer_bytes": STATES_PER_WEIGHT[optimizer] * trainable,
        "input_bytes": _bytes([images]),
    }
    return TrainingMemory(
        **fixed,
        gradient_bytes=trainable,
        activation_bytes=stored,
        # What exists before the step stays in memory during the whole step.
        # Gradients are not added: operators of the backward pass allocate them, so the ledger counts them.
        peak_bytes=sum(fixed.values()) + ledger.peak,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Return the size of all elements of these tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)
