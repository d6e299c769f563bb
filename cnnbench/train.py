"""``cnnbench fit | validate | test | predict``: LightningCLI with short names and a folder per run."""

from __future__ import annotations

import difflib
import itertools
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from cnnbench import hardware
from cnnbench.bench.run import quiet_lightning
from cnnbench.bench.tracking import Mode, resolve_mode
from cnnbench.classifier import ImageClassifier
from cnnbench.data import all_data
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError, unknown
from cnnbench.measure.complexity import complexity
from cnnbench.models import all_models

LINKED = ("num_classes", "in_channels", "image_size")
"""Arguments of the network that come from the data."""


class Parser(LightningArgumentParser):
    """Says in one line what is wrong, and which key was probably meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(self._with_hint(" ".join(message.split())))

    def _with_hint(self, message: str) -> str:
        match = re.search(r"(?:[Kk]ey|[Oo]ption|arguments?:?)\s+[\"'`]?-*([\w.]+)", message)
        if match is None:
            return _shorten(message)
        known = {action.dest for action in _actions(self)}
        near = difflib.get_close_matches(match.group(1), known, n=1, cutoff=0.7)
        return _shorten(message) + (f"; did you mean '{near[0]}'?" if near and near[0] != match.group(1) else "")


def _actions(parser: Any) -> Iterator[Any]:
    for action in parser._actions:
        yield action
        for sub in (getattr(action, "_name_parser_map", None) or {}).values():
            yield from _actions(sub)


def _shorten(message: str, limit: int = 400) -> str:
    return message if len(message) <= limit else message[: limit - 1] + "…"


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration into the run folder and, with W&B, into the run's configuration."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / "config.yaml", skip_none=False, overwrite=True)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                values = {"model": self.config.model.as_dict(), "data": self.config.data.as_dict()}
                logger.experiment.config.update(values, allow_val_change=True)


class CLI(LightningCLI):
    """Short class names, arguments of the network linked to the data, and defaults that leave a trace of each run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for key in LINKED:
            parser.link_arguments(f"data.{key}", f"model.init_args.{key}", apply_on="instantiate")
        parser.add_argument("--out", default="results/runs", help="Folder in which each run makes a folder of its own.")
        parser.add_argument(
            "--wandb", type=Literal["off", "offline", "online"], default="off",
            help="Log to W&B too; without a key it is offline.",
        )  # fmt: skip
        parser.add_lightning_class_args(LearningRateMonitor, "lr_monitor")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/accuracy",
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
                "checkpoint.filename": "best",
                "checkpoint.auto_insert_metric_name": False,
            }
        )

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        precision = config.trainer.precision
        device = _lightning_device(config.trainer.accelerator)
        if precision is None:
            config.trainer.precision, reason = hardware.choose_precision("auto", device)
            print(f"precision {config.trainer.precision}: {reason}", file=sys.stderr)
        elif str(precision) in ("16", "16-mixed") and device.type == "cpu":
            hardware.choose_precision("16-mixed", device)
        folder = _run_folder(config)
        config.trainer.default_root_dir = str(folder)
        if self.subcommand == "fit":
            config.checkpoint.dirpath = config.checkpoint.dirpath or str(folder / "checkpoints")
        if config.trainer.logger in (None, True):
            config.trainer.logger = _loggers(config, folder)
        elif config.wandb != "off":
            raise UserError("--wandb and --trainer.logger exclude each other; put a WandbLogger into trainer.logger")

    def after_instantiate_classes(self) -> None:
        for key in LINKED:
            if getattr(self.model, key) != getattr(self.datamodule, key):
                raise UserError(
                    f"the network has {key} {getattr(self.model, key)}, but the data {getattr(self.datamodule, key)}"
                )

    def before_fit(self) -> None:
        data = self.datamodule
        cost = complexity(self.model, (data.in_channels, data.image_size, data.image_size))
        name, shape = type(self.model).__name__, f"{data.in_channels}x{data.image_size}x{data.image_size}"
        print(f"{name} at {shape}: {cost['params']:,} parameters, {cost['macs']:,} MACs per image", file=sys.stderr)
        print(f"recipe: {self.model.recipe}", file=sys.stderr)

    def after_fit(self) -> None:
        checkpoint = self.trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_path", "")
        if best:
            print(f"run folder: {self.trainer.default_root_dir}\ntest it:    cnnbench test --ckpt_path {best}")


def _lightning_device(accelerator: Any) -> torch.device:
    wants_gpu = accelerator in ("auto", "gpu", "cuda")
    return torch.device("cuda" if wants_gpu and torch.cuda.is_available() else "cpu")


def _class_name(config: Any) -> str:
    return str(config.class_path).rsplit(".", 1)[-1]


def _run_folder(config: Any) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path(config.out) / f"{_class_name(config.model)}-{_class_name(config.data)}"
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = base / f"{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise UserError(f"no free name for a run folder in '{base}'; choose another --out")


def _loggers(config: Any, folder: Path) -> list[dict[str, Any]]:
    loggers = [_with_class(CSVLogger, save_dir=str(folder), name="", version="")]
    mode: Mode = resolve_mode(config.wandb, folder)
    if mode != "off":
        loggers.append(
            _with_class(
                WandbLogger,
                save_dir=str(folder),
                project="cnnbench",
                name=f"{folder.parent.name}-{folder.name}",
                offline=mode == "offline",
                resume="allow",
            )
        )
    return loggers


def _with_class(cls: type, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": init_args}


def _with_run_config(arguments: list[str]) -> list[str]:
    """Adds the run's own configuration where a checkpoint is given and nothing says which network it is."""
    if arguments[0] == "fit" or any(a.split("=")[0] in ("--config", "-c", "--model") for a in arguments):
        return arguments
    paths = [a.split("=", 1)[1] for a in arguments if a.startswith("--ckpt_path=")]
    paths += [b for a, b in itertools.pairwise(arguments) if a == "--ckpt_path"]
    if not paths:
        return arguments
    checkpoint = Path(paths[-1])
    if not checkpoint.is_file():
        raise UserError(f"checkpoint '{checkpoint}' does not exist; `cnnbench fit` prints the path of the one it wrote")
    for folder in checkpoint.resolve().parents[:2]:
        if (folder / "config.yaml").is_file():
            stored = yaml.safe_load((folder / "config.yaml").read_text())
            data = stored["data"]
            kept = [f"--model={stored['model']['class_path']}", f"--data={data['class_path']}"]
            init = data.get("init_args") or {}
            kept += [f"--data.{k}={_yaml_value(v)}" for k, v in init.items() if k not in LINKED or k == "image_size"]
            init = stored["model"].get("init_args") or {}
            kept += [
                f"--model.{k}={_yaml_value(v)}"
                for k, v in init.items()
                if k not in (*LINKED, "optimizer", "lr_scheduler")
            ]
            return [arguments[0], *kept, *arguments[1:]]
    raise UserError(f"no config.yaml beside checkpoint '{checkpoint}'; add --config FILE, or --model NAME --data NAME")


def _yaml_value(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _check_names(arguments: list[str]) -> None:
    """Refuses an unknown short name early, with the nearest as a hint."""
    tables: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("--model", "model", all_models()),
        ("--data", "data set", all_data()),
    )
    for flag, kind, table in tables:
        given = [b for a, b in itertools.pairwise(arguments) if a == flag]
        given += [a.split("=", 1)[1] for a in arguments if a.startswith(f"{flag}=")]
        for name in given:
            if name not in table and "." not in name and "/" not in name and "{" not in name:
                raise unknown(kind, name, table)


def main(arguments: list[str]) -> None:
    """Runs one of the four subcommands.

    Args:
        arguments: Subcommand and options, as on the command line.

    Raises:
        UserError: An option, a name, a file or a value is wrong.
    """
    quiet_lightning()
    _check_names(arguments)
    arguments = _with_run_config(arguments)
    sys.argv = ["cnnbench"]  # LightningCLI warns where it finds other arguments than those that it is given
    CLI(
        ImageClassifier,
        ImageDataModule,
        args=arguments,
        parser_class=Parser,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults={"num_sanity_val_steps": 0, "enable_model_summary": False},
        parser_kwargs={"prog": "cnnbench"},
    )
