"""The part of an image that a unit can see, followed through the operators of a network as they run.

Along each axis of the image the first unit sees an interval, and each next unit one that lies a jump further: a window
of k elements with dilation d, stride s and padding p makes the interval d*(k - 1) jumps longer, lets it begin p jumps
earlier, and makes the jump s times as long (Araujo, Norris, Sim, distill.pub 2019). Branches that meet see the union of
their intervals. What combines all positions with each of them (squeeze and excitation, attention) sees the whole image.
After an operator that this module does not know the field is undefined, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from math import inf, isfinite, prod
from typing import Any, NamedTuple

from torch import Tensor

from cnnbench.counting.operators import base_name, is_elementwise


class Axis(NamedTuple):
    """What the units along one axis of the image see, in pixels; the first pixel is the interval from 0 to 1.

    Attributes:
        low: Where the field of the first unit begins.
        high: Where it ends.
        jump: Distance from one unit's field to the next one's.
        pooled: Whether all units of a map were combined into one.
    """

    low: float
    high: float
    jump: float
    pooled: bool = False

    @property
    def size(self) -> float:
        return self.high - self.low

    @property
    def start(self) -> float:
        """Centre of the field of the first unit."""
        return (self.low + self.high) / 2

    def window(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> Axis:
        """The axis after a convolution or pooling."""
        low = self.low - padding * self.jump
        return Axis(low, low + self.size + dilation * (kernel - 1) * self.jump, self.jump * stride, self.pooled)

    def all_of(self, units: int) -> Axis:
        """The axis after its units became one."""
        return self._replace(high=self.high + (units - 1) * self.jump, pooled=True)


WHOLE = Axis(-inf, inf, 1, True)


class Field(NamedTuple):
    """Receptive field of the elements of a tensor.

    Attributes:
        axes: What is seen along each axis of the image.
        sizes: Units along each of them.
        dims: For every dimension of the tensor, the axes of the image that run along it; it may hold channels too.
        pure: Whether no dimension holds both axes and something else.
    """

    axes: tuple[Axis, ...]
    sizes: tuple[int, ...]
    dims: tuple[tuple[int, ...], ...]
    pure: bool = True

    @classmethod
    def of_image(cls, x: Tensor) -> Field:
        """The field of the pixels of x: images, (N, C, ...)."""
        spatial = range(x.dim() - 2)
        return cls(len(spatial) * (Axis(0, 1, 1),), tuple(x.shape[2:]), ((), (), *((axis,) for axis in spatial)))

    @property
    def whole(self) -> bool:
        """Whether an axis is seen from end to end, however large the image."""
        return not all(isfinite(axis.size) for axis in self.axes)

    @property
    def local(self) -> bool:
        """Whether it is a map whose units see different parts."""
        return not self.whole and not any(axis.pooled for axis in self.axes)

    @property
    def map_dims(self) -> tuple[int, ...] | None:
        """Which dimension of the tensor runs along each axis of the image; None if an axis has none of its own."""
        found = [self.dims.index((axis,)) for axis in range(len(self.axes)) if (axis,) in self.dims]
        return tuple(found) if len(found) == len(self.axes) else None

    def as_dict(self) -> dict[str, Any]:
        """``size``, ``jump`` and ``start`` in pixels: a number, or a list where the axes differ."""
        found = {}
        for name in ("size", "jump", "start"):
            values = [getattr(axis, name) for axis in self.axes]
            values = [int(v) if v == int(v) else v for v in values]
            found[name] = values[0] if len(set(values)) == 1 else values
        return found

    def change(self, axis: int, new: Axis, size: int | None = None) -> Field:
        axes, sizes = list(self.axes), list(self.sizes)
        axes[axis] = new
        sizes[axis] = sizes[axis] if size is None else size
        return self._replace(axes=tuple(axes), sizes=tuple(sizes))

    def mixed(self, dims: Iterable[int]) -> Field:
        """The field when each element along these dimensions depends on all of them."""
        field = self
        for dim in dims:
            for axis in self.dims[dim]:
                field = field.change(axis, WHOLE)
        return field

    def contracted(self, dim: int) -> Field:
        """The field when the elements along a dimension become one."""
        field = self
        for axis in self.dims[dim]:
            field = field.change(axis, self.axes[axis].all_of(self.sizes[axis]), 1)
        return field

    def axis_on(self, x: Tensor, dim: int) -> int:
        """The one axis along a dimension."""
        axes = self.dims[dim]
        if len(axes) != 1 or self.sizes[axes[0]] != x.shape[dim]:
            raise _UndefinedError
        return axes[0]


class _UndefinedError(Exception):
    """The field of a result is not known."""


class _Call(NamedTuple):
    """One call: the tensors that depend on the image, their fields, all arguments, one result."""

    operator: Any
    tensors: list[Tensor]
    fields: list[Field]
    args: Sequence[Any]
    out: Tensor


class FieldTracker:
    """Follows the receptive field of every tensor that depends on an image, and how many weighted layers made it.

    Both travel with the tensor, as attributes of it.

    Args:
        image: The batch that goes into the network, (N, C, ...).
    """

    def __init__(self, image: Tensor) -> None:
        self._parts: dict[int, Any] = {}  # memory that was written in parts, whose field is not known
        image._receptive_field = Field.of_image(image)  # type: ignore[attr-defined]

    def field_of(self, tensor: Tensor) -> Field | None:
        """The field of a tensor; None where it is undefined or the tensor does not depend on the image."""
        field: Field | None = getattr(tensor, "_receptive_field", None)
        if field is None or _memory(tensor) in self._parts:
            return None
        return field if field.pure or tensor.dim() == 2 else None  # a vector may hold a whole map, a map may not

    def depth_of(self, tensor: Tensor) -> int | None:
        """Weighted layers on the longest path from the image to a tensor; None if its memory was written in parts."""
        return None if _memory(tensor) in self._parts else getattr(tensor, "_depth", 0)

    def __call__(self, operator: Any, args: Sequence[Any], out: Any, multiplies: bool) -> None:
        """Takes note of an operator.

        Args:
            operator: Which.
            args: Its arguments.
            out: Its result.
            multiplies: Whether it is a convolution or a matrix product; a weighted layer if one of its factors does not
                depend on the image.
        """
        given = _flat(args)
        tensors = [t for t in given if hasattr(t, "_receptive_field")]
        depth = max((getattr(t, "_depth", 0) for t in tensors), default=0)
        if multiplies:
            factors = given[1:3] if base_name(operator) in ("addmm", "baddbmm", "addmv", "addbmm") else given[:2]
            depth += sum(hasattr(t, "_receptive_field") for t in factors) == 1
        if not tensors and not any(_memory(t) in self._parts for t in given if self._parts):
            return
        fields: list[Any] = [None if _memory(t) in self._parts else t._receptive_field for t in tensors]
        written = operator._schema.arguments[0].alias_info
        if written is not None and written.is_write and (args[0].numel() != _elements(args[0]) or args[0]._is_view()):
            # Other views of this memory do not know of it. It is kept, so that its identity is not used again.
            self._parts[_memory(args[0])] = args[0].untyped_storage()
        rule = _RULES.get(base_name(operator), _elementwise if is_elementwise(operator) else _undefined)
        for result in _flat([out]):
            field = None
            if tensors and None not in fields:
                with suppress(_UndefinedError):
                    field = rule(_Call(operator, tensors, fields, args, result))
            result._receptive_field = field  # type: ignore[attr-defined]
            result._depth = depth  # type: ignore[attr-defined]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _elements(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _flat(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _flat(value)
    return found


def _undefined(call: _Call) -> Field:
    raise _UndefinedError


def _elementwise(call: _Call) -> Field:
    """The union of what the arguments see at each element of the result, with broadcasting."""
    out = call.out
    if len(call.tensors) == 1 and call.tensors[0].shape == out.shape:
        return call.fields[0]
    dims: list[tuple[int, ...]] = [()] * out.dim()
    for tensor, field in zip(call.tensors, call.fields, strict=True):
        for dim in range(-min(tensor.dim(), out.dim()), 0):
            if field.dims[dim] and tensor.shape[dim] == out.shape[dim]:
                if dims[dim] not in ((), field.dims[dim]):
                    raise _UndefinedError  # two axes of the image on one dimension
                dims[dim] = field.dims[dim]
    sizes = call.fields[0].sizes
    axes = []
    for axis in range(len(sizes)):
        seen = []
        sizes_here = {f.sizes[axis] for f in call.fields}
        for field in call.fields:
            spread = field.sizes[axis] < max(sizes_here) or any(axis in d for d in dims) > any(
                axis in d for d in field.dims
            )
            seen.append(WHOLE if spread else field.axes[axis])
        axes.append(_union(seen))
    sizes = tuple(max(f.sizes[axis] for f in call.fields) for axis in range(len(sizes)))
    return Field(tuple(axes), sizes, tuple(dims), all(f.pure for f in call.fields))


def _union(axes: Sequence[Axis]) -> Axis:
    if any(not isfinite(axis.size) for axis in axes):
        return WHOLE
    if len({axis.jump for axis in axes}) > 1:
        raise _UndefinedError
    return Axis(min(a.low for a in axes), max(a.high for a in axes), axes[0].jump, any(a.pooled for a in axes))


def _windows(call: _Call, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Field:
    x, field = call.tensors[0], call.fields[0]
    spatial = x.dim() - 2
    settings = [list(s) * (spatial if len(s) == 1 else 1) for s in (kernel, stride, padding, dilation)]
    for index, (k, s, p, d) in enumerate(zip(*settings, strict=True)):
        if not field.dims[2 + index] and x.shape[2 + index] == k == 1:
            continue  # what torch adds to pool along one axis
        axis = call.fields[0].axis_on(x, 2 + index)
        field = field.change(axis, field.axes[axis].window(k, s, p, d), call.out.shape[2 + index])
    return field


def _convolution(call: _Call) -> Field:
    _, weight, _, stride, padding, dilation, transposed = call.args[:7]
    if len(call.tensors) != 1 or call.tensors[0] is not call.args[0] or (transposed and max(stride) > 1):
        raise _UndefinedError
    kernel = weight.shape[2:]
    if transposed:
        padding = [d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    return _windows(call, kernel, stride, padding, dilation)


def _max_pool(call: _Call) -> Field:
    kernel, stride, padding, dilation = _defaults(call.args[1:5], [], [], [0], [1])
    return _windows(call, kernel, stride or kernel, padding, dilation)


def _avg_pool(call: _Call) -> Field:
    kernel, stride, padding = _defaults(call.args[1:4], [], [], [0])
    return _windows(call, kernel, stride or kernel, padding, [1])


def _defaults(given: Sequence[Any], *defaults: Any) -> list[Any]:
    return [*given, *defaults[len(given) :]]


def _adaptive_pool(call: _Call) -> Field:
    x, field = call.tensors[0], call.fields[0]
    for dim in range(2, x.dim()):
        axis, units, wanted = call.fields[0].axis_on(x, dim), x.shape[dim], call.out.shape[dim]
        if units % wanted:
            raise _UndefinedError
        step = units // wanted
        pooled = field.axes[axis].all_of(units) if wanted == 1 else field.axes[axis].window(step, step, 0)
        field = field.change(axis, pooled, wanted)
    return field


def _pad(call: _Call) -> Field:
    x, field = call.tensors[0], call.fields[0]
    for index in range(len(call.args[1]) // 2):
        dim, left = x.dim() - 1 - index, call.args[1][2 * index]
        if field.dims[dim]:
            axis = field.axis_on(x, dim)
            field = field.change(axis, field.axes[axis].window(1, 1, left), call.out.shape[dim])
    return field


def _reduction(call: _Call) -> Field:
    x, field = call.tensors[0], call.fields[0]
    dims = call.args[1] if len(call.args) > 1 else None
    dims = range(x.dim()) if not isinstance(dims, (list, tuple)) or not dims else [d % x.dim() for d in dims]
    for dim in dims:
        field = field.contracted(dim)
    if call.out.dim() == x.dim():
        return field
    return field._replace(dims=tuple(axes for dim, axes in enumerate(field.dims) if dim not in dims))


def _reshape(call: _Call) -> Field:
    """Assigns axes to the dimensions of another shape, group by group of dimensions with as many elements."""
    x, out, field = call.tensors[0], call.out, call.fields[0]
    dims: list[tuple[int, ...]] = [()] * out.dim()
    i = j = 0
    pure = True
    while i < x.dim() and j < out.dim():
        first, second = i, j
        have, want = x.shape[i], out.shape[j]
        i, j = i + 1, j + 1
        while have != want:
            if have < want:
                have, i = have * x.shape[i], i + 1
            else:
                want, j = want * out.shape[j], j + 1
        axes = tuple(axis for dim in range(first, i) for axis in field.dims[dim])
        targets = [dim for dim in range(second, j) if out.shape[dim] != 1] or [second]
        if not axes:
            continue
        if len(targets) == 1:
            dims[targets[0]] = axes
            pure = pure and prod(field.sizes[axis] for axis in axes) == out.shape[targets[0]]
            continue
        wide = [axis for axis in axes if field.sizes[axis] != 1]
        if [field.sizes[axis] for axis in wide] != [out.shape[dim] for dim in targets]:
            raise _UndefinedError
        for axis, dim in zip(wide, targets, strict=True):
            dims[dim] = (axis,)
    return field._replace(dims=tuple(dims), pure=pure)


def _permute(call: _Call) -> Field:
    field, dims = call.fields[0], len(call.fields[0].dims)
    name = base_name(call.operator)
    if name == "permute":
        order = [d % dims for d in call.args[1]]
    else:
        order = list(range(dims))
        a, b = (0, dims - 1) if name == "t" else (call.args[1] % dims, call.args[2] % dims)
        order[a], order[b] = order[b], order[a]
    return field._replace(dims=tuple(field.dims[d] for d in order))


def _slice(call: _Call) -> Field:
    x, field = call.tensors[0], call.fields[0]
    _, dim, start, _, step = _defaults(call.args, None, 0, None, None, 1)
    if not field.dims[dim]:
        return field
    axis, first = field.axis_on(x, dim), start or 0
    first = first + x.shape[dim] if first < 0 else first
    return field.change(axis, field.axes[axis].window(1, step, -first), call.out.shape[dim])


def _split(call: _Call) -> Field:
    return _without_axes(call, call.args[2] if len(call.args) > 2 else 0)


def _cat(call: _Call) -> Field:
    _without_axes(call, call.args[1] if len(call.args) > 1 else 0)
    return _elementwise(call)


def _select(call: _Call) -> Field:
    field, dim = call.fields[0], call.args[1] if len(call.args) > 1 else 0
    _without_axes(call, dim)
    dim = dim % len(field.dims)
    return field._replace(dims=field.dims[:dim] + field.dims[dim + 1 :])


def _without_axes(call: _Call, dim: int) -> Field:
    """The field after taking apart or joining along a dimension, which no axis of the image may run along."""
    if any(field.dims[dim] for field in call.fields):
        raise _UndefinedError
    return call.fields[0]


def _product(call: _Call) -> Field:
    """A matrix product with weights sums over a dimension; one of two maps lets each position see all others."""
    plain = [a for a in call.args if isinstance(a, Tensor)]
    a, b = plain[-2:]
    if len(call.tensors) > 1 or (call.tensors[0] is not a and call.tensors[0] is not b):
        return Field(len(call.fields[0].axes) * (WHOLE,), call.fields[0].sizes, ((),) * call.out.dim())
    field, x = call.fields[0], call.tensors[0]
    contracted = x.dim() - 1 if x is a else max(x.dim() - 2, 0)
    kept = field.contracted(contracted)
    if call.out.dim() != x.dim():
        raise _UndefinedError
    dims = tuple(() if d == contracted else axes for d, axes in enumerate(field.dims))
    return kept._replace(dims=dims, pure=field.pure or not any(dims))


def _layer_norm(call: _Call) -> Field:
    return call.fields[0].mixed(range(-len(call.args[1]), 0)) if call.out.dim() == call.tensors[0].dim() else _all(call)


def _softmax(call: _Call) -> Field:
    return call.fields[0].mixed([call.args[1]])


def _all(call: _Call) -> Field:
    field = call.fields[0]
    return field._replace(axes=len(field.axes) * (WHOLE,))


def _restrided(call: _Call) -> Field:
    """Torch sets new strides after pooling a map to one unit, all of whose channels see the same."""
    field = call.fields[0]
    if set(field.sizes) != {1} or call.out.dim() != len(field.dims):
        raise _UndefinedError
    return field


def _batch_norm(call: _Call) -> Field:
    if call.out.dim() != call.tensors[0].dim():
        raise _UndefinedError
    return _all(call) if call.args[5] else call.fields[0]


_RULES: dict[str, Callable[[_Call], Field]] = {
    "convolution": _convolution,
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), _max_pool),
    **dict.fromkeys(("avg_pool2d", "avg_pool3d"), _avg_pool),
    **dict.fromkeys(("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d"), _adaptive_pool),
    **dict.fromkeys(("sum", "mean", "amax", "amin"), _reduction),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _product),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("unbind", "select"), _select),
    "cat": _cat,
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), _softmax),
    **dict.fromkeys(("clone", "expand", "detach", "alias", "_to_copy", "native_dropout"), _elementwise),
    "constant_pad_nd": _pad,
    "slice": _slice,
    "as_strided": _restrided,
    "native_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _all,
}
