"""I1: what is acknowledged at a level survives the faults that the level covers; what is lost is reported by name."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chance import SOAK
from support.fixtures import trial_on
from support.oracle.trial import Trial
from support.servers.proxy import Proxy
from support.servers.rig import Rig

from pipeline.client import Client
from pipeline.clock import polls
from pipeline.devcluster import servers
from pipeline.devcluster.processes import free_ports
from pipeline.oplog.redis.connection import connect


def test_redis_killed_with_its_file_intact_loses_nothing_that_was_acknowledged(lone_trial: Trial) -> None:
    rig = lone_trial.rig
    load = lone_trial.load(sure=True)
    lone_trial.send(load, 150 * SOAK)

    rig.kill_redis()
    rig.cluster.start("redis")

    lone_trial.send(load, 50 * SOAK)
    with rig.worker():
        assert lone_trial.holds()["lost"] == 0


def test_a_power_cut_loses_nothing_that_was_fsynced_and_names_the_rest(lone_trial: Trial) -> None:
    rig = lone_trial.rig
    load = lone_trial.load(sure=True)
    synced = lone_trial.send(lone_trial.load(sure=True, durability="fsync"), 40 * SOAK)
    safe_bytes = rig.log_file.stat().st_size
    loose = lone_trial.send(load, 60 * SOAK)

    rig.cluster.kill("redis")
    with rig.log_file.open("r+b") as file:
        # the machine died too: what was written but not fsynced is gone, at whatever byte
        file.truncate(lone_trial.luck.randrange(safe_bytes, rig.log_file.stat().st_size - 2000))
    rig.cluster.start("redis")
    after = lone_trial.send(load, 100 * SOAK)

    with rig.worker():
        accounts = lone_trial.holds()
    states = lone_trial.states()
    assert accounts["lost"] > 0
    assert {states[one.op] for one in synced + after} <= {"applied", "rejected", "parked"}
    assert sum(states[one.op] == "lost" for one in loose) == accounts["lost"]


def test_a_promoted_redis_replica_has_all_that_was_acknowledged_as_replicated(replicated: Replicated) -> None:
    trial, rig = replicated.trial, replicated.trial.rig
    safe = trial.load(replicated.client, sure=True, durability="replica")
    loose = trial.load(replicated.client, sure=True)
    kept = trial.send(safe, 40 * SOAK)
    replicated.stall()
    forgotten = trial.send(loose, 40 * SOAK)

    rig.cluster.kill("redis")
    replicated.promote()
    after = trial.send(loose, 120 * SOAK)

    with rig.worker(replicated.config):
        accounts = trial.holds()
    states = trial.states()
    assert {states[one.op] for one in kept + after} <= {"applied", "rejected", "parked"}
    assert {states[one.op] for one in forgotten} == {"lost"}
    assert accounts["lost"] == len(forgotten)


def test_a_promoted_redis_replica_that_is_behind_the_watermarks_makes_nothing_be_skipped(
    replicated: Replicated,
) -> None:
    trial, rig = replicated.trial, replicated.trial.rig
    load = trial.load(replicated.client, sure=True)
    with rig.worker(replicated.config):
        trial.send(load, 40 * SOAK)
        replicated.catch_up()
        replicated.stall()
        trial.send(load, 60 * SOAK)
        trial.settle()

        rig.cluster.kill("redis")
        replicated.promote()
        trial.send(load, 80 * SOAK)

        assert trial.holds()["lost"] == 0


def test_logs_that_are_deleted_under_load_cost_what_was_in_them_and_nothing_later(lone_trial: Trial) -> None:
    rig = lone_trial.rig
    other = Client(rig.config)
    other.define_tables(rig.db)
    loads = lone_trial.load(sure=True), lone_trial.load(other, sure=True)
    for load in loads:
        lone_trial.send(load, 12 * SOAK)
    epochs = [rig.client.log.epoch(shard)[0] for shard in rig.primaries]
    rig.redis.delete(*logs(rig))  # no worker has been at them

    with rig.worker():
        for _ in range(4):
            for load in loads:
                lone_trial.send(load, 10 * SOAK)
            rig.redis.delete(*lone_trial.luck.sample(logs(rig), 2))
        for load in loads:
            lone_trial.send(load, 20 * SOAK)
        accounts = lone_trial.holds()
    other.close()
    assert accounts["lost"] >= 24 * SOAK
    assert all(rig.client.log.epoch(shard)[0] > epoch for shard, epoch in zip(rig.primaries, epochs, strict=True))


def test_the_receipt_of_an_op_that_redis_lost_says_so(replicated: Replicated) -> None:
    rig, client = replicated.trial.rig, replicated.client
    [owner] = rig.owners(1)
    kept = client.enqueue_insert(rig.db.event, owner=owner, body="kept", durability="replica")
    replicated.stall()
    gone = client.enqueue_insert(rig.db.event, owner=owner, body="gone")

    rig.cluster.kill("redis")
    replicated.promote()
    with rig.worker(replicated.config):
        client.enqueue_insert(rig.db.event, owner=owner, body="after").wait(20)

        assert kept.wait(20) in ("applied", "durable")
        assert gone.status() == "lost"


def logs(rig: Rig) -> list[bytes]:
    """Return the names of all streams."""
    return sorted(rig.redis.scan_iter(match=f"{rig.client.log.keys.prefix}:log:*"))  # type: ignore[arg-type]


class Replicated:
    """A log server with a replica behind a proxy, and a client that reaches whichever is primary through another."""

    def __init__(self, trial: Trial, folder: Path):
        self.trial = trial
        primary = trial.rig.port("redis")
        [self._port] = free_ports(1)
        self._front, self._link = Proxy(primary), Proxy(primary)
        service = servers.service(folder, servers.bundled(), self._port)
        password = trial.rig.cluster.password
        servers.keep_password(folder, password)
        trial.rig.redis.config_set("repl-diskless-sync-delay", 0)
        self._server = subprocess.Popen(
            [*service.argv, "--replicaof", f"127.0.0.1 {self._link.port}"], stdout=subprocess.DEVNULL
        )
        self._redis = connect(servers.address(self._port, password), read_s=5, connect_s=2)
        self.config = trial.rig.config_through({primary: self._front.port})
        self.client = Client(self.config)
        self.client.define_tables(trial.rig.db)

    def wait_for_link(self) -> None:
        """Wait until the replica follows."""
        for _ in polls(30):
            if self.trial.rig.redis.info("replication").get("slave0", {}).get("state") == "online":
                return
        raise AssertionError("the replica does not follow")

    def catch_up(self) -> None:
        """Wait until the replica has all that was written until now."""
        wanted = self.trial.rig.redis.info("replication")["master_repl_offset"]
        for _ in polls(30):
            if self._redis.info("replication")["slave_repl_offset"] >= wanted:
                return
        raise AssertionError("the replica does not catch up")

    def stall(self) -> None:
        """Let nothing more reach the replica."""
        self._link.pause()

    def promote(self) -> None:
        """Make the replica the primary, as Sentinel would."""
        self._link.cut()
        self._redis.replicaof("no", "one")
        self._front.target = self._port
        self._front.cut()

    def close(self) -> None:
        """End all."""
        self.client.close()
        self._redis.close()
        self._front.close()
        self._link.close()
        self._server.kill()
        self._server.wait(10)


@pytest.fixture
def replicated(valkey: Rig, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Replicated]:
    """A lone trial whose log server has a replica."""
    trials = trial_on(valkey, request.node.name, tmp_path)
    (tmp_path / "replica").mkdir()
    made = Replicated(next(trials), tmp_path / "replica")
    try:
        made.wait_for_link()
        yield made
        next(trials, None)
    finally:
        made.close()
