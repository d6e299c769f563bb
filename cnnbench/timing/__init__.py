"""How long a network takes: one call, rounds in turns, batch sizes, fresh processes, and reasons to doubt."""
