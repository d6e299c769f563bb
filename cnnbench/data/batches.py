"""Batches from one uint8 tensor, cropped, mirrored and normalised as a whole, on the device that holds the images.

`Batches` has what all loaders share, and `TensorBatches` holds the images in memory. `cnnbench.data.streaming` has the
loader of images that stay on the disk.

The images lie padded in memory, one row of pixels after the other. Every crop of every image is therefore one window of
a strided view, and a batch of random crops is one `index_select`.

All random choices of an epoch are drawn at its start, for every image of the data set. An image therefore gets the same
crop whatever the batch size, the number of processes and the device. A batch takes a few kernels, and the host never
waits for a GPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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

    def take(self, chosen: Tensor | slice) -> Split:
        """Return the chosen images with their labels, in this order.

        Args:
            chosen: Indices, a mask of all images, or a slice.
        """
        return Split(self.images[chosen], self.labels[chosen])


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


class Epoch(NamedTuple):
    """Random choices of one epoch, in the order of its batches.

    Attributes:
        images: Indices of the images, (n,).
        crops: Number that determines each image's crop, (n,); see `Batches._crops_of`.
        mirrored: Number of mirrored images in each batch; they come first in the batch.
        corners: Row and column of the upper left corner of each image's cutout, (n, 2); None without cutout.
    """

    images: Tensor
    crops: Tensor
    mirrored: list[int]
    corners: Tensor | None


class Batches(ABC):
    """Base class of the loaders: the order of the images, their random choices, and the position within an epoch.

    The training order is a new permutation in each epoch, which depends only on the seed and the epoch. Within a batch
    the mirrored images come first. In distributed training rank r takes every world_size-th image, starting at r: no
    image goes to two processes, and evaluation leaves none out.

    Each batch is a `Split` with images, (n, C, size, size) float32, in channels-last order.

    Args:
        labels: Labels of all images, (N,) int64.
        channels: Number of channels of the images.
        device: Device of the batches.
        batch_size: Number of images per batch and process.
        shuffle: Whether to use the training order and to drop the incomplete last batch, so that all steps have one
            shape; the dropped images differ from epoch to epoch. Otherwise the loader keeps the order of the split and
            leaves no image out.
        mean: Mean of each channel for pixels in [0, 1]; None subtracts nothing.
        std: Standard deviation of each channel for pixels in [0, 1]; None does not rescale the pixels.
        size: Height and width of the yielded images in pixels.
        augmentation: Random augmentation of the images; None for no augmentation.
        sizes: Height and width of the images per epoch, in place of ``size``; the last value holds for all later
            epochs.
        seed: Seed of all random choices.
        rank: Index of this process.
        world_size: Number of processes.
        chunk: Number of batches that are yielded together, as a list; unset, batches are yielded one by one.
    """

    def __init__(
        self,
        labels: Tensor,
        channels: int,
        device: torch.device,
        batch_size: int,
        shuffle: bool,
        size: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augmentation: Augmentation | None = None,
        sizes: Sequence[int] = (),
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        chunk: int | None = None,
    ) -> None:
        self.labels = labels
        self.device = device
        self.chunk = chunk
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.augmentation = augmentation or Augmentation(padding=0, flip="none")
        self._size = size
        self._sizes = tuple(sizes)
        # Normalisation as one multiply-add: (pixel / 255 - mean) / std = pixel * scale + shift.
        # Without mean and std the scale is 1 and the shift 0, so pixels keep their values from 0 to 255.
        self._scale = 1 / (255 * torch.tensor(std or [1 / 255] * channels))
        self._shift = -255 * torch.tensor(mean or [0.0] * channels) * self._scale
        total = len(labels)
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
        # `_finished` fills these for images of `_rows_size` pixels.
        self._row_scale = self._row_shift = torch.empty(0)
        self._rows_size = 0
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

    @abstractmethod
    def _one_by_one(self) -> Iterator[Split]:
        """Yield the batches of this epoch that `_left` names."""

    @abstractmethod
    def _crops_of(self, total: int, size: int, generator: torch.Generator) -> Tensor:
        """Draw the number that determines the crop of each image, (total,) int64."""

    def _size_of_epoch(self) -> int | None:
        """Return the height and width that ``sizes`` sets for this epoch; None without ``sizes``."""
        return self._sizes[min(self.epoch, len(self._sizes) - 1)] if self._sizes else None

    def _left(self) -> range:
        """Return the indices of the batches of this epoch; after a resume, only of those that were not yielded yet."""
        # A restored position is used once, and only for its own epoch.
        resumed_epoch, given = self._resume_at
        self._resume_at = (-1, 0)
        return range(given if resumed_epoch == self.epoch else 0, self.batches)

    def _slice(self, index: int) -> slice:
        """Return the places of a batch in the order of the epoch."""
        return slice(index * self.batch_size, (index + 1) * self.batch_size)

    def _finished(self, pixels: Tensor, epoch: Epoch, index: int) -> Tensor:
        """Return a batch mirrored, normalised and cut out, (n, C, size, size) float32 in channels-last order.

        Args:
            pixels: Images with the channels last, (n, size, size * C) uint8, on the device.
            epoch: Random choices of the epoch, on the device.
            index: Index of the batch.
        """
        size = pixels.shape[1]
        if self._rows_size != size:
            # A row of pixels has its channels innermost, so the C values repeat for every pixel, (size * C,).
            self._row_scale, self._row_shift = (v.repeat(size).to(self.device) for v in (self._scale, self._shift))
            self._rows_size = size
        # On a CPU most of the time goes into fresh memory, so only one large tensor is made, and changed in place.
        rows = torch.empty(pixels.shape, dtype=torch.float32, device=self.device)
        mirrored = epoch.mirrored[index]
        if mirrored:
            # Dimension 2 of (n, size, size, C) is the width, so flipping it mirrors left and right.
            rows[:mirrored] = pixels[:mirrored].unflatten(2, (size, -1)).flip(2).flatten(2)
        rows[mirrored:] = pixels[mirrored:]
        # Whole rows of pixels are normalised, (n, size, size * C), so that the innermost dimension is long.
        torch.addcmul(self._row_shift, rows, self._row_scale, out=rows)
        if epoch.corners is not None:
            _cut_out(rows, epoch.corners[self._slice(index)], self.augmentation.cutout)
        return rows.unflatten(2, (size, -1)).permute(0, 3, 1, 2)

    def _draw(self, size: int) -> Epoch:
        """Draw the random choices of an epoch for every image, on the CPU, and return this process's share of them."""
        total = len(self.labels)
        # Every process draws for all images, so that the choices do not depend on the number of processes.
        # Because of the factor, two seeds below 2**31 share no draws within a million epochs.
        generator = torch.Generator().manual_seed((self.seed % 2**31) * 1_000_003 + self.epoch)
        order = torch.arange(total)
        if self.shuffle:
            order = torch.randperm(total, generator=generator)
        crops = self._crops_of(total, size, generator)
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
        return Epoch(order, crops[order], counts, None if corners is None else corners[order])

    def _on_device(self, epoch: Epoch) -> Epoch:
        """Return the choices of an epoch on the device of the images, moved there in one piece."""
        columns = [epoch.images, epoch.crops]
        if epoch.corners is not None:
            columns += epoch.corners.unbind(1)
        images, crops, *corner = _moved(columns, self.device)
        return Epoch(images, crops, epoch.mirrored, torch.stack(corner, dim=1) if corner else None)

    def _mirrored(self, total: int, generator: torch.Generator) -> Tensor | None:
        """Return which images are mirrored in this epoch, (total,) bool; None if images are never mirrored."""
        if self.augmentation.flip == "none":
            return None
        if self.augmentation.flip == "random":
            return torch.rand(total, generator=generator) < 0.5
        # The draw of the first epoch depends on the seed alone, so that any epoch can repeat it; odd epochs invert it.
        first = torch.rand(total, generator=torch.Generator().manual_seed(self.seed % 2**31)) < 0.5
        return first ^ bool(self.epoch % 2)


class TensorBatches(Batches):
    """Loader of images in memory, without workers or code per image.

    Args:
        split: Square images and their labels, on the device that holds them.
        batch_size: Number of images per batch and process.
        shuffle: Whether to use the training order; see `Batches`.
        mean: Mean of each channel for pixels in [0, 1]; None subtracts nothing.
        std: Standard deviation of each channel for pixels in [0, 1]; None does not rescale the pixels.
        size: Height and width of the yielded images in pixels; unset, those of the stored images.
        options: Further arguments of `Batches`. With ``sizes``, the whole split is resized first and augmented
            afterwards.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        shuffle: bool,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
        **options: Any,
    ) -> None:
        channels, self._stored = split.images.shape[1:3]
        device = split.images.device
        super().__init__(
            split.labels, channels, device, batch_size, shuffle, size or self._stored, mean, std, **options
        )
        self.split = split
        # The augmentation must fit the images of every epoch.
        for pixels in self._sizes or (self._stored,):
            self.augmentation.check(pixels)
        # `_prepare` fills this for images of `_prepared` pixels.
        self._crops = torch.empty(0)
        self._prepared = 0

    def _one_by_one(self) -> Iterator[Split]:
        # Crops have `size` pixels, and the yielded images `wanted` pixels.
        # Without ``sizes`` the crop has the stored size, and each batch is resized if the network sees another one.
        size = wanted = self._size_of_epoch() or 0
        if not size:
            size, wanted = self._stored, self._size
        self._prepare(size)
        epoch = self._on_device(self._draw(size))
        for index in self._left():
            self._given = index + 1
            # The windows of the batch, (n, size, size * C).
            windows = self._crops.index_select(0, epoch.crops[self._slice(index)])
            x = self._finished(windows, epoch, index)
            if wanted != size:
                x = F.interpolate(x, (wanted, wanted), mode="bilinear", antialias=True)
            yield Split(x, self.labels.index_select(0, epoch.images[self._slice(index)]))

    def _prepare(self, size: int) -> None:
        """Lay the images out, resized and padded, so that every crop of every image is a window of one strided view."""
        if self._prepared == size:
            return
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

    def _crops_of(self, total: int, size: int, generator: torch.Generator) -> Tensor:
        """Draw the index of each image's window: the first pixel of its padded image, plus a shift down and across."""
        padding = self.augmentation.padding
        width = size + 2 * padding
        windows = torch.arange(total) * width**2
        # Shifts of 0 to 2 * padding within the padded image are those of -padding to padding in the image itself.
        if padding:
            windows += torch.randint(2 * padding + 1, (total,), generator=generator) * width
            windows += torch.randint(2 * padding + 1, (total,), generator=generator)
        return windows


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
