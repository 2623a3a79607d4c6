"""Rows of some buckets made equal on another shard, compared and deleted by chunks: SQLite and MariaDB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymysql.err import OperationalError
from support.examples import examples
from support.sandbox.sessions import as_user, both, empty_schema, mariadb, run

from pipeline.errors import PipelineError
from pipeline.model.schema import Column, TableSchema
from pipeline.shard import NodeSession, row_sync, stored_rows
from pipeline.shard.row_sync import Compared, RowSync, delete_rows, sample
from pipeline.shard.stored_rows import copied_columns

SCHEMA = TableSchema("t", (Column("id", "id"), Column("v", "string")))
#: Of each column its definition, and values that are nearly one value.
MYSQL = {
    "v": ("VARCHAR(40) COLLATE utf8mb4_general_ci", ["'a'", "'A'", "'a '", "''", "NULL", "'it''s \\ 😀'", "'ä'"]),
    "c": ("VARCHAR(9) CHARACTER SET latin1", ["'ü'", "'u'", "'|'"]),
    "m": ("LONGTEXT", ["'a,b'", "'a'", "REPEAT('ü', 70000)"]),
    "k": ("LONGBLOB", ["X'00ff275c'", "X''", "NULL", "X'00ff275cf0'"]),
    "b": ("BIT(12)", ["b'101'", "b'0'", "NULL"]),
    "j": ("JSON", ["'{\"a\": [1, null]}'", "'{\"a\": [1, 0]}'"]),
    "f": ("FLOAT", ["0.1", "0.10000001", "16777217"]),
    "x": ("DOUBLE", ["0.1", "0.10000000000000002", "-1e300", "5e-324"]),
    "n": ("DECIMAL(20,6)", ["12345678901234.000001", "12345678901234.000002", "-0.5"]),
    "u": ("BIGINT UNSIGNED", ["18446744073709551615", "18446744073709551614"]),
    "z": ("INT(9) ZEROFILL", ["7", "8"]),
    "d": ("DATE", ["'0000-00-00'", "'2024-00-31'", "'2024-02-31'", "'9999-12-31'"]),
    "h": ("TIME(6)", ["'-838:59:58.999999'", "'00:00:00.000001'"]),
    "w": ("DATETIME(3)", ["'0000-00-00'", "'2024-02-29 12:34:56.789'", "'2024-02-29 12:34:56.788'"]),
    "s": ("TIMESTAMP NULL", ["'2024-10-27 00:30:00'", "'2024-10-27 01:30:00'", "NULL"]),
    "e": ("ENUM('a','B','')", ["'a'", "'B'", "''"]),
    "y": ("YEAR", ["0", "2024"]),
}
SQLITE = {
    "v": ("CHAR(40) COLLATE NOCASE", ["'a'", "'A'", "'a '", "''", "NULL", "'it''s \\ 😀'", "'ä'"]),
    "k": ("BLOB", ["X'00ff275c'", "X''", "NULL", "'1'", "1"]),
    "x": ("DOUBLE", ["0.1", "0.10000000000000002", "-1e300", "9e999", "-9e999"]),
    "d": ("DATE", ["'0000-00-00'", "'2024-02-29'"]),
    "w": ("TIMESTAMP", ["'2024-02-29 12:34:56'", "'2024-02-29T12:34:56'"]),
}
EVEN = "id % 2 = 0"
LOOSE = "SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES'"


@pytest.fixture
def target(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NodeSession]:
    session = NodeSession("s1", empty_schema(kind, request, tmp_path))
    yield session
    session.discard()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three rows, however long these take; transactions of two."""
    monkeypatch.setattr(row_sync, "CHUNK_S", 600)
    monkeypatch.setattr(row_sync, "FIRST", 3)
    monkeypatch.setattr(row_sync, "MOST", 3)
    monkeypatch.setattr(row_sync, "WRITE_ROWS", 2)
    monkeypatch.setattr(stored_rows, "WRITE_ROWS", 2)


@both
def test_each_value_arrives_as_it_is_whatever_the_order_of_columns(session: NodeSession, target: NodeSession) -> None:
    columns = odd_tables(session, target)
    rows = [["0", *(values[0] for _, values in columns.values())]]
    for name, (_, values) in columns.items():
        rows += [
            [str(2 * (len(rows) + n)), *(value if one == name else "NULL" for one in columns)]
            for n, value in enumerate(values)
        ]
    fill(session, ["id", *columns], [*rows, ["-2"] + ["NULL"] * len(columns), ["3"] + ["NULL"] * len(columns)])

    assert sum(chunk.wrong for chunk in synced(session, target)) == len(rows) + 1

    assert stored(target, columns) == stored(session, columns, EVEN)
    assert not any(chunk.wrong for chunk in compared(session, target))
    assert strict(target), "the session's settings are not what they were"


@both
def test_two_values_that_are_nearly_one_are_told_apart(session: NodeSession, target: NodeSession) -> None:
    columns = odd_tables(session, target)
    for name, (_, values) in columns.items():
        pairs = [(one, two) for one in values for two in values if one != two]
        for shard, value in ((session, 0), (target, 1)):
            run(shard, "DELETE FROM t")
            fill(shard, ["id", name], [[str(2 * n), pair[value]] for n, pair in enumerate(pairs)])

        assert sum(chunk.wrong for chunk in compared(session, target)) == len(pairs), name


ROWS = st.dictionaries(st.integers(-9, 25), st.sampled_from(["'a'", "'A'", "NULL"]), max_size=20)


@both
@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(mine=ROWS, theirs=ROWS)
def test_the_targets_rows_become_the_sources_and_no_other_row_changes(
    session: NodeSession, target: NodeSession, mine: dict[int, str], theirs: dict[int, str]
) -> None:
    simple_tables(session, target)
    for shard, rows in ((session, mine), (target, theirs)):
        fill(shard, ["id", "v"], [[str(id), v] for id, v in rows.items()])
    even = {id for id in {*mine, *theirs} if id % 2 == 0 and mine.get(id) != theirs.get(id)}
    others = stored(target, ["v"], "id % 2 <> 0")

    first, again = list(compared(session, target)), list(synced(session, target))

    assert [chunk.examples for chunk in first] == [chunk.examples for chunk in again]
    assert sum(chunk.wrong for chunk in first) == len(even)
    assert even.issuperset(id for chunk in first for id in chunk.examples)
    assert sum(chunk.rows for chunk in first) == sum(id % 2 == 0 for id in mine)
    assert stored(target, ["v"], EVEN) == stored(session, ["v"], EVEN)
    assert stored(target, ["v"], "id % 2 <> 0") == others
    assert sum(chunk.wrong for chunk in synced(session, target)) == 0


@both
def test_a_copy_that_was_broken_off_sends_nothing_twice(session: NodeSession, target: NodeSession) -> None:
    simple_tables(session, target)
    fill(session, ["id", "v"], [[str(id), "'a'"] for id in range(40)])
    begun = synced(session, target)
    done = [next(begun) for _ in range(4)]
    begun.close()

    rest = list(synced(session, target))

    assert sum(chunk.wrong for chunk in done) > 0
    assert sum(chunk.wrong for chunk in done + rest) == sum(chunk.rows for chunk in rest) == 20
    assert not any(chunk.wrong for chunk in rest[:4])
    assert rest[-1].last_id is None


@mariadb
def test_a_copy_sees_one_snapshot_whatever_is_written_meanwhile(
    session: NodeSession, target: NodeSession, other: NodeSession
) -> None:
    simple_tables(session, target)
    fill(session, ["id", "v"], [[str(id), "'a'"] for id in range(20)])
    sync = sync_of(session, target)

    with session.transaction():
        session.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        session.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        for chunk in sync.sync():
            run(other, f"INSERT INTO t VALUES ({200 + 2 * (chunk.last_id or 0)}, 'b')", "UPDATE t SET v = 'b'")

    assert stored(target, ["v"]) == [(id, "a") for id in range(0, 20, 2)]


@both
def test_differences_name_a_few_ids_of_each_chunk(session: NodeSession, target: NodeSession) -> None:
    simple_tables(session, target)
    fill(session, ["id", "v"], [[str(id), "'a'"] for id in (2, 4, 6)])
    fill(target, ["id", "v"], [[str(id), "'a'"] for id in (*range(-8, 0), 2, 6)])

    with session.transaction(), target.transaction():
        found = list(sync_of(session, target).differences())

    assert [chunk.examples for chunk in found] == [(-8, -6), (-4,), (-2,), (4,)]


@both
def test_a_unique_value_may_have_gone_to_a_row_with_a_smaller_id(session: NodeSession, target: NodeSession) -> None:
    simple_tables(session, target, "UNIQUE (v)")
    fill(session, ["id", "v"], [["2", "'b'"], ["4", "'c'"], ["90", "'a'"], *([str(id), "NULL"] for id in range(6, 60))])
    fill(target, ["id", "v"], [["2", "'a'"], ["4", "'x'"], ["90", "'b'"], ["80", "'c'"]])

    list(synced(session, target))

    assert stored(target, ["v"], EVEN) == stored(session, ["v"], EVEN)


@both
def test_a_unique_value_of_another_bucket_of_the_target_ends_the_copy(
    session: NodeSession, target: NodeSession
) -> None:
    simple_tables(session, target, "UNIQUE (v)")
    fill(session, ["id", "v"], [["2", "'a'"]])
    fill(target, ["id", "v"], [["3", "'a'"]])

    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        list(synced(session, target))

    assert stored(target, ["v"]) == [(3, "a")]
    assert strict(target)


@both
def test_rows_that_refer_to_copied_ones_stay(session: NodeSession, target: NodeSession) -> None:
    simple_tables(session, target)
    key = "FOREIGN KEY (t_id) REFERENCES t (id) ON DELETE CASCADE"
    child = f"CREATE TABLE child (id BIGINT PRIMARY KEY, t_id BIGINT, {key})"
    fill(session, ["id", "v"], [["2", "'b'"]])
    fill(target, ["id", "v"], [["2", "'a'"], ["4", "'a'"]])
    run(target, child, "INSERT INTO child VALUES (1, 2), (2, 4)")

    list(synced(session, target))

    assert target.query("SELECT id FROM child ORDER BY id") == [(1,), (2,)]
    assert strict(target)


@both
def test_rows_are_deleted_by_chunks_and_no_others(session: NodeSession, other: NodeSession) -> None:
    simple_tables(session)
    fill(session, ["id", "v"], [[str(id), "'a'"] for id in range(20)])
    if session.dialect.name == "mysql":
        with other.transaction():
            other.execute("UPDATE t SET v = 'b' WHERE id = 7")  # its lock is not waited for
            deleted = list(delete_rows(session, "t", "id", EVEN, most_ms=600_000))
    else:
        deleted = list(delete_rows(session, "t", "id", EVEN, most_ms=600_000))

    assert sum(deleted) == 10
    assert len(deleted) > 5
    assert [id for id, _ in stored(session, ["v"])] == list(range(1, 20, 2))


@both
def test_a_statement_that_takes_too_long_makes_the_chunk_smaller(
    session: NodeSession, target: NodeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    simple_tables(session, target)
    fill(session, ["id", "v"], [[str(id), "'a'"] for id in range(8)])
    run_query, limits = session.rows, []

    def rows(sql: str) -> list[tuple[Any, ...]]:
        if "OFFSET" in sql:
            limits.append(sql.rpartition("OFFSET ")[2])
        if "COUNT(*)" in sql and limits == ["2"]:
            raise interrupted()
        return run_query(sql)

    monkeypatch.setattr(session, "rows", rows)

    assert sum(chunk.wrong for chunk in synced(session, target)) == 4
    assert limits[:2] == ["2", "0"]
    assert strict(session)


@both
def test_a_sample_reads_from_the_beginning_and_says_whether_that_was_all(
    session: NodeSession, target: NodeSession
) -> None:
    simple_tables(session, target)
    fill(session, ["id", "v"], [[str(id), "'abc'"] for id in range(10)])
    columns = copied_columns(session, target, SCHEMA)
    if kind_of(session) == "mysql":
        run(session, "ANALYZE TABLE t")

    with session.transaction():
        whole = sample(session, SCHEMA, columns, EVEN, 600)
        begun = sample(session, SCHEMA, columns, EVEN, 0)

    assert (whole.rows, whole.whole, begun.rows, begun.looked, begun.whole) == (5, True, 2, 3, False)
    assert begun.table_rows == 10
    assert whole.bytes > begun.bytes > 0
    assert strict(session)


@both
def test_a_chunk_is_as_large_as_its_rows_are_fast_to_write(
    session: NodeSession, target: NodeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    simple_tables(session, target)
    fill(session, ["id", "v"], [[str(id), "'a'"] for id in range(400)])
    monkeypatch.setattr(row_sync, "CHUNK_S", 10.0)
    monkeypatch.setattr(row_sync, "MOST", 1000)
    monkeypatch.setattr(row_sync, "FIRST", 100)
    sync, now_s = sync_of(session, target), [0.0]
    monkeypatch.setattr(row_sync, "mono_s", lambda: now_s[0])
    insert = sync._target.insert

    def slow(rows: Any) -> None:
        insert(rows)
        now_s[0] += len(rows)  # a second a row

    monkeypatch.setattr(sync._target, "insert", slow)
    with session.transaction():
        chunks = [chunk.rows for chunk in sync.sync()]

    assert chunks[0] == 50
    assert max(chunks[1:]) <= 11
    assert sum(chunks) == 200


@both
@pytest.mark.parametrize(
    ("here", "there", "after", "words"),
    [
        ("id BIGINT PRIMARY KEY, v CHAR(9)", "id BIGINT PRIMARY KEY, V CHAR(8)", [], "differs on s0 and s1 in v: run"),
        ("id BIGINT PRIMARY KEY, v CHAR(9)", "id BIGINT PRIMARY KEY", [], "differs on s0 and s1 in v: run"),
        ("id BIGINT PRIMARY KEY", "id BIGINT UNIQUE", [], "t.id on s1 is not the primary key"),
        ("id BIGINT, k BIGINT, PRIMARY KEY (id, k)", "id BIGINT, k BIGINT", [], "t.id on s0 is not the primary key"),
        ("id BIGINT PRIMARY KEY", "id BIGINT PRIMARY KEY", ["T"], "trigger tr of table 't' on s1 would act again"),
    ],
)
def test_tables_that_cannot_be_copied_row_by_row_are_refused(
    session: NodeSession, target: NodeSession, here: str, there: str, after: list[str], words: str
) -> None:
    run(session, f"CREATE TABLE t ({here})")
    run(target, f"CREATE TABLE t ({there})", "CREATE TABLE log (n BIGINT)")
    body = (
        "FOR EACH ROW INSERT INTO log VALUES (1)"
        if kind_of(target) == "mysql"
        else "BEGIN INSERT INTO log VALUES (1); END"
    )
    run(target, *(f"CREATE TRIGGER tr AFTER INSERT ON t {body}" for _ in after))

    with pytest.raises(PipelineError, match=words):
        copied_columns(session, target, SCHEMA)


@mariadb
def test_a_user_that_may_not_see_triggers_copies_no_rows(session: NodeSession, target: NodeSession, uri: str) -> None:
    for shard in (session, target):
        run(shard, "CREATE TABLE t (id BIGINT PRIMARY KEY, v CHAR(9))")

    with (
        as_user(target, uri, "SELECT, INSERT") as blind,
        pytest.raises(PipelineError, match="may not see the triggers of table 't' on s1"),
    ):
        copied_columns(session, blind, SCHEMA)


@mariadb
def test_a_moment_stays_the_same_where_the_sessions_have_two_time_zones(
    session: NodeSession, target: NodeSession
) -> None:
    for shard in (session, target):
        run(shard, "CREATE TABLE t (id BIGINT PRIMARY KEY, v TIMESTAMP(3) NULL)")
    fill(session, ["id", "v"], [["2", "'2024-10-27 00:30:00.125'"]])
    target.execute("SET SESSION time_zone = '+05:00'")

    list(synced(session, target))

    moment = "SELECT UNIX_TIMESTAMP(v) FROM t"
    assert target.query(moment) == session.query(moment)
    assert target.query("SELECT @@time_zone") == [("+05:00",)]


@mariadb
def test_a_row_is_copied_that_fills_most_of_a_statement(session: NodeSession, target: NodeSession) -> None:
    for shard in (session, target):
        run(shard, "CREATE TABLE t (id BIGINT PRIMARY KEY, v LONGBLOB)")
    most = session.statement_bytes() * 2 // 3
    run(session, f"INSERT INTO t VALUES (2, REPEAT(X'0027FFC35CE327C327', {most // 9}))")

    list(synced(session, target))

    digest = "SELECT MD5(v), LENGTH(v) FROM t"
    assert target.query(digest) == session.query(digest)


def odd_tables(session: NodeSession, target: NodeSession) -> dict[str, tuple[str, list[str]]]:
    """Make a table with odd columns, and a computed one; the target has another order, and another charset."""
    columns = MYSQL if kind_of(session) == "mysql" else SQLITE
    key = "BIGINT AUTO_INCREMENT PRIMARY KEY" if kind_of(session) == "mysql" else "INTEGER PRIMARY KEY"
    lines = [f"id {key}", *(f"{name} {sql}" for name, (sql, _) in columns.items()), "g INTEGER AS (LENGTH(v)) STORED"]
    run(session, f"CREATE TABLE t ({', '.join(lines)})")
    run(target, f"CREATE TABLE t ({', '.join(reversed(lines))})".replace("latin1", "utf8mb4"))
    return columns


def simple_tables(session: NodeSession, target: NodeSession | None = None, line: str = "") -> None:
    case = "VARCHAR(40) COLLATE utf8mb4_bin" if kind_of(session) == "mysql" else "CHAR(40)"
    for shard in filter(None, (session, target)):
        run(shard, f"CREATE TABLE IF NOT EXISTS t (id BIGINT PRIMARY KEY, v {case}{line and f', {line}'})")
        run(shard, "DELETE FROM t")


def fill(session: NodeSession, columns: list[str], rows: list[list[str]]) -> None:
    """Insert rows that are written in SQL."""
    values = ", ".join(f"({', '.join(row)})" for row in rows)
    loose = [LOOSE] if kind_of(session) == "mysql" else []
    run(session, *loose, *([f"INSERT INTO t ({', '.join(columns)}) VALUES {values}"] if rows else []))
    session.discard()


def synced(session: NodeSession, target: NodeSession) -> Iterator[Compared]:
    sync = sync_of(session, target)
    with session.transaction():
        yield from sync.sync()


def compared(session: NodeSession, target: NodeSession) -> list[Compared]:
    sync = sync_of(session, target)
    with session.transaction(), target.transaction():
        return list(sync.compare())


def sync_of(session: NodeSession, target: NodeSession) -> RowSync:
    return RowSync(session, target, SCHEMA, copied_columns(session, target, SCHEMA), EVEN)


def stored(session: NodeSession, columns: Iterable[str], condition: str = "1 = 1") -> list[tuple[Any, ...]]:
    """Return rows as they are stored: with all digits of floats, and without what a driver makes of dates."""
    values = (
        f"{name} + 0e0" if name == "f" else f"+{name}" if kind_of(session) == "sqlite" else name for name in columns
    )
    return session.query(f"SELECT id, {', '.join(values)} FROM t WHERE {condition} ORDER BY id")


def strict(session: NodeSession) -> bool:
    """Return whether a session refuses what any session of a shard refuses: rows without parents, zero dates."""
    if kind_of(session) == "sqlite":
        return session.query("PRAGMA foreign_keys") == [(1,)]
    [(mode, checks, zone)] = session.query("SELECT @@sql_mode, @@foreign_key_checks, @@time_zone")
    return "NO_ZERO_DATE" in mode and checks == 1 and zone == "+00:00"


def kind_of(session: NodeSession) -> str:
    return session.dialect.name


def interrupted() -> Exception:
    return OperationalError(1969, "Query execution was interrupted (max_statement_time exceeded)")
