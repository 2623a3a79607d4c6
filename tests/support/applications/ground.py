"""Servers for applications: two MariaDB, Redis, and a database, a queue and a worker for each that is moved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pymysql

from pipeline.devcluster import Cluster, processes, servers, startup

#: Each table of a plain application begins its ids elsewhere, so that a number on a page is a row of one table.
IDS_OF_A_TABLE = 1_000_000


class Ground:
    """The servers that all applications share."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self._ports = {process.name: process.port or 0 for process in cluster.processes}
        self._numbers = count(1)

    def uri(self, shard: str, database: str) -> str:
        """Return the address of a database."""
        where = f"root:{self.cluster.password}@127.0.0.1:{self._ports[shard]}"
        return f"mysql:pymysql://{where}/{database}?set_encoding=utf8mb4"

    def port(self, name: str) -> int:
        """Return the port of a server."""
        return self._ports[name]

    @property
    def environment(self) -> dict[str, str]:
        """What MariaDB's own programs need to be let in."""
        return {**os.environ, "MYSQL_PWD": self.cluster.password}

    def redis(self, number: int) -> str:
        """Return the address of one of Redis's databases; 0 has the logs."""
        return servers.address(self._ports["redis"], self.cluster.password, number)

    def ask(self, shard: str, database: str, sql: str) -> str:
        """Run statements as root; with no *database* outside of all."""
        return self.cluster.sql(shard, f"USE {database}; {sql}" if database else sql)

    def create(self, shard: str, database: str) -> None:
        self.ask(shard, "", f"CREATE DATABASE {database} CHARACTER SET utf8mb4")

    def rows(self, shard: str, database: str, table: str) -> list[dict[str, Any]]:
        """Return a table's rows in the order of their ids."""
        where = {"host": "127.0.0.1", "port": self._ports[shard], "password": self.cluster.password}
        with pymysql.connect(user="root", database=database, ssl_disabled=True, **where) as connection:
            cursor = connection.cursor(pymysql.cursors.DictCursor)
            cursor.execute(f"SELECT * FROM `{table}` ORDER BY 1")
            return list(cursor.fetchall())

    def tables(self, shard: str, database: str) -> list[str]:
        return self.ask(shard, database, "SHOW TABLES").split()[1:]

    def spread_ids(self, shard: str, database: str) -> None:
        """Let each table of a database begin with ids of its own."""
        statements = (
            f"ALTER TABLE `{table}` AUTO_INCREMENT = {number * IDS_OF_A_TABLE + 1}"
            for number, table in enumerate(self.tables(shard, database), start=1)
        )
        self.ask(shard, database, "; ".join(statements))

    def configuration(self, path: Path, shards: Mapping[str, str], tables: str) -> Path:
        """Write a `pipeline.toml` with a prefix and a broker of its own, and return it.

        With four buckets three new rows in turn, such as customers, are on both of two shards.
        """
        number = next(self._numbers)
        lines = [
            f'[pipeline]\nbuckets = 4\n[redis]\nurl = "{self.redis(0)}"\nbroker_url = "{self.redis(number)}"',
            f'prefix = "app{number}"\ntimeout_s = 5.0',
            *(f'[shards.{name}]\nprimary = "{uri}"' for name, uri in shards.items()),
            tables,
        ]
        path.write_text("\n".join(lines))
        return path

    def start_worker(self, config: Path) -> Callable[[], None]:
        """Start a worker that runs until all is taken down; return what waits until it is ready."""
        directory = self.cluster.directory
        started = startup.launch(directory, [processes.worker(config, next(self._numbers), 1)])
        return lambda: startup.wait_ready(directory, started, lambda sentence: None)


@contextmanager
def ground_of(directory: Path, shards: int = 2) -> Iterator[Ground]:
    """Bring the servers up, and down at the end."""
    cluster = Cluster.up(directory, "mariadb", shards=shards, replicas=0, workers=0, owned=True)
    try:
        yield Ground(cluster)
    finally:
        cluster.down()
