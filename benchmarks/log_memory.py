"""Read what the pipeline's logs hold in Redis, from outside: streams, entries, payloads, values, memory."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

import msgspec
import redis

#: Entries per stream whose payload is weighed.
_SAMPLE = 20
#: Where an op's values are in its text, and the ops of a pack; see `pipeline/model/__init__.py`.
_VALUES, _OPS = 6, 12


@dataclass(frozen=True, slots=True)
class LogSize:
    """Entries in all logs, their payloads, the values of rows in these, and Redis's memory without its buffers."""

    entries: int
    payload_bytes: int
    values_bytes: int
    memory_bytes: int


def log_size(log: redis.Redis) -> LogSize:
    """Return the size of all logs now."""
    memory = log.info("memory")
    buffers = memory.get("mem_aof_buffer", 0) + memory.get("mem_clients_normal", 0)
    texts = [max(fields.values(), key=len) for key in _streams(log) for _, fields in log.xrange(key)]
    return LogSize(len(texts), sum(map(len, texts)), sum(map(_values, texts)), memory["used_memory"] - buffers)


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


def _values(text: bytes) -> int:
    """Return the bytes of the values in an entry's text: of a row, of a sheet's columns, or of the ops of a pack."""
    op = msgspec.json.decode(text)
    return sum(len(msgspec.json.encode(one[_VALUES])) for one in (op, *(op[_OPS] or ())) if one[_VALUES])
