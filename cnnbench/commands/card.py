"""The command `cnnbench card`: write a model card for each trained network of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cnnbench.console import note, out_json
from cnnbench.options import option

if TYPE_CHECKING:
    from cnnbench.report.trained import Trained

EXAMPLE = "results/runs/ResNet18-CIFAR10/20260101-120000"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a model card: accuracies, mistakes, costs, data, training, limits, and how to load the weights."""

    run: Path = option(
        "Run folder of `fit` or `bench`, record file, or checkpoint in a run folder.", positional=True, metavar="RUN"
    )
    out: Path | None = option(
        "Folder of the cards (default: the run folder, for several cards its folder cards; else results/cards).",
        default=None,
        metavar="DIR",
    )
    json: bool = option("Print the paths of the cards as one JSON document on stdout.", default=False)


def run(options: Options) -> int:
    """Write the cards and name them; return 0."""
    from cnnbench.report import card, trained

    networks = trained.find_trained(options.run)
    paths = card.write_cards(networks, options.out or _default_folder(networks))
    for path in paths:
        note(f"card: {path}")
    if options.json:
        out_json({"cards": [str(path) for path in paths]})
    return 0


def _default_folder(networks: Sequence[Trained]) -> Path:
    """Return the run folder, or its folder ``cards`` for several networks; ``results/cards`` without a run folder."""
    folder = networks[0].folder
    if folder is None:
        return Path("results/cards")
    return folder if len(networks) == 1 else folder / "cards"
