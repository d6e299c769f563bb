"""Image data as one uint8 tensor in memory, whole batches by index, augmentation on the device.

A data set is a class that says what its images are and how they are read; splits, batches, augmentation and
normalisation are here. The validation split comes out of the training set with its own seed; the test set is the
official one, whole, and only `test_dataloader` and `predict_dataloader` read it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnbench.data.augment import random_crop_flip
from cnnbench.errors import UserError


class Split(NamedTuple):
    """Images, (N, C, H, W) uint8, and their labels, (N,) int64."""

    images: Tensor
    labels: Tensor


class TensorBatches:
    """Iterates over a split in whole batches; a loader without workers and without per-image code.

    Training order is a new permutation each epoch, the same for the same seed and epoch. In distributed training
    rank r takes every world_size-th index from r on: no image twice, and in evaluation none left out.

    Args:
        split: Images and labels.
        batch_size: Images per batch and process.
        shuffle: Training order; also drops the incomplete last batch, so that all steps have one shape (the
            dropped images change every epoch). Otherwise the order is that of the split, and every image comes.
        seed: Seed of the permutations.
        rank: Index of this process.
        world_size: Number of processes.
    """

    def __init__(
        self, split: Split, batch_size: int, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.split = split
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        total = len(split.labels)
        # Ranks must agree on the number of training steps, or the faster one waits for ever.
        share = total // world_size if shuffle else len(range(rank, total, world_size))
        self.batch_size = min(batch_size, share) if shuffle else batch_size
        self._batches = share // self.batch_size if shuffle else -(-share // batch_size)
        self.epoch = 0
        # Lightning calls batch_sampler.sampler.set_epoch before every epoch, also after a resume.
        self.batch_sampler = SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._batches

    def order(self) -> Tensor:
        """Indices of this rank in the current epoch, (n,) int64."""
        total = len(self.split.labels)
        if not self.shuffle:
            return torch.arange(self.rank, total, self.world_size)
        generator = torch.Generator().manual_seed((self.seed % 2**31) * 1_000_003 + self.epoch)
        return torch.randperm(total, generator=generator)[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[Split]:
        order = self.order().to(self.split.images.device)
        for index in range(len(self)):
            picked = order[index * self.batch_size : (index + 1) * self.batch_size]
            yield Split(self.split.images.index_select(0, picked), self.split.labels.index_select(0, picked))


class ImageDataModule(L.LightningDataModule, ABC):
    """A classification data set with its splits, batches, augmentation and normalisation.

    Args:
        data_dir: Folder of the data; unset, the environment variable CNNBENCH_DATA, else ``data``.
        image_size: Height and width that the network sees, in pixels; unset, the data set's usual one.
        batch_size: Training images per step and device.
        eval_batch_size: Images per step in validation, test and prediction.
        val_fraction: Share of the official training set that validates.
        split_seed: Seed of the validation split; the order of the batches follows the global seed.
        subset: Train on this many images of the training split only.
        augment: Random shift and mirroring of training images; unset, the data set's habit.

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
        batch_size: int = 128,
        eval_batch_size: int = 500,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        subset: int | None = None,
        augment: bool | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1:
            raise UserError(f"batch_size {batch_size} and eval_batch_size {eval_batch_size} must be at least 1")
        if image_size is not None and (not isinstance(image_size, int) or image_size < 1):
            raise UserError(f"image_size {image_size} is not a number of pixels; use a whole number such as 32")
        if not 0 <= val_fraction < 1:
            raise UserError(f"val_fraction {val_fraction} is not in [0, 1); 0.1 keeps a tenth for validation")
        if subset is not None and subset < 1:
            raise UserError(f"subset {subset} must be at least 1 image; leave it out for the whole training split")
        self.data_dir = data_dir
        self.image_size = self.default_size if image_size is None else image_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.subset = subset
        self.augment = self.default_augment if augment is None else augment
        self._splits: dict[str, Split] = {}
        self._full_train_images = 0
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

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
        order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(self.split_seed))
        val_size = round(self.val_fraction * len(order))
        chosen = order[val_size:]
        self._full_train_images = len(chosen)
        if self.subset is not None:
            if self.subset > len(chosen):
                raise UserError(f"subset {self.subset} is larger than the training split of {len(chosen)} images")
            chosen = chosen[: self.subset]
        self._splits = {
            "train": Split(train.images[chosen], train.labels[chosen]),
            "val": Split(train.images[order[:val_size]], train.labels[order[:val_size]]),
            "test": test,
        }

    def describe(self) -> dict[str, Any]:
        """Facts for records: what the data is, how many images each split has, how they are prepared."""
        self.setup()
        return {
            "name": type(self).__name__,
            "label": self.label,
            "synthetic": self.synthetic,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "train_images": len(self._splits["train"].labels),
            "full_train_images": self._full_train_images,
            "val_images": len(self._splits["val"].labels),
            "test_images": len(self._splits["test"].labels),
            "split_seed": self.split_seed,
            "augment": self.augment,
            "full_epochs": self.full_epochs,
        }

    def _batches(self, split: str, shuffle: bool = False) -> TensorBatches:
        trainer = self.trainer
        rank, world_size, device, seed = 0, 1, torch.device("cpu"), torch.initial_seed()
        if trainer is not None:
            rank, world_size, device = trainer.global_rank, trainer.world_size, trainer.strategy.root_device
            seed = trainer.strategy.broadcast(seed)  # all ranks must share one order
        data = Split(*(t.to(device) for t in self._splits[split]))  # at most 180 MB: on a GPU it lives there
        size = self.batch_size if shuffle else self.eval_batch_size
        return TensorBatches(data, size, shuffle, seed, rank, world_size)

    def train_dataloader(self) -> TensorBatches:
        return self._batches("train", shuffle=True)

    def first_training_batches(self, limit: int) -> TensorBatches:
        """The first images of the training split in evaluation batches, for measuring how well they were learnt."""
        images, labels = self._splits["train"]
        return TensorBatches(Split(images[:limit], labels[:limit]), self.eval_batch_size, shuffle=False)

    def val_dataloader(self) -> Any:
        return self._batches("val") if len(self._splits["val"].labels) else []

    def test_dataloader(self) -> TensorBatches:
        return self._batches("test")

    def predict_dataloader(self) -> TensorBatches:
        return self._batches("test")

    def on_after_batch_transfer(self, batch: Split, dataloader_idx: int) -> Split:
        trainer = self.trainer
        return self.prepare(batch, training=trainer is not None and trainer.training)

    def prepare(self, batch: Split, training: bool) -> Split:
        """Turns a batch of uint8 images into what the network sees.

        Args:
            batch: images, (N, C, H, W) uint8, and labels.
            training: Whether to augment.

        Returns:
            Normalised images, (N, C, image_size, image_size) float32, and the labels.
        """
        images, labels = batch
        if training and self.augment:
            images = random_crop_flip(images)
        x = images.float()
        if x.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        mean, std = self._statistics(x.device)
        return Split((x - mean) / std, labels)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._on_device:  # once: a copy from the host every step would stall a GPU
            mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) * 255 for v in (self.mean, self.std))
            self._on_device[device] = (mean, std)
        return self._on_device[device]
