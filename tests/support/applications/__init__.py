"""Applications that run plain and on the pipeline: their servers, one visit for both, and how the two are compared."""
