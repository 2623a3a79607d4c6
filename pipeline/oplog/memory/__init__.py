"""The log in this process, for tests and for the sandbox: it answers as `redis_log.RedisLog` does, faults included."""

from __future__ import annotations

from pipeline.oplog.memory.appending import MemoryAppending
from pipeline.oplog.memory.chores import MemoryChores
from pipeline.oplog.memory.definitions import MemoryDefinitions
from pipeline.oplog.memory.draining import MemoryEntries, MemoryWatermarks, MemoryWork
from pipeline.oplog.memory.news import MemoryNews


class MemoryLog(
    MemoryAppending, MemoryDefinitions, MemoryEntries, MemoryWork, MemoryWatermarks, MemoryChores, MemoryNews
):
    """A `contract.Log` of one process: all roles on one `Server`; thread-safe."""
