"""Hosts that make ids over one log in memory, with clocks of their own and a shard that gives spans."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import clock
from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.enqueue.row_ids import RowIds
from pipeline.enqueue.spool_fallback import RedisAway
from pipeline.errors import LogUnavailable, ShardUnavailable
from pipeline.model import EPOCH_MS, Given
from pipeline.oplog.memory.log import MemoryLog
from pipeline.shard.records import ledger_queries
from pipeline.spool import Spool

BUCKETS = 16
TOPOLOGY = Topology(
    load(
        {
            "pipeline": {"buckets": BUCKETS},
            "redis": {"url": "redis://h"},
            "shards": {name: {"primary": f"sqlite://{name}.sqlite"} for name in ("s0", "s1")},
        }
    )
)


class IdLog(MemoryLog):
    """A log that counts how often it was asked for ids, that can be away, and can forget its counters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.away = self.fail_once = False

    def give_ids(self, *arguments: Any) -> Given:
        self.asked += 1
        if self.away or self.fail_once:
            self.fail_once = False
            raise LogUnavailable("away on purpose", sent=False, silent=True)
        return super().give_ids(*arguments)

    def forget_ids(self) -> None:
        self._server.ids.clear()
        self._server.spans.clear()


class Spans:
    """What a shard's primary knows of spans; also the node set and the session that it is reached by."""

    def __init__(self) -> None:
        self.last, self.given, self.away = 0, 0, False

    def primary(self, shard: str) -> Spans:
        if self.away:
            raise ShardUnavailable(shard, "away on purpose")
        return self

    def give(self, above: int, least: int) -> int:
        self.last, self.given = max(self.last + 1, above + 1, least), self.given + 1
        return self.last


class Hosts:
    """One log, one shard, and processes that make ids.

    Attributes:
        now_ms: the hosts' clock.
        redis_ahead_ms: how far that of the log's server is ahead.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now_ms, self.redis_ahead_ms = EPOCH_MS + 3 * 365 * 86_400_000, 0
        self.log: Any = IdLog()
        self.log.now_ms = lambda: self.now_ms + self.redis_ahead_ms
        self.database = Spans()
        monkeypatch.setattr(clock, "wall_ms", lambda: self.now_ms)
        monkeypatch.setattr(ledger_queries, "give_span", lambda session, above, least: session.give(above, least))

    def maker(self, spool: Spool | None = None) -> RowIds:
        """Return what a new process has."""
        database: Any = self.database
        return RowIds(self.log, TOPOLOGY, database, RedisAway(spool))
