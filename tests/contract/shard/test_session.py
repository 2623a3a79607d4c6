"""A shard's session, over SQLite and a real MariaDB: transactions, strictness, connections, constraints."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymysql.err import OperationalError
from support.sandbox.sessions import (
    SERIAL,
    as_user,
    both,
    fault,
    mariadb,
    run,
    table,
)
from support.servers.proxy import Proxy

from pipeline.clock import polls
from pipeline.config.uris import parse
from pipeline.errors import NotMigrated, ShardUnavailable
from pipeline.model import START, Position
from pipeline.shard import NodeSession, columns, mysql_connection, records
from pipeline.shard.driver_errors import Fault, code_of, fault_of
from pipeline.shard.records import ledger_queries
from pipeline.shard.survey import survey
from pipeline.shard.table_facts import Constraints, constraints_in, constraints_of, sees_triggers


def test_no_session_takes_a_connection_that_a_thread_has_left_of_one_that_is_gone(tmp_path: Path):
    """pyDAL keeps a thread's connection under its adapter's address in memory, which another one may have later."""
    gc.freeze()  # else each collection looks at all that earlier tests of the process have left
    try:
        for n in range(200):
            made: list[NodeSession] = []
            maker = threading.Thread(
                target=lambda n=n, made=made: made.append(NodeSession("s0", f"sqlite://{tmp_path}/{n}"))
            )
            maker.start()
            maker.join()
            [[_, _, file]] = made.pop().rows("PRAGMA database_list")
            assert file == f"{tmp_path}/{n}"
            gc.collect()
    finally:
        gc.unfreeze()


# transactions -----------------------------------------------------------------------------------------------------


@both
def test_a_transaction_commits_at_its_end_and_rolls_back_on_an_error(session: NodeSession, other: NodeSession):
    table(session, "n INT")
    run(session, "INSERT INTO t (n) VALUES (1)")

    with pytest.raises(KeyError), session.transaction():  # noqa: PT012
        session.execute("INSERT INTO t (n) VALUES (2)")
        raise KeyError

    assert other.query("SELECT n FROM t") == [(1,)]


@both
def test_a_query_of_its_own_sees_what_others_have_committed_since_the_last(session: NodeSession, other: NodeSession):
    table(session, "n INT")
    assert session.query("SELECT COUNT(*) FROM t") == [(0,)]

    run(other, "INSERT INTO t (n) VALUES (1)")

    assert session.query("SELECT COUNT(*) FROM t") == [(1,)]


@both
def test_a_read_only_session_refuses_every_write(uri: str, session: NodeSession):
    table(session, "n INT")
    reader = NodeSession("s0-r0", uri, read_only=True)

    with pytest.raises(Exception, match=r"(?i)read.?only"), reader.transaction():
        reader.execute("INSERT INTO t (n) VALUES (1)")

    assert reader.query("SELECT COUNT(*) FROM t") == [(0,)]
    reader.discard()


@both
def test_a_missing_table_of_ours_says_to_migrate_and_another_does_not(session: NodeSession):
    with pytest.raises(NotMigrated, match=r"node 's0' is not prepared.*pipeline migrate"):
        ledger_queries.marks_of(session)
    with pytest.raises(ShardUnavailable):
        session.query("SELECT * FROM t")


@both
def test_an_update_tells_the_rows_it_found_not_only_those_it_changed(session: NodeSession):
    table(session, "n INT")
    run(session, "INSERT INTO t (n) VALUES (1), (1), (2)")

    with session.transaction():
        assert session.execute("UPDATE t SET n = 1 WHERE n = 1") == 2


@both
@pytest.mark.parametrize("count", [1, 3])
def test_the_ids_of_one_insert_are_told(session: NodeSession, count: int):
    table(session, "n INT")
    run(session, "INSERT INTO t (id, n) VALUES (41, 0)")

    with session.transaction():
        session.execute(f"INSERT INTO t (n) VALUES {', '.join(['(7)'] * count)}")
        first, step = session.last_ids(count)

    assert session.query("SELECT id FROM t WHERE n = 7 ORDER BY id") == [(first + i * step,) for i in range(count)]


@both
def test_no_text_is_bent_on_its_way(session: NodeSession):
    table(session, "s TEXT")
    text = "it's \\ \\' 100% %s \U0001f600 \r\n -- ;"

    run(session, f"INSERT INTO t (s) VALUES ({records.text_literal(text)})")

    assert session.query("SELECT s FROM t") == [(text,)]


@both
def test_a_shard_that_is_not_there_is_unavailable_and_no_password_is_shown(kind: str, tmp_path: Path):
    uri = {
        "sqlite": f"sqlite://{tmp_path}/no/such/folder.sqlite",
        "mariadb": "mysql:pymysql://app:secret@127.0.0.1:1/shop",
    }[kind]

    session = NodeSession("s9", uri, connect_s=1)

    with pytest.raises(ShardUnavailable, match=r"^node 's9': ") as raised:
        session.query("SELECT 1")

    assert raised.value.retryable
    assert "secret" not in f"{raised.value!r} {raised.value} {session!r}"


# strictness -------------------------------------------------------------------------------------------------------


@mariadb
@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("s VARCHAR(3)", "'abcd'", 1406),
        ("s INT", "2147483648", 1264),
        ("s INT", "'seven'", 1366),
        ("s DATE", "'2024-02-30'", 1292),
        ("s DATE", "'0000-00-00'", 1292),
        ("s INT NOT NULL", "NULL", 1048),
        ("s INT UNIQUE", "5), (5", 1062),
        ("s INT CHECK (s > 5)", "1", 4025),
        ("s DECIMAL(5,2)", "1e9", 1264),
        ("s VARCHAR(9) CHARACTER SET latin1", "'\U0001f600'", 1366),
    ],
)
def test_what_does_not_fit_is_refused_for_good_never_bent(session: NodeSession, column: str, value: str, code: int):
    table(session, column)

    assert fault(session, f"INSERT INTO t (s) VALUES ({value})") == (Fault.PERMANENT, code)
    assert session.query("SELECT COUNT(*) FROM t") == [(0,)]


@mariadb
def test_strictness_outlives_a_reconnect_which_pydal_would_undo(session: NodeSession):
    table(session, "s VARCHAR(3)")
    session.discard()

    assert fault(session, "INSERT INTO t (s) VALUES ('abcd')") == (Fault.PERMANENT, 1406)
    assert session.query("SELECT @@tx_isolation, @@time_zone") == [("READ-COMMITTED", "+00:00")]


@both
def test_a_unique_value_taken_is_refused_for_good(session: NodeSession):
    table(session, "n INT UNIQUE")
    run(session, "INSERT INTO t (n) VALUES (1)")

    assert fault(session, "INSERT INTO t (n) VALUES (1)")[0] is Fault.PERMANENT


@both
def test_a_parent_that_is_not_there_is_refused_for_good(session: NodeSession):
    table(session, "up BIGINT", "FOREIGN KEY (up) REFERENCES t (id)")

    assert fault(session, "INSERT INTO t (up) VALUES (99)")[0] is Fault.PERMANENT


@both
@pytest.mark.parametrize("sql", ["INSERT INTO t (missing) VALUES (1)", "INSERT INTO absent (n) VALUES (1)"])
def test_a_column_or_table_that_is_not_there_yet_waits(session: NodeSession, sql: str):
    table(session, "n INT")

    assert fault(session, sql)[0] is Fault.SCHEMA


@mariadb
def test_a_lock_that_was_waited_for_too_long_is_tried_again(session: NodeSession, other: NodeSession):
    table(session, "n INT")
    run(session, "INSERT INTO t (id, n) VALUES (1, 0), (2, 0)")

    with pytest.raises(Exception) as raised, session.transaction():  # noqa: PT011, PT012
        session.execute("UPDATE t SET n = 1 WHERE id = 1")
        with other.transaction():
            other.execute("SET SESSION innodb_lock_wait_timeout = 0")
            other.execute("UPDATE t SET n = 2 WHERE id = 1")

    assert (fault_of(raised.value), code_of(raised.value)) == (Fault.LOCKED, 1205)


@mariadb
def test_a_deadlock_is_tried_again(session: NodeSession, other: NodeSession):
    table(session, "n INT")
    run(session, "INSERT INTO t (id, n) VALUES (1, 0), (2, 0)")
    both_hold = threading.Barrier(2, timeout=20)
    errors: list[Exception] = []

    def cross(mine: NodeSession, first: int, second: int) -> None:
        try:
            with mine.transaction():
                mine.execute(f"UPDATE t SET n = n + 1 WHERE id = {first}")
                both_hold.wait()
                mine.execute(f"UPDATE t SET n = n + 1 WHERE id = {second}")
        except Exception as error:
            errors.append(error)
        mine.discard()

    there = threading.Thread(target=cross, args=(other, 2, 1))
    there.start()
    cross(session, 1, 2)
    there.join(timeout=20)

    [error] = errors
    assert (fault_of(error), code_of(error)) == (Fault.LOCKED, 1213)
    assert session.query("SELECT n FROM t") == [(1,), (1,)]


# connections ------------------------------------------------------------------------------------------------------


def kill(session: NodeSession, other: NodeSession) -> None:
    """End another session's connection on the server, as a restart of it would."""
    [(number,)] = session.rows("SELECT CONNECTION_ID()")
    session.adapter.rollback()
    other.query(f"KILL {number}")
    for _ in polls(10):
        if not other.query(f"SELECT 1 FROM information_schema.processlist WHERE id = {number}"):
            return
    pytest.fail("the connection would not die")


@mariadb
def test_a_connection_that_died_while_it_was_idle_is_replaced_without_a_word(session: NodeSession, other: NodeSession):
    table(session, "n INT")

    kill(session, other)
    assert session.query("SELECT COUNT(*) FROM t") == [(0,)]
    kill(session, other)
    run(session, "INSERT INTO t (n) VALUES (1)")

    assert session.query("SELECT n FROM t") == [(1,)]


@mariadb
def test_a_transaction_just_behind_another_begins_with_its_first_statement_and_is_one(
    session: NodeSession, other: NodeSession, monkeypatch: pytest.MonkeyPatch
):
    table(session, "n INT")
    run(session, "INSERT INTO t (n) VALUES (1)")
    asked: list[str] = []
    execute = session.adapter.execute
    monkeypatch.setattr(session.adapter, "execute", lambda sql: (asked.append(sql), execute(sql))[1])

    with pytest.raises(KeyError), session.transaction():  # noqa: PT012
        session.execute("INSERT INTO t (n) VALUES (2)")
        raise KeyError
    assert asked == ["INSERT INTO t (n) VALUES (2)"]

    run(session, "INSERT INTO t (n) VALUES (3)")
    kill(session, other)
    asked.clear()
    run(session, "INSERT INTO t (n) VALUES (4)")
    assert asked[0] == "START TRANSACTION", "where the server has hung up, it is asked first"

    assert other.query("SELECT n FROM t ORDER BY n") == [(1,), (3,), (4,)]


@mariadb
def test_a_connection_that_dies_in_a_transaction_is_transient_and_nothing_of_it_stays(
    session: NodeSession, other: NodeSession
):
    table(session, "n INT")

    with pytest.raises(Exception) as raised, session.transaction():  # noqa: PT011, PT012
        session.execute("INSERT INTO t (n) VALUES (1)")
        [(number,)] = session.rows("SELECT CONNECTION_ID()")
        other.query(f"KILL {number}")
        session.execute("INSERT INTO t (n) VALUES (2)")

    assert fault_of(raised.value) is Fault.TRANSIENT
    assert code_of(raised.value) in (2006, 2013, 1927)
    assert session.query("SELECT COUNT(*) FROM t") == [(0,)]


@mariadb
def test_a_server_that_drops_what_comes_with_another_statement_gets_one_at_a_time(
    session: NodeSession, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """As Amazon Aurora 2 does: https://github.com/mysql-net/MySqlConnector/issues/486."""
    table(session, "n INT UNIQUE")
    monkeypatch.setattr(mysql_connection, "PROBE_S", 0.2)
    before, port = parse(uri).hosts[0]
    with Proxy(port or 0) as between:
        between.drops_others = True
        behind = NodeSession("s0", uri.replace(f"{before}:{port}", f"127.0.0.1:{between.port}"))
        with pytest.raises(OperationalError, match="no answer"), behind.transaction():
            behind.ask("SELECT 1", "SELECT 2")
        with behind.transaction():
            assert behind.ask("SELECT 1", "INSERT INTO t (n) VALUES (1)") == [[(1,)], []]
            refused = behind.execute_each([f"INSERT INTO t (n) VALUES ({n})" for n in (1, 2, 1, 3)])
        behind.discard()

    assert [error and code_of(error) for error in refused] == [1062, None, 1062, None]
    assert session.query("SELECT n FROM t ORDER BY n") == [(1,), (2,), (3,)]
    assert [line.msg.name for line in caplog.records if line.name == "pipeline.shard"] == ["statements_sent_singly"]


@mariadb
def test_a_commit_whose_answer_is_lost_is_unavailable_and_the_watermark_tells(shard: NodeSession, other: NodeSession):
    with pytest.raises(ShardUnavailable, match="answer to COMMIT was lost"), shard.transaction():  # noqa: PT012
        records.move(shard, {3: Position(7, 1)})
        [(number,)] = shard.rows("SELECT CONNECTION_ID()")
        other.query(f"KILL {number}")

    assert ledger_queries.marks_of(shard, [3])[3].position in (START, Position(7, 1))


# what the database itself enforces --------------------------------------------------------------------------------


@both
def test_constraints_are_read_from_the_database(session: NodeSession):
    kinds: dict[str, Any] = {"id": SERIAL[session.dialect.name]}
    run(
        session,
        "CREATE TABLE parent (id {id}, code VARCHAR(9) UNIQUE)".format(**kinds),
        "CREATE TABLE child (id {id}, up BIGINT, a INT, b INT, UNIQUE (a, b),"
        " FOREIGN KEY (up) REFERENCES parent (id))".format(**kinds),
        "CREATE TABLE grandchild (id {id}, up BIGINT, FOREIGN KEY (up) REFERENCES child (id) ON DELETE CASCADE)".format(
            **kinds
        ),
        "CREATE INDEX plain ON child (b)",
    )

    assert constraints_of(session, "parent") == Constraints((("code",),), (), ("child", "grandchild"))
    child = constraints_of(session, "child")
    assert (child.unique, child.children) == ((("a", "b"),), ("grandchild",))
    assert [key[:4] for key in child.parents] == [(("up",), "parent", ("id",), "child")]
    assert constraints_of(session, "absent") == Constraints()
    names = ["parent", "child", "absent"]
    assert constraints_in(session, names) == {name: constraints_of(session, name) for name in names}


@both
def test_a_trigger_reaches_what_it_names_and_what_that_reaches(session: NodeSession):
    tables = ("shelf", "box", "lid", "sum", "other")
    keyed = {"lid": ", FOREIGN KEY (up) REFERENCES box (id)"}
    fires = "CREATE TRIGGER {} AFTER {} ON {} FOR EACH ROW BEGIN {}; END"
    run(
        session,
        *(f"CREATE TABLE {table} (id INT PRIMARY KEY, up INT{keyed.get(table, '')})" for table in tables),
        fires.format("a", "INSERT", "shelf", "DELETE FROM box WHERE id = NEW.id"),
        fires.format("b", "DELETE", "box", "UPDATE sum SET up = up - 1"),
        fires.format("c", "UPDATE", "shelf", "UPDATE box SET up = 1 WHERE id = NEW.id"),
    )

    found = constraints_of(session, "shelf")

    assert found.fired("INSERT") == found.fired("UPDATE") == {"box", "lid", "sum"}
    assert constraints_of(session, "box").fired("INSERT", "DELETE") == {"sum"}
    assert constraints_of(session, "other").triggers == constraints_of(session, "sum").triggers == ()
    reached = {table: constraints_of(session, table).reached for table in tables}
    assert reached == {"shelf": set(), "box": {"box"}, "lid": {"box", "lid"}, "sum": {"sum"}, "other": set()}


@both
def test_what_a_trigger_says_changes_with_what_it_reads_and_with_what_changes_that(session: NodeSession):
    mysql = session.dialect.name == "mysql"
    tables = ("site", "stock", "inbox", "other", "reader", "writer")
    keyed = {"stock": ", FOREIGN KEY (up) REFERENCES site (id) ON DELETE CASCADE"}
    fires = "CREATE TRIGGER {} AFTER INSERT ON {} FOR EACH ROW BEGIN {}; END"
    run(
        session,
        *(f"CREATE TABLE {table} (id INT PRIMARY KEY, up INT{keyed.get(table, '')})" for table in tables),
        fires.format("a", "reader", "SELECT up FROM stock INTO @up" if mysql else "SELECT up FROM stock"),
        fires.format("b", "inbox", "UPDATE stock SET up = 1"),
        fires.format("c", "writer", "DELETE FROM site"),
    )

    variable = {"@"} if mysql else set[str]()
    assert constraints_of(session, "reader").changed_by("INSERT") == {"stock", "site", "inbox", "writer"} | variable
    # its own rows are no part of that, but where what it writes leads back to them
    assert constraints_of(session, "writer").changed_by("INSERT") == {"stock", "site", "inbox", "writer"}
    assert constraints_of(session, "other").changed_by("INSERT") == set()


@mariadb
def test_of_a_trigger_that_takes_numbers_of_a_sequence_nothing_is_known(session: NodeSession):
    run(
        session,
        "CREATE TABLE t (id INT PRIMARY KEY, n INT)",
        "CREATE SEQUENCE counted",
        "CREATE TRIGGER b BEFORE INSERT ON t FOR EACH ROW SET NEW.n = NEXT VALUE FOR counted",
    )

    found = constraints_of(session, "t")

    assert (found.fired("INSERT"), found.writes("INSERT")) == ({"t", "counted", "@"}, True)


@both
@pytest.mark.parametrize("seen", ["a view", "a name that is no word"])
def test_a_trigger_reaches_what_it_names_in_quotes_and_what_a_view_may_show(session: NodeSession, seen: str):
    made = session.dialect.quote("the shown" if seen == "a view" else "Odd name")
    run(
        session,
        "CREATE TABLE t (id INT PRIMARY KEY)",
        "CREATE TABLE u (id INT PRIMARY KEY)",
        f"CREATE VIEW {made} AS SELECT id FROM u" if seen == "a view" else f"CREATE TABLE {made} (id INT PRIMARY KEY)",
        f"CREATE TRIGGER b AFTER INSERT ON t FOR EACH ROW BEGIN UPDATE u SET id = (SELECT MAX(id) FROM {made}); END",
    )

    wanted = {"t", "u", "the shown", "@"} if seen == "a view" else {"u", "Odd name"}
    assert constraints_of(session, "t").fired("INSERT") == wanted


#: A trigger that calls a function, which writes another table.
TRIGGER_THAT_CALLS = (
    "CREATE TABLE t (id INT PRIMARY KEY, a INT)",
    "CREATE TABLE u (id INT PRIMARY KEY)",
    "CREATE FUNCTION more(a INT) RETURNS INT DETERMINISTIC MODIFIES SQL DATA"
    " BEGIN INSERT INTO u VALUES (a); RETURN a + 1; END",
    "CREATE TRIGGER b BEFORE INSERT ON t FOR EACH ROW SET NEW.a = more(NEW.id)",
)


@mariadb
def test_of_a_trigger_that_calls_a_routine_nothing_is_known(session: NodeSession):
    run(session, *TRIGGER_THAT_CALLS)

    assert constraints_of(session, "t").fired("INSERT") == {"t", "u", "@"}


@mariadb
def test_a_user_without_the_right_to_run_a_routine_knows_nothing_of_a_trigger_that_calls_it(
    session: NodeSession, uri: str
):
    run(session, *TRIGGER_THAT_CALLS)

    with as_user(session, uri, "SELECT, INSERT, TRIGGER") as worker:
        assert worker.query("SELECT routine_name FROM information_schema.routines WHERE routine_name = 'more'") == []
        assert constraints_of(worker, "t").fired("INSERT") == {"t", "u", "@"}


@mariadb
def test_to_a_user_that_may_not_see_triggers_every_table_has_some_that_reach_everything(session: NodeSession, uri: str):
    run(
        session,
        "CREATE TABLE t (id INT PRIMARY KEY, a INT)",
        "CREATE TABLE u (id INT PRIMARY KEY)",
        "CREATE TRIGGER b AFTER INSERT ON t FOR EACH ROW INSERT INTO u VALUES (NEW.a)",
    )

    with as_user(session, uri, "SELECT, INSERT, UPDATE, DELETE") as worker:
        unseen = constraints_in(worker, ["t", "u"])
    with as_user(session, uri, "SELECT, TRIGGER") as worker:
        seen = constraints_in(worker, ["t", "u"])

    for constraints in unseen.values():
        for event in ("INSERT", "UPDATE", "DELETE"):
            assert constraints.fired(event) == {"t", "u", "@"}
    assert [unseen[table].reached for table in ("t", "u")] == [{"t"}, {"u"}]
    assert (seen["t"].triggers, seen["u"].triggers) == ((("INSERT", ("u",)),), ())


@mariadb
def test_a_right_that_comes_with_a_role_counts(session: NodeSession, uri: str):
    role = f"r{uuid4().hex[:8]}"
    [(own,)] = session.query("SELECT DATABASE()")
    run(session, "CREATE TABLE t (id INT PRIMARY KEY)", f"CREATE ROLE {role}", f"GRANT TRIGGER ON {own}.* TO {role}")
    with as_user(session, uri, "SELECT") as worker:
        assert not sees_triggers(worker)
        [(account,)] = worker.query("SELECT CURRENT_USER()")
        run(session, f"GRANT {role} TO {account.partition('@')[0]}@'127.0.0.1'")
        run(worker, f"SET ROLE {role}")

        assert sees_triggers(worker)
    run(session, f"DROP ROLE {role}")


@mariadb
def test_a_table_of_the_same_name_in_another_database_is_not_seen(session: NodeSession, uri: str):
    [(own,)] = session.query("SELECT DATABASE()")
    run(
        session,
        f"CREATE DATABASE {own}_other",
        "CREATE TABLE t (id INT PRIMARY KEY, a INT UNIQUE)",
        f"CREATE TABLE {own}_other.t (id INT PRIMARY KEY, a INT, b INT UNIQUE)",
        f"CREATE TABLE {own}_other.child (t INT, FOREIGN KEY (t) REFERENCES {own}_other.t (id))",
    )
    try:
        assert constraints_in(session, ["t", "child"]) == {"t": Constraints(unique=(("a",),)), "child": Constraints()}
        assert [column.name for column in columns.columns_of(session, "t")] == ["id", "a"]
        assert sorted(index.columns for index in columns.indexes_of(session, "t")) == [("a",), ("id",)]
        surveyed = survey("s0", uri, ["t", "absent", "child"], primary=True)
        assert {name: list(table.columns) for name, table in surveyed.tables.items()} == {"t": ["id", "a"]}
    finally:
        run(session, f"DROP DATABASE {own}_other")


@both
def test_columns_are_read_as_the_database_has_them(session: NodeSession):
    table(session, "n INT NOT NULL", "s VARCHAR(9)")

    found = {column.name: column for column in columns.columns_of(session, "t")}

    assert list(found) == ["id", "n", "s"]
    assert (found["n"].nullable, found["s"].nullable) == (False, True)
    assert columns.holds_64_bits(found["id"].type)
    assert columns.columns_of(session, "absent") == []


@both
def test_no_statement_is_kept_after_it_was_run(session: NodeSession):
    before = list(session.db._timings)

    for n in range(3):
        session.query(f"SELECT {n}")

    assert session.db._timings == before


# the row that was refused -------------------------------------------------------------------------------------------


@mariadb
@pytest.mark.parametrize(
    "bad",
    [
        "(3, 1, 'a', 1)",
        "(1, 3, 'a', 1)",
        "(3, 3, 'too long', 1)",
        "(3, 3, NULL, 1)",
        "(3, 3, 'a', 10)",
        "(3, 3, 'a', 1/0)",
    ],
)
def test_mariadb_names_the_row_that_it_refuses(session: NodeSession, bad: str):
    table(session, "u INT UNIQUE, note VARCHAR(5) NOT NULL, n INT CHECK (n < 10)")
    run(session, "INSERT INTO t VALUES (1, 1, 'a', 1)")

    with session.transaction():
        with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever the driver raises
            session.execute(f"INSERT INTO t VALUES (2, 2, 'a', 1), {bad}, (4, 4, 'a', 1)")

        assert session.bad_row(raised.value) == 2
        assert session.rows("SELECT COUNT(*) FROM t") == [(1,)]


@mariadb
def test_a_refusal_of_which_the_server_names_no_row_is_asked_about_once(
    session: NodeSession, monkeypatch: pytest.MonkeyPatch
):
    table(session, "n INT")
    run(session, "CREATE TRIGGER odd BEFORE INSERT ON t FOR EACH ROW SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 30001")
    asked = []
    rows = session.rows
    monkeypatch.setattr(session, "rows", lambda sql: asked.append(sql) or rows(sql))

    with session.transaction():
        for _ in range(2):
            with pytest.raises(Exception) as raised:  # noqa: PT011
                session.execute("INSERT INTO t (n) VALUES (1), (2)")
            assert session.bad_row(raised.value) is None

    assert len(asked) == 1


@mariadb
def test_a_server_that_knows_no_rows_is_not_asked_twice_and_keeps_its_transaction(
    session: NodeSession, monkeypatch: pytest.MonkeyPatch
):
    table(session, "n INT UNIQUE")
    asked = []

    def of_mysql(self: object, rows: Any) -> None:
        asked.append("GET DIAGNOSTICS")
        rows("BEGIN NOT ATOMIC GET DIAGNOSTICS CONDITION 1 @pipeline_row = A_WORD_OF_A_LATER_SERVER; END")

    monkeypatch.setattr("pipeline.shard.dialect.MySQL.bad_row", of_mysql)
    with session.transaction():
        session.execute("INSERT INTO t (n) VALUES (1)")
        for _ in range(2):
            with pytest.raises(Exception) as raised:  # noqa: PT011
                session.execute("INSERT INTO t (n) VALUES (2), (1)")
            assert session.bad_row(raised.value) is None

    assert len(asked) == 1
    assert session.query("SELECT n FROM t") == [(1,)]


@mariadb
@pytest.mark.parametrize("refuses", ["a CHECK", "a trigger"])
def test_mariadb_comes_to_the_mark_before_the_row_that_it_refuses(session: NodeSession, refuses: str):
    table(session, "n INT CHECK (n < 10)" if refuses == "a CHECK" else "n INT")
    if refuses == "a trigger":
        body = "BEGIN IF NEW.n > 9 THEN SIGNAL SQLSTATE '45000'; END IF; END"
        run(session, f"CREATE TRIGGER odd BEFORE INSERT ON t FOR EACH ROW {body}")
    rows = [(1, 1), (2, 1), (3, 10), (4, 1), (5, 1)]
    marked = [f"({session.dialect.mark.format(7)} := {id}, {n})" if id % 2 else f"({id}, {n})" for id, n in rows]

    with session.transaction():
        statements = [f"INSERT INTO t (id, n) VALUES {', '.join(marked)}", "INSERT INTO t (id, n) VALUES (6, 1)"]
        failures = session.execute_each(statements)

        assert [error is None for error in failures] == [False, True]
        assert session.marked_ids([7, 8]) == [3, None]
        assert session.rows("SELECT id FROM t") == [(6,)]


#: Rows, and what an INSERT IGNORE of each does: it leaves the row out, or what it does is of no use.
LEFT_OUT = {
    "a value that is taken": "(3, 1, 'a', 1, 1, 1)",
    "an id that is taken": "(1, 3, 'a', 1, 1, 1)",
    "a CHECK": "(3, 3, 'a', 10, 1, 1)",
    "no parent": "(3, 3, 'a', 1, 7, 1)",
}
CHANGED = {
    "too long": "(3, 3, 'too long', 1, 1, 1)",
    "no value": "(3, 3, NULL, 1, 1, 1)",
    "out of range": "(3, 3, 'a', 1, 1, 999)",
    "no number": "(3, 3, 'a', 'one', 1, 1)",
    "by zero": "(3, 3, 'a', 1/0, 1, 1)",
    "two rows of one kind each": "(3, 3, 'too long', 1, 1, 1), (9, 9, 'a', 10, 1, 1)",
}


def ignoring(session: NodeSession, *rows: str) -> list[int] | None:
    """Insert rows, without those that are refused, into a table with one of each constraint."""
    sql = f"INSERT IGNORE INTO t VALUES {', '.join(rows)}"
    found = session.insert_ignoring(sql, "'t'", len(rows))
    if found is None:
        session.execute("ROLLBACK TO SAVEPOINT pipeline_ignored")
    return found


@pytest.fixture
def picky(session: NodeSession) -> NodeSession:
    """A session with a table that has one of each constraint, and a row."""
    run(session, "DROP TABLE IF EXISTS t, up")
    run(session, "CREATE TABLE up (id INT PRIMARY KEY)")
    run(session, "INSERT INTO up VALUES (1)")
    columns = "u INT UNIQUE, note VARCHAR(5) NOT NULL, n INT CHECK (n < 10), up INT REFERENCES up (id), tiny TINYINT"
    table(session, columns)
    run(session, "INSERT INTO t VALUES (1, 1, 'a', 1, 1, 1)")
    return session


@mariadb
@pytest.mark.parametrize("bad", [*LEFT_OUT, *CHANGED])
def test_rows_that_are_refused_are_left_out_or_nothing_is_done(picky: NodeSession, bad: str):
    with picky.transaction():
        assert picky.may_ignore()
        found = ignoring(picky, "(2, 2, 'a', 1, 1, 1)", (LEFT_OUT | CHANGED)[bad], "(4, 4, 'a', 1, NULL, 1)")
        rows = [row for (row,) in picky.rows("SELECT id FROM t ORDER BY id")]

    assert (found, rows) == (([2], [1, 2, 4]) if bad in LEFT_OUT else (None, [1]))


@mariadb
def test_each_row_that_is_left_out_is_named(picky: NodeSession):
    with picky.transaction():
        rows = [f"({n}, {n}, 'a', {10 if n % 7 == 5 else 1}, 1, 1)" for n in range(2, 302)]
        found = ignoring(picky, *rows)

    assert found == [nth for nth in range(1, 301) if (nth + 1) % 7 == 5]


@mariadb
def test_more_rows_than_the_server_warns_of_are_not_taken_for_few(picky: NodeSession):
    with picky.transaction():
        assert ignoring(picky, *(f"({n}, {n}, 'a', 10, 1, 1)" for n in range(2, 1_103))) is None
        assert picky.rows("SELECT COUNT(*) FROM t") == [(1,)]


@mariadb
def test_a_trigger_sees_no_row_that_is_left_out(picky: NodeSession):
    run(picky, "CREATE TABLE IF NOT EXISTS saw (id INT)")
    run(picky, "CREATE TRIGGER sees BEFORE INSERT ON t FOR EACH ROW INSERT INTO saw VALUES (NEW.id)")

    with picky.transaction():
        assert ignoring(picky, "(2, 2, 'a', 1, 1, 1)", "(3, 3, 'a', 10, 1, 1)") is None
        assert picky.rows("SELECT id FROM saw") == []


@mariadb
@pytest.mark.parametrize("written", ["ROW", "MIXED", "STATEMENT"])
def test_nothing_is_left_out_by_a_statement_that_replicas_run_again(
    session: NodeSession, monkeypatch: pytest.MonkeyPatch, written: str
):
    asked = list[str]()

    def rows(sql: str) -> list[tuple[Any, ...]]:
        asked.append(sql)
        return session.rows(sql.replace("@@log_bin", "1").replace("@@binlog_format", f"'{written}'"))

    assert session.dialect.may_ignore(rows) == (written == "ROW")
    assert asked[0].count("@@") == 2


@both
def test_only_a_server_that_names_rows_leaves_any_out(session: NodeSession, kind: str):
    with session.transaction():
        assert session.may_ignore() == (kind == "mariadb")


@mariadb
def test_statements_may_be_sent_together_once_it_is_known_which_row_was_refused(session: NodeSession):
    table(session, "n INT CHECK (n < 10)")

    with session.transaction():
        with pytest.raises(OperationalError) as raised:
            session.execute("INSERT INTO t (id, n) VALUES (1, 1), (2, 10)")
        assert session.bad_row(raised.value) == 2
        assert session.ask("SELECT 1", "SELECT 2") == [[(1,)], [(2,)]]


@both
def test_statements_sent_together_fail_each_by_itself(session: NodeSession):
    table(session, "n INT UNIQUE")

    with session.transaction():
        failures = session.execute_each(
            [f"INSERT INTO t (id, n) VALUES ({id}, {n})" for id, n in enumerate("12113", 1)]
        )

    assert [error is None for error in failures] == [True, True, False, False, True]
    assert session.query("SELECT id FROM t ORDER BY id") == [(1,), (2,), (5,)]
