"""Is the stopwatch right? The timing against itself, against a planted slowdown, and beside the usual procedure.

``make calibrate``. A network is timed beside its own copy and beside one that was made slower by 5 %, over and over; a
verdict on the copy is false, one missed on the slower network is a miss. The ratio of two different networks is found
by paired rounds and, in the same repetition, by the usual way: one network after the other, means of many calls (as in
timm's benchmark script, and again with as many calls as the paired rounds have); its spread is that over the
repetitions in which the stopwatch saw no other process at work, and over all. At the end two complete runs of the
default networks, each in fresh processes, are ranked and compared by ``cnnbench compare``: any verdict is false.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cnnbench import hardware
from cnnbench.errors import UserError
from cnnbench.measures import figures
from cnnbench.models import get_model
from cnnbench.network import get_network
from cnnbench.record import Record, environment
from cnnbench.report.compare import compare
from cnnbench.report.speeds import time_ratio
from cnnbench.stats import Interval, median_deviation, wilson_interval
from cnnbench.timing.processes import in_process, pooled
from cnnbench.timing.speed import KINDS, SpeedConfig, Subject, measure_speed
from cnnbench.validation import run, write_race

PLANTED = 0.05
"""Share by which a network is made slower."""
DEFAULT = ("LeNet5", "VGG16", "ResNet18", "MobileNetV1")
PAIR = ("SimpleCNN", "LeNet5")
"""Networks whose ratio is found again and again, the slower first."""
GOALS = {"false verdicts": 0.05, "planted slowdowns found": 0.90, "spread of a ratio": 0.5, "ratios that agree": 0.95}
PROCESSES = 6
"""Fresh processes of a complete run."""
SLOWDOWNS = (0.05, 0.1, 0.2)
"""Shares that the times of a complete run are multiplied by, to see what `compare` finds."""


class _Slower(nn.Module):
    """A network that takes a share longer, if that is not 0: it waits, busily, after each pass in evaluation, and after
    each step of its optimizer in training."""

    def __init__(self, model: nn.Module, share: float, device: torch.device) -> None:
        super().__init__()
        self.model, self.share, self.device = model, share, device
        self.start = 0.0

    def forward(self, x: Tensor) -> Any:
        self.start = time.perf_counter()
        out = self.model(x)
        if not self.training:
            self.wait()
        return out

    def wait(self) -> None:
        """Waits for its share of the time since the pass began."""
        hardware.synchronise(self.device)
        end = time.perf_counter()
        while time.perf_counter() < end + self.share * (end - self.start):
            pass


class _SlowerAdamW(torch.optim.AdamW):
    """AdamW, after whose steps the network waits."""

    def __init__(self, model: _Slower) -> None:
        super().__init__(model.parameters(), lr=1e-4)
        self._wait = model.wait

    def step(self, closure: Any = None) -> Any:
        out = super().step(closure)
        self._wait()
        return out


def repetition(config: SpeedConfig) -> dict[str, Any]:
    """Times a network, its copy, its slower twin and another network once.

    Returns:
        Intervals of the copy's ratio and of the slower twin's by kind of work, and the ratio of the two networks at
        inference, by the stopwatch and by two usual ways.
    """
    first, second = (get_network(name) for name in PAIR)

    def twin(share: float) -> Subject:
        return Subject(lambda: _Slower(first.build(), share, config.device), first.image_shape, 10, _SlowerAdamW)

    subjects = {name: twin(share) for name, share in (("network", 0.0), ("copy", 0.0), ("slower", PLANTED))}
    subjects["other"] = Subject(second.build, second.image_shape, 10)
    found = measure_speed(subjects, config)
    failed = next((f"{n}: {v['error']}" for n, v in found.items() if "error" in v), None)
    if failed:
        raise UserError(f"could not time {failed}")
    return {
        "copy": {kind: time_ratio(found["copy"], found["network"], kind)._asdict() for kind in KINDS},
        "slower": {kind: time_ratio(found["slower"], found["network"], kind)._asdict() for kind in KINDS},
        "ratio": time_ratio(found["network"], found["other"], "inference").estimate,
        "usual": usual_ratio(config),
        "usual, as many calls": usual_ratio(config, sum(map(len, found["network"]["samples_ms"]["inference"]))),
        "suspect": found["network"]["suspect"],
    }


def usual_ratio(config: SpeedConfig, calls: int = 40) -> float:
    """The ratio of the two networks' times at inference by means, one network after the other: 10 calls to warm up,
    then so many."""
    times = []
    for name in PAIR:
        network = get_network(name)
        model = network.build().to(config.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        x = torch.randn(config.batch_size, *network.image_shape, device=config.device)
        x = x.contiguous(memory_format=torch.channels_last)
        start = 0.0
        with torch.inference_mode(), hardware.autocast(config.precision, config.device):
            for call in range(10 + calls):
                if call == 10:
                    hardware.synchronise(config.device)
                    start = time.perf_counter()
                model(x)
            hardware.synchronise(config.device)
        times.append((time.perf_counter() - start) / calls)
    return times[0] / times[1]


def complete_run(config: SpeedConfig) -> dict[str, dict[str, Any]]:
    """Figures of the default networks."""
    hardware.keep_freed_memory()
    models = {name: get_model(name) for name in DEFAULT}
    return measure_speed({name: Subject(model, (3, 32, 32), 10) for name, model in models.items()}, config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Calibrates, prints tables and writes ``results/races/calibrate.json``; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m cnnbench.validation.calibrate", description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repetitions", type=int, default=40)
    options = parser.parse_args(arguments)
    if options.repetitions < 2:
        raise UserError(f"repetitions {options.repetitions} must be at least 2")
    device = hardware.choose_device(options.device)
    hardware.keep_freed_memory()
    precision, _ = hardware.choose_precision("auto", device)
    config = SpeedConfig(device, precision, 64, 32, warmup_s=0.3)
    rows = []
    for number in range(options.repetitions):
        print(f"repetition {number + 1} of {options.repetitions}", file=sys.stderr)
        rows.append(repetition(replace(config, seed=number)))
    runs = []
    for number in range(2 * PROCESSES):
        print(f"process {number + 1} of {2 * PROCESSES}", file=sys.stderr)
        runs.append(in_process(complete_run, replace(config, fewest_rounds=6, most_s=2.0, seed=number)))
    goals, figures, ratios = _judge_repetitions(rows)
    more_goals, more_figures = _judge_runs(runs, device)
    goals |= more_goals
    more = {"precision": precision, "figures": figures | more_figures}
    print(f"written: {write_race('calibrate', rows, ratios, goals, device, **more)}")
    return 0 if all(goals.values()) else 1


def _judge_repetitions(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, bool], dict[str, Any], dict[str, Any]]:
    """Goals, figures and ratios of the repetitions; printed as a table."""
    verdicts = [Interval(**row["copy"][kind]).differs for row in rows for kind in KINDS]
    slower = [Interval(**row["slower"][kind]) for row in rows for kind in KINDS]
    hits = [found.differs and found.estimate > 1 for found in slower]
    ways = {"paired rounds": "ratio", "one after the other": "usual", "as many calls": "usual, as many calls"}
    quiet = [row for row in rows if not _disturbed(row)]
    spreads = {
        which: {way: _variation([row[key] for row in some]) for way, key in ways.items()}
        for which, some in (("quiet", quiet), ("all", rows))
    }
    ours, theirs = (spreads["quiet"][way] for way in ("paired rounds", "one after the other"))
    judged = ours[0] / theirs[0] if ours and theirs and theirs[0] else None
    suspect = sum(bool(row["suspect"]) for row in rows)
    false_share, hit_share = sum(verdicts) / len(verdicts), sum(hits) / len(hits)
    _print_shares(
        "What",
        {
            "verdicts on a copy (false)": (sum(verdicts), len(verdicts)),
            f"planted slowdowns of {PLANTED:.0%} found": (sum(hits), len(hits)),
            "repetitions that call themselves suspect": (suspect, len(rows)),
        },
    )
    pair = " / ".join(PAIR)
    for which, some in (("quiet", quiet), ("all", rows)):
        texts = [f"{found[0]:.1%} ({found[1]:.1%}) {way}" for way, found in spreads[which].items() if found]
        print(f"coefficient of variation (robust: by the median absolute deviation) of {pair}, {which} {len(some)} "
              f"repetitions: {', '.join(texts)}")  # fmt: skip
    ratios = {
        f"{pair}, {way}": {"median": statistics.median(v), "low": min(v), "high": max(v)}
        for way, key in ways.items() for v in ([row[key] for row in rows],)
    }  # fmt: skip
    goals = {
        f"at most {GOALS['false verdicts']:.0%} false verdicts": false_share <= GOALS["false verdicts"],
        f"at least {GOALS['planted slowdowns found']:.0%} of planted slowdowns found":
            hit_share >= GOALS["planted slowdowns found"],
        "the spread of a ratio at most half of that of the usual procedure":
            judged is not None and judged <= GOALS["spread of a ratio"],
    }  # fmt: skip
    figures = {
        "false verdicts": false_share, "planted slowdowns found": hit_share, "spread of a ratio": judged,
        "coefficients_of_variation": spreads, "repetitions": len(rows), "suspect": suspect,
    }  # fmt: skip
    return goals, figures, ratios


def _print_shares(title: str, found: dict[str, tuple[int, int]]) -> None:
    """A table of how many there were of how many, with Wilson's interval, which takes them for independent."""
    print(f"| {title} | Found | Of | Share | 95 % interval |\n| --- | ---: | ---: | ---: | ---: |")
    for what, (count, total) in found.items():
        low, high = wilson_interval(count, total)
        print(f"| {what} | {count} | {total} | {count / total:.1%} | {low:.1%} to {high:.1%} |")


def _judge_runs(runs: Sequence[dict[str, Any]], device: torch.device) -> tuple[dict[str, bool], dict[str, Any]]:
    """Goals and figures of two complete runs, each of half of the processes; printed as a table."""
    halves = runs[:PROCESSES], runs[PROCESSES:]
    whole = [{name: pooled([run[name] for run in half]) for name in DEFAULT} for half in halves]
    ranks = [sorted(run, key=lambda name: run[name]["inference_ms_median"]) for run in whole]
    pairs = [(kind, *pair) for kind in KINDS for pair in itertools.combinations(DEFAULT, 2)]
    agree = [_agree(*(time_ratio(run[a], run[b], kind) for run in whole)) for kind, a, b in pairs]
    single = [
        _agree(*(time_ratio(run[a], run[b], kind) for run in both))
        for both in zip(*halves, strict=True) for kind, a, b in pairs
    ]  # fmt: skip
    by_run = _verdicts([(whole[0], whole[1])], device)
    by_process = _verdicts(list(zip(*halves, strict=True)), device)
    false = [verdict != "no difference found" for verdict in (*by_run, *by_process)]
    between = {kind: _between(runs, kind) for kind in KINDS}
    shares = {
        f"ratios whose intervals meet, {PROCESSES} processes each": (sum(agree), len(agree)),
        "ratios whose intervals meet, one process each": (sum(single), len(single)),
    }
    kinds_of_runs = ((f"{PROCESSES} processes each", [(whole[0], whole[1])], by_run),
                     ("one process each", list(zip(*halves, strict=True)), by_process))  # fmt: skip
    for what, _, some in kinds_of_runs:
        wrong = sum(verdict != "no difference found" for verdict in some)
        shares[f"verdicts of compare, {what} (false)"] = (wrong, len(some))
    for what, both, _ in kinds_of_runs:
        for share in SLOWDOWNS:
            some = _verdicts([(a, _slowed(b, share)) for a, b in both], device)
            shares[f"slowdowns of {share:.0%} found by compare, {what}"] = (some.count("slower"), len(some))
    _print_shares("Two complete runs", shares)
    print(f"ranks of two runs: {' < '.join(ranks[0])} and {' < '.join(ranks[1])}")
    print("standard deviation from process to process, in units of the yardstick: "
          + ", ".join(f"{kind} {value:.1%}" for kind, value in between.items()))  # fmt: skip
    figures: dict[str, Any] = {
        "ranks": ranks, "ratios that agree": sum(agree) / len(agree), "verdicts of compare": len(false),
        "of two complete runs": {what: list(counts) for what, counts in shares.items()},
        "false verdicts of compare": sum(false) / len(false), "between processes": between,
        "processes": [{n: {k: _middle(run, n, k) for k in KINDS} for n in DEFAULT} for run in runs],
    }  # fmt: skip
    goals = {
        "two runs rank the networks alike": ranks[0] == ranks[1],
        f"at least {GOALS['ratios that agree']:.0%} of the ratios of two runs agree within their intervals":
            figures["ratios that agree"] >= GOALS["ratios that agree"],
        f"at most {GOALS['false verdicts']:.0%} false verdicts of compare":
            figures["false verdicts of compare"] <= GOALS["false verdicts"],
    }  # fmt: skip
    return goals, figures


def _slowed(run: dict[str, dict[str, Any]], share: float) -> dict[str, dict[str, Any]]:
    """The same figures as if all networks had taken a share longer."""
    return {
        name: figures
        | {
            "samples_ms": {
                kind: [[(1 + share) * ms if kind in KINDS else ms for ms in times] for times in rounds]
                for kind, rounds in figures["samples_ms"].items()
            }
        }
        for name, figures in run.items()
    }


def _verdicts(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], device: torch.device) -> list[str]:
    """What `compare` says of the times of runs of the same code."""
    machine = environment(hardware.device_name(device), torch.get_num_threads())

    def records(run: dict[str, Any]) -> list[Record]:
        data = {"name": "noise", "label": "noise", "image_size": 32}
        return [Record(name, data, 0, "ok", {}, machine, measures=run[name]) for name in DEFAULT]

    changes = [change for a, b in pairs for change in compare(records(a), records(b))]
    times = {key for key, figure in figures().items() if figure.compared == "rounds"}
    return [change.verdict for change in changes if change.figure in times]


def _between(runs: Sequence[dict[str, Any]], kind: str) -> float:
    """Standard deviation of a time from process to process, over the networks."""
    logs = [[math.log(_middle(run, name, kind)) for run in runs] for name in DEFAULT]
    return math.sqrt(statistics.fmean(statistics.variance(values) for values in logs))


def _middle(run: dict[str, Any], name: str, kind: str) -> float:
    """A network's time in a process, in units of the yardstick."""
    samples = run[name]["samples_ms"]
    rounds = zip(*([statistics.median(times) for times in samples[key]] for key in (kind, "yardstick")), strict=True)
    return statistics.median(x / y for x, y in rounds)


def _disturbed(row: dict[str, Any]) -> bool:
    """Whether the stopwatch saw other processes at work during a repetition."""
    return any(reason.startswith("other processes") for reason in row["suspect"])


def _variation(values: Sequence[float]) -> tuple[float, float] | None:
    """Coefficient of variation, and the same by the median absolute deviation, which single wild values do not move;
    None of fewer than two values."""
    if len(values) < 2:
        return None
    return (
        statistics.stdev(values) / statistics.fmean(values),
        1.4826 * median_deviation(values) / statistics.median(values),  # 1.4826: the factor of a normal distribution
    )


def _agree(first: Interval, second: Interval) -> bool:
    """Whether the intervals of a ratio have a value in common; without intervals they do not."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return False
    return max(first.low, second.low) <= min(first.high, second.high)


if __name__ == "__main__":
    run("calibrate", main)
