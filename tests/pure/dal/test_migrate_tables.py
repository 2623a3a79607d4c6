"""The statements of `pipeline migrate`: what is created for a table, on MariaDB and MySQL, and on SQLite."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from pydal import DAL, Field

from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.errors import PipelineError
from pipeline.model.schema import TableSchema, schema_of
from pipeline.shard.columns import own_tables
from pipeline.shard.ddl import create_table, indexes
from pipeline.shard.dialect import MySQL, SQLite

OWN = {
    "pipeline_watermarks",
    "pipeline_producers",
    "pipeline_rejects",
    "pipeline_lost",
    "pipeline_epochs",
    "pipeline_idempotency",
    "pipeline_ids",
    "pipeline_schemas",
}


def test_both_engines_get_the_same_tables_of_our_own_with_the_same_columns() -> None:
    mysql, sqlite = dict(own_tables("mysql")), dict(own_tables("sqlite"))

    assert OWN <= mysql.keys() == sqlite.keys()
    for name in mysql:
        assert columns_in(mysql[name]) == columns_in(sqlite[name]), name


def test_a_table_of_mysql_has_a_bigint_id_every_character_and_transactions() -> None:
    [table] = create_table(schema(Field("note", "string", length=40)), topology(), MySQL())

    assert "`id` BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY" in table
    assert "`note` VARCHAR(40)" in table
    assert "ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4" in table


def test_a_float_is_made_a_double_and_a_decimal_keeps_its_digits() -> None:
    [table] = create_table(schema(Field("a", "float"), Field("b", "decimal(12,4)")), topology(), MySQL())

    assert "`a` DOUBLE" in table
    assert "`b` DECIMAL(12,4)" in table


def test_the_index_statement_of_mysql_has_no_if_not_exists_which_only_mariadb_knows() -> None:
    statements = list(create_table(schema(Field("email", unique=True)), topology(), MySQL()))

    assert statements[1:] == ["CREATE UNIQUE INDEX `uk_thing_email` ON `thing` (`email`)"]


@pytest.mark.parametrize(
    ("rules", "fields", "wanted"),
    [
        ({}, [Field("n", "integer")], []),
        ({"shard_key": "n"}, [Field("n", "integer")], [(False, ("n",))]),
        ({"shard_key": "n", "unique": [["n", "m"]]}, [Field("n"), Field("m")], [(True, ("n", "m"))]),
        ({"shard_key": "m", "unique": [["n", "m"]]}, [Field("n"), Field("m")], [(True, ("n", "m")), (False, ("m",))]),
        ({"unique": [["n"]]}, [Field("n", unique=True)], [(True, ("n",))]),
        ({}, [Field("of", "reference other")], [(False, ("of",))]),
    ],
)
def test_what_is_looked_up_by_or_must_be_unique_gets_one_index(
    rules: dict[str, Any], fields: list[Any], wanted: list[tuple[bool, tuple[str, ...]]]
) -> None:
    assert [tuple(index) for index in indexes(schema(*fields), topology(rules))] == wanted


def test_a_text_by_which_rows_are_spread_tells_all_texts_apart_and_no_other_column_does() -> None:
    fields = schema(Field("name", length=40, notnull=True), Field("other", length=40, unique=True))

    [mysql, *_] = create_table(fields, topology({"shard_key": "name"}), MySQL())
    [sqlite, *_] = create_table(fields, topology({"shard_key": "name"}), SQLite())

    assert "`name` VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL" in mysql
    assert "`other` VARCHAR(40)\n" in mysql
    assert "COLLATE" not in sqlite


def test_a_type_that_cannot_be_created_is_named() -> None:
    with pytest.raises(PipelineError, match=r"thing\.at: a column of type 'geometry\(\)'"):
        list(create_table(schema(Field("at", "geometry()")), topology(), MySQL()))


def test_sqlite_takes_every_statement_twice() -> None:
    connection = sqlite3.connect(":memory:")
    statements = [sql for _, sql in own_tables("sqlite")]
    statements += create_table(schema(Field("n", "integer")), topology({"shard_key": "n"}), SQLite())

    for sql in [*statements, *statements]:
        connection.execute(sql)

    found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    assert {*OWN, "thing"} <= found


def schema(*fields: Any) -> TableSchema:
    db = DAL(None, migrate=False)
    db.define_table("thing", *(field.clone() for field in fields))
    return schema_of(db.thing)


def topology(rules: dict[str, Any] | None = None) -> Topology:
    return Topology(
        load(
            {
                "redis": {"url": "redis://localhost/0"},
                "shards": {"s0": {"primary": "mysql:pymysql://app@db0/shop"}},
                "tables": {"thing": rules or {}},
            }
        )
    )


def columns_in(create: str) -> list[str]:
    """Return the names that open the lines of a CREATE TABLE, keys left out."""
    lines = [line.strip() for line in create.splitlines()[1:-1]]
    return [line.split()[0] for line in lines if not line.startswith(("KEY", "PRIMARY KEY", "UNIQUE"))]
