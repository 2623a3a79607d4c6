"""What belongs to a request stays with it: its tables, its user and its filters are those of the rows that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local
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


class Present(local):
    """Who a thread's request is of, as web2py's `current` knows."""

    user = ""


PRESENT = Present()


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
        return next(iter(node(node.item).iterselect()), None)


WAYS: list[Find] = [
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


@pytest.mark.parametrize("find", WAYS)
def test_a_row_is_read_as_the_present_request_reads_it(rows: Any, find: Find):
    for user in ("Ada", "Bob", "Ada"):
        shows(find(model(user), *rows[user]), user)


@pytest.mark.parametrize("find", WAYS)
def test_nobody_sees_the_rows_that_the_present_requests_filter_hides(rows: Any, find: Find):
    owner, row_id = rows["Ada"]

    assert find(model("Ada"), owner, row_id) is not None
    assert getattr(find(model("Bob"), owner, row_id), "id", None) in (None, rows["Bob"][1])


@pytest.mark.parametrize("find", WAYS)
def test_two_requests_at_once_each_read_as_their_own_user(rows: Any, find: Find):
    together = Barrier(2, timeout=30)

    def page(user: str) -> None:
        db = model(user)
        for _ in range(10):
            together.wait()
            shows(find(db, *rows[user]), user)

    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(page, user) for user in ("Ada", "Bob")]:
            future.result()


def test_a_filter_is_asked_for_in_the_thread_of_its_request(box: Sandbox):
    db = model("")
    db.item._common_filter = lambda query: db.item.seen_by == PRESENT.user
    PRESENT.user = "Cy"
    _, row_id = written(db, seen_by="Cy")
    box.drain()

    assert [row.id for row in pipeline.select(db.item)] == [row_id]
    assert pipeline.count(db.item) == pipeline.count(db.item, distinct=db.item.seen_by) == 1


@pytest.mark.parametrize("by_field", [False, True])
def test_rows_are_rendered_by_the_present_request(rows: Any, monkeypatch: pytest.MonkeyPatch, by_field: bool):
    monkeypatch.setattr(
        DAL, "representers", {"rows_render": lambda field, value, row: field.represent(value, row)}, raising=False
    )
    for user in ("Ada", "Bob"):
        db = model(user)
        found = pipeline.select(db.item)
        rendered = found.render(fields=[found.db.item.name] if by_field else None)
        assert [row.name for row in rendered] == [f"{user}: pen for {user}"]


def test_virtual_fields_of_the_old_style_are_the_present_requests(rows: Any):
    for user in ("Ada", "Bob"):
        assert [row.old_reader for row in pipeline.select(model(user).item)] == [user]


def test_a_virtual_field_that_was_edited_is_there_without_a_restart(rows: Any):
    pipeline.get(model("Ada").item, rows["Ada"][1])

    edited = model("Ada")
    edited.item.reader.f = lambda row: "edited"

    assert [find(edited, *rows["Ada"]).reader for find in WAYS] == ["edited"] * len(WAYS)
