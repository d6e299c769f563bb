"""The timing behind `cnnbench speed`: options become networks and ways of running them, which are timed and shown."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cnnbench import hardware
from cnnbench.commands import speed_limits as limits
from cnnbench.commands.named_networks import find_networks
from cnnbench.commands.speed import Options
from cnnbench.commands.speed_tables import Row, document, print_tables, records, way_words
from cnnbench.console import note, out_json, stdout_kept
from cnnbench.errors import Stopped, UserError, unknown
from cnnbench.network import Network
from cnnbench.record import write_lines
from cnnbench.registry import split_names
from cnnbench.roofline.peaks import hardware_precisions
from cnnbench.timing.processes import in_process, in_processes
from cnnbench.timing.resident import resident_growth
from cnnbench.timing.speed import SpeedConfig, Subject, measure_speed
from cnnbench.timing.sweep import Sweep, sweep
from cnnbench.timing.work import MODES, Way
from cnnbench.training.classifier import loss_and_logits

DEFAULT_OUT = Path("results/speed")
_GRAPH = " as a CUDA graph"
FORMATS = {"channels_last": True, "contiguous": False}


def speed(options: Options) -> int:
    """Times networks and prints what was found; 1 when one of them failed."""
    config, ways = _config(options)
    if options.memory and config.device.type != "cpu":
        raise UserError("--memory is for the CPU; on a GPU the peak memory is always in the table")
    without = next((way for way in (way or config.way for way in ways) if "training" not in way.kinds), None)
    if options.memory and without is not None:
        raise UserError(f"--memory is that of training steps, and in {without.precision} there are none; leave out one")
    if options.memory and any(way and way.mode == "compile" for way in ways):
        raise UserError("--memory would find what the compiler takes; leave out --mode compile")
    for option, used in (("limits", options.limits), ("sweep", options.sweep)):
        if used and (len(ways) > 1 or options.processes > 1):
            raise UserError(f"--{option} is for one way and one process; leave out --processes, or the other ways")
    out = limits.make_folder(options.out or DEFAULT_OUT) if options.limits else DEFAULT_OUT
    networks = find_networks(options)
    if options.records is not None:
        limits.make_folder(options.records.parent, "records")
    rows = [Row(network, way) for network in networks for way in ways]
    hardware.keep_freed_memory()
    limited = None
    sweeps: dict[str, Sweep] = {}
    with stdout_kept():  # what a network of the user's prints is not part of the document
        if options.processes > 1:
            figures = in_processes(
                options.processes, config, _figures_of, options, [(row.network.name, row.way) for row in rows],
                on_start=lambda n: note(f"process {n + 1} of {options.processes}"),
            )  # fmt: skip
        else:
            subjects = {row.name: _subject(row) for row in rows}
            before = limits.peaks_now(config) if options.limits else None
            graphs = _as_graphs(subjects, config) if options.limits else {}
            everything = _measured(subjects | graphs, config)
            figures = {name: everything[name] for name in subjects}
            if before is not None:
                where = f"{hardware.device_name(config.device)}, {way_words(rows, config)}, {config.batch_size} images"
                replayed = {name: everything[name + _GRAPH] for name in subjects if name + _GRAPH in everything}
                limited = limits.find(subjects, figures, config, before, out, where, replayed)
            if options.sweep:
                there = {name: subject for name, subject in subjects.items() if "error" not in figures[name]}
                sweeps = sweep(there, config, _most_images(options, config), _say)
        if options.memory:
            for row in (row for row in rows if "error" not in figures[row.name]):
                note(f"memory of {row.name}")
                figures[row.name] |= in_process(_growth_of, config, options, [(row.network.name, row.way)])
    failed = {name: found["error"] for name, found in figures.items() if "error" in found}
    if options.records is not None:
        write_lines(options.records, records(config, rows, figures, limited, sweeps))
        note(f"records: {options.records}")
    if options.json:
        out_json(document(config, rows, figures, limited, sweeps))
    else:
        print_tables(options.processes, config, rows, figures, limited, sweeps)
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

    return measure_speed(subjects, config, _say)


def _say(share: float, text: str) -> None:
    note(f"{share:4.0%} {text}")


def _config(options: Options) -> tuple[SpeedConfig, list[Way | None]]:
    """How the timing is done, and the ways that are compared."""
    device = hardware.choose_device(options.device)
    asked, formats, modes = (_values(options, n, device) for n in ("precision", "memory_format", "mode"))
    benchmark = device.type == "cuda" and options.cudnn_benchmark == "on"
    precisions = [_precisions(name, device) for name in asked]
    for name in formats:
        if name not in FORMATS:
            raise unknown("memory_format", name, FORMATS)
    ways: list[Way | None] = [
        Way(training, FORMATS[order], mode, benchmark, inference)
        for (training, inference), order, mode in itertools.product(precisions, formats, modes)
    ]
    if "all" in (options.precision, options.mode):
        ways = [way for way in ways if way and way.is_possible]
    for way in ways:
        assert way is not None
        way.check(device)
    if len(set(ways)) < len(ways):
        raise UserError(f"two of the ways are the same: {'; '.join(way.words for way in ways if way)}")
    defaults = (*hardware.default_batch_sizes(device), SpeedConfig.rounds)
    sizes = [options.batch_size, options.train_batch_size, options.rounds]
    given = [default if value is None else value for value, default in zip(sizes, defaults, strict=True)]
    fewest = SpeedConfig.fewest_rounds if options.rounds is None else given[2]
    config = SpeedConfig(
        device, precisions[0][0], given[0], given[1], rounds=given[2], fewest_rounds=fewest, seed=options.seed,
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
    if name == "auto":
        precision, _ = hardware.choose_precision(name, device)
        return precision, hardware.inference_precision(precision)
    known = (*hardware.PRECISIONS, *hardware.INFERENCE_PRECISIONS, "tf32")
    if name not in known:
        raise unknown("precision", name, known)
    if name in hardware.PRECISIONS:
        hardware.choose_precision(name, device)
    return name, name


def _values(options: Options, option: str, device: Any) -> list[str]:
    """What an option of the way names; ``all`` is what the device has."""
    given = getattr(options, option)
    if given != "all":
        values = split_names(given)
        if not values:
            raise UserError(f"{option} '{given}' names nothing; leave it out for the default")
        return list(values)

    on_gpu = device.type == "cuda"
    return {
        "precision": [*_all_precisions(hardware_precisions(device)), *["tf32"] * on_gpu],
        "memory_format": list(FORMATS),
        "mode": [mode for mode in MODES if on_gpu or mode != "cuda-graph"],
    }[option]


def _all_precisions(of_training: Sequence[str]) -> list[str]:
    """Return the precisions of training, each with that of its inference after it."""
    both = []
    for precision in of_training:
        both += [precision, hardware.inference_precision(precision)]
    return list(dict.fromkeys(both))


def _most_images(options: Options, config: SpeedConfig) -> int:
    default = 512 if config.device.type == "cpu" else 65536
    return options.max_batch_size or default


def _rows(options: Options, ways: Sequence[tuple[str, Way | None]]) -> list[Row]:
    networks = {network.name: network for network in find_networks(options)}
    return [Row(networks[name], way) for name, way in ways]


def _figures_of(
    config: SpeedConfig, options: Options, ways: Sequence[tuple[str, Way | None]]
) -> dict[str, dict[str, Any]]:
    """In a process of its own: the figures of the rows."""
    hardware.keep_freed_memory()
    with stdout_kept():
        return _measured({row.name: _subject(row) for row in _rows(options, ways)}, config)


def _growth_of(config: SpeedConfig, options: Options, ways: Sequence[tuple[str, Way | None]]) -> dict[str, Any]:
    """In a process of its own: what a row's training takes of the system's memory."""
    with stdout_kept():
        (row,) = _rows(options, ways)
        return {"resident_bytes": resident_growth(_subject(row), replace(config, warmup_s=0.0))}


def _subject(row: Row) -> Any:

    network = row.network
    return Subject(network.build, network.image_shape, network.num_classes or _classes(network), way=row.way)


def _classes(network: Network) -> int:
    """Classes of a network that does not say how many it has, from what it puts out for an image."""
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
