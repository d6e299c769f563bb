"""Batches out of one uint8 tensor: cropped, mirrored, normalised whole, on the device where the images are.

A crop is a view: images lie padded in memory, each row of pixels after the other, so that every crop of every image is
one window of a strided view, and a batch of crops is one `index_select`. What an epoch draws by chance is drawn for the
whole data set at its start and by image, so that an image gets the same crop whatever the batch size, the number of
processes and the device; a batch costs a few kernels and never waits for a GPU.
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
"""Pixels of an image's side, and of all that is measured in them."""
PaddingMode = Literal["reflect", "zeros"]
Flip = Literal["random", "alternate", "none"]
PIECE = 10_000
"""Images that are resized at once."""


def check_whole(name: str, value: Any, low: int, high: int, example: int) -> None:
    """Raise unless a value is a whole number within limits.

    Args:
        name: Of the argument, for the message.
        value: What it was given.
        low: Smallest valid value.
        high: Largest valid value.
        example: A usual one, for the message.

    Raises:
        UserError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        shown = f"{value!r}"
        shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
        raise UserError(f"{name} {shown} must be a whole number from {low} to {high:,}, such as {example}")


class Split(NamedTuple):
    """Images, (N, C, H, W) uint8, and their labels, (N,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images by chance, independently for every image and epoch.

    Attributes:
        padding: Pixels added on every side before a crop of the old size, as torchvision's ``RandomCrop`` does: each
            axis is shifted by -padding to padding pixels, all equally likely.
        padding_mode: What the added pixels hold: the image ``reflect``-ed, or ``zeros``, which is black.
        flip: Mirror left and right, at ``random`` with probability one half, or ``alternate``: at random in the first
            epoch and then in turns, so that two epochs show both sides of every image (Jordan 2024, 2404.00498).
        cutout: Side in pixels of a square, anywhere within the image, that gets the data's mean colour; 0 for none.
            Cutout (DeVries, Taylor 2017, 1708.04552), placed as by torchvision's ``RandomErasing``: never across the
            border.

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
        """Refuses what images of that many pixels cannot have.

        Raises:
            UserError: The padding, or the square, is as large as the image.
        """
        if self.padding >= size or self.cutout > size:
            raise UserError(
                f"padding {self.padding} or cutout {self.cutout} is too large for images of {size}x{size} pixels"
            )

    def describe(self) -> str:
        """In words, for records."""
        parts = [f"shift of up to {self.padding} pixels ({self.padding_mode})"] * (self.padding > 0)
        if self.flip != "none":
            parts.append("alternate mirroring" if self.flip == "alternate" else "mirroring")
        parts += [f"cutout of {self.cutout}x{self.cutout}"] * (self.cutout > 0)
        return ", ".join(parts) or "none"


class _Epoch(NamedTuple):
    """What was drawn for an epoch, in the order of its batches, on the device of the images.

    Attributes:
        images: Indices of the images, (n,).
        windows: Index of each image's crop in the view of all crops, (n,).
        mirrored: Images that are mirrored in each batch, those that come first; a number per batch.
        corners: Upper left corner of the cutout of each image, (n, 2); None without cutout.
    """

    images: Tensor
    windows: Tensor
    mirrored: list[int]
    corners: Tensor | None


class TensorBatches:
    """Iterates over a split in whole batches that a network can take; a loader without workers and per-image code.

    Training order is a new permutation each epoch, the same for the same seed and epoch; within a batch the mirrored
    images come first. In distributed training rank r takes every world_size-th image from r on: no image twice, and in
    evaluation none left out.

    Iterating yields a `Split` with images, (n, C, size, size) float32 in channels-last order.

    Args:
        split: Square images and their labels, on the device that is to hold them.
        batch_size: Images per batch and process.
        shuffle: Training order; also drops the incomplete last batch, so that all steps have one shape (the
            dropped images change every epoch). Otherwise the order is that of the split, and every image comes.
        mean: Of each channel, for pixels from 0 to 1; None leaves the pixels as they are.
        std: Likewise.
        size: Height and width of the images that come out, in pixels; unset, their own.
        augmentation: What happens to the images by chance; None for nothing.
        sizes: Height and width per epoch, the last for all further ones, in place of ``size``: the whole split is
            resized, then augmented.
        seed: Seed of all that is drawn.
        rank: Index of this process.
        world_size: Number of processes.
        chunk: Batches that come out together, as a list; unset, each comes alone.
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
        for pixels in self._sizes or (self._stored,):
            self.augmentation.check(pixels)
        self._scale = 1 / (255 * torch.tensor(std or [1 / 255] * channels))
        self._shift = -255 * torch.tensor(mean or [0.0] * channels) * self._scale
        total = len(split.labels)
        # Ranks must agree on the number of training steps, or the faster one waits for ever.
        share = total // world_size if shuffle else len(range(rank, total, world_size))
        self.batch_size = min(batch_size, share) if shuffle else batch_size
        self.batches = share // self.batch_size if shuffle else -(-share // batch_size)
        self._crops = self._row_scale = self._row_shift = torch.empty(0)  # for images of this size:
        self._prepared = 0
        self.epoch = 0
        self._given = 0
        self._resume_at = (-1, 0)
        # Lightning calls batch_sampler.sampler.set_epoch before every epoch, also after a resume.
        self.batch_sampler = SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Where the iteration is, which Lightning keeps in its checkpoints."""
        return {"seed": self.seed, "epoch": self.epoch, "batch": self._given}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Has the next iteration over that epoch go on behind the batches that were given; other epochs are whole."""
        self.seed = state["seed"]
        self._resume_at = state["epoch"], state["batch"]

    def __len__(self) -> int:
        return self.batches if self.chunk is None else -(-self.batches // self.chunk)

    def __iter__(self) -> Iterator[Any]:
        batches = self._one_by_one()
        return batches if self.chunk is None else self._together(batches, self.chunk)

    def _together(self, batches: Iterator[Split], chunk: int) -> Iterator[list[Split]]:
        while found := list(islice(batches, chunk)):
            yield found

    def _one_by_one(self) -> Iterator[Split]:
        size = self._sizes[min(self.epoch, len(self._sizes) - 1)] if self._sizes else self._stored
        self._prepare(size)
        epoch = self._draw(size)
        wanted = size if self._sizes else self._size
        resumed_epoch, given = self._resume_at
        self._resume_at = (-1, 0)
        for index in range(given if resumed_epoch == self.epoch else 0, self.batches):
            self._given = index + 1
            batch = slice(index * self.batch_size, (index + 1) * self.batch_size)
            x = self._crops.index_select(0, epoch.windows[batch]).unflatten(2, (size, -1)).permute(0, 3, 1, 2)
            if epoch.mirrored[index]:
                x = torch.cat([x[: epoch.mirrored[index]].flip(3), x[epoch.mirrored[index] :]])
            rows = x.permute(0, 2, 3, 1).flatten(2)  # rows of pixels, so that the innermost dimension is long
            rows = torch.addcmul(self._row_shift, rows.float(), self._row_scale)
            if epoch.corners is not None:
                _cut_out(rows, epoch.corners[batch], self.augmentation.cutout)
            x = rows.unflatten(2, (size, -1)).permute(0, 3, 1, 2)
            if wanted != size:
                x = F.interpolate(x, (wanted, wanted), mode="bilinear", antialias=True)
            yield Split(x, self.split.labels.index_select(0, epoch.images[batch]))

    def _prepare(self, size: int) -> None:
        """Lays the images out, resized and padded, so that every crop of every image is a window of a view."""
        if self._prepared == size:
            return
        device = self.split.images.device
        self._row_scale, self._row_shift = (values.repeat(size).to(device) for values in (self._scale, self._shift))
        padding = self.augmentation.padding
        images = self.split.images if size == self._stored else resize(self.split.images, size)
        padded = torch.cat([_pad(piece, padding, self.augmentation.padding_mode) for piece in images.split(PIECE)])
        count, height, width, channels = padded.shape
        windows = (count - 1) * height * width + 2 * padding * (width + 1) + 1
        self._crops = padded.view(-1).as_strided(
            (windows, size, size * channels), (channels, width * channels, 1)
        )  # (windows, row, pixel and channel): the window that starts at pixel i of the whole memory
        self._prepared = size

    def _draw(self, size: int) -> _Epoch:
        """Draws an epoch by image, on the CPU, and takes this process' share of it."""
        total, padding = len(self.split.labels), self.augmentation.padding
        width = size + 2 * padding
        generator = torch.Generator().manual_seed((self.seed % 2**31) * 1_000_003 + self.epoch)
        order = torch.randperm(total, generator=generator) if self.shuffle else torch.arange(total)
        windows = torch.arange(total) * width**2
        if padding:
            windows += torch.randint(2 * padding + 1, (total,), generator=generator) * width
            windows += torch.randint(2 * padding + 1, (total,), generator=generator)
        mirrored = self._mirrored(total, generator)
        corners = None
        if self.augmentation.cutout:
            corners = torch.randint(size - self.augmentation.cutout + 1, (total, 2), generator=generator)
        order = order[self.rank :: self.world_size]
        counts = [0] * self.batches
        if mirrored is not None:
            order = order[: self.batches * self.batch_size].view(self.batches, self.batch_size)
            places = mirrored[order].sort(dim=1, descending=True, stable=True)
            counts, order = places.values.sum(1).tolist(), order.gather(1, places.indices).flatten()
        columns = [order, windows[order]]
        if corners is not None:
            columns += corners[order].unbind(1)
        moved = _moved(columns, self.split.images.device)
        return _Epoch(moved[0], moved[1], counts, torch.stack(moved[2:], dim=1) if corners is not None else None)

    def _mirrored(self, total: int, generator: torch.Generator) -> Tensor | None:
        """Which images are mirrored in this epoch, (total,) bool."""
        if self.augmentation.flip == "none":
            return None
        if self.augmentation.flip == "random":
            return torch.rand(total, generator=generator) < 0.5
        first = torch.rand(total, generator=torch.Generator().manual_seed(self.seed % 2**31)) < 0.5
        return first ^ bool(self.epoch % 2)


def _moved(columns: list[Tensor], device: torch.device) -> list[Tensor]:
    """Return whole numbers on a device; on a GPU in one copy that the host does not wait for."""
    if device.type != "cuda":
        return [column.to(device) for column in columns]
    return list(torch.stack(columns).pin_memory().to(device, non_blocking=True).unbind())


def _pad(images: Tensor, padding: int, mode: PaddingMode) -> Tensor:
    """Pads images, (n, C, H, W) uint8, and puts the channels last: (n, H, W, C) in memory."""
    if padding and mode == "reflect":  # not there for integers
        images = F.pad(images.float(), (padding,) * 4, mode="reflect").to(images.dtype)
    elif padding:
        images = F.pad(images, (padding,) * 4)
    return images.permute(0, 2, 3, 1).contiguous()


def resize(images: Tensor, size: int) -> Tensor:
    """Resizes images, (n, C, H, W) uint8, with antialiased bilinear interpolation, rounded as torchvision does."""
    pieces = [
        F.interpolate(piece.float(), (size, size), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        for piece in images.split(PIECE)
    ]
    return torch.cat(pieces)


def _cut_out(rows: Tensor, corners: Tensor, side: int) -> None:
    """Sets a square of each image to zero, which is the data's mean after normalisation.

    Args:
        rows: Normalised images, (n, H, W * C), changed in place.
        corners: Upper left corners, (n, 2).
        side: Side of the square in pixels.
    """
    size, channels = rows.shape[1], rows.shape[2] // rows.shape[1]
    pixels = torch.arange(size, device=rows.device)
    down, across = ((pixels >= corner[:, None]) & (pixels < corner[:, None] + side) for corner in corners.unbind(1))
    rows.masked_fill_(down[:, :, None] & across.repeat_interleave(channels, 1)[:, None, :], 0.0)
