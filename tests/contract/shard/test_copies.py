"""A copy over SQLite and a real MariaDB: every kind of column arrives as it stands, and "nothing changed" is exact."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pipeline.config import Topology
from pipeline.config.settings import load
from pipeline.model import COPY, INSERT, READ, Op
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import NodeSession
from pipeline.shard.ddl import create_table
from pipeline.shard.driver_errors import Fault, fault_of
from pipeline.shard.statements import copy_statement, statement
from pipeline.shard.table_facts import Facts, facts_of

#: A column of each kind, a value, and one that is almost it.
KINDS: dict[str, tuple[Column, Any, Any]] = {
    "integer": (Column("a", "integer"), 7, 8),
    "bigint": (Column("b", "bigint"), 2**62, 2**62 + 1),
    "double": (Column("c", "double"), 0.1, 0.10000000000000002),
    "decimal": (Column("d", "decimal(10,2)"), "1.50", "1.51"),
    "boolean": (Column("e", "boolean"), True, False),
    "string": (Column("f", "string", 20), "it's \U0001f600", "it's \U0001f601"),
    "case": (Column("g", "string", 20), "a", "A"),
    "blanks": (Column("h", "string", 20), "a ", "a"),
    "text": (Column("i", "text"), "é\\", "e\\"),
    "json": (Column("j", "json"), json.dumps({"k": "v"}), json.dumps({"k": "V"})),
    "blob": (Column("k", "blob"), b64encode(b"\0\xff'").decode(), b64encode(b"\0\xfe'").decode()),
    "date": (Column("l", "date"), "2024-02-29", "2024-03-01"),
    "time": (Column("m", "time"), "23:59:59", "00:00:00"),
    "datetime": (Column("n", "datetime"), "2024-02-29 12:34:56", "2024-02-29 12:34:57"),
    "list": (Column("o", "list:string"), ["a|b", "c"], ["a|b", "C"]),
    "reference": (Column("p", "reference past"), 2**62, 5),
    "null": (Column("q", "string", 20), None, ""),
}
COLUMNS = tuple(column for column, _, _ in KINDS.values())
NOW = TableSchema("now", (Column("id", "id"), *COLUMNS))
PAST = TableSchema("past", (Column("id", "id"), Column("current_record", "reference now"), *COLUMNS))
EXPRESSIONS = ((1, ["c", 0]), *((n + 1, ["c", n]) for n in range(1, len(COLUMNS) + 1)))


@pytest.fixture(params=["sqlite", pytest.param("mariadb", marks=pytest.mark.mariadb)])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NodeSession]:
    uri = f"sqlite://{tmp_path}/shop.sqlite"
    if request.param == "mariadb":
        uri, name = request.getfixturevalue("mariadb_uri"), f"t{uuid4().hex[:8]}"
        root = NodeSession("root", uri)
        root.query(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        root.discard()
        uri = uri.replace("/shop", f"/{name}")
    session = NodeSession("s0", uri)
    settings = {"redis": {"url": "redis://none.invalid/0"}, "shards": {"s0": {"primary": uri}}}
    topology = Topology(load(settings))
    run(session, *(sql for schema in (NOW, PAST) for sql in create_table(schema, topology, session.dialect)))
    yield session
    session.discard()


@pytest.fixture
def row(session: NodeSession) -> int:
    """A row with a value of each kind."""
    numbers, values = tuple(range(1, len(COLUMNS) + 1)), tuple(value for _, value, _ in KINDS.values())
    run(session, statement(INSERT, [Op(INSERT, "now", NOW.hash, 0, 5, numbers, values)], *known(session, NOW)))
    return 5


def run(session: NodeSession, *statements: str) -> None:
    with session.transaction():
        for sql in statements:
            session.execute(sql)


def known(session: NodeSession, schema: TableSchema) -> tuple[Facts, Any]:
    return facts_of(session, schema), session.dialect


def copy(session: NodeSession, row_id: int, where: list[Any] | None = None, source: int | None = 5) -> None:
    read = Op(READ, "now", NOW.hash, 0, None if where else source, where=where)
    op = Op(COPY, "past", PAST.hash, 0, row_id, expressions=EXPRESSIONS, source=read)
    run(session, copy_statement([op], known(session, PAST)[0], *known(session, NOW)))


def unless_same(*values: tuple[int, Any]) -> list[Any]:
    return ["and", ["=", 0, 5], ["not", ["and", *(["same", column, value] for column, value in values)]]]


def test_every_column_arrives_as_it_stands(session: NodeSession, row: int):
    copy(session, 9)

    [stood] = session.query("SELECT * FROM now")
    [arrived] = session.query("SELECT * FROM past")
    assert arrived == (9, *stood)


def test_a_row_that_is_not_there_is_copied_to_nothing(session: NodeSession, row: int):
    copy(session, 9, source=6)

    assert session.query("SELECT id FROM past") == []


def test_a_row_with_just_these_values_is_not_copied(session: NodeSession, row: int):
    copy(session, 9, unless_same(*((n, value) for n, (_, value, _) in enumerate(KINDS.values(), 1))))

    assert session.query("SELECT id FROM past") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_with_almost_this_value_is_copied(session: NodeSession, row: int, kind: str):
    number = list(KINDS).index(kind) + 1

    copy(session, 9, unless_same((number, KINDS[kind][2])))
    copy(session, 10, unless_same((number, KINDS[kind][1])))

    assert [id for (id,) in session.query("SELECT id FROM past")] == [9]


def test_a_copy_with_an_id_that_is_taken_is_refused_for_good(session: NodeSession, row: int):
    copy(session, 9)

    with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever the driver raises
        copy(session, 9)

    assert fault_of(raised.value) is Fault.PERMANENT
