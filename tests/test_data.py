"""Data sets: what is read, how it is split, batched, augmented and normalised."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from conftest import CLASSES
from PIL import Image
from torchvision import datasets

from cnnbench.data import all_data, get_data, sources
from cnnbench.data.batches import Augmentation, Split, TensorBatches
from cnnbench.errors import MissingDataError, UserError

CIFAR10, MNIST, Synthetic = (get_data(name) for name in ("CIFAR10", "MNIST", "Synthetic"))


def _write_mnist(root: Path, train: int = 30, test: int = 10) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        images = (np.arange(count * 784) % 251).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())


def test_listed_data_sets() -> None:
    assert list(all_data()) == ["CIFAR10", "MNIST", "Synthetic"]
    with pytest.raises(UserError, match="unknown data set 'cifar'; did you mean 'CIFAR10'"):
        get_data("cifar")


def test_mnist_is_padded_to_32_and_native_on_request(tmp_path: Path) -> None:
    _write_mnist(tmp_path)
    padded, native = MNIST(data_dir=str(tmp_path)), MNIST(data_dir=str(tmp_path), image_size=28)
    padded.prepare_data()
    (train, test), (small, _) = padded.load(), native.load()
    assert train.images.shape == (30, 1, 32, 32)
    assert test.images.shape == (10, 1, 32, 32)
    assert small.images.shape == (30, 1, 28, 28)
    assert torch.equal(train.images[:, :, 2:-2, 2:-2], small.images)
    border = train.images.clone()
    border[:, :, 2:-2, 2:-2] = 0
    assert border.sum() == 0
    assert small.images.flatten()[:300].tolist() == [i % 251 for i in range(300)]
    assert test.labels.tolist() == list(range(10))
    with pytest.raises(UserError, match="image_size 27 is smaller than MNIST's 28"):
        MNIST(image_size=27)


def test_cifar10_reads_torchvisions_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(3072, dtype=np.int64).astype(np.uint8)  # the file's order: red, green, blue plane by plane
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        batch = {"data": np.tile(pixels, (2, 1)), "labels": [3, 9]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    data = CIFAR10(data_dir=str(tmp_path))
    data.prepare_data()
    train, test = data.load()
    assert train.images.shape == (10, 3, 32, 32)
    assert train.images[0].flatten().tolist() == pixels.tolist()
    assert test.labels.tolist() == [3, 9]
    assert data.label == "CIFAR-10"


def test_class_folders_are_labelled_as_the_copy_that_they_are(class_folders: Path) -> None:
    data = CIFAR10(data_dir=str(class_folders), val_fraction=0)
    data.prepare_data()
    facts = data.describe()
    assert facts["label"] == "CIFAR-10 (JPEG copy), incomplete: 20 + 10 of 50,000 + 10,000 images"
    assert facts["test_images"] == 10
    _, test = data.load()
    assert test.labels.tolist() == list(range(10))
    assert test.images[4, 0].float().mean() == pytest.approx(80, abs=3)  # red is 20 times the label


def test_cache_is_used_until_a_file_changes(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = class_folders / "cifar10-images"
    decoded = []
    decode = sources._decode
    monkeypatch.setattr(sources, "_decode", lambda paths: decoded.append(len(paths)) or decode(paths))
    first = sources.load_class_folders(folder, CLASSES)
    again = sources.load_class_folders(folder, CLASSES)
    assert decoded == [20, 10]
    assert (folder / ".cnnbench-cache.npz").is_file()
    assert torch.equal(first[0].images, again[0].images)
    Image.new("RGB", (32, 32), (255, 255, 255)).save(folder / "test" / "truck" / "0000.jpg")
    changed = sources.load_class_folders(folder, CLASSES)
    assert decoded == [20, 10, 20, 10]
    assert changed[1].images[9].float().mean() > 250


def test_read_only_folder_is_left_alone(class_folders: Path, tmp_path: Path) -> None:
    folder = class_folders / "cifar10-images"
    folder.chmod(0o555)
    try:
        sources.load_class_folders(folder, CLASSES)
        assert sorted(p.name for p in folder.iterdir()) == ["test", "train"]
        assert len(list((tmp_path / "cache" / "cnnbench").glob("images-*.npz"))) == 1
    finally:
        folder.chmod(0o755)


def test_parallel_first_use_decodes_once(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = class_folders / "cifar10-images"
    decoded = []
    decode = sources._decode
    monkeypatch.setattr(sources, "_decode", lambda paths: decoded.append(len(paths)) or decode(paths))
    with ThreadPoolExecutor(3) as pool:  # each opens the lock file anew, as processes do
        sums = list(pool.map(lambda _: int(sources.load_class_folders(folder, CLASSES)[0].images.sum()), range(3)))
    assert len(set(sums)) == 1
    assert decoded == [20, 10]
    assert not list(folder.glob("*.part*"))


def test_wrong_image_in_a_class_folder_is_named(class_folders: Path) -> None:
    Image.new("RGB", (40, 32)).save(class_folders / "cifar10-images" / "train" / "cat" / "big.png")
    with pytest.raises(UserError, match=r"big.png' is 40x32 pixels, not 32x32"):
        CIFAR10(data_dir=str(class_folders)).setup()


def test_data_folder_is_argument_then_variable_then_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.resolve_data_dir(None) == Path("data")
    monkeypatch.setenv("CNNBENCH_DATA", str(tmp_path))
    assert sources.resolve_data_dir(None) == tmp_path
    with pytest.raises(UserError, match=r"'nowhere' \(--data_dir\) does not exist"):
        sources.resolve_data_dir("nowhere")
    monkeypatch.setenv("CNNBENCH_DATA", "nowhere")
    with pytest.raises(UserError, match=r"\(CNNBENCH_DATA\)"):
        sources.resolve_data_dir(None)


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10"])
def test_missing_data_says_what_was_tried_and_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(urls: list[str], target: Path, md5: str) -> None:
        raise MissingDataError(f"could not download {target.name}; tried {urls[0]} (no network)")

    monkeypatch.setattr(sources, "fetch", offline)
    with pytest.raises(MissingDataError, match=r"tried http.* \(no network\); place .* by hand.*CNNBENCH_DATA"):
        get_data(name)().prepare_data()


def test_downloaded_archives_are_unpacked_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_mnist(tmp_path / "origin")
    new = tmp_path / "new"
    new.mkdir()

    def fetch(urls: list[str], target: Path, md5: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        content = (tmp_path / "origin" / "MNIST" / "raw" / target.stem).read_bytes()
        target.write_bytes(gzip.compress(content))

    monkeypatch.setattr(sources, "fetch", fetch)
    data = MNIST(data_dir=str(new))
    data.prepare_data()
    assert data.load()[0].images.shape == (30, 1, 32, 32)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(b"x")
    with tarfile.open(new / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname=folder.name)
    monkeypatch.setattr(sources, "fetch", lambda *_: None)
    CIFAR10(data_dir=str(new)).prepare_data()
    assert (new / "cifar-10-batches-py" / "test_batch").read_bytes() == b"x"
    assert not list(new.rglob(".unpack-*"))
    with pytest.raises(UserError, match="cifar-10-batches-py' is damaged or incomplete; delete it"):
        CIFAR10(data_dir=str(new)).setup()


# Splits and batches


def test_splits_are_disjoint_seeded_and_complete() -> None:
    def splits(**options: int) -> dict[str, Split]:
        data = Synthetic(train_images=100, test_images=20, **options)
        data.setup()
        return data._splits

    first, same, other = splits(), splits(), splits(split_seed=1)
    assert [len(first[s].labels) for s in ("train", "val", "test")] == [90, 10, 20]
    assert torch.equal(first["val"].images, same["val"].images)
    assert not torch.equal(first["val"].images, other["val"].images)
    everything = Synthetic(train_images=100, test_images=20).load()[0].images
    both = torch.cat([first["train"].images, first["val"].images])
    assert Counter(i.numpy().tobytes() for i in both) == Counter(i.numpy().tobytes() for i in everything)


def test_subset_trains_on_that_many_images() -> None:
    data = Synthetic(train_images=100, test_images=20, subset=30, val_fraction=0)
    assert data.describe()["train_images"] == 30
    assert data.describe()["val_images"] == 0
    with pytest.raises(UserError, match="subset 1000 is larger than the training split of 90 images"):
        Synthetic(train_images=100, test_images=20, subset=1000).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"val_fraction": 1.0}, "val_fraction 1.0"),
        ({"subset": 0}, "subset 0"),
        ({"in_channels": 2}, "in_channels 2"),
        ({"image_size": 4}, "image_size 4"),
        ({"test_images": 3}, "test_images 3"),
    ],
)
def test_bad_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Synthetic(**options)


def _numbered(count: int) -> Split:
    return Split(torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(count))


def test_training_batches_shuffle_anew_each_epoch_and_repeat_by_seed() -> None:
    batches = TensorBatches(_numbered(10), 3, shuffle=True, seed=5)
    first = [b.labels.tolist() for b in batches]
    assert first == [b.labels.tolist() for b in batches]
    batches.set_epoch(1)
    second = [b.labels.tolist() for b in batches]
    assert first != second
    assert [len(b) for b in first] == [3, 3, 3]
    assert len(batches) == 3
    assert len({label for b in first for label in b}) == 9
    again = TensorBatches(_numbered(10), 3, shuffle=True, seed=5)
    again.set_epoch(1)
    assert second == [b.labels.tolist() for b in again]
    assert all(torch.equal(b.images.flatten().long(), b.labels) for b in batches)


def test_a_set_smaller_than_a_batch_still_trains() -> None:
    assert [len(b.labels) for b in TensorBatches(_numbered(4), 64, shuffle=True)] == [4]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_without_overlap(world_size: int) -> None:
    test = [TensorBatches(_numbered(10), 3, False, rank=r, world_size=world_size) for r in range(world_size)]
    seen = [label for batches in test for b in batches for label in b.labels.tolist()]
    assert sorted(seen) == list(range(10))
    train = [TensorBatches(_numbered(10), 3, True, rank=r, world_size=world_size) for r in range(world_size)]
    assert len({len(batches) for batches in train}) == 1
    seen = [label for batches in train for b in batches for label in b.labels.tolist()]
    assert len(seen) == len(set(seen))


# Augmentation and normalisation


def _all(split: Split, epoch: int = 0, batch_size: int = 100, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of an epoch as pixels of uint8 again, and their labels, in the order of the batches."""
    batches = TensorBatches(split, batch_size, shuffle=True, **options)  # type: ignore[arg-type]
    batches.set_epoch(epoch)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return images.to(torch.uint8), labels


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_crop_and_flip_are_torchvisions(mode: str) -> None:
    """Every image that comes out is one of torchvision's 50, and all of them are equally frequent."""
    image = torch.randint(256, (3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    padded = reference.pad(image, 2, padding_mode="reflect" if mode == "reflect" else "constant")
    possible = {}
    for top in range(5):
        for left in range(5):
            crop = reference.crop(padded, top, left, 6, 6)
            possible[crop.numpy().tobytes()] = (top, left, False)
            possible[reference.horizontal_flip(crop).contiguous().numpy().tobytes()] = (top, left, True)
    assert len(possible) == 50
    copies = Split(image.expand(20_000, -1, -1, -1), torch.zeros(20_000))
    out = _all(copies, augmentation=Augmentation(2, mode))[0]  # type: ignore[arg-type]
    assert out.shape == (20_000, 3, 6, 6)
    drawn = Counter(possible[i.contiguous().numpy().tobytes()] for i in out)  # a KeyError is a wrong crop
    chi_square = sum((drawn[key] - 400) ** 2 / 400 for key in possible.values())
    assert chi_square < 85.35  # 99.9 % quantile with 49 degrees of freedom
    unflipped = _all(copies, augmentation=Augmentation(2, mode, flip="none"))[0]  # type: ignore[arg-type]
    assert not any(possible[i.contiguous().numpy().tobytes()][2] for i in unflipped[:500])


def test_cutout_is_random_erasing() -> None:
    """A square of the mean, of that side, within the image, at every place equally often; the rest is untouched."""
    image = torch.randint(256, (3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    copies = Split(image.expand(16_000, -1, -1, -1), torch.zeros(16_000))
    options: dict = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}
    plain = reference.normalize(image / 255, [0.5, 0.4, 0.3], [0.25, 0.2, 0.3])
    batches = TensorBatches(copies, 100, shuffle=True, augmentation=Augmentation(0, flip="none", cutout=3), **options)
    drawn: Counter = Counter()
    for images, _ in batches:
        for x in images:
            rows, columns = (x == 0).all(0).nonzero(as_tuple=True)
            top, left = int(rows.min()), int(columns.min())
            expected = plain.clone()
            expected[:, top : top + 3, left : left + 3] = 0
            torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
            drawn[top, left] += 1
    assert len(drawn) == 16
    assert sum((n - 1000) ** 2 / 1000 for n in drawn.values()) < 37.70  # 99.9 % quantile with 15 degrees of freedom


def _marked(count: int) -> Split:
    """Images of which the left half tells their number and the right half is white, so that mirroring shows."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    images[..., 2:] = 255
    return Split(images, torch.arange(count))


@pytest.mark.parametrize("flip", ["random", "alternate"])
def test_two_epochs_of_alternate_mirroring_show_both_sides(flip: str) -> None:
    sides = []
    for epoch in range(4):
        augmentation = Augmentation(0, flip=flip)  # type: ignore[arg-type]
        images, labels = _all(_marked(200), epoch, 20, augmentation=augmentation)
        mirrored = images[:, 0, 0, 0] == 255
        assert 60 < int(mirrored.sum()) < 140
        assert torch.equal(images[mirrored].flip(3)[:, 0, 0, 0].long(), labels[mirrored])
        sides.append(mirrored[labels.argsort()])
    assert (flip == "alternate") == torch.equal(sides[0], ~sides[1])
    assert (flip == "alternate") == torch.equal(sides[0], sides[2])
    assert not torch.equal(sides[0], sides[1])


def test_an_image_gets_the_same_crop_whatever_the_batches_and_processes() -> None:
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randint(256, (60, 3, 8, 8), dtype=torch.uint8, generator=generator), torch.arange(60))

    def by_label(batch_size: int, ranks: int) -> torch.Tensor:
        options = {"augmentation": Augmentation(2, cutout=2), "seed": 3, "world_size": ranks}
        parts = [_all(split, 4, batch_size, rank=rank, **options) for rank in range(ranks)]
        labels = torch.cat([labels for _, labels in parts])
        assert labels.sort().values.tolist() == list(range(60))
        return torch.cat([images for images, _ in parts])[labels.argsort()]

    alone = by_label(60, 1)
    for batch_size, ranks in ((10, 1), (10, 2), (5, 3)):
        assert torch.equal(by_label(batch_size, ranks), alone)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_batches_are_the_same_and_never_wait() -> None:
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randint(256, (64, 3, 16, 16), dtype=torch.uint8, generator=generator), torch.arange(64))
    options: dict = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.2), "augmentation": Augmentation(2, cutout=4)}
    here = TensorBatches(split, 8, shuffle=True, **options)
    there = iter(TensorBatches(Split(*(t.cuda() for t in split)), 8, shuffle=True, **options))
    found = [next(there)]  # the first one brings over what the epoch has drawn
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += list(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(here, found, strict=True):
        assert theirs.images.is_cuda
        torch.testing.assert_close(theirs.images.cpu(), ours.images, rtol=1e-5, atol=1e-5)
        assert torch.equal(theirs.labels.cpu(), ours.labels)


def test_only_training_batches_are_augmented() -> None:
    data = Synthetic(train_images=40, test_images=20, augment=True, val_fraction=0.5, batch_size=20)
    data.setup()
    test = next(iter(data.test_dataloader()))
    plain = reference.normalize(data._splits["test"].images / 255, list(data.mean), list(data.std))
    torch.testing.assert_close(test.images, plain, rtol=1e-5, atol=1e-5)
    for batches in (data.val_dataloader(), data.first_training_batches(20)):
        again, once = list(batches), list(batches)
        assert torch.equal(torch.cat([b.images for b in once]), torch.cat([b.images for b in again]))
    train = next(iter(data.train_dataloader()))
    still = reference.normalize(data._splits["train"].images / 255, list(data.mean), list(data.std))
    assert not any(torch.isclose(x, y, atol=1e-5).all() for x, y in zip(train.images, still[train.labels], strict=True))
    assert train.images.is_contiguous(memory_format=torch.channels_last)


def test_other_sizes_are_resized() -> None:
    flat = Split(torch.full((2, 3, 32, 32), 200, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    images = next(iter(TensorBatches(flat, 2, shuffle=False, size=64))).images
    assert images.shape == (2, 3, 64, 64)
    assert torch.equal(images, torch.full_like(images, 200))


def test_sizes_by_epoch_are_torchvisions_resizes() -> None:
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8, generator=generator), torch.arange(10))
    batches = TensorBatches(split, 5, shuffle=True, sizes=(20, 20, 28, 32))
    for epoch, size in enumerate((20, 20, 28, 32, 32)):
        batches.set_epoch(epoch)
        expected = reference.resize(split.images, [size, size], antialias=True)
        for images, labels in batches:
            assert images.shape == (5, 3, size, size)
            assert (images - expected[labels]).abs().max() <= 1  # torchvision's own integer arithmetic rounds otherwise


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": "vertical"}, "unknown flip 'vertical'"),
        ({"padding_mode": "edge"}, "unknown padding_mode 'edge'"),
        ({"cutout": -1}, "cutout -1 must not be negative"),
        ({"augment": False, "cutout": 8}, "cutout of 8x8.* needs augment: true"),
        ({"sizes": (0,)}, "must be numbers of pixels"),
    ],
)
def test_impossible_augmentation_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CIFAR10(**options)


def test_augmentation_larger_than_the_image_is_refused() -> None:
    with pytest.raises(UserError, match="too large for images of 4x4 pixels"):
        TensorBatches(_marked(10), 5, shuffle=True, augmentation=Augmentation(padding=4))


# Synthetic images


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 28), (3, 64)])
def test_synthetic_is_deterministic_and_balanced(channels: int, size: int) -> None:
    data = Synthetic(in_channels=channels, image_size=size, train_images=50, test_images=20)
    (train, test), (same, _) = data.load(), data.load()
    assert train.images.shape == (50, channels, size, size)
    assert train.images.dtype == torch.uint8
    assert torch.equal(train.images, same.images)
    assert set(Counter(train.labels.tolist()).values()) == {5}
    assert not torch.equal(train.images[:20], test.images)
    assert len(data.mean) == channels


def test_synthetic_statistics_are_those_stated() -> None:
    data = Synthetic(train_images=2000, test_images=10)
    x = data.load()[0].images.float() / 255
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.tensor(data.mean), atol=0.01, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.tensor(data.std), atol=0.01, rtol=0)


REAL = str(Path(os.environ["CNNBENCH_DATA"]).resolve()) if os.environ.get("CNNBENCH_DATA") else None


@pytest.mark.skipif(not REAL, reason="CNNBENCH_DATA names no folder with the real data")
@pytest.mark.parametrize(("name", "counts"), [("MNIST", (60_000, 10_000)), ("CIFAR10", (50_000, 10_000))])
def test_real_data_has_its_published_size_and_stated_statistics(name: str, counts: tuple[int, int]) -> None:
    options = {"image_size": 28} if name == "MNIST" else {}
    data = get_data(name)(data_dir=REAL, **options)  # type: ignore[arg-type]
    data.prepare_data()
    train, test = data.load()
    assert (len(train.labels), len(test.labels)) == counts
    x = train.images.double() / 255
    near = 0.0005 if data.label in ("MNIST", "CIFAR-10") else 0.003  # a JPEG copy differs a little
    assert x.mean((0, 2, 3)).tolist() == pytest.approx(list(data.mean), abs=near)
    assert x.std((0, 2, 3)).tolist() == pytest.approx(list(data.std), abs=near)


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (Augmentation(), "shift of up to 4 pixels (reflect), mirroring"),
        (Augmentation(padding=1, padding_mode="zeros", flip="alternate", cutout=8),
         "shift of up to 1 pixels (zeros), alternate mirroring, cutout of 8x8"),
        (Augmentation(padding=2, flip="none"), "shift of up to 2 pixels (reflect)"),
        (Augmentation(padding=0, flip="none"), "none"),
    ],
)  # fmt: skip
def test_augmentation_in_words(augmentation: Augmentation, words: str) -> None:
    assert augmentation.describe() == words
