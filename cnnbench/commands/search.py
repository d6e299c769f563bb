"""The command `cnnbench search`: find the settings of a training by validation accuracy, on Optuna."""

from __future__ import annotations

import importlib.util
import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from cnnbench.console import note, out, out_json, stdout_kept
from cnnbench.errors import Stopped, UserError
from cnnbench.options import config_option, option

EXAMPLE = "--model LeNet5 --data MNIST --trials 20 --epochs 2"
ROOT = Path("results/search")
"""Folder for searches that name none."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Search for the settings of a training by validation accuracy; the test set is never looked at."""

    EXCLUSIVE: ClassVar = (("base", "model"),)
    """Groups of options that exclude each other: one of them on the command line overrides all of them in a file."""

    config: tuple[Path, ...] | None = config_option()
    model: str | None = option("Network: a name of `cnnbench list`.", default=None, metavar="NAME", names="models")
    data: str | None = option(
        "Data set (default: that of --base, else CIFAR10).", default=None, metavar="NAME", names="data"
    )
    base: Path | None = option(
        "Configuration of `cnnbench fit`, in place of --model: its settings, seed and precision hold unless the space "
        "or an option has them; its number of epochs does not.",
        default=None,
        metavar="FILE",
    )
    space: dict[str, Any] | None = option(
        "What to search, as YAML: lists of choices, or tables with low, high and log, such as "
        "'{model.learning_rate: {low: 0.001, high: 0.1, log: true}, data.batch_size: [32, 64]}' "
        "(default: learning rate, warm-up and label smoothing).",
        default=None,
        metavar="TABLE",
    )
    trials: int = option("Number of trials in all, with those of before.", default=20, least=1)
    epochs: int = option("Epochs of each trial; a trial that is worse than most may end earlier.", default=5, least=1)
    seed: int | None = option(
        "Seed of the trials and of the sampler (default: that of --base, else 0).",
        default=None,
        least=0,
        most=2**32 - 1,
        metavar="N",
    )
    device: str = option("Device: auto, cpu, cuda, cuda:N or mps.", default="auto")
    precision: str | None = option(
        "Number format: auto, 32-true, bf16-mixed or 16-mixed (default: that of --base, else auto).", default=None
    )
    data_dir: str | None = option(
        "Folder of the data (default: CNNBENCH_DATA, else data).", default=None, metavar="DIR"
    )
    out: Path | None = option(
        "Folder of the search (default: a new one in results/search); a search in it goes on.",
        default=None,
        metavar="DIR",
    )
    json: bool = option("Print one JSON document on stdout.", default=False)

    def __post_init__(self) -> None:
        if self.base is not None and self.model is not None:
            raise UserError("--base and --model exclude each other; give one")


def run(options: Options) -> int:
    """Run the trials of a search and print the best; return 1 if every trial failed."""
    # find_spec finds out whether the package is installed without importing it.
    if importlib.util.find_spec("optuna") is None:
        raise UserError("search needs the package optuna, which is not installed; pip install 'cnnbench[search]'")
    from cnnbench.benchmark.search import BEST_FILE, PLAN_FILE, Search, load_search, plan_of

    plan = plan_of(options)
    folder = options.out or ROOT / datetime.now().strftime("%Y%m%d-%H%M%S")
    if (folder / PLAN_FILE).exists() and load_search(folder) != plan:
        raise UserError(f"'{folder}' holds another search; give its own options to go on with it, or another --out")
    try:
        with stdout_kept():
            search = Search(plan, folder, note)
            best = search.run(options.trials)
    except Stopped as stop:
        # Without a folder the same command starts another search. The folder may be named in a file.
        stop.goes_on = options.out is not None
        if (folder / PLAN_FILE).exists():
            stop.hint = f"go on with the same command and --out {shlex.quote(str(folder))}"
        raise
    if options.json:
        out_json({"folder": str(folder), "trials": [_row(record) for record in search.records]})
    elif best is not None:
        share, name = best.measures["val_accuracy"], best.config["recipe"]
        out(f"best of {len(search.records)} trials: {name}, validation accuracy {share:.2%}, with")
        for name, value in best.config["values"].items():
            out(f"  {name}: {value}")
        out(f"train it and test it: cnnbench fit --config {shlex.quote(str(folder / BEST_FILE))}")
    if best is None:
        note("every trial failed; the records in the folder say why")
        return 1
    return 0


def _row(record: Any) -> dict[str, Any]:
    """Return the values and the outcome of a trial for the JSON document."""
    outcome = "pruned" if record.config["pruned"] else record.status
    return {
        "trial": record.config["recipe"],
        "values": record.config["values"],
        "outcome": outcome,
        "val_accuracy": record.measures.get("val_accuracy"),
        "reason": record.reason,
    }
