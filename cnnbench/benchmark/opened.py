"""The opened data sets of a plan, and the networks that fit them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cnnbench.benchmark.plan import Cell, Plan
from cnnbench.benchmark.recipe_files import training_options
from cnnbench.console import note
from cnnbench.data import BenchData, DataSource, get_bench_data
from cnnbench.data.foreign import ForeignData
from cnnbench.data.sets import Synthetic
from cnnbench.errors import MissingDataError, UserError
from cnnbench.network import make_classifier
from cnnbench.training.classifier import ImageClassifier


def open_data(plan: Plan, say: Callable[[str], None]) -> dict[tuple[str, str], BenchData]:
    """Open the data sets of a plan; synthetic images stand in for a missing data set, and a note says so.

    Args:
        plan: Plan of the run.
        say: Function that shows a note to the user.

    Returns:
        The opened data modules, by the names of the data set that was asked for and of the recipe, which may set
        options of the data; the second name is empty for networks without a recipe from a file.

    Raises:
        UserError: A data set or one of its options is unknown, or a named data folder does not exist.
    """
    opened: dict[tuple[str, str], BenchData] = {}
    for cell in plan.cells():
        pair = (cell.data, cell.recipe)
        if pair not in opened:
            opened[pair] = _open(plan, cell, say)
    return opened


def _open(plan: Plan, cell: Cell, say: Callable[[str], None]) -> BenchData:
    """Open the data set of a cell."""
    name, recipe = cell.data, plan.recipe_of(cell)
    source = get_bench_data(name)
    given = dict(plan.data_options or {})
    if recipe is not None:
        given |= recipe.data_options or {}
    source.check(given, f"data_options for {name}")
    options = {"batch_size": plan.batch_size, "eval_batch_size": plan.eval_batch_size, **given}
    module: BenchData
    try:
        module = source(data_dir=plan.data_dir, **options)
        module.prepare_data()
    except MissingDataError as error:
        # Synthetic images would have to guess the channels.
        if not isinstance(source, DataSource) or not hasattr(source.cls, "in_channels"):
            raise
        say(f"{name}: {error}. Going on with SYNTHETIC images, whose accuracy says nothing about {name}")
        module = Synthetic(in_channels=source.cls.in_channels, stands_in_for=name, **options)
    module.setup()
    if isinstance(module, ForeignData):
        module.check_measures(plan.measures)
    return module


class Opened:
    """The opened data sets of a plan, and the networks that fit them.

    Args:
        plan: Plan of a run.
        say: Function that shows a note to the user.

    Attributes:
        data: Data modules by the names of the data set and of the recipe; see `open_data`.
        facts: Facts about the data for records, by the same names.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None] = note) -> None:
        self._plan = plan
        self.data = open_data(plan, say)
        self.facts = {name: module.describe() for name, module in self.data.items()}

    def pair(self, cell: Cell) -> str:
        """Return the name of a network with the images that it really sees, which may be synthetic ones."""
        recipe = f" ({cell.recipe})" if cell.recipe else ""
        return f"{cell.model}{recipe} on {self.facts[cell.data, cell.recipe]['label']}"

    def build(self, cell: Cell) -> ImageClassifier:
        """Return the untrained network of a cell."""
        data = self.data[cell.data, cell.recipe]
        recipe = self._plan.recipe_of(cell)
        options: dict[str, Any] = {"learning_rate": self._plan.learning_rate, "recipe": self._plan.recipe}
        if recipe is not None:
            options = training_options(recipe)
        network = make_classifier(cell.model, data.num_classes, data.in_channels, data.image_size, **options)
        if network.steps_per_call is not None and not data.gives_several_batches:
            raise UserError(
                f"{cell.model} has steps_per_call {network.steps_per_call}, but data set '{cell.data}' gives one batch "
                "per call; leave out steps_per_call, or choose another data set"
            )
        return network

    def image_shape(self, cell: Cell) -> tuple[int, int, int]:
        """Return channels, height and width of a cell's images."""
        data = self.data[cell.data, cell.recipe]
        return data.in_channels, data.image_size, data.image_size


def first_images(data: BenchData, count: int) -> Tensor:
    """Return the first training images, at most ``count`` of them, normalised, (N, C, H, W)."""
    return torch.cat([images for images, _ in data.first_training_batches(count)])
