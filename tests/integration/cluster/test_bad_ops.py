"""Whatever MariaDB refuses an op with, that op alone is set aside, and ops of other rows are applied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydal import DAL, Field
from support.oracle import nodes
from support.servers.rig import Rig

from pipeline.client import Client
from pipeline.clock import polls
from pipeline.errors import Rejected

pytestmark = pytest.mark.mariadb

OTHERS = 60
PLAIN = "CREATE TABLE odd (id BIGINT PRIMARY KEY, owner INT, n INT)"
TRIGGER = "CREATE {} TRIGGER odd_before BEFORE INSERT ON odd FOR EACH ROW {}"

#: By name: the statements that make the table `odd`, what is inserted into it, and what the server says.
CASES: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "no partition for the value, 1526": (
        [f"{PLAIN} PARTITION BY RANGE (id) (PARTITION p VALUES LESS THAN (1000))"],
        {"n": 1},
        "no partition for value",
    ),
    "a view's check option, 1369": (
        [
            "CREATE TABLE odd_base (id BIGINT PRIMARY KEY, owner INT, n INT)",
            "CREATE VIEW odd AS SELECT * FROM odd_base WHERE n < 10 WITH CHECK OPTION",
        ],
        {"n": 11},
        "CHECK OPTION failed",
    ),
    "a value for a generated column, 1906": (
        ["CREATE TABLE odd (id BIGINT PRIMARY KEY, owner INT, n INT GENERATED ALWAYS AS (owner + 1) STORED)"],
        {"n": 1},
        "generated column",
    ),
    "a trigger's own signal": (
        [PLAIN, TRIGGER.format("", "SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 30001, MESSAGE_TEXT = 'not today'")],
        {"n": 1},
        "not today",
    ),
    "a trigger whose function is gone, 1305": (
        [
            PLAIN,
            "CREATE FUNCTION odd_f() RETURNS INT DETERMINISTIC RETURN 1",
            TRIGGER.format("", "SET NEW.n = odd_f()"),
            "DROP FUNCTION odd_f",
        ],
        {"n": 1},
        "odd_f does not exist",
    ),
    "a trigger whose definer is gone, 1449": (
        [PLAIN, TRIGGER.format("DEFINER = 'ghost'@'localhost'", "SET NEW.n = 1")],
        {"n": 1},
        "definer .*ghost.* does not exist",
    ),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(mariadb: Rig, request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, Any], str]]:
    statements, values, says = CASES[request.param]
    for uri in mariadb.primaries.values():
        with nodes.connection(uri) as made:
            for sql in statements:
                nodes.fetch(made, sql)
    yield values, says
    mariadb.redis.hdel(mariadb.client.log.keys.newest_schemas, "odd")
    for uri in mariadb.primaries.values():
        with nodes.connection(uri) as made:
            kind = "VIEW" if "odd_base" in statements[0] else "TABLE"
            nodes.fetch(made, f"DROP {kind} odd")
            nodes.fetch(made, "DROP TABLE IF EXISTS odd_base")


@pytest.fixture
def client(mariadb: Rig) -> Iterator[Client]:
    made = Client(mariadb.config)
    yield made
    made.close()


def test_an_op_that_the_database_refuses_in_whatever_way_is_set_aside_and_the_others_are_applied(
    mariadb: Rig, client: Client, case: tuple[dict[str, Any], str]
) -> None:
    values, says = case
    db = DAL("sqlite:memory", bigint_id=True, migrate=False)
    odd = db.define_table("odd", Field("owner", "integer"), Field("n", "integer"))
    client.define_tables(mariadb.db)
    with mariadb.frozen():
        bad = client.enqueue_insert(odd, {"owner": 1, **values})
        good = [client.enqueue_insert("event", owner=owner, body="fine") for owner in mariadb.owners(OTHERS)]

    client.wait_all(good, timeout_s=30)
    with pytest.raises(Rejected, match=says):
        bad.wait(30)

    assert bad.status() == "rejected"
    db.close()


def test_a_required_column_that_the_model_lacks_makes_its_inserts_wait_until_it_is_gone(
    mariadb: Rig, client: Client
) -> None:
    client.define_tables(mariadb.db)
    [owner] = mariadb.owners(1)
    alter = "ALTER TABLE event {}"
    for uri in mariadb.primaries.values():
        with nodes.connection(uri) as made:
            nodes.fetch(made, alter.format("ADD COLUMN needed INT NOT NULL"))
    try:
        waits = client.enqueue_insert("event", owner=owner, body="later")
        goes = client.enqueue_insert("tally", owner=owner + 1_000_000, name="now")
        if goes.bucket != waits.bucket:
            goes.wait(30)
        assert waits.status() == "queued"
    finally:
        for uri in mariadb.primaries.values():
            with nodes.connection(uri) as made:
                nodes.fetch(made, alter.format("DROP COLUMN needed"))

    waits.wait(30)
    assert any(waits.status() in ("applied", "durable") for _ in polls(30))
