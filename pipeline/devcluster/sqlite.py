"""Shards that need no server: SQLite files in WAL mode, and replicas that are copied from them a few times a second.

Refresh a SQLite file from another one again and again: a replica with real lag.

Run as `python -m pipeline.devcluster.sqlite SOURCE TARGET`. SQLite's online backup writes the target in place and
in one transaction (https://sqlite.org/backup.html), so a reader sees the source as it was at one moment, old or new.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from pipeline.clock import Deadline, sleep_s
from pipeline.devcluster import redis_server
from pipeline.devcluster.celery import import_path
from pipeline.devcluster.layout import Layout, RunStep, Shard, node_names
from pipeline.devcluster.state import Service

FILE = "shop.sqlite"


def log_server_argv() -> tuple[str, ...]:
    """Return the command of the Valkey that comes as a Python package."""
    return redis_server.bundled()


def lay_out(directory: Path, shards: int, replicas: int) -> Layout:
    """Give each node a file, and each replica a process that refreshes it."""
    names = node_names(shards, replicas)
    uris = tuple(
        Shard(name, _uri(directory / name), tuple(_uri(directory / follower) for follower in followers))
        for name, followers in names.items()
    )
    services = tuple(
        _refresher(directory, primary, follower) for primary, followers in names.items() for follower in followers
    )
    folders = tuple(node for primary, followers in names.items() for node in (primary, *followers))
    return Layout(services, uris, folders)


def prepare(directory: Path, layout: Layout, run: RunStep) -> None:
    """Make the files, all in WAL mode, which stays with a file."""
    for name in layout.folders:
        (directory / name).mkdir()
        with closing(sqlite3.connect(directory / name / FILE, timeout=5)) as connection:
            connection.execute("PRAGMA journal_mode = wal")


def link(layout: Layout) -> None:
    """Do nothing: a replica's own process follows."""


def _refresher(directory: Path, primary: str, follower: str) -> Service:
    source, target = (str(directory / node / FILE) for node in (primary, follower))
    argv = (sys.executable, "-m", "pipeline.devcluster.sqlite", source, target)
    return Service(follower, "sqlite-replica", argv, environment=import_path())


def _uri(folder: Path) -> str:
    # pyDAL takes everything after the two slashes for the path, so an absolute one makes three.
    return f"sqlite://{folder / FILE}"


#: How old the copy gets before it is refreshed.
REFRESH_S = 0.3

#: The share of one core that copying may take: a large file is refreshed more seldom.
MOST_BUSY = 0.25

#: How long to wait for a lock; the next round tries again.
LOCK_TIMEOUT_S = 5.0


def copy_for_ever(source_path: Path, target_path: Path) -> None:
    """Copy the source to the target whenever it has changed, for ever."""
    with closing(_open(source_path)) as source, closing(_open(target_path)) as target:
        target.execute("PRAGMA journal_mode = wal")
        target.execute("PRAGMA journal_size_limit = 0")
        seen: int | None = None
        while True:
            started = Deadline(REFRESH_S)
            seen = refresh(source, target, seen)
            sleep_s(max(started.left_s, started.waited_s * (1 / MOST_BUSY - 1) if started.passed else 0.0))


def refresh(source: sqlite3.Connection, target: sqlite3.Connection, seen: int | None) -> int | None:
    """Copy the source unless it still has the version *seen*; return the version that the target now has."""
    try:
        # Changes only when another connection has committed, which all writers of the source are.
        version: int = source.execute("PRAGMA data_version").fetchone()[0]
        if version == seen:
            return seen
        source.backup(target, progress=_stop_when_locked)
    except sqlite3.OperationalError as error:
        print(f"not refreshed: {error}", flush=True)
        return seen
    if seen is None:
        print("copied once, ready.", flush=True)
    return version


def _stop_when_locked(status: int, _remaining_pages: int, _total_pages: int) -> None:
    # Python's backup would try again for ever, deaf to everything, though the lock's time-out has passed already.
    if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise sqlite3.OperationalError("the target is locked")


def _open(path: Path) -> sqlite3.Connection:
    # `rw` does not make a missing file: a wrong path must not look like an empty shard.
    uri = f"{path.resolve().as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_S, isolation_level=None)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m pipeline.devcluster.sqlite SOURCE TARGET")
    copy_for_ever(Path(sys.argv[1]), Path(sys.argv[2]))
