"""Stored = sent on a real MariaDB in strict mode, for every type of pyDAL and its limits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydal import DAL, Field
from pymysql import MySQLError

from pipeline import clock
from pipeline.config.settings import ShardSettings
from pipeline.errors import BadValue
from pipeline.model.schema import Column, TableSchema
from pipeline.model.sheet import Sheet
from pipeline.model.values import checker, python_value
from pipeline.shard import NodeSession
from pipeline.shard.literals import encoder
from pipeline.shard.statements import insert_of, rows_of
from pipeline.shard.table_facts import facts_of

pytestmark = [
    pytest.mark.mariadb,
    pytest.mark.filterwarnings("ignore:'(db|passwd)' is deprecated:DeprecationWarning"),  # pyDAL's words to PyMySQL
]

STRICT = "STRICT_TRANS_TABLES,NO_BACKSLASH_ESCAPES,ERROR_FOR_DIVISION_BY_ZERO"
COLUMNS = [
    Column("c_integer", "integer"),
    Column("c_bigint", "bigint"),
    Column("c_reference", "reference parent"),
    Column("c_double", "double"),
    Column("c_float", "float"),
    Column("c_money", "decimal(10,2)"),
    Column("c_tiny", "decimal(20,10)"),
    Column("c_huge", "decimal(65,30)"),
    Column("c_boolean", "boolean"),
    Column("c_string", "string", 40),
    Column("c_password", "password", 512),
    Column("c_upload", "upload", 512),
    Column("c_text", "text"),
    Column("c_blob", "blob"),
    Column("c_json", "json"),
    Column("c_date", "date"),
    Column("c_time", "time"),
    Column("c_datetime", "datetime"),
    Column("c_strings", "list:string"),
    Column("c_integers", "list:integer"),
    Column("c_references", "list:reference parent"),
]
BY_NAME = {column.name: column for column in COLUMNS}
AWKWARD = "it's \\' \\ \" ` 100% %s \U0001f600 é \r\n\t \0 \x1a ; -- /* :a ?"
VALUES: dict[str, list[Any]] = {
    "c_integer": [0, 1, -1, 2**31 - 1, -(2**31), "42"],
    "c_bigint": [0, 2**53 + 1, 2**63 - 1, -(2**63)],
    "c_reference": [1, 2**63 - 1],
    "c_double": [0.1, -0.0, 1e16, 1e22, 0.004491253662486427, 5e-324, 1.7976931348623157e308, -1.7976931348623157e308],
    "c_float": [0.1, 123456.0, -1.5, 1.17550e-38, 3.40282e38, 0.333333],
    "c_money": [Decimal("99999999.99"), Decimal("-99999999.99"), "0.01", 12.5],
    "c_tiny": ["0.0000000001", "-9999999999.9999999999"],
    "c_huge": ["9" * 35 + "." + "9" * 30, "-0." + "0" * 29 + "1"],
    "c_boolean": [True, False, "T", 0],
    "c_string": ["", " a ", "a ", "\U0001f600" * 40, "'" * 40, "\\" * 40, "a\\", AWKWARD[:40]],
    "c_password": ["x" * 512],
    "c_upload": ["t.c.8f3a.6e616d65.txt"],
    "c_text": [AWKWARD, "\U0001f600" * 20_000, "'" * 70_000],
    "c_blob": [b"", b"\0\xff", bytes(range(256)), b"'\\" * 50_000, "é"],
    "c_json": [{"it's": [None, True, 0.1, 2**70, AWKWARD]}, [], {}, "text", "", 0, False, "\ud800"],
    "c_date": [date(1000, 1, 1), date(2024, 2, 29), date(9999, 12, 31)],
    "c_time": [time(0, 0), time(23, 59, 59), "7:05"],
    "c_datetime": [datetime(1000, 1, 1), datetime(2024, 3, 31, 2, 30), datetime(9999, 12, 31, 23, 59, 59)],
    "c_strings": [[], ["a"], ["|", "||", "a|", "|b", "c|d"], [AWKWARD, "\\"]],
    "c_integers": [[], [0], [2**63 - 1, -(2**63)]],
    "c_references": [[], [1, 2**63 - 1]],
}
CASES = [
    pytest.param(name, value, id=f"{name}-{value!r:.30}")
    for name, values in VALUES.items()
    for value in [None, *values]
]


@pytest.fixture(scope="module")
def db(mariadb_uri: str) -> Iterator[Any]:
    """A pyDAL connection in strict mode, and a table that has a column of every type."""
    db = DAL(mariadb_uri, migrate=False)
    db.executesql("CREATE DATABASE typed CHARACTER SET utf8mb4")
    db.executesql("USE typed")
    db.executesql(f"SET SESSION sql_mode='{STRICT}'")
    db.define_table("parent")
    db.define_table("t", *(Field(column.name, column.type, length=column.length) for column in COLUMNS))
    types = ", ".join(f"{column.name} {sql_type(db, column)}" for column in COLUMNS)
    db.executesql(f"CREATE TABLE t (id BIGINT AUTO_INCREMENT PRIMARY KEY, {types}) ENGINE=InnoDB CHARSET=utf8mb4")
    yield db
    db.close()


def sql_type(db: Any, column: Column) -> str:
    """Return the type as pyDAL declares it, with 64-bit references and no foreign key."""
    if column.kind == "reference":
        return "BIGINT"
    sizes: dict[str, Any] = {"length": column.length}
    if column.kind == "decimal":
        sizes["precision"], sizes["scale"] = column.digits
    name = "decimal" if column.kind == "decimal" else column.type.partition(" ")[0]
    return str(db._adapter.types[name] % sizes)


def stored(db: Any, column: Column, literal: str) -> Any:
    """Insert one literal as the worker does, without a warning, and read it through pyDAL."""
    db._adapter.execute(f"INSERT INTO t ({column.name}) VALUES ({literal})")
    row_id = db._adapter.lastrowid(db.t)
    assert db.executesql("SHOW WARNINGS") == ()
    return db(db.t.id == row_id).select(db.t[column.name]).first()[column.name]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_boundary_value_is_read_back_equal(db: Any, name: str, value: Any):
    column = BY_NAME[name]
    canonical = checker("t", column)(value)

    found = stored(db, column, encoder(db._adapter, column)(canonical))

    assert found == python_value(column, canonical)


SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.floats(width=16),
    st.integers(0, 999_999).map(lambda n: n / 1000),
    st.decimals(-(10**8), 10**8, places=2),
    st.decimals(-(10**9), 10**9, places=10),
    st.booleans(),
    st.text(),
    st.text("|'\"\\%\0\x1f\r\n ab\U0001f600", max_size=12),
    st.binary(),
    st.dates(),
    st.times().map(lambda moment: moment.replace(microsecond=0)),
    st.datetimes().map(lambda moment: moment.replace(microsecond=0)),
)


@pytest.mark.parametrize("name", BY_NAME)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=SCALARS | st.lists(SCALARS, max_size=4) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3))
def test_any_value_is_refused_or_read_back_equal(db: Any, name: str, value: Any):
    column = BY_NAME[name]
    try:
        canonical = checker("t", column)(value)
    except BadValue:
        return

    found = stored(db, column, encoder(db._adapter, column)(canonical))

    assert found == python_value(column, canonical)


@pytest.fixture(scope="module")
def worker(db: Any, mariadb_uri: str) -> Iterator[NodeSession]:
    session = NodeSession("s0", mariadb_uri.replace("/shop", "/typed"))
    yield session
    session.discard()


def kept(db: Any, worker: NodeSession, schema: TableSchema, values: list[list[Any]]) -> None:
    """Replace a table's rows by those of a sheet, whose values are given by columns."""
    db.commit()  # else it locks what it has written
    facts, numbers = facts_of(worker, schema), tuple(range(1, len(values) + 1))
    sheet = Sheet.read(Sheet(schema.name, schema.hash, 0, [*range(1, len(values[0]) + 1)], numbers, values).text)
    with worker.transaction():
        worker.execute(f"DELETE FROM {facts.table}")
        worker.execute(insert_of(numbers, rows_of([sheet], facts), facts))
        assert worker.rows("SHOW WARNINGS") == []


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(plain=False, texts=['say "it"'], doubles=[-0.0], integers=[1])
@example(plain=False, texts=["a]\n[b", "\\"], doubles=[1e16], integers=[1])
@given(
    plain=st.booleans(),
    texts=st.lists(st.text(st.characters(blacklist_categories=["Cs"]) | st.sampled_from("\"'\\]\n[,"), max_size=40)),
    doubles=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1),
    integers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
)
def test_rows_of_a_sheet_are_read_back_equal(
    db: Any, worker: NodeSession, plain: bool, texts: list[str], doubles: list[float], integers: list[int]
):
    given: dict[str, list[Any]] = {**VALUES, "c_double": doubles, "c_bigint": integers, "c_string": texts}
    if plain:  # no text needs an escape
        given |= {"c_string": ["it's", "é"], "c_text": ["]\U0001f600["], "c_password": ["x"], "c_upload": ["y.txt"]}
    columns = [column for column in COLUMNS if not column.kind.startswith("list:")]
    rows = max(map(len, given.values())) + 1
    canonical = [[*map(checker("t", column), given[column.name]), *[None] * rows][:rows] for column in columns]
    kept(db, worker, TableSchema("t", (Column("id", "id"), *columns)), canonical)

    db.commit()
    found = db(db.t).select(orderby=db.t.id)

    for column, values in zip(columns, canonical, strict=True):
        assert repr([row[column.name] for row in found]) == repr([python_value(column, one) for one in values])


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_plain_values_of_a_column_are_written_as_json(worker: NodeSession, column: Column):
    facts = facts_of(worker, TableSchema("t", (Column("id", "id"), column)))
    plain = [value for value in VALUES[column.name] if "\\" not in str(value)]
    canonical = [checker("t", column)(value) for value in plain]

    form = facts.json_forms[1]

    others = ("float", "boolean", "blob", "json", "list:string", "list:integer", "list:reference")
    assert (form is not None and form.has([None, *canonical])) == (column.kind not in others)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("c_date", "2026-02-30"),
        ("c_date", ""),
        ("c_date", "0000-00-00"),
        ("c_datetime", "2026-02-29 00:00:00"),
        ("c_time", "24:00:00"),
        ("c_money", "1e2"),
        ("c_money", "1.00\n2.00"),
        ("c_integer", True),
        ("c_double", 1),
        ("c_string", 5),
    ],
)
def test_what_is_not_of_its_columns_form_is_stored_by_no_sheet(db: Any, worker: NodeSession, name: str, value: Any):
    with pytest.raises((MySQLError, ValueError, AttributeError)):
        kept(db, worker, TableSchema("t", (Column("id", "id"), BY_NAME[name])), [[value]])


def test_a_number_for_a_column_with_a_choice_of_texts_stays_a_text(db: Any, worker: NodeSession):
    db.executesql("DROP TABLE IF EXISTS choices")
    db.executesql("CREATE TABLE choices (id BIGINT PRIMARY KEY, n ENUM('1', '0'))")

    kept(db, worker, TableSchema("choices", (Column("id", "id"), Column("n", "bigint"))), [[0, 1]])

    assert worker.query("SELECT n FROM choices ORDER BY id") == [("0",), ("1",)]


@pytest.mark.parametrize("zone", ["+02:00", "-09:30"])
def test_in_the_applications_zone_moments_are_its_own_also_those_that_the_database_fills_in(
    db: Any, mariadb_uri: str, zone: str
):
    db.executesql(f"SET SESSION time_zone='{zone}'")  # as the application's sessions have it
    db.executesql("DROP TABLE IF EXISTS moments")
    db.executesql(
        "CREATE TABLE moments (id INT PRIMARY KEY, at TIMESTAMP NULL, made DATETIME DEFAULT CURRENT_TIMESTAMP)"
    )
    settings = ShardSettings("s0", mariadb_uri.replace("/shop", "/typed"), time_zone=zone)
    worker = NodeSession("s0", settings.primary)
    with worker.transaction():
        worker.execute("INSERT INTO moments (id, at) VALUES (1, '2026-07-01 12:00:00')")

    db.executesql("INSERT INTO moments (id, at) VALUES (2, '2026-07-01 12:00:00')")
    db.commit()

    app = db.executesql("SELECT id, at, ABS(TIMESTAMPDIFF(MINUTE, made, NOW())) < 30 FROM moments ORDER BY id")
    assert list(app) == [(row, datetime(2026, 7, 1, 12), 1) for row in (1, 2)]
    assert [at for (at,) in worker.query("SELECT at FROM moments")] == [datetime(2026, 7, 1, 12)] * 2
    assert abs(int(worker.query(f"SELECT {worker.dialect.now_ms}")[0][0]) - clock.wall_ms()) < 60_000
    worker.discard()
    db.executesql("SET SESSION time_zone='SYSTEM'")


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_no_column_needs_the_slow_expand(db: Any, column: Column, monkeypatch: pytest.MonkeyPatch):
    encode = encoder(db._adapter, column)
    canonical = checker("t", column)(VALUES[column.name][-1])
    monkeypatch.setattr(db._adapter, "expand", None)

    literal = encode(canonical)

    assert literal
