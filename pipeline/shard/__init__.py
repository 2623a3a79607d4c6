"""The shards: sessions, dialects and the pipeline's own tables, through pyDAL."""
