"""What limits a network: peaks of the machine, traffic and arithmetic of operators, and the verdict."""
