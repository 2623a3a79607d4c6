"""The log in this process, for tests and for the sandbox: it answers as `redis_log.RedisLog` does, faults included."""

from __future__ import annotations

from pipeline.log.memory.appending import MemoryAppending
from pipeline.log.memory.chores import MemoryChores
from pipeline.log.memory.definitions import MemoryDefinitions
from pipeline.log.memory.draining import MemoryEntries, MemoryWatermarks, MemoryWork
from pipeline.log.memory.news import MemoryNews


class MemoryLog(
    MemoryAppending, MemoryDefinitions, MemoryEntries, MemoryWork, MemoryWatermarks, MemoryChores, MemoryNews
):
    """A `contract.Log` of one process: all roles on one `Server`; thread-safe."""
