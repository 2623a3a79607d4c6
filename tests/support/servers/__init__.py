"""Real servers, ways to break them, and processes that die on purpose."""
