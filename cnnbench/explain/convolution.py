"""Four algorithms for the same convolution, pictures of the sliding window, and a race between the algorithms.

`conv2d` follows the definition and is written to be read. Three other functions compute the same result in other ways:
im2col, a Toeplitz matrix and the FFT. All four take images x, (N, C, H, W), and weights w, (O, C / groups, kH, kW), and
return (N, O, H', W') with

    H' = floor((H + 2 padding - dilation (kH - 1) - 1) / stride) + 1.

What networks call a convolution is a correlation, because the kernel is not flipped. The setting ``flip`` flips the
kernel, which gives the convolution of mathematics.
"""

from __future__ import annotations

import io
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from PIL import Image
from PIL.Image import Image as Frame
from threadpoolctl import threadpool_limits

from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.options import ConvolutionOptions
from cnnbench.plots.drawing import MARKERS, PALETTE, log_axis
from cnnbench.plots.grids import outline
from cnnbench.registry import whole_numbers
from cnnbench.timing.conditions import Conditions, reasons_to_doubt

MOST_PLACES = 150
"""Largest number of window positions that is drawn; each position becomes a frame of the animation."""
Pair = int | tuple[int, int]
EDGE = np.array([[-1.0, 0, 1]] * 3)
SHORTEST_S = 2e-3
"""Shortest measured time in seconds: the race repeats a call until the repetitions have taken this long."""
FEWEST_ROUNDS, MOST_ROUNDS = 3, 1000
"""Number of rounds below which the race does not say how times grow, and largest number of rounds allowed."""
LARGEST_MATRIX = 2**24
"""Largest number of entries of a Toeplitz matrix: 128 MiB in float64."""
LARGEST_COLUMNS = 2**27
"""Largest number of entries of im2col's matrix in a race: 1 GiB in float64, and twice that while it is built."""
LARGEST_SETTINGS = {"stride": 32, "padding": 8, "dilation": 32}
"""Largest settings of the drawn window, up to which the pictures can still be read."""


class Settings(NamedTuple):
    """Settings of a convolution; pairs hold the value for the height, then the value for the width.

    Attributes:
        stride: Pixels from one window to the next.
        padding: Zeros on each side of the image.
        dilation: Pixels from one tap (one position of the kernel) to the next.
        groups: Number of groups; each filter reads only the input channels of its own group.
        flip: Whether the kernel is flipped, which turns the correlation into a mathematical convolution.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    flip: bool = False

    @classmethod
    def of(
        cls, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, groups: int = 1, flip: bool = False
    ) -> Settings:
        """Return settings from numbers, each of which holds for both axes, or from pairs of height and width.

        Raises:
            UserError: A stride or dilation is below 1, or a padding is below 0.
        """
        pairs = {"stride": stride, "padding": padding, "dilation": dilation}
        both = {name: (value, value) if isinstance(value, int) else value for name, value in pairs.items()}
        for name, pair in both.items():
            if min(pair) < (name != "padding"):
                raise UserError(f"{name} {min(pair)} must be at least {int(name != 'padding')}")
        return cls(**both, groups=groups, flip=flip)


PLAIN = Settings()


def conv2d(x: np.ndarray, w: np.ndarray, settings: Settings = PLAIN) -> np.ndarray:
    """Compute a convolution by its definition: at each position, sum the products of window and kernel.

    Args:
        x: Images, (N, C, H, W).
        w: Weights, (O, C / groups, kH, kW).
        settings: Stride, padding, dilation, groups and flip.

    Returns:
        Feature maps in float64, (N, O, H', W').

    Raises:
        UserError: The shapes do not fit, or the kernel is larger than the padded image.
    """
    x, w, (height, width) = _prepared(x, w, settings)
    (sy, sx), (dy, dx), groups = settings.stride, settings.dilation, settings.groups
    filters, channels, kh, kw = w.shape
    out = np.zeros((len(x), filters, height, width))
    for f, i, j in np.ndindex(filters, height, width):
        # A filter reads only the input channels of its group, which begin at this one.
        first = f // (filters // groups) * channels
        # A dilated window takes every dy-th row and every dx-th column.
        window = x[:, first : first + channels, i * sy : i * sy + dy * kh : dy, j * sx : j * sx + dx * kw : dx]
        out[:, f, i, j] = (window[:, :, :kh, :kw] * w[f]).sum((1, 2, 3))
    return out


def conv2d_im2col(x: np.ndarray, w: np.ndarray, settings: Settings = PLAIN) -> np.ndarray:
    """Compute the same as `conv2d` by matrix products (im2col; Chellapilla, Puri, Simard 2006).

    Each window becomes a column of a matrix, and each filter becomes a row of another.
    """
    x, w, (height, width) = _prepared(x, w, settings)
    (sy, sx), (dy, dx), groups = settings.stride, settings.dilation, settings.groups
    filters, channels, kh, kw = w.shape
    span = (dy * (kh - 1) + 1, dx * (kw - 1) + 1)
    # The windows at every position are a view; strides select positions of it, and dilations select pixels.
    # (N, C, H', W', kH, kW)
    windows = np.lib.stride_tricks.sliding_window_view(x, span, (2, 3))[:, :, ::sy, ::sx, ::dy, ::dx]
    # A column holds the pixels of one window in the order of a filter's weights: channel, row, column.
    columns = windows.reshape(len(x), groups, channels, height * width, kh * kw)
    columns = columns.transpose(0, 1, 2, 4, 3).reshape(len(x), groups, channels * kh * kw, height * width)
    rows = w.reshape(groups, filters // groups, channels * kh * kw)
    return (rows @ columns).reshape(len(x), filters, height, width)


def toeplitz_matrix(w: np.ndarray, image_shape: tuple[int, int, int], settings: Settings = PLAIN) -> np.ndarray:
    """Return the matrix that maps the pixels of an image to the outputs of the convolution, (O H' W', C H W).

    With a stride of 1 the part of each filter and channel is doubly block Toeplitz: its blocks, and the entries within
    each block, are equal along diagonals.

    Args:
        w: Weights, (O, C / groups, kH, kW).
        image_shape: Channels, height and width of the images.
        settings: Stride, padding, dilation, groups and flip.

    Raises:
        UserError: The matrix would have more than `LARGEST_MATRIX` entries, or the shapes do not fit.
    """
    channels, height, width = image_shape
    _, w, (rows, columns) = _prepared(np.zeros((1, *image_shape)), w, settings)
    (sy, sx), (py, px), (dy, dx), groups, _ = settings
    filters, seen, kh, kw = w.shape
    if filters * rows * columns * channels * height * width > LARGEST_MATRIX:
        raise UserError(f"the matrix for images of {channels}x{height}x{width} is too large; use a smaller image")
    matrix = np.zeros((filters, rows, columns, channels, height, width))
    for f, c, i, j, a, b in product(*map(range, (filters, seen, rows, columns, kh, kw))):
        # Pixel of the image, without padding, that tap (a, b) of the window at output (i, j) reads.
        y, x = i * sy + a * dy - py, j * sx + b * dx - px
        # A tap on the padding reads a zero, so it needs no entry.
        if 0 <= y < height and 0 <= x < width:
            matrix[f, i, j, f // (filters // groups) * seen + c, y, x] = w[f, c, a, b]
    return matrix.reshape(filters * rows * columns, channels * height * width)


def conv2d_toeplitz(x: np.ndarray, w: np.ndarray, settings: Settings = PLAIN) -> np.ndarray:
    """Compute the same as `conv2d` by one product with the matrix of `toeplitz_matrix`."""
    _, _, (height, width) = _prepared(x, w, settings)
    shape = x.shape[1], x.shape[2], x.shape[3]
    matrix = toeplitz_matrix(w, shape, settings)
    return (x.reshape(len(x), matrix.shape[1]) @ matrix.T).reshape(len(x), len(w), height, width)


def conv2d_fft(x: np.ndarray, w: np.ndarray, settings: Settings = PLAIN) -> np.ndarray:
    """Compute the same as `conv2d` by a product of Fourier transforms (Mathieu, Henaff, LeCun 2014).

    The product gives the result at every position; a stride then keeps every stride-th one.
    """
    x, w, (height, width) = _prepared(x, w, settings)
    (sy, sx), (dy, dx), groups = settings.stride, settings.dilation, settings.groups
    filters, channels, kh, kw = w.shape
    shape, half = x.shape[2:], x.shape[3] // 2 + 1
    # A dilated kernel is a larger kernel with zeros between the taps.
    spread = np.zeros((filters, channels, dy * (kh - 1) + 1, dx * (kw - 1) + 1))
    spread[:, :, ::dy, ::dx] = w
    images = np.fft.rfft2(x, shape).reshape(len(x), groups, 1, channels, shape[0], half)
    # The conjugate makes the product of transforms a correlation instead of a convolution.
    kernels = np.fft.rfft2(spread, shape).conj().reshape(1, groups, filters // groups, channels, shape[0], half)
    # The transform treats the image as periodic, so a window that crosses the edge wraps around to the other side.
    # Windows that lie inside the padded image do not wrap, and only their results are kept.
    found = np.fft.irfft2((images * kernels).sum(3), shape).reshape(len(x), filters, *shape)
    return found[:, :, : sy * (height - 1) + 1 : sy, : sx * (width - 1) + 1 : sx]


ALGORITHMS: dict[str, Callable[..., np.ndarray]] = {
    "loop": conv2d,
    "im2col": conv2d_im2col,
    "Toeplitz": conv2d_toeplitz,
    "FFT": conv2d_fft,
}


def _prepared(x: np.ndarray, w: np.ndarray, settings: Settings) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Check the shapes; return padded images, kernels (flipped if asked for), and height and width of the result.

    Images and kernels are returned in float64.
    """
    if x.ndim != 4 or w.ndim != 4:
        raise UserError(
            f"images and weights must have 4 axes, (N, C, H, W) and (O, C, kH, kW), not {x.ndim} and {w.ndim}"
        )
    if 0 in (w.shape[0], *w.shape[2:]):
        raise UserError(f"weights of {'x'.join(map(str, w.shape))} are empty; give at least one filter of 1x1")
    groups = settings.groups
    if groups < 1 or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise UserError(
            f"{x.shape[1]} channels, {w.shape[0]} filters of {w.shape[1]} channels and {groups} groups do not fit; "
            "channels must be groups times those of a filter, and the filters a multiple of the groups"
        )
    (sy, sx), (py, px), (dy, dx) = settings.stride, settings.padding, settings.dilation
    span = (dy * (w.shape[2] - 1) + 1, dx * (w.shape[3] - 1) + 1)
    size = (x.shape[2] + 2 * py, x.shape[3] + 2 * px)
    if span[0] > size[0] or span[1] > size[1]:
        raise UserError(
            f"a kernel that spans {span[0]}x{span[1]} pixels is larger than the padded image of {size[0]}x{size[1]}; "
            "use more padding, or a smaller kernel or dilation"
        )
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (py, py), (px, px)))
    flipped = w[:, :, ::-1, ::-1] if settings.flip else w
    return padded, flipped.astype(np.float64), ((size[0] - span[0]) // sy + 1, (size[1] - span[1]) // sx + 1)


def torch_conv2d(x: np.ndarray, w: np.ndarray, settings: Settings = PLAIN) -> np.ndarray:
    """Compute the same as `conv2d` with torch, in float64, for comparison."""
    stride, padding, dilation, groups, flip = settings
    weights = torch.from_numpy(np.array(w[:, :, ::-1, ::-1] if flip else w, dtype=np.float64, order="C"))
    images = torch.from_numpy(np.array(x, dtype=np.float64, order="C"))
    return F.conv2d(images, weights, None, stride, padding, dilation, groups).numpy()


def multiply_adds(name: str, size: int, kernel: int) -> float:
    """Estimate the multiply-adds of an algorithm for one grey image and one kernel, padded to keep the size.

    Args:
        name: Name of the algorithm, a key of `ALGORITHMS`.
        size: Height and width of the image in pixels.
        kernel: Height and width of the kernel in pixels.
    """
    places = size**2
    if name == "Toeplitz":
        return float(places**2)
    if name == "FFT":
        # The usual estimate is 2.5 n log2 n per complex transform of n numbers, and half of that for real numbers.
        # Image, kernel and result need a transform each; the product in between adds 2 n.
        n = (size + 2 * (kernel // 2)) ** 2
        return 3 * 0.5 * 2.5 * n * np.log2(n) + 2 * n
    return float(places * kernel**2)


def race(sizes: Sequence[int], kernels: Sequence[int], rounds: int, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """Measure the time of each algorithm and of torch on one grey image, for every image size and kernel size.

    Args:
        sizes: Heights and widths of the images in pixels.
        kernels: Heights and widths of the kernels in pixels; kernels larger than the image are left out.
        rounds: Number of rounds; in each round every case is timed once, in a new random order.
        seed: Random seed for the images, weights and the order.

    Returns:
        Milliseconds of a call in each round, by algorithm and then by case, ``"size,kernel"``. Sizes at which the loop
        or the Toeplitz matrix would take long are left out for these two.
    """
    generator, shuffler = np.random.default_rng(seed), random.Random(seed)
    ways = ALGORITHMS | {"torch": torch_conv2d}
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for size, kernel in product(sizes, kernels):
        if kernel > size:
            continue
        x, w = generator.standard_normal((1, 1, size, size)), generator.standard_normal((1, 1, kernel, kernel))
        settings = Settings.of(padding=kernel // 2)
        for name, way in ways.items():
            if (name == "loop" and size > 64) or (name == "Toeplitz" and size > 16):
                continue
            calls[name, f"{size},{kernel}"] = partial(way, x, w, settings)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    # NumPy's loops use one thread, so torch and the matrix products of NumPy use one too.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            # Warm-up: each case runs once without being timed.
            for call in calls.values():
                call()
            for _ in range(rounds):
                for name, case in shuffler.sample(list(calls), len(calls)):
                    found[name].setdefault(case, []).append(_milliseconds(calls[name, case]))
    finally:
        torch.set_num_threads(before)
    return found


def _milliseconds(call: Callable[[], Any]) -> float:
    """Return the mean time of a call, which is repeated until the total is long enough to be measured."""
    count, passed, start = 0, 0.0, time.perf_counter()
    while not count or passed < SHORTEST_S:
        call()
        count += 1
        passed = time.perf_counter() - start
    return 1e3 * passed / count


def crossover(times: dict[str, dict[str, list[float]]], size: int, kernels: Sequence[int]) -> int | None:
    """Return the smallest kernel from which on the FFT is faster than im2col.

    Args:
        times: Result of `race`; the medians of the rounds are compared.
        size: Height and width of the images in pixels.
        kernels: Kernel sizes that were raced.

    Returns:
        Height and width of that kernel in pixels; None if im2col is at least as fast with the largest kernel, or if no
        kernel was raced on this size.
    """
    # The search starts at the largest kernel and ends at the first with which the FFT is not faster: a win at a small
    # kernel does not count if the FFT loses again at a larger one.
    ahead = None
    for kernel in sorted(kernels, reverse=True):
        case = f"{size},{kernel}"
        if case not in times["FFT"]:
            continue
        if statistics.median(times["FFT"][case]) >= statistics.median(times["im2col"][case]):
            break
        ahead = kernel
    return ahead


def explain(options: ConvolutionOptions) -> Explanation:
    """Draw the sliding window and the matrix for a small image, and race the algorithms.

    Raises:
        UserError: An option is out of its range, or the kernel is larger than the padded image.
    """
    sizes, kernels = _raced(options)
    settings = Settings.of(options.stride, options.padding, options.dilation, flip=options.convolve)
    image = np.zeros((1, 1, 7, 7))
    image[0, 0, 2:5, 2:5] = 1
    kernel = EDGE[None, None]
    places = [max(0, (7 + 2 * p - d * (len(EDGE) - 1) - 1) // s + 1) for s, p, d in zip(*settings[:3], strict=True)]
    if places[0] * places[1] > MOST_PLACES:
        raise UserError(
            f"padding {options.padding} gives {places[0]}x{places[1]} places, more than the {MOST_PLACES} that are "
            "drawn; use less"
        )
    for name, most in LARGEST_SETTINGS.items():
        if getattr(options, name) > most:
            raise UserError(f"{name} {getattr(options, name)} of the drawn window must be at most {most}")
    results = {name: way(image, kernel, settings) for name, way in ALGORITHMS.items()}
    exact = torch_conv2d(image, kernel, settings)
    errors = {name: float(np.abs(found - exact).max()) for name, found in results.items()}
    out = results["loop"][0, 0]
    explanation = Explanation(
        {"input": image[0, 0].tolist(), "kernel": EDGE.tolist(), "output": out.tolist(), "largest_error": errors},
        [
            Table(
                "The same by every algorithm",
                ("Algorithm", "Largest difference from torch"),
                [(name, f"{error:.2g}") for name, error in errors.items()],
            )
        ],
    )
    what = "convolution: the kernel is flipped" if options.convolve else "correlation, which networks call convolution"
    window_caption = (
        f"At each place the window's numbers are multiplied by the kernel's and added up ({what}). "
        f"{_answer(out, settings)}"
    )
    steps_caption = (
        "Above the window on the image, with the kernel's weights in its corners; below the output so far: along a "
        "row, then one row down, until the last place."
    )
    matrix = toeplitz_matrix(kernel, (1, 7, 7), settings)
    frames = [_frame(image[0, 0], out, settings, step) for step in range(out.size)]
    # The still picture shows the strongest answers of both signs, the first two steps, the end of a row and the end.
    telling = {int(out.argmax()), int(out.argmin()), 0, min(1, out.size - 1), out.shape[1] - 1, out.size - 1}
    steps = sorted(telling)
    explanation.pictures += [
        Picture("convolution", "The sliding window", window_caption, frames),
        Picture("convolution-steps", "Some of its steps", steps_caption, _strip(image[0, 0], out, settings, steps)),
        Picture(
            "toeplitz",
            "Convolution as a matrix",
            _matrix_caption(matrix, settings),
            _draw_matrix(matrix, image[0, 0], out),
        ),
    ]
    if options.rounds:
        _add_race(explanation, sizes, kernels, options.rounds)
    return explanation


def _raced(options: ConvolutionOptions) -> tuple[list[int], list[int]]:
    """Return the image sizes and the kernel sizes of the race, in pixels.

    Raises:
        UserError: A size is repeated or does not fit, the rounds are out of range, or im2col's matrix is too large.
    """
    sizes, kernels = (whole_numbers(name, getattr(options, name)) for name in ("sizes", "kernels"))
    for name, values in (("sizes", sizes), ("kernels", kernels)):
        if len(getattr(options, name).split(",")) > len(values):
            raise UserError(f"{name} '{getattr(options, name)}' have a number twice; name each once")
    if any(kernel % 2 == 0 for kernel in kernels):
        raise UserError(f"kernels '{options.kernels}' of the race must be odd, so that the image keeps its size")
    if not 0 <= options.rounds <= MOST_ROUNDS:
        raise UserError(f"rounds {options.rounds} must be from 0, for no race, to {MOST_ROUNDS:,}")
    if max(kernels) > max(sizes):
        raise UserError(
            f"kernel {max(kernels)} of the race is larger than its largest image, {max(sizes)}; leave it out"
        )
    if options.rounds and (max(sizes) * max(kernels)) ** 2 > LARGEST_COLUMNS:
        raise UserError(
            f"im2col's matrix for images of {max(sizes)}x{max(sizes)} and kernels of {max(kernels)}x{max(kernels)} has "
            f"{(max(sizes) * max(kernels)) ** 2:,} entries; take smaller --sizes or --kernels, of at most "
            f"{LARGEST_COLUMNS:,}"
        )
    return sizes, kernels


def _matrix_caption(matrix: np.ndarray, settings: Settings) -> str:
    """Describe the entries of the matrix: its zeros, and the weights that do not always fall into the padding."""
    # A kernel with the weights 1, 2, 3, .. labels each entry with the tap that it comes from.
    numbers = np.arange(1.0, 1 + EDGE.size).reshape(1, 1, *EDGE.shape)
    taps = toeplitz_matrix(numbers, (1, 7, 7), settings)[matrix != 0]
    found, every = len(np.unique(taps)), np.count_nonzero(EDGE)
    caption = (
        f"The same layer as one matrix of {matrix.shape[0]}x{matrix.shape[1]}: a row per output, a column per pixel, "
        "equal weights in equal colours."
    )
    if not found:
        return f"{caption} All of it is zero: the kernel's {every} weights other than zero all fall into the padding."
    some = "" if found == every else f"{found} of "
    how = "again and again, which is sharing" if len(taps) > found else "once each"
    how = "once, since there is one place" if len(matrix) == 1 else how
    rest = "" if found == every else "; the rest always falls into the padding"
    return (
        f"{caption} {1 - len(taps) / matrix.size:.0%} of it is zero, which is locality, and its other entries are "
        f"{some}the kernel's {every} weights other than zero {how}{rest}."
    )


def _answer(out: np.ndarray, settings: Settings) -> str:
    """Describe what the kernel does, and how it answers to the square in the image."""
    does = "The kernel, flipped, subtracts right from left" if settings.flip else "The kernel subtracts left from right"
    if out.min() < 0 < out.max():
        return f"{does}, so it answers at vertical edges, with opposite signs at the sides of the square."
    return f"{does}; at the places of this stride and dilation it {'sees one side only' if out.any() else 'answers 0'}."


def _add_race(explanation: Explanation, sizes: list[int], kernels: list[int], rounds: int) -> None:

    with Conditions(torch.device("cpu")) as conditions:
        times = race(sizes, kernels, rounds)
        doubts = reasons_to_doubt(conditions.figures())
    largest, middle = max(sizes), kernels[len(kernels) // 2]
    found = {size: crossover(times, size, kernels) for size in sizes}
    ahead = found[largest]
    explanation.numbers |= {"race_ms": times, "crossover_kernels": found, "race_suspect": doubts}
    rows = [
        (
            name,
            f"{size}x{size}",
            f"{kernel}x{kernel}",
            f"{multiply_adds(name, size, kernel):,.0f}" if name != "torch" else "-",
            f"{statistics.median(times[name][case]):.3g}",
            f"{min(times[name][case]):.3g} to {max(times[name][case]):.3g}",
        )
        for size, kernel in product(sizes, kernels)
        for name in times
        if (case := f"{size},{kernel}") in times[name]
    ]
    head = ("Algorithm", "Image", "Kernel", "Multiply-adds", "ms", "Range")
    suspect = " (suspect)" if doubts else ""
    title = f"Race, one thread, float64, {_counted(rounds, 'round')} in turns{suspect}"
    explanation.tables.append(Table(title, head, rows))
    crossings = [(f"{n}x{n}", _crossing(k, _kernels_on(times, n), "-")) for n, k in found.items()]
    explanation.tables.append(
        Table("From which kernel on the FFT is faster than im2col", ("Image", "Kernel"), crossings)
    )
    sentence = " ".join(
        [_verdict(largest, ahead, _kernels_on(times, largest), rounds), *(f"Suspect: {reason}." for reason in doubts)]
    )
    caption = (
        f"One grey image and one kernel; {_counted(rounds, 'round')}"
        f"{', medians, bars from the quickest to the slowest' * (rounds > 1)}. {sentence}"
    )
    if rounds >= FEWEST_ROUNDS and len(_kernels_on(times, largest)) > 1:
        caption += f" {_growth(times, largest)}"
    explanation.remarks.append(sentence)
    explanation.pictures.append(
        Picture(
            "convolution-race",
            f"Algorithms against each other{suspect}",
            caption,
            _draw_race(times, largest, middle, sizes, kernels),
        )
    )


def _kernels_on(times: dict[str, dict[str, list[float]]], size: int) -> list[int]:
    """Return the kernel sizes that were raced on images of this size, in ascending order."""
    cases = [tuple(map(int, case.split(","))) for case in times["FFT"]]
    return sorted(kernel for n, kernel in cases if n == size)


def _crossing(ahead: int | None, raced: Sequence[int], nothing: str) -> str:
    """Return the table cell that names the kernel from which on the FFT is faster.

    Args:
        ahead: Result of `crossover`.
        raced: Kernel sizes that were raced, in ascending order.
        nothing: Cell for an image size on which no kernel was raced.
    """
    if not raced:
        return nothing
    if ahead is None:
        return "none of these"
    return f"{ahead}x{ahead}" + ", the smallest raced" * (ahead == raced[0])


def _verdict(size: int, ahead: int | None, raced: Sequence[int], rounds: int) -> str:
    """Say from which kernel on the FFT is faster, as far as the race shows it, and whether the race was too short.

    Args:
        size: Height and width of the images in pixels.
        ahead: Result of `crossover` for this size.
        raced: Kernel sizes that were raced, in ascending order.
        rounds: Number of rounds of the race.
    """
    least, most = (f"{kernel}x{kernel}" for kernel in (raced[0], raced[-1]))
    if ahead is None:
        found = f"not faster than im2col with kernels of {most}, the largest raced"
    elif len(raced) == 1:
        found = f"faster than im2col with kernels of {least}, the only ones raced"
    elif ahead == raced[0]:
        found = f"faster than im2col with all kernels raced, {least} to {most}, so they do not cross"
    else:
        found = f"faster than im2col from kernels of {ahead}x{ahead} on"
    few = f" {_counted(rounds, 'round')} {'says' if rounds == 1 else 'say'} little; give --rounds 5 or more."
    return f"On images of {size}x{size} the FFT is {found}." + few * (rounds < FEWEST_ROUNDS)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _growth(times: dict[str, dict[str, list[float]]], size: int) -> str:
    """Say how the times of FFT and im2col grow from the smallest to the largest kernel raced on images of this size."""
    raced = _kernels_on(times, size)
    ways = ("FFT", "im2col")
    first, last = ({w: statistics.median(times[w][f"{size},{k}"]) for w in ways} for k in (raced[0], raced[-1]))
    return (
        f"From {raced[0]}x{raced[0]} to {raced[-1]}x{raced[-1]} the kernel has {(raced[-1] / raced[0]) ** 2:,.0f} "
        f"times as many weights; im2col's time becomes {last['im2col'] / first['im2col']:.1f} times as long, the FFT's "
        f"{last['FFT'] / first['FFT']:.1f} times. Most kernels of networks are 1x1 to 7x7."
    )


def _window(ax: Any, image: np.ndarray, out: np.ndarray, settings: Settings, step: int, target: Any) -> None:
    """Draw the padded image with the window at a step, and the output up to that step.

    Args:
        ax: Panel for image and window.
        image: Image without padding, (H, W).
        out: Complete output, (H', W').
        settings: Stride, padding, dilation and flip.
        step: Index of the window position, row by row.
        target: Panel for the output.
    """
    py, px = settings.padding
    padded = np.pad(image, ((py, py), (px, px)))
    kernel = EDGE[::-1, ::-1] if settings.flip else EDGE
    i, j = divmod(step, out.shape[1])
    top, left = i * settings.stride[0], j * settings.stride[1]
    dy, dx = settings.dilation
    ax.imshow(padded, cmap="Greys", vmin=-0.2, vmax=4)
    for y, x in np.ndindex(padded.shape):
        outside = not (py <= y < padded.shape[0] - py and px <= x < padded.shape[1] - px)
        ax.text(
            x, y, f"{padded[y, x]:g}", ha="center", va="center", fontsize=8, color="#aaaaaa" if outside else "#222222"
        )
    if py or px:
        outline(ax, (py, px), (padded.shape[0] - py, padded.shape[1] - px), "#888888", linestyle=":", linewidth=1)
    for a, b in np.ndindex(kernel.shape):
        y, x = top + a * dy, left + b * dx
        outline(ax, (y, x), (y + 1, x + 1), PALETTE[1], clip_on=False, zorder=3)
        ax.text(x + 0.42, y + 0.4, f"{kernel[a, b]:g}", ha="right", va="bottom", fontsize=6, color=PALETTE[1])
    shown = np.where(np.arange(out.size).reshape(out.shape) <= step, out, np.nan)
    bound = max(np.abs(out).max(), 1)
    target.imshow(shown, cmap="RdBu_r", vmin=-bound, vmax=bound)
    for y, x in np.ndindex(out.shape):
        if not np.isnan(shown[y, x]):
            colour = "white" if abs(shown[y, x]) > 0.6 * bound else "#222222"
            target.text(x, y, f"{shown[y, x]:g}", ha="center", va="center", fontsize=9, color=colour)
    outline(target, (i, j), (i + 1, j + 1), PALETTE[1], clip_on=False, zorder=3)
    for panel in (ax, target):
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_color("#cccccc")


def _sum_in_words(image: np.ndarray, out: np.ndarray, settings: Settings, step: int) -> str:
    """Write out the sum of products at a step, without the terms in which the weight is zero."""
    padded = np.pad(image, [(p, p) for p in settings.padding])
    kernel = EDGE[::-1, ::-1] if settings.flip else EDGE
    i, j = divmod(step, out.shape[1])
    terms = []
    for (a, b), weight in np.ndenumerate(kernel):
        if weight:
            pixel = padded[
                i * settings.stride[0] + a * settings.dilation[0], j * settings.stride[1] + b * settings.dilation[1]
            ]
            terms.append(f"{pixel:g}·({weight:g})" if weight < 0 else f"{pixel:g}·{weight:g}")
    return " + ".join(terms) + f" = {out[i, j]:g}"


def _frame(image: np.ndarray, out: np.ndarray, settings: Settings, step: int) -> Frame:
    """Draw one step of the animation as an image."""
    figure = Figure(figsize=(6.4, 3.5), dpi=90)
    left, right = figure.add_axes((0.02, 0.14, 0.5, 0.78)), figure.add_axes((0.56, 0.14, 0.42, 0.78))
    _window(left, image, out, settings, step, right)
    left.set_title("image, window and kernel", fontsize=9)
    right.set_title(f"output, place {step + 1} of {out.size}", fontsize=9)
    figure.text(0.5, 0.04, _sum_in_words(image, out, settings, step), ha="center", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("P", palette=Image.Palette.ADAPTIVE, colors=32)


def _strip(image: np.ndarray, out: np.ndarray, settings: Settings, steps: Sequence[int]) -> Figure:

    figure = Figure(figsize=(2.3 * len(steps), 4.2), layout="constrained")
    axes = figure.subplots(2, len(steps), squeeze=False)
    for column, step in enumerate(steps):
        _window(axes[0, column], image, out, settings, step, axes[1, column])
        axes[0, column].set_title(f"place {step + 1} of {out.size}", fontsize=9)
    return figure


def _draw_matrix(matrix: np.ndarray, image: np.ndarray, out: np.ndarray) -> Figure:
    """Draw the matrix, and next to it the image and the output as columns."""
    figure = Figure(figsize=(8.0, 3.6 * max(0.6, len(matrix) / matrix.shape[1] * 1.6)), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[matrix.shape[1], 4, 4])
    bound = np.abs(matrix).max() or 1
    axes[0].imshow(matrix, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto", interpolation="nearest")
    axes[0].set(xlabel="pixels of the image, row by row", ylabel="outputs, row by row")
    axes[0].yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes[0].set_title("matrix", fontsize=9)
    for ax, values, title in ((axes[1], image, "image"), (axes[2], out, "output")):
        top = max(np.abs(values).max(), 1)
        ax.imshow(values.reshape(-1, 1), cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=9)
    return figure


def _apart(values: Sequence[int]) -> list[int]:
    """Return those values, of sorted ones, whose labels do not overlap on a logarithmic axis.

    The largest value is kept, and each further one lies at least 6 % of the axis below the last one kept.
    """
    chosen = [values[-1]]
    for value in reversed(values):
        if math.log(chosen[-1] / value) >= max(0.06 * math.log(values[-1] / values[0]), 1e-9):
            chosen.append(value)
    return chosen[::-1]


def _draw_race(
    times: dict[str, dict[str, list[float]]], size: int, kernel: int, sizes: Sequence[int], kernels: Sequence[int]
) -> Figure:

    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (left, [(k, f"{size},{k}") for k in kernels], f"images of {size}x{size}", "side of the kernel, pixels"),
        (right, [(s, f"{s},{kernel}") for s in sizes], f"kernels of {kernel}x{kernel}", "side of the image, pixels"),
    )
    everything: list[float] = []
    for ax, cases, title, label in panels:
        for index, (name, found) in enumerate(times.items()):
            points = [(x, found[case]) for x, case in cases if case in found]
            if not points:
                continue
            middle = [statistics.median(t) for _, t in points]
            bars = [
                [m - min(t) for m, (_, t) in zip(middle, points, strict=True)],
                [max(t) - m for m, (_, t) in zip(middle, points, strict=True)],
            ]
            everything += [end for _, t in points for end in (min(t), max(t))]
            ax.errorbar(
                [x for x, _ in points],
                middle,
                yerr=bars,
                label=name,
                color=PALETTE[index],
                marker=MARKERS[index],
                capsize=2,
                linewidth=1.5,
                markersize=5,
            )
        ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e6e6e6", linewidth=0.7)
        raced = sorted({x for x, case in cases if any(case in found for found in times.values())})
        log_axis(ax, ax.xaxis, raced, label, "{:g}".format)
        ax.set_xticks(_apart(raced))
        ax.xaxis.set_minor_locator(NullLocator())
    for ax in (left, right):
        log_axis(ax, ax.yaxis, everything, "milliseconds" if ax is left else "", "{:g}".format)
    named = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    named |= dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
    shown = [name for name in times if name in named]
    figure.legend([named[n] for n in shown], shown, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure
