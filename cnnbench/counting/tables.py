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
    memory = None
    if step is not None:
        memory = training_memory(model, network.image_shape, *step)
    return Count(network, cost, memory, without_values)


def network_table(counts: Sequence[Count]) -> Table:
    """Return a table with one row per network."""
    table = Table(header_style="bold")
    table.add_column("Model", overflow="fold")
    titles = "Image,Params,MACs,FLOPs,Training MACs,x inference,Other ops,Activations,Receptive field"
    for title in titles.split(","):
        table.add_column(title, justify="right", overflow="fold")
    for network, cost, *_ in counts:
        ratio = f"{cost.train_macs / cost.macs:.4f}" if cost.macs and cost.train_macs else "-"
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
        "Share %": "100.00" if cost.macs else "",
        "Training MACs": cost.train_macs,
        "Other ops": cost.other_ops,
        "Field": "",
    }
    for title, total in totals.items():
        table.add_column(title, _number(total), justify="right", overflow="fold")
    for layer in cost.layers:
        calls = f" (x{layer.calls})" if layer.calls > 1 else ""
        table.add_row(
            layer.name or "(the network)",
            layer.type + calls,
            "not called" if layer.output_shape is None else _by(layer.output_shape),
            f"{layer.params:,}",
            f"{layer.macs:,}",
            f"{100 * layer.macs / cost.macs:.2f}" if cost.macs else "-",
            _number(layer.train_macs),
            f"{layer.other_ops:,}",
            _field(layer.receptive_field),
        )
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
        sizes = [f"{size / 2**20:,.1f}" for size in count.memory.figures().values()]
        table.add_row(count.network.name, *sizes)
    return table


def _by(shape: Sequence[int]) -> str:
    """Return a shape in the form 3x32x32."""
    return "x".join(map(str, shape))


def _number(value: int | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,}"


def _field(field: Mapping[str, Any] | str | None) -> str:
    if field is None:
        return "-"
    if isinstance(field, str):
        return field
    size = field["size"]
    return "x".join(f"{n:g}" for n in size) if isinstance(size, list) else f"{size:g}"
