"""What several parts need: a spool of their own, and the demo's data set."""

from __future__ import annotations

from support.sandbox.demo import dataset
from support.sandbox.spooled import spool

__all__ = ["dataset", "spool"]
