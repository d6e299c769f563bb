"""The commands ``cnnbench fit | validate | test | predict``: LightningCLI with short names and a folder per run.

`cnnbench.commands.fit_arguments` rewrites and checks the command line before LightningCLI parses it here.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from jsonargparse.typing import register_type
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateFinder, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as Bar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_only

from cnnbench import hardware, interrupts, progress
from cnnbench.benchmark.training import TrainingHistory, examples_of
from cnnbench.blocks import has_depthwise
from cnnbench.checkpoints import CheckpointFile
from cnnbench.commands import fit_tracking
from cnnbench.commands.fit_arguments import (
    check_files,
    check_linked,
    check_names,
    in_order,
    with_logger_words,
    with_written_out_names,
)
from cnnbench.commands.fit_checkpoint import (
    check_averages,
    check_same_data,
    check_same_network,
    fetched,
    history_of,
    in_run_folder,
    normalise_alike,
    open_for,
    same_recipe,
    seed_of_training,
    stored_network,
    use_given,
    with_checkpoint_last,
    with_named_checkpoint,
    with_named_run,
    with_reference_weights,
    with_run_config,
)
from cnnbench.commands.fit_checks import check_monitors, check_sizes, check_tested
from cnnbench.commands.fit_errors import Parser, Refused, explain, known, user_error
from cnnbench.commands.fit_folder import class_name, make_run_folder, network_name, remove_if_empty, remove_run
from cnnbench.commands.fit_imports import allowed_imports, foreign_classes
from cnnbench.commands.fit_loggers import LoggerWord, logger_of
from cnnbench.commands.fit_outcome import outcome_table
from cnnbench.commands.fit_record import Recording, Tested
from cnnbench.console import is_first_process, note, out_json, show
from cnnbench.counting.complexity import complexity
from cnnbench.data import all_data
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import DivergedError, Stopped, UserError
from cnnbench.files import read_text, reason, replacing, write_text
from cnnbench.models import all_models
from cnnbench.names import PRECISIONS
from cnnbench.record import Record
from cnnbench.report.tracking import Connection
from cnnbench.text import to_csv
from cnnbench.training.callbacks import BestCheckpoint, LastCheckpoint, ProgressBar, SaveConfig, Stage
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.clock import TrainingClock
from cnnbench.training.settings import LINKED
from cnnbench.training.trainer import quiet_lightning
from cnnbench.training.words import callback_words, must_stay, trainer_settings
from cnnbench.trust import OPTION, foreign_module


class CLI(LightningCLI):
    """LightningCLI with short class names, network sizes linked to the data, and logs and checkpoints for every run."""

    logger: fit_tracking.FitLogger | None = None
    config_before: str | None = None
    """Configuration file of a run that goes on, as it was before this command."""
    """Logger of W&B, if the command logs to it."""

    def __init__(self, chosen: str, files: Mapping[str, Path], **options: Any) -> None:
        """Run the command line.

        Args:
            chosen: Subcommand of the command line.
            files: File of a checkpoint by its name, which may be an address.
            options: Arguments of LightningCLI.
        """
        self.chosen = chosen
        self.files = files
        super().__init__(L.LightningModule, L.LightningDataModule, **options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the chosen subcommand alone, with the arguments of its method of the Trainer to leave out.

        A parser of the others, which are never used, would take most of the time of parsing.
        """
        return {self.chosen: super().subcommands()[self.chosen]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # The values are read from the data set once it is built, and the network is built after it.
        for key in LINKED:
            parser.link_arguments(f"data.{key}", f"model.init_args.{key}", apply_on="instantiate")
        parser.add_argument("--out", default="results/runs", help="Folder in which each run makes a folder of its own.")
        parser.add_argument("--run", type=str | None, default=None, help="Name of the run folder of fit in --out.")
        parser.add_argument(
            "--resume",
            type=Literal["auto", "never"] | None,
            default=None,
            help="With auto, fit goes on with the run that --run names, if it has begun, and else starts it.",
        )
        fit_tracking.add_options(parser)
        parser.add_argument(
            "--logger",
            type=LoggerWord,
            default="csv",
            help="Logger besides metrics.csv; --trainer.logger NAME sets it.",
        )
        parser.add_argument(
            "--test",
            type=Tested,
            default="last",
            help="Weights that fit tests at its end: those of the last step, those of the best validation, or none.",
        )
        parser.add_argument("--json", action="store_true", help="Print the record of test as one JSON document.")
        parser.add_argument(
            OPTION,
            default="",
            help="Modules whose classes a checkpoint or a configuration may name, such as mynets; only typed here.",
        )
        # These are not registered as callbacks of the parser, because Lightning would then add them even if the options
        # of the Trainer do not allow them. `_callbacks` adds them instead.
        parser.add_class_arguments(LearningRateMonitor, "lr_monitor")
        parser.add_class_arguments(BestCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/accuracy",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.auto_insert_metric_name": False,
            }
        )

    def _parse_ckpt_path(self) -> None:
        """Put the network of the checkpoint into the configuration; what the user set beside it is used or refused."""
        config = self.config[self.config.subcommand]
        self.of_checkpoint: list[L.Callback] = []  # callbacks that a checkpoint asks for
        self.going_on: dict[str, Any] | None = None  # content of the checkpoint of a training that goes on
        self.trained_on: Mapping[str, Any] = {}  # arguments of the data of a checkpoint that is tested
        self.steps_before = 0  # optimizer steps before the checkpoint
        if not config.ckpt_path:
            return
        path = str(config.ckpt_path)
        stored = open_for(self.config.subcommand, path, self.files.get(path))
        self.steps_before = fit_tracking.steps_before(stored)
        if self.config.subcommand == "fit":
            self.of_checkpoint.append(same_recipe(stored))
            seed = seed_of_training(stored, sys.argv)
            if seed is not None:
                config.seed_everything = seed
            # The tensors would fill the memory.
            kept = ("callbacks", "datamodule_hyper_parameters")
            self.going_on = {key: stored[key] for key in kept if key in stored}
        else:
            self.trained_on = stored.get("datamodule_hyper_parameters") or {}
        network, configured = stored_network(stored, config.model), config.model.clone()
        check_same_network(network, sys.argv)
        if network["dict_kwargs"]:
            self.config = self.parser.parse_object({self.config.subcommand: {"model": network}}, self.config)
            use_given(self.config.subcommand, self.config[self.config.subcommand].model, configured, sys.argv)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.clock, self.stage = TrainingClock(), Stage()
        before = None if self.going_on is None else history_of(self.going_on)
        self.history = TrainingHistory(self.clock, before=before)
        self._choose_precision(config.trainer)  # raises early if the device does not support the precision
        if config.json and self.subcommand != "test":
            raise UserError(f"--json prints the record of test, and {self.subcommand} prints none; leave it out")
        if self.subcommand != "fit" and config.ckpt_path is None:
            raise UserError(f"--ckpt_path missing: {self.subcommand} needs a trained network; `cnnbench fit` makes one")
        if class_name(config.model) in (ImageClassifier.__name__, L.LightningModule.__name__):
            raise UserError("model.class_path is missing: name a network of `cnnbench list`, such as LeNet5")
        if config.wandb != "off" and config.trainer.logger not in (None, True):
            raise UserError("--wandb and --trainer.logger exclude each other; put a WandbLogger into trainer.logger")
        if config.trainer.default_root_dir is not None:
            raise UserError(
                f"trainer.default_root_dir {config.trainer.default_root_dir}: every run has a folder of its own here; "
                "name the folder of the runs with --out"
            )
        # These log nothing, so there is nothing to upload.
        silent = config.trainer.fast_dev_run or config.trainer.barebones or self.subcommand == "predict"
        self.connection = Connection("off") if silent else fit_tracking.connection_of(config)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise user_error(error) from error

    def _choose_precision(self, trainer: Any, compiled_depthwise: bool = False) -> tuple[str, str] | None:
        """Return the precision and the reason for it, or None for a precision that only Lightning knows."""
        # An option that is not set means auto here, and 16 is Lightning's alias of 16-mixed.
        asked = {None: "auto", "16": "16-mixed", 16: "16-mixed"}.get(trainer.precision, trainer.precision)
        if asked not in PRECISIONS:
            return None
        return hardware.choose_precision(asked, _lightning_device(trainer.accelerator), compiled_depthwise)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Return the Trainer; the data is read before the run folder is made, so bad data leaves no folder behind."""
        config = self.config[self.subcommand]
        if isinstance(self.model, ImageClassifier):
            self._prepare_network(self.model, kwargs)
        if self.going_on is not None:
            check_same_data(self.going_on, self.datamodule)
        normalise_alike(self.trained_on, self.datamodule)
        if isinstance(self.datamodule, ImageDataModule):
            check_linked(sys.argv)
            self.datamodule.prepare_data()
            self.datamodule.setup()
        else:
            self.save_config_kwargs["linked"] = False
        if not (isinstance(self.model, ImageClassifier) and isinstance(self.datamodule, ImageDataModule)):
            self._check_other_kind(config)
        if self.subcommand == "fit":
            check_sizes(self.model, self.datamodule)
            check_tested(config, self.datamodule)
        folder = self.folder = make_run_folder(config)
        path = folder / "config.yaml"
        if self.subcommand == "fit" and path.is_file() and is_first_process():
            self.config_before = read_text(path, "configuration")
        try:
            return self._trainer_in(folder, kwargs)
        except BaseException:
            # Not even a signal may leave an empty run folder behind, which would look like a run.
            remove_run(folder)
            raise

    def _check_other_kind(self, config: Any) -> None:
        """Raise UserError for an option that only networks and data of this package have an effect for."""
        if config.json:
            raise UserError("--json prints a record, which networks and data of other kinds do not have; leave it out")
        if config.test == "best":
            raise UserError(
                "--test best tests networks and data of cnnbench, and one of these is of another kind; leave it out, "
                "and test with `cnnbench test`"
            )

    def _prepare_network(self, model: ImageClassifier, kwargs: dict[str, Any]) -> None:
        """Choose the precision of a network of this package's kind, and check options that do not go with it.

        Raises:
            UserError: The device does not support the precision, or an option does not go with ``steps_per_call``.
        """
        config = self.config[self.subcommand]
        if self.subcommand == "fit" and config.seed_everything is not False:
            model.training_seed = config.seed_everything
        compiled_depthwise = model.compile_mode is not None and has_depthwise(model)
        chosen = self._choose_precision(config.trainer, compiled_depthwise)
        if chosen is not None:
            kwargs["precision"] = config.trainer.precision = chosen[0]
            memory_format = str(model.memory_format).removeprefix("torch.")
            choices = f"precision {chosen[0]}: {chosen[1]}; memory format {memory_format}"
            _say(choices)
            self.save_config_kwargs["choices"] = choices
        # Lightning's loop clips and accumulates gradients, and with `steps_per_call` the steps are taken outside it.
        if model.steps_per_call is not None:
            for name, none in (("gradient_clip_val", (None, 0)), ("accumulate_grad_batches", (1,))):
                value = config.trainer.get(name)
                if value not in none:
                    raise UserError(f"trainer.{name} {value} does not go with steps_per_call; leave out one of them")

    def _trainer_in(self, folder: Path, kwargs: dict[str, Any]) -> L.Trainer:
        """Return the Trainer for a run folder, with the loggers, callbacks and plugins that every run has."""
        config = self.config[self.subcommand]
        if isinstance(self.datamodule, ImageDataModule):
            _say(f"data: {self.datamodule.label}")
        if self.subcommand == "fit" and _has_no_end(config.trainer):
            kwargs["max_epochs"] = self._full_epochs()
        if config.trainer.logger in (None, True) and not config.trainer.barebones:
            # Lightning stores checkpoints where the first logger writes. An empty name and version make that the run
            # folder.
            csv = CSVLogger(save_dir=folder, name="", version="")
            # A trial run logs nothing.
            words = [] if config.trainer.fast_dev_run else logger_of(config.logger, folder)
            kwargs["logger"] = [csv, *self._tracked(folder), *words]
        if self.subcommand == "fit" and config.trainer.logger is not False and not config.trainer.barebones:
            own = _as_list(self.config_init[self.subcommand].trainer.logger)
            kwargs["logger"] = [*kwargs.get("logger", own), self.history.curve]
        kwargs["callbacks"] = self._callbacks(config.trainer, folder)
        if self.subcommand == "fit":
            check_monitors(kwargs["callbacks"], self.model, self.datamodule, config.trainer.limit_val_batches != 0)
        plugins = _as_list(self.config_init[self.subcommand].trainer.plugins)
        # Under SLURM, Lightning would answer SIGUSR1 itself, with a checkpoint within a step; see `interrupts`.
        if SLURMEnvironment.detect() and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
            plugins = [*plugins, SLURMEnvironment(auto_requeue=False)]
            kwargs["plugins"] = plugins
        # A plugin of the user's may store checkpoints in a way of its own.
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, CheckpointFile()]
        return super().instantiate_trainer(default_root_dir=str(folder), **kwargs)

    def _tracked(self, folder: Path) -> list[Logger]:
        """Return the logger of W&B, if the command logs to it."""
        if self.connection.mode == "off":
            return []
        checkpoint = self.config[self.subcommand].ckpt_path
        self.logger = fit_tracking.FitLogger(
            self.connection, folder, str(self.subcommand), checkpoint, self.steps_before
        )
        return [self.logger]

    def _full_epochs(self) -> int:
        """Return the number of epochs of a full training on the data.

        Raises:
            UserError: The data set is not of this package's kind, so it does not say.
        """
        if not isinstance(self.datamodule, ImageDataModule):
            raise UserError("the training has no end; set --trainer.max_epochs or --trainer.max_steps")
        epochs = self.datamodule.full_epochs
        _say(f"{epochs} epochs, a full training on this data; --trainer.max_epochs sets another number")
        return epochs

    def _callbacks(self, trainer: Any, folder: Path) -> list[L.Callback]:
        """Return the user's callbacks, and those callbacks of every run that the options of the Trainer allow."""
        config = self.config_init[self.subcommand]
        own = _as_list(config.trainer.callbacks)
        callbacks = [*own, self.clock, self.history, self.stage, *self.of_checkpoint]
        self._tell_history(own)
        if self.going_on is not None:
            check_averages(self.going_on, own)
        if trainer.barebones:
            return callbacks
        if trainer.logger is not False and trainer.fast_dev_run is False:
            callbacks.append(config.lr_monitor)
        if trainer.enable_checkpointing is not False:
            # A module of another kind need not log the figure that is monitored unless the user names one.
            if (
                isinstance(self.model, ImageClassifier)
                or self.config[self.subcommand].checkpoint.monitor != "val/accuracy"
            ):
                callbacks.append(config.checkpoint)
            callbacks.append(LastCheckpoint())
            self.stage.keep = folder / "checkpoints" / "last.ckpt"
        for callback in callbacks:
            # A logger of the user's would otherwise decide where they are, and a run keeps them beside config.yaml.
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder / "checkpoints")
        if trainer.enable_progress_bar is not False and not any(isinstance(c, Bar) for c in callbacks):
            callbacks.append(ProgressBar())
        return callbacks

    def _tell_history(self, callbacks: Sequence[L.Callback]) -> None:
        """Tell the history of the training which callbacks of the user change it, in words."""
        config = self.config[self.subcommand]
        # A module of another kind may have no arguments.
        self.history.learning_rate = (config.model.get("init_args") or {}).get("learning_rate")
        settings = _as_list(config.trainer.callbacks)
        for callback, setting in zip(callbacks, settings, strict=True):
            arguments = {**(setting.get("init_args") or {}), **(setting.get("dict_kwargs") or {})}
            words = callback_words(callback, arguments)
            if words is not None:
                self.history.callbacks.append(words)
                if must_stay(callback):
                    self.history.lasting.append(words)

    def before_fit(self) -> None:
        """Print the size and the cost of the network, and the training recipe."""
        model = self.model
        if not isinstance(model, ImageClassifier):
            return
        name, shape = model.display_name, (model.in_channels, model.image_size, model.image_size)
        try:
            cost = complexity(model, shape, training=False)
        except UserError as error:  # such as control flow that depends on values; the network can still be trained
            _say(f"{name} is not counted: {error}")
        else:
            size = "x".join(map(str, shape))
            _say(f"{name} at {size}: {cost.params:,} parameters, {cost.macs:,} MACs per image")
        self._say_few_steps()
        self.history.settings = trainer_settings(self.trainer)
        words = self.history.recipe(model)
        callbacks = cast("list[L.Callback]", self.trainer.callbacks)  # type: ignore[attr-defined]
        searches = any(isinstance(callback, LearningRateFinder) for callback in callbacks)
        # An optimizer of the user's has a learning rate of its own, and a search has not found one yet.
        if not searches and self.config[self.subcommand].model.init_args.get("optimizer") is None:
            words += f"; peak learning rate {model.learning_rate:g}"
            if model.lr_batch_size is not None:
                words += f" for steps of {model.lr_batch_size} images"
        _say(f"recipe: {words}")

    def _say_few_steps(self) -> None:
        """Print a line if the default batch size leaves few training steps in an epoch, as with few images."""
        data = self.datamodule
        if not isinstance(data, ImageDataModule) or data.batch_size is not None:
            return
        images = data.describe()["train_images"]
        steps, better = images // data.train_batch_size(images), data.smaller_batch()
        if better is not None:
            count = "1 step" if steps == 1 else f"{steps} steps"
            _say(
                f"{images:,} training images make {count} of {data.train_batch_size(images)} in an epoch; "
                f"--data.batch_size {better} makes {images // better}"
            )

    def fit(self, model: L.LightningModule, **options: Any) -> None:
        """Train; a signal stops the training after a complete step, and ``last.ckpt`` keeps its state."""
        # Several processes would not all stop after the same step, and those that go on would wait for the others.
        # With several processes a signal therefore stops each of them at once.
        defer = interrupts.deferred() if self.trainer.world_size == 1 else contextlib.nullcontext()
        try:
            with defer:
                self._train(model, options)
        except Stopped as stop:
            if not self.stage.started:
                remove_run(self.folder)
            last = self.stage.keep
            if last is not None and last.exists():
                stop.hint = f"go on with: {self._command('fit', last)}"
                if self.config[self.subcommand].get("run"):
                    stop.hint = "go on with the same command, with --resume auto"
            raise
        except DivergedError:
            # A training that diverged is a result too, as in `bench`: its network is tested, and a record says so.
            self.history.curve.diverged = True
            try:
                self._record(last=None)  # the last checkpoint may be of an earlier step
            except UserError as error:  # what the command ends with is that the training diverged
                _say(f"no record: {error}")
            raise

    def _train(self, model: L.LightningModule, options: Mapping[str, Any]) -> None:
        try:
            self._restoring(self.trainer.fit, model, **options)
        except SystemExit:
            # After a SIGTERM, Lightning ends the program at the end of an epoch, with the exit code of success.
            interrupts.check()
            raise

    def validate(self, model: L.LightningModule, **options: Any) -> None:
        # Lightning's table has figures of sixteen digits.
        options["verbose"] = False
        self._print_outcome("val", self._restoring(self.trainer.validate, model, **options))

    def test(self, model: L.LightningModule, **options: Any) -> None:
        """Test a checkpoint, and write the record of the test."""
        config, trainer = self.config[self.subcommand], self.trainer
        # Lightning's table has figures of sixteen digits.
        options["verbose"] = False
        outcome = self._restoring(trainer.test, model, **options)
        record = None
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            record = Recording.of(trainer, model, self.datamodule, _say).of_test(Path(config.ckpt_path))
        self._show(record)
        if not config.json:
            self._print_outcome("test", outcome)
        if config.json:
            if record is None:
                raise UserError("--json prints the record of the test, and there is none")
            out_json(asdict(record))

    def _print_outcome(self, split: Literal["val", "test"], outcome: Sequence[Mapping[str, float]]) -> None:
        """Print the table of a validation or a test, in the first of several processes."""
        if not self.trainer.is_global_zero:
            return
        figures = {name: value for loader in outcome or () for name, value in loader.items()}
        counts = self.model.confusion_counts(split) if isinstance(self.model, ImageClassifier) else None
        name = network_name(self.config[self.subcommand].model)
        show(outcome_table(f"{name}, {getattr(self.datamodule, 'label', 'data')}", split, figures, counts))

    def _show(self, record: Record | None) -> None:
        """Log a record to W&B, if the command logs to it."""
        if record is None or self.logger is None:
            return
        self.logger.log_record(record)
        # With several processes, each knows the answers to its own images only.
        if record.confusion_matrix is not None and self.trainer.world_size == 1:
            self.logger.log_examples(
                examples_of(cast(ImageClassifier, self.model), cast(ImageDataModule, self.datamodule))
            )

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand; then end the run of W&B, and remove the run folder if nothing was written into it."""
        failed = True
        try:
            super()._run_subcommand(subcommand)
            failed = False
        finally:
            # A command that was refused, or had nothing to train, leaves the configuration of its run as it was.
            if self.config_before is not None and not self._has_trained():
                write_text(self.folder / "config.yaml", self.config_before)
            if self.logger is not None:
                self.logger.close(failed)
            remove_if_empty(self.folder)

    def _restoring(self, run: Callable[..., Any], model: L.LightningModule, **options: Any) -> Any:
        """Run a method of the Trainer; if it starts from a checkpoint, an early error is reported as the checkpoint's.

        An early error is one that occurs before the first batch.

        Args:
            run: Method of the Trainer.
            model: Network.
            options: Further arguments of the method.

        Raises:
            UserError: The checkpoint cannot be used.
        """
        path = options.get("ckpt_path")
        if path is not None:
            options["ckpt_path"] = str(self.files.get(str(path), path))
        try:
            with progress.doing(self.stage.words):
                return run(model, **options)
        except Exception as error:
            # Of options that do not go together nothing is left but a configuration, unless a checkpoint was saved.
            if self.stage.started and known(error) is not None and not any(self.folder.rglob("*.ckpt")):
                remove_run(self.folder)
            if self.stage.started:
                raise
            remove_run(self.folder)  # nothing has been computed yet
            if isinstance(error, UserError) or path is None or known(error) is not None:
                raise
            epochs = re.search(r"current_epoch=(\d+), but you have set Trainer\(max_epochs=(\d+)\)", str(error))
            if epochs:
                done = int(epochs[1]) + 1
                raise UserError(
                    f"trainer.max_epochs {epochs[2]} is less than the {done} epochs of the training that goes on; give "
                    f"{done} or more"
                ) from error
            text = f"{type(error).__name__}: {reason(error)}"
            raise UserError(f"checkpoint '{path}' cannot be used for {self.subcommand}: {text}") from error

    def _command(self, subcommand: str, checkpoint: Path) -> str:
        """Return a command for a checkpoint that can be pasted into a shell, with the ``--trust`` that it needs."""
        config = self.config[self.subcommand]
        modules = [*foreign_classes(config.as_dict()), foreign_module(network_name(config.model))]
        named = ",".join(dict.fromkeys(module for module in modules if module))
        foreign = f" {OPTION} {named}" if named else ""
        # The configuration of its run is found in a folder above a checkpoint; elsewhere it has to be named.
        where = ""
        if not in_run_folder(checkpoint):
            where = f" --config {shlex.quote(os.path.relpath(self.folder / 'config.yaml'))}"
        return f"cnnbench {subcommand} --ckpt_path {shlex.quote(os.path.relpath(checkpoint))}{where}{foreign}"

    def after_fit(self) -> None:
        """Print the run folder, the steps, the training time, and the command that tests the checkpoint."""
        trained = self._has_trained()
        named = self.config[self.subcommand].get("run")
        if not trained and not named and self.logger is None:
            remove_run(self.folder)  # it has nothing but a configuration
        if self.folder.exists() and any(self.folder.iterdir()):  # a trial run leaves nothing behind
            _say(f"run folder: {self.trainer.default_root_dir}")
        if not trained:
            _say("nothing was left to train: the checkpoint is of a finished training")
        else:
            _say(f"{self.trainer.global_step:,} steps in {self.clock.used_s:,.1f} s of training")
        # False sorts before True, so the best checkpoint is offered before the last one.
        for callback in sorted(self.trainer.checkpoint_callbacks, key=lambda c: isinstance(c, LastCheckpoint)):
            path = getattr(callback, "best_model_path", "")
            if path and Path(path).exists():
                _say(f"test it:    {self._command('test', Path(path))}")
                break
        # A run may have been killed between its last step and its record.
        if trained or (named and not any(self.folder.glob("records/*.json"))):
            self._record(self.stage.keep)

    def _has_trained(self) -> bool:
        """Return whether this command has taken a step of the training."""
        # The training did not begin, or ended at the step of its checkpoint. Without a step there was no training.
        return self.stage.steps not in (None, self.trainer.global_step)

    def _record(self, last: Path | None) -> None:
        """Test the network after its training, and write the record of both; a trial run has none.

        Args:
            last: Checkpoint with the weights of the network; None if there is none.
        """
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        config = self.config[self.subcommand]
        recording = Recording.of(self.trainer, self.model, self.datamodule, _say)
        choices = self.save_config_kwargs.get("choices", "")
        self._show(recording.of_training(self.history, config.test, last, choices))

    def predict(self, model: L.LightningModule, datamodule: L.LightningDataModule, **options: Any) -> None:
        """Write the class probabilities of the test images, in the order of the data, into the run folder.

        What a module of another kind predicts is written as a list of what it returns for each batch.

        Raises:
            UserError: The Trainer has several devices, or no image was predicted.
        """
        if self.trainer.world_size > 1:
            raise UserError("predict writes one file from one device; add --trainer.devices 1")
        batches = self._restoring(self.trainer.predict, model, datamodule=datamodule, **options) or []
        if not batches:
            remove_run(self.folder)
            raise UserError("predict saw no image; give a larger --trainer.limit_predict_batches, or leave it out")
        path = Path(self.trainer.default_root_dir) / "predictions.csv"
        if not (isinstance(model, ImageClassifier) and isinstance(datamodule, ImageDataModule)):
            path = path.with_suffix(".pt")
            with replacing(path) as file:
                torch.save(batches, file)
            _say(f"predictions: {path}")
            return
        names = datamodule.class_names
        # The loader of the prediction has the same images in the same order.
        labels = datamodule.test_dataloader().labels.tolist()
        rows: list[Sequence[Any]] = [["image", "true", "predicted", *names]]
        probabilities = torch.cat(cast("list[torch.Tensor]", batches)).tolist()
        if len(probabilities) < len(labels):
            _say(f"the first {len(probabilities):,} of {len(labels):,} test images were predicted")
        # zip ends with the shorter list, so that only the images that were predicted get a row.
        for index, (label, row) in enumerate(zip(labels, probabilities, strict=False)):
            rows.append([index, names[label], names[row.index(max(row))], *(f"{p:.6g}" for p in row)])
        write_text(path, to_csv(rows))
        _say(f"predictions: {path}")


def _as_list(value: Any) -> list[Any]:
    """Return the value of an option that takes one object or a list of them as a list; empty if it is unset."""
    if not value:
        return []
    return value if isinstance(value, list) else [value]


def _has_no_end(trainer: Any) -> bool:
    if trainer.fast_dev_run or trainer.max_time is not None:
        return False
    return trainer.max_epochs is None and trainer.max_steps in (None, -1)


@rank_zero_only
def _say(text: str) -> None:
    note(text)


def _lightning_device(accelerator: Any) -> torch.device:
    wants_gpu = accelerator in ("auto", "gpu", "cuda")
    return torch.device("cuda" if wants_gpu and torch.cuda.is_available() else "cpu")


def main(arguments: list[str]) -> None:
    """Run one of the four subcommands.

    Args:
        arguments: Subcommand and its options, as on the command line.

    Raises:
        UserError: An option, a name, a file or a value is wrong.
    """
    quiet_lightning()
    hardware.keep_freed_memory()
    all_models(), all_data()  # the parser knows the names of classes that have been imported
    # Each of these needs the words that the one before it has written out: names, then checkpoints, then their runs.
    arguments = with_logger_words(with_written_out_names(in_order(arguments)))
    check_files(arguments)
    arguments = with_checkpoint_last(
        with_run_config(with_named_checkpoint(with_reference_weights(with_named_run(arguments))))
    )
    check_names(arguments)
    before = sys.argv
    # LightningCLI parses sys.argv, and DDP starts the processes of other ranks with it.
    sys.argv = [before[0], *arguments]
    try:
        with allowed_imports(), fetched(arguments) as files:
            _start(arguments[0], files)
    except Refused as refusal:
        raise explain(refusal.message) from None
    except MisconfigurationException as error:
        raise user_error(error) from error
    except Exception as error:
        mended = known(error)
        if mended is not None:
            raise mended from error
        raise
    finally:
        sys.argv = before


def _start(chosen: str, files: Mapping[str, Path]) -> None:
    # A device is the default of an argument of some callbacks, and a configuration has it by its name.
    register_type(torch.device, serializer=str, deserializer=torch.device, fail_already_registered=False)
    CLI(
        chosen,
        files,
        parser_class=Parser,
        subclass_mode_model=True,
        subclass_mode_data=True,
        # The network builds its optimizer and its schedule itself.
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=SaveConfig,
        # `SaveConfig` writes into the run folder itself, which exists also without a logger.
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults={"num_sanity_val_steps": 0, "enable_model_summary": False},
        parser_kwargs={"prog": "cnnbench"},
    )
