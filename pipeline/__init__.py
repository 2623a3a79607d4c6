"""The write path of pyDAL: queued writes, applied to shards exactly once and in order."""
