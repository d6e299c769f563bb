"""Data sets: what is read, how it is split, batched, augmented and normalised."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision.transforms.v2.functional as reference

from cnnbench.data import all_data, get_data, module, sources
from cnnbench.data.batches import Augmentation, Split, TensorBatches
from cnnbench.errors import UserError
from cnnbench.registry import check_arguments

CIFAR10, MNIST, Synthetic = (get_data(name).cls for name in ("CIFAR10", "MNIST", "Synthetic"))


def test_listed_data_sets() -> None:
    named = [name for name, cls in all_data().items() if not cls.form]
    assert named == ["CIFAR10", "MNIST", "Synthetic"]
    with pytest.raises(UserError, match="unknown data set 'cifar'; did you mean 'CIFAR10'"):
        get_data("cifar")


def test_data_folder_is_argument_then_variable_then_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.resolve_data_dir(None) == Path("data")
    monkeypatch.setenv("CNNBENCH_DATA", str(tmp_path))
    assert sources.resolve_data_dir(None) == tmp_path
    with pytest.raises(UserError, match=r"'nowhere' \(--data_dir\) does not exist"):
        sources.resolve_data_dir("nowhere")
    monkeypatch.setenv("CNNBENCH_DATA", "nowhere")
    with pytest.raises(UserError, match=r"\(CNNBENCH_DATA\)"):
        sources.resolve_data_dir(None)


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


HUGE = (0, -1, 10**30, 2.5, float("nan"), "32", True, [32])


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize(
    "name", ["batch_size", "eval_batch_size", "image_size", "subset", "train_images", "test_images"]
)
def test_numbers_that_are_none_are_named(name: str, value: object) -> None:
    with pytest.raises(
        UserError, match=rf"^{name} .{{1,60}} must be a whole number from \d+ to [\d,]+, such as [\d]+$"
    ):
        Synthetic(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction 1.0 is not in"),
        ({"val_fraction": float("nan")}, "val_fraction nan is not in"),
        ({"val_fraction": float("inf")}, "val_fraction inf is not in"),
        ({"val_fraction": -1e-9}, "val_fraction -1e-09 is not in"),
        ({"val_fraction": "0.1"}, "val_fraction '0.1' is not in"),
        ({"split_seed": -1}, "split_seed -1 must be a whole number from 0"),
        ({"split_seed": 2**70}, "split_seed 1180591620717411303424 must be"),
        ({"augment": "yes"}, "augment 'yes' is not true or false"),
        ({"augment": True, "padding": -1}, "padding -1 must be"),
        ({"augment": True, "padding": 10**9}, "padding 1000000000 must be"),
        ({"augment": True, "cutout": 1.5}, "cutout 1.5 must be"),
        ({"augment": True, "padding_mode": ["zeros"]}, "unknown padding_mode"),
        ({"augment": True, "flip": None}, "unknown flip 'None'"),
        ({"sizes": [0]}, "sizes: side 0 must be"),
        ({"sizes": [32, 10**9]}, "sizes: side 1000000000 must be"),
        ({"sizes": "32"}, "sizes 32 must be a list"),
        ({"sizes": [32] * 100_000}, "must be a list"),
        ({"data_dir": 7}, "data_dir 7 is not the name of a folder"),
        ({"in_channels": 2}, "in_channels 2"),
        ({"in_channels": True}, "in_channels True"),
        ({"stands_in_for": 3}, "stands_in_for 3 is not the name"),
        ({"image_size": 4}, "image_size 4 cannot hold"),
        ({"image_size": 100_000}, "image_size 100000 must be a whole number from 1 to 16,384"),
        (
            {"image_size": 16_000},
            r"image_size 16000 of 10,000 \+ 2,000 synthetic images would take [\d,.]+ GiB; at most",
        ),
        ({"train_images": 10**9}, r"1,000,000,000 \+ 2,000 synthetic images would take"),
        ({"test_images": 3}, "test_images 3"),
    ],
)
def test_bad_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Synthetic(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_batch_size": 10**6, "image_size": 128}, "with images of 128 pixels would take"),
        ({"sizes": [32, 9000]}, "with images of 9000 pixels would take"),
        ({"batch_size": 91}, "batch_size 91 is larger than the training split of Synthetic, 90 images; use at most 90"),
        ({"batch_size": 31, "subset": 30}, "batch_size 31 is larger than .* 30 images; use at most 30"),
        ({"val_fraction": 0.996}, "val_fraction 0.996 leaves none of the 100 training images"),
        ({"subset": 91}, "subset 91 is larger than the training split of 90 images"),
        ({"augment": True, "padding": 32}, "padding 32 or cutout 0 is too large for images of 32x32 pixels"),
        ({"augment": True, "cutout": 33}, "cutout 33 is too large for images of 32x32"),
        ({"augment": True, "sizes": [4]}, "too large for images of 4x4"),
    ],
)
def test_arguments_that_do_not_fit_the_images_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Synthetic(**{"train_images": 100, "test_images": 10, "image_size": 32} | options).setup()


@pytest.mark.parametrize(("images", "subset", "expected"), [(100, None, 90), (100, 30, 30), (1000, None, 128)])
def test_a_batch_size_that_nobody_asked_for_fits_the_data(images: int, subset: int | None, expected: int) -> None:
    data = Synthetic(train_images=images, test_images=10, subset=subset)
    assert data.describe()["batch_size"] == expected
    assert {len(batch.labels) for batch in data.train_dataloader()} == {expected}
    assert Synthetic(train_images=images, test_images=10, batch_size=10).describe()["batch_size"] == 10


def test_each_process_needs_a_whole_batch() -> None:
    data = Synthetic(train_images=100, test_images=10, batch_size=60)
    data.setup()
    data.trainer = SimpleNamespace(
        global_rank=0,
        world_size=2,
        strategy=SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda seed: seed),
        lightning_module=None,
    )
    with pytest.raises(UserError, match=r"batch_size 60 is larger than .* 90 images; use at most 45 in each of 2"):
        data.train_dataloader()


# The fingerprint


def test_fingerprint_is_that_of_all_tensors_in_their_order() -> None:
    data = Synthetic(train_images=40, test_images=10, image_size=8)
    data.setup()
    digest = hashlib.sha256(b"cnnbench data 1")
    for name, count in (("train", 36), ("val", 4), ("test", 10)):
        images, labels = data._splits[name]
        digest.update(f"{name} ({count}, 3, 8, 8) torch.uint8\n".encode() + images.numpy().tobytes())
        digest.update(f"{name} ({count},) torch.int64\n".encode() + labels.numpy().tobytes())
    assert data.describe()["fingerprint"] == digest.hexdigest()[:16]
    assert data.describe() == Synthetic(train_images=40, test_images=10, image_size=8).describe()


@pytest.mark.parametrize("change", ["pixel", "label", "order", "split", "count"])
def test_fingerprint_changes_with_anything_in_the_data(change: str) -> None:
    def fingerprint(changed: bool) -> str:
        data = Synthetic(train_images=40, test_images=10, image_size=8)
        data.setup()
        test = data._splits["test"]
        if changed and change == "pixel":
            test.images[3, 1, 2, 2] ^= 1
        if changed and change == "label":
            test.labels[3] = (test.labels[3] + 1) % 10
        if changed and change == "order":
            data._splits["test"] = Split(test.images.flip(0), test.labels.flip(0))
        if changed and change == "split":
            data._splits["val"], data._splits["test"] = test, data._splits["val"]
        if changed and change == "count":
            data._splits["test"] = Split(test.images[:9], test.labels[:9])
        return data.fingerprint()

    assert fingerprint(False) == fingerprint(False) != fingerprint(True)


def test_fingerprint_is_computed_once_and_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    sha256 = hashlib.sha256
    monkeypatch.setattr(module.hashlib, "sha256", lambda *a: calls.append(1) or sha256(*a))
    data = Synthetic(train_images=40, test_images=10, image_size=8)
    data.setup()
    data.train_dataloader()
    assert not calls
    assert data.describe()["fingerprint"] == data.describe()["fingerprint"]
    assert calls == [1]


@pytest.mark.parametrize("options", [{"batch_size": "many"}, {"sizes": 5}, {"augment": 3}, {"subset": [1]}])
def test_options_of_a_checkpoint_of_a_wrong_type_are_one_line(options: dict) -> None:
    for call in (lambda: Synthetic(**options), lambda: check_arguments("the checkpoint", Synthetic, options)):
        with pytest.raises(UserError, match=f"^{next(iter(options))} [^\n]*$"):
            call()


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
        ({"cutout": -1}, "cutout -1 must be a whole number from 0"),
        ({"augment": False, "cutout": 8}, "cutout of 8x8.* needs augment: true"),
        ({"sizes": (0,)}, "sizes: side 0 must be a whole number from 1"),
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
    # Mean and standard deviation in [0, 1] per channel, from how often each of the 256 values occurs.
    values = torch.arange(256, dtype=torch.double) / 255
    means, deviations = [], []
    for channel in train.images.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256).double()
        means.append(float((counts * values).sum() / counts.sum()))
        deviations.append(float((counts * (values - means[-1]) ** 2).sum() / counts.sum()) ** 0.5)
    near = 0.0005 if data.label in ("MNIST", "CIFAR-10") else 0.003  # a JPEG copy differs a little
    assert means == pytest.approx(list(data.mean), abs=near)
    assert deviations == pytest.approx(list(data.std), abs=near)


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


def test_images_too_large_for_a_gpu_stay_in_main_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    images, gpu = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.device("cuda:0")
    # 256 bytes of images and their padded copy are half of 1,024 bytes of free memory.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1024, 4096))
    assert module._home(images, gpu) == gpu
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1023, 4096))
    assert module._home(images, gpu) == torch.device("cpu")
    assert "stay in main memory" in capsys.readouterr().err
    assert module._home(images, torch.device("cpu")) == torch.device("cpu")
