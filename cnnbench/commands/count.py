"""The command `cnnbench count`: count what networks cost, without running them, as tables or as one JSON document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cnnbench.commands.named_networks import NetworkOptions, find_networks
from cnnbench.console import out, out_json, show, stdout_kept
from cnnbench.errors import UserError
from cnnbench.options import option

EXAMPLE = "VGG16 torchvision:resnet50 --image_size 224 --num_classes 1000 --per_layer"
PIPE_WIDTH = 200
"""Line width, in characters, if the output is not a terminal."""


@dataclass(frozen=True, kw_only=True)
class Options(NetworkOptions):
    """Count parameters, multiply-adds and activations exactly, operator by operator, on tensors without values."""

    per_layer: bool = option("Show a row for every module that computes or holds parameters.", default=False)
    no_training: bool = option("Count inference only, for a network that cannot train on such images.", default=False)
    batch_size: int | None = option(
        "Estimate the memory of a training step with this many images too.", default=None, metavar="B"
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None = option(
        "Number format of that step (default: 32-true).", default=None
    )
    optimizer: Literal["adamw", "sgd-momentum", "sgd"] | None = option(
        "Optimizer of that step (default: adamw).", default=None
    )
    json: bool = option("Print one JSON document on stdout.", default=False)

    def __post_init__(self) -> None:
        # Precision and optimizer change only the memory of a training step, which depends on its number of images.
        if self.batch_size is None:
            for name in ("precision", "optimizer"):
                if getattr(self, name):
                    raise UserError(f"--{name} is for the memory of a training step; add --batch_size")
        elif self.no_training:
            raise UserError("--batch_size is for the memory of a training step; leave out --no_training")


def run(options: Options) -> int:
    """Count networks and print the figures; return 0."""
    from cnnbench.counting import tables
    from cnnbench.counting.complexity import CONVENTION

    networks = find_networks(options)
    step = None
    if options.batch_size is not None:
        step = tables.Step(options.batch_size, options.precision or "32-true", options.optimizer or "adamw")
    with stdout_kept():  # text that a user's network prints must not get into the document
        counts = [tables.count_network(network, not options.no_training, step) for network in networks]
    if options.json:
        out_json({"convention": CONVENTION, "networks": [count.document(options.per_layer) for count in counts]})
        return 0
    drawn = [tables.network_table(counts)]
    if options.per_layer:
        drawn += [tables.layer_table(count) for count in counts]
    if step is not None:
        drawn.append(tables.memory_table(counts, step))
    show(*drawn, pipe_width=PIPE_WIDTH)
    for count in counts:
        for line in count.remarks():
            out(f"{count.network.name}: {line}")
    out(CONVENTION)
    return 0
