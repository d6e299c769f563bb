"""The timing of rows: in this process, or in fresh ones that take turns, with a file for each engine.

A row (`cnnbench.commands.speed_ways.Row`) is a network and the way it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from cnnbench import hardware, progress
from cnnbench.commands.named_networks import find_networks
from cnnbench.commands.speed import Options
from cnnbench.commands.speed_ways import Row
from cnnbench.console import note, stdout_kept
from cnnbench.engines import ENGINES, INT8, TORCH
from cnnbench.engines.export import ON_NOISE, bytes_of_weights, calibration_noise, write_for_engine
from cnnbench.errors import Stopped, reason
from cnnbench.network import Network
from cnnbench.record import INFERENCE_KINDS, KINDS
from cnnbench.roofline.bounds import Survey, peaks_now, survey
from cnnbench.timing.process_memory import growth_or_reason, inference_growth, resident_growth
from cnnbench.timing.processes import in_groups, in_processes, scratch_folder
from cnnbench.timing.speed import SpeedConfig, Subject, measure_speed
from cnnbench.timing.sweep import sweep
from cnnbench.timing.timed_network import SMALL_IMAGE, Way, small_network
from cnnbench.training.loss import loss_and_logits, output_of

_GRAPH = " as a CUDA graph"
"""Suffix of a row's name for the same network as a CUDA graph."""


def time_rows(
    options: Options, config: SpeedConfig, rows: Sequence[Row]
) -> tuple[dict[str, dict[str, Any]], Survey | None]:
    """Return the figures of every row by the row's name, and what limits the networks if the options ask for it."""
    limits = None
    if options.engine != TORCH:
        return _time_engines(options, config, rows), None
    if options.processes > 1:
        # A fresh process gets the names of the networks and builds them itself.
        named = [(row.network.name, row.way) for row in rows]
        figures = in_processes(
            options.processes,
            config,
            _figures_of,
            options,
            named,
            on_start=lambda number: note(f"process {number + 1} of {options.processes}"),
        )
    else:
        figures, limits = _time_here(options, config, rows)
    if options.memory:
        _add_memory(options, config, rows, figures)
    return figures, limits


def _time_here(
    options: Options, config: SpeedConfig, rows: Sequence[Row]
) -> tuple[dict[str, dict[str, Any]], Survey | None]:
    """Return the figures of every row, timed in this process, and what limits the networks if that was asked for."""
    subjects = _subjects(rows)
    graphs: dict[str, Subject] = {}
    before = None
    if options.limits:
        # The peaks of the machine are measured before the timing, and by `survey` after it; the better ones count.
        before = peaks_now(config)
        graphs = _as_graphs(subjects, config)
    # The graphs take part in the same rounds, so that their times compare with those of the networks.
    everything = measure_speed(subjects | graphs, config, _say)
    # The graphs are no rows of their own: their figures only help to say what limits the network as it is written.
    figures: dict[str, dict[str, Any]] = {}
    replayed: dict[str, dict[str, Any]] = {}
    working: dict[str, Subject] = {}
    for name, subject in subjects.items():
        figures[name] = everything[name]
        if name + _GRAPH in everything:
            replayed[name] = everything[name + _GRAPH]
        if "error" not in figures[name]:
            working[name] = subject
    limits = None
    if before is not None:
        limits = survey(subjects, figures, config, before, replayed)
    if options.sweep:
        default = 512 if config.device.type == "cpu" else 65536
        for name, swept in sweep(working, config, options.max_batch_size or default, _say).items():
            figures[name]["sweep"] = asdict(swept)
    return figures, limits


def _time_engines(options: Options, config: SpeedConfig, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the figures of every row, each engine timed in processes of its own.

    The threads of an engine still spin for a while after a call, and would slow another engine in the same process.
    """

    def say_turn(number: int, engine: str) -> None:
        text = f"process {number + 1} of {options.processes}: {engine}"
        # Signs of life must not go on to say what was exported last.
        progress.now(1.0, text)
        note(text)

    with scratch_folder() as folder:
        files, quantised, failed = _export(options, config, rows, folder)
        groups: dict[str, list[tuple[str, Way | None]]] = {}
        for row in rows:
            if row.name not in failed:
                groups.setdefault(row.engine(config), []).append((row.network.name, row.way))
        figures = in_groups(
            options.processes,
            config,
            _figures_of,
            {engine: (options, ways, files) for engine, ways in groups.items()},
            on_start=say_turn,
            names={engine: [row.name for row in rows if row.engine(config) == engine] for engine in groups},
        )
        figures |= failed
        if options.memory:
            small = _small_files(config, [row for row in rows if "error" not in figures[row.name]], folder)
            _add_memory(options, config, rows, figures, files, small)
    for row in rows:
        # torch has no file of its own, so that of its weights stands for it.
        if row.engine(config) == TORCH and "error" not in figures[row.name]:
            dtype = hardware.weights_type((row.way or config.way).precision)
            figures[row.name]["file_bytes"] = bytes_of_weights(row.network.build().to(dtype))
    for name, facts in quantised.items():
        for of_kind in figures[name].get("engine_facts", {}).values():
            of_kind["quantisation"] = facts
    return figures


def _export(
    options: Options, config: SpeedConfig, rows: Sequence[Row], folder: Path
) -> tuple[dict[str, Path], dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Write the networks of engines as files.

    The weights are random, so networks in int8 are calibrated on noise. Their speed is that of trained ones, and
    nothing follows for their accuracy.

    Returns:
        The files, the facts about the quantisation of those in int8, and the errors of the networks that cannot be
        exported, all by the name of the row.
    """
    files: dict[str, Path] = {}
    quantised: dict[str, dict[str, Any]] = {}
    failed: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        engine = ENGINES[row.engine(config)]
        if engine.name == TORCH:
            continue
        precision = (row.way or config.way).precision
        _say(number / len(rows), f"export {row.name}")
        path = folder / f"{number}{engine.suffix}"
        try:
            torch.manual_seed(options.seed)
            network, noise = row.network, None
            if precision == INT8:
                noise = calibration_noise(network.image_shape, options.seed)
            facts = write_for_engine(
                network.build(),
                network.image_shape,
                network.name,
                engine.name,
                precision,
                config.device,
                path,
                noise,
                ON_NOISE,
            )
        except Stopped:
            raise
        except BaseException as error:  # whatever a network raises is its own failure; the others go on
            failed[row.name] = {"error": reason(error)}
        else:
            files[row.name] = path
            if facts:
                quantised[row.name] = facts
    return files, quantised, failed


def _small_files(config: SpeedConfig, rows: Sequence[Row], folder: Path) -> dict[Way | None, Path]:
    """Write a small network for each way of an engine, with which a process loads the engine's libraries."""
    files: dict[Way | None, Path] = {}
    for way in dict.fromkeys(row.way for row in rows):
        if way is None or way.engine == TORCH:
            continue
        path = folder / f"small-{len(files)}{ENGINES[way.engine].suffix}"
        noise = calibration_noise(SMALL_IMAGE, config.seed) if way.precision == INT8 else None
        write_for_engine(
            small_network(), SMALL_IMAGE, "small", way.engine, way.precision, config.device, path, noise, ON_NOISE
        )
        files[way] = path
    return files


def _add_memory(
    options: Options,
    config: SpeedConfig,
    rows: Sequence[Row],
    figures: Mapping[str, dict[str, Any]],
    files: Mapping[str, Path] = MappingProxyType({}),
    small: Mapping[Way | None, Path] = MappingProxyType({}),
) -> None:
    """Add to the figures of each row by how much its network grows the memory of a process.

    Args:
        options: Options of the command.
        config: How the networks are timed.
        rows: Networks and the ways they run.
        figures: Figures by the name of the row, to which these are added.
        files: Files of the networks that other engines than torch run, by the name of the row.
        small: Files of a small network, by the way that runs it.
    """
    for row in rows:
        if "error" not in figures[row.name]:
            progress.now(1.0, f"memory of {row.name}")
            note(f"memory of {row.name}")
            named = [(row.network.name, row.way)]
            # The growth of a process says something about one network only if the process has done nothing else.
            growth = growth_or_reason(_growth_of, config, options, named, dict(files), small.get(row.way))
            figures[row.name].update(growth)


def _as_graphs(subjects: Mapping[str, Subject], config: SpeedConfig) -> dict[str, Subject]:
    """Return the same networks as CUDA graphs, whose operators are not launched one by one; empty without CUDA."""
    if config.device.type != "cuda":
        return {}
    graphs = {}
    for name, subject in subjects.items():
        way = replace(subject.way or config.way, mode="cuda-graph")
        # A graph of the training step is not needed: the limits of a network are those of its inference.
        graphs[name + _GRAPH] = replace(subject, way=way, kinds=("latency", "inference"))
    return graphs


def _rows(options: Options, ways: Sequence[tuple[str, Way | None]]) -> list[Row]:
    # A fresh process gets only names: it looks the networks up again, and each way takes the one with its name.
    networks = {network.name: network for network in find_networks(options)}
    return [Row(networks[name], way) for name, way in ways]


def _figures_of(
    config: SpeedConfig,
    options: Options,
    ways: Sequence[tuple[str, Way | None]],
    files: Mapping[str, Path] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """Return the figures of the rows; called in a fresh process.

    Args:
        config: How the networks are timed.
        options: Options of the command.
        ways: Names and ways of the rows.
        files: Files of the networks that other engines than torch run, by the name of the row.
    """
    hardware.keep_freed_memory()
    with stdout_kept():
        return measure_speed(_subjects(_rows(options, ways), files, options.engine != TORCH), config, _say)


def _growth_of(
    config: SpeedConfig,
    options: Options,
    ways: Sequence[tuple[str, Way | None]],
    files: Mapping[str, Path] = MappingProxyType({}),
    small: Path | None = None,
) -> dict[str, Any]:
    """Return the bytes by which a row grows the memory of its process; called in a fresh process.

    The growth is that of training steps. It is that of inference for rows that train nothing or stand beside engines
    that train nothing.

    Args:
        config: How the networks are timed.
        options: Options of the command.
        ways: Name and way of the row.
        files: File of its network, if another engine than torch runs it, by the name of the row.
        small: Small network as a file for the same engine.
    """
    # Times do not matter here, so nothing is warmed up.
    config = replace(config, warmup_s=0.0)
    with stdout_kept():
        (subject,) = _subjects(_rows(options, ways), files, options.engine != TORCH).values()
        if options.engine == TORCH and "training" in (subject.way or config.way).kinds:
            return {"resident_bytes": resident_growth(subject, config)}
        return {"inference_resident_bytes": inference_growth(subject, config, small)}


def _subjects(
    rows: Sequence[Row], files: Mapping[str, Path] = MappingProxyType({}), inference_only: bool = False
) -> dict[str, Subject]:
    """Return the rows by name, as `measure_speed` takes them.

    Args:
        rows: Networks and the ways they run.
        files: Files of the networks that other engines than torch run, by the name of the row.
        inference_only: Whether to leave out training steps, since the rows are compared with engines that have none.
    """
    kinds = INFERENCE_KINDS if inference_only else KINDS
    subjects = {}
    for row in rows:
        network = row.network
        classes = network.num_classes or _classes(network)
        file = files.get(row.name)
        subjects[row.name] = Subject(network.build, network.image_shape, classes, way=row.way, kinds=kinds, file=file)
    return subjects


def _classes(network: Network) -> int:
    """Return the number of classes of a network that does not state it, from its output for one image.

    Raises:
        UserError: The network does not accept such images.
    """
    # Only the shape of the output counts, so the image may be all zeros.
    with torch.inference_mode():
        output = output_of(network.build().eval(), torch.zeros(1, *network.image_shape), network.name)
        # This refuses an output that is not logits, and returns those of the main head if there are several.
        return loss_and_logits(output, torch.zeros(1, dtype=torch.long))[1].shape[1]


def _say(share: float, text: str) -> None:
    progress.now(share, text)
    note(f"{share:4.0%} {text}")
