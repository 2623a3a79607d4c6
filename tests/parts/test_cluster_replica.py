"""The SQLite replica of the embedded engine."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.devcluster import servers


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    paths = tmp_path / "source #1?.sqlite", tmp_path / "target.sqlite"
    for path in paths:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = wal")
    with closing(sqlite3.connect(paths[0])) as connection, connection:
        connection.execute("CREATE TABLE t (n INTEGER)")
    return paths


def add_row(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO t VALUES (1)")


def count(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT COUNT(*) FROM t").fetchone()[0]


def test_a_refresh_brings_what_was_committed_and_keeps_wal(files: tuple[Path, Path]):
    with closing(servers._open(files[0])) as source, closing(servers._open(files[1])) as target:
        first = servers.refresh(source, target, None)
        add_row(files[0])

        servers.refresh(source, target, first)

        with closing(sqlite3.connect(files[1])) as reader:
            assert count(reader) == 1
            assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_reader_in_a_transaction_keeps_its_snapshot_during_a_refresh(files: tuple[Path, Path]):
    with (
        closing(servers._open(files[0])) as source,
        closing(servers._open(files[1])) as target,
        closing(sqlite3.connect(files[1], isolation_level=None)) as reader,
    ):
        first = servers.refresh(source, target, None)
        reader.execute("BEGIN")
        before = count(reader)
        add_row(files[0])

        servers.refresh(source, target, first)

        assert (before, count(reader)) == (0, 0)
        reader.execute("COMMIT")
        assert count(reader) == 1


def test_an_unchanged_source_is_not_copied_again(files: tuple[Path, Path]):
    with closing(servers._open(files[0])) as source, closing(servers._open(files[1])) as target:
        first = servers.refresh(source, target, None)
        add_row(files[1])  # Visible as long as no copy writes over it.

        second = servers.refresh(source, target, first)

        assert second == first
        assert count(target) == 1


def test_a_locked_target_is_tried_again_in_the_next_round(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servers, "LOCK_TIMEOUT_S", 0.01)
    with closing(servers._open(files[0])) as source, closing(servers._open(files[1])) as target:
        with closing(sqlite3.connect(files[1], isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            assert servers.refresh(source, target, None) is None
            writer.execute("ROLLBACK")

        assert servers.refresh(source, target, None) is not None

        assert count(target) == 0


def test_a_missing_source_is_an_error_not_an_empty_shard(tmp_path: Path):
    with pytest.raises(sqlite3.OperationalError):
        servers._open(tmp_path / "nowhere.sqlite")
