"""What a benchmark is going to do, without doing it: its cells, and what the training of each takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.table import Table

from cnnbench.benchmark.plan import Plan
from cnnbench.benchmark.run import Opened
from cnnbench.counting.complexity import complexity
from cnnbench.counting.memory import STEP_PRECISIONS, training_memory
from cnnbench.counting.meta_copy import build_without_values
from cnnbench.data.foreign import ForeignData
from cnnbench.errors import UserError
from cnnbench.units import short

NOTE = (
    "Step memory: estimate of the memory of a training step with AdamW, images included; a process needs more. "
    "Training MACs: those of all steps; how long they take depends on the network and the machine. Timing and test "
    "come on top."
)
"""Sentences below the table."""


@dataclass(frozen=True)
class Expected:
    """What a cell is going to take.

    Attributes:
        cell: Key of the cell.
        params: Number of parameters; None for a network that cannot be counted.
        batch_size: Images of a training step.
        seconds: Seconds of training; None if the training ends after a number of epochs.
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


def preview(plan: Plan) -> list[Expected]:
    """Return what each cell of a plan is going to take; nothing is timed, trained or written.

    Raises:
        UserError: A data set is missing or wrong, or a network cannot be built.
    """
    opened = Opened(plan)
    rows = []
    for cell in plan.cells():
        data, limits = opened.data[cell.data, cell.recipe], plan.of_cell(cell)
        facts = data.describe()
        shape = (data.in_channels, data.image_size, data.image_size)
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
        params = macs = memory = None
        model, _ = build_without_values(partial(opened.build, cell))
        try:
            cost = complexity(model, shape)
            params = cost.params
            macs = None if images is None or cost.train_macs is None else images * cost.train_macs
            if plan.precision in STEP_PRECISIONS:
                memory = training_memory(model, shape, facts["batch_size"], plan.precision).peak_bytes
        except UserError:  # such as control flow that depends on values; the network can be trained all the same
            pass
        rows.append(Expected(cell.key, params, facts["batch_size"], limits.budget_s, images, macs, memory))
    return rows


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
            "-" if row.seconds is None else f"{row.seconds:g}",
            _or_dash(row.images),
            _or_dash(row.train_macs),
            "-" if row.step_bytes is None else f"{row.step_bytes / 2**20:,.0f} MiB",
        )
    return table


def preview_document(rows: Sequence[Expected]) -> dict[str, Any]:
    """Return the cells as a document for JSON."""
    return {"cells": [asdict(row) for row in rows]}


def total_words(rows: Sequence[Expected]) -> str:
    """Return how many cells there are and how long they train together, in words."""
    words = f"{len(rows)} cells"
    seconds = [row.seconds for row in rows if row.seconds is not None]
    if seconds:
        words += f"; {sum(seconds) / 60:,.0f} minutes of training in {len(seconds)} of them"
    return words


def _or_dash(value: int | None) -> str:
    return "-" if value is None else short(value)
