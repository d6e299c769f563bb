"""Cost of one operator: the table on which every count of the project rests.

A rule computes the cost of one call of an aten operator, forward or backward, from the arguments and the result; it
looks at shapes and options, never at values. Only convolutions and matrix products have multiply-adds. Other arithmetic
is counted for inference, with one operation per element and elementary step:

==================================  ==============================================================================
operator                            operations
==================================  ==============================================================================
element-wise                        1 per output element, however complex the function
bias of a convolution or a product  1 per output element
reduction, cumulative sum           1 per input element
batch norm in inference             2 per element: one multiplication and one addition with the stored statistics
normalisation with own statistics   6 per element: mean 1, squared deviation 3, scale and shift 2
softmax                             5 per element: maximum, difference, exponential, sum, quotient
pooling                             1 per element of each window
linear or cubic interpolation       2 per tap and output element, less one; d dimensions have 2^d or 4^d taps
==================================  ==============================================================================

Operators that move data (views, copies, casts, padding, gathering), draw random numbers or compute with integers cost
nothing. In the backward pass only convolutions and matrix products count; the other operators are in the table with a
cost of zero. An operator that is not in the table has no rule, and the caller must report its name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Cost(NamedTuple):
    """Cost of one call of an operator.

    Attributes:
        macs: Number of multiply-adds in convolutions and matrix products.
        other: Number of other arithmetic operations.
    """

    macs: int
    other: int


KINDS = ("convolution", "depthwise convolution", "linear", "normalisation", "activation and pooling", "other")
"""Kinds of layers. Linear is every matrix product; other is sums of branches, concatenations, casts and copies."""
Rule = Callable[[Sequence[Any], Any], Cost]
"""Function that returns the cost of a call from its positional arguments and its result."""
FREE = Cost(0, 0)


def rule_of(operator: torch._ops.OpOverload) -> Rule | None:
    """Return the rule that computes the cost of an operator.

    Args:
        operator: Operator with its overload, as it arrives at a dispatch mode.

    Returns:
        A function of the arguments and the result of a call; None if the operator is not in the table.
    """
    name = base_name(operator)
    if operator.namespace == "profiler":
        return _no_cost
    if operator.namespace not in ("aten", "torchvision"):
        return None
    if name in _RULES:
        return _RULES[name]
    if name in _FREE or name in _BACKWARD or is_view(operator):
        return _no_cost
    return _elementwise if is_elementwise(operator) else None


@functools.cache
def base_name(operator: torch._ops.OpOverload) -> str:
    """Return the name without namespace and overload; an in-place operator such as add_ has the name add."""
    name = str(operator.overloadpacket).rpartition(".")[2]
    return name[:-1] if name.endswith("_") else name


@functools.cache
def is_elementwise(operator: torch._ops.OpOverload) -> bool:
    """Return whether each element of the result depends on the corresponding element of each argument alone."""
    single = len(operator._schema.returns) == 1
    return (single and torch.Tag.pointwise in operator.tags) or base_name(operator) in _ELEMENTWISE


def is_view(operator: torch._ops.OpOverload) -> bool:
    """Return whether the result shares memory with an argument, and the operator does not write to it."""
    # In a schema, `Tensor(a)` is an argument that shares memory with a result; `Tensor(a!)` is also written to.
    aliases = [a.alias_info for a in operator._schema.arguments if a.alias_info is not None]
    return bool(aliases) and not any(a.is_write for a in aliases)


def moves_data(operator: torch._ops.OpOverload) -> bool:
    """Return whether an operator reads or writes memory; views and plain allocations do not."""
    nothing = operator.namespace in ("prim", "profiler") or base_name(operator) in _MEMORY_ALONE
    return not nothing and not is_view(operator)


def kind_of(operator: torch._ops.OpOverload, args: Sequence[Any]) -> str:
    """Return the kind of layer to which an operator belongs, in the forward or the backward pass.

    Args:
        operator: Operator that was called.
        args: Positional arguments of the call.

    Returns:
        One of `KINDS`.
    """
    # The gradient of softmax is called _softmax_backward_data, hence the order of the two suffixes.
    name = base_name(operator).removesuffix("_data").removesuffix("_backward")
    if name == "convolution":
        if base_name(operator) == name:
            x, groups = args[0], args[8]
        else:  # in the backward pass, the gradient of the result comes first
            x, groups = args[1], args[9]
        # Depthwise means a group per channel; with a single channel, one group is an ordinary convolution.
        return "depthwise convolution" if groups == x.shape[1] > 1 else "convolution"
    if "deform_conv" in name:
        return "convolution"
    if name in _PRODUCTS:
        return "linear"
    # linalg_vector_norm is a reduction and not a layer.
    if "norm" in name and "vector" not in name:
        return "normalisation"
    if "pool" in name or name in _ACTIVATIONS:
        return "activation and pooling"
    return "other"


def _no_cost(args: Sequence[Any], out: Any) -> Cost:
    """Return the cost of an operator that computes nothing."""
    return FREE


# A convolution uses each weight once at every position of its output; a transposed one, at every position of its input.
# Stride, padding and dilation change the number of positions, and groups the number of weights, so no other term is
# needed. For each multiply-add `y += w * x` of the forward pass, the input gradient has one, `dx += w * dy`, and the
# weight gradient has one, `dw += x * dy`.
def _convolution_macs(x: Tensor, out: Tensor, weight: Tensor, transposed: bool) -> int:
    """Return the multiply-adds of a convolution: batch size x positions x weights."""
    positions = x.shape[2:] if transposed else out.shape[2:]
    return x.shape[0] * prod(positions) * weight.numel()


def _convolution(args: Sequence[Any], out: Any) -> Cost:
    x, weight, bias = args[:3]
    return Cost(_convolution_macs(x, out, weight, args[6]), 0 if bias is None else out.numel())


def _convolution_backward(args: Sequence[Any], out: Any) -> Cost:
    grad, x, weight = args[:3]
    # The mask says which of the gradients of input, weight and bias are wanted.
    wants_input, wants_weight, _ = args[10]
    return Cost(_convolution_macs(x, grad, weight, args[7]) * (wants_input + wants_weight), 0)


def _deformable(args: Sequence[Any], out: Any) -> Cost:
    return Cost(_convolution_macs(args[0], out, args[1], False), out.numel())  # torchvision always adds a bias


def _deformable_backward(args: Sequence[Any], out: Any) -> Cost:
    return Cost(2 * _convolution_macs(args[1], args[0], args[2], False), 0)  # torchvision computes both gradients


def _product(args: Sequence[Any], out: Any) -> Cost:
    """Return the cost of a matrix product: (n, k) times (k, m) has n x k x m multiply-adds."""
    return Cost(args[0].numel() * args[1].shape[-1], 0)


def _matrix_vector(args: Sequence[Any], out: Any) -> Cost:
    return Cost(args[0].numel(), 0)


def _plus(rule: Rule) -> Rule:
    """Return the rule for the same product with an addend as first argument, such as addmm(bias, a, b)."""
    return lambda args, out: Cost(rule(args[1:], out).macs, out.numel())


def _outer(args: Sequence[Any], out: Any) -> Cost:
    return Cost(out.numel(), 0)


def _elementwise(args: Sequence[Any], out: Any) -> Cost:
    """Return the cost of an element-wise operator; integers are indices and counters, which cost nothing."""
    for value in (*args, out):
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            return Cost(0, out.numel())
    return FREE


def _per_element(operations: int) -> Rule:
    """Return the rule with this number of operations per element of the first argument."""
    return lambda args, out: Cost(0, operations * args[0].numel())


def _added(source_at: int) -> Rule:
    """Return the rule with one operation per element of the argument at an index, which is added to another."""
    return lambda args, out: Cost(0, args[source_at].numel())


def _index_put(args: Sequence[Any], out: Any) -> Cost:
    # Only with `accumulate`, the fourth argument, are the values added to those that are there.
    if len(args) > 3 and args[3]:
        return Cost(0, args[2].numel())
    return FREE


def _batch_norm(args: Sequence[Any], out: Any) -> Cost:
    operations = 6 if args[5] else 2  # with own statistics, or with the stored ones
    return Cost(0, operations * args[0].numel())


def _pool(dims: int) -> Rule:
    """Return the rule of pooling over 2 or 3 dimensions: one operation per element of each window."""

    def rule(args: Sequence[Any], out: Any) -> Cost:
        kernel = args[1]
        if len(kernel) != dims:
            kernel = kernel * dims  # one number stands for all dimensions
        return Cost(0, _pooled(out).numel() * prod(kernel))

    return rule


def _pooled(out: Any) -> Tensor:
    """Return the values in the result of pooling; max pooling returns their indices as well."""
    return out[0] if isinstance(out, tuple) else out


def _adaptive_pool(args: Sequence[Any], out: Any) -> Cost:
    """Return the cost of adaptive pooling: one operation per element of each window.

    From n pixels to m units, window i reaches from floor(i * n / m) to ceil((i + 1) * n / m); windows may overlap.
    """
    x, values = args[0], _pooled(out)
    spatial = len(args[1])
    elements = prod(x.shape[:-spatial])
    for n, m in zip(x.shape[-spatial:], values.shape[-spatial:], strict=True):
        # The quotient of a negative number, negated, is rounded up.
        elements *= sum(-(-(i + 1) * n // m) - i * n // m for i in range(m))
    return Cost(0, elements)


def _interpolation(taps: int) -> Rule:
    """Return the rule of interpolation: each output element is a sum of weighted taps."""
    return lambda args, out: Cost(0, (2 * taps - 1) * out.numel())


_PRODUCTS: dict[str, Rule] = {
    "convolution": _convolution,
    "deform_conv2d": _deformable,
    "mm": _product,
    "bmm": _product,
    "addmm": _plus(_product),
    "baddbmm": _plus(_product),
    "addbmm": _plus(_product),
    "mv": _matrix_vector,
    "dot": _matrix_vector,
    "vdot": _matrix_vector,
    "addmv": _plus(_matrix_vector),
    "ger": _outer,
    "addr": _plus(_outer),
}
_REDUCTIONS = (
    "sum mean amax amin max min prod argmax argmin all any norm linalg_vector_norm cumsum cumprod logsumexp col2im"
).split()
_OWN_STATISTICS = "native_layer_norm native_group_norm _native_batch_norm_legit _batch_norm_with_update".split()
_ADAPTIVE = "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d".split()
_RULES: dict[str, Rule] = {
    **_PRODUCTS,
    "convolution_backward": _convolution_backward,
    "_deform_conv2d_backward": _deformable_backward,
    **dict.fromkeys(_REDUCTIONS, _per_element(1)),
    # A variance takes the first 4 of the 6 steps of a normalisation: mean 1, squared deviation 3.
    **dict.fromkeys(("var", "var_mean", "std", "std_mean"), _per_element(4)),
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _per_element(2),
    **dict.fromkeys(_OWN_STATISTICS, _per_element(6)),
    "_weight_norm_interface": _per_element(3),  # square, sum, quotient
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), _per_element(5)),
    "max_pool2d_with_indices": _pool(2),
    "max_pool3d_with_indices": _pool(3),
    "avg_pool2d": _pool(2),
    "avg_pool3d": _pool(3),
    **dict.fromkeys(_ADAPTIVE, _adaptive_pool),
    # Two products: with the mask, and with the scale 1 / (1 - p).
    "native_dropout": _per_element(2),
    "index_add": _added(3),
    "scatter_add": _added(3),
    "index_put": _index_put,
    "glu": lambda args, out: Cost(0, 2 * out.numel()),  # sigmoid and product
}
for _name, _taps in (("linear1d", 2), ("bilinear2d", 4), ("trilinear3d", 8), ("bicubic2d", 16)):
    _RULES |= {f"upsample_{_name}": _interpolation(_taps), f"_upsample_{_name}_aa": _interpolation(_taps)}
# Operators that count as element-wise whether or not torch tags them as pointwise.
_ELEMENTWISE = frozenset(
    "hardswish hardsigmoid hardtanh relu6 prelu _prelu_kernel celu rrelu rrelu_with_noise hardswish_backward "
    "hardsigmoid_backward hardtanh_backward leaky_relu_backward elu_backward softplus_backward mish_backward".split()
)
# Operators of the backward pass that are neither convolutions nor matrix products: no cost.
_BACKWARD = frozenset(
    "native_batch_norm_backward native_layer_norm_backward native_group_norm_backward _weight_norm_interface_backward "
    "_softmax_backward_data _log_softmax_backward_data max_pool2d_with_indices_backward glu_backward "
    "max_pool3d_with_indices_backward avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward "
    "_adaptive_avg_pool3d_backward adaptive_max_pool2d_backward adaptive_max_pool3d_backward native_dropout_backward "
    "embedding_dense_backward upsample_linear1d_backward upsample_bilinear2d_backward upsample_trilinear3d_backward "
    "upsample_bicubic2d_backward upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward "
    "_upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward _upsample_nearest_exact3d_backward "
    "_upsample_bilinear2d_aa_backward _upsample_bicubic2d_aa_backward _prelu_kernel_backward unfold_backward "
    "rrelu_with_noise_backward grid_sampler_2d_backward grid_sampler_3d_backward cumprod_backward".split()
)
_FREE = frozenset(
    "clone copy _to_copy contiguous fill zero empty empty_like empty_strided new_empty new_empty_strided new_zeros "
    "new_ones new_full zeros zeros_like ones ones_like full full_like scalar_tensor arange linspace eye detach "
    "lift_fresh _unsafe_view _reshape_alias view_as alias cat stack split_with_sizes unsafe_split "
    "unsafe_split_with_sizes unsafe_chunk roll flip repeat constant_pad_nd "
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
    "reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward "
    "replication_pad2d_backward replication_pad3d_backward index index_select gather scatter embedding "
    "select_backward slice_backward diagonal_backward as_strided pixel_shuffle pixel_unshuffle channel_shuffle im2col "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d where masked_fill tril triu "
    "bernoulli uniform normal rand randn rand_like randn_like randint randperm random exponential squeeze unsqueeze "
    "transpose t resize set unbind bitwise_and bitwise_or bitwise_not logical_and logical_or logical_not".split()
)
# Operators that are no views by their schema, and yet neither read nor write memory.
_MEMORY_ALONE = frozenset(
    "empty empty_like empty_strided new_empty new_empty_strided _unsafe_view _reshape_alias view_as resize set "
    "lift_fresh".split()
)
# A mean is among them because torch computes global average pooling as a mean.
_ACTIVATIONS = frozenset(
    "relu relu6 threshold leaky_relu prelu _prelu_kernel elu celu selu gelu silu mish softplus sigmoid tanh hardtanh "
    "hardswish hardsigmoid clamp clamp_min clamp_max rrelu rrelu_with_noise glu _softmax _safe_softmax _log_softmax "
    "mean".split()
)
