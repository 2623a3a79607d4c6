"""A shop whose orders go through the pipeline."""

from . import controllers  # noqa: F401
