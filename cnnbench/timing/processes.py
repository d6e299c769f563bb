"""Timing in fresh processes, one after the other, and the combination of their figures.

The place of a network in memory differs from process to process. The times of a network therefore differ more between
processes than the rounds of one process show.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

from cnnbench.errors import Stopped, UserError
from cnnbench.stats import FEWEST_ROUNDS
from cnnbench.timing.timed_network import KEYS, SpeedConfig, spread


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process and return its result.

    Args:
        function: Function to call; it must be defined at the top level of a module, so that it can be pickled.
        arguments: Positional arguments of the function.

    Raises:
        UserError: The process was killed.
    """
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_leave_signals) as executor:
            try:
                return executor.submit(function, *arguments).result()
            except Stopped:
                # On leaving the executor, this process waits for the other one, which does not know that its result is
                # no longer needed.
                for child in multiprocessing.active_children():
                    child.terminate()
                raise
    except BrokenProcessPool as error:
        raise UserError("a process that was started to measure was killed, perhaps for its memory") from error


def _leave_signals() -> None:
    """Ignore Ctrl-C in this process: the terminal sends it to all processes, and the parent process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
    # -(-a // b) is a / b rounded up.
    share = replace(
        config,
        rounds=-(-config.rounds // count),
        fewest_rounds=-(-config.fewest_rounds // count),
        most_s=config.most_s / count,
    )
    runs = []
    for index in range(count):
        on_start(index)
        runs.append(in_process(function, replace(share, seed=config.seed + index), *arguments))
    return {name: pooled([run[name] for run in runs]) for name in runs[0]}


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
    failed = next((dict(run) for run in runs if "error" in run), None)
    if failed:
        return failed
    first = runs[0]
    found = {
        key: statistics.median(run[key] for run in runs) if isinstance(value, (int, float)) else value
        for key, value in first.items()
    }
    samples = {kind: [block for run in runs for block in run["samples_ms"][kind]] for kind in first["samples_ms"]}
    rates = {"inference": "images_per_s", "training": "train_images_per_s"}
    for kind in KEYS.keys() & samples.keys():
        # Images per second times milliseconds is 1000 times the batch size; divided by the median time of all
        # processes, it gives their common throughput.
        images = first[rates[kind]] * first[f"{KEYS[kind]}_median"] if kind in rates else 0.0
        # All calls of a process as one block, so that the interval draws processes in place of rounds.
        whole = [[time for block in run["samples_ms"][kind] for time in block] for run in runs]
        drawn = whole if len(runs) >= FEWEST_ROUNDS else samples[kind]
        found |= {f"{KEYS[kind]}_{name}": value for name, value in spread(drawn).items()}
        if kind in rates:
            found[rates[kind]] = images / found[f"{KEYS[kind]}_median"]
    kinds = [kind for kind in KEYS if kind in samples]
    return found | {
        "samples_ms": samples,
        "cold_ms": {kind: statistics.median(run["cold_ms"][kind] for run in runs) for kind in first["cold_ms"]},
        "process_rounds": [len(run["samples_ms"][kinds[0]]) for run in runs],
        "process_cold_ms": [run["cold_ms"] for run in runs],
        "process_conditions": [run["conditions"] for run in runs],
        "suspect": _pooled_reasons([run["suspect"] for run in runs]),
    }


def _pooled_reasons(doubts: Sequence[Sequence[str]]) -> list[str]:
    """Merge the reasons to doubt of all processes.

    Reasons that differ only in their numbers become one, that with the largest first number.

    Args:
        doubts: Reasons of each process.
    """
    kinds: dict[str, list[str]] = {}
    for reason in (reason for reasons in doubts for reason in reasons):
        kinds.setdefault(re.sub(r"\d[\d.]*", "#", reason), []).append(reason)
    return [
        f"{max(alike, key=_first_number)} ({'in' if len(set(alike)) == 1 else 'at most, in'} {len(alike)} of "
        f"{len(doubts)} processes)"
        for alike in kinds.values()
    ]


def _first_number(text: str) -> float:
    found = re.search(r"\d+(\.\d+)?", text)
    return float(found.group()) if found else 0.0
