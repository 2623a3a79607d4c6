"""Reads of all kinds of one customer's rows, and what each finds: whatever becomes of the customer's bucket or key.

A world has `db`, with sales and their lines; a `customer` with the `ids` of its sales; and of other customers `others`
rows, whose `qty` is 50 each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pipeline
from pipeline.config import Topology
from pipeline.model import Position
from pipeline.reads import Need, Token
from pipeline.reads.routing.moving import Elsewhere
from pipeline.testing import Sandbox


class Customers:
    """A world's customer, who moves: the customer's rows on a shard, and how far shards have applied the log."""

    box: Sandbox
    topology: Topology
    customer: int
    bucket: int
    ids: list[int]
    lines: list[int]
    mark: tuple[int, int]

    def _customer(self, shard: str, nth: int) -> int:
        buckets = self.topology.buckets_of(shard)
        return next(n for n in range(1, 9999) if self.topology.bucket_of("sale", n) == buckets[nth])

    @property
    def later(self) -> Token:
        """What shows that the bucket's log has gone on by one op."""
        epoch, seq = self.mark
        return Token({self.bucket: Need(Position(epoch, seq + 1))})

    def go_on(self, shard: str, number: int) -> None:
        """Let a shard have passed one more op of the log of a bucket, or of a piece."""
        session = self.box.client.nodes.primary(shard)
        with session.transaction():
            session.execute(f"UPDATE pipeline_watermarks SET seq = seq + 1 WHERE bucket = {number}")

    def rows(self, shard: str, rows: dict[int, int]) -> None:
        """Let these be the customer's rows on a shard, by their numbers, each with a line."""
        session, customer = self.box.client.nodes.primary(shard), self.customer
        with session.transaction():
            session.execute(f"DELETE FROM sale WHERE customer = {customer}")
            session.execute(f"DELETE FROM line WHERE customer = {customer}")
            for n, qty in rows.items():
                sale, line = self.ids[n], self.lines[n]
                session.execute(f"INSERT INTO sale (id, customer, qty) VALUES ({sale}, {customer}, {qty})")
                session.execute(f"INSERT INTO line (id, customer, sale) VALUES ({line}, {customer}, {sale})")

    def forget_news(self) -> None:
        """Let nothing have been heard of the map for long."""
        self.topology.heard_at_s = -math.inf


def _got(world: Any, **options: Any) -> dict[int, int]:
    rows = ((n, pipeline.get(world.db.sale, row_id, **options)) for n, row_id in enumerate(world.ids))
    return {n: row.qty for n, row in rows if row is not None}


def within(world: Any) -> dict[int, int]:
    with pipeline.read(world.db.sale, world.customer) as node:
        return by_n(world, node(node.sale.customer == world.customer).select())


def by_n(world: Any, rows: Any) -> dict[int, int]:
    found = [(world.ids.index(row.id), row.qty) for row in rows if row.id in world.ids]
    assert len(found) == len(dict(found)), f"twice: {found}"
    return dict(found)


def _led_to(world: Any) -> dict[int, int]:
    """By the references of the customer's lines."""
    lines = pipeline.select(world.db.line.customer == world.customer)
    return {world.ids.index(int(line.sale)): line.sale.qty for line in lines}


def _joined(world: Any) -> dict[int, int]:
    sale, line = world.db.sale, world.db.line
    query = (sale.customer == line.customer) & (line.sale == sale.id)
    return by_n(world, [row.sale for row in pipeline.select(query, sale.ALL, line.id)])


def _left_joined(world: Any) -> dict[int, int]:
    sale, line = world.db.sale, world.db.line
    left = line.on((sale.customer == line.customer) & (line.sale == sale.id) & (line.id == 5))
    return by_n(world, [row.sale for row in pipeline.select(sale, sale.ALL, line.id, left=left)])


def _aliased(world: Any) -> dict[int, int]:
    other = world.db.sale.with_alias("other")
    return by_n(world, pipeline.select(other.qty >= 0))


#: Which rows of the customer each kind of read finds.
ROWS: dict[str, Callable[[Any], dict[int, int]]] = {
    "get": _got,
    "get with its key": lambda world: _got(world, shard_key=world.customer),
    "get pending": lambda world: _got(world, pending=True),
    "read": within,
    "select of a key": lambda world: by_n(world, pipeline.select(world.db.sale.customer == world.customer)),
    "references": _led_to,
    "select": lambda world: by_n(world, pipeline.select(world.db.sale)),
    "select in order": lambda world: by_n(
        world, pipeline.select(world.db.sale, orderby=world.db.sale.qty, limitby=(0, 99))
    ),
    "select of ids": lambda world: by_n(world, pipeline.select(world.db.sale.id.belongs(world.ids))),
    "join": _joined,
    "left join": _left_joined,
    "alias": _aliased,
}


def _grouped(world: Any) -> int:
    sale = world.db.sale
    total = sale.qty.sum()
    rows = pipeline.select(sale, sale.customer, total, groupby=sale.customer)
    assert len(rows) == world.others + 1
    return int(sum(row[total] for row in rows))


def _subselected(world: Any) -> int:
    sale, line = world.db.sale, world.db.line
    named = world.db(line.id > 0).nested_select(line.sale)
    return int(pipeline.select(sale.id.belongs(named), sale.qty.sum()).first()[sale.qty.sum()])


#: The sum of all rows' qty, of all customers.
SUMS: dict[str, Callable[[Any], int]] = {
    "sum": lambda world: int(pipeline.select(world.db.sale, world.db.sale.qty.sum()).first()[world.db.sale.qty.sum()]),
    "groups": _grouped,
    "subselect": _subselected,
}

#: How many rows there are, of all customers.
COUNTS: dict[str, Callable[[Any], int]] = {
    "count": lambda world: pipeline.count(world.db.sale),
    "count of a condition": lambda world: pipeline.count(world.db.sale.qty >= 0),
    "count distinct": lambda world: pipeline.count(world.db.sale, distinct=world.db.sale.id),
}


def assert_true(world: Any, truth: dict[int, int], about: str) -> None:
    for kind, read in ROWS.items():
        assert read(world) == truth, f"{kind}, {about}"
    for kind, summed in SUMS.items():
        assert summed(world) == sum(truth.values()) + 50 * world.others, f"{kind}, {about}"
    for kind, counted in COUNTS.items():
        assert counted(world) == len(truth) + world.others, f"{kind}, {about}"


def read_again(world: Any) -> dict[int, int]:
    """In a block; one that has been open while the bucket left says so at its end."""
    for _ in range(20):
        try:
            return within(world)
        except Elsewhere:
            continue
    raise AssertionError("it never ends")


def _row(n: int, **options: Any) -> tuple[Callable[[Any], Any], Callable[[dict[int, int]], Any]]:
    def read(world: Any) -> int | None:
        found = pipeline.get(world.db.sale, world.ids[n], **options)
        return found and found.qty

    return read, lambda truth: truth.get(n)


def _without_others(read: Callable[[Any], int], each: int) -> Callable[[Any], int]:
    return lambda world: read(world) - each * world.others


def _sum(truth: dict[int, int]) -> int:
    return sum(truth.values())


#: Reads of one moment, and what each finds by the customer's rows; sums and counts are of all rows.
MOMENTS: dict[str, tuple[Callable[[Any], Any], Callable[[dict[int, int]], Any]]] = {
    **{name: (read, dict) for name, read in ROWS.items() if "get" not in name and name not in ("references", "read")},
    "read": (read_again, dict),
    **{f"get {n}": _row(n) for n in range(4)},
    **{f"get {n} pending": _row(n, pending=True) for n in range(4)},
    **{name: (_without_others(SUMS[name], 50), _sum) for name in ("sum", "groups")},
    **{name: (_without_others(read, 1), len) for name, read in COUNTS.items()},
}
