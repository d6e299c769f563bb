"""Is the stopwatch right? The timing against itself, against a planted slowdown, and beside the usual procedure.

``make calibrate``. A network is timed beside its own copy and beside one that was made slower by 5 %, over and over; a
verdict on the copy is false, one missed on the slower network is a miss. The ratio of two different networks is found
by paired rounds and, in the same repetition, by the usual way: one network after the other, means of many calls (as in
timm's benchmark script); its spread is that over the repetitions in which the stopwatch saw no other process at work,
and over all. At the end two complete runs of the default networks are compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cnnbench import hardware
from cnnbench.errors import UserError
from cnnbench.measure.intervals import Interval
from cnnbench.measure.speed import KINDS, SpeedConfig, Subject, measure_speed, time_ratio
from cnnbench.models import get_model
from cnnbench.network import get_network
from cnnbench.races import run, write_race

PLANTED = 0.05
"""Share by which a network is made slower."""
DEFAULT = ("LeNet5", "VGG16", "ResNet18", "MobileNetV1")
PAIR = ("SimpleCNN", "LeNet5")
"""Networks whose ratio is found again and again, the slower first."""
GOALS = {"false verdicts": 0.05, "planted slowdowns found": 0.90, "spread of a ratio": 0.5}


class _Slower(nn.Module):
    """A network that takes a share longer: it waits, busily, after each pass."""

    def __init__(self, model: nn.Module, share: float) -> None:
        super().__init__()
        self.model, self.share = model, share

    def forward(self, x: Tensor) -> Any:
        start = time.perf_counter()
        out = self.model(x)
        end = time.perf_counter()
        while time.perf_counter() < end + self.share * (end - start):
            pass
        return out


def repetition(config: SpeedConfig) -> dict[str, Any]:
    """Times a network, its copy, its slower twin and another network once.

    Returns:
        Interval of the copy's ratio, of the slower twin's, both at inference, and the ratio of the two networks.
    """
    first, second = (get_network(name) for name in PAIR)

    def subject(build: Callable[[], nn.Module]) -> Subject:
        return Subject(build, first.image_shape, 10)

    subjects = {
        "network": subject(first.build),
        "copy": subject(first.build),
        "slower": subject(lambda: _Slower(first.build(), PLANTED)),
        "other": subject(second.build),
    }
    found = measure_speed(subjects, config)
    failed = next((f"{n}: {v['error']}" for n, v in found.items() if "error" in v), None)
    if failed:
        raise UserError(f"could not time {failed}")
    return {
        "copy": {kind: time_ratio(found["copy"], found["network"], kind)._asdict() for kind in KINDS},
        "slower": {kind: time_ratio(found["slower"], found["network"], kind)._asdict() for kind in KINDS[:2]},
        "ratio": time_ratio(found["network"], found["other"], "inference").estimate,
        "suspect": found["network"]["suspect"],
    }


def usual_ratio(config: SpeedConfig) -> float:
    """The ratio of the two networks' times at inference by means, one network after the other: 10 calls to warm up,
    then 40."""
    times = []
    for name in PAIR:
        network = get_network(name)
        model = network.build().to(config.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        x = torch.randn(config.batch_size, *network.image_shape, device=config.device)
        x = x.contiguous(memory_format=torch.channels_last)
        start = 0.0
        with torch.inference_mode(), hardware.autocast(config.precision, config.device):
            for call in range(50):
                if call == 10:
                    hardware.synchronise(config.device)
                    start = time.perf_counter()
                model(x)
            hardware.synchronise(config.device)
        times.append((time.perf_counter() - start) / 40)
    return times[0] / times[1]


def complete_run(config: SpeedConfig) -> dict[str, dict[str, Any]]:
    """Figures of the default networks."""
    models = {name: get_model(name) for name in DEFAULT}
    return measure_speed({name: Subject(model, (3, 32, 32), 10) for name, model in models.items()}, config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Calibrates, prints a table and writes ``results/races/calibrate.json``."""
    parser = argparse.ArgumentParser(prog="python -m cnnbench.races.calibrate", description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repetitions", type=int, default=40)
    options = parser.parse_args(arguments)
    if options.repetitions < 2:
        raise UserError(f"repetitions {options.repetitions} must be at least 2")
    device = hardware.choose_device(options.device)
    hardware.keep_freed_memory()
    precision, _ = hardware.choose_precision("auto", device)
    config = SpeedConfig(device, precision, 64, 32, warmup_s=0.3)
    rows, usual = [], []
    for number in range(options.repetitions):
        print(f"repetition {number + 1} of {options.repetitions}", file=sys.stderr)
        rows.append(repetition(replace(config, seed=number)))
        usual.append(usual_ratio(config))
    runs = [complete_run(replace(config, seed=n)) for n in range(2)]
    return _report(device, rows, usual, runs, precision)


def _report(
    device: torch.device, rows: list[dict[str, Any]], usual: list[float], runs: list[dict[str, Any]], precision: str
) -> int:
    verdicts = [Interval(**row["copy"][kind]).differs for row in rows for kind in KINDS]
    slower = [Interval(**row["slower"][kind]) for row in rows for kind in KINDS[:2]]
    hits = [found.differs and found.estimate > 1 for found in slower]
    ratios_of = {"all": list(zip((row["ratio"] for row in rows), usual, strict=True))}
    ratios_of["quiet"] = [r for r, row in zip(ratios_of["all"], rows, strict=True) if not _disturbed(row)]
    spreads = {which: [_variation(way) for way in zip(*both, strict=True)] for which, both in ratios_of.items()}
    ours, theirs = spreads["quiet"] if len(ratios_of["quiet"]) > 1 else (math.nan, math.nan)
    ranks = [sorted(run, key=lambda name: run[name]["inference_ms_median"]) for run in runs]
    figures = {
        "false verdicts": sum(verdicts) / len(verdicts),
        "planted slowdowns found": sum(hits) / len(hits),
        "spread of a ratio": ours / theirs,
    }
    agreements = [_agree(runs, a, b, kind) for kind in KINDS for a in DEFAULT for b in DEFAULT if a < b]
    goals = {
        f"at most {GOALS['false verdicts']:.0%} false verdicts": figures["false verdicts"] <= GOALS["false verdicts"],
        f"at least {GOALS['planted slowdowns found']:.0%} of planted slowdowns found":
            figures["planted slowdowns found"] >= GOALS["planted slowdowns found"],
        "the spread of a ratio at most half of that of the usual procedure":
            figures["spread of a ratio"] <= GOALS["spread of a ratio"],
        "two runs rank the networks alike": ranks[0] == ranks[1],
    }  # fmt: skip
    suspect = sum(bool(row["suspect"]) for row in rows)
    print("| What | Found | Of | Share |\n| --- | ---: | ---: | ---: |")
    print(f"| verdicts on a copy (false) | {sum(verdicts)} | {len(verdicts)} | {figures['false verdicts']:.1%} |")
    print(f"| planted slowdowns of {PLANTED:.0%} found | {sum(hits)} | {len(hits)} | {sum(hits) / len(hits):.1%} |")
    print(f"| repetitions that call themselves suspect | {suspect} | {len(rows)} | {suspect / len(rows):.1%} |")
    print(f"| ratios of two runs whose intervals meet | {sum(agreements)} | {len(agreements)} | "
          f"{sum(agreements) / len(agreements):.1%} |")  # fmt: skip
    pair, pairs = " / ".join(PAIR), {"paired rounds": [row["ratio"] for row in rows], "one after the other": usual}
    for which, (paired, single) in spreads.items():
        print(f"coefficient of variation of {pair}, {which} {len(ratios_of[which])} repetitions: {paired:.1%} in "
              f"paired rounds, {single:.1%} one after the other")  # fmt: skip
    print(f"ranks of two runs: {' < '.join(ranks[0])} and {' < '.join(ranks[1])}")
    ratios = {
        f"{pair}, {way}": {"median": statistics.median(v), "low": min(v), "high": max(v)} for way, v in pairs.items()
    }
    shares = {**figures, "coefficients_of_variation": spreads, "repetitions": len(rows), "suspect": suspect}
    more = {"precision": precision, "figures": shares, "usual": usual}
    print(f"written: {write_race('calibrate', rows, ratios, goals, device, **more)}")
    return 0


def _disturbed(row: dict[str, Any]) -> bool:
    """Whether the stopwatch saw other processes at work during a repetition."""
    return any(reason.startswith("other processes") for reason in row["suspect"])


def _variation(values: Sequence[float]) -> float:
    """Coefficient of variation."""
    return statistics.stdev(values) / statistics.fmean(values) if len(values) > 1 else math.nan


def _agree(runs: Sequence[dict[str, Any]], a: str, b: str, kind: str) -> bool:
    """Whether the intervals of a ratio from two runs have a value in common."""
    first, second = (time_ratio(run[a], run[b], kind) for run in runs)
    return max(first.low or 0, second.low or 0) <= min(first.high or 0, second.high or 0)


if __name__ == "__main__":
    run("calibrate", main)
