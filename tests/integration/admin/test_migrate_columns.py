"""`pipeline migrate` on columns that stand, on MariaDB: what is online, what is exact, what waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import pymysql
import pytest
from pydal import DAL, Field
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline.admin.migration import migrate, plan_of
from pipeline.admin.migration.statement import Behind
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.errors import BadOp, MigrationUnfinished
from pipeline.oplog.doorbell import SilentBell
from pipeline.oplog.memory.log import MemoryLog

pytestmark = pytest.mark.mariadb
_numbers = count(1)


class Case:
    """A deployment of one shard in a database of its own, and its replica."""

    def __init__(self, rig: Rig):
        self.name = f"grow{next(_numbers)}"
        self.primary = rig.primaries["s0"].replace("/shop", f"/{self.name}")
        self.replica = rig.replicas["s0"].replace("//reader:", "//root:").replace("/shop", f"/{self.name}")
        nodes.rows(rig.primaries["s0"], f"CREATE DATABASE {self.name} CHARACTER SET utf8mb4")
        self.client = Client(
            {
                "pipeline": {"buckets": 16},
                "redis": {"url": "redis://away.invalid/0"},
                "reads": {"max_lag_s": 0.5},
                "tables": {"person": {"shard_key": "name"}},
                "shards": {"s0": {"primary": self.primary, "replicas": [self.replica]}},
            },
            log=MemoryLog(),
            bell=SilentBell(),
        )

    def release(self, *fields: Any, **how: Any) -> None:
        """Publish a model with the table `thing`."""
        db = DAL(None, migrate=False)
        db.define_table("thing", *fields, **how)
        self.client.define_tables(db)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        return nodes.rows(self.primary, statement)

    def type_of(self, column: str) -> str:
        return str(
            self.sql(
                "SELECT column_type FROM information_schema.columns WHERE table_schema = DATABASE()"
                f" AND table_name = 'thing' AND column_name = '{column}'"
            )[0][0]
        )


@pytest.fixture
def case(mariadb: Rig) -> Iterator[Case]:
    made = Case(mariadb)
    yield made
    made.client.close()
    nodes.rows(mariadb.primaries["s0"], f"DROP DATABASE {made.name}")


def test_what_the_server_can_do_online_is_done_and_what_copies_the_table_waits_to_be_allowed(case: Case) -> None:
    case.release(Field("note", length=100), Field("n", "integer"))
    migrate(case.client)
    case.sql("ALTER TABLE thing MODIFY note VARCHAR(100) DEFAULT 'none' COMMENT 'kept, NOT NULL'")
    case.sql("INSERT INTO thing (id, note, n) VALUES (1, 'a', 7)")
    case.release(Field("note", length=200), Field("n", "bigint"), Field("more", "text"))

    with pytest.raises(MigrationUnfinished, match=r"thing\.n: .*\(about \d+ rows\).*--offline") as refused:
        migrate(case.client)

    assert (len(refused.value.faults), refused.value.done) == (1, 2)
    assert (case.type_of("note"), case.type_of("n")[:3]) == ("varchar(200)", "int")
    assert "DEFAULT 'none' COMMENT 'kept, NOT NULL'" in case.sql("SHOW CREATE TABLE thing")[0][1]

    assert migrate(case.client, offline=True) == 1
    assert case.type_of("n").startswith("bigint")
    assert case.sql("SELECT note, n, more FROM thing") == [("a", 7, None)]
    assert plan_of(case.client) == ([], [])


def test_a_text_by_which_rows_are_spread_comes_to_tell_all_texts_apart(case: Case) -> None:
    case.sql(
        "CREATE TABLE person (id BIGINT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(40) CHARACTER SET latin1"
        " COLLATE latin1_german2_ci NOT NULL DEFAULT 'none' COMMENT 'kept', UNIQUE KEY (name))"
    )
    case.sql("INSERT INTO person (name) VALUES ('J\u00e9r\u00f4me')")
    db = DAL(None, migrate=False)
    db.define_table("person", Field("name", length=40, notnull=True))
    with pytest.raises(BadOp, match=r"person\.name is the shard key, and its collation latin1_german2_ci"):
        case.client.enqueue_insert(db.person, name="Ann")
    case.client.define_tables(db)

    assert migrate(case.client, offline=True) > 0

    shown = case.sql("SHOW CREATE TABLE person")[0][1]
    assert (
        "`name` varchar(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL DEFAULT 'none' COMMENT 'kept'" in shown
    )
    case.sql("INSERT INTO person (name) VALUES ('jerome')")
    assert case.sql("SELECT name FROM person WHERE name = 'J\u00e9r\u00f4me'") == [("J\u00e9r\u00f4me",)]
    assert plan_of(case.client) == ([], [])
    case.client.enqueue_insert(db.person, name="Ann")


def test_a_change_that_is_no_widening_is_named_and_left_alone(case: Case) -> None:
    case.release(Field("code", length=40), Field("day", "datetime"))
    migrate(case.client)
    case.release(Field("code", "integer"), Field("day", "date"), Field("note", length=20))

    with pytest.raises(MigrationUnfinished) as refused:
        migrate(case.client, offline=True, contracts=True)

    assert [fault.split(" is no widening")[0] for fault in refused.value.faults] == [
        "s0: thing.code: changing varchar(40) to int",
        "s0: thing.day: changing datetime to date",
    ]
    assert (case.type_of("code"), case.type_of("day"), case.type_of("note")) == (
        "varchar(40)",
        "datetime",
        "varchar(20)",
    )


def test_a_length_and_room_for_null_go_only_when_asked_and_no_value_is_cut(case: Case) -> None:
    case.release(Field("note", length=40))
    migrate(case.client)
    case.sql("INSERT INTO thing (id, note) VALUES (1, 'longer than ten'), (2, NULL)")
    case.release(Field("note", length=10, notnull=True))
    assert migrate(case.client) == 0

    for complaint, mend in (
        ("values are longer than 10", "UPDATE thing SET note = 'short' WHERE id = 1"),
        ("rows without a value stand", "UPDATE thing SET note = '' WHERE id = 2"),
    ):
        with pytest.raises(MigrationUnfinished, match=complaint):
            migrate(case.client, contracts=True, offline=True)
        case.sql(mend)
    migrate(case.client, contracts=True, offline=True)

    assert "`note` varchar(10) " in case.sql("SHOW CREATE TABLE thing")[0][1]
    assert "NOT NULL" in case.sql("SHOW CREATE TABLE thing")[0][1].splitlines()[2]
    case.release(Field("note", length=10))
    migrate(case.client)
    assert "NOT NULL" not in case.sql("SHOW CREATE TABLE thing")[0][1].splitlines()[2]


def test_a_row_that_is_too_large_keeps_no_other_table(case: Case) -> None:
    db = DAL(None, migrate=False)
    db.define_table("huge", *(Field(f"f{n}", length=1000) for n in range(40)), Field("code", unique=True))
    db.define_table("thing", Field("n", "integer"))
    case.client.define_tables(db)

    with pytest.raises(MigrationUnfinished, match="huge: Row size too large") as refused:
        migrate(case.client)

    assert len(refused.value.faults) == 1
    assert case.type_of("n").startswith("int")


def test_an_alter_waits_for_the_replicas_and_says_so(case: Case) -> None:
    case.release(Field("n", "integer"))
    migrate(case.client)
    case.release(Field("n", "integer"), Field("note"))
    for _ in polls(20):
        try:
            if nodes.rows(case.replica, "SHOW TABLES LIKE 'thing'"):
                break
        except pymysql.err.OperationalError:
            continue  # the database itself has not come yet
    waited: list[Behind] = []

    def seen(event: object) -> None:
        if isinstance(event, Behind):
            waited.append(event)
            nodes.rows(case.replica, "START SLAVE SQL_THREAD")

    nodes.rows(case.replica, "STOP SLAVE SQL_THREAD")
    try:
        migrate(case.client, seen)
    finally:
        nodes.rows(case.replica, "START SLAVE SQL_THREAD")

    assert {(one.shard, one.node) for one in waited} == {("s0", "s0-r0")}
    assert case.type_of("note") == "varchar(512)"


def test_an_alter_gives_way_to_others_while_a_transaction_uses_its_table(case: Case) -> None:
    case.release(Field("n", "integer"))
    migrate(case.client)
    case.release(Field("n", "integer"), Field("note"))
    done: list[int] = []
    with nodes.connection(case.primary) as user:
        nodes.fetch(user, "BEGIN")
        nodes.fetch(user, "SELECT * FROM thing")
        altering = threading.Thread(target=lambda: done.append(migrate(case.client)))
        altering.start()
        for _ in polls(20):
            if case.sql("SELECT 1 FROM information_schema.processlist WHERE info LIKE 'ALTER TABLE `thing`%'"):
                break

        case.sql("INSERT INTO thing (id, n) VALUES (1, 1)")  # would wait for ever behind an ALTER that waits for ever

        assert altering.is_alive()
        nodes.fetch(user, "COMMIT")
        altering.join(60)
    assert done == [1]
    assert case.type_of("note") == "varchar(512)"
