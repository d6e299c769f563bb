"""``cnnbench fit | validate | test | predict``: LightningCLI with short names and a folder per run."""

from __future__ import annotations

import csv
import difflib
import inspect
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import lightning as L
import torch
import wandb
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.callbacks import ProgressBar as Bar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from cnnbench import hardware
from cnnbench.bench.run import quiet_lightning
from cnnbench.bench.tracking import Mode, resolve_mode
from cnnbench.blocks import has_depthwise
from cnnbench.classifier import ImageClassifier, TrainingClock
from cnnbench.data import all_data
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError, unknown
from cnnbench.measure.complexity import complexity
from cnnbench.models import all_models
from cnnbench.network import External, parse_name

LINKED = ("num_classes", "in_channels", "image_size")
"""Arguments of the network that come from the data."""


class _Refused(SystemExit):
    """Carries the parser's message past jsonargparse, which catches every other kind of error to try something else."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class Parser(LightningArgumentParser):
    """Refuses abbreviations, and leaves its messages to `explain`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _Refused(message)


def explain(message: str) -> UserError:
    """Turns a message of jsonargparse, which may have many lines, into one line with a hint."""
    text = " ".join(message.split())
    key = re.search(r'Parser key "([^"]+)"', text)
    name = key.group(1) if key else ""
    value = re.search(r"(?:Given value|Got value): (.*)$", text)
    given = value.group(1).strip() if value else ""
    no_class = re.search(r"(?:Expected a dot import path string|[Uu]nable to import[^:]*): ([\w.:]+)", text)
    if no_class and name in ("model", "data"):
        kind, valid = _TABLES[name]()
        if name == "model" and ":" in no_class.group(1).rstrip(":"):
            text = f"in a file write class_path: External and init_args: {{name: '{no_class.group(1)}'}}"
            return UserError(f"model '{no_class.group(1)}': {text}")
        if no_class.group(1) not in valid:
            return unknown(kind, no_class.group(1), valid)
    if no_class:
        return UserError(f"{name} '{no_class.group(1)}' is no class that can be imported; write a name such as AdamW")
    option = re.search(r"(?:[Oo]ption|unrecognized arguments:) ['\"]?-*([\w.]+)", text)
    if option and ("accept" in text or "unrecognized" in text):
        return _unknown_option(option.group(1))
    file = re.search(r"File does not exist: '?([^']+)", text)
    if file:
        return UserError(f"{name or 'file'} '{file.group(1)}' does not exist")
    required = re.search(r"arguments are required: (.*)$", text)
    if required:
        missing = [part.split(".")[-1] for part in required.group(1).split(", ")]
        return UserError(f"--{' and --'.join(missing)} missing; name one, or give a --config with it")
    types = re.findall(r"<class '([\w.]+)'>", text)
    if name and given and types:
        kinds = " or ".join(dict.fromkeys("nothing" if t == "NoneType" else t for t in types))
        return UserError(f"{name} '{given}' is not valid; it must be {kinds}")
    return UserError(text if len(text) <= 400 else text[:399] + "…")


_TABLES: dict[str, Callable[[], tuple[str, Iterable[str]]]] = {
    "model": lambda: ("model", all_models()),
    "data": lambda: ("data set", all_data()),
}


def _unknown_option(option: str) -> UserError:
    near = difflib.get_close_matches(option, _options(), n=1, cutoff=0.7)
    hint = f"did you mean '{near[0]}'?" if near else "`cnnbench fit --help` lists the options"
    return UserError(f"unknown option '{option}'; {hint}")


def _options() -> list[str]:
    """Every option with its prefix, and the arguments of networks and data sets also without it."""
    names = ["config", "seed_everything", "out", "wandb", "ckpt_path", "model", "data", "trainer"]
    names += [f"trainer.{name}" for name in inspect.signature(L.Trainer.__init__).parameters if name != "self"]
    for prefix, classes in (("model", all_models().values()), ("data", all_data().values())):
        for base in {base for cls in classes for base in cls.__mro__ if base.__module__.startswith("cnnbench")}:
            for name in inspect.signature(base).parameters:
                names += [name, f"{prefix}.{name}"]
    return names


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration into the run folder and, with W&B, into the run's configuration.

    Args:
        choices: What was chosen for the user, and why; the first line of the file.
    """

    def __init__(self, *arguments: Any, choices: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.choices = choices

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_unset=False)
        (folder / "config.yaml").write_text(f"# {self.choices}\n{text}" if self.choices else text, encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                values = {"model": self.config.model.as_dict(), "data": self.config.data.as_dict()}
                logger.experiment.config.update(values, allow_val_change=True)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, drawn four times a second and not after every batch, which for small networks takes as long."""

    _shown = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        now = time.monotonic()
        if now - self._shown >= 0.25 or trainer.is_last_batch:
            self._shown = now
            super().on_train_batch_end(trainer, *arguments)


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt`` at the end of every epoch; Lightning's own ``save_last`` comes only with a new best."""

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint of the best value, which a resumed run goes on to compare with, in its own folder too."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})


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
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/accuracy",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.auto_insert_metric_name": False,
            }
        )

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.clock = TrainingClock()
        self._choose_precision(config.trainer)  # refuses what the device has not
        if self.subcommand != "fit" and config.ckpt_path is None:
            raise UserError(f"--ckpt_path missing: {self.subcommand} needs a trained network; `cnnbench fit` makes one")
        model = _values(sys.argv, "--model")
        if model and model[-1].rsplit(".", 1)[-1] != _class_name(config.model):  # LightningCLI takes the checkpoint's
            raise UserError(f"the checkpoint is of {_class_name(config.model)}, not of {model[-1]}; leave out --model")
        names = _values(sys.argv, "--model.name")
        if names and names[-1] != config.model.init_args.get("name"):
            raise UserError(
                f"the checkpoint is of {config.model.init_args.name}, not of {names[-1]}; leave out --model"
            )
        if config.wandb != "off" and config.trainer.logger not in (None, True):
            raise UserError("--wandb and --trainer.logger exclude each other; put a WandbLogger into trainer.logger")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise _user_error(error) from error

    def _choose_precision(self, trainer: Any, compiled_depthwise: bool = False) -> tuple[str, str] | None:
        """The precision and why, unless it is one that only Lightning knows."""
        asked = {None: "auto", "16": "16-mixed", 16: "16-mixed"}.get(trainer.precision, trainer.precision)
        if asked not in hardware.PRECISIONS:
            return None
        return hardware.choose_precision(asked, _lightning_device(trainer.accelerator), compiled_depthwise)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Reads the data, then claims a run folder: what is refused leaves no folder behind."""
        config = self.config[self.subcommand]
        compiled_depthwise = self.model.compile_mode is not None and has_depthwise(self.model)
        chosen = self._choose_precision(config.trainer, compiled_depthwise)
        if chosen is not None:
            kwargs["precision"] = config.trainer.precision = chosen[0]
            choices = f"precision {chosen[0]}: {chosen[1]}; memory format {str(self.model.memory_format)[6:]}"
            _say(choices)
            self.save_config_kwargs["choices"] = choices
        if self.model.steps_per_call is not None:
            for name, none in (("gradient_clip_val", (None, 0)), ("accumulate_grad_batches", (1,))):
                value = config.trainer.get(name)
                if value not in none:
                    raise UserError(f"trainer.{name} {value} does not go with steps_per_call; leave out one of them")
        self.datamodule.prepare_data()
        self.datamodule.setup()
        folder = _run_folder(config)
        _say(f"data: {self.datamodule.label}")
        if self.subcommand == "fit" and _has_no_end(config.trainer):
            kwargs["max_epochs"] = self.datamodule.full_epochs
            _say(
                f"{kwargs['max_epochs']} epochs, a full training on this data; --trainer.max_epochs sets another number"
            )
        if config.trainer.logger in (None, True):
            kwargs["logger"] = _loggers(config.wandb, folder)
        own = self.config_init[self.subcommand].trainer.callbacks or []
        callbacks = [*(own if isinstance(own, list) else [own]), self.clock]
        if config.trainer.enable_checkpointing is not False:
            callbacks.append(LastCheckpoint())
        if config.trainer.enable_progress_bar is not False and not any(isinstance(c, Bar) for c in callbacks):
            callbacks.append(ProgressBar())
        kwargs["callbacks"] = callbacks
        return super().instantiate_trainer(default_root_dir=str(folder), **kwargs)

    def before_fit(self) -> None:
        data = self.datamodule
        cost = complexity(self.model, (data.in_channels, data.image_size, data.image_size), training=False)
        name, shape = self.model.display_name, f"{data.in_channels}x{data.image_size}x{data.image_size}"
        _say(f"{name} at {shape}: {cost.params:,} parameters, {cost.macs:,} MACs per image")
        own = self.config[self.subcommand].model.init_args.get("optimizer") is not None
        rate = "" if own else f"; peak learning rate {self.model.learning_rate:g}"
        _say(f"recipe: {self.model.recipe}{rate}")

    def after_fit(self) -> None:
        saved = sorted(self.trainer.checkpoint_callbacks, key=lambda c: isinstance(c, LastCheckpoint))
        _say(f"run folder: {self.trainer.default_root_dir}")
        _say(f"{self.trainer.global_step:,} steps in {self.clock.used_s:,.1f} s of training")
        path = next((path for c in saved if (path := getattr(c, "best_model_path", ""))), "")
        if path:
            _say(f"test it:    cnnbench test --ckpt_path {os.path.relpath(path)}")

    def predict(self, model: ImageClassifier, datamodule: ImageDataModule, **options: Any) -> None:
        """Writes the class probabilities of the test images, in the data's order, into the run folder."""
        if self.trainer.world_size > 1:
            raise UserError("predict writes one file from one device; add --trainer.devices 1")
        batches = self.trainer.predict(model, datamodule=datamodule, **options) or []
        path = Path(self.trainer.default_root_dir) / "predictions.csv"
        names = datamodule.class_names
        labels = datamodule.test_dataloader().split.labels.tolist()
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "true", "predicted", *names])
            probabilities = torch.cat(cast("list[torch.Tensor]", batches)).tolist()
            for index, (label, row) in enumerate(zip(labels, probabilities, strict=True)):
                writer.writerow([index, names[label], names[row.index(max(row))], *(f"{p:.6g}" for p in row)])
        _say(f"predictions: {path}")


def _has_no_end(trainer: Any) -> bool:
    return trainer.max_epochs is None and trainer.max_steps in (None, -1) and trainer.max_time is None


@rank_zero_only
def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _user_error(error: BaseException) -> UserError:
    """The user's error among the causes of what jsonargparse or Lightning raised, else their message in a line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return explain(str(error))


def _lightning_device(accelerator: Any) -> torch.device:
    wants_gpu = accelerator in ("auto", "gpu", "cuda")
    return torch.device("cuda" if wants_gpu and torch.cuda.is_available() else "cpu")


def _class_name(config: Any) -> str:
    return str(config.class_path).rsplit(".", 1)[-1]


def _network_name(config: Any) -> str:
    """What the network is called; one from elsewhere by its own name."""
    return str(config.init_args.name) if _class_name(config) == External.__name__ else _class_name(config)


def _run_folder(config: Any) -> Path:
    """Makes a new folder ``OUT/<network>-<data>/<time>``; only the first of several processes does."""
    name = f"{_network_name(config.model)}-{_class_name(config.data)}"
    base = Path(config.out) / re.sub(r"[^\w.-]", "_", name)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = base / f"{stamp}{suffix}"
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:
            return folder
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise UserError(f"no free name for a run folder in '{base}'; choose another --out")


def _loggers(asked: Mode, folder: Path) -> list[Logger]:
    # Lightning puts checkpoints where the first logger writes: empty name and version make that the run folder.
    loggers: list[Logger] = [CSVLogger(save_dir=folder, name="", version="")]
    mode = resolve_mode(asked, folder)
    if mode != "off":
        name = f"{folder.parent.name}-{folder.name}"
        loggers.append(
            WandbLogger(
                save_dir=folder.resolve(),
                project="cnnbench",
                name=name,
                offline=mode == "offline",
                mode=mode,
                resume="allow",
            )
        )
    return loggers


def _with_run_config(arguments: list[str]) -> list[str]:
    """Adds the run's own configuration where a checkpoint is given and nothing says which network it is."""
    paths = _values(arguments, "--ckpt_path")
    if not paths or paths[-1] in ("best", "last", "hpc"):
        return arguments
    checkpoint = Path(paths[-1])
    if not checkpoint.exists():
        raise UserError(f"checkpoint '{checkpoint}' does not exist; `cnnbench fit` prints the path of the one it wrote")
    if any(a.split("=")[0] in ("--config", "-c", "--model") for a in arguments):
        return arguments
    for folder in checkpoint.resolve().parents[:2]:
        if (folder / "config.yaml").is_file():
            return [arguments[0], f"--config={folder / 'config.yaml'}", *arguments[1:]]
    raise UserError(f"no config.yaml beside checkpoint '{checkpoint}'; add --config FILE, or --model NAME --data NAME")


def _values(arguments: list[str], flag: str) -> list[str]:
    """What the arguments give for an option, as ``--flag value`` or ``--flag=value``."""
    values = [b for a, b in itertools.pairwise(arguments) if a == flag]
    return values + [a.split("=", 1)[1] for a in arguments if a.startswith(f"{flag}=")]


def _with_network_options(arguments: list[str]) -> list[str]:
    """Turns ``--model NAME(key=value)`` and ``--model torchvision:NAME`` into options that the parser has."""
    found: list[str] = []
    for argument in _split_flag("--model", arguments):
        if found[-1:] == ["--model"] and ":" in argument:
            found += [External.__name__, f"--model.name={argument}"]
        elif found[-1:] == ["--model"] and "(" in argument:
            name, options = parse_name(argument)
            found += [name, *(f"--model.{key}={_as_option(value)}" for key, value in options.items())]
        else:
            found.append(argument)
    return found


def _as_option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _split_flag(flag: str, arguments: list[str]) -> Iterator[str]:
    """The arguments with ``FLAG=VALUE`` as two."""
    for argument in arguments:
        if argument.startswith(f"{flag}="):
            yield from argument.split("=", 1)
        else:
            yield argument


def _check_names(arguments: list[str]) -> None:
    """Refuses early what would be found late or not at all: unknown names, and arguments that the data decides."""
    pairs = [*itertools.pairwise(arguments), *(a.split("=", 1) for a in arguments if "=" in a)]
    for flag, value in pairs:
        if flag in ("--model", "--data") and re.fullmatch(r"\w+", value):
            kind, valid = _TABLES[flag[2:]]()
            if value not in valid and value != External.__name__:
                raise unknown(kind, value, valid)
        if flag.removeprefix("--model.").removeprefix("init_args.") in LINKED and flag.startswith("--model."):
            raise _decided_by_data(flag)
        if flag in ("--config", "-c") and Path(value).is_file():
            network = (_read_yaml(Path(value)) or {}).get("model")
            given = (network.get("init_args") or network) if isinstance(network, dict) else {}
            for name in set(LINKED) & set(given):
                raise _decided_by_data(f"model.{name} in '{value}'")


def _decided_by_data(what: str) -> UserError:
    return UserError(f"{what} is decided by the data; set data.image_size, or take another data set")


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read config '{path}': {' '.join(str(error).split())}") from error


def main(arguments: list[str]) -> None:
    """Runs one of the four subcommands.

    Args:
        arguments: Subcommand and options, as on the command line.

    Raises:
        UserError: An option, a name, a file or a value is wrong.
    """
    quiet_lightning()
    hardware.keep_freed_memory()
    all_models(), all_data()  # names are known to the parser once their classes are imported
    arguments = _with_run_config(_with_network_options(arguments))
    _check_names(arguments)
    before = sys.argv
    sys.argv = [before[0], *arguments]  # from here LightningCLI reads them, and DDP what to start other ranks with
    try:
        _start()
    except _Refused as refusal:
        raise explain(refusal.message) from None
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise UserError(f"the checkpoint is not one of this network: {' '.join(str(error).split())[:300]}") from error
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"W&B cannot be reached ({reason}); use --wandb offline, or wandb login") from error
    finally:
        sys.argv = before


def _start() -> None:
    CLI(
        ImageClassifier,
        ImageDataModule,
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
