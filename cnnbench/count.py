"""The command `cnnbench count`: what networks cost on paper, as a table or as one JSON document.

Torch is imported when something is counted, so that the options can be shown at once.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnbench.console import note, out, out_json, show, stdout_kept
from cnnbench.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from cnnbench.measure.complexity import Complexity
    from cnnbench.measure.memory import TrainingMemory
    from cnnbench.network import Network

# STEP_PRECISIONS and STATES_PER_WEIGHT of cnnbench.measure.memory, which needs torch.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
OPTIMIZERS = ("adamw", "sgd-momentum", "sgd")
PIPE_WIDTH = 200


class Result(NamedTuple):
    """What was found about a network, and whether it could be built without values."""

    network: Network
    cost: Complexity
    memory: TrainingMemory | None
    without_values: bool


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Which networks, on which images; shared with `cnnbench speed`."""
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="names from `cnnbench list`, all, torchvision:NAME, timm:NAME or "
        "package.module:callable; arguments in brackets, quoted: 'VGG16(batch_norm=True)'")  # fmt: skip
    add("--in_channels", type=int, metavar="C", help="channels of the images (default: the network's own)")
    add(
        "--image_size",
        type=int,
        metavar="N",
        help="height and width in pixels (default: 32 for the zoo, that of the published weights for torchvision and "
        "timm, else 224)",
    )
    add("--num_classes", type=int, metavar="K", help="number of classes (default: the network's own)")


def find_networks(arguments: argparse.Namespace) -> list[Network]:
    """The networks that the user named; says so when they take images of different sizes.

    Raises:
        UserError: A name is unknown, or comes twice.
    """
    from cnnbench.models import all_models
    from cnnbench.network import get_network

    names = list(all_models()) if arguments.models == ["all"] else arguments.models
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"models name '{twice}' twice; leave one out")
    form = arguments.in_channels, arguments.image_size, arguments.num_classes
    networks = [get_network(name, *form) for name in names]
    sizes = list(dict.fromkeys(str(network.image_size) for network in networks))
    if len(sizes) > 1:
        note(
            f"the networks take images of {', '.join(sizes)} pixels and do not compare; "
            "--image_size N gives all the same"
        )
    return networks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_network_arguments(parser)
    add = parser.add_argument
    add("--per_layer", action="store_true", help="a row for every module that computes or holds parameters")
    add("--no_training", action="store_true", help="inference only, for a network that cannot train on such images")
    add("--batch_size", type=int, metavar="B", help="also estimate the memory of a training step with B images")
    add("--precision", choices=PRECISIONS, help="of that step (default: 32-true)")
    add("--optimizer", choices=OPTIMIZERS, help="of that step (default: adamw)")
    add("--json", action="store_true", help="print one JSON document on stdout")


def count(arguments: argparse.Namespace) -> int:
    """Counts networks and prints what was found."""
    from cnnbench.measure.complexity import CONVENTION

    if arguments.batch_size is None:
        for option in ("precision", "optimizer"):
            if getattr(arguments, option):
                raise UserError(f"--{option} is for the memory of a training step; add --batch_size")
    elif arguments.no_training:
        raise UserError("--batch_size is for the memory of a training step; leave out --no_training")
    networks = find_networks(arguments)
    with stdout_kept():  # what a network of the user's prints is not part of the document
        results = [_measure(network, arguments) for network in networks]
    if arguments.json:
        document = {"convention": CONVENTION, "networks": [_as_json(r, arguments.per_layer) for r in results]}
        out_json(document)
        return 0
    tables = [_table(results)]
    if arguments.per_layer:
        tables += [_layer_table(network, cost) for network, cost, *_ in results]
    if arguments.batch_size is not None:
        tables.append(_memory_table(results, arguments))
    show(*tables, pipe_width=PIPE_WIDTH)
    for result in results:
        for line in _remarks(result):
            out(f"{result.network.name}: {line}")
    out(CONVENTION)
    return 0


def _measure(network: Network, arguments: argparse.Namespace) -> Result:
    from cnnbench.measure.complexity import complexity
    from cnnbench.measure.copies import build_without_values
    from cnnbench.measure.memory import training_memory

    model, without_values = build_without_values(network.build)
    cost = complexity(model, network.image_shape, training=not arguments.no_training)
    memory = None
    if arguments.batch_size is not None:
        settings = arguments.precision or "32-true", arguments.optimizer or "adamw"
        memory = training_memory(model, network.image_shape, arguments.batch_size, *settings)
    return Result(network, cost, memory, without_values)


def _as_json(result: Result, per_layer: bool) -> dict[str, Any]:
    network = result.network
    found = {
        "model": network.name,
        "in_channels": network.in_channels,
        "image_size": network.image_size,
        "num_classes": network.num_classes,
        **result.cost.figures(),
    }
    found["remarks"] = [line for line in _remarks(result) if not line.startswith("not counted")]
    if result.memory is not None:
        found["training_memory"] = result.memory.figures()
    if per_layer:
        found["layers"] = [vars(layer) for layer in result.cost.layers]
    return found


def _table(results: list[Result]) -> Table:
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column("Model", overflow="fold")
    titles = "Image,Params,MACs,FLOPs,Training MACs,x inference,Other ops,Activations,Receptive field"
    for title in titles.split(","):
        table.add_column(title, justify="right", overflow="fold")
    for network, cost, *_ in results:
        ratio = f"{cost.train_macs / cost.macs:.4f}" if cost.macs and cost.train_macs else "-"
        numbers = (cost.params, cost.macs, cost.flops, cost.train_macs, ratio, cost.other_ops, cost.activations)
        shape = "x".join(map(str, network.image_shape))
        table.add_row(network.name, shape, *map(_number, numbers), _field(cost.receptive_field))
    return table


def _layer_table(network: Network, cost: Complexity) -> Table:
    from rich.table import Table

    table = Table(title=network.name, title_justify="left", title_style="bold", header_style="bold", show_footer=True)
    table.add_column("Layer", "total", overflow="fold")
    table.add_column("Type")
    columns: dict[str, Any] = {
        "Output": "",
        "Params": cost.params,
        "MACs": cost.macs,
        "Share %": "100.00" if cost.macs else "",
        "Training MACs": cost.train_macs,
        "Other ops": cost.other_ops,
        "Field": "",
    }
    for title, total in columns.items():
        table.add_column(title, _number(total), justify="right", overflow="fold")
    for layer in cost.layers:
        table.add_row(
            layer.name or "(the network)",
            layer.type + (f" (x{layer.calls})" if layer.calls > 1 else ""),
            "not called" if layer.output_shape is None else "x".join(map(str, layer.output_shape)),
            f"{layer.params:,}",
            f"{layer.macs:,}",
            f"{100 * layer.macs / cost.macs:.2f}" if cost.macs else "-",
            _number(layer.train_macs),
            f"{layer.other_ops:,}",
            _field(layer.receptive_field),
        )
    return table


def _memory_table(results: list[Result], arguments: argparse.Namespace) -> Table:
    title = (
        f"Memory of a training step in MiB, {arguments.batch_size} images, {arguments.precision or '32-true'}, "
        f"{arguments.optimizer or 'adamw'}; an estimate from the shapes, without workspaces of kernels"
    )
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.add_column("Model", overflow="fold")
    names = ("Parameters", "Buffers", "Gradients", "Optimizer", "Images", "Stored activations", "Peak")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for network, _, memory, _ in results:
        assert memory is not None
        table.add_row(network.name, *(f"{size / 2**20:,.1f}" for size in memory.figures().values()))
    return table


def _number(value: int | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:,}"


def _field(field: dict[str, Any] | str | None) -> str:
    if field is None:
        return "-"
    if isinstance(field, str):
        return field
    size = field["size"]
    return "x".join(f"{n:g}" for n in size) if isinstance(size, list) else f"{size:g}"


def _remarks(result: Result) -> list[str]:
    """What a reader must know about a count."""
    lines = [f"not counted: {name}" for name in result.cost.uncounted] + list(result.cost.remarks)
    if not result.without_values:
        lines.append("built with its weights, because its constructor computes with them")
    return lines
