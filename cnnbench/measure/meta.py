"""Running a network without values: a copy on the meta device, and a mode that sees every operator.

The original is never run, so that it keeps its state, mode, hooks and gradients, and an expensive network costs no
memory. Shapes of operators that were seen before are taken from a table, since working them out is what is slow.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnnbench.measure import operators

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def meta_copy(model: nn.Module, device: str = "meta") -> tuple[nn.Module, list[str]]:
    """Copies the structure of a network without its values.

    Another device than the meta device makes sense under a `FakeTensorMode` only.

    Parameters that are shared stay shared, and frozen ones frozen. A compiled module is replaced by what it compiles.
    Hooks that are plain functions are left out, because they act on the outside; those that are objects, such as those
    of weight normalisation or pruning, belong to the network and are copied.

    Returns:
        The copy on the meta device, and the names of the hooks that were left out.
    """
    copier = _Copier(device)
    for tensor in (*model.parameters(), *model.buffers()):  # before a module copies them in its own way
        copier.copy(tensor)
    duplicate = copier.copy(model)
    return duplicate, _without_functions(duplicate)


class _Copier:
    """A deep copy in which tensors have no values."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.memo: dict[int, Any] = {}  # identities to copies, as `copy.deepcopy` has it

    def copy(self, value: Any) -> Any:
        if value is None or isinstance(value, _ATOMS):
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        kind: Any = type(value)
        made: Any
        if isinstance(value, Tensor):
            made = self.memo[id(value)] = self.empty(value)
        elif isinstance(value, nn.Module) and not hasattr(kind, "__deepcopy__"):
            made = self.module(value)
        elif kind in (dict, OrderedDict):
            made = self.memo[id(value)] = kind()
            for key, item in value.items():
                made[self.copy(key)] = self.copy(item)
        elif kind is list:
            made = self.memo[id(value)] = []
            made.extend(self.copy(item) for item in value)
        elif kind is tuple:
            made = tuple(self.copy(item) for item in value)
        else:
            made = copy.deepcopy(value, self.memo)
        return made

    def empty(self, tensor: Tensor) -> Tensor:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(made, tensor.requires_grad)
        return made.requires_grad_(tensor.requires_grad and tensor.is_leaf)

    def module(self, module: nn.Module) -> nn.Module:
        compiled = module.__dict__.get("_modules", {}).get("_orig_mod")
        if compiled is not None:
            made = self.memo[id(module)] = self.copy(compiled)
            return made
        made = self.memo[id(module)] = module.__class__.__new__(module.__class__)
        made.__setstate__({key: self.copy(value) for key, value in module.__getstate__().items()})
        return made


_ATOMS = (bool, int, float, str, type, types.FunctionType, types.BuiltinFunctionType, torch.dtype, torch.device)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of nested lists, tuples and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def _without_functions(model: nn.Module) -> list[str]:
    """Removes the hooks that are plain functions; returns their names."""
    removed = []
    for name, module in model.named_modules():
        for kind in _HOOKS:
            hooks = getattr(module, kind)
            for key, hook in list(hooks.items()):
                function = hook.func if isinstance(hook, functools.partial) else hook
                if isinstance(function, (types.FunctionType, types.BuiltinFunctionType)) or "backward" in kind:
                    del hooks[key]
                    removed.append(f"{kind.strip('_').removesuffix('s')} of {name or 'the network'}")
    return removed


@contextlib.contextmanager
def building_on_meta() -> Iterator[None]:
    """Parameters that modules get inside are on the meta device, so that building a network allocates none.

    Unlike `torch.device("meta")` it leaves all other tensors alone: constructors may compute with values.
    """
    register = nn.Module.register_parameter
    made: weakref.WeakKeyDictionary[Tensor, nn.Parameter] = torch.utils.weak.WeakIdKeyDictionary()  # type: ignore[assignment]

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            if param not in made:
                made[param] = nn.Parameter(torch.empty_like(param, device="meta"), param.requires_grad)
            param = made[param]
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextlib.contextmanager
def untouched_randomness() -> Iterator[None]:
    """Restores Python's and torch's generators of the CPU, which a forward pass may use."""
    states = random.getstate(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        torch.set_rng_state(states[1])


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Compiled functions inside run as they were written, and keep what was compiled."""
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


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
        out = self._result(func, args, kwargs or {})
        self._listener(func, args, out)
        return out

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind(func)
        if kind == "run":
            return func(*args, **kwargs)
        if kind == "batch norm":
            return _batch_norm_result(func, args)
        if kind == "addmm" and args[1].shape[1] == args[2].shape[0]:
            return torch.empty(args[1].shape[0], args[2].shape[1], dtype=args[1].dtype, device="meta")
        if kind.startswith("element") and (like := _common_specification(args)):
            return args[0] if kind == "element in place" else _from_specification(like)
        try:
            key = (func, _signature(args), _signature(tuple(kwargs.items())))
            known = self._results.get(key)
        except (TypeError, _NotMetaError):
            return func(*args, **kwargs)
        if known is None:
            out = func(*args, **kwargs)
            with contextlib.suppress(_NotMetaError):
                self._results[key] = _specification(out)
            return out
        return args[0] if kind == "element in place" else _from_specification(known)


class _NotMetaError(Exception):
    """A tensor with values is among the arguments."""


def _kind(func: Any) -> str:
    """How the result of an operator can be had: by running it, from a table by shapes, or by what is known of it."""
    name = operators.base_name(func)
    schema = func._schema
    if func.namespace != "aten" or {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags):
        return "run"
    if name in ("native_batch_norm", "native_batch_norm_backward"):
        return "batch norm"
    if name == "addmm":
        return name
    elementwise = operators.is_elementwise(func) and name not in _COMPARISONS
    if not any(a.alias_info for a in (*schema.arguments, *schema.returns)):
        return "element" if elementwise else "table"
    writes = [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments]
    in_place = writes[:1] == [True] and sum(writes) == 1 and len(schema.returns) == 1
    return "element in place" if in_place and elementwise else "run"


_COMPARISONS = frozenset(
    "eq ne lt le gt ge isnan isinf isfinite logical_not logical_and logical_or clone where".split()
)


def _common_specification(args: Any) -> Any:
    """Shape, strides and type of the tensors, if they are all the same, dense and of floating point."""
    found = None
    for value in args:
        if isinstance(value, Tensor):
            if not value.is_meta or not value.is_floating_point():
                return None
            here = (value.shape, value.stride(), value.dtype)
            if found is None:
                if not (value.is_contiguous() or value.is_contiguous(memory_format=_memory_format(value))):
                    return None
                found = here
            elif here != found:
                return None
        elif isinstance(value, (complex, list, tuple)):
            return None
    return found


def _memory_format(x: Tensor) -> torch.memory_format:
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)


def _batch_norm_result(func: Any, args: Any) -> tuple[Tensor | None, ...]:
    """Shapes of batch norm and its gradient, which torch works out by taking the operator apart."""
    backward = operators.base_name(func) == "native_batch_norm_backward"
    x = args[1] if backward else args[0]
    like_x = (x.shape, x.stride(), x.dtype)
    per_channel = ((x.shape[1],), (1,), torch.float32)
    wanted = args[9] if backward else (True, True, True)
    known = (like_x, per_channel, per_channel)
    return _from_specification([spec if want else None for spec, want in zip(known, wanted, strict=True)])


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
