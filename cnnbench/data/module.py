"""Data sets as LightningDataModules over one uint8 tensor in memory.

A data set is a class that says what its images are and how they are read; splits are here, batches in
`cnnbench.data.batches`. The validation split comes out of the training set with its own seed; the test set is the
official one, whole, and only `test_dataloader` and `predict_dataloader` read it.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import lightning as L
import torch

from cnnbench.data.batches import (
    LARGEST_SIDE,
    PIECE,
    Augmentation,
    Flip,
    PaddingMode,
    Split,
    TensorBatches,
    check_whole,
)
from cnnbench.errors import UserError

DEFAULT_BATCH = 128
LARGEST_BATCH = 1_000_000
MOST_IMAGES = 1_000_000_000
MOST_SIZES = 10_000
"""Epochs that sizes are given for."""
MEMORY_SHARE = 0.5
"""Share of the machine's memory that the images of one data set may take."""


def check_memory(what: str, needed: int) -> None:
    """Raise unless the images of a data set take less than `MEMORY_SHARE` of the machine's memory.

    Args:
        what: What takes it, for the message.
        needed: Bytes.

    Raises:
        UserError: They take more.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return
    if needed > MEMORY_SHARE * total:
        raise UserError(
            f"{what} would take {needed / 2**30:,.1f} GiB; at most half of this machine's {total / 2**30:,.1f} GiB are "
            "used for images: use smaller images, fewer of them, or smaller batches"
        )


class ImageDataModule(L.LightningDataModule, ABC):
    """A classification data set with its splits, batches, augmentation and normalisation.

    Args:
        data_dir: Folder of the data; unset, the environment variable CNNBENCH_DATA, else ``data``.
        image_size: Height and width that the network sees, in pixels; unset, the data set's usual one.
        batch_size: Training images per step and device; unset, 128, or all of a smaller training split.
        eval_batch_size: Images per step in validation, test and prediction.
        val_fraction: Share of the official training set that validates.
        split_seed: Seed of the validation split; the order of the batches follows the global seed.
        subset: Train on this many images of the training split only.
        augment: Whether training images are shifted, mirrored and cut by chance; unset, the data set's habit.
        padding: Pixels of the largest shift.
        padding_mode: What is at the border of a shifted image: its reflection, or zeros.
        flip: Mirroring: ``random``, ``alternate`` (at random, then in turns from epoch to epoch), or ``none``.
        cutout: Side in pixels of a square that is blanked; 0 for none.
        sizes: Height and width of the training images per epoch, the last for all further ones; unset, image_size.

    Raises:
        UserError: An argument is out of its range.
    """

    title: ClassVar[str]
    num_classes: int = 10
    in_channels: int
    native_size: ClassVar[int]
    default_size: ClassVar[int]
    default_augment: ClassVar[bool]
    class_names: ClassVar[tuple[str, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    full_epochs: ClassVar[int]
    """Epochs of a full training; a benchmark cell with fewer is labelled as not converged."""
    synthetic: ClassVar[bool] = False

    def __init__(
        self,
        data_dir: str | None = None,
        image_size: int | None = None,
        batch_size: int | None = None,
        eval_batch_size: int = 500,
        val_fraction: float = 0.1,
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
        # so that a checkpoint says what was trained on; where the data lies is the machine's
        self.save_hyperparameters(ignore=["data_dir"], logger=False)
        if data_dir is not None and not isinstance(data_dir, str):
            raise UserError(f"data_dir {data_dir!r} is not the name of a folder")
        if batch_size is not None:
            check_whole("batch_size", batch_size, 1, LARGEST_BATCH, DEFAULT_BATCH)
        check_whole("eval_batch_size", eval_batch_size, 1, LARGEST_BATCH, 500)
        if image_size is not None:
            check_whole("image_size", image_size, 1, LARGEST_SIDE, self.default_size)
        if isinstance(val_fraction, bool) or not isinstance(val_fraction, int | float) or not 0 <= val_fraction < 1:
            raise UserError(f"val_fraction {val_fraction!r} is not in [0, 1); 0.1 keeps a tenth for validation")
        check_whole("split_seed", split_seed, 0, 2**32 - 1, 0)
        if subset is not None:
            check_whole("subset", subset, 1, MOST_IMAGES, 1000)
        if augment is not None and not isinstance(augment, bool):
            raise UserError(f"augment {augment!r} is not true or false")
        if not isinstance(sizes, list | tuple) or len(sizes) > MOST_SIZES:
            raise UserError(f"sizes {str(sizes)[:40]} must be a list of numbers of pixels, such as [20, 24, 28, 32]")
        for pixels in sizes:
            check_whole("sizes: side", pixels, 1, LARGEST_SIDE, self.default_size)
        self.data_dir = data_dir
        self.image_size = self.default_size if image_size is None else image_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.subset = subset
        self.augment = self.default_augment if augment is None else augment
        asked = Augmentation(padding, padding_mode, flip, cutout)
        if not self.augment and asked != Augmentation():
            raise UserError(f"augmentation ({asked.describe()}) needs augment: true; {type(self).__name__} is without")
        self.augmentation = asked if self.augment else None
        self.sizes = tuple(sizes)
        self._splits: dict[str, Split] = {}
        self._train_batches: TensorBatches | None = None
        self._resumed: dict[str, int] = {}
        self._full_train_images = 0
        self._fingerprint = ""

    @abstractmethod
    def load(self) -> tuple[Split, Split]:
        """Reads the official training and test set, without download."""

    @property
    def label(self) -> str:
        """What the data is to be called wherever a result is reported."""
        return self.title

    def setup(self, stage: str | None = None) -> None:
        if self._splits:
            return
        train, test = self.load()
        if self.augmentation is not None:
            for pixels in self.sizes or (train.images.shape[2],):
                self.augmentation.check(pixels)
        order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(self.split_seed))
        val_size = round(self.val_fraction * len(order))
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
            chosen = chosen[: self.subset]
        self._check_batch_size(len(chosen))
        self._check_memory(train, len(chosen))
        self._splits = {
            "train": Split(train.images[chosen], train.labels[chosen]),
            "val": Split(train.images[order[:val_size]], train.labels[order[:val_size]]),
            "test": test,
        }

    def _check_batch_size(self, images: int, processes: int = 1) -> None:
        """Raise UserError if an asked batch is larger than what there is to train on."""
        if self.batch_size is not None and self.batch_size > images // processes:
            each = f" in each of {processes} processes" if processes > 1 else ""
            raise UserError(
                f"batch_size {self.batch_size:,} is larger than the training split of {self.label}, {images:,} images; "
                f"use at most {max(1, images // processes):,}{each}"
            )

    def _check_memory(self, train: Split, chosen: int) -> None:
        """Raise UserError if what the images become in a training does not fit into the memory.

        Counted are the padded copy of the training images in bytes, the pieces in floating point that they are resized
        in, and the largest batch in floating point.
        """
        channels, stored = train.images.shape[1:3]
        largest = max(self.sizes, default=stored)
        padding = self.augmentation.padding if self.augmentation else 0
        needed = chosen * channels * (largest + 2 * padding) ** 2
        if self.sizes:
            needed += 2 * 4 * min(chosen, PIECE) * channels * largest**2
        batch = max(self.train_batch_size(chosen), self.eval_batch_size)
        needed += 4 * batch * channels * max(self.image_size, largest) ** 2
        check_memory(f"{self.title} with images of {max(self.image_size, largest)} pixels", needed)

    def train_batch_size(self, images: int) -> int:
        """Return the images per training step if there are so many to train on."""
        return min(DEFAULT_BATCH, images) if self.batch_size is None else self.batch_size

    def fingerprint(self) -> str:
        """Return a hash of all images and labels of the splits in use, in their order; computed once."""
        self.setup()
        if not self._fingerprint:
            digest = hashlib.sha256(b"cnnbench data 1")
            for name, split in self._splits.items():
                for part in split:
                    digest.update(f"{name} {tuple(part.shape)} {part.dtype}\n".encode())
                    digest.update(part.contiguous().numpy().data)
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        """Return facts for records: what the data is, how many images each split has, how they are prepared."""
        self.setup()
        train_images = len(self._splits["train"].labels)
        return {
            "name": type(self).__name__,
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

    def _augmentation_in_words(self) -> str:
        resized = [f"images of {', '.join(map(str, self.sizes))} pixels by epoch"] * bool(self.sizes)
        return ", ".join([*resized, self.augmentation.describe() if self.augmentation else "none"])

    def _batches(self, split: str, training: bool = False) -> TensorBatches:
        trainer = self.trainer
        rank, world_size, device, seed = 0, 1, torch.device("cpu"), torch.initial_seed()
        if trainer is not None:
            rank, world_size, device = trainer.global_rank, trainer.world_size, trainer.strategy.root_device
            seed = trainer.strategy.broadcast(seed)  # all ranks must share one order
        batch_size = self.eval_batch_size
        if training:
            images = len(self._splits[split].labels)
            self._check_batch_size(images, world_size)
            batch_size = self.train_batch_size(images)
        return TensorBatches(
            Split(*(t.to(device) for t in self._splits[split])),  # at most 180 MB: on a GPU it lives there
            batch_size,
            shuffle=training,
            mean=self.mean,
            std=self.std,
            size=self.image_size,
            augmentation=self.augmentation if training else None,
            sizes=self.sizes if training else (),
            seed=seed,
            rank=rank,
            world_size=world_size,
            chunk=getattr(getattr(trainer, "lightning_module", None), "steps_per_call", None) if training else None,
        )

    def train_dataloader(self) -> TensorBatches:
        self._train_batches = self._batches("train", training=True)
        if self._resumed:
            self._train_batches.load_state_dict(self._resumed)
            self._resumed = {}
        return self._train_batches

    # Lightning asks loaders for their state too, but gives it back only to one that is not open yet, which ours is when
    # the length of the training is wanted for the schedule.

    def state_dict(self) -> dict[str, int]:
        return self._train_batches.state_dict() if self._train_batches is not None else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._resumed = state_dict

    def val_dataloader(self) -> Any:
        return self._batches("val") if len(self._splits["val"].labels) else []

    def test_dataloader(self) -> TensorBatches:
        return self._batches("test")

    def predict_dataloader(self) -> TensorBatches:
        return self._batches("test")

    def first_training_batches(self, limit: int) -> TensorBatches:
        """The first images of the training split as evaluation sees them, for measuring how well they were learnt."""
        images, labels = self._splits["train"]
        first = Split(images[:limit], labels[:limit])
        return TensorBatches(first, self.eval_batch_size, False, self.mean, self.std, self.image_size)
