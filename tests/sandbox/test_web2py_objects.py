"""The explicit calls on what web2py's models are made of: each object is encoded exactly, or refused by its name."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from pydal import DAL, Field
from pydal.validators import CRYPT

import pipeline
from pipeline.errors import BadOp, BadQuery, BadValue
from pipeline.testing import Sandbox, sandbox


class lazyT:  # noqa: N801 - web2py's own name, by which it is known
    """A translation, as web2py's `T("...")` makes it."""

    def __init__(self, text: str):
        self.text = text

    def __str__(self) -> str:
        return self.text


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with sandbox() as made:
        yield made


@pytest.fixture
def db(box: Sandbox, tmp_path: Any) -> Iterator[Any]:
    db = DAL("sqlite:memory", folder=str(tmp_path), bigint_id=True)
    db.define_table("person", Field("name", length=20))
    db.define_table(
        "item",
        Field("name", length=20),
        Field("owner", "reference person"),
        Field("secret", "password", length=255),
        Field("photo", "upload", uploadfolder=str(tmp_path)),
        Field("tags", "list:string"),
        Field("numbers", "list:integer"),
        Field("friends", "list:reference person"),
        Field("settings", "json"),
        Field("raw", "blob"),
        Field("price", "decimal(8,2)"),
        Field("day", "date"),
        Field("clock", "time"),
        Field("at", "datetime"),
        Field("active", "boolean"),
        Field("qty", "integer", default=0),
    )
    pipeline.define_tables(db)
    box.rows("person")  # lets the shards' DALs know whom a reference means
    yield db
    db.close()


def stored(box: Sandbox, db: Any, **fields: Any) -> Any:
    """Queue an item, apply it, and return the row as pyDAL reads it."""
    receipt = pipeline.enqueue_insert(db.item, **fields)
    box.drain()
    return pipeline.get(db.item, receipt.id)


@pytest.mark.parametrize(
    ("field", "given", "expected"),
    [
        ("name", lambda db: lazyT("hello"), "hello"),
        ("name", lambda db: lambda: "called", "called"),
        ("owner", lambda db: db.person(db.person.insert(name="Ada")), 1),
        ("owner", lambda db: db.person.insert(name="Ada"), 1),
        ("owner", lambda db: "1", 1),
        ("tags", lambda db: ["a", "b|c"], ["a", "b|c"]),
        ("numbers", lambda db: [3, 1, 2], [3, 1, 2]),
        ("friends", lambda db: [db.person.insert(name="Ada")], [1]),
        ("settings", lambda db: {"a": [1, None, "é"]}, {"a": [1, None, "é"]}),
        ("settings", lambda db: "a string", "a string"),
        ("raw", lambda db: b"\x00\xff", b"\x00\xff"),
        ("price", lambda db: Decimal("12.50"), Decimal("12.50")),
        ("day", lambda db: date(2026, 5, 6), date(2026, 5, 6)),
        ("clock", lambda db: time(7, 8, 9), time(7, 8, 9)),
        ("at", lambda db: datetime(2026, 5, 6, 7, 8, 9), datetime(2026, 5, 6, 7, 8, 9)),
        ("at", lambda db: lambda: datetime(2026, 5, 6, 7, 8, 9), datetime(2026, 5, 6, 7, 8, 9)),
        ("active", lambda db: "on", True),
    ],
)
def test_a_value_arrives_as_pydal_would_read_it(
    box: Sandbox, db: Any, field: str, given: Callable[[Any], Any], expected: Any
):
    assert stored(box, db, **{field: given(db)})[field] == expected


def test_a_password_travels_as_its_hash(box: Sandbox, db: Any):
    value, error = CRYPT(salt="salty")("swordfish")

    row = stored(box, db, secret=value)

    assert error is None
    assert row["secret"] == str(value)
    assert "swordfish" not in row["secret"]


@pytest.mark.parametrize("by", ["insert", "update"])
def test_a_translation_may_be_a_default_or_what_an_update_sets(box: Sandbox, db: Any, by: str):
    setattr(db.item.name, "default" if by == "insert" else "update", lazyT("new"))
    receipt = pipeline.enqueue_insert(db.item, qty=1)
    pipeline.enqueue_update(db.item.id == receipt.id, qty=2)

    box.drain()

    assert [row["name"] for row in box.rows("item")] == ["new"]


def test_a_translation_that_is_a_default_is_of_the_language_of_each_call(box: Sandbox, db: Any):
    languages = ["new", "neu", "nouveau"]
    lazy = type("lazyT", (), {"__str__": lambda self: languages[0]})
    db.item.name.default = lazy()

    while languages:
        pipeline.enqueue_insert(db.item, qty=1)
        languages.pop(0)

    assert {one.values["name"] for one in box.enqueued("item")} == {"new", "neu", "nouveau"}


def test_an_upload_is_stored_by_the_web_side_and_its_name_travels(box: Sandbox, db: Any, tmp_path: Any):
    name = db.item.photo.store(io.BytesIO(b"bytes"), "a.png")

    row = stored(box, db, photo=name)

    assert (tmp_path / row["photo"]).read_bytes() == b"bytes"


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("photo", io.BytesIO(b"bytes"), "BytesIO"),
        ("name", b"bytes", "bytes"),
        ("price", Decimal("1.234"), "item.price"),
        ("at", datetime(2026, 5, 6, 7, 8, 9, 1), "microsecond"),
        ("raw", object(), "object"),
        ("settings", object(), "object"),
        ("tags", {"a": 1}, "dict"),
        ("qty", 1.5, "item.qty"),
        ("day", "yesterday", "item.day"),
    ],
)
def test_what_a_column_cannot_hold_exactly_is_refused_by_name(db: Any, field: str, value: Any, why: str):
    with pytest.raises(BadValue, match=why) as refused:
        pipeline.enqueue_insert(db.item, {field: value})

    assert refused.value.field == field


def test_a_reference_in_a_query_is_its_id_and_its_row_is_not_read(box: Sandbox, db: Any):
    reference = db.person.insert(id=2**49, name="Ada")  # an int that reads its row when it is asked for an attribute
    pipeline.enqueue_insert(db.person, id=int(reference), name="Ada")

    pipeline.enqueue_update(db.person.id == reference, name="Eve")

    box.drain()
    assert [row["name"] for row in box.rows("person")] == ["Eve"]


def test_an_expression_of_an_insert_is_refused_and_one_of_an_update_computed_by_the_database(box: Sandbox, db: Any):
    receipt = pipeline.enqueue_insert(db.item, qty=1)
    pipeline.enqueue_update(db.item.id == receipt.id, qty=db.item.qty + 1)

    with pytest.raises(BadOp):
        pipeline.enqueue_insert(db.item, qty=db.item.qty + 1)

    box.drain()
    assert [row["qty"] for row in box.rows("item")] == [2]


def test_a_signature_is_the_requests_not_the_workers(box: Sandbox, db: Any):
    user = {"id": 5}
    db.item.owner.default = lambda: user["id"]
    db.item.owner.update = lambda: user["id"]
    first = pipeline.enqueue_insert(db.item, name="a")
    user["id"] = 6
    pipeline.enqueue_update(db.item.id == first.id, name="b")
    user["id"] = 7

    box.drain()

    assert [row["owner"] for row in box.rows("item")] == [6]


# filters ----------------------------------------------------------------------------------------------------------


def two_tenants(db: Any) -> tuple[Any, Any]:
    """Queue a row of each tenant, and become the first again."""
    db.define_table("note", Field("text"), Field("request_tenant", default="one"))
    pipeline.define_tables(db)
    mine = pipeline.enqueue_insert(db.note, text="mine")
    db.note.request_tenant.default = "two"
    other = pipeline.enqueue_insert(db.note, text="other")
    db.note.request_tenant.default = "one"
    return mine, other


@pytest.mark.parametrize("by_table", [False, True])
def test_a_tenant_cannot_change_the_rows_of_another(box: Sandbox, db: Any, by_table: bool):
    mine, other = two_tenants(db)

    for receipt in (mine, other):
        target = (db.note, receipt.id) if by_table else (db.note.id == receipt.id,)
        pipeline.enqueue_update(*target, {"text": "changed"})
    pipeline.enqueue_delete(*((db.note, other.id) if by_table else (db.note.id == other.id,)))

    box.drain()
    assert {row["id"]: row["text"] for row in box.rows("note")} == {mine.id: "changed", other.id: "other"}


def test_a_common_filter_narrows_a_write_unless_the_query_ignores_it(box: Sandbox, db: Any):
    hidden = pipeline.enqueue_insert(db.item, name="a", active=False)
    db.item._common_filter = lambda query: db.item.active == True  # noqa: E712 - pyDAL's own words
    ignoring = db(db.item.id == hidden.id, ignore_common_filters=True).query

    pipeline.enqueue_update(db.item.id == hidden.id, name="b")
    box.drain()
    narrowed = [row["name"] for row in box.rows("item")]
    pipeline.enqueue_update(ignoring, name="c")
    box.drain()

    assert narrowed == ["a"]
    assert [row["name"] for row in box.rows("item")] == ["c"]


def test_a_filter_that_the_log_cannot_carry_is_refused(db: Any):
    db.item._common_filter = lambda query: db.item.name.like("a%")

    with pytest.raises(BadQuery, match="'like'"):
        pipeline.enqueue_delete(db.item.id == 5)


def test_a_set_of_rows_means_its_query_in_writes_and_reads(box: Sandbox, db: Any):
    row_id = pipeline.enqueue_insert(db.item, name="cup", qty=1).id
    other_id = pipeline.enqueue_insert(db.item, name="pot", qty=1).id

    pipeline.enqueue_update(db(db.item.id == row_id), qty=db.item.qty + 4)
    pipeline.enqueue_delete(db(db.item.id == other_id))
    box.drain()

    mine = db(db.item.id == row_id)
    assert [row.qty for row in pipeline.select(mine)] == [5]
    assert pipeline.count(db(db.item)) == 1


def test_a_set_of_all_rows_is_refused_by_what_it_lacks(db: Any):
    with pytest.raises(BadOp, match=r"db\(\) names no rows"):
        pipeline.enqueue_update(db(), qty=1)
