"""What `pipeline migrate` does: the steps that expand a table, those that contract it, and how a step is run."""
