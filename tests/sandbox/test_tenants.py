"""What one tenant reads and changes is what plain pyDAL would let it: no row of another tenant is seen or changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field

import pipeline
from pipeline.errors import BadOp
from pipeline.testing import Sandbox, sandbox

TABLES = {
    "note": {"shard_key": "name", "unique": [["name", "request_tenant"]]},
    "page": {"shard_key": "name", "unique": [["name"]]},
}


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with sandbox(TABLES) as made:
        yield made


def model(tenant: str | None, common: Any = None) -> Any:
    """Return the application's DAL as a request of *tenant* has it."""
    db = DAL("sqlite:memory", migrate=False, bigint_id=True)
    db.define_table(
        "note",
        Field("name", length=20, notnull=True),
        Field("request_tenant", length=20, default=tenant, writable=False),
        Field("n", "integer", default=0),
    )
    db.define_table("page", Field("name", length=20, notnull=True), Field("owner", length=20), common_filter=common)
    db.define_table("memo", Field("text"), Field("request_tenant", length=20, default=tenant))
    pipeline.define_tables(db)
    return db


# upserts: the key finds the row, whatever the filters hide -------------------------------------------------------


def test_an_upsert_overwrites_no_row_that_a_filter_hides(box: Sandbox) -> None:
    theirs = pipeline.enqueue_insert(model("a").page, name="home", owner="a")
    mine = model("b", lambda query: mine.page.owner == "b")

    with pytest.raises(BadOp, match="filters hide"):
        pipeline.enqueue_upsert(mine.page, key="name", name="home", owner="b")

    box.drain()
    assert [(row["id"], row["owner"]) for row in box.rows("page")] == [(theirs.id, "a")]


def test_an_upsert_by_a_key_with_the_tenant_in_it_keeps_to_the_tenants_rows(box: Sandbox) -> None:
    a, b = model("a"), model("b")
    pipeline.enqueue_insert(a.note, name="x", n=1)
    for n in (2, 3):
        pipeline.enqueue_upsert(b.note, key=["name", "request_tenant"], name="x", request_tenant="b", n=n)

    box.drain()

    assert sorted((row["request_tenant"], row["n"]) for row in box.rows(a.note)) == [("a", 1), ("b", 3)]


def test_an_upsert_in_the_name_of_another_tenant_is_refused(box: Sandbox) -> None:
    pipeline.enqueue_insert(model("a").note, name="x", n=1)

    with pytest.raises(BadOp, match="filters hide"):
        pipeline.enqueue_upsert(model("b").note, key=["name", "request_tenant"], name="x", request_tenant="a", n=2)

    box.drain()
    assert [row["n"] for row in box.rows("note")] == [1]


def test_an_upsert_by_an_id_or_with_one_beside_its_key_takes_no_row_of_another_tenant(box: Sandbox) -> None:
    a, b = model("a"), model("b")
    memo, note = pipeline.enqueue_insert(a.memo, text="x"), pipeline.enqueue_insert(a.note, name="x", n=1)
    key = ["name", "request_tenant"]

    with pytest.raises(BadOp, match="filters hide"):
        pipeline.enqueue_upsert(b.memo, key="id", id=memo.id, text="y")
    with pytest.raises(BadOp, match="leave the id out"):
        pipeline.enqueue_upsert(b.note, key=key, id=note.id, name="x", request_tenant="b", n=2)

    box.drain()
    assert [row["text"] for row in box.rows(a.memo)] == ["x"]
    assert [row["n"] for row in box.rows(a.note)] == [1]
