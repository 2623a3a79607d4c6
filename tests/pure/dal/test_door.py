"""The door: a call in pyDAL's words becomes an op with final values and its bucket, or an error that helps."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import count
from typing import Any

import pytest
from msgspec.structs import replace
from pydal import DAL, Field

from pipeline import model
from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.dal import trees
from pipeline.enqueue import final_values
from pipeline.enqueue.final_values import UpdatePlan
from pipeline.enqueue.op_builder import OpBuilder
from pipeline.errors import (
    BadOp,
    BadQuery,
    BadValue,
    CrossBucket,
    PipelineError,
    ShardKeyError,
    UnknownField,
    UnknownTable,
)
from pipeline.model import DELETE, INSERT, UPDATE, UPSERT, Addressed, Op
from pipeline.model.schema import TableSchema

BUCKETS = 16
SETTINGS = load(
    {
        "pipeline": {"buckets": BUCKETS},
        "redis": {"url": "redis://127.0.0.1:1/0"},
        "shards": {"s0": {"primary": "sqlite:///nowhere/s0.sqlite"}, "s1": {"primary": "sqlite:///nowhere/s1.sqlite"}},
        "tables": {
            "purchase": {"shard_key": "customer", "unique": [["customer", "day"]]},
            "country": {"reference": True},
            "legacy": {"shard_key": "customer", "ids": "database"},
        },
    }
)


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table(
        "purchase",
        Field("customer", "integer"),
        Field("day", "date"),
        Field("qty", "integer", default=1),
        Field("price", "decimal(10,2)"),
        Field("note", length=10),
        Field("score", "double"),
        Field("at", "datetime"),
        Field("changed", "integer", default=None, update=lambda: 99),
    )
    db.define_table("country", Field("code", length=2, unique=True))
    db.define_table("person", Field("name", notnull=True), Field("boss", "reference person"))
    db.define_table("legacy", Field("customer", "integer"), Field("n", "integer"))
    db.define_table("auth_user", Field("email"))
    yield db
    db.close()


class Doorway:
    """A door, and what went through its side entrances."""

    def __init__(self) -> None:
        self.topology = Topology(SETTINGS)
        self.published: list[str] = []
        self.approved: list[str] = []
        number = count(1)

        def make(bucket: int, now_ms: int) -> int:
            return model.SMALLEST + (next(number) << 10) + bucket

        self.new = make
        self.op_builder = OpBuilder(self.topology, self, self, self)

    def publish(self, schemas: list[TableSchema]) -> None:
        self.published += [schema.name for schema in schemas]

    def approve(self, schema: TableSchema) -> None:
        self.approved.append(schema.name)

    def admit(self, tables: list[str]) -> bool:
        return True


@pytest.fixture
def doorway(db: Any) -> Doorway:
    made = Doorway()
    made.op_builder.define(db)
    return made


@pytest.fixture
def op_builder(doorway: Doorway) -> OpBuilder:
    return doorway.op_builder


def named(db: Any, op: Op) -> dict[str, Any]:
    """Return an op's values by field."""
    fields = db[op.table].fields
    return {fields[column]: value for column, value in zip(op.columns, op.values, strict=True)}


# values -----------------------------------------------------------------------------------------------------------


def test_an_insert_carries_canonical_values_defaults_and_an_id_of_its_bucket(db: Any, op_builder: OpBuilder):
    addressed = op_builder.insert(db.purchase, {"customer": "7", "day": date(2024, 5, 1), "price": Decimal("1.5")})
    bucket, op = addressed.bucket, addressed.op

    assert (op.kind, op.table) == (INSERT, "purchase")
    assert named(db, op) == {"customer": 7, "day": "2024-05-01", "qty": 1, "price": "1.50"}
    assert op.id is not None
    assert model.bucket_of(op.id) == bucket


def test_the_same_key_is_always_the_same_bucket_in_any_form(db: Any, op_builder: OpBuilder):
    buckets = {op_builder.insert(db.purchase, {"customer": key}).bucket for key in (7, "7", 7.0)}

    assert buckets == {op_builder.update(db.purchase.customer == 7, None, {"qty": 1}).bucket}


def test_rows_of_a_table_without_a_shard_key_are_spread_over_all_buckets(db: Any, op_builder: OpBuilder):
    found = [op_builder.insert(db.person, {"name": "Ada"}) for _ in range(2 * BUCKETS)]

    assert {one.bucket for one in found} == set(range(BUCKETS))
    assert all(op_builder.delete(db.person, one.op.id).bucket == one.bucket for one in found)


def test_rows_that_share_a_key_share_a_bucket_across_tables(db: Any, op_builder: OpBuilder):
    purchase = op_builder.insert(db.purchase, {"customer": 7})

    assert op_builder.insert(db.legacy, {"customer": 7}).bucket == purchase.bucket


def test_a_callable_default_is_called_for_each_row(db: Any, op_builder: OpBuilder):
    turns = count(5)
    db.purchase.qty.default = lambda: next(turns)

    found = [named(db, one.op)["qty"] for one in op_builder.inserts(db.purchase, [{"customer": 1}, {"customer": 1}])]

    assert found == [5, 6]


def test_what_is_known_of_a_table_ends_with_it_since_web2py_makes_its_tables_anew_at_each_request(
    op_builder: OpBuilder,
):
    def request() -> weakref.ref[Any]:
        db = DAL(None)
        db.define_table("purchase", Field("customer", "integer"), Field("qty", "integer", default=1))
        op_builder.insert(db.purchase, {"customer": 7})
        db.close()  # pyDAL keeps what is not closed
        return weakref.ref(db.purchase)

    tables = [request() for _ in range(3)]
    gc.collect()

    assert [table() for table in tables] == [None] * 3


def test_two_clients_may_share_a_table(db: Any, doorway: Doorway):
    other = Doorway()

    for one in (doorway, other, doorway):
        one.op_builder.insert(db.purchase, {"customer": 7})

    assert other.approved == doorway.approved == ["purchase"]


def test_a_callable_value_is_called(db: Any, op_builder: OpBuilder):
    assert named(db, op_builder.insert(db.purchase, {"customer": 1, "qty": lambda: 8}).op)["qty"] == 8


def test_a_default_may_have_microseconds_and_a_given_value_may_not(db: Any, op_builder: OpBuilder):
    db.purchase.at.default = datetime(2024, 5, 1, 12, 0, 0, 123456)

    assert named(db, op_builder.insert(db.purchase, {"customer": 1}).op)["at"] == "2024-05-01 12:00:00"
    with pytest.raises(BadValue, match=r"purchase\.at .*microsecond"):
        op_builder.insert(db.purchase, {"customer": 1, "at": datetime(2024, 5, 1, 12, 0, 0, 1)})


def test_compute_sees_the_other_values_of_an_insert_and_of_an_update(db: Any, op_builder: OpBuilder):
    db.define_table("bill", Field("n", "integer"), Field("twice", "integer", compute=lambda row: 2 * row.n))

    inserted = op_builder.insert(db.bill, {"n": 4}).op
    updated = op_builder.update(db.bill, 5, {"n": 6}).op

    assert named(db, inserted) == {"n": 4, "twice": 8}
    assert named(db, updated) == {"n": 6, "twice": 12}


def test_filter_in_is_applied_to_inserts_and_updates(db: Any, op_builder: OpBuilder):
    db.define_table("word", Field("text", filter_in=lambda text: text.lower()), Field("n", "integer"))

    assert named(db, op_builder.insert(db.word, {"text": "ABC"}).op)["text"] == "abc"
    assert named(db, op_builder.update(db.word, 5, {"text": "ABC"}).op) == {"text": "abc"}
    assert named(db, op_builder.update(db.word, 5, {"n": 1}).op) == {"n": 1}


def test_update_fields_are_renewed_by_an_update_unless_they_are_given(db: Any, op_builder: OpBuilder):
    assert named(db, op_builder.update(db.purchase.customer == 7, None, {"qty": 2}).op) == {"qty": 2, "changed": 99}
    assert named(db, op_builder.update(db.purchase.customer == 7, None, {"changed": 3}).op) == {"changed": 3}
    assert "changed" not in named(db, op_builder.insert(db.purchase, {"customer": 7}).op)


@pytest.mark.parametrize("what", ["update", "compute", "filter_in"])
def test_an_update_of_a_shape_that_came_before_heeds_what_a_controller_changes(
    db: Any, op_builder: OpBuilder, what: str
):
    db.define_table("note", Field("text"), Field("by"))
    change = {"update": "Ada", "compute": lambda row: "Ada", "filter_in": lambda value: "Ada"}[what]

    before = [named(db, op_builder.update(db.note, 5, {"text": text}).op) for text in ("a", "b")]
    setattr(db.note.text if what == "filter_in" else db.note.by, what, change)
    after = named(db, op_builder.update(db.note, 5, {"text": "c"}).op)

    assert before == [{"text": "a"}, {"text": "b"}]
    assert after == ({"text": "Ada"} if what == "filter_in" else {"text": "c", "by": "Ada"})


def test_a_short_way_makes_the_same_op_of_an_update_as_the_long_one(
    db: Any, op_builder: OpBuilder, monkeypatch: pytest.MonkeyPatch
):
    t, day, at = db.purchase, date(2026, 11, 30), datetime(2026, 11, 30, 1, 2, 3)
    queries = [
        (t.id == 5) & (t.customer == 7),
        (t.customer == "7") & (t.day == day) & (t.note == "x") & (t.price == Decimal("1.5")),
        (t.customer == 7) & ((t.at == at) | (t.score == 0.5)),
        (t.customer == 7) & (t.qty == None) & ~(t.score == 1),  # noqa: E711
    ]
    given = [
        {"qty": 3, "changed": 1},
        {"changed": None, "note": "y", "day": day, "at": at, "price": "2.50"},
        {"changed": t.changed + 1, "qty": t.qty * 2 - 1, "note": t.note + "!", "price": 1},
    ]
    both: list[list[Addressed]] = []

    for _ in range(2):
        both.append([op_builder.update(query, None, values) for query in queries for values in given])
        both[-1] += [op_builder.delete(query, None) for query in queries]
        monkeypatch.setattr(final_values, "_GIVEN", frozenset())
        monkeypatch.setattr(trees, "PLAIN", frozenset())

    short, long = ([(one.bucket, replace(one.op, at_ms=0.0)) for one in made] for made in both)
    assert short == long
    assert len(short) == 16


def test_a_reference_takes_a_row_a_reference_and_an_id(db: Any, op_builder: OpBuilder):
    boss = db.person.insert(name="Ada")
    row = db.person(boss)

    found = [
        named(db, op_builder.insert(db.person, {"name": "Bob", "boss": one}).op)["boss"]
        for one in (boss, row, int(boss))
    ]

    assert found == [1, 1, 1]
    assert all(type(one) is int for one in found)


def test_a_row_may_bring_its_own_id_and_lives_where_that_belongs(db: Any, doorway: Doorway):
    addressed = doorway.op_builder.insert(db.person, {"id": 5, "name": "Ada"})
    bucket, op = addressed.bucket, addressed.op

    assert op.id == 5
    assert bucket == doorway.topology.bucket_of("person", 5)


@pytest.mark.parametrize("row", [0, -3])
def test_an_id_that_the_database_would_replace_or_no_receipt_could_carry_is_refused(
    db: Any, op_builder: OpBuilder, row: int
):
    with pytest.raises(BadValue, match=r"person\.id .*holds 1 to"):
        op_builder.insert(db.person, {"id": row, "name": "Ada"})


def test_a_table_whose_database_gives_the_ids_gets_none_here(db: Any, op_builder: OpBuilder):
    assert op_builder.insert(db.legacy, {"customer": 7}).op.id is None


def test_a_reference_table_has_a_bucket_of_its_own(db: Any, op_builder: OpBuilder):
    buckets = {
        op_builder.insert(db.country, {"code": "fr"}).bucket,
        op_builder.update(db.country.code == "fr", None, {"code": "de"}).bucket,
        op_builder.delete(db.country, 5).bucket,
    }

    assert buckets == {BUCKETS}


# refused: values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("note", "x" * 11, "11.*10"),
        ("qty", 2**31, "2147483647"),
        ("qty", 1.5, "1.5|whole|float"),
        ("qty", "seven", "str"),
        ("score", math.nan, "(?i)nan"),
        ("score", math.inf, "(?i)inf|finite"),
        ("price", Decimal("1.005"), "2"),
        ("price", Decimal("123456789.00"), "10|8"),
        ("at", datetime(2024, 5, 1, 12, 0, 0, 5), "microsecond"),
        ("at", datetime(2024, 5, 1, 12, tzinfo=UTC), "(?i)zone"),
        ("day", datetime(2024, 5, 1, 12), "datetime"),
        ("note", b"bytes", "bytes"),
        ("note", {"a": 1}, "dict"),
    ],
)
def test_a_value_that_the_column_cannot_hold_exactly_is_refused_by_name(
    db: Any, op_builder: OpBuilder, field: str, value: object, advice: str
):
    calls = [
        lambda: op_builder.insert(db.purchase, {"customer": 7, field: value}),
        lambda: op_builder.update(db.purchase.customer == 7, None, {field: value}),
    ]
    # moments of a query are cut, those in UTC are taken, and bytes of UTF-8 are the text that pyDAL compares with
    if field not in ("at", "day") and not isinstance(value, bytes):
        calls.append(lambda: op_builder.delete((db.purchase.customer == 7) & (db.purchase[field] == value), None))
    for call in calls:
        with pytest.raises(BadValue, match=advice) as raised:
            call()
        assert str(raised.value).startswith(f"purchase.{field} ")
        assert not raised.value.retryable


@pytest.mark.parametrize(
    ("value", "text"), [("caf\u00e9".encode(), "caf\u00e9"), (1.5, "1.5"), (True, "True"), (7, "7")]
)
def test_a_text_in_a_query_is_what_pydal_compares_with(db: Any, op_builder: OpBuilder, value: object, text: str):
    made = op_builder.delete((db.purchase.customer == 7) & (db.purchase.note == value), None)

    note = op_builder.plan(db.purchase).compiled.column_of["note"]
    assert made.op.where[2] == ["=", note, text]
    with pytest.raises(BadValue, match="bytes"):
        op_builder.delete((db.purchase.customer == 7) & (db.purchase.note == b"\xff"), None)


def test_a_moment_in_a_query_is_cut_as_pydal_cuts_it(db: Any, op_builder: OpBuilder):
    old = (db.purchase.customer == 7) & (db.purchase.at < datetime(2024, 5, 1, 12, 0, 0, 5))

    made = op_builder.delete(old, None)

    at = op_builder.plan(db.purchase).compiled.column_of["at"]
    assert made.op.where[2] == ["<", at, "2024-05-01 12:00:00"]


def test_a_text_that_is_no_date_is_refused_and_not_repeated(db: Any, op_builder: OpBuilder):
    for call in (
        lambda: op_builder.insert(db.purchase, {"customer": 7, "day": "1 May secret"}),
        lambda: op_builder.update(db.purchase.customer == 7, None, {"day": "1 May secret"}),
    ):
        with pytest.raises(BadValue, match=r"purchase\.day .*YYYY") as raised:
            call()
        assert "secret" not in str(raised.value)


def test_values_are_not_bent_by_pydals_filters_when_another_field_is_computed(db: Any, op_builder: OpBuilder):
    db.define_table("event", Field("at", "datetime"), Field("n", "integer", compute=lambda row: 1))

    for call in (
        lambda: op_builder.insert(db.event, {"at": datetime(2024, 5, 1, 12, 0, 0, 5)}),
        lambda: op_builder.update(db.event, 5, {"at": datetime(2024, 5, 1, 12, tzinfo=UTC)}),
    ):
        with pytest.raises(BadValue, match=r"event\.at "):
            call()


def test_a_value_is_called_once_though_pydal_looks_at_it_too(db: Any, op_builder: OpBuilder):
    turns = count(1)
    db.define_table("turn", Field("n", "integer"), Field("m", "integer", compute=lambda row: row.n))

    assert named(db, op_builder.insert(db.turn, {"n": lambda: next(turns)}).op) == {"n": 1, "m": 1}


@pytest.mark.parametrize("values", [{}, {"name": None}])
def test_an_insert_without_a_value_that_the_table_needs_is_refused(
    db: Any, op_builder: OpBuilder, values: dict[str, Any]
):
    with pytest.raises(BadValue, match=r"^person\.name is notnull"):
        op_builder.insert(db.person, values)


def test_an_unknown_field_is_refused_with_the_nearest_name(db: Any, op_builder: OpBuilder):
    for call in (
        lambda: op_builder.insert(db.purchase, {"custmer": 7}),
        lambda: op_builder.update(db.purchase.id == 1, None, {"custmer": 7}),
        lambda: op_builder.upsert(db.purchase, ["custmer"], {"customer": 7}),
    ):
        with pytest.raises(UnknownField, match="'purchase' has no field 'custmer'; did you mean 'customer'"):
            call()


# tables -----------------------------------------------------------------------------------------------------------


def test_a_table_may_be_named_by_text(db: Any, op_builder: OpBuilder):
    assert op_builder.insert("purchase", {"customer": 7}).op.table == "purchase"


def test_a_table_that_nobody_defined_is_refused_with_the_nearest_name(op_builder: OpBuilder):
    with pytest.raises(UnknownTable, match=r"'purchas' is not defined here; did you mean 'purchase'.*define_tables"):
        op_builder.insert("purchas", {"customer": 7})


@pytest.mark.parametrize("what", [7, None, {"customer": 7}])
def test_what_is_no_table_is_refused(op_builder: OpBuilder, what: object):
    with pytest.raises(BadOp, match="expected a pyDAL table or its name"):
        op_builder.insert(what, {"customer": 7})


def test_definitions_are_published_when_they_are_defined_but_not_web2pys_own(doorway: Doorway):
    assert doorway.published == ["purchase", "country", "person", "legacy"]
    assert doorway.approved == []


def test_the_database_is_looked_at_once_before_a_tables_first_op(db: Any, doorway: Doorway):
    for _ in range(3):
        doorway.op_builder.insert(db.person, {"name": "Ada"})
    doorway.op_builder.insert(db.auth_user, {"email": "a@b"})

    assert doorway.approved == ["person", "auth_user"]


def test_a_definition_that_cannot_be_published_does_not_break_a_page_that_only_reads(db: Any):
    def refuse(schemas: list[TableSchema]) -> None:
        raise BadOp("not today")

    doorway = Doorway()
    doorway.publish = refuse
    op_builder = doorway.op_builder
    op_builder.define(db)

    with pytest.raises(BadOp, match="not today"):
        op_builder.insert(db.person, {"name": "Ada"})


# which row, which bucket ------------------------------------------------------------------------------------------


def test_an_update_by_id_names_the_row_and_nothing_else(db: Any, op_builder: OpBuilder):
    row = op_builder.insert(db.purchase, {"customer": 7})
    found = [
        op_builder.update(db.purchase.id == row.op.id, None, {"qty": 5}),
        op_builder.update(db.purchase, row.op.id, {"qty": 5}),
        op_builder.update("purchase", str(row.op.id), {"qty": 5}),
    ]

    for bucket, op in ((one.bucket, one.op) for one in found):
        assert (op.kind, op.id, op.where) == (UPDATE, row.op.id, None)
        assert bucket == row.bucket


def test_an_update_by_shard_key_carries_its_condition(db: Any, op_builder: OpBuilder):
    purchase = db.purchase
    query = (purchase.customer == 7) & (
        (purchase.qty > 1) | ~purchase.note.belongs(["a", "b"]) | purchase.day.belongs([])
    )

    addressed = op_builder.update(query, None, {"qty": 5})
    bucket, op = addressed.bucket, addressed.op

    assert op.id is None
    assert op.where == [
        "and",
        ["=", 1, 7],
        ["or", ["or", [">", 3, 1], ["not", ["in", 5, ["a", "b"]]]], ["in", 2, []]],
    ]
    assert bucket == op_builder.insert(purchase, {"customer": 7}).bucket


def test_a_delete_is_an_update_without_values(db: Any, op_builder: OpBuilder):
    addressed = op_builder.delete(db.purchase.customer == 7, None)
    bucket, op = addressed.bucket, addressed.op

    assert (op.kind, op.where, op.columns) == (DELETE, ["=", 1, 7], ())
    assert bucket == op_builder.insert(db.purchase, {"customer": 7}).bucket


def test_a_legacy_id_tells_no_bucket_so_the_shard_key_is_asked_for(db: Any, op_builder: OpBuilder):
    with pytest.raises(ShardKeyError, match=r"'purchase': the query must fix 'customer' with ==, or pass shard_key="):
        op_builder.update(db.purchase.id == 5, None, {"qty": 1})

    assert op_builder.update(db.purchase.id == 5, None, {"qty": 1}, shard_key=7).bucket == (
        op_builder.insert(db.purchase, {"customer": 7}).bucket
    )


@pytest.mark.parametrize(
    "build", [lambda t: t.qty > 1, lambda t: (t.customer == 7) | (t.customer == 8), lambda t: t.customer > 7]
)
def test_a_query_that_does_not_fix_the_shard_is_refused(db: Any, op_builder: OpBuilder, build: Callable[[Any], Any]):
    with pytest.raises(ShardKeyError, match="cannot tell the shard"):
        op_builder.delete(build(db.purchase), None)


def test_a_query_by_something_else_on_a_table_that_lives_by_its_ids_is_refused(db: Any, op_builder: OpBuilder):
    with pytest.raises(ShardKeyError, match=r"'person': the query must fix 'id' with ==$"):
        op_builder.delete(db.person.name == "Ada", None)


def test_an_insert_without_its_shard_key_is_refused(db: Any, op_builder: OpBuilder):
    for values in ({}, {"customer": None}):
        with pytest.raises(ShardKeyError, match="'purchase' is sharded by 'customer': the insert must give it"):
            op_builder.insert(db.purchase, values)


def test_a_changed_shard_key_is_refused_and_the_same_one_is_not(db: Any, op_builder: OpBuilder):
    row = op_builder.insert(db.purchase, {"customer": 7}).op.id
    for call in (
        lambda: op_builder.update(db.purchase.customer == 7, None, {"customer": 8}),
        lambda: op_builder.update(db.purchase.id == row, None, {"customer": 8}),
        lambda: op_builder.update(db.purchase.customer == 7, None, {"customer": db.purchase.customer + 1}),
    ):
        with pytest.raises(ShardKeyError, match=r"purchase\.customer is the shard key and cannot be changed"):
            call()

    assert named(db, op_builder.update(db.purchase.customer == 7, None, {"customer": 7}).op)["customer"] == 7


def test_a_changed_id_is_refused(db: Any, op_builder: OpBuilder):
    with pytest.raises(BadOp, match="the id of a row of 'person' cannot be changed"):
        op_builder.update(db.person, 5, {"id": 6})


def test_an_id_and_a_shard_key_that_do_not_belong_together_are_refused(db: Any, op_builder: OpBuilder):
    row = op_builder.insert(db.purchase, {"customer": 7}).op.id
    other = next(
        n for n in range(100) if op_builder.insert(db.purchase, {"customer": n}).bucket != model.bucket_of(row or 0)
    )

    with pytest.raises(CrossBucket, match="'purchase' names rows of two buckets"):
        op_builder.update((db.purchase.id == row) & (db.purchase.customer == other), None, {"qty": 1})
    with pytest.raises(CrossBucket):
        op_builder.delete(db.purchase, row, shard_key=other)
    with pytest.raises(
        ShardKeyError, match=f"carries bucket {model.bucket_of(row or 0)}.*let the pipeline make the id"
    ):
        op_builder.insert(db.purchase, {"id": row, "customer": other})
    with pytest.raises(ShardKeyError, match="shard_key= differs"):
        op_builder.insert(db.purchase, {"customer": 7}, shard_key=other)


def test_an_update_of_nothing_is_refused(db: Any, op_builder: OpBuilder):
    with pytest.raises(BadOp, match="nothing to update"):
        op_builder.update(db.person, 5, {})


def test_a_table_alone_does_not_say_which_rows(db: Any, op_builder: OpBuilder):
    with pytest.raises(BadQuery, match=r"which rows of 'person'.*db\.person\.id == 5"):
        op_builder.delete(db.person, None)
    with pytest.raises(BadQuery, match="not both"):
        op_builder.delete(db.person.id == 5, 5)


# upserts ----------------------------------------------------------------------------------------------------------


def test_an_upsert_renews_what_was_given_and_keeps_defaults_for_new_rows(db: Any, op_builder: OpBuilder):
    addressed = op_builder.upsert(db.purchase, ["customer", "day"], {"customer": 7, "day": "2024-05-01", "note": "x"})
    bucket, op = addressed.bucket, addressed.op
    fields = db.purchase.fields

    assert op.kind == UPSERT
    assert [fields[c] for c in op.key] == ["customer", "day"]
    assert named(db, op) == {"customer": 7, "day": "2024-05-01", "qty": 1, "note": "x", "changed": 99}
    assert [fields[c] for c in op.renew] == ["note", "changed"]
    assert op.id is not None
    assert model.bucket_of(op.id) == bucket


@pytest.mark.parametrize(
    ("key", "values"),
    [
        (["customer", "day"], {"note": "x", "day": "2024-05-01", "customer": 7, "changed": 3}),
        (["customer", "day"], {"customer": 7, "day": "2024-05-01", "qty": None, "price": "1.50", "changed": None}),
        (["day", "customer"], {"customer": 7, "day": date(2024, 5, 1), "changed": lambda: 5, "qty": 2}),
        (["customer", "day"], {"customer": 7, "day": "2024-05-01"}),
    ],
)
def test_an_upsert_is_the_same_op_whether_or_not_its_update_is_checked_apart(
    db: Any, op_builder: OpBuilder, monkeypatch: pytest.MonkeyPatch, key: Any, values: dict[str, Any]
):
    usual = op_builder.upsert(db.purchase, key, values)
    monkeypatch.setattr(UpdatePlan, "plain", lambda plan, given: ())

    apart = op_builder.upsert(db.purchase, key, values)

    assert replace(usual.op, id=1, at_ms=2.0) == replace(apart.op, id=1, at_ms=2.0)
    assert list(usual.op.columns) == sorted(usual.op.columns)


def test_a_computed_value_of_an_upsert_is_renewed_with_what_it_is_computed_from(db: Any, op_builder: OpBuilder):
    note, qty = Field("note", compute=lambda row: f"{row.qty} pieces"), Field("qty", "integer")
    db.define_table("stock", note, qty)

    op = op_builder.upsert(db.stock, "id", {"id": 5, "qty": 3}).op

    assert [db.stock.fields[number] for number in op.renew] == ["note", "qty"]
    assert named(db, op) == {"qty": 3, "note": "3 pieces"}


def test_an_upsert_by_the_only_unique_column_or_by_id_needs_no_setting(db: Any, op_builder: OpBuilder):
    assert op_builder.upsert(db.country, "code", {"code": "fr"}).op.key == (1,)
    assert op_builder.upsert(db.person, ["id"], {"id": 5, "name": "Ada"}).op.key == (0,)


@pytest.mark.parametrize(
    ("table", "key", "values", "advice"),
    [
        ("purchase", ["customer", "note"], {"customer": 7, "note": "x"}, r"unique = \[\['customer', 'note'\]\]"),
        ("purchase", [], {"customer": 7}, "needs a value for each of its key fields"),
        ("purchase", ["customer", "day"], {"customer": 7}, r"key fields: \['day'\]"),
        ("purchase", ["customer", "day"], {"customer": 7, "day": None}, r"key fields: \['day'\]"),
        ("person", ["name"], {"name": "Ada"}, "unique index on"),
    ],
)
def test_an_upsert_whose_key_no_unique_index_holds_is_refused(
    db: Any, op_builder: OpBuilder, table: str, key: list[str], values: dict[str, Any], advice: str
):
    with pytest.raises(BadOp, match=advice):
        op_builder.upsert(table, key, values)


def test_an_upsert_into_a_table_with_another_unique_field_is_refused_with_its_name(db: Any, op_builder: OpBuilder):
    db.define_table("badge", Field("code", unique=True), Field("mail", unique=True), Field("n", "integer"))
    db.define_table("purchase_code", Field("customer", "integer"), Field("code", unique=True))

    with pytest.raises(BadOp, match=r"'badge' by \(id\) is ambiguous: \(code\), \(mail\) is unique too"):
        op_builder.upsert(db.badge, "id", {"id": 5, "code": "x", "mail": "y"})
    with pytest.raises(BadOp, match=r"'badge' by \(code\) is ambiguous: \(mail\) is unique too"):
        op_builder.upsert(db.badge, "code", {"code": "x", "mail": "y"})


def test_an_upsert_by_a_key_that_may_be_on_any_shard_is_refused(db: Any, op_builder: OpBuilder):
    db.define_table("tag", Field("word", unique=True))
    db.define_table("purchase_code", Field("customer", "integer"), Field("code", unique=True))

    with pytest.raises(ShardKeyError, match="'tag' is sharded by its id, so it can be upserted by its id only"):
        op_builder.upsert(db.tag, "word", {"word": "x"})


# idempotency keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "x" * 191, 7, b"k"])
def test_an_idempotency_key_that_the_shard_cannot_keep_is_refused(db: Any, op_builder: OpBuilder, key: Any):
    for call in (
        lambda: op_builder.insert(db.person, {"name": "Ada"}, None, key),
        lambda: op_builder.update(db.person, 5, {"name": "Ada"}, None, key),
        lambda: op_builder.delete(db.person, 5, None, key),
        lambda: op_builder.upsert(db.person, "id", {"id": 5, "name": "Ada"}, None, key),
    ):
        with pytest.raises(BadOp, match="idempotency_key must be a text of 1 to 190 characters"):
            call()


def test_an_idempotency_key_with_half_a_character_is_refused_by_every_call(db: Any, op_builder: OpBuilder):
    for call in (
        lambda: op_builder.insert(db.person, {"name": "Ada"}, None, "\ud83d"),
        lambda: op_builder.update(db.person, 5, {"name": "Ada"}, None, "\ud83d"),
        lambda: op_builder.delete(db.person, 5, None, "\ud83d"),
        lambda: op_builder.upsert(db.person, "id", {"id": 5, "name": "Ada"}, None, "\ud83d"),
    ):
        with pytest.raises(BadOp, match="half a character"):
            call()


def test_the_same_idempotency_key_finds_the_same_bucket_also_where_a_row_may_live_anywhere(
    db: Any, op_builder: OpBuilder
):
    buckets = [
        [op_builder.insert(db.person, {"name": "Ada"}, None, f"form {n}").bucket for n in range(40)] for _ in range(2)
    ]

    assert buckets[0] == buckets[1]
    assert len(set(buckets[0])) > BUCKETS // 2


def test_an_op_carries_its_idempotency_key(db: Any, op_builder: OpBuilder):
    found: list[Addressed] = [
        op_builder.insert(db.person, {"name": "Ada"}, None, "k"),
        op_builder.update(db.person, 5, {"name": "Ada"}, None, "k"),
        op_builder.delete(db.person, 5, None, "k"),
        op_builder.upsert(db.person, "id", {"id": 5, "name": "Ada"}, None, "k"),
    ]

    assert [one.op.idempotency_key for one in found] == ["k"] * 4


def test_every_refusal_is_of_one_family_that_says_nothing_was_sent():
    for kind in (BadQuery, BadValue, CrossBucket, ShardKeyError, UnknownField, UnknownTable):
        assert issubclass(kind, BadOp)
        assert issubclass(kind, PipelineError)
        assert not kind.retryable
