"""Show how a deployment is doing: the one record that every screen reads, and who makes it."""
