"""Reads while a key is away from its bucket, and while it goes there and comes back: none is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.sandbox.deployments import Site, apply, site
from support.sandbox.keys import KEY, World, model

from pipeline import clock
from pipeline.admin import moving as movers
from pipeline.admin.moving import orders
from pipeline.client import Client
from pipeline.config.buckets import Placement
from pipeline.errors import PartialResult, StaleRead
from pipeline.reads.routing.moving import Elsewhere

__all__ = ["site"]

DAYS = range(5)


class Reads:
    """Rows of the key and of another one of its bucket, and each kind of read of them."""

    def __init__(self, world: World, reader: Client):
        self.world, self.reader, self.db = world, reader, world.db
        self.other = world.others[0]
        self.rows = {
            customer: [world.client.enqueue_insert(self.db.purchase, customer=customer, day=day).id for day in DAYS]
            for customer in (KEY, self.other)
        }
        self.n = self.refused = self.answered = 0
        world.drain()

    def drain(self) -> None:
        for _ in range(3):
            for shard in self.world.client.topology.shards:
                while apply(self.world.client, shard).left:
                    pass

    def count_up(self) -> list[Any]:
        """Count up the first row of both; return the receipts."""
        self.n += 1
        ids = [rows[0] for rows in self.rows.values()]
        table = self.db.purchase
        return [self.world.client.enqueue_update(table.id == id, n=table.n + 1) for id in ids]

    def wrong(self, *names: str, most_behind: int = 0) -> list[str]:
        """Return which kinds of reads are wrong now; one that raises that a bucket is on its way is none.

        Args:
            names: of the kinds; none: all.
            most_behind: by how much a counter may be too low: what is queued is not applied while a bucket stops.
        """
        said = []
        for name, kind in [(name, KINDS[name]) for name in names or KINDS]:
            for customer in self.rows:
                try:
                    found, wanted = kind(self, customer)
                except (Elsewhere, StaleRead, PartialResult):
                    self.refused += 1
                    continue
                self.answered += 1
                behind = isinstance(found, int) and isinstance(wanted, int) and 0 <= wanted - found <= most_behind
                if found != wanted and not behind:
                    said.append(f"{name} of {customer}: {found}, not {wanted}")
        return said

    @property
    def both(self) -> Any:
        return self.db.purchase.customer.belongs([KEY, self.other])


def _get(reads: Reads, customer: int) -> tuple[Any, Any]:
    found = [reads.reader.get(reads.db.purchase, id) for id in reads.rows[customer]]
    return [(row and row.customer, row and row.day) for row in found], [(customer, day) for day in DAYS]


def _get_counted(reads: Reads, customer: int) -> tuple[Any, Any]:
    row = reads.reader.get(reads.db.purchase, reads.rows[customer][0])
    return row and row.n, reads.n


def _get_by_key(reads: Reads, customer: int) -> tuple[Any, Any]:
    row = reads.reader.get(reads.db.purchase, reads.rows[customer][0], shard_key=customer)
    return row and row.n, reads.n


def _pending(reads: Reads, customer: int) -> tuple[Any, Any]:
    row = reads.reader.get(reads.db.purchase, reads.rows[customer][0], shard_key=customer, pending=True)
    return row and row.n, reads.n


def _pending_by_id(reads: Reads, customer: int) -> tuple[Any, Any]:
    row = reads.reader.get(reads.db.purchase, reads.rows[customer][0], pending=True)
    return row and row.n, reads.n


def _nothing(reads: Reads, customer: int) -> tuple[Any, Any]:
    return reads.reader.get(reads.db.purchase, reads.rows[customer][-1] + 1024 * 1000), None


def _key(reads: Reads, customer: int) -> tuple[Any, Any]:
    rows = reads.reader.select(reads.db.purchase.customer == customer, orderby=reads.db.purchase.day)
    return [row.id for row in rows], reads.rows[customer]


def _by_id(reads: Reads, customer: int) -> tuple[Any, Any]:
    rows = reads.reader.select(reads.db.purchase.id == reads.rows[customer][1])
    return [(row.customer, row.day) for row in rows], [(customer, 1)]


def _all(reads: Reads, customer: int) -> tuple[Any, Any]:
    rows = reads.reader.select(reads.both)
    return sorted(row.id for row in rows), sorted(id for rows in reads.rows.values() for id in rows)


def _ordered(reads: Reads, customer: int) -> tuple[Any, Any]:
    table = reads.db.purchase
    rows = reads.reader.select(reads.both, orderby=~table.id, limitby=(1, 4))
    return [row.id for row in rows], sorted((id for rows in reads.rows.values() for id in rows), reverse=True)[1:4]


def _count(reads: Reads, customer: int) -> tuple[Any, Any]:
    return reads.reader.count(reads.both), 2 * len(DAYS)


def _sum(reads: Reads, customer: int) -> tuple[Any, Any]:
    total = reads.db.purchase.n.sum()
    return reads.reader.select(reads.both, total).first()[total], 2 * reads.n


def _block(reads: Reads, customer: int) -> tuple[Any, Any]:
    with reads.reader.read("purchase", customer) as db:
        found = sorted(row.id for row in db(db.purchase.customer == customer).select())
    return found, sorted(reads.rows[customer])


KINDS: dict[str, Callable[[Reads, int], tuple[Any, Any]]] = {
    "get": _get,
    "get counted": _get_counted,
    "get by key": _get_by_key,
    "get pending": _pending,
    "get pending by id": _pending_by_id,
    "get of nothing": _nothing,
    "select of a key": _key,
    "select by id": _by_id,
    "select": _all,
    "select in order": _ordered,
    "count": _count,
    "sum": _sum,
    "read": _block,
}


@pytest.fixture(autouse=True)
def known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "HEARD_S", 0.0)


def reader_of(world: World, site: Site) -> Client:
    made = site.client(buckets=2, tables=world.tables, log=world.log, file="reader.toml")
    made.define_tables(model())
    return made


def hears(reader: Client) -> None:
    """Let a reader have the map as Redis has it."""
    placement = Placement.noted(reader.log.placement())
    if placement is not None:
        reader.topology.follow(placement)
    reader.topology.heard_at_s = clock.mono_s()


def test_each_kind_of_read_finds_rows_of_a_key_that_is_away_once(site: Site) -> None:
    world = World(site, "", split=True)
    world.follow()
    reads = Reads(world, reader_of(world, site))
    hears(reads.reader)
    for _ in range(3):
        reads.count_up()
        world.drain()
        assert reads.wrong() == []


def test_a_read_after_an_op_waits_for_the_shard_that_applies_it(site: Site) -> None:
    world = World(site, "", split=True)
    world.follow()
    reads = Reads(world, reader_of(world, site))
    hears(reads.reader)
    receipts = reads.count_up()
    world.apply(world.home)

    row, table = reads.rows[KEY][0], reads.db.purchase
    with pytest.raises(Exception, match="queued"):
        reads.reader.get(table, row, after=receipts, wait_s=0.01)
    with pytest.raises(Exception, match="queued"):
        reads.reader.select(table.customer == KEY, after=receipts, wait_s=0.01)
    world.drain()

    session = reads.reader.reads.session()
    assert reads.reader.get(table, row, after=receipts).n == 1
    assert reads.reader.select(table.customer == KEY, after=session).first() is not None
    assert {*session.token} <= {world.bucket, reads.reader.topology.reference_bucket}


def test_a_queued_op_of_the_key_is_laid_over_its_row(site: Site) -> None:
    world = World(site, "", split=True)
    world.follow()
    reads = Reads(world, reader_of(world, site))
    hears(reads.reader)
    reads.count_up()

    for customer in (KEY, reads.other):
        assert _pending(reads, customer) == (1, 1)
        assert _pending_by_id(reads, customer) == (1, 1)
    fresh = [reads.world.client.enqueue_insert(reads.db.purchase, customer=c, day=77).id for c in reads.rows]
    assert [reads.reader.get(reads.db.purchase, id, pending=True).day for id in fresh] == [77, 77]


def test_no_read_is_wrong_at_any_step_of_a_move_there_and_back(site: Site) -> None:
    world = World(site, "", split=False)
    reads = Reads(world, reader_of(world, site))
    wrong, n = list[str](), 0
    for target in (world.away, world.home, world.away):
        for step in orders.order_key(world.client, f"purchase={KEY}", target, "me", keep_s=0).steps():
            n += 1
            hears(reads.reader)
            wrong += [f"{target} {step}: {one}" for one in reads.wrong(most_behind=2)]
            reads.count_up()
            reads.drain()
        hears(reads.reader)
        wrong += [f"{target}: {one}" for one in reads.wrong()]

    assert n > 10
    assert wrong == []
    assert reads.refused < 10 < reads.answered


def test_a_reader_that_hears_of_no_map_learns_of_the_key_from_its_shards(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(site, "", split=False)
    reads = Reads(world, reader_of(world, site))
    monkeypatch.setattr(reads.reader.reads._router.health, "reports", dict)
    wrong = list[str]()
    for target in (world.away, world.home):
        for step in orders.order_key(world.client, f"purchase={KEY}", target, "me", keep_s=0).steps():
            wrong += [f"{target} {step}: {one}" for one in reads.wrong(most_behind=2)]
            reads.count_up()
            reads.drain()

    assert wrong == []
    assert reads.refused < 10 < reads.answered


def test_get_db_is_of_the_shard_that_has_the_key(site: Site) -> None:
    world = World(site, "", split=True)
    world.follow()
    Reads(world, world.client)

    db = world.client.get_db("purchase", KEY)
    assert db(db.purchase.customer == KEY).count() == len(DAYS)
    db = world.client.get_db("purchase", world.others[0])
    assert db(db.purchase.customer == world.others[0]).count() == len(DAYS)
