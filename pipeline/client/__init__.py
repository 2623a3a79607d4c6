"""The client: one deployment, seen from this process. One per process; threads may share it."""

from __future__ import annotations

from pipeline.client.answers import Answers
from pipeline.client.writes import Writes


class Pipeline(Writes, Answers):
    """One deployment, seen from this process; see `Parts` for the arguments."""
