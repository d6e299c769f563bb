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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from PIL import Image
from PIL.Image import Image as Frame
from threadpoolctl import threadpool_limits

from cnnbench import progress
from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.options import ConvolutionOptions
from cnnbench.plots.drawing import MARKERS, PALETTE, log_axis
from cnnbench.plots.grids import outline
from cnnbench.registry import whole_numbers
from cnnbench.timing.conditions import Conditions, reasons_to_doubt

Pair = int | tuple[int, int]
Times = dict[str, dict[str, list[float]]]
"""Milliseconds of a call in each round of a race, by algorithm and then by case, ``"size,kernel"``."""
SIDE = 7
"""Height and width in pixels of the drawn image, without padding."""
EDGE = np.array([[-1.0, 0, 1]] * 3)
"""Drawn kernel, which responds to vertical edges."""
MOST_PLACES = 150
"""Largest number of window positions that is drawn; each position becomes a frame of the animation."""
LARGEST_SETTINGS = {"stride": 32, "padding": 8, "dilation": 32}
"""Largest settings of the drawn window, up to which the pictures can still be read."""
SHORTEST_S = 2e-3
"""Shortest measured time in seconds: the race repeats a call until the repetitions have taken this long."""
FEWEST_ROUNDS, MOST_ROUNDS = 3, 1000
"""Number of rounds below which the race does not say how times grow, and largest number of rounds allowed."""
LARGEST_MATRIX = 2**24
"""Largest number of entries of a Toeplitz matrix: 128 MiB in float64."""
LARGEST_COLUMNS = 2**27
"""Largest number of entries of im2col's matrix in a race: 1 GiB in float64, and twice that while it is built."""

WINDOW_CAPTION = (
    "At each place, the numbers in the window are multiplied by the kernel's weights, the small orange numbers, and "
    "added up. The sum, written out at the bottom, becomes one pixel of the output, red if it is positive and blue if "
    "it is negative. Watch at which sides of the square the output is not zero."
)
STEPS_CAPTION = (
    "Above is the window on the image, with the kernel's weights in its corners; below is the output so far. The "
    "window moves along a row, then one row down, until the last place."
)
MATRIX_CAPTION = (
    "The same layer as one matrix, with a row for each output and a column for each pixel; beside it are the image and "
    "the output as columns. White entries are zero, most of them because an output reads only the pixels in its "
    "window: this is locality. Equal colours are equal weights, and every row takes its weights from the same kernel: "
    "this is sharing."
)
RACE_CAPTION = (
    "Each point is the median time of an algorithm for one grey image and one kernel, and its bar reaches from the "
    "quickest round to the slowest. The kernel grows on the left and the image on the right; all axes are logarithmic. "
    "Look for the kernel from which on the FFT is faster than im2col: most kernels of networks are 1x1 to 7x7."
)


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
        pairs: dict[str, tuple[int, int]] = {}
        for name, value in {"stride": stride, "padding": padding, "dilation": dilation}.items():
            pair = (value, value) if isinstance(value, int) else value
            least = 0 if name == "padding" else 1
            if min(pair) < least:
                raise UserError(f"{name} {min(pair)} must be at least {least}")
            pairs[name] = pair
        return cls(**pairs, groups=groups, flip=flip)


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
    # Every number of the output is a sum of its own: one for each filter f, row i and column j.
    for f, i, j in np.ndindex(filters, height, width):
        # A filter reads only the input channels of its group, which begin at this one.
        first = f // (filters // groups) * channels
        # The stride sets where the window begins. A dilated window takes every dy-th row and every dx-th column.
        window = x[:, first : first + channels, i * sy : i * sy + dy * kh : dy, j * sx : j * sx + dx * kw : dx]
        # The same weights, (C / groups, kH, kW), meet the windows of all images, (N, C / groups, kH, kW).
        out[:, f, i, j] = (window * w[f]).sum((1, 2, 3))
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
    # Windows overlap, so each pixel is stored once for every window that it lies in: the memory that im2col costs.
    columns = columns.transpose(0, 1, 2, 4, 3).reshape(len(x), groups, channels * kh * kw, height * width)
    # One matrix product per image and group then computes all sums at once.
    rows = w.reshape(groups, filters // groups, channels * kh * kw)
    # Broadcasting uses the same filters for every image: (N, groups, O / groups, H' W').
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
    # The values of the image do not matter for the matrix, so zeros stand in for them.
    _, w, (rows, columns) = _prepared(np.zeros((1, *image_shape)), w, settings)
    (sy, sx), (py, px), (dy, dx), groups, _ = settings
    filters, seen, kh, kw = w.shape
    # The matrix grows with the fourth power of the image's side, so its size is checked before memory is taken.
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
    # Images are rows here, so the matrix is transposed: (N, C H W) times (C H W, O H' W').
    return (x.reshape(len(x), matrix.shape[1]) @ matrix.T).reshape(len(x), len(w), height, width)


def conv2d_fft(x: np.ndarray, w: np.ndarray, settings: Settings = PLAIN) -> np.ndarray:
    """Compute the same as `conv2d` by a product of Fourier transforms (Mathieu, Henaff, LeCun 2014).

    The product gives the result at every position; a stride then keeps every stride-th one.
    """
    x, w, (height, width) = _prepared(x, w, settings)
    (sy, sx), (dy, dx), groups = settings.stride, settings.dilation, settings.groups
    filters, channels, kh, kw = w.shape
    # A real row of W values has only W // 2 + 1 independent coefficients; the others are their conjugates.
    shape, half = x.shape[2:], x.shape[3] // 2 + 1
    # A dilated kernel is a larger kernel with zeros between the taps.
    spread = np.zeros((filters, channels, dy * (kh - 1) + 1, dx * (kw - 1) + 1))
    spread[:, :, ::dy, ::dx] = w
    # Transforms of one size are needed for a product, so `rfft2` pads the kernels with zeros to the image's size.
    # The axes of both are image, group, filter in the group, channel in the group, and two frequencies.
    images = np.fft.rfft2(x, shape).reshape(len(x), groups, 1, channels, shape[0], half)
    # The conjugate makes the product of transforms a correlation instead of a convolution.
    kernels = np.fft.rfft2(spread, shape).conj().reshape(1, groups, filters // groups, channels, shape[0], half)
    # The transform treats the image as periodic, so a window that crosses the edge wraps around to the other side.
    # Windows that lie inside the padded image do not wrap, and only their results are kept.
    everywhere = np.fft.irfft2((images * kernels).sum(3), shape).reshape(len(x), filters, *shape)
    return everywhere[:, :, : sy * (height - 1) + 1 : sy, : sx * (width - 1) + 1 : sx]


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
    # In float64, 8-bit images do not overflow, and all algorithms agree to rounding errors.
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (py, py), (px, px)))
    flipped = w[:, :, ::-1, ::-1] if settings.flip else w
    return padded, flipped.astype(np.float64), ((size[0] - span[0]) // sy + 1, (size[1] - span[1]) // sx + 1)


def torch_conv2d(x: np.ndarray, w: np.ndarray, settings: Settings = PLAIN) -> np.ndarray:
    """Compute the same as `conv2d` with torch, in float64, for comparison."""
    stride, padding, dilation, groups, flip = settings
    # A flipped view has negative strides, which torch does not accept; `np.array` copies it.
    weights = torch.from_numpy(np.array(w[:, :, ::-1, ::-1] if flip else w, dtype=np.float64, order="C"))
    images = torch.from_numpy(np.array(x, dtype=np.float64, order="C"))
    return F.conv2d(images, weights, None, stride, padding, dilation, groups).numpy()


RACED = ALGORITHMS | {"torch": torch_conv2d}
"""What takes part in the race."""


def multiply_adds(name: str, size: int, kernel: int) -> float:
    """Estimate the multiply-adds of an algorithm for one grey image and one kernel, padded to keep the size.

    Args:
        name: Name of the algorithm, a key of `ALGORITHMS`.
        size: Height and width of the image in pixels.
        kernel: Height and width of the kernel in pixels.
    """
    places = size**2
    if name == "Toeplitz":
        # Outputs times pixels, because a dense product does not skip the zeros of the matrix.
        return float(places**2)
    if name == "FFT":
        # The usual estimate is 2.5 n log2 n per complex transform of n numbers, and half of that for real numbers.
        # Image, kernel and result need a transform each; the product in between adds 2 n.
        n = (size + 2 * (kernel // 2)) ** 2
        return 3 * 0.5 * 2.5 * n * np.log2(n) + 2 * n
    return float(places * kernel**2)


def race(
    sizes: Sequence[int],
    kernels: Sequence[int],
    rounds: int,
    seed: int = 0,
    after_round: Callable[[], None] = lambda: None,
) -> Times:
    """Measure the time of each algorithm and of torch on one grey image, for every image size and kernel size.

    Args:
        sizes: Heights and widths of the images in pixels.
        kernels: Heights and widths of the kernels in pixels; kernels larger than the image are left out.
        rounds: Number of rounds; in each round every case is timed once, in a new random order.
        seed: Random seed for the images, weights and the order.
        after_round: Called after each round.

    Returns:
        Milliseconds of a call in each round. Sizes at which the loop or the Toeplitz matrix would take long are left
        out for these two.
    """
    calls, shuffler = _calls(sizes, kernels, seed), random.Random(seed)
    times: Times = {name: {} for name in RACED}
    # NumPy's loops use one thread, so torch and the matrix products of NumPy use one too.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"), progress.doing("racing algorithms", rounds) as step:
            # Warm-up: each case runs once without being timed.
            for call in calls.values():
                call()
            for _ in range(rounds):
                # In random order, a machine that slows down for a while does not always slow the same algorithm.
                for name, case in shuffler.sample(list(calls), len(calls)):
                    with progress.hushed():
                        times[name].setdefault(case, []).append(_milliseconds(calls[name, case]))
                after_round()
                step.advance()
    finally:
        torch.set_num_threads(before)
    return times


def _calls(sizes: Sequence[int], kernels: Sequence[int], seed: int) -> dict[tuple[str, str], Callable[[], Any]]:
    """Return the calls that `race` times, by algorithm and case; arguments as in `race`."""
    generator = np.random.default_rng(seed)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for size, kernel in product(sizes, kernels):
        if kernel > size:
            continue
        x, w = generator.standard_normal((1, 1, size, size)), generator.standard_normal((1, 1, kernel, kernel))
        # With this padding an odd kernel keeps the size of the image.
        settings = Settings.of(padding=kernel // 2)
        for name, algorithm in RACED.items():
            # These run in pure Python: the loop takes a step for each output, the matrix one for each output and tap.
            too_long = (name == "loop" and size > 64) or (name == "Toeplitz" and size > 16)
            if not too_long:
                calls[name, f"{size},{kernel}"] = partial(algorithm, x, w, settings)
    return calls


def _milliseconds(call: Callable[[], Any]) -> float:
    """Return the mean time of a call, which is repeated until the total is long enough to be measured."""
    count, passed, start = 0, 0.0, time.perf_counter()
    while not count or passed < SHORTEST_S:
        call()
        count += 1
        passed = time.perf_counter() - start
    return 1e3 * passed / count


def crossover(times: Times, size: int, kernels: Sequence[int]) -> int | None:
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


class Example(NamedTuple):
    """The drawn example: an image with a bright square, the kernel `EDGE`, and what is computed from them.

    Attributes:
        settings: Stride, padding, dilation and flip.
        image: Image without padding, (H, W).
        out: Output, (H', W').
        matrix: Matrix of the convolution, (H' W', H W).
        distinct_weights: Number of the kernel's weights that the matrix has in entries other than zero.
        errors: Largest difference from torch, by algorithm.
    """

    settings: Settings
    image: np.ndarray
    out: np.ndarray
    matrix: np.ndarray
    distinct_weights: int
    errors: dict[str, float]

    @property
    def padded(self) -> np.ndarray:
        """Return the image with its padding."""
        return np.pad(self.image, [(zeros, zeros) for zeros in self.settings.padding])

    def taps(self, step: int) -> list[tuple[int, int, float]]:
        """Return row and column in the padded image, and the weight, of each tap of the window at a step.

        Args:
            step: Index of the window position, row by row.
        """
        kernel = EDGE[::-1, ::-1] if self.settings.flip else EDGE
        (sy, sx), (dy, dx) = self.settings.stride, self.settings.dilation
        i, j = divmod(step, self.out.shape[1])
        return [(i * sy + a * dy, j * sx + b * dx, weight) for (a, b), weight in np.ndenumerate(kernel)]


class Race(NamedTuple):
    """A race between the algorithms.

    Attributes:
        sizes: Heights and widths of the images in pixels, in ascending order.
        kernels: Heights and widths of the kernels in pixels, in ascending order.
        rounds: Number of rounds.
        times: Result of `race`.
        crossovers: Result of `crossover` for each image size.
        doubts: What makes the times suspect, in words.
    """

    sizes: list[int]
    kernels: list[int]
    rounds: int
    times: Times
    crossovers: dict[int, int | None]
    doubts: list[str]

    @property
    def mark(self) -> str:
        """Return what follows a title: a mark if the times are suspect."""
        return " (suspect)" if self.doubts else ""


def explain(options: ConvolutionOptions) -> Explanation:
    """Draw the sliding window and the matrix for a small image, and race the algorithms.

    Raises:
        UserError: An option is out of its range, or the kernel is larger than the padded image.
    """
    sizes, kernels = _raced(options)
    example = _compute_example(_drawn_settings(options))
    numbers: dict[str, Any] = {
        "input": example.image.tolist(),
        "kernel": EDGE.tolist(),
        "output": example.out.tolist(),
        "largest_error": example.errors,
    }
    remarks = [_answer(example.out, example.settings), *_matrix_remarks(example)]
    explanation = Explanation(numbers, _example_tables(example), _example_pictures(example), remarks)
    if options.rounds:
        result = _run_race(sizes, kernels, options.rounds)
        explanation.numbers |= {
            "race_ms": result.times,
            "crossover_kernels": result.crossovers,
            "race_suspect": result.doubts,
        }
        explanation.tables += _race_tables(result)
        explanation.pictures.append(_race_picture(result))
        explanation.remarks += _race_remarks(result)
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


def _drawn_settings(options: ConvolutionOptions) -> Settings:
    """Return the settings of the drawn window.

    Raises:
        UserError: An option is out of its range, or the window has too many places to be drawn.
    """
    settings = Settings.of(options.stride, options.padding, options.dilation, flip=options.convolve)
    span = options.dilation * (len(EDGE) - 1) + 1
    # A window that does not fit has 0 places here; the convolution itself then reports it.
    places = max(0, (SIDE + 2 * options.padding - span) // options.stride + 1)
    if places**2 > MOST_PLACES:
        raise UserError(
            f"padding {options.padding} gives {places}x{places} places, more than the {MOST_PLACES} that are drawn; "
            "use less"
        )
    for name, most in LARGEST_SETTINGS.items():
        if getattr(options, name) > most:
            raise UserError(f"{name} {getattr(options, name)} of the drawn window must be at most {most}")
    return settings


def _compute_example(settings: Settings) -> Example:
    """Convolve the small image by every algorithm, and compare the results with torch.

    Raises:
        UserError: The kernel is larger than the padded image.
    """
    image = np.zeros((1, 1, SIDE, SIDE))
    image[0, 0, 2:5, 2:5] = 1
    kernel = EDGE[None, None]
    outputs = {name: algorithm(image, kernel, settings) for name, algorithm in ALGORITHMS.items()}
    expected = torch_conv2d(image, kernel, settings)
    errors = {name: float(np.abs(out - expected).max()) for name, out in outputs.items()}
    matrix = toeplitz_matrix(kernel, (1, SIDE, SIDE), settings)
    # A kernel with the weights 1, 2, 3, .. labels each entry of the matrix with the weight that it comes from.
    labels = np.arange(1.0, 1 + EDGE.size).reshape(kernel.shape)
    distinct = np.unique(toeplitz_matrix(labels, (1, SIDE, SIDE), settings)[matrix != 0])
    return Example(settings, image[0, 0], outputs["loop"][0, 0], matrix, len(distinct), errors)


def _example_tables(example: Example) -> list[Table]:
    """Return the differences between the algorithms, and the facts about the drawn window and its matrix."""
    errors = [(name, f"{error:.2g}") for name, error in example.errors.items()]
    operation = "correlation, which networks call convolution"
    if example.settings.flip:
        operation = "convolution: the kernel is flipped"
    rows, columns = example.matrix.shape
    facts = [
        ("Operation", operation),
        ("Matrix, outputs by pixels", f"{rows}x{columns}"),
        ("Entries of the matrix that are zero", f"{1 - np.count_nonzero(example.matrix) / example.matrix.size:.0%}"),
        ("Weights of the kernel other than zero", f"{np.count_nonzero(EDGE)}"),
        ("Of these, in the matrix", f"{example.distinct_weights}"),
    ]
    return [
        Table("The same by every algorithm", ("Algorithm", "Largest difference from torch"), errors),
        Table("The drawn window and its matrix", ("Fact", "Value"), facts),
    ]


def _answer(out: np.ndarray, settings: Settings) -> str:
    """Describe what the kernel does, and how it answers to the square in the image."""
    does = "The kernel subtracts left from right"
    if settings.flip:
        does = "The kernel, flipped, subtracts right from left"
    if out.min() < 0 < out.max():
        return f"{does}, so it answers at vertical edges, with opposite signs at the sides of the square."
    answer = "sees one side only" if out.any() else "answers 0"
    return f"{does}; at the places of this stride and dilation it {answer}."


def _matrix_remarks(example: Example) -> list[str]:
    """Say what is special about the matrix where the caption's words, locality and sharing, are not the whole truth."""
    entries, weights = np.count_nonzero(example.matrix), example.distinct_weights
    if entries == 0:
        return ["All of the matrix is zero: the kernel's weights other than zero all fall into the padding."]
    remarks = []
    if entries == weights:
        remarks.append("Each weight is in the matrix once, so nothing is shared here.")
    if weights < np.count_nonzero(EDGE):
        remarks.append("The kernel's other weights that are not zero always fall into the padding.")
    return remarks


def _example_pictures(example: Example) -> list[Picture]:
    """Draw the sliding window as an animation and as a still picture, and the matrix."""
    frames = [_draw_frame(example, step) for step in range(example.out.size)]
    return [
        Picture("convolution", "The sliding window", WINDOW_CAPTION, frames),
        Picture("convolution-steps", "Some of its steps", STEPS_CAPTION, _draw_steps(example)),
        Picture("toeplitz", "Convolution as a matrix", MATRIX_CAPTION, _draw_matrix(example)),
    ]


def _run_race(sizes: list[int], kernels: list[int], rounds: int) -> Race:
    """Race the algorithms, and watch whether something else kept the machine busy."""
    with Conditions(torch.device("cpu")) as conditions:
        times = race(sizes, kernels, rounds, after_round=conditions.look)
        doubts = reasons_to_doubt(conditions.figures())
    crossovers = {size: crossover(times, size, kernels) for size in sizes}
    return Race(sizes, kernels, rounds, times, crossovers, doubts)


def _race_tables(result: Race) -> list[Table]:
    """Return the times of all algorithms, and from which kernel on the FFT is faster."""
    rows = []
    for size, kernel in product(result.sizes, result.kernels):
        case = f"{size},{kernel}"
        for name, own in result.times.items():
            if case not in own:
                continue
            work = "-"  # torch chooses its algorithm by itself, so its multiply-adds are not known
            if name in ALGORITHMS:
                work = f"{multiply_adds(name, size, kernel):,.0f}"
            extent = f"{min(own[case]):.3g} to {max(own[case]):.3g}"
            median = f"{statistics.median(own[case]):.3g}"
            rows.append((name, f"{size}x{size}", f"{kernel}x{kernel}", work, median, extent))
    head = ("Algorithm", "Image", "Kernel", "Multiply-adds", "ms", "Range")
    rounds = "1 round" if result.rounds == 1 else f"{result.rounds} rounds"
    title = f"Race, one thread, float64, {rounds} in turns{result.mark}"
    crossings = []
    for size, ahead in result.crossovers.items():
        crossings.append((f"{size}x{size}", _crossing(ahead, _kernels_on(result.times, size))))
    return [
        Table(title, head, rows),
        Table("From which kernel on the FFT is faster than im2col", ("Image", "Kernel"), crossings),
    ]


def _race_remarks(result: Race) -> list[str]:
    """Return what the race says about the largest image, and why its times may be doubted."""
    size = max(result.sizes)
    raced = _kernels_on(result.times, size)
    remarks = [_verdict(size, result.crossovers[size], raced, result.rounds)]
    remarks += [f"The times of the race are suspect: {reason}." for reason in result.doubts]
    if result.rounds >= FEWEST_ROUNDS and len(raced) > 1:
        remarks.append(_growth(result.times, size))
    return remarks


def _race_picture(result: Race) -> Picture:
    """Draw the race: all kernels on the largest image, and the kernel in the middle of the list on all images."""
    largest, middle = max(result.sizes), result.kernels[len(result.kernels) // 2]
    figure = _draw_race(result.times, largest, middle, result.sizes, result.kernels)
    return Picture("convolution-race", f"Algorithms against each other{result.mark}", RACE_CAPTION, figure)


def _kernels_on(times: Times, size: int) -> list[int]:
    """Return the kernel sizes that were raced on images of this size, in ascending order."""
    cases = [tuple(map(int, case.split(","))) for case in times["FFT"]]
    return sorted(kernel for n, kernel in cases if n == size)


def _crossing(ahead: int | None, raced: Sequence[int]) -> str:
    """Return the table cell that names the kernel from which on the FFT is faster; arguments as in `_verdict`."""
    if not raced:
        return "-"
    if ahead is None:
        return "none of these"
    kernel = f"{ahead}x{ahead}"
    return f"{kernel}, the smallest raced" if ahead == raced[0] else kernel


def _verdict(size: int, ahead: int | None, raced: Sequence[int], rounds: int) -> str:
    """Say from which kernel on the FFT is faster, as far as the race shows it, and whether the race was too short.

    Args:
        size: Height and width of the images in pixels.
        ahead: Result of `crossover` for this size.
        raced: Kernel sizes that were raced, in ascending order.
        rounds: Number of rounds of the race.
    """
    least, most = f"{raced[0]}x{raced[0]}", f"{raced[-1]}x{raced[-1]}"
    if ahead is None:
        outcome = f"not faster than im2col with kernels of {most}, the largest raced"
    elif len(raced) == 1:
        outcome = f"faster than im2col with kernels of {least}, the only ones raced"
    elif ahead == raced[0]:
        outcome = f"faster than im2col with all kernels raced, {least} to {most}, so they do not cross"
    else:
        outcome = f"faster than im2col from kernels of {ahead}x{ahead} on"
    verdict = f"On images of {size}x{size} the FFT is {outcome}."
    if rounds < FEWEST_ROUNDS:
        few = "1 round says" if rounds == 1 else f"{rounds} rounds say"
        verdict += f" {few} little; give --rounds 5 or more."
    return verdict


def _growth(times: Times, size: int) -> str:
    """Say how the times of FFT and im2col grow from the smallest to the largest kernel raced on images of this size."""
    raced = _kernels_on(times, size)
    small, large = raced[0], raced[-1]
    factors = {}
    for name in ("im2col", "FFT"):
        first, last = (statistics.median(times[name][f"{size},{kernel}"]) for kernel in (small, large))
        factors[name] = last / first
    return (
        f"On images of {size}x{size}, from {small}x{small} to {large}x{large}, the kernel gets "
        f"{(large / small) ** 2:,.0f} times as many weights; "
        f"im2col's time becomes {factors['im2col']:.1f} times as long, the FFT's {factors['FFT']:.1f} times."
    )


def _draw_frame(example: Example, step: int) -> Frame:
    """Draw one step of the animation as an image."""
    figure = Figure(figsize=(6.4, 3.5), dpi=90)
    left, right = figure.add_axes((0.02, 0.14, 0.5, 0.78)), figure.add_axes((0.56, 0.14, 0.42, 0.78))
    _draw_window(left, example, step)
    _draw_output(right, example, step)
    left.set_title("image, window and kernel", fontsize=9)
    right.set_title(f"output, place {step + 1} of {example.out.size}", fontsize=9)
    figure.text(0.5, 0.04, _sum_in_words(example, step), ha="center", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    # A frame of a GIF has a palette of at most 256 colours; for flat areas and text, 32 are enough.
    return Image.open(file).convert("P", palette=Image.Palette.ADAPTIVE, colors=32)


def _draw_steps(example: Example) -> Figure:
    """Draw some steps of the animation side by side."""
    out = example.out
    # They are the strongest answers of both signs, the first two steps, the end of the first row, and the last step.
    last = out.size - 1
    steps = sorted({int(out.argmax()), int(out.argmin()), 0, min(1, last), out.shape[1] - 1, last})
    figure = Figure(figsize=(2.3 * len(steps), 4.2), layout="constrained")
    axes = figure.subplots(2, len(steps), squeeze=False)
    for above, below, step in zip(axes[0], axes[1], steps, strict=True):
        _draw_window(above, example, step)
        _draw_output(below, example, step)
        above.set_title(f"place {step + 1} of {out.size}", fontsize=9)
    return figure


def _draw_window(ax: Axes, example: Example, step: int) -> None:
    """Draw the padded image, and the window at a step with the weights of the kernel."""
    (py, px), padded = example.settings.padding, example.padded
    height, width = padded.shape
    ax.imshow(padded, cmap="Greys", vmin=-0.2, vmax=4)
    for (y, x), value in np.ndenumerate(padded):
        # The zeros of the padding are paler than the pixels of the image.
        inside = py <= y < height - py and px <= x < width - px
        colour = "#222222" if inside else "#aaaaaa"
        ax.text(x, y, f"{value:g}", ha="center", va="center", fontsize=8, color=colour)
    if py or px:
        outline(ax, (py, px), (height - py, width - px), "#888888", linestyle=":", linewidth=1)
    for y, x, weight in example.taps(step):
        outline(ax, (y, x), (y + 1, x + 1), PALETTE[1], clip_on=False, zorder=3)
        ax.text(x + 0.42, y + 0.4, f"{weight:g}", ha="right", va="bottom", fontsize=6, color=PALETTE[1])
    _pale_frame(ax)


def _draw_output(ax: Axes, example: Example, step: int) -> None:
    """Draw the output up to a step, whose number gets an outline."""
    out = example.out
    # The places of the later steps are not numbers yet, and so stay white.
    so_far = np.where(np.arange(out.size).reshape(out.shape) <= step, out, np.nan)
    # With equal ends on both sides of zero, zero is white. An output of zeros alone still needs a range.
    bound = max(np.abs(out).max(), 1)
    ax.imshow(so_far, cmap="RdBu_r", vmin=-bound, vmax=bound)
    for place, value in enumerate(out.ravel()[: step + 1]):
        y, x = divmod(place, out.shape[1])
        # White letters are readable on the dark colours at both ends of the scale.
        colour = "white" if abs(value) > 0.6 * bound else "#222222"
        ax.text(x, y, f"{value:g}", ha="center", va="center", fontsize=9, color=colour)
    i, j = divmod(step, out.shape[1])
    outline(ax, (i, j), (i + 1, j + 1), PALETTE[1], clip_on=False, zorder=3)
    _pale_frame(ax)


def _pale_frame(ax: Axes) -> None:
    """Remove the ticks of a panel, and draw its frame in pale grey."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_color("#cccccc")


def _sum_in_words(example: Example, step: int) -> str:
    """Write out the sum of products at a step, without the terms in which the weight is zero."""
    padded = example.padded
    terms = []
    for y, x, weight in example.taps(step):
        if weight:
            factor = f"({weight:g})" if weight < 0 else f"{weight:g}"
            terms.append(f"{padded[y, x]:g}·{factor}")
    return f"{' + '.join(terms)} = {example.out.flat[step]:g}"


def _draw_matrix(example: Example) -> Figure:
    """Draw the matrix, and next to it the image and the output as columns."""
    matrix = example.matrix
    figure = Figure(figsize=(8.0, 3.6 * max(0.6, len(matrix) / matrix.shape[1] * 1.6)), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[matrix.shape[1], 4, 4])
    bound = np.abs(matrix).max() or 1
    axes[0].imshow(matrix, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto", interpolation="nearest")
    axes[0].set(xlabel="pixels of the image, row by row", ylabel="outputs, row by row")
    axes[0].yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes[0].set_title("matrix", fontsize=9)
    for ax, values, title in ((axes[1], example.image, "image"), (axes[2], example.out, "output")):
        top = max(np.abs(values).max(), 1)
        ax.imshow(values.reshape(-1, 1), cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=9)
    return figure


def _draw_race(times: Times, size: int, kernel: int, sizes: Sequence[int], kernels: Sequence[int]) -> Figure:
    """Draw the times of all `kernels` on images of one `size`, and of one `kernel` on images of all `sizes`."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left_cases = {side: f"{size},{side}" for side in kernels}
    right_cases = {side: f"{side},{kernel}" for side in sizes}
    _draw_panel(left, times, left_cases, f"images of {size}x{size}", "side of the kernel, pixels")
    _draw_panel(right, times, right_cases, f"kernels of {kernel}x{kernel}", "side of the image, pixels")
    # The panels share their vertical axis, so its limits come from the times in both.
    drawn = {*left_cases.values(), *right_cases.values()}
    everything: list[float] = []
    for own in times.values():
        for case in drawn.intersection(own):
            everything += own[case]
    log_axis(left, left.yaxis, everything, "milliseconds", "{:g}".format)
    log_axis(right, right.yaxis, everything, "", "{:g}".format)
    # An algorithm may be in one panel only; the legend has each once, in the order of the race.
    handles: dict[str, Any] = {}
    for ax in (left, right):
        lines, labels = ax.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    names = [name for name in times if name in handles]
    figure.legend([handles[n] for n in names], names, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _draw_panel(ax: Axes, times: Times, cases: Mapping[int, str], title: str, label: str) -> None:
    """Draw a line per algorithm through the medians of the cases, with bars from the quickest round to the slowest.

    The keys of `cases` are the sides of the kernel or image, in pixels, that are on the horizontal axis.
    """
    raced: set[int] = set()
    for index, (name, own) in enumerate(times.items()):
        sides, medians, below, above = [], [], [], []
        for side, case in cases.items():
            if case in own:
                median = statistics.median(own[case])
                sides.append(side)
                medians.append(median)
                below.append(median - min(own[case]))
                above.append(max(own[case]) - median)
        if sides:
            style: dict[str, Any] = {"color": PALETTE[index], "marker": MARKERS[index], "markersize": 5}
            ax.errorbar(sides, medians, yerr=[below, above], label=name, capsize=2, linewidth=1.5, **style)
        raced.update(sides)
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e6e6e6", linewidth=0.7)
    ticks = sorted(raced)
    log_axis(ax, ax.xaxis, ticks, label, "{:g}".format)
    # Ticks are where something was raced, not at the round numbers of other logarithmic axes.
    ax.set_xticks(_apart(ticks))
    ax.xaxis.set_minor_locator(NullLocator())


def _apart(values: Sequence[int]) -> list[int]:
    """Return those values, of sorted ones, whose labels do not overlap on a logarithmic axis.

    The largest value is kept, and each further one lies at least 6 % of the axis below the last one kept.
    """
    chosen = [values[-1]]
    for value in reversed(values):
        # The bound above zero keeps a value that is alone from being chosen twice.
        if math.log(chosen[-1] / value) >= max(0.06 * math.log(values[-1] / values[0]), 1e-9):
            chosen.append(value)
    return chosen[::-1]
