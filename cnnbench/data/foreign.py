"""Plain LightningDataModules of the user's in `bench`: what the measures need to know of data that they do not hold.

`ImageDataModule` has its images in memory and prepares them itself. A plain LightningDataModule only gives loaders, and
states ``num_classes``, ``in_channels`` and ``image_size``. `ForeignData` stands between it and the benchmark: it checks
every batch, counts the images, and computes the fingerprint from what the test loader gives.

A cell must not depend on the cells before it. So each training gets a new object of the user's class, and the random
generators of its loaders start from the seed of the cell.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from cnnbench.data.batches import LARGEST_SIDE, Split, check_whole
from cnnbench.errors import UserError

FIXED_SEED = 0
"""Seed of whatever the user's class draws outside of a training, such as a validation split."""
FULL_EPOCHS = 100
"""Number of epochs of a full training, if the class states none."""
OF_BENCH = ("data_dir", "batch_size", "eval_batch_size")
"""Arguments that a benchmark passes on to the class if it takes them."""
STATED = ("num_classes", "in_channels", "image_size")
"""Attributes that the class or its object must have."""
_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""Methods that change a batch on its way to the device, which a benchmark does not call."""
_Kind = Literal["train", "val", "test"]


@dataclass(frozen=True)
class ForeignSource:
    """A LightningDataModule of the user's that is not built yet.

    Attributes:
        name: Name as the user wrote it.
        cls: Class of the user's.
        arguments: Arguments of the class that are part of the name.
    """

    name: str
    cls: type[L.LightningDataModule]
    arguments: Mapping[str, Any]

    def __call__(self, **options: Any) -> ForeignData:
        """Return the data set; the user's class is built when the data is prepared.

        Args:
            options: Arguments of the class. Those of `OF_BENCH` are left out if the class does not take them.

        Raises:
            UserError: The class takes no argument of a name, or the name has an argument that a benchmark sets.
        """
        for key in self.arguments.keys() & set(OF_BENCH):
            raise UserError(f"data set '{self.name}' sets {key}, which bench decides itself; use --{key}")
        own = {key: value for key, value in options.items() if key not in OF_BENCH}
        self.check(own, f"data set '{self.name}'")
        passed = {key: options[key] for key in OF_BENCH if key in options and self.takes(key)}
        return ForeignData(self.name, partial(self.cls, **{**self.arguments, **passed, **own}))

    def takes(self, argument: str) -> bool:
        """Return whether the constructor of the class names an argument."""
        return argument in inspect.signature(self.cls).parameters

    def check(self, options: Mapping[str, Any], whose: str) -> None:
        """Check the names of further arguments, without building anything.

        Args:
            options: Arguments by name.
            whose: Owner of the arguments, for messages.

        Raises:
            UserError: The class has no argument of a name, or the name of the data set has another value for it.
        """
        kinds = [parameter.kind for parameter in inspect.signature(self.cls).parameters.values()]
        takes_any = inspect.Parameter.VAR_KEYWORD in kinds
        for key, value in options.items():
            if not takes_any and not self.takes(key):
                raise UserError(
                    f"{key} of {whose} has no effect, since {self.cls.__name__} is a LightningDataModule without such "
                    "an argument; leave it out, or let the class take it"
                )
            if self.arguments.get(key, value) != value:
                raise UserError(f"data set '{self.name}' says {key} already; leave out {key} {value}")


class ForeignData(L.LightningDataModule):
    """A LightningDataModule of the user's with the interface of `ImageDataModule` that a benchmark uses.

    Args:
        name: Name of the data set as the user wrote it.
        make: Function that builds an object of the user's class.

    Attributes:
        num_classes: Number of classes K, as the class states it.
        in_channels: Number of channels of the images.
        image_size: Height and width of the images in pixels.
        class_names: Names of the classes; their numbers if the class states none.
    """

    gives_several_batches: ClassVar[bool] = False
    num_classes: int
    in_channels: int
    image_size: int
    class_names: tuple[str, ...]

    def __init__(self, name: str, make: Callable[[], L.LightningDataModule]) -> None:
        super().__init__()
        self.name = name
        self._make = make
        self._module: L.LightningDataModule | None = None
        self._facts: dict[str, Any] = {}
        self._statistics: tuple[Sequence[float], Sequence[float]] | None = None
        self._has_val = False
        self.epoch_images = 0
        """Number of images of an epoch of the training."""
        self.eval_batch_size = 0
        """Number of images of the first batch of the test."""

    # Opening

    def prepare_data(self) -> None:
        if self._module is None:
            self._module = self._built()

    def setup(self, stage: str | None = None) -> None:
        """Read and check what the class states and gives, or, if Lightning asks, get it ready for a stage.

        Args:
            stage: Stage of Lightning's Trainer; None to open the data set before anything is measured.

        Raises:
            UserError: The class lacks something, or its code raises an error.
        """
        self.prepare_data()
        if stage is None:
            if not self._facts:
                self._open()
            return
        if stage == "fit":
            # Loaders and data sets may have a state, such as a random generator of their own.
            self._module = self._built()
        self._user.trainer = self.trainer
        with self._no_traceback("setup"):
            self._user.setup(stage)

    def teardown(self, stage: str) -> None:
        with self._no_traceback("teardown"):
            self._user.teardown(stage)

    @property
    def _user(self) -> L.LightningDataModule:
        """Return the object of the user's class."""
        assert self._module is not None
        return self._module

    def _built(self) -> L.LightningDataModule:
        """Return a new object of the user's class, with its data prepared."""
        with self._no_traceback("its constructor"):
            module = self._make()
        with self._no_traceback("prepare_data"):
            module.prepare_data()
        return module

    @contextlib.contextmanager
    def _no_traceback(self, where: str) -> Iterator[None]:
        """Run code of the user's with fixed seeds, and turn its errors into one line.

        The random state after the block is that before it, so that splits are the same in all cells and change nothing
        else that is random.
        """
        try:
            with isolate_rng():
                torch.manual_seed(FIXED_SEED)
                np.random.seed(FIXED_SEED)
                random.seed(FIXED_SEED)
                yield
        except UserError:
            raise
        except Exception as error:  # the user's code may raise anything
            text = " ".join(str(error).split())[:300]
            raise UserError(f"data set '{self.name}': {where} failed: {type(error).__name__}: {text}") from error

    def _open(self) -> None:
        """Read and check what the class states and what its loaders give."""
        module = self._user
        for hook in _HOOKS:
            if is_overridden(hook, module):
                raise self._lacking(f"has a method {hook}, which bench does not call; prepare images in the Dataset")
        for kind in ("train", "test"):
            if not is_overridden(f"{kind}_dataloader", module):
                raise self._lacking(f"has no {kind}_dataloader, which bench needs; add one")
        for stage in ("fit", "test"):
            with self._no_traceback(f"setup('{stage}')"):
                module.setup(stage)
        self._read_stated()
        self._has_val = is_overridden("val_dataloader", module) and bool(self._raw_loader("val"))
        with self._no_traceback("a loader"):
            self._facts = self._describe()

    def _read_stated(self) -> None:
        """Read and check the attributes that say what the data is."""
        module = self._user
        missing = [name for name in STATED if getattr(module, name, None) is None]
        if missing:
            raise self._lacking(f"does not state {', '.join(missing)}; add these attributes to the class")
        examples = {"num_classes": 10, "in_channels": 3, "image_size": 32}
        for name, example in examples.items():
            value = getattr(module, name)
            check_whole(f"{name} of data set '{self.name}':", value, 1, LARGEST_SIDE, example)
            setattr(self, name, value)
        names = getattr(module, "class_names", None)
        if names is None:
            names = [str(index) for index in range(self.num_classes)]
        is_list = isinstance(names, list | tuple) and all(isinstance(name, str) and name for name in names)
        if not is_list or len(names) != self.num_classes:
            raise self._lacking(f"has class_names {str(names)[:60]}, which are not {self.num_classes} names")
        self.class_names = tuple(names)
        self._read_statistics(getattr(module, "mean", None), getattr(module, "std", None))

    def _read_statistics(self, mean: Any, std: Any) -> None:
        """Read and check mean and standard deviation, with which images become pixels again for pictures."""
        if mean is None and std is None:
            return
        for name, values, low in (("mean", mean, 0.0), ("std", std, 1e-6)):
            is_list = isinstance(values, list | tuple) and len(values) == self.in_channels
            if not is_list or not all(isinstance(v, int | float) and low <= v <= 1 for v in values):
                raise self._lacking(
                    f"has {name} {str(values)[:60]}, which is not a number from 0 to 1 for each of {self.in_channels} "
                    "channels; state mean and std, or neither"
                )
        self._statistics = list(mean), list(std)

    def _lacking(self, what: str) -> UserError:
        return UserError(f"data set '{self.name}' {what}")

    def check_measures(self, measures: Sequence[str]) -> None:
        """Raise UserError if a measure needs images that the loaders do not give.

        Args:
            measures: Names of the measures of a benchmark.

        Raises:
            UserError: There is such a measure.
        """
        if "train_quality" in measures:
            raise self._lacking(
                "has no training images without augmentation, which the measure train_quality needs; leave it out"
            )
        if "robustness" in measures:
            raise self._lacking(
                "has no test images as they are stored, which the measure robustness changes; leave it out"
            )
        for measure in ("validation", "time_to_accuracy", "calibration"):
            if measure in measures and not self._has_val:
                raise self._lacking(
                    f"has no val_dataloader, which the measure {measure} needs; leave it out, or add one"
                )

    # What a record says

    def _describe(self) -> dict[str, Any]:
        """Return the facts for records; this reads the test set once, and the first batch of the other sets."""
        module = self._user
        title, epochs = getattr(module, "title", None), getattr(module, "full_epochs", FULL_EPOCHS)
        check_whole(f"full_epochs of data set '{self.name}':", epochs, 1, 1_000_000, FULL_EPOCHS)
        train = self._loader("train", FIXED_SEED)
        first = self._first(train, "train")
        counts = {"train": self._count(train, "train"), "val": 0}
        self.epoch_images = counts["train"]
        if train.drop_last:
            self.epoch_images -= counts["train"] % len(first.labels)
        if self._has_val:
            val = self._loader("val", FIXED_SEED)
            self._first(val, "val")
            counts["val"] = self._count(val, "val")
        tested, digest = self._test_digest(counts)
        return {
            "name": self.name,
            "label": title if isinstance(title, str) and title else type(module).__name__,
            "synthetic": False,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "train_images": counts["train"],
            "full_train_images": counts["train"],
            "val_images": counts["val"],
            "test_images": tested,
            "augment": False,
            "augmentation": f"that of {type(module).__name__}",
            "full_epochs": epochs,
            "batch_size": len(first.labels),
            "whole_batches": self.epoch_images % len(first.labels) == 0,
            "fingerprint": digest,
        }

    def _test_digest(self, counts: Mapping[str, int]) -> tuple[int, str]:
        """Return the number of test images, and a hash over them, their labels and the numbers of other images."""
        digest = hashlib.sha256(f"cnnbench foreign data 1 {sorted(counts.items())}\n".encode())
        images = 0
        for batch in self._loader("test", FIXED_SEED):
            split = self.checked(batch, "test")
            images += len(split.labels)
            self.eval_batch_size = self.eval_batch_size or len(split.labels)
            # The size of the batches is an option of its own, so only their content counts.
            for image, label in zip(split.images.contiguous(), split.labels.tolist(), strict=True):
                digest.update(image.numpy().data)
                digest.update(f"{label}\n".encode())
        if not images:
            raise self._lacking("gives no batch from its test_dataloader")
        return images, digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return facts for records, as `ImageDataModule.describe` does."""
        self.setup()
        return dict(self._facts)

    def _first(self, loader: DataLoader[Any], kind: _Kind) -> Split:
        """Return the first batch of a loader."""
        for batch in loader:
            return self.checked(batch, kind)
        raise self._lacking(f"gives no batch from its {kind}_dataloader")

    def _count(self, loader: DataLoader[Any], kind: _Kind) -> int:
        """Return the number of images of an epoch, with an incomplete last batch that the loader leaves out."""
        # A sampler may leave images out, or take some twice. With batches from a sampler of the user's, the one of
        # single images is inside that.
        samplers = (getattr(loader.batch_sampler, "sampler", None), loader.sampler, loader.dataset)
        for counted in samplers:
            with contextlib.suppress(TypeError, NotImplementedError):
                if counted is not None:
                    return len(counted)  # type: ignore[arg-type]
        raise self._lacking(f"does not say how many images its {kind}_dataloader gives; let its Dataset have __len__")

    # Batches

    def checked(self, batch: Any, kind: str) -> Split:
        """Return the images and the labels of a batch.

        Args:
            batch: Batch of a loader.
            kind: Split that it is of, for messages.

        Raises:
            UserError: It is not a pair of images, (N, C, H, W) float32, and labels, (N,) int64, as stated.
        """
        where = f"data set '{self.name}': a batch of its {kind}_dataloader"
        is_pair = isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(x, Tensor) for x in batch)
        if not is_pair:
            raise UserError(f"{where} is {type(batch).__name__}, which is not a pair of tensors (images, labels)")
        images, labels = batch
        shape = (self.in_channels, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != shape or images.dtype != torch.float32:
            raise UserError(
                f"{where} has images {tuple(images.shape)} {images.dtype}; in_channels and image_size promise "
                f"(N, {', '.join(map(str, shape))}) torch.float32"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise UserError(
                f"{where} has labels {tuple(labels.shape)} {labels.dtype}, which must be ({len(images)},) torch.int64"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            wrong = int(labels.max()) if int(labels.min()) >= 0 else int(labels.min())
            raise UserError(
                f"{where} has the label {wrong}; with num_classes {self.num_classes}, labels are 0 to "
                f"{self.num_classes - 1}"
            )
        return Split(images, labels)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Split:
        """Check a batch of Lightning's loops on the host, before it goes to the device."""
        training = self.trainer is not None and self.trainer.training
        return self.checked(batch, "train" if training else "test or val")

    def _raw_loader(self, kind: _Kind) -> Any:
        with self._no_traceback(f"{kind}_dataloader"):
            return getattr(self._user, f"{kind}_dataloader")()

    def _loader(self, kind: _Kind, seed: int) -> DataLoader[Any]:
        """Return a loader of the user's whose random order follows a seed."""
        loader = self._raw_loader(kind)
        if not isinstance(loader, DataLoader):
            raise self._lacking(
                f"gives {type(loader).__name__} from its {kind}_dataloader, which must be one DataLoader of torch"
            )
        # The generator of a loader is that of its workers, and a sampler that shuffles has one of its own. Without
        # this the order would depend on whatever else has drawn random numbers, such as the weights of a network.
        generator = torch.Generator().manual_seed(seed % 2**63)
        loader.generator = generator
        for sampler in (loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)):
            if hasattr(sampler, "generator"):
                sampler.generator = generator  # type: ignore[union-attr]
        return loader

    def train_dataloader(self) -> DataLoader[Any]:
        # `initial_seed` is the seed of the last `torch.manual_seed`, which is that of the cell.
        return self._loader("train", torch.initial_seed())

    def val_dataloader(self) -> Any:
        if not self._has_val:
            return []  # Lightning then leaves the validation out
        return self._loader("val", FIXED_SEED)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test", FIXED_SEED)

    def first_training_batches(self, limit: int) -> Iterator[Split]:
        """Yield the first batches of a training, with at most so many images, for the timing of networks.

        Args:
            limit: Largest number of images.
        """
        with self._no_traceback("train_dataloader"):
            for batch in self._loader("train", FIXED_SEED):
                images, labels = self.checked(batch, "train")
                yield Split(images[:limit], labels[:limit])
                limit -= len(labels)
                if limit <= 0:
                    return

    def test_pixels(self, indices: Sequence[int]) -> np.ndarray:
        """Return some test images as pixels for pictures, (n, H, W, C) uint8.

        Without mean and standard deviation, each image is stretched from its smallest to its largest value.

        Args:
            indices: Positions of the images in the order of the test loader, in ascending order.
        """
        wanted, seen = set(indices), 0
        chosen: list[Tensor] = []
        for batch in self._loader("test", FIXED_SEED):
            if len(chosen) == len(wanted):
                break
            images = self.checked(batch, "test").images
            chosen += [image for number, image in enumerate(images, start=seen) if number in wanted]
            seen += len(images)
        pixels = [self._pixels(image).permute(1, 2, 0) for image in chosen]
        shape = (0, self.image_size, self.image_size, self.in_channels)
        return torch.stack(pixels).numpy() if pixels else np.zeros(shape, dtype=np.uint8)

    def _pixels(self, image: Tensor) -> Tensor:
        """Return an image, (C, H, W) float32, as pixels, uint8."""
        if self._statistics is not None:
            mean, std = (torch.tensor(values)[:, None, None] for values in self._statistics)
            image = image * std + mean
        else:
            image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
        return (255 * image.clamp(0, 1)).round().to(torch.uint8)
