"""Training: the base of all networks, its callbacks, and checkpoints."""
