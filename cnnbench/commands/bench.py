"""The command `cnnbench bench`: measure a grid of networks and data sets, keep a record per cell, and report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from cnnbench.commands.report import show_report
from cnnbench.commands.wandb_options import WandbOptions
from cnnbench.console import out_json, out_text, show
from cnnbench.engines import ENGINES, all_precisions
from cnnbench.errors import Stopped
from cnnbench.measures import MEASURES
from cnnbench.names import DEVICES, PRECISIONS
from cnnbench.options import config_option, option
from cnnbench.trust import Trust, check_code, current, words

EXAMPLE = "--models LeNet5,ResNet18 --data CIFAR10 --budget 60s"
NOT_IN_THE_PLAN = ("config", "out", "resume", "trust", "json", "launcher", "launcher_options", "dry_run")
"""Options that change no figure of a benchmark, so that its plan does not have them."""


@dataclass(frozen=True, kw_only=True)
class Options(WandbOptions):
    """Count, time, train and test every network on every data set under an equal budget."""

    EXCLUSIVE: ClassVar = (("budget", "epochs"),)
    """Groups of options that exclude each other: one of them on the command line overrides all of them in a file."""

    config: tuple[Path, ...] | None = config_option()
    models: tuple[str, ...] | None = option(
        "Networks: names of `cnnbench list`, all, torchvision:NAME, timm:NAME or package.module:callable "
        "(default: LeNet5,VGG16,ResNet18,MobileNetV1).",
        default=None,
        metavar="A,B",
        names="models",
    )
    configs: tuple[Path, ...] | None = option(
        "Configurations of `cnnbench fit`: each is a further row, with its network and its recipe.",
        default=None,
        metavar="A,B",
    )
    data: tuple[str, ...] | None = option(
        "Data sets (default: MNIST,CIFAR10).", default=None, metavar="A,B", names="data"
    )
    measures: tuple[str, ...] | None = option(
        "Measures to take, of complexity, speed, quality (default: these three), train_quality, validation, "
        "calibration, robustness and memory.",
        default=None,
        metavar="A,B",
        valid=(*MEASURES,),
    )
    seeds: tuple[int, ...] | None = option(
        "Random seeds; each is a training of its own, as in --seeds 0,1,2 (default: 0).", default=None, metavar="0,1,2"
    )
    budget: str | None = option(
        "Training time per cell, such as 60s, 5m or 2h (default: 30s on a CPU, 120s on a GPU).",
        default=None,
        metavar="TIME",
    )
    epochs: int | None = option("Epochs of training per cell, in place of a time.", default=None, metavar="N")
    until: str | None = option(
        "Accuracy on the validation split, such as 90%, that ends a training before --budget or --epochs; the time, "
        "images and multiply-adds up to it become figures.",
        default=None,
        metavar="PERCENT",
    )
    device: str | None = option("Device: auto, cpu, cuda, cuda:N or mps (default: auto).", default=None, valid=DEVICES)
    precision: str | None = option(
        "Number format of training: auto, 32-true, bf16-mixed or 16-mixed (default: auto).",
        default=None,
        valid=PRECISIONS,
    )
    engine: tuple[str, ...] | None = option(
        "Engines that run each trained network too, in rows of their own, tested and timed in inference: torch, "
        "aot-inductor, onnxruntime, openvino, on a GPU tensorrt, or all that are installed; trained weights are then "
        "kept (default: none; networks are always trained, tested and timed in torch).",
        default=None,
        metavar="A,B",
        valid=(*ENGINES, "all"),
    )
    engine_precision: tuple[str, ...] | None = option(
        "Number formats of these rows: 32-true, bf16-true, int8 and others; formats that an engine does not have are "
        "left out (default: 32-true).",
        default=None,
        metavar="A,B",
        valid=all_precisions(),
    )
    batch_size: int | None = option(
        "Images per training step (default: 32 on a CPU, 256 on a GPU).", default=None, metavar="N"
    )
    speed_batch_size: int | None = option(
        "Images per batch when throughput is timed (default: 128 on a CPU, 1024 on a GPU).", default=None, metavar="N"
    )
    processes: int | None = option(
        "Fresh processes that share the rounds of the timing; from 4 on two runs compare by them (default: 1).",
        default=None,
        metavar="N",
    )
    eval_batch_size: int | None = option("Images per step in the test (default: 500).", default=None, metavar="N")
    learning_rate: float | None = option(
        "Peak learning rate for all networks (default: each network's own).", default=None, metavar="X"
    )
    recipe: str | None = option(
        "Training recipe for all networks: sgd or muon (default: each network's own).", default=None, metavar="NAME"
    )
    data_dir: str | None = option(
        "Folder of the data (default: CNNBENCH_DATA, else data).", default=None, metavar="DIR"
    )
    data_options: dict[str, Any] | None = option(
        "Arguments of the data sets as YAML or JSON, such as '{image_size: 28}'.", default=None, metavar="TABLE"
    )
    launcher: str = option(
        "Where cells are measured: local (this process), ray or slurm.", default="local", metavar="NAME"
    )
    launcher_options: dict[str, Any] | None = option(
        "Options of the launcher as YAML or JSON, such as '{cpus: 2, gpus: 0.5}'.", default=None, metavar="TABLE"
    )
    keep_weights: bool = option("Keep the trained weights of each cell in the run folder.", default=False)
    out: Path | None = option("Run folder (default: a new one in results/bench).", default=None, metavar="DIR")
    resume: bool = option(
        "Continue the newest run, or that of --out; with settings, start it there if there is none.", default=False
    )
    dry_run: bool = option(
        "Print the cells and what the training of each takes, estimated from a few steps, and train nothing.",
        default=False,
    )
    trust: tuple[str, ...] = option(
        "Modules whose networks a plan or YAML file may name, such as mynets.", default=(), metavar="MODULE"
    )
    json: bool = option("Print one JSON document on stdout.", default=False)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the benchmark plan that the user has set, by name."""
        others = {*NOT_IN_THE_PLAN, *(field.name for field in fields(WandbOptions))}
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}
        # Compare by identity: 0 equals False, but it is a value that the user has set.
        return {name: value for name, value in named.items() if value is not None and value is not False}


def check_file(values: Mapping[str, Any], where: str) -> None:
    """Raise UserError if a configuration names a network or a data set whose code is not trusted.

    Args:
        values: Options in the configuration file, by name.
        where: Name of the file, for the message.
    """
    # Without enforced trust, a file may not name code of the user's.
    trust = current() or Trust()
    for name in values.get("models", ()):
        check_code(name, where, trust)
    for name in values.get("data", ()):
        check_code(name, where, trust, "data set")


def run(options: Options) -> int:
    """Run or resume a benchmark and print its report; return 1 if a cell failed."""
    from cnnbench.benchmark import launchers, preview
    from cnnbench.benchmark import session as sessions

    # The user typed the names of --models and --data, and `check_file` has allowed those of a file, so all count as
    # typed.
    trust = Trust.of(options.trust, typed=(*(options.models or ()), *(options.data or ())))
    session = sessions.Session(options.settings(), options.out, options.resume, trust)
    launcher = launchers.find_launcher(options.launcher, options.launcher_options or {}, session.plan.device)
    if options.dry_run:
        rows = preview.preview(session.plan)
        if options.json:
            out_json(preview.preview_document(rows, session.plan))
        else:
            show(preview.preview_table(rows))
            out_text(f"{preview.total_words(rows)}\n{preview.notes(session.plan)}")
        return 0
    connection = options.connect()
    try:
        records = session.run(connection, launcher)
        show_report(records, session.folder, options.json)
    except Stopped as stop:
        # Without a plan file nothing has been measured yet, so there is nothing to resume.
        if (session.folder / sessions.PLAN_FILE).is_file():
            # A resumed run reads the names of foreign networks from the plan file, so the hint repeats their --trust.
            folder = shlex.quote(str(session.folder))
            stop.hint = (
                f"go on with: cnnbench bench --resume --out {folder}{words(session.plan.models, session.plan.data)}"
            )
        raise
    return 1 if any(record.status == "error" for record in records) else 0
