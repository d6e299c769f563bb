"""The network that a tool looks at, trained or with random weights, and images in the form that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import cbook
from torch import Tensor, nn

from cnnbench.checkpoints import read_checkpoint
from cnnbench.data import get_data
from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError
from cnnbench.explain.options import DataOptions, NetworkOptions
from cnnbench.images import read_rgb
from cnnbench.network import get_network
from cnnbench.references import weights_file
from cnnbench.trust import Trust

PHOTO = "grace_hopper.jpg"
"""Photo that comes with matplotlib: Grace Hopper, 1984, by the US Navy, in the public domain."""


class Subject(NamedTuple):
    """Network in evaluation mode on the CPU, and the data set for it.

    Attributes:
        name: Name of the network for readers.
        model: The network itself.
        image_shape: Channels, height and width of its images, (C, H, W).
        trained: Whether its weights come from a checkpoint.
        data: Data set that the user named, or else the one that the network was trained on; None if there is none.
        caveat: Sentence that warns that the network was trained on other images than those of `data`, or on images that
            are not known; empty otherwise.
    """

    name: str
    model: nn.Module
    image_shape: tuple[int, int, int]
    trained: bool
    data: ImageDataModule | None
    caveat: str = ""

    @property
    def description(self) -> str:
        """Return the name and the state of the weights, for titles."""
        state = "trained" if self.trained else "random weights"
        return f"{self.name}, {state}"


def find_subject(options: NetworkOptions) -> Subject:
    """Return the network that the options name, in evaluation mode.

    Raises:
        UserError: The network, its checkpoint or its data does not exist, or options contradict each other.
    """
    options.check_network()
    path = options.ckpt_path
    if options.weights is not None:
        assert options.model is not None
        path = weights_file(options.model, options.data)
    if path is not None:
        for key, value in options.form.items():
            if value is not None:
                raise UserError(f"--{key} is decided by the checkpoint; leave it out")
        return load_checkpoint(path, options)
    assert options.model is not None
    # Random weights. With a data set, its channels, size and classes take the place of what the user left open.
    form = options.form
    data = None
    if options.data is not None:
        data = _open_data(options.data, options, options.image_size, options.in_channels)
        own = {"in_channels": data.in_channels, "image_size": data.image_size, "num_classes": data.num_classes}
        form |= {key: value for key, value in own.items() if form[key] is None}
    network = get_network(options.model, form["in_channels"], form["image_size"], form["num_classes"])
    # Initial weights are drawn from torch's global generator, so its seed decides them.
    torch.manual_seed(options.seed)
    model = network.build().eval()
    return Subject(network.name, model, network.image_shape, False, data)


def load_checkpoint(path: Path, options: DataOptions) -> Subject:
    """Return a trained network from a checkpoint of ``cnnbench fit``, with the data set that it was trained on.

    Args:
        path: Path of the checkpoint.
        options: Options of the tool. A data set that they name takes the place of the one in the checkpoint.

    Raises:
        UserError: The file is missing, is not such a checkpoint, names code that is not trusted, or does not fit the
            present version of the network; or the data set's images have another number of channels than the network
            takes.
    """
    if not path.exists():
        raise UserError(f"checkpoint '{path}' does not exist; `cnnbench fit` prints the path of the one it wrote")
    model, trained_on, data_options = read_checkpoint(path, Trust.of(options.trust))
    shape = (model.in_channels, model.image_size, model.image_size)
    name = options.data or trained_on
    if name is None:
        return Subject(model.display_name, model.eval(), shape, True, None)
    # The options of the data that the checkpoint stored apply only to the data set that it was trained on.
    own = options.data in (None, trained_on)
    stored: Mapping[str, Any] = {}
    if own and data_options:
        stored = data_options
    data = _open_data(name, options, model.image_size, model.in_channels, stored)
    if data.in_channels != model.in_channels:
        raise UserError(
            f"the network takes images of {model.in_channels} channels, those of {data.label} have {data.in_channels}"
        )
    caveat = ""
    if not own:
        caveat = f"The network was trained on {trained_on or 'other data'}, not on {data.title}."
    elif data_options is None:
        caveat = (
            f"Images are from the official training set of {data.title}; which of them the network was trained on is "
            "not known, since the checkpoint does not say."
        )
    return Subject(model.display_name, model.eval(), shape, True, data, caveat)


def _open_data(
    name: str,
    options: DataOptions,
    image_size: int | None,
    in_channels: int | None,
    stored: Mapping[str, Any] = MappingProxyType({}),
) -> ImageDataModule:
    """Return a data set with images of the size and the channels that a network takes.

    Args:
        name: Name of the data set.
        options: Options of the tool, of which the folder of the data is used.
        image_size: Height and width of the images in pixels; None for the data set's own.
        in_channels: Channels of the images; None for the data set's own. Data sets without a choice ignore it.
        stored: Arguments of the data set that the checkpoint stored.
    """
    source = get_data(name)
    source.check(stored, f"data set '{name}' of the checkpoint")
    # The folder and the size of the images are those of this call, whatever the checkpoint stored.
    chosen: dict[str, Any] = {**stored, "data_dir": options.data_dir, "image_size": image_size}
    if in_channels and "in_channels" in signature(source.cls).parameters:
        chosen["in_channels"] = in_channels
    return source(**chosen)


def normalised(images: Tensor, data: ImageDataModule | None) -> Tensor:
    """Return images normalised by the data set's mean and standard deviation, (N, C, H, W).

    Without a data set, or with one of another number of channels, mean and standard deviation are 0.5.

    Args:
        images: Images with values from 0 to 1, (N, C, H, W).
        data: Data set of the network, or None.
    """
    mean, std = (0.5,) * images.shape[1], (0.5,) * images.shape[1]
    if data is not None and data.in_channels == images.shape[1]:
        mean, std = data.mean, data.std
    # A shape of (1, C, 1, 1) broadcasts over images and positions.
    return (images - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)


def predict(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the logits of a network, (N, K), for batches of images and labels, as the loaders of a data set yield."""
    logits = []
    with torch.inference_mode():
        for images, _ in batches:
            # The channels of a pixel lie side by side in memory, as they do in training by default.
            logits.append(model(images.contiguous(memory_format=torch.channels_last)))
        return torch.cat(logits).float()


def read_photo(path: Path | None = None) -> np.ndarray:
    """Return an image file as RGB, (H, W, 3), uint8; without a path, the photo that comes with matplotlib.

    The image is rotated according to its EXIF data, transparent pixels become white, and 16-bit grey becomes 8-bit.

    Raises:
        UserError: The file is not a readable PNG or JPEG, or is too large.
    """
    if path is None:
        path = Path(cbook.get_sample_data(PHOTO, asfileobj=False))
    return read_rgb(path)


def image_for(shape: tuple[int, int, int], photo: np.ndarray) -> Tensor:
    """Return the middle square of a photo, resized for a network, (1, C, H, W), with values from 0 to 1.

    Args:
        shape: Channels (1 for grey or 3), height and width of the result.
        photo: RGB photo, (H, W, 3), uint8.

    Raises:
        UserError: The number of channels is neither 1 nor 3.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise UserError(f"the network takes images of {channels} channels, a photo has 3 or 1; use --in_channels 3")
    # The largest square in the middle of the photo, since networks take square images.
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    # Arrays from Pillow are read-only, about which torch warns; the copy is not.
    x = torch.from_numpy(photo[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float() / 255
    # Without antialiasing, detail that is finer than the new pixels would appear as false patterns.
    x = F.interpolate(x, (height, width), mode="bilinear", antialias=True)
    if channels == 1:
        # Grey is the luma of ITU-R BT.601.
        x = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return x
