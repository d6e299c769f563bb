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

from filelock import FileLock, Timeout

from cnnbench.console import note
from cnnbench.errors import UserError
from cnnbench.files import reason
from cnnbench.predictions import Examples
from cnnbench.record import Record
from cnnbench.report import wandb_panels
from cnnbench.report.pictures import matrix_names
from cnnbench.report.uploading import (
    Uploader,
    ask,
    is_uploaded,
    replace_run,
    set_torn_aside,
    wait_until_written,
    waiting,
)
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
        attempt: Number of runs of the same cell before this one.
        ended: Whether the run was ended by its command, so that W&B's file has all that was logged, and no command
            with another folder has continued it. Of a run that was killed, the last 15 seconds are missing.
    """

    id: str
    name: str
    step: int = -1
    summary: dict[str, Any] = field(default_factory=dict)
    done: str = ""
    attempt: int = 0
    ended: bool = False


class State:
    """What is kept about the runs of a folder, in the file `STATE_FILE` of its subfolder ``wandb``.

    Args:
        folder: Folder of a benchmark, a training or a report.

    Attributes:
        identity: Text that no other folder has.
        runs: Runs by the name of the cell.
        workspace: Address of the workspace for the runs; empty if there is none.
        words: Project, entity, group, tags and notes of the runs, as in `Target`; empty before the first run.
        source: State of another folder, whose runs may be continued in this one; None if there is none.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "wandb" / STATE_FILE
        self.identity = secrets.token_hex(8)
        self.runs: dict[str, Logged] = {}
        self.workspace = ""
        self.words: dict[str, Any] = {}
        self.source: State | None = None
        if not self._path.is_file():
            return
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            runs = {str(key): Logged(**values) for key, values in stored["runs"].items()}
            self.identity, self.runs, self.workspace = str(stored["identity"]), runs, str(stored["workspace"])
            self.words = dict(stored["words"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            note(f"W&B: {self._path} cannot be used ({reason(error)}), so logging to new runs")

    def moved_to(self, folder: Path) -> State:
        """Return a state with the same runs for another folder; itself for the same one."""
        if folder.resolve() == self._path.parent.parent.resolve():
            return self
        state = State(folder)
        state.words, state.source = self.words, self
        state.runs = {key: replace(run) for key, run in self.runs.items()}
        return state

    def completed(self, target: Target) -> Target:
        """Return a target with the group, tags and notes of the earlier runs in the place of those that are not set."""
        return replace(
            target,
            group=target.group or self.words.get("group"),
            tags=target.tags or tuple(self.words.get("tags", ())),
            notes=target.notes or self.words.get("notes"),
        )

    def start(self, key: str, name: str, target: Target, last: int | None = None) -> Logged:
        """Return the run to log to: a new one, unless what is logged goes on exactly where the earlier run has ended.

        Of an earlier run that is replaced, what has not been uploaded yet will not be.

        Args:
            key: Name that no other cell of the folder has.
            name: Name that W&B is to show.
            target: Where the run is logged.
            last: Last optimizer step before the first one that is to be logged; None if everything is logged anew.
        """
        run = self.runs.get(key)
        if run is None or not self._goes_on(run, target, last):
            if run is not None:
                replace_run(self._path.parent, run.id)
            attempt = 0 if run is None else run.attempt + 1
            text = f"{self.identity} {key} {attempt}"
            identity = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
            run = self.runs[key] = Logged(identity, run_name(name), attempt=attempt)
        elif self.source is not None:
            # A second command that starts from the same folder does not go on where the run will have ended.
            self.source.runs[key].ended = False
            self.source.keep()
        return run

    def _goes_on(self, run: Logged, target: Target, last: int | None) -> bool:
        """Return whether a run can be continued; see `start`."""
        if last is None or not run.ended or run.step > last:
            return False
        # An unknown entity is the user's default one.
        entities = {self.words.get("entity"), target.entity} - {None}
        if self.words.get("project") != target.project or len(entities) > 1:
            return False
        # W&B counts the points of a run when they are uploaded, so later ones must not be uploaded before earlier ones.
        folder = self if self.source is None else self.source
        return is_uploaded(folder._path.parent, run.id)

    def keep(self) -> None:
        """Write the state to the disk.

        This happens at each point of a curve, so the file is replaced as a whole but not flushed.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        runs = {key: vars(run) for key, run in self.runs.items()}
        content = {"identity": self.identity, "workspace": self.workspace, "words": self.words, "runs": runs}
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
        logged: What is kept on disk about it.
    """

    def __init__(
        self, connection: Connection, folder: Path, state: State | None = None, measured: bool = False
    ) -> None:
        self.run: Any = None
        self.logged: Logged | None = None
        self._connection = connection
        self._folder = folder
        self._uploader = Uploader(folder / "wandb", measured)
        self._state = state
        self._lock = FileLock(folder / "wandb" / ".lock", timeout=0)
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

    def open(
        self,
        key: str,
        name: str,
        job_type: str,
        config: Mapping[str, Any],
        last: int | None = None,
        identity: str | None = None,
    ) -> None:
        """Start or continue a run, and its upload; a run that is still open is ended.

        Args:
            key: Name that no other run of the folder has.
            name: Name that W&B is to show.
            job_type: Kind of the run.
            config: Settings of what it logs.
            last: Last optimizer step before the first one that is to be logged; None if everything is logged anew.
            identity: Id of the first run with this key, by default one that no other run has.
        """
        if self._owns_folder():
            self.attempt(lambda: self._open(key, name, job_type, config, last, identity))

    def _owns_folder(self) -> bool:
        """Return whether no other command logs to the folder, and keep others from it; a line says if one does."""
        if self._failed or self._lock.is_locked:
            return not self._failed
        try:
            self._folder.joinpath("wandb").mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            self._failed = True
            note(f"W&B: another command logs to '{self._folder / 'wandb'}', so this one does not")
        except OSError as error:
            self._failed = True
            note(f"W&B: nothing is logged ({reason(error)})")
        return not self._failed

    def _open(
        self,
        key: str,
        name: str,
        job_type: str,
        config: Mapping[str, Any],
        last: int | None,
        identity: str | None,
    ) -> None:
        # Otherwise the client reports on itself to W&B from here, also about runs that stay on this disk.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb = wandb_panels.client()
        state, target = self.state, self.state.completed(self._connection.target)
        logged = state.start(key, name, target, last)
        if logged.attempt == 0:
            logged.id = identity or logged.id
        logged.done, logged.ended = "", False
        state.words = {name: getattr(target, name) for name in ("project", "entity", "group", "tags", "notes")}
        state.keep()
        self.logged = logged
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
        """Log a point of the curves of the open run.

        Args:
            values: Values by name, and the optimizer ``step`` at which they were logged.
        """
        logged = self.logged
        if logged is None:
            return
        logged.step = int(values["step"])
        best = wandb_panels.best_values([values], logged.summary)
        named = {name: value for name, value in values.items() if name != "step"}
        logged.summary |= {**named, **best, wandb_panels.STEP: logged.step}
        self.add(lambda run: wandb_panels.log_point(run, values))
        self.add(lambda run: run.summary.update(best))
        self.attempt(self.state.keep)

    def shut(self, done: str = "", failed: bool = False) -> None:
        """End the open run, if there is one.

        Args:
            done: What was logged completely; empty if the next attempt is to log it.
            failed: Whether W&B is to show the run as failed.
        """
        run, self.run = self.run, None
        logged, self.logged = self.logged, None
        if run is None or logged is None:
            return
        self.attempt(lambda: logged.summary.update(wandb_panels.plain_summary(run)))
        self.attempt(lambda: run.finish(exit_code=1 if failed else 0))
        # Otherwise `set_torn_aside` takes it for the recording of a run that was killed.
        self.attempt(lambda: wait_until_written(Path(run.dir).parent))
        # This is noted last and only if all has gone well, so that what was interrupted is logged again.
        if not self._failed:
            logged.done, logged.ended = done, True
        self.attempt(self.state.keep)

    def close(self, failed: bool = False, seconds: float = WAIT_S) -> None:
        """End the open run, complete the uploads, and print how to upload what is left.

        Args:
            failed: Whether W&B is to show the open run as failed.
            seconds: Longest time to wait for the uploads.
        """
        self.shut(failed=failed)
        # After an error, what has been recorded is uploaded all the same.
        if not (self._lock.is_locked or ((self._folder / "wandb").is_dir() and self._owns_folder())):
            return
        try:
            self._upload(seconds)
        except OSError as error:
            note(f"W&B: runs in '{self._folder / 'wandb'}' cannot be uploaded ({reason(error)})")
        finally:
            self._lock.release()

    def _upload(self, seconds: float) -> None:
        """Complete the uploads, and print how to upload what is left; see `close`."""
        folder = self._folder / "wandb"
        for torn in set_torn_aside(folder):
            note(f"W&B: a run was killed before anything of it was written, so it cannot be uploaded: {torn}")
        why = "recorded offline"
        if self._connection.mode == "online":
            why = f"not uploaded ({self._uploader.finish(seconds)})"
        left = len(waiting(folder))
        if left:
            note(f"W&B: {left} {'run' if left == 1 else 'runs'} {why}; upload with: {self._uploader.command()}")


class CellTracker(Tracker):
    """A recorder of the cells of a benchmark: a run for each, and one that compares them, all in one group.

    Args:
        connection: How to log; its mode is not ``off``.
        folder: Run folder of the benchmark, or the folder of a report.
    """

    def __init__(self, connection: Connection, folder: Path) -> None:
        state = State(folder)
        target = state.completed(connection.target)
        group = target.group or folder.resolve().name
        super().__init__(replace(connection, target=replace(target, group=group)), folder, state, measured=True)
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
        self.open(key, name, "cell", wandb_panels.config_of(record))

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
        if before is not None and before.done == digest:
            return
        # It has no curve, so it always goes on.
        self.open(COMPARISON, COMPARISON, COMPARISON, {}, last=-1)
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
