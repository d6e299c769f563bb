"""Timing in fresh processes, one after the other, and what they give together.

Where in memory a network lies differs from process to process, and makes its times differ by more than the rounds of
one process show.
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
from cnnbench.timing.work import KEYS, SpeedConfig, spread


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function of a module in a fresh process.

    Raises:
        UserError: The process was killed.
    """
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_leave_signals) as executor:
            try:
                return executor.submit(function, *arguments).result()
            except Stopped:
                # Leaving the executor waits for the process, which does not know that it is not needed any more.
                for child in multiprocessing.active_children():
                    child.terminate()
                raise
    except BrokenProcessPool as error:
        raise UserError("a process that was started to measure was killed, perhaps for its memory") from error


def _leave_signals() -> None:
    """Leave Ctrl-C, which the terminal sends to all processes, to the one that started this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def in_processes(
    count: int, config: SpeedConfig, function: Callable[..., Mapping[str, Any]], *arguments: Any,
    on_start: Callable[[int], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Times networks in fresh processes, which share the rounds and the time.

    Args:
        count: Of processes.
        config: Of all together; each process has another seed.
        function: Takes a config and the arguments, and returns the figures of `measure_speed` by name.
        on_start: Is told the number of each process, from 0 on.
    """
    share = replace(
        config, rounds=-(-config.rounds // count), fewest_rounds=-(-config.fewest_rounds // count),
        most_s=config.most_s / count,
    )  # fmt: skip
    runs = []
    for index in range(count):
        on_start(index)
        runs.append(in_process(function, replace(share, seed=config.seed + index), *arguments))
    return {name: pooled([run[name] for run in runs]) for name in runs[0]}


def pooled(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one network from several processes: rounds of all together, medians of everything else.

    Args:
        runs: Of `measure_speed`, of the same settings.

    Returns:
        The same keys, with ``process_rounds``, the number of rounds of each process, and ``process_cold_ms`` and
        ``process_conditions``, those of each. Intervals of medians draw whole processes where there are enough of
        them, and rounds else.
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
        images = first[rates[kind]] * first[f"{KEYS[kind]}_median"] if kind in rates else 0.0
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
    """Reasons to doubt by process, gathered: those that differ in their numbers only are one, with the largest."""
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
