"""The command `cnnbench explain gallery`: show a trained network with every teaching tool on one page."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cnnbench import progress
from cnnbench.console import note
from cnnbench.errors import Stopped, UserError, unknown
from cnnbench.explain import run as run_tool
from cnnbench.explain.options import TOOLS
from cnnbench.files import make_folder, write_text
from cnnbench.options import option
from cnnbench.trust import OPTION

if TYPE_CHECKING:
    from cnnbench.explain.gallery import Trained

EXAMPLE = "--ckpt_path results/runs/ResNet18-CIFAR10/<date>/checkpoints/last.ckpt --out gallery"
MODEL = "SimpleCNN(convs=5x5,batch_norm=True,dropout=0.0)"
"""Network that `--train` trains: the one of the course, with filters that are large enough to be looked at."""
RECIPE = (
    "--model.optimizer=cnnbench.optimizers.MuonSGD --model.optimizer.lr=0.06 --model.optimizer.matrix_lr=0.03 "
    "--model.optimizer.vector_lr=0.03 --model.schedule=linear"
).split()
"""Options of the training. Muon moves the filters far away from their random start within a few epochs; with AdamW they
stay noisy."""
TRAINED_ON, EPOCHS = "CIFAR10", 3
"""Data set, for shipped weights too, and number of epochs of the training, by default."""
LARGEST_SIZE = 64
"""Largest height and width of the images by default. With --blurpool three networks are trained, which takes most of an
hour at 224 pixels on two cores."""
SHIPPED = "SimpleCNN"
"""Network whose weights, which the package ships, are shown by default. It is the network of the course."""
TRAINING = ("config", "epochs", "image_size")
"""Options that are about a training alone."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make one page of all tools, in the course's order, with exercises and a window to move.

    The page shows a trained network: the SimpleCNN that the package ships, the network of a checkpoint, or one that
    is trained for the page.
    """

    ckpt_path: Path | None = option(
        "Show the network of this checkpoint of `cnnbench fit`; nothing is trained.", default=None, metavar="FILE"
    )
    weights: Literal["reference"] | None = option(
        f"Show {SHIPPED} with the weights that the package ships; nothing is trained. This is the default, on "
        f"{TRAINED_ON}, unless an option of a training is given.",
        default=None,
    )
    train: bool = option(
        "Train a network for the page, which takes minutes; --data, --epochs, --image_size and --config do so too.",
        default=False,
    )
    data: str | None = option(
        f"Data set to train on (default: {TRAINED_ON}); with --weights reference, the one of the shipped weights; with "
        "--ckpt_path, the images to show (default: those of its training).",
        default=None,
        metavar="NAME",
        names="data",
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
    blurpool: bool = option(
        "In the part on shifts, train a network with and without BlurPool and compare them, which takes minutes "
        "(default: show the network of the page alone).",
        default=False,
    )
    parts: tuple[str, ...] | None = option(
        "Tools to show, such as convolution,sizes (default: all of `cnnbench explain`).", default=None, metavar="A,B"
    )
    out: Path = option("Folder of the page.", default=Path("results/gallery"), metavar="DIR")
    trust: tuple[str, ...] = option(
        "Modules whose networks --config or --ckpt_path may name.", default=(), metavar="MODULE"
    )

    def __post_init__(self) -> None:
        for name in self.parts or ():
            if name not in TOOLS:
                raise unknown("part of the gallery", name, list(TOOLS))
        self._check_source()
        if self.config is not None:
            for name in ("data", "epochs", "image_size"):
                if getattr(self, name) is not None:
                    raise UserError(f"--{name} is decided by the file of --config; leave it out")
            if not self.config.is_file():
                raise UserError(f"config '{self.config}' does not exist; experiments/ has some")

    def _check_source(self) -> None:
        """Raise UserError if the options name more than one network."""
        if self.weights is not None and self.ckpt_path is not None:
            raise UserError("--weights reference and --ckpt_path name two networks; leave one of them out")
        without = "--weights reference" if self.weights is not None else "--ckpt_path"
        if self.weights is None and self.ckpt_path is None:
            return
        asked = [name for name in TRAINING if getattr(self, name) is not None]
        if self.train:
            asked.append("train")
        for name in asked:
            raise UserError(f"--{name} is about a training, and {without} trains nothing; leave one of them out")

    @property
    def trains(self) -> bool:
        """Return whether a network is trained for the page."""
        if self.weights is not None or self.ckpt_path is not None:
            return False
        return self.train or any(getattr(self, name) is not None for name in ("data", *TRAINING))


def run(options: Options) -> int:
    """Find or train a network, run every tool on it and write ``index.html``; return 0.

    Raises:
        UserError: The checkpoint or the data is missing, they do not fit each other, or the folder of the page cannot
            be written to.
    """
    # These imports take a second or two, and the help of the command does without them.
    from cnnbench.commands.gallery_network import describe_shipped, describe_training

    start = time.perf_counter()
    if options.data_dir:  # the tools take the folder from the environment
        os.environ["CNNBENCH_DATA"] = options.data_dir
    if options.trains:
        checkpoint, command = _train(options)
        trained = describe_training(checkpoint, command, options.trust)
        try:
            _write_page(options, trained, start)
        except Stopped as stop:
            stop.hint = f"the trained network was kept; show it with: {shlex.join(_words_to_show(options, checkpoint))}"
            raise
        return 0
    if options.ckpt_path is not None:
        trained = describe_training(options.ckpt_path, "", options.trust, options.data)
    else:
        trained = describe_shipped(SHIPPED, options.data or TRAINED_ON)
    _write_page(options, trained, start)
    return 0


def _words_to_show(options: Options, checkpoint: Path) -> list[str]:
    """Return the command that makes the page of a network that was trained for it."""
    words = ["cnnbench", "explain", "gallery", "--ckpt_path", str(checkpoint), "--out", str(options.out)]
    if options.parts is not None:
        words += ["--parts", ",".join(options.parts)]
    if options.blurpool:
        words.append("--blurpool")
    if options.trust:
        words += [OPTION, ",".join(options.trust)]
    return words


def _write_page(options: Options, trained: Trained, start: float) -> None:
    """Run every tool on a network and write ``index.html``.

    Args:
        options: Options of the command.
        trained: Network of the page.
        start: When the command started, in seconds of `time.perf_counter`.
    """
    from cnnbench.explain.gallery import chosen_parts, page

    make_folder(options.out, "--out")
    parts = chosen_parts(options.parts, options.blurpool)
    shown = []
    for number, part in enumerate(parts, 1):
        note(f"[{time.perf_counter() - start:3.0f} s] {number} of {len(parts)}: {part.title}")
        words = trained.words(part)
        with progress.doing(part.title):
            shown.append((part, run_tool(words[0], words[1:])))
    path = options.out / "index.html"
    with progress.doing("writing the page"):
        write_text(path, page(shown, trained))
    note(f"gallery: {path} ({time.perf_counter() - start:.0f} s)")


def _train(options: Options) -> tuple[Path, str]:
    """Train a network by ``cnnbench fit``, and return its checkpoint and the command that trained it."""
    runs = options.out / "runs"
    recipe = _recipe(options)
    make_folder(options.out, "--out")
    note(f"training a network, {_length(options)}")
    fit_options = [*recipe, f"--out={runs}"]
    if options.trust:
        # `fit` checks the names in its configuration itself, so it needs the same trust.
        fit_options.append(f"{OPTION}={','.join(options.trust)}")
    checkpoint = train(fit_options, runs)
    return checkpoint, shlex.join(["cnnbench", "fit", *fit_options])


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
