"""Real servers for the tests of check, status and migrate: one cluster a module, tables of their own in it."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from pydal import DAL, Field

from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.devcluster import Cluster
from pipeline.devcluster.servers import SCHEMA
from pipeline.oplog.doorbell import SilentBell

TABLES = """
[tables.purchase]
shard_key = "customer"
unique = [["customer", "day"]]
"""


@contextmanager
def servers(directory: Path, *, replicas: int = 1) -> Iterator[Servers]:
    """Start two shards with published and migrated tables, and no worker."""
    if not (shutil.which("mariadbd") and shutil.which("redis-server")) and not os.environ.get("CI"):
        pytest.skip("mariadbd or redis-server is not installed")
    cluster = Cluster.up(
        directory / "c", "mariadb", shards=2, replicas=replicas, workers=0, buckets=32, tables=TABLES, owned=True
    )
    try:
        yield Servers(cluster)
    finally:
        cluster.down(grace_s=0)


class Servers:
    """A cluster, and what a test does to it."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.ports = {process.name: process.port or 0 for process in cluster.processes}

    def config(self) -> dict[str, Any]:
        """Return the configuration as a dict, for a test to change."""
        config = tomllib.loads(self.cluster.config.read_text(encoding="utf-8"))
        # a dict has no folder of its own, from which the spool's path would be read
        config["spool"] = {**config.get("spool", {}), "path": str(self.cluster.directory / "spool" / "pipeline.spool")}
        return config

    def sql(self, node: str, statements: str) -> str:
        """Run statements on a node as root, in the application's database."""
        return self.cluster.sql(node, f"USE {SCHEMA}; {statements}")

    def redis(self) -> redis.Redis:
        """Return a client of the log's server."""
        return redis.Redis(port=self.ports["redis"], password=self.cluster.password, socket_timeout=5)

    def client(self, config: dict[str, Any] | None = None) -> Client:
        """Return a client that rings nobody."""
        return Client(config or self.config(), bell=SilentBell())

    def publish(self, config: dict[str, Any] | None = None) -> None:
        """Publish the tables and create them everywhere."""
        pipeline = self.client(config)
        try:
            pipeline.define_tables(model())
            migrate(pipeline)
        finally:
            pipeline.close()


def model() -> Any:
    """Return the application's tables."""
    db = DAL(None, migrate=False)
    db.define_table(
        "purchase",
        Field("customer", "integer"),
        Field("day", "date"),
        Field("note", "string", length=100),
        Field("price", "decimal(10,2)"),
        Field("weight", "double"),
    )
    db.define_table("visit", Field("purchase", "reference purchase"), Field("note", "string", length=100))
    return db
