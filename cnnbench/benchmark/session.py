"""A whole benchmark: the user's settings become a plan in a run folder, and the plan becomes records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cnnbench import hardware
from cnnbench.benchmark.display import LiveDisplay
from cnnbench.benchmark.launchers import Launcher
from cnnbench.benchmark.plan import (
    DEFAULT_DATA,
    DEFAULT_MODELS,
    PLAN_FILE,
    TIME_TO_ACCURACY,
    Plan,
    conflicts,
    load_plan,
    parse_budget,
    parse_goal,
)
from cnnbench.benchmark.recipe_files import check, read_recipe
from cnnbench.benchmark.run import run
from cnnbench.console import note, stdout_kept
from cnnbench.data import DataSource, get_bench_data
from cnnbench.data.foreign import OF_BENCH
from cnnbench.data.sources import resolve_data_dir
from cnnbench.engines import ENGINES, INT8, find_engine, find_quantiser
from cnnbench.errors import UserError
from cnnbench.measures import DEFAULT_MEASURES
from cnnbench.models import all_models
from cnnbench.network import get_network
from cnnbench.record import Record
from cnnbench.report.tracking import STOPPED_WAIT_S, CellTracker, Connection
from cnnbench.trust import Trust

__all__ = ["PLAN_FILE", "ROOT", "Session"]

ROOT = Path("results/bench")
"""Folder for the run folders of benchmarks that name none."""
CPU_BUDGET_S, GPU_BUDGET_S = 30.0, 120.0
"""Default training time per cell on a CPU and on a GPU, in seconds."""


class Session:
    """A benchmark to be started or resumed, which writes nothing before `run`.

    Args:
        settings: Settings that the user asked for, by their names in `Plan`. In place of ``budget_s`` there is
            ``budget``, a text such as ``60s``; ``models`` may be ``("all",)``; ``device`` and ``precision`` may be
            ``auto``. Settings that are left out get defaults that fit this machine.
        out: Run folder; None for a new folder or, if a run is resumed, for the folder of the newest run.
        resume: Whether to continue the run in that folder. If the folder is named and has no run, and settings are
            given, a new run starts there.
        trust: Code from outside the package that the user named as trusted, for networks in the stored plan.

    Attributes:
        folder: The run folder.
        plan: The settings, with nothing left to choose.

    Raises:
        UserError: A setting is wrong, the folder cannot be used, or a resumed run was started with other settings.
    """

    def __init__(
        self, settings: Mapping[str, Any], out: Path | None = None, resume: bool = False, trust: Trust | None = None
    ) -> None:
        if resume and out is not None and settings and not (out / PLAN_FILE).exists():
            # So one line of a job script starts a benchmark, and goes on with it after an interruption.
            note(f"there is no run in '{out}' yet, so a new one starts there")
            resume = False
        self.folder = _newest_run(out) if resume else _new_folder(out)
        asked = _resolved(settings)
        if resume:
            self.plan = load_plan(self.folder, trust)
            different = conflicts(self.plan, asked)
            if different:
                raise UserError(
                    f"the run in '{self.folder}' was started with {'; '.join(different)}; resume it without this option"
                )
        else:
            self.plan = _with_defaults(asked)
        _check_names(self.plan, asked)
        for sentence in self.plan.notes_on_engines():
            note(sentence)

    def run(self, connection: Connection | None = None, launcher: Launcher | None = None) -> list[Record]:
        """Measure every cell that has no record yet, and return all records.

        Args:
            connection: Whether to log the cells to Weights & Biases, and how; None for not at all.
            launcher: Engine that measures the cells in other processes; None for this process.
        """
        # What the code of a network prints goes to stderr, because stdout is kept for the results.
        if connection is None or connection.mode == "off":
            with stdout_kept(), LiveDisplay() as display:
                return run(self.plan, self.folder, display, launcher=launcher)
        tracker = CellTracker(connection, self.folder)
        try:
            with stdout_kept(), LiveDisplay() as display:
                records = run(self.plan, self.folder, display, tracker, launcher)
            # Records of an interrupted run may not have been logged; the tracker skips all that have been.
            tracker.log_all(records)
        except BaseException:
            tracker.close(failed=True, seconds=STOPPED_WAIT_S)
            raise
        tracker.close()
        return records


def _newest_run(out: Path | None) -> Path:
    """Return the run folder to resume: the named one, or the newest.

    Raises:
        UserError: None is named, and there is none.
    """
    if out is not None:
        return out
    # The folders are named by their date and time, so the last name is the newest run.
    runs = sorted(path.parent for path in ROOT.glob(f"*/{PLAN_FILE}"))
    if not runs:
        raise UserError(f"there is no run in '{ROOT}' to resume; leave out --resume, or name one with --out")
    return runs[-1]


def _new_folder(out: Path | None) -> Path:
    """Return the folder for a new run: the named one, or one with the present date and time as its name.

    Raises:
        UserError: The named folder cannot be used.
    """
    if out is None:
        return ROOT / datetime.now().strftime("%Y%m%d-%H%M%S")
    if out.exists() and not out.is_dir():
        raise UserError(f"'{out}' is a file; name a folder with --out")
    if (out / PLAN_FILE).exists():
        raise UserError(f"'{out}' holds a run already; add --resume to go on with it, or choose another --out")
    return out


def _resolved(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's settings with the names and values of a plan.

    Raises:
        UserError: Settings exclude each other, or this machine lacks the device or the precision.
    """
    asked = dict(settings)  # a copy, which is changed here
    if asked.get("models") == ("all",):
        asked["models"] = tuple(all_models())
    if "configs" in asked:
        asked |= _with_recipes(asked)
    if "budget" in asked:
        asked["budget_s"] = parse_budget(str(asked.pop("budget")))
        if "epochs" in asked:
            raise UserError("--budget and --epochs exclude each other; give one")
    if "until" in asked:
        asked["until"] = parse_goal(str(asked["until"]))
        # Named measures get that of the goal too; the default ones get it in `_with_defaults`.
        if "measures" in asked and TIME_TO_ACCURACY not in asked["measures"]:
            asked["measures"] = (*asked["measures"], TIME_TO_ACCURACY)
    if "device" in asked:
        asked["device"] = str(hardware.choose_device(asked["device"]))
    if "precision" in asked:
        device = hardware.choose_device(asked.get("device", "auto"))
        asked["precision"], asked["precision_reason"] = hardware.choose_precision(asked["precision"], device)
    if "engine" in asked:
        engines = asked.pop("engine")
        if engines == ("all",):
            device_name = str(hardware.choose_device(asked.get("device", "auto")))
            engines = tuple(engine.name for engine in ENGINES.values() if engine.is_usable(device_name))
        asked["engines"] = engines
    if "engine_precision" in asked:
        asked["engine_precisions"] = asked.pop("engine_precision")
    return asked


def _with_recipes(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that follow from the files of recipes: the recipes, and the networks and data sets.

    Raises:
        UserError: A file is wrong, two have the same name, or a setting is in the files already.
    """
    for name in ("learning_rate", "recipe"):
        if name in asked:
            raise UserError(f"--{name} and --configs exclude each other, because the files set it; leave out one")
    recipes = [read_recipe(Path(path)) for path in asked["configs"]]
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise UserError(f"configs {', '.join(names)}: two files have the same name; rename one")
    # A budget for all networks takes the place of the epochs and steps in the files.
    if "budget" in asked or "epochs" in asked:
        recipes = [replace(recipe, epochs=None, max_steps=None) for recipe in recipes]
    settings: dict[str, Any] = {"configs": tuple(recipes), "models": asked.get("models", ())}
    data = [recipe.data for recipe in recipes if recipe.data is not None]
    if "data" not in asked and data:
        settings["data"] = tuple(dict.fromkeys(data))
    return settings


def _with_defaults(asked: Mapping[str, Any]) -> Plan:
    """Return a plan with the user's settings, and with the defaults of this machine for all others."""
    device = hardware.choose_device(asked.get("device", "auto"))
    precision, reason = hardware.choose_precision("auto", device)
    batch_size, train_batch_size = hardware.default_batch_sizes(device)
    budget_s: float | None = CPU_BUDGET_S if device.type == "cpu" else GPU_BUDGET_S
    # A plan has one budget: a number of epochs takes the place of the default seconds.
    if "epochs" in asked:
        budget_s = None
    # In a plan, `batch_size` is that of a training step; inference and test have names of their own.
    defaults: dict[str, Any] = {
        "models": DEFAULT_MODELS,
        "data": DEFAULT_DATA,
        "seeds": (0,),
        "measures": DEFAULT_MEASURES,
        "budget_s": budget_s,
        "epochs": None,
        "device": str(device),
        "precision": precision,
        "precision_reason": reason,
        "batch_size": train_batch_size,
        "speed_batch_size": batch_size,
        "eval_batch_size": 500,
        "cudnn_benchmark": device.type == "cuda",
    }
    if "engine_precisions" in asked and not asked.get("engines"):
        raise UserError("--engine_precision is that of --engine; name an engine too, or leave it out")
    if "until" in asked:
        defaults["measures"] = (*DEFAULT_MEASURES, TIME_TO_ACCURACY)
    settings = defaults | dict(asked)
    # The format of inference follows from that of training, which the user may have chosen.
    settings["inference_precision"] = hardware.inference_precision(settings["precision"])
    return Plan(**settings)


def _check_names(plan: Plan, asked: Mapping[str, Any]) -> None:
    """Raise UserError for a wrong name, folder or device, before a run folder is made.

    Args:
        plan: Plan of the run.
        asked: Settings that the user asked for, by name.

    Raises:
        UserError: A name is wrong, or a setting has no effect.
    """
    for name in (*plan.models, *(recipe.model for recipe in plan.configs)):
        # The results of these calls are not used; they raise the error if something is wrong.
        get_network(name)
    for name in plan.data:
        source = get_bench_data(name)
        if not isinstance(source, DataSource):
            for option in OF_BENCH:
                if option in asked and not source.takes(option):
                    raise UserError(
                        f"--{option} has no effect on data set '{name}', since {source.cls.__name__} takes no "
                        f"{option}; leave it out, or let the class take it"
                    )
        elif source.cls.form and not source.arguments:
            raise UserError(f"data set '{name}' is named by what it reads; write {source.cls.form}")
    for recipe in plan.configs:
        # A resumed run reads its recipes from the plan, a file like any other.
        check(recipe, f"recipe '{recipe.name}'")
    resolve_data_dir(plan.data_dir)
    hardware.choose_device(plan.device)
    for name in plan.engines:
        engine = find_engine(name, plan.device)
        if INT8 in plan.engine_precisions and INT8 in engine.precisions(plan.device):
            find_quantiser(engine.format)
