"""A MariaDB shard with two replicas, a prober over it, and the ways to break it that reads have to survive."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydal import DAL, Field

from pipeline.admin.migration import migrate
from pipeline.client import Client
from pipeline.clock import polls
from pipeline.config.settings import load
from pipeline.devcluster import Cluster, processes, servers, startup
from pipeline.devcluster.startup import wait_ready
from pipeline.reads.health import IN_ROTATION, Report
from workers.threads import Turns, Watch

BUCKETS = 8
REPLICAS = ("s0-r0", "s0-r1")


class Shard:
    """A cluster of one shard, and a client of it."""

    def __init__(self, directory: Path):
        self.cluster = Cluster.up(
            directory, "mariadb", shards=1, replicas=2, workers=0, buckets=BUCKETS, tables=TABLES, owned=True
        )
        # root is above read_only: only an ordinary user is refused by a replica
        self.config = directory / "app.toml"
        self.config.write_text(self.cluster.config.read_text().replace("//root:", "//app:"))
        self.db = DAL("sqlite:memory", bigint_id=True, migrate=False)
        self.db.define_table("tally", Field("owner", "integer"), Field("n", "integer"))
        self.client = Client(self.config)
        self.client.define_tables(self.db)
        migrate(self.client)

    def port(self, node: str) -> int:
        [port] = [process.port for process in self.cluster.processes if process.name == node]
        assert port is not None
        return port

    def sql(self, node: str, statements: str) -> str:
        return self.cluster.sql(node, statements)

    def report(self, node: str) -> Report:
        return self.client.health.report(node)

    def lag_s(self, node: str) -> float:
        """Return the known bound of a node's lag; without one, no time at all is short enough."""
        lag_s = self.report(node).lag_s
        return float("inf") if lag_s is None else lag_s

    def follow(self, replica: str, port: int) -> None:
        """Make a replica follow the server on a port."""
        self.sql(replica, f"STOP SLAVE; CHANGE MASTER TO MASTER_PORT={port}; START SLAVE")
        until(lambda: servers.follows(self.sql(replica, "SHOW SLAVE STATUS\\G")))

    def cut_off(self) -> None:
        """Let no replica receive any more, and the first of them apply all that any other has: it can be promoted.

        Heartbeats never pause. A replica that had one more than the first could not follow that one (1236).
        """
        for replica in reversed(REPLICAS):
            self.sql(replica, "STOP SLAVE IO_THREAD")
        [received] = re.findall(r"Gtid_IO_Pos: (\S+)", self.sql(REPLICAS[0], "SHOW SLAVE STATUS\\G"))
        until(lambda: self.sql(REPLICAS[0], "SELECT @@gtid_slave_pos").split()[-1] == received)

    def promote(self, replica: str) -> None:
        self.sql(replica, "STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only=0")

    def seconds_behind(self, replica: str) -> str:
        """Return what the server itself says of its lag."""
        found = re.search(r"Seconds_Behind_Master: (\S+)", self.sql(replica, "SHOW SLAVE STATUS\\G"))
        assert found is not None
        return found.group(1)

    def healthy(self, *nodes: str) -> None:
        """Wait until replicas serve."""
        for node in nodes or REPLICAS:
            until(lambda node=node: self.lag_s(node) < 1.5 and self.report(node).state in IN_ROTATION)  # type: ignore[misc]

    def start_worker(self, number: int) -> str:
        """Start a worker that writes as an ordinary user, and return its name."""
        service = processes.worker(self.config, number, 1)
        directory = self.cluster.directory
        wait_ready(directory, startup.launch(directory, [service]), lambda sentence: None)
        return service.name

    def close(self) -> None:
        self.client.close()
        self.db.close()
        self.cluster.down(grace_s=0)


TABLES = '[tables.tally]\nshard_key = "owner"\n'


@contextmanager
def shard(directory: Path) -> Iterator[Shard]:
    """Bring a shard up, and down at the end; skip where there are no servers."""
    if not (shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin") and shutil.which("redis-server")):
        assert not os.environ.get("CI"), "mariadbd or redis-server is not installed"
        pytest.skip("mariadbd or redis-server is not installed")
    made = Shard(directory)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def probing(made: Shard) -> Iterator[None]:
    """Probe as a worker does."""
    watch = prober_of(made)
    watch.start()
    try:
        yield
    finally:
        watch.stop()


def prober_of(made: Shard) -> Turns:
    """Return a prober's thread, as a worker has it."""
    return Turns("prober", Watch(load(made.config)))


def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait until something is so."""
    assert any(condition() for _ in polls(within_s)), "it did not come to pass in time"
