"""Children whose parents are in other buckets are applied after them, whatever worker has which bucket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field
from support.chance import SOAK
from support.fixtures import needs_mariadb
from support.oracle import nodes
from support.servers.rig import Rig, rig_of
from support.tables import TABLES_TOML

from pipeline.admin import stops
from pipeline.admin.stops import release
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.errors import Rejected

pytestmark = pytest.mark.mariadb

#: A round has 8 rows and at times 3 deletes; `PIPELINE_SOAK=11` makes more than 10,000 ops of them.
ROUNDS, OWNERS = 100 * SOAK, 12
NAMES = ("family_grand", "family_child", "family_local", "family_node", "family_parent", "family_kind")
FIELDS = {
    "family_kind": "",
    "family_parent": "",
    "family_node": "family_node",
    "family_local": "family_kind",
    "family_child": "family_parent",
    "family_grand": "family_child",
}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two shards and four workers, which know the families: one of another configuration would refuse its part."""
    needs_mariadb()
    tables = "".join(f'\n[tables.{name}]\nshard_key = "owner"\n' for name in FIELDS if name != "family_kind")
    tables = f"{TABLES_TOML}{tables}\n[tables.family_kind]\nreference = true\n"
    tables = tables.replace("[apply]\n", "[apply]\nbuckets = 4\n")  # so that each worker has some of them
    folder = tmp_path_factory.mktemp("early") / "cluster"
    with rig_of(folder, "mariadb", create, replicas=0, workers=4, tables=tables) as made:
        yield made


@pytest.fixture
def client(rig: Rig) -> Iterator[Client]:
    made = Client(rig.config)
    yield made
    made.close()
    for uri in rig.primaries.values():
        with nodes.connection(uri) as node:
            nodes.fetch(node, "SET foreign_key_checks = 0")
            for name in FIELDS:
                nodes.fetch(node, f"DELETE FROM {name}")


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


class Families:
    """What is queued, of families that are on one shard each: three levels, a self-reference, a reference table.

    Each row is in another bucket than the row that it refers to; but where a parent is of a reference table.
    """

    def __init__(self, rig: Rig, client: Client):
        self._client, self._db = client, model()
        client.define_tables(self._db)
        self._owners = [owners_of(rig, client, shard, OWNERS) for shard in rig.primaries]
        self.receipts: dict[str, list[Any]] = {}
        self.deletes: list[Any] = []

    def queue(self, rounds: int) -> None:
        for n in range(rounds):
            parent, node, kind = self._insert("parent", n), self._insert("node", n), self._insert("kind", n)
            child = self._insert("child", n, 1, up=parent)
            self._insert("grand", n, 2, up=child)
            self._insert("node", n, 3, up=self._insert("node", n, 1, up=node))
            self._insert("local", n, up=kind)
            if n % 4 > 1:  # on both shards
                self._delete(-1)

    def delete_half(self, rounds: int) -> None:
        """Delete the parents that `queue` has left, with all that refers to them, the last first."""
        for n in range(rounds):
            if n % 4 <= 1:
                self._delete(n)

    def _insert(self, table: str, n: int, on: int = 0, **fields: Any) -> int:
        owners = self._owners[n % len(self._owners)]
        name = f"family_{table}"
        made = self._client.enqueue_insert(self._db[name], owner=owners[(n + on) % OWNERS], **fields)
        self.receipts.setdefault(name, []).append(made)
        return int(made.id)

    def _delete(self, n: int) -> None:
        for name in ("family_grand", "family_child", "family_parent"):
            self.deletes.append(self._client.enqueue_delete(self._db[name], self.receipts[name][n].id))

    @property
    def ops(self) -> list[Any]:
        return [one for found in (*self.receipts.values(), self.deletes) for one in found]

    def wait(self) -> None:
        """Wait for all; a rejected one raises."""
        self._client.wait_all(self.ops, timeout_s=90 * SOAK)


def counts(rig: Rig) -> list[list[int]]:
    """Return of each table how many rows each shard has."""
    return [[nodes.rows(uri, f"SELECT COUNT(*) FROM {name}")[0][0] for uri in rig.primaries.values()] for name in NAMES]


def test_no_child_is_rejected_that_is_queued_with_its_parent_while_workers_are_away(rig: Rig, client: Client) -> None:
    families = Families(rig, client)

    with rig.frozen():
        families.queue(ROUNDS)
    families.wait()

    assert len(families.ops) == 9.5 * ROUNDS
    half = ROUNDS // 2
    some = [half // 2] * 2
    assert counts(rig) == [some, some, [half] * 2, [3 * half] * 2, some, [2 * half] * 2]


def test_no_child_is_rejected_that_is_queued_with_its_parent_while_four_workers_run(rig: Rig, client: Client) -> None:
    families = Families(rig, client)

    families.queue(ROUNDS)
    families.delete_half(ROUNDS)
    families.wait()

    half = ROUNDS // 2
    assert len(families.ops) == 11 * ROUNDS
    assert counts(rig) == [[0, 0], [0, 0], [half] * 2, [3 * half] * 2, [0, 0], [2 * half] * 2]


def test_a_child_whose_parent_never_comes_is_rejected_and_its_bucket_goes_on(rig: Rig, client: Client) -> None:
    db = model()
    client.define_tables(db)
    first, second = owners_of(rig, client, "s0", 2)
    with rig.frozen():
        orphan = client.enqueue_insert(db.family_child, owner=first, up=1)
        behind = client.enqueue_insert(db.family_parent, owner=first)
        other = client.enqueue_insert(db.family_child, owner=second, up=behind.id)

    client.wait_all([behind, other], timeout_s=60)
    with pytest.raises(Rejected, match="foreign key constraint fails"):
        orphan.wait(60)

    assert nodes.rows(rig.primaries["s0"], "SELECT up FROM family_child") == [(behind.id,)]


def became(receipt: Any) -> str:
    """Return what an op's receipt says once it is queued no more."""
    return next(state for _ in polls(60) if (state := str(receipt.status())) != "queued")


def test_a_child_waits_with_its_parent_while_its_parents_table_is_paused(rig: Rig, client: Client) -> None:
    db = model()
    client.define_tables(db)
    first, second = owners_of(rig, client, "s0", 2)
    paused = stops.target_of(client, "family_parent")
    stops.pause(client, paused)
    states = list[str]()
    while states != ["parked"] * 3:  # workers obey within a second
        assert "rejected" not in states
        parent = client.enqueue_insert(db.family_parent, owner=first)
        child = client.enqueue_insert(db.family_child, owner=second, up=parent.id)
        grand = client.enqueue_insert(db.family_grand, owner=first, up=child.id)
        states = [became(one) for one in (parent, child, grand)]

    stops.resume(client, paused)
    for _ in release(client, "s0", "ada"):
        pass

    assert any({one.status() for one in (parent, child, grand)} == {"replayed"} for _ in polls(60))
    assert (child.id,) in nodes.rows(rig.primaries["s0"], "SELECT up FROM family_grand")
