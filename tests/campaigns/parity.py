"""Command lines of ``cnnbench fit`` as a user of LightningCLI types them, and what each of them has to do.

A row works, which figures in the files of the run show, or it is refused in one line. All rows run in children of one
fresh process, which only imports; see `campaigns.fuzz_fork`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import io
import json
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from campaigns.fuzz_fork import Outcome, preload, product_main, run

SMALL = (
    "--data Synthetic --data.train_images 60 --data.test_images 20 --data.batch_size 10 --trainer.accelerator cpu "
    "--trainer.precision 32-true --trainer.enable_progress_bar false"
)
"""Options of a training on 54 images in batches of 10, which is 5 steps an epoch, and on 6 images of validation."""
TRAINER = "--trainer.accelerator cpu --trainer.precision 32-true --trainer.enable_progress_bar false"
STEPS = 5
"""Steps of an epoch of a row."""
LIMIT_S = 120.0
MINE = '''
import lightning as L
import torch
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from torch import nn

from cnnbench import ImageClassifier, Synthetic


class Net(ImageClassifier):
    """Tiny; nobody; 2026."""

    def __init__(self, width: int = 4, **kwargs):
        super().__init__(**kwargs)
        self.features = nn.Sequential(nn.Conv2d(self.in_channels, width, 3), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(width, self.num_classes))


class Images(Synthetic):
    """Own images."""


class Plain(BoringModel):
    pass


class PlainData(BoringDataModule):
    pass


class Boring(BoringModel):
    def __init__(self, width: int = 2):
        super().__init__()
        self.save_hyperparameters()
        self.more = nn.Linear(width, width)


class OnImages(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 10)

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch):
        self.log("val_loss", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Tensors(L.LightningDataModule):
    def train_dataloader(self):
        images = torch.utils.data.TensorDataset(torch.zeros(32, 3, 32, 32), torch.zeros(32, dtype=torch.long))
        return torch.utils.data.DataLoader(images, batch_size=8)

    val_dataloader = train_dataloader


class Spy(L.Callback):
    def on_train_epoch_end(self, trainer, module):
        print(f"spy: epoch {trainer.current_epoch}")
'''
FILES = {
    "mine.py": MINE,
    "trainer.yaml": "max_epochs: 2\nlimit_train_batches: 3\n",
    "data.yaml": "class_path: Synthetic\ninit_args: {train_images: 60, test_images: 20, batch_size: 20}\n",
    "model.yaml": "class_path: SimpleCNN\ninit_args: {head: gap}\n",
    "base.yaml": "model: {class_path: LeNet5, init_args: {learning_rate: 0.01, warmup: 0.5}}\n"
    "trainer: {max_epochs: 3, limit_train_batches: 2}\n",
    "over.yaml": "model: {class_path: LeNet5, init_args: {learning_rate: 0.02}}\ntrainer: {max_epochs: 1}\n",
}
"""Files in the working folder of every row."""


@dataclass(frozen=True)
class Run:
    """What a row did.

    Attributes:
        outcomes: Outcome of each of its command lines.
    """

    outcomes: Sequence[Outcome]

    @property
    def folder(self) -> Path:
        return self.outcomes[-1].folder

    @property
    def stderr(self) -> str:
        return self.outcomes[-1].stderr

    @property
    def runs(self) -> list[Path]:
        """Return the run folders, the oldest first."""
        return sorted(self.folder.glob("results/runs/*/*"), key=lambda path: path.stat().st_mtime_ns)

    @property
    def newest(self) -> Path:
        return self.runs[-1]

    def column(self, name: str, path: str = "metrics.csv") -> list[float]:
        """Return the values of a column of the newest run's log, without the rows that do not have it."""
        with (self.newest / path).open() as file:
            return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


Check = Callable[[Run], str]
"""Function that returns what is wrong with a run, or an empty text."""


def steps(count: int) -> Check:
    """Return a check of the number of optimizer steps that the command says."""

    def check(done: Run) -> str:
        said = re.findall(r"^([\d,]+) steps in [\d.,]+ s of training$", done.stderr, re.MULTILINE)
        return "" if said == [f"{count:,}"] else f"{said} steps, not {count}"

    return check


def evaluations(count: int) -> Check:
    """Return a check of the number of evaluations on the validation split in the log."""

    def check(done: Run) -> str:
        found = len(done.column("val/accuracy"))
        return "" if found == count else f"{found} evaluations, not {count}"

    return check


def says(pattern: str) -> Check:
    """Return a check that stderr or stdout has a text, given as a regular expression."""

    def check(done: Run) -> str:
        text = done.stderr + done.outcomes[-1].stdout
        return "" if re.search(pattern, text) else f"it does not say {pattern!r}: {text[-300:]!r}"

    return check


def lacks(pattern: str) -> Check:
    """Return a check that neither stderr nor stdout has a text, given as a regular expression."""

    def check(done: Run) -> str:
        found = re.search(pattern, done.stderr + done.outcomes[-1].stdout)
        return f"it says {found[0]!r}" if found else ""

    return check


def only_own_lines() -> Check:
    """Return a check that every line on stderr is one of `fit` itself."""
    own = r"precision |data: |LeNet5 at |recipe: |run folder: |[\d,]+ steps in |test it: |test accuracy |record: "

    def check(done: Run) -> str:
        other = [line for line in done.stderr.splitlines() if line.strip() and not re.match(own, line)]
        return f"further lines: {other}" if other else ""

    return check


def files(pattern: str, count: int = 1) -> Check:
    """Return a check of how many files match a pattern, which starts at the working folder."""

    def check(done: Run) -> str:
        found = sorted(str(path.relative_to(done.folder)) for path in done.folder.glob(pattern))
        return "" if len(found) == count else f"{len(found)} files match {pattern}, not {count}: {found}"

    return check


def config(**values: Any) -> Check:
    """Return a check of values in the configuration of the newest run; two underscores stand for a dot."""

    def check(done: Run) -> str:
        stored = yaml.safe_load((done.newest / "config.yaml").read_text())
        for key, expected in values.items():
            value = stored
            for part in key.split("__"):
                value = value[part]
            if value != expected:
                return f"{key} is {value!r}, not {expected!r}"
        return ""

    return check


def rates(*expected: float) -> Check:
    """Return a check of the learning rates of all steps; the row logs each step."""

    def check(done: Run) -> str:
        with (done.newest / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        name = next(key for key in rows[0] if key.startswith("lr-"))
        found = [float(row[name]) for row in rows if row.get(name)]
        pairs = list(zip(found, expected, strict=False))
        same = len(found) == len(expected) and all(abs(a - b) <= 1e-6 + 1e-4 * b for a, b in pairs)
        return "" if same else f"the rates are {found}, not {list(expected)}"

    return check


def same_text(first: str, second: str) -> Check:
    """Return a check that two files are equal."""

    def check(done: Run) -> str:
        texts = [(done.folder / name).read_text() for name in (first, second)]
        return "" if texts[0] == texts[1] and texts[0] else f"{first} and {second} differ, or are empty"

    return check


@dataclass(frozen=True)
class Row:
    """A command line, or several that run one after the other, and what must come of them.

    Attributes:
        name: Name of the row, unique.
        lines: Command lines; ``$S`` stands for `SMALL` and ``$T`` for `TRAINER`.
        checks: Checks of a row that works.
        refused: Text of the line that refuses the last command; empty for a row that works.
        slow: Whether only ``make test-slow`` runs it.
        needs: Package that the row needs beside those of cnnbench.
        without: Package that must not be installed, as the row is about its absence.
    """

    name: str
    lines: tuple[str, ...]
    checks: tuple[Check, ...] = ()
    refused: str = ""
    slow: bool = False
    needs: str = ""
    without: str = ""


def _row(name: str, line: str | tuple[str, ...], *checks: Check, **facts: Any) -> Row:
    return Row(name, (line,) if isinstance(line, str) else line, checks, **facts)


FIT = "fit --model LeNet5 $S"
ONE = f"{FIT} --trainer.max_epochs 1"
EACH = "--trainer.log_every_n_steps 1"
SGD = "--model.optimizer SGD --model.optimizer.lr 0.1"
WORKS = (
    # Configurations
    _row(
        "print_config: round trip",
        (
            f"{ONE} --trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/loss {SGD} --print_config",
            "fit --config printed-1.txt --print_config",
        ),
        same_text("printed-1.txt", "printed-2.txt"),
    ),
    _row(
        "print_config=skip_null",
        f"{ONE} --print_config=skip_null",
        says("max_epochs: 1"),
        says(r"^(?s:(?!null).)*$"),
        slow=True,
    ),
    _row(
        "several --config: later wins, and they merge",
        "fit --config base.yaml --config over.yaml $S",
        steps(2),
        config(model__init_args__learning_rate=0.02, model__init_args__warmup=0.5),
    ),
    _row("--trainer FILE", f"{FIT} --trainer trainer.yaml", steps(6)),
    _row("--data FILE", f"fit --model LeNet5 --data data.yaml --trainer.max_epochs 1 {TRAINER}", steps(2), slow=True),
    _row(
        "class_path and init_args, typed",
        f"fit --model.class_path SimpleCNN --model.init_args.head gap --data.class_path Synthetic "
        f"{SMALL.removeprefix('--data Synthetic')} --trainer.max_epochs 1",
        steps(STEPS),
        config(model__init_args__head="gap"),
        slow=True,
    ),
    _row(
        "another class over a configuration",
        "fit --config base.yaml --model SimpleCNN $S",
        steps(6),
        config(model__class_path="cnnbench.SimpleCNN"),
        slow=True,
    ),
    _row(
        "--model FILE (L8)",
        "fit --model model.yaml $S --trainer.max_epochs 1",
        steps(STEPS),
        config(model__class_path="cnnbench.SimpleCNN", model__init_args__head="gap"),
    ),
    _row(
        "--model FILE with an option (L8)",
        "fit --model model.yaml --model.dropout 0.25 $S --trainer.max_steps 1",
        config(model__init_args__head="gap", model__init_args__dropout=0.25),
        slow=True,
    ),
    _row(
        "--model JSON (L8)",
        """fit --model '{"class_path": "SimpleCNN", "init_args": {"head": "gap"}}' $S
         --trainer.max_epochs 1""",
        steps(STEPS),
        config(model__init_args__head="gap"),
    ),
    _row(
        "options before the choice of their class (W5)",
        "fit --data.batch_size=20 --model.head=gap --model=SimpleCNN --data=Synthetic --data.train_images=60 "
        "--data.test_images=20 $T --trainer.max_epochs=1",
        steps(2),
        config(model__init_args__head="gap", data__init_args__batch_size=20),
    ),
    # Loggers and callbacks
    _row(
        "--trainer.logger csv",
        f"{ONE} --trainer.logger csv",
        steps(STEPS),
        files("results/runs/*/*/metrics.csv"),
        slow=True,
    ),
    _row(
        "--trainer.logger tensorboard",
        f"{ONE} --trainer.logger tensorboard",
        steps(STEPS),
        files("results/runs/*/*/metrics.csv"),
        files("results/runs/*/*/events.out.*"),
        needs="tensorboard",
    ),
    _row(
        "--trainer.logger mlflow",
        f"{ONE} --trainer.logger mlflow",
        steps(STEPS),
        files("results/runs/mlflow.db"),
        needs="mlflow",
        slow=True,
    ),
    _row(
        "--trainer.logger wandb",
        f"{ONE} --trainer.logger wandb",
        steps(STEPS),
        files("results/runs/*/*/wandb/offline-run-*"),
        says("W&B: no key"),
        slow=True,
    ),
    _row(
        "SimpleProfiler prints its table (L12)",
        f"{ONE} --trainer.profiler simple",
        says("Profiler Report"),
        says("run_training_epoch"),
    ),
    _row(
        "EarlyStopping says why it stops (L12)",
        f"{FIT} --trainer.max_epochs 9 --trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/loss "
        "--trainer.callbacks.min_delta 1e9 --trainer.callbacks.patience 1 --trainer.callbacks.verbose true",
        says("Metric val/loss improved"),
        slow=True,
    ),
    _row(
        "BatchSizeFinder says what it found (L12)",
        f"{FIT} --trainer.max_epochs 1 --trainer.callbacks BatchSizeFinder --trainer.callbacks.max_trials 1 "
        "--trainer.callbacks.init_val 4",
        says("batch size"),
    ),
    _row("a plain training says nothing of Lightning's (L12)", ONE, only_own_lines()),
    _row(
        "a summary has no metrics and the right FLOPs (L17)",
        f"{ONE} --trainer.enable_model_summary true",
        # 416,520 MACs of the published LeNet-5 on 1x28x28 padded to 32; 651,720 with three channels
        says("features"),
        lacks("onfusion"),
        says(r"[Tt]otal (estimated )?F(LOPs|lops): 1[.,]3|1[.,]3 ?M? +Total"),
    ),
    _row("fast_dev_run leaves nothing (L15)", f"{FIT} --trainer.fast_dev_run true", steps(1), files("results", 0)),
    _row(
        "callbacks+= and logger+=",
        f"{ONE} --trainer.callbacks+=mine.Spy --trainer.callbacks+=RichModelSummary --trainer.logger+=CSVLogger "
        "--trainer.logger.save_dir=a --trainer.logger+=CSVLogger --trainer.logger.save_dir=b",
        steps(STEPS),
        says("spy: epoch 0"),
        files("[ab]/lightning_logs/version_0/metrics.csv", 2),
    ),
    _row(
        "loggers as a JSON list",
        f'{ONE} --trainer.logger \'[{{"class_path": "CSVLogger", "init_args": {{"save_dir": "a"}}}}]\'',
        steps(STEPS),
        files("a/lightning_logs/version_0/metrics.csv"),
        slow=True,
    ),
    _row("no validation", f"{ONE} --data.val_fraction 0", steps(6), says("test it: .*last.ckpt"), only_own_lines()),
    _row("no logger", f"{ONE} --trainer.logger false", steps(STEPS), files("results/**/metrics.csv", 0), slow=True),
    _row(
        "EarlyStopping",
        f"{FIT} --trainer.max_epochs 9 --trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/loss "
        "--trainer.callbacks.min_delta 1e9 --trainer.callbacks.patience 1",
        steps(2 * STEPS),
        evaluations(2),
    ),
    _row(
        "ModelCheckpoint: the best three, with a slash in their names",
        f"{FIT} --trainer.max_epochs 4 --checkpoint.save_top_k 3 "
        "--checkpoint.filename '{epoch}-{val/accuracy:.2f}' --checkpoint.auto_insert_metric_name true",
        steps(4 * STEPS),
        files("results/runs/*/*/checkpoints/epoch*/*.ckpt", 3),
    ),
    _row(
        "ModelCheckpoint: every two steps",
        f"{FIT} --trainer.max_epochs 1 --checkpoint.every_n_train_steps 2 --checkpoint.save_top_k=-1 "
        "--checkpoint.monitor null --checkpoint.filename '{step}'",
        files("results/runs/*/*/checkpoints/[24].ckpt", 2),
        slow=True,
    ),
    _row(
        "EMAWeightAveraging",
        f"{FIT} --trainer.max_epochs 2 --trainer.callbacks EMAWeightAveraging --trainer.callbacks.decay 0.9",
        steps(2 * STEPS),
    ),
    _row(
        "StochasticWeightAveraging",
        f"{FIT} --trainer.max_epochs 3 --trainer.callbacks StochasticWeightAveraging --trainer.callbacks.swa_lrs 1e-4",
        steps(3 * STEPS),
        slow=True,
    ),
    _row(
        "GradientAccumulationScheduler",
        f"{FIT} --trainer.max_epochs 2 --trainer.callbacks GradientAccumulationScheduler "
        "--trainer.callbacks.scheduling '{1: 2}'",
        steps(STEPS + 3),
    ),
    # The Trainer
    _row("clipping by norm", f"{ONE} --trainer.gradient_clip_val 0.5", steps(STEPS)),
    _row(
        "clipping by value",
        f"{ONE} --trainer.gradient_clip_val 0.5 --trainer.gradient_clip_algorithm value",
        steps(STEPS),
        slow=True,
    ),
    _row("accumulate_grad_batches", f"{ONE} --trainer.accumulate_grad_batches 2", steps(3)),
    _row(
        "64-true", f"{ONE} --trainer.precision 64-true", steps(STEPS), config(trainer__precision="64-true"), slow=True
    ),
    _row("bf16-true", f"{ONE} --trainer.precision bf16-true", steps(STEPS), slow=True),
    _row("bf16-mixed", f"{ONE} --trainer.precision bf16-mixed", steps(STEPS), slow=True),
    _row("max_steps", f"{FIT} --trainer.max_steps 7", steps(7), evaluations(1)),
    _row("max_time with max_epochs", f"{ONE} --trainer.max_time 00:00:10:00", steps(STEPS), slow=True),
    _row("limit_train_batches", f"{FIT} --trainer.max_epochs 2 --trainer.limit_train_batches 2", steps(4), slow=True),
    _row("overfit_batches", f"{FIT} --trainer.max_epochs 2 --trainer.overfit_batches 2", steps(4)),
    _row("val_check_interval", f"{ONE} --trainer.val_check_interval 2", steps(STEPS), evaluations(2)),
    _row("val_check_interval, a share", f"{ONE} --trainer.val_check_interval 0.4", evaluations(2), slow=True),
    _row(
        "check_val_every_n_epoch",
        f"{FIT} --trainer.max_epochs 4 --trainer.check_val_every_n_epoch 2",
        steps(4 * STEPS),
        evaluations(2),
        slow=True,
    ),
    _row("num_sanity_val_steps", f"{ONE} --trainer.num_sanity_val_steps 1", steps(STEPS), slow=True),
    _row(
        "reload_dataloaders_every_n_epochs",
        f"{FIT} --trainer.max_epochs 2 --trainer.reload_dataloaders_every_n_epochs 1",
        steps(2 * STEPS),
        slow=True,
    ),
    _row("detect_anomaly", f"{ONE} --trainer.detect_anomaly true", steps(STEPS), slow=True),
    _row("deterministic", f"{ONE} --trainer.deterministic true", steps(STEPS), slow=True),
    _row(
        "AdvancedProfiler",
        f"{ONE} --trainer.profiler AdvancedProfiler --trainer.profiler.dirpath prof --trainer.profiler.filename p",
        files("prof/*p*", 1),
        slow=True,
    ),
    _row("seed_everything true", f"{ONE} --seed_everything true", steps(STEPS), slow=True),
    _row("seed_everything false", f"{ONE} --seed_everything false", steps(STEPS), slow=True),
    # Optimizers and schedules
    _row(
        "OneCycleLR",
        f"{FIT} --trainer.max_epochs 1 {SGD} --model.lr_scheduler OneCycleLR --model.lr_scheduler.max_lr 0.1 "
        f"--model.lr_scheduler.total_steps 10 {EACH}",
        steps(STEPS),
    ),
    _row(
        "steps_per_call",
        f"{FIT} --trainer.max_epochs 2 --model.steps_per_call 2",
        steps(2 * STEPS),
    ),
    # Classes of the user's
    _row("a network of the user's", "fit --model mine.Net --model.width 3 $S --trainer.max_epochs 1", steps(STEPS)),
    _row(
        "a data set of the user's",
        f"fit --model LeNet5 --data mine.Images {SMALL.removeprefix('--data Synthetic')} --trainer.max_epochs 1",
        steps(STEPS),
        slow=True,
    ),
    _row(
        "modules of Lightning's own kind (L10)",
        (
            "fit --model mine.Plain --data mine.PlainData $T --trainer.max_epochs 1 --trainer.limit_train_batches 3",
            "validate --model mine.Plain --data mine.PlainData $T --ckpt_path last",
            "test --model mine.Plain --data mine.PlainData $T --ckpt_path last",
            "predict --model mine.Plain --data mine.PlainData $T --ckpt_path last",
            "fit --ckpt_path last --trust mine $T --trainer.max_epochs 2",
        ),
        steps(3 * 2),
        files("results/runs/Plain-PlainData/*/predictions.pt"),
    ),
    _row(
        "a module of Lightning's own kind that saves its arguments (L10)",
        (
            "fit --model mine.Boring --model.width 5 --data mine.PlainData $T --trainer.max_steps 2",
            "test --ckpt_path last --trust mine $T",
        ),
        config(model__class_path="mine.Boring", model__init_args__width=5),
        slow=True,
    ),
    _row(
        "a module of Lightning's own kind on our data (L10)",
        "fit --model mine.OnImages $S --trainer.max_steps 2",
        steps(2),
        files("results/runs/*/*/checkpoints/last.ckpt"),
    ),
    _row(
        "our network on data of Lightning's own kind (L10)",
        "fit --model LeNet5 --model.num_classes 3 --data mine.Tensors $T --trainer.max_epochs 1",
        steps(4),
        config(model__init_args__num_classes=3),
    ),
    _row("timm", "fit --model timm:resnet10t $S --trainer.max_steps 1", steps(1), slow=True, needs="timm"),
    # Checkpoints
    _row(
        "test, validate and predict after fit",
        (
            ONE,
            "test --model LeNet5 --ckpt_path last $S",
            "validate --model LeNet5 --ckpt_path best $S",
            "predict --model LeNet5 --ckpt_path last $S",
        ),
        files("results/runs/*/*/predictions.csv"),
        says("predictions: "),
    ),
    _row(
        "going on after fit",
        (ONE, "fit --model LeNet5 --ckpt_path last $S --trainer.max_epochs 3"),
        steps(3 * STEPS),
    ),
    _row(
        "going on with averaged weights",
        (
            f"{ONE} --trainer.callbacks EMAWeightAveraging --trainer.callbacks.decay 0.9",
            "fit --model LeNet5 --ckpt_path last $S --trainer.max_epochs 2 --trainer.callbacks EMAWeightAveraging "
            "--trainer.callbacks.decay 0.9",
        ),
        steps(2 * STEPS),
        slow=True,
    ),
    _row(
        "options beside a checkpoint that is tested (X1)",
        (ONE, "test --model LeNet5 --model.test_views mirror --ckpt_path last $S"),
        config(model__init_args__test_views="mirror"),
    ),
)
REFUSED = (
    _row(
        "options beside a checkpoint that goes on (X1)",
        (ONE, "fit --model LeNet5 --model.learning_rate 0.5 --ckpt_path last $S --trainer.max_epochs 2"),
        refused="learning_rate is 0.5 (--model.learning_rate), but the training of the checkpoint has",
    ),
    _row(
        "a configuration of another network beside a checkpoint (X1)",
        (ONE, "test --config base.yaml --model SimpleCNN --ckpt_path best $S"),
        refused="there is no run with such a checkpoint in 'results/runs/SimpleCNN-Synthetic'",
    ),
    _row("best without a run (L3)", "validate --model LeNet5 --ckpt_path best $S", refused="there is no run"),
    _row("clipping with steps_per_call (L2)", f"{ONE} --model.steps_per_call 2 --trainer.gradient_clip_val 1",
         refused="does not go with steps_per_call"),
    _row("EarlyStopping without validation (L11)",
         f"{ONE} --data.val_fraction 0 --trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/loss",
         refused="EarlyStopping monitors val/loss, but nothing is validated; set data.val_fraction"),
    _row("a figure that there is not (L11)", f"{ONE} --checkpoint.monitor val/acc",
         refused="unknown figure that BestCheckpoint monitors: 'val/acc'; did you mean 'val/accuracy'?"),
    _row("overfit_batches as a small share (L11)", f"{ONE} --trainer.overfit_batches 0.1",
         refused="You requested to check 0.1 of the", slow=True),
    _row("LBFGS on weights with the channels last (L11)", f"{ONE} --model.optimizer LBFGS",
         refused="add --model.channels_last false"),
    _row("ModelPruning on weights with the channels last (L11)",
         f"{ONE} --trainer.callbacks ModelPruning --trainer.callbacks.pruning_fn l1_unstructured",
         refused="add --model.channels_last false", slow=True),
    _row("transformer-engine, which is not installed (L11)", f"{ONE} --trainer.precision transformer-engine",
         refused="install that package, or leave out the option that needs it"),
    _row("no end of a training on data of another kind (L10)",
         "fit --model mine.Plain --data mine.PlainData $T",
         refused="the training has no end; set --trainer.max_epochs", slow=True),
    _row("what our data decides, with data of the user's (L10)",
         "fit --model LeNet5 --model.num_classes 3 --data mine.Images $T --trainer.max_epochs 1",
         refused="--model.num_classes is decided by the data"),
    _row("a logger whose package is missing", f"{ONE} --trainer.logger tensorboard", without="tensorboard",
         refused="--trainer.logger tensorboard needs the package tensorboard: pip install tensorboard"),
    _row("a callback whose package is missing (L11)", f"{ONE} --trainer.callbacks DeviceStatsMonitor",
         without="psutil", refused="install that package, or leave out the option that needs it", slow=True),
    _row("default_root_dir (X3)", f"{ONE} --trainer.default_root_dir elsewhere", refused="with --out"),
    _row("data of several sizes (L11)", f"{ONE} --data.sizes '[32, 40]'", refused="data.sizes 40: LeNet5"),
)  # fmt: skip
SCHEDULES = (
    _row(
        "MultiStepLR is stepped by epochs",
        f"{FIT} --trainer.max_epochs 3 {SGD} --model.lr_scheduler MultiStepLR "
        f"--model.lr_scheduler.milestones '[1, 2]' {EACH} --trainer.limit_train_batches 2",
        # Lightning's monitor logs the rate of such a scheduler once per epoch.
        rates(0.1, 0.01, 0.001),
    ),
    _row("max_time alone", f"{FIT} --trainer.max_time 00:00:00:02 --trainer.limit_train_batches 5"),
)
ROWS = (*WORKS, *REFUSED, *SCHEDULES)


@dataclass
class Result:
    """The verdict on a row.

    Attributes:
        row: The row.
        fault: What is wrong; empty if it does what it has to do.
        seconds: Time that its command lines took.
    """

    row: Row
    fault: str
    seconds: float = 0.0


def run_rows(rows: Sequence[Row], base: Path) -> Iterator[Result]:
    """Run rows one after the other, each in a folder of its own below `base`, and yield their verdicts."""
    for number, row in enumerate(rows):
        missing = row.needs and importlib.util.find_spec(row.needs) is None
        if missing or (row.without and importlib.util.find_spec(row.without) is not None):
            continue
        folder = base / f"row-{number}"
        folder.mkdir()
        for name, text in FILES.items():
            (folder / name).write_text(text)
        began = time.monotonic()
        outcomes: list[Outcome] = []
        for index, line in enumerate(row.lines, 1):
            words = shlex.split(line.replace("$S", SMALL).replace("$T", TRAINER))
            outcomes.append(run(words, folder, base / f"output-{number}-{index}", LIMIT_S))
            (folder / f"printed-{index}.txt").write_text(outcomes[-1].stdout)
        yield Result(row, fault_of(row, outcomes), time.monotonic() - began)


def fault_of(row: Row, outcomes: Sequence[Outcome]) -> str:
    """Return what is wrong with what a row did, or an empty text."""
    last = len(outcomes) - 1
    for index, outcome in enumerate(outcomes):
        expected = 2 if row.refused and index == last else 0
        if outcome.hung or outcome.code != expected:
            return f"line {index + 1} ended with {outcome.code}, not {expected}: {outcome.stderr[-600:]}"
        if "Traceback" in outcome.stderr:
            return f"line {index + 1} printed a traceback: {outcome.stderr[-600:]}"
        empty = _empty_runs(outcome)
        if empty:
            return f"line {index + 1} left empty run folders: {empty}"
    if row.refused:
        return _fault_of_refusal(row, outcomes[-1])
    for check in row.checks:
        try:
            fault = check(Run(outcomes))
        except (OSError, KeyError, IndexError, ValueError, StopIteration) as error:
            fault = f"{type(error).__name__}: {error}"
        if fault:
            return fault
    return ""


def _empty_runs(outcome: Outcome) -> list[str]:
    """Return the run folders that have no file in them."""
    folders = [path for path in outcome.folder.glob("results/runs/*/*") if path.is_dir()]
    return [path.name for path in folders if not any(part.is_file() for part in path.rglob("*"))]


def _fault_of_refusal(row: Row, outcome: Outcome) -> str:
    lines = outcome.stderr.strip().splitlines() or [""]
    if not lines[-1].startswith("cnnbench: ") or row.refused not in lines[-1]:
        return f"the last line is {lines[-1]!r}, without {row.refused!r}"
    left = [path for path in outcome.new if "__pycache__" not in path and not path.startswith("cache")]
    return f"it left {left}" if left else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, print those that are at fault, and write the verdicts.

    Returns:
        The exit code, which is 1 if a row is at fault.
    """
    parser = argparse.ArgumentParser(description="Command lines of fit, and what each of them has to do.")
    parser.add_argument("--quick", action="store_true", help="leave out the slow rows")
    parser.add_argument("--only", default="", help="run only the rows whose name matches this regular expression")
    parser.add_argument("--out", type=Path, help="JSON file of the verdicts")
    parsed = parser.parse_args(arguments)
    rows = [row for row in ROWS if not (parsed.quick and row.slow) and re.search(parsed.only, row.name)]
    preload()
    # The first parser of a process reads the source of Lightning for the types of all options, so one is made here, and
    # the children need not do it.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        product_main()(["fit", "--model=LeNet5", "--data=Synthetic", "--print_config"])
    results = []
    with tempfile.TemporaryDirectory(prefix="cnnbench-parity-") as base:
        for result in run_rows(rows, Path(base)):
            results.append(result)
            state = "at fault" if result.fault else "as expected"
            print(f"{state:<12} {result.seconds:5.1f} s  {result.row.name}", flush=True)
            if result.fault:
                print(f"    {result.fault}\n    {' && '.join(result.row.lines)}", flush=True)
    if parsed.out is not None:
        verdicts = [{"name": r.row.name, "fault": r.fault, "seconds": r.seconds} for r in results]
        parsed.out.write_text(json.dumps(verdicts, indent=1))
    return int(any(result.fault for result in results))


if __name__ == "__main__":
    sys.exit(main())
