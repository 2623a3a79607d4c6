"""What `pipeline check` looks for: one file per subject, each a function from evidence to findings, with no I/O."""
