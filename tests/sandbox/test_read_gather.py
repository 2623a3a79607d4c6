"""Rows of several shards equal those of one database that holds them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydal import DAL, Field
from support.examples import examples

import pipeline
from pipeline.errors import BadRead
from pipeline.reads.gather.merge import Aggregate, Merge, SortKey, Term, merged_rows
from pipeline.testing import Sandbox, sandbox

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "customer": st.integers(0, 9),
            "qty": st.one_of(st.none(), st.integers(-3, 3)),
            "weight": st.one_of(st.none(), st.sampled_from([-1.5, 0.0, 0.25, 8.0])),
            "name": st.one_of(st.none(), st.sampled_from(["", "a", "B", "b", "é", "zz"])),
            "day": st.one_of(st.none(), st.sampled_from([date(2024, 2, 29), date(1999, 1, 1)])),
            "paid": st.one_of(st.none(), st.booleans()),
        }
    ),
    max_size=25,
)


def fields() -> list[Any]:
    return [
        Field("customer", "integer", notnull=True),
        Field("qty", "integer"),
        Field("weight", "double"),
        Field("name"),
        Field("day", "date"),
        Field("paid", "boolean"),
    ]


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with sandbox({"sale": {"shard_key": "customer"}, "country": {"reference": True}}, shards=3) as made:
        yield made


@pytest.fixture(scope="module")
def db(box: Sandbox) -> Any:
    made = DAL("sqlite:memory", migrate=False)
    made.define_table("sale", *fields())
    made.define_table("line", Field("sale", "integer"), Field("text"))
    made.define_table("country", Field("name"))
    pipeline.define_tables(made)
    return made


class Oracle:
    """One database with all rows."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.db = DAL("sqlite:memory")
        self.db.define_table("sale", *fields())
        for row in rows:
            self.db.sale.insert(**row)


def fill(box: Sandbox, db: Any, rows: list[dict[str, Any]]) -> None:
    for customer in range(10):
        pipeline.enqueue_delete(db.sale.customer == customer)
    pipeline.enqueue_bulk_insert(db.sale, rows)
    box.drain()


def plain(rows: Any) -> list[Any]:
    return [tuple(row.as_dict().items()) if hasattr(row, "as_dict") else row for row in rows]


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, data=st.data())
def test_rows_and_their_order_are_those_of_one_database(box: Sandbox, db: Any, rows: Any, data: st.DataObject) -> None:
    fill(box, db, rows)
    oracle = Oracle(rows).db
    names = ["customer", "qty", "weight", "name", "day", "paid"]
    by = data.draw(st.lists(st.tuples(st.sampled_from(names), st.booleans()), min_size=1, max_size=3))
    bound = data.draw(st.integers(-3, 3))
    distinct = data.draw(st.booleans())
    first, last = sorted(data.draw(st.tuples(st.integers(0, 12), st.integers(0, 12))))

    def ask(table: Any, select: Any) -> list[tuple[Any, ...]]:
        # all fields take part in the order: so there is only one right answer
        terms = [~table[n] if down else table[n] for n, down in by] + [table[n] for n in names]
        query = (table.qty >= bound) | (table.qty == None)  # noqa: E711
        found = select(
            query, *[table[n] for n in names], orderby=terms, limitby=(first, last), distinct=distinct or None
        )
        return [tuple(row[n] for n in names) for row in found]

    here = ask(db.sale, pipeline.select)
    there = ask(oracle.sale, lambda query, *fields, **options: oracle(query).select(*fields, **options))

    assert here == there


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, data=st.data())
def test_groups_and_aggregates_are_those_of_one_database(box: Sandbox, db: Any, rows: Any, data: st.DataObject) -> None:
    fill(box, db, rows)
    oracle = Oracle(rows).db
    by = data.draw(st.lists(st.sampled_from(["qty", "name", "day", "paid"]), max_size=2, unique=True))

    def ask(table: Any, select: Any) -> list[tuple[Any, ...]]:
        wanted = [
            table.id.count(), table.qty.sum(), table.qty.avg(), table.weight.avg(), table.weight.max(),
            table.name.min(), table.name.count(distinct=True), table.day.max(), table.qty.count(distinct=True),
        ]  # fmt: skip
        groups = [table[name] for name in by]
        options = {"groupby": groups, "orderby": groups} if groups else {}
        found = select(table.customer > 2, *groups, *wanted, **options)
        return [(*(row.sale[name] for name in by), *(row[one] for one in wanted)) for row in found]

    here = ask(db.sale, pipeline.select)
    there = ask(oracle.sale, lambda query, *fields, **options: oracle(query).select(*fields, **options))

    assert here == there, "all numbers here are exact in binary"


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_counts_are_those_of_one_database(box: Sandbox, db: Any, rows: Any) -> None:
    fill(box, db, rows)
    oracle = Oracle(rows).db

    assert pipeline.count(db.sale) == len(rows)
    assert pipeline.count(db.sale.qty > 0) == oracle(oracle.sale.qty > 0).count()
    assert pipeline.count(db.sale, distinct=db.sale.name) == oracle(oracle.sale).count(distinct=oracle.sale.name)


@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_without_an_order_the_same_rows_come_in_any_order(box: Sandbox, db: Any, rows: Any) -> None:
    fill(box, db, rows)

    found = pipeline.select(db.sale.qty != 2)

    expected = Counter(tuple(sorted(r.items(), key=str)) for r in rows if r["qty"] not in (2, None))
    assert (
        Counter(tuple(sorted(((k, v) for k, v in row.as_dict().items() if k != "id"), key=str)) for row in found)
        == expected
    )
    assert len(found.read_info) == 3


def test_a_query_that_fixes_the_shard_key_goes_to_one_shard(box: Sandbox, db: Any) -> None:
    fill(box, db, [{"customer": 4, "qty": n} for n in range(5)])

    rows = pipeline.select((db.sale.customer == 4) & (db.sale.qty > 1), db.sale.qty, limitby=(0, 10))

    assert [row.qty for row in rows] == [2, 3, 4]
    assert len(rows.read_info) == 1


def test_an_expressions_value_is_found_under_the_callers_own_expression(box: Sandbox, db: Any) -> None:
    fill(box, db, [{"customer": n, "qty": 2} for n in range(6)])
    total = db.sale.qty.sum()

    assert pipeline.select(db.sale.customer == 4, total).first()[total] == 2
    assert pipeline.select(db.sale.customer >= 0, total).first()[total] == 12
    assert pipeline.select(db.sale.customer >= 0, total.with_alias("total")).first().total == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limitby": (0, 3)}, "add orderby"),
        ({"orderby": "<random>"}, "takes fields"),
        ({"having": True}, "having= cannot be used"),
        ({"for_update": True}, "for_update= cannot be used"),
        ({"distinct": Field("qty")}, "distinct= over several shards is True or False"),
        ({"timeout_s": -1}, "0 or more"),
        ({"max_lag_s": -1}, "0 or more"),
        ({"on_stale": "primry"}, "did you mean 'primary'"),
    ],
)
def test_what_cannot_be_done_over_shards_is_refused(db: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRead, match=message):
        pipeline.select(db.sale.qty > 1, **options)


def test_a_join_of_tables_that_are_not_kept_together_is_refused(db: Any) -> None:
    with pytest.raises(BadRead, match="not kept together"):
        pipeline.select(db.sale.id == db.line.sale)


def test_an_expression_around_an_aggregate_is_refused(db: Any) -> None:
    with pytest.raises(BadRead, match="around an aggregate"):
        pipeline.select(db.sale, db.sale.qty.sum() + 1)


# merging, without a database ------------------------------------------------------------------------------------


def test_texts_are_ordered_by_the_bytes_of_their_collation_and_padded_where_it_pads() -> None:
    pad = b"\x02\x09"
    rows = [("b", b"\x0e\x4a", pad), ("A", b"\x0e\x33", pad), ("a ", b"\x0e\x33\x02\x09", pad)]
    tab = ("a\t", b"\x0e\x33\x02\x01", pad)

    found = merged_rows([rows, [tab]], Merge(1, (Term(SortKey(0, 1)),)))

    assert [row[0] for row in found] == ["a\t", "A", "a ", "b"]


def test_days_that_python_has_not_are_ordered_as_their_digits_and_after_nothing() -> None:
    days = [date(2024, 2, 29), "0000-00-00", date(1000, 1, 1), None, "2024-02-00"]
    moments = [datetime(2024, 2, 29, 1), "0000-00-00 00:00:00", datetime(2024, 2, 29)]

    for column in (days, moments):
        rows = [(value,) for value in column]
        found = merged_rows([rows[:2], rows[2:]], Merge(1, (Term(SortKey(0)),)))
        assert [row[0] for row in found] == sorted(column, key=lambda value: "" if value is None else str(value))
        highest = Merge(1, grouped=True, aggregates=(Aggregate("MIN", SortKey(0), 0),))
        assert merged_rows([rows[:2], rows[2:]], highest) == [[column[1]]]


def test_a_weight_counts_where_the_value_is_a_text_and_not_where_it_is_a_number() -> None:
    texts = [("b", b"\x0e\x4a", None), ("A", b"\x0e\x33", None), (None, None, None)]
    numbers = [(10, b"10", None), (9, b"9", None), (None, None, None)]

    for rows, order in ((texts, [None, "A", "b"]), (numbers, [None, 9, 10])):
        assert [row[0] for row in merged_rows([rows], Merge(1, (Term(SortKey(0, 1)),)))] == order
    once = Merge(1, identity=(SortKey(0, 1),))
    assert len(merged_rows([[(1, b"1", None)], [(2, b"1", None)]], once)) == 2


def test_texts_that_their_collation_takes_for_equal_are_one_group() -> None:
    pad = b"\x02\x09"
    parts = [[("a", 1, b"\x0e\x33", pad)], [("A ", 2, b"\x0e\x33\x02\x09", pad)]]
    merge = Merge(2, grouped=True, groups=(SortKey(0, 2),), aggregates=(Aggregate("SUM", SortKey(1), 1),))

    assert merged_rows(parts, merge) == [["a", 3]]


def test_an_average_has_the_digits_that_a_shard_gives_it() -> None:
    parts = [
        [(Decimal("1.3333"), Decimal(4), 3)],
        [(Decimal("2.0000"), Decimal(2), 1)],
        [(None, None, 0)],
    ]
    merge = Merge(1, grouped=True, aggregates=(Aggregate("AVG", SortKey(0), 0, (1, 2)),))

    assert merged_rows(parts, merge) == [[Decimal("1.5000")]]


def test_whichever_shard_is_first_knows_the_tables_that_its_rows_refer_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_first(self: Any, places: Any, asked: Any) -> list[Any]:
        return [self._one(place, asked) for place in reversed(places)][::-1]

    monkeypatch.setattr("pipeline.reads.gather.Gather._all", last_first)
    with sandbox() as box:
        db = DAL("sqlite:memory", migrate=False)
        db.define_table("owner", Field("name"))
        db.define_table("pet", Field("owner", "reference owner"))
        pipeline.define_tables(db)
        pets = [pipeline.enqueue_insert(db.pet, owner=1).id for _ in range(4)]
        box.drain()

        rows = pipeline.select(db.pet.id > 0, orderby=db.pet.id)

    assert [row.id for row in rows] == sorted(pets)
