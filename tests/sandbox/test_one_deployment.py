"""Processes that read different configurations of one deployment: refused before the first wrong write, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydal import DAL, Field

from pipeline.admin.migrate import migrate, plan_of
from pipeline.apply.applier import Applier
from pipeline.apply.transaction import Outcome
from pipeline.client import Client
from pipeline.config.settings import load
from pipeline.errors import WrongDeployment
from pipeline.model.wait_reason import WaitReason
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.memory.log import MemoryLog
from pipeline.shard.records.own_tables import own_tables

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
        file: str = "web.toml",
    ) -> Client:
        """Return a process's client, whose configuration may say anything."""
        home = self.folder / folder
        home.mkdir(exist_ok=True)
        sections = {
            name: {"primary": f"sqlite://{home}/{name}.sqlite"} | ({} if ranges is None else {"buckets": ranges})
            for name, ranges in shards.items()
        }
        configuration = {
            "pipeline": {"buckets": buckets},
            "redis": {"url": "redis://redis.invalid/0", **redis},
            "shards": sections,
            "tables": tables,
        }
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


def insert(client: Client, customer: int = 7) -> Any:
    return client.enqueue_insert(model().purchase, customer=customer, qty=1)


def model() -> Any:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table("purchase", Field("customer", "integer"), Field("qty", "integer"))
    db.define_table("country", Field("name", length=60))
    return db


def drain(client: Client) -> None:
    for shard in client.topology.shards:
        while apply(client, shard).left:
            pass


def apply(client: Client, shard: str) -> Outcome:
    session = client.nodes.primary(shard)
    return Applier(shard, session, client.log, client.settings.apply, tables=client.settings.tables).apply()


def run(site: Site, *rows: int) -> Client:
    """Set the deployment up, and let it apply some rows."""
    client = site.client(file="worker.toml")
    client.define_tables(model())
    migrate(client)
    for customer in rows:
        insert(client, customer)
    drain(client)
    return client


def test_another_number_of_buckets_is_refused_with_both_values(site: Site) -> None:
    run(site, 7)
    other = site.client(buckets=48)

    with pytest.raises(WrongDeployment, match=r"buckets is 48 in web.toml, but 64 in worker.toml; write buckets = 64"):
        insert(other)
    with pytest.raises(WrongDeployment, match=r"buckets is 48"):
        migrate(other)
    assert next(fault.why for fault in plan_of(other).faults).startswith("[pipeline] buckets is 48")


@pytest.mark.parametrize(
    "spread", [{"shard_key": "qty"}, {"shard_key": "customer", "rule": "modulo"}, {"reference": True}, {}]
)
def test_another_spread_of_a_table_with_rows_is_refused(site: Site, spread: dict[str, Any]) -> None:
    run(site, 7)
    tables = {**BY_CUSTOMER, "purchase": spread} if spread else {"country": {"reference": True}}

    with pytest.raises(WrongDeployment, match=r"\[tables\.purchase\] is spread .* pipeline adopt-rows purchase"):
        insert(site.client(tables=tables))


def test_a_table_without_rows_may_be_spread_otherwise_and_a_new_table_may_come(site: Site) -> None:
    run(site)
    tables = {"purchase": {"shard_key": "qty"}, "basket": {"shard_key": "customer"}}

    insert(site.client(tables=tables))

    drain(site.client(tables=tables))
    with pytest.raises(WrongDeployment, match=r"by shard_key = 'customer'.*but by shard_key = 'qty'"):
        insert(site.client())


@pytest.mark.parametrize(
    ("shards", "why"),
    [
        ({"s0": None}, r"\[shards\.s1\] is missing in web.toml, but holds buckets 32-63"),
        ({"s1": None, "s0": None}, r"\[shards\.s0\] has the buckets 32-63 in web.toml, but 0-31"),
        ({"s0": None, "s1": None, "s2": None}, r"\[shards\.s2\] is new .* pipeline shard add s2"),
    ],
)
def test_other_shards_are_refused(site: Site, shards: dict[str, None], why: str) -> None:
    run(site, 7)

    with pytest.raises(WrongDeployment, match=why):
        insert(site.client(shards=shards))
    with pytest.raises(WrongDeployment, match=why):
        migrate(site.client(shards=shards))


@pytest.mark.parametrize(
    ("redis", "why"),
    [({"prefix": "other"}, "prefix is 'other'"), ({"url": "redis://other.invalid/0"}, "which knows nothing of it")],
)
def test_a_second_queue_over_the_same_databases_is_refused_an_epoch(
    site: Site, redis: dict[str, str], why: str
) -> None:
    run(site, 7)
    second = site.client(redis=redis, log=MemoryLog())

    with pytest.raises(WrongDeployment, match=rf"{why}.* pipeline restore --redis"):
        insert(second)
    with pytest.raises(WrongDeployment, match=why):
        migrate(second)
    assert second.log.epoch("s0")[0] == 0


def test_staging_is_refused_production_s_queue(site: Site) -> None:
    run(site, 7)
    fresh = site.client(folder="staging")

    with pytest.raises(WrongDeployment, match="a \\[redis\\] prefix or url of its own"):
        migrate(fresh)

    before = set(site.log.tails(range(65)).values())
    own = site.client(folder="staging", redis={"prefix": "staging"}, log=MemoryLog())
    migrate(own)
    with pytest.raises(WrongDeployment, match="belongs to the deployment of"):
        insert(site.client(folder="staging"))
    assert set(site.log.tails(range(65)).values()) == before


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


def test_a_database_restored_without_our_tables_is_not_prepared_to_apply_the_log_once_more(site: Site) -> None:
    client = run(site, *range(20))
    before = rows_of(client)
    for shard in client.topology.shards:
        drop_own_tables(client, shard)

    with pytest.raises(WrongDeployment, match=r"lacks what was applied there .* pipeline restore s0"):
        migrate(client)

    assert rows_of(client) == before
    assert not client.nodes.primary("s0").query("SELECT 1 FROM sqlite_master WHERE name = 'pipeline_watermarks'")


def test_nothing_is_applied_onto_an_older_database_whose_log_is_gone(site: Site) -> None:
    client = run(site, 7)
    bucket = client.topology.bucket_of("purchase", 7)
    shard = client.topology.shard_of(bucket)
    older = backup_of(client, shard)
    for _ in range(5):
        insert(client, 7)
    drain(client)
    site.log.trim({bucket: site.log.tails([bucket])[bucket]})
    restore(client, shard, older)
    waits = insert(client, 7)

    for _ in range(4):
        apply(client, shard)

    assert len(rows_of(client)) == 1
    assert waits.status() == "queued"
    reason = WaitReason.from_json(next(iter(site.log.waits(shard).notes.values()))[1])
    assert reason is not None
    assert reason.kind == "restored"
    with pytest.raises(WrongDeployment, match=rf"in the buckets {bucket}: .* pipeline restore {shard}"):
        migrate(client)


def test_an_older_database_whose_log_is_whole_is_brought_up_to_date_by_the_log(site: Site) -> None:
    client = run(site, 7)
    shard = client.topology.shard_of(client.topology.bucket_of("purchase", 7))
    older = backup_of(client, shard)
    for _ in range(5):
        insert(client, 7)
    drain(client)
    whole = rows_of(client)
    restore(client, shard, older)

    assert migrate(client) == 0
    site.log.mark_dirty(shard, client.topology.buckets_of(shard))
    drain(client)

    assert rows_of(client) == whole
