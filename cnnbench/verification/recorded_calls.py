"""A record of all functions and modules that a network calls: the audit's independent witness.

Our own counts come from the operators that torch dispatches (`cnnbench.counting`). This file does not use them. It
replaces functions of torch during one forward pass by versions that record the shapes of their arguments. Most other
counters work in the same way, so the record also shows what each of them counts and what it misses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbench.counting.meta_copy import meta_copy, untouched_randomness

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
ACTIVATIONS = ("relu", "relu6", "prelu", "elu", "gelu", "silu", "softmax")
POOLINGS = (
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
).split()
MATMULS = ("matmul", "mm", "bmm", "addmm", "baddbmm")
ELEMENTWISE = ("mul", "add")
"""Names of the functions whose calls are recorded, by kind."""


@dataclass
class Call:
    """One call of a function of torch.

    Attributes:
        function: Name of the function.
        modules: Modules that were running at the time of the call, outermost first.
        macs: Multiply-adds of a convolution or a matrix product; 0 for other functions.
        size: Elements of the input of an activation or a pooling, or of the output of an element-wise function.
        groups: Groups of a convolution.
    """

    function: str
    modules: tuple[nn.Module, ...]
    macs: int = 0
    size: int = 0
    groups: int = 1

    @property
    def module(self) -> nn.Module | None:
        """Return the innermost module that was running, or None outside of all modules."""
        return self.modules[-1] if self.modules else None


@dataclass
class Calls:
    """All recorded calls of one forward pass.

    Attributes:
        functions: Calls of torch's functions.
        modules: Modules with the shapes of their first input and of their output, in the order in which they finished.
        stack: Modules that are running, outermost first; used during the recording.
        inside: Whether a recorded function is running; used during the recording.
    """

    functions: list[Call] = field(default_factory=list)
    modules: list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    stack: list[nn.Module] = field(default_factory=list)
    inside: bool = False

    @property
    def macs(self) -> int:
        """Return the multiply-adds of all convolutions and matrix products, computed from their shapes."""
        return sum(call.macs for call in self.functions)


def record_calls(model: nn.Module, image_shape: Sequence[int], training: bool = False) -> Calls:
    """Record what a network calls in a forward pass on the meta device.

    Args:
        model: Network, which is copied and not run itself.
        image_shape: Shape of an image, (C, H, W).
        training: Whether the forward pass is one of training, with two images; otherwise it is inference with one.
    """
    calls = Calls()
    copy, _ = meta_copy(model)
    copy.train(training)
    # The stack says which modules are running at the moment of a call.
    for module in copy.modules():
        module.register_forward_pre_hook(lambda module, inputs: calls.stack.append(module))
        module.register_forward_hook(_leave(calls))
    x = torch.empty(2 if training else 1, *image_shape, device="meta")
    with _noted(calls), torch.no_grad(), untouched_randomness():
        copy(x)
    return calls


def _leave(calls: Calls) -> Callable[[nn.Module, Any, Any], None]:
    """Return a forward hook that records a module when it finishes."""

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        calls.stack.pop()
        # Attention, for example, returns its weights beside the result.
        result = output[0] if isinstance(output, tuple) else output
        if inputs and isinstance(inputs[0], Tensor) and isinstance(result, Tensor):
            calls.modules.append((module, tuple(inputs[0].shape), tuple(result.shape)))

    return leave


@contextlib.contextmanager
def _noted(calls: Calls) -> Iterator[None]:
    """Replace functions of torch inside the context by versions that record their calls."""
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
    """Return a version of a function that records each call and its size."""

    def noting(*args: Any, **kwargs: Any) -> Any:
        if calls.inside:  # called by a function that is recorded already, so it would count twice
            return function(*args, **kwargs)
        calls.inside = True
        try:
            out = function(*args, **kwargs)
        finally:
            calls.inside = False
        call = Call(name, tuple(calls.stack))
        _measure(call, args, kwargs, out)
        calls.functions.append(call)
        return out

    return noting


def _measure(call: Call, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Set the multiply-adds of a convolution or a matrix product, or the size of another call.

    Args:
        call: Call without its size.
        args: Positional arguments of the function.
        kwargs: Keyword arguments of the function.
        out: Result of the function.
    """
    name, first = call.function, _argument(args, kwargs, 0, "input")
    if name in CONVOLUTIONS:
        # A weight is (out, in / groups, ...), or (in, out / groups, ...) if the convolution is transposed. Each element
        # of the output, or of the input of a transposed convolution, takes one multiply-add for each weight of its
        # channel.
        weight = _argument(args, kwargs, 1, "weight")
        positions = first.numel() if "transpose" in name else out.numel()
        call.macs = positions * prod(weight.shape[1:])
        # In all of torch's convolutions, also transposed ones, `groups` is the seventh argument.
        call.groups = _argument(args, kwargs, 6, "groups", 1)
    elif name == "linear":
        # One multiply-add per input feature for each element of the output.
        call.macs = out.numel() * first.shape[-1]
    elif name == "scaled_dot_product_attention":
        # The scores are queries times keys; each score is then multiplied with a row of the values.
        key, value = args[1], args[2]
        scores = prod(first.shape[:-1]) * key.shape[-2]
        call.macs = scores * (first.shape[-1] + value.shape[-1])
    elif name in ("addmm", "baddbmm"):
        # The first argument is added to the product of the other two.
        call.macs = out.numel() * args[1].shape[-1]
    elif name in MATMULS:
        call.macs = out.numel() * first.shape[-1]
    elif name in ELEMENTWISE:
        call.size = out.numel()
    else:
        call.size = first.numel()


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str, default: Any = None) -> Any:
    """Return an argument of a call, which may be passed by its position or by its name."""
    return args[position] if len(args) > position else kwargs.get(name, default)
