"""`pipeline adopt`: what must change in an existing database before the pipeline can take its tables."""
