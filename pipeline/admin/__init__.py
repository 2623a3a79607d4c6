"""What an operator does: check, migrate, status, a local cluster."""
