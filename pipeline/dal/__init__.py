"""pyDAL by duck type."""
