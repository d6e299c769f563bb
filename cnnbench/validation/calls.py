"""What a network calls, written down module by module and function by function: the audit's independent witness.

Nothing here goes through the operators that `cnnbench.measure` counts. Functions of torch are replaced for the time of
one forward pass by ones that note their shapes, which is also how most counters work, so that what each of them sees
and misses can be told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbench.counting.copies import meta_copy, untouched_randomness

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
ACTIVATIONS = ("relu", "relu6", "prelu", "elu", "gelu", "silu", "softmax")
POOLINGS = (
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
).split()
MATMULS = ("matmul", "mm", "bmm", "addmm", "baddbmm")
ELEMENTWISE = ("mul", "add")


@dataclass
class Call:
    """One call of a function: its name, the modules that led to it, outermost first, and sizes."""

    function: str
    modules: tuple[nn.Module, ...]
    macs: int = 0
    size: int = 0
    groups: int = 1


@dataclass
class Calls:
    """Everything that one forward pass called.

    Attributes:
        functions: Calls of torch's functions.
        modules: Module, shape of its first input and of its output, in the order of their ends.
        stack: Modules that run while notes are taken.
        inside: Whether a function that is noted runs.
    """

    functions: list[Call] = field(default_factory=list)
    modules: list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    stack: list[nn.Module] = field(default_factory=list)
    inside: bool = False

    @property
    def macs(self) -> int:
        """Multiply-adds of all convolutions and matrix products, by their shapes."""
        return sum(call.macs for call in self.functions)


def record_calls(model: nn.Module, image_shape: Sequence[int], training: bool = False) -> Calls:
    """Notes what a network calls for one image, or in training for two."""
    calls = Calls()
    copy, _ = meta_copy(model)
    copy.train(training)
    for module in copy.modules():
        module.register_forward_pre_hook(lambda module, inputs: calls.stack.append(module))
        module.register_forward_hook(_leave(calls))
    x = torch.empty(2 if training else 1, *image_shape, device="meta")
    with _noted(calls), torch.no_grad(), untouched_randomness():
        copy(x)
    return calls


def _leave(calls: Calls) -> Callable[[nn.Module, Any, Any], None]:
    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        calls.stack.pop()
        first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
        result = output[0] if isinstance(output, tuple) else output
        if first is not None and isinstance(result, Tensor):
            calls.modules.append((module, tuple(first.shape), tuple(result.shape)))

    return leave


@contextlib.contextmanager
def _noted(calls: Calls) -> Iterator[None]:
    """Replaces functions by ones that write themselves down."""
    with contextlib.ExitStack() as stack:
        for owner, names in (
            (F, (*CONVOLUTIONS, "linear", "scaled_dot_product_attention", *ACTIVATIONS, *POOLINGS)),
            (torch, (*MATMULS, *ELEMENTWISE)),
            (Tensor, (*MATMULS[:-1], *ELEMENTWISE)),
        ):
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, _noting(calls, name, getattr(owner, name))))
        yield


def _noting(calls: Calls, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def noting(*args: Any, **kwargs: Any) -> Any:
        if calls.inside:  # how torch itself computes a function that is noted already
            return function(*args, **kwargs)
        calls.inside = True
        try:
            out = function(*args, **kwargs)
        finally:
            calls.inside = False
        call = Call(name, tuple(calls.stack))
        first = args[0] if args else kwargs["input"]
        if name in CONVOLUTIONS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
            per_group = prod(weight.shape[1:])  # what one output channel multiplies with, or one input channel
            positions = first.numel() if "transpose" in name else out.numel()
            call.macs, call.groups = positions * per_group, groups
        elif name == "linear":
            call.macs = out.numel() * first.shape[-1]
        elif name == "scaled_dot_product_attention":
            key, value = args[1], args[2]
            scores = prod(first.shape[:-1]) * key.shape[-2]
            call.macs = scores * (first.shape[-1] + value.shape[-1])
        elif name in MATMULS:
            left = args[1] if name in ("addmm", "baddbmm") else first
            call.macs = out.numel() * left.shape[-1]
        elif name in ELEMENTWISE:
            call.size = out.numel()
        else:
            call.size = first.numel()
        calls.functions.append(call)
        return out

    return noting
