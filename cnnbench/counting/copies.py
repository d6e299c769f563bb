"""A network without its values, and leaving no trace: what counting does before and around a run.

The original is never run, so that it keeps its state, mode, hooks and gradients, and an expensive network costs no
memory.
"""

from __future__ import annotations

import contextlib
import copy
import random
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cnnbench.errors import Stopped, UserError

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


def meta_copy(model: nn.Module, device: str = "meta") -> tuple[nn.Module, list[str]]:
    """Copies the structure of a network without its values.

    Parameters that are shared stay shared, and frozen ones frozen. A compiled module or method is replaced by what it
    compiles. Functions that hold on to a part of the network get the copy of that part. Hooks are left out, because
    they may act on the outside, but for torch's own, such as those of weight normalisation or pruning. Another device
    than the meta device makes sense under a `FakeTensorMode` only.

    Returns:
        The copy, and the names of what it lacks or shares: hooks that were left out, and objects that cannot be copied.

    Raises:
        UserError: The network is scripted, or has parameters that have no shape yet.
    """
    copier = _Copier(device)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{name or 'the network'} is a scripted module; give the module that it was made from")
    for tensor in (*model.parameters(), *model.buffers()):  # before a module copies them in its own way
        if torch.nn.parameter.is_lazy(tensor):
            raise UserError(
                f"{type(model).__name__} has lazy layers, whose sizes are not known before they run; give their sizes, "
                "as in nn.Conv2d(3, 8, 3) for nn.LazyConv2d(8, 3), or let what makes the network run it on an image"
            )
        copier.copy(tensor)
    duplicate = copier.copy(model)
    return duplicate, _without_hooks(duplicate) + copier.shared


class _Copier:
    """A deep copy in which tensors have no values."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.memo: dict[int, Any] = {}  # identities to copies, as `copy.deepcopy` has it
        self.alive: list[Any] = []  # so that no identity is used again
        self.shared: list[str] = []

    def copy(self, value: Any) -> Any:
        if value is None or isinstance(value, _ATOMS):
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        self.alive.append(value)
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
        elif kind is types.MethodType:
            made = types.MethodType(value.__func__, self.copy(value.__self__))
        elif kind is weakref.ref and isinstance(value(), (nn.Module, Tensor)):
            made = weakref.ref(self.copy(value()))
        elif kind is types.FunctionType:
            made = self.memo[id(value)] = self.function(value)
        else:
            made = self.other(value)
        return made

    def empty(self, tensor: Tensor) -> Tensor:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, tensor.requires_grad)
            made.__dict__.update(tensor.__dict__)
            return made
        return made.requires_grad_(tensor.requires_grad and tensor.is_leaf)

    def module(self, module: nn.Module) -> nn.Module:
        compiled = module.__dict__.get("_modules", {}).get("_orig_mod")
        if compiled is not None:
            made = self.memo[id(module)] = self.copy(compiled)
            return made
        made = self.memo[id(module)] = module.__class__.__new__(module.__class__)
        made.__setstate__({key: self.copy(value) for key, value in module.__getstate__().items()})
        return made

    def function(self, function: types.FunctionType) -> Any:
        """A function with the copies of what it holds on to; most hold on to nothing and stay."""
        compiled = getattr(function, "_torchdynamo_orig_callable", None)
        if compiled is not None:
            return self.copy(compiled)
        self.memo[id(function)] = function
        cells = []
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # of an empty cell
                held = cell.cell_contents
                owner = held.__self__ if isinstance(held, types.MethodType) else held
                if isinstance(owner, (Tensor, nn.Module, types.FunctionType)) and self.copy(held) is not held:
                    cell = types.CellType(self.copy(held))
            cells.append(cell)
        if all(new is old for new, old in zip(cells, function.__closure__ or (), strict=True)):
            return function
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
        )
        made.__kwdefaults__ = function.__kwdefaults__
        return made

    def other(self, value: Any) -> Any:
        """Whatever else a module may hold; what cannot be copied, such as a lock or a file, is shared."""
        try:
            return copy.deepcopy(value, self.memo)
        except Exception:
            self.memo[id(value)] = value
            self.shared.append(
                f"what a {type(value).__name__} of the network does, which cannot be copied and is shared"
            )
            return value


_ATOMS = (bool, int, float, str, type, types.BuiltinFunctionType, types.ModuleType, torch.dtype, torch.device)


def _without_hooks(model: nn.Module) -> list[str]:
    """Removes hooks that are not torch's own; returns their names."""
    removed = []
    for name, module in model.named_modules():
        for kind in _HOOKS:
            hooks = getattr(module, kind)
            for key, hook in list(hooks.items()):
                if "backward" in kind or not type(hook).__module__.startswith("torch.nn.utils"):
                    del hooks[key]
                    removed.append(f"{kind.strip('_').removesuffix('s')} of {name or 'the network'}")
    return removed


@contextlib.contextmanager
def without_global_hooks() -> Iterator[list[str]]:
    """Hooks that are registered for all modules do not see those that run inside; gives the names of such hooks."""
    owner = torch.nn.modules.module
    kept = {name: dict(getattr(owner, name)) for name in _GLOBAL_HOOKS}
    for name in _GLOBAL_HOOKS:
        getattr(owner, name).clear()
    try:
        yield [f"{name.strip('_').removesuffix('s').replace('_', ' ')} of all modules" for name, h in kept.items() if h]
    finally:
        for name, hooks in kept.items():
            getattr(owner, name).update(hooks)


@contextlib.contextmanager
def building_on_meta() -> Iterator[None]:
    """Parameters that modules register inside are on the meta device: the memory of their weights is never touched.

    Unlike `torch.device("meta")` it leaves all other tensors alone: constructors may compute with values.
    """
    register = nn.Module.register_parameter
    made: Any = torch.utils.weak.WeakIdKeyDictionary()

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if isinstance(param, nn.Parameter) and not param.is_meta and not torch.nn.parameter.is_lazy(param):
            if param not in made:
                made[param] = nn.Parameter(torch.empty_like(param, device="meta"), param.requires_grad)
                made[param].__dict__.update(param.__dict__)
            param = made[param]
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def build_without_values(build: Callable[[], nn.Module]) -> tuple[nn.Module, bool]:
    """Builds a network on the meta device, or with values if its constructor computes with its own parameters.

    Returns:
        The network, and whether it has no values.
    """
    try:
        with building_on_meta():
            return build(), True
    except Stopped:
        raise
    except BaseException:  # tried again: an error that is not due to the meta device comes up there too
        return build(), False


@contextlib.contextmanager
def untouched_randomness() -> Iterator[Callable[[], bool]]:
    """The CPU's generators of Python, NumPy and torch start from a fixed state inside, and are put back.

    Yields:
        A function that says whether something has drawn from one of them since the start.
    """
    numpy = sys.modules.get("numpy")
    states = random.getstate(), torch.get_rng_state(), numpy.random.get_state() if numpy else None
    random.seed(0)
    torch.default_generator.manual_seed(0)
    start = random.getstate(), torch.get_rng_state()
    drawn_by_numpy = numpy.random.get_state()[1:3] if numpy else ()

    def have_drawn() -> bool:
        if random.getstate() != start[0] or not torch.equal(torch.get_rng_state(), start[1]):
            return True
        now = numpy.random.get_state()[1:3] if numpy else ()
        return any(not numpy.array_equal(a, b) for a, b in zip(now, drawn_by_numpy, strict=True)) if numpy else False

    try:
        yield have_drawn
    finally:
        random.setstate(states[0])
        torch.set_rng_state(states[1])
        if numpy:
            numpy.random.set_state(states[2])


def unregistered_modules(model: nn.Module) -> list[str]:
    """Return where a network keeps layers that it does not know of, such as ``layers[0]`` in a plain list.

    Their weights are not among its parameters: no optimizer trains them, and no checkpoint has them.
    """
    known = set(model.modules())
    found = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key.startswith("_"):
                continue
            for place, part in _parts_of(value, f"{name}.{key}" if name else key):
                if part not in known:
                    known.add(part)
                    found.append(f"{place} ({type(part).__name__})")
    return found


def _parts_of(value: Any, place: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules in lists, tuples, sets and dicts, with their places."""
    if isinstance(value, nn.Module):
        yield place, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _parts_of(part, f"{place}[{key!r}]")
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, part in enumerate(value):
            yield from _parts_of(part, f"{place}[{index}]")


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Compiled functions inside run as they were written, and keep what was compiled."""
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield
