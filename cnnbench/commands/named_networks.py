"""Options that name networks and the form of their images, shared by the commands `count` and `speed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnbench.console import note
from cnnbench.errors import UserError
from cnnbench.options import option

if TYPE_CHECKING:
    from cnnbench.network import Network


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options that name networks and the form of their images."""

    models: tuple[str, ...] = option(
        "Networks: names from `cnnbench list`, all, torchvision:NAME, timm:NAME or package.module:callable; arguments "
        "in brackets, quoted: 'VGG16(batch_norm=True)'.",
        positional=True,
        metavar="MODEL",
        names="models",
    )
    in_channels: int | None = option("Channels of the images (default: the network's own).", default=None, metavar="C")
    image_size: int | None = option(
        "Height and width of the images in pixels (default: 32 for the zoo, that of the published weights for "
        "torchvision and timm, else 224).",
        default=None,
        metavar="N",
    )
    num_classes: int | None = option("Number of classes (default: the network's own).", default=None, metavar="K")


def find_networks(options: NetworkOptions) -> list[Network]:
    """Return the networks that the options name, and print a note if they take images of different sizes.

    Raises:
        UserError: A name is unknown, or occurs twice.
    """
    # Imported here, because torch comes with them, and the options and the help do not need it.
    from cnnbench.models import all_models
    from cnnbench.network import get_network

    names = list(options.models)
    if names == ["all"]:
        names = list(all_models())
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"models name '{name}' twice; leave one out")
    networks = [get_network(name, options.in_channels, options.image_size, options.num_classes) for name in names]
    sizes = list(dict.fromkeys(str(network.image_size) for network in networks))
    if len(sizes) > 1:
        note(
            f"the networks take images of {', '.join(sizes)} pixels and do not compare; "
            "--image_size N gives all the same"
        )
    return networks
