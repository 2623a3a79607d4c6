"""A read over shards never answers for one shard what all were asked: it is as one database's, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydal import DAL, Field
from support.examples import examples

import pipeline
from pipeline.errors import BadRead, PartialResult, StaleRead
from pipeline.testing import Sandbox, sandbox

TABLES = {
    "sale": {"shard_key": "customer"},
    "line": {"shard_key": "customer"},
    "country": {"reference": True},
}
Build = Callable[[Any], Any]


def define(db: Any) -> Any:
    db.define_table(
        "sale",
        Field("customer", "integer", notnull=True),
        Field("qty", "integer"),
        Field("name"),
        Field("land", "integer"),
        Field("day", "date"),
    )
    db.define_table("line", Field("customer", "integer", notnull=True), Field("about", "integer"), Field("text"))
    db.define_table("memo", Field("sale", "integer"), Field("text"))
    db.define_table("country", Field("code", "integer"), Field("name"))
    return db


def rows() -> Iterator[tuple[str, dict[str, Any]]]:
    for n in range(32):
        name, day = "aBcÄz"[n % 5] * (n % 3), date(2024, 1, 1) + timedelta(n)
        yield "sale", {"customer": n % 12, "qty": n % 7, "name": name, "land": n % 4, "day": day}
    for n in range(20):
        yield "line", {"customer": n % 9, "about": None if n == 3 else n % 5, "text": "aBcÄz"[n % 5]}
    for n in range(6):
        yield "memo", {"sale": n, "text": "x"}
    for n in range(3):
        yield "country", {"code": n, "name": f"land {n}"}


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with sandbox(TABLES, shards=3) as made:
        yield made


@pytest.fixture(scope="module")
def db(box: Sandbox) -> Any:
    made = define(DAL("sqlite:memory", migrate=False))
    pipeline.define_tables(made)
    for table, row in rows():
        pipeline.enqueue_insert(made[table], **row)
    box.drain()
    return made


@pytest.fixture(scope="module")
def whole() -> Any:
    """One database with all rows."""
    made = define(DAL("sqlite:memory"))
    for table, row in rows():
        made[table].insert(**row)
    return made


def days(found: Any) -> list[Any]:
    return sorted(row.day for row in found)


#: By what a test says of it: a query on `sale` that has a subselect.
SUBSELECTS: dict[str, Build] = {
    "a field of another table": lambda db: db.sale.qty.belongs(db(db.line.customer > 3).nested_select(db.line.about)),
    "a table that is sharded otherwise": lambda db: db.sale.qty.belongs(db(db.memo.id > 0).nested_select(db.memo.sale)),
    "not in": lambda db: ~db.sale.qty.belongs(db(db.memo.sale < 4).nested_select(db.memo.sale)),
    "not in, with a NULL": lambda db: ~db.sale.qty.belongs(db(db.line.customer < 9).nested_select(db.line.about)),
    "nothing": lambda db: db.sale.qty.belongs(db(db.line.customer > 99).nested_select(db.line.about)),
    "not in nothing": lambda db: ~db.sale.qty.belongs(db(db.line.customer > 99).nested_select(db.line.about)),
    "its own table": lambda db: db.sale.qty.belongs(
        db(db.sale.land == 2).nested_select(db.sale.qty, correlated=False)
    ),
    "the highest of all shards": lambda db: db.sale.qty.belongs(
        db(db.line.id > 0).nested_select(db.line.about.max())
    ),
    "an average": lambda db: db.sale.qty.belongs(db(db.line.about < 4).nested_select(db.line.about.avg())),
    "how many there are": lambda db: db.sale.qty.belongs(
        db(db.line.about == 1).nested_select(db.line.about.count())
    ),
    "the first few of all": lambda db: db.sale.qty.belongs(
        db(db.memo.id > 0).nested_select(db.memo.sale, orderby=~db.memo.sale, limitby=(2, 7))
    ),
    "of each group": lambda db: db.sale.qty.belongs(
        db(db.line.id > 0).nested_select(db.line.about.max(), groupby=db.line.text)
    ),
    "one in another": lambda db: db.sale.qty.belongs(
        db(db.line.about.belongs(db(db.memo.sale > 2).nested_select(db.memo.sale))).nested_select(db.line.about)
    ),
    "two beside a key": lambda db: (
        (db.sale.customer == 4)
        & db.sale.qty.belongs(db(db.line.customer == 4).nested_select(db.line.about))
        | db.sale.qty.belongs(db(db.memo.sale > 4).nested_select(db.memo.sale))
    ),
    "within one shard key": lambda db: (
        (db.sale.customer == 4) & db.sale.qty.belongs(db(db.memo.sale > 1).nested_select(db.memo.sale))
    ),
    "within one shard key, of the same key": lambda db: (
        (db.sale.customer == 4) & db.sale.qty.belongs(db(db.line.customer == 4).nested_select(db.line.about))
    ),
    "a reference table": lambda db: db.sale.land.belongs(db(db.country.code > 0).nested_select(db.country.code)),
    "a reference table of the row's own": lambda db: db.sale.land.belongs(
        db(db.country.code == db.sale.qty).nested_select(db.country.code)
    ),
    "rows of the same shard key": lambda db: db.sale.qty.belongs(
        db(db.line.customer == db.sale.customer).nested_select(db.line.about)
    ),
    "texts": lambda db: db.sale.name.belongs(db(db.line.customer > 1).nested_select(db.line.text)),
    "days": lambda db: db.sale.day.belongs(
        db(db.sale.land == 1).nested_select(db.sale.day, correlated=False)
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SUBSELECTS)
def test_belongs_of_a_subselect_finds_what_one_database_finds(db: Any, whole: Any, what: str) -> None:
    build = SUBSELECTS[what]
    expected = days(whole(build(whole)).select(whole.sale.day))

    assert days(pipeline.select(build(db), db.sale.day)) == expected
    assert pipeline.count(build(db)) == len(expected)
    assert pipeline.count(build(db), distinct=db.sale.day) == len(expected)
    nested = pipeline.select(db.sale.id > 0, db.sale.day, orderby=[build(db).case(1, 2), db.sale.day])
    assert [row.day for row in nested] == [
        row.day for row in whole(whole.sale).select(whole.sale.day, orderby=[build(whole).case(1, 2), whole.sale.day])
    ]


#: Of each table: its fields of whole numbers.
WHOLE = {"sale": ("customer", "qty", "land"), "line": ("customer", "about"), "memo": ("sale",), "country": ("code",)}


@st.composite
def conditions(draw: st.DrawFn, table: str = "sale", deep: int = 3) -> Build:
    """Draw a condition on a table, with subselects in subselects."""
    at = draw(st.integers(0, len(WHOLE[table]) - 1))
    shape = draw(st.sampled_from(["plain", "and", "or", "not", "in", "in"])) if deep else "plain"
    if shape in ("and", "or"):
        one, other = draw(conditions(table, deep - 1)), draw(conditions(table, deep - 1))
        return lambda db: one(db) & other(db) if shape == "and" else one(db) | other(db)
    if shape == "not":
        one = draw(conditions(table, deep - 1))
        return lambda db: ~one(db)
    if shape == "plain":
        value = draw(st.integers(0, 9))
        equal = draw(st.booleans())
        return lambda db: db[table][WHOLE[table][at]] == value if equal else db[table][WHOLE[table][at]] < value
    inner = draw(st.sampled_from(sorted(WHOLE)))
    field = draw(st.sampled_from(WHOLE[inner]))
    where = draw(conditions(inner, deep - 1))
    highest = draw(st.booleans()) and draw(st.booleans())

    def build(db: Any) -> Any:
        found = db[inner][field].max() if highest else db[inner][field]
        chosen = db(where(db)).nested_select(found, correlated=False)
        return db[table][WHOLE[table][at]].belongs(chosen)

    return build


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(build=conditions())
def test_any_nest_of_subselects_finds_what_one_database_finds(db: Any, whole: Any, build: Build) -> None:
    expected = days(whole(build(whole)).select(whole.sale.day))

    try:
        found, refused = days(pipeline.select(build(db), db.sale.day)), "no row can match"
    except BadRead as error:  # a key that is fixed to two values
        found, refused = [], str(error)

    assert found == expected
    assert "no row can match" in refused


@pytest.mark.parametrize("highest", [False, True])
def test_a_subselect_that_contradicts_itself_finds_what_one_database_finds(db: Any, whole: Any, highest: bool) -> None:
    def neither(db: Any) -> Any:
        found = db.line.customer.max() if highest else db.line.customer
        none = db((db.line.customer == 0) & (db.line.customer == 1)).nested_select(found, correlated=False)
        return ~db.sale.customer.belongs(none)

    assert days(pipeline.select(neither(db), db.sale.day)) == days(whole(neither(whole)).select(whole.sale.day))
    assert pipeline.count(neither(db) | (db.sale.qty < 3)) == whole(neither(whole) | (whole.sale.qty < 3)).count()


def test_a_subselect_is_answered_wherever_it_stands(db: Any, whole: Any) -> None:
    def few(db: Any) -> Any:
        return db.sale.qty.belongs(db(db.memo.sale > 3).nested_select(db.memo.sale))

    def ask(db: Any, select: Any) -> list[Any]:
        flag, on = few(db).case(1, 0), (db.country.code == db.sale.land) & few(db)
        grouped = select(db.sale.id > 0, flag, db.sale.qty.sum(), groupby=flag, orderby=flag)
        joined = select(db.sale.id > 0, db.sale.day, db.country.name, left=db.country.on(on), orderby=db.sale.day)
        return [
            [(row[flag], row[db.sale.qty.sum()]) for row in grouped],
            [(row.sale.day, row.country.name) for row in joined],
        ]

    assert ask(db, pipeline.select) == ask(
        whole, lambda query, *fields, **options: whole(query).select(*fields, **options)
    )


def test_a_common_filter_with_a_subselect_is_answered_over_all_shards(db: Any, whole: Any) -> None:
    def limit(db: Any) -> Build:
        return lambda query: db.sale.qty.belongs(db(db.memo.sale > 3).nested_select(db.memo.sale))

    db.sale._common_filter, whole.sale._common_filter = limit(db), limit(whole)
    try:
        expected = days(whole(whole.sale.land < 3).select(whole.sale.day))
        outer = days(
            whole(
                whole.sale.land.belongs(whole(whole.sale.id > 0).nested_select(whole.sale.land, correlated=False))
            ).select(whole.sale.day)
        )

        assert days(pipeline.select(db.sale.land < 3, db.sale.day)) == expected
        assert pipeline.count(db.sale) == whole(whole.sale).count()
        inner = db(db.sale.id > 0).nested_select(db.sale.land, correlated=False)
        assert days(pipeline.select(db.sale.land.belongs(inner), db.sale.day)) == outer
    finally:
        db.sale._common_filter = whole.sale._common_filter = None


def test_a_common_filter_that_fixes_the_shard_key_sends_the_read_to_one_shard(db: Any) -> None:
    db.sale._common_filter = lambda query: db.sale.customer == "4"
    try:
        rows = pipeline.select(db.sale.qty >= 0)
    finally:
        db.sale._common_filter = None

    assert {row.customer for row in rows} == {4}
    assert len(rows.read_info) == 1


def raw(db: Any, sql: str) -> Any:
    return type(db.sale.qty + 1)(db, sql)


#: By what is refused: what the message says, and what is asked: a query, fields, and perhaps options.
REFUSED: dict[str, tuple[str, Callable[[Any], tuple[Any, ...]]]] = {
    "a subselect as a text": (
        r"belongs\(\) of a text, .*nested_select",
        lambda db: (db.sale.qty.belongs(db(db.memo.id > 0)._select(db.memo.sale)),),
    ),
    "a query as a list": (r"belongs\(\) of a text", lambda db: (db.sale.id.belongs(db.sale.qty > 3),)),
    "a subselect as a text beside a key": (
        r"belongs\(\) of a text",
        lambda db: ((db.sale.customer == 4) & db.sale.qty.belongs(db(db.memo.id > 0)._select(db.memo.sale)),),
    ),
    "EXISTS": (
        r"the text 'EXISTS \(SELECT 1 FROM memo\)'",
        lambda db: ((db.sale.id > 0) & raw(db, "EXISTS (SELECT 1 FROM memo)"),),
    ),
    "EXISTS beside a key": (
        "the text 'EXISTS",
        lambda db: ((db.sale.customer == 4) & raw(db, "EXISTS (SELECT 1 FROM memo)"),),
    ),
    "a text in a query": ("the text 'sale.qty > 1'", lambda db: ((db.sale.id > 0) & "sale.qty > 1",)),
    "a text as a field": (r"the text 'COUNT\(\*\)' .* db.thing.id.count", lambda db: (db.sale.id > 0, "COUNT(*)")),
    "a text in a field": (r"the text 'MAX\(qty\)'", lambda db: (db.sale.id > 0, db.sale.qty + raw(db, "MAX(qty)"))),
    "a text as a join": ("the text 'memo'", lambda db: (db.sale.id > 0, db.sale.qty, {"left": ["memo"]})),
    "a text in an order": (
        "orderby= .* takes fields",
        lambda db: (db.sale.id > 0, db.sale.qty, {"orderby": db.sale.qty | "RAND()"}),
    ),
    "an aggregate in a condition": ("an aggregate in a condition", lambda db: (db.sale.qty.max() > 3,)),
    "an aggregate in a groupby": (
        "an aggregate in a condition or a groupby",
        lambda db: (db.sale.id > 0, db.sale.qty.sum(), {"groupby": db.sale.qty.max()}),
    ),
    "a subselect as a value": (
        "subselect of memo outside of",
        lambda db: (db.sale.qty > db(db.memo.id > 0).nested_select(db.memo.sale.max()),),
    ),
    "a subselect that depends on the row": (
        "subselect of memo, sale that names",
        lambda db: (db.sale.qty.belongs(db(db.memo.sale == db.sale.land).nested_select(db.memo.sale)),),
    ),
    "a subselect that depends on the row beside a key": (
        "subselect of memo, sale that names",
        lambda db: (
            (db.sale.customer == 4) & db.sale.qty.belongs(db(db.memo.sale == db.sale.land).nested_select(db.memo.sale)),
        ),
    ),
    "a subselect of the same table, as pyDAL takes it": (
        "a subselect of sale within a select of sale needs nested_select.field, correlated=False",
        lambda db: (db.sale.qty.belongs(db(db.sale.land == 2).nested_select(db.sale.qty)),),
    ),
    "a subselect in one of a reference table": (
        "subselect of country, memo that names",
        lambda db: (
            db.sale.land.belongs(
                db(
                    db.country.code.belongs(db(db.memo.sale == db.country.code).nested_select(db.memo.sale))
                ).nested_select(db.country.code)
            ),
        ),
    ),
    "a list of another type": (
        "field is 'string', for one that is 'integer'",
        lambda db: (db.sale.qty.belongs(db(db.memo.id > 0).nested_select(db.memo.text)),),
    ),
    "an operator that is not known": (
        "the operator 'unheard_of'",
        lambda db: (db.sale.qty > type(db.sale.qty + 1)(db, unheard_of, db.sale.qty),),
    ),
    "any few": (
        "limitby without orderby",
        lambda db: (db.sale.qty.belongs(db(db.memo.id > 0).nested_select(db.memo.sale, limitby=(0, 3))),),
    ),
    "having": (
        "having= cannot",
        lambda db: (
            db.sale.qty.belongs(
                db(db.memo.id > 0).nested_select(db.memo.sale, groupby=db.memo.sale, having=db.memo.id > 3)
            ),
        ),
    ),
    "a set": (
        "a Set of pyDAL",
        lambda db: (type(db.sale.qty > 1)(db, db._adapter.dialect.eq, db.sale.qty, db(db.memo.id > 0)),),
    ),
    "a union": (
        "with WITH or UNION",
        lambda db: (
            db.sale.qty.belongs(
                db(db.memo.id > 0)
                .nested_select(db.memo.sale)
                .union(lambda first: db(db.line.id > 0).nested_select(db.line.about))
            ),
        ),
    ),
    "a subselect as a table": (
        "a subselect as a table",
        lambda db: (db.sale.qty == db(db.memo.id > 0).nested_select(db.memo.sale).with_alias("some").sale,),
    ),
}


def unheard_of(first: Any, second: Any = None, query_env: Any = None) -> str:
    """Stand for an operator of a later pyDAL."""
    return "1"


@pytest.mark.parametrize("what", REFUSED)
def test_what_each_shard_would_answer_for_itself_is_refused_by_name(db: Any, what: str) -> None:
    says, build = REFUSED[what]
    query, *fields = build(db)
    options = fields.pop() if fields and isinstance(fields[-1], dict) else {}

    with pytest.raises(BadRead, match=says):
        pipeline.select(query, *(fields or [db.sale.id]), **options)
    if not fields:
        with pytest.raises(BadRead, match=says):
            pipeline.count(query)


def test_a_subselect_node_of_a_later_pydal_is_refused(db: Any) -> None:
    chosen = db(db.memo.id > 0)
    if not hasattr(chosen, "subselect"):
        pytest.skip("of the line 3 only")

    with pytest.raises(BadRead, match=r"a Select of pyDAL .*nested_select"):
        pipeline.select(db.sale.qty.belongs(chosen.subselect(db.memo.sale)))


def test_a_subselect_of_too_many_values_is_refused_before_they_fill_the_memory(
    db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = db.sale.qty.belongs(db(db.memo.id > 0).nested_select(db.memo.sale))
    monkeypatch.setattr("pipeline.reads.gather.MOST_VALUES", 5)

    with pytest.raises(BadRead, match=r"memo.sale finds more than 5 values: .* distinct=True"):
        pipeline.select(query)
    few = db.sale.qty.belongs(db(db.line.about > 0).nested_select(db.line.about, distinct=True))
    assert pipeline.count(few) > 0


def test_a_subselect_of_a_reference_table_shows_what_its_reader_wrote(box: Sandbox, db: Any) -> None:
    query = db.sale.land.belongs(db(db.country.code > 90).nested_select(db.country.code))
    receipt = pipeline.enqueue_insert(db.country, code=91, name="new")

    for asked in (query, (db.sale.customer == 4) & query):
        with pytest.raises((StaleRead, PartialResult)):
            pipeline.select(asked, after=receipt, wait_s=0)
    box.drain()
    assert pipeline.count(query, after=receipt) == 0
    pipeline.enqueue_delete(db.country.id == receipt.id)
    box.drain()


def test_a_subselect_over_all_shards_shows_what_its_reader_wrote(box: Sandbox, db: Any) -> None:
    query = (db.sale.customer == 4) & db.sale.qty.belongs(db(db.memo.text == "new").nested_select(db.memo.sale))
    receipt = pipeline.enqueue_insert(db.memo, sale=4, text="new")

    with pytest.raises((StaleRead, PartialResult)):
        pipeline.select(query, after=receipt, wait_s=0)
    box.drain()
    assert pipeline.count(query, after=receipt) == pipeline.count((db.sale.customer == 4) & (db.sale.qty == 4)) > 0
    pipeline.enqueue_delete(db.memo.id == receipt.id)
    box.drain()


def test_a_read_that_its_shard_key_sends_to_one_shard_may_have_texts_of_its_own_rows(db: Any, whole: Any) -> None:
    [row] = pipeline.select(db.sale.customer == 4, "COUNT(*)")

    assert row["COUNT(*)"] == whole(whole.sale.customer == 4).count()


def test_with_one_shard_each_read_of_pydal_is_as_one_databases(whole: Any) -> None:
    with sandbox(TABLES, shards=1) as made:
        db = define(DAL("sqlite:memory", migrate=False))
        pipeline.define_tables(db)
        for table, row in rows():
            pipeline.enqueue_insert(db[table], **row)
        made.drain()

        for build in SUBSELECTS.values():
            assert pipeline.count(build(db)) == whole(build(whole)).count()
        for refused in ("a subselect as a text", "EXISTS", "a subselect that depends on the row"):
            [query] = REFUSED[refused][1](db)
            [same] = REFUSED[refused][1](whole)
            assert pipeline.count(query) == whole(same).count()


def test_a_join_of_key_fields_whose_equal_values_have_other_buckets_is_refused(db: Any) -> None:
    with sandbox({"one": {"shard_key": "key"}, "other": {"shard_key": "key"}}):
        own = DAL("sqlite:memory", migrate=False)
        own.define_table("one", Field("key", "integer"))
        own.define_table("other", Field("key", "decimal(10,2)"))
        pipeline.define_tables(own)

        with pytest.raises(BadRead, match="not kept together"):
            pipeline.select(own.one.key == own.other.key)
