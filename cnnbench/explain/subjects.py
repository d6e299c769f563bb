"""What the tools look at: a network, trained or not, and images for it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cnnbench.data.module import ImageDataModule
from cnnbench.errors import UserError
from cnnbench.images import read_rgb
from cnnbench.reference import weights_file
from cnnbench.registry import check_arguments
from cnnbench.trust import Trust

PHOTO = "grace_hopper.jpg"
"""A photo that comes with matplotlib: Grace Hopper, 1984, by the US Navy, in the public domain."""


class Subject(NamedTuple):
    """A network in evaluation mode, on the CPU, and what it is fed with.

    Attributes:
        name: What it is called.
        model: The network.
        image_shape: Channels, height and width of its images.
        trained: Whether its weights come from a checkpoint.
        data: The data set that it was trained on or that the user named; None if there is none.
        caveat: A sentence on trained weights whose training images are not those of ``data``, or not known; else empty.
    """

    name: str
    model: nn.Module
    image_shape: tuple[int, int, int]
    trained: bool
    data: ImageDataModule | None
    caveat: str = ""

    @property
    def description(self) -> str:
        """Name and state, for titles."""
        return f"{self.name}, {'trained' if self.trained else 'random weights'}"


def add_network_arguments(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """A network by name, or from a checkpoint."""
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a name from `cnnbench list`, torchvision:NAME, timm:NAME or "
        "package.module:callable, with random weights; arguments in brackets, quoted")  # fmt: skip
    add("--ckpt_path", type=Path, metavar="FILE", help="a checkpoint of `cnnbench fit`, in place of MODEL")
    add("--weights", choices=("reference",), help="take MODEL with trained weights, which the package ships of a few "
        "small networks")  # fmt: skip
    add("--in_channels", type=int, metavar="C", help="channels of the images (default: the network's own)")
    add("--image_size", type=int, metavar="N", help="height and width in pixels (default: the network's own)")
    add("--num_classes", type=int, metavar="K", help="number of classes (default: the network's own)")
    add("--seed", type=int, default=0, help="of random weights and choices (default: %(default)s)")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """A data set to take images from."""
    add = parser.add_argument
    add("--data", metavar="NAME", help="data set of `cnnbench list` (default: that of the checkpoint)")
    add("--data_dir", metavar="DIR", help="folder of the data (default: CNNBENCH_DATA, else data)")


def find_subject(arguments: argparse.Namespace) -> Subject:
    """The network that the options name, in evaluation mode.

    Raises:
        UserError: It is not there, or the options contradict each other.
    """
    form = {key: getattr(arguments, key) for key in ("in_channels", "image_size", "num_classes")}
    if (arguments.model is None) == (arguments.ckpt_path is None):
        raise UserError("give either a MODEL, for random weights, or --ckpt_path FILE, for a trained network")
    if getattr(arguments, "weights", None) is not None:
        if arguments.model is None:
            raise UserError("--weights reference needs MODEL, such as SimpleCNN")
        arguments = argparse.Namespace(**vars(arguments))
        arguments.ckpt_path = weights_file(arguments.model, getattr(arguments, "data", None))
    if arguments.ckpt_path is not None:
        given = next((key for key, value in form.items() if value is not None), None)
        if given:
            raise UserError(f"--{given} is decided by the checkpoint; leave it out")
        return load_checkpoint(arguments.ckpt_path, arguments)
    from cnnbench.network import get_network

    data = _data(arguments)
    if data is not None:
        own = {"in_channels": data.in_channels, "image_size": data.image_size, "num_classes": data.num_classes}
        form |= {key: value for key, value in own.items() if form[key] is None}
    network = get_network(arguments.model, **form)
    torch.manual_seed(arguments.seed)
    model = network.build().eval()
    return Subject(network.name, model, network.image_shape, False, data)


def load_checkpoint(path: Path, arguments: argparse.Namespace) -> Subject:
    """A trained network from a checkpoint of ``cnnbench fit``, with the data that it was trained on.

    Raises:
        UserError: The file is missing, no such checkpoint, or of another version of the network.
    """
    from cnnbench.checkpoints import read_checkpoint

    if not path.exists():
        raise UserError(f"checkpoint '{path}' does not exist; `cnnbench fit` prints the path of the one it wrote")
    model, stored, options = read_checkpoint(path, Trust.of(getattr(arguments, "trust", ())))
    shape = (model.in_channels, model.image_size, model.image_size)
    own = getattr(arguments, "data", None) in (None, stored)
    data = _data(arguments, stored, shape, (options or {}) if own else {})
    caveat = ""
    if data is not None and not own:
        caveat = f"The network was trained on {stored or 'other data'}, not on {data.title}."
    elif data is not None and options is None:
        caveat = (
            f"Images are from the official training set of {data.title}; which of them the network was trained on is "
            "not known, since the checkpoint does not say."
        )
    return Subject(model.display_name, model.eval(), shape, True, data, caveat)


def _data(
    arguments: argparse.Namespace,
    stored: str | None = None,
    shape: tuple[int, int, int] | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> ImageDataModule | None:
    """The data set of the options, else of the checkpoint, else None; with images as the network takes them."""
    from cnnbench.data import get_data

    name: str | None = getattr(arguments, "data", None) or stored
    if name is None or not hasattr(arguments, "data"):
        return None
    kind = get_data(name)
    channels = shape[0] if shape else getattr(arguments, "in_channels", None)
    size = shape[1] if shape else getattr(arguments, "image_size", None)
    own: dict[str, Any] = {"in_channels": channels} if channels and "in_channels" in signature(kind).parameters else {}
    check_arguments(f"data set '{name}' of the checkpoint", kind, options)
    data = kind(**{**options, "data_dir": arguments.data_dir, "image_size": size, **own})
    if shape and data.in_channels != shape[0]:
        raise UserError(
            f"the network takes images of {shape[0]} channels, those of {data.label} have {data.in_channels}"
        )
    return data


def normalised(images: Tensor, data: ImageDataModule | None) -> Tensor:
    """Images of 0 to 1 as the network saw them in training; by 0.5 and 0.5 where no data set says how.

    Args:
        images: (N, C, H, W), 0 to 1.
        data: A data set, or None.
    """
    mean, std = (0.5,) * images.shape[1], (0.5,) * images.shape[1]
    if data is not None and data.in_channels == images.shape[1]:
        mean, std = data.mean, data.std
    return (images - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)


def predict(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Logits, (N, K), of a network for batches of images and labels, as `cnnbench.data` has them."""
    with torch.inference_mode():
        return torch.cat([model(images.contiguous(memory_format=torch.channels_last)) for images, _ in batches]).float()


def read_photo(path: Path | None = None) -> np.ndarray:
    """Return an image file as (H, W, 3), uint8; without a path the photo that matplotlib ships.

    It is turned as its EXIF data say; what is transparent becomes white; 16 bits of grey become 8 bits.

    Raises:
        UserError: The file is not a PNG or JPEG that can be read, or is too large.
    """
    if path is None:
        from matplotlib import cbook

        path = Path(cbook.get_sample_data(PHOTO, asfileobj=False))
    return read_rgb(path)


def image_for(shape: tuple[int, int, int], photo: np.ndarray) -> Tensor:
    """The middle square of a photo as a network takes it, (1, C, H, W), 0 to 1, grey for one channel.

    Args:
        shape: Channels, 1 or 3, height and width.
        photo: (H, W, 3), uint8.

    Raises:
        UserError: The network takes another number of channels.
    """
    import torch.nn.functional as F

    channels, height, width = shape
    if channels not in (1, 3):
        raise UserError(f"the network takes images of {channels} channels, a photo has 3 or 1; use --in_channels 3")
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    x = torch.from_numpy(photo[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float() / 255
    x = F.interpolate(x, (height, width), mode="bilinear", antialias=True)
    if channels == 1:
        x = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return x
