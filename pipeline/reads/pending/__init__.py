"""Queued ops laid over a row."""
