"""What a benchmark is going to do, without doing it: its cells, and what the training of each takes.

How long a training takes is estimated from a few timed steps of each network on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from rich.table import Table

from cnnbench.benchmark.goal import check_goal
from cnnbench.benchmark.opened import Opened
from cnnbench.benchmark.plan import Cell, Plan
from cnnbench.counting.complexity import complexity
from cnnbench.counting.memory import STEP_PRECISIONS, training_memory
from cnnbench.counting.meta_copy import build_without_values
from cnnbench.data.foreign import ForeignData
from cnnbench.errors import UserError
from cnnbench.hardware import synchronise
from cnnbench.training.step import training_step
from cnnbench.units import short

NOTE = (
    "Training s: the budget, or the images of the training times the time of an image in a few steps on this machine "
    "just now; another machine, other work on it and the test change it. Training MACs: those of all steps. Step "
    "memory: estimate of the memory of a training step with AdamW, images included; a process needs more."
)
"""Sentences below the table."""
UNTIL = "With --until {goal:g} %, a training ends as soon as it reaches that accuracy; these are the most it can take."
"""Sentence below the table for a plan with a goal, with the goal in per cent."""

ENGINES = "Each cell has further rows, which train nothing: {ways}. They are timed and tested, in seconds each."
"""Sentence below the table for a plan with engines, with the engines and number formats."""


@dataclass(frozen=True)
class Expected:
    """What a cell is going to take.

    Attributes:
        cell: Key of the cell.
        params: Number of parameters; None for a network that cannot be counted.
        batch_size: Images of a training step.
        seconds: Seconds of training: the budget, or an estimate; None if no step of the network could be timed.
        images: Images of the training; None if it ends after a number of seconds.
        train_macs: Multiply-adds of the whole training, forward and backward; None if one of the others is.
        step_bytes: Estimated memory of a training step; None for a network or a precision without an estimate.
    """

    cell: str
    params: int | None
    batch_size: int
    seconds: float | None
    images: int | None
    train_macs: int | None
    step_bytes: int | None


TIMED_IMAGES = 32
"""Largest number of images of a timed step on a CPU. There an image takes about as long in a larger batch."""
TIMED_STEPS = 3
"""Number of timed steps, of which the fastest counts, since whatever disturbs a step makes it slower."""


def preview(plan: Plan) -> list[Expected]:
    """Return what each cell of a plan is going to take; nothing is trained to the end, and nothing is written.

    Raises:
        UserError: A data set is missing or wrong, or a network cannot be built.
    """
    opened = Opened(plan)
    # A count takes about a second, so one for each cell of a large grid would take hours. Seeds share one, and so do
    # data sets with images of the same shape and as many classes.
    counted: dict[tuple[Any, ...], _Counted] = {}
    image_s: dict[tuple[Any, ...], Any] = {}
    for (name, _), facts in opened.facts.items():
        check_goal(plan.until, name, facts)
    rows = []
    for cell in plan.cells():
        data, limits = opened.data[cell.data, cell.recipe], plan.of_cell(cell)
        facts = opened.facts[cell.data, cell.recipe]
        same = (cell.model, cell.recipe, data.num_classes, data.in_channels, data.image_size, facts["batch_size"])
        if same not in counted:
            counted[same] = _count(opened, cell, facts["batch_size"], plan.precision)
        cost = counted[same]
        images = None
        if limits.budget_s is None:
            # Whole batches only are trained on, except with loaders of the user's.
            whole = facts["train_images"] // facts["batch_size"] * facts["batch_size"]
            if isinstance(data, ForeignData):
                whole = data.epoch_images
            images = whole * (limits.epochs or 0)
            if limits.max_steps is not None:
                steps = limits.max_steps * facts["batch_size"]
                images = min(images, steps) if limits.epochs is not None else steps
        macs = None if images is None or cost.train_macs is None else images * cost.train_macs
        seconds = limits.budget_s
        if images is not None:
            if same not in image_s:
                image_s[same] = _seconds_of_an_image(opened, cell, facts["batch_size"], plan)
            seconds = None if image_s[same] is None else images * image_s[same]
        rows.append(Expected(cell.key, cost.params, facts["batch_size"], seconds, images, macs, cost.step_bytes))
    return rows


class _Counted(NamedTuple):
    """The costs of a network; each is None if it cannot be counted."""

    params: int | None = None
    train_macs: int | None = None
    step_bytes: int | None = None


def _count(opened: Opened, cell: Cell, batch_size: int, precision: str) -> _Counted:
    """Return the costs of the network of a cell.

    Args:
        opened: Data sets and networks of the plan.
        cell: Cell of the plan.
        batch_size: Images of a training step.
        precision: Number format of the training, by Lightning's name.
    """
    data = opened.data[cell.data, cell.recipe]
    shape = (data.in_channels, data.image_size, data.image_size)
    model, _ = build_without_values(partial(opened.build, cell))
    counted = _Counted()
    try:
        cost = complexity(model, shape)
        counted = _Counted(cost.params, cost.train_macs)
        if precision in STEP_PRECISIONS:
            memory = training_memory(model, shape, batch_size, precision)
            counted = counted._replace(step_bytes=memory.peak_bytes)
    except UserError:  # such as control flow that depends on values; the network can be trained all the same
        pass
    return counted


def _seconds_of_an_image(opened: Opened, cell: Cell, batch_size: int, plan: Plan) -> float | None:
    """Return how long a training step takes on the device of the plan, divided by its images.

    Args:
        opened: Data sets and networks of the plan.
        cell: Cell of the plan.
        batch_size: Images of a training step.
        plan: Plan of the benchmark.

    Returns:
        Seconds, or None if the network cannot be trained here, for example for want of memory.
    """
    data, device = opened.data[cell.data, cell.recipe], torch.device(plan.device)
    images = batch_size if device.type == "cuda" else min(batch_size, TIMED_IMAGES)
    shape = (images, data.in_channels, data.image_size, data.image_size)
    seconds = []
    try:
        batch = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
        model = opened.build(cell).to(device, memory_format=torch.channels_last)
        step = training_step(model, batch, plan.precision)
        step()  # the first one chooses kernels
        for _ in range(TIMED_STEPS):
            synchronise(device)
            start = time.perf_counter()
            step()
            synchronise(device)
            seconds.append(time.perf_counter() - start)
    except (UserError, RuntimeError, ValueError):  # the run would fail in the same way, and say why
        return None
    return min(seconds) / images


def notes(plan: Plan) -> str:
    """Return the sentences below the table."""
    sentences = [NOTE]
    if plan.until is not None:
        sentences.append(UNTIL.format(goal=100 * plan.until))
    ways = [f"{engine} in {precision}" for engine, precision in plan.engine_ways()]
    if ways:
        sentences.append(ENGINES.format(ways=", ".join(ways)))
    return " ".join(sentences)


def preview_table(rows: Sequence[Expected]) -> Table:
    """Return the table of the cells."""
    table = Table(title="What bench would do", title_justify="left", title_style="bold", header_style="bold")
    table.add_column("Cell", overflow="fold")
    for title in ("Params", "Batch", "Training s", "Images", "Training MACs", "Step memory"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row.cell,
            _or_dash(row.params),
            str(row.batch_size),
            _in_seconds(row.seconds),
            _or_dash(row.images),
            _or_dash(row.train_macs),
            "-" if row.step_bytes is None else f"{row.step_bytes / 2**20:,.0f} MiB",
        )
    return table


def preview_document(rows: Sequence[Expected], plan: Plan) -> dict[str, Any]:
    """Return the cells, the goal that may end a training earlier, and the rows of engines, as a document for JSON."""
    further = [row.key for cell in plan.cells() for row in plan.engine_rows(cell)]
    return {"cells": [asdict(row) for row in rows], "until": plan.until, "engine_rows": further}


def total_words(rows: Sequence[Expected]) -> str:
    """Return how many cells there are and how long they train together, in words."""
    words = f"{len(rows)} cells"
    seconds = [row.seconds for row in rows if row.seconds is not None]
    if seconds:
        words += f"; about {_in_words(sum(seconds))} of training"
    if len(seconds) < len(rows):
        words += f" in {len(seconds)} of them"
    return words


def _in_words(seconds: float) -> str:
    """Return a time in hours, minutes or seconds."""
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.0f} seconds"


def _in_seconds(value: float | None) -> str:
    """Return seconds with three digits, and whole ones from 100 on."""
    if value is None:
        return "-"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else short(value)
