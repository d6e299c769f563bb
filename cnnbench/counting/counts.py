"""Counts of networks by name: a `Count` holds all figures of a network, and makes the JSON document of them."""

from __future__ import annotations

from typing import Any, NamedTuple

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
