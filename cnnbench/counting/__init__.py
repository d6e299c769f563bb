"""Costs of a network from its shapes alone: operators, parameters, activations, receptive fields, training memory."""

CONVENTION = (
    "1 MAC = 1 multiply-add = 2 FLOPs; convolutions and matrix products only; bias excluded; one image; inference; "
    "training MACs are those of forward, input gradients and weight gradients"
)
