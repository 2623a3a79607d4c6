"""Read pyDAL's tables, fields and queries by duck type."""
