"""Images that stay in their files: worker processes decode them, batch by batch, while the network trains.

For data that does not fit into memory. A worker of torch's `DataLoader` decodes an image, takes a random part of it and
resizes that to the size of the network, all in uint8. Mirroring, cutout and normalisation follow on the device, for the
whole batch, by the same code as for images in memory.

The order of the images and every random choice depend on the seed, the epoch and the image alone, as in
`TensorBatches`. They are the same for any number of workers or processes, and after a resume in the middle of an epoch.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cnnbench import interrupts
from cnnbench.data.batches import Batches, Split
from cnnbench.errors import WORKER_HINT, UserError
from cnnbench.images import read_tensor, square

PREFETCH = 2
"""Number of batches that each worker prepares in advance."""
MOST_WORKERS = 16
"""Largest number of workers by default; one worker decodes several hundred photos per second."""
WHOLE = -1
"""Number in place of that of a random part of an image: the square in its middle."""

Key = tuple[int, int, int]
"""Index of an image, number of its random part or `WHOLE`, and side of the result in pixels."""


class ImageFiles:
    """Images of a split in their files, in the place of a tensor of pixels, (N, C, side, side).

    Args:
        folder: Folder of the files.
        names: Path of each file below the folder, (N,), as bytes. An array and not a list, since a list of a million
            objects would be copied into the memory of every worker, page by page.
        sizes: Size of each file in bytes, (N,).
        channels: 3 for colour, or 1 for grey.
        side: Height and width of an image in evaluation, in pixels.
    """

    def __init__(self, folder: Path, names: np.ndarray, sizes: np.ndarray, channels: int, side: int) -> None:
        self.folder = folder
        self.names = names
        self.sizes = sizes
        self.channels = channels
        self.side = side

    @classmethod
    def of(cls, folder: Path, paths: Sequence[str], sizes: Sequence[int], channels: int, side: int) -> ImageFiles:
        """Return the images of some paths.

        Args:
            folder: Folder below which the files are.
            paths: Path of each file.
            sizes: Size of each file in bytes.
            channels: See the class.
            side: See the class.
        """
        names = np.array([os.fsencode(os.path.relpath(path, folder)) for path in paths])
        return cls(folder, names, np.array(sizes, dtype=np.int64), channels, side)

    @property
    def shape(self) -> torch.Size:
        """Return the shape that the tensor of all images would have."""
        return torch.Size((len(self.names), self.channels, self.side, self.side))

    def __len__(self) -> int:
        return len(self.names)

    def take(self, chosen: Tensor | slice) -> ImageFiles:
        """Return the chosen images, in this order; see `Split.take`."""
        which = chosen.numpy() if isinstance(chosen, Tensor) else chosen
        return ImageFiles(self.folder, self.names[which], self.sizes[which], self.channels, self.side)

    def fingerprint(self) -> str:
        """Return a hash of the names and sizes of all files in their order."""
        digest = hashlib.sha256()
        for part in (self.names, self.sizes):
            digest.update(f"{part.dtype} {part.shape}\n".encode())
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.folder / os.fsdecode(self.names[index])

    def read(self, index: int) -> Tensor:
        """Return a whole image, (C, H, W) uint8, in the size of its file.

        Raises:
            UserError: The file cannot be used.
        """
        image = read_tensor(self.path(index))
        if self.channels == 1:
            return v2.functional.rgb_to_grayscale(image)
        return image

    def square(self, index: int) -> Tensor:
        """Return the square in the middle of an image, (C, side, side) uint8; see `cnnbench.images.square`.

        Raises:
            UserError: The file cannot be used.
        """
        image = v2.functional.to_pil_image(read_tensor(self.path(index)))
        return torch.from_numpy(square(image, self.channels, self.side).copy())


class FileSplit(NamedTuple):
    """Images in their files, and their labels, (N,) int64."""

    images: ImageFiles
    labels: Tensor

    def take(self, chosen: Tensor | slice) -> FileSplit:
        """Return the chosen images with their labels, in this order; see `Split.take`."""
        return FileSplit(self.images.take(chosen), self.labels[chosen])

    def decoded(self) -> Split:
        """Return the images in memory.

        Raises:
            UserError: A file cannot be used.
        """
        if not len(self.labels):
            return Split(torch.empty(self.images.shape, dtype=torch.uint8), self.labels)
        return Split(torch.stack([self.images.square(index) for index in range(len(self.labels))]), self.labels)


def worker_count(workers: int | None, processes: int = 1) -> int:
    """Return the number of workers of a process: as given, or its share of the processors.

    Args:
        workers: Number that the user gave; None for the share.
        processes: Number of processes that train on this machine.
    """
    if workers is not None:
        return workers
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(1, available // processes), MOST_WORKERS)


class StreamedBatches(Batches):
    """Loader of images in files.

    In training, each image is a random part of its file: 8 to 100 % of the area by default, with an aspect ratio of 3:4
    to 4:3, as torchvision's ``RandomResizedCrop``. In evaluation it is the square in the middle.

    Args:
        split: Files and their labels.
        batch_size: Number of images per batch and process.
        shuffle: Whether to use the training order; see `Batches`.
        device: Device of the batches.
        workers: Number of processes that decode; 0 decodes in this one.
        crop_scale: Smallest and largest share of the area of an image that is its random part; None for the square in
            the middle.
        size: Height and width of the yielded images in pixels; unset, that of the split.
        options: Further arguments of `Batches`.

    Raises:
        UserError: While batches are yielded: a file cannot be used, or a worker was killed.
    """

    def __init__(
        self,
        split: FileSplit,
        batch_size: int,
        shuffle: bool,
        device: torch.device,
        workers: int,
        crop_scale: tuple[float, float] | None = None,
        size: int | None = None,
        **options: Any,
    ) -> None:
        channels, side = split.images.shape[1:3]
        super().__init__(split.labels.to(device), channels, device, batch_size, shuffle, size=size or side, **options)
        self.split = split
        self.workers = workers
        self.crop_scale = crop_scale

    def _one_by_one(self) -> Iterator[Split]:
        size = self._size_of_epoch() or self._size
        drawn = self._draw(size)
        epoch = self._on_device(drawn)
        left = self._left()
        places = [self._slice(index) for index in left]
        # In evaluation, the square of the split's size is taken, and resized on the device if another one is wanted.
        side = size if self.crop_scale else self.split.images.side
        keys = _Keys(drawn.images, drawn.crops, places, side)
        for index, pixels in zip(left, self._decoded(keys), strict=True):
            self._given = index + 1
            # (n, side, side, C) becomes rows of pixels, (n, side, side * C).
            rows = pixels.to(self.device, non_blocking=True).flatten(2)
            x = self._finished(rows, epoch, index)
            if side != size:
                x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
            yield Split(x, self.labels.index_select(0, epoch.images[self._slice(index)]))

    def _crops_of(self, total: int, size: int, generator: torch.Generator) -> Tensor:
        if self.crop_scale is None:
            return torch.full((total,), WHOLE)
        return torch.randint(2**62, (total,), generator=generator)

    def _decoded(self, keys: _Keys) -> Iterator[Tensor]:
        """Yield the pixels of each batch, (n, side, side, C) uint8.

        Raises:
            UserError: A file cannot be used, or a worker was killed.
        """
        loader = DataLoader(
            _Decoder(self.split.images, self.crop_scale),
            batch_sampler=keys,
            num_workers=self.workers,
            collate_fn=_unchanged,
            # A copy to a GPU runs beside the host's work only from memory that cannot be swapped out.
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_begin_worker if self.workers else None,
            # Without a generator of its own, it would draw from torch's, and change what a network draws after it.
            generator=torch.Generator(),
            prefetch_factor=PREFETCH if self.workers else None,
        )
        try:
            for batch in loader:
                # An error of a worker arrives as its message, since DataLoader would add a traceback to it.
                if isinstance(batch, str):
                    raise UserError(batch)
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(f"a process that decodes images has ended, {WORKER_HINT}") from error


class _Keys:
    """What the workers have to prepare for each batch of an epoch.

    Args:
        images: Index of each image in the order of the epoch, (n,).
        crops: Number of the random part of each image, or `WHOLE`, (n,).
        places: Slice of each batch in this order.
        side: Height and width of the results in pixels.
    """

    def __init__(self, images: Tensor, crops: Tensor, places: Sequence[slice], side: int) -> None:
        self._images, self._crops, self._places, self._side = images, crops, places, side

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[list[Key]]:
        for place in self._places:
            yield list(zip(self._images[place].tolist(), self._crops[place].tolist(), repeat(self._side), strict=False))


class _Decoder(Dataset):
    """Data set of a `DataLoader` that prepares whole batches.

    Args:
        files: Images.
        scale: Smallest and largest share of the area of an image that is its random part; None for no random parts.
    """

    def __init__(self, files: ImageFiles, scale: tuple[float, float] | None) -> None:
        self._files = files
        self._scale = scale or (1.0, 1.0)
        self._crop: v2.RandomResizedCrop | None = None

    def __getitems__(self, keys: Sequence[Key]) -> Tensor | str:
        """Return images with the channels last, (n, side, side, C) uint8; the error's message if one fails."""
        side = keys[0][2]
        batch = np.empty((len(keys), side, side, self._files.channels), dtype=np.uint8)
        try:
            for place, key in enumerate(keys):
                # (C, side, side) becomes (side, side, C), which is the order of a random part in memory.
                batch[place] = self[key].permute(1, 2, 0).numpy()
        except UserError as error:
            return str(error)
        return torch.from_numpy(batch)

    def __getitem__(self, key: Key) -> Tensor:
        """Return an image, (C, side, side) uint8."""
        index, number, side = key
        if number == WHOLE:
            return self._files.square(index)
        image = self._files.read(index)
        # The transform draws from torch's own generator, whose state is put back.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(number)
            part = self._crop_to(side).make_params([image])
        top, left = part["top"], part["left"]
        # One image, (1, C, H, W), with the channels last in memory as the decoder leaves them. `interpolate` sees this
        # only if the batch comes first in memory too, and is then twice as fast as `resized_crop`, for the same pixels.
        whole = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        crop = whole[:, :, top : top + part["height"], left : left + part["width"]]
        return F.interpolate(crop, (side, side), mode="bilinear", antialias=True)[0]

    def _crop_to(self, side: int) -> v2.RandomResizedCrop:
        """Return the transform that takes a random part of an image and resizes it."""
        if self._crop is None or self._crop.size != (side, side):
            self._crop = v2.RandomResizedCrop((side, side), scale=self._scale, antialias=True)
        return self._crop


def _unchanged(batch: Any) -> Any:
    """Return a batch as the data set made it; `DataLoader` would otherwise stack it."""
    return batch


def _begin_worker(_: int) -> None:
    """Keep the signals that stop a command away from a worker; its parent ends it, by SIGTERM if it hangs."""
    # Ctrl-C and many tools signal all processes of a session.
    if hasattr(os, "setsid"):
        os.setsid()
    for number in interrupts.SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
