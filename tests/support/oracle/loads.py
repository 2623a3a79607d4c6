"""Loads: mostly like inserts, as bulk calls make them, of few tables; batches of them have sheets."""

from __future__ import annotations

from random import Random
from typing import Any

from pipeline.model import DELETE, INSERT, UPDATE, Op
from pipeline.model.schema import TableSchema
from support.oracle.grouping import CHILD, ITEM, LOUD, NODE, PARENT, PAST, PLAIN, WARY

#: Small enough for several batches of an example: the first sheet of a shape is taken apart.
AT_ONCE = 9
FAMILIES = (
    *((PLAIN,), (PLAIN,), (PLAIN, PAST), (PLAIN, PAST), (ITEM, PLAIN), (PLAIN, LOUD), (PLAIN, WARY)),
    *((PARENT, CHILD), (PARENT, ITEM), (NODE,)),
)


def loaded(random: Random) -> list[Op]:
    """Return a load; its ids seldom come twice, and some rows are refused."""
    family = random.choice(FAMILIES)
    bad, often, other = random.choice((0.0, 0.05)), random.choice((60, 2000)), random.choice((0.0, 0.0, 0.1))
    shapes = {schema.name: [*range(1, len(schema.columns))] for schema in family}
    ops: list[Op] = []
    while len(ops) < 60:
        schema = random.choice(family)
        columns = shapes[schema.name][: random.choice((None, None, None, 1))]
        for _ in range(random.randint(1, 12)):
            row = random.randint(1, often)
            if random.random() < other:
                more = (1,) if random.random() < 0.5 else ()
                kind = UPDATE if more else DELETE
                ops.append(Op(kind, schema.name, schema.hash, 0, row, more, tuple(3 for _ in more)))
            else:
                ops.append(insert(schema, row, {column: value(random, schema, column, bad) for column in columns}))
    return ops


def value(random: Random, schema: TableSchema, column: int, bad: float) -> Any:
    if random.random() < bad:
        return "no number"  # which the column cannot hold
    kind = schema.columns[column].kind
    if kind == "reference":
        return random.choice((None, random.randint(1, 60)))
    return (
        random.choice(("a", "it's", None, f"u{random.randint(1, 10**6)}")) if kind == "string" else random.randint(0, 9)
    )


def insert(schema: TableSchema, row: int | None, given: dict[int, Any]) -> Op:
    return Op(INSERT, schema.name, schema.hash, 0.0, row, tuple(given), tuple(given.values()))
