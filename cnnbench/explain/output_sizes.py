"""Output sizes of layers that move a window over a map: convolution, pooling, transposed convolution and padding.

Along each axis, a window of k pixels with dilation d, stride s and padding p turns H pixels into
floor((H + 2p - d*(k - 1) - 1) / s) + 1 (Dumoulin, Visin 2016, 1603.07285). With ceil_mode the quotient is rounded up,
and a last window that would start beyond the last pixel of the input is dropped. All rules are torch's, including those
on which settings raise an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from cnnbench.errors import UserError

LARGEST_NUMBER = 65_536
"""Largest number that the notation accepts, and largest height or width of an image in pixels."""
LARGEST_SIDE = 2**24
"""Largest height or width of a feature map in pixels."""
Extent = int | tuple[int, int]
"""One number of pixels for both axes, or a pair of height and width."""


class Conv(NamedTuple):
    """A convolution.

    Attributes:
        kernel: Kernel size.
        stride: Stride.
        padding: Zeros on each side, or ``same`` for as many as keep the size; an odd zero goes to the right or bottom.
        dilation: Distance between the taps of the kernel.
        channels: Output channels; None if not stated.
    """

    kernel: Extent
    stride: Extent = 1
    padding: Extent | Literal["same"] = 0
    dilation: Extent = 1
    channels: int | None = None

    def length(self, n: int, axis: int) -> int:
        """Return the output size along an axis.

        Args:
            n: Input size along this axis, in pixels.
            axis: 0 for the height, 1 for the width.

        Raises:
            UserError: The window does not fit into the padded input, or the padding ``same`` comes with a stride.
        """
        if self.padding == "same":
            if along(self.stride, 0) != 1 or along(self.stride, 1) != 1:
                raise UserError("padding 'same' is for stride 1 only; give the padding as a number")
            return n
        k, s, d = along(self.kernel, axis), along(self.stride, axis), along(self.dilation, axis)
        return _windows(n + 2 * along(self.padding, axis), k, s, d)


class Pool(NamedTuple):
    """Max pooling or average pooling.

    Attributes:
        kernel: Window size.
        stride: Stride; None for the window size.
        padding: Padding on each side, at most half of the window.
        dilation: Distance between the pixels of the window; 1 for average pooling.
        ceil_mode: Whether the output size is rounded up.
        kind: Type of the pooling, ``max`` or ``avg``.
    """

    kernel: Extent
    stride: Extent | None = None
    padding: Extent = 0
    dilation: Extent = 1
    ceil_mode: bool = False
    kind: Literal["max", "avg"] = "max"

    def length(self, n: int, axis: int) -> int:
        """Return the output size along an axis; see `Conv.length` for the arguments.

        Raises:
            UserError: The padding is more than half of the window, or the window does not fit into the padded input.
        """
        k, p, d = along(self.kernel, axis), along(self.padding, axis), along(self.dilation, axis)
        s = k if self.stride is None else along(self.stride, axis)
        if p > k // 2:
            raise UserError(f"padding {p} of a pooling is more than half of its window of {k}; take at most {k // 2}")
        if not self.ceil_mode:
            return _windows(n + 2 * p, k, s, d)
        # Steps after the first window, rounded up: -(-a // s) is the ceiling of a / s.
        steps = -(-(n + 2 * p - d * (k - 1) - 1) // s)
        # Windows start at -p, so the last one would start at steps * s - p. It is dropped if that is beyond the input.
        steps -= steps * s >= n + p
        # Rounding up accepts a window that sticks out by less than a stride, even on an input smaller than the window.
        if steps < 0:
            raise UserError(_too_small(n + 2 * p, k, d))
        return steps + 1


class Transposed(NamedTuple):
    """A transposed convolution: a convolution with the same settings maps its output size back to its input size.

    Attributes:
        kernel: Kernel size.
        stride: Stride.
        padding: Pixels that are cut off on each side of the output.
        output_padding: Pixels that are added at the end of the output; they choose one of several sizes that the
            convolution maps to the same input size.
        dilation: Distance between the taps of the kernel.
        channels: Output channels; None if not stated.
    """

    kernel: Extent
    stride: Extent = 1
    padding: Extent = 0
    output_padding: Extent = 0
    dilation: Extent = 1
    channels: int | None = None

    def length(self, n: int, axis: int) -> int:
        """Return the output size along an axis; see `Conv.length` for the arguments.

        Raises:
            UserError: The output padding is not below stride or dilation, or the padding leaves no pixel.
        """
        k, s, p, o, d = (along(value, axis) for value in self[:5])
        if o >= max(s, d):
            raise UserError(f"output padding {o} must be below the stride {s} or the dilation {d}")
        # Torch's formula: that of the convolution, solved for its input size.
        length = (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        if length < 1:
            raise UserError(f"padding {p} leaves {length} of {n} pixels; take less")
        return length


class Pad(NamedTuple):
    """Zeros around a map: pixels on each side, in the order of torch's padding."""

    left: int
    right: int
    top: int
    bottom: int

    def length(self, n: int, axis: int) -> int:
        """Return the output size along an axis: 0 for the height, 1 for the width."""
        if axis == 0:
            return n + self.top + self.bottom
        return n + self.left + self.right


Layer = Conv | Pool | Transposed | Pad
Size = tuple[int, int]
"""Height and width in pixels."""


def along(extent: Any, axis: int) -> int:
    """Return the number of an extent for an axis: 0 for the height, 1 for the width."""
    if isinstance(extent, tuple):
        return extent[axis]
    return extent


def _windows(n: int, k: int, s: int, d: int) -> int:
    """Count the windows along an axis of n pixels, padding included: the formula at the top of this file."""
    # A window spans d (k - 1) + 1 pixels from its first tap to its last, both included.
    if n < d * (k - 1) + 1:
        raise UserError(_too_small(n, k, d))
    return (n - d * (k - 1) - 1) // s + 1


def _too_small(n: int, k: int, d: int) -> str:
    """Return the error message for a window of k pixels with dilation d on n pixels, padding included."""
    window = str(k)
    if d > 1:
        window = f"{k} with dilation {d}, {d * (k - 1) + 1} pixels wide,"
    return f"a window of {window} does not fit into {n} pixels with their padding"


def trace_sizes(size: Extent, layers: Sequence[Layer]) -> list[Size]:
    """Return height and width of the image and of the output of each layer.

    Args:
        size: Height and width of the image in pixels, or one number for both.
        layers: Layers in the order in which they run.

    Raises:
        UserError: Torch would raise an error for a layer, or a map would be larger than `LARGEST_SIDE`; the message
            names the layer.
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
    """Return height and width after all layers; see `trace_sizes`.

    The course asks for this function in its second exercise.
    """
    return trace_sizes(size, layers)[-1]


def _check(layer: Layer) -> None:
    """Raise UserError if a setting is too small, or if an average pooling is dilated."""
    for field, value in layer._asdict().items():
        least = 1 if field in ("kernel", "stride", "dilation", "channels") else 0
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            # Settings may also be None or a word, such as ``same``.
            if isinstance(number, int) and number < least:
                raise UserError(f"{field} {number} must be at least {least}")
    if isinstance(layer, Pool) and layer.kind == "avg" and layer.dilation not in (1, (1, 1)):
        raise UserError("average pooling has no dilation")


def notation(layer: Layer) -> str:
    """Return a layer in the notation of ``--layers``; settings with their default value are left out."""
    if isinstance(layer, Pad):
        # Four equal sides are written as one number.
        sides = layer if len(set(layer)) > 1 else layer[:1]
        return f"pad{_extent(sides)}"
    kernel = _extent(layer.kernel)
    if isinstance(layer, Pool):
        text = f"{layer.kind}pool{kernel}" + _option("/", layer.stride, layer.kernel)
    else:
        name = "conv" if isinstance(layer, Conv) else "tconv"
        text = f"{name}{kernel}" + _option("/", layer.stride, 1)
    text += _option("p", layer.padding, 0)
    if isinstance(layer, Transposed):
        text += _option("o", layer.output_padding, 0)
    text += _option("d", layer.dilation, 1)
    if isinstance(layer, Pool):
        if layer.ceil_mode:
            text += "ceil"
    elif layer.channels:
        text += f":{layer.channels}"
    return text


def _option(letter: str, value: Any, usual: Extent) -> str:
    """Return an option of the notation; empty if its value is the usual one or None."""
    if value == "same":  # a padding in words
        return "same"
    return "" if value in (None, usual) else letter + _extent(value)


def _extent(extent: Any) -> str:
    """Return one number, or several with an ``x`` between them, as text."""
    numbers = extent if isinstance(extent, tuple) else (extent,)
    return "x".join(map(str, numbers))


# Each option begins with a character of its own, so options can follow each other without separators.
_OPTION = r"/\d+(?:x\d+)?|[pod]\d+(?:x\d+)?|:\d+|same|ceil"
_TOKEN = re.compile(rf"(conv|tconv|maxpool|avgpool|pad)(\d+(?:x\d+)*)((?:{_OPTION})*)")
"""Pattern of a word of the notation: name, kernel size, and options."""
_ALLOWED = {
    "conv": ("/", "p", "d", ":", "same"),
    "tconv": ("/", "p", "o", "d", ":"),
    "maxpool": ("/", "p", "d", "ceil"),
    "avgpool": ("/", "p", "ceil"),
    "pad": (),
}
"""Options of each layer, by their letter or word."""
_FIELDS = {"/": "stride", "p": "padding", "o": "output_padding", "d": "dilation", ":": "channels"}
"""Setting of a layer that each option with a number stands for."""


def parse_layers(text: str) -> list[Layer]:
    """Return the layers that a text in the notation of ``--layers`` describes, such as ``conv7/2p3 maxpool3/2p1``.

    Raises:
        UserError: The text is empty, or one of its words does not follow the notation (see `NOTATION`).
    """
    words = text.replace(",", " ").split()
    if not words:
        raise UserError("--layers is empty; write for example --layers 'conv7/2p3 maxpool3/2p1'")
    return [_parse_layer(word) for word in words]


def _parse_layer(word: str) -> Layer:
    """Return the layer that a word of the notation describes."""
    match = _TOKEN.fullmatch(word)
    if match is None:
        raise UserError(f"cannot read layer '{word}'; write for example conv7/2p3, maxpool2, tconv4/2p1 or pad1")
    for number in re.findall(r"\d+", word):
        if too_large(number):
            raise UserError(f"layer '{word}': {number} is too large; take numbers of at most {LARGEST_NUMBER:,}")
    kind, numbers, rest = match.groups()
    # The whole word has matched, so `rest` holds nothing but options.
    settings = _parse_options(word, kind, re.findall(_OPTION, rest))
    if kind == "pad":
        return _parse_pad(word, numbers)
    if numbers.count("x") > 1:
        raise UserError(f"layer '{word}': a kernel has one number, or height x width")
    kernel = pair_or_number(numbers)
    if kind == "conv":
        return Conv(kernel, **settings)
    if kind == "tconv":
        return Transposed(kernel, **settings)
    return Pool(kernel, kind="max" if kind == "maxpool" else "avg", **settings)


def _parse_options(word: str, kind: str, options: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a layer of some kind, such as ``conv``, from the options of its word: ``/2``, ``p3``."""
    # An option is a word, or a letter or sign with numbers.
    keys = [option if option in ("same", "ceil") else option[0] for option in options]
    allowed = _ALLOWED[kind]
    wrong = next((key for key in keys if key not in allowed or keys.count(key) > 1), None)
    if wrong is None and "same" in keys and "p" in keys:
        wrong = "same"  # both are paddings
    if wrong is not None:
        valid = " ".join(allowed) or "none"
        raise UserError(f"layer '{word}': '{wrong}' is not possible here; {kind} takes, once each: {valid}")
    settings: dict[str, Any] = {}
    for key, option in zip(keys, options, strict=True):
        if key == "same":
            settings["padding"] = "same"
        elif key == "ceil":
            settings["ceil_mode"] = True
        else:
            settings[_FIELDS[key]] = pair_or_number(option[1:])
    return settings


def _parse_pad(word: str, numbers: str) -> Pad:
    """Return the padding with one number for all sides, or with four such as ``1x2x0x3``."""
    sides = list(map(int, numbers.split("x")))
    if len(sides) not in (1, 4):
        raise UserError(f"layer '{word}': give one number, or four: left, right, top, bottom")
    # Four numbers repeated are cut back to four; a single one fills all sides.
    return Pad(*(sides * 4)[:4])


def too_large(number: str) -> bool:
    """Return whether a string of digits is a number above `LARGEST_NUMBER`."""
    # The length is compared first, so that `int` never has to convert a very long string.
    digits = number.lstrip("0")
    return len(digits) > len(str(LARGEST_NUMBER)) or int(digits or "0") > LARGEST_NUMBER


def pair_or_number(text: str) -> Any:
    """Return "3x5" as a pair of numbers, and "3" as one number."""
    numbers = tuple(map(int, text.split("x")))
    if len(numbers) == 1:
        return numbers[0]
    return numbers


def unread(size: Size, layer: Layer) -> tuple[tuple[int, int], tuple[int, int]]:
    """Count the rows and columns of a layer's input that no window reads; they have no influence on the output.

    Args:
        size: Height and width of the input in pixels.
        layer: Layer; transposed convolutions and padding read everything.

    Returns:
        A pair for the rows and a pair for the columns: the number of unread ones at the end of the input, and the
        number of other unread ones, which are gaps between windows or taps.
    """
    if isinstance(layer, Transposed | Pad):
        return (0, 0), (0, 0)
    return _unread_along(size[0], layer, 0), _unread_along(size[1], layer, 1)


def _unread_along(n: int, layer: Conv | Pool, axis: int) -> tuple[int, int]:
    """Count the unread pixels along an axis of n pixels: those at the end, and the others."""
    k, d = along(layer.kernel, axis), along(layer.dilation, axis)
    s = k if layer.stride is None else along(layer.stride, axis)
    # The padding ``same`` puts the smaller half in front.
    p = d * (k - 1) // 2 if layer.padding == "same" else along(layer.padding, axis)
    windows = layer.length(n, axis)
    # Tap t of window w reads the pixel w * s + t * d - p. All pixels of one tap lie at equal distances, and so do all
    # pixels of one window, so a slice marks them at once. The loop runs over taps or windows, whichever are fewer.
    if k < windows:
        # Tap t first reads the pixel t * d - p, then one a stride further in each next window.
        starts, count, step = range(-p, k * d - p, d), windows, s
    else:
        # Window w first reads the pixel w * s - p, then one a dilation further with each next tap.
        starts, count, step = range(-p, windows * s - p, s), k, d
    read = np.zeros(n, dtype=bool)
    for start in starts:
        # Pixels before 0 are padding. The slice must skip them, because a negative index counts from the end.
        first = start + max(0, -(start // step)) * step
        read[first : max(0, start + count * step) : step] = True
    # All windows may lie in the padding.
    if not read.any():
        return n, 0
    at_the_end = int(n - 1 - read.nonzero()[0].max())
    return at_the_end, int(n - read.sum()) - at_the_end


def unread_in_words(size: Size, layer: Layer) -> str:
    """Return the unread pixels in words, such as "the last row and column", or "28 of 56 rows" if there are gaps."""
    parts = []
    for n, word, (last, between) in zip(size, ("row", "column"), unread(size, layer), strict=True):
        if between:
            parts.append((f"{last + between} of {n}", f"{word}s"))
        elif last == 1:
            parts.append(("the last", word))
        elif last > 1:
            parts.append((f"the last {last}", f"{word}s"))
    # Where the same is true of rows and columns, it is said once.
    if len(parts) == 2 and parts[0][0] == parts[1][0]:
        return f"{parts[0][0]} {parts[0][1]} and {parts[1][1]}"
    return ", ".join(" ".join(part) for part in parts)
