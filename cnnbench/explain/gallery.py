"""The page of all instruments: its parts in the course's order, and how it is put together."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cnnbench.explain import Explanation, Picture, save
from cnnbench.pages import data_uri, render

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


def page(shown: Sequence[tuple[Part, Explanation]], trained: Trained) -> str:
    """The page, which needs nothing else.

    Args:
        shown: Parts and what their tools found.
        trained: The network that some of them looked at.
    """

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
