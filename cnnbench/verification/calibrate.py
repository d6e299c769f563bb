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
WAYS = {"paired rounds": "ratio", "one after the other": "usual", "as many calls": "usual, as many calls"}
"""Key of the ratio in the result of `repetition`, by the way in which the ratio is measured."""
Run = dict[str, dict[str, Any]]
"""Figures of `measure_speed` by network."""
Count = tuple[int, int]
"""Number of cases that have a property, and of all cases."""


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
        # In training, `_SlowerAdamW` waits after the whole step, so that the share is one of the step's time.
        if not self.training:
            self.wait()
        return out

    def wait(self) -> None:
        """Wait for `share` times the time since the forward pass began."""
        # The slowed time ends when the device is done, not when its work has been launched.
        hardware.synchronise(self.device)
        end = time.perf_counter()
        # Sleeping would be too coarse for a wait of a fraction of a millisecond.
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

    # The network itself is wrapped too, so that the wrapper costs all three the same.
    subjects = {"network": twin(0.0), "copy": twin(0.0), "slower": twin(PLANTED)}
    subjects["other"] = Subject(second.build, second.image_shape, 10)
    speeds = measure_speed(subjects, config)
    for name, figures_of_one in speeds.items():
        if "error" in figures_of_one:
            raise UserError(f"could not time {name}: {figures_of_one['error']}")
    network = speeds["network"]
    return {
        "copy": _ratios(speeds["copy"], network),
        "slower": _ratios(speeds["slower"], network),
        "ratio": time_ratio(network, speeds["other"], "inference").estimate,
        "usual": usual_ratio(config),
        # The samples hold one list of calls per round; their lengths add up to all calls of a network.
        "usual, as many calls": usual_ratio(config, sum(map(len, network["samples_ms"]["inference"]))),
        "suspect": network["suspect"],
    }


def _ratios(first: dict[str, Any], second: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the ratio of the times of two networks, with its interval, by kind of work."""
    return {kind: time_ratio(first, second, kind)._asdict() for kind in KINDS}


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
                # The clock starts after the warm-up, once the device has nothing left to do.
                if call == 10:
                    hardware.synchronise(config.device)
                    start = time.perf_counter()
                model(x)
            hardware.synchronise(config.device)
        times.append((time.perf_counter() - start) / calls)
    return times[0] / times[1]


def complete_run(config: SpeedConfig) -> Run:
    """Return the figures of one timing of the networks of `DEFAULT`."""
    # This function runs in a fresh process, in which the setting has to be made again.
    hardware.keep_freed_memory()
    return measure_speed({name: Subject(get_model(name), (3, 32, 32), 10) for name in DEFAULT}, config)


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
        # Every repetition has an order of turns and inputs of its own.
        rows.append(repetition(replace(config, seed=number)))
    # The first half of the processes is one complete run, the second half is the other.
    runs = []
    for number in range(2 * PROCESSES):
        print(f"process {number + 1} of {2 * PROCESSES}", file=sys.stderr)
        runs.append(in_process(complete_run, replace(config, fewest_rounds=6, most_s=2.0, seed=number)))
    goals, results, ratios = _judge_repetitions(rows)
    goals_of_runs, results_of_runs = _judge_runs(runs, device)
    goals |= goals_of_runs
    more = {"precision": precision, "figures": results | results_of_runs}
    print(f"written: {write_race('calibrate', rows, ratios, goals, device, **more)}")
    return 0 if all(goals.values()) else 1


def _judge_repetitions(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, bool], dict[str, Any], dict[str, Any]]:
    """Return the goals, figures and ratios of the repetitions, and print a table of them."""
    false, hits = _count_verdicts(rows)
    quiet = [row for row in rows if not _disturbed(row)]
    spreads = {"quiet": _spreads(quiet), "all": _spreads(rows)}
    # The goal compares the procedures in quiet repetitions only.
    ours, theirs = spreads["quiet"]["paired rounds"], spreads["quiet"]["one after the other"]
    share_of_usual = None
    if ours and theirs and theirs[0]:
        share_of_usual = ours[0] / theirs[0]
    suspect = sum(bool(row["suspect"]) for row in rows)
    results = {
        "false verdicts": false[0] / false[1],
        "planted slowdowns found": hits[0] / hits[1],
        "spread of a ratio": share_of_usual,
        "coefficients_of_variation": spreads,
        "repetitions": len(rows),
        "suspect": suspect,
    }
    counts = {
        "verdicts on a copy (false)": false,
        f"planted slowdowns of {PLANTED:.0%} found": hits,
        "repetitions that call themselves suspect": (suspect, len(rows)),
    }
    _print_shares("What", counts)
    _print_spreads(spreads["quiet"], f"quiet {len(quiet)}")
    _print_spreads(spreads["all"], f"all {len(rows)}")
    ratios = {}
    for way, key in WAYS.items():
        values = [row[key] for row in rows]
        named = {"median": statistics.median(values), "low": min(values), "high": max(values)}
        ratios[f"{' / '.join(PAIR)}, {way}"] = named
    most_false, fewest_hits = GOALS["false verdicts"], GOALS["planted slowdowns found"]
    # With fewer than two quiet repetitions there is no spread, and the goal counts as missed.
    narrow = share_of_usual is not None and share_of_usual <= GOALS["spread of a ratio"]
    goals = {
        f"at most {most_false:.0%} false verdicts": false[0] / false[1] <= most_false,
        f"at least {fewest_hits:.0%} of planted slowdowns found": hits[0] / hits[1] >= fewest_hits,
        "the spread of a ratio at most half of that of the usual procedure": narrow,
    }
    return goals, results, ratios


def _count_verdicts(rows: Sequence[dict[str, Any]]) -> tuple[Count, Count]:
    """Count the false verdicts on the copies, and the planted slowdowns that were detected."""
    false = hits = 0
    for row in rows:
        for kind in KINDS:
            false += Interval(**row["copy"][kind]).differs
            slower = Interval(**row["slower"][kind])
            # A slowdown is detected if the verdict is a difference, and in the right direction.
            hits += slower.differs and slower.estimate > 1
    verdicts = len(rows) * len(KINDS)
    return (false, verdicts), (hits, verdicts)


def _spreads(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float] | None]:
    """Return the spread of the ratio over some repetitions, by the way in which it is measured."""
    spreads = {}
    for way, key in WAYS.items():
        spreads[way] = _variation([row[key] for row in rows])
    return spreads


def _print_spreads(spreads: dict[str, tuple[float, float] | None], repetitions: str) -> None:
    """Print the spreads of the ratio in one line, which names their repetitions."""
    texts = [f"{spread[0]:.1%} ({spread[1]:.1%}) {way}" for way, spread in spreads.items() if spread]
    print(
        f"coefficient of variation (robust: by the median absolute deviation) of {' / '.join(PAIR)}, {repetitions} "
        f"repetitions: {', '.join(texts)}"
    )


def _print_shares(title: str, counts: dict[str, Count]) -> None:
    """Print a table of counts and their shares, with Wilson intervals, which assume independent observations."""
    print(f"| {title} | Found | Of | Share | 95 % interval |\n| --- | ---: | ---: | ---: | ---: |")
    for what, (count, total) in counts.items():
        low, high = wilson_interval(count, total)
        print(f"| {what} | {count} | {total} | {count / total:.1%} | {low:.1%} to {high:.1%} |")


def _judge_runs(runs: Sequence[Run], device: torch.device) -> tuple[dict[str, bool], dict[str, Any]]:
    """Return the goals and figures of two complete runs, each of half of the processes, and print a table of them."""
    first, second = runs[:PROCESSES], runs[PROCESSES:]
    whole = _pooled(first), _pooled(second)
    several = f"{PROCESSES} processes each"
    # Two kinds of runs are compared: whole runs of several processes, and pairs of single processes.
    pairs_by_kind = {several: [whole], "one process each": list(zip(first, second, strict=True))}
    shares = _compare_runs(pairs_by_kind, device)
    ranks = [sorted(run, key=lambda name: run[name]["inference_ms_median"]) for run in whole]
    between = {kind: _between(runs, kind) for kind in KINDS}
    _print_shares("Two complete runs", shares)
    print(f"ranks of two runs: {' < '.join(ranks[0])} and {' < '.join(ranks[1])}")
    deviations = ", ".join(f"{kind} {value:.1%}" for kind, value in between.items())
    print(f"standard deviation from process to process, in units of the yardstick: {deviations}")
    alike, ratios = shares[f"ratios whose intervals meet, {several}"]
    false = verdicts = 0
    for what in pairs_by_kind:
        false_of_kind, verdicts_of_kind = shares[f"verdicts of compare, {what} (false)"]
        false += false_of_kind
        verdicts += verdicts_of_kind
    results: dict[str, Any] = {
        "ranks": ranks,
        "ratios that agree": alike / ratios,
        "verdicts of compare": verdicts,
        "of two complete runs": {what: list(count) for what, count in shares.items()},
        "false verdicts of compare": false / verdicts,
        "between processes": between,
        "processes": [_middles(run) for run in runs],
    }
    fewest_alike, most_false = GOALS["ratios that agree"], GOALS["false verdicts"]
    agreement = f"at least {fewest_alike:.0%} of the ratios of two runs agree within their intervals"
    goals = {
        "two runs rank the networks alike": ranks[0] == ranks[1],
        agreement: alike / ratios >= fewest_alike,
        f"at most {most_false:.0%} false verdicts of compare": false / verdicts <= most_false,
    }
    return goals, results


def _pooled(runs: Sequence[Run]) -> Run:
    """Return the figures of several processes as those of one run."""
    whole = {}
    for name in DEFAULT:
        whole[name] = pooled([run[name] for run in runs])
    return whole


def _compare_runs(pairs_by_kind: dict[str, list[tuple[Run, Run]]], device: torch.device) -> dict[str, Count]:
    """Return what is said about pairs of runs of the same code, as counts by their titles in the table."""
    shares = {}
    for what, pairs in pairs_by_kind.items():
        agreements = _agreements(pairs)
        shares[f"ratios whose intervals meet, {what}"] = sum(agreements), len(agreements)
    for what, pairs in pairs_by_kind.items():
        verdicts = _verdicts(pairs, device)
        # Both runs timed the same code, so every other verdict is false.
        false = len(verdicts) - verdicts.count("no difference found")
        shares[f"verdicts of compare, {what} (false)"] = false, len(verdicts)
    # Add a known slowdown to the second run of each pair, and count how often `compare` reports it.
    for what, pairs in pairs_by_kind.items():
        for share in SLOWDOWNS:
            verdicts = _verdicts([(a, _slowed(b, share)) for a, b in pairs], device)
            shares[f"slowdowns of {share:.0%} found by compare, {what}"] = verdicts.count("slower"), len(verdicts)
    return shares


def _agreements(pairs: Sequence[tuple[Run, Run]]) -> list[bool]:
    """Return whether the intervals of a ratio from the two runs of a pair meet, for every ratio and pair."""
    agreements = []
    for a, b in pairs:
        for kind in KINDS:
            for one, other in itertools.combinations(DEFAULT, 2):
                agreements.append(_agree(time_ratio(a[one], a[other], kind), time_ratio(b[one], b[other], kind)))
    return agreements


def _slowed(run: Run, share: float) -> Run:
    """Return the figures of a run as if every network took a share longer; the yardstick keeps its times."""
    slowed = {}
    for name, of_network in run.items():
        samples_ms = dict(of_network["samples_ms"])
        for kind in KINDS:
            rounds = samples_ms[kind]
            samples_ms[kind] = [[(1 + share) * ms for ms in times] for times in rounds]
        slowed[name] = of_network | {"samples_ms": samples_ms}
    return slowed


def _verdicts(pairs: Sequence[tuple[Run, Run]], device: torch.device) -> list[str]:
    """Return the verdicts of `compare` on all times of pairs of runs."""
    machine = environment(hardware.device_name(device), torch.get_num_threads())

    def records(run: Run) -> list[Record]:
        # `compare` reads only a few settings, and these are the same in both runs.
        data = {"name": "noise", "label": "noise", "image_size": 32}
        return [Record(name, data, 0, "ok", {}, machine, measures=run[name]) for name in DEFAULT]

    times = {key for key, figure in figures().items() if figure.compared == "rounds"}
    verdicts = []
    for first, second in pairs:
        changes = compare(records(first), records(second))
        verdicts += [change.verdict for change in changes if change.figure in times]
    return verdicts


def _between(runs: Sequence[Run], kind: str) -> float:
    """Return the standard deviation of a time from process to process, as a share.

    It is the standard deviation of the logarithms of the times, from the mean variance over the networks.
    """
    variances = []
    for name in DEFAULT:
        # For small deviations, the standard deviation of the logarithm is the relative one of the time.
        logs = [math.log(_middle(run, name, kind)) for run in runs]
        variances.append(statistics.variance(logs))
    return math.sqrt(statistics.fmean(variances))


def _middles(run: Run) -> dict[str, dict[str, float]]:
    """Return the median times of one process, in units of the yardstick's time, by network and kind of work."""
    middles = {}
    for name in DEFAULT:
        middles[name] = {kind: _middle(run, name, kind) for kind in KINDS}
    return middles


def _middle(run: Run, name: str, kind: str) -> float:
    """Return the median time of a network in one process, in units of the yardstick's time in the same round."""
    samples_ms = run[name]["samples_ms"]
    times = []
    for of_network, of_yardstick in zip(samples_ms[kind], samples_ms["yardstick"], strict=True):
        times.append(statistics.median(of_network) / statistics.median(of_yardstick))
    return statistics.median(times)


def _disturbed(row: dict[str, Any]) -> bool:
    """Return whether the stopwatch saw other processes at work during a repetition."""
    # `reasons_to_doubt` begins such a reason with these words.
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
    # Two intervals overlap if the later of their starts is not beyond the earlier of their ends.
    return max(first.low, second.low) <= min(first.high, second.high)


if __name__ == "__main__":
    run("calibrate", main)
