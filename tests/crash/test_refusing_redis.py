"""A worker outlives a Redis that refuses its commands, and goes on by itself once Redis takes them."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from kombu import Connection
from kombu.transport.redis import Transport
from support.fixtures import valkey_rig
from support.servers.rig import Rig

from pipeline.clock import polls
from pipeline.devcluster.processes import free_ports
from workers.signals import outlive_collected_channels

#: What the worker's log shows once it has met a refusal, and goes on.
MET = "Connection to broker lost"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """SQLite shards, and one Valkey for log and broker."""
    with valkey_rig(tmp_path_factory.mktemp("refusing")) as made:
        yield made


@pytest.fixture(scope="module")
def worker(rig: Rig) -> Iterator[str]:
    """The only worker of the tests below that want one."""
    with rig.worker() as name:
        yield name


@contextmanager
def full(rig: Rig) -> Iterator[None]:
    """At maxmemory, with a bell in the queue whose delivery needs memory."""
    with rig.frozen():
        rig.client.bell.ring_now("s0", 1)
        rig.redis.config_set("maxmemory", "1mb")
    yield
    rig.redis.config_set("maxmemory", "0")


@contextmanager
def replica(rig: Rig) -> Iterator[None]:
    """A failover's loser: READONLY, and UNBLOCKED for who waits."""
    rig.redis.replicaof("127.0.0.1", "1")
    yield
    rig.redis.replicaof("NO", "ONE")


@contextmanager
def alone(rig: Rig) -> Iterator[None]:
    """Without the replica that it asks for: NOREPLICAS."""
    rig.redis.config_set("min-replicas-to-write", "1")
    yield
    rig.redis.config_set("min-replicas-to-write", "0")


@contextmanager
def unable_to_save(rig: Rig) -> Iterator[None]:
    """A folder stands where its snapshot belongs: MISCONF, as with a full disk."""
    snapshot = Path(rig.redis.config_get("dir")["dir"]) / "dump.rdb"
    snapshot.mkdir()
    rig.redis.config_set("save", "3600 1")
    rig.redis.set("pl:something", "to be saved")
    saved(rig, "err")
    yield
    snapshot.rmdir()
    saved(rig, "ok")
    rig.redis.config_set("save", "")


@contextmanager
def restarting(rig: Rig) -> Iterator[None]:
    """Away for a moment, twice: the second time while the worker reconnects."""
    for _ in range(2):
        rig.cluster.kill("redis")
        rig.cluster.start("redis")
    yield


def test_a_full_redis_with_log_and_broker_is_drained_by_workers_that_start_then(rig: Rig) -> None:
    owners = rig.owners(8)
    rows = ({"owner": owners[i % 8], "body": "x"} for i in range(2000))
    receipts = rig.client.enqueue_bulk_insert(rig.db.event, rows)
    rig.redis.config_set("maxmemory", "1mb")

    with rig.worker(ready=False) as worker:
        rig.client.wait_all(receipts, timeout_s=60)
        assert rig.redis.info("memory")["used_memory"] > 1 << 20
        assert all(any(rig.redis.exists(f"pl:notes:{shard}") for _ in polls(30)) for shard in rig.primaries)

        rig.redis.config_set("maxmemory", "0")
        assert any(" ready." in rig.log_text(worker) for _ in polls(30))
        assert rig.cluster.is_alive(worker)


def test_without_a_broker_workers_apply_what_is_due(rig: Rig) -> None:
    [owner] = rig.owners(1)
    [closed] = free_ports(1)
    text = rig.config.read_text()
    nowhere = rig.config.with_name("no-broker.toml")
    nowhere.write_text(re.sub(r"broker_url = .*", f'broker_url = "redis://127.0.0.1:{closed}/1"', text))

    with rig.worker(nowhere, ready=False):
        rig.client.enqueue_insert(rig.db.event, owner=owner, body="x").wait(30)


def test_an_acknowledgement_on_a_collected_channel_counts_as_a_lost_connection(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Transport, "connection_errors", Transport.connection_errors)  # put back in the end
    outlive_collected_channels()
    connection = Connection(rig.client.settings.redis.broker_url)
    channel = connection.channel()

    connection.collect()

    with pytest.raises(connection.connection_errors, match="'NoneType' object has no attribute"):
        channel.basic_ack("a bell")


@pytest.mark.parametrize("refusing", [full, replica, alone, unable_to_save, restarting])
def test_a_worker_goes_on_by_itself_after_redis_was(
    rig: Rig, worker: str, refusing: Callable[[Rig], AbstractContextManager[None]]
) -> None:
    before = rig.log_text(worker).count(MET)

    with refusing(rig):
        # or it has ended of it
        assert any(rig.log_text(worker).count(MET) > before or not rig.cluster.is_alive(worker) for _ in polls(20))

    rows = [{"owner": owner, "body": "x"} for owner in rig.owners(8)]  # on both shards
    rig.client.wait_all(rig.client.enqueue_bulk_insert(rig.db.event, rows), timeout_s=30)
    assert rig.cluster.is_alive(worker)


def test_chores_are_done_though_tasks_occupy_every_process_of_the_worker(rig: Rig, worker: str) -> None:
    for child in children(rig.pid(worker)):
        os.kill(child, signal.SIGSTOP)  # as busy as a process can be
    traces = [f"pl:notes:{shard}" for shard in rig.primaries]  # that trimming leaves on a shard without replicas
    rig.redis.delete(*traces, *(f"pl:chore:trim:{shard}" for shard in rig.primaries))

    assert any(rig.redis.exists(*traces) == len(traces) for _ in polls(30))


def children(pid: int) -> list[int]:
    """Return the processes that a process has forked."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def saved(rig: Rig, how: str) -> None:
    """Let Redis save a snapshot, and wait until it has ended like this."""
    rig.redis.execute_command("BGSAVE", "SCHEDULE")
    assert any(rig.redis.info("persistence")["rdb_last_bgsave_status"] == how for _ in polls(20))
