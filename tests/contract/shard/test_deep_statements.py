"""The deepest conditions and expressions that a call queues, on the databases themselves."""

from __future__ import annotations

from typing import Any

import pytest
from support.sandbox.sessions import both, mariadb, run, table

from pipeline.dal.trees import MOST_LEVELS
from pipeline.model import UPDATE, Op
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import NodeSession
from pipeline.shard.statements import statement
from pipeline.shard.table_facts import facts_of

SCHEMA = TableSchema("t", (Column("id", "id"), Column("n", "integer")))


def nested(*heads: str) -> list[Any]:
    """Return a condition of the most levels, whose heads take turns."""
    tree: list[Any] = ["=", 1, 1]
    for level in range(MOST_LEVELS - 1):
        tree = [heads[level % len(heads)], tree, [">", 1, level]]
    return tree


def updated(session: NodeSession, op: Op) -> list[tuple[Any, ...]]:
    table(session, "n INTEGER")
    run(session, "INSERT INTO t (n) VALUES (1)", statement(UPDATE, [op], facts_of(session, SCHEMA), session.dialect))
    return session.query("SELECT n FROM t")


@both
def test_a_chain_of_conditions(session: NodeSession):
    assert updated(session, Op(UPDATE, "t", "h", 1, None, (1,), (5,), nested("or"))) == [(5,)]


@mariadb
def test_conditions_that_nest_in_each_other(session: NodeSession):
    assert updated(session, Op(UPDATE, "t", "h", 1, None, (1,), (5,), nested("or", "and"))) == [(1,)]


@both
@pytest.mark.parametrize("head", ["+", "-"])
def test_a_chain_of_operators_is_computed_from_the_left(session: NodeSession, head: str):
    tree: list[Any] = ["c", 1]
    for n in range(MOST_LEVELS - 2):
        tree = [head, tree, ["v", n]]
    tree = ["-", ["v", 7], tree]

    found = updated(session, Op(UPDATE, "t", "h", 1, None, where=["=", 1, 1], expressions=((1, tree),)))

    many = sum(range(MOST_LEVELS - 2))
    assert found == [(7 - (1 + many if head == "+" else 1 - many),)]
