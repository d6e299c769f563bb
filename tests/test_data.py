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
from cnnbench.data.augment import random_crop_flip
from cnnbench.data.module import Split, TensorBatches
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


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_crop_and_flip_are_torchvisions(mode: str) -> None:
    torch.manual_seed(0)
    image = torch.randint(256, (3, 6, 6), dtype=torch.uint8)
    padded = reference.pad(image, 2, padding_mode="reflect" if mode == "reflect" else "constant")
    possible = {}
    for top in range(5):
        for left in range(5):
            crop = reference.crop(padded, top, left, 6, 6)
            possible[crop.numpy().tobytes()] = (top, left, False)
            possible[reference.horizontal_flip(crop).contiguous().numpy().tobytes()] = (top, left, True)
    assert len(possible) == 50
    out = random_crop_flip(image.expand(20_000, -1, -1, -1), padding=2, mode=mode)  # type: ignore[arg-type]
    assert out.shape == (20_000, 3, 6, 6)
    assert out.dtype == torch.uint8
    drawn = Counter(possible[i.contiguous().numpy().tobytes()] for i in out)  # a KeyError is a wrong crop
    chi_square = sum((drawn[key] - 400) ** 2 / 400 for key in possible.values())
    assert chi_square < 85.35  # 99.9 % quantile with 49 degrees of freedom
    unflipped = random_crop_flip(image.expand(50, -1, -1, -1), padding=2, flip=False, mode=mode)  # type: ignore[arg-type]
    assert not any(possible[i.contiguous().numpy().tobytes()][2] for i in unflipped)


def test_only_training_batches_are_augmented() -> None:
    torch.manual_seed(0)
    data = CIFAR10()
    batch = Split(torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    plain = data.prepare(batch, training=False).images
    expected = reference.normalize(batch.images.float() / 255, list(data.mean), list(data.std))
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(data.prepare(batch, training=True).images, plain)
    off = CIFAR10(augment=False)
    assert torch.equal(off.prepare(batch, training=True).images, plain)


def test_other_sizes_are_resized() -> None:
    data = CIFAR10(image_size=64, augment=False)
    batch = Split(torch.full((2, 3, 32, 32), 200, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    images = data.prepare(batch, training=True).images
    assert images.shape == (2, 3, 64, 64)
    assert images[0, 0].std() < 1e-5


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
