"""How fast each of two processor cores is over a minute: alone, and while the other is busy too.

In a virtual machine, another program of the same host may use the second hardware thread of a core. No counter of the
system shows that, but the core then computes at a part of its speed for some seconds, even if nothing else runs here.
Each process here is bound to one core and multiplies matrices with one thread. Runs on Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from cnnbench.errors import UserError
from cnnbench.timing.doubts import FEWEST_FOR_TWO, two_groups
from cnnbench.trust import no_working_folder
from cnnbench.units import plain
from cnnbench.verification import ratio, write_race
from cnnbench.verification import run as run_race

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZE = 512
"""Rows and columns of the matrix, which is multiplied by itself."""
SECONDS = 0.1
"""Time for which a core computes before it reports its speed."""
_STOP = ""
_SYSTEM = Path("/sys/devices/system/cpu")
"""Folder in which Linux describes the cores."""


def separate(numbers: Iterable[int], system: Path = _SYSTEM) -> list[int]:
    """Return the numbers of the processors without those that are a second hardware thread of an earlier one's core.

    Args:
        numbers: Linux's numbers of processors.
        system: Folder in which Linux describes them; one that it does not describe counts as a core of its own.
    """
    cores: dict[str, int] = {}
    for number in numbers:
        siblings = str(number)
        with contextlib.suppress(OSError):
            siblings = (system / f"cpu{number}/topology/thread_siblings_list").read_text().strip()
        cores.setdefault(siblings, number)
    return list(cores.values())


def compute(core: int, channel: Connection) -> None:
    """Multiply matrices on one core whenever a number format is received, and send the products per second."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    factors = {name: torch.randn(SIZE, SIZE).to(dtype) for name, dtype in FORMATS.items()}
    for factor in factors.values():
        factor @ factor  # the first product chooses a kernel
    channel.send(0.0)
    while name := channel.recv():
        factor, products = factors[name], 0
        start = time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            factor @ factor
            products += 1
        channel.send(products / (time.perf_counter() - start))


@contextlib.contextmanager
def workers(cores: Sequence[int]) -> Iterator[list[Connection]]:
    """Start a process for each core, and give the body a channel to each."""
    context = multiprocessing.get_context("spawn")
    channels = []
    for core in cores:
        ours, theirs = context.Pipe()
        with no_working_folder():
            context.Process(target=compute, args=(core, theirs), daemon=True).start()
        # Without this end, receiving from a process that has ended raises an error in place of waiting.
        theirs.close()
        channels.append(ours)
    try:
        for channel in channels:
            channel.recv()
        yield channels
    except EOFError:
        raise UserError("a process that measures a core has ended early; its error is above") from None
    finally:
        for channel in channels:
            with contextlib.suppress(OSError):
                channel.send(_STOP)


def measure(channels: Sequence[Connection], rounds: int) -> dict[tuple[str, str, int], list[float]]:
    """Return the products per second of each round, by number format, ``alone`` or ``together``, and index of the core.

    Args:
        channels: Channels to the processes.
        rounds: Number of rounds; in each, every core computes alone, and then all of them compute at once.
    """
    speeds: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(rounds):
        for name in FORMATS:
            for index, channel in enumerate(channels):
                channel.send(name)
                speeds.setdefault((name, "alone", index), []).append(channel.recv())
            for channel in channels:
                channel.send(name)
            for index, channel in enumerate(channels):
                speeds.setdefault((name, "together", index), []).append(channel.recv())
    return speeds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure two cores, print the table and write ``results/races/cores.json``; return the exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m cnnbench.verification.cores", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args(arguments)
    if options.rounds < FEWEST_FOR_TWO:
        raise UserError(f"rounds {options.rounds} must be at least {FEWEST_FOR_TWO}")
    if sys.platform != "linux":
        raise UserError(f"processes cannot be bound to cores on {sys.platform}; this runs on Linux only")
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        raise UserError("this process may use one processor only, and two are compared")
    cores = separate(processors)[:2]
    if len(cores) < 2:
        print("both processors are hardware threads of one core", file=sys.stderr)
        cores = processors[:2]
    with workers(cores) as channels:
        speeds = measure(channels, options.rounds)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    goals: dict[str, bool] = {}
    print("| Core | Format | While | Median products/s | Lowest | Highest | Two speeds | Rounds at the lower |")
    print("| ---: | --- | --- | ---: | ---: | ---: | --- | ---: |")
    for (name, when, index), values in speeds.items():
        groups = two_groups(values)
        median, low, high = statistics.median(values), min(values), max(values)
        two, share = "no", ""
        if groups is not None:
            two = " and ".join(plain(statistics.median(group)) for group in groups)
            share = f"{len(groups[0])} of {len(values)}"
        told = f"core {cores[index]}, {name}, {when}"
        if when == "together":
            alone = speeds[name, "alone", index]
            ratios[f"core {cores[index]}, {name}: speed together / alone"] = ratio(values, alone)
        goals[f"{told}: one speed"] = groups is None
        rows.append({"core": cores[index], "format": name, "while": when, "products_per_s": values})
        numbers = " | ".join(map(plain, (median, low, high)))
        print(f"| {cores[index]} | {name} | {when} | {numbers} | {two} | {share} |")
    print(f"written: {write_race('cores', rows, ratios, goals, size=SIZE, seconds=SECONDS)}")
    return 0


if __name__ == "__main__":
    run_race("cores", main)
