"""Requests of several users in one process: the model that each makes, and the ways in which each reads a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.testing import Sandbox, sandbox

TABLES: dict[str, dict[str, Any]] = {
    "person": {},
    "item": {"shard_key": "owner"},
    "part": {"shard_key": "item"},
    "country": {"reference": True},
}


@pytest.fixture(scope="module", params=[1, 2], ids=["one shard", "two shards"])
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with sandbox(TABLES, shards=request.param) as made:
        yield made


@pytest.fixture(scope="module")
def rows(box: Sandbox) -> dict[str, tuple[int, int]]:
    """The owner and the id of each user's one item."""
    found = {user: written(model(user)) for user in ("Ada", "Bob")}
    box.drain()
    return found


def model(user: str, uri: str = "sqlite:memory", **options: Any) -> Any:
    """Return the DAL of a request of *user*, as a model makes it."""
    db = DAL(uri, bigint_id=True, migrate=uri.endswith("memory"), **options)
    db.define_table("auth_user", Field("first_name"))
    db.define_table("person", Field("name"), format="%(name)s")
    db.define_table("country", Field("name"))
    db.define_table(
        "item",
        Field("owner", "reference person"),
        Field("created_by", "reference auth_user"),
        Field("kept_in", "reference country"),
        Field("name", filter_out=lambda value: f"{value} for {user}", represent=lambda value, row: f"{user}: {value}"),
        Field("seen_by", default=user),
        Field("friends", "list:reference person"),
        Field.Virtual("reader", lambda row: user),
        Field.Method("greet", lambda row, word: f"{word} {user}"),
        common_filter=lambda query: db.item.seen_by == user,
    )
    db.define_table("part", Field("item", "reference item"), Field("name"))
    db.item.virtualfields.append(Old(user))
    pipeline.define_tables(db)
    return db


class Old:
    """Virtual fields in pyDAL's old style."""

    def __init__(self, user: str):
        self._user = user

    def old_reader(self) -> str:
        return self._user


Find = Callable[[Any, int, int], Any]


def one_get(db: Any, owner: int, row_id: int) -> Any:
    return pipeline.get(db.item, row_id)


def one_get_pending(db: Any, owner: int, row_id: int) -> Any:
    return pipeline.get(db.item, row_id, pending=True)


def by_shard_key(db: Any, owner: int, row_id: int) -> Any:
    return pipeline.select(db.item.owner == owner).first()


def of_all_shards(db: Any, owner: int, row_id: int) -> Any:
    return pipeline.select(db.item, orderby=db.item.id).first()


def in_a_read(db: Any, owner: int, row_id: int) -> Any:
    with pipeline.read(db.item, owner) as node:
        return node(node.item.owner == owner).select().first()


def in_a_read_of_the_callers_query(db: Any, owner: int, row_id: int) -> Any:
    with pipeline.read(db.item, owner) as node:
        return node(db.item.owner == owner).select(node.item.ALL).first()


def of_a_nodes_table(db: Any, owner: int, row_id: int) -> Any:
    with pipeline.read(db.item, owner) as node:
        return node.item(row_id)


def iterated(db: Any, owner: int, row_id: int) -> Any:
    with pipeline.read(db.item, owner) as node:
        return next(iter(node(node.item.owner == owner).iterselect()), None)


def of_the_primary(db: Any, owner: int, row_id: int) -> Any:
    pdb = pipeline.get_db(db.item, owner)
    return pdb(pdb.item.owner == owner).select().first()


def of_the_primarys_table(db: Any, owner: int, row_id: int) -> Any:
    return pipeline.get_db("item", owner).item(row_id)


WAYS: list[Find] = [
    of_the_primary,
    of_the_primarys_table,
    one_get,
    one_get_pending,
    by_shard_key,
    of_all_shards,
    in_a_read,
    in_a_read_of_the_callers_query,
    of_a_nodes_table,
    iterated,
]


def written(db: Any, owner: int = 0, **fields: Any) -> tuple[int, int]:
    """Queue an item, and return its owner and its id."""
    owner = owner or pipeline.enqueue_insert(db.person, name="Zoe").id
    return owner, pipeline.enqueue_insert(db.item, owner=owner, name="pen", **fields).id


def shows(row: Any, user: str) -> None:
    """Check that a row is as a request of *user* reads it."""
    assert (row.reader, row.greet("hi"), row.name) == (user, f"hi {user}", f"pen for {user}")
