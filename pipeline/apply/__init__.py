"""In the worker: from the log to rows."""
