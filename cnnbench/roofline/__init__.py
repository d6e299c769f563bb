"""Roofline of a network: peaks of the machine, traffic and arithmetic of operators, and what limits the speed."""
