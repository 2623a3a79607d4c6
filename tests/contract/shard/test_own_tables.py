"""Our own tables of an older release become what the file says, on SQLite and MariaDB; newer ones stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
from support.sandbox.sessions import both, mariadb, run

from pipeline.shard import NodeSession
from pipeline.shard.columns import columns_of, indexes_of, own_tables, upgrades

OLD = """CREATE TABLE IF NOT EXISTS pipeline_note (
  bucket INT NOT NULL,
  word VARCHAR(20) NOT NULL,
  code TINYINT NOT NULL,
  PRIMARY KEY (bucket)
)"""
NEW = """CREATE TABLE IF NOT EXISTS pipeline_note (
  bucket INT NOT NULL,
  word VARCHAR(190) NOT NULL,
  code INT NULL,
  state VARCHAR(16) NOT NULL DEFAULT 'parked',
  seen_ms BIGINT NULL,
  PRIMARY KEY (bucket),
  UNIQUE (word, state)
)"""
TAIL = " ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {}"


@both
def test_columns_and_keys_of_a_newer_release_come_to_a_table_with_rows(kind: str, session: NodeSession) -> None:
    run(session, made(kind, OLD, "utf8mb4_bin"))
    run(session, "INSERT INTO pipeline_note (bucket, word, code) VALUES (3, 'a', 7)")

    done = upgraded(session, made(kind, NEW, "utf8mb4_bin"))

    assert [column.name for column in columns_of(session, "pipeline_note")][-2:] == ["state", "seen_ms"]
    assert ("word", "state") in [index.columns for index in indexes_of(session, "pipeline_note") if index.unique]
    assert session.query("SELECT bucket, word, code, state, seen_ms FROM pipeline_note") == [
        (3, "a", 7, "parked", None)
    ]
    assert done
    assert upgraded(session, made(kind, NEW, "utf8mb4_bin")) == []


@mariadb
def test_types_widen_and_texts_are_compared_by_the_new_collation(kind: str, session: NodeSession) -> None:
    run(session, made(kind, OLD, "utf8mb4_unicode_ci"))

    upgraded(session, made(kind, NEW, "utf8mb4_bin"))

    found = {column.name: column for column in columns_of(session, "pipeline_note")}
    assert (found["word"].type, found["code"].nullable) == ("varchar(190)", True)
    assert found["code"].type.startswith("int")
    run(session, "INSERT INTO pipeline_note (bucket, word) VALUES (1, 'a'), (2, 'A')")
    assert upgraded(session, made(kind, NEW, "utf8mb4_bin")) == []


@both
def test_an_older_release_leaves_a_newer_table_as_it_is(kind: str, session: NodeSession) -> None:
    run(session, made(kind, NEW, "utf8mb4_bin"))

    assert upgraded(session, made(kind, OLD, "utf8mb4_bin")) == []


@both
def test_a_table_that_was_just_made_lacks_nothing(kind: str, session: NodeSession) -> None:
    for name, create in own_tables(session.dialect.name):
        run(session, create)

        assert list(upgrades(session, name, create)) == []


@mariadb
@pytest.mark.parametrize("name", [name for name, _ in own_tables("mysql")])
def test_every_line_of_the_file_can_come_later(kind: str, session: NodeSession, name: str) -> None:
    create = dict(own_tables("mysql"))[name]
    run(session, create)
    whole = shown(session, name)
    for (index,) in session.query(
        "SELECT DISTINCT index_name FROM information_schema.statistics WHERE table_schema = DATABASE()"
        f" AND table_name = '{name}' AND non_unique = 1"
    ):
        run(session, f"ALTER TABLE {name} DROP INDEX {index}")
    keyed = {column for index in indexes_of(session, name) for column in index.columns}
    for column in columns_of(session, name):
        if column.name not in keyed:
            run(session, f"ALTER TABLE {name} DROP COLUMN {column.name}")

    for upgrade in upgrades(session, name, create):
        run(session, upgrade.sql)

    assert shown(session, name) == whole


def made(kind: str, create: str, collation: str) -> str:
    return create + (TAIL.format(collation) if kind == "mariadb" else "")


def upgraded(session: NodeSession, create: str) -> list[Any]:
    found = list(upgrades(session, "pipeline_note", create))
    for upgrade in found:
        run(session, upgrade.sql)
    return found


def shown(session: NodeSession, name: str) -> list[str]:
    """Return the lines of SHOW CREATE TABLE, sorted: what comes later is at the end."""
    return sorted(line.strip().rstrip(",") for line in session.query(f"SHOW CREATE TABLE {name}")[0][1].splitlines())
