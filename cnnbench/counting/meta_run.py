"""Dispatch mode that runs operators on the meta device and shows each call to a listener.

The slow part of such a run is that torch works out the shape of every result. So the shapes of a call are stored by
operator and argument shapes, and the next equal call takes them from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnnbench.counting import operators


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors of nested sequences, mappings, sets and data classes, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in(list(vars(value).values()))


class MetaRun(TorchDispatchMode):
    """Dispatch mode that runs operators on meta tensors and shows each call to a listener.

    Args:
        listener: Function that is called with the operator, its positional and keyword arguments and its result.
    """

    def __init__(self, listener: Callable[[Any, Any, Any, Any], None]) -> None:
        super().__init__()
        self._listener = listener
        self._results: dict[Any, Any] = {}
        self._kinds: dict[Any, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind(func)
        if kind == "composite":  # torch itself decomposes most calls, but not in inference mode
            # Torch switches the mode off while it handles a call; switched on again, it sees each of the parts.
            with self:
                return func.decompose(*args, **kwargs)
        out = self._result(kind, func, args, kwargs)
        self._listener(func, args, kwargs, out)
        return out

    def _result(self, kind: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of an operator, worked out in the way of its kind; see `_kind`."""
        if kind == "run":
            return func(*args, **kwargs)
        if kind == "addmm" and _is_plain_addmm(args):
            # The bias plus (n, k) times (k, m) is (n, m).
            return torch.empty(args[1].shape[0], args[2].shape[1], dtype=args[1].dtype, device="meta")
        known = None
        if kind == "batch norm":
            known = _batch_norm_specification(func, args)
        elif kind.startswith("element"):
            known = _common_specification(args)
        if known is None:
            return self._stored_result(kind, func, args, kwargs)
        # An operator in place returns its first argument itself.
        return args[0] if kind == "element in place" else _from_specification(known)

    def _stored_result(self, kind: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result from the shapes that are stored for such a call; run the operator if there are none."""
        # The mode does not store a call with values among its tensors, or with arguments that cannot be hashed.
        try:
            key = (func, _signature(args), _signature(tuple(kwargs.items())))
            known = self._results.get(key)
        except _NotMetaError:
            return func(*_all_on_meta(args), **kwargs)
        except TypeError:
            return func(*args, **kwargs)
        if known is None:
            out = func(*args, **kwargs)
            with contextlib.suppress(_NotMetaError):
                self._results[key] = _specification(out)
            return out
        return args[0] if kind == "element in place" else _from_specification(known)


class _NotMetaError(Exception):
    """Signal that a tensor with values is among the arguments or results."""


def _all_on_meta(args: Any) -> Any:
    """Return the arguments with tensors on the CPU moved to the meta device, if other tensors are there already.

    A forward pass may create tensors on the CPU, which is the right device when the network itself is on the CPU.
    Zero-dimensional tensors stay, since torch accepts them beside tensors of another device. If no argument is on the
    meta device, all arguments stay.

    Raises:
        RuntimeError: A tensor to move is a parameter, which then is not among the parameters of the network.
    """
    tensors = list(tensors_in(args))
    if any(t.is_meta for t in tensors) and any(not t.is_meta and t.dim() for t in tensors):
        return _moved_to_meta(args)
    return args


def _moved_to_meta(value: Any) -> Any:
    """Return a value with all of its tensors on the meta device, except zero-dimensional ones; see `_all_on_meta`."""
    if isinstance(value, Tensor) and not value.is_meta and value.dim():
        if isinstance(value, nn.Parameter):
            raise RuntimeError("a parameter that the network does not list takes part")
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, (list, tuple)):
        return type(value)(_moved_to_meta(item) for item in value)
    return value


def _kind(func: Any) -> str:
    """Return how to obtain the result of an operator.

    ``run``: by running the operator. ``table``: from the stored results, by argument shapes. ``element``, ``element in
    place``, ``batch norm`` and ``addmm``: from a known rule for the shape, else like ``table``. ``composite``: by
    running the operators of which it consists.
    """
    name = operators.base_name(func)
    # Always run: operators of other libraries, and those whose tags say that the result depends on values.
    if func.namespace != "aten" or {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags):
        return "run"
    # Torch defines such an operator by others. Without a rule of its own, it costs what these cost.
    if operators.rule_of(func) is None and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
    ):
        return "composite"
    if name in ("native_batch_norm", "native_batch_norm_backward"):
        return "batch norm"
    if name == "addmm":
        return name
    elementwise = operators.is_elementwise(func) and name not in _OTHER_TYPE
    schema = func._schema
    if not any(a.alias_info for a in (*schema.arguments, *schema.returns)):
        return "element" if elementwise else "table"
    # The operator writes to an argument or returns a view of it, so new tensors of the stored shapes would not do.
    if elementwise and _is_in_place(schema):
        return "element in place"
    return "run"


def _is_in_place(schema: Any) -> bool:
    """Return whether an operator writes to its first argument alone and returns nothing but that."""
    writes = [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments]
    return writes[:1] == [True] and sum(writes) == 1 and len(schema.returns) == 1


# Element-wise operators whose result may have another type or layout than their arguments.
_OTHER_TYPE = frozenset(
    "eq ne lt le gt ge isnan isinf isfinite isneginf isposinf signbit logical_not logical_and logical_or logical_xor "
    "clone where _to_copy polar complex".split()
)


def _is_plain_addmm(args: Any) -> bool:
    """Return whether an addmm of tensors on the meta device has the usual types and shapes, so that it need not run."""
    bias, a, b = args[:3]
    # A product of tensors with values has to run, since its values may be read later.
    if not (bias.is_meta and a.is_meta and b.is_meta):
        return False
    same_type = bias.dtype == a.dtype == b.dtype
    return same_type and a.shape[1] == b.shape[0] and bias.shape in ((b.shape[1],), (a.shape[0], b.shape[1]))


def _common_specification(args: Any) -> Any:
    """Return the shape, strides and type that all tensors share.

    Returns:
        None if they differ, or if a tensor is not dense, not of floating point or not on the meta device.
    """
    common = None
    for value in args:
        # A complex number turns real tensors into complex ones, and a list may hold more tensors.
        if isinstance(value, (complex, list, tuple)):
            return None
        if not isinstance(value, Tensor):
            continue
        if not value.is_meta or not value.is_floating_point():
            return None
        specification = (value.shape, value.stride(), value.dtype)
        if common is None:
            if not _is_dense(value):
                return None
            common = specification
        elif specification != common:
            return None
    return common


def _is_dense(x: Tensor) -> bool:
    """Return whether a tensor is contiguous in a memory format of torch, so that a result keeps its strides."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return x.is_contiguous() or (channels_last is not None and x.is_contiguous(memory_format=channels_last))


def _batch_norm_specification(func: Any, args: Any) -> Any:
    """Return the shapes of the results of batch norm or of its gradients, which torch works out slowly.

    Returns:
        A list with shape, strides and type of each result, or with None for a gradient that is not wanted; None if the
        input is not dense, not float32 or not on the meta device.
    """
    if operators.base_name(func) == "native_batch_norm_backward":
        # These are the input and the output mask in the schema of native_batch_norm_backward.
        x, wanted = args[1], args[9]
    else:
        x, wanted = args[0], (True, True, True)
    if not x.is_meta or not _is_dense(x) or x.dtype != torch.float32:
        return None
    per_channel = ((x.shape[1],), (1,), x.dtype)
    # Forward, these are the result, the mean and the inverse of the standard deviation; backward, the gradients of the
    # input, the scale and the shift.
    known = ((x.shape, x.stride(), x.dtype), per_channel, per_channel)
    return [spec if want else None for spec, want in zip(known, wanted, strict=True)]


def _signature(value: Any) -> Any:
    """Return a hashable key for arguments: tensors by shape, strides and type, other values by class and value."""
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _NotMetaError
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    # The class is part of the key, since 1, 1.0 and True are equal and have the same hash.
    return (value.__class__, value)


def _specification(out: Any) -> Any:
    """Return shape, strides and type of each tensor in a result."""
    if isinstance(out, Tensor):
        if not out.is_meta:
            raise _NotMetaError
        return (tuple(out.shape), out.stride(), out.dtype)
    if isinstance(out, (list, tuple)):
        return [_specification(item) for item in out]
    return None


def _from_specification(known: Any) -> Any:
    """Return new meta tensors of these shapes, strides and types."""
    if isinstance(known, list):
        return tuple(_from_specification(item) for item in known)
    if known is None:
        return None
    return torch.empty_strided(known[0], known[1], dtype=known[2], device="meta")
