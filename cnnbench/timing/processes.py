"""Timing in fresh processes, one after the other, and the combination of their figures.

The place of a network in memory differs from process to process. The times of a network therefore differ more between
processes than the rounds of one process show.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import re
import signal
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from cnnbench import progress
from cnnbench.errors import Stopped, UserError
from cnnbench.stats import FEWEST_ROUNDS
from cnnbench.timing.doubts import groupings, is_grouping
from cnnbench.timing.timed_network import KEYS, RATES, SpeedConfig, spread
from cnnbench.trust import no_working_folder


class ProcessKilledError(UserError):
    """A fresh process ended before it returned its result, for example for its memory or in a crash of a library."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder for the temporary files of this process and of those that it starts; it is removed at the end.

    AOTInductor unpacks each program into a temporary folder, and compilers have files of their own. A process that is
    stopped by a signal leaves them there.
    """
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="cnnbench-engines-") as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process and return its result.

    Args:
        function: Function to call; it must be defined at the top level of a module, so that it can be pickled.
        arguments: Positional arguments of the function.

    Raises:
        ProcessKilledError: The process was killed.
    """
    try:
        # A forked process would inherit this one's memory and threads, and could not use CUDA if this one has.
        # While the other process times, this one sleeps, and the other one prints the signs of life.
        context = multiprocessing.get_context("spawn")
        threads = torch.get_num_threads()
        with (
            no_working_folder(),
            progress.hushed(),
            ProcessPoolExecutor(1, context, initializer=_begin, initargs=(threads,)) as executor,
        ):
            try:
                return executor.submit(_watched, function, arguments).result()
            except Stopped:
                # On leaving the executor, this process waits for the other one, which does not know that its result is
                # no longer needed.
                for child in multiprocessing.active_children():
                    child.terminate()
                raise
    except BrokenProcessPool as error:
        raise ProcessKilledError("a process that was started to measure was killed, perhaps for its memory") from error


def _watched(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Call a function in a fresh process, which prints signs of life where the function times nothing."""
    with progress.watching("measuring in a process of its own"):
        return function(*arguments)


def _begin(threads: int) -> None:
    """Prepare a fresh process.

    Args:
        threads: Number of torch's threads in the parent process, which records state. It may differ from what the
            environment of both processes says.
    """
    # The terminal sends Ctrl-C to all processes, and the parent process handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def in_processes(
    count: int,
    config: SpeedConfig,
    function: Callable[..., Mapping[str, Any]],
    *arguments: Any,
    on_start: Callable[[int], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """Time networks in fresh processes, which share the rounds and the time.

    Args:
        count: Number of processes.
        config: Settings for all processes together; each process gets its share of the rounds and of the seconds, and
            a seed of its own.
        function: Function that takes a config and the ``arguments``, and returns the figures of `measure_speed` by
            name.
        arguments: Further arguments of ``function``.
        on_start: Callback that gets the index of each process, from 0, before the process starts.

    Returns:
        The `pooled` figures of each network by name.
    """
    return in_groups(count, config, function, {"": arguments}, lambda index, _: on_start(index))


def in_groups(
    count: int,
    config: SpeedConfig,
    function: Callable[..., Mapping[str, Any]],
    groups: Mapping[str, Sequence[Any]],
    on_start: Callable[[int, str], None] = lambda *_: None,
    names: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """Time groups of networks that must not share a process, such as those of different engines.

    The processes of the groups take turns, in random order, so that what slows the machine for a while slows all.

    Args:
        count: Number of processes of each group.
        config: Settings for all processes of a group together; see `in_processes`.
        function: Function that takes a config and the arguments of a group, and returns the figures of `measure_speed`
            by name.
        groups: Arguments of ``function``, by the name of the group.
        on_start: Callback that gets the index of the turn, from 0, and the name of the group, before a process starts.
        names: Names of the networks by group. If a process of such a group is killed, for example in a crash of its
            engine, that is the ``error`` of the group's networks, and the other groups go on.

    Returns:
        The `pooled` figures of each network by name.

    Raises:
        ProcessKilledError: A process was killed, and its group is not among the ``names``.
    """
    # -(-a // b) is a / b rounded up.
    share = replace(
        config,
        rounds=-(-config.rounds // count),
        fewest_rounds=-(-config.fewest_rounds // count),
        most_s=config.most_s / count,
    )
    shuffler = random.Random(config.seed)
    runs: dict[str, list[Mapping[str, Any]]] = {name: [] for name in groups}
    figures: dict[str, dict[str, Any]] = {}
    for index in range(count):
        # A sample of full size is the list in random order.
        for group in shuffler.sample(list(runs), len(runs)):
            on_start(index, group)
            try:
                runs[group].append(in_process(function, replace(share, seed=config.seed + index), *groups[group]))
            except ProcessKilledError as error:
                if group not in names:
                    raise
                del runs[group]
                figures |= {name: {"error": str(error)} for name in names[group]}
    for of_group in runs.values():
        for name in of_group[0]:
            figures[name] = pooled([run[name] for run in of_group])
    return figures


def pooled(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine the figures of one network from several processes: all rounds together, medians of all other numbers.

    Args:
        runs: Figures of `measure_speed`, one per process, measured with the same settings.

    Returns:
        The same keys, and the lists ``process_rounds``, ``process_cold_ms`` and ``process_conditions`` with the number
        of rounds, the ``cold_ms`` and the ``conditions`` of each process. The intervals of medians are found by drawing
        whole processes if there are at least `FEWEST_ROUNDS` of them, otherwise by drawing rounds. If a process failed,
        the result is the ``error`` of the first one that did.
    """
    for run in runs:
        if "error" in run:
            return dict(run)
    figures = _medians(runs)
    samples_ms = {}
    for kind in runs[0]["samples_ms"]:
        samples_ms[kind] = list(itertools.chain(*(run["samples_ms"][kind] for run in runs)))
    # The samples also have those of the yardstick, of which there are no figures.
    kinds = [kind for kind in KEYS if kind in samples_ms]
    for kind in kinds:
        figures |= _pooled_times(runs, kind, samples_ms[kind])
    # Two groups of times are looked for in all rounds, since a process has few.
    doubts = [[reason for reason in run["suspect"] if not is_grouping(reason)] for run in runs]
    return figures | {
        "samples_ms": samples_ms,
        "cold_ms": _medians([run["cold_ms"] for run in runs]),
        "process_rounds": [len(run["samples_ms"][kinds[0]]) for run in runs],
        "process_cold_ms": [run["cold_ms"] for run in runs],
        "process_conditions": [run["conditions"] for run in runs],
        "suspect": _pooled_reasons(doubts) + groupings({kind: samples_ms[kind] for kind in kinds}),
    }


def _medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries of the first process, with the medians of all processes in place of its numbers.

    A number that is not known in one of the processes, such as an energy, is not known (None).
    """
    medians = dict(runs[0])
    for key, value in medians.items():
        if isinstance(value, (int, float)):
            numbers = [run[key] for run in runs if run.get(key) is not None]
            # A number of bytes stays a whole number, also with an even number of processes.
            whole = all(isinstance(each, int) for each in numbers)
            middle = statistics.median_low if whole else statistics.median
            medians[key] = middle(numbers) if len(numbers) == len(runs) else None
        # The reason why an energy is not known.
        failed = [run[key] for run in runs if isinstance(run.get(key), Mapping) and "error" in run[key]]
        if failed:
            medians[key] = failed[0]
        elif key == "energy_facts":
            # The other facts, such as the joules, are those of the first process.
            medians[key] = {**value, "suspect": _pooled_reasons([run[key].get("suspect", ()) for run in runs])}
    return medians


def _pooled_times(runs: Sequence[Mapping[str, Any]], kind: str, rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the figures of one kind of work that come from its rounds in all processes."""
    blocks = rounds
    if len(runs) >= FEWEST_ROUNDS:
        # All calls of a process as one block, so that the interval draws processes in place of rounds.
        blocks = [list(itertools.chain(*run["samples_ms"][kind])) for run in runs]
    median = f"{KEYS[kind]}_median"
    figures = {f"{KEYS[kind]}_{name}": value for name, value in spread(blocks).items()}
    engine = f"{KEYS[kind]}_engine"
    if engine in runs[0]:
        # The part of a call that is inside the engine's clock, for the median of all processes.
        figures[engine] = figures[median] * statistics.median(run[engine] / run[median] for run in runs)
    if kind in RATES:
        # Images per second times milliseconds is 1000 times the batch size; divided by the median time of all
        # processes, it gives their common throughput.
        rate = RATES[kind]
        figures[rate] = runs[0][rate] * runs[0][median] / figures[median]
    return figures


def _pooled_reasons(doubts: Sequence[Sequence[str]]) -> list[str]:
    """Merge the reasons to doubt of all processes.

    Reasons that differ only in their numbers become one, that with the largest first number.

    Args:
        doubts: Reasons of each process.
    """
    kinds: dict[str, list[str]] = {}
    for reason in itertools.chain(*doubts):
        kinds.setdefault(re.sub(r"\d[\d.]*", "#", reason), []).append(reason)
    merged = []
    for alike in kinds.values():
        words = "in" if len(set(alike)) == 1 else "at most, in"
        merged.append(f"{max(alike, key=_first_number)} ({words} {len(alike)} of {len(doubts)} processes)")
    return merged


def _first_number(text: str) -> float:
    """Return the first number in a text; 0 if there is none."""
    match = re.search(r"\d+(\.\d+)?", text)
    return float(match.group()) if match else 0.0
