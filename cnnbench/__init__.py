"""cnnbench: which convolutional network, at what cost, how good, and why.

The package imports nothing heavy here; ``cnnbench.models``, ``cnnbench.data``, ``cnnbench.measure`` and
``cnnbench.bench`` are the rooms, and ARCHITECTURE.md is the floor plan.
"""

__version__ = "0.1.0"
