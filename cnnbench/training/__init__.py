"""Training: the base class of all networks, and the callbacks of a training run."""
