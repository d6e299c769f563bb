"""The command `cnnbench speed`: how fast networks are, timed against each other in turns, as a table or JSON."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnbench.bench.plan import MOST_PROCESSES
from cnnbench.console import note, out_json, stdout_kept
from cnnbench.count import add_network_arguments, find_networks
from cnnbench.errors import Stopped, UserError, unknown
from cnnbench.record import write_lines
from cnnbench.registry import split_names
from cnnbench.timing_tables import Row, document, print_tables, records, way_words

if TYPE_CHECKING:
    import torch

    from cnnbench.measure.work import SpeedConfig, Way
    from cnnbench.network import Network

DEFAULT_OUT = Path("results/speed")
_GRAPH = " as a CUDA graph"
FORMATS = {"channels_last": True, "contiguous": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_network_arguments(parser)
    add = parser.add_argument
    add("--batch_size", type=int, metavar="B", help="images per batch of throughput (default: 128 on CPU, 1024 on GPU)")
    add("--train_batch_size", type=int, metavar="B", help="images per training step (default: 32 on CPU, 256 on GPU)")
    add("--rounds", type=int, metavar="N", help="turns that every network has (default: 120, or 12 "
        "and more if these take longer than 5 s per network; intervals need 6)")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--precision", default="auto", metavar="A,B", help="auto (bfloat16 where the device has it: inference in "
        "bf16-true, training in bf16-mixed), 32-true, bf16-mixed, bf16-true, and on a GPU 16-mixed, 16-true and tf32; "
        "several are rows of their own; all for those that the device computes in (default: auto)")  # fmt: skip
    add("--memory_format", default="channels_last", metavar="A,B", help="channels_last, contiguous, or all (default: "
        "%(default)s)")  # fmt: skip
    add("--mode", default="eager", metavar="A,B", help="eager, compile, on a GPU cuda-graph, or all (default: "
        "%(default)s)")  # fmt: skip
    add("--cudnn_benchmark", choices=("on", "off"), default="on", help="whether cuDNN tries its kernels per shape and "
        "takes the fastest, on a GPU (default: %(default)s)")  # fmt: skip
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
    add("--records", type=Path, metavar="FILE", help="also write a record per row, as JSON lines, for `cnnbench "
        "compare` and `report`")  # fmt: skip
    add("--json", action="store_true", help="print one JSON document on stdout")


def speed(arguments: argparse.Namespace) -> int:
    """Times networks and prints what was found; 1 when one of them failed."""
    from cnnbench import hardware, limits
    from cnnbench.measure.processes import in_process, in_processes
    from cnnbench.measure.sweep import Sweep, sweep

    if arguments.out and not arguments.limits:
        raise UserError("--out is for the picture of --limits; add --limits, or leave it out")
    if arguments.records is not None and os.path.lexists(arguments.records):
        raise UserError(f"'{arguments.records}' exists and records are never overwritten; choose another name")
    if arguments.max_batch_size is not None and not arguments.sweep:
        raise UserError("--max_batch_size is that of --sweep; add --sweep, or leave it out")
    config, ways = _config(arguments)
    if arguments.limits and arguments.mode != "eager":
        raise UserError(f"--limits is about operators as they are written; leave out --mode {arguments.mode}")
    if arguments.memory and config.device.type != "cpu":
        raise UserError("--memory is for the CPU; on a GPU the peak memory is always in the table")
    without = next((way for way in (way or config.way for way in ways) if "training" not in way.kinds), None)
    if arguments.memory and without is not None:
        raise UserError(f"--memory is that of training steps, and in {without.precision} there are none; leave out one")
    if arguments.memory and any(way and way.mode == "compile" for way in ways):
        raise UserError("--memory would find what the compiler takes; leave out --mode compile")
    for option, used in (("limits", arguments.limits), ("sweep", arguments.sweep)):
        if used and (len(ways) > 1 or arguments.processes > 1):
            raise UserError(f"--{option} is for one way and one process; leave out --processes, or the other ways")
    out = limits.make_folder(arguments.out or DEFAULT_OUT) if arguments.limits else DEFAULT_OUT
    networks = find_networks(arguments)
    if arguments.records is not None:
        limits.make_folder(arguments.records.parent, "records")
    rows = [Row(network, way) for network in networks for way in ways]
    hardware.keep_freed_memory()
    limited = None
    sweeps: dict[str, Sweep] = {}
    with stdout_kept():  # what a network of the user's prints is not part of the document
        if arguments.processes > 1:
            figures = in_processes(
                arguments.processes, config, _figures_of, arguments, [(row.network.name, row.way) for row in rows],
                on_start=lambda n: note(f"process {n + 1} of {arguments.processes}"),
            )  # fmt: skip
        else:
            subjects = {row.name: _subject(row) for row in rows}
            before = limits.peaks_now(config) if arguments.limits else None
            graphs = _as_graphs(subjects, config) if arguments.limits else {}
            everything = _measured(subjects | graphs, config)
            figures = {name: everything[name] for name in subjects}
            if before is not None:
                where = f"{hardware.device_name(config.device)}, {way_words(rows, config)}, {config.batch_size} images"
                replayed = {name: everything[name + _GRAPH] for name in subjects if name + _GRAPH in everything}
                limited = limits.find(subjects, figures, config, before, out, where, replayed)
            if arguments.sweep:
                there = {name: subject for name, subject in subjects.items() if "error" not in figures[name]}
                sweeps = sweep(there, config, _most_images(arguments, config), _say)
        if arguments.memory:
            for row in (row for row in rows if "error" not in figures[row.name]):
                note(f"memory of {row.name}")
                figures[row.name] |= in_process(_growth_of, config, arguments, [(row.network.name, row.way)])
    failed = {name: found["error"] for name, found in figures.items() if "error" in found}
    if arguments.records is not None:
        write_lines(arguments.records, records(config, rows, figures, limited, sweeps))
        note(f"records: {arguments.records}")
    if arguments.json:
        out_json(document(config, rows, figures, limited, sweeps))
    else:
        print_tables(arguments.processes, config, rows, figures, limited, sweeps)
    for name, reason in failed.items():
        note(f"{name} failed: {reason}")
    unlimited = limited.failed if limited is not None else {}
    for name, reason in unlimited.items():
        note(f"what limits {name} was not found: {reason}")
    return 1 if failed or unlimited else 0


def _as_graphs(subjects: Mapping[str, Any], config: SpeedConfig) -> dict[str, Any]:
    """The same networks as CUDA graphs, which are not launched operator by operator; none where there cannot be any."""

    if config.device.type != "cuda":
        return {}
    return {
        name + _GRAPH: replace(
            subject,
            way=replace(subject.way or config.way, mode="cuda-graph"),
            kinds=("latency", "inference"),
        )
        for name, subject in subjects.items()
    }


def _measured(subjects: Mapping[str, Any], config: SpeedConfig) -> dict[str, dict[str, Any]]:
    from cnnbench.measure.speed import measure_speed

    return measure_speed(subjects, config, _say)


def _say(share: float, text: str) -> None:
    note(f"{share:4.0%} {text}")


def _config(arguments: argparse.Namespace) -> tuple[SpeedConfig, list[Way | None]]:
    """How the timing is done, and the ways that are compared."""
    from cnnbench import hardware
    from cnnbench.measure.speed import SpeedConfig
    from cnnbench.measure.work import Way

    device = hardware.choose_device(arguments.device)
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"seed {arguments.seed} is not in 0 to 2^63 - 1")
    asked, formats, modes = (_values(arguments, n, device) for n in ("precision", "memory_format", "mode"))
    benchmark = device.type == "cuda" and arguments.cudnn_benchmark == "on"
    precisions = [_precisions(name, device) for name in asked]
    for name in formats:
        if name not in FORMATS:
            raise unknown("memory_format", name, FORMATS)
    ways: list[Way | None] = [
        Way(training, FORMATS[order], mode, benchmark, inference)
        for (training, inference), order, mode in itertools.product(precisions, formats, modes)
    ]
    if "all" in (arguments.precision, arguments.mode):
        ways = [way for way in ways if way and way.is_possible]
    for way in ways:
        assert way is not None
        way.check(device)
    if len(set(ways)) < len(ways):
        raise UserError(f"two of the ways are the same: {'; '.join(way.words for way in ways if way)}")
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
    if arguments.processes > MOST_PROCESSES:
        raise UserError(f"processes {arguments.processes} is more than {MOST_PROCESSES}; 6 are enough for an interval")
    fewest = SpeedConfig.fewest_rounds if arguments.rounds is None else given[2]
    config = SpeedConfig(
        device, precisions[0][0], given[0], given[1], rounds=given[2], fewest_rounds=fewest, seed=arguments.seed,
        cudnn_benchmark=benchmark, inference_precision=precisions[0][1],
    )  # fmt: skip
    if ways == [config.way] and config.precision != "tf32":
        ways = [None]  # rows are called by their network alone
    return config, ways


def _precisions(name: str, device: torch.device) -> tuple[str, str]:
    """Return the number formats of training and of inference for a word of the command line.

    Raises:
        UserError: It is unknown, or the device does not compute in it.
    """
    from cnnbench import hardware

    if name == "auto":
        precision, _ = hardware.choose_precision(name, device)
        return precision, hardware.inference_precision(precision)
    known = (*hardware.PRECISIONS, *hardware.INFERENCE_PRECISIONS, "tf32")
    if name not in known:
        raise unknown("precision", name, known)
    if name in hardware.PRECISIONS:
        hardware.choose_precision(name, device)
    return name, name


def _values(arguments: argparse.Namespace, option: str, device: Any) -> list[str]:
    """What an option of the way names; ``all`` is what the device has."""
    given = getattr(arguments, option)
    if given != "all":
        values = split_names(given)
        if not values:
            raise UserError(f"{option} '{given}' names nothing; leave it out for the default")
        return list(values)
    from cnnbench.measure.peaks import hardware_precisions
    from cnnbench.measure.work import MODES

    on_gpu = device.type == "cuda"
    return {
        "precision": [*_all_precisions(hardware_precisions(device)), *["tf32"] * on_gpu],
        "memory_format": list(FORMATS),
        "mode": [mode for mode in MODES if on_gpu or mode != "cuda-graph"],
    }[option]


def _all_precisions(of_training: Sequence[str]) -> list[str]:
    """Return the precisions of training, each with that of its inference after it."""
    from cnnbench.hardware import inference_precision

    return list(dict.fromkeys(name for one in of_training for name in (one, inference_precision(one))))


def _most_images(arguments: argparse.Namespace, config: SpeedConfig) -> int:
    default = 512 if config.device.type == "cpu" else 65536
    return arguments.max_batch_size or default


def _rows(arguments: argparse.Namespace, ways: Sequence[tuple[str, Way | None]]) -> list[Row]:
    networks = {network.name: network for network in find_networks(arguments)}
    return [Row(networks[name], way) for name, way in ways]


def _figures_of(
    config: SpeedConfig, arguments: argparse.Namespace, ways: Sequence[tuple[str, Way | None]]
) -> dict[str, dict[str, Any]]:
    """In a process of its own: the figures of the rows."""
    from cnnbench import hardware

    hardware.keep_freed_memory()
    with stdout_kept():
        return _measured({row.name: _subject(row) for row in _rows(arguments, ways)}, config)


def _growth_of(
    config: SpeedConfig, arguments: argparse.Namespace, ways: Sequence[tuple[str, Way | None]]
) -> dict[str, Any]:
    """In a process of its own: what a row's training takes of the system's memory."""
    from cnnbench.measure.resident import resident_growth

    with stdout_kept():
        (row,) = _rows(arguments, ways)
        return {"resident_bytes": resident_growth(_subject(row), replace(config, warmup_s=0.0))}


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
        except Stopped:
            raise
        except BaseException as error:  # whatever a network of the user's raises
            shape = "x".join(map(str, network.image_shape))
            text = " ".join(str(error).split())[:300]
            raise UserError(
                f"'{network.name}' does not take images of {shape}: {type(error).__name__}: {text}"
            ) from error
        return loss_and_logits(output, torch.zeros(1, dtype=torch.long))[1].shape[1]
