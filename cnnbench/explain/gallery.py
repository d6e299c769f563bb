"""The gallery: a small network is trained, and every tool of the course shows what it shows, on one page.

``cnnbench explain gallery``, or ``make gallery``.
"""

from __future__ import annotations

import argparse
import inspect
import io
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cnnbench.console import note
from cnnbench.errors import UserError
from cnnbench.explain import Explanation, Picture, run, save
from cnnbench.files import write_text
from cnnbench.reference import weights_file
from cnnbench.registry import split_names
from cnnbench.trust import OPTION

MODEL = "SimpleCNN(convs=5x5,batch_norm=True,dropout=0.0)"
"""What is trained: the course's network, with filters that are large enough to be looked at."""
RECIPE = (
    "--model.optimizer=cnnbench.optimizers.MuonSGD --model.optimizer.lr=0.06 --model.optimizer.matrix_lr=0.03 "
    "--model.optimizer.vector_lr=0.03 --model.schedule=linear --data.batch_size=128"
).split()
"""How: Muon turns filters far from their random start within few epochs, where AdamW leaves them noisy."""
TRAINED_ON, EPOCHS = "CIFAR10", 3
SHIPPED, MADE_BY = "SimpleCNN", "cnnbench bench --config experiments/bench/reference-cpu-small.yaml"
"""The network whose weights the package ships, and what trained it."""
CHECKPOINT, DATA = "CHECKPOINT", "DATA"
"""Stand for the trained network and its data in the options below."""
READABLE = 60
"""Pixels of a page for an inch of a figure, below which letters of 8 points are too small to be read."""


class Trained(NamedTuple):
    """The network that was trained for the page.

    Attributes:
        model: Its name with its arguments.
        label: What its data is called.
        checkpoint: Where it lies.
        command: That trains it.
        data: Its data as options of a tool, after ``--data``.
        trust: The option that reading its checkpoint needs, if it is of a module of the user's.
    """

    model: str
    label: str
    checkpoint: Path
    command: str
    data: Sequence[str]
    trust: Sequence[str] = ()

    def words(self, part: Part) -> list[str]:
        """Tool and options of a part, with this network and its data."""
        values = {CHECKPOINT: [str(self.checkpoint), *self.trust], DATA: self.data}
        return [word for template in shlex.split(part.command) for word in values.get(template, [template])]


class Part(NamedTuple):
    """A tool in the gallery.

    Attributes:
        title: Heading.
        question: What it answers, in a sentence or two.
        command: Tool and options, as after ``cnnbench explain``.
    """

    title: str
    question: str
    command: str


PARTS = (
    Part(
        "Why convolutions",
        "A dense layer could make the same maps from an image. What do locality and sharing save?",
        "parameters",
    ),
    Part(
        "The sliding window",
        "A kernel slides over the image, and at every place there is one number. How is it computed, and how fast?",
        "convolution",
    ),
    Part(
        "Classic filters",
        "Before networks learnt their filters, people designed them. What does each of them answer to?",
        "kernels",
    ),
    Part(
        "Shifts",
        "A convolution should not care where a thing is. Do its maps follow a shifted image, and does the class stay?",
        "equivariance 'SimpleCNN(batch_norm=True,dropout=0.0)' --data DATA --train_steps 250 --compare CHECKPOINT",
    ),
    Part(
        "Learnt filters",
        "Nobody has designed these. Do they look like the classic ones?",
        "filters --ckpt_path CHECKPOINT",
    ),
    Part(
        "Feature maps",
        "What do layers answer to an image, where does the network look, and which patches excite a channel most?",
        "feature-maps --ckpt_path CHECKPOINT",
    ),
    Part(
        "Sizes",
        "Maps shrink on their way through a network while channels are added. Where are its parameters and its memory?",
        "sizes VGG16 --image_size 224 --num_classes 1000",
    ),
    Part(
        "The receptive field",
        "Which part of the image can a unit see, and to which part does it attend?",
        "receptive-field VGG16 --image_size 224 --dilations '1,1,1 2,2,2 1,2,5 1,2,5,6+12+18'",
    ),
    Part(
        "What is confused",
        "Which classes does the network mistake for which, and would you have known better?",
        "confusions --ckpt_path CHECKPOINT",
    ),
    Part(
        "Separable convolutions",
        "One filter per channel and a 1x1 convolution do the work of a standard convolution with a fraction of the "
        "multiply-adds. How much of that is time?",
        "separable",
    ),
)
"""In the course's order, its exercises last. Shifts, of which it speaks at the start, stand where it has pooling."""


def main(arguments: Sequence[str], make_parser: Callable[..., Any]) -> int:
    """Runs ``cnnbench explain gallery``: trains, runs the tools, writes ``index.html``.

    Raises:
        UserError: An option is wrong, or the data is missing.
    """
    parser = make_parser(
        prog="cnnbench explain gallery",
        description="Trains a small network and makes one page of all instruments, in the course's order.",
        epilog="example: cnnbench explain gallery --config experiments/cifar10_speednet.yaml --out gallery",
        allow_abbrev=False,
    )
    _add_arguments(parser)
    options = parser.parse_args(list(arguments))
    start = time.perf_counter()
    folder: Path = options.out
    if options.weights is not None:
        trained = _shipped(options)
    else:
        how, arguments = _recipe(options)
        _say(f"training a network, {how}")
        arguments.append(f"--out={folder / 'runs'}")
        if options.trust:
            arguments.append(f"{OPTION}={','.join(options.trust)}")
        checkpoint = _train(arguments, options.data_dir, folder / "runs")
        trained = _trained(checkpoint, shlex.join(["cnnbench", "fit", *arguments]), options.trust)
    shown = []
    for number, part in enumerate(PARTS, 1):
        _say(f"[{time.perf_counter() - start:3.0f} s] {number} of {len(PARTS)}: {part.title}")
        words = trained.words(part)
        shown.append((part, run(words[0], words[1:], make_parser)))
    path = folder / "index.html"
    write_text(path, page(shown, trained))
    _say(f"gallery: {path}")
    return 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="NAME", help=f"data set to train on (default: {TRAINED_ON})")
    add("--data_dir", metavar="DIR", help="folder of the data (default: CNNBENCH_DATA, else data)")
    add("--epochs", type=int, metavar="N", help=f"of the training (default: {EPOCHS})")
    add("--config", type=Path, metavar="FILE", help="what to train in place of it, as for `cnnbench fit`")
    add(
        "--weights", choices=("reference",), help=f"train nothing: take the weights of {SHIPPED} that the package ships"
    )
    add("--out", type=Path, default=Path("results/gallery"), metavar="DIR", help="folder (default: %(default)s)")
    add(OPTION, type=split_names, default=(), metavar="MODULE", help="modules whose networks --config may name")


def _shipped(options: argparse.Namespace) -> Trained:
    """Return the network whose weights the package ships."""
    given = next((name for name in ("config", "epochs") if getattr(options, name) is not None), None)
    if given:
        raise UserError(f"--{given} is about a training, and --weights reference trains nothing; leave one of them out")
    checkpoint = weights_file(SHIPPED, options.data or TRAINED_ON)
    _set_data_dir(options.data_dir)
    return _trained(checkpoint, MADE_BY)


def _set_data_dir(data_dir: str | None) -> None:
    """Have the tools look for data in a folder too."""
    if data_dir:
        os.environ["CNNBENCH_DATA"] = data_dir


def _say(text: str) -> None:
    note(text)


def _recipe(options: argparse.Namespace) -> tuple[str, list[str]]:
    """How to train, in words and as options of ``cnnbench fit``."""
    from cnnbench.data import get_data

    if options.config is not None:
        given = next((name for name in ("data", "epochs") if getattr(options, name) is not None), None)
        if given:
            raise UserError(f"--{given} is decided by the file of --config; leave it out")
        if not options.config.is_file():
            raise UserError(f"config '{options.config}' does not exist; experiments/ has some")
        return f"by {options.config}", [f"--config={options.config}"]
    epochs, data = EPOCHS if options.epochs is None else options.epochs, options.data or TRAINED_ON
    if epochs < 1:
        raise UserError(f"epochs {epochs} must be at least 1")
    get_data(data)
    length = f"{epochs} epoch{'s' if epochs != 1 else ''}"
    recipe = [f"--model={MODEL}", f"--data={data}", *RECIPE, f"--trainer.max_epochs={epochs}"]
    return length, recipe


def _train(arguments: Sequence[str], data_dir: str | None, runs: Path) -> Path:
    """Trains as ``cnnbench fit`` does; returns the last checkpoint."""
    from cnnbench.train import main as train

    before = set(runs.glob("*/*"))
    _set_data_dir(data_dir)
    train(["fit", *arguments, "--trainer.enable_progress_bar=false"])
    (made,) = set(runs.glob("*/*")) - before
    return made / "checkpoints" / "last.ckpt"


def _trained(checkpoint: Path, command: str, trusted: Sequence[str] = ()) -> Trained:
    """What was trained, by a checkpoint, the command that made it, and modules it may name."""
    from cnnbench.explain.subjects import load_checkpoint

    subject = load_checkpoint(checkpoint, argparse.Namespace(data=None, data_dir=None, trust=trusted))
    data = subject.data
    if data is None:
        raise UserError(f"checkpoint '{checkpoint}' does not say what it was trained on")
    data.prepare_data()
    data.setup()
    options = [type(data).__name__]
    if data.image_size != data.default_size:
        options.append(f"--image_size={data.image_size}")
    default = inspect.signature(type(data)).parameters.get("in_channels")
    if default is not None and data.in_channels != default.default:
        options.append(f"--in_channels={data.in_channels}")
    trust = [f"{OPTION}={','.join(trusted)}"] if trusted else []
    return Trained(_written(subject.model), data.label, checkpoint, command, options, trust)


def _written(model: Any) -> str:
    """A network of a checkpoint as it is written on the command line: its name, and arguments that are not defaults."""
    name = model.display_name

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value  # which a file makes of it

    defaults = {key: plain(p.default) for key, p in inspect.signature(type(model).__init__).parameters.items()}
    chosen = {key: plain(model.hparams[key]) for key in defaults if key in model.hparams and key != "name"}
    given = [f"{key}={value}" for key, value in chosen.items() if value != defaults[key]]
    return f"{name}({','.join(given)})" if given else name


def page(shown: Sequence[tuple[Part, Explanation]], trained: Trained) -> str:
    """The page, which needs nothing else.

    Args:
        shown: Parts and what their tools found.
        trained: The network that some of them looked at.
    """
    from cnnbench.pages import data_uri, render

    def picture_uri(picture: Picture) -> str:
        out = io.BytesIO()
        save(picture, out, format="webp", dpi=130, pil_kwargs={"quality": 90})  # a tenth of a PNG where it has photos
        return data_uri(out.getvalue(), "image/gif" if isinstance(picture.image, Sequence) else "image/webp")

    def command(part: Part) -> str:
        return shlex.join(["cnnbench", "explain", *trained.words(part)])

    second = next((n for n, (part, _) in enumerate(shown, 1) if "--train_steps" in part.command), None)
    return render(
        "gallery", shown=shown, trained=trained, second=second, picture_uri=picture_uri, command=command,
        width=_readable_width,
    )  # fmt: skip


def _readable_width(picture: Picture) -> int:
    """Pixels that a picture needs on a page; of a narrower screen it takes more than there is, and is scrolled."""
    image = picture.image
    return 0 if isinstance(image, Sequence) else round(image.get_figwidth() * READABLE)
