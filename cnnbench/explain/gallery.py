"""The gallery: one HTML page that shows every tool of `cnnbench explain`, in the order of the course.

`PARTS` lists the tools with their options. `page` turns what they return into the page, adds the exercises of
`cnnbench.explain.exercises` to them, and a script with which readers move a window themselves.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cnnbench.explain import Explanation, Picture, save
from cnnbench.explain.exercises import Exercise, exercises
from cnnbench.pages import data_uri, render, script

NETWORK, TESTED, CHECKPOINT, DATA = "NETWORK", "TESTED", "CHECKPOINT", "DATA"
"""Placeholders in the commands of `PARTS`: the options that name the trained network, for most tools and for
`confusions`; the path of its checkpoint; and the options that name its data."""
READABLE = 60
"""Smallest readable scale, in pixels of the page per inch of a figure; below it, letters of 8 points are too small."""


class Trained(NamedTuple):
    """Trained network that some parts of the page look at.

    Attributes:
        model: Name of the network, with its arguments.
        label: Name of its data set for readers.
        checkpoint: Path of its checkpoint.
        data: Words that follow ``--data`` in the command of a tool: the data set and its options.
        history: Sentences on how the network was trained, and how good it is.
        command: Command that trained the network; empty if it is not known.
        trust: Option ``--trust`` for reading the checkpoint, if the network is defined in a module of the user.
        shipped: Name of the network if its weights come with the package; empty otherwise.
        other_images: Whether the images are from another data set than the one that the network was trained on.
    """

    model: str
    label: str
    checkpoint: Path
    data: Sequence[str]
    history: Sequence[str] = ()
    command: str = ""
    trust: Sequence[str] = ()
    shipped: str = ""
    other_images: bool = False

    def words(self, part: Part) -> list[str]:
        """Return the tool and the options of a part, with this network and its data in place of the placeholders."""
        path = [str(self.checkpoint), *self.trust]
        named = ["--ckpt_path", *path]
        if self.other_images:
            named += ["--data", self.data[0]]
        values = {NETWORK: named, TESTED: named, CHECKPOINT: path, DATA: self.data}
        if self.shipped:
            # These words mean the same on every machine; the path of the checkpoint does not.
            shipped = [self.shipped, "--data", self.data[0], "--weights", "reference"]
            values |= {NETWORK: shipped, TESTED: ["--models", *shipped]}
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

    @property
    def tool(self) -> str:
        """Return the name of the tool."""
        return self.command.split()[0]


PARTS = (
    Part(
        "Why convolutions",
        "A dense layer could make the same maps from an image. What do locality and sharing save?",
        "parameters",
    ),
    Part(
        "The sliding window",
        "A kernel slides over the image, and at every place there is one number. How is it computed, and how fast?",
        "convolution --sizes 16,64,128 --kernels 3,7,15,31 --rounds 3",
    ),
    Part(
        "Classic filters",
        "Before networks learnt their filters, people designed them. What does each of them answer to?",
        "kernels",
    ),
    Part(
        "Shifts",
        "A convolution should not care where a thing is. Do its maps follow a shifted image, and does the class stay?",
        "equivariance NETWORK",
    ),
    Part(
        "Learnt filters",
        "Nobody has designed these. Do they look like the classic ones?",
        "filters NETWORK",
    ),
    Part(
        "Feature maps",
        "What do layers answer to an image, where does the network look, and which patches excite a channel most?",
        "feature-maps NETWORK",
    ),
    Part(
        "Sizes",
        "Maps shrink on their way through a network while channels are added. Where are its parameters and its memory?",
        "sizes VGG16 --image_size 224 --num_classes 1000",
    ),
    Part(
        "The receptive field",
        "Which part of the image can a unit see, and to which part does it attend?",
        "receptive-field VGG16 --image_size 224 --samples 2 --dilations '1,1,1 2,2,2 1,2,5 1,2,5,6+12+18'",
    ),
    Part(
        "What is confused",
        "Which classes does the network mistake for which, and would you have known better?",
        "confusions TESTED",
    ),
    Part(
        "Separable convolutions",
        "One filter per channel and a 1x1 convolution do the work of a standard convolution with a fraction of the "
        "multiply-adds. How much of that is time?",
        "separable --channels 32,128 --resolutions 8,32",
    ),
)
"""Parts of the page in the order of the course, with its exercises last. Their races and samples are small, so that the
page is there in about a minute.

The part on shifts stands where the course treats pooling, although the course mentions shifts at its start.
"""
BLURPOOL = "equivariance 'SimpleCNN(batch_norm=True,dropout=0.0)' --data DATA --train_steps 250 --compare CHECKPOINT"
"""Command of the part on shifts that trains a network with and without BlurPool first."""


def chosen_parts(tools: Sequence[str] | None, blurpool: bool) -> list[Part]:
    """Return the parts of a page.

    Args:
        tools: Tools of the parts, all of them valid; None for all parts.
        blurpool: Whether the part on shifts trains a network with and without BlurPool.
    """
    parts = []
    for part in PARTS:
        if tools is None or part.tool in tools:
            blurs = blurpool and part.tool == "equivariance"
            parts.append(part._replace(command=BLURPOOL) if blurs else part)
    return parts


class _ShownPicture(NamedTuple):
    """Picture as the page shows it.

    Attributes:
        title: Title of a few words.
        caption: Sentences that explain it.
        anchor: Name of the place of the picture on the page.
        uri: The picture as a data URI.
        still: Last frame of an animation as a data URI, for paper and for readers who want no motion; otherwise empty.
        width: Smallest readable width in pixels, at which a narrow screen shows it; 0 for an animation, which has none.
    """

    title: str
    caption: str
    anchor: str
    uri: str
    still: str
    width: int

    @property
    def moving(self) -> bool:
        """Return whether the picture is an animation."""
        return bool(self.still)


class _ShownPart(NamedTuple):
    """Part as the page shows it: texts of `Part`, the whole command, and what the tool returned."""

    title: str
    question: str
    tool: str
    command: str
    found: Explanation
    pictures: list[_ShownPicture]
    exercises: list[Exercise]


def page(shown: Sequence[tuple[Part, Explanation]], trained: Trained) -> str:
    """Return the page as HTML that needs no other files.

    Args:
        shown: Parts of the page, each with the explanation that its tool returned.
        trained: Trained network that some of the tools looked at.
    """
    parts = []
    for number, (part, found) in enumerate(shown, 1):
        pictures = [_shown_picture(picture, f"picture{number}-{picture.name}") for picture in found.pictures]
        # Quotes around words with special characters let readers copy the command into a shell.
        command = shlex.join(["cnnbench", "explain", *trained.words(part)])
        own = exercises(part.tool, found)
        parts.append(_ShownPart(part.title, part.question, part.tool, command, found, pictures, own))
    # The number of the part that trains a network of its own, which the page mentions at its top.
    second = next((n for n, (part, _) in enumerate(shown, 1) if "--train_steps" in part.command), None)
    return render("gallery", parts=parts, trained=trained, second=second, script=script("gallery"))


def _shown_picture(picture: Picture, anchor: str) -> _ShownPicture:
    """Return a picture as data URIs: WebP, a tenth of PNG's size with photos, or GIF with a still for an animation."""
    out = io.BytesIO()
    # `save` ignores the format for an animation, which is always a GIF.
    save(picture, out, format="webp", dpi=130, pil_kwargs={"quality": 90})
    if not isinstance(picture.image, Sequence):
        width = round(picture.image.get_figwidth() * READABLE)
        uri = data_uri(out.getvalue(), "image/webp")
        return _ShownPicture(picture.title, picture.caption, anchor, uri, "", width)
    still = io.BytesIO()
    picture.image[-1].save(still, format="PNG")
    uris = data_uri(out.getvalue(), "image/gif"), data_uri(still.getvalue(), "image/png")
    return _ShownPicture(picture.title, picture.caption, anchor, *uris, 0)
