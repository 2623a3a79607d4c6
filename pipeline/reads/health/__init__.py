"""How far behind each node is."""
