"""The embedded cluster, for real: SQLite files, their replicas, and the bundled Valkey."""

from __future__ import annotations

import socket
import sqlite3
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from pipeline.clock import polls
from pipeline.devcluster import Cluster
from pipeline.devcluster.state import ClusterFailed


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster.up(tmp_path / "deep" / "D", workers=0, owned=True, tables="[tables.t]\nreference = true")
    yield running
    running.down()


def node(cluster: Cluster, name: str) -> Path:
    return cluster.directory / name / "shop.sqlite"


def write(cluster: Cluster, sql: str) -> None:
    with closing(sqlite3.connect(node(cluster, "s0"))) as connection, connection:
        connection.execute(sql)


def replica_shows(cluster: Cluster, expected: int) -> bool:
    def rows() -> int:
        with closing(sqlite3.connect(node(cluster, "s0-r0"))) as connection:
            try:
                return connection.execute("SELECT COUNT(*) FROM t").fetchone()[0]
            except sqlite3.OperationalError:  # The table has not come yet.
                return -1

    return any(rows() == expected for _ in polls(10))


def test_a_row_written_to_the_primary_appears_on_the_replica(cluster: Cluster):
    write(cluster, "CREATE TABLE t (n INTEGER)")

    write(cluster, "INSERT INTO t VALUES (1)")

    assert replica_shows(cluster, 1)


def test_a_killed_replica_stays_behind_and_catches_up_once_started(cluster: Cluster):
    write(cluster, "CREATE TABLE t (n INTEGER)")
    assert replica_shows(cluster, 0)
    cluster.kill("s0-r0")
    assert not cluster.is_alive("s0-r0")
    write(cluster, "INSERT INTO t VALUES (1)")

    cluster.start("s0-r0")

    assert replica_shows(cluster, 1)


def test_the_configuration_names_the_files_and_the_log_server(cluster: Cluster):
    settings = tomllib.loads(cluster.config.read_text())

    assert settings["shards"]["s1"] == {
        "primary": f"sqlite://{node(cluster, 's1')}",
        "replicas": [f"sqlite://{node(cluster, 's1-r0')}"],
    }
    assert settings["tables"] == {"t": {"reference": True}}
    with closing(redis.Redis.from_url(settings["redis"]["broker_url"], socket_timeout=5)) as client:
        assert client.ping()


def test_its_folders_are_for_their_user_only(cluster: Cluster):
    folders = [cluster.directory, *(path for path in cluster.directory.iterdir() if path.is_dir())]

    assert {oct(folder.stat().st_mode & 0o777) for folder in folders} == {"0o700"}


def test_the_log_survives_a_stop_of_its_server_on_the_same_port(cluster: Cluster):
    url = tomllib.loads(cluster.config.read_text())["redis"]["url"]
    with closing(redis.Redis.from_url(url, socket_timeout=5)) as client:
        client.set("k", "v")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    cluster.stop("redis")
    assert not cluster.is_alive("redis")

    cluster.start("redis")

    with closing(redis.Redis.from_url(url, socket_timeout=5)) as client:
        assert client.get("k") == b"v"


def test_starting_a_process_that_runs_changes_nothing(cluster: Cluster):
    before = cluster.processes

    cluster.start("redis")

    assert cluster.processes == before


def test_a_process_that_a_file_stands_for_cannot_be_killed(cluster: Cluster):
    with pytest.raises(ClusterFailed, match="no process 's0'; it has: redis, s0-r0, s1-r0"):
        cluster.kill("s0")


def test_a_second_cluster_in_the_same_folder_is_refused_and_the_first_lives_on(cluster: Cluster):
    with pytest.raises(ClusterFailed, match="already holds a cluster"):
        Cluster.up(cluster.directory, workers=0)

    assert all(cluster.is_alive(process.name) for process in cluster.processes)


def test_servers_listen_on_loopback_only(cluster: Cluster):
    [port] = [process.port for process in cluster.processes if process.port]

    with socket.socket() as other:
        # The address 127.0.0.2 is this machine's too: only a server bound to all addresses would be in the way.
        other.bind(("127.0.0.2", port))
