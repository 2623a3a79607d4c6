"""Do what an operator does: migrate, check, adopt, trim, report the status."""
