"""Test images on which networks disagree: which they are, their file, and their place on the page."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from cnnbench.api import bench
from cnnbench.data import get_data
from cnnbench.disputed import LARGEST_SIDE, Disputed, disputed_file, most_disputed, read_disputed, write_disputed
from cnnbench.errors import UserError
from cnnbench.predictions import read_predictions
from cnnbench.record import load_records
from cnnbench.report.outputs import Report
from cnnbench.report.page import Page


def _made(images: int = 5, side: int = 8, channels: int = 3) -> Disputed:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, side, side, channels)).astype(np.uint8)
    return Disputed(pixels, np.arange(images, dtype=np.int64) * 3, random.integers(0, 10, images))


def test_the_most_disputed_images_are_those_with_the_fewest_votes_for_the_winner() -> None:
    random = np.random.default_rng(1)
    answers = [random.integers(0, 4, 60) for _ in range(5)]
    # By brute force: the networks that do not give the most frequent answer, image by image.
    against = []
    for image in range(60):
        said = [int(row[image]) for row in answers]
        against.append(len(said) - max(said.count(label) for label in set(said)))
    chosen = most_disputed(answers, most=10)
    assert chosen.tolist() == sorted(sorted(range(60), key=lambda image: (-against[image], image))[:10])
    # Images on which all agree are not disputed, however few others there are.
    same = np.zeros(60, dtype=int)
    other = same.copy()
    other[[7, 50]] = 1
    assert most_disputed([same, other]).tolist() == [7, 50]
    assert most_disputed([same, same]).tolist() == []


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_gives_back_what_was_written(channels: int) -> None:
    path = disputed_file(Path("run"), "folder:my photos")
    assert path.parent == Path("run/images")
    assert path.name.isascii()
    made = _made(channels=channels)
    write_disputed(path, made)
    for found, expected in zip(read_disputed(path), made, strict=True):
        assert np.array_equal(found, expected)


WRONG = {
    "too large": {"images": np.zeros((2, LARGEST_SIDE + 1, 8, 3), np.uint8)},
    "no height": {"images": np.zeros((2, 0, 0, 1), np.uint8)},
    "four channels": {"images": np.zeros((2, 8, 8, 4), np.uint8)},
    "float": {"images": np.zeros((2, 8, 8, 3), np.float32)},
    "other length": {"images": np.zeros((3, 8, 8, 3), np.uint8)},
    "negative": {"true": np.array([-1, 0])},
    "objects": {"true": np.array([{}, {}], dtype=object)},
    "one more": {"extra": np.zeros(2)},
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_content_is_refused(kind: str) -> None:
    two = np.array([0, 1])
    arrays = {"images": np.zeros((2, 8, 8, 3), np.uint8), "indices": two, "true": two, **WRONG[kind]}
    np.savez_compressed("file.npz", **arrays)
    with pytest.raises(UserError, match=r"delete the file"):
        read_disputed(Path("file.npz"))


def test_a_head_that_asks_for_more_memory_than_follows_is_refused() -> None:
    """NumPy would take the memory before it reads the values."""
    head = io.BytesIO()
    npy.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 64, 64, 3)})
    write_disputed(Path("file.npz"), _made())
    with zipfile.ZipFile("file.npz") as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    parts["images.npy"] = head.getvalue()
    with zipfile.ZipFile("file.npz", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=r"head of an array does not fit its content"):
        read_disputed(Path("file.npz"))
    with pytest.raises(UserError, match=r"it should have the arrays"):
        read_predictions(Path("file.npz"), [[1]])
    with zipfile.ZipFile("said.npz", "w") as archive:
        archive.writestr("true.npy", head.getvalue())
        archive.writestr("predicted.npy", head.getvalue())
    with pytest.raises(UserError, match=r"head of an array does not fit its content"):
        read_predictions(Path("said.npz"), [[1]])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>"])
def test_a_damaged_file_is_refused_and_the_page_has_no_pictures(content: bytes) -> None:
    Path("file.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read"):
        read_disputed(Path("file.npz"))


@pytest.mark.usefixtures("without_pictures")
def test_a_run_keeps_the_images_that_its_networks_dispute() -> None:
    bench(models="LeNet5,SimpleCNN", data="Synthetic", measures="quality", epochs=1, batch_size=8,
          data_options={"train_images": 16, "test_images": 50}, out="run")  # fmt: skip
    records = load_records([Path("run")])
    said = [read_predictions(Path(f"run/predictions/{r.key}.npz"), r.confusion_matrix or []) for r in records]
    disputed = read_disputed(disputed_file(Path("run"), "Synthetic"))
    assert disputed.indices.tolist() == np.flatnonzero(said[0].predicted != said[1].predicted).tolist()
    data = get_data("Synthetic")(train_images=16, test_images=50)
    data.prepare_data()
    data.setup()
    stored = data.stored("test", slice(None))
    assert np.array_equal(disputed.images, stored.images.permute(0, 2, 3, 1).numpy()[disputed.indices])
    assert np.array_equal(disputed.true, stored.labels.numpy()[disputed.indices])
    # The page has the answers of each network to these images.
    page = Page(Report(records)).data()
    by_title = {row["title"]: row for row in page["rows"]}
    for record, answers in zip(records, said, strict=True):
        assert by_title[record.model]["said"] == answers.predicted[disputed.indices].tolist()
    (sheet,) = page["images"].values()
    assert sheet["numbers"] == disputed.indices.tolist()
    (verdict,) = page["verdicts"]
    assert sorted(verdict[:2]) == sorted(row["network"] for row in page["rows"])
    # A file that is damaged later costs the pictures, not the page.
    disputed_file(Path("run"), "Synthetic").write_bytes(b"")
    assert Page(Report(records)).data()["images"] == {}


@pytest.mark.usefixtures("without_pictures")
def test_a_run_of_one_network_keeps_no_images() -> None:
    bench(models="LeNet5", data="Synthetic", measures="quality", epochs=1, batch_size=8,
          data_options={"train_images": 16, "test_images": 20}, out="run")  # fmt: skip
    assert not Path("run/images").exists()
