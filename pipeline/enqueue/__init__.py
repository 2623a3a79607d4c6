"""The write path: from a call to an op in the log, and from the log to rows."""
