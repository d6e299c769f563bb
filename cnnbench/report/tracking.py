"""Runs of W&B that cannot hurt what they log.

Runs are recorded on disk, which needs no server, and `cnnbench.report.uploading` uploads them meanwhile. An error of
W&B's client ends the logging with one line, and the command goes on. The id of a run follows from its folder and its
cell, so a cell or a training that is interrupted and resumed continues its run. Nothing is logged to it twice.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from cnnbench.console import note
from cnnbench.errors import UserError
from cnnbench.files import reason
from cnnbench.predictions import Examples
from cnnbench.record import Record
from cnnbench.report import wandb_panels
from cnnbench.report.pictures import matrix_names
from cnnbench.report.uploading import Uploader, ask, waiting
from cnnbench.text import printable

Mode = Literal["off", "offline", "online"]
PROJECT = "cnnbench"
"""Project if neither an option nor ``WANDB_PROJECT`` names one."""
LONGEST_NAME = 128
"""Largest number of characters in the name of a run or group that W&B accepts."""
STATE_FILE = "runs.json"
"""File in W&B's folder that lists its runs: their ids and what has been logged to them."""
COMPARISON = "comparison"
"""Name and kind of the run that compares the cells of a benchmark."""
WAIT_S, STOPPED_WAIT_S = 60.0, 5.0
"""Longest time to wait for uploads at the end of a command, and after a signal."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where runs are logged, and the words by which they are found. What is not set comes from W&B's variables.

    Attributes:
        project: Project; by default that of ``WANDB_PROJECT``, else `PROJECT`.
        entity: User or team; by default that of ``WANDB_ENTITY``, else the user's default one.
        group: Group of runs; by default that of ``WANDB_RUN_GROUP``.
        tags: Tags of every run; by default those of ``WANDB_TAGS``.
        notes: Text about every run; by default that of ``WANDB_NOTES``.
    """

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None

    def settled(self) -> Target:
        """Return the target with what the environment says in the place of what is not set."""
        of = os.environ.get
        tags = self.tags or tuple(tag.strip() for tag in of("WANDB_TAGS", "").split(",") if tag.strip())
        return Target(
            project=self.project or of("WANDB_PROJECT") or PROJECT,
            entity=self.entity or of("WANDB_ENTITY") or None,
            group=self.group or of("WANDB_RUN_GROUP") or None,
            tags=tags,
            notes=self.notes or of("WANDB_NOTES") or None,
        )


@dataclass(frozen=True)
class Connection:
    """How and where runs are logged.

    Attributes:
        mode: Mode of logging.
        target: Project and words of the runs.
        app: Address of the server's pages; empty if runs are not uploaded.
    """

    mode: Mode
    target: Target = Target(project=PROJECT)
    app: str = ""

    def page(self, *parts: str) -> str:
        """Return the address of a page of the project; empty if runs are not uploaded.

        Args:
            parts: Parts of the address behind the project, such as ``runs`` and the id of a run.
        """
        if not self.app or not self.target.entity:
            return ""
        path = [self.target.entity, str(self.target.project), *parts]
        return "/".join([self.app.rstrip("/"), *(quote(part, safe="") for part in path)])


def connect(asked: Mode, target: Target | None = None) -> Connection:
    """Return how to log: offline in place of online, with a line that says why, if nobody can log in.

    Args:
        asked: Mode that the user asked for.
        target: Project and words of the runs.

    Raises:
        UserError: Logging was asked for and wandb is not installed.
    """
    if asked == "off":
        return Connection("off")
    # `find_spec` finds out whether the package is installed without importing it.
    if importlib.util.find_spec("wandb") is None:
        raise UserError(f"--wandb {asked} needs the package wandb, which is not installed; install it, or leave it out")
    target = (target or Target()).settled()
    chosen = os.environ.get("WANDB_MODE", "online")
    if chosen == "disabled":
        note("W&B: WANDB_MODE is disabled, so nothing is logged")
        return Connection("off")
    if asked == "offline":
        return Connection("offline", target)
    if chosen in ("offline", "dryrun"):
        note(f"W&B: WANDB_MODE is {chosen}, so logging offline")
        return Connection("offline", target)
    account = ask("account")
    if "error" in account:
        note(f"W&B: {account['error']}, so logging offline")
        return Connection("offline", target)
    entity = target.entity or account["entity"] or None
    return Connection("online", replace(target, entity=entity), account["app"])


@dataclass
class Logged:
    """What is kept on disk about one run of W&B.

    Attributes:
        id: Id of the run.
        name: Name that W&B shows.
        step: Last optimizer step that was logged; -1 if there is none.
        summary: Numbers and texts of the run's summary. W&B replaces the summary of a run that is continued.
        done: What was logged completely, such as the time at which a record was created; empty if nothing was.
        attempt: Number of complete runs of the same cell before this one.
    """

    id: str
    name: str
    step: int = -1
    summary: dict[str, Any] = field(default_factory=dict)
    done: str = ""
    attempt: int = 0


class State:
    """What is kept about the runs of a folder, in the file `STATE_FILE` of its subfolder ``wandb``.

    Args:
        folder: Folder of a benchmark, a training or a report.

    Attributes:
        identity: Text that no other folder has.
        runs: Runs by the name of the cell.
        workspace: Address of the workspace for the runs; empty if there is none.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "wandb" / STATE_FILE
        self.identity = secrets.token_hex(8)
        self.runs: dict[str, Logged] = {}
        self.workspace = ""
        if not self._path.is_file():
            return
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            runs = {str(key): Logged(**values) for key, values in stored["runs"].items()}
            self.identity, self.runs, self.workspace = str(stored["identity"]), runs, str(stored["workspace"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            note(f"W&B: {self._path} cannot be used ({reason(error)}), so logging to new runs")

    def moved_to(self, folder: Path) -> State:
        """Return a state with the same runs for another folder."""
        state = State(folder)
        state.identity, state.runs = self.identity, self.runs
        return state

    def start(self, key: str, name: str) -> Logged:
        """Return the run to log a cell to: a new one, unless an earlier one has not been completed.

        Args:
            key: Name that no other cell of the folder has.
            name: Name that W&B is to show.
        """
        run = self.runs.get(key)
        if run is None or run.done:
            attempt = 0 if run is None else run.attempt + 1
            text = f"{self.identity} {key} {attempt}"
            identity = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
            run = self.runs[key] = Logged(identity, run_name(name), attempt=attempt)
        return run

    def keep(self) -> None:
        """Write the state to the disk.

        This happens at each point of a curve, so the file is replaced as a whole but not flushed.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        runs = {key: vars(run) for key, run in self.runs.items()}
        content = {"identity": self.identity, "workspace": self.workspace, "runs": runs}
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")
        part.replace(self._path)


def run_name(name: str) -> str:
    """Return a name that W&B accepts for a run: printable, and if it is too long, cut and with its hash at the end."""
    name = printable(name)
    if len(name) <= LONGEST_NAME:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"{name[: LONGEST_NAME - len(mark) - 1]}-{mark}"


class Tracker:
    """A recorder of runs in a folder, one at a time. No method raises an error of W&B.

    Args:
        connection: How to log; its mode is not ``off``.
        folder: Folder of a benchmark, a training or a report; its subfolder ``wandb`` holds the runs.
        state: What is known of earlier runs; by default what the folder keeps.
        measured: Whether what is logged is measured meanwhile, so that uploads give way to it.

    Attributes:
        run: Open run of W&B; None if there is none.
    """

    def __init__(
        self, connection: Connection, folder: Path, state: State | None = None, measured: bool = False
    ) -> None:
        self.run: Any = None
        self._connection = connection
        self._folder = folder
        self._uploader = Uploader(folder / "wandb", measured)
        self._state = state
        self._logged: Logged | None = None
        self._seen = -1
        self._failed = False

    @property
    def state(self) -> State:
        """Return what is kept of the runs of the folder, which is read when it is needed first."""
        if self._state is None:
            self._state = State(self._folder)
        return self._state

    def attempt(self, action: Callable[[], Any]) -> None:
        """Do something with W&B; its first error ends the logging with a line."""
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # whatever is wrong with the logging, the work that it logs goes on
            self._failed = True
            note(f"W&B: nothing more is logged ({type(error).__name__}: {reason(error)})")

    def open(self, logged: Logged, job_type: str, config: Mapping[str, Any]) -> None:
        """Start or continue a run, and its upload; a run that is still open is ended.

        Args:
            logged: Run to log to, of `state`.
            job_type: Kind of the run.
            config: Settings of what it logs.
        """
        self.attempt(lambda: self._open(logged, job_type, config))

    def _open(self, logged: Logged, job_type: str, config: Mapping[str, Any]) -> None:
        # Otherwise the client reports on itself to W&B from here, also about runs that stay on this disk.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.state.keep()
        self._logged, self._seen = logged, logged.step
        target = self._connection.target
        self.run = wandb.init(
            project=target.project,
            entity=target.entity,
            group=None if target.group is None else run_name(target.group),
            tags=target.tags or None,
            notes=target.notes,
            id=logged.id,
            name=logged.name,
            job_type=job_type,
            config=dict(config),
            dir=str(self._folder.resolve()),  # absolute, since W&B's own process has another working directory
            mode="offline",
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off"),
        )
        wandb_panels.set_axes(self.run)
        self.run.summary.update(logged.summary)
        if self._connection.mode == "online":
            self._uploader.follow(Path(self.run.dir).parent)

    def add(self, action: Callable[[Any], Any]) -> None:
        """Do something with the open run; nothing if there is none."""
        if self.run is not None:
            self.attempt(lambda: action(self.run))

    def point(self, values: Mapping[str, float]) -> None:
        """Log a point of the curves of the open run, unless the run has its step from an earlier attempt.

        Args:
            values: Values by name, and the optimizer ``step`` at which they were logged.
        """
        logged = self._logged
        if logged is None or values["step"] <= self._seen:
            return
        logged.step = int(values["step"])
        best = wandb_panels.best_values([values], logged.summary)
        logged.summary |= {**values, **best}
        self.add(lambda run: wandb_panels.log_point(run, values))
        self.add(lambda run: run.summary.update(best))
        self.attempt(self.state.keep)

    def shut(self, done: str = "", failed: bool = False) -> None:
        """End the open run, if there is one.

        Args:
            done: What was logged completely; empty if the run is to be continued by the next attempt.
            failed: Whether W&B is to show the run as failed.
        """
        run, self.run = self.run, None
        logged, self._logged = self._logged, None
        if run is None or logged is None:
            return
        self.attempt(lambda: logged.summary.update(wandb_panels.plain_summary(run)))
        self.attempt(lambda: run.finish(exit_code=1 if failed else 0))
        # This is noted last and only if all has gone well, so that what was interrupted is logged again.
        if not self._failed:
            logged.done = done
        self.attempt(self.state.keep)

    def close(self, failed: bool = False, seconds: float = WAIT_S) -> None:
        """End the open run, complete the uploads, and print how to upload what is left.

        Args:
            failed: Whether W&B is to show the open run as failed.
            seconds: Longest time to wait for the uploads.
        """
        self.shut(failed=failed)
        why = "recorded offline"
        if self._connection.mode == "online":
            why = f"not uploaded ({self._uploader.finish(seconds)})"
        left = len(waiting(self._folder / "wandb"))
        if left:
            note(f"W&B: {left} {'run' if left == 1 else 'runs'} {why}; upload with: {self._uploader.command()}")


class CellTracker(Tracker):
    """A recorder of the cells of a benchmark: a run for each, and one that compares them, all in one group.

    Args:
        connection: How to log; its mode is not ``off``.
        folder: Run folder of the benchmark, or the folder of a report.
    """

    def __init__(self, connection: Connection, folder: Path) -> None:
        target = connection.target
        group = target.group or folder.resolve().name
        super().__init__(replace(connection, target=replace(target, group=group)), folder, measured=True)
        page = connection.page("groups", run_name(group))
        if page:
            note(f"W&B: {page}")

    def begin(self, record: Record, key: str = "") -> None:
        """Start the run of a cell.

        Args:
            record: Record of the cell, which may have no figures yet.
            key: Name that no other cell of the folder has; by default that of the cell.
        """
        name = key = key or record.key
        if record.data["synthetic"]:
            name += " (synthetic)"
        self.open(self.state.start(key, name), "cell", wandb_panels.config_of(record))

    def show(self, examples: Examples) -> None:
        """Log mistakes and filters of the network of the open cell."""
        self.add(lambda run: wandb_panels.log_examples(run, examples))

    def end(self, record: Record) -> None:
        """Log what has come out for the open cell, and end its run."""
        self.add(lambda run: wandb_panels.log_record(run, record))
        weights = self._folder / "weights" / f"{record.key}.ckpt"
        if weights.is_file():
            facts = {key: record.measures.get(key) for key in ("test_accuracy", "params")}
            self.add(lambda run: wandb_panels.log_weights(run, weights, facts))
        self.shut(record.created, failed=record.status != "ok")

    def log_all(self, records: Sequence[Record]) -> None:
        """Log every record that has not been logged yet, and the comparison of all of them.

        Args:
            records: Records; several may be of the same cell, as those of several benchmarks.
        """
        for record, name in zip(records, matrix_names(records), strict=True):
            key = name.removeprefix("confusion_")
            before = self.state.runs.get(key)
            if before is not None and before.done == record.created:
                continue
            self.begin(record, key)
            for point in record.training.get("curve", ()):
                self.point(point)
            self.end(record)
        self._log_comparison(records)

    def _log_comparison(self, records: Sequence[Record]) -> None:
        """Log what compares the records, unless that has been done; new records go into the same run."""
        content = " ".join(f"{r.key} {r.created}" for r in records)
        digest = hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:16]
        before = self.state.runs.get(COMPARISON)
        if before is not None:
            if before.done == digest:
                return
            before.done = ""
        self.open(self.state.start(COMPARISON, COMPARISON), COMPARISON, {})
        self.add(lambda run: wandb_panels.log_comparison(run, records))
        self.shut(digest)

    def show_workspace(self) -> None:
        """Print the address of a workspace for the group, which is made if there is none yet.

        Nothing happens where runs are not uploaded, or the package wandb-workspaces is missing.
        """
        target = self._connection.target
        if self._connection.mode != "online" or importlib.util.find_spec("wandb_workspaces") is None:
            return
        if not self.state.workspace:
            answer = ask("workspace", str(target.entity), str(target.project), run_name(str(target.group)))
            if "error" in answer:
                note(f"W&B: no workspace ({answer['error']})")
                return
            self.state.workspace = answer["url"]
            self.attempt(self.state.keep)
        note(f"W&B: {self.state.workspace}")
