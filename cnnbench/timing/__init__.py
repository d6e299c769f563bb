"""Timing of networks: single calls, interleaved rounds, batch sizes, fresh processes, and reasons to doubt a time."""
