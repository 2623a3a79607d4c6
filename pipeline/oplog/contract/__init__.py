"""What a log can do, role by role. `redis_log.RedisLog` does it over Redis, `memory.MemoryLog` in this process.

Who needs one role takes that one; only the wiring takes a whole `Log`. One contract suite runs over both.
"""

from __future__ import annotations

from typing import Protocol

from pipeline.oplog.contract.appending import (
    APPENDED,
    EVERYWHERE,
    HOLE,
    SEEN,
    Append,
    Appended,
    Appending,
    Epochs,
    EpochStale,
    IdReserved,
    Line,
    Placed,
    Scope,
    one_by_append,
    scopes_of,
)
from pipeline.oplog.contract.chores import Admission, Chores, Numbers, Secrets
from pipeline.oplog.contract.definitions import Definitions
from pipeline.oplog.contract.draining import Entries, Readable, Watermarks, Work
from pipeline.oplog.contract.news import Budgets, Fitness, News

__all__ = [
    "APPENDED",
    "EVERYWHERE",
    "HOLE",
    "SEEN",
    "Admission",
    "Append",
    "Appended",
    "Appending",
    "Budgets",
    "Chores",
    "Definitions",
    "Entries",
    "EpochStale",
    "Epochs",
    "Fitness",
    "IdReserved",
    "Line",
    "Log",
    "News",
    "Numbers",
    "Placed",
    "Readable",
    "Scope",
    "Secrets",
    "Watermarks",
    "Work",
    "one_by_append",
    "scopes_of",
]


class Log(
    Epochs,
    Appending,
    Readable,
    Work,
    Watermarks,
    Chores,
    Numbers,
    Admission,
    Secrets,
    News,
    Fitness,
    Budgets,
    Protocol,
):
    """The logs of all buckets, the dirty sets and the bells, and all that processes tell one another."""

    def close(self) -> None:
        """Close all connections."""
        ...
