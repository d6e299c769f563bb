"""Running operators without values: a mode on the meta device that shows every operator to a listener.

Shapes of operators that were seen before are taken from a table, since working them out is what is slow.
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
    """All tensors of nested sequences, mappings, sets and data classes, in order."""
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
    """Runs operators on meta tensors and shows each call to a listener.

    Args:
        listener: Called with operator, arguments and result.
    """

    def __init__(self, listener: Callable[[Any, Any, Any], None]) -> None:
        super().__init__()
        self._listener = listener
        self._results: dict[Any, Any] = {}
        self._kinds: dict[Any, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind(func)
        if kind == "composite":  # arrives only where torch does not take it apart, such as in inference mode
            with self:
                return func.decompose(*args, **kwargs)
        out = self._result(kind, func, args, kwargs)
        self._listener(func, args, out)
        return out

    def _result(self, kind: str, func: Any, args: Any, kwargs: Any) -> Any:
        if kind == "run":
            return func(*args, **kwargs)
        if kind == "batch norm" and (known := _batch_norm_specification(func, args)):
            return _from_specification(known)
        if kind == "addmm" and _is_plain_addmm(args):
            return torch.empty(args[1].shape[0], args[2].shape[1], dtype=args[1].dtype, device="meta")
        if kind.startswith("element") and (like := _common_specification(args)):
            return args[0] if kind == "element in place" else _from_specification(like)
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
    """A tensor with values is among the arguments."""


def _all_on_meta(args: Any) -> Any:
    """The arguments, with tensors that forward made on the CPU beside those on the meta device moved there.

    On the CPU they would be in the right place. Numbers may stay, and so may all if none is on the meta device.
    """
    tensors = list(tensors_in(args))
    if not any(t.is_meta for t in tensors) or not any(not t.is_meta and t.dim() for t in tensors):
        return args

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor) and not value.is_meta and value.dim():
            if isinstance(value, nn.Parameter):
                raise RuntimeError("a parameter that the network does not list takes part")
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return type(value)(moved(v) for v in value) if isinstance(value, (list, tuple)) else value

    return moved(args)


def _kind(func: Any) -> str:
    """How the result of an operator can be had: by running it, from a table by shapes, or by what is known of it."""
    name = operators.base_name(func)
    if func.namespace != "aten" or {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags):
        return "run"
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
    writes = [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments]
    in_place = writes[:1] == [True] and sum(writes) == 1 and len(schema.returns) == 1
    return "element in place" if in_place and elementwise else "run"


# Element-wise operators whose result may have another type or layout than their arguments.
_OTHER_TYPE = frozenset(
    "eq ne lt le gt ge isnan isinf isfinite isneginf isposinf signbit logical_not logical_and logical_or logical_xor "
    "clone where _to_copy polar complex".split()
)


def _is_plain_addmm(args: Any) -> bool:
    bias, a, b = args[:3]
    same_type = bias.dtype == a.dtype == b.dtype
    return same_type and a.shape[1] == b.shape[0] and bias.shape in ((b.shape[1],), (a.shape[0], b.shape[1]))


def _common_specification(args: Any) -> Any:
    """Shape, strides and type of the tensors, if they are all the same, dense and of floating point."""
    found = None
    for value in args:
        if isinstance(value, Tensor):
            if not value.is_meta or not value.is_floating_point():
                return None
            here = (value.shape, value.stride(), value.dtype)
            if found is None:
                if not _is_dense(value):
                    return None
                found = here
            elif here != found:
                return None
        elif isinstance(value, (complex, list, tuple)):
            return None
    return found


def _is_dense(x: Tensor) -> bool:
    """Whether it is contiguous in one of torch's memory formats, so that a result of its shape has its strides."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return x.is_contiguous() or (channels_last is not None and x.is_contiguous(memory_format=channels_last))


def _batch_norm_specification(func: Any, args: Any) -> Any:
    """Shapes of batch norm and its gradient, which torch works out slowly; None for an input that is not dense."""
    backward = operators.base_name(func) == "native_batch_norm_backward"
    x = args[1] if backward else args[0]
    if not x.is_meta or not _is_dense(x) or x.dtype != torch.float32:
        return None
    per_channel = ((x.shape[1],), (1,), x.dtype)
    wanted = args[9] if backward else (True, True, True)
    known = ((x.shape, x.stride(), x.dtype), per_channel, per_channel)
    return [spec if want else None for spec, want in zip(known, wanted, strict=True)]


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _NotMetaError
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    return (value.__class__, value)


def _specification(out: Any) -> Any:
    if isinstance(out, Tensor):
        if not out.is_meta:
            raise _NotMetaError
        return (tuple(out.shape), out.stride(), out.dtype)
    if isinstance(out, (list, tuple)):
        return [_specification(item) for item in out]
    return None


def _from_specification(known: Any) -> Any:
    if isinstance(known, list):
        return tuple(_from_specification(item) for item in known)
    if known is None:
        return None
    return torch.empty_strided(known[0], known[1], dtype=known[2], device="meta")
