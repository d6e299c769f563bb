"""A check of the timing: against identical networks, against a planted slowdown, and beside the usual procedure.

``make calibrate`` runs it. Each repetition times a network beside its own copy and beside a twin that is made 5 %
slower. If the timing says that the copy differs, this verdict is false; if it does not say that the twin is slower, it
has missed the slowdown.

Each repetition also measures the ratio of the times of two different networks in two ways. The first is by paired
rounds. The second is the usual procedure, which times one network after the other and takes the mean of many calls: 40
calls, as in timm's benchmark script, and then as many calls as the paired rounds have. The spread of the ratio from
repetition to repetition shows which procedure is better. It is computed from all repetitions, and from those in which
the stopwatch saw no other process at work.

At the end there are two complete runs of the default networks, each in several fresh processes. They are ranked, and
compared as by ``cnnbench compare``. Both runs time the same code, so any difference that is reported is false.
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
from cnnbench.report.speed_tables import time_ratio
from cnnbench.stats import Interval, median_deviation, wilson_interval
from cnnbench.timing.processes import in_process, pooled
from cnnbench.timing.speed import KINDS, SpeedConfig, Subject, measure_speed
from cnnbench.verification import run, write_race

PLANTED = 0.05
"""Slowdown of the twin network, as a share of its time."""
DEFAULT = ("LeNet5", "VGG16", "ResNet18", "MobileNetV1")
"""Networks of a complete run."""
PAIR = ("SimpleCNN", "LeNet5")
"""Two networks whose ratio is measured in every repetition, the slower one first."""
GOALS = {"false verdicts": 0.05, "planted slowdowns found": 0.90, "spread of a ratio": 0.5, "ratios that agree": 0.95}
"""Limits of the goals as shares: upper limits of false verdicts and spread, lower limits of the other two."""
PROCESSES = 6
"""Number of fresh processes of a complete run."""
SLOWDOWNS = (0.05, 0.1, 0.2)
"""Slowdowns that are added to the times of a complete run, to see how many of them `compare` detects."""


class _Slower(nn.Module):
    """A network that is made slower by a share of its time.

    It waits in a busy loop, in evaluation after each forward pass, and in training after each step of the optimizer,
    which must be `_SlowerAdamW`. With the share 0 it synchronises the device and does not wait.
    """

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
        """Wait for `share` times the time since the forward pass began."""
        hardware.synchronise(self.device)
        end = time.perf_counter()
        while time.perf_counter() < end + self.share * (end - self.start):
            pass


class _SlowerAdamW(torch.optim.AdamW):
    """AdamW that makes its network wait after each step."""

    def __init__(self, model: _Slower) -> None:
        super().__init__(model.parameters(), lr=1e-4)
        self._wait = model.wait

    def step(self, closure: Any = None) -> Any:
        out = super().step(closure)
        self._wait()
        return out


def repetition(config: SpeedConfig) -> dict[str, Any]:
    """Time a network, its copy, its slower twin and another network once.

    Returns:
        The ratios of the copy and of the slower twin to the network, with intervals, by kind of work; the ratio of the
        two networks of `PAIR` in inference, by paired rounds and by the usual procedure with two numbers of calls; and
        the reasons to doubt the times.

    Raises:
        UserError: A network could not be timed.
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
    """Return the ratio of the inference times of the networks of `PAIR`, timed one after the other.

    Args:
        config: Settings of the timing: device, precision and batch size.
        calls: Number of timed calls of each network, after 10 calls that warm it up.
    """
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
    """Return the figures of one timing of the networks of `DEFAULT`."""
    hardware.keep_freed_memory()
    models = {name: get_model(name) for name in DEFAULT}
    return measure_speed({name: Subject(model, (3, 32, 32), 10) for name, model in models.items()}, config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the calibration, print its tables and write ``results/races/calibrate.json``.

    Returns:
        The exit code, which is 1 if a goal is missed.
    """
    parser = argparse.ArgumentParser(prog="python -m cnnbench.verification.calibrate", description=__doc__)
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
    """Return the goals, figures and ratios of the repetitions, and print a table of them."""
    verdicts = [Interval(**row["copy"][kind]).differs for row in rows for kind in KINDS]
    slower = [Interval(**row["slower"][kind]) for row in rows for kind in KINDS]
    # A slowdown is detected if the verdict is a difference, and in the right direction.
    hits = [found.differs and found.estimate > 1 for found in slower]
    ways = {"paired rounds": "ratio", "one after the other": "usual", "as many calls": "usual, as many calls"}
    quiet = [row for row in rows if not _disturbed(row)]
    spreads = {
        which: {way: _variation([row[key] for row in some]) for way, key in ways.items()}
        for which, some in (("quiet", quiet), ("all", rows))
    }
    # The goal compares the procedures in quiet repetitions only.
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
        print(
            f"coefficient of variation (robust: by the median absolute deviation) of {pair}, {which} {len(some)} "
            f"repetitions: {', '.join(texts)}"
        )
    ratios = {
        f"{pair}, {way}": {"median": statistics.median(v), "low": min(v), "high": max(v)}
        for way, key in ways.items()
        for v in ([row[key] for row in rows],)
    }
    goals = {
        f"at most {GOALS['false verdicts']:.0%} false verdicts": false_share <= GOALS["false verdicts"],
        f"at least {GOALS['planted slowdowns found']:.0%} of planted slowdowns found": hit_share
        >= GOALS["planted slowdowns found"],
        "the spread of a ratio at most half of that of the usual procedure": judged is not None
        and judged <= GOALS["spread of a ratio"],
    }
    figures = {
        "false verdicts": false_share,
        "planted slowdowns found": hit_share,
        "spread of a ratio": judged,
        "coefficients_of_variation": spreads,
        "repetitions": len(rows),
        "suspect": suspect,
    }
    return goals, figures, ratios


def _print_shares(title: str, found: dict[str, tuple[int, int]]) -> None:
    """Print a table of counts and their shares, with Wilson intervals, which assume independent observations."""
    print(f"| {title} | Found | Of | Share | 95 % interval |\n| --- | ---: | ---: | ---: | ---: |")
    for what, (count, total) in found.items():
        low, high = wilson_interval(count, total)
        print(f"| {what} | {count} | {total} | {count / total:.1%} | {low:.1%} to {high:.1%} |")


def _judge_runs(runs: Sequence[dict[str, Any]], device: torch.device) -> tuple[dict[str, bool], dict[str, Any]]:
    """Return the goals and figures of two complete runs, each of half of the processes, and print a table of them."""
    # Two kinds of runs are compared: whole runs of several processes, and pairs of single processes.
    halves = runs[:PROCESSES], runs[PROCESSES:]
    whole = [{name: pooled([run[name] for run in half]) for name in DEFAULT} for half in halves]
    ranks = [sorted(run, key=lambda name: run[name]["inference_ms_median"]) for run in whole]
    pairs = [(kind, *pair) for kind in KINDS for pair in itertools.combinations(DEFAULT, 2)]
    agree = [_agree(*(time_ratio(run[a], run[b], kind) for run in whole)) for kind, a, b in pairs]
    single = [
        _agree(*(time_ratio(run[a], run[b], kind) for run in both))
        for both in zip(*halves, strict=True)
        for kind, a, b in pairs
    ]
    by_run = _verdicts([(whole[0], whole[1])], device)
    by_process = _verdicts(list(zip(*halves, strict=True)), device)
    false = [verdict != "no difference found" for verdict in (*by_run, *by_process)]
    between = {kind: _between(runs, kind) for kind in KINDS}
    shares = {
        f"ratios whose intervals meet, {PROCESSES} processes each": (sum(agree), len(agree)),
        "ratios whose intervals meet, one process each": (sum(single), len(single)),
    }
    kinds_of_runs = (
        (f"{PROCESSES} processes each", [(whole[0], whole[1])], by_run),
        ("one process each", list(zip(*halves, strict=True)), by_process),
    )
    for what, _, some in kinds_of_runs:
        wrong = sum(verdict != "no difference found" for verdict in some)
        shares[f"verdicts of compare, {what} (false)"] = (wrong, len(some))
    # Add a known slowdown to the second run of each pair, and count how often `compare` reports it.
    for what, both, _ in kinds_of_runs:
        for share in SLOWDOWNS:
            some = _verdicts([(a, _slowed(b, share)) for a, b in both], device)
            shares[f"slowdowns of {share:.0%} found by compare, {what}"] = (some.count("slower"), len(some))
    _print_shares("Two complete runs", shares)
    print(f"ranks of two runs: {' < '.join(ranks[0])} and {' < '.join(ranks[1])}")
    print(
        "standard deviation from process to process, in units of the yardstick: "
        + ", ".join(f"{kind} {value:.1%}" for kind, value in between.items())
    )
    figures: dict[str, Any] = {
        "ranks": ranks,
        "ratios that agree": sum(agree) / len(agree),
        "verdicts of compare": len(false),
        "of two complete runs": {what: list(counts) for what, counts in shares.items()},
        "false verdicts of compare": sum(false) / len(false),
        "between processes": between,
        "processes": [{n: {k: _middle(run, n, k) for k in KINDS} for n in DEFAULT} for run in runs],
    }
    goals = {
        "two runs rank the networks alike": ranks[0] == ranks[1],
        f"at least {GOALS['ratios that agree']:.0%} of the ratios of two runs agree within their intervals": figures[
            "ratios that agree"
        ]
        >= GOALS["ratios that agree"],
        f"at most {GOALS['false verdicts']:.0%} false verdicts of compare": figures["false verdicts of compare"]
        <= GOALS["false verdicts"],
    }
    return goals, figures


def _slowed(run: dict[str, dict[str, Any]], share: float) -> dict[str, dict[str, Any]]:
    """Return the figures of a run as if every network took a share longer; the yardstick keeps its times."""
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
    """Return the verdicts of `compare` on all times of pairs of runs."""
    machine = environment(hardware.device_name(device), torch.get_num_threads())

    def records(run: dict[str, Any]) -> list[Record]:
        data = {"name": "noise", "label": "noise", "image_size": 32}
        return [Record(name, data, 0, "ok", {}, machine, measures=run[name]) for name in DEFAULT]

    changes = [change for a, b in pairs for change in compare(records(a), records(b))]
    times = {key for key, figure in figures().items() if figure.compared == "rounds"}
    return [change.verdict for change in changes if change.figure in times]


def _between(runs: Sequence[dict[str, Any]], kind: str) -> float:
    """Return the standard deviation of a time from process to process, as a share.

    It is the standard deviation of the logarithms of the times, from the mean variance over the networks.
    """
    logs = [[math.log(_middle(run, name, kind)) for run in runs] for name in DEFAULT]
    return math.sqrt(statistics.fmean(statistics.variance(values) for values in logs))


def _middle(run: dict[str, Any], name: str, kind: str) -> float:
    """Return the median time of a network in one process, in units of the yardstick's time in the same round."""
    samples = run[name]["samples_ms"]
    rounds = zip(*([statistics.median(times) for times in samples[key]] for key in (kind, "yardstick")), strict=True)
    return statistics.median(x / y for x, y in rounds)


def _disturbed(row: dict[str, Any]) -> bool:
    """Return whether the stopwatch saw other processes at work during a repetition."""
    return any(reason.startswith("other processes") for reason in row["suspect"])


def _variation(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the coefficient of variation and its robust version, or None for fewer than two values.

    The robust version uses the median and the median absolute deviation, which single outliers hardly change.
    """
    if len(values) < 2:
        return None
    return (
        statistics.stdev(values) / statistics.fmean(values),
        # The factor makes the deviation an estimate of the standard deviation of a normal distribution.
        1.4826 * median_deviation(values) / statistics.median(values),
    )


def _agree(first: Interval, second: Interval) -> bool:
    """Return whether two intervals of a ratio overlap; False if one of them has no ends."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return False
    return max(first.low, second.low) <= min(first.high, second.high)


if __name__ == "__main__":
    run("calibrate", main)
