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

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
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
        high = low + self.size + dilation * (kernel - 1) * self.jump
        return Axis(low, high, self.jump * stride, self.pooled)

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
        # The first two dimensions are batch and channels, which run along no axis of the image.
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
        dims = []
        for axis in range(len(self.axes)):
            if (axis,) not in self.dims:
                return None
            dims.append(self.dims.index((axis,)))
        return tuple(dims)

    def as_dict(self) -> dict[str, Any]:
        """Return ``size``, ``jump`` and ``start`` in pixels.

        Each is a number, or a list with a number per axis if the axes differ.
        """
        figures: dict[str, Any] = {}
        for name in ("size", "jump", "start"):
            values: list[float] = []
            for axis in self.axes:
                value = getattr(axis, name)
                values.append(int(value) if value == int(value) else value)
            figures[name] = values[0] if len(set(values)) == 1 else values
        return figures

    def change(self, axis: int, new: Axis, size: int | None = None) -> Field:
        """Return the field with a new receptive field along one axis; `size` is its new number of units, if any."""
        axes, sizes = list(self.axes), list(self.sizes)
        axes[axis] = new
        if size is not None:
            sizes[axis] = size
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
        # A tensor (N, features) may be a flattened map.
        if field.pure or tensor.dim() == 2:
            return field
        return None

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
        if not tensors and not self._have_parts(given):
            return
        depth = max((getattr(t, "_depth", 0) for t in tensors), default=0)
        if multiplies and _has_weights(operator, given):
            depth += 1
        # The fields before the operator: it may itself write to a part of its argument.
        fields: list[Any] = [None if _memory(t) in self._parts else t._receptive_field for t in tensors]
        self._note_write(operator, args)
        rule = _rule_of(operator)
        for result in _flat([out]):
            field = None
            # If the field of one argument is undefined, so is that of the result.
            if tensors and None not in fields:
                with suppress(_UndefinedError):
                    field = rule(_Call(operator, tensors, fields, args, result))
            result._receptive_field = field  # type: ignore[attr-defined]
            result._depth = depth  # type: ignore[attr-defined]

    def _have_parts(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether the memory of any of these tensors was written in parts, which few networks do."""
        return bool(self._parts) and any(_memory(t) in self._parts for t in tensors)

    def _note_write(self, operator: Any, args: Sequence[Any]) -> None:
        """Remember the memory of the first argument if the operator writes to a part of it."""
        written = operator._schema.arguments[0].alias_info
        if written is None or not written.is_write:
            return
        # A tensor that is no view and fills its memory is written as a whole.
        if args[0].numel() != _elements(args[0]) or args[0]._is_view():
            # Other tensors on this memory keep their field from before the write. The memory is kept alive, so that its
            # identity is not used again.
            self._parts[_memory(args[0])] = args[0].untyped_storage()


def _has_weights(operator: Any, tensors: Sequence[Tensor]) -> bool:
    """Return whether exactly one factor of a convolution or matrix product depends on the image."""
    first = 0
    if base_name(operator) in ("addmm", "baddbmm", "addmv", "addbmm"):
        first = 1  # the addend comes before the factors
    return sum(hasattr(t, "_receptive_field") for t in tensors[first : first + 2]) == 1


def _rule_of(operator: Any) -> Callable[[_Call], Field]:
    """Return the function that computes the field of a result of an operator."""
    default = _elementwise if is_elementwise(operator) else _undefined
    return _RULES.get(base_name(operator), default)


def _memory(tensor: Tensor) -> int:
    """Return the identity of the memory behind a tensor, which its views share."""
    return tensor.untyped_storage()._cdata


def _elements(tensor: Tensor) -> int:
    """Return how many elements of the tensor's type fit into the memory behind it."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _flat(values: Sequence[Any]) -> list[Tensor]:
    """Return the tensors of nested lists and tuples in order."""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (list, tuple)):
            tensors += _flat(value)
    return tensors


def _undefined(call: _Call) -> Field:
    raise _UndefinedError


def _elementwise(call: _Call) -> Field:
    """Return the union of the fields of the arguments at each element of the result, with broadcasting."""
    if len(call.tensors) == 1 and call.tensors[0].shape == call.out.shape:
        return call.fields[0]
    dims = _aligned_dims(call)
    axes: list[Axis] = []
    sizes: list[int] = []
    for axis in range(len(call.fields[0].sizes)):
        size = max(field.sizes[axis] for field in call.fields)
        seen = []
        for field in call.fields:
            # Broadcasting copies a unit to all positions along the axis: a tensor with fewer units there, or without
            # a dimension for the axis. Such a unit is taken for one that sees the whole axis.
            lacks_dim = any(axis in d for d in dims) and not any(axis in d for d in field.dims)
            seen.append(WHOLE if field.sizes[axis] < size or lacks_dim else field.axes[axis])
        axes.append(_union(seen))
        sizes.append(size)
    return Field(tuple(axes), tuple(sizes), dims, all(field.pure for field in call.fields))


def _aligned_dims(call: _Call) -> tuple[tuple[int, ...], ...]:
    """Return the axes of the image along each dimension of the result of an element-wise operator."""
    out = call.out
    dims: list[tuple[int, ...]] = [()] * out.dim()
    for tensor, field in zip(call.tensors, call.fields, strict=True):
        # Broadcasting aligns the last dimensions; one of size 1 that is repeated has no axis of its own.
        for dim in range(-min(tensor.dim(), out.dim()), 0):
            if field.dims[dim] and tensor.shape[dim] == out.shape[dim]:
                if dims[dim] not in ((), field.dims[dim]):
                    raise _UndefinedError  # two axes of the image on one dimension
                dims[dim] = field.dims[dim]
    return tuple(dims)


def _union(axes: Sequence[Axis]) -> Axis:
    """Return the smallest interval that contains those of all branches, which must have the same jump."""
    if any(not isfinite(axis.size) for axis in axes):
        return WHOLE
    union = axes[0]
    for axis in axes[1:]:
        # With different jumps, the interval of the next unit would not have the same size.
        if axis.jump != union.jump:
            raise _UndefinedError
        low, high = min(union.low, axis.low), max(union.high, axis.high)
        union = Axis(low, high, union.jump, union.pooled or axis.pooled)
    return union


def _windows(call: _Call, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Field:
    """Return the field after a window slides over each spatial dimension; the settings are per dimension or for all."""
    x, field = call.tensors[0], call.fields[0]
    settings = []
    for setting in (kernel, stride, padding, dilation):
        settings.append(list(setting) * (x.dim() - 2) if len(setting) == 1 else list(setting))
    for index, (k, s, p, d) in enumerate(zip(*settings, strict=True)):
        if not field.dims[2 + index] and x.shape[2 + index] == k == 1:
            continue  # torch pools one axis by a 2d operator, with a dimension of size 1
        axis = call.fields[0].axis_on(x, 2 + index)
        field = field.change(axis, field.axes[axis].window(k, s, p, d), call.out.shape[2 + index])
    return field


def _convolution(call: _Call) -> Field:
    """Return the field of a convolution with weights; those of a transposed one with gaps and others are undefined."""
    _, weight, _, stride, padding, dilation, transposed = call.args[:7]
    # A second tensor means weights that depend on the image; a transposed stride above 1 leaves gaps.
    if len(call.tensors) != 1 or call.tensors[0] is not call.args[0] or (transposed and max(stride) > 1):
        raise _UndefinedError
    kernel = weight.shape[2:]
    if transposed:
        # With stride 1, a transposed convolution is a convolution with this padding and flipped weights.
        padding = [d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    return _windows(call, kernel, stride, padding, dilation)


def _max_pool(call: _Call) -> Field:
    kernel, stride, padding, dilation = _defaults(call.args[1:5], [], [], [0], [1])
    # Without a stride, windows are as far apart as they are long.
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
        pooled = field.axes[axis].window(step, step, 0)
        if wanted == 1:
            pooled = field.axes[axis].all_of(units)
        field = field.change(axis, pooled, wanted)
    return field


def _pad(call: _Call) -> Field:
    x, field = call.tensors[0], call.fields[0]
    # The list has two numbers per dimension, before and after, and begins with the last dimension.
    for index in range(len(call.args[1]) // 2):
        dim, left = x.dim() - 1 - index, call.args[1][2 * index]
        if field.dims[dim]:
            axis = field.axis_on(x, dim)
            # Padding in front moves the first unit; padding at the end only adds units.
            field = field.change(axis, field.axes[axis].window(1, 1, left), call.out.shape[dim])
    return field


def _reduction(call: _Call) -> Field:
    x, field = call.tensors[0], call.fields[0]
    dims = list(range(x.dim()))
    # Without a list of dimensions, or with an empty one, the operator combines all elements.
    if len(call.args) > 1 and isinstance(call.args[1], (list, tuple)) and call.args[1]:
        dims = [d % x.dim() for d in call.args[1]]
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
    field, shape = call.fields[0], call.out.shape
    dims: list[tuple[int, ...]] = [()] * len(shape)
    pure = True
    for sources, targets in _matching_groups(call.tensors[0].shape, shape):
        axes = tuple(chain.from_iterable(field.dims[dim] for dim in sources))
        if not axes:
            continue
        # Dimensions of size 1 take no axis, unless all in the group are such.
        wide = [dim for dim in targets if shape[dim] != 1] or [targets[0]]
        if len(wide) == 1:
            dims[wide[0]] = axes
            pure = pure and prod(field.sizes[axis] for axis in axes) == shape[wide[0]]
            continue
        # Several dimensions can take the axes only one by one, with equal sizes: channels may not be among them.
        long = [axis for axis in axes if field.sizes[axis] != 1]
        if len(long) != len(wide):
            raise _UndefinedError
        for axis, dim in zip(long, wide, strict=True):
            if field.sizes[axis] != shape[dim]:
                raise _UndefinedError
            dims[dim] = (axis,)
    return field._replace(dims=tuple(dims), pure=pure)


def _matching_groups(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yield the dimensions of the input and of the result of a reshape that hold the same elements, group by group."""
    i = j = 0
    while i < len(before) and j < len(after):
        first, second = i, j
        have, want = before[i], after[j]
        i, j = i + 1, j + 1
        # The side with fewer elements takes one more dimension, until both have the same number.
        while have != want:
            if have < want:
                have, i = have * before[i], i + 1
            else:
                want, j = want * after[j], j + 1
        yield range(first, i), range(second, j)


def _permute(call: _Call) -> Field:
    field, dims = call.fields[0], len(call.fields[0].dims)
    name = base_name(call.operator)
    if name == "permute":
        order = [d % dims for d in call.args[1]]
    else:
        # A transposition swaps two dimensions; t has no arguments and at most two dimensions.
        order = list(range(dims))
        a, b = 0, dims - 1
        if name == "transpose":
            a, b = call.args[1] % dims, call.args[2] % dims
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
    return _without_axes(call, _defaults(call.args, None, None, 0)[2])


def _cat(call: _Call) -> Field:
    """Return the union of the fields of all joined tensors, for every channel of the result.

    Raises:
        _UndefinedError: The tensors are joined along an axis of the image.
    """
    _without_axes(call, _defaults(call.args, None, 0)[1])
    return _elementwise(call)


def _select(call: _Call) -> Field:
    field, dim = call.fields[0], _defaults(call.args, None, 0)[1]
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
    # The product sums over the last dimension of the first factor and over the last but one of the second.
    contracted = x.dim() - 1
    if x is not a:
        contracted = max(x.dim() - 2, 0)
    kept = field.contracted(contracted)
    if call.out.dim() != x.dim():
        raise _UndefinedError
    dims = list(field.dims)
    # In the result, this dimension holds outputs of the weights in place of the elements that were summed.
    dims[contracted] = ()
    return kept._replace(dims=tuple(dims), pure=field.pure or not any(dims))


def _layer_norm(call: _Call) -> Field:
    # The other results are statistics, one per position.
    if call.out.dim() != call.tensors[0].dim():
        return _all(call)
    # The statistics are over as many of the last dimensions as the normalised shape has.
    return call.fields[0].mixed(range(-len(call.args[1]), 0))


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
    # With the statistics of the batch, each element depends on all others.
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
