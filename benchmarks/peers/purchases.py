"""Do what the tasks of every peer do: one pyDAL insert and its commit on the row's shard.

A pyDAL connection belongs to a thread, so each thread of a worker opens its own at its first task.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from benchmarks.rows import Row
from benchmarks.target import Target

target = Target.load(Path(os.environ["PIPELINE_CONFIG"]))
_local = threading.local()


def insert(row: Row) -> None:
    """Insert one row and commit."""
    if not hasattr(_local, "dals"):
        _local.dals = target.open_dals()
    db = _local.dals[row["customer"] % len(_local.dals)]
    db.purchase.insert(**row)
    db.commit()
