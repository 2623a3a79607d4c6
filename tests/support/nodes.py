"""Plain connections to the database nodes: the judge asks them without the pipeline's own code."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pymysql

TIMEOUT_S = 20


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
