"""Images per second from JPEG files: our loader beside torchvision's recipe, timm's loader, and decoding alone.

All loaders read the same photos, with the same number of worker processes. Each yields batches of 128 images of 224x224
pixels, float32, normalised: random parts of the photos as by ``RandomResizedCrop``, mirrored at random. torchvision's
recipe is that of its references: ``ImageFolder``, ``RandomResizedCrop``, ``RandomHorizontalFlip``, ``ToTensor``,
``Normalize``. timm's loader has its prefetcher, which normalises whole batches. No network trains meanwhile.

The photos are drawn, with edges and textures of many sizes. They have about as many pixels and bytes as those of
ImageNet. Every photo is in the folder several times, so that a round lasts some seconds. After the first round, the
system has all files in memory, so that the disk is not measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from cnnbench.data.image_folder import ImageFolder
from cnnbench.data.streaming import worker_count
from cnnbench.errors import UserError
from cnnbench.hardware import device_name
from cnnbench.images import read_tensor
from cnnbench.verification import interleave, ratio, write_race
from cnnbench.verification import run as run_race

SIDE = 224
BATCH = 128
PHOTOS = 500
"""Number of different photos."""
COPIES = 8
"""How often each of them is in the folder."""
GOAL = 1.5
"""Least speed of our loader, as a multiple of the better one of torchvision's and timm's."""
OURS, TORCHVISION, TIMM, LIMIT = "cnnbench", "torchvision", "timm", "decoding alone"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def draw_photo(seed: int) -> Image.Image:
    """Return a drawn photo of about 500x375 pixels: noise of several wavelengths and colours, with sharp waves."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(320, 431), generator.integers(440, 561)
    pixels = np.full((height, width, 3), 110.0)
    # Squares of colour, from a twelfth of the image down to single pixels, the coarse ones with more contrast.
    for cells, contrast in ((12, 70), (40, 35), (120, 25), (300, 12)):
        colours = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        enlarged = Image.fromarray(colours).resize((int(width), int(height)), Image.Resampling.BICUBIC)
        pixels += contrast * (np.asarray(enlarged) / 128 - 1)
    across = np.arange(width) / generator.uniform(5, 40)
    pixels += 30 * np.sign(np.sin(across))[None, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_photos(folder: Path, photos: int, copies: int) -> int:
    """Write photos into two class folders of a training set; return the size of its files in bytes.

    Args:
        folder: Folder of the data, which also gets a test set of two photos.
        photos: Number of different photos.
        copies: How often each of them is there, by links to one file.
    """
    total = 0
    for index in range(photos):
        place = folder / "train" / ("first" if index % 2 else "second")
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{index:05}-0.jpg"
        draw_photo(index).save(path, quality=90)
        total += copies * path.stat().st_size
        for copy in range(1, copies):
            os.link(path, place / f"{index:05}-{copy}.jpg")
    for index, name in enumerate(("first", "second")):
        (folder / "test" / name).mkdir(parents=True)
        draw_photo(photos + index).save(folder / "test" / name / "0.jpg")
    return total


class _Decoded(Dataset):
    """Photos that are decoded and thrown away, which is the limit of every loader with this decoder."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> int:
        return read_tensor(self._paths[index]).shape[1]


def _ours(folder: Path, workers: int) -> Iterable[Any]:
    data = ImageFolder(
        str(folder),
        stream=True,
        workers=workers,
        batch_size=BATCH,
        image_size=SIDE,
        val_fraction=0.0,
        mean=MEAN,
        std=STD,
    )
    data.setup()
    return data.train_dataloader()


def _torchvision(folder: Path, workers: int) -> Iterable[Any]:
    steps: list[Callable[[Any], Any]] = [
        transforms.RandomResizedCrop(SIDE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    photos = datasets.ImageFolder(str(folder / "train"), transforms.Compose(steps))
    return DataLoader(photos, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)


def _timm(folder: Path, workers: int) -> Iterable[Any]:
    photos = create_dataset("", str(folder / "train"), is_training=True)
    return create_loader(
        photos,
        (3, SIDE, SIDE),
        BATCH,
        is_training=True,
        color_jitter=0.0,
        mean=MEAN,
        std=STD,
        num_workers=workers,
        device=torch.device("cpu"),
        persistent_workers=workers > 0,
    )


def _decoding(folder: Path, workers: int) -> Iterable[Any]:
    paths = sorted((folder / "train").rglob("*.jpg"))
    return DataLoader(_Decoded(paths), BATCH, drop_last=True, num_workers=workers, persistent_workers=workers > 0)


LOADERS = {OURS: _ours, TORCHVISION: _torchvision, TIMM: _timm, LIMIT: _decoding}
"""Function that makes each loader from a folder of photos and the number of workers."""


def _once(batches: Iterable[Any], seen: list[int]) -> None:
    """Read all batches of a loader and append their number of images."""
    images = 0
    for batch in batches:
        first = batch[0] if isinstance(batch, list | tuple) else batch
        images += len(first)
        if isinstance(first, Tensor) and first.dim() == 4 and first.shape[1:] != (3, SIDE, SIDE):
            raise UserError(f"a loader yields images of {tuple(first.shape[1:])}, not of (3, {SIDE}, {SIDE})")
    seen.append(images)


def race(folder: Path, workers: int, rounds: int) -> dict[str, list[float]]:
    """Return the images per second of each loader in every round.

    Args:
        folder: Folder of class folders.
        workers: Number of worker processes of each loader.
        rounds: Number of rounds, in which all loaders are timed in turns.
    """
    seen: dict[str, list[int]] = {name: [] for name in LOADERS}
    subjects = {}
    for name, make in LOADERS.items():
        loader = make(folder, workers)
        subjects[name] = lambda loader=loader, name=name: _once(loader, seen[name])
    times_ms = interleave(subjects, rounds)
    # The first call of each is the warm-up, which is not timed.
    return {
        name: [1000 * images / t for images, t in zip(seen[name][1:], times, strict=True)]
        for name, times in times_ms.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the loaders, print the table and write ``results/races/streaming.json``; return the exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m cnnbench.verification.streaming", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--photos", type=int, default=PHOTOS)
    parser.add_argument("--workers", type=int, default=worker_count(None))
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.photos < BATCH or options.workers < 0:
        raise UserError(f"rounds must be at least 1, photos at least {BATCH}, and workers at least 0")
    with tempfile.TemporaryDirectory() as name:
        print(f"drawing {options.photos} photos", file=sys.stderr)
        size = draw_photos(Path(name), options.photos, COPIES)
        rates = race(Path(name), options.workers, options.rounds)
    count = options.photos * COPIES
    print(
        f"{device_name(torch.device('cpu'))}, {options.workers} workers, {options.rounds} rounds in turns, "
        f"{count:,} photos of {size / count / 1000:.0f} kB"
    )
    print("| Loader | Images/s | Lowest | Highest | Times torchvision |")
    print("| --- | ---: | ---: | ---: | ---: |")
    rows, ratios = [], {}
    for name, of_rounds in rates.items():
        middle = statistics.median(of_rounds)
        rows.append({"loader": name, "median": middle, "rates": of_rounds})
        ratios[f"{name} / {TORCHVISION}"] = ratio(of_rounds, rates[TORCHVISION])
        cells = " | ".join(f"{rate:,.0f}" for rate in (middle, min(of_rounds), max(of_rounds)))
        print(f"| {name} | {cells} | {ratios[f'{name} / {TORCHVISION}']['median']:.2f} |")
    better = max((TORCHVISION, TIMM), key=lambda name: statistics.median(rates[name]))
    for other in (better, LIMIT):
        ratios[f"{OURS} / {other}"] = ratio(rates[OURS], rates[other])
    reached = ratios[f"{OURS} / {better}"]["median"]
    print(f"{OURS} / {better}: {reached:.2f}; {OURS} / {LIMIT}: {ratios[f'{OURS} / {LIMIT}']['median']:.2f}")
    goals = {f"{OURS} at least {GOAL} times the better of {TORCHVISION} and {TIMM}": reached >= GOAL}
    written = write_race("streaming", rows, ratios, goals, torch.device("cpu"))
    print(f"written: {written}")
    return 0


if __name__ == "__main__":
    run_race("streaming", main)
