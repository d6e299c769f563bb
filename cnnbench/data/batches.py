"""Batches from one uint8 tensor, cropped, mirrored and normalised as a whole, on the device that holds the images.

The images lie padded in memory, one row of pixels after the other. Every crop of every image is therefore one window of
a strided view, and a batch of random crops is one `index_select`.

All random choices of an epoch are drawn at its start, for every image of the data set. An image therefore gets the same
crop whatever the batch size, the number of processes and the device. A batch takes a few kernels, and the host never
waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnbench.errors import UserError, unknown

LARGEST_SIDE = 16_384
"""Largest side of an image in pixels, and the upper limit of every other option that is measured in pixels."""
PaddingMode = Literal["reflect", "zeros"]
Flip = Literal["random", "alternate", "none"]
TRANSIENT = 128 * 2**20
"""Memory in bytes that float32 copies of images take while they are padded or resized, piece by piece."""


def check_whole(name: str, value: Any, low: int, high: int, example: int) -> None:
    """Raise UserError unless a value is a whole number within limits.

    Args:
        name: Name of the argument, for the message.
        value: Value of the argument.
        low: Smallest valid value.
        high: Largest valid value.
        example: Typical value, for the message.

    Raises:
        UserError: The value is not an integer from ``low`` to ``high``; a boolean does not count as an integer.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        shown = repr(value)
        if len(shown) > 40:
            shown = f"{shown[:40]}..."
        raise UserError(f"{name} {shown} must be a whole number from {low} to {high:,}, such as {example}")


class Split(NamedTuple):
    """Images, (N, C, H, W) uint8, and their labels, (N,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of training images: shifts, mirroring and cutout, chosen for every image and epoch.

    Attributes:
        padding: Number of pixels that are added on every side before a crop of the original size is taken, as in
            torchvision's ``RandomCrop``. Each axis is shifted by -padding to padding pixels, all equally likely.
        padding_mode: Content of the added pixels: the image's reflection (``reflect``) or black (``zeros``).
        flip: Left-right mirroring. ``random`` mirrors each image with probability 1/2 in every epoch. ``alternate``
            mirrors at random in the first epoch and then changes the side of every image in each epoch, so that two
            consecutive epochs show both sides of it (Jordan 2024, 2404.00498). ``none`` never mirrors.
        cutout: Side in pixels of a square that is filled with the mean colour of the data; 0 turns it off. This is
            Cutout (DeVries, Taylor 2017, 1708.04552) with a square that never crosses the border of the image, as in
            torchvision's ``RandomErasing``.

    Raises:
        UserError: A value is out of its range.
    """

    padding: int = 4
    padding_mode: PaddingMode = "reflect"
    flip: Flip = "random"
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.padding_mode not in get_args(PaddingMode):
            raise unknown("padding_mode", str(self.padding_mode), get_args(PaddingMode))
        if self.flip not in get_args(Flip):
            raise unknown("flip", str(self.flip), get_args(Flip))
        check_whole("padding", self.padding, 0, LARGEST_SIDE, 4)
        check_whole("cutout", self.cutout, 0, LARGEST_SIDE, 8)

    def check(self, size: int) -> None:
        """Raise UserError if images are too small for the padding or the cutout.

        Args:
            size: Height and width of the images in pixels.

        Raises:
            UserError: The padding is at least as large as the image, or the cutout is larger than the image.
        """
        if self.padding >= size or self.cutout > size:
            raise UserError(
                f"padding {self.padding} or cutout {self.cutout} is too large for images of {size}x{size} pixels"
            )

    def describe(self) -> str:
        """Return the augmentation in words, for records."""
        parts = []
        if self.padding:
            parts.append(f"shift of up to {self.padding} pixels ({self.padding_mode})")
        if self.flip == "random":
            parts.append("mirroring")
        if self.flip == "alternate":
            parts.append("alternate mirroring")
        if self.cutout:
            parts.append(f"cutout of {self.cutout}x{self.cutout}")
        return ", ".join(parts) or "none"


class _Epoch(NamedTuple):
    """Random choices of one epoch, in the order of its batches, on the device of the images.

    Attributes:
        images: Indices of the images, (n,).
        windows: Index of each image's crop among the windows of the strided view, (n,).
        mirrored: Number of mirrored images in each batch; they come first in the batch.
        corners: Row and column of the upper left corner of each image's cutout, (n, 2); None without cutout.
    """

    images: Tensor
    windows: Tensor
    mirrored: list[int]
    corners: Tensor | None


class TensorBatches:
    """Loader that yields whole batches of a split, ready for a network, without workers or code per image.

    The training order is a new permutation in each epoch, which depends only on the seed and the epoch. Within a batch
    the mirrored images come first. In distributed training rank r takes every world_size-th image, starting at r: no
    image goes to two processes, and evaluation leaves none out.

    Each batch is a `Split` with images, (n, C, size, size) float32, in channels-last order.

    Args:
        split: Square images and their labels, on the device that holds them.
        batch_size: Number of images per batch and process.
        shuffle: Whether to use the training order and to drop the incomplete last batch, so that all steps have one
            shape; the dropped images differ from epoch to epoch. Otherwise the loader keeps the order of the split and
            leaves no image out.
        mean: Mean of each channel for pixels in [0, 1]; None subtracts nothing.
        std: Standard deviation of each channel for pixels in [0, 1]; None does not rescale the pixels.
        size: Height and width of the yielded images in pixels; unset, those of the stored images.
        augmentation: Random augmentation of the images; None for no augmentation.
        sizes: Height and width of the images per epoch, in place of ``size``; the last value holds for all later
            epochs. The whole split is resized first and augmented afterwards.
        seed: Seed of all random choices.
        rank: Index of this process.
        world_size: Number of processes.
        chunk: Number of batches that are yielded together, as a list; unset, batches are yielded one by one.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        shuffle: bool,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
        augmentation: Augmentation | None = None,
        sizes: Sequence[int] = (),
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        chunk: int | None = None,
    ) -> None:
        self.split = split
        self.chunk = chunk
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.augmentation = augmentation or Augmentation(padding=0, flip="none")
        channels, self._stored = split.images.shape[1:3]
        self._size = size or self._stored
        self._sizes = tuple(sizes)
        # The augmentation must fit the images of every epoch.
        for pixels in self._sizes or (self._stored,):
            self.augmentation.check(pixels)
        # Normalisation as one multiply-add: (pixel / 255 - mean) / std = pixel * scale + shift.
        # Without mean and std the scale is 1 and the shift 0, so pixels keep their values from 0 to 255.
        self._scale = 1 / (255 * torch.tensor(std or [1 / 255] * channels))
        self._shift = -255 * torch.tensor(mean or [0.0] * channels) * self._scale
        total = len(split.labels)
        self.batch_size = batch_size
        if shuffle:
            # All ranks must take the same number of training steps, or one of them would wait forever for the others.
            share = total // world_size
            self.batch_size = min(batch_size, share)
            self.batches = share // self.batch_size
        else:
            # This process takes the images rank, rank + world_size, and so on.
            share = len(range(rank, total, world_size))
            self.batches = -(-share // batch_size)  # rounded up, so that no image is left out
        # `_prepare` fills these for images of `_prepared` pixels.
        self._crops = self._row_scale = self._row_shift = torch.empty(0)
        self._prepared = 0
        self.epoch = 0
        self._given = 0
        # No epoch has the number -1, so this restores no position.
        self._resume_at = (-1, 0)
        # Lightning calls batch_sampler.sampler.set_epoch before every epoch, also after a resume.
        self.batch_sampler = SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order and augmentation the next iteration draws."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Return the position of the iteration, which Lightning keeps in its checkpoints."""
        return {"seed": self.seed, "epoch": self.epoch, "batch": self._given}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore a position: the next iteration over its epoch starts after the batches that were already yielded.

        Iterations over other epochs are complete.
        """
        self.seed = state["seed"]
        self._resume_at = state["epoch"], state["batch"]

    def __len__(self) -> int:
        return -(-self.batches // (self.chunk or 1))  # rounded up

    def __iter__(self) -> Iterator[Any]:
        batches = self._one_by_one()
        if self.chunk is None:
            return batches
        return self._together(batches, self.chunk)

    def _together(self, batches: Iterator[Split], chunk: int) -> Iterator[list[Split]]:
        while group := list(islice(batches, chunk)):
            yield group

    def _one_by_one(self) -> Iterator[Split]:
        # Crops have `size` pixels, and the yielded images `wanted` pixels.
        # Without ``sizes`` the crop has the stored size, and each batch is resized if the network sees another one.
        size, wanted = self._stored, self._size
        if self._sizes:
            size = wanted = self._sizes[min(self.epoch, len(self._sizes) - 1)]
        self._prepare(size)
        epoch = self._draw(size)
        # A restored position is used once, and only for its own epoch.
        resumed_epoch, given = self._resume_at
        self._resume_at = (-1, 0)
        for index in range(given if resumed_epoch == self.epoch else 0, self.batches):
            self._given = index + 1
            batch = slice(index * self.batch_size, (index + 1) * self.batch_size)
            # Windows, (n, size, size * C), become images, (n, C, size, size), with the channels last in memory.
            x = self._crops.index_select(0, epoch.windows[batch]).unflatten(2, (size, -1)).permute(0, 3, 1, 2)
            # Dimension 3 is the width, so flipping it mirrors left and right.
            if epoch.mirrored[index]:
                x = torch.cat([x[: epoch.mirrored[index]].flip(3), x[epoch.mirrored[index] :]])
            # Normalise whole rows of pixels, (n, size, size * C), so that the innermost dimension is long.
            rows = x.permute(0, 2, 3, 1).flatten(2)
            rows = torch.addcmul(self._row_shift, rows.float(), self._row_scale)
            if epoch.corners is not None:
                _cut_out(rows, epoch.corners[batch], self.augmentation.cutout)
            x = rows.unflatten(2, (size, -1)).permute(0, 3, 1, 2)
            if wanted != size:
                x = F.interpolate(x, (wanted, wanted), mode="bilinear", antialias=True)
            yield Split(x, self.split.labels.index_select(0, epoch.images[batch]))

    def _prepare(self, size: int) -> None:
        """Lay the images out, resized and padded, so that every crop of every image is a window of one strided view."""
        if self._prepared == size:
            return
        device = self.split.images.device
        # A row of pixels has its channels innermost, so the C values repeat for every pixel, (size * C,).
        self._row_scale, self._row_shift = (values.repeat(size).to(device) for values in (self._scale, self._shift))
        padding = self.augmentation.padding
        images = self.split.images
        if size != self._stored:
            images = resize(images, size)
        # Reflection needs a float32 copy, four times as large as the images, so they are padded in pieces.
        padded = torch.cat([_pad(piece, padding, self.augmentation.padding_mode) for piece in in_pieces(images)])
        count, height, width, channels = padded.shape
        # Window i starts at pixel i of the flat memory, and its rows are `width` pixels apart; windows overlap.
        # The last window is the lower right crop of the last image, 2 * padding rows and columns from its start.
        windows = (count - 1) * height * width + 2 * padding * (width + 1) + 1
        # Strides count values: the next window starts one pixel on, and the next row `width` pixels on.
        self._crops = padded.view(-1).as_strided(
            (windows, size, size * channels), (channels, width * channels, 1)
        )  # (windows, size, size * C)
        self._prepared = size

    def _draw(self, size: int) -> _Epoch:
        """Draw the random choices of an epoch for every image, on the CPU, and return this process's share of them."""
        total, padding = len(self.split.labels), self.augmentation.padding
        width = size + 2 * padding
        # Every process draws for all images, so that the choices do not depend on the number of processes.
        # Because of the factor, two seeds below 2**31 share no draws within a million epochs.
        generator = torch.Generator().manual_seed((self.seed % 2**31) * 1_000_003 + self.epoch)
        order = torch.arange(total)
        if self.shuffle:
            order = torch.randperm(total, generator=generator)
        # Index of an image's window: the first pixel of the padded image, plus a shift down and a shift across.
        windows = torch.arange(total) * width**2
        # Shifts of 0 to 2 * padding within the padded image are those of -padding to padding in the image itself.
        if padding:
            windows += torch.randint(2 * padding + 1, (total,), generator=generator) * width
            windows += torch.randint(2 * padding + 1, (total,), generator=generator)
        mirrored = self._mirrored(total, generator)
        corners = None
        if self.augmentation.cutout:
            # The largest corner is size - cutout, so that the square never crosses the border.
            corners = torch.randint(size - self.augmentation.cutout + 1, (total, 2), generator=generator)
        # From here on only the share of this process counts.
        order = order[self.rank :: self.world_size]
        counts = [0] * self.batches
        if mirrored is not None:
            # Put the mirrored images of each batch first, so that one flip of its first part mirrors them all.
            # The incomplete last batch is left out; one row per batch, (batches, batch_size).
            order = order[: self.batches * self.batch_size].view(self.batches, self.batch_size)
            # A stable sort keeps the random order among the mirrored images and among the others.
            places = mirrored[order].sort(dim=1, descending=True, stable=True)
            counts, order = places.values.sum(1).tolist(), order.gather(1, places.indices).flatten()
        columns = [order, windows[order]]
        if corners is not None:
            columns += corners[order].unbind(1)
        order, windows, *corner = _moved(columns, self.split.images.device)
        if corners is not None:
            corners = torch.stack(corner, dim=1)
        return _Epoch(order, windows, counts, corners)

    def _mirrored(self, total: int, generator: torch.Generator) -> Tensor | None:
        """Return which images are mirrored in this epoch, (total,) bool; None if images are never mirrored."""
        if self.augmentation.flip == "none":
            return None
        if self.augmentation.flip == "random":
            return torch.rand(total, generator=generator) < 0.5
        # The draw of the first epoch depends on the seed alone, so that any epoch can repeat it; odd epochs invert it.
        first = torch.rand(total, generator=torch.Generator().manual_seed(self.seed % 2**31)) < 0.5
        return first ^ bool(self.epoch % 2)


def _moved(columns: list[Tensor], device: torch.device) -> list[Tensor]:
    """Move columns of integers to a device; to a GPU they go in one copy, for which the host does not wait."""
    if device.type != "cuda":
        return [column.to(device) for column in columns]
    # Only from pinned memory, which the system cannot swap out, does a copy run while the host goes on.
    return list(torch.stack(columns).pin_memory().to(device, non_blocking=True).unbind())


def in_pieces(images: Tensor, size: int = 0) -> Iterator[Tensor]:
    """Yield consecutive pieces of images, (n, C, H, W), whose copies in float32 take at most `TRANSIENT` bytes.

    Args:
        images: Images, (N, C, H, W).
        size: Height and width of the copies, if they are larger than the images.
    """
    channels, height, width = images.shape[1:]
    of_one = 4 * channels * max(height * width, size**2)
    yield from images.split(max(1, TRANSIENT // of_one))


def _pad(images: Tensor, padding: int, mode: PaddingMode) -> Tensor:
    """Pad images, (n, C, H, W) uint8, and return them with the channels last, (n, H, W, C)."""
    if padding and mode == "reflect":  # torch has no reflection padding for integers
        images = F.pad(images.float(), (padding,) * 4, mode="reflect").to(images.dtype)
    elif padding:
        images = F.pad(images, (padding,) * 4)
    return images.permute(0, 2, 3, 1).contiguous()


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images, (n, C, H, W) uint8, by antialiased bilinear interpolation, rounded as in torchvision."""
    pieces = [
        F.interpolate(piece.float(), (size, size), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        for piece in in_pieces(images, size)
    ]
    return torch.cat(pieces)


def _cut_out(rows: Tensor, corners: Tensor, side: int) -> None:
    """Set a square of each image to zero, which is the mean of the data after normalisation.

    Args:
        rows: Normalised images, (n, H, W * C), changed in place.
        corners: Rows and columns of the upper left corners, (n, 2).
        side: Side of the square in pixels.
    """
    size, channels = rows.shape[1], rows.shape[2] // rows.shape[1]
    pixels = torch.arange(size, device=rows.device)
    # Rows and columns that are inside the square, each (n, size).
    down, across = ((pixels >= corner[:, None]) & (pixels < corner[:, None] + side) for corner in corners.unbind(1))
    # Each pixel of a row has `channels` values, so `across` is repeated to (n, size * C).
    rows.masked_fill_(down[:, :, None] & across.repeat_interleave(channels, 1)[:, None, :], 0.0)
