"""The command `cnnbench speed`: how fast networks are, timed against each other in turns, as a table or JSON."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnbench.count import PIPE_WIDTH, add_network_arguments, find_networks
from cnnbench.errors import UserError, unknown
from cnnbench.registry import split_names

if TYPE_CHECKING:
    from rich.table import Table

    from cnnbench.measure.intervals import Interval
    from cnnbench.measure.work import SpeedConfig, Way
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
STEP_COLUMNS = {
    "Forward ms": "train_forward_ms",
    "Backward ms": "train_backward_ms",
    "Optimizer ms": "train_optimizer_ms",
    "Reserved MiB": "peak_reserved_bytes",
    "Latency, device ms": "latency_ms_device",
    "Batch, device ms": "inference_ms_device",
    "Step, device ms": "train_step_ms_device",
    "Resident MiB": "resident_bytes",
}
"""The second table; a column that no network has is left out."""
_GRAPH = " as a CUDA graph"
FORMATS = {"channels_last": True, "contiguous": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_network_arguments(parser)
    add = parser.add_argument
    add("--batch_size", type=int, metavar="B", help="images per batch of throughput (default: 128 on CPU, 1024 on GPU)")
    add("--train_batch_size", type=int, metavar="B", help="images per training step (default: 32 on CPU, 256 on GPU)")
    add("--rounds", type=int, metavar="N", help="turns that every network has (default: 60, or 12 "
        "and more if these take longer than 5 s per network; intervals need 6)")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--precision", default="auto", metavar="A,B", help="auto, 32-true, bf16-mixed, 16-mixed, and on a GPU tf32; "
        "several are rows of their own (default: auto)")  # fmt: skip
    add("--memory_format", default="channels_last", metavar="A,B", help="channels_last, contiguous (default: "
        "%(default)s)")  # fmt: skip
    add("--mode", default="eager", metavar="A,B", help="eager, compile, and on a GPU cuda-graph (default: %(default)s)")
    add("--sweep", action="store_true", help="also inference in batches of 1, 2, 4 and so on, up to the largest that "
        "fits")  # fmt: skip
    add("--max_batch_size", type=int, metavar="B", help="of the sweep (default: 512 on CPU, 65536 on GPU)")
    add("--memory", action="store_true", help="also how much the memory of a fresh process grows by training steps")
    add("--processes", type=int, default=1, metavar="N", help="fresh processes that share the rounds (default: "
        "%(default)s, this one; from 6 on each counts as one value)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the order and the images (default: %(default)s)")
    add("--limits", action="store_true", help="also measure the peaks of this machine, and say what limits each "
        "network: launching, memory or arithmetic; with a roofline picture")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="folder of that picture (default: results/speed)")
    add("--json", action="store_true", help="print one JSON document on stdout")


@dataclass(frozen=True)
class Row:
    """A line of the tables: a network, and the way it runs; None where there is one way only."""

    network: Network
    way: Way | None

    @property
    def name(self) -> str:
        return self.network.name if self.way is None else f"{self.network.name} [{self.way.words}]"


def speed(arguments: argparse.Namespace) -> int:
    """Times networks and prints what was found; 1 when one of them failed."""
    from cnnbench import hardware, limits

    if arguments.out and not arguments.limits:
        raise UserError("--out is for the picture of --limits; add --limits, or leave it out")
    config, ways = _config(arguments)
    for option, used in (("limits", arguments.limits), ("sweep", arguments.sweep)):
        if used and (len(ways) > 1 or arguments.processes > 1):
            raise UserError(f"--{option} is for one way and one process; leave out --processes, or the other ways")
    out = limits.make_folder(arguments.out or DEFAULT_OUT) if arguments.limits else DEFAULT_OUT
    networks = find_networks(arguments)
    rows = [Row(network, way) for network in networks for way in ways]
    hardware.keep_freed_memory()
    limited, sweeps = None, {}
    with contextlib.redirect_stdout(sys.stderr):  # what a network of the user's prints is not part of the document
        if arguments.processes > 1:
            figures = _in_processes(arguments, config, rows)
        else:
            subjects = {row.name: _subject(row) for row in rows}
            before = limits.peaks_now(config) if arguments.limits else None
            graphs = _as_graphs(subjects, config) if arguments.limits else {}
            everything = _measured(subjects | graphs, config)
            figures = {name: everything[name] for name in subjects}
            if before is not None:
                where = f"{hardware.device_name(config.device)}, {config.precision}, {config.batch_size} images"
                replayed = {name: everything[name + _GRAPH] for name in subjects if name + _GRAPH in everything}
                limited = limits.find(subjects, figures, config, before, out, where, replayed)
            if arguments.sweep:
                sweeps = _sweep(subjects, config, _most_images(arguments, config))
        if arguments.memory:
            for row in rows:
                figures[row.name] |= _resident(row, config)
    failed = {name: found["error"] for name, found in figures.items() if "error" in found}
    if arguments.json:
        _print_document(config, rows, figures, limited, sweeps)
    else:
        _print_tables(arguments, config, rows, figures, limited, sweeps)
    for name, reason in failed.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    unlimited = limited.failed if limited is not None else {}
    for name, reason in unlimited.items():
        print(f"what limits {name} was not found: {reason}", file=sys.stderr)
    return 1 if failed or unlimited else 0


def _as_graphs(subjects: Mapping[str, Any], config: SpeedConfig) -> dict[str, Any]:
    """The same networks as CUDA graphs, which are not launched operator by operator; none where there cannot be any, or
    where float32 is what torch's flags make of it."""
    from cnnbench.measure.work import Way

    if config.device.type != "cuda" or config.precision == "32-true":
        return {}
    way = Way(config.precision, mode="cuda-graph")
    kinds = ("latency", "inference")
    return {name + _GRAPH: replace(subject, way=way, kinds=kinds) for name, subject in subjects.items()}


def _measured(subjects: Mapping[str, Any], config: SpeedConfig) -> dict[str, dict[str, Any]]:
    from cnnbench.measure.speed import measure_speed

    return measure_speed(subjects, config, lambda share, text: print(f"{share:4.0%} {text}", file=sys.stderr))


def _config(arguments: argparse.Namespace) -> tuple[SpeedConfig, list[Way | None]]:
    """How the timing is done, and the ways that are compared."""
    from cnnbench import hardware
    from cnnbench.measure.speed import SpeedConfig
    from cnnbench.measure.work import Way

    device = hardware.choose_device(arguments.device)
    asked = split_names(arguments.precision)
    precisions = [n if n == "tf32" else hardware.choose_precision(n, device)[0] for n in asked]
    formats = split_names(arguments.memory_format)
    for name in formats:
        if name not in FORMATS:
            raise unknown("memory_format", name, FORMATS)
    modes = split_names(arguments.mode)
    ways: list[Way | None] = [Way(*way) for way in itertools.product(precisions, map(FORMATS.get, formats), modes)]  # type: ignore[arg-type]
    for way in ways:
        assert way is not None
        way.check(device)
    if len(set(ways)) < len(ways):
        raise UserError(f"two of the ways are the same: {'; '.join(way.words for way in ways if way)}")
    if len(ways) == 1 and precisions[0] != "tf32" and (*formats, *modes) == ("channels_last", "eager"):
        ways = [None]  # as `bench` times
    defaults = (*hardware.default_batch_sizes(device), SpeedConfig.rounds)
    given = []
    for option, default in zip(("batch_size", "train_batch_size", "rounds"), defaults, strict=True):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UserError(f"{option} {value} must be at least 1")
        given.append(default if value is None else value)
    for option in ("processes", "max_batch_size"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UserError(f"{option} {value} must be at least 1")
    fewest = SpeedConfig.fewest_rounds if arguments.rounds is None else given[2]
    config = SpeedConfig(
        device, precisions[0], given[0], given[1], rounds=given[2], fewest_rounds=fewest, seed=arguments.seed
    )
    return config, ways


def _most_images(arguments: argparse.Namespace, config: SpeedConfig) -> int:
    default = 512 if config.device.type == "cpu" else 65536
    return arguments.max_batch_size or default


def _in_processes(arguments: argparse.Namespace, config: SpeedConfig, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The same command in fresh processes, each with its share of the rounds."""
    from cnnbench.measure.sweep import pooled

    rounds = -(-config.rounds // arguments.processes)
    same = ("in_channels", "image_size", "num_classes", "batch_size", "train_batch_size", "device", "precision")
    given = {name: getattr(arguments, name) for name in (*same, "memory_format", "mode")}
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    found = []
    for index in range(arguments.processes):
        print(f"process {index + 1} of {arguments.processes}", file=sys.stderr)
        command = [sys.executable, "-m", "cnnbench", "speed", *arguments.models, *options, "--json"]
        done = subprocess.run(
            [*command, f"--rounds={rounds}", f"--seed={config.seed + index}"], stdout=subprocess.PIPE, text=True
        )
        if not done.stdout:
            raise UserError(f"process {index + 1} failed; see above")
        found.append({row["row"]: row for row in json.loads(done.stdout)["networks"]})
    return {row.name: pooled([run[row.name] for run in found]) for row in rows}


def _sweep(subjects: Mapping[str, Any], config: SpeedConfig, most: int) -> dict[str, dict[str, Any]]:
    """Inference at every batch size that a network takes, all in turns; and why there is none larger."""
    from cnnbench.measure.sweep import batch_sizes

    sizes = {name: batch_sizes(subject, config, most) for name, subject in subjects.items()}
    points = {
        (name, size): replace(subjects[name], kinds=("inference",), batch_size=size)
        for name, found in sizes.items() for size in found.fit
    }  # fmt: skip
    figures = _measured({f"{name}, {size} images": subject for (name, size), subject in points.items()}, config)
    found: dict[str, dict[str, Any]] = {name: {"end": sizes[name].end, "batches": []} for name in subjects}
    for name, size in points:
        found[name]["batches"].append({"batch_size": size, **figures[f"{name}, {size} images"]})
    return found


def _resident(row: Row, config: SpeedConfig) -> dict[str, Any]:
    """How much a fresh process grows by training steps of a network."""
    command = [sys.executable, "-m", "cnnbench.races.memory", "--device", str(config.device), "--measure"]
    precision = row.way.precision if row.way else config.precision
    done = subprocess.run(
        [*command, row.network.name, str(config.train_batch_size), precision], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        return {}
    found = json.loads(done.stdout.splitlines()[-1])
    return {"resident_bytes": found.get("resident"), "allocated_bytes": found["allocated"]}


def _print_document(
    config: SpeedConfig, rows: Sequence[Row], figures: Mapping[str, Any], limited: Any, sweeps: Mapping[str, Any]
) -> None:
    import torch

    from cnnbench import hardware
    from cnnbench.record import environment

    machine = environment(hardware.device_name(config.device), torch.get_num_threads())
    machine |= {"allocator": hardware.keep_freed_memory(), **hardware.accelerator_facts(config.device)}
    settings = {**vars(config), "device": str(config.device)}
    lines = [
        {"row": row.name, **_shape(row.network), "way": vars(row.way) if row.way else None, **figures[row.name]}
        for row in rows
    ]
    ratios = [ratio for group in _groups(rows, figures) for ratio in _ratios(group, figures)]
    document = {"config": settings, "environment": machine, "networks": lines, "ratios": ratios}
    if limited is not None:
        document["limits"] = limited.document()
    if sweeps:
        document["sweep"] = sweeps
    print(json.dumps(document, indent=1))


def _print_tables(
    arguments: argparse.Namespace, config: SpeedConfig, rows: Sequence[Row], figures: Mapping[str, Any], limited: Any,
    sweeps: Mapping[str, Any],
) -> None:  # fmt: skip
    from rich.console import Console

    from cnnbench import hardware, limits

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    with console.capture() as capture:  # rich would end the process itself when the reader of a pipe does
        console.print(_table("", rows, figures, COLUMNS), markup=False)
        there = {t: k for t, k in STEP_COLUMNS.items() if any(f.get(k) is not None for f in figures.values())}
        if there:
            console.print(_table("A training step, and memory", rows, figures, there), markup=False)
        for group in _groups(rows, figures):
            if len(group) > 1:
                console.print(_ratio_table(group, figures), markup=False)
        if limited is not None and limited.networks:
            console.print(limits.table(limited))
        if sweeps:
            console.print(_sweep_table(sweeps))
    print(capture.get(), end="")
    way = "ways as named" if rows[0].way and len({row.way for row in rows}) > 1 else (
        rows[0].way.words if rows[0].way else f"{config.precision}, channels_last")  # fmt: skip
    processes = f" of {arguments.processes} processes" if arguments.processes > 1 else ""
    print(
        f"{hardware.device_name(config.device)}, {way}; latency at 1 image, throughput at {config.batch_size}, a "
        f"training step (forward, backward, AdamW) at {config.train_batch_size} images; medians of {_rounds(figures)} "
        f"rounds{processes} in random order; ratios from paired rounds with 95 % intervals"
    )
    for line in limits.lines(limited) if limited is not None else ():
        print(line)
    for name, found in sweeps.items():
        print(f"batches of {name}: {found['end']}")
    for reason, names in _suspects(figures).items():
        print(f"suspect ({', '.join(names)}): {reason}")


def _groups(rows: Sequence[Row], figures: Mapping[str, Any]) -> list[list[Row]]:
    """Rows that may be ranked: networks that run in the same way; and beside them the ways of each network."""
    timed = [row for row in rows if "error" not in figures[row.name]]
    ways = dict.fromkeys(row.way for row in timed)
    groups = [[row for row in timed if row.way == way] for way in ways]
    if len(ways) > 1:
        groups += [[row for row in timed if row.network is network] for network in _networks(timed)]
    return groups


def _networks(rows: Sequence[Row]) -> list[Network]:
    return list({row.network.name: row.network for row in rows}.values())


def _subject(row: Row) -> Any:
    from cnnbench.measure.speed import Subject

    network = row.network
    return Subject(network.build, network.image_shape, network.num_classes or _classes(network), way=row.way)


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


def _table(title: str, rows: Sequence[Row], figures: Mapping[str, dict[str, Any]], columns: Mapping[str, str]) -> Table:
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", header_style="bold")
    table.add_column("Model", overflow="fold")
    table.add_column("Image")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        found = figures[row.name]
        shape = "x".join(map(str, row.network.image_shape))
        table.add_row(row.name, shape, *(_shown(key, found.get(key)) for key in columns.values()))
    return table


def _sweep_table(sweeps: Mapping[str, Any]) -> Table:
    """Inference by batch size."""
    from rich.table import Table

    table = Table(title="Inference by batch size", title_justify="left", header_style="bold")
    for name in ("Model", "Batch", "ms", "95 % interval", "Images/s"):
        table.add_column(name, justify="left" if name == "Model" else "right")
    for name, found in sweeps.items():
        for point in found["batches"]:
            if "error" in point:
                table.add_row(name, str(point["batch_size"]), point["error"])
                continue
            low, high = point["inference_ms_low"], point["inference_ms_high"]
            interval = f"{low:#.3g} to {high:#.3g}" if low is not None else "-"
            cells = (f"{point['inference_ms_median']:#.4g}", interval, _shown("images_per_s", point["images_per_s"]))
            table.add_row(name, str(point["batch_size"]), *cells)
    return table


def _rounds(figures: Mapping[str, dict[str, Any]]) -> int:
    """Rounds that were made."""
    return max((len(found["samples_ms"]["latency"]) for found in figures.values() if "error" not in found), default=0)


def _suspects(figures: Mapping[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Networks by the reasons to doubt their times."""
    found: dict[str, list[str]] = {}
    for name, values in figures.items():
        for reason in values.get("suspect", ()):
            found.setdefault(reason, []).append(name)
    return found


def _ratios(group: Sequence[Row], figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For every pair of rows how many times as long the first takes, by kind of work."""
    from cnnbench.measure.speed import KINDS, time_ratio

    names = [row.name for row in group]
    return [
        {"first": a, "second": b, **{kind: time_ratio(figures[a], figures[b], kind)._asdict() for kind in KINDS}}
        for a, b in itertools.combinations(names, 2)
    ]


def _ratio_table(group: Sequence[Row], figures: Mapping[str, Any]) -> Table:
    """Times of a group of rows as multiples of those of its first."""
    from rich.table import Table

    from cnnbench.measure.speed import KINDS, time_ratio

    first, *others = group
    table = Table(title=f"Times as multiples of {first.name}'s", title_justify="left", header_style="bold")
    table.add_column("Model", overflow="fold")
    for kind in KINDS:
        table.add_column(kind.capitalize(), justify="right")
    for row in others:
        found = [time_ratio(figures[row.name], figures[first.name], kind) for kind in KINDS]
        table.add_row(row.name, *(_interval(ratio) for ratio in found))
    return table


def _interval(ratio: Interval) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.estimate:#.3g}"
    verdict = "" if ratio.differs else ", no difference found"
    return f"{ratio.estimate:#.3g} ({ratio.low:#.3g} to {ratio.high:#.3g}){verdict}"


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key.endswith("_bytes"):
        return f"{value / 2**20:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:,.0f}"
