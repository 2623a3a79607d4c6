"""Send a year of flights through the whole system, and check every row."""
