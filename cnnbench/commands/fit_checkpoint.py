"""The option ``--ckpt_path`` of ``fit``, ``validate``, ``test`` and ``predict``: which file it is, and what it decides.

A checkpoint says how its network was built, and LightningCLI builds that network whatever else is set. Here an argument
that the user sets beside the checkpoint is used, or refused where a training cannot go on with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace

from cnnbench import interrupts
from cnnbench.benchmark.training import TrainingHistory
from cnnbench.checkpoints import check_training_state, is_url, local_copy, named_network, network_of, open_checkpoint
from cnnbench.commands.fit_arguments import class_of, name_of, settings_of, value_of, values_of
from cnnbench.console import is_first_process, note
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError, unknown
from cnnbench.files import safe_name
from cnnbench.network import External
from cnnbench.references import weights_file
from cnnbench.training.callbacks import SameRecipe
from cnnbench.training.classifier import CLASS_KEY, stored_seed
from cnnbench.trust import Trust, check_config, current

CHANGEABLE = ("compile_mode", "channels_last", "test_views")
"""Arguments of a network that may differ when its training goes on, since they leave its state as it is."""


def with_named_checkpoint(arguments: list[str]) -> list[str]:
    """Replace ``--ckpt_path last`` or ``best`` by that file of the newest matching run, and print which file it is.

    A run matches if it lies in the folder of ``--out`` and is of the network and data set that the arguments name.

    Raises:
        UserError: No such run has the checkpoint.
    """
    paths = values_of(arguments, "--ckpt_path")
    # Lightning knows these words too, but looks for checkpoints of the run at hand, which has none yet.
    if not paths or paths[-1] not in ("last", "best", "hpc"):
        return arguments
    word = paths[-1]
    out = Path(value_of(arguments, "out") or "results/runs")
    # The name of a folder, or a pattern for several.
    names = [name_of(arguments, key) for key in ("model", "data")]
    name = "-".join("*" if name is None else safe_name(name) for name in names)
    matches = sorted(out.glob(f"{name}/*/checkpoints/{word}.ckpt"), key=lambda path: path.stat().st_mtime)
    # Lightning saves this checkpoint under another name, for a job that SLURM stops, so the search cannot find it.
    if word == "hpc" or not matches:
        raise UserError(
            f"--ckpt_path {word}: there is no run with such a checkpoint in '{out / name}'; name the file, which "
            "`cnnbench fit` prints"
        )
    note(f"checkpoint: {matches[-1]}")
    return [*_without_option(arguments, "--ckpt_path"), f"--ckpt_path={matches[-1]}"]


def with_named_run(arguments: list[str]) -> list[str]:
    """Let a run that ``--run`` names go on from its last checkpoint, so that the same command starts and continues it.

    In a job of SLURM, ``--resume auto`` alone names the run after the job.

    Raises:
        UserError: The run exists and may not go on, or it has no name.
    """
    name, resume = value_of(arguments, "run"), value_of(arguments, "resume")
    if arguments[:1] != ["fit"]:
        if name or resume:
            raise UserError("--run and --resume are options of fit; leave them out")
        return arguments
    if resume not in (None, "auto", "never"):
        raise unknown("resume", resume, ("auto", "never"))
    if name is None:
        if resume != "auto":
            return arguments
        name = interrupts.slurm_job()
        if name is None:
            raise UserError("--resume auto needs --run NAME, by which the same command finds its run again")
        name = f"slurm-{name}"
        arguments = [*arguments, f"--run={name}"]
    if name != safe_name(name) or name.startswith("."):
        raise UserError(f"run '{name}' is not the name of a folder; take letters, digits, dots and dashes")
    folder = Path(value_of(arguments, "out") or "results/runs") / name
    if resume == "auto" and value_of(arguments, "ckpt_path"):
        raise UserError("--resume auto goes on from the checkpoint of its run; leave out --ckpt_path")
    # The first process of several may have made the folder just now.
    if not folder.exists() or (resume != "auto" and not is_first_process()):
        return arguments
    _check_is_a_run(folder)
    if resume != "auto":
        raise UserError(f"run '{folder}' exists; add --resume auto to go on with it, or choose another name")
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():  # it was killed before the first checkpoint
        return arguments
    note(f"{folder}: going on from {last.relative_to(folder)}")
    return [*arguments, f"--ckpt_path={last}"]


def _check_is_a_run(folder: Path) -> None:
    """Raise UserError for a folder or file that something else than `fit` has made; an empty folder may be used."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    if names and not names & _OF_A_RUN:
        raise UserError(f"'{folder}' exists and is no run of fit; choose another --run")


_OF_A_RUN = frozenset(("checkpoints", "config.yaml", "metrics.csv", "records", "wandb"))
"""Names of which a run folder has one or more from its beginning on."""


def with_reference_weights(arguments: list[str]) -> list[str]:
    """Replace ``--weights reference`` by the checkpoint that the package ships for the network and data set.

    Raises:
        UserError: The package has no such checkpoint, the subcommand is ``fit``, or other options do not go with it.
    """
    values = values_of(arguments, "--weights")
    if not values:
        return arguments
    if values[-1] != "reference":
        raise UserError(f"--weights {values[-1]} is not known; there is only: --weights reference")
    if arguments[:1] == ["fit"] or values_of(arguments, "--ckpt_path"):
        raise UserError("--weights reference is for test, validate and predict, in place of --ckpt_path; leave it out")
    models, data = (values_of(arguments, option) for option in ("--model", "--data"))
    if not models:
        raise UserError("--weights reference needs --model NAME, such as LeNet5, and --data NAME")
    path = weights_file(models[-1], data[-1] if data else None)
    rest = [*_without_option(arguments, "--weights"), f"--ckpt_path={path}"]
    if not data:
        # The name of the data set must precede the options of the data set, so it follows the subcommand directly.
        rest[1:1] = ["--data", path.stem.removeprefix(f"{models[-1]}-")]
    return rest


def with_run_config(arguments: list[str]) -> list[str]:
    """Add the configuration of the run that wrote the checkpoint, unless the arguments name a configuration or network.

    Raises:
        UserError: The checkpoint does not exist, or no configuration lies in the folders above it.
    """
    paths = values_of(arguments, "--ckpt_path")
    if not paths or paths[-1] in ("", "null"):
        return arguments
    checkpoint = Path(paths[-1])
    if not is_url(paths[-1]) and not checkpoint.exists():
        raise UserError(f"checkpoint '{checkpoint}' does not exist; `cnnbench fit` prints the path of the one it wrote")
    if any(a.split("=")[0] in ("--config", "-c", "--model") for a in arguments):
        return arguments
    folder = None if is_url(paths[-1]) else _run_folder(checkpoint)
    if folder is not None:
        check_config(folder / "config.yaml")
        return [arguments[0], f"--config={folder / 'config.yaml'}", *arguments[1:]]
    raise UserError(f"no config.yaml beside checkpoint '{paths[-1]}'; add --config FILE, or --model NAME --data NAME")


def _run_folder(checkpoint: Path) -> Path | None:
    """Return the nearest folder above a checkpoint that has a configuration; None if there is none."""
    # The run folder is two levels up, or more: a checkpoint named after a metric such as val/accuracy has a slash in
    # its name, which makes one more folder.
    for folder in checkpoint.resolve().parents[:4]:
        if (folder / "config.yaml").is_file():
            return folder
    return None


def in_run_folder(checkpoint: Path) -> bool:
    """Return whether a checkpoint lies in the run folder whose configuration `with_run_config` finds."""
    folder = _run_folder(checkpoint)
    return folder is not None and folder / "checkpoints" in checkpoint.resolve().parents


def _without_option(arguments: list[str], flag: str) -> Iterator[str]:
    """Yield the arguments without an option and its value."""
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == flag:
            skip = True
        elif not argument.startswith(f"{flag}="):
            yield argument


def with_checkpoint_last(arguments: list[str]) -> list[str]:
    """Move ``--ckpt_path`` behind everything else, so that no configuration overrides it.

    The configuration of a run has ``ckpt_path: null``, with which a training would start anew in silence.
    """
    paths = values_of(arguments, "--ckpt_path")
    if not paths:
        return arguments
    return [*_without_option(arguments, "--ckpt_path"), f"--ckpt_path={paths[-1]}"]


@contextlib.contextmanager
def fetched(arguments: list[str]) -> Iterator[dict[str, Path]]:
    """Yield the file of the checkpoint that the arguments name, by its name, for the time of the block.

    What an address names is fetched once, so that the network that is built and the weights are of the same file.
    """
    paths = [path for path in values_of(arguments, "--ckpt_path")[-1:] if path not in ("", "null")]
    if not paths:
        yield {}
        return
    with local_copy(paths[-1]) as file:
        yield {paths[-1]: file}


def open_for(subcommand: str, path: str, file: Path | None) -> dict[str, Any]:
    """Return the content of a checkpoint, after checking that it is whole, may be built, and fits the subcommand.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        path: Checkpoint as it is named.
        file: File with its content; None if a configuration names the checkpoint.

    Raises:
        UserError: The file is damaged or names code that the user does not trust, or it has weights only and its
            training is to go on, or a configuration names an address.
    """
    if file is None and is_url(path):
        raise UserError(f"ckpt_path '{path}' in a configuration: type --ckpt_path {path}, since it is fetched")
    stored, where = open_checkpoint(file or Path(path), named=path), f"checkpoint '{path}'"
    # LightningCLI builds the network that the checkpoint names, so it is checked before the parser imports it.
    if "_class_path" in stored["hyper_parameters"] or CLASS_KEY in stored:
        network_of(stored, where, current() or Trust(), L.LightningModule)
    if subcommand == "fit":
        check_training_state(stored, where)
    return stored


def stored_network(stored: Mapping[str, Any], configured: Any) -> dict[str, Any]:
    """Return the network of a checkpoint as the parser takes it: its class, and its arguments.

    Args:
        stored: Content of the checkpoint.
        configured: Network of the configuration, whose class is taken if the checkpoint does not name one.
    """
    path, options = named_network(stored)
    return {"class_path": path or configured.class_path, "dict_kwargs": options}


def check_same_network(network: Mapping[str, Any], arguments: list[str]) -> None:
    """Raise UserError if the command line, or a configuration that it names, has another network than the checkpoint.

    Args:
        network: Network of the checkpoint, from `stored_network`.
        arguments: Command line.

    Raises:
        UserError: It is another network.
    """
    setting = class_of(arguments, "model")
    asked = name_of(arguments, "model")
    name = str(network["class_path"]).rsplit(".", 1)[-1]
    if name == External.__name__:
        name = str(network["dict_kwargs"].get("name"))
    if setting is not None and asked not in (None, name):
        what = "--model" if setting.source.startswith("--") else setting.source
        raise UserError(f"the checkpoint is of {name}, not of {asked}; leave out {what}")


def check_same_data(stored: Mapping[str, Any], data: L.LightningDataModule) -> None:
    """Raise UserError if a training would go on with other images or other batches than those of its checkpoint.

    Arguments that the data settles by itself, such as its mean, are taken over from the checkpoint.

    Args:
        stored: Content of the checkpoint.
        data: Data of the command.

    Raises:
        UserError: The data set or an argument of it differs.
    """
    before = stored.get("datamodule_hyper_parameters")
    # Only the data of this package has its arguments in checkpoints for sure.
    if not isinstance(data, ImageDataModule) or not isinstance(before, Mapping):
        return
    then, now = str(before.get("_class_path", "")).rpartition(".")[2], type(data).__name__
    if then and then != now:
        raise UserError(f"the training of the checkpoint is on {then} and goes on with it, not with {now}; {_TO_DO}")
    for name, value in list(data.hparams.items()):
        if name not in before or name.startswith("_") or name in SAME_IMAGES or _plain(before[name]) == _plain(value):
            continue
        if value is None and name in data.settled:
            # What the data would measure or choose was measured or chosen by the training that goes on.
            data.hparams[name] = before[name]
            continue
        raise UserError(
            f"data.{name} is {value}, but the training of the checkpoint has {before[name]} and goes on with it; "
            f"{_TO_DO}"
        )


def normalise_alike(before: Mapping[str, Any], data: L.LightningDataModule) -> None:
    """Let data that measures its mean and deviation take those of the training of a checkpoint.

    Args:
        before: Arguments of the data of the training; empty if there is none.
        data: Data of the command.
    """
    if not isinstance(data, ImageDataModule) or "mean" not in data.settled or data.hparams.get("mean") is not None:
        return
    mean, std = before.get("mean"), before.get("std")
    if mean is not None and std is not None and len(mean) == len(std) == data.in_channels:
        data.hparams.update({"mean": tuple(mean), "std": tuple(std)})


_AVERAGES = frozenset(("average_model_state", "latest_update_step"))
"""Entries of the state of a callback that averages weights, of Lightning's kinds and those derived from them."""
SAME_IMAGES = ("data_dir", "eval_batch_size")
"""Arguments of data that leave the images and batches of a training as they are."""
_TO_DO = "leave it out, or start another training, without --ckpt_path or with another --run"


def _plain(value: Any) -> Any:
    """Return a value in which a list equals a tuple, which a file may have in its place."""
    return list(value) if isinstance(value, tuple) else value


def seed_of_training(stored: Mapping[str, Any], arguments: list[str]) -> int | None:
    """Return the seed of the training that goes on; None if its checkpoint does not say.

    Args:
        stored: Content of the checkpoint.
        arguments: Command line.

    Raises:
        UserError: The command line, or a configuration that it names, sets another seed.
    """
    seed, asked = stored_seed(stored), value_of(arguments, "seed_everything")
    if seed is not None and asked not in (None, str(seed)):
        raise UserError(
            f"seed_everything is {asked}, but the training of the checkpoint has seed {seed} and goes on with it; "
            f"{_TO_DO}"
        )
    return seed


def history_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of `TrainingHistory` in a checkpoint; empty if there is none."""
    state = stored["callbacks"].get(TrainingHistory.__name__)
    return state if isinstance(state, dict) else {}


def check_averages(stored: Mapping[str, Any], callbacks: Sequence[L.Callback]) -> None:
    """Raise UserError if a training that averages its weights would go on without the callback that does so.

    The weights in its checkpoint are the averages, so the training would go on from these in place of its own weights.

    Args:
        stored: Content of the checkpoint.
        callbacks: Callbacks of the Trainer.

    Raises:
        UserError: The callback is missing.
    """
    present = {type(callback).__name__ for callback in callbacks}
    for key, state in stored["callbacks"].items():
        # Lightning's keys have the class, and of some callbacks arguments behind it.
        name = str(key).partition("{")[0].rpartition(".")[2]
        averages = isinstance(state, dict) and not _AVERAGES.isdisjoint(state)
        if averages and name not in present:
            raise UserError(
                f"the training of the checkpoint averages its weights with {name} and cannot go on without it; add "
                f"--trainer.callbacks {name} with its arguments, or leave out --model to take those of the run"
            )


def use_given(subcommand: str, merged: Any, configured: Any, arguments: list[str]) -> None:
    """Give the arguments of the network that the user has set precedence over those of the checkpoint.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        merged: Network of the configuration with the checkpoint's arguments, both parsed; it is changed.
        configured: The same network without those of the checkpoint.
        arguments: Command line.

    Raises:
        UserError: The training of the checkpoint cannot go on with an argument that differs.
    """
    # Where an argument is set several times, the last source is the one that the parser used.
    sources = {name: setting.source for setting in settings_of(arguments, "model") for name in setting.arguments}
    for part in ("init_args", "dict_kwargs"):
        ours, theirs = _values(configured.get(part)), _values(merged.get(part))
        for name in sorted(sources.keys() & ours.keys() & theirs.keys()):
            value, of_checkpoint = ours[name], theirs[name]
            if value == of_checkpoint:
                continue
            if subcommand == "fit" and name not in CHANGEABLE:
                raise UserError(
                    f"{name} is {value} ({sources[name]}), but the training of the checkpoint has {of_checkpoint} and "
                    f"goes on with it; {_TO_DO}"
                )
            merged[part][name] = value


def _values(table: Any) -> dict[str, Any]:
    """Return the arguments of a parsed class; those of a class within it stay together."""
    return dict(vars(table) if isinstance(table, Namespace) else table or {})


def same_recipe(stored: Mapping[str, Any]) -> SameRecipe:
    """Return a callback that refuses an optimizer or a schedule that is set otherwise than in the checkpoint.

    Args:
        stored: Content of the checkpoint, which has the state of a training.
    """
    optimizers: list[list[dict[str, Any]]] = []
    for state in stored["optimizer_states"]:
        groups = state.get("param_groups", ()) if isinstance(state, dict) else ()
        # The parameters themselves are left out, and so is the state, which would fill the memory.
        optimizers.append([{key: value for key, value in group.items() if key != "params"} for group in groups])
    return SameRecipe(optimizers, [state for state in stored["lr_schedulers"] if isinstance(state, dict)])
