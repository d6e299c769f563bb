"""Shared fixtures and helpers: no test uses the internet or the machine's data, and each works in its own folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from browsers import browser  # noqa: F401
from hypothesis import settings
from PIL import Image
from warm import FewRounds, warm_context

from cnnbench.confusion import accuracy
from cnnbench.data import get_data
from cnnbench.record import Record
from cnnbench.report.pictures import Drawn

CLASSES = get_data("CIFAR10").cls.class_names
# Hypothesis tries the same random cases in every run; HYPOTHESIS_PROFILE=default makes it look for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
# Compiled networks are here without vector instructions: whether the compiler knows those of this processor takes torch
# a quarter of a minute to find out, and no test is about the speed of what is compiled.
inductor.cpp.vec_isa_ok = False


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in a fresh folder, without the user's data, cache, keys or mirrors."""
    monkeypatch.chdir(tmp_path)
    for name in ("CNNBENCH_DATA", "CNNBENCH_MIRROR", *(name for name in os.environ if name.startswith("WANDB_"))):
        monkeypatch.delenv(name, raising=False)
    for kind in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "w&b" / kind.lower()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr("sys.argv", ["cnnbench"])
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # importing airbench switches it on
    # Tests run in parallel, and threads that wait for each other's cores are slow, here and in child processes.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write reports without pictures, which take seconds to draw, in tests that look at texts and records alone."""
    monkeypatch.setattr("cnnbench.report.outputs.draw_pictures", lambda records, folder: Drawn())


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `bench` time in a fraction of a second, for tests that do not look at how exact its times are."""
    monkeypatch.setattr("cnnbench.benchmark.run.SpeedConfig", FewRounds)


@pytest.fixture
def quick_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of a timing be forks of one that has imported everything, which takes seconds in each.

    They are processes of their own all the same, and get their work and return their results as fresh ones do.
    `test_fresh_processes_share_the_rounds_and_the_time` starts fresh ones.
    """
    context = warm_context()
    monkeypatch.setattr("cnnbench.timing.processes.multiprocessing.get_context", lambda _: context)


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Return a data folder with CIFAR-10 as JPEG class folders: two training images and one test image per class."""
    for split, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "data" / "cifar10-images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), (20 * label, 100 * index, 7)).save(folder / f"{index:04d}.jpg", quality=95)
    return tmp_path / "data"


FULL_TRAINING = {
    "seconds": 30.0,
    "steps": 32,
    "images": 1024,
    "epochs": 10.24,
    "full_epochs": 10,
    "converged": True,
    "diverged": False,
    "recipe": "AdamW",
    "peak_lr": 0.003,
    "curve": [{"step": 9, "train/accuracy": 0.5, "train/loss": 1.2}, {"step": 31, "train/accuracy": 0.8}],
}
"""Training entry of a record, for a full training on 100 images; the training in `make_record` is shorter."""


def onnx_options() -> Any:
    """Return options for a session of ONNX Runtime in a process whose sessions all share one pool of threads."""
    # Not every machine that runs tests has ONNX Runtime.
    import onnxruntime

    from cnnbench.engines import onnx_runtime

    # The pool cannot be made after a session that has threads of its own.
    if not onnx_runtime._pool_size:
        onnx_runtime._share_pool(torch.get_num_threads())
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    return options


def make_record(
    model: str = "LeNet5", data: str | dict = "MNIST", synthetic: bool = False, **changes: object
) -> Record:
    """Return a record of a benchmark cell with three classes and ten test images.

    Nine of the images are classified correctly, unless `changes` has another confusion matrix.

    Args:
        model: Name of the network.
        data: Name of the data set, or the whole data entry of the record.
        synthetic: Whether synthetic images stand in for the data set.
        changes: Fields of the record that replace the default ones.
    """
    if isinstance(data, dict):  # the whole data entry
        changes["data"], data = data, str(data["name"])
    facts = {
        "name": "Synthetic" if synthetic else data,
        "label": f"Synthetic (stands in for {data})" if synthetic else data,
        "synthetic": synthetic,
        "stands_in_for": data if synthetic else None,
        "num_classes": 3,
        "class_names": ["zero", "one", "two"],
        "in_channels": 1,
        "image_size": 32,
        "train_images": 100,
        "val_images": 10,
        "test_images": 10,
        "split_seed": 0,
        "augment": False,
        "full_epochs": 10,
    }
    measures = {
        "params": 61706,
        "macs": 416520,
        "flops": 833040,
        "activations": 6518,
        "latency_ms_median": 0.25,
        "images_per_s": 26000.0,
        "train_images_per_s": 9000.0,
        "test_accuracy": 0.9,
        "test_accuracy_low": 0.5958,
        "test_accuracy_high": 0.9821,
        "samples_ms": {"latency": [0.2, 0.3]},
    }
    training = {
        "seconds": 30.0,
        "steps": 20,
        "images": 640,
        "epochs": 6.4,
        "full_epochs": 10,
        "converged": False,
        "diverged": False,
        "recipe": "AdamW",
        "peak_lr": 0.003,
        "curve": [{"step": 9, "train/accuracy": 0.5, "train/loss": 1.2}, {"step": 19, "train/accuracy": 0.8}],
    }
    config = {
        "budget_s": 30.0,
        "epochs": None,
        "device": "cpu",
        "precision": "32-true",
        "precision_reason": "as asked",
        "memory_format": "channels_last",
        "batch_size": 32,
        "speed_batch_size": 128,
        "eval_batch_size": 500,
        "macs_convention": "1 MAC = 2 FLOPs",
    }
    environment = {
        "device": "Test CPU",
        "os": "Linux",
        "cpu_cores": 2,
        "threads": 2,
        "memory_gib": 24.0,
        "load_average": 0.1,
        "python": "3.11",
        "packages": {"torch": "2.15.0"},
        "commit": None,
        "dirty": None,
    }
    values: dict[str, object] = {
        "model": model,
        "data": facts,
        "seed": 0,
        "status": "ok",
        "config": config,
        "environment": environment,
        "measures": measures,
        "skipped": {"peak_memory_bytes": "not measured on cpu"},
        "training": training,
        "confusion_matrix": [[4, 0, 0], [1, 2, 0], [0, 0, 3]],
    }
    if changes.get("confusion_matrix") and "measures" not in changes:
        values["measures"] = measures | accuracy(changes["confusion_matrix"])  # type: ignore[arg-type]
    return Record(**{**values, **changes})  # type: ignore[arg-type]
