"""Copies of networks without their values, and contexts in which a run of a copy has no side effects.

Counting never runs the original network. So the original keeps its state, mode, hooks and gradients, and the count of a
large network needs no memory for its weights.
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
    """Copy the structure of a network without its values.

    Shared parameters stay shared, and frozen ones stay frozen. A compiled module or method is replaced by the original
    that was compiled. A function that holds a part of the network, such as a closure, gets the copy of that part. Hooks
    are left out, because they may act on objects outside the network; forward hooks of ``torch.nn.utils``, such as
    those of weight normalisation and pruning, are kept.

    Args:
        model: Network to copy.
        device: Device of the copied tensors. Any other device than ``meta`` makes sense inside a `FakeTensorMode` only.

    Returns:
        The copy, and a list of its differences: hooks that were left out, and objects that cannot be copied and are
        shared with the original.

    Raises:
        UserError: The network is scripted, or has parameters that have no shape yet.
    """
    copier = _Copier(device)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{name or 'the network'} is a scripted module; give the module that it was made from")
    # Tensors are copied first, so that a module with its own `__deepcopy__` gets these copies from the memo.
    for tensor in (*model.parameters(), *model.buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise UserError(
                f"{type(model).__name__} has lazy layers, whose sizes are not known before they run; give their sizes, "
                "as in nn.Conv2d(3, 8, 3) for nn.LazyConv2d(8, 3), or let what makes the network run it on an image"
            )
        copier.copy(tensor)
    duplicate = copier.copy(model)
    return duplicate, _without_hooks(duplicate) + copier.shared


class _Copier:
    """Deep copier that replaces every tensor by one without values.

    Args:
        device: Device of the new tensors.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.memo: dict[int, Any] = {}  # copies by identity of the original, as in `copy.deepcopy`
        self.alive: list[Any] = []  # originals, kept alive so that no identity is used twice
        self.shared: list[str] = []

    def copy(self, value: Any) -> Any:
        """Return a copy of a value; parts of a network that are shared stay shared in the copy."""
        if value is None or isinstance(value, _ATOMS):
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        self.alive.append(value)
        kind: Any = type(value)
        if isinstance(value, Tensor):
            made = self.memo[id(value)] = self.empty(value)
            return made
        if isinstance(value, nn.Module) and not hasattr(kind, "__deepcopy__"):
            return self.module(value)
        # Exact types only: a subclass may hold more than its items.
        if kind in (dict, OrderedDict, list, tuple):
            return self.container(value)
        # A bound method, or a weak reference to a part of the network, leads to the copy of that part.
        if kind is types.MethodType:
            return types.MethodType(value.__func__, self.copy(value.__self__))
        if kind is weakref.ref and isinstance(value(), (nn.Module, Tensor)):
            return weakref.ref(self.copy(value()))
        if kind is types.FunctionType:
            self.memo[id(value)] = self.function(value)
            return self.memo[id(value)]
        return self.other(value)

    def container(self, value: Any) -> Any:
        """Return a dictionary, list or tuple of the copies of its items."""
        if isinstance(value, tuple):
            return tuple(self.copy(item) for item in value)
        # The copy is in the memo before its items are copied, since an item may refer back to the container.
        made = self.memo[id(value)] = type(value)()
        if isinstance(value, list):
            made.extend(self.copy(item) for item in value)
        else:
            for key, item in value.items():
                made[self.copy(key)] = self.copy(item)
        return made

    def empty(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the same shape, strides and type, which is a parameter if the original is one."""
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, tensor.requires_grad)
            made.__dict__.update(tensor.__dict__)
            return made
        return made.requires_grad_(tensor.requires_grad and tensor.is_leaf)

    def module(self, module: nn.Module) -> nn.Module:
        """Return the copy of a module; of a compiled module, the copy of the module that was compiled."""
        # A compiled module keeps the original under this name.
        compiled = module.__dict__.get("_modules", {}).get("_orig_mod")
        if compiled is not None:
            made = self.memo[id(module)] = self.copy(compiled)
            return made
        # The constructor is not called. The copy is in the memo before its parts, which may refer back to it.
        made = self.memo[id(module)] = module.__class__.__new__(module.__class__)
        made.__setstate__({key: self.copy(value) for key, value in module.__getstate__().items()})
        return made

    def function(self, function: types.FunctionType) -> Any:
        """Return a function that holds copies of parts of the network, or the function itself if it holds none."""
        compiled = getattr(function, "_torchdynamo_orig_callable", None)
        if compiled is not None:
            return self.copy(compiled)
        # A function may refer to itself through a cell; this entry ends the recursion.
        self.memo[id(function)] = function
        # A closure keeps each outer variable in a cell; a cell that holds a part of the network is replaced.
        cells = []
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell has no contents
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
        """Return a deep copy of any other object; if it cannot be copied, such as a lock or a file, share it."""
        if _is_plain(value):
            # `deepcopy` would do the same, but it would copy the values of the tensors that the object has.
            made = self.memo[id(value)] = object.__new__(type(value))
            made.__dict__.update(self.copy(value.__dict__))
            return made
        try:
            return copy.deepcopy(value, self.memo)
        except Exception:
            self.memo[id(value)] = value
            self.shared.append(
                f"what a {type(value).__name__} of the network does, which cannot be copied and is shared"
            )
            return value


def _is_plain(value: Any) -> bool:
    """Return whether an object consists of its attributes alone, and does not say itself how it is copied."""
    kind: Any = type(value)
    own = any(hasattr(kind, name) for name in ("__deepcopy__", "__slots__", "__setstate__", "__getnewargs__"))
    # Each of these may be a class's own way to be copied or made.
    usual = all(getattr(kind, name) is getattr(object, name) for name in ("__reduce_ex__", "__reduce__", "__new__"))
    return hasattr(value, "__dict__") and not own and usual


_ATOMS = (bool, int, float, str, type, types.BuiltinFunctionType, types.ModuleType, torch.dtype, torch.device)
"""Types of values that a copy shares with the original."""


def _without_hooks(model: nn.Module) -> list[str]:
    """Remove all hooks except forward hooks of ``torch.nn.utils`` and return the names of those removed."""
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
    """Disable hooks that are registered for all modules while the context is open.

    Yields:
        The names of the disabled hooks.
    """
    owner = torch.nn.modules.module
    kept: dict[str, dict[int, Any]] = {}
    disabled = []
    for name in _GLOBAL_HOOKS:
        hooks = getattr(owner, name)
        kept[name] = dict(hooks)
        hooks.clear()
        if kept[name]:
            disabled.append(f"{name.strip('_').removesuffix('s').replace('_', ' ')} of all modules")
    try:
        yield disabled
    finally:
        for name in _GLOBAL_HOOKS:
            getattr(owner, name).update(kept[name])


@contextlib.contextmanager
def building_on_meta() -> Iterator[None]:
    """Put every parameter that a module registers inside the context on the meta device.

    Layers of torch initialise a weight after they have registered it, so the memory that they allocated for it is never
    touched. All other tensors stay where they are, unlike inside ``torch.device("meta")``, because a constructor may
    compute with their values.
    """
    register = nn.Module.register_parameter
    # One new parameter for each old one, so that parameters shared between modules stay shared.
    made: Any = torch.utils.weak.WeakIdKeyDictionary()

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # A lazy parameter has no shape yet and stays as it is; `meta_copy` refuses it with a message of its own.
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
    """Build a network on the meta device, or with values if its constructor computes with its own parameters.

    Args:
        build: Function that builds the network.

    Returns:
        The network, and whether it was built without values.
    """
    try:
        with building_on_meta():
            return build(), True
    except Stopped:
        raise
    except BaseException:  # an error that is not due to the meta device is raised again by the second attempt
        return build(), False


@contextlib.contextmanager
def untouched_randomness() -> Iterator[Callable[[], bool]]:
    """Seed the CPU generators of Python, torch and NumPy, and restore them afterwards.

    Yields:
        A function that returns whether any of the three generators has been used since the start.
    """
    numpy = sys.modules.get("numpy")
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    numpy_state: Any = None
    numpy_start: Any = None
    # With a fixed seed, the random choices of a network are the same in every pass.
    random.seed(0)
    # `torch.manual_seed` would seed the GPUs as well, whose states are not restored here.
    torch.default_generator.manual_seed(0)
    if numpy:
        numpy_state = numpy.random.get_state()
        numpy.random.seed(0)
        # The second and third entry of NumPy's state are the generator's words and its position in them.
        numpy_start = numpy.random.get_state()[1:3]
    python_start, torch_start = random.getstate(), torch.get_rng_state()

    def have_drawn() -> bool:
        if random.getstate() != python_start or not torch.equal(torch.get_rng_state(), torch_start):
            return True
        if not numpy:
            return False
        words, position = numpy.random.get_state()[1:3]
        return position != numpy_start[1] or not numpy.array_equal(words, numpy_start[0])

    try:
        yield have_drawn
    finally:
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
        if numpy:
            numpy.random.set_state(numpy_state)


def unregistered_modules(model: nn.Module) -> list[str]:
    """Return where a network keeps layers that are not registered, such as ``layers[0]`` in a plain list.

    The weights of such layers are not among the parameters of the network: no optimizer trains them, and no checkpoint
    saves them.
    """
    known = set(model.modules())
    places = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            # Torch keeps its own tables, such as `_modules`, under names with an underscore.
            if key.startswith("_"):
                continue
            for place, part in _parts_of(value, f"{name}.{key}" if name else key, set()):
                # A layer in several places is listed once.
                if part not in known:
                    known.add(part)
                    places.append(f"{place} ({type(part).__name__})")
    return places


def _parts_of(value: Any, place: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in nested lists, tuples, sets and dictionaries, each with its place.

    Args:
        value: Value that may be such a container.
        place: Where the value is, such as ``layers``.
        seen: Results of ``id`` for the containers that were entered, since a container may hold itself.
    """
    if isinstance(value, nn.Module):
        yield place, value
        return
    if not isinstance(value, (dict, list, tuple, set, frozenset)) or id(value) in seen:
        return
    seen.add(id(value))
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        yield from _parts_of(part, f"{place}[{key!r}]", seen)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run compiled functions inside the context as plain Python, and keep their compiled code for later."""
    # If the compiler was never imported, nothing is compiled, and setting the stance would import it.
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield
