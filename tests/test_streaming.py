"""Images that stay on the disk: decoding, random parts, order, resume, worker processes, and the same results."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from cnnbench import images
from cnnbench.cli import main
from cnnbench.data import get_data, measured
from cnnbench.data.module import ImageDataModule
from cnnbench.data.streaming import StreamedBatches
from cnnbench.errors import UserError
from cnnbench.images import read_rgb, read_tensor
from cnnbench.record import load_records
from cnnbench.verification import streaming as race

CLASSES = ("brick", "cloud", "grass")
CPU = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.precision=32-true"]
PER_CLASS = 12


def _photo(seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    height, width = generator.integers(40, 90, 2)
    coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)


def _saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of twelve JPEGs and PNGs of different sizes for each of three classes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for label, name in enumerate(CLASSES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(PER_CLASS):
            suffix = "png" if index % 4 == 3 else "jpg"
            _photo(100 * label + index).save(tmp_path / "photos" / name / f"{index:02}.{suffix}")
    return tmp_path / "photos"


def _data(photos: Path, **options: Any) -> ImageDataModule:
    data = get_data(f"folder:{photos}")(**{"image_size": 32, "stream": True, "workers": 0, "batch_size": 5, **options})
    data.setup()
    return data


def _epoch(data: ImageDataModule, epoch: int = 0, seed: int = 3) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    loader = data.train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def _same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(x, a) and torch.equal(y, b) for (x, y), (a, b) in zip(first, second, strict=True)
    )


# Decoding


def _with_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _saved(_photo(1), exif=exif)


@pytest.fixture(params=["torchcodec", "torchvision"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the package that decodes JPEGs."""
    images._jpeg_decoder.cache_clear()
    if request.param == "torchvision":
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    assert ("torchcodec" in images._jpeg_decoder().__module__) == (request.param == "torchcodec")
    yield request.param
    images._jpeg_decoder.cache_clear()


@pytest.mark.parametrize(
    "content",
    [
        _saved(_photo(1)), _saved(_photo(2), subsampling=0), _saved(_photo(3), subsampling=1),
        _saved(_photo(4), progressive=True), _saved(_photo(5).convert("L")), _saved(_photo(6).convert("CMYK")),
        _with_exif(2), _with_exif(6), _with_exif(8),
    ],
    ids=["420", "444", "422", "progressive", "grey", "cmyk", "exif2", "exif6", "exif8"],
)  # fmt: skip
def test_a_jpeg_has_the_pixels_that_pillow_decodes(content: bytes, decoder: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    decoded = read_tensor(path)
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded.permute(1, 2, 0), torch.from_numpy(read_rgb(path).copy()))


def test_a_png_has_the_pixels_that_pillow_decodes(tmp_path: Path) -> None:
    _photo(7).save(tmp_path / "x.png")
    assert np.array_equal(read_tensor(tmp_path / "x.png").permute(1, 2, 0).numpy(), np.asarray(_photo(7)))


def _with_segments(*segments: bytes) -> bytes:
    """A JPEG with segments APP1 behind the marker of its start."""
    content = _saved(_photo(1))
    inserted = b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments)
    return content[:2] + inserted + content[2:]


def _exif_segment(kind: int, mark: bytes = b"Exif\0\0") -> bytes:
    """EXIF data that say: turn by a quarter, with the tag's value as type 3 (SHORT) or 4 (LONG)."""
    value = struct.pack(">HH", 6, 0) if kind == 3 else struct.pack(">I", 6)
    return mark + b"MM\0*" + struct.pack(">IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


_XMP = (
    b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="r"><rdf:Description '
    b'xmlns:tiff="t" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize(
    "segments",
    [
        (_XMP,),
        (_XMP, _exif_segment(3)),
        (_exif_segment(4),),
        (_exif_segment(3, b"Exif\0\xff"),),
        (_exif_segment(3)[:12],),
    ],
    ids=["xmp", "xmp before exif", "long", "no null", "cut"],
)
def test_metadata_turn_an_image_as_pillow_does(segments: tuple[bytes, ...], decoder: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(_with_segments(*segments))
    try:
        expected = read_rgb(path)
    except UserError as error:  # Pillow finds the metadata damaged
        with pytest.raises(UserError, match=re.escape(str(error))):
            read_tensor(path)
        return
    assert torch.equal(read_tensor(path).permute(1, 2, 0), torch.from_numpy(expected.copy()))


def _bomb() -> bytes:
    """A JPEG whose header claims 60,000x60,000 pixels."""
    content = _saved(_photo(1))
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", 60_000, 60_000) + content[at + 4 :]


@pytest.mark.parametrize(
    "content", [_saved(_photo(1))[:-40], _saved(_photo(1))[:60], _bomb(), b"", b"GIF89a", b"%!PS-Adobe-3.0"],
    ids=["cut", "header", "bomb", "empty", "gif", "postscript"],
)  # fmt: skip
def test_a_file_that_cannot_be_used_has_the_message_of_the_other_reader(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError) as expected:
        read_rgb(path)
    with pytest.raises(UserError) as caught:
        read_tensor(path)
    assert str(caught.value) == str(expected.value)


# The same data set, in memory and on the disk


def test_splits_and_test_images_are_those_of_the_data_in_memory(photos: Path) -> None:
    on_disk, in_memory = _data(photos), _data(photos, stream=False)
    for name in ("train", "val", "test"):
        ours, theirs = on_disk.stored(name, slice(None)), in_memory.stored(name, slice(None))
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.images, theirs.images)
    assert (on_disk.mean, on_disk.std) == (in_memory.mean, in_memory.std)
    assert _same(list(on_disk.test_dataloader()), list(in_memory.test_dataloader()))
    assert on_disk.streamed
    assert not in_memory.streamed


def test_grey_images_are_read_as_grey(photos: Path) -> None:
    on_disk, in_memory = (_data(photos, in_channels=1, stream=stream) for stream in (True, False))
    assert torch.equal(on_disk.stored("test", slice(None)).images, in_memory.stored("test", slice(None)).images)
    assert _epoch(on_disk)[0][0].shape == (5, 1, 32, 32)


def test_images_stay_on_the_disk_from_a_quarter_of_the_memory_on(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = 3 * PER_CLASS * 3 * 32 * 32
    monkeypatch.setattr(measured, "total_memory", lambda: 4 * needed)
    assert not _data(photos, stream=None).streamed
    assert "quarter" not in capsys.readouterr().err
    monkeypatch.setattr(measured, "total_memory", lambda: 4 * needed - 4)
    data = _data(photos, stream=None)
    assert data.streamed
    assert "more than a quarter of the memory" in capsys.readouterr().err
    # A checkpoint keeps the choice.
    assert data.hparams["stream"] is True


def test_records_say_what_was_done_with_images_on_the_disk(photos: Path) -> None:
    words = _data(photos, cutout=8, crop_scale=(0.25, 1)).describe()["augmentation"]
    assert words == "random part of 25 to 100 % of the area, mirroring, cutout of 8x8"
    assert _data(photos, augment=False).describe()["augmentation"] == "none"
    assert _data(photos, stream=False).describe()["augmentation"] == "shift of up to 4 pixels (reflect), mirroring"


def test_the_fingerprint_changes_with_a_file(photos: Path) -> None:
    before = _data(photos).fingerprint()
    assert _data(photos).fingerprint() == before
    _photo(999).save(photos / "cloud" / "01.jpg")
    assert _data(photos).fingerprint() != before


def test_statistics_of_many_images_are_those_of_a_sample(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _data(photos).mean
    monkeypatch.setattr(measured, "STATISTICS_IMAGES", 10)
    sample = _data(photos).mean
    assert sample != whole
    assert sample == pytest.approx(whole, abs=0.1)
    assert _data(photos).mean == sample


def test_copies_of_test_files_in_the_training_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, first in (("train", 0), ("test", 50)):
        for name in ("a", "b"):
            (tmp_path / "x" / split / name).mkdir(parents=True)
            for index in range(6):
                _photo(first + index + 20 * (name == "b")).save(tmp_path / "x" / split / name / f"{index}.jpg")
    _data(tmp_path / "x", val_fraction=0.0)
    assert "too high" not in capsys.readouterr().err
    (tmp_path / "x" / "test" / "a" / "copy.jpg").write_bytes((tmp_path / "x" / "train" / "a" / "2.jpg").read_bytes())
    _data(tmp_path / "x", val_fraction=0.0)
    assert "1 of 13 test images are among the training images too, byte by byte" in capsys.readouterr().err
    monkeypatch.setattr(measured, "LARGEST_SEARCH", 10)
    _data(tmp_path / "x", val_fraction=0.0)
    assert "are not looked for" in capsys.readouterr().err


def _write_imagenette(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write three photos of each class of Imagenette for training and two for the test, as torchvision unpacks them."""
    monkeypatch.setenv("CNNBENCH_DATA", str(folder))
    for split, count in (("train", 3), ("val", 2)):
        for label, wnid in enumerate(sorted(datasets.Imagenette._WNID_TO_CLASS)):
            place = folder / "imagenette2" / split / wnid
            place.mkdir(parents=True)
            for index in range(count):
                _photo(1000 * count + 10 * label + index).save(place / f"{index}.JPEG")


def test_photos_of_torchvision_can_stay_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_imagenette(tmp_path, monkeypatch)
    name, options = "torchvision:Imagenette", {"image_size": 32, "val_fraction": 0.0, "workers": 0, "batch_size": 10}
    on_disk, in_memory = (get_data(name)(stream=stream, **options) for stream in (True, None))
    for data in (on_disk, in_memory):
        data.setup()
    assert on_disk.streamed
    assert not in_memory.streamed
    assert on_disk.class_names == in_memory.class_names
    for split, count in (("train", 30), ("test", 20)):
        ours, theirs = on_disk.stored(split, slice(None)), in_memory.stored(split, slice(None))
        assert len(ours.labels) == count
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.images, theirs.images)
    assert len(_epoch(on_disk)) == 3
    monkeypatch.setattr(measured, "total_memory", lambda: 1000)
    by_itself = get_data(name)(**options)
    by_itself.setup()
    assert by_itself.streamed


def test_data_without_single_files_cannot_stay_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNBENCH_DATA", str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        head = struct.pack(">IIII", 2051, 20, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 20) + bytes(range(10)) * 2)
    with pytest.raises(UserError, match="stream true has no effect on FashionMNIST"):
        get_data("torchvision:FashionMNIST")(stream=True).setup()


# Random parts, order and resume


def test_training_images_are_torchvisions_random_parts(photos: Path) -> None:
    data = _data(photos, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), flip="none", batch_size=7)
    torch.manual_seed(3)
    loader = data.train_dataloader()
    drawn = loader._draw(32)
    files = data._splits["train"].images
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(32, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        ]
    )
    seen = torch.cat([x for x, _ in loader])
    for place, image in enumerate(seen):
        pixels = torch.from_numpy(read_rgb(files.path(int(drawn.images[place]))).copy()).permute(2, 0, 1)
        torch.manual_seed(int(drawn.crops[place]))
        # One step of 1/255 is the difference that rounding makes.
        torch.testing.assert_close(image, transform(pixels), atol=1 / 255 / 0.2 + 1e-5, rtol=0)
    assert drawn.crops.unique().numel() == len(drawn.crops)


def test_half_of_the_images_are_mirrored(photos: Path) -> None:
    plain = {"augment": True, "crop_scale": (1.0, 1.0), "batch_size": 10, "val_fraction": 0.0}
    mirrored, straight = (torch.cat([x for x, _ in _epoch(_data(photos, flip=f, **plain))]) for f in ("random", "none"))

    def keys(x: Tensor) -> set[bytes]:
        return {image.contiguous().numpy().tobytes() for image in x}

    # The epochs have the same images and parts, but in each batch the mirrored ones come first.
    as_they_are = keys(mirrored) & keys(straight)
    assert keys(mirrored.flip(3)) & keys(straight) | as_they_are == keys(straight)
    assert 3 < len(as_they_are) < len(straight) - 3


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(photos: Path, workers: int) -> None:
    expected = [_epoch(_data(photos), epoch) for epoch in (0, 1)]
    data = _data(photos, workers=workers)
    assert all(_same(_epoch(data, epoch), expected[epoch]) for epoch in (0, 1))
    assert not torch.equal(expected[0][0][0], expected[1][0][0])
    assert multiprocessing.active_children() == []


def test_the_random_state_of_the_program_is_left_alone(photos: Path) -> None:
    data = _data(photos)
    torch.manual_seed(3)
    loader = data.train_dataloader()
    before = torch.random.get_rng_state()
    assert len(list(loader)) > 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_epoch_goes_on_at_the_batch_where_it_stopped(photos: Path) -> None:
    expected = _epoch(_data(photos, workers=2), epoch=4)
    torch.manual_seed(3)
    data = _data(photos, workers=2)
    loader = data.train_dataloader()
    loader.set_epoch(4)
    first = list(islice(loader, 2))
    state = data.state_dict()
    again = _data(photos, workers=1)
    again.load_state_dict(state)
    torch.manual_seed(99)  # the position has the seed of the training
    resumed = again.train_dataloader()
    resumed.set_epoch(4)
    assert _same(first + list(resumed), expected)


def test_processes_share_an_epoch(photos: Path) -> None:
    split = _data(photos)._splits["train"]
    whole, *parts = (_images_of_process(split, rank, world) for rank, world in ((0, 1), (0, 2), (1, 2)))
    shared = parts[0] | parts[1]
    assert not parts[0] & parts[1]
    # Each process leaves out its incomplete last batch.
    assert shared <= whole
    assert len(shared) == len(split.labels) // 2 * 2


def _images_of_process(split: Any, rank: int, world: int) -> set[bytes]:
    """The images of an epoch that one process gets, in batches of one."""
    loader = StreamedBatches(split, 1, True, torch.device("cpu"), 0, (0.1, 1.0), rank=rank, world_size=world, seed=5)
    return {x.contiguous().numpy().tobytes() for x, _ in loader}


def test_images_grow_by_epoch(photos: Path) -> None:
    data = _data(photos, sizes=(16, 24))
    assert [tuple(_epoch(data, epoch)[0][0].shape[2:]) for epoch in (0, 1, 2)] == [(16, 16), (24, 24), (24, 24)]


# What goes wrong


def test_a_file_that_cannot_be_decoded_is_named_in_a_line(photos: Path) -> None:
    (photos / "grass" / "05.jpg").write_bytes(_saved(_photo(1))[:-60])
    data = _data(photos, workers=2, mean=(0.5,) * 3, std=(0.2,) * 3, test_fraction=0.1, val_fraction=0.0)
    with pytest.raises(UserError, match=r"^cannot read image '.*05.jpg': [^\n]*$"):
        _epoch(data) + list(data.test_dataloader())


def test_a_worker_that_is_killed_is_a_line(photos: Path, tmp_path: Path) -> None:
    # In a process of its own, since PyTorch raises its error in a signal handler, wherever the program is.
    program = (
        "import multiprocessing, os, sys, threading, time\n"
        "from cnnbench.cli import main\n"
        "def kill():\n"
        "    while not multiprocessing.active_children():\n"
        "        time.sleep(0.01)\n"
        "    os.kill(multiprocessing.active_children()[0].pid, 9)\n"
        "threading.Thread(target=kill, daemon=True).start()\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["fit", "--model=LeNet5", f"--data=folder:{photos}", "--data.image_size=32", "--data.stream=true",
             "--data.mean=[0.5,0.5,0.5]", "--data.std=[0.2,0.2,0.2]", "--data.workers=1", "--data.batch_size=1",
             "--trainer.max_epochs=100", *CPU]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("cnnbench: a process that decodes images has ended, perhaps")
    assert "Traceback" not in ended.stderr


def test_signals_to_a_command_do_not_end_its_workers(photos: Path) -> None:
    loader = iter(_data(photos, workers=2, batch_size=1).train_dataloader())
    # Both workers have begun when each has given a batch.
    for _ in range(2):
        next(loader)
    workers = multiprocessing.active_children()
    for worker in workers:
        assert os.getsid(worker.pid or 0) != os.getsid(0)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(worker.pid or 0, number)
    assert len(list(loader)) > 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stream": True, "padding": 2}, "padding 2 has no effect on images that stay on the disk"),
        ({"padding_mode": "zeros"}, "padding_mode zeros has no effect on images that stay on the disk"),
        ({"augment": False, "crop_scale": (0.5, 1.0)}, "crop_scale .* needs augment: true"),
        ({"stream": False, "crop_scale": (0.5, 1.0)}, r"crop_scale \[0.5, 1.0\] has no effect on images in memory"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale .* two shares"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale .* two shares"),
        ({"crop_scale": 0.5}, "crop_scale 0.5 is not two shares"),
        ({"workers": -1}, "workers -1 must be a whole number from 0"),
        ({"stream": 1}, "stream 1 is not true or false"),
        ({"cutout": 40}, "cutout 40 is too large"),
    ],
)
def test_options_that_cannot_be_met_are_refused(photos: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _data(photos, **options)


# Commands


def _weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("stream", ["true", "false"])
def test_fit_trains_resumes_and_tests_a_folder(
    stream: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared = ["fit", "--model", "LeNet5", "--data", f"folder:{photos}", "--data.image_size=32",
              f"--data.stream={stream}", "--data.workers=1", "--data.batch_size=6", "--seed_everything=1",
              "--model.schedule=constant", "--model.warmup=0", *CPU]  # fmt: skip
    assert main([*shared, "--trainer.max_epochs=2", "--run", "whole"]) == 0
    assert main([*shared, "--trainer.max_epochs=1", "--run", "parts"]) == 0
    assert main([*shared, "--trainer.max_epochs=2", "--run", "parts", "--resume", "auto"]) == 0
    whole, parts = (tmp_path / "results" / "runs" / name for name in ("whole", "parts"))
    # A training that goes on normalises as before, and ends as if it had not stopped.
    first, second = _weights(whole), _weights(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)
    record = load_records([whole])[0]
    words = {
        "true": "random part of 8 to 100 % of the area, mirroring",
        "false": "shift of up to 4 pixels (reflect), mirroring",
    }
    assert record.data["augmentation"] == words[stream]
    assert record.data["test_images"] == sum(map(sum, record.confusion_matrix or [])) == 6


def _fit(photos: Path, *options: str) -> int:
    return main(["fit", "--model=LeNet5", f"--data=folder:{photos}", "--data.image_size=32", "--data.batch_size=6",
                 "--seed_everything=1", *CPU, *options])  # fmt: skip


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_training_does_not_go_on_with_other_images(
    stream: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [f"--data.stream={stream}", "--data.workers=0", "--run=one", "--resume=auto"]
    assert _fit(photos, *options, "--trainer.max_epochs=1") == 0
    run = tmp_path / "results" / "runs" / "one"
    before = {path.name: path.read_bytes() for path in (run / "config.yaml", *run.glob("records/*.json"))}
    (photos / "cloud" / "01.jpg").unlink()
    assert _fit(photos, *options, "--trainer.max_epochs=2") == 2
    assert "the images of photos are not those of the checkpoint" in capsys.readouterr().err
    # A command that is refused leaves the run as it was.
    assert {path.name: path.read_bytes() for path in (run / "config.yaml", *run.glob("records/*.json"))} == before


def test_a_test_normalises_as_the_training_did(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _fit(photos, "--trainer.max_epochs=1", "--run=one") == 0
    mean = load_records([tmp_path / "results" / "runs" / "one"])[0].data["mean"]
    for path in photos.rglob("*.*"):
        Image.open(path).point(lambda value: value // 4).save(path)
    capsys.readouterr()
    checkpoint = "results/runs/one/checkpoints/last.ckpt"
    assert main(["test", f"--ckpt_path={checkpoint}", "--json", *CPU]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["mean"] == mean


def test_a_test_image_that_cannot_be_read_ends_fit_with_a_code_and_the_record_of_the_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--data.stream=true", "--data.workers=1", "--data.mean=[0.5,0.5,0.5]", "--data.std=[0.2,0.2,0.2]"]
    tested = _data(photos)._splits["test"].images.path(0)
    tested.write_bytes(_saved(_photo(1))[:-60])
    assert _fit(photos, *options, "--trainer.max_epochs=1", "--run=one") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"cnnbench: cannot read image '{tested}'")
    record = load_records([tmp_path / "results" / "runs" / "one"])[0]
    assert record.training["images"] > 0
    assert record.confusion_matrix is None


def test_an_empty_file_is_refused_before_the_training(photos: Path) -> None:
    (photos / "cloud" / "01.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read image '.*01.jpg': it is empty"):
        _data(photos)


def test_a_signal_at_the_end_of_an_epoch_is_no_success(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "terminates.py").write_text(
        "import os, signal\n"
        "import lightning\n"
        "class AtEpochEnd(lightning.Callback):\n"
        "    def on_train_epoch_end(self, *_):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    callback = ["--trainer.callbacks+=terminates.AtEpochEnd", "--trust=terminates"]
    assert _fit(photos, *callback, "--trainer.max_epochs=3", "--run=one") == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_left_alone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "results" / "runs" / "mine" / "notes.txt").write_text("mine")
    assert _fit(photos, "--run=mine", "--resume=auto") == 2
    assert "exists and is no run of fit" in capsys.readouterr().err
    assert _fit(photos, "--run=other", "--resume=auto", "--ckpt_path=x.ckpt") == 2
    assert "leave out --ckpt_path" in capsys.readouterr().err


def test_bench_measures_images_on_the_disk(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "recipe.yaml"
    config.write_text(
        f"model: LeNet5\ndata: {{class_path: ImageFolder, init_args: {{path: {photos}, image_size: 32, stream: true, "
        "workers: 1, batch_size: 6}}\n"
    )
    arguments = ["bench", "--configs", str(config), "--epochs", "1", "--device", "cpu", "--out", "out"]
    assert main(arguments) == 0
    record = load_records([tmp_path / "out"])[0]
    assert record.data["augmentation"].startswith("random part")
    assert record.data["train_images"] == 27


# The race


def test_the_race_measures_every_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "BATCH", 4)
    monkeypatch.setattr(race, "SIDE", 32)
    size = race.draw_photos(tmp_path, photos=8, copies=2)
    assert size == sum(path.stat().st_size for path in (tmp_path / "train").rglob("*.jpg"))
    rates = race.race(tmp_path, workers=0, rounds=1)
    assert list(rates) == ["cnnbench", "torchvision", "timm", "decoding alone"]
    assert all(rate > 0 for of_loader in rates.values() for rate in of_loader)
