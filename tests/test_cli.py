"""The command: one helpful line and exit code 2 for bad input, training runs that leave a trace, light commands."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import make_record
from warm import Warm

from cnnbench import catalog, hardware
from cnnbench.cli import main
from cnnbench.commands.fit_arguments import in_order, values_of
from cnnbench.commands.fit_folder import make_run_folder
from cnnbench.commands.speed import Options
from cnnbench.commands.speed_ways import ways_of
from cnnbench.data import get_data, sources
from cnnbench.errors import MissingDataError
from cnnbench.record import write_record
from cnnbench.registry import split_names
from cnnbench.text import markdown

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SMALL = ["--data.train_images=200", "--data.test_images=50", "--data.in_channels=1", "--data.batch_size=32"]
FIT = ["fit", "--model=LeNet5", "--data=Synthetic", *SMALL, "--trainer.accelerator=cpu"]
QUIET = ["--trainer.enable_progress_bar=false"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("benhc", "unknown command 'benhc'; did you mean 'bench'?"),
        ("bench --models resnet19", "unknown model 'resnet19'; did you mean 'ResNet18'?"),
        ("bench --models ResNet18(form=cifra) --data Synthetic", "unknown form 'cifra'; did you mean 'cifar'?"),
        ("bench --models VGG11(optimizer=SGD) --data Synthetic", "optimizer cannot be part of a name"),
        (
            "bench --models LeNet5(learning_rate=0.1) --learning_rate 1 --data Synthetic",
            "says learning_rate=0.1 and --learning_rate says 1.0",
        ),
        ("bench --models EfficientNetB0(drop_path=2) --data Synthetic", "drop_path 2 of EfficientNetB0"),
        ("fit --model SimpleCNN(hed=gap) --data Synthetic", "unknown option 'hed'; did you mean 'head'?"),
        ("fit --model SimpleCNN(head --data Synthetic", "cannot read model 'SimpleCNN(head'"),
        ("bench --data CIFAR100", "unknown data set 'CIFAR100'; did you mean 'CIFAR10'?"),
        ("bench --data_dir nowhere", "data folder 'nowhere' (--data_dir) does not exist"),
        ("bench --budget soon", "budget 'soon' is not a positive time"),
        ("bench --budget -5", "budget '-5' is not a positive time"),
        ("bench --budget 5 --epochs 1", "--budget and --epochs exclude each other"),
        ("bench --epochs 0", "epochs 0 must be at least 1"),
        ("bench --device tpu", "unknown device 'tpu'"),
        ("bench --device cuda:77", "device 'cuda:77' is not there"),
        ("bench --precision half", "unknown precision 'half'"),
        ("bench --measures speeed", "unknown measure 'speeed'; did you mean 'speed'?"),
        ("bench --seeds a,b", "seeds 'a' is not a whole number"),
        ("bench --models LeNet5,LeNet5", "names something twice"),
        ("bench --modles LeNet5", "unknown option '--modles'; did you mean '--models'?"),
        ("bench --config nowhere.yaml", "config 'nowhere.yaml' does not exist"),
        ("bench --config wrong.yaml", "config 'wrong.yaml': unknown key 'modles'; did you mean 'models'?"),
        ("bench --resume", "there is no run in 'results/bench' to resume"),
        ("bench --wandb maybe", "unknown wandb 'maybe'; valid: off, offline, online"),
        ("report nowhere", "records 'nowhere' do not exist"),
        ("report", "the following arguments are required: RECORDS"),
        ("fit --model resnet19 --data CIFAR10", "unknown model 'resnet19'; did you mean 'ResNet18'?"),
        ("fit --model LeNet5 --data mnist", "unknown data set 'mnist'; did you mean 'MNIST'?"),
        (
            "fit --model LeNet5 --data MNIST --data.data_dir nowhere",
            "data folder 'nowhere' (--data_dir) does not exist",
        ),
        ("fit --model LeNet5 --data Synthetic --trainer.max_epoch 1", "did you mean 'trainer.max_epochs'?"),
        ("fit --config fit.yaml", "trainer.max_epoch"),
        ("fit --config nowhere.yaml", "nowhere.yaml"),
        (
            "fit --model LeNet5 --data Synthetic --data.batch_size many",
            "batch_size 'many' is not valid; it must be int",
        ),
        ("fit --model LeNet5 --data Synthetic --trainer.precision 16-mixed", "no fast arithmetic on a CPU"),
        ("fit --model LeNet5 --data Synthetic --data.image_size 16", "too small for LeNet5"),
        ("fit --model LeNet5 --data Synthetic --model.num_classes 7", "--model.num_classes is decided by the data"),
        ("fit --config linked.yaml", "model.num_classes in 'linked.yaml' is decided by the data"),
        ("fit --config broken.yaml", "config 'broken.yaml' is not YAML that can be read: line 2"),
        ("fit --model LeNet5", "--data missing"),
        ("fit --model LeNet5 --data Synthetic --model.optimizer Adamm", "optimizer 'Adamm' is no class"),
        ("fit --model LeNet5 --data Synthetic --ckpt_path nowhere.ckpt", "checkpoint 'nowhere.ckpt' does not exist"),
        ("test --model LeNet5 --data Synthetic", "--ckpt_path missing: test needs a trained network"),
        ("predict --model LeNet5 --data Synthetic", "--ckpt_path missing: predict needs a trained network"),
        ("fit --model LeNet5 --data Synthetic --model.optimizer SGD --model.learning_rate 1", "belongs to the recipe"),
        ("bench --data_options [1]", "data_options '[1]' is not a table"),
        ('bench --data_options {"batch_size":2}', "data_options must not set batch_size"),
        (
            'bench --data Synthetic --data_options {"image_size":"a"}',
            "image_size 'a' of data_options for Synthetic is not valid",
        ),
        ('bench --data Synthetic --data_options {"image_size":16} --out gone', "too small for LeNet5"),
        (
            'bench --data Synthetic --data_options {"colour":1}',
            "unknown argument of data_options for Synthetic: 'colour'",
        ),
        ("bench --data Synthetic --data_options {image_size:[", "data_options is not YAML that can be read"),
        ("bench --seeds=-1", "seed -1 is not in 0 to 4294967295"),
        ("bench --data Synthetic --learning_rate nan", "learning_rate 'nan' is not a number"),
        ("bench --out /dev/null", "'/dev/null' is a file; name a folder with --out"),
        (
            "fit --model LeNet5 --data Synthetic --model.learning_rate=-1",
            "learning_rate -1.0 of LeNet5 must be a positive",
        ),
        (
            "count VGG16(batch_norm=maybe)",
            "batch_norm 'maybe' of model 'VGG16(batch_norm=maybe)' is not valid; expected: bool",
        ),
        ("count DenseNet121(growth_rate=1.5)", "growth_rate 1.5 of model 'DenseNet121(growth_rate=1.5)' is not valid"),
        ("count MobileNetV1(width_multiplier=nan)", "width_multiplier"),
        ("count LeNet5 LeNet5", "models name 'LeNet5' twice"),
        ("bench --config types.yaml", "config 'types.yaml': batch_size '{'a': 1}' is not a whole number"),
        ("bench --config flag.yaml", "config 'flag.yaml': resume '0' is not true or false"),
        ("test --ckpt_path nowhere.ckpt", "checkpoint 'nowhere.ckpt' does not exist"),
        (
            "fit --model LeNet5 --data Synthetic --model.steps_per_call 5 --trainer.gradient_clip_val 1",
            "trainer.gradient_clip_val 1 does not go with steps_per_call",
        ),
        (
            "fit --model LeNet5 --data Synthetic --model.steps_per_call 5 --trainer.accumulate_grad_batches 2",
            "trainer.accumulate_grad_batches 2 does not go with steps_per_call",
        ),
        (
            "fit --model LeNet5 --data Synthetic --model.schedule lineal",
            "unknown schedule 'lineal'; did you mean 'linear'? valid: linear, cosine, constant",
        ),
        (
            "fit --model LeNet5 --data Synthetic --model.optimizer SGD --model.lr_scheduler ReduceLROnPlateau",
            "lr_scheduler: multiple subclasses with name ReduceLROnPlateau. Give the full class path to avoid "
            "ambiguity: torch.optim.lr_scheduler.ReduceLROnPlateau, lightning.pytorch.cli.ReduceLROnPlateau",
        ),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    Path("wrong.yaml").write_text("modles: [LeNet5]\n")
    Path("fit.yaml").write_text("model: LeNet5\ndata: Synthetic\ntrainer: {max_epoch: 1, accelerator: cpu}\n")
    Path("types.yaml").write_text("seeds:\ndevice:\nbatch_size: {a: 1}\n")
    Path("flag.yaml").write_text("resume: 0\n")
    Path("linked.yaml").write_text("model: {class_path: LeNet5, init_args: {num_classes: 7}}\ndata: Synthetic\n")
    Path("broken.yaml").write_text("model: [LeNet5\n")
    before = {p.name for p in tmp_path.iterdir()}
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    *before_it, last = captured.err.strip().splitlines()
    assert all(line.startswith("precision ") for line in before_it), "more than one line"
    assert last.startswith("cnnbench: ")
    assert message in last
    assert len(last) < 600
    assert "Traceback" not in captured.err
    assert "usage:" not in captured.err
    assert captured.out == ""
    assert {p.name for p in tmp_path.iterdir()} == before, "something half-written is left behind"


def test_light_commands_import_nothing_heavy(tmp_path: Path) -> None:
    write_record(tmp_path / "records" / "a.json", make_record())
    code = (
        "import gc, sys; from cnnbench.cli import main; code = main(sys.argv[1:]); "
        "assert gc.isenabled() and (gc.get_freeze_count() > 1000) == bool(sys.argv[1:]); "
        "heavy = {'torch', 'lightning', 'wandb'} & set(sys.modules); "
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    for arguments in (["report", str(tmp_path), "--json"], ["list"], ["list", "--json"], ["pick"], []):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_last_of_several_values_is_that_of_the_parser() -> None:
    words = ["--ckpt_path=a", "--ckpt_path", "b", "--other", "--ckpt_path=c", "--ckpt_path"]
    assert values_of(words, "--ckpt_path") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("--data.a=1 --data=X", "--data=X --data.a=1"),
        ("--data.a 1 --out o --data X --model.b -1 --model Y", "--data X --data.a 1 --out o --model Y --model.b -1"),
        ("--model.o.lr 1 --model.o SGD --model A", "--model A --model.o SGD --model.o.lr 1"),
        ("--config c --data.a 1 --data X", "--config c --data X --data.a 1"),
        # What stands behind another choice, before a configuration, or before a file, is left in its place.
        ("--data X --data.a 1 --data Y", "--data X --data.a 1 --data Y"),
        ("--data.a 1 --config c --data X", "--data.a 1 --config c --data X"),
        ("--model.a 1 --model m.yaml", "--model.a 1 --model m.yaml"),
        ("--trainer.callbacks+=A --trainer.callbacks.x 1 --trainer.callbacks+=B", None),
    ],
)
def test_a_class_is_chosen_before_its_options(before: str, after: str | None) -> None:
    ordered = in_order(["fit", *before.split()])
    assert ordered == ["fit", *(after or before).split()]
    assert in_order(ordered) == ordered  # the process of another rank does it again


def test_short_names_in_a_config_are_known_to_a_fresh_process() -> None:
    Path("x.yaml").write_text("model: {class_path: LeNet5, init_args: {label_smoothing: 0.1}}\ndata: Synthetic\n")
    command = [sys.executable, "-m", "cnnbench", "fit", "--config=x.yaml", "--print_config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["model"]["class_path"] == "cnnbench.LeNet5"


def test_names_are_split_at_commas_outside_of_brackets() -> None:
    assert split_names("A(x=1,w=(2,3)), m.n:B ,C(w=[1,2],y='a'),") == ("A(x=1,w=(2,3))", "m.n:B", "C(w=[1,2],y='a')")


def test_list_names_every_network_and_data_set(capsys: pytest.CaptureFixture) -> None:
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"LeNet5", "MobileNetV1", "ResNet18", "SimpleCNN", "VGG16"} <= set(listed["models"])
    assert {"CIFAR10", "MNIST", "Synthetic", "folder:PATH"} < set(listed["data"])
    assert all(facts["summary"] for table in listed.values() for facts in table.values())
    vgg = listed["models"]["VGG16"]
    assert (vgg["params_32"], vgg["macs_32"], vgg["macs_224"], vgg["depth"]) == (
        14_728_266, 313_201_664, 15_470_264_320, 16,
    )  # fmt: skip
    assert (vgg["year"], vgg["arxiv"]) == (2014, "1409.1556")
    assert [p["data"] for p in vgg["published"]] == ["ImageNet", "CIFAR-10"]
    assert main(["list"]) == 0
    assert "313M" in capsys.readouterr().out


def test_list_counts_what_the_catalogue_does_not_have(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = json.loads(catalog.FILE.read_text())
    kept["modules"]["vgg"] = "another"
    kept["models"] = {name: facts for name, facts in kept["models"].items() if name != "VGG13"}
    Path("old.json").write_text(json.dumps(kept))
    monkeypatch.setattr(catalog, "FILE", Path("old.json").absolute())
    assert main(["list", "--json"]) == 0
    captured = capsys.readouterr()
    assert re.fullmatch(r"counting the networks of .*\bvgg\b.*, new or changed; `make catalog`.*\n", captured.err)
    assert json.loads(captured.out)["models"]["VGG13"]["params_224"] == 133_047_848


MINE = """
from torch import nn

def tiny(num_classes=10, in_channels=3):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

def seven():
    return tiny(7)

def table(num_classes=10):
    return nn.Conv2d(3, num_classes, 3)

class OnlyInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(tiny(), nn.BatchNorm1d(10))

    def forward(self, x):
        return [self.layers(x)] if self.training else self.layers(x)
"""


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A module of the user's in the working folder."""
    Path("mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    yield
    sys.modules.pop("mine", None)


@pytest.mark.usefixtures("mine")
def test_networks_that_do_not_say_their_classes_are_timed(capsys: pytest.CaptureFixture) -> None:
    small = ["--rounds=1", "--batch_size=2", "--train_batch_size=2", "--device=cpu", "--json"]
    assert main(["speed", "mine:seven", "--image_size=32", *small]) == 0
    assert json.loads(capsys.readouterr().out)["networks"][0]["latency_ms_median"] > 0


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mine:seven", "model 'mine:seven' gives 7 logits, but the data has 10 classes"),
        ("mine:table", "returns a tensor of (2, 10, 30, 30), not logits, (N, K)"),
        ("mine:nothing", "unknown callable of module 'mine': 'nothing'"),
        ("mine:OnlyInTraining", "returns a list, not logits, (N, K)"),
        ("torchvision:alexnet", "model 'torchvision:alexnet' cannot be trained on images of 3x32x32"),
        ("torchvision:resnet19", "unknown torchvision model 'resnet19'; did you mean 'resnet18'?"),
    ],
)
@pytest.mark.parametrize("command", ["bench --out gone --budget 1s --models", "fit --trainer.max_epochs 1 --model"])
def test_networks_that_do_not_fit_are_refused(
    command: str, model: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main([*command.split(), model, "--data", "Synthetic"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("cnnbench: ")
    assert message in error
    assert {p.name for p in Path.cwd().iterdir()} <= {"mine.py", "__pycache__", "cache"}


@pytest.mark.usefixtures("mine")
def test_fit_trains_any_network_and_test_finds_it_again(capsys: pytest.CaptureFixture) -> None:
    options = ["--data=Synthetic", *SMALL, "--trainer.accelerator=cpu", "--trainer.max_epochs=1", *QUIET]
    for model, folder in (
        ("mine:tiny", "mine_tiny-Synthetic"),
        ("torchvision:mobilenet_v3_small(dropout=0.1)", "torchvision_mobilenet_v3_small_dropout_0.1_-Synthetic"),
        ("SpeedNet(widths=(8,8,8))", "SpeedNet-Synthetic"),
        ("SimpleCNN(head=gap,dropout=0.1)", "SimpleCNN-Synthetic"),
    ):
        assert main(["fit", "--model", model, *options]) == 0
        best = next((Path("results/runs") / folder).glob("*/checkpoints/best.ckpt"))
        printed = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("test it:"))
        arguments = shlex.split(printed.partition("cnnbench ")[2])
        assert arguments[:3] == ["test", "--ckpt_path", str(best)]
        assert main([*arguments, *QUIET]) == 0
        other = ["--model", "mine:seven", "--data=Synthetic", "--trust=mine"]
        assert main(["test", "--ckpt_path", str(best), *other, *QUIET]) == 2
        assert "the checkpoint is of " in capsys.readouterr().err
    stored = yaml.safe_load((best.parent.parent / "config.yaml").read_text())
    assert stored["model"]["init_args"]["head"] == "gap"


@pytest.mark.usefixtures("mine", "quick_processes")
def test_speed_times_any_network(capsys: pytest.CaptureFixture) -> None:
    options = ["--device=cpu", "--batch_size=2", "--train_batch_size=2", "--rounds=1", "--image_size=32"]
    assert main(["speed", "LeNet5", "mine:tiny", "torchvision:googlenet", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in found["networks"]] == ["LeNet5", "mine:tiny", "torchvision:googlenet"]
    assert all(row["latency_ms_median"] > 0 < row["train_images_per_s"] for row in found["networks"])
    assert (found["config"]["batch_size"], found["config"]["rounds"]) == (2, 1)
    assert found["networks"][0]["num_classes"] == 10
    assert main(["speed", "LeNet5", *options]) == 0
    assert "Latency ms" in capsys.readouterr().out
    assert main(["speed", "LeNet5", "--batch_size", "0"]) == 2
    assert main(["speed", "torchvision:alexnet", *options]) == 1
    assert "torchvision:alexnet failed: RuntimeError" in capsys.readouterr().err
    assert main(["speed", "LeNet5", "torchvision:alexnet", *options, "--sweep", "--max_batch_size=2", "--memory"]) == 1
    printed = capsys.readouterr()
    assert "batches of LeNet5: 4 was not tried" in printed.out  # what worked is there
    assert "torchvision:alexnet failed: RuntimeError" in printed.err
    assert main(["speed", "torchvision:alexnet", *options, "--processes=2"]) == 1
    assert "torchvision:alexnet failed: RuntimeError" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_processes")
def test_speed_compares_ways_and_never_ranks_networks_across_them(capsys: pytest.CaptureFixture) -> None:
    options = ["--device=cpu", "--batch_size=2", "--train_batch_size=2", "--rounds=1"]
    ways = ["--precision=32-true,bf16-mixed", "--memory_format=channels_last,contiguous"]
    assert main(["speed", "LeNet5", "SimpleCNN", *options, *ways, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in found["networks"][:2]] == [
        "LeNet5 [32-true, channels_last, eager]", "LeNet5 [32-true, contiguous, eager]"
    ]  # fmt: skip
    assert len(found["networks"]) == 8
    pairs = [(r["first"].split(" ", 1), r["second"].split(" ", 1)) for r in found["ratios"]]
    assert len(pairs) == 4 + 2 * 6  # the networks in each way; the ways of each network
    assert all((a[0] == b[0]) != (a[1] == b[1]) for a, b in pairs)
    assert main(["speed", "LeNet5", *options, "--processes=2", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["networks"]
    assert row["process_rounds"] == [1, 1]
    assert main(["speed", "LeNet5", *options, "--sweep", "--max_batch_size=4", "--memory"]) == 0
    printed = capsys.readouterr().out
    assert "batches of LeNet5: 8 was not tried: more than 4" in printed
    assert "Resident MiB" in printed
    assert "Backward ms" in printed
    contiguous = ["--precision=32-true", "--memory_format=contiguous"]
    assert main(["speed", "LeNet5", *options, "--limits", *contiguous, "--out=p", "--json"]) == 0
    limits = json.loads(capsys.readouterr().out)["limits"]
    assert set(limits["networks"]) == {"LeNet5 [32-true, contiguous, eager]"}
    assert limits["failed"] == {}


def test_speed_writes_records_that_compare_and_report_read(capsys: pytest.CaptureFixture) -> None:
    options = ["--device=cpu", "--batch_size=2", "--train_batch_size=2", "--rounds=6", "--precision=32-true"]
    for name in ("a", "b"):
        ways = ["--memory_format=all", f"--records={name}.jsonl"]
        assert main(["speed", "LeNet5", *options, *ways]) == 0
    assert main(["speed", "LeNet5", *options, "--records=a.jsonl"]) == 2
    assert "'a.jsonl' exists and records are never overwritten" in capsys.readouterr().err
    assert main(["speed", "LeNet5", *options, "--records=a.jsonl/b.jsonl"]) == 2
    assert "records a.jsonl cannot be made: File exists; give another --records" in capsys.readouterr().err
    names = [f"LeNet5 [32-true, {order}, eager]" for order in ("channels_last", "contiguous")]
    assert main(["compare", "a.jsonl", "b.jsonl", "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert list(dict.fromkeys(c["model"] for c in changes)) == names
    assert not {"not comparable", "missing"} & {c["verdict"] for c in changes}
    assert main(["compare", "a.jsonl", "b.jsonl", "--all"]) == 0
    assert "LeNet5 [32-true," in capsys.readouterr().out  # brackets are no markup
    assert main(["report", "a.jsonl", "--out=r"]) == 0
    page = Path("r/report.md").read_text()
    assert all(markdown(name) in page for name in names)
    assert markdown("The records differ in memory_format (channels_last, contiguous)") in page


def test_all_ways_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = Options(models=("LeNet5",), precision="all", memory_format="all", mode="all")
    monkeypatch.setattr("cnnbench.hardware.cpu_has_bf16", lambda: True)
    monkeypatch.setattr("cnnbench.roofline.peaks.cpu_has_bf16", lambda: True)
    _, ways = ways_of(replace(everything, device="cpu"))
    assert {w.precision for w in ways} == {"32-true", "bf16-mixed", "bf16-true"}
    assert len(ways) == 3 * 2 * 2  # no CUDA graphs
    monkeypatch.setattr("cnnbench.hardware.choose_device", lambda _: torch.device("cuda", 0))
    _, ways = ways_of(everything)
    assert len(ways) == 2 * (6 * 3 - 1)  # of 16-mixed there are no graphs


@pytest.mark.usefixtures("quick_processes")
def test_the_growth_of_a_process_is_that_of_the_row(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, gradients and two states each of a dense layer that is nearly all of the memory."""
    layer = "lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * {0} * {0}, 1000))"
    Path("wide.py").write_text(f"from torch import nn\nat64 = {layer.format(64)}\nat32 = {layer.format(32)}\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    options = ["--device=cpu", "--precision=32-true", "--batch_size=1", "--train_batch_size=1", "--rounds=1"]
    options += ["--memory", "--json"]
    for size in (64, 32):
        assert main(["speed", f"wide:at{size}", *options, f"--image_size={size}"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["networks"]
        assert 4 <= row["resident_bytes"] / (4 * 3 * size**2 * 1000) <= 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--mode cuda-graph", "'cuda-graph' needs a CUDA device"),
        ("--mode quick", "unknown mode 'quick'"),
        ("--memory_format nchw", "unknown memory_format 'nchw'"),
        ("--precision tf32", "'tf32' needs a CUDA device"),
        ("--precision auto,32-true,32-true", "two of the ways are the same"),
        ("--sweep --mode eager,compile", "--sweep is for one way and one process"),
        ("--processes 0", "processes 0 must be at least 1"),
        ("--seed -1", "seed -1 must be at least 0"),
        ("--seed 99999999999999999999", "seed '99999999999999999999' is not a whole number of 64 bits"),
        ("--max_batch_size 4", "--max_batch_size is that of --sweep"),
        ("--limits --mode compile", "leave out --mode compile"),
        ("--memory --mode compile", "leave out --mode compile"),
        ("--memory_format ,", "memory_format ',' names nothing"),
        ("--precision ,", "precision ',' names nothing"),
        ("--mode ,", "mode ',' names nothing"),
    ],
)
def test_speed_refuses_ways_in_a_line(options: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["speed", "LeNet5", "--device=cpu", *options.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("without_pictures")
def test_report_prints_json_with_the_contracts_keys(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_record(tmp_path / "run" / "records" / "a.json", make_record())
    assert main(["report", str(tmp_path / "run"), "--json"]) == 0
    cell = json.loads(capsys.readouterr().out)["cells"][0]
    for key in ("params", "macs", "flops", "latency_ms_median", "images_per_s", "test_accuracy", "confusion_matrix"):
        assert cell[key] is not None
    assert (tmp_path / "run" / "report.html").is_file()


def _run_folder() -> Path:
    folders = list(Path("results/runs/LeNet5-Synthetic").iterdir())
    assert len(folders) == 1
    return folders[0]


def test_fit_leaves_config_metrics_and_checkpoints_and_test_reads_them(capsys: pytest.CaptureFixture) -> None:
    # No parameter of the data or the network is repeated for the test: the run's own configuration has them.
    assert main([*FIT, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=2", *QUIET]) == 0
    captured = capsys.readouterr()
    folder = _run_folder()
    assert f"cnnbench test --ckpt_path {folder}/checkpoints/best.ckpt" in captured.err
    assert re.search(r"10 steps in \d+\.\d s of training", captured.err)
    assert "LeNet5 at 1x32x32: 61,706 parameters, 416,520 MACs" in captured.err
    text = (folder / "config.yaml").read_text()
    assert re.match(r"# precision (32-true|bf16-mixed): this CPU|# precision 32-true: this cpu", text)
    config = yaml.safe_load(text)
    assert config["model"]["class_path"] == "cnnbench.LeNet5"
    assert config["data"]["init_args"]["train_images"] == 200
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    columns = {key for row in rows for key, value in row.items() if value}
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr-AdamW/pg1"} <= columns
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert main(["test", f"--ckpt_path={folder}/checkpoints/best.ckpt", "--trainer.accelerator=cpu", *QUIET]) == 0
    assert re.search(r"(?s)accuracy .*\d%.* 95 % interval .*\d% to .*\d%.*images .* 50 ", capsys.readouterr().out)
    assert main(["validate", f"--ckpt_path={folder}/checkpoints/best.ckpt", "--trainer.accelerator=cpu", *QUIET]) == 0
    assert re.search(r"(?s)validation.*accuracy .*\d%.* 95 % interval .*\d% to .*\d%", capsys.readouterr().out)


def test_predict_writes_the_probabilities_of_the_test_images(capsys: pytest.CaptureFixture) -> None:
    assert main([*FIT, "--trainer.max_epochs=1", *QUIET]) == 0
    checkpoint = _run_folder() / "checkpoints" / "best.ckpt"
    assert main(["predict", f"--ckpt_path={checkpoint}", "--out=p", "--trainer.accelerator=cpu", *QUIET]) == 0
    (path,) = Path("p").rglob("predictions.csv")
    assert f"predictions: {path}" in capsys.readouterr().err
    rows = list(csv.DictReader(path.open()))
    data = get_data("Synthetic")(in_channels=1, train_images=200, test_images=50)
    assert [r["true"] for r in rows] == [data.class_names[i] for i in data.load()[1].labels]
    for row in rows:
        values = {name: float(row[name]) for name in data.class_names}
        assert sum(values.values()) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == max(values, key=lambda name: values[name])


def test_a_killed_training_ends_with_the_weights_of_one_that_was_not() -> None:
    options = [*QUIET, "--trainer.max_epochs=12", "--data.augment=true", "--seed_everything=5"]
    assert main([*FIT, *options, "--out=whole"]) == 0
    process = Warm([*FIT, *options, "--out=killed"])
    deadline = time.monotonic() + 120
    while not list(Path("killed").rglob("last.ckpt")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (last,) = Path("killed").rglob("last.ckpt")
    reached = torch.load(last, weights_only=True)["global_step"]
    assert main(["fit", f"--ckpt_path={last}", "--out=resumed", *QUIET]) == 0  # the run's own configuration
    (whole,), (resumed,) = Path("whole").rglob("last.ckpt"), Path("resumed").rglob("last.ckpt")
    first, second = (torch.load(path, weights_only=True) for path in (whole, resumed))
    assert 0 < reached < first["global_step"] == second["global_step"] == 12 * 5  # to the end, whatever was best
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())


def test_a_loss_that_is_no_number_fails_without_a_line_of_the_log(capsys: pytest.CaptureFixture) -> None:
    rate = ["--model.optimizer=SGD", "--model.optimizer.lr=1e20", "--trainer.max_epochs=2"]
    assert main([*FIT, *rate, *QUIET]) == 2
    assert re.search(r"cnnbench: the loss is (nan|inf) at step [23];", capsys.readouterr().err)
    assert not list(Path("results").rglob("*.ckpt"))


def test_a_run_shorter_than_an_interval_of_the_log_has_its_training_figures() -> None:
    assert main([*FIT, "--trainer.max_epochs=2", *QUIET]) == 0
    (path,) = Path("results").rglob("metrics.csv")
    rows = [row for row in csv.DictReader(path.open()) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == [4, 9]
    assert all(0 <= float(row["train/accuracy"]) <= 1 for row in rows)


def test_a_resumed_run_remembers_what_was_best() -> None:
    """The stored best is better than anything to come, so the new folder has no other best."""
    assert main([*FIT, "--trainer.max_epochs=2", *QUIET]) == 0
    (last,) = Path("results").rglob("last.ckpt")
    stored = torch.load(last, weights_only=True)
    (state,) = [v for k, v in stored["callbacks"].items() if k.startswith("BestCheckpoint")]
    state["best_model_score"] = state["current_score"] = state["kth_value"] = torch.tensor(2.0)
    state["best_k_models"] = {path: torch.tensor(2.0) for path in state["best_k_models"]}
    torch.save(stored, last)
    assert main(["fit", f"--ckpt_path={last}", "--trainer.max_epochs=4", "--out=resumed", *QUIET]) == 0
    assert [p.name for p in Path("resumed").rglob("*.ckpt")] == ["last.ckpt"]
    assert torch.load(next(Path("resumed").rglob("last.ckpt")), weights_only=True)["global_step"] == 20


def test_recipes_state_every_argument_of_their_optimizer() -> None:
    """What is left out would be taken from another file that is stacked below (see the notes on LightningCLI)."""
    found = 0
    for path in sorted((Path(__file__).parent.parent / "experiments").glob("*.yaml")):
        optimizer = yaml.safe_load(path.read_text())["model"].get("init_args", {}).get("optimizer")
        if optimizer:
            module, _, name = optimizer["class_path"].rpartition(".")
            arguments = inspect.signature(getattr(importlib.import_module(module), name)).parameters
            assert set(optimizer["init_args"]) == set(arguments) - {"params", "capturable"}, path.name
            found += 1
    assert found >= 6


def test_a_checkpoint_of_another_network_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert main([*FIT, "--trainer.max_epochs=1", *QUIET]) == 0
    arguments = [f"--ckpt_path={_run_folder()}/checkpoints/best.ckpt", "--model=SimpleCNN", "--data=Synthetic", *SMALL]
    assert main(["test", *arguments, "--trainer.accelerator=cpu", *QUIET]) == 2
    assert "the checkpoint is of LeNet5, not of SimpleCNN" in capsys.readouterr().err.strip().splitlines()[-1]


def test_without_an_end_training_is_a_full_one(capsys: pytest.CaptureFixture) -> None:
    assert main([*FIT, *QUIET]) == 0
    assert "5 epochs, a full training on this data" in capsys.readouterr().err
    rows = list(csv.DictReader((_run_folder() / "metrics.csv").open()))
    assert sum(bool(row["val/accuracy"]) for row in rows) == 5
    assert main([*FIT, "--trainer.max_time=00:00:00:01", *QUIET]) == 0
    assert "a full training on this data" not in capsys.readouterr().err


def test_without_validation_the_last_checkpoint_is_named(capsys: pytest.CaptureFixture) -> None:
    assert main([*FIT, "--trainer.max_epochs=1", "--data.val_fraction=0", *QUIET]) == 0
    captured = capsys.readouterr().err
    assert f"test --ckpt_path {_run_folder()}/checkpoints/last.ckpt" in captured


def test_stored_config_repeats_the_run() -> None:
    assert main([*FIT, "--trainer.max_epochs=1", "--out=a", *QUIET]) == 0
    (first,) = Path("a/LeNet5-Synthetic").iterdir()
    assert main(["fit", f"--config={first}/config.yaml", "--out=b", *QUIET]) == 0
    (second,) = Path("b/LeNet5-Synthetic").iterdir()
    values = [
        [row["val/accuracy"] for row in csv.DictReader((f / "metrics.csv").open()) if row["val/accuracy"]]
        for f in (first, second)
    ]
    assert values[0] == values[1] != []
    assert (second / "checkpoints" / "best.ckpt").is_file()
    assert len(list((first / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("MobileNetV1(compile_mode=default)", "compiled depthwise"),
        ("MobileNetV1", "bfloat16 instructions"),
        ("SimpleCNN(compile_mode=default)", "bfloat16 instructions"),
    ],
)
def test_precision_suits_the_network(
    model: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda function, mode: function)
    end = ["--trainer.max_steps=1", "--data.train_images=20", "--data.test_images=20", "--data.batch_size=10", *QUIET]
    assert main(["fit", f"--model={model}", "--data=Synthetic", "--trainer.accelerator=cpu", *end]) == 0
    precision = "32-true" if words == "compiled depthwise" else "bf16-mixed"
    assert re.search(rf"^precision {precision}: .*{words}", capsys.readouterr().err, re.MULTILINE)
    (stored,) = Path("results/runs").glob("*/*/config.yaml")
    assert yaml.safe_load(stored.read_text())["trainer"]["precision"] == precision


def test_the_users_optimizer_is_used_as_written() -> None:
    arguments = [*FIT, "--trainer.max_epochs=1", *QUIET, "--model.optimizer=SGD", "--model.optimizer.lr=0.01"]
    assert main([*arguments, "--model.optimizer.weight_decay=0.125"]) == 0
    config = yaml.safe_load((_run_folder() / "config.yaml").read_text())
    optimizer = config["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD"
    assert (optimizer["init_args"]["lr"], optimizer["init_args"]["weight_decay"]) == (0.01, 0.125)


def test_fit_refuses_missing_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def offline(urls: list[str], target: Path, md5: str) -> None:
        raise MissingDataError("could not download; no network")

    monkeypatch.setattr(sources, "fetch", offline)
    assert main(["fit", "--model=LeNet5", "--data=MNIST", "--trainer.accelerator=cpu"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("cnnbench: no MNIST in 'data'")
    assert "CNNBENCH_DATA" in line


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda f: f.stem)
def test_experiments_parse_and_state_what_to_expect(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = file.read_text()
    head = text.split("\n\n")[0] + "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for word in ("Command:", "Duration:", "Result:"):
        assert word in head, word
    assert f"experiments/{file.name}" in head
    from cnnbench.commands import fit as train

    built = []
    monkeypatch.setattr(train.CLI, "instantiate_trainer", lambda self, **_: None)  # it reads the data
    monkeypatch.setattr(train.CLI, "_run_subcommand", lambda self, name: built.append((self.model, self.datamodule)))
    assert main(["fit", f"--config={file}", "--trainer.accelerator=cpu"]) == 0
    model, data = built[0]
    assert (model.in_channels, model.image_size) == (data.in_channels, data.image_size)


def test_wandb_is_offline_without_a_key_and_says_so(capsys: pytest.CaptureFixture) -> None:
    assert main([*FIT, "--trainer.max_epochs=1", "--wandb=online", *QUIET]) == 0
    first, last = (line for line in capsys.readouterr().err.splitlines() if line.startswith("W&B"))
    assert "no key" in first
    assert f"wandb sync {os.path.relpath(_run_folder())}/wandb/offline-run-*" in last
    assert list(_run_folder().glob("wandb/offline-run-*"))


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "0"}, False),  # the first process of the second node under torchrun
        ({"LOCAL_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_only_the_first_of_several_processes_makes_a_folder(
    variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    model = SimpleNamespace(class_path="cnnbench.LeNet5")
    config = SimpleNamespace(model=model, data=SimpleNamespace(class_path="Synthetic"), out="runs")
    folder = make_run_folder(config)
    assert folder.parent == Path("runs/LeNet5-Synthetic")
    assert folder.exists() == first
