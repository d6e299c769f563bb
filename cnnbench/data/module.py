"""The base class of the data sets: a LightningDataModule over one uint8 tensor in memory, or over files on the disk.

A data set is a subclass that states what its images are and how they are read. The base class makes the splits,
`cnnbench.data.batches` the batches of images in memory, and `cnnbench.data.streaming` those of images in files. The
validation split is taken from the training set with a seed of its own. The test set is the complete official one, and
only `test_dataloader` and `predict_dataloader` read it.
"""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import lightning as L
import torch

from cnnbench import progress
from cnnbench.console import note
from cnnbench.data.batches import (
    LARGEST_SIDE,
    TRANSIENT,
    Augmentation,
    Batches,
    Flip,
    PaddingMode,
    Split,
    TensorBatches,
    check_whole,
)
from cnnbench.data.streaming import PREFETCH, FileSplit, StreamedBatches, worker_count
from cnnbench.errors import UserError

AnySplit = Split | FileSplit
"""Images in memory, or images in files."""
DEFAULT_BATCH = 128
CROP_SCALE = (0.08, 1.0)
"""Default of the share of an image's area that is its random part, as in torchvision."""
FEW_STEPS = 10
"""Number of training steps in an epoch below which a smaller batch size is proposed."""
VAL_FRACTION = 0.1
"""Share of the training set that is the validation split by default."""
LARGEST_BATCH = 1_000_000
MOST_IMAGES = 1_000_000_000
MOST_SIZES = 10_000
"""Largest number of epochs for which ``sizes`` may set the size of the images."""
MEMORY_SHARE = 0.5
"""Largest share of the machine's memory that the images of one data set may take."""


def total_memory() -> int | None:
    """Return the memory of this machine in bytes; None if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def check_memory(what: str, needed: int) -> None:
    """Raise UserError if images take more than `MEMORY_SHARE` of the machine's memory.

    Args:
        what: Name of the images, for the message.
        needed: Memory that they take, in bytes.

    Raises:
        UserError: The images take more than this share.
    """
    total = total_memory()
    if total is not None and needed > MEMORY_SHARE * total:
        raise UserError(
            f"{what} would take {needed / 2**30:,.1f} GiB; at most half of this machine's {total / 2**30:,.1f} GiB are "
            "used for images: use smaller images, fewer of them, or smaller batches"
        )


def _check_optional(name: str, value: Any, high: int, example: int) -> None:
    """Raise UserError unless an argument is unset or a whole number from 1 to ``high``; see `check_whole`."""
    if value is not None:
        check_whole(name, value, 1, high, example)


def _check_fraction(val_fraction: Any) -> None:
    """Raise UserError unless the share of the validation split is a number from 0 to below 1."""
    # A bool is an int for Python, so False would pass as 0.
    is_number = isinstance(val_fraction, int | float) and not isinstance(val_fraction, bool)
    if not is_number or not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction {val_fraction!r} is not in [0, 1); 0.1 keeps a tenth for validation")


def _check_sizes(sizes: Any, example: int) -> None:
    """Raise UserError unless the sizes of the images by epoch are a list of whole numbers of pixels."""
    if not isinstance(sizes, list | tuple) or len(sizes) > MOST_SIZES:
        raise UserError(f"sizes {str(sizes)[:40]} must be a list of numbers of pixels, such as [20, 24, 28, 32]")
    for pixels in sizes:
        check_whole("sizes: side", pixels, 1, LARGEST_SIDE, example)


class ImageDataModule(L.LightningDataModule, ABC):
    """A classification data set with its splits, batches, augmentation and normalisation.

    Args:
        data_dir: Folder of the data; unset, the environment variable CNNBENCH_DATA, else ``data``.
        image_size: Height and width of the images that the network sees, in pixels; unset, the usual size of the data.
        batch_size: Number of training images per step and device; unset, 128, or all of a smaller training split.
        eval_batch_size: Number of images per step in validation, test and prediction.
        val_fraction: Share of the official training set that becomes the validation split.
        split_seed: Seed of the validation split; the order of the batches follows the global seed.
        subset: Number of images of the training split to train on; unset, all of them.
        augment: Whether training images are shifted, mirrored and cut out at random; unset, the data set's default.
        padding: Largest shift in pixels.
        padding_mode: Content of the border of a shifted image: its reflection (``reflect``) or ``zeros``.
        flip: Left-right mirroring: ``random``, ``alternate`` (random at first, then changing from epoch to epoch), or
            ``none``.
        cutout: Side in pixels of a square that is blanked; 0 turns it off.
        sizes: Height and width of the training images per epoch, in pixels; the last value holds for all later epochs;
            unset, image_size.

    Raises:
        UserError: An argument is out of its range.
    """

    form: ClassVar[str] = ""
    """Form of the names that stand for the data set, such as ``folder:PATH``; empty if it is the name of the class."""
    title: str
    num_classes: int = 10
    in_channels: int
    native_size: ClassVar[int]
    default_size: ClassVar[int]
    default_augment: ClassVar[bool]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    full_epochs: int
    """Number of epochs of a full training; a benchmark cell with fewer is labelled as not converged."""
    synthetic: ClassVar[bool] = False
    settled: ClassVar[tuple[str, ...]] = ()
    """Arguments that the data sets itself in ``hparams``, if they are unset; a training that goes on keeps them."""
    workers: int | None = None
    """Number of processes that decode images in files; None for the processors of this process."""
    crop_scale: tuple[float, float] = CROP_SCALE
    """Smallest and largest share of the area of an image in a file that is its random part in training."""
    gives_several_batches: ClassVar[bool] = True
    """Whether the loader of the training gives the batches of several steps at once, as ``steps_per_call`` needs."""

    def __init__(
        self,
        data_dir: str | None = None,
        image_size: int | None = None,
        batch_size: int | None = None,
        eval_batch_size: int = 500,
        val_fraction: float = VAL_FRACTION,
        split_seed: int = 0,
        subset: int | None = None,
        augment: bool | None = None,
        padding: int = 4,
        padding_mode: PaddingMode = "reflect",
        flip: Flip = "random",
        cutout: int = 0,
        sizes: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        # A checkpoint records the data set that was trained on. The folder of the data and the number of workers differ
        # between machines.
        self.save_hyperparameters(ignore=["data_dir", "workers"], logger=False)
        if data_dir is not None and not isinstance(data_dir, str):
            raise UserError(f"data_dir {data_dir!r} is not the name of a folder")
        _check_optional("batch_size", batch_size, LARGEST_BATCH, DEFAULT_BATCH)
        check_whole("eval_batch_size", eval_batch_size, 1, LARGEST_BATCH, 500)
        _check_optional("image_size", image_size, LARGEST_SIDE, self.default_size)
        _check_fraction(val_fraction)
        check_whole("split_seed", split_seed, 0, 2**32 - 1, 0)
        _check_optional("subset", subset, MOST_IMAGES, 1000)
        if augment is not None and not isinstance(augment, bool):
            raise UserError(f"augment {augment!r} is not true or false")
        _check_sizes(sizes, self.default_size)
        self.name = type(self).__name__
        """Name of the data set in records."""
        self.data_dir = data_dir
        self.image_size = self.default_size if image_size is None else image_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.subset = subset
        self.augment = self.default_augment if augment is None else augment
        # Without augmentation its options would have no effect, so that any other value than the default is an error.
        asked = Augmentation(padding, padding_mode, flip, cutout)
        if not self.augment and asked != Augmentation():
            raise UserError(f"augmentation ({asked.describe()}) needs augment: true; {type(self).__name__} is without")
        self.augmentation = asked if self.augment else None
        self.sizes = tuple(sizes)
        self._splits: dict[str, AnySplit] = {}
        self._train_batches: Batches | None = None
        self._resumed: dict[str, Any] = {}
        self._full_train_images = 0
        self._fingerprint = ""

    @abstractmethod
    def load(self) -> tuple[AnySplit, ...]:
        """Return the official training set and test set, read from existing files without any download.

        A third split is the validation split; without one it is taken from the training set. All of them are in memory,
        or all in files.
        """

    @property
    def label(self) -> str:
        """Return the name of the data under which results are reported."""
        return self.title

    def setup(self, stage: str | None = None) -> None:
        # Lightning calls this method before every stage, but the splits are made only once.
        if self._splits:
            return
        with progress.doing(f"reading {type(self).__name__}"):
            train, test, *validation = self.load()
        if self.augmentation is not None:
            # Training images are augmented at the size of their epoch, or else at their stored size.
            for pixels in self.sizes or (train.images.shape[2],):
                self.augmentation.check(pixels)
        # The first part of a seeded permutation is the validation split, the rest the training split.
        # A generator of its own makes the split independent of the global seed.
        order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(self.split_seed))
        val_size = 0 if validation else round(self.val_fraction * len(order))
        chosen = order[val_size:]
        if not len(chosen):
            raise UserError(
                f"val_fraction {self.val_fraction} leaves none of the {len(order):,} training images of {self.label}; "
                "use a smaller one, such as 0.1"
            )
        self._full_train_images = len(chosen)
        if self.subset is not None:
            if self.subset > len(chosen):
                raise UserError(f"subset {self.subset} is larger than the training split of {len(chosen)} images")
            # The permutation has put the images in random order, so the first ones are a random sample.
            chosen = chosen[: self.subset]
        self._check_batch_size(len(chosen))
        self._check_memory(train, len(chosen))
        self._splits = {
            "train": train.take(chosen),
            "val": (*validation, train.take(order[:val_size]))[0],
            "test": test,
        }

    def _check_batch_size(self, images: int, processes: int = 1) -> None:
        """Raise UserError if the requested batch is larger than the share of training images of one process."""
        if self.batch_size is not None and self.batch_size > images // processes:
            each = ""
            if processes > 1:
                each = f" in each of {processes} processes"
            raise UserError(
                f"batch_size {self.batch_size:,} is larger than the training split of {self.label}, {images:,} images; "
                f"use at most {max(1, images // processes):,}{each}"
            )

    def _check_memory(self, train: AnySplit, chosen: int) -> None:
        """Raise UserError if training with these images would take too much memory.

        For images in memory, the estimate adds up the padded copy of the training images (one byte per value), the
        float32 copies of the piece that is being resized, and the largest batch in float32. For images in files, it is
        this batch and the batches that the workers have prepared (one byte per value).
        """
        channels, stored = train.images.shape[1:3]
        largest = padded = max(self.sizes, default=stored)
        batch = max(self.train_batch_size(chosen), self.eval_batch_size)
        needed = 4 * batch * channels * max(self.image_size, largest) ** 2
        if isinstance(train, FileSplit):
            needed += (1 + PREFETCH) * worker_count(self.workers) * batch * channels * largest**2
        else:
            if self.augmentation is not None:
                padded += 2 * self.augmentation.padding
            needed += chosen * channels * padded**2
            if self.sizes:
                needed += 2 * min(4 * chosen * channels * largest**2, TRANSIENT)
        check_memory(f"{self.title} with images of {max(self.image_size, largest)} pixels", needed)

    def train_batch_size(self, images: int) -> int:
        """Return the number of images per training step for a training split of this many images."""
        if self.batch_size is None:
            return min(DEFAULT_BATCH, images)
        return self.batch_size

    def smaller_batch(self) -> int | None:
        """Return a batch size for few training images; None if the default one makes `FEW_STEPS` steps in an epoch."""
        images = self.describe()["train_images"]
        default = min(DEFAULT_BATCH, images)
        # The largest power of two that makes `FEW_STEPS` steps.
        better = 2 ** int(math.log2(max(1, images // FEW_STEPS)))
        return better if images // default < FEW_STEPS and better < default else None

    def fingerprint(self) -> str:
        """Return a hash of all images and labels of the splits in use, in their order; it is computed only once.

        Of images in files, their names and sizes are hashed in the place of their pixels.
        """
        self.setup()
        if not self._fingerprint:
            with progress.doing(f"hashing the images of {type(self).__name__}"):
                self._fingerprint = self._hash()
        return self._fingerprint

    def _hash(self) -> str:
        """Return the hash of `fingerprint`."""
        digest = hashlib.sha256(b"cnnbench data 1")
        for name, split in self._splits.items():
            if isinstance(split, FileSplit):
                digest.update(f"{name} {tuple(split.images.shape)} {split.images.fingerprint()}\n".encode())
            for part in split:
                if not isinstance(part, torch.Tensor):
                    continue
                # The same bytes in another split, shape or type must give another hash.
                digest.update(f"{name} {tuple(part.shape)} {part.dtype}\n".encode())
                digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return facts for records: the data set, the number of images per split, and the preparation of the images."""
        self.setup()
        train_images = len(self._splits["train"].labels)
        return {
            "name": self.name,
            "label": self.label,
            "synthetic": self.synthetic,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "train_images": train_images,
            "full_train_images": self._full_train_images,
            "val_images": len(self._splits["val"].labels),
            "test_images": len(self._splits["test"].labels),
            "split_seed": self.split_seed,
            "augment": self.augment,
            "augmentation": self._augmentation_in_words(),
            "full_epochs": self.full_epochs,
            "batch_size": self.train_batch_size(train_images),
            "fingerprint": self.fingerprint(),
        }

    @property
    def streamed(self) -> bool:
        """Return whether the images stay in their files; known from `setup` on."""
        return isinstance(self._splits.get("train"), FileSplit)

    def stored(self, split: str, chosen: torch.Tensor | slice) -> Split:
        """Return images of a split as they are stored, uint8, with their labels; images in files are decoded.

        Args:
            split: Name of the split: train, val or test.
            chosen: Indices of the images in the order of the split, or a slice.

        Raises:
            UserError: A file cannot be used.
        """
        found = self._splits[split].take(chosen)
        return found.decoded() if isinstance(found, FileSplit) else found

    def _augmentation_in_words(self) -> str:
        parts = []
        if self.sizes:
            parts.append(f"images of {', '.join(map(str, self.sizes))} pixels by epoch")
        words = self.augmentation.describe() if self.augmentation else "none"
        if self.streamed and self.augmentation:
            low, high = (f"{100 * share:g}" for share in self.crop_scale)
            words = replace(self.augmentation, padding=0).describe()
            parts.append(f"random part of {low} to {high} % of the area")
            words = "" if words == "none" else words
        parts += [words] if words else []
        return ", ".join(parts)

    def _batches(self, name: str, training: bool = False) -> Batches:
        """Return the loader of a split, for the process and the device of the Trainer if there is one."""
        trainer = self.trainer
        # `initial_seed` is the seed of the last `torch.manual_seed`, which Lightning's `seed_everything` calls.
        rank, world_size, device, seed = 0, 1, torch.device("cpu"), torch.initial_seed()
        if trainer is not None:
            rank, world_size, device = trainer.global_rank, trainer.world_size, trainer.strategy.root_device
            seed = trainer.strategy.broadcast(seed)  # all processes must use the same order
        split = self._splits[name]
        images = len(split.labels)
        batch_size = self.eval_batch_size
        of_training: dict[str, Any] = {}
        if training:
            self._check_batch_size(images, world_size)
            batch_size = self.train_batch_size(images)
            # Only an `ImageClassifier` has `steps_per_call`, and there is no module outside a Trainer.
            module = getattr(trainer, "lightning_module", None)
            chunk = getattr(module, "steps_per_call", None)
            of_training = {"augmentation": self.augmentation, "sizes": self.sizes, "chunk": chunk}
        # With ``overfit_batches`` every epoch has the same batches. Lightning sees to this for its own samplers only.
        in_order = training and bool(getattr(trainer, "overfit_batches", 0))
        if in_order:
            # Without the incomplete last batch, since all training steps have one shape.
            batch_size = min(batch_size, images // world_size)
            split = split.take(slice(images - images % (batch_size * world_size)))
        options: dict[str, Any] = {
            "mean": self.mean,
            "std": self.std,
            "size": self.image_size,
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
            **of_training,
        }
        shuffle = training and not in_order
        if isinstance(split, FileSplit):
            # Every process of this machine has workers of its own.
            workers = worker_count(self.workers, getattr(trainer, "num_devices", 1))
            scale = self.crop_scale if training and self.augmentation else None
            return StreamedBatches(split, batch_size, shuffle, device, workers, scale, **options)
        home = _home(split.images, device)
        return TensorBatches(Split(*(part.to(home) for part in split)), batch_size, shuffle, **options)

    def train_dataloader(self) -> Batches:
        self._train_batches = self._batches("train", training=True)
        # A checkpoint is restored before there is a loader; the first loader takes its position over.
        if self._resumed:
            self._train_batches.load_state_dict(self._resumed)
            self._resumed = {}
        return self._train_batches

    # The data module keeps the state of its loader itself. Lightning also saves the states of loaders, but restores
    # them only to a loader that is not open yet. Ours is opened early, when the schedule needs the training's length.

    def state_dict(self) -> dict[str, Any]:
        if self._train_batches is None:
            return {}
        return {**self._train_batches.state_dict(), "fingerprint": self.fingerprint()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Checkpoints from before 2026-11-30 have no fingerprint. A test may be of other images than the training.
        trains = self.trainer is not None and self.trainer.state.fn == "fit"
        if trains and state_dict.get("fingerprint", self.fingerprint()) != self.fingerprint():
            raise UserError(
                f"the images of {self.label} are not those of the checkpoint, so training, validation and test images "
                "would change places; put the images back, or train from the start"
            )
        self._resumed = state_dict

    def val_dataloader(self) -> Any:
        if not len(self._splits["val"].labels):
            return []  # Lightning then leaves the validation out
        return self._batches("val")

    def test_dataloader(self) -> Batches:
        return self._batches("test")

    def predict_dataloader(self) -> Batches:
        return self._batches("test")

    def first_training_batches(self, limit: int) -> Batches:
        """Return the first images of the training split, prepared as in evaluation.

        Args:
            limit: Largest number of images.
        """
        first = self._splits["train"].take(slice(limit))
        options: dict[str, Any] = {"mean": self.mean, "std": self.std, "size": self.image_size}
        if isinstance(first, FileSplit):
            cpu, workers = torch.device("cpu"), worker_count(self.workers)
            return StreamedBatches(first, self.eval_batch_size, False, cpu, workers, **options)
        return TensorBatches(first, self.eval_batch_size, False, **options)


def _home(images: torch.Tensor, device: torch.device) -> torch.device:
    """Return where the images of a loader stay: on the device that trains, or in main memory if it is too small.

    Lightning moves the batches of a loader in main memory to the device.

    Args:
        images: Images, (N, C, H, W) uint8.
        device: Device that trains.
    """
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    # The images and their padded copy; the other half of the memory is left to the network.
    if 2 * images.nbytes <= free / 2:
        return device
    needed, left = images.nbytes / 2**30, free / 2**30
    note(f"{needed:,.1f} GiB of images stay in main memory, since {device} has only {left:,.1f} GiB free")
    return torch.device("cpu")
