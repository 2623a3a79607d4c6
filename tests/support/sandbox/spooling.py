"""A sandbox whose clients have a spool, over a log that can be away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydal import DAL, Field

from pipeline.client import Client
from pipeline.enqueue.spool_fallback import DrainThread
from pipeline.errors import LogUnavailable
from pipeline.model import START, Entry, decode
from pipeline.model.receipt import Receipt
from pipeline.oplog.memory.log import MemoryLog
from pipeline.testing import Sandbox

TABLES = {"purchase": {"shard_key": "customer"}}


class Switched(MemoryLog):
    """A log that can be away: then nothing that a web request needs of it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.asked = 0

    def _gone(self) -> None:
        self.asked += 1
        if self.away:
            raise LogUnavailable("away on purpose", sent=False, silent=True)

    def append(self, *arguments: Any) -> Any:
        self.asked += 1
        if self.away:
            raise ConnectionError("away on purpose")
        return super().append(*arguments)

    def claim_key(self, *arguments: Any) -> int:
        self._gone()
        return super().claim_key(*arguments)

    def epoch(self, scope: str) -> Any:
        self._gone()
        return super().epoch(scope)

    def publish_schemas(self, *arguments: Any) -> None:
        self._gone()
        super().publish_schemas(*arguments)

    def schema(self, hash: str) -> Any:
        self._gone()
        return super().schema(hash)

    def give_ids(self, *arguments: Any) -> Any:
        self._gone()
        return super().give_ids(*arguments)

    def secret(self, proposed: str) -> str:
        self._gone()
        return super().secret(proposed)


class Shop:
    """A sandbox whose clients have a spool; nothing drains it but the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(DrainThread, "wake", lambda self, at_once=False: None)
        monkeypatch.setattr("pipeline.testing.MemoryLog", Switched)
        self.box = Sandbox(folder, TABLES, 2, 16)
        self.log: Any = self.box.log
        self.folder = folder
        self.db = DAL("sqlite:memory", migrate=False)
        self.db.define_table("purchase", Field("customer", "integer"), Field("qty", "integer", default=1))
        self.box.client.define_tables(self.db)
        self.client = self.another()

    def another(self) -> Client:
        """Return a client as another process of the host would have it."""
        settings = self.box.client.settings
        made = Client(
            {
                "pipeline": {"buckets": settings.buckets},
                "redis": {"url": settings.redis.url},
                "shards": {name: {"primary": shard.primary} for name, shard in settings.shards.items()},
                "tables": TABLES,
                "spool": {"path": str(self.folder / "app.spool"), "max_mb": 1},
            },
            log=self.log,
            bell=self.box.bell,
        )
        made.define_tables(self.db)
        return made

    def buy(self, qty: int, client: Client | None = None, **options: Any) -> Receipt:
        return (client or self.client).enqueue_insert(self.db.purchase, {"customer": 7, "qty": qty}, **options)

    def drain(self) -> Any:
        assert self.client.drainer is not None
        self.client.away.close()
        return self.client.drainer.drain()

    def entries(self) -> list[Entry]:
        """Return what is in the logs, in order per bucket."""
        buckets = range(17)
        found = self.log.read(dict.fromkeys(buckets, START), dict.fromkeys(buckets, 1000))
        return [entry for entries in found.values() for entry in entries]

    def logged(self) -> int:
        return len(self.entries())

    def bought(self) -> list[int]:
        """Apply all, and return what was bought, in the order of the log; what the log has no more comes first."""
        self.box.drain()
        found = {row["id"]: row["qty"] for row in self.box.rows("purchase")}
        logged = dict.fromkeys(decode(entry.payload).id for entry in self.entries())
        return [found[id] for id in (*(found.keys() - logged), *logged) if id in found]
