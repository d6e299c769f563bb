"""What a network costs on paper: parameters, multiply-adds, activations; counted on the meta device.

Convention: 1 MAC = 1 multiply-add = 2 FLOPs; convolutions and matrix products only; bias, normalisation, activations
and pooling excluded; one image; inference. It is that of torchvision, fvcore and timm.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CONVENTION = "1 MAC = 2 FLOPs; convolutions and matrix products only; bias excluded; one image; inference"


class _Counter(TorchDispatchMode):
    """Adds up the operators that run below it, so that functional calls count like modules."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.activations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
            self.activations += sum(t.numel() for t in (out if isinstance(out, tuple) else (out,)))
        return out


def complexity(model: nn.Module, image_shape: Sequence[int]) -> dict[str, int]:
    """Counts a network's parameters, MACs, FLOPs and activations for one image.

    The network is not run and not changed: a copy without values is, on the meta device.

    Args:
        model: Any network that takes images.
        image_shape: Channels, height and width of one image.

    Returns:
        ``params`` (a shared parameter counts once), ``macs``, ``flops`` (twice the MACs), and ``activations``: the
        number of values that convolutions and matrix products put out (Radosavovic et al. 2020, arXiv 2003.13678).
    """
    meta = _on_meta(model).eval()
    counter = _Counter()
    with torch.no_grad(), counter:
        meta(torch.empty(1, *image_shape, device="meta"))
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": counter.flops // 2,
        "flops": counter.flops,
        "activations": counter.activations,
    }


def _on_meta(model: nn.Module) -> nn.Module:
    """Copies the structure of a network without its values."""
    stand_ins: dict[int, Tensor] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        stand_ins[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        stand_ins[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, stand_ins)
