"""Sessions on a shard, over SQLite or a real MariaDB as `kind` says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from pipeline.model import Entry, Position
from pipeline.shard import NodeSession
from pipeline.shard.columns import own_tables
from pipeline.shard.driver_errors import Fault, code_of, fault_of, sentence_of
from pipeline.shard.records import ledger_queries

MARIADB = pytest.param("mariadb", marks=pytest.mark.mariadb)
both = pytest.mark.parametrize("kind", ["sqlite", MARIADB])
mariadb = pytest.mark.parametrize("kind", [MARIADB])

SERIAL = {"sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT", "mysql": "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY"}
PRODUCER = 2**63 - 1
ENTRY = Entry(3, Position(7, 5), PRODUCER, 9, b'["insert","t"]')


@pytest.fixture
def uri(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty schema."""
    return empty_schema(kind, request, tmp_path)


def empty_schema(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Make an empty schema, and return its address."""
    if kind == "sqlite":
        return f"sqlite://{folder}/shop{uuid4().hex[:8]}.sqlite"
    uri: str = request.getfixturevalue("mariadb_uri")
    name = f"t{uuid4().hex[:8]}"
    root = NodeSession("root", uri)
    root.query(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    root.discard()
    return uri.replace("/shop", f"/{name}")


@pytest.fixture
def session(uri: str) -> Iterator[NodeSession]:
    session = NodeSession("s0", uri)
    yield session
    session.discard()


@pytest.fixture
def other(uri: str) -> Iterator[NodeSession]:
    """Another worker's session on the same shard."""
    session = NodeSession("s0", uri, connect_s=1)
    yield session
    session.discard()


@pytest.fixture
def shard(session: NodeSession) -> NodeSession:
    """The session, on a shard that has the pipeline's own tables and eight buckets."""
    for _, sql in own_tables(session.dialect.name):
        run(session, sql)
    run(session, ledger_queries.buckets_sql(session.dialect, range(8)))
    return session


@contextmanager
def as_user(session: NodeSession, uri: str, rights: str) -> Iterator[NodeSession]:
    """Make a user of MariaDB that has some rights on the session's database and no others; yield its session.

    Args:
        session: of root.
        uri: of any database of the server.
        rights: as GRANT has them.
    """
    name = f"u{uuid4().hex[:8]}"
    [(own,)] = session.query("SELECT DATABASE()")
    run(
        session, f"CREATE USER {name}@'127.0.0.1' IDENTIFIED BY 'x'", f"GRANT {rights} ON {own}.* TO {name}@'127.0.0.1'"
    )
    theirs = NodeSession(session.node, re.sub("//[^@]*@([^/]*)/[^?]*", rf"//{name}:x@\1/{own}", uri))
    try:
        yield theirs
    finally:
        theirs.discard()
        run(session, f"DROP USER {name}@'127.0.0.1'")


def run(session: NodeSession, *statements: str) -> None:
    with session.transaction():
        for sql in statements:
            session.execute(sql)


def table(session: NodeSession, *lines: str) -> None:
    tail = " ENGINE=InnoDB" if session.dialect.name == "mysql" else ""
    run(session, f"CREATE TABLE t (id {SERIAL[session.dialect.name]}, {', '.join(lines)}){tail}")


def fault(session: NodeSession, sql: str) -> tuple[Fault, int | None]:
    with pytest.raises(Exception) as raised, session.transaction():  # noqa: PT011 - whatever the driver raises
        session.execute(sql)
    assert sentence_of(raised.value)
    return fault_of(raised.value), code_of(raised.value)
