"""A worker outlives a Redis that refuses its commands, and goes on by itself once Redis takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection
from kombu.transport.redis import Transport
from support.servers.rig import Rig

from pipeline.clock import polls
from workers.broker import outlive_collected_channels

#: What the worker's log shows once it has met a refusal, and goes on.
MET = "Connection to broker lost"


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


@pytest.mark.parametrize("refusing", [full, replica, alone, unable_to_save, restarting])
def test_a_worker_goes_on_by_itself_after_redis_was(valkey: Rig, refusing: Callable[[Rig], Any]) -> None:
    owners = valkey.owners(8)  # on both shards
    with valkey.worker() as worker:
        with refusing(valkey):
            assert met(valkey, worker)

        receipts = valkey.client.enqueue_bulk_insert(valkey.db.event, ({"owner": o, "body": "x"} for o in owners))
        valkey.client.wait_all(receipts, timeout_s=30)

        assert valkey.cluster.is_alive(worker)


def test_an_acknowledgement_on_a_collected_channel_counts_as_a_lost_connection(
    valkey: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Transport, "connection_errors", Transport.connection_errors)  # put back in the end
    outlive_collected_channels()
    connection = Connection(valkey.client.settings.redis.broker_url)
    channel = connection.channel()

    connection.collect()

    with pytest.raises(connection.connection_errors, match="'NoneType' object has no attribute"):
        channel.basic_ack("a bell")


def met(rig: Rig, worker: str) -> bool:
    """Wait until the worker has met the refusal, or has ended of it."""
    return any(MET in rig.log_text(worker) or not rig.cluster.is_alive(worker) for _ in polls(20))


def saved(rig: Rig, how: str) -> None:
    """Let Redis save a snapshot, and wait until it has ended like this."""
    rig.redis.execute_command("BGSAVE", "SCHEDULE")
    assert any(rig.redis.info("persistence")["rdb_last_bgsave_status"] == how for _ in polls(20))
