"""Files of the data sets: what is read, what it is called, and what each kind of damage ends in."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES
from PIL import Image
from torchvision import datasets

from cnnbench.data import class_folders as folders
from cnnbench.data import get_data, mnist, sources
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import MissingDataError, UserError

CIFAR10, MNIST = (get_data(name).cls for name in ("CIFAR10", "MNIST"))
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = mnist.FILES


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that mirrors were asked for; none of them answers."""
    names: list[str] = []

    def offline(urls: list[str], target: Path, md5: str) -> None:
        names.append(target.name)
        raise MissingDataError(f"could not download {target.name}; tried {urls[0]} (no network)")

    monkeypatch.setattr(sources, "fetch", offline)
    return names


def _opened(data: ImageDataModule) -> ImageDataModule:
    data.prepare_data()
    data.setup()
    return data


# MNIST


def _idx(values: np.ndarray, magic: int | None = None) -> bytes:
    header = struct.pack(f">{1 + values.ndim}I", magic or 0x800 + values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_mnist(root: Path, train: int = 30, test: int = 10) -> Path:
    """Four files of digits that count up; returns their folder."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        images = (np.arange(count * 784) % 251).reshape(count, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(_idx(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(_idx(np.arange(count) % 10))
    return raw


def _mnist(root: Path, **options: object) -> ImageDataModule:
    data = MNIST(data_dir=str(root), **options)
    data.prepare_data()
    return data


def test_mnist_is_padded_to_32_and_native_on_request(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (train, test), (small, _) = _mnist(tmp_path).load(), _mnist(tmp_path, image_size=28).load()
    assert train.images.shape == (30, 1, 32, 32)
    assert test.images.shape == (10, 1, 32, 32)
    assert small.images.shape == (30, 1, 28, 28)
    assert torch.equal(train.images[:, :, 2:-2, 2:-2], small.images)
    border = train.images.clone()
    border[:, :, 2:-2, 2:-2] = 0
    assert border.sum() == 0
    assert small.images.flatten()[:300].tolist() == [i % 251 for i in range(300)]
    assert test.labels.tolist() == list(range(10))
    assert test.labels.dtype == torch.int64
    with pytest.raises(UserError, match="image_size 27 is smaller than MNIST's 28"):
        MNIST(image_size=27)


def test_images_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda _: 256)  # a machine of 64 KiB
    with pytest.raises(UserError, match=r"image_size 32 of MNIST would take 0.0 GiB; at most half of this machine's"):
        _mnist(tmp_path).load()
    assert _mnist(tmp_path, image_size=28).load()[0].images.shape == (30, 1, 28, 28)


@pytest.mark.parametrize(
    ("counts", "label"),
    [
        ((30, 10), "MNIST, incomplete: 30 + 10 of 60,000 + 10,000 images"),
        ((60, 1), "MNIST, incomplete: 60 + 1 of 60,000 + 10,000 images"),
    ],
)
def test_mnist_says_what_is_missing_of_it(counts: tuple[int, int], label: str, tmp_path: Path) -> None:
    write_mnist(tmp_path, *counts)
    assert _mnist(tmp_path).describe()["label"] == label


@pytest.mark.parametrize(
    ("counts", "original", "label"),
    [
        ((60_000, 10_000), True, "MNIST"),
        ((60_000, 10_000), False, "MNIST (altered)"),
        ((59_999, 10_000), False, "MNIST, incomplete: 59,999 + 10,000 of 60,000 + 10,000 images"),
        ((240_000, 40_000), False, "MNIST, altered: 240,000 + 40,000 of 60,000 + 10,000 images"),
        ((60_000, 1), True, "MNIST, incomplete: 60,000 + 1 of 60,000 + 10,000 images"),
    ],
)
def test_labels_tell_the_original_from_what_is_not(counts: tuple[int, int], original: bool, label: str) -> None:
    assert sources.label_of("MNIST", counts, (60_000, 10_000), original) == label


def test_the_original_mnist_is_known_by_its_four_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_mnist(tmp_path)
    monkeypatch.setattr(mnist, "OFFICIAL_COUNTS", (30, 10))
    known = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in raw.iterdir()}
    monkeypatch.setattr(mnist, "FILES", known)
    assert _mnist(tmp_path).describe()["label"] == "MNIST"
    for name in known:
        content = (raw / name).read_bytes()
        (raw / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert _mnist(tmp_path).describe()["label"] == "MNIST (altered)"
        (raw / name).write_bytes(content)


HTML = b"<!DOCTYPE html><title>404 Not Found</title>"
DIGITS = np.zeros((30, 28, 28))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TRAIN_IMAGES, b"", "has 0 bytes, less than the 16 of its header"),
        (TRAIN_IMAGES, b"\0\0\x08", "has 3 bytes, less than"),
        (TRAIN_IMAGES, HTML, "begins with 0x3c21444f, not with 0x00000803"),
        (TRAIN_IMAGES, gzip.compress(_idx(DIGITS), mtime=0), "begins with 0x1f8b"),
        (TRAIN_IMAGES, _idx(np.zeros(30)), "begins with 0x00000801, not with 0x00000803"),
        (TRAIN_IMAGES, _idx(DIGITS, magic=0x00000D03), "begins with 0x00000d03"),
        (TRAIN_IMAGES, _idx(DIGITS)[:-1], "has 23,535 bytes; 23,536 are due for the 30 images of its header"),
        (TRAIN_IMAGES, _idx(DIGITS) + b"\0", "has 23,537 bytes; 23,536 are due"),
        (TRAIN_IMAGES, _idx(DIGITS)[:16], "has 16 bytes; 23,536 are due"),
        (TRAIN_IMAGES, _idx(np.zeros((0, 28, 28))), "has no images"),
        (TRAIN_IMAGES, _idx(np.zeros((30, 14, 56))), "has images of 14x56 pixels, not 28x28"),
        (TRAIN_IMAGES, _idx(np.zeros((30, 32, 32))), "has images of 32x32 pixels, not 28x28"),
        (TRAIN_IMAGES, struct.pack(">4I", 0x803, 2**32 - 1, 28, 28), "bytes; 3,367,254,359,296 are due"),
        (TRAIN_IMAGES, struct.pack(">4I", 0x803, 1, 2**31, 2**31), "has images of 2147483648x2147483648"),
        (TRAIN_IMAGES, _idx(np.zeros((29, 28, 28))), "has 29 images, 'train-labels-idx1-ubyte' 30 labels"),
        (TEST_IMAGES, _idx(np.zeros((11, 28, 28))), "has 11 images, 't10k-labels-idx1-ubyte' 10 labels"),
        (TRAIN_LABELS, b"", "has 0 bytes, less than the 8 of its header"),
        (TRAIN_LABELS, _idx(DIGITS), "begins with 0x00000803, not with 0x00000801"),
        (TRAIN_LABELS, _idx(np.zeros(0)), "has no labels"),
        (TRAIN_LABELS, _idx(np.full(30, 10)), "has the label 10 at index 0; labels are 0 to 9"),
        (TEST_LABELS, _idx(np.array([*range(9), 115])), "has the label 115 at index 9"),
        (TEST_LABELS, _idx(np.arange(9)), "10 images, 't10k-labels-idx1-ubyte' 9 labels"),
    ],
)
def test_damaged_mnist_is_named_with_what_to_do(
    name: str, content: bytes, message: str, tmp_path: Path, asked: list[str]
) -> None:
    raw = write_mnist(tmp_path)
    (raw / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        _mnist(tmp_path).setup()
    assert type(caught.value) is UserError  # so that no synthetic images stand in
    assert f"; put the original file there, or delete the folder '{raw}'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert asked == []


def _replace(kind: str, path: Path) -> None:
    """Put something that is no regular file in the place of one."""
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        raise AssertionError(kind)


SPECIAL = ["fifo", "folder", "dangling link", "loop", "device"]


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", [TRAIN_IMAGES, TEST_LABELS])
def test_what_is_no_file_is_not_read_as_mnist(kind: str, name: str, tmp_path: Path, asked: list[str]) -> None:
    _replace(kind, write_mnist(tmp_path) / name)
    with pytest.raises(UserError, match=f"MNIST file '.*{name}'"):
        _mnist(tmp_path).setup()
    assert asked == []


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_mnist_that_is_there_in_part_is_named_at_once(gone: int, tmp_path: Path, asked: list[str]) -> None:
    raw = write_mnist(tmp_path)
    for name in list(mnist.FILES)[:gone]:
        (raw / name).unlink()
    with pytest.raises(UserError, match=f"but not {', '.join(list(mnist.FILES)[:gone])}; put them there") as caught:
        _mnist(tmp_path)
    assert type(caught.value) is UserError
    assert asked == []


def test_mnist_under_names_with_a_dot_is_not_taken_for_nothing(tmp_path: Path, asked: list[str]) -> None:
    raw = write_mnist(tmp_path)
    for name in mnist.FILES:
        (raw / name).rename(raw / name.replace("-idx", ".idx"))
    with pytest.raises(UserError, match=r"has t10k-images.idx3-ubyte, .*, but not train-images-idx3-ubyte"):
        _mnist(tmp_path)
    assert asked == []


@pytest.mark.parametrize("left", ["train-labels-idx1-ubyte.gz", "train-labels-idx1-ubyte.gz.part"])
def test_a_download_that_was_begun_is_gone_on_with(left: str, tmp_path: Path, asked: list[str]) -> None:
    raw = write_mnist(tmp_path)
    (raw / TRAIN_LABELS).unlink()
    (raw / left).write_bytes(b"begun")
    with pytest.raises(
        UserError, match=r"lacks train-labels-idx1-ubyte, and could not download .*no network"
    ) as caught:
        _mnist(tmp_path)
    assert type(caught.value) is UserError  # what is there in part is not replaced by synthetic images
    assert asked == ["train-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize("kind", ["file", "dangling link", "loop"])
@pytest.mark.parametrize("place", ["MNIST", "MNIST/raw", "cifar10-images", "cifar-10-batches-py"])
def test_something_else_in_the_place_of_a_folder_is_named(
    kind: str, place: str, tmp_path: Path, asked: list[str]
) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    if kind == "file":
        (tmp_path / place).touch()
    else:
        _replace(kind, tmp_path / place)
    data = (MNIST if "MNIST" in place else CIFAR10)(data_dir=str(tmp_path))
    with pytest.raises(UserError, match=place) as caught:
        _opened(data)
    assert type(caught.value) is UserError
    assert asked == []


@pytest.mark.parametrize("place", ["MNIST/raw", "cifar10-images/train", "cifar10-images/train/cat"])
def test_a_folder_that_is_closed_is_named(
    place: str, class_folders: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    write_mnist(class_folders)
    closed = str(class_folders / place)
    for name in ("listdir", "scandir"):
        real = getattr(os, name)

        def refuse(path: object, real: Callable = real) -> object:
            if os.fspath(path) == closed:
                raise PermissionError(errno.EACCES, "Permission denied", closed)
            return real(path)

        monkeypatch.setattr(os, name, refuse)
    data = (MNIST if "MNIST" in place else CIFAR10)(data_dir=str(class_folders))
    with pytest.raises(UserError, match=rf"{place}' cannot be read: Permission denied"):
        _opened(data)
    assert asked == []


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10"])
def test_missing_data_says_what_was_tried_and_what_to_do(name: str) -> None:
    with pytest.raises(MissingDataError, match=r"tried http.* \(no network\); place .* by hand.*CNNBENCH_DATA"):
        get_data(name)().prepare_data()


def test_downloaded_archives_are_unpacked_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = write_mnist(tmp_path / "origin")
    new = tmp_path / "new"
    new.mkdir()

    def fetch(urls: list[str], target: Path, md5: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress((origin / target.stem).read_bytes(), mtime=0))

    monkeypatch.setattr(sources, "fetch", fetch)
    left = new / "MNIST" / "raw" / ".unpack-train-images-idx3-ubyte.gz-killed"
    left.mkdir(parents=True)
    assert _mnist(new).load()[0].images.shape == (30, 1, 32, 32)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(b"x")
    with tarfile.open(new / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname=folder.name)
    monkeypatch.setattr(sources, "fetch", lambda *_: None)
    CIFAR10(data_dir=str(new)).prepare_data()
    assert (new / "cifar-10-batches-py" / "test_batch").read_bytes() == b"x"
    assert not list(new.rglob(".unpack-*"))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), EOFError("ended early")])
def test_unpacking_that_fails_leaves_nothing(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(archive: str, part: str) -> None:
        (Path(part) / "half").write_bytes(b"x")
        raise error

    monkeypatch.setattr(sources, "extract_archive", half)
    with pytest.raises(UserError, match=r"cannot unpack '.*x.gz' to '.*x': (No space left|ended early)"):
        sources._unpack(tmp_path / "x.gz", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


# CIFAR-10's batches


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small batches of CIFAR-10 whose checksums are taken for the original's."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(3072, dtype=np.int64).astype(np.uint8)  # the file's order: red, green, blue plane by plane

    def write(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    batch = {"data": np.tile(pixels, (2, 1)), "labels": [3, 9]}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [write(f"data_batch_{i}", batch) for i in range(1, 6)])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [write("test_batch", batch)])
    _, md5 = write("batches.meta", {"label_names": list(CLASSES)})
    monkeypatch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": md5})
    return folder


def test_cifar10_reads_the_original_batches(batches: Path) -> None:
    data = CIFAR10(data_dir=str(batches.parent))
    data.prepare_data()
    train, test = data.load()
    assert train.images.shape == (10, 3, 32, 32)
    assert train.images[0].flatten().tolist() == np.arange(3072).astype(np.uint8).tolist()
    assert train.labels.tolist() == [3, 9] * 5
    assert test.labels.tolist() == [3, 9]
    assert data.label == "CIFAR-10"
    theirs = datasets.CIFAR10(str(batches.parent), train=True)
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), theirs.data)


class _Attack:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["attack", "flip", "cut", "longer", "empty", "missing", *SPECIAL])
def test_batches_are_checked_before_they_are_unpickled(name: str, damage: str, batches: Path, asked: list[str]) -> None:
    path = batches / name
    content = path.read_bytes()
    if damage in SPECIAL:
        _replace(damage, path)
    elif damage == "missing":
        path.unlink()
    else:
        attack = pickle.dumps(_Attack())
        changed = {"attack": attack, "flip": content[:50] + b"\xff" + content[51:], "cut": content[:-1],
                   "longer": content + b"\0", "empty": b""}  # fmt: skip
        path.write_bytes(changed[damage])
    data = CIFAR10(data_dir=str(batches.parent))
    with pytest.raises(UserError, match=rf"cifar-10-batches-py' is damaged or incomplete: .*{name}") as caught:
        _opened(data)
    assert "; delete it, and it is downloaded again" in str(caught.value)
    assert not Path("ran").exists()
    assert asked == []


def test_the_attack_of_the_test_above_would_run() -> None:
    pickle.loads(pickle.dumps(_Attack()))
    assert Path("ran").exists()


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-python.tar.gz.part"])
def test_an_archive_that_is_not_whole_is_not_replaced_by_synthetic_images(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"begun")
    with pytest.raises(UserError, match=f"{name}' is not the whole archive of CIFAR-10, and could not") as caught:
        CIFAR10(data_dir=str(tmp_path)).prepare_data()
    assert type(caught.value) is UserError


# Class folders


def _cifar10(root: Path) -> ImageDataModule:
    return _opened(CIFAR10(data_dir=str(root)))


def test_class_folders_are_labelled_as_the_copy_that_they_are(class_folders: Path) -> None:
    data = CIFAR10(data_dir=str(class_folders), val_fraction=0)
    data.prepare_data()
    facts = data.describe()
    assert facts["label"] == "CIFAR-10 (JPEG copy), incomplete: 20 + 10 of 50,000 + 10,000 images"
    assert facts["test_images"] == 10
    _, test = data.load()
    assert test.labels.tolist() == list(range(10))
    assert test.images[4, 0].float().mean() == pytest.approx(80, abs=3)  # red is 20 times the label


@pytest.mark.parametrize(("kind", "label"), [("PNG", "PNG copy"), ("JPEG", "JPEG copy")])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_the_label_follows_the_content_not_the_name(kind: str, label: str, suffix: str, class_folders: Path) -> None:
    for path in list(class_folders.rglob("*.jpg")):
        with Image.open(path) as image:
            image.convert("RGB").save(path.with_suffix(".new"), kind)
        path.unlink()
        path.with_suffix(".new").rename(path.with_suffix(suffix))
    for _ in range(2):  # decoded, then from the copy
        assert _cifar10(class_folders).label.startswith(f"CIFAR-10 ({label}), incomplete: 20 + 10 of")


def test_one_jpeg_among_pngs_makes_a_jpeg_copy(class_folders: Path) -> None:
    last = class_folders / "cifar10-images" / "test" / "truck" / "0000.jpg"
    for path in list(class_folders.rglob("*.jpg")):
        if path != last:
            Image.new("RGB", (32, 32)).save(path, "PNG")
    assert _cifar10(class_folders).label.startswith("CIFAR-10 (JPEG copy)")


def test_whole_counts_of_unequal_classes_are_altered(monkeypatch: pytest.MonkeyPatch, class_folders: Path) -> None:
    monkeypatch.setattr(sources, "CIFAR10_COUNTS", (20, 10))
    assert _cifar10(class_folders).label == "CIFAR-10 (JPEG copy)"
    cat = class_folders / "cifar10-images" / "train" / "cat" / "0001.jpg"
    cat.rename(cat.parent.parent / "dog" / "0002.jpg")
    assert _cifar10(class_folders).label == "CIFAR-10 (JPEG copy) (altered)"


@pytest.mark.parametrize("name", ["._0000.png", ".DS_Store", ".0000.jpg", ".hidden.gif"])
def test_hidden_files_are_passed_over(name: str, class_folders: Path, capsys: pytest.CaptureFixture) -> None:
    (class_folders / "cifar10-images" / "train" / "cat" / name).write_bytes(b"\0\5\x16\7")
    (class_folders / "cifar10-images" / "train" / ".ipynb_checkpoints").mkdir()
    assert _cifar10(class_folders).describe()["train_images"] == 18
    assert "passed over" not in capsys.readouterr().err


def test_foreign_files_are_passed_over_with_a_note(class_folders: Path, capsys: pytest.CaptureFixture) -> None:
    folder = class_folders / "cifar10-images"
    for name in ("train/cat/notes.txt", "train/cat/Thumbs.db", "test/labels.csv"):
        (folder / name).write_bytes(b"x")
    _cifar10(class_folders)
    said = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
    assert said == [f"{folder}: passed over 3 of the files, no images by name; the first is 'train/cat/Thumbs.db'"]


@pytest.mark.parametrize("suffix", [".gif", ".bmp", ".webp", ".tif", ".TIFF", ".jfif", ".heic"])
def test_images_of_another_format_are_refused_not_left_out(suffix: str, class_folders: Path) -> None:
    (class_folders / "cifar10-images" / "train" / "cat" / f"a{suffix}").write_bytes(b"x")
    with pytest.raises(UserError, match=rf"cat/a\{suffix}' is not read, only PNG and JPEG are; save it as PNG"):
        _cifar10(class_folders)


def _bytes(kind: str, size: tuple[int, int] = (32, 32)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (_bytes("PNG")[:60], "it is cut off"),
        (_bytes("JPEG")[:400], r"bad\."),
        (_bytes("PNG").replace(b"IDAT", b"IDAX"), "checksum"),
        (_bytes("GIF"), "it is a GIF image"),
        (_bytes("BMP"), "it is a BMP image"),
        (_bytes("TIFF"), "it is a TIFF image"),
        (_bytes("WEBP"), "it is a WebP image"),
        (b"hello", "of no known kind"),
        (_bytes("PNG", (40, 32)), "is 40x32 pixels, not 32x32 as CIFAR-10 is"),
        (_bytes("JPEG", (32, 31)), "is 32x31 pixels"),
        (_bytes("PNG", (1, 1)), "is 1x1 pixels"),
    ],
)
def test_images_that_cannot_be_used_are_named(content: bytes, message: str, suffix: str, class_folders: Path) -> None:
    path = class_folders / "cifar10-images" / "train" / "cat" / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        _cifar10(class_folders)
    assert type(caught.value) is UserError
    assert f"'{path}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("warm", [False, True])
def test_what_is_no_file_in_a_class_folder_is_named(kind: str, warm: bool, class_folders: Path) -> None:
    if warm:
        _cifar10(class_folders)
    path = class_folders / "cifar10-images" / "test" / "dog" / "x.png"
    _replace(kind, path)
    with pytest.raises(UserError, match=r"dog/x.png'"):
        _cifar10(class_folders)


def test_links_to_images_are_followed(class_folders: Path) -> None:
    folder = class_folders / "cifar10-images"
    shutil.move(folder / "train" / "cat", class_folders / "elsewhere")
    (folder / "train" / "cat").symlink_to(class_folders / "elsewhere")
    (folder / "train" / "dog" / "link.jpg").symlink_to(class_folders / "elsewhere" / "0000.jpg")
    assert _cifar10(class_folders).label.startswith("CIFAR-10 (JPEG copy), incomplete: 21 + 10 of")


def test_names_that_are_not_utf8_work(class_folders: Path) -> None:
    cat = os.fsencode(class_folders / "cifar10-images" / "train" / "cat")
    for name in (b"\xff\xfe.png", b"a\nb.jpg", "é😀.png".encode()):
        with open(cat + b"/" + name, "wb") as file:
            file.write(_bytes("PNG"))
    for _ in range(2):
        assert "23 + 10 of" in _cifar10(class_folders).label
    with open(cat + b"/\xff\xfe.png", "wb") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="of no known kind"):
        _cifar10(class_folders)


def test_modes_are_converted_rightly(class_folders: Path) -> None:
    cat = class_folders / "cifar10-images" / "test" / "cat"
    (cat / "0000.jpg").unlink()
    Image.new("L", (32, 32), 7).save(cat / "a.png")
    Image.fromarray(np.full((32, 32), 257 * 9, dtype=np.uint16)).save(cat / "b.png")
    Image.new("RGBA", (32, 32), (1, 2, 3, 0)).save(cat / "c.png")
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 40, 50, 60])
    palette.save(cat / "d.png")
    Image.new("CMYK", (32, 32), (0, 0, 0, 255)).save(cat / "e.jpg", quality=100)
    _, test = CIFAR10(data_dir=str(class_folders)).load()
    pixels = test.images[test.labels == 3].float().mean((2, 3)).round().tolist()
    assert pixels == [[7] * 3, [9] * 3, [255] * 3, [40, 50, 60], [0] * 3]


def _rename_all(folder: Path, rename: Callable[[str], str]) -> None:
    for path in sorted(folder.iterdir()):
        path.rename(path.with_name("moved"))
        (folder / "moved").rename(folder / rename(path.name))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f / "train" / "cat"), "lacks 1 of 20 class folders: train/cat; add them"),
        (lambda f: shutil.rmtree(f / "test"), "lacks 10 of 20 class folders: test/airplane, .* and 6 more; add them"),
        (lambda f: shutil.rmtree(f / "train"), "lacks 10 of 20 class folders: train/airplane"),
        (lambda f: _rename_all(f / "train", str.upper),
         "lacks 10 of 20 .*; rename 'train/AIRPLANE' to 'train/airplane'"),
        (lambda f: _rename_all(f / "test", str.capitalize), "rename 'test/Airplane' to 'test/airplane'"),
        (lambda f: _rename_all(f, str.capitalize), "lacks 20 of 20 .*; rename 'Train/airplane' to 'train/airplane'"),
        (lambda f: _rename_all(f / "train", lambda name: name + "s"), "lacks 10 of 20"),
        (lambda f: (shutil.rmtree(f / "train" / "cat"), (f / "train" / "cat").touch()), "'train/cat' is not a folder"),
        (lambda f: (shutil.rmtree(f / "train" / "cat"), (f / "train" / "cat").symlink_to("gone")),
         "'train/cat' is not a folder"),
        (lambda f: (shutil.rmtree(f / "train" / "cat"), (f / "train" / "cat").symlink_to("cat")), "train/cat'"),
        (lambda f: f.rename(f.with_name("CIFAR10-IMAGES")) and shutil.rmtree(f.with_name("CIFAR10-IMAGES") / "test"),
         "CIFAR10-IMAGES' lacks 10 of 20"),
        (lambda f: (f / "train" / "lion").mkdir(), "train/lion' is none of the 10 class folders .*; take it away"),
        (lambda f: (f / "test" / "Cat").mkdir(), "test/Cat' is none of the 10"),
        (lambda f: (f / "train" / "cat" / "0000.jpg").rename(f / "train" / "cat" / "0000.txt")
         and (f / "train" / "cat" / "0001.jpg").unlink(), "train/cat' has no .png or .jpg or .jpeg image"),
    ],
)  # fmt: skip
def test_class_folders_that_are_not_whole_are_named_at_once(
    damage: Callable[[Path], object], message: str, class_folders: Path, asked: list[str]
) -> None:
    damage(class_folders / "cifar10-images")
    with pytest.raises(UserError, match=message) as caught:
        _cifar10(class_folders)
    assert type(caught.value) is UserError
    assert "\n" not in str(caught.value)
    assert asked == []


def test_class_folders_of_other_data_do_not_stand_in_the_way(tmp_path: Path, asked: list[str]) -> None:
    for name in ("train/cat", "train/dog", "test/cat", "test/dog", "cifar10-images", "train/zebra"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(MissingDataError):
        CIFAR10(data_dir=str(tmp_path)).prepare_data()
    assert asked == ["cifar-10-python.tar.gz"]


# The decoded copy


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were decoded, for each time."""
    counts: list[int] = []
    decode = folders._decode
    monkeypatch.setattr(folders, "_decode", lambda paths, *how: counts.append(len(paths)) or decode(paths, *how))
    return counts


def test_cache_is_used_until_a_file_changes(class_folders: Path, decoded: list[int]) -> None:
    folder = class_folders / "cifar10-images"
    first = folders.load_class_folders(folder, CLASSES)
    again = folders.load_class_folders(folder, CLASSES)
    assert decoded == [20, 10]
    assert (folder / ".cnnbench-cache.npz").is_file()
    assert all(torch.equal(a, b) for x, y in zip(first[:2], again[:2], strict=True) for a, b in zip(x, y, strict=True))
    assert first[2] == again[2]
    Image.new("RGB", (32, 32), (255, 255, 255)).save(folder / "test" / "truck" / "0000.jpg")
    changed = folders.load_class_folders(folder, CLASSES)
    assert decoded == [20, 10, 20, 10]
    assert changed[1].images[9].float().mean() > 250


def test_read_only_folder_is_left_alone(class_folders: Path, tmp_path: Path) -> None:
    folder = class_folders / "cifar10-images"
    folder.chmod(0o555)
    try:
        folders.load_class_folders(folder, CLASSES)
        assert sorted(p.name for p in folder.iterdir()) == ["test", "train"]
        assert len(list((tmp_path / "cache" / "cnnbench").glob("images-*.npz"))) == 1
    finally:
        folder.chmod(0o755)


def test_parallel_first_use_decodes_once(class_folders: Path, decoded: list[int]) -> None:
    folder = class_folders / "cifar10-images"
    with ThreadPoolExecutor(3) as pool:  # each opens the lock file anew, as processes do
        sums = list(pool.map(lambda _: int(folders.load_class_folders(folder, CLASSES)[0].images.sum()), range(3)))
    assert len(set(sums)) == 1
    assert decoded == [20, 10]
    assert not list(folder.glob(".*.part"))


def _changed(arrays: dict, change: str) -> dict:
    """The arrays of a decoded copy with one thing changed, and a right zip file around them."""
    train, labels = arrays["train_images"].copy(), arrays["train_labels"].copy()
    flipped = train.copy()
    flipped[3, 1, 2, 2] ^= 1
    other_labels = labels.copy()
    other_labels[0] += 1
    changes: dict[str, dict] = {
        "a pixel": {"train_images": flipped},
        "floating point": {"train_images": train.astype(np.float32)},
        "signed": {"train_images": train.astype(np.int8)},
        "small": {"train_images": train[:, :, :16, :16]},
        "grey": {"train_images": train[:, :1]},
        "one less": {"train_images": train[1:], "train_labels": labels[1:]},
        "none": {"test_images": arrays["test_images"][:0], "test_labels": arrays["test_labels"][:0]},
        "scalar": {"train_images": np.uint8(1)},
        "a label": {"train_labels": other_labels},
        "labels + 90": {"train_labels": labels + 90},
        "short labels": {"train_labels": labels.astype(np.uint8)},
        "not lossy": {"lossy": np.array(False)},
        "lossy as text": {"lossy": np.array("no")},
        "checksum": {"sha256": np.array("0" * 64)},
        "pickle": {"train_images": np.array([_Attack()], dtype=object)},
        "pickled fingerprint": {"fingerprint": np.array([_Attack()], dtype=object)},
    }
    if change.startswith("without "):
        return {key: value for key, value in arrays.items() if key != change.removeprefix("without ")}
    return arrays | changes[change]


@pytest.mark.parametrize(
    "change",
    ["a pixel", "floating point", "signed", "small", "grey", "one less", "none", "scalar", "a label", "labels + 90",
     "short labels", "not lossy", "lossy as text", "checksum", "pickle", "pickled fingerprint", "without train_images",
     "without sha256", "without lossy", "without test_labels", "without fingerprint"],
)  # fmt: skip
def test_a_decoded_copy_that_is_not_right_is_made_anew(
    change: str, class_folders: Path, decoded: list[int], capsys: pytest.CaptureFixture
) -> None:
    folder = class_folders / "cifar10-images"
    first = folders.load_class_folders(folder, CLASSES)
    cache = folder / ".cnnbench-cache.npz"
    with np.load(cache) as stored:
        arrays = {key: stored[key] for key in stored.files}
    np.savez(cache, **_changed(arrays, change))
    capsys.readouterr()
    for _ in range(2):  # made anew, then used
        again = folders.load_class_folders(folder, CLASSES)
        assert torch.equal(first[0].images, again[0].images)
        assert torch.equal(first[0].labels, again[0].labels)
        assert len(again[1].labels) == 10
        assert again[2] is True
    assert decoded == [20, 10] * 2
    assert capsys.readouterr().err.count("is damaged (") == 1
    assert not Path("ran").exists()


def _damaged(content: bytes, kind: str) -> bytes:
    middle = len(content) // 2
    entry = content.rindex(b"PK\x01\x02") + 16  # the checksum of the last array
    return {
        "flip in pixels": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "zeros": content[:middle] + bytes(64) + content[middle + 64 :],
        "flip in the directory": content[:entry] + bytes([content[entry] ^ 255]) + content[entry + 1 :],
        "cut": content[:middle],
        "no end": content[:-22],
        "empty": b"",
        "text": b"hello",
        "npy": b"\x93NUMPY\x01\0v\0{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }" + b" " * 58 + b"\n\1\2",
        "pickle": pickle.dumps(_Attack()),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["flip in pixels", "zeros", "flip in the directory", "cut", "no end", "empty", "text", "npy", "pickle", "folder",
     "fifo", "dangling link", "loop"],
)  # fmt: skip
def test_a_damaged_decoded_copy_costs_a_line_at_most(
    kind: str, class_folders: Path, decoded: list[int], capsys: pytest.CaptureFixture
) -> None:
    folder = class_folders / "cifar10-images"
    first = folders.load_class_folders(folder, CLASSES)
    cache = folder / ".cnnbench-cache.npz"
    if kind in SPECIAL:
        _replace(kind, cache)
    else:
        cache.write_bytes(_damaged(cache.read_bytes(), kind))
    capsys.readouterr()
    again = folders.load_class_folders(folder, CLASSES)
    assert torch.equal(first[0].images, again[0].images)
    assert decoded == [20, 10] * 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 + (kind not in SPECIAL or kind == "folder")
    assert not Path("ran").exists()
    assert not list(folder.glob(".*.part"))


def test_any_flip_in_a_decoded_copy_is_noticed_or_harmless(class_folders: Path) -> None:
    folder = class_folders / "cifar10-images"
    first = folders.load_class_folders(folder, CLASSES)
    cache = folder / ".cnnbench-cache.npz"
    content = cache.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(30):
        at = int(rng.integers(len(content)))
        cache.write_bytes(content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :])
        again = folders.load_class_folders(folder, CLASSES)
        assert torch.equal(first[0].images, again[0].images)
        assert torch.equal(first[1].labels, again[1].labels)
        assert again[2] is True


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only file system"),
     PermissionError(errno.EACCES, "Permission denied")],
)  # fmt: skip
def test_a_copy_that_cannot_be_kept_costs_a_note(
    error: OSError, class_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(file: object, **_: object) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(folders.np, "savez", fail)
    folder = class_folders / "cifar10-images"
    assert folders.load_class_folders(folder, CLASSES)[0].images.shape == (20, 3, 32, 32)
    assert f"cannot be kept in '{folder / '.cnnbench-cache.npz'}': {error.strerror}" in capsys.readouterr().err
    assert sorted(p.name for p in folder.iterdir()) == [".cnnbench-cache.npz.lock", "test", "train"]


@pytest.mark.parametrize("kind", ["folder", "loop", "dangling link"])
def test_a_lock_that_cannot_be_made_costs_a_note_at_most(kind: str, class_folders: Path) -> None:
    folder = class_folders / "cifar10-images"
    _replace(kind, folder / ".cnnbench-cache.npz.lock")
    assert folders.load_class_folders(folder, CLASSES)[0].images.shape == (20, 3, 32, 32)


def test_a_cache_folder_that_cannot_be_made_costs_a_note(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = class_folders / "cifar10-images"
    Path("in the way").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("in the way").resolve()))
    folder.chmod(0o555)
    try:
        assert folders.load_class_folders(folder, CLASSES)[0].images.shape == (20, 3, 32, 32)
    finally:
        folder.chmod(0o755)
    assert "cannot be kept in 'the user's cache folder'" in capsys.readouterr().err


def test_what_a_killed_process_left_of_a_copy_is_removed(class_folders: Path) -> None:
    folder = class_folders / "cifar10-images"
    (folder / "..cnnbench-cache.npz.abc.part").write_bytes(b"half")
    folders.load_class_folders(folder, CLASSES)
    assert sorted(p.name for p in folder.iterdir()) == [
        ".cnnbench-cache.npz", ".cnnbench-cache.npz.lock", "test", "train",
    ]  # fmt: skip
