"""The audit: our counts beside those of other counters, with a named cause for every difference.

The causes are worked out in `cnnbench.verification.counters`. They must add up to the difference exactly. If they do
not, the audit ends with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import logging
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torchvision import models

from cnnbench.counting.complexity import complexity
from cnnbench.counting.meta_copy import build_without_values
from cnnbench.errors import UserError
from cnnbench.models import all_models
from cnnbench.network import Network, get_network
from cnnbench.training.step import training_step
from cnnbench.verification import interleave, ratio, run, write_race
from cnnbench.verification.counters import COUNTERS, TIMED, Subject
from cnnbench.verification.recorded_calls import record_calls

TORCHVISION = (
    "alexnet vgg11 vgg16 vgg16_bn googlenet inception_v3 resnet18 resnet34 resnet50 resnet101 resnet152 "
    "resnext50_32x4d wide_resnet50_2 densenet121 densenet169 densenet201 squeezenet1_1 mobilenet_v2 "
    "mobilenet_v3_small mobilenet_v3_large mnasnet1_0 shufflenet_v2_x1_0 efficientnet_b0 efficientnet_v2_s "
    "regnet_x_400mf regnet_y_400mf convnext_tiny vit_b_16 swin_t"
).split()
"""Networks of torchvision that are audited by default, besides those of the package."""
Times = Mapping[str, Mapping[str, Sequence[float]]]
"""Milliseconds of every round, by network and counter."""


@dataclass(frozen=True)
class Disagreement:
    """The count of another counter beside ours, with the causes of the difference.

    Attributes:
        network: Name of the network.
        counter: Name of the other counter.
        count: Count of the other counter.
        ours: Our count of the same quantity.
        causes: Amount that each cause adds to our count, by its name. Our count plus all amounts equals the other
            count, unless a part of the difference is unexplained.
    """

    network: str
    counter: str
    count: int
    ours: int
    causes: dict[str, int]

    @property
    def unexplained(self) -> int:
        """Return the part of the difference that no cause explains."""
        return self.count - self.ours - sum(self.causes.values())


def _published(subject: Subject) -> Iterator[Disagreement]:
    """Yield the comparisons with the MACs and parameters that torchvision publishes with its weights."""
    name = subject.network.name.removeprefix("torchvision:")
    meta = models.get_model_weights(name).DEFAULT.meta
    # The entry `_ops` is in billions of MACs. Both counts are compared in whole millions.
    million = 10**6
    ours, theirs = round(subject.macs / million) * million, round(1000 * meta["_ops"]) * million
    yield Disagreement(subject.network.name, "published MACs", theirs, ours, {})
    # Some of the published parameter counts leave out the auxiliary heads.
    heads = sum(p.numel() for n, p in subject.model.named_parameters() if n.lower().startswith("aux"))
    params = sum(p.numel() for p in subject.model.parameters())
    causes = {}
    if heads and meta["num_params"] < params:
        causes["auxiliary heads"] = -heads
    yield Disagreement(subject.network.name, "published parameters", meta["num_params"], params, causes)


def compare(subject: Subject) -> list[Disagreement]:
    """Return the counts of all other counters for one network, each with the causes of its difference from ours."""
    comparisons = []
    for name, (count, explain) in COUNTERS.items():
        ours = subject.train_macs if "training" in name else subject.macs
        # A cause that adds nothing for this network is left out.
        causes = {cause: amount for cause, amount in explain(subject).items() if amount}
        comparisons.append(Disagreement(subject.network.name, name, count(subject), ours, causes))
    if subject.network.name.startswith("torchvision:"):
        comparisons += _published(subject)
    return comparisons


# Time.


def audit(network: Network, rounds: int) -> tuple[list[Disagreement], dict[str, list[float]]]:
    """Count one network with every counter, and time the counters in turns.

    Args:
        network: Network to count.
        rounds: Number of timed calls of each counter.

    Returns:
        The comparison with each counter, and the milliseconds of every round, by name of the counter. The entry
        ``training step`` is a real training step with one image, or with two if a batch norm layer of the network
        cannot train on one.
    """
    shape = network.image_shape
    # Some counters need real values; all others, ours too, run on the meta device, where tensors have no values.
    real = network.build()
    model = build_without_values(network.build)[0].to("meta")
    cost = complexity(model, shape)
    assert cost.train_macs is not None
    subject = Subject(network, model, real, record_calls(model, shape), cost.macs, cost.train_macs)
    comparisons = compare(subject)
    real.train()
    try:
        step = training_step(real, torch.randn(1, *shape))
        step()
    except ValueError:  # "Expected more than 1 value per channel when training"
        step = training_step(real, torch.randn(2, *shape))
    subjects: dict[str, Callable[[], object]] = {
        "ours": lambda: complexity(model, shape, training=False),
        "ours, training": lambda: complexity(model, shape),
        "training step": step,
    }
    subjects |= {name: functools.partial(COUNTERS[name][0], subject) for name in TIMED}
    return comparisons, interleave(subjects, rounds)


# Report.


def disagreement_table(comparisons: Sequence[Disagreement]) -> Table:
    """Return a table with one row per count that differs from ours."""
    table = Table(title="Counts that differ, and why", title_justify="left", title_style="bold", header_style="bold")
    for title in ("Network", "Counter", "Count", "Ours", "Difference", "Causes"):
        table.add_column(title, justify="left" if title in ("Network", "Counter", "Causes") else "right")
    previous = ""
    for d in comparisons:
        if d.count == d.ours:
            continue
        # The rows of a network form a section, whose first row names it.
        shown = ""
        if d.network != previous:
            table.add_section()
            shown = d.network
        causes = [f"{name} {amount:+,}" for name, amount in d.causes.items()]
        if d.unexplained:
            causes.append(f"[bold red]UNEXPLAINED {d.unexplained:+,}[/]")
        table.add_row(shown, d.counter, f"{d.count:,}", f"{d.ours:,}", f"{d.count - d.ours:+,}", "; ".join(causes))
        previous = d.network
    return table


def summary(comparisons: Sequence[Disagreement], times: Times) -> list[dict[str, Any]]:
    """Return one row per counter: how often it agrees, how much it differs, and its time over all networks.

    Args:
        comparisons: Comparisons of all networks.
        times: Milliseconds of every round, by network and counter.
    """
    ours = _totals(times, "ours")
    rows: list[dict[str, Any]] = [{"name": "cnnbench", **_time_row(times, "ours", ours)}]
    rows.append({"name": "cnnbench, training too", **_time_row(times, "ours, training", ours)})
    rows.append({"name": "(a real training step of one image)", **_time_row(times, "training step", ours)})
    # A dict keeps the order of the names and drops repetitions.
    for name in dict.fromkeys(d.counter for d in comparisons):
        mine = [d for d in comparisons if d.counter == name]
        # A count in FLOPs is equal if it is exactly twice ours.
        row = {
            "name": name,
            "networks": len(mine),
            "equal": sum(d.count - d.causes.get("factor 2", 0) == d.ours for d in mine),
            "unexplained": sum(d.unexplained != 0 for d in mine),
            "causes": _causes_in_percent(mine),
        }
        # Published figures and the shapes of calls are not timed.
        if all(name in of_network for of_network in times.values()):
            row |= _time_row(times, name, ours)
        rows.append(row)
    return rows


def _causes_in_percent(comparisons: Sequence[Disagreement]) -> dict[str, dict[str, Any]]:
    """Return the number of networks that each cause affects, and its largest amount in per cent of our count."""
    percent: dict[str, list[float]] = {}
    for d in comparisons:
        for cause, amount in d.causes.items():
            unit = d.ours
            # A counter with the cause "factor 2" counts FLOPs, 2 per MAC. Its other causes are amounts of FLOPs too, so
            # they are given in per cent of our count in FLOPs.
            if "factor 2" in d.causes and cause != "factor 2":
                unit = 2 * d.ours
            percent.setdefault(cause, []).append(100 * amount / unit)
    return {cause: {"networks": len(shares), "most": max(shares, key=abs)} for cause, shares in percent.items()}


def _totals(times: Times, name: str) -> list[float]:
    """Return the milliseconds that one counter takes for all networks together, one value per round."""
    of_networks = [of_network[name] for of_network in times.values()]
    # The first rounds of all networks add up to the first total, and so on.
    return [sum(round_ms) for round_ms in zip(*of_networks, strict=True)]


def _time_row(times: Times, name: str, ours: Sequence[float]) -> dict[str, Any]:
    """Return the time of a counter for all networks together, and its ratio to our total times."""
    total = _totals(times, name)
    return {"total_ms_median": statistics.median(total), "times_ours": ratio(total, ours)}


LETTERS = {
    "factor 2": "x 2",
    "bias": "b",
    "normalisation": "n",
    "activation": "a",
    "pooling": "p",
    "element-wise": "e",
    "counted twice": "t",
    "missing functional": "f",
    "one position for all": "o",
    "transposed by outputs": "v",
    "auxiliary heads": "h",
    "grouped gradient": "g",
}
"""Short symbols of the causes for the table of networks."""


def markdown(document: Mapping[str, Any]) -> str:
    """Return the tables of docs/counting.md in Markdown, from the document that the audit writes."""
    lines = [
        "| Counter | Equal | Differs by (largest share in one network; networks) | Unexplained | Time | of ours |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in document["rows"]:
        equal = time = factor = ""
        if "networks" in row:
            equal = f"{row['equal']} of {row['networks']}"
        if "total_ms_median" in row:
            time = f"{row['total_ms_median'] / 1000:.2f} s"
            factor = f"x {row['times_ours']['median']:.2f}"
        causes = [f"{cause} ({c['most']:+,.4g} %; {c['networks']})" for cause, c in row.get("causes", {}).items()]
        unexplained = row.get("unexplained", "")
        lines.append(f"| {row['name']} | {equal} | {', '.join(causes)} | {unexplained} | {time} | {factor} |")
    legend = ", ".join(f"{letter} {cause}" for cause, letter in LETTERS.items())
    lines += ["", f"Causes: {legend}. A figure without letters is equal to the last digit.", ""]
    lines += _network_lines(document["comparisons"])
    return "\n".join(lines) + "\n"


def _network_lines(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of networks, with a column for each counter."""
    inference = ("FlopCounterMode", "ptflops", "torchinfo", "fvcore")
    training = ("FlopCounterMode, training", "published parameters")
    by_network: dict[str, dict[str, Mapping[str, Any]]] = {}
    for d in comparisons:
        by_network.setdefault(d["network"], {})[d["counter"]] = d
    lines = [f"| Network | MACs | {' | '.join(inference)} | Training MACs | {' | '.join(training)} |"]
    lines.append("| --- | ---: |" + " --- |" * 4 + " ---: | --- | --- |")
    for network, mine in by_network.items():
        macs, train_macs = mine["FlopCounterMode"]["ours"], mine["FlopCounterMode, training"]["ours"]
        cells = [network, f"{macs:,}", *(_cell(mine.get(name)) for name in inference)]
        cells += [f"{train_macs:,}", *(_cell(mine.get(name)) for name in training)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(d: Mapping[str, Any] | None) -> str:
    """Return a cell for the count of another counter: ``equal``, or the difference in per cent and its causes."""
    if d is None:
        return ""
    # The difference beyond the plain conversion of MACs to FLOPs.
    rest = d["count"] - d["ours"] - d["causes"].get("factor 2", 0)
    unit = d["ours"]
    if "factor 2" in d["causes"]:
        unit *= 2
    percent = 100 * rest / unit
    words = []
    # A smaller difference is shown with its first digit, so that no difference reads as 0.
    if abs(percent) >= 0.01:
        words.append(f"{percent:+.2f} %")
    elif rest:
        words.append(f"{percent:+.1g} %")
    words += [LETTERS[cause] for cause in d["causes"]]
    if d["count"] - d["ours"] != sum(d["causes"].values()):
        words.append("UNEXPLAINED")
    return " ".join(words) or "equal"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the audit and return its exit code, which is 1 if a difference is unexplained."""
    parser = argparse.ArgumentParser(prog="python -m cnnbench.verification.audit", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timing (default: 3)")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="instead of the zoo and 29 of torchvision")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        raise UserError(f"rounds {options.rounds} must be at least 1")
    # Messages of the other counters would stand between the lines of the audit.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    names = options.models or [*all_models(), *(f"torchvision:{name}" for name in TORCHVISION)]
    # Where the output is no terminal, rich would take a line of 80 characters, in which the table does not fit.
    console = Console(width=None if sys.stdout.isatty() else 170)
    comparisons: list[Disagreement] = []
    times: dict[str, dict[str, list[float]]] = {}
    for name in names:
        network = get_network(name)
        print(f"{name} ...", file=sys.stderr, flush=True)
        with contextlib.redirect_stdout(io.StringIO()):  # ptflops prints messages
            of_network, times[name] = audit(network, options.rounds)
        comparisons += of_network
    rows = summary(comparisons, times)
    console.print(disagreement_table(comparisons))
    return _conclude(comparisons, times, rows)


def _conclude(comparisons: Sequence[Disagreement], times: Times, rows: list[dict[str, Any]]) -> int:
    """Print the verdicts, write the results and return the exit code."""
    rival = _fastest_that_is_right(rows)
    factor = rival["times_ours"]["median"]
    steps = {name: ratio(t["ours, training"], t["training step"]) for name, t in times.items()}
    dearer = [name for name, of_step in steps.items() if of_step["median"] >= 1]
    unexplained = [d for d in comparisons if d.unexplained]
    goals = {
        "every difference explained": not unexplained,
        f"inference count no slower than {rival['name']}": factor >= 1,
        "training count cheaper than a training step": not dearer,
    }
    differences = sum(d.count != d.ours for d in comparisons)
    print(f"networks: {len(times)}; differences: {differences}; unexplained: {len(unexplained)}")
    print(f"the fastest other counter that is right, {rival['name']}, takes {factor:.2f} times as long as ours")
    total = ratio(_totals(times, "ours, training"), _totals(times, "training step"))["median"]
    print(f"the training count of all takes {total:.2f} times as long as a training step of one image of all")
    for name in dearer:
        factor = steps[name]["median"]
        print(f"the training count of {name} takes {factor:.2f} times as long as a training step of one image")
    ratios = {f"{row['name']} / cnnbench": row["times_ours"] for row in rows[1:] if "times_ours" in row}
    ratios |= {f"training count / training step, {name}": of_step for name, of_step in steps.items()}
    medians = {}
    for name, of_network in times.items():
        medians[name] = {counter: round(statistics.median(values), 2) for counter, values in of_network.items()}
    path = write_race("audit", rows, ratios, goals, median_ms=medians, comparisons=[vars(d) for d in comparisons])
    print(markdown(json.loads(path.read_text(encoding="utf-8"))))
    print(f"written: {path}")
    for d in unexplained:
        print(f"unexplained: {d.counter} on {d.network}: {d.unexplained:+,}", file=sys.stderr)
    return 1 if unexplained else 0


def _fastest_that_is_right(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the fastest inference counter that differs from ours at most by counting FLOPs.

    Only the time of such a counter is a fair comparison.
    """
    exact = []
    for row in rows:
        is_timed = "causes" in row and "times_ours" in row
        if is_timed and set(row["causes"]) <= {"factor 2"} and "training" not in row["name"]:
            exact.append(row)
    return min(exact, key=lambda row: row["times_ours"]["median"])


if __name__ == "__main__":
    run("audit", main)
