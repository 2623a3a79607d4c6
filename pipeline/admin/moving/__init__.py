"""Move buckets from one shard to another while ops arrive, compare both before the move counts, and go back."""
