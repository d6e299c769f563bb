"""A benchmark in W&B: one group with a run per cell and one run with the comparison, all made from records."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import netrc
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from PIL import Image

from cnnbench.console import note
from cnnbench.errors import UserError
from cnnbench.files import write_text
from cnnbench.measures import figures
from cnnbench.plots.drawing import plain_text
from cnnbench.record import Record
from cnnbench.report.confusion_pictures import MatrixPainter
from cnnbench.report.outputs import Report
from cnnbench.report.pictures import Picture, comparisons, failure, matrix_picture
from cnnbench.text import printable

Mode = Literal["off", "offline", "online"]
PROJECT = "cnnbench"
LOGGED_FILE = Path("wandb") / "logged.txt"
"""File in the run folder that lists the records that have been logged."""
LONGEST_NAME = 128
"""Largest number of characters in the name of a run or group that W&B accepts."""


def _wandb() -> Any:
    """Return the package wandb, which is imported when it is used, because a machine may lack it."""
    import wandb

    return wandb


def has_key() -> bool:
    """Return whether the environment or the netrc file has a W&B key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        # `wandb login` stores its key in this file, which is ~/.netrc unless NETRC names another.
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def resolve_mode(asked: Mode, folder: Path) -> Mode:
    """Return the mode to log in: offline instead of online if no key is available.

    A run that is logged offline is announced in one line, with the command that uploads it later.

    Args:
        asked: Mode that the user asked for.
        folder: Folder of the benchmark, in which W&B puts its runs.

    Raises:
        UserError: Logging was asked for and wandb is not installed.
    """
    # `find_spec` finds out whether the package is installed without importing it.
    if asked != "off" and importlib.util.find_spec("wandb") is None:
        raise UserError(f"--wandb {asked} needs the package wandb, which is not installed; install it, or leave it out")
    if asked == "online" and not has_key():
        note(f"W&B: no key (WANDB_API_KEY or `wandb login`), so logging offline; {_upload(folder)}")
        return "offline"
    if asked == "offline":
        note(f"W&B: logging offline; {_upload(folder)}")
    return asked


def _upload(folder: Path) -> str:
    """Return words with the command that uploads the offline runs of a folder."""
    # The star is left out of the quotes, so that the shell still finds all runs.
    return f"upload later with: wandb sync {shlex.quote(str(folder))}/wandb/offline-run-*"


class Tracker:
    """A writer of records to W&B.

    Args:
        mode: Mode of W&B, ``online`` or ``offline``.
        folder: Run folder of the benchmark; its subfolder ``wandb`` holds the offline runs.
    """

    def __init__(self, mode: Literal["offline", "online"], folder: Path) -> None:
        self._mode = mode
        self._folder = folder

    def _start(self, name: str, job_type: str, config: dict[str, Any]) -> Any:
        """Start a run of W&B; if no online run can be started, this run and all later ones are offline."""
        wandb = _wandb()
        try:
            return self._init(name, job_type, config)
        except wandb.errors.Error as error:
            if self._mode == "offline":
                raise
            reason = " ".join(str(error).split())
            note(f"W&B: no online run ({reason}), so logging offline; {_upload(self._folder)}")
            self._mode = "offline"
            return self._init(name, job_type, config)

    def _init(self, name: str, job_type: str, config: dict[str, Any]) -> Any:
        """Start a run of W&B in the present mode."""
        wandb = _wandb()
        # A run that an error left open is finished first (`reinit`), since W&B would otherwise return that run again.
        return wandb.init(
            project=PROJECT,
            group=run_name(self._folder.resolve().name),
            name=run_name(name),
            job_type=job_type,
            config=config,
            dir=str(self._folder.resolve()),  # absolute, since W&B's own process has another working directory
            mode=self._mode,
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )

    def log_cell(self, record: Record) -> None:
        """Log a record once: settings, learning curve, figures as summary, confusion matrix as plot and image.

        The run folder keeps a list of the logged records, so that a resumed benchmark logs only those that are missing.
        """
        # A cell that was measured again has another time of creation, so it is logged again.
        mark = printable(f"{record.key} {record.created}")
        path = self._folder / LOGGED_FILE
        logged: list[str] = []
        if path.is_file():
            logged = path.read_text(encoding="utf-8").splitlines()
        if mark not in logged:
            self._log_cell(record)
            # The mark is written last, so that a record whose logging was interrupted is logged again.
            write_text(path, "\n".join([*logged, mark]) + "\n")

    def _log_cell(self, record: Record) -> None:
        """Log a record as a run of its own."""
        config: dict[str, Any] = {"model": record.model, "seed": record.seed, "data": record.data, **record.config}
        config |= {key: record.training.get(key) for key in ("recipe", "peak_lr")}
        name = record.key
        if record.data["synthetic"]:
            name += " (synthetic)"
        run = self._start(name, "cell", config | {"environment": record.environment})
        for point in record.training.get("curve", ()):
            values = dict(point)
            # The training step is logged as a value of its own, beside W&B's count of log calls.
            values["trainer/step"] = values.pop("step")
            run.log(values)
        if record.confusion_matrix is not None:
            _log_matrix(run, record, record.confusion_matrix)
        run.summary.update({key: record.measures[key] for key in figures() if key in record.measures})
        # The learning curve is a list, and has been logged point by point.
        run.summary.update({k: v for k, v in record.training.items() if not isinstance(v, (dict, list))})
        run.summary.update({"status": record.status, "synthetic": record.data["synthetic"]})
        # W&B shows a run with another exit code than 0 as failed.
        run.finish(exit_code=0 if record.status == "ok" else 1)

    def log_comparison(self, records: Sequence[Record]) -> None:
        """Log the table of all records and the pictures that compare networks."""
        wandb = _wandb()
        report = Report(records)
        run = self._start("comparison", "comparison", {"cells": [r.key for r in records], "facts": dict(report.facts)})
        keys = [key for key in figures() if any(key in r.measures for r in records)]
        rows = []
        for r in records:
            rows.append([r.model, r.data["label"], r.seed, r.status, *map(r.measures.get, keys)])
        run.log({"comparison": wandb.Table(columns=["model", "data", "seed", "status", *keys], data=rows)})
        for picture in comparisons(report.records):
            _log_picture(run, picture.name, picture)
        run.finish()


def run_name(name: str) -> str:
    """Return a name that W&B accepts for a run: printable, and if it is too long, cut and with its hash at the end."""
    name = printable(name)
    if len(name) <= LONGEST_NAME:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"{name[: LONGEST_NAME - len(mark) - 1]}-{mark}"


def _log_matrix(run: Any, record: Record, matrix: Sequence[Sequence[int]]) -> None:
    """Log the confusion matrix of a record as a plot and as an image."""
    wandb = _wandb()
    names = record.data["class_names"]
    counts = []
    for i, row in enumerate(matrix):
        for j, images in enumerate(row):
            counts.append([names[i], names[j], images])
    # W&B's function for confusion matrices takes single predictions; its chart is filled with counts here.
    columns = ["Actual", "Predicted", "nPredictions"]
    table = wandb.Table(columns=columns, data=counts)
    fields = {column: column for column in columns}
    plot = wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": record.key})
    run.log({"confusion_matrix": plot})
    _log_picture(run, "confusion_matrix_image", matrix_picture(record.key, record, MatrixPainter()))


def _log_picture(run: Any, key: str, picture: Picture) -> None:
    """Draw a picture and log it; a picture that cannot be drawn is left out, with a line on stderr."""
    wandb = _wandb()
    try:
        with plain_text():
            sheet = picture.draw()
            content = None if sheet is None else sheet.png()
    except Exception as error:  # an error in one picture must not cost the rest of the run
        note(f"W&B: {failure(picture, error)}")
        return
    if content is not None:
        # W&B takes an opened image or a path, but not the bytes of a file.
        run.log({key: wandb.Image(Image.open(io.BytesIO(content)))})
