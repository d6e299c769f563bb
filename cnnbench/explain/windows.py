"""What a window that moves over a map makes of its size: convolution, pooling, transposed convolution, padding.

Along each axis a window of k pixels with dilation d, stride s and padding p turns H pixels into
floor((H + 2p - d*(k - 1) - 1) / s) + 1 (Dumoulin, Visin 2016, 1603.07285). With ceil_mode the division is rounded up,
and a last window that would start behind the input is dropped. The rules, also what is refused, are torch's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from cnnbench.errors import UserError

NOTATION = (
    "convK, tconvK (transposed), maxpoolK, avgpoolK with kernel size K, each followed by what is needed of: /S stride "
    "(of a pool K unless given), pP padding, dD dilation, same (padding of a conv that keeps the size), ceil (rounds "
    "a pool's size up), oO output padding of a tconv, :C output channels; and padN zeros around, or padLxRxTxB left, "
    "right, top, bottom. Two numbers are height x width: 'conv3x5/2x3p1x2'"
)
LARGEST_NUMBER = 65_536
"""In the notation and of an image's pixels along an axis."""
LARGEST_SIDE = 2**24
"""Pixels of a map along an axis."""
Extent = int | tuple[int, int]
"""A number of pixels for both axes, or height and width."""


class Conv(NamedTuple):
    """A convolution; padding on both sides, or ``same``, which puts the odd zero last."""

    kernel: Extent
    stride: Extent = 1
    padding: Extent | Literal["same"] = 0
    dilation: Extent = 1
    channels: int | None = None

    def length(self, n: int, axis: int) -> int:
        k, s, d = along(self.kernel, axis), along(self.stride, axis), along(self.dilation, axis)
        if self.padding == "same":
            if along(self.stride, 0) != 1 or along(self.stride, 1) != 1:
                raise UserError("padding 'same' is for stride 1 only; give the padding as a number")
            return n
        return _windows(n + 2 * along(self.padding, axis), k, s, d)


class Pool(NamedTuple):
    """Max pooling, or average pooling, which has no dilation; the stride is the kernel size if it is None."""

    kernel: Extent
    stride: Extent | None = None
    padding: Extent = 0
    dilation: Extent = 1
    ceil_mode: bool = False
    kind: Literal["max", "avg"] = "max"

    def length(self, n: int, axis: int) -> int:
        k, p, d = along(self.kernel, axis), along(self.padding, axis), along(self.dilation, axis)
        s = k if self.stride is None else along(self.stride, axis)
        if p > k // 2:
            raise UserError(f"padding {p} of a pooling is more than half of its window of {k}; take at most {k // 2}")
        if not self.ceil_mode:
            return _windows(n + 2 * p, k, s, d)
        steps = -(-(n + 2 * p - d * (k - 1) - 1) // s)
        steps -= steps * s >= n + p  # the last window would start outside
        if steps < 0:
            raise UserError(_too_small(n + 2 * p, k, d))
        return steps + 1


class Transposed(NamedTuple):
    """A transposed convolution: it gives the size that the convolution with these settings would have come from."""

    kernel: Extent
    stride: Extent = 1
    padding: Extent = 0
    output_padding: Extent = 0
    dilation: Extent = 1
    channels: int | None = None

    def length(self, n: int, axis: int) -> int:
        k, s, p, o, d = (along(value, axis) for value in self[:5])
        if o >= max(s, d):
            raise UserError(f"output padding {o} must be below the stride {s} or the dilation {d}")
        found = (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        if found < 1:
            raise UserError(f"padding {p} leaves {found} of {n} pixels; take less")
        return found


class Pad(NamedTuple):
    """Zeros around the map, in torch's order."""

    left: int
    right: int
    top: int
    bottom: int

    def length(self, n: int, axis: int) -> int:
        return n + (self.left + self.right if axis else self.top + self.bottom)


Layer = Conv | Pool | Transposed | Pad
Size = tuple[int, int]
"""Height and width in pixels."""


def along(extent: Any, axis: int) -> int:
    return extent[axis] if isinstance(extent, tuple) else extent


def _windows(n: int, k: int, s: int, d: int) -> int:
    if n < d * (k - 1) + 1:
        raise UserError(_too_small(n, k, d))
    return (n - d * (k - 1) - 1) // s + 1


def _too_small(n: int, k: int, d: int) -> str:
    wide = f"{k} with dilation {d}, {d * (k - 1) + 1} pixels wide," if d > 1 else str(k)
    return f"a window of {wide} does not fit into {n} pixels with their padding"


def trace_sizes(size: Extent, layers: Sequence[Layer]) -> list[Size]:
    """Height and width before all layers and after each of them.

    Args:
        size: Of the image, in pixels.
        layers: In the order in which they run.

    Raises:
        UserError: Torch would refuse a layer; the message names it.
    """
    sizes = [(along(size, 0), along(size, 1))]
    if min(sizes[0]) < 1:
        raise UserError(f"image size {sizes[0][0]}x{sizes[0][1]} must be at least 1x1 pixels")
    for number, layer in enumerate(layers, 1):
        try:
            _check(layer)
            size = layer.length(sizes[-1][0], 0), layer.length(sizes[-1][1], 1)
            if max(size) > LARGEST_SIDE:
                raise UserError(f"its map would have a side of {max(size)} pixels; take at most {LARGEST_SIDE:,}")
            sizes.append(size)
        except UserError as error:
            raise UserError(f"layer {number}, {notation(layer)}, on {sizes[-1][0]}x{sizes[-1][1]}: {error}") from None
    return sizes


def output_size(size: Extent, layers: Sequence[Layer]) -> Size:
    """Height and width after all layers; see `trace_sizes`.

    The course asks for this function in its second exercise.
    """
    return trace_sizes(size, layers)[-1]


def _check(layer: Layer) -> None:
    for field, value in layer._asdict().items():
        least = 1 if field in ("kernel", "stride", "dilation", "channels") else 0
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number < least:
                raise UserError(f"{field} {number} must be at least {least}")
    if isinstance(layer, Pool) and layer.kind == "avg" and layer.dilation not in (1, (1, 1)):
        raise UserError("average pooling has no dilation")


def notation(layer: Layer) -> str:
    """A layer in the notation of ``--layers``."""
    if isinstance(layer, Pad):
        return f"pad{layer[0]}" if len(set(layer)) == 1 else "pad" + "x".join(map(str, layer))
    head = {Conv: "conv", Transposed: "tconv", Pool: f"{getattr(layer, 'kind', '')}pool"}[type(layer)]
    text = head + _extent(layer.kernel)
    if layer.stride is not None and layer.stride != (layer.kernel if isinstance(layer, Pool) else 1):
        text += "/" + _extent(layer.stride)
    if layer.padding:
        text += "same" if layer.padding == "same" else "p" + _extent(layer.padding)
    if isinstance(layer, Transposed) and layer.output_padding:
        text += "o" + _extent(layer.output_padding)
    if layer.dilation != 1:
        text += "d" + _extent(layer.dilation)
    text += "ceil" * bool(getattr(layer, "ceil_mode", False))
    channels = getattr(layer, "channels", None)
    return text + (f":{channels}" if channels else "")


def _extent(extent: Any) -> str:
    return "x".join(map(str, extent)) if isinstance(extent, tuple) else str(extent)


_OPTION = r"/\d+(?:x\d+)?|[pod]\d+(?:x\d+)?|:\d+|same|ceil"
_TOKEN = re.compile(rf"(conv|tconv|maxpool|avgpool|pad)(\d+(?:x\d+)*)((?:{_OPTION})*)")
_ALLOWED = {
    "conv": ("/", "p", "d", ":", "same"),
    "tconv": ("/", "p", "o", "d", ":"),
    "maxpool": ("/", "p", "d", "ceil"),
    "avgpool": ("/", "p", "ceil"),
    "pad": (),
}
_FIELDS = {"/": "stride", "p": "padding", "o": "output_padding", "d": "dilation", ":": "channels"}


def parse_layers(text: str) -> list[Layer]:
    """Reads the notation of ``--layers``, such as ``conv7/2p3 maxpool3/2p1``.

    Raises:
        UserError: A word is not of the notation.
    """
    words = text.replace(",", " ").split()
    if not words:
        raise UserError("--layers is empty; write for example --layers 'conv7/2p3 maxpool3/2p1'")
    return [_parse_layer(word) for word in words]


def _parse_layer(word: str) -> Layer:
    match = _TOKEN.fullmatch(word)
    if match is None:
        raise UserError(f"cannot read layer '{word}'; write for example conv7/2p3, maxpool2, tconv4/2p1 or pad1")
    kind, numbers, rest = match.groups()
    large = next((number for number in re.findall(r"\d+", word) if too_large(number)), None)
    if large:
        raise UserError(f"layer '{word}': {large} is too large; take numbers of at most {LARGEST_NUMBER:,}")
    kernel = tuple(map(int, numbers.split("x")))
    options = re.findall(_OPTION, rest)
    keys = [o if o in ("same", "ceil") else o[0] for o in options]
    wrong = next((k for k in keys if k not in _ALLOWED[kind] or keys.count(k) > 1), None)
    if wrong or ("same" in keys and "p" in keys):
        valid = " ".join(_ALLOWED[kind]) or "none"
        raise UserError(f"layer '{word}': '{wrong or 'same'}' is not possible here; {kind} takes, once each: {valid}")
    if kind == "pad":
        if len(kernel) not in (1, 4):
            raise UserError(f"layer '{word}': give one number, or four: left, right, top, bottom")
        return Pad(*(kernel * 4 if len(kernel) == 1 else kernel))
    if len(kernel) > 2:
        raise UserError(f"layer '{word}': a kernel has one number, or height x width")
    settings: dict[str, Any] = {}
    for key, option in zip(keys, options, strict=True):
        if key in _FIELDS:
            settings[_FIELDS[key]] = pair_or_number(option[1:])
    if kind == "conv":
        return Conv(pair_or_number(numbers), **{**settings, **({"padding": "same"} if "same" in keys else {})})
    if kind == "tconv":
        return Transposed(pair_or_number(numbers), **settings)
    return Pool(pair_or_number(numbers), **settings, ceil_mode="ceil" in keys, kind=kind[:3])  # type: ignore[arg-type]


def too_large(number: str) -> bool:
    """Whether digits are a number above the limit, however many there are."""
    digits = number.lstrip("0")
    return len(digits) > len(str(LARGEST_NUMBER)) or int(digits or "0") > LARGEST_NUMBER


def pair_or_number(text: str) -> Any:
    numbers = tuple(map(int, text.split("x")))
    return numbers[0] if len(numbers) == 1 else numbers


def unread(size: Size, layer: Layer) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels of a layer's input that no window reads, so that nothing they show goes on.

    Returns:
        For rows and for columns: how many at the end, and how many before those, left over between windows.
    """
    found = []
    for axis, n in enumerate(size):
        if isinstance(layer, Transposed | Pad):
            found.append((0, 0))
            continue
        k, d = along(layer.kernel, axis), along(layer.dilation, axis)
        p = d * (k - 1) // 2 if layer.padding == "same" else along(layer.padding, axis)
        s = k if layer.stride is None else along(layer.stride, axis)
        read, windows = np.zeros(n, dtype=bool), layer.length(n, axis)
        # Positions are at w * s + t * d - p, of windows w and taps t: a slice for each of whatever there is less of.
        inner, outer = ((windows, s), (k, d)) if k < windows else ((k, d), (windows, s))
        for first in range(-p, outer[0] * outer[1] - p, outer[1]):
            skipped = max(0, -(first // inner[1])) if first < 0 else 0
            read[first + skipped * inner[1] : max(0, first + inner[0] * inner[1]) : inner[1]] = True
        last = int(n - 1 - read.nonzero()[0].max()) if read.any() else n
        found.append((last, int(n - read.sum()) - last))
    return found[0], found[1]


def unread_in_words(size: Size, layer: Layer) -> str:
    """Such as ``the last row and column``; ``28 of 56 rows`` where windows leave gaps."""
    parts = []
    for n, word, (last, between) in zip(size, ("row", "column"), unread(size, layer), strict=True):
        if between:
            parts.append((f"{last + between} of {n}", f"{word}s"))
        elif last:
            parts.append(("the last" if last == 1 else f"the last {last}", word + "s" * (last > 1)))
    if len(parts) == 2 and parts[0][0] == parts[1][0]:
        return f"{parts[0][0]} {parts[0][1]} and {parts[1][1]}"
    return ", ".join(" ".join(part) for part in parts)
