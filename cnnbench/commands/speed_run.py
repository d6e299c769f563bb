"""The timing behind `cnnbench speed`: from options to timed networks, and from their times to records.

A way (`cnnbench.timing.timed_network.Way`) is how a network runs: number format, memory format, mode, and cuDNN's
benchmark switch. Every network is timed in every way that the options name, and each combination is one row.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from cnnbench import hardware, progress
from cnnbench.commands.named_networks import find_networks
from cnnbench.commands.speed import Options
from cnnbench.console import note, out, out_json, show, stdout_kept
from cnnbench.engines import ENGINES, FORMATS, INT8, TORCH, find_engine, find_quantiser
from cnnbench.engines.export import ON_NOISE, bytes_of_weights, calibration_noise, write_for_engine
from cnnbench.errors import Stopped, UserError, first_line, unknown
from cnnbench.files import make_folder, replacing
from cnnbench.network import Network
from cnnbench.record import KINDS, Record, environment, write_lines
from cnnbench.registry import split_names
from cnnbench.report.roofline_picture import draw_roofs
from cnnbench.report.speed_tables import SUSPECT, all_ratios, sentences, tables, way_words
from cnnbench.roofline.bounds import CONVENTION, Survey, peaks_now, survey
from cnnbench.roofline.peaks import hardware_precisions
from cnnbench.timing.energy import without_reason
from cnnbench.timing.process_memory import inference_growth, resident_growth
from cnnbench.timing.processes import in_groups, in_process, in_processes, scratch_folder
from cnnbench.timing.speed import SpeedConfig, Subject, measure_speed
from cnnbench.timing.sweep import sweep
from cnnbench.timing.timed_network import MODES, SMALL_IMAGE, Way, small_network
from cnnbench.training.loss import loss_and_logits

DEFAULT_OUT = Path("results/speed")
PICTURE = "roofline.png"
PIPE_WIDTH = 200
FORMATS_IN_MEMORY = {"channels_last": True, "contiguous": False}
"""Memory formats by name, and whether the channel is the innermost dimension in them."""
_GRAPH = " as a CUDA graph"
"""Suffix of a row's name for the same network as a CUDA graph."""


@dataclass(frozen=True)
class Row:
    """A network and the way it runs; the way is None if there is only one, so that the network's name is enough."""

    network: Network
    way: Way | None

    def engine(self, config: SpeedConfig) -> str:
        """Return the name of the engine that runs the network."""
        return (self.way or config.way).engine

    @property
    def name(self) -> str:
        """Return the network's name, followed by the way in brackets if there are several."""
        return self.network.name if self.way is None else f"{self.network.name} [{self.way.words}]"


def speed(options: Options) -> int:
    """Time networks, print and write the results; return 1 if a network failed or its limits are not known."""
    config, ways = _config(options)
    _check_ways(options, config, ways)
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
    config, ways = _config(options)
    _check_ways(options, config, ways)
    # Results are kept by the name of the row, so two networks of one name would share a row.
    names = [network.name for network in networks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two networks are called '{name}'; give one of them another name, such as a subclass")
    return _time_rows(options, config, [Row(*pair) for pair in itertools.product(networks, ways)])


def without_times(options: Options, networks: Sequence[Network]) -> list[Record]:
    """Return the records that `time_networks` would return, without figures: their settings, machine and software."""
    config, ways = _config(options)
    rows = [Row(*pair) for pair in itertools.product(networks, ways)]
    return _records(config, rows, {row.name: {} for row in rows}, None)


def _time_rows(options: Options, config: SpeedConfig, rows: Sequence[Row]) -> list[Record]:
    """Return a record per row."""
    hardware.keep_freed_memory()
    with stdout_kept():  # text that a user's network prints must not get into the document
        figures, limits = _measure(options, config, rows)
    return _records(config, rows, figures, limits)


def _check_ways(options: Options, config: SpeedConfig, ways: Sequence[Way | None]) -> None:
    """Raise UserError if ``--memory``, ``--limits`` or ``--sweep`` does not go with the device or with the ways."""
    if options.memory:
        if config.device.type != "cpu":
            raise UserError("--memory is for the CPU; on a GPU the peak memory is always in the table")
        for named in ways:
            # None stands for the only way, that of the configuration.
            way = named or config.way
            if way.mode == "compile":
                raise UserError("--memory would find what the compiler takes; leave out --mode compile")
    for name, used in (("limits", options.limits), ("sweep", options.sweep)):
        if used and (len(ways) > 1 or options.processes > 1):
            raise UserError(f"--{name} is for one way and one process; leave out --processes, or the other ways")


def _measure(
    options: Options, config: SpeedConfig, rows: Sequence[Row]
) -> tuple[dict[str, dict[str, Any]], Survey | None]:
    """Return the figures of every row by the row's name, and what limits the networks if the options ask for it."""
    limits = None
    if any(row.engine(config) != TORCH for row in rows):
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
            figures[row.name].update(in_process(_growth_of, config, options, named, dict(files), small.get(row.way)))


def _time_engines(options: Options, config: SpeedConfig, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the figures of every row, each engine timed in processes of its own.

    The threads of an engine still spin for a while after a call, and would slow another engine in the same process.
    """
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
            on_start=lambda number, engine: note(f"process {number + 1} of {options.processes}: {engine}"),
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


def _small_files(config: SpeedConfig, rows: Sequence[Row], folder: Path) -> dict[Way | None, Path]:
    """Write a small network for each way of an engine, with which a process loads the engine's libraries."""
    files: dict[Way | None, Path] = {}
    for way in dict.fromkeys(row.way for row in rows):
        if way is None or way.engine == TORCH:
            continue
        path = folder / f"small-{len(files)}{FORMATS[ENGINES[way.engine].format].suffix}"
        noise = calibration_noise(SMALL_IMAGE, config.seed) if way.precision == INT8 else None
        write_for_engine(
            small_network(), SMALL_IMAGE, "small", way.engine, way.precision, config.device, path, noise, ON_NOISE
        )
        files[way] = path
    return files


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
        path = folder / f"{number}{FORMATS[engine.format].suffix}"
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
            failed[row.name] = {"error": str(error) if isinstance(error, UserError) else first_line(error)}
        else:
            files[row.name] = path
            if facts:
                quantised[row.name] = facts
    return files, quantised, failed


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
    if peaks["suspect"] or any(record.measures.get("suspect") for record in records if record.model in limits):
        title += SUSPECT
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
        if "energy" in record.skipped:
            entry["energy_error"] = record.skipped["energy"]
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


def _say(share: float, text: str) -> None:
    progress.now(share, text)
    note(f"{share:4.0%} {text}")


def _config(options: Options) -> tuple[SpeedConfig, list[Way | None]]:
    """Return the configuration of the timing, and the ways that are compared.

    The ways are ``[None]`` if there is only one, the way of the configuration, so that rows are named after networks
    alone.

    Raises:
        UserError: A name is unknown, two ways are the same, or the device does not support a way.
    """
    device = hardware.choose_device(options.device)
    if options.engine != TORCH:
        return _config_of_engines(options, device)
    asked = _values(options, "precision", device)
    formats = _values(options, "memory_format", device)
    modes = _values(options, "mode", device)
    # The switch has no effect on other devices, so their records always say that it is off.
    benchmark = device.type == "cuda" and options.cudnn_benchmark == "on"
    precisions = [_precisions(name, device) for name in asked]
    for name in formats:
        if name not in FORMATS_IN_MEMORY:
            raise unknown("memory_format", name, FORMATS_IN_MEMORY)
    # Every combination of a precision, a memory format and a mode is a way.
    ways = []
    for (training, inference), order, mode in itertools.product(precisions, formats, modes):
        ways.append(Way(training, FORMATS_IN_MEMORY[order], mode, benchmark, inference))
    # With `all`, impossible combinations are left out; those that the user named are refused by `check`.
    if "all" in (options.precision, options.mode):
        ways = [way for way in ways if way.is_possible]
    for way in ways:
        way.check(device)
    if len(set(ways)) < len(ways):
        raise UserError(f"two of the ways are the same: {'; '.join(way.words for way in ways)}")
    config = _speed_config(options, device, precisions[0], benchmark)
    if ways == [config.way] and config.precision != "tf32":
        return config, [None]
    return config, [*ways]


def _config_of_engines(options: Options, device: torch.device) -> tuple[SpeedConfig, list[Way | None]]:
    """Return the configuration of the timing, and a way for each engine and number format.

    A number format that an engine does not have is left out, and a note says so.

    Raises:
        UserError: An engine is unknown or missing, or no engine has one of the number formats.
    """
    engines = [find_engine(name, str(device)) for name in _values(options, "engine", device)]
    # Formats differ between engines, so all start from the one that all have.
    asked = ["32-true"] if options.precision == "auto" else _values(options, "precision", device)
    benchmark = device.type == "cuda" and options.cudnn_benchmark == "on"
    ways: list[Way | None] = []
    for precision in asked:
        having = [engine for engine in engines if precision in engine.precisions(device.type)]
        if not having:
            known = {each for engine in engines for each in engine.precisions(device.type)}
            raise unknown("precision", precision, sorted(known))
        for engine in engines:
            if engine not in having:
                note(f"{engine.title} has no {precision} on device {device.type}, so that row is left out")
            elif engine.name == TORCH:
                ways += _ways_of_torch(options, device, precision, benchmark)
            else:
                if precision == INT8:
                    find_quantiser(engine.format)
                ways.append(Way(precision, engine=engine.name))
    for way in ways:
        assert way is not None
        way.check(device)
    if len(set(ways)) < len(ways):
        raise UserError(f"--engine {options.engine} and --precision {options.precision} name a row twice")
    return _speed_config(options, device, ("32-true", "32-true"), benchmark), ways


def _ways_of_torch(options: Options, device: torch.device, precision: str, benchmark: bool) -> list[Way]:
    """Return the ways in which torch runs the networks in a number format: by memory format and mode."""
    formats, modes = _values(options, "memory_format", device), _values(options, "mode", device)
    for name in formats:
        if name not in FORMATS_IN_MEMORY:
            raise unknown("memory_format", name, FORMATS_IN_MEMORY)
    ways = []
    for order, mode in itertools.product(formats, modes):
        ways.append(Way(precision, FORMATS_IN_MEMORY[order], mode, benchmark))
    return ways


def _speed_config(options: Options, device: torch.device, precisions: tuple[str, str], benchmark: bool) -> SpeedConfig:
    """Return the configuration of the timing; options that are unset get their default for the device."""
    batch_size, train_batch_size = hardware.default_batch_sizes(device)
    if options.batch_size is not None:
        batch_size = options.batch_size
    if options.train_batch_size is not None:
        train_batch_size = options.train_batch_size
    # The defaults of a dataclass are attributes of the class.
    rounds, fewest = SpeedConfig.rounds, SpeedConfig.fewest_rounds
    if options.rounds is not None:
        # A number of rounds that the user sets is kept, however long the rounds take.
        rounds = fewest = options.rounds
    training, inference = precisions
    return SpeedConfig(
        device,
        training,
        batch_size,
        train_batch_size,
        rounds=rounds,
        fewest_rounds=fewest,
        seed=options.seed,
        cudnn_benchmark=benchmark,
        inference_precision=inference,
        energy=options.energy,
    )


def _precisions(name: str, device: torch.device) -> tuple[str, str]:
    """Return the number formats of training and of inference for a value of ``--precision``.

    Raises:
        UserError: The precision is unknown, or of no use on the device.
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
    """Return the values of an option that makes ways; ``all`` stands for every value that suits the device."""
    given = getattr(options, option)
    if given != "all":
        values = split_names(given)
        if not values:
            raise UserError(f"{option} '{given}' names nothing; leave it out for the default")
        return list(values)

    on_gpu = device.type == "cuda"
    precisions = _all_precisions(hardware_precisions(device))
    if on_gpu:
        precisions.append("tf32")
    return {
        "precision": precisions,
        "memory_format": list(FORMATS_IN_MEMORY),
        "engine": [engine.name for engine in ENGINES.values() if engine.is_usable(device.type)],
        "mode": [mode for mode in MODES if on_gpu or mode != "cuda-graph"],
    }[option]


def _all_precisions(of_training: Sequence[str]) -> list[str]:
    """Return the precisions of training, each followed by its precision of inference, without duplicates."""
    both = []
    for precision in of_training:
        both += [precision, hardware.inference_precision(precision)]
    return list(dict.fromkeys(both))


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
    kinds = KINDS[:2] if inference_only else KINDS
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
        try:
            output = network.build().eval()(torch.zeros(1, *network.image_shape))
        except Stopped:
            raise
        except BaseException as error:  # a user's network may raise anything
            shape = "x".join(map(str, network.image_shape))
            text = " ".join(str(error).split())[:300]
            raise UserError(
                f"'{network.name}' does not take images of {shape}: {type(error).__name__}: {text}"
            ) from error
        # This refuses an output that is not logits, and returns those of the main head if there are several.
        return loss_and_logits(output, torch.zeros(1, dtype=torch.long))[1].shape[1]
