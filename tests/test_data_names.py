"""Data sets by name: folders of images, sets of torchvision and MedMNIST, and classes of the user's."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.datasets import ImageFolder as TorchvisionFolder

from cnnbench.cli import main
from cnnbench.data import get_data
from cnnbench.data.measured import channel_statistics
from cnnbench.errors import UserError
from cnnbench.record import load_records

CLASSES = ("brick", "cloud", "grass", "sand", "water")
CPU = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.precision=32-true"]


def _write_photos(folder: Path, per_class: int, seed: int = 0) -> Path:
    """Write photos of different sizes, of one colour per class with noise, into one folder per class."""
    generator = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            height, width = generator.integers(40, 90, 2)
            pixels = np.full((height, width, 3), 40 * label + 30) + generator.integers(-20, 20, (height, width, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index:03}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of ten photos for each of five classes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return _write_photos(tmp_path / "photos", 10)


# Folders


def test_a_folder_of_classes_is_a_data_set(photos: Path) -> None:
    data = get_data(f"folder:{photos}")(image_size=32)
    data.setup()
    assert data.class_names == tuple(TorchvisionFolder(str(photos)).classes) == CLASSES
    facts = data.describe()
    assert (facts["name"], facts["label"], facts["num_classes"]) == (f"folder:{photos}", "photos", 5)
    # A fifth of each class is the test set, and a tenth of the other 40 images the validation split.
    assert (facts["train_images"], facts["val_images"], facts["test_images"]) == (36, 4, 10)
    assert torch.bincount(data.test_dataloader().labels).tolist() == [2] * 5
    seen = {image.numpy().tobytes() for split in ("train", "val", "test") for image in data._splits[split].images}
    assert len(seen) == 50


def test_each_image_is_the_square_in_its_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("a", "b"):
        for index in range(4):
            (tmp_path / "x" / name).mkdir(parents=True, exist_ok=True)
            # Left and right quarters are black, so the middle square is white. Each image has a mark of its own.
            pixels = np.zeros((32, 64), dtype=np.uint8)
            pixels[:, 16:48] = 250 + index
            Image.fromarray(pixels).save(tmp_path / "x" / name / f"{index}.png")
    data = get_data(f"folder:{tmp_path / 'x'}")(image_size=32, in_channels=1, val_fraction=0.0)
    data.setup()
    assert data._splits["train"].images.shape == (6, 1, 32, 32)
    assert int(data._splits["train"].images.min()) >= 250


def test_mean_and_deviation_are_those_of_the_training_images(photos: Path) -> None:
    data = get_data(f"folder:{photos}")(image_size=32, val_fraction=0.0)
    data.setup()
    pixels = data._splits["train"].images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-4)
    assert data.describe()["mean"] == list(data.mean)
    given = get_data(f"folder:{photos}")(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    given.setup()
    assert (given.mean, given.std) == ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def test_statistics_of_one_value_can_be_divided_by() -> None:
    mean, std = channel_statistics([torch.full((2, 1, 4, 4), 51, dtype=torch.uint8)], channels=1)
    assert mean == (0.2,)
    assert std[0] > 0


@pytest.mark.parametrize(
    ("folders", "images"),
    [
        ({"train": 6, "test": 3}, (27, 3, 15)),
        ({"Train": 6, "valid": 3}, (27, 3, 15)),
        ({"training": 6, "validation": 2, "testing": 3}, (30, 10, 15)),
    ],
)
def test_folders_of_splits_are_the_splits(
    folders: dict[str, int], images: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed, (name, count) in enumerate(folders.items()):
        _write_photos(tmp_path / "x" / name, count, seed)
    data = get_data(f"folder:{tmp_path / 'x'}")(image_size=32)
    facts = data.describe()
    assert (facts["train_images"], facts["val_images"], facts["test_images"]) == images


def test_images_are_decoded_once(photos: Path, capsys: pytest.CaptureFixture) -> None:
    first = get_data(f"folder:{photos}")(image_size=32).describe()
    assert "decoding 50 images" in capsys.readouterr().err
    again = get_data(f"folder:{photos}")(image_size=32).describe()
    assert again == first
    assert capsys.readouterr().err == ""
    # Another size has another copy, and nothing is written into the folder itself.
    get_data(f"folder:{photos}")(image_size=40).describe()
    assert "decoding" in capsys.readouterr().err
    assert {path.name for path in photos.iterdir()} == set(CLASSES)


def test_copies_of_training_images_in_the_test_set_are_noted(photos: Path, capsys: pytest.CaptureFixture) -> None:
    for name in CLASSES:
        for index in range(10):
            content = (photos / name / "000.png").read_bytes()
            (photos / name / f"{index:03}.png").write_bytes(content)
    get_data(f"folder:{photos}")(image_size=32).setup()
    assert "10 of 10 test images are among the training images too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder:nowhere", "folder 'nowhere' does not exist"),
        ("folder:.", "'.' has no class folder; a classifier needs two or more"),
        ("torchvision:FashionMNISTT", "did you mean 'FashionMNIST'"),
        ("torchvision:EMNIST", "torchvision:EMNIST needs split, one of balanced"),
        ("torchvision:COCODetection", "unknown data set of torchvision with images and classes"),
        ("ImageFolder", "data set 'ImageFolder' lacks its argument path; write folder:PATH"),
        ("MNSIT", "unknown data set 'MNSIT'; did you mean 'MNIST'"),
        ("MNIST(image_sise=28)", "did you mean 'image_size'"),
        ("MNIST(", "cannot read data set 'MNIST('"),
        ("nomodule:Images", "cannot import 'nomodule' of data set 'nomodule:Images'"),
        ("os:system", "is a function that is not written in Python"),
        ("pathlib:Path", "is no data set that can be built"),
    ],
)
def test_a_wrong_name_is_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        get_data(name)()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 2}, "in_channels 2 is not to be had"),
        ({"test_fraction": 1.5}, "test_fraction 1.5 is not a share"),
        ({"test_fraction": 0.01}, "leaves none for the test"),
        ({"mean": (0.5,)}, "mean (0.5,) is not a number from 0 to 1 for each of 3 channels"),
        ({"full_epochs": 0}, "full_epochs 0 must be a whole number"),
    ],
)
def test_wrong_arguments_of_a_folder_are_one_line(options: dict[str, object], message: str, photos: Path) -> None:
    with pytest.raises(UserError) as caught:
        get_data(f"folder:{photos}")(image_size=32, **options).setup()
    assert message in str(caught.value)


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train/a", "training/a", "test/a"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match="has 'train' and 'training' for one split"):
        get_data(f"folder:{tmp_path}")()


def test_a_folder_goes_through_every_command(photos: Path, capsys: pytest.CaptureFixture) -> None:
    data = [f"--data=folder:{photos}", "--data.image_size=32", "--data.batch_size=12"]
    assert main(["fit", "--model=LeNet5", *data, *CPU, "--trainer.max_epochs=3"]) == 0
    run = next(Path("results/runs").glob("LeNet5-photos/*"))
    (fitted,) = load_records([run])
    assert fitted.data["class_names"] == list(CLASSES)
    # The configuration of the run is a recipe of `bench`, which ends with the same answers.
    configs = ["--configs", str(run / "config.yaml"), "--measures=quality", "--device=cpu", "--precision=32-true"]
    assert main(["bench", *configs, "--out=grid"]) == 0
    (benched,) = load_records([Path("grid")])
    assert benched.confusion_matrix == fitted.confusion_matrix
    assert benched.data == fitted.data
    page = Path("grid/report.html").read_text()
    assert "photos" in page
    assert "water" in page
    capsys.readouterr()
    last = run / "checkpoints" / "last.ckpt"
    assert main(["test", "--ckpt_path", str(last), "--json", *CPU]) == 0
    assert json.loads(capsys.readouterr().out)["confusion_matrix"] == fitted.confusion_matrix
    assert main(["explain", "confusions", "--ckpt_path", str(last), "--json", "--out=shown"]) == 0
    (network,) = json.loads(capsys.readouterr().out)["networks"]
    assert network["confusion_matrix"] == fitted.confusion_matrix


def test_few_images_for_the_default_batch_are_noted(photos: Path, capsys: pytest.CaptureFixture) -> None:
    fit = ["fit", "--model=LeNet5", f"--data=folder:{photos}", "--data.image_size=32", *CPU, "--trainer.max_epochs=1"]
    assert main([*fit, "--test=none"]) == 0
    note = "36 training images make 1 step of 36 in an epoch; --data.batch_size 2 makes 18"
    assert note in capsys.readouterr().err
    assert main([*fit, "--test=none", "--data.batch_size=36"]) == 0
    assert "training images make" not in capsys.readouterr().err


def test_a_checkpoint_keeps_mean_and_deviation(photos: Path) -> None:
    data = [f"--data=folder:{photos}", "--data.image_size=32", "--data.batch_size=12"]
    assert main(["fit", "--model=LeNet5", *data, *CPU, "--trainer.max_epochs=1", "--test=none"]) == 0
    stored = torch.load(next(Path("results").rglob("last.ckpt")), weights_only=True)
    kept = stored["datamodule_hyper_parameters"]
    trained = get_data(f"folder:{photos}")(image_size=32)
    trained.setup()
    assert (tuple(kept["mean"]), tuple(kept["std"])) == (trained.mean, trained.std)


# torchvision


def _write_fashion(root: Path, train: int, test: int) -> np.ndarray:
    """Write FashionMNIST's four files with random images, and return the training images."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    first = None
    for name, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        first = images if first is None else first
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    assert first is not None
    return first


def test_fashion_mnist_comes_by_name() -> None:
    images = _write_fashion(Path("data"), 60, 20)
    data = get_data("torchvision:FashionMNIST")()
    data.prepare_data()
    facts = data.describe()
    assert (facts["name"], facts["label"]) == ("torchvision:FashionMNIST", "FashionMNIST")
    assert facts["class_names"] == datasets.FashionMNIST.classes
    assert (facts["train_images"], facts["val_images"], facts["test_images"]) == (54, 6, 20)
    # The images are padded to 32 pixels, so mean and deviation are those of the padded images.
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    assert facts["image_size"] == 32
    assert facts["mean"] == [pytest.approx(padded.mean() / 255, abs=1e-4)]
    assert main(["bench", "--models=LeNet5", "--data=torchvision:FashionMNIST", "--epochs=1", "--device=cpu",
                 "--measures=quality", "--batch_size=10", "--out=run"]) == 0  # fmt: skip
    (record,) = load_records([Path("run")])
    assert record.key == "LeNet5-torchvision_FashionMNIST-seed0"
    assert np.array(record.confusion_matrix).sum(1).tolist() == [2] * 10


def test_cifar100_comes_by_name_with_its_hundred_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("data") / datasets.CIFAR100.base_folder
    folder.mkdir(parents=True)
    names = [f"class {index}" for index in range(100)]

    def write(name: str, content: dict[str, object]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    generator = np.random.default_rng(0)
    lists = {}
    for name, count in (("train", 300), ("test", 200)):
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        lists[name] = [[name, write(name, {"data": pixels, "fine_labels": (np.arange(count) % 100).tolist()})]]
    meta = {"filename": "meta", "key": "fine_label_names", "md5": write("meta", {"fine_label_names": names})}
    monkeypatch.setattr(datasets.CIFAR100, "train_list", lists["train"])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", lists["test"])
    monkeypatch.setattr(datasets.CIFAR100, "meta", meta)
    options = ["--trainer.max_epochs=1", "--data.batch_size=30"]
    assert main(["fit", "--model=LeNet5", "--data=torchvision:CIFAR100", *options, *CPU]) == 0
    (record,) = load_records([next(Path("results/runs/LeNet5-CIFAR100").iterdir())])
    assert record.data["class_names"] == names
    assert np.array(record.confusion_matrix).shape == (100, 100)


def test_a_set_that_cannot_be_downloaded_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: object) -> None:
        Path("data/FashionMNIST/raw").mkdir(parents=True)
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.FashionMNIST, "download", download)
    with pytest.raises(UserError, match=r"is not there, and cannot be downloaded: OSError: no route to host; put"):
        get_data("torchvision:FashionMNIST")().prepare_data()
    assert not Path("data").exists()


def test_letters_are_numbered_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """EMNIST's letters have the labels 1 to 26 and a class 0 without images."""
    folder = Path("data/EMNIST/raw")
    folder.mkdir(parents=True)
    for name, count in (("train", 52), ("test", 26)):
        images = np.zeros((count, 28, 28), dtype=np.uint8)
        images[:, :, :] = np.arange(count)[:, None, None]
        labels = (np.arange(count) % 26 + 1).astype(np.uint8)
        start = folder / f"emnist-letters-{name}"
        Path(f"{start}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        Path(f"{start}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    data = get_data("torchvision:EMNIST(split=letters)")()
    facts = data.describe()
    assert (facts["num_classes"], facts["class_names"][0], facts["label"]) == (26, "a", "EMNIST(split=letters)")
    assert data.test_dataloader().labels.tolist() == list(range(26))


# MedMNIST


@pytest.fixture
def medmnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package ``medmnist`` with the facts of three data sets in the form that the real one has."""
    package = ModuleType("medmnist")
    blood = {"python_class": "BloodMNIST", "task": "multi-class", "n_channels": 3, "url": "x", "MD5": "x"}
    package.INFO = {  # type: ignore[attr-defined]
        "bloodmnist": blood | {"label": {"1": "eosinophil", "0": "basophil", "10": "platelet"}},
        "chestmnist": blood | {"python_class": "ChestMNIST", "task": "multi-label, binary-class", "label": {}},
        "organmnist3d": blood | {"python_class": "OrganMNIST3D", "label": {}},
    }
    monkeypatch.setitem(sys.modules, "medmnist", package)


def test_a_set_of_medmnist_comes_by_name(medmnist: None) -> None:
    Path("data").mkdir()
    arrays = {}
    for split, count in (("train", 30), ("val", 9), ("test", 12)):
        arrays[f"{split}_images"] = np.random.default_rng(count).integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    np.savez("data/bloodmnist.npz", **arrays)
    data = get_data("medmnist:BloodMNIST")()
    data.prepare_data()
    facts = data.describe()
    # Labels are numbers, so class 10 comes behind class 1.
    assert facts["class_names"] == ["basophil", "eosinophil", "platelet"]
    assert (facts["train_images"], facts["val_images"], facts["test_images"]) == (30, 9, 12)
    assert np.array_equal(data._splits["val"].images.permute(0, 2, 3, 1).numpy(), arrays["val_images"])
    Path("data/bloodmnist.npz").write_bytes(Path("data/bloodmnist.npz").read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        get_data("medmnist:BloodMNIST")().setup()


def test_sets_without_one_class_per_image_are_not_offered(medmnist: None) -> None:
    for name in ("ChestMNIST", "OrganMNIST3D"):
        with pytest.raises(UserError, match="unknown data set of MedMNIST with one class per image"):
            get_data(f"medmnist:{name}")()


def test_without_the_package_medmnist_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(UserError, match="needs the package medmnist; install it with: pip install medmnist"):
        get_data("medmnist:PathMNIST")()


# Classes of the user's

MINE = """
import torch
from cnnbench import ImageDataModule
from cnnbench.data.batches import Split

class Halves(ImageDataModule):
    title, num_classes, in_channels = "halves", 2, 1
    default_size, default_augment, full_epochs = 32, False, 5
    class_names, mean, std = ("top", "bottom"), (0.5,), (0.5,)

    def load(self):
        images = torch.zeros(80, 1, 32, 32, dtype=torch.uint8)
        images += torch.arange(80, dtype=torch.uint8)[:, None, None, None]
        images[:40, :, :16] = 255
        images[40:, :, 16:] = 255
        labels = torch.arange(80) // 40
        return Split(images[::2], labels[::2]), Split(images[1::2], labels[1::2])
"""


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a data set in a module of the working folder."""
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "halves", raising=False)
    Path("halves.py").write_text(MINE)
    return "halves:Halves"


def test_a_class_of_the_user_s_goes_through_bench_and_fit(mine: str) -> None:
    options = ["--epochs=2", "--device=cpu", "--measures=quality", "--batch_size=9", "--precision=32-true"]
    assert main(["bench", "--models=LeNet5", f"--data={mine}", *options, "--out=run"]) == 0
    (record,) = load_records([Path("run")])
    assert (record.data["name"], record.data["label"]) == (mine, "halves")
    assert main(["fit", "--model=LeNet5", f"--data={mine}", "--data.batch_size=9", *CPU, "--trainer.max_epochs=2"]) == 0
    (fitted,) = load_records([next(Path("results/runs").glob("LeNet5-Halves/*"))])
    assert fitted.confusion_matrix == record.confusion_matrix


def test_a_plan_does_not_import_a_class_that_the_user_does_not_trust(mine: str, capsys: pytest.CaptureFixture) -> None:
    options = ["--epochs=1", "--device=cpu", "--measures=quality", "--batch_size=9"]
    assert main(["bench", "--models=LeNet5", f"--data={mine}", *options, "--out=run"]) == 0
    Path("halves.py").write_text("open('ran', 'w')\n" + MINE)
    sys.modules.pop("halves")
    assert main(["bench", "--resume", "--out=run"]) == 2
    assert f"names the data set '{mine}', whose code lies outside cnnbench" in capsys.readouterr().err
    assert not Path("ran").exists()
    assert main(["bench", "--resume", "--out=run", "--trust=halves"]) == 0


def test_a_configuration_does_not_import_one_either(mine: str, capsys: pytest.CaptureFixture) -> None:
    Path("halves.py").write_text("open('ran', 'w')\n" + MINE)
    Path("bench.yaml").write_text(f"models: [LeNet5]\ndata: ['{mine}']\n")
    Path("fit.yaml").write_text("model: LeNet5\ndata: halves.Halves\n")
    for command in (["bench", "--config=bench.yaml"], ["bench", "--configs=fit.yaml"], ["fit", "--config=fit.yaml"]):
        assert main(command) == 2
        assert "trust" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_the_list_has_the_names_of_data_sets(capsys: pytest.CaptureFixture) -> None:
    assert main(["list", "--data"]) == 0
    text = capsys.readouterr().out
    for name in ("MNIST", "folder:PATH", "torchvision:FashionMNIST", "medmnist:NAME", "package.module:Class"):
        assert name in text


def test_bench_wants_the_form_that_says_which_folder(photos: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "--data=ImageFolder", f"--data_options={{path: '{photos}'}}"]) == 2
    assert "data set 'ImageFolder' is named by what it reads; write folder:PATH" in capsys.readouterr().err


def test_data_of_a_checkpoint_has_the_name_that_commands_take(photos: Path) -> None:
    assert get_data("ImageFolder")(path=str(photos)).name == f"folder:{photos}"
    assert get_data("torchvision:KMNIST")().name == get_data("TorchvisionImages")(name="KMNIST").name
