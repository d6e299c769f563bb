"""The command `cnnbench explain gallery`: train a small network, and show it with every teaching tool on one page."""

from __future__ import annotations

import inspect
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cnnbench import progress
from cnnbench.console import note
from cnnbench.errors import UserError
from cnnbench.explain import run as run_tool
from cnnbench.explain.gallery import PARTS, Trained, page
from cnnbench.explain.options import DataOptions
from cnnbench.files import write_text
from cnnbench.options import option
from cnnbench.references import weights_file
from cnnbench.trust import OPTION

EXAMPLE = "--config experiments/cifar10_speednet.yaml --out gallery"
MODEL = "SimpleCNN(convs=5x5,batch_norm=True,dropout=0.0)"
"""Network that is trained: the one of the course, with filters that are large enough to be looked at."""
RECIPE = (
    "--model.optimizer=cnnbench.optimizers.MuonSGD --model.optimizer.lr=0.06 --model.optimizer.matrix_lr=0.03 "
    "--model.optimizer.vector_lr=0.03 --model.schedule=linear"
).split()
"""Options of the training. Muon moves the filters far away from their random start within a few epochs; with AdamW they
stay noisy."""
TRAINED_ON, EPOCHS = "CIFAR10", 3
"""Data set and number of epochs of the training, by default."""
LARGEST_SIZE = 64
"""Largest height and width of the images by default. The page trains two networks, which takes most of an hour at 224
pixels on two cores."""
SHIPPED, MADE_BY = "SimpleCNN", "cnnbench bench --config experiments/bench/reference-cpu-small.yaml"
"""Network whose weights the package ships, and the command that trained it."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a small network and make one page of all instruments, in the course's order."""

    data: str | None = option(
        f"Data set to train on (default: {TRAINED_ON}).", default=None, metavar="NAME", names="data"
    )
    data_dir: str | None = option(
        "Folder of the data (default: CNNBENCH_DATA, else data).", default=None, metavar="DIR"
    )
    epochs: int | None = option(f"Epochs of the training (default: {EPOCHS}).", default=None, metavar="N", least=1)
    image_size: int | None = option(
        f"Height and width of the images in pixels (default: that of the data, at most {LARGEST_SIZE}).",
        default=None,
        metavar="N",
        least=1,
    )
    config: Path | None = option(
        "YAML file of what to train in place of that, as for `cnnbench fit`.", default=None, metavar="FILE"
    )
    weights: Literal["reference"] | None = option(
        f"Take the shipped weights of {SHIPPED}, and train nothing but the pair of the part on shifts.",
        default=None,
    )
    out: Path = option("Folder of the page.", default=Path("results/gallery"), metavar="DIR")
    trust: tuple[str, ...] = option("Modules whose networks --config may name.", default=(), metavar="MODULE")

    def __post_init__(self) -> None:
        if self.weights is not None:
            for name in ("config", "epochs", "image_size"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"--{name} is about a training, and --weights reference trains nothing; leave one of them out"
                    )
        if self.config is not None:
            for name in ("data", "epochs", "image_size"):
                if getattr(self, name) is not None:
                    raise UserError(f"--{name} is decided by the file of --config; leave it out")
            if not self.config.is_file():
                raise UserError(f"config '{self.config}' does not exist; experiments/ has some")


def run(options: Options) -> int:
    """Train a network or take the shipped weights, run every tool and write ``index.html``; return 0.

    Raises:
        UserError: The data is missing.
    """
    start = time.perf_counter()
    if options.data_dir:  # the tools take the folder from the environment
        os.environ["CNNBENCH_DATA"] = options.data_dir
    if options.weights is not None:
        checkpoint = weights_file(SHIPPED, options.data or TRAINED_ON)
        trained = describe_training(checkpoint, MADE_BY)
    else:
        runs = options.out / "runs"
        recipe = _recipe(options)
        note(f"training a network, {_length(options)}")
        fit_options = [*recipe, f"--out={runs}"]
        if options.trust:
            # `fit` checks the names in its configuration itself, so it needs the same trust.
            fit_options.append(f"{OPTION}={','.join(options.trust)}")
        checkpoint = train(fit_options, runs)
        trained = describe_training(checkpoint, shlex.join(["cnnbench", "fit", *fit_options]), options.trust)
    shown = []
    for number, part in enumerate(PARTS, 1):
        note(f"[{time.perf_counter() - start:3.0f} s] {number} of {len(PARTS)}: {part.title}")
        words = trained.words(part)
        with progress.doing(part.title):
            shown.append((part, run_tool(words[0], words[1:])))
    path = options.out / "index.html"
    with progress.doing("writing the page"):
        write_text(path, page(shown, trained))
    note(f"gallery: {path}")
    return 0


def _length(options: Options) -> str:
    """Return words for how the network is trained: by which file, or for how many epochs."""
    if options.config is not None:
        return f"by {options.config}"
    epochs = options.epochs or EPOCHS
    return f"{epochs} epoch{'s' if epochs != 1 else ''}"


def _recipe(options: Options) -> list[str]:
    """Return the options of ``cnnbench fit`` that train the network."""
    from cnnbench.data import get_data

    if options.config is not None:
        return [f"--config={options.config}"]
    data = options.data or TRAINED_ON
    source = get_data(data)  # raises for an unknown name
    size, extra = options.image_size, []
    if size is None and source.cls.default_size > LARGEST_SIZE:
        size = LARGEST_SIZE
        note(
            f"images of {size} pixels, since the page would take long with {source.cls.default_size}; see --image_size"
        )
    if size is not None:
        extra = [f"--data.image_size={size}"]
    opened = source() if size is None else source(image_size=size)
    opened.prepare_data()
    batch_size = opened.smaller_batch()
    if batch_size is not None:
        extra.append(f"--data.batch_size={batch_size}")
    recipe = [f"--model={MODEL}", f"--data={data}", *extra, *RECIPE]
    return [*recipe, f"--trainer.max_epochs={options.epochs or EPOCHS}"]


def train(fit_options: Sequence[str], runs: Path) -> Path:
    """Train with ``cnnbench fit`` and return the last checkpoint.

    Args:
        fit_options: Options of ``cnnbench fit``.
        runs: Folder for run folders, which must be that of ``--out`` in the options.
    """
    from cnnbench.commands.fit import main as fit

    # `fit` prints the name of its run folder but does not return it, so the new folder is looked for.
    before = set(runs.glob("*/*"))
    fit(["fit", *fit_options, "--trainer.enable_progress_bar=false"])
    (made,) = set(runs.glob("*/*")) - before
    return made / "checkpoints" / "last.ckpt"


def describe_training(checkpoint: Path, command: str, trusted: Sequence[str] = ()) -> Trained:
    """Return what the page says about a trained network.

    Args:
        checkpoint: Checkpoint of the trained network.
        command: Command line that trained it.
        trusted: Modules whose networks the checkpoint may name.

    Raises:
        UserError: The checkpoint does not name the data set of its training.
    """
    from cnnbench.explain.networks import load_checkpoint

    subject = load_checkpoint(checkpoint, DataOptions(trust=tuple(trusted)))
    data = subject.data
    if data is None:
        raise UserError(f"checkpoint '{checkpoint}' does not say what it was trained on")
    # The label of a data set depends on the copy that is on the disk, so the files have to be read first.
    data.prepare_data()
    data.setup()
    # These words name the data set to the tools, so arguments appear only where they differ from the defaults.
    data_words = [str(data.name)]
    if data.image_size != data.default_size:
        data_words.append(f"--image_size={data.image_size}")
    # Only some data sets, such as Synthetic, let the user choose the number of channels.
    default = inspect.signature(type(data)).parameters.get("in_channels")
    if default is not None and data.in_channels != default.default:
        data_words.append(f"--in_channels={data.in_channels}")
    trust = []
    if trusted:
        trust.append(f"{OPTION}={','.join(trusted)}")
    return Trained(written_name(subject.model), data.label, checkpoint, command, data_words, trust)


def written_name(model: Any) -> str:
    """Return a network as it is written on the command line: its name, with the arguments that are not defaults."""
    chosen = []
    for key, parameter in inspect.signature(type(model).__init__).parameters.items():
        # For a network from outside the zoo, `display_name` already is the argument ``name``.
        if key == "name" or key not in model.hparams:
            continue
        value = _as_list(model.hparams[key])
        if value != _as_list(parameter.default):
            chosen.append(f"{key}={value}")
    name = str(model.display_name)
    if chosen:
        name += f"({','.join(chosen)})"
    return name


def _as_list(value: Any) -> Any:
    """Return a tuple as a list, which is what a checkpoint makes of it, and any other value unchanged."""
    return list(value) if isinstance(value, tuple) else value
