"""Search for the settings of a training by validation accuracy, on Optuna; every trial is a record.

The test set is never looked at. The records are the only memory of a search: a search that goes on tells Optuna about
the trials in them, so there is no data base beside them that could disagree.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import optuna
import torch
import yaml
from filelock import FileLock, Timeout
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from pydantic import TypeAdapter, ValidationError

from cnnbench import hardware, interrupts, progress
from cnnbench.benchmark.plan import Recipe
from cnnbench.benchmark.recipe_files import (
    TRAINING_ARGUMENTS,
    Configuration,
    check,
    read_configuration,
    training_options,
)
from cnnbench.benchmark.training import TrainingHistory, run_environment
from cnnbench.checkpoints import CheckpointFile
from cnnbench.confusion import accuracy
from cnnbench.counting import CONVENTION
from cnnbench.data import get_data
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import DivergedError, UserError, first_line
from cnnbench.files import parse_json, read_text, remove_parts, without_checksum, write_checked_json, write_text
from cnnbench.models import get_model
from cnnbench.names import call_words, parse_name
from cnnbench.network import get_network, make_classifier
from cnnbench.record import Record, load_records, write_record
from cnnbench.training.classifier import ImageClassifier
from cnnbench.training.clock import TrainingClock
from cnnbench.training.settings import LINKED
from cnnbench.training.trainer import make_trainer, quiet_lightning

PLAN_FILE = "search.json"
BEST_FILE = "best.yaml"
"""Configuration of `cnnbench fit` with the settings of the best trial."""
STARTUP_TRIALS = 5
"""Trials with random settings, before the sampler learns from them and before the pruner stops any."""


@dataclass(frozen=True)
class SearchPlan:
    """Settings of a search, with nothing left to choose.

    Attributes:
        recipe: Network, data and the settings that are not searched.
        space: What is searched, by name, such as ``model.learning_rate``: a list of choices, or a table with ``low``,
            ``high`` and, for a logarithmic scale, ``log: true``.
        epochs: Epochs of each trial.
        seed: Seed of the trials and of the sampler.
        device: Name of the device.
        precision: Number format of the training.
        data_dir: Folder of the data; None for the usual one.
    """

    recipe: Recipe
    space: Mapping[str, Any]
    epochs: int
    seed: int
    device: str
    precision: str
    data_dir: str | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}
    """Options of pydantic for reading a plan: unknown keys and values of another type are errors."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"epochs {self.epochs} must be at least 1")
        if not self.space:
            raise UserError(
                "the space is empty; name what to search, such as {model.learning_rate: {low: 1e-4, high: 1}}"
            )
        for name, given in self.space.items():
            distribution(name, given)
        self._check_fixed()

    def _check_fixed(self) -> None:
        """Raise UserError if the space has a setting in which trials must agree.

        Their accuracies are compared, so all of them learn from the same images and are validated on the same images.
        """
        names = {*_FIXED, *(f"model.{name}" for name in LINKED)}
        cls = get_data(str(self.recipe.data)).cls
        if cls.__module__.startswith("cnnbench."):
            # The arguments that only one data set has say which images it holds.
            own = inspect.signature(cls).parameters.keys() - inspect.signature(ImageDataModule).parameters.keys()
            names |= {f"data.{name}" for name in own - {"kwargs"}}
        for name in self.space:
            if name in names:
                raise UserError(
                    f"space: {name} decides on which images a network is trained and validated, which must be the same "
                    "in all trials; set it in --base, or in the name of the data as in 'CIFAR10(subset=1000)'"
                )


_FIXED = ("data.data_dir", "data.split_seed", "data.val_fraction", "data.subset")
"""Settings that decide which images a trial sees, of every data set."""


def plan_of(asked: Any) -> SearchPlan:
    """Return the plan of a search, with nothing left to choose.

    Args:
        asked: Options of `cnnbench search`; ``base`` is a configuration of `fit`, in place of the name of a network.

    Raises:
        UserError: A setting is wrong, or there is no network.
    """
    if asked.base is not None:
        base = read_configuration(asked.base, "search")
    elif asked.model is not None:
        base = Configuration(Recipe("search", asked.model, {}))
    else:
        raise UserError("--model is missing: name a network of `cnnbench list`, or a configuration with --base")
    recipe = replace(base.recipe, data=asked.data or base.recipe.data or "CIFAR10", epochs=None, max_steps=None)
    space = asked.space
    if space is None:
        space = default_space(get_model(parse_name(recipe.model)[0]).peak_lr)
    device = hardware.choose_device(asked.device)
    precision, _ = hardware.choose_precision(asked.precision or base.precision or "auto", device)
    seed = _seed_of(base, str(asked.base)) if asked.seed is None else asked.seed
    space = {name: _with_numbers(given) for name, given in space.items()}
    return SearchPlan(recipe, space, asked.epochs, seed, str(device), precision, asked.data_dir)


def _with_numbers(given: Any) -> Any:
    """Return an entry of a space in which texts that are numbers, such as '1e-3' in quotes, are numbers."""
    if isinstance(given, Mapping):
        return {key: _number(value) for key, value in given.items()}
    return [_number(value) for value in given] if isinstance(given, list | tuple) else given


def _number(value: Any) -> Any:
    """Return the number that a text stands for; any other value, and a text that is no finite number, as it is."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        return number if math.isfinite(number) else value
    return value


def _seed_of(base: Configuration, path: str) -> int:
    """Return the seed of a configuration; 0 if it names none, as in `fit`.

    Raises:
        UserError: The seed is none that `fit` would use again.
    """
    if base.seed is None:
        return 0
    is_number = isinstance(base.seed, int) and not isinstance(base.seed, bool)
    if not is_number or not 0 <= base.seed < 2**32:
        raise UserError(
            f"config '{path}': seed_everything {base.seed} is no seed that trials can share; give a whole number from "
            f"0 to {2**32 - 1}, or --seed"
        )
    return base.seed


def distribution(name: str, given: Any) -> BaseDistribution:
    """Return Optuna's distribution for an entry of a search space.

    Args:
        name: Name of the setting, ``model.<argument>`` or ``data.<argument>``.
        given: List of choices, or table with ``low``, ``high`` and optionally ``log``.

    Raises:
        UserError: The entry is neither, or the name is none of a setting.
    """
    section, _, key = name.partition(".")
    if section not in ("model", "data") or not key:
        raise UserError(f"space: '{name}' must begin with model. or data., as in model.learning_rate")
    if isinstance(given, list | tuple) and given:
        for choice in given:
            if not isinstance(choice, str | int | float | bool | None):
                raise UserError(f"space: {name} has the choice {choice!r}, which is no plain value; {_SPACE}")
        return CategoricalDistribution(list(given))
    if not isinstance(given, Mapping) or not {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
        raise UserError(f"space: {name} is {str(given)[:60]}; {_SPACE}")
    return _range(name, given["low"], given["high"], bool(given.get("log", False)))


_SPACE = "write a list of choices, or a table such as {low: 0.0001, high: 0.01, log: true}"
"""Advice on how an entry of a space is written."""


def _range(name: str, low: Any, high: Any, log: bool) -> BaseDistribution:
    """Return the distribution of a setting between two ends."""
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
            raise UserError(f"space: {name} has the end {end!r}, which is no finite number; {_SPACE}")
    if not low < high or (log and low <= 0):
        raise UserError(f"space: {name} goes from {low} to {high}; low must be below high, and above 0 with log: true")
    kind = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
    return kind(low, high, log=log)


def default_space(peak_lr: float) -> dict[str, Any]:
    """Return what is searched if the user names nothing: the peak learning rate, warm-up and label smoothing.

    Args:
        peak_lr: Peak learning rate of the network's own recipe, around which the rates lie.
    """
    return {
        "model.learning_rate": {"low": peak_lr / 10, "high": peak_lr * 10, "log": True},
        "model.warmup": {"low": 0.0, "high": 0.3},
        "model.label_smoothing": {"low": 0.0, "high": 0.2},
    }


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return a recipe with other settings.

    Args:
        recipe: Recipe to change.
        values: Settings by name, such as ``model.learning_rate``, ``model.optimizer.lr`` or ``data.batch_size``.

    Raises:
        UserError: The recipe has no setting of a name.
    """
    arguments, options = dict(recipe.arguments), dict(recipe.data_options or {})
    plain, own = parse_name(recipe.model)
    for name, value in values.items():
        section, _, key = name.partition(".")
        owner, _, argument = key.partition(".")
        if section == "data":
            options[key] = value
        elif argument and isinstance(arguments.get(owner), Mapping):
            table = arguments[owner]
            arguments[owner] = {**table, "init_args": {**(table.get("init_args") or {}), argument: value}}
        elif argument:
            raise UserError(f"space: '{name}' needs model.{owner} in the configuration, as class_path and init_args")
        elif key in TRAINING_ARGUMENTS:
            arguments[key] = value
        else:
            own[key] = value
    return replace(recipe, model=call_words(plain, own), arguments=arguments, data_options=options or None)


class _Report(L.Callback):
    """Callback that tells Optuna the validation accuracy after each epoch, and ends a trial that is not promising.

    Attributes:
        matrix: Confusion matrix of the last validation, as integer counts.
        pruned: Whether Optuna ended the trial.
    """

    def __init__(self, trial: optuna.Trial, say: Callable[[str], None]) -> None:
        self._trial, self._say = trial, say
        self.matrix: list[list[int]] | None = None
        self.pruned = False

    def on_train_batch_end(self, *_: Any) -> None:
        interrupts.check()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        self.matrix = pl_module.confusion_counts("val")
        share = accuracy(self.matrix, "val")["val_accuracy"]
        # Rounded as in the curves of the records, from which Optuna knows the trials before; equal stays equal.
        self._trial.report(round(share, 5), trainer.current_epoch)
        self._say(f"epoch {trainer.current_epoch + 1}, validation accuracy {share:.1%}")
        if self._trial.should_prune():
            self.pruned = trainer.should_stop = True


@dataclass
class Search:
    """A search in a folder, which may have trials already.

    Args:
        plan: Settings of the search.
        folder: Folder of the search, with one record per trial in ``records``.
        say: Function that shows a line about the progress.

    Raises:
        UserError: The folder holds another search, or one of its files is damaged.
    """

    plan: SearchPlan
    folder: Path
    say: Callable[[str], None]
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._device = torch.device(self.plan.device)
        self._space = {name: distribution(name, given) for name, given in self.plan.space.items()}
        self._check_values()

    def _check_values(self) -> None:
        """Raise UserError if the space has a name or a value that no trial could take; nothing is written before this.

        Each value is checked beside the first values of all other settings.
        """
        space = self.plan.space
        first = {name: _values(given)[0] for name, given in space.items()}
        for name, given in space.items():
            for value in _values(given):
                recipe = with_values(self.plan.recipe, {**first, name: value})
                check(recipe, "the space")
                # This looks up the arguments of a network of the zoo; it builds none.
                network = get_network(recipe.model)
        # The arguments of a network from elsewhere are known only when it is built.
        if ":" in parse_name(self.plan.recipe.model)[0]:
            network.build()

    def run(self, trials: int) -> Record | None:
        """Run trials until there are as many as asked for, and return the record of the best one.

        Args:
            trials: Number of trials in all, with those of before.

        Returns:
            The record with the largest validation accuracy; None if every trial failed.
        """
        quiet_lightning()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                remove_parts(self.folder)
                write_checked_json(self.folder / PLAN_FILE, asdict(self.plan))
                self.records = self._finished()
                for number in range(len(self.records), trials):
                    interrupts.check()
                    with progress.doing(f"trial {number + 1} of {trials}"):
                        self._run_trial(number)
        except Timeout:
            raise UserError(
                f"another process is at work in '{self.folder}'; wait for it, or choose another --out"
            ) from None
        best = best_of(self.records)
        if best is not None:
            write_text(self.folder / BEST_FILE, as_config(self.plan, best))
        return best

    def _finished(self) -> list[Record]:
        """Return the records of the trials so far, in their order."""
        files = sorted((self.folder / "records").glob("*.json"))
        records = load_records(files)
        records.sort(key=lambda record: record.config.get("trial", 0))
        for number, record in enumerate(records):
            if record.config.get("trial") != number or set(record.config.get("values") or ()) != set(self.plan.space):
                raise UserError(
                    f"'{self.folder}' holds records that are not trials of this search; choose another --out"
                )
        return records

    def _study(self) -> optuna.Study:
        """Return a study of Optuna that knows the trials so far, for the next trial alone.

        What it draws depends on these trials, the seed and the number of the trial, so that a search that was stopped
        goes on as an undisturbed one.
        """
        seed = np.random.SeedSequence([self.plan.seed, len(self.records)]).generate_state(1)[0]
        study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=STARTUP_TRIALS),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=0),
        )
        for record in self.records:
            study.add_trial(self._as_trial(record))
        return study

    def _as_trial(self, record: Record) -> optuna.trial.FrozenTrial:
        """Return the record of a trial as Optuna's description of it."""
        seen = [point["val/accuracy"] for point in record.training.get("curve", ()) if "val/accuracy" in point]
        if record.status == "error":
            state = TrialState.FAIL
        elif record.config["pruned"]:
            state = TrialState.PRUNED
        else:
            state = TrialState.COMPLETE
        return optuna.create_trial(
            params=record.config["values"],
            distributions=self._space,
            value=None if state == TrialState.FAIL else record.measures["val_accuracy"],
            intermediate_values=dict(enumerate(seen)),
            state=state,
        )

    def _run_trial(self, number: int) -> None:
        """Run a trial and write its record, from which the studies of the trials after it know it."""
        trial, name = self._study().ask(self._space), trial_name(number)
        words = ", ".join(f"{key} {_short(value)}" for key, value in trial.params.items())
        self.say(f"{name}: {words}")
        record = self._measure(trial, number)
        write_record(self.folder / "records" / f"{record.key}.json", record)
        self.records.append(record)
        if record.status == "error":
            self.say(f"{name} failed: {record.reason}")
        elif record.config["pruned"]:
            self.say(f"{name} was ended early, as worse than most at this epoch")

    def _measure(self, trial: optuna.Trial, number: int) -> Record:
        """Train and validate a network with the settings of a trial, and return the record."""
        plan = self.plan
        recipe = with_values(plan.recipe, trial.params)
        data = self._open(recipe)
        history = TrainingHistory(TrainingClock())
        report = _Report(trial, lambda text: self.say(f"{trial_name(number)}: {text}"))
        training: dict[str, Any] = {}
        status, why = "ok", ""
        try:
            L.seed_everything(plan.seed, workers=True, verbose=False)
            model = make_classifier(
                recipe.model, data.num_classes, data.in_channels, data.image_size, **training_options(recipe)
            )
            training = self._train(model, data, history, report)
        except Exception as error:  # whatever a trial raises becomes part of its record; the search goes on
            status, why = "error", first_line(error)
        facts = data.describe()
        config = {
            "command": "search",
            "budget_s": None,
            "epochs": plan.epochs,
            "device": plan.device,
            "precision": plan.precision,
            "batch_size": facts["batch_size"],
            "memory_format": "channels_last",
            "macs_convention": CONVENTION,
            "recipe": trial_name(number),
            "recipe_settings": recipe.settings(),
            "trial": number,
            "values": dict(trial.params),
            "pruned": report.pruned,
        }
        measures = accuracy(report.matrix, "val") if report.matrix is not None and status == "ok" else {}
        return Record(
            model=recipe.model,
            data=facts,
            seed=plan.seed,
            status=status,
            reason=why,
            config=config,
            environment=run_environment(self._device),
            measures=dict(measures),
            training=training,
        )

    def _open(self, recipe: Recipe) -> ImageDataModule:
        """Open the data of a recipe, which must have a validation split."""
        assert recipe.data is not None
        data = get_data(recipe.data)(data_dir=self.plan.data_dir, **(recipe.data_options or {}))
        data.prepare_data()
        data.setup()
        if not data.describe()["val_images"]:
            raise UserError("a search needs a validation split; set data.val_fraction above 0")
        return data

    def _train(
        self, model: ImageClassifier, data: ImageDataModule, history: TrainingHistory, report: _Report
    ) -> dict[str, Any]:
        """Train a network and return the facts about the training.

        Raises:
            DivergedError: The loss or the weights are not finite.
        """
        # Nothing is set here that a configuration of `fit` cannot say, so that `as_config` repeats a trial exactly.
        trainer = make_trainer(
            self._device,
            [history.clock, history, report],
            precision=self.plan.precision,
            max_epochs=self.plan.epochs,
            logger=history.curve,
            plugins=[CheckpointFile()],
            **self.plan.recipe.trainer_options(),
        )
        trainer.fit(model, datamodule=data)
        facts = history.facts(trainer, model, data.describe())
        if facts["diverged"]:
            raise DivergedError("the loss or the weights are not finite")
        return facts


def trial_name(number: int) -> str:
    """Return the name of a trial in messages, records and `BEST_FILE`; the first one has the number 0."""
    return f"trial-{number:04d}"


def best_of(records: list[Record]) -> Record | None:
    """Return the record with the largest validation accuracy among the trials that ran to their end."""
    complete = [r for r in records if r.status == "ok" and not r.config["pruned"]]
    return max(complete, key=lambda r: r.measures["val_accuracy"], default=None)


def as_config(plan: SearchPlan, best: Record) -> str:
    """Return the configuration of ``cnnbench fit`` that repeats a trial, as YAML: the same seed, device and numbers."""
    recipe = with_values(plan.recipe, best.config["values"])
    plain, own = parse_name(recipe.model)
    model = {"class_path": plain, "init_args": {**own, **recipe.arguments}}
    if ":" in plain:
        model = {"class_path": "External", "init_args": {"name": recipe.model, **recipe.arguments}}
    source = get_data(str(recipe.data))
    data = {**source.arguments, **(recipe.data_options or {})}
    if plan.data_dir is not None:
        data["data_dir"] = plan.data_dir
    device = torch.device(plan.device)
    # Without a number of devices, Lightning would take all GPUs.
    devices: list[int] | int = [device.index or 0] if device.type == "cuda" else 1
    config = {
        "seed_everything": plan.seed,
        "model": model,
        "data": {"class_path": source.class_path, "init_args": data},
        "trainer": {
            "max_epochs": plan.epochs,
            "precision": plan.precision,
            "accelerator": device.type,
            "devices": devices,
            **recipe.trainer_options(),
        },
    }
    reached = f"{best.measures['val_accuracy']:.2%} in {trial_name(best.config['trial'])}"
    return f"# Best of a search by validation accuracy: {reached}.\n" + yaml.safe_dump(config, sort_keys=False)


def load_search(folder: Path) -> SearchPlan:
    """Read the plan of a search.

    Args:
        folder: Folder of the search.

    Raises:
        UserError: The folder has no plan, or the plan is damaged.
    """
    path = folder / PLAN_FILE
    where = f"search '{path}'"
    stored = parse_json(read_text(path, "search"), where)
    if not isinstance(stored, dict):
        raise UserError(f"{where} is not a table of settings; start a new search in another --out")
    content = without_checksum(stored, where)
    try:
        return TypeAdapter(SearchPlan).validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{where} cannot be read: {place} {first['msg']}; start a new search in another --out"
        ) from None


def _values(given: Any) -> list[Any]:
    """Return the values of an entry of a space that are known beforehand: its choices, or its two ends."""
    return [given["low"], given["high"]] if isinstance(given, Mapping) else list(given)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
