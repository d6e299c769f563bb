"""Receptive fields: the part of the image that a unit can see, followed through the operators as they run.

Along each axis of the image, the first unit of a feature map sees an interval of pixels, and each next unit sees the
interval that lies one jump further. A window of k elements with dilation d, stride s and padding p lengthens the
interval by d(k - 1) jumps, moves its beginning back by p jumps, and multiplies the jump by s (Araujo, Norris, Sim 2019,
distill.pub/2019/computing-receptive-fields).

Where branches meet, a unit sees the union of their intervals. Where each position depends on all others, as in squeeze
and excitation or attention, it sees the whole image. After an operator that this module does not know, the receptive
field is undefined; it is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from math import inf, isfinite, prod
from typing import Any, NamedTuple

from torch import Tensor

from cnnbench.counting.operators import base_name, is_elementwise


class Axis(NamedTuple):
    """Receptive field of the units along one axis of the image, in pixels; the first pixel is the interval from 0 to 1.

    Attributes:
        low: Beginning of the receptive field of the first unit.
        high: End of the receptive field of the first unit.
        jump: Distance between the receptive fields of neighbouring units.
        pooled: Whether all units along the axis were combined into one.
    """

    low: float
    high: float
    jump: float
    pooled: bool = False

    @property
    def size(self) -> float:
        """Return the length of the receptive field of a unit."""
        return self.high - self.low

    @property
    def start(self) -> float:
        """Return the centre of the receptive field of the first unit."""
        return (self.low + self.high) / 2

    def window(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> Axis:
        """Return the axis after a convolution or pooling with this window, in units."""
        low = self.low - padding * self.jump
        return Axis(low, low + self.size + dilation * (kernel - 1) * self.jump, self.jump * stride, self.pooled)

    def all_of(self, units: int) -> Axis:
        """Return the axis after all of its units were combined into one."""
        return self._replace(high=self.high + (units - 1) * self.jump, pooled=True)


WHOLE = Axis(-inf, inf, 1, True)
"""Axis along which each unit sees the whole of any image."""


class Field(NamedTuple):
    """Receptive field of the elements of a tensor.

    Attributes:
        axes: Receptive field along each axis of the image.
        sizes: Number of units along each axis of the image.
        dims: Axes of the image that run along each dimension of the tensor; the dimension may hold channels as well.
        pure: Whether no dimension mixes axes of the image with channels or other indices.
    """

    axes: tuple[Axis, ...]
    sizes: tuple[int, ...]
    dims: tuple[tuple[int, ...], ...]
    pure: bool = True

    @classmethod
    def of_image(cls, x: Tensor) -> Field:
        """Return the field of a batch of images, (N, C, ...), in which each pixel sees itself."""
        spatial = range(x.dim() - 2)
        return cls(len(spatial) * (Axis(0, 1, 1),), tuple(x.shape[2:]), ((), (), *((axis,) for axis in spatial)))

    @property
    def whole(self) -> bool:
        """Return whether a unit sees the whole of an axis, however large the image is."""
        return not all(isfinite(axis.size) for axis in self.axes)

    @property
    def local(self) -> bool:
        """Return whether the tensor is a feature map whose units see different parts of the image."""
        return not self.whole and not any(axis.pooled for axis in self.axes)

    @property
    def map_dims(self) -> tuple[int, ...] | None:
        """Return the dimension that runs along each axis of the image; None if an axis has no dimension of its own."""
        found = [self.dims.index((axis,)) for axis in range(len(self.axes)) if (axis,) in self.dims]
        return tuple(found) if len(found) == len(self.axes) else None

    def as_dict(self) -> dict[str, Any]:
        """Return ``size``, ``jump`` and ``start`` in pixels.

        Each is a number, or a list with a number per axis if the axes differ.
        """
        found = {}
        for name in ("size", "jump", "start"):
            values = [getattr(axis, name) for axis in self.axes]
            values = [int(v) if v == int(v) else v for v in values]
            found[name] = values[0] if len(set(values)) == 1 else values
        return found

    def change(self, axis: int, new: Axis, size: int | None = None) -> Field:
        """Return the field with a new receptive field along one axis; `size` is its new number of units, if any."""
        axes, sizes = list(self.axes), list(self.sizes)
        axes[axis] = new
        sizes[axis] = sizes[axis] if size is None else size
        return self._replace(axes=tuple(axes), sizes=tuple(sizes))

    def mixed(self, dims: Iterable[int]) -> Field:
        """Return the field after an operator that makes each element along these dimensions depend on all of them."""
        field = self
        for dim in dims:
            for axis in self.dims[dim]:
                field = field.change(axis, WHOLE)
        return field

    def contracted(self, dim: int) -> Field:
        """Return the field after an operator that combines the elements along a dimension into one."""
        field = self
        for axis in self.dims[dim]:
            field = field.change(axis, self.axes[axis].all_of(self.sizes[axis]), 1)
        return field

    def axis_on(self, x: Tensor, dim: int) -> int:
        """Return the axis of the image that runs along a dimension.

        Args:
            x: Tensor of this field.
            dim: Dimension of the tensor.

        Raises:
            _UndefinedError: No axis or more than one runs along it, or the dimension holds something else as well.
        """
        axes = self.dims[dim]
        if len(axes) != 1 or self.sizes[axes[0]] != x.shape[dim]:
            raise _UndefinedError
        return axes[0]


class _UndefinedError(Exception):
    """Signal that the receptive field of a result is not known."""


class _Call(NamedTuple):
    """Call of an operator, with one of its results.

    Attributes:
        operator: Operator that was called.
        tensors: Arguments that depend on the image.
        fields: Fields of these tensors.
        args: All positional arguments.
        out: Result whose field is wanted.
    """

    operator: Any
    tensors: list[Tensor]
    fields: list[Field]
    args: Sequence[Any]
    out: Tensor


class FieldTracker:
    """Tracker of receptive field and depth of every tensor that depends on the image.

    The depth is the number of weighted layers on the longest path from the image. Both values are stored as attributes
    of the tensor itself.

    Args:
        image: Batch of images that enters the network, (N, C, ...).
    """

    def __init__(self, image: Tensor) -> None:
        self._parts: dict[int, Any] = {}  # memory that was written in parts: no known field
        image._receptive_field = Field.of_image(image)  # type: ignore[attr-defined]

    def field_of(self, tensor: Tensor) -> Field | None:
        """Return the field of a tensor; None if it is undefined or the tensor does not depend on the image."""
        field: Field | None = getattr(tensor, "_receptive_field", None)
        if field is None or _memory(tensor) in self._parts:
            return None
        return field if field.pure or tensor.dim() == 2 else None  # (N, features) may be a flattened map

    def depth_of(self, tensor: Tensor) -> int | None:
        """Return the depth of a tensor; None if its memory was written in parts."""
        return None if _memory(tensor) in self._parts else getattr(tensor, "_depth", 0)

    def __call__(self, operator: Any, args: Sequence[Any], out: Any, multiplies: bool) -> None:
        """Compute field and depth of the results of an operator.

        Args:
            operator: Operator that was called.
            args: Positional arguments of the call.
            out: Result of the call.
            multiplies: Whether the operator is a convolution or a matrix product. It counts as a weighted layer if
                exactly one of its factors depends on the image.
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
            # Other tensors on this memory keep their field from before the write. The memory is kept alive, so that its
            # identity is not used again.
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
    """Return the identity of the memory behind a tensor, which its views share."""
    return tensor.untyped_storage()._cdata


def _elements(tensor: Tensor) -> int:
    """Return how many elements of the tensor's type fit into the memory behind it."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _flat(values: Sequence[Any]) -> list[Tensor]:
    """Return the tensors of nested lists and tuples in order."""
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
    """Return the union of the fields of the arguments at each element of the result, with broadcasting."""
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
            # Broadcasting copies a unit to all positions along the axis: a tensor with fewer units there, or without
            # a dimension for the axis. Such a unit is taken for one that sees the whole axis.
            spread = field.sizes[axis] < max(sizes_here) or any(axis in d for d in dims) > any(
                axis in d for d in field.dims
            )
            seen.append(WHOLE if spread else field.axes[axis])
        axes.append(_union(seen))
    sizes = tuple(max(f.sizes[axis] for f in call.fields) for axis in range(len(sizes)))
    return Field(tuple(axes), sizes, tuple(dims), all(f.pure for f in call.fields))


def _union(axes: Sequence[Axis]) -> Axis:
    """Return the smallest interval that contains those of all branches, which must have the same jump."""
    if any(not isfinite(axis.size) for axis in axes):
        return WHOLE
    if len({axis.jump for axis in axes}) > 1:
        raise _UndefinedError
    return Axis(min(a.low for a in axes), max(a.high for a in axes), axes[0].jump, any(a.pooled for a in axes))


def _windows(call: _Call, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Field:
    """Return the field after a window slides over each spatial dimension; the settings are per dimension or for all."""
    x, field = call.tensors[0], call.fields[0]
    spatial = x.dim() - 2
    settings = [list(s) * (spatial if len(s) == 1 else 1) for s in (kernel, stride, padding, dilation)]
    for index, (k, s, p, d) in enumerate(zip(*settings, strict=True)):
        if not field.dims[2 + index] and x.shape[2 + index] == k == 1:
            continue  # torch pools one axis by a 2d operator, with a dimension of size 1
        axis = call.fields[0].axis_on(x, 2 + index)
        field = field.change(axis, field.axes[axis].window(k, s, p, d), call.out.shape[2 + index])
    return field


def _convolution(call: _Call) -> Field:
    _, weight, _, stride, padding, dilation, transposed = call.args[:7]
    if len(call.tensors) != 1 or call.tensors[0] is not call.args[0] or (transposed and max(stride) > 1):
        raise _UndefinedError
    kernel = weight.shape[2:]
    if transposed:
        # With stride 1, a transposed convolution is a convolution with this padding and flipped weights.
        padding = [d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    return _windows(call, kernel, stride, padding, dilation)


def _max_pool(call: _Call) -> Field:
    kernel, stride, padding, dilation = _defaults(call.args[1:5], [], [], [0], [1])
    return _windows(call, kernel, stride or kernel, padding, dilation)


def _avg_pool(call: _Call) -> Field:
    kernel, stride, padding = _defaults(call.args[1:4], [], [], [0])
    return _windows(call, kernel, stride or kernel, padding, [1])


def _defaults(given: Sequence[Any], *defaults: Any) -> list[Any]:
    """Return the arguments of a call, completed by the defaults of those that are missing."""
    return [*given, *defaults[len(given) :]]


def _adaptive_pool(call: _Call) -> Field:
    x, field = call.tensors[0], call.fields[0]
    for dim in range(2, x.dim()):
        axis, units, wanted = call.fields[0].axis_on(x, dim), x.shape[dim], call.out.shape[dim]
        if units % wanted:
            raise _UndefinedError
        # All windows are equal only if the number of units is a multiple of the number of windows.
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
    """Return the field after a reshape.

    Dimensions of the input and of the result are matched in the smallest groups with equal numbers of elements, from
    first to last. The axes of a group of the input go to the dimensions of its group of the result.
    """
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
        # The group is complete: dimensions first to i of the input hold the elements of second to j of the result.
        axes = tuple(axis for dim in range(first, i) for axis in field.dims[dim])
        targets = [dim for dim in range(second, j) if out.shape[dim] != 1] or [second]
        if not axes:
            continue
        if len(targets) == 1:
            dims[targets[0]] = axes
            pure = pure and prod(field.sizes[axis] for axis in axes) == out.shape[targets[0]]
            continue
        # Several dimensions can take the axes only one by one, with equal sizes: channels may not be among them.
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
    if first < 0:  # counted from the end; torch takes all units where there are fewer
        first = max(first + x.shape[dim], 0)
    # Leaving out the first units is the opposite of padding.
    return field.change(axis, field.axes[axis].window(1, step, -first), call.out.shape[dim])


def _split(call: _Call) -> Field:
    return _without_axes(call, call.args[2] if len(call.args) > 2 else 0)


def _cat(call: _Call) -> Field:
    """Return the union of the fields of all joined tensors, for every channel of the result.

    Raises:
        _UndefinedError: The tensors are joined along an axis of the image.
    """
    _without_axes(call, call.args[1] if len(call.args) > 1 else 0)
    return _elementwise(call)


def _select(call: _Call) -> Field:
    field, dim = call.fields[0], call.args[1] if len(call.args) > 1 else 0
    _without_axes(call, dim)
    dim = dim % len(field.dims)
    return field._replace(dims=field.dims[:dim] + field.dims[dim + 1 :])


def _without_axes(call: _Call, dim: int) -> Field:
    """Return the field after a tensor is split, or tensors are joined, along a dimension.

    Raises:
        _UndefinedError: An axis of the image runs along this dimension.
    """
    if any(field.dims[dim] for field in call.fields):
        raise _UndefinedError
    return call.fields[0]


def _product(call: _Call) -> Field:
    """Return the field of a matrix product.

    A product with weights sums over one dimension of the map. In a product of two maps each position sees all others,
    so the result sees the whole image.
    """
    # The two factors come last, after the addend if there is one.
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
    """Return the field in which each element sees the whole image."""
    field = call.fields[0]
    return field._replace(axes=len(field.axes) * (WHOLE,))


def _restrided(call: _Call) -> Field:
    """Return the field after new strides for a map of one unit, which torch sets after global pooling.

    All elements of such a map see the same part of the image, so their order does not matter.
    """
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
