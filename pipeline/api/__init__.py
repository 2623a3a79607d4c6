"""The public functions: each is a call of this process's client."""
