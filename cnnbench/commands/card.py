"""The command `cnnbench card`: write a model card for each trained network of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cnnbench.console import note, out_json
from cnnbench.options import option

EXAMPLE = "results/runs/ResNet18-CIFAR10/20260101-120000"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a model card: accuracies, mistakes, costs, data, training, limits, and how to load the weights."""

    run: Path = option(
        "Run folder of `fit` or `bench`, record file, or checkpoint in a run folder.", positional=True, metavar="RUN"
    )
    out: Path | None = option(
        "Folder of the cards (default: the run folder, else results/cards).", default=None, metavar="DIR"
    )
    json: bool = option("Print the paths of the cards as one JSON document on stdout.", default=False)


def run(options: Options) -> int:
    """Write the cards and name them; return 0."""
    from cnnbench.report.card import write_cards
    from cnnbench.report.trained import find_trained

    networks = find_trained(options.run)
    folder = options.out or networks[0].folder or Path("results/cards")
    paths = write_cards(networks, folder)
    for path in paths:
        note(f"card: {path}")
    if options.json:
        out_json({"cards": [str(path) for path in paths]})
    return 0
