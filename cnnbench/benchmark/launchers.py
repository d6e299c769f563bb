"""Launchers: where the cells of a benchmark are measured, in this process or by a scheduler for many machines.

The cells of a grid are independent of each other once the networks have been timed. A launcher gets them all, and
yields the record of each as soon as it is there. A cell whose process dies is measured again, up to `RETRIES` times.

The figures of a cell do not depend on the launcher: every process uses as many threads as this one.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from cnnbench import interrupts
from cnnbench.console import note
from cnnbench.errors import UserError, first_line, unknown
from cnnbench.files import read_text, write_text
from cnnbench.record import Record
from cnnbench.registry import optional

RETRIES = 2
"""How many times a cell whose process has died is measured again."""
POLL_S = 0.5
"""Seconds between two looks at the jobs of a scheduler."""
JOBS_FILE = "jobs.txt"
"""File with the ids of the jobs of SLURM that a run waits for."""
LARGEST_ARRAY = 1000
"""Largest number of jobs in an array of SLURM, whose default setting (``MaxArraySize``) allows 1,001."""
NAMES = ("local", "ray", "slurm")
"""Names of the launchers: this process, Ray, and jobs of SLURM through submitit."""


@dataclass(frozen=True)
class Job:
    """A cell to measure.

    Attributes:
        key: Key of the cell.
        measure: Function without arguments that measures it and returns its record; it can be sent to other processes.
    """

    key: str
    measure: Callable[[], Record]


class Launcher(Protocol):
    """Interface of a launcher."""

    def run(self, jobs: Sequence[Job], folder: Path) -> Iterator[tuple[str, Record | str]]:
        """Measure cells, and yield the key of each with its record, or with the reason why there is none.

        Args:
            jobs: Cells to measure.
            folder: Run folder.

        Raises:
            UserError: The scheduler cannot be used.
        """


def find_launcher(name: str, options: Mapping[str, Any], device: str) -> Launcher | None:
    """Return the launcher with this name; None for this process itself.

    Args:
        name: Name of the launcher, of `NAMES`.
        options: Options of the launcher by name: ``cpus`` and ``gpus`` of a cell, for ``ray`` also ``address`` of a
            cluster, for ``slurm`` also ``cluster`` (``slurm`` or ``local``) and the parameters of submitit, such as
            ``slurm_partition`` and ``timeout_min``.
        device: Device of the plan, such as ``cpu`` or ``cuda:0``. On a GPU, a cell reserves one unless the options say
            otherwise.

    Raises:
        UserError: The launcher is unknown, its package is missing, an option is wrong, or the cells would not have the
            device.
    """
    if name not in NAMES:
        raise unknown("launcher", name, NAMES)
    if name == "local":
        if options:
            raise UserError("launcher_options are for --launcher ray or slurm; leave them out")
        return None
    kind, _, index = device.partition(":")
    if kind == "cuda" and index not in ("", "0"):
        raise UserError(
            f"device {device} is a GPU of this machine, but each cell of --launcher {name} sees its own GPU only, as "
            "cuda:0; use --device cuda"
        )
    given = dict(options)
    cpus = _amount("cpus", given.pop("cpus", torch.get_num_threads()), whole=True)
    gpus = _amount("gpus", given.pop("gpus", 1 if kind == "cuda" else 0), whole=name == "slurm")
    if name == "ray":
        if kind == "cuda" and gpus == 0:
            raise UserError(
                "launcher_options: gpus 0 leaves cells on --device cuda without a GPU; give them 1 or a share such as "
                "0.5, or use --device cpu"
            )
        return _Ray(cpus, gpus, **_only(given, ("address",)))
    return _Slurm(int(cpus), int(gpus), given.pop("cluster", None), given)


def _amount(name: str, value: Any, whole: bool) -> float:
    """Return a number of processors; raise UserError for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # A cell may share a GPU; of several it has whole ones only.
    whole = whole or (name == "gpus" and is_number and value > 1)
    is_number = is_number and math.isfinite(value)
    if not is_number or value < 0 or (whole and value != int(value)) or (name == "cpus" and value < 1):
        kind = "a whole number" if whole else "a number"
        raise UserError(f"launcher_options: {name} {value!r} is not {kind} that a cell can use, such as 1")
    return float(value)


def _only(options: Mapping[str, Any], valid: Sequence[str]) -> Mapping[str, Any]:
    """Return options; raise UserError for one that is not valid."""
    for name in options:
        if name not in valid:
            raise unknown("option of the launcher:", name, ("cpus", "gpus", *valid))
    return options


def _measured(job: Job, threads: int) -> Record:
    """Measure a cell in a process of a scheduler, with as many threads as the process that launched it."""
    torch.set_num_threads(threads)
    return job.measure()


class _Ray:
    """Launcher on Ray: a task for each cell, on this machine or on a cluster.

    Args:
        cpus: Processors that Ray reserves for a cell.
        gpus: GPUs that Ray reserves for a cell; with 0.5, two cells share one.
        address: Address of a cluster, or ``auto``; None starts Ray on this machine.
    """

    def __init__(self, cpus: float, gpus: float, address: str | None = None) -> None:
        self._ray = optional("ray", "--launcher ray")
        self._cpus, self._gpus, self._address = cpus, gpus, address

    def run(self, jobs: Sequence[Job], folder: Path) -> Iterator[tuple[str, Record | str]]:
        ray = self._ray
        # By default, Ray's processes give way to everything else on their machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
        started = not ray.is_initialized()
        if started:
            try:
                # Ray would stop the program in a way of its own on SIGTERM.
                with interrupts.kept():
                    ray.init(address=self._address, include_dashboard=False, log_to_driver=False, logging_level="error")
            except Exception as error:  # whatever keeps Ray from starting or connecting
                raise UserError(f"Ray cannot be used: {type(error).__name__}: {error}".splitlines()[0]) from error
        try:
            self._check_resources(ray.cluster_resources())
            resources = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_retries": RETRIES}
            task = ray.remote(**resources)(_measured)
            threads = torch.get_num_threads()
            waiting = {task.remote(job, threads): job.key for job in jobs}
            while waiting:
                finished, _ = ray.wait(list(waiting), timeout=POLL_S)
                interrupts.check()
                for reference in finished:
                    yield waiting.pop(reference), self._result(reference)
        finally:
            if started:
                ray.shutdown()

    def _check_resources(self, there: Mapping[str, float]) -> None:
        """Raise UserError if a cell reserves more than the cluster has, for which Ray would wait without an end."""
        for option, key, asked in (("cpus", "CPU", self._cpus), ("gpus", "GPU", self._gpus)):
            if asked > there.get(key, 0):
                raise UserError(
                    f"launcher_options: a cell reserves {option} {asked:g}, and Ray has {there.get(key, 0):g} in all; "
                    "reserve less"
                )

    def _result(self, reference: Any) -> Record | str:
        """Return the record of a task, or why there is none."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return f"{type(error).__name__}: the process that measured it ended {RETRIES + 1} times"


class _Slurm:
    """Launcher on SLURM by submitit: a job for each cell, in arrays of up to `LARGEST_ARRAY` jobs.

    With the cluster ``local``, as many processes run at once as this machine has processors for them.

    Args:
        cpus: Processors of a job.
        gpus: GPUs of a job.
        cluster: ``slurm``, or ``local`` for processes of this machine; None for SLURM if it is there.
        parameters: Further parameters of submitit's executor.
    """

    def __init__(self, cpus: int, gpus: int, cluster: str | None, parameters: Mapping[str, Any]) -> None:
        self._submitit, self._cluster = optional("submitit", "--launcher slurm"), cluster
        self._parameters = {"cpus_per_task": cpus, "gpus_per_node": gpus, **parameters}
        # This raises before anything is measured. An executor makes a folder for its files.
        with tempfile.TemporaryDirectory() as scratch:
            found = self._executor(Path(scratch)).cluster
        if cluster is None and found != "slurm":
            raise UserError(
                "SLURM is not on this machine (no command srun); write --launcher_options '{cluster: local}' for "
                "processes of this machine"
            )
        # Processes of this machine would all start at once.
        self._at_once = sys.maxsize if found == "slurm" else max(1, (os.cpu_count() or 1) // cpus)

    def _executor(self, folder: Path) -> Any:
        """Return submitit's executor, whose scripts and logs lie in a subfolder of the run folder."""
        try:
            executor = self._submitit.AutoExecutor(folder=folder / "slurm", cluster=self._cluster)
            executor.update_parameters(**self._parameters)
        except Exception as error:  # an unknown parameter, or no SLURM on this machine
            raise UserError(f"launcher_options: {type(error).__name__}: {error}".splitlines()[0]) from error
        return executor

    def run(self, jobs: Sequence[Job], folder: Path) -> Iterator[tuple[str, Record | str]]:
        threads, executor = torch.get_num_threads(), self._executor(folder)
        listed = folder / "slurm" / JOBS_FILE
        if executor.cluster == "slurm":
            _cancel_left(listed)
        ids: list[str] = []
        left_over = list(jobs)
        waiting: list[tuple[Any, Job, int]] = []
        try:
            while waiting or left_over:
                room = min(self._at_once - len(waiting), LARGEST_ARRAY)
                part, left_over = left_over[:room], left_over[room:]
                if part:
                    # All jobs of a batch are one array of SLURM.
                    with executor.batch():
                        submitted = [executor.submit(_measured, job, threads) for job in part]
                    waiting += [(task, job, RETRIES) for task, job in zip(submitted, part, strict=True)]
                    ids += [str(task.job_id) for task in submitted]
                    write_text(listed, "\n".join(ids))
                time.sleep(POLL_S)
                interrupts.check()
                still = []
                for task, job, left in waiting:
                    if not task.done():
                        still.append((task, job, left))
                        continue
                    result = _submitit_result(task)
                    if isinstance(result, str) and left:
                        again = executor.submit(_measured, job, threads)
                        ids.append(str(again.job_id))
                        write_text(listed, "\n".join(ids))
                        still.append((again, job, left - 1))
                    else:
                        yield job.key, result
                waiting = still
        finally:
            for task, _, _ in waiting:
                with contextlib.suppress(Exception):  # a job that has ended in the meantime
                    task.cancel()
            listed.unlink(missing_ok=True)


def _cancel_left(listed: Path) -> None:
    """Cancel jobs of SLURM that a killed process has left behind; their cells are about to be measured again.

    Args:
        listed: File with the ids of the jobs, a line each; it is removed when all jobs have ended.
    """
    if not listed.is_file():
        return
    ids = [line for line in read_text(listed, "list of jobs").split() if re.fullmatch(r"\d+(_\d+)?", line)]
    if not ids:
        return
    try:
        # Jobs that have ended are an error for `scancel`, which it says on stderr.
        subprocess.run(["scancel", *ids], check=False, timeout=60, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        note(f"jobs {', '.join(ids)} of the killed run cannot be cancelled: {error}")
        return
    note(f"jobs that the killed run has left behind are cancelled: {', '.join(ids)}")


def _submitit_result(task: Any) -> Record | str:
    """Return the record of a job of submitit, or why there is none."""
    try:
        return task.result()
    except Exception as error:  # the job failed, was cancelled, or ran out of its time
        return first_line(error)
