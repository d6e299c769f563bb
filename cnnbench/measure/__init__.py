"""Measures: functions from a network to figures whose names carry units."""
