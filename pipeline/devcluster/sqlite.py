"""Shards that need no server: SQLite files in WAL mode, and replicas that are copied from them a few times a second."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from pipeline.devcluster import redis_server as logserver
from pipeline.devcluster.celery import import_path
from pipeline.devcluster.layout import Layout, RunStep, Shard, node_names
from pipeline.devcluster.state import Service

FILE = "shop.sqlite"


def log_server_argv() -> tuple[str, ...]:
    """Return the command of the Valkey that comes as a Python package."""
    return logserver.bundled()


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
    argv = (sys.executable, "-m", "pipeline.devcluster.replica", source, target)
    return Service(follower, "sqlite-replica", argv, environment=import_path())


def _uri(folder: Path) -> str:
    # pyDAL takes everything after the two slashes for the path, so an absolute one makes three.
    return f"sqlite://{folder / FILE}"
