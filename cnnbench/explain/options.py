"""Options that several tools of `cnnbench explain` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cnnbench.errors import UserError
from cnnbench.options import option


@dataclass(frozen=True, kw_only=True)
class ToolOptions:
    """Options of every tool."""

    out: Path = option("Folder for the pictures.", default=Path("results/explain"), metavar="DIR")
    json: bool = option("Print one JSON document on stdout.", default=False)
    trust: tuple[str, ...] = option(
        "Modules whose networks a checkpoint may name, such as mynets.", default=(), metavar="MODULE"
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(ToolOptions):
    """Options of tools that take images from a data set."""

    data: str | None = option(
        "Data set of `cnnbench list` (default: that of the checkpoint).", default=None, metavar="NAME"
    )
    data_dir: str | None = option(
        "Folder of the data (default: CNNBENCH_DATA, else data).", default=None, metavar="DIR"
    )


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(DataOptions):
    """Options of tools that look at a network: one by name, with random or shipped weights, or a checkpoint."""

    model: str | None = option(
        "Network with random weights: a name from `cnnbench list`, torchvision:NAME, timm:NAME or "
        "package.module:callable; arguments in brackets, quoted.",
        default=None,
        positional=True,
        metavar="MODEL",
    )
    ckpt_path: Path | None = option("Checkpoint of `cnnbench fit`, in place of MODEL.", default=None, metavar="FILE")
    weights: Literal["reference"] | None = option(
        "Take MODEL with trained weights, which the package ships for a few small networks.", default=None
    )
    in_channels: int | None = option("Channels of the images (default: the network's own).", default=None, metavar="C")
    image_size: int | None = option(
        "Height and width of the images in pixels (default: the network's own).", default=None, metavar="N"
    )
    num_classes: int | None = option("Number of classes (default: the network's own).", default=None, metavar="K")
    seed: int = option("Random seed for weights and for choices.", default=0)

    @property
    def form(self) -> dict[str, int | None]:
        """Return the form of the network as it was asked for; None is the network's own."""
        return {"in_channels": self.in_channels, "image_size": self.image_size, "num_classes": self.num_classes}

    def check_network(self) -> None:
        """Raise UserError unless the options name one network."""
        if (self.model is None) == (self.ckpt_path is None):
            raise UserError("give either a MODEL, for random weights, or --ckpt_path FILE, for a trained network")
        if self.weights is not None and self.model is None:
            raise UserError("--weights reference needs MODEL, such as SimpleCNN")
