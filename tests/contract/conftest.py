"""Every log there is: in this process, over Redis 7.0, over Valkey, over both as two groups;
and a shard's sessions, as `kind` says.

Over a server the log has the rights that deploy/ gives to workers, and no other.

A claim of `contract` is tested over all logs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from support.sandbox.logs import ALL, EPOCH, S0, raise_to
from support.sandbox.sessions import other, session, shard, uri
from support.servers.log_users import as_shipped

from pipeline.config.settings import load
from pipeline.oplog import Log
from pipeline.oplog.appends import Line
from pipeline.oplog.groups import GroupedLog
from pipeline.oplog.memory.log import MemoryLog
from pipeline.oplog.redis.log import RedisLog

__all__ = ["line", "log", "other", "session", "shard", "uri"]


def grouped(first: str, second: str) -> GroupedLog:
    """Return a log over two Redis: the logs of s0 are in the second."""
    shards = {"s0": {"primary": "sqlite://s0", "buckets": "0-63", "redis": "two"}}
    settings = load(
        {
            "pipeline": {"buckets": 64},
            "redis": {"url": first, "two": {"url": second}},
            "shards": {**shards, "s1": {"primary": "sqlite://s1", "buckets": ""}},
        },
        {},
    )
    object.__setattr__(settings.redis, "prefix", f"pl:t{uuid4().hex[:12]}")  # the users' rights begin with "pl:"
    return GroupedLog(settings, timeout_s=5)


@pytest.fixture(params=["memory", "redis", "valkey", "two groups"])
def log(request: pytest.FixtureRequest, log_server: Callable[[str], object]) -> Iterator[Log]:
    """An empty log whose epochs are raised."""
    log: Log
    if request.param == "memory":
        log = MemoryLog()
    elif request.param == "two groups":
        log = grouped(*(as_shipped(log_server(kind), "worker") for kind in ("redis", "valkey")))
    else:
        server: Any = log_server(request.param)
        log = RedisLog(as_shipped(server, "worker"), prefix=f"pl:t{uuid4().hex[:12]}", timeout_s=5)
    for scope in (S0, ALL):
        raise_to(log, scope, EPOCH)
    yield log
    log.close()


@pytest.fixture
def line(log: Log) -> Iterator[Line]:
    line = log.line()
    yield line
    line.close()
