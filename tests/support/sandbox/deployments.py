"""One deployment over SQLite, whose processes may each read a configuration of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydal import DAL, Field

from pipeline.admin.migration import migrate
from pipeline.apply.applier import Applier
from pipeline.apply.transaction import Outcome
from pipeline.client import Client
from pipeline.config.settings import load
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.memory.log import MemoryLog
from pipeline.shard.columns import own_tables

BY_CUSTOMER = {"purchase": {"shard_key": "customer"}, "country": {"reference": True}}


class Site:
    """A deployment's servers: a log, and a folder of databases. Any number of clients read files of their own."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, MemoryLog()
        self._clients: list[Client] = []

    def client(
        self,
        *,
        buckets: int = 64,
        shards: Mapping[str, str | None] = {"s0": None, "s1": None},
        tables: Mapping[str, Any] = BY_CUSTOMER,
        redis: Mapping[str, str] = {},
        log: MemoryLog | None = None,
        folder: str = "",
        replicas: str = "",
        file: str = "web.toml",
        spool: str = "",
    ) -> Client:
        """Return a process's client, whose configuration may say anything."""
        home = self.folder / folder
        home.mkdir(exist_ok=True)
        sections = {
            name: {"primary": f"sqlite://{home}/{name}.sqlite"} | ({} if ranges is None else {"buckets": ranges})
            for name, ranges in shards.items()
        }
        for name, section in sections.items():
            section |= {"replicas": [f"sqlite://{self.folder / replicas}/{name}.sqlite"]} if replicas else {}
        configuration = {
            "pipeline": {"buckets": buckets},
            "redis": {"url": "redis://redis.invalid/0", **redis},
            "shards": sections,
            "tables": tables,
        } | ({"spool": {"path": str(self.folder / spool), "max_mb": 1}} if spool else {})
        settings = replace(load(configuration), source=file)
        made = Client(settings, log=log or self.log, bell=SilentBell())
        self._clients.append(made)
        return made

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def insert(client: Client, customer: int = 7, **how: Any) -> Any:
    return client.enqueue_insert(model().purchase, customer=customer, qty=1, **how)


def model() -> Any:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table("purchase", Field("customer", "integer"), Field("qty", "integer"))
    db.define_table("country", Field("name", length=60))
    return db


def drain(client: Client) -> None:
    for shard in client.topology.shards:
        drain_shard(client, shard)


def drain_shard(client: Client, shard: str) -> None:
    """Apply all that is due on a shard, by one worker: it remembers that ops need ops of other buckets."""
    worker = applier(client, shard)
    while worker.apply().left:
        pass


def apply(client: Client, shard: str) -> Outcome:
    return applier(client, shard).apply()


def applier(client: Client, shard: str) -> Applier:
    session = client.nodes.primary(shard)
    return Applier(shard, session, client.log, client.settings.apply, tables=client.settings.tables)


def run(site: Site, *rows: int, tables: Mapping[str, Any] = BY_CUSTOMER, **how: Any) -> Client:
    """Set the deployment up, and let it apply some rows."""
    client = site.client(file="worker.toml", tables=tables, **how)
    client.define_tables(model())
    migrate(client)
    for customer in rows:
        insert(client, customer)
    drain(client)
    return client


def backup_of(client: Client, shard: str) -> bytes:
    client.nodes.close()
    return file_of(client, shard).read_bytes()


def restore(client: Client, shard: str, backup: bytes) -> None:
    client.nodes.close()
    file_of(client, shard).write_bytes(backup)


def drop_own_tables(client: Client, shard: str) -> None:
    """Leave what a dump of the application's tables brings back."""
    session = client.nodes.primary(shard)
    with session.transaction():
        for name, _ in own_tables("sqlite"):
            session.execute(f"DROP TABLE {name}")


def file_of(client: Client, shard: str) -> Path:
    return Path(client.settings.shards[shard].primary.removeprefix("sqlite://"))


def rows_of(client: Client, table: str = "purchase") -> list[Any]:
    return sorted(
        row for shard in client.topology.shards for row in client.nodes.primary(shard).query(f"SELECT * FROM {table}")
    )
