"""Counts of networks as tables for the terminal; they only format figures, so this module does without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from cnnbench.counting.counts import Count, Step


def network_table(documents: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with one row per network, from the documents of the counts."""
    # Cells are folded and not cut off, so that no figure is lost in a narrow terminal.
    table = Table(header_style="bold")
    table.add_column("Model", overflow="fold")
    titles = "Image,Params,MACs,FLOPs,Training MACs,x inference,Other ops,Activations,Receptive field"
    for title in titles.split(","):
        table.add_column(title, justify="right", overflow="fold")
    for count in documents:
        ratio = "-"
        if count["macs"] and count["train_macs"]:
            ratio = f"{count['train_macs'] / count['macs']:.4f}"
        costs = [count[key] for key in ("params", "macs", "flops", "train_macs")]
        sizes = [count[key] for key in ("other_ops", "activations")]
        cells = [*map(_number, costs), ratio, *map(_number, sizes), _field(count["receptive_field"])]
        shape = _by((count["in_channels"], count["image_size"], count["image_size"]))
        table.add_row(count["model"], shape, *cells)
    return table


def layer_table(count: Count) -> Table:
    """Return a table with one row per layer of a network, and the totals in its footer."""
    cost = count.cost
    table = Table(
        title=count.network.name, title_justify="left", title_style="bold", header_style="bold", show_footer=True
    )
    table.add_column("Layer", "total", overflow="fold")
    table.add_column("Type")
    totals: dict[str, Any] = {
        "Output": "",
        "Params": cost.params,
        "MACs": cost.macs,
        "Share %": "",
        "Training MACs": cost.train_macs,
        "Other ops": cost.other_ops,
        "Field": "",
    }
    if cost.macs:
        totals["Share %"] = "100.00"
    for title, total in totals.items():
        table.add_column(title, _number(total), justify="right", overflow="fold")
    for layer in cost.layers:
        kind, shape, share = layer.type, "not called", "-"
        if layer.calls > 1:
            kind += f" (x{layer.calls})"
        if layer.output_shape is not None:
            shape = _by(layer.output_shape)
        # A network without any multiply-add has no shares.
        if cost.macs:
            share = f"{100 * layer.macs / cost.macs:.2f}"
        # The path of the network itself is empty.
        name = layer.name or "(the network)"
        figures = (layer.params, layer.macs, share, layer.train_macs, layer.other_ops)
        table.add_row(name, kind, shape, *map(_number, figures), _field(layer.receptive_field))
    return table


def memory_table(counts: Sequence[Count], step: Step) -> Table:
    """Return a table of the memory of a training step in MiB, with one row per network."""
    title = (
        f"Memory of a training step in MiB, {step.batch_size} images, {step.precision}, {step.optimizer}; an estimate "
        "from the shapes, without workspaces of kernels"
    )
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.add_column("Model", overflow="fold")
    for name in ("Parameters", "Buffers", "Gradients", "Optimizer", "Images", "Stored activations", "Peak"):
        table.add_column(name, justify="right", overflow="fold")
    for count in counts:
        assert count.memory is not None
        # `figures` has the sizes in the order of the columns.
        sizes = [f"{size / 2**20:,.1f}" for size in count.memory.figures().values()]
        table.add_row(count.network.name, *sizes)
    return table


def _by(shape: Sequence[int]) -> str:
    """Return a shape in the form 3x32x32."""
    return "x".join(map(str, shape))


def _number(value: int | str | None) -> str:
    """Return a figure with separators between thousands, a text unchanged, and a dash for a missing figure."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,}"


def _field(field: Mapping[str, Any] | str | None) -> str:
    """Return the size of a receptive field in pixels; one number if all axes have the same size."""
    if field is None:
        return "-"
    if isinstance(field, str):
        return field
    size = field["size"]
    if isinstance(size, list):
        return "x".join(f"{n:g}" for n in size)
    return f"{size:g}"
