"""The front door for Python: names that are imported lazily, and the functions count, speed and bench."""

from __future__ import annotations

import subprocess
import sys

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


@pytest.mark.parametrize("module", ["hardware", "network", "counting.complexity", "training.classifier", "data.module"])
def test_every_module_can_be_the_first_one(module: str) -> None:
    """Importing a module of the package must not import all networks on the way, in which it may be needed itself."""
    *room, name = module.split(".")
    code = (
        f"import sys; from {'.'.join(['cnnbench', *room])} import {name}; print('cnnbench.models.vgg' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


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
    with pytest.raises(UserError, match="takes square images"):
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
    with pytest.raises(UserError, match="speed has no option 'round'"):
        speed("LeNet5", round=1)
    with pytest.raises(UserError, match="processes are started with names"):
        speed(net, image_shape=(3, 32, 32), processes=2)


def test_bench_returns_the_records_of_a_run(tmp_path) -> None:
    settings = {"measures": ("complexity", "quality"), "epochs": 1, "device": "cpu", "batch_size": 20}
    options = {"train_images": 40, "test_images": 20}
    results = bench("LeNet5", "Synthetic", out=tmp_path / "run", data_options=options, **settings)
    (record,) = results
    assert record.status == "ok"
    assert 0 <= record.measures["test_accuracy"] <= 1
    assert "LeNet5" in str(results)
    assert (tmp_path / "run" / "plan.json").is_file()
