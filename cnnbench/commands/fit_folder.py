"""The run folder of ``cnnbench fit``: its name, and its removal when nothing came of the run."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from cnnbench.commands.fit_arguments import NAMING, word_of
from cnnbench.console import is_first_process
from cnnbench.errors import UserError
from cnnbench.files import safe_name
from cnnbench.network import External


def class_name(config: Any) -> str:
    """Return the name of the class of a network or data set, without its module."""
    return str(config.class_path).rsplit(".", 1)[-1]


def network_name(config: Any) -> str:
    """Return the name of the network; a network from outside the zoo has the name that the user wrote."""
    return str(config.init_args.name) if class_name(config) == External.__name__ else class_name(config)


def _word_of(config: Any) -> str:
    """Return the word for a network or data set in the name of a run folder."""
    name = class_name(config)
    return word_of(NAMING[name], config.init_args[NAMING[name]]) if name in NAMING else name


def make_run_folder(config: Any) -> Path:
    """Create the folder ``OUT/<network>-<data>/<time>`` and return it; only the first of several processes creates it.

    A run that was named with ``--run`` has the folder ``OUT/<name>``, which a training that goes on has again.

    Raises:
        UserError: All names for this second are taken.
    """
    name = getattr(config, "run", None)
    if name:
        folder = Path(config.out) / name
        if is_first_process():
            folder.mkdir(parents=True, exist_ok=True)
            _keep_metrics(folder / "metrics.csv")
        return folder
    name = f"{_word_of(config.model)}-{_word_of(config.data)}"
    base = Path(config.out) / safe_name(name)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    # A run that starts in the same second as another one gets a number behind the time.
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = base / f"{stamp}{suffix}"
        if not is_first_process():
            return folder
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise UserError(f"no free name for a run folder in '{base}'; choose another --out")


def _keep_metrics(path: Path) -> None:
    """Give the metrics of the first part of a training another name, since Lightning's logger starts its file anew."""
    if path.exists():
        numbers = (path.with_name(f"metrics-{number}.csv") for number in itertools.count(1))
        path.rename(next(name for name in numbers if not name.exists()))


def remove_run(folder: Path) -> None:
    """Remove a run folder that this command has made, and the folders above it if they are then empty.

    A folder with a checkpoint or a record stays: it holds a training that an earlier command has begun.
    """
    if not is_first_process() or any(folder.rglob("*.ckpt")) or any(folder.glob("records/*.json")):
        return
    shutil.rmtree(folder, ignore_errors=True)
    # These are <network>-<data>, the folder of --out, and the one above it: results/runs and results by default.
    for parent in list(folder.parents)[:3]:
        with contextlib.suppress(OSError):  # raised if the folder is not empty
            parent.rmdir()


def remove_if_empty(folder: Path) -> None:
    """Remove a run folder if there is no file in it, as after a trial run (fast_dev_run)."""
    if not any(path.is_file() for path in folder.rglob("*")):
        remove_run(folder)
