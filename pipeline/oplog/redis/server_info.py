"""Query a Redis or Valkey server for its version, limits, persistence and clock, which `check` judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis

from pipeline import clock
from pipeline.errors import LogUnavailable
from pipeline.oplog.redis.connection import connect, translated

#: How long a server may take to answer, s.
ANSWER_S = 2.0


@dataclass(frozen=True, slots=True)
class Health:
    """One server, seen through one database.

    Attributes:
        version: of the server's commands; Valkey names the Redis version that it is compatible with.
        run_id: equal for two addresses of one server.
        role: `master` or `slave`.
        max_bytes: the memory limit, 0 for none.
        policy: what the server evicts at the limit.
        append_only: whether the server has an append-only file.
        fsync: when the append-only file is synced, or None if this user may not see it.
        skew_ms: the server's clock minus this machine's; 0 if the round trip explains the difference.
        cluster: whether the server is a node of a Redis Cluster.
        bulk_bytes: the size of the largest text that it takes, or None if this user may not see it.
    """

    version: str
    run_id: str
    role: str
    max_bytes: int
    policy: str
    append_only: bool
    fsync: str | None
    skew_ms: int
    cluster: bool
    bulk_bytes: int | None = None

    @property
    def release(self) -> tuple[int, ...]:
        """The first two numbers of the version."""
        return tuple(int(part) for part in self.version.split(".")[:2] if part.isdigit())


def health_of(url: str) -> Health:
    """Query the server at an address.

    Args:
        url: of the log or of the broker.

    Raises:
        LogUnavailable: the server did not answer in time, or refused.
    """
    try:
        client = connect(url, read_s=ANSWER_S, connect_s=ANSWER_S)
    except ValueError as error:
        raise LogUnavailable("its address cannot be read", sent=False) from error
    try:
        with translated():
            facts: dict[str, Any] = dict(client.info())
            before = clock.wall_ms()
            seconds, micros = client.time()
            after = clock.wall_ms()
        there = seconds * 1000 + micros // 1000
        return Health(
            version=str(facts.get("redis_version", "")),
            run_id=str(facts.get("run_id", "")),
            role=str(facts.get("role", "")),
            max_bytes=int(facts.get("maxmemory", 0)),
            policy=str(facts.get("maxmemory_policy", "")),
            append_only=bool(int(facts.get("aof_enabled", 0))),
            fsync=setting(client, "appendfsync"),
            skew_ms=there - min(max(there, before), after),
            cluster=bool(int(facts.get("cluster_enabled", 0))),
            bulk_bytes=int(setting(client, "proto-max-bulk-len") or 0) or None,
        )
    finally:
        client.close()


def setting(client: redis.Redis, name: str) -> str | None:
    """Return a setting of a server; None where the server hides its configuration, as managed ones do.

    Args:
        client: of the server.
        name: as in `redis.conf`.
    """
    try:
        found: Any = client.config_get(name)
        return str(found.get(name) or "") or None
    except redis.exceptions.ResponseError:
        return None
