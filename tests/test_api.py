"""The front door for Python: names that are imported lazily, and the functions count, speed and bench."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import cnnbench
from cnnbench import bench, count, speed
from cnnbench.errors import UserError
from cnnbench.models import all_models

SMALL = {"rounds": 1, "batch_size": 2, "train_batch_size": 2, "device": "cpu"}


def test_import_of_the_package_imports_nothing_heavy() -> None:
    code = "import sys, cnnbench; print({'torch', 'numpy', 'rich', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_module_can_be_the_first_one() -> None:
    """Importing a module of the package must not import all networks on the way, in which it may be needed itself."""
    # The libraries are imported once, in a process that has nothing of the package, and each module in a fork of it.
    code = (
        "import os, sys\n"
        "import lightning.pytorch.cli, torch, torchmetrics, torchvision\n"
        "for word in sys.argv[1:]:\n"
        "    assert not any(name.partition('.')[0] == 'cnnbench' for name in sys.modules)\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        room, _, name = word.rpartition('.')\n"
        "        exec(f'from {room} import {name}')\n"
        "        print(word, 'cnnbench.models.vgg' in sys.modules, flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
    )
    modules = ["hardware", "network", "counting.complexity", "training.classifier", "data.module"]
    words = [f"cnnbench.{module}" for module in modules]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines(), done.stderr) == ([f"{word} False" for word in words], "")


def test_networks_and_data_sets_are_attributes() -> None:
    from cnnbench import CIFAR10, VGG16

    assert VGG16 is cnnbench.models.VGG16 is all_models()["VGG16"]
    assert CIFAR10 is cnnbench.data.CIFAR10
    assert {"VGG16", "CIFAR10", "count", "bench"} <= set(dir(cnnbench))
    for package in (cnnbench, cnnbench.models, cnnbench.data):
        with pytest.raises(AttributeError, match="has no attribute 'VGG17'"):
            package.VGG17  # noqa: B018


def test_everything_that_is_offered_is_there() -> None:
    assert all(hasattr(cnnbench, name) for name in cnnbench.__all__)


def test_count_of_a_module_and_of_a_name() -> None:
    """A convolution of 3 to 8 channels, 3x3 with bias, on 16x16 pixels: 3 * 9 * 8 * 256 multiply-adds."""
    cost = count(nn.Conv2d(3, 8, 3, padding=1), (3, 16, 16))
    assert (cost.params, cost.macs) == (3 * 9 * 8 + 8, 3 * 9 * 8 * 256)
    assert count("LeNet5").macs == count(cnnbench.models.LeNet5()).macs == 651_720
    assert count("torchvision:resnet18", (3, 32, 32)).macs < count("torchvision:resnet18").macs
    lines = str(cost).splitlines()
    assert len(lines) == 10
    assert "55,296" in lines[1]
    assert cost._repr_html_().count("<tr>") == 10
    with pytest.raises(UserError, match="Conv2d does not say which images it takes; give image_shape"):
        count(nn.Conv2d(3, 8, 3))
    with pytest.raises(UserError, match="take square images"):
        count("LeNet5", (3, 32, 28))


def test_speed_times_modules_and_names(capsys: pytest.CaptureFixture) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    before = [p.clone() for p in net.parameters()]
    results = speed("LeNet5", net, image_shape=(3, 32, 32), **SMALL)
    assert [record.model for record in results] == ["LeNet5", "Sequential"]
    assert all(record.measures["latency_ms_median"] > 0 for record in results)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert "Times as multiples of LeNet5's" in str(results)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="unknown option of speed\\(\\): 'round'"):
        speed("LeNet5", round=1)
    with pytest.raises(UserError, match="processes and memory start processes"):
        speed(net, image_shape=(3, 32, 32), processes=2)


def test_two_networks_of_one_name_are_refused() -> None:
    """Their figures are kept by name, so that one would stand for both."""
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width)) for width in (5, 10)]
    with pytest.raises(UserError, match="two networks are called 'Sequential'"):
        speed(*nets, image_shape=(3, 8, 8), **SMALL)


def test_options_of_functions_are_checked_as_those_of_commands() -> None:
    for keywords, message in (
        ({"rounds": 0}, "rounds 0 must be at least 1"),
        ({"cudnn_benchmark": "yes"}, "unknown cudnn_benchmark 'yes'"),
        ({"processes": 2.5}, "processes '2.5' is not a whole number"),
        ({"records": "a.jsonl"}, "unknown option of speed\\(\\): 'records'"),
    ):
        with pytest.raises(UserError, match=message):
            speed("LeNet5", **keywords)
    for keywords, message in (
        ({"epochs": 0}, "epochs 0 must be at least 1"),
        ({"measures": "speeed"}, "unknown measure 'speeed'"),
        ({"epoch": 1}, "unknown option of bench\\(\\): 'epoch'"),
        ({"wandb": "maybe"}, "unknown wandb 'maybe'"),
    ):
        with pytest.raises(UserError, match=message):
            bench("LeNet5", "Synthetic", **keywords)


@pytest.mark.usefixtures("quick_processes")
def test_named_networks_are_timed_on_the_images_that_were_asked_for() -> None:
    (record,) = speed("LeNet5", image_size=28, in_channels=1, num_classes=7, **SMALL)
    assert (record.data["image_size"], record.data["in_channels"]) == (28, 1)
    (record,) = speed("SimpleCNN", image_shape=(1, 20, 20), processes=2, **SMALL)
    assert (record.data["image_size"], record.measures["process_rounds"]) == (20, [1, 1])


def test_ctrl_c_stops_a_benchmark(tmp_path: Path) -> None:
    """It is not taken for the failure of the network at work, after which the next would have its turn."""
    (tmp_path / "slow.py").write_text(
        "import os, signal\n"
        "from torch import nn\n"
        "class Interrupts(nn.Module):\n"
        "    def __init__(self, num_classes=10):\n"
        "        super().__init__()\n"
        "        self.layer, self.calls = nn.Linear(3 * 32 * 32, num_classes), 0\n"
        "    def forward(self, x):\n"
        "        self.calls += 1\n"
        "        if self.calls == 8:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "        return self.layer(x.flatten(1))\n"
    )
    options = {"train_images": 400, "test_images": 20}
    settings = {"measures": "quality", "epochs": 3, "device": "cpu", "batch_size": 20}
    with pytest.raises(KeyboardInterrupt):
        bench("slow:Interrupts", "Synthetic", data_options=options, out=tmp_path / "run", **settings)
    assert not list((tmp_path / "run" / "records").glob("*.json"))


def test_bench_returns_the_records_of_a_run(tmp_path) -> None:
    settings = {"measures": ("complexity", "quality"), "epochs": 1, "device": "cpu", "batch_size": 20}
    options = {"train_images": 40, "test_images": 20}
    results = bench("LeNet5", "Synthetic", out=tmp_path / "run", data_options=options, **settings)
    (record,) = results
    assert record.status == "ok"
    assert 0 <= record.measures["test_accuracy"] <= 1
    assert "LeNet5" in str(results)
    assert (tmp_path / "run" / "plan.json").is_file()
