"""Bank of classic filters, applied to a photo in the way of a network: by correlation, in floating point.

Sources of the kernels: Sobel and Feldman 1968; Prewitt 1970; binomial filter, sampled Gaussian, Laplacian and unsharp
mask as in Szeliski, Computer Vision, 2022, chapter 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image

from cnnbench.errors import UserError, unknown
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.networks import read_photo
from cnnbench.explain.options import KernelsOptions
from cnnbench.plots.grids import grid, show

LARGEST_SIDE = 512
"""Largest height or width of a photo in pixels; larger photos are scaled down before they are filtered."""
LARGEST_KERNEL = 101
"""Largest height and width of a filter in pixels."""
SIGMAS = (0.05, 1000.0)
"""Smallest and largest standard deviation of a Gaussian in pixels. At any kernel size, the smallest one gives in effect
a single pixel, and the largest one a flat square."""
GRADIENT = "gradient"
"""Name of the magnitude of Sobel's gradient, which is computed from two filters and has no kernel of its own."""

_KERNELS = "Each filter answers to one local pattern; its kernel, if it has one, is in the corner of its picture. "
_PHOTOS = (
    " The results of filters whose weights sum to 1 are drawn from black, 0, to white, 1; the magnitude of Sobel's "
    "gradient is drawn from black, 0, to white, its largest value."
)
CAPTION = (
    f"{_KERNELS}Filters whose weights sum to 0 answer to change: red where the answer is plus, blue where it is minus, "
    f"each picture scaled by itself, its strongest 0.3 % cut.{_PHOTOS}"
)
CAPTION_IN_COLOUR = (
    f"{_KERNELS}Filters whose weights sum to 0 answer to change: mid-grey is no answer, brighter plus and darker minus "
    f"in each colour, each picture scaled by itself.{_PHOTOS}"
)


class Kernel(NamedTuple):
    """A filter of the bank.

    Attributes:
        values: Weights, (kH, kW).
        effect: Description of what the filter does or responds to, in a few words.
        signed: Whether the result has both signs, around zero; otherwise it is an image, with values from about 0 to 1.
    """

    values: np.ndarray
    effect: str
    signed: bool


def box(size: int) -> np.ndarray:
    """Return the filter that takes the mean over a square.

    Args:
        size: Height and width in pixels, odd.

    Raises:
        UserError: The size is even or out of its range.
    """
    _check_size(size)
    return np.full((size, size), 1 / size**2)


def binomial(size: int) -> np.ndarray:
    """Return a binomial filter: the outer product of a row of Pascal's triangle with itself, scaled to sum 1.

    Its variance is (size - 1) / 4 along each axis, in square pixels.

    Args:
        size: Height and width in pixels, odd.

    Raises:
        UserError: The size is even or out of its range.
    """
    _check_size(size)
    row = np.array([math.comb(size - 1, k) for k in range(size)], dtype=float)
    # The entries of the row add up to 2 ** (size - 1), so those of the outer product add up to the square of that.
    return np.outer(row, row) / row.sum() ** 2


def gaussian(size: int, sigma: float) -> np.ndarray:
    """Return a Gaussian, sampled at the centres of the pixels and scaled to sum 1.

    Args:
        size: Height and width in pixels, odd.
        sigma: Standard deviation in pixels.

    Raises:
        UserError: The size is even or out of its range, or sigma is out of its range.
    """
    _check_size(size)
    if not SIGMAS[0] <= sigma <= SIGMAS[1]:
        low, high = SIGMAS
        raise UserError(f"sigma {sigma:g} of a Gaussian must be from {low:g} to {high:g} pixels, such as 1.4")
    # Pixels are counted from the middle. A Gaussian of two variables is the product of one along y and one along x.
    at = np.arange(size) - size // 2
    row = np.exp(-(at**2) / (2 * sigma**2))
    return np.outer(row, row) / row.sum() ** 2


def unsharp_mask(size: int, sigma: float, amount: float) -> np.ndarray:
    """Return an unsharp mask: the image plus a multiple of the detail that a Gaussian blur removes from it.

    Args:
        size: Height and width in pixels, odd.
        sigma: Standard deviation of the Gaussian in pixels.
        amount: Factor of the added detail.

    Raises:
        UserError: The size is even or out of its range, or sigma is out of its range.
    """
    # Filtering is linear, so image + amount * (image - blur) is one kernel. The image itself is a 1 in the middle.
    kernel = -amount * gaussian(size, sigma)
    kernel[size // 2, size // 2] += 1 + amount
    return kernel


def cross(size: int) -> np.ndarray:
    """Return a filter that responds to bright upright crosses.

    Weights are positive on the middle row and the middle column, negative elsewhere, and sum to zero, so the response
    to a uniform area is zero.

    Args:
        size: Height and width in pixels, odd, at least 3.

    Raises:
        UserError: The size is even, below 3, or above `LARGEST_KERNEL`.
    """
    _check_size(size)
    if size < 3:
        raise UserError(f"size {size} of a cross is too small to have anything around it; use 3 or more")
    middle = np.arange(size) == size // 2
    # A pixel is on the cross if its row or its column is the middle one.
    on = middle[:, None] | middle
    return np.where(on, 1 / on.sum(), -1 / (~on).sum())


def _check_size(size: int) -> None:
    """Raise UserError unless the size of a filter is odd and in its range."""
    if not 1 <= size <= LARGEST_KERNEL or size % 2 == 0:
        raise UserError(
            f"size {size} of a filter must be odd, so that it has a middle, and from 1 to {LARGEST_KERNEL}, such as 5"
        )


def bank(size: int = 5, sigma: float = 1.0) -> dict[str, Kernel]:
    """Return the filters by name.

    Args:
        size: Height and width of box, Gaussian, unsharp mask and cross detector in pixels, odd.
        sigma: Standard deviation of Gaussian and unsharp mask in pixels.

    Raises:
        UserError: A value is out of its range.
    """
    # Sobel's filter smooths by 1, 2, 1 across the direction of the change; Prewitt's takes the mean.
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=float)
    prewitt = np.array([[-1, 0, 1]] * 3, dtype=float)
    # The sum of the second differences, 1, -2, 1, along both axes.
    laplacian = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=float)
    centre = np.outer([0, 1, 0], [0, 1, 0])  # leaves the image as it is
    # The filters of Sobel and Prewitt for y are those for x, transposed.
    return {
        "sobel_x": Kernel(sobel, "change along x: vertical edges", True),
        "sobel_y": Kernel(sobel.T, "change along y: horizontal edges", True),
        "prewitt_x": Kernel(prewitt, "change along x: vertical edges", True),
        "prewitt_y": Kernel(prewitt.T, "change along y: horizontal edges", True),
        "laplacian_4": Kernel(laplacian, "second derivative, 4 neighbours: edges of all directions", True),
        # Ones everywhere, except for 1 - 9 = -8 in the middle.
        "laplacian_8": Kernel(1 - 9 * centre, "the same, 8 neighbours", True),
        "box": Kernel(box(size), f"mean of {size}x{size} pixels", False),
        "binomial_5": Kernel(binomial(5), "blur by the binomial 5x5, sigma 1", False),
        "gaussian": Kernel(gaussian(size, sigma), f"blur by a sampled Gaussian, {size}x{size}, sigma {sigma:g}", False),
        "sharpen": Kernel(centre - laplacian, "the image minus its Laplacian", False),
        "unsharp_mask": Kernel(unsharp_mask(size, sigma, 1.0), "the image plus what a blur takes away", False),
        "emboss": Kernel(np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]]), "relief, light from the upper left", False),
        "cross": Kernel(cross(size), "bright upright crosses", True),
    }


def apply(image: np.ndarray, kernel: np.ndarray, convolve: bool = False) -> np.ndarray:
    """Filter every channel of an image; the result has the same size, and the image is mirrored at its border.

    Args:
        image: Image of any type, (H, W) or (H, W, C).
        kernel: Weights, (kH, kW), both odd.
        convolve: Whether the kernel is flipped, for a mathematical convolution; otherwise the operation is a
            correlation, as in networks.

    Returns:
        Filtered image in float64, with the shape of the image.

    Raises:
        UserError: The kernel has an even side, or the image is too small for its border to be mirrored by half the
            kernel.
    """
    height, width = kernel.shape
    if height % 2 == 0 or width % 2 == 0:
        raise UserError(f"a filter of {height}x{width} has no middle; give it odd sides")
    if image.shape[0] <= height // 2 or image.shape[1] <= width // 2:
        raise UserError(
            f"an image of {image.shape[0]}x{image.shape[1]} pixels is too small for a {height}x{width} filter"
        )
    if convolve:
        kernel = flipped(kernel)
    # A flipped view has negative strides, which torch does not accept, so it is copied.
    weights = torch.from_numpy(np.ascontiguousarray(kernel, dtype=np.float64))
    # Channels become a batch of grey images, (C, 1, H, W), so that each is filtered by itself.
    planes = torch.from_numpy(np.atleast_3d(image).astype(np.float64)).permute(2, 0, 1)[:, None]
    # Every pixel needs neighbours on all sides, so the image is mirrored outwards by half the kernel.
    padded = F.pad(planes, (width // 2, width // 2, height // 2, height // 2), mode="reflect")
    # A filter is a sum over the rows of its kernel. Row by row, large kernels need far less memory than at once.
    filtered = torch.zeros((), dtype=torch.float64)
    for row in range(height):
        # Rows of the image that this row of the kernel meets, (C, 1, H, W + kW - 1).
        strip = padded[:, :, row : row + image.shape[0]]
        filtered = filtered + F.conv2d(strip, weights[None, None, row : row + 1])
    channels = filtered[:, 0].permute(1, 2, 0).numpy()
    if image.ndim == 2:
        return channels[..., 0]
    return channels


def flipped(kernel: np.ndarray) -> np.ndarray:
    """Return the kernel reversed along both axes, as in a mathematical convolution."""
    return np.flip(kernel)


def magnitude(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the magnitude of the gradient from its components along x and y."""
    return np.hypot(x, y)


def wrapped_share(image: np.ndarray, kernel: np.ndarray) -> float:
    """Return the share of results that 8-bit arithmetic would get wrong, because they lie outside of 0 to 255.

    Args:
        image: Image with values from 0 to 255, (H, W) or (H, W, C).
        kernel: Weights, (kH, kW), both odd.
    """
    exact = apply(image, kernel)
    return float(np.mean((exact < 0) | (exact > 255)))


def grey(photo: np.ndarray) -> np.ndarray:
    """Return the brightness of a photo by ITU-R BT.601, in the same units.

    Args:
        photo: Red, green and blue, (H, W, 3).

    Returns:
        Brightness in float64, (H, W).
    """
    return photo @ np.array([0.299, 0.587, 0.114])


class _Filtered(NamedTuple):
    """Photo and what the filters make of it.

    Attributes:
        image: Brightness, (H, W), or red, green and blue, (H, W, 3), with values from 0 to 1.
        kernels: Chosen filters that have a kernel, by name, in the order of the bank.
        results: Filtered images by name of the filter; `GRADIENT` comes last if it was chosen.
        wrapped: Share of the results of Sobel x that would be wrong in 8-bit arithmetic.
    """

    image: np.ndarray
    kernels: dict[str, Kernel]
    results: dict[str, np.ndarray]
    wrapped: float


def explain(options: KernelsOptions) -> Explanation:
    """Filter a photo with the bank, and show kernels, results and what each filter responds to.

    Raises:
        UserError: A filter is unknown or named twice, a value is out of its range, or the photo cannot be used.
    """
    filtered = _filter_photo(options)
    caption = CAPTION_IN_COLOUR if options.colour else CAPTION
    picture = Picture("kernels", "Classic filters on a photo", caption, _draw(filtered))
    table = _table(filtered, options.convolve)
    return Explanation(_numbers(filtered, options.convolve), [table], [picture], _remarks(filtered, options))


def _filter_photo(options: KernelsOptions) -> _Filtered:
    """Apply the chosen filters to the photo; raise UserError where `explain` does."""
    kernels = bank(options.size, options.sigma)
    chosen = _chosen_names(options.kernels, [*kernels, GRADIENT])
    if options.convolve:
        # The flipped kernel moves the light to the opposite corner.
        kernels["emboss"] = kernels["emboss"]._replace(effect="relief, light from the lower right")
    photo = _reduced(read_photo(options.image))
    brightness = grey(photo)
    image = brightness / 255
    if options.colour:
        image = photo / 255
    used = {name: kernel for name, kernel in kernels.items() if name in chosen}
    results = {}
    for name, kernel in used.items():
        results[name] = apply(image, kernel.values, options.convolve)
    if GRADIENT in chosen:
        x = apply(image, kernels["sobel_x"].values, options.convolve)
        y = apply(image, kernels["sobel_y"].values, options.convolve)
        results[GRADIENT] = magnitude(x, y)
    # In 8 bits, brightness is a whole number from 0 to 255.
    wrapped = wrapped_share(brightness.round(), kernels["sobel_x"].values)
    return _Filtered(image, used, results, wrapped)


def _chosen_names(names: str | None, valid: Sequence[str]) -> list[str]:
    """Return the filters that the user named, or all; raise UserError for a name that is unknown or comes twice."""
    if names is None:
        return list(valid)
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in valid:
            raise unknown("filter", name, valid)
        if chosen.count(name) > 1:
            raise UserError(f"filter '{name}' is named twice")
    return chosen


def _reduced(photo: np.ndarray) -> np.ndarray:
    """Return a photo, scaled down to `LARGEST_SIDE` if it is larger."""
    height, width = photo.shape[:2]
    scale = LARGEST_SIDE / max(height, width)
    if scale >= 1:
        return photo
    smaller = max(1, round(width * scale)), max(1, round(height * scale))
    # Lanczos's filter averages over the pixels that become one, so fine detail does not alias.
    return np.asarray(Image.fromarray(photo).resize(smaller, Image.Resampling.LANCZOS))


def _numbers(filtered: _Filtered, convolve: bool) -> dict[str, Any]:
    """Return the values for the JSON document."""
    return {
        "operation": "convolution" if convolve else "correlation",
        "kernels": {name: kernel.values.tolist() for name, kernel in filtered.kernels.items()},
        "share_wrapped_in_8_bits": filtered.wrapped,
    }


def _table(filtered: _Filtered, convolve: bool) -> Table:
    """Return the table of the filters, whose title says by which operation they were applied."""
    rows = []
    for name, kernel in filtered.kernels.items():
        height, width = kernel.values.shape
        # Rounding removes errors of floating point, and adding zero turns -0 into 0.
        total = round(kernel.values.sum(), 9) + 0.0
        rows.append((name, f"{height}x{width}", f"{total:g}", kernel.effect))
    if GRADIENT in filtered.results:
        rows.append((GRADIENT, "3x3", "-", "magnitude of Sobel's x and y: edges of all directions"))
    title = "Filters, by correlation, as networks compute it"
    if convolve:
        title = "Filters, by convolution, the kernel flipped"
    return Table(title, ("Filter", "Size", "Sum", "Answers to"), rows)


def _remarks(filtered: _Filtered, options: KernelsOptions) -> list[str]:
    """Return remarks on 8-bit arithmetic, on Gaussians that are cut off, and on kernels that were flipped."""
    remarks = [
        f"In 8-bit arithmetic {filtered.wrapped:.1%} of the Sobel x values of this photo would be wrong, outside of 0 "
        "to 255; all of this is computed in floating point."
    ]
    blurs = [name for name in ("gaussian", "unsharp_mask") if name in filtered.kernels]
    # Within two sigma of its middle, a Gaussian along one axis has 95 % of its weight.
    if blurs and options.size < 4 * options.sigma:
        remarks.append(
            f"{' and '.join(blurs)}: {options.size} pixels cut a Gaussian of sigma {options.sigma:g} off within "
            f"two sigma; give --size {2 * math.ceil(2 * options.sigma) + 1} or more."
        )
    if options.convolve:
        remarks.append("The kernels in the corners of the picture are as the bank has them, before they are flipped.")
    return remarks


def _draw(filtered: _Filtered) -> Figure:
    """Draw the photo and the result of each filter, with the kernel in a corner."""
    image, results = filtered.image, filtered.results
    figure, axes = grid(len(results) + 1, 5, cell=2.4, ratio=image.shape[0] / image.shape[1])
    show(axes[0], image, "photo", "unit")
    for ax, (name, values) in zip(axes[1:], results.items(), strict=True):
        largest = max(np.abs(values).max(), 1e-9)  # never zero, since results are divided by it
        if name == GRADIENT:
            show(ax, values / largest, "Sobel magnitude", "unit")
            continue
        kernel, title = filtered.kernels[name], name.replace("_", " ")
        if not kernel.signed:
            show(ax, values, title, "unit")
        elif values.ndim == 2:
            show(ax, values, title, "signed", quantile=0.997)
        else:
            # Results with both signs are scaled so that zero is mid-grey in every colour.
            show(ax, 0.5 + 0.5 * values / largest, title, "unit")
        # Left, bottom, width and height in parts of the panel.
        corner = ax.inset_axes((0.0, 0.0, 0.24, 0.24))
        show(corner, kernel.values, scale="signed")
        corner.set(xticks=[], yticks=[])
    return figure
