"""The log: Redis streams, one per bucket, and what rings a worker."""
