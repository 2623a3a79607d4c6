"""A Redis of its own for deployments of one shard in SQLite, whose calls one process times in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.config.settings import load
from pipeline.devcluster import Cluster
from pipeline.oplog.doorbell import SilentBell


class OneRedis:
    """A Redis, and a folder for the shards of the deployments on it.

    Attributes:
        pid: of the server; `url`: its address.
    """

    def __init__(self, cluster: Cluster, folder: str):
        [self.pid] = [one.pid for one in cluster.processes if one.name == "redis"]
        self.url, self._folder = load(cluster.config).redis.url, folder

    def client(self, name: str, db: Any, **redis: Any) -> Client:
        """Return the client of a deployment, whose tables are there.

        Args:
            name: of the deployment.
            db: defines the tables.
            redis: more of the section `[redis]`.
        """
        made = Client(
            {
                "redis": {"url": self.url, "prefix": name, "timeout_s": 10.0, **redis},  # others may use the machine
                "shards": {"s0": {"primary": f"sqlite://{self._folder}/{name}.sqlite"}},
                "spool": {"enabled": False},
            },
            bell=SilentBell(),
        )
        made.define_tables(db)
        migrate(made)
        return made


@contextmanager
def one_redis() -> Iterator[OneRedis]:
    """Start a Redis, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster.up(Path(folder) / "cluster", shards=1, replicas=0, workers=0, owned=True)
        try:
            yield OneRedis(cluster, folder)
        finally:
            cluster.down()
