"""Several shards, one result."""
