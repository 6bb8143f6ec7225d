"""Processes: signals, workers and what keeps them running."""
