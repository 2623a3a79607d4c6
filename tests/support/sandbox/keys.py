"""A deployment one of whose shard keys has a shard of its own, as a move leaves it."""

from __future__ import annotations

import random
from typing import Any

from pydal import DAL, Field

from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.config.buckets import KeyName, new_piece
from pipeline.enqueue import buckets
from pipeline.model import Position
from pipeline.oplog.memory.log import MemoryLog
from pipeline.shard.records import ledger_queries, moves
from pipeline.shard.records.moves import Leg, MoveNote
from support.sandbox.deployments import Site, drain_shard

TABLES = {
    "purchase": {"shard_key": "customer", "unique": [["customer", "day"]]},
    "purchase_archive": {"shard_key": "customer"},
    "item": {},
    "stranger": {"shard_key": "customer", "rule": "modulo"},
}
KEY, MOVE = 7, 5


def model() -> Any:
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    db.define_table("purchase", Field("customer", "integer"), Field("day", "integer"), Field("n", "integer", default=0))
    db.define_table("item", Field("name"), Field("n", "integer", default=0))
    db.define_table("stranger", Field("customer", "integer"), Field("n", "integer", default=0))
    return db


class World:
    """A deployment of two shards, in whose one log the ops of some customers are."""

    tables = TABLES

    def __init__(self, site: Site, folder: str, *, split: bool, spool: str = ""):
        self.log = MemoryLog()
        self.client: Client = site.client(buckets=2, tables=TABLES, folder=folder, log=self.log, spool=spool)
        self.db = model()
        self.client.define_tables(self.db)
        migrate(self.client)
        topology = self.client.topology
        self.bucket = topology.bucket_of("purchase", KEY)
        alike = [key for key in range(200) if topology.bucket_of("purchase", key) == self.bucket and key != KEY]
        self.others = alike[:2]
        self.home = topology.shard_of(self.bucket)
        self.away = next(shard for shard in topology.shards if shard != self.home)
        self.piece = new_piece(self.bucket, 3)
        self.ids: list[int] = []
        if split:
            self.split()

    def split(self) -> None:
        """Let the key be away, as a move leaves it."""
        of = KeyName(self.bucket, "purchase", str(KEY))
        leg = Leg(self.piece, MOVE, self.home, self.away, 0, 0, "me", MoveNote(cleaned=True), None, None, of)
        for shard, state in ((self.home, "gone"), (self.away, "active")):
            session = self.client.nodes.primary(shard)
            with session.transaction():
                moves.write_leg(session, leg)
                moves.place_mark(session, self.piece, Position(0, -1), state)
                if shard == self.home:
                    moves.place_mark(session, self.bucket, Position(0, -1), "lent")

    def follow(self) -> None:
        """Let the process act on the map as the shards say it."""
        buckets.follow(self.client.log, self.client.nodes, self.client.topology, anew=True)

    def drain(self) -> None:
        for _ in range(3):
            for shard in (self.home, self.away):
                self.apply(shard)

    def rows(self, shard: str = "", table: str = "purchase", columns: str = "customer, day, n") -> list[Any]:
        shards = [shard] if shard else self.client.topology.shards
        return sorted(
            row for one in shards for row in self.client.nodes.primary(one).query(f"SELECT {columns} FROM {table}")
        )

    def aside(self, shard: str = "") -> list[Any]:
        shards = [shard] if shard else self.client.topology.shards
        sql = "SELECT state, epoch, seq FROM pipeline_rejects"
        return sorted(row for one in shards for row in self.client.nodes.primary(one).query(sql))

    def reasons(self, shard: str) -> list[str]:
        found = self.client.nodes.primary(shard).query("SELECT reason FROM pipeline_rejects")
        return [reason for (reason,) in found]

    def marks(self) -> list[Position]:
        found = [ledger_queries.positions_of(self.client.nodes.primary(shard)) for shard in (self.home, self.away)]
        return [found[0][self.bucket], found[1][self.piece]]

    def apply(self, shard: str) -> None:
        drain_shard(self.client, shard)

    # what is sent ---------------------------------------------------------------------------------------------

    def send(self, luck: random.Random) -> None:
        """Send one thing, which depends on nothing but luck."""
        customer = luck.choice([KEY, KEY, *self.others])
        day = luck.randrange(6)
        luck.choice(
            [
                self._insert,
                self._insert,
                self._bulk,
                self._update_by_id,
                self._update_by_id,
                self._update_by_key,
                self._update_by_query,
                self._delete,
                self._upsert,
                self._group,
                self._item,
                self._stranger,
            ]
        )(luck, customer, day)

    def _insert(self, luck: random.Random, customer: int, day: int) -> None:
        self.ids.append(self.client.enqueue_insert(self.db.purchase, customer=customer, day=day).id)

    def _bulk(self, luck: random.Random, customer: int, day: int) -> None:
        keys = [KEY, *self.others]
        rows = [{"customer": luck.choice(keys), "day": luck.randrange(100, 10_000)} for _ in range(luck.choice((2, 9)))]
        self.ids += [receipt.id for receipt in self.client.enqueue_bulk_insert(self.db.purchase, rows)]

    def _update_by_id(self, luck: random.Random, customer: int, day: int) -> None:
        if self.ids:
            row = luck.choice(self.ids[-9:])
            self.client.enqueue_update(self.db.purchase.id == row, n=self.db.purchase.n + 1 + 10 * day)

    def _update_by_key(self, luck: random.Random, customer: int, day: int) -> None:
        table = self.db.purchase
        self.client.enqueue_update((table.customer == customer) & (table.day < day), n=table.n + 1000)

    def _update_by_query(self, luck: random.Random, customer: int, day: int) -> None:
        table = self.db.purchase
        some = self.ids[-5:]
        if some:
            self.client.enqueue_update(table.id.belongs(some), n=table.n * 2, shard_key=customer)

    def _delete(self, luck: random.Random, customer: int, day: int) -> None:
        if self.ids and luck.random() < 0.5:
            self.client.enqueue_delete(self.db.purchase.id == luck.choice(self.ids[-20:]))

    def _upsert(self, luck: random.Random, customer: int, day: int) -> None:
        values = {"customer": customer, "day": day, "n": luck.randrange(100)}
        self.client.enqueue_upsert(self.db.purchase, key=["customer", "day"], **values)

    def _group(self, luck: random.Random, customer: int, day: int) -> None:
        table = self.db.purchase
        with self.client.atomic():
            made = self.client.enqueue_insert(table, customer=customer, day=luck.randrange(100, 10_000))
            self.client.enqueue_update(table.id == made.id, n=table.n + 7)
            self.client.enqueue_upsert(table, key=["customer", "day"], customer=customer, day=day, n=1)
        self.ids.append(made.id)

    def _item(self, luck: random.Random, customer: int, day: int) -> None:
        made = self.client.enqueue_insert(self.db.item, name=f"{day}")
        self.client.enqueue_update(self.db.item.id == made.id, n=day)

    def _stranger(self, luck: random.Random, customer: int, day: int) -> None:
        self.client.enqueue_insert(self.db.stranger, customer=customer, n=day)
