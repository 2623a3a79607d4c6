"""Children whose parents are in other buckets are applied after them, whatever worker has which bucket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline.client import Client
from pipeline.errors import Rejected

pytestmark = pytest.mark.mariadb

ROUNDS, OWNERS = 340, 12
#: Children first, so that they are dropped first.
NAMES = ("family_grand", "family_child", "family_local", "family_node", "family_parent", "family_kind")
FIELDS = {
    "family_kind": "",
    "family_parent": "",
    "family_node": "family_node",
    "family_local": "family_kind",
    "family_child": "family_parent",
    "family_grand": "family_child",
}


@pytest.fixture
def client(mariadb: Rig) -> Iterator[Client]:
    path = mariadb.config_through({})
    text = "".join(f'\n[tables.{name}]\nshard_key = "owner"\n' for name in FIELDS if name != "family_kind")
    path.write_text(path.read_text() + text + "\n[tables.family_kind]\nreference = true\n")
    made = Client(path)
    create(mariadb)
    yield made
    made.close()
    mariadb.redis.hdel(made.log.keys.newest_schemas, *NAMES)
    for uri in mariadb.primaries.values():
        with nodes.connection(uri) as node:
            for name in NAMES:
                nodes.fetch(node, f"DROP TABLE IF EXISTS {name}")


def create(rig: Rig) -> None:
    """Make the tables as pyDAL would: here parent and child are in buckets of one shard, which no rule says."""
    for uri in rig.primaries.values():
        with nodes.connection(uri) as node:
            for name, parent in FIELDS.items():
                key = f", FOREIGN KEY (up) REFERENCES {parent} (id)" if parent else ""
                nodes.fetch(node, f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, owner INT, up BIGINT{key})")


def model() -> Any:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    for name in FIELDS:
        db.define_table(name, Field("owner", "integer"), Field("up", "bigint"))
    return db


def owners_of(rig: Rig, client: Client, shard: str, count: int) -> list[int]:
    """Return shard keys of as many buckets of one shard."""
    found: dict[int, int] = {}
    while len(found) < count:
        [owner] = rig.owners(1)
        bucket = client.topology.bucket_of("family_parent", owner)
        if client.topology.shard_of(bucket) == shard:
            found.setdefault(bucket, owner)
    return list(found.values())


def test_no_child_is_rejected_that_is_queued_with_its_parent_while_workers_are_away(
    mariadb: Rig, client: Client
) -> None:
    db, receipts = model(), dict[str, list[Any]]()
    client.define_tables(db)
    owners = owners_of(mariadb, client, "s0", OWNERS)

    def insert(table: str, n: int, **fields: Any) -> int:
        receipts.setdefault(table, []).append(client.enqueue_insert(db[table], owner=owners[n % OWNERS], **fields))
        return int(receipts[table][-1].id)

    with mariadb.frozen():
        for n in range(ROUNDS):
            parent, node, kind = insert("family_parent", n), insert("family_node", n), insert("family_kind", n)
            child = insert("family_child", n + 1, up=parent)
            insert("family_grand", n + 2, up=child)
            insert("family_node", n + 3, up=insert("family_node", n + 1, up=node))
            insert("family_local", n, up=kind)
            for name in ("family_grand", "family_child", "family_parent") if n % 2 else ():
                client.enqueue_delete(db[name], receipts[name][-1].id)
    client.wait_all([one for found in receipts.values() for one in found], timeout_s=90)
    with mariadb.frozen():
        deleted = [
            client.enqueue_delete(db[name], one.id)
            for name in ("family_grand", "family_child", "family_parent")
            for one in receipts[name][::2]
        ]
    client.wait_all(deleted, timeout_s=90)

    counts = [nodes.rows(mariadb.primaries["s0"], f"SELECT COUNT(*) FROM {name}")[0][0] for name in NAMES]
    assert counts == [0, 0, ROUNDS, 3 * ROUNDS, 0, ROUNDS]


def test_a_child_whose_parent_never_comes_is_rejected_and_its_bucket_goes_on(mariadb: Rig, client: Client) -> None:
    db = model()
    client.define_tables(db)
    first, second = owners_of(mariadb, client, "s0", 2)
    with mariadb.frozen():
        orphan = client.enqueue_insert(db.family_child, owner=first, up=1)
        behind = client.enqueue_insert(db.family_parent, owner=first)
        other = client.enqueue_insert(db.family_child, owner=second, up=behind.id)

    client.wait_all([behind, other], timeout_s=60)
    with pytest.raises(Rejected, match="foreign key constraint fails"):
        orphan.wait(60)

    assert nodes.rows(mariadb.primaries["s0"], "SELECT up FROM family_child") == [(behind.id,)]
