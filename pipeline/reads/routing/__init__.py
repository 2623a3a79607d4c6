"""Which node serves a read."""
