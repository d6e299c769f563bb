"""From the options of a timing to the ways in which its networks run.

A way (`cnnbench.timing.timed_network.Way`) is how a network runs: engine, number format, memory format, mode, and
cuDNN's benchmark switch. Every network is timed in every way that the options name, and each combination is one row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cnnbench import hardware
from cnnbench.commands.speed import Options
from cnnbench.console import note
from cnnbench.engines import ENGINES, INT8, TORCH, Engine, check_precision, find_engine, find_quantiser
from cnnbench.errors import UserError, unknown
from cnnbench.names import INFERENCE_PRECISIONS, MEMORY_FORMATS, MODES, PRECISIONS
from cnnbench.network import Network
from cnnbench.registry import split_names
from cnnbench.roofline.peaks import hardware_precisions
from cnnbench.timing.speed import SpeedConfig
from cnnbench.timing.timed_network import Way


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


def ways_of(options: Options) -> tuple[SpeedConfig, list[Way | None]]:
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
    # Every combination of a precision, a memory format and a mode is a way.
    ways = []
    for (training, inference), order, mode in itertools.product(precisions, formats, modes):
        ways.append(Way(training, order == "channels_last", mode, benchmark, inference))
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


def check_ways(options: Options, config: SpeedConfig, ways: Sequence[Way | None]) -> None:
    """Raise UserError if ``--memory``, ``--limits`` or ``--sweep`` does not go with the device or with the ways."""
    if options.memory:
        if config.device.type != "cpu":
            raise UserError("--memory is for the CPU; on a GPU the peak memory is always in the table")
        for named in ways:
            # None stands for the only way, that of the configuration.
            way = named or config.way
            if way.mode == "compile":
                raise UserError("--memory would include the memory of the compiler; leave out --mode compile")
    for name, used in (("limits", options.limits), ("sweep", options.sweep)):
        if used and (len(ways) > 1 or options.processes > 1):
            raise UserError(f"--{name} is for one way and one process; leave out --processes, or the other ways")


def _config_of_engines(options: Options, device: torch.device) -> tuple[SpeedConfig, list[Way | None]]:
    """Return the configuration of the timing, and a way for each engine and number format.

    A number format that an engine does not have is left out, and a note says so.

    Raises:
        UserError: An engine is unknown or missing, or no engine has one of the number formats.
    """
    engines = [find_engine(name, str(device)) for name in _values(options, "engine", device)]
    # Formats differ between engines, so all start from the one that all have.
    asked = ["32-true"] if options.precision == "auto" else _values(options, "precision", device)
    if options.precision == "all" and any(INT8 in engine.precisions(device.type) for engine in engines):
        asked.append(INT8)
    benchmark = device.type == "cuda" and options.cudnn_benchmark == "on"
    ways: list[Way | None] = []
    for precision in asked:
        check_precision("precision", precision, engines, device.type)
        having = [engine for engine in engines if precision in engine.precisions(device.type)]
        for engine in engines:
            if engine not in having:
                note(engine.left_out(precision, device.type))
            elif engine.name == TORCH:
                ways += _ways_of_torch(options, device, precision, benchmark)
            else:
                if precision == INT8 and not _can_quantise(engine, options):
                    continue
                ways.append(Way(precision, engine=engine.name))
    for way in ways:
        assert way is not None
        way.check(device)
    if len(set(ways)) < len(ways):
        raise UserError(f"--engine {options.engine} and --precision {options.precision} name a row twice")
    config = _speed_config(options, device, ("32-true", "32-true"), benchmark)
    return (config if all(way and way.engine == TORCH for way in ways) else config.beside_engines()), ways


def _can_quantise(engine: Engine, options: Options) -> bool:
    """Return whether the tool that quantises networks for an engine is installed.

    Raises:
        UserError: It is not, and the user asked for 8-bit integers by name, not by ``all``.
    """
    try:
        find_quantiser(engine.format)
    except UserError as error:
        if options.precision != "all":
            raise
        note(f"{error}; without it that row is left out")
        return False
    return True


def _ways_of_torch(options: Options, device: torch.device, precision: str, benchmark: bool) -> list[Way]:
    """Return the ways in which torch runs the networks in a number format: by memory format and mode."""
    formats, modes = _values(options, "memory_format", device), _values(options, "mode", device)
    ways = []
    for order, mode in itertools.product(formats, modes):
        ways.append(Way(precision, order == "channels_last", mode, benchmark))
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
    known = (*PRECISIONS, *INFERENCE_PRECISIONS, "tf32")
    if name not in known:
        raise unknown("precision", name, known)
    if name in PRECISIONS:
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
        "memory_format": list(MEMORY_FORMATS),
        "engine": [engine.name for engine in ENGINES.values() if engine.is_usable(device.type)],
        "mode": [mode for mode in MODES if on_gpu or mode != "cuda-graph"],
    }[option]


def _all_precisions(of_training: Sequence[str]) -> list[str]:
    """Return the precisions of training, each followed by its precision of inference, without duplicates."""
    both = []
    for precision in of_training:
        both += [precision, hardware.inference_precision(precision)]
    return list(dict.fromkeys(both))
