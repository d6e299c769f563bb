"""Callbacks of every run of ``cnnbench fit``: saved configuration, progress bar, checkpoints, and a clean stop."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from cnnbench import interrupts
from cnnbench.console import has_bars, spoke
from cnnbench.errors import UserError
from cnnbench.files import write_text
from cnnbench.training.settings import LINKED
from cnnbench.trust import OPTION


class SaveConfig(SaveConfigCallback):
    """Callback that writes the whole configuration into the run folder and, if W&B is used, into the W&B run.

    Args:
        choices: Settings that were chosen for the user, and the reasons; they become the first line of the file.
        linked: Whether the data decides arguments of the network, which are then left out.
    """

    def __init__(self, *arguments: Any, choices: str = "", linked: bool = True, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.choices, self.linked = choices, linked

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        config = self.config.clone()
        # Only the command line may set these, never a file.
        named = config.get("run")
        for name in (OPTION.strip("-"), "run", "resume"):
            config.pop(name, None)
        # The command of a named run finds its checkpoint by itself, and the file repeats the training from its start.
        if named:
            config.ckpt_path = None
        text = self.parser.dump(config, skip_unset=False, skip_link_targets=self.linked)
        path = Path(trainer.default_root_dir) / "config.yaml"
        write_text(path, f"# {self.choices}\n{text}" if self.choices else text)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                arguments = {key: self.config[key].as_dict() for key in ("model", "data", "trainer")}
                # The data set decides these arguments of the network, which is built with other values than these.
                for name in LINKED:
                    arguments["model"].get("init_args", {}).pop(name, None)
                # A record at the end of the training adds the settings that runs of `bench` have.
                name = getattr(pl_module, "display_name", type(pl_module).__name__)
                logger.log_hyperparams({"model": name, "seed": self.config.seed_everything, "arguments": arguments})


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar, drawn on stderr at most four times a second, and only on a terminal.

    Lightning draws it after every batch, which for small networks takes as long as the batch, and on stdout, which is
    for results. Where there is no terminal, `cnnbench.progress` prints lines.
    """

    _shown = 0.0

    @property
    def is_disabled(self) -> bool:
        """Return whether nothing is drawn."""
        return not has_bars() or super().is_disabled

    # Lightning's methods take what stands in the place of stdout when they are called.
    def init_train_tqdm(self) -> Tqdm:
        with redirect_stdout(sys.stderr):
            return super().init_train_tqdm()

    def init_validation_tqdm(self) -> Tqdm:
        with redirect_stdout(sys.stderr):
            return super().init_validation_tqdm()

    def init_test_tqdm(self) -> Tqdm:
        with redirect_stdout(sys.stderr):
            return super().init_test_tqdm()

    def init_predict_tqdm(self) -> Tqdm:
        with redirect_stdout(sys.stderr):
            return super().init_predict_tqdm()

    def init_sanity_tqdm(self) -> Tqdm:
        with redirect_stdout(sys.stderr):
            return super().init_sanity_tqdm()

    def print(self, *arguments: Any, **options: Any) -> None:
        super().print(*arguments, file=sys.stderr, **options)

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        now = time.monotonic()
        # The last batch is always drawn, or else the bar would seem to stop before the end.
        if now - self._shown >= 0.25 or trainer.is_last_batch:
            self._shown = now
            spoke()
            super().on_train_batch_end(trainer, *arguments)


class LastCheckpoint(ModelCheckpoint):
    """Checkpoint ``last.ckpt``, written at the end of every epoch.

    Lightning's own ``save_last`` writes only together with a new best checkpoint.
    """

    def __init__(self) -> None:
        # Without a version counter each checkpoint replaces the one before it.
        super().__init__(filename="last", enable_version_counter=False)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint of the best value, which a resumed run keeps comparing with.

    Lightning forgets the best value if the folder of the checkpoints has changed, as it does for a resumed run. So the
    folder in the restored state is replaced by that of this run.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = state_dict | {"dirpath": self.dirpath}
        best = Path(str(state.get("best_model_path") or ""))
        if self.dirpath and best.name and not best.exists():  # the run folder has been moved
            state["best_model_path"] = str(Path(self.dirpath) / best.name)
        super().load_state_dict(state)


class SameRecipe(L.Callback):
    """Callback that refuses to go on with a training whose optimizer or schedule is set otherwise than before.

    torch takes these settings from the checkpoint, so another learning rate or weight decay would have no effect.

    Args:
        optimizers: Settings of each parameter group of each optimizer in the checkpoint.
        schedulers: State of each scheduler in the checkpoint.
    """

    def __init__(
        self, optimizers: Sequence[Sequence[Mapping[str, Any]]], schedulers: Sequence[Mapping[str, Any]]
    ) -> None:
        self.optimizers, self.schedulers = optimizers, schedulers

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the optimizers and schedulers, which are built but not restored yet.

        Raises:
            UserError: A setting differs, or it is another kind of optimizer or scheduler.
        """
        # This callback sets rates of its own in the middle of the training.
        callbacks = cast("list[L.Callback]", trainer.callbacks)  # type: ignore[attr-defined]
        rates = not any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks)
        for optimizer, groups in zip(trainer.optimizers, self.optimizers, strict=False):
            for group, stored in zip(optimizer.param_groups, groups, strict=False):
                self._compare_groups(f"optimizer {type(optimizer).__name__}", group, stored, rates)
        for config, state in zip(trainer.lr_scheduler_configs, self.schedulers, strict=False):
            scheduler = config.scheduler
            built = scheduler.state_dict()
            # What the constructor takes is constant; the rest of the state changes from step to step.
            constant = inspect.signature(type(scheduler)).parameters.keys() - {"optimizer", "last_epoch"}
            what = f"scheduler {type(scheduler).__name__}"
            _refuse_another(what, built.keys(), state.keys())
            _refuse_differing(what, built, state, constant)

    def _compare_groups(self, what: str, group: Mapping[str, Any], stored: Mapping[str, Any], rates: bool) -> None:
        _refuse_another(what, group.keys() - {"params"}, stored.keys())
        compared = group.keys() - {"params", *_OF_THE_DEVICE}
        if not rates:
            compared -= {"lr", "initial_lr"}
        if "initial_lr" in group and "initial_lr" in stored:
            compared -= {"lr"}  # a schedule changes it, and `initial_lr` has what it started from
        if "base_momentum" in stored:
            compared -= {"momentum", "betas"}  # a schedule in cycles changes these too
        _refuse_differing(what, group, stored, compared)


_OF_THE_DEVICE = ("fused", "foreign", "capturable", "differentiable")
"""Settings of an optimizer that decide how it computes on a device, and not what."""
_TO_DO = "leave out what sets it, or train from the start without --ckpt_path"


def _refuse_another(what: str, ours: Set[str], theirs: Set[str]) -> None:
    """Raise UserError if an optimizer or scheduler has other settings than the one in the checkpoint."""
    further, missing = ours - theirs, theirs - ours
    # Another version of torch may have added settings, or dropped some, but hardly both.
    if further and missing:
        raise UserError(
            f"the {what} has {min(further)} and no {min(missing)}, so it is not that of the checkpoint, whose training "
            f"is to go on; {_TO_DO}"
        )


def _refuse_differing(what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], names: Set[str]) -> None:
    """Raise UserError if one of these settings differs from that in the checkpoint."""
    for name in sorted(names & ours.keys() & theirs.keys()):
        value, stored = ours[name], theirs[name]
        if isinstance(value, tuple) and isinstance(stored, list):
            stored = tuple(stored)
        if bool(value != stored):
            shown = "learning rate" if name in ("lr", "initial_lr") else name
            raise UserError(
                f"the {what} has {shown} {value}, but the training of the checkpoint has {stored} and goes on with it; "
                f"{_TO_DO}"
            )


class Stage(L.Callback):
    """Callback that notes when a command reaches its first images, and stops it between two batches on a signal.

    Attributes:
        started: Whether the state in a checkpoint has been restored, so that later errors are not about that file.
        keep: Path at which a stopped training saves its state; None to save nothing.
        steps: Number of optimizer steps before this command; None if it has not started training.
    """

    def __init__(self) -> None:
        self.started = False
        self.keep: Path | None = None
        self.steps: int | None = None
        self._trainer: L.Trainer | None = None

    def words(self) -> str:
        """Return what the Trainer is doing, and how far it is."""
        trainer = self._trainer
        if trainer is None or trainer.state.stage is None:
            return "preparing"
        words = str(trainer.state.stage.value)
        if words != "train":
            return {"validate": "validating", "test": "testing", "predict": "predicting"}.get(words, words)
        words = f"training, epoch {trainer.current_epoch + 1}"
        if (trainer.max_epochs or -1) > 0:
            words += f" of {trainer.max_epochs}"
        return f"{words}, step {trainer.global_step:,}"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._trainer = trainer

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started, self.steps = True, trainer.global_step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = True

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = True

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        # The step is complete here, so the saved state is one that a training can go on from.
        if interrupts.is_pending() and self.keep is not None:
            trainer.save_checkpoint(self.keep)
        interrupts.check()

    def on_validation_batch_end(self, *_: Any) -> None:
        interrupts.check()

    def on_test_batch_end(self, *_: Any) -> None:
        interrupts.check()

    def on_predict_batch_end(self, *_: Any) -> None:
        interrupts.check()
