"""The spool: the local file that takes ops while Redis does not, and keeps those that must outlive Redis."""
