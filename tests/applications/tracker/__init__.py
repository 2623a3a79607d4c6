"""A tracker of tickets: its front end reads JSON and posts comments and votes."""

from . import controllers  # noqa: F401
