"""Rows and records of a bucket, copied to another shard; what a shard keeps of its deployment: SQLite and MariaDB."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.sandbox.sessions import both, empty_schema, run

from pipeline.errors import NotMigrated
from pipeline.model.fingerprint import Fingerprint
from pipeline.shard import NodeSession, stored_rows
from pipeline.shard.columns import own_tables
from pipeline.shard.records import ledger_queries
from pipeline.shard.stored_rows import copy_records, copy_table, literal

pytestmark = both

COLUMNS = {
    "mysql": "id BIGINT PRIMARY KEY, `a b` VARCHAR(40), n DECIMAL(20,6), x DOUBLE, k LONGBLOB, d DATE, t TIME(6), "
    "at DATETIME(6)",
    "sqlite": 'id INTEGER PRIMARY KEY, "a b" TEXT, n TEXT, x REAL, k BLOB, d TEXT, t TEXT, at TEXT',
}
VALUES = (
    "'it''s \\ 😀 \"', 12345678901234.000001, 0.1, X'00ff275c', '2024-02-29', '-23:59:59.000001', "
    "'2024-02-29 12:34:56.789'",
    "'', -0.5, -1e300, X'', '0001-01-01', '00:00:00', '9999-12-31 23:59:59.999999'",
    "NULL, NULL, NULL, NULL, NULL, NULL, NULL",
)


@pytest.fixture
def target(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NodeSession]:
    session = NodeSession("s1", empty_schema(kind, request, tmp_path))
    yield session
    session.discard()


def test_every_row_arrives_as_it_is_over_pages_and_statements(
    session: NodeSession, target: NodeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_rows, "ROWS", 2)
    monkeypatch.setattr(stored_rows, "STATEMENT", 200)
    create = f"CREATE TABLE t ({COLUMNS[session.dialect.name]})"
    run(target, create)
    run(session, create, *(f"INSERT INTO t VALUES ({n}, {VALUES[n % 3]})" for n in range(7)))
    columns = ["id", "a b", "n", "x", "k", "d", "t", "at"]

    with session.transaction(), target.transaction():
        assert copy_table(session, target, "t", columns, "id") == 7

    assert rows(target) == rows(session)


def test_the_records_of_a_bucket_arrive_and_replace_what_is_there(shard: NodeSession, target: NodeSession) -> None:
    for _, sql in own_tables(target.dialect.name):
        run(target, sql)
    run(target, "INSERT INTO pipeline_watermarks VALUES (3, 0, -1, 'active', 0)")
    run(
        shard,
        "UPDATE pipeline_watermarks SET epoch = 7, seq = 5, state = 'holding' WHERE bucket = 3",
        "INSERT INTO pipeline_producers VALUES (3, 9, 4, 1), (4, 9, 8, 1)",
        "INSERT INTO pipeline_held VALUES (3, 'country 1', 7, 4)",
    )

    with shard.transaction(), target.transaction():
        copy_records(shard, target, 3)

    assert ledger_queries.marks_of(target) == ledger_queries.marks_of(shard, [3])
    assert target.query("SELECT bucket, producer, seq FROM pipeline_producers") == [(3, 9, 4)]
    assert target.query("SELECT row_key FROM pipeline_held") == [("country 1",)]


def test_a_database_keeps_one_fingerprint_and_has_a_name_of_its_own(session: NodeSession, target: NodeSession) -> None:
    older = Fingerprint(64, (), (), "p", "it's \\ here", "drawn", databases=(("s0", ("a",)),))
    newer = replace(older, version=2)
    assert ledger_queries.fingerprint_of(session)[0] is None
    with pytest.raises(NotMigrated):
        ledger_queries.keep_fingerprint(session, older)
    for _, sql in own_tables(session.dialect.name):
        run(session, sql)

    ledger_queries.keep_fingerprint(session, older)
    first, name = ledger_queries.fingerprint_of(session)
    ledger_queries.keep_fingerprint(session, newer)
    ledger_queries.keep_fingerprint(session, older)  # its process was late

    assert (first, ledger_queries.fingerprint_of(session)[0]) == (older.to_json(), newer.to_json())
    if session.dialect.name == "mysql":
        assert name.startswith("mysql ")
        assert name != ledger_queries.fingerprint_of(target)[1]


@pytest.mark.parametrize(("value", "text"), [(timedelta(hours=-30, microseconds=5), "'-29:59:59.999995'"), (True, "1")])
def test_a_value_of_the_driver_is_written_as_the_database_reads_it(kind: str, value: object, text: str) -> None:
    assert literal(value) == text


def rows(session: NodeSession) -> list[Any]:
    return session.query("SELECT * FROM t ORDER BY id")
