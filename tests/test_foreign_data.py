"""Plain LightningDataModules of the user's in ``bench``: the same figures again, and what is refused in one line."""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cnnbench.benchmark.run import run
from cnnbench.cli import main
from cnnbench.data import get_bench_data
from cnnbench.record import load_records

pytestmark = pytest.mark.usefixtures("without_pictures")

# Bright above means class 0 and bright below class 1; the labels go round among the images.
MODULE = """
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset, random_split


def images(count):
    labels = torch.arange(count) % 2
    x = torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(count))
    x[labels == 0, :, :16] += 0.15
    x[labels == 1, :, 16:] += 0.15
    return TensorDataset(x, labels)


class Plain(L.LightningDataModule):
    num_classes, in_channels, image_size = 2, 1, 32
    seen = []  # the labels and sums of all training images, in their order

    def __init__(self, batch_size: int = 8, shift: float = 0.0):
        super().__init__()
        self.batch_size, self.shift = batch_size, shift

    def setup(self, stage=None):
        self.train, self.val = random_split(images(40), [30, 10])
        self.test = images(21)

    def _note(self, samples):
        x = torch.stack([x for x, _ in samples]) + self.shift
        Plain.seen += [round(float(image.sum()), 3) for image in x]
        return x, torch.tensor([label for _, label in samples])

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True, collate_fn=self._note)

    def val_dataloader(self):
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self):
        return DataLoader(self.test, 6)
"""


def _bench(*options: str) -> list[str]:
    """Return the command line of a benchmark on the data set, with some options in place of the usual ones."""
    usual = {
        "--models": "LeNet5",
        "--data": "plain:Plain",
        "--epochs": "2",
        "--device": "cpu",
        "--batch_size": "7",
        "--precision": "32-true",
        "--measures": "complexity,quality,validation",
    }
    given = [option.partition("=")[0] for option in options]
    return ["bench", *(f"{name}={value}" for name, value in usual.items() if name not in given), *options]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module ``plain`` in the working folder with the data set `Plain`."""
    monkeypatch.syspath_prepend(".")
    _write(MODULE)
    yield
    sys.modules.pop("plain", None)


def _write(text: str) -> None:
    sys.modules.pop("plain", None)
    Path("plain.py").write_text(text)


def _seen() -> list[float]:
    return sys.modules["plain"].Plain.seen


def test_a_plain_module_is_measured_and_a_repeat_gets_the_same_figures(capsys: pytest.CaptureFixture) -> None:
    assert main(_bench("--seeds=0,1", "--out=a")) == 0
    # The second run takes the seeds the other way round, which must not matter.
    assert main(_bench("--seeds=1,0", "--out=b")) == 0
    first, second = ({record.seed: record for record in load_records([Path(name)])} for name in "ab")
    for seed in (0, 1):
        a, b = first[seed], second[seed]
        assert (a.status, a.data) == ("ok", b.data)
        assert a.confusion_matrix == b.confusion_matrix
        assert a.measures["val_accuracy"] == b.measures["val_accuracy"]
        curves = [[{**point, "seconds": 0} for point in record.training["curve"]] for record in (a, b)]
        assert curves[0] == curves[1]
        # 30 images in batches of seven are five steps, since this loader keeps the incomplete one.
        assert (a.training["steps"], a.training["images"], a.training["epochs"]) == (10, 60, 2.0)
        assert a.config["images_per_step"] == 7
        # Labels go round, so 11 of 21 test images are of class 0.
        assert [sum(row) for row in a.confusion_matrix] == [11, 10]
        with np.load(f"a/predictions/{a.key}.npz") as stored:
            assert stored["true"].tolist() == [index % 2 for index in range(21)]
    facts = first[0].data
    assert (facts["name"], facts["label"], facts["class_names"]) == ("plain:Plain", "Plain", ["0", "1"])
    assert (facts["train_images"], facts["val_images"], facts["test_images"]) == (30, 10, 21)
    capsys.readouterr()
    assert main(["report", "a", "--out=report"]) == 0
    assert "Plain" in Path("report/report.md").read_text()


def test_the_order_follows_the_seed_of_the_cell_and_not_the_network() -> None:
    orders = {}
    for model in ("LeNet5", "SimpleCNN"):
        for seed in (3, 4):
            sys.modules.pop("plain", None)
            options = [f"--models={model}", f"--seeds={seed}", "--measures=quality", f"--out={model}{seed}"]
            assert main(_bench(*options)) == 0
            # The first batch of seven is looked at when the data is opened.
            orders[model, seed] = _seen()[7:]
            assert len(orders[model, seed]) == 60
    assert orders["LeNet5", 3] == orders["SimpleCNN", 3] != orders["LeNet5", 4]
    assert sorted(orders["LeNet5", 3][:30]) == sorted(orders["LeNet5", 3][30:]) == sorted(orders["LeNet5", 4][:30])
    assert orders["LeNet5", 3][:30] != orders["LeNet5", 3][30:]


def test_a_loader_with_a_generator_of_its_own_follows_the_seed_too() -> None:
    own = "super().__init__()\n        self.own = torch.Generator().manual_seed(9)"
    _write(MODULE.replace("shuffle=True", "shuffle=True, generator=self.own").replace("super().__init__()", own))
    assert main(_bench("--seeds=0,1", "--measures=quality", "--out=both")) == 0
    both = _seen()[7:]
    _write(Path("plain.py").read_text())
    assert main(_bench("--seeds=1", "--measures=quality", "--out=one")) == 0
    assert both[60:] == _seen()[7:]
    assert both[:60] != both[60:]


def test_a_run_is_resumed_and_other_images_are_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(_bench("--seeds=0,1", "--out=run")) == 0
    before = {path.name: path.read_bytes() for path in Path("run/records").iterdir()}
    whole = json.loads(before.pop("LeNet5-plain_Plain-seed1.json"))
    Path("run/records/LeNet5-plain_Plain-seed1.json").unlink()
    resume = ["bench", "--resume", "--out=run", "--trust=plain"]
    assert main(["bench", "--resume", "--out=run"]) == 2
    assert "names the data set 'plain:Plain', whose code lies outside cnnbench" in capsys.readouterr().err
    assert main(resume) == 0
    again = json.loads(Path("run/records/LeNet5-plain_Plain-seed1.json").read_text())
    assert again["confusion_matrix"] == whole["confusion_matrix"]
    assert {path.name: path.read_bytes() for path in Path("run/records").iterdir() if path.name in before} == before
    _write(MODULE.replace("self.test = images(21)", "self.test = images(19)"))
    assert main(resume) == 2
    assert "was measured with data.test_images 21, but now it is 19" in capsys.readouterr().err


def test_the_fingerprint_is_that_of_the_images_and_not_of_the_batches() -> None:
    def fingerprint() -> str:
        sys.modules.pop("plain", None)
        data = get_bench_data("plain:Plain")(batch_size=7)
        data.prepare_data()
        data.setup()
        return data.describe()["fingerprint"]

    known = fingerprint()
    _write(MODULE.replace("self.test, 6", "self.test, 5"))
    assert fingerprint() == known
    other = "self.test = images(21)\n        self.test.tensors[0][20, 0, 0, 0] += 0.001"
    _write(MODULE.replace("self.test = images(21)", other))
    assert fingerprint() != known


def test_opening_leaves_the_random_state_as_it_is() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    data = get_bench_data("plain:Plain")(batch_size=7)
    data.prepare_data()
    data.setup()
    assert torch.initial_seed() == 5
    assert torch.equal(torch.rand(3), expected)


def test_what_a_module_states_is_in_its_records_and_pictures() -> None:
    stated = 'title = "Halves"; class_names = ("above", "below"); full_epochs = 2; mean = (0.25,); std = (0.5,)'
    _write(MODULE.replace("seen = []", f"{stated}; seen = []"))
    data = get_bench_data("plain:Plain")(batch_size=7)
    data.prepare_data()
    data.setup()
    facts = data.describe()
    assert (facts["label"], facts["class_names"], facts["full_epochs"]) == ("Halves", ["above", "below"], 2)
    pixels = data.test_pixels([2, 20])
    values = torch.cat([images for images, _ in data.test_dataloader()])[[2, 20]]
    expected = (255 * (values * 0.5 + 0.25).clamp(0, 1)).round().permute(0, 2, 3, 1)
    assert np.array_equal(pixels, expected.numpy().astype(np.uint8))


def test_an_object_may_state_what_its_class_does_not() -> None:
    stated = "self.num_classes, self.in_channels, self.image_size = 2, 1, 32\n        self.test = images(21)"
    text = MODULE.replace("num_classes, in_channels, image_size = 2, 1, 32", "")
    _write(text.replace("self.test = images(21)", stated))
    assert main(_bench("--measures=quality", "--out=run")) == 0
    (record,) = load_records([Path("run")])
    assert (record.data["num_classes"], record.data["in_channels"], record.data["image_size"]) == (2, 1, 32)


def test_mistakes_are_shown_with_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    nothing = lambda _: None  # noqa: E731
    follower = SimpleNamespace(begin=nothing, point=nothing, show=shown.append, end=nothing)
    monkeypatch.setattr("cnnbench.benchmark.session.run", partial(run, follower=follower))
    assert main(_bench("--measures=quality", "--out=run")) == 0
    (examples,) = shown
    (record,) = load_records([Path("run")])
    wrong = record.confusion_matrix[0][1] + record.confusion_matrix[1][0]
    assert len(examples.indices) == wrong > 0
    assert examples.images.shape == (len(examples.indices), 32, 32, 1)
    assert examples.true == [str(index % 2) for index in examples.indices]


def test_without_validation_it_is_left_out(capsys: pytest.CaptureFixture) -> None:
    _write(MODULE.replace("val_dataloader", "no_dataloader"))
    assert main(_bench("--out=run")) == 2
    assert "has no val_dataloader, which the measure validation needs" in capsys.readouterr().err
    assert main(_bench("--measures=quality", "--out=run")) == 0
    (record,) = load_records([Path("run")])
    assert (record.status, record.data["val_images"]) == ("ok", 0)
    assert not any("val/accuracy" in point for point in record.training["curve"])


def test_networks_are_timed_on_it(few_rounds: None) -> None:
    assert main(_bench("--measures=speed", "--out=run")) == 0
    (record,) = load_records([Path("run")])
    assert record.status == "ok"
    assert record.measures["train_images_per_s"] > 0


def test_a_dry_run_counts_every_image_of_a_loader_that_keeps_the_last_batch(capsys: pytest.CaptureFixture) -> None:
    assert main(_bench("--dry_run", "--json")) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert (cell["images"], cell["batch_size"]) == (60, 7)
    _write(MODULE.replace("shuffle=True", "shuffle=True, drop_last=True"))
    assert main(_bench("--dry_run", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["cells"][0]["images"] == 56


def test_a_configuration_of_fit_with_a_plain_module_is_a_row(capsys: pytest.CaptureFixture) -> None:
    text = "model: LeNet5\ndata: {class_path: plain.Plain, init_args: {shift: 0.5}}\ntrainer: {max_epochs: 1}\n"
    Path("row.yaml").write_text(text)
    row = ["bench", "--configs=row.yaml", "--device=cpu", "--measures=quality", "--out=run"]
    assert main(row) == 2
    assert "trust" in capsys.readouterr().err
    assert main([*row, "--trust=plain"]) == 0
    (record,) = load_records([Path("run")])
    assert (record.data["name"], record.training["images"]) == ("plain:Plain", 30)
    Path("row.yaml").write_text(text.replace("LeNet5", "{class_path: LeNet5, init_args: {steps_per_call: 5}}"))
    assert main([*row[:-1], "--out=other", "--trust=plain"]) == 2
    assert "steps_per_call 5, but data set 'plain:Plain' gives one batch per call" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "num_classes, in_channels, image_size = 2, 1, 32",
            "in_channels = 1",
            "does not state num_classes, image_size",
        ),
        ("image_size = 2, 1, 32", "image_size = 2, True, 32", "in_channels of data set 'plain:Plain': True must be"),
        ("image_size = 2, 1, 32", "image_size = 2, 1, 28", "images (7, 1, 32, 32) torch.float32; in_channels and"),
        ("image_size = 2, 1, 32", "image_size = 1, 1, 32", "has the label 1; with num_classes 1, labels are 0 to 0"),
        ("seen = []", "class_names = ('a',); seen = []", "has class_names ('a',), which are not 2 names"),
        ("seen = []", "mean = (0.5,); seen = []", "has std None, which is not a number"),
        ("seen = []", "full_epochs = 0; seen = []", "full_epochs of data set 'plain:Plain': 0 must be"),
        ("def test_dataloader", "def other", "has no test_dataloader, which bench needs; add one"),
        ("def train_dataloader", "def other", "has no train_dataloader, which bench needs; add one"),
        ("def _note", "def on_after_batch_transfer(self, b, i): return b\n\n    def _note", "prepare images in the"),
        (
            "def setup(self, stage=None):",
            "def setup(self, stage):\n        1 / 0",
            "setup('fit') failed: ZeroDivisionE",
        ),
        ("return DataLoader(self.test, 6)", "return [DataLoader(self.test, 6)]", "gives list from its test_dataloader"),
        ("return x, torch", "return x.double(), torch", "images (7, 1, 32, 32) torch.float64"),
        ("return x, torch.tensor([label", "return x, torch.tensor([float(label)", "has labels (7,) torch.float32"),
        ("return x, torch", "return x, 1, torch", "which is not a pair of tensors"),
        ("self.test = images(21)", "self.test = images(0)", "gives no batch from its test_dataloader"),
    ],
)
def test_what_a_module_lacks_is_one_line(before: str, after: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert MODULE.count(before) == 1
    _write(MODULE.replace(before, after))
    assert main(_bench("--out=run")) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data_options={subset: 5}"], "subset of data_options for plain:Plain has no effect"),
        (["--data_options={augment: false}"], "augment of data_options for plain:Plain has no effect"),
        (["--data=plain:Plain(padding=2)"], "padding of data set 'plain:Plain(padding=2)' has no effect"),
        (["--data=plain:Plain(batch_size=2)"], "sets batch_size, which bench decides itself; use --batch_size"),
        (["--data=plain:Plain(shift=1.0)", "--data_options={shift: 2.0}"], "says shift already; leave out shift 2.0"),
        (["--eval_batch_size=9"], "--eval_batch_size has no effect on data set 'plain:Plain'"),
        (["--data_dir=."], "--data_dir has no effect on data set 'plain:Plain'"),
        (["--measures=quality,train_quality"], "no training images without augmentation, which the measure train_qu"),
        (["--data=plain:images"], "'plain:images' is no data set that can be built"),
    ],
)
def test_options_without_effect_are_refused(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(_bench(*options, "--out=run")) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_bad_label_in_a_later_batch_is_the_reason_of_a_failed_cell() -> None:
    _write(MODULE.replace("self.train, self.val", "self.train, self.val = images(30), images(10)\n        "
                          "self.train.tensors[1][3] = 2\n        a, b"))  # fmt: skip
    assert main(_bench("--out=run")) == 1
    (record,) = load_records([Path("run")])
    assert record.status == "error"
    assert "a batch of its train_dataloader has the label 2" in record.reason


def test_other_commands_say_that_they_need_images(capsys: pytest.CaptureFixture) -> None:
    assert main(["search", "--model=LeNet5", "--data=plain:Plain", "--out=run"]) == 2
    assert "'plain:Plain' is a LightningDataModule, which only bench, fit" in capsys.readouterr().err
    assert main(["explain", "feature-maps", "LeNet5", "--data=plain:Plain"]) == 2
    assert "'plain:Plain' is a LightningDataModule, which only bench, fit" in capsys.readouterr().err


class _Mnist:
    """Data set of the size and kind of torchvision's MNIST."""

    def __init__(self, root: str, train: bool = True, transform: object = None) -> None:
        self.count = 60_000 if train else 10_000

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(1, 28, 28), index % 10


def test_the_example_of_the_page_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    page = (Path(__file__).parents[1] / "docs" / "own.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class MyDataModule" in b)
    _write(block)
    monkeypatch.setattr("torchvision.datasets.MNIST", _Mnist)
    assert main(_bench("--data=plain:MyDataModule", "--models=SimpleCNN", "--dry_run", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["cells"][0]["images"] == 2 * 55_000
