"""The bucket of a stored row, computed by its database: the same as the rule's, for any key. SQLite and MariaDB."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.sandbox.sessions import both, run

from pipeline.config.buckets import compile_rule, key_text
from pipeline.config.settings import TableSettings
from pipeline.errors import PipelineError, ShardKeyError
from pipeline.model import END, SMALLEST
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import NodeSession
from pipeline.shard.co_location import bucket_sql, key_sql
from pipeline.shard.dialect import MySQL
from pipeline.shard.stored_rows import literal

ids = st.integers(SMALLEST, END - 1) | st.sampled_from((SMALLEST - 1, SMALLEST, END - 1, END))
wholes = st.integers(-(2**63), 2**63 - 1) | st.integers(-70, 70) | ids
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
#: Keys that are nearly others: of digits that are no ASCII, with a zero before, with blanks and line ends behind.
digits = st.tuples(st.sampled_from(("", "0", "-", " ", "٣", "a")), ids | wholes, st.sampled_from(("", " ", "\n", ".")))
texts = words | words.map(lambda word: f"{word}  ") | digits.map(lambda parts: "".join(map(str, parts)))
BUCKETS = st.integers(1, 1024)
#: The key's column by its kind. Keys are two where a collation takes `a` for `A`.
TYPES = {
    "mysql": {
        "bigint": "BIGINT",
        "string": "VARCHAR(60) COLLATE utf8mb4_general_ci",
        "text": "LONGTEXT",
        "id": "BIGINT",
    },
    "sqlite": {"bigint": "INTEGER", "string": "CHAR(60) COLLATE NOCASE", "text": "TEXT", "id": "INTEGER"},
}
slow = settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@both
@slow
@given(data=st.data())
def test_a_database_gives_each_key_the_bucket_of_the_rule(session: NodeSession, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(("bigint", "string", "text")))
    keys = data.draw(st.lists(wholes if kind == "bigint" else texts, min_size=1, max_size=20))
    buckets, table = data.draw(BUCKETS), data.draw(tables(kind, keys))
    column = Column("k", kind, 60, rname="the Key")

    assert computed(session, table, column, buckets, keys) == [ruled(table, column, buckets, key) for key in keys]


EDGES = [SMALLEST - 1, SMALLEST, SMALLEST + 77, END - 1, END, -SMALLEST, 2**63 - 1, -(2**63), 0, -1]
SPELT = ["{}", "0{}", "{} ", " {}", "{}\n", "{}\t ", "-{}", "{}.", "{}e0", "{}0000000000000000000000", "Zoë {}", "{}😀"]


@both
@pytest.mark.parametrize("buckets", [1, 7, 256, 1024])
def test_ids_and_what_is_spelt_like_ids_are_told_apart(session: NodeSession, buckets: int) -> None:
    spelt = [form.format(edge) for form in SPELT for edge in EDGES] + ["", "٣" * 7 + "1", "1٣00000000000000"]
    for column, keys in ((Column("k", "bigint"), EDGES), (Column("k", "text"), spelt)):
        table = TableSettings("t", "k")
        wanted = [ruled(table, column, buckets, key) for key in keys]
        assert computed(session, table, column, buckets, keys) == wanted


@st.composite
def tables(draw: st.DrawFn, kind: str, keys: list[Any]) -> TableSettings:
    rule = draw(st.sampled_from(("hash", "lookup", "range") + (("modulo",) if kind == "bigint" else ())))
    # trailing blanks are not keys of their own: a file that lists them twice is refused
    near = {key if kind == "bigint" else key.rstrip(" ") for key in draw(st.lists(st.sampled_from(keys), min_size=1))}
    more = draw(st.sets(wholes if kind == "bigint" else texts.map(lambda text: text.rstrip(" "))))
    listed = near | more - {"*"}
    if rule == "lookup":
        star = {"*": 0} if draw(st.booleans()) else {}
        return TableSettings("t", "k", rule, lookup={key: n % 5 for n, key in enumerate(listed)} | star)
    if rule == "range":
        return TableSettings("t", "k", rule, bounds=tuple(sorted(listed)))
    return TableSettings("t", "k", rule)


def ruled(table: TableSettings, column: Column, buckets: int, key: Any) -> int | None:
    try:
        return compile_rule(table, buckets, column)(key)
    except ShardKeyError:
        return None


def computed(
    session: NodeSession, table: TableSettings, column: Column, buckets: int, keys: Iterable[Any]
) -> list[int | None]:
    quote, schema = session.dialect.quote, TableSchema("t", (Column("id", "id"), column))
    kind = TYPES[session.dialect.name][column.kind]
    run(
        session,
        "DROP TABLE IF EXISTS t",
        f"CREATE TABLE t (id INTEGER PRIMARY KEY, {quote(column.name_there)} {kind})",
        "INSERT INTO t VALUES " + ", ".join(f"({n}, {literal(key)})" for n, key in enumerate(keys)),
    )
    bucket = bucket_sql(session.dialect, table, schema, buckets, "a")
    # where rows change a strict session fails on what a query only warns of
    run(session, f"DELETE FROM t WHERE {bucket_sql(session.dialect, table, schema, buckets)} < 0")
    return [row[0] for row in session.query(f"SELECT {bucket} FROM t a ORDER BY id")]


RULES: list[dict[str, Any]] = [
    {},
    {"rule": "modulo"},
    {"rule": "range", "bounds": (7,)},
    {"rule": "lookup", "lookup": {7: 1, "*": 2}},
]


@both
@pytest.mark.parametrize("rule", RULES)
def test_a_row_without_a_key_has_no_bucket(session: NodeSession, rule: dict[str, Any]) -> None:
    key = Column("k", "bigint")
    assert computed(session, TableSettings("t", "k", **rule), key, 8, [None, 7])[0] is None
    if rule.get("rule") != "modulo":
        text = replace(key, type="string")
        rule = rule | ({"bounds": ("7",)} if "bounds" in rule else {})
        assert computed(session, TableSettings("t", "k", **rule), text, 8, [None, "7"])[0] is None


@both
def test_rows_spread_by_their_ids_have_the_bucket_in_them(session: NodeSession) -> None:
    schema = TableSchema("t", (Column("id", "id"),))
    run(session, "CREATE TABLE t (id BIGINT PRIMARY KEY)", f"INSERT INTO t VALUES ({SMALLEST + 77}), (7)")

    found = session.query(f"SELECT {bucket_sql(session.dialect, TableSettings('t'), schema, 256)} FROM t ORDER BY id")

    assert found == [(130,), (77,)]
    assert bucket_sql(session.dialect, TableSettings("t", reference=True), schema, 256) == "256"


@pytest.mark.mariadb
def test_digits_of_zerofill_and_texts_of_latin1_are_hashed_as_they_are_read(mariadb_uri: str) -> None:
    session = NodeSession("s0", mariadb_uri)
    run(
        session,
        "CREATE OR REPLACE TABLE odd (id BIGINT PRIMARY KEY, n INT(9) ZEROFILL, c VARCHAR(9) CHARACTER SET latin1)",
        "INSERT INTO odd VALUES (1, 7, 'Zürich')",
    )
    schema = TableSchema("odd", (Column("id", "id"), Column("n", "integer"), Column("c", "string", 9)))
    numbers, names = (bucket_sql(session.dialect, TableSettings("odd", key), schema, 256) for key in ("n", "c"))

    assert session.query(f"SELECT {numbers}, {names} FROM odd") == [(130, 62)]
    session.discard()


@pytest.mark.parametrize(
    ("settings", "type", "words"),
    [
        (TableSettings("t", "k", "shop.rules:place"), "integer", "'shop.rules:place'"),
        (TableSettings("t", "k"), "decimal(9,2)", "by a whole number, a reference or a text"),
        (TableSettings("t", "k"), "datetime", "by a whole number, a reference or a text"),
        (TableSettings("t", "k"), "blob", "by a whole number, a reference or a text"),
        (TableSettings("t", "k"), "reference person.code", "by a whole number, a reference or a text"),
        (TableSettings("t", "k", "modulo"), "string", "modulo of whole numbers"),
        (TableSettings("t", "k", "range", bounds=(1, 2)), "string", "bounds are of the column's type"),
        (TableSettings("t", "other"), "integer", "no field of the table"),
    ],
)
def test_what_a_database_cannot_compute_is_refused_with_what_to_change(
    settings: TableSettings, type: str, words: str
) -> None:
    schema = TableSchema("t", (Column("id", "id"), Column("k", type)))

    with pytest.raises(PipelineError, match=words):
        bucket_sql(MySQL(), settings, schema, 256)


@both
@slow
@given(data=st.data())
def test_a_database_finds_the_rows_of_one_key_as_its_text_does(session: NodeSession, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(("bigint", "text")))
    keys = data.draw(st.lists(wholes if kind == "bigint" else texts, min_size=1, max_size=20))
    column, table = Column("k", kind), TableSettings("t", "k")
    wanted = key_text(table, column, data.draw(st.sampled_from(keys)))
    computed(session, table, column, 8, keys)

    which = key_sql(session.dialect, table, TableSchema("t", (Column("id", "id"), column)), wanted)

    found = [row[0] for row in session.query(f"SELECT id FROM t WHERE {which} ORDER BY id")]
    assert found == [n for n, key in enumerate(keys) if key_text(table, column, key) == wanted]
    run(session, f"DELETE FROM t WHERE {which}")


@both
def test_no_number_is_the_key_of_another_text(session: NodeSession) -> None:
    column = Column("k", "bigint")
    computed(session, TableSettings("t", "k"), column, 8, [7, 0])
    schema = TableSchema("t", (Column("id", "id"), column))
    for text in ("007", "", "7 ", "x", "-0"):
        which = key_sql(session.dialect, TableSettings("t", "k"), schema, text)
        assert session.query(f"SELECT id FROM t WHERE {which}") == []
