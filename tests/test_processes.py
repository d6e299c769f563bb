"""Several processes of one training: the images that each sees, the numbers that each draws, and a whole test."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cnnbench.record import load_records
from cnnbench.timing.processes import pooled
from cnnbench.training.random_state import of_process

CPU = torch.device("cpu")
SPY = """
import hashlib, json
import lightning as L
from pathlib import Path
from torch import nn
from cnnbench import ImageClassifier

class Dropping(ImageClassifier):
    \"\"\"A network with dropout; an example; 2026.\"\"\"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.features = nn.Sequential(nn.Conv2d(self.in_channels, 4, 3, stride=4), nn.Flatten(), nn.Dropout(0.5))
        self.classifier = nn.Linear(4 * 64, self.num_classes)

class Spy(L.Callback):
    def on_train_start(self, trainer, module):
        self.seen = {"images": [], "dropped": []}
        module.features[2].register_forward_hook(self.look)
    def look(self, layer, given, result):
        if layer.training:
            self.seen["dropped"].append(hashlib.sha256((result == 0).numpy().tobytes()).hexdigest())
    def on_train_batch_start(self, trainer, module, batch, index):
        self.seen["images"] += [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch[0]]
    def on_train_end(self, trainer, module):
        Path(f"seen-{trainer.max_epochs}-{trainer.global_rank}.json").write_text(json.dumps(self.seen))
"""
FIT = ["fit", "--model=spying.Dropping", "--trainer.callbacks=spying.Spy", "--data=Synthetic",
       "--data.train_images=100", "--data.test_images=31", "--data.batch_size=10", "--data.val_fraction=0.2",
       "--data.augment=false", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
       "--trainer.enable_progress_bar=false"]  # fmt: skip
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def _run(*arguments: str) -> str:
    command = [sys.executable, "-m", "cnnbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def _seen(epochs: int) -> list[dict[str, list[str]]]:
    return [json.loads(Path(f"seen-{epochs}-{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_share_the_images_draw_their_own_numbers_and_leave_one_run() -> None:
    Path("spying.py").write_text(SPY)
    rule = ["--model.learning_rate=0.001", "--model.lr_batch_size=5"]
    said = _run(*FIT, *TWO, *rule, "--trainer.max_epochs=2", "--out=whole")
    first, second = _seen(2)
    # They leave one run, with a checkpoint after the last step and the validation of each epoch.
    assert said.count("run folder:") == 1
    (last,) = Path("whole").rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 2 * 4
    rows = [row for row in csv.DictReader((last.parents[1] / "metrics.csv").open()) if row["val/accuracy"]]
    assert len(rows) == 2
    # Each epoch has eight batches, four in each process, and no image goes to both.
    for epoch in (slice(0, 40), slice(40, 80)):
        assert len({*first["images"][epoch], *second["images"][epoch]}) == 80
    # No mask of dropout occurs twice, in whatever process.
    assert len({*first["dropped"], *second["dropped"]}) == 16
    # The test counts every image once, though 31 images do not divide by two.
    (record,) = load_records([next(Path("whole").glob("*/*"))])
    assert np.array(record.confusion_matrix).sum() == 31
    # Two processes with batches of ten take steps of 20 images, and the rate is meant for five.
    assert record.training["peak_lr"] == pytest.approx(0.004)
    assert record.config["images_per_step"] == 20
    assert "peak learning rate 0.001 for steps of 5 images" in said
    assert said.count("steps of 20 images: learning rates times 4, peak 0.004") == 1
    # A training in two parts ends with the weights of the whole one, and drops the same units.
    _run(*FIT, *TWO, *rule, "--trainer.max_epochs=1", "--out=part", "--test=none")
    _run(*FIT, *TWO, "--trainer.max_epochs=2", "--out=rest", "--test=none", "--trust=spying",
         f"--ckpt_path={next(Path('part').rglob('last.ckpt'))}")  # fmt: skip
    for rank, (whole, rest) in enumerate(zip((first, second), _seen(2), strict=True)):
        assert rest["dropped"] == whole["dropped"][4:], rank
        assert rest["images"] == whole["images"][40:], rank


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_several_draws_by_batch_and_leaves_no_trace(rank: int) -> None:
    torch.manual_seed(3)
    undisturbed = torch.rand(4)
    torch.manual_seed(3)
    drawn = {}
    for batch in (0, 1, 0):
        with of_process(batch, rank, 2, CPU):
            numbers = torch.rand(4).tolist()
        assert drawn.setdefault(batch, numbers) == numbers
    assert drawn[0] != drawn[1]
    assert torch.equal(torch.rand(4), undisturbed)
    assert torch.initial_seed() == 3


def test_a_single_process_draws_on() -> None:
    torch.manual_seed(3)
    first, second = torch.rand(4), torch.rand(4)
    torch.manual_seed(3)
    for expected in (first, second):
        with of_process(0, 0, 1, CPU):
            assert torch.equal(torch.rand(4), expected)


def test_sizes_in_bytes_stay_whole_numbers_over_an_even_number_of_processes() -> None:
    run = {
        "latency_ms_median": 1.0,
        "file_bytes": 267_000,
        "samples_ms": {"latency": [[1.0]] * 6},
        "cold_ms": {"latency": 1.0},
        "conditions": {},
        "suspect": [],
    }
    assert json.dumps(pooled([run, {**run, "file_bytes": 267_001}])["file_bytes"]) == "267000"
