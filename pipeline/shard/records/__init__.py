"""Keep the pipeline's own rows in each shard: watermarks, producers, ops that are set aside, stops."""
