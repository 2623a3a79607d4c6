"""Plain connections to the database nodes: the judge asks them without the pipeline's own code."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pymysql

from pipeline.clock import polls

TIMEOUT_S = 20

#: Who waits for a row lock in MariaDB. The server reads this table anew only when nobody has asked for 0.1 s.
WAITING = "SELECT trx_id FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"


@contextmanager
def connection(uri: str) -> Iterator[Any]:
    """Connect to the node of a pyDAL URI."""
    if uri.startswith("sqlite://"):
        with closing(sqlite3.connect(uri.removeprefix("sqlite://"), timeout=TIMEOUT_S, isolation_level=None)) as made:
            yield made
        return
    parts = urlsplit(uri.replace("mysql:pymysql:", "mysql:", 1))
    made = pymysql.connect(
        host=parts.hostname or "",
        port=parts.port or 0,
        user=parts.username or "",
        password=parts.password or "",
        database=parts.path.strip("/"),
        charset="utf8mb4",
        autocommit=True,
        connect_timeout=TIMEOUT_S,
        read_timeout=TIMEOUT_S,
        write_timeout=TIMEOUT_S,
        ssl_disabled=True,  # PyMySQL would read all certificates of the machine for each connection: 50 ms
    )
    with closing(made):
        yield made


def rows(uri: str, sql: str) -> list[tuple[Any, ...]]:
    """Run one statement on a node and return what it gives."""
    with connection(uri) as made:
        return fetch(made, sql)


def fetch(made: Any, sql: str) -> list[tuple[Any, ...]]:
    """Run one statement on a connection and return what it gives."""
    cursor = made.cursor()
    cursor.execute(sql)
    found = list(cursor.fetchall())
    cursor.close()
    return found


@contextmanager
def locked_rows(uri: str, owner: int) -> Iterator[None]:
    """Hold the locks of an owner's rows of `tally`."""
    with connection(uri) as made:
        # no gaps are locked: inserts of other owners go through
        fetch(made, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        fetch(made, "START TRANSACTION")
        assert fetch(made, f"SELECT id FROM tally WHERE owner = {owner} FOR UPDATE")
        yield


def await_waiters(uri: str, but: frozenset[int] = frozenset()) -> frozenset[int]:
    """Wait for transactions that wait for a lock, other than those given."""
    for _ in polls(30, first_s=0.2, most_s=0.2):
        found = frozenset(id for (id,) in rows(uri, WAITING)) - but
        if found:
            return found
    raise AssertionError("nobody waits for the lock")
