"""Read what the pipeline's logs hold in Redis, from outside: streams, entries, payloads, memory."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

import redis

#: Entries per stream whose payload is weighed.
_SAMPLE = 20


@dataclass(frozen=True, slots=True)
class LogSize:
    """Entries in all logs and the memory that Redis uses, without its buffers."""

    entries: int
    memory_bytes: int


def log_size(log: redis.Redis) -> LogSize:
    """Return the size of all logs now."""
    memory = log.info("memory")
    buffers = memory.get("mem_aof_buffer", 0) + memory.get("mem_clients_normal", 0)
    return LogSize(sum(log.xlen(key) for key in _streams(log)), memory["used_memory"] - buffers)


def payload_bytes(log: redis.Redis) -> float:
    """Return the mean size of the last payloads: the longest value of an entry; its other fields are overhead.

    Raises:
        ValueError: there is no log.
    """
    sizes = [max(map(len, fields.values())) for key in _streams(log) for _, fields in log.xrevrange(key, count=_SAMPLE)]
    if not sizes:
        raise ValueError("Redis holds no stream; enqueue something first")
    return mean(sizes)


def _streams(log: redis.Redis) -> list[bytes]:
    return list(log.scan_iter(count=10_000, _type="stream"))
