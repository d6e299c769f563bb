"""What ``cnnbench validate`` and ``cnnbench test`` print: the accuracy with its interval, and the other figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rich.table import Table

from cnnbench.confusion import Counts, accuracy

NAMES = {"val": "validation", "test": "test"}


def outcome_table(
    title: str, split: Literal["val", "test"], figures: Mapping[str, float], counts: Counts | None
) -> Table:
    """Return the table of a validation or a test.

    Args:
        title: Network and data.
        split: Images that the network saw.
        figures: Figures that the Trainer returned, by their name in logs.
        counts: Confusion matrix, (K, K); None for a module of another kind, whose figures are printed as they are.
    """
    table = Table(title=f"{title}, {NAMES[split]}", title_justify="left", title_style="bold", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    shown = dict(figures)
    if counts is not None and any(map(sum, counts)):
        found = accuracy(counts, split)
        shown.pop(f"{split}/accuracy", None)
        table.add_row("accuracy", f"{found[f'{split}_accuracy']:.2%}")
        low, high = found[f"{split}_accuracy_low"], found[f"{split}_accuracy_high"]
        table.add_row("95 % interval", f"{low:.2%} to {high:.2%}")
        table.add_row("images", f"{sum(map(sum, counts)):,}")
        shown = {name.removeprefix(f"{split}/"): value for name, value in shown.items()}
    for name, value in shown.items():
        table.add_row(name, f"{value:.4g}")
    return table
