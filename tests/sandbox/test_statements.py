"""Ops as SQL: one statement for many ops of one shape, in each engine's words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.model import COPY, DELETE, GROUP, INSERT, READ, UPDATE, UPSERT, Op
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import NodeSession
from pipeline.shard.dialect import Dialect, MySQL, SQLite
from pipeline.shard.literals import encoder
from pipeline.shard.statements import MAX_BRANCHES, MAX_ROWS, CannotRender, copy_statement, most, statement
from pipeline.shard.table_facts import Constraints, Facts

SCHEMA = TableSchema(
    "t", (Column("id", "id"), Column("n", "integer"), Column("name", "string", 20), Column("price", "decimal(10,2)"))
)
SQLITE, MYSQL = SQLite(), MySQL()


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facts]:
    session = NodeSession("s0", f"sqlite://{tmp_path_factory.mktemp('s')}/s.sqlite")
    encode = tuple(encoder(session.adapter, column) for column in SCHEMA.columns)
    yield Facts(SCHEMA, Constraints(), encode, ("id", "n", "name", "price"), "t")
    session.discard()


def op(kind: str, row: int | None, columns: tuple[int, ...] = (), values: tuple[Any, ...] = (), **more: Any) -> Op:
    return Op(kind, "t", SCHEMA.hash, 0, row, columns, values, **more)


def sql(facts: Facts, *ops: Op, dialect: Dialect = SQLITE) -> str:
    return statement(ops[0].kind, ops, facts, dialect)


def test_inserts_are_one_statement_of_many_rows(facts: Facts):
    ops = [op(INSERT, 1, (1, 2), (5, "it's")), op(INSERT, 2, (1, 2), (None, "b\\"))]

    assert sql(facts, *ops) == "INSERT INTO t (id, n, name) VALUES (1, 5, 'it''s'), (2, NULL, 'b\\')"


def test_rows_that_the_database_numbers_leave_their_id_out(facts: Facts):
    assert sql(facts, op(INSERT, None, (1,), (5,))) == "INSERT INTO t (n) VALUES (5)"
    assert sql(facts, op(INSERT, None), op(INSERT, None)) == "INSERT INTO t (id) VALUES (NULL), (NULL)"
    assert sql(facts, op(INSERT, 4), op(INSERT, 5)) == "INSERT INTO t (id) VALUES (4), (5)"


def test_updates_of_different_values_are_one_statement_with_a_branch_for_each(facts: Facts):
    ops = [op(UPDATE, 1, (1, 2), (5, "a")), op(UPDATE, 2, (1, 2), (6, "a"))]

    assert sql(facts, *ops) == "UPDATE t SET n=CASE id WHEN 1 THEN 5 WHEN 2 THEN 6 END, name='a' WHERE id IN (1, 2)"


def test_an_update_by_condition_is_a_statement_of_its_own(facts: Facts):
    where = ["and", ["=", 1, 5], ["or", ["not", ["null", 2]], ["in", 3, ["1.50", "2.00"]]]]

    assert sql(facts, op(UPDATE, None, (2,), ("x",), where=where)) == (
        "UPDATE t SET name='x' WHERE (n = 5 AND (NOT (name IS NULL) OR price IN (1.50, 2.00)))"
    )


@pytest.mark.parametrize(
    ("column", "tree", "on_sqlite", "on_mysql"),
    [
        (1, ["+", ["c", 1], ["v", 1]], "(n + 1)", "(n + 1)"),
        (1, ["-", ["*", ["c", 1], ["v", 2]], ["v", -3]], "((n * 2) - -3)", "((n * 2) - -3)"),
        (1, ["%", ["c", 1], ["v", 7]], "(n % 7)", "(n % 7)"),
        (1, ["/", ["c", 1], ["v", 2]], "(CAST(n AS REAL) / 2)", "(n / 2)"),
        (2, ["||", ["c", 2], ["v", "it's"]], "(name || 'it''s')", "CONCAT(name, 'it''s')"),
        (3, ["+", ["c", 3], ["v", "1.50"]], "(price + 1.50)", "(price + 1.50)"),
    ],
)
def test_expressions_are_in_the_engines_words(
    facts: Facts, column: int, tree: list[Any], on_sqlite: str, on_mysql: str
):
    one = op(UPDATE, 1, expressions=((column, tree),))
    name = facts.names[column]

    assert sql(facts, one) == f"UPDATE t SET {name}={on_sqlite} WHERE id IN (1)"
    assert sql(facts, one, dialect=MYSQL) == f"UPDATE t SET {name}={on_mysql} WHERE id IN (1)"


def test_deletes_are_one_statement(facts: Facts):
    assert sql(facts, op(DELETE, 1), op(DELETE, 2)) == "DELETE FROM t WHERE id IN (1, 2)"
    assert sql(facts, op(DELETE, None, where=["in", 1, []])) == "DELETE FROM t WHERE 1=0"


def test_upserts_are_in_the_engines_words(facts: Facts):
    one = op(UPSERT, 1, (1, 2), (5, "a"), key=(1,), renew=(2,))
    bare = op(UPSERT, 1, (1,), (5,), key=(1,))

    assert sql(facts, one) == (
        "INSERT INTO t (id, n, name) VALUES (1, 5, 'a') ON CONFLICT (n) DO UPDATE SET name=excluded.name"
    )
    assert sql(facts, one, dialect=MYSQL).endswith(" ON DUPLICATE KEY UPDATE name=VALUES(name)")
    assert sql(facts, bare).endswith(" ON CONFLICT (n) DO NOTHING")
    assert sql(facts, bare, dialect=MYSQL).endswith(" ON DUPLICATE KEY UPDATE n=n")


@pytest.mark.parametrize(
    "one",
    [
        op(UPDATE, 1, expressions=((1, ["pow", ["c", 1], ["v", 2]]),)),
        op(DELETE, None, where=["like", 2, "a%"]),
    ],
)
def test_what_a_newer_version_wrote_is_refused_not_guessed(facts: Facts, one: Op):
    with pytest.raises(CannotRender, match="unknown"):
        sql(facts, one)


def test_a_statement_has_as_many_rows_as_its_kind_bears():
    assert {kind: most(kind) for kind in (INSERT, DELETE, UPSERT)} == dict.fromkeys((INSERT, DELETE, UPSERT), MAX_ROWS)
    assert most(UPDATE) == most(GROUP) == MAX_BRANCHES


@pytest.mark.parametrize(("dialect", "quoted"), [(MYSQL, "`a``b`"), (SQLITE, '"a`b"')])
def test_a_name_cannot_leave_its_quotes(dialect: Dialect, quoted: str):
    assert dialect.quote("a`b") == quoted


def test_a_copy_reads_the_row_as_it_is_and_holds_it(facts: Facts):
    one = op(COPY, 9, (3,), ("1.50",), expressions=((1, ["c", 0]), (2, ["c", 2])), source=op(READ, 5))
    same = ["not", ["and", ["same", 1, None], ["same", 2, "a"]]]
    changed = op(COPY, 9, expressions=((1, ["c", 0]),), source=op(READ, None, where=["and", ["=", 0, 5], same]))

    assert copy_statement([one], facts, facts, MYSQL) == (
        "INSERT INTO t (id, price, n, name) SELECT 9, 1.50, id, name FROM t WHERE id IN (5) FOR UPDATE"
    )
    assert copy_statement([changed], facts, facts, SQLITE) == (
        "INSERT INTO t (id, n) SELECT 9, id FROM t WHERE (id = 5 AND NOT ((n IS NULL AND name IS 'a' COLLATE BINARY)))"
    )
    assert "CAST(name AS BINARY) <=> CAST('a' AS BINARY)" in copy_statement([changed], facts, facts, MYSQL)


def test_copies_of_several_rows_give_each_its_id_and_hold_each_to_its_condition(facts: Facts):
    copied = ((1, ["c", 0]), (2, ["c", 2]))
    first = op(COPY, 9, expressions=copied, source=op(READ, 5, where=["and", ["=", 0, 5], ["=", 1, 3]]))
    second = op(COPY, 8, expressions=copied, source=op(READ, 6))

    assert copy_statement([first, second], facts, facts, MYSQL) == (
        "INSERT INTO t (id, n, name) SELECT CASE id WHEN 5 THEN 9 WHEN 6 THEN 8 END, id, name FROM t "
        "WHERE id IN (5, 6) AND ((id = 5 AND (id = 5 AND n = 3)) OR (id = 6)) FOR UPDATE"
    )


@pytest.mark.parametrize(
    "bad",
    [
        op(COPY, 9),
        op(COPY, None, source=op(READ, 5)),
        op(COPY, 9, expressions=((1, ["+", ["c", 1], ["v", 1]]),), source=op(READ, 5)),
    ],
)
def test_a_copy_that_this_version_does_not_know_is_refused(facts: Facts, bad: Op):
    with pytest.raises((CannotRender, ValueError)):
        copy_statement([bad], facts, facts, SQLITE)
