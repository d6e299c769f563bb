"""The work of `cnnbench speed`: records, tables and the JSON document of networks that are timed.

Rows are chosen in `cnnbench.commands.speed_ways`, and timed in `cnnbench.commands.speed_timing`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cnnbench import hardware
from cnnbench.commands.named_networks import find_networks
from cnnbench.commands.speed import Options
from cnnbench.commands.speed_timing import time_rows
from cnnbench.commands.speed_ways import Row, check_ways, ways_of
from cnnbench.console import note, out, out_json, show, stdout_kept
from cnnbench.engines import ENGINES, TORCH
from cnnbench.errors import UserError
from cnnbench.files import make_folder, replacing
from cnnbench.network import Network
from cnnbench.record import AFTER_TIMES, Record, environment, write_lines
from cnnbench.report.roofline_picture import draw_roofs
from cnnbench.report.speed_tables import LIMITED, all_ratios, sentences, tables, way_words
from cnnbench.roofline.bounds import CONVENTION, Survey
from cnnbench.timing.energy import without_reason
from cnnbench.timing.speed import SpeedConfig

DEFAULT_OUT = Path("results/speed")
PICTURE = "roofline.png"
PIPE_WIDTH = 200


def speed(options: Options) -> int:
    """Time networks, print and write the results; return 1 if a network failed or its limits are not known."""
    config, ways = ways_of(options)
    check_ways(options, config, ways)
    networks = find_networks(options)
    # Folders are made once nothing else can be refused, and before anything is timed.
    folder = options.out or DEFAULT_OUT
    if options.limits:
        make_folder(folder, "--out")
    if options.records is not None:
        make_folder(options.records.parent, "--records")
    rows = [Row(*pair) for pair in itertools.product(networks, ways)]
    records = _time_rows(options, config, rows)
    picture = None
    if _by_row(records, "limits"):
        picture = _draw_roofline(records, folder)
    if options.records is not None:
        write_lines(options.records, records)
        note(f"records: {options.records}")
    if options.json:
        out_json(_document(config, rows, records, picture))
    else:
        show(*tables(records), pipe_width=PIPE_WIDTH)
        for line in sentences(records):
            out(line)
        if picture is not None:
            out(f"{picture}: achieved against possible, by network and kind of layer")
    failures = _failures(records)
    for failure in failures:
        note(failure)
    return 1 if failures else 0


def _failures(records: Sequence[Record]) -> list[str]:
    """Return a sentence for each network that failed and for each whose limits are not known."""
    failures = []
    for record in records:
        if record.status == "error":
            failures.append(f"{record.model} failed: {record.reason}")
        if "limits" in record.skipped:
            failures.append(f"what limits {record.model} was not found: {record.skipped['limits']}")
    return failures


def time_networks(options: Options, networks: Sequence[Network]) -> list[Record]:
    """Time networks in every way that the options name, and return a record per network and way.

    Args:
        options: Options of the timing. Its names of networks are used only in fresh processes, which build the networks
            themselves.
        networks: Networks to time.

    Raises:
        UserError: An option does not go with another option, with the device, or with a network; or two networks have
            the same name.
    """
    config, ways = ways_of(options)
    check_ways(options, config, ways)
    # Results are kept by the name of the row, so two networks of one name would share a row.
    names = [network.name for network in networks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two networks are called '{name}'; give one of them another name, such as a subclass")
    return _time_rows(options, config, [Row(*pair) for pair in itertools.product(networks, ways)])


def without_times(options: Options, networks: Sequence[Network]) -> list[Record]:
    """Return the records that `time_networks` would return, without figures: their settings, machine and software."""
    config, ways = ways_of(options)
    rows = [Row(*pair) for pair in itertools.product(networks, ways)]
    return _records(config, rows, {row.name: {} for row in rows}, None)


def _time_rows(options: Options, config: SpeedConfig, rows: Sequence[Row]) -> list[Record]:
    """Return a record per row."""
    hardware.keep_freed_memory()
    with stdout_kept():  # text that a user's network prints must not get into the document
        figures, limits = time_rows(options, config, rows)
    return _records(config, rows, figures, limits)


def _records(
    config: SpeedConfig, rows: Sequence[Row], figures: Mapping[str, Mapping[str, Any]], limits: Survey | None
) -> list[Record]:
    """Return a record per row; the name of a record includes the way if there are several."""
    machine = _machine(config, limits)
    records = []
    for row in rows:
        # A figure that the device does not have, such as the memory of a GPU, is None and is left out.
        known, skipped = without_reason(figures[row.name])
        measures = {key: value for key, value in known.items() if value is not None}
        error = measures.pop("error", "")
        if limits is not None and row.name in limits.limits:
            measures["limits"] = limits.limits[row.name]
        if limits is not None and row.name in limits.failed:
            skipped["limits"] = limits.failed[row.name]
        status = "error" if error else "ok"
        data, settings = _random_images(row.network), _settings(config, row)
        engine = ENGINES[row.engine(config)]
        # The version of an engine is a fact about its own rows alone.
        of_row = {**machine, "packages": {**machine["packages"], engine.package: engine.version}}
        records.append(Record(row.name, data, 0, status, settings, of_row, error, measures, skipped))
    return records


def _settings(config: SpeedConfig, row: Row) -> dict[str, Any]:
    """Return the settings of a row for its record; nothing is trained, so there is no budget and no epoch."""
    way = row.way or config.way
    return {
        "budget_s": None,
        "epochs": None,
        "device": str(config.device),
        "measures": ["speed"],
        "network": row.network.name,
        "precision": way.precision,
        "inference_precision": way.precision_of("inference"),
        # Engines take contiguous images, whatever their operators then do.
        "memory_format": "channels_last" if way.channels_last and way.engine == TORCH else "contiguous",
        "mode": way.mode,
        "cudnn_benchmark": way.cudnn_benchmark,
        "engine": way.engine,
        **config.settling(),
        "batch_size": config.train_batch_size,
        "speed_batch_size": config.batch_size,
    }


def _random_images(network: Network) -> dict[str, Any]:
    """Return the data entry of a record, for images of random noise."""
    # A record states these numbers for every data set; random images belong to no split.
    none = dict.fromkeys(("train_images", "val_images", "test_images", "full_train_images", "full_epochs"), 0)
    return {
        "name": "noise",
        "label": f"random images of {'x'.join(map(str, network.image_shape))}",
        "synthetic": False,
        "class_names": [],
        "in_channels": network.in_channels,
        "image_size": network.image_size,
        "augment": False,
        **none,
    }


def _machine(config: SpeedConfig, limits: Survey | None) -> dict[str, Any]:
    """Return the facts about machine and software, and the peaks of the machine if they were measured."""
    facts = hardware.accelerator_facts(config.device)
    machine = {
        **environment(hardware.device_name(config.device), torch.get_num_threads()),
        # The current TF32 flags of torch are left out, because the way of each row sets them.
        "accelerator": {name: value for name, value in facts.items() if not name.startswith("tf32")},
        "allocator": hardware.keep_freed_memory(),
    }
    if limits is not None:
        machine["peaks"] = {
            **limits.peaks.figures(),
            "number_format": limits.peaks.format_of(config.way.precision_of("inference")),
            "suspect": list(limits.doubts),
        }
    return machine


def _draw_roofline(records: Sequence[Record], folder: Path) -> Path:
    """Draw a roofline picture from records, with what the networks reach of the machine's peaks; return its path."""
    limits = _by_row(records, "limits")
    first = records[0]  # machine and batch size are the same in all records
    peaks = first.environment["peaks"]
    title = f"{first.environment['device']}, {way_words(records)}, {first.config['speed_batch_size']} images"
    drawn = [record for record in records if record.model in limits]
    if peaks["suspect"] or any(record.doubts(kind) for record in drawn for kind in LIMITED):
        title += " (suspect)"
    path = folder / PICTURE
    with replacing(path) as file:
        draw_roofs(limits, peaks, peaks["number_format"], title).savefig(file, format="png", dpi=160)
    return path


def _document(
    config: SpeedConfig, rows: Sequence[Row], records: Sequence[Record], picture: Path | None
) -> dict[str, Any]:
    """Return everything that was measured, for JSON.

    Args:
        config: How the networks were timed.
        rows: Networks and ways, in the order of the records.
        records: Record of each row.
        picture: File of the roofline picture; None if there is none.
    """
    networks = []
    for row, record in zip(rows, records, strict=True):
        entry = {
            "row": record.model,
            "model": row.network.name,
            "in_channels": row.network.in_channels,
            "image_size": row.network.image_size,
            "num_classes": row.network.num_classes,
            "way": vars(row.way) if row.way else None,
        }
        # Limits and sweeps have parts of the document of their own.
        entry |= _without(record.measures, "limits", "sweep")
        if record.reason:
            entry["error"] = record.reason
        for measure in AFTER_TIMES:
            if measure in record.skipped:
                entry[f"{measure}_error"] = record.skipped[measure]
        networks.append(entry)
    machine = dict(records[0].environment)
    peaks = machine.pop("peaks", None)
    document = {
        "config": {**vars(config), "device": str(config.device)},
        "environment": machine,
        "networks": networks,
        "ratios": all_ratios(records),
    }
    if peaks is not None:
        document["limits"] = {
            "convention": CONVENTION,
            "peaks": _without(peaks, "number_format", "suspect"),
            "suspect": peaks["suspect"],
            "number_format": peaks["number_format"],
            "networks": _by_row(records, "limits"),
            "failed": {record.model: record.skipped["limits"] for record in records if "limits" in record.skipped},
            "picture": str(picture) if picture else None,
        }
    sweeps = _by_row(records, "sweep")
    if sweeps:
        document["sweep"] = sweeps
    return document


def _by_row(records: Sequence[Record], key: str) -> dict[str, Any]:
    """Return one of the measures by the name of the row, for the records that have it."""
    return {record.model: record.measures[key] for record in records if key in record.measures}


def _without(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Return a copy of a dictionary that lacks some keys."""
    return {key: value for key, value in values.items() if key not in keys}
