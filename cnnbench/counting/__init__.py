"""What a network costs on paper: operators, parameters, activations, receptive fields, memory of a training step."""
