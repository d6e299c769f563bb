"""The gallery: one HTML page that shows every tool of `cnnbench explain`, in the order of the course.

`PARTS` lists the tools with their options. `page` turns what they return into the page.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cnnbench.explain import Explanation, Picture, save
from cnnbench.pages import data_uri, render

CHECKPOINT, DATA = "CHECKPOINT", "DATA"
"""Placeholders for the trained network and its data in the commands of `PARTS`."""
READABLE = 60
"""Smallest readable scale, in pixels of the page per inch of a figure; below it, letters of 8 points are too small."""


class Trained(NamedTuple):
    """Trained network that some parts of the page look at.

    Attributes:
        model: Name of the network, with its arguments.
        label: Name of its data set for readers.
        checkpoint: Path of its checkpoint.
        command: Command that trains the network.
        data: Words that follow ``--data`` in the command of a tool: the data set and its options.
        trust: Option ``--trust`` for reading the checkpoint, if the network is defined in a module of the user.
    """

    model: str
    label: str
    checkpoint: Path
    command: str
    data: Sequence[str]
    trust: Sequence[str] = ()

    def words(self, part: Part) -> list[str]:
        """Return the tool and the options of a part, with this network and its data in place of the placeholders."""
        values = {CHECKPOINT: [str(self.checkpoint), *self.trust], DATA: self.data}
        words: list[str] = []
        # As in a shell, an argument in quotes is one word, whatever spaces and brackets it contains.
        for word in shlex.split(part.command):
            words += values.get(word, [word])
        return words


class Part(NamedTuple):
    """Part of the page: a tool with its options.

    Attributes:
        title: Heading of the part.
        question: Question that the part answers, in about two sentences.
        command: Tool and options, as they follow ``cnnbench explain`` on the command line, with placeholders.
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
"""Parts of the page in the order of the course, with its exercises last.

The part on shifts stands where the course treats pooling, although the course mentions shifts at its start.
"""


def page(shown: Sequence[tuple[Part, Explanation]], trained: Trained) -> str:
    """Return the page as HTML that needs no other files.

    Args:
        shown: Parts of the page, each with the explanation that its tool returned.
        trained: Trained network that some of the tools looked at.
    """

    def picture_uri(picture: Picture) -> str:
        out = io.BytesIO()
        # WebP takes a tenth of PNG's size with photos. `save` ignores the format for the frames of an animation, which
        # are always a GIF.
        save(picture, out, format="webp", dpi=130, pil_kwargs={"quality": 90})
        kind = "image/gif" if isinstance(picture.image, Sequence) else "image/webp"
        return data_uri(out.getvalue(), kind)

    def command(part: Part) -> str:
        # Quotes around words with special characters let readers copy the command into a shell.
        return shlex.join(["cnnbench", "explain", *trained.words(part)])

    # The number of the part that trains a network of its own, which the page mentions at its top.
    second = next((n for n, (part, _) in enumerate(shown, 1) if "--train_steps" in part.command), None)
    return render(
        "gallery",
        shown=shown,
        trained=trained,
        second=second,
        picture_uri=picture_uri,
        command=command,
        width=_readable_width,
    )


def _readable_width(picture: Picture) -> int:
    """Return the smallest readable width of a picture in pixels; 0 for an animation, which has none.

    On a narrower screen the page shows the picture at this width and lets the reader scroll.
    """
    if isinstance(picture.image, Sequence):
        return 0
    return round(picture.image.get_figwidth() * READABLE)
