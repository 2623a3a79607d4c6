"""Hostile values and forged ops on MariaDB: each is stored exactly, refused, or set aside, and none runs as SQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec import structs
from pydal import DAL
from support.hostile import attack, corpus, fields
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline.admin.migration import migrate
from pipeline.apply.applier import Applier
from pipeline.client import Client
from pipeline.errors import BadOp
from pipeline.model import decode, encode
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.memory.log import MemoryLog
from pipeline.reads.node_tables import NodeTables

pytestmark = pytest.mark.mariadb
DATABASE = "hostile"
#: By column: what a literal of MariaDB must not hold.
FORGED = [
    (1, "1); DROP TABLE event; -- "),
    (1, "x\" OR '1'='1"),
    (2, True),
    (3, "SLEEP(30)"),
    (4, "0); DROP TABLE event; -- "),
    (4, "(SELECT MAX(seq) FROM pipeline_watermarks)"),
    (4, "1.999"),
    (5, "T"),
    (6, 5),
    (8, "not base64"),
    (9, "{"),
    (10, "2024-02-30"),
    (10, "CURDATE()"),
    (11, "25:00:00"),
    (12, "2024-01-01 00:00:00.9"),
    (13, "a"),
    (14, ["1"]),
]


#: Each differs from another only by what a collation, a C string or a cut would not see.
KEYS = [
    "k",
    "k ",
    "k\t",
    "K",
    "k\0",
    "k\0a",
    "\u00e9",
    "e\u0301",
    "\U0001f600",
    "\U0001f601",
    "'",
    "\\",
    "x" * 189,
    "x" * 190,
]


@contextmanager
def deployment(mariadb: Rig, log: MemoryLog | None) -> Iterator[Client]:
    """Make a client of a database of its own; without a log its log is the rig's Redis, under a prefix of its own."""
    nodes.rows(mariadb.primaries["s0"], f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4")
    made = Client(
        {
            "pipeline": {"buckets": 4},
            "redis": {"url": mariadb.client.settings.redis.url, "prefix": DATABASE},
            "tables": {"keyed": {"shard_key": "name"}},
            "apply": {"breaker": False},
            "shards": {"s0": {"primary": mariadb.primaries["s0"].replace("/shop", f"/{DATABASE}")}},
        },
        log=log,
        bell=SilentBell(),
    )
    try:
        yield made
    finally:
        made.close()
        nodes.rows(mariadb.primaries["s0"], f"DROP DATABASE {DATABASE}")


@pytest.fixture
def client(mariadb: Rig) -> Iterator[Client]:
    with deployment(mariadb, MemoryLog()) as made:
        yield made


@pytest.fixture
def db(client: Client) -> Any:
    return defined(client)


def defined(client: Client) -> Any:
    db = DAL("sqlite:memory", migrate=False)
    db.define_table("event", *fields())
    db.define_table("keyed", *fields())
    db.keyed.name.unique = True
    client.define_tables(db)
    migrate(client)
    return db


def drain(client: Client) -> None:
    log: Any = client.log
    applier = Applier("s0", client.nodes.primary("s0"), log, client.settings.apply, tables=client.settings.tables)
    while (outcome := applier.apply()).left:
        assert not outcome.waiting or outcome.ring, outcome.waiting


def rows(client: Client, db: Any) -> dict[int, Any]:
    own = client.nodes.primary("s0").db
    table = NodeTables.on(own).table(db.event)
    found = {row["id"]: row for row in own(table).select().as_list()}
    own.rollback()
    return found


def test_hostile_values_and_forged_ops_are_exact_refused_or_set_aside_on_mariadb(client: Client, db: Any) -> None:
    made = list(attack(client, db, corpus(), [field.name for field in fields()], 1, in_turn=True))
    log: Any = client.log
    kept, forged = [], []
    for column, value in FORGED:
        for changed in (
            {"columns": (column,), "values": (value,)},
            {"kind": "delete", "id": None, "columns": (), "values": (), "where": ["not", ["=", column, value]]},
        ):
            forged.append(client.enqueue_insert(db.event))
            entries = log._server.logs[forged[-1].bucket]
            op = structs.replace(decode(entries[-1].payload), **changed)
            entries[-1] = entries[-1]._replace(payload=encode(op))
            kept.append(client.enqueue_insert(db.event, name="kept"))

    drain(client)

    there = rows(client, db)
    assert [wrong for attempt in made if (wrong := attempt.wrong(client, db, there))] == []
    assert {receipt.status() for receipt in forged} == {"rejected"}
    assert {receipt.status() for receipt in kept} == {"applied"}
    assert sum(row["name"] == "kept" for row in there.values()) == len(kept)


def test_idempotency_keys_are_exact_through_redis_and_mariadb_each_of_which_remembers_them_alone(mariadb: Rig) -> None:
    with deployment(mariadb, None) as client:
        db = defined(client)
        counted = client.enqueue_insert(db.event, who=0)
        for again in (0, 1000):
            for nth, key in enumerate(KEYS):
                for repeated in (0, 100):
                    given, same = {"who": again + repeated + nth}, {"idempotency_key": key}
                    client.enqueue_insert(db.event, {**given, "name": "by key"}, **same)
                    client.enqueue_update(db.event.id == counted.id, {"who": db.event.who + 1}, **same)
                    client.enqueue_upsert(db.keyed, {**given, "name": f"n{nth}"}, key=["name"], **same)
            drain(client)
            assert mariadb.redis.delete(*mariadb.redis.scan_iter(f"{DATABASE}:same:*")) == 3 * len(KEYS)

        there = rows(client, db)
        assert there[counted.id]["who"] == len(KEYS)
        assert sorted(row["who"] for row in there.values() if row["name"] == "by key") == list(range(len(KEYS)))
        stored = client.nodes.primary("s0").query("SELECT name, who FROM keyed")
        assert sorted(stored) == sorted((f"n{nth}", nth) for nth in range(len(KEYS)))
        for call in (
            lambda key: client.enqueue_insert(db.event, {"who": 1}, idempotency_key=key),
            lambda key: client.enqueue_update(db.event.id == counted.id, {"who": 1}, idempotency_key=key),
            lambda key: client.enqueue_upsert(db.keyed, {"name": "x"}, key=["name"], idempotency_key=key),
        ):
            with pytest.raises(BadOp, match="1 to 190 characters"):
                call("\U0001f600" * 2500)  # 10 kB
