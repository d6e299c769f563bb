"""Bank of classic filters, applied to a photo in the way of a network: by correlation, in floating point.

Sources of the kernels: Sobel and Feldman 1968; Prewitt 1970; binomial filter, sampled Gaussian, Laplacian and unsharp
mask as in Szeliski, Computer Vision, 2022, chapter 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

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
    # image + amount * (image - blur) as one kernel.
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
    on = middle[:, None] | middle
    return np.where(on, 1 / on.sum(), -1 / (~on).sum())


def _check_size(size: int) -> None:
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
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=float)
    prewitt = np.array([[-1, 0, 1]] * 3, dtype=float)
    laplacian = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=float)
    centre = np.outer([0, 1, 0], [0, 1, 0])
    return {
        "sobel_x": Kernel(sobel, "change along x: vertical edges", True),
        "sobel_y": Kernel(sobel.T, "change along y: horizontal edges", True),
        "prewitt_x": Kernel(prewitt, "change along x: vertical edges", True),
        "prewitt_y": Kernel(prewitt.T, "change along y: horizontal edges", True),
        "laplacian_4": Kernel(laplacian, "second derivative, 4 neighbours: edges of all directions", True),
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
    weights = torch.from_numpy(np.ascontiguousarray(flipped(kernel) if convolve else kernel, dtype=np.float64))
    # Channels become a batch of grey images, (C, 1, H, W), so that each is filtered by itself.
    planes = torch.from_numpy(np.atleast_3d(image).astype(np.float64)).permute(2, 0, 1)[:, None]
    padded = F.pad(planes, (width // 2, width // 2, height // 2, height // 2), mode="reflect")
    # The kernel is applied one row at a time and the results are summed. With large kernels this needs far less memory.
    rows = padded.shape[2] - height + 1
    parts = (F.conv2d(padded[:, :, i : i + rows], weights[None, None, i : i + 1]) for i in range(height))
    found = sum(parts, torch.zeros(()))[:, 0].permute(1, 2, 0).numpy()
    return found[..., 0] if image.ndim == 2 else found


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


def explain(options: KernelsOptions) -> Explanation:
    """Filter a photo with the bank, and show kernels, results and what each filter responds to.

    Raises:
        UserError: A filter is unknown or named twice, a value is out of its range, or the photo cannot be used.
    """
    kernels = bank(options.size, options.sigma)
    names = [*kernels, "gradient"]
    chosen = names if options.kernels is None else [name.strip() for name in options.kernels.split(",")]
    for name in chosen:
        if name not in names:
            raise unknown("filter", name, names)
        if chosen.count(name) > 1:
            raise UserError(f"filter '{name}' is named twice")
    if options.convolve:
        # The flipped kernel moves the light to the opposite corner.
        kernels["emboss"] = kernels["emboss"]._replace(effect="relief, light from the lower right")
    photo = _reduced(read_photo(options.image))
    image = photo / 255 if options.colour else grey(photo) / 255
    results = {n: apply(image, k.values, options.convolve) for n, k in kernels.items() if n in chosen}
    if "gradient" in chosen:
        parts = [apply(image, kernels[n].values, options.convolve) for n in ("sobel_x", "sobel_y")]
        results["gradient"] = magnitude(*parts)
    # In 8 bits, brightness is a whole number from 0 to 255.
    wrapped = wrapped_share(grey(photo).round(), kernels["sobel_x"].values)
    rows = [
        (name, "x".join(map(str, k.values.shape)), f"{round(k.values.sum(), 9) + 0.0:g}", k.effect)
        for name, k in kernels.items()
        if name in chosen
    ]
    if "gradient" in chosen:
        rows.append(("gradient", "3x3", "-", "magnitude of Sobel's x and y: edges of all directions"))
    how = "convolution, the kernel flipped" if options.convolve else "correlation, as networks compute it"
    numbers = {
        "operation": "convolution" if options.convolve else "correlation",
        "kernels": {name: k.values.tolist() for name, k in kernels.items() if name in chosen},
        "share_wrapped_in_8_bits": wrapped,
    }
    signs = (
        "mid-grey is no answer, brighter plus and darker minus in each colour, each picture scaled by itself"
        if options.colour
        else "red where it answers with plus, blue with minus, each picture scaled by itself, its strongest 0.3 % cut"
    )
    caption = f"Each filter answers to one local pattern, by {how}"
    shown = [kernels[name] for name in chosen if name in kernels]
    caption += f": {signs}." if any(k.signed for k in shown) else "."
    if not all(k.signed for k in shown):
        caption += " Blurred and sharpened pictures are drawn from black, 0, to white, 1."
    if "gradient" in chosen:
        caption += " The magnitude of Sobel's gradient is drawn from black, 0, to white, its largest value."
    if "sobel_x" in chosen:
        caption += " Sobel x answers to change along x, which is a vertical edge, Sobel y to horizontal ones."
    if options.convolve:
        caption += " The kernels in the corners are as the bank has them, before they are flipped."
    remarks = [
        f"In 8-bit arithmetic {wrapped:.1%} of the Sobel x values of this photo would be wrong, outside of 0 to 255; "
        "all of this is computed in floating point."
    ]
    blurs = [name for name in ("gaussian", "unsharp_mask") if name in chosen]
    if blurs and options.size < 4 * options.sigma:
        remarks.append(
            f"{' and '.join(blurs)}: {options.size} pixels cut a Gaussian of sigma {options.sigma:g} off within "
            f"two sigma; give --size {2 * math.ceil(2 * options.sigma) + 1} or more."
        )
    figure = _panel(image, results, kernels)
    return Explanation(
        numbers,
        [Table("Filters", ("Filter", "Size", "Sum", "Answers to"), rows)],
        [Picture("kernels", "Classic filters on a photo", caption, figure)],
        remarks,
    )


def _reduced(photo: np.ndarray) -> np.ndarray:

    height, width = photo.shape[:2]
    scale = LARGEST_SIDE / max(height, width)
    if scale >= 1:
        return photo
    smaller = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(photo).resize(smaller, Image.Resampling.LANCZOS))


def _panel(image: np.ndarray, results: Mapping[str, np.ndarray], kernels: Mapping[str, Kernel]) -> Figure:
    """Draw the photo and the result of each filter, with the kernel in a corner."""
    figure, axes = grid(len(results) + 1, 5, cell=2.4, ratio=image.shape[0] / image.shape[1])
    show(axes[0], image, "photo", "unit")
    for ax, (name, found) in zip(axes[1:], results.items(), strict=True):
        kernel = kernels.get(name)
        if kernel is None:
            show(ax, found / max(found.max(), 1e-9), "Sobel magnitude", "unit")
        elif kernel.signed and found.ndim == 2:
            show(ax, found, name.replace("_", " "), "signed", quantile=0.997)
        else:
            # Results with both signs are scaled so that zero is mid-grey.
            show(
                ax,
                0.5 + 0.5 * found / max(np.abs(found).max(), 1e-9) if kernel.signed else found,
                name.replace("_", " "),
                "unit",
            )
        if kernel is not None:
            corner = ax.inset_axes((0.0, 0.0, 0.24, 0.24))
            show(corner, kernel.values, scale="signed")
            corner.set(xticks=[], yticks=[])
    return figure
