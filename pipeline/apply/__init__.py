"""Apply ops in the worker: from the log to rows."""
