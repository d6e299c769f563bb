"""The command `cnnbench speed`: how fast networks are, timed against each other in turns, as a table or JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

from cnnbench.count import PIPE_WIDTH, add_network_arguments, find_networks
from cnnbench.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from cnnbench.measure.speed import SpeedConfig
    from cnnbench.network import Network

COLUMNS = {
    "Latency ms": "latency_ms_median",
    "p10": "latency_ms_p10",
    "p90": "latency_ms_p90",
    "Images/s": "images_per_s",
    "Train images/s": "train_images_per_s",
    "Cold start ms": "cold_start_ms",
    "Peak MiB": "peak_memory_bytes",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_network_arguments(parser)
    add = parser.add_argument
    add("--batch_size", type=int, metavar="B", help="images per batch of throughput (default: 128 on CPU, 1024 on GPU)")
    add("--train_batch_size", type=int, metavar="B", help="images per training step (default: 32 on CPU, 256 on GPU)")
    add("--rounds", type=int, metavar="N", help="turns that every network has (default: 5)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--precision", default="auto", help="auto, 32-true, bf16-mixed or 16-mixed (default: auto)")
    add("--json", action="store_true", help="print one JSON document on stdout")


def speed(arguments: argparse.Namespace) -> int:
    """Times networks and prints what was found; 1 when one of them failed."""
    import torch
    from rich.console import Console

    from cnnbench import hardware
    from cnnbench.measure.speed import measure_speed
    from cnnbench.record import environment

    config = _config(arguments)
    networks = find_networks(arguments)
    subjects = {network.name: _subject(network) for network in networks}
    allocator = hardware.keep_freed_memory()
    with contextlib.redirect_stdout(sys.stderr):  # what a network of the user's prints is not part of the document
        figures = measure_speed(subjects, config, lambda share, text: print(f"{share:4.0%} {text}", file=sys.stderr))
    if arguments.json:
        settings = {**vars(config), "device": str(config.device)}
        machine = environment(hardware.device_name(config.device), torch.get_num_threads())
        machine["allocator"] = allocator
        rows = [{**_shape(network), **figures[network.name]} for network in networks]
        print(json.dumps({"config": settings, "environment": machine, "networks": rows}, indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
        with console.capture() as capture:  # rich would end the process itself when the reader of a pipe does
            console.print(_table(networks, figures))
        print(capture.get(), end="")
        print(
            f"{hardware.device_name(config.device)}, {config.precision}, channels_last; latency at 1 image, throughput "
            f"at {config.batch_size}, a training step (forward, backward, AdamW) at {config.train_batch_size} images; "
            f"medians of {config.rounds} rounds in random order"
        )
    failed = {name: found["error"] for name, found in figures.items() if "error" in found}
    for name, reason in failed.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _config(arguments: argparse.Namespace) -> SpeedConfig:
    from cnnbench import hardware
    from cnnbench.measure.speed import SpeedConfig

    device = hardware.choose_device(arguments.device)
    precision, _ = hardware.choose_precision(arguments.precision, device)
    defaults = (*hardware.default_batch_sizes(device), SpeedConfig.rounds)
    given = []
    for option, default in zip(("batch_size", "train_batch_size", "rounds"), defaults, strict=True):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UserError(f"{option} {value} must be at least 1")
        given.append(default if value is None else value)
    return SpeedConfig(device, precision, given[0], given[1], rounds=given[2])


def _subject(network: Network) -> Any:
    from cnnbench.measure.speed import Subject

    return Subject(network.build, network.image_shape, network.num_classes or _classes(network))


def _classes(network: Network) -> int:
    """Classes of a network that does not say how many it has, from what it puts out for an image."""
    import torch

    from cnnbench.classifier import loss_and_logits

    with torch.inference_mode():
        try:
            output = network.build().eval()(torch.zeros(1, *network.image_shape))
        except (Exception, SystemExit) as error:  # whatever a network of the user's raises
            shape = "x".join(map(str, network.image_shape))
            text = " ".join(str(error).split())[:300]
            raise UserError(
                f"'{network.name}' does not take images of {shape}: {type(error).__name__}: {text}"
            ) from error
        return loss_and_logits(output, torch.zeros(1, dtype=torch.long))[1].shape[1]


def _shape(network: Network) -> dict[str, Any]:
    names = ("in_channels", "image_size", "num_classes")
    return {"model": network.name, **{name: getattr(network, name) for name in names}}


def _table(networks: list[Network], figures: dict[str, dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column("Model", overflow="fold")
    table.add_column("Image")
    for title in COLUMNS:
        table.add_column(title, justify="right")
    for network in networks:
        found = figures[network.name]
        shape = "x".join(map(str, network.image_shape))
        table.add_row(network.name, shape, *(_shown(key, found.get(key)) for key in COLUMNS.values()))
    return table


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "peak_memory_bytes":
        return f"{value / 2**20:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:,.0f}"
