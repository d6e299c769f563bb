"""Classic filters as a named bank, applied to a photo as a network would: by correlation, in floating point.

Sources of the kernels: Sobel and Feldman 1968; Prewitt 1970; binomial and sampled Gaussians and the Laplacian as in
Szeliski, Computer Vision, 2022, chapter 3; unsharp masking as there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cnnbench.errors import UserError, unknown
from cnnbench.explain import Explanation, Picture, Table
from cnnbench.explain.options import ToolOptions
from cnnbench.options import option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLE = "photo.jpg --colour"
LARGEST_SIDE = 512
"""Pixels to which larger photos are reduced before they are filtered."""
LARGEST_KERNEL = 101
SIGMAS = (0.05, 1000.0)
"""From a single pixel to an even square, for any size of kernel."""


class Kernel(NamedTuple):
    """A filter.

    Attributes:
        values: (kH, kW).
        effect: What it does or answers to, in a few words.
        signed: Whether it answers with both signs, around zero; otherwise with values of an image.
    """

    values: np.ndarray
    effect: str
    signed: bool


def box(size: int) -> np.ndarray:
    """The mean over a square of an odd size."""
    _check_size(size)
    return np.full((size, size), 1 / size**2)


def binomial(size: int) -> np.ndarray:
    """The outer product of a row of Pascal's triangle with itself, sum 1; of variance (size - 1) / 4 per axis."""
    _check_size(size)
    row = np.array([math.comb(size - 1, k) for k in range(size)], dtype=float)
    return np.outer(row, row) / row.sum() ** 2


def gaussian(size: int, sigma: float) -> np.ndarray:
    """A Gaussian of standard deviation sigma pixels, sampled at the pixels and scaled to sum 1."""
    _check_size(size)
    if not SIGMAS[0] <= sigma <= SIGMAS[1]:
        low, high = SIGMAS
        raise UserError(f"sigma {sigma:g} of a Gaussian must be from {low:g} to {high:g} pixels, such as 1.4")
    at = np.arange(size) - size // 2
    row = np.exp(-(at**2) / (2 * sigma**2))
    return np.outer(row, row) / row.sum() ** 2


def unsharp_mask(size: int, sigma: float, amount: float) -> np.ndarray:
    """The image plus so many times what a Gaussian blur takes away from it."""
    kernel = -amount * gaussian(size, sigma)
    kernel[size // 2, size // 2] += 1 + amount
    return kernel


def cross(size: int) -> np.ndarray:
    """Finds bright upright crosses: positive on the middle row and column, negative around, zero on even ground."""
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
    """The filters by name.

    Args:
        size: Of the box, Gaussian, unsharp mask and cross detector, in pixels.
        sigma: Of the Gaussian and the unsharp mask, in pixels.

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
    }  # fmt: skip


def apply(image: np.ndarray, kernel: np.ndarray, convolve: bool = False) -> np.ndarray:
    """Filters every channel of an image; the result has its size, the border is mirrored.

    Args:
        image: (H, W) or (H, W, C), of any type; computed and returned in float64.
        kernel: (kH, kW), odd.
        convolve: Flip the kernel, for convolution in the mathematical sense; otherwise correlation, as networks do.

    Raises:
        UserError: The kernel has an even side, or the image is smaller than half of it, so that its border cannot be
            mirrored.
    """
    import torch
    import torch.nn.functional as F

    height, width = kernel.shape
    if height % 2 == 0 or width % 2 == 0:
        raise UserError(f"a filter of {height}x{width} has no middle; give it odd sides")
    if image.shape[0] <= height // 2 or image.shape[1] <= width // 2:
        raise UserError(
            f"an image of {image.shape[0]}x{image.shape[1]} pixels is too small for a {height}x{width} filter"
        )
    weights = torch.from_numpy(np.ascontiguousarray(flipped(kernel) if convolve else kernel, dtype=np.float64))
    planes = torch.from_numpy(np.atleast_3d(image).astype(np.float64)).permute(2, 0, 1)[:, None]
    padded = F.pad(planes, (width // 2, width // 2, height // 2, height // 2), mode="reflect")
    rows = padded.shape[2] - height + 1  # row by row of the kernel, which for a large one takes far less memory
    parts = (F.conv2d(padded[:, :, i : i + rows], weights[None, None, i : i + 1]) for i in range(height))
    found = sum(parts, torch.zeros(()))[:, 0].permute(1, 2, 0).numpy()
    return found[..., 0] if image.ndim == 2 else found


def flipped(kernel: np.ndarray) -> np.ndarray:
    """The kernel in both directions the other way round, as in a convolution in the mathematical sense."""
    return np.flip(kernel)


def magnitude(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Length of the gradient from its two parts."""
    return np.hypot(x, y)


def wrapped_share(image: np.ndarray, kernel: np.ndarray) -> float:
    """Share of the results that 8-bit arithmetic would get wrong, because they lie outside of 0 to 255."""
    exact = apply(image, kernel)
    return float(np.mean((exact < 0) | (exact > 255)))


def grey(photo: np.ndarray) -> np.ndarray:
    """Brightness by ITU-R BT.601, (H, W), from colours, (H, W, 3), in the same units, as float64."""
    return photo @ np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class Options(ToolOptions):
    """Filter a photo with classic kernels: Sobel, Laplacian, Gaussian, sharpen, emboss and more."""

    image: Path | None = option(
        "PNG or JPEG file (default: a photo of matplotlib's).", default=None, positional=True, metavar="IMAGE"
    )
    kernels: str | None = option(
        "Use only these filters; gradient is the magnitude of Sobel's (default: all).", default=None, metavar="A,B"
    )
    size: int = option("Size of box, Gaussian, unsharp mask and cross, in pixels.", default=5, metavar="N")
    sigma: float = option("Width of Gaussian and unsharp mask, in pixels.", default=1.0, metavar="X")
    colour: bool = option("Filter red, green and blue, each for itself (default: brightness).", default=False)
    convolve: bool = option("Flip the kernels: convolution in place of correlation.", default=False)


def explain(options: Options) -> Explanation:
    """Filters a photo with the bank, and shows kernels, results and what each is for."""
    from cnnbench.explain.subjects import read_photo

    kernels = bank(options.size, options.sigma)
    names = [*kernels, "gradient"]
    chosen = names if options.kernels is None else [name.strip() for name in options.kernels.split(",")]
    for name in chosen:
        if name not in names:
            raise unknown("filter", name, names)
        if chosen.count(name) > 1:
            raise UserError(f"filter '{name}' is named twice")
    if options.convolve:
        kernels["emboss"] = kernels["emboss"]._replace(effect="relief, light from the lower right")
    photo = _reduced(read_photo(options.image))
    image = photo / 255 if options.colour else grey(photo) / 255
    results = {n: apply(image, k.values, options.convolve) for n, k in kernels.items() if n in chosen}
    if "gradient" in chosen:
        parts = [apply(image, kernels[n].values, options.convolve) for n in ("sobel_x", "sobel_y")]
        results["gradient"] = magnitude(*parts)
    wrapped = wrapped_share(grey(photo).round(), kernels["sobel_x"].values)
    rows = [
        (name, "x".join(map(str, k.values.shape)), f"{round(k.values.sum(), 9) + 0.0:g}", k.effect)
        for name, k in kernels.items() if name in chosen
    ]  # fmt: skip
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
    from PIL import Image

    height, width = photo.shape[:2]
    scale = LARGEST_SIDE / max(height, width)
    if scale >= 1:
        return photo
    smaller = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(photo).resize(smaller, Image.Resampling.LANCZOS))


def _panel(image: np.ndarray, results: Mapping[str, np.ndarray], kernels: Mapping[str, Kernel]) -> Figure:
    """The photo and what the filters make of it, each with its kernel in a corner."""
    from cnnbench.plots.grids import grid, show

    figure, axes = grid(len(results) + 1, 5, cell=2.4, ratio=image.shape[0] / image.shape[1])
    show(axes[0], image, "photo", "unit")
    for ax, (name, found) in zip(axes[1:], results.items(), strict=True):
        kernel = kernels.get(name)
        if kernel is None:
            show(ax, found / max(found.max(), 1e-9), "Sobel magnitude", "unit")
        elif kernel.signed and found.ndim == 2:
            show(ax, found, name.replace("_", " "), "signed", quantile=0.997)
        else:
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
