"""Ops as releases wrote them into the log: one file per release, never changed."""
