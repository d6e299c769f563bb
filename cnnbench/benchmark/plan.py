"""The plan of a benchmark: its settings, checked and resolved before anything runs, and its grid of cells.

The plan is the first file in a run folder. A resumed run reads it, and stops if it was asked for another plan.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from cnnbench.engines import ENGINES, TORCH, check_precision
from cnnbench.errors import UserError, unknown
from cnnbench.files import parse_json, read_text, without_checksum, write_checked_json
from cnnbench.measures import MEASURES
from cnnbench.record import cell_key
from cnnbench.trust import Trust, check_code
from cnnbench.units import parse_percent

DEFAULT_MODELS = ("LeNet5", "VGG16", "ResNet18", "MobileNetV1")
DEFAULT_DATA = ("MNIST", "CIFAR10")
PLAN_FILE = "plan.json"
RECIPE_NAMES = ("sgd", "muon")
"""Names of the recipes in `cnnbench.optimizers.RECIPES`, repeated here so that this module does not import torch."""
RESERVED = {"batch_size", "eval_batch_size", "data_dir", "stands_in_for"}
"""Arguments of the data sets that the plan sets itself, so that ``data_options`` must not name them."""
INFERENCE_FORMATS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
"""Number formats in which inference may be timed."""
LARGEST_BATCH = 2**20
"""Largest number of images per batch; a larger number is treated as a typing error."""
TIME_TO_ACCURACY = "time_to_accuracy"
"""Name of the measure that a goal of the training adds."""
MOST_PROCESSES = 1000
"""Largest number of processes for the timing."""


class Cell(NamedTuple):
    """One cell of the grid, whose measurement becomes one record; ``recipe`` names a recipe from a file."""

    model: str
    data: str
    seed: int
    recipe: str = ""

    @property
    def key(self) -> str:
        """Return the name of the cell, which is unique in a run and can be used in file names."""
        return cell_key(*self)


class EngineRow(NamedTuple):
    """The trained network of a cell in an engine and in a number format, whose measurement becomes a further record."""

    cell: Cell
    engine: str
    precision: str

    @property
    def model(self) -> str:
        """Return the name of the network in its record."""
        return f"{self.cell.model} [{self.engine}, {self.precision}]"

    @property
    def key(self) -> str:
        """Return the name of the row, which is unique in a run and can be used in file names."""
        return self.cell._replace(model=self.model).key


@dataclass(frozen=True)
class Recipe:
    """A network, the data it was tuned on, and how it is trained.

    Attributes:
        name: Name of the file without its ending.
        model: Name of the network, as `cnnbench.network.get_network` reads it.
        arguments: Arguments of the network that concern its training; ``optimizer`` and ``lr_scheduler`` are tables
            with ``class_path`` and ``init_args``.
        data: Name of the data set; None if the file names none.
        data_options: Arguments of the data set, such as ``batch_size`` and ``cutout``.
        epochs: Epochs of training; None if the file names none.
        max_steps: Number of optimizer steps after which a training ends at the latest; None for no such limit.
        gradient_clip_val: Norm or value to which gradients are clipped, above 0; None for no clipping.
        gradient_clip_algorithm: What is clipped, ``norm`` or ``value``; None for Lightning's default, the norm.
    """

    name: str
    model: str
    arguments: Mapping[str, Any]
    data: str | None = None
    data_options: Mapping[str, Any] | None = None
    epochs: int | None = None
    max_steps: int | None = None
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}
    """Options of pydantic for reading a plan: unknown keys and values of another type are errors."""

    def trainer_options(self) -> dict[str, Any]:
        """Return the arguments of Lightning's Trainer that the recipe sets beside the length of the training."""
        options = {name: getattr(self, name) for name in ("gradient_clip_val", "gradient_clip_algorithm")}
        return {name: value for name, value in options.items() if value is not None}

    def settings(self) -> dict[str, Any]:
        """Return the settings for a record, without the names of recipe and network.

        Settings that older versions do not know are left out where they are unset, as in records of these versions.
        """
        newer = ("max_steps", "gradient_clip_val", "gradient_clip_algorithm")
        left_out = {"name", "model", *(name for name in newer if getattr(self, name) is None)}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass(frozen=True)
class Plan:
    """Settings of a run, with nothing left to choose.

    Attributes:
        models: Names of the networks. Models, data and seeds span the grid.
        data: Names of the data sets.
        seeds: Random seeds of the trainings.
        measures: Names of the measures to take, from `MEASURES`.
        budget_s: Seconds of training per cell; None if `epochs` is the budget.
        epochs: Epochs of training per cell; None if `budget_s` is the budget.
        device: Name of the device on which the networks run, such as ``cpu`` or ``cuda:0``.
        precision: Number format of training and test, by Lightning's name.
        precision_reason: Reason for this number format, in words.
        batch_size: Images per training step, in training and in timing.
        speed_batch_size: Images per batch of the inference throughput.
        eval_batch_size: Images per step in the test.
        learning_rate: Peak learning rate of all networks; None for the default of each architecture.
        recipe: Name of a recipe in `cnnbench.optimizers.RECIPES`; None for the recipe of each architecture.
        data_dir: Folder of the data; None for the environment variable CNNBENCH_DATA or, without it, ``data``.
        data_options: Further arguments of the data sets, such as ``image_size``.
        processes: Number of fresh processes that share the rounds of the timing; with 1, the run's own process times.
        inference_precision: Number format in which inference is timed; None for that of the training.
        cudnn_benchmark: Whether cuDNN tries its kernels for each shape and takes the fastest.
        keep_weights: Whether the trained weights of each cell are kept in the run folder.
        configs: Recipes from files, each with its network; they are further rows of the grid.
        max_steps: Number of optimizer steps that ends a training, alone or beside `epochs`; only a recipe from a file
            sets it, for its own cells.
        until: Accuracy on the validation split, as a share, that ends a training before its budget; None for none.
        engines: Names of the engines that run each trained network too, in rows of their own; see `engine_ways`.
        engine_precisions: Number formats in which they run it.
    """

    models: tuple[str, ...]
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    measures: tuple[str, ...]
    budget_s: float | None
    epochs: int | None
    device: str
    precision: str
    precision_reason: str
    batch_size: int
    speed_batch_size: int
    eval_batch_size: int
    learning_rate: float | None = None
    recipe: str | None = None
    data_dir: str | None = None
    data_options: Mapping[str, Any] | None = None
    processes: int = 1
    inference_precision: str | None = None
    cudnn_benchmark: bool = False
    keep_weights: bool = False
    configs: tuple[Recipe, ...] = ()
    max_steps: int | None = None
    until: float | None = None
    engines: tuple[str, ...] = ()
    engine_precisions: tuple[str, ...] = ("32-true",)

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}
    """Options of pydantic for `load_plan`: unknown keys and values of another type are errors."""

    def __post_init__(self) -> None:
        self._check_grid()
        self._check_measures()
        self._check_training()
        self._check_numbers()
        self._check_engines()

    def _check_grid(self) -> None:
        """Raise UserError unless the grid has cells, each once."""
        for name in ("models", "data", "seeds", "measures"):
            values = getattr(self, name)
            if not values and not (name == "models" and self.configs):
                raise UserError(f"{name} is empty; name at least one")
            if len(set(values)) < len(values):
                raise UserError(f"{name} {','.join(map(str, values))} names something twice")
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise UserError(f"seed {seed} is not in 0 to {2**32 - 1}, the range of every generator in use")
        for recipe in self.configs:
            if recipe.data not in (None, *self.data):
                raise UserError(f"recipe '{recipe.name}' is for {recipe.data}, not for {', '.join(self.data)}")
        # A key is also the file name of a record, in which special characters become underscores.
        keys = [cell.key for cell in self.cells()]
        if len(set(keys)) < len(keys):
            names = [*self.models, *(recipe.name for recipe in self.configs)]
            raise UserError(f"models {', '.join(names)} have names that differ in punctuation only; leave one out")

    def _check_measures(self) -> None:
        """Raise UserError unless the measures exist and can be taken together."""
        for measure in self.measures:
            if measure not in MEASURES:
                raise unknown("measure", measure, MEASURES)
            # Only `quality` trains the networks.
            if MEASURES[measure].trained and "quality" not in self.measures:
                raise UserError(f"{measure} is taken after a training; add quality to the measures")
        if (self.until is None) == (TIME_TO_ACCURACY in self.measures):
            raise UserError(f"{TIME_TO_ACCURACY} and --until belong together; give --until with a goal, such as 90%")
        if self.keep_weights and "quality" not in self.measures:
            raise UserError("keep_weights keeps what a training ends with; add quality to the measures")
        if "memory" in self.measures and ("speed" not in self.measures or self.device != "cpu"):
            raise UserError(
                "memory is how much a process on the CPU grows in the timed step: add speed to the measures, and "
                "--device cpu; on a GPU speed has the peak memory"
            )
        if "energy" in self.measures and "speed" not in self.measures:
            raise UserError("energy is measured after the timing; add speed to the measures")

    def _check_training(self) -> None:
        """Raise UserError unless budget, data options and recipe are possible."""
        # True if both are set and if neither is. Steps are an end as epochs are.
        if (self.budget_s is None) == (self.epochs is None and self.max_steps is None):
            raise UserError("give either a budget in seconds or a number of epochs, not both")
        # Written this way the test refuses NaN too, since every comparison with NaN is false.
        if self.budget_s is not None and not 0 < self.budget_s < float("inf"):
            raise UserError(f"budget {self.budget_s:g} s is not positive; give seconds of training, such as 30")
        if self.data_options is not None and not isinstance(self.data_options, Mapping):
            raise UserError(f"data_options {self.data_options} is not a table of `argument: value`")
        for name in RESERVED & set(self.data_options or {}):
            raise UserError(f"data_options must not set {name}, which bench decides itself")
        if self.until is not None and not 0 < self.until < 1:
            raise UserError(f"until {self.until} is not a share between 0 and 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise UserError(f"learning_rate {self.learning_rate} must be a positive number, such as 0.001")
        if self.recipe is not None and self.recipe not in RECIPE_NAMES:
            raise unknown("recipe", self.recipe, RECIPE_NAMES)

    def _check_numbers(self) -> None:
        """Raise UserError unless the number format exists, and numbers are within their ranges."""
        if self.inference_precision not in (None, *INFERENCE_FORMATS):
            raise unknown("inference_precision", str(self.inference_precision), INFERENCE_FORMATS)
        for name in ("epochs", "max_steps", "batch_size", "speed_batch_size", "eval_batch_size", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} {value} must be at least 1")
            if name.endswith("batch_size") and value > LARGEST_BATCH:
                raise UserError(f"{name} {value} is larger than {LARGEST_BATCH:,}; give images per batch, such as 128")
        if self.processes > MOST_PROCESSES:
            raise UserError(f"processes {self.processes} is more than {MOST_PROCESSES}; 6 are enough for an interval")

    def _check_engines(self) -> None:
        """Raise UserError unless the engines exist, and each number format is one of an engine on the device."""
        for name in self.engines:
            if name not in ENGINES:
                raise unknown("engine", name, ENGINES)
        for name, values in (("engine", self.engines), ("engine_precision", self.engine_precisions)):
            if len(set(values)) < len(values):
                raise UserError(f"{name} {','.join(values)} names something twice")
        if not self.engines:
            return
        if not {"speed", "quality"} & set(self.measures):
            raise UserError("engines are timed and tested; add speed or quality to the measures")
        if not self.engine_precisions:
            raise UserError("engine_precision names nothing; leave it out for 32-true")
        # The check of the session says it if an engine does not run on the device at all.
        if not all(ENGINES[name].precisions(self.device) for name in self.engines):
            return
        for precision in self.engine_precisions:
            check_precision("engine_precision", precision, [ENGINES[name] for name in self.engines], self.device)

    def _computes_in(self, engine: str, precision: str) -> bool:
        """Return whether an engine computes in a number format on the device of the plan."""
        return precision in ENGINES[engine].precisions(self.device)

    def engine_ways(self) -> list[tuple[str, str]]:
        """Return the engines and number formats in which each trained network is a further row, as pairs.

        Formats that an engine does not have are left out. So is torch in the format in which the network is trained,
        tested and timed anyway, since that is the row of the cell itself.
        """
        pairs = itertools.product(self.engines, self.engine_precisions)
        return [pair for pair in pairs if not self._why_left_out(*pair)]

    def notes_on_engines(self) -> list[str]:
        """Return a sentence for each engine and number format that has no row."""
        pairs = itertools.product(self.engines, self.engine_precisions)
        return list(filter(None, (self._why_left_out(*pair) for pair in pairs)))

    def _why_left_out(self, engine: str, precision: str) -> str:
        """Return why an engine has no row in a number format, as a sentence; empty if it has one."""
        if not self._computes_in(engine, precision):
            return ENGINES[engine].left_out(precision, self.device)
        own = {self.precision, self.inference_precision or self.precision}
        if engine == TORCH and own == {precision}:
            return f"torch trains, tests and times in {precision} anyway, so it has no further row for it"
        return ""

    @property
    def keeps_weights(self) -> bool:
        """Return whether the trained weights of each cell are kept: where engines run them, an interrupted run too."""
        return self.keep_weights or (bool(self.engine_ways()) and "quality" in self.measures)

    def engine_rows(self, cell: Cell) -> list[EngineRow]:
        """Return the further rows of a cell."""
        return [EngineRow(cell, *way) for way in self.engine_ways()]

    def cells(self) -> Iterator[Cell]:
        """Yield the cells of the grid, data set by data set."""
        # All networks have their turn on a data set before the next seed.
        for data, seed in itertools.product(self.data, self.seeds):
            for model in self.models:
                yield Cell(model, data, seed)
            for recipe in self.configs:
                if recipe.data in (None, data):
                    yield Cell(recipe.model, data, seed, recipe.name)

    def only(self, cell: Cell) -> Plan:
        """Return the plan of a grid with this cell alone."""
        recipe = self.recipe_of(cell)
        models, configs = ((cell.model,), ()) if recipe is None else ((), (recipe,))
        return replace(self, models=models, configs=configs, data=(cell.data,), seeds=(cell.seed,))

    def recipe_of(self, cell: Cell) -> Recipe | None:
        """Return the recipe of a cell if it comes from a file, else None."""
        return next((recipe for recipe in self.configs if recipe.name == cell.recipe), None)

    def of_cell(self, cell: Cell) -> Plan:
        """Return the plan with the budget of a cell, which a recipe from a file may set."""
        recipe = self.recipe_of(cell)
        if recipe is None or (recipe.epochs is None and recipe.max_steps is None):
            return self
        return replace(self, budget_s=None, epochs=recipe.epochs, max_steps=recipe.max_steps)


def parse_budget(text: str) -> float:
    """Return the seconds that a text such as ``90``, ``90s``, ``1.5m`` or ``2h`` means.

    Raises:
        UserError: The text is not a positive time.
    """
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = text, "s"
    # A slice of an empty text is empty, where an index would raise an error.
    if text[-1:] in units:
        number, unit = text[:-1], text[-1]
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = float("nan")  # fails the check below
    if not 0 < seconds < float("inf"):
        raise UserError(f"budget '{text}' is not a positive time; write seconds, such as 30 or 30s, or 5m, or 2h")
    return seconds


def parse_goal(text: str) -> float:
    """Return the share that a goal such as ``90`` or ``90%`` means.

    Raises:
        UserError: The text is not a number of per cent above 0 and below 100.
    """
    share = parse_percent(text, "until")
    if share >= 1:
        raise UserError(f"until '{text}' must be below 100 %; write for example --until 90%")
    return share


def save_plan(folder: Path, plan: Plan) -> None:
    """Write a plan into a run folder, with a checksum over its content."""
    write_checked_json(folder / PLAN_FILE, asdict(plan))


def load_plan(folder: Path, trust: Trust | None = None) -> Plan:
    """Read the plan of a run folder.

    Args:
        folder: The run folder.
        trust: Code from outside the package that the user named on the command line as trusted.

    Raises:
        UserError: The folder has no plan, the plan is damaged or comes from another version, or it names code from
            outside the package that the user has not named.
    """
    # pydantic takes a tenth of a second to import, which only a command that reads a plan should spend.
    from pydantic import TypeAdapter, ValidationError

    path = folder / PLAN_FILE
    if not path.is_file():
        raise UserError(f"'{folder}' has no {PLAN_FILE}, so there is nothing to resume; leave out --resume to start")
    where = f"plan '{path}'"
    start_anew = "start a new run without --resume"
    stored = parse_json(read_text(path, "plan"), where)
    if not isinstance(stored, dict):
        raise UserError(f"{where} is not a table of settings; {start_anew}")
    content = without_checksum(stored, where)
    try:
        # In strict mode pydantic takes a list for a tuple only from JSON text, not from Python values.
        plan = TypeAdapter(Plan).validate_json(json.dumps(content))
    except ValidationError as error:
        # One error is enough. Its place is empty if it comes from the checks of `Plan` and not from a type.
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        what = f"{place}: {text}" if place else text
        raise UserError(f"{where} cannot be resumed: {what}; {start_anew}") from None
    for name in (*plan.models, *(recipe.model for recipe in plan.configs)):
        # A name from a file may stand for code outside the package, which runs when the network is built.
        check_code(name, where, trust or Trust())
    for name in (*plan.data, *(recipe.data for recipe in plan.configs if recipe.data is not None)):
        check_code(name, where, trust or Trust(), "data set")
    return plan


def conflicts(stored: Plan, asked: Mapping[str, Any]) -> Sequence[str]:
    """Return, in words, the settings in which a resumed run was asked for something other than it was started with.

    Args:
        stored: Plan with which the run was started.
        asked: Settings for the resumed run, by their names in `Plan`.
    """
    # These two follow from other settings.
    known = {f.name for f in fields(Plan)} - {"precision_reason", "inference_precision"}
    options = {"engines": "engine", "engine_precisions": "engine_precision"}
    differences = []
    for name, value in asked.items():
        if name == "configs" and value != stored.configs:
            differences.append("other recipes, or recipes with other settings")
        elif name in known and getattr(stored, name) != value:
            differences.append(f"{options.get(name, name)} {getattr(stored, name)}, not {value}")
    return differences
