"""pyDAL's queries and expressions as trees: what the log can carry, and a sentence for what it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from pydal import DAL, Field

from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.dal.trees import condition, pinned, table_of
from pipeline.enqueue.final_values import CompiledTable, update_values
from pipeline.errors import BadOp, BadQuery, BadValue, UnknownField
from pipeline.model.schema import schema_of


@pytest.fixture
def db() -> Iterator[Any]:
    db = DAL("sqlite:memory")
    db.define_table(
        "t",
        Field("n", "integer"),
        Field("m", "integer"),
        Field("price", "decimal(10,2)"),
        Field("score", "double"),
        Field("name", length=20),
        Field("note", "text"),
        Field("day", "date"),
        Field("flag", "boolean"),
    )
    db.define_table("other", Field("n", "integer"))
    yield db
    db.close()


@pytest.fixture
def compiled(db: Any) -> CompiledTable:
    settings = load({"redis": {"url": "redis://127.0.0.1:1/0"}, "shards": {"s0": {"primary": "sqlite:///nowhere/s0"}}})
    return CompiledTable(schema_of(db.t), Topology(settings))


def tree(compiled: CompiledTable, query: Any) -> list[Any]:
    return condition(query, compiled.schema, compiled.check)


def computed(db: Any, compiled: CompiledTable, **given: Any) -> dict[str, list[Any]]:
    return update_values(compiled, db.t, db.t, given)[1]


# conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda t: t.n == 5, ["=", 1, 5]),
        (lambda t: t.n != 5, ["<>", 1, 5]),
        (lambda t: t.n < 5, ["<", 1, 5]),
        (lambda t: t.n <= 5, ["<=", 1, 5]),
        (lambda t: t.n > 5, [">", 1, 5]),
        (lambda t: t.n >= 5, [">=", 1, 5]),
        (lambda t: t.n == None, ["null", 1]),  # noqa: E711
        (lambda t: t.n != None, ["not", ["null", 1]]),  # noqa: E711
        (lambda t: ~(t.n == 5), ["not", ["=", 1, 5]]),
        (lambda t: t.n.belongs([1, 2]), ["in", 1, [1, 2]]),
        (lambda t: t.n.belongs((1,)), ["in", 1, [1]]),
        (lambda t: (t.n == 1) & (t.m == 2) | (t.name == "x"), ["or", ["and", ["=", 1, 1], ["=", 2, 2]], ["=", 5, "x"]]),
        (lambda t: t.price == Decimal("1.5"), ["=", 3, "1.50"]),
        (lambda t: t.day == "2024-05-01", ["=", 7, "2024-05-01"]),
        (lambda t: t.flag == True, ["=", 8, True]),  # noqa: E712
        (lambda t: t.id == 7, ["=", 0, 7]),
        (lambda t: t.id > 0, [">", 0, 0]),
        (lambda t: t.id != -1, ["<>", 0, -1]),
    ],
)
def test_a_comparison_becomes_a_tree_with_canonical_values(
    db: Any, compiled: CompiledTable, build: Callable[[Any], Any], expected: list[Any]
):
    assert tree(compiled, build(db.t)) == expected


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        (lambda db: db.t.name.like("a%"), "'like'.*use =="),
        (lambda db: db.t.name.startswith("a"), "operator"),
        (lambda db: db.t.name.contains("a"), "operator"),
        (lambda db: db.t.n == db.t.m, "compares a field with a value"),
        (lambda db: db.t.n + 1 == 2, "'add' in a query.*select the ids first"),
        (lambda db: db.t.name.upper() == "A", "'upper' in a query.*select the ids first"),
        (lambda db: db.t.n.belongs(db(db.other.n > 1)._select(db.other.n)), "a subselect: select the values first"),
    ],
)
def test_what_a_queued_write_cannot_carry_is_refused(
    db: Any, compiled: CompiledTable, build: Callable[[Any], Any], advice: str
):
    with pytest.raises(BadOp, match=advice):
        tree(compiled, build(db))


def test_a_value_in_a_condition_is_checked_as_the_columns_own(db: Any, compiled: CompiledTable):
    for query in (db.t.n == "seven", db.t.n.belongs([1, 2.5]), (db.t.m == 1) & ~(db.t.n > 2**40)):
        with pytest.raises(BadValue, match=r"^t\.n "):
            tree(compiled, query)


def test_a_query_is_about_one_table(db: Any):
    assert table_of((db.t.n == 1) & (db.t.m == 2)) is db.t
    with pytest.raises(BadQuery, match="about other, t: write one op per table"):
        table_of((db.t.n == 1) & (db.other.n == 2))
    with pytest.raises(BadQuery, match="about other, t"):
        table_of(db.t.n == db.other.n)


def test_a_field_of_a_newer_definition_is_unknown_by_name(db: Any, compiled: CompiledTable):
    newer = db.define_table(
        "t", *(Field(f.name, f.type) for f in db.t if f.name != "id"), Field("extra"), redefine=True, migrate=False
    )

    with pytest.raises(UnknownField, match="'extra'"):
        tree(compiled, newer.extra == "x")


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (["=", 1, 5], 5),
        (["and", ["=", 2, 6], ["=", 1, 5]], 5),
        (["and", ["and", ["=", 1, 5], ["=", 2, 6]], [">", 3, 1]], 5),
        (["or", ["=", 1, 5], ["=", 1, 6]], None),
        (["not", ["=", 1, 5]], None),
        (["in", 1, [5]], None),
        ([">", 1, 5], None),
        (["=", 2, 5], None),
    ],
)
def test_only_what_must_hold_pins_a_column(where: list[Any], found: int | None):
    assert pinned(where, 1) == found


# expressions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "build", "expected"),
    [
        ("n", lambda t: t.n + 1, ["+", ["c", 1], ["v", 1]]),
        ("n", lambda t: t.n - 1, ["-", ["c", 1], ["v", 1]]),
        ("n", lambda t: t.n * 2 % 7, ["%", ["*", ["c", 1], ["v", 2]], ["v", 7]]),
        ("n", lambda t: t.m, ["c", 2]),
        ("n", lambda t: t.m + t.n, ["+", ["c", 2], ["c", 1]]),
        ("score", lambda t: t.score / 2, ["/", ["c", 4], ["v", 2]]),
        ("score", lambda t: t.score * 0.5, ["*", ["c", 4], ["v", 0.5]]),
        ("price", lambda t: t.price + Decimal("1.5"), ["+", ["c", 3], ["v", "1.50"]]),
        ("name", lambda t: t.name + "!", ["||", ["c", 5], ["v", "!"]]),
        ("note", lambda t: t.name + t.note, ["||", ["c", 5], ["c", 6]]),
    ],
)
def test_arithmetic_and_concatenation_on_own_columns_become_trees(
    db: Any, compiled: CompiledTable, field: str, build: Callable[[Any], Any], expected: list[Any]
):
    assert computed(db, compiled, **{field: build(db.t)}) == {field: expected}


@pytest.mark.parametrize(
    ("field", "build", "advice"),
    [
        ("name", lambda db: db.t.name.upper(), r"t\.name uses 'upper'.*compute it before you enqueue"),
        ("n", lambda db: db.t.name.len(), r"t\.n uses 'length'"),
        ("n", lambda db: db.t.n.sum(), r"t\.n uses 'aggregate'|sum"),
        ("n", lambda db: db.other.n + 1, "'t' can name its own fields only"),
        ("n", lambda db: db.t.name, "of another kind than n"),
        ("name", lambda db: db.t.name + db.t.n, "of another kind than name"),
        ("day", lambda db: db.t.day + 1, "type date: only numbers and texts"),
        ("flag", lambda db: db.t.flag + 1, "type boolean: only numbers and texts"),
        ("n", lambda db: db.t.n + None, "None has no place"),
        ("n", lambda db: db.t.n + "one", r"t\.n .*str"),
        ("score", lambda db: db.t.score + float("nan"), "(?i)nan"),
        ("price", lambda db: db.t.price + Decimal("0.001"), r"t\.price"),
        ("name", lambda db: db.t.name + "x" * 21, "21.*20"),
    ],
)
def test_an_expression_that_the_log_cannot_carry_is_refused(
    db: Any, compiled: CompiledTable, field: str, build: Callable[[Any], Any], advice: str
):
    with pytest.raises(BadOp, match=advice):
        computed(db, compiled, **{field: build(db)})


def test_an_expression_on_a_column_that_the_same_call_sets_is_refused_since_databases_differ(
    db: Any, compiled: CompiledTable
):
    for other in (5, db.t.m + 1):
        with pytest.raises(BadOp, match=r"t\.n is computed from m, which the same call sets.*make it two calls"):
            update_values(compiled, db.t, db.t, {"n": db.t.m + 1, "m": other})

    plain, trees = update_values(compiled, db.t, db.t, {"n": db.t.n + 1, "m": 5})
    assert (plain, trees) == ({"m": 5}, {"n": ["+", ["c", 1], ["v", 1]]})
