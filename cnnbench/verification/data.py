"""Images per second of data loaders: ours, torchvision's usual pipeline, airbench's, and a copy in memory as a limit.

All loaders return batches of the same kind. For CIFAR-10 these are batches of 128 images, padded by 4 pixels, cropped
and mirrored at random, and normalised. For MNIST they are batches of 64 normalised images of 28x28 pixels. The pixels
are random, since their values do not change the time. No network trains on the batches meanwhile.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from cnnbench.data.batches import Augmentation, Split, TensorBatches
from cnnbench.data.sets import CIFAR10, MNIST
from cnnbench.errors import UserError
from cnnbench.hardware import choose_device, cudnn_benchmark, device_name, synchronise
from cnnbench.verification import interleave, ratio, write_race
from cnnbench.verification import run as run_race

PEER = "torchvision"
"""Loader that the others are compared with."""
GOALS = {"CIFAR-10": 40, "MNIST": 75}
"""Least speed of our loaders, as a multiple of torchvision's pipeline without workers, by data set."""


class _Cifar(datasets.CIFAR10):
    """torchvision's CIFAR-10 over images that are in memory already; torchvision's code returns each image."""

    def __init__(self, split: Split, transform: Callable[[Any], Tensor]) -> None:
        # The constructor of the base class is not called, because it reads the files of the data set.
        # torchvision keeps the images as an array with the channels last, (N, H, W, C).
        self.data = split.images.permute(0, 2, 3, 1).numpy()
        self.targets = split.labels.tolist()
        self.transform, self.target_transform = transform, None


class _Mnist(datasets.MNIST):
    """torchvision's MNIST over images that are in memory already."""

    def __init__(self, split: Split, transform: Callable[[Any], Tensor]) -> None:
        # (N, 1, 28, 28) becomes (N, 28, 28), as torchvision keeps the images of MNIST.
        self.data, self.targets = split.images[:, 0], split.labels
        self.transform, self.target_transform = transform, None


def _split(count: int, channels: int, size: int) -> Split:
    """Return random images, (count, channels, size, size) in uint8, with random labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(10, (count,), generator=generator))


class _Race:
    """The loaders of one data set.

    Args:
        split: Images and labels.
        peer_images: Number of images, from the start of the split, that torchvision's loaders read.
        batch_size: Images per batch.
        device: Device that the batches are moved to.

    Attributes:
        subjects: Function that loads all batches once, and the number of images in these batches, by loader.
    """

    def __init__(self, split: Split, peer_images: int, batch_size: int, device: torch.device) -> None:
        self.split, self.batch_size, self.device = split, batch_size, device
        self.first = Split(split.images[:peer_images], split.labels[:peer_images])
        self.subjects: dict[str, tuple[Callable[[], None], int]] = {}

    def add(self, name: str, batches: Iterable[Any], images: int) -> None:
        """Add a loader.

        Args:
            name: Name of the loader.
            batches: Images and labels of each batch, as the loader yields them.
            images: Number of images; an incomplete last batch is left out.
        """

        def once() -> None:
            # The work is done when every batch is on the device.
            for x, y in batches:
                x.to(self.device), y.to(self.device)
            synchronise(self.device)

        self.subjects[name] = once, images // self.batch_size * self.batch_size

    def add_ours(
        self, name: str, augmentation: Augmentation | None, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Add the loader of this project, with all images on the device."""
        # The images are moved once, before the clock runs, as in a training.
        on_device = Split(*(t.to(self.device) for t in self.split))
        batches = TensorBatches(on_device, self.batch_size, True, mean, std, augmentation=augmentation)
        self.add(name, batches, len(self.split.labels))

    def add_peer(self, name: str, data: Any, workers: int = 0) -> None:
        """Add torch's `DataLoader` over a data set of torchvision."""
        # Persistent workers live through all rounds, so that their start is not timed again in each of them.
        loader: DataLoader = DataLoader(
            data, self.batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )
        self.add(name, loader, len(data))

    def add_copy(self, name: str) -> None:
        """Add a copy of a float32 batch within the memory of the device, which is a limit for every loader."""
        batch = torch.zeros(self.batch_size, *self.split.images.shape[1:], device=self.device)
        count = len(self.split.labels)

        def once() -> None:
            for _ in range(count // self.batch_size):
                batch.clone()
            synchronise(self.device)

        self.subjects[name] = once, count // self.batch_size * self.batch_size

    def run(self, rounds: int) -> dict[str, list[float]]:
        """Return the images per second of every round, by loader."""
        times_ms = interleave({name: once for name, (once, _) in self.subjects.items()}, rounds)
        # Images per millisecond times 1000 are images per second.
        return {name: [1000 * self.subjects[name][1] / t for t in times] for name, times in times_ms.items()}


def _cifar(device: torch.device, folder: Path) -> _Race:
    """Return the race of CIFAR-10; airbench reads its images from a file in the folder."""
    mean, std = CIFAR10.mean, CIFAR10.std
    # The loaders of torchvision read only the first 5,000 images, which keeps a round short.
    race = _Race(_split(50_000, 3, 32), 5_000, 128, device)
    race.add_ours("cnnbench", Augmentation(), mean, std)
    race.add_ours("cnnbench, cutout", Augmentation(cutout=8), mean, std)
    # The same augmentation as our default: a shift by up to 4 pixels with a reflected border, and mirroring.
    crop = transforms.RandomCrop(32, 4, padding_mode="reflect")
    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(mean, std)]
    peers = _Cifar(race.first, transforms.Compose(steps))
    race.add_peer(PEER, peers)
    race.add_peer(f"{PEER}, 2 workers", peers, workers=2)
    race.add("airbench", _airbench(race.split, folder, device), len(race.split.labels))
    race.add_copy("memory copy")
    return race


def _airbench(split: Split, folder: Path, device: torch.device) -> Iterable[Any]:
    """Return the loader of the package airbench over the same images."""
    package = airbench()
    write_for_airbench(split, folder / "train.pt")
    augmentation = {"flip": True, "translate": 4}
    return package.CifarLoader(str(folder), train=True, batch_size=128, aug=augmentation, gpu=device)


def airbench() -> Any:
    """Return the package airbench, which only the races need.

    Raises:
        UserError: The package is not installed.
    """
    try:
        # The import switches cuDNN's search for kernels on for the whole process; the context restores the setting.
        with cudnn_benchmark(torch.backends.cudnn.benchmark):
            return importlib.import_module("airbench")
    except ImportError as error:
        raise UserError(f"the race needs airbench ({error}); install it with: pip install 'cnnbench[dev]'") from error


def write_for_airbench(split: Split, path: Path) -> None:
    """Write images to a file as airbench's loader reads them: (N, H, W, C) in uint8."""
    images = split.images.permute(0, 2, 3, 1).contiguous()
    torch.save({"images": images, "labels": split.labels, "classes": CIFAR10.class_names}, path)


def _mnist(device: torch.device) -> _Race:
    """Return the race of MNIST."""
    mean, std = MNIST.mean, MNIST.std
    race = _Race(_split(60_000, 1, 28), 10_000, 64, device)
    race.add_ours("cnnbench", None, mean, std)
    peers = _Mnist(race.first, transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)]))
    race.add_peer(PEER, peers)
    race.add_peer(f"{PEER}, 2 workers", peers, workers=2)
    race.add_copy("memory copy")
    return race


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the loaders, print the table and write ``results/races/data.json``; return the exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m cnnbench.verification.data", description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        raise UserError(f"rounds {options.rounds} must be at least 1")
    device = choose_device(options.device)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    goals: dict[str, bool] = {}
    print(f"{device_name(device)}, {torch.get_num_threads()} threads, {options.rounds} rounds in turns")
    print("| Data | Loader | Images/s | Lowest | Highest | Times torchvision |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for title, race in (("CIFAR-10", _cifar(device, Path(folder))), ("MNIST", _mnist(device))):
            print(f"racing {title}", file=sys.stderr)
            rates = race.run(options.rounds)
            for name, of_rounds in rates.items():
                middle = statistics.median(of_rounds)
                rows.append({"data": title, "loader": name, "median": middle, "rates": of_rounds})
                times_peer = ratio(of_rounds, rates[PEER])
                ratios[f"{name} / {PEER}, {title}"] = times_peer
                # Three digits are shown, without an exponent.
                cells = " | ".join(f"{float(f'{rate:.3g}'):,.0f}" for rate in (middle, min(of_rounds), max(of_rounds)))
                digits = 0 if times_peer["median"] >= 10 else 1
                print(f"| {title} | {name} | {cells} | {times_peer['median']:,.{digits}f} |")
                if name.startswith("cnnbench"):
                    goal = f"{title}: {name} at least {GOALS[title]} times {PEER} without workers"
                    goals[goal] = times_peer["median"] >= GOALS[title]
    print(f"written: {write_race('data', rows, ratios, goals, device)}")
    return 0


if __name__ == "__main__":
    run_race("data", main)
