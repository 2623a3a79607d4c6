"""Random parents and children in several buckets: what one by one is taken in order, is taken in whatever transactions.

An id and a name are given once: of two ops that want one value, the first in a transaction has it, whichever is older.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from pipeline.config.settings import ApplySettings
from pipeline.model import DELETE, GROUP, INSERT, UPDATE, Op
from pipeline.model.schema import TableSchema
from support.oracle.grouping import BUCKETS, CHILD, ITEM, NODE, PARENT, TABLES, Database

#: A table of children, and that of their parents. Of `item` a deleted parent's rows are deleted, of the others refused.
FAMILIES = ((CHILD, PARENT), (ITEM, PARENT), (NODE, NODE))
#: How far apart ops are enqueued, ms: farther than clocks differ.
APART_MS = 1_000.0


class Families:
    """Makes ops on the rows of one family, most of which a database takes that gets them in order."""

    def __init__(self, random: Random):
        self._random, self._last = random, 0
        self._child, self._parent = random.choice(FAMILIES)
        self._rows: dict[str, list[int]] = {self._child.name: [], self._parent.name: []}
        self._weights = {INSERT: random.choice((2, 4, 8)), UPDATE: random.choice((0, 1)), DELETE: random.choice((2, 4))}

    def ops(self) -> list[Op]:
        made = [self._any() for _ in range(self._random.randint(10, 60))]
        return [msgspec.structs.replace(op, at_ms=(n + 1) * APART_MS) for n, op in enumerate(made)]

    def _any(self) -> Op:
        if self._random.random() < 0.1:  # both in one bucket
            parent = self._insert(self._parent)
            self._last += BUCKETS - 1
            child = self._insert(self._child, parent.id)
            return Op(GROUP, parent.table, parent.schema, 0, ops=(parent, child))
        [kind] = self._random.choices(list(self._weights), list(self._weights.values()))
        schema = self._random.choice((self._child, self._parent))
        rows = self._rows[schema.name]
        if kind == INSERT or not rows:
            return self._insert(schema)
        if kind == UPDATE:
            number = schema.columns.index(next(c for c in schema.columns if c.name == "n"))
            return _op(UPDATE, schema, self._random.choice(rows), {number: self._random.randint(0, 9)})
        return _op(DELETE, schema, rows.pop(self._random.randrange(len(rows))), {})

    def _insert(self, schema: TableSchema, up: int | None = None) -> Op:
        self._last += 1
        row = self._last
        parents = self._rows[self._parent.name]
        if schema is self._child:
            up = up or (self._random.choice(parents[-4:]) if parents and self._random.random() < 0.9 else None)
            given: dict[int, Any] = {1: up, 2: self._random.randint(0, 9)}
        else:
            given = {1: f"name {row}", 2: self._random.randint(0, 9)}
        self._rows[schema.name].append(row)
        return _op(INSERT, schema, row, given)


def _op(kind: str, schema: TableSchema, row: int, given: dict[int, Any]) -> Op:
    return Op(kind, schema.name, schema.hash, 0, row, tuple(given), tuple(given.values()))


def astray(database: Database, random: Random) -> str:
    """Return what becomes of ops in several buckets but not of the same in one; the empty string where nothing does."""
    ops = Families(random).ops()
    alone = database.apply(ops, at_once=1)
    refused = {number for (number,) in alone["rejects"]}
    kept = [op for number, op in enumerate(ops, 1) if number not in refused]
    several = [
        ApplySettings(
            buckets=random.randint(1, BUCKETS), max_rows=random.choice((1, 3, 1_000)), target_ms=10_000, breaker=False
        )
        for _ in range(2)
    ]
    together = database.spread(kept, several)
    names = [schema.name for schema in TABLES]
    parts = [f"{name}: {alone[name]}, in several buckets {together[name]}" for name in names]
    differs = [part for name, part in zip(names, parts, strict=True) if alone[name] != together[name]]
    rejects = [f"rejected {together['aside']}"] if together["rejects"] else []
    return "\n".join([*map(str, kept), *differs, *rejects]) if differs or rejects else ""
