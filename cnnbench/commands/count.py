"""The command `cnnbench count`: count what networks cost, without running them, as tables or as one JSON document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from cnnbench.catalog import SIZES, stored_counts
from cnnbench.commands.named_networks import NetworkOptions, find_networks
from cnnbench.console import out, out_json, show, stdout_kept
from cnnbench.counting import CONVENTION, tables
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
    documents = _stored(options)
    further: list[Table] = []
    if documents is None:
        documents, further = _counted(options)
    if options.json:
        out_json({"convention": CONVENTION, "networks": documents})
        return 0
    show(tables.network_table(documents), *further, pipe_width=PIPE_WIDTH)
    for count in documents:
        for line in [*(f"not counted: {name}" for name in count["uncounted"]), *count["remarks"]]:
            out(f"{count['model']}: {line}")
    out(CONVENTION)
    return 0


def _stored(options: Options) -> list[dict[str, Any]] | None:
    """Return the documents of the counts from the catalogue, which needs no torch; None if it lacks one of them."""
    if (
        options.per_layer
        or options.no_training
        or options.batch_size is not None
        or options.in_channels not in (None, 3)
    ):
        return None
    # These are the default sizes of the networks of the zoo.
    size = 32 if options.image_size is None else options.image_size
    classes = 10 if options.num_classes is None else options.num_classes
    if options.in_channels not in (None, 3):
        return None
    forms = [form for form, stored in SIZES.items() if stored == (size, classes)]
    counts = stored_counts()
    names = list(counts) if options.models == ("all",) else list(options.models)
    is_stored = bool(forms) and set(names) <= counts.keys() and len(set(names)) == len(names)
    return [counts[name][forms[0]] for name in names] if is_stored else None


def _counted(options: Options) -> tuple[list[dict[str, Any]], list[Table]]:
    """Count networks; return the document of each, and the tables of layers and memory that were asked for."""
    # Imported here, because torch comes with it, and stored counts do not need it.
    from cnnbench.counting.counts import Step, count_network

    networks = find_networks(options)
    step = None
    if options.batch_size is not None:
        step = Step(options.batch_size, options.precision or "32-true", options.optimizer or "adamw")
    with stdout_kept():  # text that a user's network prints must not get into the document
        counts = [count_network(network, not options.no_training, step) for network in networks]
    drawn = []
    if options.per_layer:
        drawn = [tables.layer_table(count) for count in counts]
    if step is not None:
        drawn.append(tables.memory_table(counts, step))
    return [count.document(options.per_layer) for count in counts], drawn
