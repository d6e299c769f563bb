"""Counts of networks by name, as tables for the terminal and as a JSON document.

A `Count` holds all figures of a network; the tables and the document only format them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from cnnbench.counting.complexity import Complexity, complexity
from cnnbench.counting.memory import TrainingMemory, training_memory
from cnnbench.counting.meta_copy import build_without_values
from cnnbench.network import Network


class Step(NamedTuple):
    """Training step whose memory is estimated.

    Attributes:
        batch_size: Number of images per step.
        precision: Number format, by Lightning's name, such as ``bf16-mixed``.
        optimizer: Name of the optimizer; see `cnnbench.counting.memory`.
    """

    batch_size: int
    precision: str
    optimizer: str


class Count(NamedTuple):
    """Figures of one network.

    Attributes:
        network: Network that was counted.
        cost: Complexity of the network.
        memory: Memory of a training step; None if it was not estimated.
        without_values: Whether the network was built without values, which takes no memory for weights.
    """

    network: Network
    cost: Complexity
    memory: TrainingMemory | None
    without_values: bool

    def remarks(self) -> list[str]:
        """Return what a reader must know about the count, as a list of lines."""
        lines = [f"not counted: {name}" for name in self.cost.uncounted] + list(self.cost.remarks)
        if not self.without_values:
            lines.append("built with its weights, because its constructor computes with them")
        return lines

    def document(self, per_layer: bool) -> dict[str, Any]:
        """Return the figures for JSON.

        Args:
            per_layer: Whether to include the figures of every layer.
        """
        figures = {
            "model": self.network.name,
            "in_channels": self.network.in_channels,
            "image_size": self.network.image_size,
            "num_classes": self.network.num_classes,
            **self.cost.figures(),
        }
        # What is not counted has a key of its own.
        figures["remarks"] = [line for line in self.remarks() if not line.startswith("not counted")]
        if self.memory is not None:
            figures["training_memory"] = self.memory.figures()
        if per_layer:
            figures["layers"] = [vars(layer) for layer in self.cost.layers]
        return figures


def count_network(network: Network, training: bool, step: Step | None) -> Count:
    """Build a network and count it.

    Args:
        network: Network to build, with the shape of its images.
        training: Whether to count the backward pass as well.
        step: Training step whose memory is estimated; None to skip the estimate.

    Returns:
        The figures of the network.

    Raises:
        UserError: The network does not run on its images without values.
    """
    model, without_values = build_without_values(network.build)
    cost = complexity(model, network.image_shape, training=training)
    # The estimate runs another copy, on tensors that know their types.
    memory = None
    if step is not None:
        memory = training_memory(model, network.image_shape, *step)
    return Count(network, cost, memory, without_values)


def network_table(counts: Sequence[Count]) -> Table:
    """Return a table with one row per network."""
    # Cells are folded and not cut off, so that no figure is lost in a narrow terminal.
    table = Table(header_style="bold")
    table.add_column("Model", overflow="fold")
    titles = "Image,Params,MACs,FLOPs,Training MACs,x inference,Other ops,Activations,Receptive field"
    for title in titles.split(","):
        table.add_column(title, justify="right", overflow="fold")
    for network, cost, *_ in counts:
        ratio = "-"
        if cost.macs and cost.train_macs:
            ratio = f"{cost.train_macs / cost.macs:.4f}"
        figures = (cost.params, cost.macs, cost.flops, cost.train_macs, ratio, cost.other_ops, cost.activations)
        shape = _by(network.image_shape)
        table.add_row(network.name, shape, *map(_number, figures), _field(cost.receptive_field))
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
