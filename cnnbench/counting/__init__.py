"""Costs of a network from its shapes alone: operators, parameters, activations, receptive fields, training memory."""
