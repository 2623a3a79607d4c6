"""Read and check the settings of one deployment, and map shard keys to buckets and shards."""
