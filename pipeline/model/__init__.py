"""Plain values; no I/O."""
