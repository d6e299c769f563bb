"""The same run in W&B: one group, a run per cell and one with the comparison, all made from records."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from cnnbench.console import note
from cnnbench.errors import UserError
from cnnbench.files import write_text
from cnnbench.measures import figures
from cnnbench.plots.drawing import plain_text
from cnnbench.record import Record
from cnnbench.report.matrices import MatrixPainter
from cnnbench.report.outputs import Report
from cnnbench.report.pictures import Picture, comparisons, failure, matrix_picture
from cnnbench.text import printable

Mode = Literal["off", "offline", "online"]
PROJECT = "cnnbench"
LOGGED_FILE = Path("wandb") / "logged.txt"
LONGEST_NAME = 128
"""Characters of the name of a run or group that W&B takes."""


def has_key() -> bool:
    """Whether a W&B key is to be found in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def resolve_mode(asked: Mode, folder: Path) -> Mode:
    """Goes offline where there is no key, and says so in one line with the command that uploads the runs later.

    Args:
        asked: What the user wants.
        folder: Where the runs will lie.

    Raises:
        UserError: wandb is not installed.
    """
    if asked != "off" and importlib.util.find_spec("wandb") is None:
        raise UserError(f"--wandb {asked} needs the package wandb, which is not installed; install it, or leave it out")
    if asked == "online" and not has_key():
        note(f"W&B: no key (WANDB_API_KEY or `wandb login`), so logging offline; {_upload(folder)}")
        return "offline"
    if asked == "offline":
        note(f"W&B: logging offline; {_upload(folder)}")
    return asked


def _upload(folder: Path) -> str:
    return f"upload later with: wandb sync {folder}/wandb/offline-run-*"


class Tracker:
    """Logs records to W&B.

    Args:
        mode: ``online`` or ``offline``.
        folder: Run folder; offline runs lie in its ``wandb/``.
    """

    def __init__(self, mode: Literal["offline", "online"], folder: Path) -> None:
        self._mode = mode
        self._folder = folder

    def _start(self, name: str, job_type: str, config: dict[str, Any]) -> Any:
        """Starts a run; where the server cannot be reached, this and all later runs are offline."""
        import wandb

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
        import wandb

        return wandb.init(
            project=PROJECT,
            group=run_name(self._folder.resolve().name),
            name=run_name(name),
            job_type=job_type,
            config=config,
            dir=str(self._folder.resolve()),  # the process that writes has a working directory of its own
            mode=self._mode,
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )

    def log_cell(self, record: Record) -> None:
        """Logs a cell once: configuration, learning curve, figures as the summary, confusion as image and table.

        Which records have been logged is kept in the folder, so that a resumed run logs what an interruption left out.
        """
        mark = printable(f"{record.key} {record.created}")
        path = self._folder / LOGGED_FILE
        logged = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if mark not in logged:
            self._log_cell(record)
            write_text(path, "\n".join([*logged, mark]) + "\n")

    def _log_cell(self, record: Record) -> None:
        import wandb

        config: dict[str, Any] = {"model": record.model, "seed": record.seed, "data": record.data, **record.config}
        config |= {key: record.training.get(key) for key in ("recipe", "peak_lr")}
        name = record.key + (" (synthetic)" if record.data["synthetic"] else "")
        run = self._start(name, "cell", config | {"environment": record.environment})
        for point in record.training.get("curve", ()):
            run.log({k: v for k, v in point.items() if k != "step"} | {"trainer/step": point["step"]})
        if record.confusion_matrix is not None:
            names = record.data["class_names"]
            counts = [
                [names[i], names[j], n] for i, row in enumerate(record.confusion_matrix) for j, n in enumerate(row)
            ]
            columns = ["Actual", "Predicted", "nPredictions"]
            table = wandb.Table(columns=columns, data=counts)
            fields = {column: column for column in columns}
            plot = wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": record.key})
            run.log({"confusion_matrix": plot})
            _log_picture(run, "confusion_matrix_image", matrix_picture(record.key, record, MatrixPainter()))
        run.summary.update({key: record.measures[key] for key in figures() if key in record.measures})
        run.summary.update({k: v for k, v in record.training.items() if not isinstance(v, (dict, list))})
        run.summary.update({"status": record.status, "synthetic": record.data["synthetic"]})
        run.finish(exit_code=0 if record.status == "ok" else 1)

    def log_comparison(self, records: Sequence[Record]) -> None:
        """Logs the table of all cells and the pictures that compare them."""
        import wandb

        report = Report(records)
        run = self._start("comparison", "comparison", {"cells": [r.key for r in records], "facts": dict(report.facts)})
        keys = [key for key in figures() if any(key in r.measures for r in records)]
        rows = [[r.model, r.data["label"], r.seed, r.status, *(r.measures.get(k) for k in keys)] for r in records]
        run.log({"comparison": wandb.Table(columns=["model", "data", "seed", "status", *keys], data=rows)})
        for picture in comparisons(report.records):
            _log_picture(run, picture.name, picture)
        run.finish()


def run_name(name: str) -> str:
    """Return a name that W&B takes for a run: printable, and a long one is cut and ends in its hash."""
    name = printable(name)
    if len(name) <= LONGEST_NAME:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"{name[: LONGEST_NAME - len(mark) - 1]}-{mark}"


def _log_picture(run: Any, key: str, picture: Picture) -> None:
    """Draw a picture and log it; one that cannot be drawn is left out, with a line on stderr."""
    import wandb
    from PIL import Image

    try:
        with plain_text():
            sheet = picture.draw()
            content = None if sheet is None else sheet.png()
    except Exception as error:  # whatever goes wrong in a picture, the run has everything else
        note(f"W&B: {failure(picture, error)}")
        return
    if content is not None:
        run.log({key: wandb.Image(Image.open(io.BytesIO(content)))})
