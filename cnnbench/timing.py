"""The command `cnnbench speed`: how fast networks are, timed against each other in turns, as a table or JSON."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnbench.count import PIPE_WIDTH, add_network_arguments, find_networks
from cnnbench.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from cnnbench.measure.intervals import Interval
    from cnnbench.measure.speed import SpeedConfig
    from cnnbench.network import Network

DEFAULT_OUT = Path("results/speed")
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
    add("--rounds", type=int, metavar="N", help="turns that every network has (default: 60, or 12 "
        "and more if these take longer than 3 s per network; intervals need 6)")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--precision", default="auto", help="auto, 32-true, bf16-mixed or 16-mixed (default: auto)")
    add("--limits", action="store_true", help="also measure the peaks of this machine, and say what limits each "
        "network: launching, memory or arithmetic; with a roofline picture")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="folder of that picture (default: results/speed)")
    add("--json", action="store_true", help="print one JSON document on stdout")


def speed(arguments: argparse.Namespace) -> int:
    """Times networks and prints what was found; 1 when one of them failed."""
    import torch
    from rich.console import Console

    from cnnbench import hardware, limits
    from cnnbench.measure.speed import measure_speed
    from cnnbench.record import environment

    if arguments.out and not arguments.limits:
        raise UserError("--out is for the picture of --limits; add --limits, or leave it out")
    config = _config(arguments)
    out = limits.make_folder(arguments.out or DEFAULT_OUT) if arguments.limits else DEFAULT_OUT
    networks = find_networks(arguments)
    subjects = {network.name: _subject(network) for network in networks}
    allocator = hardware.keep_freed_memory()
    with contextlib.redirect_stdout(sys.stderr):  # what a network of the user's prints is not part of the document
        before = limits.peaks_now(config) if arguments.limits else None
        figures = measure_speed(subjects, config, lambda share, text: print(f"{share:4.0%} {text}", file=sys.stderr))
        limited = None
        if before is not None:
            where = f"{hardware.device_name(config.device)}, {config.precision}, {config.batch_size} images"
            limited = limits.find(subjects, figures, config, before, out, where)
    if arguments.json:
        settings = {**vars(config), "device": str(config.device)}
        machine = environment(hardware.device_name(config.device), torch.get_num_threads())
        machine["allocator"] = allocator
        rows = [{**_shape(network), **figures[network.name]} for network in networks]
        ratios = _ratios(figures)
        document = {"config": settings, "environment": machine, "networks": rows, "ratios": ratios}
        if limited is not None:
            document["limits"] = limited.document()
        print(json.dumps(document, indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
        with console.capture() as capture:  # rich would end the process itself when the reader of a pipe does
            console.print(_table(networks, figures))
            if len(networks) > 1:
                console.print(_ratio_table(networks, figures))
            if limited is not None and limited.networks:
                console.print(limits.table(limited))
        print(capture.get(), end="")
        print(
            f"{hardware.device_name(config.device)}, {config.precision}, channels_last; latency at 1 image, throughput "
            f"at {config.batch_size}, a training step (forward, backward, AdamW) at {config.train_batch_size} images; "
            f"medians of {_rounds(figures)} rounds in random order; ratios from paired rounds with 95 % intervals"
        )
        for line in limits.lines(limited) if limited is not None else ():
            print(line)
        for reason, names in _suspects(figures).items():
            print(f"suspect ({', '.join(names)}): {reason}")
    failed = {name: found["error"] for name, found in figures.items() if "error" in found}
    for name, reason in failed.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    unlimited = limited.failed if limited is not None else {}
    for name, reason in unlimited.items():
        print(f"what limits {name} was not found: {reason}", file=sys.stderr)
    return 1 if failed or unlimited else 0


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
    fewest = SpeedConfig.fewest_rounds if arguments.rounds is None else given[2]
    return SpeedConfig(device, precision, given[0], given[1], rounds=given[2], fewest_rounds=fewest)


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


def _rounds(figures: dict[str, dict[str, Any]]) -> int:
    """Rounds that were made."""
    return max((len(found["samples_ms"]["latency"]) for found in figures.values() if "error" not in found), default=0)


def _suspects(figures: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Networks by the reasons to doubt their times."""
    found: dict[str, list[str]] = {}
    for name, values in figures.items():
        for reason in values.get("suspect", ()):
            found.setdefault(reason, []).append(name)
    return found


def _ratios(figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """For every pair of networks how many times as long the first takes, by kind of work."""
    from cnnbench.measure.speed import KINDS, time_ratio

    return [
        {"first": a, "second": b, **{kind: time_ratio(figures[a], figures[b], kind)._asdict() for kind in KINDS}}
        for a, b in itertools.combinations([name for name in figures if "error" not in figures[name]], 2)
    ]


def _ratio_table(networks: list[Network], figures: dict[str, dict[str, Any]]) -> Table:
    """Times of all networks as multiples of those of the first."""
    from rich.table import Table

    from cnnbench.measure.speed import KINDS, time_ratio

    timed = [n.name for n in networks if "error" not in figures[n.name]]
    table = Table(
        title=f"Times as multiples of {timed[0]}'s" if timed else "", title_justify="left", header_style="bold"
    )
    table.add_column("Model", overflow="fold")
    for kind in KINDS:
        table.add_column(kind.capitalize(), justify="right")
    for name in timed[1:]:
        found = [time_ratio(figures[name], figures[timed[0]], kind) for kind in KINDS]
        table.add_row(name, *(_interval(ratio) for ratio in found))
    return table


def _interval(ratio: Interval) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.estimate:#.3g}"
    verdict = "" if ratio.excludes(1) else ", no difference found"
    return f"{ratio.estimate:#.3g} ({ratio.low:#.3g} to {ratio.high:#.3g}){verdict}"


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "peak_memory_bytes":
        return f"{value / 2**20:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:,.0f}"
