"""The MariaDB cluster, for real: replication, crashes, accounts."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pymysql
import pytest

from pipeline.clock import polls
from pipeline.devcluster import Cluster

pytestmark = pytest.mark.mariadb


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not os.environ.get("CI") and not all(map(shutil.which, ("mariadbd", "redis-server"))):
        pytest.skip("mariadbd and redis-server are not installed")
    # So deep that a socket in it would have a path longer than the 107 bytes there are.
    directory = tmp_path_factory.mktemp("cluster") / ("deep" * 20) / "D"
    running = Cluster.up(directory, "mariadb", workers=0, owned=True)
    yield running
    running.down()


@pytest.fixture(autouse=True)
def _table(cluster: Cluster) -> None:
    run(cluster, "s0", "CREATE OR REPLACE TABLE t (n INT PRIMARY KEY) ENGINE=InnoDB")


def run(cluster: Cluster, node: str, sql: str, user: str = "root") -> list[tuple[Any, ...]]:
    [port] = [process.port for process in cluster.processes if process.name == node]
    options = {"host": "127.0.0.1", "port": port, "user": user, "password": cluster.password, "database": "shop"}
    limits = {"connect_timeout": 5, "read_timeout": 10, "write_timeout": 10}
    with closing(pymysql.connect(**options, **limits, autocommit=True)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def replica_shows(cluster: Cluster, expected: list[tuple[Any, ...]]) -> bool:
    def rows() -> list[tuple[Any, ...]] | None:
        try:
            return run(cluster, "s0-r0", "SELECT n FROM t ORDER BY n", user="reader")
        except pymysql.err.ProgrammingError:  # The table has not come yet.
            return None

    return any(rows() == expected for _ in polls(20))


def test_a_row_written_to_the_primary_appears_on_its_replica_and_on_no_other_shard(cluster: Cluster):
    run(cluster, "s0", "INSERT INTO t VALUES (1)", user="app")

    assert replica_shows(cluster, [(1,)])
    assert run(cluster, "s1", "SHOW TABLES") == run(cluster, "s1-r0", "SHOW TABLES") == []


def test_a_killed_primary_comes_back_with_its_rows_and_its_replica_follows_again(cluster: Cluster):
    run(cluster, "s0", "INSERT INTO t VALUES (1)")
    before = {process.name: process for process in cluster.processes}["s0"]
    cluster.kill("s0")
    with pytest.raises(pymysql.err.OperationalError):
        run(cluster, "s0", "SELECT 1")

    cluster.start("s0")

    after = {process.name: process for process in cluster.processes}["s0"]
    assert (after.port, after.pid == before.pid) == (before.port, False)
    assert run(cluster, "s0", "SELECT n FROM t") == [(1,)]
    run(cluster, "s0", "INSERT INTO t VALUES (2)")
    assert replica_shows(cluster, [(1,), (2,)])


def test_a_killed_replica_catches_up_once_started(cluster: Cluster):
    cluster.kill("s0-r0")
    run(cluster, "s0", "INSERT INTO t VALUES (1)")

    cluster.start("s0-r0")

    assert replica_shows(cluster, [(1,)])


def test_the_configuration_names_writers_for_primaries_and_readers_for_replicas(cluster: Cluster):
    shards = tomllib.loads(cluster.config.read_text())["shards"]
    ports = {process.name: process.port for process in cluster.processes}

    for name in ("s0", "s1"):
        primary, replica = (
            urlsplit(uri.removeprefix("mysql:")) for uri in (shards[name]["primary"], *shards[name]["replicas"])
        )
        assert (primary.username, primary.port, primary.path) == ("root", ports[name], "/shop")
        assert (replica.username, replica.port, replica.path) == ("reader", ports[f"{name}-r0"], "/shop")


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("innodb_flush_log_at_trx_commit", 1),
        ("sync_binlog", 1),
        ("binlog_format", "ROW"),
        ("log_slave_updates", 1),
        ("character_set_database", "utf8mb4"),
    ],
)
@pytest.mark.parametrize("node", ["s0", "s0-r0"])
def test_every_node_is_durable_and_logs_rows(cluster: Cluster, node: str, variable: str, expected: object):
    assert run(cluster, node, f"SELECT @@{variable}") == [(expected,)]


def test_replicas_refuse_writes_and_primaries_are_strict(cluster: Cluster):
    assert replica_shows(cluster, [])
    assert "STRICT_TRANS_TABLES" in run(cluster, "s0", "SELECT @@sql_mode")[0][0]

    with pytest.raises(pymysql.err.OperationalError, match="read-only"):
        run(cluster, "s0-r0", "INSERT INTO t VALUES (1)", user="app")


def test_readers_may_not_write_and_owners_see_no_other_schema(cluster: Cluster):
    with pytest.raises(pymysql.err.OperationalError, match="denied"):
        run(cluster, "s0", "INSERT INTO t VALUES (1)", user="reader")
    with pytest.raises(pymysql.err.OperationalError, match="denied"):
        run(cluster, "s0", "SELECT * FROM mysql.global_priv", user="app")


def test_no_account_is_for_another_machine(cluster: Cluster):
    hosts = run(cluster, "s0", "SELECT DISTINCT Host FROM mysql.user ORDER BY Host")

    assert hosts == [("127.0.0.1",), ("localhost",)]
