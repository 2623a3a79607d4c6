"""Keep shards in SQLite files, and copy each primary's file to its replicas a few times a second.

A copy lags its source, as a real replica does. `python -m pipeline.devcluster.sqlite SOURCE TARGET` runs the process of
one replica. SQLite's online backup writes the target in place and in one transaction (https://sqlite.org/backup.html).
A reader of the target sees the source as it was at one moment.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from pipeline.clock import Deadline, sleep_s
from pipeline.devcluster import redis_server
from pipeline.devcluster.celery import import_path
from pipeline.devcluster.state import Service, Shard, node_names

FILE = "shop.sqlite"

#: How old a copy gets before it is refreshed, s.
REFRESH_S = 0.3

#: The share of one core that copying may take: a large file is refreshed less often.
MOST_BUSY = 0.25

#: How long to wait for a lock, s; the next round retries.
LOCK_TIMEOUT_S = 5.0


class SqliteFiles:
    """The databases of a cluster: one file per node, and one process per replica that copies its primary's file.

    Attributes:
        log_server: the command of the Valkey that comes as a Python package.
        services: the replicas' processes.
        shards: where the files are.
        folders: what `prepare` makes in the cluster's directory, one per node.
    """

    def __init__(self, directory: Path, shards: int, replicas: int, first: int = 0):
        names = node_names(shards, replicas, first)
        self._directory = directory
        self.log_server = redis_server.bundled()
        self.folders = tuple(node for primary, followers in names.items() for node in (primary, *followers))
        self.services = tuple(
            _refresher(directory, primary, follower) for primary, followers in names.items() for follower in followers
        )
        self.shards = tuple(
            Shard(name, _uri(directory / name), tuple(_uri(directory / follower) for follower in followers))
            for name, followers in names.items()
        )

    def prepare(self) -> Iterable[Service]:
        """Make the files, all in WAL mode, which a file keeps; no step has to be run."""
        for name in self.folders:
            (self._directory / name).mkdir(mode=0o700)
            with closing(sqlite3.connect(self._directory / name / FILE, timeout=5)) as connection:
                connection.execute("PRAGMA journal_mode = wal")
        return ()

    def link(self) -> None:
        """Do nothing: a replica's own process follows."""


def copy_for_ever(source_path: Path, target_path: Path) -> None:
    """Copy a file to another whenever it has changed, and never return.

    Args:
        source_path: the primary's file.
        target_path: the replica's file.
    """
    with closing(_open(source_path)) as source, closing(_open(target_path)) as target:
        target.execute("PRAGMA journal_mode = wal")
        target.execute("PRAGMA journal_size_limit = 0")
        seen: int | None = None
        while True:
            started = Deadline(REFRESH_S)
            seen = refresh(source, target, seen)
            sleep_s(max(started.left_s, started.waited_s * (1 / MOST_BUSY - 1) if started.passed else 0.0))


def refresh(source: sqlite3.Connection, target: sqlite3.Connection, seen: int | None) -> int | None:
    """Copy a database if it has changed.

    Args:
        source: a connection to the primary's file.
        target: a connection to the replica's file.
        seen: the source's version at the last copy; None before the first.

    Returns:
        The version that the target has now. A locked file is a line of output and the old version.
    """
    try:
        # Changes only when another connection has committed: every writer of the source is another connection.
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
    # Python's backup retries for ever, whatever happens, although the lock's time-out has passed.
    if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise sqlite3.OperationalError("the target is locked")


def _open(path: Path) -> sqlite3.Connection:
    # `rw` does not make a missing file: a wrong path must not look like an empty shard.
    uri = f"{path.resolve().as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_S, isolation_level=None)


def _refresher(directory: Path, primary: str, follower: str) -> Service:
    source, target = (str(directory / node / FILE) for node in (primary, follower))
    argv = (sys.executable, "-P", "-m", "pipeline.devcluster.sqlite", source, target)
    return Service(follower, "sqlite-replica", argv, environment=import_path())


def _uri(folder: Path) -> str:
    # pyDAL takes everything after the two slashes for the path, so an absolute one makes three.
    return f"sqlite://{folder / FILE}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m pipeline.devcluster.sqlite SOURCE TARGET")
    copy_for_ever(Path(sys.argv[1]), Path(sys.argv[2]))
