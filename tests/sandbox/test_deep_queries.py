"""Queries and expressions as deep as a worker takes are applied; deeper ones are refused at the call, however deep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from operator import add, and_, or_
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.dal.trees import MOST_LEVELS
from pipeline.errors import BadQuery
from pipeline.testing import Drained, Sandbox, sandbox


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table("event", Field("who", "integer"), Field("n", "integer", default=0), Field("note"))
    yield db
    db.close()


@pytest.fixture
def box(db: Any) -> Iterator[Sandbox]:
    with sandbox({"event": {"shard_key": "who"}}, shards=1, buckets=4) as box:
        pipeline.define_tables(db)
        yield box


def either(db: Any, many: int) -> Any:
    """Return a query of so many ORs, each one level deeper."""
    return reduce(or_, [db.event.n == n for n in range(many)])


DEEP: dict[str, Callable[[Any, int], Any]] = {
    "update": lambda db, many: pipeline.enqueue_update(either(db, many), note="x", shard_key=7),
    "delete": lambda db, many: pipeline.enqueue_delete((db.event.who == 7) & either(db, many - 1)),
    "ands to the right": lambda db, many: pipeline.enqueue_delete(
        reduce(lambda q, n: and_(db.event.n == n, q), range(many - 1), db.event.n == 1), shard_key=7
    ),
    "expression": lambda db, many: pipeline.enqueue_update(
        db.event.who == 7, n=reduce(add, [db.event.n] * (many - 1), db.event.n), shard_key=7
    ),
}


@pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("levels", [MOST_LEVELS + 1, 600, 960, 5000])
def test_a_query_that_is_deeper_than_a_worker_takes_is_refused_with_what_to_write(
    db: Any, box: Sandbox, deep: Callable[[Any, int], Any], levels: int
):
    with pytest.raises(BadQuery, match=f"it has more than {MOST_LEVELS} levels; use belongs"):
        deep(db, levels + 1)

    assert box.enqueued() == []


@pytest.mark.parametrize("deep", [DEEP["update"], DEEP["delete"], DEEP["ands to the right"], DEEP["expression"]])
def test_a_query_of_the_most_levels_is_applied(db: Any, box: Sandbox, deep: Callable[[Any, int], Any]):
    pipeline.enqueue_insert(db.event, who=7)
    receipt = deep(db, MOST_LEVELS)

    assert box.drain() == Drained(2, 0)
    assert receipt.status() == "applied"
